-- Processes that make, open, use, close and remove the same few names, and are
-- killed at it. Who holds a name then always shares it with all others that do,
-- and when the last one is gone nothing is left.
local ipc = require "ipc"
local storm = require "spec.support.storm"

local E = ipc.errno
local COUNT <const> = 8 -- processes
local names = {}
for i = 1, 3 do names[i] = storm.name() end

local function open(name, create)
  local options = { keepalive = true, create = create, retry = create == nil and 0 or nil }
  if create ~= nil then options.capacity = 4096 end
  return ipc.shm(name, "rw", options)
end

-- What may be answered here, beside success.
local function expect(call, ok, why, errno, ...)
  if ok then return ok end
  for _, name in ipairs { ... } do
    if errno == E[name] then return end
  end
  error(("%s: %s"):format(call, why))
end

local function use(ring, life)
  expect("send", ring:send("from " .. life, nil, 0.1))
  local bytes = ring:recv(0.1)
  if bytes and not bytes:find "^from %d+$" then error("received " .. bytes) end
end

local function once(life)
  local name = names[math.random(#names)]
  local create = ({ true, true, "new", nil })[math.random(4)]
  local ring, why, errno = open(name, create)
  if not expect("open", ring, why, errno, create == "new" and "EEXIST" or not create and "ENOENT")
  then return end
  if math.random(4) > 1 then use(ring, life) end
  if math.random(3) == 1 then
    local ok, text, number = ring:remove()
    expect("remove", ok, text, number, "ENOENT")
  end
  if math.random(8) > 1 then ring:close() else collectgarbage() end
end

-- In between all hold the same name: each tells the next a secret.
local function round(life)
  collectgarbage() -- closes what once() left open
  ipc.parent:put "ready"
  local ring <close> = assert(open(ipc.parent:get(), true))
  ipc.parent:put "open"
  for order in ipc.parent:values() do
    if order == "leave" then return end
    if order == "send" then
      assert(ring:send("secret of " .. life, nil, storm.patience))
      ipc.parent:put("secret of " .. life)
    else
      ipc.parent:put((ring:recv(storm.patience)) or "nothing")
    end
  end
end

local function work(slot, life)
  math.randomseed(life, slot)
  local journal = storm.journal("names." .. slot)
  while true do
    local order, _, errno = ipc.parent:get(0)
    if order == "hold" then
      round(life)
    elseif errno ~= E.ETIMEDOUT then
      return
    end
    once(life)
    journal:write(storm.record(life, 0, 0, 0))
  end
end

local function ask(p, order)
  assert(p:put(order))
  return p:get(storm.patience)
end

local function all(gang, answer)
  for slot, p in ipairs(gang) do
    local told, why = p:get(storm.patience)
    if told ~= answer then
      return storm.failf("process %d is not %s: %s, %s", slot, answer, why, select(2, p:wait(0)))
    end
  end
  return true
end

-- All open it when nobody removes it any more, and the secrets go round.
local function together(gang, name)
  for _, p in ipairs(gang) do assert(p:put "hold") end
  if not all(gang, "ready") then return end
  for _, p in ipairs(gang) do assert(p:put(name)) end
  if not all(gang, "open") then return end
  local split = 0
  for slot, p in ipairs(gang) do
    local sent = ask(p, "send")
    local got = ask(gang[slot % #gang + 1], "receive")
    if got ~= sent then split = split + 1 end
  end
  for _, p in ipairs(gang) do assert(p:put "leave") end
  return split
end

local works, rounds, splits, kills = {}, 0, 0, 0
for slot = 1, COUNT do works[slot] = work end
local gang = storm.gang(works)
local finish = ipc.now() + (storm.long and 20 or 4)
while ipc.now() < finish do
  ipc.sleep(math.random() * 0.2)
  for _ = 1, math.random(0, 10) do
    ipc.sleep(math.random() * 0.01)
    gang:kill()
    kills = kills + 1
  end
  local split = together(gang, names[math.random(#names)])
  if not split then break end
  rounds, splits = rounds + 1, splits + split
end
gang:stop()
local count = 0
for slot = 1, COUNT do
  for _ in storm.records("names." .. slot) do count = count + 1 end
end

-- What killed ones left goes with the next that opens the name.
for _, name in ipairs(names) do assert(open(name, true)):close() end
local left = 0
for file in io.popen("ls -A " .. storm.memory):lines() do
  if file:find(names[1]:sub(2):gsub("%d+$", ""):gsub("%-", "%%-")) then
    left = left + 1
    storm.say("left: %s", file)
  end
end
storm.say("%d openings, %d kills, all %d together %d times: %d split brains, %d objects left",
  count, kills, COUNT, rounds, splits, left)
if splits + left > 0 or rounds == 0 then storm.fail "names" end
storm.finish()
