/* Fields between Lua and bytes: single values and whole tables, nested as the
 * struct is. Knows no views: the bytes are there while this runs. */
#ifndef IPC_FIELDS_H
#define IPC_FIELDS_H

#include <lua.h>

#include "layout.h"

/* Where a value stands, to be told in errors: pos[2].x. */
typedef struct Path {
  const struct Path *up;
  const Field *field; /* NULL: only an index */
  size_t index;       /* of an array's element, from 1; 0: it is none */
} Path;

/* The value at `index` as the type wants it: no struct, and in its range. Its
 * bytes are those of the string at `index`. */
bool ipc_value_take(lua_State *L, int index, const Type *t, Value *v);

/* Raises: ipc_value_take has refused the value at `index`. */
int ipc_value_refuse(lua_State *L, int index, const Type *t, const Path *path);

/* Pushes a value; bytes as far as the type says. */
void ipc_value_push(lua_State *L, const Type *t, const Value *v);

/* Raises: there is no such field; `key` is a slot. */
int ipc_field_unknown(lua_State *L, const Layout *s, int key);

/* The field that the value at `key` names, or NULL. */
const Field *ipc_field_named(lua_State *L, const Layout *s, int key);

enum { FIELDS_RUNS = 64 };

/* Which bytes of a block a table has had values for. */
typedef struct Runs {
  const char *block;
  uint32_t count;
  bool over; /* there were more */
  struct {
    uint32_t offset, size;
  } run[FIELDS_RUNS];
} Runs;

/* Where the values of a table go. */
typedef struct Target {
  char *to;       /* NULL: nowhere, they are checked only */
  Runs *runs;     /* noted here; or NULL */
  size_t *filled; /* grows by the bytes of each; or NULL */
} Target;

/* Writes what the table at `index` has of an element of the type, or of an
 * array of `count` of them: other bytes stay. Raises on what does not fit; what
 * did, and was not changed since, is written again without Lua code, allocation
 * or error. */
void ipc_fields_put(lua_State *L, int index, const Type *t, uint32_t count,
                    Target target, const Path *path);

/* Writes to `to` what was noted, each value at once. */
void ipc_fields_move(const Runs *runs, char *to);

/* Pushes the table of an element, or of an array, whose bytes are `from`; into
 * the table at `into` (0: a new one). `names` is the slot of the struct's
 * IPC_UV_NAMES. */
void ipc_fields_push(lua_State *L, int names, const Type *t, uint32_t count,
                     const char *from, int into);

/* User value of an ipc.struct: a list of its fields' names, and the structs in
 * it by their layouts as light userdata. */
enum { IPC_UV_NAMES = 1 };

#endif
