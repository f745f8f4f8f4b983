-- The time as something to receive.
local fault = ...
local ipc = require "ipc"

for _, options in ipairs { { after = 0.001 }, { after = 0, every = 0.001 }, { every = 0.001, timeout = 10 } } do
  local timer = fault.sure(ipc.timer, options)
  fault.equal(fault.sure(ipc.poll, { timer }, 10)[1], timer)
  assert(fault.call(timer, "recv", 10) >= 1)
  if options.every then
    local count, message = fault.sure(function() return timer:values(10)() end)
    assert(count and count >= 1, message)
  else
    fault.equal(select(2, fault.call(timer, "recv", 10)), "closed")
  end
  fault.equal(fault.call(timer, "close"), true)
end
