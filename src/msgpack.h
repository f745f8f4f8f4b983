/* Values to bytes and back: MessagePack over lua_State. What channels need of
 * it; the Lua functions (ipc.pack, ipc.unpack, ipc.decoder, ...) are its own.
 * encode.c encodes (ipc.pack is in pack.c), unpack.c decodes (decoder.c in
 * pieces), msgpack.c has what they share. */
#ifndef IPC_MSGPACK_H
#define IPC_MSGPACK_H

#include <lua.h>
#include <stddef.h>
#include <stdint.h>

#include "buffer.h"

enum { IPC_UINT64_FLOAT, IPC_UINT64_ERROR, IPC_UINT64_WRAP };

/* What one value may cost, and the choices in building it. */
typedef struct ValueLimits {
  size_t bytes;         /* of the whole encoding */
  uint32_t depth;       /* arrays and maps inside each other */
  uint32_t values;      /* every key, element, array and map counts one */
  uint32_t tables;      /* arrays, maps and exts */
  uint32_t keys;        /* of one map, those that are not strings */
  unsigned char nulls;  /* nil inside tables becomes ipc.null */
  unsigned char uint64; /* IPC_UINT64_*, for those above 2^63-1 */
} ValueLimits;

extern const ValueLimits ipc_value_limits; /* the defaults */

/* Reads decode options (bytes, depth, values, tables, keys, nulls, uint64)
 * from the table at `index` into *limits; nil or none changes nothing. Raises
 * on what it does not know, blaming argument `index`. */
void ipc_value_options(lua_State *L, int index, ValueLimits *limits);

/* Appends the encoding of the value at `index` to `out`. Raises on what cannot
 * be encoded (naming the path to it) and on lack of memory, leaving out->size
 * as it was; `out` must be owned by a userdata. Runs no Lua code at all: no
 * metamethods, and nothing that could start the collector. */
void ipc_value_encode(lua_State *L, int index, Buffer *out);

/* The same straight into bytes[0..room): how many were written, or 0 if the
 * encoding does not fit (what was written then is meaningless). */
size_t ipc_value_encode_at(lua_State *L, int index, char *bytes, size_t room);

/* Values with userdata of others among them, which become extensions of this
 * type. `pack` writes the bytes of the one at `index`; 0: it cannot be. It may
 * allocate, but neither run Lua nor the collector. */
enum { PACK_FOREIGN = 64 };
typedef struct PackForeign PackForeign;
struct PackForeign {
  int type;
  size_t (*pack)(lua_State *L, int index, PackForeign *f,
                 char bytes[PACK_FOREIGN]);
  int list; /* passing.c's own, as the next two */
  const void *carrier;
  const char *why; /* that one cannot be, if there is more to say; from pack */
  unsigned descriptors;
};
void ipc_value_encode_with(lua_State *L, int index, Buffer *out,
                           PackForeign *f);

/* And back: `unpack` pushes a value, or answers EBADMSG. The byte in front of
 * `bytes` is the extension's type. */
typedef struct UnpackForeign UnpackForeign;
struct UnpackForeign {
  int type; /* -1: every extension */
  int (*unpack)(lua_State *L, const char *bytes, size_t size, UnpackForeign *f);
  int held; /* passing.c's own, as the next two */
  unsigned handles;
  size_t limit;
};
int ipc_value_decode_with(lua_State *L, const char *bytes, size_t size,
                          UnpackForeign *f);

/* Decodes the one value that is exactly bytes[0..size). 0: the value was
 * pushed (a nil as ipc.null). EBADMSG: an error text was pushed instead.
 * Raises only on lack of memory; nothing leaks then. Building tables may start
 * the collector, and finalizers are Lua code: the caller sees to it that
 * nobody can move or free `bytes` meanwhile, through this handle or another.
 * Limits NULL are the defaults, here and below. */
int ipc_value_decode(lua_State *L, const char *bytes, size_t size);
int ipc_value_decode_within(lua_State *L, const char *bytes, size_t size,
                            const ValueLimits *limits);

/* Pushes a decoder (a userdata) with the default limits, for values that come
 * one after the other in pieces of any size. Raises on lack of memory. */
void ipc_decoder_push(lua_State *L);
void ipc_decoder_push_within(lua_State *L, const ValueLimits *limits);

/* Feeds the decoder at `index`. 0: a value was pushed. EAGAIN: every byte was
 * taken and the value goes on (nothing pushed). EBADMSG: an error text was
 * pushed, the decoder stays failed. *used is how many bytes were taken.
 * A raise (lack of memory) leaves it failed too. As for ipc_value_decode,
 * `bytes` must stay where they are. */
int ipc_decoder_feed(lua_State *L, int index, const char *bytes, size_t size,
                     size_t *used);

/* Is a string or ext of this many bytes more than MessagePack can say? A
 * function, so that 32-bit compilers do not call it constant. */
static inline int ipc_value_too_long(uint64_t size) {
  return size > UINT32_MAX;
}

/* Extension values: immutable userdata of a type (-128..127) and bytes. */
void ipc_ext_push(lua_State *L, int type, const char *bytes, size_t size);

/* The bytes of the extension value at `index`, or NULL if it is none. They
 * live as long as the userdata. */
const char *ipc_ext_test(lua_State *L, int index, int *type, size_t *size);

/* Marks: the metatables of ipc.array and ipc.map. */
enum { IPC_MARK_NONE, IPC_MARK_ARRAY, IPC_MARK_MAP, IPC_MARK_OTHER };

/* The mark of the table at `index`; OTHER is a metatable that is not ours. */
int ipc_mark_test(lua_State *L, int index);

/* Marks the table on top of the stack. */
void ipc_mark_set(lua_State *L, int mark);

/* Adds pack, unpack, decoder, null, array, map and ext to the table on top. */
void ipc_msgpack_open(lua_State *L);

/* Its parts: each adds its own functions to the table on top. */
void ipc_pack_open(lua_State *L);
void ipc_unpack_open(lua_State *L);
void ipc_decoder_open(lua_State *L);

#endif
