-- Messages, values and streams between two processes, echoed and compared. No
-- timeout of 0 anywhere: the shim may do its worst.
local ipc = require "ipc"

local function equal(got, wanted, what)
  if got ~= wanted then
    error(("%s: got %s bytes, wanted %d"):format(what, got and #got, #wanted), 2)
  end
end

local messages = {}
for i = 1, 120 do
  local size = ({ 0, 1, 3, 100, 4091, 4092, 5000, 66000, 200000 })[i % 9 + 1]
  messages[i] = (("%08d"):format(i * 7919):rep(size // 8 + 1)):sub(1, size)
end

-- What comes back is what went out, in order.
local function exchange(address)
  local packets = address:find "packet"
  local here, there = assert(ipc.pair(address))
  local child <close> = assert(ipc.fork(function()
    for message in there:messages(30) do
      assert(there:send(message, nil, 30))
    end
    return there:stats().received
  end))
  local sent = 0
  for _, message in ipairs(messages) do
    if #message <= (packets and 4000 or math.huge) then
      assert(here:send(message, nil, 30))
      equal(assert(here:recv(30)), message, address)
      sent = sent + 1
    end
  end
  here:shutdown()
  assert(select(2, here:recv(30)) == "closed")
  local ok, count = child:wait(30)
  assert(ok, count)
  assert(count == sent, "the child counts otherwise")
end

-- Many at once, one way.
local function batch(address)
  local from, to = assert(ipc.pair(address))
  local child <close> = assert(ipc.fork(function()
    local list = {}
    for i = 1, 3000 do
      list[i] = i .. ("b"):rep(i % 300)
    end
    assert(to:sendmany(list, nil, 30) == #list)
    to:close()
  end))
  local n = 0
  while true do
    local list, message = from:recvmany(100, 30)
    if not list then
      assert(message == "closed", message)
      break
    end
    for _, text in ipairs(list) do
      n = n + 1
      equal(text, n .. ("b"):rep(n % 300), address)
    end
  end
  assert(n == 3000)
  assert(child:wait(30))
end

local function values(address)
  local here, there = assert(ipc.pair(address))
  local child <close> = assert(ipc.fork(function()
    for value in there:values(30) do
      assert(there:put(value, nil, 30))
    end
  end))
  for i = 1, 100 do
    local value = { i, { name = ("n"):rep(i * 31 % 9000) }, { { i / 2 } } }
    assert(here:put(value, nil, 30))
    local got = assert(here:get(30))
    equal(got[2].name, value[2].name, address)
    assert(got[1] == i and got[3][1][1] == i / 2)
  end
  here:shutdown()
  assert(child:wait(30))
end

local function stream(address)
  local here, there = assert(ipc.pair(address))
  local child <close> = assert(ipc.fork(function()
    for i = 1, 500 do
      assert(there:send(("line %d %s\n"):format(i, ("l"):rep(i)), nil, 30))
    end
    assert(there:send(("x"):rep(300000), nil, 30))
    there:close()
  end))
  for i = 1, 500 do
    equal(assert(here:read("l", 30)), ("line %d %s"):format(i, ("l"):rep(i)), address)
  end
  equal(assert(here:read(150000, 30)), ("x"):rep(150000), address)
  equal(assert(here:read("a", 30)), ("x"):rep(150000), address)
  assert(child:wait(30))
end

-- Several at once, by poll, with more under way than the media hold.
local function polled()
  local list, expect = {}, {}
  local children = {}
  for i, address in ipairs { "pipe", "unix", "unix?type=seqpacket", "pipe?packet=true" } do
    local here, there = assert(ipc.pair(address))
    local size = i < 3 and 30000 or 2000
    list[i], expect[here] = here, { n = 0, size = size }
    children[i] = assert(ipc.fork(function()
      for n = 1, 60 do
        assert(there:send(n .. ("p"):rep(size), nil, 30))
      end
    end))
  end
  while #list > 0 do
    local ready = assert(ipc.poll(list, 30))
    for _, channel in ipairs(ready) do
      local text, message = channel:recv(30)
      local e = expect[channel]
      if text then
        e.n = e.n + 1
        equal(text, e.n .. ("p"):rep(e.size), "poll")
      else
        assert(message == "closed" and e.n == 60, message)
        for i, c in ipairs(list) do
          if c == channel then
            table.remove(list, i)
            break
          end
        end
      end
    end
  end
  for _, child in ipairs(children) do
    assert(child:wait(30))
    child:close()
  end
end

for _, address in ipairs { "pipe", "unix", "unix?type=seqpacket", "pipe?packet=true" } do
  exchange(address)
  batch(address)
  values(address)
end
stream "pipe?unit=stream"
stream "unix?unit=stream"
polled()
