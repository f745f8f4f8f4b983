-- Locks that outlive their holders: what each kind promises, among tasks, forks
-- and processes that know it by name; who is told of a death, and when.
local ipc = require "ipc"
local scheduler = require "spec.support.scheduler"
local with = require "spec.support.with"

local E = ipc.errno
local PATIENCE = with.patience

if not require "spec.support.peer".has "shm" then
  describe("a lock", function()
    it("needs locks of open file descriptions: ENOTSUP", function()
      local lock, _, errno = ipc.mutex()
      assert.is_nil(lock)
      assert.are.equal(E.ENOTSUP, errno)
    end)
  end)
  return
end

local names = 0

local function name()
  names = names + 1
  return ("/ipc-locks-%d-%p-%d"):format(ipc.pid(), with, names)
end

local function new(kind, ...)
  local lock = with.close(assert(ipc[kind](...)))
  lock:settimeout(PATIENCE)
  return lock
end

local function raises(pattern, f, ...)
  local ok, message = pcall(f, ...)
  assert.is_false(ok)
  assert.matches(pattern, message)
end

local function fails(errno, ok, message, got, ...)
  assert.is_nil(ok)
  assert.is_string(message)
  assert.are.equal(errno, got, message)
  return message, ...
end

local function wait_until(what)
  local deadline = ipc.now() + PATIENCE
  while not what() do
    assert.is_true(ipc.now() < deadline, "it takes too long")
    ipc.sleep(0.001)
  end
end

-- A process that does f with a lock, says so, and waits to be killed.
local function hold(f, lock)
  local p = with.fork(function(...)
    local keep = table.pack(f(...))
    ipc.parent:put(keep[1] and "held" or keep[2])
    ipc.parent:recv()
    return keep.n
  end, lock)
  assert.are.equal("held", p:get(PATIENCE))
  return p
end

local function kill(p)
  assert(p:kill "KILL")
  p:wait(PATIENCE)
end

-- Every kind: how it is made, and a call that waits for long.
local kinds = {
  mutex = { wait = function(x) return x:lock(PATIENCE) end, own = function(x) return x:lock() end },
  rwlock = { wait = function(x) return x:write(PATIENCE) end, own = function(x) return x:read() end },
  semaphore = { options = { permits = 1 }, own = function(x) return x:acquire() end,
    wait = function(x) return x:acquire(PATIENCE) end },
  event = { wait = function(x) return x:wait(PATIENCE) end },
  barrier = { options = { parties = 2 }, wait = function(x) return x:wait(PATIENCE) end },
  condition = {},
}

for kind, of in pairs(kinds) do
  local function options(more)
    local t = {}
    for key, value in pairs(of.options or {}) do t[key] = value end
    for key, value in pairs(more or {}) do t[key] = value end
    return t
  end

  describe("every lock: " .. kind, function()
    after_each(with.cleanup)

    it("says what it is", function()
      local x = new(kind, nil, options())
      assert.matches("^ipc%." .. kind .. " %(open%)$", tostring(x))
      assert.is_true(x:close())
      assert.is_true(x:close())
      assert.are.equal("ipc." .. kind .. " (closed)", tostring(x))
      assert.are.equal(0, x:stats().takeovers)
    end)

    it("goes with the last that has its name", function()
      local n = name()
      local a = new(kind, n, options())
      local b = new(kind, n)
      a:close()
      local c = new(kind, n, { create = false })
      b:close()
      c:close()
      fails(E.ENOENT, ipc[kind](n, { create = false }))
    end)

    it("stays with persist, and remove takes its name", function()
      local n = name()
      new(kind, n, options { persist = true }):close()
      local x = new(kind, n, { create = false })
      assert.is_true(x:remove())
      fails(E.ENOENT, ipc[kind](n, { create = false }))
      fails(E.ENOENT, x:remove())
      fails(E.ENOENT, new(kind, nil, options()):remove())
    end)

    it("is not another kind", function()
      local n = name()
      new(kind, n, options())
      for other, its in pairs(kinds) do
        if other ~= kind then
          assert.matches(kind, (fails(E.EEXIST, ipc[other](n, its.options))), 1, true)
        end
      end
      local ring = with.close(assert(ipc.shm(name() .. "r", "rw", { capacity = 4096 })))
      assert.is_userdata(ring)
    end)

    it("is no ring, and a ring is none", function()
      local n = name()
      with.close(assert(ipc.shm(n, "rw", { capacity = 4096 })))
      fails(E.EBADMSG, ipc[kind](n, options()))
      local m = name()
      new(kind, m, options())
      fails(E.EBADMSG, ipc.shm(m, "r"))
    end)

    it("create = \"new\" makes one", function()
      local n = name()
      new(kind, n, options { create = "new" })
      fails(E.EEXIST, ipc[kind](n, options { create = "new" }))
    end)

    it("bad arguments are blamed", function()
      raises("a name begins with a slash", ipc[kind], "x")
      raises("string", ipc[kind], 1)
      raises("option 'nonsense'", ipc[kind], nil, { nonsense = 1 })
      raises("participants", ipc[kind], nil, { participants = 1 })
      local x = new(kind, nil, options())
      for method, f in pairs(getmetatable("").__index and debug.getmetatable(x).__index) do
        raises(method == "close" and "ipc%." or "", f, io.stdout)
        raises("", f)
      end
      raises("seconds", x.settimeout, x, "1")
      raises("not a number", x.settimeout, x, 0 / 0)
    end)

    if of.wait then
      it("a wait ends with its time, and with the handle", function()
        local x, y = new(kind, nil, options()), nil
        if of.own then y = hold(of.own, x) end
        local from = ipc.now()
        x:settimeout(0.02)
        fails(E.ETIMEDOUT, (of.wait == kinds.mutex.wait and x.lock or x.write or x.acquire or x.wait)(x))
        assert.is_true(ipc.now() - from >= 0.02)
        local s <close> = setmetatable({}, { __close = function() ipc.scheduler() end })
        assert.is_table(s)
        local run, why = scheduler.new(), nil
        run:go(function() why = table.pack(of.wait(x)) end)
        run:go(function() x:close() end)
        run:run(PATIENCE)
        fails(E.EPIPE, table.unpack(why, 1, 3))
        fails(E.EPIPE, of.wait(x))
        if y then kill(y) end
      end)
    end

    it("is of the process that opened it, and of a fork that takes it along", function()
      local x = new(kind, nil, options())
      local p = with.fork(function()
        return x:stats().takeovers, tostring(x)
      end)
      local ok, n, text = p:wait(PATIENCE)
      assert.is_true(ok, n)
      assert.are.equal(0, n)
      assert.matches("open", text)
      assert.are.equal(0, x:stats().takeovers)
    end)

    it("travels through a unix socket", function()
      local a, b = with.close(assert(ipc.pair "unix:?handles=4"))
      local x = new(kind, nil, options())
      assert(a:put({ lock = x }, nil, PATIENCE))
      local y = with.close(assert(b:get(PATIENCE)).lock)
      assert.matches("^ipc%." .. kind, tostring(y))
      if of.own then
        assert(of.own(y))
        if kind ~= "rwlock" then
          fails(E.ETIMEDOUT, (x.lock or x.acquire)(x, 0))
        else
          fails(E.ETIMEDOUT, x:write(0))
        end
      end
    end)
  end)
end

describe("a mutex", function()
  after_each(with.cleanup)

  it("is had by one: the guard's scope is how long", function()
    local n = name()
    local a, b = new("mutex", n), new("mutex", n)
    do
      local held <close>, state = assert(a:lock())
      assert.is_nil(state)
      assert.is_true(a:stats().held)
      assert.is_false(b:stats().held)
      fails(E.ETIMEDOUT, b:lock(0))
      assert.matches("ipc.guard %(ipc.mutex%)", tostring(held))
    end
    assert(b:lock(0))
    fails(E.ETIMEDOUT, a:lock(0))
    assert.is_true(b:unlock())
    assert(a:lock(0))
  end)

  it("is not taken twice through one handle", function()
    local m = new "mutex"
    local g = m:lock()
    fails(E.EDEADLK, m:lock())
    assert.is_true(g:unlock())
    assert.is_true(g:unlock())
    fails(E.EPERM, m:unlock())
    fails(E.EPERM, m:consistent())
  end)

  it("a guard of an earlier lock leaves a later one alone", function()
    local m = new "mutex"
    local first = assert(m:lock())
    assert(m:unlock())
    local second = assert(m:lock())
    assert(first:unlock())
    assert.is_true(m:stats().held)
    assert(second:unlock())
    assert.is_false(m:stats().held)
  end)

  it("waits until the other lets go", function()
    local m = new "mutex"
    local p = with.fork(function()
      local held = assert(m:lock())
      ipc.parent:put "held"
      ipc.parent:recv()
      return held:unlock()
    end)
    assert.are.equal("held", p:get(PATIENCE))
    fails(E.ETIMEDOUT, m:lock(0.01))
    p:send "go"
    assert(m:lock(PATIENCE))
    assert.is_true(p:wait(PATIENCE))
  end)

  it("tells of a dead holder until the data is whole", function()
    local n = name()
    local m, other = new("mutex", n), new("mutex", n)
    kill(hold(function(x) return x:lock() end, m))
    do
      local held <close>, state = assert(m:lock())
      assert.are.equal("owner_dead", state)
      assert.is_true(other:stats().owner_dead)
    end
    do
      local held <close>, state = assert(other:lock())
      assert.are.equal("owner_dead", state)
      assert.is_true(other:consistent())
    end
    local held <close>, state = assert(m:lock())
    assert.is_nil(state)
    assert.are.equal(1, m:stats().takeovers)
  end)

  it("a dead holder's place that another took is no secret", function()
    local n = name()
    local m = new("mutex", n, { participants = 2 })
    kill(hold(function()
      local mine = assert(ipc.mutex(n))
      return assert(mine:lock()), mine
    end))
    local next = new("mutex", n) -- there is only the dead one's place
    local held <close>, state = assert(next:lock(0))
    assert.are.equal("owner_dead", state)
    fails(E.ETIMEDOUT, m:lock(0))
  end)

  it("is told of deaths while it waits", function()
    local m = new "mutex"
    local holder = hold(function(x) return x:lock() end, m)
    local waiter = with.fork(function()
      ipc.parent:put "waits"
      local _, state = m:lock(PATIENCE)
      return state
    end)
    assert.are.equal("waits", waiter:get(PATIENCE))
    kill(holder)
    assert.are.same({ true, "owner_dead" }, { waiter:wait(PATIENCE) })
  end)

  it("close lets go; the collector and the end of a program do not repair", function()
    local n = name()
    local m = new("mutex", n)
    local a = assert(ipc.mutex(n))
    assert(a:lock())
    a:close()
    local g, state = assert(m:lock(0))
    assert.is_nil(state)
    g:unlock()
    do
      local lost = assert(ipc.mutex(n))
      assert(lost:lock())
    end
    collectgarbage()
    collectgarbage()
    g, state = assert(m:lock(PATIENCE))
    assert.are.equal("owner_dead", state)
    m:consistent()
    g:unlock()
    local text, status = with.shell(with.command(([[
      local m = assert(require "ipc".mutex(%q))
      assert(m:lock(5))
      os.exit(true, %s)]]):format(n, "true")))
    assert.are.equal(0, status, text)
    g, state = assert(m:lock(PATIENCE))
    assert.is_userdata(g)
    assert.are.equal("owner_dead", state)
  end)

  it("keeps its handle while there is a guard", function()
    local n = name()
    local m = new("mutex", n)
    do
      local held <close> = assert(assert(ipc.mutex(n)):lock())
      collectgarbage()
      collectgarbage()
      fails(E.ETIMEDOUT, m:lock(0))
    end
    local _, state = assert(m:lock(0))
    assert.is_nil(state)
    collectgarbage() -- who is collected leaves the name to the last one out
    collectgarbage()
  end)

  it("of a parent is not a child's", function()
    local m = new "mutex"
    local held = assert(m:lock())
    local p = with.fork(function()
      local none, _, errno = m:lock(0)
      assert(not none and errno == ipc.errno.ETIMEDOUT)
      assert(held:unlock()) -- of the parent: nothing here
      none, _, errno = m:unlock()
      return none, errno
    end, m)
    assert.are.same({ true, nil, E.EPERM }, { p:wait(PATIENCE) })
    assert.is_true(m:stats().held)
    assert(held:unlock())
  end)

  it("tasks are served in order", function()
    local n = name()
    local m, out = new("mutex", n), {}
    local held = assert(m:lock())
    local s <close> = setmetatable({}, { __close = function() ipc.scheduler() end })
    assert.is_table(s)
    local run = scheduler.new()
    for i = 1, 3 do
      local mine = new("mutex", n)
      run:go(function()
        local _ <close> = assert(mine:lock(PATIENCE))
        out[#out + 1] = i
        ipc.sleep(0.001)
      end)
    end
    run:go(function()
      ipc.sleep(0.005)
      held:unlock()
    end)
    run:run(PATIENCE)
    table.sort(out)
    assert.are.same({ 1, 2, 3 }, out)
  end)
end)

describe("an rwlock", function()
  after_each(with.cleanup)

  it("has many readers or one writer", function()
    local n = name()
    local a, b, c = new("rwlock", n), new("rwlock", n), new("rwlock", n)
    local one, two = assert(a:read(0)), assert(b:read(0))
    assert.are.equal(2, c:stats().readers)
    fails(E.ETIMEDOUT, c:write(0))
    one:unlock()
    fails(E.ETIMEDOUT, c:write(0))
    assert.are.equal(0, c:stats().wanting)
    two:unlock()
    local w = assert(c:write(0))
    fails(E.ETIMEDOUT, a:read(0))
    fails(E.ETIMEDOUT, b:write(0))
    fails(E.EDEADLK, c:read())
    w:unlock()
    assert(a:read(0))
    fails(E.EDEADLK, a:read())
    fails(E.EPERM, a:consistent())
  end)

  it("does not starve who writes, nor who reads", function()
    local n = name()
    local a, b = new("rwlock", n), new("rwlock", n)
    local g = assert(a:read())
    local writer = with.fork(function()
      ipc.parent:put "wants"
      local held <close> = assert(b:write(PATIENCE))
      ipc.parent:put "wrote"
      ipc.parent:recv()
      return held:unlock()
    end)
    assert.are.equal("wants", writer:get(PATIENCE))
    wait_until(function() return a:stats().wanting == 1 end)
    fails(E.ETIMEDOUT, b:read(0)) -- behind who waits to write
    g:unlock()
    assert.are.equal("wrote", writer:get(PATIENCE))
    writer:send "done"
    assert(b:read(PATIENCE))
    assert.is_true(writer:wait(PATIENCE))
  end)

  it("a dead one that waited to write holds nobody up", function()
    local n = name()
    local a, b = new("rwlock", n), new("rwlock", n)
    assert(a:read())
    local writer = with.fork(function() return b:write(PATIENCE) end)
    wait_until(function() return a:stats().wanting == 1 end)
    kill(writer)
    assert(b:read(PATIENCE))
  end)

  it("tells of a writer's death, not of a reader's", function()
    local n = name()
    local a, b = new("rwlock", n), new("rwlock", n)
    kill(hold(function(x) return x:read() end, a))
    local g, state = assert(b:write(PATIENCE))
    assert.is_nil(state)
    g:unlock()
    kill(hold(function(x) return x:write() end, a))
    g, state = assert(b:read(PATIENCE))
    assert.are.equal("owner_dead", state)
    g:unlock()
    g, state = assert(b:write(PATIENCE))
    assert.are.equal("owner_dead", state)
    assert.is_true(b:consistent())
    g:unlock()
    g, state = assert(a:read(PATIENCE))
    assert.is_userdata(g)
    assert.is_nil(state)
  end)

  it("a task that is dropped while it waits to write wants no more", function()
    local n = name()
    local a, b = new("rwlock", n), new("rwlock", n)
    assert(a:read())
    local s <close> = setmetatable({}, { __close = function() ipc.scheduler() end })
    assert.is_table(s)
    local run = scheduler.new()
    local thread = run:go(function() b:write(PATIENCE) end)
    run:go(function()
      ipc.sleep(0.001)
      assert.are.equal(1, a:stats().wanting)
      run:drop(thread)
      assert(coroutine.close(thread))
    end)
    run:run(PATIENCE)
    assert.are.equal(0, a:stats().wanting)
  end)
end)

describe("a semaphore", function()
  after_each(with.cleanup)

  it("has so many permits", function()
    local s = new("semaphore", nil, { permits = 3 })
    local a = assert(s:acquire(0, 2))
    fails(E.ETIMEDOUT, s:acquire(0, 2))
    local b = assert(s:acquire(0))
    assert.are.equal(0, s:stats().free)
    a:unlock()
    a:unlock()
    assert.are.equal(2, s:stats().free)
    b:unlock()
    assert.are.equal(3, s:stats().free)
    raises("1 to 3", s.acquire, s, 0, 4)
    raises("1 to 3", s.acquire, s, 0, 0)
    fails(E.EPERM, s:release())
  end)

  it("release gives back what was had longest", function()
    local s = new("semaphore", nil, { permits = 4 })
    local a, b = assert(s:acquire(0, 2)), assert(s:acquire(0))
    assert.is_true(s:release())
    assert.are.equal(2, s:stats().free)
    a:unlock()
    assert.are.equal(3, s:stats().free)
    fails(E.EPERM, s:release(2))
    b:unlock()
    b:unlock()
    assert.are.equal(4, s:stats().free)
  end)

  it("gets the permits of the dead back", function()
    local s = new("semaphore", nil, { permits = 2 })
    local p = hold(function(x) return x:acquire(nil, 2) end, s)
    fails(E.ETIMEDOUT, s:acquire(0.01))
    kill(p)
    assert(s:acquire(PATIENCE, 2))
    assert.are.equal(1, s:stats().takeovers)
  end)

  it("close gives its permits back", function()
    local n = name()
    local a, b = new("semaphore", n, { permits = 2 }), new("semaphore", n)
    assert(a:acquire())
    assert(a:acquire())
    assert.are.equal(0, b:stats().free)
    a:close()
    assert.are.equal(2, b:stats().free)
  end)

  it("of nobody's permits signals", function()
    local s = new("semaphore", nil, { permits = 0, owned = false })
    fails(E.ETIMEDOUT, s:acquire(0))
    local p = with.fork(function() return s:release(3) end)
    assert(s:acquire(PATIENCE))
    assert.is_true(p:wait(PATIENCE))
    assert(s:acquire(0, 2))
    fails(E.ETIMEDOUT, s:acquire(0))
    assert(s:release(2147483647))
    fails(E.EOVERFLOW, s:release())
  end)

  it("of nobody's permits: a child has no part in its parent's, nor a closed handle", function()
    local s = new("semaphore", nil, { permits = 1, owned = false })
    local g = assert(s:acquire(0))
    local p = with.fork(function()
      local mine = s
      return g:unlock(), mine:stats().free
    end)
    assert.are.same({ true, true, 0 }, { p:wait(PATIENCE) })
    assert.are.equal(0, s:stats().free)
    assert.is_true(g:unlock())
    assert.is_true(g:unlock())
    assert.are.equal(1, s:stats().free)
    g = assert(s:acquire(0))
    s:close()
    fails(E.EPIPE, g:unlock())
  end)

  it("gets them back although others come and go all the time", function()
    local n = name()
    local s = new("semaphore", n, { permits = 3 })
    local dead = hold(function(x) return x:acquire() end, s)
    local busy = with.fork(function()
      local mine <close> = assert(ipc.semaphore(n))
      ipc.parent:put "ready"
      while select(3, ipc.parent:recv(0)) == ipc.errno.ETIMEDOUT do
        assert(mine:acquire(PATIENCE)):unlock()
      end
    end)
    assert.are.equal("ready", busy:get(PATIENCE))
    kill(dead)
    assert(s:acquire(PATIENCE, 3)):unlock()
    assert.is_true(s:stats().takeovers >= 1)
    busy:send "stop"
    assert.is_true(busy:wait(PATIENCE))
  end)

  it("must be as it is asked for", function()
    local n = name()
    fails(E.ENOENT, ipc.semaphore(n))
    new("semaphore", n, { permits = 2 })
    assert.matches("permits is 2 there, not 3", (fails(E.EEXIST, ipc.semaphore(n, { permits = 3 }))))
    assert.matches("owned is true there",
      (fails(E.EEXIST, ipc.semaphore(n, { permits = 2, owned = false }))))
    assert.are.equal(2, new("semaphore", n).stats(new("semaphore", n)).permits)
    raises("permits", ipc.semaphore, nil, { permits = 0 })
    raises("permits", ipc.semaphore, nil, { permits = -1 })
    raises("permits", ipc.semaphore, n, { create = "new" })
  end)
end)

describe("a condition", function()
  after_each(with.cleanup)

  local function waits(c, m, n)
    local list = {}
    for i = 1, n do
      list[i] = with.fork(function()
        local held <close> = assert(m:lock(PATIENCE))
        local ok, why = c:wait(m, PATIENCE)
        return ok, why, m:stats().held
      end)
    end
    wait_until(function() return c:stats().waiting == n end)
    return list
  end

  it("lets one go on, or all", function()
    local c, m = new "condition", new "mutex"
    local list = waits(c, m, 3)
    assert(m:lock())
    assert.is_true(c:notify())
    assert.are.equal(2, c:stats().waiting)
    m:unlock()
    assert.is_true(c:notify_all())
    for _, p in ipairs(list) do assert.are.same({ true, true, nil, true }, { p:wait(PATIENCE) }) end
    raises("1 or more", c.notify, c, 0)
  end)

  it("forgets what nobody waited for", function()
    local c, m = new "condition", new "mutex"
    assert(c:notify())
    assert(m:lock())
    local message, held = fails(E.ETIMEDOUT, c:wait(m, 0.01))
    assert.are.equal("timeout", message)
    assert.is_true(held)
    assert.is_true(m:stats().held)
    assert.are.equal(0, c:stats().waiting)
  end)

  it("gives the mutex up meanwhile, and to the guard back", function()
    local c, m = new "condition", new "mutex"
    do
      local held <close> = assert(m:lock())
      local p = with.fork(function()
        local mine = assert(m:lock(PATIENCE))
        return c:notify() and mine:unlock()
      end)
      assert.is_true(c:wait(m))
      assert.is_true(p:wait(PATIENCE))
      assert.is_true(m:stats().held)
      assert.matches("mutex", tostring(held))
    end
    assert.is_false(m:stats().held)
  end)

  it("ends with its time, whoever has the mutex", function()
    local c, m = new "condition", new "mutex"
    assert(m:lock())
    local p = with.fork(function()
      assert(m:lock(PATIENCE))
      ipc.parent:put "held"
      ipc.parent:recv()
    end)
    local _, held = fails(E.ETIMEDOUT, c:wait(m, 0.1))
    if held then -- p was slow
      m:unlock()
    end
    assert.are.equal("held", p:get(PATIENCE))
    assert.is_false(m:stats().held)
    fails(E.EPERM, m:unlock())
  end)

  it("tells of a dead owner after its time, too", function()
    local c, m = new "condition", new "mutex"
    assert(m:lock())
    local p = with.fork(function()
      assert(m:lock(PATIENCE))
      ipc.parent:put "held"
      ipc.parent:recv()
    end)
    local _, held, state = fails(E.ETIMEDOUT, c:wait(m, 0.05))
    if held then
      assert.is_nil(state)
      m:unlock()
    end
    assert.are.equal("held", p:get(PATIENCE))
    kill(p)
    local g
    g, state = assert(m:lock(PATIENCE))
    assert.is_userdata(g)
    assert.are.equal("owner_dead", state)
    _, held, state = fails(E.ETIMEDOUT, c:wait(m, 0.01))
    assert.is_true(held)
    assert.are.equal("owner_dead", state)
  end)

  it("tells all the tasks of one handle", function()
    local c, m, told = new "condition", new "mutex", 0
    local s <close> = setmetatable({}, { __close = function() ipc.scheduler() end })
    assert.is_table(s)
    local run, COUNT = scheduler.new(), 1500
    for _ = 1, COUNT do
      run:go(function()
        local held <close> = assert(m:lock())
        assert(c:wait(m, PATIENCE))
        told = told + 1
      end)
    end
    run:go(function()
      assert.are.equal(COUNT, c:stats().waiting)
      c:notify(1200)
      assert.are.equal(COUNT - 1200, c:stats().waiting)
      c:notify_all()
      assert.are.equal(0, c:stats().waiting)
    end)
    run:run(PATIENCE)
    assert.are.equal(COUNT, told)
  end)

  it("raises without the mutex", function()
    local c, m = new "condition", new "mutex"
    raises("must be locked", c.wait, c, m)
    raises("ipc.mutex expected", c.wait, c)
    raises("ipc.mutex expected", c.wait, c, c)
    assert(m:lock())
    m:close()
    raises("must be locked", c.wait, c, m)
  end)

  it("what a dead one was told is told to another", function()
    local c, m, n = new "condition", new "mutex", new "mutex"
    local first = waits(c, m, 1)[1]
    local held <close> = assert(m:lock())
    assert(c:notify()) -- first knows, and waits for the mutex
    assert.are.equal(0, c:stats().waiting)
    local second = waits(c, n, 1)[1]
    kill(first)
    assert.are.same({ true, true, nil, true }, { second:wait(PATIENCE) })
  end)

  it("several tasks wait through one handle", function()
    local c, m, out = new "condition", new "mutex", 0
    local s <close> = setmetatable({}, { __close = function() ipc.scheduler() end })
    assert.is_table(s)
    local run = scheduler.new()
    for _ = 1, 3 do
      run:go(function()
        local held <close> = assert(m:lock())
        assert(c:wait(m, PATIENCE))
        out = out + 1
      end)
    end
    run:go(function()
      assert.are.equal(3, c:stats().waiting)
      assert(m:lock())
      c:notify(2)
      m:unlock()
      while out < 2 do ipc.sleep(0.001) end
      ipc.sleep(0.01)
      assert.are.equal(2, out)
      c:notify_all()
    end)
    run:run(PATIENCE)
    assert.are.equal(3, out)
    assert.is_false(m:stats().held)
  end)
end)

describe("an event", function()
  after_each(with.cleanup)

  it("stays set until it is cleared", function()
    local e = new "event"
    assert.is_false(e:is_set())
    fails(E.ETIMEDOUT, e:wait(0))
    assert.is_true(e:set())
    assert.is_true(e:is_set())
    assert.is_true(e:wait(0))
    assert.is_true(e:wait(0))
    assert.is_true(e:clear())
    fails(E.ETIMEDOUT, e:wait(0))
  end)

  it("auto: one waits, and it is clear", function()
    local n = name()
    local e = new("event", n, { auto = true })
    e:set()
    assert.is_true(e:wait(0))
    fails(E.ETIMEDOUT, e:wait(0))
    assert.matches("auto is true there", (fails(E.EEXIST, ipc.event(n, { auto = false }))))
    assert(new("event", n):set())
    assert.is_true(e:wait(0))
    fails(E.ETIMEDOUT, e:wait(0))
  end)

  it("wakes who waits in another process", function()
    local e, back = new "event", new("event", nil, { auto = true })
    local p = with.fork(function()
      assert(e:wait(PATIENCE))
      return back:set()
    end)
    assert(e:set())
    assert.is_true(back:wait())
    assert.is_true(p:wait(PATIENCE))
  end)

  it("is polled; other locks are not", function()
    local e, m = new "event", new "mutex"
    assert.is_nil((ipc.poll({ e }, 0)))
    assert.is_nil((ipc.poll({ e }, 0.01)))
    local p = with.fork(function()
      ipc.parent:recv()
      return e:set()
    end)
    p:send "go"
    assert.is_true(assert(ipc.poll({ e }, PATIENCE))[e])
    assert.is_true(e:wait(0))
    raises("ipc.mutex is not polled", ipc.poll, { m }, 0)
    raises("ipc.mutex is not polled", ipc.poll, { { m, "r" } }, 0)
    assert.is_nil(m:pollfd())
    assert.is_number(e:pollfd())
    assert.are.equal(0, e:timeout())
    p:wait(PATIENCE)
  end)
end)

describe("a barrier", function()
  after_each(with.cleanup)

  it("lets all go on when all have come, one as the last", function()
    local b = new("barrier", nil, { parties = 3 })
    local list = {}
    for i = 1, 2 do
      list[i] = with.fork(function()
        local lasts = 0
        for _ = 1, 50 do
          local _, last = assert(b:wait(PATIENCE))
          lasts = lasts + (last and 1 or 0)
        end
        return lasts
      end)
    end
    local lasts = 0
    for _ = 1, 50 do
      local ok, last = b:wait()
      assert.is_true(ok)
      lasts = lasts + (last and 1 or 0)
    end
    for _, p in ipairs(list) do
      local ok, n = p:wait(PATIENCE)
      assert.is_true(ok, n)
      lasts = lasts + n
    end
    assert.are.equal(50, lasts)
    assert.are.equal(50, b:stats().rounds)
  end)

  it("after a timeout one has not come", function()
    local b = new("barrier", nil, { parties = 2 })
    fails(E.ETIMEDOUT, b:wait(0))
    fails(E.ETIMEDOUT, b:wait(0.01))
    assert.are.equal(0, b:stats().arrived)
    assert.are.equal(0, b:stats().rounds)
  end)

  it("all hear of a party that dies", function()
    local b = new("barrier", nil, { parties = 3 })
    local list = {}
    for i = 1, 2 do list[i] = with.fork(function() return b:wait(PATIENCE) end) end
    wait_until(function() return b:stats().arrived == 2 end)
    kill(list[1])
    local ok, message, errno = list[2]:wait(PATIENCE)
    assert.are.same({ true, nil, "died" }, { ok, message, errno })
    assert.are.equal(0, b:stats().arrived)
    for i = 1, 2 do list[i] = with.fork(function() return b:wait(PATIENCE) end) end
    assert.is_true(b:wait())
    for i = 1, 2 do assert.is_true(list[i]:wait(PATIENCE)) end
  end)

  it("a dead one's place that another took is heard of, too", function()
    local n = name()
    local b = new("barrier", n, { parties = 3, participants = 2 })
    local p = with.fork(function()
      local mine <close> = assert(ipc.barrier(n))
      return mine:wait(PATIENCE)
    end)
    wait_until(function() return b:stats().arrived == 1 end)
    kill(p)
    local next = new("barrier", n)
    assert.are.equal(0, next:stats().arrived)
    assert.are.equal(1, next:stats().rounds)
  end)

  it("of one party never waits", function()
    local b = new("barrier", nil, { parties = 1 })
    assert.are.same({ true, true }, { b:wait(0) })
  end)

  it("says how many parties", function()
    raises("parties", ipc.barrier)
    raises("parties", ipc.barrier, nil, { parties = 0 })
    raises("parties", ipc.barrier, nil, { parties = 4001 })
    local n = name()
    new("barrier", n, { parties = 2 })
    assert.matches("parties is 2 there, not 3", (fails(E.EEXIST, ipc.barrier(n, { parties = 3 }))))
  end)

  it("tasks of one handle are parties", function()
    local b, out = new("barrier", nil, { parties = 3 }), 0
    local s <close> = setmetatable({}, { __close = function() ipc.scheduler() end })
    assert.is_table(s)
    local run = scheduler.new()
    for _ = 1, 3 do
      run:go(function()
        for _ = 1, 5 do assert(b:wait(PATIENCE)) end
        out = out + 1
      end)
    end
    run:run(PATIENCE)
    assert.are.equal(3, out)
    assert.are.equal(5, b:stats().rounds)
  end)
end)

describe("locks in a memory", function()
  after_each(with.cleanup)

  local function memory(n, locks)
    return with.close(assert(ipc.memory(n, 64, { locks = locks or 8 })))
  end

  it("are what the first use made them", function()
    local n = name()
    local m, other = memory(n), memory(n)
    assert.matches("ipc.mutex", tostring(m:mutex(1)))
    assert.matches("a mutex", (fails(E.EEXIST, other:event(1))))
    assert(m:semaphore(2, 3))
    assert.are.equal(3, other:semaphore(2):stats().permits)
    assert.matches("permits is 3 there", (fails(E.EEXIST, other:semaphore(2, 4))))
    assert(m:barrier(3, 2))
    assert(m:rwlock(4))
    assert(m:condition(5))
    assert(m:event(6, { auto = true }))
    raises("lock 9 of 8", m.mutex, m, 9)
    raises("lock 0 of 8", m.mutex, m, 0)
    raises("how many permits", m.semaphore, m, 7)
    raises("how many parties", m.barrier, m, 7)
    fails(E.ENOENT, m:mutex(1):remove())
  end)

  it("are had by the memory: once, through whichever handle", function()
    local n = name()
    local m, other = memory(n), memory(n)
    local a, b = m:mutex(1), m:mutex(1)
    local g = assert(a:lock())
    assert.matches("another handle of the same memory", (fails(E.EDEADLK, b:lock())))
    fails(E.EPERM, b:unlock())
    fails(E.ETIMEDOUT, other:mutex(1):lock(0))
    b:close()
    fails(E.ETIMEDOUT, other:mutex(1):lock(0))
    g:unlock()
    assert(other:mutex(1):lock(0))
  end)

  it("end with it; in order when it is closed", function()
    local n = name()
    local m, other = memory(n), memory(n)
    local a = m:mutex(1)
    local g = assert(a:lock())
    local s = m:semaphore(2, 2)
    assert(s:acquire(0, 2))
    m:close()
    fails(E.EPIPE, a:lock())
    assert.is_true(g:unlock())
    local held <close>, state = assert(other:mutex(1):lock(0))
    assert.is_nil(state)
    assert(other:semaphore(2):acquire(0, 2))
    assert.is_true(a:close())
  end)

  it("keep it", function()
    local a
    do
      local m = memory()
      a = m:mutex(1)
    end
    collectgarbage()
    collectgarbage()
    assert(a:lock()):unlock()
  end)

  it("of the dead return", function()
    local n = name()
    local m = memory(n)
    local p = with.fork(function()
      local mine = assert(ipc.memory(n, 64, { locks = 8 }))
      local keep = { mine:mutex(1):lock(), mine:semaphore(2, 2):acquire(0, 2), mine:rwlock(3):write() }
      ipc.parent:put(#keep)
      ipc.parent:recv()
    end)
    assert.are.equal(3, p:get(PATIENCE))
    local x = m:mutex(1)
    fails(E.ETIMEDOUT, x:lock(0))
    kill(p)
    local g, state = x:lock(PATIENCE)
    assert.is_userdata(g)
    assert.are.equal("owner_dead", state)
    assert(m:semaphore(2):acquire(PATIENCE, 2))
    g, state = m:rwlock(3):read(PATIENCE)
    assert.is_userdata(g)
    assert.are.equal("owner_dead", state)
  end)

  it("that are collected leave what the dead leave", function()
    local n = name()
    local m, other = memory(n), memory(n)
    assert(m:mutex(1):lock())
    collectgarbage()
    collectgarbage()
    local g, state = other:mutex(1):lock(0)
    assert.is_userdata(g)
    assert.are.equal("owner_dead", state)
  end)

  it("go to a child with it, which has none of its parent's", function()
    local m = memory()
    local a = m:mutex(1)
    local g = assert(a:lock())
    local p = with.fork(function()
      local none, _, errno = a:lock(0)
      assert(not none and errno == ipc.errno.ETIMEDOUT, errno)
      ipc.parent:put "tried"
      return a:lock(PATIENCE) and true
    end)
    assert.are.equal("tried", p:get(PATIENCE))
    g:unlock()
    assert.are.same({ true, true }, { p:wait(PATIENCE) })
  end)

  it("that are closed while a task waits end its wait, and what it told", function()
    local n = name()
    local m, other = memory(n), memory(n)
    local s <close> = setmetatable({}, { __close = function() ipc.scheduler() end })
    assert.is_table(s)
    local keep = { other:rwlock(1):read(), (other:mutex(2):lock()) }
    local run, answers = scheduler.new(), {}
    local w = m:rwlock(1)
    run:go(function() answers[1] = select(3, w:write(PATIENCE)) end)
    run:go(function() answers[2] = select(3, m:mutex(2):lock(PATIENCE)) end)
    local c, x = new "condition", m:mutex(3)
    run:go(function()
      assert(x:lock())
      answers[3] = table.pack(c:wait(x, PATIENCE))
    end)
    run:go(function()
      assert.are.equal(1, other:rwlock(1):stats().wanting)
      w:close()
      keep[3] = assert(other:mutex(3):lock(0)) -- so that the wait stays behind it
      c:notify()
      while other:rwlock(1):stats().wanting > 0 do ipc.sleep(0.001) end
      m:close()
    end)
    run:run(PATIENCE)
    assert.are.equal(3, #keep)
    assert.are.equal(E.EPIPE, answers[1])
    assert.are.equal(E.EPIPE, answers[2])
    assert.are.same({ nil, "closed", E.EPIPE, false }, { table.unpack(answers[3], 1, 4) })
    assert.are.equal(0, c:stats().waiting)
  end)
end)
