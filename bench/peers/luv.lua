-- What bench/process.lua measures, with luv; prints ns. Arguments: run
-- (uv.spawn of /bin/true, to its end) | message (a Lua until its first byte comes
-- through a pipe), seconds, the interpreter.
local uv = require "luv"

local work, seconds, lua = arg[1], tonumber(arg[2]), arg[3]

local function now() return uv.hrtime() end

-- Each answers the ns that do not count.
local batch = {}

function batch.run()
  local process
  process = assert(uv.spawn("/bin/true", {}, function(code)
    assert(code == 0)
    process:close()
  end))
  uv.run()
  return 0
end

function batch.message()
  local pipe, process, first = uv.new_pipe(false), nil, nil
  process = assert(uv.spawn(lua, {
    args = { "-e", "io.stdout:write('x'):flush()" }, stdio = { nil, pipe },
  }, function(code)
    assert(code == 0)
    process:close()
  end))
  pipe:read_start(function(_, bytes)
    if bytes then
      first = first or now()
    else
      pipe:close()
    end
  end)
  uv.run()
  return now() - first
end

local function measure(one)
  local took, begin = {}, now()
  repeat one() until now() - begin >= seconds * 1e8
  begin = now()
  local last = begin
  while #took < 3 or last - begin < seconds * 1e9 do
    local aside = one()
    local at = now()
    took[#took + 1] = at - last - aside
    last = at
  end
  table.sort(took)
  return took[#took // 2 + 1]
end

print(("%.1f"):format(measure(batch[work])))
