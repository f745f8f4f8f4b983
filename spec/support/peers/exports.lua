-- What the servers of the specs export: for peers of every kind, and for each other.
local ipc = require "ipc"

local noted = {}

local exports = {
  add = function(a, b) return a + b end,
  none = function() end,
  echo = function(...) return ... end,
  count = function(...) return select("#", ...) end,
  math = { twice = function(n) return 2 * n end },
  fail = function(why) error(why, 0) end,
  unsendable = function() return coroutine.create(print) end,
  text = function(n) return ("x"):rep(n) end,
  pid = ipc.pid,
  hang = function() ipc.sleep(60) end,
  quit = function() os.exit(0) end,
}

-- In the order they came.
function exports.note(i)
  noted[#noted + 1] = i
  return i
end

function exports.noted() return noted end

-- Calls back: a function that came as an argument,
function exports.each(n, report)
  for i = 1, n do report(i) end
  return n
end

function exports.exchange(text, back) return back(text:reverse()) end

-- or what the caller exports,
function exports.ask(...) return ipc.rpc.caller().remote.answer(...) end

function exports.back(n) return ("got %d"):format(ipc.rpc.caller().remote.double(n)) end

function exports.tell_back(n) assert(ipc.rpc.caller():notify("tick", n)) end

-- in a call of its own, which the one that asked for it does not wait for.
function exports.begin() assert(ipc.rpc.caller():notify "begun") end

return exports
