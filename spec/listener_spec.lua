-- What is the listener's own: names, who may connect, accepting; and connecting,
-- which is the other half of it.
local ipc = require "ipc"
local peer = require "spec.support.peer"
local with = require "spec.support.with"

local E = ipc.errno
local PATIENCE = with.patience
local keep, fork = peer.keep, peer.fork

local ROOT = io.popen("id -u"):read "n" == 0
local LINUX = peer.has_proc

local count = 0
-- A path nobody else has; the test's end removes what is left there.
local left = {}
local function path()
  count = count + 1
  local name = ("/tmp/ipc-listener-%d-%d.sock"):format(ipc.pid(), count)
  left[#left + 1] = name
  return name
end

local function exists(name) return os.execute(("test -e '%s' || test -L '%s'"):format(name, name)) == true end

local function mode(name) return (with.shell("ls -ld " .. name):sub(1, 10)) end

local function clean()
  peer.clean()
  for _, name in ipairs(left) do os.execute(("rm -rf '%s' '%s.binding'"):format(name, name)) end
  left = {}
end

local function listen(address, options) return keep(ipc.listen(address, options)) end

local function connect(address, options)
  local o = { timeout = PATIENCE }
  for name, value in pairs(options or {}) do o[name] = value end
  return keep(ipc.connect(address, o))
end

local function fails(errno, pattern, nothing, message, number)
  assert.is_nil(nothing)
  assert.are.equal(errno, number, message)
  assert.is_truthy(message:find(pattern) or message:find(pattern, 1, true), message)
end

local function times_out(...) assert.are.same({ nil, "timeout", E.ETIMEDOUT }, { ... }) end
local function is_closed(...) assert.are.same({ nil, "closed", E.EPIPE }, { ... }) end

local function raises(pattern, f, ...)
  local ok, message = pcall(f, ...)
  assert.is_false(ok, "raises nothing")
  assert.matches(pattern, message)
end

-- A server that ended and left its path.
local function stale(name, options)
  local child = fork(function()
    local l = assert((options and options.type == "datagram" and ipc.open or ipc.listen)("unix:" .. name,
      options and options.type == "datagram" and "rw" or options,
      options and options.type == "datagram" and options or nil))
    ipc.parent:send "up"
    ipc.parent:recv()
    l:close()
  end)
  assert(child:recv())
  assert(child:kill "KILL")
  child:wait(PATIENCE)
  assert.is_true(exists(name))
end

-- ---- names

describe("a listener's path", function()
  after_each(clean)

  it("is made by listening and goes with the listener", function()
    local name = path()
    local l = listen("unix:" .. name)
    assert.are.equal("unix:" .. name, l:address())
    local c = connect(l:address())
    local s = keep(assert(l:accept(PATIENCE)))
    assert(c:send "hello")
    assert.are.equal("hello", s:recv(PATIENCE))
    assert.is_true(exists(name))
    assert.is_true(l:close())
    assert.is_false(exists(name))
    is_closed(l:accept(0))
    assert(s:send "the client stays")
    assert.are.equal("the client stays", c:recv())
    fails(E.ENOENT, "connect: unix:" .. name, ipc.connect("unix:" .. name))
  end)

  it("has 107 bytes at the most: 108 are refused before bind", function()
    local dir = path()
    assert(os.execute("mkdir " .. dir))
    local longest = dir .. "/" .. ("x"):rep(107 - #dir - 1)
    local l = listen("unix:" .. longest)
    assert.are.equal("unix:" .. longest, l:address())
    keep(assert(ipc.connect(l:address())))
    keep(assert(l:accept(PATIENCE)))
    l:close()
    for _, call in ipairs { ipc.listen, ipc.connect, ipc.open } do
      fails(E.ENAMETOOLONG, "at most 107 bytes", call("unix:" .. longest .. "x"))
    end
    assert.are.equal("", (with.shell("ls -A " .. dir)))
  end)

  it("with a NUL in it, or none, is a mistake", function()
    for _, call in ipairs { ipc.listen, ipc.connect, ipc.open } do
      raises("a path or @name expected", call, "unix:/tmp/a\0b")
      raises("a path or @name expected", call, "unix:/tmp/a%00b")
      raises("a path or @name expected", call, "unix:")
      raises("a path or @name expected", call, "unix:@")
    end
  end)

  it("may have spaces, signs and escapes", function()
    local name = path() .. " 100%?ü"
    left[#left + 1] = name
    local l = listen("unix:" .. name:gsub("[%%?]", { ["%"] = "%25", ["?"] = "%3F" }))
    assert.is_true(exists(name))
    local c = connect(l:address())
    assert.are.equal(l:address(), c:peer())
    l:close()
    assert.is_false(exists(name))
  end)

  it("that is a file, a directory or a FIFO is EEXIST and stays", function()
    for _, make in ipairs { "echo precious >", "mkdir", "mkfifo", "ln -s /nowhere" } do
      local name = path()
      assert(os.execute(make .. " " .. name))
      local before = with.shell("ls -lid " .. name)
      for _, create in ipairs { true, "new" } do
        fails(E.EEXIST, name, ipc.listen("unix:" .. name, { create = create }))
        fails(E.EEXIST, name, ipc.open("unix:" .. name, "r", { create = create, type = "datagram" }))
      end
      assert.are.equal(before, (with.shell("ls -lid " .. name)))
      assert.is_false(exists(name .. ".binding"))
    end
  end)

  it("is 0600 whatever the umask, or as asked", function()
    for _, umask in ipairs { "000", "022", "077", "777" } do
      for permissions, text in pairs { ["0600"] = "srw-------", ["0666"] = "srw-rw-rw-", ["0620"] = "srw--w----" } do
        local name = path()
        local output = peer.run(([[
          local l = assert(ipc.listen("unix:%s", { permissions = "%s" }))
          os.execute "ls -l %s"
          l:close()
          l = assert(ipc.open("unix:%s", "rw", { type = "datagram", permissions = "%s" }))
          os.execute "ls -l %s"
        ]]):format(name, permissions, name, name, permissions, name), { shell = "umask " .. umask })
        local a, b = output:match "^([^ ]+)[^\n]*\n([^ ]+)"
        assert.are.same({ text, text }, { a, b }, umask .. output)
      end
    end
    local name = path()
    listen("unix:" .. name)
    assert.are.equal("srw-------", mode(name))
    raises("option 'permissions'", ipc.listen, "unix:" .. name, { permissions = 600 })
  end)

  it("left by a server that was killed is taken over", function()
    for _, type in ipairs { "stream", "seqpacket", "datagram" } do
      if type ~= "seqpacket" or peer.has "unix?type=seqpacket" then
        local name = path()
        stale(name, { type = type })
        if type == "datagram" then
          keep(assert(ipc.open("unix:" .. name, "rw", { type = type })))
        else
          local l = assert(listen("unix:" .. name, { type = type }))
          connect(l:address(), { type = type })
          keep(assert(l:accept(PATIENCE)))
        end
        assert.is_false(exists(name .. ".binding"))
      end
    end
  end)

  it("of a server that lives is refused, whatever its type", function()
    local types = { "stream", "datagram", peer.has "unix?type=seqpacket" and "seqpacket" or nil }
    for _, its in ipairs(types) do
      local name = path()
      local live = its == "datagram" and keep(assert(ipc.open("unix:" .. name, "rw", { type = its })))
        or listen("unix:" .. name, { type = its })
      local before = with.shell("ls -i " .. name)
      for _, mine in ipairs(types) do
        if mine == "datagram" then
          fails(E.EADDRINUSE, "somebody listens there", ipc.open("unix:" .. name, "rw", { type = mine }))
        else
          fails(E.EADDRINUSE, "somebody listens there", ipc.listen("unix:" .. name, { type = mine }))
        end
      end
      assert.are.equal(before, (with.shell("ls -i " .. name)))
      assert.is_false(exists(name .. ".binding"))
      live:close()
      assert.is_false(exists(name))
    end
  end)

  it("create = \"new\" takes over nothing", function()
    local name = path()
    stale(name)
    fails(E.EEXIST, name, ipc.listen("unix:" .. name, { create = "new" }))
    assert.is_true(exists(name))
    listen("unix:" .. path(), { create = "new" })
  end)

  it("is removed by its own listener only, if another was put there", function()
    local name = path()
    local l = listen("unix:" .. name)
    os.remove(name)
    local other = listen("unix:" .. name)
    l:close()
    assert.is_true(exists(name))
    keep(assert(ipc.connect("unix:" .. name)))
    os.remove(name)
    assert(os.execute("echo mine > " .. name))
    other:close()
    assert.is_true(exists(name))
  end)

  it("is removed however the program ends, unless that is SIGKILL", function()
    for ending, stays in pairs {
      [""] = false, ["os.exit(0)"] = false, ["os.exit(0, true)"] = false, ["error 'x'"] = false,
      ["collectgarbage()"] = false, ["os.execute('kill -KILL ' .. ipc.pid())"] = true,
      -- the collector only releases
      ["l = nil; d = nil; r = nil; collectgarbage(); os.exit(0)"] = true,
    } do
      local a, b, c = path(), path(), path()
      local output = peer.run(([[
        l = assert(ipc.listen "unix:%s")
        d = assert(ipc.open("unix:%s", "rw", { type = "datagram" }))
        r = assert(ipc.open("unix:%s", "r"))
        %s]]):format(a, b, c, ending))
      for _, name in ipairs { a, b, c } do
        assert.are.equal(stays, exists(name), ending .. ": " .. output)
        assert.is_false(exists(name .. ".binding"))
      end
    end
  end)

  it("that 50 servers compete for has exactly one, and none hangs #slow", function()
    for _ = 1, 20 do
      local name = path()
      stale(name)
      local gate, open = peer.pipe()
      local answers, answer = peer.pipe()
      local crew = {}
      for i = 1, 50 do
        local mine, its = assert(gate:dup()), assert(answer:dup())
        crew[i] = fork(function()
          mine:recv() -- closed: all at once
          local l, _, errno = ipc.listen("unix:" .. name)
          its:put { l ~= nil, errno or 0 }
          ipc.parent:recv()
          if l then l:close() end
        end)
      end
      gate:close()
      answer:close()
      open:close()
      local listening = 0
      for _ = 1, 50 do
        local found = assert(answers:get(PATIENCE))
        if found[1] then
          listening = listening + 1
        else
          assert.are.equal(E.EADDRINUSE, found[2])
        end
      end
      assert.are.equal(1, listening)
      assert.is_false(exists(name .. ".binding"))
      keep(assert(ipc.connect("unix:" .. name)))
      for i = 1, 50 do
        crew[i]:shutdown()
        assert(crew[i]:wait(PATIENCE))
        crew[i]:close()
      end
      assert.is_false(exists(name))
    end
  end)

  it("whose lock somebody holds is busy, after a while", function()
    local name = path()
    local mine, its = peer.pair("unix", { unit = "stream" })
    fork(function()
      peer.exec({ its }, peer.python, "-c", [[
import fcntl, os, sys
f = open(sys.argv[2], "w")
fcntl.flock(f, fcntl.LOCK_EX)
os.write(int(sys.argv[1]), b"held\n")
os.read(int(sys.argv[1]), 1)
]], tostring(its:pollfd()), name .. ".binding")
    end)
    assert.are.equal("held", mine:read "l")
    assert.are.same({ nil, "timeout", E.ETIMEDOUT }, { ipc.listen("unix:" .. name, { timeout = 0.05 }) })
    local ok, message, errno = ipc.listen("unix:" .. name) -- not for ever
    fails(E.EBUSY, "%.binding for 5 s", ok, message, errno)
  end)

  it("belongs to the parent: a child that shares the listener does not remove it", function()
    local name = path()
    local l = listen("unix:" .. name)
    local child = fork(function(mine)
      local c = assert(mine:accept(PATIENCE))
      local text = c:recv(PATIENCE)
      c:close()
      mine:close()
      return text
    end, l)
    local c = connect("unix:" .. name)
    assert(c:send "to the child")
    assert.are.same({ true, "to the child" }, { child:wait(PATIENCE) })
    assert.is_true(exists(name))
    local d = connect("unix:" .. name)
    local s = keep(assert(l:accept(PATIENCE)))
    assert(s:send "from the parent")
    assert.are.equal("from the parent", d:recv())
    l:close()
    assert.is_false(exists(name))
  end)
end)

describe("an abstract name", function()
  after_each(clean)

  -- Only Linux has them.
  if not peer.has "pipe?packet=true" then
    it("does not exist here: ENOTSUP", function()
      for _, call in ipairs { ipc.listen, ipc.connect, ipc.open } do
        fails(E.ENOTSUP, "unix:@x", call "unix:@x")
      end
    end)
    return
  end

  local function abstract()
    count = count + 1
    return ("ipc-%d-%d"):format(ipc.pid(), count)
  end

  it("is asked for by @ only, and leaves no file", function()
    local name = abstract()
    local l = listen("unix:@" .. name)
    assert.are.equal("unix:@" .. name, l:address())
    assert.is_false(exists("@" .. name))
    local c = connect("unix:@" .. name)
    assert.are.equal("unix:@" .. name, c:peer())
    fails(E.EADDRINUSE, "somebody listens", ipc.listen("unix:@" .. name))
    l:close()
    fails(E.ECONNREFUSED, "", ipc.connect("unix:@" .. name))
  end)

  it("has exactly its bytes, no padding", function()
    local name = abstract()
    local server <close> = peer.popen(peer.python_command([[
import socket, sys
s = socket.socket(socket.AF_UNIX)
s.bind(b"\0" + sys.argv[1].encode())
s.listen()
print("up", flush=True)
s.accept()[0].send(b"\0\0\0\2hi")
]], name))
    assert.are.equal("up", server:read "l")
    fails(E.ECONNREFUSED, "", ipc.connect("unix:@" .. name .. "%00"))
    local c = connect("unix:@" .. name)
    assert.are.equal("hi", c:recv())
    local l = listen("unix:@" .. name .. "%00tail")
    assert.are.equal("unix:@" .. name .. "%00tail", l:address())
    keep(assert(ipc.connect(l:address())))
  end)

  it("is for our own user and root, unless others are allowed", function()
    if not ROOT then return end -- only root can be somebody else
    for _, address in ipairs { "unix:@" .. abstract(), "unix:" .. path() } do
      local by_path = address:find "/"
      local options = by_path and { permissions = "0666", allow_uids = { 0 } } or nil
      local l = listen(address, options)
      local client = fork(function()
        return peer.run(([[print(assert(ipc.connect(%q, { timeout = 15, allow_uids = { 0 } })):recv())]])
          :format(address), { under = "setpriv --reuid=65534 --clear-groups" })
      end)
      local limit = ipc.now() + PATIENCE
      repeat times_out(l:accept(0.001)) until l:stats().refused > 0 or ipc.now() > limit
      local _, output = assert(client:wait(PATIENCE))
      assert.matches("^nil\tclosed\t", output)
      assert.are.equal(1, l:stats().refused)
      assert.are.equal(0, l:stats().accepted)
      l:close()
      options = options or {}
      options.allow_uids = { 65534 }
      l = listen(address, options)
      peer.run(("assert(ipc.connect(%q, { timeout = 5, allow_uids = { 0 } }))"):format(address),
        { under = "setpriv --reuid=65534 --clear-groups" })
      local s = keep(assert(l:accept(PATIENCE)))
      assert.are.equal(65534, s:credentials().uid)
      l:close()
    end
  end)

  it("is checked from the client's side, too", function()
    if not ROOT then return end
    local name = abstract()
    local address = "unix:@" .. name
    local l = listen(address)
    local output = peer.run(([[
      print(select(3, ipc.connect(%q, { allow_uids = { 65534 } })) == ipc.errno.EACCES)
      print(ipc.connect(%q) ~= nil) -- root may be anywhere
    ]]):format(address, address), { under = "setpriv --reuid=65534 --clear-groups" })
    assert.are.equal("true\ntrue\n", output)
    l:close()
  end)

  it("takes lists of user ids and nothing else", function()
    for _, uids in ipairs { 0, "root", { "root" }, { -1 }, { 1.5 } } do
      raises("allow_uids", ipc.listen, "unix:@x", { allow_uids = uids })
    end
  end)
end)

-- ---- connecting

describe("connecting", function()
  after_each(clean)

  local function full(address, options)
    local l = listen(address, { backlog = 1 })
    local clients = {}
    repeat
      local c, why = ipc.connect(l:address(), options or { timeout = 0.05 })
      clients[#clients + 1] = keep(c)
      if not c then assert.are.equal("timeout", why) end
      assert.is_true(#clients < 100)
    until not c
    return l, clients
  end

  it("to a full backlog waits, and gets through or times out", function()
    local l, clients = full("unix:" .. path(), { timeout = 0 })
    assert.is_true(#clients > 0)
    local start = ipc.now()
    times_out(ipc.connect(l:address(), { timeout = 0.03 }))
    assert.is_true(ipc.now() - start >= 0.03)
    local child = fork(function()
      local c = assert(ipc.connect(l:address(), { timeout = PATIENCE }))
      return c:send "through"
    end)
    for _ = 1, #clients do keep(assert(l:accept(PATIENCE))) end
    local last = keep(assert(l:accept(PATIENCE)))
    assert.are.equal("through", last:recv(PATIENCE))
    assert.is_true(child:wait(PATIENCE))
  end)

  it("over TCP to somebody who does not answer ends by the deadline", function()
    local l = full "tcp:0"
    local start = ipc.now()
    times_out(ipc.connect(l:address(), { timeout = 0.05 }))
    assert.is_true(ipc.now() - start >= 0.05)
  end)

  it("answers at once when nobody listens, or waits with retry", function()
    local name = path()
    fails(E.ENOENT, name, ipc.connect("unix:" .. name))
    stale(name)
    fails(E.ECONNREFUSED, name, ipc.connect("unix:" .. name))
    local l = listen "tcp:0"
    local address = l:address()
    l:close()
    fails(E.ECONNREFUSED, address, ipc.connect(address))
    for _, retry in ipairs { 0.03, 0.001 } do
      local start = ipc.now()
      times_out(ipc.connect(address, { retry = retry }))
      assert.is_true(ipc.now() - start >= retry)
    end
    times_out(ipc.connect(address, { retry = true, timeout = 0.03 }))
  end)

  it("with retry waits for the server", function()
    for _, address in ipairs { "unix:" .. path(), "tcp:127.0.0.1:0" } do
      if address:find "tcp" then
        local l = listen(address)
        address = l:address()
        l:close()
      end
      for _, retry in ipairs { true, PATIENCE } do
        local child = fork(function()
          ipc.parent:send "go"
          local c = assert(ipc.connect(address, { retry = retry, timeout = PATIENCE }))
          return c:recv()
        end)
        assert(child:recv())
        local l = listen(address)
        local s = keep(assert(l:accept(PATIENCE)))
        assert(s:send "late but there")
        assert.are.same({ true, "late but there" }, { child:wait(PATIENCE) })
        s:close()
        l:close()
      end
    end
  end)

  it("over TCP never meets itself", function()
    local file <close> = assert(io.open(LINUX and "/proc/sys/net/ipv4/ip_local_port_range" or "/dev/null"))
    local first = file:read "n" or 32768
    local port = first + 1 + ipc.pid() % 1000 * 2
    local l = ipc.listen("tcp:" .. port)
    if l then
      l:close() -- free: now a port that connect itself may be given
      for _ = 1, 200 do
        fails(E.ECONNREFUSED, "", ipc.connect("tcp:127.0.0.1:" .. port, { bind = "127.0.0.1:" .. port }))
      end
      listen("tcp:" .. port)
    end
  end)

  it("looks names up: localhost is there, an unknown one answers", function()
    local l = listen "tcp:127.0.0.1:0"
    local port = l:address():match ":(%d+)[^:]*$"
    local c = connect("tcp:localhost:" .. port)
    assert.are.equal(l:address(), c:peer())
    keep(assert(l:accept(PATIENCE)))
    keep(assert(ipc.listen "tcp:localhost:0"))
    for _, call in ipairs { ipc.connect, ipc.listen } do
      local ok, message, errno = call("tcp:no-such-host.invalid:1", { timeout = PATIENCE })
      assert.is_nil(ok)
      assert.is_true(errno == E.EADDRNOTAVAIL or errno == E.EHOSTUNREACH, message)
      assert.matches("no%-such%-host", message)
    end
  end)

  it("a look-up that never answers ends by the deadline; in tasks others go on", function()
    local module = package.searchpath("spec.resolver", package.cpath)
    assert.is_string(module, "make build/spec/resolver.so")
    local output = peer.run([[
      local start = ipc.now()
      print(ipc.connect("tcp:some.host:1", { timeout = 0.05 }))
      print(ipc.listen("tcp:some.host:1", { timeout = 0.05 }))
      print(ipc.now() - start >= 0.1)
      local tasks = require "spec.support.scheduler".new()
      local turns, done = 0, false
      tasks:go(function()
        local nothing, message, errno
        repeat -- until the other has had a turn meanwhile
          nothing, message, errno = ipc.connect("tcp:other.host:1", { timeout = 0.2 })
        until turns > 0
        print(nothing, message, errno)
        done = true
      end)
      tasks:go(function()
        repeat
          ipc.sleep(0.001)
          turns = turns + 1
        until done
      end)
      tasks:run(15)
    ]], { env = { LD_PRELOAD = (os.getenv "LD_PRELOAD" or "") .. " " .. module } })
    local timeout = "nil\ttimeout\t" .. E.ETIMEDOUT .. "\n"
    assert.are.equal(timeout .. timeout .. "true\n" .. timeout, output)
  end)

  it("addresses that are none raise", function()
    for _, address in ipairs {
      "tcp:", "tcp:127.0.0.1", "tcp:127.0.0.1:", "tcp::80", "tcp:127.0.0.1:http", "tcp:127.0.0.1:65536",
      "tcp:127.0.0.1:-1", "tcp:127.0.0.1:1x", "tcp:::1:80", "tcp:[::1]", "tcp:[::1]80", "tcp:[::1:80",
      "udp:", "udp:host", "tcp:a\0b:80", "tcp:" .. ("x"):rep(300) .. ":80",
    } do
      raises("host:port, %[v6%]:port or port expected", ipc.connect, address)
      if not address:find "udp" then
        raises("host:port, %[v6%]:port or port expected", ipc.listen, address)
      end
      raises("host:port, %[v6%]:port or port expected", ipc.open, address, "r")
    end
    raises("datagrams have no connections", ipc.listen, "udp:0")
    raises("datagrams have no connections", ipc.listen, "unix:/tmp/x", { type = "datagram" })
    raises("option 'bind'", ipc.connect, "tcp:1", { bind = "localhost:1" })
    raises("option 'bind'", ipc.connect, "tcp:1", { bind = 1 })
  end)

  it("can be from an address of one's own", function()
    local l = listen "tcp:0"
    local c = connect(l:address(), { bind = "127.0.0.1:0" })
    local s = keep(assert(l:accept(PATIENCE)))
    assert.are.equal(c:address(), s:peer())
    assert.are.equal(c:peer(), s:address())
    local name = path()
    local u = keep(assert(ipc.open("unix:" .. path(), "rw", { type = "datagram" })))
    c = connect(u:address(), { bind = name })
    assert(c:send "who?")
    assert.are.same({ "who?", "unix:" .. name }, { u:recv(PATIENCE) })
    assert.are.equal("unix:" .. name .. "?type=datagram", c:address())
    assert.is_true(exists(name))
    c:close()
    assert.is_false(exists(name))
  end)

  it("listens on the loopback interface unless asked otherwise", function()
    local l = listen "tcp:0"
    assert.matches("^tcp:127%.0%.0%.1:%d+$", l:address())
    local port = l:address():match ":(%d+)[^:]*$"
    if LINUX then -- all of 127/8 is this machine
      fails(E.ECONNREFUSED, "", ipc.connect("tcp:127.0.0.2:" .. port))
    end
    l:close()
    l = listen "tcp:*:0"
    assert.matches("^tcp:0%.0%.0%.0:%d+$", l:address())
    if LINUX then connect("tcp:127.0.0.2:" .. l:address():match ":(%d+)[^:]*$") end
  end)

  it("speaks IPv6, in brackets", function()
    local l = ipc.listen "tcp:[::1]:0"
    if not l then return end -- this machine does not
    keep(l)
    assert.matches("^tcp:%[::1%]:%d+$", l:address())
    local c = connect(l:address())
    local s = keep(assert(l:accept(PATIENCE)))
    assert.are.equal(c:address(), s:peer())
    assert(c:send "six")
    assert.are.equal("six", s:recv(PATIENCE))
    fails(E.ECONNREFUSED, "", ipc.connect("tcp:127.0.0.1:" .. l:address():match ":(%d+)[^:]*$"))
  end)

  it("a port that is taken is EADDRINUSE, one that was just left is not", function()
    local l = listen "tcp:0"
    local address = l:address()
    fails(E.EADDRINUSE, "somebody listens there", ipc.listen(address))
    local c = connect(address)
    local s = keep(assert(l:accept(PATIENCE)))
    s:close() -- leaves TIME_WAIT here
    l:close()
    is_closed(c:recv())
    c:close()
    keep(assert(ipc.listen(address)))
  end)
end)

-- ---- accepting

describe("accept", function()
  after_each(clean)

  it("waits until its deadline, and 0 never does", function()
    local l = listen "tcp:0"
    times_out(l:accept(0))
    times_out(l:accept(-1))
    local start = ipc.now()
    times_out(l:accept(0.03))
    assert.is_true(ipc.now() - start >= 0.03)
    l:settimeout(0)
    times_out(l:accept())
    l:settimeout(nil)
    raises("bad argument #1 to 'accept'", function() return l:accept "1" .. "" end)
    raises("bad argument #1 to 'accept'", function() return l:accept(0 / 0) .. "" end)
    local m = listen("tcp:0", { timeout = 0.01 })
    times_out(m:accept())
  end)

  it("is ready exactly when a client is there", function()
    for _, address in ipairs { "tcp:0", "unix:" .. path() } do
      local l = listen(address)
      times_out(ipc.poll({ l }, 0))
      connect(l:address())
      local other = keep((ipc.pipe()))
      assert.are.same({ l, [l] = true }, ipc.poll({ other, l }, PATIENCE))
      keep(assert(l:accept(0)))
      times_out(ipc.poll({ l }, 0))
      assert.are.equal("r", l:events())
      assert.are.equal(1, l:stats().accepted)
      l:close()
      assert.is_nil(l:pollfd())
      assert.matches("closed", tostring(l))
      is_closed(l:accept())
      is_closed(l:address())
      assert.is_true(l:close())
    end
  end)

  it("gives clients the listener's options", function()
    local l = listen("unix:" .. path(), { maxsize = 10, timeout = 0.01 })
    local c = connect(l:address())
    local s = keep(assert(l:accept(PATIENCE)))
    assert.are.equal(10, s:maxsize())
    times_out(s:recv())
    c:close()
    l = listen("tcp:0", { unit = "stream" })
    c = connect(l:address(), { unit = "stream" })
    s = keep(assert(l:accept(PATIENCE)))
    assert(c:send "a line\n")
    assert.are.equal("a line", s:read("l", PATIENCE))
  end)

  it("without a free descriptor says so, does not spin, and serves the client later",
    function()
      local output = peer.run([[
        local l = assert(ipc.listen "tcp:0")
        local c = assert(ipc.connect(l:address()))
        local full = {}
        repeat full[#full + 1] = io.open "/dev/null" until not io.open "/dev/null"
        local before = os.clock()
        local ok, message, errno = l:accept(1)
        print(ok, ipc.errno[errno], message)
        local answers = 1
        local limit = ipc.now() + 1
        while ipc.now() < limit do
          local s, why, number = l:accept(limit - ipc.now())
          assert(not s and (why == "timeout" or number == errno))
          answers = answers + 1
        end
        print("few", answers < 30, os.clock() - before < 0.5)
        before, limit = os.clock(), ipc.now() + 0.5
        local polls = 0
        while ipc.now() < limit do
          if ipc.poll({ l }, limit - ipc.now()) then l:accept(0) end
          polls = polls + 1
        end
        print("few", polls < 100, os.clock() - before < 0.3)
        for _, file in ipairs(full) do file:close() end
        collectgarbage()
        local s
        repeat s, _, errno = l:accept(10) until s or errno ~= ipc.errno.EMFILE
        print(c:send "hi", s:recv(10))
      ]], { shell = "ulimit -n 20" })
      assert.matches("^nil\tEMFILE\tipc.listener.accept: [^\n]+\nfew\ttrue\ttrue\nfew\ttrue\ttrue\ntrue\thi\n$", output)
    end)

  it("in tasks: many connect and are served at once", function()
    -- A full backlog of TCP drops what knocks, to knock again after seconds.
    for address, backlog in pairs { ["unix:" .. path()] = 2, ["tcp:0"] = 64 } do
      local output = peer.run(([[
        local tasks = require "spec.support.scheduler".new()
        local l = assert(ipc.listen(%q, { backlog = %d }))
        local served, answered = 0, 0
        tasks:go(function()
          for _ = 1, 30 do
            local s = assert(l:accept())
            tasks:go(function()
              assert(s:send(s:recv() .. "!"))
              served = served + 1
              s:close()
            end)
          end
        end)
        for i = 1, 30 do
          tasks:go(function()
            local c <close> = assert(ipc.connect(l:address()))
            assert(c:put(i))
            local fine = c:recv() == ipc.pack(i) .. "!"
            answered = answered + (fine and 1 or 0)
          end)
        end
        tasks:run(15)
        print(served, answered)
      ]]):format(address, backlog))
      assert.are.equal("30\t30\n", output)
    end
  end)

  it("in cqueues, too", function()
    local output = peer.run [[
      require "ipc.cqueues"
      local cq = require "cqueues".new()
      local l = assert(ipc.listen "tcp:0")
      cq:wrap(function()
        for _ = 1, 5 do
          local s <close> = assert(l:accept())
          s:send(s:recv())
        end
      end)
      local n = 0
      for i = 1, 5 do
        cq:wrap(function()
          local c <close> = assert(ipc.connect(l:address()))
          c:put(i)
          local got = c:get()
          n = n + got
        end)
      end
      assert(cq:loop(15))
      print(n, cq:count())
    ]]
    assert.are.equal("15\t0\n", output)
  end)

  it("that waits is told when another task closes the listener", function()
    local output = peer.run [[
      local tasks = require "spec.support.scheduler".new()
      local l = assert(ipc.listen "tcp:0")
      tasks:go(function() print(l:accept()) end)
      tasks:go(function() print(l:close()) end)
      tasks:run(10)
    ]]
    assert.matches("nil\tclosed\t" .. E.EPIPE, output)
    assert.matches("true", output)
  end)

  it("a connecting task that is left alone by a close of the state ends clean", function()
    local output = peer.run [[
      local tasks = require "spec.support.scheduler".new()
      local l = assert(ipc.listen("tcp:0"))
      tasks:go(function() l:accept() end)
      tasks:step()
      print "end"
    ]]
    assert.are.equal("end\n", output)
  end)

  it("works in two Lua states of one process", function()
    local name = path()
    local state = require "spec.peer".state
    local l = listen("unix:" .. name)
    local code = ([[
      package.path, package.cpath = %q, %q
      local ipc = require "ipc"
      local c <close> = assert(ipc.connect "unix:%s")
      assert(c:send "from the other state")
      local l, _, errno = ipc.listen "unix:%s"
      return errno
    ]]):format(package.path, package.cpath, name, name)
    assert.are.equal(E.EADDRINUSE, state(code))
    local s = keep(assert(l:accept(PATIENCE)))
    assert.are.equal("from the other state", s:recv(PATIENCE))
  end)

  it("no descriptor is inherited by programs, none is left", function()
    local inherited, before = with.inherited(), peer.descriptors()
    local l = listen("unix:" .. path())
    local c = connect(l:address())
    local s = assert(l:accept(PATIENCE))
    assert.are.equal(inherited, with.inherited())
    s:close()
    c:close()
    l:close()
    assert.are.equal(before, peer.descriptors())
    ipc.listen("unix:" .. path())
    ipc.connect(("unix:" .. path()), { retry = 0.001 })
    assert.are.equal(before, peer.descriptors())
  end)
end)

describe("what broke once:", function()
  after_each(clean)

  it("listening by a host's name in a task of cqueues kept the look-up's descriptor", function()
    local output = peer.run [[
      local cqueues = require "cqueues"
      require "ipc.cqueues"
      local loop = cqueues.new()
      loop:wrap(function()
        for _ = 1, 3 do assert(ipc.listen "tcp:localhost:0"):close() end
        assert(ipc.open("udp:localhost:0", "rw")):close()
        io.write "done "
      end)
      loop:wrap(function() for _ = 1, 20 do ipc.sleep(0.001) end io.write "others " end)
      print(loop:loop())
    ]]
    assert.matches("done", output)
    assert.matches("others", output)
    assert.matches("true", output)
  end)

  it("a file that happened to be called as the lock's was removed", function()
    local name = path()
    local file <close> = assert(io.open(name .. ".binding", "w"))
    assert(file:write "mine"):flush()
    fails(E.EEXIST, "", ipc.listen("unix:" .. name))
    local again <close> = assert(io.open(name .. ".binding"))
    assert.are.equal("mine", again:read "a")
  end)

  it("the second client of ipc.open(address, \"r\") waited for ever", function()
    for _, address in ipairs { "unix:" .. path(), "tcp:0" } do
      local r = keep(assert(ipc.open(address, "r")))
      local at = r:address()
      local one, two = keep(assert(ipc.open(at, "w"))), connect(at)
      assert(one:send "one")
      assert.are.equal("one", r:recv(PATIENCE))
      is_closed(two:recv(PATIENCE))
    end
  end)

  if peer.has "pipe?packet=true" then
    it("an abstract name of datagrams could not be connected to", function()
      local at = ("unix:@ipc-%d-%d?type=datagram"):format(ipc.pid(), count)
      local r = keep(assert(ipc.open(at, "r")))
      local w = keep(assert(ipc.open(at, "w")))
      assert(w:send "there")
      assert.are.equal("there", (r:recv(PATIENCE)))
      raises("datagrams tell no user", ipc.open, at, "r", { allow_uids = { 0 } })
    end)
  end

  it("a client's own path was taken for a dead server's: streams have none now", function()
    local l = listen("unix:" .. path())
    raises("of unix sockets, datagrams only", ipc.connect, l:address(), { bind = path() })
  end)

  it("what is wrong with an address of one's own was said of the other's", function()
    local name = path()
    local u = keep(assert(ipc.open("unix:" .. name, "rw", { type = "datagram" })))
    fails(E.EADDRINUSE, "its own address, option bind", ipc.connect(u:address(), { bind = name }))
    local long = "/tmp/" .. ("x"):rep(200)
    fails(E.ENAMETOOLONG, long, ipc.connect(u:address(), { bind = long }))
  end)

  it("a listener's address did not say what its clients must be", function()
    for _, options in ipairs { { type = "seqpacket" }, { unit = "stream" } } do
      local l = listen("unix:" .. path(), options)
      local c = keep(assert(ipc.connect(l:address())))
      local s = keep(assert(l:accept(PATIENCE)))
      assert(c:send "no frame")
      assert.are.equal("no frame", s:recv(PATIENCE))
    end
  end)

  it("one that met EMFILE and whose client another process took was never woken again", function()
    local name = path()
    local l = listen("unix:" .. name)
    local output = peer.run(([[
      local l = assert(ipc.listen("unix:%s", { create = true }))
      local c = assert(ipc.connect(l:address()))
      local full = {}
      repeat
        local r, w = ipc.pipe()
        full[#full + 1], full[#full + 2] = r, r and w
      until not r
      local extra = io.open "/dev/null"
      local _, _, errno = l:accept(0)
      if extra then extra:close() end
      for _, end_ in ipairs(full) do end_:close() end
      assert(errno == ipc.errno.EMFILE)
      local taken = assert(ipc.fork(function() return l:accept(5) ~= nil end))
      assert(taken:wait(5))
      c:close()
      local late = assert(ipc.fork(function()
        ipc.sleep(0.05)
        return ipc.connect("unix:%s", { timeout = 5 }) ~= nil
      end))
      print(assert(ipc.poll({ l }, 10))[l])
      late:stop()
    ]]):format(name .. "2", name .. "2"))
    left[#left + 1] = name .. "2"
    assert.are.equal("true\n", output)
    l:close()
  end)
end)
