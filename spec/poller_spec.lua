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
