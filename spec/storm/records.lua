-- Versioned records: a process is killed before every instruction of a store, or
-- stopped there while another stores, and goes on; a reader is stopped before
-- every instruction of a load. The record is always one that was stored, whole,
-- and can be stored again at once. In short before each instruction after which
-- memory has changed, and a sample of the rest; with --long before all.
local ipc = require "ipc"

local step = require "spec.support.victims".step

local LONG <const> = arg[1] == "--long"
local SAMPLE <const> = 60
local ROUNDS <const> = 64 -- of a loop that waits
local NAME <const> = ("/storm-%s-records"):format(os.getenv "STORM_TAG" or ipc.pid())
local PATH <const> = "/dev/shm" .. NAME
local SIZE <const> = 4096

local Record = ipc.struct {
  { "list", "I4", 6 }, { "name", "z9" }, { "x", "d" }, { "last", "B" }, versioned = true,
}

local function value(n)
  return { list = { n, n, n, n, n, n }, name = ("n"):rep(n), x = n + 0.5, last = n }
end

-- Which value it is; nil: none that was stored.
local function which(t)
  local n = t.last
  for i = 1, 6 do
    if t.list[i] ~= n then return nil end
  end
  return t.name == ("n"):rep(n) and t.x == (n == 0 and 0.0 or n + 0.5) and n or nil
end

local memory = assert(ipc.memory(NAME, SIZE, { create = "new" }))
local record = memory:view(Record)

local function prepare()
  local own = assert(ipc.memory(NAME, nil, { retry = 10 }))
  return { memory = own, record = own:view(Record) }
end

local function store(v) assert(Record:store(v.record, value(2))) end

local function load(v)
  local t = assert(Record:load(v.record))
  v.memory:store(SIZE - 8, 1 + (which(t) or 99))
end

-- A trial: what the victim does; what others do while it is at a point; whether
-- it goes on then; what the record may be after that.
local trials = {
  { "killed in a store", act = store, allowed = { [1] = true, [2] = true } },
  { "killed after another was", act = store, former = true, allowed = { [1] = true, [2] = true } },
  {
    "stopped in a store, another stores",
    act = store,
    meanwhile = function() assert(Record:store(record, value(3))) end,
    goes_on = true,
    allowed = { [2] = true, [3] = true },
  },
  {
    "stopped in a store, others store twice",
    act = store,
    meanwhile = function()
      assert(Record:store(record, value(3)))
      assert(Record:store(record, value(4)))
    end,
    goes_on = true,
    allowed = { [2] = true, [4] = true },
  },
  {
    "stopped in a load, others store twice",
    act = load,
    meanwhile = function()
      assert(Record:store(record, value(3)))
      assert(Record:store(record, value(4)))
    end,
    goes_on = true,
    reads = { [1] = true, [4] = true },
    allowed = { [4] = true },
  },
}

local function begin(t, formerly)
  memory:fill(0)
  assert(Record:store(record, value(1)))
  if formerly then
    local former = step.fork(prepare, store)
    step.ready(former)
    step.reach(former, formerly.at, formerly.hit)
    step.kill(former)
  end
  local victim = step.fork(prepare, t.act)
  step.ready(victim)
  return victim
end

-- What is wrong after the victim, or nil.
local function check(t)
  local now = Record:load(record)
  local n = now and which(now)
  if not t.allowed[n] then return "the record is " .. tostring(n or "torn") end
  local seen = memory:load(SIZE - 8) - 1
  if t.reads and not t.reads[seen] then return "the reader saw " .. seen end
  if not Record:store(record, value(5)) or which(Record:load(record)) ~= 5 then return "no store gets through" end
end

local function points_of(t, formerly)
  local victim = begin(t, formerly)
  local points, steps = step.walk(victim, PATH)
  step.kill(victim)
  local some, others = {}, {}
  for i, p in ipairs(points) do
    local after = points[i - 1] and points[i - 1].changed -- reads too: what is seen first
    local list = (LONG and p.hit <= ROUNDS or p.changed or after) and some or others
    list[#list + 1] = p
  end
  local every = math.max(#others // SAMPLE, 1)
  for i = math.random(every), #others, every do some[#some + 1] = others[i] end
  return some, steps
end

local function run(t, formerly)
  local started, bad = ipc.now(), 0
  local points, steps = points_of(t, formerly)
  for _, p in ipairs(points) do
    local victim = begin(t, formerly)
    local there, why = step.reach(victim, p.at, p.hit)
    if there ~= nil and t.meanwhile then t.meanwhile() end
    if there and t.goes_on then there, why = step.finish(victim) end
    step.kill(victim)
    local trouble = there == nil and "the victim " .. tostring(why) or check(t)
    if trouble then
      bad = bad + 1
      if bad <= 5 then print(("  %s: at %#x, %d: %s"):format(t[1], p.at, p.hit, trouble)) end
    end
  end
  print(("records: %-40s %6d instructions, %4d points, inconsistent %d  (%.1f s)")
    :format(t[1], steps, #points, bad, ipc.now() - started))
  return bad == 0
end

math.randomseed(tonumber(os.getenv "SEED") or os.time())
local good = true
for _, t in ipairs(trials) do
  local formerly
  if t.former then -- in the middle of its copy
    local all, changes = points_of(t), {}
    for _, p in ipairs(all) do
      if p.changed then changes[#changes + 1] = p end
    end
    formerly = assert(changes[#changes // 2])
  end
  good = run(t, formerly) and good
end
memory:close()
os.exit(good)
