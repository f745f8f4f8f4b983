-- How long the others take to go on when one process is killed: with a lock in
-- its hands, or as the last of its side. Goals: medians of 5 and 30 ms, all
-- under 100 ms. A failure is only what no load of the machine explains.
local ipc = require "ipc"
local storm = require "spec.support.storm"

local FAR <const> = 2 -- seconds
storm.metronome()
local rounds = storm.long and 200 or 30

-- A process that took a lock by hand, as the layout says, and holds it.
local function holder(name, side)
  local p = assert(ipc.fork(function()
    local ring <close> = assert(ipc.shm(name, "rw"))
    assert(storm.hold(name, side))
    ipc.parent:send "held"
    ipc.parent:recv()
    return ring
  end))
  assert(p:recv(storm.patience) == "held")
  return p
end

-- Kills `victim`; how long `survivor` then still waited for `call`.
local function measure(victim, survivor, delay)
  assert(survivor:send("go", nil, storm.patience))
  assert(survivor:recv(storm.patience) == "going")
  ipc.sleep(delay)
  local killed = ipc.now()
  assert(victim:kill "KILL")
  local done, why = survivor:get(storm.patience)
  victim:wait(storm.patience)
  victim:close()
  if not done then
    storm.fail(why)
    return storm.patience
  end
  local seconds = math.max(0, done - killed)
  if storm.net(math.floor(done * 1000) & 0xffffffff, seconds) > FAR then
    storm.failf("%.3f s to recover", seconds)
  end
  return seconds
end

-- A process that waits in `call` whenever it is told to, and tells when it was
-- through: it expects `result` and `why`.
local function waiter(open, call, result, why)
  return assert(ipc.fork(function()
    local ring
    while ipc.parent:recv() == "go" do
      if not ring or why then ring = assert(open()) end
      ipc.parent:send "going"
      local ok, message = call(ring)
      local now = ipc.now()
      assert(ok == result and (ok or message == why), message)
      ipc.parent:put(now)
      if why then ring:close() end
    end
  end))
end

local function report(what, list, goal)
  local middle, worst = storm.spread(list)
  storm.say("%-36s %4d times: median %6.2f ms (goal %2d), worst %6.2f ms (goal 100)", what, #list,
    middle, goal, worst)
end

-- The holder dies when the survivor has just begun to wait, as one does that is
-- killed between two instructions, or long after.
for _, side in ipairs { "writers", "readers" } do
  local name = storm.name()
  local keeper = assert(ipc.shm(name, "rw", { capacity = 1 << 16 }))
  local survivor = waiter(function() return ipc.shm(name, "rw") end, function(ring)
    if side == "writers" then return ring:send("x", nil, storm.patience) end
    return ring:recv(storm.patience) ~= nil
  end, true)
  for _, long in ipairs { false, true } do
    local list = {}
    for i = 1, rounds do
      if side == "readers" then assert(keeper:send "x") end
      list[i] = measure(holder(name, side), survivor, long and math.random() * 0.06 or 0)
      if side == "writers" then assert(keeper:recv(storm.patience)) end
    end
    report(("holder of the %s' lock, %s"):format(side, long and "waited for" or "at work"), list, 5)
  end
  survivor:stop(1)
  keeper:close()
end

-- A process dies with a message that it has not acknowledged, and another waits
-- for it, in take or in poll.
for _, call in ipairs { "take", "poll" } do
  local name, list = storm.name(), {}
  local keeper = assert(ipc.shm(name, "w", { capacity = 4096, lease = true, keepalive = true }))
  local function open() return ipc.shm(name, "r", { keepalive = true }) end
  local survivor = waiter(open, function(ring)
    if call == "poll" then assert(ipc.poll({ ring }, storm.patience)) end
    local ticket <close> = ring:take(call == "take" and storm.patience or 0)
    return ticket and ticket:ack()
  end, true)
  for i = 1, rounds do
    local victim = assert(ipc.fork(function()
      local ring <close> = assert(open())
      local ticket <close> = assert(ring:take(storm.patience))
      ipc.parent:send "taken"
      ipc.parent:recv()
      return ticket
    end))
    assert(keeper:send "x")
    assert(victim:recv(storm.patience) == "taken")
    list[i] = measure(victim, survivor, math.random() * 0.06)
  end
  survivor:stop(1)
  keeper:close()
  report("a lease, waited for in " .. call, list, 30)
end

-- The only writer dies, and a reader waits for the end; the only reader dies,
-- and a writer waits for room.
for _, mode in ipairs { "w", "r" } do
  local name, list = storm.name(), {}
  local other = mode == "w" and "r" or "w"
  local function open(m)
    return function() return ipc.shm(name, m, { capacity = 4096, retry = storm.patience }) end
  end
  local survivor = waiter(open(other), function(ring)
    if other == "r" then return ring:recv(storm.patience) end
    local ok, why
    repeat ok, why = ring:send(("x"):rep(500), nil, storm.patience) until not ok
    return ok, why
  end, nil, "closed")
  for i = 1, rounds do
    local victim = assert(ipc.fork(function()
      local ring <close> = assert(open(mode)())
      ipc.parent:send "there"
      ipc.parent:recv()
      return ring
    end))
    assert(victim:recv(storm.patience) == "there")
    list[i] = measure(victim, survivor, math.random() * 0.06)
  end
  survivor:stop(1)
  report(mode == "w" and "end of stream, for a reader" or "end of stream, for a writer", list, 30)
end
storm.finish()
