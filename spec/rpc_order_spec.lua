-- What comes first: calls and notifications begin in the order sent, over whatever channel
-- and however they are served, and answers that are ready wait for nobody.
local core = require "ipc.core"
local ipc = require "ipc"
local elsewhere = require "spec.support.elsewhere"
local peer = require "spec.support.peer"

local E = ipc.errno
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
      local function held(wait, first, options)
        if not peer.has(address:match "%a+") then return end
        local gate, key = ipc.pipe()
        use(way, function() return assert(ipc.pair(address, options)) end, function(moved)
          return {
            add = function(a, b) return a + b end,
            much = function(a, b) return a + b, ("x"):rep(options and 3000 or 500000) end,
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

      for what, wait in pairs(waits) do
        it("so do those that there is no room for at once " .. what, function()
          held(wait, { "much", "add", "much", "fail", "much", "add" }, address == "shm" and { capacity = 4096 } or nil)
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

describe("of a session that has ended,", function()
  before_each(function() ipc.loop.use(nil) end)
  after_each(function()
    peer.clean()
    ipc.scheduler(nil)
  end)

  -- A channel, and the wire at its other end.
  local function open()
    local here, there = assert(ipc.pair("unix", { unit = "stream" }))
    return here, core.rpc.wire(there, {}), there
  end

  -- What is waited for, as a function that waits for ever sees it.
  local function raised()
    local ok, problem = pcall(ipc.sleep, 1e9)
    return ok or problem.errno
  end

  -- Who is in the middle of what when more comes: begin(channel, exports, wire)
  local busy = {
    ["a function waits for an answer"] = function(channel, exports, wire)
      function exports.ask() ipc.rpc.caller():call "anything" end
      local session = assert(ipc.rpc.serve(channel, exports, { timeout = LIMIT }))
      wire:request(1, "ask")
      wire:flush()
      return session
    end,
    ["somebody waits for an answer"] = function(channel, exports)
      local session = assert(ipc.rpc.connect(channel, { peer = "plain", timeout = LIMIT, exports = exports }))
      ipc.loop.go(function() session:call "anything" end)
      return session
    end,
  }

  for what, begin in pairs(busy) do
    it("notifications that had come begin, and are cancelled; calls do not: while " .. what, function()
      elsewhere.run(function()
        local seen = ipc.loop.queue()
        local channel, wire, there = open()
        local session <close> = begin(channel, {
          call = function() seen:put "call" end,
          note = function() seen:put "note" end,
          wait = function() seen:put(raised()) end,
        }, wire)
        assert.are.equal("anything", (select(3, wire:recv(LIMIT))))
        wire:request(2, "call")
        wire:notify "note"
        wire:notify "wait"
        wire:flush()
        there:close()
        assert.are.equal("note", seen:get(LIMIT))
        assert.are.equal(E.ECANCELED, seen:get(LIMIT))
        assert.is_true(session:wait(LIMIT))
        assert.are.equal(0, session:stats().running)
      end)
    end)
  end

  it("the same begin when a function has ended that looks whether it is to", function()
    local channel, wire, there = open()
    local seen = {}
    local session <close> = assert(ipc.rpc.connect(channel, { peer = "plain", timeout = LIMIT, exports = {
      compute = function()
        local caller, limit = ipc.rpc.caller(), ipc.now() + LIMIT
        while not caller:cancelled() and ipc.now() < limit do end
        seen[#seen + 1] = "computed"
      end,
      call = function() seen[#seen + 1] = "call" end,
      note = function() seen[#seen + 1] = ipc.rpc.caller():cancelled() end,
    } }))
    wire:request(1, "compute")
    wire:request(2, "call")
    wire:notify "note"
    wire:flush()
    there:close()
    assert.is_true(session:serve(LIMIT))
    assert.are.same({ "computed", true }, seen)
  end)

  it("nothing begins that had come when it was closed here", function()
    elsewhere.run(function()
      local seen = {}
      local channel, wire, there = open()
      local session = assert(ipc.rpc.connect(channel, { peer = "plain", timeout = LIMIT, exports = {
        leave = function() ipc.rpc.caller():close() end,
        note = function() seen[#seen + 1] = "note" end,
      } }))
      wire:notify "leave"
      wire:notify "note"
      wire:notify "note"
      wire:flush()
      assert.are.equal(E.EPIPE, (select(3, session:call "anything")))
      for _ = 1, 3 do ipc.sleep(0) end
      assert.are.same({}, seen)
      there:close()
    end)
  end)

  it("a call that finds that out itself is cancelled as the others are", function()
    elsewhere.run(function()
      local seen = ipc.loop.queue()
      -- it reads for the session
      local channel, wire, there = open()
      local served <close> = assert(ipc.rpc.serve(channel, { ask = function()
        seen:put((select(3, ipc.rpc.caller():call "anything")))
        seen:put(raised())
      end }, { timeout = LIMIT }))
      wire:request(1, "ask")
      wire:flush()
      wire:recv(LIMIT)
      there:close()
      assert.are.equal(E.EPIPE, seen:get(LIMIT))
      assert.are.equal(E.ECANCELED, seen:get(LIMIT))
      -- it had to wait before, and nobody else reads
      local gate = ipc.loop.queue()
      channel, wire, there = open()
      local session <close> = assert(ipc.rpc.connect(channel, { peer = "plain", timeout = LIMIT, exports = {
        ask = function()
          seen:put "waits"
          gate:get(LIMIT)
          seen:put((select(3, ipc.rpc.caller():call "anything")))
          seen:put(raised())
        end,
      } }))
      local task = ipc.loop.go(function() return session:call "first" end)
      local _, id = wire:recv(LIMIT)
      wire:request(1, "ask")
      wire:flush()
      assert.are.equal("waits", seen:get(LIMIT))
      wire:result(id, "done")
      wire:flush()
      assert.are.same({ true, true, "done" }, { task:wait(LIMIT) })
      gate:put(true)
      wire:recv(LIMIT)
      there:close()
      assert.are.equal(E.EPIPE, seen:get(LIMIT))
      assert.are.equal(E.ECANCELED, seen:get(LIMIT))
      assert.is_true(served:wait(LIMIT))
    end)
  end)
end)

describe("on_open of a server", function()
  before_each(function() ipc.loop.use(nil) end)
  after_each(function()
    peer.clean()
    ipc.scheduler(nil)
  end)

  -- An address or a channel that is served, and what a client connects to.
  local places = {
    ["at an address"] = function(exports, options)
      local server = assert(ipc.rpc.serve(peer.address "unix", exports, options))
      return server, server.address
    end,
    ["of a channel"] = function(exports, options)
      local here, there = assert(ipc.pair("unix", { unit = "stream" }))
      return assert(ipc.rpc.serve(here, exports, options)), there
    end,
  }

  for _, key in ipairs { "", "with a key " } do
    for place, serve in pairs(places) do
      it(("has returned before a call begins, whatever it waits for, %s%s"):format(key, place), function()
        elsewhere.run(function()
          local authkey = key ~= "" and "the key" or nil
          local seen = ipc.loop.queue()
          local server <close>, where = serve({
            note = function(i) seen:put { i, ipc.rpc.caller().data.user } end,
          }, { timeout = LIMIT, authkey = authkey, on_open = function(session)
            local _, user = session:call "who"
            ipc.sleep(0.002)
            session.data.user = user
          end })
          local client <close> = assert(ipc.rpc.connect(where, { timeout = LIMIT, authkey = authkey, exports = {
            who = function() -- what it sends comes before its answer
              assert(ipc.rpc.caller():notify("note", 2))
              ipc.rpc.caller():async("note", 3)
              assert(ipc.rpc.caller():notify("note", 4))
              return "me"
            end,
          } }))
          assert.is_true(client:call("note", 1))
          for i = 1, 4 do assert.are.same({ i, "me" }, seen:get(LIMIT)) end
          assert.is_truthy(server)
        end)
      end)

      it(("may close the session, and no call begins, %s%s"):format(key, place), function()
        elsewhere.run(function()
          local authkey, began, over = key ~= "" and "the key" or nil, 0, ipc.loop.queue()
          local server <close>, where = serve({ note = function() began = began + 1 end }, {
            timeout = LIMIT, authkey = authkey, on_close = function() over:put(true) end,
            on_open = function(session)
              session:call "who"
              session:close()
            end,
          })
          local client <close> = assert(ipc.rpc.connect(where, { timeout = LIMIT, authkey = authkey, exports = {
            who = function()
              ipc.rpc.caller():notify("note", 1)
              ipc.rpc.caller():async("note", 2)
            end,
          } }))
          assert.are.equal(E.EPIPE, (select(3, client:call("note", 3))))
          assert.is_true(over:get(LIMIT))
          for _ = 1, 3 do ipc.sleep(0) end
          assert.are.equal(0, began)
          assert.is_truthy(server)
        end)
      end)
    end
  end

  it("runs before what comes with the proof of the key", function()
    elsewhere.run(function()
      local events = ipc.loop.queue()
      local server <close> = assert(ipc.rpc.serve(peer.address "unix", { note = function() events:put "call" end }, {
        timeout = LIMIT, authkey = "the key", on_open = function()
          ipc.sleep(0.002)
          events:put "open"
        end,
      }))
      local channel <close> = assert(ipc.connect(server.address, { unit = "stream" }))
      local wire, mine = core.rpc.wire(channel, {}), ("n"):rep(32)
      wire:request(1, "$auth", 1, mine)
      wire:flush()
      local _, _, _, theirs = wire:recv(LIMIT)
      theirs = type(theirs) == "table" and theirs[1] or theirs
      wire:request(2, "$auth", 2, core.rpc.hmac("the key", "lua-ipc client" .. mine .. theirs))
      wire:request(3, "note")
      wire:flush()
      assert.are.equal("open", events:get(LIMIT))
      assert.are.equal("call", events:get(LIMIT))
    end)
  end)

  for place, serve in pairs(places) do
    it("and its on_close hear of nobody who has not proved the key, " .. place, function()
      elsewhere.run(function()
        local function count(who)
          local events = {}
          local server <close>, where = serve({ add = function(a, b) return a + b end }, {
            timeout = LIMIT, authkey = "the key", on_error = quiet,
            on_open = function() events[#events + 1] = "open" end,
            on_close = function() events[#events + 1] = "close" end,
          })
          who(where)
          server:close()
          return events
        end
        -- leaves at once
        assert.are.same({}, count(function(where)
          local channel = type(where) == "string" and assert(ipc.connect(where, { unit = "stream" })) or where
          channel:close()
        end))
        for _, key in ipairs { "another", "" } do
          assert.are.same({}, count(function(where)
            local known = key ~= "" and key or nil
            local client <close> = assert(ipc.rpc.connect(where, { timeout = LIMIT, authkey = known }))
            assert.are.equal(E.EACCES, (select(3, client:call("add", 1, 2))))
          end))
        end
        assert.are.same({ "open", "close" }, count(function(where)
          local client <close> = assert(ipc.rpc.connect(where, { timeout = LIMIT, authkey = "the key" }))
          assert.are.equal(3, client.remote.add(1, 2))
        end))
      end)
    end)
  end
end)
