--- Inter-process communication: every mechanism of the kernel behind the same
-- calls. `local ipc = require "ipc"`.
-- @module ipc
local core = require "ipc.core"

local ipc = core.flat
ipc.parent = nil -- a field, see below

-- Modules that load when first used.
local later = {}

setmetatable(ipc, {
  __index = function(_, name)
    if name == "parent" then
      return core.process.parent()
    end
    local module = later[name]
    if module then
      local loaded = require(module)
      rawset(ipc, name, loaded)
      return loaded
    end
  end,
})

--- Opens two connected ends of a mechanism, for this process and its children.
-- Changing the mechanism is changing one string.
-- @function pair
-- @tparam string address a scheme, perhaps with options: `"pipe"`, `"unix"`,
-- `"unix?type=seqpacket"`
-- @tparam[opt] table options of the mechanism; they win over the address's
-- @treturn channel one end
-- @treturn channel the other; or nil, message, errno
-- @usage local a, b = ipc.pair("unix")
function ipc.pair(address, options)
  local one, other, errno = require("ipc.address").pair(address, options)
  if errno then -- no tail calls here: errors blame our caller by level
    return one, other, errno
  end
  return one, other
end

return ipc
