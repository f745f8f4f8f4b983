-- What a session lets the other side call: nested tables of functions made flat, once.

local DEPTH <const> = 16 -- of tables in tables

-- Complains of the second argument of a call.
local function wrong(call, text)
  error(("bad argument #2 to '%s' (exports: %s)"):format(call, text), 0)
end

local function put(flat, prefix, names, depth, call)
  for name, value in next, names do
    local key = type(name) == "string" and prefix .. name
    if not key then
      wrong(call, ("the key %s is no string"):format(tostring(name)))
    elseif key:sub(1, 1) == "$" then
      wrong(call, ("%s: names with a dollar are the library's"):format(key))
    elseif type(value) == "function" then
      if flat[key] then
        wrong(call, ("%s: there are two"):format(key))
      end
      flat[key] = value
    elseif type(value) == "table" and getmetatable(value) == nil then
      if depth == 0 then
        wrong(call, ("%s: tables in tables without an end"):format(key))
      end
      put(flat, key .. ".", value, depth - 1, call)
    else
      wrong(call, ("%s: function or table of functions expected, got %s"):format(key, type(value)))
    end
  end
end

-- The flat table, for what is called `call`; raises, naming the key.
return function(names, call)
  local flat = {}
  put(flat, "", names, DEPTH, call)
  return flat
end
