/* A program that joins a ring by its documented bytes (the module ipc.layout of
 * the reference) and shares no code with the library:
 *   joiner PATH send TEXT...     sends each and leaves
 *   joiner PATH receive COUNT    prints so many, a line each, and leaves
 *   joiner PATH hold r|w|lock    takes part (and takes the writers' lock),
 *                                says so, and sleeps */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define BYTES ((off_t)0x4000010000000000) /* that are locked */
#define WAITS 0x80000000U
#define FUTEX_OF_ALL_WAIT 0
#define FUTEX_OF_ALL_WAKE 1
#define BARRIER_GLOBAL_EXPEDITED 2

enum { R = 1, W = 2, SOLE_WRITER = 1, SOLE_READER = 2, LEASE = 4, PERSIST = 8 };

static int fd;
static char *base;
static uint32_t head, slots, flags, slot, me;
static uint64_t ring;

static void fail(const char *what) {
  fprintf(stderr, "joiner: %s: %s\n", what, strerror(errno));
  exit(1);
}

static uint32_t plain32(size_t at) {
  uint32_t n;
  memcpy(&n, base + at, sizeof n);
  return n;
}

static uint64_t plain64(size_t at) {
  uint64_t n;
  memcpy(&n, base + at, sizeof n);
  return n;
}

static _Atomic uint32_t *word(size_t at) {
  return (_Atomic uint32_t *)(void *)(base + at);
}

static _Atomic uint64_t *position(size_t at) {
  return (_Atomic uint64_t *)(void *)(base + at);
}

#define STATE word(128)
#define FAULT word(132)
#define CHANGES word(136)
#define CAME(role) word((role) == R ? 140 : 144)
#define LOCK(role) word((role) == R ? 384 : 256)
#define NUMBER word(260)
#define TAIL position(264)
#define HEAD position(392)
#define COUNTED position(272)
#define AGAIN word(424)
#define EVENT(role) word((role) == R ? 512 : 640)
#define ENOUGH position(648)
#define PART(i) (1024 + 64 * (size_t)(i))

/* ---- bytes */

static int byte(int command, short type, off_t at, off_t count) {
  struct flock lock = {.l_type = type,
                       .l_whence = SEEK_SET,
                       .l_start = BYTES + at,
                       .l_len = count};
  int n = fcntl(fd, command, &lock);
  return command == F_OFD_GETLK && n == 0 ? lock.l_type != F_UNLCK : n;
}

static off_t of(int role, uint32_t i) {
  return (role == R ? 0x1000 : 0x2000) + (off_t)i;
}
static int take(off_t at) { return byte(F_OFD_SETLK, F_WRLCK, at, 1); }
static int drop(off_t at) { return byte(F_OFD_SETLK, F_UNLCK, at, 1); }
static int others(int role) {
  return byte(F_OFD_GETLK, F_WRLCK, of(role, 0), (off_t)slots);
}
static int taken(uint32_t i, uint32_t count) {
  return byte(F_OFD_GETLK, F_WRLCK, 0x3000 + (off_t)i, (off_t)count);
}

/* ---- sleeping */

static void doze(_Atomic uint32_t *at, uint32_t value) {
  struct timespec slice = {.tv_nsec = 4000000};
  syscall(SYS_futex, at, FUTEX_OF_ALL_WAIT, value, &slice, NULL, 0);
}

static void rouse(_Atomic uint32_t *event) {
  atomic_fetch_and(event, ~1U);
  atomic_fetch_add(event, 2);
  syscall(SYS_futex, event, FUTEX_OF_ALL_WAKE, 0x7fffffff, NULL, NULL, 0);
}

static void tell(_Atomic uint32_t *event) {
  atomic_thread_fence(memory_order_seq_cst);
  if (atomic_load(event) & 1)
    rouse(event);
}

static uint32_t announce(_Atomic uint32_t *event) {
  uint32_t now = atomic_fetch_or(event, 1) | 1;
  syscall(SYS_membarrier, BARRIER_GLOBAL_EXPEDITED, 0, 0);
  return now;
}

/* ---- locks */

static int dead(uint32_t owner) {
  uint32_t i = (owner & 0xfff) - 1, generation = owner >> 12 & 0x7ffff;
  return atomic_load(word(PART(i))) >> 8 != generation || !taken(i, 1);
}

static void lock(_Atomic uint32_t *at) {
  for (;;) {
    uint32_t now = 0;
    if (atomic_compare_exchange_strong(at, &now, me))
      return;
    if (!(now & WAITS) &&
        !atomic_compare_exchange_strong(at, &now, now | WAITS))
      continue;
    doze(at, now | WAITS);
    now = atomic_load(at);
    if (now && dead(now) &&
        atomic_compare_exchange_strong(at, &now, me | WAITS))
      return;
  }
}

static void unlock(_Atomic uint32_t *at) {
  if (atomic_exchange(at, 0) & WAITS)
    syscall(SYS_futex, at, FUTEX_OF_ALL_WAKE, 1, NULL, NULL, 0);
}

/* ---- joining and leaving */

static void changed(void) {
  atomic_fetch_add(CHANGES, 1);
  rouse(EVENT(R));
  rouse(EVENT(W));
}

static uint32_t crc(const unsigned char *p, size_t size) {
  uint32_t sum = ~0U;
  while (size-- > 0) {
    sum ^= *p++;
    for (int bit = 0; bit < 8; bit++)
      sum = sum >> 1 ^ (sum & 1 ? 0xedb88320U : 0);
  }
  return ~sum;
}

static void map(const char *path) {
  struct stat is;
  fd = open(path, O_RDWR | O_NOFOLLOW | O_CLOEXEC);
  if (fd < 0 || fstat(fd, &is))
    fail(path);
  base =
      mmap(NULL, (size_t)is.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (base == MAP_FAILED)
    fail("mmap");
  errno = EINVAL;
  if (memcmp(base, "lua-ipc\n", 8) != 0 || plain32(8) != 1 ||
      plain32(12) != 0x01020304 || plain32(16) != 1 ||
      crc((unsigned char *)base, 124) != plain32(124))
    fail("not a ring");
  flags = plain32(20), head = plain32(24), slots = plain32(28),
  ring = plain64(32);
  if ((uint64_t)is.st_size < plain64(48) || head + ring != plain64(48) ||
      flags & LEASE)
    fail("not one for this program");
}

static void join(int role) {
  struct stat is;
  while (take(0)) /* the registry */
    usleep(200);
  int alone = !taken(0, slots);
  errno = ESTALE;
  if (fstat(fd, &is) || is.st_nlink == 0 || atomic_load(STATE) != 1 ||
      atomic_load(FAULT) || (alone && !(flags & PERSIST)))
    fail("it is on its way out");
  errno = EBUSY;
  if (flags & (role == R ? SOLE_READER : SOLE_WRITER) && others(role))
    fail("taken");
  for (slot = 0;; slot++) {
    if (slot == slots)
      fail("full");
    if (take(0x3000 + (off_t)slot))
      continue;
    if (take(of(role, slot)) == 0)
      break;
    drop(0x3000 + (off_t)slot);
  }
  for (int side = R; side <= W; side++) { /* what the slot's last owner held */
    uint32_t now = atomic_load(LOCK(side));
    if (alone || (now & 0xfff) == slot + 1)
      atomic_compare_exchange_strong(LOCK(side), &now, 0);
  }
  uint32_t generation = ((atomic_load(word(PART(slot))) >> 8) + 1) & 0x7ffff;
  atomic_store(position(PART(slot) + 8), UINT64_MAX);
  atomic_store(word(PART(slot) + 4), (uint32_t)getpid());
  atomic_store(word(PART(slot)), generation << 8 | (uint32_t)role);
  me = generation << 12 | (slot + 1);
  if (alone) {
    atomic_store(AGAIN, 1); /* at worst they look for nothing */
    atomic_store(CAME(R), 0);
  }
  atomic_fetch_add(CAME(role), 1);
  changed();
  drop(0);
}

static void leave(int role, const char *path) {
  drop(of(role, slot));
  drop(0x3000 + (off_t)slot);
  changed();
  if (flags & PERSIST || taken(0, slots))
    return;
  while (take(0))
    usleep(200);
  struct stat mine, named;
  if (!taken(0, slots)) {
    atomic_store(STATE, 2);
    if (!fstat(fd, &mine) && !lstat(path, &named) &&
        mine.st_ino == named.st_ino && mine.st_dev == named.st_dev)
      unlink(path);
  }
}

/* ---- messages: 16 bytes of head, and theirs, at multiples of 16 */

static size_t at(uint64_t where) { return head + (size_t)(where & (ring - 1)); }
static uint64_t room(uint64_t size) { return 16 + (size + 15) / 16 * 16; }

static void copy(uint64_t where, char *bytes, size_t size, int in) {
  for (size_t i = 0; i < size; i++) {
    char *shared = base + at(where + i);
    if (in)
      *shared = bytes[i];
    else
      bytes[i] = *shared;
  }
}

/* Of the next message: as noted, or one more than the last record's. */
static uint32_t number(uint64_t tail) {
  uint32_t next = atomic_load(NUMBER);
  if (atomic_load(COUNTED) == tail)
    return next;
  for (uint64_t here = atomic_load(HEAD); here != tail;
       here += room(plain32(at(here))))
    next = plain32(at(here) + 4) + 1;
  return next;
}

static void send_one(char *text) {
  size_t size = strlen(text);
  for (;;) {
    if (!(flags & SOLE_WRITER))
      lock(LOCK(W));
    uint64_t tail = atomic_load(TAIL), free_of = tail + room(size) - ring;
    if ((int64_t)(atomic_load(HEAD) - free_of) >= 0) {
      uint32_t n = number(tail), record[4] = {(uint32_t)size, n, 0, 0};
      memcpy(base + at(tail), record, sizeof record);
      copy(tail + 16, text, size, 1);
      atomic_store_explicit(TAIL, tail + room(size), memory_order_release);
      atomic_store(NUMBER, n + 1);
      atomic_store(COUNTED, tail + room(size));
      if (!(flags & SOLE_WRITER))
        unlock(LOCK(W));
      tell(EVENT(R));
      return;
    }
    if (!(flags & SOLE_WRITER))
      unlock(LOCK(W));
    atomic_store(ENOUGH, free_of);
    uint32_t now = announce(EVENT(W));
    if ((int64_t)(atomic_load(HEAD) - free_of) >= 0)
      continue;
    if (atomic_load(CAME(R)) && !others(R)) {
      errno = EPIPE;
      fail("send");
    }
    doze(EVENT(W), now);
  }
}

static int receive_one(void) {
  for (;;) {
    if (!(flags & SOLE_READER))
      lock(LOCK(R));
    uint64_t here = atomic_load(HEAD);
    if (here != atomic_load_explicit(TAIL, memory_order_acquire)) {
      size_t size = plain32(at(here));
      char *text = malloc(size + 1);
      if (!text)
        fail("malloc");
      copy(here + 16, text, size, 0);
      text[size] = '\0';
      atomic_store_explicit(HEAD, here + room(size), memory_order_release);
      if (!(flags & SOLE_READER))
        unlock(LOCK(R));
      tell(EVENT(W));
      puts(text);
      fflush(stdout);
      free(text);
      return 1;
    }
    if (!(flags & SOLE_READER))
      unlock(LOCK(R));
    uint32_t now = announce(EVENT(R));
    int gone = atomic_load(CAME(W)) && !others(W);
    if (atomic_load(TAIL) != here)
      continue;
    if (gone)
      return 0;
    doze(EVENT(R), now);
  }
}

int main(int argc, char **argv) {
  if (argc < 4)
    return 2;
  int sends =
      strcmp(argv[2], "send") == 0 || argv[3][0] == 'w' || argv[3][0] == 'l';
  int role = strcmp(argv[2], "receive") == 0 || !sends ? R : W;
  alarm(60); /* nobody waits for it longer */
  map(argv[1]);
  join(role);
  if (strcmp(argv[2], "hold") == 0) {
    if (argv[3][0] == 'l')
      lock(LOCK(W));
    puts("here");
    fflush(stdout);
    pause();
  } else if (role == W) {
    for (int i = 3; i < argc; i++)
      send_one(argv[i]);
  } else {
    for (int n = atoi(argv[3]); n > 0 && receive_one(); n--)
      continue;
    puts("done");
  }
  leave(role, argv[1]);
  return 0;
}
