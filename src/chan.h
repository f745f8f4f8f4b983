/* What chan.c, send.c and recv.c share; rooms do not include it. */
#ifndef IPC_CHAN_H
#define IPC_CHAN_H

#include "ipc.h"

extern const luaL_Reg ipc_send_methods[];
extern const luaL_Reg ipc_recv_methods[];

/* The channel a method was called on; the second and third raise unless it
 * sends, receives. */
Chan *ipc_chan_self(lua_State *L);
Chan *ipc_chan_sender(lua_State *L);
Chan *ipc_chan_receiver(lua_State *L);

/* Whether a call may go straight to the ops, which find that there is nothing
 * to wait for more often than not: `part` of self can be used, and neither a
 * task nor a poller waits for it. */
static inline bool ipc_chan_direct(lua_State *L, const Chan *self,
                                   const Chan *part) {
  State *S = self->h.state;
  if (!ipc_handle_usable(&self->h) || !ipc_handle_usable(&part->h) ||
      part->h.queue || part->h.observers)
    return false;
  if (L == S->main)
    S->hook = lua_gethook(L);
  return true;
}

/* Raises on a tag where there is none, perhaps a timeout in its place. */
void ipc_chan_check_tag(lua_State *L, const Chan *c, int index, bool sends);

/* What to send by the tag argument at `index`, checked before. */
void ipc_chan_tag(lua_State *L, const Tags *tags, int index, Message *m);

/* The next message into *m: 0, or as ops->recv, an error found by recvmany
 * first. */
int ipc_chan_next(Chan *c, Message *m);

/* What a call that receives answers to that error, of a message of `size`
 * bytes: -IPC_READ, or the number of results pushed. */
int ipc_chan_received(lua_State *L, Chan *self, const char *call, int err,
                      size_t size);

/* The message just copied to Lua is taken. */
void ipc_chan_took(Chan *c, size_t size);

/* Pushes the userdata of `c`, which is `self` (in slot 1) or a part of it. */
void ipc_chan_push(lua_State *L, Chan *self, Chan *c);

/* Ties the string at `index` to the rest that points into it; lets go of one
 * whose bytes are out. */
void ipc_chan_anchor(lua_State *L, Chan *self, Chan *c, int index);
void ipc_chan_unanchor(lua_State *L, Chan *self, Chan *c);

/* The peer is gone, whichever way the system says so: EPIPE; else err. */
int ipc_chan_errno(int err);

#endif
