-- As kills, on a ring with leases: what a killed receiver had not acknowledged
-- is offered again. Nothing is lost, and no more comes again than kills explain.
local storm = require "spec.support.storm"

local variants = {
  { "many to many, 4 KiB", senders = 4, receivers = 4, options = { capacity = 4096 } },
  { "many to many, 1 MiB", senders = 4, receivers = 4, most = 30000,
    options = { capacity = 1 << 20 } },
  { "4 tickets at a time", senders = 4, receivers = 4, batch = 4, most = 500,
    options = { capacity = 1 << 16 } },
  { "nameless, by fork", senders = 4, receivers = 4, nameless = true,
    options = { capacity = 8192 } },
  { "one to many", senders = 1, receivers = 4, options = { capacity = 8192, writers = 1 } },
  { "many to one", senders = 4, receivers = 1, options = { capacity = 8192, readers = 1 } },
}

local kills = (storm.long and 10000 or 200) // #variants
local total = 0
for _, t in ipairs(variants) do
  t.options.lease = true
  storm.traffic(t):storm(kills)
  local a = t:accounts()
  storm.say("%-20s %5d kills, %8d messages, %3d takeovers; %d lost, %d offered again, " ..
    "%d of %d at most reported twice, %d corrupt", t[1], a.kills, a.messages, a.takeovers,
    a.lost, a.again, a.twice, a.killed * t.batch, a.corrupt)
  if a.lost + a.corrupt > 0 or a.again > a.killed * t.batch or a.twice > a.again then
    storm.fail(t[1])
  end
  total = total + a.kills
end
storm.say("%d kills, nothing lost", total)
storm.finish()
