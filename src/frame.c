/* Messages over byte streams; see frame.h. No Lua below the constructors. */
#include "prefix.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cmsg.h"
#include "frame.h"
#include "ipc.h"
#include "os.h"

enum {
  FRAME_HEAD = 4,         /* bytes of a length */
  FRAME_HEADS = 8,        /* and of a number of descriptors before it */
  FRAME_FIRST = 4 << 10,  /* bytes read at once, to begin with */
  FRAME_AHEAD = 64 << 10, /* and at the most, beyond the frame in hand */
  FRAME_COPY = 8 << 10,   /* up to here one copy beats a second iovec */
  FRAME_BATCH = 64 << 10, /* bytes gathered for one write */
  FRAME_LINE = 1 << 20,   /* bytes of a line, unless maxsize is set */
  FRAME_TURNS = 64        /* reads before the caller may look at the clock */
};

static void frame_head(char *head, size_t size) {
  head[0] = (char)(size >> 24 & 0xff);
  head[1] = (char)(size >> 16 & 0xff);
  head[2] = (char)(size >> 8 & 0xff);
  head[3] = (char)(size & 0xff);
}

static uint32_t frame_length(const char *head) {
  const unsigned char *h = (const unsigned char *)head;
  return (uint32_t)h[0] << 24 | (uint32_t)h[1] << 16 | (uint32_t)h[2] << 8 |
         h[3];
}

/* ---------------------------------------------------------------- reading */

static size_t frame_have(const Framed *f) { return f->in.size - f->at; }

/* Descriptors come with a byte of a stream, but recvmsg(2) says only that it
 * was one of those just read. A frame's are those that came with its first
 * byte; no more than two lots can be waiting, the frame in hand's and the next
 * one's. Whatever else comes is closed at once. */
static void frame_close_batch(Framed *f, unsigned i) {
  struct Batch *b = f->parcel->batch;
  f->c.strangers +=
      ipc_parcel_cut(f->parcel, i > 0 ? b[0].count : 0, b[i].count);
  if (i == 0)
    b[0] = b[1];
  b[1].count = 0;
}

/* Whether descriptors came with the byte that is next. */
static bool frame_is_beside(const Framed *f) {
  const Parcel *p = f->parcel;
  return p && p->batch[0].count > 0 && p->batch[0].from <= p->taken;
}

/* A frame is not all there: only its own can be. */
static void frame_weed(Framed *f, bool own) {
  if (!f->parcel)
    return;
  if (f->parcel->batch[1].count > 0)
    frame_close_batch(f, 1);
  if (f->parcel->batch[0].count > 0 && !(own && frame_is_beside(f)))
    frame_close_batch(f, 0);
}

static void frame_note(Framed *f, size_t got) {
  struct Batch *b = f->parcel->batch;
  unsigned came = f->parcel->count - b[0].count - b[1].count;
  uint64_t from = f->parcel->taken + frame_have(f);
  if (came == 0)
    return;
  if (f->c.stream && b->count > 0) { /* no frames: all go together */
    b->to = from + got;
    b->count += came;
    return;
  }
  b[b->count > 0] = (struct Batch){from, from + got, came};
}

/* Nobody will ask any more for what came with bytes that are taken. */
static void frame_pass(Framed *f, size_t size) {
  Parcel *p = f->parcel;
  p->taken += size;
  while (p->batch[0].count > 0 && p->batch[0].to <= p->taken)
    frame_close_batch(f, 0);
}

static void frame_take(Framed *f, size_t size) {
  f->at += (uint32_t)size;
  f->scanned = 0;
  if (f->parcel)
    frame_pass(f, size);
  if (f->at < f->in.size)
    return;
  /* Empty: a buffer that a large message made is not kept for small ones. */
  if (f->in.room > 4 * FRAME_AHEAD && f->in.size < f->in.room / 8)
    ipc_buffer_free(&f->in);
  f->in.size = 0;
  f->at = 0;
}

/* Makes the buffer able to take more of something `need` bytes long in all. It
 * grows with what has come, not with what was announced. */
static int frame_room(Framed *f, size_t need) {
  size_t have = frame_have(f);
  if (f->at > 0 && f->in.room - f->in.size < f->in.room / 2) {
    memmove(f->in.bytes, f->in.bytes + f->at, have);
    f->in.size = have;
    f->at = 0;
  }
  if (f->in.size < f->in.room)
    return 0;
  size_t room = f->in.room ? f->in.room * 2 : FRAME_FIRST;
  size_t enough = need > FRAME_AHEAD ? need + FRAME_HEADS : FRAME_AHEAD;
  if (room > enough && enough > f->in.room)
    room = enough;
  return ipc_buffer_resize(&f->in, room);
}

struct Parcel *ipc_frame_parcel(Framed *f) {
  bool lone = f->c.stream || f->packets; /* one lot at a time */
  if (!f->parcel) {
    f->parcel = malloc(sizeof *f->parcel);
    if (f->parcel)
      ipc_parcel_start(f->parcel, f->handles,
                       lone ? f->handles : 2U * f->handles);
  }
  return f->parcel;
}

static int frame_receive(Framed *f, size_t room, size_t *got) {
  int flags;
  char *to = f->in.bytes + f->in.size;
  Parcel none, *p = &none;
  if (!f->brings)
    return f->io->read(f->rfd, to, room, got);
  if (f->handles)
    p = ipc_frame_parcel(f);
  else
    ipc_parcel_start(p, 0, 0);
  if (!p)
    return ENOMEM;
  int err = ipc_cmsg_receive(f->rfd, to, room, got, &flags, p, NULL, NULL);
  f->c.strangers += (uint32_t)p->strangers;
  p->strangers = 0;
  if (!err && f->handles)
    frame_note(f, *got);
  return err;
}

/* Reads once. 0: there is more than before. EAGAIN, EPIPE at the end. */
static int frame_fill(Framed *f, size_t need) {
  if (f->c.ended)
    return f->c.ended;
  if (f->rfd < 0)
    return EPIPE;
  int err = f->awaits ? f->io->await(f) : 0;
  if (!err)
    err = frame_room(f, need);
  if (err)
    return err;
  size_t got = 0, room = f->in.room - f->in.size;
  err = frame_receive(f, room, &got);
  /* ETIMEDOUT: TCP has given the peer up, which no deadline of ours is. */
  if (err == ECONNRESET || err == ETIMEDOUT || (err == 0 && got == 0))
    return f->c.ended = EPIPE;
  if (err)
    return err;
  f->in.size += got;
  if (got == room && f->in.room < FRAME_AHEAD) /* there is more: read more */
    (void)ipc_buffer_reserve(&f->in, f->in.room);
  return 0;
}

/* Drops what came of an oversized message. */
static void frame_skip(Framed *f) {
  size_t have = frame_have(f);
  size_t now = f->skip < have ? (size_t)f->skip : have;
  f->skip -= now;
  frame_take(f, now);
}

/* A whole frame in the buffer? 0, EAGAIN, or what is wrong with it. */
static int frame_look(Framed *f, size_t *length) {
  *length = 0;
  if (f->skip)
    frame_skip(f);
  if (f->skip || frame_have(f) < FRAME_HEAD) {
    frame_weed(f, true);
    return EAGAIN;
  }
  uint32_t n = frame_length(f->in.bytes + f->at);
  f->head = FRAME_HEAD;
  f->carried = 0;
  if (f->c.passes && n > FRAME_MOST + 1 && n <= FRAME_MOST + 1 + CMSG_MOST) {
    if (frame_have(f) < FRAME_HEADS) {
      frame_weed(f, true);
      return EAGAIN;
    }
    f->head = FRAME_HEADS;
    f->carried = f->handles ? (uint8_t)(n & FRAME_MOST) : 0;
    n = frame_length(f->in.bytes + f->at + FRAME_HEAD);
  }
  *length = n;
  if (n > FRAME_MOST)
    return EBADMSG;
  if (n > f->c.limit)
    return EMSGSIZE;
  if (f->carried > f->handles)
    return E2BIG;
  if (f->carried > (frame_is_beside(f) ? f->parcel->batch[0].count : 0))
    return EMFILE;
  if (frame_have(f) - f->head >= n)
    return 0;
  frame_weed(f, f->carried > 0);
  return EAGAIN;
}

/* Closes what came with the message in hand and was not taken. */
static void frame_drop(Framed *f) {
  if (f->carried > 0 && frame_is_beside(f))
    frame_close_batch(f, 0);
  f->carried = 0;
}

/* The frame in hand will not be delivered. */
static void frame_refuse(Framed *f, size_t length) {
  frame_drop(f);
  f->skip = (uint64_t)length + f->head;
  frame_skip(f);
}

int ipc_frame_recv(Chan *c, Message *m) {
  Framed *f = (Framed *)c;
  for (int turn = 0; turn < FRAME_TURNS; turn++) {
    int err;
    if (c->stream) {
      m->bytes = f->in.bytes + f->at;
      m->size = frame_have(f) < FRAME_AHEAD ? frame_have(f) : FRAME_AHEAD;
      err = m->size ? 0 : EAGAIN;
    } else {
      err = frame_look(f, &m->size);
      m->bytes = f->in.bytes + f->at + f->head;
      if (err == EMSGSIZE || err == E2BIG || err == EMFILE)
        frame_refuse(f, m->size);
    }
    if (err == 0 && f->parcel) {
      if (c->stream)
        f->carried = (uint8_t)f->parcel->count;
      m->fds = f->parcel->fd;
      m->fd_count = f->carried;
    }
    if (err != EAGAIN)
      return err;
    err = frame_fill(f, m->size);
    if (err)
      return err;
  }
  return EAGAIN;
}

void ipc_frame_took(Chan *c, size_t size) {
  Framed *f = (Framed *)c;
  frame_drop(f);
  frame_take(f, size + (c->stream ? 0 : f->head));
}

int ipc_frame_read(Chan *c, size_t size, bool line, Message *m) {
  Framed *f = (Framed *)c;
  size_t most = c->limit;
  if (line && !f->limited && most > FRAME_LINE)
    most = FRAME_LINE;
  for (int turn = 0; turn < FRAME_TURNS; turn++) {
    size_t have = frame_have(f);
    const char *bytes = f->in.bytes + f->at, *end = NULL;
    if (line && have > f->scanned)
      end = memchr(bytes + f->scanned, '\n', have - f->scanned);
    if (line)
      m->size = end ? (size_t)(end - bytes) + 1 : have;
    else
      m->size = size == SIZE_MAX ? have : size;
    m->bytes = bytes;
    bool whole = line ? end != NULL : have >= size;
    if (whole ? m->size > most : size == SIZE_MAX && have > most) {
      m->size = most;
      return EMSGSIZE;
    }
    if (whole)
      return 0;
    if (line)
      f->scanned = (uint32_t)have;
    int err = frame_fill(f, size == SIZE_MAX ? have + FRAME_AHEAD : size);
    if (err == EPIPE && (line ? have > 0 : size == SIZE_MAX)) {
      /* The last line needs no end, "a" takes what there is: where it is now,
       * the buffer may have moved. */
      m->bytes = f->in.bytes + f->at;
      return 0;
    }
    if (err)
      return err;
  }
  return EAGAIN;
}

/* ---------------------------------------------------------------- writing */

/* Writes the rest. 0: it is out. */
static int frame_flush(Chan *c) {
  Framed *f = (Framed *)c;
  Rest *r = &c->rest;
  while (r->size + r->headed > 0) {
    struct iovec iov[2] = {{r->head, r->headed},
                           {(void *)(uintptr_t)r->bytes, r->size}};
    size_t put = 0;
    int first = r->headed ? 0 : 1;
    int err =
        f->wfd < 0 ? EPIPE : f->io->write(f->wfd, iov + first, 2 - first, &put);
    if (err == EAGAIN || err == ENOBUFS || err == ENOMEM)
      return EAGAIN; /* the kernel lacks memory now: later */
    if (err) {
      ipc_chan_end_rest(c, err);
      return err;
    }
    size_t head = put < r->headed ? put : r->headed;
    memmove(r->head, r->head + head, r->headed - head);
    r->headed = (uint8_t)(r->headed - head);
    r->bytes += put - head;
    r->size -= put - head;
  }
  ipc_chan_end_rest(c, 0);
  return 0;
}

/* One write. *put is how much of head and message is out. */
static int frame_write(Framed *f, const char *head, size_t headed,
                       const Message *m, size_t *put) {
  if (f->wfd < 0)
    return EPIPE;
  if (m->fd_count) {
    struct iovec both[2] = {{(void *)(uintptr_t)head, headed},
                            {(void *)(uintptr_t)m->bytes, m->size}};
    int from = headed ? 0 : 1;
    return ipc_cmsg_send(f->wfd, both + from, 2 - from, put, NULL, m->fds,
                         m->fd_count);
  }
  if (m->size <= FRAME_COPY - FRAME_HEAD) {
    char all[FRAME_COPY];
    memcpy(all, head, headed);
    if (m->size)
      memcpy(all + headed, m->bytes, m->size);
    struct iovec iov = {all, headed + m->size};
    return f->io->write(f->wfd, &iov, 1, put);
  }
  struct iovec iov[2] = {{(void *)(uintptr_t)head, headed},
                         {(void *)(uintptr_t)m->bytes, m->size}};
  int first = headed ? 0 : 1;
  return f->io->write(f->wfd, iov + first, 2 - first, put);
}

/* Notes what is left of a message of which `put` bytes are out. */
static void frame_rest(Framed *f, const char *head, size_t headed,
                       const Message *m, size_t put) {
  if (put < headed)
    ipc_chan_set_rest(&f->c, head + put, headed - put, m->bytes, m->size);
  else
    ipc_chan_set_rest(&f->c, head, 0, m->bytes + (put - headed),
                      m->size - (put - headed));
}

/* Goes on with a rest just noted, as far as it goes now. */
static int frame_accepted(Framed *f) {
  int err = frame_flush(&f->c);
  return err == EAGAIN ? EINPROGRESS : err;
}

static int frame_send(Chan *c, const Message *m) {
  Framed *f = (Framed *)c;
  char head[FRAME_HEADS];
  size_t put = 0, headed = c->stream ? 0 : FRAME_HEAD;
  int err = c->rest.link ? frame_flush(c) : 0;
  if (err)
    return err;
  if (headed && m->fd_count) {
    frame_head(head, (size_t)FRAME_MOST + 1 + m->fd_count);
    frame_head(head + FRAME_HEAD, m->size);
    headed = FRAME_HEADS;
  } else if (headed) {
    frame_head(head, m->size);
  } else if (m->size == 0) {
    return m->fd_count ? EINVAL : 0; /* descriptors go with a byte */
  }
  err = frame_write(f, head, headed, m, &put);
  if (err)
    return err;
  if (put == headed + m->size)
    return 0;
  frame_rest(f, head, headed, m, put);
  return frame_accepted(f);
}

/* How many of the messages began in the first `put` bytes; *left is what of
 * that is not the last one's. */
static size_t frame_begun(const Message *m, size_t headed, size_t put,
                          size_t *left) {
  size_t n = 0;
  while (put >= headed + m[n].size && put > 0) {
    put -= headed + m[n].size;
    n++;
  }
  *left = put;
  return n;
}

static int frame_sendmany(Chan *c, const Message *m, size_t count,
                          size_t *sent) {
  Framed *f = (Framed *)c;
  Buffer *b = &c->h.state->scratch;
  size_t headed = c->stream ? 0 : FRAME_HEAD;
  *sent = 0;
  int err = c->rest.link ? frame_flush(c) : 0;
  while (!err && *sent < count) {
    const Message *first = m + *sent;
    size_t n = 0, left = 0, put = 0;
    b->size = 0;
    while (*sent + n < count && first[n].size <= FRAME_COPY &&
           b->size < FRAME_BATCH &&
           (n == 0 || !f->several || f->io->atomic == 0 ||
            b->size + headed + first[n].size <= f->io->atomic)) {
      if (ipc_buffer_reserve(b, headed + first[n].size))
        break;
      if (headed)
        frame_head(b->bytes + b->size, first[n].size);
      if (first[n].size)
        memcpy(b->bytes + b->size + headed, first[n].bytes, first[n].size);
      b->size += headed + first[n].size;
      n++;
    }
    if (n < 2 || b->size == 0) { /* too large to copy, or the only one */
      err = frame_send(c, first);
      if (err == 0 || err == EINPROGRESS)
        ++*sent;
      continue;
    }
    struct iovec iov = {b->bytes, b->size};
    err = f->wfd < 0 ? EPIPE : f->io->write(f->wfd, &iov, 1, &put);
    if (err)
      return err;
    size_t begun = put == b->size ? n : frame_begun(first, headed, put, &left);
    *sent += begun;
    if (left > 0) {
      char head[FRAME_HEAD];
      frame_head(head, first[begun].size);
      frame_rest(f, head, headed, &first[begun], left);
      ++*sent;
      err = frame_accepted(f);
    } else if (begun < n) {
      err = EAGAIN;
    }
  }
  return err;
}

static int frame_shutdown(Chan *c) {
  Framed *f = (Framed *)c;
  int fd = f->wfd;
  f->wfd = -1;
  if (fd < 0)
    return 0;
  if (f->io->shutdown && f->rfd == fd)
    return f->io->shutdown(fd);
  close(fd);
  return 0;
}

int ipc_frame_copy(Framed *g, Framed *f) {
  Chan *c = &f->c;
  g->io = f->io;
  g->packets = f->packets;
  g->rfd = g->wfd = -1;
  g->limited = f->limited;
  /* From now on there may be several writers. */
  f->several = g->several = true;
  g->lead = f->lead;
  g->handles = f->handles;
  g->brings = f->brings;
  g->c.timeout = c->timeout;
  g->c.linger = c->linger;
  g->c.limit = c->limit;
  g->c.stream = c->stream;
  g->c.ahead = c->ahead;
  g->c.shut = c->shut;
  g->c.spin[0].budget = g->c.spin[1].budget = c->spin[0].budget;
  g->c.passes = c->passes;
  int err = f->rfd >= 0 ? ipc_os_dup(f->rfd, &g->rfd) : 0;
  if (!err && f->io->copy)
    err = f->io->copy(g, f);
  if (f->wfd == f->rfd)
    g->wfd = g->rfd;
  else if (!err && f->wfd >= 0)
    err = ipc_os_dup(f->wfd, &g->wfd);
  if (err && g->rfd >= 0) {
    close(g->rfd);
    g->rfd = -1;
  }
  return err;
}

int ipc_frame_dup(lua_State *L, Chan *c) {
  Framed *f = (Framed *)c;
  int waits = f->awaits ? f->io->await(f) : 0;
  if (waits && waits != EAGAIN)
    return waits;
  if (f->in.size > 0 || f->whole || f->skip || waits ||
      (f->parcel && f->parcel->count > 0))
    return EBUSY;
  Framed *g =
      ipc_chan_new(L, f->io->size ? f->io->size : sizeof *g, c->h.ops, c->ops,
                   (c->reader ? IPC_READ : 0) | (c->writer ? IPC_WRITE : 0));
  int err = ipc_frame_copy(g, f);
  if (err) {
    lua_pop(L, 1);
    return err;
  }
  ipc_handle_open(&g->c.h);
  return 0;
}

/* The whole frames at the beginning of what was read ahead are kept. */
static void frame_keep_whole(Framed *f) {
  size_t at = f->at;
  while (f->in.size - at >= FRAME_HEAD) {
    uint32_t n = frame_length(f->in.bytes + at);
    if (n > FRAME_MOST || f->in.size - at - FRAME_HEAD < n)
      break;
    at += FRAME_HEAD + n;
  }
  f->in.size = at;
  f->skip = 0;
  frame_take(f, 0);
}

void ipc_frame_renew(Framed *f, int rfd, int wfd) {
  int *const mine[] = {&f->rfd, &f->wfd};
  const int others[] = {rfd, wfd};
  if (f->c.ended && !f->c.stream)
    frame_keep_whole(f);
  for (int i = 0; i < 2; i++) {
    if (others[i] < 0)
      continue;
    if (*mine[i] >= 0)
      close(*mine[i]);
    *mine[i] = others[i];
  }
  f->c.ended = f->c.failed = 0;
}

const ChanOps ipc_frame_ops = {.recv = ipc_frame_recv,
                               .took = ipc_frame_took,
                               .send = frame_send,
                               .sendmany = frame_sendmany,
                               .flush = frame_flush,
                               .shutdown = frame_shutdown,
                               .read = ipc_frame_read,
                               .dup = ipc_frame_dup};

/* ----------------------------------------------------------------- handle */

int ipc_frame_descriptor(const Handle *h, int want) {
  const Framed *f = (const Framed *)h;
  return want == IPC_WRITE ? f->wfd : f->rfd;
}

static int frame_poll(int fd, short events) {
  struct pollfd p = {fd, events, 0};
  size_t ready = 0;
  int err = fd < 0 ? EPIPE : ipc_os_poll(&p, 1, 0, &ready);
  if (err)
    return err == EINTR ? EAGAIN : err;
  return ready ? 0 : EAGAIN;
}

int ipc_frame_ready(Handle *h, int want, bool ask_kernel) {
  Framed *f = (Framed *)h;
  Chan *c = &f->c;
  if (want == IPC_WRITE) {
    if (c->failed || (c->shut && !c->rest.link))
      return EPIPE;
    if (!ask_kernel)
      return EAGAIN;
    int err = c->rest.link ? frame_flush(c) : 0;
    return err ? err : frame_poll(f->wfd, POLLOUT);
  }
  if (c->held)
    return c->held;
  for (int turn = 0; turn < FRAME_TURNS; turn++) {
    size_t length = 0;
    int err = 0;
    if (!c->stream)
      err = frame_look(f, &length);
    else if (frame_have(f) == 0)
      err = EAGAIN;
    if (err == EAGAIN && c->ended)
      return c->ended;
    if (err != EAGAIN || !ask_kernel)
      return err;
    err = frame_fill(f, length);
    if (err)
      return err;
  }
  return EAGAIN;
}

size_t ipc_frame_trusts(const Chan *c) {
  const Framed *f = (const Framed *)c;
  return f->packets && !f->limited && c->limit < IPC_LIMIT ? IPC_LIMIT
                                                           : c->limit;
}

int ipc_frame_give(Handle *h, Given *g) {
  Framed *f = (Framed *)h;
  *g = (Given){.kind = strchr(h->ops->type, '.') + 1,
               .stream = f->c.stream,
               .lead = f->brings ? f->lead : 0, /* pipes always have it */
               .limit = f->c.limit,
               .handles = f->handles};
  if (f->rfd >= 0)
    g->fd[g->count++] = f->rfd;
  if (f->wfd >= 0 && f->wfd != f->rfd)
    g->fd[g->count++] = f->wfd;
  if (f->in.size > 0 || f->whole || f->skip || f->awaits || f->c.rest.link ||
      (f->parcel && f->parcel->count > 0))
    return EBUSY;
  return g->count ? 0 : EBADF;
}

void ipc_frame_close(Handle *h, How how) {
  Framed *f = (Framed *)h;
  Chan *c = &f->c;
  /* Accepted bytes get their last chance; nobody waits for it. */
  (void)how;
  if (c->rest.link && !h->foreign)
    (void)frame_flush(c);
  ipc_chan_end_rest(c, 0);
  ipc_buffer_free(&f->in);
  if (f->parcel)
    ipc_parcel_drop(f->parcel, f->parcel->count);
  free(f->parcel);
  f->parcel = NULL;
  if (f->wfd >= 0 && f->wfd != f->rfd)
    close(f->wfd);
  if (f->rfd >= 0)
    close(f->rfd);
  f->rfd = f->wfd = -1;
}

Framed *ipc_frame_new(lua_State *L, size_t size, const HandleOps *ops,
                      const StreamOps *io, int mode) {
  Framed *f = ipc_chan_new(L, size, ops, &ipc_frame_ops, mode);
  f->io = io;
  f->rfd = f->wfd = -1;
  f->c.ahead = true;
  return f;
}
