-- POSIX message queues: what is their own beyond what contract_spec says of
-- every channel, and peers that are not this library: Python by mq_send(3) and
-- mq_receive(3), cqueues and luv polling the descriptor.
local ipc = require "ipc"
local peer = require "spec.support.peer"
local with = require "spec.support.with"

local E = ipc.errno
local PATIENCE <const> = with.patience

if not peer.has "mqueue" then
  describe("POSIX queues", function()
    it("do not exist here: ENOTSUP", function()
      local queue, message, errno = ipc.mqueue "/none"
      assert.is_nil(queue)
      assert.matches("no POSIX message queues here", message)
      assert.are.equal(E.ENOTSUP, errno)
      assert.are.equal(E.ENOTSUP, (select(3, ipc.pair "mqueue")))
    end)
  end)
  return
end

local times_out = { nil, "timeout", E.ETIMEDOUT }
local is_root = io.popen("id -u"):read "n" == 0

local function fails(errno, pattern, ok, message, number)
  assert.is_nil(ok)
  assert.are.equal(errno, number, message)
  assert.matches(pattern, message)
end

-- ---- names, removed after each test

local taken, count = {}, 0

local function new_name()
  count = count + 1
  local name = ("/ipc-spec-%d-q%d"):format(ipc.pid(), count)
  taken[#taken + 1] = name
  return name
end

-- Opens; every wait is bounded.
local function open(name, mode, options)
  local queue = assert(ipc.mqueue(name, mode, options))
  with.close(queue)
  if not (options and options.timeout) then queue:settimeout(PATIENCE) end
  return queue
end

local function exists(name)
  local queue <close>, _, errno = ipc.mqueue(name, "r", { create = false })
  assert.is_true(queue ~= nil or errno == E.ENOENT)
  return queue ~= nil
end

local function clean()
  with.cleanup()
  for _, name in ipairs(taken) do
    local queue <close> = ipc.mqueue(name, "r", { create = false })
    if queue then queue:remove() end
  end
  taken = {}
end

-- ---- Python's side

local PYTHON <const> = [[
import ctypes, os, sys
lib = ctypes.CDLL(None, use_errno=True)
if not hasattr(lib, "mq_open"): lib = ctypes.CDLL("librt.so.1", use_errno=True)
lib.mq_receive.restype = ctypes.c_ssize_t
lib.mq_receive.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_void_p]
lib.mq_send.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_uint]
class Attr(ctypes.Structure):
    _fields_ = [(n, ctypes.c_long) for n in ("flags", "maxmsg", "msgsize", "curmsgs")] + [("pad", ctypes.c_long * 4)]
def check(n):
    if n < 0: raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return n
def mq_open(name, flags, maxmsg=0, msgsize=0, mode=0o600):
    attr = Attr(0, maxmsg, msgsize)
    return check(lib.mq_open(name.encode(), flags, mode, ctypes.byref(attr) if maxmsg else None))
def send(q, data, priority=0): check(lib.mq_send(q, data, len(data), priority))
def receive(q, room=8192):
    data, priority = ctypes.create_string_buffer(room), ctypes.c_uint()
    n = check(lib.mq_receive(q, data, room, ctypes.byref(priority)))
    return data.raw[:n], priority.value
def attr(q):
    a = Attr()
    check(lib.mq_getattr(q, ctypes.byref(a)))
    return a
name = sys.argv[1]
]]

-- A Python program with the queue's name: to be read from.
local function python(name, script)
  return peer.popen(peer.python_command(PYTHON .. script, name))
end

-- ---- the specs

describe("a POSIX queue", function()
  after_each(clean)

  it("delivers the highest priority first, equals in their order", function()
    local q = open(new_name())
    for _, m in ipairs { { "b1", 5 }, { "c", 0 }, { "a", 32767 }, { "b2", 5 }, { "d" } } do
      assert.is_true(q:send(m[1], m[2]))
    end
    assert.are.same({ "a", 32767 }, { q:recv() })
    assert.are.same({ "b1", 5 }, { q:recv() })
    assert.are.same({ "b2", 5 }, { q:recv() })
    assert.are.same({ "c", 0 }, { q:recv() })
    assert.are.same({ "d", 0 }, { q:recv() })
    assert.are.same(times_out, { q:recv(0) })
  end)

  it("gives a whole list one priority", function()
    local q = open(new_name())
    assert(q:send("late", 1))
    assert.are.equal(2, q:sendmany({ "x", "y" }, 7))
    assert.are.same({ "x", "y", "late" }, q:recvmany(10))
  end)

  it("takes priorities from 0 to 32,767 and receives whatever is first", function()
    local q = open(new_name())
    for _, tag in ipairs { -1, 32768, math.mininteger } do
      assert.error_matches(function() q:send("x", tag) end,
        ("tag %d is not in 0 .. 32767"):format(tag):gsub("%-", "%%-"))
    end
    for _, call in ipairs { "recv", "get", "messages", "values" } do
      assert.error_matches(function() q[call](q, 0, 5) end, "nothing is selected by tag here")
    end
    assert.error_matches(function() q:recvmany(1, 0, 5) end, "nothing is selected by tag here")
    assert.are.equal(0, q:stat().messages)
  end)

  it("carries empty messages, with their priority", function()
    local q = open(new_name())
    assert(q:send("", 3) and q:send "")
    assert.are.same({ "", 3 }, { q:recv() })
    assert.are.same({ "", 0 }, { q:recv() })
  end)

  it("can be opened for one direction", function()
    local name = new_name()
    local r, w = open(name, "r"), open(name, "w")
    assert(w:send "x")
    assert.are.equal("x", (r:recv()))
    assert.error_matches(function() r:send "x" end, "ipc.mqueue: this end only receives")
    assert.error_matches(function() w:recv(0) end, "ipc.mqueue: this end only sends")
    assert.are.equal("w", w:events())
    for _, mode in ipairs { "x", "wr", "", 1, true } do
      assert.error_matches(function() ipc.mqueue(name, mode) end,
        [[bad argument #2 .*mode "r", "w" or "rw" expected]])
    end
  end)

  it("has an address", function()
    local name = new_name()
    local w = with.close(assert(ipc.open(("mqueue:%s?maxmsg=3&msgsize=20"):format(name), "w")))
    local r = with.close(assert(ipc.open("mqueue:" .. name, "r", { timeout = PATIENCE })))
    assert(w:put({ 1 }, 2))
    assert.are.same({ { 1 }, 2 }, { r:get() })
    assert.are.equal(3, r:stat().maxmsg)
    assert.are.equal(20, r:stat().msgsize)
    assert.error_matches(function() ipc.open "mqueue:jobs" end,
      [[bad argument #1 to 'open' %(a queue's name begins with a slash: "/jobs"%)]])
    assert.error_matches(function() ipc.open("mqueue:" .. name .. "?colour=red") end,
      "unknown option 'colour'")
  end)

  it("refuses names that the kernel would not take, naming the rule", function()
    for name, why in pairs {
      [""] = "begins with a slash", ["jobs"] = "begins with a slash", ["."] = "begins with a slash",
      ["/"] = "1 to 254 characters behind the slash, not 0", ["/a/b"] = "one slash",
      ["//a"] = "one slash", ["/a\0b"] = "no NUL", ["\0"] = "no NUL", ["/."] = "no queue is called",
      ["/.."] = "no queue is called",
      ["/" .. ("x"):rep(255)] = "1 to 254 characters behind the slash, not 255",
    } do
      assert.error_matches(function() ipc.mqueue(name) end, "bad argument #1 .*" .. why)
    end
    for _, name in ipairs { 1, true, {}, false } do
      assert.error_matches(function() ipc.mqueue(name) end, "bad argument #1 .*string expected")
    end
    assert.error_matches(function() ipc.mqueue() end, "bad argument #1 .*string expected")
    local longest = new_name()
    longest = longest .. ("x"):rep(255 - #longest)
    taken[#taken] = longest
    assert.is_true(open(longest):send "fits")
  end)

  it("refuses options that make no sense", function()
    local name = new_name()
    for _, option in ipairs { "maxmsg", "msgsize" } do
      for _, value in ipairs { 0, -1, 1.5, 1 << 40, math.mininteger, "5", true } do
        assert.error_matches(function() ipc.mqueue(name, "rw", { [option] = value }) end,
          "bad argument #3 .*option '" .. option .. "'")
      end
    end
    assert.error_matches(function() ipc.mqueue(name, "rw", { msgsize = 10, maxsize = 11 }) end,
      "option 'maxsize': more than msgsize")
    assert.error_matches(function() ipc.mqueue(name, "rw", { capacity = 1 }) end,
      "unknown option 'capacity'")
    assert.error_matches(function() ipc.mqueue(name, "rw", 5) end, "bad argument #3")
    assert.is_false(exists(name))
  end)

  it("tells what it is", function()
    local q = open(new_name(), "rw", { maxmsg = 4, msgsize = 30, permissions = "0640" })
    assert(q:send "1" and q:send "2")
    local stat = q:stat()
    assert.are.equal(2, stat.messages)
    assert.are.equal(4, stat.maxmsg)
    assert.are.equal(30, stat.msgsize)
    assert.are.equal("0640", stat.permissions)
    assert.are.equal(io.popen("id -u"):read "n", stat.uid)
    assert.are.equal(io.popen("id -g"):read "n", stat.gid)
    assert.matches("^ipc%.mqueue %(%d+%)$", tostring(q))
  end)

  it("answers closed to its own calls once it is closed", function()
    local q = open(new_name())
    q:close()
    for _, call in ipairs { "stat", "remove", "notify" } do
      assert.are.same({ nil, "closed", E.EPIPE }, { q[call](q) })
      for _, self in ipairs { 1, {}, io.stdout } do
        assert.error_matches(function() q[call](self) end, "bad argument #1")
      end
    end
  end)
end)

describe("the size of a POSIX queue", function()
  after_each(clean)

  it("is the system's unless it is asked for", function()
    local q = open(new_name())
    local by_default = q:stat()
    assert.are.equal(by_default.msgsize, q:maxsize())
    local p = open(new_name(), "rw", { maxmsg = 2 })
    assert.are.equal(2, p:stat().maxmsg)
    assert.are.equal(by_default.msgsize, p:stat().msgsize)
    local r = open(new_name(), "rw", { msgsize = 100 })
    assert.are.equal(by_default.maxmsg, r:stat().maxmsg)
    assert.are.equal(100, r:stat().msgsize)
    assert.are.equal(100, r:maxsize())
  end)

  it("by maxsize alone is that of a message", function()
    local q = open(new_name(), "rw", { maxsize = 77 })
    assert.are.equal(77, q:stat().msgsize)
    assert.are.equal(77, q:maxsize())
    local p = open(new_name(), "rw", { msgsize = 100, maxsize = 50 })
    assert.are.equal(100, p:stat().msgsize)
    assert.are.equal(50, p:maxsize())
    fails(E.EMSGSIZE, "51 bytes, but maxsize is 50", p:send(("x"):rep(51)))
  end)

  it("is how many messages fit: one more waits for a receiver", function()
    local q = open(new_name(), "rw", { maxmsg = 2 })
    assert(q:send "1" and q:send "2")
    assert.are.same(times_out, { q:send("3", 9, 0) })
    assert.are.same(times_out, { ipc.poll({ { q, "w" } }, 0) })
    local child = with.fork(function(reader)
      ipc.parent:recv(PATIENCE)
      return (reader:recv(0))
    end, q)
    child:send "go"
    assert.is_true(q:send("3", 0, PATIENCE)) -- woken by the child
    assert.are.same({ true, "1" }, { child:wait(PATIENCE) })
    assert.are.same({ "2", "3" }, q:recvmany(5))
  end)

  it("of messages above a receiver's limit: consumed, told once, then on", function()
    local name = new_name()
    local w = open(name, "w", { msgsize = 100 })
    local r = open(name, "r", { maxsize = 10 })
    assert.are.equal(10, r:maxsize())
    for _, call in ipairs { "recv", "get", "recvmany" } do
      local function receive()
        if call == "recvmany" then return r:recvmany(5) end
        return r[call](r)
      end
      assert(w:put("one", 3) and w:send(("x"):rep(20), 2) and w:put("two", 1))
      local ready = ipc.poll({ r }, PATIENCE)
      assert.is_true(ready[r])
      local first = receive()
      fails(E.EMSGSIZE, "ipc%.mqueue%." .. call .. ": 20 bytes, but maxsize is 10", receive())
      local second = receive()
      if call ~= "get" then
        first = ipc.unpack(call == "recv" and first or first[1])
        second = ipc.unpack(call == "recv" and second or second[1])
      end
      assert.are.same({ "one", "two" }, { first, second })
      assert.are.same(times_out, { r:recv(0) })
    end
    assert(w:send(("x"):rep(20)))
    assert.is_true(ipc.poll({ r }, PATIENCE)[r]) -- ready to be told
    assert.are.equal(E.EMSGSIZE, select(3, r:recv(0)))
    assert.are.same(times_out, { ipc.poll({ r }, 0) })
  end)

  it("that is there already and another than asked is EEXIST, with both figures", function()
    local name = new_name()
    open(name, "rw", { maxmsg = 3, msgsize = 20 })
    for _, create in ipairs { true, false } do
      local function again(options)
        options.create = create
        return ipc.mqueue(name, "rw", options)
      end
      fails(E.EEXIST, "maxmsg is 3 there, not 4", again { maxmsg = 4 })
      fails(E.EEXIST, "msgsize is 20 there, not 10", again { msgsize = 10 })
      fails(E.EEXIST, "msgsize is 20 there, less than maxsize, 21", again { maxsize = 21 })
      fails(E.EEXIST, "permissions are 0600 there, not 0644", again { permissions = "0644" })
      assert.is_truthy(again { maxmsg = 3, msgsize = 20, permissions = "0600" }:close())
      assert.is_truthy(again {}:close())
    end
  end)
end)

describe("making a POSIX queue:", function()
  after_each(clean)

  it("create = true makes it or opens it, false only opens, \"new\" only makes", function()
    local name = new_name()
    fails(E.ENOENT, "ipc%.mqueue%.open: " .. name:gsub("%p", "%%%0") .. ": ",
      ipc.mqueue(name, "rw", { create = false }))
    assert(open(name, "w", { create = "new" }):send "here")
    fails(E.EEXIST, name:gsub("%p", "%%%0"), ipc.mqueue(name, "rw", { create = "new" }))
    assert.are.equal("here", (open(name, "r", { create = false }):recv()))
    assert(open(name, "w"):send "too")
    assert.are.equal(1, open(name, "r", { create = true }):stat().messages)
  end)

  it("has the permissions asked for, whatever the umask", function()
    for _, umask in ipairs { "0", "022", "077", "0777" } do
      local output = peer.run(([[
        for i, permissions in ipairs { false, "0600", "0666", "0240" } do
          local q = assert(ipc.mqueue(%q .. i, "w",
            { permissions = permissions or nil, temporary = true, create = "new" }))
          io.write(q:stat().permissions, " ")
          q:close()
        end
        print(io.popen "umask":read "a")
      ]]):format(new_name()), { shell = "umask " .. umask })
      assert.matches("^0600 0600 0666 0240 0*" .. umask:gsub("^0+(.)", "%1") .. "\n", output)
    end
  end)

  it("of one that another user made is refused, saying whose it is", function()
    if not is_root then return pending "needs root" end
    local name = new_name()
    local file <close> = python(name, [[
os.setgid(65534)
os.setuid(65534)
q = mq_open(name, os.O_CREAT | os.O_RDWR | os.O_EXCL, 5, 100)
print("made")
]])
    assert.are.equal("made\n", file:read "a")
    for _, mode in ipairs { "r", "w", "rw" } do
      fails(E.EACCES, "belongs to user 65534 %(create = false opens it all the same%)",
        ipc.mqueue(name, mode))
    end
    local q = open(name, "rw", { create = false })
    assert(q:send "x")
    assert.are.equal(65534, q:stat().uid)
  end)

  it("of one that may not be opened is EACCES", function()
    if not is_root then return pending "needs root" end
    local name = new_name()
    open(name, "rw")
    local output = peer.run(([[
      local q, message, errno = ipc.mqueue(%q, "r", { create = false })
      print(q, ipc.errno[errno], message)
    ]]):format(name), { under = "setpriv --reuid=65534 --clear-groups" })
    assert.matches("^nil\tEACCES\tipc%.mqueue%.open: /ipc%-spec", output)
  end)

  it("retry waits until there is one", function()
    local name = new_name()
    fails(E.ENOENT, name:gsub("%p", "%%%0"), ipc.mqueue(name, "r", { create = false, retry = 0 }))
    local start = ipc.now()
    assert.are.same(times_out, { ipc.mqueue(name, "r", { create = false, retry = 0.03 }) })
    assert.is_true(ipc.now() - start >= 0.03)
    for _, retry in ipairs { true, PATIENCE } do
      local child = with.fork(function()
        ipc.parent:recv(PATIENCE)
        local q = ipc.mqueue(name, "w", { create = "new" })
        return q:send "made late"
      end)
      child:send "go"
      local q = open(name, "r", { create = false, retry = retry })
      assert.are.equal("made late", (q:recv()))
      assert.is_true(child:wait(PATIENCE))
      assert(q:remove())
      q:close()
    end
  end)

  it("retry in a task lets the others go on", function()
    local tasks = require "spec.support.scheduler".new()
    local finished <close> = setmetatable({}, { __close = function() ipc.scheduler(nil) end })
    local name, order = new_name(), {}
    tasks:go(function()
      local q = open(name, "r", { create = false, retry = PATIENCE })
      order[#order + 1] = q:recv()
    end)
    tasks:go(function()
      ipc.sleep(0.001)
      order[#order + 1] = "other"
      assert(open(name, "w"):send "made late")
    end)
    tasks:run(PATIENCE)
    assert.are.same({ "other", "made late" }, order)
    assert.is_nil(getmetatable(finished).__index)
  end)

  it("retry can be interrupted and leaves nothing open", function()
    local before, name, calls = peer.descriptors(), new_name(), 0
    local try, mqueue, hook = pcall, ipc.mqueue, debug.sethook -- busted looks globals up by calls
    hook(function()
      calls = calls + 1 -- each look for the queue runs the hook
      if calls > 10 then
        hook()
        error("enough", 0)
      end
    end, "c")
    local ok, why = try(mqueue, name, "r", { create = false, retry = PATIENCE })
    hook()
    assert.is_false(ok)
    assert.are.equal("enough", why)
    assert.are.equal(before, peer.descriptors())
  end)
end)

describe("removing a POSIX queue", function()
  after_each(clean)

  it("takes its name; who has it open goes on", function()
    local name = new_name()
    local q, p = open(name), open(name)
    assert(q:send "left")
    assert.is_true(q:remove())
    assert.is_false(exists(name))
    fails(E.ENOENT, "ipc%.mqueue%.remove: /ipc", q:remove())
    fails(E.ENOENT, "ipc%.mqueue%.remove: /ipc", p:remove())
    assert.are.equal("left", (p:recv()))
    assert(p:send "still")
    assert.are.equal("still", (q:recv()))
  end)

  it("never takes another's that has the name by now", function()
    local name = new_name()
    local old = open(name)
    assert(old:remove())
    local new = open(name)
    assert(new:send "unharmed")
    fails(E.ENOENT, "remove", old:remove())
    assert.is_true(exists(name))
    old:close()
    local owner = open(new_name(), "rw", { temporary = true })
    local owned = taken[#taken]
    assert(owner:remove())
    open(owned)
    owner:close()
    assert.is_true(exists(owned))
    assert.are.equal("unharmed", (new:recv()))
  end)

  it("is what close never does", function()
    local name = new_name()
    do
      local q <close> = assert(ipc.mqueue(name))
      assert(q:send "kept")
    end
    assert.are.equal("kept", (open(name, "r"):recv()))
  end)

  it("is what temporary asks of the maker's close, and of nobody else's", function()
    local name = new_name()
    local maker = open(name, "rw", { temporary = true })
    local copy = with.close(assert(maker:dup()))
    open(name, "rw", { temporary = true }):close()
    copy:close()
    assert.is_true(exists(name))
    maker:close()
    assert.is_false(exists(name))
    -- opened, not made
    open(name)
    open(name, "rw", { temporary = true }):close()
    assert.is_true(exists(name))
  end)

  it("is what temporary does at the end of the program, however it ends", function()
    for _, ending in ipairs { "", "os.exit(0)", "os.exit(0, true)", "error('x', 0)", "q:close()" } do
      local name = new_name()
      peer.run(([[
        local q = assert(ipc.mqueue(%q, "rw", { temporary = true, create = "new" }))
        q:send "x"
        %s
      ]]):format(name, ending))
      assert.is_false(exists(name), ending)
    end
  end)

  it("is what the collector never does", function()
    local name = new_name()
    do
      assert(ipc.mqueue(name, "rw", { temporary = true }))
    end
    collectgarbage()
    collectgarbage()
    assert.is_true(exists(name))
  end)

  it("is not what a child does with what its parent made", function()
    local name = new_name()
    local q = open(name, "rw", { temporary = true })
    assert.is_true(with.fork(function() return q:close() end):wait(PATIENCE))
    assert.is_true(exists(name))
    assert.is_true(with.fork(function() return q:send "from the child" end):wait(PATIENCE))
    assert.is_true(exists(name))
    assert.is_true(with.fork(function() end):wait(PATIENCE))
    require "spec.peer".fork(function() q = nil collectgarbage() end) -- one it does not know of
    assert.is_true(exists(name))
    assert.are.equal("from the child", (open(name, "r"):recv()))
  end)

  it("needs no permission to receive", function()
    local output = peer.run(([[
      local q = assert(ipc.mqueue(%q, "w", { permissions = "0200" }))
      print(select(3, ipc.mqueue(%q, "r", { create = false })) == ipc.errno.EACCES, q:remove())
    ]]):format(new_name(), taken[#taken]), {
      under = is_root and "setpriv --reuid=65534 --clear-groups" or nil,
    })
    assert.are.equal("true\ttrue\n", output)
  end)

  it("is refused to those who may not", function()
    if not is_root then return pending "needs root" end
    local name = new_name()
    open(name, "rw", { permissions = "0666" })
    local output = peer.run(([[
      local q = assert(ipc.mqueue(%q, "r", { create = false }))
      local ok, message, errno = q:remove()
      print(ok, ipc.errno[errno])
    ]]):format(name), { under = "setpriv --reuid=65534 --clear-groups" })
    assert.matches("^nil\tE[AP][CE][CR][EM]", output) -- EACCES or EPERM: the sticky bit
    assert.is_true(exists(name))
  end)
end)

describe("the limits of POSIX queues", function()
  after_each(clean)

  -- How errors name a limit: some systems do not tell its value.
  local function named(name, value)
    for _, limit in ipairs(ipc.limits()) do
      if limit.name == name and limit.value then
        return ("but %s is %d ("):format(name, value):gsub("%p", "%%%0")
      end
    end
    return ("but %s ("):format(name):gsub("%p", "%%%0")
  end

  it("are listed", function()
    local found = {}
    for _, limit in ipairs(ipc.limits()) do
      if limit.mechanism == "mqueue" then found[#found + 1] = limit.name end
    end
    assert.are.same({ "fs.mqueue.msg_max", "fs.mqueue.msgsize_max", "fs.mqueue.queues_max",
      "RLIMIT_MSGQUEUE" }, found)
  end)

  -- Without the privilege to exceed them, in an IPC namespace of its own.
  local function run(script, options)
    local o = { shell = options.shell }
    local drop = is_root and "setpriv --bounding-set=-sys_resource --inh-caps=-sys_resource " or ""
    o.under = drop .. (options.under or "")
    return peer.run(script, o)
  end

  it("on the number and size of messages are named with their values", function()
    for option, limit in pairs { maxmsg = "msg_max", msgsize = "msgsize_max" } do
      local file <close> = io.open("/proc/sys/fs/mqueue/" .. limit)
      if not file then return pending "needs /proc/sys/fs/mqueue" end
      local most = file:read "n"
      local output = run(([[
        local q, message, errno = ipc.mqueue(%q, "rw", { %s = %d })
        print(q, errno == ipc.errno.EINVAL or errno == ipc.errno.EPERM, message)
      ]]):format(new_name(), option, most + 1), {})
      assert.matches(("^nil\ttrue\tipc.mqueue.open: .*: %s is %d, "):format(option, most + 1)
        .. named("fs.mqueue." .. limit, most), output)
    end
  end)

  it("on a user's bytes are RLIMIT_MSGQUEUE: EMFILE", function()
    local output = run(([[
      local q, message, errno = ipc.mqueue(%q)
      print(q, ipc.errno[errno], message)
      local a, b, number = ipc.pair "mqueue"
      print(a, ipc.errno[number], b)
    ]]):format(new_name()), { under = "prlimit --msgqueue=20000" })
    local limit = named("RLIMIT_MSGQUEUE", 20000)
    assert.matches("^nil\tEMFILE\tipc.mqueue.open: .*" .. limit, output)
    assert.matches("\nnil\tEMFILE\tipc.mqueue.open: a pair: .*" .. limit, output)
  end)

  it("on the queues of the system are fs.mqueue.queues_max: ENOSPC", function()
    if not (is_root and os.execute "unshare --ipc true 2>/dev/null") then
      return pending "needs an IPC namespace"
    end
    local output = peer.run([[
      local list, q, message, errno = {}
      repeat
        q, message, errno = ipc.mqueue("/q" .. #list, "rw", { maxmsg = 1, msgsize = 1 })
        list[#list + 1] = q
      until not q
      print(#list, ipc.errno[errno], message)
      assert(list[1]:remove())
      list[1]:close()
      print(ipc.mqueue("/more", "rw", { maxmsg = 1, msgsize = 1 }) ~= nil)
    ]], { under = [[unshare --ipc sh -c 'echo 3 > /proc/sys/fs/mqueue/queues_max;
      exec setpriv --bounding-set=-sys_resource --inh-caps=-sys_resource "$0" "$@"']] })
    assert.matches("^3\tENOSPC\tipc.mqueue.open: /q3: .*" .. named("fs.mqueue.queues_max", 3), output)
    assert.matches("true\n$", output)
  end)

  it("on descriptors are told apart from those on bytes; what is open goes on", function()
    local output = peer.run(([[
      ipc.pair("pipe"):close() -- loads what it needs
      local list, q, message, errno = {}
      repeat
        q, message, errno = ipc.mqueue(%q, "rw", { maxmsg = 2, msgsize = 20, temporary = true })
        list[#list + 1] = q
      until not q
      print(ipc.errno[errno], message)
      assert(list[1]:send "still here")
      print(list[#list]:recv(5))
      print(ipc.errno[select(3, list[1]:dup())], ipc.errno[select(3, ipc.pair "mqueue")])
      list[2]:close()
      print(ipc.mqueue(%q, "rw", { create = false }) ~= nil)
    ]]):format(new_name(), taken[#taken]), { shell = "ulimit -n 40" })
    assert.matches("^EMFILE\tipc.mqueue.open: .*RLIMIT_NOFILE is 40 ", output)
    assert.matches("\nstill here\t0\nEMFILE\tEMFILE\ntrue\n$", output)
    assert.is_false(exists(taken[1])) -- closed without a descriptor to spare
  end)
end)

describe("waiting on a POSIX queue", function()
  after_each(clean)

  it("has a deadline although another opened it in blocking mode", function()
    local name = new_name()
    local file <close> = peer.popen(peer.python_command(PYTHON .. [[
q = mq_open(name, os.O_CREAT | os.O_RDWR, 2, 100)
print("open", flush=True)
while True:
    data, priority = receive(q, 100) # blocks
    print(data.decode(), attr(q).flags, flush=True)
    if data == b"end": break
]], name))
    assert.are.equal("open", file:read "l")
    local q = open(name, "w")
    assert(q:send "one")
    assert.are.equal("one 0", file:read "l") -- its own description still blocks
    local r = open(name, "r")
    local start = ipc.now()
    assert.are.same(times_out, { r:recv(0.03) })
    assert.is_true(ipc.now() - start >= 0.03)
    assert(q:send "end")
    assert.are.equal("end 0", file:read "l")
    assert(q:send "1" and q:send "2")
    start = ipc.now()
    assert.are.same(times_out, { q:send("3", 0, 0.03) })
    assert.is_true(ipc.now() - start >= 0.03)
  end)

  -- The calls with a deadline of their own take the wall clock, mq_receive(3).
  it("sleeps in the system call that a pipe sleeps in, not in mq_timedreceive", function()
    local function sleeps_in(call)
      local program = with.command(([[
        local ipc = require "ipc"
        local r, w = ipc.pipe { spin = 0 }
        local q = assert(ipc.mqueue(%q, "rw", { temporary = true, maxmsg = 1, spin = 0 }))
        io.stdout:setvbuf "no"
        print(ipc.pid())
        %s
      ]]):format(new_name(), call))
      local file <close> = assert(io.popen(program .. " 2>&1"))
      local pid = assert(tonumber(file:read "l"))
      local limit, number = ipc.now() + PATIENCE
      repeat -- "running", or the call it is in
        local text <close> = io.open(("/proc/%d/syscall"):format(pid))
        number = text and (text:read "a" or ""):match "^%d+"
        local stat <close> = assert(io.open(("/proc/%d/stat"):format(pid)))
        local state = stat:read("a"):match "^.*%) (%a)"
      until number and state == "S" or not text or ipc.now() > limit
      os.execute("kill -KILL " .. pid)
      return number
    end
    local of_pipe = sleeps_in "r:recv(60)"
    if not of_pipe then return pending "needs /proc/PID/syscall" end
    assert.are.equal(of_pipe, sleeps_in "q:recv(60)")
    assert.are.equal(of_pipe, sleeps_in "q:send 'fills it' q:send('waits', 0, 60)")
  end)

  it("is woken by a message of another process", function()
    local name = new_name()
    local q = open(name, "r")
    local file <close> = python(name, [[
q = mq_open(name, os.O_WRONLY)
for i in range(50): send(q, b"message %d" % i, 3)
]])
    for i = 0, 49 do assert.are.same({ ("message %d"):format(i), 3 }, { q:recv() }) end
    assert.are.equal("", file:read "a")
  end)

  it("goes on when the other side is killed: there is no closed", function()
    local name = new_name()
    local q = open(name, "rw")
    local child = with.fork(function()
      local mine = assert(ipc.mqueue(name, "w"))
      mine:send "last words"
      ipc.parent:send "said"
      ipc.sleep(PATIENCE)
    end)
    assert(child:recv(PATIENCE))
    assert(child:kill "KILL")
    child:wait(PATIENCE)
    assert.are.equal("last words", (q:recv()))
    assert.are.same(times_out, { q:recv(0.01) })
    assert(q:send "next")
    assert.are.equal("next", (q:recv()))
  end)

  it("by tasks: each gets a message, in the order they came", function()
    local tasks = require "spec.support.scheduler".new()
    local finished <close> = setmetatable({}, { __close = function() ipc.scheduler(nil) end })
    local q, got = open(new_name(), "rw", { maxmsg = 1 }), {}
    for i = 1, 3 do
      tasks:go(function() got[i] = q:recv() end)
    end
    tasks:go(function()
      for i = 1, 3 do assert(q:send("m" .. i)) end -- waits for room in between
    end)
    tasks:run(PATIENCE)
    assert.are.same({ "m1", "m2", "m3" }, got)
    assert.is_nil(getmetatable(finished).__index)
  end)

  it("ends as closed when another task closes it", function()
    local tasks = require "spec.support.scheduler".new()
    local finished <close> = setmetatable({}, { __close = function() ipc.scheduler(nil) end })
    local q, answer = open(new_name()), nil
    tasks:go(function() answer = { q:recv() } end)
    tasks:go(function() q:close() end)
    tasks:run(PATIENCE)
    assert.are.same({ nil, "closed", E.EPIPE }, answer)
    assert.is_nil(getmetatable(finished).__index)
  end)

  it("can be left to cqueues, which polls the descriptor", function()
    local cqueues = require "cqueues"
    local name = new_name()
    local q, got, loop = open(name, "r"), {}, cqueues.new()
    loop:wrap(function()
      while #got < 3 do
        local message = q:recv(0)
        if message then got[#got + 1] = message else cqueues.poll(q) end
      end
    end)
    local w = open(name, "w")
    loop:wrap(function()
      for i = 1, 3 do
        cqueues.sleep(0)
        assert(w:send(tostring(i)))
      end
    end)
    assert(loop:loop(PATIENCE))
    assert.are.same({ "1", "2", "3" }, got)
  end)

  it("can be left to luv, which polls the descriptor", function()
    -- In a process of its own: a fork takes descriptors away from libuv.
    local output = peer.run(([[
      local uv = require "luv"
      local name, got = %q, {}
      local q, w = assert(ipc.mqueue(name, "r", { temporary = true })), assert(ipc.mqueue(name, "w"))
      local poll, watchdog = uv.new_poll(q:pollfd()), uv.new_timer()
      local function stop()
        poll:close()
        watchdog:close()
      end
      watchdog:start(%d, 0, stop)
      poll:start("r", function()
        repeat
          local message = q:recv(0)
          got[#got + 1] = message
        until not message
        if #got == 2 then stop() else assert(w:send "second") end
      end)
      assert(w:send "first")
      uv.run()
      print(table.concat(got, " "))
    ]]):format(new_name(), PATIENCE * 1000 // 2))
    assert.are.equal("first second\n", output)
  end)
end)

describe("notify of a POSIX queue", function()
  after_each(clean)

  it("sends a signal to one process, once, when a message comes to an empty queue", function()
    local q = open(new_name())
    assert.is_true(q:notify "WINCH") -- does nothing by default
    assert.are.equal(E.EBUSY, select(3, q:notify "WINCH")) -- we are to be told
    assert(q:send "1")
    assert.is_true(q:notify "WINCH") -- once: that was it
    assert(q:send "2") -- not empty before
    assert.are.equal(E.EBUSY, select(3, q:notify "WINCH"))
    assert.are.same({ "1", "2" }, q:recvmany(2))
    assert(q:send "3")
    assert.is_true(q:notify(28))
    assert.is_true(q:notify(nil))
    assert.is_true(q:notify()) -- again is harmless
    assert.is_true(q:notify "WINCH")
  end)

  it("does send that signal", function()
    local q = open(new_name())
    for _, signal in ipairs { "USR1", 15 } do
      local child = with.fork(function()
        assert(q:notify(signal))
        ipc.parent:send "ready"
        ipc.sleep(PATIENCE)
      end)
      assert.are.equal("ready", child:recv(PATIENCE))
      fails(E.EBUSY, "ipc%.mqueue%.notify: /ipc", q:notify "USR1")
      assert.is_true(q:notify(nil)) -- not ours to take back
      fails(E.EBUSY, "notify", q:notify "USR1")
      assert(q:send "now")
      assert.is_nil(child:wait(PATIENCE))
      assert.are.equal(signal == 15 and "TERM" or signal, child.reason.signal)
      assert.are.equal("now", (q:recv()))
    end
  end)

  it("refuses what is no signal", function()
    local q = open(new_name())
    for _, signal in ipairs { "SIGUSR1", "usr1", "", 0, -1, 128, 1.5, true, {} } do
      assert.error_matches(function() q:notify(signal) end, "bad argument #1")
    end
  end)
end)

describe("POSIX queues and other programs:", function()
  after_each(clean)

  it("Python sends and receives bytes and priorities", function()
    local name = new_name()
    local q = open(name, "rw", { maxmsg = 5, msgsize = 50 })
    assert(q:send("to python\0\255", 4) and q:send("", 32767))
    local file <close> = python(name, [[
q = mq_open(name, os.O_RDWR)
a = attr(q)
print(a.maxmsg, a.msgsize, a.curmsgs)
print(receive(q, 50))
print(receive(q, 50))
send(q, b"", 2)
send(q, b"from python\0\xff", 9)
]])
    assert.are.equal("5 50 2", file:read "l")
    assert.are.equal("(b'', 32767)", file:read "l")
    assert.are.equal([[(b'to python\x00\xff', 4)]], file:read "l")
    assert.are.equal("", file:read "a") -- all is sent
    assert.are.same({ "from python\0\255", 9 }, { q:recv() })
    assert.are.same({ "", 2 }, { q:recv() })
  end)

  it("one that Python made is opened as it is", function()
    local name = new_name()
    local file <close> = python(name, [[
q = mq_open(name, os.O_CREAT | os.O_EXCL | os.O_RDWR, 3, 33)
send(q, b"x" * 33, 1)
]])
    assert.are.equal("", file:read "a")
    local q = open(name)
    assert.are.equal(33, q:maxsize())
    assert.are.same({ ("x"):rep(33), 1 }, { q:recv() })
    fails(E.EMSGSIZE, "34.*33", q:send(("x"):rep(34)))
    fails(E.EEXIST, "maxmsg is 3 there, not 4", ipc.mqueue(name, "r", { maxmsg = 4 }))
  end)

  it("one that we remove is gone for Python", function()
    local name = new_name()
    assert(open(name):remove())
    local file <close> = python(name, [[
try: mq_open(name, os.O_RDWR)
except FileNotFoundError: print("gone")
]])
    assert.are.equal("gone\n", file:read "a")
  end)

  it("many processes send, many receive, nothing is lost", function()
    local WRITERS <const>, READERS <const>, EACH <const> = 3, 3, 400
    local q = open(new_name(), "rw", { maxmsg = 4, msgsize = 64 })
    local r, w = with.close(assert(ipc.pipe()))
    for i = 1, READERS do
      local report = assert(w:dup())
      with.fork(function()
        local n, sum = 0, 0
        while true do
          local value = assert(q:get(PATIENCE))
          if value == "end" then break end
          n, sum = n + 1, sum + value
        end
        assert(report:put { i, n, sum })
      end)
    end
    w:close()
    local writers = {}
    for i = 1, WRITERS do
      writers[i] = with.fork(function()
        for n = 1, EACH do assert(q:put(n, n % 5 + 1, PATIENCE)) end
      end)
    end
    for i = 1, WRITERS do assert.is_true(writers[i]:wait(PATIENCE)) end
    for _ = 1, READERS do assert(q:put("end", 0)) end -- behind all others
    local n, sum = 0, 0
    for report in r:values(PATIENCE) do n, sum = n + report[2], sum + report[3] end
    assert.are.equal(WRITERS * EACH, n)
    assert.are.equal(WRITERS * EACH * (EACH + 1) // 2, sum)
  end)

  it("another Lua state in this process opens the same", function()
    local name = new_name()
    local q = open(name)
    local got = require "spec.peer".state(([[
      package.path, package.cpath = %q, %q
      local ipc = require "ipc"
      local q <close> = assert(ipc.mqueue(%q, "rw", { create = false }))
      local again <close> = assert(ipc.mqueue(%q, "r", { temporary = true }))
      assert(q:send("from the other state", 2))
      return again:stat().messages
    ]]):format(package.path, package.cpath, name, name))
    assert.are.equal(1, got)
    assert.are.same({ "from the other state", 2 }, { q:recv() })
    assert(q:remove())
  end)

  it("a thousand are opened and closed without a trace", function()
    local name, before = new_name(), peer.descriptors()
    for i = 1, 1000 do
      local q <close> = assert(ipc.mqueue(name, "rw", { temporary = true }))
      assert(q:send(tostring(i), i % 32768))
      assert.are.equal(tostring(i), (q:recv(0)))
    end
    assert.is_false(exists(name))
    assert.are.equal(before, peer.descriptors())
  end)
end)

describe("a pair of POSIX queues", function()
  after_each(clean)

  -- The names of all queues with our number in them, where they can be seen:
  -- mq_overview(7).
  local function listing()
    local text = with.shell [[unset LD_PRELOAD; d=$(mktemp -d); unshare --mount sh -c \
      "mount -t mqueue none $d && ls $d && echo seen"; rmdir $d]]
    local all, ours = text:match "^(.*)seen\n$", {}
    for name in (all or ""):gmatch "[^\n]+" do
      if name:find(("%%f[%%d]%d%%f[%%D]"):format(ipc.pid())) then ours[#ours + 1] = name end
    end
    return all and table.concat(ours, " ")
  end

  it("has no names", function()
    local before = listing()
    if not before then -- where nobody may look
      local try = "unset LD_PRELOAD; unshare --mount mount -t mqueue none /mnt || echo refused"
      return assert.matches("refused", (with.shell(try)))
    end
    open(new_name())
    assert.are_not.equal(before, listing())
    clean()
    local a, b = with.close(assert(ipc.pair "mqueue"))
    assert(a:send "x" and b:recv(PATIENCE))
    assert.are.equal(before, listing())
  end)

  it("has priorities both ways", function()
    local a, b = with.close(assert(ipc.pair("mqueue", { timeout = PATIENCE })))
    assert(a:send("low", 1) and a:send("high", 2) and b:send("back", 3))
    assert.are.same({ "high", 2 }, { b:recv() })
    assert.are.same({ "low", 1 }, { b:recv() })
    assert.are.same({ "back", 3 }, { a:recv() })
    assert.are.same(times_out, { a:recv(0) })
  end)

  it("is as large as asked for", function()
    local a, b = with.close(assert(ipc.pair("mqueue?maxmsg=2", { msgsize = 10 })))
    assert.are.equal(10, a:maxsize())
    assert.are.equal(2, with.fill(a, "x"))
    assert.are.equal(2, with.fill(b, "x"))
    assert.error_matches(function() ipc.pair "mqueue:/named" end, "a pair has no name")
  end)

  it("gives each end to a process", function()
    local a, b = with.close(assert(ipc.pair("mqueue", { timeout = PATIENCE })))
    local child = with.fork(function()
      for value, priority in b:values() do
        if not value then break end
        b:put(value * 2, priority)
      end
    end)
    for i = 1, 100 do
      assert(a:put(i, i))
      assert.are.same({ i * 2, i }, { a:get() })
    end
    assert(a:put(false))
    assert.is_true(child:wait(PATIENCE))
  end)
end)
