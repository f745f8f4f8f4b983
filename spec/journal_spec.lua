-- Journals: what is appended is there for every reader, in order, with its
-- number, whoever is killed; what is damaged is told; what is documented of the
-- files, as Python reads them. Power cuts are spec/storm/journal.lua's.
local ipc = require "ipc"
local scheduler = require "spec.support.scheduler"
local with = require "spec.support.with"

local E = ipc.errno
local PATIENCE <const> = with.patience
local CLOSED <const> = { nil, "closed", E.EPIPE }
local TIMEOUT <const> = { nil, "timeout", E.ETIMEDOUT }
local SMALL <const> = 64 << 10

if select(3, ipc.queue()) == E.ENOTSUP then
  describe("a journal", function()
    it("says so where there are no locks for it", function()
      local path = os.tmpname()
      os.remove(path)
      assert.are.equal(E.ENOTSUP, select(3, ipc.journal(path, "w")))
      assert.is_nil(io.open(path)) -- what was made for it is gone
    end)
  end)
  return
end

local function fails(errno, pattern, ok, message, number, ...)
  assert.is_nil(ok)
  assert.are.equal(errno, number, message)
  assert.matches(pattern, message)
  return ...
end

local folder = os.tmpname()
os.remove(folder)
os.execute("mkdir " .. folder)
local count = 0

local function new_path()
  count = count + 1
  return ("%s/journal-%d"):format(folder, count)
end

local function clean()
  ipc.scheduler(nil)
  with.cleanup()
  os.execute(("rm -rf %s/*"):format(folder))
end

local function open(path, mode, options)
  local o = { segment = SMALL }
  for k, v in pairs(options or {}) do o[k] = v end
  local journal = with.close(assert(ipc.journal(path, mode, o)))
  journal:settimeout(PATIENCE)
  return journal
end

-- A journal with these messages that nobody has open.
local function left(path, messages, options)
  local w = open(path, "w", options)
  for _, message in ipairs(messages) do assert(w:send(message)) end
  assert.is_true(w:close())
  return path
end

-- All there is: the messages, and their numbers.
local function all(path, options)
  local o, messages, numbers = { follow = false }, {}, {}
  for k, v in pairs(options or {}) do o[k] = v end
  local r = open(path, "r", o)
  for message, sequence in r:messages() do
    messages[#messages + 1], numbers[#numbers + 1] = message, sequence
  end
  r:close()
  return messages, numbers
end

local function files(path)
  local list = {}
  for name in with.shell("LC_ALL=C ls " .. path):gmatch "[^\n]+" do
    if name:find "%.log$" then list[#list + 1] = path .. "/" .. name end
  end
  return list
end

local function read(path)
  local file <close> = assert(io.open(path, "rb"))
  return file:read "a"
end

local function write(path, bytes)
  local file <close> = assert(io.open(path, "wb"))
  assert(file:write(bytes))
end

local function patch(path, at, bytes)
  local file <close> = assert(io.open(path, "r+b"))
  file:seek("set", at)
  assert(file:write(bytes))
end

-- Runs in a process that is killed in the middle of it.
local function killed(f)
  local child = with.fork(function()
    f()
    ipc.parent:put "now"
    ipc.sleep(PATIENCE)
  end)
  assert.are.equal("now", child:get(PATIENCE))
  child:kill "KILL"
  child:wait(PATIENCE)
end

local function numbered(n, size)
  local list = {}
  for i = 1, n do list[i] = ("%d:"):format(i) .. ("x"):rep((size or 10)) end
  return list
end

describe("a journal", function()
  after_each(clean)

  it("answers the number of each message, which is its tag", function()
    local path = new_path()
    local w = open(path, "w")
    assert.are.same({ true, 1 }, { w:send "one" })
    assert.are.same({ true, 2 }, { w:put { two = 2 } })
    assert.are.equal(2, w:sendmany { "three", "" })
    local r = open(path, "r")
    assert.are.same({ "one", 1 }, { r:recv() })
    assert.are.same({ { two = 2 }, 2 }, { r:get() })
    assert.are.same({ "three", 3 }, { r:recv() })
    assert.are.same({ "", 4 }, { r:recv() })
    assert.are.same(TIMEOUT, { r:recv(0) })
    assert.are.same({ true, 5 }, { w:send(r:recv(0) or "five", 77) })
  end)

  it("gives every reader all of it", function()
    local path = new_path()
    local w = open(path, "w")
    local one, two = open(path, "r"), open(path, "r")
    for i = 1, 5 do w:put(i) end
    local late = open(path, "r")
    for _, r in ipairs { one, two, late } do
      for i = 1, 5 do assert.are.same({ i, i }, { r:get() }) end
    end
  end)

  it("can be read and appended to by one handle", function()
    local j = open(new_path(), "rw")
    j:send "a"
    assert.are.same({ "a", 1 }, { j:recv() })
    assert.are.same(TIMEOUT, { j:recv(0) })
  end)

  for _, durability in ipairs { "none", "interval", "sync" } do
    it(("with durability %s is there for the next process"):format(durability), function()
      local path, list = new_path(), numbered(50)
      left(path, list, { durability = durability })
      local messages, numbers = all(path)
      assert.are.same(list, messages)
      assert.are.equal(50, numbers[50])
      left(path, { "more" }, { durability = durability })
      assert.are.same({ "more" }, (all(path, { from = 51 })))
      assert.are.equal(1, #files(path))
    end)

    it(("with durability %s survives the death of all"):format(durability), function()
      local path, list = new_path(), numbered(20)
      killed(function()
        local w = open(path, "w", { durability = durability })
        for _, message in ipairs(list) do assert(w:send(message)) end
      end)
      assert.are.same(list, (all(path)))
      assert.are.same({}, assert(ipc.verify(path)).damage)
    end)
  end

  it("takes messages of any size", function()
    local path = new_path()
    local list = { ("a"):rep(200000), "", ("b"):rep(3 << 20), "c", ("d"):rep(65535) }
    left(path, list)
    assert.are.same(list, (all(path)))
    local r = open(path, "r", { maxsize = 1000 })
    assert.are.equal(1000, r:maxsize())
    fails(E.EMSGSIZE, "200000 bytes", r:recv())
    assert.are.same({ "", 2 }, { r:recv() })
    local w = open(path, "w", { maxsize = 10 })
    fails(E.EMSGSIZE, "11 bytes, but maxsize is 10", w:send(("x"):rep(11)))
  end)

  it("goes from file to file", function()
    local path, list = new_path(), numbered(300, 1000)
    left(path, list)
    assert.is_true(#files(path) >= 5)
    assert.are.same(list, (all(path)))
    local w, r = open(path, "w"), open(path, "r", { from = 250 })
    for i = 250, 300 do assert.are.same({ list[i], i }, { r:recv() }) end
    for i = 301, 500 do
      assert.are.same({ true, i }, { w:send(("y"):rep(1000)) })
      assert.are.equal(i, select(2, r:recv()))
    end
  end)

  it("is appended to by several at a time", function()
    local path = new_path()
    open(path, "w")
    local r = open(path, "r")
    local children = {}
    for n = 1, 4 do
      children[n] = with.fork(function()
        local w = open(path, "w", { durability = n == 1 and "sync" or "none" })
        for i = 1, 100 do assert(w:put { n, i }) end
        w:close()
      end)
    end
    local seen = { 0, 0, 0, 0 }
    for sequence = 1, 400 do
      local value, tag = assert(r:get(PATIENCE))
      assert.are.equal(sequence, tag)
      assert.are.equal(seen[value[1]] + 1, value[2])
      seen[value[1]] = value[2]
    end
    for n = 1, 4 do assert(children[n]:wait(PATIENCE)) end
  end)

  it("wakes who follows it, in another process", function()
    local path = new_path()
    local w = open(path, "w")
    local child = with.fork(function()
      local r = open(path, "r")
      ipc.parent:put "there"
      ipc.parent:put((r:recv()))
    end)
    assert.are.equal("there", child:get(PATIENCE))
    w:send "hello"
    assert.are.equal("hello", child:get(PATIENCE))
  end)

  it("can be polled", function()
    local path = new_path()
    local w, r = open(path, "w"), open(path, "r")
    assert.are.same(TIMEOUT, { ipc.poll({ r }, 0) })
    w:send "x"
    assert.is_true(ipc.poll({ r }, PATIENCE)[r] ~= nil)
    assert.are.equal("x", (r:recv(0)))
    local child = with.fork(function()
      local other = open(path, "w")
      ipc.parent:get(PATIENCE)
      other:send "y"
    end)
    child:put "go"
    assert.is_true(ipc.poll({ r }, PATIENCE)[r] ~= nil)
    assert.are.equal("y", (r:recv(0)))
  end)

  it("ends for who does not follow", function()
    local path = left(new_path(), { "a", "b" })
    local r = open(path, "r", { follow = false })
    assert.are.equal("a", (r:recv()))
    assert.are.equal("b", (r:recv()))
    assert.are.same(CLOSED, { r:recv() })
  end)

  it("syncs once for all tasks that wait", function()
    local path = new_path()
    local w = open(path, "w", { durability = "sync" })
    local tasks = scheduler.new()
    local done = {}
    for i = 1, 40 do
      tasks:go(function()
        local ok, sequence = w:put(i)
        assert(ok, sequence)
        done[#done + 1] = sequence
      end)
    end
    tasks:run(PATIENCE)
    table.sort(done)
    for i = 1, 40 do assert.are.equal(i, done[i]) end
    local stats = w:stats()
    assert.are.equal(40, stats.durable)
    assert.is_true(stats.syncs < 40, stats.syncs)
  end)

  it("is read by tasks that wait", function()
    local path = new_path()
    local w, r = open(path, "w", { durability = "sync" }), open(path, "r")
    local tasks, got = scheduler.new(), {}
    tasks:go(function()
      for _ = 1, 20 do got[#got + 1] = assert(r:get(PATIENCE)) end
    end)
    tasks:go(function()
      for i = 1, 20 do assert(w:put(i)) end
    end)
    tasks:run(PATIENCE)
    assert.are.equal(20, #got)
    assert.are.equal(20, got[20])
  end)

  it("has all on the disk after flush", function()
    local w = open(new_path(), "w", { durability = "none" })
    for i = 1, 5 do w:put(i) end
    assert.are.equal(0, w:stats().durable)
    assert.is_true(w:flush())
    assert.are.equal(5, w:stats().durable)
  end)
end)

describe("a journal's reader", function()
  after_each(clean)

  it("begins where it is told", function()
    local path = left(new_path(), numbered(10))
    assert.are.equal(10, #(all(path, { from = "first" })))
    assert.are.same({ 4, 5, 6, 7, 8, 9, 10 }, select(2, all(path, { from = 4 })))
    assert.are.same({}, (all(path, { from = "end" })))
    local r = open(path, "r", { from = 12 })
    local w = open(path, "w")
    w:send "eleven"
    assert.are.same(TIMEOUT, { r:recv(0) })
    w:send "twelve"
    assert.are.same({ "twelve", 12 }, { r:recv() })
  end)

  it("begins at a time", function()
    local path = new_path()
    left(path, numbered(200, 1000))
    local bytes = read(files(path)[2])
    local first, time = ("I8I8"):unpack(bytes, 4097 + 8)
    local _, numbers = all(path, { since = time / 1e9 + 1e-6 })
    assert.is_true(#numbers > 0 and numbers[1] >= first and numbers[#numbers] == 200)
    assert.are.equal(200, #(all(path, { since = 0 })))
    assert.are.same({}, (all(path, { since = os.time() + 1000 })))
  end)

  it("with a name goes on behind what it acknowledged", function()
    local path = left(new_path(), numbered(10))
    local r = open(path, "r", { reader = "me", from = 3 })
    assert.are.equal(3, select(2, r:recv()))
    assert.are.equal(4, select(2, r:recv()))
    assert.is_true(r:ack(3))
    r:close()
    r = open(path, "r", { reader = "me" })
    assert.are.equal(4, select(2, r:recv()))
    assert.are.equal(5, select(2, r:recv()))
    assert.is_true(r:ack())
    r:close()
    killed(function()
      local k = open(path, "r", { reader = "me", from = "end" })
      assert(select(2, k:recv()) == 6)
      assert(k:ack())
      assert(k:recv())
    end)
    r = open(path, "r", { reader = "me" })
    assert.are.equal(7, select(2, r:recv()))
  end)

  it("has its name alone", function()
    local path = left(new_path(), numbered(3))
    local r = open(path, "r", { reader = "me" })
    fails(E.EBUSY, "me", ipc.journal(path, "r", { reader = "me" }))
    open(path, "r", { reader = "you" })
    r:close()
    open(path, "r", { reader = "me" })
  end)

  it("acknowledges only what there is, by its name", function()
    local path = left(new_path(), numbered(3))
    local r = open(path, "r", { reader = "me" })
    assert.is_true(r:ack())
    assert.has_error(function() r:ack(4) end)
    assert.has_error(function() r:ack(-1) end)
    assert.has_error(function() r:ack "1" end)
    assert.is_true(r:ack(3))
    fails(E.EINVAL, "reader", open(path, "r"):ack())
    r:close()
    assert.are.same(CLOSED, { r:ack() })
  end)

  it("is told what was removed before it came to it, and goes on", function()
    local path = new_path()
    local w = open(path, "w", { retain_bytes = 3 * SMALL, durability = "none" })
    w:send "first"
    local slow = open(path, "r", { from = 2 })
    for _ = 1, 600 do w:send(("z"):rep(1000)) end
    assert.is_true(#files(path) <= 4)
    fails(E.ESTALE, "records 2 to %d+ were removed; the first that is there is %d+", slow:recv())
    local first = assert(select(2, slow:recv()))
    assert.are.equal(first - 2, slow:stats().lost)
    for i = first + 1, 601 do assert.are.equal(i, select(2, slow:recv())) end
    -- One that has the file open reads it to the end.
    assert.are.same({ 601 }, select(2, all(path, { from = 601 })))
  end)

  it("with a name holds back what is removed", function()
    local path = new_path()
    local w = open(path, "w", { retain_bytes = 2 * SMALL, slowest = true, durability = "none" })
    local r = open(path, "r", { reader = "slow" })
    for _ = 1, 300 do w:send(("z"):rep(1000)) end
    assert.are.equal(1, select(2, r:recv()))
    for _ = 2, 250 do assert(r:recv()) end
    local before = #files(path)
    r:ack()
    for _ = 1, 100 do w:send(("z"):rep(1000)) end
    assert.is_true(#files(path) < before)
    for i = 251, 400 do assert.are.equal(i, select(2, r:recv())) end
  end)
end)

describe("what stands behind the end of a journal", function()
  after_each(clean)

  it("is never overwritten, and no damage", function()
    local path = new_path()
    killed(function()
      local w = open(path, "w", { durability = "none" })
      for i = 1, 5 do w:send("message " .. i) end
    end)
    local file = files(path)[1]
    patch(file, 4096 + 5 * 48 + 100, "half of something")
    local before = read(file)
    assert.are.equal(1, assert(ipc.verify(path)).torn)
    left(path, { "message 6" })
    assert.are.equal(2, #files(path))
    assert.are.equal(before, read(file))
    assert.are.equal(6, #(all(path)))
    local report = assert(ipc.verify(path))
    assert.are.same({}, report.damage)
    assert.are.same({ 6, 1, 6, 2 }, { report.records, report.first, report.last, report.files })
  end)

  it("is cut off where a record is half there", function()
    local path = new_path()
    killed(function()
      local w = open(path, "w", { durability = "none" })
      for i = 1, 5 do w:send("message " .. i) end
    end)
    local file = files(path)[1]
    patch(file, 4096 + 4 * 48 + 35, "X") -- nothing tells that it was on the disk
    assert.are.equal(4, #(all(path)))
    local w = open(path, "w")
    assert.are.same({ true, 5 }, { w:send "another" })
    assert.are.equal("another", all(path)[5])
  end)

  it("is looked at again when a control file makes no sense", function()
    for _, bytes in ipairs { "", ("\0"):rep(100), ("\0"):rep(12288) } do
      local path = left(new_path(), numbered(3))
      write(path .. "/control", bytes)
      assert.are.equal(3, #(all(path)))
      write(path .. "/control", bytes)
      left(path, { "four" })
      assert.are.equal(4, #(all(path)))
    end
    local path = left(new_path(), numbered(3))
    write(path .. "/control", "somebody's notes")
    fails(E.EBADMSG, "not shared memory", ipc.journal(path, "r"))
    assert.are.equal("somebody's notes", read(path .. "/control"))
  end)
end)

describe("damage in a journal", function()
  after_each(clean)

  -- 100 records in several files, of 1040 bytes each.
  local function made(durability)
    local path = left(new_path(), numbered(300, 1000), { durability = durability })
    return path, files(path)
  end

  it("is told, with its place, and what is in front of it read", function()
    local path, list = made()
    local last = list[#list]
    patch(last, 4096 + 50, "?")
    fails(E.EBADMSG, "%x+%-%x+%.log at 4096: record %d+ is damaged", ipc.journal(path, "w"))
    local r = open(path, "r")
    local n = 0
    while true do
      local message, why, errno = r:recv(0)
      if not message then
        assert.are.equal(E.EBADMSG, errno, why)
        break
      end
      n = n + 1
    end
    assert.are.equal(tonumber(last:match "/(%x+)%-", 10) and tonumber(last:match "/(%x+)%-", 16) - 1, n)
    assert.are.equal(E.EBADMSG, select(3, r:recv(0)))
  end)

  for _, place in ipairs { "first", "middle", "last" } do
    it(("in the %s file is repaired, and all that is valid stays"):format(place), function()
      local path, list = made()
      local file = list[place == "first" and 1 or place == "middle" and 3 or #list]
      local bytes = read(file)
      patch(file, 4096 + 3000, string.char(bytes:byte(4096 + 3000 + 1) ~ 4))
      local report = assert(ipc.verify(path))
      assert.are.equal(1, #report.damage, report.damage[2] and report.damage[2].reason)
      local damage = report.damage[1]
      assert.are.equal(file, path .. "/" .. damage.file)
      assert.is_true(damage.offset > 4096 and damage.offset <= 4096 + 3000)
      assert.are.equal(299, report.records)
      assert(ipc.verify(path, { repair = true }))
      report = assert(ipc.verify(path))
      assert.are.same({}, report.damage)
      assert.are.same({ 299, 300 }, { report.records, report.last })
      local w, r = open(path, "w"), open(path, "r")
      assert.are.same({ true, 301 }, { w:send "goes on" })
      for i = 1, 301 do
        if i == damage.sequence then
          local words = "records %d to %d were damaged; the first that is there is %d"
          fails(E.ESTALE, words:format(i, i, i + 1), r:recv())
        else
          assert.are.equal(i, select(2, r:recv()))
        end
      end
      -- What was there is put aside.
      assert.are.equal(#bytes, #read(file .. ".aside"))
    end)
  end

  it("of a head is repaired from its other copy", function()
    local path, list = made()
    patch(list[2], 20, "?????")
    assert.are.equal(300, #(all(path)))
    local report = assert(ipc.verify(path, { repair = true }))
    assert.are.equal(1, #report.damage)
    assert.matches("head", report.damage[1].reason)
    assert.are.same({}, assert(ipc.verify(path)).damage)
    patch(list[2], 2048 + 20, "?????")
    assert.are.equal(300, #(all(path)))
  end)

  for _, which in ipairs { "second", "last" } do
    it(("of a %s file's whole head costs that file, and no other"):format(which), function()
      local path, list = made()
      local file = which == "last" and list[#list] or list[2]
      patch(file, 20, "?????")
      patch(file, 2048 + 20, "?????")
      local report = assert(ipc.verify(path))
      assert.is_true(#report.damage >= 1)
      assert(ipc.verify(path, { repair = true }))
      report = assert(ipc.verify(path))
      assert.are.same({}, report.damage)
      local w, r = open(path, "w"), open(path, "r")
      local _, sequence = assert(w:send "goes on")
      assert.is_true(sequence > 300)
      local n, stale = 0, 0
      for _ = 1, 302 do
        local message, tag, errno = r:recv(0)
        if message then n = n + 1 elseif errno == E.ESTALE then stale = stale + 1 else break end
        if message == "goes on" then assert.are.equal(sequence, tag) end
      end
      assert.are.equal(1, stale)
      assert.are.equal(report.records + 1, n)
    end)
  end

  it("is a file that is missing", function()
    local path, list = made()
    os.remove(list[3])
    local report = assert(ipc.verify(path))
    assert.are.equal(1, #report.damage)
    assert.matches("missing", report.damage[1].reason)
    local r = open(path, "r")
    repeat local ok, _, errno = r:recv(0) until not ok or errno
    assert.are.equal(E.EBADMSG, select(3, r:recv(0)))
    r:close()
    assert(ipc.verify(path, { repair = true }))
    assert.are.same({}, assert(ipc.verify(path)).damage)
    r = open(path, "r")
    local n, stale = 0, 0
    while true do
      local message, _, why = r:recv(0)
      if message then n = n + 1 elseif why == E.ESTALE then stale = stale + 1 else break end
    end
    assert.are.same({ report.records, 1 }, { n, stale })
  end)

  it("is repaired while nobody has it open", function()
    local path = made()
    local r = open(path, "r")
    fails(E.EBUSY, "others have it open", ipc.verify(path, { repair = true }))
    assert(ipc.verify(path))
    r:close()
    assert(ipc.verify(path, { repair = true }))
  end)

  it("is not seen in a journal of the other byte order, which is refused", function()
    local path = left(new_path(), numbered(2))
    local file = files(path)[1]
    local bytes = read(file)
    for _, at in ipairs { 0, 2048 } do
      local turned = bytes:sub(at + 9, at + 12):reverse() .. bytes:sub(at + 13, at + 16):reverse()
      patch(file, at + 8, turned)
    end
    fails(E.ENOTSUP, "another version or byte order", ipc.journal(path, "w"))
    fails(E.ENOTSUP, "another version or byte order", ipc.journal(path, "r"))
    fails(E.ENOTSUP, "another version or byte order", ipc.verify(path))
  end)
end)

describe("opening a journal", function()
  after_each(clean)

  it("checks what it is given", function()
    local path = new_path()
    for _, call in ipairs {
      { nil, "r" }, { "", "r" }, { "a\0b", "r" }, { ("x"):rep(5000), "r" }, { path }, { path, "a" },
      { path, "w", { durability = "often" } }, { path, "w", { segment = 100 } }, { path, "w", { segment = 1 << 40 } },
      { path, "r", { from = 0 } }, { path, "r", { from = 1.5 } }, { path, "r", { from = "middle" } },
      { path, "r", { since = "now" } }, { path, "r", { since = 0 / 0 } }, { path, "r", { since = -1 } },
      { path, "r", { from = 1, since = 1 } }, { path, "r", { reader = "" } }, { path, "r", { reader = "../x" } },
      { path, "r", { reader = ("n"):rep(65) } }, { path, "r", { follow = 1 } }, { path, "w", { retain_bytes = 0 } },
      { path, "w", { interval = 0 / 0 } }, { path, "w", { capacity = 4096 } }, { path, "w", { maxsize = 1 << 40 } },
    } do
      assert.has_error(function() ipc.journal(call[1], call[2], call[3]) end)
    end
    assert.has_error(function() ipc.verify(path, { fix = true }) end)
    assert.has_error(function() ipc.verify() end)
  end)

  it("answers what the system says", function()
    fails(E.ENOENT, "nothing", ipc.journal(folder .. "/nothing", "r"))
    fails(E.ENOENT, "nothing", ipc.journal(folder .. "/nothing", "w", { create = false }))
    fails(E.ENOENT, "nothing", ipc.verify(folder .. "/nothing"))
    fails(E.ENOENT, "nothing", ipc.journal(folder .. "/nothing/more", "w"))
    local path = new_path()
    write(path, "a file")
    fails(E.ENOTDIR, "Not a directory", ipc.journal(path, "w"))
    local is_empty = new_path()
    os.execute("mkdir " .. is_empty)
    fails(E.ENOENT, "No such file", ipc.journal(is_empty, "r"))
  end)

  it("makes one anew only where there is none", function()
    local path = new_path()
    left(path, { "x" }, { create = "new" })
    fails(E.EEXIST, "there is a journal", ipc.journal(path, "w", { create = "new" }))
    assert.are.same({ "x" }, (all(path)))
  end)

  it("waits until there is one", function()
    local path = new_path()
    local child = with.fork(function()
      local r = assert(ipc.journal(path, "r", { retry = PATIENCE }))
      ipc.parent:put((r:recv(PATIENCE)))
    end)
    open(path, "w"):send "here"
    assert.are.equal("here", child:get(PATIENCE))
  end)

  it("removes it when it is temporary, or told to", function()
    local path = new_path()
    local w = open(path, "w", { temporary = true })
    w:send "x"
    w:close()
    assert.matches("No such file", (with.shell("ls -d " .. path)))
    left(path, { "x" })
    assert.is_true(open(path, "r"):remove())
    assert.matches("No such file", (with.shell("ls -d " .. path)))
  end)

  it("leaves no descriptor and no file behind", function()
    local path = left(new_path(), numbered(3))
    local before = with.descriptors()
    for _ = 1, 10 do
      local w, r = open(path, "w"), open(path, "r", { reader = "me" })
      w:send "x"
      w:flush()
      r:recv()
      ipc.poll({ r }, 0)
      r:close()
      w:close()
    end
    assert.are.equal(before, with.descriptors())
    assert.are.equal(1, #files(path))
    assert.not_matches("control", (with.shell("ls " .. path)))
    before = with.inherited()
    open(path, "w")
    assert.are.equal(before, with.inherited())
  end)

  it("by an address", function()
    local path = new_path()
    local w = with.close(assert(ipc.open("journal:" .. path .. "?durability=sync", "w")))
    assert.are.same({ true, 1 }, { w:send "x" })
  end)
end)

describe("a journal's handle", function()
  after_each(clean)

  it("goes with a fork, and stays", function()
    local path = new_path()
    local w, r = open(path, "w", { durability = "sync" }), open(path, "r", { reader = "me" })
    w:send "one"
    w:send "two"
    assert.are.equal("one", (r:recv()))
    local child = with.fork(function(w2, r2)
      ipc.parent:put { r2:recv() }
      ipc.parent:put { w2:send "three" }
      ipc.parent:put { select(3, r2:ack()) }
    end, w, r)
    assert.are.same({ "two", 2 }, child:get(PATIENCE))
    assert.are.same({ true, 3 }, child:get(PATIENCE))
    assert.are.same({ E.EINVAL }, child:get(PATIENCE))
    assert(child:wait(PATIENCE))
    assert.are.same({ "two", 2 }, { r:recv() })
    assert.are.same({ "three", 3 }, { r:recv() })
    assert.are.same({ true, 4 }, { w:send "four" })
    assert.is_true(r:ack())
  end)

  it("has a second by dup, which reads on from the same place", function()
    local path = new_path()
    local w, r = open(path, "w"), open(path, "r", { reader = "me" })
    local w2 = with.close(assert(w:dup()))
    assert.are.same({ true, 1 }, { w:send "a" })
    assert.are.same({ true, 2 }, { w2:send "b" })
    assert.are.equal("a", (r:recv()))
    local r2 = with.close(assert(r:dup()))
    w:close()
    assert.are.same({ true, 3 }, { w2:send "c" })
    for _, reader in ipairs { r, r2 } do
      assert.are.same({ "b", 2 }, { reader:recv() })
      assert.are.same({ "c", 3 }, { reader:recv() })
    end
    fails(E.EINVAL, "reader", r2:ack())
    assert.is_true(r:ack())
  end)

  it("is closed for good", function()
    local w = open(new_path(), "w")
    w:send "x"
    assert.is_true(w:close())
    assert.is_true(w:close())
    assert.are.same(CLOSED, { w:send "y" })
    assert.are.same(CLOSED, { w:flush() })
    assert.are.same(CLOSED, { w:remove() })
    assert.are.equal(1, w:stats().sent)
  end)

  it("does not go through sockets", function()
    local w = open(new_path(), "w")
    local a = with.close(ipc.pair "unix")
    assert.has_error(function() a:put { w } end)
  end)
end)

describe("a journal in trouble", function()
  after_each(clean)

  it("is closed for all once it is removed, and only its own files go", function()
    local path = new_path()
    os.execute("mkdir " .. path)
    for _, name in ipairs { "access.log", "a.tmp", "notes.reader", "x.aside" } do
      write(path .. "/" .. name, "precious")
    end
    local w, r = open(path, "w", { durability = "sync" }), open(path, "r", { reader = "me" })
    w:send "a"
    local child = with.fork(function()
      local other = open(path, "r", { from = "end" })
      ipc.parent:put "there"
      ipc.parent:put { other:recv(PATIENCE) }
    end)
    assert.are.equal("there", child:get(PATIENCE))
    assert.is_true(r:remove())
    assert.are.same({ nil, "closed", E.EPIPE }, child:get(PATIENCE))
    assert.are.same(CLOSED, { w:send "b" })
    assert.are.same(CLOSED, { r:recv() })
    assert.are.same(CLOSED, { r:ack() })
    assert.are.equal("a.tmp\naccess.log\nnotes.reader\nx.aside\n", (with.shell("LC_ALL=C ls " .. path)))
    local new = open(path, "w")
    assert.are.same({ true, 1 }, { new:send "c" })
    assert.are.same(CLOSED, { w:send "d" })
    assert.are.same({ "c" }, (all(path)))
  end)

  it("whose control was removed goes on with who comes then, and no other", function()
    local path = new_path()
    local a, r = open(path, "w", { durability = "sync" }), open(path, "r", { from = "end" })
    for i = 1, 3 do a:send("a" .. i) end
    os.remove(path .. "/control")
    local b = open(path, "w", { durability = "sync" })
    assert.are.same({ true, 4 }, { b:send "b4" })
    assert.are.same(CLOSED, { a:send "a4" })
    assert.are.same({ true, 5 }, { b:send "b5" })
    repeat local message, why = r:recv(0) until not message and why == "closed"
    assert.are.same({ "a1", "a2", "a3", "b4", "b5" }, (all(path)))
  end)

  it("answers what keeps it from the disk", function()
    local child = with.fork(function()
      local w = open(new_path(), "w", { durability = "none" })
      local kept = open(new_path(), "w", { interval = 1000 })
      kept:send "0"
      w:send "x"
      kept:send "y"
      local all_open = {}
      repeat all_open[#all_open + 1] = io.open "/dev/null" until not io.open "/dev/null"
      local answers = { table.pack(w:flush(PATIENCE)), { select(2, kept:close()) } }
      for _, file in ipairs(all_open) do file:close() end
      answers[3] = { w:flush(PATIENCE) }
      ipc.parent:put(answers)
    end)
    local answers = assert(child:get(PATIENCE))
    assert.are.equal(E.EMFILE, answers[1][3])
    assert.are.same({ true }, answers[3])
  end)

  it("answers that what all share was scribbled on", function()
    local path = new_path()
    local w = open(path, "w", { durability = "none" })
    w:send "x"
    patch(path .. "/control", 132, "\2\0\0\0")
    assert.are.equal(E.ENOTRECOVERABLE, select(3, w:flush(PATIENCE)))
    assert.are.equal(E.ENOTRECOVERABLE, select(3, w:send "y"))
  end)

  it("keeps what was flushed before a kill from being cut off in silence", function()
    local path = new_path()
    killed(function()
      local w = open(path, "w", { durability = "none" })
      for i = 1, 100 do assert(w:send(("%08d"):format(i):rep(4))) end
      assert(w:flush())
    end)
    patch(files(path)[1], 4096 + 49 * 64 + 40, "Z")
    assert.are.equal(50, assert(ipc.verify(path)).damage[1].sequence)
    fails(E.EBADMSG, "damaged", ipc.journal(path, "w"))
    assert(ipc.verify(path, { repair = true }))
    assert.are.same({}, assert(ipc.verify(path)).damage)
    assert.are.same({ true, 101 }, { open(path, "w"):send "more" })
  end)

  it("keeps every record that is valid, however many are not", function()
    local path = left(new_path(), numbered(400, 28), { segment = 1 << 20 })
    local file = files(path)[1]
    local bytes, at, valid = read(file), 4096, 0
    for i = 1, 400 do
      local size = ("I4"):unpack(bytes, at + 1)
      if i % 4 == 2 then patch(file, at + 34, "?") else valid = valid + 1 end
      at = at + 32 + (size + 7) // 8 * 8
    end
    local report = assert(ipc.verify(path, { repair = true }))
    assert.are.same({ 100, valid }, { #report.damage, report.records })
    for _ = 1, 2 do
      report = assert(ipc.verify(path, { repair = true }))
      assert.are.same({ 0, valid, 0 }, { #report.damage, report.records, report.repaired })
    end
    local r, n = open(path, "r", { follow = false }), 0
    while true do
      local message, _, errno = r:recv()
      if message then n = n + 1 elseif errno == E.EPIPE then break end
    end
    assert.are.equal(valid, n)
  end)

  it("brings a reader back to what a power cut left", function()
    local path = new_path()
    local w = open(path, "w", { durability = "none" })
    w:send "r1"
    w:flush()
    with.shell(("cp -r %s %s.cut"):format(path, path))
    for i = 2, 10 do w:send("lost" .. i) end
    local r = open(path, "r", { reader = "a" })
    for _ = 1, 10 do assert(r:recv(0)) end
    r:ack(5)
    r:ack(7)
    with.shell(("cp %s/a.reader %s.cut"):format(path, path))
    left(path .. ".cut", { "new2", "new3", "new4", "new5", "new6", "new7", "new8" })
    local _, numbers = all(path .. ".cut", { reader = "a" })
    assert.are.same({ 2, 3, 4, 5, 6, 7, 8 }, numbers)
  end)

  it("is verified while it is appended to", function()
    local path = new_path()
    local w = open(path, "w", { durability = "sync", retain_bytes = 3 * SMALL })
    local child = with.fork(function(mine)
      while true do assert(mine:send(("y"):rep(700))) end
    end, w)
    for _ = 1, 40 do
      local report = assert(ipc.verify(path))
      assert.are.same({}, report.damage)
    end
    child:kill "KILL"
    child:wait(PATIENCE)
  end)

  it("tells when a record was appended", function()
    local path = left(new_path(), { "x" })
    local r = open(path, "r")
    assert.is_nil(r:time())
    r:recv()
    assert.is_true(math.abs(r:time() - os.time()) < 100)
  end)
end)

describe("the files of a journal", function()
  after_each(clean)

  it("are as documented: Python reads them #native", function()
    local path, list = new_path(), numbered(100, 1000)
    left(path, list, { durability = "sync" })
    write(path .. ".py", [[
import os, struct, sys
table = []
for i in range(256):
    c = i
    for _ in range(8):
        c = c >> 1 ^ (0x82f63b78 if c & 1 else 0)
    table.append(c)
def crc(data, c=0):
    c ^= 0xffffffff
    for b in data:
        c = c >> 8 ^ table[(c ^ b) & 255]
    return c ^ 0xffffffff
total, next, before = 0, 1, 0
for name in sorted(n for n in os.listdir(sys.argv[1]) if n.endswith(".log")):
    data = open(os.path.join(sys.argv[1], name), "rb").read()
    for at in (0, 2048):
        head = data[at:at + 128]
        fields = struct.unpack_from("=8sII16sQQQQIII", head)
        magic, version, order, _, number, base, size, made, salt, chain, flags = fields
        assert magic == b"ipc-log\n" and version == 1 and order == 0x01020304 and flags == 0
        assert struct.unpack_from("=I", head, 124)[0] == crc(head[:124])
        assert name == "%016x-%08x.log" % (base, number) and size == len(data)
    assert base == next and chain == before
    at = 4096
    while at + 32 <= len(data):
        size, check, sequence, time, chain, behind = struct.unpack_from("=IIQQII", data, at)
        record = data[at:at + 4] + data[at + 8:at + 32 + size]
        if sequence == 0 or crc(record, salt) != check or chain != before:
            break
        if behind == 0:
            assert size == 0 and sequence == next - 1
        else:
            assert sequence == next
            assert data[at + 32:at + 32 + size].startswith(b"%d:" % sequence)
            next += 1
            total += 1
        before = check
        at += 32 + (size + 7) // 8 * 8
    assert not any(data[at:])
print(total)
]])
    assert.are.equal("100\n", (with.shell(("python3 %s.py %s"):format(path, path))))
  end)

  it("are verified by a program", function()
    local path = left(new_path(), numbered(10))
    local run = with.command(("arg = { [0] = 'verify', %q } dofile 'examples/verify.lua'"):format(path))
    local out, status = with.shell(run)
    assert.matches("10 records %(1 to 10%)", out)
    assert.are.equal(0, status)
    patch(files(path)[1], 4096 + 40, "?")
    out, status = with.shell(run)
    assert.matches("at 4096, record 1: the record is damaged", out)
    assert.are.equal(1, status)
  end)
end)

