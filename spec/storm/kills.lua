-- Processes that send and receive on one ring are killed at random moments and
-- replaced. Nothing hangs, comes damaged or twice; of each one that received, at
-- most what it had in hand is lost.
local storm = require "spec.support.storm"

local variants = {
  { "many to many, 4 KiB", senders = 4, receivers = 4, options = { capacity = 4096 } },
  { "many to many, 1 MiB", senders = 4, receivers = 4, most = 30000,
    options = { capacity = 1 << 20 } },
  { "in batches of 8", senders = 4, receivers = 4, batch = 8, options = { capacity = 1 << 16 } },
  { "one to many", senders = 1, receivers = 4, options = { capacity = 8192, writers = 1 } },
  { "many to one", senders = 4, receivers = 1, options = { capacity = 8192, readers = 1 } },
  { "nameless, by fork", senders = 4, receivers = 4, nameless = true,
    options = { capacity = 8192 } },
  { "in a file", senders = 4, receivers = 4, file = true, options = { capacity = 8192 } },
  { "one to one, batches", senders = 1, receivers = 1, batch = 8,
    options = { capacity = 1 << 16, writers = 1, readers = 1 } },
}

local kills = (storm.long and 10000 or 300) // #variants + 1
local total, lost = 0, 0
for _, t in ipairs(variants) do
  storm.traffic(t):storm(kills)
  local a = t:accounts()
  storm.say("%-20s %5d kills, %8d messages, %3d takeovers; %d lost of %d in hand at most, " ..
    "%d twice, %d corrupt, %d out of order", t[1], a.kills, a.messages, a.takeovers, a.lost,
    a.killed * t.batch, a.twice, a.corrupt, a.disorder)
  if a.lost > a.killed * t.batch or a.twice + a.corrupt + a.disorder > 0 then storm.fail(t[1]) end
  total, lost = total + a.kills, lost + a.lost
end
storm.say("%d kills, %d messages lost in hand", total, lost)
storm.finish()
