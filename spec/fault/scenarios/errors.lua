-- Mistakes and iterators.
local fault = ...
local ipc = require "ipc"

local r, w = assert(ipc.pipe())
local function mistake(wanted, f, ...)
  local ok, message = fault.try(f, ...)
  assert(not ok, wanted)
  assert(tostring(message):find(wanted, 1, true) or fault.failed(ok, message), message)
end
mistake("unknown option 'colour'", ipc.pipe, { colour = 1 })
mistake("option 'unit'", ipc.pipe, { unit = "pints" })
mistake("string expected", w.send, w, 17)
mistake("no tags here", w.send, w, "x", 17)
mistake("only receives", r.send, r, "x")
mistake("ipc.pipe expected", r.recv, io.stdout)
mistake("list[2]", w.sendmany, w, { "x", 2 })
mistake("entry 1", ipc.poll, { 17 })
mistake("no mechanism", ipc.pair, "pigeon")

for i = 1, 3 do
  assert(w:send("message " .. i))
end
local next_message = fault.sure(r.messages, r, 5)
for i = 1, 3 do
  fault.equal(fault.sure(next_message), "message " .. i)
end
local ok, object = fault.try(r:messages(0))
assert(not ok)
assert(type(object) == "table" and object.errno == ipc.errno.ETIMEDOUT or fault.failed(ok, object))
w:put(1)
local next_value = fault.sure(r.values, r, 5)
fault.equal(fault.sure(next_value), 1)
w:close()
fault.equal(fault.sure(next_value), nil)
fault.equal(select(2, fault.call(r, "recv", 5)), "closed")
r:close()
fault.equal(select(2, fault.sure(r.recv, r)), "closed")
