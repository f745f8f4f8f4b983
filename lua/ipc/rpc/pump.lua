-- Who waits for an answer reads what comes: one at a time; the others stand by, and
-- are woken when their answer is there, or nobody reads.
local core = require "ipc.core"
local errors = require "ipc.rpc.errors"
local incoming = require "ipc.rpc.incoming"
local link = require "ipc.rpc.link"
local tasks = require "ipc.loop.tasks"

local ipc = core.flat
local E = ipc.errno
local now, running, pause, idle = ipc.now, tasks.running, tasks.pause, tasks.idle
local settle, arrived, trap = link.settle, incoming.arrived, link.trap

local pump = {}

local TURN <const> = 16 -- messages, until other tasks have their turn
local MOST <const> = 64 -- answers that are taken at once
local SOON <const> = 0.001 -- seconds that who turns the loop gives a task that is to begin
local TICK <const> = 1 -- seconds between looks at a peer whose death nothing else tells

local timeout_of = errors.new("timeout", E.ETIMEDOUT)
pump.late = timeout_of

local turned, read
local Sent = {} -- as a future that is done when all is sent

-- Looks at a peer that says nothing: it may have died, or stopped in the middle.
local function look(s)
  local o, at = s.options, now()
  local partial = s.wire:partial()
  if s.first and at >= s.first then
    link.fail(s, ("no message within %g s"):format(o.first), E.ETIMEDOUT)
  elseif partial == 0 then
    s.partial = false
  elseif not s.partial then
    s.partial = at
  elseif at >= s.partial + o.stall then
    link.fail(s, ("a message has stalled for %g s"):format(o.stall), E.ETIMEDOUT)
  end
  local pid, lives = s.peer_pid, s.lives
  local dead = lives and not lives() or pid and not core.rpc.alive(pid) or false
  if dead and s.dead and not s.closed then
    link.fail(s, "died", E.EOWNERDEAD)
  end
  s.dead = dead -- what it has said before is read first
end

-- Seconds that may be waited until the next look.
local function patience(s, task, left)
  local most = s.blind and TICK or math.huge
  if task then
    local o = s.options
    local last = s.first or s.partial and s.partial + o.stall
    most = math.min(most, last and math.max(0, last - now()) or o.stall)
  end
  return left and math.min(left, most) or most
end

-- Sends on while the peer does not read, and reads what it sends meanwhile; but no
-- more of that when too much is unsent: whether it still is, and the time is over. One
-- that reads nothing for too long then is left.
local function both_ways(s, moment)
  local wire, o = s.wire, s.options
  while s.clogged and s.draining == 0 and not s.closed do
    local stuck, full = link.stuck(s), link.full(s)
    local left = moment and moment - now()
    if not full and wire:ready() then
      return false
    elseif left and left <= 0 then
      return full
    end
    left = patience(s, true, left)
    local late = stuck and stuck + o.stall
    local gone = s.gone
    local ready, message, errno = ipc.poll({ { s.channel, full and "w" or "rw" } },
      late and math.min(left, late - now()) or left)
    if not ready and errno ~= E.ETIMEDOUT then
      link.lost(s, message, errno, moment)
      return false
    end
    link.flush(s, moment)
    if s.closed then
      return false
    end
    stuck = link.stuck(s)
    if stuck and now() >= stuck + o.stall then
      link.leave(s)
      return false
    elseif s.gone == gone and not full then
      return false
    end
  end
  return false
end

-- Whether the wire may run plain calls by itself.
local function easy(s)
  return not (s.first or s.partial or s.locked or s.held or s.lifo or s.doomed or s.leaving) and s.running < s.calls
end

-- It has run some, and met something else.
local function worked(s, future, moment, task, frame, before, kind, a, b, ...)
  if kind == 4 then
    incoming.ran(s, frame, a, b, ...)
  end
  frame.lazy = false
  if task then
    task.behind = nil
  else
    incoming.inline, s.reader = before, s.reader or true
  end
  if s.later then
    incoming.catch_up(s)
  end
  if kind == false then
    link.flush(s)
    return read(s, nil, future, moment, task, moment and moment - now())
  elseif kind == 4 or kind == true then
    return turned(s, nil, future, moment, task)
  end
  return turned(s, nil, future, moment, task, kind, a, b, ...)
end

-- Reads in a task of the session.
local function work(s, future, moment, task, left)
  local frame = task.frame
  frame.lazy, task.behind = true, s.behind
  return worked(s, future, moment, task, frame, nil, s.wire:work(s.exports, left, idle(), trap))
end

-- Reads outside of tasks, for no answer in particular.
local function work_inline(s, future, moment, left)
  local before = incoming.inline
  local frame = { session = s, depth = (before and before.depth or 0) + 1, lazy = true }
  incoming.inline = frame
  return worked(s, future, moment, nil, frame, before, s.wire:work(s.exports, left, true, trap))
end

-- Outside of tasks: a task that a call has begun may have read on since. The loop is turned
-- until it does so no more, or what is waited for is there.
local function beside(s, mine, future, moment)
  while s.reader and s.reader ~= true and not s.closed do
    local left = moment and moment - now()
    if left and left <= 0 or future and future.done or mine and s.early[mine] then
      return
    end
    tasks.turn(left)
  end
  s.reader = true
end

-- Reads until the answer `mine` is there, or the future is done: an error or nil, and
-- results. `task`: reads for the session, and ends when another reads.
function read(s, mine, future, moment, task, left)
  local wire, current = s.wire, running()
  if tasks.host and not current then
    s.reading = coroutine.running()
  end
  if future and future.done or mine and s.early[mine] then -- a hook has read it
    return turned(s, mine, future, moment, task)
  end
  if s.later then
    incoming.catch_up(s)
    return turned(s, mine, future, moment, task)
  end
  if s.owing and not wire:ready() then
    link.flush(s)
  end
  if s.clogged and s.draining == 0 then
    if both_ways(s, moment) then
      return timeout_of
    end
    left = moment and moment - now()
  end
  if s.clogged and s.draining > 0 and (link.full(s) or future and getmetatable(future) == Sent) then
    link.push(s, moment) -- others send: with them, and no more is read until they have
    left = moment and moment - now()
  end
  if future and future.done then -- that was to be sent
    return
  end
  if s.closed then
    return errors.new(s.errno == E.EPIPE and "closed" or s.closed, s.errno)
  end
  if s.clogged and s.draining == 0 then
    left = 0 -- it looks again
  elseif task or s.blind then
    left = s.dead and 0 or patience(s, task, left)
  end
  left = left or math.huge
  if not current and s.reader ~= true then
    beside(s, mine, future, moment)
    return turned(s, mine, future, moment, task)
  end
  local newest = s.newest
  if newest and newest.start and (task or not current) then -- what was read before begins first
    pause(tasks.caller(2), current and now() or now() + SOON)
    return read(s, mine, future, moment, task, left < math.huge and moment and moment - now() or nil)
  end
  s.turn = s.turn + 1
  if s.turn >= TURN then
    s.turn = 0
    if current then -- one that floods us is not all that there is
      pause(tasks.caller(2), now())
      return read(s, mine, future, moment, task, left < math.huge and moment and moment - now() or nil)
    end
  end
  if mine == nil and not s.clogged and easy(s) then
    if task then
      return work(s, future, moment, task, left)
    elseif not current and (not incoming.inline or incoming.inline.depth < s.nested) then
      return work_inline(s, future, moment, left)
    end
  end
  return turned(s, mine, future, moment, task, wire:recv(left, current == nil or idle()))
end

local function ended(s, mine, moment, message, errno)
  message, errno = link.lost(s, message, errno, moment)
  if mine then
    s.early[mine] = nil
  end
  return errors.new(errno == E.EPIPE and "closed" or message, errno)
end

-- The same for a message that has a reference which is none.
local function faulty(s, mine, future, moment, task, kind, a, b, ...)
  if kind == 1 then
    local text = s.refs:fault()
    if text then
      return turned(s, mine, future, moment, task, kind, a, errors.new(text, E.EBADMSG))
    end
  elseif not kind then -- what had it was no message
    s.refs:fault()
  elseif incoming.fault(s, kind, a, b, ...) then
    return turned(s, mine, future, moment, task)
  end
  return turned(s, mine, future, moment, task, kind, a, b, ...)
end

-- What may come while the key is not proved: to a server its proof, to a client answers.
local function expected(s, kind, method)
  if s.locked == "client" then
    return kind == 1
  end
  return kind == 0 and method == "$auth" and not s.refusal
end

-- Settles the answers that have come with another, so that those who wait for them next
-- find them.
local function gather(s, n, kind, a, b, ...)
  if kind == 1 then
    local text = s.refs.trouble and s.refs:fault()
    if text then
      settle(s, a, errors.new(text, E.EBADMSG))
    else
      settle(s, a, b, ...)
    end
    if n < MOST and not s.closed then
      return gather(s, n + 1, s.wire:answer())
    end
  elseif a ~= nil then
    link.lost(s, a, b)
  end
end

function turned(s, mine, future, moment, task, kind, a, b, ...)
  local refs = s.refs
  if refs.trouble then
    return faulty(s, mine, future, moment, task, kind, a, b, ...)
  end
  if s.locked and kind then
    if s.first and now() >= s.first then -- however much it says
      look(s)
    elseif not expected(s, kind, b) then
      incoming.turn_away(s, kind, a)
    end
    if s.closed then
      return ended(s, mine, moment, s.closed, s.errno)
    end
  end
  if kind == 1 then
    if a == mine then
      s.wire:forget(a)
      if refs.due then
        refs:flush()
      end
      return b, ...
    end
    settle(s, a, b, ...)
    if not s.locked and not s.closed then
      gather(s, 1, s.wire:answer())
    end
  elseif kind == 0 or kind == 2 then
    arrived(s, task, kind, a, b, ...)
  elseif kind == 3 then
    incoming.refuse(s, a, b, E.EINVAL)
  elseif b == E.ETIMEDOUT then
    s.dry = true
    look(s)
  elseif a ~= nil then
    return ended(s, mine, moment, a, b)
  end
  if kind and (s.first or s.partial) and not s.locked then
    s.first, s.partial = false, false
  end
  if refs.due then
    refs:flush()
  end
  if future and future.done then
    return
  end
  local early = mine and s.early[mine]
  if early then
    s.early[mine] = nil
    return early.problem, table.unpack(early, 1, early.n)
  end
  if task and s.reader ~= task then
    return
  end
  local left
  if moment then
    left = moment - now()
    if left <= 0 then
      return timeout_of
    end
  end
  return read(s, mine, future, moment, task, left)
end

-- What a read takes with it, however it ends: also where the coroutine that it is suspended
-- in is closed. Then another reads, if somebody waits for that.
local Reading = {}

function Reading.__close(reading, problem)
  local s, task, inline = reading.session, reading.task, incoming.inline
  if not reading.over and (problem ~= nil or inline and inline.session == s) then
    incoming.inline = reading.inline
  end
  if reading.behind then
    task.behind = reading.behind
  end
  if s.owing and not s.closed then
    link.flush(s)
  end
  if reading.before and not s.closed and task == running() then
    s.reader = reading.before
  elseif s.reader == (task or true) or not (s.reader or reading.over) then
    s.reader = false
    if s.served or next(s.standing) then
      link.pass_on(s)
    end
  end
end

local function over(reading, ...)
  reading.over = true
  return ...
end

-- Whether who calls need not tell another of what is to be sent: nobody reads, or it does
-- so itself, further up. A session that tasks serve is read by tasks.
local function free(s, task)
  local reader = s.reader
  if task then
    return not reader or reader == task
  end
  return not reader and not s.served
end
pump.free = free

-- Whether a task that reads is in a function that it runs meanwhile for the other side: it
-- would be told if it had to wait there.
local function serving(s, task)
  local frame = task.frame
  return frame and frame.session == s and task.behind and not frame.lazy
end

-- Whether who calls may read, once it has looked for its frame: also further up it reads
-- where that has come to a function. In the middle of a read one more would take what that
-- waits for.
local function able(s, task)
  if task and s.reader == task then
    return serving(s, task)
  end
  return free(s, task)
end
pump.able = able

-- Reads as one of those who wait. An error or nil, and results.
function pump.read(s, mine, future, moment, left)
  local task = running()
  local frame = task and task.frame
  local behind = frame and frame.session == s and task.behind
  local reading <close> = setmetatable({
    session = s, before = s.reader, task = task, behind = behind, inline = incoming.inline, over = false,
  }, Reading)
  if tasks.host and not task then
    s.reading = coroutine.running()
  end
  s.reader = task or true
  if behind then -- it reads itself; of another session another may
    task.behind = nil
  end
  return over(reading, read(s, mine, future, moment, nil, left))
end

-- Goes on after something was read for an answer that is no answer.
function pump.go_on(s, mine, moment, ...)
  local reading <close> = setmetatable({
    session = s, before = false, task = running(), behind = false, inline = incoming.inline, over = false,
  }, Reading)
  return over(reading, turned(s, mine, nil, moment, nil, ...))
end

local function glance(s)
  for _ = 1, MOST do
    s.dry = false
    turned(s, nil, nil, 0, nil, s.wire:recv(0, true))
    if s.dry or s.closed or not incoming.has_room(s) then
      return
    end
  end
end

-- Looks at what has come, without waiting, for a function that runs for the other side: calls
-- that have come begin later. Not while another is in the middle of a read.
function pump.glance(s)
  local task = running()
  if s.glancing or not able(s, task) or s.clogged and link.full(s) or not incoming.has_room(s) then
    return
  end
  local before = s.reader
  s.glancing, s.reader = true, task or true
  local ok, problem = pcall(glance, s)
  s.glancing, s.reader = false, before
  if not ok and not tasks.put_off(problem) then -- who knows what of a message was lost
    link.fail(s, "closed", E.EPIPE)
  end
end

-- Of who is called in the middle of its own read, by a finaliser or a debug hook: an error,
-- for it would wait for itself. Where a host's coroutines may read it is the one that reads
-- which tells: another is suspended meanwhile.
function pump.stuck(s)
  local task = running()
  if task and s.reader == task or s.reader == true and not task
      and (not tasks.has_guests() or s.reading and coroutine.status(s.reading) ~= "suspended") then
    return errors.new("no wait here: in the middle of a read of this session, further up", E.EDEADLK)
  end
end

-- A place among those who stand by, until it is left.
local Place = {}

function Place.__close(place)
  local s, future, member = place.session, place.future, place.member
  s.standing[member] = nil
  if future.member == member then
    future.member = nil
  elseif future.members then
    future.members[member] = nil
  end
  if not place.over and not s.reader then -- it may have been called to read
    link.pass_on(s)
  end
end

-- Stands by while another reads.
local function stand(s, future, moment)
  local stuck = pump.stuck(s)
  if stuck then
    error(stuck, 0)
  end
  local member = tasks.caller(3)
  local place <close> = setmetatable({ session = s, future = future, member = member, over = false }, Place)
  if future.member and future.member ~= member then
    future.members = future.members or {}
    future.members[member] = true
  else
    future.member = member
  end
  s.standing[member] = true
  pause(member, moment)
  place.over = true
end

-- Sends what was written and not sent; where another reads, it does not see that there is
-- more.
function pump.send(s, moment)
  if s.closed or s.clogged or s.wire:unsent() == 0 then
    return
  elseif free(s, running()) then
    link.flush(s)
  else
    link.push(s, moment)
  end
end

function Sent.__index(sent, name)
  if name == "done" then
    return not rawget(sent, "session").clogged
  end
end

-- The same, and waits until it is out, or `moment`: who may read does so meanwhile, for
-- the other side may wait for that.
function pump.drain(s, moment)
  if s.closed or not free(s, running()) then
    return link.push(s, moment)
  end
  link.flush(s)
  if s.clogged and not s.closed then
    incoming.frame()
    if not able(s, running()) then
      return link.push(s, moment)
    end
    pump.await(s, setmetatable({ session = s }, Sent), moment)
  end
end

-- Takes what is there, and waits for nothing.
local function take(s, future, moment)
  for _ = 1, MOST do
    s.dry = false
    pump.read(s, nil, future, moment, 0)
    if s.dry or future.done or s.closed or not able(s, running()) then
      return
    end
  end
end

-- Waits until a future is done: true; or false when its time is over. However short that
-- is, what is there is taken.
function pump.await(s, future, moment)
  incoming.frame() -- a call that waits is found
  local looked = false
  while not future.done do
    local left = moment and moment - now()
    local past = left and left <= 0
    if past and looked then
      break
    end
    looked = true
    if s.closed then -- settled it was, but for one of another life
      link.finish(future, errors.new(s.closed, s.errno))
    elseif not able(s, running()) then
      stand(s, future, moment)
    elseif past then
      take(s, future, moment)
    else
      pump.read(s, nil, future, moment, left)
    end
  end
  if not s.reader and (s.served or next(s.standing)) then -- it may have been called to read
    link.pass_on(s)
  end
  return future.done
end

-- Reads for the session in a task of its own until another does, or it is closed.
function pump.serve(s, task)
  s.reader = task
  local ok, problem = pcall(read, s, nil, nil, nil, task)
  if s.reader == task then
    s.reader = false
  end
  if not ok then
    if tasks.has_cancelled(problem) then
      link.pass_on(s)
    else -- who knows what of a message was lost
      link.fail(s, "closed", E.EPIPE)
    end
    error(problem, 0)
  end
end

return pump
