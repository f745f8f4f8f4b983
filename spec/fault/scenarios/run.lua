-- Other programs, run to their ends or stopped before.
local fault = ...
local ipc = require "ipc"

local function sure(call, options)
  return fault.sure(ipc[call], options)
end

local result = sure("run", { "sh", "-c", "cat; echo error >&2", input = "text", timeout = 20 })
fault.equal(result.out, "text")
fault.equal(result.err, "error\n")
fault.equal(result.code, 0)

local _, message, errno, partial = sure("run", { "sh", "-c", "echo no luck >&2; exit 3", timeout = 20 })
fault.equal(message, "sh: exit 3: no luck")
fault.equal(errno, 0)
fault.equal(partial.code, 3)

result = sure("pipeline", { { "cat", input = "b\na\n" }, { "sort" }, timeout = 20 })
fault.equal(result.out, "a\nb\n")

-- Whatever failed, they are gone, and what they started: each had the only
-- writing end of a pipe, which must say so.
local function stopped(call, options, program)
  local witnesses = {}
  local _, why, number = fault.sure(function()
    local r, w, problem = ipc.pipe()
    if problem then
      return r, w, problem
    end
    witnesses[#witnesses + 1], program.stderr = r, w
    return ipc[call](options)
  end)
  program.stderr = nil
  collectgarbage()
  collectgarbage() -- an end that did not go to a program
  for _, r in ipairs(witnesses) do
    fault.equal(select(2, r:recv(10)), "closed", "who holds the pipe")
    r:close()
  end
  return why, number
end

local program = { "sh", "-c", "sleep 60 & sleep 60", timeout = 0.01 }
local why, number = stopped("run", program, program)
fault.equal(why, "sh: timeout after 0.01 s")
fault.equal(number, ipc.errno.ETIMEDOUT)

program = { "sh", "-c", "sleep 60 & yes" }
why = stopped("pipeline", { program, { "cat" }, maxsize = 10 }, program)
fault.equal(why, "stage 2: cat: more than 10 bytes of stdout")

program = { "sh", "-c", "sleep 60 & sleep 60" }
why = stopped("pipeline", { program, { "/no/such" } }, program)
fault.equal(why, "ipc.pipeline: stage 2: /no/such: No such file or directory")
