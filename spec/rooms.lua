-- The rooms that the contract is tried on, one row each: spec/contract_spec.lua
-- runs every promise on every row. A new mechanism joins by one row. Rows of
-- mechanisms that this system has not are left out.
--
-- A row: `name`; `room`; `mechanism`, its row of ipc.mechanisms(); `can`, the
-- capabilities there; `both`: both ends send and receive; `whole`: a message is
-- out or not, never half; `ends`: one side's close is told to the other;
-- `shares`: an end that is given to a child stays usable here, too;
-- `keeps_writer`: so does a writer; `options`: open takes options; `remote`: the
-- end ("reader" or "writer") that is in another process, behind a proxy;
-- `lossy`: what does not fit is dropped instead of waited for; `late`: that the
-- receiver has gone ("killed": that it was killed) is told by a later send;
-- `memory`: what pollfd tells is not where the messages are; `sole`: each end is
-- made for one handle, which dup says; `answers`: a message's tag is where
-- it came from, what is sent with it goes there; `every`: each receiver gets
-- every message; `counts`: the tag is how many of them it lost; `tells`: who
-- sends is told that nobody receives any more (as `ends` unless said);
-- `once`: the sender came through a socket and cannot be opened again here: no dup;
-- `schedules`: open runs a scheduler of its own, so it is not tried under
-- another one (what it opens is as another row's);
-- `open(options)` -> the end that tests receive from, the one they send to.
local ipc = require "ipc"

local mechanism = {}
for _, row in ipairs(ipc.mechanisms()) do
  mechanism[row.name] = row
end

local rooms = {}

local function add(row)
  row.mechanism = mechanism[row.mechanism]
  if not row.mechanism then return end
  row.room = row.room or row.mechanism.room
  row.can = row.can or row.mechanism.capabilities
  if row.both == nil then
    row.both = row.mechanism.direction == "both ways"
  end
  -- Any number of processes may send what cannot be torn apart.
  if row.whole == nil then
    row.whole = row.can.many_writers
  end
  if row.ends == nil then
    row.ends = row.can.liveness
  end
  if row.tells == nil then
    row.tells = row.ends
  end
  row.options = row.options ~= false
  rooms[#rooms + 1] = row
end

local function with(options, more)
  local all = {}
  for _, t in ipairs { options or {}, more } do
    for name, value in pairs(t) do all[name] = value end
  end
  return all
end

local function pair(address, more)
  return function(options) return ipc.pair(address, with(options, more or {})) end
end

local function pipe(more)
  return function(options) return ipc.pipe(with(options, more or {})) end
end

-- Two pipes made into one channel; the options are those of the parts.
local function duplex(options)
  local r1, w1 = assert(ipc.pipe(options))
  local r2, w2 = assert(ipc.pipe(options))
  return ipc.duplex(r1, w2), ipc.duplex(r2, w1)
end

-- One object with two handles on it; its name goes at once, so that nothing
-- stays behind whatever becomes of them.
local names = 0

local function removed(constructor, format)
  return function(options)
    names = names + 1
    local name = format:format(ipc.pid(), names)
    -- All of a user's queues share RLIMIT_MSGQUEUE.
    local r, message, errno = ipc[constructor](name, "r", with(options, { maxmsg = 4 }))
    if not r then return r, message, errno end
    local w = assert(ipc[constructor](name, "w", options))
    assert(r:remove())
    return r, w
  end
end

-- TCP's buffers grow to megabytes by themselves; tests fill them.
local SMALL <const> = { capacity = 32 << 10 }

-- Where a test's sockets have their names; they go with them.
local sockets = 0
local function socket()
  sockets = sockets + 1
  return ("unix:/tmp/ipc-rooms-%d-%d.sock"):format(ipc.pid(), sockets)
end

-- A client and the end that a listener gives for it; the client is the sender.
local function connected(address, more)
  return function(options)
    local all = with(options, more or {})
    local l, why, errno = ipc.listen(address or socket(), all)
    if not l then return l, why, errno end
    local w = assert(ipc.connect(l:address(), all))
    local r = assert(l:accept(20))
    l:close()
    return r, w
  end
end

-- One System V queue with two handles on it. A third removes it when this process
-- ends, whatever becomes of them; or the end of this module, which busted loads
-- anew for every file.
local owners = setmetatable({ pid = ipc.pid(), ids = {} }, { __gc = function(list)
  for _, id in ipairs(list.pid == ipc.pid() and list.ids or {}) do
    local queue <close> = ipc.sysv(nil, "rw", { id = id })
    if queue then queue:remove() end
  end
end })

local function numbered(options)
  local owner = assert(ipc.sysv("private", "rw", { temporary = true }))
  owners[#owners + 1], owners.ids[#owners + 1] = owner, owner:id()
  local all = with(options, { id = owner:id() })
  local r, message, errno = ipc.sysv(nil, "r", all)
  if not r then return r, message, errno end
  return r, assert(ipc.sysv(nil, "w", all))
end

-- ---- named pipes

local paths = {}

-- What children that were killed have left, too.
setmetatable(paths, { __gc = function(list)
  for _, path in ipairs(list) do
    if path:find("%." .. ipc.pid() .. "%.%d+$") then os.remove(path) end
  end
end })

local function fifo(more)
  return function(options)
    -- Each spec file loads this one anew.
    local path = ("/tmp/lua-ipc-rooms.%p.%d.%d"):format(paths, ipc.pid(), #paths + 1)
    paths[#paths + 1] = path
    local all = with({ temporary = true }, with(options, more or {}))
    -- Its writer is opened next, by this very process.
    local r, message, errno = ipc.fifo(path, "r", with(all, { retry = false }))
    if not r then return r, message, errno end
    return r, assert(ipc.fifo(path, "w", all))
  end
end


-- What one process opens by the name to receive, and another to send.
local function named(address, more)
  return function(options)
    local all = with(options, more or {})
    local text = address or socket()
    local r, why, errno = ipc.open(text, "r", all)
    if not r then return r, why, errno end
    local w
    w, why, errno = ipc.open(r:address(), "w", all)
    if not w then
      r:close()
      return w, why, errno
    end
    return r, w
  end
end

-- ---- shared memory and mapped files

local RING <const> = { capacity = 64 << 10 } -- tests fill it

local function queue(more)
  return function(options) return ipc.queue(with(options, with(RING, more or {}))) end
end

-- A side made for one has no second.
local sole = mechanism["shared memory"]
  and with(mechanism["shared memory"].capabilities, { many_readers = false, many_writers = false })

-- What the collector or a kill left: neither removes names.
local left = setmetatable({ pid = ipc.pid() }, { __gc = function(list)
  for _, path in ipairs(list.pid == ipc.pid() and list or {}) do os.remove(path) end
end })

-- Two handles on one name.
local function ring(constructor, format)
  return function(options)
    names = names + 1
    local name = format:format(ipc.pid(), paths, names)
    local all = with(options, RING)
    local r, message, errno = ipc[constructor](name, "r", all)
    if not r then return r, message, errno end
    local w = assert(ipc[constructor](name, "w", all))
    left[#left + 1] = (constructor ~= "mmap" and "/dev/shm" or "") .. name
    return r, w
  end
end

local has_v6 = (function()
  local l = ipc.listen "tcp:[::1]:0"
  return l and l:close()
end)()

-- ---- a process: one end is here, the other is its ipc.parent

local function serve(questions, answers)
  for call in questions:values() do
    local method = ipc.parent[call[1]]
    answers:put(table.pack(pcall(method, ipc.parent, table.unpack(call, 2, call.n))))
  end
end

local Proxy = {}

-- A stand-in for the child's end: every method is called there.
function Proxy:__index(method)
  return function(_, ...)
    assert(self.questions:put(table.pack(method, ...)))
    local answer = assert(self.answers:get(20))
    if not answer[1] then error(answer[2], 2) end
    return table.unpack(answer, 2, answer.n)
  end
end

function Proxy:__gc() self.questions:close() end

local function process()
  local questions, ask = assert(ipc.pipe())
  local answers, answer = assert(ipc.pipe())
  local child = assert(ipc.fork(serve, questions, answer))
  return child, setmetatable({ questions = ask, answers = answers }, Proxy)
end

-- ---- the rows

add { name = "pipe", mechanism = "pipe", open = pipe() }
add { name = "pipe of packets", mechanism = "pipe, packets", open = pipe { packet = true } }
add { name = "duplex pipe", mechanism = "pipe", both = true, open = pipe { duplex = true } }
add { name = "duplex of two pipes", mechanism = "pipe", both = true, open = duplex }
add { name = "fifo", mechanism = "fifo", whole = false, keeps_writer = true, open = fifo() }
-- One has no name, so that a second writer may find no lock to take.
add {
  name = "duplex fifo", mechanism = "fifo", both = true,
  can = mechanism.fifo and with(mechanism.fifo.capabilities, { many_writers = false }),
  open = pair "fifo",
}
add { name = "unix stream", mechanism = "unix stream", open = pair "unix" }
add { name = "unix seqpacket", mechanism = "unix seqpacket", open = pair "unix?type=seqpacket" }
add { name = "unix datagram", mechanism = "unix datagram", open = pair "unix?type=datagram" }
add { name = "tcp", mechanism = "tcp", late = true, open = pair("tcp", SMALL) }
add { name = "udp", mechanism = "udp", lossy = true, open = pair "udp" }
add { name = "unix stream, connected", mechanism = "unix stream", open = connected() }
-- Without marks an empty packet would be the end, unless both sides pad.
if not (os.getenv "IPC_WITHOUT" or ""):find "passcred" then
  add {
    name = "unix seqpacket, connected", mechanism = "unix seqpacket",
    open = connected(nil, { type = "seqpacket" }),
  }
end
if has_v6 then
  add { name = "tcp v6, connected", mechanism = "tcp", late = true, open = connected("tcp:[::1]:0", SMALL) }
end
add { name = "unix stream by name", mechanism = "unix stream", both = false, open = named() }
add { name = "tcp by name", mechanism = "tcp", both = false, late = true, open = named("tcp:0", SMALL) }
add {
  name = "unix datagram by name", mechanism = "unix datagram", both = false,
  open = named(nil, { type = "datagram" }),
}
add { name = "udp by name", mechanism = "udp", both = false, lossy = true, answers = true, open = named "udp:0" }
add { name = "POSIX queues", mechanism = "POSIX queue", open = pair("mqueue", { maxmsg = 4 }) }
add {
  name = "POSIX queue by its name", mechanism = "POSIX queue", both = false, shares = true,
  open = removed("mqueue", "/ipc-spec-%d-%d"),
}
add { name = "System V queues", mechanism = "System V queue", ends = true, open = pair "sysv" }
add {
  name = "System V queue by its number", mechanism = "System V queue", both = false, shares = true,
  open = numbered,
}
-- Who was killed told nobody: the kernel is asked now and then.
local function memory(row)
  row.late, row.memory = "killed", true
  add(row)
end

memory { name = "queue in memory", mechanism = "shared memory", both = false, open = queue() }
memory {
  name = "queue in memory, one to one", mechanism = "shared memory", both = false,
  can = sole, whole = true, sole = true, open = queue { writers = 1, readers = 1 },
}
memory { name = "queue in memory, leases", mechanism = "shared memory", both = false, open = queue { lease = true } }
memory { name = "shared memory, both ways", mechanism = "shared memory", open = pair("shm", RING) }
memory {
  name = "shared memory by its name", mechanism = "shared memory", both = false, shares = true,
  keeps_writer = true, open = ring("shm", "/ipc-rooms-%d-%p-%d"),
}
memory { name = "memory maps, both ways", mechanism = "memory map", open = pair("mmap", RING) }
memory {
  name = "memory map by its name", mechanism = "memory map", both = false, shares = true, keeps_writer = true,
  open = ring("mmap", "/tmp/ipc-rooms-%d-%p-%d.ring"),
}
-- Each subscriber gets every message; how many it lost comes as the tag.
local function broadcast(row)
  row.mechanism, row.every, row.counts, row.tells = "broadcast", true, true, false
  memory(row)
end

broadcast {
  name = "broadcast", both = false, lossy = true,
  open = function(options) return ipc.broadcast(with(options, RING)) end,
}
broadcast {
  name = "broadcast, holding", both = false,
  open = function(options) return ipc.broadcast(with(options, with(RING, { slow = "hold" }))) end,
}
broadcast { name = "broadcasts, both ways", both = true, open = pair("broadcast?slow=hold", RING) }
broadcast {
  name = "broadcast by its name", both = false, shares = true, keeps_writer = true, lossy = true,
  open = ring("broadcast", "/ipc-rooms-%d-%p-%d.cast"),
}

add {
  name = "process, receiving from it", mechanism = "unix stream", room = "process",
  options = false, remote = "writer", open = process,
}
add {
  name = "process, sending to it", mechanism = "unix stream", room = "process",
  options = false, remote = "reader",
  open = function()
    local child, proxy = process()
    return proxy, child
  end,
}

-- The same media as streams of bytes.
rooms.streams = {
  { name = "pipe", open = pipe { unit = "stream" } },
  { name = "duplex pipe", both = true, open = pipe { unit = "stream", duplex = true } },
  {
    name = "duplex of two pipes", both = true,
    open = function(options) return duplex(with(options, { unit = "stream" })) end,
  },
  { name = "fifo", open = fifo { unit = "stream" } },
  { name = "duplex fifo", both = true, open = pair("fifo", { unit = "stream" }) },
  { name = "unix stream", both = true, open = pair("unix", { unit = "stream" }) },
  { name = "tcp", both = true, open = pair("tcp", with(SMALL, { unit = "stream" })) },
  { name = "tcp by name", open = named("tcp:0", with(SMALL, { unit = "stream" })) },
}

function rooms.find(name)
  for _, row in ipairs(rooms) do
    if row.name == name then return row end
  end
  error("no row " .. name)
end

function rooms.is_proxy(object) return getmetatable(object) == Proxy end

-- A client of shared memory waits until it is accepted: two tasks, one for each.
local lobbies = 0

local function handed_over(options)
  lobbies = lobbies + 1
  local address = ("shm:/ipc-rooms-%d-%p-%d"):format(ipc.pid(), rooms, lobbies)
  local l <close>, why, errno = ipc.listen(address, options)
  if not l then return l, why, errno end
  local tasks = require("spec.support.scheduler").new()
  local r, w
  tasks:go(function() w, why, errno = ipc.connect(address, options) end)
  tasks:go(function() r = assert(l:accept(20)) end)
  tasks:run(20)
  ipc.scheduler(nil)
  if not w then return w, why, errno end
  return r, w
end

-- Where descriptors cannot be opened again, memory without a name has one that
-- nobody is told, who received it neither.
local function hidden_names()
  local list <close> = assert(io.popen "ls -a /dev/shm 2>/dev/null")
  return select(2, list:read("a"):gsub("%f[^\n\0]%.ipc%.%x+\n", ""))
end

local function hidden()
  local r, w = ipc.queue()
  if not r then return false end
  local there = hidden_names() -- and who was killed left some, which that has swept
  r:close()
  w:close()
  return hidden_names() < there
end

add {
  name = "shared memory, connected", mechanism = "shared memory", late = "killed", memory = true,
  once = hidden(),
  schedules = true,
  open = handed_over,
}

return rooms
