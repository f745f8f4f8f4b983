--- Listening and connecting where the mechanism itself has neither: a known
-- queue or FIFO is the lobby, and each client gets a private pair of its own.
--
-- Of FIFOs the client makes both, has both open, and tells their name in the
-- lobby; of queues each side makes what it receives from and tells the other its
-- name, the client in the lobby, the listener in its first message on the
-- client's. A name is removed as soon as both sides have it open.
-- @module ipc.rendezvous
local clock = require "ipc.clock"
local core = require "ipc.core"

local ipc = core.flat
local E = ipc.errno
local rendezvous = {}

-- What only a mechanism knows: `offer` makes what a client receives from and says
-- hello's text, and gives what makes its sending side of the welcome's; `answer`
-- is the listener's half, its two sides and the welcome's text; `blank` is a name
-- for trying options; `there` tells whether a lobby has its listener still; `sweep`
-- removes what pairs of killed processes have left; `watch` gives what tells whether a
-- process at the other end lives, by what the kernel knows.
-- What they open they put into `keep`.
local kinds = {}

local TICK <const> = 0.2 -- seconds between looks for a listener
local HELLO <const> = 1024 -- bytes, at most

local made = 0

-- A name that nobody else has: pids differ between processes, the count within
-- one, the random number between pids used again.
local function token()
  made = made + 1
  return ("%d-%d-%x"):format(ipc.pid(), made, math.random(0))
end

-- Things to close unless they are all released.
local keeper = {
  __close = function(list)
    for i = #list, 1, -1 do
      list[i]:close()
    end
  end,
}

local function keeping() return setmetatable({}, keeper) end

-- Hands on what an opening answers.
local function kept(keep, channel, message, errno)
  keep[#keep + 1] = channel
  return channel, message, errno
end

local function release(keep)
  for i = #keep, 1, -1 do
    keep[i] = nil
  end
end

-- Options for the lobby belong to it; the rest are the private channels'.
local lobby_only = {
  create = true, temporary = true, retry = true, permissions = true, keepalive = true,
  project = true, readers = true,
}

local function private(options, more)
  local all = {}
  for name, value in pairs(options) do
    if not lobby_only[name] then
      all[name] = value
    end
  end
  for name, value in pairs(more) do
    all[name] = value
  end
  return all
end

-- What a side makes to receive from, and what the other opens of it. All POSIX
-- queues of a user share one limit (RLIMIT_MSGQUEUE): a client's hold little.
local function own(options, scheme)
  return private(options, {
    create = "new", temporary = true, permissions = options.permissions,
    maxmsg = scheme == "mqueue" and (options.maxmsg or 4) or nil,
  })
end

-- Of a FIFO either side is the only writer.
local function theirs(options, scheme)
  return private(options, {
    create = false, writers = scheme == "fifo" and (options.writers or 1) or nil,
  })
end

-- Opens under new names until one is free.
local function fresh(keep, room, prefix, suffix, options)
  for _ = 1, 100 do
    local name = token()
    local channel, message, errno = kept(keep, room.open(prefix .. name .. suffix, "r", options))
    if channel or errno ~= E.EEXIST then
      return channel, channel and name or message, errno
    end
  end
  return nil, "ipc.connect: no free name", E.EEXIST
end

local watches = setmetatable({}, { __mode = "k" }) -- channel -> what `watch` gave

-- The two as one channel.
local function both_ways(kind, r, w)
  local both = ipc.duplex(r, w)
  watches[both] = kind.watch(r, w)
  return both
end

-- What tells of a channel that was connected here whether a process at its other end lives;
-- nil: nothing does, or the channel itself.
function rendezvous.watch(channel)
  return watches[channel]
end

local function valid_name(name)
  return type(name) == "string" and #name <= 64 and not name:find "[^%w-]"
end

-- Removes what a dead client left.
local function clear(room, names)
  for _, name in ipairs(names) do
    local old <close> = room.open(name, "r", { create = false })
    if old then
      old:remove()
    end
  end
end

function kinds.fifo()
  local room = core.fifo

  local function offer(keep, rest, options)
    local r, name, errno = fresh(keep, room, rest .. ".", ".down", own(options, "fifo"))
    if not r then
      return nil, name, errno
    end
    local up = rest .. "." .. name .. ".up"
    local first, message, number = kept(keep, room.open(up, "r", own(options, "fifo")))
    if not first then
      return nil, message, number
    end
    local w
    w, message, number = kept(keep, room.open(up, "w", theirs(options, "fifo")))
    if not w then
      return nil, message, number
    end
    return r, name, function()
      r:remove()
      first:close() -- and removes it
      return w
    end
  end

  -- Reading first: a writer that came and went would be the client's end.
  local function answer(keep, rest, name, options)
    local path = rest .. "." .. name
    local r, message, errno = kept(keep, room.open(path .. ".up", "r", theirs(options, "fifo")))
    local w
    if r then
      w, message, errno = kept(keep, room.open(path .. ".down", "w", theirs(options, "fifo")))
    end
    if errno == E.ENXIO or errno == E.ENOENT then -- the client is dead
      clear(room, { path .. ".up", path .. ".down" })
    end
    if not w then
      return nil, message, errno
    end
    return r, w, true, function()
      r:remove()
      w:remove()
    end
  end

  return {
    valid = valid_name, welcome = function(value) return value == true end,
    offer = offer, answer = answer,
    blank = function(rest) return rest .. "." .. token() end,
    there = function(lobby) return lobby:reopen(0) end, -- does nothing if it is
    sweep = function() end, watch = function() end,
  }
end

function kinds.mqueue()
  local room = core.mqueue

  -- Who receives from a queue holds it: that ends with the last process that has it open.
  local function make(keep, suffix, options)
    local r, name, errno = fresh(keep, room, "/ipc.", suffix, own(options, "mqueue"))
    if r then
      core.rpc.hold(r)
    end
    return r, name, errno
  end

  local function offer(keep, _, options)
    local r, name, errno = make(keep, ".down", options)
    return r, name, r and function(up)
      local w, message, number = kept(keep, room.open("/ipc." .. up .. ".up", "w", theirs(options, "mqueue")))
      if w then
        w:remove() -- both sides have it: the name has done its work
      end
      return w, message, number
    end or errno
  end

  local function answer(keep, _, name, options)
    local down = "/ipc." .. name .. ".down"
    local w, message, errno = kept(keep, room.open(down, "w", theirs(options, "mqueue")))
    if not w then
      return nil, message, errno
    end
    local r, mine, number = make(keep, ".up", options)
    if not r then
      return nil, mine, number
    end
    return r, w, mine, function() w:remove() end
  end

  return {
    valid = valid_name, welcome = valid_name, offer = offer, answer = answer,
    blank = function() return "/ipc." .. token() end, sweep = function() end,
    watch = function(_, w)
      return core.rpc.held(w) and function() return core.rpc.held(w) ~= false end or nil
    end,
    there = function(_, rest)
      local lobby, message, errno = room.open(rest, "w", { create = false })
      if lobby then
        lobby:close()
      end
      return lobby, message, errno
    end,
  }
end

-- Bits of permissions that mean nothing of a queue: those made here have them.
local MARK <const> = tonumber("111", 8)

local function marked(permissions)
  local bits = type(permissions) == "string" and permissions:find "^0?[0-7][0-7][0-7]$" and tonumber(permissions, 8)
  if permissions ~= nil and not bits then
    return permissions -- the core says what is wrong with it
  end
  return ("%04o"):format((bits or tonumber("600", 8)) | MARK)
end

-- Of a line of the system's list: key 0, id, permissions, the processes that sent and
-- received last, user, creator.
local LINE <const> = "^%s*0%s+(%d+)%s+(%d+)%s+%d+%s+%d+%s+(%d+)%s+(%d+)%s+(%d+)%s+%d+%s+(%d+)%s"

local function is_dead(pid)
  pid = math.tointeger(tonumber(pid))
  return pid > 0 and not core.rpc.alive(pid)
end

-- Who has made what the other end receives from, has received last there, or has sent last
-- from there: what was made here has a message of our own first.
local function watch_queues(r, w)
  local first = w:stat()
  return first and function()
    local from, to = r:stat(), w:stat()
    return not (from and to and is_dead(first.last_recv_pid) and is_dead(to.last_recv_pid)
      and (from.last_send_pid == ipc.pid() or is_dead(from.last_send_pid)))
  end
end

-- Removes the queues of connections whose processes are all dead, where the system
-- lists them: one without a key has no name by which somebody else could come for it.
local function sweep_queues()
  local list <close> = io.open "/proc/sysvipc/msg"
  for line in list and list:lines() or function() end do
    local id, bits, sender, receiver, user, creator = line:match(LINE)
    if id and tonumber(bits, 8) & MARK == MARK and user == creator and is_dead(sender) and is_dead(receiver) then
      local queue = ipc.sysv(nil, "w", { id = math.tointeger(tonumber(id)), temporary = true })
      if queue then
        queue:close() -- and removes it
      end
    end
  end
end

function kinds.sysv()
  -- From the beginning a queue says whose it is: who has received last.
  local function make(keep, options)
    local all = own(options, "sysv")
    all.permissions = marked(all.permissions)
    local r, message, errno = kept(keep, ipc.sysv("private", "r", all))
    if not r then
      return nil, message, errno
    end
    local w <close> = ipc.sysv(nil, "w", { id = r:id() })
    local ok = w and w:send("", nil, 0) and r:recv(0)
    return ok and r, ok and r:id() or "ipc.connect: the queue was removed", E.EIDRM
  end

  -- Whether nobody but a living process that has made it for this has used it.
  local function is_fresh(stat)
    return stat and stat.key == 0 and stat.messages == 0 and stat.last_send_pid == stat.last_recv_pid
      and stat.last_recv_pid > 0
  end

  local function reach(keep, id, options)
    local all = theirs(options, "sysv")
    all.id = id
    local w, message, errno = ipc.sysv(nil, "w", all)
    -- Only what a client has made for this: somebody else's queue has a key.
    local stat = w and w:stat()
    if stat and stat.key ~= 0 then
      w:close()
      return nil, "ipc.connect: not a private queue", E.EPERM
    elseif is_fresh(stat) then -- what the other leaves when it is killed is removed here
      w:close()
      all.temporary = true
      w, message, errno = ipc.sysv(nil, "w", all)
    end
    return kept(keep, w, message, errno)
  end

  local function valid(id) return math.type(id) == "integer" and id >= 0 and id < 1 << 31 end

  return {
    valid = valid, welcome = valid,
    offer = function(keep, _, options)
      local r, id, errno = make(keep, options)
      return r, id, r and function(up) return reach(keep, up, options) end or errno
    end,
    answer = function(keep, _, id, options)
      local w, message, errno = reach(keep, id, options)
      if not w then
        return nil, message, errno
      end
      local r, mine, number = make(keep, options)
      if not r then
        return nil, mine, number
      end
      return r, w, mine, function() end
    end,
    blank = function(rest) return rest end,
    there = function(lobby) return lobby:stat() end, sweep = sweep_queues, watch = watch_queues,
  }
end

local function lobby_options(options, more)
  local all = {
    permissions = options.permissions, project = options.project, timeout = options.timeout,
  }
  for name, value in pairs(more) do
    all[name] = value
  end
  return all
end

-- Raises what the core says of the options; they are our second argument.
local function checked(ok, ...)
  if not ok then
    local message = ...
    if type(message) == "string" then
      message = message:gsub("^bad argument #3 to", "bad argument #2 to")
    end
    error(message, 0) -- address.lua says whose fault it is
  end
  return ...
end

local function guarded(fn, ...) return checked(pcall(fn, ...)) end

-- All options, by opening what is not there; nothing waits and nothing is made.
local function check_options(kind, rest, options, scheme)
  local all = {}
  for name, value in pairs(options) do
    all[name] = value
  end
  if all.create == nil or all.create == true or all.create == "new" then
    all.create = false
  end
  if all.retry == true then
    all.retry = false
  elseif math.type(all.retry or 0) and all.retry == all.retry then
    all.retry = 0
  end
  local found = guarded(core[scheme].open, kind.blank(rest), "r", all)
  if found then -- another's queue
    found:close()
  end
end

-- Raises if the address cannot be a lobby's.
local function check_address(rest, scheme)
  if scheme == "sysv" and (rest == "" or rest == "private" or tonumber(rest) == 0) then
    error("bad argument #1 to '?' (a listener needs a key or path)", 0)
  end
end

-- ---- listening

local Listener = {}
Listener.__index = Listener
Listener.__name = "ipc.listener"
Listener.__metatable = "ipc"

-- Of a FIFO: the descriptors and the name belong to `claim`, which reads
-- nothing; the lobby can be opened anew.
local function fifo_lobby(rest)
  return core.fifo.open(rest, "r", { create = false, keepalive = true, maxsize = HELLO })
end

-- What came was no frame, so nothing tells where the next begins: what is there
-- is dropped.
function Listener:renew()
  local drain <close> = core.fifo.open(self.rest, "r", { create = false, unit = "stream" })
  for _ = 1, 64 do -- who goes on writing is read from the start of what comes then
    if not drain or not drain:recv(0) then
      break
    end
  end
  local lobby, message, errno = fifo_lobby(self.rest)
  if not lobby then
    return nil, message, errno
  end
  local old = self.lobby
  self.lobby, self.lost = lobby, false
  old:close()
  return true
end

-- What a client wrote: a value, or false when that is none; or nil, message, errno.
function Listener:hello(timeout)
  if self.lost then
    local ok, message, errno = self:renew()
    if not ok then
      return nil, message, errno
    end
  end
  local bytes, message, errno = self.lobby:recv(timeout)
  if not bytes and (errno == E.EBADMSG or errno == E.EMSGSIZE) then
    self.lost = self.scheme == "fifo"
    return false
  elseif not bytes then
    return nil, message, errno
  end
  local value = ipc.unpack(bytes)
  return value ~= nil and value
end

-- One client: the channel, or nil when it is gone, or nil, message, errno.
function Listener:welcome(hello)
  local kind, name = self.kind, type(hello) == "table" and hello[1]
  if not kind.valid(name) then
    return nil
  end
  local keep <close> = keeping()
  local r, w, mine, done = kind.answer(keep, self.rest, name, self.options)
  if not r then
    local message, errno = w, mine
    if errno == E.EMFILE or errno == E.ENFILE or errno == E.ENOMEM then
      return nil, message, errno
    end
    return nil
  end
  if not w:put({ mine }, nil, 0) then
    return nil
  end
  done()
  local client = both_ways(kind, r, w)
  release(keep)
  return client
end

function Listener:accept(timeout)
  clock.check("accept", timeout)
  if timeout == nil then
    timeout = self.patience
  end
  local deadline = clock.deadline(timeout)
  repeat
    if self.closed then
      return nil, "closed", E.EPIPE
    end
    local hello, message, errno = self.pending, nil, nil
    if hello == nil then
      hello, message, errno = self:hello(clock.left(deadline))
    end
    if hello == nil then
      return nil, message, errno
    end
    local client, problem, number = self:welcome(hello)
    if number then
      self.pending = hello
      return nil, problem, number
    end
    self.pending = nil
    if client then
      self.accepted = self.accepted + 1
      return client
    end
    self.refused = self.refused + 1
  until deadline and ipc.now() >= deadline
  return nil, "timeout", E.ETIMEDOUT
end

function Listener:close()
  self.closed = true
  self.lobby:close()
  return not self.claim or self.claim:close()
end

Listener.__close = Listener.close
Listener.__gc = nil -- the lobby has its own

function Listener:address()
  if self.closed then
    return nil, "closed", E.EPIPE
  end
  return self.text
end

function Listener:settimeout(seconds)
  clock.check("settimeout", seconds)
  self.patience = seconds
  return true
end

function Listener:stats()
  return { accepted = self.accepted, refused = self.refused }
end

function Listener:pollfd() return self.lobby:pollfd() end
function Listener:events() return self.lobby:events() end
function Listener:timeout() return (self.pending or self.lost) and 0 or self.lobby:timeout() end

function Listener:__tostring()
  return (tostring(self.lobby):gsub("^ipc%.%w+", "ipc.listener"))
end

--- Listens in a mechanism that has no listeners of its own; `ipc.listen` calls it.
-- @string rest of the address
-- @tparam table options
-- @string scheme "fifo", "sysv" or "mqueue"
-- @treturn listener; or nil, message, errno: EADDRINUSE when another process
-- listens at the FIFO (of queues nobody can tell: listeners share the clients)
function rendezvous.listen(rest, options, scheme)
  local kind = kinds[scheme]()
  check_address(rest, scheme)
  check_options(kind, rest, options, scheme)
  kind.sweep()
  local keep <close> = keeping()
  local sole = scheme == "fifo" or nil
  local first, message, errno = kept(keep, guarded(core[scheme].open, rest, "r", lobby_options(options, {
    create = options.create, temporary = true, keepalive = true, readers = sole and 1,
  })))
  local lobby = first
  if first and sole then
    lobby, message, errno = kept(keep, fifo_lobby(rest))
  end
  if errno == E.EADDRINUSE then
    return nil, ("ipc.%s.listen: %s: somebody listens there"):format(scheme, rest), errno
  elseif not lobby then
    return nil, message, errno
  end
  local listener = setmetatable({
    lobby = lobby, claim = sole and first, kind = kind, scheme = scheme, rest = rest,
    options = options, accepted = 0, refused = 0, patience = options.timeout, lost = false,
    closed = false,
    text = scheme .. ":" .. rest:gsub("[%%?]", function(c) return ("%%%02X"):format(c:byte()) end),
  }, Listener)
  release(keep)
  return listener
end

-- ---- connecting

-- What looking for a listener answers when there is none.
local missing = {}
for _, name in ipairs { "ENOENT", "ENXIO", "ETIMEDOUT", "ESTALE", "EPIPE", "EIDRM", "EINVAL" } do
  missing[E[name] or false] = true
end

local function gone(found, _, errno) return not found and missing[errno] end

-- The listener's answer: a value, or nil, message, errno.
local function await(kind, r, lobby, rest, deadline)
  repeat
    local time = clock.left(deadline)
    local last = time and time <= TICK
    local value, message, errno = r:get(last and time or TICK)
    if value ~= nil then
      return value
    elseif errno == E.EPIPE or errno == E.ETIMEDOUT and gone(kind.there(lobby, rest)) then
      return nil, ("ipc.connect: %s: the listener has gone"):format(rest), E.ECONNREFUSED
    elseif errno ~= E.ETIMEDOUT or last then
      return nil, message, errno
    end
  until false
end

--- Connects in such a mechanism; `ipc.connect` calls it.
-- @string rest of the address
-- @tparam table options
-- @string scheme "fifo", "sysv" or "mqueue"
-- @treturn channel; or nil, message, errno: ENOENT, ENXIO when nobody listens,
-- ECONNREFUSED when the listener goes before it accepts, `"timeout"` (of a queue
-- that a killed listener left nobody knows that)
function rendezvous.connect(rest, options, scheme)
  local kind = kinds[scheme]()
  check_address(rest, scheme)
  check_options(kind, rest, options, scheme)
  kind.sweep()
  local deadline = clock.deadline(options.timeout)
  local entered <close> = keeping()
  local lobby, message, errno = kept(entered, core[scheme].open(rest, "w", lobby_options(options, {
    create = false, retry = options.retry,
  })))
  if not lobby then
    return nil, message, errno
  end
  local keep <close> = keeping()
  local r, name, finish = kind.offer(keep, rest, options)
  if not r then
    return nil, name, finish
  end
  local ok, problem, number = lobby:put({ name }, nil, clock.left(deadline))
  if not ok then
    return nil, problem, number
  end
  local welcome
  welcome, problem, number = await(kind, r, lobby, rest, deadline)
  if number then
    return nil, problem, number
  elseif type(welcome) ~= "table" or not kind.welcome(welcome[1]) then
    return nil, "ipc.connect: not a listener of ours", E.EPROTO
  end
  local w
  w, problem, number = finish(welcome[1])
  if not w then
    return nil, problem, number
  end
  local both = both_ways(kind, r, w)
  release(keep)
  return both
end

return rendezvous
