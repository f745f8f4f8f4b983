-- What pingpong.c and oneway.c do with a ring, through this library; prints ns
-- for each round trip or message. Arguments: sole (a nameless queue of one
-- writer and one reader) | queue (of many) | shm | mmap (named, of many);
-- pingpong | small | many | large | place; across | one (cores), seconds.
-- "small" is send and recv, "many" sendmany and recvmany, "place" 1 MiB, of
-- which 8 bytes are written and read where they lie (sole only).

local ipc = require "ipc"
local measure = dofile "bench/measure.lua"

local kind, work, place, seconds = table.unpack(arg)
seconds = tonumber(seconds)
assert(seconds, "four arguments, see the source")

local SMALL, LARGE = 64, 1 << 20
local PATIENCE = 60 -- seconds until a benchmark counts as hung
local GATHER = 512  -- messages of one sendmany
local COUNT = { pingpong = 50, small = 10240, many = 10240, large = 16, place = 16 }

local count = assert(COUNT[work], "unknown work")
local big = work == "large" or work == "place"
local size = big and LARGE or SMALL
local message = "x" .. (" "):rep(size - 1)
local capacity = big and 4 * LARGE or 1 << 20

local function options()
  return {
    capacity = capacity, timeout = PATIENCE,
    writers = kind == "sole" and 1 or nil, readers = kind == "sole" and 1 or nil,
  }
end

-- Of two named rings the first or the second.
local me = ipc.pid()
local function attach(which, mode)
  local name = ("/ipc-bench.%d.%d"):format(me, which)
  if kind == "shm" then
    return assert(ipc.shm(name, mode, options()))
  end
  local o = options()
  o.temporary = true
  return assert(ipc.mmap((os.getenv "TMPDIR" or "/tmp") .. name, mode, o))
end

local r, w, its_r, its_w
if kind == "shm" or kind == "mmap" then
  w, r = attach(1, "w"), attach(2, "r")
else
  its_r, w = assert(ipc.queue(options()))
  r, its_w = assert(ipc.queue(options()))
end

-- What the child does with its ends, until an empty message.
local serve = {}

function serve.pingpong(from, to)
  for m in from:messages() do
    if m == "" then return end
    assert(#m == SMALL)
    assert(to:send(m))
  end
end

function serve.small(from, to)
  for m in from:messages() do
    if m == "" then return end
    assert(#m == size)
    for _ = 2, count do
      m = assert(from:recv())
      assert(#m == size)
    end
    assert(to:send "!")
  end
end

serve.large = serve.small

function serve.many(from, to)
  local got = 0
  while true do
    local list = assert(from:recvmany(GATHER))
    if list[1] == "" then return end
    for i = 1, #list do
      assert(#list[i] == SMALL)
    end
    got = got + #list
    if got == count then
      assert(to:send "!")
      got = 0
    end
  end
end

function serve.place(from, to)
  while true do
    for i = 1, count do
      local view = assert(from:peek())
      if #view == 0 then return end
      assert(#view == LARGE and view:unpack(0, "i8") == i)
      assert(view:release())
    end
    assert(to:send "!")
  end
end

local batch = {}

function batch.pingpong()
  for _ = 1, count do
    assert(w:send(message))
    assert(#assert(r:recv()) == SMALL)
  end
end

function batch.small()
  for _ = 1, count do
    assert(w:send(message))
  end
  assert(r:recv() == "!")
end

batch.large = batch.small

local list = {}
for i = 1, GATHER do
  list[i] = message
end

function batch.many()
  for _ = 1, count // GATHER do
    assert(w:sendmany(list))
  end
  assert(r:recv() == "!")
end

function batch.place()
  for i = 1, count do
    local view = assert(w:reserve(LARGE))
    view:pack(0, "i8", i)
    assert(view:commit())
  end
  assert(r:recv() == "!")
end

measure.pin(0)
local child <close> = assert(ipc.fork(function(f)
  measure.pin(place == "across" and 1 or 0)
  local from, to = its_r or attach(1, "r"), its_w or attach(2, "w")
  ipc.parent:send "ready"
  f(from, to)
end, serve[work]))
assert(child:recv(PATIENCE) == "ready")
print(("%.1f"):format(measure.run(batch[work], count, seconds)))
assert(w:send "")
assert(child:wait(PATIENCE))
w:close()
r:close()
