-- The same real work through every mechanism in turn, and what each is like:
--
--   lua5.4 examples/demo.lua FILE
--
-- Counts the words of the file in this process alone, then with workers over
-- each mechanism (wordcount.lua), then by calls of functions elsewhere; checks that
-- the answers are equal, measures a small round trip, prints a table. It ends badly
-- if any answer differs.
local folder = arg[0]:match "^.*/" or "./"
package.path = folder .. "?.lua;" .. package.path

local ipc = require "ipc"
local wordcount = require "wordcount"

-- ---- looks

local function variable(name)
  local value = os.getenv(name)
  return value ~= "" and value or nil
end

local terminal = os.execute "test -t 1"
local locale = variable "LC_ALL" or variable "LC_CTYPE" or variable "LANG" or ""
local utf8_locale = locale:lower():find "utf%-?8" ~= nil
local coloured = terminal and not variable "NO_COLOR" and variable "TERM" ~= "dumb"

local function paint(code, text)
  return coloured and ("\27[%sm%s\27[0m"):format(code, text) or text
end

local function bold(text) return paint("1", text) end
local function dim(text) return paint("2", text) end

local LINE = utf8_locale and "─" or "-"
local MICRO = utf8_locale and "µs" or "us"

-- 1234567 as 1,234,567.
local function grouped(n)
  local text = ("%d"):format(n):reverse():gsub("(%d%d%d)", "%1,"):reverse()
  return (text:gsub("^,", ""))
end

local COLUMNS = {
  { title = "mechanism", field = "name" },
  { title = "direction", field = "direction" },
  { title = "unit", field = "unit" },
  { title = "reach", field = "reach" },
  { title = "messages", right = true },
  { title = "MB/s", right = true },
  { title = "round trip", right = true },
}
local GAP = "   "

local function rule()
  local width = -#GAP
  for _, c in ipairs(COLUMNS) do
    width = width + c.width + #GAP
  end
  print(dim(LINE:rep(width)))
end

local function row(cells, style)
  local parts = {}
  for i, c in ipairs(COLUMNS) do
    local blank = (" "):rep(c.width - utf8.len(cells[i]))
    local text = style and style(cells[i]) or cells[i]
    parts[i] = c.right and blank .. text or text .. blank
  end
  print((table.concat(parts, GAP):gsub(" +$", "")))
end

-- ---- work

-- The median time of a 64-byte message to another process and back, seconds.
local function round_trip(mechanism)
  local mine <close>, its = assert(ipc.pair(mechanism.address))
  local child <close> = assert(ipc.fork(function(channel)
    repeat
      local message = channel:recv()
    until not message or not channel:send(message)
  end, its))
  local message, took = ("."):rep(64), {}
  for i = 1, 3000 do
    local start = ipc.now()
    local echo
    for _ = 1, 10 do -- a datagram may get lost
      assert(mine:send(message, nil, 10))
      echo = mine:recv(1)
      if echo then
        break
      end
    end
    assert(echo == message, "the echo differs")
    took[i] = ipc.now() - start
  end
  child:stop()
  table.sort(took)
  return took[#took // 2]
end

-- The words counted by calls, in a task: the workers call this process for texts,
-- and with what they found. Answers as wordcount.run does.
local function count_by_calls(address, path, workers)
  local begin, counts, bytes, messages = ipc.now(), {}, 0, 0
  local texts, crew = wordcount.chunks({ path }, 1 << 16), {}
  local server <close> = assert(ipc.rpc.serve(address, {
    take = function()
      local text = texts and texts()
      texts = text and texts
      bytes, messages = bytes + #(text or ""), messages + 2
      return text
    end,
    give = function(found)
      messages = messages + 2
      for word, n in pairs(found) do
        counts[word] = (counts[word] or 0) + n
      end
    end,
  }))
  for i = 1, workers do
    crew[i] = assert(ipc.fork(function()
      local session <close> = assert(ipc.rpc.connect(server.address))
      local remote, found = session.remote, {}
      local text = remote.take()
      while text do
        wordcount.add(text, found)
        text = remote.take()
      end
      remote.give(found)
    end))
  end
  for _, process in ipairs(crew) do
    assert(process:wait())
  end
  return counts, { bytes = bytes, messages = messages, seconds = ipc.now() - begin }
end

-- The median time of a call with 64 bytes that answers them, seconds.
local function call_trip(address)
  local server <close> = assert(ipc.rpc.serve(address, { echo = function(text) return text end },
    { process = true }))
  local session <close> = assert(ipc.rpc.connect(server.address, { timeout = 10 }))
  local echo, message, took = session.remote.echo, ("."):rep(64), {}
  for i = 1, 3000 do
    local start = ipc.now()
    assert(echo(message) == message, "the echo differs")
    took[i] = ipc.now() - start
  end
  table.sort(took)
  return took[#took // 2]
end

-- Whether both have the same words with the same counts.
local function equal(a, b)
  for word, n in pairs(a) do
    if b[word] ~= n then
      return false
    end
  end
  for word in pairs(b) do
    if not a[word] then
      return false
    end
  end
  return true
end

local path = arg[1]
local file, why = io.open(path or "", "rb")
if not file or #arg ~= 1 then
  io.stderr:write("demo: ", path and why or "one file to count the words of", "\n",
    "usage: lua5.4 examples/demo.lua FILE\n")
  os.exit(2)
end
file:close()

-- ---- the demonstration

local workers = math.max(2, math.min(ipc.cpus(), 8))
local mechanisms = ipc.mechanisms()

-- What the table shows: each mechanism, then calls over some of them.
local entries, found = {}, {}
for i, m in ipairs(mechanisms) do
  found[m.address] = m
  entries[i] = { name = m.name, direction = m.direction, unit = m.unit, reach = m.reach,
    run = function() return wordcount.run({ path }, { mechanism = m, workers = workers }) end,
    trip = function() return round_trip(m) end }
end
local id = ipc.pid()
for _, address in ipairs { "unix:/tmp/ipc-demo." .. id, "tcp:127.0.0.1:0", "shm:/ipc-demo." .. id } do
  local m = found[address:match "^%l+"]
  if m then
    entries[#entries + 1] = { name = "calls, " .. m.name, direction = m.direction, unit = "call", reach = m.reach,
      run = function() return ipc.loop.run(count_by_calls, address, path, workers) end,
      trip = function() return call_trip(address) end }
  end
end

local begin, alone, bytes = ipc.now(), {}, 0
for text in wordcount.chunks({ path }, 1 << 16) do
  wordcount.add(text, alone)
  bytes = bytes + #text
end
local seconds = ipc.now() - begin
local words, different = 0, 0
for _, n in pairs(alone) do
  words, different = words + n, different + 1
end

print()
print(bold "lua-ipc" .. "  one program, every mechanism the kernel has for processes to talk")
print(("%s words (%s different) in %.1f MB of text, counted by %d workers"):format(
  grouped(words), grouped(different), bytes / 1e6, workers))
local top = {}
for i, pair in ipairs(wordcount.top(alone, 6)) do
  top[i] = bold(pair[1]) .. " " .. grouped(pair[2])
end
print("most often: " .. table.concat(top, ", "))
print()

local ALONE = "(one process)"
for _, c in ipairs(COLUMNS) do
  c.width = #c.title
  for _, entry in ipairs(entries) do
    c.width = math.max(c.width, #(entry[c.field] or ""))
  end
end
COLUMNS[1].width = math.max(COLUMNS[1].width, #ALONE)

local titles = {}
for i, c in ipairs(COLUMNS) do
  titles[i] = c.title
end
row(titles, bold)
rule()
row({ ALONE, "", "", "", "", ("%.1f"):format(bytes / 1e6 / seconds), "" }, dim)
local failures = {}
for _, entry in ipairs(entries) do
  local cells = { entry.name, entry.direction, entry.unit, entry.reach, "", "", "" }
  local fine, counts, stats = pcall(entry.run)
  if not fine then
    failures[#failures + 1] = entry.name .. ": " .. tostring(counts)
    cells[5] = "failed"
  elseif not equal(counts, alone) then
    failures[#failures + 1] = entry.name .. ": its answer differs"
    cells[5] = "differs"
  else
    cells[5] = grouped(stats.messages)
    cells[6] = ("%.1f"):format(stats.bytes / 1e6 / stats.seconds)
    local measured, time = pcall(entry.trip)
    if measured then
      cells[7] = ("%.1f %s"):format(time * 1e6, MICRO)
    else
      failures[#failures + 1] = entry.name .. ": " .. tostring(time)
    end
  end
  row(cells)
end
rule()
print()

for _, text in ipairs(failures) do
  print(paint("31", text))
end
if #failures > 0 then
  os.exit(1)
end
print(("All %d answers equal this process's own. A round trip is 64 bytes there and back; MB/s"):format(
  #entries))
print "is text counted, the start of the workers included."
print(dim "Read next: " .. "README.md, then examples/wordcount.lua: the program that just ran.")
print()
