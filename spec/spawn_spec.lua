-- ipc.spawn: what travels with a function, and the life of what it starts. Where a
-- whole program matters (its limits, its end) the spec runs a real one.
local ipc = require "ipc"
local peer = require "spec.support.peer"

local pipe, run = peer.pipe, peer.run
local E = ipc.errno

local function spawn(...)
  local child = assert(ipc.spawn(...))
  child:settimeout(peer.limit)
  return peer.keep(child)
end

-- What the function returns there.
local function there(...)
  local results = table.pack(spawn(...):wait())
  assert.is_true(results[1], results[2])
  return table.unpack(results, 2, results.n)
end

local function refused(pattern, ...)
  local ok, message = pcall(ipc.spawn, ...)
  assert.is_false(ok)
  assert.matches(pattern, message)
end

describe("a spawned Lua", function()
  after_each(peer.clean)

  it("is a channel to it; there ipc.parent is the one back", function()
    local power = 2
    local child = spawn(function()
      for n in ipc.parent:values() do ipc.parent:put(n ^ power) end
      return "said goodbye"
    end)
    assert.is_true(child:put(7))
    assert.are.equal(49.0, child:get())
    assert.is_true(child:shutdown())
    assert.are.same({ nil, "closed", E.EPIPE }, { child:get() })
    assert.are.same({ true, "said goodbye" }, { child:wait() })
    assert.is_nil(ipc.parent)
  end)

  it("is another process, with globals of its own", function()
    _G.shared = "here"
    local child = spawn(function() return ipc.pid(), _G.shared end)
    assert.are.same({ true, child.pid, nil, n = 3 }, table.pack(child:wait()))
    assert.are_not.equal(ipc.pid(), child.pid)
    _G.shared = nil
  end)

  it("answers with results, nils kept; with the error and its traceback", function()
    assert.are.same({ 1, nil, "x", nil, n = 4 }, table.pack(there(function(...) return ... end, 1, nil, "x", nil)))
    local child = spawn(function() error { code = 7 } end)
    local ok, message, errno = child:wait()
    assert.is_nil(ok)
    assert.matches("stack traceback:.*spawn_spec.lua", message)
    assert.are.equal(0, errno)
    assert.are.same({ code = 7 }, child.reason.value)
  end)

  it("tells its exit code and the signal that killed it", function()
    local child = spawn(function() os.exit(3) end)
    assert.is_nil((child:wait()))
    assert.are.equal(3, child.reason.code)
    child = spawn(function() ipc.parent:send "runs" ipc.parent:recv() end)
    assert.are.equal("runs", child:recv())
    assert.is_true(child:kill "USR1")
    assert.is_nil((child:wait()))
    assert.are.equal("USR1", child.reason.signal)
  end)

  it("reads nothing and writes where we do, unless told otherwise", function()
    local r, w = pipe { unit = "stream" }
    local child = spawn {
      fn = function() print(io.read "a" == "") io.stderr:write "and here" end, stdout = w, stderr = "stdout",
    }
    assert.is_true(child:wait())
    assert.are.equal("true\nand here", r:read "a")
    assert.are.equal("here\ntrue\n", run [[
      print(ipc.spawn(function() print "here" end):wait(10))
    ]])
  end)

  it("can be seen by its title", function()
    if not peer.has_proc then return pending "needs /proc" end
    local child = spawn(function() return io.open("/proc/self/cmdline"):read "a" end)
    local _, words = child:wait()
    assert.matches("child.lua\0.*core.so\0.*spawn_spec.lua:%d+\0$", words)
  end)

  it("starts others: children of children", function()
    local child = spawn(function(depth)
      local function deeper(n)
        if n == 0 then return { ipc.pid() } end
        local ok, list = assert(ipc.spawn(deeper, n - 1)):wait(10)
        assert(ok, list)
        list[#list + 1] = ipc.pid()
        return list
      end
      return deeper(depth)
    end, 3)
    local ok, list = child:wait()
    assert.is_true(ok, list)
    assert.are.equal(4, #list)
    assert.are.equal(child.pid, list[4])
  end)

  it("forks, and what it forks has it as its parent", function()
    local ok, mine, its = spawn(function()
      local child = ipc.fork(function() ipc.parent:put(ipc.pid()) return "forked" end)
      local pid = child:get(10)
      return select(2, child:wait(10)), pid == child.pid
    end):wait()
    assert.are.same({ true, "forked", true }, { ok, mine, its })
  end)

  it("ends with its parent, whatever ended that", function()
    if not peer.has_proc then return pending "needs /proc" end
    local r, w = pipe()
    local between = spawn(function()
      local child = ipc.spawn(function(out)
        out:put(ipc.pid())
        while true do ipc.sleep(1000) end
      end, w)
      ipc.parent:put "ready"
      child:wait()
    end)
    local pid = r:get()
    assert.are.equal("ready", between:get())
    assert.is_true(peer.lives(pid))
    between:kill "KILL"
    assert.are.same({ nil, "closed", E.EPIPE }, { r:get() }) -- its end went with it
  end)

  it("is stopped, closed, killed and waited for as a fork is", function()
    local kept
    do
      local child <close> = spawn(function()
        for _ in ipc.parent:messages() do end
        return "finished"
      end)
      kept = child
    end
    assert.are.same({ true, "finished" }, { kept:wait() })
    local child = spawn(function() ipc.parent:send "runs" while true do end end)
    assert.are.same({ nil, "timeout", E.ETIMEDOUT }, { child:wait(0) })
    assert.are.equal("runs", child:recv())
    assert.is_true(child:stop())
    assert.are.equal("TERM", child.reason.signal)
  end)

  it("carries 20 MiB of arguments, and waits for nothing", function()
    local text, list = ("x"):rep(20 << 20), {}
    for i = 1, 200000 do list[i] = { i } end
    local child = spawn(function(s, l) return #s, #l, l[200000][1] end, text, list)
    assert.are.same({ true, 20 << 20, 200000, 200000 }, { child:wait() })
  end)

  it("is refused more than a message holds, and nothing is left of it", function()
    local r, w = pipe()
    local child, message, errno = ipc.spawn(function(s) w:send(s) end, ("x"):rep(65 << 20))
    assert.is_nil(child)
    assert.matches("^ipc%.spawn: .*maxsize is 67108864", message)
    assert.are.equal(E.EMSGSIZE, errno)
    assert.is_true(w:send "still ours")
    assert.are.equal("still ours", r:recv())
  end)

  it("is refused a channel that has read ahead: EBUSY", function()
    local r, w = pipe()
    w:sendmany { "one", "two" }
    assert.are.equal("one", r:recv())
    local child, message, errno = ipc.spawn(function() return r:recv() end)
    assert.is_nil(child)
    assert.matches("^ipc%.spawn: ", message)
    assert.are.equal(E.EBUSY, errno)
    assert.are.equal("two", r:recv())
  end)

  it("leaves no descriptor and no zombie, waited for, closed or dropped", function()
    if not peer.has_proc then return pending "needs /proc" end
    spawn(function() end):wait()
    peer.clean()
    local before = peer.descriptors()
    for i = 1, 30 do
      local child = assert(ipc.spawn(function() return 1 end))
      if i % 3 == 0 then assert(child:wait(peer.limit)) elseif i % 3 == 1 then child:stop() end
    end
    assert.are.equal(before, peer.descriptors()) -- which collects what was dropped
    local zombies
    for _ = 1, 100 do
      local child = assert(ipc.spawn(function() end)) -- reaps what was dropped
      assert(child:wait(peer.limit))
      zombies = peer.zombies(ipc.pid())
      if zombies == 0 then break end
    end
    assert.are.equal(0, zombies)
  end)
end)

describe("with the function go", function()
  after_each(peer.clean)

  it("upvalues: all that is plain", function()
    local a, b, c, d, e, f = nil, true, 1, 2.0, "text\0\255", math.mininteger
    local r = table.pack(there(function() return a, b, c, d, e, f, math.type(c), math.type(d) end))
    assert.are.same({ nil, true, 1, 2.0, "text\0\255", math.mininteger, "integer", "float", n = 8 }, r)
  end)

  it("numbers that are none, and those without end", function()
    local nan, inf = 0 / 0, math.huge
    assert.are.same({ true, true }, {
      there(function() return nan ~= nan, inf == math.huge and -inf == -math.huge end),
    })
  end)

  it("tables: cycles, what is shared, keys of every kind, any depth", function()
    local t = { 1, nil, 3, [1.5] = "float", [true] = "boolean" }
    t.self, t[t] = t, "itself"
    t.twice = { t, t }
    assert.is_true(there(function()
      return t.self == t and t[t] == "itself" and t.twice[1] == t.twice[2] and t[1.5] == "float"
        and t[true] == "boolean" and t[1] == 1 and t[2] == nil and t[3] == 3
    end))
    local deep = {}
    local at = deep
    for _ = 1, 100000 do
      at.next = {}
      at = at.next
    end
    assert.are.equal(100001, there(function()
      local n, one = 0, deep
      while one do n, one = n + 1, one.next end
      return n
    end))
  end)

  it("metatables, with the functions in them", function()
    local Account = {}
    Account.__index = Account
    function Account:add(n) self.sum = self.sum + n return self end
    Account.__tostring = function(self) return "sum " .. self.sum end
    local account = setmetatable({ sum = 1 }, Account)
    assert.are.equal("sum 42", there(function() return tostring(account:add(41)) end))
    local weak = setmetatable({}, { __mode = "k" })
    assert.are.equal("k", there(function() return getmetatable(weak).__mode end))
    local guarded = setmetatable({ 5 }, { __metatable = "no", __index = function(_, k) return k end })
    assert.are.same({ "no", 5, "x" }, { there(function() return getmetatable(guarded), guarded[1], guarded.x end) })
  end)

  it("no metamethods are called on the way", function()
    local trap = setmetatable({ 1 }, {
      __index = function() error "called" end, __pairs = function() error "called" end,
      __len = function() error "called" end, __eq = function() error "called" end,
    })
    assert.are.equal(1, there(function() return rawget(trap, 1) end))
  end)

  it("what ipc.array and ipc.map marked, ipc.null, ipc.ext", function()
    local array, map, null, ext = ipc.array {}, ipc.map {}, ipc.null, ipc.ext(5, "data")
    assert.are.same({ ipc.pack(array), ipc.pack(map), true, 5, "data" }, {
      there(function() return ipc.pack(array), ipc.pack(map), null == ipc.null, ext.type, ext.data end),
    })
  end)

  it("functions: recursive ones, shared ones, those in tables", function()
    local function factorial(n) return n < 2 and 1 or n * factorial(n - 1) end
    local even, odd
    function even(n) return n == 0 or odd(n - 1) end
    function odd(n) return n ~= 0 and even(n - 1) end
    local t = { f = factorial, g = factorial }
    assert.are.same({ 3628800, true, true }, {
      there(function() return factorial(10), even(100), t.f == t.g and t.f == factorial end),
    })
  end)

  it("upvalues that functions share: one variable there", function()
    local function counter()
      local n = 0
      return function() n = n + 1 return n end, function() return n end
    end
    local add, get = counter()
    assert.are.equal(2, there(function() add() add() return get() end))
    assert.are.equal(0, get())
  end)

  it("functions as arguments, C functions too", function()
    local n = 5
    assert.are.equal(8, there(function(f, g) return g(f(3), 1) end, function(x) return x + n end, math.max))
    assert.are.equal("here\n", run [[ipc.spawn(print, "here"):wait(10)]])
  end)

  it("modules and what is in them, by name", function()
    local format, out, insert, errno, support = string.format, io.stdout, table.insert, ipc.errno, peer
    assert.is_true(there(function()
      return format == string.format and out == io.stdout and insert == table.insert
        and errno == require "ipc".errno and support == require "spec.support.peer"
    end))
    local open = ipc.pair -- a Lua function in a module
    assert.is_true(there(function() return open == ipc.pair end))
  end)

  it("no globals: an _ENV that falls back on nothing is a table like any other", function()
    _G.global = "here"
    assert.is_nil(there(function() return global end)) -- luacheck: ignore 113
    _G.global = nil
    local alone = (function(_ENV) return function() return x end end) { x = "mine" } -- luacheck: ignore 113 212
    assert.are.equal("mine", there(alone))
  end)

  it("modules that no file is of, by value", function()
    package.loaded["spawn spec bundled"] = { twice = function(n) return 2 * n end, list = { 7 } }
    local bundled = require "spawn spec bundled"
    local twice = bundled.twice
    local ok, a, b, c = pcall(there, function()
      return twice(21), bundled.twice(4), bundled.list[1]
    end)
    package.loaded["spawn spec bundled"] = nil
    assert.are.same({ true, 42, 8, 7 }, { ok, a, b, c })
  end)

  it("functions that were stripped", function()
    local stripped = load(string.dump(function(a, b) return a .. b end, true))
    assert.are.equal("ab", there(stripped, "a", "b"))
  end)

  it("struct types, whole", function()
    if not peer.has "shm" then return pending "needs shared memory" end
    local Inner = ipc.struct { { "x", "i2" }, endian = "big" }
    local Outer = ipc.struct { { "a", "I4" }, { "name", "z7" }, { "list", Inner, 3 }, packed = true }
    local whole = ipc.struct { { "n", "j" }, versioned = true }
    local bytes = "\1\0\0\0seven\0\0\0\1\0\2\0\3"
    local a, name, x, size, versioned = there(function(text)
      local memory = ipc.memory(nil, 64)
      memory:write(0, text)
      local record = memory:view(Outer, 0, 1)[1]
      return record.a, record.name, record.list[3].x, Outer.size, whole.versioned
    end, bytes)
    assert.are.same({ string.unpack("=I4", bytes), "seven", 3, Outer.size, true }, { a, name, x, size, versioned })
  end)
end)

describe("what cannot travel raises and is named:", function()
  after_each(peer.clean)
  local co = coroutine.create(function() end)

  it("an upvalue that the function assigns, itself or within", function()
    local n, m = 0, 0
    refused("^bad argument #1 to 'spawn' %(upvalue 'n' of the function at [^:]*spawn_spec.lua:%d+ is assigned",
      function() n = n + 1 end)
    refused("upvalue 'm'", function() return function() return function() m = 1 end end end)
    refused("upvalue '_ENV'", function() _ENV = {} end)
    assert.are.same({ 0, 0 }, { n, m })
    local local_only = 1
    assert.are.equal(2, there(function() local k = local_only k = k + 1 return k end))
  end)

  it("a coroutine, by the way to it", function()
    refused("^bad argument #1 to 'spawn' %(upvalue 'co' of the function at [^:]*spawn_spec.lua:%d+: "
      .. "a coroutine cannot travel%)", function() return co end)
    local jobs = { ["a b"] = { co } }
    local lists = { { list = { 1, co } } }
    refused("upvalue 'lists'%[1%]%.list%[2%] of the function", function() return lists end)
    refused("upvalue 'jobs'%[\"a b\"%]%[1%] of the function", function() return jobs end)
    refused("argument #3 to 'spawn' %(argument #3%[2%]%.x: a coroutine", function() end, 1, { 1, { x = co } })
    refused('%(args%[2%]%["a b"%]: a coroutine', { fn = print, args = { 1, { ["a b"] = co } } })
    local function inner() return co end
    refused("upvalue 'co' of the function at .*, which is upvalue 'inner' of the function at",
      function() return inner() end)
    refused("argument #2 to 'spawn' %(argument #2%[a key%]: a coroutine", function() end, { [co] = 1 })
    refused("'s metatable%.__index%[1%]: a coroutine", function() end, setmetatable({}, { __index = { co } }))
  end)

  it("open files, other userdata, C functions of nobody, finalisers", function()
    refused("an open file cannot travel", function() end, (assert(io.tmpfile())))
    refused("a C function that is in no loaded module", function() end, (string.gmatch("", "")))
    refused("finaliser %(__gc%)", function() end, setmetatable({}, { __gc = function() end }))
    refused("an ipc%.decoder cannot travel", function() end, ipc.decoder())
  end)

  it("handles that cannot be passed, are closed or have moved", function()
    local child = spawn(function() end)
    refused("an ipc%.process cannot travel", function() return child end)
    local r, w = pipe()
    w:close()
    refused("upvalue 'w' of the function at .*: it is closed", function() return w end)
    local line = debug.getinfo(1, "l").currentline + 1
    child = peer.keep(ipc.spawn(function() return r:recv(0) end))
    refused(("moved to %d %%(spec/spawn_spec.lua:%d%%): dup%%(%%) keeps one"):format(child.pid, line),
      function() return r end)
    child:wait(peer.limit)
  end)

  it("a table of ours in the metatable, whatever it is called", function()
    refused("a handle of this kind cannot travel", function() end,
      setmetatable({}, { __metatable = "ipc", __name = 5 }))
  end)

  it("what stands behind the name of the argument is told whole", function()
    refused("argument #2 to 'spawn' %(a coroutine", function() end, co)
    local function inner() return co end
    refused("argument #2 to 'spawn' %(upvalue 'co' of the function at .*, which is argument #2: a coroutine",
      function() end, inner)
  end)

  it("what others raise meanwhile goes through as it is", function()
    local mine = { "mine" }
    local n, start = 0, ipc.spawn -- which loads what it needs
    debug.sethook(function()
      local info = debug.getinfo(2, "S")
      if info and info.short_src:find "graph%.lua$" then
        n = n + 1
        if n == 3 then
          debug.sethook()
          error(mine, 0)
        end
      end
    end, "", 10)
    local ok, problem = pcall(start, function() end)
    debug.sethook()
    assert.is_false(ok)
    assert.are.equal(mine, problem)
  end)

  it("nothing has happened then", function()
    local r, w = pipe()
    local before = peer.has_proc and peer.descriptors()
    refused("coroutine", function() return w, co end)
    assert.are.equal(before, peer.has_proc and peer.descriptors())
    assert.is_true(w:send "still ours")
    assert.are.equal("still ours", r:recv())
  end)

  it("other than a function or a table, options that there are not", function()
    refused("function or table expected, got no value")
    refused("function or table expected, got string", "print")
    refused("unknown option 'x'", { fn = print, x = 1 })
    refused("unknown option '1'", { print })
    refused("one of 'fn', 'file' and 'module' expected", {})
    refused("one of 'fn', 'file' and 'module' expected", { fn = print, file = "x" })
    refused("option 'fn': function expected, got string", { fn = "print" })
    refused("option 'count': 1 or more expected", { fn = print, count = 0 })
    refused("option 'count': 1 or more expected", { fn = print, count = 1.5 })
    refused("option 'args': %-1 of them", { fn = print, args = { n = -1 } })
    refused("option 'args': ", { fn = print, args = { n = math.maxinteger } })
    refused("option 'args': n is no integer but 1.5", { fn = print, args = { n = 1.5 } })
    refused("option 'args': n is no integer but a string", { fn = print, args = { n = "2" } })
    refused("option 'file': contains zeros", { file = "a\0b" })
    refused("option 'handles': names and handles expected", { fn = print, handles = { x = 1 } })
    refused("bad argument #1 to 'spawn' %(option 'nice'", { fn = print, nice = "x" })
    refused("option 'stdin'", { fn = print, stdin = "nowhere" })
  end)
end)

describe("handles at a spawn", function()
  after_each(peer.clean)

  it("move: arguments, upvalues, and in tables", function()
    local r1, w1 = pipe()
    local r2, w2 = pipe()
    local r3, w3 = pipe()
    local ends = { { w2 } }
    local child = spawn(function(mine)
      for message in mine:messages() do ends[1][1]:send(message:upper()) end
      w3:send "done"
    end, r1)
    assert.is_true(w1:send "one")
    assert.are.equal("ONE", r2:recv())
    w1:close()
    assert.are.same({ nil, "closed", E.EPIPE }, { r2:recv() })
    assert.are.equal("done", r3:recv())
    for _, moved in ipairs { r1, w2, w3 } do
      assert.error_matches(function() moved:send "x" end, "moved to " .. child.pid)
      assert.is_true(moved:close())
    end
    assert.is_true(child:wait())
  end)

  it("take their options with them", function()
    local r, w = pipe { timeout = 0.01, maxsize = 100 }
    local child = spawn(function() return r:maxsize(), { r:recv() } end)
    assert.are.same({ true, 100, { nil, "timeout", E.ETIMEDOUT } }, { child:wait() })
    w:close()
  end)

  it("stay here as well where dup kept one", function()
    local r, w = pipe()
    local mine = peer.keep(w:dup())
    assert.is_true(spawn(function() w:send "there" end):wait())
    assert.is_true(mine:send "here")
    assert.are.same({ "there", "here" }, { r:recv(), r:recv() })
  end)

  it("of both ways: sockets, pairs, duplex ones of two", function()
    local r1, w1 = pipe()
    local r2, w2 = pipe()
    for _, ends in ipairs { { peer.pair "unix" }, { pipe { duplex = true } },
      { peer.keep(ipc.duplex(r2, w1)), peer.keep(ipc.duplex(r1, w2)) } } do
      local a, b = ends[1], ends[2]
      a:settimeout(peer.limit)
      spawn(function() b:put(b:get(10) + 1) end)
      assert.is_true(a:put(41))
      assert.are.equal(42, a:get())
      assert.are.same({ nil, "closed", E.EPIPE }, { a:get() })
    end
  end)

  it("with a name, too: ipc.handles", function()
    local r, w = pipe()
    local child = spawn {
      handles = { out = w }, args = { 1, 2 },
      fn = function(...) ipc.handles.out:put { ... } return next(ipc.handles) end,
    }
    assert.are.same({ 1, 2 }, r:get())
    assert.is_nil((child:wait())) -- a handle is no result
    assert.is_nil(ipc.handles)
  end)

  it("are shared: listeners stay usable here", function()
    local listener = peer.keep(assert(ipc.listen(("unix:/tmp/ipc-spawn-%d"):format(ipc.pid()))))
    local child = spawn(function()
      local client <close> = assert(listener:accept(10))
      return client:recv(10)
    end)
    local client <close> = assert(ipc.connect(listener:address()))
    client:send "hello"
    assert.are.same({ true, "hello" }, { child:wait() })
    local again <close> = assert(ipc.connect(listener:address()))
    peer.keep(assert(listener:accept(peer.limit)))
    assert.is_truthy(again)
  end)

  it("are shared: memories and locks", function()
    if not peer.has "shm" then return pending "needs shared memory" end
    local memory, lock = assert(ipc.memory(nil, 4096)), assert(ipc.mutex())
    peer.keep(memory, lock)
    local Counter = ipc.struct { { "n", "j" } }
    local crew <close> = assert(ipc.spawn { count = 2, fn = function()
      local counter = memory:view(Counter, 0, 1)[1]
      for _ = 1, 500 do
        local held <close> = assert(lock:lock(10))
        counter.n = counter.n + 1
      end
    end })
    assert(crew:wait(peer.limit))
    assert.are.equal(1000, memory:view(Counter, 0, 1)[1].n)
  end)

  it("are the only ones there", function()
    if not peer.has_proc then return pending "needs /proc" end
    pipe()
    local r, w = pipe()
    local list = there(function()
      local all = {}
      for fd = 0, 255 do
        local file <close> = io.open("/proc/self/fdinfo/" .. fd)
        if file then all[#all + 1] = fd end
      end
      w:put(#all)
      return all
    end)
    -- The standard ones, channel, report, lifeline, our end, and the look itself.
    assert.is_true(#list <= 9, table.concat(list, " "))
    assert.are.equal(#list, r:get())
  end)
end)

describe("a script or a module", function()
  after_each(peer.clean)

  local function file(text)
    local path = os.tmpname()
    local f <close> = assert(io.open(path, "w"))
    f:write(text)
    return path
  end

  it("runs as a file: arg is set, its results are the child's", function()
    local path = file [[
      local ipc = require "ipc"
      ipc.parent:put { arg[0], arg[1], arg[2], ... }
      return "result"
    ]]
    local child = spawn { file = path, args = { "one", 2 } }
    assert.are.same({ path, "one", 2, "one", 2 }, child:get())
    assert.are.same({ true, "result" }, { child:wait() })
    os.remove(path)
    local _, message = spawn { file = path }:wait()
    assert.matches("cannot open " .. path, message, 1, true)
  end)

  it("runs as a module, which is called if it is a function", function()
    local path = file "local name = ... return function(a, b) return a + b, name end"
    local directory, name = path:match "^(.*)/(.*)$"
    os.rename(path, path .. ".lua")
    local before = package.path
    package.path = directory .. "/?.lua;" .. package.path
    local child = spawn { module = name, args = { 40, 2 } }
    package.path = before
    assert.are.same({ true, 42, name }, { child:wait() })
    os.remove(path .. ".lua")
    local _, message = spawn { module = "no.such.module" }:wait()
    assert.matches("module 'no.such.module' not found", message, 1, true)
  end)

  it("is found from where we are, wherever the child is", function()
    local output = run([[
      package.path = "./lua/?.lua;./lua/?/init.lua;" .. package.path
      local peer = require "spec.support.peer"
      local ok, where, limit = ipc.spawn { cwd = "/", fn = function()
        local file <close> = io.popen "pwd"
        return file:read "l", peer.limit
      end }:wait(10)
      print(ok, where, limit)
    ]])
    assert.are.equal("true\t/\t20\n", output)
  end)
end)

describe("the options of a spawn:", function()
  after_each(peer.clean)

  it("env, clean_env, nice, rlimits", function()
    local ok, a, home, limit = spawn {
      env = { SPAWNED = "yes", LD_PRELOAD = os.getenv "LD_PRELOAD" }, clean_env = true, rlimits = { nofile = 50 },
      fn = function()
        local list = {}
        repeat
          list[#list + 1] = io.open "/dev/null"
        until not io.open("/dev/null", "r") or #list > 50
        return os.getenv "SPAWNED", os.getenv "HOME" or false, #list <= 50
      end,
    }:wait()
    assert.are.same({ true, "yes", false, true }, { ok, a, home, limit })
  end)

  it("timeout is the default of its calls", function()
    local child = peer.keep(assert(ipc.spawn { timeout = 0.01, fn = function() ipc.parent:recv() end }))
    assert.are.same({ nil, "timeout", E.ETIMEDOUT }, { child:recv() })
  end)

  it("lua is the interpreter; what is none is told", function()
    local child, message, errno = ipc.spawn { fn = print, lua = "/no/such/lua" }
    assert.is_nil(child)
    assert.matches("^ipc%.spawn: /no/such/lua: ", message)
    assert.are.equal(E.ENOENT, errno)
    local _, words = spawn {
      lua = "lua5.4", fn = function() return arg[-1] end,
    }:wait()
    assert.are.equal("lua5.4", words)
  end)

  it("nothing that runs Lua anywhere: all that was tried is named", function()
    local child, message, errno = ipc.spawn { fn = print, lua = "lua5.4", env = { PATH = "/no/such" } }
    assert.is_nil(child)
    assert.matches("lua5.4", message)
    assert.are.equal(E.ENOENT, errno)
  end)
end)

describe("several of one kind: count", function()
  after_each(peer.clean)

  it("fill and drain queues; ends are closed here", function()
    if not peer.has "shm" then return pending "needs shared memory" end
    local jobs, give = peer.keep(ipc.queue { timeout = peer.limit })
    local take, results = peer.keep(ipc.queue { timeout = peer.limit })
    local crew <close> = assert(ipc.spawn { count = 3, fn = function()
      for n in jobs:values() do results:put { n * n, ipc.pid() } end
    end })
    assert.are.equal(3, #crew)
    for n = 1, 9 do give:put(n) end
    give:close()
    local sum = 0
    for r in take:values() do sum = sum + r[1] end
    assert.are.equal(285, sum)
    assert.is_true(crew:wait(peer.limit))
    assert.error_matches(function() results:put(1) end, "moved to")
    assert.matches("3 processes", tostring(crew))
  end)

  it("each is a process", function()
    local crew <close> = assert(ipc.spawn { count = 2, fn = function() return ipc.parent:get() * 2 end })
    for i = 1, 2 do crew[i]:put(i) end
    assert.is_true(crew:wait(peer.limit))
    for i = 1, 2 do assert.are.same({ true, 2 * i }, { crew[i]:wait() }) end
    assert.are_not.equal(crew[1].pid, crew[2].pid)
  end)

  it("wait tells at once which failed, though others run", function()
    local crew <close> = assert(ipc.spawn { count = 3, fn = function()
      if ipc.parent:get() then error "out of luck" end
      ipc.parent:get()
    end })
    assert.are.same({ nil, "timeout", E.ETIMEDOUT }, { crew:wait(0) })
    crew[1]:put(false)
    crew[2]:put(true)
    local ok, message, errno = crew:wait(peer.limit)
    assert.is_nil(ok)
    assert.matches("^process 2 of 3: .*out of luck", message)
    assert.are.equal(0, errno)
  end)

  it("kill, stop and close are for all", function()
    local function idle() ipc.parent:send "runs" while true do ipc.sleep(1000) end end
    local crew = assert(ipc.spawn { count = 2, fn = idle })
    for i = 1, 2 do assert.are.equal("runs", crew[i]:recv(peer.limit)) end
    assert.is_true(crew:kill "USR1")
    assert.is_nil((crew:wait(peer.limit)))
    for i = 1, 2 do
      crew[i]:wait(peer.limit)
      assert.are.equal("USR1", crew[i].reason.signal)
    end
    assert.are.equal(E.ESRCH, (select(3, crew:kill())))
    assert.is_true(crew:close())
    crew = assert(ipc.spawn { count = 2, fn = idle })
    for i = 1, 2 do assert.are.equal("runs", crew[i]:recv(peer.limit)) end
    assert.is_true(crew:stop())
    assert.are.equal("TERM", crew[2].reason.signal)
    assert.is_true(crew:stop())
    assert.error_matches(function() crew.stop {} end, "ipc.crew expected")
  end)

  it("a block that is left lets them finish; left by an error it stops them", function()
    local kept
    do
      local crew <close> = assert(ipc.spawn { count = 2, fn = function()
        for _ in ipc.parent:messages() do end
        return "finished"
      end })
      kept = crew
    end
    assert.are.same({ true, "finished" }, { kept[2]:wait() })
    pcall(function()
      local crew <close> = assert(ipc.spawn { count = 2, fn = function()
        ipc.parent:send "runs"
        while true do ipc.sleep(1000) end
      end })
      kept = crew
      for i = 1, 2 do assert(crew[i]:recv(peer.limit)) end
      error "leaving"
    end)
    assert.are.equal("TERM", kept[1].reason.signal)
  end)

  it("can be waited for when it, or one of it, was closed", function()
    local crew = assert(ipc.spawn { count = 2, fn = function() return ipc.parent:get() end })
    crew[1]:close()
    crew[2]:shutdown()
    assert.is_true(crew:wait(peer.limit))
    assert.is_true(crew:close())
    assert.is_true(crew:wait())
    crew = assert(ipc.spawn { count = 2, fn = function() error "out of luck" end })
    crew:close()
    assert.matches("^process %d of 2: .*out of luck", (select(2, crew:wait())))
  end)

  it("close gives all of them their grace #slow", function()
    local crew = assert(ipc.spawn { count = 3, fn = function()
      local deaf = ipc.parent:get() == "deaf"
      ipc.parent:send "runs"
      if deaf then while true do ipc.sleep(1000) end end
      ipc.parent:recv()
      ipc.parent:send(("x"):rep(1 << 20)) -- which nobody asked for
      return "finished"
    end })
    for i = 1, 3 do
      crew[i]:put(i == 1 and "deaf" or "polite")
      assert.are.equal("runs", crew[i]:recv(peer.limit))
    end
    crew:close()
    local finished = 0
    for i = 1, 3 do
      local ok, what = crew[i]:wait()
      finished = finished + (ok and what == "finished" and 1 or 0)
    end
    assert.are.equal(2, finished)
  end)

  it("stop waits for as long as it is told, for ever too", function()
    local crew = assert(ipc.spawn { count = 2, fn = function()
      local signals <close> = assert(ipc.signals { "TERM" })
      ipc.parent:send "runs"
      signals:recv()
      return signals:recv(0.1) == nil and "told once" or "told again"
    end })
    for i = 1, 2 do assert.are.equal("runs", crew[i]:recv(peer.limit)) end
    assert.is_true(crew:stop(math.huge))
    for i = 1, 2 do assert.are.same({ true, "told once" }, { crew[i]:wait() }) end
  end)

  it("none is left when the task that closes them is cancelled", function()
    local kept, closes
    ipc.loop.run(function()
      local closing = ipc.loop.go(function()
        kept = assert(ipc.spawn { count = 3, fn = function()
          ipc.parent:send "runs"
          while true do ipc.sleep(1000) end
        end })
        for i = 1, 3 do assert.are.equal("runs", kept[i]:recv(peer.limit)) end
        closes = true
        kept:close()
      end)
      while not closes do ipc.sleep(0.001) end
      closing:wait(0.05)
      closing:cancel()
      assert.are.equal(E.ECANCELED, (select(3, closing:wait(peer.limit))))
    end)
    for i = 1, 3 do
      assert.is_nil((kept[i]:wait(peer.limit)))
      assert.are.equal("signal", kept[i].reason.kind)
    end
  end)

  it("one whose end raises does not keep the others from theirs", function()
    local crew = assert(ipc.spawn { count = 3, fn = function()
      ipc.parent:send "runs"
      while true do ipc.sleep(1000) end
    end })
    for i = 1, 3 do assert.are.equal("runs", crew[i]:recv(peer.limit)) end
    local first = crew[1]
    crew[1] = setmetatable({}, { __index = function() error("of the first", 0) end })
    assert.error_matches(function() crew:stop() end, "^of the first$")
    for i = 2, 3 do
      assert.is_nil((crew[i]:wait(peer.limit)))
      assert.are.equal("signal", crew[i].reason.kind)
    end
    first:stop(0)
  end)

  it("a signal that there is not is the caller's mistake", function()
    local crew <close> = assert(ipc.spawn { count = 2, fn = function() end })
    local _, message = pcall(function() crew:kill "FOO" end)
    assert.matches("spec/spawn_spec.lua:%d+: bad argument #1 to 'kill' %(a signal expected", message)
    _, message = pcall(function() crew:kill("TERM", "x") end)
    assert.matches("spec/spawn_spec.lua:%d+: bad argument #2 to 'kill'", message)
  end)

  it("none is left when one cannot start", function()
    local r, w = pipe()
    local crew, message, errno = ipc.spawn { count = 2, fn = function() w:send "x" end, lua = "/no/such/lua" }
    assert.is_nil(crew)
    assert.matches("/no/such/lua", message)
    assert.are.equal(E.ENOENT, errno)
    assert.is_true(w:send "still ours")
    assert.are.equal("still ours", r:recv())
  end)
end)

describe("a spawn works", function()
  local function python(script)
    return { under = (peer.python_command(script):gsub("^exec ", "")) }
  end

  local script = [[
    local child = assert(ipc.spawn(function(a)
      ipc.parent:put(a)
      return "result"
    end, 42))
    print(child:get(10), child:wait(10))
    child:close()
    child = assert(ipc.spawn(function() error("an error", 0) end))
    print((select(2, child:wait(10)):gsub("\n.*", "")))
    child:close()
  ]]

  it("where SIGCHLD is ignored", function()
    assert.are.equal("42\ttrue\tresult\nan error\n", (run(script, python [[
import os, signal, sys
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
os.execvp(sys.argv[1], sys.argv[1:])
]])))
  end)

  it("where all signals are blocked; there none is", function()
    assert.are.equal("42\ttrue\tresult\nan error\n" .. ("0"):rep(16) .. "\n", (run(script .. [[
      if not io.open "/proc/self/status" then print(("0"):rep(16)) return end
      print((select(2, ipc.spawn(function()
        return io.open "/proc/self/status":read "a":match "SigBlk:%s*(%x+)"
      end):wait(10))))
    ]], python [[
import os, signal, sys
signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
os.execvp(sys.argv[1], sys.argv[1:])
]])))
  end)

  it("with 8 descriptors", function()
    -- where the kernel helps less a start needs some more for a moment
    local list = "," .. (os.getenv "IPC_WITHOUT" or "") .. ","
    local bare = list:find ",vfork," or list:find ",reopen," or list:find ",pidfd,"
      or not peer.capacity(4096)
    assert.are.equal("42\ttrue\tresult\nan error\n",
      (run(script, { shell = "ulimit -n " .. (bare and 16 or 8) })))
  end)

  it("without standard streams", function()
    local output = run([[
      local ok, text = ipc.spawn(function() io.write "x" return io.read "a" end):wait(10)
      io.open(os.getenv "OUT", "w"):write(tostring(ok), text)
      os.exit(0, true)
    ]], { shell = "exec 0<&- ", env = { OUT = "/dev/stdout" } })
    assert.are.equal("xtrue", output)
  end)

  it("where memory is short: an answer, and no crash", function()
    if (os.getenv "LD_PRELOAD" or ""):find "asan" then return pending "needs no memory of its own" end
    for _, kib in ipairs { 12000, 20000, 40000 } do
      local output = run([[
        local child, message = ipc.spawn(function() return 1 end)
        local ok = child and child:wait(10)
        print "survived"
      ]], { shell = "ulimit -v " .. kib })
      assert.is_truthy(output:find "survived" or output:find "memory" or output:find "shared object"
        or output:find "failed to map", output)
    end
  end)
end)
