--- Tasks: coroutines that the loop resumes when what they wait for may be there.
-- What is here is shared by the loop's other files; users see loop.lua.
-- @module ipc.loop
local core = require "ipc.core"
local ipc = core.flat
local reactor = require "ipc.loop.reactor"

local MARK, CANCEL, suspend = core.task.mark, core.task.cancel, core.task.wait
local ECANCELED = ipc.errno.ECANCELED

local tasks = {
  -- alive: a set of tasks; count: of them
  -- failed: those ended by errors that nobody waited for; root: of loop.run
  -- ending: that loop.run cancels what is left: nothing of it is replaced
  -- trace: of the error that run raised last
  -- host: another library's loop (see loop.use), a table: wake() sees to it that step is
  -- called soon; turn(timeout) runs it once; leave(): it drives no more. Where coroutines
  -- of its own may wait: is_task(thread), wait(object, ...), park(member) until
  -- unpark(member).
  hosts = {}, -- name -> a function that makes one
  grace = 5,  -- seconds until tasks that were cancelled at the end are cancelled again
}

local front, back             -- of the tasks that go on in this turn, or the next: a list by `after`
local current, current_thread -- the task that runs
local stepping
local wrapped   -- of tasks.wrap: inner thread -> the one it was resumed by
local requests  -- errors that cancelled a task -> who had asked for it, a set
local trace     -- of the last error that ended a task
local warned    -- that a call blocks all
local registers -- the count of schedulers when this was the last
local process   -- whose tasks these are

-- All that is kept for the process, as it begins: also in a child that fork(2) made.
local function begin()
  process = ipc.pid()
  tasks.alive, tasks.count, tasks.failed = {}, 0, {}
  tasks.root, tasks.host, tasks.trace = nil, nil, nil
  tasks.ending = false
  front, back = nil, nil
  current, current_thread, stepping = nil, nil, false
  wrapped, requests = setmetatable({}, { __mode = "k" }), setmetatable({}, { __mode = "k" })
  trace, warned, registers = nil, false, nil
  reactor.begin()
end

-- What a process that was forked by a task has of its parent's: nothing.
local function owned()
  if process ~= ipc.pid() then
    begin()
  end
end

-- ------------------------------------------------------------------------ errors

function tasks.is_cancelled(value)
  return type(value) == "table" and rawget(value, "errno") == ECANCELED
end

-- Whether an error is one that has cancelled a task here, not one that looks like it.
function tasks.has_cancelled(value)
  return value ~= nil and requests[value] ~= nil
end

-- Whether an error cancelled a task for that one alone.
function tasks.asked_by(value, who)
  local asked = requests[value]
  return asked ~= nil and asked[who] ~= nil and next(asked) == who and next(asked, who) == nil
end

-- An error's value as text, whatever its metamethods do.
function tasks.text(value)
  local ok, text = pcall(tostring, value)
  return ok and text or ("(error object is a %s value)"):format(type(value))
end

local function message_and_errno(value)
  return tostring(value.message), value.errno
end

-- An error's value as message, errno (0: it has none), value.
function tasks.explain(value)
  if type(value) == "table" then
    local ok, message, errno = pcall(message_and_errno, value)
    if ok and math.type(errno) == "integer" then
      return message, errno, value
    end
  end
  return tasks.text(value), 0, value
end

-- An error object of a message and an errno.
tasks.error = core.task.error

-- ------------------------------------------------------------------------- lines

-- Where members stand that wait to be called, first come first served. An entry
-- is a to-be-closed value, so that who gives up leaves.
local Entry = {}

local function leave(entry)
  local line, before, after = entry.line, entry.before, entry.after
  if not line then
    return
  end
  if before then
    before.after = after
  else
    line.first = after
  end
  if after then
    after.before = before
  else
    line.last = before
  end
  entry.line, entry.before, entry.after = nil, nil, nil
end

Entry.__close = leave

function tasks.line()
  return {} -- first, last
end

local function enter(line, entry)
  local last = line.last
  if last then
    last.after, entry.before = entry, last
  else
    line.first = entry
  end
  line.last, entry.line = entry, line
end

-- Takes the first entry out of a line and wakes its member; nil if there is none.
function tasks.call(line)
  local entry = line.first
  if entry then
    reactor.wake(entry.member) -- without memory for that it still stands there
    entry.called = true
    leave(entry)
  end
  return entry
end

function tasks.call_all(line)
  local any = false
  while tasks.call(line) do
    any = true
  end
  return any
end

-- ---------------------------------------------------------------------- the turn

local Task = { __name = "ipc.task" }
Task.__index = Task
tasks.Task = Task

-- Takes no memory: a task that was woken goes on. `after` is false where it is not in the
-- list, true of the last.
function Task:woken()
  if self.after then
    return
  end
  self.after = true
  if back then
    back.after = self
  else
    front = self
  end
  back = self
  local host = tasks.host
  if host and not stepping then
    host.wake()
  end
end

local function finish(task, ok, ...)
  task.ok, task.results = ok, table.pack(...)
end

-- Results of a task whose own there was no memory for.
local LOST <const> = { "not enough memory", n = 1 }

local function trap(value)
  if not tasks.is_cancelled(value) then
    trace = debug.traceback(nil, 2)
  end
  return value
end

-- What a task's coroutine runs. xpcall, because it closes what is to be closed in
-- the coroutine, where that may wait.
local function life(task, fn, ...)
  finish(task, xpcall(fn, trap, ...))
end

-- Tells of a task's end those who wait for it, and its group. Alive it is until all of
-- them are told: where memory lacks in the middle this is done again.
local function bury(task)
  task.thread, task.start = nil, nil
  reactor.forget(task)
  local value = task.results[1]
  task.cancelled = not task.ok and tasks.is_cancelled(value)
  if trace and not task.ok and not task.cancelled then
    task.trace, trace = trace, nil
  end
  task.waited = task.waited or task.line.first ~= nil
  tasks.call_all(task.line)
  local group = task.group
  if group then
    group:lost(task)
  elseif not task.ok and not task.cancelled and not task.waited then
    table.insert(tasks.failed, task)
  end
  tasks.alive[task] = nil
  tasks.count = tasks.count - 1
end

local function resumed(task, ok, mark, ...)
  current_thread = nil
  if task.results then
    bury(task)
  elseif not ok then -- without its xpcall: no memory, or an error in an error
    finish(task, false, mark)
    bury(task)
  elseif mark ~= MARK then -- a yield of its own: the others' turn
    task.yielded = true
    task:woken()
  elseif task.cancelling then
    task:woken()
  else
    local moment = task.moment
    task.moment = nil
    reactor.wait(task, moment, ...)
  end
  local behind = task.behind
  if behind then -- somebody wants to know that it does not go on at once
    task.behind = nil
    behind(task)
  end
end

-- The error that cancels a task, for all who asked.
local function cancellation(task)
  local object = tasks.error("cancelled", ECANCELED)
  requests[object], task.cancelling = task.cancelling, false
  return object
end

-- Lets a task go on.
local function turn(task)
  if task.results then
    if tasks.alive[task] then -- not all were told
      bury(task)
    end
    return
  end
  local thread = task.thread
  current_thread = thread
  local start = task.start
  if start then
    task.start = nil
    if task.cancelling then -- before it began
      finish(task, false, cancellation(task))
      bury(task)
    else
      resumed(task, coroutine.resume(thread, task, table.unpack(start, 1, start.n)))
    end
  elseif task.yielded then -- no wait: nothing is raised
    task.yielded = nil
    resumed(task, coroutine.resume(thread))
  elseif task.cancelling then
    resumed(task, coroutine.resume(thread, CANCEL, cancellation(task)))
  elseif task.returned then
    local returned = task.returned
    task.returned = nil
    resumed(task, coroutine.resume(thread, table.unpack(returned)))
  else
    resumed(task, coroutine.resume(thread))
  end
end

-- Ends a task that cannot go on, or does not come to its end: nothing of it runs.
function tasks.drop(task)
  finish(task, false, tasks.error("cancelled", ECANCELED))
  reactor.wake(task)
  bury(task)
  local behind = task.behind
  if behind then
    task.behind = nil
    behind(task)
  end
end

-- Whether a task can be resumed, or has ended: not one of whose calls ends the program.
function tasks.suspended(task)
  return task.results or coroutine.status(task.thread) == "suspended"
end

local function is_listed(task)
  local at = front
  while at and at ~= true and at ~= task do
    at = at.after
  end
  return at == task
end

-- A turn that ends by an error (a debug hook's: Ctrl-C) loses nobody: who was about
-- to go on, or to wait, looks again.
local Turn = setmetatable({}, {
  __close = function(_, problem)
    local task = current
    stepping, current, current_thread = false, nil, nil
    if problem ~= nil and task and tasks.alive[task] then
      if not task.results and coroutine.status(task.thread) == "dead" then
        task.ok, task.results = false, LOST
      end
      task.after = is_listed(task) and task.after
      if task.waits then -- for what it waits is perhaps not noted
        reactor.wake(task)
      else
        task:woken()
      end
      if task.results then -- now, or in the next turn
        bury(task)
      end
    end
  end,
})

-- One turn: waits until a task can go on, not longer than that, and lets every one
-- that can do so. Whether one could.
function tasks.step(timeout)
  owned()
  if stepping then
    error("ipc.loop: a task cannot turn the loop that it runs in", 3)
  end
  stepping = true
  local held <close> = Turn
  local ok, message, errno = reactor.look(front and 0 or timeout)
  if not ok then
    error(tasks.error(message, errno), 0)
  end
  local final = back -- of this turn
  local task = front
  while task do
    current = task
    local after = task.after
    if after == true then
      front, back = nil, nil
    else
      front = after
    end
    task.after = false
    turn(task)
    current = nil
    task = task ~= final and front
  end
  return final ~= nil
end

-- Seconds until a turn is due; 0: now; nil: only the descriptor tells.
function tasks.patience()
  owned()
  if front then
    return 0
  end
  return reactor.patience()
end

-- --------------------------------------------------------------------- scheduler

-- Whether a thread may yield to the loop: the task's own, or one of `wrap` inside.
local function belongs(thread)
  while thread ~= current_thread do
    thread = wrapped[thread]
    if not thread then
      return false
    end
  end
  return true
end

local function is_task(thread)
  if thread == current_thread then
    return true
  end
  if not current_thread then
    local host = tasks.host
    return host ~= nil and host.is_task ~= nil and host.is_task(thread)
  end
  if belongs(thread) then
    return true
  end
  if not warned and process == ipc.pid() then
    warned = true
    warn(debug.traceback("ipc.loop: a call blocks the whole loop in a coroutine nested in a task; "
      .. "ipc.loop.wrap makes one that does not", 2))
  end
  return false
end

local function wait(...)
  if current_thread then
    return suspend(...)
  end
  return tasks.host.wait(...)
end

local function cancel(fd)
  reactor.cancel(fd)
  local host = tasks.host
  if host and host.cancel then
    host.cancel(fd)
  end
end

-- Makes the loop the scheduler of this state; again is harmless.
function tasks.register()
  owned()
  local host = tasks.host
  if registers ~= core.task.registers() then
    reactor.retell()
  end
  ipc.scheduler {
    is_task = is_task, wait = host and host.wait and wait or suspend, cancel = cancel,
  }
  registers = core.task.registers()
end

-- ------------------------------------------------------------------------ waiting

local Bystander = {} -- outside of all tasks: turns the loop until it is woken
Bystander.__index = Bystander

function Bystander:woken()
  self.up = true
end

local Guest = {} -- a coroutine of the host
Guest.__index = Guest

function Guest:woken()
  self.up = true
  tasks.host.unpark(self)
end

-- Until it is woken, or its deadline has passed.
local function park(member)
  local ok, message = pcall(tasks.host.park, member)
  member.waits = true
  reactor.wake(member) -- it may have been something else
  reactor.forget(member)
  if not ok then
    error(message, 0)
  end
end

-- What `wait` may be of a host that cannot poll the objects itself.
function tasks.wait_as_guest(...)
  local member = setmetatable({}, Guest)
  reactor.wait(member, nil, ...)
  park(member)
end

-- Who calls, as a member that can wait; raises where nobody can, and blames the
-- caller of that level.
function tasks.caller(level)
  owned()
  local thread = coroutine.running()
  if current_thread then
    if belongs(thread) and coroutine.isyieldable() then
      return current
    end
    error("ipc.loop: no wait here, in a coroutine or callback nested in a task: "
      .. "ipc.loop.wrap makes coroutines that may", level + 1)
  end
  local host = tasks.host
  if host and host.is_task and host.is_task(thread) and coroutine.isyieldable() then
    return setmetatable({}, Guest)
  end
  return setmetatable({}, Bystander)
end

local function pause(member, moment)
  if member == current then
    member.moment = moment
    suspend()
  elseif getmetatable(member) == Guest then
    member.up = false
    reactor.wait(member, moment)
    park(member)
  else
    member.waits, member.up = true, false
    tasks.turn(moment and math.max(0, moment - ipc.now()))
  end
end

-- Suspends who calls, a member that `caller` gave, until it is woken or so; who has no
-- other way to know why must look.
tasks.pause = pause

-- Of an error that cancelled the task that runs: its next wait raises instead. Whether
-- it is one.
function tasks.put_off(problem)
  local asked = current and problem ~= nil and requests[problem]
  if asked then
    tasks.ask_to_end(current, asked)
  end
  return asked
end

-- Stands in a line, with something in hand, until called: the entry. After
-- `moment` (of ipc.now(); nil: never): nil. Raises if it is cancelled; but once it has
-- been called the next wait does, or, if `undo` is given, that is told the entry.
function tasks.stand(line, moment, hand, undo)
  local entry <close> = setmetatable({ member = tasks.caller(3), hand = hand }, Entry)
  enter(line, entry)
  while not entry.called do
    if moment and ipc.now() >= moment then
      return nil
    end
    local ok, problem = pcall(pause, entry.member, moment)
    if not ok then
      if entry.called and undo then
        undo(entry)
      end
      if undo or not (entry.called and tasks.put_off(problem)) then
        error(problem, 0)
      end
    end
  end
  return entry
end

-- What a host calls when the descriptor or the time says so.
-- Whether some task went on.
function tasks.driven()
  local some = tasks.step(0)
  tasks.complain()
  return some
end

-- Turns the loop once, by the host's if there is one.
function tasks.turn(timeout)
  local host = tasks.host
  if host and host.turn then
    host.turn(timeout)
  else
    tasks.step(timeout)
  end
  tasks.complain()
end

-- Raises the error that nobody waited for, or ends the root with it.
function tasks.complain()
  local failed = tasks.failed
  if #failed == 0 then
    return
  end
  tasks.failed = {}
  for _, task in ipairs(failed) do
    local root = tasks.root
    if not root then
      error(task.results[1], 0)
    end
    root.failure = root.failure or task
    root.task:cancel()
  end
end

-- A new task, of a group that is told of its end, or of none.
function tasks.go(group, fn, ...)
  owned()
  if tasks.count == 0 then
    tasks.register() -- the user may have had another meanwhile
  end
  local task = setmetatable({
    thread = coroutine.create(life), start = table.pack(fn, ...), group = group, line = tasks.line(),
    waits = false, cancelling = false, ok = false, results = false, cancelled = false, waited = false,
    after = false, left = false, -- left: what its group counts goes without it
  }, Task)
  tasks.alive[task] = true -- where memory lacks there is no task
  tasks.count = tasks.count + 1
  task:woken()
  return task
end

-- The task that runs, or nil.
function tasks.current()
  owned()
  return current
end

-- The same for those who know that this process has begun: it asks nobody.
function tasks.running()
  return current
end

-- Whether coroutines of a host may wait as tasks do.
function tasks.has_guests()
  return tasks.host ~= nil and tasks.host.is_task ~= nil
end

-- Whether the task that runs is the only one that can go on now.
function tasks.idle()
  return current_thread ~= nil and not front
end

function tasks.wrap(fn)
  local thread = coroutine.create(fn)
  local busy = false -- somebody is in it, perhaps waiting
  local function forward(ok, mark, ...)
    if ok and mark == MARK then
      return forward(coroutine.resume(thread, coroutine.yield(MARK, ...)))
    end
    busy = false
    if not ok then
      coroutine.close(thread)
      error(mark, 0)
    end
    return mark, ...
  end
  return function(...)
    if busy then
      error("cannot resume non-suspended coroutine", 2)
    end
    busy = true
    wrapped[thread] = coroutine.isyieldable() and coroutine.running() or nil
    return forward(coroutine.resume(thread, ...))
  end
end

--- Ends the task: the wait that it is in, or its next one, raises "cancelled"
-- (ECANCELED), once. One that has not begun never does.
-- @function task:cancel
-- @treturn boolean whether it had not ended
function Task:cancel()
  if self.results then
    return false
  end
  tasks.ask_to_end(self, { outside = true })
  return true
end

-- Cancels a task for somebody; several may ask before it is told.
function tasks.ask_to_end(task, asked)
  local all = task.cancelling or {}
  for who in pairs(asked) do
    all[who] = true
  end
  task.cancelling, task.asked = all, true
  reactor.wake(task)
end

-- That one asks no longer, if the task was not told yet.
function tasks.take_back(task, who)
  local asked = task.cancelling
  if asked then
    asked[who] = nil
    task.cancelling = next(asked) ~= nil and asked
  end
end

function Task:__tostring()
  local state = not self.results and "alive" or self.ok and "done" or self.cancelled and "cancelled"
    or "failed"
  return ("ipc.task (%s)"):format(state)
end

begin()

return tasks
