/* The Lua half that rooms made of rings share: options, opening, passing,
 * views, tickets. */
#ifndef IPC_RINGS_H
#define IPC_RINGS_H

#include "ring.h"

typedef struct RingRoom {
  MemberRoom m;
  const HandleOps *handle; /* with the ipc_ring_ ops */
  const ChanOps *ops;
  const char *const *options;
  /* What is the kind's own: flags, and which of them must be as asked. */
  void (*read)(lua_State *L, int index, SegmentAsk *ask);
  /* Joined: 0, or EAGAIN: again in a moment. */
  int (*begin)(Ring *r);
} RingRoom;

/* RingRoom.m of a room; `file`: names are paths, and nobody alive does not make
 * it stale. */
#define RINGS_MEMBER(NAME, KIND, FILE)                                         \
  {                                                                            \
    .name = (NAME), .type = "ipc." NAME, .kind = (KIND), .file = (FILE),       \
    .member = ipc_rings_member, .begin = ipc_rings_begin,                      \
    .words = ipc_rings_words                                                   \
  }
Member *ipc_rings_member(Handle *h);
int ipc_rings_begin(Handle *h, const Opening *o);
const char *ipc_rings_words(lua_State *L, Handle *h, const Opening *o, int err);

/* Options of every ring; a room's list is these and its own. */
#define RINGS_OPTIONS                                                          \
  "capacity", "size", "count", "keepalive", "writers", MEMBER_OPTIONS

enum { RINGS_CAPACITY = 1 << 20 }; /* bytes, where nobody says */

/* (name, mode, options) -> a channel: by name. */
int ipc_rings_open(lua_State *L, const RingRoom *room);

/* (name, options) -> the path of the name's file; raises what opening it would.
 */
int ipc_rings_place(lua_State *L, const RingRoom *room);

/* The options at `index` -> two ends of a nameless one: who receives, who
 * sends. Pushes 2, or nil, message, errno: the number pushed. */
int ipc_rings_ends(lua_State *L, int index, const RingRoom *room);

/* Room.pair: two rings, each an end's way to the other. */
int ipc_rings_pair(lua_State *L, const RingRoom *room);

/* Room.take. */
int ipc_rings_take(lua_State *L, Given *g, const RingRoom *room);

/* `writers` and `readers`: 1 or "many". */
void ipc_rings_side(lua_State *L, int index, const char *name, uint32_t flag,
                    SegmentAsk *ask);

/* The method remove, of all that have names. */
extern const luaL_Reg ipc_rings_named[];

/* Makes the type of a ring whose messages go to one reader each, with reserve,
 * peek and take, and that of tickets. */
void ipc_rings_setup(lua_State *L, const HandleOps *ops);

#endif
