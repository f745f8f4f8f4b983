--- Answers that are not here yet.
-- @module ipc.rpc
local clock = require "ipc.clock"
local core = require "ipc.core"
local errors = require "ipc.rpc.errors"
local link = require "ipc.rpc.link"
local pump = require "ipc.rpc.pump"
local remote = require "ipc.rpc.remote"

local ipc = core.flat
local E = ipc.errno

-- Futures are made in C, which settles most: `done`, `id` and `moment` (its deadline),
-- `view`, `session`, `method`; once it is done `problem`, or `n` results; and whatever
-- else is assigned.
local Future

-- Of a call on what another's answer would be, `after`: if that has failed before the
-- other side knew, its error; or what it has answered instead.
local function cause(after, problem)
  while problem ~= nil and problem.errno == E.ESTALE and after and after.problem do
    problem, after = after.problem, after.after
  end
  if problem ~= nil and problem.errno == E.ESTALE and after and after.done and not remote.part(after[1]) then
    return errors.new("the first result of that call is no reference, but of type " .. type(after[1]), E.EINVAL)
  end
  return problem
end

local function check(self, what)
  if type(self) ~= "userdata" or getmetatable(self) ~= Future then
    error(("bad argument #0 to '%s' (future expected, got %s)"):format(what, type(self)), 3)
  end
end

-- True and results; or nil, message, errno, error object.
local function outcome(self)
  local problem = cause(self.after, self.problem)
  if problem ~= nil then
    if problem.method == nil and problem ~= pump.late and problem ~= link.starved then
      problem.method = self.method
    end
    return nil, problem.message, problem.errno, problem
  end
  return true, table.unpack(self, 1, self.n)
end

-- Makes a call again that was cut off and may be: whether it did.
local function made_again(self)
  local again, problem = self.again, self.problem
  local errno = again and problem ~= nil and problem.errno
  if errno ~= E.EPIPE and errno ~= E.ECONNRESET and errno ~= E.EOWNERDEAD or again.left == 0
    or not self.session.closed then
    return false
  end
  local other = self.view:async(table.unpack(again, 1, again.n))
  again.left = other.done and 0 or again.left - 1
  link.keep(self)
  self.session, self.id, self.moment, self.after = other.session, other.id, other.moment, other.after
  if other.done then
    link.keep(self, other.problem, table.unpack(other, 1, other.n))
  else
    self.session.wire:expect(self.id, self)
  end
  return true
end

--- Waits for the answer of a call. Incoming calls are served meanwhile.
-- @function future:wait
-- @tparam[opt=the call's deadline] ?number timeout seconds; the call goes on when it is
-- over; 0 does not wait, and takes what is there. `done` alone reads nothing
-- @return as `session:call`
local function wait(self, timeout)
  local until_when = clock.deadline(timeout)
  repeat
    local moment, last = until_when, self.moment
    if last and (not moment or last < moment) then
      moment = last
    end
    if not self.done then
      pump.send(self.session, moment) -- it may be of a batch
    end
    if not self.done and not pump.await(self.session, self, moment) then
      if moment == last then
        self.session:abort(self, pump.late)
      end
      return nil, "timeout", E.ETIMEDOUT, errors.new("timeout", E.ETIMEDOUT)
    end
  until not made_again(self)
  return outcome(self)
end

local methods, new
Future, methods, link.keep, new = core.rpc.futures(wait)

--- Gives the call up: the other side is asked to end it; `wait` answers "cancelled"
-- (ECANCELED).
-- @function future:cancel
-- @treturn boolean whether it had not been answered
function methods:cancel()
  check(self, "cancel")
  if self.done then
    return false
  end
  self.session:abort(self, errors.new("cancelled", E.ECANCELED))
  return true
end

--- Calls a method of what the answer will be, without waiting for it: the same as
-- `session:async(future, method, ...)`.
-- @function future:async
-- @string method
-- @param ... arguments
-- @treturn future
function methods:async(method, ...)
  check(self, "async")
  return self.view:async(self, method, ...)
end

--- The same as `session:call(future, method, ...)`.
-- @function future:call
-- @string method
-- @param ... arguments
-- @return as `session:call`
function methods:call(method, ...)
  check(self, "call")
  return self.view:call(self, method, ...)
end

function Future.__tostring(self)
  check(self, "tostring")
  local problem = self.problem
  return ("ipc.rpc.future (%s)"):format(not self.done and "waiting" or problem and problem.message or "done")
end

return { class = Future, new = new, outcome = outcome, cause = cause, settle = link.settle }
