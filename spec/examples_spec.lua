-- The short examples: each runs, exits 0, and prints what its `-->` comments
-- say (white space counts once, `...` stands for anything). Whole programs have
-- specs of their own.
local peer = require "spec.support.peer"

local function read(path)
  local file <close> = assert(io.open(path))
  return file:read "a"
end

local function squeeze(text)
  return (text:gsub("%s+", " "):gsub("^ ", ""):gsub(" $", ""))
end

local function matches(line, expected)
  local pattern = squeeze(expected):gsub("%p", "%%%0"):gsub("%%%.%%%.%%%.", ".*")
  return squeeze(line):match("^" .. pattern .. "$")
end

local rings = {
  memory = true, struct = true, framebuffer = true, shm = true, mmap = true, broadcast = true, locks = true,
  hasher = true, rpc = true,
}

describe("the example", function()
  for _, name in ipairs {
    "pipe", "fifo", "socket", "sysv", "mqueue", "shm", "mmap", "broadcast", "stdio", "listener", "memory", "process",
    "exec", "pipeline", "spawn", "poller", "signal", "timer", "locks", "values", "struct", "framebuffer",
    "hasher", "server", "follow", "rpc", "calculator", "store", "jobserver", "neovim",
  } do
    local path = ("examples/%s.lua"):format(name)

    describe(path, function()
      it("says at first what it shows and how to run it", function()
        local comment = read(path):match "^[^\n]+\n%-%-[^\n]+\n%-%-[^\n]+\n"
        assert.is_string(comment)
        assert.matches("Run: lua5.4 " .. path, comment, 1, true)
      end)

      it("is short", function()
        local _, lines = read(path):gsub("\n", "")
        assert.is_true(lines >= 10 and lines <= 40, lines .. " lines")
      end)

      if rings[name] and not peer.has "shm" then return end -- shm_spec has the answer

      if name == "neovim" and not os.execute "nvim --version >/dev/null 2>&1" then
        it("prints what it says", function() pending "Neovim (nvim) is not installed" end)
        return
      end

      it("prints what it says", function()
        local output, ok = peer.run(("dofile(%q)"):format(path))
        assert.is_true(ok, output)
        local printed, expected = {}, {}
        for line in output:gmatch "[^\n]+" do
          printed[#printed + 1] = line
        end
        for line in read(path):gmatch "%-%->([^\n]*)" do
          expected[#expected + 1] = line
        end
        assert.is_true(#expected > 0)
        assert.are.equal(#expected, #printed, output)
        for i, line in ipairs(expected) do
          assert.is_truthy(matches(printed[i], line), printed[i] .. " is not" .. line)
        end
      end)
    end)
  end
end)
