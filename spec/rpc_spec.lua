-- Calls: ipc.rpc between processes that are ours. Other peers, references and hostile
-- ones have specs of their own.
local ipc = require "ipc"
local peer = require "spec.support.peer"

local E = ipc.errno
local LIMIT = peer.limit

local function path() return peer.address "unix" end

-- Runs in a loop, not for ever.
local function run(fn)
  return ipc.loop.run(function()
    local root = require "ipc.loop.tasks".current()
    ipc.loop.go(function()
      ipc.sleep(LIMIT)
      root:cancel()
    end)
    return fn()
  end)
end

-- A server in a task and a session to it, both closed when the function has returned.
local function with(exports, options, fn, where)
  options = options or {}
  run(function()
    local server <close> = assert(ipc.rpc.serve(where or path(), exports, options.serve))
    local o = { timeout = LIMIT }
    for name, value in pairs(options.connect or {}) do o[name] = value end
    local session <close> = assert(ipc.rpc.connect(server.address, o))
    fn(session, server)
  end)
end

local function pack(...) return table.pack(...) end

local exports = {
  add = function(a, b) return a + b end,
  many = function(...) return ... end,
  math = { mul = function(a, b) return a * b end, deep = { neg = function(a) return -a end } },
  none = function() end,
  bad = function() error("out of luck", 0) end,
  gone = function() error { message = "no such file", errno = E.ENOENT } end,
  data = function() error { message = "full", data = { left = 3 } } end,
  sleep = function(t) ipc.sleep(t) return t end,
  ask = function(name, ...) return ipc.rpc.caller():call(name, ...) end,
  left = function() return ipc.rpc.caller().deadline end,
  trace = function() return ipc.rpc.caller().trace end,
  pid = function() return ipc.pid() end,
  die = function() ipc.sleep(0) os.exit(3) end,
}

describe("ipc.rpc:", function()
  before_each(function() ipc.loop.use(nil) end)
  after_each(function()
    peer.clean()
    ipc.scheduler(nil)
  end)

  it("errno 0 says that the function itself has failed, not that its results cannot travel", function()
    local function deep(n)
      local t = {}
      for _ = 1, n do t = { t } end
      return t
    end
    local results = { file = io.stdout, deep = deep(70), session = function() return ipc.rpc.caller() end }
    local function result(name)
      local value = results[name]
      return type(value) == "function" and value() or value
    end
    local all = {
      bad = function() error("result 1: no", 0) end, now = result,
      later = function(name) ipc.sleep(0.001) return result(name) end,
      nested = function() ipc.rpc.caller().remote.fail() end,
      stream = function() return ipc.rpc.stream(function(emit) emit(1) emit(io.stdout) end) end,
    }
    with(all, { connect = { exports = { fail = function() error("f", 0) end } } }, function(s)
      for _, how in ipairs { "now", "later" } do
        for name, text in pairs { file = "FILE", deep = "nested deeper", session = "session" } do
          local ok, message, errno = s:call(how, name)
          assert.are.same({ nil, E.EINVAL }, { ok, errno }, message)
          assert.is_truthy(message:find("^result 1: ") and message:find(text), message)
        end
        assert.are.same({ nil, "result 1: no", 0 }, { (function(a, b, c) return a, b, c end)(s:call "bad") })
      end
      local step = s.remote.stream()
      assert.are.equal(1, step())
      local ok, problem = pcall(step)
      assert.are.same({ false, E.EINVAL }, { ok, problem.errno }, problem.message)
    end)
    local some = { now = all.now, fn = function() return print end }
    with(some, { connect = { peer = "plain" } }, function(s)
      assert.is_nil(s:call("now", "file"))
      assert.is_nil(s:call "fn")
    end)
  end)

  it("a limit that refuses a message is told with its option, and whose that is", function()
    local function wide(n)
      local t = {}
      for i = 1, n do t[i] = i end
      return t
    end
    local sparse, tables = {}, {}
    for i = 1, 40 do sparse[3 * i], tables[i] = true, {} end
    local limits = { values = 100, tables = 30, keys = 20, depth = 5, params = 9, method = 12 }
    local function try(s, option, whose, ...)
      local ok, message, errno = s:call(...)
      assert.are.same({ nil, E.EINVAL }, { ok, errno }, message)
      assert.is_truthy(message:find(("(%s)"):format(whose:format(option)), 1, true), message)
    end
    local cases = {
      values = { wide(200) }, tables = { tables }, keys = { sparse }, depth = { { { { { { {} } } } } } },
      params = wide(20),
    }
    local other = "the other side's option '%s'"
    with({ f = function() end, many = exports.many, [("m"):rep(20)] = print }, { serve = limits }, function(s)
      for option, list in pairs(cases) do
        try(s, option, other, "f", table.unpack(list))
      end
      try(s, "method", other, ("m"):rep(20))
    end)
    with({ many = function(option) return table.unpack(cases[option]) end }, { connect = limits }, function(s)
      for option in pairs(cases) do
        try(s, option, "the option '%s' here", "many", option)
      end
    end)
    with({ f = print, long = function() return ("x"):rep(2000) end }, { serve = { maxsize = 1000 } }, function(s)
      local _, message, errno = s:call("f", ("x"):rep(2000))
      assert.are.equal(E.EMSGSIZE, errno)
      assert.is_truthy(message:find("maxsize is 1000 (the other side's option)", 1, true), message)
    end)
    with({ long = function() return ("x"):rep(2000) end }, { connect = { maxsize = 1000 } }, function(s)
      local _, message, errno = s:call "long"
      assert.are.equal(E.EMSGSIZE, errno)
      assert.is_truthy(message:find("maxsize is 1000 (the caller's option)", 1, true), message)
    end)
  end)

  it("a notification over a limit is dropped, counted and told, and the session goes on", function()
    local wide, sparse, tables = {}, {}, {}
    for i = 1, 40 do wide[i], sparse[3 * i], tables[i] = i, true, {} end
    local limits = { values = 100, tables = 30, keys = 20, depth = 5, params = 9, method = 12 }
    local cases = {
      values = { "f", wide, wide, wide }, tables = { "f", tables }, keys = { "f", sparse },
      depth = { "f", { { { { { {} } } } } } }, params = { "f", table.unpack(wide, 1, 20) }, method = { ("m"):rep(20) },
    }
    local told, there
    local names = {
      add = exports.add, f = function() error "ran" end, [("m"):rep(20)] = function() error "ran" end,
      who = function() there = ipc.rpc.caller() end,
    }
    local function limited(more)
      for name, value in pairs(limits) do more[name] = value end
      more.on_error = function(problem, s)
        told:put { problem.message, problem.errno, s.remote.add(2, 3) } -- it may wait, and call
      end
      return more
    end
    local function try(from, to)
      local n = 0
      for option, list in pairs(cases) do
        n = n + 1
        assert.is_true(from:notify(table.unpack(list)))
        local message, errno, sum = table.unpack(told:get(LIMIT))
        assert.matches(("^a notification cannot be taken: .* %%(the option '%s' here%%)$"):format(option), message)
        assert.are.same({ E.EINVAL, 5, n }, { errno, sum, to:stats().unknown })
        assert.are.equal(3, from.remote.add(1, 2))
      end
    end
    for _, own in ipairs { true, false } do
      local connect = { exports = names }
      with(names, { serve = own and limited {} or nil, connect = own and connect or limited(connect) }, function(s)
        told = ipc.loop.queue()
        s.remote.who()
        ipc.loop.go(s.serve, s)
        try(own and s or there, own and there or s)
      end)
    end
  end)

  it("a script without tasks drops a notification over a limit, and goes on", function()
    local told = {}
    local session <close> = assert(ipc.rpc.connect({ "cat" }, { -- what is said comes back
      peer = "plain", params = 2, timeout = LIMIT, on_error = function(problem) told[#told + 1] = problem.message end,
      exports = { f = function() error "ran" end, done = function() ipc.rpc.caller():close() end },
    }))
    assert.is_true(session:notify("f", 1, 2, 3))
    assert.is_true(session:notify "done")
    assert.is_true(session:wait(LIMIT))
    assert.are.same({ "a notification cannot be taken: 3 arguments, but the limit is 2 (the option 'params' here)" },
      told)
    assert.are.equal(1, session:stats().unknown)
  end)

  for _, scheme in ipairs { "unix", "tcp", "shm", "fifo", "sysv", "mqueue" } do
    it("calls, answers and errors over " .. scheme, function()
      if scheme == "shm" and not peer.has "shm" then return pending "no shm" end
      if scheme == "mqueue" then
        local probe = ipc.listen(peer.address "mqueue")
        if not probe then return pending "no queue left" end
        probe:close()
      end
      with(exports, {}, function(session, server)
        assert.are.equal(3, session.remote.add(1, 2))
        assert.are.equal(12, session.remote.math.mul(3, 4))
        assert.are.equal(-1, session.remote.math.deep.neg(1))
        assert.are.same(pack(true, 1, nil, "x", nil), pack(session:call("many", 1, nil, "x", nil)))
        assert.are.same(pack(true), pack(session:call "none"))
        assert.are.equal("out of luck", (select(2, session:call "bad")))
        assert.are.equal(1, #server)
      end, peer.address(scheme))
    end)
  end

  it("errors are objects, with what the other side gave", function()
    with(exports, {}, function(session)
      local ok, message, errno, object = session:call "bad"
      assert.is_nil(ok)
      assert.are.equal("out of luck", message)
      assert.are.equal(0, errno)
      assert.are.equal("out of luck", tostring(object))
      assert.matches("rpc_spec", object.traceback)
      message, errno = select(2, session:call "gone")
      assert.are.equal("no such file", message)
      assert.are.equal(E.ENOENT, errno)
      assert.are.same({ left = 3 }, (select(4, session:call "data")).data)
      ok, object = pcall(session.remote.gone)
      assert.is_false(ok)
      assert.are.equal(E.ENOENT, object.errno)
      message, errno = select(2, session:call "nothing")
      assert.matches("^no method: nothing", message)
      assert.are.equal(E.ENOSYS, errno)
    end)
  end)

  it("without a traceback where that was asked for, or as a string", function()
    with(exports, { serve = { traceback = false } }, function(session)
      assert.is_nil((select(4, session:call "bad")).traceback)
    end)
    with(exports, { serve = { errors = "string", traceback = false } }, function(session)
      local ok, message, errno = session:call "bad"
      assert.are.same({ nil, "out of luck", 0 }, { ok, message, errno })
    end)
  end)

  it("only what is exported can be called", function()
    with(exports, {}, function(session)
      for _, name in ipairs { "__index", "_G", "os.execute", "math", "math.", "math.mul.x", "", "add\0", "$nothing" } do
        local ok, _, errno = session:call(name)
        assert.is_nil(ok)
        assert.are.equal(E.ENOSYS, errno, name)
      end
    end)
  end)

  it("exports are functions, in tables or not; anything else raises and is named", function()
    local function refused(names, text)
      local ok, message = pcall(function() local server = ipc.rpc.serve(path(), names) return server end)
      assert.is_false(ok)
      assert.matches(text, message)
      assert.matches("rpc_spec", message)
    end
    refused({ a = { b = 5 } }, "a%.b")
    refused({ [1] = print }, "1")
    refused({ a = setmetatable({}, {}) }, "a")
    refused({ ["$x"] = print }, "%$x")
    local cycle = {}
    cycle.c = cycle
    refused(cycle, "c%.c")
    refused({ ["a.b"] = print, a = { b = print } }, "a%.b")
  end)

  it("options that are not known, or of another kind, raise and blame the call", function()
    for _, o in ipairs {
      { nothing = 1 }, { timeout = "1" }, { timeout = 0 / 0 }, { limit = 0 }, { errors = "x" }, { reconnect = true },
    } do
      local ok, message = pcall(function() local server = ipc.rpc.serve(path(), {}, o) return server end)
      assert.is_false(ok)
      assert.matches("rpc_spec.*bad argument #3 to 'serve'", message)
    end
    local ok, message = pcall(function() local session = ipc.rpc.connect(path(), { workers = 1 }) return session end)
    assert.is_false(ok)
    assert.matches("rpc_spec.*bad argument #2 to 'connect'", message)
    assert.is_false(pcall(ipc.rpc.connect, 5))
    assert.is_false(pcall(ipc.rpc.serve, path(), nil))
    assert.is_false(pcall(ipc.rpc.serve, {}, {}))
  end)

  it("what is not there is an answer", function()
    local session, message, errno = ipc.rpc.connect(path())
    assert.is_nil(session)
    assert.is_string(message)
    assert.are.equal(E.ENOENT, errno)
  end)

  it("notifications are not answered, and their errors are reported", function()
    local seen, problems = {}, {}
    with({ note = function(x) seen[#seen + 1] = x end, bad = function() error("lost", 0) end }, {
      serve = { on_error = function(value, session, trace)
        problems[#problems + 1] = { value, tostring(session), trace }
      end },
    }, function(session)
      assert.is_true(session:notify("note", 1))
      assert.is_true(session:notify "nothing")
      assert.is_true(session:notify "bad")
      assert.is_true(session:notify("note", 2))
      session:call "nothing" -- all before has been run
      assert.are.same({ 1, 2 }, seen)
      assert.are.equal("lost", problems[1][1])
      assert.matches("ipc.rpc.session", problems[1][2])
      assert.matches("lost", problems[1][3])
    end)
  end)

  it("an error that on_error was given is told, too, when on_error raises", function()
    local child <close> = assert(ipc.spawn(function() -- of an own process: each text is told once in one
      local told, fresh = {}, require "ipc"
      io.stderr = { write = function(_, ...) told[#told + 1] = table.concat { ... } end } -- luacheck: ignore 122
      fresh.loop.run(function()
        local a, b = assert(fresh.pair "unix")
        local server <close> = assert(fresh.rpc.serve(b, { note = function() error("given to on_error", 0) end }, {
          on_error = function() error("raised by on_error", 0) end }))
        local session <close> = assert(fresh.rpc.connect(a))
        session:notify "note"
        session:call "no"
        server:close()
      end)
      fresh.parent:put(table.concat(told))
    end))
    local text = assert(child:get(LIMIT))
    assert.matches("^ipc.rpc: given to on_error\nstack traceback:.*ipc.rpc: raised by on_error", text)
  end)

  it("tracebacks end with the function that was called", function()
    local function inner() error("deep", 0) end
    local function fails()
      inner()
      return 1
    end
    local all = { plain = fails, later = function() ipc.sleep(0.001) fails() return 1 end,
      again = function() ipc.rpc.caller().remote.back() return 1 end }
    local told
    local options = {
      connect = { exports = { back = fails } }, serve = { on_error = function(_, _, trace) told = trace end },
    }
    with(all, options, function(session)
      for name in pairs(all) do
        local trace = (select(4, session:call(name))).traceback
        local lines, last = 0, nil
        for line in trace:gmatch "[^\n]+" do lines, last = lines + 1, line end
        assert.matches("rpc_spec", last, 1, false)
        assert.is_true(lines >= 2)
        if name ~= "again" then assert.is_nil(trace:find("/ipc/", 1, true), trace) end
      end
      session:notify "plain"
      session:call "later"
      assert.is_nil(told:find("/ipc/", 1, true), told)
    end)
  end)

  it("what is of the connection before says so", function()
    local names = {
      object = function() return ipc.rpc.object({}, { m = function() return 1 end }) end,
      fn = function() return print end,
      stream = function() return ipc.rpc.stream(function(emit) for i = 1, 100 do emit(i) end end) end,
      leave = function() ipc.rpc.caller():close() end, same = function(...) return ... end,
    }
    with(names, { connect = { reconnect = LIMIT } }, function(session)
      local object, fn, stream = session.remote.object(), session.remote.fn(), session.remote.stream()
      assert.are.equal(1, object:m())
      assert.are.equal(1, stream())
      session:call "leave"
      assert.are.equal(5, session.remote.same(5))
      local function over(kind, ok, problem)
        assert.is_false(ok)
        assert.are.same({ ("the remote %s is of an earlier connection"):format(kind), E.ESTALE },
          { problem.message, problem.errno })
      end
      over("object", pcall(object.m, object))
      over("function", pcall(fn))
      over("stream", pcall(stream))
      over("object", pcall(session.remote.same, object))
      session:close()
      assert.are.same({ nil, "closed", E.EPIPE }, { (function(a, b, c) return a, b, c end)(fn:call()) })
    end)
  end)

  it("calls go on while others wait, and begin in the order sent", function()
    local order = {}
    with({
      slow = function(i) order[#order + 1] = i ipc.sleep(0.05) return i end,
      fast = function(i) order[#order + 1] = i return i end,
    }, {}, function(session)
      local futures = {}
      for i = 1, 20 do futures[i] = session:async(i % 2 == 0 and "slow" or "fast", i) end
      for i = 20, 1, -1 do
        local ok, value = futures[i]:wait()
        assert.is_true(ok)
        assert.are.equal(i, value)
        assert.is_true(futures[i].done)
      end
      for i = 1, 20 do assert.are.equal(i, order[i]) end
    end)
  end)

  it("a call that waits holds no other up, neither of one task nor of several", function()
    with(exports, {}, function(session)
      local long = session:async("sleep", 1000)
      local done = 0
      local tasks = {}
      for i = 1, 10 do
        tasks[i] = ipc.loop.go(function()
          assert(session:call("sleep", 0.01))
          for k = 1, 20 do assert.are.equal(k + i, session.remote.add(k, i)) end
          done = done + 1
        end)
      end
      for i = 1, 10 do assert(tasks[i]:wait()) end
      assert.are.equal(10, done)
      assert.is_false(long.done)
      assert.is_true(long:cancel())
      assert.are.equal("cancelled", (select(2, long:wait())))
    end)
  end)

  it("a future can be waited for with a timeout, and is not lost by it", function()
    with(exports, {}, function(session)
      local future = session:async("sleep", 0.1)
      local ok, message, errno = future:wait(0.01)
      assert.is_nil(ok)
      assert.are.equal("timeout", message)
      assert.are.equal(E.ETIMEDOUT, errno)
      assert.are.same(pack(true, 0.1), pack(future:wait()))
      assert.are.same(pack(true, 0.1), pack(future:wait(0)))
      assert.is_false(future:cancel())
    end)
  end)

  it("a future that nobody waits for is no error, whatever it brings", function()
    with(exports, {}, function(session)
      session:async "bad"
      session:async "nothing"
      session:async("add", {}, {})
      assert.are.equal(2, session.remote.add(1, 1))
    end)
  end)

  it("either side calls, in the middle of calls too", function()
    with(exports, { connect = { exports = {
      twice = function(n) return 2 * n end,
      again = function(n) return ipc.rpc.caller().remote.add(n, 1) end,
    } } }, function(session)
      assert.are.same(pack(true, true, 14), pack(session:call("ask", "twice", 7)))
      assert.are.same(pack(true, true, 8), pack(session:call("ask", "again", 7)))
      local ok, got, message = session:call("ask", "nothing")
      assert.is_true(ok)
      assert.is_nil(got)
      assert.matches("no method", message)
      assert.is_nil(ipc.rpc.caller())
    end)
  end)

  it("a handler that waits does not hold up the call that it came in the middle of", function()
    local entered = 0
    with({ go = function()
      ipc.rpc.caller():notify "slow"
      return "at once"
    end }, { connect = { exports = {
      slow = function() entered = entered + 1 ipc.sleep(1000) end,
    } } }, function(session)
      assert.are.equal("at once", session.remote.go())
      assert.are.equal("at once", session.remote.go())
      assert.is_true(entered >= 1)
    end)
  end)

  it("times: the call's, and what is left of it for those that it causes", function()
    with(exports, { connect = { exports = exports } }, function(session)
      local short = session:with { timeout = 0.05 }
      local ok, message, errno = short:call("sleep", 1000)
      assert.is_nil(ok)
      assert.are.equal("timeout", message)
      assert.are.equal(E.ETIMEDOUT, errno)
      local left = session:with { timeout = 5 }.remote.left()
      assert.is_true(left <= 5 and left > 1, left)
      local inner = select(2, session:with { timeout = 5 }.remote.ask "left")
      assert.is_true(inner <= 5 and inner > 1, inner)
      assert.is_true(session.remote.left() > 5)
      assert.is_false(pcall(session.with, session, { timeout = "x" }))
      assert.is_false(pcall(session.with, session, { nothing = 1 }))
    end)
  end)

  it("the server's own time ends calls, too", function()
    with(exports, { serve = { timeout = 0.05 } }, function(session)
      local ok, message, errno = session:call("sleep", 1000)
      assert.is_nil(ok)
      assert.are.equal("timeout", message)
      assert.are.equal(E.ETIMEDOUT, errno)
      assert.are.equal(3, session.remote.add(1, 2))
    end)
  end)

  it("a trace travels with the calls and those that they cause", function()
    with(exports, { connect = { exports = exports } }, function(session)
      local traced = session:with { trace = "t-1" }
      assert.are.equal("t-1", traced.remote.trace())
      assert.are.same(pack(true, "t-1"), pack(traced.remote.ask "trace"))
      assert.is_nil(session.remote.trace())
    end)
  end)

  it("cancelling reaches the calls that a call has made", function()
    local begun, ended = 0, {}
    local function wait(name)
      return function()
        begun = begun + 1
        local guard <close> = setmetatable({}, { __close = function() ended[#ended + 1] = name end })
        if name == "outer" then
          ipc.rpc.caller():call "inner"
        end
        ipc.sleep(1000)
        return guard
      end
    end
    with({ outer = wait "outer", ready = function() return #ended end }, {
      connect = { exports = { inner = wait "inner" } },
    }, function(session)
      local future = session:async "outer"
      while begun < 2 do session.remote.ready() end
      assert.is_true(future:cancel())
      local ok, message, errno = future:wait()
      assert.is_nil(ok)
      assert.are.equal("cancelled", message)
      assert.are.equal(E.ECANCELED, errno)
      while #ended < 2 do
        session.remote.ready()
        ipc.sleep(0.001)
      end
      table.sort(ended)
      assert.are.same({ "inner", "outer" }, ended)
    end)
  end)

  it("a task that is cancelled in the middle of a call cancels that, and the session goes on", function()
    local begun, cancelled = false, false
    with({ wait = function()
      begun = true
      local ok = pcall(ipc.sleep, 1000)
      cancelled = not ok and ipc.rpc.caller():cancelled()
    end, add = exports.add }, {}, function(session)
      local task = ipc.loop.go(function() session:call "wait" end)
      while not begun do ipc.sleep(0.001) end
      task:cancel()
      assert.are.equal("cancelled", (select(2, task:wait())))
      while not cancelled do
        assert.are.equal(3, session.remote.add(1, 2))
      end
    end)
  end)

  it("cancelled elsewhere is an error of the call, not the end of the task that made it", function()
    with({ stop = function() error { message = "cancelled", errno = E.ECANCELED } end }, {}, function(session)
      local task = ipc.loop.go(function() return pcall(session.remote.stop) end)
      local ok, inner, problem = task:wait()
      assert.is_true(ok)
      assert.is_false(inner)
      assert.are.equal(E.ECANCELED, problem.errno)
      task = ipc.loop.go(session.remote.stop)
      assert.is_nil((task:wait()))
      assert.is_false(task.cancelled)
    end)
  end)

  it("a batch is sent at once, by leaving it too", function()
    with(exports, {}, function(session)
      local futures = {}
      do
        local batch <close> = session:batch()
        for i = 1, 10 do futures[i] = batch:async("add", i, i) end
        assert.is_true(batch:notify("add", 1, 1))
        assert.are.equal(11, #batch)
      end
      for i = 1, 10 do assert.are.same(pack(true, 2 * i), pack(futures[i]:wait())) end
      local batch = session:batch()
      local future = batch:async("add", 1, 1)
      assert.is_true(batch:send())
      assert.are.same(pack(true, 2), pack(future:wait()))
    end)
  end)

  it("arguments that cannot travel raise, and nothing is sent", function()
    with(exports, {}, function(session)
      local ok, message = pcall(session.call, session, "add", coroutine.create(print))
      assert.is_false(ok)
      assert.matches("thread", message)
      assert.is_false(pcall(session.call, session))
      assert.is_false(pcall(session.call, session, 5))
      assert.is_false(pcall(session.call, nil, "add"))
      assert.is_false(pcall(session.async, {}, "add"))
      assert.is_false(pcall(session.notify, session, nil))
      assert.are.equal(0, session:stats().calls)
      assert.are.equal(3, session.remote.add(1, 2))
    end)
  end)

  it("results that cannot travel are an error of that call", function()
    with({ thread = function() return coroutine.create(print) end, add = exports.add }, {}, function(session)
      local ok, message = session:call "thread"
      assert.is_nil(ok)
      assert.matches("thread", message)
      assert.are.equal(3, session.remote.add(1, 2))
    end)
  end)

  it("two that send a lot to each other at once both go on, in tasks", function()
    local big = ("x"):rep(1 << 20)
    local size = { size = function(s) return #s end }
    run(function()
      local a, b = ipc.pair("unix", { unit = "stream" })
      local one <close> = ipc.rpc.connect(a, { exports = size, timeout = LIMIT })
      local two <close> = ipc.rpc.connect(b, { exports = size, timeout = LIMIT })
      local tasks = {}
      for _ = 1, 5 do
        for _, session in ipairs { one, two } do
          tasks[#tasks + 1] = ipc.loop.go(function() return session.remote.size(big) end)
        end
      end
      for _, task in ipairs(tasks) do assert.are.same(pack(true, 1 << 20), pack(task:wait())) end
    end)
  end)

  it("and outside of tasks", function()
    local big = ("x"):rep(1 << 20)
    local size = { size = function(s) return #s end }
    local a, b = ipc.pair("unix", { unit = "stream" })
    local function talk(channel)
      local session <close> = ipc.rpc.connect(channel, { exports = size, timeout = LIMIT })
      local futures = {}
      for i = 1, 20 do futures[i] = session:async("size", big) end
      for i = 1, 20 do
        local ok, n = futures[i]:wait()
        if not ok or n ~= 1 << 20 then return tostring(n) end
      end
      session:call("done")
      session:serve(0.05)
      return "both"
    end
    local child <close> = assert(ipc.fork(talk, b))
    assert.are.equal("both", talk(a))
    assert.are.same(pack(true, "both"), pack(child:wait(LIMIT)))
  end)

  it("a call whose time is over while its answer waits to be sent ends no session", function()
    run(function()
      local a, b = ipc.pair "unix"
      local begun, over = ipc.loop.queue(), ipc.loop.queue()
      local session <close> = ipc.rpc.serve(b, {
        fill = function() return ("x"):rep(1 << 20) end,
        waits = function() begun:get() end,
        late = function()
          begun:put(true)
          pcall(ipc.sleep, LIMIT)
          over:put(true)
        end,
      }, { timeout = 0.02 })
      for id, name in ipairs { "fill", "waits", "late" } do assert(a:put { 0, id, name, {} }) end
      assert.is_true(over:get(LIMIT))
      local answered = {}
      for _ = 1, 3 do answered[#answered + 1] = assert(a:get(LIMIT))[2] end
      table.sort(answered)
      assert.are.same({ 1, 2, 3 }, answered)
      assert(a:put { 0, 4, "fill", {} })
      assert.are.equal(1 << 20, #a:get(LIMIT)[4])
      a:close()
      session:wait(LIMIT)
    end)
  end)

  it("who closes a session tells the other side, however full the channel is", function()
    if not peer.has "mqueue" then return pending "no POSIX queues" end
    run(function()
      local a, b = assert(ipc.pair("mqueue", { maxmsg = 1 }))
      local notes = 0
      local function note() notes = notes + 1 end
      local one <close> = ipc.rpc.connect(a, { timeout = LIMIT })
      local two <close> = ipc.rpc.connect(b, { timeout = LIMIT, exports = { note = note } })
      local first = ipc.loop.go(one.call, one, "note")
      repeat two:serve(0.001) until notes > 0
      assert.is_true(first:wait(LIMIT))
      assert(one:notify "note")
      local served = ipc.loop.go(two.serve, two, LIMIT)
      one:close()
      assert.are.same({ true, true }, { served:wait(LIMIT) })
      assert.are.equal(2, notes)
    end)
  end)

  it("and so does who closes a server", function()
    if not peer.has "mqueue" then return pending "no POSIX queues" end
    run(function()
      local theirs
      local server <close> = assert(ipc.rpc.serve(peer.address "mqueue", exports, {
        maxmsg = 1, on_open = function(session) theirs = session end,
      }))
      local told = false
      local session <close> = assert(ipc.rpc.connect(server.address, {
        timeout = LIMIT, maxmsg = 1, exports = { note = function() told = true end },
      }))
      session.remote.none()
      assert(theirs:notify "note")
      local served = ipc.loop.go(session.serve, session, LIMIT)
      server:close()
      assert.are.same({ true, true }, { served:wait(LIMIT) })
      assert.is_true(told)
    end)
  end)

  it("a server of a plain script that uses nothing else of the loop is closed, with a client", function()
    local text = peer.run([[
      local address = os.getenv "ADDRESS"
      local server = assert(ipc.rpc.serve(address, { add = function(a, b) return a + b end }))
      local child = ipc.fork(function()
        local session <close> = assert(ipc.rpc.connect(address, { retry = 10 }))
        assert(session.remote.add(1, 2) == 3)
        ipc.parent:send "called"
        return session:wait(10)
      end)
      server:wait(0.01)
      while not child:recv(0) do server:wait(0.01) end
      print(server:close())
      print(child:wait(10))
    ]], { env = { ADDRESS = path() } })
    assert.are.equal("true\ntrue\ttrue\n", text)
  end)

  it("functions that close their server do not wait for more than the others that run", function()
    run(function()
      local server
      local quitting = 0
      local gate, key = ipc.pipe()
      server = assert(ipc.rpc.serve(path(), {
        waits = function() return gate:recv(LIMIT) end,
        quit = function()
          quitting = quitting + 1
          while quitting < 2 do ipc.sleep(0.001) end
          return server:close()
        end,
      }, { grace = 3 * LIMIT }))
      local sessions, futures = {}, {}
      for i = 1, 2 do
        sessions[i] = assert(ipc.rpc.connect(server.address, { timeout = LIMIT }))
        futures[i] = sessions[i]:async "waits"
        futures[2 + i] = sessions[i]:async "quit"
      end
      while server.servers[1].over == false do ipc.sleep(0.001) end
      for _ = 1, 2 do key:send "go on" end
      for i = 1, 4 do assert.are.same({ true, i > 2 or "go on" }, { futures[i]:wait() }) end
      key:close()
      gate:close()
    end)
  end)

  it("who is given up while it closes a server leaves none that is half closed", function()
    run(function()
      local server
      local waiting = false
      server = assert(ipc.rpc.serve(path(), {
        waits = function()
          waiting = true
          ipc.sleep(LIMIT)
        end,
        quit = function() return server:close() end,
      }, { grace = LIMIT, on_error = function() end }))
      local one <const> = assert(ipc.rpc.connect(server.address, { timeout = LIMIT }))
      local other <const> = assert(ipc.rpc.connect(server.address, { timeout = LIMIT }))
      local waits = other:async "waits"
      while not waiting do ipc.sleep(0.001) end
      local quit = one:async "quit"
      while server.servers[1].over == false do ipc.sleep(0.001) end
      quit:cancel()
      waits:cancel()
      assert.is_true(server:wait(LIMIT))
      assert.is_true(one:wait(LIMIT))
    end)
  end)

  it("a peer that never reads is left, not waited for", function()
    local why
    run(function()
      local a, b = ipc.pair("unix", { unit = "stream" })
      local session = ipc.rpc.serve(a, { big = function() return ("x"):rep(1 << 18) end },
        { stall = 0.1, unsent = 1 << 18, on_close = function(_, message, errno) why = { message, errno } end })
      local wire = require "ipc.core".rpc.wire(b, {})
      for id = 1, 20 do wire:request(id, "big") end
      assert.is_true(wire:flush())
      assert.is_nil((session:wait(LIMIT)))
      while not why do ipc.sleep(0.001) end
      assert.matches("read nothing", why[1])
      assert.are.equal(E.ETIMEDOUT, why[2])
      b:close()
    end)
  end)

  it("who says nothing, or stops in the middle, is left", function()
    run(function()
      local why
      local function serve(limits)
        limits.on_close = function(_, message) why = message end
        return assert(ipc.rpc.serve(path(), exports, limits))
      end
      local function left(raw, text)
        assert.are.equal("closed", (select(2, raw:recv(LIMIT))))
        while not why do ipc.sleep(0.001) end
        assert.matches(text, why)
        why = nil
      end
      do
        local server <close> = serve { stall = 0.05 }
        local half = peer.keep(ipc.connect(server.address, { unit = "stream" }))
        half:send(ipc.pack { 2, "x", ipc.array {} })
        half:send "\x94\x00"
        left(half, "stalled")
      end
      local server <close> = serve { first = 0.05 }
      left(peer.keep(ipc.connect(server.address, { unit = "stream" })), "no message")
      local quiet
      repeat -- until its first message comes in time
        quiet = peer.keep(assert(ipc.rpc.connect(server.address, { timeout = LIMIT })))
      until quiet:call("add", 1, 2)
      ipc.sleep(0.2)
      assert.are.equal(3, quiet.remote.add(1, 2)) -- one that has said something may be silent
      quiet:close()
    end)
  end)

  it("calls in flight are counted, on both sides", function()
    with(exports, { connect = { calls = 3 } }, function(session)
      local futures = {}
      for i = 1, 3 do futures[i] = session:async("sleep", 1000) end
      local ok, message, errno = session:call("add", 1, 2)
      assert.is_nil(ok)
      assert.matches("more than 3 calls", message)
      assert.are.equal(E.E2BIG, errno)
      for i = 1, 3 do futures[i]:cancel() end
      assert.are.equal(3, session.remote.add(1, 2))
    end)
    with(exports, { serve = { calls = 2 } }, function(session)
      for _ = 1, 2 do session:async("sleep", 1000) end
      local ok, message, errno = session:call("add", 1, 2)
      assert.is_nil(ok)
      assert.matches("more than 2 calls", message)
      assert.are.equal(E.E2BIG, errno)
    end)
  end)

  it("outside of tasks calls within calls are bounded", function()
    local server <close> = assert(ipc.rpc.serve(path(), {
      down = function(n) return ipc.rpc.caller().remote.up(n) end,
    }, { process = true }))
    local session
    session = assert(ipc.rpc.connect(server.address, { nested = 4, timeout = LIMIT, exports = {
      up = function(n) return session.remote.down(n + 1) end,
    } }))
    local ok, message, errno = session:call("down", 1)
    assert.is_nil(ok)
    assert.matches("more than 4 calls within calls", message)
    assert.are.equal(E.E2BIG, errno)
    session:close()
  end)

  it("closing answers what waits, on both sides, and runs on_close once", function()
    local opened, closed = {}, {}
    local function note(list)
      return function(session, message, errno) list[#list + 1] = { session, message, errno } end
    end
    local begun, ended = 0, 0
    with({ wait = function()
      begun = begun + 1
      if not pcall(ipc.sleep, 1000) then ended = ended + 1 end
    end }, { serve = { on_open = note(opened), on_close = note(closed) },
      connect = { on_open = note(opened), on_close = note(closed) } }, function(session, server)
      local future = session:async "wait"
      local task = ipc.loop.go(function() return session:call "wait" end)
      while begun < 2 do ipc.sleep(0.001) end
      assert.are.equal(2, #opened)
      session:close()
      session:close()
      for _, waits in ipairs { future, task } do
        local results = pack(waits:wait())
        local at = waits == task and 1 or 0
        assert.is_nil(results[1 + at])
        assert.are.equal("closed", results[2 + at])
        assert.are.equal(E.EPIPE, results[3 + at])
      end
      assert.are.equal(E.EPIPE, (select(3, session:call "wait")))
      while #server > 0 or ended < 2 do ipc.sleep(0.001) end
      assert.are.equal(2, #closed)
    end)
  end)

  it("the death of the other side answers all calls at once", function()
    local list = { path(), "tcp:127.0.0.1:0" }
    if peer.has "shm" then list[3] = ("shm:/rpc-spec-die-%d"):format(ipc.pid()) end
    for _, where in ipairs(list) do
      local server <close> = assert(ipc.rpc.serve(where, exports, { process = true }))
      local session <close> = assert(ipc.rpc.connect(server.address, { timeout = LIMIT }))
      local futures = {}
      for i = 1, 5 do futures[i] = session:async("sleep", 1000) end
      local ok, _, errno = session:call "die"
      assert.is_nil(ok)
      assert.is_true(errno == E.EPIPE or errno == E.EOWNERDEAD or errno == E.ECONNRESET, errno)
      for i = 1, 5 do assert.is_nil((futures[i]:wait(0))) end
      server:close()
      session:close()
      assert.is_nil((ipc.connect(server.address, { timeout = 1 }))) -- and no name is left of it
      local file = where:match "^unix:(.*)"
      assert.is_nil(file and io.open(file))
    end
  end)

  it("a session's close is heard at the other end of a pair", function()
    for _, kind in ipairs { "unix", "shm", "sysv", "mqueue" } do
      local here, there
      if peer.has(kind) then here, there = assert(ipc.pair(kind)) end
      if here then
        local child = peer.fork(function()
          ipc.main(function() assert(ipc.rpc.serve(there, exports)):wait(LIMIT) end)
        end)
        local session <close> = assert(ipc.rpc.connect(here, { timeout = LIMIT }))
        assert.are.equal(3, session.remote.add(1, 2))
        session:close()
        assert.is_true((child:wait(LIMIT)))
      end
    end
  end)

  it("a listener that was served in another process is closed with the server", function()
    for _, own in ipairs { {}, { process = true }, { workers = 1 } } do
      local listener = assert(ipc.listen(path(), { unit = "stream" }))
      local where = listener:address()
      local server <close> = assert(ipc.rpc.serve(listener, exports, own))
      local session <close> = assert(ipc.rpc.connect(server.address, { timeout = LIMIT }))
      assert.are.equal(3, run(function() return session.remote.add(1, 2) end))
      session:close()
      server:close()
      assert.matches("closed", tostring(listener))
      assert.is_nil((ipc.connect(where)))
    end
  end)

  it("a server's close lets calls come to their end, and refuses new ones", function()
    run(function()
      local server = assert(ipc.rpc.serve(path(), exports))
      local session <close> = assert(ipc.rpc.connect(server.address, { timeout = LIMIT }))
      local future = session:async("sleep", 0.1)
      session.remote.add(1, 1)
      local closing = ipc.loop.go(server.close, server)
      assert.are.same(pack(true, 0.1), pack(future:wait()))
      assert.is_true((closing:wait()))
      assert.is_nil((session:call("add", 1, 1)))
      assert.is_true(server:wait(LIMIT))
    end)
  end)

  it("stop ends them now", function()
    run(function()
      local server = assert(ipc.rpc.serve(path(), exports))
      local session <close> = assert(ipc.rpc.connect(server.address, { timeout = LIMIT }))
      local future = session:async("sleep", 1000)
      session.remote.add(1, 1)
      server:stop()
      assert.are.equal("closed", (select(2, future:wait())))
      assert.are.equal(0, #server)
    end)
  end)

  it("a server's close gives the answers of what has run its grace, too", function()
    for _, where in ipairs { path(), peer.has "shm:" and peer.address "shm" .. "?capacity=4096" or nil } do
      local size = where:find "^unix" and 1000000 or 3000
      local child = peer.fork(function()
        ipc.loop.run(function()
          local ran = 0
          local server = assert(ipc.rpc.serve(where, {
            text = function() ran = ran + 1 return ("x"):rep(size) end, ran = function() return ran end,
          }, { grace = LIMIT }))
          ipc.parent:put "here"
          local watch <close> = assert(ipc.rpc.connect(server.address, { timeout = LIMIT }))
          repeat until watch.remote.ran() == 10
          ipc.loop.go(server.close, server)
          ipc.sleep(0) -- it has begun
          ipc.parent:put "closes"
          server:wait()
        end)
      end)
      assert.are.equal("here", child:get())
      local session <close> = assert(ipc.rpc.connect(where, { timeout = LIMIT }))
      local futures = {}
      for i = 1, 10 do futures[i] = session:async "text" end
      assert.are.equal("closes", child:get())
      for i = 1, 10 do
        local ok, text = futures[i]:wait()
        assert.is_true(ok, tostring(text))
        assert.are.equal(size, #text)
      end
      assert.is_true((child:wait()))
    end
  end)

  it("neither stop nor close lingers for clients that do not read", function()
    for how, grace in pairs { stop = LIMIT, close = 0.01 } do
      run(function()
        local ran = 0
        local server = assert(ipc.rpc.serve(path(), {
          text = function() ran = ran + 1 return ("x"):rep(1000000) end,
        }, { grace = grace, linger = LIMIT }))
        for n = 1, 3 do
          assert(peer.keep(assert(ipc.connect(server.address .. "?unit=stream"))):put { 0, 1, "text", {} })
          while ran < n do ipc.sleep(0.001) end
        end
        assert.is_true(server[how](server))
        assert.are.equal(0, #server)
      end)
    end
  end)

  it("a call that ends its own server is answered", function()
    run(function()
      local server
      server = assert(ipc.rpc.serve(path(), {
        shutdown = function()
          server:close()
          return "done"
        end, sleep = exports.sleep,
      }))
      local session <close> = assert(ipc.rpc.connect(server.address, { timeout = LIMIT }))
      local other <close> = assert(ipc.rpc.connect(server.address, { timeout = LIMIT }))
      local slow = other:async("sleep", 0.05)
      other:call "nothing"
      assert.are.equal("done", session.remote.shutdown())
      assert.are.same(pack(true, 0.05), pack(slow:wait()))
      assert.is_true(server:wait(LIMIT))
      assert.are.equal("closed", (select(2, session:call "sleep")))
    end)
  end)

  it("calls that end the same server wait for the others, not for each other", function()
    run(function()
      local server, n
      server = assert(ipc.rpc.serve(path(), {
        shutdown = function()
          n = n + 1
          while n < 3 do ipc.sleep(0.001) end
          server:close()
          return "done"
        end, sleep = exports.sleep,
      }, { grace = LIMIT + 1 }))
      n = 0
      local sessions, futures = {}, {}
      for i = 1, 4 do sessions[i] = assert(ipc.rpc.connect(server.address, { timeout = LIMIT })) end
      local slow = sessions[4]:async("sleep", 0.05)
      sessions[4]:call "nothing"
      for i = 1, 3 do futures[i] = sessions[i]:async "shutdown" end
      for i = 1, 3 do assert.are.same(pack(true, "done"), pack(futures[i]:wait())) end
      assert.are.same(pack(true, 0.05), pack(slow:wait()))
      assert.is_true(server:wait(LIMIT))
      for i = 1, 4 do sessions[i]:close() end
    end)
  end)

  it("one server for several addresses and listeners", function()
    run(function()
      local listener = assert(ipc.listen(path(), { unit = "stream" }))
      local server <close> = assert(ipc.rpc.serve({ path(), "tcp:127.0.0.1:0", listener }, exports))
      assert.are.equal(3, #server.addresses)
      for _, address in ipairs(server.addresses) do
        local session <close> = assert(ipc.rpc.connect(address, { timeout = LIMIT }))
        assert.are.equal(3, session.remote.add(1, 2))
      end
    end)
  end)

  it("a channel serves as well, and a process", function()
    local child <close> = assert(ipc.spawn(function()
      return require "ipc".rpc.serve(ipc.parent, { add = function(a, b) return a + b end,
        nap = function(t) require "ipc".sleep(t) return t end }):wait()
    end))
    local session = assert(ipc.rpc.connect(child, { timeout = LIMIT }))
    local slow = session:async("nap", 1000)
    assert.are.equal(3, session.remote.add(1, 2))
    slow:cancel()
    session:close()
    assert.are.same(pack(true, true), pack(child:wait(LIMIT)))
  end)

  it("a program is spoken to on its standard input and output, and ends with the session", function()
    local script = [[
      local ipc = require "ipc"
      ipc.rpc.serve(ipc.stdio(), { add = function(a, b) return a + b end }):wait()
    ]]
    local session = assert(ipc.rpc.connect({ "lua5.4", "-e", script }, { timeout = LIMIT }))
    assert.are.equal(3, session.remote.add(1, 2))
    session:close()
    local none, _, errno = ipc.rpc.connect { "/no/such/program" }
    assert.is_nil(none)
    assert.are.equal(E.ENOENT, errno)
  end)

  it("a hook or a finaliser in the middle of a read is told so, which goes on", function()
    local server <close> = assert(ipc.rpc.serve(path(), exports, { process = true }))
    local session <close> = assert(ipc.rpc.connect(server.address, { timeout = LIMIT }))
    assert.are.equal(3, session.remote.add(1, 2))
    local function call() return session:call("add", 3, 4) end
    local function wait() return session:async("add", 3, 4):wait() end
    local function serve() return session:serve() end
    local function hooked(fn) fn() end
    local function finalised(fn)
      setmetatable({}, { __gc = fn })
      collectgarbage()
    end
    for _, way in ipairs { hooked, finalised } do
      for i, fn in ipairs { call, wait, serve } do
        local told
        local function inner() told = told or pack(pcall(fn)) end
        local hook, mask, each = debug.gethook()
        debug.sethook(function()
          if session.core.reader then
            debug.sethook()
            way(inner)
          end
        end, "", 1)
        local ok, sum = session:call("sleep", 0.01)
        debug.sethook(hook, mask, each)
        assert.are.same({ true, 0.01 }, { ok, sum })
        if i == 1 then
          assert.are.same({ true, E.EDEADLK }, { told[1], told[4] })
        else
          assert.are.same({ false, E.EDEADLK }, { told[1], told[2].errno })
        end
        assert.are.equal(3, session.remote.add(1, 2))
      end
    end
  end)

  it("a hook or a finaliser anywhere in a read in a task is told so, or answered, and nobody waits in vain", function()
    local server <close> = assert(ipc.rpc.serve(path(), exports, { process = true }))
    local session <close> = assert(ipc.rpc.connect(server.address, { timeout = LIMIT }))
    assert.are.equal(3, session.remote.add(1, 2))
    local inside = {
      function() return session:call("sleep", 0.001) end,
      function() return session:async("sleep", 0.001):wait() end,
      function() return session:serve(0.001) or true end,
    }
    local outside = {
      function() return session:call("add", 1, 2) end,
      function() return session:async("add", 1, 2):wait() end,
      function()
        local future = session:async("add", 1, 2)
        session:serve(0.001)
        return future:wait()
      end,
    }
    local told = 0
    -- Lets `way` happen at that instruction of the read: whether it has.
    local function at(count, way, outer)
      local fired, hook, mask, each = false, debug.gethook()
      debug.sethook(function()
        if session.core.reader then
          count = count - 1
          if count == 0 then
            debug.sethook()
            fired = true
            way()
          end
        end
      end, "", 1)
      local results = pack(outer())
      debug.sethook(hook, mask, each)
      assert.are.same(pack(true, 3), results)
      return fired
    end
    ipc.loop.run(function()
      for _, fn in ipairs(inside) do
        local function inner()
          local good, ok, _, errno = pcall(fn)
          errno = not good and ok.errno or errno
          told = told + (errno == E.EDEADLK and 1 or 0)
          assert(good and ok or errno == E.EDEADLK)
        end
        local function finalised()
          setmetatable({}, { __gc = inner })
          collectgarbage()
        end
        for _, outer in ipairs(outside) do
          local count = 1
          while at(count, inner, outer) do
            count = count + 1
          end
          assert.is_true(count > 20)
        end
        for count = 1, 40, 3 do
          at(count, finalised, outside[2])
        end
      end
      ipc.sleep(0.001) -- the loop goes on
    end)
    assert.is_true(told > 0)
    assert.are.equal(3, session.remote.add(1, 2))
    assert.are.equal(0, session:stats().calls)
  end)

  local waits = {
    ["in a call"] = function(session) session:call("sleep", LIMIT) end,
    ["in a call with a deadline of its own"] = function(session)
      session:with { timeout = LIMIT - 1 }:call("sleep", LIMIT)
    end,
    ["for a future"] = function(session) session:async("sleep", 0.1):wait() end,
    ["for calls to serve"] = function(session) session:serve() end,
  }
  for name, wait in pairs(waits) do
    it("a coroutine that a scheduler closes while it waits " .. name .. " takes nothing with it", function()
      local server <close> = assert(ipc.rpc.serve(path(), exports, { process = true }))
      for _, greeted in ipairs { true, false } do
        local session <close> = assert(ipc.rpc.connect(server.address, { timeout = LIMIT }))
        if greeted then assert.are.equal(3, session.remote.add(1, 2)) end
        local guest = coroutine.create(wait)
        ipc.scheduler {
          is_task = function(thread) return thread == guest end, wait = coroutine.yield, cancel = function() end,
        }
        assert(coroutine.resume(guest, session))
        assert.are.equal("suspended", coroutine.status(guest))
        assert.is_true(coroutine.close(guest))
        ipc.scheduler(nil)
        assert.are.same(pack(true, 3), pack(session:call("add", 1, 2)))
        assert.are.equal(name == "for a future" and greeted and 1 or 0, session:stats().calls)
      end
    end)

    it("one of ipc.loop.wrap that is closed while it waits " .. name .. " lets who stands by go on", function()
      local server <close> = assert(ipc.rpc.serve(path(), exports, { process = true }))
      run(function()
        local session <close> = assert(ipc.rpc.connect(server.address, { timeout = LIMIT }))
        assert.are.equal(3, session.remote.add(1, 2))
        for _, first in ipairs { true, false } do -- the one that reads, or one that stands by
          local inner
          local function begin()
            local scope = ipc.loop.go(function()
              pcall(ipc.loop.wrap(function()
                inner = coroutine.running()
                wait(session)
              end))
            end)
            repeat ipc.sleep(0.001) until inner
            return scope
          end
          local task = first and begin()
          local other = ipc.loop.go(function() return session:call("sleep", 0.05) end)
          ipc.sleep(0.001)
          task = task or begin()
          ipc.sleep(0.001)
          assert.is_true(coroutine.close(inner))
          assert.are.same(pack(true, true, 0.05), pack(other:wait(LIMIT)))
          assert.are.same(pack(true, 3), pack(session:call("add", 1, 2)))
          task:cancel()
        end
      end)
    end)
  end

  it("a coroutine that is closed while it sends leaves the rest to others", function()
    local here, there = ipc.pair "unix?unit=stream"
    local gate, moved = ipc.pair "unix"
    local child = peer.fork(function(channel, held)
      assert(ipc.rpc.connect(channel, { exports = {
        add = exports.add, size = function(s) return #s end, block = function() held:recv(LIMIT) return "over" end,
      } })):serve(LIMIT)
    end, there, moved)
    run(function()
      local session <close> = assert(ipc.rpc.connect(here, { timeout = LIMIT }))
      assert.are.equal(3, session.remote.add(1, 2))
      local blocked = ipc.loop.go(function() return session:call "block" end)
      ipc.sleep(0.001)
      local inner
      local task = ipc.loop.go(function()
        pcall(ipc.loop.wrap(function()
          inner = coroutine.running()
          session:notify("size", ("x"):rep(4000000)) -- the channel keeps one
          session:call("size", "x")
        end))
      end)
      repeat ipc.sleep(0.001) until session.core.draining > 0
      assert.is_true(coroutine.close(inner))
      gate:send "go"
      assert.are.same(pack(true, true, "over"), pack(blocked:wait(LIMIT)))
      assert.are.same(pack(true, 3), pack(session:call("add", 1, 2)))
      assert.are.equal(0, session:stats().calls)
      task:cancel()
    end)
    assert(child:wait(LIMIT))
  end)

  it("a coroutine that is closed while it proves its key lets others prove it", function()
    local here, there = ipc.pair "unix?unit=stream"
    local key = ("k"):rep(32)
    local session <close> = assert(ipc.rpc.connect(here, { timeout = LIMIT, authkey = key }))
    local guest = coroutine.create(function() session:call("add", 1, 2) end)
    ipc.scheduler {
      is_task = function(thread) return thread == guest end, wait = coroutine.yield, cancel = function() end,
    }
    assert(coroutine.resume(guest))
    assert.is_true(coroutine.close(guest))
    ipc.scheduler(nil)
    local child = peer.fork(function(channel)
      ipc.main(function()
        ipc.rpc.serve(channel, { add = exports.add }, { authkey = key }):wait(LIMIT)
      end)
    end, there)
    assert.are.same(pack(true, 3), pack(session:call("add", 1, 2)))
    session:close()
    assert(child:wait(LIMIT))
  end)

  for where, serve in pairs {
    ["a channel"] = [[
      local here, there = ipc.pair "unix?unit=stream"
      local server = ipc.rpc.serve(here, exports)
      local session = ipc.rpc.connect(there)
    ]],
    ["an address"] = ([[
      local server = assert(ipc.rpc.serve(%q, exports))
      local session = ipc.rpc.connect(server.address)
    ]]):format(path()),
  } do
    it("os.exit in a call over " .. where .. " leaves no task that serves in the place of others", function()
      for _, wait in ipairs { "", "ipc.sleep(0.001)" } do
        local text, _, _, status = peer.run(([[
          warn "@on"
          ipc.loop.run(function()
            local exports = {
              add = function(a, b) return a + b end,
              leave = function() %s os.exit(7, true) end,
            }
            %s
            ipc.loop.go(function()
              local held <close> = setmetatable({}, { __close = function()
                print((select(2, session:call("add", 1, 2))))
              end })
              ipc.sleep(1000)
            end)
            assert(session.remote.add(1, 2) == 3)
            session:call "leave"
          end)
        ]]):format(wait, serve))
        assert.are.equal("closed\n", text)
        assert.are.equal(7, status)
      end
    end)
  end

  it("a function that closes its coroutine in a call back leaves the session to others", function()
    with({
      ask = function()
        local caller, inner = ipc.rpc.caller(), nil
        local closer = ipc.loop.go(function()
          repeat ipc.sleep(0.001) until inner
          return coroutine.close(inner)
        end)
        local ok = pcall(ipc.loop.wrap(function()
          inner = coroutine.running()
          caller:call "wait"
        end))
        return ok, select(2, closer:wait())
      end,
      add = exports.add,
    }, { connect = { exports = { wait = function() ipc.sleep(LIMIT) end } } }, function(session)
      assert.are.equal(3, session.remote.add(1, 2))
      local future = session:async "ask"
      assert.are.same(pack(true, 3), pack(session:call("add", 1, 2)))
      assert.are.same(pack(true, false, true), pack(future:wait()))
      assert.are.same(pack(true, 3), pack(session:call("add", 1, 2)))
    end)
  end)

  it("a process of its own serves a plain script, which makes its calls outside of tasks", function()
    local where = path()
    do
      local server <close> = assert(ipc.rpc.serve(where, exports, { process = true }))
      assert.are.equal(where, server.address)
      local session <close> = assert(ipc.rpc.connect(where, { timeout = LIMIT, exports = {
        twice = function(n) return 2 * n end,
      } }))
      assert.are_not.equal(ipc.pid(), session.remote.pid())
      assert.are.same(pack(true, true, 4), pack(session:call("ask", "twice", 2)))
      local one, other = session:async("sleep", 0.05), session:async("add", 1, 2)
      assert.are.same(pack(true, 3), pack(other:wait()))
      assert.are.same(pack(true, 0.05), pack(one:wait()))
      assert.are.equal("timeout", (select(2, session:with { timeout = 0.01 }:call("sleep", 1000))))
      assert.are.equal("timeout", (select(2, session:serve(0.01))))
    end
    local _, _, errno = ipc.connect(where)
    assert.are.equal(E.ENOENT, errno)
    local found, _, number = ipc.rpc.serve("unix:/no/such/directory/x", exports, { process = true })
    assert.is_nil(found)
    assert.are.equal(E.ENOENT, number)
  end)

  it("workers share an address; one that dies is replaced", function()
    run(function()
      local server <close> = assert(ipc.rpc.serve(path(), exports, { workers = 2, on_error = function() end }))
      assert.are.equal(2, #server)
      local session <close> = assert(ipc.rpc.connect(server.address, { timeout = LIMIT, reconnect = true }))
      local before = session.remote.pid()
      local waiting = session:async("sleep", 1000)
      assert.is_nil((session:call "die"))
      assert.is_nil((waiting:wait()))
      local pids = {}
      while not (pids[1] and #server == 2) do
        local other <close> = assert(ipc.rpc.connect(server.address, { timeout = LIMIT }))
        local pid = other.remote.pid()
        assert.are_not.equal(before, pid)
        pids[1] = pid
        ipc.sleep(0.01)
      end
      assert.are.equal(3, session.remote.add(1, 2))
    end)
  end)

  it("workers need a socket", function()
    local server, _, errno = ipc.rpc.serve(("fifo:/tmp/rpc-spec-w-%d"):format(ipc.pid()), exports, { workers = 2 })
    assert.is_nil(server)
    assert.are.equal(E.ENOTSUP, errno)
  end)

  it("a session that may reconnect does, and repeats what may be repeated only", function()
    local where = path()
    local calls = 0
    local names = {
      once = function() calls = calls + 1 ipc.rpc.caller():close() end,
      pid = exports.pid,
      flaky = function()
        calls = calls + 1
        if calls < 3 then ipc.rpc.caller():close() end
        return calls
      end,
    }
    with(names, { connect = { reconnect = 5, idempotent = { "flaky" } } }, function(session)
      local ok, message, errno = session:call "once"
      assert.is_nil(ok)
      assert.are.equal("closed", message)
      assert.are.equal(E.EPIPE, errno)
      assert.are.equal(1, calls)
      assert.are.equal(ipc.pid(), session.remote.pid())
      assert.are.equal(3, session.remote.flaky())
      calls = 0
      assert.is_nil((session:with { idempotent = false }:call "flaky"))
      assert.are.equal(1, calls)
      session:close()
      assert.are.equal("closed", (select(2, session:call "pid")))
    end, where)
  end)

  it("limits that leave no room for what the library itself says are refused", function()
    local least = { maxsize = 512, depth = 4, values = 64, tables = 8, params = 2 }
    for name, n in pairs(least) do
      local text = ("%s: a whole number from %d to %%d+ expected, got %d"):format(name, n, n - 1)
      assert.error_matches(function() ipc.rpc.serve(path(), exports, { [name] = n - 1 }) end, text)
      assert.error_matches(function() ipc.rpc.connect(path(), { [name] = n - 1 }) end, text)
    end
    local all = { many = exports.many, gone = exports.gone, pairs = function(t) return ipc.rpc.stream(pairs(t)) end }
    for _, limits in ipairs { least, {} } do
      with(all, { serve = limits, connect = limits == least and {} or least }, function(session)
        assert.are.same({ { 1 } }, { session.remote.many { 1 } })
        assert.are.same({ n = 2, nil, 2 }, pack(session.remote.many(nil, 2)))
        assert.are.equal(E.ENOENT, (select(3, session:call "gone")))
        local seen = {}
        for i, value in session.remote.pairs { 7, 8 } do seen[i] = value end
        assert.are.same({ 7, 8 }, seen)
        assert.are.equal(5, session.remote.many(function() return 5 end)())
      end)
    end
  end)

  it("depth is of arguments and results, both ways", function()
    local function nested(n)
      local t = {}
      for i = 2, n do t = { [i % 2 == 0 and "a" or 1] = t } end
      return t
    end
    local function measured(t)
      local n = 0
      while t do n, t = n + 1, select(2, next(t)) end
      return n
    end
    local all = { nested = nested, measured = measured, ask = exports.ask }
    assert.error_matches(function() ipc.rpc.serve(path(), all, { depth = 1001 }) end,
      "depth: .* to 1000 expected, got 1001")
    for depth, given in pairs { [64] = {}, [200] = { depth = 200 }, [1000] = { depth = math.huge } } do
      local connect = { exports = all, depth = given.depth }
      with(all, { serve = given, connect = connect }, function(session)
        for _ = 1, 2 do
          local remote = session.remote
          assert.are.equal(depth, remote.measured(nested(depth)))
          assert.are.equal(depth, measured(remote.nested(depth)))
          assert.are.same({ true, depth }, { remote.ask("measured", nested(depth)) })
          assert.are.equal(depth, measured((select(2, remote.ask("nested", depth)))))
          local ok, message = pcall(remote.measured, nested(depth + 1))
          assert.is_false(ok)
          assert.matches(("argument 1: tables nested deeper than %d"):format(depth), tostring(message))
          ok, message = session:call("nested", depth + 1)
          assert.is_nil(ok)
          assert.matches(("result 1: tables nested deeper than %d"):format(depth), message)
          local round = {}
          round.again = { round }
          ok, message = pcall(remote.measured, round)
          assert.is_false(ok)
          assert.matches("a cycle", tostring(message))
        end
      end)
    end
    with(all, { connect = { depth = 200 } }, function(session)
      local ok, message = session:call("measured", nested(100)) -- the other side's limit
      assert.is_nil(ok)
      assert.matches("deeper than 64", message)
      assert.are.equal(64, session.remote.measured(nested(64)))
    end)
  end)

  it("wrong arguments are told as they are", function()
    local a, b = ipc.pair "unix"
    local where = path()
    local function told(text, call, ...)
      local ok, problem = pcall(call, ...)
      assert.is_false(ok)
      assert.is_truthy(problem:find(text, 1, true), problem)
    end
    for option, text in pairs {
      timeout = { -1, "seconds expected, got -1" }, authkey = { "", 'a string that is not empty expected, got ""' },
      limit = { 1.5, "a whole number from 1 expected, got 1.5" }, name = { 5, "string expected, got number" },
      workers = { 0, "a whole number from 1 expected, got 0" }, nvim = { a, "boolean expected, got ipc.socket" },
      first = { 0, "seconds, more than 0, expected, got 0" }, grace = { "1", "seconds expected, got string" },
      peer = { "them", '"ours" or "plain" or "nvim" expected, got "them"' },
    } do
      told(("bad argument #3 to 'serve' (%s: %s)"):format(option, text[2]), ipc.rpc.serve, where, {},
        { [option] = text[1] })
    end
    for _, own in ipairs { {}, { process = true }, { workers = 1 } } do
      told("bad argument #1 to 'serve' ([2]: address or listener expected, got ipc.socket)", ipc.rpc.serve,
        { where, a }, {}, own)
      told("bad argument #1 to 'serve' (address, listener or channel expected, got number)", ipc.rpc.serve, 5, {}, own)
      told("bad argument #2 to 'serve' (exports: the key 1 is no string)", ipc.rpc.serve, where, { print }, own)
    end
    told("bad argument #2 to 'connect' (exports: x: function or table of functions expected, got number)",
      ipc.rpc.connect, a, { exports = { x = 1 } })
    local session <close> = ipc.rpc.connect(a)
    told("bad argument #1 to 'with' (timeout: seconds expected, got -1)", session.with, session, { timeout = -1 })
    told("bad argument #1 to 'with' (timeout: seconds expected, got string)", session.with, session, { timeout = "1" })
    told("bad argument #1 to 'with' (trace: string expected, got number)", session.with, session, { trace = 5 })
    b:close()
  end)

  it("calls are served on this machine only", function()
    for _, address in ipairs { "tcp:0.0.0.0:0", "tcp:[::]:0", "tcp:*:0", "tcp:192.0.2.1:0" } do
      local server, message, errno = ipc.rpc.serve(address, {})
      assert.is_nil(server)
      assert.matches("loopback", message)
      assert.are.equal(E.EACCES, errno)
    end
    local listener = assert(ipc.listen("tcp:0.0.0.0:0"))
    local server, _, errno = ipc.rpc.serve(listener, {})
    assert.is_nil(server)
    assert.are.equal(E.EACCES, errno)
    listener:close()
  end)

  it("allow decides who may call", function()
    local seen
    with(exports, { serve = { on_error = function(problem) seen = problem end, allow = function(session)
      return session.uid == -1, "not you"
    end } }, function(session)
      local ok, message, errno = session:call("add", 1, 2)
      assert.is_nil(ok)
      assert.matches("not allowed: not you", message)
      assert.are.equal(E.EACCES, errno)
      assert.matches("not you", seen)
    end)
  end)

  it("allow that raises, or gives no reason, is a refusal without one", function()
    local seen
    for _, allow in ipairs { function() error "secret" end, function() return false end } do
      with(exports, { serve = { on_error = function(problem) seen = problem end, allow = allow } }, function(session)
        assert.are.equal("not allowed", (select(2, session:call("add", 1, 2))))
        assert.are.equal("refused: not allowed", seen)
      end)
    end
  end)

  it("who may not call is not called", function()
    run(function()
      local a, b = ipc.pair "unix"
      local function ignore() end
      local served <close> = assert(ipc.rpc.serve(b, exports, { timeout = LIMIT, on_error = ignore, allow = function()
        return false, "nobody"
      end }))
      local ran = 0
      local session <close> = assert(ipc.rpc.connect(a, {
        timeout = LIMIT, exports = { back = function() ran = ran + 1 return ran end },
      }))
      ipc.loop.go(function() session:serve() end)
      local refused = { n = 3, nil, "not allowed: nobody", E.EACCES }
      local function is_refused(ok, message, errno)
        assert.are.same(refused, pack(ok, message, errno))
      end
      is_refused(served:call "back")
      is_refused(served:async("back"):wait(LIMIT))
      is_refused(served:with { timeout = LIMIT / 2 }:call "back")
      is_refused(served:notify "back")
      local batch <close> = served:batch()
      local future = batch:async "back"
      batch:send()
      is_refused(future:wait(LIMIT))
      is_refused(session:call("add", 1, 2))
      assert.are.equal(0, ran)
    end)
  end)

  it("allow is asked of a channel that is served", function()
    run(function()
      for _, may in ipairs { false, true } do
        local a, b = ipc.pair "unix"
        local asked, seen, ran, opened = 0, nil, 0, 0
        local function count() opened = opened + 1 end
        local served <close> = assert(ipc.rpc.serve(b, { add = function(x, y) ran = ran + 1 return x + y end }, {
          allow = function(session)
            asked = asked + 1
            assert.is_number(session.uid)
            return may, "nobody"
          end, on_error = function(problem) seen = problem end, on_open = count, on_close = count,
        }))
        assert.are.equal(1, asked)
        local session <close> = assert(ipc.rpc.connect(a, { timeout = LIMIT }))
        local ok, sum, errno = session:call("add", 1, 2)
        session:close()
        served:wait(LIMIT)
        if may then
          assert.are.same({ true, 3 }, { ok, sum })
        else
          assert.are.same({ n = 3, nil, "not allowed: nobody", E.EACCES }, pack(ok, sum, errno))
          assert.are.equal("refused: nobody", seen)
        end
        assert.are.same(may and { 1, 2 } or { 0, 0 }, { ran, opened })
        assert.are.equal(1, asked)
      end
    end)
  end)

  it("allow is asked of who is at the other end of a connection", function()
    local where, ran, opened = path(), 0, 0
    local function count() opened = opened + 1 end
    local function back() ran = ran + 1 return "served" end
    run(function()
      local server <close> = assert(ipc.rpc.serve(where, exports))
      local a, b = ipc.pair "unix"
      local served <close> = assert(ipc.rpc.serve(b, exports))
      for _, to in ipairs { server.address, a } do
        local peer_seen, uid
        local session, message, errno = ipc.rpc.connect(to, {
          exports = { back = back }, on_open = count, on_close = count, timeout = LIMIT, allow = function(one)
            peer_seen, uid = one.peer, one.uid
            return false, "not them"
          end,
        })
        assert.is_nil(session)
        assert.are.same({ "not allowed: not them", E.EACCES }, { message, errno })
        assert.are.same({ 0, 0 }, { ran, opened })
        assert.is_number(uid)
        assert.are.equal(type(to) == "string" and to or nil, peer_seen)
      end
      assert.matches("closed", tostring(a))
      assert.is_true(served:wait(LIMIT))
      local session <close> = assert(ipc.rpc.connect(server.address, {
        exports = { back = back }, timeout = LIMIT, allow = function() return true end,
      }))
      assert.are.same({ true, "served" }, { session.remote.ask "back" })
      assert.are.equal(1, ran)
    end)
  end)

  it("allow is asked of every connection that takes the place of another", function()
    local asked = 0
    with(exports, { serve = { process = true }, connect = { reconnect = 5, allow = function()
      asked = asked + 1
      return asked == 1, "enough"
    end } }, function(session, server)
      assert.are.equal(3, session.remote.add(1, 2))
      server:close()
      local other <close> = assert(ipc.rpc.serve(server.address, exports))
      assert.is_nil((session:call "none"))
      local ok, message, errno = session:call("add", 1, 2)
      assert.are.same({ n = 3, nil, "not allowed: enough", E.EACCES }, pack(ok, message, errno))
      assert.is_true(asked >= 2)
      assert.is_true(#other <= 1)
    end)
  end)

  it("a session knows who is there, on unix sockets", function()
    with({ who = function() return ipc.rpc.caller().uid, ipc.rpc.caller().pid end }, { serve = { process = true } },
      function(session)
        local uid, pid = session.remote.who()
        assert.is_number(uid)
        assert.are.equal(uid, session.uid)
        local one, other = ipc.pair "unix"
        local told = one:credentials().pid
        one:close()
        other:close()
        if told then -- not all systems tell that one
          assert.are.equal(ipc.pid(), pid)
          assert.are_not.equal(pid, session.pid)
        end
        assert.are.equal(type(pid), type(session.pid))
      end)
    run(function()
      local a, b = ipc.pair "unix"
      local served <close> = assert(ipc.rpc.serve(b, { who = function() return ipc.rpc.caller().uid end }))
      local session <close> = assert(ipc.rpc.connect(a, { timeout = LIMIT }))
      assert.is_number(session.uid)
      assert.are.same({ session.uid, session.uid }, { session.remote.who(), served.uid })
    end)
  end)

  it("a key is proved by both sides before anything is answered", function()
    run(function()
      local server <close> = assert(ipc.rpc.serve(path(), exports, { authkey = "secret" }))
      local good <close> = assert(ipc.rpc.connect(server.address, { authkey = "secret", timeout = LIMIT }))
      assert.are.equal(3, good.remote.add(1, 2))
      assert.are.equal(1 << 16, #good.remote.many(("x"):rep(1 << 16)))
      local bad <close> = assert(ipc.rpc.connect(server.address, { authkey = "other", timeout = LIMIT }))
      local ok, message, errno = bad:call("add", 1, 2)
      assert.is_nil(ok)
      assert.matches("authentication failed", message)
      assert.are.equal(E.EACCES, errno)
      local none <close> = assert(ipc.rpc.connect(server.address, { timeout = LIMIT }))
      ok, message, errno = none:call("add", 1, 2)
      assert.is_nil(ok)
      assert.matches("a key is wanted", message)
      assert.are.equal(E.EACCES, errno)
      local open <close> = assert(ipc.rpc.serve(path(), exports))
      local careful <close> = assert(ipc.rpc.connect(open.address, { authkey = "secret", timeout = LIMIT }))
      assert.are.equal(E.EACCES, (select(3, careful:call("add", 1, 2))))
    end)
  end)

  it("peers that take answers last in, first out get them so", function()
    run(function()
      local a, b = ipc.pair("unix", { unit = "stream" })
      local session <close> = ipc.rpc.connect(a, { peer = "nvim", timeout = LIMIT, exports = {
        nap = function(t) ipc.sleep(t) return t end,
      } })
      local wire = require "ipc.core".rpc.wire(b, {})
      local task = ipc.loop.go(function() return session:call "x" end)
      assert.are.same({ 0, 1, "x" }, { wire:recv(LIMIT) })
      wire:request(7, "nap", 0.01)
      wire:request(8, "nap", 0.1)
      wire:flush()
      local function answer() -- between two of them it is asked something
        local message
        repeat
          message = { wire:recv(LIMIT) }
          if message[1] == 0 then
            wire:result(message[2], 0)
            wire:flush()
          end
        until message[1] ~= 0
        return message
      end
      assert.are.same({ 1, 8, nil, 0.1 }, answer())
      assert.are.same({ 1, 7, nil, 0.01 }, answer())
      wire:result(1, "y")
      wire:flush()
      assert.are.same(pack(true, true, "y"), pack(task:wait()))
      b:close()
    end)
  end)

  it("a process that was forked has sessions of its own", function()
    run(function()
      local server <close> = assert(ipc.rpc.serve(path(), exports))
      local session <close> = assert(ipc.rpc.connect(server.address, { timeout = LIMIT }))
      assert.are.equal(3, session.remote.add(1, 2))
      local address = server.address
      local child <close> = assert(ipc.fork(function()
        local ok = session:call("add", 1, 2)
        local mine <close> = assert(ipc.rpc.connect(address, { timeout = LIMIT }))
        return ok, mine.remote.add(3, 4)
      end))
      assert.are.same(pack(true, nil, 7), pack(child:wait(LIMIT)))
      assert.are.equal(3, session.remote.add(1, 2))
    end)
  end)

  it("notifications that wait are counted, end with their time, and with the session", function()
    local entered, left, most = 0, 0, 0
    with({ wait = function()
      entered = entered + 1
      most = math.max(most, entered - left)
      local guard <close> = setmetatable({}, { __close = function() left = left + 1 end })
      ipc.sleep(1000)
      return guard
    end, add = exports.add }, { serve = { calls = 5, timeout = 0.2 } },
      function(session, server)
        for _ = 1, 20 do session:notify "wait" end
        while not session:call("add", 1, 2) do ipc.sleep(0.01) end
        assert.is_true(entered > 0 and most <= 5, most .. " at once")
        while left < entered do ipc.sleep(0.001) end
        session:notify "wait"
        session:call("add", 1, 2)
        session:close()
        while #server > 0 or left < entered do ipc.sleep(0.001) end
      end)
  end)

  it("what on_error waits for after a notification takes nothing of the time of later calls", function()
    local told = ipc.loop.queue()
    with({ bad = function() error("no", 0) end, last = function()
      ipc.sleep(0.001) -- another task reads on
      local left = ipc.rpc.caller().deadline
      return ipc.now() + left
    end }, { serve = { timeout = LIMIT, params = 3, on_error = function()
      ipc.sleep(0.001)
      told:put(true)
    end } }, function(session)
      for _, what in ipairs { { "bad" }, { "last", 1, 2, 3, 4 } } do
        assert.is_true(session:notify(table.unpack(what)))
        assert.is_true(told:get(LIMIT))
        local futures, began = {}, ipc.now()
        for i = 1, 5 do futures[i] = session:async "last" end
        for _, future in ipairs(futures) do
          local ok, last = future:wait()
          assert.is_true(ok and last >= began + LIMIT, last)
        end
      end
    end)
  end)

  it("an id that is used twice loses no call", function()
    local left = 0
    run(function()
      local server <close> = assert(ipc.rpc.serve(path(), { wait = function()
        local guard <close> = setmetatable({}, { __close = function() left = left + 1 end })
        ipc.sleep(1000)
        return guard
      end, add = exports.add }, { limit = 1 }))
      local raw = assert(ipc.connect(server.address, { unit = "stream" }))
      local wire = require "ipc.core".rpc.wire(raw, {})
      wire:request(7, "wait")
      wire:request(7, "wait")
      wire:request(8, "add", 1, 2)
      wire:flush()
      assert.are.same({ 1, 8, nil, 3 }, { wire:recv(LIMIT) })
      raw:close()
      while left < 2 do ipc.sleep(0.001) end
      local session <close> = assert(ipc.rpc.connect(server.address, { timeout = LIMIT }))
      assert.are.equal(3, session.remote.add(1, 2))
    end)
  end)

  it("an error that looks like a cancellation is one of the call only", function()
    local reported = {}
    with({ look = function() error { message = "cancelled", errno = E.ECANCELED } end, add = exports.add },
      { serve = { on_error = function(problem) reported[#reported + 1] = problem.message end } },
      function(session, server)
        for _ = 1, 3 do
          assert.are.equal(E.ECANCELED, (select(3, session:call "look")))
          session:notify "look"
        end
        assert.are.equal(3, session.remote.add(1, 2))
        assert.are.equal(1, #server)
      end)
  end)

  it("who is called to read but is late leaves nobody without a reader", function()
    with(exports, {}, function(session)
      session.remote.add(1, 1)
      local tasks = {}
      for i = 1, 40 do
        tasks[i] = ipc.loop.go(function()
          return session:with { timeout = i % 2 == 0 and LIMIT or i / 1000 }:call("sleep", 0.02)
        end)
      end
      for i = 2, 40, 2 do assert.are.same(pack(true, true, 0.02), pack(tasks[i]:wait())) end
    end)
  end)

  it("a flood of one client keeps no other from its turn", function()
    run(function()
      local server <close> = assert(ipc.rpc.serve(path(), exports))
      local child <close> = assert(ipc.fork(function(address)
        local channel = ipc.connect(address, { unit = "stream" })
        local bad = ipc.pack({ 2, "x", ipc.array {} }):rep(10000)
        while channel:send(bad) do end
      end, server.address))
      local session <close> = assert(ipc.rpc.connect(server.address, { timeout = LIMIT }))
      for i = 1, 10 do assert.are.equal(i + 1, session.remote.add(i, 1)) end
      child:stop(0)
    end)
  end)

  it("data is a table of the session's own, whichever view is asked", function()
    with({ visit = function()
      local data = ipc.rpc.caller().data
      data.visits = (data.visits or 0) + 1
      return data.visits
    end }, {}, function(session)
      assert.are.equal(1, session.remote.visit())
      assert.are.equal(2, session.remote.visit())
      session.data.x = 1
      assert.are.equal(1, session:with { timeout = 1 }.data.x)
      session:with {}.data = { y = 2 }
      assert.are.equal(2, session.data.y)
    end)
  end)

  it("a message that the other side does not take is an error of that call alone", function()
    with({
      size = function(text) return #text end, text = function(n) return ("x"):rep(n) end, sleep = exports.sleep,
    }, {
      serve = { maxsize = 10000 }, connect = { maxsize = 20000 },
    }, function(session)
      local other = session:async("sleep", 0.05)
      local ok, message, errno = session:call("size", ("x"):rep(10000))
      assert.is_nil(ok)
      assert.matches("10000", message)
      assert.are.equal(E.EMSGSIZE, errno)
      ok, message, errno = session:call("text", 20000)
      assert.is_nil(ok)
      assert.matches("20000", message)
      assert.are.equal(E.EMSGSIZE, errno)
      assert.are.equal(E.EMSGSIZE, (select(3, session:notify("size", ("x"):rep(10000)))))
      assert.are.equal(9000, session.remote.size(("x"):rep(9000)))
      assert.are.equal(19000, #session.remote.text(19000))
      assert.are.same(pack(true, 0.05), pack(other:wait()))
    end)
  end)

  it("close sends what was said to be on its way", function()
    local n, ended = 0, 0
    local server <close> = assert(ipc.rpc.serve(path(), {
      log = function() n = n + 1 end, seen = function() return n, ended end,
    }, { process = true, on_close = function() ended = ended + 1 end }))
    local other <close> = assert(ipc.rpc.connect(server.address, { timeout = LIMIT }))
    local text = ("x"):rep(10000)
    local counts = {}
    for round = 1, 6 do -- it gives its rest a second: not enough where the server has none to read it
      local session = assert(ipc.rpc.connect(server.address, { timeout = LIMIT }))
      local before = session.remote.seen()
      for _ = 1, 300 do assert.is_true(session:notify("log", text)) end
      session:close()
      local limit = ipc.now() + LIMIT
      repeat
        ipc.sleep(0.001)
        n, ended = other.remote.seen()
      until ended >= round or ipc.now() > limit
      counts[round] = n - before
      if counts[round] == 300 then return end
    end
    error("of 300 there came " .. table.concat(counts, ", "))
  end)

  it("who finds nobody to call again is told why, not that a call was late", function()
    local where = path()
    local server = assert(ipc.rpc.serve(where, exports, { process = true }))
    local session <close> = assert(ipc.rpc.connect(where, { reconnect = 0.05, timeout = LIMIT }))
    assert.are.equal(3, session.remote.add(1, 2))
    server:close()
    for _, answer in ipairs { pack(session:call("add", 1, 2)), pack(session:async("add", 1, 2):wait()),
      pack(session:notify("add", 1, 2)), pack(ipc.rpc.connect(where, { retry = 0.05 })) } do
      assert.is_nil(answer[1])
      assert.is_truthy(answer[2]:find(where, 1, true))
      assert.is_true(answer[3] == E.ENOENT or answer[3] == E.ECONNREFUSED)
    end
  end)

  it("what can be no target is told so before anything is waited for", function()
    local here, there = assert(ipc.pair "unix?unit=stream") -- where nobody is
    local session <close> = assert(ipc.rpc.connect(here, { timeout = LIMIT }))
    for _, target in ipairs { {}, session.remote.add, ipc.rpc.object({}, {}) } do
      for _, fn in ipairs {
        function() session:call(target) end, function() session:async(target) end,
        function() session:notify(target) end, function() session:batch():async(target) end,
      } do
        local ok, problem = pcall(fn)
        assert.is_false(ok)
        assert.is_truthy(tostring(problem):find("spec/rpc_spec.lua:%d+: bad argument #1 to a call %("))
      end
    end
    assert.are.same({ nil, "timeout" }, { (there:recv(0)), (select(2, there:recv(0))) }) -- not even a hello
    there:close()
  end)

  it("a session that is closed while it reconnects stays closed, and nobody waits any more", function()
    run(function()
      local where, opens = path(), 0
      local server = assert(ipc.rpc.serve(where, exports))
      local session = assert(ipc.rpc.connect(where, {
        reconnect = LIMIT, timeout = LIMIT, on_open = function() opens = opens + 1 end,
      }))
      assert.are.equal(3, session.remote.add(1, 2))
      server:stop()
      local waiting = {}
      for i, fn in ipairs { session.call, session.call, session.notify,
        function(...) return session:async(select(2, ...)):wait() end } do
        waiting[i] = ipc.loop.go(function() return (select(2, fn(session, "add", 1, 2))) end)
      end
      ipc.sleep(0.01)
      session:close()
      for _, task in ipairs(waiting) do
        assert.are.same({ true, "closed" }, { task:wait() })
      end
      local again <close> = assert(ipc.rpc.serve(where, exports))
      assert.are.equal("closed", (select(2, session:call("add", 1, 2))))
      assert.are.same({ 0, 1 }, { #again, opens })
    end)
  end)

  -- Has `fn` done in the place of ipc.connect what `found` does.
  local function instead(found, fn)
    local connect <const> = ipc.connect
    local held <close> = setmetatable({}, { __close = function() ipc.connect = connect end })
    ipc.connect = function(...) return found(connect, ...) end
    fn()
    return held
  end

  it("who waits while another reconnects takes what that has found", function()
    run(function()
      local where = path()
      local server = assert(ipc.rpc.serve(where, exports))
      local session <close> = assert(ipc.rpc.connect(where, { reconnect = 0.001, timeout = LIMIT }))
      assert.are.equal(3, session.remote.add(1, 2))
      server:stop()
      local tries, begun, gate = 0, ipc.loop.queue(), ipc.loop.queue()
      instead(function()
        tries = tries + 1
        begun:put(true)
        gate:get(LIMIT)
        return nil, "nobody", E.ENOENT
      end, function()
        local waiting = {}
        for i = 1, 4 do
          waiting[i] = ipc.loop.go(function() return (select(2, session:call("add", 1, 2))) end)
        end
        begun:get(LIMIT) -- the others stand in line
        ipc.sleep(0.01) -- more than they may wait
        for _ = 1, 4 do gate:put(true) end
        for _, task in ipairs(waiting) do
          assert.are.same({ true, "nobody" }, { task:wait() })
        end
      end)
      assert.are.equal(1, tries)
    end)
  end)

  it("who may wait longer than another tries on when that has given up, or is cancelled", function()
    run(function()
      local where = path()
      local server = assert(ipc.rpc.serve(where, exports))
      local session <close> = assert(ipc.rpc.connect(where, { reconnect = LIMIT, timeout = LIMIT }))
      assert.are.equal(3, session.remote.add(1, 2))
      for _, how in ipairs { "given up", "cancelled" } do
        server:stop()
        local first, begun, gate = true, ipc.loop.queue(), ipc.loop.queue()
        instead(function(connect, ...)
          if not first then return connect(...) end
          first = false
          begun:put(true)
          gate:get(LIMIT)
          return nil, "nobody", E.ENOENT
        end, function()
          local one = ipc.loop.go(function() return (select(2, session:call("add", 1, 2))) end)
          local other = ipc.loop.go(function() return session:call("add", 1, 2) end)
          begun:get(LIMIT)
          server = assert(ipc.rpc.serve(where, exports))
          if how == "cancelled" then one:cancel() else gate:put(true) end
          assert.are.same(pack(true, true, 3), pack(other:wait()))
          local ok, message = one:wait()
          assert.are.same(how == "cancelled" and { nil, "cancelled" } or { true, "nobody" }, { ok, message })
        end)
      end
      server:stop()
    end)
  end)

  it("a session whose server has been replaced while nothing was in flight goes on", function()
    local where = path()
    local session
    do
      local server <close> = assert(ipc.rpc.serve(where, exports, { process = true }))
      session = assert(ipc.rpc.connect(server.address, { reconnect = 5, timeout = LIMIT }))
      assert.are.equal(3, session.remote.add(1, 2))
    end
    local server <close> = assert(ipc.rpc.serve(where, exports, { process = true }))
    assert.are.equal(server.address, where)
    assert.are.equal(3, session.remote.add(1, 2))
    session:close()
  end)

  it("a task that has kept others waiting calls at any depth of its stack", function()
    local function down(n, session)
      if n > 0 then return (down(n - 1, session)) end
      local from = ipc.now()
      repeat until ipc.now() - from > 0.006
      return session.remote.add(1, 2)
    end
    with(exports, nil, function(session)
      for depth = 1, 40 do
        local ok, sum = ipc.loop.go(down, depth, session):wait()
        assert.is_true(ok)
        assert.are.equal(3, sum)
      end
    end)
  end)

  -- Debian's copas is installed for Lua 5.1 and 5.2 only, and runs here all the same.
  for name, drive in pairs {
    cqueues = "assert(host:loop(20))",
    luv = "host.run()",
    copas = "while not done do host.step(5) end",
  } do
    it("under " .. name, function()
      local text = peer.run(([[
        package.path = package.path .. ";/usr/share/lua/5.2/?.lua;/usr/share/lua/5.1/?.lua"
        local done
        local host = ipc.loop.use %q
        local exports = {
          sleep = ipc.sleep,
          add = function(a, b) return a + b end,
          ask = function(name, ...) return ipc.rpc.caller():call(name, ...) end,
        }
        ipc.loop.go(function()
          local server <close> = assert(ipc.rpc.serve(%q, exports))
          local session <close> = assert(ipc.rpc.connect(server.address, { timeout = 20, exports = exports }))
          local tasks = {}
          for i = 1, 5 do
            tasks[i] = ipc.loop.go(function()
              session:call("sleep", 0.01)
              return session:call("ask", "add", i, i)
            end)
          end
          for i = 1, 5 do print(select(4, tasks[i]:wait())) end
          done = true
        end)
        %s
        assert(done)
      ]]):format(name, path(), drive))
      assert.are.equal("2\n4\n6\n8\n10\n", text)
    end)
  end

  for name, drive in pairs {
    cqueues = { add = "host:wrap(guest)", run = "assert(host:loop(20))" },
    copas = { add = "host.addthread(guest)", run = "while not over do host.step(5) end" },
  } do
    it("a hook or a finaliser in the middle of a read in a coroutine of " .. name .. " is told so, too", function()
      local text = peer.run(([[
        package.path = package.path .. ";/usr/share/lua/5.2/?.lua;/usr/share/lua/5.1/?.lua"
        local over
        local host = ipc.loop.use %q
        local here, there = ipc.pair "unix?unit=stream"
        local child = ipc.fork(function(channel)
          assert(ipc.rpc.connect(channel, {
            exports = { add = function(a, b) return a + b end, sleep = ipc.sleep },
          })):serve(20)
        end, there)
        local function guest()
          local session = assert(ipc.rpc.connect(here, { timeout = 5 }))
          assert(session.remote.add(1, 2) == 3)
          local inside = {
            function() return session:call("add", 3, 4) end,
            function() return session:async("add", 3, 4):wait() end,
            function() return session:serve() end,
          }
          local outside = {
            function() return session:call("sleep", 0.01) end,
            function() return session:async("sleep", 0.01):wait() end,
            function() return session:serve(0.01) or true end,
          }
          for _, collected in ipairs { false, true } do
            for _, fn in ipairs(inside) do
              for _, outer in ipairs(outside) do
                local told
                local function inner() told = told or table.pack(pcall(fn)) end
                debug.sethook(function()
                  if session.core.reader then
                    debug.sethook()
                    if not collected then return inner() end
                    setmetatable({}, { __gc = inner })
                    collectgarbage()
                  end
                end, "", 1)
                assert(outer())
                debug.sethook()
                local errno = told[1] and told[4] or told[2].errno
                print(errno == ipc.errno.EDEADLK and "told" or tostring(told[3] or told[2]))
                assert(session.remote.add(1, 2) == 3)
              end
            end
          end
          session:close()
          child:wait(20)
          over = true
        end
        %s
        %s
        assert(over)
      ]]):format(name, drive.add, drive.run))
      assert.are.equal(("told\n"):rep(18), text)
    end)

    it("coroutines of " .. name .. " that call at once hold nobody up", function()
      local text = peer.run(([[
        package.path = package.path .. ";/usr/share/lua/5.2/?.lua;/usr/share/lua/5.1/?.lua"
        local over, left = false, 10
        local host = ipc.loop.use %q
        local here, there = ipc.pair "unix?unit=stream"
        local child = ipc.fork(function(channel)
          ipc.main(function()
            assert(ipc.rpc.serve(channel, {
              ask = function(n) return ipc.rpc.caller():call("add", n, n) end,
              sleep = function(t) ipc.sleep(t) return t end,
            })):wait()
          end)
        end, there)
        local session = assert(ipc.rpc.connect(here, {
          timeout = 20, exports = { add = function(a, b) return a + b end },
        }))
        local function guest()
          for i = 1, 20 do
            assert(session:call("sleep", 0.001 * (i %% 3)))
            local ok, fine, sum = session:call("ask", i)
            assert(ok and fine and sum == 2 * i, fine)
          end
          left = left - 1
          if left == 0 then
            session:close()
            child:wait(20)
            over = true
          end
        end
        for _ = 1, left do %s end
        %s
        print(over)
      ]]):format(name, drive.add, drive.run))
      assert.are.equal("true\n", text)
    end)
  end
end)
