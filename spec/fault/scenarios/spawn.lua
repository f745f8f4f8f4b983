-- Lua of its own: started, talked to, waited for; one and several.
local fault = ...
local ipc = require "ipc"

-- Lua's own metatable of long buffers: half of one stays when its making fails.
assert(#("x"):rep(1 << 16) == 1 << 16)

local function work(list)
  ipc.parent:put(list)
  return "done", #list
end

local list = { 1, { "two" } }
local child = fault.sure(ipc.spawn, work, list)
local got = child:get(10)
fault.equal(got and got[2][1], "two")
local ok, value, n = fault.call(child, "wait", 10)
fault.equal(ok, true, tostring(value))
fault.equal(value, "done")
fault.equal(n, 2)
fault.call(child, "close")

local crew = fault.sure(ipc.spawn, { count = 2, fn = work, args = { { 1 } } })
fault.equal(#crew, 2)
for i = 1, 2 do
  fault.equal(crew[i]:get(10)[1], 1)
end
fault.equal(fault.call(crew, "wait", 10), true)
fault.equal(fault.call(crew, "close"), true)
