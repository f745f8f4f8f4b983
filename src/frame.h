/* Messages over byte streams, and the streams themselves: what the rooms whose
 * medium is a stream of bytes have in common. A frame is a 4-byte big-endian
 * signed length and the bytes, as Python's multiprocessing.connection writes
 * with send_bytes and Erlang reads as {packet, 4}. One that n descriptors go
 * with, which no other program knows, has 0x80000000 + n in front of that. */
#ifndef IPC_FRAME_H
#define IPC_FRAME_H

#include <sys/uio.h>

#include "ipc.h"

struct Framed;

/* How bytes pass: 0 or an errno; neither blocks. */
typedef struct StreamOps {
  int (*read)(int fd, void *bytes, size_t room, size_t *got); /* *got 0: end */
  int (*write)(int fd, const struct iovec *iov, int count, size_t *put);
  int (*shutdown)(int fd); /* NULL: closing the descriptor does it */
  size_t atomic; /* bytes that one write keeps together among writers; 0 */
  /* For dup: bytes of the room's handle (0: a Framed), and what of it is not
   * the Framed's: 0 or an errno. */
  size_t size;
  int (*copy)(struct Framed *to, const struct Framed *from);
  /* Before anything is received, while f->awaits: 0, or as ChanOps.recv. */
  int (*await)(struct Framed *f);
} StreamOps;

/* The base of a room's handle. The room sets the descriptors (-1: none; equal
 * when one serves both ways) and releases nothing itself. */
typedef struct Framed {
  Chan c;
  const StreamOps *io;
  const struct PacketOps *packets; /* instead, see packet.h; or NULL */
  int rfd, wfd;
  Buffer in;        /* read ahead */
  uint32_t at;      /* bytes of it taken */
  uint32_t scanned; /* bytes behind `at` known to hold no line's end */
  uint64_t skip;    /* bytes of an oversized message still to come */
  bool several;     /* duplicated: others may write, io->atomic at a time */
  bool limited;     /* maxsize was set: it bounds lines too */
  bool whole;       /* packets: one is in `in`, perhaps an empty one */
  bool brings;      /* descriptors can come, wanted or not */
  bool awaits;      /* io->await is to be asked first */
  uint8_t lead;     /* packets: bytes in front of each message */
  uint8_t handles;  /* descriptors that a message may bring; 0: none pass */
  uint8_t head;     /* bytes of the header of the frame in hand */
  uint8_t carried;  /* descriptors of the message in hand */
  struct Parcel *parcel; /* what came beside the bytes; NULL until used */
} Framed;

/* The most a frame can hold. */
#define FRAME_MOST ((size_t)INT32_MAX)

extern const ChanOps ipc_frame_ops;

/* Of these, for rooms whose own differ in sending only. */
int ipc_frame_recv(Chan *c, Message *m);
void ipc_frame_took(Chan *c, size_t size);
int ipc_frame_read(Chan *c, size_t size, bool line, Message *m);

/* For ChanOps: a second handle with descriptors of its own. */
int ipc_frame_dup(lua_State *L, Chan *c);

/* The parcel, made when first asked for; NULL: no memory. */
struct Parcel *ipc_frame_parcel(Framed *f);

/* The same for a handle that the room has made: options and duplicated
 * descriptors. 0 or an errno; nothing is left open then. */
int ipc_frame_copy(Framed *g, Framed *f);

/* Other descriptors instead (-1: as it is), which are closed: receiving goes
 * on after its end, without what came of half a frame. */
void ipc_frame_renew(Framed *f, int rfd, int wfd);

/* A new channel of this kind on the stack, without descriptors. */
Framed *ipc_frame_new(lua_State *L, size_t size, const HandleOps *ops,
                      const StreamOps *io, int mode);

/* HandleOps, ready to use. */
int ipc_frame_descriptor(const Handle *h, int want);
int ipc_frame_ready(Handle *h, int want, bool ask_kernel);
void ipc_frame_close(Handle *h, How how);
/* The maxsize of what comes through c: its own, or, where that is what packets
 * can carry and not what was asked for, what is the default elsewhere. */
size_t ipc_frame_trusts(const Chan *c);

int ipc_frame_give(Handle *h, Given *g);

#endif
