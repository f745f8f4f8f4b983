-- Descriptors that a program was given: standard input and output as a channel
-- behind shell pipes, and others by number. The peers are sh, cat, socat, Python.
local ipc = require "ipc"
local peer = require "spec.support.peer"
local with = require "spec.support.with"

local E = ipc.errno

local count = 0
local function new_path()
  count = count + 1
  return ("/tmp/lua_ipc_stdio.%d.%d"):format(ipc.pid(), count)
end

-- What is preloaded is for us, not for the programs between us and a child.
local PRELOAD <const> = "env LD_PRELOAD=" .. with.quote(os.getenv "LD_PRELOAD" or "") .. " "

-- A shell command that runs `code` in an interpreter, with `ipc` loaded.
local function lua_command(code)
  local command = with.command("local ipc = require 'ipc' " .. code)
  return "timeout --foreground " .. peer.limit .. " " .. command:gsub("^exec env ", function() return PRELOAD end)
end

-- Runs a shell command in which LUA is that; what it writes, its errors
-- included, and its exit status.
local function shell(command, code)
  local lua = lua_command(code)
  command = command:gsub("LUA", function() return lua end)
  return with.shell(("export LD_PRELOAD=; { %s; }"):format(command))
end

local UPPER <const> = [[
  local peer = assert(ipc.stdio())
  for line in peer:lines(10) do assert(peer:send(line:upper() .. "\n")) end
  assert(peer:close())
]]

describe("standard input and output", function()
  it("are one channel behind shell pipes: a filter of lines", function()
    assert.are.equal("ONE\nTWO\n", shell("printf 'one\\ntwo\\n' | LUA | cat", UPPER))
    assert.are.equal("", shell("LUA </dev/null | cat", UPPER))
  end)

  it("take more than a pipe holds, and give it", function()
    assert.are.equal("1000000\n", shell("head -c 1000000 /dev/zero | tr '\\0' a | LUA | tr -cd A | wc -c", [[
      local peer = assert(ipc.stdio())
      for bytes in peer:messages(10) do assert(peer:send(bytes:upper())) end
    ]]))
  end)

  it("are files as well", function()
    local path = new_path()
    assert(io.open(path, "w")):write("one\ntwo\n"):close()
    assert.are.equal("ONE\nTWO\n",
      shell(("LUA <%s >%s.out; cat %s.out; rm %s %s.out"):format(path, path, path, path, path), UPPER))
  end)

  it("carry messages if asked", function()
    assert.are.equal("\0\0\0\3abc", shell("printf '\\0\\0\\0\\3cba' | LUA | cat", [[
      local peer = assert(ipc.stdio { unit = "message", timeout = 10 })
      assert(peer:send(peer:recv():reverse()))
      assert(select(2, peer:recv()) == "closed")
    ]]))
  end)

  it("have the address stdio:", function()
    assert.are.equal("ok\n", shell("echo ok | LUA | cat", [[
      local peer = assert(ipc.open("stdio:", nil, { timeout = 10 }))
      peer:send(peer:read "L")
      assert(not pcall(ipc.open, "stdio:", "r") and not pcall(ipc.open, "stdio:x"))
    ]]))
  end)

  it("send what is printed to standard error from then on, not before", function()
    local path = new_path()
    local output = shell(("LUA </dev/null 2>%s | cat"):format(path), [[
      print "before"
      io.write "and half a line,"
      local peer = assert(ipc.stdio())
      print "printed"
      io.write "written\n"
      os.execute "echo by a child"
      assert(io.read "a" == "")
      assert(peer:send "sent\n")
    ]])
    assert.are.equal("before\nand half a line,sent\n", output)
    local file <close> = assert(io.open(path))
    assert.are.equal("printed\nwritten\nby a child\n", file:read "a")
    os.remove(path)
  end)

  it("are taken once: EBUSY, in another Lua state too", function()
    assert.are.equal("EBUSY\n", shell("LUA </dev/null", [[
      local peer = assert(ipc.stdio())
      local again, message, errno = ipc.stdio()
      assert(again == nil and message:match "taken already")
      peer:close()
      io.stderr:write(ipc.errno[select(3, ipc.stdio())], "\n")
    ]]))
  end)

  it("that are closed are EBADF, and nothing has changed", function()
    assert.are.equal("EBADF\nstill here\n", shell("LUA <&- | cat", [[
      print(ipc.errno[select(3, ipc.stdio())])
      print "still here"
    ]]))
  end)

  it("refuse options that they do not have", function()
    assert.error_matches(function() ipc.stdio { duplex = true } end, "unknown option 'duplex'")
    assert.error_matches(function() ipc.stdio { unit = "lines" } end, "option 'unit'")
  end)

  it("end in closed when the reader left, never in SIGPIPE", function()
    local output, status = shell("LUA </dev/null | true; echo done", [[
      local peer, word = assert(ipc.stdio { timeout = 10 })
      repeat
        local sent, why = peer:send(("x"):rep(1000))
        word = why
      until not sent
      io.stderr:write(word, "\n")
    ]])
    assert.are.equal("closed\ndone\n", output)
    assert.are.equal(0, status)
  end)

  it("keep deadlines: an idle input answers timeout", function()
    local path = new_path()
    local lua = lua_command([[
      local peer = assert(ipc.stdio())
      local start = ipc.now()
      local got, word = peer:recv(0.05)
      assert(not got and ipc.now() - start >= 0.05)
      peer:send(word .. "\n")
      peer:send(tostring(peer:recv(0)) .. "\t" .. select(2, peer:read("l", 0)) .. "\n")
      local ready, why = ipc.poll({ peer }, 0)
      assert(not ready and why == "timeout")
      peer:send "ok\n"
    ]])
    local program = peer.popen(("%s >%s; echo >>%s"):format(lua, path, path), "w")
    local limit, text = ipc.now() + peer.limit
    repeat -- its input stays open meanwhile
      local file <close> = io.open(path)
      text = file and file:read "a" or ""
    until text:find "ok\n\n" or ipc.now() > limit
    program:close()
    os.remove(path)
    assert.are.equal("timeout\nnil\ttimeout\nok\n\n", text)
  end)

  it("keep deadlines: an output that nobody reads takes what fits", function()
    local path = new_path()
    assert.are.equal("true timeout\n", shell(
      ("(LUA 2>%s | (until [ -s %s ]; do :; done; cat >/dev/null)) </dev/null; cat %s; rm %s"):format(
        path, path, path, path), [[
      local peer = assert(ipc.stdio { linger = 0 })
      local n, word = 0
      repeat
        local sent, why = peer:send(("x"):rep(5000), nil, 0.01)
        n, word = n + 1, why
      until not sent
      io.stderr:write(tostring(n > 5), " ", word, "\n")
    ]]))
  end)

  for _, without in ipairs { "nothing", "rwf_nowait", "rwf_nosignal" } do
    it("leave the flags of descriptions alone, without " .. without, function()
      -- Another holder of the same descriptions looks at them before and after.
      local script = [=[
import fcntl, os, subprocess, sys
env = dict(os.environ, IPC_WITHOUT=sys.argv[1])
r, w = os.pipe()
r2, w2 = os.pipe()
before = [fcntl.fcntl(fd, fcntl.F_GETFL) for fd in (r, w2)]
p = subprocess.Popen(["sh", "-c", sys.argv[2]], stdin=r, stdout=w2, env=env)
os.write(w, b"hello\n")
got = b""
while not got.endswith(b"\n"):
    got += os.read(r2, 100)
during = [fcntl.fcntl(fd, fcntl.F_GETFL) for fd in (r, w2)]
os.close(w)
p.wait()
after = [fcntl.fcntl(fd, fcntl.F_GETFL) for fd in (r, w2)]
print(got, before == during == after)
]=]
      local lua = lua_command(UPPER)
      local file <close> = peer.popen(peer.python_command(script, without, lua))
      assert.are.equal("b'HELLO\\n' True\n", file:read "a")
    end)

    it("are shared: two programs read one input, and neither waits beyond its deadline, without "
      .. without, function()
      local path = new_path()
      local code = ([[
        local peer = assert(ipc.stdio())
        local got, limit = 0, ipc.now() + 10
        repeat
          local bytes, why = peer:recv(0.001)
          got = got + #(bytes or "")
        until why == "closed" or ipc.now() > limit
        local file = io.open(%q, "a")
        file:write(got, "\n")
        file:close()
      ]]):format(path)
      local lua = lua_command(code)
      with.shell(("export LD_PRELOAD= IPC_WITHOUT=%s; for i in $(seq 200); do echo $i; done | " ..
        "{ { %s; } <&3 & { %s; } <&3 & wait; } 3<&0"):format(
        without, lua, lua))
      local sum, n = 0, 0
      for line in io.lines(path) do sum, n = sum + tonumber(line), n + 1 end
      os.remove(path)
      assert.are.equal(2, n)
      assert.are.equal(9 * 2 + 90 * 3 + 101 * 4, sum)
    end)
  end

  it("are one socket under inetd: socat; shutdown ends the sending only", function()
    local path = new_path()
    local file = new_path()
    assert(io.open(file, "w")):write("#!/bin/sh\n" .. lua_command([[
      local peer = assert(ipc.stdio { timeout = 10 })
      peer:send "name?\n"
      local name = peer:read "l"
      peer:send("hello " .. name .. "\n")
      assert(peer:shutdown())
      assert(select(2, peer:recv()) == "closed") -- the client's end
    ]]) .. "\n"):close()
    local server = peer.popen(("exec timeout 20 socat UNIX-LISTEN:%s EXEC:'sh %s'"):format(path, file), "w")
    local client = peer.popen(("(echo you) | socat -t 10 - UNIX-CONNECT:%s,retry=100,interval=0.05"):format(path))
    assert.are.equal("name?\nhello you\n", client:read "a")
    client:close()
    server:close()
    os.remove(path)
    os.remove(file)
  end)

  if os.execute "command -v script >/dev/null" then
    it("are a terminal: lines as they are typed, ^D is the end", function()
      local lua = lua_command([[
        local peer = assert(ipc.stdio { timeout = 10 })
        assert(peer:send "ready\n")
        local line = peer:read "l"
        assert(peer:send("got " .. line .. "\n"))
        assert(peer:send(select(2, peer:recv()) .. "\n"))
      ]])
      local path = new_path()
      assert(io.open(path, "w")):write(lua .. "\n"):close()
      local output = with.shell(
        ("export LD_PRELOAD=; (echo typed; printf '\\004') | " ..
          "timeout 20 script -q -e -c 'stty -echo; sh %s' /dev/null"):format(path))
      os.remove(path)
      assert.matches("ready\r?\ngot typed\r?\nclosed\r?\n", output)
    end)
  end
end)

describe("a descriptor by its number", function()
  it("comes by redirection, and has the mode that it can", function()
    local path = new_path()
    assert.are.equal("out\nmode\n", shell(("LUA 3</etc/hostname 4>%s; cat %s; rm %s"):format(path, path, path), [[
      local file = io.open "/etc/hostname"
      local r = assert(ipc.open("fd:3?unit=stream"))
      assert(r:read "a" == file:read "a")
      assert(select(2, r:recv(0)) == "closed")
      assert(not pcall(r.send, r, "x"))
      local w = assert(ipc.open("fd:4", "w", { unit = "stream" }))
      assert(w:send "out\n" and w:send "mode\n")
      assert(not pcall(w.recv, w))
    ]]))
  end)

  it("carries messages by default, as every address", function()
    assert.are.equal("\0\0\0\2hi", shell("(LUA 3>&1 >&2) | cat", [[
      local w = assert(ipc.open("fd:3", "w"))
      assert(w:send "hi")
    ]]))
  end)

  it("may serve both ways; closing one leaves the other", function()
    assert.are.equal("to\nfro\n", (peer.popen(peer.python_command([[
import os, socket, subprocess, sys
a, b = socket.socketpair()
before = b.getblocking()
p = subprocess.Popen(["sh", "-c", sys.argv[1] % b.fileno()], pass_fds=[b.fileno()])
assert os.get_blocking(b.fileno())
b.close()
a.sendall(b"to\n")
print(a.makefile().read(), end="")
a.close()
sys.exit(p.wait())
]], lua_command [[
      local both = assert(ipc.open("fd:%d", nil, { unit = "stream", timeout = 10 }))
      both:send(both:read "L")
      both:send "fro\n"
      both:shutdown()
      assert(select(2, both:recv()) == "closed")
    ]])):read "a"))
  end)

  it("is ours then: close-on-exec, and closed with the channel", function()
    assert.are.equal("child\nno\nEBADF\n", shell("LUA 3</dev/null", [[
      local r = assert(ipc.open("fd:3", "r"))
      io.write(os.execute "test -e /proc/self/fd/3" and "inherited\n" or "child\nno\n")
      r:close()
      print(ipc.errno[select(3, ipc.open "fd:3")])
    ]]))
  end)

  it("that is none, or not open for that, is EBADF", function()
    assert.are.equal("EBADF EBADF EBADF\n", shell("LUA 3</dev/null 4>/dev/null", [[
      local function try(...)
        local _, message, errno = ipc.open(...)
        assert(message:match "^ipc%.stdio%.open: descriptor %d+")
        return ipc.errno[errno]
      end
      print(try("fd:999") .. " " .. try("fd:3", "w") .. " " .. try("fd:4", "r"))
    ]]))
  end)

  it("of a handle here is EBUSY, adopted twice or otherwise", function()
    local r, w = peer.pipe()
    for _, handle in ipairs { r, w } do
      local channel, message, errno = ipc.open("fd:" .. handle:pollfd())
      assert.is_nil(channel)
      assert.are.equal(E.EBUSY, errno)
      assert.matches("is of an ipc%.pipe here", message)
    end
    assert(w:send "unharmed")
    assert.are.equal("unharmed", r:recv())
    peer.clean()
  end)

  it("that carries packets is refused: a read would cut them in silence", function()
    local has_packets = peer.has "unix?type=seqpacket"
    assert.are.equal("EPROTOTYPE EPROTOTYPE EPROTOTYPE\n", (peer.popen(peer.python_command([==[
import os, socket, subprocess, sys
kinds = [socket.SOCK_DGRAM] + ([socket.SOCK_SEQPACKET] if sys.argv[2] == "true" else [])
for kind in (kinds * 2)[:2]:
    a, b = socket.socketpair(socket.AF_UNIX, kind)
    sys.stdout.flush()
    subprocess.run(["sh", "-c", sys.argv[1] % b.fileno()], pass_fds=[b.fileno()], check=True)
    kept = b
subprocess.run(["sh", "-c", sys.argv[3]], stdin=kept, check=True)
print()
]==], lua_command [=[
      local channel, message, errno = ipc.open("fd:%d?unit=stream")
      assert(not channel and message:find "descriptor [0-9]+ is a socket of packets, which reads would cut")
      io.write(ipc.errno[errno], " ")
    ]=], tostring(has_packets), lua_command [[
      local channel, message, errno = ipc.stdio()
      assert(not channel and message:find "descriptor 0 is a socket of packets")
      io.write(ipc.errno[errno])
    ]])):read "a"))
    if not peer.has "pipe?packet=true" then return end
    local r, w = peer.pipe { packet = true }
    local child = peer.fork(function(mine)
      peer.exec({ mine }, "/bin/sh", "-c", (lua_command [[
        local channel, message, errno = ipc.open("fd:%d?unit=stream")
        assert(not channel and errno == ipc.errno.EPROTOTYPE, message)
        assert(message:find "a pipe of packets")
      ]]):format(mine:pollfd()))
    end, r)
    assert.is_true((child:wait(peer.limit)))
    w:close()
  end)

  it("that cannot be one raises", function()
    for _, address in ipairs { "fd:0", "fd:1", "fd:2", "fd:", "fd:x", "fd:-1", "fd:3x", "fd:99999999999" } do
      assert.error_matches(function() ipc.open(address) end, "bad argument #1 to 'open' %(fd: ")
    end
    assert.error_matches(function() ipc.open("fd:999", "x") end, "bad argument #2 to 'open'")
    assert.error_matches(function() ipc.open("fd:999", "r", { colour = 1 }) end, "unknown option")
  end)
end)
