/* Memory that processes share, where systems do not differ: locks on bytes,
 * mappings, pages that files have lost, what a fork must not take along. What
 * only one system has of it is in os_linux.c and os_posix.c. No Lua. */
#include "prefix.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <time.h>
#include <unistd.h>

#include "os.h"

#ifndef MAP_ANONYMOUS
#define MAP_ANONYMOUS MAP_ANON
#endif
#ifndef MAP_NORESERVE
#define MAP_NORESERVE 0
#endif
#ifndef MAP_POPULATE
#define MAP_POPULATE 0 /* madvise(2) asks for it instead */
#endif

/* ------------------------------------------------------------------ words */

int ipc_os_word_look(const _Atomic uint32_t *word, uint32_t value, int64_t ns) {
  enum { LEAST = 50000, MOST = 1000000 }; /* ns */
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  int64_t from = (int64_t)t.tv_sec * 1000000000 + t.tv_nsec, slept = 0;
  for (int64_t nap = LEAST;; nap = nap * 2 < MOST ? nap * 2 : MOST) {
    if (atomic_load_explicit(word, memory_order_acquire) != value)
      return 0;
    if (slept >= ns)
      return ETIMEDOUT;
    t.tv_sec = 0;
    t.tv_nsec = (long)(nap < ns - slept ? nap : ns - slept);
    if (nanosleep(&t, NULL))
      return errno;
    clock_gettime(CLOCK_MONOTONIC, &t);
    slept = (int64_t)t.tv_sec * 1000000000 + t.tv_nsec - from;
  }
}

/* ------------------------------------------------------------------ locks */

bool ipc_os_has_byte_locks(void) {
#ifdef F_OFD_SETLK
  return !ipc_os_without("ofd");
#else
  return false;
#endif
}

#ifdef F_OFD_SETLK
/* Where no file reaches: what locks parts of the file itself is not met. */
#define MEMORY_LOCKS ((uint64_t)1 << 62)

static int memory_lock_range(int fd, int command, struct flock *lock,
                             uint64_t at, uint64_t count) {
  if (!ipc_os_has_byte_locks())
    return ENOTSUP;
  lock->l_whence = SEEK_SET;
  lock->l_start = (off_t)at;
  lock->l_len = (off_t)count;
  int n;
  do
    n = fcntl(fd, command, lock);
  while (n < 0 && errno == EINTR);
  if (n >= 0)
    return 0;
  if (errno == EACCES)
    return EAGAIN;
  return errno == EOPNOTSUPP || errno == EINVAL ? ENOTSUP : errno;
}

static int memory_lock(int fd, int command, struct flock *lock, uint64_t at,
                       uint64_t count) {
  if (at >= MEMORY_LOCKS || count > MEMORY_LOCKS - at - 1)
    return EOVERFLOW;
  return memory_lock_range(fd, command, lock, MEMORY_LOCKS + at, count);
}

int ipc_os_range_lock(int fd, uint64_t at, uint64_t count, bool alone) {
  struct flock lock = {.l_type = alone ? F_WRLCK : F_RDLCK};
  if (count == 0 || at >= MEMORY_LOCKS || count > MEMORY_LOCKS - at)
    return EINVAL; /* 0 would be all that follow */
  return memory_lock_range(fd, F_OFD_SETLK, &lock, at, count);
}

int ipc_os_range_unlock(int fd, uint64_t at, uint64_t count) {
  struct flock lock = {.l_type = F_UNLCK};
  if (count == 0 || at >= MEMORY_LOCKS || count > MEMORY_LOCKS - at)
    return EINVAL;
  return memory_lock_range(fd, F_OFD_SETLK, &lock, at, count);
}

int ipc_os_byte_share(int fd, uint64_t at) {
  struct flock lock = {.l_type = F_RDLCK};
  return memory_lock(fd, F_OFD_SETLK, &lock, at, 1);
}

int ipc_os_byte_lock(int fd, uint64_t at) {
  struct flock lock = {.l_type = F_WRLCK};
  return memory_lock(fd, F_OFD_SETLK, &lock, at, 1);
}

int ipc_os_byte_unlock(int fd, uint64_t at) {
  struct flock lock = {.l_type = F_UNLCK};
  return memory_lock(fd, F_OFD_SETLK, &lock, at, 1);
}

int ipc_os_byte_held(int fd, uint64_t at, uint64_t count, bool *held) {
  struct flock lock = {.l_type = F_WRLCK};
  *held = false;
  if (count == 0)
    return 0; /* fcntl(2) takes it for all that follow */
  int err = memory_lock(fd, F_OFD_GETLK, &lock, at, count);
  if (!err)
    *held = lock.l_type != F_UNLCK;
  return err;
}
#else
int ipc_os_range_lock(int fd, uint64_t at, uint64_t count, bool alone) {
  (void)fd, (void)at, (void)count, (void)alone;
  return ENOTSUP;
}

int ipc_os_range_unlock(int fd, uint64_t at, uint64_t count) {
  (void)fd, (void)at, (void)count;
  return ENOTSUP;
}

int ipc_os_byte_share(int fd, uint64_t at) {
  (void)fd, (void)at;
  return ENOTSUP;
}

int ipc_os_byte_lock(int fd, uint64_t at) {
  (void)fd, (void)at;
  return ENOTSUP;
}

int ipc_os_byte_unlock(int fd, uint64_t at) {
  (void)fd, (void)at;
  return ENOTSUP;
}

int ipc_os_byte_held(int fd, uint64_t at, uint64_t count, bool *held) {
  (void)fd, (void)at, (void)count;
  *held = false;
  return ENOTSUP;
}
#endif

/* ------------------------------------------------------------------ files */

/* Writes zeros from `at` on: what no file system can put off. */
static int memory_fill(int fd, uint64_t at, uint64_t size) {
  static const char zeros[16384];
  while (at < size) {
    uint64_t left = size - at;
    size_t some = left < sizeof zeros ? (size_t)left : sizeof zeros;
    ssize_t n = pwrite(fd, zeros, some, (off_t)at);
    if (n < 0 && errno != EINTR)
      return errno;
    at += n > 0 ? (uint64_t)n : 0;
  }
  return 0;
}

#if defined(__APPLE__) || defined(__OpenBSD__)
static int memory_reserve(int fd, uint64_t size) {
  (void)fd, (void)size;
  return EOPNOTSUPP;
}
#else
/* At once, unless a signal comes: then the kernel takes back all it has done
 * (tmpfs does), and with a timer's every millisecond it would never be done. In
 * pieces it will. */
static int memory_reserve(int fd, uint64_t size) {
  const uint64_t most = 4 << 20;
  int err = size == 0 ? 0 : posix_fallocate(fd, 0, (off_t)size);
  if (err != EINTR)
    return err;
  for (uint64_t at = 0; at < size;) {
    uint64_t piece = size - at < most ? size - at : most;
    err = posix_fallocate(fd, (off_t)at, (off_t)piece);
    if (err && err != EINTR)
      return err;
    at += err ? 0 : piece;
  }
  return 0;
}
#endif

/* Whether there is room for `more` bytes, before any is taken: memory would be
 * taken to the last page, and processes killed for it. What has no limit of its
 * own tells 0 blocks. */
static int memory_room(int fd, uint64_t more) {
  struct statvfs s;
  if (fstatvfs(fd, &s))
    return errno;
  uint64_t unit = s.f_frsize, room = s.f_bavail;
#ifdef _SC_PHYS_PAGES
  if (s.f_blocks == 0) {
    unit = (uint64_t)sysconf(_SC_PAGESIZE);
    room = (uint64_t)sysconf(_SC_PHYS_PAGES);
  }
#endif
  return unit > 0 && more / unit > room ? ENOSPC : 0;
}

int ipc_os_allocate(int fd, uint64_t size) {
  struct rlimit r;
  struct stat st;
  if (size > INT64_MAX)
    return EFBIG;
  /* Beyond this limit the kernel would send SIGXFSZ. */
  if (getrlimit(RLIMIT_FSIZE, &r) == 0 && r.rlim_cur != RLIM_INFINITY &&
      size > (uint64_t)r.rlim_cur)
    return EFBIG;
  if (fstat(fd, &st))
    return errno;
  uint64_t before = (uint64_t)st.st_size;
  int err = size > before ? memory_room(fd, size - before) : 0;
  if (err)
    return err;
  err = memory_reserve(fd, size);
  /* musl and the BSDs leave it to us where the file system cannot. */
  if (err == EOPNOTSUPP || err == EINVAL || err == ENOSYS)
    err = memory_fill(fd, before, size);
  if (err && size > before)
    (void)ftruncate(fd, st.st_size);
  return err;
}

/* --------------------------------------------------------------- mappings */

/* How the addresses must be aligned: files of huge pages have blocks of that
 * size, fstat(2). */
static size_t memory_alignment(int fd, size_t head, size_t ring) {
  struct stat st;
  size_t page = (size_t)sysconf(_SC_PAGESIZE);
  if (fstat(fd, &st) || st.st_blksize <= 0)
    return page;
  size_t all = head | ring | (size_t)st.st_blksize;
  size_t lowest = all & (~all + 1);
  return lowest > page ? lowest : page;
}

/* Memory of our own: with MAP_FIXED in place of what is mapped there. */
static void *memory_blank(void *at, size_t size, int protection, int flags) {
  // cppcheck-suppress invalidFunctionArg ; -1 is what mmap(2) wants here
  return mmap(at, size, protection, MAP_PRIVATE | MAP_ANONYMOUS | flags, -1, 0);
}

/* Addresses that nothing else is mapped at, before we fill them. */
static int memory_addresses(size_t size, size_t alignment, char **base) {
  size_t page = (size_t)sysconf(_SC_PAGESIZE);
  size_t more = alignment - page;
  if (size > SIZE_MAX - more)
    return ENOMEM;
  char *at = memory_blank(NULL, size + more, PROT_NONE, MAP_NORESERVE);
  if (at == MAP_FAILED)
    return errno;
  size_t before = (alignment - (uintptr_t)at % alignment) % alignment;
  if (before > 0)
    munmap(at, before);
  if (more > before)
    munmap(at + before + size, more - before);
  *base = at + before;
  return 0;
}

static int memory_place(char *at, size_t size, int fd, size_t offset,
                        bool populate) {
  int flags = MAP_SHARED | MAP_FIXED | (populate ? MAP_POPULATE : 0);
  // cppcheck-suppress leakReturnValNotUsed ; it is where it was asked for
  if (mmap(at, size, PROT_READ | PROT_WRITE, flags, fd, (off_t)offset) ==
      MAP_FAILED)
    return errno;
  if (populate && !MAP_POPULATE)
    (void)madvise(at, size, MADV_WILLNEED);
  return 0;
}

int ipc_os_map_ring(int fd, size_t head, size_t ring, bool populate,
                    void **base) {
  char *at = NULL;
  if (ring > SIZE_MAX / 2 || head > SIZE_MAX - 2 * ring)
    return ENOMEM;
  size_t size = head + 2 * ring;
  int err = memory_addresses(size, memory_alignment(fd, head, ring), &at);
  if (err)
    return err;
  err = memory_place(at, head + ring, fd, 0, populate);
  if (!err && ring > 0)
    err = memory_place(at + head + ring, ring, fd, head, populate);
  if (err)
    munmap(at, size);
  else
    *base = at;
  return err;
}

void ipc_os_advise_huge(void *base, size_t size) {
#ifdef MADV_HUGEPAGE
  (void)madvise(base, size, MADV_HUGEPAGE);
#else
  (void)base, (void)size;
#endif
}

int ipc_os_map(int fd, const OsMap *map, void **base) {
  int flags = (map->copied ? MAP_PRIVATE : MAP_SHARED) |
              (map->populate ? MAP_POPULATE : 0);
  int protection = PROT_READ | (map->write ? PROT_WRITE : 0);
  void *at = mmap(NULL, map->size, protection, flags, fd, 0);
  if (at == MAP_FAILED)
    return errno;
  if (map->populate && !MAP_POPULATE)
    (void)madvise(at, map->size, MADV_WILLNEED);
  *base = at;
  return 0;
}

void ipc_os_unmap(void *base, size_t size) { munmap(base, size); }

/* The pages that have these bytes. */
static char *memory_pages(char *at, size_t *size) {
  size_t before = (uintptr_t)at % (size_t)sysconf(_SC_PAGESIZE);
  *size += before;
  return at - before;
}

int ipc_os_sync(char *at, size_t size, bool wait) {
  at = memory_pages(at, &size);
  return msync(at, size, wait ? MS_SYNC : MS_ASYNC) ? errno : 0;
}

int ipc_os_advise(char *at, size_t size, OsAdvice advice) {
  static const int of[] = {[OS_NORMAL] = MADV_NORMAL,
                           [OS_SEQUENTIAL] = MADV_SEQUENTIAL,
                           [OS_RANDOM] = MADV_RANDOM,
                           [OS_WILLNEED] = MADV_WILLNEED,
                           [OS_DONTNEED] = MADV_DONTNEED,
#ifdef MADV_HUGEPAGE
                           [OS_HUGEPAGE] = MADV_HUGEPAGE,
                           [OS_NOHUGEPAGE] = MADV_NOHUGEPAGE
#else
                           [OS_HUGEPAGE] = -1,
                           [OS_NOHUGEPAGE] = -1
#endif
  };
  if (of[advice] < 0)
    return ENOTSUP;
  at = memory_pages(at, &size);
  if (madvise(at, size, of[advice]) == 0)
    return 0;
  /* A kernel without huge pages, or of a file that cannot have them. */
  return errno == EINVAL && advice >= OS_HUGEPAGE ? ENOTSUP : errno;
}

void ipc_os_unmap_ring(void *base, size_t head, size_t ring) {
  munmap(base, head + 2 * ring);
}

/* ------------------------------------------------------------- lost pages */

/* Nodes are used again and never freed, and `next` never changes: the handler
 * can walk the list whenever it comes. A range is valid if `version` was even
 * and the same before and after it was read; one that is being changed is of a
 * mapping that nobody uses. */
typedef struct Guard {
  struct Guard *next;
  atomic_bool used;
  atomic_uint version, mended; /* pages */
  _Atomic uintptr_t from, to;
  _Atomic(_Atomic bool *) damaged;
} Guard;

typedef struct Range {
  uintptr_t from, to;
  _Atomic bool *damaged;
} Range;

static _Atomic(Guard *) memory_guards;
static struct {
  size_t page;
  struct sigaction before;
  atomic_bool spent; /* `before` was for one signal, and had it */
  int err;
} memory_bus;

static void guard_set(Guard *g, uintptr_t from, uintptr_t to,
                      _Atomic bool *damaged) {
  unsigned version = atomic_load_explicit(&g->version, memory_order_relaxed);
  atomic_store_explicit(&g->version, version + 1, memory_order_relaxed);
  atomic_thread_fence(memory_order_release);
  atomic_store_explicit(&g->from, from, memory_order_relaxed);
  atomic_store_explicit(&g->to, to, memory_order_relaxed);
  atomic_store_explicit(&g->damaged, damaged, memory_order_relaxed);
  atomic_store_explicit(&g->version, version + 2, memory_order_release);
}

/* Whose range has the address, and what it was; NULL: none of ours has. */
static Guard *guard_find(uintptr_t at, Range *r) {
  Guard *g = atomic_load_explicit(&memory_guards, memory_order_acquire);
  for (; g; g = g->next) {
    unsigned version = atomic_load_explicit(&g->version, memory_order_acquire);
    r->from = atomic_load_explicit(&g->from, memory_order_relaxed);
    r->to = atomic_load_explicit(&g->to, memory_order_relaxed);
    r->damaged = atomic_load_explicit(&g->damaged, memory_order_relaxed);
    atomic_thread_fence(memory_order_acquire);
    if (version % 2 == 0 && at >= r->from && at < r->to &&
        atomic_load_explicit(&g->version, memory_order_relaxed) == version)
      return g;
  }
  return NULL;
}

static bool bus_lay(uintptr_t from, uintptr_t to) {
  void *at = (void *)from; // NOLINT(performance-no-int-to-ptr)
  const void *got =
      memory_blank(at, to - from, PROT_READ | PROT_WRITE, MAP_FIXED);
  return got != MAP_FAILED;
}

/* One page; or the whole range, where pages are huge, or so many were mended
 * already that scattered ones could use up the mappings a process may have. */
static bool bus_mend(uintptr_t at) {
  enum { MOST = 1000 };
  Range r;
  Guard *g = guard_find(at, &r);
  if (!g)
    return false;
  atomic_store_explicit(r.damaged, true, memory_order_release);
  uintptr_t page = at - at % memory_bus.page;
  if (atomic_fetch_add_explicit(&g->mended, 1, memory_order_relaxed) < MOST &&
      bus_lay(page, page + memory_bus.page))
    return true;
  return bus_lay(r.from, r.to);
}

/* As it would have gone without us. */
static void bus_pass_on(int number, siginfo_t *info, void *context) {
  const struct sigaction *before = &memory_bus.before;
  bool fault = info->si_code == BUS_ADRALN || info->si_code == BUS_ADRERR ||
               info->si_code == BUS_OBJERR;
  bool once = (before->sa_flags & (int)SA_RESETHAND) != 0;
  bool spent = once && atomic_exchange(&memory_bus.spent, true);
  if (!spent && (before->sa_flags & SA_SIGINFO)) {
    before->sa_sigaction(number, info, context);
  } else if (spent || before->sa_handler == SIG_DFL ||
             (before->sa_handler == SIG_IGN && fault)) {
    /* Back to the instruction, which faults again; what was sent, or is no
     * instruction's fault, is sent again. */
    (void)signal(number, SIG_DFL);
    if (!fault)
      (void)raise(number);
  } else if (before->sa_handler != SIG_IGN) {
    before->sa_handler(number);
  }
}

static void bus_handler(int number, siginfo_t *info, void *context) {
  int saved = errno;
  /* What was sent by kill(2) has no address. */
  if (info->si_code <= 0 || info->si_code == BUS_ADRALN ||
      !bus_mend((uintptr_t)info->si_addr))
    bus_pass_on(number, info, context);
  errno = saved;
}

static void bus_install(void) {
  memory_bus.page = (size_t)sysconf(_SC_PAGESIZE);
  if (sigaction(SIGBUS, NULL, &memory_bus.before)) {
    memory_bus.err = errno;
    return;
  }
  struct sigaction ours;
  memset(&ours, 0, sizeof ours);
  ours.sa_sigaction = bus_handler;
  ours.sa_mask = memory_bus.before.sa_mask;
  ours.sa_flags = SA_SIGINFO | SA_ONSTACK |
                  (memory_bus.before.sa_flags & (SA_NODEFER | SA_RESTART));
  if (sigaction(SIGBUS, &ours, NULL))
    memory_bus.err = errno;
}

static Guard *guard_take(void) {
  Guard *g = atomic_load_explicit(&memory_guards, memory_order_acquire);
  for (; g; g = g->next)
    if (!atomic_exchange_explicit(&g->used, true, memory_order_acquire))
      return g;
  g = calloc(1, sizeof *g);
  if (!g)
    return NULL;
  atomic_init(&g->used, true);
  g->next = atomic_load_explicit(&memory_guards, memory_order_relaxed);
  while (!atomic_compare_exchange_weak_explicit(
      &memory_guards, &g->next, g, memory_order_release, memory_order_relaxed))
    ;
  return g;
}

int ipc_os_guard(void *base, size_t size, _Atomic bool *damaged, void **guard) {
  static pthread_once_t once = PTHREAD_ONCE_INIT;
  int err = pthread_once(&once, bus_install);
  if (!err)
    err = memory_bus.err;
  Guard *g = err ? NULL : guard_take();
  *guard = g;
  if (!g)
    return err ? err : ENOMEM;
  atomic_store_explicit(&g->mended, 0, memory_order_relaxed);
  guard_set(g, (uintptr_t)base, (uintptr_t)base + size, damaged);
  return 0;
}

void ipc_os_unguard(void *guard) {
  Guard *g = guard;
  guard_set(g, 0, 0, NULL);
  atomic_store_explicit(&g->used, false, memory_order_release);
}

/* ------------------------------------------------------------ descriptors */

int ipc_os_high(int *fd) {
  int high = fcntl(*fd, F_DUPFD_CLOEXEC, 500);
  if (high < 0)
    return errno == EINVAL || errno == EMFILE ? 0 : errno;
  close(*fd);
  *fd = high;
  return 0;
}

/* What a child closes; behind ipc_os_lock, which a fork holds. */
static struct {
  struct {
    int fd;
    bool keep;
  } * of;
  size_t count, room;
} memory_ours;

static size_t ours_find(int fd) {
  size_t i = 0;
  while (i < memory_ours.count && memory_ours.of[i].fd != fd)
    i++;
  return i;
}

static int ours_add(int fd) {
  if (ours_find(fd) < memory_ours.count)
    return 0;
  if (memory_ours.count == memory_ours.room) {
    size_t room = memory_ours.room * 2 + 8;
    void *of = realloc(memory_ours.of, room * sizeof *memory_ours.of);
    if (!of)
      return ENOMEM;
    memory_ours.of = of;
    memory_ours.room = room;
  }
  memory_ours.of[memory_ours.count].fd = fd;
  memory_ours.of[memory_ours.count++].keep = false;
  return 0;
}

/* Gives back what so many need no more. */
static void ours_fit(void) {
  size_t room = memory_ours.room;
  while (room > 0 && memory_ours.count <= (room - 8) / 2)
    room = (room - 8) / 2;
  if (room == 0) {
    free(memory_ours.of);
    memory_ours.of = NULL;
  } else if (room < memory_ours.room) {
    void *of = realloc(memory_ours.of, room * sizeof *memory_ours.of);
    if (!of)
      return;
    memory_ours.of = of;
  }
  memory_ours.room = room;
}

int ipc_os_fork_close(int fd) {
  ipc_os_lock();
  int err = ours_add(fd);
  ipc_os_unlock();
  return err;
}

void ipc_os_fork_forget(int fd) {
  ipc_os_lock();
  size_t i = ours_find(fd);
  if (i < memory_ours.count)
    memory_ours.of[i] = memory_ours.of[--memory_ours.count];
  ours_fit();
  ipc_os_unlock();
}

void ipc_os_fork_keep(int fd, bool keep) {
  ipc_os_lock();
  size_t i = ours_find(fd);
  if (i < memory_ours.count)
    memory_ours.of[i].keep = keep;
  ipc_os_unlock();
}

void ipc_os_fork_done(void) {
  size_t kept = 0;
  for (size_t i = 0; i < memory_ours.count; i++) {
    if (memory_ours.of[i].keep) {
      memory_ours.of[kept] = memory_ours.of[i];
      memory_ours.of[kept++].keep = false;
    } else {
      close(memory_ours.of[i].fd);
    }
  }
  memory_ours.count = kept;
}

/* ------------------------------------------------------------------ chance */

void ipc_os_random(void *bytes, size_t size) {
#ifdef __linux__
  char *at = bytes;
  uint64_t mix = (uint64_t)(uintptr_t)&at ^ (uint64_t)getpid() << 32;
  while (size > 0) {
    size_t some = size < 256 ? size : 256; /* getentropy(3) */
    if (getentropy(at, some)) {
      /* A kernel of before 2014: unlike any other call's, if not secret. */
      struct timespec t;
      clock_gettime(CLOCK_REALTIME, &t);
      mix = (mix ^ (uint64_t)t.tv_nsec ^ (uint64_t)t.tv_sec << 30) *
            0x9e3779b97f4a7c15u;
      mix ^= mix >> 29;
      some = size < sizeof mix ? size : sizeof mix;
      memcpy(at, &mix, some);
    }
    at += some;
    size -= some;
  }
#else
  arc4random_buf(bytes, size);
#endif
}
