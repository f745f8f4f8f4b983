--- Listening and connecting over shared memory: each client is given a pair of
-- rings that nobody else can open.
--
-- The listener is a unix socket beside the names of shared memory. For each
-- client it makes two nameless rings and hands it an end of each through the
-- socket, so there is no name that a kill could leave.
-- @module ipc.handover
local clock = require "ipc.clock"
local core = require "ipc.core"

local ipc = core.flat
local E = ipc.errno
local handover = {}

local WELCOME <const> = 1024 -- bytes, at most

-- Options for the socket alone; the rest are the rings', or anybody's.
local socket_only = { backlog = true, allow_uids = true }

-- What means something for names only: the rings have none.
local names_only = {
  create = true, temporary = true, retry = true, permissions = true, keepalive = true,
  persist = true,
}

local function without(options, left_out)
  local all = {}
  for name, value in pairs(options) do
    if not left_out[name] then
      all[name] = value
    end
  end
  return all
end

-- Things to close unless they are all released.
local keeper = {
  __close = function(list)
    for i = #list, 1, -1 do
      list[i]:close()
    end
  end,
}

local function keeping(...) return setmetatable({ ... }, keeper) end

local function release(keep)
  for i = #keep, 1, -1 do
    keep[i] = nil
  end
end

-- Where a name's socket is: a ring's name never begins with a dot. Raises what
-- opening a ring of that name, with these options, would raise.
local function place(rest, options)
  local ok, path = pcall(core.shm.place, rest, without(options, socket_only))
  if not ok then
    error(path, 0) -- address.lua says whose fault it is
  end
  local directory, name = path:match "^(.*/)(.*)$"
  return directory .. "." .. name .. ".listen"
end

-- ---- listening

local Listener = {}
Listener.__index = Listener
Listener.__name = "ipc.listener"
Listener.__metatable = "ipc"

-- One client: the channel, or nil when it is gone, or nil, message, errno.
function Listener:welcome(client)
  local keep <close> = keeping()
  local ends = {}
  for i = 1, 2 do
    local r, w, errno = ipc.queue(self.rings)
    if not r then
      return nil, w, errno
    end
    keep[#keep + 1], keep[#keep + 2] = r, w
    ends[i] = { r = r, w = w }
  end
  -- As much as a fresh socket takes at once: nobody waits for who does not read.
  if not client:put({ ends[1].r, ends[2].w }, nil, 0) then
    return nil
  end
  local both = ipc.duplex(ends[2].r, ends[1].w)
  release(keep)
  return both
end

function Listener:accept(timeout)
  clock.check("accept", timeout)
  if timeout == nil then
    timeout = self.patience
  end
  local deadline = clock.deadline(timeout)
  repeat
    local client, message, errno = self.pending, nil, nil
    if not client then
      client, message, errno = self.socket:accept(clock.left(deadline))
    end
    if not client then
      return nil, message, errno
    end
    self.pending = client -- until it is dealt with, whatever raises
    local channel, problem, number = self:welcome(client)
    if number then
      return nil, problem, number
    end
    self.pending = nil
    client:close()
    if channel then
      self.accepted = self.accepted + 1
      return channel
    end
    self.refused = self.refused + 1
  until deadline and ipc.now() >= deadline
  return nil, "timeout", E.ETIMEDOUT
end

function Listener:close()
  if self.pending then
    self.pending:close()
    self.pending = nil
  end
  return self.socket:close()
end

Listener.__close = Listener.close
Listener.__gc = nil -- the socket has its own

function Listener:address()
  local found, message, errno = self.socket:address()
  if not found then
    return nil, message, errno
  end
  return self.text
end

function Listener:settimeout(seconds)
  clock.check("settimeout", seconds)
  self.patience = seconds
  return true
end

function Listener:stats()
  local refused = self.socket:stats().refused -- of users that may not come
  return { accepted = self.accepted, refused = self.refused + refused }
end

function Listener:pollfd() return self.socket:pollfd() end
function Listener:events() return self.socket:events() end
function Listener:timeout() return self.pending and 0 or self.socket:timeout() end

function Listener:__tostring() return tostring(self.socket) end

--- Listens at a name of shared memory; `ipc.listen` calls it.
-- @string rest of the address: `"/name"`, as `ipc.shm` has them
-- @tparam table options those of `ipc.queue` for the rings of each client (with
-- `writers = 1, readers = 1` an end is for one process at a time: no locks, and no
-- `dup`), and `permissions`, `backlog`, `allow_uids` as a unix socket has them
-- @treturn listener; or nil, message, errno: EADDRINUSE when another process
-- listens there
function handover.listen(rest, options)
  local path = place(rest, options)
  local ok, socket, message, errno = pcall(core.listener.listen, path, {
    create = options.create, permissions = options.permissions, backlog = options.backlog,
    allow_uids = options.allow_uids,
  }, "unix")
  if not ok then
    error(socket, 0)
  end
  if errno == E.EADDRINUSE then
    return nil, ("ipc.shm.listen: %s: somebody listens there"):format(rest), errno
  elseif not socket then
    return nil, message, errno
  end
  return setmetatable({
    socket = socket, rings = without(without(options, socket_only), names_only),
    patience = options.timeout, accepted = 0, refused = 0,
    text = "shm:" .. rest:gsub("[%%?]", function(c) return ("%%%02X"):format(c:byte()) end),
  }, Listener)
end

-- ---- connecting

-- What the listener gave: two channels, or nothing.
local function ends_of(given)
  if type(given) ~= "table" then
    return nil
  end
  local keep <close> = keeping()
  for i = 1, 2 do
    if type(given[i]) == "userdata" and tostring(given[i]):find "^ipc%.shm" then
      keep[#keep + 1] = given[i]
    end
  end
  if #keep < 2 then
    return nil
  end
  release(keep)
  return given[1], given[2]
end

--- Connects to such a listener; `ipc.connect` calls it.
-- @string rest of the address
-- @tparam table options `timeout`, also of this call; `retry`; `maxsize`: what the
-- listener's rings must carry, and no longer messages are received (below 1,024:
-- as the listener says). What the rings are like is the listener's to say
-- @treturn channel; or nil, message, errno: ENOENT when nobody listens,
-- ECONNREFUSED when the listener goes before it accepts, EMSGSIZE when its rings
-- carry less than `maxsize`, `"timeout"`
function handover.connect(rest, options)
  local path = place(rest, options)
  local deadline = clock.deadline(options.timeout)
  local socket <close>, message, errno = core.socket.connect(path, {
    timeout = options.timeout, retry = options.retry, handles = 2,
    maxsize = options.maxsize and math.max(options.maxsize, WELCOME), -- bounds its ends, too
  }, "unix")
  if not socket then
    return nil, message, errno
  end
  local given
  given, message, errno = socket:get(clock.left(deadline))
  if errno == E.EPIPE or errno == E.ECONNRESET then
    return nil, ("ipc.connect: %s: the listener has gone"):format(rest), E.ECONNREFUSED
  elseif errno and errno ~= E.EBADMSG then
    return nil, message, errno
  end
  local r, w = ends_of(given)
  if not r then
    return nil, "ipc.connect: not a listener of ours", E.EPROTO
  end
  local keep <close> = keeping(r, w)
  if options.maxsize and w:maxsize() < options.maxsize then
    return nil, ("ipc.connect: %s: maxsize is %d, but its messages have %d bytes at most"):format(
      rest, options.maxsize, w:maxsize()), E.EMSGSIZE
  end
  local both = ipc.duplex(r, w)
  both:settimeout(options.timeout)
  release(keep)
  return both
end

return handover
