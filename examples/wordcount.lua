-- Counts words with several processes: cuts text into chunks, hands them to
-- workers over a mechanism of your choice, adds up what they answer.
--
--   lua5.4 examples/wordcount.lua [--via MECHANISM] [--workers N] FILE...
--
-- `require "wordcount"` gives the functions; demo.lua uses them.
local ipc = require "ipc"

local wordcount = {}

local CHUNK = 64 * 1024 -- bytes of text in a message, where so many fit
local PATIENCE = 60     -- seconds without news until the workers count as stuck
local AGAIN = 0.2       -- seconds until what may have got lost is sent again
local HEAD = 24         -- bytes of a message around its text or its counts
local WORD = "[%a\128-\255]+"

--- Adds the words of a text to `counts`.
function wordcount.add(text, counts)
  for word in text:lower():gmatch(WORD) do
    counts[word] = (counts[word] or 0) + 1
  end
end

--- Iterates over the text of the files in pieces of at most `size` bytes, cut
-- between words (a longer word is cut).
function wordcount.chunks(paths, size)
  return coroutine.wrap(function()
    for _, path in ipairs(paths) do
      local file <close> = assert(io.open(path, "rb"))
      local rest = ""
      repeat
        local more, why = file:read(size - #rest)
        assert(not why, why)
        local text = rest .. (more or "")
        local cut = more and text:match "^.*[^%a\128-\255]()" or #text + 1
        rest = text:sub(cut)
        if cut > 1 then
          coroutine.yield(text:sub(1, cut - 1))
        end
      until not more
    end
  end)
end

--- The n most frequent words, as a list of { word, count }.
function wordcount.top(counts, n)
  local list = {}
  for word, count in pairs(counts) do
    list[#list + 1] = { word, count }
  end
  table.sort(list, function(a, b)
    return a[2] > b[2] or a[2] == b[2] and a[1] < b[1]
  end)
  return table.move(list, 1, n, 1, {})
end

-- Datagrams may get lost, and nobody hears of it: there a worker asks for each
-- text, by number, until the answer comes. Elsewhere texts are just sent.
local function asks(mechanism)
  return mechanism.capabilities.address_tag
end

-- ---- in a worker

-- Two functions: the first takes the next text, nil at the end; the second gives
-- a value to the parent.
local function sent(channel)
  return function()
    local text, why, errno = channel:get()
    assert(not errno, why)
    return text or nil
  end, function(value)
    assert(channel:put(value))
  end
end

local function asked(channel)
  local number = 0
  local function ask(value)
    number = number + 1
    local answer, why
    repeat
      assert(channel:put { number, value })
      repeat
        answer, why = channel:get(AGAIN)
      until not answer or answer[1] == number -- else one that came twice
      assert(answer or why == "timeout", why)
    until answer
    return answer[2]
  end
  return function()
    return ask(false) or nil
  end, ask
end

-- Counts all texts, then gives tables of counts, each small enough for a message,
-- and `true`.
local function work(channel, asking)
  local counts, most = {}, math.min(channel:maxsize(), CHUNK)
  local take, give = (asking and asked or sent)(channel)
  for text in take do
    wordcount.add(text, counts)
  end
  local piece, size = {}, HEAD
  for word, n in pairs(counts) do
    local more = #word + 12 -- bytes as MessagePack, at the most
    if size + more > most then
      give(piece)
      piece, size = {}, HEAD
    end
    piece[word], size = n, size + more
  end
  give(piece)
  give(true)
end

-- ---- in the parent

-- The workers' processes and our ends of their channels: one for all where many
-- may read the same one, else one each. Leaving the block ends them.
local function start(mechanism, count)
  local can, its = mechanism.capabilities, nil
  local crew = setmetatable({ channels = {} }, { __close = function(crew, failed)
    for _, process in ipairs(failed and crew or {}) do
      process:stop() -- first: a queue that a killed one left goes with ours
    end
    for _, channel in ipairs(crew.channels) do
      channel:close()
    end
    for _, process in ipairs(crew) do
      process:close()
    end
  end })
  local shared = can.many_readers and can.many_writers and not asks(mechanism)
  for i = 1, count do
    if i == 1 or not shared then
      crew.channels[i], its = assert(ipc.pair(mechanism.address))
    end
    crew[i] = assert(ipc.fork(work, shared and i < count and assert(its:dup()) or its,
      asks(mechanism)))
  end
  return crew
end

-- Waits until one of the channels can send ("w") or receive ("r"): its place in
-- the list. A worker that did not end well is an error, at once.
local function await(crew, channels, event)
  while true do
    local list = {}
    for i, channel in ipairs(channels) do
      list[i] = { channel, event }
    end
    for i, process in ipairs(crew) do
      local fine, why = true, nil
      if process.reason then -- it has ended
        fine, why = process:wait(0)
      else
        list[#list + 1] = process -- nothing is sent there: ready is the end
      end
      if not fine then
        error(("worker %d: %s"):format(i, why), 0)
      end
    end
    local ready, why = ipc.poll(list, PATIENCE)
    if not ready then
      error("waiting for the workers: " .. why, 0)
    end
    for _, process in ipairs(crew) do
      if ready[process] then
        process:wait(PATIENCE)
      end
    end
    for i, channel in ipairs(channels) do
      if ready[channel] then
        return i
      end
    end
  end
end

-- Calls a method of whichever channel is ready until one succeeds: the place of
-- that one, and its result. One that is closed goes: its worker is about to be
-- found dead.
local function any(crew, channels, event, method, ...)
  while true do
    local i = await(crew, channels, event)
    local channel = channels[i]
    local result, why, errno = channel[method](channel, ...)
    if not errno then -- `why` is the tag, where there is one
      return i, result
    elseif why == "closed" or errno == ipc.errno.ECONNREFUSED then
      table.remove(channels, i)
    elseif why ~= "timeout" then
      error(why, 0)
    end
  end
end

-- Adds up what a worker counted; true when that was all of it.
local function total(value, counts)
  for word, n in pairs(value ~= true and value or {}) do
    counts[word] = (counts[word] or 0) + n
  end
  return value == true
end

-- Hands the texts out to whoever has room, then collects the counts.
local function send(crew, texts, counts)
  local open = table.move(crew.channels, 1, #crew.channels, 1, {})
  for text in texts do
    any(crew, open, "w", "put", text, nil, 0)
  end
  local each = #open == #crew
  for _ = 1, #crew do
    local i = any(crew, open, "w", "put", false, nil, 0)
    if each then
      table.remove(open, i)
    end
  end
  open = table.move(crew.channels, 1, #crew.channels, 1, {})
  local left = #crew
  while left > 0 do
    local _, value = any(crew, open, "r", "get", 0)
    left = left - (total(value, counts) and 1 or 0)
  end
end

-- Answers the workers' questions, those that come again with the same answer.
local function answer(crew, texts, counts)
  local open = table.move(crew.channels, 1, #crew.channels, 1, {})
  local last, left = {}, #crew
  while left > 0 do
    local i, question = any(crew, open, "r", "get", 0)
    local channel, number, value = open[i], question[1], question[2]
    if not last[channel] or last[channel][1] < number then
      left = left - (value and total(value, counts) and 1 or 0)
      last[channel] = { number, not value and texts() or false }
    end
    channel:put(last[channel], nil, 0) -- if that fails, it is asked again
  end
end

--- Counts the words of files. `options`: `mechanism` (a row of
-- ipc.mechanisms()), `workers` (how many), `progress` (called with the bytes
-- handed out so far and the workers). Answers the counts and a table: `bytes`,
-- `messages`, `seconds`. Raises when anything goes wrong.
function wordcount.run(paths, options)
  local begin, counts, bytes, messages = ipc.now(), {}, 0, 0
  local crew <close> = start(options.mechanism, options.workers)
  local most = math.min(CHUNK, crew.channels[1]:maxsize() - HEAD)
  local chunks = wordcount.chunks(paths, most)
  local function texts()
    local text = chunks and chunks()
    if not text then
      chunks = nil
      return nil
    end
    bytes = bytes + #text
    if options.progress then
      options.progress(bytes, crew)
    end
    return text
  end
  (asks(options.mechanism) and answer or send)(crew, texts, counts)
  for _, channel in ipairs(crew.channels) do
    local stats = channel:stats()
    messages = messages + stats.sent + stats.received
  end
  return counts, { bytes = bytes, messages = messages, seconds = ipc.now() - begin }
end

-- ---- the program

local function usage(message)
  local names = {}
  for i, m in ipairs(ipc.mechanisms()) do
    names[i] = "  " .. m.address
  end
  io.stderr:write("wordcount: ", message, "\n",
    "usage: wordcount.lua [--via MECHANISM] [--workers N] FILE...\nMECHANISM:\n",
    table.concat(names, "\n"), "\n")
  os.exit(2)
end

-- The files, and the options for wordcount.run.
local function arguments(list)
  local paths, options = {}, { mechanism = ipc.mechanisms()[1], workers = ipc.cpus() }
  local i = 1
  while list[i] do
    if list[i] == "--via" then
      options.mechanism = nil
      for _, m in ipairs(ipc.mechanisms()) do
        if m.address == list[i + 1] or m.name == list[i + 1] then
          options.mechanism = m
        end
      end
      if not options.mechanism then
        usage("no mechanism is called " .. (list[i + 1] or "nothing"))
      end
      i = i + 2
    elseif list[i] == "--workers" then
      options.workers = math.tointeger(tonumber(list[i + 1] or ""))
      if not options.workers or options.workers < 1 then
        usage "--workers needs a number, 1 or more"
      end
      i = i + 2
    elseif list[i]:find "^%-" then
      usage("unknown option " .. list[i])
    else
      paths[#paths + 1] = list[i]
      i = i + 1
    end
  end
  if #paths == 0 then
    usage "no file named"
  end
  for _, path in ipairs(paths) do
    local file, why = io.open(path, "rb")
    if file then
      _, why = file:read(0) -- a directory opens, but does not read
      file:close()
    end
    if why then
      usage(why:find(path, 1, true) and why or path .. ": " .. why)
    end
  end
  return paths, options
end

local function main()
  local paths, options = arguments(arg)
  if os.execute "test -t 2" then
    function options.progress(bytes)
      io.stderr:write(("\r%.1f MB"):format(bytes / 1e6))
    end
  end
  local fine, counts, stats = pcall(wordcount.run, paths, options)
  if options.progress then
    io.stderr:write "\r\27[K"
  end
  if not fine then
    io.stderr:write("wordcount: ", tostring(counts), "\n")
    os.exit(1)
  end
  for _, row in ipairs(wordcount.top(counts, 10)) do
    print(("%9d  %s"):format(row[2], row[1]))
  end
  print(("%d bytes in %d messages over %s to %d workers: %.2f s, %.1f MB/s"):format(stats.bytes,
    stats.messages, options.mechanism.name, options.workers, stats.seconds,
    stats.bytes / 1e6 / stats.seconds))
end

if arg and arg[0] and arg[0]:find "wordcount%.lua$" then
  main()
end

return wordcount
