-- Children by the thousand, started in every way and ended in every way at random
-- moments, some of them forgotten: each status is told as it was, no zombie stays,
-- no descriptor, no process.
local ipc = require "ipc"
local storm = require "spec.support.storm"
local E = ipc.errno

local CHILDREN <const> = storm.long and 10000 or 2000
local AT_ONCE <const> = 12

local function descriptors()
  local count <close> = assert(io.popen("ls /proc/" .. ipc.pid() .. "/fd | wc -l"))
  return count:read "n"
end

-- Our children by /proc: how many are zombies, how many live.
local function children()
  local zombies, living = 0, 0
  local list <close> = assert(io.popen "cat /proc/[0-9]*/stat 2>/dev/null")
  for line in list:lines() do
    local name, state, parent = line:match "^%d+ (%b()) (%a) (%d+)"
    if tonumber(parent) == ipc.pid() and name ~= "(sh)" and name ~= "(cat)" then
      if state == "Z" then zombies = zombies + 1 else living = living + 1 end
    end
  end
  return zombies, living
end

-- Ways to start one: what it is expected to end with is told by `kind` and the
-- number or name of the reason.
local starts = {
  function()
    local code = math.random(0, 255)
    return ipc.exec { "sh", "-c", "exit " .. code }, "exit", code
  end,
  function()
    local name = ({ "TERM", "KILL", "USR1", "ABRT" })[math.random(4)]
    return ipc.exec { "sh", "-c", "ulimit -c 0; kill -" .. name .. " $$; sleep 60" }, "signal", name
  end,
  function() return ipc.exec { "true", stdout = "pipe", stderr = "pipe" }, "exit", 0 end,
  function() return ipc.exec { "sleep", "60", stdin = "pipe" }, "killed" end,
  function()
    local n = math.random(1000)
    return ipc.spawn(function() return n end), "result", n
  end,
  function() return ipc.spawn(function() os.exit(7) end), "exit", 7 end,
  function() return ipc.spawn(function() error { 42 } end), "error" end,
  function() return ipc.spawn(function() ipc.parent:recv() end), "killed" end,
  function() return ipc.fork(function() return 1 end), "result", 1 end,
  function() return ipc.fork(function() ipc.sleep(60) end), "killed" end,
}

local told, forgotten, early = 0, 0, 0
local running = {}

local function ends(child)
  local p, kind, what = child.p, child.kind, child.what
  if kind == "killed" then -- perhaps before it could do anything
    if math.random(2) == 1 then ipc.sleep(math.random() * 0.004) end
    local ok, why = p:kill(math.random(2) == 1 and "KILL" or "TERM")
    if not ok then storm.fail("kill: " .. why) end
  elseif math.random(8) == 1 then
    if p:kill "KILL" then child.early, early = true, early + 1 end
  end
  if math.random(16) == 1 then -- whoever forgets it has not killed it
    forgotten = forgotten + 1
    if kind == "killed" or math.random(2) == 1 then p:wait(storm.patience) end
    return
  end
  local result = table.pack(p:wait(storm.patience))
  local reason = p.reason
  if result[3] == E.ETIMEDOUT then
    storm.failf("%s %s hangs", kind, tostring(what))
  elseif not reason then
    storm.failf("%s: no reason", kind)
  elseif child.early and reason.kind == "signal" and reason.signal == "KILL" then
    told = told + 1
  elseif kind == "result" and result[1] and result[2] == what
    or kind == "exit" and reason.kind == "exit" and reason.code == what
    or kind == "signal" and reason.kind == "signal" and reason.signal == what
    or kind == "error" and reason.kind == "error" and reason.value[1] == 42
    or kind == "killed" and reason.kind == "signal" then
    told = told + 1
  else
    storm.failf("%s %s ended with %s %s: %s", kind, tostring(what), reason.kind,
      tostring(reason.code or reason.signal), reason.text)
  end
  if math.random(2) == 1 then p:close() end
end

collectgarbage()
local before = descriptors()
for n = 1, CHILDREN do
  local p, kind, what = starts[math.random(#starts)]()
  if not p then
    storm.fail("start: " .. kind)
  else
    running[#running + 1] = { p = p, kind = kind, what = what }
  end
  if #running >= AT_ONCE then ends(table.remove(running, math.random(#running))) end
  if n % 500 == 0 then collectgarbage() end
end
while #running > 0 do ends(table.remove(running)) end
collectgarbage()
collectgarbage()

-- What was forgotten is reaped in passing: by the next waits.
local limit = ipc.now() + storm.patience
local zombies, living = children()
while zombies + living > 0 and ipc.now() < limit do
  ipc.sleep(0.01)
  zombies, living = children()
end
local after = descriptors()
storm.say("%d children: %d statuses told, %d forgotten, %d killed early; %d zombies, %d left, " ..
  "%+d descriptors", CHILDREN, told, forgotten, early, zombies, living, after - before)
if zombies + living > 0 then storm.fail "children stay" end
if after > before + 1 then storm.fail "descriptors leak" end -- the lifeline's is one
if told + forgotten ~= CHILDREN then storm.fail "statuses are lost" end
storm.finish()
