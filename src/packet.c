/* Messages over packet media; see packet.h. No Lua. */
#include "prefix.h"

#include <errno.h>
#include <string.h>

#include "cmsg.h"
#include "ipc.h"
#include "os.h"
#include "packet.h"

/* read(2) cuts a packet to the room it is given and does not say so; that of a
 * pipe is no longer than this, so it comes whole and is measured then. */
enum {
  PACKET_LEAST = 4096,
  PACKET_COPY = 4096 /* bytes copied to go out in one piece */
};

int ipc_packet_recv(Chan *c, Message *m) {
  Framed *f = (Framed *)c;
  size_t got = 0, room = c->limit + f->lead;
  if (!f->whole) {
    bool end = false;
    if (c->ended)
      return c->ended;
    if (f->rfd < 0)
      return EPIPE;
    /* As large as a packet can be; untouched pages of it cost nothing. */
    f->in.size = 0;
    if (f->awaits) {
      int waits = f->io->await(f);
      if (waits)
        return waits;
    }
    if (room < PACKET_LEAST)
      room = PACKET_LEAST;
    int err = ipc_buffer_reserve(&f->in, room);
    if (err)
      return err;
    err = f->packets->receive(f, f->in.bytes, room, &got, &end);
    if (err == ECONNRESET) /* told once, before what was sent: unix(7) */
      err = f->packets->receive(f, f->in.bytes, room, &got, &end);
    if (err == ECONNRESET || (!err && end))
      return c->ended = EPIPE;
    m->size = got > f->lead ? got - f->lead : 0;
    if (err)
      return err;
    if (m->size > c->limit)
      return EMSGSIZE;
    f->in.size = got;
    f->whole = true;
  }
  m->bytes = f->in.bytes + f->lead;
  m->size = f->in.size > f->lead ? f->in.size - f->lead : 0;
  if (f->parcel) {
    m->fds = f->parcel->fd;
    m->fd_count = f->parcel->count;
  }
  if (f->packets->from)
    f->packets->from(f, m);
  return 0;
}

void ipc_packet_took(Chan *c, size_t size) {
  Framed *f = (Framed *)c;
  (void)size;
  if (f->parcel)
    c->strangers += ipc_parcel_drop(f->parcel, f->parcel->count);
  f->whole = false;
  f->in.size = 0;
}

int ipc_packet_send(Chan *c, const Message *m) {
  Framed *f = (Framed *)c;
  char small[PACKET_COPY];
  struct iovec iov[2] = {{small, f->lead},
                         {(void *)(uintptr_t)m->bytes, m->size}};
  if (f->wfd < 0)
    return EPIPE;
  if (f->lead == 0)
    return f->packets->send(f, iov + 1, 1, m);
  memset(small, 0, f->lead);
  if (m->size > (size_t)PACKET_COPY - f->lead)
    return f->packets->send(f, iov, 2, m);
  /* One copy costs less than a second piece. */
  if (m->size)
    memcpy(small + f->lead, m->bytes, m->size);
  iov[0].iov_len += m->size;
  return f->packets->send(f, iov, 1, m);
}

int ipc_packet_flush(Chan *c) {
  (void)c; /* a packet is out or not */
  return 0;
}

int ipc_packet_shutdown(Chan *c) { return ipc_frame_ops.shutdown(c); }

const ChanOps ipc_packet_ops = {.recv = ipc_packet_recv,
                                .took = ipc_packet_took,
                                .send = ipc_packet_send,
                                .flush = ipc_packet_flush,
                                .shutdown = ipc_packet_shutdown,
                                .dup = ipc_frame_dup};

int ipc_packet_ready(Handle *h, int want, bool ask_kernel) {
  Framed *f = (Framed *)h;
  if (!f->packets || want == IPC_WRITE)
    return ipc_frame_ready(h, want, ask_kernel);
  if (f->c.held)
    return f->c.held;
  if (f->whole)
    return 0;
  if (!ask_kernel)
    return f->c.ended ? f->c.ended : EAGAIN;
  Message m = {0};
  int err = ipc_packet_recv(&f->c, &m);
  /* For the next recv to report: it is gone. So is what a socket tells once, as
   * that nobody received the datagram before; the end and a lack of memory come
   * again by themselves. */
  if (err && err != EAGAIN && err != ENOMEM && !f->c.ended) {
    f->c.held = err;
    f->c.held_size = m.size;
  }
  return err;
}

void ipc_packet_make(Framed *f, const ChanOps *ops, const PacketOps *packets,
                     int lead, size_t limit) {
  f->c.ops = ops;
  f->c.ahead = false;
  f->packets = packets;
  f->lead = (uint8_t)lead;
  f->c.limit = limit;
}
