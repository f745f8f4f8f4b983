-- A named pipe from its making to its removal, its lock, its second opening.
local fault = ...
local ipc = require "ipc"

local path = ("/tmp/lua_ipc_fault.%d"):format(ipc.pid())
os.remove(path)

local r = fault.sure(ipc.fifo, path, "r", { temporary = true })
local w = fault.sure(ipc.fifo, path, "w", { keepalive = true })
for i, text in ipairs { "", "one", ("x"):rep(5000) } do
  fault.equal(fault.call(w, "send", text, nil, 5), true, "send " .. i)
  fault.equal(fault.call(r, "recv", 5), text, "recv " .. i)
end
fault.equal(fault.call(w, "sendmany", { "1", "2" }, nil, 5), 2)
fault.equal(fault.call(r, "recv", 5), "1")
fault.equal(fault.call(r, "recv", 5), "2")
local copy = fault.call(w, "dup")
fault.equal(fault.call(copy, "send", ("y"):rep(5000), nil, 5), true)
fault.equal(#fault.call(r, "recv", 5), 5000)
assert(copy:close() and w:close())
fault.equal(select(2, r:recv(5)), "closed")

w = assert(ipc.fifo(path, "w"))
fault.equal(fault.call(r, "reopen", 5), true)
assert(w:send "again")
fault.equal(fault.call(r, "recv", 5), "again")
assert(w:close() and r:close())
assert(not os.remove(path), "it was temporary")

local a, b = fault.sure(ipc.pair, "fifo")
assert(a:send "to b")
fault.equal(b:recv(5), "to b")
assert(fault.call(a, "close") and fault.call(b, "close"))

local both = fault.sure(ipc.duplex, "fifo:" .. path, "fifo:" .. path, { temporary = true, timeout = 5 })
assert(both:send "round")
fault.equal(both:recv(5), "round")
assert(both:close())
os.remove(path) -- of a first attempt that lacked the memory to close what it had
