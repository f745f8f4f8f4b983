-- Servers of calls among clients that mean harm. A server in a process of its own is
-- given every hostile input that is known, by raw sockets: it goes on serving a healthy
-- client in the time it always takes, and does not grow.
local ipc = require "ipc"
local hostile = require "spec.support.hostile"
local inputs = require "spec.support.inputs"
local peer = require "spec.support.peer"

local E = ipc.errno
local LIMIT = peer.limit

local HELLO = inputs.HELLO
local pack, times, request, call, echo, ext = inputs.pack, inputs.times, inputs.request, inputs.call, inputs.echo,
  inputs.ext
local reference, response, complaint = inputs.reference, inputs.response, inputs.complaint
local closed, goes_on, refused = inputs.closed, inputs.goes_on, inputs.refused

describe("a server of calls goes on, and does not grow:", function()
  local target

  setup(function() target = hostile.serve() end)
  after_each(function() target:calm() end)
  teardown(function() target:close() end)

  local function attack(row)
    local raw = target:raw()
    raw:send(row[2])
    return { row = row, raw = raw }
  end

  local function finish(pending)
    local ok, why = xpcall(pending.row[3], debug.traceback, pending.raw)
    pending.raw:drop()
    if not ok then error(pending.row[1] .. ": " .. why, 0) end
  end

  for _, g in ipairs(inputs.groups) do
    it(g.name, function()
      local list = g.rows
      for _, row in ipairs(list) do finish(attack(row)) end
      local pending = {}
      local function calm()
        while #pending > 0 do finish(table.remove(pending)) end
      end
      target:undisturbed(function(i)
        if i % 5 == 0 then calm() end
        pending[#pending + 1] = attack(list[i % #list + 1])
      end, math.max(#list, g.often or 10), calm)
      target:steady(function()
        for _, row in ipairs(list) do finish(attack(row)) end
      end, g.often or math.max(3, 30 // #list))
    end)
  end
end)

describe("a server of calls under attack:", function()
  local target

  local function serve(options, client)
    target = hostile.serve(options, client)
    return target
  end

  after_each(function()
    if target then target:close() end
    target = nil
  end)

  it("one byte at a time", function()
    serve()
    local function slowly(bytes)
      local raw = target:raw()
      for i = 1, #bytes do raw:send(bytes:sub(i, i)) end
      return raw
    end
    local good = call("echo", "\x91\xda\1\0" .. ("d"):rep(256))
    local function attack()
      local raw = slowly(good)
      assert.are.equal(("d"):rep(256), response(raw, 1)[4])
      goes_on(raw)
      raw:drop()
      raw = slowly(echo("\x81\xc0\3"))
      refused(raw)
      raw:drop()
      raw = slowly "\xdc\0\x05\0\1\xa3add\x90\x90"
      closed(raw)
      raw:drop()
    end
    target:undisturbed(attack, 5)
    target:steady(attack, 10)
  end)

  it("a message in pieces costs as much as it is long", function()
    serve()
    local function seconds(n)
      local raw = target:raw()
      local before = target:measure(1).cpu
      raw:send(call("type", "\x91\xdb" .. (">I4"):pack(n)):sub(1, -1))
      for _ = 1, n // 64 do raw:send(("p"):rep(64)) end
      assert.are.same({ "string" }, { response(raw, 1)[4] })
      local cpu = target:measure(1).cpu - before
      raw:drop()
      target:measure()
      return cpu
    end
    -- Four times as long: 4 times the work, 16 if all were read again and again.
    local figures = {}
    for round = 1, hostile.rounds do
      local short, long = seconds(1 << 17), seconds(1 << 19)
      if long < 8 * short then return end
      figures[round] = ("%.1f ms, %.1f"):format(short * 1000, long * 1000)
    end
    error(table.concat(figures, "; "))
  end)

  it("200 connections half open", function()
    serve()
    local half = {}
    local function attack(i)
      for n = #half + 1, math.min(200, i * 20) do
        half[n] = target:raw()
        half[n]:send(n % 2 == 0 and "\x94\0\1\xa3" or "")
      end
    end
    local function calm()
      while #half > 0 do table.remove(half):drop() end
    end
    target:undisturbed(attack, 10)
    assert.are.equal(200, #half)
    calm()
    target:steady(function() attack(10) calm() end, 4)
  end)

  it("who says nothing, and who says half a message, is let go", function()
    serve { stall = 0.05 }
    local later = target:raw()
    later:send(call("add", "\x92\1\2"))
    assert.is_nil(response(later, 1)[3])
    later:send "\x94\0"
    closed(later)
    later:drop()
    target:measure()
    target:close()

    serve { first = 0.05 }
    while not target.client:call("add", 1, 2) do -- its first message came late
      target.client:close()
      target.client = target:connect()
    end
    local silent, half = target:raw(), target:raw()
    half:send "\x94\0\1\xa3"
    closed(silent)
    closed(half)
    for _, raw in ipairs { silent, half } do raw:drop() end
    target:measure()
    assert.is_true(target.client:call("add", 1, 2)) -- it is only idle
  end)

  it("one byte a while is no way to stay for ever", function()
    serve { stall = 0.1 }
    local raw = target:raw()
    assert.is_not_nil(raw:call(1, "add", 1, 2)) -- this was no matter of its first message
    local bytes = call("echo", "\x91\xdb\0\1\0\0")
    raw:send(bytes)
    local limit, open = ipc.now() + LIMIT, true
    while open and ipc.now() < limit do
      open = raw:send "d" and raw.channel:get(0.01) == nil and not select(2, raw:get(0))
    end
    assert.is_false(open)
    raw:drop()
    target:measure()
  end)

  it("more connections than the limit", function()
    serve { limit = 8 }
    local many = {}
    local function attack()
      for _ = 1, 24 do
        many[#many + 1] = target:raw()
        many[#many]:send(call("add", "\x92\1\2"))
      end
    end
    local function calm()
      while #many > 0 do table.remove(many):drop() end
    end
    target:undisturbed(function()
      calm()
      attack()
    end, 5, calm)
    attack()
    local ok, m = target.client:call "measure"
    assert.is_true(ok)
    assert.is_true(m.sessions <= 8, m.sessions .. " sessions")
    calm()
    target:steady(function() attack() calm() end, 5)
    local another <close> = target:connect()
    assert.are.equal(3, another.remote.add(1, 2))
  end)

  it("a client that never reads: its calls wait, memory does not", function()
    serve { unsent = 1 << 20, stall = 0.1, maxsize = 1 << 22 }
    local before = target:measure()
    local function attack()
      local raw = target:raw()
      raw.channel:settimeout(0)
      pcall(raw.send, raw, times(2000, call("big", "\x91" .. pack(100000))))
      raw.channel:settimeout(LIMIT)
      return raw
    end
    local most, list = 0, {}
    target:undisturbed(function()
      list[#list + 1] = attack()
      local ok, m = target.client:call "measure"
      assert.is_true(ok)
      most = math.max(most, m.resident - before.resident)
    end, 4, function()
      while #list > 0 do table.remove(list):drop() end
    end)
    -- 200 MB each are asked for.
    assert.is_true(most < 24 * hostile.resident, most .. " KiB more")
    -- Nobody reads: it is closed from over there.
    local raw = attack()
    target:measure()
    raw:drop()
    target:steady(function()
      local another = attack()
      target.client:call("add", 1, 2)
      another:drop()
    end, 5)
  end)

  it("what is said in $hello, or named, is not kept beyond what is of use", function()
    serve()
    local before = target:measure()
    local junk = {}
    for i = 1, 20000 do junk[i] = { i } end
    for _ = 1, 8 do
      local raw = target:raw()
      raw:send(call("$hello", pack { 1, { name = ("n"):rep(1 << 20), features = junk,
        limits = { references = junk, timeout = junk, junk = junk } } }))
      assert.is_nil(response(raw, 1)[3])
      goes_on(raw)
    end
    local now = target:measure(8)
    assert.is_true(now.lua - before.lua < 1024, (now.lua - before.lua) .. " KiB of Lua's")
  end)

  it("a client that reads late: it gets all of its replies", function()
    serve()
    for _ = 1, 3 do
      local futures = {}
      for i = 1, 6 do futures[i] = target.client:async("slowly", 1 << 20) end
      -- Another connection is served meanwhile.
      local other <close> = target:connect()
      for _ = 1, 50 do assert.is_true(other:call("sleep", 0.0005)) end
      for i = 1, 6 do
        local ok, text = futures[i]:wait()
        assert.is_true(ok, text)
        assert.are.equal(1 << 20, #text)
      end
    end
    target:measure()
  end)

  it("more calls at once than the limit are refused, the others answered", function()
    serve { calls = 10 }
    local function attack()
      local raw = target:raw()
      local bytes = {}
      for i = 1, 40 do bytes[i] = call("wait", nil, pack(i)) end
      raw:send(table.concat(bytes))
      for _ = 1, 30 do complaint(assert(raw:get())) end
      assert.is_true(target.client:call "go")
      for _ = 1, 10 do assert.is_nil(assert(raw:get())[3]) end
      goes_on(raw)
      raw:drop()
    end
    target:undisturbed(attack, 3)
    target:steady(attack, 3)
  end)

  it("flooded with calls that are never waited for, others are served", function()
    serve()
    local flood = {}
    local bytes = times(500, call("add", "\x92\1\2"))
    local function attack()
      for i = 1, 4 do
        flood[i] = flood[i] or target:raw()
        flood[i].channel:send(bytes, nil, 0)
        while flood[i].channel:recv(0) do end
      end
    end
    for _ = 1, 100 do
      attack()
      assert.are.same({ true, 3 }, { target.client:call("add", 1, 2) })
    end
    for _, raw in ipairs(flood) do raw:drop() end
    target:measure()
  end)

  it("disconnects in the middle of a call, and of a reply", function()
    serve()
    local function attack()
      local raw = target:raw()
      raw:send(call("sleep", "\x91" .. pack(60)) .. call("add", "\x92\1\2", "\2"))
      response(raw, 2)
      raw:drop()
      raw = target:raw()
      raw:send(call("big", "\x91" .. pack(8 << 20)))
      assert(raw.channel:recv())
      raw:drop()
      raw = target:raw()
      raw:send(times(20, call("big", "\x91" .. pack(1 << 20))))
      raw:drop()
      raw = target:raw()
      raw:send(call("sleep", "\x91" .. pack(60)):sub(1, -4))
      raw:drop()
    end
    target:undisturbed(attack, 4)
    target:steady(attack, 4)
  end)

  it("no descriptor is free: connections wait, it does not spin", function()
    serve()
    assert.is_true(target.client:call("exhaust", 0))
    local waiting = {}
    for i = 1, 5 do
      waiting[i] = target:raw()
      waiting[i]:send(call("add", "\x92\1\2"))
    end
    local shares = {}
    for round = 1, hostile.rounds do
      local _, before = target.client:call "cpu"
      local from = ipc.now()
      ipc.sleep(0.15)
      local _, after = target.client:call "cpu"
      shares[round] = (after - before) / (ipc.now() - from)
      if shares[round] < 0.25 then break end
    end
    for _, raw in ipairs(waiting) do assert.are.same({ nil, false }, { raw:get(0) }) end
    assert.is_true(shares[#shares] < 0.25, "it spins: " .. table.concat(shares, ", "))
    target:undisturbed(function() end, 5, nil, true)
    assert.is_true(target.client:call "exhaust")
    for _, raw in ipairs(waiting) do -- and then they are served
      assert.is_nil(response(raw, 1)[3])
      raw:drop()
    end
    target:measure()
  end)

  it("one descriptor is free: who comes is served", function()
    serve()
    assert.is_true(target.client:call("exhaust", 1))
    local raw = target:raw()
    raw:send(call("add", "\x92\1\2"))
    assert.is_nil(response(raw, 1)[3])
    assert.is_true(target.client:call "exhaust")
    raw:drop()
    target:measure()
  end)
end)

describe("references over the wire:", function()
  local target

  setup(function() target = hostile.serve { references = 50 } end)
  after_each(function() target:calm() end)
  teardown(function() target:close() end)

  -- The reference that a call answers: { id, kind }.
  local function given(raw, method, ...)
    local reply = raw:call(5, method, ...)
    assert.is_nil(reply[3])
    local result = reply[4]
    if type(result) == "table" then result = result[1] end
    assert.are.equal(0x40, result.type)
    return ipc.unpack(result.data)
  end

  local function hello(raw) assert.is_nil(raw:call(4, "$hello", 1, {})[3]) end

  it("given back once, it is stale; more often is nothing; anew is anew", function()
    local function attack()
      local raw = target:raw()
      hello(raw)
      local id = given(raw, "keep")[1]
      local ref = ext(0x41, "\x92" .. pack(id) .. "\1")
      local invoke = request(pack "$invoke", "\x93" .. ref .. "\xa3now\x90")
      raw:send(invoke)
      assert.is_nil(response(raw, 1)[3])
      for _ = 1, 3 do
        raw:send("\x93\2\xa8$release\x91\x91\x92" .. pack(id) .. "\1")
        raw:send(invoke)
        refused(raw)
      end
      raw:send("\x93\2\xa8$release\x91\x91\x92" .. pack(id) .. "\xff" .. invoke)
      refused(raw)
      local again = given(raw, "keep")[1]
      raw:send(request(pack "$invoke", "\x93" .. ext(0x41, "\x92" .. pack(again) .. "\1") .. "\xa3now\x90"))
      assert.is_nil(response(raw, 1)[3])
      -- More than were had, at once.
      raw:send("\x93\2\xa8$release\x91\x91\x92" .. pack(again) .. "\xcf" .. times(8, "\x7f"))
      goes_on(raw)
      raw:drop()
    end
    target:undisturbed(attack, 5)
    target:steady(attack, 10)
  end)

  it("one connection's are not another's", function()
    local one, other = target:raw(), target:raw()
    hello(one)
    hello(other)
    local id = given(one, "keep")[1]
    other:send(request(pack "$invoke", "\x93" .. ext(0x41, "\x92" .. pack(id) .. "\1") .. "\xa3now\x90"))
    refused(other)
    other:send("\x93\2\xa8$release\x91\x91\x92" .. pack(id) .. "\1")
    goes_on(other)
    one:send(request(pack "$invoke", "\x93" .. ext(0x41, "\x92" .. pack(id) .. "\1") .. "\xa3now\x90"))
    assert.is_nil(response(one, 1)[3])
    one:drop()
    other:drop()
    target:measure()
  end)

  it("the methods of an object are those that it says", function()
    local raw = target:raw()
    hello(raw)
    local ref = ext(0x41, "\x92" .. pack(given(raw, "keep")[1]) .. "\1")
    for _, name in ipairs { "__gc", "__index", "__close", "_G", "now.now", "", "state", "now\0" } do
      raw:send(request(pack "$invoke", "\x93" .. ref .. pack(name) .. "\x90"))
      refused(raw)
      raw:send(request(pack "$get", "\x92" .. ref .. pack(name)))
      refused(raw)
      raw:send(request(pack "$set", "\x93" .. ref .. pack(name) .. "\1"))
      refused(raw)
    end
    for _, name in ipairs { "\xc0", "\1", "\x80", "\xdb\xff\xff\xff\xff" } do
      local another = target:raw()
      hello(another)
      another:send(request(pack "$invoke", "\x93" .. ref .. name .. "\x90"))
      if #name == 1 then refused(another) end
      another:drop()
    end
    raw:drop()
    target:measure()
  end)

  it("more than the limit are refused, and none stays after the connection", function()
    local function attack()
      local raw = target:raw()
      hello(raw)
      local refusals = 0
      for i = 1, 60 do
        local reply = raw:call(i + 100, "count", 1000)
        if reply[3] ~= nil then
          complaint(reply)
          refusals = refusals + 1
        end
      end
      assert.are.equal(10, refusals)
      raw:drop()
    end
    attack()
    target:steady(attack, 4)
  end)

  it("a callback that is never answered, that fails, that is not there", function()
    local function attack()
      local raw = target:raw()
      hello(raw)
      raw:send(request(pack "back", "\x92" .. reference(0x40, 1, 0) .. "\5"))
      local question = assert(raw:get())
      assert.are.equal(0, question[1]) -- $invoke of ours
      assert.are.equal("$invoke", question[3])
      raw:send("\x94\1" .. pack(question[2]) .. "\x92\0\xa2no\xc0")
      refused(raw)
      raw:send(request(pack "back", "\x92" .. reference(0x40, 1, 0) .. "\5"))
      raw:get()
      raw:drop() -- while it waits for us
    end
    target:undisturbed(attack, 5)
    target:steady(attack, 10)
  end)
end)

describe("names with a dollar over the wire:", function()
  local target

  setup(function() target = hostile.serve({ calls = 2, method = 20, params = 5, references = 50 }, { calls = 2 }) end)
  after_each(function() target:calm() end)
  teardown(function() target:close() end)

  local HUGE <const> = times(1 << 16, "h")
  local WRONG <const> = {
    "\xc0", "\xc3", "\xff", "\xcf" .. times(8, "\xff"), "\xd3\x80" .. times(7, "\0"),
    "\xcb\x7f\xf8" .. times(6, "\0"),
    "\xcb\x7f\xf0" .. times(6, "\0"), "\xcb\xff\xf0" .. times(6, "\0"), "\xa0", "\xa1\0", "\xda\xff\xff" .. HUGE:sub(2),
    "\x90", "\x91\x90", "\x80", "\x81\xa1a\1", "\x81\1\2", "\xc4\0", "\xd4\5\0", ext(0x42, "\x91\1"),
    times(40, "\x91") .. "\1",
  }
  local NAMES <const> = {
    "$hello", "$call", "$cancel", "$ping", "$methods", "$invoke", "$get", "$set", "$next", "$release",
    "$auth", "$none", "$",
  }

  -- Whether one that is answered at all is answered with an error or a result, and goes on.
  local function goes(raw, bytes)
    return raw:send(bytes) and raw:call(77, "add", 1, 2) ~= nil
  end

  it("arguments of any kind, any number, before hello and after", function()
    local function attack(i)
      local name = NAMES[i % #NAMES + 1]
      for _, greeted in ipairs { false, true } do
        local raw = target:raw()
        if greeted then assert.is_nil(raw:call(4, "$hello", 1, {})[3]) end
        local function again()
          if raw then raw:drop() end
          raw = target:raw()
          if greeted then assert.is_nil(raw:call(4, "$hello", 1, {})[3]) end
        end
        for _, value in ipairs(WRONG) do
          for n = 0, 3 do
            local args = string.char(0x90 + n) .. times(n, value)
            for _, bytes in ipairs { request(pack(name), args), "\x93\2" .. pack(name) .. args } do
              if not goes(raw, bytes) then again() end
            end
          end
          if not goes(raw, request(pack "$call", "\x93\x81\xa8deadline" .. value .. pack(name) .. "\x91" .. value)) then
            again()
          end
        end
        raw:drop()
      end
    end
    for i = 1, #NAMES do attack(i) end
    target:steady(attack, #NAMES)
  end)

  it("more arguments, and longer names, than the limits allow", function()
    local raw = target:raw()
    assert.is_nil(raw:call(4, "$hello", 1, {})[3])
    raw:send(request(pack "$call", "\x93\x80" .. pack "echo" .. "\x96\1\2\3\4\5\6"))
    refused(raw)
    raw:send(request(pack "$call", "\x93\x80" .. pack(("n"):rep(21)) .. "\x90"))
    refused(raw)
    raw:send(request(pack(("$"):rep(21)), "\x90"))
    refused(raw)
    goes_on(raw)
    raw:drop()
    target:measure()
  end)

  it("what ends calls and gives back is heard however many calls run", function()
    local raw = target:raw()
    assert.is_nil(raw:call(4, "$hello", 1, {})[3])
    local ids, refs = {}, {}
    for i = 1, 2 do
      ids[i] = ipc.unpack(raw:call(5, "keep")[4][1].data)[1]
      refs[i] = ext(0x41, "\x92" .. pack(ids[i]) .. "\1")
    end
    local function release(i) return "\x93\2\xa8$release\x91\x91\x92" .. pack(ids[i]) .. "\1" end
    -- A call that waits for us: it runs once it has asked.
    local function run(id)
      raw:send("\x94\0" .. pack(id) .. pack "back" .. "\x92" .. reference(0x40, 1, 0) .. "\5")
      local question = assert(raw:get())
      assert.are.equal(0, question[1])
      return question[2]
    end
    local function answered(id)
      local reply = assert(raw:get())
      while reply[1] ~= 1 do reply = assert(raw:get()) end -- it may tell us to end what it asks
      assert.are.equal(id, reply[2])
      return reply
    end
    local function full() assert.are.equal(E.E2BIG, raw:call(20, "add", 1, 2)[3][3].errno) end
    local questions = { run(10), run(11) } -- no more may run
    raw:send(release(1))
    full()
    raw:send(call("add", "\x92\1\2", pack(20)) .. release(2)) -- behind what is refused
    answered(20)
    full()
    assert.are.equal(3, target.client.remote.add(1, 2)) -- tasks have had their turn
    raw:send("\x94\1" .. pack(questions[1]) .. "\xc0\x91\7")
    assert.are.equal(7, answered(10)[4][1])
    for i = 1, 2 do
      local last, reply = ipc.now() + LIMIT
      repeat -- the task that has answered may be counted still
        raw:send(request(pack "$invoke", "\x93" .. refs[i] .. "\xa3now\x90"))
        reply = answered(1)
      until not (reply[3] and reply[3][3] and reply[3][3].errno == E.E2BIG) or ipc.now() > last
      complaint(reply)
    end
    run(12)
    full()
    raw:send("\x93\2\xa7$cancel\x91\11")
    assert.are.equal("cancelled", answered(11)[3][2])
    raw:drop()
    target:measure()
  end)
end)

describe("a script that serves:", function()
  after_each(peer.clean)

  it("hears what gives back however deep the calls within calls are", function()
    local here, there = assert(ipc.pair "unix?unit=stream")
    local child = peer.fork(function(channel)
      local session = assert(ipc.rpc.connect(channel, { timeout = LIMIT, nested = 1, exports = {
        keep = function() return ipc.rpc.object({}, { now = function() return 1 end }) end,
        back = function(f) return f() end,
        exported = function() return ipc.rpc.caller():stats().exported end,
      } }))
      session:serve(LIMIT)
    end, there)
    local session <close> = assert(ipc.rpc.connect(here, { timeout = LIMIT }))
    local object, deep = session.remote.keep(), nil
    assert.are.equal(1, session.remote.exported())
    session.remote.back(function()
      deep = select(3, session:call("exported"))
      ipc.rpc.release(object)
    end)
    assert.are.equal(E.E2BIG, deep)
    assert.are.equal(0, session.remote.exported())
    session:close()
    assert(child:wait(LIMIT))
  end)
end)

describe("a server with a key:", function()
  local core = require "ipc.core"
  local KEY <const> = "the key of this spec"
  local target

  setup(function() target = hostile.serve({ authkey = KEY }, { authkey = KEY }) end)
  after_each(function() target:calm() end)
  teardown(function() target:close() end)

  local function nonce() return core.rpc.random(32) end

  -- The first two messages of an honest client, with what they are answered.
  local function first(raw, mine) return raw:call(1, "$auth", 1, mine or nonce()) end
  local function unspread(reply)
    local r = reply and reply[4]
    while type(r) == "table" and #r == 1 and type(r[1]) == "table" do r = r[1] end
    return r
  end
  local function proof(key, who, mine, theirs) return core.rpc.hmac(key, "lua-ipc " .. who .. mine .. theirs) end

  it("one that says much, but proves nothing, is let go", function()
    target:close()
    target = hostile.serve({ authkey = KEY, first = 1 }, { authkey = KEY })
    local raw = target:raw()
    local until_then, bytes = ipc.now() + 1, times(2000, call("$auth", "\x92\1\xc4\x20" .. nonce()))
    local late, stays = 0, raw:send(bytes)
    while stays and late < 20000 do -- which is more than can be on their way
      stays = raw:send(bytes) -- there is always more to read for it
      local message, over
      repeat
        message, over = raw:get(0)
        late = late + (message and ipc.now() > until_then and 1 or 0)
      until message == nil
      stays = stays and not over
    end
    assert.is_true(late < 20000)
    raw:drop()
    assert.is_true(target.client:call("add", 1, 2))
  end)

  it("calls before it are not answered with results", function()
    local function attack()
      for _, bytes in ipairs { call("add", "\x92\1\2"), HELLO, call("$methods"), call("$ping"),
        call("$auth", "\x92\2\xc4\x20" .. times(32, "x")), call("$auth", "\x92\2\xc0"), call("$auth", "\x91\1"),
        call("$auth", "\x92\1\xc0"), call("$auth", "\x92\1\xa0"), call("$auth", "\x92\1\xda\x08\0" .. times(2048, "n")),
        call("$auth", "\x92\3\xa1x"), call("$call", "\x93\x80\xa3add\x92\1\2"), "\x93\2\xa3add\x92\1\2" } do
        local raw = target:raw()
        raw:send(bytes .. call("add", "\x92\1\2", "\2"))
        repeat
          local reply, over = raw:get()
          assert(reply ~= nil or over, "neither refused nor closed")
          if reply ~= nil and reply[2] == 2 then
            assert.is_not_nil(reply[3])
            break
          end
        until reply == nil
        raw:drop()
      end
    end
    target:undisturbed(attack, 3)
    target:steady(attack, 5)
  end)

  it("messages of more than 4 KiB are not read", function()
    local function attack()
      local raw = target:raw()
      raw:send(call("$auth", "\x92\1\xda\x10\1" .. times(4097, "n")))
      closed(raw)
      raw:drop()
      raw = target:raw()
      raw:send("\x94\0\1\xa5$auth\x92\1\xdb\0\xff\xff\xff" .. times(8192, "n"))
      closed(raw)
      raw:drop()
    end
    target:undisturbed(attack, 5)
    target:steady(attack, 10)
  end)

  it("the key is asked for, and the answer is good once", function()
    local function attack()
      local mine, raw = nonce(), target:raw()
      local theirs, told = table.unpack(unspread(first(raw, mine)))
      assert.are.equal(proof(KEY, "server", mine, theirs), told)
      local right = proof(KEY, "client", mine, theirs)
      local reply = raw:call(2, "$auth", 2, right)
      assert.is_nil(reply[3])
      goes_on(raw)
      -- The same once more, elsewhere, with the nonce that it was made for.
      local another = target:raw()
      assert.are_not.equal(theirs, unspread(first(another, mine))[1])
      reply = another:call(2, "$auth", 2, right)
      assert.is_true(reply == nil or reply[3] ~= nil)
      reply = another:call(3, "add", 1, 2)
      assert.is_true(reply == nil or reply[3] ~= nil)
      -- The server's own proof sent back.
      local mirror = target:raw()
      mine = nonce()
      theirs, told = table.unpack(unspread(first(mirror, mine)))
      reply = mirror:call(2, "$auth", 2, told)
      assert.is_true(reply == nil or reply[3] ~= nil)
      reply = mirror:call(3, "add", 1, 2)
      assert.is_true(reply == nil or reply[3] ~= nil)
      -- Proofs of a wrong key, cut, long, none.
      for _, wrong in ipairs { proof("another", "client", mine, theirs), "", right .. "\0", right:sub(1, 31), 5,
        true } do
        local guess = target:raw()
        first(guess, mine)
        reply = guess:call(2, "$auth", 2, wrong)
        assert.is_true(reply == nil or reply[3] ~= nil)
        reply = guess:call(3, "add", 1, 2)
        assert.is_true(reply == nil or reply[3] ~= nil)
        guess:drop()
      end
      for _, r in ipairs { raw, another, mirror } do r:drop() end
    end
    target:undisturbed(attack, 3)
    target:steady(attack, 5)
  end)

  it("clients of ours with another key, or none, are told so", function()
    for _, key in ipairs { "wrong", false } do
      local client, why, errno = ipc.rpc.connect(target.address, { authkey = key or nil, timeout = LIMIT })
      if client then
        local ok
        ok, why, errno = client:call("add", 1, 2)
        assert.is_nil(ok)
        client:close()
      end
      assert.is_string(why)
      assert.are.equal("number", type(errno))
    end
    target:measure()
  end)
end)

-- What we are asked to send, and what our own functions do.
describe("values that cannot be sent:", function()
  local target

  setup(function() target = hostile.serve() end)
  teardown(function() target:close() end)

  it("arguments: cycles, metamethods that throw, threads, NaN keys", function()
    local cycle = {}
    cycle[1] = { cycle }
    local deep = {}
    for _ = 1, 100 do deep = { deep } end
    local function throws() error "thrown" end
    local trap = setmetatable({ 1, 2 }, { __index = throws, __len = throws, __pairs = throws, __tostring = throws,
      __name = 5, __close = throws, __eq = throws, __metatable = "none" })
    local bad = { cycle, deep, coroutine.create(throws), io.stdout, { [{ 1 }] = coroutine.create(throws) } }
    for _, value in ipairs(bad) do
      for _, argument in ipairs { value, { value }, { a = value } } do
        local ok, why, errno = pcall(target.client.call, target.client, "echo", argument)
        if ok then
          assert.is_nil(why)
          assert.are.equal("string", type(errno))
        end
        assert.is_true(target.client:call("add", 1, 2))
      end
    end
    -- Tables are sent as they are.
    assert.are.same({ true, { 1, 2 } }, { target.client:call("echo", trap) })
    local ok = pcall(target.client.call, target.client, trap)
    assert.is_false(ok)
    assert.is_true(target.client:call("add", 1, 2))
    assert.is_false(pcall(target.client.call, target.client, ("m"):rep(10) .. "\0", cycle))
    target:measure()
  end)

  it("arguments: more, and larger, than the other side takes", function()
    local many = {}
    for i = 1, 10000 do many[i] = i end
    for _, arguments in ipairs { table.pack(table.unpack(many)), { ("x"):rep(17 << 20), n = 1 } } do
      local raised, ok, why, errno = pcall(target.client.call, target.client, "type",
        table.unpack(arguments, 1, arguments.n))
      assert.is_true(not raised or ok == nil and type(why) == "string" and type(errno) == "number")
      if target.client:call("add", 1, 2) ~= true then -- too large for the connection
        target.client:close()
        target.client = target:connect()
      end
    end
    target:measure()
  end)

  it("results, and errors, of any kind", function()
    local kinds = { "thread", "cycle", "userdata", "huge", "error nil", "error thread", "error cycle", "error trap",
      "error function", "error long", "error closed", "error errno" }
    local function attack(_, ...)
      for _, kind in ipairs { ..., table.unpack(kinds) } do
        local ok, why, errno = target.client:call("strange", kind)
        assert.is_nil(ok, kind)
        assert.are.equal("string", type(why), kind)
        assert.are.equal("integer", math.type(errno), kind)
        assert.is_true(#why <= 64 * 1024, kind)
        if errno == E.EMSGSIZE then -- larger than a message may be
          assert.are.equal("huge", kind)
          target.client:close()
          target.client = target:connect()
        end
        assert.are.same({ true, 3 }, { target.client:call("add", 1, 2) })
      end
    end
    attack(0, "stack") -- Lua takes its time for the traceback of that
    target:steady(function() attack(0, "thread") end, 2)
  end)
end)
