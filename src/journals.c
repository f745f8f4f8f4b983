/* A journal as a handle; see journals.h. */
#include "prefix.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "journals.h"
#include "os.h"

enum { SLICE = 4000000 }; /* ns that a lock is waited for at once */

static SegmentSide *writers(const Journal *j) {
  return SEGMENT_WRITERS(&j->m.s);
}

/* ------------------------------------------------------------------- locks */

/* One that a dead one holds is taken over when `ask`. */
static int lock_take(Segment *s, _Atomic uint32_t *lock, bool ask) {
  int err = ipc_segment_check(s);
  if (!err)
    err = ipc_segment_try(s, lock);
  return err == EAGAIN && ask ? ipc_segment_takeover(s, lock) : err;
}

int ipc_journal_lock(Journal *j) {
  int err = lock_take(&j->m.s, &writers(j)->lock, j->lapsed);
  if (err == ENOTRECOVERABLE || err == EFAULT)
    j->c.why = j->m.s.why;
  j->lapsed = false;
  return err;
}

int ipc_journal_unlock(Journal *j) {
  int err = ipc_segment_release(&j->m.s, &writers(j)->lock);
  if (err)
    j->c.why = j->m.s.why;
  return err;
}

/* ------------------------------------------------------------- to the disk */

/* All up to `target`: 0; EAGAIN: another is at it, which will do for us or not.
 * For any thread, but one of them at a time. */
static int sync_try(Log *l, uint64_t target, bool ask) {
  _Atomic uint32_t *lock = &SEGMENT_READERS(l->s)->lock;
  if (atomic_load(&l->c->failed))
    return EIO;
  if (ipc_log_durable(l) >= target)
    return 0;
  int err = lock_take(l->s, lock, ask);
  if (err)
    return err;
  /* Meanwhile the last one at it may have done this, too. */
  if (ipc_log_durable(l) < target) {
    err = ipc_log_sync(l, &l->sync);
    l->syncs += !err;
  }
  int lost = ipc_segment_release(l->s, lock);
  return err ? err : lost;
}

/* Sleeps until the one that is at it may be done. */
static int sync_await(const Log *l, Nanos left, bool *lapsed) {
  int err = ipc_segment_await(l->s, &SEGMENT_READERS(l->s)->lock,
                              left < SLICE ? left : SLICE);
  *lapsed = err == ETIMEDOUT;
  return err;
}

static void job_sleep(void *argument) {
  JournalJob *job = argument;
  bool lapsed = false;
  int err = EAGAIN;
  while (err == EAGAIN && !atomic_load(&job->stop)) {
    err = sync_try(job->log, atomic_load(&job->target), lapsed);
    if (err == EAGAIN)
      (void)sync_await(job->log, SLICE, &lapsed);
  }
  atomic_store(&job->err, err == EAGAIN ? 0 : err);
}

static void job_rouse(void *argument) {
  JournalJob *job = argument;
  atomic_store(&job->stop, true);
}

static bool job_asleep(const Journal *j) {
  return j->job && ipc_sleeper_asleep(&j->job->sleeper);
}

static int sync_arm(Journal *j) {
  JournalJob *job = j->job;
  if (!job) {
    job = j->job = calloc(1, sizeof *job);
    if (!job)
      return ENOMEM;
    job->sleeper.sleep = job_sleep;
    job->sleeper.rouse = job_rouse;
    job->sleeper.job = job;
    job->log = &j->log;
  }
  if (ipc_sleeper_asleep(&job->sleeper))
    return 0;
  atomic_store(&job->target, j->target);
  atomic_store(&job->err, 0);
  atomic_store(&job->stop, false);
  return ipc_sleeper_start(&job->sleeper, NULL);
}

/* Whether the interval is over and something is to be done. */
static bool sync_due(const Journal *j) {
  const LogControl *c = j->log.c;
  Nanos last = (Nanos)atomic_load_explicit(&c->synced, memory_order_relaxed);
  return ipc_log_durable(&j->log) < ipc_log_committed(&j->log) &&
         ipc_now() - last >= j->log.interval;
}

/* What the last wait for the disk found wrong, told once. */
static int sync_trouble(Journal *j) {
  int err = j->trouble;
  j->trouble = 0;
  if (!err && j->job && !job_asleep(j))
    err = atomic_exchange(&j->job->err, 0);
  if (err == ENOTRECOVERABLE || err == EFAULT)
    j->c.why = j->m.s.why;
  return err;
}

static int journal_settle(Journal *j, uint64_t number, Stage stage) {
  LogDurability durability = j->log.durability;
  if (stage == IPC_FLUSHED)
    number = ipc_log_committed(&j->log);
  if (ipc_log_durable(&j->log) >= number ||
      (stage != IPC_FLUSHED && durability == LOG_NONE))
    return 0;
  if (stage == IPC_SENT && durability == LOG_INTERVAL && !sync_due(j))
    return 0;
  if (atomic_load(&j->log.c->failed)) {
    j->c.why = "the disk failed, and the journal ended; close it everywhere "
               "and open it again";
    return EIO;
  }
  if (ipc_journal_gone(j))
    return EPIPE;
  int err = sync_trouble(j);
  if (err)
    return err;
  j->target = number;
  return EAGAIN;
}

static int journal_settled(Chan *c, uint64_t number, Stage stage) {
  Journal *j = (Journal *)c;
  c->why = NULL;
  if (!j->m.begun)
    return 0;
  int err = journal_settle(j, number, stage);
  if (stage == IPC_CLOSED) /* or so many are lost, perhaps */
    c->lost = err ? j->pending : 0;
  return err;
}

/* --------------------------------------------------------------- in and out */

static int journal_sendmany(Chan *c, const Message *m, size_t count,
                            size_t *sent) {
  Journal *j = (Journal *)c;
  *sent = 0;
  if (!j->m.begun)
    return ECHILD;
  c->why = NULL;
  int err = ipc_journal_lock(j);
  if (err)
    return err;
  j->log.why[0] = '\0';
  err = ipc_journal_gone(j) ? EPIPE : ipc_log_recover(&j->log, false);
  if (!err)
    err = ipc_log_append(&j->log, m, count, sent);
  if (*sent > 0) {
    if (ipc_log_durable(&j->log) >= j->number)
      j->pending = 0;
    for (size_t i = 0; i < *sent; i++)
      j->pending += m[i].size ? m[i].size : 1;
    j->number = ipc_log_tail(&j->log).sequence;
  }
  int lost = ipc_journal_unlock(j);
  if (err && j->log.why[0])
    c->why = j->log.why;
  return err ? err : lost;
}

static int journal_send(Chan *c, const Message *m) {
  size_t sent;
  int err = journal_sendmany(c, m, 1, &sent);
  return sent ? 0 : err;
}

static uint64_t journal_number(const Chan *c) {
  return ((const Journal *)c)->number;
}

static int journal_recv(Chan *c, Message *m) {
  Journal *j = (Journal *)c;
  if (!j->m.begun)
    return ECHILD;
  c->why = NULL;
  j->log.why[0] = '\0';
  int err = ipc_segment_check(&j->m.s);
  if (err) {
    c->why = j->m.s.why;
    return err;
  }
  if (atomic_load(&j->log.c->gone))
    return EPIPE;
  err = ipc_log_next(&j->log, &j->r);
  if (err == EAGAIN && (!j->r.follow || ipc_journal_gone(j)))
    return EPIPE;
  if (err) {
    if (j->log.why[0])
      c->why = j->log.why;
    return err;
  }
  m->bytes = j->r.message;
  m->size = j->r.record.size;
  m->tag = (int64_t)j->r.record.sequence;
  if (m->size <= c->limit)
    return 0;
  ipc_log_took(&j->r);
  c->serial++;
  return EMSGSIZE;
}

static void journal_took(Chan *c, size_t size) {
  Journal *j = (Journal *)c;
  (void)size;
  j->taken = j->r.record.sequence;
  ipc_log_took(&j->r);
}

static int journal_flush(Chan *c) {
  (void)c; /* a message is in or not */
  return 0;
}

static int journal_shutdown(Chan *c) {
  (void)c; /* others may append; readers hear nothing of it */
  return 0;
}

static bool journal_figure(Chan *c, unsigned i, Figure *f) {
  const Journal *j = (const Journal *)c;
  const LogControl *k = j->log.c;
  if (!j->m.begun || i > 6)
    return false;
  const Figure all[] = {{"last", atomic_load(&k->committed)},
                        {"durable", atomic_load(&k->durable)},
                        {"syncs", j->log.syncs},
                        {"files", j->log.rolls},
                        {"removed", j->log.removed},
                        {"lost", j->r.lost},
                        {"takeovers", j->m.s.takeovers}};
  *f = all[i];
  return true;
}

/* ------------------------------------------------------------------ waiting */

static bool journal_there(const Journal *j) {
  return j->r.have || j->r.damaged || !j->r.follow ||
         ipc_log_committed(&j->log) >= j->r.next ||
         (j->log.hurt && !atomic_load(&j->log.c->ready)) ||
         atomic_load(&j->log.c->failed) != 0 ||
         atomic_load(&j->log.c->gone) != 0;
}

int ipc_journal_ready(Handle *h, int want, bool ask_kernel) {
  Journal *j = (Journal *)h;
  (void)ask_kernel;
  if (!j->m.begun || ipc_segment_check(&j->m.s))
    return 0;
  if (want == IPC_READ)
    return j->c.held || journal_there(j) ? 0 : EAGAIN;
  if (want == IPC_ENDED)
    return !job_asleep(j) || ipc_log_durable(&j->log) >= j->target ? 0 : EAGAIN;
  return atomic_load(&writers(j)->lock) == 0 ? 0 : EAGAIN;
}

int ipc_journal_descriptor(const Handle *h, int want) {
  const Journal *j = (const Journal *)h;
  if (want == IPC_ENDED)
    return j->job ? ipc_sleeper_descriptor(&j->job->sleeper) : -1;
  return ipc_watch_descriptor(&j->watch[want == IPC_WRITE]);
}

/* What the writers' lock holds, marked as waited for; 0: nobody has it. */
static uint32_t journal_expect(Journal *j) {
  _Atomic uint32_t *lock = &writers(j)->lock;
  uint32_t now = atomic_load(lock);
  while (now && !(now & SEGMENT_WAITS))
    if (atomic_compare_exchange_weak(lock, &now, now | SEGMENT_WAITS))
      now |= SEGMENT_WAITS;
  return now;
}

static bool journal_doubts(void *of) {
  (void)of; /* whoever has the lock may be dead */
  return true;
}

static bool journal_leaves(void *of) { return ipc_journal_gone(of); }

int ipc_journal_arm(Handle *h, int want, Sleepers *by) {
  Journal *j = (Journal *)h;
  if (!j->m.begun)
    return EAGAIN;
  if (want == IPC_ENDED) {
    int err = sync_arm(j);
    h->nap = err ? 1000 : 0;
    return err;
  }
  Watch *w = &j->watch[want == IPC_WRITE];
  if (want == IPC_WRITE) {
    uint32_t held = journal_expect(j);
    j->lapsed = true; /* what wakes a task may be a slice that passed */
    w->doubts = journal_doubts;
    if (held == 0)
      return ipc_sleeper_wake(&w->sleeper, by);
    return ipc_watch_arm(w, &writers(j)->lock, held, by);
  }
  SegmentEvent *e = SEGMENT_READ(&j->m.s);
  uint32_t value = ipc_segment_announce(&j->m.s, e);
  w->doubts = journal_leaves;
  w->of = j;
  if (!journal_there(j))
    return ipc_watch_arm(w, &e->count, value, by);
  /* Who waits is told, if of what it was armed with. */
  return ipc_sleeper_keep(&w->sleeper, by) ? 0
                                           : ipc_sleeper_wake(&w->sleeper, by);
}

int ipc_journal_wait(Handle *h, int want, Nanos deadline) {
  Journal *j = (Journal *)h;
  if (!j->m.begun)
    return EAGAIN;
  if (want == IPC_ENDED) {
    if (job_asleep(j))
      return EAGAIN;
    int err = sync_try(&j->log, j->target, j->lapsed);
    j->lapsed = false;
    if (err != EAGAIN) {
      j->trouble = err; /* settled tells it */
      return 0;
    }
    Nanos left = deadline - ipc_now();
    err = sync_await(&j->log, left > 0 ? left : 0, &j->lapsed);
    return err == ETIMEDOUT ? EINTR : err;
  }
  if (want == IPC_WRITE) {
    uint32_t held = journal_expect(j);
    return held ? ipc_watch_wait(&writers(j)->lock, held, deadline, &j->slice,
                                 &j->lapsed)
                : 0;
  }
  SegmentEvent *e = SEGMENT_READ(&j->m.s);
  bool lapsed;
  uint32_t value = ipc_segment_announce(&j->m.s, e);
  return journal_there(j)
             ? 0
             : ipc_watch_wait(&e->count, value, deadline, &j->slice, &lapsed);
}

/* ------------------------------------------------------------- close, fork */

bool ipc_journal_gone(const Journal *j) {
  struct stat is;
  if (atomic_load(&j->log.c->gone))
    return true;
  if (fstat(j->m.s.fd, &is) || is.st_nlink > 0)
    return false;
  atomic_store(&j->log.c->gone, 1); /* somebody removed what we agree on */
  return true;
}

int ipc_journal_erase(Journal *j) {
  Segment *s = &j->m.s;
  atomic_store(&j->log.c->gone, 1);
  int err = ipc_log_erase(j->log.dir);
  int left = EAGAIN;
  for (int turn = 0; left == EAGAIN && turn < 1000; turn++)
    left = ipc_segment_remove(s, j->m.path); /* unless others join just now */
  ipc_segment_rouse(SEGMENT_READ(s));
  ipc_segment_rouse(SEGMENT_WRITE(s));
  if (!err && rmdir(j->directory) && errno != ENOTEMPTY && errno != EEXIST)
    err = errno;
  return err;
}

static void journal_end_threads(Journal *j, bool foreign) {
  for (int i = 0; i < 2; i++)
    ipc_watch_close(&j->watch[i], foreign);
  if (j->job)
    ipc_sleeper_close(&j->job->sleeper, foreign);
  free(j->job);
  j->job = NULL;
}

/* The last one to append leaves word that nothing is missing. */
static void journal_leave(Journal *j) {
  Log *l = &j->log;
  if (!j->c.writer || atomic_load(&l->c->failed) || ipc_journal_gone(j) ||
      ipc_segment_others(&j->m.s, IPC_WRITE) || ipc_journal_lock(j))
    return;
  if (atomic_load(&l->c->ready) && !atomic_load(&l->c->busy) &&
      ipc_log_durable(l) >= ipc_log_committed(l) && l->fd >= 0)
    (void)ipc_log_mark(l);
  (void)ipc_journal_unlock(j);
}

void ipc_journal_close(Handle *h, How how) {
  Journal *j = (Journal *)h;
  bool foreign = h->foreign || h->generation != ipc_generation;
  journal_end_threads(j, foreign);
  if (foreign)
    j->r.place = -1; /* closed when the process forked */
  bool goes = j->temporary && j->made && !foreign && how != IPC_DROP;
  bool failed = j->made && !foreign && !j->m.begun; /* to be opened */
  if (!foreign && j->m.begun && how == IPC_CLOSE && !goes)
    journal_leave(j);
  ipc_log_reader_close(&j->r);
  if (goes && j->m.begun)
    (void)ipc_journal_erase(j);
  if (j->m.begun && j->log.hurt && !atomic_load(&j->log.c->ready))
    j->m.begun = false; /* control stays, and with it what proves the damage */
  ipc_member_close(&j->m, h, how);
  ipc_log_close(&j->log);
  if (failed)
    (void)rmdir(j->directory);
  free(j->directory);
  j->directory = NULL;
}

int ipc_journal_forking(Handle *h) {
  Journal *j = (Journal *)h;
  for (int i = 0; i < 2; i++)
    ipc_watch_stop(&j->watch[i]);
  if (j->job)
    ipc_sleeper_stop(&j->job->sleeper);
  return ipc_member_forking(&j->m, h->moves);
}

/* In the child: a participant of its own, that reads on where this one is, but
 * has no name. */
void ipc_journal_forked(Handle *h, bool child) {
  Journal *j = (Journal *)h;
  ipc_member_forked(&j->m, h->moves, child);
  if (!child)
    return;
  journal_end_threads(j, true);
  memset(j->watch, 0, sizeof j->watch);
  j->r.place = -1;
  j->made = false;
  if (j->m.begun)
    j->log.c = SEGMENT_EXTRA(&j->m.s);
}

/* Everything but what the handle holds open, and its name. */
static void journal_copy(Journal *p, const Journal *j) {
  const Log *l = &j->log;
  p->c.timeout = j->c.timeout;
  p->c.linger = j->c.linger;
  p->c.limit = j->c.limit;
  p->c.shut = j->c.shut;
  p->c.spin[0].budget = p->c.spin[1].budget = j->c.spin[0].budget;
  p->c.h.moves = false;
  p->c.h.shares = true;
  p->log.durability = l->durability;
  p->log.interval = l->interval;
  p->log.room = l->room;
  p->log.retain_bytes = l->retain_bytes;
  p->log.retain_ns = l->retain_ns;
  p->log.slowest = l->slowest;
  p->log.hurt = l->hurt;
  p->r.next = j->r.next;
  p->r.since = j->r.since;
  p->r.follow = j->r.follow;
}

/* One that reads on where this one is, but has no name. */
static int journal_dup(lua_State *L, Chan *c) {
  const Journal *j = (const Journal *)c;
  if (!j->m.begun || ipc_journal_gone(j))
    return EPIPE;
  unsigned mode = (c->reader ? IPC_READ : 0U) | (c->writer ? IPC_WRITE : 0U);
  Journal *p = ipc_chan_new(L, sizeof *p, c->h.ops, c->ops, (int)mode);
  p->m = MEMBER_NOBODY;
  p->log = LOG_CLOSED;
  p->r = LOG_READER;
  journal_copy(p, j);
  p->directory = strdup(j->directory);
  p->m.path = strdup(j->m.path);
  p->log.dir = openat(j->log.dir, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  int err = p->log.dir < 0 ? errno : !p->directory || !p->m.path ? ENOMEM : 0;
  if (!err)
    err = ipc_segment_second(&p->m.s, &j->m.s, p->m.path, mode,
                             MEMBER_FORK_PATIENCE);
  if (err) {
    ipc_log_close(&p->log);
    free(p->m.path);
    free(p->directory);
    p->m.path = p->directory = NULL;
    lua_pop(L, 1);
    return err == EAGAIN ? EBUSY : err;
  }
  p->m.begun = true;
  p->log.s = &p->m.s;
  p->log.c = SEGMENT_EXTRA(&p->m.s);
  ipc_handle_open(&p->c.h);
  ipc_handle_owe(L, -1);
  return 0;
}

static const Tags journal_tags = {
    .kind = IPC_TAG_INTEGER, .least = 0, .most = LUA_MAXINTEGER};

const ChanOps ipc_journal_ops = {.recv = journal_recv,
                                 .took = journal_took,
                                 .send = journal_send,
                                 .sendmany = journal_sendmany,
                                 .flush = journal_flush,
                                 .shutdown = journal_shutdown,
                                 .tags = &journal_tags,
                                 .dup = journal_dup,
                                 .number = journal_number,
                                 .settled = journal_settled,
                                 .figure = journal_figure};
