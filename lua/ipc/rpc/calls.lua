-- Calls that go out: written, sent, waited for; beyond one connection where that was
-- asked for.
local core = require "ipc.core"
local errors = require "ipc.rpc.errors"
local futures = require "ipc.rpc.future"
local hello = require "ipc.rpc.hello"
local incoming = require "ipc.rpc.incoming"
local link = require "ipc.rpc.link"
local pump = require "ipc.rpc.pump"
local refs = require "ipc.rpc.refs"
local tasks = require "ipc.loop.tasks"

local ipc = core.flat
local E = ipc.errno
local now, running = ipc.now, tasks.running
local idle = tasks.idle
local able, late = pump.able, pump.late
local forget = hello.forget
local Future = futures.class

local calls = {}

local LONG <const> = 1e9 -- seconds that need not be told

local write

-- Makes known what travels by reference among arguments, and tries again; a message
-- that does not fit the channel is an error of the world's.
local function admit(s, meta, id, special, errno, target, ref, ...)
  if errno then
    error(errors.new(special, errno), 0)
  elseif target ~= nil then
    return write(s, meta, id, target, s.refs:admit(special, "argument", ...))
  end
  return write(s, meta, id, ref, (...), s.refs:admit(special, "argument", select(2, ...)))
end

-- Appends a request to a name, or to a reference that the wire knows (and a method's
-- name or nil).
function write(s, meta, id, target, ...)
  local wire = s.wire
  local ok, list, more
  if type(target) == "string" then
    if meta and s.ours then
      ok, list, more = wire:call(id, meta, target, ...)
    else
      ok, list, more = wire:request(id, target, ...)
    end
    if not ok then
      return admit(s, meta, id, list, more, target, nil, ...)
    end
  else
    ok, list, more = wire:invoke(id, s.ours and meta or nil, target, ...)
    if not ok then
      return admit(s, meta, id, list, more, nil, target, ...)
    end
  end
  if list then
    s.refs:sent(list)
  end
end


-- The call's deadline as a moment, seconds left, and what is said of it; or an error.
local function terms(view, s)
  local frame = incoming.frame()
  local timeout, meta = view.timeout, nil
  local trace = view.trace_id
  if frame then
    local deadline = frame.deadline
    if frame.cancelled then
      return nil, nil, nil, frame.cancelled == "timeout" and late or errors.new("cancelled", E.ECANCELED)
    elseif deadline then
      timeout = math.min(timeout, math.max(0, deadline - now()))
    end
    trace = trace or frame.trace
  end
  if timeout ~= s.timeout and timeout < LONG or trace then
    meta = { deadline = timeout < LONG and math.ceil(timeout * 1000) or nil, trace = trace }
  end
  return timeout < math.huge and now() + timeout or nil, timeout, meta
end

-- What is said of arguments: the world's answers are answers, mistakes are raised where
-- the user's code is.
local function refusal(problem)
  if errors.is(problem) then
    return problem
  elseif type(problem) ~= "string" or problem:find("bad argument [#%d ]*to a call %(") then
    error(problem, 0)
  end
  local text = problem:match "bad argument to a call: (.*)$" or problem:match "bad argument #%d+ to '.-' %((.*)%)$"
  text = (text or problem):gsub("bad argument to a call: ", "") -- of a cycle it says it again
  error(errors.blame("bad argument to a call (" .. text .. ")"), 0)
end

local function written(id, ok, problem)
  if ok then
    return id
  end
  return nil, refusal(problem)
end

-- What refs knows a target by, and whether a method's name comes next; or nil and an
-- error.
local function target_of(s, target)
  local ref, named, _, problem = s.refs:target(target)
  if ref ~= nil then
    return ref, named
  end
  problem = problem or errors.is(named) and named
  if not problem then
    error(errors.blame("bad argument #1 to a call (name or remote object expected, got " .. type(target) .. ")"), 0)
  end
  return nil, problem
end

-- What comes after an object is a method's name; after a future perhaps none.
local function check_name(target, name)
  if type(name) ~= "string" and (name ~= nil or getmetatable(target) ~= Future) then
    error(errors.blame(("bad argument #2 to a call (a method's name expected, got %s)"):format(
      name == nil and "no value" or type(name))), 0)
  end
end

local function write_ref(s, meta, target, ...)
  local ref, named = target_of(s, target)
  if ref == nil then
    return nil, named
  elseif named then
    check_name(target, (...))
  end
  local id = s.wire:id()
  if named then
    return written(id, pcall(write, s, meta, id, ref, ...))
  end
  return written(id, pcall(write, s, meta, id, ref, nil, ...))
end

-- Writes the request of a call: its id; or nil and an error.
local function ask(s, meta, target, ...)
  if type(target) == "string" then
    local id = s.wire:id()
    return written(id, pcall(write, s, meta, id, target, ...))
  end
  return write_ref(s, meta, target, ...)
end

-- Tells the other side that nobody waits for an answer any more.
local function send_cancel(s, id)
  if s.ours and not s.closed then
    s.wire:notify("$cancel", id)
    link.flush(s)
  end
end

-- A call that is waited for, by `id`: what is left before it is over, by an error or because
-- its coroutine was closed, is given up.
local Asked = {}

local function give_up(asked)
  local s, id = asked.session, asked.id
  asked.id = nil
  forget(s, id)
  send_cancel(s, id)
end

function Asked.__close(asked)
  if asked.id then
    give_up(asked)
  end
end

-- The same of the one that reads meanwhile.
local Quick = {}

function Quick.__close(asked)
  if asked.id then
    local s = asked.session
    s.reader = false
    if next(s.standing) then
      link.pass_on(s)
    end
    give_up(asked)
  end
end

-- What a session needs for this.
function calls.prepare(s)
  s.asked = setmetatable({ session = s, id = nil }, Quick)
end

-- The end of a call whose answer was read here.
local function received(asked, problem, ...)
  if problem == late then
    return problem
  end
  asked.id = nil
  if problem == nil then
    return nil, ...
  end
  return errors.received(problem)
end

local function push_and_await(s, future, moment)
  link.push(s, moment)
  return pump.await(s, future, moment)
end

-- Waits for an answer while another reads. Who cannot has an error.
local function wait_beside(s, id, moment)
  local asked <close> = setmetatable({ session = s, id = id }, Asked)
  local future = { nil, done = false, problem = nil, n = nil, member = nil }
  s.wire:expect(id, future)
  local ok, done = pcall(push_and_await, s, future, moment)
  if not ok and not errors.is(done) then
    error(done, 0)
  elseif not ok then
    return done
  elseif not done then
    return late
  end
  asked.id = nil
  return future.problem, table.unpack(future, 1, future.n)
end

local function gone(s)
  return errors.new(s.errno == E.EPIPE and "closed" or s.closed, s.errno)
end

local function full(s)
  return s.wire:flying() >= s.calls
end

-- As a future that is done when one more call may begin.
local Place = {}

function Place.__index(place, name)
  return name == "done" and not full(rawget(place, "session")) or nil
end

-- Takes what is there where too many calls seem to be in flight: perhaps they are answered.
local function make_place(s)
  if full(s) and not s.closed and not pump.stuck(s) then
    pump.await(s, setmetatable({ session = s }, Place), now())
  end
end

-- The session that a call goes to, once it can: the view's, or the one that came after
-- it; or nil and an error. `tells`: no answer is waited for, and there is always a place.
local function ready(view, s, moment, tells)
  if not tells then
    make_place(s)
  end
  if s.renew and not s.closed and able(s, running()) then
    pump.read(s, nil, nil, now(), 0) -- it may have ended since
  end
  while s.closed do
    local next_one = s.successor
    if not next_one then
      if not s.renew then
        return nil, gone(s)
      end
      local problem
      next_one, problem = s.renew:session(s, moment)
      if not next_one then
        return nil, problem
      end
    end
    s = next_one
    view.core = s
  end
  if s.refusal then
    return nil, errors.new(s.refusal, E.EACCES)
  elseif not tells and full(s) then
    return nil, errors.new(("more than %d calls at once"):format(s.calls), E.E2BIG)
  elseif not s.greeted then
    local problem = hello.greet(s, moment)
    if problem then
      return nil, problem
    end
  end
  return s
end

-- Calls, and waits: an error object or nil, and results.
local function call_once(view, target, ...)
  local s = view.core
  local moment, left, meta, problem = terms(view, s)
  if problem then
    return problem
  elseif s.closed or s.renew or not s.greeted or s.wire:flying() >= s.calls then
    s, problem = ready(view, s, moment)
    if not s then
      return problem
    end
    left = moment and moment - now()
  end
  local id
  id, problem = ask(s, meta, target, ...)
  if not id then
    return problem
  elseif s.closed then -- while arguments were made
    return gone(s)
  end
  s.wire:expect(id, true)
  if able(s, running()) then
    link.flush(s, moment)
    if s.closed then
      local early = s.early[id]
      s.early[id] = nil
      return early.problem
    end
    local asked <close> = setmetatable({ session = s, id = id }, Asked)
    return received(asked, pump.read(s, id, nil, moment, left))
  end
  return wait_beside(s, id, moment)
end

-- Not the answer that was waited for, or not only: goes on as others do.
local function quick_end(s, quick, id, timeout, kind, a, b, ...)
  local asked <close> = setmetatable({ session = s, id = id }, Asked)
  local left = timeout
  if kind == false then
    link.flush(s)
    kind, b = nil, E.ETIMEDOUT
  else
    left = s.wire:left() or math.huge
  end
  local moment = left < math.huge and now() + left or nil
  quick.id = nil
  return received(asked, pump.go_on(s, id, moment, kind, a, b, ...))
end

local function quick_answer(s, quick, id, timeout, kind, a, b, ...)
  local held = s.refs
  if kind == 1 and a == id and not held.trouble and not held.due then
    quick.id, s.reader = nil, false
    if next(s.standing) then
      link.pass_on(s)
    end
    if b == nil then
      return nil, ...
    end
    return errors.received(b)
  end
  return quick_end(s, quick, id, timeout, kind, a, b, ...)
end

-- The same where nothing is in the way of it.
local function quick(view, s, task, name, ...)
  local wire = s.wire
  local good, id, list = pcall(wire.ask, wire, name, ...)
  if not good then
    error(refusal(id), 0)
  elseif not id then -- nothing was written
    return call_once(view, name, ...)
  elseif list then
    s.refs:sent(list)
  end
  if tasks.host and not task then
    s.reading = coroutine.running()
  end
  local asked <close> = s.asked
  asked.id, s.reader = id, task or true
  local timeout = view.timeout
  return quick_answer(s, asked, id, timeout, wire:exchange(timeout, task == nil or idle(), id))
end

local function may_repeat(view, target)
  if view.idempotent ~= nil then
    return view.idempotent
  end
  local names = view.core.options.idempotent
  return names == true or type(target) == "string" and names ~= nil and names[target] == true
end

-- How often a call that may be repeated is made, at most.
local TIMES <const> = 10

local function explained(target, problem, ...)
  if problem ~= nil and getmetatable(target) == Future then
    return futures.cause(target, problem)
  end
  return problem, ...
end

-- The same where a call that was cut off may be made again.
local function call(view, target, ...)
  local s = view.core
  if type(target) ~= "string" then
    refs.check(target) -- before it waits for anything
    return explained(target, call_once(view, target, ...))
  elseif s.greeted and not (s.closed or s.reader or s.owing or s.clogged or s.blind or s.served or s.renew)
      and view.timeout == s.timeout and not view.trace_id then
    local task = running()
    if (task and task.frame or incoming.inline) == nil then
      return quick(view, s, task, target, ...)
    end
  end
  if not s.renew or not may_repeat(view, target) then
    return call_once(view, target, ...)
  end
  local results
  for _ = 1, TIMES do
    results = table.pack(call_once(view, target, ...))
    local problem = results[1]
    local errno = problem and problem.errno
    if errno ~= E.EPIPE and errno ~= E.ECONNRESET and errno ~= E.EOWNERDEAD or not view.core.closed then
      break
    end
  end
  return table.unpack(results, 1, results.n)
end

-- Begins a call to a name where nothing is in the way of it: its future; or nil, and
-- nothing was written.
local function begin_quick(view, s, name, ...)
  local wire = s.wire
  local good, future, list = pcall(wire.begin, wire, view, name, ...)
  if not good then
    error(refusal(future), 0)
  elseif list then
    s.refs:sent(list)
  end
  return future
end

-- Begins a call: its future, and the session that is to send it, if it is on its way.
local function begin(view, target, ...)
  local s = view.core
  if s.greeted and not (s.closed or s.renew) and type(target) == "string" and view.timeout == s.timeout
      and not view.trace_id then
    local task = running()
    local future = (task and task.frame or incoming.inline) == nil and begin_quick(view, s, target, ...)
    if future then
      return future, s
    end
  end
  if type(target) ~= "string" then
    refs.check(target)
  end
  local moment, _, meta, problem = terms(view, s)
  if not problem then
    local found
    found, problem = ready(view, s, moment)
    s = found or s
  end
  local future = futures.new(view)
  local id
  if not problem then
    id, problem = ask(s, meta, target, ...)
    if s.closed then
      problem = problem or gone(s)
    end
  end
  if problem then
    link.keep(future, problem)
    return future
  end
  if getmetatable(target) == Future then
    future.after = target
  end
  future.method = target
  if type(target) ~= "string" then
    future.method = refs.has_methods(target) and (...) or nil
  end
  if s.renew and type(target) == "string" and may_repeat(view, target) then
    future.again = table.pack(target, ...)
    future.again.left = TIMES
  end
  if s.renew then
    future.session = s -- the view's may become another
  end
  future.id, future.moment = id, moment
  s.wire:expect(id, future)
  return future, s
end

local function list(...)
  local all = { ... }
  for i = 1, select("#", ...) do
    if all[i] == nil then
      all[i] = ipc.null
    end
  end
  return ipc.array(all)
end

local function tell_ref(s, ref, named, ...)
  local name, args
  if named then
    name, args = (...), list(select(2, ...))
  else
    args = list(...)
  end
  local ok, special, errno = s.wire:notify("$invoke", ref, name, args)
  if errno then
    error(errors.new(special, errno), 0)
  elseif ok then
    if special then
      s.refs:sent(special)
    end
  elseif named then
    return tell_ref(s, ref, named, (...), s.refs:admit(special, "argument", select(2, ...)))
  else
    return tell_ref(s, ref, named, s.refs:admit(special, "argument", ...))
  end
end

-- Writes a notification. Nil, or an error.
local function tell(s, target, ...)
  if type(target) ~= "string" then
    local ref, named = target_of(s, target)
    if ref == nil then
      return named
    elseif named then
      check_name(target, (...))
    end
    return tell_ref(s, ref, named, ...)
  end
  local ok, special, errno = s.wire:notify(target, ...)
  if errno then
    error(errors.new(special, errno), 0)
  elseif not ok then
    return tell(s, target, s.refs:admit(special, "argument", ...))
  elseif special then
    s.refs:sent(special)
  end
end

-- Writes one once there is a session to send it: that; or nil and an error.
local function notice(view, target, ...)
  if type(target) ~= "string" then
    refs.check(target)
  end
  local timeout = view.timeout
  local s, problem = ready(view, view.core, timeout < math.huge and now() + timeout or nil, true)
  if not s then
    return nil, problem
  end
  local ok
  ok, problem = pcall(tell, s, target, ...)
  problem = problem and refusal(problem)
  if problem then
    return nil, problem
  end
  return ok and s
end

-- Ends a future with an error, and tells the other side.
function calls.abort(s, future, problem)
  local id = future.id
  if id and s.wire:pending(id) == future then
    link.settle(s, id, problem)
    send_cancel(s, id)
  end
end

calls.call, calls.begin, calls.notice, calls.ready = call, begin, notice, ready

return calls
