-- One process at a time is stopped, wherever it is, while the others go on with
-- short deadlines. Their calls end in time, nobody takes what the stopped one
-- holds, and it goes on as if nothing had been.
local ipc = require "ipc"
local storm = require "spec.support.storm"

local FAR <const> = 1 -- seconds late that no load of the machine explains
local pause = storm.long and 2 or 0.5
local rounds = storm.long and 15 or 4

storm.metronome()

local function deadline() return 0.05 + 0.15 * math.random() end

-- Seconds that a call which ended at `ended` was late, unless the caller itself
-- was stopped then.
local function late(ended, seconds, slot, stops)
  local from = ended - seconds * 1000
  for _, stop in ipairs(stops or {}) do
    if stop.slot == slot and ended >= stop.from and from <= stop.to + 1 then return 0 end
  end
  return storm.net(ended, seconds)
end

local function lateness(t, stops)
  local list = {}
  for slot = 1, #t.journals do
    for ended, us in storm.records("late." .. slot) do
      list[#list + 1] = late(ended, us / 1e6, slot, stops)
    end
    os.remove(storm.directory .. "/late." .. slot)
  end
  return list
end

local function run(t)
  t.wait = deadline
  t.late = function(slot, seconds)
    t.lates = t.lates or storm.journal("late." .. slot)
    t.lates:write(storm.record(storm.clock(), math.floor(seconds * 1e6), 0, 0))
  end
  storm.traffic(t)
  local stops = {}
  for _ = 1, rounds do
    local slot = math.random(#t.gang)
    ipc.sleep(math.random() * 0.1)
    local stop = { slot = slot, from = storm.clock() }
    assert(t.gang[slot]:kill "STOP")
    ipc.sleep(pause)
    stop.to = storm.clock()
    assert(t.gang[slot]:kill "CONT")
    stops[#stops + 1] = stop
  end
  t.gang:progress(t.journals)
  local a = t:accounts()
  local list, beyond = lateness(t, stops), 0
  local _, worst = storm.spread(list)
  for _, seconds in ipairs(list) do beyond = beyond + (seconds > 0.05 and 1 or 0) end
  storm.say("%-22s %3d stops of %.1f s, %8d messages; %d calls late, %d by more than 50 ms, " ..
    "%.1f ms at worst; %d takeovers, %d lost, %d twice, %d corrupt", t[1], rounds, pause,
    a.messages, #list, beyond, worst, a.takeovers, a.lost, a.twice, a.corrupt)
  if worst > FAR * 1000 or a.takeovers + a.lost + a.twice + a.corrupt + a.disorder > 0 then
    storm.fail(t[1])
  end
end

run { "many to many, 4 KiB", senders = 4, receivers = 4, options = { capacity = 4096 } }
run { "many to many, leases", senders = 4, receivers = 4,
  options = { capacity = 1 << 16, lease = true } }
run { "one to one", senders = 1, receivers = 1,
  options = { capacity = 8192, writers = 1, readers = 1 } }

-- Stopped with a lock in its hands for certain: the others' calls time out, and
-- work again when it has let go.
for _, side in ipairs { "writers", "readers" } do
  local name, list = storm.name(), {}
  local ring = assert(ipc.shm(name, "rw", { capacity = 4096, keepalive = true }))
  local holder = assert(ipc.fork(function()
    local mine <close> = assert(ipc.shm(name, "rw"))
    assert(storm.hold(name, side))
    ipc.parent:send "held"
    ipc.parent:recv()
    assert(storm.free(name, side))
    return mine:stats().takeovers
  end))
  assert(holder:recv(storm.patience) == "held")
  assert(holder:kill "STOP")
  local finish = ipc.now() + pause
  while ipc.now() < finish do
    local seconds, from = deadline(), ipc.now()
    local ok, _, errno
    if side == "writers" then ok, _, errno = ring:send("x", nil, seconds)
    else ok, _, errno = ring:recv(seconds) end
    list[#list + 1] = late(storm.clock(), ipc.now() - from - seconds)
    if ok or errno ~= ipc.errno.ETIMEDOUT then storm.failf("%s' lock: %s, %s", side, ok, errno) end
  end
  assert(holder:kill "CONT")
  assert(holder:send "go on")
  local ok, why = holder:wait(storm.patience)
  if not ok then storm.failf("the stopped one: %s", why) end
  if not (ring:send("x", nil, storm.patience) and ring:recv(storm.patience)) then
    storm.failf("the %s' lock is stuck", side)
  end
  local _, worst = storm.spread(list)
  local takeovers = ring:stats().takeovers
  storm.say("%-22s stopped: %d calls end %.1f ms late at worst (goal 50), %d takeovers",
    ("holder of the %s' lock"):format(side), #list, worst, takeovers)
  if worst > FAR * 1000 or takeovers > 0 then storm.failf("the %s' lock", side) end
  ring:close()
end
storm.finish()
