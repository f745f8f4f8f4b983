-- What a scenario is given: `local fault = ...`. Outside of `try` nothing
-- fails, so whatever a scenario does there must succeed.
local try, child, hits, errno, interrupted = ...

local fault = { try = try, errno = errno, hits = hits }

--- Whether failures happen in the forked children instead of here.
fault.child = child

-- Whether the results of a try are an answer to the failure: a memory error,
-- or nil, message, errno (raised as an object by an iterator).
local function failed(ok, first, message, number)
  if ok then
    -- An interrupted call is one that would have to wait.
    return first == nil and type(message) == "string"
      and (number == errno or interrupted and message == "timeout" and hits() > 0)
  end
  local text = type(first) == "table" and first.errno == errno and "not enough memory" or tostring(first)
  if not text:find("not enough memory", 1, true) then
    error("raised: " .. text, 0)
  end
  return true
end
fault.failed = failed

--- f(...), and if that failed for lack of what is taken away, again with
-- nothing failing. Answers the results, and whether there was a failure comes
-- from fault.again.
function fault.sure(f, ...)
  local results = table.pack(try(f, ...))
  fault.again = failed(table.unpack(results, 1, 4))
  if fault.again then
    assert(hits() > 0, "an answer to a failure that did not happen")
    return f(...)
  end
  return table.unpack(results, 2, results.n)
end

--- The same for a method: fault.call(handle, "recv", 1).
function fault.call(handle, name, ...)
  return fault.sure(handle[name], handle, ...)
end

--- Raises unless the values are equal.
function fault.equal(got, wanted, what)
  if got ~= wanted then
    local function show(v)
      local text = type(v) == "string" and ("%q"):format(v) or tostring(v)
      return #text > 60 and text:sub(1, 60) .. "... " .. #text or text
    end
    error(("%s: got %s, wanted %s"):format(what or "value", show(got), show(wanted)), 2)
  end
end

--- The same, for values.
function fault.same(got, wanted, what)
  if type(got) ~= "table" or type(wanted) ~= "table" then
    return fault.equal(got, wanted, what)
  end
  for key, value in pairs(wanted) do
    fault.same(got[key], value, what .. "." .. tostring(key))
  end
  for key in pairs(got) do
    assert(wanted[key] ~= nil, what)
  end
end

--- Nothing more has come.
function fault.nothing(channel)
  local got, message, number = channel:recv(0)
  if number == errno and hits() > 0 then -- what recvmany met after the last
    got, message = channel:recv(0)
  end
  fault.equal(got, nil, "a message too many")
  fault.equal(message, "timeout")
end

return fault
