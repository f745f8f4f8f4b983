-- What crowd.c does, through this library: messages of 64 bytes from many
-- writers to many readers; prints ns a message. Arguments: writers, readers,
-- sole | many (what the queue is made for) | broadcast, seconds [, sent].
-- Of a broadcast every reader gets every message, or loses some: what counts
-- is what one reader gets, or with "sent" what the writer sent.

local ipc = require "ipc"
local measure = dofile "bench/measure.lua"

local writers, readers, seconds = tonumber(arg[1]), tonumber(arg[2]), tonumber(arg[4])
local kind, what = arg[3], arg[5] or "got"
assert(seconds, "four arguments, see the source")

local SMALL = 64
local CAPACITY = 1 << 20
local CHUNK = 64    -- messages between two looks at the clock
local PATIENCE = 60 -- seconds until a benchmark counts as hung

local name = ("/ipc-bench.%d"):format(ipc.pid())

-- In a child: on its core, waits for the others.
local function ready(core)
  measure.pin(core % ipc.cpus())
  assert(ipc.parent:send "ready")
  return string.unpack("dd", assert(ipc.parent:recv(PATIENCE)))
end

-- Each returns how many messages it handled between the two moments.
local function write(i, w)
  w = w or assert(ipc.broadcast(name, "w", { capacity = CAPACITY }))
  local message = ("x"):rep(SMALL)
  local begin, finish = ready(2 * i)
  local sent, now = 0, ipc.now()
  while now < finish do
    local n = now >= begin and CHUNK or 0
    for _ = 1, CHUNK do
      assert(w:send(message))
    end
    now = ipc.now()
    sent = sent + (now < finish and n or 0)
  end
  w:close()
  return sent
end

local function read(i, r)
  r = r or assert(ipc.broadcast(name, "r", { capacity = CAPACITY }))
  local begin, finish = ready(2 * i + 1)
  local got, m, why = 0, "", nil
  while m do
    local n = 0
    while n < CHUNK do
      m, why = r:recv(PATIENCE)
      if not m then break end
      n = n + 1
    end
    local now = ipc.now()
    got = got + (now >= begin and now < finish and n or 0)
  end
  assert(why == "closed", why)
  return got
end

local cores = ipc.cpus()
local children = {}

-- `mine` goes along; the others' ends do not.
local function start(f, i, mine)
  local child = assert(ipc.fork(function()
    local _ = mine
    return f(i, mine)
  end))
  children[#children + 1] = child
  assert(child:recv(PATIENCE) == "ready")
end

assert(cores > 1, "one core")
local r, w
if kind ~= "broadcast" then
  local sole = kind == "sole" and 1 or nil
  r, w = assert(ipc.queue { capacity = CAPACITY, writers = sole, readers = sole })
end
for i = 0, writers - 1 do
  start(write, i, w and (i < writers - 1 and assert(w:dup()) or w))
end
for i = 0, readers - 1 do
  start(read, i, r and (i < readers - 1 and assert(r:dup()) or r))
end

local begin = ipc.now() + seconds / 10
for _, child in ipairs(children) do
  assert(child:send(string.pack("dd", begin, begin + seconds)))
end
local sent, got = 0, 0
for i, child in ipairs(children) do
  local _, n = assert(child:wait(PATIENCE))
  child:close()
  if i <= writers then
    sent = sent + n
  else
    got = got + n
  end
end
local n = what == "sent" and sent or kind == "broadcast" and got / readers or got
assert(n > 0, "nothing came")
print(("%.1f"):format(seconds / n * 1e9))
