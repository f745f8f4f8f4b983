-- Many with one call: none is lost, none comes twice.
local fault = ...
local ipc = require "ipc"

local list = {}
for i = 1, 300 do
  list[i] = ("%d:%s"):format(i, ("m"):rep(i % 7 == 0 and 9000 or i % 50))
end

for _, address in ipairs { "pipe", "unix", "unix?type=seqpacket" } do
  local r, w = assert(ipc.pair(address))
  local sent, got, rounds = 0, 0, 0
  while got < #list do
    rounds = rounds + 1
    assert(rounds < 10000, "no progress")
    if sent < #list then
      local part = table.move(list, sent + 1, #list, 1, {})
      local ok, count, message, errno, n = fault.try(w.sendmany, w, part, nil, 0)
      if not ok then
        fault.failed(ok, count, message, errno)
      elseif count then
        sent = sent + count
      else
        assert(message == "timeout" or errno == fault.errno, message)
        sent = sent + n
      end
    end
    local ok, some, message, errno = fault.try(r.recvmany, r, 40, 0)
    if not ok then
      fault.failed(ok, some)
    elseif not some then
      assert(message == "timeout" or errno == fault.errno, message)
    end
    if not (ok and some) and sent > got then
      some = assert(r:recvmany(40, 5))
    end
    for _, text in ipairs(ok and some or {}) do
      got = got + 1
      fault.equal(text, list[got], "message " .. got)
    end
    if not ok and type(some) == "table" then
      for _, text in ipairs(some) do
        got = got + 1
        fault.equal(text, list[got], "message " .. got)
      end
    end
  end
  fault.equal(sent, #list)
  w:flush(5)
  fault.nothing(r)
  r:close()
  w:close()
end
