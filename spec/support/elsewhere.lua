-- Where the other side of a session can be: in another task, or in another process
-- that runs no loop; over a socket, or over shared memory.
local ipc = require "ipc"
local peer = require "spec.support.peer"

local elsewhere = {}

local function with_timeout(options, more)
  local o = { timeout = peer.limit }
  for name, value in pairs(options or {}) do o[name] = value end
  for name, value in pairs(more or {}) do o[name] = value end
  return o
end

-- Runs in a loop, not for ever: longer than its waits may.
function elsewhere.run(fn, ...)
  local args = table.pack(...)
  return ipc.loop.run(function()
    local root = require "ipc.loop.tasks".current()
    ipc.loop.go(function()
      ipc.sleep(3 * peer.limit)
      root:cancel()
    end)
    return fn(table.unpack(args, 1, args.n))
  end)
end

local function in_tasks(scheme)
  return function(exports, fn, theirs, ours)
    return elsewhere.run(function()
      local server <close> = assert(ipc.rpc.serve(peer.address(scheme), exports(), with_timeout(theirs)))
      local session <close> = assert(ipc.rpc.connect(server.address, with_timeout(ours)))
      return fn(session)
    end)
  end
end

local function in_a_process(scheme)
  return function(exports, fn, theirs, ours, dies)
    local address = peer.address(scheme)
    local child = peer.fork(function()
      local listener <close> = assert(ipc.listen(address, scheme == "unix" and { unit = "stream" } or {}))
      local channel = assert(listener:accept(peer.limit))
      local session = assert(ipc.rpc.connect(channel, with_timeout(theirs, { exports = exports() })))
      session:serve(math.huge)
    end)
    local session <close> = assert(ipc.rpc.connect(address, with_timeout(ours, { retry = peer.limit })))
    local answer = table.pack(fn(session, child))
    session:close()
    local ended, why = child:wait(peer.limit)
    if not dies then
      assert(ended, why)
    else -- its name is the next one's
      assert(ipc.listen(address)):close()
    end
    return table.unpack(answer, 1, answer.n)
  end
end

-- Each: `name`, and `use(exports, fn [, theirs, ours, dies])`: fn(session) while the other side
-- serves what the function `exports` answers, where that is; in a process, fn(session,
-- process), and with `dies` that need not come to its end.
function elsewhere.ways()
  local ways = {
    { name = "unix, in tasks", use = in_tasks "unix", tasks = true },
    { name = "unix, in a process", use = in_a_process "unix" },
  }
  if peer.has "shm" then
    ways[3] = { name = "shm, in tasks", use = in_tasks "shm", tasks = true }
    ways[4] = { name = "shm, in a process", use = in_a_process "shm" }
  end
  return ways
end

return elsewhere
