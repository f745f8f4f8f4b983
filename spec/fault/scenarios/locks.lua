-- Locks from their making to their removal: what fails has taken nothing, and
-- what was waited for is not waited for any more.
local fault = ...
local ipc = require "ipc"

local name = ("/lua_ipc_fault_lock.%d"):format(ipc.pid())
local path = "/dev/shm" .. name
os.remove(path)

local function exists(file)
  local f = io.open(file)
  return f and f:close() or false
end

local function timeout(lock, method, ...)
  local got, message = fault.call(lock, method, ...)
  fault.equal(got, nil, method)
  fault.equal(message, "timeout", method)
end

-- By name, twice, and to a child.
local m = assert(fault.sure(ipc.mutex, name))
local other = assert(fault.sure(ipc.mutex, name))
local g = assert(fault.call(m, "lock", 5))
fault.equal(m:stats().held, true)
timeout(other, "lock", 0.002)
fault.equal(fault.call(g, "unlock"), true)
local child = fault.sure(ipc.fork, function()
  return m:lock(5) and m:unlock()
end)
local ok, locked, why = fault.call(child, "wait", 10)
fault.equal(ok, true, "child")
assert(locked or fault.hits() > 0, why)
child:close()
g = assert(other:lock(5))
g:unlock()
other:consistent() -- a child that could not be watched was killed

-- The others; each waits a moment.
local rw = assert(fault.sure(ipc.rwlock))
g = assert(fault.call(rw, "read", 5))
g:unlock()
g = assert(fault.call(rw, "write", 5))
g:unlock()
fault.equal(rw:stats().writers + rw:stats().readers + rw:stats().wanting, 0)
local s = assert(fault.sure(ipc.semaphore, nil, { permits = 2 }))
g = assert(fault.call(s, "acquire", 5, 2))
timeout(s, "acquire", 0.002)
g:unlock()
fault.equal(s:stats().free, 2)
local c = assert(fault.sure(ipc.condition))
assert(m:lock(5))
local results = table.pack(fault.try(c.wait, c, m, 0.002))
if not fault.failed(table.unpack(results, 1, 4)) then fault.equal(results[3], "timeout") end
if m:stats().held then m:unlock() end
fault.equal(c:stats().waiting, 0)
fault.equal(fault.call(c, "notify"), true)
local e = assert(fault.sure(ipc.event, nil, { auto = true }))
timeout(e, "wait", 0.002)
fault.equal(fault.call(e, "set"), true)
fault.equal(#fault.sure(ipc.poll, { e }, 5), 1)
fault.equal(fault.call(e, "wait", 5), true)
local b = assert(fault.sure(ipc.barrier, nil, { parties = 2 }))
timeout(b, "wait", 0.002)
fault.equal(b:stats().arrived, 0)

-- In a memory.
local memory = assert(fault.sure(ipc.memory, nil, 100, { locks = 2 }))
local inner = assert(fault.call(memory, "mutex", 1))
g = assert(fault.call(inner, "lock", 5))
g:unlock()
assert(memory:close())

for _, lock in ipairs { rw, s, c, e, b, other, m } do assert(fault.call(lock, "close")) end
assert(not exists(path), "the last one out left the name")
