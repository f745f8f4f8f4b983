/* Sockets on their way: looking up, binding, connecting, one step at a time.
 * No Lua, and nothing waits: EAGAIN says what to poll, and how long at most. */
#ifndef IPC_DIAL_H
#define IPC_DIAL_H

#include <stdbool.h>
#include <stdint.h>

#include "ipc.h"
#include "lookup.h"
#include "sockaddr.h"

enum { SETUP_UIDS = 32 };

/* What a socket is to be, whichever way it comes to be. */
typedef struct Setup {
  const char *scheme; /* "unix", "tcp", "udp" */
  int type;           /* SOCK_STREAM ... */
  bool stream;        /* unit = "stream" */
  bool nodelay, keepalive;
  unsigned user_timeout; /* ms; 0: the system's */
  unsigned handles;
  size_t capacity, maxsize; /* bytes; 0: the system's */
  int backlog;
  unsigned mode; /* permissions of what is made */
  int create;    /* IPC_CREATE ... */
  unsigned uid_count;
  bool uids_checked;
  long uids[SETUP_UIDS];
} Setup;

/* Whether the process at the other end may be there: EACCES if not. */
int ipc_setup_allows(const Setup *s, int fd);

/* Sets what a connected socket is to have. */
int ipc_setup_apply(const Setup *s, int fd);

/* What somebody who waits polls: -1: nothing. */
typedef struct Wanted {
  int fd;
  int want;     /* IPC_READ or IPC_WRITE */
  uint32_t nap; /* us, at most; 0: as long as it takes */
} Wanted;

/* A name and the addresses it stands for. */
typedef struct Target {
  char host[SOCKADDR_HOST], port[SOCKADDR_PORT];
  Sockaddr list[LOOKUP_MOST];
  size_t count; /* 0: still to be looked up */
  Lookup *lookup;
  const char *why; /* it failed: more than an errno says; or NULL */
} Target;

/* Reads the part of an address behind the scheme. 0 or an errno. */
int ipc_target_parse(Target *t, const Setup *s, const char *text, size_t size);
/* The lookup stays until the end: somebody polls it. */
int ipc_target_step(Target *t, const Setup *s, Wanted *w);
void ipc_target_end(Target *t, bool forked);

/* A name in the file system that a socket has. */
typedef struct Bound {
  bool there;
  uint64_t device, inode;
  char path[sizeof(struct sockaddr_storage)];
} Bound;

/* A connection being made. */
typedef struct Dial {
  Target to;
  Sockaddr local;     /* to bind to first; size 0: none */
  Bound bound;        /* if that is a path */
  Nanos retry, until; /* how long to wait for a listener, and when that ends */
  size_t at;          /* the address tried now */
  int fd;             /* that it is tried on; -1 */
  bool waits;         /* the kernel will tell */
  bool misplaced;     /* its own address is what failed */
  uint32_t nap;
} Dial;

/* 0: *fd is connected, the caller's. The socket polled before is still open
 * when a step fails or goes on to another: it is in *stale (-1: none) for the
 * caller to close, once nobody polls it. */
int ipc_dial_step(Dial *d, const Setup *s, Nanos now, Wanted *w, int *fd,
                  int *stale);
void ipc_dial_end(Dial *d, bool forked);

/* What is added to a path for the lock's file. */
#define IPC_BINDING ".binding"

/* A new socket bound to `a`, listening if it can. A path that a dead process
 * left is taken over, a live one never. EAGAIN: another process is just doing
 * the same. EADDRINUSE, EEXIST (no socket, or create = "new"). */
int ipc_bind(const Setup *s, const Sockaddr *a, int *fd, Bound *b);

/* Removes the name, if it is still this socket's. Before closing that. */
void ipc_bound_remove(Bound *b);

#endif
