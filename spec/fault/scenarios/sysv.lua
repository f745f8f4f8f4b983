-- System V queues: one by its number, and a pair without one. What fails leaves
-- neither a queue nor a message behind, and no wait without its thread for ever.
local fault = ...
local ipc = require "ipc"

local q = fault.sure(ipc.sysv, "private", "rw", { temporary = true, timeout = 5, spin = 0 })
local id = q:id()
local r = fault.sure(ipc.sysv, nil, "r", { id = id, timeout = 5, spin = 0, maxsize = 300 })
for i, text in ipairs { "", "one", ("x"):rep(200) } do
  fault.equal(fault.call(q, "send", text, i), true, "send " .. i)
  fault.equal(fault.call(r, "recv"), text, "recv " .. i)
end
fault.equal(fault.call(q, "put", { 1, 2 }, 9), true)
fault.equal(#fault.call(r, "get", 5, -9), 2)
fault.equal(fault.call(q, "sendmany", { "a", "b" }), 2)
fault.equal(#fault.call(r, "recvmany", 1), 1)
fault.equal(fault.call(q, "recv"), "b")

-- A thread takes the empty message, if there can be one.
fault.nothing(r)
local fd = fault.sure(r.pollfd, r)
assert(q:send("", 4))
if fd then assert(ipc.poll({ { pollfd = fd, events = "r" } }, 5)) end
fault.equal(fault.call(r, "recv", 5), "")
fault.nothing(r)

assert(q:send(("x"):rep(301)) and q:send "after")
local text, _, errno = fault.call(r, "recv", 5)
if text == nil then
  fault.equal(errno, ipc.errno.EMSGSIZE)
  text = fault.call(r, "recv", 5)
end
fault.equal(text, "after")
fault.equal(fault.call(q, "stat").messages, 0)
local copy = fault.call(q, "dup")
assert(fault.call(copy, "close"))
assert(r:close())
assert(fault.call(q, "close"))
local gone
gone, _, errno = ipc.sysv(nil, "r", { id = id })
fault.equal(gone, nil)
fault.equal(errno, ipc.errno.ENOENT)

local a, b = fault.sure(ipc.pair, "sysv", { spin = 0 })
fault.equal(fault.call(a, "send", "there"), true)
fault.equal(fault.call(b, "recv", 5), "there")
fault.equal(fault.call(b, "send", "back"), true)
fault.equal(fault.call(a, "recv", 5), "back")
fault.nothing(a)
fault.nothing(b)
local c = fault.call(a, "dup")
collectgarbage() -- half of one that failed
assert(fault.call(a, "close"))
assert(fault.call(c, "close"))
fault.equal(select(2, fault.call(b, "recv", 5)), "closed")
assert(fault.call(b, "close"))
