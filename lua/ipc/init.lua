--- Inter-process communication: every mechanism of the kernel behind the same
-- calls. `local ipc = require "ipc"`.
-- @module ipc
local core = require "ipc.core"

local ipc = core.flat
core.pipe.duplex = core.pipe.duplex or ipc.duplex -- of two handles; see names.lua
ipc.duplex, ipc.parent = nil, nil -- fields, see below

-- Modules that load when first used: each is what the name stands for, or defines
-- it in `ipc` itself. A child begins with this file: the less is here the sooner it
-- is there.
local later = {
  pair = "ipc.names", open = "ipc.names", duplex = "ipc.names", listen = "ipc.names", connect = "ipc.names",
  spawn = "ipc.spawn", run = "ipc.exec", pipeline = "ipc.exec",
  loop = "ipc.loop", main = "ipc.main", serve = "ipc.serve", rpc = "ipc.rpc",
}

return setmetatable(ipc, {
  __index = function(_, name)
    if name == "parent" then
      return core.process.parent()
    end
    local module = later[name]
    if module then
      local loaded = require(module)
      if rawget(ipc, name) == nil then
        rawset(ipc, name, loaded)
      end
      return rawget(ipc, name)
    end
  end,
})
