/* Locks in shared memory; see cell.h. Any user may be killed at any
 * instruction: each change is one store, made by the slot it is about (or, of a
 * dead one, by who found it dead), and what all have together is counted anew
 * each time. So nothing is ever half done. Words of others are read once, and
 * believed in nothing but what they deny us. */
#include "prefix.h"

#include <errno.h>

#include "cell.h"
#include "os.h"

enum {
  SPINS = 60,   /* looks at a lock before it counts as held */
  TRIES = 1000, /* at a word that others keep changing */
  WAITING_BITS = 15,
  ARRIVED_BITS = 12,
  HISTORY_BITS = 20 /* rounds of a barrier whose end is remembered */
};

#define WAITING(word) ((word)&CELL_WAITING)
#define TOLD(word) ((word) >> WAITING_BITS & CELL_WAITING)
#define ARRIVED(word) ((word) & ((UINT32_C(1) << ARRIVED_BITS) - 1))
#define ROUND(number) ((number) & ((UINT32_C(1) << HISTORY_BITS) - 1))

uint32_t ipc_cell_size(uint32_t slots) {
  enum { LINE = 64 };
  size_t size = sizeof(Cell) + slots * sizeof(uint32_t);
  return (uint32_t)((size + LINE - 1) / LINE * LINE);
}

uint32_t ipc_cell_count(const Segment *s) {
  return s->head.extra / ipc_cell_size(s->head.slots);
}

Cell *ipc_cell_at(const Segment *s, uint32_t i) {
  char *first = SEGMENT_EXTRA(s);
  return (Cell *)(void *)(first + (size_t)i * ipc_cell_size(s->head.slots));
}

uint32_t ipc_cell_is(const Cell *c, uint32_t *count) {
  uint64_t is = atomic_load(&c->is);
  *count = (uint32_t)(is >> 32);
  return (uint32_t)is;
}

uint32_t ipc_cell_make(Cell *c, uint32_t how, uint32_t *count) {
  uint64_t nothing = 0, is = (uint64_t)*count << 32 | how;
  (void)atomic_compare_exchange_strong(&c->is, &nothing, is);
  return ipc_cell_is(c, count);
}

/* Slots that may have something of it. */
static uint32_t cell_top(const Segment *s, const Cell *c) {
  uint32_t top = atomic_load(&c->top);
  return top < s->head.slots ? top : s->head.slots;
}

/* Before our slot has something. */
static void cell_enter(const CellUse *u) {
  uint32_t top = atomic_load_explicit(&u->cell->top, memory_order_relaxed);
  for (int i = 0; top <= u->s->slot && i < TRIES; i++)
    if (atomic_compare_exchange_strong(&u->cell->top, &top, u->s->slot + 1))
      break;
}

/* EAGAIN: sleeps until somebody tells of a change. What is to be waited for
 * must be looked at again. */
static void cell_announce(CellUse *u) {
  u->word = &u->cell->event.count;
  u->value = ipc_segment_announce(u->s, &u->cell->event);
}

static void cell_tell(const Segment *s, Cell *c) {
  ipc_segment_tell(s, &c->event);
}

/* Whether nobody has another's slot; asks the kernel only on suspicion. */
static bool cell_dead(const CellUse *u, uint32_t slot) {
  return u->suspect && slot != u->s->slot && ipc_segment_vacant(u->s, slot);
}

/* ------------------------------------------------------------------- locks */

/* Takes a lock of a dead owner: 0, EAGAIN: it lives. */
static int lock_over(CellUse *u, _Atomic uint32_t *lock, uint32_t now) {
  bool dead = (now & ~SEGMENT_WAITS) == CELL_ORPHAN;
  if (!dead && u->suspect) {
    int err = ipc_segment_dead(u->s, now, &dead);
    if (err)
      return err;
  }
  /* From exactly what the dead one left: nobody takes it twice. */
  if (!dead ||
      !atomic_compare_exchange_strong(lock, &now, u->s->me | SEGMENT_WAITS))
    return EAGAIN;
  u->takeovers++;
  u->waited = false;
  return 0;
}

/* EAGAIN: sleep on it. */
static int lock_await(CellUse *u, _Atomic uint32_t *lock) {
  uint32_t now = atomic_load(lock);
  if (now != 0 && !(now & SEGMENT_WAITS))
    (void)atomic_compare_exchange_strong(lock, &now, now | SEGMENT_WAITS);
  u->word = lock;
  u->value = now | SEGMENT_WAITS; /* anything else there: no sleep */
  u->waited = true;
  return EAGAIN;
}

/* *over: from one who died. */
static int lock_take(CellUse *u, _Atomic uint32_t *lock, bool *over) {
  uint32_t me = u->s->me, mine = u->waited ? me | SEGMENT_WAITS : me;
  uint32_t now = 0;
  for (int i = 0; i < SPINS; i++, now = 0) {
    if (atomic_compare_exchange_strong_explicit(
            lock, &now, mine, memory_order_acquire, memory_order_relaxed)) {
      u->waited = false;
      return 0;
    }
    while (i < SPINS && atomic_load_explicit(lock, memory_order_relaxed) != 0) {
      ipc_os_pause();
      i++;
    }
  }
  now = atomic_load(lock);
  if ((now & ~SEGMENT_WAITS) == me) /* which the caller knows better */
    return ipc_segment_fault(u->s, SEGMENT_OWNER);
  int err = now ? lock_over(u, lock, now) : EAGAIN;
  *over = !err;
  return err == EAGAIN ? lock_await(u, lock) : err;
}

int ipc_cell_lock(CellUse *u) {
  bool over = false;
  int err = lock_take(u, &u->cell->lock, &over);
  if (over) /* who is killed before this leaves it to be taken over again */
    atomic_store(&u->cell->broken, 1);
  return err;
}

int ipc_cell_unlock(CellUse *u) {
  return ipc_segment_release(u->s, &u->cell->lock);
}

int ipc_cell_lock_behind(CellUse *u) { return lock_await(u, &u->cell->lock); }

/* The lock around changes of what slots have. */
static int cell_guard(CellUse *u) {
  bool over;
  return lock_take(u, &u->cell->lock, &over);
}

static int cell_unguard(CellUse *u) {
  return ipc_segment_release(u->s, &u->cell->lock);
}

/* ------------------------------------------------------------------ rwlock */

/* What others do, the dead left out. Under the guard. */
static int share_look(CellUse *u, uint32_t n[4]) {
  Cell *c = u->cell;
  uint32_t top = cell_top(u->s, c);
  for (uint32_t i = 0; i < top; i++) {
    uint32_t does = atomic_load(&c->held[i]);
    if (does == 0 || (i == u->s->slot && does != CELL_LEFT))
      continue;
    if (does > CELL_LEFT)
      return ipc_segment_fault(u->s, SEGMENT_OWNER);
    bool dead = does == CELL_LEFT || cell_dead(u, i);
    if (!dead) {
      n[does]++;
      continue;
    }
    if (does == CELL_WRITES || does == CELL_LEFT)
      atomic_store(&c->broken, 1);
    atomic_store(&c->held[i], 0);
    u->takeovers++;
  }
  return 0;
}

static int share_try(CellUse *u, CellOwn *own, bool write, bool wish,
                     bool turn) {
  uint32_t n[4] = {0};
  int err = cell_guard(u);
  if (err)
    return err;
  err = share_look(u, n);
  if (!err) {
    bool ok = write ? n[CELL_READS] + n[CELL_WRITES] == 0
                    : n[CELL_WRITES] == 0 && (turn || n[CELL_WANTS] == 0);
    uint32_t does = ok ? (write ? CELL_WRITES : CELL_READS) : 0;
    cell_enter(u);
    atomic_store(&u->cell->held[u->s->slot], does   ? does
                                             : wish ? CELL_WANTS
                                                    : 0);
    own->held = does;
    err = ok ? 0 : EAGAIN;
  }
  int lost = cell_unguard(u);
  return lost ? lost : err;
}

/* Those who want to write go first; but who waited to read while one wrote goes
 * before the next. `since` is the caller's, 0 when its call begins. */
int ipc_cell_share(CellUse *u, CellOwn *own, bool write, bool wish,
                   uint32_t *since) {
  uint32_t writers = atomic_load(&u->cell->state) | 1;
  bool turn = *since != 0 && *since != writers;
  u->word = NULL;
  int err = share_try(u, own, write, wish, turn);
  if (*since == 0)
    *since = writers;
  if (err != EAGAIN || u->word)
    return err;
  cell_announce(u);
  return share_try(u, own, write, wish, turn);
}

void ipc_cell_unshare(CellUse *u, CellOwn *own) {
  Cell *c = u->cell;
  if (own->held == CELL_WRITES)
    atomic_fetch_add(&c->state, 2);
  own->held = 0;
  atomic_store(&c->held[u->s->slot], 0);
  cell_tell(u->s, c);
}

void ipc_cell_unwant(CellUse *u, const CellOwn *own) {
  if (own->held)
    return;
  atomic_store(&u->cell->held[u->s->slot], 0);
  cell_tell(u->s, u->cell);
}

/* --------------------------------------------------------------- semaphore */

/* Permits that slots have, the dead left out. */
static uint64_t permits_held(CellUse *u, bool reclaim) {
  Cell *c = u->cell;
  uint64_t sum = 0;
  uint32_t top = cell_top(u->s, c);
  for (uint32_t i = 0; i < top; i++) {
    uint32_t n = atomic_load(&c->held[i]);
    if (n && reclaim && cell_dead(u, i)) {
      atomic_store(&c->held[i], 0);
      u->takeovers++;
      n = 0;
    }
    sum += n;
  }
  return sum;
}

static int acquire_owned(CellUse *u, CellOwn *own, uint32_t n) {
  int err = cell_guard(u);
  if (err)
    return err;
  if (permits_held(u, true) + n > u->count) {
    err = EAGAIN;
  } else {
    cell_enter(u);
    own->held += n;
    atomic_store(&u->cell->held[u->s->slot], own->held);
  }
  int lost = cell_unguard(u);
  return lost ? lost : err;
}

/* Permits that are nobody's: as many as there were at first, and those given
 * less those taken. */
static uint32_t permits_free(const CellUse *u, uint32_t state) {
  uint32_t n = u->count + state;
  return n <= CELL_PERMITS ? n : 0;
}

static int acquire_counted(const CellUse *u, uint32_t n) {
  uint32_t now = atomic_load(&u->cell->state);
  for (int i = 0; i < TRIES; i++) {
    if (permits_free(u, now) < n)
      return EAGAIN;
    if (atomic_compare_exchange_weak(&u->cell->state, &now, now - n))
      return 0;
  }
  return EAGAIN;
}

static int acquire_try(CellUse *u, CellOwn *own, uint32_t n) {
  return u->how & CELL_COUNTS ? acquire_counted(u, n)
                              : acquire_owned(u, own, n);
}

int ipc_cell_acquire(CellUse *u, CellOwn *own, uint32_t n) {
  u->word = NULL;
  int err = acquire_try(u, own, n);
  if (err != EAGAIN || u->word)
    return err;
  cell_announce(u);
  return acquire_try(u, own, n);
}

int ipc_cell_give(CellUse *u, CellOwn *own, uint32_t n) {
  Cell *c = u->cell;
  if (u->how & CELL_COUNTS) {
    uint32_t now = atomic_load(&c->state);
    bool done = false;
    for (int i = 0; i < TRIES && !done; i++) {
      if (n > CELL_PERMITS - permits_free(u, now))
        return EOVERFLOW;
      done = atomic_compare_exchange_weak(&c->state, &now, now + n);
    }
    if (!done)
      atomic_fetch_add(&c->state, n);
  } else {
    own->held -= n;
    atomic_store(&c->held[u->s->slot], own->held);
  }
  cell_tell(u->s, c);
  return 0;
}

/* --------------------------------------------------------------- condition */

int ipc_cell_expect(CellUse *u) {
  _Atomic uint32_t *word = &u->cell->held[u->s->slot];
  uint32_t now = atomic_load(word);
  if (WAITING(now) + TOLD(now) >= CELL_WAITING)
    return ENOBUFS;
  cell_enter(u);
  atomic_fetch_add(word, 1);
  return 0;
}

/* From waiting to told, in turn from slot to slot. */
void ipc_cell_notify(Segment *s, Cell *c, uint32_t n) {
  const uint32_t one = UINT32_C(1) << WAITING_BITS;
  uint32_t top = cell_top(s, c), told = 0;
  uint32_t first = top ? atomic_load(&c->state) % top : 0;
  bool some = true;
  for (uint32_t i = 0; some && told < n && i < TRIES; i++) {
    uint32_t most = i < WAITING_BITS ? UINT32_C(1) << i : CELL_WAITING;
    some = false;
    for (uint32_t k = 0; k < top && told < n; k++) {
      uint32_t slot = (first + k) % top;
      uint32_t now = atomic_load(&c->held[slot]), more = WAITING(now);
      if (more > n - told)
        more = n - told;
      if (more > most) /* each slot in its turn */
        more = most;
      if (more > CELL_WAITING - TOLD(now))
        more = CELL_WAITING - TOLD(now);
      if (more == 0)
        continue;
      some = true;
      if (!atomic_compare_exchange_strong(&c->held[slot], &now,
                                          now - more + more * one))
        continue;
      told += more;
      atomic_store(&c->state, slot + 1);
    }
  }
  cell_tell(s, c);
}

/* What a dead one was told is told to others, before it is taken from it: who
 * is killed in between lets others hear it twice. The slot must stay its own.
 */
static void expect_hand_on(Segment *s, Cell *c, uint32_t slot) {
  for (int i = 0; i < TRIES; i++) {
    uint32_t now = atomic_load(&c->held[slot]);
    uint32_t told = now & ~(uint32_t)CELL_WAITING; /* nobody waits there */
    if (now != told &&
        !atomic_compare_exchange_strong(&c->held[slot], &now, told))
      continue;
    if (TOLD(told))
      ipc_cell_notify(s, c, TOLD(told));
    if (atomic_compare_exchange_strong(&c->held[slot], &told, 0))
      return;
  }
}

/* While it looks nobody takes the place of one who is dead: what another waits
 * for there would be taken for the dead one's. */
static void expect_reclaim(CellUse *u) {
  Cell *c = u->cell;
  uint32_t top = cell_top(u->s, c);
  bool some = false;
  for (uint32_t i = 0; i < top && !some; i++)
    some = atomic_load(&c->held[i]) != 0 && cell_dead(u, i);
  if (!some || ipc_segment_pin(u->s))
    return; /* nothing, or another time */
  for (uint32_t i = 0; i < top; i++)
    if (atomic_load(&c->held[i]) != 0 && cell_dead(u, i)) {
      expect_hand_on(u->s, c, i);
      u->takeovers++;
    }
  ipc_segment_unpin(u->s);
}

/* Several calls wait through one slot: what one of them was told is its own
 * from here on. */
static int expect_try(const CellUse *u, CellOwn *own) {
  uint32_t now = atomic_load(&u->cell->held[u->s->slot]);
  if (TOLD(now) <= own->held)
    return EAGAIN;
  own->held++;
  return 0;
}

int ipc_cell_told(CellUse *u, CellOwn *own) {
  int err = expect_try(u, own);
  if (err != EAGAIN)
    return err;
  if (u->suspect)
    expect_reclaim(u);
  cell_announce(u);
  return expect_try(u, own);
}

void ipc_cell_unexpect(CellUse *u, CellOwn *own, bool told, bool acted) {
  _Atomic uint32_t *word = &u->cell->held[u->s->slot];
  const uint32_t one = UINT32_C(1) << WAITING_BITS;
  if (told && own->held)
    own->held--;
  for (int i = 0; i < TRIES; i++) {
    uint32_t now = atomic_load(word);
    if (!acted && WAITING(now)) { /* what it was told is for who waits here */
      if (atomic_compare_exchange_strong(word, &now, now - 1))
        return;
      continue;
    }
    if (TOLD(now) == 0)
      return; /* somebody else wrote there */
    if (!acted)
      ipc_cell_notify(u->s, u->cell, 1);
    acted = true;
    if (atomic_compare_exchange_strong(word, &now, now - one))
      return;
  }
}

/* ------------------------------------------------------------------- event */

bool ipc_cell_is_set(const Cell *c) { return atomic_load(&c->state) != 0; }

void ipc_cell_set(CellUse *u, bool on) {
  atomic_store(&u->cell->state, on ? 1 : 0);
  if (on)
    cell_tell(u->s, u->cell);
}

static int event_try(const CellUse *u) {
  uint32_t now = atomic_load(&u->cell->state);
  if (now == 0)
    return EAGAIN;
  if (u->how & CELL_AUTO &&
      !atomic_compare_exchange_strong(&u->cell->state, &now, 0))
    return EAGAIN;
  return 0;
}

int ipc_cell_await(CellUse *u) {
  int err = event_try(u);
  if (err != EAGAIN)
    return err;
  cell_announce(u);
  return event_try(u);
}

/* ----------------------------------------------------------------- barrier */

static uint64_t round_next(uint64_t now, bool died) {
  uint32_t history = ROUND((uint32_t)now >> ARRIVED_BITS) << 1 | died;
  return ((now >> 32) + 1) << 32 | (uint64_t)ROUND(history) << ARRIVED_BITS;
}

/* One who had arrived is dead: the round is over for the others, too. True: it
 * is. */
static bool round_break(Segment *s, Cell *c, uint64_t now, uint32_t has) {
  if (ARRIVED(has) == 0 ||
      has >> ARRIVED_BITS != ROUND((uint32_t)(now >> 32)) ||
      !atomic_compare_exchange_strong(&c->round, &now, round_next(now, true)))
    return false;
  cell_tell(s, c);
  return true;
}

static void round_reclaim(CellUse *u) {
  Cell *c = u->cell;
  uint32_t top = cell_top(u->s, c);
  for (uint32_t i = 0; i < top; i++) {
    uint64_t now = atomic_load(&c->round);
    uint32_t has = atomic_load(&c->held[i]);
    if (has == 0 || !cell_dead(u, i))
      continue;
    if (round_break(u->s, c, now, has) ||
        has >> ARRIVED_BITS != ROUND((uint32_t)(now >> 32))) {
      (void)atomic_compare_exchange_strong(&c->held[i], &has, 0);
      u->takeovers++;
    }
  }
}

int ipc_cell_arrive(CellUse *u, CellOwn *own, uint32_t *round, bool *last) {
  Cell *c = u->cell;
  uint64_t now = atomic_load(&c->round);
  cell_enter(u);
  for (int i = 0; i < TRIES; i++) {
    uint32_t number = (uint32_t)(now >> 32);
    uint32_t mine = own->round == number ? own->held : 0;
    if (mine == CELL_PARTIES)
      return ipc_segment_fault(u->s, SEGMENT_OWNER);
    /* First ours, then the sum: killed in between it has died waiting. */
    atomic_store(&c->held[u->s->slot],
                 ROUND(number) << ARRIVED_BITS | (mine + 1));
    *last = ARRIVED((uint32_t)now) + 1 >= u->count;
    if (atomic_compare_exchange_strong(
            &c->round, &now, *last ? round_next(now, false) : now + 1)) {
      own->round = *round = number;
      own->held = mine + 1;
      if (*last)
        cell_tell(u->s, c);
      return 0;
    }
  }
  atomic_store(&c->held[u->s->slot],
               own->held ? ROUND(own->round) << ARRIVED_BITS | own->held : 0);
  return EBUSY;
}

static int round_over(const Cell *c, uint32_t round) {
  uint64_t now = atomic_load(&c->round);
  uint32_t later = (uint32_t)(now >> 32) - round;
  uint32_t history = (uint32_t)now >> ARRIVED_BITS;
  if (later == 0)
    return EAGAIN;
  if (later > HISTORY_BITS || (history >> (later - 1) & 1))
    return EOWNERDEAD;
  return 0;
}

int ipc_cell_passed(CellUse *u, uint32_t round) {
  int err = round_over(u->cell, round);
  if (err != EAGAIN)
    return err;
  if (u->suspect)
    round_reclaim(u);
  cell_announce(u);
  return round_over(u->cell, round);
}

int ipc_cell_withdraw(CellUse *u, CellOwn *own, uint32_t round) {
  Cell *c = u->cell;
  uint64_t now = atomic_load(&c->round);
  for (int i = 0; i < TRIES; i++) {
    if ((uint32_t)(now >> 32) != round || ARRIVED((uint32_t)now) == 0)
      return round_over(c, round);
    if (!atomic_compare_exchange_strong(&c->round, &now, now - 1))
      continue;
    if (own->round == round && own->held) {
      own->held--;
      atomic_store(&c->held[u->s->slot],
                   own->held ? ROUND(round) << ARRIVED_BITS | own->held : 0);
    }
    return ETIMEDOUT;
  }
  return EAGAIN;
}

/* ------------------------------------------------------------- of the dead */

/* No lock is taken here: the slot's next owner has none yet. */
static void sweep_lock(Cell *c, unsigned slot, bool mutex) {
  uint32_t now = atomic_load(&c->lock);
  if (ipc_segment_slot(now) == slot &&
      atomic_compare_exchange_strong(&c->lock, &now,
                                     mutex ? CELL_ORPHAN | SEGMENT_WAITS : 0))
    ipc_os_word_wake(&c->lock, true);
}

void ipc_cell_sweep(Segment *s, Cell *c, unsigned slot) {
  uint32_t count, kind = ipc_cell_is(c, &count) & CELL_KIND;
  uint64_t round = atomic_load(&c->round);
  uint32_t has = atomic_load(&c->held[slot]), left = 0;
  sweep_lock(c, slot, kind == CELL_MUTEX);
  if (has == 0)
    return;
  if (kind == CELL_RWLOCK && (has == CELL_WRITES || has == CELL_LEFT))
    left = CELL_LEFT;
  else if (kind == CELL_CONDITION) {
    expect_hand_on(s, c, slot);
    return;
  } else if (kind == CELL_BARRIER)
    for (int i = 0; i < TRIES && !round_break(s, c, round, has); i++) {
      round = atomic_load(&c->round);
      if (has >> ARRIVED_BITS != ROUND((uint32_t)(round >> 32)))
        break;
    }
  atomic_store(&c->held[slot], left);
  cell_tell(s, c);
}

void ipc_cell_swept(Segment *s, unsigned slot) {
  uint32_t count = ipc_cell_count(s);
  for (uint32_t i = 0; i < count; i++)
    ipc_cell_sweep(s, ipc_cell_at(s, i), slot);
}

/* ------------------------------------------------------------------- stats */

void ipc_cell_figures(const CellUse *u, uint32_t n[3]) {
  const Cell *c = u->cell;
  uint32_t kind = u->how & CELL_KIND, top = cell_top(u->s, c);
  uint64_t sum = 0;
  n[0] = n[1] = n[2] = 0;
  if (kind == CELL_BARRIER) {
    uint64_t now = atomic_load(&c->round);
    n[0] = ARRIVED((uint32_t)now);
    n[1] = (uint32_t)(now >> 32);
    return;
  }
  for (uint32_t i = 0; i < top; i++) {
    uint32_t has = atomic_load(&c->held[i]);
    if (kind == CELL_RWLOCK && has >= CELL_READS && has <= CELL_WANTS)
      n[has - 1]++;
    else if (kind == CELL_CONDITION)
      n[0] += WAITING(has);
    sum += has;
  }
  if (kind != CELL_SEMAPHORE)
    return;
  if (u->how & CELL_COUNTS)
    n[0] = permits_free(u, atomic_load(&c->state));
  else
    n[0] = sum < u->count ? u->count - (uint32_t)sum : 0;
}
