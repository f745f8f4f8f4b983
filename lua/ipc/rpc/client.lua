-- Sessions over channels: of an address, of a program, of one that is given.
local access = require "ipc.rpc.access"
local addresses = require "ipc.address"
local clock = require "ipc.clock"
local core = require "ipc.core"
local errors = require "ipc.rpc.errors"
local exports = require "ipc.rpc.exports"
local incoming = require "ipc.rpc.incoming"
local ipc = require "ipc"
local link = require "ipc.rpc.link"
local options = require "ipc.rpc.options"
local refs = require "ipc.rpc.refs"
local sessions = require "ipc.rpc.session"
local tasks = require "ipc.loop.tasks"

local E = ipc.errno

require "ipc.rpc.asked" -- adds to what can be called

local client = {}

-- Mechanisms that do not tell that the peer has died.
local blind = { sysv = true, mqueue = true, udp = true, ["ipc.sysv"] = true, ["ipc.mqueue"] = true }

-- Whether a channel is of such a mechanism, or its way in or out is, where it has two; of
-- sockets those of datagrams are. And whether its peer may be on another machine.
local function is_blind(channel)
  local reader, writer = core.rpc.ends(channel)
  if reader == "ipc.socket" or writer == "ipc.socket" then
    local scheme, _, found = addresses.parse(channel.address and channel:address() or "")
    if scheme == "udp" or found and found.type == "datagram" then
      return true, scheme == "udp"
    end
  end
  return blind[reader] or blind[writer] or false, false
end

-- Whether something is a channel: userdata, or a table that is used as one.
function client.is_channel(value)
  if type(value) ~= "userdata" and not (type(value) == "table" and getmetatable(value) ~= nil) then
    return false
  end
  local ok, found = pcall(function() return value.put and value.get and value.close end)
  return ok and found ~= nil and found ~= false
end

function client.is_listener(value)
  return (type(value) == "userdata" or type(value) == "table" and getmetatable(value) ~= nil) and value.accept ~= nil
end

-- What the mechanism of an address is opened with: bare MessagePack on streams.
function client.mechanism(address, rest, own)
  local all = {}
  for name, value in pairs(rest) do
    all[name] = value
  end
  local scheme, _, found = addresses.parse(address)
  found = found or {}
  local kind = all.type or found.type
  local streams = scheme == "tcp" or scheme == "fifo" or scheme == "unix" and (kind == nil or kind == "stream")
  if streams and all.unit == nil and found.unit == nil then
    all.unit = "stream"
  end
  if scheme == "tcp" and all.nodelay == nil and found.nodelay == nil then
    all.nodelay = true -- who waits for an answer sends nothing that could carry the rest
  end
  if own.given and own.given.maxsize and own.maxsize < math.huge and not streams then
    all.maxsize = own.maxsize
  end
  return all, scheme
end

local used = setmetatable({}, { __mode = "kv" }) -- channel -> its session

-- A session over a channel that is open. `scheme`: of its address, where it is known;
-- `served`: it is the server's side.
function client.session(channel, own, scheme, served)
  tasks.current() -- of this process
  incoming.begin()
  local limits = options.limits(own)
  if served and own.authkey then
    limits.bytes = math.min(limits.bytes, access.BEFORE)
  end
  local shut = tasks.text(channel):find("(closed)", 1, true)
  local good, wire = pcall(core.rpc.wire, channel, limits)
  if not good or shut then
    local why = shut and "the channel is closed" or tasks.text(wire):match "%((.*)%)$" or tasks.text(wire)
    error(("bad argument #1 to '%s' (%s)"):format(served and "serve" or "connect", why), 0)
  end
  if used[channel] and not used[channel].closed then -- each would take the other's answers
    error(("bad argument #1 to '%s' (the channel has a session)"):format(served and "serve" or "connect"), 0)
  end
  local s = sessions.new(channel, wire, own, served or own.peer ~= "ours" and not own.authkey)
  local unseen, far = is_blind(channel)
  s.blind = blind[scheme] or unseen
  s.tells_pid = s.blind and not far
  s.lives = s.blind and require "ipc.rendezvous".watch(channel) or false
  if served then
    s.first = own.first < math.huge and ipc.now() + own.first or nil
  end
  s.locked = own.authkey ~= nil and (served and "server" or "client")
  if own.traceback == nil then
    s.traceback = scheme ~= "tcp" and scheme ~= "udp"
  end
  access.identify(s)
  s.refs = refs.new(s)
  wire:exts(function(type, data) return s.refs:resolve(type, data) end)
  used[channel] = s
  return s
end

-- ---- connecting

local function program(where)
  local all = { stdin = "pipe", stdout = "pipe" }
  for name, value in pairs(where) do
    all[name] = value
  end
  return options.blamed("connect", 1, pcall(ipc.exec, all))
end

local LAST_TRY <const> = 0.05 -- seconds

-- Opens what is to be called: a channel and its scheme; or nil, message, errno.
local function open(where, rest, own, timeout, retry)
  if type(where) ~= "string" then
    return program(where)
  end
  local all, scheme = client.mechanism(where, rest, own)
  all.timeout = timeout < math.huge and timeout or nil
  if retry ~= nil then
    all.retry = retry
  end
  local channel, message, errno = options.blamed("connect", 2, pcall(ipc.connect, where, all))
  if errno == E.ETIMEDOUT and all.retry then -- what it has waited for is told by one more try
    all.retry, all.timeout = 0, LAST_TRY
    channel, message, errno = options.blamed("connect", 2, pcall(ipc.connect, where, all))
  end
  if not channel then
    return nil, message, errno
  end
  channel:settimeout(nil)
  return channel, scheme
end

local LAST <const> = 1 -- seconds that a program has to end that has closed its output

-- Why a program says no more: what it has ended with is told instead of "closed", whose
-- errno has no other message.
local function explained_by(process)
  return function(message, errno, moment)
    local ok, reason, number = process:wait(math.min(LAST, clock.left(moment) or LAST))
    if ok == nil and number == 0 then
      return reason, E.ECONNRESET
    end
    return message, errno
  end
end

-- Who is there may call us back, if `allow` says so: true; or nil, message, errno, and
-- the session is closed.
local function admitted(s, where)
  s.peer = type(where) == "string" and where or type(where) == "table" and where[1] or nil
  if type(where) == "table" then
    s.explain = explained_by(s.channel)
  end
  local allowed, why = access.allowed(s)
  if allowed then
    return true
  end
  local text = access.refusal(why)
  link.fail(s, text, E.EACCES)
  return nil, text, E.EACCES
end

local function begin(s, where)
  local ok, message, errno = admitted(s, where)
  if not ok then
    return nil, message, errno
  end
  access.opened(s)
  return s.face
end

-- A session over a channel that was opened here, which is closed where there is none.
local function session_of(channel, own, scheme)
  local ok, s = pcall(client.session, channel, own, scheme, false)
  if not ok then
    channel:close()
    error(s, 0)
  end
  return s
end

-- ---- another session when one has been cut off

-- What makes it: by one try at a time, `try`, while others who want the same stand in `line`.
local Renewal = {}
Renewal.__index = Renewal

local function renewal(where, rest, own)
  return setmetatable({ where = where, rest = rest, own = own, try = false, line = tasks.line() }, Renewal)
end

-- A try, while it lasts. What was wrong stays with it: `message`, `errno`. `task`: whose it is,
-- which is cancelled for it when the session is closed; who is no task sees that afterwards.
local Try = {}

function Try.__close(try)
  local self, task = try.renewal, try.task
  self.try = false
  if task then
    tasks.take_back(task, try)
  end
  tasks.call_all(self.line)
end

-- The session in the place of another; or nil, message, errno.
local function replace(self, try, old, moment, last)
  local own = self.own
  local channel = old.channel
  if channel.exited then -- a program ends before there is another, but not by our end
    local grace = link.grace(moment)
    channel:wait(2 * grace)
    channel:close(grace)
  end
  local left = math.max(clock.left(moment) or math.huge, 0)
  local retry = last and math.max(clock.left(last), 0) or true
  local found, errno
  channel, found, errno = open(self.where, self.rest, own, left, retry)
  if not channel then
    return nil, found, errno
  end
  local s = session_of(channel, own, found)
  local ok, allowed, message, number = pcall(admitted, s, self.where)
  if not ok then
    channel:close()
    error(allowed, 0)
  elseif not allowed then
    return nil, message, number
  elseif rawget(old.face, "over") then -- closed meanwhile
    s.opened = false
    link.fail(s, "closed", E.EPIPE)
    return nil, "closed", E.EPIPE
  end
  try.task = nil -- what is closed from now on is this one
  s.renew, s.face = self, old.face
  s.face.core = s
  old.successor = s
  access.opened(s)
  return s
end

-- The same, until `moment` or for as long as `reconnect` says; or nil and an error. Who has
-- waited for another's try takes what that has found, unless there is time left.
function Renewal:session(old, moment)
  local reconnect = self.own.reconnect
  local last = reconnect ~= true and clock.deadline(reconnect) or nil
  while self.try and not rawget(old.face, "over") do
    local other = self.try
    if other.owner == coroutine.running() then -- in its on_open, which has been cut off too
      return nil, errors.new("closed", E.EPIPE)
    elseif not tasks.stand(self.line, moment) then
      return nil, errors.new("timeout", E.ETIMEDOUT)
    elseif other.message and last and clock.left(last) <= 0 then
      return nil, errors.new(other.message, other.errno)
    end
  end
  if rawget(old.face, "over") then
    return nil, errors.new("closed", E.EPIPE)
  elseif old.successor then
    return old.successor
  end
  local try <close> = setmetatable({ renewal = self, task = tasks.running(), owner = coroutine.running() }, Try)
  self.try = try
  local ok, s, message, errno = pcall(replace, self, try, old, moment, last)
  if not ok and not tasks.asked_by(s, try) then
    error(s, 0)
  elseif not ok then
    return nil, errors.new("closed", E.EPIPE)
  elseif not s then
    try.message, try.errno = message, errno
    return nil, errors.new(message, errno)
  end
  return s
end

-- The session was closed: there is to be no other.
function Renewal:stop()
  local try = self.try
  if try and try.task then
    tasks.ask_to_end(try.task, { [try] = true })
  end
  tasks.call_all(self.line)
end

-- What `idempotent` is, as a set; raises for what is no list of names.
local function names_of(own)
  local list, set = own.idempotent, {}
  if list ~= nil and not own.reconnect then
    error("bad argument #2 to 'connect' (idempotent: nothing is called again without reconnect)", 0)
  end
  for i, name in pairs(type(list) == "table" and list or {}) do
    if math.type(i) ~= "integer" then
      error("bad argument #2 to 'connect' (idempotent: list of names expected)", 0)
    elseif type(name) ~= "string" then
      error(("bad argument #2 to 'connect' (idempotent[%d]: name expected)"):format(i), 0)
    end
    set[name] = true
  end
  return set
end

function client.connect(where, given)
  local own, rest = options.split(given, "connect", 2)
  own.exports = own.exports and exports(own.exports, "connect") or {}
  local set = names_of(own)
  if own.idempotent ~= true then
    own.idempotent = set
  end
  if client.is_channel(where) then
    options.none(rest, "connect", 2)
    if own.reconnect then
      error("bad argument #2 to 'connect' (reconnect: of an address or program)", 0)
    end
    return begin(client.session(where, own, nil, false), nil)
  elseif type(where) == "table" and getmetatable(where) == nil then
    options.none(rest, "connect", 2)
  elseif type(where) ~= "string" then
    error(("bad argument #1 to 'connect' (address, channel or program expected, got %s)"):format(
      where == nil and "no value" or type(where)), 0)
  end
  local channel, scheme, errno = options.blamed("connect", 2, pcall(open, where, rest, own, own.timeout))
  if not channel then
    return nil, scheme, errno
  end
  local s = session_of(channel, own, scheme)
  local ok, face, message
  ok, face, message, errno = pcall(function()
    s.renew = own.reconnect and renewal(where, rest, own) or false
    return begin(s, where)
  end)
  if not ok then -- nobody was given it
    channel:close()
    error(face, 0)
  end
  return face, message, errno
end

return client
