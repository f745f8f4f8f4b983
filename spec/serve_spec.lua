-- Servers: ipc.serve.
local ipc = require "ipc"
local peer = require "spec.support.peer"

local E = ipc.errno
local LIMIT = peer.limit

local function path() return peer.address "unix" end

local function connect(server, options)
  local o = { timeout = LIMIT }
  for name, value in pairs(options or {}) do o[name] = value end
  return peer.keep(assert(ipc.connect(server.address, o)))
end

local function echo(conn)
  for value in conn:values() do conn:put(value) end
end

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

describe("ipc.serve:", function()
  before_each(function() ipc.loop.use(nil) end)
  after_each(function()
    peer.clean()
    ipc.scheduler(nil)
  end)

  for _, scheme in ipairs { "unix", "tcp", "shm", "fifo", "sysv", "mqueue" } do
    it("a task each for many clients at once: " .. scheme, function()
      if scheme == "shm" and not peer.has "shm" then return pending "no shm" end
      local name = peer.address(scheme)
      local many = (scheme == "sysv" or scheme == "mqueue" or scheme == "shm") and 2 or 5
      run(function()
        local server <close> = assert(ipc.serve(name, echo, { grace = 1 }))
        local clients = {}
        for i = 1, many do
          clients[i] = connect(server)
          assert(clients[i]:put(i))
        end
        for i = many, 1, -1 do assert.are.equal(i, clients[i]:get()) end
        assert.are.equal(many, #server)
        for i = 1, many do clients[i]:close() end
      end)
    end)
  end

  it("answers at once, and tells the address; clients' addresses are told", function()
    run(function()
      local seen
      local server <close> = assert(ipc.serve("tcp:127.0.0.1:0", function(conn, from)
        seen = from
        conn:send "x"
      end))
      assert.matches("^tcp:127%.0%.0%.1:%d+", server.address)
      assert.matches("ipc.server", tostring(server))
      local client = connect(server)
      assert.are.equal("x", client:recv())
      assert.matches("^tcp:127%.0%.0%.1:%d+", seen)
      assert.are.equal("closed", select(2, client:recv())) -- closed after it
    end)
  end)

  it("takes a listener, and closes it", function()
    run(function()
      local listener = assert(ipc.listen(path()))
      local server = assert(ipc.serve(listener, echo))
      local client = connect(server)
      assert(client:put "x")
      assert.are.equal("x", client:get())
      client:close()
      assert.is_true(server:close())
      assert.are.equal("closed", select(2, listener:accept(0)))
      assert.is_true(server:wait(0))
      assert.is_true(server:close())
      assert.is_false(pcall(ipc.serve, listener, echo, { unit = "stream" }))
    end)
  end)

  it("what listen answers it answers", function()
    local server, message, errno = ipc.serve("unix:/no/such/directory/s", echo)
    assert.is_nil(server)
    assert.are.equal(E.ENOENT, errno)
    assert.is_string(message)
    assert.is_false(pcall(ipc.serve, path(), echo, { no_such = 1 }))
    assert.is_false(pcall(ipc.serve, path(), echo, { limit = 0 }))
    assert.is_false(pcall(ipc.serve, path(), echo, { grace = "x" }))
    assert.is_false(pcall(ipc.serve, path(), echo, { on_error = 1 }))
    assert.is_false(pcall(ipc.serve, {}, echo))
  end)

  it("errors of one client stay there, are told, and its channel is closed", function()
    local told = {}
    run(function()
      local object = {}
      local server <close> = assert(ipc.serve("tcp:127.0.0.1:0", function(conn)
        local word = conn:recv()
        error(word == "object" and object or word, 0)
      end, {
        on_error = function(value, from, trace)
          told[#told + 1] = { value, from ~= nil, trace ~= nil }
          ipc.sleep(0.001) -- in a task, too
        end,
      }))
      for _, word in ipairs { "one", "object" } do
        local client = connect(server)
        assert(client:send(word))
        assert.are.equal("closed", select(2, client:recv()))
      end
      assert.are.equal("one", told[1][1])
      assert.are.equal(object, told[2][1])
      assert.are.same({ true, true }, { told[1][2], told[1][3] })
    end)
  end)

  it("by default each text goes to the standard error once", function()
    local text = peer.run(([[
      ipc.main(function()
        local server <close> = assert(ipc.serve("%s", function(conn) conn:recv() error "bad client" end))
        for _ = 1, 3 do
          local c <close> = assert(ipc.connect(server.address))
          c:send "x"
          c:recv(5)
        end
      end)
    ]]):format(path()))
    local _, n = text:gsub("bad client", "")
    assert.are.equal(1, n)
    assert.matches("stack traceback", text)
  end)

  it("more than `limit` wait until one has left", function()
    run(function()
      local now, most = 0, 0
      local server <close> = assert(ipc.serve(path(), function(conn)
        now = now + 1
        most = math.max(most, now)
        conn:put "served"
        conn:get()
        now = now - 1
      end, { limit = 2 }))
      local clients = {}
      for i = 1, 4 do clients[i] = connect(server) end
      assert.are.equal("served", clients[1]:get())
      assert.are.equal("served", clients[2]:get())
      assert.are.equal("timeout", select(2, clients[3]:get(0.02)))
      clients[1]:close()
      assert.are.equal("served", clients[3]:get())
      clients[2]:close()
      assert.are.equal("served", clients[4]:get())
      assert.are.equal(2, most)
      clients[3]:close()
      clients[4]:close()
    end)
  end)

  it("that shares its listener leaves those who wait to other processes in between", function()
    local function most(shared) -- accepted whose tasks had not begun
      return run(function()
        local begun, waiting = 0, 0
        local server server = assert(ipc.serve(path(), function(conn)
          begun = begun + 1
          waiting = math.max(waiting, #server - begun)
          conn:recv()
        end, { grace = 0 }))
        local closed <close> = server
        server.shared = shared
        for _ = 1, 5 do connect(server) end
        while begun < 5 do ipc.sleep(0.001) end
        peer.clean()
        return closed and waiting
      end)
    end
    assert.is_true(most(true) <= 1)
    assert.is_true(most(false) > 1)
  end)

  it("close drains: the running come to their end, no new ones", function()
    run(function()
      local begun = false
      local server = assert(ipc.serve(path(), function(conn)
        conn:get()
        begun = true
        ipc.sleep(0.02)
        conn:put "done"
      end))
      local client = connect(server)
      assert(client:put "x")
      while not begun do ipc.sleep(0.001) end
      local closer = ipc.loop.go(server.close, server)
      assert.are.equal("done", client:get())
      assert.is_true(closer:wait())
      assert.is_nil((ipc.connect(server.address)))
      assert.are.equal(0, #server)
    end)
  end)

  it("after `grace`, and by stop, the running are cancelled", function()
    for _, how in ipairs { "close", "stop" } do
      run(function()
        local trace, begun = {}, false
        local server = assert(ipc.serve(path(), function(conn)
          local held <close> = setmetatable({}, {
            __close = function(_, problem)
              ipc.sleep(0.001)
              trace[#trace + 1] = tostring(problem)
            end,
          })
          begun = true
          conn:get()
        end, { grace = 0.02, on_error = function(value) trace[#trace + 1] = value end }))
        local client = connect(server)
        while not begun do ipc.sleep(0.001) end
        assert.are.same({ nil, "timeout", E.ETIMEDOUT }, { server:wait(0.001) })
        assert.is_true(server[how](server))
        assert.are.same({ "cancelled" }, trace)
        assert.are.equal("closed", select(2, client:get()))
      end)
    end
  end)

  it("close, stop and wait by clients themselves wait for the others, not for each other", function()
    for _, how in ipairs { "close", "stop" } do
      run(function()
        local answers = {}
        local server
        server = assert(ipc.serve(path(), function(conn)
          conn:get()
          answers[#answers + 1] = server[how](server)
        end, { grace = LIMIT }))
        local one, two = connect(server), connect(server)
        assert(one:put "x")
        assert(two:put "x")
        assert.is_true(server:wait(LIMIT))
        assert.is_true(answers[1])
      end)
    end
    run(function() -- the one that accepts, in its on_error
      local server, asked
      server = assert(ipc.serve(setmetatable({
        accept = function()
          if asked then return nil, "closed", E.EPIPE end
          asked = true
          return nil, "strange", E.EIO
        end,
        address = function() return "mine" end,
        close = function() end,
      }, { __close = function() end }), echo, { on_error = function() server:close() end }))
      assert.is_true(server:wait(LIMIT))
    end)
  end)

  it("TERM drains a program's server", function()
    local text, _, _, status = peer.run(([[
      ipc.main(function()
        local server <close> = assert(ipc.serve("%s", function(conn)
          conn:get()
          io.popen("kill -TERM " .. ipc.pid()):close()
          ipc.sleep(0.05)
          conn:put "answered"
          print "answered"
        end))
        local c = assert(ipc.connect(server.address))
        c:put "x"
        ipc.sleep(1000)
      end)
    ]]):format(path()))
    assert.matches("^answered\n", text) -- then the shell's word, perhaps
    assert.are.equal(143, status)
  end)

  it("without a free descriptor it says so, does not spin, and goes on #slow", function()
    local text = peer.run(([[
      ipc.main(function()
        local told = 0
        local server <close> = assert(ipc.serve("%s", function(conn) conn:put(conn:get()) end,
          { on_error = function(e) assert(e.errno == ipc.errno.EMFILE, tostring(e)) told = told + 1 end }))
        local clients, files = {}, {}
        clients[1] = assert(ipc.connect(server.address))
        while true do
          local f = io.open "/dev/null"
          if not f then break end
          files[#files + 1] = f
        end
        table.remove(files):close() -- for one end, not the other
        clients[2] = assert(ipc.connect(server.address))
        ipc.sleep(0.2)
        local before = os.clock()
        ipc.sleep(0.2)
        print(told >= 1, told < 10, os.clock() - before < 0.15)
        for _, f in ipairs(files) do f:close() end
        clients[2]:put "at last"
        print(clients[2]:get(10))
      end)
    ]]):format(path()), { shell = "ulimit -n 40" })
    assert.are.equal("true\ttrue\ttrue\nat last\n", text)
  end)

  it("outside of tasks, waiting for it serves", function()
    local server = assert(ipc.serve(path(), echo))
    local address = server.address
    local client = peer.fork(function()
      local c <close> = assert(ipc.connect(address, { timeout = LIMIT }))
      c:put "x"
      return c:get()
    end)
    ipc.loop.go(function()
      client:wait()
      server:close()
    end)
    assert.is_true(server:wait(LIMIT))
    assert.are.same({ true, "x" }, { client:wait() })
  end)
end)
