/* Calls as MessagePack-RPC has them: [0, id, method, params], [1, id, error,
 * result], [2, method, params]; to bytes and back, straight from and to Lua's
 * stack. No channel is in it: what carries the bytes is rpc.c. */
#ifndef IPC_ENVELOPE_H
#define IPC_ENVELOPE_H

#include <lua.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "buffer.h"
#include "encode.h"
#include "msgpack.h"

/* What one message may cost. */
typedef struct EnvelopeLimits {
  ValueLimits values;
  size_t method; /* bytes of its name */
  int params;    /* arguments, or results */
} EnvelopeLimits;

/* ---------------------------------------------------------------- finding */

/* How far a message has been looked through that may still be coming. */
typedef struct Scan {
  size_t at;        /* bytes of it that are elements, whole */
  uint64_t pending; /* elements to come */
  const char *why;  /* after EBADMSG */
} Scan;

/* Before each message. */
void ipc_scan_start(Scan *s);

/* Looks on through the first `have` bytes of a message. 0: it is s->at bytes
 * long. EAGAIN: it goes on. EMSGSIZE: it is longer than `limit`. EBADMSG: it is
 * no MessagePack, or no array of three or four. What was looked at is not
 * looked at again, so a message in pieces costs what a whole one does. */
int ipc_scan(Scan *s, const char *bytes, size_t have, size_t limit);

/* --------------------------------------------------------------- decoding */

/* What its first element says; INVALID: a request whose id is right and the
 * rest is not. */
enum {
  ENVELOPE_REQUEST,
  ENVELOPE_RESPONSE,
  ENVELOPE_NOTIFICATION,
  ENVELOPE_INVALID
};

/* Values that stand for what stays elsewhere: `unpack` may leave a text on top
 * that says why it answers EBADMSG; then it sets `told`. */
typedef struct EnvelopeExts {
  UnpackForeign f;
  bool told;
  bool some; /* incoming.c's own, as the next: there was one */
  int wire;  /* an index of Lua's stack */
} EnvelopeExts;

/* Pushes the parts of the message that is exactly these bytes, which ipc_scan
 * has found whole: kind, then id, method, arguments; id, error or nil, results;
 * method, arguments, or nil and a text that says why these cannot be taken; id,
 * text. Of "$call" [meta, method, [arguments]] the arguments are meta, method,
 * arguments; of "$invoke" [reference, name, [arguments]] likewise, also inside
 * the other. Returns how many; 0: it is no such message, and a text that says
 * why was pushed. With `spread` the array of a response is its results, else it
 * is the one. `x` gets the extensions, if not NULL. As for ipc_value_decode,
 * `bytes` must stay where they are. */
int ipc_envelope_decode(lua_State *L, const char *bytes, size_t size,
                        const EnvelopeLimits *limits, bool spread,
                        EnvelopeExts *x);

/* --------------------------------------------------------------- encoding */

/* Each puts the beginning of a message; arguments or results follow by
 * ipc_envelope_values, then ipc_encode_end. */
void ipc_envelope_request(Encode *e, uint32_t id);
void ipc_envelope_response(Encode *e, uint32_t id);
void ipc_envelope_notify(Encode *e);

/* The string at `index` as a method's name. */
void ipc_envelope_name(Encode *e, int index);
void ipc_envelope_literal(Encode *e, const char *name);
void ipc_envelope_nil(Encode *e);
void ipc_envelope_array(Encode *e, int count);

/* An array of the values at first ... top, which errors call `root` and a
 * number. 1; 0: as ipc_encode_index. */
int ipc_envelope_values(Encode *e, int first, int top, const char *root);

#endif
