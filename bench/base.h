/* What all raw C benchmarks stand on: the sizes, time, cores, and how a wait
 * learns; C++ too. No Lua and nothing of the library. */
#ifndef BENCH_BASE_H
#define BENCH_BASE_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <sched.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum {
  RAW_HEAD = 4,
  RAW_AHEAD = 64 << 10,    /* bytes read at once */
  RAW_LIMIT = 64 << 20,    /* bytes of a message */
  RAW_SMALL = 64,          /* the small message of every benchmark */
  RAW_LARGE = 1 << 20,     /* and the large one */
  RAW_RING_SIZE = 1 << 20, /* bytes of a ring for small messages */
  RAW_PATIENCE = 60,       /* seconds until a benchmark counts as hung */
  RAW_BATCHES = 100000     /* measured at most */
};

static inline void raw_die(const char *what) {
  fprintf(stderr, "bench: %s: %s\n", what, strerror(errno));
  exit(EXIT_FAILURE);
}

static inline int64_t raw_now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static inline void raw_pin(int core) {
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET((size_t)core, &set);
  if (sched_setaffinity(0, sizeof set, &set))
    raw_die("sched_setaffinity");
}

typedef struct Wait {
  unsigned skip, penalty;
} Wait;

/* After an attempt that would have to wait: whether it is time to sleep. If
 * not, the attempt is to be repeated. *until: when repeating it ends; 0 before
 * the first time. */
static inline bool raw_tired(Wait *w, int64_t *until) {
  int64_t now = raw_now();
  if (*until == 0 && w->skip == 0) {
    *until = now + 70000;
    return false;
  }
  if (*until && now < *until)
    return false;
  if (*until) {
    w->penalty = w->penalty * 2 + 1 < 1023 ? w->penalty * 2 + 1 : 1023;
    w->skip = w->penalty;
    *until = 0;
  } else {
    w->skip--;
  }
  return true;
}

static inline int raw_order(const void *a, const void *b) {
  int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
  return (x > y) - (x < y);
}

typedef struct End End; /* raw.h has them */

/* ns that a batch did something else for, which do not count. */
static int64_t raw_aside;

/* Calls batch(end), which does `count` of something, for so many seconds after
 * a tenth of that as warm-up; prints the median, in ns for each of the count.
 */
static inline void raw_measure(void (*batch)(End *e), End *e, size_t count,
                               double seconds) {
  static int64_t took[RAW_BATCHES];
  size_t n = 0;
  int64_t begin = raw_now(), length = (int64_t)(seconds * 1e9);
  do
    batch(e);
  while (raw_now() - begin < length / 10);
  begin = raw_now();
  int64_t last = begin;
  while (n < 3 || (last - begin < length && n < RAW_BATCHES)) {
    batch(e);
    int64_t now = raw_now();
    took[n++] = now - last - raw_aside;
    last = now;
  }
  qsort(took, n, sizeof *took, raw_order);
  printf("%.1f\n", (double)took[n / 2] / (double)count);
}

#endif
