-- TCP and UDP between two machines, and what networks do to them: loss, slow
-- lines, a cable pulled, a peer that is gone without a word.
local ipc = require "ipc"
local namespaces = require "spec.support.namespaces"
local with = require "spec.support.with"

local way, why = namespaces.way()

if not way then
  describe("two machines", function()
    it("cannot be had here: the system refuses namespaces", function()
      assert.is_true(#why > 0)
      assert.is_truthy(why:find "ermitted" or why:find "unshare" or why:find "not found" or why:find "denied", why)
    end)
  end)
  return
end

-- Common to both programs: numbered, checksummed messages.
local MESSAGES <const> = [[
  local function sum(text)
    local n = 0
    for i = 1, #text, 97 do n = (n * 31 + text:byte(i)) & 0xffffffff end
    return n
  end
  local function make(n, size)
    local body = (("%d,"):format(n)):rep(size // 4 + 1):sub(1, size)
    return ("%08d%010d%s"):format(n, sum(body), body)
  end
  local function number(message)
    local n, check, body = message:match "^(%d%d%d%d%d%d%d%d)(%d%d%d%d%d%d%d%d%d%d)(.*)$"
    assert(n and tonumber(check) == sum(body), "torn")
    return tonumber(n)
  end
]]

-- Receives until the end or a silence; says what came.
local RECEIVER <const> = MESSAGES .. [[
  local listener = assert(ipc.listen("tcp:0.0.0.0:7000"))
  local c = assert(listener:accept(20))
  local count, last = 0, 0
  while true do
    local message, text, errno = c:recv(SILENCE)
    if not message then
      assert(text == "closed" or text == "timeout" or errno == ipc.errno.ETIMEDOUT
        or errno == ipc.errno.EHOSTUNREACH, text)
      print("there", count, last, text)
      break
    end
    local n = number(message)
    assert(n == last + 1, "out of order")
    count, last = count + 1, n
  end
  c:settimeout(0)
  c:close()
]]

local SENDER <const> = MESSAGES .. [[
  local c = assert(ipc.connect("tcp:" .. there .. ":7000", { retry = 20, timeout = 20, linger = 20 }))
]]

local function receiver(silence) return (RECEIVER:gsub("SILENCE", tostring(silence))) end

describe("two machines", function()
  it("talk by TCP: everything once, in order and whole", function()
    local output, status = namespaces.run {
      there = receiver(20),
      here = SENDER .. [[
        for n = 1, 500 do assert(c:send(make(n, n * 20))) end
        assert(c:close())
        print "here"
      ]],
    }
    assert.are.equal("here\nthere\t500\t500\tclosed\n", output)
    assert.are.equal(0, status)
  end)

  it("know each other's addresses", function()
    local output = namespaces.run {
      there = [[
        local listener = assert(ipc.listen("tcp:0.0.0.0:7000"))
        local c = assert(listener:accept(20))
        print(c:peer():gsub(":%d+$", ""))
        print(c:address())
        c:recv(20)
      ]],
      here = SENDER .. [[ print(c:peer()) c:close() ]],
    }
    assert.are.equal("tcp:10.99.0.2:7000\ntcp:10.99.0.1\t1\ntcp:10.99.0.2:7000\n", output)
  end)

  it("find a closed port and a missing machine in time", function()
    local output = namespaces.run {
      there = "",
      here = [[
        print(select(3, ipc.connect("tcp:" .. there .. ":7001", { timeout = 20 })) == ipc.errno.ECONNREFUSED)
        local start = ipc.now()
        local c, text, errno = ipc.connect("tcp:10.99.0.77:7000", { timeout = 0.3 })
        print(c, text, ipc.now() - start >= 0.29 or errno == ipc.errno.EHOSTUNREACH)
      ]],
    }
    assert.are.equal("true\nnil\ttimeout\ttrue\n", output)
  end)

  local has_iptables = select(2, with.shell "command -v iptables") == 0

  it("lose one packet in ten: TCP delivers all the same", function()
    assert.is_true(has_iptables)
    local output, status = namespaces.run {
      setup = "iptables -A INPUT -i v0 -m statistic --mode random --probability 0.1 -j DROP;"
        .. "iptables -A OUTPUT -o v0 -m statistic --mode nth --every 13 --packet 0 -j DROP",
      there = receiver(20),
      here = SENDER .. [[
        for n = 1, 100 do assert(c:send(make(n, n * 20))) end
        assert(c:close())
        print "here"
      ]],
    }
    assert.are.equal("here\nthere\t100\t100\tclosed\n", output)
    assert.are.equal(0, status)
  end)

  it("have a slow line between them: deadlines hold, the rest follows", function()
    local output, status = namespaces.run {
      setup = "tc qdisc add dev v0 root tbf rate 2mbit burst 16kb latency 100ms",
      there = receiver(20),
      here = SENDER .. [[
        local n, late = 0, 0
        while n < 20 do
          local message = make(n + 1, 40000)
          local start = ipc.now()
          local ok, text = c:send(message, nil, 0.05)
          if ok then
            n = n + 1
          else
            assert(text == "timeout" and ipc.now() - start >= 0.049)
            late = late + 1
          end
        end
        assert(c:close())
        print("here", c:stats().sent)
      ]],
    }
    assert.are.equal("here\t20\nthere\t20\t20\tclosed\n", output)
    assert.are.equal(0, status)
  end)

  it("are cut off in the middle: every call ends by its deadline, nothing is torn", function()
    local output, status = namespaces.run {
      there = receiver(3),
      here = SENDER .. [[
        for n = 1, 50 do assert(c:send(make(n, 1000))) end
        assert(c:flush())
        sh "ip link set v0 down"
        local n, ok, text, errno = 50, true, nil, nil
        while ok do
          n = n + 1
          ok, text, errno = c:send(make(n, 100000), nil, 0.1)
        end
        print("here", text, (select(2, c:recv(0.1))))
        c:settimeout(0.1)
        print((select(2, c:flush(0.1))))
        c:settimeout(0)
        os.exit(true, false)
      ]],
    }
    assert.matches("^here\ttimeout\ttimeout\ntimeout\n", output)
    local count, last, text = output:match "there\t(%d+)\t(%d+)\t(%w+)\n$"
    assert.are.equal(count, last)
    assert.is_true(tonumber(count) <= 50)
    assert.are.equal("timeout", text)
    assert.are.equal(0, status)
  end)

  it("are joined again: what was accepted arrives once", function()
    local output, status = namespaces.run {
      there = receiver(20),
      here = SENDER .. [[
        for n = 1, 20 do assert(c:send(make(n, 1000))) end
        sh "ip link set v0 down"
        for n = 21, 40 do assert(c:send(make(n, 1000))) end
        assert(select(2, c:recv(0.3)) == "timeout")
        sh "ip link set v0 up"
        for n = 41, 60 do assert(c:send(make(n, 1000))) end
        assert(c:shutdown())
        print("here", (select(2, c:recv(20))))
      ]],
    }
    assert.are.equal("here\tclosed\nthere\t60\t60\tclosed\n", output)
    assert.are.equal(0, status)
  end)

  it("tell that a peer is gone without a word, by user_timeout", function()
    local probe, other, errno = ipc.pair("tcp", { user_timeout = 0.5 })
    if not probe then -- Linux has it
      assert.are.equal(ipc.errno.ENOTSUP, errno, other)
      return
    end
    probe:close()
    other:close()
    local output, status = namespaces.run {
      there = receiver(2),
      here = MESSAGES .. [[
        local c = assert(ipc.connect("tcp:" .. there .. ":7000",
          { retry = 20, timeout = 20, user_timeout = 0.5, linger = 0 }))
        assert(c:send(make(1, 100)))
        sh "iptables -A INPUT -i v0 -j DROP; iptables -A OUTPUT -o v0 -j DROP"
        assert(c:send(make(2, 100)))
        print("here", c:recv(20)) -- not "timeout", which would mean: try again
        print(c:send "x")
        c:close()
      ]],
    }
    assert.matches("^here\tnil\tclosed\t%d+\nnil\tclosed\t%d+\n", output)
    assert.matches("\nthere\t1\t1\ttimeout\n$", output)
    assert.are.equal(0, status)
  end)

  it("talk by UDP over a line that loses: nothing twice, nothing torn", function()
    assert.is_true(has_iptables)
    local output, status = namespaces.run {
      setup = "iptables -A OUTPUT -o v0 -m statistic --mode random --probability 0.1 -j DROP",
      there = MESSAGES .. [[
        local u = assert(ipc.open("udp:0.0.0.0:7000", "rw"))
        local seen, count, ended = {}, 0, false
        repeat
          local message, from = u:recv(20)
          assert(message, from)
          if message == "ready?" then
            assert(u:send("yes", from))
          elseif message == "end" then
            assert(u:send("ended", from))
            ended = true
          else
            local n = number(message)
            assert(not seen[n], "twice")
            seen[n] = true
            count = count + 1
          end
        until ended
        print("there", count > 0 and count <= 500)
      ]],
      here = MESSAGES .. [[
        local u = assert(ipc.connect("udp:" .. there .. ":7000"))
        local function ask(question, answer)
          repeat
            u:send(question, nil, 1)
            local got = u:recv(0.1)
          until got == answer
        end
        ask("ready?", "yes")
        for n = 1, 500 do
          local ok, text = u:send(make(n, 10 * n), nil, 1)
          assert(ok or text)
        end
        ask("end", "ended")
        print "here"
      ]],
    }
    assert.are.equal("here\nthere\ttrue\n", output)
    assert.are.equal(0, status)
  end)

  it("that are cut off answer UDP's calls by their deadlines", function()
    local output = namespaces.run {
      there = "",
      here = [[
        local u = assert(ipc.connect("udp:" .. there .. ":7000"))
        sh "ip link set v0 down"
        local ok, text, errno = u:send("x", nil, 0.1)
        print(ok == true or type(errno) == "number")
        print((select(2, u:recv(0.1))) ~= nil)
        u:close()
      ]],
    }
    assert.are.equal("true\ntrue\n", output)
  end)
end)
