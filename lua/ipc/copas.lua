--- Lets calls wait in [copas](https://lunarmodules.github.io/copas/): once this module
-- is loaded, a call that has to wait in a coroutine that copas was given (by
-- `addthread`, or as a server's handler) yields to it. `ipc.loop.use "copas"` does
-- this, too, and has `copas.loop` drive the tasks of `ipc.loop`. copas waits by
-- select(2), and so does what waits here. Load it before threads are added.
-- @module ipc.copas
-- @usage
-- local copas = ipc.loop.use "copas"
-- local reader, writer = ipc.pipe()
-- copas.addthread(function() print(reader:recv()) end)
-- ipc.loop.go(function() writer:send "hello" end)
-- copas.loop(1)
local copas = require "copas"
local reactor = require "ipc.loop.reactor"
local tasks = require "ipc.loop.tasks"

local threads = setmetatable({}, { __mode = "k" }) -- that copas resumes
local guests = 0                                   -- of them, that wait for something of ours

local host = { unpark = function() end }

-- What copas polls for us: a socket to it. It is received from when the loop's
-- descriptor is readable, or when it says itself that it is.
local Socket = {}
Socket.__index = Socket

function Socket.getfd()
  return reactor.pollfd()
end

function Socket.close() end -- copas would, when a thread ends

function Socket:dirty()
  if self.member then
    return self.member.up
  end
  return tasks.host ~= host
end

function Socket:receive()
  if not self.member and tasks.host ~= host then
    return nil, "closed"
  end
  self.asked = not self.asked
  local member = self.member
  if member and (member.up or member.due and not member.waits) or not member and not self.asked then
    return true
  end
  return nil, "timeout"
end


function host.is_task(thread)
  return threads[thread]
end

function host.park(member)
  guests = guests + 1
  local ok, message = pcall(copas.receive, setmetatable({ member = member }, Socket))
  guests = guests - 1
  if not ok then
    error(message, 0)
  end
end

host.wait = tasks.wait_as_guest

local running = false

-- Its place among what copas polls; the turns are made in copas.step.
local function stay()
  local socket = setmetatable({}, Socket)
  while tasks.host == host and tasks.count > 0 do
    copas.receive(socket)
  end
  running = false
end

function host.wake()
  if not running then
    running = true
    copas.addthread(stay)
  end
end

function host.turn(timeout)
  copas.step(timeout)
end

local function known(fn)
  return function(...)
    threads[coroutine.running()] = true
    return fn(...)
  end
end

local addthread, addserver, step = copas.addthread, copas.addserver, copas.step

function copas.addthread(thread, ...)
  if type(thread) == "thread" then
    threads[thread] = true
    return addthread(thread, ...)
  end
  return addthread(known(thread), ...)
end

function copas.addserver(server, handler, ...)
  return addserver(server, known(handler), ...)
end

function copas.step(timeout, ...)
  if tasks.host == host and tasks.count + guests > 0 then
    local left = tasks.driven() and 0 or tasks.patience() -- who waits for it looks at once
    if left and not (timeout and timeout >= 0 and timeout < left) then
      timeout = left
    end
  end
  return step(timeout, ...)
end

function tasks.hosts.copas()
  return host, copas
end

tasks.host = host
tasks.register()

return copas
