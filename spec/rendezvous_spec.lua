-- Listening and connecting where the mechanism has neither: FIFOs, queues and
-- shared memory.
local ipc = require "ipc"
local peer = require "spec.support.peer"
local with = require "spec.support.with"

local E = ipc.errno
local PATIENCE = with.patience

local function fresh(scheme) return peer.address(scheme, "rendezvous") end

-- scheme -> a new address, and the names in the system that belong to it. `lobby`:
-- clients say hello where anybody may write.
local schemes = {
  {
    name = "fifo",
    address = function() return fresh "fifo" end,
    leftovers = function()
      return (with.shell(("ls -d /tmp/ipc-rendezvous-%d-* 2>/dev/null"):format(ipc.pid())))
    end,
    liveness = true, lobby = true,
  },
  {
    name = "sysv",
    address = function() return fresh "sysv" end,
    leftovers = function()
      return (with.shell(("awk '$6 == %d || $7 == %d' /proc/sysvipc/msg 2>/dev/null"):format(ipc.pid(), ipc.pid())))
    end,
    lobby = true,
  },
  {
    name = "mqueue",
    address = function() return fresh "mqueue" end,
    leftovers = function() return "" end, -- not listed anywhere; see the limit below
    lobby = true,
  },
  {
    name = "shm",
    address = function() return fresh "shm" end,
    leftovers = function()
      return (with.shell(("ls -A /dev/shm /tmp | grep ipc-rendezvous-%d-"):format(ipc.pid())))
    end,
    liveness = true,
  },
}

local has = {}
for _, row in ipairs(ipc.mechanisms()) do has[row.room] = true end

for _, scheme in ipairs(schemes) do
  if has[scheme.name] then
    describe("a listener of " .. scheme.name .. ":", function()
      after_each(with.cleanup)

      local function close(...)
        for _, object in ipairs { ... } do
          if type(object) == "table" then
            with.close(setmetatable({}, { __gc = function() object:close() end }))
          else
            with.close(object)
          end
        end
        return ...
      end

      it("gives each client a channel of its own", function()
        local address = scheme.address()
        local l = close(assert(ipc.listen(address)))
        assert.are.equal(address, l:address())
        local children = {}
        for i = 1, 4 do
          children[i] = with.fork(function()
            local server <close> = assert(ipc.connect(address, { timeout = PATIENCE }))
            for k = 1, 20 do
              assert(server:put { i, k })
              assert((server:get(PATIENCE)) == i * k)
            end
            return "done"
          end)
        end
        local clients = {}
        for i = 1, 4 do clients[i] = close(assert(l:accept(PATIENCE))) end
        local left = 80
        while left > 0 do
          for _, client in ipairs(assert(ipc.poll(clients, PATIENCE))) do
            local value = client:get(0)
            if value then
              assert(client:put(value[1] * value[2]))
              left = left - 1
            end
          end
        end
        for i = 1, 4 do assert.are.same({ true, "done" }, { children[i]:wait(PATIENCE) }) end
        assert.are.equal(4, l:stats().accepted)
        assert.are.equal(0, l:stats().refused)
      end)

      it("accept has a deadline, and a poll set tells of a client", function()
        local address = scheme.address()
        local l = close(assert(ipc.listen(address)))
        assert.are.same({ nil, "timeout", E.ETIMEDOUT }, { l:accept(0) })
        assert.are.same({ nil, "timeout", E.ETIMEDOUT }, { ipc.poll({ l }, 0) })
        local child = with.fork(function()
          local server <close> = assert(ipc.connect(address, { timeout = PATIENCE }))
          return (server:recv(PATIENCE))
        end)
        assert.is_true(assert(ipc.poll({ l }, PATIENCE))[l])
        local client = close(assert(l:accept(0)))
        assert(client:send "found")
        assert.are.same({ true, "found" }, { child:wait(PATIENCE) })
      end)

      it("connect waits for a listener if asked, else answers", function()
        local address = scheme.address()
        local _, _, errno = ipc.connect(address)
        assert.is_true(errno == E.ENOENT or errno == E.ENXIO)
        assert.are.equal("timeout", (select(2, ipc.connect(address, { retry = 0.01 }))))
        local child = with.fork(function()
          local server <close> = assert(ipc.connect(address, { retry = PATIENCE, timeout = PATIENCE }))
          return (server:recv(PATIENCE))
        end)
        local l = close(assert(ipc.listen(address)))
        local client = close(assert(l:accept(PATIENCE)))
        assert(client:send "at last")
        assert.are.same({ true, "at last" }, { child:wait(PATIENCE) })
      end)

      it("a client that nobody accepts ends by its deadline, and is refused later", function()
        local address = scheme.address()
        local l = close(assert(ipc.listen(address)))
        local limit = ipc.now() + PATIENCE
        repeat -- one that has no time for its hello is not noticed
          assert.are.equal("timeout", (select(2, ipc.connect(address, { timeout = 0.05 }))))
          assert.are.same({ nil, "timeout", E.ETIMEDOUT }, { l:accept(0.01) })
        until l:stats().refused > 0 or ipc.now() > limit
        assert.are.equal(1, l:stats().refused)
      end)

      local lobby_it = scheme.lobby and it or function() end

      lobby_it("what is no hello is refused, whatever it is", function()
        local address = scheme.address()
        local l = close(assert(ipc.listen(address)))
        local lobby = close(assert(ipc.open(address, "w", { create = false })))
        local bad = { true, 7, "x", {}, { "../../etc/passwd" }, { -1 }, { "no-such-client" }, { 2147483647 } }
        for _, hello in ipairs(bad) do assert(lobby:put(hello, nil, PATIENCE)) end
        assert(lobby:send("\xc1 no value", nil, PATIENCE))
        for _ = 0, #bad do -- one at least each time
          assert.are.same({ nil, "timeout", E.ETIMEDOUT }, { l:accept(0.01) })
        end
        assert.are.equal(#bad + 1, l:stats().refused)
      end)

      it("leaves no name behind: not of a client, not its own, not of one killed", function()
        local before = scheme.leftovers()
        local address = scheme.address()
        local l = assert(ipc.listen(address))
        local child = with.fork(function()
          local server = assert(ipc.connect(address, { timeout = PATIENCE }))
          server:send "here"
          ipc.sleep(PATIENCE)
        end)
        local client = assert(l:accept(PATIENCE))
        assert.are.equal("here", (client:recv(PATIENCE)))
        if scheme.name == "fifo" then -- both have it: the names are gone already
          assert.are.equal(address:match ":(.*)" .. "\n", scheme.leftovers())
        end
        child:kill "KILL"
        child:wait(PATIENCE)
        if scheme.liveness then
          assert.are.same({ nil, "closed", E.EPIPE }, { client:recv(PATIENCE) })
        end
        client:close()
        l:close()
        assert.are.equal(before, scheme.leftovers())
        assert.are.same({ nil, "closed", E.EPIPE }, { l:accept(0) })
        assert.is_true(l:close())
      end)

      it("options are checked at once, by both sides", function()
        local address = scheme.address()
        for name, call in pairs { listen = ipc.listen, connect = ipc.connect } do
          assert.error_matches(function() call(address, { bogus = 1 }) end,
            "bad argument #2 to '" .. name .. "' %(unknown option 'bogus'%)")
          local wrong = {
            timeout = "x", retry = "x", maxsize = {}, create = 7, temporary = 1,
            permissions = true, keepalive = "no",
          }
          for option, value in pairs(wrong) do
            assert.error_matches(function() call(address, { [option] = value }) end,
              "bad argument #2 to '" .. name .. "' %(.-" .. option)
          end
        end
        assert.is_nil((ipc.connect(address))) -- nothing was made
      end)

      it("timeouts are checked as the core does", function()
        local l = close(assert(ipc.listen(scheme.address())))
        for _, call in ipairs { "accept", "settimeout" } do
          for _, bad in ipairs { "0.1", {}, true } do
            assert.error_matches(function() l[call](l, bad) end,
              "bad argument #1 to '" .. call .. "' %(seconds expected, got " .. type(bad))
          end
          assert.error_matches(function() l[call](l, 0 / 0) end, "timeout is not a number")
        end
        assert.is_true(l:settimeout(0))
        assert.are.same({ nil, "timeout", E.ETIMEDOUT }, { l:accept() })
      end)

      it("a closed one has no address", function()
        local l = assert(ipc.listen(scheme.address()))
        l:close()
        assert.are.same({ nil, "closed", E.EPIPE }, { l:address() })
      end)

      lobby_it("accept looks at its deadline after each that it refuses", function()
        local address = scheme.address()
        local l = close(assert(ipc.listen(address)))
        local lobby = close(assert(ipc.open(address, "w", { create = false })))
        for _ = 1, 3 do assert(lobby:put("no hello", nil, PATIENCE)) end
        for i = 1, 3 do
          assert.are.same({ nil, "timeout", E.ETIMEDOUT }, { l:accept(0) })
          assert.are.equal(i, l:stats().refused)
        end
      end)

      it("connect notices that the listener has gone before it accepted", function()
        local address = scheme.address()
        local l = assert(ipc.listen(address))
        local child = with.fork(function()
          local server, _, errno = ipc.connect(address, { timeout = PATIENCE })
          return server == nil, errno
        end)
        assert.is_true(assert(ipc.poll({ l }, PATIENCE))[l]) -- it has said hello
        l:close()
        assert.are.same({ true, true, E.ECONNREFUSED }, { child:wait(PATIENCE) })
      end)

      it("a connection moves whole: the worker that has it ends it", function()
        local address = scheme.address()
        local l = close(assert(ipc.listen(address)))
        local child = with.fork(function()
          local server <close> = assert(ipc.connect(address, { timeout = PATIENCE }))
          assert(server:put { 6, 7 })
          local product = server:get(PATIENCE)
          assert(server:send "go")
          local limit = ipc.now() + PATIENCE
          local _, message
          repeat
            _, message = server:send("more", nil, 0.01)
          until message == "closed" or scheme.name == "mqueue" or ipc.now() > limit
          return product, message
        end)
        local client = close(assert(l:accept(PATIENCE)))
        local worker = with.fork(function()
          local pair = assert(client:get(PATIENCE))
          assert(client:put(pair[1] * pair[2]))
          assert(client:recv(PATIENCE) == "go")
          client:close()
          return "ended"
        end)
        assert.error_matches(function() client:recv(0) end, "moved to")
        assert.are.same({ true, "ended" }, { worker:wait(PATIENCE) })
        local ok, product, message = child:wait(PATIENCE)
        assert.are.same({ true, 42 }, { ok, product })
        if scheme.name ~= "mqueue" then assert.are.equal("closed", message) end
      end)

      it("what has been read ahead moves with it", function()
        local address = scheme.address()
        local l = close(assert(ipc.listen(address)))
        local child = with.fork(function()
          local server <close> = assert(ipc.connect(address, { timeout = PATIENCE }))
          assert(server:send "in hand")
          return (server:recv(PATIENCE))
        end)
        local client = close(assert(l:accept(PATIENCE)))
        assert.is_true(assert(ipc.poll({ client }, PATIENCE))[client]) -- takes it, perhaps
        local worker = with.fork(function() return client:send((client:recv(PATIENCE))) end)
        assert.are.same({ true, true }, { worker:wait(PATIENCE) })
        assert.are.same({ true, "in hand" }, { child:wait(PATIENCE) })
      end)

      it("a poll set takes it with its events, and no others", function()
        local l = close(assert(ipc.listen(scheme.address())))
        assert.are.same({ nil, "timeout", E.ETIMEDOUT }, { ipc.poll({ { l, "r" } }, 0) })
        assert.error_matches(function() ipc.poll({ { l, "w" } }, 0) end, 'entry 1: waits for "r" only')
        assert.error_matches(function() ipc.poll({ { l } }, 0) end, 'entry 1: "r", "w" or "rw" expected')
        l:close()
        local ready = assert(ipc.poll({ { l, "r" } }, PATIENCE)) -- accept answers closed
        assert.is_true(ready[l])
      end)

      it("closing it wakes the task that polls it", function()
        local cqueues = require "cqueues"
        ipc.scheduler {
          is_task = function() return select(2, cqueues.running()) end,
          wait = cqueues.poll, cancel = cqueues.cancel,
        }
        local l = assert(ipc.listen(scheme.address()))
        local loop, answer = cqueues.new(), nil
        loop:wrap(function()
          local closer = cqueues.running()
          closer:wrap(function() -- once the first waits in the kernel
            cqueues.poll(0)
            cqueues.poll(0)
            l:close()
          end)
          assert(ipc.poll { l })
          answer = { l:accept(0) }
        end)
        local ok, problem = loop:loop(PATIENCE)
        ipc.scheduler(nil)
        assert(ok, problem)
        assert.are.same({ nil, "closed", E.EPIPE }, answer)
      end)

      it("works in tasks, and `<close>` ends it", function()
        local address = scheme.address()
        local scheduler = require("spec.support.scheduler").new()
        local trace = {}
        scheduler:go(function()
          local l <close> = assert(ipc.listen(address))
          local client <close> = assert(l:accept())
          local message = client:recv()
          trace[#trace + 1] = message
          assert(client:send "pong")
        end)
        scheduler:go(function()
          local server <close> = assert(ipc.connect(address, { retry = true }))
          assert(server:send "ping")
          local message = server:recv()
          trace[#trace + 1] = message
        end)
        scheduler:run(PATIENCE)
        ipc.scheduler(nil)
        assert.are.same({ "ping", "pong" }, trace)
      end)
    end)
  end
end

describe("a listener of sysv", function()
  it("needs a queue that others find", function()
    for _, address in ipairs { "sysv:private", "sysv:", "sysv:0" } do
      for name, call in pairs { listen = ipc.listen, connect = ipc.connect } do
        assert.error_matches(function() call(address) end,
          "bad argument #1 to '" .. name .. "' %(a listener needs a key or path%)")
      end
    end
  end)
end)

describe("a listener of fifo", function()
  after_each(with.cleanup)

  local function new_path() return (fresh "fifo":gsub("^fifo:", "")) end

  -- Locks of open file descriptions, fcntl(2), are not everywhere.
  local CLAIMS = not (os.getenv "IPC_WITHOUT" or ""):find "ofd"

  local function is_taken(path)
    if CLAIMS then assert.are.equal(E.EADDRINUSE, (select(3, ipc.listen("fifo:" .. path)))) end
  end

  if not CLAIMS then
    it("is one of many where the system has no locks for it", function()
      local path = new_path()
      local one <close> = assert(ipc.listen("fifo:" .. path))
      local two <close> = assert(ipc.listen("fifo:" .. path))
      assert.are.equal(one:address(), two:address())
    end)
  end

  -- The names that begin so.
  local function names(path) return (with.shell("(ls -d " .. path .. "* 2>/dev/null)")) end

  it("refuses a path where somebody listens", function()
    local path = new_path()
    local l <close> = assert(ipc.listen("fifo:" .. path))
    is_taken(path)
    assert.are.equal(path .. "\n", names(path)) -- who is refused removes nothing
    assert.are.equal("timeout", (select(2, l:accept(0))))
    assert.is_true(peer.limit > 0)
  end)

  if CLAIMS then
    it("is the only one of two that start together", function()
      for _ = 1, 10 do
        local path = new_path()
        local start_r, start_w = ipc.pipe()
        local starters = { start_r, (assert(start_r:dup())) }
        local children = {}
        for i = 1, 2 do
          local start = starters[i]
          children[i] = with.fork(function()
            start:recv(PATIENCE)
            local l = ipc.listen("fifo:" .. path)
            ipc.parent:send(l and "listens" or "refused")
            ipc.parent:recv(PATIENCE)
            if l then l:close() end
          end)
        end
        assert(start_w:sendmany { "go", "go" })
        start_w:close()
        local answers = {}
        for i = 1, 2 do answers[i] = children[i]:recv(PATIENCE) end
        table.sort(answers)
        assert.are.same({ "listens", "refused" }, answers)
        for i = 1, 2 do
          children[i]:send "end"
          children[i]:wait(PATIENCE)
        end
        assert.are.equal("", names(path)) -- whoever made it
      end
    end)
  end

  it("is not noticed by a plain reader that waits for its first writer", function()
    local path = new_path()
    local plain = with.close(assert(ipc.fifo(path, "r", { temporary = true })))
    local l = assert(ipc.listen("fifo:" .. path))
    is_taken(path)
    assert.are.same({ nil, "timeout", E.ETIMEDOUT }, { plain:recv(0) })
    l:close()
  end)

  it("drops foreign text, once, and goes on", function()
    local path = new_path()
    local l <close> = assert(ipc.listen("fifo:" .. path))
    local texts = { "GET / HTTP/1.0\\r\\n", "\\377\\377\\377\\377\\377", ("x"):rep(3000) }
    for i, text in ipairs(texts) do
      with.shell(("printf '%s' > %s"):format(text, path))
      assert.are.same({ nil, "timeout", E.ETIMEDOUT }, { l:accept(0) })
      assert.are.same({ nil, "timeout", E.ETIMEDOUT }, { l:accept(0.01) })
      assert.are.equal(i, l:stats().refused)
      assert.are.same({ nil, "timeout", E.ETIMEDOUT }, { ipc.poll({ l }, 0) }) -- does not spin
      is_taken(path)
    end
    local child = with.fork(function()
      local server <close> = assert(ipc.connect("fifo:" .. path, { timeout = PATIENCE }))
      return (server:recv(PATIENCE))
    end)
    local client <close> = assert(l:accept(PATIENCE))
    assert(client:send "still here")
    assert.are.same({ true, "still here" }, { child:wait(PATIENCE) })
  end)

  it("sees the end of a client that dies in the handshake", function()
    local path = new_path()
    local l <close> = assert(ipc.listen("fifo:" .. path))
    local lobby <close> = assert(ipc.fifo(path, "w", { create = false }))
    local down = with.close(assert(ipc.fifo(path .. ".a-1.down", "r")))
    local spare = with.close(assert(ipc.fifo(path .. ".a-1.up", "r")))
    local up = with.close(assert(ipc.fifo(path .. ".a-1.up", "w")))
    assert(lobby:put { "a-1" })
    local client <close> = assert(l:accept(PATIENCE))
    down:close() -- as its death does
    spare:close()
    up:close()
    assert.are.same({ nil, "closed", E.EPIPE }, { client:recv(PATIENCE) })
    assert.are.equal(path .. "\n", names(path))
  end)

  it("clears what a client left that was killed in the handshake", function()
    local path = new_path()
    local l <close> = assert(ipc.listen("fifo:" .. path))
    local child = with.fork(function() return ipc.connect("fifo:" .. path, { timeout = PATIENCE }) end)
    assert(ipc.poll({ l }, PATIENCE))
    child:kill "KILL"
    child:wait(PATIENCE)
    assert.are.same({ nil, "timeout", E.ETIMEDOUT }, { l:accept(0) })
    assert.are.equal(1, l:stats().refused)
    assert.are.equal(path .. "\n", names(path))
  end)

  it("a connect that raises or is dropped leaves no name", function()
    local path = new_path()
    local l <close> = assert(ipc.listen("fifo:" .. path))
    assert.are.equal("fifo:" .. path, l:address())
    local scheduler = require("spec.support.scheduler").new()
    local task = scheduler:go(function() ipc.connect("fifo:" .. path) end)
    scheduler:step()
    local _, lines = names(path):gsub("\n", "")
    assert.are.equal(3, lines) -- it waits for its welcome
    scheduler:drop(task)
    assert(coroutine.close(task))
    ipc.scheduler(nil)
    assert.are.equal(path .. "\n", names(path))
    ipc.scheduler {
      is_task = function() return true end, wait = function() error "not now" end,
      cancel = function() end,
    }
    local ok, problem = coroutine.wrap(pcall)(ipc.connect, "fifo:" .. path, { timeout = PATIENCE })
    ipc.scheduler(nil)
    assert.is_false(ok)
    assert.matches("not now", problem)
    assert.are.equal(path .. "\n", names(path))
  end)

  it("takes over what a killed one left, and removes it", function()
    local path = new_path()
    local child = with.fork(function()
      local l = assert(ipc.listen("fifo:" .. path))
      ipc.parent:send "listens"
      ipc.parent:recv(PATIENCE)
      l:close()
    end)
    assert.are.equal("listens", (child:recv(PATIENCE)))
    is_taken(path)
    child:kill "KILL"
    child:wait(PATIENCE)
    local l = assert(ipc.listen("fifo:" .. path))
    l:close()
    -- Without a claim nobody knows that it is not somebody else's by now.
    assert.are.equal(CLAIMS and "" or path .. "\n", names(path))
    os.remove(path)
  end)
end)

if has.sysv then
  describe("queues of System V that connections have", function()
    after_each(with.cleanup)

    local function address() return schemes[2].address() end

    -- Those of the system that one of these processes used last, or any.
    local function queues(...)
      local ids, pids = {}, {}
      for _, pid in ipairs { ... } do pids[#pids + 1] = ("$6 == %d || $7 == %d"):format(pid, pid) end
      local mine = #pids > 0 and table.concat(pids, " || ") or "1"
      for id in with.shell(("awk '%s { print $2 }' /proc/sysvipc/msg 2>/dev/null"):format(mine)):gmatch "%d+" do
        ids[id] = true
      end
      return ids
    end

    local before
    before_each(function() before = queues() end)

    -- How many there are of these processes, not of others that had their numbers.
    local function left(...)
      local n = 0
      for id in pairs(queues(...)) do n = n + (before[id] and 0 or 1) end
      return n
    end

    -- A process that accepts one client; and removes the lobby when it is told to.
    local function server(where, fn)
      local child = with.fork(function()
        local l <close> = assert(ipc.listen(where))
        ipc.parent:send "listens"
        local conn = assert(l:accept(PATIENCE))
        ipc.parent:send "accepted"
        if fn then fn(conn) end
        ipc.parent:recv(PATIENCE)
      end)
      assert.are.equal("listens", (child:recv(PATIENCE)))
      return child
    end

    -- The name at which a killed one has listened.
    local function forget(where)
      local lobby <close> = assert(ipc.open(where, "r", { create = false }))
      lobby:remove()
    end

    for _, talks in ipairs { false, true } do
      it("go with a client whose server was killed, " .. (talks and "and has received" or "which received nothing"),
        function()
          local where = address()
          local child = server(where, talks and function(conn) ipc.parent:send((conn:recv(PATIENCE))) end)
          local client = assert(ipc.connect(where, { timeout = PATIENCE }))
          assert.are.equal("accepted", (child:recv(PATIENCE)))
          assert(client:send "hello")
          if talks then assert.are.equal("hello", (child:recv(PATIENCE))) end
          child:kill "KILL"
          child:wait(PATIENCE)
          client:close()
          forget(where)
          assert.are.equal(0, left(child.pid))
        end)
    end

    it("go with the next listener if both sides were killed", function()
      local where = address()
      local child = server(where, function(conn) conn:send "hello" end)
      local other = with.fork(function()
        local client = assert(ipc.connect(where, { timeout = PATIENCE }))
        ipc.parent:send((client:recv(PATIENCE)))
        ipc.parent:recv(PATIENCE)
      end)
      assert.are.equal("hello", (other:recv(PATIENCE)))
      for _, one in ipairs { child, other } do
        one:kill "KILL"
        one:wait(PATIENCE)
      end
      if peer.has_proc and io.open "/proc/sysvipc/msg" then assert.is_true(left(child.pid, other.pid) >= 2) end
      local l = assert(ipc.listen(where))
      l:close()
      forget(where)
      assert.are.equal(0, left(child.pid, other.pid))
    end)

    it("stay with the process that they moved to when the one that accepted is dead", function()
      local where = address()
      local acceptor = with.fork(function()
        local l = assert(ipc.listen(where))
        ipc.parent:send "listens"
        local conn = assert(l:accept(PATIENCE))
        local worker = assert(ipc.fork(function(moved, report)
          report:put(ipc.pid())
          ipc.poll({ report }, PATIENCE) -- until told to go on
          report:recv(PATIENCE)
          report:put { moved:recv(PATIENCE) }
        end, conn, ipc.parent))
        worker:detach()
        l:close()
        os.exit(true, false)
      end)
      assert.are.equal("listens", (acceptor:recv(PATIENCE)))
      local client = assert(ipc.connect(where, { timeout = PATIENCE }))
      assert.are.equal("integer", math.type((acceptor:get(PATIENCE))))
      acceptor:wait(PATIENCE)
      assert(client:send "for the worker")
      client:close()
      local next_one <close> = assert(ipc.listen(address()))
      assert(acceptor:send("go on", nil, PATIENCE))
      assert.are.equal("for the worker", acceptor:get(PATIENCE)[1])
      assert.is_truthy(next_one)
    end)

    it("of others are not removed, whoever is said to have them", function()
      local where = address()
      local maker = with.fork(function()
        local q = assert(ipc.sysv("private", "rw"))
        for i = 1, 2 do q:send("text " .. i) end
        q:recv(0)
        return q:id()
      end)
      local _, id = maker:wait(PATIENCE)
      local l <close> = assert(ipc.listen(where))
      local lobby <close> = assert(ipc.open(where, "w", { create = false }))
      assert(lobby:put { id })
      local conn = l:accept(0)
      if conn then conn:close() end
      local q <close> = assert(ipc.sysv(nil, "r", { id = id }))
      assert.are.equal("text 2", (q:recv(0)))
      assert.is_true(q:remove())
    end)
  end)
end

if has.shm then
  describe("a listener of shm", function()
    after_each(with.cleanup)

    -- Connects without this library's own idea of what comes then.
    local function knock(l)
      local name = l:address():match ":/(.*)"
      local socket = with.close(assert(ipc.connect("unix:/dev/shm/." .. name .. ".listen", { handles = 2 })))
      socket:settimeout(PATIENCE)
      return socket
    end

    local function listen(options)
      local l = assert(ipc.listen(fresh "shm", options))
      with.close(setmetatable({}, { __gc = function() l:close() end }))
      return l
    end

    local function serve(l)
      local address = l:address()
      local child = with.fork(function()
        local server <close> = assert(ipc.connect(address, { timeout = PATIENCE }))
        for message in server:messages() do server:send(message) end
        return "ended"
      end)
      return child, with.close(assert(l:accept(PATIENCE)))
    end

    it("gives the rings the options of the listener", function()
      local l = listen { size = 100, count = 40, timeout = PATIENCE }
      local child, client = serve(l)
      assert.are.equal(100, client:maxsize())
      assert(client:send(("x"):rep(100)))
      assert.are.equal(("x"):rep(100), client:recv())
      assert.error_matches(function() ipc.listen("shm:/x", { lease = 1 }) end, "bad argument #2 to 'listen' .-lease")
      client:close()
      assert.are.same({ true, "ended" }, { child:wait(PATIENCE) })
    end)

    it("tells a client that asks for more than its rings carry", function()
      local l = listen { size = 100, count = 40 }
      local address = l:address()
      local child = with.fork(function()
        local server, message, errno = ipc.connect(address, { timeout = PATIENCE, maxsize = 1000 })
        return server == nil, message, errno
      end)
      local client = with.close(assert(l:accept(PATIENCE)))
      local ok, none, message, errno = child:wait(PATIENCE)
      assert.are.same({ true, true, E.EMSGSIZE }, { ok, none, errno })
      assert.matches("maxsize is 1000, but its messages have 100 bytes", message)
      assert.are.same({ nil, "closed", E.EPIPE }, { client:recv(PATIENCE) })
    end)

    it("is not held by a client that never reads, nor by one that went", function()
      local l = listen()
      local silent = knock(l)
      knock(l):close()
      local one = with.close(assert(l:accept(PATIENCE)))
      local child, other = serve(l) -- behind the one that went
      assert(other:send "there?")
      assert.are.equal("there?", (other:recv(PATIENCE)))
      silent:close()
      assert.are.same({ nil, "closed", E.EPIPE }, { one:recv(PATIENCE) })
      other:close()
      assert.are.same({ true, "ended" }, { child:wait(PATIENCE) })
    end)

    it("keeps nothing open of clients that went, whenever they did", function()
      local l = listen()
      local before = with.descriptors()
      for i = 1, 60 do
        local socket = knock(l)
        if i % 3 == 0 then socket:close() end -- before it is accepted
        local client = l:accept(0)
        if i % 3 == 1 then
          for _, side in ipairs(assert(socket:get())) do side:close() end
        end
        socket:close() -- what it did not read goes with it
        if client then
          assert.are.same({ nil, "closed", E.EPIPE }, { client:recv(PATIENCE) })
          client:close()
        end
      end
      local stats = l:stats()
      assert.are.equal(60, stats.accepted + stats.refused)
      assert.are.equal(before, with.descriptors())
    end)

    it("gives two ends to whoever reads them, and no more than that", function()
      local l = listen()
      local socket = knock(l)
      local client = with.close(assert(l:accept(PATIENCE)))
      local ends = assert(socket:get())
      assert.are.equal(2, #ends)
      assert(ends[2]:send "question")
      assert.are.equal("question", (client:recv(PATIENCE)))
      assert(client:send "answer")
      assert.are.equal("answer", (ends[1]:recv(PATIENCE)))
      assert.error_matches(function() ends[1]:send "x" end, "receives")
      assert.are.same({ nil, "closed", E.EPIPE }, { socket:get() })
      with.close(ends[1], ends[2])
    end)

    it("is not mistaken for one by a client of something else", function()
      local name = fresh "shm":match "/(.*)"
      local l <close> = assert(ipc.listen("unix:/dev/shm/." .. name .. ".listen", { handles = 2 }))
      local r, w = ipc.pipe()
      for _, welcome in ipairs { true, 7, {}, { 1, 2 }, { r, w } } do
        local child = with.fork(function()
          return select(3, ipc.connect("shm:/" .. name, { timeout = PATIENCE }))
        end)
        local socket <close> = assert(l:accept(PATIENCE))
        assert(socket:put(welcome))
        assert.are.same({ true, E.EPROTO }, { child:wait(PATIENCE) })
      end
    end)

    it("refuses a name where somebody listens, takes over a killed one's", function()
      local address = fresh "shm"
      local child = with.fork(function()
        local l = assert(ipc.listen(address))
        ipc.parent:send "listens"
        ipc.parent:recv(PATIENCE)
        l:close()
      end)
      assert.are.equal("listens", (child:recv(PATIENCE)))
      assert.are.equal(E.EADDRINUSE, (select(3, ipc.listen(address))))
      child:kill "KILL"
      child:wait(PATIENCE)
      assert(ipc.listen(address)):close()
      local _, _, errno = ipc.connect(address)
      assert.are.equal(E.ENOENT, errno)
    end)

    it("knows its clients by their user", function()
      local l = listen { allow_uids = { 4242424 } }
      local socket = knock(l)
      assert.are.same({ nil, "timeout", E.ETIMEDOUT }, { l:accept(0.01) })
      assert.are.equal(1, l:stats().refused)
      assert.are.same({ nil, "closed", E.EPIPE }, { socket:get() })
    end)

    it("keeps a client for which no descriptor was free", function()
      local l = listen { timeout = PATIENCE }
      local address = l:address()
      local child = with.fork(function()
        local server <close> = assert(ipc.connect(address, { timeout = PATIENCE }))
        return (server:recv(PATIENCE))
      end)
      assert(ipc.poll({ l }, PATIENCE))
      local queue = ipc.queue
      ipc.queue = function() return nil, "no more", E.EMFILE end
      local answer = { l:accept(PATIENCE) }
      ipc.queue = queue
      assert.are.same({ nil, "no more", E.EMFILE }, answer)
      assert.is_true(assert(ipc.poll({ l }, 0))[l])
      local client = with.close(assert(l:accept(0)))
      assert(client:send "after all")
      assert.are.same({ true, "after all" }, { child:wait(PATIENCE) })
    end)
  end)
end
