/* How a ring's handle waits, is polled, is closed and crosses a fork; see
 * ring.h. Every sleep is a slice: after one that nothing ended, the next op
 * looks who is dead. */
#include "prefix.h"

#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

#include "os.h"
#include "ring.h"

/* ---------------------------------------------------------- what is there */

uint64_t ipc_ring_slowest(const Ring *r, uint64_t tail) {
  uint64_t slowest = tail;
  for (uint32_t i = 0; i < r->m.s.head.slots; i++) {
    SegmentPart *p = SEGMENT_PART(&r->m.s, i);
    uint64_t at = atomic_load_explicit(&p->at, memory_order_acquire);
    if (at != UINT64_MAX && (int64_t)(at - slowest) < 0)
      slowest = at;
  }
  return slowest;
}

/* Whether `want` has something to go on with, as far as the memory tells; for
 * any thread. */
static bool ring_there(const Ring *r, int want, uint64_t at, uint64_t need) {
  const SegmentSide *readers = SEGMENT_READERS(&r->m.s);
  uint32_t flags = r->m.s.head.flags;
  uint64_t tail = atomic_load(&SEGMENT_WRITERS(&r->m.s)->at);
  if (want == IPC_WRITE) {
    uint64_t head = atomic_load(&readers->at);
    if (flags & SEGMENT_HOLD)
      head = ipc_ring_slowest(r, tail);
    else if (r->m.s.head.kind == SEGMENT_BROADCAST)
      return true;
    return tail + need - head <= r->ring;
  }
  if (r->m.s.head.kind == SEGMENT_BROADCAST)
    return tail != at;
  if (flags & SEGMENT_LEASE)
    return atomic_load(&readers->again) || atomic_load(&readers->taken) != tail;
  return tail != (flags & SEGMENT_SOLE_READER ? at : atomic_load(&readers->at));
}

static SegmentEvent *ring_event(const Ring *r, int want) {
  return want == IPC_WRITE ? SEGMENT_WRITE(&r->m.s) : SEGMENT_READ(&r->m.s);
}

/* The lock that the last op for `want` did not get, or NULL. */
static _Atomic uint32_t *ring_busy(const Ring *r, int want) {
  SegmentSide *side =
      want == IPC_WRITE ? SEGMENT_WRITERS(&r->m.s) : SEGMENT_READERS(&r->m.s);
  return r->busy == &side->lock ? r->busy : NULL;
}

/* A writer is woken when its message fits and a quarter of the ring is free,
 * not for every message that is received. */
static void ring_expect(const Ring *r, uint64_t need) {
  SegmentEvent *e = SEGMENT_WRITE(&r->m.s);
  uint64_t tail = atomic_load(&SEGMENT_WRITERS(&r->m.s)->at);
  uint64_t head = atomic_load(&SEGMENT_READERS(&r->m.s)->at);
  uint64_t least = tail + need - r->ring, good = head + r->ring / 4;
  if ((int64_t)(good - tail) > 0)
    good = tail;
  if ((int64_t)(good - least) < 0 || r->m.s.head.kind == SEGMENT_BROADCAST)
    good = least;
  atomic_store(&e->enough, good);
}

/* Announces a sleep for `want`; *word is what to sleep on. True: look again. */
static bool ring_announce(const Ring *r, int want, uint64_t at, uint64_t need,
                          _Atomic uint32_t *busy, OsWord *word) {
  SegmentEvent *e = ring_event(r, want);
  word->word = busy ? busy : &e->count;
  if (busy)
    return ipc_segment_expect(&r->m.s, busy, &word->value);
  if (want == IPC_WRITE)
    ring_expect(r, need);
  word->value = ipc_segment_announce(&r->m.s, e);
  return ring_there(r, want, at, need);
}

/* A slice passed: whether a death could have changed what the op would find.
 * For any thread. */
static bool ring_doubts(const Ring *r, int want, const void *busy) {
  const SegmentSide *readers = SEGMENT_READERS(&r->m.s);
  unsigned others = want == IPC_WRITE ? IPC_READ : IPC_WRITE;
  uint32_t flags = r->m.s.head.flags;
  if (busy || (flags & SEGMENT_HOLD && want == IPC_WRITE))
    return true;
  if (flags & SEGMENT_LEASE &&
      atomic_load(&readers->at) != atomic_load(&readers->taken))
    return true;
  return !r->keepalive && ipc_segment_gone(&r->m.s, others);
}

/* ----------------------------------------------------------- in one thread */

int ipc_ring_wait(Handle *h, int want, Nanos deadline) {
  Ring *r = (Ring *)h;
  _Atomic uint32_t *busy = ring_busy(r, want);
  Nanos now = ipc_now(), left = deadline - now;
  if (now >= deadline) { /* the last look is one for the dead, too */
    atomic_store(&r->suspect, true);
    r->slice = 0;
    return 0;
  }
  Nanos most = busy ? OS_SLICE : OS_SLICE_MOST; /* locks: held for moments */
  uint64_t messages = r->c.sent + r->c.received;
  if (r->slice == 0 || messages != r->through)
    r->slice = OS_SLICE;
  else if (r->slice > most)
    r->slice = most;
  r->through = messages;
  Nanos slice = r->slice;
  OsWord on;
  int err =
      ring_announce(r, want, r->at, r->need, busy, &on)
          ? 0
          : ipc_os_word_wait(on.word, on.value, slice < left ? slice : left);
  if (err != ETIMEDOUT) {
    r->slice = 0;
    return err;
  }
  if (slice < most)
    r->slice = slice * 2;
  if (ring_doubts(r, want, busy))
    atomic_store(&r->suspect, true);
  return EINTR; /* a signal that came between two sleeps is heard, too */
}

int ipc_ring_ready(Handle *h, int want, bool ask_kernel) {
  Ring *r = (Ring *)h;
  if (ipc_ring_check(r) || r->ahead_at < r->ahead.size || r->leased)
    return 0;
  if (want == IPC_READ ? r->c.ended != 0 : r->ended)
    return 0;
  uint64_t need = r->need ? r->need : ipc_ring_need(0);
  bool lease = want == IPC_READ && r->m.s.head.flags & SEGMENT_LEASE;
  bool ask = lease && (ipc_ring_suspects(r) ||
                       atomic_load(&SEGMENT_READERS(&r->m.s)->again));
  if (!ask && ring_there(r, want, r->at, need))
    return 0;
  bool gone = ipc_ring_gone(r, want, ask_kernel || ask);
  if (lease && (ask || gone)) {
    bool others;
    int err = ipc_ring_reclaim(r, &others); /* `again` is but a hint */
    if (err == EAGAIN && ring_there(r, want, r->at, need))
      return 0;
    return err == EAGAIN && (others || !gone) ? EAGAIN : 0;
  }
  return gone && (want == IPC_READ || r->m.s.head.kind == SEGMENT_RING)
             ? 0
             : EAGAIN;
}

/* ------------------------------------------------ by a thread, or the loop */

/* They only look, and take no lock. */
static bool job_look(void *argument, OsWord *word) {
  RingJob *j = argument;
  const Ring *r = j->ring;
  _Atomic uint32_t *busy = atomic_load(&j->busy);
  uint64_t at = atomic_load(&j->at), need = atomic_load(&j->need);
  if (busy ? atomic_load(busy) == 0 : ring_there(r, j->want, at, need))
    return true;
  if (!word)
    return false;
  j->from = at;
  j->held = busy;
  return ring_announce(r, j->want, at, need, busy, word);
}

/* Woken: for that, or somebody came or left. */
static bool job_woken(void *argument, int64_t slice) {
  RingJob *j = argument;
  Ring *r = j->ring;
  if (slice == 0)
    return atomic_load(&j->at) == j->from && atomic_load(&j->busy) == j->held;
  const void *busy = atomic_load(&j->busy);
  if (slice < (busy ? OS_SLICE : OS_SLICE_MOST) ||
      !ring_doubts(r, j->want, busy))
    return false;
  atomic_store(&r->suspect, true);
  return true;
}

static void job_nudge(void *argument) {
  const RingJob *j = argument;
  ipc_os_word_wake(&SEGMENT_READERS(&j->ring->m.s)->lock, true);
  ipc_os_word_wake(&SEGMENT_WRITERS(&j->ring->m.s)->lock, true);
  ipc_segment_rouse(ring_event(j->ring, j->want));
}

int ipc_ring_descriptor(const Handle *h, int want) {
  const Ring *r = (const Ring *)h;
  const RingJob *j = r->job[want == IPC_WRITE];
  return j ? ipc_sleeper_descriptor(&j->sleeper) : -1;
}

static RingJob *job_new(Ring *r, int want) {
  RingJob *j = calloc(1, sizeof *j);
  if (!j)
    return NULL;
  j->sleeper.look = job_look;
  j->sleeper.woken = job_woken;
  j->sleeper.nudge = job_nudge;
  j->sleeper.job = j;
  j->ring = r;
  j->want = want;
  return j;
}

int ipc_ring_arm(Handle *h, int want, Sleepers *by) {
  Ring *r = (Ring *)h;
  RingJob **at = &r->job[want == IPC_WRITE], *j = *at;
  if (!r->m.begun)
    return EAGAIN;
  if (!j)
    j = *at = job_new(r, want);
  if (!j)
    return ENOMEM;
  _Atomic uint32_t *busy = ring_busy(r, want);
  bool waits = ipc_sleeper_keep(&j->sleeper, by);
  bool other = j->at != r->at || j->need != r->need || j->busy != busy;
  if (waits && !other)
    return 0;
  j->at = r->at;
  j->need = r->need;
  j->busy = busy;
  if (waits && ipc_sleeper_nudge(&j->sleeper))
    return 0; /* it looks at these from now on */
  if (!busy && ipc_ring_ready(h, want, true) == 0)
    return ipc_sleeper_wake(&j->sleeper, by);
  return ipc_sleeper_start(&j->sleeper, by);
}

static void jobs_end(Ring *r, bool foreign) {
  for (int i = 0; i < 2; i++) {
    if (r->job[i])
      ipc_sleeper_close(&r->job[i]->sleeper, foreign);
    free(r->job[i]);
    r->job[i] = NULL;
  }
}

/* ------------------------------------------------------------ close, fork */

void ipc_ring_close(Handle *h, How how) {
  Ring *r = (Ring *)h;
  bool foreign = h->foreign || h->generation != ipc_generation;
  jobs_end(r, foreign);
  if (r->robbed)
    r->m.begun = false; /* nothing may be touched */
  if (!foreign && !h->moved && r->m.begun)
    ipc_ring_give_back(r);
  ipc_member_close(&r->m, h, how);
  ipc_buffer_free(&r->ahead);
  r->ahead_at = 0;
}

/* An object stays here, so the child becomes a participant of its own. */
int ipc_ring_forking(Handle *h) {
  Ring *r = (Ring *)h;
  for (int i = 0; i < 2; i++)
    if (r->job[i])
      ipc_sleeper_stop(&r->job[i]->sleeper);
  return ipc_member_forking(&r->m, h->moves);
}

void ipc_ring_forked(Handle *h, bool child) {
  Ring *r = (Ring *)h;
  ipc_member_forked(&r->m, h->moves, child);
  if (!child || h->moves)
    return;
  jobs_end(r, true);
  ipc_buffer_free(&r->ahead);
  r->ahead_at = 0;
  r->leased = r->reserved = r->peeked = false;
  r->tickets = 0;
  if (r->m.begun)
    ipc_ring_place(r);
}
