--- What stands for functions, objects and streams of the other side while it is held
-- here. The other side is told, some time, of what is collected; `<close>` tells it at once.
-- @module ipc.rpc
local core = require "ipc.core"
local ipc = core.flat
local clock = require "ipc.clock"
local errors = require "ipc.rpc.errors"

local E = ipc.errno

local remote = {}

local FUNCTION <const>, OBJECT <const>, STREAM <const> = 0, 1, 2
local PATIENCE <const> = 10 -- seconds that a call for values has at least
local MOST <const> = 256    -- values that are asked for at once
local EMPTY <const> = 1000  -- answers without a value, that fast, a millisecond each, are too many

-- The key of what a stand-in is made of: `refs`, its session's references; `id`, `kind`;
-- `count`, how often it came; `class`, of an object: the number of its interface, or nil;
-- `released`. Names belong to the user.
local PART = {}

local function new_class(name)
  return { __name = name, [core.rpc.mark] = true }
end

local Function, Object = new_class "ipc.rpc.remote_function", new_class "ipc.rpc.remote_object"
local Stream = new_class "ipc.rpc.remote_stream"
local class_of = { [FUNCTION] = Function, [OBJECT] = Object, [STREAM] = Stream }
local is_class = { [Function] = true, [Object] = true, [Stream] = true }

-- What a stand-in is made of; nil: it is none.
function remote.part(value)
  return type(value) == "table" and is_class[getmetatable(value)] and rawget(value, PART) or nil
end

-- A stand-in of what the other side calls by that id.
function remote.new(refs, id, kind, class)
  return setmetatable({ [PART] = { refs = refs, id = id, kind = kind, count = 1, class = class, released = false } },
    class_of[kind])
end

local function session_of(self)
  return rawget(self, PART).refs.session.face
end

-- Finalisers only note what is to be said.
local function collected(self)
  local part = rawget(self, PART)
  if part and not part.released then
    part.released = true
    part.refs:lost(part)
  end
end

-- Gives a stand-in back; what it is used for from now on raises.
local function release(self)
  local part = rawget(self, PART)
  part.first, part.batch, part.over = nil, nil, nil -- what has come of a stream
  if not part.released then
    part.released = true
    local future = part.future
    part.future = nil
    if future then
      future:cancel()
    end
    part.refs:forget(self, part)
    part.refs:flush()
  end
end

for class in pairs(is_class) do
  class.__gc = collected
  class.__close = release
end

local function describe(self)
  local part = rawget(self, PART)
  return ("%s %d%s"):format(getmetatable(self).__name, part.id, part.released and " (released)" or "")
end

Function.__tostring, Object.__tostring, Stream.__tostring = describe, describe, describe

--- Gives a remote function, object or stream back now, rather than when it is collected:
-- the other side need not keep it. What `<close>` does, too. Of a stream the producer is
-- cancelled.
-- @function release
-- @param ref what came by reference; again is harmless
-- @treturn boolean true
function remote.release(ref)
  if not remote.part(ref) then
    error(("bad argument #1 to 'release' (remote function, object or stream expected, got %s)"):format(type(ref)), 2)
  end
  release(ref)
  return true
end

-- --------------------------------------------------------------------- functions

local function check_function(self, name)
  if getmetatable(self) ~= Function then
    error(("bad self of '%s' (remote function expected: use a colon)"):format(name), 3)
  end
  return session_of(self)
end

--- A function of the other side, that came as an argument or a result: it is called as
-- any other, `f(1, 2)`, and raises what `session.remote.name` would. `<close>` releases it.
-- @type remote_function

function Function:__call(...)
  return session_of(self):demand(self, ...)
end

Function.__index = {}

--- Calls it, and answers as `session:call`.
-- @function remote_function:call
-- @param ... arguments
-- @return true and its results; or nil, message, errno, error object
function Function.__index:call(...)
  return check_function(self, "call"):call(self, ...)
end

--- Calls it without waiting.
-- @function remote_function:async
-- @param ... arguments
-- @treturn future
function Function.__index:async(...)
  return check_function(self, "async"):async(self, ...)
end

--- Calls it without an answer.
-- @function remote_function:notify
-- @param ... arguments
-- @treturn boolean true; or nil, message, errno
function Function.__index:notify(...)
  return check_function(self, "notify"):notify(self, ...)
end

-- ----------------------------------------------------------------------- objects

local function set(list)
  local all = {}
  for _, name in ipairs(type(list) == "table" and list or {}) do
    if type(name) == "string" then
      all[name] = true
    end
  end
  return all
end

local function method_of(name)
  return function(self, ...)
    local part = remote.part(self)
    if not part or part.kind ~= OBJECT then
      error(("bad self of '%s' (remote object expected: use a colon)"):format(name), 2)
    end
    return part.refs.session.face:demand(self, name, ...)
  end
end

-- What an object of the other side has: asked once of each interface.
local function interface_of(self, part, name)
  local refs = part.refs
  local interface = part.interface or part.class and refs.interfaces[part.class]
  if not interface then
    local answer = refs.session.face:demand_of(name, "$methods", self)
    answer = type(answer) == "table" and answer or {}
    interface = { methods = {}, readable = set(answer.properties), writable = set(answer.writable) }
    for method in pairs(set(answer.methods)) do
      interface.methods[method] = method_of(method)
    end
    refs:keep_interface(part.class, interface)
  end
  part.interface = interface
  return interface
end

function Object:__index(name)
  if type(name) ~= "string" then
    return nil
  end
  local interface = interface_of(self, rawget(self, PART), name)
  local method = interface.methods[name]
  if method then
    return method
  elseif interface.readable[name] then
    return session_of(self):demand_of(name, "$get", self, name)
  end
end

function Object:__newindex(name, value)
  local interface = interface_of(self, rawget(self, PART), type(name) == "string" and name or nil)
  if type(name) ~= "string" or not interface.writable[name] then
    error(errors.new("no property that can be assigned: " .. tostring(name), E.ENOSYS, 1), 2)
  end
  session_of(self):demand_of(name, "$set", self, name, value)
end

-- ----------------------------------------------------------------------- streams

-- A stream's part has `batch`, `first` and `last`: values that came and were not taken;
-- `future`: of the call that is to bring more; `n`: how many it asks for; `over` and
-- `failure` at its end.

local function fail(part, problem)
  part.over, part.failure = true, problem
  return problem
end

-- More values: they are asked for in growing numbers, while the producer makes as many. An
-- error, also that they are not there by `moment`: then they are still to come.
local function fetch(self, part, moment)
  local future = part.future
  if not future then
    local session = part.refs.session.face
    local view = session.timeout < PATIENCE and session:with { timeout = PATIENCE } or session
    part.n = part.n or 1
    future = view:async("$next", self, part.n)
    part.future = future
  end
  local ok, list, over, problem = future:wait(clock.left(moment))
  if not future.done then
    return problem
  elseif part.future ~= future then -- another who waited for it has taken it, or it was released
    return
  end
  part.future = nil
  if not ok then
    problem.method = nil -- which one the stream is of is not known
    return fail(part, problem)
  elseif type(list) ~= "table" then
    return fail(part, errors.new("bad answer: $next", E.EBADMSG))
  end
  part.batch, part.first, part.last = list, 1, #list
  if part.last > 0 then
    part.empty = nil
  elseif not over then
    part.since = part.empty and part.since or ipc.now()
    part.empty = (part.empty or 0) + 1
    if part.empty >= EMPTY and ipc.now() - part.since < part.empty / 1000 then
      return fail(part, errors.new("a stream of empty answers", E.EBADMSG))
    end
  end
  if part.last >= part.n then
    part.n = math.min(2 * part.n, MOST)
  end
  if over then
    part.over = true
    part.refs:done(self, part)
  end
end

local function values_of(step)
  if type(step) ~= "table" then
    return step
  end
  return table.unpack(step, 1, math.type(step.n) == "integer" and math.min(step.n, 255) or #step)
end

-- An error or nil, and the values of one step; none at the end.
local function one_step(self, moment)
  local part = rawget(self, PART)
  while true do
    local first = part.first
    if first and first <= part.last then
      local values = part.batch[first]
      part.batch[first] = nil
      part.first = first + 1
      return nil, values_of(values)
    elseif part.failure then
      return part.failure
    elseif part.over then
      return nil, nil
    elseif part.released then
      return errors.new("the stream was released", E.EPIPE)
    end
    local problem = fetch(self, part, moment)
    if problem then
      return problem
    end
  end
end

local function raised(problem, ...)
  if problem ~= nil then
    error(problem, 0)
  end
  return ...
end

local function answered(problem, ...)
  if problem ~= nil then
    return nil, problem.message, problem.errno, problem
  end
  return ...
end

--- A stream of the other side, that came as an argument or a result: an iterator,
-- `for value in s do`, which raises what goes wrong. A step waits for as long as the
-- producer takes, whatever `timeout` the session has. `<close>` releases it.
-- @type remote_stream

function Stream:__call()
  return raised(one_step(self))
end

Stream.__index = {}

--- The values of the next step. One that has not come is the next one's.
-- @function remote_stream:next
-- @tparam[opt=for ever] ?number timeout seconds; 0 does not wait
-- @return the values; nil alone at the end; or nil, message, errno, error object:
-- `"timeout"` (ETIMEDOUT), after which the stream goes on
-- @usage local value, message = news:next(0.5)
function Stream.__index:next(timeout)
  if type(self) ~= "table" or getmetatable(self) ~= Stream then
    error("bad self of 'next' (remote stream expected: use a colon)", 2)
  end
  clock.check("next", timeout)
  return answered(one_step(self, clock.deadline(timeout)))
end

return remote
