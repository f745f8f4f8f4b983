-- Processes: ipc.fork. Where a whole program matters (its output, its end, its
-- environment) the spec runs a real one.
local ipc = require "ipc"
local peer = require "spec.support.peer"

local pipe, fork, run = peer.pipe, peer.fork, peer.run
local E = ipc.errno

-- Ends with its parent's wish, not before.
local function stay()
  ipc.parent:recv()
end

-- A child that has told that it runs.
local function running(fn, ...)
  local child = fork(function(...)
    ipc.parent:send "running"
    return (fn or stay)(...)
  end, ...)
  assert.are.equal("running", child:recv())
  return child
end

-- More than any medium holds, and shows what came twice or not at all.
local function numbers()
  local list = {}
  for i = 1, 100000 do
    list[i] = ("%08d"):format(i)
  end
  return table.concat(list)
end

describe("a forked child", function()
  after_each(peer.clean)

  it("is a channel to it; there ipc.parent is the one back", function()
    assert.is_nil(ipc.parent)
    local child = fork(function()
      for value in ipc.parent:values() do
        ipc.parent:put { value, ipc.pid() }
      end
      return "said goodbye"
    end)
    assert.is_true(child:put "hello")
    assert.are.same({ "hello", child.pid }, child:get())
    assert.are_not.equal(ipc.pid(), child.pid)
    assert.is_true(child:shutdown())
    assert.are.same({ nil, "closed", E.EPIPE }, { child:get() })
    assert.are.same({ true, "said goodbye" }, { child:wait() })
  end)

  it("gets its arguments as they are", function()
    local t = { 1 }
    t.self = t
    local child = fork(function(...)
      local a, b, c, d = ...
      return select("#", ...), a, b, c.self == c, d
    end, 1, nil, t, nil)
    assert.are.same({ true, 4, 1, nil, true, nil, n = 6 }, table.pack(child:wait()))
  end)

  it("carries messages larger than its socket, both ways", function()
    local child = fork(function()
      ipc.parent:send(ipc.parent:recv():reverse())
    end)
    local sent = ("ab"):rep(1 << 20)
    assert.is_true(child:send(sent))
    assert.is_true(child:recv() == sent:reverse())
  end)

  it("has a copy of everything: what it assigns stays there", function()
    _G.shared = "before"
    local child = fork(function()
      _G.shared = "child's"
      return _G.shared
    end)
    assert.are.same({ true, "child's" }, { child:wait() })
    assert.are.equal("before", _G.shared)
    _G.shared = nil
  end)

  it("has one handle here: dup answers ENOTSUP", function()
    local ok, message, errno = running():dup()
    assert.is_nil(ok)
    assert.matches("^ipc%.process%.dup: ", message)
    assert.are.equal(E.ENOTSUP, errno)
  end)

  it("is refused as other than a function", function()
    assert.error_matches(function() ipc.fork "print" end, "function expected, got string")
    assert.error_matches(function() ipc.fork() end, "function expected")
  end)

  it("can be forked again and again: grandchildren", function()
    local child = fork(function()
      local grandchild = assert(ipc.fork(function()
        ipc.parent:put(ipc.pid())
        return ipc.parent:get(10)
      end))
      ipc.parent:put { ipc.pid(), grandchild.pid, grandchild:get(10) }
      grandchild:put(ipc.parent:get(10))
      return grandchild:wait(10)
    end)
    local ids = child:get()
    assert.are.equal(child.pid, ids[1])
    assert.are.equal(ids[2], ids[3])
    assert.is_true(child:put "passed down and back")
    assert.are.same({ true, true, "passed down and back" }, { child:wait() })
  end)

  it("has ended when it ended, though a grandchild lives on", function()
    local r, w = pipe()
    local child = fork(function()
      local grandchild = ipc.fork(function(mine)
        mine:send "grandchild lives"
        ipc.sleep(1000)
      end, w)
      ipc.parent:put(grandchild.pid)
      ipc.parent:recv() -- the parent's word
      os.exit(7)
    end)
    local grandchild = child:get()
    assert.are.equal("grandchild lives", r:recv())
    assert.is_true(child:send "end")
    assert.is_nil((child:wait()))
    assert.are.equal(7, child.reason.code)
    assert.is_true(peer.lives(grandchild))
    os.execute("kill -KILL " .. grandchild)
    assert.are.same({ nil, "closed", E.EPIPE }, { r:recv() })
  end)
end)

describe("process:wait", function()
  after_each(peer.clean)

  it("answers true and the results, nils in the middle kept", function()
    local function results(...)
      local values = table.pack(...)
      return table.pack(fork(function() return table.unpack(values, 1, values.n) end):wait())
    end
    assert.are.same({ true, n = 1 }, results())
    assert.are.same({ true, nil, n = 2 }, results(nil))
    assert.are.same({ true, 1, nil, "three", nil, n = 5 }, results(1, nil, "three", nil))
    assert.are.same({ true, false, { a = { 1.5 } }, n = 3 }, results(false, { a = { 1.5 } }))
    local long = ("x"):rep(3 << 20)
    assert.are.equal(long, results(long)[2])
    local many = {}
    for i = 1, 200 do
      many[i] = i
    end
    assert.are.equal(201, results(table.unpack(many)).n)
  end)

  it("answers timeout while it runs, and the end afterwards", function()
    local child = running()
    assert.are.same({ nil, "timeout", E.ETIMEDOUT }, { child:wait(0) })
    local before = ipc.now()
    assert.are.same({ nil, "timeout", E.ETIMEDOUT }, { child:wait(0.05) })
    assert.is_true(ipc.now() - before >= 0.05)
    assert.is_nil(child.reason)
    assert.is_true(child:send "end")
    assert.is_true(child:wait())
  end)

  it("answers the same again, after close too", function()
    local child = fork(function() return "once", nil, "and again" end)
    local expected = { true, "once", nil, "and again", n = 4 }
    assert.are.same(expected, table.pack(child:wait()))
    assert.are.same(expected, table.pack(child:wait(0)))
    assert.is_true(child:close())
    assert.are.same(expected, table.pack(child:wait()))
    assert.are.equal("exit", child.reason.kind)
    assert.is_true(child:close())
  end)

  it("answers after a close that came first", function()
    local child = fork(function()
      assert(ipc.parent:recv() == nil)
      return "ended by close"
    end)
    assert.is_true(child:close())
    assert.are.same({ true, "ended by close" }, { child:wait() })
  end)

  it("answers by the reason when results cannot travel", function()
    local child = fork(function() return print end)
    local ok, message, errno = child:wait()
    assert.is_nil(ok)
    assert.matches("function", message)
    assert.are.equal(0, errno)
  end)
end)

describe("an error in the child", function()
  after_each(peer.clean)

  it("reaches the parent with its traceback", function()
    local function deep() error "out of luck" end
    local child = fork(function() deep() end)
    local ok, message, errno = child:wait()
    assert.is_nil(ok)
    assert.matches("process_spec.lua:%d+: out of luck\nstack traceback:\n.*process_spec.lua", message)
    assert.are.equal(0, errno)
    assert.are.equal("error", child.reason.kind)
    assert.are.equal(message, child.reason.text)
    assert.matches("process_spec.lua:%d+: out of luck$", child.reason.value)
  end)

  it("is a value: a table stays a table", function()
    local child = fork(function() error { code = 42, list = { 1, 2 } } end)
    local ok, message = child:wait()
    assert.is_nil(ok)
    assert.matches("stack traceback", message)
    assert.are.same({ code = 42, list = { 1, 2 } }, child.reason.value)
  end)

  it("is told by its __tostring", function()
    local child = fork(function()
      error(setmetatable({ 1 }, { __tostring = function() return "an object's words" end }))
    end)
    local _, message = child:wait()
    assert.matches("^an object's words\nstack traceback", message)
  end)

  it("whose value cannot travel still tells its text", function()
    local child = fork(function()
      error(setmetatable({ print }, { __tostring = function() return "not encodable" end }))
    end)
    local ok, message = child:wait()
    assert.is_nil(ok)
    assert.matches("not encodable", message)
    assert.matches("stack traceback", message)
    assert.are.equal("error", child.reason.kind)
  end)

  it("without a value is an error all the same", function()
    for _, value in ipairs { false, 17 } do
      local child = fork(function() error(value) end)
      local ok, message = child:wait()
      assert.is_nil(ok)
      assert.matches(tostring(value), message)
      assert.are.equal("error", child.reason.kind)
      assert.are.equal(value, child.reason.value)
    end
    local child = fork(function() error(nil) end)
    assert.is_nil((child:wait()))
    assert.are.equal("error", child.reason.kind)
  end)

  it("that is an endless recursion is told too", function()
    collectgarbage() -- each finaliser run on a huge stack would move it
    local child = fork(function()
      local function f() return 1 + f() end
      f()
    end)
    local _, message = child:wait()
    assert.matches("stack overflow", message)
  end)
end)

describe("the reason of an end", function()
  after_each(peer.clean)

  local function reason(fn, ...)
    local child = fork(fn, ...)
    local results = table.pack(child:wait())
    return child.reason, results
  end

  it("is nil before the end", function()
    assert.is_nil(running().reason)
  end)

  it("is exit 0 for a function that returned", function()
    local why = reason(function() end)
    assert.are.equal("exit", why.kind)
    assert.are.equal(0, why.code)
  end)

  it("is the code of os.exit, however it is called", function()
    for _, close in ipairs { false, true } do
      for argument, code in pairs { [true] = 0, [false] = 1, [3] = 3, [255] = 255, [0] = 0 } do
        local why, results = reason(function() os.exit(argument, close) end)
        assert.are.equal("exit", why.kind)
        assert.are.equal(code, why.code)
        if code == 0 then
          assert.are.same({ true, n = 1 }, results)
        else
          assert.is_nil(results[1])
          assert.matches("exit " .. code, results[2])
          assert.are.equal(0, results[3])
        end
      end
    end
  end)

  it("is the signal that killed it, by name", function()
    for _, name in ipairs { "KILL", "TERM", "USR1" } do
      local child = running()
      assert.is_true(child:kill(name))
      local ok, message, errno = child:wait()
      assert.is_nil(ok)
      assert.matches(name, message)
      assert.are.equal(0, errno)
      assert.are.equal("signal", child.reason.kind)
      assert.are.equal(name, child.reason.signal)
      assert.is_false(child.reason.core)
      assert.is_nil(child.reason.code)
    end
  end)

  it("tells of a core that was left", function()
    local output = run [[
      local child = ipc.fork(function() ipc.parent:recv() end)
      child:kill "ABRT"
      child:wait(10)
      print(child.reason.signal, math.type(child.reason.core) or type(child.reason.core))
    ]]
    assert.are.equal("ABRT\tboolean\n", output)
  end)
end)

describe("process:kill", function()
  after_each(peer.clean)

  it("sends TERM, or the signal of a name or number", function()
    for name, signal in pairs { TERM = false, USR2 = "USR2", KILL = 9 } do
      local child = running()
      assert.is_true(child:kill(signal or nil))
      child:wait()
      assert.are.equal(name, child.reason.signal)
    end
  end)

  it("asks with signal 0 whether it lives", function()
    local child = running()
    assert.is_true(child:kill(0))
    child:send "end"
    child:wait()
    local ok, _, errno = child:kill(0)
    assert.is_nil(ok)
    assert.are.equal(E.ESRCH, errno)
  end)

  it("answers ESRCH once it has ended, waited for or not", function()
    local child = running()
    assert.is_true(child:kill "KILL")
    assert.are.same({ nil, "closed", E.EPIPE }, { child:recv() })
    child:wait()
    local ok, message, errno = child:kill()
    assert.is_nil(ok)
    assert.matches("^ipc%.process%.kill: ", message)
    assert.are.equal(E.ESRCH, errno)
  end)

  it("refuses what is no signal", function()
    local child = running()
    for _, signal in ipairs { "NONE", "SIGTERM", -1, 4711, 1.5, true } do
      assert.error_matches(function() child:kill(signal) end, "bad argument #1")
    end
  end)

  it("is closed for a closed handle", function()
    local child = running()
    child:stop()
    assert.are.same({ nil, "closed", E.EPIPE }, { child:kill() })
  end)
end)

describe("the child of a fork", function()
  after_each(peer.clean)

  it("never unwinds into its caller: errors, pcall, coroutines, to-be-closed variables", function()
    local output = run [[
      io.stdout:setvbuf "no"
      local parent = ipc.pid()
      local function me() return ipc.pid() == parent and "parent" or "CHILD" end
      local function guarded(how)
        local guard <close> = setmetatable({}, { __close = function() print(how, me(), "closes") end })
        local child <close> = assert(ipc.fork(function()
          if how == "error" then error "inside" end
          if how == "exit" then os.exit(0) end
          return 1
        end))
        child:wait(10)
        print(how, me(), "goes on")
      end
      for _, how in ipairs { "return", "error", "exit" } do
        print(pcall(guarded, how))
        print(coroutine.wrap(function() guarded(how) return "wrapped" end)())
      end
      print("end", me())
    ]]
    local expected = {}
    for _, how in ipairs { "return", "error", "exit" } do
      for _, last in ipairs { "true", "wrapped" } do
        expected[#expected + 1] = how .. "\tparent\tgoes on"
        expected[#expected + 1] = how .. "\tparent\tcloses"
        expected[#expected + 1] = last
      end
    end
    expected[#expected + 1] = "end\tparent\n"
    assert.are.equal(table.concat(expected, "\n"), output)
  end)

  it("runs no __gc and no to-be-closed variable of the parent's at its own end", function()
    local output = run [[
      local parent = ipc.pid()
      Object = setmetatable({}, { __gc = function()
        io.write(ipc.pid() == parent and "parent collects\n" or "CHILD COLLECTS\n")
      end })
      print(ipc.fork(function() return true end):wait(10))
      print((ipc.fork(function() error() end):wait(10)))
      print(ipc.fork(function() os.exit(0) end):wait(10))
    ]]
    assert.are.equal("true\ttrue\nnil\ntrue\nparent collects\n", output)
  end)

  it("cannot yield out of its function", function()
    local got
    local co = coroutine.wrap(function()
      local child = fork(function() coroutine.yield "escaped" end)
      got = { child:wait() }
      return "done"
    end)
    assert.are.equal("done", co())
    assert.is_nil(got[1])
    assert.matches("yield", got[2])
  end)

  it("prints once what was buffered before it", function()
    local output = run [[
      io.stdout:setvbuf("full", 1 << 16)
      io.write "before "
      local file = io.tmpfile()
      file:setvbuf "full"
      file:write "file"
      local child = ipc.fork(function() io.write "child " end)
      assert(child:wait(10))
      io.write "after "
      child = ipc.fork(function() io.write "second " os.exit(0) end)
      assert(child:wait(10))
      child = ipc.fork(function() io.write "third " error() end)
      child:wait(10)
      file:seek "set"
      io.write(file:read "a", "\n")
    ]]
    assert.are.equal("before child after second third file\n", output)
  end)

  it("leaves no zombie, waited for, closed or dropped #slow", function()
    local output = run [[
      local function zombies()
        local file <close> = io.popen "cat /proc/[0-9]*/stat 2>/dev/null"
        local n = 0
        for line in file:lines() do
          local state, parent = line:match "%) (%a) (%d+)"
          if state == "Z" and tonumber(parent) == ipc.pid() then n = n + 1 end
        end
        return n
      end
      local function descriptors()
        local n = 0
        for fd = 0, 1023 do
          local file <close> = io.open("/proc/self/fdinfo/" .. fd)
          n = n + (file and 1 or 0)
        end
        return n
      end
      local before = descriptors()
      for i = 1, 1000 do
        local child = assert(ipc.fork(function() end))
        if i % 3 == 0 then
          assert(child:wait(10))
        elseif i % 3 == 1 then
          child:close()
        end -- else it is dropped
        if i % 20 == 0 then collectgarbage() end
      end
      collectgarbage()
      collectgarbage()
      print(descriptors() - before)
      -- The dropped ones are reaped by later forks, once they have ended.
      local last
      for _ = 1, 100 do
        last = assert(ipc.fork(function() end))
        assert(last:wait(10))
        if zombies() == 0 then break end
      end
      last:close()
      print(zombies())
    ]]
    assert.are.equal("0\n0\n", output)
  end)

  it("that was dropped is reaped by any later wait", function()
    local theirs, w = pipe()
    local pid = assert(ipc.fork(function() theirs:recv() end)).pid
    collectgarbage()
    collectgarbage()
    w:close() -- it ends after it was dropped
    local r = pipe()
    local limit = ipc.now() + peer.limit
    local file
    repeat
      r:recv(0.001)
      file = io.open(("/proc/%d/stat"):format(pid))
    until not (file and file:close()) or ipc.now() > limit
    assert.is_nil(file)
  end)

  it("is waited for although SIGCHLD is ignored", function()
    local output = run([[
      local child = assert(ipc.fork(function() return "result", 2 end))
      print(child:wait(10))
      child = ipc.fork(function() error "an error" end)
      print((select(2, child:wait(10)):match "an error"))
      child = ipc.fork(function() ipc.parent:recv() end)
      print(child:wait(0))
      child:send "end"
      print(child:wait(10))
      child = ipc.fork(function() ipc.parent:recv() end)
      child:kill "KILL"
      print((child:wait(10)))
      local kind = child.reason.kind -- a newer kernel tells by the descriptor
      print(kind == "unknown" or kind == "signal", select(3, child:kill()) == ipc.errno.ESRCH)
      for _ = 1, 20 do ipc.fork(function() end):close() end
      print "alive"
    ]], { under = peer.python_command([[
import os, signal, sys
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
os.execvp(sys.argv[1], sys.argv[1:])
]]):gsub("^exec ", "") })
    assert.are.equal("true\tresult\t2\nan error\nnil\ttimeout\t" .. E.ETIMEDOUT
      .. "\ntrue\nnil\ntrue\ttrue\nalive\n", output)
  end)
end)

describe("the end of a child by the parent's wish", function()
  after_each(peer.clean)

  it("is no hurry for close: it hears closed and may finish", function()
    local child = fork(function()
      for _ in ipc.parent:messages() do end
      local done = 0
      for i = 1, 100000 do done = done + i end
      return done
    end)
    child:send "work"
    assert.is_true(child:close())
    assert.are.same({ true, 5000050000 }, { child:wait() })
    assert.are.same({ "exit", 0 }, { child.reason.kind, child.reason.code })
  end)

  it("comes as soon as close is told to", function()
    local child = peer.fork(function() ipc.sleep(4) end)
    assert.is_true(child:close(0))
    assert.are.equal("signal", child.reason.kind)
  end)

  it("comes to one that sends: close answers closed to it as well", function()
    local child = fork(function()
      repeat until not ipc.parent:put(("x"):rep(10000))
      return "told"
    end)
    assert.is_string(child:get())
    assert.is_true(child:close())
    assert.are.same({ true, "told" }, { child:wait() })
  end)

  it("tells what it never read", function()
    local r, w = pipe()
    local child = fork(function() r:recv() end)
    assert.is_true(child:send(numbers(), nil, 0))
    w:close()
    local ok, message, errno = child:close()
    assert.is_nil(ok)
    assert.matches("^%d+ bytes unsent$", message)
    assert.are.equal(E.EPIPE, errno)
    assert.are.equal("exit", child.reason.kind)
  end)

  it("comes with the end of a block", function()
    local kept
    do
      local child <close> = fork(function()
        for _ in ipc.parent:messages() do end
        return "finished"
      end)
      kept = child
    end
    assert.are.same({ true, "finished" }, { kept:wait() })
  end)

  it("comes at once when the block is left by an error", function()
    local kept
    local ok, err = pcall(function()
      local child <close> = running(function() -- would not end by itself
        while true do ipc.sleep(1000) end
      end)
      kept = child
      error "leaving"
    end)
    assert.is_false(ok)
    assert.matches("leaving", err)
    assert.is_nil((kept:wait()))
    assert.are.equal("TERM", kept.reason.signal)
  end)

  it("is TERM by stop", function()
    local child = running(function() while true do ipc.sleep(1000) end end)
    assert.is_true(child:stop())
    assert.are.equal("TERM", child.reason.signal)
    assert.is_true(child:stop())
    assert.is_false(peer.lives(child.pid))
  end)

  it("is KILL after the grace for one that does not hear TERM", function()
    local output = run([[
      local child = ipc.fork(function()
        ipc.parent:send "running"
        while true do ipc.sleep(1000) end
      end)
      assert(child:recv(10) == "running")
      local before = ipc.now()
      print(child:stop(0.1), ipc.now() - before >= 0.1, child.reason.signal)
      child = ipc.fork(function() ipc.sleep(1000) end)
      print(child:stop(0), child.reason.signal)
    ]], { shell = [[trap "" TERM]] })
    assert.are.equal("true\ttrue\tKILL\ntrue\tKILL\n", output)
  end)

  it("closes the channel, and wait still tells", function()
    local child = running()
    child:stop()
    assert.are.same({ nil, "closed", E.EPIPE }, { child:recv() })
    assert.are.same({ nil, "closed", E.EPIPE }, { child:send "x" })
    assert.is_nil((child:wait()))
    assert.matches("closed", tostring(child))
  end)
end)

describe("handles at a fork", function()
  after_each(peer.clean)

  it("move with the function: arguments and direct upvalues", function()
    local r1, w1 = pipe()
    local r2, w2 = pipe()
    local line = debug.getinfo(1, "l").currentline + 1
    local child = peer.keep(ipc.fork(function(mine)
      for message in mine:messages() do
        w2:send(message:upper())
      end
    end, r1))
    for _, moved in ipairs { r1, w2 } do
      local expected = ("ipc.pipe: moved to %d (spec/process_spec.lua:%d): dup() keeps one")
        :format(child.pid, line)
      for _, call in ipairs { "recv", "send", "pollfd", "maxsize", "dup" } do
        local ok, message = pcall(moved[call], moved, "x")
        assert.is_false(ok, call)
        assert.matches(expected, message, 1, true)
      end
      assert.are.equal(("ipc.pipe (moved to %d)"):format(child.pid), tostring(moved))
      assert.is_true(moved:close()) -- as the end of a block does
      assert.error_matches(function() ipc.fork(function() return moved end) end,
        "moved to " .. child.pid)
      assert.error_matches(function() ipc.poll { moved } end, "moved to " .. child.pid)
    end
    assert.is_true(w1:send "one")
    assert.are.equal("ONE", r2:recv())
    w1:close()
    assert.are.same({ nil, "closed", E.EPIPE }, { r2:recv() })
    assert.is_true(child:wait())
  end)

  it("stay here as well where dup kept one", function()
    local r, w = pipe()
    local mine = w:dup()
    peer.keep(mine)
    fork(function() w:send "from the child" end)
    assert.are.equal("from the child", r:recv())
    assert.is_true(mine:send "from the parent")
    assert.are.equal("from the parent", r:recv())
    mine:close()
    assert.are.same({ nil, "closed", E.EPIPE }, { r:recv() })
  end)

  it("take what was read ahead with them", function()
    local r, w = pipe()
    assert.are.equal(3, w:sendmany { "one", "two", "three" })
    assert.are.equal("one", r:recv()) -- the others are in user space now
    assert.are.equal(E.EBUSY, (select(3, r:dup())))
    local child = fork(function() return r:recv(0), r:recv(0) end)
    assert.are.same({ true, "two", "three" }, { child:wait() })
  end)

  it("take their options with them", function()
    local r, w = pipe { timeout = 0.01, maxsize = 100 }
    local child = fork(function()
      return r:maxsize(), { r:recv() }
    end)
    assert.are.same({ true, 100, { nil, "timeout", E.ETIMEDOUT } }, { child:wait() })
    w:close()
  end)

  it("move once, however often they are named", function()
    local r, w = pipe()
    local child = fork(function(a, b)
      return a == b and b == w and a:send "x"
    end, w, w)
    assert.are.equal("x", r:recv())
    assert.are.same({ true, true }, { child:wait() })
  end)

  it("of both ways move as one: duplex pipes and pairs", function()
    local r1, w1 = pipe()
    local r2, w2 = pipe()
    local both = peer.keep(ipc.duplex(r1, w2))
    for _, ends in ipairs { { pipe { duplex = true } }, { peer.pair "unix" },
      { peer.keep(ipc.duplex(r2, w1)), both } } do
      local a, b = ends[1], ends[2]
      a:settimeout(peer.limit)
      fork(function()
        b:put(b:get(10) + 1)
      end)
      assert.is_true(a:put(41))
      assert.are.equal(42, a:get())
      assert.are.same({ nil, "closed", E.EPIPE }, { a:get() })
      assert.error_matches(function() b:put(1) end, "moved to")
    end
  end)

  it("with a rest on its way take it along: it arrives once", function()
    local r1, w1 = pipe()
    local r2, w2 = pipe()
    for _, ends in ipairs { { peer.pair "unix" }, { r2, peer.keep(ipc.duplex(r1, w2)) } } do
      local r, w = ends[1], ends[2]
      assert.is_true(w:send(numbers(), nil, 0))
      assert.are.same({ nil, "timeout", E.ETIMEDOUT }, { r:recv(0) }) -- now there is room
      local child = fork(function(mine) return mine:flush() end, w)
      assert.is_true(r:recv() == numbers())
      assert.are.same({ nil, "closed", E.EPIPE }, { r:recv() })
      assert.are.same({ true, true }, { child:wait() })
    end
    w1:close()
  end)

  it("of another Lua state of the program are closed in the child", function()
    if not peer.has_proc then
      return pending "needs /proc/self/fdinfo"
    end
    assert.are.equal("true\ttrue\n", run [[
      local fd = require "spec.peer".state "r, w = require 'ipc'.pipe() return w:pollfd()"
      local function held()
        local file <close> = io.open("/proc/self/fdinfo/" .. fd)
        return file ~= nil
      end
      local _, there = ipc.fork(held):wait(10)
      print(held(), there == false)
    ]])
  end)

  it("that a fork(2) of others copied do not keep the copy busy", function()
    assert.are.equal("timeout\ttrue\n", run [[
      local r, w = ipc.pipe()
      assert(w:send(("x"):rep(200000), nil, 0))
      r:recv(0) -- the kernel has room for the rest
      require "spec.peer".fork(function()
        local reader = ipc.pipe()
        local clock = os.clock()
        print(select(2, reader:recv(0.5)), os.clock() - clock < 0.1)
      end)
    ]])
  end)

  it("that do not move are closed in the child, so that ends are seen", function()
    local ends = {}
    for i = 1, 3 do
      local r, w = pipe()
      ends[i] = { child = fork(function()
        for message in r:messages() do
          ipc.parent:send(message)
        end
        return i
      end), w = w }
    end
    for i = 1, 3 do -- each would live on if a sibling held its writer
      assert.is_true(ends[i].w:send("to " .. i))
      assert.are.equal("to " .. i, ends[i].child:recv())
      ends[i].w:close()
      assert.are.same({ true, i }, { ends[i].child:wait() })
    end
  end)

  it("of other processes are closed in the child too", function()
    local first = fork(function()
      ipc.parent:recv()
      return "saw the end"
    end)
    local second = running()
    first:shutdown()
    first:close()
    assert.are.same({ true, "saw the end" }, { first:wait() })
    assert.is_true(peer.lives(second.pid))
  end)

  it("found in the child by another way belong to its parent", function()
    local r, w = pipe()
    local hidden = { r = r, w = w }
    local child = fork(function()
      local out = {}
      for name, channel in pairs(hidden) do
        local call = name == "r" and channel.recv or channel.send
        local _, message, errno = call(channel, name == "r" and 1 or "x")
        out[name] = { message, errno }
      end
      hidden.r:close()
      return out
    end)
    local _, out = child:wait()
    for _, name in ipairs { "r", "w" } do
      assert.are.equal(E.ECHILD, out[name][2])
      assert.matches("process that forked", out[name][1])
    end
    assert.is_true(w:send "here it is open")
    assert.are.equal("here it is open", r:recv())
  end)

  it("that are processes belong to the one that forked them", function()
    local first = running()
    local second = fork(function()
      local _, _, errno = first:wait(0)
      local _, _, killed = first:kill()
      return errno, killed
    end)
    assert.are.same({ true, E.ECHILD, E.ECHILD }, { second:wait() })
    assert.is_true(peer.lives(first.pid))
  end)

  it("leave nothing open: not in the child, not here", function()
    -- Of what is no handle of this state: the specs before may have left some.
    local others = table.pack(fork(function() return peer.descriptors() end):wait())[2]
    local before = peer.descriptors()
    local r, w = pipe()
    local extra = { pipe { duplex = true } }
    local child = fork(function()
      w:put(peer.descriptors())
    end)
    -- There: ipc.parent, the report and where needed the sign of life; and w.
    assert.are.equal(others + 1, r:get())
    assert.is_true(child:wait())
    child:close()
    for _, channel in ipairs { r, extra[1], extra[2] } do
      channel:close()
    end
    assert.are.equal(before, peer.descriptors())
  end)

  it("of grandparents are closed in the grandchild as well", function()
    local function generations(n)
      local found = peer.descriptors()
      if n == 0 then
        return found
      end
      return found, select(2, ipc.fork(generations, n - 1):wait(10))
    end
    local _, first, second = fork(generations, 2):wait()
    assert.are.equal(first, second)
  end)
end)

describe("the end of the program", function()
  after_each(peer.clean)

  -- 100,000 bytes into a pipe for 65,536, accepted; then, when the reader has
  -- made room and no call of ours could notice, the end.
  local script = [[
    local r, w = ipc.pipe { unit = "stream", capacity = %s, timeout = 10 }
    local gone, go = ipc.pipe { unit = "stream", timeout = 10 }
    local path = ("/proc/%%d/fd/%%d"):format(ipc.pid(), gone:pollfd())
    local reader = ipc.fork(function(r, go)
      local n = #r:read(65536)
      go:send "x"
      local rest = r:read "a"
      io.write(n + #rest, " bytes\n")
    end, r, go)
    assert(w:send(("x"):rep(100000), nil, 0))
    assert(w:stats().unsent > 0)
    local file = io.open(path, "rb")
    file:read(1)
    %s
  ]]

  for name, ending in pairs {
    ["the end of the script"] = "",
    ["os.exit()"] = "os.exit(0)",
    ["os.exit(0, true)"] = "os.exit(0, true)",
    ["an error"] = "io.stderr = nil error()",
  } do
    it("writes what was accepted: " .. name, function()
      local output = run(script:format(peer.capacity(65536), ending),
        { env = { LD_PRELOAD = peer.unfailing() } })
      assert.matches("100000 bytes\n", output)
    end)
  end

  it("does not wait for those who do not read", function()
    for _, ending in ipairs { "", "os.exit(0)", "os.exit(0, true)" } do
      local output, ok = run(([[
        local r, w = ipc.pipe { unit = "stream" }
        assert(w:send(("x"):rep(1 << 20), nil, 0))
        print "accepted"
        %s
      ]]):format(ending))
      assert.are.equal("accepted\n", output)
      assert.is_true(ok)
    end
  end)

  it("of a child writes what was accepted, in its function's own time", function()
    local r, w = pipe { unit = "stream", capacity = peer.capacity(4096), linger = peer.limit }
    local sent = ("0123456789"):rep(50000)
    fork(function() assert(w:send(sent, nil, 0)) end)
    assert.is_true(r:read "a" == sent)
  end)

  it("of a child lasts as long as its channels linger", function()
    local r, w = pipe { linger = peer.limit }
    local child = fork(function() return w:send(numbers(), nil, 0) end)
    assert.are.same({ nil, "timeout", E.ETIMEDOUT }, { child:wait(1.5) })
    assert.is_true(r:recv() == numbers())
    assert.are.same({ true, true }, { child:wait() })
  end)

  it("of a child is an error when accepted messages were lost", function()
    local r, w = pipe { linger = 0 }
    local child = fork(function() return w:send(numbers(), nil, 0) end)
    local ok, message, errno = child:wait()
    assert.is_nil(ok)
    assert.matches("accepted", message)
    assert.are.equal(0, errno)
    assert.are.same({ nil, "closed", E.EPIPE }, { r:recv() })
  end)

  it("is clean with children, channels and rests open: os.exit(true, true)", function()
    local output, ok = run [[
      local r, w = ipc.pipe()
      local a, b = ipc.pair "unix"
      w:send(("x"):rep(1 << 20), nil, 0)
      b:send(("x"):rep(1 << 20), nil, 0)
      local child = ipc.fork(function() ipc.parent:recv() end)
      print "end"
      os.exit(true, true)
    ]]
    assert.are.equal("end\n", output)
    assert.is_true(ok)
  end)

  it("tells children that their parent is gone", function()
    local output = run [[
      local r, w = ipc.pipe()
      ipc.fork(function()
        print("child hears", ipc.parent:recv(10))
        io.stdout:flush()
      end)
      print "parent ends"
      os.exit(0)
    ]]
    assert.matches("parent ends\n", output)
    assert.matches("child hears\tnil\tclosed", output)
  end)
end)

describe("what a child leaves", function()
  after_each(peer.clean)

  for name, start in pairs { fork = fork, spawn = function(...) return peer.keep(assert(ipc.spawn(...))) end } do
    it("arrives however large it is: " .. name, function()
      local ok, text, tables = start(function()
        local t = {}
        for i = 1, 150000 do t[i] = {} end
        return ("x"):rep(17 << 20), t
      end):wait()
      assert.is_true(ok)
      assert.are.equal(17 << 20, #text)
      assert.are.equal(150000, #tables)
    end)

    it("is an error's value however large it is: " .. name, function()
      local child = start(function() error { ("x"):rep(17 << 20) } end)
      assert.is_nil((child:wait()))
      assert.are.equal("error", child.reason.kind)
      assert.are.equal(17 << 20, #child.reason.value[1])
    end)
  end

  it("says so where its limit of a file's size cuts it, and no signal ends it", function()
    local child = peer.keep(assert(ipc.spawn {
      fn = function() return ("x"):rep(1 << 20) end, rlimits = { fsize = 65536 },
    }))
    local ok, message, errno = child:wait()
    assert.is_nil(ok)
    assert.matches("^its results could not be left: .*large", message)
    assert.are.equal(0, errno)
    child = peer.keep(assert(ipc.spawn { fn = function() return 1 end, rlimits = { fsize = 0 } }))
    assert.is_nil((child:wait()))
    assert.are.same({ "exit", 1 }, { child.reason.kind, child.reason.code })
  end)

  it("is a failure where a program that is no Lua ends well", function()
    local child = peer.keep(assert(ipc.spawn { fn = function() end, lua = "true" }))
    local ok, message, errno = child:wait()
    assert.is_nil(ok)
    assert.matches("^child %d+: it never ran the function$", message)
    assert.are.equal(0, errno)
    child = peer.keep(assert(ipc.spawn(function() os.exit(0) end)))
    assert.are.same({ true }, { child:wait() })
  end)
end)

describe("an end that is waited for", function()
  after_each(peer.clean)

  local stubborn = { "sh", "-c", "trap '' TERM; echo ready; while :; do sleep 1000; done", stdout = "pipe" }

  -- How it ended, when what waited for its end had no time for that.
  local function reason(leave)
    local p = peer.keep(assert(ipc.exec(stubborn)))
    assert.are.equal("ready", p:read("l", peer.limit))
    local ended = p:exited()
    leave(p)
    assert.is_nil((ended:wait(peer.limit)))
    return p.reason.signal
  end

  for _, how in ipairs { "close", "stop" } do
    it("comes at once when the task is cancelled: " .. how, function()
      assert.are.equal("KILL", reason(function(p)
        ipc.loop.run(function()
          local task = ipc.loop.go(function() p[how](p) end)
          ipc.sleep(0.001) -- its turn
          task:cancel()
          task:wait()
        end)
      end))
    end)

    it("comes at once when the coroutine is closed: " .. how, function()
      assert.are.equal("KILL", reason(function(p)
        local task = coroutine.create(function() p[how](p) end)
        ipc.scheduler {
          is_task = function(thread) return thread == task end,
          wait = function() coroutine.yield() end,
          cancel = function() end,
        }
        coroutine.resume(task)
        assert.are.equal("suspended", coroutine.status(task))
        coroutine.close(task)
        ipc.scheduler(nil)
      end))
    end)
  end

  it("by stop hangs up first: a child that writes at its end is not in its way", function()
    local child = running(function()
      local signals = ipc.signals { "TERM" }
      ipc.parent:send "listens"
      signals:recv()
      local message = ("x"):rep(1 << 20)
      while true do
        local ok, err = ipc.parent:send(message)
        if not ok then return err end
      end
    end)
    assert.are.equal("listens", child:recv())
    assert.is_true(child:stop(peer.limit))
    assert.are.same({ true, "closed" }, { child:wait() })
  end)

  it("by stop hangs up: a child in the middle of a message is told so, and has its say", function()
    local child = running(function()
      local _ = ipc.signals { "TERM" }
      local message = ("x"):rep(1 << 20)
      while true do
        local ok, err = ipc.parent:send(message)
        if not ok then return err end
      end
    end)
    assert(ipc.poll({ child }, peer.limit)) -- the first is here, the second on its way
    assert.is_true(child:stop(peer.limit))
    assert.are.same({ true, "closed" }, { child:wait() })
  end)

  it("is not for Ctrl-C where parent and child have one terminal", function()
    local child = peer.keep(assert(ipc.spawn {
      fn = function()
        ipc.parent:send "running"
        ipc.parent:recv()
        return "went on"
      end,
      group = false,
    }))
    assert.are.equal("running", child:recv(peer.limit))
    assert.is_true(child:kill "INT")
    child:send "go on"
    assert.are.same({ true, "went on" }, { child:wait(peer.limit) })
  end)
end)

describe("forking inside a task", function()
  after_each(peer.clean)

  -- A scheduler of twenty lines: tasks wait for lists of objects.
  local function scheduled(...)
    local tasks, waits = {}, {}
    for i, fn in ipairs { ... } do
      tasks[i] = coroutine.create(fn)
      waits[tasks[i]] = {}
    end
    ipc.scheduler {
      is_task = function(thread) return waits[thread] ~= nil end,
      wait = function(...) coroutine.yield { ... } end,
      cancel = function() end,
    }
    local finished <close> = setmetatable({}, { __close = function() ipc.scheduler(nil) end })
    local _ = finished
    local deadline = ipc.now() + peer.limit
    while next(waits) and ipc.now() < deadline do
      for _, task in ipairs(tasks) do
        if waits[task] then
          local ok, list = coroutine.resume(task)
          assert(ok, list)
          waits[task] = coroutine.status(task) ~= "dead" and list or nil
        end
      end
    end
    assert.is_nil(next(waits), "a task did not end")
  end

  it("gives a child that blocks as in a plain script; the tasks go on", function()
    local results, ticks = {}, 0
    scheduled(function()
      local child = fork(function()
        local r, w = ipc.pipe()
        w:send "inside"
        return r:recv(10), { ipc.parent:recv(10) }
      end)
      ipc.sleep(0)
      child:send "go on"
      results[1] = { child:wait(10) }
    end, function()
      local child = fork(function() error "in a task" end)
      results[2] = { child:wait(10) }
    end, function()
      for _ = 1, 5 do
        ipc.sleep(0.001)
        ticks = ticks + 1
      end
    end)
    assert.are.same({ true, "inside", { "go on" } }, results[1])
    assert.is_nil(results[2][1])
    assert.matches("in a task", results[2][2])
    assert.are.equal(5, ticks)
  end)

  it("moves an end away under a task that waits on it, which is told so", function()
    local r, w = pipe()
    local told
    scheduled(function()
      told = { pcall(r.recv, r, 10) }
    end, function()
      peer.keep(ipc.fork(function() return r:recv(10) end))
      w:send "for the child"
    end)
    assert.is_false(told[1])
    assert.matches("moved to %d+ %(spec/process_spec.lua:%d+%): dup%(%) keeps one", told[2])
  end)

  it("moves an end with a rest away under a task that waits on it: the rest arrives once", function()
    local a, b = peer.pair "unix"
    local told, got
    scheduled(function()
      told = pcall(b.recv, b)
    end, function()
      assert(b:send(numbers(), nil, 0))
      peer.keep(ipc.fork(function() return b:flush() end))
      collectgarbage() -- the message itself
      collectgarbage()
      got = { a:recv() == numbers(), (select(2, a:recv())) }
    end)
    assert.is_false(told)
    assert.are.same({ true, "closed" }, got)
  end)
end)

describe("a system that gives no more", function()
  after_each(peer.clean)

  it("is an answer, not an end: EMFILE", function()
    local output = run([[
      local r, w = ipc.pipe { timeout = 10 }
      local files, child, message, errno = {}
      for room = 0, 12 do -- with so many descriptors left
        repeat
          local file = io.open "/dev/null"
          files[#files + 1] = file
        until not file
        for _ = 1, room do table.remove(files):close() end
        child, message, errno = ipc.fork(function() return "works" end)
        if child then
          assert(select(2, child:wait(10)) == "works")
          child:close()
          print("forks with some left", room < 12 and room > 0)
          break
        end
        if ipc.errno[errno] ~= "EMFILE" or not message:find "^ipc.fork: " then print(message) end
        assert(w:send "usable")
        assert(r:recv() == "usable")
      end
    ]], { shell = "ulimit -n 50" })
    assert.are.equal("forks with some left\ttrue\n", output)
  end)

  it("is an answer, not an end: no more processes", function()
    if io.popen("id -u"):read "n" ~= 0 then
      return pending "needs root, to be a user without processes"
    end
    local output = run([[
      local child, message, errno = ipc.fork(function() end)
      print(child, message:match "^ipc.fork: ", ipc.errno[errno])
      local r, w = ipc.pipe()
      w:send "usable"
      print(r:recv(10))
    ]], {
      under = "prlimit --nproc=1 setpriv --reuid 64321 --clear-groups",
      env = { ASAN_OPTIONS = "detect_leaks=0" }, -- it would need a process
    })
    if output:find "module 'ipc' not found" then
      return pending "needs a checkout that other users can read"
    end
    assert.are.equal("nil\tipc.fork: \tEAGAIN\nusable\n", output)
  end)
end)

describe("fallbacks", function()
  -- What each of them has a hand in: waiting, results, killing, many children.
  local script = [[
    local child = ipc.fork(function(...) return ... end, 1, nil, ("x"):rep(100000))
    local results = table.pack(child:wait(10))
    print(results.n, results[1], results[2], results[3], #results[4])
    child = ipc.fork(function() ipc.parent:recv() error "told" end)
    print(child:wait(0.01))
    child:send "go"
    print((select(2, child:wait(10)):match "told"))
    child = ipc.fork(function() ipc.parent:recv() end)
    print(child:kill "USR1", (child:wait(10)), child.reason.signal, child:kill())
    child = ipc.fork(function()
      local grandchild = ipc.fork(function() ipc.parent:recv() ipc.sleep(1000) end)
      ipc.parent:put(grandchild.pid)
      os.exit(3)
    end)
    local orphan = child:get(10)
    print((child:wait(5)), child.reason and child.reason.code)
    os.execute("kill -KILL " .. orphan)
    child = ipc.fork(function() ipc.sleep(1000) end)
    print(child:stop(0.01), child.reason.signal)
    for i = 1, 20 do ipc.fork(function() return i end):close() end
    local list = {}
    for i = 1, 10 do list[i] = ipc.fork(function() return i end) end
    local sum = 0
    for i = 1, 10 do sum = sum + select(2, list[i]:wait(10)) end
    print(sum)
  ]]

  for _, without in ipairs { "nothing", "pidfd", "memfd", "pidfd,memfd" } do
    it("keep every promise: IPC_WITHOUT=" .. without, function()
      local expected = table.concat({
        "4\ttrue\t1\tnil\t100000",
        "nil\ttimeout\t" .. E.ETIMEDOUT,
        "told",
        "true\tnil\tUSR1\tnil\tipc.process.kill: No such process\t" .. E.ESRCH,
        "nil\t3",
        "true\tKILL",
        "55",
      }, "\n") .. "\n"
      assert.are.equal(expected, (run(script, {
        env = { IPC_WITHOUT = without }, shell = [[trap "" TERM]],
      })))
    end)
  end

  it("without memfd leave no file behind", function()
    local folder = os.tmpname()
    os.remove(folder)
    assert(os.execute("mkdir " .. folder))
    run("assert(ipc.fork(function() return 1 end):wait(10))",
      { env = { IPC_WITHOUT = "memfd", TMPDIR = folder } })
    local left = io.popen("ls -A " .. folder):read "a"
    os.execute("rm -rf " .. folder)
    assert.are.equal("", left)
  end)
end)
