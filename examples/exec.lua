-- Programs: ipc.exec starts one, without a shell. Its streams are pipes, files,
-- a text or other programs; how it ended is what wait tells.
-- Run: lua5.4 examples/exec.lua
local ipc = require "ipc"

-- A text in, its lines sorted out: nothing to pump, nothing to clean up.
local sort <close> = assert(ipc.exec { "sort", "-u", input = "pear\napple\npear\n", stdout = "pipe" })
print((sort:read("a", 5):gsub("\n", " "))) --> apple pear
print(sort:wait()) --> true

-- A conversation: p is its stdin and stdout as one channel of bytes.
local cat <close> = assert(ipc.exec { "cat", stdin = "pipe", stdout = "pipe" })
cat:send "are you there?\n"
print(cat:read("l", 5)) --> are you there?

-- What it runs in, and how it failed.
local sh = assert(ipc.exec { "sh", "-c", "exit $STATUS", env = { STATUS = "3" }, cwd = "/" })
print(sh:wait()) --> nil sh: exit 3 0
print(ipc.exec { "no-such-program" }) --> nil ipc.exec: no-such-program: No such file or directory 2

-- One's output is the other's input; the kernel carries it.
local numbers <close> = assert(ipc.exec { "printf", "%s\\n", "3", "1", "2", stdout = "pipe" })
local sorted <close> = assert(ipc.exec { "sort", "-r", stdin = numbers, stdout = "pipe" })
print((sorted:read("a", 5):gsub("\n", " "))) --> 3 2 1

-- Waiting for its end among other things; ending it, with all that it started.
local long = assert(ipc.exec { "sh", "-c", "sleep 3600 & wait" })
print(ipc.poll({ long:exited() }, 0.01)) --> nil timeout 110
long:stop()
print(long.reason.text) --> sh: killed by signal 15, TERM
