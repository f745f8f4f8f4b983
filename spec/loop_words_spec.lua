-- How the loop sleeps where what its tasks wait for is in shared memory: by itself,
-- with descriptors beside it, and by threads where others poll. Each row is a
-- program of its own, run also with the fallbacks.
local ipc = require "ipc"
local peer = require "spec.support.peer"

local some = ipc.queue { capacity = 4096 } -- nil where the system has no rings

local given = os.getenv "IPC_WITHOUT" or ""

-- What all programs begin with: tasks whose waits end, an echoing child.
local BEFORE = [[
  local loop, LIMIT = ipc.loop, 15
  local function bounded(...)
    for _, handle in ipairs { ... } do handle:settimeout(LIMIT) end
    return ...
  end
  local function queue() return bounded(ipc.queue { capacity = 4096 }) end
  local function echo(r, w)
    for m in r:messages() do assert(w:send(m)) end
  end
  local function echoing()
    local there, from = queue()
    local back, to = queue()
    return from, there, back, to -- w, and r for fork(echo, ...)
  end
  local function child(...) return bounded((assert(ipc.fork(...)))) end
  local function say(...) print((table.concat({ ... }, " "))) end
  local function why(_, message) return message end
  local function threads()
    local n, list = 0, io.popen("ls /proc/" .. ipc.pid() .. "/task 2>/dev/null")
    for _ in list:lines() do n = n + 1 end
    list:close()
    return n
  end
  local function go(n, fn, ...)
    local list = {}
    for i = 1, n do list[i] = loop.go(fn, i, ...) end
    return function()
      for _, task in ipairs(list) do assert(task:wait(LIMIT)) end
    end
  end
]]

local function rows(without)
  local all = given ~= "" and without ~= "" and given .. "," .. without or given .. without

  local function says(expected, program)
    local text, ok, why, code = peer.run(BEFORE .. program, { env = { IPC_WITHOUT = all } })
    assert.are.equal(expected, text, ("%s %s %s"):format(ok, why, code))
  end

  local function row(name, expected, program)
    it(name, function()
      if not some then return pending "no rings here" end
      says(expected, program)
    end)
  end

  row("rings and descriptors in one loop, whichever is busy", "200 200 200 200\n", [[
    local w, r, back, to = echoing()
    local one = child(echo, r, to)
    local a, b = ipc.pair "unix"
    bounded(a, b)
    local two = child(function(b) for m in b:messages() do assert(b:send(m)) end end, b)
    loop.run(function()
      local count = { 0, 0, 0, 0 }
      local function ring(place)
        for i = 1, 200 do
          assert(w:send("r" .. i))
          assert(back:recv() == "r" .. i)
          count[place] = count[place] + 1
        end
      end
      local function socket(place)
        for i = 1, 200 do
          assert(a:send("s" .. i))
          assert(a:recv() == "s" .. i)
          count[place] = count[place] + 1
        end
      end
      ring(1)
      socket(2)
      local wait = go(2, function(i) if i == 1 then ring(3) else socket(4) end end)
      wait()
      print(table.concat(count, " "))
      w:close()
      a:close()
    end)
  ]])

  row("more rings than one sleep takes", "2600\n", [[
    local readers, writers = {}, {}
    for i = 1, 130 do readers[i], writers[i] = queue() end
    local sender = child(function(...)
      local all = bounded(...) and { ... }
      for round = 1, 20 do
        for i = 1, #all do assert(all[(i * 37 + round) % #all + 1]:send(tostring(round))) end
      end
    end, table.unpack(writers))
    loop.run(function()
      local n = 0
      local wait = go(#readers, function(i)
        for round = 1, 20 do
          assert(readers[i]:recv() == tostring(round))
          n = n + 1
        end
      end)
      wait()
      print(n)
    end)
  ]])

  row("one that is closed, and one that is collected, while a task waits", "closed\ncancelled\nx\n", [[
    local w, r, back, to = echoing()
    local one = child(echo, r, to)
    loop.run(function()
      local mine, other = queue()
      local waits = loop.go(function() say(why(mine:recv())) end)
      ipc.sleep(0)
      ipc.sleep(0)
      mine:close()
      assert(waits:wait(LIMIT))
      do
        local lost, also = queue()
        waits = loop.go(function(r) r:recv() end, lost)
      end
      ipc.sleep(0)
      waits:cancel()
      say(why(waits:wait(LIMIT)))
      waits = nil
      collectgarbage()
      collectgarbage()
      assert(w:send "x")
      print(back:recv())
      w:close()
    end)
  ]])

  row("a host that polls the descriptor, asked for before and after", "a\nb\nc\nd\n", [[
    local w, r, back, to = echoing()
    local one = child(echo, r, to)
    local function drive()
      loop.go(function() print(back:recv()) end)
      loop.step(0)
      loop.step(0)
    end
    drive()
    assert(w:send "a")
    local host = { pollfd = loop.pollfd(), events = "r" }
    local function turn()
      while loop.step(0) > 0 do
        assert(ipc.poll({ { pollfd = host.pollfd, events = "r", timeout = loop.timeout } }, LIMIT))
      end
    end
    turn()
    drive()
    assert(w:send "b")
    turn()
    loop.use(nil)
    loop.run(function()
      assert(w:send "c")
      print(back:recv())
    end)
    drive()
    host.pollfd = loop.pollfd()
    assert(w:send "d")
    turn()
    w:close()
  ]])

  row("a poller over a ring that tasks wait for, too", "40\n", [[
    local w, r, back, to = echoing()
    local one = child(echo, r, to)
    local pipe, full = bounded(ipc.pipe())
    loop.run(function()
      local poller = assert(ipc.poller())
      local got = 0
      assert(w:send "x")
      got = got + (back:recv() == "x" and 1 or 0)
      poller:add(back)
      poller:add(pipe)
      local beside = loop.go(function()
        while got < 39 do
          if back:recv(0.001) then got = got + 1 end
        end
      end)
      while got < 39 do
        assert(w:send "x")
        while poller:wait(0.01) do
          if back:recv(0) then got = got + 1 end
          break
        end
      end
      assert(beside:wait(LIMIT))
      assert(w:send "x")
      while not poller:wait(LIMIT) do end
      got = math.min(got, 39) + (back:recv() == "x" and 1 or 0)
      print(got)
      w:close()
    end)
  ]])

  row("forks while tasks wait", "5 child\nx\ny\n", [[
    local w, r, back, to = echoing()
    local one = child(echo, r, to)
    loop.run(function()
      local first = loop.go(function() print(back:recv()) end)
      ipc.sleep(0)
      local offspring = child(function()
        local mine, other = queue()
        return loop.run(function()
          local n = 0
          local wait = go(5, function() n = n + #mine:recv() end)
          ipc.sleep(0)
          for _ = 1, 5 do assert(other:send "1") end
          wait()
          return n .. " child"
        end)
      end)
      print(select(2, assert(offspring:wait(LIMIT))))
      assert(w:send "x")
      assert(first:wait(LIMIT))
      local second = loop.go(function() print(back:recv()) end)
      ipc.sleep(0)
      require("spec.peer").fork(function()
        local mine, other = queue()
        loop.run(function()
          local task = loop.go(function() assert(mine:recv() == "1") end)
          ipc.sleep(0)
          assert(other:send "1")
          assert(task:wait(LIMIT))
        end)
      end)
      assert(w:send "y")
      assert(second:wait(LIMIT))
      w:close()
    end)
  ]])

  row("who was to send is killed, also while others are busy", "closed 32\nclosed 32\n", [[
    for _, busy in ipairs { false, true } do
      local w, r, back, to = echoing()
      local one = child(echo, r, to)
      local mine, other = queue()
      local victim = child(function(other) ipc.parent:get() end, other)
      loop.run(function()
        local over
        local waits = loop.go(function()
          local _, message, errno = mine:recv()
          over = true
          say(message, tostring(errno))
        end)
        ipc.sleep(0)
        victim:kill "KILL"
        if busy then
          repeat
            assert(w:send "x")
            assert(back:recv())
          until over
        end
        assert(waits:wait(LIMIT))
        w:close()
      end)
    end
  ]])

  row("signals while it sleeps", "USR1\nUSR1\nx\ninterrupted!\n", [[
    local w, r, back, to = echoing()
    local one = child(function(r, w, pid)
      for m in r:messages() do
        if #m > 1 then os.execute("kill -" .. m .. " " .. pid) else assert(w:send(m)) end
      end
    end, r, to, ipc.pid())
    local s = ipc.signals { "USR1" }
    loop.run(function()
      local waits = loop.go(function()
        print(back:recv())
      end)
      for _ = 1, 2 do
        assert(w:send "USR1")
        print(s:recv(LIMIT))
      end
      assert(w:send "x")
      assert(waits:wait(LIMIT))
    end)
    s:close()
    local ok, problem = pcall(loop.run, function()
      assert(w:send "INT")
      back:recv()
    end)
    print(tostring(problem):match "interrupted!")
    w:close()
  ]])

  row("waits of the main program in between", "a\nb\nc\nd\n", [[
    local w, r, back, to = echoing()
    local one = child(echo, r, to)
    loop.go(function() print(back:recv()) end)
    loop.step(0)
    loop.step(0)
    assert(w:send "a")
    assert(ipc.poll({ back }, LIMIT))
    while loop.step(LIMIT) > 0 do end
    assert(w:send "b")
    print(back:recv())
    loop.run(function()
      assert(w:send "c")
      print(back:recv())
    end)
    assert(w:send "d")
    assert(ipc.poll({ back }, LIMIT))
    print(back:recv(0))
    w:close()
  ]])

  row("waits that were given up, and a loop that is entered again", "timeout\ncancelled\nx\n", [[
    local w, r, back, to = echoing()
    local one = child(echo, r, to)
    loop.run(function()
      say(why(back:recv(0.003)))
      local waits = loop.go(function() back:recv() end)
      ipc.sleep(0)
      waits:cancel()
      say(why(waits:wait(LIMIT)))
      loop.go(function() back:recv() end) -- ends with the loop
    end)
    loop.run(function()
      assert(w:send "x")
      print(back:recv())
    end)
    w:close()
  ]])

  row("mutexes, conditions of memory and full rings", "100 100 done\n", [[
    local name = "/spec-words-" .. ipc.pid()
    local there, from = ipc.queue { capacity = 4096 }
    bounded(there, from)
    local function work(name)
      local m = assert(ipc.mutex(name))
      return loop.run(function()
        local n = 0
        for _ = 1, 100 do
          local guard <close> = assert(m:lock(LIMIT))
          n = n + 1
          ipc.sleep(0)
        end
        return n
      end)
    end
    local m = assert(ipc.mutex(name))
    local one = child(work, name)
    local sender = child(function(from)
      return loop.run(function()
        for i = 1, 300 do assert(from:send(("x"):rep(1000))) end
        return "done"
      end)
    end, from)
    loop.run(function()
      local reads = loop.go(function()
        for _ = 1, 300 do assert(#there:recv() == 1000) end
      end)
      local mine = 0
      for _ = 1, 100 do
        local guard <close> = assert(m:lock(LIMIT))
        mine = mine + 1
        ipc.sleep(0)
      end
      assert(reads:wait(LIMIT))
      local _, theirs = assert(one:wait(LIMIT))
      local _, sent = assert(sender:wait(LIMIT))
      say(mine, theirs, sent)
    end)
  ]])

  row("a loop that was loaded again, the old one still there", "x\n", [[
    local w, r, back, to = echoing()
    local one = child(echo, r, to)
    loop.run(function()
      assert(w:send "a")
      assert(back:recv() == "a")
    end)
    local old = {}
    for name, module in pairs(package.loaded) do
      if name:find "^ipc%.loop" then old[name], package.loaded[name] = module, nil end
    end
    local set = require "ipc.core".task.set() -- one that nobody waits with
    require "ipc.loop".run(function()
      for _ = 1, 200 do
        assert(w:send "x")
        assert(back:recv() == "x")
      end
      print "x"
    end)
    w:close()
  ]])

  it("no thread for one ring, and one more with descriptors beside", function()
    if not some then return pending "no rings here" end
    local text = peer.run(BEFORE .. [[
      local w, r, back, to = echoing()
      local one = child(echo, r, to)
      local pipe = ipc.pipe()
      loop.run(function()
        local waits = loop.go(function() back:recv() end)
        for _ = 1, 3 do ipc.sleep(0.001) end
        print(threads())
        loop.go(function() pipe:recv() end)
        for _ = 1, 3 do ipc.sleep(0.001) end
        print(threads())
        assert(w:send "x")
        assert(waits:wait(LIMIT))
      end)
      w:close()
    ]], { env = { IPC_WITHOUT = all } })
    local n, m = text:match "^(%d+)\n(%d+)\n$"
    assert.is_truthy(n, text)
    local none = n == "0" or without == "futex" or given:find "futex" or package.cpath:find "portable"
    if not none then assert.are.equal("1", n) end
    assert.is_true(tonumber(m) <= 2, text)
  end)
end

for _, without in ipairs { "", "waitv", "epoll", "futex" } do
  describe("ipc.loop sleeps" .. (without ~= "" and (", IPC_WITHOUT=" .. without) or "") .. ":", function()
    rows(without)
  end)
end
