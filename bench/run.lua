-- All benchmarks: rounds in which this library, raw C and others take turns
-- with the same work, then medians, ratios and goals. A ratio is the median of
-- the ratios of single rounds, so that it holds on a noisy machine too, where
-- the times mean little. Mechanisms join by themselves; one that raw.h knows is
-- compared with it. Arguments: [rounds (7) [seconds of each measurement (0.1)
-- [a word of the titles wanted]]].

local ipc = require "ipc"
local sections = dofile "bench/sections.lua"

local rounds = tonumber(arg[1]) or 7
local seconds = tonumber(arg[2]) or 0.1
local wanted = arg[3] or ""

local LUA = arg[-1] or "lua5.4"
local BUILD = "build/bench/"

local PER = { us = 1e3, ns = 1 }

-- ------------------------------------------------------------------ running

local function quote(text)
  return "'" .. text:gsub("'", "'\\''") .. "'"
end

-- What a program says instead of a number when the mechanism cannot do this.
local EXCUSES = {
  ["too large"] = true, ["one at a time"] = true, ["may get lost"] = true, ["polls"] = true,
}

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

local function compile(source, flags)
  local command = "mkdir -p %speers && %s -O2 -o %s bench/%s %s"
  local compiler = source:find "%.cpp$" and "${CXX:-c++}" or "${CC:-cc}"
  local program = BUILD .. source:gsub("%.%w+$", "")
  if not os.execute(command:format(BUILD, compiler, program, source, flags or "")) then
    os.exit(false)
  end
end

-- What to run for another library; nil and a word to the user if it is missing.
local function peer(word)
  local p = sections.PEERS[word]
  if p.missing == nil then
    local include = p.include and ("$(printf ' -isystem %%s' %s)"):format(p.include) or ""
    local has = p.python and "command -v python3" or
      ("%s echo '#include <%s>' | ${CXX:-c++} -E -xc++ %s -"):format(
        p.needs and ("command -v %s &&"):format(p.needs) or "", p.header, include)
    p.missing = not os.execute(("{ %s; } >/dev/null 2>&1"):format(has))
    if p.missing then
      print(p.name:gsub(",.*", "") .. ": not installed")
    elseif p.source then
      compile("peers/" .. p.source, include .. " " .. p.flags)
    end
  end
  if p.missing then
    return nil
  end
  return p.python and "python3 bench/peers/python.py %s %s %s " .. p.python or
    BUILD .. "peers/" .. p.source:gsub("%.%w+$", "") .. " %s %s %s"
end

-- Of a section on rings in shared memory. There is one raw C for all of them.
local function rings_of(section, cell)
  local work = section.work == "many" and "small" or section.work -- raw C gathers nothing
  for _, ring in ipairs(sections.RINGS) do
    if not section.only or section.only == ring.name then
      section.rows[#section.rows + 1] = ring.name
      for _, way in ipairs(#section.rows == 1 and { "blocking", "learning" } or {}) do
        if section.work == "pingpong" then
          cell(ring.name, way, BUILD .. "pingpong ring %s %s %s", way, section.place, seconds)
        else
          cell(ring.name, way, BUILD .. "oneway ring %s %s %s %s", way, section.place, seconds, work)
        end
      end
      cell(ring.name, "ours", LUA .. " bench/ring.lua %s %s %s %s", ring.kind, section.work,
        section.place, seconds)
    end
  end
  section.others = {}
  for word in pairs(section.peers or {}) do
    section.others[#section.others + 1] = word
  end
  table.sort(section.others)
  for i = #section.others, 1, -1 do
    local command = peer(section.others[i])
    if command then
      cell(section.others[i], "peer", command, section.work, section.place, seconds)
    else
      table.remove(section.others, i)
    end
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
  if section.rings then
    rings_of(section, cell)
    return cells
  end
  if section.crowds then
    for _, c in ipairs(section.crowds) do
      local name, writers, readers, kind, what = table.unpack(c)
      section.rows[#section.rows + 1] = name
      if kind ~= "broadcast" then
        cell(name, "learning", BUILD .. "crowd %s %s %s %s", writers, readers, kind, seconds)
      end
      cell(name, "ours", LUA .. " bench/crowd.lua %s %s %s %s %s", writers, readers, kind, seconds,
        what or "got")
    end
    return cells
  end
  local ways = {}
  for _, m in ipairs(ipc.mechanisms()) do
    ways[#ways + 1] = m
    for _, way in ipairs(sections.MORE) do
      ways[#ways + 1] = way.of == m.name and way or nil
    end
  end
  for _, m in ipairs(ways) do
    section.rows[#section.rows + 1] = m.name
    local raw = sections.RAW[m.name]
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
    cell("python", "python", "python3 bench/peers/python.py %s %s %s", section.work, section.place, seconds)
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

-- A row of another library: how many times faster the first row of ours is.
local function report_peer(section, word, samples, ours)
  local name, least = sections.PEERS[word].name, section.peers[word]
  local times, goal = ratio(samples, ours), ""
  if times then
    goal = (">= %g %s"):format(least, verdict(section, name, times >= least,
      ("ours is %.1f times faster, goal %g"):format(times, least)))
  end
  print((LINE:format(name, "", "", "", "", "", number(median(samples), PER[section.unit]),
    number(times), goal):gsub("%s+$", "")))
end

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
      verdict(section, row, mine / per <= most, ("%s, goal %g"):format(number(mine, per), most)))
  end
  if times and section.python and sections.RAW[row] then
    goal2 = (">= %g %s"):format(section.python, verdict(section, row, times >= section.python,
      ("%.1f x faster than python, goal %g"):format(times, section.python)))
  end
  print((LINE:format((section.names or {})[row] or row, number(median(s.blocking), per),
    number(median(s.learning), per), number(mine, per), number(x), goal,
    number(median(python), per), number(times), goal2):gsub("%s+$", "")))
end

-- A row of this library beside another one of it.
local function report_than(section, row, of)
  local than = section.than and section.than[row]
  local x = than and ratio(of[row].ours, of[than[1]].ours)
  if x then
    print((LINE:format("  / " .. than[1], "", "", number(x) .. " x", "", ("<= %g %s"):format(than[2],
      verdict(section, row, x <= than[2], ("%.2f x %s, goal %g"):format(x, than[1], than[2]))),
      "", "", ""):gsub("%s+$", "")))
  end
end

local function report(section, cells)
  local of, python = {}, {}
  for i, row in ipairs(section.rows) do
    local first = section.rings and i > 1 and of[section.rows[1]]
    of[row] = first and { blocking = first.blocking, learning = first.learning, ours = {} } or
      { blocking = {}, learning = {}, ours = {} }
  end
  local others = {}
  for _, c in ipairs(cells) do
    if c.column == "python" then
      python = c.samples
    elseif c.column == "peer" then
      others[c.row] = c.samples
    else
      of[c.row][c.column] = c.samples
    end
  end
  print(("\n%s (%s)"):format(section.title, section.unit))
  print(LINE:format("", "raw C", "raw C", "", "x raw", "", "", "x faster", ""))
  print(LINE:format("", "blocking", "learning", "lua-ipc", "C", "goal",
    section.rings and "other" or section.crowds and "" or "python", "than it", "goal"))
  for _, row in ipairs(section.rows) do
    report_row(section, row, of[row], python, section.raw and section.raw[row])
    local beside = section.beside and section.beside[row]
    local other = beside and of[beside[1]]
    if other then
      local s = { blocking = other.blocking, learning = other.learning, ours = of[row].ours }
      report_row(section, row .. " / " .. beside[1], s, {}, beside[2])
    end
    report_than(section, row, of)
  end
  for _, word in ipairs(section.others or {}) do
    report_peer(section, word, others[word], of[section.rows[1]].ours)
  end
end

-- ------------------------------------------------------------------ the run

for _, name in ipairs { "pingpong", "oneway", "objects", "crowd" } do
  compile(name .. ".c")
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
for _, section in ipairs(sections.LIST) do
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
