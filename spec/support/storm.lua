-- What the storms of spec/storm share: a verdict, processes that are killed and
-- replaced, records of what they did, and traffic that is accounted for to the
-- last message. A storm is a program: `lua5.4 spec/storm/kills.lua [--long]`.
local ipc = require "ipc"

local storm = {}
local E = ipc.errno

storm.long = arg[1] == "--long"
storm.patience = 15 -- seconds until something that should happen counts as hung
storm.memory = "/dev/shm/"

math.randomseed(tonumber(os.getenv "STORM_SEED") or os.time(), 4711)

-- ---- verdict

local names = {}
local failures, started = 0, ipc.now()
local title = arg[0]:match "([^/]*)%.lua$"

function storm.say(...)
  io.stdout:write(("%-9s "):format(title), string.format(...), "\n")
  io.stdout:flush()
end

function storm.fail(...)
  failures = failures + 1
  if failures <= 20 then storm.say("FAILED: " .. ...) end
end

-- fail, with a format.
function storm.failf(...) storm.fail(string.format(...)) end

function storm.finish()
  if not os.getenv "STORM_DIRECTORY" then os.execute("rm -rf '" .. storm.directory .. "'") end
  for _, name in ipairs(names) do os.remove(storm.memory .. name:sub(2)) end
  storm.say("%s, %.0f s", failures == 0 and "as it should be" or failures .. " FAILED",
    ipc.now() - started)
  os.exit(failures == 0, true)
end

-- The middle and the worst of some seconds, in ms.
function storm.spread(list)
  table.sort(list)
  return (list[(#list + 1) // 2] or 0) * 1000, (list[#list] or 0) * 1000
end

-- ---- names and records

-- The runner removes what is in this directory, and rings with this tag.
storm.directory = os.getenv "STORM_DIRECTORY"
if not storm.directory then
  local p <close> = assert(io.popen "mktemp -d")
  storm.directory = p:read "l"
end
local family = os.getenv "STORM_TAG" or "0"

-- Of a ring that nobody else has.
function storm.name()
  names[#names + 1] = ("/storm-%s-%d-%d"):format(family, ipc.pid(), #names + 1)
  return names[#names]
end

-- A record is 16 bytes, written at once and never across pages: a kill leaves
-- all of it or nothing.
local RECORD <const> = "<I4I4I4I4"

function storm.journal(name)
  local file = assert(io.open(storm.directory .. "/" .. name, "ab"))
  file:setvbuf "no"
  return file
end

function storm.record(...) return RECORD:pack(...) end

function storm.records(name)
  local file = io.open(storm.directory .. "/" .. name, "rb")
  local text = file and file:read "a" or ""
  if file then file:close() end
  local at = 1
  return function()
    if at + 16 > #text + 1 then return end
    local a, b, c, d
    a, b, c, d, at = RECORD:unpack(text, at)
    return a, b, c, d
  end
end

local function size(name)
  local file <close> = io.open(storm.directory .. "/" .. name, "rb")
  return file and file:seek "end" or 0
end

-- ---- what is the machine's fault

-- Milliseconds of the monotonic clock, for records.
function storm.clock() return math.floor(ipc.now() * 1000) & 0xffffffff end

-- Starts a process that has nothing to do but to wake in time: when it does not,
-- the machine stands still.
function storm.metronome()
  local BEAT <const>, LATE <const> = 0.005, 0.005
  storm.beats = assert(ipc.fork(function()
    local journal <close> = storm.journal "metronome"
    repeat
      local from = ipc.now()
      local _, _, errno = ipc.parent:recv(BEAT)
      local late = ipc.now() - from - BEAT
      if late > LATE then
        journal:write(storm.record(storm.clock(), math.floor(late * 1e6), 0, 0))
      end
    until errno ~= E.ETIMEDOUT
  end))
end

-- What is left of some seconds that ended at `ended` (of the clock) without those
-- in which the machine stood still.
function storm.net(ended, seconds)
  local from = ended - seconds * 1000
  for to, us in storm.records "metronome" do
    local overlap = math.min(ended, to) - math.max(from, to - us / 1000)
    if overlap > 0 then seconds = seconds - overlap / 1000 end
  end
  return math.max(0, seconds)
end

-- ---- a lock held

local LOCK <const> = { writers = 256, readers = 384 } -- where it is, as documented

local function poke(name, side, word)
  local file <close> = assert(io.open(storm.memory .. name:sub(2), "r+b"))
  file:setvbuf "no"
  file:seek("set", LOCK[side])
  return file:write(("=I4"):pack(word))
end

-- What this process, which has the ring open once, writes into locks.
local function owner(name)
  local SLOTS <const>, PARTS <const>, PART <const> = 28, 1024, 64
  local file <close> = assert(io.open(storm.memory .. name:sub(2), "rb"))
  local head = file:read "a"
  for slot = 0, ("=I4"):unpack(head, SLOTS + 1) - 1 do
    local tag, pid = ("=I4I4"):unpack(head, PARTS + PART * slot + 1)
    if pid == ipc.pid() then return (tag >> 8 & 0x7ffff) << 12 | slot + 1 end
  end
end

-- Takes a lock of a ring by hand; nobody else wants it just now.
function storm.hold(name, side) return poke(name, side, owner(name)) end

-- Gives it up; who sleeps for it finds out when its slice has passed.
function storm.free(name, side) return poke(name, side, 0) end

-- ---- messages: each byte follows from who sent it and its number

local NOISE <const> = 1 << 16
local noise
do
  local words = {}
  for i = 1, NOISE // 8 + 512 do words[i] = string.pack("<i8", math.random(0)) end
  noise = table.concat(words)
end

local function body(id, seq, most)
  local mix = (id * 0x9E3779B97F4A7C15 + seq * 0xC2B2AE3D27D4EB4F) >> 8
  local from, length = mix % NOISE + 1, (mix >> 20) % (most + 1)
  return noise:sub(from, from + length - 1), mix & 0xffffffff
end

function storm.message(id, seq, most)
  local bytes, mix = body(id, seq, most)
  return ("<I4I4I4I4"):pack(id, seq, #bytes, mix) .. bytes
end

-- Sender and number of a message, or nothing if it is not as it was sent.
function storm.checked(message, most)
  if #message < 16 then return end
  local id, seq = ("<I4I4"):unpack(message)
  if storm.message(id, seq, most) == message then return id, seq end
end

-- ---- a gang: processes, each in its slot, killed and replaced

local Gang = {}
Gang.__index = Gang
local lives = 0

-- works[slot](slot, life, channel) runs in each; it is to call stopped() now and
-- then. The channel is what hand(slot), if there is one, gives it to take along.
function storm.gang(works, hand)
  local g = setmetatable({ works = works, kills = {}, hand = hand }, Gang)
  for slot = 1, #works do
    g.kills[slot] = 0
    g:start(slot)
  end
  return g
end

function Gang:start(slot)
  lives = lives + 1
  local work, life = self.works[slot], lives
  local channel = self.hand and self.hand(slot)
  self[slot] = assert(ipc.fork(function(...) return work(slot, life, ...) end, channel))
end

-- Whether the supervisor wants us to end, or is gone.
function storm.stopped()
  local _, _, errno = ipc.parent:recv(0)
  return errno ~= E.ETIMEDOUT
end

local function where(pid)
  local text = {}
  for _, file in ipairs { "wchan", "syscall" } do
    local f <close> = io.open(("/proc/%d/%s"):format(pid, file))
    text[#text + 1] = f and f:read "l" or "?"
  end
  return table.concat(text, " ")
end

-- Nobody ends by itself.
function Gang:lives(slot)
  local p = self[slot]
  local ok, why, errno = p:wait(0)
  if errno == E.ETIMEDOUT then return true end
  storm.failf("process %d of the gang ended: %s", slot, ok and "well" or tostring(why))
end

-- A random one dies; its successor starts before or after it is reaped.
function Gang:kill(slot)
  slot = slot or math.random(#self)
  local p = self[slot]
  if self:lives(slot) then
    assert(p:kill "KILL")
    self.kills[slot] = self.kills[slot] + 1
  end
  local zombie = math.random(2) == 1
  if zombie then self:start(slot) end
  local _, _, errno = p:wait(storm.patience)
  if errno == E.ETIMEDOUT then storm.failf("process %d outlives SIGKILL", p.pid) end
  p:close()
  if not zombie then self:start(slot) end
end

-- With nobody killed, everybody's records grow: nobody hangs.
function Gang:progress(journals)
  local from, limit = {}, ipc.now() + storm.patience
  for slot, name in ipairs(journals) do from[slot] = size(name) end
  for slot, name in ipairs(journals) do
    while size(name) == from[slot] do
      if not self:lives(slot) then return false end
      if ipc.now() > limit then
        storm.failf("process %d (%s) hangs: %s", slot, name, where(self[slot].pid))
        return false
      end
      ipc.sleep(0.001)
    end
  end
  return true
end

-- All of these end now; their results by slot.
function Gang:stop(from, to)
  local results = {}
  for slot = from or 1, to or #self do self[slot]:send("stop", nil, 1) end
  for slot = from or 1, to or #self do
    local p = self[slot]
    local r = table.pack(p:wait(storm.patience))
    if r[1] == nil and r[3] == E.ETIMEDOUT then
      storm.failf("process %d hangs at the end: %s", slot, where(p.pid))
      p:kill "KILL"
      p:wait(storm.patience)
    elseif not r[1] then
      storm.failf("process %d: %s", slot, r[2])
    end
    p:close()
    results[slot] = r
  end
  return results
end

-- ---- traffic through one ring

-- t: the ring's `options`, `nameless` (a queue that is handed on) or `file`,
-- `senders`, `receivers` (processes), `most` (bytes of a message), `batch`
-- (messages a call), `wait` (function: seconds of a call), `late`
-- (function(slot, seconds): how much later than asked a call ended).
local Traffic = {}
Traffic.__index = Traffic

function storm.traffic(t)
  t.most, t.batch, t.name = t.most or 3000, t.batch or 1, storm.name()
  t.wait = t.wait or function() return 0.2 end
  t.journals, t.tag = {}, t.name:sub(2)
  if t.nameless then
    t.options.keepalive = true
    t.r, t.w = assert(ipc.queue(t.options))
  else
    t.options.persist = not t.file or nil
    if t.file then t.name = storm.directory .. t.name end
    assert(ipc[t.file and "mmap" or "shm"](t.name, "rw", t.options)):close()
  end
  local works = {}
  for slot = 1, t.senders + t.receivers do
    t.journals[slot] = t.tag .. "." .. slot
    works[slot] = function(...)
      return (slot <= t.senders and t.send or t.receive)(t, ...)
    end
  end
  setmetatable(t, Traffic)
  t.gang = storm.gang(works, t.nameless and function(slot)
    return assert((slot <= t.senders and t.w or t.r):dup())
  end)
  return t
end

local function attach(t, mode, channel)
  if channel then return channel end
  -- A place made for one is free when the kernel has cleared its last holder.
  return assert(ipc[t.file and "mmap" or "shm"](t.name, mode,
    { retry = storm.patience, keepalive = true }))
end

-- Every now and then they leave and come again, in the middle of the traffic.
local function again(t, mode, ring, channel)
  if channel or math.random(500) > 1 then return ring end
  ring:close()
  return attach(t, mode)
end

-- A call with its deadline kept: its results.
local function timed(t, slot, call, channel, ...)
  local seconds, from = t.wait(), ipc.now()
  local ok, why, errno, n
  if call == "send" or call == "sendmany" then
    ok, why, errno, n = channel[call](channel, ..., nil, seconds)
  elseif call == "recvmany" then
    ok, why, errno = channel:recvmany(..., seconds)
  else
    ok, why, errno = channel[call](channel, seconds)
  end
  local late = ipc.now() - from - seconds
  if t.late and late > 0 then t.late(slot, late) end
  if not t.late and late > storm.patience / 2 then
    error(("%s ended %.3f s after its deadline"):format(call, late))
  end
  if not ok and errno ~= E.ETIMEDOUT then error(call .. ": " .. why) end
  return ok, n
end

function Traffic:send(slot, id, channel)
  math.randomseed(id, slot)
  local w = attach(self, "w", channel)
  local journal, seq = storm.journal(self.journals[slot]), 0
  local ok, n
  for turn = 1, math.huge do
    if (turn % 16 == 0 or not ok) and storm.stopped() then break end
    if self.batch == 1 then
      ok = timed(self, slot, "send", w, storm.message(id, seq + 1, self.most))
      n = ok and 1 or 0
    else
      local list = {}
      for i = 1, math.random(self.batch) do list[i] = storm.message(id, seq + i, self.most) end
      ok, n = timed(self, slot, "sendmany", w, list)
      n = ok or n
    end
    seq = seq + n
    if n > 0 then journal:write(storm.record(id, seq, n, w:stats().takeovers)) end
    w = again(self, "w", w, channel)
  end
  w:close()
end

-- Writes what was received down before it receives, or acknowledges, again.
local function report(t, r, journal, life, messages, offered)
  local records, takeovers = {}, r:stats().takeovers << 16
  for i, bytes in ipairs(messages) do
    local id, seq = storm.checked(bytes, t.most)
    records[i] = storm.record(id or 0, seq or 0, life, takeovers | (offered and offered[i] or 1))
  end
  journal:write(table.concat(records))
end

local function take(t, slot, r, journal, life)
  local tickets, bytes, offered = {}, {}, {}
  for i = 1, t.batch do
    local ticket = i == 1 and timed(t, slot, "take", r) or i > 1 and r:take(0) or nil
    if not ticket then break end
    tickets[i], bytes[i], offered[i] = ticket, ticket.bytes, ticket.offered
  end
  if #tickets == 0 then return false end
  report(t, r, journal, life, bytes, offered)
  for _, ticket in ipairs(tickets) do assert(ticket:ack()) end
  return true
end

local function receive(t, slot, r, journal, life)
  if t.options.lease then return take(t, slot, r, journal, life) end
  local got
  if t.batch == 1 then
    got = timed(t, slot, "recv", r)
    got = got and { got }
  else
    got = timed(t, slot, "recvmany", r, t.batch)
  end
  if got then report(t, r, journal, life, got) end
  return got
end

function Traffic:receive(slot, life, channel)
  math.randomseed(life, slot)
  local r = attach(self, "r", channel)
  local journal = storm.journal(self.journals[slot])
  local ok
  for turn = 1, math.huge do
    if (turn % 16 == 0 or not ok) and storm.stopped() then break end
    ok = receive(self, slot, r, journal, life)
    r = again(self, "r", r, channel)
  end
  r:close()
end

-- Everybody ends, one process receives what is left, and the accounts are made:
-- messages, lost, twice, redelivered, and how often a lock was taken over.
function Traffic:accounts()
  self.gang:stop()
  local a = { messages = 0, lost = 0, twice = 0, corrupt = 0, disorder = 0, takeovers = 0, again = 0 }
  local last = self.tag .. ".last"
  local drain = assert(ipc.fork(function(channel)
    local r <close> = attach(self, "r", channel)
    local journal = storm.journal(last)
    while receive(self, 0, r, journal, 0) do end
    local stats = r:stats()
    assert(channel or r:remove())
    return stats.used, stats.depth
  end, self.r))
  local ok, used, depth = drain:wait(4 * storm.patience)
  if not ok then storm.failf("the last receiver: %s", used)
  elseif used ~= 0 or depth ~= 0 then storm.failf("%d bytes, %d messages stay", used, depth) end

  local got = {} -- by sender: how often each number came
  local function count(name)
    local seen, reader, takeovers = {}, nil, 0
    for id, seq, life, offered in storm.records(name) do
      if life ~= reader then
        a.takeovers = a.takeovers + takeovers
        seen, reader = {}, life
      end
      offered, takeovers = offered & 0xffff, offered >> 16
      if id == 0 then a.corrupt = a.corrupt + 1 end
      local of = got[id] or {}
      got[id] = of
      of[seq] = (of[seq] or 0) + 1
      a.messages = a.messages + 1
      if of[seq] > 1 then a.twice = a.twice + 1 end
      if offered > 1 then a.again = a.again + 1
      elseif seq <= (seen[id] or 0) then a.disorder = a.disorder + 1 end
      seen[id] = math.max(seq, seen[id] or 0)
    end
    a.takeovers = a.takeovers + takeovers
  end
  for slot = self.senders + 1, #self.journals do count(self.journals[slot]) end
  count(last)
  for slot = 1, self.senders do
    local accepted, takeovers = {}, {}
    for id, seq, _, taken in storm.records(self.journals[slot]) do
      accepted[id], takeovers[id] = seq, taken
    end
    for _, n in pairs(takeovers) do a.takeovers = a.takeovers + n end
    for id, most in pairs(accepted) do
      for seq = 1, most do
        if not (got[id] and got[id][seq]) then a.lost = a.lost + 1 end
      end
    end
  end
  a.kills, a.killed = 0, 0
  for slot, n in ipairs(self.gang.kills) do
    a.kills = a.kills + n
    if slot > self.senders then a.killed = a.killed + n end
  end
  for _, name in ipairs(self.journals) do os.remove(storm.directory .. "/" .. name) end
  os.remove(storm.directory .. "/" .. last)
  return a
end

-- Kills until it is enough; now and then nobody is, and all go on.
function Traffic:storm(kills)
  for n = 1, kills do
    self.gang:kill()
    if math.random(4) > 1 then ipc.sleep(math.random() * 0.012) end
    if n % 50 == 0 and not self.gang:progress(self.journals) then return end
  end
  self.gang:progress(self.journals)
end

return storm
