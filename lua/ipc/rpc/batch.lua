--- Calls that are sent at once.
-- @module ipc.rpc
local calls = require "ipc.rpc.calls"
local clock = require "ipc.clock"
local core = require "ipc.core"
local incoming = require "ipc.rpc.incoming"
local link = require "ipc.rpc.link"
local pump = require "ipc.rpc.pump"

local ipc = core.flat
local E = ipc.errno

-- Batches are made in C, which begins the calls that need nothing but the wire.
local Batch, new, parts, set, async = core.rpc.batches(calls.begin, incoming)
local methods = { async = async }
Batch.__index = methods

-- What it has: the view it is of, how much is to be sent, and whether it is closed.
local function check(self, what)
  local view, count, closed = parts(self)
  if not view then
    error(("bad argument #0 to '%s' (batch expected, got %s)"):format(what, type(self)), 3)
  end
  return view, count, closed
end

--- Adds a call.
-- @function batch:async
-- @param target as `session:call`
-- @param ... arguments
-- @treturn future its `wait` sends the batch if nobody has

--- Adds a notification.
-- @function batch:notify
-- @param target as `session:notify`
-- @param ... arguments
-- @treturn boolean true; or nil, message, errno
function methods:notify(target, ...)
  local view, _, closed = check(self, "notify")
  if closed then
    error("ipc.rpc.batch: it was left, nothing is added", 2)
  end
  local s, problem = calls.notice(view, target, ...)
  if not s then
    return nil, problem.message, problem.errno
  end
  local _, count, left = parts(self)
  set(self, count + 1, left)
  return true
end

--- Sends what was added, in one write where the mechanism is a stream.
-- @function batch:send
-- @tparam[opt=for ever] ?number timeout seconds
-- @treturn boolean true: it is on its way; or nil, message, errno: `"timeout"`
-- (ETIMEDOUT), the rest is sent by whoever waits for the session
function methods:send(timeout)
  local view, _, closed = check(self, "send")
  clock.check("send", timeout)
  local s = view.core
  set(self, 0, closed)
  pump.drain(s, clock.deadline(timeout))
  if s.closed then
    return nil, s.closed, s.errno
  elseif s.clogged then
    return nil, "timeout", E.ETIMEDOUT
  end
  return true
end

function Batch:__len()
  return (select(2, check(self, "#")))
end

function Batch:__tostring()
  local _, count, closed = check(self, "tostring")
  return ("ipc.rpc.batch (%s)"):format(closed and "closed" or count .. " to send")
end

--- Sends what was added, and lets no more be added. Also what `<close>` does.
-- @function batch:close
-- @treturn boolean true
function methods:close()
  local view, count, closed = check(self, "close")
  if not closed then
    set(self, 0, true)
    if count > 0 then
      link.flush(view.core)
    end
  end
  return true
end

function Batch:__close()
  methods.close(self)
end

local batch = {}

function batch.new(view)
  local s = view.core
  return new(view, view.timeout == s.timeout and not view.trace_id and s.wire or nil)
end

return batch
