-- Values: every channel carries them with put and get, as MessagePack, which
-- other languages read too. pack and unpack are the same without a channel.
-- Run: lua5.4 examples/values.lua
local ipc = require "ipc"

local r, w = ipc.pipe()
w:put { name = "lamp", on = true, size = { 1.5, 2 } }
local value = r:get()
print(value.name, value.on, value.size[1], value.size[2]) --> lamp true 1.5 2

w:put(nil) -- nil is how failures begin, so it arrives as ipc.null
print(r:get() == ipc.null) --> true

local bytes = ipc.pack { "a", 1, false }
print(#bytes, ipc.unpack(bytes)[2]) --> 5 1

print(pcall(ipc.pack, { job = { run = print } })) --> false ...function...
print(ipc.unpack "\xc1") --> nil ... 74
