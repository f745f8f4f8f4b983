-- Calls of the other side: looked up, run, answered. In a task that only reads the
-- function runs where it was read; when it has to wait another task reads on.
local core = require "ipc.core"
local errors = require "ipc.rpc.errors"
local link = require "ipc.rpc.link"
local reactor = require "ipc.loop.reactor"
local tasks = require "ipc.loop.tasks"

local ipc = core.flat
local E = ipc.errno
local running = tasks.running
local trap = link.trap

local incoming = {
  builtins = {}, -- name -> function(session, frame, ...) -> results
  inline = nil,  -- the frame of the call that runs outside of tasks
}
local builtins = incoming.builtins

local GATHER <const>, FEW <const> = 65536, 16 -- bytes and number of answers that may wait for more

-- A process begins, perhaps one that fork(2) made in the middle of a call.
local process
function incoming.begin()
  local pid = ipc.pid()
  if process ~= pid then
    process, incoming.inline = pid, nil
  end
end

-- A call begins: it is found by its frame, and by its id.
local function enter(s, frame, id)
  s.running = s.running + 1
  s.frames[frame] = true
  frame.id = id
  if id then
    s.serving[id] = frame
  end
end

-- A call that the wire runs, or has run, becomes one that Lua answers, and that others can
-- find: outside of tasks nobody reads until it has ended.
local function take_over(frame, id)
  local s = frame.session
  frame.lazy = false
  enter(s, frame, id)
  if not frame.task then
    s.reader = false
  end
end

-- The same when somebody asks for its frame, or it has to wait.
local function enlist(frame)
  local id = frame.session.wire:touch()
  if id then
    take_over(frame, id)
  end
end

-- The call that runs here: its session, `id`, `deadline` (a moment), `trace`,
-- `cancelled`.
function incoming.frame()
  local task = running()
  local frame
  if task then
    frame = task.frame
  else
    frame = incoming.inline
  end
  if frame and frame.lazy then
    enlist(frame)
  end
  return frame
end

-- ---- answers

local answer

-- Makes known what travels by reference among results, and tries again.
local function admit(s, id, special, ...)
  return answer(s, id, s.refs:admit(special, "result", ...))
end

-- Appends an answer; the first result. What cannot travel is no error of the function's.
function answer(s, id, ...)
  local wire = s.wire
  local done, ok, list, errno = pcall(s.ours and wire.reply or wire.result, wire, id, ...)
  if not done then
    error(errors.unfit(ok), 0)
  elseif errno then -- it does not fit the channel
    error(errors.new(list:gsub("%(the other side's option%)", "(the caller's option)"), errno), 0)
  elseif not ok then
    return admit(s, id, list, ...)
  elseif list then
    s.refs:sent(list)
    s.refs:kept(id, (...))
  end
  return (...)
end

-- A builtin may say that it answers later.
local function answer_builtin(s, id, first, ...)
  if first ~= nil and first == s.refs.LATER then
    return first
  end
  return answer(s, id, first, ...)
end

local function answer_any(s, id, ...)
  if select("#", ...) == 0 then
    return answer(s, id)
  end
  return answer_builtin(s, id, ...)
end

local UNMET <const> = "closed" -- what a session is doomed to whose hello could not be answered
local SHORT <const> = 200 -- bytes of a text that any channel has room for

-- Appends an error; whether it travels.
local function told(s, id, problem)
  local done, ok, list = pcall(s.wire.fail, s.wire, id, problem)
  if done and ok and list then
    s.refs:sent(list)
  end
  return done and ok
end

-- The same; what cannot travel of it does not.
local function fail(s, id, problem)
  if told(s, id, problem) then
    return
  end
  local code, text, more = 0, problem, nil
  if type(problem) == "table" then
    code, text, more = problem[1], problem[2], problem[3]
  end
  more = more and { errno = more.errno }
  if told(s, id, type(problem) == "table" and { code, text, more } or text) then
    return
  end
  text = text:sub(1, SHORT):gsub("[\128-\255]", "?")
  s.wire:fail(id, type(problem) == "table" and { code, text, more } or text)
end

local function respond(s)
  if s.closed then
    return
  elseif s.doomed then
    link.flush(s)
    return link.fail(s, s.doomed, s.doomed == UNMET and E.EPIPE or E.EACCES)
  end
  local task = running()
  if task and s.reader ~= task then
    return link.push(s)
  end
  local owing = (s.owing or 0) + 1
  if owing >= FEW or not s.wire:ready() or s.wire:unsent() > GATHER then
    return link.flush(s)
  end
  s.owing = owing
end

-- Refuses a request.
function incoming.refuse(s, id, text, errno, code)
  if s.clogged then
    s.answers = s.answers + #text
  end
  if s.errors == "string" then
    fail(s, id, text)
  elseif s.ours then
    fail(s, id, { code or 1, text, { errno = errno } })
  else
    fail(s, id, { code or 1, text })
  end
  respond(s)
end

-- Refuses all that one asks who may not call, and leaves it.
function incoming.turn_away(s, kind, id)
  local text = s.refusal or "authentication failed: a key is wanted"
  if kind == 0 then
    fail(s, id, { 0, text, { errno = E.EACCES } })
    link.flush(s)
  end
  link.fail(s, text, E.EACCES)
end

-- ---- running

local function builtin(s, method)
  local fn = builtins[method]
  if not fn then
    fn = s.refs.builtins[method]
    if fn and method:byte() ~= 36 and not s.options.nvim then
      return nil -- an alias, on request
    end
  end
  return fn
end

local function no_method(method)
  local object = errors.new("no method: " .. tasks.text(method):sub(1, 100), E.ENOSYS, 1)
  object.quiet = true
  error(object, 0)
end

-- Runs what a method means, in the frame.
local function perform(s, frame, method, ...)
  local fn = s.exports[method]
  if fn then
    return fn(...)
  end
  fn = builtin(s, method)
  if fn then
    return fn(s, frame, ...)
  end
  no_method(method)
end
incoming.perform = perform

-- Waits until all calls that began later have been answered: Neovim takes answers in
-- no other order, and none before it has gone on from the one before. That it has is
-- known when it answers what it does only then. What this is given.
local function in_turn(s, frame, ...)
  local lifo = s.lifo
  repeat
    while lifo[#lifo] ~= frame and not s.closed and running() do
      tasks.stand(s.turns)
    end
    local unwinds = s.unwinds and not s.closed
    s.unwinds = false
    if unwinds then
      s.face:call("nvim_eval", "0")
    end
  until not unwinds
  for i = #lifo, 1, -1 do
    if lifo[i] == frame then
      table.remove(lifo, i)
      break
    end
  end
  s.unwinds = lifo[1] ~= nil
  tasks.call_all(s.turns)
  return ...
end

-- Answers hello, as strangers are answered.
local function meet(s, frame, id, ...)
  s.wire:result(id, perform(s, frame, ...))
  incoming.met(s)
end

local function run(s, frame, id, method, ...)
  local fn = s.exports[method]
  if fn and s.lifo then
    return answer(s, id, in_turn(s, frame, fn(...)))
  elseif fn then
    return answer(s, id, fn(...))
  end
  if method == "$hello" then
    return meet(s, frame, id, method, ...)
  end
  if s.lifo then
    return answer_any(s, id, in_turn(s, frame, perform(s, frame, method, ...)))
  end
  return answer_any(s, id, perform(s, frame, method, ...))
end

-- What a call that failed is answered.
local function failed(s, frame, id, value)
  local trace = link.trace()
  local quiet = type(value) == "table" and rawget(value, "quiet")
  if quiet then
    trace = nil
  elseif frame.cancelled and tasks.is_cancelled(value) then
    value = frame.cancelled == "timeout" and errors.new("timeout", E.ETIMEDOUT) or errors.new("cancelled", E.ECANCELED)
    trace = nil
  elseif s.on_error and not tasks.is_cancelled(value) then
    link.report(s, value, trace)
  end
  if s.closed or s.doomed == UNMET then
    return
  end
  local sent = errors.sent(value, s.traceback and trace or nil, s.ours, s.errors)
  fail(s, id, sent)
end

local restart

-- What a call runs has ended: what it may still be asked to do would meet who answers it.
local function free(s, frame)
  s.frames[frame] = nil
  if frame.cancelled and frame.task then
    tasks.take_back(frame.task, frame)
  end
end

local function over(s, frame)
  s.running = s.running - 1
  frame.id, frame.deadline, frame.trace, frame.cancelled, frame.waited = nil, nil, nil, nil, nil
  if not s.leaving then
    return
  elseif s.running <= s.closers then
    tasks.call_all(s.line)
  end
  if s.running == 0 then
    link.flush(s)
    if s.ends then -- by one of its own calls
      link.close(s)
    end
  end
end

local function renew(s, frame)
  local task = frame.task
  if task and task.frame == frame then
    task.frame = { session = s, task = task }
  end
end

-- What goes on when a call has ended: its frame is its own from now on.
local function defer(s, frame, ...)
  renew(s, frame)
  frame.again, frame.task = table.pack(...), nil
end

-- What comes after a call. An error that ends the task itself, not the call, is raised.
local function conclude(s, frame, id, before, ok, value)
  if s.serving[id] == frame then
    s.serving[id] = nil
  end
  local ends
  if not ok then
    ends = frame.task and tasks.has_cancelled(value) and not tasks.asked_by(value, frame)
    failed(s, frame, id, value)
  end
  if before and not s.closed then -- requests are not counted
    s.answers = s.answers + math.max(0, s.wire:unsent() - before)
  end
  free(s, frame)
  local after = frame.after
  if after then -- they know it by its frame
    frame.after, frame.ok, frame.first = nil, ok, value
    renew(s, frame)
    if running() then -- before what is read while the answer waits to be sent
      restart(s, after)
      after = nil
    end
  end
  local done, problem = pcall(respond, s)
  over(s, frame)
  if after then
    restart(s, after, frame.line)
  end
  if ends or not done then
    error(ends and value or problem, 0)
  end
end

-- Runs a request in the frame and answers it.
local function go(s, frame, id, method, ...)
  local before = s.clogged and s.wire:unsent()
  if s.lifo then
    table.insert(s.lifo, frame)
  end
  local ok, value = xpcall(run, trap, s, frame, id, method, ...)
  if ok and frame.waited and value == s.refs.LATER then
    return defer(s, frame, method, ...)
  end
  if not ok and method == "$hello" and not errors.is(value) then
    s.doomed = UNMET -- an error would say that we are strangers
  end
  if s.lifo and not ok then
    pcall(in_turn, s, frame)
  end
  return conclude(s, frame, id, before, ok, value)
end

-- Answers a call that the wire has run: whether it succeeded, nil: its results cannot
-- travel; its results, or the error.
function incoming.ran(s, frame, id, good, ...)
  if not s.frames[frame] then
    take_over(frame, id)
  end
  if good then
    return conclude(s, frame, id, false, xpcall(answer, trap, s, id, ...))
  elseif good == nil then
    return conclude(s, frame, id, false, false, errors.unfit((...)))
  end
  return conclude(s, frame, id, false, false, (...))
end

local function handle(s, frame, id, ...)
  if s.running >= s.calls then
    return incoming.refuse(s, id, ("more than %d calls at once"):format(s.calls), E.E2BIG, 0)
  elseif s.leaving and (...) ~= "$hello" then
    return incoming.refuse(s, id, "closed", E.EPIPE, 0)
  end
  enter(s, frame, id)
  return go(s, frame, id, ...)
end

-- What comes however many calls run: they end by it, or it makes room.
local vital <const> = { ["$cancel"] = true, ["$release"] = true, ["$close"] = true }

-- Runs a notification in the frame: nobody is answered.
local function hear(s, frame, method, ...)
  local ok, value = xpcall(perform, trap, s, frame, method, ...)
  if ok and frame.waited and value == s.refs.LATER then
    return defer(s, frame, method, ...)
  end
  local ends = not ok and tasks.has_cancelled(value)
  if not ok and type(value) == "table" and rawget(value, "quiet") then
    s.unknown = s.unknown + 1
  elseif not ok and not ends then -- on_error is still of this call
    link.report(s, value, link.trace())
  end
  free(s, frame)
  over(s, frame)
  if ends and frame.task and not tasks.asked_by(value, frame) then
    error(value, 0)
  end
end

-- Without a method: one that cannot be taken, and why.
local function notice(s, frame, method, ...)
  if not method then
    s.unknown = s.unknown + 1
    enter(s, frame, nil)
    link.report(s, errors.new((...), E.EINVAL))
    free(s, frame)
    return over(s, frame)
  end
  local known = s.exports[method] or builtin(s, method)
  if not known or s.running >= s.calls and not vital[method] then
    s.unknown = s.unknown + 1
    return
  end
  enter(s, frame, nil)
  if s.closed then
    link.cancel(frame, "closed")
  end
  return hear(s, frame, method, ...)
end

-- What had come when the session ended, and had not begun: notifications do, unless it was
-- closed here, and are cancelled as those are that ran already; requests do not, for nobody
-- is answered.
local function start(s, frame, kind, id, ...)
  if s.closed and (kind == 0 or rawget(s.face, "over")) then
    return
  elseif kind == 0 then
    return handle(s, frame, id, ...)
  end
  return notice(s, frame, id, ...)
end

-- ---- in tasks

local function frame_of(s, task)
  local frame = { session = s, task = task }
  task.frame = frame
  return frame
end

-- In the task of a session that does nothing but read.
local function here(s, task, kind, ...)
  task.behind = s.behind
  start(s, task.frame, kind, ...)
  task.behind = nil
end

-- In a task of its own: who read it waits for something else.
local function job(s, kind, ...)
  local task = running()
  local frame = frame_of(s, task)
  task.behind = s.behind
  start(s, frame, kind, ...)
  task.behind = nil
end

-- Runs what was deferred.
local function go_again(s, frame)
  local args, id = frame.again, frame.id
  frame.again, frame.waited = nil, nil
  if not id then
    return hear(s, frame, table.unpack(args, 1, args.n))
  elseif frame.cancelled then
    return conclude(s, frame, id, false, false, tasks.error("cancelled", E.ECANCELED))
  end
  return go(s, frame, id, table.unpack(args, 1, args.n))
end

local function again(s, frame)
  local task = running()
  task.frame, frame.task, task.behind = frame, task, s.behind
  go_again(s, frame)
  task.behind = nil
end

-- Lets those go on that waited for a call. Outside of tasks one comes after the other, and
-- after those that wait already where that call is one of such itself: a chain of them takes
-- no more room than one.
function restart(s, frames, line)
  if line then
    table.move(frames, 1, #frames, #line + 1, line)
    return
  end
  for _, frame in ipairs(frames) do
    if s.closed then
      free(s, frame)
      over(s, frame)
    elseif running() then -- before what is read from now on
      s.newest = s:employ(again, frame)
    else
      local before = incoming.inline
      incoming.inline, frame.line = frame, frames
      frame.depth = before and before.depth or 1
      local ok, problem = pcall(go_again, s, frame)
      incoming.inline, frame.line = before, nil
      if not ok then
        error(problem, 0)
      end
    end
  end
end

-- Runs outside of tasks, on top of what waits here.
local function nested(s, kind, id, ...)
  local before = incoming.inline
  local depth = (before and before.depth or 0) + 1
  if depth > s.nested then
    if kind == 2 and vital[id] then
      notice(s, { session = s }, id, ...)
    elseif kind == 0 then
      incoming.refuse(s, id, ("more than %d calls within calls"):format(s.nested), E.E2BIG, 0)
    end
    return
  end
  local reader = s.reader
  local frame = { session = s, depth = depth }
  incoming.inline, s.reader = frame, nil
  local ok, problem = pcall(start, s, frame, kind, id, ...)
  incoming.inline, s.reader = before, s.reader or reader -- a task that it has begun may read
  if not ok then
    error(problem, 0)
  end
  if s.later and not s.later.busy then
    incoming.catch_up(s)
  end
end

-- Cancels the calls whose time is over; when the next one's is.
local function expire(timer)
  local s = timer.session
  local now, earliest = ipc.now(), nil
  for frame in pairs(s.frames) do
    local deadline = frame.deadline
    if deadline and not frame.cancelled then
      if deadline <= now then
        link.cancel(frame, "timeout")
      elseif not earliest or deadline < earliest then
        earliest = deadline
      end
    end
  end
  return earliest
end

local Timer = { woken = expire }
Timer.__index = Timer

-- A task of the session has to wait in the middle of a call: another reads on, and
-- the call's time runs.
local function behind(task)
  local frame = task.frame
  local s = frame.session
  if frame.lazy then
    enlist(frame)
    if frame.lazy then -- no call: it waits for one
      task.behind = s.behind
      return
    end
  end
  if s.closed then
    return
  end
  if s.owing or s.wire:unsent() > 0 then
    link.try_flush(s)
  end
  if s.reader == task then
    s.reader = false
    link.pass_on(s)
    if s.closed then -- there was nobody
      return
    end
  end
  local deadline = frame.deadline
  if not deadline and s.patience < math.huge then
    deadline = ipc.now() + s.patience
    frame.deadline = deadline
  end
  local timer = s.timer
  if deadline and not (timer.waits and timer.due <= deadline) then
    reactor.wait(timer, deadline)
  end
end

-- What a session needs for this.
function incoming.prepare(s)
  s.behind, s.held = behind, false
  s.timer = setmetatable({ session = s, waits = false }, Timer)
end

-- A reference in a message that is none of ours: whom it is from is told.
function incoming.fault(s, kind, id, method, ...)
  local text
  if kind == 2 then
    text = s.refs:fault(id, method, ...)
    s.unknown = s.unknown + (text and 1 or 0)
  else
    text = s.refs:fault(method, ...)
    if text then
      incoming.refuse(s, id, text, E.EBADMSG)
    end
  end
  return text
end

local function turn_down(s, kind, id)
  if kind == 0 then
    return incoming.refuse(s, id, ("more than %d calls at once"):format(s.calls), E.E2BIG, 0)
  end
  s.unknown = s.unknown + 1
end

-- In the middle of a function that looks whether it is to end, or of on_open: what comes
-- begins later, but what tells just that.
local function put_by(s, ...)
  local kind, name, id = ...
  local held = s.held
  if kind == 2 and (name == "$cancel" and s.serving[id] or name == "$close") then
    return notice(s, { session = s }, select(2, ...))
  elseif held and #held >= (kind == 2 and vital[name] and 2 * s.calls or s.calls) then
    return turn_down(s, kind, name)
  elseif held then
    held[#held + 1] = table.pack(...)
    return
  elseif running() then
    s.newest = s:employ(job, ...)
    return
  end
  local list = s.later or { first = 1, last = 0, busy = false }
  s.later = list
  list[list.last + 1] = table.pack(...)
  list.last = list.last + 1
end

-- Whether there is room for more of that.
function incoming.has_room(s)
  local list = s.later
  return s.workers + (list and list.last - list.first + 1 or 0) < s.calls
end

-- Begins what was put by; outside of tasks each ends before the next does.
function incoming.catch_up(s)
  local list = s.later
  local busy = list.busy
  list.busy = true
  while list.first <= list.last do
    local message = list[list.first]
    list[list.first] = nil
    list.first = list.first + 1
    incoming.arrived(s, nil, table.unpack(message, 1, message.n))
  end
  list.busy = busy
  if s.later == list then
    s.later = false
  end
end

-- From now on what comes begins later, but hello, which may have to be answered before that.
function incoming.hold(s)
  s.held = s.held or {}
end

-- Begins what was held, in a task.
function incoming.let_go(s)
  local held = s.held
  s.held = false
  for _, message in ipairs(held) do
    incoming.arrived(s, nil, table.unpack(message, 1, message.n))
  end
end

-- A request or notification has come: `task` is the one that reads for nobody but the
-- session; else somebody waits for an answer.
function incoming.arrived(s, task, kind, id, ...)
  local newest = s.newest
  if s.glancing or s.held and not (kind == 0 and (...) == "$hello") then
    return put_by(s, kind, id, ...)
  elseif task and not (newest and newest.start) then -- else what was held begins first
    return here(s, task, kind, id, ...)
  end
  local current = running()
  if current then
    if s.workers < s.calls or kind == 2 and vital[id] then -- after those that have not begun
      s.newest = s:employ(job, kind, id, ...)
    else
      turn_down(s, kind, id)
    end
    return
  end
  return nested(s, kind, id, ...)
end

incoming.frame_of = frame_of

-- ---- what every session answers

-- A call with a deadline or a trace of its own.
builtins["$call"] = function(s, frame, meta, method, ...)
  if type(meta) ~= "table" or type(method) ~= "string" then
    error(errors.new("bad request: $call", E.EINVAL, 1), 0)
  end
  local ms = meta.deadline
  if math.type(ms) ~= nil and ms == ms then
    frame.deadline = ipc.now() + math.min(math.max(ms, 0) / 1000, s.timeout)
  end
  frame.trace = type(meta.trace) == "string" and meta.trace or nil
  return perform(s, frame, method, ...)
end

builtins["$cancel"] = function(s, _, id)
  local frame = s.serving[id]
  if frame then
    link.cancel(frame, "cancelled")
  end
end

builtins["$ping"] = function() end

-- The other side ends the session where the mechanism would not tell.
builtins["$close"] = function(s)
  link.fail(s, "closed", E.EPIPE)
end

return incoming
