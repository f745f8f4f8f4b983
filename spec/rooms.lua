-- The rooms that the contract is tried on, one row each: spec/contract_spec.lua
-- runs every promise on every row. A new mechanism joins by one row. Rows of
-- mechanisms that this system has not are left out.
--
-- A row: `name`; `room`; `mechanism`, its row of ipc.mechanisms(); `can`, the
-- capabilities there; `both`: both ends send and receive; `whole`: a message is
-- out or not, never half; `options`: open takes options; `remote`: the end
-- ("reader" or "writer") that is in another process, behind a proxy;
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
  -- Any number of processes may send what cannot be torn apart, and only that.
  row.whole = row.can.many_writers
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
add { name = "unix stream", mechanism = "unix stream", open = pair "unix" }
add { name = "unix seqpacket", mechanism = "unix seqpacket", open = pair "unix?type=seqpacket" }
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
  { name = "unix stream", both = true, open = pair("unix", { unit = "stream" }) },
}

function rooms.find(name)
  for _, row in ipairs(rooms) do
    if row.name == name then return row end
  end
  error("no row " .. name)
end

function rooms.is_proxy(object) return getmetatable(object) == Proxy end

return rooms
