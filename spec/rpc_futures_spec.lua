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

  it("a look of 0 that ends the session answers its end", function()
    local a, b = ipc.pair("unix", { unit = "stream" })
    local session = assert(ipc.rpc.connect(a, { peer = "plain" }))
    b:close()
    assert.is_true(session:wait(0))
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
