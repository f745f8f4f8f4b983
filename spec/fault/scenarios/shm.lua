-- A ring from its making to its removal: by name, without one, in a file; every
-- call on it; a second participant, a child's, one that is passed on.
local fault = ...
local ipc = require "ipc"

local name = ("/lua_ipc_fault.%d"):format(ipc.pid())
local path = "/dev/shm" .. name
os.remove(path)

-- Descriptors of segments are high, others low: all of them.
local function descriptors()
  collectgarbage()
  collectgarbage()
  local n = 0
  for _, first in ipairs { 0, 500 } do
    for fd = first, first + 63 do
      local file = io.open("/proc/self/fdinfo/" .. fd)
      if file then
        file:close()
        n = n + 1
      end
    end
  end
  return n
end

local function exists(file)
  local f = io.open(file)
  return f and f:close() or false
end

-- By name: what is not made leaves nothing behind.
local before = descriptors()
local r = assert(fault.sure(ipc.shm, name, "r", { capacity = 4096 }))
local w = assert(fault.sure(ipc.shm, name, "w", { capacity = 4096 }))
for i, text in ipairs { "", "one", ("x"):rep(3000) } do
  fault.equal(fault.call(w, "send", text, nil, 5), true, "send " .. i)
  fault.equal(fault.call(r, "recv", 5), text, "recv " .. i)
end
fault.equal(fault.call(w, "sendmany", { "1", "2", "3" }, nil, 5), 3)
local list = fault.call(r, "recvmany", 10, 5)
for i = 1, 3 do -- what it failed to take is still there
  fault.equal(list[i] or fault.call(r, "recv", 5), tostring(i), "recvmany")
end
fault.equal(fault.call(w, "put", { "value", 2.5 }, nil, 5), true)
fault.same(fault.call(r, "get", 5), { "value", 2.5 }, "value")

-- A second participant, a poll set with its threads.
local copy = fault.call(w, "dup")
fault.equal(fault.call(copy, "send", "from the copy", nil, 5), true)
fault.equal(#fault.sure(ipc.poll, { r }, 5), 1)
fault.equal(fault.call(r, "recv", 5), "from the copy")
local none, message = fault.sure(ipc.poll, { r }, 0.002)
fault.equal(none, nil)
fault.equal(message, "timeout")
assert(fault.call(copy, "close"))
fault.nothing(r)
assert(r:stats().capacity == 4096)

-- A child becomes one of its own, or says that there was no place for it.
local child = fault.sure(ipc.fork, function()
  return w:send("from the child", nil, 5)
end)
local ok, sent, why = fault.call(child, "wait", 10)
fault.equal(ok, true, "child")
if sent then
  fault.equal(fault.call(r, "recv", 5), "from the child")
else
  assert(fault.hits() > 0, why)
end
child:close()
while r:recv(0) do end -- of a child that could not be watched, so that there is none

-- Passed through a socket.
local a, b = assert(ipc.pair "unix")
for turn = 1, 2 do
  local try = turn == 1 and fault.try or pcall
  local done, put, text, errno = try(a.put, a, { w }, nil, 5)
  if not (done and put) then
    fault.failed(done, put, text, errno)
    assert(a:put({ w }, nil, 5))
  end
  local got, value, m, e = try(b.get, b, 5)
  if got and value then
    local passed = value[1]
    assert(passed:send("passed", nil, 5))
    fault.equal(r:recv(5), "passed")
    assert(passed:close())
    break
  end
  assert(e == ipc.errno.EMFILE or e == ipc.errno.EBADMSG or fault.failed(got, value, m, e))
  if b:get(0) then
    break
  end
end
a:close()
b:close()
collectgarbage() -- a handle that nobody got is a participant
assert(fault.call(w, "close"))
fault.equal(select(2, r:recv(5)), "closed")
assert(fault.call(r, "close"))
assert(not exists(path), "the last one out left the name")
fault.equal(descriptors(), before, "descriptors")

-- Without a name: one reader, one writer; views.
r, w = fault.sure(ipc.queue, { capacity = 4096, writers = 1, readers = 1 })
local view = fault.call(w, "reserve", 100, 5)
view:write(0, "in place")
fault.equal(fault.call(view, "commit", 8), true)
view = assert(fault.call(r, "peek", 5))
fault.equal(fault.call(view, "read"), "in place")
fault.equal(fault.call(view, "unpack", 0, "c8"), "in place")
fault.equal(fault.call(view, "release"), true)
assert(w:close() and r:close())

-- Leases: what fails on its way out is offered again, once it is collected.
local function take()
  local done, taken, text, errno = fault.try(r.take, r, 5)
  if done and taken then
    return taken
  end
  fault.failed(done, taken, text, errno)
  collectgarbage()
  return assert(r:take(5))
end
r, w = fault.sure(ipc.queue, { capacity = 4096, lease = true })
assert(w:send "first" and w:put { "second" })
local ticket = take()
fault.equal(ticket.bytes, "first")
fault.equal(fault.call(ticket, "nack"), true)
ticket = take()
fault.equal(ticket.bytes, "first", "offered again")
fault.equal(fault.call(ticket, "ack"), true)
ticket = take()
fault.same(fault.call(ticket, "get"), { "second" }, "ticket's value")
fault.equal(fault.call(ticket, "ack"), true)
fault.nothing(r)
assert(w:close() and r:close())

-- In a file.
local file = ("/tmp/lua_ipc_fault.%d.ring"):format(ipc.pid())
os.remove(file)
w = fault.sure(ipc.mmap, file, "w", { capacity = 4096, temporary = true })
assert(w:send "kept")
r = fault.sure(ipc.mmap, file, "r")
fault.equal(fault.call(r, "recv", 5), "kept")
assert(fault.call(r, "close") and fault.call(w, "close"))
os.remove(file) -- of a first attempt that had made it
fault.equal(descriptors(), before, "descriptors")
