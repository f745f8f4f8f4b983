-- Shared memory: the fastest way between processes. Workers take jobs from a
-- ring by its name; a job whose worker dies is offered to the next.
-- Run: lua5.4 examples/shm.lua
local ipc = require "ipc"

local name = "/lua-ipc-example-" .. ipc.pid()
local jobs <close> = assert(ipc.shm(name, "w", { capacity = 1 << 16, lease = true, keepalive = true }))
local results, give = ipc.queue() -- without a name: two ends

local function worker(first)
  local mine <close> = assert(ipc.shm(name, "r"))
  for _ = 1, 2 do
    local ticket <close>, why = mine:take(5)
    if not ticket then error(why) end
    if first then os.execute("kill -KILL " .. ipc.pid()) end -- in the middle of it
    give:put { job = ticket:get(), offered = ticket.offered }
    ticket:ack()
  end
end

jobs:put "one"
jobs:put "two"
local keep = give:dup() -- an end moves to its child
print(ipc.fork(worker, true):wait(5)) --> nil child ...: killed by signal 9, KILL ...
give = keep
assert(ipc.fork(worker))
local offered = {}
for result in results:values() do -- until the worker has gone
  offered[result.job] = result.offered
end
print("one: " .. offered.one, "two: " .. offered.two) --> one: 2 two: 1
