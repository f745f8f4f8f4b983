-- A hostile process writes all over a segment while two others use it: nobody
-- crashes, no call is late, and what is refused says why. `--long` takes a
-- minute for each kind of ring, under AddressSanitizer.
local LONG = arg[1] == "--long" or (os.getenv "LONG" or "") ~= ""
if LONG and not os.getenv "STORM_ASAN" then
  os.exit((os.execute "make -s storm-asan STORM=scribble LONG=1"))
end

local ipc = require "ipc"
local E = ipc.errno

io.stdout:setvbuf "line" -- what is ended by force has said it, too

local TOTAL = LONG and 60 or 1.5 -- seconds for each kind
local ROUND = LONG and 2 or 0.5 -- with one segment
local LATE = 5 -- seconds beyond a deadline that no load of the machine explains
local HELPER = (os.getenv "BUILD" or "build") .. "/storm/scribble"
local name = ("/lua_ipc_scribble.%d"):format(ipc.pid())

-- What an error about the segment may say.
local FAULTS = {
  "head and tail contradict each other",
  "a record is longer than what is there",
  "a lock has an owner that cannot be",
  "this participant's place was taken",
  "the file lost pages",
}

-- ---- a victim: it runs in a child

-- What it calls with a deadline: (the ends, seconds) -> results.
local calls = {}

local function settle(ticket)
  if ticket then
    local _ = #ticket.bytes + ticket.offered
    ticket:get()
    return ticket[math.random(2) == 1 and "ack" or "nack"](ticket)
  end
end

local function payload()
  return ("p"):rep(math.random(5) == 1 and math.random(0, 4000) or math.random(0, 60))
end

function calls.send(v, d) return v.w:send(payload(), nil, d) end
function calls.put(v, d) return v.w:put({ payload(), { 1, 2.5 } }, nil, d) end
function calls.sendmany(v, d) return v.w:sendmany({ payload(), payload(), payload() }, nil, d) end
function calls.recv(v, d) return v.r:recv(d) end
function calls.get(v, d) return v.r:get(d) end
function calls.recvmany(v, d) return v.r:recvmany(10, d) end
function calls.readable(v, d) return ipc.poll({ v.r }, d) end
function calls.writable(v, d) return ipc.poll({ { v.w, "w" } }, d) end
function calls.stats(v)
  for _, end_ in pairs { v.r, v.w } do
    assert(end_:stats())
  end
end
function calls.reserve(v, d)
  local size = math.random(0, 2000)
  local view <close>, message, errno = v.w:reserve(size, d)
  if not view then
    return nil, message, errno
  end
  view:fill(1)
  if math.random(3) > 1 then
    return view:commit(math.random(0, size))
  end
end
function calls.peek(v, d)
  local view <close>, message, errno = v.r:peek(d)
  if not view then
    return nil, message, errno
  end
  view:read()
  pcall(view.unpack, view, 0, "s4") -- raises if the bytes say so
  if math.random(3) > 1 then
    return view:release()
  end
end
function calls.take(v, d)
  local ticket, message, errno = v.r:take(d)
  if not ticket then
    return nil, message, errno
  end
  if math.random(4) == 1 and #v.tickets < 50 then
    v.tickets[#v.tickets + 1] = ticket
    return true
  end
  return settle(ticket)
end
function calls.settle(v)
  return settle(table.remove(v.tickets))
end

-- Another participant in place of one end; or that one passed through a socket.
function calls.dup(v)
  local which = v.r and (not v.w or math.random(2) == 1) and "r" or "w"
  local copy, message, errno = v[which]:dup()
  if not copy then
    return nil, message, errno
  end
  if math.random(2) == 1 then
    local a, b = assert(ipc.pair "unix")
    local sent = a:put({ copy }, nil, 0)
    local got = sent and b:get(0)
    copy:close()
    a:close()
    b:close()
    if not got then
      return
    end
    copy = got[1]
  end
  v.tickets = which == "r" and {} or v.tickets
  v[which]:close()
  v[which] = copy
end

function calls.reopen(v, d)
  local which = v.r and (not v.w or math.random(2) == 1) and "r" or "w"
  local again, message, errno = v.open(which, { timeout = d })
  if not again then
    return nil, message, errno
  end
  v.tickets = which == "r" and {} or v.tickets
  v[which]:close()
  v[which] = again
end

local function victim(v, list, seconds)
  local stop = ipc.now() + seconds
  local told = { calls = 0, done = 0, worst = 0, errors = {} }
  while ipc.now() < stop do
    local call = list[math.random(#list)]
    local deadline = math.random(0, 50) / 1000 * math.random(0, 1)
    local start = ipc.now()
    local ok, first, message, errno = pcall(calls[call], v, deadline)
    local over = ipc.now() - start - deadline
    if not ok then
      return nil, call .. " raised: " .. tostring(first)
    end
    if over > told.worst then
      told.worst, told.what = over, call
    end
    told.calls = told.calls + 1
    if first == nil and errno then
      local why = tostring(message)
      if errno == E.ENOTRECOVERABLE then
        local found
        for _, fault in ipairs(FAULTS) do
          found = found or why:find(fault, 1, true) and fault
        end
        if not found and not why:find "^ipc.view" then
          return nil, ("%s: a fault without a name: %s"):format(call, why)
        end
        why = found or "(of a view)"
      else
        why = tostring(errno)
      end
      told.errors[why] = (told.errors[why] or 0) + 1
    else
      told.done = told.done + 1
    end
  end
  return told
end

-- ---- kinds of ring

local BOTH = { "readable", "writable", "stats", "dup", "send", "put", "sendmany", "recv", "get", "recvmany" }
local function with(list, ...)
  return table.move({ ... }, 1, select("#", ...), #list + 1, table.move(list, 1, #list, 1, {}))
end

local function shared(r, w)
  return { { r = r, w = w }, { r = assert(r:dup()), w = assert(w:dup()) } }
end

local function by_name(options)
  return function()
    local function open(mode, more)
      local o = { capacity = 16384, timeout = more.timeout }
      for key, value in pairs(options) do o[key] = value end
      return ipc.shm(name, mode, o)
    end
    local r, w = assert(open("r", {})), assert(open("w", {}))
    local victims = shared(r, w)
    victims[1].open, victims[2].open = open, open
    return victims, "/dev/shm" .. name
  end
end

-- Each makes what two victims use, and says what they call.
local kinds = {
  {
    "plain", { BOTH, BOTH },
    function() return shared(ipc.queue { capacity = 16384 }) end,
  },
  {
    "sole",
    {
      { "send", "put", "sendmany", "writable", "stats", "reserve", "reserve" },
      { "recv", "get", "recvmany", "readable", "stats", "peek", "peek" },
    },
    function()
      local r, w = ipc.queue { capacity = 16384, writers = 1, readers = 1 }
      return { { w = w }, { r = r } }
    end,
  },
  {
    "lease", { with(BOTH, "take", "take", "take", "peek", "settle"), with(BOTH, "take", "take", "take", "peek") },
    function() return shared(ipc.queue { capacity = 16384, lease = true }) end,
  },
  { "by name", { with(BOTH, "reopen"), with(BOTH, "reopen") }, by_name {} },
  { "lease by name", { with(BOTH, "reopen", "take"), with(BOTH, "reopen", "take") }, by_name { lease = true } },
}
for _, mode in ipairs(ipc.broadcast and { "lose", "hold", "latest" } or {}) do
  kinds[#kinds + 1] = {
    "broadcast, " .. mode, { BOTH, BOTH },
    function()
      local options = { capacity = 16384, latest = mode == "latest" or nil, slow = mode ~= "latest" and mode or nil }
      local r = assert(ipc.broadcast(name, "r", options))
      local w = assert(ipc.broadcast(name, "w", options))
      return shared(r, w), "/dev/shm" .. name
    end,
  }
end

-- ---- a round

-- The path by which another process opens what we made last without a name.
local function nameless()
  local list <close> = assert(io.popen(("ls -l /proc/%d/fd"):format(ipc.pid())))
  local last
  for number in list:read "a":gmatch "(%d+) %-> /memfd:[^\n]*" do
    last = math.max(last or 0, math.tointeger(number))
  end
  return ("/proc/%d/fd/%d"):format(ipc.pid(), assert(last, "no memfd"))
end

local function round(kind, seed)
  local victims, path = kind[3]()
  local scribbler <close> =
    assert(io.popen(("LD_PRELOAD= exec %s %s %g %d"):format(HELPER, path or nameless(), ROUND, seed)))
  assert(scribbler:read "l" == "mapped", "the scribbler did not start")
  local children = {}
  for i, v in ipairs(victims) do
    local child, message, errno = ipc.fork(function(r, w)
      math.randomseed(seed, i)
      return victim({ r = r, w = w, open = v.open, tickets = {} }, kind[2][i], ROUND)
    end, v.r, v.w)
    if not child then -- the scribbler came first
      assert(errno == ipc.errno.ENOTRECOVERABLE, message)
      break
    end
    children[i] = child
  end
  for _, v in ipairs(victims) do -- where they are not gone with the fork
    pcall(function() v.r:close() end)
    pcall(function() v.w:close() end)
  end
  local results = {}
  for i, child in ipairs(children) do
    local ok, told, message = child:wait(ROUND + 20)
    if not ok or not told then
      child:stop(0)
      return nil, ("victim %d: %s %s"):format(i, tostring(told), tostring(message))
    end
    results[i] = told
  end
  os.remove("/dev/shm" .. name)
  return results, scribbler:read "n"
end

-- ---- all

math.randomseed(os.getenv "SEED" and tonumber(os.getenv "SEED") or os.time())
local failed = false
for _, kind in ipairs(kinds) do
  local stop = ipc.now() + TOTAL
  local sum = { calls = 0, done = 0, worst = 0, rounds = 0, scribbles = 0 }
  local errors = {}
  while ipc.now() < stop do
    local seed = math.random(1 << 30)
    local results, scribbles = round(kind, seed)
    if not results then
      print(("FAILED: %s, seed %d: %s"):format(kind[1], seed, scribbles))
      failed = true
      break
    end
    sum.rounds, sum.scribbles = sum.rounds + 1, sum.scribbles + (scribbles or 0)
    for _, told in ipairs(results) do
      sum.calls, sum.done = sum.calls + told.calls, sum.done + told.done
      if told.worst > sum.worst then
        sum.worst, sum.what = told.worst, told.what
      end
      for why, n in pairs(told.errors) do errors[why] = (errors[why] or 0) + n end
    end
  end
  print(("%-14s %3d segments, %9d scribbles, %7d calls, %7d did what they should, worst %.1f ms late (%s)"):format(
    kind[1], sum.rounds, sum.scribbles, sum.calls, sum.done, sum.worst * 1000, sum.what))
  if os.getenv "VERBOSE" then
    for why, n in pairs(errors) do print("", n, why) end
  end
  failed = failed or sum.worst > LATE
end
os.exit(not failed)
