-- What comes first: calls and notifications begin in the order sent, over whatever channel
-- and however they are served, and answers that are ready wait for nobody.
local ipc = require "ipc"
local elsewhere = require "spec.support.elsewhere"
local peer = require "spec.support.peer"

local LIMIT <const> = peer.limit

-- ---- who serves the other end, in another process: serve(channel, exports)

local function quiet() end

local function connect(channel, exports)
  return assert(ipc.rpc.connect(channel, { timeout = LIMIT, exports = exports, on_error = quiet }))
end

local ways = {
  {
    name = "session:serve",
    serve = function(channel, exports) connect(channel, exports):serve(LIMIT) end,
  },
  {
    name = "session:serve in a task",
    serve = function(channel, exports)
      elsewhere.run(function() connect(channel, exports):serve(LIMIT) end)
    end,
  },
  {
    name = "tasks",
    serve = function(channel, exports)
      elsewhere.run(function()
        local over = ipc.loop.queue()
        assert(ipc.rpc.serve(channel, exports, {
          timeout = LIMIT, on_error = quiet, on_close = function() over:put(true) end,
        }))
        over:get(LIMIT)
      end)
    end,
  },
  {
    name = "who waits for an answer", calls = true,
    serve = function(channel, exports)
      local session <close> = connect(channel, exports)
      session:call "begin"
    end,
  },
  {
    name = "a task that waits for an answer", calls = true,
    serve = function(channel, exports)
      elsewhere.run(function()
        local session <close> = connect(channel, exports)
        session:call "begin"
      end)
    end,
  },
}

-- fn(session), while the other end is served so, by what exports(handle) gives. What waits
-- for an answer there waits until fn has returned.
local function use(way, open, exports, fn, handle)
  local here, there = open()
  local child = peer.fork(function(channel, moved)
    local all = exports(moved)
    all.leave = function() ipc.rpc.caller():close() end -- not all channels tell
    way.serve(channel, all)
  end, there, handle)
  local over, ok, problem
  local session <close> = assert(ipc.rpc.connect(here, { timeout = LIMIT, exports = {
    begin = function()
      ok, problem = pcall(fn, ipc.rpc.caller())
      over = true
    end,
    asked = function() ipc.rpc.caller().data.asked() end,
    told = function() end,
  } }))
  if way.calls then
    local last = ipc.now() + LIMIT
    repeat
      session:serve(0.01)
    until over or ipc.now() > last
  else
    ok, problem = pcall(fn, session)
    session:notify "leave"
  end
  session:close()
  if not ok then
    child:stop(0)
    error(problem or "it has not begun", 0)
  end
  assert(child:wait(LIMIT))
end

-- ---- answers

-- How a function waits for a gate, which is a channel.
local waits = {
  ["to receive"] = function(gate) gate:recv(LIMIT) end,
  ["to sleep"] = function(gate)
    local last = ipc.now() + LIMIT
    while not gate:recv(0) and ipc.now() < last do ipc.sleep(0.01) end
  end,
  ["for several"] = function(gate) ipc.poll({ gate }, LIMIT) end,
  ["for a poller"] = function(gate)
    local poller <close> = ipc.poller()
    poller:add(gate)
    poller:wait(LIMIT)
  end,
  ["for a process"] = function(gate)
    peer.fork(function(moved) moved:recv(LIMIT) end, gate):wait(LIMIT)
  end,
  ["for a task"] = function(gate)
    ipc.loop.go(function() gate:recv(LIMIT) end):wait()
  end,
  ["for a queue"] = function(gate)
    local queue = ipc.loop.queue()
    ipc.loop.go(function() queue:put(gate:recv(LIMIT)) end)
    queue:get(LIMIT)
  end,
  ["for a call of its own"] = function(gate)
    local here, there = ipc.pair "unix"
    local child = peer.fork(function(channel, moved)
      connect(channel, { pass = function() moved:recv(LIMIT) end }):serve(LIMIT)
    end, there, gate)
    do
      local session <close> = connect(here)
      session:call "pass"
    end
    child:wait(LIMIT)
  end,
}

for _, address in ipairs { "unix?unit=stream", "shm" } do
  for _, way in ipairs(ways) do
    describe(("answers over %s of %s:"):format(address:match "%a+", way.name), function()
      before_each(function() ipc.loop.use(nil) end)
      after_each(function()
        peer.clean()
        ipc.scheduler(nil)
      end)

      -- `first`: what is called before the function that waits.
      local function held(wait, first)
        if not peer.has(address:match "%a+") then return end
        local gate, key = ipc.pipe()
        use(way, function() return assert(ipc.pair(address)) end, function(moved)
          return {
            add = function(a, b) return a + b end,
            fail = function() error("never", 0) end,
            wait = function() wait(moved) return "waited" end,
          }
        end, function(session)
          assert.are.equal(2, (select(2, session:call("add", 1, 1))))
          local batch <close>, futures = session:batch(), {}
          for i, name in ipairs(first) do futures[i] = batch:async(name, i, i) end
          local waiting = batch:async "wait"
          batch:send()
          for i, name in ipairs(first) do
            local ok, value = futures[i]:wait()
            assert.are.same(name == "fail" and { nil, "never" } or { true, 2 * i }, { ok, value })
          end
          assert.is_false(waiting.done)
          key:send "go on"
          assert.are.same({ true, "waited" }, { waiting:wait() })
        end, gate)
        key:close()
      end

      for what, wait in pairs(waits) do
        it("those that are ready go before the next function waits " .. what, function()
          held(wait, { "add", "add", "add" })
        end)
      end

      it("so do errors", function()
        held(waits["to receive"], { "fail", "add", "fail" })
      end)
    end)
  end
end

-- ---- beginnings

local channels = {
  { "pipe", "pipe", { duplex = true } }, { "fifo", "fifo" }, { "sysv", "sysv" }, { "mqueue", "mqueue" },
  { "shm", "shm" }, { "mmap", "mmap" }, { "unix", "unix" }, { "unix", "unix?unit=stream" },
  { "unix", "unix?type=seqpacket" }, { "tcp", "tcp" }, { "tcp", "tcp?unit=stream" },
}

-- Functions that note their first argument, and what each does then.
local function noting()
  local order, others = {}, {}
  local function note(what)
    return function(n, ...)
      order[#order + 1] = n
      return what and what(n, ...)
    end
  end
  return {
    at_once = note(),
    sleeps = note(function() ipc.sleep(0.002) end),
    yields = note(function() ipc.sleep(0) end),
    fails = note(function() error("never", 0) end),
    asks = note(function(n) return ipc.rpc.caller():call("asked", n) end),
    tells = note(function(n) return ipc.rpc.caller():notify("told", n) end),
    waits_for_another = note(function(n)
      others[#others + 1] = n
      ipc.rpc.caller():async("asked", n):wait()
    end),
    order = function() return order end,
  }
end

-- Sends a mixture, and some more of it in the middle of it, when it is asked something.
local function mixture(session, seed)
  local names = { "at_once", "sleeps", "yields", "fails", "asks", "tells", "waits_for_another", "at_once" }
  local n, futures, asks = 0, {}, 0
  local function random(most)
    seed = (seed * 1103515245 + 12345) & 0x7FFFFFFF
    return (seed >> 8) % most + 1
  end
  local function add(target, few)
    local name = names[random(#names)]
    if name == "asks" or name == "waits_for_another" then
      asks = asks + 1
      if asks > 8 or few then name = "yields" end -- calls within calls are bounded
    end
    n = n + 1
    if random(2) == 1 then
      assert(target:notify(name, n))
    else
      futures[#futures + 1] = target:async(name, n)
    end
  end
  session.data.asked = function()
    for _ = 1, random(4) do add(session, true) end
  end
  for _ = 1, 5 do
    asks = 0
    local batch <close> = session:batch()
    for _ = 1, 30 do add(batch) end
    batch:send()
    for _ = 1, 10 do add(session) end
    for _, future in ipairs(futures) do future:wait() end
  end
  local order = session.remote.order()
  for i = 1, n do assert.are.equal(i, order[i]) end
  assert.are.equal(n, #order)
end

for _, channel in ipairs(channels) do
  local mechanism, address, options = table.unpack(channel)
  describe(("calls and notifications over %s"):format(address), function()
    before_each(function() ipc.loop.use(nil) end)
    after_each(function()
      peer.clean()
      ipc.scheduler(nil)
    end)

    for _, way in ipairs(ways) do
      it("begin in the order sent, served by " .. way.name, function()
        if not peer.has(mechanism) then return end
        for seed = 1, 2 do
          use(way, function() return assert(ipc.pair(address, options)) end, noting, function(session)
            mixture(session, seed)
          end)
        end
      end)
    end
  end)
end

describe("a function that only computes", function()
  before_each(function() ipc.loop.use(nil) end)
  after_each(function()
    peer.clean()
    ipc.scheduler(nil)
  end)

  -- What tells a pipe when it ends, and of the calls that come meanwhile.
  local function computing(out)
    local inside = false
    return {
      compute = function()
        local caller, limit, over = ipc.rpc.caller(), ipc.now() + LIMIT, false
        inside = true
        while not over and ipc.now() < limit do over = caller:cancelled() end
        inside = false
        out:put { "over", over, caller:cancelled() }
      end,
      note = function(i) out:put { "note", i, inside } end,
    }
  end

  for i = 1, 3, 2 do
    local way = ways[i]
    for _, address in ipairs { "unix?unit=stream", "unix", "shm" } do
      it(("sees that it is to end, over %s, served by %s"):format(address, way.name), function()
        if not peer.has(address:match "^%a+") then return end
        local here, there = assert(ipc.pair(address))
        local told, out = assert(ipc.pipe())
        local child = peer.fork(function(channel, w) way.serve(channel, computing(w)) end, there, out)
        local session <close> = assert(ipc.rpc.connect(here, { timeout = LIMIT }))
        session:call("note", 0)
        assert.are.same({ "note", 0, false }, told:get(LIMIT))
        -- its time is over
        session:with { timeout = 0.02 }:call "compute"
        assert.are.same({ "over", true, true }, told:get(LIMIT))
        -- it is given up; what came before that begins afterwards, in its order
        local future = session:async "compute"
        assert(session:notify("note", 1))
        local noted = session:async("note", 2)
        assert.is_true(future:cancel())
        assert.are.same({ "over", true, true }, told:get(LIMIT))
        assert.are.same({ "note", 1, false }, told:get(LIMIT))
        assert.are.same({ "note", 2, false }, told:get(LIMIT))
        assert.are.same({ true }, { noted:wait() })
        -- nobody is there any more
        session:async "compute"
        assert(session:notify("note", 3))
        session:close()
        assert.are.same({ "over", true, true }, told:get(LIMIT))
        assert.are.same({ "note", 3, false }, told:get(LIMIT))
        assert(child:wait(LIMIT))
      end)
    end
  end

  it("that has put calls by, and waits then, has them begin first", function()
    local here, there = assert(ipc.pair "unix?unit=stream")
    local told, out = assert(ipc.pipe())
    local child = peer.fork(function(channel, w)
      local exports = { note = function(i) w:put(i) end }
      function exports.ask()
        local caller, limit = ipc.rpc.caller(), ipc.now() + LIMIT
        while not caller.core.later and ipc.now() < limit do caller:cancelled() end
        w:put "asks"
        return caller:call "answer"
      end
      ways[1].serve(channel, exports)
    end, there, out)
    local session <close> = assert(ipc.rpc.connect(here, { timeout = LIMIT, exports = {
      answer = function() return "yes" end,
    } }))
    session:call("note", 0)
    local future = session:async "ask"
    for i = 1, 10 do assert(session:notify("note", i)) end
    assert.are.same({ true, true, "yes" }, { future:wait() })
    session:close()
    local all = {}
    for i = 1, 12 do all[i] = told:get(LIMIT) end
    assert.are.same({ 0, "asks", 1, 2, 3, 4, 5, 6, 7, 8, 9, 10 }, all)
    assert(child:wait(LIMIT))
  end)
end)
