-- Other programs run to their end: ipc.run and ipc.pipeline. The programs are
-- those of the system: sh, sort, gzip, python3.
local ipc = require "ipc"
local peer = require "spec.support.peer"
local scheduler = require "spec.support.scheduler"

local E = ipc.errno
local LIMIT <const> = peer.limit

-- What this Lua runs under is not for other programs.
local function foreign(program)
  if type(program) == "table" and os.getenv "LD_PRELOAD" then
    program.env = program.env or {}
    program.env.LD_PRELOAD = false
  end
end

-- With a bound of its own, unless the spec is about that.
local function run(options)
  options.timeout = options.timeout or LIMIT
  foreign(options)
  return ipc.run(options)
end

local function sh(script, options)
  local program = { "sh", "-c", script }
  for name, value in pairs(options or {}) do
    program[name] = value
  end
  return run(program)
end

local function pipeline(options)
  options.timeout = options.timeout or LIMIT
  for _, program in ipairs(options) do
    foreign(program)
  end
  return ipc.pipeline(options)
end

-- A pipe's reading end, which says `closed` when the last of those who got the
-- writing end has ended.
local function witness()
  local r, w = peer.pipe { unit = "stream" }
  return w, function()
    local said, message, errno
    repeat -- what shells say of those that were killed
      said, message, errno = r:recv(LIMIT)
    until not said
    assert.are.same({ "closed", E.EPIPE }, { message, errno })
  end
end

-- 1 MiB that shows what is lost, doubled or in the wrong place.
local function block()
  local list = {}
  for i = 1, (1 << 20) / 8 do
    list[i] = ("%07d\n"):format(i)
  end
  return table.concat(list)
end

local BOTH <const> = [[
import os, sys, threading
block = b"".join(b"%07d\n" % i for i in range(1, (1 << 20) // 8 + 1))
def write(fd):
    for _ in range(int(sys.argv[1])):
        rest = memoryview(block)
        while rest: rest = rest[os.write(fd, rest):]
threads = [threading.Thread(target=write, args=(fd,)) for fd in (1, 2)]
for t in threads: t.start()
for t in threads: t.join()
]]

describe("ipc.run", function()
  after_each(peer.clean)

  it("gives what a program wrote, and how it ended", function()
    local r = assert(run { "sh", "-c", "echo out; echo err >&2" })
    assert.are.equal("out\n", r.out)
    assert.are.equal("err\n", r.err)
    assert.are.equal(0, r.code)
    assert.is_nil(r.signal)
    assert.is_nil(r.stages)
    assert.is_true(r.seconds > 0)
    assert.is_table(r.usage)
  end)

  it("gives empty strings of a program that wrote nothing", function()
    local r = assert(run { "true" })
    assert.are.same({ "", "" }, { r.out, r.err })
  end)

  it("passes arguments as they are: there is no shell", function()
    local words = { "$HOME", "a b", "", "*", "'", '"', "\n", ";exit 1", "\255\128" }
    local r = assert(run { "printf", "[%s]", table.unpack(words) })
    assert.are.equal("[" .. table.concat(words, "][") .. "]", r.out)
  end)

  it("leaves the table as it was", function()
    local options = { "true", timeout = LIMIT }
    assert(ipc.run(options))
    assert.are.same({ "true", timeout = LIMIT }, options)
  end)

  it("gives it no input, unless there is some", function()
    assert.are.equal("", assert(run { "cat" }).out)
    assert.are.equal("text\0more", assert(run { "cat", input = "text\0more" }).out)
    assert.are.equal("", assert(run { "cat", input = "" }).out)
    local r, w = peer.pipe { unit = "stream" }
    w:send "from a pipe"
    w:close()
    assert.are.equal("from a pipe", assert(run { "cat", stdin = r }).out)
  end)

  it("lets its streams go elsewhere; those are not captured", function()
    local path = os.tmpname()
    local r = assert(sh("echo out; echo err >&2", { stdout = { file = path }, stderr = "null" }))
    assert.is_nil(r.out)
    assert.is_nil(r.err)
    local file <close> = io.open(path)
    assert.are.equal("out\n", file:read "a")
    os.remove(path)
    assert.are.equal("out\nerr\n", assert(sh("echo out; echo err >&2", { stderr = "stdout" })).out)
  end)

  it("passes the other options on: env, cwd, rlimits", function()
    local r = assert(sh("echo $GREETING; pwd; ulimit -n", {
      env = { GREETING = "hello" }, cwd = "/", rlimits = { nofile = 32 },
    }))
    assert.are.equal("hello\n/\n32\n", r.out)
  end)

  it("answers nil, the exit status and the last line of errors", function()
    local r, message, errno, all = sh "echo out; echo first >&2; echo out of luck >&2; echo >&2; exit 3"
    assert.is_nil(r)
    assert.are.equal("sh: exit 3: out of luck", message)
    assert.are.equal(0, errno)
    assert.are.same({ "out\n", "first\nout of luck\n\n", 3 }, { all.out, all.err, all.code })
    assert.are.equal("sh: exit 1", (select(2, sh "exit 1")))
    assert.are.equal("sh: exit 1: both", (select(2, sh("echo both; exit 1", { stderr = "stdout" }))))
  end)

  it("puts no control characters and no novel into the message", function()
    local _, message, _, all = sh "printf 'a\\033[31mb\\tc' >&2; exit 1"
    assert.are.equal("sh: exit 1: a [31mb c", message)
    assert.are.equal("a\27[31mb\tc", all.err)
    _, message = sh "head -c 100000 /dev/zero | tr '\\0' x >&2; exit 1"
    assert.are.equal("sh: exit 1: " .. ("x"):rep(200), message)
  end)

  it("answers nil and the signal that killed it", function()
    local r, message, errno, all = sh "echo out; kill -USR1 $$"
    assert.is_nil(r)
    assert.matches("^sh: .*USR1", message)
    assert.are.equal(0, errno)
    assert.are.same({ "out\n", nil, "USR1" }, { all.out, all.code, all.signal })
  end)

  it("with check = false any end is a result", function()
    assert.are.equal(3, assert(sh("exit 3", { check = false })).code)
    assert.are.equal("KILL", assert(sh("kill -KILL $$", { check = false })).signal)
  end)

  it("says what could not be started, and leaves no result", function()
    local function refused(options, message, errno)
      assert.are.same({ nil, message, errno, n = 3 }, table.pack(run(options)))
    end
    refused({ "no-such-program" }, "ipc.run: no-such-program: No such file or directory", E.ENOENT)
    refused({ "/no/such" }, "ipc.run: /no/such: No such file or directory", E.ENOENT)
    refused({ "/etc/passwd" }, "ipc.run: /etc/passwd: Permission denied", E.EACCES)
    local _, message, errno = run { "true", cwd = "/no/such" }
    assert.matches("^ipc%.run: .*/no/such", message)
    assert.are.equal(E.ENOENT, errno)
    _, message, errno = run { "true", ("x"):rep(10 << 20) }
    assert.matches("^ipc%.run: ", message)
    assert.are.equal(E.E2BIG, errno)
  end)

  it("takes 100 MB from both streams at once, every byte #slow", function()
    local r = assert(run { peer.python, "-c", BOTH, "100", timeout = 3 * LIMIT })
    local all = block():rep(100)
    assert.is_true(r.out == all)
    assert.is_true(r.err == all)
  end)

  it("gives 50 MB of input to a program that writes as it reads", function()
    local all = block():rep(50)
    assert.is_true(assert(run { "cat", input = all, timeout = 3 * LIMIT }).out == all)
  end)

  it("does not care about input that is not read", function()
    assert.are.equal("", assert(run { "true", input = block() }).out)
    assert.are.equal("0000001\n", assert(run { "head", "-n1", input = block() }).out)
  end)

  it("waits for a program that has closed its outputs", function()
    local r = assert(sh("echo early; exec >&- 2>&-; sleep 0.2; exit 7", { check = false }))
    assert.are.same({ "early\n", 7 }, { r.out, r.code })
    assert.is_true(r.seconds >= 0.2)
  end)

  it("waits for who holds the output when the program has ended", function()
    local r = assert(sh "(sleep 0.2; echo late) & echo early")
    assert.are.equal("early\nlate\n", r.out)
    assert.is_true(r.seconds >= 0.2)
  end)

  it("does not wait for who holds none, and leaves it alone", function()
    local r = assert(sh "sleep 100 >/dev/null 2>&1 & echo $!")
    local pid = math.tointeger(r.out)
    -- Where processes cannot share the pipe that tells of our end, their own ends the group.
    assert.is_true(peer.lives(pid) or (os.getenv "IPC_WITHOUT" or ""):find "reopen" ~= nil)
    os.execute("kill -KILL " .. pid)
  end)

  it("raises for mistakes, blaming the caller", function()
    local function refused(what, options)
      local ok, message = pcall(function() return (ipc.run(options)) end)
      assert.is_false(ok)
      assert.matches("run_spec%.lua:%d+: bad argument #1 to 'run' %(.*" .. what, message)
    end
    refused("table expected, got no value", nil)
    refused("table expected, got string", "ls")
    refused("", {})
    refused("", { 1 })
    refused("timeout", { "true", timeout = "1" })
    refused("timeout", { "true", timeout = 0 / 0 })
    refused("grace", { "true", grace = {} })
    refused("maxsize", { "true", maxsize = 0 })
    refused("maxsize", { "true", maxsize = 1.5 })
    refused("check", { "true", check = "no" })
    refused("stdin", { "true", stdin = "pipe" })
    refused("detach", { "true", detach = true })
    refused("", { "true", stdout = "nowhere" })
    refused("nonsense", { "true", nonsense = true })
  end)
end)

describe("ipc.run with a timeout", function()
  after_each(peer.clean)

  it("kills the program; what it wrote until then is there", function()
    local r, message, errno, all = sh("echo begun; exec sleep 100", { timeout = 0.3 })
    assert.is_nil(r)
    assert.are.equal("sh: timeout after 0.3 s", message)
    assert.are.equal(E.ETIMEDOUT, errno)
    assert.are.same({ "begun\n", "", nil, "KILL" }, { all.out, all.err, all.code, all.signal })
    assert.is_true(all.seconds >= 0.3)
  end)

  it("answers so with check = false, too", function()
    local r, _, errno, all = run { "sleep", "100", timeout = 0.05, check = false }
    assert.is_nil(r)
    assert.are.equal(E.ETIMEDOUT, errno)
    assert.are.equal("KILL", all.signal)
  end)

  it("is not put off by output without end #slow", function()
    local _, message, errno, all = run { "yes", timeout = 0.2 }
    assert.are.equal("yes: timeout after 0.2 s", message)
    assert.are.equal(E.ETIMEDOUT, errno)
    assert.is_true(all.out:sub(1, 4) == "y\ny\n")
  end)

  it("kills what it started, too", function()
    local w, all_gone = witness()
    local _, _, errno = sh("trap '' TERM; (sleep 100; :) & sleep 100; :", { stderr = w, timeout = 0.3 })
    assert.are.equal(E.ETIMEDOUT, errno)
    all_gone()
  end)

  it("kills who holds the output after the program has ended", function()
    local w, all_gone = witness()
    local r, message, errno, all = sh("sleep 100 & echo early", { stderr = w, timeout = 0.3 })
    assert.is_nil(r)
    assert.are.equal("sh: timeout after 0.3 s: it has ended, but another process holds its output", message)
    assert.are.equal(E.ETIMEDOUT, errno)
    assert.are.same({ "early\n", 0 }, { all.out, all.code })
    all_gone()
  end)

  it("does not wait for one with a group of its own, who has got away", function()
    local _, _, errno, all = run { peer.python, "-c", [[if True:
      import os, sys, time
      if os.fork() == 0:
          os.setsid()
          print(os.getpid(), flush=True)
          time.sleep(100)
    ]], timeout = 1 }
    assert.are.equal(E.ETIMEDOUT, errno)
    local pid = math.tointeger(all.out)
    assert.is_true(peer.lives(pid))
    os.execute("kill -KILL " .. pid)
  end)

  -- Runs a script that says when it has begun: one that had no time for that has more.
  local function begun(script, timeout, grace)
    local _, message, errno, all
    repeat
      _, message, errno, all = sh(script, { timeout = timeout, grace = grace })
      assert.are.equal(("sh: timeout after %g s"):format(timeout), message)
      assert.are.equal(E.ETIMEDOUT, errno)
      timeout = 2 * timeout
    until all.out:find "begun" or timeout > LIMIT
    return all
  end

  it("lets it end by itself within the grace, all it says then included", function()
    local all = begun("trap 'echo bye; exit 4' TERM; echo begun; while :; do sleep 0.05; done", 0.5, LIMIT)
    assert.are.same({ "begun\nbye\n", 4 }, { all.out, all.code })
  end)

  it("kills who does not within the grace", function()
    local all = begun("trap '' TERM; echo begun; while :; do sleep 0.05; done", 0.3, 0.2)
    assert.are.equal("KILL", all.signal)
    assert.is_true(all.seconds >= 0.5)
  end)

  it("of 0 or less does not wait", function()
    for _, timeout in ipairs { 0, -1, -math.huge } do
      local _, message, errno = run { "sleep", "100", timeout = timeout }
      assert.matches("^sleep: timeout after ", message)
      assert.are.equal(E.ETIMEDOUT, errno)
    end
    assert.is_table(ipc.run { "true", timeout = math.huge })
  end)
end)

describe("ipc.run with maxsize", function()
  after_each(peer.clean)

  it("ends a program that writes more, and gives so much", function()
    local r, message, errno, all, _ = run { "yes", maxsize = 100001 }
    assert.is_nil(r)
    assert.are.equal("yes: more than 100001 bytes of stdout", message)
    assert.are.equal(E.EMSGSIZE, errno)
    assert.are.equal(100001, #all.out)
    _, message, errno = sh("exec yes >&2", { maxsize = 10 })
    assert.are.equal("sh: more than 10 bytes of stderr", message)
    assert.are.equal(E.EMSGSIZE, errno)
  end)

  it("has no objection to exactly that", function()
    assert.are.equal("12345", assert(run { "printf", "12345", maxsize = 5 }).out)
  end)
end)

describe("ipc.pipeline", function()
  after_each(peer.clean)

  it("gives each program what the one before it writes", function()
    local r = assert(pipeline { { "sort", "-r", input = "a\nb\nc\nd\n" }, { "head", "-3" }, { "tr", "a-z", "A-Z" } })
    assert.are.equal("D\nC\nB\n", r.out)
    assert.are.equal(0, r.code)
    assert.are.equal(3, #r.stages)
    assert.is_nil(r.stages[1].out)
    assert.are.equal("", r.stages[1].err)
    assert.are.equal("D\nC\nB\n", r.stages[3].out)
  end)

  it("may be of one program", function()
    local r = assert(pipeline { { "cat", input = "text" } })
    assert.are.same({ "text", 1 }, { r.out, #r.stages })
  end)

  it("takes 50 MB through gzip and gunzip, every byte #slow", function()
    local all = block():rep(50)
    local r = assert(pipeline { { "gzip", "-1", input = all }, { "gunzip" }, timeout = 3 * LIMIT })
    assert.is_true(r.out == all)
  end)

  it("captures what each stage says on stderr", function()
    local r = assert(pipeline { { "sh", "-c", "echo one >&2" }, { "sh", "-c", "cat; echo two >&2" } })
    assert.are.same({ "one\n", "two\n" }, { r.stages[1].err, r.stages[2].err })
    assert.are.equal("two\n", r.err)
  end)

  it("sends what a stage says on stderr along, if asked to", function()
    local r = assert(pipeline { { "sh", "-c", "echo one >&2", stderr = "stdout" }, { "cat" } })
    assert.are.equal("one\n", r.out)
  end)

  it("names the first stage that failed", function()
    local r, message, errno, all, _ = pipeline {
      { "sh", "-c", "echo no luck >&2; exit 3" }, { "gunzip" }, { "cat" },
    }
    assert.is_nil(r)
    assert.are.equal("stage 1: sh: exit 3: no luck", message)
    assert.are.equal(0, errno)
    assert.are.equal(3, all.stages[1].code)
    assert.are.equal(0, all.code)
    _, message = pipeline { { "echo", "no archive" }, { "gunzip" }, { "sh", "-c", "exit 5" } }
    assert.matches("^stage 2: gunzip: exit 1: .*gzip", message)
    _, message = pipeline { { "true" }, { "sh", "-c", "kill -TERM $$" } }
    assert.matches("^stage 2: sh: .*TERM", message)
  end)

  it("with check = false any end is a result", function()
    local r = assert(pipeline { { "false" }, { "sh", "-c", "exit 3" }, check = false })
    assert.are.same({ 1, 3, 3 }, { r.stages[1].code, r.stages[2].code, r.code })
  end)

  it("blames nobody for SIGPIPE before the last stage", function()
    local r = assert(pipeline { { "yes" }, { "head", "-1" } })
    assert.are.equal("y\n", r.out)
    assert.are.equal("PIPE", r.stages[1].signal)
    r = assert(pipeline { { "yes" }, { "true" } })
    assert.are.equal("PIPE", r.stages[1].signal)
  end)

  it("but the last stage's is a failure, and any other signal", function()
    local _, message = pipeline { { "true" }, { "sh", "-c", "kill -PIPE $$" } }
    assert.matches("^stage 2: sh: .*PIPE", message)
    _, message = pipeline { { "sh", "-c", "kill -TERM $$" }, { "cat" } }
    assert.matches("^stage 1: sh: .*TERM", message)
  end)

  it("SIGPIPE ends a stage even where this program ignores it", function()
    local out, ok = peer.run([[
      local r = assert(ipc.pipeline { { "yes" }, { "head", "-1" }, timeout = 10 })
      io.write(r.out, r.stages[1].signal)
    ]], { shell = "trap '' PIPE" })
    assert.is_true(ok, out)
    assert.are.equal("y\nPIPE", out)
  end)

  it("stops the others when one cannot be started", function()
    local w, all_gone = witness()
    local r, message, errno, all = pipeline {
      { "sh", "-c", "sleep 100; :", stderr = w }, { "no-such-program" }, { "cat" },
    }
    assert.is_nil(r)
    assert.are.equal("ipc.pipeline: stage 2: no-such-program: No such file or directory", message)
    assert.are.equal(E.ENOENT, errno)
    assert.is_nil(all)
    all_gone()
  end)

  it("kills all groups at the deadline, and names the stage that was late", function()
    local w, all_gone = witness()
    local r, message, errno, all = pipeline {
      { "echo", "begun" }, { "sh", "-c", "cat; sleep 100; :" }, { "sh", "-c", "cat; sleep 100; :", stderr = w },
      timeout = 0.5,
    }
    assert.is_nil(r)
    assert.are.equal("stage 2: sh: timeout after 0.5 s", message)
    assert.are.equal(E.ETIMEDOUT, errno)
    assert.are.equal("begun\n", all.out)
    assert.are.equal("KILL", all.stages[2].signal)
    all_gone()
  end)

  it("bounds what it captures", function()
    local _, message, errno, all = pipeline { { "yes" }, { "cat" }, maxsize = 1000 }
    assert.are.equal("stage 2: cat: more than 1000 bytes of stdout", message)
    assert.are.equal(E.EMSGSIZE, errno)
    assert.are.equal(1000, #all.out)
  end)

  it("raises for mistakes, blaming the caller", function()
    local function refused(what, options)
      local ok, message = pcall(function() return (ipc.pipeline(options)) end)
      assert.is_false(ok)
      assert.matches("run_spec%.lua:%d+: bad argument #1 to 'pipeline' %(.*" .. what, message)
    end
    refused("table expected, got no value", nil)
    refused("no stages", {})
    refused("stage 1: table expected, got string", { "ls" })
    refused("stage 2: .*reads", { { "true" }, { "true", input = "" } })
    refused("stage 2: .*reads", { { "true" }, { "true", stdin = "null" } })
    refused("stage 1: .*writes", { { "true", stdout = "null" }, { "true" } })
    refused("stage 1: .*timeout", { { "true", timeout = 1 } })
    refused("timeout", { { "true" }, timeout = {} })
    refused("stdin", { { "true", stdin = "null" }, stdin = "null" })
    refused("string", { { "true" }, { 5 } })
    refused("unknown option", { { "true" }, [3] = { "true" } })
  end)
end)

describe("a call that is interrupted", function()
  after_each(peer.clean)

  -- Raises in the middle of a call, as Ctrl-C does.
  local function interrupted(fn)
    local begun = ipc.now()
    debug.sethook(function()
      if ipc.now() - begun > 0.3 then
        debug.sethook()
        error("interrupted!", 0)
      end
    end, "", 100)
    local ok, message = pcall(fn)
    debug.sethook()
    assert.are.same({ false, "interrupted!" }, { ok, message })
  end

  it("stops its program, and what that started", function()
    local w, all_gone = witness()
    interrupted(function()
      sh("sleep 100 & yes", { stderr = w })
    end)
    all_gone()
  end)

  it("stops a whole pipeline", function()
    local w, all_gone = witness()
    interrupted(function()
      pipeline { { "sh", "-c", "sleep 100 & yes", stderr = w }, { "cat" } }
    end)
    all_gone()
  end)

  it("stops them when its coroutine is closed", function()
    local tasks <close> = setmetatable({}, { __close = function() ipc.scheduler(nil) end })
    tasks.s = scheduler.new()
    local w, all_gone = witness()
    local begun, begin = peer.pipe()
    local thread = tasks.s:go(function()
      sh("echo begun; sleep 100 & sleep 100", { stdout = begin, stderr = w })
    end)
    tasks.s:step()
    assert.are.equal("yield", coroutine.status(thread) == "suspended" and "yield")
    assert.are.equal("closed", coroutine.close(thread) and "closed")
    tasks.s:drop(thread)
    all_gone()
    begun:close()
  end)
end)

describe("in tasks of a scheduler", function()
  local tasks

  before_each(function() tasks = scheduler.new() end)
  after_each(function()
    ipc.scheduler(nil)
    peer.clean()
  end)

  it("several run at once; none blocks the others", function()
    local r, w = peer.pipe { unit = "stream" }
    local first
    tasks:go(function() first = assert(run { "cat", stdin = r }).out end)
    tasks:go(function()
      local out = assert(run { "echo", "from the second" }).out -- while the first waits
      w:send(out)
      w:close()
    end)
    tasks:run(LIMIT)
    assert.are.equal("from the second\n", first)
  end)

  it("pipelines, streams of any size and timeouts are as anywhere", function()
    local all, results = block():rep(10), {}
    for i = 1, 2 do
      tasks:go(function()
        results[i] = assert(pipeline { { "gzip", "-1", input = all }, { "gunzip" } }).out == all
      end)
    end
    tasks:go(function()
      local r = assert(run { peer.python, "-c", BOTH, "10" })
      results[3] = r.out == all and r.err == all
    end)
    tasks:go(function()
      results[4] = select(2, run { "sh", "-c", "sleep 100 & sleep 100", timeout = 0.3 })
    end)
    tasks:go(function()
      results[5] = select(2, run { "yes", maxsize = 1 << 20 })
    end)
    tasks:run(3 * LIMIT)
    assert.are.same({
      true, true, true, "sh: timeout after 0.3 s", "yes: more than 1048576 bytes of stdout",
    }, results)
  end)

  it("a task that is cancelled stops its programs, which may take its time", function()
    local cancelled = {}
    ipc.scheduler {
      is_task = function(thread) return tasks.member[thread] ~= nil end,
      wait = function(...)
        local results = table.pack(coroutine.yield(...))
        if cancelled[coroutine.running()] then
          cancelled[coroutine.running()] = nil
          error("cancelled", 0)
        end
        return table.unpack(results, 1, results.n)
      end,
      cancel = function(descriptor) tasks:cancel(descriptor) end,
    }
    local r, w = peer.pipe { unit = "stream" }
    local w2, all_gone = witness()
    local result
    local thread = tasks:go(function()
      result = table.pack(pcall(pipeline, {
        { "sh", "-c", "trap 'echo bye; exit' TERM; echo begun; while :; do sleep 0.05; done", stderr = w2 },
        { "sh", "-c", "trap '' TERM; cat", stdout = w }, grace = LIMIT,
      }))
    end)
    local said
    tasks:go(function()
      said = assert(r:read("l", LIMIT))
      cancelled[thread] = true
      tasks.member[thread] = false
      said = said .. assert(r:read("l", LIMIT)) -- while the other waits for their end
    end)
    tasks:run(2 * LIMIT)
    assert.are.same({ false, "cancelled", n = 2 }, result)
    assert.are.equal("begunbye", said)
    all_gone()
  end)
end)

describe("in the loop of the library", function()
  after_each(peer.clean)

  it("runs go side by side, and a cancelled task leaves nothing", function()
    local first, all_gone, text = witness()
    local r, w = peer.pipe { unit = "stream" }
    ipc.loop.run(function()
      local late = ipc.loop.go(function()
        return sh("echo begun; sleep 100 & sleep 100", { stdout = w, stderr = first })
      end)
      text = r:read("l", LIMIT)
      local other = ipc.loop.go(function() return assert(run { "echo", "meanwhile" }).out end)
      assert.are.same({ true, "meanwhile\n" }, { other:wait(LIMIT) })
      late:cancel()
      assert.are.equal(E.ECANCELED, (select(3, late:wait(LIMIT))))
    end)
    assert.are.equal("begun", text)
    all_gone()
  end)
end)

describe("where a process is not as usual, ipc.run", function()
  after_each(peer.clean)

  -- What a script of its own says.
  local function says(expected, script, options)
    local out, ok = peer.run(script, options)
    assert.is_true(ok, out)
    assert.are.equal(expected, out)
  end

  local script = [[
    local r, message = ipc.run { "sh", "-c", "cat; echo e >&2; exit 3", input = "i", timeout = 10 }
    local p = ipc.pipeline { { "yes" }, { "head", "-n1" }, timeout = 10 }
    io.stderr:write(message, " ", p and p.out or "no pipeline")
  ]]

  it("knows nothing of signals that are ignored or blocked", function()
    says("sh: exit 3: e y\n", script, { shell = "trap '' PIPE TERM HUP INT" })
    says("sh: exit 3: e y\n", script, { under = peer.python .. [[ -c 'if True:
      import os, signal, sys
      signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
      os.execvp(sys.argv[1], sys.argv[1:])' ]] })
  end)

  it("works without standard streams", function()
    says("sh: exit 3: e y\n", script, { shell = "exec <&- >&-" })
    local path = os.tmpname()
    local _, ok = peer.run(([[
      local r = assert(ipc.run { "sh", "-c", "cat; echo e >&2", input = "i", timeout = 10 })
      local p = assert(ipc.pipeline { { "yes" }, { "head", "-n1" }, timeout = 10 })
      local file <close> = assert(io.open(%q, "w"))
      file:write(r.out, r.err, p.out)
    ]]):format(path), { shell = "exec <&- >&- 2>&-" })
    assert.is_true(ok)
    local file <close> = assert(io.open(path))
    assert.are.equal("ie\ny\n", file:read "a")
    os.remove(path)
  end)

  it("does not mistake success for failure when SIGCHLD is ignored", function()
    says("1 true", [[
      local r, message, errno, all = ipc.run { "echo", "1", timeout = 10 }
      all = r or all
      assert(r and r.code == 0 or errno == 0 and message:find "status")
      io.write(all.out:sub(1, 1), " ", tostring(all.seconds > 0))
    ]], { under = peer.python .. [[ -c 'if True:
      import os, signal, sys
      signal.signal(signal.SIGCHLD, signal.SIG_IGN)
      os.execvp(sys.argv[1], sys.argv[1:])' ]] })
  end)

  it("answers EMFILE where there are too few descriptors, and works with a few more", function()
    local function with(n)
      return (peer.run([[
        local worked
        for _ = 1, 20 do
          local r, message, errno = ipc.run { "echo", "1", timeout = 10 }
          worked = r and r.out or errno
        end
        io.write(tostring(worked))
      ]], { shell = "ulimit -n " .. n }))
    end
    assert.are.equal(tostring(E.EMFILE), with(6))
    assert.are.equal("1\n", with(16))
  end)

  it("in a coroutine that is no task waits as anywhere", function()
    local r = coroutine.wrap(function() return run { "echo", "1" } end)()
    assert.are.equal("1\n", r.out)
  end)

  it("in a forked child is the child's own affair", function()
    local child = peer.fork(function()
      local r = assert(ipc.run { "sh", "-c", "sleep 0.1; echo $PPID", timeout = 10 })
      return math.tointeger(r.out)
    end)
    assert.are.same({ true, child.pid }, { child:wait(LIMIT) })
  end)

  it("without a group of its own kills the program alone", function()
    local _, _, errno, all = sh("sleep 100 & echo $!; wait", { group = false, timeout = 0.3 })
    assert.are.equal(E.ETIMEDOUT, errno)
    local pid = math.tointeger(all.out)
    assert.is_true(peer.lives(pid))
    os.execute("kill -KILL " .. pid)
  end)
end)

describe("nothing is left", function()
  after_each(peer.clean)

  local ways = {
    success = function() assert(run { "sh", "-c", "echo x; echo y >&2", input = "z" }) end,
    failure = function() assert.is_nil(run { "false" }) end,
    ["a signal"] = function() assert.is_nil(sh "kill -KILL $$") end,
    ["no such program"] = function() assert.is_nil(run { "/no/such", input = "x" }) end,
    ["no such directory"] = function() assert.is_nil(run { "true", cwd = "/no/such" }) end,
    ["too long a list"] = function() assert.is_nil(run { "true", ("x"):rep(10 << 20) }) end,
    ["a mistake"] = function() assert.is_false(pcall(ipc.run, { "true", nonsense = 1 })) end,
    ["a timeout"] = function() assert.is_nil(run { "sh", "-c", "sleep 100 & sleep 100", timeout = 0.05 }) end,
    ["a timeout with grace"] = function()
      assert.is_nil(run { "sh", "-c", "trap '' TERM; sleep 100 & sleep 100", timeout = 0.05, grace = 0.05 })
    end,
    ["too much output"] = function() assert.is_nil(run { "yes", maxsize = 1000 }) end,
    ["a pipeline"] = function() assert(pipeline { { "yes" }, { "cat" }, { "head", "-1" } }) end,
    ["a pipeline that fails"] = function() assert.is_nil(pipeline { { "false" }, { "cat" } }) end,
    ["a pipeline that cannot start"] = function()
      assert.is_nil(pipeline { { "yes" }, { "cat" }, { "/no/such" } })
    end,
    ["a pipeline with a mistake"] = function()
      assert.is_false(pcall(ipc.pipeline, { { "yes" }, { "cat", nonsense = 1 } }))
    end,
    ["a late pipeline"] = function() assert.is_nil(pipeline { { "yes" }, { "sleep", "100" }, timeout = 0.05 }) end,
    ["an error in the middle"] = function()
      local begun = ipc.now()
      debug.sethook(function()
        if ipc.now() - begun > 0.05 then
          debug.sethook()
          error "enough"
        end
      end, "", 100)
      assert.is_false(pcall(run, { "yes" }))
      debug.sethook()
    end,
    ["a task that is closed"] = function()
      local tasks = scheduler.new()
      local thread = tasks:go(function() pipeline { { "yes" }, { "sleep", "100" } } end)
      tasks:step()
      assert.is_true(coroutine.close(thread))
      tasks:drop(thread)
      ipc.scheduler(nil)
    end,
  }

  for name, way in pairs(ways) do
    it("after " .. name .. ": no descriptor, no zombie", function()
      way()
      local before = peer.descriptors()
      for _ = 1, 3 do
        way()
      end
      assert.are.equal(before, peer.descriptors())
      assert.are.equal(0, peer.zombies(ipc.pid()))
    end)
  end
end)
