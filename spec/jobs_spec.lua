-- examples/jobs.lua and examples/frames.lua: what shared memory is for. Each
-- prints what its `-->` comments say.
local ipc = require "ipc"
local peer = require "spec.support.peer"

local function squeeze(text)
  return (text:gsub("%s+", " "):gsub("^ ", ""):gsub(" $", ""))
end

local has = false
for _, row in ipairs(ipc.mechanisms()) do has = has or row.room == "shm" end

for _, name in ipairs(has and { "jobs", "frames" } or {}) do
  local path = ("examples/%s.lua"):format(name)

  describe(path, function()
    it("prints what it says", function()
      local output, ok = peer.run(("dofile(%q)"):format(path))
      assert.is_true(ok, output)
      local file <close> = assert(io.open(path))
      local text = file:read "a"
      assert.matches("Run: lua5.4 " .. path, text, 1, true)
      local printed = output:gmatch "[^\n]+"
      for line in text:gmatch "%-%->([^\n]*)" do
        local pattern = squeeze(line):gsub("%p", "%%%0"):gsub("%%%.%%%.%%%.", ".*")
        assert.matches("^" .. pattern .. "$", squeeze(printed() or "nothing"))
      end
      assert.is_nil(printed())
    end)
  end)
end
