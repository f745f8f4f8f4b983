-- Processes: ipc.spawn runs a function in a fresh Lua, with what it refers to. The
-- handle is a channel to it; wait tells its results, its error or its death.
-- Run: lua5.4 examples/spawn.lua
local ipc = require "ipc"

local power = 2
do
  local child <close> = assert(ipc.spawn(function()
    for n in ipc.parent:values() do
      ipc.parent:put(n ^ power)
    end
  end))
  child:put(7)
  print(child:get()) --> 49.0
end -- the child hears `closed`, and may finish what it does

local function fibonacci(n) return n < 2 and n or fibonacci(n - 1) + fibonacci(n - 2) end
print(assert(ipc.spawn(fibonacci, 20)):wait()) --> true 6765

local jobs, give = ipc.pair "unix?type=seqpacket"
local crew <close> = assert(ipc.spawn { count = 3, fn = function()
  local sum = 0
  for n in jobs:values() do
    sum = sum + n
  end
  return sum
end })
for n = 1, 100 do
  give:put(n)
end
give:close() -- no more jobs: the crew ends
print(crew:wait()) --> true
print(select(2, crew[1]:wait()) + select(2, crew[2]:wait()) + select(2, crew[3]:wait())) --> 5050

local child = assert(ipc.spawn { fn = function() error "out of luck" end, nice = 5 })
print((select(2, child:wait()):match "[^\n]+")) --> examples/spawn.lua:35: out of luck
