-- Datagrams with names: sent, received with their sender, answered.
local fault = ...
local ipc = require "ipc"

local path = ("/tmp/ipc-fault-datagrams-%d"):format(ipc.pid())
for _, row in ipairs {
  { "unix:" .. path .. "?type=datagram" },
  { "udp:127.0.0.1:0", "127.0.0.1:0" },
} do
  local server, why = fault.sure(ipc.open, row[1], "rw", { timeout = 5 })
  assert(server, why)
  local where = fault.sure(server.address, server)
  local client, lost = fault.sure(ipc.connect, where, { timeout = 5, bind = row[2] })
  assert(client, lost)
  for i, text in ipairs { "", "one", ("x"):rep(2000) } do
    fault.equal(fault.call(client, "send", text, nil, 5), true, "send " .. i)
    local ok, got, from, errno = fault.try(server.recv, server, 5)
    if not (ok and got) then
      fault.failed(ok, got, from, errno)
      got, from = server:recv(5)
    end
    fault.equal(got, text, "recv " .. i)
    fault.equal(from ~= nil, row[2] ~= nil, "its sender") -- who has no name is not told
    if from then
      fault.equal(fault.call(server, "send", "answer", from, 5), true, "answer " .. i)
      fault.equal(fault.call(client, "recv", 5), "answer")
    end
  end
  fault.nothing(server)
  assert(fault.call(client, "close"))
  assert(fault.call(server, "close"))
  assert(not io.open(path), "the name is still there")
end
