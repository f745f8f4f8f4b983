--- Lets calls wait in [cqueues](http://25thandclement.com/~william/projects/cqueues.html):
-- once this module is loaded, a call that has to wait in a coroutine of a
-- cqueues controller yields to it, and the other coroutines go on. Anywhere
-- else calls wait as before. It is `ipc.scheduler` for cqueues and nothing
-- more; channels themselves can also be given to `cqueues.poll`.
-- @module ipc.cqueues
-- @usage
-- require "ipc.cqueues"
-- local cq = require "cqueues".new()
-- local reader, writer = ipc.pipe()
-- cq:wrap(function() print(reader:recv()) end)
-- cq:wrap(function() writer:send "hello" end)
-- assert(cq:loop())
local ipc = require "ipc"
local cqueues = require "cqueues"

-- Only the coroutine that the controller itself resumes may yield to it.
local function is_task()
  local _, direct = cqueues.running()
  return direct
end

ipc.scheduler {
  is_task = is_task,
  wait = cqueues.poll,
  cancel = cqueues.cancel,
}

return cqueues
