/* What connecting and listening sockets have in common: the channel, its
 * options, and being bound. Below socket.c and listener.c. */
#ifndef IPC_SOCK_H
#define IPC_SOCK_H

#include "dial.h"
#include "frame.h"
#include "ipc.h"

enum {
  SOCK_HANDLES = 16, /* descriptors a message brings, between our processes */
  SOCK_PATIENCE = 5  /* s until a path's lock is given up */
};

/* What only some sockets need: those on their way, with a name, or with more
 * than one peer. */
typedef struct Extra {
  Setup setup;
  Dial dial;
  Wanted wanted;
  Bound bound;
  Nanos locked; /* since when another process has the path's lock; 0 */
  int waiting;  /* listens for the one client of ipc.open(address, "r"); -1 */
  Sockaddr from, to; /* datagrams: the last peers, and their texts */
  size_t from_size, to_size;
  char from_text[SOCKADDR_TEXT], to_text[SOCKADDR_TEXT];
} Extra;

typedef struct Socket {
  Framed f;
  Extra *x;     /* NULL: a plain one */
  uint8_t type; /* SOCK_STREAM ... */
  bool dialing;
  bool many; /* a datagram socket without a peer of its own */
} Socket;

/* Of its address. */
const char *ipc_sock_scheme(const Socket *s);

extern const HandleOps ipc_sock_handle;

/* Reads the options at `index` for sockets of `scheme`; raises on mistakes. */
Setup ipc_sock_options(lua_State *L, int index, const char *scheme,
                       unsigned handles);

/* A new socket of that kind on the stack, without a descriptor; and what it has
 * once it is on its way, has a name, or many peers: ENOMEM. */
Socket *ipc_sock_new(lua_State *L, const Setup *setup, int mode);
int ipc_sock_extra(Socket *s, const Setup *setup); /* may be NULL */

/* A connected or bound descriptor becomes the socket's. */
int ipc_sock_take(Socket *s, const Setup *setup, int fd);

/* The address in slot `index`; raises when it can be none. */
int ipc_sock_target(lua_State *L, int index, const Setup *s, Target *t);

/* The option `bind`: where the socket itself is to be. */
int ipc_sock_local(lua_State *L, int options, const Setup *s, Sockaddr *a);

/* Who may be at an abstract name is not said by permissions: only our own, and
 * the system's, unless others are allowed. */
void ipc_sock_guard(Setup *s, const Target *t);

/* Slots of connect, listen and open while they wait: 1 the handle, 2 the
 * deadline, 3 the address's text. */
enum { WAY_DEADLINE = 2, WAY_TEXT, WAY_TOP = 3 };

/* Runs the op; the handle is on top, the address in slot 1. */
int ipc_sock_run(lua_State *L, const Op *op, Nanos limit);

/* Binds, looking the name up first. 0, EAGAIN (what to wait for is in x->wanted
 * and h->nap), or what went wrong. */
int ipc_sock_bind(lua_State *L, Handle *h, Extra *x, int *fd);

/* Releases the handle whose `call` failed, and says what is wrong with the
 * address, or with what stands there. */
int ipc_sock_failed(lua_State *L, Handle *h, const Extra *x, const char *call,
                    int err);

/* What to say of a socket whose ipc_sock_take answered EMSGSIZE. */
const char *ipc_sock_too_big(lua_State *L, const Socket *s, size_t want);

/* The same without a handle. */
int ipc_sock_fail(lua_State *L, const char *call, int err, const char *scheme,
                  const char *where, const char *why);

/* What a descriptor that came from elsewhere is. */
int ipc_sock_look(int fd, Setup *s, bool *listens);

#endif
