/* A bare ring in shared memory, in raw C: whole messages, one process at each
 * side, or many that take turns by a lock which names its owner. Nothing that
 * a crash needs: no takeover, no liveness, no checks of what the other wrote.
 *
 * Each side keeps its own position and a copy of the other's, which it renews
 * when that no longer does. Waiting as in raw.h, with futex(2) for sleeping. */
#ifndef BENCH_RING_H
#define BENCH_RING_H

#include "base.h"

#include <linux/futex.h>
#include <linux/membarrier.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

enum {
  RING_HEADER = 8,      /* of a record: the size, padded */
  RING_LOOKS = 32,      /* between two looks at the clock */
  RING_LAG = 31,        /* pauses of about 25 ns */
  RING_GATHER = 64,     /* of so many parts of a ring one at most gathers */
  RING_TRIES = 100,     /* for a lock, before sleeping */
  RING_STRIDES = 8,     /* a sole reader gives space back so often a round */
  RING_WANTED = 1 << 30 /* in a lock: somebody sleeps for it */
};

/* What a side shares. `position` is where it stands, in bytes since the start;
 * `event` counts in twos, and bit 0 says that somebody sleeps until `position`
 * moves on. */
typedef struct Side {
  _Alignas(64) _Atomic uint64_t position;
  _Atomic uint32_t event;
  _Alignas(64) _Atomic uint32_t lock; /* 0, or its owner */
} Side;

typedef struct Shared {
  Side writer, reader;
  _Atomic uint32_t writers; /* that have not left */
} Shared;

/* One process's view of it. */
typedef struct Ring {
  Shared *shared;
  char *bytes; /* mapped twice, so that no record wraps */
  uint64_t capacity;
  uint64_t head, tail; /* ours is exact, the other's was so once */
  uint64_t returned;   /* what a sole reader last told */
  bool many, learning;
  bool fences; /* the kernel cannot do it for the sleeper */
  Wait wait[2];
  unsigned lag;  /* pauses of a reader before it looks */
  uint64_t last; /* what the message before took up */
} Ring;

/* -------------------------------------------------------------- mapping */

/* For each process, after a fork too: its stores become visible to those that
 * are about to sleep without a fence of its own. */
static inline void ring_attach(Ring *r) {
  r->fences = syscall(SYS_membarrier, MEMBARRIER_CMD_REGISTER_GLOBAL_EXPEDITED,
                      0, 0) != 0;
}

/* capacity: a power of two of at least a page. */
static inline void ring_new(Ring *r, uint64_t capacity, bool many,
                            unsigned writers, bool learning) {
  size_t size = (size_t)capacity;
  int fd = (int)syscall(SYS_memfd_create, "bench", 0);
  if (fd < 0 || ftruncate(fd, (off_t)size))
    raw_die("memfd_create");
  char *at =
      mmap(NULL, 2 * size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  for (int i = 0; at != MAP_FAILED && i < 2; i++)
    if (mmap(at + (size_t)i * size, size, PROT_READ | PROT_WRITE,
             MAP_SHARED | MAP_FIXED | MAP_POPULATE, fd, 0) == MAP_FAILED)
      raw_die("mmap");
  Shared *shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE,
                        MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (at == MAP_FAILED || shared == MAP_FAILED)
    raw_die("mmap");
  close(fd);
  *r = (Ring){.shared = shared,
              .bytes = at,
              .capacity = capacity,
              .many = many,
              .learning = learning};
  atomic_store(&shared->writers, writers);
  ring_attach(r);
}

static inline char *ring_at(const Ring *r, uint64_t position) {
  return r->bytes + (position & (r->capacity - 1));
}

/* -------------------------------------------------------------- waiting */

static inline void ring_futex_wait(_Atomic uint32_t *word, uint32_t value) {
  struct timespec t = {RAW_PATIENCE, 0};
  if (syscall(SYS_futex, word, FUTEX_WAIT, value, &t, NULL, 0) &&
      errno != EAGAIN && errno != EINTR)
    raw_die("futex");
}

static inline void ring_futex_wake(_Atomic uint32_t *word, int most) {
  syscall(SYS_futex, word, FUTEX_WAKE, most, NULL, NULL, 0);
}

static inline void ring_pause(void) {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

/* After a position has moved on. */
static inline void ring_wake(Ring *r, Side *side) {
  if (r->fences)
    atomic_thread_fence(memory_order_seq_cst);
  else
    atomic_signal_fence(memory_order_seq_cst);
  uint32_t v = atomic_load_explicit(&side->event, memory_order_relaxed);
  if (v & 1 && atomic_compare_exchange_strong(&side->event, &v, v + 1))
    ring_futex_wake(&side->event, INT32_MAX);
}

/* What a sole reader has kept to itself. */
static inline void ring_return(Ring *r) {
  if (r->many || r->returned == r->head)
    return;
  r->returned = r->head;
  atomic_store_explicit(&r->shared->reader.position, r->head,
                        memory_order_release);
  ring_wake(r, &r->shared->reader);
}

/* Among many the copies may be more than a round apart. */
static inline bool ring_fits(const Ring *r, uint64_t need) {
  return r->tail - r->head + need <= r->capacity;
}

/* Renews the copy of the other's position, of many also our own: whether
 * there is a message, or room for `need` bytes. */
static inline bool ring_ready(Ring *r, bool writing, uint64_t need) {
  Shared *s = r->shared;
  if (writing || r->many)
    r->head = atomic_load_explicit(&s->reader.position, memory_order_acquire);
  if (!writing || r->many)
    r->tail = atomic_load_explicit(&s->writer.position, memory_order_acquire);
  return writing ? ring_fits(r, need) : r->tail != r->head;
}

/* No writer is left, and so no message will come. */
static inline bool ring_over(Ring *r) {
  return atomic_load_explicit(&r->shared->writers, memory_order_acquire) == 0;
}

static inline void ring_sleep(Ring *r, bool writing, uint64_t need) {
  Side *side = writing ? &r->shared->reader : &r->shared->writer;
  uint32_t v = atomic_fetch_or(&side->event, 1) | 1;
  if (!r->fences)
    syscall(SYS_membarrier, MEMBARRIER_CMD_GLOBAL_EXPEDITED, 0, 0);
  if (!ring_ready(r, writing, need) && (writing || !ring_over(r)))
    ring_futex_wait(&side->event, v);
}

/* A reader that keeps pace with the writer takes each line from it while that
 * writes. When a wait found something at once it lets messages gather before
 * the next look, as long as more than one does: who asks and answers never
 * pauses so. */
static inline void ring_lag(Ring *r, bool at_once) {
  uint64_t there = r->tail - r->head;
  bool slow = at_once && there < r->capacity / RING_GATHER &&
              (r->lag == 0 || there > r->last);
  r->lag = slow ? r->lag * 2 + 1 : r->lag / 2;
  if (r->lag > RING_LAG)
    r->lag = RING_LAG;
}

/* Until a message is there or room for `need` bytes; false: it is over. Among
 * many another process may be faster. */
static inline bool ring_wait(Ring *r, bool writing, uint64_t need) {
  Wait *w = &r->wait[writing];
  int64_t until = 0;
  int looks = 0;
  if (!writing)
    ring_return(r);
  for (unsigned i = 0; !writing && i < r->lag; i++)
    ring_pause();
  for (;;) {
    for (int i = until ? RING_LOOKS : 1; i > 0; i--) {
      if (ring_ready(r, writing, need)) {
        if (until)
          w->penalty = 0;
        if (!writing)
          ring_lag(r, looks < 2);
        return true;
      }
      ring_pause();
      looks++;
    }
    if (!writing && ring_over(r))
      return ring_ready(r, writing, need);
    if (!r->learning || raw_tired(w, &until))
      ring_sleep(r, writing, need);
  }
}

/* ---------------------------------------------------------------- locks */

static inline void ring_lock(_Atomic uint32_t *lock, uint32_t me) {
  uint32_t v = 0;
  for (int i = 0; i < RING_TRIES; i++) {
    v = 0;
    if (atomic_compare_exchange_weak_explicit(
            lock, &v, me, memory_order_acquire, memory_order_relaxed))
      return;
    ring_pause();
  }
  for (;;) {
    v = atomic_load_explicit(lock, memory_order_relaxed);
    if (v == 0) {
      if (atomic_compare_exchange_weak_explicit(lock, &v, me | RING_WANTED,
                                                memory_order_acquire,
                                                memory_order_relaxed))
        return;
    } else if (v & RING_WANTED ||
               atomic_compare_exchange_strong(lock, &v, v | RING_WANTED)) {
      ring_futex_wait(lock, v | RING_WANTED);
    }
  }
}

static inline void ring_unlock(_Atomic uint32_t *lock, uint32_t me) {
  uint32_t v = me;
  if (atomic_compare_exchange_strong_explicit(lock, &v, 0, memory_order_release,
                                              memory_order_relaxed))
    return;
  v = me | RING_WANTED;
  if (!atomic_compare_exchange_strong_explicit(
          lock, &v, 0, memory_order_release, memory_order_relaxed))
    raw_die("a lock");
  ring_futex_wake(lock, 1);
}

/* ------------------------------------------------------------- messages */

static inline uint64_t ring_need(uint64_t size) {
  return RING_HEADER + ((size + 7) & ~UINT64_C(7));
}

/* Room for a message of `size` bytes, to be filled and committed. */
static inline char *ring_reserve(Ring *r, size_t size) {
  uint64_t need = ring_need(size);
  if (need > r->capacity)
    raw_die("a ring too small");
  if (!ring_fits(r, need))
    ring_wait(r, true, need);
  memcpy(ring_at(r, r->tail), &(uint64_t){size}, RING_HEADER);
  return ring_at(r, r->tail) + RING_HEADER;
}

static inline void ring_commit(Ring *r, size_t size) {
  r->tail += ring_need(size);
  atomic_store_explicit(&r->shared->writer.position, r->tail,
                        memory_order_release);
  ring_wake(r, &r->shared->writer);
}

static inline void ring_send(Ring *r, const char *bytes, size_t size) {
  memcpy(ring_reserve(r, size), bytes, size);
  ring_commit(r, size);
}

/* The next message where it lies; NULL when it is over. */
static inline const char *ring_peek(Ring *r, size_t *size) {
  uint64_t head;
  *size = 0;
  if (r->tail == r->head && !ring_wait(r, false, 0))
    return NULL;
  memcpy(&head, ring_at(r, r->head), RING_HEADER);
  *size = (size_t)head;
  return ring_at(r, r->head) + RING_HEADER;
}

static inline void ring_release(Ring *r, size_t size) {
  r->last = ring_need(size);
  r->head += r->last;
  if (r->head - r->returned >= r->capacity / RING_STRIDES)
    ring_return(r);
}

/* The same among many. me: this process's number, from 1. */
static inline void ring_send_many(Ring *r, uint32_t me, const char *bytes,
                                  size_t size) {
  Shared *s = r->shared;
  uint64_t need = ring_need(size);
  ring_lock(&s->writer.lock, me);
  r->tail = atomic_load_explicit(&s->writer.position, memory_order_relaxed);
  while (!ring_fits(r, need) && !ring_ready(r, true, need)) {
    ring_unlock(&s->writer.lock, me);
    ring_wait(r, true, need);
    ring_lock(&s->writer.lock, me);
    r->tail = atomic_load_explicit(&s->writer.position, memory_order_relaxed);
  }
  memcpy(ring_at(r, r->tail), &(uint64_t){size}, RING_HEADER);
  memcpy(ring_at(r, r->tail) + RING_HEADER, bytes, size);
  atomic_store_explicit(&s->writer.position, r->tail + need,
                        memory_order_release);
  ring_unlock(&s->writer.lock, me);
  ring_wake(r, &s->writer);
}

/* Copies the next message of at most `room` bytes; false when it is over. */
static inline bool ring_recv_many(Ring *r, uint32_t me, char *bytes,
                                  size_t room, size_t *size) {
  Shared *s = r->shared;
  uint64_t n;
  ring_lock(&s->reader.lock, me);
  r->head = atomic_load_explicit(&s->reader.position, memory_order_relaxed);
  while (r->tail <= r->head && !ring_ready(r, false, 0)) {
    ring_unlock(&s->reader.lock, me);
    if (!ring_wait(r, false, 0))
      return false;
    ring_lock(&s->reader.lock, me);
    r->head = atomic_load_explicit(&s->reader.position, memory_order_relaxed);
  }
  memcpy(&n, ring_at(r, r->head), RING_HEADER);
  if (n > room)
    raw_die("too big");
  memcpy(bytes, ring_at(r, r->head) + RING_HEADER, (size_t)n);
  *size = (size_t)n;
  r->last = ring_need(n);
  atomic_store_explicit(&s->reader.position, r->head + r->last,
                        memory_order_release);
  ring_unlock(&s->reader.lock, me);
  ring_wake(r, &s->reader);
  return true;
}

/* A writer that will send no more. */
static inline void ring_leave(Ring *r) {
  atomic_fetch_sub(&r->shared->writers, 1);
  atomic_thread_fence(memory_order_seq_cst);
  ring_wake(r, &r->shared->writer);
}

#endif
