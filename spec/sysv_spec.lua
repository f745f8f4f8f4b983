-- System V queues: what is their own beyond what contract_spec says of every
-- channel, and peers that are not this library: perl, Python's sysv_ipc, cqueues
-- and luv.
local ipc = require "ipc"
local peer = require "spec.support.peer"

local E = ipc.errno
local keep, fork = peer.keep, peer.fork

local counter = 0

-- A key that nobody else uses.
local function key()
  counter = counter + 1
  return 0x4c000000 | (ipc.pid() & 0xffff) << 8 | counter & 0xff
end

local function options(more)
  local o = { timeout = peer.limit }
  for name, value in pairs(more or {}) do o[name] = value end
  return o
end

-- A new queue that the end of the spec removes.
local function queue(more, mode)
  return keep(assert(ipc.sysv("private", mode, options(more))))
end

local function own(more)
  local all = { temporary = true }
  for name, value in pairs(more or {}) do all[name] = value end
  return queue(all)
end

local function open(q, mode, more)
  local all = { id = q:id() }
  for name, value in pairs(more or {}) do all[name] = value end
  return keep(assert(ipc.sysv(nil, mode, options(all))))
end

local function closed(...) assert.are.same({ nil, "closed", E.EPIPE }, { ... }) end
local function timeout(...) assert.are.same({ nil, "timeout", E.ETIMEDOUT }, { ... }) end

local function fails(errno, pattern, ...)
  local nothing, message, number = ...
  assert.is_nil(nothing)
  assert.are.equal(errno, number, message)
  assert.matches(pattern, message)
end

-- A thread of ours waits in the queue with what r asked for last, and nothing
-- else touches the queue: until something comes its descriptor is unreadable.
local function asleep(r, ...)
  timeout(r:recv(0, ...))
  return { pollfd = assert(r:pollfd()), events = "r" }
end

local function quote(text) return "'" .. text:gsub("'", "'\\''") .. "'" end

-- Runs perl, which has the system calls built in; what it prints.
local function perl(script, ...)
  local words = { "perl", "-e", quote(script) }
  for _, word in ipairs { ... } do words[#words + 1] = quote(tostring(word)) end
  local file = peer.popen(table.concat(words, " ") .. " 2>&1")
  local text = file:read "a"
  assert.is_true(file:close(), text)
  return text
end

local SEND <const> = [[my ($id, $type, $text) = @ARGV;
  msgsnd($id, pack("l! a*", $type, $text), 0) or die "msgsnd: $!"]]

local RECEIVE <const> = [[my ($id, $type) = @ARGV;
  my $m; my $n = msgrcv($id, $m, 8192, $type, 0);
  defined $n or die "msgrcv: $!";
  my ($t, $text) = unpack("l! a*", $m);
  print length($text), ":$t:$text"]]

-- Odd permissions by which this process knows its own among all queues, and how
-- many there are more than when this was loaded. The suite may run several times at
-- once: who listens at a port of its own has the permissions of that number.
local claims = {}
for n = 1, 63 do
  claims[1] = ipc.listen("tcp:127.0.0.1:" .. 24900 + n)
  claims.bits = claims[1] and n
  if claims[1] then break end
end
local MARK <const> = ("0%o"):format(384 | assert(claims.bits, "63 suites at once"))

local function marked()
  local ids = {}
  for line in io.lines "/proc/sysvipc/msg" do
    local id = line:match("^%s*%-?%d+%s+(%d+)%s+" .. MARK:sub(2) .. "%s")
    if id then ids[id] = true end
  end
  return ids
end

local has_proc = peer.has_proc and io.open "/proc/sysvipc/msg" ~= nil
local others = has_proc and marked()

local function left()
  assert(claims[1]:pollfd()) -- it is there all the time
  local n = 0
  for id in pairs(marked()) do n = n + (others[id] and 0 or 1) end
  return n
end

local function tasks()
  local list = {}
  for id in io.popen("ls /proc/" .. ipc.pid() .. "/task"):lines() do list[#list + 1] = id end
  return list
end

local function threads() return #tasks() end

-- A thread that was joined is in /proc until the kernel has put it away.
local function back_to(count)
  local last = ipc.now() + 20
  while threads() ~= count and ipc.now() < last do end
  assert.are.equal(count, threads())
end

local EXCEPT = (function()
  local q <close> = assert(ipc.sysv("private", "rw", { temporary = true }))
  return select(3, q:recv(0, { except = 1 })) ~= E.ENOTSUP
end)()

describe("a System V queue", function()
  after_each(peer.clean)

  describe("is opened", function()
    it("by a key, by a path and a project, by its identifier: the same queue", function()
      local k = key()
      local q = keep(assert(ipc.sysv(k, nil, options { temporary = true })))
      assert(q:send("by key", 7))
      assert.are.same({ "by key", 7 }, { keep(assert(ipc.sysv(k, "r"))):recv(1) })
      assert(q:send "by id")
      assert.are.equal("by id", (open(q, "r"):recv(1)))
      assert.are.equal(k, q:stat().key)
      local path = os.tmpname()
      local a = keep(assert(ipc.sysv(path, "w", options { project = 2, temporary = true })))
      local b = keep(assert(ipc.sysv(path, "r", options { project = 2, create = false })))
      assert(a:send "by path")
      assert.are.equal("by path", (b:recv()))
      assert.are.equal(a:id(), b:id())
      fails(E.ENOENT, "^ipc%.sysv%.open: ", ipc.sysv(path, "r", { project = "x", create = false }))
      os.remove(path)
      fails(E.ENOENT, "^ipc%.sysv%.open: ", ipc.sysv(path))
    end)

    it("by addresses that mean the same", function()
      local k = key()
      local q = keep(assert(ipc.sysv(k, nil, options { temporary = true })))
      for _, address in ipairs { ("sysv:0x%x"):format(k), ("sysv:%d"):format(k), "sysv:?id=" .. q:id() } do
        assert(keep(assert(ipc.open(address, "w"))):send(address))
        assert.are.equal(address, (q:recv()))
      end
      local path = os.tmpname()
      local a = keep(assert(ipc.open("sysv:" .. path .. "?project=9&temporary=true")))
      assert.are.equal(a:id(), keep(assert(ipc.sysv(path, nil, { project = 9, create = false }))):id())
      os.remove(path)
      assert.are.equal(0, keep(assert(ipc.open("sysv:private", "r", { temporary = true }))):stat().key)
      for _, address in ipairs { "sysv:0", "sysv:12x", "sysv:1.5", "sysv:" } do
        assert.error_matches(function() ipc.open(address) end, "bad argument #1 to ")
      end
    end)

    it("never by mistake: key 0, the wrong type, a key and an id", function()
      assert.error_matches(function() ipc.sysv(0) end, "IPC_PRIVATE: say \"private\"")
      for _, wrong in ipairs { 1.5, {}, true, "", "a\0b", 1 << 33, -1 << 33 } do
        assert.error_matches(function() ipc.sysv(wrong) end, "bad argument #1 to ")
      end
      assert.error_matches(function() ipc.sysv() end, "key, path or \"private\" expected")
      assert.error_matches(function() ipc.sysv(1, nil, { id = 1 }) end, "not both")
      assert.error_matches(function() ipc.sysv(1, "x") end, "mode \"r\", \"w\" or \"rw\"")
      for _, project in ipairs { 0, 256, "ab", "", true, 1.5 } do
        assert.error_matches(function() ipc.sysv("/", nil, { project = project }) end, "'project'")
      end
      assert.error_matches(function() ipc.sysv("private", nil, { capacity = 0 }) end, "'capacity'")
      assert.error_matches(function() ipc.sysv("private", nil, { unit = "stream" }) end, "'unit'")
    end)

    it("new, old, or whichever", function()
      local k = key()
      fails(E.ENOENT, "No such file", ipc.sysv(k, "r", { create = false }))
      local q = keep(assert(ipc.sysv(k, nil, { create = "new", temporary = true })))
      fails(E.EEXIST, "File exists", ipc.sysv(k, nil, { create = "new" }))
      assert.are.equal(q:id(), keep(assert(ipc.sysv(k))):id())
      assert.are.equal(q:id(), keep(assert(ipc.sysv(k, nil, { create = false }))):id())
      assert(q:remove())
      fails(E.ENOENT, "No such file", ipc.sysv(nil, "r", { id = q:id() }))
    end)

    it("as soon as it exists, with retry", function()
      local k = key()
      timeout(ipc.sysv(k, "r", { create = false, retry = 0.03 }))
      local child = fork(function()
        ipc.parent:recv()
        local q <close> = assert(ipc.sysv(k, "w", { create = "new" }))
        assert(q:send "here")
      end)
      assert(child:send "go")
      local r = keep(assert(ipc.sysv(k, "r", { create = false, retry = true })))
      assert.are.equal("here", (r:recv(peer.limit)))
      assert(r:remove())
    end)

    it("with the permissions asked for whatever the umask, else EEXIST with both", function()
      for _, umask in ipairs { "0", "0777" } do
        local text = peer.run([[
          local a = assert(ipc.sysv("private", nil, { temporary = true }))
          local b = assert(ipc.sysv("private", nil, { temporary = true, permissions = "0642" }))
          print(a:stat().permissions, b:stat().permissions)
        ]], { shell = "umask " .. umask })
        assert.are.equal("0600\t0642\n", text)
      end
      local k = key()
      local q = keep(assert(ipc.sysv(k, nil, { permissions = "0640", temporary = true })))
      fails(E.EEXIST, '"0640", not "0600"', ipc.sysv(k, nil, { permissions = "0600" }))
      assert(keep(assert(ipc.sysv(k))))
      assert.is_true(q:set { permissions = "0600" })
      assert(keep(assert(ipc.sysv(k, nil, { permissions = "0600" }))))
    end)

    it("with the capacity asked for, else EEXIST with both figures", function()
      local k = key()
      local q = keep(assert(ipc.sysv(k, nil, { capacity = 5000, temporary = true })))
      assert.are.equal(5000, q:stat().capacity)
      assert.are.equal(5000, q:maxsize())
      fails(E.EEXIST, "capacity is 5000, not 6000", ipc.sysv(k, nil, { capacity = 6000 }))
      fails(E.EMSGSIZE, "maxsize 5001, .* 5000 bytes", ipc.sysv(k, nil, { maxsize = 5001 }))
      assert.is_true(q:set { capacity = 6000 })
      assert(keep(assert(ipc.sysv(k, nil, { capacity = 6000 }))))
    end)

    it("of another user only with create = false", function()
      local k = key()
      local q = keep(assert(ipc.sysv(k, nil, { temporary = true })))
      local done, message, errno = q:set { uid = 54321 }
      if not done then -- we are not root: nobody can be made the victim
        return fails(E.EPERM, "^ipc%.sysv%.set: ", done, message, errno)
      end
      fails(E.EACCES, "belongs to user 54321, .*create = false", ipc.sysv(k))
      assert.are.equal(q:id(), keep(assert(ipc.sysv(k, nil, { create = false }))):id())
    end)
  end)

  it("may be another's: ftok(3) gives two paths one key, so what is opened is checked", function()
    local one = os.tmpname()
    local two = one .. ".link"
    assert(os.execute(("ln %s %s"):format(quote(one), quote(two))))
    local q = keep(assert(ipc.sysv(one, nil, { temporary = true, permissions = "0640" })))
    assert.are.equal(q:id(), keep(assert(ipc.sysv(two))):id()) -- one inode, one key
    fails(E.EEXIST, '"0640", not "0600"', ipc.sysv(two, nil, { permissions = "0600" }))
    os.remove(one)
    os.remove(two)
  end)

  describe("that is removed is closed", function()
    it("for a process that waits to receive", function()
      local q = own()
      local child = fork(function(r)
        timeout(r:recv(0.001))
        ipc.parent:send "about to wait"
        return r:recv()
      end, open(q, "r"))
      assert(child:recv())
      assert.is_true(q:remove())
      assert.are.same({ true, nil, "closed", E.EPIPE }, { child:wait(peer.limit) })
    end)

    it("for one that waits to send", function()
      local q = own()
      while q:send(("x"):rep(1000), nil, 0) do end
      local child = fork(function(w)
        ipc.parent:send "about to wait"
        return w:send(("x"):rep(1000))
      end, open(q, "w"))
      assert(child:recv())
      assert.is_true(q:remove())
      assert.are.same({ true, nil, "closed", E.EPIPE }, { child:wait(peer.limit) })
    end)

    it("by a foreign program, with the messages in it, and stays so", function()
      local q = own()
      assert(q:send "lost")
      local sleeper = asleep(open(q, "r"), 9)
      perl([[msgctl($ARGV[0], 0, 0) or die $!]], q:id())
      assert.are.equal(sleeper, assert(ipc.poll({ sleeper }, peer.limit))[1])
      for _ = 1, 2 do
        closed(q:recv())
        closed(q:recv(0))
        closed(q:send "x")
        closed(q:stat())
        assert.is_true(ipc.poll({ { q, "rw" } }, 0)[q])
      end
      fails(E.ENOENT, "^ipc%.sysv%.remove: ", q:remove())
    end)
  end)

  it("sends the bytes of a message and not one more", function()
    local q = own()
    for _, text in ipairs { "", "x", ("y"):rep(100), ("z"):rep(8192) } do
      assert(q:send(text, 5))
      assert.are.equal(#text, q:stat().bytes)
      assert.are.equal(("%d:5:%s"):format(#text, text), perl(RECEIVE, q:id(), 0))
    end
  end)

  describe("names the limit that was hit", function()
    local limit = {}
    for _, row in ipairs(ipc.limits()) do
      if row.mechanism == "sysv" then limit[row.name] = row.value end
    end

    it("which ipc.limits lists", function()
      for _, name in ipairs { "kernel.msgmax", "kernel.msgmnb", "kernel.msgmni" } do
        local file <close> = io.open("/proc/sys/" .. name:gsub("%.", "/"))
        -- some systems do not tell
        assert.is_true(limit[name] == nil or limit[name] == file:read "n", name)
      end
    end)

    if not limit["kernel.msgmax"] then return end

    it("kernel.msgmax: a message, maxsize", function()
      local q = own()
      local most = limit["kernel.msgmax"]
      assert.are.equal(math.min(most, q:stat().capacity), q:maxsize())
      fails(E.EMSGSIZE, ("%d bytes, but kernel.msgmax is %d %%(sysctl %%-w kernel.msgmax="):format(
        most + 1, most), q:send(("x"):rep(most + 1)))
      fails(E.EMSGSIZE, ("maxsize %d, but kernel.msgmax is %d "):format(most + 1, most),
        ipc.sysv("private", nil, { maxsize = most + 1 }))
      fails(E.EMSGSIZE, "kernel.msgmax", ipc.pair("sysv", { maxsize = most + 1 }))
    end)

    it("kernel.msgmnb: a capacity without privilege", function()
      local most = limit["kernel.msgmnb"]
      local q, message, errno = ipc.sysv("private", nil, { capacity = most + 1, temporary = true })
      if q then -- we have the privilege
        assert.are.equal(most + 1, keep(q):stat().capacity)
        return
      end
      fails(E.EPERM, ("capacity %d, but kernel.msgmnb is %d "):format(most + 1, most), q, message, errno)
      fails(E.EPERM, "kernel.msgmnb is ", own():set { capacity = most + 1 })
    end)

    it("kernel.msgmni: queues", function()
      -- in a namespace of its own, where that can be had
      local command = "unshare -i"
      if not os.execute(command .. " true 2>/dev/null") then
        assert.are.equal("integer", math.type(limit["kernel.msgmni"]))
        return
      end
      local text = peer.run([[
        local message, errno, q
        assert(io.open("/proc/sys/kernel/msgmni", "w")):write "3":close()
        for i = 1, 4 do q, message, errno = ipc.sysv("private") end
        print(q, message, ipc.errno[errno])
      ]], { under = command })
      assert.matches("^nil\tipc%.sysv%.open: kernel%.msgmni is 3 %(sysctl %-w .*\tENOSPC\n$", text)
    end)
  end)

  describe("has neither descriptor nor deadline in the kernel, yet", function()
    it("a deadline is kept", function()
      local q = own()
      for _, tag in ipairs { 0, 5, -5 } do
        local start = ipc.now()
        timeout(q:recv(0.03, tag))
        assert.is_true(ipc.now() - start >= 0.03)
      end
    end)

    it("a descriptor is readable when what was asked for is there, not before", function()
      local r = own()
      local w = open(r, "w")
      local sleeper = asleep(r, 5)
      assert(w:send("another type", 4))
      timeout(ipc.poll({ sleeper }, 0.02))
      assert(w:send("this", 5))
      assert.are.equal(sleeper, assert(ipc.poll({ sleeper }, peer.limit))[1])
      assert.are.same({ "this", 5 }, { r:recv(0, 5) })
      assert.are.same({ "another type", 4 }, { r:recv(0) })
    end)

    it("a descriptor that a loop polls all the time is unreadable again after recv(0)", function()
      local q = own()
      local sleeper = asleep(q)
      for i = 1, 5 do
        assert(q:send("x", i))
        assert(ipc.poll({ sleeper }, peer.limit))
        assert.are.same({ "x", i }, { q:recv(0) })
        timeout(q:recv(0))
        timeout(ipc.poll({ sleeper }, 0))
      end
    end)

    it("ipc.poll waits for it among others", function()
      local q = own()
      local r, w = peer.pipe()
      timeout(ipc.poll({ q, r }, 0.01))
      local child = fork(function(to)
        ipc.parent:recv()
        to:send("a message", 3)
      end, open(q, "w"))
      assert(child:send "go")
      assert.are.same({ q, [q] = true }, ipc.poll({ r, q }, peer.limit))
      assert(w:send "in the pipe")
      assert.are.same({ r, q, [r] = true, [q] = true }, ipc.poll({ r, q }, peer.limit))
      assert.are.same({ "a message", 3 }, { q:recv(0) })
      assert.are.same({ r, [r] = true }, ipc.poll({ q, r }, peer.limit))
    end)

    it("ipc.poll waits for what the last recv asked for", function()
      local q = own()
      assert(q:send("other", 4))
      timeout(q:recv(0, 5))
      timeout(ipc.poll({ q }, 0.01))
      assert(q:send("this", 5))
      assert.is_true(ipc.poll({ q }, peer.limit)[q])
      assert.are.same({ "this", 5 }, { q:recv(0, 5) })
      assert.are.same({ "other", 4 }, { q:recv(0) })
    end)

    it("ipc.poll waits for room, of the size that was refused", function()
      local q = own { capacity = 1000 }
      assert(q:send(("x"):rep(600), 1) and q:send(("y"):rep(100), 2))
      assert.is_true(ipc.poll({ { q, "w" } }, 0)[q])
      timeout(q:send(("z"):rep(500), nil, 0))
      timeout(ipc.poll({ { q, "w" } }, 0.01))
      assert(q:recv(0, 2))
      timeout(ipc.poll({ { q, "w" } }, 0.01))
      local child = fork(function(r)
        ipc.parent:recv()
        return #r:recv()
      end, open(q, "r"))
      assert(child:send "go")
      assert.is_true(ipc.poll({ { q, "w" } }, peer.limit)[q])
      assert.is_true(q:send(("z"):rep(500), nil, 0))
    end)

    it("where no descriptor is free a wait looks again from time to time", function()
      local text = peer.run([[
        local q = assert(ipc.sysv("private", nil, { temporary = true, spin = 0 }))
        local child = assert(ipc.fork(function()
          ipc.parent:recv()
          q:send "in time"
        end))
        local pipes = {}
        repeat
          local r, w = ipc.pipe()
          pipes[#pipes + 1] = r and { r, w }
        until not r
        repeat until not io.open "/dev/null" -- kept by nobody, collected later
        print(q:recv(0.01))
        print(q:pollfd(), q:timeout() > 0)
        child:send "go"
        print(q:recv(5))
      ]], { shell = "ulimit -n 40" })
      assert.are.equal(("nil\ttimeout\t%d\nnil\ttrue\nin time\t1\n"):format(E.ETIMEDOUT), text)
    end)

    it("where no descriptor is free a thread that waits can still be ended", function()
      for free = 0, 3 do
        local text = peer.run(([[
          local q = assert(ipc.sysv("private", nil, { temporary = true, spin = 0 }))
          local late = assert(ipc.sysv("private", nil, { temporary = true, spin = 0 }))
          ipc.poll({ q }, 0.01) -- leaves a thread waiting
          local files = {}
          repeat
            local file = io.open "/dev/null"
            files[#files + 1] = file
          until not file
          for _ = 1, %d do table.remove(files):close() end
          ipc.poll({ late }, 0.01)
          for _, queue in ipairs { q, late } do
            assert(select(2, queue:recv(0)) == "timeout")
            assert(queue:send "x" and queue:recv(0) == "x")
          end
          print "alive"
        ]]):format(free), { shell = "ulimit -n 40" })
        assert.are.equal("alive\n", text)
      end
    end)

    it("the first thread with hardly a descriptor free, too", function()
      for free = 0, 4 do
        local text = peer.run(([[
          local q = assert(ipc.sysv("private", nil, { temporary = true, spin = 0 }))
          local files = {}
          repeat
            local file = io.open "/dev/null"
            files[#files + 1] = file
          until not file
          for _ = 1, %d do table.remove(files):close() end
          ipc.poll({ q }, 0.01)
          assert(select(2, q:recv(0)) == "timeout")
          assert(q:send "x" and q:recv(0) == "x")
          print "alive"
        ]]):format(free), { shell = "ulimit -n 40" })
        assert.are.equal("alive\n", text)
      end
    end)

    if not has_proc then return end

    it("a thread is there only when somebody waits, and signals are not for it", function()
      -- Threads that block all but KILL, STOP, BUS (of memory that a file lost)
      -- and the C library's own.
      local function deaf()
        local n = 0
        for _, id in ipairs(tasks()) do
          -- Not by a program: while one is started signals are blocked.
          local file <close> = assert(io.open("/proc/self/task/" .. id .. "/status"))
          local blocked = file:read("a"):match "SigBlk:%s*(%x+)"
          if tonumber(blocked, 16) & 0x7ffbfebf == 0x7ffbfebf then n = n + 1 end
        end
        return n
      end
      local before, before_deaf = threads(), deaf()
      local q = own()
      assert(q:send "x" and q:recv())
      timeout(q:recv(0))
      assert.are.equal(before, threads())
      assert(q:pollfd())
      assert.are.equal(before + 1, threads())
      assert.are.equal(before_deaf + 1, deaf())
      q:close()
      back_to(before)
    end)

    it("a thousand queues that were waited for leave neither threads nor descriptors", function()
      local before, count = threads(), peer.descriptors()
      for i = 1, 1000 do
        local q <close> = assert(ipc.sysv("private", nil, { temporary = true, spin = 0 }))
        timeout(q:recv(1e-6))
        if i % 2 == 0 then
          timeout(q:recv(1e-6, 2)) -- another selection
        end
      end
      back_to(before)
      assert.are.equal(count, peer.descriptors())
    end)
  end)

  describe("selects by tag:", function()
    local function filled()
      local q = own()
      for _, tag in ipairs { 3, 1, 2, 1, 5 } do assert(q:send("tag " .. tag, tag)) end
      return q
    end

    local function all(q, tag)
      local got = {}
      while true do
        local text, n = q:recv(0, tag)
        if not text then return table.concat(got, " ") end
        assert.are.equal("tag " .. n, text)
        got[#got + 1] = n
      end
    end

    it("any, one, the lowest up to one", function()
      assert.are.equal("3 1 2 1 5", all(filled()))
      assert.are.equal("3 1 2 1 5", all(filled(), 0))
      assert.are.equal("1 1", all(filled(), 1))
      assert.are.equal("", all(filled(), 4))
      assert.are.equal("1 1 2 3", all(filled(), -3))
    end)

    it("any but one", function()
      local q = filled()
      if not EXCEPT then
        return fails(E.ENOTSUP, "^ipc%.sysv%.recv: ", q:recv(0, { except = 1 }))
      end
      assert.are.equal("3 2 5", all(q, { except = 1 }))
      assert.are.equal("1 1", all(q))
    end)

    it("in every call that receives", function()
      local q = own()
      assert(q:put({ 1 }, 7) and q:put({ 2 }, 8) and q:sendmany({ "a", "b" }, 9))
      assert.are.same({ { 2 }, 8 }, { q:get(0, 8) })
      assert.are.same({ "a", "b" }, q:recvmany(10, 0, 9))
      assert.are.same({ { 1 }, 7 }, { q:values(0, 7)() })
      timeout(q:recv(0))
    end)

    it("a tag that is none raises", function()
      local q = own()
      for _, tag in ipairs { 0, -1, 1.5, "1", {}, math.mininteger } do
        assert.error_matches(function() q:send("x", tag) end, "bad argument #2")
      end
      for _, tag in ipairs { 1.5, "1", {}, { except = 0 }, { except = -1 }, math.mininteger } do
        assert.error_matches(function() q:recv(0, tag) end, "bad argument #2")
      end
      assert(q:send("the largest", 0x7fffffff))
      assert.are.same({ "the largest", 0x7fffffff }, { q:recv(0, 0x7fffffff) })
    end)
  end)

  describe("and empty messages, which end the thread's wait by being taken:", function()
    it("they come in their turn, with their tags", function()
      local q = own()
      local sleeper = asleep(q)
      assert(q:send("", 3) and q:send("after", 4) and q:send("", 5))
      assert(ipc.poll({ sleeper }, peer.limit))
      assert.are.equal(0, q:timeout())
      assert.are.same({ "", 3 }, { q:recv(0) })
      assert.are.same({ "after", 4 }, { q:recv(0) })
      assert.are.same({ "", 5 }, { q:recv(0) })
      timeout(q:recv(0))
    end)

    it("at once, before the thread ran, too", function()
      local q = own()
      for i = 1, 200 do
        asleep(q)
        assert(q:send("", i) and q:send("after", i))
        assert.are.same({ "", i }, { q:recv(0) })
        assert.are.same({ "after", i }, { q:recv(0) })
      end
    end)

    it("one in hand waits for who asks for it", function()
      local q = own()
      local sleeper = asleep(q)
      assert(q:send("", 3) and q:send("after", 4))
      assert(ipc.poll({ sleeper }, peer.limit))
      assert.are.same({ "after", 4 }, { q:recv(0, 4) })
      timeout(q:recv(0, 4))
      timeout(q:recv(0.001, -2))
      assert.are.same({ "", 3 }, { q:recv(0, -3) })
    end)

    it("a lower tag in the queue goes before one in hand", function()
      local q = own()
      local sleeper = asleep(q)
      assert(q:send("", 3))
      assert(ipc.poll({ sleeper }, peer.limit))
      assert(q:send("lower", 2) and q:send("higher", 4))
      assert.are.same({ "lower", 2 }, { q:recv(0, -9) })
      assert.are.same({ "", 3 }, { q:recv(0, -9) })
      assert.are.same({ "higher", 4 }, { q:recv(0, -9) })
    end)

    it("close puts back what was not delivered", function()
      local q = own()
      local r = open(q, "r")
      local sleeper = asleep(r)
      assert(q:send("", 3))
      assert(ipc.poll({ sleeper }, peer.limit))
      assert.are.equal(0, q:stat().messages)
      r:close()
      assert.are.same({ "", 3 }, { q:recv(0) })
      timeout(q:recv(0))
    end)

    it("after a fork what is in hand is the parent's", function()
      local q = own()
      local sleeper = asleep(q)
      assert(q:send("", 3))
      assert(ipc.poll({ sleeper }, peer.limit))
      local child = fork(function(r) return r:recv(0) end, q)
      assert.are.same({ true, nil, "timeout", E.ETIMEDOUT }, { child:wait(peer.limit) })
      assert.are.same({ "", 3 }, { q:recv(0) })
    end)
  end)

  describe("and messages longer than maxsize:", function()
    for call, take in pairs {
      recv = function(q) return q:recv(0) end,
      get = function(q) return q:get(0) end,
      recvmany = function(q) return q:recvmany(5, 0) end,
    } do
      it("consumed, reported once with both figures, by " .. call, function()
        local q = own()
        local r = open(q, "r", { maxsize = 10 })
        assert(q:send(("x"):rep(4000), 2))
        assert(q:put "next")
        assert.is_true(ipc.poll({ r }, 0)[r])
        fails(E.EMSGSIZE, "^ipc%.sysv%." .. call .. ": 4000 .*10", take(r))
        assert.are.equal("next", (r:get(0)))
        timeout(r:recv(0))
      end)
    end

    it("only of those asked for", function()
      local q = own()
      local r = open(q, "r", { maxsize = 10 })
      assert(q:send(("x"):rep(4000), 2) and q:send("y", 3))
      assert.are.same({ "y", 3 }, { r:recv(0, 3) })
      assert.are.equal(1, q:stat().messages)
      fails(E.EMSGSIZE, "4000 .*10", r:recv(0, -2))
    end)

    it("wake a wait", function()
      local q = own()
      local r = open(q, "r", { maxsize = 10 })
      local child = fork(function(w)
        ipc.parent:recv()
        w:send(("x"):rep(11))
      end, open(q, "w"))
      assert(child:send "go")
      fails(E.EMSGSIZE, "11 .*10", r:recv())
    end)
  end)

  describe("tells and changes what it is:", function()
    it("stat", function()
      local q = own()
      local before = q:stat()
      assert.are.same({ 0, 0, 0, 0, 0, 0 }, { before.messages, before.bytes, before.last_send_pid,
        before.last_recv_pid, before.send_time, before.recv_time })
      assert(q:send "12345" and q:send "678" and q:recv())
      local s = q:stat()
      assert.are.same({ 1, 3, ipc.pid(), ipc.pid(), q:id(), 0, "0600" }, { s.messages, s.bytes,
        s.last_send_pid, s.last_recv_pid, s.id, s.key, s.permissions })
      assert.is_true(s.uid == s.creator_uid and s.gid == s.creator_gid)
      assert.is_true(s.send_time >= s.change_time and s.change_time > 0)
    end)

    it("set", function()
      local q = own()
      assert.is_true(q:set { permissions = "0620", capacity = 4000 })
      assert.are.equal("0620", q:stat().permissions)
      assert.are.equal(4000, q:stat().capacity)
      assert.are.equal(4000, q:maxsize())
      assert.is_true(q:set { gid = q:stat().gid, uid = q:stat().uid })
      for _, wrong in ipairs { { permissions = 600 }, { colour = 1 }, { capacity = 0 }, { uid = -1 }, { 1 } } do
        assert.error_matches(function() q:set(wrong) end, "bad argument #1")
      end
      assert.error_matches(function() q:set() end, "bad argument #1")
    end)

    it("remove, once", function()
      local q = own()
      assert.is_true(q:remove())
      fails(E.ENOENT, "^ipc%.sysv%.remove: ", q:remove())
      closed(q:stat())
      closed(q:set {})
      q:close()
      for _, call in ipairs { "stat", "remove" } do closed(q[call](q)) end
      assert.are.equal("integer", math.type(q:id()))
    end)
  end)

  describe("outlives its handles", function()
    it("with its messages, until it is removed", function()
      local q = queue()
      assert(q:send("still here", 2))
      q:close()
      local again = open(q)
      assert.are.same({ "still here", 2 }, { again:recv(0) })
      assert.is_true(again:remove())
    end)

    it("unless it is temporary: the creator's close removes it", function()
      local k = key()
      local q = keep(assert(ipc.sysv(k, nil, { temporary = true })))
      local other = keep(assert(ipc.sysv(k, nil, { temporary = true }))) -- did not create it
      other:close()
      assert(q:send "x")
      q:close()
      fails(E.ENOENT, "", ipc.sysv(k, "r", { create = false }))
    end)

    it("but the collector never removes it", function()
      local k = key()
      do
        local q = assert(ipc.sysv(k, nil, { temporary = true }))
        assert(q:send "x")
      end
      collectgarbage()
      collectgarbage()
      local q = keep(assert(ipc.sysv(k, nil, { create = false })))
      assert.are.equal("x", (q:recv(0)))
      assert.is_true(q:remove())
    end)

    it("and the program's end does, however it comes, once a thread waits, too", function()
      for _, ending in ipairs { "", "os.exit(0)", "os.exit(0, true)", "error 'x'" } do
        local id = peer.run([[
          local q = assert(ipc.sysv("private", nil, { temporary = true }))
          q:recv(0.001)
          io.stdout:write(q:id(), "\n"):flush()
        ]] .. ending):match "^%d+"
        fails(E.ENOENT, "", ipc.sysv(nil, "r", { id = tonumber(id) }))
      end
    end)

    it("a child's end removes nothing of the parent's", function()
      local q = own()
      local child = fork(function(mine)
        mine:send "from the child"
        mine:close()
      end, q)
      assert.is_true(child:wait(peer.limit))
      assert.are.equal("from the child", (q:recv(0)))
    end)
  end)

  describe("and processes:", function()
    it("a fork while a thread waits leaves parent and child able to wait", function()
      local q = own()
      asleep(q)
      local child = fork(function(mine)
        timeout(mine:recv(0.002, 9))
        ipc.parent:send "waited"
        return mine:recv(nil, 7)
      end, q)
      assert(child:recv())
      timeout(q:recv(0.002, 9))
      assert(q:send("for the child", 7))
      assert.are.same({ true, "for the child", 7 }, { child:wait(peer.limit) })
      assert(q:send("for the parent", 9))
      assert.are.same({ "for the parent", 9 }, { q:recv(nil, 9) })
    end)

    it("a task of the parent that waits during a fork goes on waiting", function()
      local s = require "spec.support.scheduler".new()
      local q = own()
      local got
      s:go(function() got = q:recv() end)
      s:step()
      local child = fork(function(mine)
        ipc.parent:recv()
        mine:send "late"
      end, q)
      s:go(function()
        ipc.sleep(0)
        assert(child:send "go")
      end)
      s:run(peer.limit)
      ipc.scheduler(nil)
      assert.are.equal("late", got)
    end)

    it("a fork(2) that is not ours leaves the child silent and the parent unharmed", function()
      local q = own()
      local sleeper = asleep(q)
      local file = os.tmpname()
      require("spec.peer").fork(function()
        local out <close> = io.open(file, "w")
        out:write(tostring(select(3, q:recv(0))), " ", tostring(q:close()))
      end)
      local out <close> = io.open(file)
      assert.are.equal(E.ECHILD .. " true", out:read "a")
      os.remove(file)
      assert(q:send "still works")
      assert(ipc.poll({ sleeper }, peer.limit))
      assert.are.equal("still works", (q:recv(0)))
    end)

    it("a peer that is killed is not told of; its messages stay", function()
      local q = own()
      local child = fork(function(w)
        w:send "last words"
        ipc.parent:send "said"
        ipc.parent:recv()
      end, open(q, "w"))
      assert(child:recv())
      assert(child:kill "KILL")
      assert.is_nil((child:wait(peer.limit)))
      assert.are.equal("last words", (q:recv(0)))
      timeout(q:recv(0.01))
    end)

    it("two Lua states in one process share a queue, each with a thread of its own", function()
      local q = own()
      asleep(q)
      local n = require("spec.peer").state(([[
        package.path, package.cpath = %q, %q
        local ipc = require "ipc"
        local q = assert(ipc.sysv(nil, nil, { id = %d }))
        assert(select(2, q:recv(0.002, 9)) == "timeout")
        assert(q:send("from the other state", 7))
        assert(q:send("its own", 9))
        local text = q:recv(5, 9)
        q:close()
        return #text
      ]]):format(package.path, package.cpath, q:id()))
      assert.are.equal(7, n)
      assert.are.same({ "from the other state", 7 }, { q:recv() })
    end)
  end)

  describe("in tasks:", function()
    after_each(function() ipc.scheduler(nil) end)

    it("each selection takes a handle of its own", function()
      local s = require "spec.support.scheduler".new()
      local q = own()
      local got = {}
      for tag = 1, 4 do
        local mine = keep(assert(q:dup()))
        s:go(function() got[tag] = mine:recv(nil, tag) end)
      end
      s:go(function()
        ipc.sleep(0)
        for tag = 4, 1, -1 do assert(q:send("tag " .. tag, tag)) end
      end)
      s:run(peer.limit)
      assert.are.same({ "tag 1", "tag 2", "tag 3", "tag 4" }, got)
    end)

    it("on one handle they come to their messages, too", function()
      local s = require "spec.support.scheduler".new()
      local q = own()
      local got = {}
      s:go(function() got[1] = q:recv(nil, 1) end)
      s:go(function() got[2] = q:recv(nil, 2) end)
      s:go(function()
        ipc.sleep(0.002)
        assert(q:send("one", 1))
        ipc.sleep(0.002)
        assert(q:send("two", 2))
      end)
      s:run(peer.limit)
      assert.are.same({ "one", "two" }, got)
    end)

    it("removal reaches a task that waits", function()
      local s = require "spec.support.scheduler".new()
      local q = own()
      local result
      s:go(function() result = { q:recv() } end)
      s:go(function()
        ipc.sleep(0)
        assert(open(q):remove())
      end)
      s:run(peer.limit)
      assert.are.same({ nil, "closed", E.EPIPE }, result)
    end)

    it("cqueues polls it as any of its own objects", function()
      local cqueues = require "cqueues"
      local loop = cqueues.new()
      local q = own()
      local got = {}
      loop:wrap(function()
        for i = 1, 3 do
          repeat
            assert(cqueues.poll(q, peer.limit) == q)
            got[i] = q:recv(0)
          until got[i]
        end
      end)
      loop:wrap(function()
        for i = 1, 3 do
          cqueues.sleep(0.001)
          assert(q:send(tostring(i)))
        end
      end)
      assert(loop:loop(peer.limit))
      assert.are.same({ "1", "2", "3" }, got)
    end)

    it("luv watches its descriptor", function()
      local uv = require "spec.support.with".luv()
      local q = own()
      timeout(q:recv(0))
      local got, wakes = {}, 0
      local watch = uv.new_poll(q:pollfd())
      local timer, bound = uv.new_timer(), uv.new_timer()
      uv.update_time() -- timers count from when it ran last
      watch:start("r", function()
        wakes = wakes + 1
        while true do
          local text = q:recv(0)
          if not text then break end
          got[#got + 1] = text
        end
        if #got == 5 then
          watch:close()
          bound:close()
        end
      end)
      timer:start(1, 5, function()
        assert(q:send "tick")
        if q:stats().sent == 5 then timer:close() end
      end)
      bound:start(1000 * peer.limit, 0, function() uv.stop() end)
      uv.run()
      assert.are.same({ "tick", "tick", "tick", "tick", "tick" }, got)
      assert.is_true(wakes <= 10, wakes .. " wakes") -- it slept in between
    end)
  end)
end)

describe("a pair of System V queues", function()
  after_each(peer.clean)

  local function pair(more) return peer.pair("sysv", more) end

  it("is two queues: each end sends to the one that the other receives from", function()
    local a, b = pair()
    assert(a:send("to b", 3) and b:send("to a", 4))
    assert.are.same({ "to b", 3 }, { b:recv() })
    assert.are.same({ "to a", 4 }, { a:recv() })
  end)

  it("ends with close and shutdown, also where the queue is full", function()
    for _, ending in ipairs { "close", "shutdown" } do
      local a, b = pair { capacity = 1000, maxsize = 1000 }
      assert(a:send(("x"):rep(1000), 2))
      assert.is_true(a[ending](a))
      assert.are.same({ ("x"):rep(1000), 2 }, { b:recv(0) })
      closed(b:recv(0))
      closed(b:recv())
    end
  end)

  it("ends for who sleeps on it", function()
    local a, b = pair { spin = 0 }
    local child = fork(function(r)
      ipc.parent:send "about to wait"
      return r:recv()
    end, b)
    assert(child:recv())
    ipc.sleep(0.001) -- it is asleep now; if not, it sees the end as well
    a:close()
    assert.are.same({ true, nil, "closed", E.EPIPE }, { child:wait(peer.limit) })
  end)

  it("moves to a child while a thread waits for it here", function()
    local a, b = pair()
    asleep(b)
    local child = fork(function(r)
      timeout(r:recv(0.002))
      ipc.parent:send "waited"
      return r:recv()
    end, b)
    assert(child:recv())
    assert(a:send("", 3))
    assert.are.same({ true, "", 3 }, { child:wait(peer.limit) })
  end)

  it("ends for who waits for one type and does not get it", function()
    local a, b = pair()
    assert(a:send("other", 2))
    local child = fork(function(r)
      timeout(r:recv(0.002, 3))
      ipc.parent:send "about to wait"
      local nothing, word = r:recv(nil, 3)
      return nothing, word, (r:recv()), select(2, r:recv())
    end, b)
    assert(child:recv())
    a:close()
    assert.are.same({ true, nil, "closed", "other", "closed", E.EPIPE }, { child:wait(peer.limit) })
  end)

  it("keeps the largest type for its end", function()
    local a = pair()
    assert.error_matches(function() a:send("x", math.maxinteger) end, "tag %d+ is not in 1 %.%. ")
  end)

  if not has_proc then return end

  it("leaves nothing behind however its ends go", function()
    local function make() return assert(ipc.pair("sysv", { permissions = MARK })) end
    assert.are.equal(0, left())
    for name, go in pairs {
      ["both closed"] = function(a, b)
        assert(a:send "unread")
        a:close()
        b:close()
      end,
      collected = function() end,
      ["dups closed"] = function(a, b)
        local c, d = keep(a:dup(), b:dup())
        a:close()
        b:close()
        assert(c:send "x" and d:recv())
        c:close()
        d:close()
      end,
      ["one in a child"] = function(a, b)
        local child = fork(function(mine) return (mine:recv()) end, b)
        assert(a:send "x")
        assert.is_true(child:wait(peer.limit))
        closed(a:send "y")
        a:close()
      end,
      ["both in children"] = function(a, b)
        local one = fork(function(mine) return mine:send "x", (mine:recv()) end, a)
        local two = fork(function(mine) return mine:send "y", (mine:recv()) end, b)
        assert.are.same({ true, true, "y" }, { one:wait(peer.limit) })
        assert.are.same({ true, true, "x" }, { two:wait(peer.limit) })
      end,
      ["one killed"] = function(a, b)
        local child = fork(function(mine)
          mine:send "ready"
          ipc.parent:recv()
        end, b)
        assert.are.equal("ready", (a:recv()))
        assert(child:kill "KILL")
        assert.is_nil((child:wait(peer.limit)))
        a:close()
      end,
      ["waited for"] = function(a, b)
        timeout(a:recv(0.001))
        timeout(b:recv(0.001, 2))
        b:close()
        closed(a:recv())
      end,
    } do
      go(make())
      collectgarbage()
      collectgarbage()
      assert.are.equal(0, left(), name)
    end
    for _, ending in ipairs { "", "os.exit(0)", "os.exit(0, true)", "error 'x'" } do
      peer.run(("local a, b = ipc.pair('sysv', { permissions = %q }) a:recv(0.001) "):format(MARK) .. ending)
      assert.are.equal(0, left(), ending)
    end
  end)

  it("leaves nothing behind where it cannot be made", function()
    assert.is_nil((ipc.pair("sysv", { permissions = MARK, maxsize = 1 << 30 })))
    assert.is_nil((ipc.sysv("private", "rw", { permissions = MARK, maxsize = 1 << 30 })))
    assert.are.equal(0, left())
  end)
end)

describe("foreign programs and a System V queue:", function()
  after_each(peer.clean)

  it("perl sends what is received, with its type", function()
    local q = own()
    for i, text in ipairs { "hello", "", ("x"):rep(5000) } do
      perl(SEND, q:id(), i, text)
      assert.are.same({ text, i }, { q:recv(0) })
    end
  end)

  it("perl receives what is sent, by type", function()
    local q = own()
    assert(q:send("three", 3) and q:send("two", 2) and q:send("one"))
    assert.are.equal("3:2:two", perl(RECEIVE, q:id(), 2))
    assert.are.equal("3:1:one", perl(RECEIVE, q:id(), -3))
    assert.are.equal("5:3:three", perl(RECEIVE, q:id(), 0))
  end)

  it("perl wakes a wait, by the key that it made of the path", function()
    local path = os.tmpname()
    local q = keep(assert(ipc.sysv(path, "r", options { temporary = true, project = 66 })))
    local file = peer.popen(("perl -e %s %s"):format(quote [[
      my @s = stat $ARGV[0];
      my $key = (66 << 24) | (($s[0] & 0xff) << 16) | ($s[1] & 0xffff);
      my $id = msgget($key, 0); defined $id or die "msgget: $!";
      msgsnd($id, pack("l! a*", 12, "by its key"), 0) or die "msgsnd: $!";
    ]], quote(path)))
    assert.are.same({ "by its key", 12 }, { q:recv() })
    assert.is_true(file:close())
    os.remove(path)
  end)

  it("Python's sysv_ipc answers each message with its type doubled", function()
    local k = key()
    local q = keep(assert(ipc.sysv(k, nil, options { temporary = true })))
    local file = peer.popen(peer.python_command([[
import sys, sysv_ipc
q = sysv_ipc.MessageQueue(int(sys.argv[1]))
while True:
    text, kind = q.receive(type=-10)
    q.send(text[::-1], type=kind + 100)
    if text == b"end":
        break
]], k), "w")
    for i = 1, 10 do
      local text = ("%d:"):format(i) .. ("ab"):rep(i * 100)
      assert(q:send(text, i))
      assert.are.same({ text:reverse(), i + 100 }, { q:recv(nil, i + 100) })
    end
    assert(q:send("end", 1))
    assert.are.same({ "dne", 101 }, { q:recv(nil, 101) })
    assert.is_true(file:close())
  end)

  it("values go through as they are", function()
    local q = own()
    local text = perl(RECEIVE:gsub("print.*", 'print unpack("H*", $text)'),
      (q:put({ 1, "x" }, 4) and q:id()), 4)
    assert.are.equal("9201a178", text)
  end)
end)
