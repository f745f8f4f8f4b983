-- A kill before every instruction of what processes do with a ring: after each
-- two strangers get through, nothing that was sent is lost, changed or there
-- twice, and nothing stays. Only stores to the memory and system calls change
-- what others see: in short a kill after each of them, and a sample of the
-- rest; with --long before every instruction of the core. TRIALS=name: some.
local ipc = require "ipc"
local victims = require "spec.support.victims"

local V <const>, W <const> = victims.message "V", victims.message "W"

local function set(...)
  local allowed = {}
  for _, letters in ipairs { ... } do allowed[letters] = true end
  return allowed
end

-- ------------------------------------------------------------------- trials

local trials = {}

-- A trial of a ring made as `options` says.
local function trial(t, name, options)
  t.name = name
  t.options = options or {}
  t.options.capacity = 4096
  function t.open(mode)
    if t.file then return ipc.mmap(victims.file, mode, t.options) end
    if t.broadcast then return ipc.broadcast(victims.name, mode, t.options) end
    return ipc.shm(victims.name, mode, t.options)
  end
  trials[#trials + 1] = t
  return t
end

-- With us as a receiver and a sender, as far as the options let us be; "ABC" is
-- in it, or what t.filled says.
local function among(mode, t, name, options)
  trial(t, name, options)
  t.prepare = t.prepare or function() return assert(t.open(mode)) end
  t.before = t.before or function(c)
    local writer = assert(t.open "w")
    local reader = t.options.readers ~= 1 and assert(t.open "r") or nil
    victims.fill(writer, t.filled or "ABC")
    if t.options.writers == 1 then
      writer:close()
    else
      c.writer = writer
    end
    c.reader = reader
  end
  return t
end

local send = among("w", {
  act = function(w) w:send(V) end,
  allowed = set("ABC", "ABCV"),
}, "send")

among("w", {
  act = function(w) w:sendmany { V, W } end,
  allowed = set("ABC", "ABCVW"),
}, "sendmany")

local recv = among("r", {
  act = function(r) assert(r:recv(0)) end,
  allowed = set("ABC", "BC"),
}, "recv")

among("r", {
  act = function(r) assert(#r:recvmany(2, 0) == 2) end,
  allowed = set("ABC", "BC", "C"),
}, "recvmany")

local wait = among("r", {
  filled = "",
  act = function(r) r:recv(victims.wait) end,
  allowed = set "",
}, "recv that waits")

among("w", {
  filled = "",
  former = wait,
  choose = victims.asleep,
  act = function(w) w:send(V) end,
  allowed = set("", "V"),
}, "send that wakes")

local full = among("w", {
  full = true,
  before = function(c)
    c.reader, c.writer = assert(send.open "r"), assert(send.open "w")
    for _ = 1, 5 do assert(c.writer:send(("x"):rep(800), nil, 0)) end
  end,
  act = function(w) w:send(V, nil, victims.wait) end,
  allowed = set "",
}, "send that waits")

among("r", {
  full = true,
  former = full,
  choose = victims.asleep,
  before = full.before,
  act = function(r) assert(r:recv(0)) end,
  allowed = set("", "x"),
}, "recv that wakes")

among("w", {
  act = function(w) w:send(V) end,
  allowed = set("ABC", "ABCV"),
}, "send, one writer", { writers = 1 })

among("w", {
  act = function(w)
    local v = assert(w:reserve(500))
    v:write(0, V)
    v:commit(#V)
  end,
  allowed = set("ABC", "ABCV"),
}, "reserve, commit", { writers = 1 })

among("r", {
  act = function(r) assert(r:recv(0)) end,
  allowed = set("ABC", "BC"),
}, "recv, one reader", { readers = 1 })

among("r", {
  act = function(r) assert(#r:recvmany(2, 0) == 2) end,
  allowed = set("ABC", "BC", "C"),
}, "recvmany, one reader", { readers = 1 })

among("r", {
  act = function(r) assert(r:peek(0)):release() end,
  allowed = set("ABC", "BC"),
}, "peek, release", { readers = 1 })

-- Leases: what was not acknowledged is there again.

local take = among("r", {
  act = function(r) assert(r:take(0)) end,
  allowed = set "ABC",
}, "take", { lease = true })

local function taken(n)
  return function()
    local r = assert(take.open "r")
    local t
    for _ = 1, n do t = assert(r:take(0)) end
    return t, r
  end
end

local ack = among("r", {
  prepare = taken(1),
  act = function(t) assert(t:ack()) end,
  allowed = set("ABC", "BC"),
}, "ack", { lease = true })

among("r", {
  prepare = taken(2),
  act = function(t) assert(t:ack()) end,
  allowed = set("ABC", "AC"),
}, "ack of the second", { lease = true })

among("r", {
  prepare = taken(2),
  act = function(t) assert(t:nack()) end,
  allowed = set "ABC",
}, "nack", { lease = true })

among("r", {
  prepare = taken(2),
  act = function(_, r) r:close() end,
  allowed = set "ABC",
}, "leave with leases", { lease = true })

among("r", {
  act = function(r) assert(r:recv(0)) end,
  allowed = set("ABC", "BC"),
}, "recv of a lease", { lease = true })

-- Coming and going.

for _, mode in ipairs { "r", "w", "rw" } do
  local t
  t = among(mode, {
    long = mode ~= "rw", -- which is both
    prepare = function() end,
    act = function() assert(t.open(mode)) end,
    allowed = set "ABC",
  }, "join " .. mode)
end

among("rw", { act = function(ch) ch:close() end, allowed = set "ABC" }, "leave")
among("rw", { act = function(ch) assert(ch:dup()) end, allowed = set "ABC" }, "dup")
among("rw", { act = function(ch) assert(ch:shutdown()) end, allowed = set "ABC" }, "shutdown")
among("rw", {
  other = true, -- the name may be another ring's by now
  act = function(ch) assert(ch:remove()) end,
  allowed = set("ABC", ""),
}, "remove")

local function nothing() end

trial({
  prepare = nothing,
  act = function() assert(send.open "rw") end,
  allowed = set "",
}, "make")

trial({
  prepare = function()
    local ch = assert(send.open "rw")
    victims.fill(ch, "ABC")
    return ch
  end,
  act = function(ch) ch:close() end,
  allowed = set "",
}, "leave, the last")

trial({
  former = trials[#trials],
  choose = function(_, i) return i == 1 end,
  late = true,
  prepare = nothing,
  act = function() assert(send.open "rw") end,
  allowed = set "",
}, "sweep of all who were killed")

-- The same after one that was killed while it had a lock.

among("w", {
  former = send,
  choose = victims.sending,
  act = function(w) assert(w:send(W, nil, 10)) end,
  allowed = set("ABC", "ABCV", "ABCW", "ABCVW"),
}, "send, takeover")

among("r", {
  former = recv,
  choose = victims.receiving,
  act = function(r) assert(r:recv(10)) end,
  allowed = set("ABC", "BC", "C"),
}, "recv, takeover")

among("r", {
  former = take,
  choose = victims.receiving,
  act = function(r) assert(r:take(10)) end,
  allowed = set "ABC",
}, "take, takeover", { lease = true })

among("r", {
  former = ack,
  choose = victims.receiving,
  act = function(r) assert(r:recv(10)) end,
  allowed = set("ABC", "AB", "AC", "BC", "C"),
}, "recv after ack, takeover", { lease = true })

for _, side in ipairs { { send, victims.sending, "writer's" }, { recv, victims.receiving, "reader's" } } do
  among("rw", {
    former = side[1],
    choose = side[2],
    late = true,
    prepare = nothing,
    act = function() assert(send.open "rw") end,
    allowed = set("ABC", "ABCV", "BC"),
  }, ("join, sweep of a %s lock"):format(side[3]))
end

-- Broadcasts: what a subscriber has not received stays for it.

local function cast(t, name, options)
  t.broadcast = true
  local mode = t.mode
  trial(t, name, options)
  t.prepare = function() return assert(t.open(mode)) end
  function t.before(c)
    c.reader, c.writer = assert(t.open "r"), assert(t.open "w")
    victims.fill(c.writer, "ABC")
  end
  return t
end

if ipc.broadcast then
  for _, slow in ipairs { "lose", "hold" } do
    cast({
      mode = "w",
      act = function(w) w:send(V) end,
      allowed = set("ABC", "ABCV"),
    }, "broadcast: send, " .. slow, { slow = slow })
    cast({
      mode = "w",
      act = function(w) w:sendmany { V, W } end,
      allowed = set("ABC", "ABCV", "ABCVW"),
    }, "broadcast: sendmany, " .. slow, { slow = slow })
    local t
    t = cast({
      mode = "r",
      act = function(r) assert(r:recv(10)) end,
      allowed = set "ABC",
    }, "broadcast: recv, " .. slow, { slow = slow })
    t.first = true
    cast({
      mode = "r",
      act = function(r) r:close() end,
      allowed = set "ABC",
    }, "broadcast: leave, " .. slow, { slow = slow })
    t = cast({
      act = function() assert(t.open "r") end,
      allowed = set "ABC",
    }, "broadcast: subscribe, " .. slow, { slow = slow })
    t.prepare = nothing
    cast({
      mode = "w",
      former = trials[#trials - 4],
      choose = victims.sending,
      act = function(w) assert(w:send(W, nil, 10)) end,
      allowed = set("ABC", "ABCV", "ABCW", "ABCVW"),
    }, "broadcast: send, takeover, " .. slow, { slow = slow })
  end
end

-- Files.

local function filed(t, name)
  t.file = true
  trial(t, name)
  local function before(c)
    c.writer = assert(t.open "w")
    victims.fill(c.writer, "ABC")
    c.writer:close()
    c.writer = nil
  end
  if not t.empty then t.before = before end
end

filed({
  empty = true,
  prepare = nothing,
  act = function() assert(ipc.mmap(victims.file, "rw", { capacity = 4096 })) end,
  allowed = set "",
}, "mmap: make")
filed({
  prepare = nothing,
  act = function() assert(ipc.mmap(victims.file, "rw", { capacity = 4096 })) end,
  allowed = set "ABC",
}, "mmap: join")
filed({
  prepare = function() return assert(ipc.mmap(victims.file, "rw", { capacity = 4096 })) end,
  act = function(ch) ch:close() end,
  allowed = set "ABC",
}, "mmap: leave")
filed({
  prepare = function() return assert(ipc.mmap(victims.file, "rw", { capacity = 4096 })) end,
  act = function(ch) ch:send(V) end,
  allowed = set("ABC", "ABCV"),
}, "mmap: send")

victims.run(trials)
