-- A journal from its making to its removal: appended to, read, synced, begun
-- anew, looked at and repaired, while allocations and system calls fail.
local fault = ...
local ipc = require "ipc"

local path = ("/tmp/lua_ipc_fault_journal.%d"):format(ipc.pid())
os.execute("rm -rf " .. path)

local w = assert(fault.sure(ipc.journal, path, "w", { segment = 65536, durability = "none" }))
local r = assert(fault.sure(ipc.journal, path, "r", { reader = "me" }))
local n = 0
for i, text in ipairs { "", "one", ("x"):rep(40000), ("y"):rep(40000) } do
  fault.equal(fault.call(w, "send", text, nil, 5), true, "send " .. i)
  n = n + 1
  fault.equal(fault.call(r, "recv", 5), text, "recv " .. i)
end
fault.equal(fault.call(w, "put", { "value", 2.5 }, nil, 5), true)
fault.same(fault.call(r, "get", 5), { "value", 2.5 }, "value")
fault.equal(fault.call(w, "flush", 5), true)
fault.equal(fault.call(r, "ack"), true)
local copy = fault.call(w, "dup")
fault.equal(fault.call(copy, "send", "copy", nil, 5), true)
fault.equal(fault.call(copy, "close"), true)
fault.equal(#fault.sure(ipc.poll, { r }, 5), 1)
fault.equal(fault.call(r, "recv", 5), "copy")
fault.call(w, "close")
fault.call(r, "close")

local report = assert(fault.sure(ipc.verify, path))
assert(report.records == n + 2 and #report.damage == 0)
report = assert(fault.sure(ipc.verify, path, { repair = true }))
assert(#report.damage == 0)
r = assert(fault.sure(ipc.journal, path, "r", { follow = false }))
for i = 1, n + 2 do
  local message, sequence = fault.call(r, "recv", 5)
  assert(message and sequence == i)
end
fault.equal(fault.call(r, "remove"), true)
fault.call(r, "close")
