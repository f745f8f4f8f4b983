--- A connection over which either side calls the other.
-- @module ipc.rpc
local batches = require "ipc.rpc.batch"
local calls = require "ipc.rpc.calls"
local clock = require "ipc.clock"
local core = require "ipc.core"
local errors = require "ipc.rpc.errors"
local incoming = require "ipc.rpc.incoming"
local got = require "ipc.rpc.options".got
local link = require "ipc.rpc.link"
local pump = require "ipc.rpc.pump"
local refs = require "ipc.rpc.refs"
local tasks = require "ipc.loop.tasks"

local ipc = core.flat
local E = ipc.errno
local now, running, free = ipc.now, tasks.running, pump.free
local call, begin, notice = calls.call, calls.begin, calls.notice

local Session = { __name = "ipc.rpc.session", builtins = incoming.builtins, abort = calls.abort }

-- An error as the caller gets it, with the name of what was called.
local function told(target, name, problem)
  if problem == pump.late then
    problem = errors.new(problem.message, problem.errno)
  end
  if problem.method == nil then
    local method = target
    if target == nil then -- of a property
      method = name
    elseif type(target) ~= "string" then -- an object's, or a future's
      method = refs.has_methods(target) and name or nil
    end
    problem.method = method
  end
  return problem
end

local function answered(target, name, problem, ...)
  if problem ~= nil then
    problem = told(target, name, problem)
    return nil, problem.message, problem.errno, problem
  end
  return true, ...
end

local function returned(target, name, problem, ...)
  if problem ~= nil then
    error(told(target, name, problem), 0)
  end
  return ...
end

local function check_target(what, target)
  if type(target) ~= "string" and type(target) ~= "table" and not refs.has_methods(target) then
    error(("bad argument #1 to '%s' (name or remote object expected, got %s)"):format(what,
      target == nil and "no value" or type(target)), 3)
  end
end

-- What runs a session is a table of its own: users hold views of it.
local Engine = { __name = "ipc.rpc.session", __index = Session, [core.rpc.mark] = true }

-- The engine of a view; raises for anything else.
local function check(self, what)
  local s = type(self) == "table" and rawget(self, "core")
  if not s or getmetatable(s) ~= Engine then
    error(("bad argument #0 to '%s' (session expected, got %s)"):format(what, type(self)), 3)
  end
  return s
end

--- Calls a function of the other side and waits for its results. Incoming calls are
-- served meanwhile. Where a task cannot yield (a coroutine nested in it that is not of
-- `ipc.loop.wrap`, a callback of C, a finaliser) this blocks the loop: one whose server is
-- in the same loop ends by "timeout".
-- @function session:call
-- @param target its name; or a remote function; or a remote object, or a future, and
-- then a method's name
-- @param ... arguments: values as `channel:put` takes them, nils too; functions and what
-- `ipc.rpc.object` and `ipc.rpc.stream` mark travel by reference
-- @return true and the results; or nil, message, errno and the error's object: the
-- other side's own, errno 0 where it gave none; `"timeout"` (ETIMEDOUT), `"closed"`
-- (EPIPE), `"cancelled"` (ECANCELED), `"died"` (EOWNERDEAD), what a program that failed or
-- was killed has ended with (ECONNRESET), ENOSYS (it has no such function), E2BIG (too many
-- calls at once), EINVAL (its results cannot travel, or the call or its answer is over a
-- limit, which is named with whose option it is), EMSGSIZE (over `maxsize`), ESTALE (an
-- object, function or stream of an earlier connection: see `reconnect`), EBADMSG (the other
-- side speaks something else)
-- @usage local ok, sum = session:call("add", 1, 2)
function Session.call(self, target, ...)
  check(self, "call")
  check_target("call", target)
  return answered(target, (...), call(self, target, ...))
end

-- The same; raises errors, returns the results alone.
function Session.demand(self, target, ...)
  return returned(target, (...), call(self, target, ...))
end

-- The same; its errors name the property that it is about, if there is one.
function Session.demand_of(self, name, target, ...)
  return returned(nil, name, call(self, target, ...))
end

--- Calls without waiting for the answer. Only the first call of a session waits, and with
-- `reconnect` one that finds it cut off, until there is somebody to send it to.
-- @function session:async
-- @param target as `session:call`
-- @param ... arguments
-- @treturn future with `wait`, `cancel`, `done`; one that nobody waits for is no error
-- @usage local one, other = session:async("add", 1, 2), session:async("add", 3, 4)
-- print(select(2, one:wait()) + select(2, other:wait()))
function Session.async(self, target, ...)
  check(self, "async")
  check_target("async", target)
  local future, s = begin(self, target, ...)
  if s and free(s, running()) then
    link.flush(s, future.moment)
  elseif s then
    link.push(s, future.moment)
  end
  return future
end

--- Tells the other side something that it does not answer. Waits only where more than the
-- option `unsent` has not been read there; incoming calls are served meanwhile. What the
-- channel has no room for goes out while the program waits for anything. With `reconnect` one
-- that finds the session cut off waits for so long to get another connection, as calls do.
-- What the other side's limits do not let it take is dropped there, counted (`unknown`) and
-- told to its `on_error`.
-- @function session:notify
-- @param target as `session:call`
-- @param ... arguments
-- @treturn boolean true: it is on its way; or nil, message, errno
function Session.notify(self, target, ...)
  check(self, "notify")
  check_target("notify", target)
  local s, problem = notice(self, target, ...)
  if not s then
    return nil, problem.message, problem.errno
  end
  link.flush(s)
  if s.clogged and s.wire:unsent() > s.options.unsent then
    pump.drain(s, self.timeout < math.huge and now() + self.timeout or nil)
  end
  if s.closed then
    return nil, s.closed, s.errno
  end
  return true
end

-- ---- names of the other side

local Remote = { __name = "ipc.rpc.remote", [core.rpc.mark] = true }
local views = setmetatable({}, { __mode = "k" }) -- remote -> view
local names = setmetatable({}, { __mode = "k" }) -- remote -> name; none of the root

-- As an argument it is a function like any other: whether it is one.
function Remote.by_reference(node)
  return names[node] ~= nil
end

function Remote:__index(name)
  if type(name) ~= "string" then
    return nil
  end
  local prefix = names[self]
  local node = setmetatable({}, Remote)
  views[node], names[node] = views[self], prefix and prefix .. "." .. name or name
  rawset(self, name, node)
  return node
end

function Remote:__newindex(name)
  error(("ipc.rpc: %s is a function of the other side"):format(tostring(name)), 2)
end

function Remote:__call(...)
  local name = names[self]
  if not name then
    error("ipc.rpc: a name is called: session.remote.name(...)", 2)
  end
  return returned(name, nil, call(views[self], name, ...))
end

function Remote:__tostring()
  return ("ipc.rpc.remote (%s)"):format(names[self] or "")
end

local function remote(view)
  local node = setmetatable({}, Remote)
  views[node] = view
  return node
end

-- ---- views, which have defaults of their own

local new_view

--- The same session with other defaults.
-- @function session:with
-- @tparam table options `timeout`, seconds of each call; `trace`, a text that travels with
-- the calls, and with those that they cause; `idempotent` (boolean): with `reconnect`
-- a call that was cut off may be made again: by `call` and `remote`; a future is not
-- repeated
-- @treturn session
-- @usage session:with{ timeout = 0.5 }.remote.refresh()
function Session.with(self, options)
  local s = check(self, "with")
  if type(options) ~= "table" then
    error(("bad argument #1 to 'with' (table expected, got %s)"):format(type(options)), 2)
  end
  for name, value in pairs(options) do
    local kind = name == "timeout" and "number" or name == "trace" and "string" or name == "idempotent" and "boolean"
    if not kind then
      error(("bad argument #1 to 'with' (unknown option '%s')"):format(tostring(name)), 2)
    elseif type(value) ~= kind or kind == "number" and (value ~= value or value < 0) then
      error(("bad argument #1 to 'with' (%s: %s expected, got %s)"):format(name,
        kind == "number" and "seconds" or kind, got(value, kind)), 2)
    end
  end
  local view = new_view(s, options.timeout or self.timeout)
  view.trace_id = options.trace or rawget(self, "trace_id")
  view.idempotent = options.idempotent
  if options.idempotent == nil then
    view.idempotent = rawget(self, "idempotent")
  end
  return view
end

-- ---- serving

-- Another task of the session; by default one that reads for it.
function Session.employ(self, fn, ...)
  local s = self
  local task = tasks.go(s.group, fn or Session.work, s, ...)
  s.workers = s.workers + 1
  return task
end

local Group = {}
Group.__index = Group

-- A worker has ended.
function Group:lost(task)
  local s = self.session
  if not task.left then
    task.left, s.workers = true, s.workers - 1
  end
  if not task.ok and not task.cancelled then -- without memory: perhaps nobody reads any more
    pcall(link.fail, s, "closed", E.EPIPE)
    link.report(s, task.results[1], task.trace)
  elseif task.cancelled and s.served and not s.closed then
    link.pass_on(s)
  end
  tasks.call_all(s.line)
end

local IDLE <const> = 4 -- tasks that wait for work, at most

-- A task of a session that is served: reads, or waits until it is to.
function Session.work(s, main)
  local task = running()
  incoming.frame_of(s, task)
  while not s.closed and s.served do
    local before = s.newest
    if before and before.start then -- a call that was read by another begins first
      tasks.pause(tasks.caller(2), now())
    elseif not s.reader then
      pump.serve(s, task)
    elseif not main and s.resting >= IDLE then
      return
    else
      s.resting = s.resting + 1
      local ok, problem = pcall(tasks.stand, s.idle)
      s.resting = s.resting - 1
      if not ok then
        error(problem, 0)
      end
    end
  end
end

-- Serves in the task that calls until the session is closed: its workers have ended.
function Session.run(s)
  s.served = true
  local ok, problem = pcall(Session.work, s, true)
  if not ok then
    link.fail(s, "closed", E.EPIPE)
    error(problem, 0)
  end
  while s.workers > 0 do
    tasks.stand(s.line)
  end
end

--- Gathers calls that are sent at once; in shared memory a peer that is awake may begin
-- with the first while others are added, in quick succession.
-- @function session:batch
-- @treturn batch with `async`, `notify` and `send`; leaving its block sends
-- @usage local batch <close> = session:batch()
-- local one, other = batch:async("add", 1, 2), batch:async("add", 3, 4)
-- batch:send()
-- print(one:wait(), other:wait())
function Session.batch(self)
  check(self, "batch")
  return batches.new(self)
end

--- Runs incoming calls until the session is closed.
-- @function session:serve
-- @tparam[opt=for ever] ?number timeout seconds; 0 does not wait, and takes what is there
-- @treturn boolean true; or nil, "timeout", ETIMEDOUT
function Session.serve(self, timeout)
  local s = check(self, "serve")
  clock.check("serve", timeout)
  local never = {}
  local moment = clock.deadline(timeout)
  pump.send(s, moment)
  repeat
    if s.closed then
      return true
    end
    if not pump.await(s, never, moment) and not s.closed then
      return nil, "timeout", E.ETIMEDOUT
    end
  until s.closed
  return true
end

--- Waits until the session is closed, by whichever side. Incoming calls are served
-- meanwhile.
-- @function session:wait
-- @tparam[opt=for ever] ?number timeout seconds
-- @treturn boolean true; or nil, message, errno: why it ended, if nobody closed it;
-- `"timeout"` (ETIMEDOUT)
function Session.wait(self, timeout)
  local s = check(self, "wait")
  clock.check("wait", timeout)
  local ok, message, errno = Session.serve(self, timeout)
  if not ok then
    return nil, message, errno
  elseif s.errno ~= E.EPIPE then
    return nil, s.closed, s.errno
  end
  return true
end

--- Closes the session: calls that wait are answered "closed", calls of the other side
-- that run are cancelled. A process that it is with is closed, as `process:close` does, and
-- waited for. Also what `<close>` does.
-- @function session:close
-- @treturn boolean true
function Session.close(self)
  local s = check(self, "close")
  while s.successor do
    s = s.successor
  end
  local renew = s.renew
  s.renew = nil
  rawset(s.face, "over", true)
  if renew then
    renew:stop()
  end
  link.close(s)
  s.channel:close() -- another task may be at it
  return true
end

-- The moment when the time of the call that runs is over; nil: never.
local function deadline_of(frame)
  local deadline = frame.deadline
  if not deadline then
    local patience = frame.session.patience
    if patience == math.huge then
      return nil
    end
    deadline = now() + patience
    frame.deadline = deadline
  end
  return deadline
end

local EVERY <const> = 0.001 -- seconds between looks at what has come

--- Whether the call that runs is to end: its caller has given it up, its time is over,
-- or the session is closed. A function that only computes may ask as often as it likes: what
-- has come is read once in a millisecond, without waiting; other calls among that begin when
-- it ends, or waits. Where another task is in the middle of reading the session (one in
-- `session:serve`, one that waits for an answer, or once the function has waited) only the
-- time is told until it waits again. A deadline that the caller has not given with the call
-- counts from the first look, or wait.
-- @function session:cancelled
-- @treturn boolean
function Session.cancelled()
  local frame = incoming.frame()
  if not frame then
    return false
  end
  local s = frame.session
  if frame.cancelled or s.closed then
    return true
  end
  local moment, deadline = now(), deadline_of(frame)
  if deadline and moment >= deadline then
    return true
  elseif moment >= s.glanced then
    pump.glance(s)
    s.glanced = now() + EVERY
  end
  return frame.cancelled ~= nil or s.closed ~= false
end

-- See methods.lua.
function Session.methods(self)
  check(self, "methods")
  return require "ipc.rpc.methods".methods(self)
end

--- What went over the session.
-- @function session:stats
-- @treturn table `calls` in flight from here, `running` of the other side's, `strays`:
-- answers to no call, `unknown`: notifications of no function, or that cannot be taken,
-- `unsent`: bytes; `exported`: functions, objects and streams of ours that the other side
-- holds, `imported`: those of its own that are held here
function Session.stats(self)
  local s = check(self, "stats")
  return {
    calls = s.wire:flying(), running = s.running, strays = s.strays, unknown = s.unknown,
    unsent = s.closed and 0 or s.wire:unsent(), exported = s.refs.count, imported = s.refs.held,
  }
end

-- ---- making one

local methods = Session
local dynamic = {}

-- Seconds left of the call that runs.
function dynamic.deadline()
  local frame = incoming.frame()
  if not frame then
    return nil
  end
  local deadline = deadline_of(frame)
  return deadline and math.max(0, deadline - now())
end

function dynamic.trace(self)
  local frame = incoming.frame()
  return frame and frame.trace or rawget(self, "trace_id") or nil
end

local shared = { peer = true, name = true, uid = true, pid = true }

Session.meta = {
  __name = "ipc.rpc.session",
  [core.rpc.mark] = true, -- no argument
  __index = function(self, name)
    local method = methods[name]
    if method ~= nil then
      return method
    end
    method = dynamic[name]
    if method then
      return method(self)
    end
    local base = rawget(self, "core")
    if base and name == "data" then -- the session's, whichever view is asked
      local face = base.face
      local data = rawget(face, "data")
      if data == nil then
        data = {}
        rawset(face, "data", data)
      end
      return data
    end
    return base and shared[name] and base[name] or nil
  end,
  __newindex = function(self, name, value)
    local base = rawget(self, "core")
    rawset(name == "data" and base and base.face or self, name, value)
  end,
  __close = function(self) methods.close(self) end,
  __tostring = function(self)
    local s = self.core
    return ("ipc.rpc.session (%s)"):format(s.closed or s.peer or "open")
  end,
}

-- What users hold of a session.
function new_view(s, timeout)
  local view = setmetatable({ core = s, timeout = timeout, call = Session.call, trace_id = false }, Session.meta)
  view.remote = remote(view)
  return view
end

-- A session over a channel. `o`: options, all there; `wire`: the channel's; `greeted`:
-- hello is not said from here.
local function new(channel, wire, o, greeted)
  local s = setmetatable({
    channel = channel, wire = wire, exports = o.exports or {}, options = o, timeout = o.timeout,
    patience = o.timeout, calls = o.calls, nested = o.nested, references = o.references, errors = o.errors,
    traceback = o.traceback, on_close = o.on_close or false, on_error = o.on_error or false, own_name = o.name,
    early = {}, serving = {}, frames = {}, standing = {}, running = 0,
    turn = 0,
    workers = 0,
    closers = 0, -- calls that wait for the end of the server that they are of
    resting = 0, draining = 0, answers = 0, strays = 0, unknown = 0, ours = false,
    greeted = greeted, stranger = o.peer ~= "ours", served = false, closed = false, leaving = false, ends = false,
    left = false, doomed = false, newest = false,
    locked = false, first = false, partial = false, reader = false, reading = false,
    renew = false, blind = false, lives = false, dead = false,
    owing = false, clogged = false, stuck = false, gone = 0, opened = false,
    dry = false, glancing = false, glanced = 0, later = false,
    idle = tasks.line(), line = tasks.line(), turns = tasks.line(),
    lifo = o.peer == "nvim" and {} or false, unwinds = false, trace_id = false,
  }, Engine)
  s.core = s
  s.face = new_view(s, s.timeout)
  s.group = setmetatable({ session = s }, Group)
  incoming.prepare(s)
  calls.prepare(s)
  wire:flight(o.calls, o.timeout)
  wire:plain(greeted)
  return s
end

return { class = Session, new = new }
