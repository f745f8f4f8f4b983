-- Journals when the power goes, processes are killed, disks fail and are full:
-- what was promised is there, nothing comes back, nothing changes its place, and
-- damage is told where there is some and nowhere else.
local LONG = arg[1] == "--long" or (os.getenv "LONG" or "") ~= ""
local shim_path = ("%s/storm/journal.so"):format(os.getenv "BUILD" or "build")
if not shim_path:find "^/" then
  local pwd <close> = assert(io.popen "pwd")
  shim_path = pwd:read "l" .. "/" .. shim_path
end
local shim = assert(package.loadlib(shim_path, "luaopen_journal"))()
if not shim.between then -- once more, with it in between
  local preload = os.getenv "LD_PRELOAD"
  local command = ("LD_PRELOAD='%s' exec '%s' spec/storm/journal.lua %s"):format(
    preload and preload .. " " .. shim_path or shim_path, arg[-1], LONG and "--long" or "")
  os.exit(os.execute(command) or false)
end

local ipc = require "ipc"
local E = ipc.errno
local folder = ("%s/lua_ipc_journal.%d"):format(
  os.execute "test -w /dev/shm" and "/dev/shm" or os.getenv "TMPDIR" or "/tmp", ipc.pid())
local seed = tonumber(os.getenv "SEED") or ipc.pid()
math.randomseed(seed)

local function sh(format, ...) return os.execute(("LD_PRELOAD= " .. format):format(...)) end
assert(sh("mkdir -p %s", folder))
local tidy <close> = setmetatable({}, { __close = function() -- luacheck: ignore
  sh("umount %s/disk 2>/dev/null; rm -rf %s", folder, folder)
end })

local function fail(format, ...)
  error(("seed %d: " .. format):format(seed, ...), 2)
end

-- ---- power cuts

local function payload(tag, sequence, size)
  local text = ("%s:%d:%d:"):format(tag, sequence, size)
  return text .. (string.char(33 + sequence % 90)):rep(size - #text)
end

local SIZES = { 0, 1, 40, 100, 460, 480, 600, 1000, 3000, 9000 }
local function size() return SIZES[math.random(#SIZES)] end

-- Appends for a while, telling the shim what was promised; `list` is what the
-- journal has, and what it would have.
local function traffic(directory, tag, list, steps)
  local last = #list
  local options = { segment = 64 << 10, durability = "sync" }
  local sync = assert(ipc.journal(directory, "w", options))
  local lax = assert(ipc.journal(directory, "w", { segment = 64 << 10, durability = "none" }))
  local reader = assert(ipc.journal(directory, "r", { reader = "storm" }))
  local function append(w, promised)
    local message = payload(tag, last + 1, size())
    local ok, sequence = assert(w:send(message))
    last = last + 1
    assert(ok == true and sequence == last)
    list[last] = message
    if promised then shim.note(last) end
  end
  for _ = 1, steps do
    local what = math.random(100)
    if what <= 35 then
      append(sync, true)
    elseif what <= 70 then
      append(lax, false)
    elseif what <= 80 then
      local many = {}
      for i = 1, math.random(8) do many[i] = payload(tag, last + i, size()) end
      assert(sync:sendmany(many) == #many)
      for i = 1, #many do list[last + i] = many[i] end
      last = last + #many
      shim.note(last)
    elseif what <= 88 then
      assert(lax:flush())
      shim.note(last)
    elseif what <= 96 then
      for _ = 1, math.random(10) do if not reader:recv(0) then break end end
      assert(reader:ack())
    else
      local flushed = math.random(2) == 1 and assert(sync:flush())
      sync:close()
      lax:close()
      if flushed then shim.note(last) end
      if what > 98 then reader:close() end
      sync = assert(ipc.journal(directory, "w", options))
      lax = assert(ipc.journal(directory, "w", { segment = 64 << 10, durability = "none" }))
      if what > 98 then reader = assert(ipc.journal(directory, "r", { reader = "storm" })) end
    end
  end
  if math.random(2) == 1 then -- else all goes down in the middle of it
    assert(sync:flush())
    sync:close()
    shim.note(last)
  end
  return function()
    sync:close()
    lax:close()
    reader:close()
  end
end

-- What is there now: all of it, in order.
local function check(directory, promised, list, where)
  local reader, why = ipc.journal(directory, "r", { follow = false })
  if not reader then -- not even the first file had a name
    if promised == 0 then return 0 end
    fail("%s: %s", where, why)
  end
  local n = 0
  for message, sequence in reader:messages() do
    n = n + 1
    if sequence ~= n then fail("%s: record %d after %d", where, sequence, n - 1) end
    if message ~= list[n] then
      fail("%s: record %d is %q, not %q", where, n, message:sub(1, 40), (list[n] or "none"):sub(1, 40))
    end
  end
  reader:close()
  if n < promised then fail("%s: %d records, but %d were promised", where, n, promised) end
  return n
end

local function again(directory, n, list, where)
  local copy = table.move(list, 1, n, 1, {})
  -- As long as what was there perhaps, so that the next one would fit behind it.
  copy[n + 1] = list[n + 1] and ("!"):rep(#list[n + 1]) or ("after %s"):format(where)
  local w = assert(ipc.journal(directory, "w", { segment = 64 << 10, durability = "none" }))
  local ok, sequence = assert(w:send(copy[n + 1]))
  if sequence ~= n + 1 then fail("%s: appended %s, not %d", where, sequence, n + 1) end
  w:close()
  local there = check(directory, n + 1, copy, where .. ", then appended to")
  if there ~= n + 1 then fail("%s: %d came back", where, there - n - 1) end
  return copy, ok
end

local cuts, rounds, records, torn = 0, 0, 0, 0

local function power(want, each)
  local scratch = folder .. "/cut"
  local list, directory, turn = {}, folder .. "/begin", 0
  assert(sh("mkdir -p %s", scratch))
  while cuts < want do
    rounds = rounds + 1
    if rounds % 12 == 1 then -- anew, else from where a cut has left it
      list, directory, turn = {}, ("%s/new%d"):format(folder, rounds), 0
      assert(sh("mkdir %s", directory))
    end
    turn = turn + 1
    shim.start(directory)
    shim.note(#list)
    local leave = traffic(directory, ("%d.%d"):format(rounds, turn), list, math.random(20, 60))
    local operations = shim.stop()
    if os.getenv "TELL" then for i, x in ipairs(shim.tell()) do print(i, x) end end
    leave()
    local keep = math.random(operations)
    local base
    for at = 1, operations do
      for k = 1, at == keep and 1 or each do
        local where = ("round %d, cut %d of %d, %d"):format(rounds, at, operations, k)
        shim.empty(scratch)
        local promised = shim.cut(scratch, at, seed * 1000003 + rounds * 7919 + at * 31 + k)
        if math.random(8) == 1 then
          local control <close> = assert(io.open(scratch .. "/control", "w"))
          control:write(("\0"):rep(math.random(0, 3) * 4096))
        end
        local n = check(scratch, promised, list, where)
        cuts = cuts + 1
        records = records + n
        if math.random(10) == 1 or at == keep then
          local report = n == 0 and { damage = {}, torn = 0 } or assert(ipc.verify(scratch))
          if #report.damage > 0 then
            fail("%s: %s at %d: %s", where, report.damage[1].file, report.damage[1].offset, report.damage[1].reason)
          end
          torn = torn + report.torn
        end
        local grown = again(scratch, n, list, where)
        if at == keep and k == 1 then
          local named <close> = assert(ipc.journal(scratch, "r", { reader = "storm", follow = false }))
          local first = select(2, named:recv())
          if first and first > n + 1 then fail("%s: the reader goes on at %d of %d", where, first, n + 1) end
          base = grown
        end
      end
      if at == keep then
        directory = ("%s/from%d"):format(folder, rounds)
        assert(sh("cp -r %s %s && rm -f %s/control", scratch, directory, directory))
      end
    end
    list = base
    if rounds % 12 == 0 then sh("rm -rf %s/new* %s/from*", folder, folder) end
  end
  print(("journal: %d power cuts in %d rounds, %d records there, %d torn ends, none lost, none came back")
    :format(cuts, rounds, records, torn))
end

-- ---- kills

local SMALLEST <const> = 64 << 10

-- Appends as fast as it can and tells what was answered.
local function writer(directory, id, told)
  local durability = ({ "none", "interval", "sync" })[id % 3 + 1]
  local w = assert(ipc.journal(directory, "w", {
    segment = SMALLEST * (1 + id % 4), durability = durability, interval = 0.001,
    retain_bytes = 8 << 20, slowest = true,
  }))
  local n = 0
  while true do
    if n % 7 == 6 then
      local list = {}
      for i = 1, 5 do list[i] = payload(id, n + i, 40 + (n + i) % 600) end
      assert(w:sendmany(list))
      n = n + 5
    else
      n = n + 1
      local ok, sequence = w:send(payload(id, n, 40 + n % 900))
      assert(ok, sequence)
    end
    told:put { id, n }
    if n % 200 == 199 then
      w:close()
      w = assert(ipc.journal(directory, "w", { segment = SMALLEST, durability = durability }))
    end
  end
end

-- Reads on where its name is, and tells: what came first, what was acknowledged.
local function follower(directory, name, told)
  local r = assert(ipc.journal(directory, "r", { reader = name, retry = 5 }))
  local first = true
  while true do
    local message, sequence = assert(r:recv())
    if first then told:put { name, "first", sequence } end
    first = false
    assert(tonumber(message:match "^%d+:(%d+):"))
    assert(r:ack())
    told:put { name, "done", sequence }
  end
end

local function kills(want)
  local directory = folder .. "/kills"
  local done, ids, reported, read = 0, 0, {}, {}
  local seen, last = {}, 0
  assert(assert(ipc.journal(directory, "w")):close())
  assert(sh("mkdir -p %s", directory))
  local r = assert(ipc.journal(directory, "r", { retry = true, reader = "all" }))
  local children = {}
  local function start(place)
    local from, to = ipc.pipe()
    local child
    if place <= 4 then
      ids = ids + 1
      child = assert(ipc.fork(writer, directory, ids, to))
    else
      child = assert(ipc.fork(follower, directory, "reader" .. place, to))
    end
    children[place] = { child = child, from = from }
  end
  local function listen(place)
    for value in function() return (children[place].from:get(0)) end do
      if place <= 4 then
        reported[value[1]] = value[2]
      elseif value[2] == "done" then
        read[value[1]] = value[3]
      else
        local before = read[value[1]]
        -- One more may be saved than it could tell of.
        if before and value[3] ~= before + 1 and value[3] ~= before + 2 then
          fail("%s goes on with %d after %d", value[1], value[3], before)
        end
      end
    end
  end
  local function drain()
    local newest = r:stats().last -- they go on meanwhile
    while last < newest do
      local message, sequence, errno = r:recv(0)
      if not message and errno == E.ETIMEDOUT then return end
      if not message then fail("after %d kills: %s", done, sequence) end
      if sequence ~= last + 1 then fail("%d after %d", sequence, last) end
      last = sequence
      local id, n, length = message:match "^(%d+):(%d+):(%d+):"
      id, n = tonumber(id), tonumber(n)
      if n ~= (seen[id] or 0) + 1 then fail("writer %d: %d after %d", id, n, seen[id] or 0) end
      if message ~= payload(id, n, tonumber(length)) then fail("writer %d: message %d is another", id, n) end
      seen[id] = n
      if n % 50 == 0 then r:ack() end
    end
  end
  for place = 1, 6 do start(place) end
  while done < want do
    ipc.sleep(math.random(0, 4000) / 1e6)
    drain()
    local place = math.random(6)
    children[place].child:kill "KILL"
    listen(place)
    local _, why, errno = children[place].child:wait(20)
    if errno == E.ETIMEDOUT then fail("a killed child is there") end
    if not tostring(why):find "KILL" and not tostring(why):find "signal" and errno ~= E.EOWNERDEAD then
      fail("a child: %s", why)
    end
    listen(place)
    children[place].from:close()
    done = done + 1
    if done % 50 == 0 then -- all of them
      for other = 1, 6 do
        if other ~= place then
          children[other].child:kill "KILL"
          children[other].child:wait(20)
          listen(other)
          children[other].from:close()
          start(other)
          done = done + 1
        end
      end
    end
    start(place)
  end
  for place = 1, 6 do
    children[place].child:kill "KILL"
    children[place].child:wait(20)
    listen(place)
  end
  drain()
  for id, n in pairs(reported) do
    if (seen[id] or 0) < n then fail("writer %d: %d of %d", id, seen[id] or 0, n) end
  end
  r:close()
  local report = assert(ipc.verify(directory))
  if #report.damage > 0 then fail("%s", report.damage[1].reason) end
  print(("journal: %d kills, %d records of %d writers, none lost, none twice; %d files end torn"):format(
    done, last, ids, report.torn))
end

-- ---- disks that fail, and full ones

local function failing()
  local directory = folder .. "/failing"
  for _, durability in ipairs { "sync", "interval" } do
    for good = 0, 6 do
      sh("rm -rf %s", directory)
      local options = { durability = durability, interval = 0, segment = SMALLEST }
      local w = assert(ipc.journal(directory, "w", options))
      local other = assert(ipc.journal(directory, "w", options))
      local r = assert(ipc.journal(directory, "r"))
      for i = 1, 5 do assert(w:send(payload("f", i, 100))) end
      local promised = 5
      shim.fail(good)
      local failed
      for i = 6, 100 do
        local ok, why, errno = w:send(payload("f", i, 900))
        if not ok then
          if errno ~= E.EIO then fail("a failing disk answers %s", why) end
          failed = true
          break
        end
        promised = i
      end
      if not failed then fail("the disk did not fail") end
      shim.fail() -- it is well again, but nobody knows what it has
      for _, call in ipairs {
        function() return w:send "more" end, function() return other:send "more" end,
        function() return w:flush() end, function() return other:sendmany { "more" } end,
        function()
          local ok, why, errno
          repeat ok, why, errno = r:recv(0) until not ok
          return ok, why, errno
        end,
      } do
        local ok, why, errno = call()
        if ok or errno ~= E.EIO then fail("after a disk failed: %s %s", ok, why) end
      end
      other:close()
      r:close()
      w:close()
      local list = {}
      for i = 1, 100 do list[i] = payload("f", i, i <= 5 and 100 or 900) end
      local n = check(directory, promised, list, "a disk that failed")
      again(directory, n, list, "a disk that failed")
    end
  end
  print "journal: a failed sync ends it for all, until all have closed it"
end

local function full()
  local disk, image = folder .. "/disk", folder .. "/image"
  sh("mkdir -p %s", disk)
  local kind
  if sh("truncate -s 16M %s && mkfs.ext4 -q %s 2>/dev/null && mount -o loop %s %s 2>/dev/null",
      image, image, image, disk) then
    kind = "ext4"
  elseif sh("mount -t tmpfs -o size=8m none %s 2>/dev/null", disk) then
    kind = "tmpfs"
  else
    print "journal: full file systems skipped: nothing can be mounted here"
    return
  end
  local directory = disk .. "/log"
  local list, refused = {}, 0
  for _, durability in ipairs { "none", "sync" } do
    local w = assert(ipc.journal(directory, "w", { durability = durability, segment = 1 << 20 }))
    local r = assert(ipc.journal(directory, "r", { from = #list + 1 }))
    for turn = 1, 3 do
      sh("dd if=/dev/zero of=%s/filler bs=64k 2>/dev/null", disk)
      while true do
        local message = payload("full", #list + 1, 30000)
        local ok, why, errno
        if #list % 3 == 0 then
          local many = { message, payload("full", #list + 2, 70000) }
          local n
          ok, why, errno, n = w:sendmany(many)
          n = ok or n
          for i = 1, n do list[#list + 1] = many[i] end
        else
          ok, why, errno = w:send(message)
          if ok then list[#list + 1] = message end
        end
        if not ok then
          if errno ~= E.ENOSPC then fail("a full disk answers %s", why) end
          refused = refused + 1
          break
        end
      end
      while true do
        local message, sequence, errno = r:recv(0)
        if not message then
          if errno ~= E.ETIMEDOUT then fail("%s", sequence) end
          break
        end
        if message ~= list[sequence] then fail("a full disk shows %d of %d", sequence, #list) end
      end
      if r:stats().last ~= #list then fail("%d are visible of %d", r:stats().last, #list) end
      sh("rm -f %s/filler", disk)
      for _ = 1, turn do
        list[#list + 1] = payload("full", #list + 1, 30000)
        local ok, why = w:send(list[#list])
        if not ok then fail("with room again: %s", why) end
      end
    end
    w:close()
    r:close()
  end
  check(directory, #list, list, "a disk that was full")
  print(("journal: a full %s refused %d times, nothing half visible, all %d there"):format(kind, refused, #list))
  sh("umount %s", disk)
end

-- ---- bits that turn

local function flips(want)
  local directory = folder .. "/flips"
  local found, unseen = 0, 0
  for turn = 1, want do
    sh("rm -rf %s", directory)
    local list = {}
    local w = assert(ipc.journal(directory, "w", { durability = "none", segment = SMALLEST }))
    for i = 1, 150 do
      list[i] = payload("b" .. turn, i, size() % 2000)
      assert(w:send(list[i]))
    end
    assert(w:flush())
    w:close()
    local report = assert(ipc.verify(directory))
    local names = {}
    local listing <close> = assert(io.popen("LD_PRELOAD= ls " .. directory))
    for name in listing:lines() do names[#names + 1] = name end
    local name = names[math.random(#names)]
    local file <close> = assert(io.open(directory .. "/" .. name, "r+b"))
    local at = math.random(10) == 1 and math.random(0, 127) or
      math.random(4096, 4096 + report.bytes // #names // 2)
    file:seek("set", at)
    local byte = file:read(1):byte()
    file:seek("set", at)
    file:write(string.char(byte ~ (1 << math.random(0, 7))))
    file:close()
    local damaged = assert(ipc.verify(directory))
    if #damaged.damage > 0 then found = found + 1 else unseen = unseen + 1 end
    local function look(repaired)
      local r <close> = assert(ipc.journal(directory, "r", { follow = false }))
      local there = 0
      while true do
        local message, sequence, errno = r:recv()
        if message then
          if message ~= list[sequence] then fail("flip at %d of %s: record %d is another", at, name, sequence) end
          there = there + 1
        elseif errno == E.EPIPE or (errno == E.EBADMSG and not repaired) then
          return there
        elseif errno ~= E.ESTALE then
          fail("flip at %d of %s: %s", at, name, sequence)
        end
      end
    end
    look(false)
    assert(ipc.verify(directory, { repair = true }))
    local after = assert(ipc.verify(directory))
    if #after.damage > 0 then fail("flip at %d of %s: %s after repair", at, name, after.damage[1].reason) end
    local there = look(true)
    if there < 149 then fail("flip at %d of %s: %d records there", at, name, there) end
  end
  print(("journal: %d flipped bits, %d told as damage, %d where nothing is; one record lost at the most")
    :format(want, found, unseen))
end

if not os.getenv "ONLY" then failing() full() flips(LONG and 3000 or 60) end
kills(LONG and 5000 or tonumber(os.getenv "KILLS") or 150)
power(LONG and 100000 or tonumber(os.getenv "CUTS") or 1500, LONG and 8 or 1)
