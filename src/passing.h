/* Handles on their way to another process, beside a message of a unix socket:
 * sendmsg and recvmsg, and handles inside values. */
#ifndef IPC_PASSING_H
#define IPC_PASSING_H

#include "ipc.h"
#include "msgpack.h"

/* Extension type of a handle: [index, kind, unit, maxsize], where index counts
 * the descriptors beside the message from 0. */
enum {
  PASSING_EXT = 0x50,
  PASSING_HANDLES = 16 /* that a socket may bring which came itself so */
};

/* Prepares to encode a value for self, whose writer passes handles: pushes the
 * list that collects them. */
void ipc_passing_start(lua_State *L, const Chan *self, PackForeign *f);

size_t ipc_passing_pack(lua_State *L, int index, PackForeign *f,
                        char bytes[PACK_FOREIGN]);

/* After encoding: whether there were any; the list, which is on top, is theirs
 * then. */
bool ipc_passing_some(lua_State *L);

/* The descriptors of the handles in the list at `index`: 0, E2BIG, EBUSY (bytes
 * are on their way), EBADF (closed). */
int ipc_passing_gather(lua_State *L, int index, int *fds, unsigned *count);

/* What the list at `index` made ready to be sent is not needed: it is there, or
 * it was not sent. */
void ipc_passing_kept(lua_State *L, int index);

/* They are there: the ends among them are closed here. */
void ipc_passing_gone(lua_State *L, Chan *c, int index);

/* Pushes a userdata that owns the message's descriptors from now on, unless the
 * channel gave them to somebody else while it was made (serial). */
void ipc_passing_hold(lua_State *L, Chan *c, const Message *m, uint32_t serial);

int ipc_passing_unpack(lua_State *L, const char *bytes, size_t size,
                       UnpackForeign *f);

/* Closes what nobody asked for, and counts it. */
void ipc_passing_settle(lua_State *L, Chan *c, int index);

/* Turns all that the userdata at `index` holds into handles: pushes the list.
 * Raises on lack of memory only. */
void ipc_passing_list(lua_State *L, Chan *c, int index, bool stream);

/* Checks the list argument of self:sendmsg; raises. */
void ipc_passing_check(lua_State *L, const Chan *self, int index);

/* Methods of sockets: in send.c and recv.c. */
int ipc_passing_send(lua_State *L);
int ipc_passing_recv(lua_State *L);

#endif
