-- Tasks: ipc.loop, ipc.main. What calls do in tasks is contract: scheduler_spec.
local ipc = require "ipc"
local peer = require "spec.support.peer"

local loop = ipc.loop
local E = ipc.errno
local LIMIT = peer.limit

local function nothing() end

-- Runs as ipc.loop.run, but not for ever.
local function run(fn, ...)
  return loop.run(function(...)
    local root = require "ipc.loop.tasks".current()
    local guard = loop.go(function()
      ipc.sleep(LIMIT)
      root:cancel()
    end)
    local results = table.pack(fn(...))
    guard:cancel()
    return table.unpack(results, 1, results.n)
  end, ...)
end

-- The first results.
local function first(n, ...)
  return table.unpack({ ... }, 1, n)
end

-- A shell command that has been run when this returns, signals as they are.
local KILL = [[
  local function kill(name)
    io.popen("kill -" .. name .. " " .. ipc.pid()):close()
  end
]]

-- A task that notes how it ends.
local function closing(trace, name, wait)
  return setmetatable({}, {
    __close = function(_, problem)
      if wait then assert(ipc.sleep(wait)) end
      trace[#trace + 1] = name .. ": " .. tostring(problem)
    end,
  })
end

describe("ipc.loop:", function()
  before_each(function() loop.use(nil) end)
  after_each(function()
    peer.clean()
    ipc.scheduler(nil)
  end)

  describe("tasks", function()
    it("run, return their results, and may be waited for by several and later", function()
      run(function(a, b)
        assert.are.same({ 1, nil, n = 2 }, table.pack(a, b))
        local task = loop.go(function(...) return select("#", ...), ... end, nil, 2, nil)
        local got
        local other = loop.go(function() got = table.pack(task:wait()) end)
        assert.are.same({ true, 3, nil, 2, nil, n = 5 }, table.pack(task:wait()))
        assert.is_true(other:wait())
        assert.are.same({ true, 3, nil, 2, nil, n = 5 }, got)
        assert.are.same({ true, 3, nil, 2, nil, n = 5 }, table.pack(task:wait(0)))
        assert.matches("ipc.task %(done%)", tostring(task))
      end, 1, nil)
    end)

    it("begin in their order, when the one that makes them waits", function()
      local trace = {}
      run(function()
        local last
        for i = 1, 5 do
          last = loop.go(function() trace[i] = #trace + 1 end)
        end
        assert.are.same({}, trace)
        last:wait()
      end)
      assert.are.same({ 1, 2, 3, 4, 5 }, trace)
    end)

    it("answer errors as nil, message, errno and the value", function()
      run(function()
        local object = setmetatable({ errno = 7, message = "lost" }, {})
        for _, case in ipairs {
          { function() error("text", 0) end, "text", 0, "text" },
          { function() error(object) end, "lost", 7, object },
          { function() error() end, "nil", 0, nil },
          { function() error({}) end, nil, 0, nil },
        } do
          local task = loop.go(case[1])
          local ok, message, errno, value = task:wait()
          assert.is_nil(ok)
          if case[2] then assert.are.equal(case[2], message) end
          assert.are.equal(case[3], errno)
          if case[4] then assert.are.equal(case[4], value) end
          assert.matches("failed", tostring(task))
        end
      end)
    end)

    it("wait with a timeout leaves the task alone", function()
      run(function()
        local r, w = peer.pipe()
        local task = loop.go(function() return r:recv() end)
        assert.are.same({ nil, "timeout", E.ETIMEDOUT }, { task:wait(0.01) })
        assert.are.same({ nil, "timeout", E.ETIMEDOUT }, { task:wait(0) })
        assert.are.same({ nil, "timeout", E.ETIMEDOUT }, { task:wait(-1) })
        assert(w:send "x")
        assert.are.same({ true, "x" }, { task:wait(math.huge) })
      end)
    end)

    it("a task does not wait for itself", function()
      run(function()
        local task
        task = loop.go(function() return pcall(task.wait, task) end)
        local _, ok, message = task:wait()
        assert.is_false(ok)
        assert.matches("its own end", message)
      end)
    end)

    it("coroutine.yield of a task's own lets the others go on", function()
      local trace = {}
      run(function()
        local one = loop.go(function()
          for i = 1, 3 do
            trace[#trace + 1] = "one" .. i
            assert.are.equal(0, select("#", coroutine.yield("ignored", i)))
          end
        end)
        loop.go(function()
          for i = 1, 3 do
            trace[#trace + 1] = "two" .. i
            coroutine.yield()
          end
        end)
        one:wait()
      end)
      assert.are.same({ "one1", "two1", "one2", "two2", "one3", "two3" }, trace)
    end)

    it("thousands of them", function()
      local sum = 0
      run(function()
        local r, w = peer.pipe()
        local s <close> = loop.scope()
        for i = 1, 5000 do
          s:go(function()
            ipc.sleep(0.001 * (i % 7))
            sum = sum + i
            if i % 100 == 0 then assert(w:put(i)) end
          end)
        end
        local got = 0
        for _ = 1, 50 do got = got + assert(r:get()) end
        assert.are.equal(100 * 50 * 51 // 2, got)
      end)
      assert.are.equal(5000 * 5001 // 2, sum)
    end)

    it("deadlines come in their order, however they were set", function()
      local reactor = require "ipc.loop.reactor"
      local order, start = {}, ipc.now()
      local function woken(member) order[#order + 1] = member.k end
      local members = {}
      for i = 1, 1000 do
        local k = i * 373 % 1009
        members[i] = { k = k, woken = woken }
        reactor.wait(members[i], start + k * 1e-5)
      end
      for i = 1, 1000, 3 do -- these wait for something else now
        reactor.wake(members[i])
        reactor.wait(members[i], start + (members[i].k + 500) * 1e-5)
        members[i].k = members[i].k + 500
      end
      for i = 2, 1000, 3 do -- and these not at all
        reactor.wake(members[i])
        reactor.forget(members[i])
      end
      order = {}
      while #order < 667 do assert(reactor.look(0.001)) end
      for i = 2, #order do assert.is_true(order[i - 1] <= order[i]) end
      assert.are.equal(667, #order)
    end)

    it("a long timeout that is never reached costs no place", function()
      run(function()
        local r, w = peer.pipe()
        local task = loop.go(function()
          for _ = 1, 2000 do
            assert(r:recv(1000))
            ipc.sleep(0.00001)
          end
        end)
        for i = 1, 2000 do assert(w:send(tostring(i))) end
        assert.is_true(task:wait())
        assert.is_true((loop.timeout() or 0) < LIMIT + 1)
      end)
    end)
  end)

  describe("cancel", function()
    -- name -> a wait that does not end by itself
    local waits = {
      recv = function() local r = peer.pipe() return r:recv() end,
      get = function() local r = peer.pipe() return r:get() end,
      messages = function()
        local r = peer.pipe()
        return r:messages()()
      end,
      send = function()
        local _, w = peer.pipe { linger = 0 }
        while true do assert(w:send(("x"):rep(10000))) end
      end,
      accept = function()
        local l <close> = assert(ipc.listen(("unix:/tmp/loop-spec-%d.sock"):format(ipc.pid())))
        return l:accept(math.huge)
      end,
      sleep = function() return ipc.sleep(1000) end,
      ["process wait"] = function()
        local child <close> = peer.fork(function() ipc.parent:recv() end)
        return child:wait(math.huge)
      end,
      ["queue get"] = function() return loop.queue():get() end,
      ["queue put"] = function() return loop.queue(0):put(1) end,
      ["scope go"] = function()
        local s <close> = loop.scope { limit = 1 }
        s:go(ipc.sleep, 1000)
        s:go(nothing)
      end,
      ["scope wait"] = function()
        local s <close> = loop.scope()
        s:go(ipc.sleep, 1000)
        return s:wait()
      end,
      ["scope close"] = function()
        local s <close> = loop.scope()
        s:go(ipc.sleep, 1000)
      end,
      ["task wait"] = function() return loop.go(ipc.sleep, 1000):wait() end,
      poll = function()
        local r = peer.pipe()
        return ipc.poll { r }
      end,
      ["a mutex"] = function()
        local m = assert(ipc.mutex())
        local holder <close> = peer.fork(function()
          local held <close> = assert(m:lock())
          ipc.parent:put "held"
          ipc.parent:recv()
        end)
        assert(holder:get() == "held")
        return m:lock(math.huge)
      end,
      ["a ring"] = function()
        local r = peer.keep(assert(ipc.queue()))
        return r:recv()
      end,
      ["a System V queue"] = function()
        local q = peer.keep(assert(ipc.sysv("private", "rw", { temporary = true })))
        return q:recv()
      end,
      ["a nested coroutine of wrap"] = function()
        local r = peer.pipe()
        return loop.wrap(function() return r:recv() end)()
      end,
    }
    local memory = { ["a mutex"] = true, ["a ring"] = true }
    for name, wait in pairs(waits) do
      it("ends a wait: " .. name, function()
        if memory[name] and not peer.has "shm" then return pending "needs shared memory" end
        local trace = {}
        run(function()
          local task = loop.go(function()
            local held <close> = closing(trace, "task", 0.001)
            local ok, problem = pcall(wait)
            assert.is_false(ok)
            assert.are.equal("cancelled", problem.message)
            assert.are.equal(E.ECANCELED, problem.errno)
            assert.are.equal("cancelled", tostring(problem))
            ipc.sleep(0.001) -- once
            error(problem, 0)
          end)
          for _ = 1, 3 do ipc.sleep(0.005) end
          assert.is_true(task:cancel())
          assert.are.same({ nil, "cancelled", E.ECANCELED }, { first(3, task:wait()) })
          assert.matches("cancelled", tostring(task))
          assert.is_false(task:cancel())
        end)
        assert.are.same({ "task: cancelled" }, trace)
      end)
    end

    it("before it began: it never does", function()
      run(function()
        local began = false
        local task = loop.go(function() began = true end)
        assert.is_true(task:cancel())
        assert.are.equal("cancelled", select(2, task:wait()))
        assert.is_false(began)
      end)
    end)

    it("while it runs: at its next wait", function()
      run(function()
        local went
        local task
        task = loop.go(function()
          assert.is_true(task:cancel())
          coroutine.yield() -- that is no wait
          went = true
          ipc.sleep(1000)
        end)
        assert.are.equal("cancelled", select(2, task:wait()))
        assert.is_true(went)
      end)
    end)

    it("is an answer where the task makes it one", function()
      run(function()
        local task = loop.go(function()
          local ok = pcall(ipc.sleep, 1000)
          return ok, "goes on"
        end)
        ipc.sleep(0.001)
        task:cancel()
        assert.are.same({ true, false, "goes on" }, { task:wait() })
      end)
    end)

    it("a message that came meanwhile is not lost", function()
      run(function()
        local r, w = peer.pipe()
        local task = loop.go(function() return r:recv() end)
        ipc.sleep(0)
        ipc.sleep(0.001)
        assert(w:send "kept")
        task:cancel()
        assert.are.equal("cancelled", select(2, task:wait()))
        assert.are.equal("kept", r:recv(LIMIT))
        local q = loop.queue()
        task = loop.go(function() return q:get() end)
        ipc.sleep(0.001)
        assert(q:put "kept, too")
        task:cancel()
        assert.are.equal("cancelled", select(2, task:wait()))
        assert.are.equal("kept, too", q:get(0))
      end)
    end)

    it("what was taken from a put is put: the next wait raises", function()
      run(function()
        local q = loop.queue(0)
        local answer, later
        local task = loop.go(function()
          answer = q:put "v"
          later = select(2, pcall(ipc.sleep, LIMIT))
        end)
        ipc.sleep(0.001)
        assert.are.equal("v", q:get(0))
        task:cancel()
        assert.is_true(task:wait(LIMIT))
        assert.is_true(answer)
        assert.are.equal(E.ECANCELED, later.errno)
      end)
    end)

    it("clean-up may wait, be cancelled again, and raise", function()
      local trace = {}
      run(function()
        local r, w = peer.pipe()
        local task = loop.go(function()
          local held <close> = closing(trace, "inner")
          local more <close> = setmetatable({}, {
            __close = function()
              trace[#trace + 1] = assert(r:recv())
              local ok, problem = pcall(ipc.sleep, 1000)
              trace[#trace + 1] = tostring(not ok and problem)
              error("of clean-up", 0)
            end,
          })
          ipc.sleep(1000)
          return held, more
        end)
        ipc.sleep(0.001)
        task:cancel()
        ipc.sleep(0.001)
        assert(w:send "bye")
        while not trace[1] do ipc.sleep(0.001) end
        task:cancel()
        assert.are.same({ nil, "of clean-up", 0, "of clean-up" }, { task:wait() })
      end)
      assert.are.same({ "bye", "cancelled", "inner: of clean-up" }, trace)
    end)
  end)

  describe("run", function()
    it("returns results, raises errors, and can be called again", function()
      assert.are.same({ 1, nil, 3, n = 3 }, table.pack(loop.run(function() return 1, nil, 3 end)))
      local object = {}
      local ok, problem = pcall(loop.run, function() error(object) end)
      assert.is_false(ok)
      assert.are.equal(object, problem)
      assert.are.equal(2, loop.run(function() return 2 end))
    end)

    it("cancels the other tasks at its end, and waits for their clean-up", function()
      local trace = {}
      run(function()
        loop.go(function()
          local held <close> = closing(trace, "other", 0.01)
          ipc.sleep(1000)
        end)
        ipc.sleep(0.001)
      end)
      assert.are.same({ "other: cancelled" }, trace)
      assert.are.equal(0, loop.step(0))
    end)

    it("ends with an error that nobody waits for", function()
      local trace = {}
      local ok, problem = pcall(run, function()
        local held <close> = closing(trace, "root", 0.001)
        loop.go(function()
          ipc.sleep(0.001)
          error("nobody", 0)
        end)
        ipc.sleep(1000)
      end)
      assert.is_false(ok)
      assert.are.equal("nobody", problem)
      assert.are.same({ "root: cancelled" }, trace)
    end)

    it("ends with an error in the clean-up of another task, after the root's end, too", function()
      local ok, problem = pcall(run, function()
        loop.go(function()
          local held <close> = setmetatable({}, { __close = function() error("late", 0) end })
          ipc.sleep(1000)
        end)
        ipc.sleep(0.001)
      end)
      assert.is_false(ok)
      assert.are.equal("late", problem)
    end)

    it("tasks that go on all the same are left alone in the end", function()
      local text = peer.run [[
        warn "@on"
        require "ipc.loop.tasks".grace = 0.01
        ipc.loop.run(function()
          ipc.loop.go(function() while true do pcall(ipc.sleep, 1000) end end)
          ipc.loop.go(function() while true do coroutine.yield() end end)
          ipc.sleep(0.001)
        end)
        print "over"
      ]]
      assert.matches("2 tasks go on", text)
      assert.matches("over\n$", text)
    end)

    it("os.exit in a task closes the state: the others' clean-up runs", function()
      for _, how in ipairs { "ipc.loop.run", "ipc.main" } do
        for _, exit in ipairs { "os.exit(7, true)", "ipc.loop.wrap(function() os.exit(7, true) end)()" } do
          local text, _, _, status = peer.run(([[
            %s(function()
              ipc.loop.go(function()
                local held <close> = setmetatable({}, { __close = function() ipc.sleep(0.001) print "closed" end })
                ipc.sleep(1000)
              end)
              ipc.loop.go(function() ipc.sleep(0.001) %s end)
              ipc.sleep(1000)
            end)
          ]]):format(how, exit))
          assert.are.equal("closed\n", text)
          assert.are.equal(7, status)
        end
      end
    end)

    it("an error object whose metamethods raise is that task's alone", function()
      run(function()
        local function raise() error "of a metamethod" end
        local both = { __index = raise, __tostring = raise }
        for _, meta in ipairs { { __index = raise }, { __tostring = raise }, both } do
          local task = loop.go(error, setmetatable({}, meta))
          local other = loop.go(function() ipc.sleep(0.001) return "on" end)
          assert.is_nil((task:wait(LIMIT)))
          assert.are.same({ true, "on" }, { other:wait(LIMIT) })
        end
      end)
    end)

    it("not within itself", function()
      local ok, message = run(function() return pcall(loop.run, nothing) end)
      assert.is_false(ok)
      assert.matches("runs already", message)
      ok, message = run(function() return pcall(loop.step) end)
      assert.is_false(ok)
      assert.matches("turn the loop", message)
    end)

    it("changes nothing of the process", function()
      local with = require "spec.support.with"
      local before = with.signals()
      loop.run(function() ipc.sleep(0.001) end)
      assert.are.equal(before, with.signals())
    end)

    it("in a child that a task forked: a loop of its own", function()
      run(function()
        local r, w = peer.pipe()
        loop.go(function() r:recv() end)
        ipc.sleep(0.001)
        local child = peer.fork(function()
          return loop.run(function()
            local a, b = ipc.pipe()
            local task = loop.go(function() return a:recv() end)
            ipc.sleep(0.001)
            b:send "of the child"
            return select(2, task:wait())
          end)
        end)
        assert.are.same({ true, "of the child" }, { child:wait() })
        assert(w:send "still here")
      end)
    end)
  end)

  it("outside of tasks waiting turns the loop", function()
    local r, w = peer.pipe()
    local task = loop.go(function() return r:recv() end)
    assert.are.same({ nil, "timeout", E.ETIMEDOUT }, { task:wait(0.01) })
    assert(w:send "x")
    assert.are.same({ true, "x" }, { task:wait(LIMIT) })
    local q = loop.queue()
    loop.go(function() q:put(1) end)
    assert.are.equal(1, q:get(LIMIT))
    do
      local s <close> = loop.scope()
      s:go(function() ipc.sleep(0.001) q:put(2) end)
    end
    assert.are.equal(2, q:get(0))
  end)

  it("step is a turn for hosts; an error that nobody waits for comes out of it", function()
    local r, w = peer.keep(assert(ipc.pipe()))
    local got
    assert.are.equal(0, loop.step())
    loop.go(function() got = r:recv() end)
    assert.are.equal(0, loop.timeout())
    assert.are.equal(1, loop.step(0))
    local blind = not require "ipc.core".task.set():pollfd() -- it must look itself
    assert.are.equal(blind and 0.001 or nil, loop.timeout())
    assert.are.equal("r", loop.events())
    local host = { pollfd = loop.pollfd(), events = "r" }
    assert.are.same({ nil, "timeout", E.ETIMEDOUT }, { ipc.poll({ host }, 0) })
    assert(w:send "x")
    assert.is_table(ipc.poll({ loop }, LIMIT))
    if assert(ipc.poller()):pollfd() then assert.is_table(ipc.poll({ host }, LIMIT)) end
    assert.are.equal(0, loop.step(0))
    assert.are.equal("x", got)
    loop.go(function() error("out", 0) end)
    local ok, problem = pcall(loop.step, 0)
    assert.is_false(ok)
    assert.are.equal("out", problem)
    assert.are.equal(0, loop.step(0))
  end)

  describe("scope", function()
    it("waits for all of its tasks", function()
      local done = 0
      run(function()
        do
          local s <close> = loop.scope()
          for i = 1, 10 do
            s:go(function(n)
              ipc.sleep(0.001 * n)
              done = done + 1
            end, i)
          end
        end
        assert.are.equal(10, done)
      end)
    end)

    it("runs so many at once", function()
      local most, now, count = 0, 0, 0
      run(function()
        local s <close> = loop.scope { limit = 3 }
        for _ = 1, 20 do
          s:go(function()
            now = now + 1
            most = math.max(most, now)
            ipc.sleep(0.001)
            now, count = now - 1, count + 1
          end)
          assert.is_true(now <= 3)
        end
      end)
      assert.are.equal(3, most)
      assert.are.equal(20, count)
    end)

    it("the first error cancels the rest and the block, and is raised where it is left", function()
      local trace, object = {}, { errno = 5, message = "mine" }
      run(function()
        local ok, problem = pcall(function()
          local s <close> = loop.scope()
          s:go(function()
            local held <close> = closing(trace, "rest", 0.001)
            ipc.sleep(1000)
          end)
          s:go(function()
            ipc.sleep(0.005)
            error(object)
          end)
          local held <close> = closing(trace, "block")
          ipc.sleep(1000)
        end)
        assert.is_false(ok)
        assert.are.equal(object, problem)
        ipc.sleep(0.001) -- it is not cancelled twice
      end)
      table.sort(trace)
      assert.are.same({ "block: cancelled", "rest: cancelled" }, trace)
    end)

    it("an error while the block ends, or when it never waits, is raised there", function()
      run(function()
        for _, wait in ipairs { 0, 0.002 } do
          local ok, problem = pcall(function()
            local s <close> = loop.scope()
            s:go(function()
              ipc.sleep(wait)
              error("late", 0)
            end)
            s:go(ipc.sleep, 1000)
          end)
          assert.is_false(ok)
          assert.are.equal("late", problem)
        end
        assert.is_true(ipc.sleep(0.001))
      end)
    end)

    it("left by an error it cancels its tasks and passes the error on", function()
      local trace = {}
      run(function()
        local ok, problem = pcall(function()
          local s <close> = loop.scope()
          s:go(function()
            local held <close> = closing(trace, "task")
            ipc.sleep(1000)
          end)
          ipc.sleep(0.001)
          error("mine", 0)
        end)
        assert.is_false(ok)
        assert.are.equal("mine", problem)
      end)
      assert.are.same({ "task: cancelled" }, trace)
    end)

    it("cancelled from outside: so are its tasks, which are waited for", function()
      local trace = {}
      run(function()
        local task = loop.go(function()
          local s <close> = loop.scope()
          s:go(function()
            local held <close> = closing(trace, "task", 0.002)
            ipc.sleep(1000)
          end)
        end)
        ipc.sleep(0.002)
        task:cancel()
        assert.are.equal("cancelled", select(2, task:wait()))
        trace[#trace + 1] = "over"
      end)
      assert.are.same({ "task: cancelled", "over" }, trace)
    end)

    it("within a scope: an error goes through both", function()
      run(function()
        local ok, problem = pcall(function()
          local outer <close> = loop.scope()
          outer:go(function()
            local inner <close> = loop.scope()
            inner:go(function() error("deep", 0) end)
            ipc.sleep(1000)
          end)
          ipc.sleep(1000)
        end)
        assert.is_false(ok)
        assert.are.equal("deep", problem)
      end)
    end)

    it("a place is passed on by who was called for it and cancelled", function()
      run(function()
        local s = loop.scope { limit = 1 }
        local q = loop.queue()
        s:go(function() q:get() end)
        local first_one = loop.go(function() s:go(nothing) end)
        local second = loop.go(function() s:go(nothing) return "went" end)
        ipc.sleep(0.001)
        q:put(1) -- the place is free in the next turn, and in that
        loop.go(function() first_one:cancel() end)
        assert.are.same({ true, "went" }, { second:wait(LIMIT) })
        assert.are.equal("cancelled", select(2, first_one:wait(LIMIT)))
        s:close()
      end)
    end)

    it("an outside cancellation is not taken back with its own", function()
      run(function()
        local block, later
        local task = loop.go(function() -- neither has been raised yet
          block = table.pack(pcall(function()
            local s <close> = loop.scope()
            s:go(function() error("child", 0) end)
            coroutine.yield()
            coroutine.yield()
            return s
          end))
          later = table.pack(pcall(ipc.sleep, LIMIT))
        end)
        coroutine.yield()
        coroutine.yield()
        task:cancel()
        assert.is_true(task:wait(LIMIT))
        assert.are.same({ false, "child", n = 2 }, block)
        assert.is_false(later[1])
        assert.are.equal(E.ECANCELED, later[2].errno)
      end)
    end)

    it("an outside cancellation during its clean-up goes through", function()
      run(function()
        local cleaning = false
        local task = loop.go(function()
          local s <close> = loop.scope()
          s:go(function() error("child", 0) end)
          local held <close> = setmetatable({}, {
            __close = function()
              cleaning = true
              ipc.sleep(LIMIT)
            end,
          })
          ipc.sleep(LIMIT)
          return held, s
        end)
        while not cleaning do coroutine.yield() end
        task:cancel()
        assert.are.same({ nil, "cancelled", E.ECANCELED }, { first(3, task:wait(LIMIT)) })
        -- and while it waits for its tasks: after the error
        local later
        task = loop.go(function()
          pcall(function()
            local s <close> = loop.scope()
            s:go(function()
              local raises <close> = setmetatable({}, { __close = function() error("child", 0) end })
              ipc.sleep(LIMIT)
              return raises
            end)
          end)
          later = table.pack(pcall(ipc.sleep, LIMIT))
        end)
        ipc.sleep(0.001)
        task:cancel()
        assert.is_true(task:wait(LIMIT))
        assert.is_false(later[1])
      end)
    end)

    it("where nobody can wait there is none; left there it raises, and its tasks are cancelled", function()
      run(function()
        local ok, message = pcall(coroutine.wrap(function() loop.scope() end))
        assert.is_false(ok)
        assert.matches("loop_spec.lua:%d+: ipc.loop: no wait here", message)
        assert.is_false(pcall(table.sort, { 1, 2 }, function() loop.scope() end))
        local s = loop.scope()
        local task = s:go(ipc.sleep, LIMIT)
        ipc.sleep(0.001)
        assert.is_false(pcall(coroutine.wrap(function() s:close() end)))
        assert.are.equal("cancelled", select(2, task:wait(LIMIT)))
      end)
    end)

    it("wait tells its tasks' end; who was told is not told again", function()
      run(function()
        local s <close> = loop.scope()
        s:go(ipc.sleep, 0.005)
        assert.are.same({ nil, "timeout", E.ETIMEDOUT }, { s:wait(0.001) })
        assert.is_true(s:wait())
        s:go(function()
          ipc.sleep(0.001)
          error("told", 0)
        end)
        s:go(ipc.sleep, 1000)
        assert.are.same({ nil, "told", 0, "told" }, { s:wait() })
        assert.is_false(pcall(s.go, s, nothing))
      end)
    end)

    it("a cancelled task is no error of the scope", function()
      run(function()
        local s <close> = loop.scope()
        local task = s:go(ipc.sleep, 1000)
        s:go(ipc.sleep, 0.001)
        ipc.sleep(0.001)
        task:cancel()
      end)
    end)

    it("left, it takes no more", function()
      run(function()
        local s
        do
          local here <close> = loop.scope()
          s = here
        end
        local ok, message = pcall(s.go, s, nothing)
        assert.is_false(ok)
        assert.matches("was left", message)
        assert.is_true(s:close())
      end)
    end)
  end)

  describe("queue", function()
    it("keeps the order of values, of who puts and of who gets", function()
      run(function()
        local q = loop.queue(2)
        local got, put = {}, {}
        for i = 1, 5 do
          loop.go(function()
            assert(q:put(i))
            put[#put + 1] = i
          end)
        end
        ipc.sleep(0.001)
        assert.are.same({ 1, 2 }, put)
        assert.are.equal(2, #q)
        for i = 1, 5 do got[i] = q:get() end
        assert.are.same({ 1, 2, 3, 4, 5 }, got)
        local takers = {}
        for i = 1, 3 do takers[i] = loop.go(function() return q:get() end) end
        ipc.sleep(0.001)
        for i = 1, 3 do assert(q:put(i)) end
        for i = 1, 3 do assert.are.equal(i, select(2, takers[i]:wait())) end
      end)
    end)

    it("has timeouts, and is closed: what is in it can still be taken", function()
      run(function()
        local q = loop.queue(1)
        assert.are.same({ nil, "timeout", E.ETIMEDOUT }, { q:get(0) })
        assert.are.same({ nil, "timeout", E.ETIMEDOUT }, { q:get(0.001) })
        assert(q:put(false))
        assert.are.same({ nil, "timeout", E.ETIMEDOUT }, { q:put(2, 0) })
        assert.are.same({ nil, "timeout", E.ETIMEDOUT }, { q:put(2, 0.001) })
        local putter = loop.go(function() return q:put(3) end)
        ipc.sleep(0.001)
        assert.is_true(q:close())
        assert.is_true(q:close())
        assert.are.same({ true, nil, "closed", E.EPIPE }, { putter:wait() })
        assert.are.equal(false, q:get())
        assert.are.same({ nil, "closed", E.EPIPE }, { q:get() })
        assert.are.same({ nil, "closed", E.EPIPE }, { q:put(1) })
      end)
    end)

    it("of size 0 hands over; nil arrives as ipc.null", function()
      run(function()
        local q = loop.queue(0)
        assert.are.same({ nil, "timeout", E.ETIMEDOUT }, { q:put(1, 0) })
        local putter = loop.go(function() return q:put(nil) end)
        ipc.sleep(0.001)
        assert.are.equal(ipc.null, q:get(0))
        assert.are.same({ true, true }, { putter:wait() })
      end)
    end)

    it("values ends with it, and raises what else ends it", function()
      run(function()
        local q <close> = loop.queue()
        loop.go(function()
          for i = 1, 3 do q:put(i) end
          q:close()
        end)
        local list = {}
        for value in q:values() do list[#list + 1] = value end
        assert.are.same({ 1, 2, 3 }, list)
        local empty = loop.queue()
        local ok, problem = pcall(empty:values(0.001))
        assert.is_false(ok)
        assert.are.equal(E.ETIMEDOUT, problem.errno)
      end)
    end)

    it("who gave up is passed over, and leaves nothing", function()
      run(function()
        local q = loop.queue()
        for _ = 1, 1000 do assert.is_nil((q:get(0.00001))) end
        assert.is_nil(q.getters.first)
        local tasks = require "ipc.loop.tasks"
        local stays = loop.go(function() return q:get() end)
        for _ = 1, 100 do
          local a, b = loop.go(q.get, q, 0.00002), loop.go(q.get, q, 0.00001)
          a:wait(LIMIT)
          b:wait(LIMIT)
        end
        assert.are.equal(q.getters.first, q.getters.last)
        assert.is_true(tasks.call(q.getters).called)
        assert.is_nil(tasks.call(q.getters))
        stays:cancel()
        stays:wait(LIMIT)
        local early = loop.go(function() return q:get() end)
        local second = loop.go(function() return q:get() end)
        ipc.sleep(0.001)
        early:cancel()
        ipc.sleep(0.001)
        assert(q:put "x")
        assert.are.same({ true, "x" }, { second:wait() })
      end)
    end)
  end)

  describe("nested coroutines:", function()
    it("wrap lets them wait, and yield values", function()
      run(function()
        local r, w = peer.pipe()
        local trace = {}
        loop.go(function()
          for i = 1, 3 do
            ipc.sleep(0.001)
            trace[#trace + 1] = "meanwhile"
            assert(w:send(tostring(i)))
          end
          w:close()
        end)
        for text, n in loop.wrap(function(a)
          assert.is_nil(a)
          for message in r:messages() do coroutine.yield(message, #message) end
        end) do
          trace[#trace + 1] = text .. n
        end
        assert.are.same({ "meanwhile", "11", "meanwhile", "21", "meanwhile", "31" }, trace)
      end)
    end)

    it("wrap in wrap, errors, and outside of tasks", function()
      run(function()
        local r = peer.pipe()
        local f = loop.wrap(function()
          local g = loop.wrap(function() coroutine.yield((select(2, r:recv(0.001)))) error("inner", 0) end)
          coroutine.yield(g())
          g()
        end)
        assert.are.equal("timeout", f())
        local ok, problem = pcall(f)
        assert.is_false(ok)
        assert.are.equal("inner", problem)
        assert.is_false(pcall(f)) -- dead
      end)
      local r, w = peer.pipe()
      assert(w:send "x")
      assert.are.equal("x", loop.wrap(function() return r:recv() end)())
      assert.are.equal("timeout", loop.wrap(function() return (select(2, r:recv(0.001))) end)())
    end)

    it("one generator is called by one at a time, as coroutine.wrap's", function()
      run(function()
        local r, w = peer.pipe()
        local g = loop.wrap(function() coroutine.yield((r:recv())) end)
        local one = loop.go(g)
        local two = loop.go(g)
        assert.matches("cannot resume non%-suspended", (select(2, two:wait(LIMIT))))
        assert(w:send "x")
        assert.are.same({ true, "x" }, { one:wait(LIMIT) })
      end)
    end)

    it("in a plain one a call blocks all, and says so once", function()
      local text = peer.run([[
        warn "@on"
        ipc.loop.run(function()
          local r, w = ipc.pipe()
          for _ = 1, 3 do
            print(coroutine.wrap(function() return select(2, r:recv(0.001)) end)())
          end
          w:close()
        end)
      ]])
      local _, warnings = text:gsub("blocks the whole loop", "")
      assert.are.equal(1, warnings)
      assert.matches("ipc.loop.wrap", text)
      local _, answers = text:gsub("timeout\t110\n", "")
      assert.are.equal(3, answers)
    end)

    it("what only tasks can wait for raises there", function()
      run(function()
        local q = loop.queue()
        local ok, message = pcall(coroutine.wrap(function() return q:get() end))
        assert.is_false(ok)
        assert.matches("ipc.loop.wrap", message)
        ok = pcall(table.sort, { 1, 2 }, function() q:get() end)
        assert.is_false(ok)
      end)
    end)
  end)

  it("tasks that end with open handles, and those that close what others wait on", function()
    run(function()
      for _ = 1, 20 do
        local a, b = peer.pair("unix")
        local results = {}
        for i = 1, 3 do loop.go(function() results[i] = { a:recv() } end) end
        local sender = loop.go(function()
          local mine <close> = b
          assert(mine:send "last")
        end)
        assert.is_true(sender:wait())
        local closer = loop.go(function()
          ipc.sleep(0.0001)
          a:close()
        end)
        closer:wait()
        ipc.sleep(0)
        coroutine.yield()
        coroutine.yield()
        assert.are.same({ "last" }, results[1])
        for i = 2, 3 do assert.are.same({ nil, "closed", E.EPIPE }, results[i]) end
      end
    end)
  end)

  it("a descriptor's number that comes again is polled anew", function()
    run(function()
      for i = 1, 200 do
        local a, b = assert(ipc.pair(i % 2 == 0 and "unix" or "pipe"))
        local task = loop.go(function() return a:recv(LIMIT) end)
        ipc.sleep(0)
        coroutine.yield()
        if i % 2 == 0 then
          assert(a:send(tostring(i)))
          assert(b:recv(LIMIT))
          assert(b:send(tostring(i)))
        else
          assert(b:send(tostring(i)))
        end
        assert.are.same({ true, tostring(i) }, { task:wait() })
        if i % 3 > 0 then a:close() end
        if i % 3 > 1 then b:close() end
        if i % 10 == 0 then collectgarbage() end
      end
    end)
  end)

  it("foreign objects in a task's poll: cqueues' duck type, not kept", function()
    run(function()
      local r, w = peer.pipe()
      local object = { pollfd = function() return r:pollfd() end, events = "r", timeout = nil }
      assert.are.same({ nil, "timeout", E.ETIMEDOUT }, { ipc.poll({ object }, 0.001) })
      loop.go(function()
        ipc.sleep(0.001)
        w:send "x"
      end)
      assert.is_true(ipc.poll({ object }, LIMIT)[object])
      assert.are.equal("x", r:recv(0))
      local timed = { pollfd = function() end, events = "", timeout = function() return 0.001 end }
      assert.is_true(ipc.poll({ timed }, LIMIT)[timed])
    end)
  end)

  it("what cannot be polled is ready: a file on standard input", function()
    local text, ok = peer.run([[
      ipc.loop.run(function()
        local s = assert(ipc.stdio { unit = "stream" })
        io.stderr:write(s:read "a")
      end)
    ]], { shell = "echo of a file >/tmp/loop-spec-$$; exec </tmp/loop-spec-$$; rm /tmp/loop-spec-$$" })
    assert.are.equal("of a file\n", text)
    assert.is_true(ok)
  end)

  it("an accepted rest leaves whoever waits, its sender gone", function()
    run(function()
      local r, w = peer.pipe()
      local waiter = loop.go(function() return ipc.sleep(0.05) end)
      loop.go(function() assert(w:send(("x"):rep(1 << 20), nil, 0)) end)
      ipc.sleep(0.001)
      local got = loop.go(function() return #r:recv() end)
      assert.are.same({ true, 1 << 20 }, { got:wait() })
      assert.is_true(waiter:wait())
    end)
  end)

  it("many tasks on one channel are served in their order", function()
    run(function()
      local r, w = peer.pipe()
      local got, done = {}, loop.queue()
      for i = 1, 100 do
        loop.go(function()
          got[i] = tonumber(r:recv(LIMIT))
          done:put(i)
        end)
      end
      ipc.sleep(0.001)
      for i = 1, 100 do
        assert(w:send(tostring(i)))
        if i % 7 == 0 then ipc.sleep(0) coroutine.yield() end
      end
      for _ = 1, 100 do done:get() end
      for i = 1, 100 do assert.are.equal(i, got[i]) end
    end)
  end)

  for what, wait in pairs {
    ["a descriptor"] = function(r) return r:recv() end,
    ["one of several"] = function(r, other) return #ipc.poll({ other, r }) == 1 and r:recv() end,
    ["its time"] = function(r) return ipc.sleep(0.001) and r:recv(0) end,
    ["another task"] = function(r, _, values) return values:get() and r:recv() end,
  } do
    it("one that could not be woken from " .. what .. ", without memory for that, is in the next turn", function()
      local tasks = require "ipc.loop.tasks"
      local woken, failed = tasks.Task.woken, false
      local r, w = assert(ipc.pipe())
      local other, writer = assert(ipc.pipe())
      local values = loop.queue()
      local task = loop.go(wait, r, other, values)
      loop.step(0) -- it waits
      assert(w:send "there")
      if what == "another task" then loop.go(function() pcall(values.put, values, 1) values:put(2) end) end
      tasks.Task.woken = function(self)
        if self ~= task then return woken(self) end
        failed, tasks.Task.woken = true, woken
        error("not enough memory", 0)
      end
      local deadline = ipc.now() + LIMIT
      while not failed and ipc.now() < deadline do pcall(loop.step, 0.1) end
      tasks.Task.woken = woken
      assert.is_true(failed)
      assert.are.same({ true, "there" }, { task:wait(LIMIT) })
      for _, channel in ipairs { r, w, other, writer } do channel:close() end
    end)
  end

  it("memory and descriptors do not grow", function()
    local function some()
      run(function()
        local s <close> = loop.scope()
        for _ = 1, 50 do
          local a, b = assert(ipc.pipe())
          s:go(function() local mine <close> = a return mine:recv(LIMIT) end)
          s:go(function() local mine <close> = b return mine:send "x" end)
        end
      end)
    end
    some()
    local before = peer.descriptors()
    collectgarbage()
    local memory = collectgarbage "count"
    for _ = 1, 20 do some() end
    assert.are.equal(before, peer.descriptors())
    collectgarbage()
    assert.is_true(collectgarbage "count" < memory + 200)
  end)

  it("mistakes in the call raise, and blame it", function()
    for _, case in ipairs {
      { loop.go }, { loop.go, 1 }, { loop.run, "x" }, { loop.wrap, {} }, { loop.scope, 1 },
      { loop.scope, { limits = 1 } }, { loop.scope, { limit = 0 } }, { loop.scope, { limit = 0.5 } },
      { loop.queue, -1 }, { loop.queue, 1.5 }, { loop.queue, "1" }, { loop.use, "libev" },
      { loop.step, "1" }, { loop.step, 0 / 0 }, { ipc.main, 1 }, { ipc.serve, "unix:/tmp/x" },
    } do
      local ok, message = pcall(table.unpack(case))
      assert.is_false(ok)
      assert.matches("bad argument #%d to", message)
    end
    run(function()
      local task = loop.go(nothing)
      assert.is_false(pcall(task.wait, task, "1"))
      assert.is_false(pcall(task.wait, task, 0 / 0))
      local q = loop.queue()
      assert.is_false(pcall(q.get, q, {}))
      local ok, message = pcall(q.put, q, 1, "x")
      assert.is_false(ok)
      assert.matches("bad argument #2 to 'put'", message)
    end)
  end)
end)

describe("ipc.main:", function()
  local NOTE = [[
    local note = setmetatable({}, { __close = function(_, e) ipc.sleep(0.001) print("closed", e) end })
  ]]

  local function main(body, options)
    return peer.run(KILL .. NOTE .. body, options)
  end

  it("the exit status is the function's integer, else 0", function()
    for _, case in ipairs { { "return 3", 3 }, { "return", 0 }, { "return 'x'", 0 }, { "return 0", 0 } } do
      local text, _, kind, status = main(("ipc.main(function() %s end) print 'never'"):format(case[1]))
      assert.are.equal("", text)
      assert.are.same({ "exit", case[2] }, { kind, status })
    end
  end)

  it("gets its arguments; tasks end with it", function()
    local text = main [[
      ipc.main(function(...)
        print(...)
        ipc.loop.go(function() local n <close> = note ipc.sleep(1000) end)
        ipc.sleep(0.001)
      end, 1, nil, 3)
    ]]
    assert.are.equal("1\tnil\t3\nclosed\tcancelled\n", text)
  end)

  it("an error is a traceback and status 1; so is a task's that nobody waits for", function()
    for _, body in ipairs {
      "local function culprit() error 'oops' end ipc.main(function() local n <close> = note culprit() end)",
      [[local function culprit() error "oops" end
        ipc.main(function()
          local n <close> = note
          ipc.loop.go(function() culprit() return 1 end)
          ipc.sleep(1000)
        end)]],
    } do
      local text, _, kind, status = main(body)
      assert.are.same({ "exit", 1 }, { kind, status })
      assert.matches("oops", text)
      assert.matches("stack traceback:.*culprit", text)
      assert.matches("closed\t", text)
    end
    local text = main "ipc.main(function() error({}) end)"
    assert.matches("error object is a table", text)
    text = main "ipc.main(function() error(setmetatable({}, { __tostring = function() return 'mine' end })) end)"
    assert.matches("mine", text)
  end)

  for name, number in pairs { TERM = 15, INT = 2, HUP = 1 } do
    it("dies of " .. name .. " after its clean-up, children stopped, names removed", function()
      local path = ("/tmp/loop-main-%d-%s"):format(ipc.pid(), name)
      local text, _, _, status = main(([[
        ipc.main(function()
          local n <close> = note
          local l = assert(ipc.listen "unix:%s.sock")
          local f = assert(ipc.fifo("%s.fifo", "r", { temporary = true }))
          local child = assert(ipc.fork(function()
            ipc.parent:put "there"
            while true do ipc.sleep(1000) end
          end))
          assert(child:get() == "there")
          print(child.pid)
          io.stdout:flush()
          kill "%s"
          ipc.sleep(1000)
        end)
      ]]):format(path, path, name))
      -- timeout(1) runs a shell, which becomes the program.
      assert.are.equal(128 + number, status)
      local pid = tonumber(text:match "^(%d+)\n")
      assert.matches("closed\tcancelled\n", text)
      assert.is_false(peer.lives(pid))
      assert.is_nil(io.open(path .. ".fifo"))
      assert.is_false((os.rename(path .. ".sock", path .. ".sock")) == true)
    end)
  end

  it("stops children of every kind, but those that were detached", function()
    local text = main [[
      ipc.main(function()
        local fork = assert(ipc.fork(function() ipc.sleep(1000) end))
        local exec = assert(ipc.exec { "sleep", "1000" })
        local spawn = assert(ipc.spawn(function() require "ipc".sleep(1000) end))
        local detached = assert(ipc.exec { "sleep", "1000", detach = true, stdout = "null", stderr = "null" })
        print(fork.pid, exec.pid, spawn.pid, detached.pid)
      end)
    ]]
    local fork, exec, spawn, detached = text:match "^(%d+)\t(%d+)\t(%d+)\t(%d+)\n$"
    assert.is_string(detached, text)
    assert.is_false(peer.lives(tonumber(fork)))
    assert.is_false(peer.lives(tonumber(exec)))
    assert.is_false(peer.lives(tonumber(spawn)))
    assert.is_true(peer.lives(tonumber(detached)))
    os.execute("kill -KILL " .. detached)
  end)

  it("a second signal ends it at once", function()
    local _, _, _, status = main [[
      ipc.main(function()
        local slow <close> = setmetatable({}, { __close = function()
          kill "TERM"
          ipc.sleep(1000)
        end })
        kill "TERM"
        ipc.sleep(1000)
      end)
    ]]
    assert.are.equal(143, status)
  end)

  it("one of another name, too, while it cleans up, and where nothing waits", function()
    for body, expected in pairs {
      [ [[pcall(ipc.sleep, 1000) kill "INT" ipc.sleep(1000)]] ] = 130,
      [ [[while true do kill "HUP" end]] ] = 129,
      [ [[ipc.loop.go(function() while true do pcall(ipc.sleep, 1000) end end)]] ] = 143,
    } do
      local _, _, _, status = main(([[
        ipc.main(function()
          ipc.loop.go(function()
            local n <close> = setmetatable({}, { __close = function() kill "TERM" kill "TERM" end })
            ipc.sleep(1000)
          end)
          ipc.sleep(0.001)
          %s
        end)
      ]]):format(body:find "go" and body or 'kill "TERM" ' .. body))
      assert.are.equal(expected, status, body)
    end
  end)

  it("a signal that nobody read before the end is not forgotten", function()
    for _, body in ipairs {
      'kill "TERM" return 3',
      [[ipc.loop.go(function()
          local n <close> = setmetatable({}, { __close = function() kill "TERM" end })
          ipc.sleep(1000)
        end)
        ipc.sleep(0.001)]],
    } do
      local _, _, _, status = main(("ipc.main(function() %s end)"):format(body))
      assert.are.equal(143, status)
    end
  end)

  it("a status that no process can have, and nil with a message, are complained of", function()
    for body, said in pairs {
      ["return 256"] = "status 256", ["return -1"] = "status %-1", ["return nil, 'why'"] = "why",
      ["error(setmetatable({}, { __tostring = function() error 'inner' end }))"] = "error object is a table",
    } do
      local text, _, kind, status = main(("ipc.main(function() %s end)"):format(body))
      assert.are.same({ "exit", 1 }, { kind, status })
      assert.matches(said, text)
    end
  end)

  it("a signal that ipc.signals took is the program's own", function()
    local text, _, _, status = main [[
      ipc.main(function()
        local mine = assert(ipc.signals { "TERM" })
        kill "TERM"
        print(mine:recv(5))
        return 4
      end)
    ]]
    assert.are.equal("TERM\n", text)
    assert.are.equal(4, status)
  end)

  it("a signal that was ignored when it was started stays so", function()
    local text, _, _, status = main([[
      ipc.main(function()
        kill "HUP"
        ipc.sleep(0.01)
        print "goes on"
        return 5
      end)
    ]], { shell = "trap '' HUP" })
    assert.are.equal("goes on\n", text)
    assert.are.equal(5, status)
  end)

  it("in a task, and in a loop that runs, it raises", function()
    local ok, message = loop.run(function() return pcall(ipc.main, nothing) end)
    assert.is_false(ok)
    assert.matches("runs already", message)
  end)
end)
