-- Who may call: users on this machine, addresses that only it reaches, and who knows a
-- key, which both sides prove without sending it.
local addresses = require "ipc.address"
local core = require "ipc.core"
local errors = require "ipc.rpc.errors"
local incoming = require "ipc.rpc.incoming"
local link = require "ipc.rpc.link"
local options = require "ipc.rpc.options"
local tasks = require "ipc.loop.tasks"

local ipc = core.flat
local E = ipc.errno

local access = {
  BEFORE = 4096, -- bytes of a message before the peer has proved that it knows the key
}

local NONCE <const> = 32 -- bytes
local SERVER <const>, CLIENT <const> = "lua-ipc server", "lua-ipc client"

-- ---- addresses and users

-- What is wrong with serving calls at an address; nil: nothing.
function access.reach(address)
  local scheme, rest = addresses.parse(address)
  if scheme ~= "tcp" and scheme ~= "udp" then
    return nil
  end
  local host = rest:match "^%[(.*)%]:%d*$" or rest:match "^(.*):%d*$" or ""
  if host == "" or host == "localhost" or host == "::1" or host:find "^127%.%d+%.%d+%.%d+$" then
    return nil
  end
  return ("ipc.rpc.serve: %s: calls are served on the loopback interface only: others could read them"):format(address)
end

-- Who is at the other end of a session's channel, where that tells it.
function access.identify(s)
  local channel = s.channel
  local who = type(channel) == "userdata" and channel.credentials and channel:credentials()
  if who then
    s.uid, s.pid = who.uid, who.pid
    if who.uid ~= core.rpc.uid() and s.options.traceback == nil then
      s.traceback = false
    end
  end
end

-- What `allow` says of a session's peer: true, also where there is none; or false and
-- perhaps why.
function access.allowed(s)
  local allow = s.options.allow
  if not allow then
    return true
  end
  local ok, allowed, why = link.guard(s, allow, s.face)
  return ok and allowed and true or false, ok and why or nil
end

-- The same of a client that has found a server by its address.
function access.check(s)
  local uid = s.uid
  if s.options.allow or not uid or uid == 0 or uid == core.rpc.uid() then
    return access.allowed(s)
  end
  return false, ("user %d may not call"):format(uid)
end

-- What one is told who may not call.
function access.refusal(why)
  return why == nil and "not allowed" or "not allowed: " .. tasks.text(why)
end

-- A session that is served from now on answers so, and ends; calls of ours are answered so
-- here. `owner` reports it.
function access.refuse(s, owner, why)
  link.report(owner, "refused: " .. (why == nil and "not allowed" or tasks.text(why)))
  s.locked, s.refusal = "server", access.refusal(why)
  s.greeted = false -- or calls would ask for nothing more
  s.wire:plain(false)
end

-- ---- a key that both know

local function proof(key, text, theirs, ours)
  return core.rpc.hmac(key, text .. theirs .. ours)
end

local function is_nonce(value)
  return type(value) == "string" and #value >= 16 and #value <= 64
end

-- The server's side. Who does not know the key is answered so, and left.
incoming.builtins["$auth"] = function(s, _, step, value)
  local key = s.options.authkey
  if not key or not s.locked then
    local object = errors.new("no method: $auth", E.ENOSYS, 1)
    object.quiet = true
    error(object, 0)
  elseif step == 1 and is_nonce(value) then -- again, if the answer was not waited for
    s.nonces = { value, core.rpc.random(NONCE) }
    return s.nonces[2], proof(key, SERVER, s.nonces[1], s.nonces[2])
  elseif step == 2 and s.nonces and type(value) == "string"
    and core.rpc.equal(value, proof(key, CLIENT, s.nonces[1], s.nonces[2])) then
    s.locked, s.nonces = false, nil
    incoming.hold(s)
    s.newest = s:employ(access.open) -- when this is answered, and before more is read
    s.wire:limit { bytes = options.limits(s.options).bytes }
    return true
  end
  s.doomed = "authentication failed"
  local object = errors.new("authentication failed", E.EACCES)
  object.quiet = true
  error(object, 0)
end

-- A session begins.
function access.opened(s)
  local on_open = s.options.on_open
  if s.closed then
    return
  end
  s.opened = true
  if on_open then
    link.guard(s, on_open, s.face)
  end
end

-- The same in a task that serves it: no call begins before on_open has returned, whatever
-- that waits for.
function access.open(s)
  incoming.hold(s)
  local ok, problem = pcall(access.opened, s)
  if s.opened then
    incoming.let_go(s)
  end
  if not ok then
    error(problem, 0)
  end
end

-- The client's: nil, or an error. `ask` calls and gives a future that is done.
function access.prove(s, ask)
  local key, nonce = s.options.authkey, core.rpc.random(NONCE)
  local function give_up(text)
    if not s.closed then
      link.fail(s, text, E.EACCES)
    end
    return errors.new(s.closed, s.errno)
  end
  local first, problem = ask("$auth", 1, nonce)
  if problem then
    return problem
  end
  local answer = first[1]
  if first.n > 1 then
    answer = { first[1], first[2] }
  end
  if first.problem then
    return give_up("authentication failed: " .. first.problem.message)
  elseif type(answer) ~= "table" or not is_nonce(answer[1]) or type(answer[2]) ~= "string"
    or not core.rpc.equal(answer[2], proof(key, SERVER, nonce, answer[1])) then
    return give_up("authentication failed: the other side does not know the key")
  end
  local second
  second, problem = ask("$auth", 2, proof(key, CLIENT, nonce, answer[1]))
  if problem then
    return problem
  elseif second.problem or second[1] ~= true then
    return give_up("authentication failed")
  end
end

return access
