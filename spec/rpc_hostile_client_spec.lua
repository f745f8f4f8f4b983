-- Clients of calls whose servers mean harm: answers that nobody asked for, floods,
-- values of every kind. Whatever comes, a call ends, with nil, message, errno or its
-- result.
local ipc = require "ipc"
local hostile = require "spec.support.hostile"
local inputs = require "spec.support.inputs"
local peer = require "spec.support.peer"

local E = ipc.errno
local LIMIT = peer.limit

local STRANGE = inputs.STRANGE
local pack, times, request, call, ext = inputs.pack, inputs.times, inputs.request, inputs.call, inputs.ext

-- A response; what is answered and its error are bytes.
local function reply(message, result, problem)
  return "\x94\1" .. pack(message[2]) .. (problem or "\xc0") .. (result or "\xc0")
end

local function stranger(message, write) write(reply(message, nil, pack { 1, "no method" })) end

-- Serves one connection after the other, in a process of its own: answer(message,
-- write) is called with what came, hello(message, write) with hellos, and told(message)
-- with responses; who answers false has the connection closed.
local function fake(answer, hello, told)
  local address = "unix:" .. hostile.path()
  local listener = assert(ipc.listen(address, { unit = "stream", timeout = 3 * LIMIT }))
  local child = peer.fork(function()
    while true do
      local conn = listener:accept()
      if not conn then return end
      local function write(...)
        for _, bytes in ipairs { ... } do
          if not conn:send(bytes, nil, LIMIT) then return false end
        end
        return true
      end
      for message in conn:values(LIMIT) do
        if message[3] == "$call" then message = { 0, message[2], message[4][2], message[4][3] } end
        local go = message[3] == "$hello" and (hello or stranger) or answer
        if message[1] == 1 then go = told end
        if (message[1] == 0 or message[1] == 1 and told) and go(message, write) == false then break end
      end
      conn:close()
    end
  end)
  peer.keep(listener)
  return address, child
end

local function kin(message, write) write(reply(message, pack { 1, {} })) end

describe("a client of ours:", function()
  after_each(peer.clean)

  local function connect(address, options)
    local o = { timeout = LIMIT }
    for name, value in pairs(options or {}) do o[name] = value end
    return assert(ipc.rpc.connect(address, o))
  end

  local function answer(ok, why, errno)
    assert.is_nil(ok)
    assert.are.equal("string", type(why))
    assert.are.equal("integer", math.type(errno))
  end

  it("is answered what nobody asked, twice, and then what it asked", function()
    local address = fake(function(message, write)
      if message[3] == "flood" then
        for i = 1, 1000 do write("\x94\1" .. pack(message[2] + i) .. "\xc0\5") end
      end
      local good = reply(message, pack(message[4][1]))
      write(good, good)
    end)
    local client <close> = connect(address)
    for i = 1, 20 do
      assert.are.same({ true, i }, { client:call("flood", i) })
      assert.are.same({ true, i }, { client:call("once", i) })
    end
  end)

  it("is told what the other side is by an object of its own", function()
    local object = "\x91\xc7\3\x40\x92\1\1"
    local address = fake(function(message, write)
      write(message[3] == "first" and call("$hello", "\x92\1\x80", "\7") or "", reply(message, "\x91\5"))
    end, function(message, write)
      write(call("$hello", "\x92\1\x80", "\7"), reply(message, object))
    end)
    local client <close> = connect(address)
    assert.are.same({ true, 5 }, { client:call "f" })
    assert.are.equal("string", type(tostring(client)))
    assert.are.same({ true, 5 }, { client:call "f" })
  end)

  it("notifies one that has stopped reading: it waits, memory does not", function()
    local a, b = ipc.pair("unix", { unit = "stream" })
    local client <close> = assert(ipc.rpc.connect(b, { unsent = 1 << 18, stall = 0.1, peer = "plain" }))
    local limit, most = ipc.now() + LIMIT, 0
    local ok, why, errno
    repeat
      ok, why, errno = client:notify("n", times(1000, "x"))
      most = math.max(most, client:stats().unsent)
    until not ok or ipc.now() > limit
    assert.are.same({ nil, "the peer has read nothing for 0.1 s", E.ETIMEDOUT }, { ok, why, errno })
    assert.is_true(most <= (1 << 18) + 2000, most)
    a:close()
  end)

  it("is answered errors of any kind", function()
    local kinds = { "\5", "\xc3", "\xc2", "\x90", "\x91\1", "\x92\1\2", "\x92\xa1a\xa1b", "\x93\0\xa1t\5", "\x80",
      "\x81\xa7message\1", "\x82\xa7message\xa1m\xa5errno\xa1x", "\x92\xc0\xc0", "\xa4text", "\xa0", "\xc4\2\xff\xfe",
      "\xd4\x40\0", ext(0x41, "\x92\1\0"), "\xcb" .. times(8, "\xff"), times(60, "\x91") .. "\1", "\x92\0\xa0",
      "\x93\0\xa1t\x81\xa5errno\xcf" .. times(8, "\xff"), "\x93\0\xa1t\x81\xa5errno\xcb" .. times(8, "\xff"),
      "\x93\0\xa1t\x81\xa9traceback\1", "\x92\0\xdb\0\x10\0\0" .. times(1 << 20, "e") }
    for _, hello in ipairs { false, kin } do
      local address = fake(function(message, write)
        if message[3] == "good" then return write(reply(message, hello and "\x91\1" or "\1")) end
        write(reply(message, "\xc0", kinds[message[4][1]]))
      end, hello or nil)
      local client = connect(address)
      for i, kind in ipairs(kinds) do
        local ok, why, errno = client:call("bad", i)
        assert.is_nil(ok, ("%q"):format(kind:sub(1, 10)))
        answer(ok, why, errno)
        if errno == E.EPIPE or errno == E.EBADMSG then -- a reference that is none, perhaps
          client:close()
          client = connect(address)
        end
        assert.are.same({ true, 1 }, { client:call "good" })
        local raised, object = pcall(client.remote.bad, i)
        assert.is_false(raised)
        tostring(object)
        client:close()
        client = connect(address)
      end
      client:close()
    end
  end)

  it("an error that is an object of the other side, or holds one, asks it nothing", function()
    local object = "\xc7\3\x40\x92\1\1"
    local bad = { object, "\x91" .. object, "\x93\0" .. object .. object, "\x93\0\xa1x" .. object,
      "\x81\xa7message" .. object }
    local address = fake(function(message, write)
      if message[3] == "bad" then write(reply(message, nil, bad[message[4][1]])) end
    end, kin)
    local client <close> = connect(address)
    for i = 1, #bad do
      answer(client:call("bad", i))
      local one, other = client:async("bad", i), client:async("bad", i)
      answer(other:wait())
      answer(one:wait())
      answer(one:wait(0))
      assert.is_true(one.done)
    end
    assert.are.equal(0, client:stats().calls)
  end)

  it("is not answered: its time ends, and nothing is kept", function()
    local address = fake(function(message, write)
      if message[3] == "good" then write(reply(message, "\1")) end
    end)
    local client <close> = connect(address)
    assert(client:call "good")
    local function attack(n)
      for _ = 1, n do
        local from = ipc.now()
        local ok, why, errno = client:with { timeout = 0.002 }:call "never"
        assert.are.same({ nil, "timeout", E.ETIMEDOUT }, { ok, why, errno })
        assert.is_true(ipc.now() - from >= 0.002)
      end
      collectgarbage()
      collectgarbage()
      return collectgarbage "count"
    end
    attack(20)
    local before, now = attack(1), nil
    for _ = 1, hostile.rounds do
      now = attack(50)
      if now - before < 8 then break end
      before = now
    end
    assert.is_true(now - before < 8, (now - before) .. " KiB")
    assert.are.same({ true, 1 }, { client:call "good" })
  end)

  for _, flood in ipairs {
    { "notifications", "\x93\2\xa4none\x90" },
    { "requests back, and does not read", request "\xa4none" },
    { "requests back that are served", call("there", "\x91\1") },
    { "responses", "\x94\1\xce\xff\xff\xff\xff\xc0\xc0" },
  } do
    it("is flooded with " .. flood[1], function()
      local address = fake(function(message, write)
        if message[3] == "good" then
          for _ = 1, 100 do
            if not write(times(100, flood[2])) then return false end
          end
          return write(reply(message, "\1"))
        end
        while write(times(1000, flood[2])) do end
        return false
      end)
      local function start() return connect(address, { exports = { there = function() return 1 end } }) end
      local client = start()
      assert.are.same({ true, 1 }, { client:call "good" })
      local ok, why, errno = client:with { timeout = 0.1 }:call "never"
      answer(ok, why, errno)
      client:close()
      client = start()
      assert.are.same({ true, 1 }, { client:call "good" })
      client:close()
    end)
  end

  it("is called back by every answer: only so deep", function()
    local address = fake(function(message, write)
      write("\x94\0" .. pack(message[2] + 1) .. pack "again" .. "\x90")
    end, nil, function() return false end) -- at the first that is refused
    local client, depth, most = nil, 0, 0
    client = connect(address, { nested = 8, exports = { again = function()
      depth = depth + 1
      most = math.max(most, depth)
      local ok, why = client:call "deeper"
      depth = depth - 1
      return ok, why
    end } })
    answer(client:call "deeper")
    assert.are.equal(8, most)
    client:close()
  end)

  it("says hello to strangers", function()
    local answers = { "\xc0", "\1", "\x90", "\x91\1", "\x91\x91\1", "\x92\1\1", "\x92\1\xc0", "\x92\2\x80",
      "\x92\xa1x\x80", "\x91\x92\1\x80", "\x80", "\xa5hello", "\x92\1\x81\xa6limits\1", "\x92\1\x81\xa8features\1",
      "\x92\1\x81\xa4name\1", "\x92\1\x81\xa3pid\xcb" .. times(8, "\xff"), "\xd4\x40\0" }
    for _, value in ipairs(STRANGE) do
      for _, name in ipairs { "timeout", "calls", "references" } do
        answers[#answers + 1] = pack { 1, { limits = { [name] = value } } }
      end
    end
    local address = fake(function(message, write)
      write(reply(message, pack(message[4])))
    end, function(message, write) write(reply(message, table.remove(answers, 1))) end)
    -- The answers are taken in the child: as many connections as there are.
    for i = 1, #answers do
      local client <close> = connect(address)
      local ok, why, errno = client:call("echo", 5)
      if not ok then answer(ok, why, errno) end
      assert.is_true(ok == true or errno == E.EPIPE or errno == E.EBADMSG or errno == E.EPROTO,
        i .. ": " .. tostring(why))
    end
  end)

  it("meets ends in the middle, garbage, replies without end", function()
    local ends = { "", "\x94\1", "\xc1", "HTTP/1.1 200 OK\r\n\r\n", "\x94\1\1\xc0\xdd\xff\xff\xff\xff",
      "\x94\1\1\xc0\xdb\xff\xff\xff\xff",
      "\x94\1\1\xc0" .. times(100000, "\x91"), "\x94\1\1\xc0\xdb\1\x10\0\0" .. times(17 << 20, "x"),
      "\x94\1\1\xc0\x81\xc0\1", "\x95\1\1\xc0\xc0\xc0", times(100000, "\x90") }
    local address = fake(function(message, write)
      write(ends[message[4][1]])
      return false
    end)
    for i = 1, #ends do
      local client <close> = connect(address)
      answer(client:call("end", i))
      answer(client:call("end", i)) -- and stays so
      assert.is_nil((client:notify "x"))
    end
  end)

  it("results by the million", function()
    for _, hello in ipairs { false, kin } do
      local address = fake(function(message, write)
        write(reply(message, "\xdd" .. (">I4"):pack(message[4][1]) .. times(message[4][1], "\1")))
      end, hello or nil)
      local client <close> = connect(address)
      for _, n in ipairs { 10, 300, 250000, 999990, 1000001 } do
        local ok, why, errno = client:call("many", n)
        if not ok then
          answer(ok, why, errno)
          break
        end
      end
    end
  end)

  it("references that are none, functions and objects that lead nowhere", function()
    local references = {}
    for _, type in ipairs { 0x40, 0x41, 0x42 } do
      for _, payload in ipairs { "", "\1", "\x90", "\x92\xff\0", "\x92\1\5", "\x92\1\0", "\x92\1\1", "\x92\1\2",
        "\xdd\xff\xff\xff\xff" } do
        references[#references + 1] = ext(type, payload)
      end
    end
    local address = fake(function(message, write)
      local method, first = message[3], message[4] and message[4][1]
      if method == "give" then
        write(reply(message, "\x91" .. references[first]))
      else
        write(reply(message, "\xc0", "\x92\1\xa2no"))
      end
    end, kin)
    for i in ipairs(references) do
      local client <close> = connect(address)
      local ok, value, errno = client:call("give", i)
      if not ok then
        answer(ok, value, errno)
      elseif value ~= nil then
        pcall(function() return value() end)
        pcall(function() return value:now() end)
        pcall(function() return value.now end)
        pcall(function() value.now = 1 end)
        pcall(function() return value(nil, nil) end) -- as for does
        pcall(tostring, value)
        pcall(ipc.rpc.release, value)
        pcall(ipc.rpc.release, value)
      end
    end
    collectgarbage()
    collectgarbage()
  end)

  it("streams that are none, and such as never end and never give", function()
    local nexts = { "\xc0", "\1", "\x90", "\x91\1", "\x92\1\xc3", "\x92\x91\1\xc2", "\x92\x91\xc0\xc2", "\x92\x80\xc2",
      "\x92\x90\1",
      "\x91\x92\1\xc3", "\x92\x90\xc2",
      "\x92\x92\x91\5\x91\6\xc3" } -- the last one is good
    local asked = 0
    local address = fake(function(message, write)
      local method, first = message[3], message[4] and message[4][1]
      if method == "give" then
        asked = 0
        write(reply(message, "\x91" .. ext(0x40, "\x92" .. pack(first) .. "\2")))
      elseif method == "$next" then
        local id = ipc.unpack(first.data)[1]
        asked = asked + 1
        -- A stream of nothing that is slow may be a good one: it is ended here.
        write(reply(message, asked > 3000 and "\x92\x90\xc3" or nexts[id]))
      else
        write(reply(message, "\xc0", "\x92\1\xa2no"))
      end
    end, kin)
    for i in ipairs(nexts) do
      local client <close> = connect(address)
      local ok, stream = client:call("give", i)
      assert.is_true(ok, stream)
      local n, last = 0, nil
      pcall(function()
        for value in stream do
          n, last = n + 1, value
          if n > 1000 then break end
        end
      end)
      if i == #nexts then assert.are.same({ 2, 6 }, { n, last }) end
    end
  end)
end)
