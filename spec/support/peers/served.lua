-- What Neovim runs as a job with rpc: our side, on standard input and output.
local ipc = require "ipc"
local exports = require "spec.support.peers.exports"

function exports.evaluate(expression) return ipc.rpc.caller().remote.nvim_eval(expression) end

function exports.down(n) return ipc.rpc.caller().remote.nvim_call_function("Down", { n }) end

function exports.buffer() return ipc.rpc.caller().remote.nvim_get_current_buf() end

function exports.tell_variable() ipc.rpc.caller():notify("nvim_set_var", "told", "by us") end

if ... == "stdio" then
  ipc.main(function()
    local session <close> = assert(ipc.rpc.serve(assert(ipc.stdio()), exports, { peer = "nvim" }))
    session:wait()
  end)
end

return exports
