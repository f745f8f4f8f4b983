-- What a session has below its calls: what goes out, who waits for what comes in, and
-- how it ends.
local core = require "ipc.core"
local errors = require "ipc.rpc.errors"
local reactor = require "ipc.loop.reactor"
local tasks = require "ipc.loop.tasks"

local ipc = core.flat
local E = ipc.errno
local wake = reactor.wake

-- future.lua: keep(future, problem, ...): its answer; false: there is no memory for it.
local link = { starved = errors.new("not enough memory", E.ENOMEM) }

-- An answer as its future keeps it: `problem` or nil, and `n` results.
local function pack(future, problem, ...)
  if type(future) == "userdata" then
    if not link.keep(future, problem, ...) then
      link.keep(future, link.starved)
    end
    return
  end
  local n = select("#", ...)
  future.done, future.problem, future.n = true, problem, n
  if n == 1 then
    future[1] = (...)
  elseif n <= 3 then
    future[1], future[2], future[3] = ...
  else
    for i = 1, n do
      future[i] = (select(i, ...))
    end
  end
end

-- Wakes all who wait for one answer.
local function tell(future)
  local member, more = future.member, future.members
  if member then
    wake(member)
    future.member = nil
  end
  if more then
    for other in pairs(more) do
      wake(other)
    end
    future.members = nil
  end
end

-- Something that is waited for has come to its end.
function link.finish(future, ...)
  pack(future, ...)
  tell(future)
end

-- An answer, an error or results, to whom it belongs.
function link.settle(s, id, problem, ...)
  local future = s.wire:forget(id)
  if not future then
    s.strays = s.strays + 1
    return
  end
  if problem ~= nil then
    local ok, object = pcall(errors.received, problem)
    problem = ok and object or link.starved
  end
  if future == true then -- of one who runs a call meanwhile, and looks afterwards
    future = {}
    s.early[id] = future
  end
  pack(future, problem, ...)
  local hook = future.hook
  if hook then
    hook(s, future)
  end
  tell(future)
end

-- Nobody reads any more: another does; in a loop that ends there is no other.
function link.pass_on(s)
  if s.closed then
    return
  elseif s.served then
    if tasks.call(s.idle) then
      return
    elseif tasks.ending then
      pcall(link.fail, s, "closed", E.EPIPE)
    else
      s:employ()
    end
    return
  end
  local member = next(s.standing)
  if member then
    wake(member)
  end
end

-- Sends what has been written; what has to wait is sent by those who read, or by who
-- waits for that already: others do not come before it. Where nobody does, any wait of
-- the program sends it on. `moment`: as link.lost.
function link.flush(s, moment)
  s.owing = false
  if s.draining > 0 then
    return true
  end
  local ok, message, errno = s.wire:flush()
  if ok then
    s.clogged = false
  elseif ok == nil then
    link.lost(s, message, errno, moment)
    return nil
  elseif not s.clogged then
    s.clogged, s.stuck, s.answers = true, false, 0
  end
  return true
end

-- The same from the loop itself, where nobody may wait: who reads next finds out the rest.
function link.try_flush(s)
  s.owing = false
  if s.draining == 0 and s.wire:flush() == false and not s.clogged then
    s.clogged, s.stuck, s.answers = true, false, 0
  end
end

-- Whether more is unsent than may be: since when that is, or since when it is known that
-- some of it has gone, whoever has sent that; or false.
function link.stuck(s)
  local unsent, gone = s.wire:unsent()
  if unsent <= s.options.unsent then
    s.stuck = false
  elseif not s.stuck or gone > s.gone then
    s.stuck = ipc.now()
  end
  s.gone = gone
  return s.stuck
end

-- Whether that is answers, so that no more requests are read.
function link.full(s)
  return link.stuck(s) and s.answers > s.options.unsent
end

-- Leaves a peer that does not read.
function link.leave(s)
  link.fail(s, ("the peer has read nothing for %g s"):format(s.options.stall), E.ETIMEDOUT)
end

-- What is left when one who waited does so no longer.
local function send_rest(s)
  link.push(s)
end

-- Waits until all is sent, or `moment`, or for too long: that; and as drain.
local function drain(s, moment)
  while true do
    local stuck = link.stuck(s)
    local late = (stuck or ipc.now()) + s.options.stall
    local ok, message, errno = s.wire:drain(math.max(0, (moment and math.min(moment, late) or late) - ipc.now()))
    if ok or errno ~= E.ETIMEDOUT or s.closed then
      return false, ok, message, errno
    end
    stuck = link.stuck(s)
    if stuck and ipc.now() >= stuck + s.options.stall then
      return true
    end
    if moment and ipc.now() >= moment then
      return false, nil, message, errno
    end
  end
end

-- One who waits for that, until it does so no longer: by an error, perhaps, or because its
-- coroutine was closed.
local Drain = {}

function Drain.__close(held)
  local s = held.session
  s.draining = s.draining - 1
  if not held.over and s.draining == 0 and not s.closed then
    s:employ(send_rest)
  end
end

local function drained(s, moment)
  local held <close> = setmetatable({ session = s, over = false }, Drain)
  s.draining = s.draining + 1
  local late, ok, message, errno = drain(s, moment)
  held.over = true
  return late, ok, message, errno
end

-- The same for who does not read while another does: waits, until `moment` at most.
function link.push(s, moment)
  link.flush(s)
  if not s.clogged or s.closed then
    return
  end
  local late, ok, message, errno = drained(s, moment)
  if late then
    link.leave(s)
  elseif ok then
    s.clogged = s.draining > 0
  elseif errno ~= E.ETIMEDOUT then
    link.lost(s, message, errno)
  elseif not s.closed then
    link.flush(s) -- any wait goes on with it
  end
end

-- Ends the calls of the other side that run.
local function abandon(s)
  local current = tasks.running()
  for frame in pairs(s.frames) do
    if current and frame.task == current then -- it has still to tell the others
      frame.cancelled = frame.cancelled or "closed"
    else
      link.cancel(frame, "closed")
    end
  end
end

-- Asks a call that runs to end: its task's next wait raises.
function link.cancel(frame, why)
  if not frame.cancelled then
    frame.cancelled = why
    if frame.task then
      tasks.ask_to_end(frame.task, { [frame] = true })
    end
  end
end

-- The same of the one that runs here, if it is one of the session's.
local function cancel_own(s)
  local task = tasks.running()
  local frame = task and task.frame
  if frame and s.frames[frame] then
    tasks.ask_to_end(task, { [frame] = true })
  end
end

-- Seconds that a process has to end by itself, and again when told to: at most, and however
-- short the time of who waits for that is.
local GRACE <const>, LEAST <const> = 5, 1

-- The same where it is to be over at that moment.
function link.grace(moment)
  return moment and math.max(LEAST, math.min(GRACE, (moment - ipc.now()) / 2)) or GRACE
end

-- Closes a process, which may take its time, in a task of its own: true; or false where no
-- tasks run.
local function hand_over(channel)
  return channel.exited and tasks.running() and not tasks.ending and pcall(tasks.go, nil, channel.close, channel)
end

-- Where nothing else tells the other side that the session ends, this does.
function link.take_leave(s)
  if s.blind and s.ours and not s.left then
    s.left = true
    s.wire:notify "$close"
  end
end

local LINGER <const> = 1 -- seconds that close gives what is not sent

-- Closes a session when what was said to be on its way is out, and the other side told; or
-- that has taken so long.
function link.close(s)
  if not s.closed then
    link.take_leave(s)
    if s.wire:unsent() > 0 then
      link.push(s, ipc.now() + LINGER)
    end
  end
  link.fail(s, "closed", E.EPIPE)
end

-- Ends a session: all that wait for something are told why. `moment`: of who has found out
-- that it has ended, and waits no longer for the end of a process.
function link.fail(s, message, errno, moment)
  if s.closed then
    return
  end
  s.closed, s.errno = message, errno
  local channel <close> = not hand_over(s.channel) and s.channel or nil -- whatever fails below
  s.wire:plain(false)
  local text = errno == E.EPIPE and "closed" or message
  for id in s.wire.next, s.wire do
    link.settle(s, id, errors.new(text, errno))
  end
  for member in pairs(s.standing) do
    wake(member)
  end
  tasks.call_all(s.idle)
  abandon(s)
  if s.timer then
    reactor.wake(s.timer)
    reactor.forget(s.timer)
  end
  s.refs:close()
  link.take_leave(s)
  s.wire:flush()
  local ok, problem = true, nil
  if channel then
    ok, problem = pcall(channel.close, channel, link.grace(moment)) -- a task can be cancelled in it
  end
  if s.sessions then
    s.sessions[s] = nil
  end
  tasks.call_all(s.line)
  tasks.call_all(s.turns)
  local on_close = s.on_close
  if on_close and s.opened then
    link.guard(s, on_close, s.face, message, errno)
  end
  if not ok then
    error(problem, 0)
  end
end

-- Of who has said nothing that is a message: what else it has said before it left tells
-- more than that it did.
local function last_words(s, message, errno)
  local ok, kind, text, why = pcall(s.wire.recv, s.wire, 0, true)
  if ok and kind == nil and why == E.EBADMSG then
    return text, why
  end
  return message, errno
end

-- The same where the channel has told it: message and errno, which may say more of a program,
-- if it has ended by that moment; nil: as long as a call may take.
-- A client whose first bytes are no message is told something in the unit that is spoken
-- here, which it cannot take for the end of one that speaks as it does. A call that finds the
-- end out itself is cancelled as the others are.
function link.lost(s, message, errno, moment)
  local before = s.closed
  moment = moment or ipc.now() + s.timeout
  if not before and (errno == E.EPIPE or errno == E.EBADMSG) then
    local unheard = s.channel:stats().received == 0
    if errno == E.EPIPE then
      if s.explain then
        message, errno = s.explain(message, errno, moment)
      end
      if unheard and errno == E.EPIPE then
        message, errno = last_words(s, message, errno)
      end
    elseif unheard and s.first then
      pcall(s.wire.notify, s.wire, "$close")
    end
  end
  link.fail(s, message, errno, moment)
  if not before then
    cancel_own(s)
  end
  return message, errno
end

local function text_of(value)
  local message = type(value) == "table" and rawget(value, "message")
  return type(message) == "string" and message or tasks.text(value)
end

local MOST <const> = 100 -- texts that are told
local reported, count = {}, 0

-- On the standard error, each text once.
local function print_once(value, trace)
  local text = text_of(value):sub(1, 1000)
  if not reported[text] and count <= MOST then
    reported[text], count = true, count + 1
    io.stderr:write("ipc.rpc: ", count > MOST and "there are more errors, which are not told" or trace or text, "\n")
  end
end

-- What goes wrong where nobody else is told: on_error's, or the standard error, which also
-- has what on_error itself raises.
function link.report(s, value, trace)
  trace = trace and text_of(value) .. "\n" .. trace
  local on_error = s.on_error
  if on_error then
    local ok, problem = pcall(on_error, value, s.face or s, trace)
    if ok or tasks.is_cancelled(problem) then
      return
    end
    print_once(value, trace)
    value, trace = problem, nil
  end
  print_once(value, trace)
end

local traces = setmetatable({}, { __mode = "k" }) -- thread -> traceback of its last error

-- A traceback up to the user's function, without what called that: incoming.lua, or the
-- wire for pump.lua.
local function users_part(trace)
  local first = trace:find("\n%s[^\n]*/rpc/incoming%.lua:%d+:") or #trace + 1
  local wire = trace:find("\n%s%[C%]: in [^\n]*work'\n%s[^\n]*/rpc/pump%.lua:%d+:")
  trace = trace:sub(1, math.min(first, wire or first) - 1)
  return (trace:gsub("\n%s%[C%]: in %?$", ""):gsub("\n%s%[C%]: in function 'xpcall'$", "")
    :gsub("\n%s%(%.%.%.tail calls%.%.%.%)$", ""))
end

-- Message handler: keeps the traceback of what is no cancellation.
function link.trap(value)
  local trace
  local quiet = type(value) == "table" and rawget(value, "quiet") -- a flood of mistakes costs little
  if not quiet and not tasks.is_cancelled(value) then
    trace = users_part(debug.traceback(nil, 2))
  end
  traces[coroutine.running()] = trace
  return value
end

-- Of the error that the handler saw last in this thread.
function link.trace()
  return traces[coroutine.running()]
end

-- Calls a function of the user's; what goes wrong is reported. True, and what it
-- returned.
function link.guard(s, fn, ...)
  local ok, value, more = xpcall(fn, link.trap, ...)
  if not ok then
    if tasks.has_cancelled(value) then
      error(value, 0)
    end
    link.report(s, value, link.trace())
    return false
  end
  return true, value, more
end

return link
