-- Looks at every record of a journal, and repairs one that is damaged.
-- Run: lua5.4 examples/verify.lua DIRECTORY [--repair]; status 1: it is damaged,
-- 2: it could not be read.
local ipc = require "ipc"

local directory, repair = arg[1], arg[2] == "--repair"
if not directory or (arg[2] and not repair) then
  io.stderr:write "usage: verify.lua DIRECTORY [--repair]\n"
  os.exit(2)
end

local report, why = ipc.verify(directory, { repair = repair })
if not report then
  io.stderr:write(why, "\n")
  os.exit(2)
end

print(("%d records (%d to %d), %d bytes in %d files"):format(
  report.records, report.first, report.last, report.bytes, report.files))
if report.torn > 0 then
  print(("%d files end with what was not on the disk yet when the system stopped"):format(report.torn))
end
for _, damage in ipairs(report.damage) do
  print(("%s at %d, record %d: %s"):format(damage.file, damage.offset, damage.sequence, damage.reason))
end
if repair then print(("%d files put aside as *.aside"):format(report.repaired)) end
os.exit(#report.damage == 0 or repair)
