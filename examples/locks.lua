-- Locks between processes: mutex, rwlock, semaphore, condition, event, barrier.
-- One that is killed loses what it had at once, and the next is told.
-- Run: lua5.4 examples/locks.lua
local ipc = require "ipc"

-- Whoever has it, the guard gives it up at the end of its scope.
local mutex = assert(ipc.mutex())
local child = assert(ipc.fork(function()
  local held <close> = assert(mutex:lock(5))
  ipc.parent:put "mine"
  ipc.parent:recv() -- and is killed before it could repair anything
end))
child:get(10)
print(mutex:lock(0)) --> nil timeout 110
child:kill "KILL"
do
  local held <close>, state = assert(mutex:lock(5))
  print(state) --> owner_dead
  mutex:consistent() -- the data is whole again: nobody else is told
end

-- Four places; those of the dead return.
local places = assert(ipc.semaphore(nil, { permits = 4 }))
local held <close> = assert(places:acquire(5))
print(places:stats().free) --> 3

-- Two processes go through 1000 rounds together.
local barrier = assert(ipc.barrier(nil, { parties = 2 }))
local other = assert(ipc.fork(function()
  for _ = 1, 1000 do assert(barrier:wait(10)) end
end))
for _ = 1, 1000 do assert(barrier:wait(10)) end
print(other:wait(10), barrier:stats().rounds) --> true 1000
