-- What ipc.rpc sends and receives by: core.rpc. Messages are checked against bytes
-- written out as MessagePack-RPC has them, keys against the vectors of RFC 4231.
local core = require "ipc.core"
local ipc = require "ipc"

local E = ipc.errno
local peer = require "spec.support.peer"
local rpc = core.rpc
require "ipc.rpc.future" -- what futures can do

local function bytes(hex)
  return (hex:gsub("%s+", ""):gsub("%x%x", function(c) return string.char(tonumber(c, 16)) end))
end

-- A wire, and the bare stream at the other end.
local function half(limits)
  local a, b = assert(ipc.pair("unix", { unit = "stream" }))
  return rpc.wire(a, limits), b, a
end

local function pair(address, limits)
  local a, b = assert(ipc.pair(address, address == "unix" and { unit = "stream" } or nil))
  return rpc.wire(a, limits), rpc.wire(b, limits), a, b
end

local function sent(encode, ...)
  local x, b = half()
  assert.is_true(x[encode](x, ...))
  local size = x:unsent()
  assert.is_true(x:flush())
  return size == 0 and "" or assert(b:read(size, 1))
end

local function taken(data, ...)
  local x, b = half()
  for name, value in pairs(... or {}) do
    x[name](x, value)
  end
  if #data < 50000 then
    assert(b:send(data))
    return x:recv(1)
  end
  local results
  ipc.loop.run(function()
    ipc.loop.go(function() assert(b:send(data)) end)
    results = table.pack(x:recv(5))
  end)
  return table.unpack(results, 1, results.n)
end

local FRAMES <const> = "pipe?duplex=true"
local ways = { "unix", FRAMES, peer.has "shm" and "shm" or nil }

describe("messages of calls", function()
  it("are MessagePack-RPC", function()
    assert.are.equal(bytes "94 00 01 a3 616464 92 01 02", sent("request", 1, "add", 1, 2))
    assert.are.equal(bytes "94 00 ce ffffffff a1 66 90", sent("request", 0xFFFFFFFF, "f"))
    assert.are.equal(bytes "94 00 00 a1 66 93 c0 01 c0", sent("request", 0, "f", nil, 1, nil))
    assert.are.equal(bytes "93 02 a1 66 91 c3", sent("notify", "f", true))
    assert.are.equal(bytes "94 01 07 c0 92 01 c0", sent("reply", 7, 1, nil))
    assert.are.equal(bytes "94 01 07 c0 90", sent("reply", 7))
    assert.are.equal(bytes "94 01 07 c0 c0", sent("result", 7))
    assert.are.equal(bytes "94 01 07 c0 05", sent("result", 7, 5))
    assert.are.equal(bytes "94 01 07 c0 92 05 c0", sent("result", 7, 5, nil))
    assert.are.equal(bytes "94 01 07 92 00 a2 6e6f c0", sent("fail", 7, { 0, "no" }))
    assert.are.equal(bytes "94 00 01 a5 2463616c6c 93 81 a1 74 05 a1 66 91 01",
      sent("call", 1, { t = 5 }, "f", 1))
    assert.are.equal(bytes "94 00 01 a7 24696e766f6b65 93 03 a1 6d 91 01", sent("invoke", 1, nil, 3, "m", 1))
    assert.are.equal(bytes "94 00 01 a5 2463616c6c 93 80 a7 24696e766f6b65 93 03 c0 90",
      sent("invoke", 1, ipc.map {}, 3))
  end)

  for _, way in ipairs(ways) do
    it("arrive as they were sent, over " .. way, function()
      local x, y = pair(way)
      x:request(1, "f", 1, nil, { 3 }, nil)
      x:notify("n", "a")
      x:invoke(2, { deadline = 1 }, "ref", nil, nil, 4, nil)
      y:reply(3, nil, 2, nil)
      y:fail(4, "no")
      assert.is_true(x:flush())
      assert.is_true(y:drain(1))
      assert.are.same({ 0, 1, "f", 1, nil, { 3 }, nil, n = 7 }, table.pack(y:recv(1)))
      assert.is_true(y:ready())
      assert.are.same({ 2, "n", "a", n = 3 }, table.pack(y:recv(1)))
      assert.are.same({ 0, 2, "$call", { deadline = 1 }, "$invoke", "ref", nil, nil, 4, nil, n = 10 },
        table.pack(y:recv(1)))
      assert.is_false(y:ready())
      assert.are.same({ nil, "timeout", E.ETIMEDOUT, n = 3 }, table.pack(y:recv(0)))
      x:spread(true)
      assert.are.same({ 1, 3, nil, nil, 2, nil, n = 6 }, table.pack(x:recv(1)))
      assert.are.same({ 1, 4, "no", n = 3 }, table.pack(x:recv(1)))
      y:result(5, 6)
      y:reply(6, 1, 2)
      assert.is_true(y:flush())
      assert.are.same({ 1, 5, nil, 6, n = 4 }, table.pack(x:recv(1)))
      x:spread(false)
      assert.are.same({ 1, 6, nil, { 1, 2 }, n = 4 }, table.pack(x:recv(1)))
    end)

    it("of any number and size go on when there is room again, over " .. way, function()
      local x, y = pair(way)
      local big, got = ("x"):rep(100000), 0
      for i = 1, 40 do
        assert.is_true(x:request(i, "f", big, i))
      end
      local out = x:flush()
      while got < 40 do
        local kind, id, _, text, n = y:recv(0.01)
        if kind then
          got = got + 1
          assert.are.same({ 0, got, got }, { kind, id, n })
          assert.is_true(text == big)
        end
        if not out then
          out = x:flush()
          assert.is_not_nil(out)
        end
      end
      assert.is_true(x:drain(1))
      assert.are.equal(0, x:unsent())
      assert.are.equal(nil, (y:recv(0)))
    end)
  end

  it("are found in pieces of one byte", function()
    local x, b = half()
    local first = ipc.pack { 0, 1, "f", { { a = ("x"):rep(300) }, 1.5, "z" } }
    local message = first .. ipc.pack { 2, "n", {} }
    for i = 1, #message do
      assert.are.equal(nil, (x:recv(0)))
      if i == 10 then
        assert.are.equal(9, x:partial())
      end
      assert(b:send(message:sub(i, i)))
      if i == #first then
        assert.are.same({ 0, 1, "f", { a = ("x"):rep(300) }, 1.5, "z", n = 6 }, table.pack(x:recv(1)))
        assert.are.equal(0, x:partial())
      end
    end
    assert.are.same({ 2, "n" }, { x:recv(1) })
  end)

  it("are taken in any width, with names of bytes", function()
    assert.are.same({ 0, 13, "a", n = 4 },
      table.pack(taken(bytes "dd00000004 cc00 d3000000000000000d c40161 dc0001 c0")))
    assert.are.same({ 2, "a" }, { taken(bytes "dc0003 d002 da000161 dd00000000") })
  end)

  it("that are none end the connection, and it stays so", function()
    for _, hex in ipairs { "c1", "474554", "160301", "81", "92 00 01", "95 00", "90", "c0", "cb", "c6ffffffff",
      "dc0005",
      "ddffffffff", "94 00 01 c1" } do
      local x, b = half()
      assert(b:send(bytes(hex)))
      assert.are.equal(E.EBADMSG, select(3, x:recv(1)))
      assert(b:send(bytes "93 02 a1 66 90"))
      assert.are.equal(E.EBADMSG, select(3, x:recv(1)))
    end
  end)

  it("that are arrays and nothing else are refused one by one", function()
    for _, hex in ipairs { "94 02 a1 66 90 00", "93 00 01 a1 66", "94 03 01 a1 66 90", "94 ff 01 a1 66 90",
      "94 c0 01 a1 66 90",
      "94 00 ff a1 66 90", "94 00 cf 0000000100000000 a1 66 90", "94 00 cb 3ff0000000000000 a1 66 90",
        "94 00 a1 31 a1 66 90",
      "94 00 c0 a1 66 90", "94 01 d0 80 c0 c0", "93 02 05 90", "93 02 a1 66 01", "93 02 c0 90",
        "94 cb 0000000000000000 01 a1 66 90",
    } do
      local x, b = half()
      assert(b:send(bytes(hex .. "93 02 a1 66 90")))
      assert.are.equal(E.EBADMSG, select(3, x:recv(1)), hex)
      assert.are.same({ 2, "f" }, { x:recv(1) })
    end
  end)

  it("of requests that cannot be run say whom to answer", function()
    for _, hex in ipairs { "94 00 09 05 90", "94 00 09 c0 90", "94 00 09 a1 66 01", "94 00 09 a1 66 80",
      "94 00 09 a1 66 c0",
      "94 00 09 a5 2463616c6c 90", "94 00 09 a5 2463616c6c 93 80 05 90", "94 00 09 a7 24696e766f6b65 93 01 c0 05",
      "94 00 09 a1 66 91 81 c0 01", "94 00 09 a1 66 91 81 cb7ff8000000000000 01" } do
      local kind, id, text = taken(bytes(hex))
      assert.are.same({ 3, 9, "string" }, { kind, id, type(text) }, hex)
    end
    local kind, id, text = taken(ipc.pack { 0, 9, ("m"):rep(101), {} })
    assert.are.same({ 3, 9 }, { kind, id })
    assert.is_truthy(text:find("101", 1, true) and text:find("100", 1, true), text)
  end)

  it("of notifications that cannot be taken say why in the place of a name", function()
    for _, hex in ipairs { "93 02 a1 66 91 81 c0 01", "93 02 a5 2463616c6c 93 80 a1 66 91 81 c0 01",
      "93 02 a7 24696e766f6b65 93 01 c0 91 81 c0 01" } do
      local kind, name, text = taken(bytes(hex .. "93 02 a1 66 90"))
      assert.are.same({ 2, nil, "string" }, { kind, name, type(text) }, hex)
    end
    local x, b = half { params = 2, method = 3 }
    assert(b:send(ipc.pack { 2, "f", { 1, 2, 3 } } .. ipc.pack { 2, "long", {} } .. ipc.pack { 2, "f", {} }))
    local text = "a notification cannot be taken: %s (the option '%s' here)"
    assert.are.same({ 2, nil, text:format("3 arguments, but the limit is 2", "params") }, { x:recv(1) })
    assert.are.same({ 2, nil, text:format("a method's name of 4 bytes, but the limit is 3", "method") }, { x:recv(1) })
    assert.are.same({ 2, "f" }, { x:recv(1) })
  end)

  it("of results that cannot be taken are errors to who waits", function()
    local many = {}
    for i = 1, 300 do many[i] = i end
    local kind, id, problem, more = taken(ipc.pack { 1, 9, ipc.null, many }, { spread = true })
    local text = "the reply cannot be taken: 300 results, but the limit is 250 (the option 'params' here)"
    assert.are.same({ 1, 9, { 0, text, { errno = E.EINVAL } }, nil }, { kind, id, problem, more })
    assert.are.same({ 1, 9, nil, many }, { taken(ipc.pack { 1, 9, ipc.null, many }) })
    kind, id, problem, more = taken(bytes "94 01 09 c0 81 c0 01")
    assert.are.same({ 1, 9, "string", E.EINVAL, nil }, { kind, id, type(problem[2]), problem[3].errno, more })
  end)

  it("cost no more than is allowed", function()
    local many = "\x94\0\1\xa1f\xdd" .. (">I4"):pack(300000) .. ("\1"):rep(300000)
    local before = collectgarbage "count"
    assert.are.same({ 3, 1 }, { (function(k, i) return k, i end)(taken(many)) })
    assert.is_true(collectgarbage "count" - before < 4000)
    local x, b = half { bytes = 100, depth = 3, values = 20, tables = 4, keys = 1, params = 5, method = 3 }
    local function try(...)
      assert(b:send(ipc.pack { 0, 1, ... }))
      return (x:recv(1))
    end
    assert.are.equal(0, try("abc", { 1, 2, 3, 4, 5 }))
    assert.are.equal(3, try("abcd", {}))
    assert.are.equal(3, try("a", { 1, 2, 3, 4, 5, 6 }))
    assert.are.equal(0, try("a", { { { {} } } }))
    assert.are.equal(3, try("a", { { { { {} } } } }))
    assert.are.equal(3, try("a", { {}, {}, {}, {}, { {} } }))
    assert.are.equal(3, try("a", { { [true] = 1, [false] = 2 } }))
    assert.are.equal(3, try("a", { { 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20 } }))
    assert.is_true(x:limit { params = 1 })
    assert.are.equal(3, try("a", { 1, 2 }))
    assert(b:send(ipc.pack { 0, 1, "a", { ("x"):rep(100) } }))
    assert.are.equal(E.EMSGSIZE, select(3, x:recv(1)))
    assert.are.equal(E.EMSGSIZE, select(3, x:recv(1)))
    for _, hex in ipairs { "94 00 01 a1 66 dd ffffffff", "94 00 01 db ffffffff", "94 00 01 c6 ffffffff",
      "94 00 01 c9 ffffffff 05",
      "94 00 01 a1 66 df ffffffff" } do
      assert.are.equal(E.EMSGSIZE, select(3, taken(bytes(hex))))
    end
    local deep = "\x94\0\1\xa1f\x91" .. ("\x91"):rep(1000000) .. "\1"
    assert.are.same({ 3, 1 }, { (function(k, i) return k, i end)(taken(deep)) })
  end)

  it("where the channel carries messages are checked each", function()
    local a, b = assert(ipc.pair(FRAMES))
    local x = rpc.wire(a, { bytes = 1000 })
    local function try(message)
      assert(b:send(message))
      return select(3, x:recv(1))
    end
    assert.are.equal(E.EBADMSG, try "")
    assert.are.equal(E.EBADMSG, try "\xc1")
    assert.are.equal(E.EBADMSG, try(ipc.pack { 0, 1, "f", {} }:sub(1, -2)))
    assert.are.equal(E.EBADMSG, try(ipc.pack { 0, 1, "f", {} } .. "\0"))
    assert.are.equal(E.EMSGSIZE, try(ipc.pack { 0, 1, "f", { ("x"):rep(1000) } }))
    assert(b:put { 2, "f", {} })
    assert.are.same({ 2, "f" }, { x:recv(1) })
  end)

  it("that do not fit the channel are not written", function()
    local a = assert(ipc.pair(FRAMES, { maxsize = 1000 }))
    local x = rpc.wire(a)
    local ok, message, errno = x:request(1, "f", ("x"):rep(2000))
    assert.are.same({ nil, E.EMSGSIZE, 0 }, { ok, errno, (x:unsent()) })
    assert.is_truthy(message:find("1000", 1, true), message)
  end)

  it("with values that cannot be packed leave nothing behind, and say where those are", function()
    local x, y = pair "unix"
    local cycle = {}
    cycle[1] = cycle
    for _, value in ipairs { coroutine.create(print), io.stdout, cycle, { [0 / 1] = { coroutine.create(print) } } } do
      for _, call in ipairs {
        function() x:request(1, "f", 1, { x = value }) end, function() x:notify("f", 1, { x = value }) end,
        function() x:reply(1, 1, { x = value }) end, function() x:result(1, { x = value }) end,
        function() x:call(1, {}, "f", 1, { x = value }) end,
      } do
        local ok, problem = pcall(call)
        assert.is_false(ok)
        assert.is_truthy(problem:find("^bad argument to a call: argument 2%.x") or problem:find("^result [12]%.x"),
          problem)
      end
    end
    assert.is_false(pcall(x.fail, x, 1, { coroutine.create(print) }))
    assert.are.equal(0, x:unsent())
    x:notify "end"
    assert.is_true(x:flush())
    assert.are.same({ 2, "end" }, { y:recv(1) })
  end)
end)

describe("values that stay", function()
  it("become extensions, and are told", function()
    local x, y = pair "unix"
    local f, object = print, setmetatable({}, { [rpc.mark] = true })
    assert.are.same({ nil, f }, { x:request(1, "m", { f }) })
    assert.are.same({ nil, object }, { x:notify("m", { { a = object } }) })
    assert.are.equal(0, x:unsent())
    local refs = x:refs()
    assert.are.equal(refs, x:refs())
    refs[f], refs[object] = "\x40one", "\xffmany"
    local ok, list = x:request(1, "m", { f, f }, object)
    assert.is_true(ok)
    assert.are.same({ f, f, object }, list)
    assert.is_true(x:request(2, "m", setmetatable({ 1 }, {})))
    assert.is_false(pcall(x.request, x, 1, "m", { [f] = 1 }))
    assert.is_false(pcall(x.request, x, 1, "m", { [object] = 1 }))
    ok, list = x:reply(3, f)
    assert.are.same({ true, { f } }, { ok, list })
    assert.is_true(x:flush())
    y:exts(function(type, data) return type .. data end)
    assert.are.same({ 0, 1, "m", { "64one", "64one" }, "-1many" }, { y:recv(1) })
    assert.are.same({ 0, 2, "m", { 1 } }, { y:recv(1) })
    y:exts(nil)
    local _, _, _, results = y:recv(1)
    assert.are.equal("ipc.ext: type 64, 3 bytes", tostring(results[1]))
  end)

  it("are held by nobody for it", function()
    local x = half()
    local refs, weak = x:refs(), setmetatable({}, { __mode = "v" })
    do
      local f = function() return x end
      refs[f], weak[1] = "\x40f", f
      x:request(1, "m", f)
    end
    collectgarbage()
    collectgarbage()
    assert.is_nil(weak[1])
    assert.is_nil(next(refs))
  end)

  it("that are refused make a request or notification invalid, and its text is theirs", function()
    local x, b = half()
    local why
    x:exts(function() error(why, 0) end)
    for _, value in ipairs { "no 100%s of it", "" } do
      why = value
      assert(b:send(ipc.pack { 0, 1, "f", { ipc.ext(5, "x") } }))
      assert.are.same({ 3, 1, value }, { x:recv(1) })
      assert(b:send(ipc.pack { 1, 1, ipc.null, { { ipc.ext(5, "x") } } }))
      assert.are.same({ 1, 1, { 0, "the reply cannot be taken: " .. value, { errno = E.EINVAL } } }, { x:recv(1) })
      assert(b:send(ipc.pack { 2, "f", { ipc.ext(5, "x") } }))
      assert.are.same({ 2, nil, "a notification cannot be taken: " .. value }, { x:recv(1) })
    end
    for _, f in ipairs { function() error {} end, function() end, function() coroutine.yield() end,
      function() return nil end, function() error() end } do
      x:exts(f)
      assert(b:send(ipc.pack { 0, 1, "f", { { [ipc.ext(5, "x")] = 1 } } }))
      assert.are.equal(3, (x:recv(1)))
    end
  end)
end)

describe("calls that the wire runs", function()
  local function trap(problem)
    return "trapped: " .. tostring(problem)
  end
  local exports = {
    add = function(a, b) return a + b end, none = function() end, two = function() return 1, nil end,
    bad = function() error("oops", 0) end, thread = function() return coroutine.create(print) end,
    special = function() return print end, ["not"] = 5,
  }

  it("are answered, in the order of either side", function()
    for _, way in ipairs(ways) do
      local x, y = pair(way)
      for spread = 0, 1 do
        x:spread(spread == 1)
        y:spread(spread == 1)
        x:request(1, "add", 1, 2)
        x:request(2, "none")
        x:request(3, "two")
        x:notify("other", 1)
        assert.is_true(x:flush())
        assert.are.same({ 2, "other", 1 }, { y:work(exports, 1, false, trap) })
        assert.are.same({ 1, 1, nil, 3, n = 4 }, table.pack(x:recv(1)))
        assert.are.same({ 1, 2, nil, n = 4 - spread }, table.pack(x:recv(1)))
        local third = table.pack(x:recv(1))
        assert.are.equal(5 - (1 - spread), third.n)
      end
      assert.are.same({ nil, "timeout", E.ETIMEDOUT }, { y:work(exports, 0, true, trap) })
    end
  end)

  it("come back where Lua must answer", function()
    local x, y = pair "unix"
    local function try(method, ...)
      x:request(7, method, ...)
      assert.is_true(x:flush())
      return y:work(exports, 1, false, trap)
    end
    assert.are.same({ 4, 7, false, "trapped: oops" }, { try "bad" })
    assert.are.same({ 4, 7, true, print }, { try "special" })
    local kind, id, ok, problem = try "thread"
    assert.are.same({ 4, 7, nil }, { kind, id, ok }) -- the function has not failed
    assert.is_truthy(problem:find("result 1: a thread cannot be packed", 1, true), problem)
    assert.are.same({ 0, 7, "nothing", 1 }, { try("nothing", 1) })
    assert.are.same({ 0, 7, "not" }, { try "not" })
    exports.touch = function() return y:touch(), y:touch() end
    assert.are.same({ 4, 7, true, 7, nil, n = 5 }, table.pack(try "touch"))
    assert.is_nil(y:touch())
    exports.pass = function() return y:pass(true) end
    assert.is_true(try "pass")
    assert.are.same({ 1, 7, nil, true }, { x:recv(1) })
    assert.are.same({ 0, 7, "add", 1, 2 }, { try("add", 1, 2) })
    assert.is_true(y:pass(false))
  end)

  it("may wait in tasks, and then come back", function()
    for _, way in ipairs(ways) do
      local x, y = pair(way)
      ipc.loop.run(function()
        local gate = ipc.loop.queue()
        local server = ipc.loop.go(function()
          return table.pack(y:work({ wait = function(n) return n, gate:get() end }, 5, true, trap))
        end)
        assert.is_true(x:request(1, "wait", 5))
        assert.is_true(x:flush())
        ipc.loop.go(function() gate:put "opened" end)
        local ok, results = server:wait()
        assert.is_true(ok)
        assert.are.same({ 4, 1, true, 5, "opened", n = 5 }, results)
      end)
    end
  end)

  it("that fail in a task are over", function()
    local x, y = pair "unix"
    ipc.loop.run(function()
      assert.is_true(x:request(1, "bad") and x:flush())
      assert.are.same({ 4, 1, false, "trapped: oops" }, { y:work(exports, 5, true, trap) })
      assert.is_nil(y:touch())
    end)
  end)

  it("are exchanged while others have their turn", function()
    for _, way in ipairs(ways) do
      local x, y = pair(way)
      x:spread(true)
      y:spread(true)
      local turns = 0
      ipc.loop.run(function()
        local server = ipc.loop.go(function() return y:work(exports, nil, true, trap) end)
        local other = ipc.loop.go(function()
          while true do
            ipc.sleep(0.001)
            turns = turns + 1
          end
        end)
        local last = ipc.now() + 10
        local i = 0
        repeat
          i = i + 1
          assert.is_true(x:request(i, "add", i, 1))
          assert.are.same({ 1, i, nil, i + 1 }, { x:exchange(5, true) })
        until turns >= 3 or ipc.now() > last
        x:notify "end"
        assert.is_true(x:flush())
        assert.are.same({ true, 2, "end" }, { server:wait() })
        other:cancel()
      end)
      assert.is_true(turns >= 3)
    end
  end)

  it("are over when they have failed, in tasks too", function()
    local x, y = pair "unix"
    for _, run in ipairs { ipc.loop.run, pcall } do
      x:request(4, "bad")
      assert.is_true(x:flush())
      local done
      run(function() done = { y:work(exports, 1, false, trap) } end)
      assert.are.same({ 4, 4, false, "trapped: oops" }, done)
      assert.is_nil(y:touch())
    end
  end)

  it("that a finaliser closes the channel of end closed", function()
    for _, way in ipairs(ways) do
      local x, y, _, b = pair(way)
      x:request(1, "close")
      assert.is_true(x:flush())
      local done = { y:work({ close = function() b:close() return 1 end }, 1, false, trap) }
      assert.are.same({ nil, "closed" }, { done[1], done[2] })
      assert.is_true(y:request(1, "f"))
      assert.are.equal("closed", select(2, y:flush()))
      assert.are.equal("closed", select(2, y:exchange(1)))
      assert.are.equal("closed", select(2, y:drain(1)))
      assert.are.equal("closed", select(2, y:recv(1)))
      assert.is_false(y:ready())
    end
  end)
end)

describe("wires", function()
  for _, way in ipairs(ways) do
    it("give an answer that is here already, and nothing else, over " .. way, function()
      local x, y, _, b = pair(way)
      assert.are.equal(0, select("#", x:answer()))
      y:result(1, "a")
      y:fail(2, "no")
      y:notify("n", 1)
      y:result(3, "c")
      assert.is_true(y:flush())
      assert.are.same({ 1, 1, nil, "a", n = 4 }, table.pack(x:recv(1)))
      assert.are.same({ 1, 2, "no", n = 3 }, table.pack(x:answer()))
      assert.are.equal(0, select("#", x:answer()))
      assert.are.same({ 2, "n", 1, n = 3 }, table.pack(x:recv(1)))
      assert.are.same({ 1, 3, nil, "c", n = 4 }, table.pack(x:answer()))
      assert.are.equal(0, select("#", x:answer()))
      b:close()
      assert.are.equal(0, select("#", x:answer()))
      assert.are.equal("closed", select(2, x:recv(1)))
    end)
  end

  it("give no answer that is broken off or none", function()
    local x, b = half()
    assert(b:send "\x93\x02\xa1n\x90\x94\x01\x05\xc0")
    assert.are.same({ 2, "n", n = 2 }, table.pack(x:recv(1)))
    assert.are.equal(0, select("#", x:answer()))
    assert(b:send "\x07\x94\x01\xa1x")
    assert.are.same({ 1, 5, nil, 7, n = 4 }, table.pack(x:recv(1)))
    assert(b:send "\xc0\xc0")
    assert.are.equal(0, select("#", x:answer()))
    assert.are.equal(E.EBADMSG, select(3, x:recv(1)))
    assert.are.equal(0, select("#", x:answer()))
  end)

  for _, way in ipairs(ways) do
    it("settle what is in flight and begin no more than may be, over " .. way, function()
      local x, y = pair(way)
      x:flight(100, math.huge)
      assert.are.equal(0, select("#", x:begin({}, "f"))) -- it is not plain
      x:plain(true)
      x:spread(true)
      local futures = {}
      for i = 1, 100 do futures[i] = x:begin({}, "f", i, "text", nil, true, { i }) end
      assert.are.equal(0, select("#", x:begin({}, "f")))
      assert.are.equal(0, select("#", x:ask "f"))
      assert.are.equal(100, x:flying())
      assert.are.equal(futures[7], x:pending(7))
      assert.is_false(pcall(x.expect, x, 101, io.stdout))
      assert.is_true(x:flush())
      for i = 1, 100 do
        assert.are.same({ 0, i, "f", i, "text", nil, true, { i }, n = 8 }, table.pack(y:recv(1)))
      end
      for i = 100, 1, -1 do
        if i == 50 then
          y:fail(i, "no")
        elseif i % 3 == 0 then
          y:reply(i, i, i)
        else
          y:reply(i, i)
        end
      end
      assert.is_true(y:flush())
      local kind, id, problem, one = x:recv(1) -- the first is the caller's
      assert.are.same({ 1, 100, nil, 100 }, { kind, id, problem, one })
      assert.are.equal(futures[100], x:forget(100))
      local settled = 1
      while settled < 100 do
        local two
        kind, id, problem, one, two = x:answer()
        if kind then
          assert.are.equal(1, kind)
          if id == 50 then
            assert.are.equal("no", problem)
          else
            assert.are.same({ id, id, id % 3 }, { one, two, 0 })
          end
          assert.are.equal(futures[id], x:forget(id))
        end
        settled = 100 - x:flying()
      end
      assert.is_nil(x:next())
      for i, future in ipairs(futures) do
        assert.are.equal(i % 3 ~= 0 and i ~= 50 and i ~= 100, future.done)
        if future.done then
          assert.are.same({ true, i, n = 2 }, table.pack(future:wait()))
        end
      end
      assert.are.equal(101, x:ask("g", 1))
      assert.are.equal(true, x:forget(101))
      assert.is_nil(x:forget(101))
      assert.are.equal(0, x:flying())
    end)
  end

  local methods = { "request", "call", "invoke", "notify", "reply", "result", "fail", "flush", "drain", "unsent",
    "recv", "answer",
    "ready", "partial", "spread", "limit", "refs", "exts", "exchange", "work", "touch", "left", "pass", "flight",
    "plain", "flying", "id", "expect", "pending", "next", "forget", "ask", "begin" }

  it("take no nonsense", function()
    local x, _, a = half()
    local odd = { 0 / 0, math.huge, -1, 1.5, "1", {}, print, a, io.stdout, true, 2 ^ 53, math.mininteger,
      coroutine.create(print) }
    for _, name in ipairs(methods) do
      for _, self in ipairs(odd) do
        assert.is_false(pcall(x[name], self))
      end
      assert.is_false(pcall(x[name]))
      if name ~= "recv" and name ~= "drain" and name ~= "exchange" and name ~= "flush" then
        for _, one in ipairs(odd) do
          pcall(x[name], x, one)
          for _, two in ipairs(odd) do
            pcall(x[name], x, 1, one, two)
            pcall(x[name], x, one, two, "m", one, two)
          end
        end
      end
    end
    for _, id in ipairs { -1, 2 ^ 32, 1.5, "1", {}, 0 / 0, math.huge } do
      assert.is_false(pcall(x.request, x, id, "m"))
      assert.is_false(pcall(x.reply, x, id))
    end
    assert.is_false(pcall(x.recv, x, 0 / 0))
    assert.is_false(pcall(x.recv, x, "1"))
    assert.is_false(pcall(x.exchange, x, {}))
    assert.is_false(pcall(x.fail, x, 1, nil))
    for _, limits in ipairs { 5, { bytes = 0 }, { bytes = 1.5 }, { params = -1 }, { params = 2 ^ 53 },
      { depth = 1e9 }, { what = 1 },
      { [1] = 1 }, { keys = "1" }, { method = 0 / 0 } } do
      assert.is_false(pcall(x.limit, x, limits))
      assert.is_false(pcall(rpc.wire, a, limits))
    end
    local r, w = assert(ipc.pipe())
    for _, channel in ipairs { 1, "x", {}, io.stdout, r, w, x, print } do
      assert.is_false(pcall(rpc.wire, channel))
    end
  end)

  it("may be used by finalisers in the middle of anything", function()
    for _, way in ipairs(ways) do
      local x, y, a = pair(way)
      local n, got = 0, {}
      local function trash()
        setmetatable({}, { __gc = function()
          n = n + 1
          if n < 3000 then
            trash()
          end
          pcall(y.request, y, n, "inner", { n })
          pcall(y.flush, y)
          local kind, id = y:recv(0)
          if kind == 0 then
            got[id] = (got[id] or 0) + 1
          end
        end })
      end
      for _ = 1, 20 do
        trash()
      end
      collectgarbage "generational"
      for i = 1, 300 do
        assert(x:request(i, "f", { { { i } }, ("x"):rep(i * 20) }, ("y"):rep(i)))
        x:drain(1)
        x:recv(0)
        local kind, id = y:recv(0)
        if kind == 0 then
          got[id] = (got[id] or 0) + 1
        end
      end
      repeat
        local kind, id = y:recv(0)
        if kind then
          got[id] = (got[id] or 0) + 1
        end
      until not kind
      collectgarbage "incremental"
      n = 1e9
      for i = 1, 300 do
        assert.are.equal(1, got[i], way .. " " .. i)
      end
      a:close()
    end
  end)

  it("of a finaliser that closes the channel in the middle answer closed", function()
    for _, way in ipairs(ways) do
      local x, y, _, b = pair(way)
      for i = 1, 200 do
        assert(x:request(i, "f", { { {} } }, ("z"):rep(3000)))
      end
      local out = x:flush()
      y:exts(function() b:close() return 1 end)
      assert(x:request(201, "f", ipc.ext(1, "x"), { {}, { ("x"):rep(5000) } }))
      local kind, message
      for _ = 1, 1000 do
        kind, message = y:recv(0.01)
        if message == "closed" then
          break
        end
        out = out or x:flush()
        if out then
          out = x:flush()
        end
      end
      assert.are.same({ nil, "closed" }, { kind, message })
    end
  end)

  it("of a child of a plain fork are not its own", function()
    local x, _, a = half()
    assert(x:request(1, "f"))
    local child = assert(ipc.fork(function()
      ipc.parent:put { select(3, x:flush()), select(3, x:recv(0)), select(3, x:exchange(0)) }
    end))
    local answers = assert(child:get(5))
    for i = 1, 3 do
      assert.is_true(answers[i] == E.ECHILD or answers[i] == E.EPIPE)
    end
    child:wait(5)
    assert.is_true(x:flush())
    a:close()
  end)
end)

describe("keys", function()
  it("are proved as RFC 4231 says", function()
    local function hex(s)
      return (s:gsub(".", function(c) return ("%02x"):format(c:byte()) end))
    end
    local rows = {
      { ("\x0b"):rep(20), "Hi There", "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7" },
      { "Jefe", "what do ya want for nothing?", "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843" },
      { ("\xaa"):rep(20), ("\xdd"):rep(50), "773ea91e36800e46854db8ebd09181a72959098b3ef8c122d9635514ced565fe" },
      { bytes "0102030405060708090a0b0c0d0e0f10111213141516171819", ("\xcd"):rep(50),
        "82558a389a443c0ea4cc819899f2083a85f0faa3e578f8077a2e3ff46729665b" },
      { ("\xaa"):rep(131), "Test Using Larger Than Block-Size Key - Hash Key First",
        "60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54" },
      { ("\xaa"):rep(131),
        "This is a test using a larger than block-size key and a larger than block-size data. The key "
        .. "needs to be hashed before being used by the HMAC algorithm.",
        "9b09ffa71b942fcb27635fbcd5b0e944bfdc63644f0713938a7f51535c3a35e2" },
    }
    for _, row in ipairs(rows) do
      assert.are.equal(row[3], hex(rpc.hmac(row[1], row[2])))
    end
    assert.are.equal("b613679a0814d9ec772f95d778c35fc5ff1697c493715653c6c712144292c5ad", hex(rpc.hmac("", "")))
  end)

  it("are compared, drawn, and nothing else is taken for one", function()
    assert.is_true(rpc.equal("", "") and rpc.equal("abc", "abc"))
    assert.is_false(rpc.equal("abc", "abd") or rpc.equal("abc", "ab") or rpc.equal("", "a"))
    assert.are.equal(32, #rpc.random(32))
    assert.are_not.equal(rpc.random(16), rpc.random(16))
    assert.are.equal("", rpc.random(0))
    assert.is_false(pcall(rpc.random, -1))
    assert.is_false(pcall(rpc.random, 257))
    for _, bad in ipairs { 1, {}, true } do
      assert.is_false(pcall(rpc.hmac, bad, ""))
      assert.is_false(pcall(rpc.equal, "", bad))
    end
  end)

  it("of processes say whether they live", function()
    assert.is_true(rpc.alive(ipc.pid()))
    assert.is_true(rpc.alive(1))
    local child = assert(ipc.fork(function() end))
    child:wait(5)
    assert.is_false(rpc.alive(child.pid))
    for _, none in ipairs { 0, -1, 1 << 40, math.mininteger } do
      assert.is_false(rpc.alive(none))
    end
    for _, bad in ipairs { 1.5, "x", {}, 0 / 0 } do
      assert.is_false(pcall(rpc.alive, bad))
    end
  end)
end)
