-- alloc.lua FOLDER [STEP [SCENARIO ...]]: every scenario with every kind of
-- failure. STEP skips points, for a quick look. One line a scenario.
local folder, step = arg[1], math.tointeger(tonumber(arg[2] or 1))
local batch = assert(package.loadlib(assert(os.getenv "FAULT_ALLOC"), "luaopen_alloc"))()

local KINDS = {}
local function kind(what, times, name, errno)
  KINDS[#KINDS + 1] = { what = what, times = times, name = name, errno = errno or "ENOMEM" }
end
for _, what in ipairs { "lua", "malloc" } do
  kind(what, 1, what .. " once")
  kind(what, 2, what .. " twice")
  kind(what, 0, what .. " for good")
end
for _, name in ipairs { "EMFILE", "ENFILE", "ENOMEM", "EINTR" } do
  kind("makes", 1, "creation once, " .. name, name)
  kind("makes", 0, "creation for good, " .. name, name)
end
kind("moves", 1, "transfer once, EINTR", "EINTR")
kind("moves", 1, "transfer once, ENOMEM", "ENOMEM")

local FAILURES = 3 -- of one kind that are shown
local only = os.getenv "FAULT_ONLY" -- kinds whose name contains it
local bad, all_runs, all_hits = 0, 0, 0

local function run(scenario, k, child, stride)
  local first, shown, runs, hits = 1, 0, 0, 0
  repeat
    local through, n, more, met, text = batch(folder .. "/prelude.lua", folder .. "/scenarios/" .. scenario .. ".lua",
      folder .. "/sweep.lua", k.what, k.times, k.errno, child, first, stride)
    runs, hits, first = runs + more, hits + met, n + stride
    if not through then
      shown = shown + 1
      io.write(("%s, %s, point %d%s:\n  %s\n"):format(scenario, k.name, n, child and " (in the child)" or "",
        (text or "?"):gsub("\n", "\n  ")))
    end
  until through or shown == FAILURES
  return runs, hits, shown
end

local scenarios = table.move(arg, 3, #arg, 1, {})
for _, scenario in ipairs(scenarios) do
  local start, runs, hits, shown = os.time(), 0, 0, 0
  for _, k in ipairs(KINDS) do
    if not only or k.name:find(only, 1, true) then
      for _, child in ipairs { false, scenario == "process" or nil } do
        local a, b, c = run(scenario, k, child, k.what == "lua" and step or 1)
        runs, hits, shown = runs + a, hits + b, shown + c
      end
    end
  end
  if hits == 0 then
    io.write(scenario, ": nothing failed, so nothing is shown\n")
    shown = shown + 1
  end
  io.write(("%-14s %6d runs, %6d met a failure, %d failed, %d s\n"):format(scenario, runs, hits, shown,
    os.time() - start))
  bad, all_runs, all_hits = bad + shown, all_runs + runs, all_hits + hits
end
os.exit(bad == 0)
