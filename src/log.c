/* Appending to a journal, and what is found when nobody had it open or who had
 * was killed; see log.h. What is published is whole; what is said to be on the
 * disk was synced; nothing is ever written where something was. */
#include "prefix.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "log.h"
#include "os.h"

enum {
  CHUNK = 1 << 20, /* bytes put together for one write */
  AHEAD = 1 << 20  /* bytes of zeros written in front of what is synced */
};

static uint64_t load(const SegmentWide *w) {
  return atomic_load_explicit(w, memory_order_relaxed);
}

static void store(SegmentWide *w, uint64_t value) {
  atomic_store_explicit(w, value, memory_order_relaxed);
}

int ipc_log_say(Log *l, const LogName *n, uint64_t at, const char *what,
                int err) {
  char name[LOG_NAME];
  ipc_log_name(n, name);
  if (at)
    snprintf(l->why, sizeof l->why, "%s at %llu: %s", name,
             (unsigned long long)at, what);
  else
    snprintf(l->why, sizeof l->why, "%s: %s", name, what ? what : "");
  if (!what)
    l->why[strlen(l->why) - 2] = '\0';
  return err;
}

/* ----------------------------------------------------------------- control */

LogAt ipc_log_tail(const Log *l) {
  LogAt at;
  uint32_t turn = atomic_load_explicit(&l->c->turn, memory_order_acquire);
  for (;;) {
    const LogTail *t = &l->c->tail[turn & 1];
    at = (LogAt){load(&t->number),
                 load(&t->base),
                 load(&t->size),
                 load(&t->at),
                 load(&t->sequence),
                 load(&t->time),
                 load(&t->zeroed),
                 atomic_load_explicit(&t->salt, memory_order_relaxed),
                 atomic_load_explicit(&t->before, memory_order_relaxed),
                 atomic_load_explicit(&t->dirty, memory_order_relaxed) != 0};
    atomic_thread_fence(memory_order_acquire);
    uint32_t now = atomic_load_explicit(&l->c->turn, memory_order_relaxed);
    if (now == turn)
      return at;
    turn = now;
  }
}

/* The tail moves: from here on all can see it. */
static void log_publish(Log *l, const LogAt *at) {
  uint32_t turn = atomic_load_explicit(&l->c->turn, memory_order_relaxed) + 1;
  LogTail *t = &l->c->tail[turn & 1];
  atomic_thread_fence(memory_order_release);
  store(&t->number, at->number);
  store(&t->base, at->base);
  store(&t->size, at->size);
  store(&t->at, at->at);
  store(&t->sequence, at->sequence);
  store(&t->time, at->time);
  store(&t->zeroed, at->zeroed);
  atomic_store_explicit(&t->salt, at->salt, memory_order_relaxed);
  atomic_store_explicit(&t->before, at->before, memory_order_relaxed);
  atomic_store_explicit(&t->dirty, at->dirty, memory_order_relaxed);
  atomic_store_explicit(&l->c->turn, turn, memory_order_release);
  atomic_store_explicit(&l->c->committed, at->sequence, memory_order_release);
  ipc_segment_tell(l->s, SEGMENT_READ(l->s));
}

/* Grows only; whoever syncs may be late with what it knows. */
static void log_synced(Log *l, uint64_t sequence) {
  uint64_t was = load(&l->c->durable);
  while (was < sequence)
    if (atomic_compare_exchange_weak(&l->c->durable, &was, sequence))
      break;
}

int ipc_log_failed(Log *l, int err) {
  (void)err; /* whatever it was, what the disk has is not known */
  atomic_store(&l->c->failed, EIO);
  ipc_segment_rouse(SEGMENT_READ(l->s));
  snprintf(l->why, sizeof l->why,
           "the disk failed, and the journal ended; close it everywhere and "
           "open it again");
  return EIO;
}

uint64_t ipc_log_promised(int dir, uint8_t id[16]) {
  SegmentHead h;
  LogControl c;
  size_t got;
  uint64_t promised = 0;
  int fd =
      openat(dir, LOG_CONTROL, O_RDONLY | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0)
    return 0;
  if (ipc_log_read(fd, &h, sizeof h, 0, &got) == 0 && got == sizeof h &&
      memcmp(h.magic, SEGMENT_MAGIC, sizeof h.magic) == 0 &&
      h.order == SEGMENT_ORDER && h.kind == SEGMENT_JOURNAL && h.before == 0 &&
      h.slots <= SEGMENT_SLOTS_MOST && h.extra >= sizeof c &&
      ipc_log_read(fd, &c, sizeof c,
                   SEGMENT_PARTS + h.slots * sizeof(SegmentPart), &got) == 0 &&
      got == sizeof c) {
    promised = load(&c.durable);
    memcpy(id, c.id, sizeof c.id);
  }
  close(fd);
  return promised;
}

/* --------------------------------------------------------------- recovery */

static uint64_t log_clock(void) {
  struct timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  return (uint64_t)now.tv_sec * 1000000000U + (uint64_t)now.tv_nsec;
}

static void log_shut(Log *l) {
  if (l->fd >= 0)
    close(l->fd);
  l->fd = -1;
}

/* Walks over the last file, from what is on the disk by now. */
static int recover_file(Log *l, const LogName *n, LogAt *at) {
  const char *why, *message;
  LogScan s = {.fd = -1};
  LogRecord r;
  LogHead h;
  uint64_t found;
  int fd;
  int err = ipc_log_open(l->dir, n, O_RDONLY, &fd, &h, &why, NULL);
  if (err)
    return ipc_log_say(l, n, 0, why, err);
  ipc_log_scan_start(&s, fd, &h);
  err = ipc_os_sync_file(fd);
  ipc_os_sync_forget(fd); /* what failed to be written would look as if */
  while (!err)
    err = ipc_log_scan_next(&s, &r, &message);
  *at = (LogAt){.number = h.number,
                .base = h.base,
                .size = h.size,
                .at = s.at,
                .sequence = s.sequence - 1,
                .time = s.time ? s.time : h.created,
                .zeroed = s.at,
                .salt = h.salt,
                .before = s.before};
  if (err == EBADMSG)
    err = ipc_log_scan_rest(&s, true, &at->dirty, &found, &r);
  else
    found = 0;
  if (found) {
    char words[96];
    snprintf(words, sizeof words, "record %llu is damaged (see ipc.verify)",
             (unsigned long long)s.sequence);
    err = ipc_log_say(l, n, s.at, words, EBADMSG);
  } else if (err) {
    (void)ipc_log_say(l, n, 0, NULL, err);
  }
  memcpy(l->c->id, h.id, sizeof h.id);
  ipc_log_scan_end(&s);
  return err;
}

int ipc_log_recover(Log *l, bool reads) {
  LogControl *c = l->c;
  LogName *list;
  size_t count;
  LogAt at = {.dirty = true};
  if (atomic_load(&c->failed))
    return ipc_log_failed(l, EIO);
  if (atomic_load(&c->ready) && !atomic_load(&c->busy))
    return 0;
  log_shut(l);
  int err = ipc_os_sync_file(l->dir); /* names that their maker did not */
  if (!err)
    err = ipc_log_list(l->dir, &list, &count);
  if (err)
    return err;
  if (count > 0)
    err = recover_file(l, &list[count - 1], &at);
  else
    ipc_os_random(c->id, sizeof c->id);
  uint64_t promised = ipc_log_committed(l);
  if (promised < l->promised &&
      memcmp(l->promised_id, c->id, sizeof c->id) == 0)
    promised = l->promised;
  if (!err && at.sequence < promised) {
    err = EBADMSG;
    if (count > 0)
      err = ipc_log_say(l, &list[count - 1], at.at,
                        "records that were on the disk are damaged or missing "
                        "(see ipc.verify)",
                        err);
    else
      snprintf(l->why, sizeof l->why, "its files are missing");
  }
  free(list);
  if (err == EBADMSG && l->promised) { /* for the next to find, too */
    memcpy(c->id, l->promised_id, sizeof c->id);
    log_synced(l, l->promised);
  }
  l->hurt = err == EBADMSG && reads && at.number;
  if (l->hurt) /* the next to open it looks for itself */
    return log_publish(l, &at), 0;
  if (err)
    return err;
  log_publish(l, &at);
  log_synced(l, at.sequence);
  store(&c->synced, (uint64_t)ipc_now());
  atomic_store(&c->busy, 0);
  atomic_store(&c->ready, 1);
  return 0;
}

/* --------------------------------------------------------------- appending */

/* Has the file that is written open. */
static int log_reach(Log *l, const LogAt *t) {
  const LogName n = {t->base, t->number};
  const char *why;
  if (l->fd >= 0 && l->head.number == t->number)
    return 0;
  log_shut(l);
  int err = ipc_log_open(l->dir, &n, O_RDWR, &l->fd, &l->head, &why, NULL);
  return err ? ipc_log_say(l, &n, 0, why, err) : 0;
}

/* A new file. All in front of it is on the disk before it is there. */
static int log_roll(Log *l, LogAt *t, uint64_t need) {
  LogHead h = {.number = t->number + 1,
               .base = t->sequence + 1,
               .size = l->room,
               .created = log_clock(),
               .before = t->before};
  int fd, err = 0;
  if (h.created < t->time) /* as the records: never back */
    h.created = t->time;
  memcpy(h.id, l->c->id, sizeof h.id);
  if (h.size < LOG_START + need)
    h.size = LOG_START + need;
  if (t->number && ipc_log_durable(l) < t->sequence) {
    err = log_reach(l, t);
    if (err)
      return err;
    err = ipc_os_sync_bytes(l->fd);
    if (err)
      return ipc_log_failed(l, err);
    l->syncs++;
    log_synced(l, t->sequence);
  }
  atomic_store(&l->c->busy, 1);
  err = ipc_log_make(l->dir, &h, &fd);
  if (err) {
    if (fd >= 0) /* it has its name, perhaps not for long */
      close(fd);
    else
      atomic_store(&l->c->busy, 0);
    if (err == ENOSPC || err == EDQUOT || err == EFBIG)
      snprintf(l->why, sizeof l->why, "%llu bytes for the next file",
               (unsigned long long)h.size);
    return err == EIO ? ipc_log_failed(l, err) : err;
  }
  log_shut(l);
  l->fd = fd;
  l->head = h;
  l->rolls++;
  *t = (LogAt){.number = h.number,
               .base = h.base,
               .size = h.size,
               .at = LOG_START,
               .sequence = t->sequence,
               .time = t->time,
               .zeroed = LOG_START,
               .salt = h.salt,
               .before = h.before};
  log_publish(l, t);
  atomic_store(&l->c->busy, 0);
  ipc_log_keep(l);
  return 0;
}

/* So that a sync has no more to write than what was appended: a file system
 * notes when a part that was only promised is first written. */
static int log_ahead(Log *l, LogAt *t, uint64_t need) {
  static const char zeros[64 << 10];
  uint64_t end = t->at + need;
  if (l->durability != LOG_SYNC || end <= t->zeroed)
    return 0;
  uint64_t stop = end + AHEAD < t->size ? end + AHEAD : t->size;
  for (uint64_t at = end; at < stop;) {
    size_t some = stop - at < sizeof zeros ? (size_t)(stop - at) : sizeof zeros;
    size_t put;
    int err = ipc_log_write(l->fd, zeros, some, at, &put);
    if (err)
      return err;
    at += some;
  }
  t->zeroed = stop;
  return 0;
}

/* Puts a record behind those in l->out; its message too, unless that is large.
 */
static int log_gather(Log *l, LogAt *t, const Message *m, bool whole) {
  static const char zeros[8];
  LogRecord r = {.size = (uint32_t)m->size,
                 .sequence = t->sequence + 1,
                 .time = t->time,
                 .before = t->before};
  uint64_t need = ipc_log_need(m->size);
  uint64_t behind = r.sequence - ipc_log_durable(l);
  r.behind = behind < UINT32_MAX ? (uint32_t)behind : UINT32_MAX;
  int err = ipc_buffer_reserve(&l->out, whole ? (size_t)need : sizeof r);
  if (err)
    return err;
  ipc_log_seal(&r, t->salt, m->bytes);
  char *at = l->out.bytes + l->out.size;
  memcpy(at, &r, sizeof r);
  l->out.size += sizeof r;
  if (whole) {
    if (m->size)
      memcpy(at + sizeof r, m->bytes, m->size);
    memcpy(at + sizeof r + m->size, zeros, (size_t)need - sizeof r - m->size);
    l->out.size += (size_t)need - sizeof r;
  }
  t->sequence = r.sequence;
  t->before = r.crc;
  t->at += need;
  return 0;
}

/* A write did not go through: what of it is there counts, and nothing is
 * written behind it. */
static int log_broken(Log *l, int err, const LogAt *before) {
  if (err == ENOSPC || err == EDQUOT || err == EFBIG || err == ENOMEM) {
    LogAt t = *before;
    const LogName n = {t.base, t.number};
    LogScan s = {.fd = -1};
    LogRecord r;
    const char *message;
    ipc_log_scan_start(&s, l->fd, &l->head);
    s.at = t.at;
    s.sequence = t.sequence + 1;
    s.before = t.before;
    while (ipc_log_scan_next(&s, &r, &message) == 0)
      t.time = r.time;
    t.at = s.at;
    t.sequence = s.sequence - 1;
    t.before = s.before;
    t.dirty = true;
    s.fd = -1;
    ipc_log_scan_end(&s);
    log_publish(l, &t);
    atomic_store(&l->c->busy, 0);
    return ipc_log_say(l, &n, t.at, "it could not be written", err);
  }
  return ipc_log_failed(l, err);
}

/* As many as go into the file and one write: *done. */
static int log_some(Log *l, LogAt *t, const Message *m, size_t count,
                    size_t *done) {
  const LogAt before = *t;
  uint64_t now = log_clock();
  bool large = ipc_log_need(m->size) > CHUNK;
  size_t put, gathered = 0;
  int err = 0;
  if (now > t->time) /* never back */
    t->time = now;
  l->out.size = 0;
  do {
    err = log_gather(l, t, &m[gathered], !large);
    gathered += !err;
  } while (!err && !large && gathered < count &&
           t->at + ipc_log_need(m[gathered].size) <= t->size &&
           l->out.size + ipc_log_need(m[gathered].size) <= CHUNK);
  if (gathered == 0)
    return err;
  if (atomic_load_explicit(&l->c->failed, memory_order_relaxed))
    return ipc_log_failed(l, EIO);
  atomic_store(&l->c->busy, 1);
  LogAt from = before;
  err = log_ahead(l, &from, t->at - before.at);
  t->zeroed = from.zeroed;
  if (!err && large) /* the rest of the last 8 bytes is zero already */
    err = ipc_log_write(l->fd, m->bytes, m->size, before.at + sizeof(LogRecord),
                        &put);
  if (!err)
    err = ipc_log_write(l->fd, l->out.bytes, l->out.size, before.at, &put);
  if (err) {
    err = log_broken(l, err, &before);
    *done = (size_t)(ipc_log_tail(l).sequence - before.sequence);
    return err;
  }
  log_publish(l, t);
  atomic_store_explicit(&l->c->busy, 0, memory_order_release);
  *done = gathered;
  return 0;
}

int ipc_log_append(Log *l, const Message *m, size_t count, size_t *done) {
  LogAt t = ipc_log_tail(l);
  *done = 0;
  while (*done < count) {
    size_t some = 0;
    uint64_t need = ipc_log_need(m[*done].size);
    int err = 0;
    if (t.dirty || t.at + need > t.size)
      err = log_roll(l, &t, need);
    if (!err)
      err = log_reach(l, &t);
    if (!err)
      err = log_some(l, &t, m + *done, count - *done, &some);
    *done += some;
    if (err)
      return err;
  }
  return 0;
}

int ipc_log_mark(Log *l) {
  LogAt t = ipc_log_tail(l);
  LogRecord r = {.sequence = t.sequence, .time = t.time, .before = t.before};
  size_t put;
  if (t.number == 0 || t.dirty || t.at + sizeof r > t.size || t.sequence == 0)
    return 0;
  int err = log_reach(l, &t);
  if (err)
    return err;
  ipc_log_seal(&r, t.salt, NULL);
  atomic_store(&l->c->busy, 1);
  err = ipc_log_write(l->fd, &r, sizeof r, t.at, &put);
  if (!err)
    err = ipc_os_sync_bytes(l->fd);
  if (err)
    return log_broken(l, err, &t);
  t.at += sizeof r;
  t.before = r.crc;
  log_publish(l, &t);
  atomic_store(&l->c->busy, 0);
  return 0;
}

/* ----------------------------------------------------------------- syncing */

int ipc_log_sync(Log *l, LogSync *sync) {
  for (;;) {
    LogAt t = ipc_log_tail(l);
    if (atomic_load(&l->c->failed))
      return EIO;
    if (ipc_log_durable(l) >= t.sequence)
      return 0;
    store(&l->c->synced, (uint64_t)ipc_now());
    if (sync->number != t.number || sync->fd < 0) {
      const LogName n = {t.base, t.number};
      char name[LOG_NAME];
      ipc_log_sync_end(sync);
      ipc_log_name(&n, name);
      sync->fd = openat(l->dir, name, O_RDWR | O_NOFOLLOW | O_CLOEXEC);
      if (sync->fd < 0 && errno == ENOENT && ipc_log_tail(l).number != t.number)
        continue; /* it was not needed any more */
      if (sync->fd < 0)
        return errno;
      sync->number = t.number;
    }
    int err = ipc_os_sync_bytes(sync->fd);
    if (err) {
      atomic_store(&l->c->failed, EIO);
      ipc_segment_rouse(SEGMENT_READ(l->s));
      return EIO;
    }
    log_synced(l, t.sequence);
    return 0;
  }
}

void ipc_log_sync_end(LogSync *sync) {
  if (sync->fd >= 0)
    close(sync->fd);
  sync->fd = -1;
  sync->number = 0;
}

void ipc_log_close(Log *l) {
  log_shut(l);
  ipc_log_sync_end(&l->sync);
  if (l->dir >= 0)
    close(l->dir);
  l->dir = -1;
  ipc_buffer_free(&l->out);
}
