/* A hostile participant: `scribble FILE SECONDS SEED` maps a segment that
 * others use and writes into it what should hurt most, until the time is over;
 * then it says how often. Shares no code with the library: the offsets are
 * those that the reference documents. */
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum {
  HEAD_SIZE = 24, /* where the head says how long it is */
  HEAD_SLOTS = 28,
  HEAD_RING = 32,
  FAULT = 132,
  LINES = 128, /* the words between the head and the participants */
  WRITERS = 256,
  READERS = 384,
  WAIT_READ = 512,
  WAIT_WRITE = 640,
  LINES_END = 768,
  LOCK = 0, /* in a side */
  NUMBER = 4,
  AT = 8,
  COUNTED = 16,
  TAKEN = 24,
  AGAIN = 40,
  PARTS = 1024,
  PART = 64
};

static volatile char *map;
static uint32_t head, slots;
static uint64_t ring;
static uint64_t seed;

static uint64_t chance(void) { /* xorshift64* */
  seed ^= seed >> 12;
  seed ^= seed << 25;
  seed ^= seed >> 27;
  return seed * UINT64_C(0x2545f4914f6cdd1d);
}

static uint64_t below(uint64_t most) { return chance() % most; }

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static uint32_t get32(size_t at) { return *(volatile uint32_t *)(map + at); }
static uint64_t get64(size_t at) { return *(volatile uint64_t *)(map + at); }
static void put32(size_t at, uint64_t v) {
  *(volatile uint32_t *)(map + at) = (uint32_t)v;
}
static void put64(size_t at, uint64_t v) {
  *(volatile uint64_t *)(map + at) = v;
}

/* The word of a lock that this slot's participant would hold. */
static uint32_t owner(uint32_t slot) {
  uint32_t tag = get32(PARTS + (size_t)slot * PART);
  return (tag >> 8 & 0x7ffff) << 12 | (slot + 1);
}

static uint32_t any_owner(void) {
  static const uint32_t never[] = {0, 0xffffffff, 0x80000000, 0xfff, 1};
  switch (below(4)) {
  case 0:
    return never[below(sizeof never / sizeof *never)];
  case 1:
    return owner((uint32_t)below(4)) | 0x80000000;
  case 2:
    return owner((uint32_t)below(slots));
  default:
    return owner((uint32_t)below(4));
  }
}

static uint64_t position(uint64_t near) {
  switch (below(7)) {
  case 0:
    return near + 16;
  case 1:
    return near - 16;
  case 2:
    return near + 16 * below(64);
  case 3:
    return near + below(16);
  case 4:
    return near + ring * below(3);
  case 5:
    return UINT64_MAX - below(64);
  default:
    return chance();
  }
}

static uint32_t length(void) {
  switch (below(6)) {
  case 0:
    return (uint32_t)(ring - 16 + below(33) - 16);
  case 1:
    return UINT32_MAX - (uint32_t)below(32);
  case 2:
    return 0;
  case 3:
    return (uint32_t)below(100);
  case 4:
    return (uint32_t)below(ring);
  default:
    return (uint32_t)chance();
  }
}

/* ------------------------------------------------------------ what it does */

static void do_noise(void) {
  size_t from = below(2) ? 0 : head, size = from ? (size_t)ring : head;
  for (uint64_t n = 1 + below(64); n > 0; n--)
    map[from + below(size)] = (char)chance();
}

static void do_positions(void) {
  static const size_t words[] = {
      WRITERS + AT,      WRITERS + COUNTED, WRITERS + TAKEN, READERS + AT,
      READERS + COUNTED, READERS + TAKEN,   WRITERS + 32,    READERS + 32};
  size_t at = words[below(sizeof words / sizeof *words)];
  put64(at, position(get64(below(2) ? at : WRITERS + AT)));
}

static void do_locks(void) {
  put32((below(2) ? WRITERS : READERS) + LOCK, any_owner());
}

/* What a message says of itself, and after it the next: all over the ring. */
static void do_records(void) {
  uint64_t at = get64(below(2) ? READERS + AT : WRITERS + AT);
  for (uint64_t n = 1 + below(16); n > 0; n--) {
    size_t here = head + (size_t)(at & (ring - 1) & ~UINT64_C(15));
    uint32_t size = get32(here);
    if (below(2))
      put32(here, length());
    if (below(2))
      put32(here + 8, any_owner());
    if (below(4) == 0)
      put32(here + 12, chance());
    at += 16 + (size < ring ? (size + 15) / 16 * 16 : 0);
  }
}

/* A chain of empty records: the longest walk there is. */
static void do_chain(void) {
  uint32_t who = below(2) ? 0xffffffff : any_owner();
  for (size_t at = head; at < head + ring; at += 16) {
    put32(at, 0);
    put32(at + 8, who);
  }
  uint64_t at = get64(READERS + AT) & ~UINT64_C(15);
  put64(READERS + TAKEN, at + ring);
  put64(WRITERS + AT, at + ring);
  put32(READERS + AGAIN, 1);
}

static void do_events(void) {
  size_t at = below(2) ? WAIT_READ : WAIT_WRITE;
  if (below(2))
    put64(at + 8, position(get64(WRITERS + AT)));
  for (uint64_t n = 1 + below(1000); n > 0; n--)
    put32(at, below(2) ? chance() : get32(at) ^ 1);
}

static void do_parts(void) {
  size_t at = PARTS + PART * (size_t)below(below(2) ? 4 : slots);
  put32(at, below(2) ? chance() : get32(at) + 256);
  put64(at + 8, below(2) ? UINT64_MAX : position(get64(WRITERS + AT)));
}

static void do_life(void) {
  size_t at = LINES + 4 * (size_t)below(5);
  put32(at, below(2) ? below(8) : chance());
}

static void do_ones(void) {
  size_t from = LINES + 64 * (size_t)below((LINES_END - LINES) / 64);
  for (size_t i = 0; i < 64; i++)
    map[from + i] = below(2) ? (char)0xff : 0;
}

/* Or all would be over with the first thing they find. */
static void heal(void) {
  put32(WRITERS + LOCK, 0);
  put32(READERS + LOCK, 0);
  uint64_t at = get64(READERS + AT) & ~UINT64_C(15);
  put64(READERS + AT, at);
  put64(READERS + TAKEN, at);
  put64(WRITERS + AT, at);
  put64(WRITERS + COUNTED, at);
  put32(LINES, 1);
  put32(LINES + 12, 2);
  put32(LINES + 16, 2);
  put32(FAULT, 0);
}

static void rest(void) {
  struct timespec t = {0, (long)below(3000000)};
  nanosleep(&t, NULL);
}

int main(int argc, char **argv) {
  static void (*const all[])(void) = {
      do_noise,  do_positions, do_locks, do_records, do_records, do_chain,
      do_events, do_parts,     do_life,  do_ones,    heal,       heal};
  struct stat st;
  if (argc != 4)
    return 2;
  double end = now() + atof(argv[2]);
  seed = strtoull(argv[3], NULL, 10) * 2654435761U + 1;
  int fd = open(argv[1], O_RDWR);
  if (fd < 0 || fstat(fd, &st) || (size_t)st.st_size < PARTS) {
    fprintf(stderr, "%s: %s\n", argv[1], strerror(errno));
    return 1;
  }
  map =
      mmap(NULL, (size_t)st.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (map == MAP_FAILED)
    return 1;
  head = get32(HEAD_SIZE);
  slots = get32(HEAD_SLOTS);
  ring = get64(HEAD_RING);
  close(fd);
  puts("mapped");
  fflush(stdout);
  unsigned long count = 0;
  while (now() < end) {
    for (uint64_t n = 1 + below(20); n > 0; n--, count++)
      all[below(sizeof all / sizeof *all)]();
    if (below(4))
      put32(FAULT, 0);
    if (below(3))
      rest();
  }
  printf("%lu\n", count);
  return 0;
}
