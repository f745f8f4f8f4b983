/* Between encode.c, pack.c and envelope.c. Nobody else includes it: the encoder
 * for channels is in msgpack.h. */
#ifndef IPC_ENCODE_H
#define IPC_ENCODE_H

#include <lua.h>
#include <stdbool.h>
#include <stddef.h>

#include "buffer.h"
#include "msgpack.h"

/* Strings that are not keys: str if they are UTF-8, else bin; or always so. */
enum { IPC_STRINGS_AUTO, IPC_STRINGS_STR, IPC_STRINGS_BIN };

enum {
  ENCODE_DEPTH = 64, /* unless somebody has room for more levels */
  ENCODE_ROOM = 16   /* more than any number or head takes */
};

/* A table being encoded. */
typedef struct Level {
  int table;       /* its stack index */
  int kind;        /* how it is walked */
  lua_Unsigned at; /* elements or pairs begun */
  size_t head;     /* where its head is, counted from Encode.base */
} Level;

/* As a light userdata the key that a metatable has of tables and userdata which
 * stand for something that stays here. */
extern const char ipc_rpc_mark[1];

/* Those, and functions, become extensions. */
typedef struct PackSpecial PackSpecial;
struct PackSpecial {
  void *owner; /* rpc.c's own */
  /* Tells of the one at `index` the extension, its type first. It may push
   * nothing and must not allocate through Lua. False: it is not known, and was
   * pushed; nothing more is encoded then. */
  bool (*pack)(lua_State *L, int index, PackSpecial *s, const char **bytes,
               size_t *size);
};

typedef struct Encode {
  lua_State *L;
  char *at, *end;       /* the next byte, and the end of the room */
  char *base;           /* where the encoding began */
  Buffer *out;          /* grows; NULL: the room is all there is */
  PackForeign *foreign; /* NULL: such userdata cannot be packed */
  PackSpecial *special; /* NULL: they cannot be packed */
  const char *root;     /* what errors call the whole; NULL: "value" */
  int argument;         /* and its number; 0: it has none */
  int strings;
  int slots; /* the last index that Lua's stack is known to have */
  int depth; /* levels in use */
  int most;  /* that there may be; each takes some of the C stack, too */
  Level *levels;
  Level few[ENCODE_DEPTH];
} Encode;

/* Several values in one encoding: what is put at e->at between begin and end,
 * in room made for it, is appended to `out` by the end; a raise before it
 * leaves out->size as it was. */
void ipc_encode_begin(Encode *e, lua_State *L, Buffer *out);
void ipc_encode_end(Encode *e);

/* The value at `index`, a positive one. 1; 0 if the room is fixed and spent, or
 * a special value is not known, which is on top then. */
int ipc_encode_index(Encode *e, int index);

/* 1, or 0 if the room is fixed and spent. */
int ipc_encode_grow(Encode *e, size_t more);

static inline int encode_room(Encode *e, size_t more) {
  return (size_t)(e->end - e->at) >= more || ipc_encode_grow(e, more);
}

/* Both encode the value on top of the stack, as ipc_value_encode and
 * ipc_value_encode_at do; they leave it there, and something above it. */
void ipc_encode(lua_State *L, Buffer *out, int strings, PackForeign *f);
size_t ipc_encode_at(lua_State *L, char *bytes, size_t room, int strings);

#endif
