-- A server of calls that is attacked: in a process of its own, beside a healthy
-- client that is here. Whether the client is served as before, and whether the
-- server grows, is asked of the server itself.
local ipc = require "ipc"
local peer = require "spec.support.peer"

local E = ipc.errno

local hostile = {}

local LIMIT <const> = peer.limit
local CALLS <const> = 100  -- that a median is taken of
-- Seconds that waits retry: none. Whether retries pay depends on who else is there: times
-- of calls that were answered while retrying say nothing about those that sleep.
local SPIN <const> = 0
local ROUNDS <const> = 6   -- until noise is no excuse
local LUA <const> = 24     -- KiB that a round may add to Lua's memory
-- KiB that it may add to all memory; a sanitizer keeps what was freed.
local RESIDENT <const> = (os.getenv "LD_PRELOAD" or ""):find "san" and math.huge or 1024

hostile.rounds = ROUNDS
hostile.resident = RESIDENT

-- ---- the server, in its process

local function lines(path)
  local file <close> = io.open(path)
  return file and file:read "a" or ""
end

local held = {}
local gate

local exports = {
  add = function(a, b) return a + b end,
  echo = function(...) return ... end,
  type = function(value) return math.type(value) or type(value) end,
  sleep = function(seconds) ipc.sleep(seconds) end,
  -- Waits until somebody calls `go`.
  wait = function()
    gate = gate or ipc.loop.queue()
    gate:get(LIMIT)
  end,
  go = function()
    gate:close()
    gate = nil
  end,
  big = function(bytes) return ("b"):rep(bytes) end,
  slowly = function(bytes) ipc.sleep(0.01) return ("b"):rep(bytes) end,
  fail = function(value) error(value, 0) end,
  hold = function(value) held[#held + 1] = value end,
  back = function(f, ...) return f(...) end,
  keep = function() held[1] = ipc.rpc.object({}, { now = function() return 1 end }) return held[1] end,
  count = function(n)
    local i = 0
    return ipc.rpc.stream(function()
      i = i + 1
      return i <= n and i or nil
    end)
  end,
  nested = { add = function(a, b) return a + b end },
  -- Of this process: KiB, descriptors, sessions, seconds of the processor.
  measure = function()
    held = {}
    for _ = 1, 3 do collectgarbage() end
    local _, resident = lines "/proc/self/statm":match "(%d+) (%d+)"
    return { lua = collectgarbage "count", resident = tonumber(resident) * 4, cpu = os.clock(),
      descriptors = peer.descriptors(), sessions = #hostile.server }
  end,
  cpu = function() return os.clock() end,
  strange = function(kind) return hostile.strange[kind]() end,
  -- Takes all descriptors but a few; or gives them back.
  exhaust = function(left)
    while #held > 0 do table.remove(held):close() end
    if left then
      repeat
        local file = io.open "/dev/null"
        held[#held + 1] = file
      until not file
      for _ = 1, left do table.remove(held):close() end
    end
  end,
}
hostile.exports = exports

-- What functions of a server may answer or raise.
local function cycle()
  local t = {}
  t[1] = t
  return t
end
local function throws() error "thrown" end
local function idle() return coroutine.create(throws) end
hostile.strange = {
  thread = idle, cycle = cycle,
  userdata = function() return io.stdout end,
  huge = function() return ("h"):rep(20 << 20) end,
  stack = function()
    local function f() return 1 + f() end
    return f()
  end,
  ["error nil"] = function() error(nil) end,
  ["error thread"] = function() error(idle()) end,
  ["error cycle"] = function() error(cycle()) end,
  ["error function"] = function() error(throws) end,
  ["error long"] = function() error(("l"):rep(1 << 20)) end,
  ["error trap"] = function()
    error(setmetatable({}, { __tostring = throws, __index = throws, __name = {}, __pairs = throws }))
  end,
  ["error closed"] = function() error { message = setmetatable({}, { __tostring = throws }), errno = 5 } end,
  ["error errno"] = function() error { message = "m", errno = 1 << 40 } end,
}

local function serve(address, options)
  ipc.loop.run(function()
    local server <close> = assert(ipc.rpc.serve(address, exports, options))
    hostile.server = server
    assert(ipc.parent:send(server.address))
    ipc.parent:recv(math.huge)
  end)
end

hostile.life = serve

local count = 0

--- A path for a socket.
function hostile.path()
  count = count + 1
  return ("/tmp/ipc-hostile-%d-%d"):format(ipc.pid(), count)
end

local Target = {}
Target.__index = Target

--- A server, and a healthy client of it; closed by target:close().
function hostile.serve(options, client)
  local own = { on_error = function() end, grace = 0.1, spin = SPIN }
  for name, value in pairs(options or {}) do own[name] = value end
  local address = "unix:" .. hostile.path()
  -- A fresh process: how long it collects garbage is not to depend on ours.
  local child = assert(ipc.spawn(function(...) require "spec.support.hostile".life(...) end, address, own))
  child:settimeout(LIMIT)
  local answer, why = child:recv()
  if not answer then
    child:stop(0)
    error(select(2, child:wait(LIMIT)) or why)
  end
  local self = setmetatable({ child = child, address = answer, options = client, raws = {} }, Target)
  self.client = self:connect()
  self.client:call("add", 1, 2) -- who has said something may be silent for as long as attacks take
  return self
end

function Target:connect()
  local options = { timeout = LIMIT, spin = SPIN }
  for name, value in pairs(self.options or {}) do options[name] = value end
  return assert(ipc.rpc.connect(self.address, options))
end

--- Ends what attacks have left open.
function Target:calm()
  for _, raw in ipairs(self.raws) do raw:settimeout(0) raw:close() end
  self.raws = {}
end

--- Ends it, as a server ends; answers what its process answered.
function Target:close()
  self:calm()
  self.client:close()
  if not self.child.reason then self.child:send("end", nil, LIMIT) end
  local ok, why = self.child:wait(LIMIT)
  if not ok then self.child:stop(0) end
  self.child:close()
  return ok, why
end

-- ---- bytes, past all of the library's rules

local Raw = {}
Raw.__index = Raw

--- A connection that is used as the attacker likes; `drop` closes it.
function Target:raw()
  local channel = assert(ipc.connect(self.address, { unit = "stream", timeout = LIMIT, linger = 0 }))
  local raw = setmetatable({ channel = channel, target = self }, Raw)
  self.raws[#self.raws + 1] = channel
  return raw
end

function Raw:drop()
  for i, channel in ipairs(self.target.raws) do
    if channel == self.channel then table.remove(self.target.raws, i) break end
  end
  self.channel:settimeout(0)
  self.channel:close()
end

--- Sends all, or until the other side has closed; true: all.
function Raw:send(bytes)
  for from = 1, #bytes, 32768 do
    local ok, why, errno = self.channel:send(bytes:sub(from, from + 32767))
    if not ok then
      assert(errno == E.EPIPE or errno == E.ECONNRESET, why)
      return false
    end
  end
  return true
end

--- The next message; or nil and whether the connection is closed.
function Raw:get(timeout)
  local value, why, errno = self.channel:get(timeout or LIMIT)
  if value ~= nil then return value end
  if errno == E.ETIMEDOUT then return nil, false end
  assert(errno == E.EPIPE or errno == E.ECONNRESET, why)
  return nil, true
end

--- A call that is answered, past everything else that may come: its response.
function Raw:call(id, method, ...)
  if not self:send(ipc.pack { 0, id, method, ipc.array { ... } }) then return nil end
  repeat
    local value, closed = self:get()
    if value == nil then
      assert(closed, "not answered")
      return nil
    end
    if type(value) == "table" and value[1] == 1 and value[2] == id then return value end
  until false
end

-- ---- the healthy client

local function median(list)
  table.sort(list)
  return list[(#list + 1) // 2]
end

-- Appends the seconds of some calls, each of which must succeed.
local function calls(client, n, list)
  for i = 1, n do
    local from = ipc.now()
    local ok, sum, errno = client:call("add", i, 1)
    list[#list + 1] = ipc.now() - from
    if not ok or sum ~= i + 1 then
      error(("the healthy client is not served: %s (%s)"):format(sum, ipc.errno[errno] or errno))
    end
  end
  return list
end

-- What other clients do that mean no harm: come, call, and some later go.
local function visitors(self)
  local all = {}
  local function leave()
    for _, raw in ipairs(all) do
      assert(raw:get(), "a visitor is not served")
      raw:drop()
    end
    all = {}
  end
  return function(_, i)
    if i % 5 == 0 then leave() end
    local raw = self:raw()
    raw:send(ipc.pack { 0, 1, "add", { 1, 2 } })
    all[#all + 1] = raw
  end, leave
end

-- Some calls of the healthy client after each of `times` times of what others do.
local function among(self, others, times, list)
  for i = 1, times do
    others(self, i)
    calls(self.client, CALLS // times + 1, list)
  end
  return list
end

--- Fails unless the healthy client is served within twice its usual time while and
-- after `attack(i)` is done `times` times; `calm` ends what the attack has built up. Usual
-- is as it is among as many clients that mean no harm; `alone`: without any. Noise is
-- met by doing it again.
function Target:undisturbed(attack, times, calm, alone)
  local figures = {}
  for round = 1, ROUNDS do
    local visit, leave = visitors(self)
    local usual = {}
    if not alone then
      among(self, visit, times, usual)
      leave()
    end
    usual = median(calls(self.client, alone and CALLS or CALLS // 2, usual))
    local list = among(self, function(_, i) attack(i) end, times, {})
    if calm then calm() end
    local now = median(calls(self.client, CALLS // 2, list))
    if now <= 2 * usual then return end
    figures[round] = ("%.0f us instead of %.0f"):format(now * 1e6, usual * 1e6)
  end
  error("a healthy client waits: " .. table.concat(figures, ", "), 2)
end

--- What the server says of itself once only the healthy client, and `others`, are there,
-- and no more than so many `descriptors`: it has yet to hear of some that have gone.
function Target:measure(others, descriptors)
  local limit = ipc.now() + LIMIT
  while true do
    local ok, m = self.client:call "measure"
    assert(ok, m)
    if m.sessions <= 1 + (others or 0) and m.descriptors <= (descriptors or math.huge) then return m end
    if ipc.now() > limit then
      error(("%d sessions, %d descriptors stay of %s"):format(m.sessions, m.descriptors, descriptors or "any"))
    end
    ipc.sleep(0.001)
  end
end

--- Fails if the server grows by `times` more of `attack` after the first ones.
function Target:steady(attack, times, others)
  for i = 1, times // 4 + 1 do attack(i) end
  local before, figures = self:measure(others), {}
  for round = 1, ROUNDS do
    for i = 1, times do attack(i) end
    local now = self:measure(others, before.descriptors)
    local lua, resident = now.lua - before.lua, now.resident - before.resident
    if lua <= LUA and resident <= RESIDENT then return end
    figures[round] = ("%+.0f KiB of Lua's, %+.0f of all"):format(lua, resident)
    before = now
  end
  error(("it grows by %d more each time: %s"):format(times, table.concat(figures, ", ")), 2)
end

return hostile
