/* Messages over byte streams, and the streams themselves: what the rooms whose
 * medium is a stream of bytes have in common. A frame is a 4-byte big-endian
 * signed length and the bytes, as Python's multiprocessing.connection writes
 * with send_bytes and Erlang reads as {packet, 4}. */
#ifndef IPC_FRAME_H
#define IPC_FRAME_H

#include <sys/uio.h>

#include "ipc.h"

/* How bytes pass: 0 or an errno; neither blocks. */
typedef struct StreamOps {
  int (*read)(int fd, void *bytes, size_t room, size_t *got); /* *got 0: end */
  int (*write)(int fd, const struct iovec *iov, int count, size_t *put);
  int (*shutdown)(int fd); /* NULL: closing the descriptor does it */
  size_t atomic; /* bytes that one write keeps together among writers; 0 */
} StreamOps;

/* The base of a room's handle. The room sets the descriptors (-1: none; equal
 * when one serves both ways) and releases nothing itself. */
typedef struct Framed {
  Chan c;
  const StreamOps *io;
  const struct PacketOps *packets; /* instead, see packet.h; or NULL */
  int rfd, wfd;
  Buffer in;      /* read ahead */
  size_t at;      /* bytes of it taken */
  size_t scanned; /* bytes behind `at` known to hold no line's end */
  size_t atomic;  /* io->atomic once the end was duplicated; 0 */
  bool limited;   /* maxsize was set: it bounds lines too */
  bool whole;     /* packets: one is in `in`, perhaps an empty one */
  uint8_t lead;   /* packets: bytes in front of each message */
  uint64_t skip;  /* bytes of an oversized message still to come */
} Framed;

/* The most a frame can hold. */
#define FRAME_MOST ((size_t)INT32_MAX)

extern const ChanOps ipc_frame_ops;

/* For ChanOps: a second handle with descriptors of its own. */
int ipc_frame_dup(lua_State *L, Chan *c);

/* A new channel of this kind on the stack, without descriptors. */
Framed *ipc_frame_new(lua_State *L, size_t size, const HandleOps *ops,
                      const StreamOps *io, int mode);

/* HandleOps, ready to use. */
int ipc_frame_descriptor(const Handle *h, int want);
int ipc_frame_ready(Handle *h, int want, bool ask_kernel);
void ipc_frame_close(Handle *h, How how);

#endif
