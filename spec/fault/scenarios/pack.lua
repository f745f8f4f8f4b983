-- Values to bytes and back.
local fault = ...
local ipc = require "ipc"

local value = { 1, 2.5, "three", { four = 4, [5.5] = "five" }, ipc.ext(6, "six"), ("7"):rep(5000) }
for i = 1, 100 do
  value[#value + 1] = { [i] = i, name = "entry " .. i }
end
local wanted = ipc.pack(value)
for _ = 1, 2 do
  local bytes = fault.sure(ipc.pack, value)
  fault.equal(bytes, wanted)
  fault.equal(#ipc.pack((fault.sure(ipc.unpack, bytes))), #wanted)
  fault.equal(#ipc.pack((fault.sure(ipc.unpack, bytes, { depth = 200, nulls = true }))), #wanted)
end
local ok, message = fault.try(ipc.pack, { a = { b = { io.stdout } } })
assert(not ok and (tostring(message):find "value.a.b" or fault.failed(ok, message)), message)
local cycle = {}
cycle.me = { cycle }
ok, message = fault.try(ipc.pack, cycle)
assert(not ok and (tostring(message):find "cycle" or fault.failed(ok, message)), message)
local _, got, text = fault.try(ipc.unpack, wanted:sub(1, -2))
assert(got == nil or fault.failed(_, got, text))
fault.sure(ipc.array, {})
fault.sure(tostring, ipc.ext(1, "x"))
fault.sure(ipc.mechanisms)
