-- A store of keys and values in a process of its own. Two others write to it, a
-- third is told of every change: it gave the store a function to call.
-- Run: lua5.4 examples/store.lua
local ipc = require "ipc"

local values, watchers, exports = {}, {}, {}

function exports.get(key) return values[key] end

function exports.set(key, value)
  values[key] = value
  for watcher in pairs(watchers) do
    if not watcher:notify(key, value) then watchers[watcher] = nil end -- it has gone
  end
end
function exports.watch(watcher) watchers[watcher] = true end

local store <close> = assert(ipc.rpc.serve("unix:/tmp/store." .. ipc.pid(), exports, { process = true }))

local function user(fn)
  return assert(ipc.fork(function()
    local session <close> = assert(ipc.rpc.connect(store.address, { timeout = 5 }))
    fn(session)
  end))
end

local third = user(function(session)
  session.remote.watch(function(key, value)
    print(key, value)
    if key == "end" then session:close() end
  end)
  ipc.parent:put "watches"
  session:serve() -- calls of the other side, until it is closed
end)
assert(third:get(5))
assert(user(function(session) session.remote.set("price", 7) end):wait(5))
assert(user(function(session) session.remote.set("end", session.remote.get "price" + 1) end):wait(5))
assert(third:wait(5))
--> price 7
--> end 8
