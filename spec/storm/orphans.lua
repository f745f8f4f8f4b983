-- A parent is SIGKILLed at a random moment, in the middle of starting children:
-- Lua and foreign programs, their children, and children of those. A second later
-- nothing of all that is alive.
local ipc = require "ipc"
local storm = require "spec.support.storm"

local TRIALS <const> = storm.long and 200 or 50
local MARK <const> = "STORM_ORPHAN"

-- Whose environment has this mark, zombies left out (theirs is empty).
local function marked(mark)
  local list = {}
  local found <close> = assert(io.popen("grep -lsaz '^" .. MARK .. "=" .. mark ..
    "$' /proc/[0-9]*/environ"))
  for path in found:lines() do
    local pid = path:match "%d+"
    local status <close> = io.open("/proc/" .. pid .. "/stat")
    local line = status and status:read "a" or ""
    if line:match "%) (%a)" and line:match "%) (%a)" ~= "Z" then
      list[#list + 1] = pid .. " " .. line:match "%b()"
    end
  end
  return list
end

-- The parent's whole program: as many children as it lives to start.
local PROGRAM <const> = [[
  local ipc = require "ipc"
  local kept = {}
  local function keep(p) kept[#kept + 1] = assert(p) end
  for turn = 1, 3 do
    keep(ipc.exec { "sleep", "300" })
    keep(ipc.exec { "sh", "-c", "sleep 300 & sleep 300 & wait", stdin = "pipe" })
    keep(ipc.spawn(function() ipc.sleep(300) end))
    keep(ipc.spawn(function()
      local below = {}
      for i = 1, 2 do
        below[#below + 1] = assert(ipc.spawn(function() ipc.sleep(300) end))
        below[#below + 1] = assert(ipc.exec { "sh", "-c", "sleep 300 & wait" })
      end
      ipc.sleep(300)
    end))
    keep(ipc.spawn(function() while true do end end))
  end
  print "all"
  ipc.sleep(300)
]]

local most, whole, orphans, late = 0, 0, 0, {}
for trial = 1, TRIALS do
  local mark = ("%d-%d-%d"):format(ipc.pid(), trial, math.random(1 << 30))
  -- A child of its own, which no lifeline of ours ends.
  local parent = assert(ipc.exec { arg[-1], "-e", PROGRAM, env = { [MARK] = mark }, detach = true,
    stdout = "pipe" })
  if trial % 3 == 0 then
    if parent.stdout:recv(storm.patience) then whole = whole + 1 end
    ipc.sleep(math.random() * 0.01)
  else
    ipc.sleep(math.random() * 0.06)
  end
  most = math.max(most, #marked(mark))
  assert(parent:kill "KILL")
  local from = ipc.now()
  local left = marked(mark)
  while #left > 0 and ipc.now() - from < 1 do
    ipc.sleep(0.002)
    left = marked(mark)
  end
  late[trial] = ipc.now() - from
  if #left > 0 then
    orphans = orphans + #left
    storm.failf("orphans after a second: %s", table.concat(left, ", "))
    for _, line in ipairs(left) do os.execute("kill -KILL " .. line:match "%d+") end
  end
  parent:wait(storm.patience)
  parent:close()
end
local middle, worst = storm.spread(late)
storm.say("%d parents killed, %d of them with all children, up to %d alive: %d orphans; " ..
  "gone within %.0f ms, at worst %.0f", TRIALS, whole, most, orphans, middle, worst)
storm.finish()
