-- Every promise of the contract, on every row of spec/rooms.lua. A promise that
-- a room cannot make is not skipped: a test of its own shows that what it takes
-- is really absent.
local ipc = require "ipc"
local rooms = require "spec.rooms"
local with = require "spec.support.with"

local E = ipc.errno
local PATIENCE = with.patience
local NO_TAGS = "no tags here: the timeout is the third argument"

-- nil, exactly this word, its errno, nothing more.
local function answers(word, errno, ...)
  assert.are.equal(3, select("#", ...))
  assert.are.same({ nil, word, errno }, { ... })
end

local function times_out(...) return answers("timeout", E.ETIMEDOUT, ...) end
local function is_closed(...) return answers("closed", E.EPIPE, ...) end

-- nil, "ipc.room.call: ... reason", errno.
local function fails(errno, pattern, ...)
  local nothing, message, number = ...
  assert.is_nil(nothing)
  assert.are.equal(errno, number)
  assert.matches("^ipc%.%w+%.%w+: ", message)
  assert.matches(pattern, message)
end

local function raises(pattern, f)
  local ok, message = pcall(f)
  assert.is_false(ok, "raises nothing")
  assert.matches(pattern, tostring(message))
end

-- The error object that an iterator raises.
local function raised(f)
  local ok, object = pcall(f)
  assert.is_false(ok, "raises nothing")
  assert.is_table(object)
  return object
end

local function elapsed(f, ...)
  local start = ipc.now()
  local results = table.pack(f(...))
  return ipc.now() - start, table.unpack(results, 1, results.n)
end

-- What receives as one would without ever waiting: recv(0) until it answers
-- something else than timeout, running `step` in between.
local function receive_without_waiting(r, step)
  local limit = ipc.now() + PATIENCE
  repeat
    local message, why, errno = r:recv(0)
    if message or errno ~= E.ETIMEDOUT then return message, why end
    step()
  until ipc.now() > limit
  return nil, "no patience left"
end

-- Of a rest of so many bytes; TCP may have taken some of it meanwhile.
local function tells_unsent(row, unsent, message)
  local n = math.tointeger(message:match "^(%d+) bytes unsent$")
  assert.is_true(n == unsent or row.mechanism.address == "tcp" and n ~= nil and n > 0 and n < unsent, message)
end

local BIG = ("0123456789abcdef"):rep(1 << 16) -- more than any medium holds

for _, row in ipairs(rooms) do
  -- What a promise may need, and how it is seen to be absent.
  local absent = {
    ["both ways"] = not row.both and function()
      local r, w = with.open(row)
      raises("ipc%.%w+: this end only receives", function() r:send "x" end)
      raises("ipc%.%w+: this end only sends", function() w:recv(0) end)
    end,
    ["one way"] = row.both and function()
      local r, w = with.open(row)
      assert(r:send "back")
      assert.are.equal("back", w:recv())
    end,
    -- The medium takes a message in parts.
    parts = row.whole and function()
      local r, w = with.open(row)
      if row.lossy then assert(w:send(("x"):rep(4000))) else with.fill(w, ("x"):rep(4000)) end
      assert.are.equal(0, w:stats().unsent)
      assert.is_truthy(r:recv())
    end,
    packets = not row.whole and function()
      local _, w = with.open(row)
      assert(w:send(BIG, nil, 0))
      assert.is_true(w:stats().unsent > 0)
    end,
    ["the sender's descriptor"] = (row.remote or row.can.integer_tag
      or row.memory or row.both and (row.room == "pipe" or row.room == "fifo")) and function()
        local r, w = with.open(row) -- it is somewhere else, or another than pollfd tells
        if row.can.integer_tag then -- or what is written there would have no tag
          assert(w:send "x")
          assert.are.equal("integer", math.type(select(2, r:recv())))
        elseif row.memory then -- or only tells that there is something
          assert.has_error(function() with.raw(w:pollfd())(("x"):rep(20)) end)
          times_out(r:recv(0))
        else
          assert.is_true(rooms.is_proxy(w) or w:events() == "r")
        end
      end,
    -- Whoever sends waits while the medium is full.
    ["a sender that waits"] = row.lossy and function()
      local r, w = with.open(row)
      local text, got = ("x"):rep(1000), 0
      for _ = 1, 2000 do assert(w:send(text, nil, 0)) end -- more than it holds: what is over is lost
      while r:recv(0) do got = got + 1 end
      assert.is_true(got > 0 and got < 2000)
    end,
    liveness = not row.can.liveness and function()
      local r, w = with.open(row) -- a killed peer and one that is silent look the same
      local child = with.fork(function(writer)
        writer:send "last words"
        ipc.parent:send "said"
        ipc.parent:recv()
      end, w)
      assert(child:recv(PATIENCE))
      assert(child:kill "KILL")
      assert.is_nil(child:wait(PATIENCE))
      assert.are.equal("last words", (r:recv()))
      times_out(r:recv(0.01))
      times_out(ipc.poll({ r }, 0))
    end,
    ["an end"] = not row.ends and function()
      local r, w = with.open(row)
      assert(w:send "last")
      w:close()
      assert.are.equal("last", (r:recv()))
      times_out(r:recv(0)) -- another may open it yet
      times_out(ipc.poll({ r }, 0))
    end,
    ["a sender that is told"] = not row.tells and (row.ends and function()
      local r, w = with.open(row)
      assert(r:close())
      for _ = 1, 200 do assert(w:send(("x"):rep(1000), nil, PATIENCE)) end
      assert.is_true(ipc.poll({ { w, "w" } }, PATIENCE)[w])
    end or row.ends == false and function()
      local r, w = with.open(row)
      assert(r:close())
      assert(w:send("x", nil, PATIENCE))
    end),
    ["tags that are forwarded"] = row.answers and function()
      local r, w = with.open(row)
      assert(w:send "whose?")
      assert.are.same({ "whose?", w:address() }, { r:recv() })
    end,
    moves = row.shares and function()
      local r, w = with.open(row)
      local child = with.fork(function() return (r:recv(PATIENCE)), w:send "from the child" end)
      assert(w:send "from the parent")
      assert.are.same({ true, "from the parent", true }, { child:wait(PATIENCE) })
      if row.every then assert.are.equal("from the parent", (r:recv())) end
      assert.are.equal("from the child", (r:recv()))
      assert(w:send "still" and r:recv())
    end,
    ["a writer that moves"] = row.keeps_writer and function()
      local r, w = with.open(row)
      local child = with.fork(function() return w:send "there" end)
      assert.is_true(child:wait(PATIENCE))
      assert(w:send "and here")
      assert.are.equal("there", r:recv())
      assert.are.equal("and here", r:recv())
    end,
    options = not row.options and function()
      for _, mechanism in ipairs(ipc.mechanisms()) do
        assert.are_not.equal(row.room, mechanism.room, "can be opened by an address")
      end
    end,
    ["the receiver here"] = row.remote == "reader" and function()
      local r, w = with.open(row)
      assert.is_true(rooms.is_proxy(r))
      assert.is_false(rooms.is_proxy(w))
    end,
    ["the sender here"] = row.remote == "writer" and function()
      local r, w = with.open(row)
      assert.is_true(rooms.is_proxy(w))
      assert.is_false(rooms.is_proxy(r))
    end,
    ["many readers"] = row.every and function()
      local r, w = with.open(row)
      local r2 = with.close(assert(r:dup()))
      assert(w:send "one" and w:send "two")
      for _, reader in ipairs { r, r2 } do
        assert.are.equal("one", (reader:recv(PATIENCE)))
        assert.are.equal("two", (reader:recv(PATIENCE)))
      end
    end or not row.can.many_readers and function()
      local r, w = with.open(row) -- a reader reads ahead: another would miss that
      local copy, message, errno
      for _ = 1, 20 do
        assert(w:send "one" and w:send "two" and r:recv())
        if row.remote then return end
        copy, message, errno = r:dup()
        if not copy then break end
        copy:close() -- what was read ended with the message, by chance
      end
      local why = row.sole and "it is made for one reader, and has one" or "bytes are on their way"
      fails(E.EBUSY, why, copy, message, errno)
    end,
    dup = row.sole and function()
      local r, w = with.open(row)
      fails(E.EBUSY, "it is made for one writer, and has one", w:dup())
      fails(E.EBUSY, "it is made for one reader, and has one", r:dup())
      assert(w:send "undisturbed")
      assert.are.equal("undisturbed", r:recv())
    end or row.once and function()
      local r, w = with.open(row)
      local copy, _, errno = w:dup()
      assert.is_nil(copy)
      assert.are.equal(E.ENOTSUP, errno)
      assert(w:send "undisturbed")
      assert.are.equal("undisturbed", r:recv())
    end,
    -- Closing a process ends it, and with it the end that is there.
    ["a peer that survives the sender's close"] = row.remote == "reader" and function()
      local r, w = with.open(row)
      r.questions:close()
      assert.is_true(w:close())
      assert.are.equal("exit", w.reason.kind)
    end,
    ["a peer that survives the receiver's close"] = row.remote == "writer" and function()
      local r, w = with.open(row)
      w.questions:close()
      assert.is_true(r:close())
      assert.are.equal("exit", r.reason.kind)
    end,
  }
  absent["both here"] = absent["the receiver here"] or absent["the sender here"]

  local function promise(text, needs, f)
    if not f then needs, f = {}, needs end
    for _, need in ipairs(needs) do
      if absent[need] then
        return it(("does without: %s (no %s)"):format(text, need), absent[need])
      end
    end
    it(text, f)
  end

  local function open(options) return with.open(row, options) end

  -- Nothing more comes: the other side has gone, which some rooms tell.
  local function at_end(r)
    if row.ends then return is_closed(r:recv()) end
    return times_out(r:recv(0))
  end

  -- The receiver has gone, which the sender learns; some media only by what comes
  -- back to a message that they still took.
  local function is_told(w, killed)
    local limit, late = ipc.now() + PATIENCE, row.late == true or killed and row.late == "killed"
    while late and w:send("x", nil, PATIENCE) and ipc.now() < limit do ipc.sleep(0) end
    return is_closed(w:send("x", nil, PATIENCE))
  end

  local TAGS <const> = (row.can.integer_tag or row.can.address_tag) and 1 or 0

  -- A fork for every test takes long under valgrind.
  local title = "the contract: " .. row.name .. (row.remote and ": #slow" or ":")
  describe(title, function()
    after_each(with.cleanup)

    describe("results feed parameters:", function()
      promise("one send is one recv, whole and in order", function()
        local r, w = open()
        local sent = { "a", "", ("b"):rep(3000), "\0\255\n" }
        for _, message in ipairs(sent) do assert.is_true(w:send(message)) end
        for _, message in ipairs(sent) do assert.are.equal(message, r:recv()) end
      end)

      promise("b:send(a:recv()) forwards a message", { "tags that are forwarded" }, function()
        local r1, w1 = open()
        local r2, w2 = open()
        assert(w1:send "pass it on")
        assert(w2:send(r1:recv()))
        assert.are.equal("pass it on", r2:recv())
      end)

      promise("b:put(a:get()) forwards a value", { "tags that are forwarded" }, function()
        local r1, w1 = open()
        local r2, w2 = open()
        assert(w1:put { 1, { two = 3.5 } })
        assert(w2:put(r1:get()))
        assert.are.same({ 1, { two = 3.5 } }, r2:get())
      end)

      promise("a tag comes with the message exactly where there are tags", function()
        local r, w = open()
        assert(w:send "x" and w:put "y")
        assert.are.equal(1 + TAGS, select("#", r:recv()))
        assert.are.equal(1 + TAGS, select("#", r:get()))
      end)

      promise("a number in a tag's place says where the timeout goes", function()
        if row.can.integer_tag then
          local r, w = open()
          assert(w:send("x", 3))
          assert.are.same({ "x", row.counts and 0 or 3 }, { r:recv() })
          assert(w:put({ "y" }, 4))
          assert.are.same({ { "y" }, row.counts and 0 or 4 }, { r:get() })
          for _, call in ipairs { "send", "put" } do
            for _, tag in ipairs { -1, 1.5, "3", {} } do
              raises("bad argument #%d to '[%w?]+' %(", function() return w[call](w, "x", tag) .. "" end)
            end
          end
          raises("bad argument #%d to ", function() w:sendmany({ "x" }, "3") end)
          times_out(r:recv(0))
          return
        end
        if row.can.address_tag then
          local r, w = open()
          for _, tag in ipairs { 5, 1.5, true, {} } do
            for _, call in ipairs { "send", "put" } do
              raises("bad argument #%d to '[%w?]+' %(address expected",
                function() return w[call](w, "x", tag) .. "" end)
            end
            raises("address expected", function() w:sendmany({ "x" }, tag) end)
          end
          for _, call in ipairs { "recv", "get", "messages", "values" } do
            raises("nothing is selected by tag here", function() r[call](r, 0, "x") end)
          end
          raises("nothing is selected by tag here", function() r:recvmany(1, 0, "x") end)
          times_out(r:recv(0))
          return
        end
        local r, w = open()
        raises("bad argument #%d to '[%w?]+' %(" .. NO_TAGS .. "%)",
          function() return w:send("x", 5) .. "" end)
        raises(NO_TAGS, function() w:put("x", 5) end)
        raises(NO_TAGS, function() w:sendmany({ "x" }, 5) end)
        raises("no tags here", function() w:send("x", "high") end)
        for _, call in ipairs { "recv", "get", "messages", "values" } do
          raises("no tags here", function() r[call](r, 0, 5) end)
        end
        raises("no tags here", function() r:recvmany(1, 0, 5) end)
        times_out(r:recv(0))
      end)

      promise("put and get carry every kind of value; a nil arrives as ipc.null", function()
        local r, w = open()
        for _, value in ipairs { 1, -1.5, true, false, "s", math.mininteger, 0 } do
          assert(w:put(value))
          local got = r:get()
          assert.are.equal(value, got)
          assert.are.equal(math.type(value), math.type(got))
        end
        if not row.remote then
          assert(w:put(nil))
          local results = table.pack(r:get())
          assert.are.equal(1 + TAGS, results.n)
          assert.are.equal(ipc.null, results[1])
        end
      end)

      promise("sendmany answers how many, recvmany lists what is there", function()
        local r, w = open()
        assert.are.equal(0, w:sendmany {})
        assert.are.equal(3, w:sendmany { "1", "", "3" })
        assert(w:send "4")
        local got = {}
        while #got < 4 do
          local list = assert(r:recvmany(2))
          assert.is_true(#list >= 1 and #list <= 2)
          table.move(list, 1, #list, #got + 1, got)
        end
        assert.are.same({ "1", "", "3", "4" }, got)
        times_out(r:recvmany(5, 0))
      end)

      promise("recvmany takes what is there without waiting for more", function()
        local r, w = open()
        assert(w:sendmany { "1", "2", "3" })
        assert.are.equal("1", r:recv())
        local list = assert(r:recvmany(1000, math.huge))
        if os.getenv "IPC_FAULT_RATE" and #list == 1 then list[2] = r:recv() end -- a short read
        assert.are.same({ "2", "3" }, list)
      end)
    end)

    describe("failure:", function()
      promise("is nil, message, errno", function()
        local r = open()
        times_out(r:recv(0))
        times_out(r:get(0))
        times_out(r:recvmany(1, 0))
      end)

      promise("a message that does not decode is consumed", function()
        local r, w = open()
        assert(w:send "\xc1" and w:send "\x01\x02" and w:put "good")
        fails(E.EBADMSG, "%.get: ", r:get())
        fails(E.EBADMSG, "%.get: ", r:get())
        assert.are.equal("good", r:get())
      end)
    end)

    describe("a mistake raises and blames the argument:", function()
      promise("what is sent", { "the sender here" }, function()
        local _, w = open()
        local function bad(n, call, ...)
          local arguments = table.pack(...)
          local f = function()
            return (w[call](w, table.unpack(arguments, 1, arguments.n)))
          end
          local ok, message = pcall(f)
          assert.is_false(ok, call)
          -- not called as a method here: the channel itself is #1
          assert.are.equal(n + 1, tonumber(message:match "bad argument #(%d)"), message)
        end
        bad(1, "send")
        bad(1, "send", nil)
        bad(1, "send", 42)
        bad(1, "send", {})
        bad(3, "send", "x", nil, "1")
        bad(3, "send", "x", nil, true)
        bad(3, "send", "x", nil, 0 / 0)
        bad(1, "put")
        bad(3, "put", 1, nil, 0 / 0)
        bad(1, "sendmany")
        bad(1, "sendmany", "x")
        bad(1, "sendmany", { "x", 42 })
        bad(3, "sendmany", { "x" }, nil, "1")
        bad(1, "flush", "soon")
        bad(1, "settimeout", "soon")
        bad(1, "settimeout", 0 / 0)
      end)

      promise("what is received", { "the receiver here" }, function()
        local r = open()
        local function bad(n, call, ...)
          local arguments = table.pack(...)
          local ok, message = pcall(function()
            return (r[call](r, table.unpack(arguments, 1, arguments.n)))
          end)
          assert.is_false(ok, call)
          -- not called as a method here: the channel itself is #1
          assert.are.equal(n + 1, tonumber(message:match "bad argument #(%d)"), message)
        end
        for _, call in ipairs { "recv", "get", "messages", "values" } do
          bad(1, call, "1")
          bad(1, call, {})
          bad(1, call, 0 / 0)
        end
        bad(1, "recvmany")
        bad(1, "recvmany", 0)
        bad(1, "recvmany", -1)
        bad(1, "recvmany", 1.5)
        bad(1, "recvmany", "2")
        bad(2, "recvmany", 1, "1")
      end)

      promise("by its name and place, as in any Lua function", { "the receiver here" }, function()
        local r = open()
        raises("contract_spec%.lua:%d+: bad argument #1 to 'recv' %(seconds expected, got string%)",
          function() return r:recv "1" .. "" end)
      end)

      promise("a self that is none", { "both here" }, function()
        local r, w = open()
        for _, self in ipairs { 1, "x", {}, io.stdout } do
          raises("bad argument #1 to ", function() r.recv(self, 0) end)
          raises("bad argument #1 to ", function() w.close(self) end)
          raises("bad argument #1 to ", function() w.send(self, "x") end)
        end
      end)

      promise("an unknown option, or one of the wrong kind", { "options" }, function()
        raises("unknown option 'colour'", function() row.open { colour = "red" } end)
        raises("option 'timeout'", function() row.open { timeout = "1" } end)
        raises("option 'timeout'", function() row.open { timeout = 0 / 0 } end)
        raises("option 'linger'", function() row.open { linger = {} } end)
        for _, maxsize in ipairs { 0, -1, 1.5, math.huge, "1" } do
          raises("option 'maxsize'", function() row.open { maxsize = maxsize } end)
        end
      end)

      promise("a direction that the room lacks", { "one way" }, function()
        local r, w = open()
        for _, call in ipairs { "send", "put", "sendmany", "flush", "shutdown" } do
          raises(": this end only receives", function() r[call](r, "x") end)
        end
        for _, call in ipairs { "recv", "get", "recvmany", "messages", "values" } do
          raises(": this end only sends", function() w[call](w, 1) end)
        end
      end)

      promise("a value that cannot travel, naming the path to it", { "the sender here" }, function()
        local r, w = open()
        raises("a function cannot", function() w:put(print) end)
        raises("list%[2%]%.f", function() w:put { list = { 1, { f = print } } } end)
        local cycle = {}
        cycle.self = cycle
        raises("self", function() w:put(cycle) end)
        assert(w:put "unharmed")
        assert.are.equal("unharmed", r:get())
      end)

      promise("a handle as a value where handles do not travel", { "the sender here" }, function()
        local _, w = open()
        if not row.can.handles then
          raises("ipc%.", function() w:put { reply = w } end)
        end
      end)

      promise("reading lines from messages", function()
        local r = open()
        raises('needs unit = "stream"', function() r:read "l" end)
        raises('needs unit = "stream"', function() r:lines() end)
      end)

      promise("options that every room takes are accepted", { "options" }, function()
        local r, w = open {
          create = true, temporary = true, permissions = "0600", retry = true, keepalive = false,
          timeout = 1, maxsize = 100, linger = 0.1, spin = 0,
        }
        assert(w:send "x")
        assert.are.equal("x", r:recv())
      end)
    end)

    describe("time:", function()
      promise("0 and less never wait", function()
        local r = open()
        for _, timeout in ipairs { 0, -1, -0.0, -math.huge, math.mininteger } do
          times_out(r:recv(timeout))
        end
      end)

      promise("a deadline is kept, not shortened", function()
        local r = open()
        local time, message = elapsed(r.recv, r, 0.03)
        assert.is_nil(message)
        assert.is_true(time >= 0.03)
      end)

      promise("for ever, infinite and huge times wait for what comes", { "the receiver here" },
        function()
          for _, timeout in ipairs { math.huge, 1e300, math.maxinteger, false } do
            local r, w = open()
            if row.remote then
              w.questions:put { "send", "at last", n = 2 } -- sent while this end waits
            else
              with.fork(function(late)
                assert(ipc.parent:recv(PATIENCE))
                late:send "at last"
              end, w):send "go"
            end
            r:settimeout(nil)
            assert.are.equal("at last", r:recv(timeout or nil))
            with.cleanup()
          end
        end)

      promise("nil is the channel's default, which settimeout sets", { "the receiver here" },
        function()
          local r = open()
          assert.is_true(r:settimeout(0))
          times_out(r:recv())
          times_out(r:recv(nil))
          times_out(r:recvmany(1))
          r:settimeout(-5)
          times_out(r:get())
          r:settimeout(0.02)
          assert.is_true(elapsed(r.recv, r) >= 0.02)
          assert.is_true(elapsed(r.get, r) >= 0.02)
          assert.are.equal(E.ETIMEDOUT, raised(r:messages()).errno)
        end)

      promise("the option timeout is the default too", { "options", "the receiver here" }, function()
        local r, w = open { timeout = 0.02 }
        with.fork(function(_) ipc.sleep(PATIENCE) end, w) -- closed, at the latest
        local time, _, word = elapsed(r.recv, r)
        assert.are.equal("timeout", word)
        assert.is_true(time >= 0.02)
      end)

      promise("a sender waits as long as it was told", { "a sender that waits", "the sender here" },
        function()
        local _, w = open()
        with.fill(w, ("x"):rep(1000))
        local time, sent, word = elapsed(w.send, w, ("x"):rep(1000), nil, 0.03)
        assert.is_nil(sent)
        assert.are.equal("timeout", word)
        assert.is_true(time >= 0.03)
        times_out(w:put(("x"):rep(1000), nil, 0))
      end)
    end)

    describe("accepted or untouched:", function()
      promise("what was accepted arrives, what was not does not", { "a sender that waits" }, function()
        local r, w = open()
        local n, text = 0, ("x"):rep(1000)
        while true do
          local sent, word, errno = w:send(("%06d"):format(n + 1) .. text, nil, 0)
          if not sent then
            times_out(sent, word, errno)
            break
          end
          n = n + 1
        end
        assert.is_true(n > 1)
        assert(w:settimeout(0))
        for i = 1, n do
          local message = assert(r:recv())
          assert.are.equal(i, tonumber(message:sub(1, 6)))
          assert.are.equal(1006, #message)
          w:flush()
        end
        times_out(r:recv(0))
        assert.are.equal(0, w:stats().unsent)
        assert(w:send "next")
        assert.are.equal("next", r:recv())
      end)

      promise("sendmany says how many were accepted", { "a sender that waits" }, function()
        local r, w = open()
        local list = {}
        for i = 1, 5000 do list[i] = ("%04d"):format(i) .. ("x"):rep(196) end
        local results = table.pack(w:sendmany(list, nil, 0.01))
        assert.are.equal(4, results.n)
        times_out(table.unpack(results, 1, 3))
        local n = results[4]
        assert.is_true(n > 0 and n < #list)
        w:settimeout(0)
        for i = 1, n do
          assert.are.equal(list[i], r:recv())
          w:flush()
        end
        times_out(r:recv(0))
      end)

      promise("a deadline after the first byte does not fail the send", { "parts", "the sender here" },
        function()
          local r, w = open()
          local time, sent = elapsed(w.send, w, BIG, nil, 0.02)
          assert.is_true(sent)
          assert.is_true(time >= 0.02)
          assert.is_true(w:stats().unsent > 0)
          assert.are.equal(1, w:stats().sent)
          if row.remote then -- the receiver waits in its own process, the rest goes by flush
            r.questions:put { "recv", PATIENCE, n = 2 }
            assert(w:flush())
            assert.are.equal(BIG, r.answers:get()[2])
          else
            assert.are.equal(BIG, r:recv()) -- the wait for it writes it
          end
          assert.are.equal(0, w:stats().unsent)
        end)

      promise("with a rest pending a new send sends nothing of its own", { "parts", "both here" },
        function()
          local r, w = open()
          assert(w:send(BIG, nil, 0))
          for _ = 1, 3 do
            times_out(w:send("new", nil, 0))
            times_out(w:put("new", nil, 0.001))
            local n, word, _, sent = w:sendmany({ "new", "new" }, nil, 0)
            assert.is_nil(n)
            assert.are.equal("timeout", word)
            assert.are.equal(0, sent)
          end
          assert.are.equal(1, w:stats().sent)
          assert.are.equal(BIG, r:recv())
          times_out(r:recv(0.001))
        end)

      promise("the rest is written by later sends", { "parts", "both here" }, function()
        local r, w = open()
        assert(w:send(BIG, nil, 0))
        local after
        local got = receive_without_waiting(r, function()
          if not after then after = w:send("after", nil, 0) end
        end)
        assert.are.equal(BIG, got)
        assert(after or w:send "after")
        assert.are.equal("after", r:recv())
        times_out(r:recv(0))
      end)

      promise("by flush", { "parts", "both here" }, function()
        local r, w = open()
        assert(w:flush())
        assert(w:put(BIG, nil, 0))
        times_out(w:flush(0))
        assert.is_true(elapsed(w.flush, w, 0.01) >= 0.01)
        collectgarbage()
        local flushed
        local got = receive_without_waiting(r, function() flushed = w:flush(0) end)
        assert.are.equal(BIG, ipc.unpack(got))
        assert(flushed or w:flush(0))
        assert.is_true(w:flush())
      end)

      for name, wait in pairs {
        ["by a wait on another handle"] = function(other) times_out(other:recv(0.0005)) end,
        ["by ipc.poll"] = function(other) times_out(ipc.poll({ other }, 0.0005)) end,
        ["by ipc.sleep"] = function() assert(ipc.sleep(0.0005)) end,
      } do
        promise("the rest is written " .. name, { "parts", "both here" }, function()
          local r, w = open()
          local other = with.close(ipc.pipe())
          assert(w:send(BIG:sub(1, -2) .. "!", nil, 0))
          collectgarbage()
          local got = receive_without_waiting(r, function() wait(other) end)
          assert.are.equal(BIG:sub(1, -2) .. "!", got)
          assert.are.equal(0, w:stats().unsent)
        end)
      end

      promise("by close, for as long as linger", { "parts", "both here" }, function()
        local r, w = open(row.options and { linger = PATIENCE } or nil)
        local child = with.fork(function(reader)
          ipc.parent:send "begin"
          local size, _, why = #reader:recv(PATIENCE), reader:recv(PATIENCE)
          return size, why
        end, r)
        assert(child:recv(PATIENCE))
        assert(w:send(BIG, nil, 0))
        assert.is_true(w:close())
        assert.are.same({ true, #BIG, "closed" }, { child:wait(PATIENCE) })
      end)

      promise("close reports what had to be dropped, once", { "parts", "both here", "options" },
        function()
          local r, w = open { linger = 0 }
          assert(w:send "before")
          assert(w:send(BIG, nil, 0))
          local unsent = w:stats().unsent
          local ok, message, errno = w:close()
          assert.is_nil(ok)
          tells_unsent(row, unsent, message)
          assert.are.equal(E.ETIMEDOUT, errno)
          assert.is_true(w:close())
          assert.are.equal("before", r:recv())
          is_closed(r:recv()) -- half a message is none
        end)

      promise("close waits for linger", { "parts", "both here", "options" }, function()
        local _, w = open { linger = 0.03 }
        assert(w:send(BIG, nil, 0))
        local time, ok, message = elapsed(w.close, w)
        assert.is_nil(ok)
        assert.matches("^%d+ bytes unsent$", message)
        assert.is_true(time >= 0.03)
      end)

      promise("a peer that goes before the rest is out: closed, and close tells",
        { "parts", "both here" }, function()
          local r, w = open()
          assert(w:send(BIG, nil, 0))
          local unsent = w:stats().unsent
          assert(r:close())
          is_closed(w:send("x", nil, 0))
          local ok, message, errno = w:close()
          assert.is_nil(ok)
          tells_unsent(row, unsent, message)
          assert.are.equal(E.EPIPE, errno)
          assert.is_true(w:close())
        end)

      promise("a full medium leaves a packet out, whole", { "a sender that waits", "packets", "both here" },
        function()
        local r, w = open()
        local packet = ("x"):rep(3000)
        local n = with.fill(w, packet)
        assert.are.equal(0, w:stats().unsent)
        assert.is_true(w:flush(0))
        times_out(w:send(packet, nil, 0.001))
        assert.are.equal(n, w:stats().sent)
        assert.is_true(w:close())
        for _ = 1, n do assert.are.equal(3000, #r:recv()) end
        at_end(r)
      end)
    end)

    describe("too big:", function()
      promise("to send: both figures, untouched", { "options" }, function()
        local r, w = open { maxsize = 10 }
        assert.are.equal(10, w:maxsize())
        fails(E.EMSGSIZE, "11.*10", w:send(("x"):rep(11)))
        fails(E.EMSGSIZE, "%.put: .*12.*10", w:put(("x"):rep(11)))
        assert(w:send(("y"):rep(10)))
        local n, message, errno, sent = w:sendmany { "a", ("x"):rep(11), "b" }
        fails(E.EMSGSIZE, "%.sendmany: 11.*10", n, message, errno)
        assert.are.equal(1, sent)
        assert.are.equal(("y"):rep(10), r:recv())
        assert.are.equal("a", r:recv())
        times_out(r:recv(0))
      end)

      -- What the medium carries of a message, by a peer without our limits.
      local padded = row.room == "pipe"
        or row.name == "unix seqpacket" and (os.getenv "IPC_WITHOUT" or ""):find "passcred"
      local function bytes_of(message)
        if not row.whole then return (">s4"):pack(message) end
        return padded and "\0" .. message or message
      end

      local function raw(w) return with.raw(w:pollfd()) end

      promise("to receive: consumed, reported once with both figures, then on",
        { "options", "the sender's descriptor" }, function()
          for _, call in ipairs { "recv", "get", "recvmany" } do
            local r, w = open { maxsize = 10 }
            local write = raw(w)
            assert(w:put "one")
            write(bytes_of(("x"):rep(20)))
            assert(w:put "two")
            local function take()
              if call == "recvmany" then
                local list, message, errno = r:recvmany(5)
                if not list then return list, message, errno end
                assert.are.equal(1, #list)
                return ipc.unpack(list[1])
              elseif call == "get" then
                return r:get()
              end
              local message, why, errno = r:recv()
              if not message then return message, why, errno end
              return ipc.unpack(message)
            end
            assert.are.equal("one", take())
            fails(E.EMSGSIZE, "%." .. call .. ": .*20 .*10", take())
            assert.are.equal("two", take())
            times_out(r:recv(0))
          end
        end)

      promise("a message over the limit is ready to be reported",
        { "options", "the sender's descriptor" }, function()
          local r, w = open { maxsize = 10 }
          raw(w)(bytes_of(("x"):rep(20)))
          assert.is_true(ipc.poll({ r }, PATIENCE)[r])
          fails(E.EMSGSIZE, "20 .*10", r:recv(0))
          times_out(ipc.poll({ r }, 0))
        end)

      promise("memory grows with what came, never with what was announced",
        { "parts", "the sender's descriptor" }, function()
          local r, w = open()
          local write = raw(w)
          local size = with.memory()
          write((">I4"):pack(60 << 20) .. ("x"):rep(100))
          for _ = 1, 3 do times_out(r:recv(0)) end
          times_out(ipc.poll({ r }, 0))
          assert.is_true(with.memory() - size < 8 << 10)
        end)

      promise("a length that cannot be one asks whether the peer speaks frames",
        { "parts", "the sender's descriptor" }, function()
          local r, w = open()
          raw(w) "GET / HTTP/1.0\r\n" -- 1.1 GiB announced
          fails(E.EMSGSIZE, "speak frames", r:recv())
          r, w = open()
          raw(w) "\xff\xff\xff\xff"
          fails(E.EBADMSG, "speak frames", r:recv())
        end)

      promise("maxsize is what a message may have", { "options" }, function()
        local _, w = open()
        local most = w:maxsize()
        assert.are.equal("integer", math.type(most))
        if row.whole then
          fails(E.EMSGSIZE, tostring(most + 1) .. ".*" .. most, w:send(("x"):rep(most + 1)))
          local r2, w2 = open()
          assert(w2:send(("x"):rep(most)))
          assert.are.equal(most, #r2:recv())
        end
      end)

      promise("asking for more than there is is an error naming the limit", { "options" }, function()
        local ok, r, message = pcall(row.open, { maxsize = 1 << 40 })
        assert.is_falsy(ok and r)
        assert.matches("%d%d%d", ok and message or r)
        assert.matches("maxsize", ok and message or r)
      end)
    end)

    describe("closed:", function()
      promise("the peer's close comes after its messages, and stays",
        { "an end", "a peer that survives the sender's close" }, function()
        local r, w = open()
        assert(w:send "1" and w:put(2) and w:send "" and w:send "4")
        assert.is_true(w:close())
        assert.are.equal("1", r:recv(PATIENCE))
        assert.are.equal(2, r:get())
        assert.are.equal("", r:recv())
        assert.are.same({ "4" }, r:recvmany(10))
        for _ = 1, 3 do
          is_closed(r:recv())
          is_closed(r:recv(0)) -- before timeout
          is_closed(r:get(0))
          is_closed(r:recvmany(3, 0))
        end
      end)

      promise("a sender learns it too",
        { "an end", "a sender that is told", "a peer that survives the receiver's close" },
        function()
        local r, w = open()
        assert(r:close())
        for _ = 1, 3 do
          is_told(w)
          is_closed(w:send("x", nil, 0))
          is_closed(w:put({}, nil, 0))
          local n, word, errno, sent = w:sendmany({ "x", "y" }, nil, 0)
          assert.are.same({ nil, "closed", E.EPIPE, 0 }, { n, word, errno, sent })
        end
        local ok, text = true, nil
        if not row.remote then ok, text = w:close() end
        -- A frame that was half out when TCP found out is reported.
        assert.is_true(ok or row.late == true and text:find "bytes unsent" ~= nil)
      end)

      promise("a peer that is killed is closed", { "liveness", "both here" }, function()
        local r, w = open()
        local child = with.fork(function(writer)
          writer:send "last words"
          ipc.parent:send "said"
          ipc.parent:recv()
        end, w)
        w:close() -- one that stayed
        assert(child:recv(PATIENCE))
        assert(child:kill "KILL")
        assert.are.equal("last words", r:recv())
        is_closed(r:recv())
        is_closed(r:recv(0))
      end)

      promise("a killed receiver is closed", { "liveness", "a sender that is told", "both here" }, function()
        local r, w = open()
        local child = with.fork(function(reader)
          ipc.parent:put(reader:recv(PATIENCE))
          ipc.parent:recv()
        end, r)
        r:close() -- one that stayed
        assert(w:send "there?")
        assert.are.equal("there?", child:get(PATIENCE))
        assert(child:kill "KILL")
        assert.is_nil(child:wait(PATIENCE))
        is_told(w, true)
      end)

      promise("the process at the other end killed is closed", function()
        if not row.remote then
          local r, w = open()
          assert.is_false(rooms.is_proxy(r) or rooms.is_proxy(w))
          return
        end
        local r, w = open()
        local child = row.remote == "reader" and w or r
        if row.remote == "writer" then assert(w:send "last words") end
        assert(child:kill "KILL")
        if row.remote == "writer" then assert.are.equal("last words", r:recv()) end
        is_closed(child:recv())
        is_closed(child:send("x", nil, PATIENCE))
      end)

      promise("half a message of a peer that died is none", { "parts", "both here" }, function()
        local r, w = open()
        local child = with.fork(function(writer)
          writer:send "whole"
          writer:send(BIG, nil, 0)
          ipc.parent:send "begun"
          ipc.sleep(PATIENCE)
        end, w)
        w:close()
        assert(child:recv(PATIENCE))
        assert(child:kill "KILL")
        assert.are.equal("whole", r:recv())
        is_closed(r:recv())
      end)

      promise("an empty message is legal and not the end", function()
        local r, w = open()
        assert(w:send "" and w:send "" and w:send "x")
        if row.can.empty then
          assert.are.equal("", r:recv())
          assert.are.equal("", r:recv(PATIENCE))
        end
        assert.are.equal("x", r:recv())
        times_out(r:recv(0))
      end)

      promise("on a handle that was closed every call answers so", { "both here" }, function()
        local r, w = open()
        assert.is_true(r:close())
        assert.is_true(r:close())
        assert.is_true(w:close())
        for _, call in ipairs { "recv", "get" } do
          is_closed(r[call](r))
          is_closed(r[call](r, 0))
        end
        is_closed(r:recvmany(1))
        is_closed(w:send "x")
        is_closed(w:put "x")
        local n, word, errno, sent = w:sendmany { "x" }
        assert.are.same({ nil, "closed", E.EPIPE }, { n, word, errno })
        assert.is_true(sent == nil or sent == 0)
        is_closed(w:flush())
        is_closed(w:shutdown())
        is_closed(w:dup())
        for _, handle in ipairs { r, w } do
          assert.is_nil(handle:pollfd())
          assert.are.equal(0, handle:timeout())
          assert.is_string(handle:events())
          assert.is_true(handle:settimeout(1))
          assert.is_table(handle:stats())
          assert.is_number(handle:maxsize())
          assert.matches("^ipc%.%w+ %(closed%)$", tostring(handle))
        end
        for _ in r:messages() do error "a message" end
        for _ in r:values() do error "a value" end
      end)

      promise("what was sent counts after close", { "both here" }, function()
        local r, w = open()
        assert(w:sendmany { "a", "bcd" })
        assert(r:recv())
        r:close()
        w:close()
        assert.are.equal(2, w:stats().sent)
        assert.are.equal(4, w:stats().bytes_sent)
        assert.are.equal(1, r:stats().received)
        assert.are.equal(1, r:stats().bytes_received)
      end)

      promise("`local ch <close>` closes", { "both here" }, function()
        local r, w = open()
        do
          local writer <close> = w
          assert(writer:send "x")
        end
        assert.are.equal("x", r:recv())
        at_end(r)
        local ok = pcall(function()
          local reader <close> = r
          error(reader)
        end)
        assert.is_false(ok)
        is_closed(r:recv(0))
      end)

      promise("shutdown: no more sends, closed after what was sent", function()
        local r, w = open()
        assert(w:send "last")
        assert.is_true(w:shutdown())
        assert.is_true(w:shutdown())
        is_closed(w:send "x")
        is_closed(w:put("x", nil, 0))
        assert.are.equal("last", r:recv())
        at_end(r)
      end)

      promise("shutdown leaves the other way open", { "both ways" }, function()
        local r, w = open()
        assert.is_true(w:shutdown())
        at_end(r)
        assert(r:send "still here")
        assert.are.equal("still here", w:recv())
      end)

      promise("shutdown lets a rest out first", { "parts", "both here" }, function()
        local r, w = open()
        assert(w:send(BIG, nil, 0))
        assert.is_true(w:shutdown())
        is_closed(w:send("x", nil, 0))
        assert.are.equal(BIG, r:recv())
        is_closed(r:recv())
      end)

      promise("iterators end at closed", { "an end", "the receiver here" }, function()
        local r, w = open()
        assert(w:send "1" and w:send "2")
        w:close()
        local got = {}
        for message in r:messages() do got[#got + 1] = message end
        assert.are.same({ "1", "2" }, got)
        r, w = open()
        assert(w:put(1) and w:put(false) and w:put { 2 })
        w:close()
        got = {}
        for value in r:values() do got[#got + 1] = value end
        assert.are.same({ 1, false, { 2 } }, got)
      end)

      promise("iterators raise what is not closed, as an error object", { "the receiver here" },
        function()
          local r, w = open()
          local object = raised(r:messages(0))
          assert.are.equal("timeout", object.message)
          assert.are.equal(E.ETIMEDOUT, object.errno)
          assert.are.equal("timeout", tostring(object))
          assert.are.equal(E.ETIMEDOUT, raised(r:values(0.001)).errno)
          assert(w:send "\xc1")
          object = raised(r:values())
          assert.are.equal(E.EBADMSG, object.errno)
          assert.matches("^ipc%.%w+%.get: ", tostring(object))
          assert(w:put "on")
          assert.are.equal("on", r:values()())
        end)
    end)

    describe("ready:", function()
      promise("means that recv(0) does not answer timeout", { "the receiver here" }, function()
        local r, w = open()
        times_out(ipc.poll({ r }, 0))
        assert(w:sendmany { "1", "2", "3" })
        for _ = 1, 3 do
          local ready = assert(ipc.poll({ r }, PATIENCE))
          assert.are.equal(r, ready[1])
          assert.is_true(ready[r])
          assert(r:recv(0))
        end
        times_out(ipc.poll({ r }, 0))
        assert.is_nil(r:timeout())
        w:close()
        if row.ends then
          assert.is_true(ipc.poll({ r }, PATIENCE)[r])
          is_closed(r:recv(0))
          assert.is_true(ipc.poll({ r }, 0)[r])
        end
      end)

      promise("a poller says the same", { "both here" }, function()
        local r, w = open()
        local p <close> = assert(ipc.poller())
        assert(p:add(r) and p:add(w, "w"))
        assert.are.same({ w, [w] = "w" }, (assert(p:wait(PATIENCE))))
        assert(p:remove(w))
        times_out(p:wait(0))
        assert(w:sendmany { "1", "2", "3" })
        for _ = 1, 3 do
          assert.are.same({ r, [r] = "r" }, (assert(p:wait(PATIENCE))))
          assert(r:recv(0))
        end
        times_out(p:wait(0))
        w:close()
        if row.ends then
          for _ = 1, 2 do assert.are.equal("r", assert(p:wait(PATIENCE))[r]) end
          is_closed(r:recv(0))
        end
        r:close()
        assert.are.equal("r", assert(p:wait(0))[r])
        assert.are.equal(0, #p)
      end)

      promise("messages read ahead count", { "the receiver here" }, function()
        local r, w = open()
        assert(w:sendmany { "1", "", "3" })
        assert.are.equal("1", r:recv())
        for i = 2, 3 do
          assert.is_true(ipc.poll({ r }, 0)[r])
          if not row.whole then assert.are.equal(0, r:timeout()) end
          assert.are.equal(i == 2 and "" or "3", r:recv(0))
        end
        assert.is_nil(r:timeout())
      end)

      promise("half a message does not", { "parts", "both here" }, function()
        local r, w = open()
        assert(w:send(BIG, nil, 0))
        for _ = 1, 3 do times_out(ipc.poll({ r }, 0)) end
        assert.is_nil(r:timeout())
        times_out(r:recv(0))
      end)

      promise("to send: while it has room and no rest", { "a sender that waits", "the sender here" },
        function()
        local r, w = open()
        assert.is_true(ipc.poll({ { w, "w" } }, 0)[w])
        with.fill(w, ("x"):rep(1000))
        times_out(ipc.poll({ { w, "w" } }, 0))
        if not row.remote then
          assert(r:recv())
          local limit = ipc.now() + PATIENCE
          local ready
          repeat -- once, but where the system takes its time to move what is sent
            while r:recv(0) do w:flush(0) end
            ready = ipc.poll({ { w, "w" } }, row.late and 0.01 or 0)
          until ready or not row.late or ipc.now() > limit
          assert.is_true(ready and ready[w])
        end
      end)

      promise("a sender whose receiver went is ready to be told",
        { "an end", "a sender that is told", "both here" },
        function()
        local r, w = open()
        with.fill(w, ("x"):rep(1000))
        r:close()
        assert.is_true(ipc.poll({ { w, "w" } }, PATIENCE)[w])
      end)

      promise("a handle closed here is ready", { "the receiver here" }, function()
        local r, w = open()
        if row.remote then w.questions:close() end -- so that the child ends
        assert.is_true(r:close())
        assert.is_true(ipc.poll({ r }, 0)[r])
      end)

      promise("poll waits until something comes", { "the receiver here" }, function()
        local r, w = open()
        local idle = with.close(ipc.pipe())
        assert.is_true(elapsed(ipc.poll, { r, idle }, 0.02) >= 0.02)
        if row.remote then
          w.questions:put { "send", "now", n = 2 }
        else
          with.fork(function(late)
            assert(ipc.parent:recv(PATIENCE))
            late:send "now"
          end, w):send "go"
        end
        local ready = assert(ipc.poll({ idle, r }, PATIENCE))
        assert.are.same({ r, [r] = true }, ready)
        assert.are.equal("now", r:recv(0))
      end)

      promise("events names what is waited for, pollfd a descriptor", { "both here" }, function()
        local r, w = open()
        assert.are.equal("r", r:events())
        assert.are.equal((row.both or row.memory) and "r" or "w", w:events())
        assert.are.equal(row.can.descriptor and "integer" or nil, math.type(r:pollfd()))
        if row.can.descriptor then
          assert.are_not.equal(r:pollfd(), w:pollfd())
        end
      end)

      promise("the descriptor of a bare handle wakes a foreign loop", { "both here" }, function()
        if not row.can.descriptor then
          assert.is_nil(open():pollfd())
          return
        end
        local r, w = open()
        times_out(r:recv(0)) -- first until timeout, then poll
        local foreign = { pollfd = r:pollfd(), events = "r" }
        times_out(ipc.poll({ foreign }, 0))
        assert(w:send "x")
        assert.are.equal(foreign, ipc.poll({ foreign }, PATIENCE)[1])
      end)
    end)

    describe("ownership:", function()
      promise("descriptors are close-on-exec", function()
        local before = with.inherited()
        local count = with.descriptors()
        local r, w = open()
        assert(w:send "x" and r:recv())
        r:pollfd() -- some have none before somebody waits
        assert.is_true(with.descriptors() > count)
        assert.are.equal(before, with.inherited())
      end)

      promise("those of a dup are too", { "both here", "dup" }, function()
        local before = with.inherited()
        local r, w = open()
        with.close(assert(r:dup()), assert(w:dup()))
        assert.are.equal(before, with.inherited())
      end)

      promise("close gives every descriptor back", { "both here" }, function()
        local count = with.descriptors()
        local r, w = open()
        assert(w:send "x")
        r:close()
        w:close()
        assert.are.equal(count, with.descriptors())
      end)

      promise("so does the collector", function()
        local count = with.descriptors()
        local function drop()
          local r, w = assert(row.open())
          r:settimeout(PATIENCE)
          assert(w:send "x" and r:recv())
          r:pollfd()
          assert.is_true(with.descriptors() > count)
        end
        drop()
        assert.are.equal(count, with.descriptors())
      end)

      promise("SIGPIPE is neither delivered nor is its disposition touched",
        { "an end", "a sender that is told", "both here" },
        function()
          local program = [[
            local ipc = require "ipc"
            local with, rooms = require "spec.support.with", require "spec.rooms"
            local before = with.signals()
            local r, w = rooms.find(%q).open()
            w:send(("x"):rep(1 << 20), nil, 0)
            r:close()
            for _ = 1, 3 do print(w:send "x") end
            print(w:sendmany { "x", "y" })
            print(w:close() ~= true, before == with.signals())
            io.stderr:write "survived\n"
          ]]
          -- as a shell starts it, whatever this process was started with
          local command = with.command(program:format(row.name))
          command = command:gsub("^exec env ", "%0--default-signal=PIPE ")
          local text, status = with.shell(command)
          assert.are.equal(0, status, text)
          assert.matches("survived", text)
          assert.are.equal(3, select(2, text:gsub("nil\tclosed\t" .. E.EPIPE .. "\n", "")))
        end)

      promise("dup makes a second handle on the same end", { "both here", "dup" }, function()
        local r, w = open()
        local w2 = with.close(assert(w:dup()))
        assert(w2:send "by the copy")
        assert.are.equal("by the copy", r:recv())
        w:close()
        times_out(r:recv(0)) -- the copy still holds it open
        assert(w2:send "still")
        assert.are.equal("still", r:recv())
        w2:close()
        at_end(r)
      end)

      promise("a dup has the options of its origin", { "both here", "dup", "options" }, function()
        local r, w = open { maxsize = 9, timeout = 0.02 }
        local r2, w2 = with.close(assert(r:dup()), assert(w:dup()))
        assert.are.equal(9, w2:maxsize())
        times_out(r2:recv())
        assert(w2:put "x")
        assert.are.equal("x", r2:get())
      end)

      promise("no dup while bytes are on their way", { "parts", "both here", "dup" }, function()
        local r, w = open()
        assert(w:sendmany { "1", "2" })
        assert(r:recv())
        fails(E.EBUSY, "on their way", r:dup())
        assert(w:send(BIG, nil, 0))
        fails(E.EBUSY, "on their way", w:dup())
      end)

      promise("several processes may receive", { "many readers", "both here" }, function()
        local r, w = open()
        local crew = {}
        for i = 1, 3 do
          crew[i] = with.fork(function(reader)
            local n, sum = 0, 0
            for value in reader:values(PATIENCE) do
              if not value then break end
              n, sum = n + 1, sum + value
            end
            return n, sum
          end, assert(r:dup()))
        end
        r:close()
        local all = row.lossy and 60 or 300
        for i = 1, all do assert(w:put(i)) end
        for _ = 1, row.ends and 0 or 3 do assert(w:put(false)) end
        w:close()
        local count, sum = 0, 0
        for i = 1, 3 do
          local ok, n, part = crew[i]:wait(PATIENCE)
          assert.is_true(ok, n)
          count, sum = count + n, sum + part
        end
        assert.are.equal(all, count)
        assert.are.equal(all * (all + 1) // 2, sum)
      end)

      promise("several processes may send", { "both here", "dup" }, function()
        local r, w = open()
        -- Where messages are not packets a pipe keeps short ones whole, pipe(7).
        local size = row.lossy and 200 or row.can.many_writers and math.min(w:maxsize(), 20000) or 4000
        if not row.can.many_writers and row.room ~= "pipe" then
          assert.is_false(row.whole)
          return
        end
        for i = 1, 3 do
          local mine = assert(w:dup())
          with.fork(function(writer)
            for _ = 1, 30 do assert(writer:send(tostring(i):rep(size), nil, PATIENCE)) end
          end, mine)
          mine:close() -- one that stayed
        end
        w:close()
        local got = {}
        for _ = 1, 3 * 30 do
          local message = assert(r:recv())
          local who = message:sub(1, 1)
          assert.are.equal(who:rep(size), message)
          got[who] = (got[who] or 0) + 1
        end
        at_end(r)
        assert.are.same({ ["1"] = 30, ["2"] = 30, ["3"] = 30 }, got)
      end)
    end)

    describe("a handle belongs to one process:", function()
      promise("an end that moved says where it is", { "moves", "both here" }, function()
        local r, w = open()
        local child = with.close(ipc.fork(function(reader)
          return (reader:recv(PATIENCE))
        end, r))
        for _, call in ipairs { "recv", "get", "settimeout", "stats", "dup", "pollfd" } do
          raises(("moved to %d %%(.*contract_spec%%.lua:%%d+%%): dup%%(%%) keeps one"):format(child.pid),
            function() r[call](r) end)
        end
        raises("moved to", function() ipc.poll({ r }, 0) end)
        raises("moved to", function() ipc.fork(function() end, r) end)
        assert.matches("moved", tostring(r))
        assert.is_true(r:close()) -- a `local r <close>` may be left
        assert(w:send "to the child")
        assert.are.same({ true, "to the child" }, { child:wait(PATIENCE) })
        if not row.tells then return end
        is_told(w) -- no second holder of the end is left here
      end)

      promise("a direct upvalue moves as an argument does", { "moves", "a writer that moves", "both here" },
        function()
        local r, w = open()
        local child = with.fork(function() return w:send "by an upvalue" end)
        assert.are.equal("by an upvalue", r:recv())
        assert.is_true(child:wait(PATIENCE))
        raises("moved to", function() w:send "x" end)
        at_end(r)
      end)

      promise("read-ahead and options move along", { "both here" }, function()
        local r, w = open()
        assert(w:sendmany { "1", "2", "3" })
        assert.are.equal("1", r:recv())
        r:settimeout(0)
        local child = with.fork(function(reader)
          local a, b, nothing, why = reader:recv(PATIENCE), reader:recv(PATIENCE), reader:recv()
          return a, b, nothing, why
        end, r)
        assert.are.same({ true, "2", "3", nil, "timeout" }, { child:wait(PATIENCE) })
      end)

      promise("a rest moves along", { "a writer that moves", "parts", "both here" }, function()
        local r, w = open()
        assert(w:send(BIG, nil, 0))
        local child = with.fork(function(writer) return writer:flush(PATIENCE) end, w)
        assert.are.equal(BIG, r:recv())
        assert.is_true(child:wait(PATIENCE))
        is_closed(r:recv())
      end)

      promise("end of stream works: the child holds nothing it was not given", { "an end", "both here" },
        function()
          local r, w = open()
          local child = with.fork(function(reader)
            local n = 0
            for _ in reader:messages(PATIENCE) do n = n + 1 end
            return n
          end, r)
          assert(w:sendmany { "1", "2" })
          assert(w:close())
          assert.are.same({ true, 2 }, { child:wait(PATIENCE) })
        end)

      promise("elsewhere in a forked child a handle is dead, and its end silent", { "both here" },
        function()
          local r, w = open()
          local hidden = { r = r, w = w } -- not a direct upvalue: not taken along
          local dropped = { assert(row.open()) } -- collected in the child, and here later
          local child = with.fork(function()
            local function errno(...) return select(3, ...) end
            dropped = nil
            collectgarbage()
            local r2 <const>, w2 <const> = hidden.r, hidden.w
            local results = {
              errno(r2:recv(0)), errno(r2:get()), errno(w2:send "x"), errno(w2:put "x"),
              tostring(r2), r2:close(), w2:close(),
            }
            return table.unpack(results)
          end)
          local ok, recv, get, send, put, text, close1, close2 = child:wait(PATIENCE)
          assert.is_true(ok, recv)
          assert.matches("^ipc%.", text)
          assert.are.same({ true, true }, { close1, close2 })
          assert.are.same({ E.ECHILD, E.ECHILD, E.ECHILD, E.ECHILD }, { recv, get, send, put })
          assert(w:send "unharmed")
          assert.are.equal("unharmed", r:recv())
          with.close(dropped[1], dropped[2])
          assert(dropped[2]:send "too")
          assert.are.equal("too", dropped[1]:recv(PATIENCE))
        end)

      promise("an unmoved rest is not written twice", { "parts", "both here" }, function()
        local r, w = open()
        assert(w:send(BIG, nil, 0))
        local child = with.fork(function()
          ipc.sleep(0.001)
          return true
        end)
        assert.is_true(child:wait(PATIENCE))
        assert.are.equal(BIG, r:recv())
        times_out(r:recv(0))
      end)
    end)

    describe("interrupted:", function()
      -- A program of its own, stuck in `call`; SIGINT; what it says and how it ended.
      local function interrupt(call)
        local program = with.command(([[
          local ipc = require "ipc"
          local r, w = require "spec.rooms".find(%q).open()
          local other, kept = ipc.pipe()
          io.stdout:setvbuf "no"
          print(ipc.pid())
          %s
          print "went on"
        ]]):format(row.name, call))
        local pipe <close> = assert(io.popen(program .. " 2>&1"))
        local pid = assert(tonumber(pipe:read "l"))
        -- Until it sleeps, which is in that call; the answer is the same before.
        local limit = ipc.now() + PATIENCE
        repeat
          local stat <close> = assert(io.open(("/proc/%d/stat"):format(pid)))
        until stat:read("a"):match "^.*%) ([^R])" or ipc.now() > limit
        os.execute("kill -INT " .. pid)
        local text = pipe:read "a"
        local _, _, status = pipe:close()
        return text, status
      end

      promise("Ctrl-C ends a blocked recv", { "the receiver here" }, function()
        local text, status = interrupt "r:recv()"
        assert.matches("interrupted!", text)
        assert.is_nil(text:find "went on")
        assert.are.equal(1, status)
      end)

      promise("and a blocked send", { "a sender that waits", "both here" }, function()
        local text, status = interrupt "while true do w:send(('x'):rep(1000)) end"
        assert.matches("interrupted!", text)
        assert.are.equal(1, status)
      end)

      promise("and ipc.poll", { "the receiver here" }, function()
        local text = interrupt "ipc.poll { r, other }"
        assert.matches("interrupted!", text)
      end)

      promise("in a coroutine the call answers, the main hook runs after it", { "the receiver here" },
        function()
          local text, status = interrupt "coroutine.wrap(function() print(r:recv()) end)()"
          assert.matches("^nil\tinterrupted\t" .. E.EINTR .. "\n", text)
          assert.matches("interrupted!", text)
          assert.are.equal(1, status)
        end)

      promise("a hook that does not raise lets the call go on", { "the receiver here" }, function()
        local r = open()
        local hooks = 0
        debug.sethook(function() hooks = hooks + 1 end, "", 1)
        local message, word = r:recv(0.01)
        debug.sethook()
        assert.is_nil(message)
        assert.are.equal("timeout", word)
        assert.is_true(hooks > 0)
      end)

      promise("a hook may use the channel that is waiting", { "both here" }, function()
        local r, w = open()
        local armed = true
        debug.sethook(function()
          if armed then
            armed = false
            w:send "from the hook"
          end
        end, "c")
        local message = r:recv()
        debug.sethook()
        assert.are.equal("from the hook", message)
      end)
    end)

    promise("a finaliser may use the channel that allocates", { "both here" }, function()
      local r, w = open()
      local got = {}
      for i = 1, 200 do
        setmetatable({}, { __gc = function() got[#got + 1] = r:recv(0) end })
        while not w:send(tostring(i) .. ("x"):rep(500), nil, 0) do got[#got + 1] = r:recv(0) end
        if i % 3 == 0 then
          collectgarbage "step"
          got[#got + 1] = r:recv(0)
        end
      end
      collectgarbage()
      w:close()
      for _ = #got + 1, 200 do got[#got + 1] = assert(r:recv()) end
      at_end(r)
      assert.are.equal(200, #got)
      local seen = {}
      for _, message in ipairs(got) do seen[tonumber(message:match "^%d+")] = true end
      assert.are.equal(200, #seen)
    end)
  end)
end

-- ---- streams: bytes instead of messages

for _, row in ipairs(rooms.streams) do
  describe("a stream: " .. row.name .. ":", function()
    after_each(with.cleanup)
    local function open(options) return with.open(row, options) end

    it("recv gives what is there, 1 byte to 64 KiB, and bytes are never reordered", function()
      local r, w = open()
      assert(w:send "ab" and w:send "" and w:send "cd")
      local got = ""
      repeat
        local piece = assert(r:recv())
        assert.is_true(#piece >= 1 and #piece <= 64 << 10)
        got = got .. piece
      until #got == 4
      assert.are.equal("abcd", got)
      times_out(r:recv(0))
    end)

    it("read gives exactly n, a line with or without its end, or all", function()
      local r, w = open()
      assert(w:send "0123456789one\ntwo\n\nlast")
      assert.are.equal("", r:read(0))
      assert.are.equal("01234", r:read(5))
      assert.are.equal("56789", r:read(5))
      assert.are.equal("one", r:read "l")
      assert.are.equal("two\n", r:read "L")
      assert.are.equal("", r:read "l")
      w:close()
      assert.are.equal("last", r:read "l") -- the end of the stream ends a line
      is_closed(r:read "l")
      is_closed(r:read(1))
      assert.are.equal("", r:read "a")
    end)

    it("all of it, more than the medium holds", function()
      local r, w = open()
      local child = with.fork(function(reader)
        local all = reader:read("a", PATIENCE)
        return #all, all:sub(-3)
      end, r)
      assert(w:send(BIG))
      assert(w:close())
      assert.are.same({ true, #BIG, BIG:sub(-3) }, { child:wait(PATIENCE) })
    end)

    it("what was gathered before a timeout stays", function()
      local r, w = open()
      assert(w:send "abc")
      times_out(r:read(5, 0))
      assert.is_true(elapsed(r.read, r, "l", 0.02) >= 0.02)
      assert(w:send "de")
      assert.are.equal("abcde", r:read(5))
      assert(w:send "half")
      times_out(r:read("a", 0.001))
      w:close()
      is_closed(r:read(5))
      assert.are.equal("half", r:recv())
      is_closed(r:recv())
    end)

    it("maxsize bounds a read", function()
      local r, w = open { maxsize = 8 }
      raises("bad argument #%d to '.*more than maxsize", function() r:read(9) end)
      assert(w:send "0123456")
      assert(w:send "89\n")
      fails(E.EMSGSIZE, "8", r:read "l")
      assert.are.equal("01234568", r:read(8))
    end)

    it("lines end at closed only", function()
      local r, w = open()
      assert(w:send "one\ntwo\nthree")
      w:close()
      local lines = {}
      for line in r:lines() do lines[#lines + 1] = line end
      assert.are.same({ "one", "two", "three" }, lines)
      r = open()
      assert.are.equal(E.ETIMEDOUT, raised(r:lines(0)).errno)
    end)

    it("put and get are bare MessagePack", function()
      local r, w = open()
      assert(w:put { 1, "x" } and w:put(2))
      assert(w:send(ipc.pack "three"))
      assert.are.same({ 1, "x" }, r:get())
      assert.are.equal(2, r:get())
      assert.are.equal("three", r:get())
      times_out(r:get(0))
      assert(w:send(ipc.pack("split"):sub(1, 3)))
      times_out(r:get(0))
      assert(w:send(ipc.pack("split"):sub(4)))
      assert.are.equal("split", r:get())
    end)

    it("a mistake in what to read raises", function()
      local r = open()
      for _, what in ipairs { "x", "*l", -1, 1.5, {}, false } do
        raises("bad argument #%d to ", function() r:read(what, 0) end)
      end
      raises("bad argument", function() r:read(1, "1") end)
      raises("bad argument", function() r:read(1, 0 / 0) end)
      raises("bad argument", function() r:lines "x" end)
    end)

    it("accepted bytes leave later, as they do of messages", function()
      local r, w = open()
      assert(w:send(BIG, nil, 0))
      times_out(w:send("x", nil, 0))
      local got = {}
      local limit = ipc.now() + PATIENCE
      repeat
        got[#got + 1] = r:recv(0)
        w:flush(0)
      until w:stats().unsent == 0 or ipc.now() > limit
      w:close()
      got[#got + 1] = r:read "a"
      assert.are.equal(BIG, table.concat(got))
    end)

    it("is ready while bytes are buffered", function()
      local r, w = open()
      assert(w:send "abc")
      assert.are.equal("a", r:read(1))
      if os.getenv "IPC_FAULT_RATE" and not r:timeout() then return end -- a short read
      assert.are.equal(0, r:timeout())
      assert.is_true(ipc.poll({ r }, 0)[r])
      local rest = r:recv(0)
      if os.getenv "IPC_FAULT_RATE" and rest == "b" then rest = rest .. r:recv() end -- two
      assert.are.equal("bc", rest)
      assert.is_nil(r:timeout())
    end)
  end)
end

-- ---- what is the library's and no room's

describe("the contract:", function()
  after_each(with.cleanup)

  it("every way to use a mechanism has a row here", function()
    local tried = {}
    for _, row in ipairs(rooms) do tried[row.mechanism.name] = true end
    for _, mechanism in ipairs(ipc.mechanisms()) do
      assert.is_true(tried[mechanism.name], mechanism.name)
    end
  end)

  it("capabilities are a listed set", function()
    for _, mechanism in ipairs(ipc.mechanisms()) do
      local names = {}
      for name, value in pairs(mechanism.capabilities) do
        names[#names + 1] = name
        assert.is_boolean(value)
      end
      table.sort(names)
      assert.are.same({ "address_tag", "descriptor", "empty", "handles", "integer_tag", "liveness",
        "many_readers", "many_writers" }, names)
    end
  end)

  it("changing the mechanism is changing one string", function()
    for _, mechanism in ipairs(ipc.mechanisms()) do
      local a, b = with.close(assert(ipc.pair(mechanism.address)))
      assert(a:put { hello = mechanism.name })
      assert.are.same({ hello = mechanism.name }, b:get(PATIENCE))
    end
  end)

  it("an address that names nothing raises", function()
    raises("no mechanism is called \"carrier\"", function() ipc.pair "carrier" end)
    raises("bad argument #1 to 'pair'", function() ipc.pair(42) end)
    raises("bad argument #2 to 'pair'", function() ipc.pair("pipe", 42) end)
    raises("unknown option 'colour'", function() ipc.pair "pipe?colour=red" end)
  end)

  it("options that all mechanisms have are checked by all", function()
    for _, mechanism in ipairs(ipc.mechanisms()) do
      for name, values in pairs {
        permissions = { 600, false }, create = { "bogus", 1 }, temporary = { 1, "yes" },
        keepalive = { 1 }, retry = { "often", {} }, timeout = { "1" }, linger = { true },
      } do
        for _, value in ipairs(values) do
          raises("^spec/contract_spec.lua:%d+: bad argument #2 to 'pair' %(option '" .. name .. "': ",
            function() ipc.pair(mechanism.address, { [name] = value }) end)
        end
      end
    end
  end)

  it("an address gives each option the type it has", function()
    local parse = require "ipc.address".parse
    local _, _, found = parse "fifo:/x?permissions=0600&bind=7000&create=false&temporary&retry=1.5&maxsize=0x10&key=007"
    assert.are.same({
      permissions = "0600", bind = "7000", create = false, temporary = true, retry = 1.5, maxsize = 16, key = "007",
    }, found)
  end)

  it("permissions in an address are those of the table", function()
    for _, mechanism in ipairs(ipc.mechanisms()) do
      local join = mechanism.address:find("?", 1, true) and "&" or "?"
      for _, digits in ipairs { "0600", "600" } do
        with.close(assert(ipc.pair(mechanism.address .. join .. "permissions=" .. digits)))
      end
      raises("option 'permissions'", function() ipc.pair(mechanism.address .. join .. "permissions=0800") end)
    end
  end)

  it("mistakes in an address blame the caller's line", function()
    for _, address in ipairs { ":", "carrier", "pipe:/named", "pipe?colour=red", 42 } do
      raises("^spec/contract_spec.lua:%d+: ", function() ipc.pair(address) end)
    end
  end)

  it("Ctrl-C that came while a coroutine computed ends its next blocked call", function()
    local text, status = with.shell(with.command [[
      local ipc = require "ipc"
      local r, w = ipc.pipe()
      coroutine.wrap(function()
        assert(io.popen("kill -INT " .. ipc.pid()):close())
        print(r:recv(5))
      end)()
      print "went on"
    ]])
    assert.matches("^nil\tinterrupted\t" .. E.EINTR .. "\n", text)
    assert.matches("interrupted!", text)
    assert.is_nil(text:find "went on")
    assert.are.equal(1, status)
  end)

  it("limits are what the system says, each with where to raise it", function()
    local seen, mechanism = {}, {}
    for _, row in ipairs(ipc.mechanisms()) do mechanism[row.name] = row end
    local resources = { RLIMIT_NOFILE = "Max open files", RLIMIT_MSGQUEUE = "Max msgqueue size" }
    local proc <close> = io.open "/proc/self/limits"
    local limits = proc and proc:read "a" or ""
    if not proc then resources = {} end
    for _, limit in ipairs(ipc.limits()) do
      seen[limit.mechanism] = true
      for _, field in ipairs { "mechanism", "name", "what", "unit", "raise" } do
        assert.matches("%w", limit[field], limit.name)
      end
      assert.is_true(limit.raise:find(limit.name, 1, true) ~= nil, limit.raise)
      local resource = resources[limit.name]
      local file <close> = io.open("/proc/sys/" .. limit.name:gsub("%.", "/"))
      if resource then
        local value = limits:match(resource .. "%s+(%w+)")
        assert.are.equal(tonumber(value) or math.huge, limit.value, limit.name)
      elseif file and (limit.value or mechanism["pipe, packets"]) then -- else not told
        local last -- of several figures
        for number in file:lines "n" do last = number end
        assert.are.equal(last, limit.value, limit.name)
      end
      assert.is_true(limit.value == nil or math.type(limit.value) == "integer"
        or limit.value == math.huge, limit.name)
    end
    assert.is_true(seen.pipe)
  end)

  it("limits follow what the process may have", function()
    local program = with.command [[
      for _, limit in ipairs(require "ipc".limits()) do
        if limit.name == "RLIMIT_NOFILE" then io.write(limit.value) end
      end
    ]]
    assert.are.equal("77", (with.shell("ulimit -S -n 77; " .. program)))
  end)

  it("errno maps names and numbers both ways", function()
    for _, name in ipairs { "ETIMEDOUT", "EPIPE", "EOWNERDEAD", "ECANCELED", "EINTR", "EMSGSIZE" } do
      assert.are.equal("integer", math.type(E[name]))
      assert.are.equal(name, E[E[name]])
    end
  end)

  it("poll waits for any of many, as a list and a set", function()
    local readers, writers = {}, {}
    for i = 1, 300 do -- select(2) has 1024 descriptors
      readers[i], writers[i] = with.close(assert(ipc.pipe()))
    end
    times_out(ipc.poll(readers, 0))
    for _, i in ipairs { 300, 7 } do assert(writers[i]:send(tostring(i))) end
    local ready = assert(ipc.poll(readers, PATIENCE))
    assert.are.same({ readers[7], readers[300], [readers[7]] = true, [readers[300]] = true }, ready)
  end)

  it("a duplex is one channel of two, and closes both", function()
    local r1, w1 = with.close(assert(ipc.pipe { timeout = 0, linger = 0 }))
    local r2, w2 = with.close(assert(ipc.pipe { timeout = 0, linger = 0 }))
    local both = with.close(ipc.duplex(r1, w2))
    times_out(both:recv()) -- the parts' default
    assert(w1:send "in" and both:send "out")
    assert.are.equal("in", both:recv())
    assert.are.equal("out", r2:recv())
    assert(both:send(BIG, nil, 0))
    local ok, message = both:close()
    assert.is_nil(ok)
    assert.matches("^%d+ bytes unsent$", message)
    is_closed(r1:recv())
    is_closed(w2:send "x")
    is_closed(w1:send "x")
    is_closed(r2:recv())
  end)

  it("a duplex of the wrong ends raises", function()
    local r, w = with.close(assert(ipc.pipe()))
    raises("bad argument #1 to 'duplex'.*only sends", function() return ipc.duplex(w, w) .. "" end)
    raises("bad argument #2 to 'duplex'.*only receives", function() return ipc.duplex(r, r) .. "" end)
    raises("bad argument #1 to 'duplex'", function() return ipc.duplex({}, w) .. "" end)
    r:close()
    raises("bad argument #1 to 'duplex'.*closed", function() return ipc.duplex(r, w) .. "" end)
  end)

  it("poll refuses what cannot be polled, naming the entry", function()
    local r, w = with.close(assert(ipc.pipe()))
    raises("bad argument #1", function() ipc.poll() end)
    raises("entry 2: a handle expected, got number", function() ipc.poll { r, 1 } end)
    raises("entry 1: .*expected", function() ipc.poll { { r, "x" } } end)
    raises("entry 1: this end only receives", function() ipc.poll { { r, "w" } } end)
    raises("entry 2: this end only sends", function() ipc.poll { r, { w, "rw" } } end)
    raises("bad argument #2", function() ipc.poll({ r }, "1") end)
    raises("bad argument #2", function() ipc.poll({ r }, 0 / 0) end)
  end)

  it("sleep waits, at least as long as told", function()
    assert.is_true(elapsed(ipc.sleep, 0.02) >= 0.02)
    assert.is_true(ipc.sleep(0))
    assert.is_true(ipc.sleep(-1))
    raises("bad argument #1", function() ipc.sleep() end)
    raises("bad argument #1", function() ipc.sleep "1" end)
    raises("bad argument #1", function() ipc.sleep(0 / 0) end)
  end)

  it("now never runs backwards", function()
    local last = ipc.now()
    for _ = 1, 1000 do
      local now = ipc.now()
      assert.is_true(now >= last)
      last = now
    end
  end)

  it("the end of a program writes what was accepted and has room, however it ends", function()
    for _, ending in ipairs { "", "os.exit(0)", "os.exit(0, true)", "error('x', 0)" } do
      local text = with.shell(with.command(([[
        local ipc = require "ipc"
        local r, w = ipc.pipe { unit = "stream" }
        assert(w:send(("x"):rep(70000), nil, 0))
        local unsent = w:stats().unsent
        while r:recv(0) do end -- room again, and no wait that would use it
        assert(unsent > 0 and w:stats().unsent == unsent)
        ipc.fork(function(reader) print(#reader:read("a", 20) == unsent) end, r)
        %s
      ]]):format(ending)))
      assert.matches("true", text)
    end
  end)

  it("the end of a program with a ring open does not hang", function()
    for _, ending in ipairs { "", "os.exit(0)", "os.exit(0, true)" } do
      local text, status = with.shell(with.command([[
        local ipc = require "ipc"
        local r, w = ipc.queue()
      ]] .. ending))
      assert.are.equal("", text)
      assert.are.equal(0, status)
    end
  end)

  it("the end of a program with a child running does not hang", function()
    for _, ending in ipairs { "", "os.exit(0)", "os.exit(0, true)" } do
      local text, status = with.shell(with.command([[
        local ipc = require "ipc"
        local child = ipc.fork(function() ipc.parent:recv(20) end)
        local r, w = ipc.pipe()
      ]] .. ending))
      assert.are.equal("", text)
      assert.are.equal(0, status)
    end
  end)
end)
