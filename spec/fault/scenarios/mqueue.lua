-- POSIX queues: by a name, and as a pair without one. What fails leaves neither
-- a name nor a message behind.
local fault = ...
local ipc = require "ipc"

local name = "/ipc-fault-" .. ipc.pid()
local options = { maxmsg = 4, msgsize = 200, temporary = true, timeout = 5 }

local q = fault.sure(ipc.mqueue, name, "rw", options)
local r = fault.sure(ipc.mqueue, name, "r", { create = false, timeout = 5 })
for i, text in ipairs { "", "one", ("x"):rep(200) } do
  fault.equal(fault.call(q, "send", text, i), true, "send " .. i)
  fault.equal(fault.call(r, "recv"), text, "recv " .. i)
end
fault.equal(fault.call(q, "put", { 1, 2 }, 9), true)
fault.equal(#fault.call(r, "get"), 2)
fault.equal(fault.call(q, "sendmany", { "a", "b" }), 2)
fault.equal(#fault.call(r, "recvmany", 1), 1)
fault.equal(fault.call(q, "recv"), "b")
fault.nothing(r)
fault.equal(fault.call(q, "stat").messages, 0)
local copy = fault.call(q, "dup")
fault.equal(fault.call(copy, "notify", "WINCH"), true)
fault.equal(fault.call(copy, "notify"), true)
assert(fault.call(copy, "close"))
assert(r:close())
assert(fault.call(q, "close"))
local gone, _, errno = ipc.mqueue(name, "r", { create = false })
fault.equal(gone, nil)
fault.equal(errno, ipc.errno.ENOENT)

local a, b = fault.sure(ipc.pair, "mqueue", { maxmsg = 2, msgsize = 50 })
fault.equal(fault.call(a, "send", "there"), true)
fault.equal(fault.call(b, "recv", 5), "there")
fault.equal(fault.call(b, "send", "back"), true)
fault.equal(fault.call(a, "recv", 5), "back")
fault.nothing(a)
fault.nothing(b)
assert(fault.call(a, "close"))
assert(fault.call(b, "close"))
