-- The contract in coroutines: a call in a scheduler's task waits without
-- stopping the others. Tried with the smallest scheduler, with ours and with cqueues.
local ipc = require "ipc"
local rooms = require "spec.rooms"
local with = require "spec.support.with"

local tried = {}
for _, row in ipairs(rooms) do
  if not row.schedules then tried[#tried + 1] = row end
end

local E = ipc.errno
local PATIENCE = with.patience
local BIG = ("0123456789abcdef"):rep(1 << 16)

local schedulers = {
  {
    name = "a small scheduler",
    own = true,
    new = function() return require "spec.support.scheduler".new() end,
  },
  {
    name = "ipc.loop",
    new = function()
      ipc.loop.use(nil)
      local running = { turns = 0 }
      function running.go(_, f, ...) return ipc.loop.go(f, ...) end
      function running.run(_, seconds)
        local limit = ipc.now() + seconds
        while ipc.loop.step(limit - ipc.now()) > 0 do
          running.turns = running.turns + 1
          if ipc.now() > limit then error("tasks still wait", 0) end
        end
      end
      return running
    end,
  },
  {
    name = "cqueues",
    cqueues = true,
    new = function()
      package.loaded["ipc.cqueues"] = nil
      local controller = require "ipc.cqueues".new()
      local function step(seconds)
        local ok, message = controller:step(seconds)
        if not ok then error(message, 0) end
      end
      local running = { turns = 0 }
      function running.go(_, f, ...)
        local arguments = table.pack(...)
        controller:wrap(function()
          f(table.unpack(arguments, 1, arguments.n))
        end)
        -- Several new ones would begin in the opposite order.
        if not require "cqueues".running() then step(0) end
      end
      function running.run(_, seconds)
        local limit = ipc.now() + seconds
        while not controller:empty() do
          running.turns = running.turns + 1
          step(limit - ipc.now())
          if ipc.now() > limit then error(controller:count() .. " tasks still wait", 0) end
        end
      end
      return running
    end,
  },
}

for _, kind in ipairs(schedulers) do
  describe("tasks of " .. kind.name .. (kind.cqueues and " #foreign:" or ":"), function()
    local s
    before_each(function() s = kind.new() end)
    after_each(function()
      ipc.scheduler(nil)
      with.cleanup()
    end)

    local function open(row, options) return with.open(row, options) end
    local function pipe(options) return with.open(rooms.find "pipe", options) end

    it("a hundred of them, over every mechanism", function()
      local waiting, sums = 0, {}
      for i = 1, 50 do
        local row = tried[(i - 1) % #tried + 1]
        local r, w = open(row, row.options and { maxsize = 1000 } or nil) -- queues are few and small
        s:go(function()
          waiting = waiting + 1
          local sum = 0
          for _ = 1, 20 do sum = sum + assert(r:get()) end
          sums[i] = sum
        end)
        s:go(function()
          ipc.sleep(0) -- all receivers wait by then, or this blocks for ever
          for n = 1, 20 do assert(w:put(i * n)) end
        end)
      end
      s:run(PATIENCE)
      assert.are.equal(50, waiting)
      for i = 1, 50 do assert.are.equal(210 * i, sums[i]) end
    end)

    for _, row in ipairs(tried) do
      describe(row.name .. ":", function()
        it("one waits, the others go on", function()
          local r, w = open(row)
          local trace = {}
          s:go(function()
            trace[#trace + 1] = "waits"
            local message = r:recv()
            trace[#trace + 1] = message
          end)
          s:go(function()
            trace[#trace + 1] = "goes on"
            assert(w:send "message")
          end)
          s:run(PATIENCE)
          assert.are.same({ "waits", "goes on", "message" }, trace)
        end)

        if row.remote == "reader" then
          it("has its receiver in another process", function()
            assert.is_true(rooms.is_proxy((open(row))))
          end)
          return
        end

        it("receivers are served in the order they came", function()
          local r, w = open(row)
          local got = {}
          for i = 1, 5 do
            s:go(function() got[i] = r:recv() end)
          end
          s:go(function()
            for i = 1, 5 do assert(w:send(tostring(i))) end
          end)
          s:run(PATIENCE)
          assert.are.same({ "1", "2", "3", "4", "5" }, got)
        end)

        it("so they are when the messages come at once", function()
          local r, w = open(row)
          local got = {}
          for i = 1, 5 do
            s:go(function() got[i] = r:recv() end)
          end
          s:go(function() assert(w:sendmany { "1", "2", "3", "4", "5" }) end)
          s:run(PATIENCE)
          assert.are.same({ "1", "2", "3", "4", "5" }, got)
        end)

        it("close by another task gives the receivers `closed`", function()
          local r, w = open(row)
          if row.remote then w.questions:close() end -- the child ends with it
          local results = {}
          for i = 1, 3 do
            s:go(function() results[i] = { r:recv() } end)
          end
          s:go(function() results[4] = ipc.poll({ r }, PATIENCE)[r] end)
          s:go(function() r:close() end)
          s:run(PATIENCE)
          for i = 1, 3 do assert.are.same({ nil, "closed", E.EPIPE }, results[i]) end
          assert.is_true(results[4])
        end)

        it("a deadline is kept while others work", function()
          local r = open(row)
          local r2, w2 = pipe()
          local turns, time, word = 0, nil, nil
          s:go(function()
            repeat -- once, if the machine lets the other work meanwhile
              local start = ipc.now()
              word = select(2, r:recv(0.03))
              time = ipc.now() - start
            until turns > 1 or word ~= "timeout" or time < 0.03
            w2:close()
          end)
          s:go(function()
            repeat
              turns = turns + 1
              local _, why = r2:recv(0.002)
            until why == "closed"
          end)
          s:run(PATIENCE)
          assert.are.equal("timeout", word)
          assert.is_true(time >= 0.03)
          assert.is_true(turns > 1)
        end)

        if row.remote then
          it("has its sender in another process", function()
            assert.is_true(rooms.is_proxy(select(2, open(row))))
          end)
          return
        end

        if row.lossy then
          it("its senders never wait: what does not fit is lost", function()
            local _, w = open(row)
            local done = false
            s:go(function()
              for _ = 1, 2000 do assert(w:send(("x"):rep(1000))) end
              done = true
            end)
            s:run(PATIENCE)
            assert.is_true(done)
          end)
          return
        end

        it("senders are served in the order they came", function()
          local r, w = open(row)
          local text = ("x"):rep(1000)
          local n = with.fill(w, text)
          for i = 1, 5 do
            s:go(function() assert(w:send(i .. text)) end)
          end
          local got = {}
          s:go(function()
            for _ = 1, n do assert(r:recv()) end
            for i = 1, 5 do got[i] = r:recv():sub(1, 1) end
          end)
          s:run(PATIENCE)
          assert.are.same({ "1", "2", "3", "4", "5" }, got)
        end)

        it("close by another task gives the senders `closed`", function()
          local _, w = open(row, { linger = 0 })
          with.fill(w, ("x"):rep(1000))
          local results = {}
          for i = 1, 2 do
            s:go(function() results[i] = { w:send(("x"):rep(1000)) } end)
          end
          s:go(function() w:close() end)
          s:run(PATIENCE)
          for i = 1, 2 do assert.are.same({ nil, "closed", E.EPIPE }, results[i]) end
        end)

        it("shutdown by another task gives the senders `closed`", function()
          local r, w = open(row)
          local text, results = ("x"):rep(1000), {}
          local n = with.fill(w, text)
          for i = 1, 2 do
            s:go(function() results[i] = { w:send(text) } end)
          end
          s:go(function() assert(w:shutdown()) end)
          s:run(PATIENCE)
          for i = 1, 2 do assert.are.same({ nil, "closed", E.EPIPE }, results[i]) end
          for _ = 1, n do assert.is_string(r:recv()) end
          local last = row.ends and { nil, "closed", E.EPIPE } or { nil, "timeout", E.ETIMEDOUT }
          assert.are.same(last, { r:recv(not row.ends and 0 or nil) })
        end)

        it("one end receives and sends at once where it can", function()
          local a, b = open(row)
          if not row.both then
            assert.is_false(pcall(a.send, a, "x"))
            return
          end
          local got = {}
          for _, ends in ipairs { { a, b }, { b, a } } do
            local from, to = ends[1], ends[2]
            s:go(function()
              local list = {}
              for i = 1, 3000 do list[i] = ("%4d"):format(i):rep(50) end
              assert.are.equal(#list, from:sendmany(list))
            end)
            s:go(function()
              local n = 0
              for i = 1, 3000 do
                assert.are.equal(i, tonumber(to:recv():sub(1, 4)))
                n = n + 1
              end
              got[#got + 1] = n
            end)
          end
          s:run(PATIENCE)
          assert.are.same({ 3000, 3000 }, got)
        end)
      end)
    end

    it("a message larger than the medium passes from task to task", function()
      local r, w = pipe()
      local got
      s:go(function() assert(w:send(BIG)) end)
      s:go(function() got = r:recv() end)
      s:run(PATIENCE)
      assert.are.equal(BIG, got)
    end)

    it("an accepted rest leaves while its sender waits for something else", function()
      local r, w = pipe()
      local r2, w2 = pipe()
      local got
      s:go(function()
        assert(w:send(BIG, nil, 0))
        assert(r2:recv())
      end)
      s:go(function()
        got = r:recv()
        w2:send "enough"
      end)
      s:run(PATIENCE)
      assert.are.equal(BIG, got)
    end)

    it("close lingers without stopping the others, `<close>` too", function()
      local r, w = pipe()
      local trace, got = {}, nil
      s:go(function()
        do
          local writer <close> = w
          assert(writer:send(BIG, nil, 0))
        end
        trace[#trace + 1] = "closed"
      end)
      s:go(function()
        trace[#trace + 1] = "goes on"
        got = r:recv()
      end)
      s:run(PATIENCE)
      assert.are.equal(BIG, got)
      assert.are.same({ "goes on", "closed" }, trace)
    end)

    it("close that lingers, and a child's close and stop, sleep while they wait", function()
      local _, w = pipe { linger = 0.2 }
      assert(w:send(BIG, nil, 0))
      local leaving = with.fork(function()
        ipc.parent:recv() -- until close
        ipc.sleep(0.2)
      end)
      local stopped = with.fork(function() ipc.sleep(PATIENCE) end)
      assert(stopped:kill "STOP") -- so it does not hear TERM
      for _, wait in ipairs {
        function() assert.is_nil((w:close())) end,
        function() assert.is_true(leaving:close()) end,
        function() assert.is_true(stopped:stop(0.2)) end,
      } do
        local turns, seconds = s.turns, nil
        s:go(function()
          local start = ipc.now()
          wait()
          seconds = ipc.now() - start
        end)
        s:run(PATIENCE)
        assert.is_true(seconds >= 0.2)
        -- Two or three. Where only a pipe tells of a child's end, that is some
        -- milliseconds early; one that never slept would need tens of thousands.
        assert.is_true(s.turns - turns < 10000, s.turns - turns .. " turns of the loop")
      end
    end)

    it("closing what others poll for its rest disturbs neither them nor the number's next owner",
      function()
        local r, w = pipe()
        local r1, lost = pipe { linger = 0 }
        assert(lost:send(BIG, nil, 0))
        local number, word, sent = lost:pollfd(), nil, nil
        s:go(function() word = r:recv() end)
        s:go(function()
          assert.is_nil((lost:close()))
          assert.is_true(r1:close())
          local r2, w2 = pipe()
          assert.is_true(w2:pollfd() >= number)
          with.fill(w2, ("x"):rep(1000))
          s:go(function()
            while r2:recv(0) do end
          end)
          sent = w2:send(("x"):rep(1000))
          assert(w:send "at last")
        end)
        s:run(PATIENCE)
        assert.are.equal("at last", word)
        assert.is_true(sent)
      end)

    it("sendmany whose last message is lost on its way counts those before it", function()
      local r, w = pipe()
      local results
      s:go(function() results = { w:sendmany { "one", BIG } } end)
      s:go(function() r:close() end)
      s:run(PATIENCE)
      assert.are.same({ nil, "closed", E.EPIPE, 1 }, results)
    end)

    it("close of a duplex wakes who waits for its part", function()
      local r = pipe()
      local _, w = pipe()
      local both = with.close(ipc.duplex(r, w))
      local results
      s:go(function() results = { r:recv() } end)
      s:go(function() both:close() end)
      s:run(PATIENCE)
      assert.are.same({ nil, "closed", E.EPIPE }, results)
    end)

    it("what a part reads ahead reaches who waits for the duplex", function()
      local r, w1 = pipe()
      local _, w = pipe()
      local both = with.close(ipc.duplex(r, w))
      local got
      s:go(function() got = both:recv() end)
      if kind.own then s:step() end
      assert(w1:sendmany { "one", "two" })
      assert.are.equal("one", r:recv()) -- by the main coroutine
      s:run(PATIENCE)
      assert.are.equal("two", got)
    end)

    it("iterators, values and lists wait like everything else", function()
      local r, w = pipe()
      local values, count = {}, 0
      s:go(function()
        for value in r:values() do
          values[#values + 1] = value
          if #values == 3 then break end
        end
        while count < 1000 do count = count + #assert(r:recvmany(64)) end
      end)
      s:go(function()
        for i = 1, 3 do
          assert(w:put { i })
          ipc.sleep(0.001)
        end
        local list = {}
        for i = 1, 1000 do list[i] = ("x"):rep(200) end
        assert.are.equal(1000, w:sendmany(list))
      end)
      s:run(PATIENCE)
      assert.are.same({ { 1 }, { 2 }, { 3 } }, values)
      assert.are.equal(1000, count)
    end)

    it("poll and sleep yield too", function()
      local r, w = pipe()
      local r2 = pipe()
      local ready, slept, timeout
      s:go(function() ready = ipc.poll({ r2, r }, PATIENCE) end)
      s:go(function() timeout = { ipc.poll({ r2 }, 0.01) } end)
      s:go(function()
        local start = ipc.now()
        assert(ipc.sleep(0.02))
        slept = ipc.now() - start
        assert(w:send "x")
      end)
      s:run(PATIENCE)
      assert.are.same({ r, [r] = true }, ready)
      assert.are.same({ nil, "timeout", E.ETIMEDOUT }, timeout)
      assert.is_true(slept >= 0.02)
    end)

    it("so does the wait for a child", function()
      local results, trace = nil, {}
      s:go(function()
        local child = with.fork(function() return ipc.parent:recv(PATIENCE) end)
        s:go(function()
          trace[#trace + 1] = "meanwhile"
          assert(child:send "end")
        end)
        results = { child:wait() }
        trace[#trace + 1] = "ended"
      end)
      s:run(PATIENCE)
      assert.are.same({ true, "end" }, results)
      assert.are.same({ "meanwhile", "ended" }, trace)
    end)

    it("a child has no tasks: there calls block", function()
      local ok, text
      s:go(function()
        local child = with.fork(function()
          local r = ipc.pipe()
          return (select(2, r:recv(0.001)))
        end)
        ok, text = child:wait()
      end)
      s:run(PATIENCE)
      assert.is_true(ok)
      assert.is_true(text == "timeout" or text == "closed")
    end)

    it("an error goes through, and closes what is to be closed", function()
      local r, w = pipe()
      local r2, w2 = pipe()
      local trace = {}
      s:go(function()
        local ok, message = pcall(function()
          local writer <close> = w2
          local closing <close> = setmetatable({}, {
            __close = function() -- it may wait, too
              assert(ipc.sleep(0.001))
              assert(writer:send "bye")
            end,
          })
          assert(closing and r:recv())
          error "oops"
        end)
        assert.is_false(ok)
        assert.matches("oops", message)
        trace[#trace + 1] = "after"
      end)
      s:go(function()
        assert(w:send "x")
        assert.are.equal("bye", r2:recv())
        assert.are.equal("closed", select(2, r2:recv()))
        trace[#trace + 1] = "closed"
      end)
      s:run(PATIENCE)
      table.sort(trace)
      assert.are.same({ "after", "closed" }, trace)
    end)

    it("an error of a task reaches who runs them", function()
      local r, w = pipe()
      assert(w:send "x")
      local ok, message = pcall(function()
        s:go(function()
          ipc.sleep(0.001)
          assert(r:recv())
          error "oops"
        end)
        s:run(PATIENCE)
      end)
      assert.is_false(ok)
      assert.matches("oops", tostring(message))
    end)

    it("pcall around a wait works", function()
      local r = pipe()
      local ok, object
      s:go(function() ok, object = pcall(r:messages(0.001)) end)
      s:run(PATIENCE)
      assert.is_false(ok)
      assert.are.equal(E.ETIMEDOUT, object.errno)
    end)

    -- A nested coroutine, and callbacks of C, cannot yield to the scheduler.
    local function counted(f)
      local before, after
      local turns, done = 0, false
      s:go(function()
        ipc.sleep(0)
        before = turns
        f()
        after = turns
        done = true
      end)
      s:go(function()
        while not done do
          turns = turns + 1
          ipc.sleep(0)
          if not done then ipc.poll({}, 0.0001) end
        end
      end)
      s:run(PATIENCE)
      assert.are.equal(before, after)
    end

    it("a nested coroutine blocks as a plain script does", function()
      local r = pipe()
      counted(function()
        local results = table.pack(coroutine.wrap(function() return r:recv(0.01) end)())
        assert.are.same({ nil, "timeout", E.ETIMEDOUT, n = 3 }, results)
      end)
    end)

    it("so do callbacks of sort and gsub", function()
      local r = pipe()
      counted(function()
        table.sort({ 1, 2 }, function(a, b)
          r:recv(0.005)
          return a < b
        end)
        assert.are.equal("b", (("a"):gsub("a", function()
          r:recv(0.005)
          return "b"
        end)))
      end)
    end)

    it("so does a finaliser", function()
      local r = pipe()
      local word
      s:go(function()
        setmetatable({}, { __gc = function() word = select(2, r:recv(0.001)) end })
        collectgarbage()
      end)
      s:run(PATIENCE)
      assert.are.equal("timeout", word)
    end)

    it("outside of tasks everything blocks as before", function()
      local r, w = pipe()
      assert.are.equal("timeout", select(2, r:recv(0.001)))
      assert(w:send "x")
      assert.are.equal("x", r:recv())
    end)

    it("a handle that a task waited on and dropped is collected without harm", function()
      local got = {}
      s:go(function()
        local function ask(i)
          local a, b = assert(ipc.pair "unix") -- with the numbers of the last ones
          s:go(function()
            assert(a:recv() == i .. "?")
            assert(a:send(tostring(i)))
            assert(a:close())
          end)
          ipc.sleep(0)
          assert(b:send(i .. "?"))
          return b:recv(PATIENCE)
        end
        for i = 1, 8 do
          got[i] = ask(i)
          collectgarbage()
          collectgarbage()
          ipc.sleep(0)
        end
      end)
      s:run(PATIENCE)
      assert.are.same({ "1", "2", "3", "4", "5", "6", "7", "8" }, got)
    end)

    it("a nested coroutine may receive what a task waits for; both live", function()
      local r, w = pipe()
      local got = {}
      s:go(function() got.task = r:recv() end)
      s:go(function()
        assert(w:sendmany { "1", "2" })
        coroutine.wrap(function() got.nested = r:recv() end)()
      end)
      s:run(PATIENCE)
      assert.are.same({ ["1"] = true, ["2"] = true }, { [got.task] = true, [got.nested] = true })
    end)

    it("what others read ahead while a task waits reaches the task", function()
      for _, look in ipairs {
        function(r) return r:recv() end,
        function(r) return r:recvmany(1) end,
        function(r) return ipc.poll({ r }, 1) end,
      } do
        local r, w = pipe()
        local got
        s:go(function() got = r:recv() end)
        if kind.own then s:step() end
        assert(w:sendmany { "1", "2" })
        assert(look(r)) -- by the main coroutine
        s:run(PATIENCE)
        assert.is_true(got == "1" or got == "2")
      end
    end)

    if kind.cqueues then
      it("channels can be polled by cqueues itself", function()
        local r, w = pipe()
        local cqueues = require "cqueues"
        local ready, got
        s:go(function()
          ready = cqueues.poll(r, 5)
          got = r:recv(0)
        end)
        s:go(function() assert(w:send "x") end)
        s:run(PATIENCE)
        assert.are.equal(r, ready)
        assert.are.equal("x", got)
      end)

      it("a child of a program with cqueues can use cqueues itself", function()
        local child = with.fork(function()
          local controller = require "ipc.cqueues".new()
          local a, b = assert(ipc.pair "unix")
          local answer
          controller:wrap(function()
            assert(a:send "question")
            answer = a:recv(5)
          end)
          controller:wrap(function() assert(b:send("answer to " .. b:recv(5))) end)
          assert(controller:loop())
          return answer
        end)
        assert.are.same({ true, "answer to question" }, { child:wait(PATIENCE) })
      end)

      it("a message read ahead is ready for cqueues too", function()
        local r, w = pipe()
        assert(w:sendmany { "1", "2" })
        assert(r:recv())
        local got
        s:go(function()
          assert(require "cqueues".poll(r, 5) == r)
          got = r:recv(0)
        end)
        s:run(PATIENCE)
        assert.are.equal("2", got)
      end)
    end

    if not kind.own then return end

    it("the order is that of coming, whatever order the scheduler wakes them in", function()
      for _, row in ipairs(tried) do
        if not row.remote and not row.lossy then
          local r, w = open(row)
          local got, sent, text = {}, {}, ("x"):rep(1000)
          for i = 1, 4 do
            s:go(function() got[i] = r:recv() end)
          end
          s.backwards = false
          s:step()
          s.backwards = true
          assert(w:sendmany { "1", "2", "3", "4" })
          s:run(PATIENCE)
          assert.are.same({ "1", "2", "3", "4" }, got)
          local n = with.fill(w, text)
          for i = 1, 4 do
            s:go(function() assert(w:send(i .. text)) end)
          end
          s.backwards = false
          s:step()
          s.backwards = true
          s:go(function()
            for _ = 1, n do assert(r:recv()) end
            for i = 1, 4 do sent[i] = r:recv():sub(1, 1) end
          end)
          s:run(PATIENCE)
          assert.are.same({ "1", "2", "3", "4" }, sent)
        end
      end
    end)

    it("who is woken for nothing overtakes nobody, however often", function()
      for _, row in ipairs(tried) do
        if not row.remote and not row.lossy then
          s.backwards = false
          local r, w = open(row)
          local got, sent, text = {}, {}, ("x"):rep(1000)
          local function wake(task)
            for _ = 1, 10 do
              s.member[task] = false
              s:step()
            end
          end
          s:go(function() got[1] = r:recv() end)
          local second = s:go(function() got[2] = r:recv() end)
          s:step()
          wake(second)
          s.backwards = true
          assert(w:sendmany { "1", "2" })
          s:run(PATIENCE)
          assert.are.same({ "1", "2" }, got)
          s.backwards = false
          local n = with.fill(w, text)
          s:go(function() assert(w:send("1" .. text)) end)
          second = s:go(function() assert(w:send("2" .. text)) end)
          s:step()
          -- Without a descriptor the first waits for a time, and that passes.
          if s.member[second][1]:pollfd() then wake(second) end
          s.backwards = true
          s:go(function()
            for _ = 1, n do assert(r:recv()) end
            for i = 1, 2 do sent[i] = r:recv():sub(1, 1) end
          end)
          s:run(PATIENCE)
          assert.are.same({ "1", "2" }, sent)
        end
      end
    end)

    it("a sender that nobody tells of room looks again, whatever others do on its handle", function()
      local q = with.close(assert(ipc.sysv("private", "rw", { temporary = true })))
      local other = with.close(q:dup())
      local text, got = ("x"):rep(1000), {}
      local n = 0
      while q:send(text, 1, 0) do n = n + 1 end
      s:go(function() assert(q:send("1" .. text, 2)) end)
      s:go(function() got[3] = q:recv(nil, 7) end)
      s:go(function() assert(q:send("2" .. text, 2)) end)
      s:step()
      for _ = 1, n do assert(other:recv(0, 1)) end
      s:go(function()
        for i = 1, 2 do got[i] = other:recv(nil, 2):sub(1, 1) end
        assert(other:send("3", 7))
      end)
      s:run(PATIENCE)
      assert.are.same({ "1", "2", "3" }, got)
    end)

    it("coroutine.close of a waiting task gives up its place", function()
      local r, w = pipe()
      local got, closed = {}, false
      local first = s:go(function()
        local note <close> = setmetatable({}, { __close = function() closed = true end })
        got[1] = note and r:recv()
      end)
      s:go(function() got[2] = r:recv() end)
      s:step()
      assert(coroutine.close(first))
      s:drop(first)
      assert.is_true(closed)
      assert(w:send "x")
      s:run(PATIENCE)
      assert.are.same({ nil, "x" }, got)
    end)

    it("coroutine.close of a task in ipc.poll keeps nothing: a close is seen at once", function()
      local a, b = open(rooms.find "unix stream")
      local task = s:go(function() ipc.poll { b } end)
      s:step()
      assert(coroutine.close(task))
      s:drop(task)
      assert.is_true(b:close())
      assert.are.same({ nil, "closed", E.EPIPE }, { a:recv(0) })
    end)

    it("so does a task that is dropped and collected", function()
      local r, w = pipe()
      local got
      local function drop()
        local first = s:go(function() r:recv() end)
        s:step()
        s:drop(first)
      end
      drop()
      collectgarbage()
      collectgarbage()
      s:go(function() got = r:recv() end)
      assert(w:send "x")
      s:run(PATIENCE)
      assert.are.equal("x", got)
    end)

    it("a task that is dropped but kept does not hold up the others for ever, which stay in order", function()
      for _, row in ipairs(tried) do
        if not row.remote and not row.lossy then
          local r, w = open(row)
          local got, sent, text = {}, {}, ("x"):rep(1000)
          local first = s:go(function() r:recv() end)
          s:step()
          s:drop(first)
          s.backwards = false
          for i = 1, 3 do
            s:go(function() got[i] = r:recv() end)
          end
          s:step()
          s.backwards = true
          assert(w:sendmany { "1", "2", "3" })
          s:run(PATIENCE)
          assert.are.same({ "1", "2", "3" }, got)
          assert.are.equal("suspended", coroutine.status(first))
          local n = with.fill(w, text)
          first = s:go(function() w:send(text) end)
          s:step()
          s:drop(first)
          s.backwards = false
          for i = 1, 3 do
            s:go(function() assert(w:send(i .. text)) end)
          end
          s:step()
          s.backwards = true
          s:go(function()
            for _ = 1, n do assert(r:recv()) end
            for i = 1, 3 do sent[i] = r:recv():sub(1, 1) end
          end)
          s:run(PATIENCE)
          assert.are.same({ "1", "2", "3" }, sent)
        end
      end
    end)

    it("a task that was passed over has its place again once it looks", function()
      local r, w = pipe()
      local got = {}
      local first = s:go(function() got[1] = r:recv() end)
      s:go(function() got[2] = r:recv() end)
      s:step()
      s:drop(first)
      assert(w:send "for the second")
      s:run(PATIENCE)
      s.member[first] = false
      table.insert(s.order, first)
      s:go(function() got[3] = r:recv() end)
      s:step()
      assert(w:sendmany { "for the first", "for the third" })
      s:run(PATIENCE)
      assert.are.same({ "for the first", "for the second", "for the third" }, got)
    end)

    it("a task whose wait raises gives up its place", function()
      local r, w = pipe()
      local wait = coroutine.yield
      local armed = true
      local member = s.member
      ipc.scheduler {
        is_task = function(thread) return member[thread] ~= nil end,
        wait = function(...)
          if armed then
            armed = false
            error "no wait today"
          end
          return wait(...)
        end,
        cancel = function(descriptor) s:cancel(descriptor) end,
      }
      local ok, message, got
      s:go(function() ok, message = pcall(r.recv, r) end)
      s:go(function() got = r:recv() end)
      s:go(function() assert(w:send "x") end)
      s:run(PATIENCE)
      assert.is_false(ok)
      assert.matches("no wait today", message)
      assert.are.equal("x", got)
    end)

    it("what a wait is given answers as cqueues asks: pollfd, events, timeout", function()
      local r, w = pipe()
      with.fill(w, ("x"):rep(1000))
      local reader = s:go(function()
        while r:recv(5) do end
      end)
      s:step()
      local _, object = next(s.member[reader])
      assert.are.equal(r:pollfd(), object:pollfd())
      assert.are.equal("r", object:events())
      assert.is_true(object:timeout() <= 5)
      s:drop(reader)
      local writer = s:go(function()
        repeat until not w:send(("x"):rep(100000))
      end)
      s:step()
      object = s.member[writer][1]
      assert.are.equal(w:pollfd(), object:pollfd())
      assert.are.equal("w", object:events())
      assert(coroutine.close(writer))
      s:drop(writer)
      assert(coroutine.close(reader))
      assert.is_nil(object:pollfd())
    end)
  end)
end

describe("ipc.scheduler", function()
  after_each(function() ipc.scheduler(nil) end)

  it("refuses a table that lacks a function, and keeps what was there", function()
    local function nothing() end
    for _, name in ipairs { "is_task", "wait", "cancel" } do
      local functions = { is_task = nothing, wait = nothing, cancel = nothing }
      functions[name] = nil
      local ok, message = pcall(ipc.scheduler, functions)
      assert.is_false(ok)
      assert.matches("bad argument #1 to .*'" .. name .. "'", message)
    end
    assert.is_false(pcall(ipc.scheduler, 42))
  end)

  it("is told of a descriptor before the collector closes it, not by the program's end", function()
    local text, status = with.shell(with.command [[
      local ipc = require "ipc"
      local r, w = ipc.pipe()
      local old, older = ipc.pipe() -- older than the scheduler
      local task, fd
      ipc.scheduler {
        is_task = function(thread) return thread == task end,
        wait = coroutine.yield,
        cancel = function(number)
          if number ~= fd then print "another" end
          local file <close> = io.open("/dev/fd/" .. number)
          print(file and "open" or "closed")
          error "shown as a warning only"
        end,
      }
      local function wait(channel)
        task = coroutine.create(function() channel:recv() end)
        assert(coroutine.resume(task))
        assert(coroutine.close(task))
        task = nil
      end
      wait(old)
      local new, newer = ipc.pipe()
      wait(new)
      keep = { old, older, new, newer, w }
      fd = r:pollfd()
      wait(r)
      r = nil
      collectgarbage()
      collectgarbage()
      print "end"
    ]])
    assert.are.equal(0, status or 0)
    assert.are.equal("open\nend\n", (text:gsub("open\n[open\n]*open\n", "open\n")))
  end)

  it("may be cqueues to the end of the program, whatever it polls then", function()
    local text = with.shell(with.command [[
      local ipc = require "ipc"
      local first, one = ipc.pipe()
      local controller = require "ipc.cqueues".new()
      local second, two = ipc.pair "unix"
      for _, channel in ipairs { first, second } do
        controller:wrap(function() channel:recv() end)
      end
      controller:wrap(function() require "cqueues".poll(two) end)
      controller:step(0)
      keep = { first, one, second, two, controller }
      print "end"
    ]])
    assert.are.equal("end\n", text)
  end)

  it("takes nil: calls block again", function()
    local asked = 0
    ipc.scheduler {
      is_task = function()
        asked = asked + 1
        return false
      end,
      wait = error, cancel = error,
    }
    local r <close> = ipc.pipe()
    local function try() r:recv(0.0001) end
    coroutine.wrap(try)()
    local before = asked
    assert.is_true(before > 0)
    ipc.scheduler(nil)
    coroutine.wrap(try)()
    assert.are.equal(before, asked)
  end)
end)
