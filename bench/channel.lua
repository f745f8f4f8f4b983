-- What pingpong.c and oneway.c do, through a channel of this library; prints ns
-- for each round trip or message. Arguments: the mechanism's address (as
-- ipc.mechanisms() has it, or with options); pingpong | small | many | large |
-- there; across | one (cores), seconds. "small" is send and recv, "many"
-- sendmany and recvmany, "there" a recv with a timeout.

local ipc = require "ipc"
local measure = dofile "bench/measure.lua"

local address, work, place, seconds = table.unpack(arg)
seconds = tonumber(seconds)
assert(seconds, "four arguments, see the source")

local SMALL, LARGE = 64, 1 << 20
local PATIENCE = 60 -- seconds until a benchmark counts as hung
local GATHER = 512  -- messages of one sendmany
local COUNT = { pingpong = 50, small = 10240, many = 10240, large = 16, there = 128 }

local count = assert(COUNT[work], "unknown work")
local message = "x" .. (" "):rep((work == "large" and LARGE or SMALL) - 1)

local function open()
  local options = { timeout = PATIENCE }
  if work == "large" then
    options.maxsize = LARGE
    if address == "pipe" or address:find "^fifo" then
      options.capacity = LARGE
    end
  end
  local fine, a, b = pcall(ipc.pair, address, options)
  if not fine or not a or a:maxsize() < #message then
    print "too large" -- for this mechanism
    os.exit(false)
  end
  return a, b
end

if address:find "^udp" and work ~= "pingpong" then
  print "may get lost"
  os.exit(false)
end

local mine, its = open()

local serve = {}

function serve.pingpong()
  for m in its:messages() do
    if m == "" then return end
    assert(#m == SMALL)
    assert(its:send(m))
  end
end

function serve.small()
  for m in its:messages() do
    if m == "" then return end
    assert(#m == #message)
    for _ = 2, count do
      m = assert(its:recv())
      assert(#m == #message)
    end
    assert(its:send "!")
  end
end

serve.large = serve.small

function serve.many()
  local got = 0
  while true do
    local list, why = its:recvmany(GATHER)
    if not list then
      assert(why == "closed", why)
      return
    end
    if list[1] == "" then return end
    for i = 1, #list do
      assert(#list[i] == SMALL)
    end
    got = got + #list
    if got == count then
      assert(its:send "!")
      got = 0
    end
  end
end

local batch = {}

function batch.pingpong()
  for _ = 1, count do
    assert(mine:send(message))
    assert(#assert(mine:recv()) == SMALL)
  end
end

function batch.small()
  for _ = 1, count do
    assert(mine:send(message))
  end
  assert(mine:recv() == "!")
end

batch.large = batch.small

local list = {}
for i = 1, GATHER do
  list[i] = message
end

function batch.many()
  for _ = 1, count // GATHER do
    assert(mine:sendmany(list))
  end
  assert(mine:recv() == "!")
end

function batch.there()
  local start = ipc.now()
  for _ = 1, count do
    assert(mine:send(message))
  end
  local aside = ipc.now() - start
  for _ = 1, count do
    assert(#assert(its:recv(PATIENCE)) == SMALL)
  end
  return aside
end

measure.pin(0)
if work == "there" then
  print(("%.1f"):format(measure.run(batch.there, count, seconds)))
  mine:close()
  its:close()
  return
end
local child <close> = assert(ipc.fork(function(f)
  local _ = its -- moves along
  if place == "across" then
    measure.pin(1)
  end
  ipc.parent:send "ready"
  f()
end, serve[work]))
assert(child:recv(PATIENCE))
local took = measure.run(batch[work], count, seconds)
if address:find "spin=0" then
  local stats = mine:stats()
  assert(stats.sleeps > stats.received / 2, "spin = 0, and yet it does not sleep")
end
print(("%.1f"):format(took))
assert(mine:send "") -- the end, where closing does not tell
mine:close()
assert(child:wait(PATIENCE))
