-- Values on a stream: each comes once and whole. Where memory runs out inside
-- of one, the place where the next begins is lost, and every later call says so.
local fault = ...
local ipc = require "ipc"

local r, w = assert(ipc.pair "unix?unit=stream")
local values = {}
for i = 1, 30 do
  values[i] = { id = i, { "nested", { i, ("x"):rep(i * 40) } } }
  fault.equal(fault.call(w, "put", values[i], nil, 5), true, "put")
end
for i = 1, 30 do
  local got, message, errno = fault.call(r, "get", 5)
  if errno == ipc.errno.EBADMSG then
    assert(fault.again, message)
    fault.equal(select(3, r:get(0)), ipc.errno.EBADMSG)
    return
  end
  fault.same(got, values[i], "get " .. i)
end
fault.nothing(r)
