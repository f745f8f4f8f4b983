-- A journal: a log of events on disk that any number of processes append to and
-- read. What was promised is there, whoever is killed, and if the power goes.
-- Run: lua5.4 examples/journal.lua
local ipc = require "ipc"

local directory = os.tmpname()
os.remove(directory) -- the journal makes a directory of its own

-- Three processes append at the same time and are killed in the middle of it.
for n = 1, 3 do
  local child = assert(ipc.fork(function()
    local log = assert(ipc.journal(directory, "w", { durability = "sync" }))
    for i = 1, math.huge do
      local _, sequence = assert(log:put { from = n, number = i })
      ipc.parent:put(sequence) -- it is on the disk now
    end
  end))
  for _ = 1, 5 do assert(child:get(10)) end
  child:kill "KILL"
  child:wait(5)
end

-- A reader with a name goes on where it was, whatever happened in between.
local events = assert(ipc.journal(directory, "r", { reader = "example", follow = false }))
local first = events:get()
print(first.from, first.number) --> 1 1
events:ack()
events:close()

events = assert(ipc.journal(directory, "r", { reader = "example", follow = false }))
local seen, last = { 1, 0, 0 }, 1
for event, sequence in events:values() do
  assert(sequence == last + 1 and event.number == seen[event.from] + 1)
  seen[event.from], last = event.number, sequence
end
print(seen[1] >= 5 and seen[2] >= 5 and seen[3] >= 5) --> true
print(#ipc.verify(directory).damage .. " damaged") --> 0 damaged
print(events:remove()) --> true
