-- Handles in values and beside messages. One that memory ran out for while it
-- was being decoded may be gone; nothing else may, and no descriptor leaks.
local fault = ...
local ipc = require "ipc"

local function descriptors()
  collectgarbage()
  collectgarbage()
  local n = 0
  for fd = 0, 63 do
    local file = io.open("/proc/self/fdinfo/" .. fd)
    if file then
      file:close()
      n = n + 1
    end
  end
  return n
end

for _, address in ipairs { "unix", "unix?type=seqpacket", "unix?type=datagram" } do
  local a, b = assert(ipc.pair(address))
  local r, w = assert(ipc.pipe())
  local before = descriptors()
  for _, how in ipairs { "put", "sendmsg" } do
    local got
    for turn = 1, 2 do
      local try = turn == 1 and fault.try or pcall
      local copy = fault.call(w, "dup")
      local ok, sent, message, errno
      if how == "put" then
        ok, sent, message, errno = try(a.put, a, { reply = copy }, nil, 5)
      else
        ok, sent, message, errno = try(a.sendmsg, a, "reply", { copy }, nil, 5)
      end
      if not (ok and sent) then
        fault.failed(ok, sent, message, errno)
        copy:settimeout(0) -- still here
        sent = how == "put" and a:put({ reply = copy }, nil, 5) or how ~= "put" and a:sendmsg("reply", { copy }, nil, 5)
      end
      fault.equal(sent, true, how)
      local value, list
      if how == "put" then
        ok, value, message, errno = try(b.get, b, 5)
        got = ok and value and value.reply
      else
        ok, value, list, errno = try(b.recvmsg, b, 5)
        message = list
        got = ok and value and list[1]
      end
      if got then
        break
      end
      if not (ok and value) then
        assert(errno == ipc.errno.EMFILE or errno == ipc.errno.EBADMSG or fault.failed(ok, value, message, errno))
      end
      -- Still there, or gone.
      if how == "put" then
        value = b:get(0)
        got = value and value.reply
      else
        value, list = b:recvmsg(0)
        got = value and list[1]
      end
      if got then
        break
      end
    end
    assert(got, "no handle came: " .. how)
    fault.equal(fault.call(got, "send", "through it", nil, 5), true)
    fault.equal(fault.call(r, "recv", 5), "through it")
    got:close()
  end
  fault.equal(descriptors(), before, "descriptors")
  for _, h in ipairs { a, b, r, w } do
    h:close()
  end
end
