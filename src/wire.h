/* A channel as calls use it: messages of envelope.h go out of one buffer and
 * come into another, straight by the channel's ops. wire.c is below Lua;
 * outgoing.c writes, incoming.c reads, work.c does both at once for the calls
 * that need nothing else, future.c keeps what waits for answers; rpc.c makes
 * wires. */
#ifndef IPC_WIRE_H
#define IPC_WIRE_H

#include <lauxlib.h>
#include <lua.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "buffer.h"
#include "encode.h"
#include "envelope.h"
#include "ipc.h"

/* User values of a wire. */
enum {
  WIRE_UV_CHANNEL = 1,
  WIRE_UV_REFS,    /* special value -> its extension, the type first */
  WIRE_UV_LIST,    /* those in the message that is being encoded */
  WIRE_UV_EXTS,    /* what is called for extensions */
  WIRE_UV_WHY,     /* of `broken` */
  WIRE_UV_PENDING, /* id -> what waits for its answer */
  WIRE_UVS = WIRE_UV_PENDING
};

enum {
  WIRE_EARLY = 16,  /* messages that may go before there are more */
  WIRE_DEPTH = 1000 /* of values: encoding takes some C stack for each */
};

/* Where the channel's unit is the message, each of `out` has its size, a
 * size_t, in front. */
typedef struct Wire {
  Chan *chan; /* kept by a user value */
  Owed owed;  /* answers in `out` that wait for more of them */
  Buffer out; /* encoded, to be sent from `sent` on */
  size_t sent;
  uint32_t messages; /* in it */
  uint32_t serial;   /* counts messages taken: has one gone while Lua ran? */
  Buffer in;         /* of a stream: come, to be taken from `at` on */
  size_t at;
  Scan scan; /* of the message there */
  EnvelopeLimits limits;
  Level *levels;        /* for encoding as deep; NULL: no deeper than usual */
  size_t most;          /* bytes of a message that the peer takes */
  int broken;           /* what receiving ended with; WIRE_UV_WHY says why */
  lua_Integer specials; /* in WIRE_UV_LIST */
  Nanos until;          /* the deadline of the last exchange */
  uint32_t asked;       /* by ask last, if it is still waited for */
  uint32_t awaited;     /* the id that the last exchange was for; 0: none */
  uint32_t last;        /* id of a call that went out */
  uint32_t flying;      /* how many wait for an answer, */
  uint32_t calls;       /* and how many may; 0: flight() was not called */
  Nanos patience;       /* the time that a call has */
  uint32_t current;     /* the id of the call that work runs */
  uint32_t touches;     /* counts who asked for that */
  bool running;         /* work runs one */
  bool answered;        /* and has answered it */
  bool encoding;        /* its results are being written */
  bool passes;          /* it is to run none */
  bool brought;         /* the last message had extensions for exts() */
  bool plain;           /* calls go out that need nothing but the wire */
  bool open;
  bool spread;
  bool refs; /* there is WIRE_UV_REFS */
  bool list; /* there is WIRE_UV_LIST */
  bool exts; /* there is WIRE_UV_EXTS */
} Wire;

/* ---------------------------------------------------------------- system */

/* Sends what is in `out`. 0: all is accepted. EAGAIN, or what went wrong. */
int ipc_wire_send(Wire *w, Chan *c);

/* Lets the other side begin with what is in `out`, if that is enough and costs
 * little: one that is awake. At least a message stays, with which ipc_wire_send
 * wakes it; what is wrong that finds, too. */
void ipc_wire_early(Wire *w);

/* Is the next message of a stream here, whole? As ipc_scan. */
int ipc_wire_look(Wire *w);

/* The message that ipc_wire_look found is taken. */
void ipc_wire_took(Wire *w);

/* Takes what a stream has: 0, or as ipc_chan_next. */
int ipc_wire_pull(Wire *w, Chan *c);

/* Whether the next message is here, as far as can be told without the kernel.
 */
bool ipc_wire_ready(Wire *w);

static inline size_t wire_have(const Wire *w) { return w->in.size - w->at; }

/* ------------------------------------------------------------------- Lua */

/* The wire in slot 1, whose metatable is upvalue 1; raises for anything else.
 */
Wire *ipc_wire_self(lua_State *L);

/* The wire at `index`; raises for anything else. */
Wire *ipc_wire_test(lua_State *L, int index);

/* An id at `index`. */
uint32_t ipc_wire_id(lua_State *L, int index);

/* A message being encoded, between begin and end; the wire is in slot 1. */
typedef struct Outgoing {
  Encode e;
  PackSpecial special;
  Wire *wire;
} Outgoing;

void ipc_wire_begin(lua_State *L, Wire *w, Outgoing *o);

/* Whether it is no longer than the channel and the peer take. */
bool ipc_wire_fits(const Outgoing *o);

/* Pushes true, and perhaps a list of the special values in it; or nil, message,
 * errno of one that is too long, and nothing was appended. */
int ipc_wire_end(lua_State *L, Outgoing *o);

/* What flush answers to that error. */
int ipc_wire_sent(lua_State *L, Wire *w, int err);

/* Sends what is written, as far as that goes; what could not be sent Lua finds
 * again. */
void ipc_wire_try(lua_State *L, Wire *w);

/* There are answers that are held back: whoever waits sends them first. */
void ipc_wire_owe(Wire *w);

/* Slots of what waits: 1 channel, 2 timeout, 3 wire. */
enum { WIRE_TIMEOUT = 2, WIRE_WIRE, WIRE_TOP = WIRE_WIRE };

/* Arranges them: 1 wire, 2 timeout, as a method is called. */
void ipc_wire_arrange(lua_State *L);

/* Pushes the parts of the next message: how many, or -IPC_READ; the wire is at
 * `index`. Also nil, message, errno. */
int ipc_wire_next(lua_State *L, Wire *w, int index, Chan *self);

/* The same if it is in user space and a response; 0: it is not. The wire is in
 * slot 1. */
int ipc_wire_answer(lua_State *L, Wire *w, Chan *self);

/* Whether something waits for that answer; the wire is in slot 1. */
bool ipc_wire_awaits(lua_State *L, uint32_t id);

/* Whatever waits for that answer does so no longer; the wire is at `index`. */
void ipc_wire_forget(lua_State *L, Wire *w, int index, uint32_t id);

extern const luaL_Reg ipc_outgoing_methods[];
extern const luaL_Reg ipc_incoming_methods[];
extern const luaL_Reg ipc_work_methods[];
extern const luaL_Reg ipc_flight_methods[];
extern const luaL_Reg ipc_future_functions[];

#endif
