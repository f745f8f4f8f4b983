--- Lets calls wait in [cqueues](http://25thandclement.com/~william/projects/cqueues.html):
-- once this module is loaded, a call that has to wait in a coroutine of a
-- cqueues controller yields to it, and the other coroutines go on. Anywhere
-- else calls wait as before. Channels themselves can also be given to
-- `cqueues.poll`. `ipc.loop.use "cqueues"` does this, too, and has a controller
-- drive the tasks of `ipc.loop`.
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
local reactor = require "ipc.loop.reactor"
local tasks = require "ipc.loop.tasks"

-- Only the coroutine that the controller itself resumes may yield to it.
local function is_task()
  local _, direct = cqueues.running()
  return direct
end

local function park(member)
  local left = member.due and member.due - ipc.now()
  if not member.up and not (left and left <= 0) then
    member.condition = require "cqueues.condition".new()
    member.condition:wait(left)
  end
end

local function unpark(member)
  if member.condition then
    member.condition:signal()
  end
end

local function new()
  return {
    is_task = is_task, wait = cqueues.poll, cancel = cqueues.cancel, park = park, unpark = unpark,
    wake = function() end, -- tasks are turned by those who wait for them
  }
end

function tasks.hosts.cqueues(controller)
  controller = controller or cqueues.new()
  local host, running = new(), false
  local called = require "cqueues.condition".new()
  local object = { pollfd = reactor.pollfd, events = function() return "r" end, timeout = tasks.patience }

  local function drive()
    while tasks.host == host do
      local ok, problem = pcall(tasks.driven)
      if not ok then -- this coroutine ends; the other tasks go on in a new one
        running = false
        if tasks.count > 0 then
          host.wake()
        end
        error(problem, 0)
      elseif tasks.count == 0 then
        break
      end
      cqueues.poll(object, called)
    end
    running = false
  end

  function host.wake()
    if running then
      called:signal()
    else
      running = true
      controller:wrap(drive)
    end
  end

  function host.leave()
    called:signal() -- the coroutine ends
  end

  function host.turn(timeout)
    local ok, message = controller:step(timeout)
    if not ok then
      error(message, 0)
    end
  end

  return host, controller
end

tasks.host = new()
tasks.register()

return cqueues
