-- Deadlines of the calls that are written in Lua: an optional timeout in seconds
-- becomes a moment of ipc.now(), or nil for ever.
local ipc = require "ipc.core".flat

local clock = {}

function clock.deadline(timeout)
  return timeout and timeout < math.huge and ipc.now() + timeout or nil
end

-- Seconds until then.
function clock.left(moment)
  return moment and moment - ipc.now()
end

-- Complains of a timeout argument (the first, or that one) as the core does; the
-- caller's caller is to blame.
function clock.check(call, timeout, index)
  if timeout == nil then
    return
  end
  local problem = math.type(timeout) == nil and "seconds expected, got " .. type(timeout)
    or timeout ~= timeout and "timeout is not a number"
  if problem then
    error(("bad argument #%d to '%s' (%s)"):format(index or 1, call, problem), 3)
  end
end

return clock
