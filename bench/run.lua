-- All benchmarks: rounds in which this library, raw C and python3 take turns
-- with the same work, then medians, ratios and goals. A ratio is the median of
-- the ratios of single rounds, so that it holds on a noisy machine too, where
-- the times mean little. Mechanisms join by themselves; one that raw.h knows is
-- compared with it. Arguments: [rounds (7) [seconds of each measurement (0.1)
-- [a word of the titles wanted]]].

local ipc = require "ipc"

local rounds = tonumber(arg[1]) or 7
local seconds = tonumber(arg[2]) or 0.1
local wanted = arg[3] or ""

local LUA = arg[-1] or "lua5.4"
local BUILD = "build/bench/"

-- What raw C calls it.
local RAW = {
  ["pipe"] = "pipe",
  ["fifo"] = "fifo",
  ["fifo, with its lock"] = "fifo",
  ["pipe, packets"] = "packets",
  ["unix stream"] = "stream",
  ["unix seqpacket"] = "seqpacket",
  ["unix datagram"] = "datagram",
  ["tcp"] = "tcp",
  ["udp"] = "udp",
  ["System V queue"] = "sysv",
  ["POSIX queue"] = "mqueue",
}

-- Ways to use a mechanism that cost something else.
local MORE = { { name = "fifo, with its lock", address = "fifo?writers=2", of = "fifo" } }

-- `raw`: at most so many times raw C's time; `python`: at least so many times
-- faster than python3; `most`: at most so much on the reference machine (two
-- cores of a virtual machine, Linux 6.18), where there is no such raw C;
-- `beside`: at most so many times the time of another mechanism's raw C.
local SECTIONS = {
  {
    title = "Round trip of 64 bytes, across cores",
    unit = "us", work = "pingpong", place = "across", against = "learning", python = 12,
    raw = {
      fifo = 1.25, pipe = 1.25, ["pipe, packets"] = 1.25, ["unix stream"] = 1.2, ["unix seqpacket"] = 1.2,
      ["unix datagram"] = 1.2, tcp = 1.15, udp = 1.2, ["POSIX queue"] = 1.25,
    },
    beside = { ["System V queue"] = { "pipe", 1.25 } },
  },
  {
    title = "Round trip of 64 bytes, on one core",
    unit = "us", work = "pingpong", place = "one", against = "learning", python = 1,
    raw = {
      fifo = 1.25, pipe = 1.25, ["pipe, packets"] = 1.25, ["unix stream"] = 1.2, ["unix seqpacket"] = 1.2,
      ["unix datagram"] = 1.2, tcp = 1.15, udp = 1.2, ["POSIX queue"] = 1.25,
    },
    beside = { ["System V queue"] = { "pipe", 1.25 } },
  },
  {
    title = "One way, 64 bytes, send and recv, across cores",
    unit = "ns", work = "small", place = "across", python = 1,
    raw = {
      fifo = 1.5, pipe = 1.5, ["pipe, packets"] = 1.5, ["unix stream"] = 1.15, ["unix seqpacket"] = 1.25,
      ["unix datagram"] = 1.25, tcp = 1.1, ["System V queue"] = 1.3, ["POSIX queue"] = 1.1,
    },
  },
  {
    title = "One way, 64 bytes, sendmany and recvmany, across cores",
    unit = "ns", work = "many", place = "across",
    most = { pipe = 130, fifo = 130, ["unix stream"] = 110, tcp = 120 },
  },
  {
    title = "One way, 1 MiB, across cores",
    unit = "us", work = "large", place = "across", python = 1,
    raw = {
      pipe = 1.15, fifo = 1.15, ["unix stream"] = 1.4, ["unix seqpacket"] = 1.8, ["unix datagram"] = 1.8,
      tcp = 1.4,
    },
  },
  {
    -- "there": a recv with a timeout beside a msgrcv that would block; "wake":
    -- round trips in which both sides sleep, beside a pipe's.
    title = "System V queue: what is there, beside msgrcv; a wake-up, beside a pipe's",
    unit = "us", work = "waiting", place = "across", needs = "sysv", rows = { "there", "wake" },
    names = { there = "timed recv, is there", wake = "wake-up, spin = 0" },
    raw = { there = 1.1, wake = 2 },
  },
  {
    title = "Making and closing",
    unit = "us", work = "objects", rows = { "pipe", "unix", "fork" },
    names = { unix = "unix stream", fork = "fork, first message" },
    raw = { pipe = 2, unix = 2, fork = 1.3 },
  },
}

local PER = { us = 1e3, ns = 1 }

-- ------------------------------------------------------------------ running

local function quote(text)
  return "'" .. text:gsub("'", "'\\''") .. "'"
end

-- What a program says instead of a number when the mechanism cannot do this.
local EXCUSES = { ["too large"] = true, ["one at a time"] = true, ["may get lost"] = true }

local troubles = {} -- what else they said, each once

-- The number a program prints, or nil.
local function run(format, ...)
  local words = table.pack(...)
  for i = 1, words.n do
    words[i] = quote(tostring(words[i]))
  end
  local command = format:format(table.unpack(words))
  local p <close> = assert(io.popen(command .. " 2>&1"))
  local said = p:read "a"
  local number = tonumber(said)
  if not number and not EXCUSES[said:match "^[^\n]*"] and not troubles[command] then
    troubles[command] = true
    troubles[#troubles + 1] = command .. "\n    " .. said:gsub("\n", "\n    ")
  end
  return number
end

local function compile(name)
  local command = "mkdir -p %s && ${CC:-cc} -O2 -o %s bench/%s.c"
  if not os.execute(command:format(BUILD, BUILD .. name, name)) then
    os.exit(false)
  end
end

-- The cells of a section: functions, in the order in which a round calls them.
local function cells_of(section)
  local cells = {}
  local function cell(row, column, ...)
    local call = table.pack(...)
    cells[#cells + 1] = { row = row, column = column, samples = {}, call = function()
      return run(table.unpack(call, 1, call.n))
    end }
  end
  if section.work == "objects" then
    for _, what in ipairs(section.rows) do
      cell(what, "learning", BUILD .. "objects %s %s", what == "unix" and "socketpair" or what, seconds)
      cell(what, "ours", LUA .. " bench/objects.lua %s %s", what, seconds)
    end
    return cells
  end
  if section.work == "waiting" then
    cell("there", "blocking", BUILD .. "oneway sysv blocking one %s there", seconds)
    cell("there", "ours", LUA .. " bench/channel.lua sysv there one %s", seconds)
    cell("wake", "blocking", BUILD .. "pingpong pipe blocking across %s", seconds)
    cell("wake", "ours", LUA .. " bench/channel.lua 'sysv?spin=0' pingpong across %s", seconds)
    return cells
  end
  section.rows = {}
  local ways = {}
  for _, m in ipairs(ipc.mechanisms()) do
    ways[#ways + 1] = m
    for _, way in ipairs(MORE) do
      ways[#ways + 1] = way.of == m.name and way or nil
    end
  end
  for _, m in ipairs(ways) do
    section.rows[#section.rows + 1] = m.name
    local raw = RAW[m.name]
    for _, way in ipairs { "blocking", "learning" } do
      if raw and section.work == "pingpong" then
        cell(m.name, way, BUILD .. "pingpong %s %s %s %s", raw, way, section.place, seconds)
      elseif raw then
        cell(m.name, way, BUILD .. "oneway %s %s %s %s %s", raw, way, section.place, seconds,
          section.work)
      end
    end
    cell(m.name, "ours", LUA .. " bench/channel.lua %s %s %s %s", m.address, section.work,
      section.place, seconds)
  end
  if section.python then
    cell("python", "python", "python3 bench/peers.py %s %s %s", section.work, section.place, seconds)
  end
  return cells
end

-- ---------------------------------------------------------------- reporting

local function median(list)
  local sorted = {}
  for _, x in pairs(list) do
    sorted[#sorted + 1] = x
  end
  table.sort(sorted)
  return sorted[#sorted // 2 + 1]
end

-- The median, over the rounds that have both, of a's sample over b's.
local function ratio(a, b)
  local all = {}
  for i = 1, rounds do
    if a[i] and b[i] then
      all[#all + 1] = a[i] / b[i]
    end
  end
  return median(all)
end

local function faster(a, b)
  local least = {}
  for i = 1, rounds do
    least[i] = a[i] and b[i] and math.min(a[i], b[i]) or a[i] or b[i]
  end
  return least
end

local function number(x, scale)
  if not x then
    return "-"
  end
  x = x / (scale or 1)
  return (x < 10 and "%.2f" or x < 100 and "%.1f" or "%.0f"):format(x)
end

local shorts = {}

local function verdict(section, row, met, text)
  if not met then
    shorts[#shorts + 1] = ("%s: %s: %s"):format(section.title, row, text)
  end
  return met and "met" or "short"
end

local LINE = "%-21s %9s %9s %9s %7s %-13s %9s %8s %s"

-- A row: the median times of `s`, and how `s.ours` compares to raw C and python.
local function report_row(section, row, s, python, limit)
  local raw = section.against and s[section.against] or faster(s.blocking, s.learning)
  local x, times = ratio(s.ours, raw), ratio(python, s.ours)
  local mine, per = median(s.ours), PER[section.unit]
  local goal, goal2 = "", ""
  local most = section.most and section.most[row]
  if x and limit then
    goal = ("<= %g %s"):format(limit,
      verdict(section, row, x <= limit, ("%.2f x raw C, goal %g"):format(x, limit)))
  elseif mine and most then
    goal = ("%s <= %g %s"):format(section.unit, most,
      verdict(section, row, mine / per <= most, ("%.0f, goal %g"):format(mine / per, most)))
  end
  if times and section.python and RAW[row] then
    goal2 = (">= %g %s"):format(section.python, verdict(section, row, times >= section.python,
      ("%.1f x faster than python, goal %g"):format(times, section.python)))
  end
  print((LINE:format((section.names or {})[row] or row, number(median(s.blocking), per),
    number(median(s.learning), per), number(mine, per), number(x), goal,
    number(median(python), per), number(times), goal2):gsub("%s+$", "")))
end

local function report(section, cells)
  local of, python = {}, {}
  for _, row in ipairs(section.rows) do
    of[row] = { blocking = {}, learning = {}, ours = {} }
  end
  for _, c in ipairs(cells) do
    if c.column == "python" then
      python = c.samples
    else
      of[c.row][c.column] = c.samples
    end
  end
  print(("\n%s (%s)"):format(section.title, section.unit))
  print(LINE:format("", "raw C", "raw C", "", "x raw", "", "", "x faster", ""))
  print(LINE:format("", "blocking", "learning", "lua-ipc", "C", "goal", "python", "than it", "goal"))
  for _, row in ipairs(section.rows) do
    report_row(section, row, of[row], python, section.raw and section.raw[row])
    local beside = section.beside and section.beside[row]
    local other = beside and of[beside[1]]
    if other then
      local s = { blocking = other.blocking, learning = other.learning, ours = of[row].ours }
      report_row(section, row .. " / " .. beside[1], s, {}, beside[2])
    end
  end
end

-- ------------------------------------------------------------------ the run

for _, name in ipairs { "pingpong", "oneway", "objects" } do
  compile(name)
end

local function progress(...)
  io.stderr:write(("\27[2K\r" .. ...):format(select(2, ...)))
end

if not os.execute "test -t 2" then
  progress = function() end
end

local function has(address)
  for _, m in ipairs(ipc.mechanisms()) do
    if m.address == address then
      return true
    end
  end
end

local chosen = {}
for _, section in ipairs(SECTIONS) do
  local possible = (section.place ~= "across" or ipc.cpus() > 1) and
    (not section.needs or has(section.needs))
  if possible and section.title:lower():find(wanted:lower(), 1, true) then
    chosen[#chosen + 1] = section
    section.cells = cells_of(section)
  end
end

for round = 1, rounds do
  for _, section in ipairs(chosen) do
    for _, c in ipairs(section.cells) do
      progress("round %d of %d: %s, %s", round, rounds, section.title, c.row)
      c.samples[round] = c.call()
    end
  end
end
progress ""

for _, section in ipairs(chosen) do
  report(section, section.cells)
end

if wanted == "" then
  for _, program in ipairs { "memory", "values" } do
    print()
    os.execute(("%s bench/%s.lua"):format(LUA, program))
  end
end

print(("\n%d short of their goals%s"):format(#shorts, #shorts > 0 and ":" or "."))
for _, text in ipairs(shorts) do
  print("  " .. text)
end

for _, text in ipairs(troubles) do
  io.stderr:write("failed: ", text, "\n")
end
os.exit(#troubles == 0)
