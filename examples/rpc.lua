-- Calls across a channel: objects that stay where they are, streams, calls whose
-- answers nobody waits for yet, deadlines. Over shared memory; any channel will do.
-- Run: lua5.4 examples/rpc.lua
local ipc = require "ipc"

local Account = {} -- what may be called; the rest of the state stays there
function Account.deposit(account, amount)
  account.balance = account.balance + amount
  return account.balance
end

local here, there = assert(ipc.pair "shm")
local bank = assert(ipc.fork(function()
  assert(ipc.rpc.serve(there, {
    open = function(owner)
      local account = { owner = owner, balance = 0 }
      return ipc.rpc.object(account, Account, { properties = { "balance" } })
    end,
    squares = function(n)
      return ipc.rpc.stream(function(emit)
        for i = 1, n do emit(i, i * i) end -- no further than somebody reads
      end)
    end,
    sleep = function(seconds) ipc.sleep(seconds) end,
  })):wait()
end))

local session = assert(ipc.rpc.connect(here, { timeout = 10 }))
local account = session.remote.open "ada"
print(account:deposit(5), account:deposit(2), account.balance) --> 5 7 7
for i, square in session.remote.squares(1000000) do
  if i > 3 then break end
  print(i, square)                        --> 1 1
end                                       --> 2 4
local future = session:async("open", "bob") --> 3 9
print(session:call(future, "deposit", 9)) --> true 9
print(session:with { timeout = 0.1 }:call("sleep", 60)) --> nil timeout 110 ...
session:close()
print(bank:wait(10))                      --> true
