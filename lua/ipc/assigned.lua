-- Which upvalues a function assigns, itself or by functions within it: read from
-- what string.dump makes of it, whose format is Lua 5.4's own (ldump.c).
local SETUPVAL <const> = 10 -- the opcode; its operand B is the upvalue
local HEAD <const> = "\27Lua\x54\0\x19\x93\r\n\x1a\n"
local LITTLE <const> = string.pack("=I2", 1) == "\1\0"

local byte, unpack = string.byte, string.unpack

-- The format of an integer of so many bytes.
local function integer(size) return "=i" .. size end

-- A size as dumps have it, seven bits a byte, the last byte marked; what follows.
local function varint(dump, at)
  local n = 0
  repeat
    local b = byte(dump, at)
    n, at = n << 7 | b & 0x7f, at + 1
  until b >= 0x80
  return n, at
end

local function skip_string(dump, at)
  local n, next = varint(dump, at)
  return n == 0 and next or next + n - 1
end

-- Upvalues that the instructions from `at` on assign, as a set of indexes from 0.
local function stores(dump, at, count)
  local set = {}
  local op, b = LITTLE and 0 or 3, LITTLE and 2 or 1
  for i = at, at + 4 * count - 4, 4 do
    if byte(dump, i + op) & 0x7f == SETUPVAL then
      set[byte(dump, i + b)] = true
    end
  end
  return set
end

local function skip_constants(dump, at, sizes)
  local n
  n, at = varint(dump, at)
  for _ = 1, n do
    local kind = byte(dump, at)
    at = at + 1
    if kind == 0x04 or kind == 0x14 then
      at = skip_string(dump, at)
    elseif kind == 0x03 then
      at = at + sizes.integer
    elseif kind == 0x13 then
      at = at + sizes.number
    end
  end
  return at
end

local function skip_debug(dump, at)
  local n
  n, at = varint(dump, at)
  at = at + n -- a byte for each instruction
  n, at = varint(dump, at)
  for _ = 1, 2 * n do
    _, at = varint(dump, at)
  end
  n, at = varint(dump, at)
  for _ = 1, n do
    at = skip_string(dump, at)
    _, at = varint(dump, at)
    _, at = varint(dump, at)
  end
  n, at = varint(dump, at)
  for _ = 1, n do
    at = skip_string(dump, at)
  end
  return at
end

-- One function: where it ends, the set of what it assigns, and where its own
-- upvalues begin, three bytes each.
local function prototype(dump, at, sizes)
  local n, set, upvalues, _
  at = skip_string(dump, at)
  _, at = varint(dump, at)
  _, at = varint(dump, at)
  n, at = varint(dump, at + 3)
  set = stores(dump, at, n)
  at = skip_constants(dump, at + 4 * n, sizes)
  n, upvalues = varint(dump, at)
  n, at = varint(dump, upvalues + 3 * n)
  for _ = 1, n do
    local inner, theirs
    at, inner, theirs = prototype(dump, at, sizes)
    for i in next, inner do
      local in_stack, index = byte(dump, theirs + 3 * i, theirs + 3 * i + 1)
      if in_stack == 0 then
        set[index] = true
      end
    end
  end
  return skip_debug(dump, at), set, upvalues
end

-- The set of the upvalues, counted from 1, that the dumped function assigns.
-- Raises when the dump is of a format that is not known.
return function(dump)
  local sizes = { integer = byte(dump, 14), number = byte(dump, 15) }
  if dump:sub(1, #HEAD) ~= HEAD or byte(dump, 13) ~= 4
    or unpack(integer(sizes.integer), dump, 16) ~= 0x5678 then
    error("what string.dump gives here is not the format of Lua 5.4", 0)
  end
  local _, set = prototype(dump, 17 + sizes.integer + sizes.number, sizes)
  local all = {}
  for i in next, set do
    all[i + 1] = true
  end
  return all
end
