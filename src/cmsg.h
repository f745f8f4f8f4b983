/* Descriptors beside bytes: cmsg(3), unix(7). No Lua. */
#ifndef IPC_CMSG_H
#define IPC_CMSG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#include "sockaddr.h"

enum { CMSG_MOST = 253 /* descriptors of one message, SCM_MAX_FD */ };

/* Descriptors received and not yet taken, in the order they came. */
typedef struct Parcel {
  unsigned limit; /* of one message: `handles` */
  unsigned most;  /* of all together; at most the room there is */
  unsigned count;
  uint64_t strangers; /* came without being asked for, and were closed */
  bool cut; /* some did not arrive since the last look: over the limit, or no
             * descriptor was free */
  uint64_t taken; /* of a stream: bytes taken of all that ever came, */
  struct Batch {
    uint64_t from, to; /* which of them were read when these came, */
    unsigned count;    /* so many, */
  } batch[2];          /* in the order they came */
  int fd[2 * CMSG_MOST];
} Parcel;

/* An empty one. */
void ipc_parcel_start(Parcel *p, unsigned limit, unsigned most);

/* Closes `count` from the one at `from` on, unless taken (-1), and forgets
 * them. How many it closed. */
unsigned ipc_parcel_cut(Parcel *p, unsigned from, unsigned count);

/* The same from the first on. */
unsigned ipc_parcel_drop(Parcel *p, unsigned count);

/* Closes a descriptor of unknown origin; does not wait, as close(2) does for a
 * socket that lingers. */
void ipc_cmsg_discard(int fd);

/* recvmsg(2), never blocking. What comes beside the bytes is appended to the
 * parcel; more than it may hold is closed and counted. Each of parcel, from and
 * marked may be NULL. *flags are the message's; *marked: a mark of
 * ipc_os_mark_packets came along. */
int ipc_cmsg_receive(int fd, void *bytes, size_t room, size_t *got, int *flags,
                     Parcel *p, Sockaddr *from, bool *marked);

/* sendmsg(2), never blocking, never SIGPIPE. `to` may be NULL. */
int ipc_cmsg_send(int fd, const struct iovec *iov, int count, size_t *put,
                  const Sockaddr *to, const int *fds, unsigned fd_count);

#endif
