-- Calls that are waited for later, again, or of what has ended: futures, batches, programs.
local ipc = require "ipc"
local elsewhere = require "spec.support.elsewhere"
local peer = require "spec.support.peer"

local E = ipc.errno

local function exports()
  local Account = { fail = function() error("never", 0) end }
  return {
    add = function(a, b) return a + b end,
    fail = function() error("never", 0) end,
    open = function() return ipc.rpc.object({}, Account) end,
    same = function(...) return ... end,
    nothing = function() end,
  }
end

for _, way in ipairs(elsewhere.ways()) do
  describe("batches, " .. way.name .. ":", function()
    before_each(function() ipc.loop.use(nil) end)
    after_each(function()
      peer.clean()
      ipc.scheduler(nil)
    end)

    it("who waits for a call of a batch sends it", function()
      way.use(exports, function(session)
        local batch = session:batch()
        local one, other = batch:async("add", 1, 2), batch:async("add", 3, 4)
        assert.are.same({ true, 7 }, { other:wait() })
        assert.are.same({ true, 3 }, { one:wait() })
      end)
    end)

    it("a future is polled: a wait of 0 takes what is there, beside another reader too", function()
      way.use(exports, function(session)
        session:call "nothing"
        local looks = {
          function(future) return future:wait(0) end,
          function(future) return future:wait(1e-9) end,
          function(future) session:serve(0) return future.done end,
        }
        local function poll(pause)
          for _, look in ipairs(looks) do
            local future, limit = session:async("add", 1, 2), ipc.now() + peer.limit
            while not look(future) and ipc.now() < limit do
              if pause then ipc.sleep(pause) end
            end
            assert.is_true(future.done)
            assert.are.same({ true, 3 }, { future:wait(0) })
          end
        end
        poll(0.001)
        local function beside()
          local task = ipc.loop.go(function() session:serve() end)
          ipc.sleep(0)
          poll()
          task:cancel()
        end
        if way.tasks then
          beside()
        else
          poll()
          elsewhere.run(beside)
        end
      end)
    end)

    it("a wait of 0 takes the answer that is behind calls of the other side", function()
      way.use(function()
        return { many = function(n)
          for i = 1, n do assert(ipc.rpc.caller():notify("seen", i)) end
          return n
        end }
      end, function(session)
        assert.are.equal(0, session.remote.many(0))
        local future = session:async("many", 200)
        local looks, limit = 0, ipc.now() + peer.limit
        while not future:wait(0) and ipc.now() < limit do
          looks = looks + 1
          ipc.sleep(0.05)
        end
        assert.is_true(future.done and looks < 100)
      end, nil, { exports = { seen = function() end } })
    end)

    it("calls of a batch are answered, each with its own", function()
      way.use(exports, function(session)
        for _, count in ipairs { 1, 15, 16, 17, 32, 64, 65, 333 } do
          local futures = {}
          do
            local batch <close> = session:batch()
            for i = 1, count do
              local kind = i % 7
              futures[i] = kind == 0 and batch:async("same", i, nil, { i }) or kind == 1 and batch:async("nothing", i)
                or kind == 2 and batch:async "fail" or kind == 3 and batch:async("same", nil)
                or kind == 4 and batch:async("same", ("x"):rep(100 * i)) or batch:async("add", i, 0.5)
            end
            assert.are.equal(count, #batch)
          end
          for i = count, 1, -1 do
            local kind, future = i % 7, futures[i]
            local answer = table.pack(future:wait())
            assert.is_true(future.done)
            local expected = kind == 0 and table.pack(true, i, nil, { i }) or kind == 1 and table.pack(true)
              or kind == 2 and table.pack(nil, "never", 0, answer[4]) or kind == 3 and table.pack(true, nil)
              or kind == 4 and table.pack(true, ("x"):rep(100 * i)) or table.pack(true, i + 0.5)
            assert.are.same(expected, answer)
            assert.are.same(expected, table.pack(future:wait(0)))
          end
          assert.are.equal(0, session:stats().calls)
        end
      end)
    end)

    it("calls that wait go between those of a batch", function()
      way.use(exports, function(session)
        local batch, futures = session:batch(), {}
        for i = 1, 100 do
          futures[i] = batch:async("add", i, i)
          if i % 9 == 0 then
            assert.are.equal(-i, session.remote.add(-i, 0))
          elseif i % 10 == 0 then
            assert.are.same({ true, 1 }, { session:async("add", 1, 0):wait() })
          end
        end
        batch:close()
        for i = 1, 100 do assert.are.same({ true, 2 * i }, { futures[i]:wait() }) end
      end)
    end)

    it("several tasks wait for what one of them reads", function()
      way.use(exports, function(session)
        local function all()
          local batch, futures, waits = session:batch(), {}, {}
          for i = 1, 50 do futures[i] = batch:async("same", i, i % 2 == 0 and i or nil) end
          for n = 1, 5 do
            waits[n] = ipc.loop.go(function()
              for i = n, 50 do
                assert.are.same(table.pack(true, i, i % 2 == 0 and i or nil), table.pack(futures[i]:wait()))
              end
              return true
            end)
          end
          for _, task in ipairs(waits) do assert.is_true((select(2, assert(task:wait())))) end
        end
        if way.tasks then all() else elsewhere.run(all) end
      end)
    end)

    it("no more calls begin at once than may, and none when it is closed", function()
      way.use(exports, function(session)
        session:call "nothing"
        local batch, futures = session:batch(), {}
        for i = 1, 12 do futures[i] = batch:async("add", i, 1) end
        for i = 1, 12 do
          local ok, sum, errno = futures[i]:wait()
          if i <= 10 then
            assert.are.same({ true, i + 1 }, { ok, sum })
          else
            assert.are.same({ nil, "more than 10 calls at once", E.E2BIG }, { ok, sum, errno })
          end
        end
        local left = batch:async("add", 1, 1)
        session:close()
        for _, future in ipairs { left, batch:async("add", 1, 1), session:async("add", 1, 1) } do
          local ok, message, errno = future:wait()
          assert.are.same({ nil, "closed", E.EPIPE }, { ok, message, errno })
        end
      end, nil, { calls = 10 })
    end)

    it("those that are answered are in the way of no other, though nobody waits for them", function()
      way.use(exports, function(session)
        session:call "nothing"
        for _, again in ipairs {
          function() assert.are.same({ true, 3 }, { session:call("add", 1, 2) }) end,
          function() assert.are.same({ true, 3 }, { session:async("add", 1, 2):wait() }) end,
          function() assert.are.same({ true, 3 }, { session:with { trace = "t" }:call("add", 1, 2) }) end,
          function()
            local batch = session:batch()
            assert.are.same({ true, 3 }, { batch:async("add", 1, 2):wait() })
          end,
        } do
          for _ = 1, 10 do session:async "nothing" end
          assert(ipc.poll({ session.core.channel }, peer.limit))
          assert.are.equal(10, session:stats().calls)
          again()
          while session:stats().calls > 0 do session:serve(0) end
        end
      end, nil, { calls = 10 })
    end)

    it("futures that nobody keeps are answered all the same", function()
      way.use(exports, function(session)
        session:call "nothing"
        local weak = setmetatable({}, { __mode = "k" })
        do
          local batch <close> = session:batch()
          for i = 1, 40 do weak[batch:async("add", i, i)] = true end
        end
        assert.are.equal(3, session.remote.add(1, 2))
        assert.are.same({ true }, { session:async("nothing"):wait() })
        while session:stats().calls > 0 do assert.are.equal(3, session.remote.add(1, 2)) end
        collectgarbage()
        collectgarbage()
        assert.is_nil(next(weak))
      end)
    end)

    it("arguments that cannot travel raise, and the batch goes on", function()
      way.use(exports, function(session)
        session:call "nothing"
        local batch <close> = session:batch()
        local one = batch:async("add", 1, 2)
        for _, bad in ipairs { coroutine.create(print), one, batch, io.stdout } do
          local ok, message = pcall(function() batch:async("same", bad) end)
          assert.is_false(ok)
          assert.is_truthy(tostring(message):find("^spec/rpc_futures_spec.lua:%d+: bad argument to a call %("), message)
        end
        assert.has_error(function() batch:async(5) end)
        assert.has_error(function() batch:async() end)
        local big = ("x"):rep(1 << 17)
        local other = batch:async("same", big, function() end)
        assert.are.same({ true, 3 }, { one:wait() })
        assert.are.equal(big, (select(2, assert(other:wait()))))
      end)
    end)

    it("answers that are not read for long are kept, and so is the session", function()
      way.use(exports, function(session)
        session.remote.nothing()
        for _, sends in ipairs { true, false } do
          local batch, futures, big = session:batch(), {}, ("x"):rep(8000)
          for i = 1, 500 do futures[i] = batch:async("same", i, big) end
          if sends then assert.is_true(batch:send(peer.limit)) end
          ipc.sleep(0.3)
          for i = 1, 500 do assert.are.same({ true, i, big }, { futures[i]:wait() }) end
        end
      end, { stall = 0.1 })
    end)

    it("sending reads as well where the other side waits for that", function()
      way.use(exports, function(session)
        session.remote.nothing()
        local batch, futures, big = session:batch(), {}, ("x"):rep(20000)
        for i = 1, 500 do futures[i] = batch:async("same", i, big) end
        assert.is_true(batch:send(peer.limit))
        for i = 1, 500 do assert.are.same({ true, i, big }, { futures[i]:wait() }) end
      end, { unsent = 1 << 16, stall = 1 })
    end)

    it("errors name what was called", function()
      way.use(exports, function(session)
        local object = session.remote.open()
        local function method(_, _, _, problem) return problem.method end
        assert.are.equal("fail", method(session:call "fail"))
        assert.are.equal("fail", method(session:async("fail"):wait()))
        assert.are.equal("fail", method(session:call(object, "fail")))
        assert.are.equal("fail", method(session:async(object, "fail"):wait()))
        assert.are.equal("fail", method(session:call(session:async "open", "fail")))
        local ok, problem = pcall(function() object:fail() end)
        assert.is_false(ok)
        assert.are.equal("fail", problem.method)
      end)
    end)
  end)
end

-- Sides that send more than the other reads at once.
describe("what is sent beyond what is read:", function()
  local MUCH <const> = ("x"):rep(20000)

  before_each(function() ipc.loop.use(nil) end)
  after_each(peer.clean)

  local function notify(channel, times)
    local got = 0
    local session <close> = assert(ipc.rpc.connect(channel,
      { exports = { n = function() got = got + 1 end }, unsent = 1 << 17, stall = 2, peer = "plain" }))
    for _ = 1, times do
      local ok, why = session:notify("n", MUCH)
      if not ok then return why end
    end
    local limit = ipc.now() + peer.limit
    while got < times and ipc.now() < limit do session:serve(0.01) end
    assert(session:notify "n")
    while got <= times and not session.closed and ipc.now() < limit do session:serve(0.01) end
    return got > times and "all" or got
  end

  it("two that notify each other hear all of it", function()
    local a, b = ipc.pair("unix", { unit = "stream" })
    local child = peer.fork(function() return notify(b, 100) end)
    b:close()
    assert.are.equal("all", notify(a, 100))
    assert.are.same({ true, "all" }, { child:wait(peer.limit) })
  end)

  it("a batch and a notification of another task go out together", function()
    local a, b = ipc.pair("unix", { unit = "stream" })
    local child = peer.fork(function()
      ipc.parent:recv(peer.limit)
      local n = 0
      for _ in b:values(peer.limit) do
        n = n + 1
        if n == 22 then break end
      end
      return n, (ipc.parent:recv(peer.limit))
    end)
    b:close()
    local sent = elsewhere.run(function()
      local session = assert(ipc.rpc.connect(a, { peer = "plain" }))
      session:notify("n", ("x"):rep(2000000))
      local batch = session:batch()
      for _ = 1, 20 do batch:notify("n", MUCH:rep(5)) end
      local one = ipc.loop.go(function() return batch:send() end)
      ipc.sleep(0)
      local other = ipc.loop.go(function() return session:notify("n", 1) end)
      ipc.sleep(0)
      child:send "read"
      local sent = { select(2, one:wait(peer.limit / 2)), select(2, other:wait(peer.limit / 2)) }
      child:send "end"
      assert.are.same({ true, 22, "end" }, { child:wait(peer.limit) })
      session:close()
      return sent
    end)
    assert.are.same({ true, true }, sent)
  end)

  -- A peer that reads when it is told to, and says how much that was.
  local function reader(b)
    local child = peer.fork(function()
      ipc.parent:recv(peer.limit)
      local n, last = 0, ""
      while last:sub(-3) ~= "end" do
        last = assert(b:recv(peer.limit))
        n = n + select(2, last:gsub("x", ""))
      end
      ipc.parent:send(tostring(n))
    end)
    b:close()
    return child
  end

  for _, scheme in ipairs { "unix", "shm", "mqueue", "sysv" } do
    local function pair()
      return assert(ipc.pair(scheme, ({ unix = { unit = "stream" }, shm = { capacity = 4096 } })[scheme]))
    end

    for where, run in pairs { ["a task"] = elsewhere.run, ["a plain script"] = function(fn) fn() end } do
      it("a notification of " .. where .. " arrives though nobody calls: " .. scheme, function()
        if not peer.has(scheme) then
          return
        end
        local times = scheme == "unix" and 300 or 60
        local a, b = pair()
        local child = reader(b)
        run(function()
          local session = assert(ipc.rpc.connect(a, { peer = "plain" }))
          for _ = 1, times do assert.is_true(session:notify("n", MUCH:sub(1, 2000))) end
          assert.is_true(session:notify("n", "end"))
          child:send "read"
          assert.are.equal(tostring(2000 * times), child:recv(peer.limit))
          session:close()
        end)
        assert.is_true((child:wait(peer.limit)))
      end)
    end
  end

  for where, run in pairs { ["a task"] = elsewhere.run, ["a plain script"] = function(fn) fn() end } do
    it("another channel that nobody reads holds nothing up: " .. where, function()
      if not peer.has "shm" then
        return
      end
      local unread, other = ipc.pair("unix", { unit = "stream" })
      local a, b = assert(ipc.pair("shm", { capacity = 4096 }))
      local child = reader(b)
      run(function()
        local one = assert(ipc.rpc.connect(unread, { peer = "plain" }))
        assert.is_true(one:notify("n", MUCH:rep(50)))
        local session = assert(ipc.rpc.connect(a, { peer = "plain" }))
        for _ = 1, 20 do assert.is_true(session:notify("n", MUCH:sub(1, 1500))) end
        assert.is_true(session:notify("n", "end"))
        child:send "read"
        assert.are.equal("30000", child:recv(peer.limit))
        session:close()
        other:close()
      end)
      assert.is_true((child:wait(peer.limit)))
    end)
  end

  it("what a coroutine of cqueues has sent arrives while it waits", function()
    if not (peer.has "shm" and pcall(require, "cqueues")) then
      return pending "no shm, or no cqueues"
    end
    local text = peer.run [[
      local host = ipc.loop.use "cqueues"
      local a, b = ipc.pair("shm", { capacity = 4096 })
      local child = ipc.fork(function()
        ipc.parent:recv(10)
        local n = 0
        while n < 12 and b:recv(10) do n = n + 1 end
        ipc.parent:send(tostring(n))
      end)
      b:close()
      host:wrap(function()
        local session = assert(ipc.rpc.connect(a, { peer = "plain" }))
        for _ = 1, 12 do session:notify("n", ("x"):rep(1500)) end
        child:send "read"
        print(child:recv(10))
        session:close()
      end)
      assert(host:loop())
    ]]
    assert.are.equal("12\n", text)
  end)

  for _, scheme in ipairs { "unix", "shm" } do
    it("so does what a task has sent that waited for a moment only: " .. scheme, function()
      if not peer.has(scheme) then
        return
      end
      local a, b = assert(ipc.pair(scheme, scheme == "unix" and { unit = "stream" } or { capacity = 4096 }))
      local much = MUCH:rep(5):sub(1, scheme == "shm" and 1500 or nil)
      local child = peer.fork(function()
        local asked = ipc.unpack(assert(b:recv(peer.limit)))
        ipc.parent:send "asked"
        ipc.parent:recv(peer.limit)
        b:send(ipc.pack(ipc.array { 1, asked[2], ipc.null, "done" }))
        ipc.parent:recv(peer.limit)
        local n, last = 0, ""
        while last:sub(-3) ~= "end" do
          last = assert(b:recv(peer.limit))
          n = n + select(2, last:gsub("x", ""))
        end
        ipc.parent:send(tostring(n))
      end)
      b:close()
      elsewhere.run(function()
        local session = assert(ipc.rpc.connect(a, { peer = "plain" }))
        local future = session:async "quick"
        child:recv(peer.limit)
        local one = ipc.loop.go(function() return future:wait() end)
        while not session.core.reader do ipc.sleep(0.001) end
        local n = 0
        for i = 1, 4 do
          local batch <close> = session:batch()
          assert.is_true(batch:notify("n", much))
          if i == 4 then
            assert.is_true(batch:notify("n", "end"))
            ipc.loop.go(function() child:send "answer" end) -- then nobody reads any more
          end
          batch:send(i == 4 and 0.1 or 0.01)
          n = n + #much
        end
        assert.is_true(session:stats().unsent > 0)
        one:wait(peer.limit)
        child:send "read"
        assert.are.equal(tostring(n), child:recv(peer.limit))
        session:close()
      end)
      assert.is_true((child:wait(peer.limit)))
    end)
  end

  it("so does what a child has sent before it ends", function()
    if not peer.has "shm" then
      return
    end
    local a, b = assert(ipc.pair("shm", { capacity = 4096 }))
    local child = peer.fork(function()
      local session = assert(ipc.rpc.connect(a, { peer = "plain" }))
      for _ = 1, 20 do assert(session:notify("n", MUCH:sub(1, 1500))) end
    end)
    a:close()
    local n = 0
    while n < 20 and b:recv(peer.limit) do n = n + 1 end
    assert.are.equal(20, n)
    assert.is_true((child:wait(peer.limit)))
    b:close()
  end)

  it("a served function that notifies waits for nobody who does not read", function()
    local a, b = ipc.pair("unix", { unit = "stream" })
    local here, there = ipc.pair("unix", { unit = "stream" })
    local times = 50
    elsewhere.run(function()
      local one = assert(ipc.rpc.serve(a, {}, { peer = "plain" }))
      local other = assert(ipc.rpc.serve(here, { say = function()
        return one:notify("n", MUCH)
      end }))
      local session = assert(ipc.rpc.connect(there, { timeout = peer.limit }))
      for _ = 1, times do assert.is_true(session.remote.say()) end
      assert.is_true(one:stats().unsent > 0)
      local got = 0
      while got < times * #MUCH do
        got = got + select(2, assert(b:recv(peer.limit)):gsub("x", ""))
      end
      session:close()
      other:close()
      b:close()
      one:close()
    end)
  end)

  it("of what a child has not sent only that holds it up, not a channel that is idle", function()
    local a, b = ipc.pipe { linger = 0.05 }
    local c, d = ipc.pipe { linger = math.huge }
    local child = peer.fork(function()
      assert(b:send(("x"):rep(1 << 20), nil, 0)) -- a part of it
      assert(d:send "x")
    end)
    assert.are.same({ nil, "bytes that were accepted could not be sent", 0 }, { child:wait(peer.limit) })
    assert.are.equal("x", c:recv(peer.limit))
    for _, channel in ipairs { a, b, c, d } do channel:close() end
  end)

  it("a slow reader is no peer that reads nothing, whoever sends on", function()
    local a, b = ipc.pair("unix", { unit = "stream" })
    local child = peer.fork(function()
      while ipc.parent:recv(peer.limit) == "read" do
        local n = 0
        while n < 400000 do n = n + #assert(b:recv(peer.limit)) end
        ipc.parent:send "done"
      end
    end)
    b:close()
    local why
    local session = assert(ipc.rpc.connect(a, {
      peer = "plain", unsent = 100000, stall = 0.04, on_close = function(_, message) why = message end,
    }))
    session:async("n", MUCH:rep(320))
    session:async "n" -- behind the rest of it
    session:serve(0.001)
    for _ = 1, 10 do
      child:send "read"
      assert.are.equal("done", child:recv(peer.limit))
      ipc.sleep(0.02)
      session:serve(0.001)
      assert.is_nil(why)
    end
    child:stop(0)
    session:close()
  end)

  it("a look of 0 that ends the session answers its end", function()
    local a, b = ipc.pair("unix", { unit = "stream" })
    local session = assert(ipc.rpc.connect(a, { peer = "plain" }))
    b:close()
    assert.is_true(session:wait(0))
  end)
end)

describe("as many calls as may be in flight:", function()
  before_each(function() ipc.loop.use(nil) end)
  after_each(function()
    peer.clean()
    ipc.scheduler(nil)
  end)

  local function try(beside)
    local here, there = assert(ipc.pair "unix")
    peer.keep(there)
    local session <close> = assert(ipc.rpc.connect(here, { peer = "plain", calls = 3, timeout = peer.limit }))
    local function answer(n)
      for _ = 1, n do
        assert(there:put(ipc.array { 1, assert(there:get(peer.limit))[2], ipc.null, ipc.null }))
      end
    end
    local first = session:async "work"
    local waiting = beside and ipc.loop.go(first.wait, first)
    ipc.sleep(0)
    for _ = 1, 2 do session:async "work" end
    -- none is answered: the next is refused, and what waits for no answer is not
    assert.are.equal(E.E2BIG, select(3, session:async("work"):wait()))
    assert.are.equal(E.E2BIG, select(3, session:call "work"))
    assert.is_true(session:notify "told")
    local batch = session:batch()
    assert.is_true(batch:notify "told")
    assert.is_true(batch:send())
    answer(3)
    -- all are
    local next_one = session:async "work"
    assert.is_nil(next_one.problem)
    for _ = 1, 2 do assert.are.equal("told", assert(there:get(peer.limit))[2]) end
    answer(1)
    assert.is_true(next_one:wait())
    if beside then assert.is_true(waiting:wait()) end
  end

  it("the next finds out that those were answered, and notifications always go", function()
    try(false)
    elsewhere.run(try, false)
  end)

  it("and so they do while another task reads", function()
    elsewhere.run(try, true)
  end)
end)

describe("futures and batches:", function()
  before_each(function() ipc.loop.use(nil) end)
  after_each(function()
    peer.clean()
    ipc.scheduler(nil)
  end)

  it("more than a ring holds, of a peer that sleeps", function()
    if not peer.has "shm" then
      return
    end
    local a, b = assert(ipc.pair("shm", { capacity = 4096 }))
    local child = peer.fork(function()
      local session = assert(ipc.rpc.connect(b, { timeout = peer.limit, exports = exports() }))
      session:serve(math.huge)
    end)
    local session <close> = assert(ipc.rpc.connect(a, { timeout = peer.limit }))
    for round = 1, 20 do
      assert.are.equal(round, session.remote.add(round, 0))
      local batch, futures = session:batch(), {}
      for i = 1, 200 do futures[i] = batch:async("add", i, round) end
      for i = 200, 1, -1 do assert.are.same({ true, i + round }, { futures[i]:wait() }) end
    end
    session:close()
    assert(child:wait(peer.limit))
  end)

  it("who leaves more answers unread than may be is left, by who serves outside of tasks, too", function()
    for _, address in ipairs { "unix?unit=stream", "shm" } do
      if peer.has(address:match "%a+") then
        local here, there = assert(ipc.pair(address))
        local child = peer.fork(function(channel)
          local session = assert(ipc.rpc.connect(channel, { timeout = peer.limit, stall = 0.1, unsent = 1 << 18,
            exports = { big = function() return ("x"):rep(100000) end, nothing = function() end } }))
          return session:wait(peer.limit)
        end, there)
        local session <close> = assert(ipc.rpc.connect(here, { timeout = peer.limit }))
        session.remote.nothing()
        local batch = session:batch()
        for _ = 1, 200 do batch:async "big" end
        assert.is_true(batch:send(peer.limit))
        assert.are.same({ true, nil, "the peer has read nothing for 0.1 s", E.ETIMEDOUT },
          { child:wait(peer.limit) })
      end
    end
  end)

  it("a hook that calls in the middle of a call has its answer, and the call its own", function()
    local child = peer.fork(function()
      local listener <close> = assert(ipc.listen(peer.address "unix", { unit = "stream" }))
      ipc.parent:put(tostring(listener:address()))
      local session = assert(ipc.rpc.connect(assert(listener:accept(peer.limit)), { exports = exports() }))
      session:serve(math.huge)
    end)
    local session <close> = assert(ipc.rpc.connect(assert(child:get(peer.limit)), { timeout = peer.limit }))
    session:call "nothing"
    local function call(n) return session:call("add", n, 1) end
    local function async(n) return session:async("add", n, 1):wait() end
    local function gathered(n)
      local batch <close> = session:batch()
      return batch:async("add", n, 1):wait()
    end
    for _, outer in ipairs { call, async, gathered } do
      for _, inner in ipairs { call, async, gathered } do
        local step = 0
        repeat
          step = step + 1
          local told, met
          local hook, mask, each = debug.gethook()
          debug.sethook(function()
            debug.sethook()
            met = true
            if not session.core.reader then told = table.pack(inner(-step)) end
          end, "", step)
          local ok, sum = outer(step)
          debug.sethook(hook, mask, each)
          assert.are.same({ true, step + 1 }, { ok, sum })
          if told then assert.are.same({ true, 1 - step, n = 2 }, told) end
        until not met
        assert.is_true(step > 10)
        assert.are.equal(0, session:stats().calls)
      end
    end
    session:close()
    assert(child:wait(peer.limit))
  end)

  it("what is none is told so, whoever uses it", function()
    elsewhere.run(function()
      local server <close> = assert(ipc.rpc.serve(peer.address "unix", exports()))
      local session <close> = assert(ipc.rpc.connect(server.address, { timeout = peer.limit }))
      local batch, future = session:batch(), session:async("add", 1, 2)
      local odd = { 0 / 0, math.huge, -1, "1", {}, print, io.stdout, session, true, coroutine.create(print) }
      odd[#odd + 1] = setmetatable({}, getmetatable(future))
      odd[#odd + 1] = setmetatable({}, getmetatable(batch))
      for _, each in ipairs { { future, batch, "future", "wait", "cancel", "async", "call" },
        { batch, future, "batch", "async", "notify", "send", "close" } } do
        odd[#odd + 1] = each[2]
        for i = 4, #each do
          local method = each[1][each[i]]
          assert.is_false(pcall(method))
          for _, self in ipairs(odd) do
            local ok, message = pcall(function() method(self) end)
            assert.is_false(ok)
            assert.is_truthy(message:find(("^spec/rpc_futures_spec.lua:%%d+: bad argument #0 to '%s' %%(%s expected")
              :format(each[i], each[3])), message)
          end
        end
        odd[#odd] = nil
        local meta = getmetatable(each[1])
        for _, event in ipairs { "__index", "__newindex", "__len", "__tostring", "__close" } do
          for _, self in ipairs(odd) do
            if type(meta[event]) == "function" then
              pcall(meta[event], self)
              pcall(meta[event], self, "done")
              pcall(meta[event], self, "done", 1)
            end
          end
        end
      end
      for _, timeout in ipairs { 0 / 0, "1", {}, true } do
        local ok, message = pcall(function() future:wait(timeout) end)
        assert.is_false(ok)
        assert.is_truthy(message:find "^spec/rpc_futures_spec.lua:%d+: bad argument #1 to 'wait' %(", message)
      end
      for _, name in ipairs { "done", "problem", "n" } do
        assert.is_false(pcall(function() future[name] = true end))
      end
      assert.is_false(pcall(function() future[0 / 0] = true end))
      future.tag, future[7] = "mine", "seven"
      assert.are.same({ true, 3 }, { future:wait() })
      assert.are.same({ "mine", "seven", 3, nil }, { future.tag, future[7], future[1], future[2] })
      assert.are.same({ true, 3 }, { future:wait() })
      batch:close()
      assert.is_true(batch:close())
      local ok, message = pcall(function() batch:async("add", 1, 2) end)
      assert.is_false(ok)
      assert.is_truthy(message:find "^spec/rpc_futures_spec.lua:%d+: ipc.rpc.batch: it was left", message)
    end)
  end)

  it("are of no use in a process forked meanwhile", function()
    elsewhere.run(function()
      local server <close> = assert(ipc.rpc.serve(peer.address "unix", exports()))
      local session <close> = assert(ipc.rpc.connect(server.address, { timeout = peer.limit }))
      session:call "nothing"
      local batch = session:batch()
      local future = batch:async("add", 1, 2)
      local child = assert(ipc.fork(function()
        local other = session:batch()
        local one = other:async("add", 3, 4)
        return (one:wait(0.01)) == nil
      end))
      assert.is_true((select(2, assert(child:wait(peer.limit)))))
      assert.are.same({ true, 3 }, { future:wait() })
    end)
  end)
end)

describe("sessions that wait:", function()
  before_each(function() ipc.loop.use(nil) end)
  after_each(function()
    peer.clean()
    ipc.scheduler(nil)
  end)

  it("serving sends what a batch has told", function()
    elsewhere.run(function()
      local told = ipc.loop.queue()
      local server <close> = assert(ipc.rpc.serve(peer.address "unix", {
        tell = function(x) told:put(x) end, nothing = function() end,
      }))
      local session <close> = assert(ipc.rpc.connect(server.address, { timeout = peer.limit }))
      session.remote.nothing()
      local batch = session:batch()
      batch:notify("tell", 5)
      local task = ipc.loop.go(function() session:serve(peer.limit) end)
      assert.are.equal(5, told:get(peer.limit))
      task:cancel()
    end)
  end)

  it("a future of what may be repeated is repeated", function()
    elsewhere.run(function()
      local address = peer.address "unix"
      local come, calls = ipc.loop.queue(), 0
      local function names(hangs)
        return {
          get = function()
            calls = calls + 1
            come:put(true)
            if hangs then ipc.loop.queue():get(peer.limit) end
            return "got"
          end,
        }
      end
      local server = assert(ipc.rpc.serve(address, names(true)))
      local session <close> = assert(ipc.rpc.connect(address, { timeout = peer.limit, reconnect = peer.limit,
        idempotent = { "get" } }))
      local future = session:async "get"
      come:get(peer.limit)
      server:stop()
      local again <close> = assert(ipc.rpc.serve(address, names(false)))
      assert.are.same({ true, "got" }, { future:wait(peer.limit) })
      assert.are.equal(2, calls)
      assert.is_truthy(again)
    end)
  end)

  it("a program that has failed is told of by what it ended with", function()
    local session <close> = assert(ipc.rpc.connect({ "sh", "-c", "exit 3" }, { timeout = peer.limit }))
    local ok, message, errno = session:call "add"
    assert.are.same({ nil, "sh: exit 3", E.ECONNRESET }, { ok, message, errno })
    assert.are.same({ nil, "sh: exit 3", E.ECONNRESET }, { session:wait(peer.limit) })
    local good <close> = assert(ipc.rpc.connect({ "sh", "-c", "exit 0" }, { timeout = peer.limit }))
    ok, message, errno = good:call "add"
    assert.are.same({ nil, "closed", E.EPIPE }, { ok, message, errno })
  end)

  it("a call waits for the end of a program within its time, and then ends it", function()
    local ends <close> = assert(ipc.rpc.connect({ "sh", "-c", "exec 1>&-; sleep 0.9; exit 3" }, { timeout = 0.05 }))
    assert.are.same({ nil, "closed", E.EPIPE }, { (function(a, b, c) return a, b, c end)(ends:call "add") })
    for _, way in ipairs { "call", "notify" } do
      local program = peer.keep(assert(ipc.exec { "sh", "-c", "exec 0<&- 1>&-; exec sleep 4", stdin = "pipe",
        stdout = "pipe" }))
      local session <close> = assert(ipc.rpc.connect(program, { timeout = 0.05, peer = "plain" }))
      local answer
      repeat
        answer = table.pack(session[way](session, "add"))
      until answer[1] == nil
      assert.are.same({ "closed", E.EPIPE }, { answer[2], answer[3] })
      assert.are.equal("signal", program.reason.kind)
    end
  end)

  it("in a loop nobody but close waits for the end of a program", function()
    local script = "trap '' TERM; exec 1>&-; while :; do sleep 0.05; done"
    ipc.loop.run(function()
      local program = peer.keep(assert(ipc.exec { "sh", "-c", script, stdin = "pipe", stdout = "pipe" }))
      local session <close> = assert(ipc.rpc.connect(program, { timeout = peer.limit }))
      local ok, message, errno = session:call "add"
      assert.are.same({ nil, "closed", E.EPIPE }, { ok, message, errno })
      assert.is_true(peer.lives(program.pid))
      ipc.loop.go(function()
        ipc.sleep(0)
        os.execute("kill -KILL " .. program.pid)
      end)
      assert.is_true(session:close())
      assert.are.equal("KILL", program.reason.signal)
    end)
  end)

  it("what would be of no use raises", function()
    for text, options in pairs {
      ["idempotent: list of names expected"] = { reconnect = true, idempotent = { get = true } },
      ["idempotent[1]: name expected"] = { reconnect = true, idempotent = { 5 } },
      ["idempotent: nothing is called again without reconnect"] = { idempotent = { "get" } },
    } do
      local ok, message = pcall(function() ipc.rpc.connect("unix:/nobody", options) end)
      assert.is_false(ok)
      assert.is_truthy(message:find("bad argument #2 to 'connect' (" .. text, 1, true), message)
    end
  end)

  it("what is closed is no argument", function()
    local a, b = ipc.pair "unix"
    peer.keep(b)
    a:close()
    assert.has_error(function() ipc.rpc.connect(a) end)
    assert.has_error(function() ipc.rpc.serve(a, {}) end)
    local listener = assert(ipc.listen(peer.address "unix"))
    listener:close()
    local ok, message = pcall(function() ipc.rpc.serve(listener, {}) end)
    assert.is_false(ok)
    assert.is_truthy(message:find("bad argument #1 to 'serve' (the listener is closed)", 1, true), message)
  end)
end)
