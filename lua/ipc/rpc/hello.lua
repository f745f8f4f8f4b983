--- What goes over the wire of `ipc.rpc`, for who speaks with it from another language.
-- (This file writes what a session says first: the proof of a key, and hello.)
--
-- [MessagePack-RPC](https://github.com/msgpack-rpc/msgpack-rpc/blob/master/spec.md):
-- requests `[0, id, method, params]`, responses `[1, id, error, result]`, notifications
-- `[2, method, params]`; ids are below 2^32; either side calls. Bare MessagePack on
-- streams; where a channel carries messages, one in each. A peer that knows no more than
-- that is served: a result is nil, the value, or of several an array; an error is
-- `[code, text]`, code 1 for a method that is not there, or a string
-- (`errors = "string"`). Everything below begins with the client's request `$hello`; a
-- server never speaks first, unless the first bytes are no message (then it says `$close`
-- and leaves), and one that answers an error is asked for none of it.
--
--    "$hello" [1, { features, limits = { timeout = ms, calls, references, bytes }, name, pid }]
--
-- is answered by the same of the other side. From then on, both ways, a result is
-- the array of all results, an error `[code, text, { errno, traceback, data }]`, and these
-- are methods:
--
--    "$call" [{ deadline = ms left, trace }, method, params]  a call with a deadline of its own
--    "$cancel" [id]           notification; the call is still answered
--    "$methods" []            name -> documentation; [reference]: what an object has
--    "$invoke" [reference, name or nil, params]               of a function, or an object's method
--    "$get" [reference, name], "$set" [reference, name, value]
--    "$next" [reference, n]   an array of up to n steps of a stream (a value; several of
--                             one step are an array), and whether it has ended
--    "$release" [[id, times], ...]  notification: references that are held no more
--    "$close" []              notification, where the channel does not tell the end
--
-- References are extension values whose bytes are MessagePack: 0x40 `[id, kind]`, "of
-- mine" (kind 0: a function, 1: an object, 2: a stream); 0x41 `[id, kind]`, "of yours";
-- 0x42 `[id]`, "the first result of that call of mine", as what `$invoke` is called on. An id
-- is of one connection, and good until it was released as often as it was sent.
--
-- With `authkey` the first requests are `"$auth" [1, nonce]`, answered `[nonce, proof]`, and
-- `"$auth" [2, proof]`: proofs are HMAC-SHA-256 (RFC 2104) by the key of "lua-ipc server",
-- or "lua-ipc client", and both nonces, the client's first.
-- @module ipc.rpc.wire
local access = require "ipc.rpc.access"
local core = require "ipc.core"
local errors = require "ipc.rpc.errors"
local incoming = require "ipc.rpc.incoming"
local link = require "ipc.rpc.link"
local options = require "ipc.rpc.options"
local pump = require "ipc.rpc.pump"
local tasks = require "ipc.loop.tasks"

local ipc = core.flat
local E = ipc.errno
local running = tasks.running
local free, late = pump.free, pump.late

local NAME <const> = 256 -- bytes of a peer's own name, at most

-- Sends what nobody waits for; where another reads, it does not see that there is
-- more to send.
local function send(s, moment)
  if free(s, running()) then
    link.flush(s)
  else
    link.push(s, moment)
  end
end

local function forget(s, id)
  s.wire:forget(id)
  s.early[id] = nil
end

-- From now on calls may go out.
local function greeting_over(s)
  s.greeted = true
  s.wire:plain(not (s.renew or s.closed))
end

-- ---- hello

local function hello(s)
  return { features = { "call", "cancel", "ping", "references", "streams" }, name = s.own_name, limits = {
    timeout = s.timeout < 1e9 and math.ceil(s.timeout * 1000) or nil, calls = s.calls,
    references = s.references, bytes = options.limits(s.options).bytes,
  }, pid = s.tells_pid and ipc.pid() or nil }
end

local LEAST <const> = 512 -- bytes that a peer has to take

-- Of what the peer says of itself, that which is kept as long as the connection. Raw: an
-- object of the peer's asks the peer for its fields.
local function known(theirs)
  local limits, pid, name = rawget(theirs, "limits"), rawget(theirs, "pid"), rawget(theirs, "name")
  local function limit(key)
    local value = type(limits) == "table" and rawget(limits, key)
    return math.type(value) and value
  end
  local ms, bytes, references = limit "timeout" or 0, limit "bytes", limit "references"
  return {
    timeout = ms > 0 and ms / 1000 or nil,
    bytes = math.type(bytes) == "integer" and bytes >= LEAST and bytes or nil,
    references = math.type(references) == "integer" and references or nil,
    name = type(name) == "string" and #name <= NAME and name or nil,
    pid = math.type(pid) == "integer" and pid > 0 and pid <= 0x7FFFFFFF and pid or nil,
  }
end

-- The peer speaks as we do: what it said of itself.
local function meet(s, theirs)
  s.ours = true
  greeting_over(s)
  s.wire:spread(true)
  s.patience = theirs.timeout and math.min(s.timeout, theirs.timeout) or s.patience
  s.name, s.peer_pid = theirs.name, theirs.pid
  s.theirs = theirs
  if theirs.bytes then
    s.wire:most(theirs.bytes)
  end
end

incoming.builtins["$hello"] = function(s, _, version, theirs)
  if version ~= 1 or type(theirs) ~= "table" or s.stranger then
    error(errors.new("bad request: $hello", E.EINVAL, 1), 0)
  end
  s.theirs = known(theirs)
  return hello(s)
end

-- Its answer is written: from the next message on.
function incoming.met(s)
  meet(s, s.theirs)
end

local function greeted(s, future)
  local ours, theirs = not future.problem and type(future[1]) == "table", nil
  if ours then
    local ok, problem = pcall(known, future[1])
    if not ok then -- without memory; the peer takes us for one of its kind from now on
      return link.fail(s, problem, E.ENOMEM)
    end
    theirs = problem
  end
  s.hello = nil
  greeting_over(s)
  if future.problem and future.problem.errno == E.EACCES then -- we may not call, and are left
    return link.fail(s, future.problem.message, E.EACCES)
  end
  if ours then
    meet(s, theirs)
  end
end

-- What waits for an answer to the library's own: an answer of one result takes no memory.
local function waiting(hook)
  return { nil, hook = hook, done = false, problem = nil, n = nil, member = nil }
end

-- Writes a request of the library's own, whose answer that future waits for: its id.
local function request(s, future, ...)
  local id = s.wire:id()
  s.wire:expect(id, future) -- first of all: it may fail for lack of memory
  local ok, problem = pcall(s.wire.request, s.wire, id, ...)
  if not ok then
    forget(s, id)
    error(problem, 0)
  end
  return id
end

-- Makes a call of the library's own and waits for its answer: a future that is done; or
-- nil and an error.
local function ask_first(s, moment, ...)
  local future = waiting()
  local id = request(s, future, ...)
  local held <close> = setmetatable({}, { __close = function()
    if not future.done then
      forget(s, id)
    end
  end })
  send(s, moment)
  if not pump.await(s, future, moment) then
    return nil, late
  end
  return future, held and nil
end

-- Proves that the key is known. Nil; or an error.
local function prove(s, moment)
  local gate = { done = false }
  local held <close> = setmetatable({}, { __close = function()
    s.proving = nil
    link.finish(gate)
  end })
  s.proving = gate
  local problem = access.prove(s, function(...)
    return ask_first(s, moment, ...)
  end)
  s.proved = not problem
  s.locked = not s.proved and s.locked
  if problem == late then
    link.fail(s, "authentication failed: no answer", E.ETIMEDOUT)
  end
  return problem, held and nil
end

-- What comes before the first call: the key, and hello. Nil; or an error.
local function greet(s, moment)
  local o = s.options
  if o.authkey and not s.proved then
    local gate, problem = s.proving, nil
    if not gate then
      problem = prove(s, moment)
    elseif not pump.await(s, gate, moment) then
      problem = late
    end
    if problem then
      return problem
    elseif not s.proved then
      return errors.new(s.closed or "authentication failed", s.errno or E.EACCES)
    end
  end
  if o.peer ~= "ours" then
    greeting_over(s)
    return
  end
  local future = s.hello
  if not future then
    future = waiting(greeted)
    request(s, future, "$hello", 1, hello(s))
    s.hello = future
    send(s, moment)
  end
  if not pump.await(s, future, moment) then
    return late
  elseif s.closed then
    return errors.new(s.errno == E.EPIPE and "closed" or s.closed, s.errno)
  end
end

return { greet = greet, forget = forget }
