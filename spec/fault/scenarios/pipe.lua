-- Small messages on every kind of pair, through every receiving call.
local fault = ...
local ipc = require "ipc"

for _, address in ipairs { "pipe", "pipe?packet=true", "unix", "unix?type=seqpacket" } do
  local r, w = fault.sure(ipc.pair, address)
  for i, text in ipairs { "", "one", ("x"):rep(100), ("y"):rep(3000) } do
    fault.equal(fault.call(w, "send", text, nil, 5), true, "send " .. i)
    fault.equal(fault.call(r, "recv", 5), text, "recv " .. i)
  end
  fault.nothing(r)
  fault.sure(tostring, r)
  fault.sure(r.stats, r)
  fault.sure(r.pollfd, r)
  local copy = fault.call(w, "dup")
  assert(copy:send "through the copy")
  assert(fault.call(copy, "close"))
  fault.equal(fault.call(r, "recv", 5), "through the copy")
  assert(fault.call(w, "shutdown"))
  assert(w:close())
  local got, message = r:recv(5)
  fault.equal(got, nil)
  fault.equal(message, "closed")
  assert(fault.call(r, "close"))
end
