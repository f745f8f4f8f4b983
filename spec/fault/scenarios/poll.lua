-- Waiting for several.
local fault = ...
local ipc = require "ipc"

local ends = {}
for i, address in ipairs { "pipe", "unix", "unix?type=seqpacket", "pipe?packet=true" } do
  ends[i] = { assert(ipc.pair(address)) }
end
local readers, writers = {}, {}
for i, pair in ipairs(ends) do
  readers[i], writers[i] = pair[1], { pair[2], "w" }
end
local ready = fault.sure(ipc.poll, writers, 5)
assert(#ready == #writers or fault.hits() > 0 and #ready > 0)
for i, pair in ipairs(ends) do
  assert(pair[2]:send("message " .. i))
  ready = fault.sure(ipc.poll, readers, 5)
  fault.equal(ready and ready[1], pair[1], "ready")
  fault.equal(ready[pair[1]], true, "in the set")
  fault.equal(fault.call(pair[1], "recv", 0), "message " .. i)
  local none, message = fault.sure(ipc.poll, readers, 0.001)
  fault.equal(none, nil)
  fault.equal(message, "timeout")
end
-- A rest is written while others are waited for.
local big = ("r"):rep(300000)
assert(ends[1][2]:send(big, nil, 0))
local got
for _ = 1, 100 do
  fault.sure(ipc.poll, { ends[2][1], ends[1][1] }, 0.01)
  got = ends[1][1]:recv(0)
  if got then
    break
  end
end
fault.equal(got, big)
-- A foreign object.
local foreign = {
  pollfd = function() return ends[1][1]:pollfd() end,
  events = function() return "r" end,
  timeout = function() return 0.001 end,
}
ready = fault.sure(ipc.poll, { foreign }, 5)
fault.equal(ready and ready[1], foreign)
