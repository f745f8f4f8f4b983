-- A mapped file: the ring of shared memory in a file. What nobody has received
-- is there for the next process, also after a restart.
-- Run: lua5.4 examples/mmap.lua
local ipc = require "ipc"

local path = os.tmpname()
os.remove(path) -- a file that is not ours would be refused

-- A process that writes and ends; nobody reads yet.
assert(ipc.fork(function()
  local log <close> = assert(ipc.mmap(path, "w", { capacity = 1 << 16 }))
  for n = 1, 3 do log:put { event = n } end
end):wait(5))

local events <close> = assert(ipc.mmap(path, "r"))
print(events:stats().depth .. " events wait in the file") --> 3 events wait in the file
for event in events:values(0) do
  print(event.event)
  if event.event == 3 then break end
end
--> 1
--> 2
--> 3
print(events:remove()) --> true
