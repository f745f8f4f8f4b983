--- Servers: a task for every client of a listener.
-- @module ipc
local ipc = require "ipc"
local clock = require "ipc.clock"
local tasks = require "ipc.loop.tasks"

local E = ipc.errno

local GRACE <const> = 5                   -- seconds that close gives the running
local NAP <const>, DOZE <const> = 0.01, 1 -- seconds without a free descriptor: at first, at most
local TURN <const> = 0.0005               -- seconds that other processes have to accept

local Server = { __name = "ipc.server" }
Server.__index = Server

-- What goes wrong in a task of one client stays there.
local function contained(self, peer, fn, ...)
  local trace
  local ok, value = xpcall(fn, function(value)
    trace = not tasks.is_cancelled(value) and debug.traceback(tasks.text(value), 2)
    return value
  end, ...)
  if ok then
    return
  elseif tasks.is_cancelled(value) then
    error(value, 0)
  end
  self.on_error(value, peer, trace)
end

local function serve_client(self, conn)
  local closed <close> = conn
  local peer = type(conn) == "userdata" and conn.peer and conn:peer() or nil
  contained(self, peer, self.fn, conn, peer)
  return closed
end

local function accept_all(self)
  local listener <close> = self.listener
  local nap, limit = NAP, self.limit
  while true do
    while self.count >= limit do
      tasks.stand(self.places) -- of this one task: no place is lost with it
    end
    local conn, message, errno = listener:accept(math.huge)
    if conn then
      nap = NAP
      local ok, task = pcall(tasks.go, self, serve_client, self, conn)
      if not ok then
        conn:close()
        error(task, 0)
      end
      self.count = self.count + 1
      self.clients[task] = true
      if self.shared and self.count > 1 then -- of those that wait others take theirs
        ipc.sleep(TURN)
      end
    elseif errno == E.EPIPE then
      return
    elseif errno ~= E.ETIMEDOUT then
      if nap == NAP then
        contained(self, nil, error, tasks.error(message, errno), 0)
      end
      ipc.sleep(nap)
      nap = math.min(2 * nap, DOZE)
    end
  end
end

-- A client's task, or the one that accepts, has ended.
function Server:lost(task)
  if task == self.task then
    self.over = true
  else
    self.clients[task] = nil
    if not task.left then
      task.left, self.count = true, self.count - 1
    end
    tasks.call(self.places)
  end
  if not task.ok and not task.cancelled then -- on_error itself
    io.stderr:write("ipc.serve: ", tasks.text(task.results[1]), "\n")
  end
  tasks.call_all(self.line)
end

-- How many of its tasks run, but for those that wait for the others' end themselves.
local function running(self)
  return self.count + (self.over and 0 or 1) - self.leaving
end

-- Waits until no task is left: called by one of them, until none but such ones are.
local function drained(self, moment)
  local task = tasks.current()
  local inside = task and (self.clients[task] or task == self.task)
  local more = inside and 1 or 0
  local left <close> = setmetatable({}, { __close = function() self.leaving = self.leaving - more end })
  self.leaving = self.leaving + more
  if inside then
    tasks.call_all(self.line)
  end
  while running(self) + (inside and 0 or self.leaving) > 0 do
    if not tasks.stand(self.line, moment) then
      return false
    end
  end
  return left ~= nil
end

--- Waits until the server has ended: somebody closed it, or its listener, and no
-- client is left. Called by a client's own function, it waits for the others, as `stop`
-- and `close` do.
-- @function server:wait
-- @tparam[opt=for ever] ?number timeout seconds
-- @treturn boolean true; or nil, "timeout", ETIMEDOUT
function Server:wait(timeout)
  clock.check("wait", timeout)
  if not drained(self, clock.deadline(timeout)) then
    return nil, "timeout", E.ETIMEDOUT
  end
  return true
end

local function cancel(self)
  for task in pairs(self.clients) do
    if task ~= tasks.current() then
      task:cancel()
    end
  end
end

--- Ends the server now: no new clients, and the tasks of those that are there are
-- cancelled.
-- @function server:stop
-- @treturn boolean true
function Server:stop()
  self.listener:close()
  cancel(self)
  drained(self)
  return true
end

--- Ends the server: no new clients; those that are there have `grace` seconds to come
-- to their end, then their tasks are cancelled. Also what `<close>` does.
-- @function server:close
-- @treturn boolean true
function Server:close()
  self.listener:close()
  if not drained(self, clock.deadline(self.grace)) then
    cancel(self)
    drained(self)
  end
  return true
end

function Server:__close()
  self:close()
end

function Server:__len()
  return self.count
end

function Server:__tostring()
  return ("ipc.server (%s, %d clients)"):format(self.address, self.count)
end

local TEXTS <const> = 1000 -- that are remembered: clients may choose them

-- Errors on the standard error, each text once.
local function reporter(address)
  local seen, count = {}, 0
  return function(value, _, trace)
    local text = tasks.text(value)
    if not seen[text] then
      if count == TEXTS then
        seen, count = {}, 0
      end
      seen[text], count = true, count + 1
      io.stderr:write("ipc.serve: ", address, ": ", trace or text, "\n")
    end
  end
end

-- What of the options is ours, and the listener's rest.
local function split(options)
  local own, rest = {}, {}
  for name, value in pairs(options or {}) do
    if name == "limit" or name == "grace" or name == "on_error" then
      own[name] = value
    else
      rest[name] = value
    end
  end
  local limit, grace, on_error = own.limit, own.grace, own.on_error
  if limit ~= nil and limit ~= math.huge and (math.type(limit) ~= "integer" or limit < 1) then
    error("bad argument #3 to 'serve' (limit: a whole number from 1 expected)", 3)
  elseif grace ~= nil and (math.type(grace) == nil or grace ~= grace) then
    error("bad argument #3 to 'serve' (grace: seconds expected)", 3)
  elseif on_error ~= nil and type(on_error) ~= "function" then
    error("bad argument #3 to 'serve' (on_error: function expected)", 3)
  end
  return own, rest
end

-- A server of a listener, which is its own when this returns.
local function begin(where, listener, fn, own)
  local address = listener:address() or tostring(where)
  local self = setmetatable({
    listener = listener, address = address, fn = fn, limit = own.limit or 1000,
    grace = own.grace or GRACE, on_error = own.on_error or reporter(address), clients = {}, count = 0, leaving = 0,
    places = tasks.line(), line = tasks.line(), over = false, task = false,
    shared = false, -- other processes accept from the listener too
  }, Server)
  self.task = tasks.go(self, accept_all, self)
  return self
end

--- Serves every client of an address by a task of its own, from now on: `fn(conn,
-- peer)`, whose channel is closed after it. What goes wrong in one of them stays there
-- and is reported. Tasks run while the loop does: in `ipc.main`, or while somebody
-- waits for the server.
-- @function serve
-- @param where an address as `ipc.listen` takes it, or a listener, which is the
-- server's from then on
-- @tparam function fn gets the channel, and the client's address where it has one
-- @tparam[opt] table options of `ipc.listen`, and `limit` (1000), how many clients
-- are served at once: others wait to be accepted; `grace` (5), seconds that close
-- gives them; `on_error`, a function of the error, the client's address and a
-- traceback, called in the client's task: by default each text goes to the standard
-- error once
-- @treturn server with `address`, `wait`, `stop`, `close`; its length is the number of
-- clients; or nil, message, errno as `ipc.listen`
-- @usage local server <close> = assert(ipc.serve("tcp:127.0.0.1:0", function(conn)
--   for line in conn:lines() do conn:send(line:upper() .. "\n") end
-- end, { unit = "stream" }))
return function(where, fn, options)
  if type(fn) ~= "function" then
    error(("bad argument #2 to 'serve' (function expected, got %s)"):format(type(fn)), 2)
  elseif options ~= nil and type(options) ~= "table" then
    error(("bad argument #3 to 'serve' (table expected, got %s)"):format(type(options)), 2)
  end
  local own, rest = split(options)
  local listener = where
  if type(where) == "string" then
    local message, errno
    listener, message, errno = require("ipc.address").listen(where, rest)
    if errno then
      return listener, message, errno
    end
  elseif type(where) ~= "userdata" and type(where) ~= "table" or not where.accept then
    error(("bad argument #1 to 'serve' (address or listener expected, got %s)"):format(type(where)), 2)
  elseif next(rest) then
    error(("bad argument #3 to 'serve' (unknown option '%s')"):format(next(rest)), 2)
  end
  local ok, self = pcall(begin, where, listener, fn, own)
  if not ok then
    if listener ~= where then
      listener:close()
    end
    error(self, 0)
  end
  return self
end
