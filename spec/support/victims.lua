-- For spec/storm: what is tried with a victim of spec/storm/step.c, killed before
-- one instruction after another, and what must hold after every kill. A trial:
--
--   prepare(), act(...)  the victim's: before it may be killed, and when
--   setup()              of the trial
--   before(c)            ours, before the victim's: handles go into the table c
--   first, late          the victim prepares before `before`, after the former
--   former, choose       another trial whose victim was killed before ours acts;
--                        of its points those that choose(point, i, points) wants
--   allowed              what may then be in the ring: a set of strings, a letter
--                        for each message, as `victims.letter` tells
--   open(mode)           opens it; options, file, broadcast: what it is
--   through(t, c)        instead, of what is no ring: nothing, or what is wrong
--   word                 an offset in it: what is there is `word` of a point
local ipc = require "ipc"

io.stdout:setvbuf "line" -- what is ended by force has said it, too

local build = os.getenv "BUILD" or "build"
local step = assert(package.loadlib(build .. "/storm/step.so", "luaopen_step"))()
if not step then
  print(arg[0] .. ": skipped, victims are followed on Linux and x86_64 only")
  os.exit(true)
end

local victims = { step = step }

-- How long a victim waits for what does not come, in seconds: a walk there takes
-- a while, and longer on a machine that has much to do.
victims.wait = 0.1
local WAIT_MOST <const> = 10

local pid <const> = step.link "/proc/self"
victims.name = "/storm-step-" .. pid
victims.path = "/dev/shm" .. victims.name
victims.file = (os.getenv "TMPDIR" or "/tmp") .. "/storm-step-" .. pid .. ".ring"

local LONG <const> = arg[1] == "--long"
local PATIENCE <const> = 10 -- seconds until a survivor's call counts as stuck
local SAMPLE <const> = 12 -- points that change nothing, of each trial in short
local ROUNDS <const> = 64
local FUTEX <const> = 202

-- Messages: a letter, and so many bytes that each needs another number of them.
function victims.message(letter) return letter:rep(letter:byte() * 3) end

function victims.letter(message)
  local letter = message:sub(1, 1)
  return message == victims.message(letter) and letter or "?"
end

local FRESH <const> = victims.message "F"

function victims.fill(ch, letters)
  for letter in letters:gmatch "." do assert(ch:send(victims.message(letter), nil, PATIENCE)) end
end

-- What is in the directory of `path` under its name, or a name for it to be.
function victims.left(path)
  local directory, name = path:match "^(.*/)(.*)$"
  for _, file in ipairs(step.list(directory)) do
    if file == name or file:find("." .. name .. ".", 1, true) == 1 then return file end
  end
end

-- ------------------------------------------------------------ after the kill

-- What the ring holds, as letters, up to the message that is fresh; with leases
-- those of the dead come when the receiver has waited.
local function drain(reader, lease)
  local letters, deadline, fresh = {}, ipc.now() + PATIENCE, false
  repeat
    local message, why = reader:recv(deadline - ipc.now())
    if not message then return nil, ("recv: %s after '%s'"):format(why, table.concat(letters)) end
    if message == FRESH then
      fresh = true
    else
      letters[#letters + 1] = victims.letter(message)
    end
  until fresh and (not lease or reader:stats().used == 0)
  if lease then table.sort(letters) end
  return table.concat(letters)
end

local function whole(c)
  local writer, reader = c.fresh_writer, c.fresh_reader
  local stats = reader:stats()
  if stats.used ~= 0 or stats.depth ~= 0 then
    return ("%d bytes, %d messages are still in it"):format(stats.used, stats.depth)
  end
  local most = ("x"):rep(writer:maxsize())
  local sent, why = writer:send(most, nil, PATIENCE)
  if not sent then return "a message of the whole capacity: " .. why end
  local got
  got, why = reader:recv(PATIENCE)
  if got ~= most then return "a message of the whole capacity does not return: " .. tostring(why) end
end

-- No dead subscriber holds a sender back: the ring is filled thrice.
local function around(c)
  local most = ("x"):rep(c.fresh_writer:maxsize() // 2)
  for _ = 1, 6 do
    local sent, why = c.fresh_writer:send(most, nil, PATIENCE)
    if not sent then return "a sender is held back: " .. why end
    if c.reader:recv(PATIENCE) ~= most or c.fresh_reader:recv(PATIENCE) ~= most then return "a message is missing" end
  end
end

-- Whether two strangers get through, and find what they must.
local function through(t, c)
  local watcher = c.reader or c.writer
  local depth = watcher and watcher:stats().depth
  local writer, why = t.open "w"
  if not writer then return "a writer cannot open it: " .. why end
  c.fresh_writer = writer
  local reader
  reader, why = t.open "r"
  if not reader then return "a reader cannot open it: " .. why end
  c.fresh_reader = reader
  local got
  if not t.full then
    local sent
    sent, why = writer:send(FRESH, nil, PATIENCE)
    if not sent then return "a sender does not get through: " .. why end
  else
    repeat
      got, why = reader:recv(PATIENCE)
      if not got then return "a receiver does not get through: " .. why end
    until reader:stats().used == 0
    assert(writer:send(FRESH, nil, PATIENCE))
  end
  if t.broadcast then -- a subscriber sees what comes after it
    got = reader:recv(PATIENCE)
    if got ~= FRESH then return "the new subscriber does not get the new message" end
    reader = c.reader
  end
  got, why = drain(reader, t.options.lease)
  if not got then return why end
  if not t.allowed[got] then return ("it holds '%s'"):format(got) end
  if depth and not t.full and not t.options.lease and not t.other and depth ~= #got then
    return ("depth was %d, and '%s' in it"):format(depth, got)
  end
  if t.broadcast and reader:stats().lost ~= 0 then
    return ("%d messages are said to be lost"):format(reader:stats().lost)
  end
  return (t.broadcast and around or whole)(c)
end

local function check(t, c)
  local ok, trouble = pcall(t.through or through, t, c)
  if not ok then trouble = tostring(trouble) end
  for _, handle in pairs(c) do handle:close() end
  local path = t.file and victims.file or victims.path
  if t.file or t.options.persist then os.remove(path) end
  local left = victims.left(path)
  while left do
    trouble = trouble or left .. " is left"
    os.remove(path:match "^.*/" .. left)
    left = victims.left(path)
  end
  return trouble
end

-- ------------------------------------------------------------------- trials

-- Brings a victim to where it acts, its former killed at the given point.
local function begin(t, formerly)
  local former = t.former and step.fork(t.former.prepare, t.former.act)
  local victim = step.fork(t.prepare, t.act)
  local c = {}
  if t.first then step.ready(victim) end
  if t.before then t.before(c) end
  if former then step.ready(former) end
  if not t.first and not t.late then step.ready(victim) end
  if former then
    step.reach(former, formerly.at, formerly.hit)
    step.kill(former)
  end
  if t.late then step.ready(victim) end
  return victim, c
end

local function walk(t, formerly)
  local victim, c = begin(t, formerly)
  local points, steps = step.walk(victim, t.file and victims.file or victims.path, t.word)
  step.kill(victim)
  local trouble = check(t, c)
  return points, steps, trouble
end

-- Every point of LONG, but not for ever round a loop that changes nothing; else
-- all before which something changed, and a sample of the others.
local function chosen(points, every_one)
  local some, others = {}, {}
  for _, p in ipairs(points) do
    local list = (p.changed or every_one and p.hit <= ROUNDS) and some or others
    list[#list + 1] = p
  end
  if every_one then return some end
  local every = math.max(#others // SAMPLE, 1)
  for i = math.random(every), #others, every do some[#some + 1] = others[i] end
  return some
end

local function where(p)
  local base, file = step.core()
  if not p.core then return ("%#x (%d)"):format(p.at, p.hit) end
  local f <close> = assert(io.popen(("addr2line -s -f -e '%s' %#x"):format(file, p.at - base)))
  return ("%s, for the %d. time"):format(f:read "a":gsub("\n", " "), p.hit)
end

-- The points at which the former dies; without one, a single nothing.
local function formers(t)
  if not t.former then return { false } end
  local list = {}
  while #list == 0 do
    local points = walk(t.former)
    for i, p in ipairs(points) do
      if p.changed and t.choose(p, i, points) then list[#list + 1] = p end
    end
    if #list == 0 then victims.wait = victims.wait * 2 end
    assert(victims.wait < WAIT_MOST, "no such point of the former victim")
  end
  if not LONG then
    list = { list[#list // 2 + 1], not t.late and list[math.random(#list)] or nil }
  elseif t.late then
    list = { list[1], list[#list // 2 + 1], list[#list] }
  end
  return list
end

-- For choose: who had a lock; who was about to sleep.
function victims.held(p) return p.word ~= 0 end
function victims.sending(p) return p.sending ~= 0 end
function victims.receiving(p) return p.receiving ~= 0 end
function victims.last(_, i, points) return i == #points end
function victims.asleep(_, i, points)
  for j = i + 1, #points do
    if points[j].changed then return points[j].call == FUTEX end
  end
end

-- Kills at the points of a trial; prints what it found.
-- @treturn boolean whether nothing was inconsistent
function victims.kill(t)
  if t.setup then t.setup() end
  local started, count, changed, bad, steps = ipc.now(), 0, 0, 0, 0
  local deaths = formers(t)
  for i, formerly in ipairs(deaths) do
    local every_one = LONG and (i == 1 or i == #deaths // 2 + 1 or i == #deaths)
    local points, n, trouble = walk(t, formerly)
    steps = steps + n
    if trouble then
      bad = bad + 1
      print("  at its end: " .. trouble)
    end
    for _, p in ipairs(chosen(points, every_one)) do
      local victim, c = begin(t, formerly)
      local there, why = step.reach(victim, p.at, p.hit)
      step.kill(victim)
      trouble = check(t, c) or (there == nil and "the victim " .. why or nil)
      count = count + 1
      if p.changed then changed = changed + 1 end
      if trouble then
        bad = bad + 1
        if bad <= 5 then
          print(("  %s: killed at %s%s: %s"):format(t.name, where(p),
            formerly and ", the former at " .. where(formerly) or "", trouble))
        end
      end
    end
  end
  print(("%s: %-28s %6d instructions, %5d points (%d of a change), inconsistent %d  (%.1f s)")
    :format(arg[0]:match "([^/]*)%.lua$", t.name, steps, count, changed, bad, ipc.now() - started))
  return bad == 0
end

-- All, or those whose name has what the environment says; the program ends.
function victims.run(trials)
  local wanted, good = os.getenv "TRIALS", true
  math.randomseed(tonumber(os.getenv "SEED") or os.time())
  for _, t in ipairs(trials) do
    if t.name:find(wanted or "") and (LONG or not t.long) then good = victims.kill(t) and good end
  end
  os.exit(good)
end

return victims
