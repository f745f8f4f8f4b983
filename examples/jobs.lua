-- Jobs that no death of a worker loses: a worker has a job on lease until it
-- acknowledges it. One is killed at its work; another is given what it had.
-- Run: lua5.4 examples/jobs.lua
local ipc = require "ipc"

local jobs, give = assert(ipc.queue { lease = true, size = 100, count = 100, timeout = 10 })
local results, report = assert(ipc.queue { timeout = 10 })
for n = 1, 20 do give:put { id = n } end

local function worker(work)
  local from, to = assert(jobs:dup()), assert(report:dup()) -- they go to the child
  return assert(ipc.fork(function()
    while true do
      local job <close>, why = from:take()
      if not job then return why end -- "closed": all is done, nobody sends more
      to:put(work(job:get(), job.offered))
      job:ack() -- after the work: who is killed before leaves the job to others
    end
  end))
end

local unlucky = worker(function(job)
  ipc.parent:put(job.id)
  ipc.sleep(60) -- hard work
end)
print("killed at job", unlucky:get(10)) --> killed at job 1
unlucky:kill "KILL"
print(unlucky:wait(10)) --> nil child ... killed by signal 9, KILL 0

local function square(job, offered) return { id = job.id, value = job.id ^ 2, offered = offered } end
local crew = { worker(square), worker(square), worker(square) }
give:close() jobs:close() report:close() -- the crew has its own

local sum, again = 0, {}
for r in results:values() do
  sum = sum + r.value
  if r.offered > 1 then again[#again + 1] = r.id end
end
print("sum", sum, "offered again", table.concat(again, " ")) --> sum 2870.0 offered again 1
for _, each in ipairs(crew) do assert(each:wait(10)) end
