/* ipc.struct: describes a struct once, from a table of fields. What is done
 * with it is in record.c, how C lays it out in layout.c. */
#include "prefix.h"

#include <lauxlib.h>
#include <lua.h>
#include <string.h>

#include "fields.h"
#include "ipc.h"
#include "layout.h"
#include "record.h"
#include "versioned.h"

enum {
  STRUCT_FIELDS = 1 << 16, /* of one struct, at most */
  STRUCT_ALIGN = 64        /* the largest that `align` may be */
};

/* Slots of the constructor. */
enum { SLOT_TABLE = 1, SLOT_STRUCT, SLOT_NAMES, SLOT_SEEN, SLOT_FIELD };

static const Layout *struct_self(lua_State *L) {
  const Layout *s = ipc_layout_at(L, 1);
  if (!s)
    luaL_typeerror(L, 1, "ipc.struct");
  return s;
}

/***
 * @submodule ipc.struct
 */

/* ------------------------------------------------------------- constructor */

/* Raises: what is on top is wrong with field `i`, called as in slot `name`, or
 * not yet if that is 0. */
static int struct_error(lua_State *L, uint32_t i, int name) {
  if (name)
    lua_pushfstring(L, "field %d ('%s'): %s", (int)i, lua_tostring(L, name),
                    lua_tostring(L, -1));
  else
    lua_pushfstring(L, "field %d: %s", (int)i, lua_tostring(L, -1));
  return luaL_argerror(L, SLOT_TABLE, lua_tostring(L, -1));
}

/* The type on top, a string or a struct. */
static void struct_type(lua_State *L, Layout *s, uint32_t i, int name,
                        Type *t) {
  const Layout *inner = ipc_layout_at(L, -1);
  size_t length;
  if (inner) {
    *t = inner->self;
    if (inner->versioned)
      lua_pushliteral(L, "a versioned struct is not part of another");
    else if (inner->depth + 1 >= LAYOUT_DEEPEST)
      lua_pushfstring(L, "more than %d structs within each other",
                      LAYOUT_DEEPEST);
    else
      return;
    struct_error(L, i, name);
  }
  if (lua_type(L, -1) != LUA_TSTRING) {
    lua_pushfstring(L, "a type expected, got %s", luaL_typename(L, -1));
    struct_error(L, i, name);
  }
  const char *text = lua_tolstring(L, -1, &length);
  if (!ipc_type_parse(text, length, s->swapped, t)) {
    lua_pushfstring(L, "unknown type '%s'", text);
    struct_error(L, i, name);
  }
  if (t->size == 0) {
    const char *range = *text == 'c' || *text == 'z' ? "1..2147483647" : "1..8";
    lua_pushfstring(L, "the size of '%s' is not within %s", text, range);
    struct_error(L, i, name);
  }
}

/* The count on top, or nil. */
static uint32_t struct_count(lua_State *L, uint32_t i, int name) {
  int fits = lua_isinteger(L, -1);
  lua_Integer n = fits ? lua_tointeger(L, -1) : 0;
  if (lua_isnil(L, -1))
    return 0;
  if (!fits) {
    lua_pushfstring(L, "a count expected, got %s", luaL_typename(L, -1));
    struct_error(L, i, name);
  }
  if (n < 1 || n > LAYOUT_MOST) {
    lua_pushfstring(L, "the count %I is not within 1..%d", (LUAI_UACINT)n,
                    LAYOUT_MOST);
    struct_error(L, i, name);
  }
  return (uint32_t)n;
}

/* The field's table, in its slot, has a name, a type, perhaps a count, and
 * nothing else. */
static void struct_entries(lua_State *L, uint32_t i) {
  lua_pushnil(L);
  while (lua_next(L, SLOT_FIELD)) {
    lua_pop(L, 1);
    lua_Integer at = lua_isinteger(L, -1) ? lua_tointeger(L, -1) : 0;
    if (at < 1 || at > 3) {
      luaL_tolstring(L, -1, NULL);
      lua_pushfstring(L,
                      "a name, a type and perhaps a count expected, got "
                      "[%s] too",
                      lua_tostring(L, -1));
      struct_error(L, i, 0);
    }
  }
}

/* The name in slot SLOT_FIELD + 1 is a new one: keeps its string, by its key.
 */
static void struct_name(lua_State *L, uint32_t i, Field *f) {
  int name = SLOT_FIELD + 1;
  size_t length;
  if (lua_type(L, name) != LUA_TSTRING) {
    lua_pushfstring(L, "a name expected, got %s", luaL_typename(L, name));
    struct_error(L, i, 0);
  }
  f->name = lua_tolstring(L, name, &length);
  if (length == 0 || length > UINT16_MAX) {
    lua_pushstring(L, length ? "the name is too long" : "the name is empty");
    struct_error(L, i, 0);
  }
  f->length = (uint32_t)length;
  f->key = lua_topointer(L, name);
  lua_pushvalue(L, name);
  if (lua_rawget(L, SLOT_SEEN) != LUA_TNIL) {
    lua_pushliteral(L, "there is one of this name already");
    struct_error(L, i, name);
  }
  lua_pop(L, 1);
  lua_pushvalue(L, name);
  lua_pushboolean(L, 1);
  lua_rawset(L, SLOT_SEEN);
  lua_pushvalue(L, name);
  lua_rawseti(L, SLOT_NAMES, i);
}

static void struct_field(lua_State *L, Layout *s, uint32_t i) {
  Field f = {0};
  int name = SLOT_FIELD + 1;
  lua_settop(L, SLOT_FIELD - 1);
  if (lua_rawgeti(L, SLOT_TABLE, (lua_Integer)i) != LUA_TTABLE) {
    lua_pushfstring(L, "{ name, type [, count] } expected, got %s",
                    luaL_typename(L, -1));
    struct_error(L, i, 0);
  }
  struct_entries(L, i);
  lua_rawgeti(L, SLOT_FIELD, 1);
  struct_name(L, i, &f);
  lua_rawgeti(L, SLOT_FIELD, 3);
  f.count = struct_count(L, i, name);
  lua_rawgeti(L, SLOT_FIELD, 2);
  struct_type(L, s, i, name, &f.type);
  if (f.type.layout)
    lua_rawsetp(L, SLOT_NAMES, f.type.layout);
  if (!ipc_layout_add(s, &f)) {
    lua_pushfstring(L, "the struct is larger than %d bytes", LAYOUT_MOST);
    struct_error(L, i, name);
  }
}

/* The table has a list of fields, and options that there are. */
static uint32_t struct_table(lua_State *L) {
  static const char *const options[] = {"packed", "endian", "align",
                                        "versioned"};
  luaL_checktype(L, SLOT_TABLE, LUA_TTABLE);
  size_t count = (size_t)lua_rawlen(L, SLOT_TABLE);
  luaL_argcheck(L, count > 0, SLOT_TABLE, "a struct has a field at least");
  luaL_argcheck(L, count <= STRUCT_FIELDS, SLOT_TABLE, "too many fields");
  lua_pushnil(L);
  while (lua_next(L, SLOT_TABLE)) {
    lua_pop(L, 1);
    bool known = lua_isinteger(L, -1) && lua_tointeger(L, -1) >= 1 &&
                 (lua_Unsigned)lua_tointeger(L, -1) <= count;
    const char *name =
        lua_type(L, -1) == LUA_TSTRING ? lua_tostring(L, -1) : NULL;
    for (size_t i = 0; name && i < sizeof options / sizeof *options; i++)
      known = known || strcmp(name, options[i]) == 0;
    if (!known) {
      luaL_tolstring(L, -1, NULL);
      lua_pushfstring(L, "unknown option '%s'", lua_tostring(L, -1));
      luaL_argerror(L, SLOT_TABLE, lua_tostring(L, -1));
    }
  }
  return (uint32_t)count;
}

/***
Describes a struct as a C compiler lays it out.

Fields stand in a list of `{ name, type [, count] }`; a count makes an array.
Types are a struct, described before, or letters of `string.pack`:

    b B h H i I l L   char short int long, of this machine; small: signed
    i1 .. i8 I1 .. I8 integers of so many bytes
    j J T             lua_Integer, size_t
    f d n             float double lua_Number
    ?                 a boolean: one byte, C's bool
    cN                N bytes, all of them, zeros included; a shorter string is
                      filled with zeros when it is stored
    zN                text in N bytes: read up to the first zero, if there is
                      one; may fill all N, but has no zero in it

A value is aligned as its C type is within a struct on this machine; i1, i2, i4
and i8 as int8_t to int64_t, the other sizes, which C has not, as bytes. The
struct is aligned as its strictest field, and its size is a multiple of that.

Reading an 8-byte unsigned integer gives an integer of the same 64 bits, as
string.unpack does. Integers out of range, floats with a fraction where an
integer is wanted, strings that are too long and values of another type raise;
nothing is converted.

Options stand beside the fields: `packed = true`, no alignment at all; `align`,
the largest alignment that a field may have (a power of 2), as C's `#pragma
pack`; `endian` ("native", "little" or "big") of the fields, not of structs in
it; `versioned = true`, see below.

A record of a struct with `versioned` is written and read whole, without a lock:
`load` and every field come from one store; a store, of single fields too, is
one of all of the record and lets only what it names change. Any number of
processes may store at the same time. One that is killed or stopped in the
middle has stored nothing, and holds up nobody. It takes 8 bytes and 4 times the
size of the fields, aligned by 8. A record of zeros has fields of zeros; any
other bytes must have been stored. What is lost when two change different fields
at the same time is nothing; when both read a field and write one more, one of
the two: that needs a lock. `load` and `store` answer nil, message, EAGAIN, and
fields raise it, when thousands of attempts were overtaken; EBADMSG when the
bytes are of no store, which one of all fields mends.

In memory, for programs in other languages, in this machine's byte order:

    0  published                4   a ticket: its lowest bit is the copy
    4  claimed                  4   the ticket taken last
    8  copy 0                   8 * cells, cells = (size of fields + 3) / 4
       copy 1                   8 * cells

where both tickets are one 64-bit word, (claimed << 32 | published), and a cell
is another, (ticket << 32 | 4 bytes of the fields), read and written by atomic
operations only. To read: load the word; load the cells of copy `published & 1`;
if one has a ticket that is not `published`, begin again. To store: load the
word, take the next ticket above `claimed` with another lowest bit than
`published`, and compare-and-swap it into `claimed`; then for each cell of the
other copy: load it, see that the word is still what was put there, and
compare-and-swap ticket and bytes over what was loaded; at last
compare-and-swap the word to both being the ticket. Whichever fails, another
store came in between: begin again, and wait a moment when `claimed` is not
`published`.
@function struct
@tparam table fields a list, with options beside it
@treturn struct with `size` (bytes of a record in memory), `align` and
`versioned`. Mistakes raise
@usage local Vec = ipc.struct { { "x", "f" }, { "y", "f" } }
local Player = ipc.struct {
  { "id", "I4" }, { "name", "z16" }, { "path", Vec, 4 }
}
local players = memory:view(Player, 0, 100)
players[1].path[2].x = 0.5
*/
static int struct_call(lua_State *L) {
  static const char *const orders[] = {"native", "little", "big", NULL};
  const uint16_t one = 1;
  char little;
  memcpy(&little, &one, 1);
  uint32_t count = struct_table(L);
  lua_settop(L, SLOT_TABLE);
  int order = ipc_option_choice(L, SLOT_TABLE, "endian", orders);
  bool packed = ipc_option_flag(L, SLOT_TABLE, "packed", false);
  size_t align =
      ipc_option_size(L, SLOT_TABLE, "align", 1, STRUCT_ALIGN, UINT32_MAX);
  luaL_argcheck(L, align == UINT32_MAX || (align & (align - 1)) == 0,
                SLOT_TABLE, "option 'align': not a power of 2");
  luaL_argcheck(L, !packed || align == UINT32_MAX, SLOT_TABLE,
                "option 'align': it is packed");
  Layout *s = ipc_layout_new(L, count);
  s->versioned = ipc_option_flag(L, SLOT_TABLE, "versioned", false);
  s->swapped = order != 0 && (order == 1) != (little == 1);
  s->packed = packed ? 1 : (uint32_t)align;
  lua_getiuservalue(L, SLOT_STRUCT, IPC_UV_NAMES);
  lua_newtable(L);
  for (uint32_t i = 1; i <= count; i++)
    struct_field(L, s, i);
  bool fits = ipc_layout_end(s);
  if (fits && s->versioned) {
    uint64_t size = ipc_versioned_size(s->size);
    fits = size <= LAYOUT_MOST;
    s->self.size = (uint32_t)size;
    s->self.align = VERSIONED_ALIGN;
  }
  if (!fits)
    luaL_argerror(
        L, SLOT_TABLE,
        lua_pushfstring(L, "the struct is larger than %d bytes", LAYOUT_MOST));
  lua_settop(L, SLOT_STRUCT);
  return 1;
}

/* ----------------------------------------------------------------- methods */

static const Field *struct_named(lua_State *L, const Layout *s, int index) {
  size_t length;
  luaL_checktype(L, index, LUA_TSTRING);
  const char *name = lua_tolstring(L, index, &length);
  const Field *f = ipc_layout_named(s, name, length);
  if (!f)
    luaL_argerror(L, index, lua_pushfstring(L, "no field '%s'", name));
  return f;
}

/***
Where a field begins, in bytes from the start of the fields.
@function struct:offset
@string name
@tparam[opt=1] ?integer i an element of an array
@treturn integer
@usage memory:write(Point:offset "y", bytes)
*/
static int struct_offset(lua_State *L) {
  const Layout *s = struct_self(L);
  const Field *f = struct_named(L, s, 2);
  lua_Integer i = 1;
  if (!lua_isnoneornil(L, 3)) {
    luaL_checktype(L, 3, LUA_TNUMBER);
    i = luaL_checkinteger(L, 3);
    luaL_argcheck(L, f->count, 3, "the field is no array");
    luaL_argcheck(L, i >= 1 && i <= (lua_Integer)f->count, 3,
                  "the array has not so many elements");
  }
  lua_pushinteger(L, (lua_Integer)f->offset + (i - 1) * f->type.size);
  return 1;
}

/* Pushes the type as the constructor was told it, as far as it still knows. */
static void struct_push_type(lua_State *L, int names, const Type *t) {
  if (t->layout) {
    lua_rawgetp(L, names, t->layout);
    return;
  }
  switch (t->code) {
  case CODE_BOOLEAN:
    lua_pushliteral(L, "?");
    return;
  case CODE_BYTES:
  case CODE_TEXT:
    lua_pushfstring(L, t->code == CODE_BYTES ? "c%d" : "z%d", (int)t->size);
    return;
  case CODE_FLOAT:
  case CODE_DOUBLE:
  case CODE_REAL:
    lua_pushstring(L, t->size == sizeof(float) ? "f" : "d");
    return;
  default:
    lua_pushfstring(L, t->is_signed ? "i%d" : "I%d", (int)t->size);
  }
}

/* Sets them in the table on top, but those that are as by default. */
static void struct_push_options(lua_State *L, const Layout *s) {
  const uint16_t one = 1;
  char little;
  memcpy(&little, &one, 1);
  if (s->swapped) {
    lua_pushstring(L, little == 1 ? "big" : "little");
    lua_setfield(L, -2, "endian");
  }
  if (s->packed == 1) {
    lua_pushboolean(L, 1);
    lua_setfield(L, -2, "packed");
  } else if (s->packed != UINT32_MAX) {
    lua_pushinteger(L, (lua_Integer)s->packed);
    lua_setfield(L, -2, "align");
  }
  if (s->versioned) {
    lua_pushboolean(L, 1);
    lua_setfield(L, -2, "versioned");
  }
}

/***
What the struct is made of, in order.
@function struct:fields
@treturn {table,...} rows: `name`, `type` (a struct, or letters: "I4" for what
was "I" where that has 4 bytes), `count` (of an array), `offset` and `size` in
bytes. The options that it was made with stand beside the rows
@usage for _, f in ipairs(Point:fields()) do print(f.name, f.offset) end
*/
static int struct_fields(lua_State *L) {
  const Layout *s = struct_self(L);
  lua_settop(L, 1);
  lua_getiuservalue(L, 1, IPC_UV_NAMES);
  lua_createtable(L, (int)s->count, 0);
  struct_push_options(L, s);
  for (uint32_t i = 0; i < s->count; i++) {
    const Field *f = &s->fields[i];
    lua_createtable(L, 0, 5);
    lua_pushlstring(L, f->name, f->length);
    lua_setfield(L, -2, "name");
    struct_push_type(L, 2, &f->type);
    lua_setfield(L, -2, "type");
    if (f->count) {
      lua_pushinteger(L, f->count);
      lua_setfield(L, -2, "count");
    }
    lua_pushinteger(L, f->offset);
    lua_setfield(L, -2, "offset");
    lua_pushinteger(L, (lua_Integer)f->type.size * (f->count ? f->count : 1));
    lua_setfield(L, -2, "size");
    lua_rawseti(L, 3, (lua_Integer)i + 1);
  }
  return 1;
}

static int struct_index(lua_State *L) {
  const Layout *s = struct_self(L);
  const char *name = lua_type(L, 2) == LUA_TSTRING ? lua_tostring(L, 2) : "";
  if (strcmp(name, "size") == 0)
    lua_pushinteger(L, s->self.size);
  else if (strcmp(name, "align") == 0)
    lua_pushinteger(L, s->self.align);
  else if (strcmp(name, "versioned") == 0)
    lua_pushboolean(L, s->versioned);
  else
    lua_getfield(L, lua_upvalueindex(1), name);
  return 1;
}

static int struct_tostring(lua_State *L) {
  const Layout *s = struct_self(L);
  lua_pushfstring(L, "ipc.struct (%d bytes, %d fields%s)", (int)s->self.size,
                  (int)s->count, s->versioned ? ", versioned" : "");
  return 1;
}

/* ----------------------------------------------------------------- tables */

static const luaL_Reg struct_methods[] = {{"offset", struct_offset},
                                          {"fields", struct_fields},
                                          {"load", ipc_record_load},
                                          {"store", ipc_record_store},
                                          {NULL, NULL}};

static void struct_setup(lua_State *L) {
  ipc_record_open(L);
  luaL_newlib(L, struct_methods);
  lua_pushcclosure(L, struct_index, 1);
  lua_setfield(L, -2, "__index");
  lua_pushcfunction(L, struct_tostring);
  lua_setfield(L, -2, "__tostring");
  lua_pop(L, 1);
}

static const luaL_Reg struct_functions[] = {{"struct", struct_call},
                                            {NULL, NULL}};

const Room ipc_room_struct = {
    .name = "struct", .functions = struct_functions, .setup = struct_setup};
