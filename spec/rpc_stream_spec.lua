-- Streams: iterators as arguments and results of calls, ipc.rpc.stream.
local ipc = require "ipc"
local elsewhere = require "spec.support.elsewhere"
local peer = require "spec.support.peer"

local E = ipc.errno

-- What the other side lets be called. Nothing of the spec's state is in it: it may be
-- another process.
local function exports()
  local rpc = ipc.rpc
  local made, ended, kept = 0, {}, nil
  local queue
  local function counter(n)
    local i = 0
    return function()
      if i < n then
        i, made = i + 1, made + 1
        return i
      end
    end
  end
  local function note(name)
    return setmetatable({}, { __close = function(_, problem)
      ended[name] = problem and tostring(problem.message or problem) or "closed"
    end })
  end
  return {
    count = function(n) return rpc.stream(counter(n)) end,
    emit = function(n)
      return rpc.stream(function(emit)
        local guard <close> = note "emit"
        for i = 1, n do
          made = i
          emit(i)
        end
        return guard
      end)
    end,
    pairs = function(t) return rpc.stream(pairs(t)) end,
    several = function() return rpc.stream(function(emit)
      emit(1, nil, 3)
      emit(false)
      emit({ x = 1 }, nil)
    end) end,
    empty = function() return rpc.stream(function() end) end,
    fails = function(n) return rpc.stream(function(emit)
      for i = 1, n do emit(i) end
      error({ message = "no more", errno = E.EIO })
    end) end,
    closing = function() return rpc.stream(counter(5), nil, nil, note "closing") end,
    big = function(n, size) return rpc.stream(function(emit)
      for i = 1, n do
        made = i
        emit(("x"):rep(size))
      end
    end) end,
    functions = function(n) return rpc.stream(function(emit)
      for i = 1, n do emit(function(x) return x + i end) end
    end) end,
    live = function()
      queue = ipc.loop.queue()
      return rpc.stream(queue:values())
    end,
    feed = function(...) for _, v in ipairs { ... } do queue:put(v) end end,
    finish = function() queue:close() end,
    asks = function(n, f) return rpc.stream(function(emit)
      for i = 1, n do emit(f(i)) end
    end) end,
    sum = function(stream)
      local sum = 0
      for v in stream do sum = sum + v end
      return sum
    end,
    first = function(stream, n)
      local list = {}
      for v in stream do
        list[#list + 1] = v
        if #list == n then break end
      end
      return list
    end,
    keep = function(stream) kept = stream end,
    kept = function() return kept end,
    made = function() return made end,
    ended = function(name) return ended[name] end,
    nothing = function() end,
    collect = function() collectgarbage() collectgarbage() end,
    stats = function() return rpc.caller():stats() end,
  }
end

local function all(stream)
  local list = {}
  for v in stream do list[#list + 1] = v end
  return list
end

-- Calls until an answer is that; there may be more to do there before.
local function until_is(session, wanted, name, ...)
  local limit = ipc.now() + peer.limit
  local answer
  repeat
    answer = select(2, assert(session:call(name, ...)))
    if answer == wanted then return answer end
    session:call "nothing"
  until ipc.now() > limit
  return answer
end

for _, way in ipairs(elsewhere.ways()) do
  describe("streams, " .. way.name .. ":", function()
    before_each(function() ipc.loop.use(nil) end)
    after_each(function()
      peer.clean()
      ipc.scheduler(nil)
    end)

    it("the values of an iterator arrive in order, all of them", function()
      way.use(exports, function(session)
        for _, name in ipairs { "count", "emit" } do
          for _, n in ipairs { 0, 1, 2, 3, 1000 } do
            local list = all(session.remote[name](n))
            assert.are.equal(n, #list)
            for i = 1, n do assert.are.equal(i, list[i]) end
          end
        end
        assert.are.same({}, all(session.remote.empty()))
      end)
    end)

    it("steps may have several values, nils among them", function()
      way.use(exports, function(session)
        local s = session.remote.several()
        assert.are.same({ 1, nil, 3, n = 3 }, table.pack(s()))
        assert.are.same({ false, n = 1 }, table.pack(s()))
        assert.are.same({ { x = 1 }, nil, n = 2 }, table.pack(s()))
        assert.is_nil(s())
        assert.is_nil(s())
        local t = {}
        for k, v in session.remote.pairs { a = 1, b = 2, c = 3 } do t[k] = v end
        assert.are.same({ a = 1, b = 2, c = 3 }, t)
      end)
    end)

    it("a stream of ours is consumed by the other side", function()
      way.use(exports, function(session)
        assert.are.equal(5050, session.remote.sum(ipc.rpc.stream(function(emit)
          for i = 1, 100 do emit(i) end
        end)))
        assert.are.same({ 1, 2, 3 }, session.remote.first(ipc.rpc.stream(ipairs { 1, 2, 3, 4, 5 }), 3))
      end)
    end)

    it("a stream that comes home is the stream itself, and is iterated here too", function()
      way.use(exports, function(session)
        local mine = ipc.rpc.stream(function(emit) for i = 1, 3 do emit(i) end end)
        session.remote.keep(mine)
        assert.are.equal(mine, session.remote.kept())
        assert.are.same({ 1, 2, 3 }, all(mine))
      end)
    end)

    it("the producer makes no more than it was asked for", function()
      way.use(exports, function(session)
        local s <close> = session.remote.emit(1000000)
        for n = 1, 600 do
          assert.are.equal(n, s())
          local made = session.remote.made()
          assert.is_true(made >= n and made <= math.min(2 * n, n + 256), made)
        end
      end)
    end)

    it("of the first value nothing more is made", function()
      way.use(exports, function(session)
        local s <close> = session.remote.emit(10)
        session.remote.nothing()
        assert.are.equal(0, session.remote.made())
        assert.are.equal(1, s())
        assert.are.equal(1, session.remote.made())
      end)
    end)

    it("values of a live stream arrive one by one", function()
      way.use(exports, function(session)
        local s <close> = session.remote.live()
        session.remote.feed(1, 2, 3, 4, 5, 6, 7) -- so that more than one is asked for
        for i = 1, 7 do assert.are.equal(i, s()) end
        for i = 8, 30 do
          local future = session:async("feed", i)
          assert.are.equal(i, s())
          assert(future:wait())
        end
        session.remote.finish()
        assert.is_nil(s())
      end)
    end)

    it("a step waits no longer than it is told, and the stream goes on", function()
      if not way.tasks then return end -- calls are served one within the other
      way.use(exports, function(session)
        local s <close> = session.remote.live()
        for i = 1, 3 do
          for _, seconds in ipairs { 0.02, 0 } do
            local value, message, errno = s:next(seconds)
            assert.are.same({ nil, "timeout", E.ETIMEDOUT }, { value, message, errno })
          end
          session.remote.feed(i)
          assert.are.equal(i, s:next(peer.limit))
        end
        session.remote.feed(4)
        local value, limit = s:next(0), ipc.now() + peer.limit
        while value == nil and ipc.now() < limit do
          ipc.sleep(0.001)
          value = s:next(0)
        end
        assert.are.equal(4, value)
        session.remote.feed(5)
        assert.are.equal(5, s())
      end)
    end)

    it("next answers values, the end, and what goes wrong", function()
      way.use(exports, function(session)
        local s = session.remote.fails(2)
        assert.are.same({ 1, 2 }, { s:next(), (s:next(peer.limit)) })
        for _ = 1, 2 do
          local v, text, number, problem = s:next(peer.limit)
          assert.are.same({ nil, "no more", E.EIO, "no more" }, { v, text, number, problem.message })
        end
        s = session.remote.count(1)
        assert.are.equal(1, s:next(peer.limit))
        for _ = 1, 2 do assert.are.same(table.pack(nil), table.pack(s:next(peer.limit))) end
        ipc.rpc.release(session.remote.count(2))
        s = session.remote.count(2)
        ipc.rpc.release(s)
        assert.are.equal(E.EPIPE, select(3, s:next()))
        s = session.remote.several()
        assert.are.same(table.pack(1, nil, 3), table.pack(s:next(peer.limit)))
        assert.has_error(function() s:next "1" end, "bad argument #1 to 'next' (seconds expected, got string)")
        assert.has_error(function() s.next(5) end, "bad self of 'next' (remote stream expected: use a colon)")
        local mine = ipc.rpc.stream(function(emit)
          emit(1, 2)
          error({ message = "mine", errno = E.EIO })
        end)
        assert.are.same({ 1, 2 }, { mine:next(peer.limit) })
        local value, message, errno, problem = mine:next()
        assert.are.same({ nil, "mine", E.EIO, "mine" }, { value, message, errno, tostring(problem) })
        mine = ipc.rpc.stream(function() error("a text", 0) end)
        for _ = 1, 2 do
          value, message, errno, problem = mine:next()
          assert.are.same({ nil, "a text", 0 }, { value, message, errno })
          assert.are.same({ "a text", 0, "a text" }, { problem.message, problem.errno, tostring(problem) })
        end
        assert.has_error(function() mine.next() end, "bad self of 'next' (stream expected: use a colon)")
        assert.has_error(function() mine.next({}, 1) end, "bad self of 'next' (stream expected: use a colon)")
        local silent <close> = ipc.rpc.stream(function(emit) ipc.sleep(60) emit(1) end)
        assert.are.equal(E.ETIMEDOUT, select(3, silent:next(0.01)))
      end)
    end)

    it("an error of the producer comes after the values before it", function()
      way.use(exports, function(session)
        for _, n in ipairs { 0, 1, 5, 300 } do
          local s, seen = session.remote.fails(n), 0
          local ok, problem = pcall(function()
            for v in s do
              seen = seen + 1
              assert.are.equal(seen, v)
            end
          end)
          assert.is_false(ok)
          assert.are.equal(n, seen)
          assert.are.equal(E.EIO, problem.errno)
          assert.is_truthy(problem.message:find("no more", 1, true))
          assert.is_false((pcall(s))) -- again
        end
      end)
    end)

    it("release cancels the producer, and closes what is to be closed", function()
      way.use(exports, function(session)
        do
          local s <close> = session.remote.emit(1000000)
          assert.are.equal(1, s())
          assert.are.equal(2, s())
        end
        assert.are.equal("cancelled", until_is(session, "cancelled", "ended", "emit"))
        local made = session.remote.made()
        session.remote.nothing()
        assert.are.equal(made, session.remote.made())
        do
          local closed <close> = session.remote.closing()
          assert.are.equal(1, closed())
        end
        assert.are.equal("cancelled", until_is(session, "cancelled", "ended", "closing"))
        local unused = session.remote.closing()
        ipc.rpc.release(unused)
        assert.are.equal("closed", until_is(session, "closed", "ended", "closing"))
        local ok, problem = pcall(unused)
        assert.is_false(ok)
        assert.is_truthy(tostring(problem):find("released", 1, true))
        assert.are.same({ 1, 2, 3, 4, 5 }, all(session.remote.closing()))
        assert.are.equal("closed", session.remote.ended "closing")
      end)
    end)

    it("a stream that was released gives nothing of what has come already", function()
      way.use(exports, function(session)
        for n in pairs { [3] = "its last values are there", [1000] = "there are more" } do
          local s <close> = session.remote.emit(n)
          assert.are.same({ 1, 2 }, { s(), (s()) }) -- with the second came another
          ipc.rpc.release(s)
          local ok, problem = pcall(s)
          assert.are.same({ false, E.EPIPE }, { ok, problem.errno }, n)
          assert.are.equal(E.EPIPE, select(3, s:next(peer.limit)))
        end
      end)
    end)

    it("a stream that was left and collected is cancelled", function()
      way.use(exports, function(session)
        local function use()
          for v in session.remote.emit(1000000) do
            if v == 10 then break end
          end
        end
        use()
        for _ = 1, 3 do
          session:call("first", ipc.rpc.stream(ipairs { 1, 2 }), 9)
          collectgarbage()
          session.remote.collect()
          session.remote.nothing()
        end
        assert.are.equal("cancelled", until_is(session, "cancelled", "ended", "emit"))
        assert.are.equal(0, session.remote.stats().exported)
      end)
    end)

    it("a stream that has ended is given back", function()
      way.use(exports, function(session)
        local s = session.remote.count(10)
        assert.are.equal(10, #all(s))
        session.remote.nothing()
        assert.are.equal(0, session.remote.stats().exported)
        assert.are.equal(0, session:stats().imported)
        assert.is_nil(s())
      end)
    end)

    it("large values come a few at a time", function()
      way.use(exports, function(session)
        local n = 0
        for v in session.remote.big(200, 200000) do
          n = n + 1
          assert.are.equal(200000, #v)
        end
        assert.are.equal(200, n)
      end)
    end)

    it("values may be references", function()
      way.use(exports, function(session)
        local sum = 0
        for f in session.remote.functions(20) do sum = sum + f(1) end
        assert.are.equal(20 + 210, sum)
      end)
    end)

    it("a producer calls the consumer", function()
      way.use(exports, function(session)
        assert.are.same({ 2, 4, 6 }, all(session.remote.asks(3, function(i) return 2 * i end)))
      end)
    end)

    it("two streams at once", function()
      way.use(exports, function(session)
        local a, b = session.remote.emit(100), session.remote.count(100)
        for i = 1, 100 do
          assert.are.equal(i, a())
          assert.are.equal(i, b())
        end
        assert.is_nil(a())
        assert.is_nil(b())
      end)
    end)

    it("bad calls for values are answered, and change nothing", function()
      way.use(exports, function(session)
        local s = session.remote.count(3)
        for _, n in ipairs { 0, -1, 1.5, "x", {}, math.mininteger } do
          assert.are.equal(E.EINVAL, select(3, session:call("$next", s, n)))
        end
        assert.are.equal(E.EINVAL, select(3, session:call("$next", s)))
        assert.are.same({ 1, 2, 3 }, all(s))
      end)
    end)
  end)
end

describe("streams and the end of a peer:", function()
  before_each(function() ipc.loop.use(nil) end)
  after_each(function()
    peer.clean()
    ipc.scheduler(nil)
  end)

  for _, way in ipairs(elsewhere.ways()) do
    if not way.tasks then
      it("a producer that dies in the middle ends the loop by an error, " .. way.name, function()
        way.use(exports, function(session, child)
          local seen = {}
          local ok, problem = pcall(function()
            for v in session.remote.emit(math.maxinteger) do
              seen[#seen + 1] = v
              if v == 100 then child:kill "KILL" end
            end
          end)
          assert.is_false(ok)
          assert.is_true(problem.errno == E.EPIPE or problem.errno == E.EOWNERDEAD, tostring(problem))
          for i, v in ipairs(seen) do assert.are.equal(i, v) end
          assert.is_true(#seen >= 100)
          return true
        end, nil, nil, true)
      end)
    end
  end

  it("a consumer that is gone cancels the producer", function()
    elsewhere.run(function()
      local ended = ipc.loop.queue()
      local server <close> = assert(ipc.rpc.serve(peer.address "unix", {
        count = function() return ipc.rpc.stream(function(emit)
          local guard <close> = setmetatable({}, { __close = function(_, problem) ended:put(problem.message) end })
          for i = 1, math.huge do emit(i) end
          return guard
        end) end,
        quiet = function() return ipc.rpc.stream(function(emit)
          local guard <close> = setmetatable({}, { __close = function(_, problem) ended:put(problem.message) end })
          emit(1)
          ipc.loop.queue():get()
          return guard
        end) end,
      }))
      for _, name in ipairs { "count", "quiet" } do
        local session = assert(ipc.rpc.connect(server.address, { timeout = peer.limit }))
        local s = session.remote[name]()
        assert.are.equal(1, s())
        session:close()
        assert.are.equal("cancelled", ended:get(peer.limit))
        local ok, problem = pcall(s)
        assert.is_false(ok)
        assert.are.equal(E.EPIPE, problem.errno)
      end
    end)
  end)

  it("who waits for a value when the session is closed is told", function()
    elsewhere.run(function()
      local server <close> = assert(ipc.rpc.serve(peer.address "unix", exports()))
      local session = assert(ipc.rpc.connect(server.address, { timeout = peer.limit }))
      local s = session.remote.live()
      local task = ipc.loop.go(function() return pcall(s) end)
      session.remote.nothing()
      session:close()
      local _, ok, problem = task:wait(peer.limit)
      assert.is_false(ok)
      assert.are.equal(E.EPIPE, problem.errno)
      assert.are.equal("closed", problem.message)
    end)
  end)
end)

describe("streams, waiting:", function()
  before_each(function() ipc.loop.use(nil) end)
  after_each(function()
    peer.clean()
    ipc.scheduler(nil)
  end)

  it("a stream may be quiet for longer than calls may take", function()
    -- Whether one is, with calls that may take so many seconds.
    local function quiet(seconds)
      return elsewhere.run(function()
        local gates = ipc.loop.queue()
        local server <close> = assert(ipc.rpc.serve(peer.address "unix", {
          live = function() return ipc.rpc.stream(gates:values()) end,
        }, { timeout = seconds }))
        local session <close> = assert(ipc.rpc.connect(server.address, { timeout = seconds }))
        local ok, stream = session:call "live"
        if not ok then return false end
        local s <close> = stream
        local task = ipc.loop.go(function() return pcall(s) end)
        ipc.sleep(5 * seconds)
        gates:put "late"
        local _, came, value = assert(task:wait(peer.limit))
        return came and value == "late"
      end)
    end
    -- Who is held up for half of that time has no answer: noise is met by more time.
    assert.is_true(quiet(0.1) or quiet(0.4) or quiet(1.6) or quiet(4))
  end)

  it("a consumer that is cancelled while it waits loses nothing", function()
    elsewhere.run(function()
      local values = ipc.loop.queue()
      local server <close> = assert(ipc.rpc.serve(peer.address "unix", {
        live = function() return ipc.rpc.stream(values:values()) end,
        nothing = function() end,
      }))
      local session <close> = assert(ipc.rpc.connect(server.address, { timeout = peer.limit }))
      local s <close> = session.remote.live()
      for i = 1, 20 do
        local task = ipc.loop.go(function() return s() end)
        session.remote.nothing()
        values:put(i)
        task:cancel()
        local ok, v = task:wait(peer.limit)
        if not ok then v = s() end
        assert.are.equal(i, v)
      end
    end)
  end)

  it("several tasks share a stream", function()
    elsewhere.run(function()
      local server <close> = assert(ipc.rpc.serve(peer.address "unix", exports()))
      local session <close> = assert(ipc.rpc.connect(server.address, { timeout = peer.limit }))
      local s, sum, tasks = session.remote.emit(500), 0, {}
      for i = 1, 5 do
        tasks[i] = ipc.loop.go(function()
          for v in s do
            sum = sum + v
            if v % 7 == 0 then session.remote.nothing() end
          end
        end)
      end
      for _, task in ipairs(tasks) do assert(task:wait(peer.limit)) end
      assert.are.equal(125250, sum)
    end)
  end)

  it("two sessions that hold one stream share it, and the last one ends it", function()
    elsewhere.run(function()
      local ended = ipc.loop.queue()
      local one = ipc.rpc.stream(function(emit)
        local guard <close> = setmetatable({}, { __close = function() ended:put(true) end })
        for i = 1, math.huge do emit(i) end
        return guard
      end)
      local server <close> = assert(ipc.rpc.serve(peer.address "unix", { get = function() return one end,
        nothing = function() end }))
      local a <close> = assert(ipc.rpc.connect(server.address, { timeout = peer.limit }))
      local b <close> = assert(ipc.rpc.connect(server.address, { timeout = peer.limit }))
      local s, t = a.remote.get(), b.remote.get()
      assert.are.same({ 1, 2 }, { s(), t() })
      ipc.rpc.release(s)
      a.remote.nothing()
      assert.are.equal(0, #ended)
      assert.are.equal(3, t())
      ipc.rpc.release(t)
      assert.is_true(ended:get(peer.limit))
    end)
  end)

  it("a producer that takes its time over each value is not waited for by those that are there", function()
    elsewhere.run(function()
      local made = 0
      local server <close> = assert(ipc.rpc.serve(peer.address "unix", {
        slow = function() return ipc.rpc.stream(function(emit)
          for i = 1, 40 do
            local moment = ipc.now() + 0.01 -- it computes, and lets nobody else run
            while ipc.now() < moment do end
            made = i
            emit(i)
          end
        end) end,
      }))
      local session <close> = assert(ipc.rpc.connect(server.address, { timeout = peer.limit }))
      local n = 0
      for v in session.remote.slow() do
        n = n + 1
        assert.are.equal(n, v)
        assert.is_true(made <= v + 1, made)
      end
      assert.are.equal(40, n)
    end)
  end)

  it("answers fit the messages of the mechanism", function()
    elsewhere.run(function()
      local a, b = ipc.pair("unix", { type = "seqpacket", maxsize = 2048 })
      peer.keep(a, b)
      local server <close> = ipc.rpc.serve(a, {
        strings = function(n) return ipc.rpc.stream(function(emit)
          for i = 1, n do emit(("x"):rep(i % 300), { i, key = i }) end
        end) end,
        functions = function(n) return ipc.rpc.stream(function(emit)
          for i = 1, n do emit(function() return i end) end
        end) end,
      }, { timeout = peer.limit })
      local session <close> = assert(ipc.rpc.connect(b, { timeout = peer.limit }))
      local n = 0
      for text, t in session.remote.strings(700) do
        n = n + 1
        assert.are.equal(n % 300, #text)
        assert.are.same({ n, key = n }, t)
      end
      assert.are.equal(700, n)
      local held = {}
      for f in session.remote.functions(500) do held[#held + 1] = f end
      assert.are.equal(500, held[500]())
      assert.is_truthy(server)
    end)
  end)

  it("a value that cannot be sent is told of after those before it", function()
    elsewhere.run(function()
      local server <close> = assert(ipc.rpc.serve(peer.address "unix", {
        bad = function(n) return ipc.rpc.stream(function(emit)
          for i = 1, n do emit(i) end
          emit(coroutine.create(print))
        end) end,
      }))
      local session <close> = assert(ipc.rpc.connect(server.address, { timeout = peer.limit }))
      for _, n in ipairs { 0, 1, 2, 5, 50 } do
        local seen = 0
        local ok, problem = pcall(function()
          for v in session.remote.bad(n) do
            seen = seen + 1
            assert.are.equal(seen, v)
          end
        end)
        assert.is_false(ok)
        assert.is_truthy(tostring(problem):find("a thread cannot be packed", 1, true), tostring(problem))
        assert.are.equal(n, seen)
      end
    end)
  end)

  it("one made here gives its values also to who does not wait, outside of tasks", function()
    local s <close> = ipc.rpc.stream(function(emit)
      emit(1, nil, 3)
      ipc.sleep(0.01)
      emit(2)
    end)
    local function poll()
      local limit = ipc.now() + peer.limit
      while true do
        local step = table.pack(s:next(0))
        if step[3] ~= E.ETIMEDOUT or ipc.now() > limit then return step end
        assert.are.equal("timeout", tostring(step[4]))
      end
    end
    assert.are.same({ n = 3, 1, nil, 3 }, poll())
    assert.are.same({ n = 1, 2 }, poll())
    assert.are.same({ n = 1, nil }, poll())
  end)

  it("what is emitted late raises, and nil does", function()
    elsewhere.run(function()
      local kept
      local server <close> = assert(ipc.rpc.serve(peer.address "unix", {
        early = function() return ipc.rpc.stream(function(emit) kept = emit emit(1) end) end,
        none = function() return ipc.rpc.stream(function(emit) emit(nil) end) end,
      }))
      local session <close> = assert(ipc.rpc.connect(server.address, { timeout = peer.limit }))
      assert.are.same({ 1 }, all(session.remote.early()))
      local ok, message = pcall(kept, 2)
      assert.is_false(ok)
      assert.is_truthy(message:find("the stream has ended", 1, true), message)
      ok, message = pcall(session.remote.none())
      assert.is_false(ok)
      assert.is_truthy(tostring(message):find("a value expected, got nil", 1, true), tostring(message))
    end)
  end)
end)

describe("streams and peers that are not ours:", function()
  before_each(function() ipc.loop.use(nil) end)
  after_each(function()
    peer.clean()
    ipc.scheduler(nil)
  end)

  it("they get a list, of one value or a list of them a step", function()
    elsewhere.run(function()
      local names = exports()
      names.give = function(...) return ... end
      names.endless = function() return ipc.rpc.stream(function(emit) for i = 1, math.huge do emit(i) end end) end
      local server <close> = assert(ipc.rpc.serve(peer.address "unix", names))
      local session <close> = assert(ipc.rpc.connect(server.address, { peer = "plain", timeout = peer.limit }))
      assert.are.same({ 1, 2, 3 }, session.remote.count(3))
      assert.are.same({}, session.remote.empty())
      assert.are.same({ { "a", 1 } }, session.remote.pairs { a = 1 })
      local several = session.remote.several()
      assert.are.same({ 1, nil, 3 }, several[1])
      assert.are.equal(false, several[2])
      local ok, message = session:call("fails", 3)
      assert.is_nil(ok)
      assert.is_truthy(message:find("no more", 1, true), message)
      ok, message = session:call "endless"
      assert.is_nil(ok)
      assert.is_truthy(message:find("more than 100000 values", 1, true), message)
      -- and as arguments, at any depth
      local list = session.remote.give({ deep = { ipc.rpc.stream(ipairs { "x", "y" }) } })
      assert.are.same({ deep = { { { 1, "x" }, { 2, "y" } } } }, list)
      local stream = ipc.rpc.stream(function(emit) emit(1) emit(2) end)
      assert.are.equal(3, session.remote.give(3))
      assert.are.same({ 1, 2 }, session.remote.give(stream))
    end)
  end)

  it("all their lists together are no longer than a message, whatever they consist of", function()
    elsewhere.run(function()
      local feed, begun = ipc.loop.queue(), ipc.loop.queue()
      local block = ("x"):rep(1 << 20)
      local function emits(n, after)
        return function()
          return ipc.rpc.stream(function(emit)
            for _ = 1, n do emit(block) end
            if after then after() end
          end)
        end
      end
      local row = {}
      for i = 1, 3000 do row[i] = i end
      local server <close> = assert(ipc.rpc.serve(peer.address "unix", {
        endless = emits(math.huge), ten = emits(10),
        waits = emits(10, function()
          begun:put(true)
          feed:get()
        end),
        rows = function() return ipc.rpc.stream(function(emit) for _ = 1, 3 do emit(row) end end) end,
        nested = function() return ipc.rpc.stream(function(emit) emit(ipc.rpc.stream(ipairs { "x" })) end) end,
        pass = function(...) return ... end,
      }, { on_error = function() end }))
      local session <close> = assert(ipc.rpc.connect(server.address, { peer = "plain", timeout = peer.limit }))
      local function refused(...)
        local ok, message = session:call(...)
        assert.is_nil(ok)
        assert.matches("more than %d+ bytes at once", message)
      end
      refused "endless"
      local ok, message, errno = session:call("pass", emits(math.huge)())
      assert.are.same({ nil, E.EMSGSIZE }, { ok, errno }, message)
      local waits = session:async "waits"
      assert.is_true(begun:get(peer.limit))
      refused "ten"
      feed:put(true)
      assert.are.equal(10, #select(2, waits:wait()))
      assert.are.equal(10, #session.remote.ten())
      assert.are.same({ row, row, row }, session.remote.rows())
      assert.are.same({ { { 1, "x" } } }, session.remote.nested())
    end)
  end)

  -- What is served by a plain script, which has no loop.
  local function served_plainly(timeout, ticks)
    local here, there = peer.pair("unix", { unit = "stream" })
    local child = peer.fork(function()
      local session = assert(ipc.rpc.connect(there, {
        peer = "plain", timeout = timeout, exports = { add = function(a, b) return a + b end, ticks = ticks },
      }))
      session:serve()
    end)
    there:close()
    return assert(ipc.rpc.connect(here, { peer = "plain", timeout = peer.limit })), child
  end

  local kinds = {
    ["goes on"] = function(emit)
      while true do
        emit(1)
        ipc.sleep(0.001)
      end
    end,
    pauses = function(emit)
      emit(1)
      ipc.sleep(10 * peer.limit)
    end,
  }
  for kind, producer in pairs(kinds) do
    it(("a plain script makes the list of one that %s for as long as the call has"):format(kind), function()
      local session, child = served_plainly(0.05, function() return ipc.rpc.stream(producer) end)
      local ok, message = session:call "ticks"
      assert.are.same({ nil, "timeout" }, { ok, message })
      assert.are.same({ true, 3 }, { session:call("add", 1, 2) })
      session:close()
      assert.is_true(child:wait(peer.limit))
    end)

    it(("a plain script leaves one that %s when the peer has left"):format(kind), function()
      local session, child = served_plainly(math.huge, function()
        ipc.parent:put "begun"
        return ipc.rpc.stream(producer)
      end)
      local ticks = session:async "ticks"
      assert.are.equal("begun", child:get(peer.limit))
      session:close()
      assert.is_nil((ticks:wait(0)))
      assert.is_true(child:wait(peer.limit))
    end)
  end
end)

describe("ipc.rpc.stream tells", function()
  it("an iterator from what is called once by the parameters it names", function()
    elsewhere.run(function()
      local kinds = {
        two = function() return ipc.rpc.stream(function(_, c) c = (c or 0) + 1 return c <= 3 and c or nil end) end,
        state = function()
          return ipc.rpc.stream(function(s) s.n = s.n + 1 return s.n <= 3 and s.n or nil end, { n = 0 })
        end,
        once = function() return ipc.rpc.stream(function(emit) for i = 1, 3 do emit(i) end return "ignored" end) end,
        any = function() return ipc.rpc.stream(function(...) local emit = ... emit(1) end) end,
        both = function() return ipc.rpc.stream(function(emit, _) emit(1) end) end,
        fails = function() return ipc.rpc.stream(function() error("my own", 0) end) end,
      }
      local server <close> = assert(ipc.rpc.serve(peer.address "unix", kinds))
      local session <close> = assert(ipc.rpc.connect(server.address))
      for _, name in ipairs { "two", "state", "once" } do
        assert.are.same({ 1, 2, 3 }, all(session.remote[name]()), name)
      end
      for _, name in ipairs { "any", "both" } do
        local ok, problem = pcall(session.remote[name]())
        assert.is_false(ok)
        assert.matches("attempt to call a nil value.*what gets an emit names it as its only parameter", problem.message)
      end
      local ok, problem = pcall(session.remote.fails())
      assert.are.same({ false, "my own" }, { ok, problem.message })
    end)
  end)
end)
