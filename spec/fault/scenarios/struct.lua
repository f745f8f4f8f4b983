-- Structs, and records of them in a memory.
local fault = ...
local ipc = require "ipc"

local memory = assert(fault.sure(ipc.memory, nil, 65536))
local Inner = fault.sure(ipc.struct, { { "x", "d" }, { "y", "d" } })
local Record = fault.sure(ipc.struct, { { "n", "I4" }, { "name", "z40" }, { "list", Inner, 3 }, { "large", "c600" } })
local Whole = fault.sure(ipc.struct, { { "n", "I4" }, { "name", "z700" }, { "list", Inner, 3 }, versioned = true })
fault.equal(#fault.sure(Record.fields, Record), 4)
fault.sure(tostring, Record)

local function value(n)
  return { n = n, name = ("name"):rep(n), list = { { x = n, y = n }, {}, { y = n } } }
end

for _, S in ipairs { Record, Whole } do
  local list = fault.sure(memory.view, memory, S, 0, 5)
  for i = 1, 5 do
    local given = value(i)
    assert(fault.sure(list.store, list, i, given))
    local record = fault.sure(function() return list[i] end)
    fault.equal(fault.sure(function() return record.list[3].y end), i + 0.0)
    fault.equal(fault.sure(function() return record.name end), given.name)
    fault.sure(function() record.list[2] = { x = i } end)
    fault.sure(function() record.name = "other" end)
    fault.sure(function() record.list = list[1].list end)
    local t = fault.sure(S.load, S, record)
    fault.equal(t.name, "other")
    fault.equal(t.list[1].x, 1.0)
    fault.equal(fault.sure(S.load, S, record, t), t)
    fault.sure(tostring, record)
  end
  fault.sure(function() list[2] = list[3] end)
  local n = 0
  fault.sure(function()
    n = 0
    for i, record in list() do
      for _ in pairs(record) do n = n + 1 end
      assert(list[i] == record)
    end
  end)
  fault.equal(n, 5 * #S:fields())
  local all = fault.sure(list.load, list)
  fault.equal(#all, 5)
  fault.equal(all[2].n, 3)
  local ok, message = fault.try(list.store, list, 1, { n = -1 })
  assert(not ok and (tostring(message):find "not within" or fault.failed(ok, message)), message)
  memory:fill(0)
end
memory:close()
