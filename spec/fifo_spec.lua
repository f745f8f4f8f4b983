-- Named pipes: what is their own beyond what contract_spec says of every
-- channel, and peers that are not this library: mkfifo, cat, sh, socat, Python.
local ipc = require "ipc"
local peer = require "spec.support.peer"
local scheduler = require "spec.support.scheduler"
local with = require "spec.support.with"

local E = ipc.errno
local LIMIT <const> = peer.limit
local KIB <const> = 1024

-- ---- names of our own

local paths, count = {}, 0

local function new_path()
  count = count + 1
  local path = ("/tmp/lua_ipc_fifo.%d.%d"):format(ipc.pid(), count)
  paths[#paths + 1] = path
  return path
end

local function clean()
  peer.clean()
  for _, path in ipairs(paths) do os.remove(path) end
  paths = {}
end

local function exists(path) return os.execute(("test -e %s || test -L %s"):format(path, path)) == true end

-- What stat(1) says.
local function stat(format, path)
  return (with.shell(("LC_ALL=C stat -c %s %s"):format(with.quote(format), path)):gsub("\n$", ""))
end

-- Opens one side, every wait bounded, closed at the end of the spec.
local function fifo(path, mode, options)
  local all = {}
  for name, value in pairs(options or {}) do all[name] = value end
  local channel = assert(ipc.fifo(path, mode, all))
  if not all.timeout then channel:settimeout(LIMIT) end
  return peer.keep(channel)
end

-- Both sides of a new one.
local function both(options)
  local path = new_path()
  local r = fifo(path, "r", options)
  return r, fifo(path, "w", options), path
end

local function times_out(...) assert.are.same({ nil, "timeout", E.ETIMEDOUT }, { ... }) end
local function is_closed(...) assert.are.same({ nil, "closed", E.EPIPE }, { ... }) end

local function fails(errno, pattern, ...)
  local nothing, message, number = ...
  assert.is_nil(nothing)
  assert.are.equal(errno, number, message)
  assert.matches(pattern, message)
end

-- A mistake in the call blames its line.
local function raises_here(pattern, f, ...)
  local arguments = table.pack(...)
  local ok, message = pcall(function()
    local results = table.pack(f(table.unpack(arguments, 1, arguments.n)))
    return results
  end)
  assert.is_false(ok)
  assert.matches("^spec/fifo_spec.lua:%d+: " .. pattern, message)
end

local function elapsed(f, ...)
  local start = ipc.now()
  local results = table.pack(f(...))
  return ipc.now() - start, table.unpack(results, 1, results.n)
end

-- A text that shows where a piece of it is missing or another's.
local function text(letter, size)
  local line = {}
  for i = 1, 512 do line[i] = ("%s%06x\n"):format(letter, i) end
  local block = table.concat(line)
  return block:rep(size // #block + 1):sub(1, size)
end

-- A Lua program of its own that runs until its end; what it prints.
local function run(script, options)
  return (peer.run("local path = " .. ("%q"):format(options.path) .. " " .. script, options))
end

describe("opening a fifo", function()
  after_each(clean)

  it("makes it, for the owner only", function()
    local path = new_path()
    fifo(path, "r")
    assert.are.equal("fifo 600", stat("%F %a", path))
  end)

  it("needs a mode, and one way", function()
    for _, mode in ipairs { "rw", "x", "", 1, true } do
      assert.error_matches(function() ipc.fifo(new_path(), mode) end, "bad argument #2 to ")
    end
    assert.error_matches(function() ipc.fifo(new_path()) end, "bad argument #2 to ")
    assert.error_matches(function() ipc.fifo(new_path(), "rw") end, "one way: ipc.duplex")
    assert.error_matches(function() ipc.open("fifo:" .. new_path()) end, "bad argument #2 to 'open'")
    for _, path in ipairs(paths) do assert.is_false(exists(path)) end
  end)

  it("by an address with options is the same", function()
    local path = new_path()
    local r = peer.keep(assert(ipc.open("fifo:" .. path .. "?unit=stream", "r")))
    local w = peer.keep(assert(ipc.open("fifo:" .. path, "w", { unit = "stream" })))
    assert(w:send "two\nlines\n")
    assert.are.equal("two", r:read("l", LIMIT))
    assert.are.equal("lines", r:read("l", LIMIT))
  end)

  it("refuses names that cannot be, naming the limit", function()
    assert.error_matches(function() ipc.fifo("", "r") end, "bad argument #1 .*empty path")
    assert.error_matches(function() ipc.fifo("/tmp/a\0b", "r") end, "bad argument #1 .*zero byte")
    assert.error_matches(function() ipc.fifo(42, "r") end, "bad argument #1 .*path expected")
    assert.error_matches(function() ipc.open("fifo:", "r") end, "bad argument #1 to 'open'")
    fails(E.ENAMETOOLONG, "5000 bytes, but PATH_MAX is %d+", ipc.fifo("/" .. ("x"):rep(4999), "r"))
    fails(E.ENAMETOOLONG, "^ipc%.fifo%.open: /tmp/xxx", ipc.fifo("/tmp/" .. ("x"):rep(300), "r"))
    fails(E.ENOENT, "^ipc%.fifo%.open: /tmp/no/such: ", ipc.fifo("/tmp/no/such", "r"))
  end)

  it("refuses what is no fifo, says what it is, and never touches it", function()
    local path = new_path()
    assert(io.open(path, "w")):write("mine"):close()
    local before = stat("%a %s %Y", path)
    for _, mode in ipairs { "r", "w" } do
      for _, create in ipairs { true, false } do
        fails(E.EEXIST, path .. ": it is a file: ", ipc.fifo(path, mode, { create = create }))
      end
      fails(E.EEXIST, "it is a directory", ipc.fifo("/tmp", mode))
      fails(E.EEXIST, "it is a device", ipc.fifo("/dev/null", mode))
    end
    assert.are.equal(before, stat("%a %s %Y", path))
    assert.are.equal("mine", io.open(path):read "a")
  end)

  it("create = false only attaches, \"new\" only makes", function()
    local path = new_path()
    fails(E.ENOENT, path, ipc.fifo(path, "r", { create = false }))
    fifo(path, "r", { create = "new" })
    fails(E.EEXIST, path, ipc.fifo(path, "w", { create = "new" }))
    assert(fifo(path, "w", { create = false }):send "x")
  end)

  it("has the permissions asked, whatever the umask", function()
    for _, umask in ipairs { "000", "022", "777" } do
      local path = new_path()
      assert.are.equal("ok\n", run([[
        local r = assert(ipc.fifo(path, "r"))
        local wide = assert(ipc.fifo(path .. ".wide", "r", { permissions = "0666" }))
        local a, b = assert(ipc.pair "fifo")
        assert(a:send "x")
        print(b:recv(5) and "ok")
      ]], { path = path, shell = "umask " .. umask }))
      paths[#paths + 1] = path .. ".wide"
      assert.are.equal("600", stat("%a", path))
      assert.are.equal("666", stat("%a", path .. ".wide"))
    end
  end)

  it("with other permissions than it has tells both", function()
    local path = new_path()
    fifo(path, "r", { permissions = "0640" })
    fails(E.EEXIST, '"0600" were asked, it has "0640"', ipc.fifo(path, "w", { permissions = "0600" }))
    fifo(path, "w", { permissions = "0640" })
    fifo(path, "w") -- who asks for none takes it as it is
  end)

  if with.shell "id -u" == "0\n" then
    it("that another user put there is refused, unless told not to create", function()
      local path, link = new_path(), new_path()
      assert(os.execute(("mkfifo %s && chown 54321 %s"):format(path, path)))
      assert(os.execute(("ln -s %s %s && chown -h 54321 %s"):format(path, link, link)))
      fails(E.EACCES, "belongs to user 54321 %(create = false", ipc.fifo(path, "r"))
      fails(E.EACCES, "belongs to user 54321", ipc.fifo(link, "r"))
      fifo(path, "r", { create = false })
      assert(fifo(link, "w", { create = false }):send "x")
    end)
  else
    it("that root put there is accepted", function()
      assert.are.equal("0", stat("%u", "/"))
    end)
  end

  it("finds it behind a symbolic link", function()
    local path, link = new_path(), new_path()
    local r = fifo(path, "r")
    assert(os.execute(("ln -s %s %s"):format(path, link)))
    assert(fifo(link, "w"):send "x")
    assert.are.equal("x", r:recv())
    fails(E.ENOENT, link, fifo(link, "w"):remove()) -- the link is another file
  end)

  it("refuses options that it does not have, by name", function()
    assert.error_matches(function() ipc.fifo(new_path(), "r", { packet = true }) end,
      "unknown option 'packet'")
    assert.error_matches(function() ipc.fifo(new_path(), "w", { writers = 0 }) end,
      "option 'writers': 0 is not in")
    assert.is_false(exists(paths[1]))
  end)

  it("answers EMFILE and names the limit; what was there before stays usable", function()
    local path = new_path()
    local output = run([[
      local list, r, message, errno = {}
      repeat
        r, message, errno = ipc.fifo(path, "r")
        list[#list + 1] = r
      until not r
      print(ipc.errno[errno])
      print(message)
      table.remove(list):close()
      local w = assert(ipc.fifo(path, "w", { writers = 1 }))
      print(w:send "x", list[1]:recv(5))
    ]], { path = path, shell = "ulimit -n 40" })
    assert.matches("^EMFILE\nipc%.fifo%.open: [^\n]*RLIMIT_NOFILE is 40 [^\n]*\ntrue\tx\n$", output)
  end)

  it("with two Lua states in one process gives each its own side", function()
    local path = new_path()
    local r = fifo(path, "r")
    assert.are.equal(1, require "spec.peer".state(([[
      package.path, package.cpath = %q, %q
      local w <close> = assert(require "ipc".fifo(%q, "w"))
      return w:send "from the other state" and 1 or 0
    ]]):format(package.path, package.cpath, path)))
    assert.are.equal("from the other state", r:recv())
  end)
end)

describe("a fifo without the other side", function()
  after_each(clean)

  it("opens for reading at once: that nobody came yet is no end", function()
    local r = fifo(new_path(), "r")
    for _ = 1, 3 do
      times_out(r:recv(0))
      times_out(ipc.poll({ r }, 0))
    end
    assert.is_true(elapsed(r.recv, r, 0.02) >= 0.02)
  end)

  it("refuses to open for writing: ENXIO, and says what waits", function()
    local path = new_path()
    fails(E.ENXIO, path .. ": no reader %(retry = seconds waits for one%)", ipc.fifo(path, "w"))
    fails(E.ENXIO, "no reader", ipc.fifo(path, "w", { retry = 0 }))
    fails(E.ENXIO, "no reader", ipc.fifo(path, "w", { retry = false, timeout = 5 }))
    assert.is_true(exists(path)) -- what was made stays
  end)

  it("waits for a reader as long as retry or timeout says", function()
    for _, options in ipairs { { retry = 0.05 }, { retry = true, timeout = 0.05 } } do
      local time, w, word, errno = elapsed(ipc.fifo, new_path(), "w", options)
      times_out(w, word, errno)
      assert.is_true(time >= 0.05)
    end
    times_out(ipc.fifo(new_path(), "w", { retry = true, timeout = 0 }))
    times_out(ipc.fifo(new_path(), "w", { retry = 0.01, create = false })) -- nor does it exist
  end)

  it("leaves nothing of one that was to be temporary", function()
    local path = new_path()
    local before = peer.descriptors()
    times_out(ipc.fifo(path, "w", { retry = 0.001, temporary = true }))
    fails(E.ENXIO, "no reader", ipc.fifo(path, "w", { temporary = true }))
    assert.is_false(exists(path))
    assert.are.equal(before, peer.descriptors())
  end)

  it("goes on when the reader comes", function()
    local path = new_path()
    local child = peer.fork(function()
      local w = assert(ipc.fifo(path, "w", { retry = LIMIT }))
      return w:send "at last"
    end)
    local r = fifo(path, "r", { retry = LIMIT }) -- and here until the writer does
    assert.are.equal("at last", r:recv())
    assert.is_true(child:wait(LIMIT))
  end)

  it("with retry a reader waits for a writer that need not write", function()
    local path = new_path()
    local time, r, word, errno = elapsed(ipc.fifo, path, "r", { retry = 0.03 })
    times_out(r, word, errno)
    assert.is_true(time >= 0.03)
    local sh = peer.popen(("exec 3> %s; cat >&2"):format(path), "w") -- until it is closed
    r = fifo(path, "r", { retry = LIMIT })
    times_out(r:recv(0))
    sh:close()
    is_closed(r:recv())
  end)

  it("with retry nothing is lost of a writer that came, wrote and left", function()
    local path = new_path()
    local first = fifo(path, "r", { unit = "stream" })
    assert(os.execute("echo left > " .. path))
    local r = fifo(path, "r", { retry = LIMIT, unit = "stream" })
    assert.are.equal("left", r:read "l")
    times_out(r:recv(0)) -- since it was opened nobody came
    first:close()
  end)

  it("keepalive: a writer needs no reader, and what it wrote waits for one", function()
    local path = new_path()
    local w = fifo(path, "w", { keepalive = true })
    assert(w:send "early")
    local r = fifo(path, "r")
    assert.are.equal("early", r:recv())
    r:close()
    assert(w:send "and again")
    assert.are.equal("and again", fifo(path, "r"):recv())
  end)

  it("Ctrl-C ends an opening that waits", function()
    for _, mode in ipairs { "r", "w" } do
      local path = new_path()
      local program = with.command(([[
        local ipc = require "ipc"
        io.stdout:setvbuf "no"
        print(ipc.pid())
        ipc.fifo(%q, %q, { retry = true, temporary = true })
        print "went on"
      ]]):format(path, mode))
      local pipe <close> = assert(io.popen(program .. " 2>&1"))
      local pid = assert(tonumber(pipe:read "l"))
      local limit = ipc.now() + LIMIT
      repeat until exists(path) or ipc.now() > limit
      os.execute("kill -INT " .. pid)
      local output = pipe:read "a"
      assert.matches("interrupted!", output)
      assert.is_nil(output:find "went on")
      assert.is_false(exists(path)) -- it was temporary
    end
  end)

  it("in a task lets the others go on: both sides in one program", function()
    local path = new_path()
    local s = scheduler.new()
    local got
    s:go(function()
      local w <close> = assert(ipc.fifo(path, "w", { retry = LIMIT }))
      assert(w:send "between tasks")
    end)
    s:go(function()
      local r <close> = assert(ipc.fifo(path, "r", { retry = LIMIT }))
      got = r:recv(LIMIT)
    end)
    s:run(LIMIT)
    ipc.scheduler(nil)
    assert.are.equal("between tasks", got)
    assert.is_true(s.turns < 1000) -- it slept
  end)

  it("in a task that is dropped leaves no descriptor", function()
    local path = new_path()
    local before = peer.descriptors()
    local s = scheduler.new()
    local thread = s:go(function() ipc.fifo(path, "r", { retry = true }) end)
    s:step()
    assert.is_true(peer.descriptors() > before)
    s:drop(thread)
    coroutine.close(thread)
    ipc.scheduler(nil)
    thread = nil -- luacheck: ignore
    assert.are.equal(before, peer.descriptors())
  end)
end)

describe("the end of a fifo", function()
  after_each(clean)

  it("comes when the last writer has left, and stays", function()
    local r, w, path = both()
    local w2 = fifo(path, "w")
    assert(w:send "1")
    w:close()
    assert.are.equal("1", r:recv())
    times_out(r:recv(0))
    assert(w2:send "2")
    w2:close()
    assert.are.equal("2", r:recv())
    is_closed(r:recv())
    fifo(path, "w") -- a later writer does not undo it
    is_closed(r:recv(0))
  end)

  it("comes of a writer that never wrote", function()
    local r, w = both()
    w:close()
    is_closed(r:recv())
    assert.is_true(ipc.poll({ r }, 0)[r])
  end)

  it("comes when the last reader has left, and stays", function()
    local r, w, path = both()
    r:close()
    is_closed(w:send "x")
    fifo(path, "r")
    is_closed(w:send "x")
    is_closed(w:send("x", nil, 0))
    is_closed(w:put {})
    assert.is_true(ipc.poll({ { w, "w" } }, 0)[w])
  end)

  it("never comes to a reader with keepalive", function()
    local path = new_path()
    local r = fifo(path, "r", { keepalive = true, unit = "stream" })
    for i = 1, 3 do
      assert(os.execute(("echo %d > %s"):format(i, path)))
      assert.are.equal(tostring(i), r:read "l")
      times_out(r:recv(0))
    end
  end)

  it("comes although the reader is one with keepalive, when that one dies", function()
    local path = new_path()
    local child = peer.fork(function()
      local r = assert(ipc.fifo(path, "r", { keepalive = true }))
      ipc.parent:send "open"
      r:recv(LIMIT)
      ipc.parent:recv(LIMIT)
    end)
    assert(child:recv())
    local w = fifo(path, "w")
    assert(w:send(("x"):rep(10)))
    assert(child:kill "KILL")
    child:wait(LIMIT)
    is_closed(w:send "x")
  end)
end)

describe("opening a fifo again", function()
  after_each(clean)

  it("waits for the next writer after the last has left", function()
    local r, w, path = both()
    w:close()
    is_closed(r:recv())
    times_out(r:reopen(0))
    local time, ok, word, errno = elapsed(r.reopen, r, 0.03)
    times_out(ok, word, errno)
    assert.is_true(time >= 0.03)
    local child = peer.fork(function()
      local next_one = assert(ipc.fifo(path, "w", { retry = LIMIT }))
      ipc.parent:recv(LIMIT)
      return next_one:send "next"
    end)
    assert.is_true(r:reopen())
    assert(child:send "go")
    assert.are.equal("next", r:recv())
    is_closed(r:recv())
  end)

  it("after a timeout the reader is as just opened", function()
    local r, w, path = both()
    w:close()
    is_closed(r:recv())
    times_out(r:reopen(0.001))
    times_out(r:recv(0))
    assert(fifo(path, "w"):send "later")
    assert.are.equal("later", r:recv())
  end)

  it("loses nothing that a new writer has already written", function()
    local r, w, path = both()
    assert(w:send "old")
    w:close()
    assert.are.equal("old", r:recv())
    is_closed(r:recv())
    local w2 = fifo(path, "w")
    assert(w2:sendmany { "new", "er" })
    assert.is_true(r:reopen(0))
    assert.are.equal("new", r:recv())
    w2:close()
    assert.are.equal("er", r:recv())
    is_closed(r:recv())
  end)

  it("nor of one that has written and left", function()
    local r, w, path = both()
    w:close()
    is_closed(r:recv())
    local w2 = fifo(path, "w")
    assert(w2:send "hello and goodbye")
    w2:close()
    assert.is_true(r:reopen(0))
    assert.are.equal("hello and goodbye", r:recv())
  end)

  it("drops half a message of a dead writer, and keeps the whole ones", function()
    local r, w, path = both()
    local raw = with.raw(w:pollfd())
    raw((">s4s4s4"):pack("one", "two", "three"))
    raw((">I4"):pack(100) .. "half of it")
    assert.are.equal("one", r:recv()) -- reads ahead
    w:close()
    raw = nil -- luacheck: ignore
    collectgarbage()
    assert.is_true(r:reopen(0)) -- before it was found closed that does nothing
    assert.are.equal("two", r:recv())
    assert.are.equal("three", r:recv())
    is_closed(r:recv()) -- half a message and its end
    local w2 = fifo(path, "w")
    assert(w2:send "whole")
    assert.is_true(r:reopen())
    assert.are.equal("whole", r:recv())
  end)

  it("does nothing while the other side is there", function()
    local r, w = both()
    for _ = 1, 3 do assert.is_true(w:reopen(0) and r:reopen(0)) end
    assert(w:send "x" and w:send "y")
    assert.are.equal("x", r:recv())
    assert.is_true(r:reopen(0))
    assert.are.equal("y", r:recv())
  end)

  it("of a writer waits for the next reader", function()
    local r, w, path = both()
    r:close()
    is_closed(w:send "x")
    times_out(w:reopen(0))
    is_closed(w:send "x") -- still
    local time = elapsed(w.reopen, w, 0.03)
    assert.is_true(time >= 0.03)
    local child = peer.fork(function()
      ipc.parent:send(assert(ipc.fifo(path, "r")):recv(LIMIT))
    end)
    assert.is_true(w:reopen())
    assert(w:send "again")
    assert.are.equal("again", child:recv())
  end)

  it("of a writer whose last message was cut off starts anew", function()
    local r, w, path = both()
    assert(w:send(text("a", 300 * KIB), nil, 0))
    fails(E.EBUSY, "bytes are on their way", w:reopen(0))
    r:close()
    is_closed(w:flush())
    times_out(w:reopen(0))
    local r2 = fifo(path, "r")
    assert.is_true(w:reopen(0))
    assert(w:send "anew")
    assert.are.equal("anew", r2:recv())
    assert.matches("bytes unsent", (select(2, w:close()))) -- is told all the same
  end)

  it("answers ENOENT when it was removed, ESTALE when another is there", function()
    local r, w, path = both()
    w:close()
    is_closed(r:recv())
    assert(r:remove())
    fails(E.ENOENT, path, r:reopen(0))
    assert(os.execute("mkfifo " .. path))
    fails(E.ESTALE, "another file is there now", r:reopen(0))
    is_closed(r:recv(0))
    r:close()
    is_closed(r:reopen(0))
  end)

  it("answers EBUSY while a task waits on it", function()
    local r, w = both()
    local s = scheduler.new()
    local got
    s:go(function() got = r:recv() end)
    s:step()
    fails(E.EBUSY, "tasks wait on it", r:reopen(0))
    assert(w:send "x")
    s:run(LIMIT)
    assert.are.equal("x", got)
    -- and waits in one without turning in circles
    w:close()
    is_closed(r:recv())
    local path = paths[#paths]
    s:go(function()
      assert(r:reopen())
      got = r:recv()
    end)
    s:go(function()
      ipc.sleep(0.01)
      local next_one <close> = assert(ipc.fifo(path, "w"))
      assert(next_one:send "to the task")
    end)
    local before = s.turns
    s:run(LIMIT)
    ipc.scheduler(nil)
    assert.are.equal("to the task", got)
    assert.is_true(s.turns - before < 1000)
  end)

  it("in a task of a writer waits without turning in circles", function()
    local r, w, path = both()
    r:close()
    is_closed(w:send "x")
    local s = scheduler.new()
    local got
    s:go(function() assert(w:reopen() and w:send "x") end)
    s:go(function()
      ipc.sleep(0.01)
      local r2 <close> = assert(ipc.fifo(path, "r"))
      got = r2:recv(LIMIT)
    end)
    s:run(LIMIT)
    ipc.scheduler(nil)
    assert.are.equal("x", got)
    assert.is_true(s.turns < 1000)
  end)
end)

describe("the name of a fifo", function()
  after_each(clean)

  it("stays when it is closed, by whomever", function()
    local r, w, path = both()
    r:close()
    w:close()
    assert.is_true(exists(path))
    fifo(path, "r")
  end)

  it("goes by remove, once; who has it open goes on", function()
    local r, w, path = both()
    assert.is_true(w:remove())
    assert.is_false(exists(path))
    fails(E.ENOENT, path, r:remove())
    assert(w:send "still")
    assert.are.equal("still", r:recv())
    r:close()
    is_closed(r:remove())
  end)

  it("that names another file by now is not removed", function()
    local r, w, path = both { temporary = true }
    assert(r:remove())
    assert(os.execute("mkfifo " .. path))
    fails(E.ENOENT, path, w:remove())
    r:close()
    w:close()
    assert.is_true(exists(path))
  end)

  it("goes with the close of who made it, if temporary", function()
    local path = new_path()
    local r = fifo(path, "r", { temporary = true })
    local w = fifo(path, "w", { temporary = true })
    w:close() -- it found it
    assert.is_true(exists(path))
    r:close()
    assert.is_false(exists(path))
  end)

  it("is not removed by the collector", function()
    local path = new_path()
    assert(ipc.fifo(path, "r", { temporary = true }))
    collectgarbage()
    collectgarbage()
    assert.is_true(exists(path))
  end)

  it("goes with the end of the program, however it ends, if temporary", function()
    for _, ending in ipairs { "", "os.exit(0)", "os.exit(0, true)", "error('x', 0)", "os.exit(3, false)" } do
      local path = new_path()
      local output = run([[
        local r = assert(ipc.fifo(path, "r", { temporary = true }))
        local other = assert(ipc.fifo(path .. ".other", "r"))
        print(os.execute("test -p " .. path) and "there" or "not there")
        io.stdout:flush()
      ]] .. ending, { path = path })
      paths[#paths + 1] = path .. ".other"
      assert.matches("^there\n", output)
      assert.is_false(exists(path), ending)
      assert.is_true(exists(path .. ".other"), ending)
    end
  end)

  it("is the parent's: a child that shares the writer does not remove it", function()
    local path = new_path()
    fifo(path, "r", { create = true })
    os.remove(path)
    local w = fifo(path, "w", { temporary = true, keepalive = true })
    local child = peer.fork(function() return w:close() end)
    assert.is_true(child:wait(LIMIT))
    child = peer.fork(function() return w:send "and its end neither" end)
    assert.is_true(child:wait(LIMIT))
    assert.is_true(exists(path))
    w:close()
    assert.is_false(exists(path))
  end)

  it("moves with a reader that made it", function()
    local path = new_path()
    local r = fifo(path, "r", { temporary = true })
    local child = peer.fork(function()
      ipc.parent:recv()
      return r:recv(0)
    end)
    assert.is_true(exists(path))
    assert(child:send "end")
    child:wait(LIMIT)
    assert.is_false(exists(path))
  end)
end)

describe("several writers of a fifo", function()
  after_each(clean)

  local without = os.getenv "IPC_WITHOUT" or ""

  -- Takes the lock as another writer would.
  local locker = [[
import fcntl, os, sys
fd = os.open(sys.argv[1], os.O_WRONLY)
fcntl.flock(fd, fcntl.LOCK_EX if sys.argv[2] == "alone" else fcntl.LOCK_SH)
print("locked", flush=True)
sys.stdin.read()
]]

  -- Locks until what it returns is called.
  local function lock(path, how)
    local said = new_path()
    local python = peer.popen(("%s > %s"):format(
      peer.python_command(locker, path, how):gsub("^exec ", ""), said), "w")
    local limit = ipc.now() + LIMIT
    repeat
      local file <close> = io.open(said)
    until file and file:read "l" == "locked" or ipc.now() > limit
    return function() python:close() end
  end

  it("keep frames of any size whole: 20 processes, 10 bytes to 300 KiB #slow",
    function()
      local WRITERS <const>, EACH <const> = 20, 12
      local path = new_path()
      local r = fifo(path, "r")
      for i = 1, WRITERS do
        local w = fifo(path, "w")
        peer.fork(function()
          local letter = string.char(64 + i)
          for n = 1, EACH do
            local size = ({ 10, 300 * KIB, 4092, 4093, 100, 20000 })[(n + i) % 6 + 1]
            if n % 4 == 0 then
              assert(w:sendmany({ text(letter, size), text(letter, 50), text(letter, size) }, nil, LIMIT))
            else
              assert(w:send(text(letter, size), nil, LIMIT))
            end
          end
        end)
        w:close()
      end
      local got, most = {}, 0
      for message in r:messages() do
        local letter = message:sub(1, 1)
        assert.is_true(message == text(letter, #message), letter .. ": " .. #message)
        got[letter] = (got[letter] or 0) + 1
        most = math.max(most, #message)
      end
      assert.are.equal(300 * KIB, most)
      for i = 1, WRITERS do
        assert.are.equal(EACH + 2 * (EACH // 4), got[string.char(64 + i)])
      end
    end)

  it("wait until a long message of another is all out", function()
    local r, w, path = both()
    local w2 = fifo(path, "w")
    local long = text("a", 300 * KIB)
    assert(w:send(long, nil, 0))
    times_out(w2:send("b", nil, 0))
    times_out(w2:send("b", nil, 0.01))
    times_out(w2:put("b", nil, 0.001))
    assert.are.same({ [2] = "timeout", [3] = E.ETIMEDOUT, [4] = 0 },
      { w2:sendmany({ "b" }, nil, 0.001) })
    times_out(ipc.poll({ { w2, "w" } }, 0.01))
    assert.is_nil(w2:pollfd()) -- its descriptor would not tell
    assert.is_true(w2:timeout() > 0) -- but so long
    assert.is_true(r:recv() == long) -- this wait writes it
    assert.is_true(ipc.poll({ { w2, "w" } }, LIMIT)[w2])
    assert(w2:send "b")
    assert.are.equal("b", r:recv())
    assert.is_number(w2:pollfd())
  end)

  it("let it out whichever way: flush, poll, close", function()
    for _, finish in ipairs { "flush", "poll", "close" } do
      local path = new_path()
      local r = fifo(path, "r", { unit = "stream" })
      local w = fifo(path, "w")
      local w2 = fifo(path, "w")
      assert(w:send(text("a", 100 * KIB), nil, 0))
      times_out(w2:send("b", nil, 0))
      local n = #assert(r:read(60 * KIB))
      if finish == "flush" then
        assert(w:flush())
      elseif finish == "poll" then
        ipc.poll({ { w, "w" } }, LIMIT)
      else
        assert(w:close())
      end
      assert(w2:send("b", nil, LIMIT))
      assert.are.equal(100 * KIB + 4, #assert(r:read(100 * KIB + 4 - n)) + n)
      assert.are.equal("\0\0\0\1b", r:read(5))
    end
  end)

  it("tell tasks without turning in circles", function()
    local r, w, path = both()
    local w2 = fifo(path, "w")
    assert(w:send(text("a", 300 * KIB), nil, 0))
    local s = scheduler.new()
    local got = {}
    s:go(function() assert(w2:send "b") end)
    s:go(function()
      ipc.sleep(0.02)
      got[1], got[2] = #r:recv(), r:recv()
    end)
    s:run(LIMIT)
    ipc.scheduler(nil)
    assert.are.same({ 300 * KIB, "b" }, got)
    assert.is_true(s.turns < 2000, s.turns)
  end)

  if not without:find "flock" then
    it("respect the lock of a foreign one that takes it, flock(2)", function()
      local r, w, path = both()
      local shared = lock(path, "shared")
      assert(w:send "short ones share it")
      times_out(w:send(text("x", 5000), nil, 0.01)) -- a long one must be alone
      shared()
      local alone = lock(path, "alone")
      local time, ok, word, errno = elapsed(w.send, w, "short", nil, 0.02)
      times_out(ok, word, errno)
      assert.is_true(time >= 0.02)
      times_out(ipc.poll({ { w, "w" } }, 0))
      local sole = fifo(path, "w", { writers = 1 })
      assert(sole:send "no lock is taken by a sole writer")
      assert(sole:send(text("y", 5000)))
      local stream = fifo(path, "w", { unit = "stream" })
      assert(stream:send "\0\0\0\0")
      alone()
      assert(w:send "free")
      for _, message in ipairs {
        "short ones share it", "no lock is taken by a sole writer", text("y", 5000), "", "free",
      } do
        assert.are.equal(message, r:recv())
      end
    end)
  end

  it("go on when one is killed that holds it", function()
    local path = new_path()
    local r = fifo(path, "r", { unit = "stream" })
    local w = fifo(path, "w")
    local child = peer.fork(function()
      local w2 = assert(ipc.fifo(path, "w"))
      w2:send(text("a", 300 * KIB), nil, 0)
      ipc.parent:send "half out"
      ipc.parent:recv(LIMIT)
    end)
    assert(child:recv())
    times_out(w:send("b", nil, 0))
    assert(child:kill "KILL")
    child:wait(LIMIT)
    while r:recv(0) do end
    assert(w:send "b")
    assert.are.equal("\0\0\0\1b", r:recv())
  end)

  it("are two after a fork: the writer is usable in both processes", function()
    local r, w = both()
    assert(w:send(text("p", 10000))) -- its lock is there
    assert.are.equal(10000, #r:recv())
    local child = peer.fork(function()
      for _ = 1, 20 do assert(w:send(text("c", 100 * KIB))) end
      return w:close()
    end)
    local got = { p = 0, c = 0 }
    local s = scheduler.new()
    s:go(function()
      for _ = 1, 20 do assert(w:send(text("p", 100 * KIB))) end
      w:close()
    end)
    s:go(function()
      for message in r:messages(LIMIT) do
        local letter = message:sub(1, 1)
        assert.is_true(message == text(letter, 100 * KIB))
        got[letter] = got[letter] + 1
      end
    end)
    s:run(LIMIT)
    ipc.scheduler(nil)
    assert.are.same({ p = 20, c = 20 }, got)
    assert.is_true(child:wait(LIMIT))
  end)

  it("a fork in the middle of a message leaves it to the parent", function()
    local r, w = both()
    local long = text("p", 300 * KIB)
    assert(w:send(long, nil, 0))
    local child = peer.fork(function()
      local refused = select(2, w:send("from the child", nil, 0))
      ipc.parent:send(refused)
      ipc.parent:recv(LIMIT)
      return w:send("from the child", nil, LIMIT)
    end)
    assert.are.equal("timeout", child:recv())
    assert.is_true(r:recv() == long)
    assert(child:send "now")
    assert.are.equal("from the child", r:recv())
    assert.is_true(child:wait(LIMIT))
  end)

  if not (without:find "flock" or without:find "reopen") and peer.capacity(1) then
    it("that dup made of a nameless one find the lock, too", function()
      local a, b = peer.keep(assert(ipc.pair("fifo", { timeout = LIMIT })))
      local a2 = peer.keep(assert(a:dup()))
      local long = text("a", 300 * KIB)
      assert(a:send(long, nil, 0))
      times_out(a2:send("b", nil, 0))
      assert.is_true(b:recv() == long)
      assert(a2:send(long, nil, 0))
      assert.is_true(b:recv() == long)
    end)
  else
    it("that dup made of a nameless one have no lock here: long messages are refused", function()
      local a, b = peer.keep(assert(ipc.pair("fifo", { timeout = LIMIT })))
      assert(a:send(text("a", 10000)))
      assert.are.equal(10000, #b:recv())
      local a2 = peer.keep(assert(a:dup()))
      fails(E.ENOTSUP, "ipc%.fifo%.send", a2:send(text("a", 10000)))
      assert.are.equal(3, a2:sendmany { "x", "y", text("z", 4000) })
      local n, _, errno, sent = a2:sendmany { "x", text("z", 4093), "y" }
      assert.are.same({ [3] = E.ENOTSUP, [4] = 1 }, { n, nil, errno, sent })
      for _ = 1, 3 do assert(b:recv()) end
      assert.are.equal("x", b:recv())
      times_out(b:recv(0))
    end)
  end
end)

describe("two nameless fifos", function()
  after_each(clean)

  it("leave nothing behind", function()
    local folder = new_path()
    local output = run([[
      local a, b = assert(ipc.pair("fifo", { unit = "stream", keepalive = true }))
      print(a:send "x", b:recv(5))
      os.execute("ls -A " .. path)
    ]], { path = folder, shell = "mkdir " .. folder, env = { TMPDIR = folder } })
    assert.are.equal("true\tx\n", output)
    assert.are.equal("", (with.shell("ls -A " .. folder)))
  end)

  it("have no name to open again or to remove", function()
    local a, b = peer.keep(assert(ipc.pair "fifo"))
    b:close()
    is_closed(a:recv())
    fails(E.ENOENT, "it has no name", a:reopen(0))
    fails(E.ENOENT, "it has no name", a:remove())
  end)

  it("tell where they cannot be made", function()
    local output = run("print(ipc.pair 'fifo')", { path = "", env = { TMPDIR = "/tmp/no/such/folder" } })
    assert.matches("^nil\tipc%.fifo%.open: .*No such file", output)
  end)
end)

describe("a duplex of two fifos by their addresses", function()
  after_each(clean)

  it("finds its other side, whoever comes first", function()
    local a, b = "fifo:" .. new_path(), "fifo:" .. new_path()
    local child = peer.fork(function()
      local its <close> = assert(ipc.duplex(b, a, { timeout = LIMIT }))
      for message in its:messages() do assert(its:send(message:upper())) end
    end)
    local mine = peer.keep(assert(ipc.duplex(a, b, { timeout = LIMIT })))
    for _, message in ipairs { "one", "two" } do
      assert(mine:send(message))
      assert.are.equal(message:upper(), mine:recv())
    end
    mine:close()
    assert.is_true(child:wait(LIMIT))
  end)

  it("in two tasks as well", function()
    local a, b = "fifo:" .. new_path(), "fifo:" .. new_path()
    local s, got = scheduler.new(), {}
    for i, ends in ipairs { { a, b }, { b, a } } do
      s:go(function()
        local both_ways <close> = assert(ipc.duplex(ends[1], ends[2], { timeout = LIMIT }))
        assert(both_ways:send(i))
        got[i] = both_ways:recv()
      end)
    end
    assert.error_matches(function() s:run(LIMIT) end, "string expected, got number")
    s = scheduler.new()
    for i, ends in ipairs { { a, b }, { b, a } } do
      s:go(function()
        local both_ways <close> = assert(ipc.duplex(ends[1], ends[2], { timeout = LIMIT }))
        assert(both_ways:put(i))
        got[i] = both_ways:get()
      end)
    end
    s:run(LIMIT)
    ipc.scheduler(nil)
    assert.are.same({ 2, 1 }, got)
  end)

  it("closes what it opened when nobody comes", function()
    local a, b = "fifo:" .. new_path(), "fifo:" .. new_path()
    local before = peer.descriptors()
    local time, channel, word, errno = elapsed(ipc.duplex, a, b, { timeout = 0.03 })
    times_out(channel, word, errno)
    assert.is_true(time >= 0.03)
    fails(E.ENXIO, "no reader", ipc.duplex(a, b, { retry = false }))
    fails(E.EEXIST, "a directory", ipc.duplex("fifo:/tmp", b))
    raises_here("bad argument", ipc.duplex, a, "fifo:")
    raises_here("bad argument #2 to 'duplex'", ipc.duplex, a, 42)
    raises_here("bad argument #3 to 'open'", ipc.duplex, a, b, 42)
    assert.are.equal(before, peer.descriptors())
  end)

  it("takes options for addresses only", function()
    local r, w = both()
    raises_here("bad argument #3 to 'duplex' %(options are for addresses%)", ipc.duplex, r, w, {})
  end)
end)

describe("the capacity of a fifo", function()
  after_each(clean)

  if not peer.capacity(1) then
    it("cannot be set here: ENOTSUP", function()
      fails(E.ENOTSUP, "capacity 4096", ipc.fifo(new_path(), "r", { capacity = 4096 }))
    end)
    return
  end

  it("is what was asked for, by either side", function()
    for _, side in ipairs { "r", "w" } do
      local path = new_path()
      local r = fifo(path, "r", { capacity = side == "r" and 8192 or nil })
      local w = fifo(path, "w", { capacity = side == "w" and 8192 or nil, unit = "stream" })
      assert.are.equal(2, with.fill(w, ("x"):rep(4096)))
      r:close()
    end
  end)

  it("that the system refuses names the limit", function()
    local who = with.shell "id -u" == "0\n" and "setpriv --bounding-set=-sys_resource" or ""
    local output = run([[
      local r, message, errno = ipc.fifo(path, "r", { capacity = 1 << 30, temporary = true })
      print(r, ipc.errno[errno])
      print(message)
    ]], { path = new_path(), under = who })
    assert.matches("^nil\tEPERM\n.*capacity 1073741824, but fs%.pipe%-max%-size is %d+", output)
    assert.is_false(exists(paths[1]))
  end)
end)

describe("foreign programs at a fifo", function()
  after_each(clean)

  it("made it: mkfifo; read from us: cat; write to us: sh", function()
    local path = new_path()
    assert(os.execute("mkfifo -m 600 " .. path))
    local cat <close> = peer.popen("cat " .. path)
    local w = fifo(path, "w", { unit = "stream", retry = LIMIT })
    local sent = text("s", 300 * KIB)
    peer.fork(function() assert(w:send(sent)) end)
    w:close()
    assert.is_true(cat:read "a" == sent)
    local r = fifo(path, "r", { unit = "stream" })
    local sh = peer.popen(("for i in 1 2 3; do echo line $i; done > %s"):format(path), "w")
    local lines = {}
    for line in r:lines() do lines[#lines + 1] = line end
    assert.are.same({ "line 1", "line 2", "line 3" }, lines)
    assert.is_true(sh:close())
  end)

  it("come and go: echo, again and again", function()
    local path = new_path()
    local r = fifo(path, "r", { unit = "stream", keepalive = true })
    for i = 1, 3 do
      assert.is_true(peer.popen(("echo %d > %s"):format(i, path), "w"):close())
      assert.are.equal(tostring(i), r:read "l")
    end
  end)

  it("wait for us, both ways: socat", function()
    local to, from = new_path(), new_path()
    local socat = peer.popen(("socat -u PIPE:%s,rdonly SYSTEM:'tr a-z A-Z >%s'"):format(to, from), "w")
    local r = fifo(from, "r", { unit = "stream", create = true })
    local w = fifo(to, "w", { unit = "stream", retry = LIMIT, create = false })
    assert(w:send "by way of socat\n")
    w:close()
    assert.are.equal("BY WAY OF SOCAT", r:read "l")
    is_closed(r:read "l")
    socat:close()
  end)

  -- Receives messages by its own code for frames, sends each back reversed.
  local mirror = [[
import os, sys
from multiprocessing.connection import Connection
source = Connection(os.open(sys.argv[1], os.O_RDONLY), writable=False)
target = Connection(os.open(sys.argv[2], os.O_WRONLY), readable=False)
try:
    while True:
        target.send_bytes(source.recv_bytes()[::-1])
except EOFError:
    target.send_bytes(b"end of file")
]]

  it("speak frames, both ways: Python's multiprocessing.connection", function()
    local to, from = new_path(), new_path()
    local r = fifo(from, "r")
    assert(os.execute("mkfifo " .. to))
    local python = peer.popen(peer.python_command(mirror, to, from), "w")
    local w = fifo(to, "w", { retry = LIMIT })
    for _, size in ipairs { 0, 1, 4092, 4093, 64 * KIB, 1024 * KIB } do
      local sent = text("p", size)
      assert(w:send(sent))
      local got = assert(r:recv())
      assert.is_true(#got == size and got:reverse() == sent, size .. " bytes")
    end
    w:close()
    assert.are.equal("end of file", r:recv())
    is_closed(r:recv())
    assert.is_true(python:close())
  end)

  it("poll it: cqueues", function()
    local cqueues = require "cqueues"
    local path = new_path()
    local r = fifo(path, "r", { timeout = 0 })
    local got = {}
    local cq = cqueues.new()
    cq:wrap(function()
      while true do
        local message, word = r:recv(0)
        if word == "closed" then return end
        if message then
          got[#got + 1] = message
        else
          cqueues.poll(r)
        end
      end
    end)
    cq:wrap(function()
      cqueues.sleep(0.005)
      local w = assert(ipc.fifo(path, "w"))
      for i = 1, 3 do
        assert(w:send(tostring(i)))
        cqueues.sleep(0.002)
      end
      w:close()
    end)
    assert(cq:loop(LIMIT))
    assert.are.same({ "1", "2", "3" }, got)
    assert.is_true(cq:empty())
    cq:close()
  end)

  it("have it with the descriptors that were not given to them closed", function()
    local before = with.inherited()
    local r, w = both { keepalive = true }
    assert(w:send(text("a", 10000)) and r:recv()) -- its lock, too
    assert.are.equal(before, with.inherited())
  end)
end)

-- Locks of open file descriptions, fcntl(2), are not everywhere.
local CLAIMS = not (os.getenv "IPC_WITHOUT" or ""):find "ofd"

describe("the sole reader of a fifo", function()
  after_each(clean)

  if not CLAIMS then
    it("is one of many where the system has no locks for it", function()
      local path = new_path()
      fifo(path, "r", { readers = 1 })
      fifo(path, "r", { readers = 1 })
    end)
    return
  end

  it("is alone as long as it is open, and is not closed by writers that leave", function()
    local path = new_path()
    local r = fifo(path, "r", { readers = 1 })
    fails(E.EADDRINUSE, "readers = 1", ipc.fifo(path, "r", { readers = 1 }))
    fails(E.EADDRINUSE, "readers = 1", ipc.fifo(path, "r", { readers = 1, create = false, retry = true }))
    local w = fifo(path, "w")
    assert(w:send "one")
    w:close()
    assert.are.equal("one", (r:recv()))
    times_out(r:recv(0))
    r:close()
    fifo(path, "r", { readers = 1 })
  end)

  it("minds no reader that does not ask, and no lock of writers", function()
    local path = new_path()
    local r = fifo(path, "r", { readers = 1 })
    fifo(path, "r"):close()
    local w1, w2 = fifo(path, "w"), fifo(path, "w")
    for _, w in ipairs { w1, w2 } do
      assert(w:send(("x"):rep(20 * KIB)))
      assert.are.equal(20 * KIB, #r:recv())
    end
  end)

  it("keeps the place in a second handle, and in the child it moves to", function()
    local path = new_path()
    local r = fifo(path, "r", { readers = 1 })
    local again = peer.keep(assert(r:dup()))
    r:close()
    fails(E.EADDRINUSE, "readers = 1", ipc.fifo(path, "r", { readers = 1 }))
    local child = with.fork(function()
      ipc.parent:send "has it"
      return (again:recv(LIMIT))
    end)
    assert.are.equal("has it", (child:recv(LIMIT)))
    fails(E.EADDRINUSE, "readers = 1", ipc.fifo(path, "r", { readers = 1 }))
    assert(fifo(path, "w"):send "moved")
    assert.are.same({ true, "moved" }, { child:wait(LIMIT) })
    fifo(path, "r", { readers = 1 })
  end)

  it("has the name to remove, whoever made it, unless it only attaches", function()
    local path = new_path()
    fifo(path, "r"):close()
    local attached = fifo(path, "r", { readers = 1, temporary = true, create = false })
    fails(E.EADDRINUSE, "readers = 1", ipc.fifo(path, "r", { readers = 1, temporary = true }))
    attached:close()
    assert.is_true(exists(path))
    fifo(path, "r", { readers = 1, temporary = true }):close()
    assert.is_false(exists(path))
  end)

  it("0 readers are none", function()
    assert.error_matches(function() ipc.fifo(new_path(), "r", { readers = 0 }) end,
      "option 'readers': 0 is not in")
  end)
end)
