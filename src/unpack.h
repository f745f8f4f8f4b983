/* Between unpack.c, which decodes, decoder.c, which is given the bytes in
 * pieces, and envelope.c. Nobody else includes it. */
#ifndef IPC_UNPACK_H
#define IPC_UNPACK_H

#include <lua.h>
#include <stddef.h>
#include <stdint.h>

#include "msgpack.h"

/* Bytes of the head of 0xc0 ... 0xdf, that byte and an ext's type included; 0
 * is no head. */
extern const unsigned char ipc_head_size[32];

static inline uint32_t get16(const unsigned char *p) {
  return (uint32_t)p[0] << 8 | p[1];
}

static inline uint32_t get32(const unsigned char *p) {
  return get16(p) << 16 | get16(p + 2);
}

static inline uint64_t get64(const unsigned char *p) {
  return (uint64_t)get32(p) << 32 | get32(p + 4);
}

enum { FRAME_ARRAY, FRAME_KEY, FRAME_VALUE };

/* An array or map that is not complete. On the Lua stack it is the table and,
 * in FRAME_VALUE, the key behind it. */
typedef struct Frame {
  uint32_t left; /* elements to come, the one under way included; a pair is 2 */
  uint32_t index; /* array: of the last element */
  uint32_t keys;  /* map: keys so far that are not strings */
  unsigned char state;
  unsigned char marked; /* Lua would not take it for what it was */
} Frame;

/* One value under way. */
typedef struct Decode {
  ValueLimits limits;
  Frame *frames;
  UnpackForeign *foreign;
  int whole;       /* limits.bytes is the size of the input */
  uint32_t depth;  /* frames in use */
  uint32_t values; /* announced so far */
  uint32_t tables;
  size_t owed;       /* the sum of frames[].left */
  size_t taken;      /* bytes before the current piece */
  size_t need;       /* after EAGAIN: bytes of the element that is cut */
  const char *cause; /* after EBADMSG: a lua_pushfstring format, */
  lua_Integer count; /* its argument if it has one, */
  size_t offset;     /* and where */
} Decode;

/* Before every value; limits, frames and whole are set once. */
void ipc_decode_start(Decode *d);

/* Takes elements from [*from, end) until the value is complete. 0: it is on
 * top of the stack. EAGAIN: the element at *from is cut, it has d->need bytes.
 * EBADMSG: d says why; what is on the stack is for the caller to drop. */
int ipc_decode_run(lua_State *L, Decode *d, const unsigned char **from,
                   const unsigned char *end);

/* Pushes "offset N: cause". */
void ipc_decode_explain(lua_State *L, const Decode *d);

/* Turns the text on top of the stack into nil, "WHO: text", errno: 3 results.
 */
int ipc_unpack_fail(lua_State *L, const char *who, int error);

#endif
