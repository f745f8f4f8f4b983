-- A parallel file hasher: a process for each core takes names from one queue and
-- puts hashes into another. What a process dies of is told, nothing hangs.
-- Run: lua5.4 examples/hasher.lua [FILE...]
local ipc = require "ipc"

-- FNV-1a of a file, or why there is none.
local function hash(path)
  local file <close>, why = io.open(path, "rb")
  local text, h = file and file:read "a", 0xcbf29ce484222325
  for i = 1, #(text or "") do
    h = (h ~ text:byte(i)) * 0x100000001b3
  end
  return text and ("%016x"):format(h) or why
end

local files = #{ ... } > 0 and { ... } or { "LICENSE", "Makefile", "/no/such/file" }
local names, give = ipc.queue()
local take, results = ipc.queue()
local crew <close> = assert(ipc.spawn { count = ipc.cpus(), fn = function()
  for name in names:values() do results:put { name, hash(name) } end
end })

local hashes = {}
local function collect(result) hashes[result[1]] = result[2] end
for i, name in ipairs(files) do
  assert(give:put(name))
  if i > 100 then collect(assert(take:get())) end -- so that neither queue is ever full
end
give:close() -- no more: the crew ends, and with it the results
for result in take:values() do collect(result) end
assert(crew:wait())
for _, name in ipairs(files) do
  print(name, hashes[name])
end
--> LICENSE ...
--> Makefile ...
--> /no/such/file /no/such/file: No such file or directory
