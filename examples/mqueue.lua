-- A POSIX message queue: named, kept by the kernel, urgent messages first. Three
-- workers take jobs from one queue; whoever knows its name may send more.
-- Run: lua5.4 examples/mqueue.lua
local ipc = require "ipc"

local name = "/lua-ipc-example-" .. ipc.pid()
local jobs <close> = assert(ipc.mqueue(name, "rw", { maxmsg = 5, temporary = true, timeout = 5 }))

-- The highest priority comes first, equals in the order they were sent.
jobs:send("sweep the floor")
jobs:send("put out the fire", 9)
jobs:send("feed the cat", 3)
for _ = 1, 3 do
  print(jobs:recv())
end
--> put out the fire 9
--> feed the cat 3
--> sweep the floor 0

-- A named queue stays usable here when children use it, too.
local results, give = ipc.pipe()
for _ = 1, 3 do
  local mine = give:dup()
  assert(ipc.fork(function()
    for n in jobs:values() do
      if not n then break end -- nothing else tells the end: there is no closed
      mine:put(n * n)
    end
  end))
end
give:close()
for n = 1, 20 do jobs:put(n, 1) end -- waits while five are in the queue
for _ = 1, 3 do jobs:put(false, 0) end

local sum = 0
for square in results:values() do sum = sum + square end
print(sum) --> 2870
