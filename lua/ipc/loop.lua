--- Tasks: many things at once in one thread, each written as if it were alone.
-- In a task every call of the library that has to wait lets the others go on
-- meanwhile. `ipc.loop`, loaded when first used; @{ipc.main} runs a whole program.
--
-- A task ends by returning, by an error, or by being cancelled: then the wait that
-- it is in, or the next one, raises an error object whose message is "cancelled"
-- and whose errno is ECANCELED, once. What is to be closed is closed on the way, and
-- may wait again.
--
-- An error of a task is told to those who wait for it. One that nobody waits for
-- when it happens ends `run` and `main`, or is raised by what turns the loop.
-- @module ipc.loop
-- @usage
-- ipc.main(function()
--   local r, w = ipc.pipe()
--   ipc.loop.go(function() w:put "hello" end)
--   print(r:get())
-- end)
local ipc = require "ipc.core".flat
local clock = require "ipc.clock"
local reactor = require "ipc.loop.reactor"
local tasks = require "ipc.loop.tasks"

local E = ipc.errno

local loop = {}

-- How often tasks that go on although they were cancelled are cancelled before they are
-- left alone.
local TIMES <const> = 6

local function check_function(call, fn)
  local meta = getmetatable(fn)
  if type(fn) ~= "function" and not (type(meta) == "table" and meta.__call) then
    error(("bad argument #1 to '%s' (function expected, got %s)"):format(call, type(fn)), 3)
  end
end

--- Starts a task; it begins when the one that calls waits.
-- @function loop.go
-- @tparam function fn
-- @param ... its arguments
-- @treturn task
function loop.go(fn, ...)
  check_function("go", fn)
  return tasks.go(nil, fn, ...)
end

--- Waits until the task has ended. Outside of tasks this turns the loop meanwhile.
-- @function task:wait
-- @tparam[opt=for ever] ?number timeout seconds
-- @return true and what its function returned; or nil, message, errno (0 where the
-- error has none) and the error's value; `"cancelled"` (ECANCELED); `"timeout"`
-- (ETIMEDOUT) while it runs
function tasks.Task:wait(timeout)
  clock.check("wait", timeout)
  if not self.results then
    if self == tasks.current() then
      error("a task cannot wait for its own end", 2)
    end
    if timeout == 0 or not tasks.stand(self.line, clock.deadline(timeout)) then
      return nil, "timeout", E.ETIMEDOUT
    end
  end
  if self.ok then
    return true, table.unpack(self.results, 1, self.results.n)
  end
  return nil, tasks.explain(self.results[1])
end

-- The root's end is what `run` waits for: nobody else is told of its error.
local Root = {}
Root.__index = Root

function Root:lost()
  self.over = true
end

local function drop_all(which)
  local list = {}
  for task in pairs(tasks.alive) do
    if which(task) then
      list[#list + 1] = task
    end
  end
  for _, task in ipairs(list) do
    if tasks.alive[task] then
      tasks.drop(task)
    end
  end
end

local function unable(task)
  return not tasks.suspended(task)
end

local function any()
  return true
end

-- Cancels all tasks and waits until they have ended, but not for ever.
local function wind_down()
  tasks.ending = true
  drop_all(unable) -- it ends the program, and waits for this
  for again = 1, TIMES do
    for task in pairs(tasks.alive) do
      if again > 1 or not task.asked then
        task:cancel()
      end
    end
    local limit = ipc.now() + tasks.grace
    while tasks.count > 0 and ipc.now() < limit do
      tasks.turn(limit - ipc.now())
    end
  end
  if tasks.count > 0 then
    warn(("ipc.loop: %d tasks go on although they were cancelled, and are left alone"):format(tasks.count))
    drop_all(any)
  end
end

--- Runs a function as a task until it has ended; then cancels all other tasks of
-- the loop and waits for their end: those that go on all the same are cancelled again
-- every five seconds, and after thirty left alone. Nothing of the process is changed.
-- @function loop.run
-- @tparam function fn
-- @param ... its arguments
-- @return what it returned; raises its error, or that of a task that nobody
-- waited for
-- @usage print(ipc.loop.run(function() ipc.sleep(0.1) return "done" end))
function loop.run(fn, ...)
  check_function("run", fn)
  if tasks.current() or tasks.root then
    error("the loop runs already: ipc.loop.go starts another task", 2)
  end
  local root = setmetatable({}, Root)
  root.task = tasks.go(root, fn, ...)
  tasks.root = root
  local held <close> = setmetatable({}, {
    __close = function()
      tasks.root = root -- what fails now is noted, not raised
      pcall(wind_down)
      tasks.root, tasks.ending = nil, false
    end,
  })
  while not root.over do
    tasks.turn()
  end
  wind_down()
  local task, failure = root.task, root.failure
  if failure and (task.ok or task.cancelled) then
    task = failure
  end
  if not task.ok then
    local value = task.results[1]
    tasks.trace = task.trace
    error(value, 0)
  end
  return table.unpack(task.results, 1, task.results.n)
end

--- Ends waiting for a time; in a task the others go on. The same as `ipc.sleep`.
-- @function loop.sleep
-- @number seconds
-- @treturn boolean true
loop.sleep = ipc.sleep

--- A block of code whose tasks end with it: `local s <close> = ipc.loop.scope()`.
-- Its first error cancels its other tasks and the block, and is raised where the
-- block is left. Leaving the block waits for all its tasks; by an error it cancels
-- them before (but not by `error(nil)`, which Lua does not tell from none).
-- @function loop.scope
-- @tparam[opt] table options `limit`: how many of its tasks run at once
-- @treturn scope with `go`, `wait`, `cancel`, `close`; raises where nobody can wait: in
-- a coroutine or callback nested in a task
-- @usage local s <close> = ipc.loop.scope { limit = 10 }
-- for _, host in ipairs(hosts) do s:go(ask, host) end
function loop.scope(options)
  if options ~= nil and type(options) ~= "table" then
    error(("bad argument #1 to 'scope' (table expected, got %s)"):format(type(options)), 2)
  end
  for name in pairs(options or {}) do
    if name ~= "limit" then
      error(("bad argument #1 to 'scope' (unknown option '%s')"):format(tostring(name)), 2)
    end
  end
  local limit = options and options.limit
  if limit ~= nil and limit ~= math.huge and (math.type(limit) ~= "integer" or limit < 1) then
    error("bad argument #1 to 'scope' (limit: a whole number from 1 expected)", 2)
  end
  tasks.caller(2)
  return require "ipc.loop.scope"(limit)
end

--- A queue of values between tasks of this process; nothing is copied.
-- @function loop.queue
-- @tparam[opt=no limit] ?integer size how many values it holds; 0: `put` waits until
-- one is taken
-- @treturn queue with `put`, `get`, `values`, `close` and a length
-- @usage local jobs = ipc.loop.queue(100)
function loop.queue(size)
  if size ~= nil and size ~= math.huge and (math.type(size) ~= "integer" or size < 0) then
    error("bad argument #1 to 'queue' (a whole number from 0 expected)", 2)
  end
  return require "ipc.loop.queue"(size)
end

--- A coroutine.wrap whose waits reach the loop: in any other coroutine that a task
-- resumes a call that has to wait blocks the whole loop, and says so once by warn().
-- @function loop.wrap
-- @tparam function fn
-- @treturn function as coroutine.wrap returns
-- @usage for line in ipc.loop.wrap(function() coroutine.yield(r:read "l") end) do print(line) end
function loop.wrap(fn)
  if type(fn) ~= "function" then
    error(("bad argument #1 to 'wrap' (function expected, got %s)"):format(type(fn)), 2)
  end
  return tasks.wrap(fn)
end

--- One turn of the loop, for hosts with a loop of their own: waits until a task can
-- go on, and lets all that can. The loop itself can be polled as a channel can: it has
-- `pollfd`, `events` and `timeout`.
-- @function loop.step
-- @tparam[opt=for ever] ?number timeout seconds
-- @treturn integer how many tasks have not ended; raises an error of a task that
-- nobody waited for
function loop.step(timeout)
  clock.check("step", timeout)
  if timeout == nil and tasks.count == 0 then
    return 0
  end
  tasks.step(timeout and math.max(timeout, 0))
  tasks.complain()
  return tasks.count
end

--- The descriptor that is readable when a step would find something to do; to be asked
-- for again after `use(nil)`.
-- @function loop.pollfd
-- @treturn integer
function loop.pollfd()
  return reactor.pollfd()
end

--- What to poll it for.
-- @function loop.events
-- @treturn string "r"
function loop.events()
  return "r"
end

--- How long a host may wait before the next step: 0 when a task can go on.
-- @function loop.timeout
-- @treturn ?number seconds; nil: until the descriptor is readable
function loop.timeout()
  return tasks.patience()
end

local function change_host(host)
  local before = tasks.current() == nil and tasks.host
  tasks.host = host
  if before and not host then
    reactor.own()
  end
  if before and before ~= host and before.leave then
    before.leave()
  end
  tasks.register()
end

--- Lets another library's loop drive the tasks: they go on whenever that runs.
-- Under cqueues and copas the coroutines of those may wait in channels, too.
-- @function loop.use
-- @tparam ?string name "cqueues", "luv" or "copas"; nil: the loop is its own again
-- @param[opt=a new one] controller of cqueues: the one that drives
-- @return what drives: the controller, or the library
-- @usage local uv = ipc.loop.use "luv"
-- ipc.loop.go(function() print(reader:recv()) end)
-- uv.run()
function loop.use(name, controller)
  if name == nil then
    change_host(nil)
    return nil
  end
  if name ~= "cqueues" and name ~= "luv" and name ~= "copas" then
    error(("bad argument #1 to 'use' (\"cqueues\", \"luv\" or \"copas\" expected, got %s)"):format(
      tostring(name)), 2)
  end
  if tasks.current() then
    error("the loop runs already", 2)
  end
  require("ipc." .. name)
  local host, drives = tasks.hosts[name](controller)
  change_host(host)
  if tasks.count > 0 then
    host.wake()
  end
  return drives
end

return loop
