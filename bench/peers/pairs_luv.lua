-- What pairs.lua does, with luv: coroutines over its pipes. Arguments: pairs, seconds.
local uv = require "luv"

local count, seconds = tonumber(arg[1]), tonumber(arg[2])
local message = ("x"):rep(64)
local trips, stop = 0, false

local function open(fd)
  local p = uv.new_pipe(false)
  p:open(fd)
  return p
end

-- A reader and a writer of messages for the running coroutine.
local function channel(fd)
  local p, held, waiting = open(fd), "", nil
  p:read_start(function(_, bytes)
    held = bytes and held .. bytes
    if waiting then
      local thread = waiting
      waiting = nil
      coroutine.resume(thread)
    end
  end)
  return function()
    while held and #held < 64 do
      waiting = coroutine.running()
      coroutine.yield()
    end
    if not held then return nil end
    local m = held:sub(1, 64)
    held = held:sub(65)
    return m
  end, function(m) p:write(m) end, function() p:close() end
end

local function start(fn, ...) assert(coroutine.resume(coroutine.create(fn), ...)) end

for _ = 1, count do
  local fds = uv.socketpair(nil, nil, { nonblock = true }, { nonblock = true })
  start(function()
    local read, write, close = channel(fds[1])
    while not stop do
      write(message)
      read()
      trips = trips + 1
    end
    close()
  end)
  start(function()
    local read, write, close = channel(fds[2])
    for m in read do write(m) end
    close()
  end)
end

local took
local timer = uv.new_timer()
timer:start(math.floor(seconds * 100), 0, function()
  trips = 0
  local begin = uv.hrtime()
  timer:start(math.floor(seconds * 1000), 0, function()
    took = (uv.hrtime() - begin) / trips
    stop = true
    timer:close()
  end)
end)
uv.run()
print(took)
