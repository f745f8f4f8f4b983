-- Anonymous pipes: what is their own beyond what contract_spec says of every
-- channel, and peers that are not this library: sh, cat, Python.
local ipc = require "ipc"
local peer = require "spec.support.peer"

local pipe, fork = peer.pipe, peer.fork
local E = ipc.errno

local KIB <const> = 1024
local MIB <const> = 1024 * KIB

-- Writes bytes into the pipe itself, at once and past all framing.
local function raw_writer(w)
  local file = assert(io.open(peer.path(w), "wb"))
  file:setvbuf "no"
  return file
end

local function frame(bytes)
  return (">s4"):pack(bytes)
end

-- A text that shows where a piece of it is missing.
local text
do
  local line = {}
  for i = 1, 8191 do
    line[i] = ("%07x\n"):format(i)
  end
  local block = table.concat(line)
  function text(size)
    return block:rep(size // #block + 1):sub(1, size)
  end
end

describe("a pipe", function()
  after_each(peer.clean)

  it("has an end that only receives and one that only sends", function()
    local r, w = pipe()
    assert.is_true(w:send "one way")
    assert.are.equal("one way", r:recv())
    assert.has_error(function() r:send "x" end, "ipc.pipe: this end only receives")
    assert.has_error(function() w:recv() end, "ipc.pipe: this end only sends")
  end)

  it("is known to the kernel as a pipe, one descriptor for each end", function()
    local before = peer.descriptors()
    local r, w = pipe()
    assert.are.equal(before + 2, peer.descriptors())
    assert.are_not.equal(r:pollfd(), w:pollfd())
    r:close()
    w:close()
    assert.are.equal(before, peer.descriptors())
  end)

  it("refuses options that it does not have, by name", function()
    assert.error_matches(function() ipc.pipe { capacty = 1 } end, "unknown option 'capacty'")
    assert.error_matches(function() ipc.pipe { unit = "bytes" } end,
      [[option 'unit': "message" or "stream" expected]])
    assert.error_matches(function() ipc.pipe { packet = true, unit = "stream" } end,
      "packets are messages")
    assert.error_matches(function() ipc.pipe { duplex = 1 } end,
      "option 'duplex': boolean expected, got number")
  end)

  it("answers EMFILE when descriptors run out, and goes on when they are back", function()
    local output = peer.run([[
      local pipes, r, w, message, errno = {}
      repeat
        r, w, errno = ipc.pipe()
        if r then pipes[#pipes + 1] = { r, w } end
      until not r
      print(ipc.errno[errno], w:match "^ipc%.pipe%.open: %a+")
      local first = pipes[1]
      assert(first[2]:send "still here")
      print(first[1]:recv(5))
      for _ = 1, 2 do
        local last = table.remove(pipes)
        last[1]:close()
        last[2]:close()
      end
      r, w = ipc.pipe { duplex = true }
      print(w:send "again", r:recv(5))
    ]], { shell = "ulimit -n 40" })
    assert.matches("^EMFILE\tipc%.pipe%.open: %a+\nstill here\ntrue\tagain\n$", output)
  end)
end)

describe("a duplex pipe", function()
  after_each(peer.clean)

  it("is two pipes: both ends send and receive", function()
    local before = peer.descriptors()
    local a, b = pipe { duplex = true }
    assert.are.equal(before + 4, peer.descriptors())
    assert.is_true(a:send "to b")
    assert.is_true(b:send "to a")
    assert.are.equal("to b", b:recv())
    assert.are.equal("to a", a:recv())
  end)

  it("ends one way at a time by shutdown", function()
    local a, b = pipe { duplex = true }
    assert.is_true(a:send "last")
    assert.is_true(a:shutdown())
    assert.are.equal("last", b:recv())
    assert.are.same({ nil, "closed", E.EPIPE }, { b:recv() })
    assert.is_true(b:send "answer")
    assert.are.equal("answer", a:recv())
    assert.are.same({ nil, "closed", E.EPIPE }, { a:send "more" })
  end)

  it("can be made of any two channels", function()
    local r1, w1 = pipe()
    local r2, w2 = pipe()
    local a, b = peer.keep(ipc.duplex(r1, w2)), peer.keep(ipc.duplex(r2, w1))
    a:settimeout(peer.limit)
    b:settimeout(peer.limit)
    assert.is_true(a:send "x")
    assert.are.equal("x", b:recv())
    assert.is_true(b:put { 1, 2 })
    assert.are.same({ 1, 2 }, a:get())
    a:close()
    assert.are.same({ nil, "closed", E.EPIPE }, { b:recv() })
    assert.are.same({ nil, "closed", E.EPIPE }, { r1:recv() })
    assert.error_matches(function() ipc.duplex(r1, w1) end, "bad argument #1 .*closed")
    local r3, w3 = pipe()
    assert.error_matches(function() ipc.duplex(w3, r3) end, "bad argument #1 .*only sends")
  end)
end)

describe("the capacity of a pipe", function()
  after_each(peer.clean)

  if not peer.capacity(1) then
    it("cannot be set here: ENOTSUP", function()
      assert.are.equal(E.ENOTSUP, (select(3, ipc.pipe { capacity = 4096 })))
    end)
    return
  end

  -- What fits before a send would have to wait.
  local function fill(capacity)
    local _, w = pipe { capacity = capacity, unit = "stream" }
    local page, bytes = ("x"):rep(4096), 0
    while w:send(page, nil, 0) do
      bytes = bytes + #page
    end
    return bytes
  end

  it("is what was asked for", function()
    assert.are.equal(4096, fill(4096))
    assert.are.equal(64 * KIB, fill(64 * KIB))
    assert.are.equal(MIB, fill(MIB))
  end)

  it("holds for both ways of a duplex pipe", function()
    for _, w in ipairs { pipe { duplex = true, capacity = 8192, unit = "stream" } } do
      local n = 0
      while w:send(("x"):rep(4096), nil, 0) do
        n = n + 1
      end
      assert.are.equal(2, n)
    end
  end)

  it("that the system refuses names the limit", function()
    -- Without the privilege to exceed it.
    local who = io.popen("id -u"):read "n" == 0 and "setpriv --bounding-set=-sys_resource" or ""
    local output = peer.run([[
      local r, message, errno = ipc.pipe { capacity = 1 << 30 }
      print(r, ipc.errno[errno])
      print(message)
    ]], { under = who })
    assert.matches("^nil\tEPERM\n", output)
    assert.matches("fs%.pipe%-max%-size", output)
  end)

  it("that cannot be is the caller's mistake", function()
    for _, capacity in ipairs { 0, -1, 1 << 40 } do
      assert.error_matches(function() ipc.pipe { capacity = capacity } end,
        "option 'capacity': " .. tostring(capacity):gsub("%-", "%%-") .. " is not in")
    end
    assert.error_matches(function() ipc.pipe { capacity = "64K" } end,
      "option 'capacity': integer expected, got string")
  end)
end)

describe("a packet pipe", function()
  after_each(peer.clean)

  if not peer.has "pipe?packet=true" then
    it("does not exist here: ENOTSUP", function()
      assert.are.equal(E.ENOTSUP, (select(3, ipc.pipe { packet = true })))
      assert.are.equal(E.ENOTSUP, (select(3, ipc.pair "pipe?packet=true")))
    end)
    return
  end

  it("keeps messages apart by itself, empty ones too", function()
    local r, w = pipe { packet = true }
    local sent = { "", "a", "", ("b"):rep(4095), "", "\0\0" }
    for _, message in ipairs(sent) do
      assert.is_true(w:send(message))
    end
    w:close()
    local got = {}
    for message in r:messages() do
      got[#got + 1] = message
    end
    assert.are.same(sent, got)
  end)

  it("carries 4,095 bytes and not one more", function()
    local r, w = pipe { packet = true }
    assert.are.equal(4095, w:maxsize())
    assert.is_true(w:send(("x"):rep(4095)))
    local ok, message, errno = w:send(("x"):rep(4096))
    assert.is_nil(ok)
    assert.are.equal(E.EMSGSIZE, errno)
    assert.matches("4096", message)
    assert.matches("4095", message)
    assert.are.equal(4095, #r:recv())
    assert.are.same({ nil, "timeout", E.ETIMEDOUT }, { r:recv(0) })
  end)

  it("refuses a larger maxsize and takes a smaller one", function()
    assert.error_matches(function() ipc.pipe { packet = true, maxsize = 4096 } end,
      "option 'maxsize'")
    local _, w = pipe { packet = true, maxsize = 10 }
    assert.are.equal(10, w:maxsize())
    assert.are.equal(E.EMSGSIZE, (select(3, w:send "eleven bytes")))
  end)

  it("feeds several reader processes, every message to exactly one", function()
    local COUNT <const>, READERS <const> = 600, 3
    local r, w = pipe { packet = true }
    local report, answers = pipe { packet = true }
    for _ = 1, READERS do
      local mine, answer = r:dup(), answers:dup()
      fork(function()
        for number in mine:values() do
          answer:put(number)
        end
        answer:put "done"
      end)
    end
    r:close()
    answers:close()
    local seen, done, sent = {}, 0, 0
    while done < READERS do
      while sent < COUNT and w:put(sent + 1, nil, 0) do
        sent = sent + 1
        if sent == COUNT then
          w:close()
        end
      end
      local number = assert(report:get())
      if number == "done" then
        done = done + 1
      else
        assert.is_nil(seen[number])
        seen[number] = true
      end
    end
    assert.are.equal(COUNT, #seen)
    assert.are.same({ nil, "closed", E.EPIPE }, { report:get() })
  end)

  it("keeps messages of many writers whole, whatever their size", function()
    local WRITERS <const>, EACH <const> = 4, 100
    local r, w = pipe { packet = true }
    for i = 1, WRITERS do
      local mine, letter = w:dup(), string.char(64 + i)
      fork(function()
        for n = 1, EACH do
          assert(mine:send(letter:rep(n * 40)))
        end
      end)
    end
    w:close()
    local next_size = {}
    for message in r:messages() do
      local letter = message:sub(1, 1)
      assert.are.equal(letter:rep(#message), message)
      local n = (next_size[letter] or 0) + 1
      assert.are.equal(n * 40, #message)
      next_size[letter] = n
    end
    assert.are.same({ A = EACH, B = EACH, C = EACH, D = EACH }, next_size)
  end)

  it("has both ways when duplex", function()
    local a, b = pipe { packet = true, duplex = true }
    assert.is_true(a:send "")
    assert.is_true(b:send "x")
    assert.are.equal("", b:recv())
    assert.are.equal("x", a:recv())
  end)
end)

describe("frames on a pipe", function()
  after_each(peer.clean)

  it("of up to 4,092 bytes from many writing processes stay whole", function()
    local WRITERS <const>, EACH <const> = 4, 150
    local r, w = pipe()
    for i = 1, WRITERS do
      local mine, letter = w:dup(), string.char(64 + i)
      fork(function()
        for n = 1, EACH do
          assert(mine:send(letter:rep(4092 - n % 3)))
        end
      end)
    end
    w:close()
    local count = {}
    for message in r:messages() do
      local letter = message:sub(1, 1)
      assert.are.equal(letter:rep(#message), message)
      count[letter] = (count[letter] or 0) + 1
    end
    assert.are.same({ A = EACH, B = EACH, C = EACH, D = EACH }, count)
  end)

  it("of lists of many writing processes stay whole as well", function()
    local WRITERS <const>, EACH <const>, TIMES <const> = 3, 50, 20
    local r, w = pipe()
    for i = 1, WRITERS do
      local mine, list = w:dup(), {}
      for n = 1, EACH do
        list[n] = string.char(64 + i):rep(1000)
      end
      fork(function()
        for _ = 1, TIMES do
          assert(mine:sendmany(list))
        end
      end)
    end
    w:close()
    local count = {}
    for message in r:messages() do
      local letter = message:sub(1, 1)
      assert.are.equal(letter:rep(1000), message)
      count[letter] = (count[letter] or 0) + 1
    end
    assert.are.same({ A = EACH * TIMES, B = EACH * TIMES, C = EACH * TIMES }, count)
  end)

  it("are a 4-byte big-endian length and the bytes", function()
    local r, w = pipe()
    assert.is_true(w:send "hello")
    assert.is_true(w:send "")
    w:close()
    local file <close> = peer.popen("cat < " .. peer.path(r))
    assert.are.equal("\0\0\0\5hello\0\0\0\0", file:read "a")
  end)

  it("may come in any pieces", function()
    local r, w = pipe()
    local raw <close> = raw_writer(w)
    for byte in (frame "one" .. frame "" .. frame "three"):gmatch "." do
      assert(raw:write(byte))
    end
    assert.are.equal("one", r:recv())
    assert.are.equal("", r:recv())
    assert.are.equal("three", r:recv())
  end)

  it("over the limit are skipped, told once with both figures", function()
    local r, w = pipe { maxsize = 1000 }
    local raw <close> = raw_writer(w)
    assert(raw:write(frame "before", frame(("x"):rep(1001)), frame(("x"):rep(20000)), frame "after"))
    assert.are.equal("before", r:recv())
    for _, size in ipairs { "1001", "20000" } do
      local got, message, errno = r:recv()
      assert.is_nil(got)
      assert.are.equal(E.EMSGSIZE, errno)
      assert.matches(size, message, 1, true)
      assert.matches("1000", message, 1, true)
    end
    assert.are.equal("after", r:recv())
  end)

  it("that announce much take no memory before it comes", function()
    local r, w = pipe { maxsize = (1 << 31) - 1 }
    local raw <close> = raw_writer(w)
    local function size()
      local file <close> = io.open "/proc/self/status"
      return tonumber(file:read("a"):match "VmSize:%s*(%d+)")
    end
    local before = size()
    assert(raw:write((">I4"):pack((1 << 31) - 1), ("x"):rep(30000)))
    assert.are.same({ nil, "timeout", E.ETIMEDOUT }, { r:recv(0.01) })
    assert.is_true(size() - before < 20 * KIB, "KiB more: " .. size() - before)
  end)

  it("with a negative length ask whether the peer speaks frames", function()
    local r, w = pipe()
    local raw <close> = raw_writer(w)
    assert(raw:write "\xff\xff\xff\xff and so on")
    local got, message, errno = r:recv()
    assert.is_nil(got)
    assert.are.equal(E.EBADMSG, errno)
    assert.matches("does the peer speak frames%?", message)
  end)

  it("that are lines of text in truth ask the same", function()
    local r, w = pipe()
    local raw <close> = raw_writer(w)
    assert(raw:write "GET / HTTP/1.0\r\n\r\n")
    local got, message, errno = r:recv()
    assert.is_nil(got)
    assert.are.equal(E.EMSGSIZE, errno)
    assert.matches("does the peer speak frames%?", message)
  end)

  it("of a peer killed in their middle end in closed", function()
    local r, w = pipe()
    local child = fork(function()
      assert(w:send "whole")
      assert(w:send(("x"):rep(MIB), nil, 0)) -- accepted; the rest never leaves
      ipc.parent:send "accepted"
      ipc.parent:recv()
    end)
    assert.are.equal("accepted", child:recv())
    assert.is_true(child:kill "KILL")
    assert.are.equal("whole", r:recv())
    assert.are.same({ nil, "closed", E.EPIPE }, { r:recv() })
    assert.are.same({ nil, "closed", E.EPIPE }, { r:recv() })
  end)

  it("that another wait found lost are told by flush", function()
    local r, w = pipe()
    assert.is_true(w:send(text(MIB), nil, 0))
    r:close()
    ipc.sleep(0.001)
    assert.are.same({ nil, "closed", E.EPIPE }, { w:flush() })
  end)

  it("of many MiB leave no memory behind once a small one came", function()
    if not peer.has_proc then
      return pending "needs /proc/self/statm"
    end
    local output = peer.run([[
      local function resident()
        collectgarbage()
        collectgarbage()
        local file <close> = io.open "/proc/self/statm"
        return select(2, file:read("n", "n")) * 4
      end
      local r, w = ipc.pipe { timeout = 10 }
      ipc.fork(function()
        w:send "first"
        w:send(("x"):rep(48 << 20)) -- the allocator gives back what is so large
        w:send "last"
      end)
      local sizes = { #r:recv() }
      local before = resident()
      sizes[2], sizes[3] = #r:recv(), #r:recv()
      print(sizes[1], sizes[2] >> 20, sizes[3], (resident() - before) // 1024)
    ]], { env = {
      IPC_WITHOUT = "mallopt",
      LD_PRELOAD = peer.unfailing(),
      ASAN_OPTIONS = (os.getenv "ASAN_OPTIONS" or "")
        .. ":quarantine_size_mb=0:thread_local_quarantine_size_kb=0",
    } })
    assert.are.equal("5\t48\t4\t0\n", output)
  end)

  it("larger than the pipe go through whole", function()
    local r, w = pipe { capacity = peer.capacity(4096) }
    local message = text(3 * MIB)
    fork(function() assert(w:send(message)) end)
    assert.is_true(r:recv() == message)
    assert.are.same({ nil, "closed", E.EPIPE }, { r:recv() })
  end)
end)

describe("a stream on a pipe", function()
  after_each(peer.clean)

  local function stream(options)
    options = options or {}
    options.unit = "stream"
    return pipe(options)
  end

  it("knows no boundaries: recv takes what is there", function()
    local r, w = stream()
    assert.is_true(w:send "ab")
    assert.is_true(w:send "")
    assert.is_true(w:send "cd")
    w:close()
    local got = {}
    for piece in r:messages() do
      assert.is_true(#piece >= 1)
      got[#got + 1] = piece
    end
    assert.are.equal("abcd", table.concat(got))
  end)

  it("hands out 64 KiB at a time at most", function()
    local r, w = stream { capacity = peer.capacity(256 * KIB) }
    local sent = text(200 * KIB)
    fork(function() assert(w:send(sent)) end)
    local got, pieces = {}, 0
    for piece in r:messages() do
      assert.is_true(#piece <= 64 * KIB)
      pieces = pieces + 1
      got[pieces] = piece
    end
    assert.is_true(table.concat(got) == sent)
    assert.is_true(pieces >= 4)
  end)

  it("reads exactly so many bytes", function()
    local r, w = stream()
    assert.is_true(w:send "abcdef")
    assert.are.equal("abc", r:read(3))
    assert.are.equal("", r:read(0))
    assert.are.equal("d", r:read(1))
    assert.are.same({ nil, "timeout", E.ETIMEDOUT }, { r:read(3, 0) })
    w:send "g"
    assert.are.equal("efg", r:read(3))
  end)

  it("reads lines without and with their end", function()
    local r, w = stream()
    assert.is_true(w:send "one\n\ntwo\r\nthree")
    w:close()
    assert.are.equal("one", r:read "l")
    assert.are.equal("\n", r:read "L")
    assert.are.equal("two\r\n", r:read "L")
    assert.are.equal("three", r:read "L")
    assert.are.same({ nil, "closed", E.EPIPE }, { r:read "l" })
  end)

  it("reads all that comes until the end, and at the end nothing", function()
    local r, w = stream()
    local sent = text(300 * KIB)
    fork(function() assert(w:send(sent)) end)
    assert.is_true(r:read "a" == sent)
    assert.are.equal("", r:read "a")
    assert.are.same({ nil, "closed", E.EPIPE }, { r:recv() })
  end)

  it("keeps what was gathered before a timeout", function()
    local r, w = stream()
    for _, what in ipairs { "l", "L", "a", 10 } do
      assert.is_true(w:send "gath")
      assert.are.same({ nil, "timeout", E.ETIMEDOUT }, { r:read(what, 0.001) })
      assert.is_true(w:send "ered\n")
      assert.are.equal("gathered\n", r:read "L")
    end
    assert.is_true(w:send "no end yet")
    assert.are.same({ nil, "timeout", E.ETIMEDOUT }, { r:read("l", 0) })
    assert.is_true(w:send "\n")
    assert.are.equal("no end yet", r:read "l")
    assert.is_true(w:send "x")
    assert.are.same({ nil, "timeout", E.ETIMEDOUT }, { r:read(2, 0) })
    assert.are.equal("x", r:recv())
  end)

  it("finds the line in what a read by count gathered before its timeout", function()
    local r, w = stream()
    assert.is_true(w:send "a\nb")
    assert.are.same({ nil, "timeout", E.ETIMEDOUT }, { r:read(10, 0) })
    assert.are.equal("a", r:read("l", 0))
    assert.is_true(w:send "c\n")
    assert.are.equal("bc", r:read("l", 0))
  end)

  it("closed before its count keeps what came for recv", function()
    local r, w = stream()
    assert.is_true(w:send "abc")
    w:close()
    assert.are.same({ nil, "closed", E.EPIPE }, { r:read(4) })
    assert.are.equal("abc", r:recv())
    assert.are.same({ nil, "closed", E.EPIPE }, { r:recv() })
  end)

  it("iterates over lines, the last one without an end too", function()
    local r, w = stream()
    assert.is_true(w:send "1\n2\n\n4")
    w:close()
    local got = {}
    for line in r:lines() do
      got[#got + 1] = line
    end
    assert.are.same({ "1", "2", "", "4" }, got)
  end)

  it("raises out of the iteration what is not the end", function()
    local r, w = stream()
    assert.is_true(w:send "1\nincomplete")
    local got = {}
    local ok, err = pcall(function()
      for line in r:lines(0) do
        got[#got + 1] = line
      end
    end)
    assert.is_false(ok)
    assert.are.equal(E.ETIMEDOUT, err.errno)
    assert.are.same({ "1" }, got)
  end)

  it("bounds a line by 1 MiB, and says so", function()
    local r, w = stream { capacity = peer.capacity(MIB) }
    fork(function()
      assert(w:send(("x"):rep(MIB + 10)))
      assert(w:send "\nshort\n")
    end)
    local line, message, errno = r:read "l"
    assert.is_nil(line)
    assert.are.equal(E.EMSGSIZE, errno)
    assert.matches("1048576", message)
    assert.is_nil(message:find "frames")
    assert.are.equal(MIB, #r:read(MIB)) -- nothing was taken
    assert.are.equal(("x"):rep(10), r:read "l")
    assert.are.equal("short", r:read "l")
  end)

  it("bounds one read by maxsize where that is set", function()
    local r, w = stream { maxsize = 8 }
    assert.is_true(w:send "12345678\n" == nil)
    assert.is_true(w:send "1234567\n")
    assert.is_true(w:send "12345678")
    assert.is_true(w:send "\n")
    assert.are.equal("1234567", r:read "l")
    local line, message, errno = r:read "l"
    assert.is_nil(line)
    assert.are.equal(E.EMSGSIZE, errno)
    assert.matches("8", message, 1, true)
    assert.error_matches(function() r:read(9) end, "more than maxsize")
    assert.are.equal("12345678", r:read(8))
    assert.are.equal("", r:read "l")
  end)

  it("refuses to read what it does not know", function()
    local r = stream()
    assert.error_matches(function() r:read "n" end, "bad argument #1")
    assert.error_matches(function() r:read(-1) end, "negative")
    assert.error_matches(function() r:read(1.5) end, "bad argument #1")
    local framed = pipe()
    assert.has_error(function() framed:read "l" end, [[ipc.pipe.read: needs unit = "stream"]])
    assert.has_error(function() framed:lines() end, [[ipc.pipe.lines: needs unit = "stream"]])
  end)

  it("carries values as bare MessagePack", function()
    local r, w = stream()
    assert.is_true(w:put { 1, "two" })
    w:close()
    local file <close> = peer.popen("od -An -tx1 < " .. peer.path(r))
    assert.are.equal(" 92 01 a3 74 77 6f\n", file:read "a")
  end)

  it("receives values that a foreign writer dribbles byte by byte", function()
    local r, w = stream()
    local bytes = ipc.pack { name = "job", args = { 1, 2.5, true } } .. ipc.pack "next"
    local raw <close> = raw_writer(w)
    for i = 1, #bytes do
      assert(raw:write(bytes:sub(i, i)))
      if i < #bytes - 5 then
        assert.are.same({ nil, "timeout", E.ETIMEDOUT }, { r:get(0) })
      end
    end
    assert.are.same({ name = "job", args = { 1, 2.5, true } }, r:get())
    assert.are.equal("next", r:get())
    assert.are.same({ nil, "timeout", E.ETIMEDOUT }, { r:get(0) })
  end)

  it("ends in closed when the writer ends in the middle of a value", function()
    local r, w = stream()
    assert.is_true(w:send((ipc.pack { 1, 2, 3 }):sub(1, -2)))
    w:close()
    assert.are.same({ nil, "closed", E.EPIPE }, { r:get() })
  end)
end)

describe("SIGPIPE", function()
  after_each(peer.clean)

  -- The default disposition, whatever this process inherited; with "process"
  -- and "thread", blocked and pending for that before the program begins.
  local prepare = [[
import os, signal, sys, threading
signal.signal(signal.SIGPIPE, signal.SIG_DFL)
if sys.argv[1] != "none":
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGPIPE})
if sys.argv[1] == "process":
    os.kill(os.getpid(), signal.SIGPIPE)
if sys.argv[1] == "thread":
    signal.pthread_kill(threading.get_ident(), signal.SIGPIPE)
os.execvp(sys.argv[2], sys.argv[2:])
]]

  local script = [[
    local function signals()
      local file <close> = io.open "/proc/self/status"
      local status, text = file:read "a", ""
      for _, name in ipairs { "SigPnd", "ShdPnd", "SigBlk", "SigIgn", "SigCgt" } do
        local set = tonumber(status:match(name .. ":%s*(%x+)"), 16)
        text = text .. " " .. (set >> 12 & 1)
      end
      return text
    end
    local before = signals()
    for _, unit in ipairs { "message", "stream" } do
      local r, w = ipc.pipe { unit = unit }
      r:close()
      print(w:send "x")
      print(w:send(("x"):rep(100000)))
    end
    print(before)
    print(signals())
  ]]

  local closed = ("nil\tclosed\t" .. E.EPIPE .. "\n"):rep(4)

  local function run(how, env)
    return peer.run(script, { env = env, under = peer.python_command(prepare, how):gsub("^exec ", "") })
  end

  for _, without in ipairs { "nothing", "rwf_nosignal" } do
    describe("with IPC_WITHOUT=" .. without, function()
      it("is neither delivered nor left pending", function()
        local quiet = " 0 0 0 0 0\n"
        assert.are.equal(closed .. quiet .. quiet, run("none", { IPC_WITHOUT = without }))
      end)

      it("that was pending before is not swallowed", function()
        for whose, pending in pairs { process = " 0 1 1 0 0\n", thread = " 1 0 1 0 0\n" } do
          assert.are.equal(closed .. pending .. pending, run(whose, { IPC_WITHOUT = without }))
        end
      end)
    end)
  end
end)

describe("foreign programs on a pipe", function()
  after_each(peer.clean)

  if not peer.has_proc then
    pending "need /proc/PID/fd to be handed a descriptor"
    return
  end

  it("read what is sent: cat", function()
    local r, w = pipe { unit = "stream" }
    local file <close> = peer.popen("cat < " .. peer.path(r))
    local sent = text(300 * KIB)
    fork(function() assert(w:send(sent)) end)
    assert.is_true(file:read "a" == sent)
  end)

  it("write what is received: sh", function()
    local r, w = pipe { unit = "stream" }
    local sh = peer.popen(("for i in 1 2 3; do echo line $i; done > %s"):format(peer.path(w)), "w")
    assert.are.equal("line 1", r:read "l")
    w:close()
    local got = {}
    for line in r:lines() do
      got[#got + 1] = line
    end
    assert.are.same({ "line 2", "line 3" }, got)
    assert.is_true(sh:close())
  end)

  it("come and go in the middle of a stream", function()
    local r, w = pipe { unit = "stream" }
    for i = 1, 3 do
      assert.is_true(peer.popen(("echo %d > %s"):format(i, peer.path(w)), "w"):close())
      assert.is_true(w:send "ours\n")
      assert.are.equal(tostring(i), r:read "l")
      assert.are.equal("ours", r:read "l")
    end
  end)

  it("find an end of ours untouched: it stays non-blocking, theirs blocks", function()
    local r, w = pipe { unit = "stream" }
    local file = peer.popen("head -c 5 < " .. peer.path(r))
    assert.are.same({ nil, "timeout", E.ETIMEDOUT }, { r:recv(0) })
    assert.is_true(w:send "12345")
    assert.are.equal("12345", file:read "a")
    file:close()
    assert.are.same({ nil, "timeout", E.ETIMEDOUT }, { r:recv(0) })
  end)

  -- Receives messages by its own code for frames, sends each back reversed.
  local mirror = [[
import os, sys
from multiprocessing.connection import Connection
source = Connection(os.open(sys.argv[1], os.O_RDONLY), writable=False)
target = Connection(os.open(sys.argv[2], os.O_WRONLY), readable=False)
target.send_bytes(b"ready")
try:
    while True:
        target.send_bytes(source.recv_bytes()[::-1])
except EOFError:
    target.send_bytes(b"end of file")
]]

  it("speak frames: Python's multiprocessing.connection, 0 bytes to 20 MiB #slow", function()
    local r1, w1 = pipe()
    local r2, w2 = pipe()
    local python = peer.popen(peer.python_command(mirror, peer.path(r1), peer.path(w2)), "w")
    assert.are.equal("ready", r2:recv())
    r1:close()
    w2:close()
    for _, size in ipairs { 0, 1, 4 * KIB, 64 * KIB, MIB, 20 * MIB } do
      local sent = text(size)
      assert.is_true(w1:send(sent))
      local got = assert(r2:recv())
      assert.is_true(#got == size and got:reverse() == sent, size .. " bytes")
    end
    local many = {}
    for i = 1, 100 do
      many[i] = ("%d:"):format(i):rep(i)
    end
    assert.are.equal(#many, w1:sendmany(many))
    for _, sent in ipairs(many) do
      assert.are.equal(sent, r2:recv():reverse())
    end
    w1:close()
    assert.are.equal("end of file", r2:recv())
    assert.are.same({ nil, "closed", E.EPIPE }, { r2:recv() })
    assert.is_true(python:close())
  end)
end)
