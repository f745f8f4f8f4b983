-- Who makes a named ring or a ring in a file is killed between any two system
-- calls, and after each change to what others see. The next that opens the name
-- finds a whole object or none, and no temporary name is left; with and without
-- files that have no name at first. --long: before every instruction of the core.
local ipc = require "ipc"
local victims = require "spec.support.victims"

local trials = {}

local function nothing() end

local function made(name, without, file, options, create)
  local t = {
    name = name .. (without and ", without O_TMPFILE" or ""),
    file = file,
    options = options,
    prepare = nothing,
    allowed = { [""] = true },
    setup = function() victims.step.setenv("IPC_WITHOUT", without) end,
  }
  function t.open(mode)
    if file then return ipc.mmap(victims.file, mode, options) end
    return ipc.shm(victims.name, mode, options)
  end
  function t.act()
    options.create = create
    assert(t.open "rw")
  end
  trials[#trials + 1] = t
  return t
end

for _, without in ipairs { false, "otmpfile" } do
  made("shm", without or nil, false, { capacity = 4096 })
  made("shm, new", without or nil, false, { capacity = 4096 }, "new")
  made("shm, persists", without or nil, false, { capacity = 4096, persist = true })
  made("mmap", without or nil, true, { capacity = 4096 })

  -- A stale one is in the way.
  local t = made("shm, after all were killed", without or nil, false, { capacity = 4096 })
  t.former = { prepare = nothing, act = t.act, options = t.options, open = t.open, allowed = t.allowed }
  t.former.setup = t.setup
  t.choose = victims.last
  t.late = true
end

victims.run(trials)
