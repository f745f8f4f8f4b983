-- Functions and objects as arguments and results of calls: ipc.rpc.
local ipc = require "ipc"
local elsewhere = require "spec.support.elsewhere"
local peer = require "spec.support.peer"

local E = ipc.errno

-- What the other side lets be called. Nothing of the spec's state is in it: it may be
-- another process.
local function exports()
  local rpc = ipc.rpc
  local kept, lent = {}, setmetatable({}, { __mode = "k" })
  local Account = {
    deposit = function(self, n)
      if n < 0 then error({ message = "too little", errno = E.EDOM }) end
      self.balance = self.balance + n
      return self.balance
    end,
    tell = function(self, f) return f(self.balance) end,
    itself = function() return kept.account end,
  }
  local fields = { properties = { "owner" }, writable = { "balance" } }
  return {
    each = function(n, f)
      local sum = 0
      for i = 1, n do sum = sum + f(i) end
      return sum
    end,
    try = function(f, ...) return pcall(f, ...) end,
    ask = function(f, ...) return f:call(...) end,
    adder = function(n) return function(x) return x + n end end,
    same = function(...) return ... end,
    keep = function(name, value) kept[name] = value end,
    kept = function(name) return kept[name] end,
    equal = function(name, value) return rawequal(kept[name], value), kept[name] == value end,
    call = function(name, ...) return kept[name](...) end,
    drop = function(name) kept[name] = nil collectgarbage() collectgarbage() end,
    open = function(balance)
      kept.account = rpc.object({ balance = balance, owner = "ann", secret = 1 }, Account, fields)
      return kept.account
    end,
    open_after = function(balance, f)
      f()
      kept.account = rpc.object({ balance = balance }, Account, fields)
      return kept.account
    end,
    state = function() return kept.account.balance end,
    lend = function()
      local value = rpc.object({}, {})
      lent[value] = true
      return value, function() return value end
    end,
    lent = function()
      local n = 0
      for _ in pairs(lent) do n = n + 1 end
      return n
    end,
    inside = function(t) return t.list[1](1), t.list[2] == t.list[1] end,
    nothing = function() end,
    fail = function(text) error(text, 0) end,
    fail_with = function(name) error({ message = "too bad", data = kept[name] }) end,
    stats = function() return rpc.caller():stats() end,
    many = function(n)
      local list = {}
      for i = 1, n do list[i] = function() return i end end
      return list
    end,
    sink = function() end,
    forward = function(o, name, ...) return o[name](o, ...) end,
  }
end

-- Runs a function whose values are garbage when it has returned.
local function apart(fn, ...) return (select("#", fn(...))) end

-- Collects what is not held here, and lets the other side know.
local function settle(session)
  for _ = 1, 3 do -- what was an argument long ago may still be where Lua looks for values
    assert(session:call("same", 1, 2, 3, 4, 5, 6, 7, 8))
    collectgarbage()
    assert(session:call("drop", "none"))
  end
  return select(2, assert(session:call("stats")))
end

for _, way in ipairs(elsewhere.ways()) do
  describe("references, " .. way.name .. ":", function()
    before_each(function() ipc.loop.use(nil) end)
    after_each(function()
      peer.clean()
      ipc.scheduler(nil)
    end)

    it("a function that is passed is called back while the call waits", function()
      way.use(exports, function(session)
        local seen = {}
        assert.are.equal(2 * (1 + 2 + 3), session.remote.each(3, function(i)
          seen[#seen + 1] = i
          return 2 * i
        end))
        assert.are.same({ 1, 2, 3 }, seen)
      end)
    end)

    it("callbacks call in their turn", function()
      way.use(exports, function(session)
        assert.are.equal(2 * 6, session.remote.each(2, function()
          return session.remote.each(3, function(i) return i end)
        end))
      end)
    end)

    it("results and arguments of callbacks keep their nils", function()
      way.use(exports, function(session)
        assert.are.same({ true, nil, 2, nil, n = 4 }, table.pack(session.remote.try(function(...)
          assert.are.equal(3, select("#", ...))
          return ...
        end, nil, 2, nil)))
        assert.are.same({ true, n = 1 }, table.pack(session.remote.try(function() end)))
      end)
    end)

    it("an error of a callback reaches who called it, with its errno", function()
      way.use(exports, function(session)
        local ok, problem = session.remote.try(function() error("no", 0) end)
        assert.is_false(ok)
        assert.is_truthy(tostring(problem.message):find("no", 1, true))
        assert.are.same({ nil, "never", E.EPERM }, { (function(a, b, c) return a, b, c end)(
          session.remote.ask(function() error(setmetatable({ message = "never", errno = E.EPERM }, {})) end)) })
      end)
    end)

    it("a function that is returned is called, with call, async and notify too", function()
      way.use(exports, function(session)
        local add <close> = session.remote.adder(5)
        assert.are.equal(7, add(2))
        assert.are.same({ true, 8 }, { add:call(3) })
        local future = add:async(4)
        assert.are.same({ true, 9 }, { future:wait() })
        assert.is_true(add:notify(1))
        assert.are.same({ true, 6 }, { session:call(add, 1) })
        assert.are.equal(10, session:with { timeout = 5 }:demand(add, 5))
        local ok, problem = pcall(add, {})
        assert.is_false(ok)
        assert.is_truthy(problem.message:find("arithmetic", 1, true))
      end)
    end)

    it("an error names the method, or the property, not how that is asked for", function()
      way.use(function()
        local function no() error("no", 0) end
        local fields = { properties = { "p" }, writable = { "w" } }
        return {
          open = function()
            return ipc.rpc.object(setmetatable({}, { __index = no, __newindex = no }), { m = no }, fields)
          end,
          values = function() return ipc.rpc.stream(no) end,
        }
      end, function(session)
        local function method(fn)
          local ok, problem = pcall(fn)
          assert.are.same({ false, "no" }, { ok, problem.message })
          return problem.method
        end
        local object, values = session.remote.open(), session.remote.values()
        assert.are.equal("p", method(function() return object.p end))
        assert.are.equal("w", method(function() object.w = 1 end))
        assert.are.equal("m", method(function() object:m() end))
        assert.is_nil(method(values))
        assert.is_nil(select(4, values:next()).method)
      end)
    end)

    it("a reference that comes home is the value itself", function()
      way.use(exports, function(session)
        local function mine() end
        assert.are.equal(mine, session.remote.same(mine))
        local object = ipc.rpc.object({}, { f = mine })
        assert.are.equal(object, session.remote.same(object))
        session.remote.keep("f", mine)
        assert.are.same({ true, true }, { session.remote.equal("f", mine) })
        assert.are.equal(mine, session.remote.kept "f")
      end)
    end)

    it("the same function is the same stand-in while that is held", function()
      way.use(exports, function(session)
        local account = session.remote.open(1)
        assert.are.equal(account, session.remote.kept "account")
        assert.are.equal(account, account:itself())
        local set = { [account] = true }
        assert.is_true(set[session.remote.same(account)])
        assert.is_true((session.remote.equal("account", account)))
      end)
    end)

    it("functions travel inside of tables", function()
      way.use(exports, function(session)
        local function f(x) return x + 1 end
        assert.are.same({ true, 2, true }, { session:call("inside", { list = { f, f } }) })
        local list = session.remote.many(3)
        assert.are.same({ 1, 2, 3 }, { list[1](), list[2](), list[3]() })
      end)
    end)

    it("objects: methods, properties that can be read, those that can be assigned", function()
      way.use(exports, function(session)
        local account <close> = session.remote.open(10)
        assert.are.equal(15, account:deposit(5))
        assert.are.equal(15, account.balance)
        account.balance = 7
        assert.are.equal(7, session.remote.state())
        assert.are.equal("ann", account.owner)
        assert.are.same({ true, 9 }, { session:call(account, "deposit", 2) })
        assert.are.equal(18, account:tell(function(n) return 2 * n end))
        assert.has_error(function() account.owner = "bob" end)
        assert.are.equal("ann", account.owner)
      end)
    end)

    it("objects: what is not listed is not there", function()
      way.use(exports, function(session)
        local account = session.remote.open(10)
        assert.is_nil(account.secret)
        assert.is_nil(account.__index)
        assert.is_nil(account[1])
        for _, name in ipairs { "secret", "__index", "balance", "_G", "" } do
          local ok, message, errno = session:call(account, name)
          assert.is_nil(ok)
          assert.are.equal("no method: " .. name, message)
          assert.are.equal(E.ENOSYS, errno)
        end
        for _, name in ipairs { "secret", "deposit", "__newindex" } do
          assert.are.equal(E.ENOSYS, select(3, session:call("$get", account, name)))
          assert.are.equal(E.ENOSYS, select(3, session:call("$set", account, name, 1)))
        end
        assert.are.equal(E.ENOSYS, select(3, session:call("$set", account, "owner", 1)))
      end)
    end)

    it("errors of methods bring their errno", function()
      way.use(exports, function(session)
        local account = session.remote.open(10)
        local ok, message, errno = session:call(account, "deposit", -1)
        assert.is_nil(ok)
        assert.is_truthy(message:find("too little", 1, true))
        assert.are.equal(E.EDOM, errno)
      end)
    end)

    it("an object of ours is used by the other side as its own are by us", function()
      way.use(exports, function(session)
        local object = ipc.rpc.object({ n = 1 }, { add = function(self, n) self.n = self.n + n return self.n end },
          { properties = { "n" } })
        assert.are.equal(4, session.remote.forward(object, "add", 3))
        assert.are.equal(4, object.n)
        assert.are.equal(5, object:add(1))
        assert.has_error(function() object.n = 1 end)
        assert.is_nil(object.other)
      end)
    end)

    it("what is dropped is given back: both sides' tables are empty", function()
      way.use(exports, function(session)
        apart(function()
          for i = 1, 50 do
            session.remote.each(2, function(x) return x + i end)
            local add = session.remote.adder(i)
            assert.are.equal(i + 1, add(1))
          end
        end)
        local theirs = settle(session)
        assert.are.same({ 0, 0 }, { theirs.exported, theirs.imported })
        local ours = session:stats()
        assert.are.same({ 0, 0 }, { ours.exported, ours.imported })
      end)
    end)

    it("<close> and release give back at once, and what was released raises", function()
      way.use(exports, function(session)
        local add = session.remote.adder(1)
        assert.are.equal(1, session:stats().imported)
        assert.are.equal(1, select(2, session:call "stats").exported)
        do
          local closed <close> = add
          assert.are.equal(3, closed(2))
        end
        assert.are.equal(0, session:stats().imported)
        assert.are.equal(0, select(2, session:call "stats").exported)
        assert.is_true(ipc.rpc.release(add))
        for _, use in ipairs {
          function() add(1) end, function() add:call(1) end, function() session:call("same", add) end,
          function() session:call("same", { add }) end, function() session:notify(add) end,
        } do
          local ok, message = pcall(use)
          assert.is_false(ok)
          assert.is_truthy(tostring(message):find("was released", 1, true), tostring(message))
        end
        assert.has_error(function() ipc.rpc.release(print) end)
      end)
    end)

    it("what is given back lives no longer, though calls on that answer might have come", function()
      way.use(exports, function(session)
        apart(function()
          for _ = 1, 20 do
            local object <close>, fn = session.remote.lend()
            assert.are.equal(fn(), object)
            ipc.rpc.release(fn)
          end
        end)
        settle(session)
        assert.are.equal(0, session.remote.lent())
      end)
    end)

    it("what the other side keeps lives here, and no longer", function()
      way.use(exports, function(session)
        local weak = setmetatable({}, { __mode = "v" })
        apart(function()
          weak[1] = function(x) return x end
          session.remote.keep("f", weak[1])
        end)
        collectgarbage()
        assert.are.equal(5, session.remote.call("f", 5))
        session.remote.drop "f"
        settle(session)
        assert.is_nil(weak[1])
      end)
    end)

    it("a reference that is given back while it is on its way again stays valid", function()
      way.use(exports, function(session)
        local function f(x) return x + 1 end
        for _ = 1, 25 do
          -- the first is dropped there, and given back, while the second is on its way
          local dropped = session:async("sink", f)
          local kept = session:async("keep", "f", f)
          assert(dropped:wait())
          assert(kept:wait())
          local collected = session:async("drop", "none")
          assert.are.equal(3, session.remote.call("f", 2))
          assert(collected:wait())
          assert(session:call("keep", "f", nil))
        end
        session.remote.drop "f"
        local theirs = settle(session)
        assert.are.same({ 0, 0 }, { theirs.imported, session:stats().exported })
      end)
    end)

    it("a stand-in that is collected and comes again is used on", function()
      way.use(exports, function(session)
        session.remote.open(1)
        for i = 1, 70 do
          session.remote.kept "account"
          if i % 7 == 0 then collectgarbage() end
          local account = session.remote.kept "account"
          assert.are.equal(i + 1, account:deposit(1))
        end
        assert(session:call("drop", "account"))
        assert.are.equal(0, settle(session).exported)
      end)
    end)

    it("what an error takes along is counted as what is answered", function()
      way.use(exports, function(session)
        for _ = 1, 2 do
          session.remote.open(1)
          local ok, message = session:call("fail_with", "account")
          assert.are.same({ nil, "too bad" }, { ok, message })
          session.remote.adder(1)
        end
        assert(session:call("drop", "account"))
        assert.are.equal(0, settle(session).exported)
      end)
    end)

    it("exports of a connection have a limit, which is an answer", function()
      way.use(exports, function(session)
        local held = {}
        for i = 1, 20 do
          held[i] = function() end
          session.remote.keep(i, held[i])
        end
        local ok, message, errno = session:call("keep", 21, function() end)
        assert.are.same({ nil, "more than 20 references at once", E.E2BIG }, { ok, message, errno })
        assert.are.equal(held[3], session.remote.same(held[3]))
        ok, message, errno = session:call("many", 31)
        assert.are.same({ nil, "more than 30 references at once", E.E2BIG }, { ok, message, errno })
        assert.are.equal(0, select(2, session:call "stats").exported)
        session.remote.drop(1)
        settle(session)
        assert(session:call("keep", 21, function() end))
      end, { references = 30 }, { references = 20 })
    end)

    it("a call on the result of a call: its result, or the first one's error", function()
      way.use(exports, function(session)
        local account = session:async("open", 10)
        local first, second = account:async("deposit", 1), account:async("deposit", 2)
        assert.are.same({ true, 14 }, { account:call("deposit", 1) })
        assert.are.same({ true, 11 }, { first:wait() })
        assert.are.same({ true, 13 }, { second:wait() })
        assert.are.same({ true, 15 }, { account:call("deposit", 1) }) -- it is here already

        local add = session:async("adder", 3)
        assert.are.same({ true, 5 }, { session:call(add, nil, 2) })

        local failed = session:async("fail", "never")
        local after = failed:async("deposit", 1)
        local ok, message = after:wait()
        assert.are.same({ nil, "never" }, { ok, message })
        assert.are.same({ nil, "never" }, { (function(a, b) return a, b end)(failed:call("deposit", 1)) })

        assert.are.equal("never", select(2, session:call(session:async("fail", "never"), "deposit", 1)))
        local third = session:async("fail", "first"):async("itself"):async("deposit")
        assert.are.equal("first", select(2, third:wait()))

        local number = session:async("same", 5)
        ok, message = number:async("deposit", 1):wait()
        assert.is_nil(ok)
        assert.are.equal("the first result of that call is no reference, but of type number", message)
        ok, message = number:call("deposit", 1)
        assert.is_nil(ok)
        assert.is_truthy(message:find("no reference", 1, true), message)

        local chain = session:async("open", 1)
        local itself = chain:async("itself")
        assert.are.same({ true, 3 }, { itself:call("deposit", 2) })
      end)
    end)

    it("a chain of hundreds of calls, each on the one before, the first of which runs yet", function()
      way.use(function()
        local Counter = {}
        function Counter.next(self) return ipc.rpc.object({ n = self.n + 1 }, Counter, { properties = { "n" } }) end
        return { begin = function()
          ipc.rpc.caller():call "go_on"
          return ipc.rpc.object({ n = 0 }, Counter, { properties = { "n" } })
        end }
      end, function(session)
        local last = session:async "begin"
        for _ = 1, 300 do last = last:async "next" end
        local ok, counter = last:wait()
        assert.is_true(ok, counter)
        assert.are.equal(300, counter.n)
        assert.are.equal(301, counter:next().n)
      end, nil, { exports = { go_on = function() end } })
    end)

    it("a notification on the result of a call that still runs begins when that has ended, in its turn", function()
      way.use(exports, function(session)
        local account = session:async("open_after", 10, function() end)
        assert(session:notify(account, "deposit", 1))
        local first = account:async("deposit", 2)
        assert(session:notify(account, "deposit", 3))
        local itself = account:async "itself"
        assert(session:notify(itself, "deposit", 4))
        local ok, object = account:wait()
        assert.is_true(ok)
        assert.are.equal(25, object:deposit(5))
        assert.are.same({ true, 13 }, { first:wait() })

        -- of one that fails nothing comes, and nobody but who called it is told
        local before = session.remote.stats().unknown
        local failed = session:async("open_after", 10, function() error("never", 0) end)
        assert(session:notify(failed, "deposit", 1))
        assert.are.equal("never", select(2, failed:wait()))
        assert.are.equal(before + 1, session.remote.stats().unknown)
      end)
    end)

    it("the methods of the session, with their documentation", function()
      way.use(exports, function(session)
        local methods = assert(session:methods())
        assert.are.equal("calls f", methods.each)
        assert.are.equal("", methods.adder)
        assert.is_nil(methods["$methods"])
        local count = 0
        for name in pairs(exports()) do
          assert.is_string(methods[name])
          count = count + 1
        end
        for _ in pairs(methods) do count = count - 1 end
        assert.are.equal(0, count)
      end, { docs = { each = "calls f", nobody = "is told" } })
    end)
  end)
end

describe("what waits for a call's result", function()
  after_each(peer.clean)

  it("begins before what is read while that call's answer waits to be sent", function()
    local order, made = {}, false
    elsewhere.run(function()
      local here, there = ipc.pair("unix", { unit = "stream" })
      local gate, key = ipc.pipe()
      local served = assert(ipc.rpc.serve(there, {
        big = function() return ("x"):rep(1 << 20) end,
        nothing = function() end,
        make = function()
          gate:recv(peer.limit)
          made = true
          return function(i) order[#order + 1] = i end
        end,
      }, { timeout = peer.limit }))
      local session = assert(ipc.rpc.connect(here, { timeout = peer.limit }))
      session.remote.nothing()
      for _ = 1, 3 do session:async "big" end
      local noting = session:async "make"
      for i = 1, 2 do assert(session:notify(noting, nil, i)) end
      ipc.sleep(0.01)
      key:send "go on" -- nobody reads the answers
      while not made do ipc.sleep(0.001) end
      for i = 3, 4 do assert(session:notify(noting, nil, i)) end
      ipc.sleep(0.01)
      assert.is_true((noting:wait()))
      session.remote.nothing()
      assert.are.same({ 1, 2, 3, 4 }, order)
      session:close()
      served:close()
      gate:close()
      key:close()
    end)
  end)
end)

-- A peer that writes its messages itself: to an address, with or without hello.
local Raw = {}
Raw.__index = Raw

local function raw(address, greets)
  local channel = peer.keep(assert(ipc.connect(address, { unit = "stream", timeout = peer.limit })))
  local self = setmetatable({ channel = channel, id = 0 }, Raw)
  if greets ~= false then
    assert(self:call("$hello", 1, { features = {}, limits = {} }))
  end
  return self
end

function Raw:send(method, ...)
  self.id = self.id + 1
  assert(self.channel:put(ipc.array { 0, self.id, method, ipc.array(table.pack(...)) }))
  return self.id
end

function Raw:notify(method, ...)
  assert(self.channel:put(ipc.array { 2, method, ipc.array(table.pack(...)) }))
end

-- Results, a list; or nil and the error.
function Raw:answer(id)
  local message
  repeat message = assert(self.channel:get()) until message[1] ~= 2 -- what it gives back
  assert.are.equal(1, message[1])
  assert.are.equal(id, message[2])
  if message[3] ~= nil then return nil, message[3] end
  return message[4] == nil and {} or message[4]
end

function Raw:call(...) return self:answer(self:send(...)) end

local function reference(type, ...) return ipc.ext(type, ipc.pack { ... }) end
local function parts(ext) return table.unpack(ipc.unpack(ext.data)) end

-- Asserts an error answer that has these words, and an errno unless it is 0.
local function refused(words, errno, answer, problem)
  assert.is_nil(answer)
  assert.is_table(problem)
  assert.is_truthy(problem[2]:find(words, 1, true), problem[2])
  assert.are.equal(errno, problem[3] and problem[3].errno or 0)
end

local function serving(fn, options)
  elsewhere.run(function()
    local server <close> = assert(ipc.rpc.serve(peer.address "unix", exports(), options))
    fn(server.address, server)
  end)
end

describe("references of a peer that writes its messages itself:", function()
  before_each(function() ipc.loop.use(nil) end)
  after_each(function()
    peer.clean()
    ipc.scheduler(nil)
  end)

  it("what a reference is on the wire", function()
    serving(function(address)
      local p = raw(address)
      local f = p:call("adder", 5)[1]
      assert.are.equal(0x40, f.type)
      local id, kind = parts(f)
      assert.are.equal("integer", math.type(id))
      assert.are.equal(0, kind)
      assert.are.same({ 7 }, p:call("$invoke", reference(0x41, id, 0), nil, { 2 }))
      local account = p:call("open", 5)[1]
      local number, object = parts(account)
      assert.are.equal(1, object)
      assert.are.same({ 6 }, p:call("$invoke", reference(0x41, number, 1), "deposit", { 1 }))
      assert.are.same({ 6 }, p:call("$get", reference(0x41, number, 1), "balance"))
      assert.are.same({}, p:call("$set", reference(0x41, number, 1), "balance", 9))
      assert.are.same({ 9 }, p:call "state")
      assert.are.same({ methods = { "deposit", "itself", "tell" }, properties = { "balance", "owner" },
        writable = { "balance" } }, p:call("$methods", reference(0x41, number, 1))[1])
    end)
  end)

  it("one that is forged, malformed, or of another kind is refused, and nothing changes", function()
    serving(function(address)
      local p = raw(address)
      local id = parts(p:call("adder", 5)[1])
      for _, bad in ipairs {
        reference(0x41, id + 1, 0), reference(0x41, id - 1, 0), reference(0x41, id, 1), reference(0x41, id, 2),
        reference(0x41, id, 7), reference(0x41, -1, 0), reference(0x41, 0, 0), reference(0x41, 1.5, 0),
        reference(0x41, "x", 0), reference(0x41, id), reference(0x41), ipc.ext(0x41, ""), ipc.ext(0x41, "\xc1"),
        ipc.ext(0x41, ipc.pack "x"), ipc.ext(0x41, ("x"):rep(5000)), reference(0x41, id, 0, "class"),
        reference(0x40, 5, 9), reference(0x40, -5, 0), ipc.ext(0x40, "\xc1"), reference(0x42, "x"), ipc.ext(0x42, ""),
      } do
        refused("reference", E.EBADMSG, p:call("same", bad))
        refused("reference", E.EBADMSG, p:call("same", { deep = { bad } }))
        refused("reference", E.EBADMSG, p:call("$invoke", bad, nil, { 2 }))
        p:notify("same", bad)
      end
      for _, value in ipairs { 5, "x", {}, ipc.null, true, id, reference(0x40, 7, 0), ipc.ext(7, "x") } do
        refused("no reference", E.ESTALE, p:call("$invoke", value, nil, { 2 }))
        refused("no reference", E.ESTALE, p:call("$next", value, 1))
        refused("no reference", E.ESTALE, p:call("$get", value, "x"))
        refused("no reference", E.ESTALE, p:call("$set", value, "x", 1))
      end
      local f = reference(0x41, id, 0)
      refused("another kind", E.EINVAL, p:call("$next", f, 1))
      refused("another kind", E.EINVAL, p:call("$get", f, "x"))
      refused("no methods", E.ENOSYS, p:call("$invoke", f, "deposit", {}))
      assert.are.same({ 7 }, p:call("$invoke", f, nil, { 2 }))
    end)
  end)

  it("one of another connection is refused", function()
    serving(function(address)
      local a, b = raw(address), raw(address)
      local of_a, of_b = parts(a:call("adder", 5)[1]), parts(b:call("adder", 6)[1])
      assert.are_not.equal(of_a, of_b)
      refused("no such reference", E.EBADMSG, b:call("$invoke", reference(0x41, of_a, 0), nil, { 2 }))
      refused("no such reference", E.EBADMSG, a:call("$invoke", reference(0x41, of_b, 0), nil, { 2 }))
      refused("no such reference", E.ESTALE, b:call("$release", { { of_a, 1 } }))
      assert.are.same({ 7 }, a:call("$invoke", reference(0x41, of_a, 0), nil, { 2 }))
      assert.are.same({ 8 }, b:call("$invoke", reference(0x41, of_b, 0), nil, { 2 }))
    end)
  end)

  it("what is given back too often, or was never there, changes nothing", function()
    serving(function(address)
      local p = raw(address)
      p:call("keep", "f", reference(0x40, 1, 0)) -- of ours: sent home it is no export
      local account = p:call("open", 1)[1]
      local id = parts(account)
      assert.are.equal(id, (parts(p:call("kept", "account")[1]))) -- sent twice
      local other = parts(p:call("adder", 5)[1])
      for _, list in ipairs {
        { { id, 3 } }, { { id, 2 }, { id, 1 } }, { { id, 0 } }, { { id, -1 } }, { { id, 1.5 } }, { { id, "1" } },
        { { id } }, { id, 1 }, { { other, 1 }, { id, 3 } }, { { id, math.maxinteger } }, { { "x", 1 } }, { {} },
        { { id, 2 }, { 1, 1 } }, { { id, 1 }, "x" }, 5, "x", ipc.null, { { id + 100, 1 } }, { { 2 ^ 53, 1 } },
      } do
        local answer, problem = p:call("$release", list)
        assert.is_nil(answer)
        assert.is_string(problem[2])
        p:notify("$release", list)
        assert.are.same({ exported = 2, n = 1 }, { exported = p:call("stats")[1].exported, n = 1 })
      end
      assert.are.same({ 2 }, p:call("$invoke", reference(0x41, id, 1), "deposit", { 1 }))
      assert.are.same({ 6 }, p:call("$invoke", reference(0x41, other, 0), nil, { 1 }))
      p:notify("$release", { { id, 1 } })
      assert.are.same({ 3 }, p:call("$invoke", reference(0x41, id, 1), "deposit", { 1 }))
      p:notify("$release", { { id, 1 }, { other, 1 } })
      refused("no such reference", E.EBADMSG, p:call("$invoke", reference(0x41, id, 1), "deposit", { 1 }))
      refused("no such reference", E.ESTALE, p:call("$release", { { id, 1 } }))
      assert.are.equal(0, p:call("stats")[1].exported)
      local again = parts(p:call("kept", "account")[1])
      assert.are_not.equal(id, again)
    end)
  end)

  it("a count that is on its way while the value goes out again does not end it", function()
    serving(function(address)
      local p = raw(address)
      local id = parts(p:call("open", 1)[1])
      local second = p:send("kept", "account") -- is on its way ...
      p:notify("$release", { { id, 1 } })      -- ... when the first is given back
      assert.are.equal(id, (parts(p:answer(second)[1])))
      assert.are.same({ 2 }, p:call("$invoke", reference(0x41, id, 1), "deposit", { 1 }))
      p:notify("$release", { { id, 1 } })
      refused("no such reference", E.EBADMSG, p:call("$invoke", reference(0x41, id, 1), "deposit", { 1 }))
    end)
  end)

  it("a forged reference in an answer is an error to who had asked", function()
    serving(function(address)
      local p = raw(address)
      local id = p:send("ask", reference(0x40, 77, 0))
      local message = assert(p.channel:get())
      assert.are.same({ 0, "$invoke" }, { message[1], message[3] })
      assert.are.equal(ipc.ext(0x41, ipc.pack { 77, 0 }), message[4][1])
      assert(p.channel:put(ipc.array { 1, message[2], ipc.null, { reference(0x41, 5, 0) } }))
      local answer = p:answer(id)
      assert.is_nil(answer[1])
      assert.is_truthy(answer[2]:find("no such reference", 1, true), answer[2])
      assert.are.equal(E.EBADMSG, answer[3])
      assert.are.same({ 1 }, p:call("same", 1))
    end)
  end)

  it("calls on the answers of calls take one round trip, whoever is quicker", function()
    serving(function(address)
      local p = raw(address)
      local first = p:send("open", 10)
      local second = p:send("$invoke", reference(0x42, first), "deposit", { 5 })
      local third = p:send("$invoke", reference(0x42, second), "deposit", { 5 })
      assert.are.equal(0x40, p:answer(first)[1].type)
      assert.are.same({ 15 }, p:answer(second))
      refused("no such call", E.ESTALE, p:answer(third))
      assert.are.same({ 16 }, p:call("$invoke", reference(0x42, first), "deposit", { 1 }))
      -- the first one waits for us: the second has come before it ends
      local asks = p:send("ask", reference(0x40, 9, 0))
      local waiting = p:send("$invoke", reference(0x42, asks), nil, {})
      local call = assert(p.channel:get())
      assert.are.equal("$invoke", call[3])
      assert(p.channel:put(ipc.array { 1, call[2], { 0, "never" }, ipc.null }))
      assert.are.equal("never", p:answer(asks)[2])
      refused("no such call", E.ESTALE, p:answer(waiting))
      -- errors of the first are those of the second
      local tries = p:send("each", 1, reference(0x40, 9, 0))
      waiting = p:send("$invoke", reference(0x42, tries), "y", {})
      call = assert(p.channel:get())
      assert(p.channel:put(ipc.array { 1, call[2], { 0, "broken", { errno = E.EIO } }, ipc.null }))
      refused("broken", E.EIO, p:answer(tries))
      refused("broken", E.EIO, p:answer(waiting))
    end)
  end)

  it("what waits for the end of a call begins before what is read after that", function()
    serving(function(address)
      local p = raw(address)
      local opened = p:send("open_after", 10, reference(0x40, 9, 0))
      local asks = assert(p.channel:get())
      local promise = reference(0x42, opened)
      p:notify("$invoke", promise, "deposit", { 1 })
      local second = p:send("$invoke", promise, "deposit", { 2 })
      p:notify("$invoke", promise, "deposit", { 3 })
      assert.are.same({ 1 }, p:call("same", 1)) -- all of them wait
      assert(p.channel:put(ipc.array { 1, asks[2], ipc.null, ipc.array {} }))
      local state, answers = p:send "state", {}
      for _ = 1, 3 do
        local message
        repeat message = assert(p.channel:get()) until message[1] == 1 -- no $release
        answers[message[2]] = message[4]
      end
      assert.are.same({ { 13 }, { 16 } }, { answers[second], answers[state] })
    end)
  end)

  it("promises are refused where they stand for nothing", function()
    serving(function(address)
      local p = raw(address)
      local id = parts(p:call("open", 1)[1])
      local promise = reference(0x42, p.id)
      refused("promise", E.EBADMSG, p:call("same", promise))
      refused("promise", E.EBADMSG, p:call("same", { promise }))
      refused("promise", E.EBADMSG, p:call("$invoke", promise, "deposit", { promise }))
      refused("promise", E.EBADMSG, p:call("$get", promise, "balance"))
      for _, call in ipairs { 0, 12345, 2 ^ 32, p.id + 1 } do
        refused("", call == 2 ^ 32 and E.EBADMSG or E.ESTALE, p:call("$invoke", reference(0x42, call), "x", {}))
      end
      local own = p.id + 1
      refused("no such call", E.ESTALE, p:call("$invoke", reference(0x42, own), "x", {}))
      p:notify("$invoke", reference(0x42, own), "x", {})
      assert.are.same({ 3 }, p:call("$invoke", reference(0x41, id, 1), "deposit", { 2 }))
    end)
  end)

  it("our calls on answers that are not here go out at once", function()
    elsewhere.run(function()
      local listener = peer.keep(assert(ipc.listen(peer.address "unix", { unit = "stream" })))
      local seen = {}
      ipc.loop.go(function()
        local channel = peer.keep(assert(listener:accept(peer.limit)))
        local hello = channel:get(peer.limit)
        channel:put(ipc.array { 1, hello[2], ipc.null, { features = {}, limits = {} } })
        for i = 1, 3 do seen[i] = channel:get(peer.limit) end -- no answer before all have come
        for i = 1, 3 do
          channel:put(ipc.array { 1, seen[i][2], ipc.null, ipc.array { i == 1 and reference(0x40, 4, 1, 1) or i } })
        end
        channel:get(peer.limit)
      end)
      local session <close> = assert(ipc.rpc.connect(listener:address(), { timeout = peer.limit }))
      local first = session:async "open"
      local second, third = first:async("deposit", 1), session:async(first, "deposit", 2)
      assert.are.same({ true, 2 }, { second:wait() })
      assert.are.same({ true, 3 }, { third:wait() })
      assert.are.equal("$invoke", seen[2][3])
      assert.are.equal(ipc.ext(0x42, ipc.pack { seen[1][2] }), seen[2][4][1])
      assert.are.same({ "deposit", { 1 } }, { seen[2][4][2], seen[2][4][3] })
    end)
  end)

  it("without hello nothing of ours is sent", function()
    serving(function(address)
      local p = raw(address, false)
      local answer, problem = p:call("adder", 5)
      assert.is_nil(answer)
      assert.is_truthy(problem[2]:find("result 1: a function cannot be sent", 1, true), problem[2])
      answer, problem = p:call("open", 5)
      assert.is_nil(answer)
      assert.is_truthy(problem[2]:find("result 1: an object cannot be sent", 1, true), problem[2])
      answer, problem = p:call("many", 2)
      assert.is_nil(answer)
      assert.is_truthy(problem[2]:find("result 1[", 1, true), problem[2])
      -- what looks like one is an extension as any other
      for _, ext in ipairs { reference(0x40, 1, 0), reference(0x41, 1, 0), ipc.ext(0x42, "x") } do
        assert.are.equal(ext, p:call("same", ext))
      end
    end)
  end)
end)

describe("calls on calls of a script that serves", function()
  before_each(function() ipc.loop.use(nil) end)
  after_each(function()
    peer.clean()
    ipc.scheduler(nil)
  end)

  it("are calls within calls where those are", function()
    local here, there = assert(ipc.pair "unix")
    local child = peer.fork(function(channel)
      local Object = { ask = function() ipc.rpc.caller():call "more" end }
      local session = assert(ipc.rpc.connect(channel, { timeout = peer.limit, nested = 4, exports = {
        open = function()
          ipc.rpc.caller():call "go_on"
          return ipc.rpc.object({}, Object)
        end,
      } }))
      session:serve(peer.limit)
    end, there)
    elsewhere.run(function()
      local told, gate, depth = ipc.loop.queue(), ipc.loop.queue(), 0
      local session
      local function ask()
        local opened = session:async "open"
        local asked = opened:async "ask"
        ipc.loop.go(function()
          local ok, message = asked:wait()
          if not ok then told:put(message) end
        end)
      end
      session = assert(ipc.rpc.connect(here, { timeout = peer.limit, exports = {
        go_on = function() end,
        more = function() -- in the middle of each call on a call: one more of both
          depth = depth + 1
          if depth > 10 then
            told:put "no bound"
          else
            ask()
          end
          gate:get(peer.limit)
        end,
      } }))
      ask()
      ipc.loop.go(function() session:serve() end)
      assert.are.equal("more than 4 calls within calls", told:get(peer.limit))
      for _ = 1, depth do gate:put(true) end
      session:close()
    end)
    assert(child:wait(peer.limit))
  end)
end)

describe("references and peers that are not ours:", function()
  before_each(function() ipc.loop.use(nil) end)
  after_each(function()
    peer.clean()
    ipc.scheduler(nil)
  end)

  local function strangers(fn)
    elsewhere.run(function()
      local server <close> = assert(ipc.rpc.serve(peer.address "unix", exports()))
      for _, kind in ipairs { "plain", "nvim" } do
        local session <close> = assert(ipc.rpc.connect(server.address, { peer = kind, timeout = peer.limit }))
        fn(session, kind)
      end
    end)
  end

  it("passing a function or an object raises, and names the argument", function()
    strangers(function(session)
      local object = ipc.rpc.object({}, {})
      for _, case in ipairs {
        { "argument 1: a function", print }, { "argument 2.x: a function", 1, { x = print } },
        { "argument 1[2]: an object", { 1, object } }, { "argument 3: an object", 1, nil, object },
      } do
        for _, method in ipairs { "call", "async", "notify" } do
          local ok, message = pcall(session[method], session, "same", table.unpack(case, 2, 4))
          assert.is_false(ok)
          assert.is_truthy(tostring(message):find(case[1], 1, true), tostring(message))
        end
      end
      assert.are.same({ true, 1 }, { session:call("same", 1) })
    end)
  end)

  it("extensions are one object while somebody holds it, and travel unchanged", function()
    strangers(function(session)
      local buffer = ipc.ext(0, "\5")
      local first, second = session.remote.same(buffer), session.remote.same(ipc.ext(0, "\5"))
      assert.is_true(rawequal(first, second))
      assert.are.equal(buffer, first)
      local seen = { [first] = true }
      assert.is_true(seen[session.remote.same(first)])
      assert.is_nil(seen[session.remote.same(ipc.ext(1, "\5"))])
      assert.is_nil(seen[session.remote.same(ipc.ext(0, "\6"))])
      assert.are.equal(ipc.ext(-5, ""), session.remote.same(ipc.ext(-5, "")))
      assert.are.equal(ipc.ext(0x40, "\x92\1\0"), session.remote.same(ipc.ext(0x40, "\x92\1\0")))
      local weak = setmetatable({ session.remote.same(ipc.ext(2, "gone")) }, { __mode = "v" })
      session.remote.same(1, 2, 3, 4)
      collectgarbage()
      assert.is_nil(weak[1])
    end)
  end)
end)

describe("references and the end of a connection:", function()
  before_each(function() ipc.loop.use(nil) end)
  after_each(function()
    peer.clean()
    ipc.scheduler(nil)
  end)

  it("nothing is held any more, and who uses a stand-in is told", function()
    elsewhere.run(function()
      local kept, failed
      local weak = setmetatable({}, { __mode = "k" })
      local waits = ipc.loop.queue()
      local server <close> = assert(ipc.rpc.serve(peer.address "unix", {
        keep = function(f) kept = f end,
        make = function()
          local f = function() end
          weak[f] = true
          return f
        end,
        hang = function(f)
          waits:put "there"
          failed = table.pack(f:call())
          waits:put "told"
        end,
      }))
      local session = assert(ipc.rpc.connect(server.address, { timeout = peer.limit }))
      local f = session.remote.make()
      session.remote.keep(function() end)
      local sleeping = ipc.loop.queue()
      session:async("hang", function() return sleeping:get(peer.limit) end)
      assert.are.equal("there", waits:get(peer.limit))
      session:call("make")
      session:close()
      assert.are.equal("told", waits:get(peer.limit))
      assert.are.same({ nil, "closed", E.EPIPE }, { failed[1], failed[2], failed[3] })
      assert.are.same({ nil, "closed", E.EPIPE }, { (function(a, b, c) return a, b, c end)(f:call()) })
      assert.are.same({ nil, "closed", E.EPIPE }, { (function(a, b, c) return a, b, c end)(kept:call()) })
      local ok, problem = pcall(f)
      assert.is_false(ok)
      assert.are.equal(E.EPIPE, problem.errno)
      ipc.rpc.release(f)
      collectgarbage()
      collectgarbage()
      assert.is_nil(next(weak))
    end)
  end)

  it("stand-ins of one session are passed over another, and work through it", function()
    elsewhere.run(function()
      local back <close> = assert(ipc.rpc.serve(peer.address "unix", exports()))
      local inner <close> = assert(ipc.rpc.connect(back.address, { timeout = peer.limit }))
      local front <close> = assert(ipc.rpc.serve(peer.address "unix", {
        adder = function(n) return inner.remote.adder(n) end,
        open = function(n) return inner.remote.open(n) end,
      }))
      local session <close> = assert(ipc.rpc.connect(front.address, { timeout = peer.limit }))
      local add = session.remote.adder(3)
      assert.are.equal(5, add(2))
      local account = session.remote.open(10)
      assert.are.equal(12, account:deposit(2))
      assert.are.equal(12, account.balance)
      account.balance = 1
      assert.are.equal(1, inner.remote.state())
      assert.are.equal(2, account:tell(function(n) return 2 * n end))
      assert.are.equal(E.ENOSYS, select(3, session:call(account, "secret")))
      inner:close()
      local ok, message, errno = session:call(add, 1)
      assert.are.same({ nil, "closed", E.EPIPE }, { ok, message, errno })
    end)
  end)

  it("a function by its name is passed as any other; what cannot travel raises, and is named", function()
    elsewhere.run(function()
      local server <close> = assert(ipc.rpc.serve(peer.address "unix", exports()))
      local a <close> = assert(ipc.rpc.connect(server.address, { timeout = peer.limit }))
      local b <close> = assert(ipc.rpc.connect(server.address, { timeout = peer.limit }))
      assert.are.equal(2 * 2, b.remote.each(2, a.remote.same) + 1)
      local node = a.remote.same
      assert.are.equal(node, b.remote.same(node))
      assert.are.equal(3, a.remote.each(2, a.remote.same))
      local batch = a:batch()
      for text, value in pairs {
        ["argument 1: a session cannot be sent"] = a,
        ["argument 1: a remote cannot be sent"] = a.remote,
        ["argument 1: a batch cannot be sent"] = batch,
        ["argument 1: a server cannot be sent"] = server,
        ["argument 1.x: a session cannot be sent"] = { x = a:with { timeout = 1 } },
        ["argument 1: a future cannot be sent"] = a:async "nothing",
      } do
        for _, method in ipairs { "call", "async", "notify" } do
          local ok, message = pcall(function() b[method](b, "same", value) end)
          assert.is_false(ok)
          assert.is_truthy(message:find("bad argument to a call (" .. text, 1, true), message)
        end
      end
      local cycle = {}
      cycle.x = cycle
      local ok, message = pcall(function() b:call("same", cycle) end)
      assert.is_false(ok)
      assert.is_truthy(message:find("rpc_references_spec.lua:%d+: bad argument to a call %(argument 1.x: a cycle, "
        .. "back to argument 1%)$"), message)
    end)
  end)

  it("one of another session is no target", function()
    elsewhere.run(function()
      local server <close> = assert(ipc.rpc.serve(peer.address "unix", exports()))
      local a <close> = assert(ipc.rpc.connect(server.address, { timeout = peer.limit }))
      local b <close> = assert(ipc.rpc.connect(server.address, { timeout = peer.limit }))
      local add, future = a.remote.adder(1), a:async("open", 1)
      for _, target in ipairs { add, future } do
        local ok, message = pcall(b.call, b, target, 1)
        assert.is_false(ok)
        assert.is_truthy(tostring(message):find("another session", 1, true), tostring(message))
      end
      local ok, message = pcall(a.call, a, "same", future)
      assert.is_false(ok)
      assert.is_truthy(tostring(message):find("a future cannot be sent", 1, true), tostring(message))
      local here, gone = debug.getinfo(1, "S").short_src, a.remote.adder(1)
      ipc.rpc.release(gone)
      for _, case in ipairs {
        { "bad argument #2 to a call (a method's name expected, got number)", a.remote.open(1), 5 },
        { "bad argument #2 to a call (a method's name expected, got no value)", a.remote.open(1) },
        { "bad argument #1 to a call (name, remote function or remote object expected, got table)", {} },
        { "bad argument to a call (argument 2: the remote function was released)", "same", 1, gone },
      } do
        for _, method in ipairs { "call", "async", "notify" } do
          ok, message = pcall(function() a[method](a, table.unpack(case, 2)) end)
          assert.is_false(ok)
          assert.is_truthy(message:find(case[1], 1, true), message)
          assert.are.equal(1, (message:find(here, 1, true)), message)
        end
      end
      for _, target in ipairs { {}, setmetatable({}, {}), ipc.rpc.object({}, {}), ipc.rpc.stream(next, {}) } do
        assert.has_error(function() a:call(target, 1) end)
        assert.has_error(function() a:async(target, 1) end)
        assert.has_error(function() a:notify(target, 1) end)
      end
    end)
  end)
end)

describe("everything at once:", function()
  before_each(function() ipc.loop.use(nil) end)
  after_each(function()
    peer.clean()
    ipc.scheduler(nil)
  end)

  it("calls begin in the order sent, whoever reads them", function()
    elsewhere.run(function()
      local rpc = ipc.rpc
      local Object = { add = function(self, n) self.n = self.n + n return self.n end }
      local names = {
        each = function(n, f)
          local sum = 0
          for i = 1, n do sum = sum + f(i) end
          return sum
        end,
        open = function(n) return rpc.object({ n = n }, Object, { properties = { "n" } }) end,
        count = function(n) return rpc.stream(function(emit)
          for i = 1, n do
            emit(i)
            if i % 17 == 0 then ipc.sleep(0) end
          end
        end) end,
        sum = function(stream)
          local sum = 0
          for v in stream do sum = sum + v end
          return sum
        end,
      }
      local server <close> = assert(rpc.serve(peer.address "unix", names))
      local session <close> = assert(rpc.connect(server.address, { timeout = peer.limit }))
      local function once(i)
        assert.are.equal(6, session.remote.each(3, function(x) return x end))
        local opened = session:async("open", i)
        assert.are.same({ true, i + 5 }, { opened:async("add", 5):wait() })
        local last = 0
        for v in session.remote.count(20 + i) do
          last = v
          if v > 30 then break end
        end
        assert.are.equal(math.min(31, 20 + i), last)
        assert.are.equal(1275, session.remote.sum(rpc.stream(function(emit) for j = 1, 50 do emit(j) end end)))
        local task = ipc.loop.go(pcall, session.call, session, "each", 50, function(x)
          ipc.sleep(0)
          return x
        end)
        ipc.sleep(0)
        task:cancel()
        task:wait(peer.limit)
        local object <close> = session.remote.open(i)
        assert.are.equal(i, object.n)
      end
      local scope <close> = ipc.loop.scope()
      for _ = 1, 8 do
        scope:go(function() for i = 1, 30 do once(i) end end)
      end
      assert(scope:wait())
    end)
  end)
end)

describe("garbage:", function()
  before_each(function() ipc.loop.use(nil) end)
  after_each(function()
    peer.clean()
    ipc.scheduler(nil)
  end)

  for _, way in ipairs(elsewhere.ways()) do
    it("100,000 callbacks that are passed and dropped leave nothing, " .. way.name .. " #slow", function()
      way.use(exports, function(session)
        local most = 0
        apart(function()
          for i = 1, 10000 do
            local some = {}
            for j = 1, 10 do some[j] = function() return i + j end end
            local ok, message = session:call("sink", table.unpack(some))
            if not ok then error(message) end
            if i % 100 == 0 then most = math.max(most, session:stats().exported) end
          end
        end)
        assert.is_true(most < 10000, most)
        local theirs, ours = settle(session), session:stats()
        assert.are.same({ 0, 0, 0, 0 }, { theirs.exported, theirs.imported, ours.exported, ours.imported })
      end, { timeout = 60 }, { timeout = 60 })
    end)
  end

  it("what is given back goes out in messages that fit", function()
    if not peer.has "unix:?type=seqpacket" and not pcall(ipc.pair, "unix", { type = "seqpacket" }) then
      return pending "no seqpacket"
    end
    elsewhere.run(function()
      local a, b = ipc.pair("unix", { type = "seqpacket", maxsize = 2048 })
      peer.keep(a, b)
      local server <close> = ipc.rpc.serve(a, exports(), { timeout = peer.limit })
      local session <close> = assert(ipc.rpc.connect(b, { timeout = peer.limit }))
      apart(function()
        local held = {}
        for i = 1, 900 do held[i] = session.remote.adder(i) end
        assert.are.equal(900, session.remote.stats().exported)
        return held
      end)
      assert.are.equal(0, settle(session).exported)
      assert.is_truthy(server)
    end)
  end)

  it("what is remembered of calls that answered references is bounded", function()
    elsewhere.run(function()
      local server <close> = assert(ipc.rpc.serve(peer.address "unix", exports()))
      local session <close> = assert(ipc.rpc.connect(server.address, { timeout = peer.limit, calls = 10 }))
      local account = session.remote.open(1)
      for _ = 1, 5000 do session.remote.kept "account" end
      local refs
      for s in pairs(server.sessions) do refs = (s.core or s).refs end
      local n = 0
      for _ in pairs(refs.answers) do n = n + 1 end
      assert.is_true(n <= 1000, n)
      assert.are.equal(2, account:deposit(1))
    end)
  end)
end)

describe("ipc.rpc.object and its neighbours:", function()
  it("mistakes raise, and blame the argument", function()
    local rpc = ipc.rpc
    local function blames(text, fn, ...)
      local ok, message = pcall(fn, ...)
      assert.is_false(ok)
      assert.is_truthy(tostring(message):find(text, 1, true), tostring(message))
    end
    local none = function() end
    blames("bad argument #2 to 'object' (table of functions expected, got nil)", rpc.object, {})
    blames("bad argument #2 to 'object' (x: function expected, got number)", rpc.object, {}, { x = 1 })
    blames("bad argument #2 to 'object' (the key 1 is no string)", rpc.object, {}, { none })
    blames("bad argument #3 to 'object' (table expected, got number)", rpc.object, {}, {}, 1)
    blames("bad argument #3 to 'object' (unknown option 'propertys')", rpc.object, {}, {}, { propertys = {} })
    blames("bad argument #3 to 'object' (properties: list of names expected, got string)", rpc.object, {}, {},
      { properties = "x" })
    for _, list in ipairs { { x = true }, { "a", x = true }, { [0] = "a" }, { [1.5] = "a" } } do
      blames("bad argument #3 to 'object' (properties: list of names expected, got the key ", rpc.object, {}, {},
        { properties = list })
      blames("bad argument #3 to 'object' (writable: list of names expected, got the key ", rpc.object, {}, {},
        { writable = list })
    end
    blames("bad argument #3 to 'object' (writable[1]: name expected, got number)", rpc.object, {}, {},
      { writable = { 1 } })
    blames("bad argument #3 to 'object' (properties: there is a method of that name: x)", rpc.object, {},
      { x = none }, { properties = { "x" } })
    blames("bad argument #1 to 'stream' (function expected, got table)", rpc.stream, {})
    blames("bad argument #1 to 'release' (", rpc.release, {})
    blames("bad argument #1 to 'release' (", rpc.release, rpc.object({}, {}))
    local object = rpc.object({}, { f = none })
    blames("bad self of 'f'", object.f, {})
    blames("no property that can be assigned: x", function() object.x = 1 end)
    assert.are.equal("ipc.rpc.object: f", tostring(object))
  end)

  it("what is of calls is refused by other channels, ipc.pack and ipc.spawn", function()
    elsewhere.run(function()
      local rpc = ipc.rpc
      local kept
      local names = { f = function() end, keep = function(...) kept = { ... } end }
      local server <close> = assert(rpc.serve(peer.address "unix", names))
      local session <close> = assert(rpc.connect(server.address))
      session.remote.keep(print, rpc.object({}, {}), rpc.stream(function() end))
      local a, b = ipc.pair "unix"
      local all = {
        ["remote"] = session.remote.f, ["session"] = session, ["remote_function"] = kept[1],
        ["remote_object"] = kept[2], ["remote_stream"] = kept[3], ["object"] = rpc.object({}, {}),
        ["stream"] = rpc.stream(function() end), ["future"] = session:async "f",
      }
      for name, value in pairs(all) do
        for _, try in ipairs { function() return a:put { x = value } end,
          function() return ipc.pack { x = value } end } do
          local ok, problem = pcall(try)
          assert.is_false(ok, name)
          assert.is_truthy(problem:find("value.x: an ipc.rpc." .. name .. " cannot be packed", 1, true), problem)
        end
        for _, try in ipairs { function() return ipc.spawn(function() end, value) end,
          function() return ipc.spawn(function() return value end) end } do
          local ok, problem = pcall(try)
          assert.is_false(ok, name)
          assert.is_truthy(problem:find("an ipc.rpc." .. name .. " cannot travel", 1, true), problem)
        end
      end
      assert.is_true(a:put { x = 1 })
      assert.are.same({ x = 1 }, b:get(1))
    end)
  end)

  it("methods are read once, and metatables of the table count for nothing", function()
    elsewhere.run(function()
      local Methods = setmetatable({ a = function() return "a" end }, { __index = function() return print end })
      local object = ipc.rpc.object({}, Methods)
      Methods.b = function() return "b" end
      local server <close> = assert(ipc.rpc.serve(peer.address "unix", { get = function() return object end }))
      local session <close> = assert(ipc.rpc.connect(server.address, { timeout = peer.limit }))
      local there = session.remote.get()
      assert.are.equal("a", there:a())
      assert.is_nil(there.b)
      assert.are.equal(E.ENOSYS, select(3, session:call(there, "b")))
    end)
  end)

  it("the alias that Neovim's clients ask for, on request", function()
    elsewhere.run(function()
      local names = { add = function() end, math = { sub = function() end } }
      for _, on in ipairs { true, false } do
        local server <close> = assert(ipc.rpc.serve(peer.address "unix", names, { nvim = on,
          docs = { add = "adds" } }))
        local session <close> = assert(ipc.rpc.connect(server.address, { peer = "nvim", timeout = peer.limit }))
        local ok, answer, errno = session:call "nvim_get_api_info"
        if on then
          assert.is_true(ok)
          assert.are.equal("integer", math.type(answer[1]))
          assert.are.equal("add", answer[2].functions[1].name)
          assert.are.equal("math.sub", answer[2].functions[2].name)
          assert.are.equal(1, answer[2].types.Window.id)
          local methods = assert(session:methods())
          assert.are.equal("math.sub() -> Object", methods["math.sub"])
        else
          assert.are.same({ nil, "no method: nvim_get_api_info", E.ENOSYS }, { ok, answer, errno })
        end
      end
    end)
  end)
end)
