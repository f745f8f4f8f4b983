-- Two channels as one.
local fault = ...
local ipc = require "ipc"

local a, b = fault.sure(ipc.pipe, { duplex = true })
for i = 1, 5 do
  fault.equal(fault.call(a, "send", "to b " .. i, nil, 5), true)
  fault.equal(fault.call(b, "send", "to a " .. i, nil, 5), true)
  fault.equal(fault.call(b, "recv", 5), "to b " .. i)
  fault.equal(fault.call(a, "recv", 5), "to a " .. i)
end

local r1, w1 = assert(ipc.pipe())
local r2, w2 = assert(ipc.pipe())
local one = fault.sure(ipc.duplex, r1, w2)
local other = fault.sure(ipc.duplex, r2, w1)
local big = ("z"):rep(200000)
fault.equal(fault.call(one, "send", big, nil, 0), true)
fault.equal(fault.call(other, "put", { 1, 2 }, nil, 5), true)
fault.equal(#fault.call(one, "get", 5), 2)
fault.equal(fault.call(other, "recv", 5), big)
fault.nothing(one)
fault.nothing(other)
assert(fault.call(one, "close"))
local got, message = other:recv(5)
fault.equal(got, nil)
fault.equal(message, "closed")
assert(fault.call(other, "close"))
