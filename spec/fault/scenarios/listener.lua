-- Listening, connecting, accepting; the names are gone afterwards.
local fault = ...
local ipc = require "ipc"

local path = ("/tmp/ipc-fault-listener-%d"):format(ipc.pid())
for _, address in ipairs { "unix:" .. path, "unix:" .. path .. "?type=seqpacket", "tcp:0" } do
  local l, why = fault.sure(ipc.listen, address, { timeout = 5 })
  assert(l, why)
  local where = fault.sure(l.address, l)
  local c, s
  for _ = 1, 3 do -- one whose options could not be set is dropped, here or there
    local lost, none
    c, lost = fault.sure(ipc.connect, where, { timeout = 5, retry = 5 })
    assert(c, lost)
    s, none = fault.call(l, "accept", 0.1)
    assert(s or fault.hits() > 0, none)
    if s and s:pollfd() then
      fault.equal(fault.call(c, "send", "hello", nil, 5), true)
      local got, no = fault.call(s, "recv", 5)
      if got then
        fault.equal(got, "hello")
        break
      end
      fault.equal(no, "closed")
      s:close()
    end
    c:close()
  end
  fault.sure(s.peer, s)
  fault.sure(l.stats, l)
  fault.sure(tostring, l)
  assert(fault.call(l, "close"))
  if address:find "unix" then
    assert(not io.open(path) and not io.open(path .. ".lock"), "the name is still there")
  end
  c:close()
  fault.equal(select(2, s:recv(5)), "closed")
  s:close()
end
