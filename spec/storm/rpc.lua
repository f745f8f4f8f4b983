-- Calls while processes die: a server whose workers share an address, and clients
-- that call in every way, each of them killed at random and replaced. Every call is
-- answered, by its result, "closed" or "timeout"; nobody hangs; and at the end no
-- process, no zombie, no name and no descriptor is left.
local ipc = require "ipc"
local storm = require "spec.support.storm"
local E = ipc.errno

local SECONDS <const> = storm.long and 300 or 8 -- of killing
local WORKERS <const>, CLIENTS <const> = 3, 5
local PATIENCE <const> = 5                     -- seconds that a client gives a call
local PATH <const> = storm.directory .. "/rpc.sock"
local WHERE <const> = "unix:" .. PATH

-- ---- the server

local function counter(n)
  local i = 0
  return function()
    i = i + 1
    return i <= n and i or nil
  end
end

local exports = {
  add = function(a, b) return a + b end,
  text = function(n) return ("t"):rep(n) end,
  sleep = function(seconds) ipc.sleep(seconds) return "slept" end,
  fail = function(n) error("failed " .. n, 0) end,
  each = function(n, f)
    local sum = 0
    for i = 1, n do sum = sum + f(i) end
    return sum
  end,
  count = function(n) return ipc.rpc.stream(counter(n)) end,
  account = function(balance)
    return ipc.rpc.object({ balance = balance }, {
      deposit = function(self, n)
        self.balance = self.balance + n
        return self.balance
      end,
    })
  end,
}

local function serve(slot, life)
  local journal = storm.journal "rpc.1"
  ipc.loop.run(function()
    local limit = ipc.now() + storm.patience
    local server, why
    repeat
      server, why = ipc.rpc.serve(WHERE, exports, { workers = WORKERS, grace = 1, on_error = function() end })
      if not server then ipc.sleep(0.01) end -- its predecessor's workers are still on their way out
    until server or ipc.now() > limit
    assert(server, why)
    while true do
      journal:write(storm.record(life, slot, 0, 0))
      local _, _, errno = ipc.parent:recv(0.05)
      if errno ~= E.ETIMEDOUT then break end
    end
    server:close()
  end)
end

-- ---- clients

local ANSWERS <const> = { [E.EPIPE] = "closed", [E.ETIMEDOUT] = "timeout", [E.ECONNRESET] = "closed",
  [E.ECANCELED] = "cancelled" } -- by a server that ends

-- What a call answered instead of its result, where that may be; raises otherwise.
local function unanswered(what, message, errno)
  if not ANSWERS[errno] then error(("%s: %s (%s)"):format(what, tostring(message), ipc.errno[errno] or errno), 0) end
  return false
end

local function equal(what, wanted, ok, got, errno)
  if not ok then return unanswered(what, got, errno) end
  if got ~= wanted then error(("%s: %s, not %s"):format(what, tostring(got), tostring(wanted)), 0) end
  return true
end

-- Of what raises: an error object with a message and an errno.
local function raised(what, problem)
  if type(problem) ~= "table" or not problem.errno then error(what .. ": " .. tostring(problem), 0) end
  return unanswered(what, problem.message, problem.errno)
end

local random = math.random

-- Each answers whether there was a result.
local ways = {
  function(c) local n = random(1000) return equal("add", n + 1, c:call("add", n, 1)) end,
  function(c)
    local n = random(100000)
    return equal("text", ("t"):rep(n), c:call("text", n))
  end,
  function(c)
    local ok, message, errno = c:call("fail", 7)
    if ok then error "fail: no error" end
    if errno ~= 0 then return unanswered("fail", message, errno) end
    return true
  end,
  function(c)
    local ok, message, errno = c:with { timeout = 0.01 }:call("sleep", 10)
    if ok then error "sleep: it slept" end
    return unanswered("sleep", message, errno) or errno == E.ETIMEDOUT
  end,
  function(c)
    local futures, good = {}, true
    for i = 1, random(40) do futures[i] = c:async("add", i, i) end
    for i, future in ipairs(futures) do good = equal("async", 2 * i, future:wait()) and good end
    return good
  end,
  function(c)
    local batch = c:batch()
    local futures, good = {}, true
    for i = 1, random(20) do futures[i] = batch:async("add", i, 3) end
    batch:notify("add", 1, 1)
    batch:send()
    for i, future in ipairs(futures) do good = equal("batch", i + 3, future:wait()) and good end
    return good
  end,
  function(c)
    local n = random(20)
    return equal("each", n * (n + 1), c:call("each", n, function(i) return 2 * i end))
  end,
  function(c)
    local n, seen = random(50), 0
    local stop = random(2) == 1 and random(n) or nil
    local ok, stream, errno = c:call("count", n)
    if not ok then return unanswered("count", stream, errno) end
    local whole, problem = pcall(function()
      for i in stream do
        seen = seen + 1
        if i ~= seen then error(("stream: %s after %d"):format(tostring(i), seen - 1), 0) end
        if seen == stop then break end
      end
    end)
    if not whole then return raised("stream", problem) end
    if seen ~= (stop or n) then error(("stream: %d of %d"):format(seen, n), 0) end
    return true
  end,
  function(c)
    local ok, account, errno = c:call("account", 100)
    if not ok then return unanswered("account", account, errno) end
    local good, balance = pcall(function() return account:deposit(5) end)
    if not good then return raised("deposit", balance) end
    return equal("deposit", 105, true, balance)
  end,
  function(c)
    local future = c:async("sleep", 10)
    future:cancel()
    local ok, message, errno = future:wait()
    if ok then error "cancel: it slept" end
    return errno == E.ECANCELED or unanswered("cancel", message, errno)
  end,
}

local function descriptors()
  collectgarbage()
  collectgarbage()
  local n = 0
  for fd = 0, 255 do
    local file = io.open("/proc/self/fdinfo/" .. fd)
    if file then
      n = n + 1
      file:close()
    end
  end
  return n
end

-- Calls until the connection is of no more use, or it is enough.
local function converse(client, journal, life)
  for _ = 1, random(60) do
    local way = random(#ways)
    local from = ipc.now()
    local good = ways[way](client)
    journal:write(storm.record(way, good and 1 or 0, storm.clock(), math.floor((ipc.now() - from) * 1e6)))
    if not good and not client:call("add", 1, life) then return end
  end
end

local function live(journal, life, alone)
  local client, _, errno = ipc.rpc.connect(WHERE, { timeout = PATIENCE })
  if not client then -- the server is dead, or not yet there
    journal:write(storm.record(0, errno, 0, 0))
    ipc.sleep(0.005)
    return false
  end
  if alone == nil then alone = random(2) == 1 end
  if alone then
    converse(client, journal, life)
  else -- several at once on one connection
    ipc.loop.run(function()
      local all <close> = ipc.loop.scope()
      for _ = 1, 3 do all:go(converse, client, journal, life) end
    end)
  end
  client:close()
  return true
end

local function call(slot, life)
  math.randomseed(life, slot)
  local journal = storm.journal("rpc." .. slot)
  repeat until live(journal, life, false) or storm.stopped() -- what stays of a loop is there
  local before, lives = descriptors(), 0
  repeat
    live(journal, life)
    lives = lives + 1
    if lives % 20 == 0 then
      local now = descriptors()
      if now > before then
        local list <close> = assert(io.popen("ls -l /proc/" .. ipc.pid() .. "/fd"))
        error(("%d descriptors, before %d: %s"):format(now, before, list:read "a"))
      end
    end
  until storm.stopped()
end

-- ---- the killing

-- Children of a process.
local function children(pid)
  local list = {}
  local stats <close> = assert(io.popen "cat /proc/[0-9]*/stat 2>/dev/null")
  for line in stats:lines() do
    local child, parent = line:match "^(%d+) %b() %a (%d+)"
    if tonumber(parent) == pid then list[#list + 1] = tonumber(child) end
  end
  return list
end

-- Processes that run this program, but for us: their state, zombies included.
local function remnants()
  local list = {}
  local own
  do
    local file <close> = assert(io.open "/proc/self/stat")
    own = file:read "a":match "%) %a %d+ (%d+)"
  end
  local stats <close> = assert(io.popen "cat /proc/[0-9]*/stat 2>/dev/null")
  for line in stats:lines() do
    local pid, name, state, group = line:match "^(%d+) (%b()) (%a) %d+ (%d+)"
    if group == own and name:find "lua" and tonumber(pid) ~= ipc.pid() then list[#list + 1] = pid .. " " .. state end
  end
  return list
end

local works, journals = { serve }, { "rpc.1" }
for slot = 2, CLIENTS + 1 do works[slot], journals[slot] = call, "rpc." .. slot end

local before = descriptors()
local gang = storm.gang(works)
local workers, servers = 0, 0
assert(gang:progress(journals))
local until_then = ipc.now() + SECONDS
while ipc.now() < until_then do
  ipc.sleep(random() * 0.05)
  local which = random(10)
  if which <= 4 then
    local list = children(gang[1].pid)
    if #list > 0 then
      os.execute(("kill -KILL %d 2>/dev/null"):format(list[random(#list)]))
      workers = workers + 1
    end
  elseif which == 5 then
    gang:kill(1)
    servers = servers + 1
  else
    gang:kill(1 + random(CLIENTS))
  end
  if random(20) == 1 then gang:progress(journals) end
end
gang:progress(journals)

gang:stop(2)
gang:stop(1, 1)

-- ---- what is left

local answered, unanswered_calls, nobody, slow = 0, 0, 0, {}
for slot = 2, CLIENTS + 1 do
  for way, good, ended, us in storm.records("rpc." .. slot) do
    if way == 0 then
      nobody = nobody + 1
    elseif good == 1 then
      answered = answered + 1
    else
      unanswered_calls = unanswered_calls + 1
    end
    if way > 0 then slow[#slow + 1] = storm.net(ended, us / 1e6) end
  end
end
local killed = 0
for slot = 2, CLIENTS + 1 do killed = killed + gang.kills[slot] end
local middle, worst = storm.spread(slow)
local limit = ipc.now() + storm.patience
local left = remnants()
while #left > 0 and ipc.now() < limit do
  ipc.sleep(0.005)
  left = remnants()
end
if #left > 0 then storm.failf("processes are left: %s", table.concat(left, ", ")) end
if io.open(PATH) or os.rename(PATH, PATH) then storm.fail "the name is left" end
if descriptors() > before + 1 then storm.fail "descriptors leak" end -- the lifeline's is one
if answered == 0 then storm.fail "nothing was answered" end
if unanswered_calls == 0 then storm.fail "nobody was in the middle of a call" end
if worst > (PATIENCE + storm.patience) * 1000 then storm.failf("a call took %.0f ms", worst) end
storm.say("%d workers, %d servers, %d clients killed; %d calls answered, %d closed or late, %d met no server; " ..
  "%.2f ms a call, at worst %.0f", workers, servers, killed, answered, unanswered_calls,
  nobody, middle, worst)
storm.finish()
