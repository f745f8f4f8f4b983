-- Waiting for several things at once: ipc.poll.
local ipc = require "ipc"
local peer = require "spec.support.peer"

local pipe, fork, run = peer.pipe, peer.fork, peer.run
local E = ipc.errno

-- The list alone, by names.
local function names(ready, of)
  local list = {}
  for i, handle in ipairs(ready) do
    list[i] = of[handle] or "stranger"
  end
  return table.concat(list, " ")
end

describe("ipc.poll", function()
  after_each(peer.clean)

  it("answers the ready ones in the order of the list, and as a set", function()
    local r1, w1 = pipe()
    local r2 = pipe()
    local r3, w3 = pipe()
    w3:send "x"
    w1:send "x"
    local of = { [r1] = "r1", [r2] = "r2", [r3] = "r3" }
    local ready = ipc.poll({ r1, r2, r3 }, peer.limit)
    assert.are.equal("r1 r3", names(ready, of))
    assert.is_true(ready[r1])
    assert.is_nil(ready[r2])
    assert.is_true(ready[r3])
    assert.are.equal("r3 r1", names(ipc.poll({ r3, r2, r1 }, peer.limit), of))
    assert.are.equal("x", r1:recv(0))
    assert.are.equal("r3", names(ipc.poll({ r1, r2, r3 }, peer.limit), of))
  end)

  it("answers timeout at the deadline, at once when it is 0 or negative", function()
    local r = pipe()
    local timeout = { nil, "timeout", E.ETIMEDOUT }
    assert.are.same(timeout, { ipc.poll({ r }, 0) })
    assert.are.same(timeout, { ipc.poll({ r }, -1) })
    local before = ipc.now()
    assert.are.same(timeout, { ipc.poll({ r }, 0.05) })
    assert.is_true(ipc.now() - before >= 0.05)
    before = ipc.now()
    assert.are.same(timeout, { ipc.poll({}, 0.02) })
    assert.is_true(ipc.now() - before >= 0.02)
  end)

  it("wakes up for what another process sends", function()
    local r1 = pipe()
    local r2, w2 = pipe()
    local r3 = pipe()
    fork(function()
      ipc.parent:recv()
      w2:send "from there"
      ipc.parent:recv()
    end):send "go"
    local ready = ipc.poll({ r1, r2, r3 }, peer.limit)
    assert.are.equal(1, #ready)
    assert.are.equal(r2, ready[1])
    assert.are.equal("from there", r2:recv(0))
  end)

  it("asks for sending where an end only sends, and says when there is room", function()
    local r, w = pipe { capacity = peer.capacity(4096), unit = "stream" }
    local bytes = 0
    while ipc.poll({ w }, 0) do
      assert.is_true(w:send(("x"):rep(4096)))
      bytes = bytes + 4096
    end
    assert.is_true(bytes > 0)
    assert.are.same({ nil, "timeout", E.ETIMEDOUT }, { ipc.poll({ w }, 0) })
    assert.are.equal(bytes, #r:read(bytes))
    assert.is_true(ipc.poll({ w }, peer.limit)[w])
    assert.is_true(w:send("x", nil, 0))
  end)

  it("takes { handle, what }: receiving, sending, either", function()
    local a, b = peer.pair "unix"
    assert.are.equal(a, ipc.poll({ { a, "w" } }, 0)[1])
    assert.are.same({ nil, "timeout", E.ETIMEDOUT }, { ipc.poll({ { a, "r" } }, 0) })
    assert.are.equal(a, ipc.poll({ { a, "rw" } }, 0)[1])
    while a:send(("x"):rep(1000), nil, 0) do end -- no more room
    assert.are.same({ nil, "timeout", E.ETIMEDOUT }, { ipc.poll({ { a, "rw" } }, 0) })
    b:send "x"
    local ready = ipc.poll({ { a, "w" }, { a, "rw" }, b }, 0)
    assert.are.equal(2, #ready)
    assert.are.equal(a, ready[1])
    assert.are.equal(b, ready[2])
    assert.is_true(ready[a])
  end)

  it("counts messages that were read ahead", function()
    local r, w = pipe()
    local other = pipe()
    assert.are.equal(3, w:sendmany { "1", "2", "3" })
    assert.are.equal("1", r:recv())
    for _ = 1, 2 do -- nothing is left in the kernel
      assert.are.equal(r, ipc.poll({ other, r }, 0)[1])
      assert.is_string(r:recv(0))
    end
    assert.are.same({ nil, "timeout", E.ETIMEDOUT }, { ipc.poll({ other, r }, 0) })
  end)

  it("does not take a part of a message for one", function()
    local r, w = pipe()
    local raw = assert(io.open(peer.path(w), "wb"))
    raw:setvbuf "no"
    for _, piece in ipairs { "\0", "\0\0\5", "he", "ll" } do
      raw:write(piece)
      assert.are.same({ nil, "timeout", E.ETIMEDOUT }, { ipc.poll({ r }, 0.001) })
    end
    raw:write "o"
    raw:close()
    assert.is_true(ipc.poll({ r }, peer.limit)[r])
    assert.are.equal("hello", r:recv(0))
  end)

  it("does not take a skipped message for one, but its report", function()
    local r, w = pipe { maxsize = 4 }
    local raw = assert(io.open(peer.path(w), "wb"))
    raw:write((">s4"):pack "too long")
    raw:flush()
    assert.is_true(ipc.poll({ r }, peer.limit)[r])
    assert.are.equal(E.EMSGSIZE, (select(3, r:recv(0))))
    assert.are.same({ nil, "timeout", E.ETIMEDOUT }, { ipc.poll({ r }, 0) })
    raw:close()
  end)

  it("finds closed handles ready, whichever side closed", function()
    local r1, w1 = pipe()
    local r2, w2 = pipe()
    local r3, w3 = pipe()
    r1:close()
    w2:close()
    r3:close()
    local of = { [r1] = "r1", [w1] = "w1", [r2] = "r2", [w2] = "w2", [w3] = "w3" }
    assert.are.equal("r1 w1 r2 w2 w3", names(ipc.poll({ r1, w1, r2, w2, w3 }, peer.limit), of))
    assert.are.same({ nil, "closed", E.EPIPE }, { r2:recv(0) })
    assert.are.equal(r2, ipc.poll({ r2 }, 0)[1])
  end)

  it("waits for both directions of a duplex handle", function()
    local a, b = pipe { duplex = true, unit = "stream", capacity = peer.capacity(4096) }
    assert.are.same({ nil, "timeout", E.ETIMEDOUT }, { ipc.poll({ a }, 0) })
    assert.is_true(ipc.poll({ { a, "w" } }, 0)[a])
    b:send "x"
    assert.is_true(ipc.poll({ a }, peer.limit)[a])
    local r1, w1 = pipe()
    local r2, w2 = pipe()
    local both = peer.keep(ipc.duplex(r1, w2))
    assert.are.same({ nil, "timeout", E.ETIMEDOUT }, { ipc.poll({ both }, 0) })
    assert.is_true(ipc.poll({ { both, "rw" } }, 0)[both])
    w1:send "to both"
    assert.is_true(ipc.poll({ both }, peer.limit)[both])
    assert.are.equal("to both", both:recv(0))
    both:send "from both"
    assert.is_true(ipc.poll({ r2 }, peer.limit)[r2])
  end)

  it("waits for processes: their messages, their end", function()
    local first = fork(function()
      ipc.parent:recv()
      ipc.parent:send "message"
      ipc.parent:recv()
    end)
    local second = fork(function()
      ipc.parent:recv()
    end)
    assert.are.same({ nil, "timeout", E.ETIMEDOUT }, { ipc.poll({ first, second }, 0) })
    first:send "go"
    local ready = ipc.poll({ first, second }, peer.limit)
    assert.are.equal(1, #ready)
    assert.are.equal("message", ready[1]:recv(0))
    second:kill "KILL"
    ready = ipc.poll({ first, second }, peer.limit)
    assert.are.equal(1, #ready)
    assert.are.equal(second, ready[1])
    assert.are.same({ nil, "closed", E.EPIPE }, { second:recv(0) })
  end)

  it("writes what was accepted while it waits", function()
    local r, w = pipe { unit = "stream", capacity = peer.capacity(4096) }
    local sent = ("0123456789"):rep(10000)
    assert.is_true(w:send(sent, nil, 0))
    local child = fork(function() return #r:read "a" end)
    assert.is_nil(ipc.poll({ child }, 0.001)) -- if only its end is not there yet
    while w:stats().unsent > 0 do
      assert.are.same({ nil, "timeout", E.ETIMEDOUT }, { ipc.poll({ child }, 0.001) })
    end
    w:close()
    assert.is_true(ipc.poll({ child }, peer.limit)[child])
    assert.are.same({ true, #sent }, { child:wait() })
  end)

  it("raises on what it cannot wait for, naming the entry", function()
    local r, w = pipe()
    for entry, message in pairs {
      [false] = "entry 2: a handle expected, got boolean",
      [17] = "entry 2: a handle expected, got number",
      ["r"] = "entry 2: a handle expected, got string",
      [{}] = "entry 2: a handle expected, got table",
      [io.stdout] = "entry 2: a handle expected, got",
      [{ r }] = [[entry 2: "r", "w" or "rw" expected]],
      [{ r, "x" }] = [[entry 2: "r", "w" or "rw" expected]],
      [{ r, "" }] = [[entry 2: "r", "w" or "rw" expected]],
      [{ r, "w" }] = "entry 2: this end only receives",
      [{ w, "r" }] = "entry 2: this end only sends",
      [{ w, "rw" }] = "entry 2: this end only sends",
    } do
      assert.error_matches(function() ipc.poll({ r, entry }, 0) end,
        "^bad argument #1 to '.*poll' %(" .. message:gsub("%p", "%%%0"))
    end
    assert.error_matches(function() ipc.poll(r) end, "table expected")
    assert.error_matches(function() ipc.poll({ r }, "1") end, "seconds expected")
    assert.error_matches(function() ipc.poll({ r }, 0 / 0) end, "not a number")
    assert.are.same({ nil, "timeout", E.ETIMEDOUT }, { ipc.poll({ r }, 0) })
  end)

  it("goes far beyond 1,024 descriptors", function()
    local output = run([[
      local readers, writers, index = {}, {}, {}
      for i = 1, 2000 do
        local r, w = assert(ipc.pipe())
        readers[i], writers[i], index[r] = r, w, i
      end
      print(readers[2000]:pollfd() > 1024)
      print(ipc.poll(readers, 0))
      writers[1999]:send "x"
      local ready = ipc.poll(readers, 10)
      print(#ready, index[ready[1] ])
      for i = 1, 2000, 100 do writers[i]:send "y" end
      ready = ipc.poll(readers, 10)
      print(#ready, index[ready[1] ], index[ready[20] ], index[ready[21] ])
      print(ready[21]:recv(0), ready[20]:recv(0))
    ]], { shell = "ulimit -n 4200 || exit 77" })
    if output:find "limit" then
      return pending "needs a hard limit of 4,200 descriptors"
    end
    assert.are.equal("true\nnil\ttimeout\t" .. E.ETIMEDOUT
      .. "\n1\t1999\n21\t1\t1901\t1999\nx\ty\n", output)
  end)
end)

describe("ipc.poll and foreign objects", function()
  after_each(peer.clean)

  -- Watches the descriptor of a channel as a library of its own would.
  local function plain(channel, events, timeout)
    return { pollfd = channel:pollfd(), events = events, timeout = timeout }
  end

  local function methods(channel, events, timeout)
    return setmetatable({}, { __index = {
      pollfd = function(self) assert(type(self) == "table") return channel:pollfd() end,
      events = function() return events end,
      timeout = function() return timeout end,
    } })
  end

  for name, duck in pairs { ["plain members"] = plain, methods = methods } do
    it("waits for their descriptors: " .. name, function()
      local r1, w1 = pipe()
      local r2, w2 = pipe()
      local reading, writing = duck(r1, "r"), duck(w1, "w")
      assert.are.same({ nil, "timeout", E.ETIMEDOUT }, { ipc.poll({ reading, r2 }, 0) })
      local ready = ipc.poll({ reading, writing, r2 }, 0)
      assert.are.equal(1, #ready)
      assert.is_true(ready[writing])
      w1:send "x"
      w2:send "x"
      ready = ipc.poll({ r2, reading }, peer.limit)
      assert.are.equal(r2, ready[1])
      assert.are.equal(reading, ready[2])
    end)

    it("looks at them when their own time has come: " .. name, function()
      local r = pipe()
      local other = pipe()
      local timer = duck(r, "r", 0.02)
      local before = ipc.now()
      local ready = ipc.poll({ other, timer }, peer.limit)
      assert.is_true(ready[timer])
      assert.is_true(ipc.now() - before >= 0.02)
      timer = duck(r, "r", 0)
      ready = ipc.poll({ other, timer }, peer.limit)
      assert.are.equal(1, #ready)
      assert.is_true(ready[timer])
    end)
  end

  it("takes one whose timer counts down", function()
    local other = pipe()
    local due = ipc.now() + 0.03
    local timer = {
      pollfd = function() return -1 end,
      events = function() return nil end,
      timeout = function() return math.max(0, due - ipc.now()) end,
    }
    local ready = ipc.poll({ other, timer }, peer.limit)
    assert.is_true(ready[timer])
    assert.is_true(ipc.now() >= due)
  end)

  it("may replace entries and collect garbage while one is asked", function()
    local r, w = pipe()
    assert.is_true(w:send "x")
    local list
    local foreign = methods(r, "r")
    local index = getmetatable(foreign).__index
    local pollfd = index.pollfd
    function index.pollfd(self)
      list[1], list[3] = ipc.pipe()
      collectgarbage()
      collectgarbage()
      return pollfd(self)
    end
    list = { (ipc.pipe()), foreign, (ipc.pipe()) }
    assert.is_true(ipc.poll(list, peer.limit)[foreign])
  end)

  it("refuses events that are none", function()
    local r = pipe()
    assert.error_matches(function() ipc.poll({ plain(r, "x") }, 0) end,
      [[entry 1: "r", "w" or "rw" expected]])
  end)

  it("takes a socket of cqueues", function()
    local socket = require "cqueues.socket"
    local one, two = socket.pair()
    one:setmode("b", "bn")
    two:setmode("b", "bn")
    local r = pipe()
    assert.are.same({ nil, "timeout", E.ETIMEDOUT }, { ipc.poll({ r, { pollfd = two:pollfd(), events = "r" } }, 0) })
    one:write "x"
    local watch = { pollfd = two:pollfd(), events = "r" }
    assert.is_true(ipc.poll({ r, watch }, peer.limit)[watch])
    -- Itself, once a read has told it what it waits for.
    assert.are.equal("x", two:read(1))
    assert.is_nil((two:recv(1)))
    assert.are.same({ nil, "timeout", E.ETIMEDOUT }, { ipc.poll({ r, two }, 0) })
    one:write "y"
    assert.is_true(ipc.poll({ r, two }, peer.limit)[two])
    one:close()
    two:close()
  end)

  it("hears Ctrl-C that comes while it starts what is to wake it", function()
    local queue = ipc.queue { capacity = 4096 }
    if not queue then return pending "no rings here" end
    queue:close()
    local module = package.searchpath("spec.starting", package.cpath)
    assert.is_string(module, "make build/spec/starting.so")
    for _, call in ipairs { "ipc.poll, { ring, r }", "poller.wait, poller" } do
      local output = peer.run(([[
      local ring, writer = ipc.queue { capacity = 4096 }
      local r, w = ipc.pipe()
      local poller = ipc.poller()
      poller:add(ring)
      poller:add(r)
      local ok, problem = pcall(%s)
      print(ok, tostring(problem):match "interrupted!")
    ]]):format(call), { env = { LD_PRELOAD = (os.getenv "LD_PRELOAD" or "") .. " " .. module } })
      assert.are.equal("false\tinterrupted!\n", output, call)
    end
  end)

  it("takes a cqueues controller, and so runs its loop inside ours", function()
    local cqueues = require "cqueues"
    local loop = cqueues.new()
    local r = pipe()
    local ran = false
    loop:wrap(function()
      cqueues.sleep(0.02)
      ran = true
    end)
    loop:step(0)
    local deadline = ipc.now() + peer.limit
    while not ran and ipc.now() < deadline do
      local ready = ipc.poll({ r, loop }, peer.limit)
      assert.is_true(ready[loop])
      assert(loop:step(0))
    end
    assert.is_true(ran)
  end)
end)

describe("ipc.poll in tasks of cqueues", function()
  local cqueues = require "cqueues"
  local tasks

  before_each(function()
    tasks = setmetatable({}, { __mode = "k" })
    ipc.scheduler {
      is_task = function(thread) return tasks[thread] end,
      wait = cqueues.poll,
      cancel = cqueues.cancel,
    }
  end)

  after_each(function()
    ipc.scheduler(nil)
    peer.clean()
  end)

  local function run_tasks(...)
    local loop = cqueues.new()
    for _, fn in ipairs { ... } do
      loop:wrap(function()
        tasks[coroutine.running()] = true
        fn()
      end)
    end
    assert(loop:loop(peer.limit))
    assert.is_true(loop:empty(), "a task did not end")
  end

  it("yields: other tasks run meanwhile", function()
    local r1, w1 = pipe()
    local r2, w2 = pipe()
    local order = {}
    run_tasks(function()
      for _ = 1, 2 do
        local ready = ipc.poll({ r1, r2 }, peer.limit)
        order[#order + 1] = names(ready, { [r1] = "r1", [r2] = "r2" })
        ready[1]:recv(0)
      end
    end, function()
      order[#order + 1] = "to r2"
      w2:send "x"
      while #order < 2 do cqueues.sleep(0) end
      order[#order + 1] = "to r1"
      w1:send "x"
    end)
    assert.are.same({ "to r2", "r2", "to r1", "r1" }, order)
  end)

  it("ends at its deadline", function()
    local r = pipe()
    local result
    local before = ipc.now()
    run_tasks(function() result = { ipc.poll({ r }, 0.03) } end)
    assert.are.same({ nil, "timeout", E.ETIMEDOUT }, result)
    assert.is_true(ipc.now() - before >= 0.03)
  end)

  it("finds a handle that another task closes ready", function()
    local r = pipe()
    local ready
    run_tasks(function()
      ready = assert(ipc.poll({ r }, peer.limit))
    end, function()
      r:close()
    end)
    assert.is_true(ready[r])
  end)

  it("finds what another task has read ahead and left", function()
    local r, w = pipe()
    local ready
    run_tasks(function()
      ready = assert(ipc.poll({ r }, peer.limit))
    end, function()
      w:sendmany { "1", "2", "3" }
      assert(r:recv(peer.limit) == "1")
    end)
    assert.is_true(ready[r])
    assert.are.equal("2", r:recv(0))
  end)

  it("leaves no task behind when several wait for one channel", function()
    local r, w = pipe()
    local got = {}
    local function taker()
      while true do
        assert(ipc.poll({ r }, peer.limit))
        local message, why = r:recv(0)
        if message then
          got[#got + 1] = message
        elseif why == "closed" then
          return
        end
      end
    end
    run_tasks(taker, taker, taker, function()
      for i = 1, 50 do
        w:send(tostring(i))
        if i % 7 == 0 then cqueues.sleep(0) end
      end
      w:close()
    end)
    assert.are.equal(50, #got)
  end)

  it("waits for a hundred handles in a hundred tasks", function()
    local sum, fns = 0, {}
    local ends = {}
    for i = 1, 100 do
      local r, w = pipe()
      ends[i] = w
      fns[i] = function()
        local ready = assert(ipc.poll({ r }, peer.limit))
        sum = sum + ready[1]:get(0)
      end
    end
    fns[#fns + 1] = function()
      for i = 100, 1, -1 do
        ends[i]:put(i)
        cqueues.sleep(0)
      end
    end
    run_tasks(table.unpack(fns))
    assert.are.equal(5050, sum)
  end)

  it("takes the objects of cqueues: sockets and conditions", function()
    local condition = require "cqueues.condition".new()
    local r, w = pipe()
    local first, second
    run_tasks(function()
      first = ipc.poll({ r, condition }, peer.limit)
      second = ipc.poll({ r, condition }, peer.limit)
    end, function()
      cqueues.sleep(0.001)
      condition:signal()
      cqueues.sleep(0.001)
      w:send "x"
    end)
    assert.is_true(first[condition])
    assert.is_nil(first[r])
    assert.is_true(second[r])
    assert.is_nil(second[condition])
  end)

  it("ends at its deadline when all objects are foreign", function()
    local condition = require "cqueues.condition".new()
    local result
    run_tasks(function() result = { ipc.poll({ condition }, 0.02) } end)
    assert.are.same({ nil, "timeout", E.ETIMEDOUT }, result)
  end)

  it("waits for a child's end", function()
    local ready, result
    run_tasks(function()
      local child = fork(function()
        ipc.parent:recv()
        return "over"
      end)
      child:send "go"
      ready = assert(ipc.poll({ child }, peer.limit))[child]
      result = { child:wait(peer.limit) }
    end)
    assert.is_true(ready)
    assert.are.same({ true, "over" }, result)
  end)
end)

local scheduler = require "spec.support.scheduler"

local TIMEOUT = { nil, "timeout", E.ETIMEDOUT }

local function poller(...)
  local p = peer.keep(assert(ipc.poller()))
  for _, object in ipairs { ... } do assert.is_true(p:add(object)) end
  return p
end

-- What is ready now, by the names in `of`, in alphabetical order.
local function now(p, of)
  local ready, how = p:wait(0)
  local list = {}
  for i, object in ipairs(ready or {}) do
    list[i] = (of[object] or "stranger") .. ":" .. how[i]
    if type(object) ~= "number" then assert.are.equal(how[i], ready[object]) end
  end
  table.sort(list)
  return table.concat(list, " ")
end

describe("ipc.poller", function()
  after_each(peer.clean)

  it("answers what is ready, for what, as long as it is", function()
    local a, b = peer.pair "unix"
    local r, w = pipe()
    local p = poller(r, a)
    assert.is_true(p:add(b, "rw"))
    local of = { [r] = "r", [a] = "a", [b] = "b" }
    assert.are.equal(3, #p)
    for _ = 1, 2 do assert.are.equal("b:w", now(p, of)) end
    a:send "x"
    w:send "x"
    for _ = 1, 3 do assert.are.equal("b:rw r:r", now(p, of)) end
    assert.are.equal("x", b:recv(0))
    assert.are.equal("x", r:recv(0))
    assert.are.equal("b:w", now(p, of))
    assert.is_true(p:modify(b, "r"))
    assert.are.same(TIMEOUT, { p:wait(0) })
    assert.is_true(p:remove(r))
    w:send "y"
    local before = ipc.now()
    assert.are.same(TIMEOUT, { p:wait(0.02) })
    assert.is_true(ipc.now() - before >= 0.02)
    assert.are.equal(2, #p)
  end)

  it("tells of messages that were read ahead, and not of half ones", function()
    local r, w = pipe()
    local p = poller(r)
    w:sendmany { "1", "2", "3" }
    for i = 1, 3 do
      assert.are.equal(r, assert(p:wait(peer.limit))[1])
      assert.are.equal(tostring(i), r:recv(0))
    end
    assert.are.same(TIMEOUT, { p:wait(0) })
    if not peer.has_proc then return end
    local raw = assert(io.open(peer.path(w), "wb"))
    raw:setvbuf "no"
    for _, piece in ipairs { "\0", "\0\0\5", "he", "ll" } do
      raw:write(piece)
      assert.are.same(TIMEOUT, { p:wait(0.001) })
    end
    raw:write "o"
    raw:close()
    assert.are.equal(r, assert(p:wait(peer.limit))[1])
    assert.are.equal("hello", r:recv(0))
  end)

  it("tells each of two pollers what the other has read ahead in looking", function()
    local r, w = pipe()
    local one, two = poller(r), poller(r)
    w:sendmany { "1", "2" }
    assert.is_true(one:wait(0)[r] == "r" and two:wait(0)[r] == "r")
    assert.is_true(ipc.poll({ r }, 0)[r] and one:wait(0)[r] == "r")
    assert.are.equal("1", r:recv(0))
    assert.is_true(one:wait(0)[r] == "r" and two:wait(0)[r] == "r")
    assert.are.equal("2", r:recv(0))
    assert.is_nil((one:wait(0)))
    assert.is_nil((two:wait(0)))
  end)

  it("tells once, and then not before modify", function()
    local r, w = pipe()
    local p = poller()
    assert.is_true(p:add(r, "r", true))
    w:send "1"
    assert.are.equal(r, assert(p:wait(peer.limit))[1])
    w:send "2"
    assert.are.same(TIMEOUT, { p:wait(0) })
    assert.are.equal("1", r:recv(0))
    assert.are.same(TIMEOUT, { p:wait(0) })
    assert.is_true(p:modify(r, "r", true))
    assert.are.equal(r, assert(p:wait(0))[1])
    assert.are.same(TIMEOUT, { p:wait(0) })
    w:close() -- a hang-up does not wake it either
    assert.are.same(TIMEOUT, { p:wait(0) })
    assert.is_true(p:modify(r))
    for _ = 1, 2 do assert.are.equal(r, assert(p:wait(0))[1]) end
    assert.is_true(p:modify(r, nil, true))
    assert.is_truthy(p:wait(0))
    r:close() -- its end does
    assert.are.equal(r, assert(p:wait(0))[1])
    assert.are.equal(0, #p)
  end)

  it("gives all their turn, a few at a time", function()
    local p = poller()
    for i = 1, 12 do
      local r, w = pipe()
      w:sendmany { "x", "y" }
      if i % 2 == 0 then assert(r:recv()) end -- half of them are read ahead
      p:add(r)
    end
    local seen, count = {}, 0
    for _ = 1, 100 do
      local ready = assert(p:wait(0, 5))
      assert.is_true(#ready <= 5)
      for _, r in ipairs(ready) do
        count = count + (seen[r] and 0 or 1)
        seen[r] = true
      end
    end
    assert.are.equal(12, count)
    assert.are.equal(12, #p:wait(0))
  end)

  it("tells the end of a handle once, and forgets it", function()
    local r, w = pipe()
    local r2 = pipe()
    local p = poller(r, w, r2)
    r:close()
    local of = { [r] = "r", [w] = "w" }
    assert.are.equal("r:r w:w", now(p, of))
    assert.are.equal("w:w", now(p, of))
    w:close()
    assert.are.equal("w:w", now(p, of))
    assert.are.equal("", now(p, of))
    assert.are.equal(1, #p)
    assert.is_true(p:add(r)) -- as it would be found by ipc.poll
    assert.are.equal("r:r", now(p, of))
    assert.are.equal(1, #p)
    assert.are.same({ nil, "ipc.poller.remove: it is not in there: No such file or directory", E.ENOENT },
      { p:remove(r) })
  end)

  it("forgets a handle although a child shares its descriptor", function()
    local r, w = pipe()
    local copy = peer.keep(r:dup())
    local p = poller(r, copy)
    local child = fork(function() return ipc.parent:recv(peer.limit), r end, copy)
    local of = { [r] = "r", [copy] = "copy" } -- one moved to the child, one was an upvalue
    assert.are.equal("copy:r r:r", now(p, of))
    assert.are.equal(0, #p)
    local again = poller()
    local r2, w2 = pipe()
    again:add(r2)
    local stuck = fork(function() ipc.parent:recv(peer.limit) end) -- has all that we have
    w2:send "x"
    r2:close()
    assert.are.equal(1, #again:wait(0))
    assert.are.same(TIMEOUT, { again:wait(0.01) })
    w:close()
    child:send "end"
    stuck:send "end"
  end)

  it("takes descriptors, which tell for themselves", function()
    local r, w = pipe()
    local p = poller()
    local fd, other = r:pollfd(), w:pollfd()
    assert.is_true(p:add(fd))
    assert.is_true(p:add(other, "rw", true))
    local of = { [fd] = "fd", [other] = "other", [r] = "r" }
    assert.are.equal("other:w", now(p, of))
    assert.are.equal("", now(p, of))
    assert.is_true(p:add(r)) -- the same one twice
    w:send "x"
    assert.are.equal("fd:r r:r", now(p, of))
    assert.are.equal("r:r", now(p, of)) -- that has read it
    assert.is_true(p:remove(r))
    w:send "y"
    assert.are.equal("fd:r", now(p, of))
    assert.are.same(E.EEXIST, select(3, p:add(fd)))
    assert.are.same(E.ENOENT, select(3, p:modify(fd + 1000)))
    assert.are.same(E.EBADF, select(3, p:add(100000)))
    assert.are.equal(2, #p)
  end)

  it("calls a regular file ready, as poll(2) does", function()
    if not peer.has_proc then return pending "needs /proc" end
    local file <close> = assert(io.open "spec/poller_spec.lua")
    local fd
    for n = 3, 100 do
      local link <close> = peer.popen(("readlink /proc/%d/fd/%d"):format(ipc.pid(), n))
      if (link:read "a"):find "poller_spec" then fd = n end
    end
    local p = poller(fd)
    for _ = 1, 2 do assert.are.equal("fd:r", now(p, { [fd] = "fd" })) end
    assert.is_true(p:remove(fd))
    assert.are.same(TIMEOUT, { p:wait(0) })
    assert(file:read(0))
  end)

  it("waits for everything that can be waited for at once", function()
    local things, of = {}, {}
    local function thing(name, handle, make, take)
      things[#things + 1] = { name = name, handle = handle, make = make, take = take }
      of[handle] = name
    end
    for _, mechanism in ipairs(ipc.mechanisms()) do
      local r, w = peer.pair(mechanism.address)
      if mechanism.address:find "^sysv" or mechanism.address:find "^mqueue" then r:recv(0) end
      thing(mechanism.address, r, function() assert(w:send "x") end, function() return r:recv() end)
    end
    local l = peer.keep(assert(ipc.listen "tcp:127.0.0.1:0"))
    thing("listener", l, function() peer.keep(assert(ipc.connect(l:address()))) end,
      function() return peer.keep(l:accept(peer.limit)) end)
    if peer.has "shm" then
      local e = peer.keep(assert(ipc.event(nil, { auto = true })))
      thing("event", e, function() e:set() end, function() return e:wait(peer.limit) end)
    end
    local s = peer.keep(assert(ipc.signals { "USR1" }))
    thing("signals", s, function() os.execute("kill -USR1 " .. ipc.pid()) end, function() return s:recv() end)
    local child = fork(function()
      for n in ipc.parent:values() do ipc.parent:put(n) end
    end)
    thing("child", child, function() child:put(1) end, function() return child:get() end)
    local inner_r, inner_w = pipe()
    local inner = poller(inner_r)
    thing("inner", inner, function() inner_w:send "x" end, function() return inner_r:recv() end)
    local t = peer.keep(assert(ipc.timer { after = 3600 }))
    local p = poller(t)
    for _, it in ipairs(things) do assert.is_true(p:add(it.handle)) end
    assert.are.equal("", now(p, of))
    assert.are.same(TIMEOUT, { p:wait(0.005) })
    for _ = 1, 2 do
      for _, it in ipairs(things) do
        it.make()
        local ready = assert(p:wait(peer.limit))
        assert.are.equal(it.name, names(ready, of))
        assert.are.equal("r", ready[it.handle])
        assert.is_truthy((it.take()), it.name)
        assert.are.equal("", now(p, of), it.name)
      end
    end
  end)

  it("tells the end of a process apart from its messages", function()
    local child = fork(function()
      ipc.parent:put "message"
      ipc.parent:recv()
    end)
    local exited = peer.keep(child:exited())
    local p = poller(child, exited)
    local of = { [child] = "child", [exited] = "exited" }
    assert.are.equal("child", names(assert(p:wait(peer.limit)), of))
    assert.are.equal("message", child:get(0))
    assert.are.same(TIMEOUT, { p:wait(0) })
    child:kill "KILL"
    repeat until names(assert(p:wait(peer.limit)), of):find "exited"
    assert.are.equal("child:r exited:r", now(p, of))
    assert.is_nil((child:wait(0)))
  end)

  it("is polled by ipc.poll, another poller, and a foreign loop", function()
    local r, w = pipe()
    local inner = poller(r)
    local outer = poller(inner)
    local outermost = poller(outer)
    assert.are.same(TIMEOUT, { outermost:wait(0) })
    assert.are.same(TIMEOUT, { ipc.poll({ outer }, 0.001) })
    w:sendmany { "1", "2" }
    for _ = 1, 2 do
      assert.are.equal(outer, assert(outermost:wait(peer.limit))[1])
      assert.is_true(ipc.poll({ outer }, 0)[outer])
      assert.are.equal(0, inner:timeout())
      assert.is_string(r:recv(0))
    end
    assert.are.same(TIMEOUT, { outermost:wait(0) })
    local fd = inner:pollfd()
    if fd then
      w:send "3"
      assert.is_truthy(ipc.poll({ { pollfd = fd, events = "r" } }, peer.limit))
    end
    for _, circle in ipairs { outer, inner, outermost } do
      assert.are.equal(E.ELOOP, (select(3, inner:add(circle))))
    end
    inner:close()
    assert.are.equal(outer, assert(outermost:wait(0))[1])
    assert.are.equal(inner, assert(outer:wait(0))[1])
    assert.are.same(TIMEOUT, { outermost:wait(0) })
  end)

  it("asks foreign objects at each wait", function()
    local r, w = pipe()
    local due = ipc.now() + 0.02
    local p, timer = poller(), {
      pollfd = function() return nil end,
      events = function() return nil end,
      timeout = function() return due and math.max(0, due - ipc.now()) end,
    }
    local plain = { pollfd = r:pollfd(), events = "r" }
    assert.is_true(p:add(timer) and p:add(plain))
    local ready, how = p:wait(peer.limit)
    assert.are.same({ { timer, [timer] = "" }, { "" } }, { ready, how })
    assert.is_true(ipc.now() >= due)
    due = nil
    w:send "x"
    assert.are.equal("r", assert(p:wait(peer.limit))[plain])
    plain.pollfd = w:pollfd()
    assert.are.same(TIMEOUT, { p:wait(0) })
    plain.events = "x"
    assert.error_matches(function() p:wait(0) end, '"r", "w" or "rw" expected')
    assert.error_matches(function() p:add({ pollfd = 1 }, "r") end, "the object itself says")
  end)

  it("lets the time of a foreign object come that always says the same", function()
    local p, steady = poller(), { pollfd = function() end, timeout = 0.005 }
    assert.is_true(p:add(steady))
    for _ = 1, 2 do
      local start = ipc.now()
      assert.are.equal(steady, assert(p:wait(peer.limit))[1])
      assert.is_true(ipc.now() - start >= 0.005) -- not that of the wait before
    end
    assert.are.same(TIMEOUT, { p:wait(0) })
    steady.timeout = nil
    assert.are.same(TIMEOUT, { p:wait(0.01) })
  end)

  it("raises on what it cannot wait for, naming the argument", function()
    local r, w = pipe()
    local p = poller(r)
    for _, entry in ipairs { false, "r", {}, io.stdout, 1.5, -1, 1 << 40 } do
      assert.error_matches(function() p:add(entry) end, "^bad argument #1 to 'add'")
    end
    assert.error_matches(function() p:add() end, "^bad argument #1 to 'add'")
    for events in pairs { [""] = 1, x = 1, [1] = 1, [true] = 1 } do
      assert.error_matches(function() p:add(w, events) end, "^bad argument #2 to 'add'")
    end
    assert.error_matches(function() p:add(r, "w") end, "only receives")
    assert.error_matches(function() p:add(w, "rw") end, "only sends")
    assert.error_matches(function() p:modify(r, "w") end, "only receives")
    assert.error_matches(function() p:add(w, "w", 1) end, "^bad argument #3 to 'add' %(boolean")
    assert.error_matches(function() p:wait "1" end, "seconds expected")
    assert.error_matches(function() p:wait(0 / 0) end, "not a number")
    assert.error_matches(function() p:wait(0, 0) end, "1 or more")
    assert.error_matches(function() p.wait(r) end, "ipc.poller expected")
    assert.are.equal(1, #p)
    p:close()
    for _, call in ipairs { "add", "modify", "remove", "wait" } do
      assert.are.same({ nil, "closed", E.EPIPE }, { p[call](p, call == "wait" and 0 or r) })
    end
    assert.are.equal(0, #p)
    assert.is_true(p:close())
  end)

  it("is closed in a forked child, and left alone by it", function()
    local r, w = pipe()
    local p = poller(r)
    local child = fork(function()
      local answer = { p:wait(0) }
      local own = assert(ipc.poller())
      local r2, w2 = ipc.pipe()
      own:add(r2)
      w2:send "x"
      return answer[3], #assert(own:wait(10)), p:close()
    end)
    assert.are.same({ true, E.ECHILD, 1, true }, { child:wait(peer.limit) })
    require("spec.peer").fork(function()
      p:remove(r)
      p:close()
      r:close()
      collectgarbage()
    end)
    w:send "x"
    assert.are.equal(r, assert(p:wait(peer.limit))[1])
  end)

  it("bears finalisers that change it while it answers", function()
    local p, all = poller(), {}
    for i = 1, 100 do
      local r, w = pipe()
      w:send "x"
      all[i] = r
      p:add(r)
    end
    for round = 1, 200 do
      setmetatable({}, { __gc = function()
        local r = all[round % 100 + 1]
        local what = round % 4
        if what == 0 then p:remove(r) elseif what == 1 then p:add(r) end
        if what == 2 then p:wait(0, 7) elseif what == 3 then r:close() end
      end })
      p:wait(0, 40)
      if round % 10 == 0 then collectgarbage() end
    end
    setmetatable({}, { __gc = function() p:close() end })
    collectgarbage()
    assert.are.same({ nil, "closed", E.EPIPE }, { p:wait(0) })
  end)

  it("costs what is ready, not what is there: 10,000 descriptors", function()
    local output = run([[
      local p = assert(ipc.poller())
      local readers, writers = {}, {}
      for i = 1, 5000 do
        local r, w = assert(ipc.pipe())
        readers[i], writers[i] = r, w
        assert(p:add(r) and p:add(w:pollfd(), "w", true))
      end
      local ready = p:wait(10)
      print(#ready, #p)
      print(p:wait(0))
      writers[4999]:send "x"
      writers[7]:send "y"
      ready = p:wait(10)
      print(#ready, ready[readers[7] ], ready[readers[4999] ])
      print(readers[7]:recv(0), readers[4999]:recv(0), (p:wait(0)))
      for i = 1, 5000 do readers[i]:close() end
      print(#p:wait(0), #p)
    ]], { shell = "ulimit -n 10500 || exit 77" })
    if output:find "limit" then return pending "needs a hard limit of 10,500 descriptors" end
    assert.are.equal("5000\t10000\nnil\ttimeout\t" .. E.ETIMEDOUT
      .. "\n2\tr\tr\ny\tx\tnil\n5000\t5000\n", output)
  end)
end)

describe("ipc.poller in tasks", function()
  after_each(function()
    ipc.scheduler(nil)
    peer.clean()
  end)

  it("yields, and hears what others read ahead, add, close", function()
    local r, w = pipe()
    local late, late_w = pipe()
    local p, order = poller(r), {}
    local loop = scheduler.new()
    loop:go(function()
      order[#order + 1] = assert(p:wait(peer.limit))[1] == r and "read ahead"
      assert(r:recv(0) == "2")
      order[#order + 1] = assert(p:wait(peer.limit))[1] == late and "added"
      assert(late:recv(0))
      order[#order + 1] = assert(p:wait(peer.limit))[1] == r and "closed"
      order[#order + 1] = select(2, p:wait(0.01))
      order[#order + 1] = select(2, p:wait(peer.limit))
    end)
    loop:go(function()
      w:sendmany { "1", "2" }
      assert(r:recv(0) == "1")
      while #order < 1 do ipc.sleep(0.001) end
      late_w:send "x"
      p:add(late)
      while #order < 2 do ipc.sleep(0.001) end
      r:close()
      while #order < 4 do ipc.sleep(0.001) end
      p:close()
    end)
    loop:run(peer.limit)
    assert.are.same({ "read ahead", "added", "closed", "timeout", "closed" }, order)
  end)

  it("wakes its own waiters, though it is in another", function()
    for _, change in ipairs { "read ahead", "close" } do
      local r, w = pipe()
      local inner = poller(r)
      poller(inner)
      ipc.loop.run(function()
        local waits = false
        local task = ipc.loop.go(function()
          waits = true
          return assert(inner:wait())[1]
        end)
        while not waits do ipc.sleep(0.001) end
        w:sendmany { "1", "2" }
        assert.are.equal("1", r:recv(0)) -- and nothing is left in the kernel
        if change == "close" then r:close() end
        assert.are.same({ true, r }, { task:wait(peer.limit) })
      end)
    end
  end)

  it("lets the time of a foreign object come", function()
    local steady, got = { pollfd = function() end, timeout = 0.005 }, nil
    local p, loop = poller(), scheduler.new()
    assert.is_true(p:add(steady))
    loop:go(function() got = assert(p:wait(peer.limit))[1] end)
    loop:run(peer.limit)
    assert.are.equal(steady, got)
  end)

  it("wakes the task that waits for what the poller has read ahead", function()
    local r, w = pipe()
    local inner = poller(r)
    local outer, got = poller(inner), nil
    local loop = scheduler.new()
    loop:go(function() got = r:recv(peer.limit) end)
    loop:step()
    w:sendmany { "1", "2" }
    assert.is_truthy(outer:wait(0))
    loop:run(peer.limit)
    assert.are.equal("1", got)
  end)
end)
