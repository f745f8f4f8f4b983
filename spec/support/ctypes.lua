-- Random structs for struct_spec: as ipc.struct takes them, with values, and as
-- C declares them. A program of C tells sizes and offsets, writes the values and
-- says which of ours it reads otherwise.
local ipc = require "ipc"

local ctypes = {}

-- Letters, and the C type.
local scalars = {
  { "b", "signed char" }, { "B", "unsigned char" }, { "h", "short" }, { "H", "unsigned short" },
  { "i", "int" }, { "I", "unsigned" }, { "l", "long" }, { "L", "unsigned long" },
  { "j", "long long" }, { "J", "unsigned long long" }, { "T", "size_t" },
  { "i1", "int8_t" }, { "I1", "uint8_t" }, { "i2", "int16_t" }, { "I2", "uint16_t" },
  { "i4", "int32_t" }, { "I4", "uint32_t" }, { "i8", "int64_t" }, { "I8", "uint64_t" },
  { "f", "float" }, { "d", "double" }, { "n", "double" }, { "?", "_Bool" },
}
local odd = { "i3", "I3", "i5", "I5", "i6", "I6", "i7", "I7" }

local function pick(list) return list[math.random(#list)] end

local function some_bytes(n)
  local list = {}
  for i = 1, n do list[i] = string.char(math.random(0, 255)) end
  return table.concat(list)
end

-- A value of a type, and that as an initialiser of C or as bytes.
local function value_of(letters)
  local letter = letters:sub(1, 1)
  if letter == "?" then
    local value = math.random(2) == 1
    return value, value and "1" or "0"
  elseif letter == "c" then
    local bytes = some_bytes(tonumber(letters:sub(2)))
    return bytes, bytes
  elseif letter == "z" then
    local n = tonumber(letters:sub(2))
    local text = some_bytes(math.random(0, n)):gsub("%z", "0")
    return text, text .. ("\0"):rep(n - #text)
  elseif letters == "f" then
    local value = string.unpack("f", string.pack("f", math.random() * 1e6 - 5e5))
    return value, ("%a"):format(value)
  elseif letter == "d" or letter == "n" then
    local value = math.random() * 1e9 - 5e8
    return value, ("%a"):format(value)
  end
  local size = string.packsize(letters)
  local value = string.unpack("=" .. letters, some_bytes(size))
  if #letters == 2 and (size % 2 == 1 and size > 1 or size == 6) then
    return value, string.pack("=" .. letters, value)
  end
  if value == math.mininteger then value = 0 end -- C has no literal for it
  return value, value .. (letter:match "%u" and "ull" or "ll")
end

-- Struct number i, which may have those before it as fields.
local function generate(i, before)
  local s = { name = "s" .. i, fields = {}, definition = {}, values = {} }
  local way = math.random(4)
  s.definition.packed = way == 1 or nil
  s.definition.align = way == 2 and 2 ^ math.random(0, 4) // 1 | 0 or nil
  for n = 1, math.random(1, 8) do
    local field = { name = "f" .. n, count = math.random(4) == 1 and math.random(1, 5) or nil }
    local kind = math.random(10)
    if kind == 1 and #before > 0 then
      field.inner = pick(before)
      field.type, field.ctype = field.inner, "struct " .. field.inner.name
    elseif kind == 2 then
      field.type = pick { "c", "z" } .. math.random(1, 20)
      field.ctype, field.bytes = "char", tonumber(field.type:sub(2))
    elseif kind == 3 then
      field.type = pick(odd)
      field.ctype, field.bytes = "unsigned char", tonumber(field.type:sub(2))
    else
      local scalar = pick(scalars)
      field.type, field.ctype = scalar[1], scalar[2]
    end
    s.fields[n] = field
    s.definition[n] = { field.name, field.inner and field.inner.struct or field.type, field.count }
  end
  s.struct = ipc.struct(s.definition)
  return s
end

-- A struct's values as a table, and as {path, C's initialiser or bytes, field}.
local function values_of(s, prefix, list)
  local values = {}
  for _, field in ipairs(s.fields) do
    local elements = {}
    for i = 1, field.count or 1 do
      local path = prefix .. field.name .. (field.count and ("[%d]"):format(i - 1) or "")
      if field.inner then
        elements[i] = values_of(field.inner, path .. ".", list)
      else
        local value, text = value_of(field.type)
        elements[i] = value
        list[#list + 1] = { path, text, field }
      end
    end
    values[field.name] = field.count and elements or elements[1]
  end
  return values
end

local function literal(bytes)
  return '"' .. bytes:gsub(".", function(c) return ("\\%03o"):format(c:byte()) end) .. '"'
end

local function declaration(s)
  local out = {}
  local function put(text, ...) out[#out + 1] = select("#", ...) > 0 and text:format(...) or text end
  if s.definition.align then put("#pragma pack(push, %d)", s.definition.align) end
  put("struct %s {", s.name)
  for _, field in ipairs(s.fields) do
    put("  %s %s%s%s;", field.ctype, field.name, field.count and ("[%d]"):format(field.count) or "",
      field.bytes and ("[%d]"):format(field.bytes) or "")
  end
  put(s.definition.packed and "} __attribute__((packed));" or "};")
  if s.definition.align then put "#pragma pack(pop)" end
  put("static struct %s v_%s;", s.name, s.name)
  return table.concat(out, "\n")
end

-- The program: without arguments it tells the layouts and writes the values in
-- hexadecimal; with a file of records it tells which values there are not ours.
local function program(all)
  local out = { "#include <stddef.h>", "#include <stdint.h>", "#include <stdio.h>", "#include <string.h>" }
  local function put(text, ...) out[#out + 1] = select("#", ...) > 0 and text:format(...) or text end
  for _, s in ipairs(all) do put(declaration(s)) end
  put [[
static void hex(const char *name, const void *p, size_t n) {
  const unsigned char *at = p;
  printf("values %s ", name);
  while (n--) printf("%02x", *at++);
  printf("\n");
}]]
  for _, s in ipairs(all) do
    put("static void do_%s(FILE *f) {\n  struct %s r;", s.name, s.name)
    put("  if (!f) {\n    printf(\"struct %s %%zu %%zu\\n\", sizeof(r), _Alignof(struct %s));", s.name, s.name)
    for _, field in ipairs(s.fields) do
      put("    printf(\"field %s %s %%zu\\n\", offsetof(struct %s, %s));", s.name, field.name, s.name, field.name)
    end
    for _, value in ipairs(s.list) do
      if value[3].bytes then
        put("    memcpy(v_%s.%s, %s, %d);", s.name, value[1], literal(value[2]), value[3].bytes)
      else
        put("    v_%s.%s = %s;", s.name, value[1], value[2])
      end
    end
    put("    hex(\"%s\", &v_%s, sizeof(v_%s));\n    return;\n  }", s.name, s.name, s.name)
    put("  if (fread(&r, 1, sizeof r, f) != sizeof r) printf(\"short %s\\n\");", s.name)
    for _, value in ipairs(s.list) do
      if value[3].bytes then
        put("  if (memcmp(r.%s, %s, %d)) printf(\"differs %s.%s\\n\");", value[1], literal(value[2]),
          value[3].bytes, s.name, value[1])
      else
        put("  if (r.%s != (%s)%s) printf(\"differs %s.%s\\n\");", value[1], value[3].ctype, value[2], s.name, value[1])
      end
    end
    put "}"
  end
  put "int main(int argc, char **argv) {\n  FILE *f = argc > 1 ? fopen(argv[1], \"rb\") : NULL;"
  for _, s in ipairs(all) do put("  do_%s(f);", s.name) end
  put "  puts(\"end\");\n  return 0;\n}"
  return table.concat(out, "\n") .. "\n"
end

--- So many structs: a list of { name, struct, fields, values }, and the text of
-- the program of C that knows them.
function ctypes.generate(count)
  local all = {}
  for i = 1, count do
    local s = generate(i, all)
    s.list = {}
    s.values = values_of(s, "", s.list)
    all[i] = s
  end
  return all, program(all)
end

return ctypes
