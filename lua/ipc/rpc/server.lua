--- Servers of calls: a session for every client of one address or several.
-- @module ipc.rpc
local access = require "ipc.rpc.access"
local addresses = require "ipc.address"
local client = require "ipc.rpc.client"
local clock = require "ipc.clock"
local core = require "ipc.core"
local exports = require "ipc.rpc.exports"
local incoming = require "ipc.rpc.incoming"
local ipc = require "ipc"
local link = require "ipc.rpc.link"
local options = require "ipc.rpc.options"
local tasks = require "ipc.loop.tasks"

local E = ipc.errno

local Server = { __name = "ipc.rpc.server", [core.rpc.mark] = true }
Server.__index = Server

local function check(self, what)
  if getmetatable(self) ~= Server then
    error(("bad argument #0 to '%s' (server expected, got %s)"):format(what, type(self)), 3)
  end
end

-- A client's session, in the client's task, until it ends.
local function attend(self, channel, peer, scheme)
  local own = self.own
  local s = client.session(channel, own, scheme, true)
  s.peer, s.sessions = peer, self.sessions
  local allowed, why = access.check(s)
  if not allowed then
    access.refuse(s, self, why)
    s:run() -- its first request is answered so
    return
  end
  self.sessions[s] = true
  if not s.locked then -- else when the key is proved
    access.open(s)
  end
  s:run()
end

--- Waits until the server has ended: somebody closed it, and no client is left.
-- @function server:wait
-- @tparam[opt=for ever] ?number timeout seconds
-- @treturn boolean true; or nil, "timeout", ETIMEDOUT
function Server:wait(timeout)
  check(self, "wait")
  clock.check("wait", timeout)
  local moment = clock.deadline(timeout)
  for _, server in ipairs(self.servers) do
    local ok, message, errno = server:wait(clock.left(moment))
    if not ok then
      return nil, message, errno
    end
  end
  return true
end

-- No new clients; the sessions that there are, as a list.
local function shut(self)
  for _, server in ipairs(self.servers) do
    server.listener:close()
  end
  local list = {}
  for s in pairs(self.sessions) do
    list[#list + 1] = s
  end
  return list
end

local function finish(self)
  for _, server in ipairs(self.servers) do
    server:close()
  end
end

--- Ends the server now: sessions are closed, calls that run are cancelled, and what is not
-- sent yet is lost.
-- @function server:stop
-- @treturn boolean true
function Server:stop()
  check(self, "stop")
  for _, s in ipairs(shut(self)) do
    s.wire:linger(0)
    link.fail(s, "closed", E.EPIPE)
  end
  for _, server in ipairs(self.servers) do
    server:stop()
  end
  return true
end

-- Waits for tasks, perhaps in a call of that session, which is not waited for meanwhile.
local function await(list, own)
  local waiting <close> = own and setmetatable({}, { __close = function() own.closers = own.closers - 1 end })
  if waiting then
    own.closers = own.closers + 1
    tasks.call_all(own.line)
  end
  for _, task in ipairs(list) do
    while not task.results do
      tasks.stand(task.line)
    end
  end
end

-- Ends a session when its calls have ended and their answers are out, or at that moment;
-- calls that wait for the same of others are answered first.
local function leave(s, moment)
  while not s.closed and s.running > s.closers and tasks.stand(s.line, moment) do -- until its calls have ended
  end
  if s.closed then
    return
  elseif s.running > 0 and s.running == s.closers then
    s.ends = true
    return
  end
  link.take_leave(s)
  link.push(s, moment)
  s.wire:linger(clock.left(moment) or s.options.stall)
  link.fail(s, "closed", E.EPIPE)
end

--- Ends the server: no new clients, no new calls; those that run have `grace` seconds
-- to come to their end and to be answered, then they are cancelled, and what is not sent
-- yet is lost. A call that ends its own server is answered before its session is closed.
-- Also what `<close>` does.
-- @function server:close
-- @treturn boolean true
function Server:close()
  check(self, "close")
  local list = shut(self)
  local moment = clock.deadline(self.own.grace)
  for _, s in ipairs(list) do
    s.leaving = true
    s.wire:pass(true)
  end
  local frame = incoming.frame()
  local own = frame and self.sessions[frame.session] and frame.session
  local ends = {} -- of all at once: none waits for a client of another
  for _, s in ipairs(list) do
    if s ~= own then
      ends[#ends + 1] = tasks.go(nil, leave, s, moment)
    end
  end
  local ok, problem = pcall(await, ends, own)
  if own and not own.closed then
    own.ends = true
    tasks.go(nil, finish, self)
  elseif ok then
    finish(self)
  else -- who waited was cancelled
    tasks.go(nil, finish, self)
  end
  if not ok then
    error(problem, 0)
  end
  return true
end

function Server:__close()
  self:close()
end

function Server:__len()
  local n = 0
  for _ in pairs(self.sessions) do
    n = n + 1
  end
  return n
end

function Server:__tostring()
  return ("ipc.rpc.server (%s, %d sessions)"):format(self.address or "closed", #self)
end

-- Serves one address or listener: an ipc.server; or nil, message, errno.
local function open(self, where, rest)
  local own = self.own
  local all, text = {}, where
  if type(where) == "string" then
    all = client.mechanism(where, rest, own)
  else
    options.none(rest, "serve", 3)
    if tasks.text(where):find("(closed)", 1, true) then
      error("bad argument #1 to 'serve' (the listener is closed)", 0)
    end
    text = where:address() or ""
  end
  local problem = access.reach(text)
  if problem then
    return nil, problem, E.EACCES
  end
  local scheme = addresses.parse(text)
  all.limit, all.grace = own.limit, own.grace
  all.on_error = function(value, _, trace)
    link.report(self, value, trace)
  end
  local server, message, errno = options.blamed("serve", 3, pcall(ipc.serve, where, function(channel, peer)
    attend(self, channel, peer, scheme)
  end, all))
  if server then
    server.shared = (own.workers or 1) > 1
  end
  return server, message, errno
end

-- A session over a channel, served by a task.
local function serve_channel(channel, own)
  local s = client.session(channel, own, nil, true)
  local allowed, why = access.allowed(s)
  if not allowed then
    access.refuse(s, s, why)
  end
  s.served = true
  s:employ(function()
    if not s.locked then
      access.open(s)
    end
    s.workers = s.workers - 1
    local ok, problem = pcall(s.run, s)
    s.workers = s.workers + 1
    if not ok then
      error(problem, 0)
    end
  end)
  return s.face
end

-- One more that serves, which is the server's own when this returns.
local function keep(self, i, server)
  self.servers[i], self.addresses[i] = server, (server.address:gsub("%?unit=stream$", ""))
end

-- A server in this process.
local function here(list, rest, own)
  local self = setmetatable({
    own = own, servers = {}, sessions = {}, addresses = {}, on_error = own.on_error,
  }, Server)
  for i = 1, math.max(#list, 1) do
    local ok, server, message, errno = pcall(open, self, list[i], rest)
    if not ok then
      self:stop()
      error(server, 0)
    elseif not server then
      self:stop()
      return nil, message, errno
    end
    local kept, problem = pcall(keep, self, i, server)
    if not kept then
      server.listener:close()
      self:stop()
      error(problem, 0)
    end
  end
  self.address = self.addresses[1]
  return self
end

-- Complains of what is neither address nor listener in a list, or given alone.
local function check_list(where, list)
  for i = 1, math.max(#list, 1) do
    local one = list[i]
    if type(one) ~= "string" and not client.is_listener(one) then
      local wanted = list == where and #list > 0 and ("[%d]: address or listener"):format(i)
        or "address, listener or channel"
      error(("bad argument #1 to 'serve' (%s expected, got %s)"):format(wanted, options.got(one)), 0)
    end
  end
end

local function serve(where, names, given)
  local own, rest = options.split(given, "serve", 3)
  if type(names) ~= "table" then
    error(("bad argument #2 to 'serve' (table expected, got %s)"):format(names == nil and "no value" or type(names)), 0)
  end
  own.exports = exports(names, "serve")
  if client.is_channel(where) then
    options.none(rest, "serve", 3)
    for _, name in ipairs { "process", "workers", "limit" } do
      if own.given and own.given[name] then
        error(("bad argument #3 to 'serve' (%s: not of a channel)"):format(name), 0)
      end
    end
    return serve_channel(where, own)
  end
  local list = type(where) == "table" and getmetatable(where) == nil and where or { where }
  check_list(where, list)
  if own.process or own.workers then
    return require "ipc.rpc.workers"(list, rest, own, here)
  end
  return here(list, rest, own)
end

return { serve = serve }
