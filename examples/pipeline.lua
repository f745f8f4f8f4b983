-- Other programs, without a shell: ipc.run gives what one writes, ipc.pipeline
-- what the last of several does; each reads what the one before it writes.
-- Run: lua5.4 examples/pipeline.lua
local ipc = require "ipc"

-- Arguments are passed as they are: nothing to quote.
print(assert(ipc.run { "printf", "%s|", "a b", "$HOME", "*" }).out) --> a b|$HOME|*|

-- The words of a text, the most frequent first.
local text = "the cat and the dog and the bird"
local words = assert(ipc.pipeline {
  { "tr", " ", "\n", input = text },
  { "sort" },
  { "uniq", "-c" },
  { "sort", "-rn" },
  { "head", "-n2" },
  timeout = 10,
})
for count, word in words.out:gmatch "(%d+) (%a+)" do
  print(word, count)
end
--> the 3
--> and 2

-- A failure is never silent: which stage it was, how it ended, what it said.
print(ipc.pipeline { { "sh", "-c", "echo out of luck >&2; exit 3" }, { "cat" } })
--> nil stage 1: sh: exit 3: out of luck 0 table: ...

-- At the timeout the programs are killed, with all that they have started.
local r, message, errno, partial = ipc.run { "sh", "-c", "echo begun; sleep 60", timeout = 0.5 }
print(r, message, errno == ipc.errno.ETIMEDOUT) --> nil sh: timeout after 0.5 s true
print(partial.out, partial.signal) --> begun
--> KILL
