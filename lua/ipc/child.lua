-- The first thing a spawned Lua runs; see spawn.lua. Its arguments: where the core
-- is, and a title for ps(1). In words of every Lua, to say so if this is another.
if _VERSION ~= "Lua 5.4" then
  io.stderr:write("ipc.spawn: ", arg[-1] or "this", " is ", _VERSION, ", not Lua 5.4\n")
  os.exit(1)
end
collectgarbage "stop" -- all that is made now is needed
local library, title = ...
local core = assert(package.loadlib(library, "luaopen_ipc_core"))("ipc.core", library)
package.loaded["ipc.core"] = core
assert(core.process.begin())

core.process.finish(function()
  local parent = core.process.parent()
  local handles = assert(parent:get())
  local body = assert(parent:recv())
  local message = assert(core.flat.unpack(body, { bytes = #body, values = 0x7fffffff, tables = 0x7fffffff }))
  collectgarbage "restart"
  package.path, package.cpath = message.path, message.cpath
  package.preload.ipc = load(message.ipc, "=?", "b") -- found and compiled already
  local thaw = load(message.thaw, "=?", "b")()
  local values = thaw(message.nodes, handles)
  local first = values.n - #message.names
  core.flat.handles = {}
  for i, name in ipairs(message.names) do
    core.flat.handles[name] = values[first + i]
  end
  local fn = values[1]
  _G.arg = { [-1] = arg[-1], [0] = message.file or title }
  if message.file then
    table.move(values, 2, first, 1, _G.arg)
    fn = assert(loadfile(message.file))
  elseif message.module then
    fn = require(message.module)
  end
  if type(fn) == "function" then
    return fn(table.unpack(values, 2, first))
  end
end)
