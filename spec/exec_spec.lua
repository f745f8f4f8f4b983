-- Programs: ipc.exec. What the program sees is told by the program itself: sh,
-- cat, sort, python3, and the system about it.
local ipc = require "ipc"
local peer = require "spec.support.peer"
local with = require "spec.support.with"

local E = ipc.errno
local pipe, run = peer.pipe, peer.run

-- Whether the kernel ends children with their parent here.
local follows = peer.capacity(4096) and peer.has_proc

-- Two signals of the C library's own that glibc makes children ignore; where
-- only POSIX is used they cannot be reset.
local own = follows and 0 or 3 << 31

local function without(feature)
  return ("," .. (os.getenv "IPC_WITHOUT" or "") .. ","):find("," .. feature .. ",", 1, true) ~= nil
end

-- Under a sanitizer, which programs that are not ours should not run under, and
-- where children are copies of this process.
local sanitized = (os.getenv "LD_PRELOAD" or ""):find "san" ~= nil
-- A start needs some descriptors more for a moment.
local more = sanitized or without "vfork" or without "reopen"

local function exec(options)
  if sanitized and not options.clean_env then
    options.env = options.env or {}
    options.env.LD_PRELOAD = false
  end
  if options.timeout == nil then options.timeout = peer.limit end
  local p = assert(ipc.exec(options))
  return peer.keep(p)
end

-- All that a program writes, and what its wait says.
local function output(options)
  options.stdout = options.stdout or "pipe"
  local p = exec(options)
  local text = p:read "a" or ""
  return text, select(2, p:wait())
end

local function sh(script, options)
  options = options or {}
  options[1], options[2], options[3] = "sh", "-c", script
  return output(options)
end

local function temporary(text)
  local path = os.tmpname()
  if text then
    local file <close> = assert(io.open(path, "w"))
    file:write(text)
  end
  return path
end

local function contents(path)
  local file <close> = assert(io.open(path))
  return file:read "a"
end

local function until_true(test)
  local limit = ipc.now() + peer.limit
  repeat
    if test() then return true end
    ipc.sleep(0.005)
  until ipc.now() > limit
  return false
end

describe("a program", function()
  after_each(peer.clean)

  it("gets its words as they are: no shell between", function()
    local words = { "a b", "", "*", "'", "\"", "$HOME", "ü", "\n", "-n" }
    local text = output { peer.python, "-c", "import sys; print(sys.argv[1:])", table.unpack(words) }
    local expected = output { peer.python, "-c", "print(" ..
      "['a b', '', '*', \"'\", '\"', '$HOME', '\\u00fc', '\\n', '-n'])" }
    assert.are.equal(expected, text)
  end)

  it("is a process: pid, wait, reason and usage", function()
    local p = exec { "sh", "-c", "echo $$; exit 3", stdout = "pipe" }
    assert.are.equal(p.pid, tonumber(p:read "l"))
    assert.are.same({ nil, "sh: exit 3", 0 }, { p:wait() })
    assert.are.same({ "exit", 3, "sh: exit 3" }, { p.reason.kind, p.reason.code, p.reason.text })
    assert.is_true(p.usage.user >= 0 and p.usage.system >= 0)
    assert.is_true(p.usage.maxrss > 100000)
    assert.are.same({ true }, { exec { "true" }:wait() })
    p = exec { "/bin/sh", "-c", "kill -USR1 $$" }
    local ok, message, errno = p:wait()
    assert.is_nil(ok)
    assert.matches("^sh: killed by signal %d+, USR1$", message)
    assert.are.equal(0, errno)
  end)

  it("that runs is waited for until the deadline", function()
    local p = exec { "cat", stdin = "pipe" }
    assert.are.same({ nil, "timeout", E.ETIMEDOUT }, { p:wait(0) })
    local before = ipc.now()
    assert.are.same({ nil, "timeout", E.ETIMEDOUT }, { p:wait(0.02) })
    assert.is_true(ipc.now() - before >= 0.02)
    assert.is_nil(p.reason)
    assert.is_nil(p.usage)
    assert.is_true(p:shutdown())
    assert.is_true(p:wait())
  end)

  it("starts with no signal blocked and none ignored, whatever is so here", function()
    local found = run([[
      local p = assert(ipc.exec { "cat", "/proc/self/status", stdout = "pipe", env = { LD_PRELOAD = false } })
      local status = p:read("a", 10)
      print(status:match "SigBlk:%s*(%x+)", status:match "SigIgn:%s*(%x+)", status:match "SigCgt:%s*(%x+)")
    ]], { under = peer.python_command([[
import os, signal, sys
for n in (signal.SIGCHLD, signal.SIGPIPE, signal.SIGTERM, signal.SIGUSR1, signal.SIGRTMIN):
    signal.signal(n, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
os.execvp(sys.argv[1], sys.argv[1:])
]]):gsub("^exec ", "") })
    local blocked, ignored, caught = found:match "^(%x+)\t(%x+)\t(%x+)\n$"
    assert.are.same({ 0, 0, 0 }, { tonumber(blocked, 16), tonumber(ignored, 16) & ~own, tonumber(caught, 16) })
  end)

  -- (lua takes INT for itself, which is the default then)
  it("goes on to ignore what nohup and background jobs ignore", function()
    local found = run([[
      local p = assert(ipc.exec { "cat", "/proc/self/status", stdout = "pipe", env = { LD_PRELOAD = false } })
      print(p:read("a", 10):match "SigIgn:%s*(%x+)")
    ]], { shell = "trap '' HUP QUIT TERM" })
    assert.are.equal(5, tonumber(found, 16) & ~own)
  end)

  it("gets no descriptor of ours", function()
    local r, w = pipe()
    local a = assert(io.open "/dev/null") -- which the C library left to inherit
    local text = sh "for fd in /proc/self/fd/*; do readlink $fd; done | grep -c pipe:"
    -- its own stdout here and there, and what tells it of our end
    assert.is_true(tonumber(text) <= 3, text)
    text = output { "ls", "/proc/self/fd" }
    local count = select(2, text:gsub("%d+", ""))
    assert.is_true(count <= 5, text) -- 0, 1, 2, the directory, the lifeline
    a:close()
    r:close()
    w:close()
  end)

  it("leaves no descriptor and no zombie here", function()
    exec { "true" }:close()
    local before = peer.descriptors()
    for i = 1, 60 do
      local p = assert(ipc.exec { "cat", stdin = i % 2 == 0 and "pipe" or "null", stdout = "pipe", stderr = "pipe" })
      if i % 3 == 0 then
        p:stop()
      elseif i % 3 == 1 then
        p:close()
      end -- else it is dropped
      assert.is_nil((ipc.exec { "/nonexistent", stdin = "pipe", stdout = "pipe", input = nil }))
    end
    assert.is_true(until_true(function()
      exec({ "true" }):close()
      return peer.descriptors() <= before and peer.zombies(ipc.pid()) == 0
    end))
  end)
end)

describe("a program that cannot be started", function()
  after_each(peer.clean)

  local function refused(options, name, reason)
    local before = peer.descriptors()
    local p, message, errno = ipc.exec(options)
    assert.is_nil(p)
    assert.are.equal(E[reason], errno, message)
    assert.matches("^ipc%.exec: " .. name:gsub("%p", "%%%0") .. ": ", message)
    assert.are.equal(before, peer.descriptors())
    assert.are.equal(0, peer.zombies(ipc.pid()))
  end

  before_each(function() exec({ "true" }):close() end)

  it("is not there", function()
    refused({ "/no/such" }, "/no/such", "ENOENT")
    refused({ "no-such-program" }, "no-such-program", "ENOENT")
    refused({ "" }, "", "ENOENT")
    refused({ "/etc/passwd/x" }, "/etc/passwd/x", "ENOTDIR")
  end)

  it("is no program", function()
    local path = temporary "echo no interpreter\n"
    refused({ path }, path, "EACCES")
    os.execute("chmod +x " .. path)
    refused({ path }, path, "ENOEXEC")
    os.remove(path)
  end)

  it("is found nowhere in PATH, but forbidden somewhere", function()
    local path = temporary()
    os.execute(("rm %s; mkdir %s; mkdir %s/prog"):format(path, path, path))
    refused({ "prog", env = { PATH = path .. ":/nonexistent" } }, "prog", "EACCES")
    os.execute("rm -r " .. path)
  end)

  it("has too many words", function()
    local words = { "true" }
    for i = 2, 100 do words[i] = ("x"):rep(100000) end
    refused(words, "true", "E2BIG")
    refused({ "true", ("x"):rep(1 << 20) }, "true", "E2BIG")
  end)

  it("would run nowhere: the directory is named", function()
    refused({ "true", cwd = "/nonexistent" }, "/nonexistent", "ENOENT")
    refused({ "true", cwd = "/etc/passwd" }, "/etc/passwd", "ENOTDIR")
  end)

  it("has no file to write to: the file is named", function()
    refused({ "true", stdout = { file = "/nonexistent/x" } }, "/nonexistent/x", "ENOENT")
    refused({ "true", stdin = { file = "/nonexistent" } }, "/nonexistent", "ENOENT")
  end)

  it("asks for limits that cannot be: the limit is named", function()
    refused({ "true", rlimits = { nofile = { 10, 5 } } }, "rlimits.nofile", "EINVAL")
  end)

  it("finds no descriptor: the limit is named", function()
    local text = run([[
      local p, message, errno = ipc.exec { "true", stdin = "pipe", stdout = "pipe", stderr = "pipe" }
      print(p, message, errno == ipc.errno.EMFILE)
      print(ipc.pipe() ~= nil)
    ]], { shell = "ulimit -n 7" })
    assert.matches("^nil\tipc.exec: RLIMIT_NOFILE is 7 .*\ttrue\ntrue\n$", text)
  end)
end)

describe("a mistake in the call of ipc.exec", function()
  after_each(peer.clean)

  it("raises, and says what was expected", function()
    local r, w = pipe()
    local closed = assert(io.open "/dev/null")
    closed:close()
    local duplex = peer.keep((ipc.pair "unix?type=seqpacket"))
    for _, case in ipairs {
      { nil, "table expected" },
      { "true", "table expected" },
      { {}, "a program expected" },
      { { 1 }, "%[1%]: string expected, got number" },
      { { "true", true }, "%[2%]: string expected, got boolean" },
      { { "true", "a\0b" }, "contains zeros" },
      { { "a\0" }, "contains zeros" },
      { { "true", sdtin = "null" }, "unknown option 'sdtin'" },
      { { "true", [3] = "x", [1.5] = 1 }, "unknown option" },
      { { "true", [{}] = 1 }, "unknown option" },
      { { "true", stdin = "none" }, "option 'stdin': .*\"inherit\"" },
      { { "true", stdin = "stdout" }, "option 'stdin'" },
      { { "true", stdout = "stdout" }, "option 'stdout'" },
      { { "true", stdout = 1 }, "option 'stdout'.*got number" },
      { { "true", stdout = {} }, "option 'stdout'" },
      { { "true", stdout = { file = 1 } }, "option 'stdout'" },
      { { "true", stdout = { file = "x", mode = "w" } }, "option 'stdout'" },
      { { "true", stdin = closed }, "the file is closed" },
      { { "true", stdin = w }, "option 'stdin': this end only sends" },
      { { "true", stdout = r }, "option 'stdout': this end only receives" },
      { { "true", stdin = duplex }, "packets" },
      { { "true", stdin = ipc.null }, "option 'stdin'" },
      { { "true", stdin = r, input = "" }, "exclude each other" },
      { { "true", input = 1 }, "option 'input': string expected" },
      { { "true", env = "PATH=/" }, "option 'env': table expected" },
      { { "true", env = { A = 1 } }, "option 'env': A: string or false expected" },
      { { "true", env = { A = true } }, "option 'env': A" },
      { { "true", env = { "A=1" } }, "a variable's name expected" },
      { { "true", env = { ["A=B"] = "1" } }, "a variable's name expected" },
      { { "true", env = { [""] = "1" } }, "a variable's name expected" },
      { { "true", env = { A = "1\0" } }, "contains zeros" },
      { { "true", clean_env = 1 }, "option 'clean_env': boolean" },
      { { "true", cwd = 1 }, "option 'cwd': string" },
      { { "true", cwd = "/\0" }, "contains zeros" },
      { { "true", rlimits = 1 }, "option 'rlimits'" },
      { { "true", rlimits = { files = 1 } }, "unknown limit 'files'" },
      { { "true", rlimits = { 1 } }, "unknown limit" },
      { { "true", rlimits = { nofile = -1 } }, "nofile: a limit" },
      { { "true", rlimits = { nofile = 0 / 0 } }, "nofile: a limit" },
      { { "true", rlimits = { nofile = { 1 } } }, "nofile: a limit" },
      { { "true", nice = "1" }, "option 'nice': integer" },
      { { "true", nice = 1000 }, "option 'nice'" },
      { { "true", group = 1 }, "option 'group': boolean" },
      { { "true", detach = "yes" }, "option 'detach': boolean" },
      { { "true", timeout = 0 / 0 }, "option 'timeout'" },
      { { "true", timeout = "1" }, "option 'timeout'" },
      { { "true", maxsize = 0 }, "option 'maxsize'" },
    } do
      assert.error_matches(function() ipc.exec(case[1]) end, case[2])
    end
  end)

  it("is a closed or moved channel", function()
    local r = pipe()
    r:close()
    local p, _, errno = ipc.exec { "true", stdin = r }
    assert.is_nil(p)
    assert.are.equal(E.EBADF, errno)
    local again = pipe()
    exec { "true", stdin = again }
    assert.error_matches(function() ipc.exec { "true", stdin = again } end, "it has moved")
  end)
end)

describe("the streams of a program", function()
  after_each(peer.clean)

  it("are pipes on request; the process is the first two as one", function()
    local p = exec { "sh", "-c", "cat; echo done >&2", stdin = "pipe", stdout = "pipe", stderr = "pipe" }
    assert.is_true(p:send "one\n")
    assert.are.equal("one", p:read "l")
    assert.is_true(p.stdin:send "two\n")
    assert.are.equal("two", p.stdout:read "l")
    assert.is_true(p:shutdown())
    assert.are.equal("", p:read "a")
    assert.are.equal("done\n", p.stderr:read "a")
    assert.is_true(p:wait())
  end)

  it("carry more than they hold", function()
    local p = exec { "cat", stdin = "pipe", stdout = "pipe" }
    local sent, got = ("0123456789"):rep(200000), {}
    local at = 1
    while at <= #sent do
      if p:send(sent:sub(at, at + 65535), nil, 0) then at = at + 65536 end
      got[#got + 1] = p:recv(0)
    end
    p:shutdown()
    got[#got + 1] = p:read "a"
    assert.is_true(table.concat(got) == sent)
  end)

  it("may be some of them: what is missing raises", function()
    local p = exec { "true" }
    assert.error_matches(function() p:send "x" end, "this end neither receives nor sends")
    assert.error_matches(function() p:recv() end, "this end neither receives nor sends")
    assert.are.same({ "number", "table" }, { type(p:maxsize()), type(p:stats()) })
    assert.is_nil(p.stdin)
    assert.is_nil(p.stdout)
    assert.is_nil(p.stderr)
    p = exec { "cat", stdin = "pipe", stdout = "null" }
    assert.error_matches(function() p:recv() end, "this end only sends")
    assert.is_true(p:send "x")
    p = exec { "true", stdout = "pipe" }
    assert.error_matches(function() p:send "x" end, "this end only receives")
  end)

  it("block there, whatever they do here", function()
    local r, w = pipe { unit = "stream" }
    local keeps = assert(w:dup())
    local p = exec { peer.python, "-c", [[
import os, sys
for fd in 0, 1, 2:
    print(os.get_blocking(fd))
]], stdin = "pipe", stdout = w, stderr = "pipe" }
    assert.is_true(p:wait())
    assert.are.equal("True\nTrue\nTrue\n", r:recv())
    if peer.has_proc and peer.capacity(4096) and not without "reopen" then
      -- what dup() kept goes on without waiting
      while keeps:send(("x"):rep(4096), nil, 0) do end
      assert.are.same({ nil, "timeout", E.ETIMEDOUT }, { keeps:send("x", nil, 0) })
    end
    keeps:close()
  end)

  it("are /dev/null on request", function()
    assert.are.equal("", (sh("cat; echo lost >&2", { stdin = "null", stderr = "null" })))
    local p = exec { "sh", "-c", "echo lost && exit 7", stdout = "null" }
    assert.are.same({ nil, "sh: exit 7", 0 }, { p:wait() })
  end)

  it("stderr goes where stdout goes", function()
    assert.are.equal("out\nerr\n", (sh("echo out; echo err >&2", { stderr = "stdout" })))
    local path = temporary()
    local p = exec { "sh", "-c", "echo out; echo err >&2", stdout = { file = path }, stderr = "stdout" }
    assert.is_true(p:wait())
    assert.are.equal("out\nerr\n", contents(path))
    os.remove(path)
  end)

  it("are files: read, emptied, appended to", function()
    local path = temporary "old\n"
    local function to(options)
      options.file = path
      assert.is_true(exec({ "echo", "new", stdout = options }):wait())
      return contents(path)
    end
    assert.are.equal("old\nnew\n", to { append = true })
    assert.are.equal("new\n", to {})
    assert.are.equal("new\n", (output { "cat", stdin = { file = path } }))
    os.remove(path)
    to { append = true } -- made
    os.remove(path)
  end)

  it("may be a FIFO that nobody has opened: no start waits", function()
    local path = temporary()
    os.execute(("rm %s; mkfifo %s"):format(path, path))
    local p, message, errno = ipc.exec { "true", stdout = { file = path } }
    assert.is_nil(p)
    assert.are.equal(E.ENXIO, errno, message)
    assert.is_true(exec({ "cat", stdin = { file = path }, stdout = "null" }):stop())
    os.remove(path)
  end)

  it("are a text: nothing to pump", function()
    assert.are.equal("", (output { "cat", input = "" }))
    local text = ("line\n"):rep(1 << 20)
    local p = exec { "wc", "-c", input = text, stdout = "pipe" }
    assert.are.equal(#text, tonumber(p:read "a"))
    assert.are.equal("c\nb\na\n", (output { "sort", "-r", input = "a\nc\nb\n" }))
  end)

  it("are files of io, where they stand", function()
    local path = temporary "first\nsecond\nthird\n"
    local file <close> = assert(io.open(path))
    assert.are.equal("first", file:read "l")
    assert.are.equal("second\nthird\n", (output { "cat", stdin = file }))
    local out <close> = assert(io.open(path, "w"))
    out:write "before\n"
    assert.is_true(exec({ "echo", "program's", stdout = out }):wait())
    out:write "after\n"
    out:flush()
    assert.are.equal("before\nprogram's\nafter\n", contents(path))
    os.remove(path)
  end)

  it("are channels, which move", function()
    local r, w = pipe { unit = "stream" }
    local p = exec { "echo", "said", stdout = w }
    assert.error_matches(function() w:send "x" end, "moved to " .. p.pid .. " %(.*exec_spec.lua:%d+%): dup")
    assert.are.equal("said\n", r:read "a")
    local r2, w2 = pipe { unit = "stream" }
    local q = exec { "cat", stdin = r2, stdout = "pipe" }
    assert.error_matches(function() r2:recv() end, "moved")
    assert.is_true(w2:send "through")
    w2:close()
    assert.are.equal("through", q:read "a")
  end)

  it("are a socket, both ways at once", function()
    local a, b = peer.pair("unix", { unit = "stream" })
    local p = exec { "cat", stdin = b, stdout = b }
    assert.is_true(a:send "there and back")
    a:shutdown()
    assert.are.equal("there and back", a:read "a")
    assert.is_true(p:wait())
    assert.error_matches(function() b:send "x" end, "moved")
  end)

  it("are the ends of a duplex pipe, or of ipc.duplex", function()
    local a, b = pipe { duplex = true, unit = "stream" }
    exec { "cat", stdin = b, stdout = b }
    assert.is_true(a:send "1")
    a:shutdown()
    assert.are.equal("1", a:read "a")
    local r1, w1 = pipe { unit = "stream" }
    local r2, w2 = pipe { unit = "stream" }
    local d = peer.keep(ipc.duplex(r1, w2))
    exec { "cat", stdin = d, stdout = d }
    assert.is_true(w1:send "2")
    w1:close()
    assert.are.equal("2", r2:read "a")
    assert.error_matches(function() d:recv() end, "moved")
  end)

  it("that have read ahead are refused, and stay", function()
    local r, w = pipe { unit = "stream" }
    w:send "ab"
    assert.are.equal("a", r:read(1))
    local p, message, errno = ipc.exec { "cat", stdin = r }
    assert.is_nil(p)
    assert.matches("stdin: bytes are on their way", message)
    assert.are.equal(E.EBUSY, errno)
    assert.are.equal("b", r:read(1))
  end)

  it("are another's stdout: a pipeline without a shell", function()
    local first = exec { "printf", "b\\na\\n", stdout = "pipe" }
    local second = exec { "sort", stdin = first, stdout = "pipe" }
    assert.are.equal("a\nb\n", second:read "a")
    assert.error_matches(function() first.stdout:recv() end, "moved")
    assert.are.same({ nil, "closed", E.EPIPE }, { first:recv() })
    assert.is_true(first:wait())
    assert.error_matches(function() ipc.exec { "cat", stdin = exec { "true" } } end, "stdout is no pipe")
    assert.error_matches(function() ipc.exec { "cat", stdin = peer.fork(function() end) } end, "no pipe")
  end)

  it("can be swapped", function()
    local lua = with.command [[
      local ipc = require "ipc"
      local p = assert(ipc.exec { "sh", "-c", "echo err >&2; echo out", stdout = io.stderr, stderr = io.stdout })
      p:wait(10)
    ]]
    local one, two = temporary(), temporary()
    os.execute(("sh -c %s >%s 2>%s"):format(with.quote(lua), one, two))
    assert.are.same({ "err\n", "out\n" }, { contents(one), contents(two) })
    os.remove(one)
    os.remove(two)
  end)

  it("that are closed here are /dev/null there, and pipes stay what they are", function()
    local path = temporary()
    local lua = with.command(("local OUT = %q "):format(path) .. [[
      local ipc = require "ipc"
      local p = assert(ipc.exec { "sh", "-c", "x=$(readlink /proc/$$/fd/0 /proc/$$/fd/1); echo \"$x\" >&2",
        stderr = { file = OUT } })
      p:wait(10)
      p = assert(ipc.exec { "sh", "-c", "cat; echo more; echo errors >&2", input = "text\n",
        stdout = "pipe", stderr = "pipe" })
      local all = p:read("a", 10) .. p.stderr:read("a", 10)
      local file = io.open(OUT, "a")
      file:write(all)
      file:close()
    ]])
    os.execute(("sh -c %s <&- >&- 2>&-"):format(with.quote(lua)))
    assert.are.equal("/dev/null\n/dev/null\ntext\nmore\nerrors\n", contents(path))
    os.remove(path)
  end)

  it("that are closed here are in no Lua's way", function()
    local path = temporary()
    local lua = with.command(("local OUT = %q "):format(path) .. [[
      local ipc = require "ipc"
      local _, result = assert(ipc.spawn(function() return "ran" end)):wait(10)
      local file = io.open(OUT, "a")
      file:write(tostring(result), "\n")
      file:close()
    ]])
    for _, closed in ipairs { "<&- >&-", "<&- >&- 2>&-", ">&- 2>&-" } do
      os.execute(("sh -c %s %s"):format(with.quote(lua), closed))
    end
    assert.are.equal("ran\nran\nran\n", contents(path))
    os.remove(path)
  end)
end)

describe("what a program runs in", function()
  after_each(peer.clean)

  it("is our environment, with what is set and unset", function()
    local text = output { "env", env = { NEW = "a=b", HOME = false, PATH = os.getenv "PATH" } }
    assert.matches("\nNEW=a=b\n", "\n" .. text)
    assert.is_nil(("\n" .. text):find "\nHOME=")
    assert.are.equal(1, select(2, ("\n" .. text):gsub("\nPATH=", "")))
  end)

  it("is nothing but what is set, on request", function()
    assert.are.equal("ONLY=1\n", (output { "/usr/bin/env", clean_env = true, env = { ONLY = "1" } }))
    assert.are.equal("", (output { "env", clean_env = true }))
  end)

  it("is searched by its own PATH, from its own directory", function()
    local folder = temporary()
    os.execute(("rm %s; mkdir -p %s/bin; printf '#!/bin/sh\\necho found' >%s/bin/prog; chmod +x %s/bin/prog")
      :format(folder, folder, folder, folder))
    assert.are.equal("found\n", (output { "prog", env = { PATH = "/nonexistent:" .. folder .. "/bin" } }))
    assert.are.equal("found\n", (output { "prog", cwd = folder, env = { PATH = "bin" } }))
    assert.are.equal("found\n", (output { "prog", cwd = folder .. "/bin", env = { PATH = ":/bin" } }))
    assert.are.equal("found\n", (output { "./prog", cwd = folder .. "/bin" }))
    assert.is_nil((ipc.exec { "prog" }))
    os.execute("rm -r " .. folder)
  end)

  it("is the directory asked for", function()
    assert.are.equal("/\n", (output { "pwd", cwd = "/" }))
  end)

  it("has limits: soft and hard", function()
    assert.are.equal("64\n64\n", (sh("ulimit -Sn; ulimit -Hn", { rlimits = { nofile = 64 } })))
    assert.are.equal("32\n64\n", (sh("ulimit -Sn; ulimit -Hn", { rlimits = { nofile = { 32, 64 } } })))
    assert.are.equal("0\nunlimited\n", (sh("ulimit -Sc; ulimit -Sf",
      { rlimits = { core = 0, fsize = math.huge } })))
    local p = exec { "sh", "-c", "while :; do :; done", rlimits = { cpu = { 1, 2 } } }
    assert.is_nil((p:wait()))
    assert.are.equal("XCPU", p.reason.signal)
    assert.is_true(p.usage.user + p.usage.system > 0.5)
  end)

  it("is nicer on request", function()
    local mine = tonumber((output { "nice" }))
    assert.are.equal(math.min(mine + 5, 19), tonumber((output { "nice", nice = 5 })))
  end)
end)

describe("a group of processes", function()
  after_each(peer.clean)

  local function group_of(pid)
    local file <close> = io.open(("/proc/%d/stat"):format(pid))
    local text = file and file:read "a" or ""
    local group, session = text:match "%) %a %d+ (%d+) (%d+)"
    return tonumber(group), tonumber(session)
  end

  -- A shell and a child of it, which it waits for; both ids.
  local function family(options)
    options = options or {}
    options[1], options[2], options[3] = "sh", "-c", options.script or "sleep 1000 & echo $!; wait"
    options.script = nil
    options.stdout = "pipe"
    local p = exec(options)
    return p, tonumber(p:read "l")
  end

  it("is the program's own, ours, or a session", function()
    local p = exec { "cat", stdin = "pipe" }
    assert.are.equal(p.pid, (group_of(p.pid)))
    p = exec { "cat", stdin = "pipe", group = false }
    assert.are.equal(group_of(ipc.pid()), (group_of(p.pid)))
    p = exec { "cat", stdin = "pipe", detach = true }
    assert.are.same({ p.pid, p.pid }, { group_of(p.pid) })
    p:stop()
  end)

  it("is ours for one that reads our terminal", function()
    local script = [[
local ipc = require "ipc"
local function groups(p)
  local function of(pid) return io.open("/proc/" .. pid .. "/stat"):read "a":match "%) %a %d+ (%d+)" end
  local same = of(p.pid) == of(ipc.pid())
  p:stop(0)
  return same
end
print(groups(ipc.exec { "sleep", "1000" }), groups(ipc.exec { "sleep", "1000", stdin = "null" }),
  groups(ipc.exec { "sleep", "1000", group = true }))]]
    local text = with.shell(("python3 -c 'import pty,sys; pty.spawn(sys.argv[1:])' sh -c %s")
      :format(with.quote(with.command(script))))
    assert.matches("true%s+false%s+false", text)
  end)

  it("is sent signals as one", function()
    local p, grandchild = family()
    assert.is_true(p:kill(0, "group"))
    assert.is_true(p:kill("KILL", "group"))
    assert.is_nil((p:wait()))
    assert.is_true(until_true(function() return not peer.lives(grandchild) end))
  end)

  it("is spared by default: kill is for the process", function()
    local p, grandchild = family()
    assert.is_true(p:kill "KILL")
    assert.is_nil((p:wait()))
    -- Its own pipe, where all cannot share one, ends the group once that is known.
    assert.is_true(without "reopen" or peer.lives(grandchild))
    os.execute("kill -KILL " .. grandchild)
  end)

  it("can be sent signals after its leader's end, where the system can", function()
    local p, grandchild = family { script = "sleep 1000 & echo $!" }
    assert.is_true(p:wait())
    local ok, _, errno = p:kill("KILL", "group")
    assert.is_true(ok or errno == E.ESRCH)
    if not ok then os.execute("kill -KILL " .. grandchild) end
    assert.is_true(until_true(function() return not peer.lives(grandchild) end))
  end)

  it("refuses other words", function()
    local p = exec { "cat", stdin = "pipe" }
    assert.error_matches(function() p:kill("TERM", "all") end, "invalid option 'all'")
    assert.error_matches(function() p:kill("TERM", {}) end, "bad argument #2")
  end)

  it("is stopped as one, and what does not end is killed", function()
    local p, grandchild = family()
    assert.is_true(p:stop())
    assert.are.equal("TERM", p.reason.signal)
    assert.is_true(until_true(function() return not peer.lives(grandchild) end))
    p, grandchild = family { script = "trap '' TERM; sleep 1000 & echo $!; wait; wait" }
    assert.is_true(p:stop(0.05))
    assert.are.equal("KILL", p.reason.signal)
    assert.is_true(until_true(function() return not peer.lives(grandchild) end))
    -- One that ends at once, and leaves one that does not.
    p, grandchild = family {
      script = "(trap '' TERM; echo $(exec sh -c 'echo $PPID'); while :; do sleep 1000; done) & wait",
    }
    assert.is_true(p:stop())
    assert.is_true(until_true(function() return not peer.lives(grandchild) end))
  end)
end)

describe("the end of a program by our wish", function()
  after_each(peer.clean)

  it("is no hurry for close: its input ends, and it may finish", function()
    local path = temporary()
    local p = exec { "sh", "-c", "cat; echo finished", stdin = "pipe", stdout = { file = path } }
    p:send "some\n"
    assert.is_true(p:close())
    assert.are.equal("some\nfinished\n", contents(path))
    assert.are.equal(0, p.reason.code)
    assert.are.same({ nil, "closed", E.EPIPE }, { p:send "x" })
    assert.are.same({ nil, "closed", E.EPIPE }, { p:kill() })
    os.remove(path)
  end)

  it("comes to one that writes: nobody listens", function()
    local p = exec { "yes", stdout = "pipe", stderr = "pipe" }
    assert.is_string(p:recv())
    assert.is_true(p:close())
    assert.are.equal("PIPE", p.reason.signal)
    assert.are.same({ nil, "closed", E.EPIPE }, { p.stderr:recv() })
  end)

  it("comes with the end of a block, at once by an error", function()
    local kept
    assert.is_false((pcall(function()
      local p <close> = exec { "sleep", "1000" }
      kept = p
      error "out"
    end)))
    assert.are.equal("TERM", kept.reason.signal)
  end)

  it("does not come to one that is detached", function()
    local p = exec { "sleep", "1000", detach = true }
    local pid = p.pid
    assert.is_true(p:close())
    assert.is_true(peer.lives(pid))
    assert.are.same({ nil, "closed", E.EPIPE }, { p:wait() })
    os.execute("kill -KILL " .. pid)
    p = exec { "sleep", "1000", detach = true }
    assert.is_true(p:stop())
    assert.are.equal("TERM", p.reason.signal)
  end)

  it("does not come with a handle that is dropped", function()
    local p = assert(ipc.exec { "sleep", "1000" })
    local pid = p.pid
    p = nil -- luacheck: ignore
    collectgarbage()
    collectgarbage()
    assert.is_true(peer.lives(pid))
    os.execute("kill -KILL " .. pid)
    assert.is_true(until_true(function()
      exec({ "true" }):close()
      return peer.zombies(ipc.pid()) == 0
    end))
  end)
end)

describe("process:exited", function()
  after_each(peer.clean)

  it("is ready once the child has ended", function()
    local p = exec { "cat", stdin = "pipe", stdout = "pipe" }
    local e = peer.keep(p:exited())
    assert.matches("^ipc%.exit %(", tostring(e))
    assert.are.equal(e, p:exited())
    assert.are.same({ nil, "timeout", E.ETIMEDOUT }, { e:wait(0) })
    assert.is_nil((ipc.poll({ e, p }, 0)))
    assert.is_nil(e:timeout() == 0 or nil)
    p:shutdown()
    assert.is_truthy(ipc.poll({ e }, peer.limit)[e])
    assert.are.equal(0, e:timeout())
    assert.are.same({ true }, { e:wait() })
    assert.is_true(e:close())
    assert.is_nil(e:pollfd())
    assert.are_not.equal(e, peer.keep(p:exited()))
  end)

  it("has the results of a function", function()
    local child = peer.fork(function() return 1, "two" end)
    local e = peer.keep(child:exited())
    assert.is_truthy(ipc.poll({ e }, peer.limit)[e])
    assert.are.same({ true, 1, "two" }, { e:wait() })
  end)

  it("is good after the process was closed, and before", function()
    local p = exec { "sleep", "1000", detach = true }
    local e = peer.keep(p:exited())
    assert.is_true(p:close())
    assert.are.same({ nil, "timeout", E.ETIMEDOUT }, { e:wait(0) })
    os.execute("kill -KILL " .. p.pid)
    assert.is_nil((e:wait(peer.limit)))
    assert.are.equal("KILL", p.reason.signal)
    e:close()
    assert.are.same({ nil, "closed", E.EPIPE }, { p:exited() })
  end)

  it("outlives the process's handle", function()
    local e
    do
      local p = assert(ipc.exec { "cat", stdin = "pipe" })
      e = peer.keep(p:exited())
    end
    collectgarbage()
    collectgarbage()
    assert.are.same({ nil, "timeout", E.ETIMEDOUT }, { e:wait(0) })
    assert.is_true(e:close())
  end)

  it("raises for what it is not", function()
    local p = exec { "true" }
    local e = peer.keep(p:exited())
    assert.error_matches(function() e.wait(p) end, "ipc.exit expected")
    assert.error_matches(function() p.exited(e) end, "ipc.process expected")
    assert.error_matches(function() e:wait "1" end, "seconds expected")
    assert.error_matches(function() ipc.exec { "true", stdin = e } end, "no stream of bytes")
  end)
end)

describe("a program whose parent ends", function()
  after_each(peer.clean)

  local script = [[
    local p = assert(ipc.exec { "sh", "-c", "sleep 1000 & echo $$ $!; wait", stdout = "pipe" %s })
    print(ipc.pid(), (p:read("l", 10):gsub(" ", "\t")))
    io.stdout:flush()
    %s
  ]]

  local function ids(options, ending)
    local file <close> = assert(io.popen(with.command("local ipc = require 'ipc' "
      .. script:format(options, ending)) .. " 2>/dev/null"))
    local parent, child, grandchild = file:read("n", "n", "n")
    return parent, child, grandchild
  end

  local function gone(...)
    for _, pid in ipairs { ... } do
      assert.is_true(until_true(function() return not peer.lives(pid) end))
    end
  end

  if follows then
    it("ends, and all that it started: killed", function()
      local parent, child, grandchild = ids("", "os.execute('kill -KILL ' .. ipc.pid()) ipc.sleep(10)")
      gone(parent, child, grandchild)
    end)

    it("ends: by os.exit, by the end, by an error", function()
      for _, ending in ipairs { "os.exit(0)", "os.exit(0, true)", "", "error 'x'",
        "ipc.forked = ipc.fork(function() end)" } do
        gone(ids("", ending .. (ending:find "error" and "" or " p = p")))
      end
    end)

    it("ends although other children of the parent live on", function()
      local parent, child, grandchild = ids("",
        "q = assert(ipc.exec { 'sleep', '3', detach = true }) os.execute('kill -KILL ' .. ipc.pid()) ipc.sleep(10)")
      gone(parent, child, grandchild)
    end)

    it("ends although a fork of the parent lives on", function()
      local r, w = pipe()
      local child = peer.fork(function()
        local p = assert(ipc.exec { "sleep", "1000" })
        local other = assert(ipc.fork(function() ipc.sleep(1000) end))
        w:put { p.pid, other.pid }
        os.execute("kill -KILL " .. ipc.pid())
      end)
      local pids = r:get()
      child:wait()
      gone(pids[1])
      os.execute("kill -KILL " .. pids[2])
    end)

    it("ends in our group: the process alone", function()
      local parent, child, grandchild = ids(", group = false", "os.execute('kill -KILL ' .. ipc.pid()) ipc.sleep(10)")
      gone(parent, child)
      os.execute("kill -KILL " .. grandchild)
    end)
  end

  it("goes on when it is detached", function()
    local parent, child, grandchild = ids(", detach = true", "os.execute('kill -KILL ' .. ipc.pid()) ipc.sleep(10)")
    gone(parent)
    assert.is_true(peer.lives(child) and peer.lives(grandchild))
    os.execute(("kill -KILL %d %d"):format(child, grandchild))
  end)
end)

describe("starting programs", function()
  after_each(peer.clean)

  it("goes on where somebody has closed what tells of our end", function()
    if not follows or without "reopen" then return pending "nothing is shared" end
    -- 500 and above is where the library keeps what others should leave alone
    assert.are.equal("true\ntrue\ntrue\n", (run([[
      print(ipc.exec { "true" }:wait(10))
      local closed = false
      for line in io.popen("ls -l /proc/" .. ipc.pid() .. "/fd"):lines() do
        local fd = line:match "(%d+) %-> pipe"
        if fd and tonumber(fd) >= 500 then closed = ipc.open("fd:" .. fd, "w"):close() end
      end
      print(closed)
      print(ipc.exec { "true" }:wait(10))
    ]])))
  end)

  it("works with eight descriptors", function()
    assert.are.equal("true\ninside\ntrue\n", (run([[
      print(ipc.exec { "true" }:wait(10))
      local p = assert(ipc.exec { "echo", "inside", stdout = "pipe" })
      io.write(p:read("a", 10))
      print(p:wait(10))
    ]], { shell = "ulimit -n " .. (more and 12 or 8) })))
  end)

  it("of our own works with eight descriptors, too", function()
    -- without the kernel's help a start needs some more for a moment
    local bare = more or without "pidfd" or not follows
    assert.are.equal("true\t42\n", (run([[
      local child = assert(ipc.spawn(function(x) return x + 1 end, 41))
      print(child:wait(10))
    ]], { shell = "ulimit -n " .. (bare and 16 or 8) })))
  end)

  it("works although SIGCHLD is ignored", function()
    local text = run([[
      local p = assert(ipc.exec { "sh", "-c", "exit 3" })
      print(p:wait(10))
      print(p.reason.kind)
      print(ipc.exec { "/nonexistent" })
      for _ = 1, 20 do ipc.exec({ "true" }):close() end
      print(ipc.exec({ "sleep", "1000" }):stop())
    ]], { under = peer.python_command([[
import os, signal, sys
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
os.execvp(sys.argv[1], sys.argv[1:])
]]):gsub("^exec ", "") })
    assert.matches("^nil\tsh: [^\n]*\t0\n%l+\nnil\tipc.exec: /nonexistent: .-\t2\ntrue\n$", text)
    if text:find "\nexit\n" then assert.matches("^nil\tsh: exit 3\t0\n", text) end
  end)

  it("is no work for handlers of ours: a storm of signals meanwhile", function()
    local child = peer.fork(function()
      local me = ipc.pid()
      local storm = assert(ipc.exec { "sh", "-c", ("while kill -WINCH %d 2>/dev/null; do :; done"):format(me) })
      for _ = 1, 100 do assert(assert(ipc.exec { "true" }):wait(10)) end
      storm:stop(0)
      return "done"
    end)
    assert.are.same({ true, "done" }, { child:wait() })
  end)

  it("bears finalisers that close what is being given away", function()
    for _ = 1, 50 do
      local r = pipe { unit = "stream" }
      setmetatable({}, { __gc = function() r:close() end })
      collectgarbage "generational"
      local p = ipc.exec { "cat", stdin = r, stdout = "pipe", stderr = "pipe", env = { A = ("x"):rep(10000) } }
      collectgarbage()
      if p then p:stop(0) end
      collectgarbage "incremental"
    end
  end)

  it("bears methods on what was never opened, forked, or closed", function()
    local p = exec { "cat", stdin = "pipe", stdout = "pipe" }
    local pid = peer.fork(function() ipc.parent:recv() end)
    pid:send "end"
    local q = exec { "true" }
    q:close()
    for _, method in ipairs { "send", "recv", "put", "get", "shutdown", "flush", "kill", "exited", "dup" } do
      pcall(q[method], q, "x")
    end
    assert.matches("closed", tostring(q))
    assert.error_matches(function() p.wait({}) end, "ipc.process expected")
    assert.error_matches(function() p.kill(ipc) end, "ipc.process expected")
    local child = assert(ipc.fork(function(handle)
      local results = {}
      for _, method in ipairs { "send", "recv", "kill", "wait", "exited" } do
        results[#results + 1] = select(3, handle[method](handle, method == "send" and "x" or nil))
      end
      handle:close()
      handle:stop()
      return results
    end, p))
    child:settimeout(peer.limit)
    local ok, results = child:wait()
    assert.is_true(ok, results)
    for _, errno in ipairs(results) do assert.are.equal(E.ECHILD, errno) end
    assert.is_true(p:send "still here\n")
    assert.are.equal("still here", p:read "l")
  end)
end)
