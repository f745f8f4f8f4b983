/* Calls over a channel, below Lua; see wire.h. */
#include "prefix.h"

#include <errno.h>
#include <string.h>

#include "chan.h"
#include "wire.h"

enum {
  WIRE_KEEP = 64 << 10, /* bytes of an empty buffer worth keeping */
  WIRE_BATCH = 64       /* messages gathered for one crossing */
};

static void wire_emptied(Buffer *b) {
  b->size = 0;
  if (b->room > WIRE_KEEP)
    ipc_buffer_free(b);
}

/* The channel has accepted part of `out` and keeps pointing into it: it is the
 * rest's to free, what is behind `end` is copied. */
static int wire_give(Wire *w, Chan *c, size_t end) {
  Buffer left = {NULL, 0, 0};
  size_t size = w->out.size - end;
  int err = size > 0 ? ipc_buffer_reserve(&left, size) : 0;
  c->rest.owned = w->out.bytes;
  if (!err && size > 0) {
    memcpy(left.bytes, w->out.bytes + end, size);
    left.size = size;
  }
  w->out = left;
  w->sent = 0;
  if (err) /* messages are lost: nothing may follow */
    ipc_chan_end_rest(c, err);
  return err;
}

/* All of a stream's bytes in one go: as with a part of them, the channel holds
 * what there is no room for. */
static int wire_send_stream(Wire *w, Chan *c) {
  Message m = {.bytes = w->out.bytes, .size = w->out.size};
  int err = c->ops->send(c, &m);
  if (err == EAGAIN && !c->rest.link) {
    ipc_chan_set_rest(c, "", 0, m.bytes, m.size);
    err = EINPROGRESS;
  }
  if (err && err != EINPROGRESS)
    return err;
  c->sent += w->messages;
  c->bytes_out += m.size;
  w->messages = 0;
  if (err == EINPROGRESS)
    return wire_give(w, c, w->out.size);
  wire_emptied(&w->out);
  return 0;
}

/* The next messages of `out`: how many, `most` or less. */
static size_t wire_gather(const Wire *w, const Chan *c, Message *m,
                          size_t most) {
  size_t n = 0, at = w->sent;
  if (most > WIRE_BATCH)
    most = WIRE_BATCH;
  for (; n < most && at < w->out.size; n++) {
    size_t size;
    memcpy(&size, w->out.bytes + at, sizeof size);
    at += sizeof size;
    m[n] = (Message){.bytes = w->out.bytes + at, .size = size};
    if (c->ops->tags)
      m[n].tag = c->ops->tags->otherwise;
    at += size;
  }
  return n;
}

static int wire_send_batch(Wire *w, Chan *c, size_t most) {
  Message m[WIRE_BATCH];
  size_t count = wire_gather(w, c, m, most), sent = 0;
  int err = 0;
  if (count > 1 && c->ops->sendmany) {
    err = c->ops->sendmany(c, m, count, &sent);
  } else {
    err = c->ops->send(c, m);
    sent = err == 0 || err == EINPROGRESS;
  }
  for (size_t i = 0; i < sent; i++) {
    w->sent += sizeof(size_t) + m[i].size;
    c->bytes_out += m[i].size;
  }
  c->sent += sent;
  w->messages -= (uint32_t)sent;
  if (err == EINPROGRESS)
    return wire_give(w, c, w->sent);
  if (w->sent == w->out.size) {
    w->sent = 0;
    wire_emptied(&w->out);
  }
  return err;
}

int ipc_wire_send(Wire *w, Chan *c) {
  if (c->failed || c->shut)
    return EPIPE;
  if (c->rest.link && w->out.size == 0 && c->ops->flush(c) != 0)
    return c->failed ? EPIPE : 0;
  while (w->out.size > 0) {
    int err =
        c->stream ? wire_send_stream(w, c) : wire_send_batch(w, c, SIZE_MAX);
    if (err)
      return err;
  }
  ipc_owe_no_more(&w->owed);
  return 0;
}

void ipc_wire_early(Wire *w) {
  Chan *c = w->chan->writer;
  if (w->messages < WIRE_EARLY || !c->ops->quiet || c->failed || c->shut ||
      !ipc_handle_usable(&c->h) || c->h.queue)
    return;
  c->quiet = true;
  (void)wire_send_batch(w, c, w->messages - 1);
  c->quiet = false;
}

int ipc_wire_look(Wire *w) {
  if (w->broken)
    return w->broken;
  const char *bytes = w->in.bytes ? w->in.bytes + w->at : "";
  return ipc_scan(&w->scan, bytes, wire_have(w), w->limits.values.bytes);
}

void ipc_wire_took(Wire *w) {
  w->at += w->scan.at;
  w->serial++;
  ipc_scan_start(&w->scan);
  if (w->at == w->in.size) {
    w->at = 0;
    wire_emptied(&w->in);
  }
}

int ipc_wire_pull(Wire *w, Chan *c) {
  Message m = {0};
  int err = ipc_chan_next(c, &m);
  if (err)
    return err;
  Buffer *in = &w->in;
  if (w->at > 0 && in->room - in->size < m.size && w->at >= wire_have(w)) {
    in->size -= w->at;
    memmove(in->bytes, in->bytes + w->at, in->size);
    w->at = 0;
  }
  err = ipc_buffer_reserve(in, m.size);
  if (err)
    return err;
  memcpy(in->bytes + in->size, m.bytes, m.size);
  in->size += m.size;
  c->ops->took(c, m.size);
  c->serial++;
  c->bytes_in += m.size;
  return 0;
}

bool ipc_wire_ready(Wire *w) {
  Chan *c = w->chan->reader;
  if (!ipc_handle_usable(&c->h))
    return false;
  if (!c->stream)
    return c->h.ops->ready(&c->h, IPC_READ, false) == 0;
  int err = ipc_wire_look(w);
  while (err == EAGAIN && c->ahead && !c->held &&
         c->h.ops->ready(&c->h, IPC_READ, false) == 0 &&
         ipc_wire_pull(w, c) == 0)
    err = ipc_wire_look(w);
  return err == 0;
}
