-- Driving Neovim: it runs as our child and speaks MessagePack-RPC, as we do. What
-- it exports is its API (:help api); what we export it calls with rpcrequest().
-- Run: lua5.4 examples/neovim.lua   (needs nvim)
local ipc = require "ipc"

local changes = {}
local exports = {
  shout = function(text) return text:upper() .. "!" end,
  nvim_buf_lines_event = function(_, _, first, last) changes[#changes + 1] = first .. "-" .. last end,
}
local program = { "nvim", "--embed", "--headless", "-u", "NONE", "-i", "NONE", "-n" }
local nvim <close> = assert(ipc.rpc.connect(program, { peer = "nvim", timeout = 10, exports = exports }))
local api = nvim.remote

-- Buffers, windows and tab pages are values: they compare, are keys, and go back.
local buffer = api.nvim_get_current_buf()
api.nvim_buf_set_lines(buffer, 0, -1, false, { "pear", "apple", "fig" })
api.nvim_command "sort"
print(table.concat(api.nvim_buf_get_lines(buffer, 0, -1, false), " ")) --> apple fig pear
print(api.nvim_list_bufs()[1] == buffer) --> true

-- Its errors: raised, or returned. Mind that 2.0 is not 2 there: math.tointeger.
print(pcall(api.nvim_command, "throw 'no such fruit'")) --> false ...no such fruit...
print((select(2, nvim:call("nvim_buf_get_lines", buffer, 0, 2.0, false)))) --> Wrong type ... expecting Integer

-- It calls us while we wait for it.
local channel = api.nvim_get_api_info()[1]
print(api.nvim_call_function("rpcrequest", { channel, "shout", "fresh figs" })) --> FRESH FIGS!

-- What it tells unasked arrives while we wait for anything.
api.nvim_buf_attach(buffer, false, {})
api.nvim_command "1delete"
print(table.concat(changes, " ")) --> 0-1

-- Several calls in one go.
local first, second = nvim:async("nvim_eval", "6 * 7"), nvim:async("nvim_get_mode")
print(select(2, first:wait()), select(2, second:wait()).mode) --> 42 n
