/* Making, joining and leaving shared memory, and its locks; see segment.h. Any
 * participant may be killed at any instruction, stopped, or hostile: only the
 * kernel says who is dead, and every shared value is read once. */
#include "prefix.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "os.h"
#include "segment.h"

/* Bytes that are locked, far behind the end of any file (and 2^62 further: see
 * os_memory.c): the registry, then one for each slot that receives, and one
 * that sends. */
#define REGISTRY (UINT64_C(1) << 40)
#define RECEIVES(slot) (REGISTRY + 0x1000 + (slot))
#define SENDS(slot) (REGISTRY + 0x2000 + (slot))
#define PRESENT(slot) (REGISTRY + 0x3000 + (slot))

/* O_NONBLOCK: another process that has a lease on the file does not hold us. */
#define SEGMENT_OPEN (O_RDWR | O_CLOEXEC | O_NONBLOCK)

enum {
  LIVE = 1,
  DEAD = 2,
  TURNS = 100, /* names that come and go under our hands */
  GENERATIONS = 1 << 19,
  LEAVE_MS = 50 /* that leaving waits for who joins or leaves just now */
};

static const char *const segment_faults[SEGMENT_FAULTS] = {
    NULL,
    "head and tail contradict each other",
    "a record is longer than what is there",
    "a lock has an owner that cannot be",
    "this participant's place was taken",
    "the file lost pages"};

/* CRC-32 (IEEE 802.3), bit by bit: of one head per opening. */
static uint32_t segment_crc(const void *bytes, size_t size) {
  const uint8_t *p = bytes;
  uint32_t crc = ~UINT32_C(0);
  while (size-- > 0) {
    crc ^= *p++;
    for (int bit = 0; bit < 8; bit++)
      crc = crc >> 1 ^ (crc & 1 ? UINT32_C(0xedb88320) : 0);
  }
  return ~crc;
}

static uint64_t segment_page(void) {
  long page = sysconf(_SC_PAGESIZE);
  return page > 0 ? (uint64_t)page : 4096;
}

uint64_t ipc_segment_ring(uint64_t bytes) {
  uint64_t ring = segment_page();
  while (ring < bytes && ring < UINT64_C(1) << 40)
    ring <<= 1;
  return ring < bytes || ring > SIZE_MAX / 4 ? 0 : ring;
}

static bool segment_rings(uint32_t kind) {
  return kind == SEGMENT_RING || kind == SEGMENT_BROADCAST;
}

/* What the participants, the kind's own and the foot take. */
static uint64_t segment_least(const SegmentHead *h) {
  return SEGMENT_PARTS + (uint64_t)h->slots * sizeof(SegmentPart) + h->extra +
         (h->kind == SEGMENT_MEMORY ? sizeof(SegmentFoot) : 0);
}

static uint64_t segment_pages(uint64_t size, uint64_t page) {
  return (size + page - 1) / page * page;
}

/* ------------------------------------------------------------------ faults */

int ipc_segment_fault(Segment *s, SegmentFault fault) {
  uint32_t sound = SEGMENT_SOUND;
  /* A place that was lost is this participant's trouble alone. */
  if (fault != SEGMENT_LOST)
    atomic_compare_exchange_strong(&SEGMENT_LIFE(s)->fault, &sound,
                                   (uint32_t)fault);
  s->why = segment_faults[fault];
  return ENOTRECOVERABLE;
}

int ipc_segment_explain(Segment *s) {
  if (atomic_load_explicit(s->damaged, memory_order_relaxed)) {
    s->why = segment_faults[SEGMENT_TRUNCATED];
    return EFAULT;
  }
  uint32_t fault =
      atomic_load_explicit(&SEGMENT_LIFE(s)->fault, memory_order_relaxed);
  if (fault == SEGMENT_SOUND)
    return 0;
  s->why = segment_faults[fault < SEGMENT_FAULTS ? fault : SEGMENT_POSITIONS];
  return ENOTRECOVERABLE;
}

/* ---------------------------------------------------------------- liveness */

bool ipc_segment_others(const Segment *s, unsigned roles) {
  bool held = false;
  if (roles & IPC_READ &&
      (ipc_os_byte_held(s->fd, RECEIVES(0), s->head.slots, &held) || held))
    return true;
  if (roles & IPC_WRITE &&
      (ipc_os_byte_held(s->fd, SENDS(0), s->head.slots, &held) || held))
    return true;
  return false;
}

/* Whether anybody else takes part. */
static bool segment_company(const Segment *s) {
  bool held = false;
  return ipc_os_byte_held(s->fd, PRESENT(0), s->head.slots, &held) || held;
}

bool ipc_segment_gone(const Segment *s, unsigned roles) {
  const SegmentLife *life = SEGMENT_LIFE(s);
  uint32_t came = 0;
  if (roles & IPC_READ)
    came += atomic_load(&life->readers) - (s->roles & IPC_READ ? 1 : 0);
  if (roles & IPC_WRITE)
    came += atomic_load(&life->writers) - (s->roles & IPC_WRITE ? 1 : 0);
  return came && !ipc_segment_others(s, roles);
}

bool ipc_segment_vacant(const Segment *s, unsigned slot) {
  bool held = false;
  return !(ipc_os_byte_held(s->fd, PRESENT(slot), 1, &held) || held);
}

int ipc_segment_pin(const Segment *s) {
  return ipc_os_byte_lock(s->fd, REGISTRY);
}

void ipc_segment_unpin(const Segment *s) {
  (void)ipc_os_byte_unlock(s->fd, REGISTRY);
}

int ipc_segment_dead(Segment *s, uint32_t owner, bool *dead) {
  uint32_t slot = (owner & 0xfff) - 1, generation = owner >> 12 & 0x7ffff;
  if (slot >= s->head.slots || (owner & ~SEGMENT_WAITS) == s->me)
    return ipc_segment_fault(s, SEGMENT_OWNER);
  uint32_t tag = atomic_load(&SEGMENT_PART(s, slot)->tag);
  *dead = tag >> 8 != generation || ipc_segment_vacant(s, slot);
  return 0;
}

/* ------------------------------------------------------------------- locks */

bool ipc_segment_expect(const Segment *s, _Atomic uint32_t *lock,
                        uint32_t *value) {
  uint32_t now = atomic_load(lock);
  *value = now | SEGMENT_WAITS;
  if (now == 0 || (now & ~SEGMENT_WAITS) == s->me)
    return true;
  return !(now & SEGMENT_WAITS) &&
         !atomic_compare_exchange_strong(lock, &now, now | SEGMENT_WAITS);
}

int ipc_segment_await(const Segment *s, _Atomic uint32_t *lock, Nanos ns) {
  uint32_t value;
  return ipc_segment_expect(s, lock, &value)
             ? 0
             : ipc_os_word_wait(lock, value, ns);
}

int ipc_segment_takeover(Segment *s, _Atomic uint32_t *lock) {
  uint32_t now = atomic_load(lock);
  bool dead = false;
  int err = now ? ipc_segment_dead(s, now, &dead) : 0;
  if (err)
    return err;
  if (!dead)
    return EAGAIN;
  /* From exactly what the dead one left: nobody takes it twice. */
  if (!atomic_compare_exchange_strong(lock, &now, s->me | SEGMENT_WAITS))
    return EAGAIN;
  s->takeovers++;
  atomic_fetch_add(&SEGMENT_LIFE(s)->changes, 1);
  return 0;
}

int ipc_segment_release(Segment *s, _Atomic uint32_t *lock) {
  uint32_t mine = s->me;
  if (atomic_compare_exchange_strong_explicit(
          lock, &mine, 0, memory_order_release, memory_order_relaxed))
    return 0;
  if (mine == (s->me | SEGMENT_WAITS) &&
      atomic_compare_exchange_strong_explicit(
          lock, &mine, 0, memory_order_release, memory_order_relaxed)) {
    ipc_os_word_wake(lock, false);
    return 0;
  }
  return ipc_segment_fault(s, SEGMENT_LOST);
}

/* The locks of a slot's former owner, which is dead. */
static void segment_sweep(Segment *s, unsigned slot) {
  _Atomic uint32_t *const locks[] = {&SEGMENT_WRITERS(s)->lock,
                                     &SEGMENT_READERS(s)->lock};
  for (size_t i = 0; i < sizeof locks / sizeof *locks; i++) {
    uint32_t now = atomic_load(locks[i]);
    if ((now & 0xfff) == slot + 1 &&
        atomic_compare_exchange_strong(locks[i], &now, 0)) {
      s->takeovers++;
      ipc_os_word_wake(locks[i], true);
    }
  }
  if (s->swept)
    s->swept(s, slot);
}

/* ------------------------------------------------------------------ events */

uint32_t ipc_segment_announce(const Segment *s, SegmentEvent *e) {
  uint32_t now = atomic_fetch_or(&e->count, 1) | 1;
  if (s->head.flags & SEGMENT_BARRIER)
    ipc_os_barrier();
  return now;
}

void ipc_segment_rouse(SegmentEvent *e) {
  /* Not in a loop, which who writes here all the time could keep us in. */
  atomic_fetch_and(&e->count, ~UINT32_C(1));
  atomic_fetch_add(&e->count, 2);
  ipc_os_word_wake(&e->count, true);
}

/* All look again at who is there. */
static void segment_changed(Segment *s) {
  atomic_fetch_add(&SEGMENT_LIFE(s)->changes, 1);
  ipc_segment_rouse(SEGMENT_READ(s));
  ipc_segment_rouse(SEGMENT_WRITE(s));
}

/* ----------------------------------------------------------------- mapping */

/* By a description of its own, where the system can open it again: a mapping,
 * which a child of fork(2) has too, keeps its description's locks. */
static int segment_map(Segment *s, const SegmentAsk *ask) {
  void *base;
  int fd = -1;
  size_t head = (size_t)s->head.before + s->head.head;
  size_t ring = (size_t)s->head.ring;
  s->damaged = calloc(1, sizeof *s->damaged);
  if (!s->damaged)
    return ENOMEM;
  if (ipc_os_reopen(s->fd, SEGMENT_OPEN, &fd))
    fd = -1;
  int err = ipc_os_map_ring(fd < 0 ? s->fd : fd, head, ring,
                            ask && ask->populate, &base);
  if (fd >= 0)
    close(fd);
  if (!err) {
    err = ipc_os_guard(base, head + 2 * ring, s->damaged, &s->guard);
    if (err)
      ipc_os_unmap_ring(base, head, ring);
  }
  if (err) {
    free(s->damaged);
    s->damaged = NULL;
    return err;
  }
  if (ask && ask->huge && ask->path) /* nameless ones are made of them */
    ipc_os_advise_huge(base, head + 2 * ring);
  s->bytes = base;
  s->base = s->bytes + s->head.before;
  return 0;
}

static void segment_unmap(Segment *s) {
  if (!s->base)
    return;
  ipc_os_unguard(s->guard);
  ipc_os_unmap_ring(s->bytes, (size_t)s->head.before + s->head.head,
                    (size_t)s->head.ring);
  s->bytes = s->base = NULL;
  free(s->damaged);
  s->damaged = NULL;
}

void ipc_segment_abandon(Segment *s) {
  segment_unmap(s);
  if (s->fd < 0)
    return;
  ipc_os_fork_forget(s->fd);
  close(s->fd);
  s->fd = -1;
}

/* ------------------------------------------------------------------- names */

bool ipc_segment_named(const Segment *s, const char *path) {
  struct stat is;
  return lstat(path, &is) == 0 && is.st_dev == s->device &&
         is.st_ino == s->inode;
}

/* Under the registry's lock, or before anybody can see it. */
static int segment_unlink(Segment *s, const char *path) {
  if (!ipc_segment_named(s, path))
    return ENOENT;
  return unlink(path) ? errno : 0;
}

int ipc_segment_remove(Segment *s, const char *path) {
  int err = ipc_os_byte_lock(s->fd, REGISTRY);
  if (err)
    return err;
  err = segment_unlink(s, path);
  if (!err)
    atomic_store(&SEGMENT_LIFE(s)->state, DEAD);
  (void)ipc_os_byte_unlock(s->fd, REGISTRY);
  return err;
}

/* -------------------------------------------------------------------- join */

/* Lets go of all that says a slot is taken. */
static void segment_unlock(const Segment *s, unsigned slot) {
  (void)ipc_os_byte_unlock(s->fd, RECEIVES(slot));
  (void)ipc_os_byte_unlock(s->fd, SENDS(slot));
  (void)ipc_os_byte_unlock(s->fd, PRESENT(slot));
}

/* Becomes a participant, under the registry's lock (or nobody else can see the
 * object): any slot that nobody has, because then its owner is dead or has
 * left. */
static int segment_enter(Segment *s, unsigned roles) {
  for (unsigned slot = 0; slot < s->head.slots; slot++) {
    if (ipc_os_byte_lock(s->fd, PRESENT(slot)))
      continue;
    if ((roles & IPC_READ && ipc_os_byte_lock(s->fd, RECEIVES(slot))) ||
        (roles & IPC_WRITE && ipc_os_byte_lock(s->fd, SENDS(slot)))) {
      segment_unlock(s, slot);
      continue;
    }
    SegmentPart *p = SEGMENT_PART(s, slot);
    segment_sweep(s, slot);
    uint32_t generation =
        ((atomic_load(&p->tag) >> 8) + 1) % (uint32_t)GENERATIONS;
    atomic_store(&p->at, UINT64_MAX);
    atomic_store(&p->pid, (uint32_t)getpid());
    atomic_store(&p->tag, generation << 8 | roles);
    s->slot = slot;
    s->roles = roles;
    s->me = generation << 12 | (slot + 1);
    return 0;
  }
  return EUSERS;
}

/* Whether the sides admit one more. */
static int segment_admit(Segment *s, unsigned roles) {
  if (s->head.flags & SEGMENT_SOLE_WRITER && roles & IPC_WRITE &&
      ipc_segment_others(s, IPC_WRITE))
    s->why = "it is made for one writer, and has one";
  else if (s->head.flags & SEGMENT_SOLE_READER && roles & IPC_READ &&
           ipc_segment_others(s, IPC_READ))
    s->why = "it is made for one reader, and has one";
  else
    return 0;
  return EBUSY;
}

/* Is in: others are told. */
static void segment_entered(Segment *s, bool alone) {
  SegmentLife *life = SEGMENT_LIFE(s);
  if (alone) {
    atomic_store(&SEGMENT_WRITERS(s)->lock, 0);
    atomic_store(&SEGMENT_READERS(s)->lock, 0);
    if (atomic_load(&SEGMENT_READERS(s)->at) !=
        atomic_load(&SEGMENT_READERS(s)->taken))
      atomic_store(&SEGMENT_READERS(s)->again, 1);
    atomic_store(&life->readers, 0); /* who received before is history */
  }
  if (s->roles & IPC_READ)
    atomic_fetch_add(&life->readers, 1);
  if (s->roles & IPC_WRITE)
    atomic_fetch_add(&life->writers, 1);
  segment_changed(s);
  s->changes = atomic_load(&life->changes);
}

/* What every participant of a segment does with its descriptor: marks it for
 * fork(2), notes what file it is. */
static int segment_hold(Segment *s) {
  struct stat is;
  (void)ipc_os_high(&s->fd);
  if (fstat(s->fd, &is))
    return errno;
  s->device = is.st_dev;
  s->inode = is.st_ino;
  return ipc_os_fork_close(s->fd);
}

/* -------------------------------------------------------------------- make */

/* The largest message. Where a sender overwrites what is oldest, the newest
 * stays whole while the next is written. */
static uint64_t segment_most(const SegmentHead *h) {
  if (!segment_rings(h->kind))
    return h->before;
  bool two = h->kind == SEGMENT_BROADCAST && !(h->flags & SEGMENT_HOLD);
  uint64_t most = (two ? h->ring / 2 : h->ring) - SEGMENT_RECORD;
  return most < UINT32_MAX ? most : UINT32_MAX; /* as a record can say it */
}

static void segment_describe(SegmentHead *h, const SegmentAsk *ask,
                             uint64_t page) {
  struct timespec now;
  memset(h, 0, sizeof *h);
  memcpy(h->magic, SEGMENT_MAGIC, sizeof h->magic);
  h->version = SEGMENT_VERSION;
  h->order = SEGMENT_ORDER;
  h->kind = ask->kind;
  h->flags = ask->flags;
  if (!ask->kept && ipc_os_barrier_join()) /* a file meets other systems */
    h->flags |= SEGMENT_BARRIER;
  h->slots = ask->slots;
  h->extra = ask->extra;
  h->head = (uint32_t)segment_pages(segment_least(h), page);
  if (segment_rings(ask->kind))
    h->ring = ask->ring < page ? page : ask->ring;
  if (ask->kind == SEGMENT_MEMORY)
    h->before = segment_pages(ask->maxsize, page);
  h->maxsize = segment_most(h);
  if (ask->maxsize && ask->maxsize < h->maxsize)
    h->maxsize = ask->maxsize;
  h->total = h->before + h->head + h->ring;
  clock_gettime(CLOCK_REALTIME, &now);
  h->created = (uint64_t)now.tv_sec * 1000000000U + (uint64_t)now.tv_nsec;
  ipc_os_random(h->id, sizeof h->id);
  h->crc = segment_crc(h, offsetof(SegmentHead, crc));
}

/* Turns an empty file that nobody can see yet into a segment we are in. */
static int segment_fill(Segment *s, const SegmentAsk *ask, uint64_t page) {
  segment_describe(&s->head, ask, page);
  if (s->head.total > SIZE_MAX / 4)
    return EFBIG;
  int err = segment_hold(s);
  if (!err)
    err = ipc_os_allocate(s->fd, s->head.total);
  if (!err)
    err = segment_map(s, ask);
  if (!err) {
    SegmentFoot foot = {.head = s->head.before};
    memcpy(foot.magic, SEGMENT_MAGIC, sizeof foot.magic);
    memcpy(s->base, &s->head, sizeof s->head);
    if (s->head.kind == SEGMENT_MEMORY)
      memcpy(s->base + s->head.head - sizeof foot, &foot, sizeof foot);
    atomic_store(&SEGMENT_LIFE(s)->state, LIVE);
    err = segment_enter(s, ask->roles);
  }
  if (!err)
    segment_entered(s, true);
  s->made = !err;
  return err;
}

/* Splits a path: the directory with its slash, and what is behind it. */
static size_t segment_directory(const char *path) {
  const char *slash = strrchr(path, '/');
  return slash ? (size_t)(slash - path) + 1 : 0;
}

enum { NAME_MOST = 4096, RANDOM = 8 };

/* ".NAME.0123456789abcdef" beside the path: a file on its way to the name. */
static int segment_temporary(const char *path, char *out, bool random) {
  uint8_t bits[RANDOM] = {0};
  size_t directory = segment_directory(path);
  int n = snprintf(out, NAME_MOST, "%.*s.%s.", (int)directory, path,
                   path + directory);
  if (n < 0 || n + 2 * RANDOM >= NAME_MOST)
    return ENAMETOOLONG;
  if (random)
    ipc_os_random(bits, sizeof bits);
  for (int i = 0; random && i < RANDOM; i++)
    n += snprintf(out + n, 3, "%02x", bits[i]);
  return 0;
}

bool ipc_segment_is(int fd) {
  struct {
    char magic[8];
    uint32_t version, order;
  } head;
  return pread(fd, &head, sizeof head, 0) == (ssize_t)sizeof head &&
         memcmp(head.magic, SEGMENT_MAGIC, sizeof head.magic) == 0 &&
         (head.order == SEGMENT_ORDER || head.order == UINT32_C(0x04030201));
}

int ipc_segment_foot(int fd, uint64_t *head) {
  struct stat is;
  SegmentFoot foot;
  if (fstat(fd, &is))
    return errno;
  if (!S_ISREG(is.st_mode) || is.st_size < (off_t)sizeof foot)
    return ENOMSG;
  ssize_t n = pread(fd, &foot, sizeof foot, is.st_size - (off_t)sizeof foot);
  if (n < 0)
    return errno;
  if (n != (ssize_t)sizeof foot ||
      memcmp(foot.magic, SEGMENT_MAGIC, sizeof foot.magic) != 0)
    return ENOMSG;
  *head = foot.head;
  return 0;
}

/* Whether a file with such a name is one: hexadecimal digits, and nothing in it
 * yet, or a segment. */
static bool segment_is_temporary(int fd, const char *digits) {
  char start[sizeof SEGMENT_MAGIC - 1] = {0}, magic[] = SEGMENT_MAGIC;
  uint64_t head;
  if (strspn(digits, "0123456789abcdef") != 2 * RANDOM)
    return false;
  if (ipc_segment_foot(fd, &head) == 0)
    return true;
  ssize_t n = pread(fd, start, sizeof start, 0);
  static const char nothing[sizeof start];
  return n == 0 || (n == (ssize_t)sizeof start &&
                    (memcmp(start, magic, sizeof start) == 0 ||
                     memcmp(start, nothing, sizeof start) == 0));
}

/* Whether an open file is the one of that path. */
static bool segment_is_of(int fd, const char *path) {
  struct stat is, named;
  return fstat(fd, &is) == 0 && lstat(path, &named) == 0 &&
         is.st_dev == named.st_dev && is.st_ino == named.st_ino;
}

/* Where files cannot be made without a name: those on their way whose makers
 * were killed. One that had reached the name has users, the caller perhaps, and
 * they need its other name no more. */
void ipc_segment_sweep(const char *path) {
  char name[NAME_MOST], full[NAME_MOST];
  size_t directory = segment_directory(path);
  if (segment_temporary(path, name, false))
    return;
  const char *start = name + directory;
  snprintf(full, sizeof full, "%.*s", (int)directory, path);
  DIR *d = opendir(directory ? full : ".");
  const struct dirent *e;
  // cppcheck-suppress readdirCalled ; the stream is ours alone
  while (d && (e = readdir(d)) != NULL) {
    if (strncmp(e->d_name, start, strlen(start)) != 0 ||
        strlen(e->d_name) != strlen(start) + 2 * RANDOM)
      continue;
    int n =
        snprintf(full, sizeof full, "%.*s%s", (int)directory, path, e->d_name);
    if (n < 0 || (size_t)n >= sizeof full)
      continue;
    int fd = open(full, O_RDWR | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0)
      continue;
    /* Its maker has the registry until the end; who uses one that has no other
     * name has a slot. */
    bool held = false;
    if (segment_is_temporary(fd, e->d_name + strlen(start)) &&
        ipc_os_byte_lock(fd, REGISTRY) == 0 &&
        (segment_is_of(fd, path) ||
         (ipc_os_byte_held(fd, PRESENT(0), SEGMENT_SLOTS_MOST, &held) == 0 &&
          !held)))
      (void)unlink(full);
    close(fd);
  }
  if (d)
    closedir(d);
}

/* The same by a name of its own, where the system has no better. */
static int segment_make_named(Segment *s, const SegmentAsk *ask,
                              uint64_t page) {
  char name[NAME_MOST];
  int err = segment_temporary(ask->path, name, true);
  if (err)
    return err;
  ipc_segment_sweep(ask->path);
  s->fd = open(name, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
  if (s->fd < 0)
    return errno;
  err = ipc_os_byte_lock(s->fd, REGISTRY);
  if (!err && fchmod(s->fd, ask->permissions))
    err = errno;
  if (!err)
    err = segment_fill(s, ask, page);
  if (!err && link(name, ask->path)) /* ENOENT: swept before it was locked */
    err = errno == ENOENT ? ESTALE : errno;
  (void)unlink(name);
  if (!err)
    (void)ipc_os_byte_unlock(s->fd, REGISTRY);
  return err;
}

static int segment_make(Segment *s, const SegmentAsk *ask) {
  size_t page = (size_t)segment_page();
  if (!ask->path) {
    int err = ipc_os_memory_sealable(ask->huge, &s->fd, &page);
    if (!err)
      err = segment_fill(s, ask, page);
    return err ? err : ipc_os_memory_seal(s->fd);
  }
  char folder[NAME_MOST];
  size_t n = segment_directory(ask->path);
  if (n >= sizeof folder)
    return ENAMETOOLONG;
  memcpy(folder, n ? ask->path : "./", n ? n : 2);
  folder[n ? n : 2] = '\0';
  int err = ipc_os_unnamed_file(folder, ask->permissions, &s->fd);
  if (err == ENOTSUP)
    return segment_make_named(s, ask, page);
  if (!err && fchmod(s->fd, ask->permissions)) /* whatever the umask */
    err = errno;
  if (!err)
    err = segment_fill(s, ask, page);
  if (!err)
    err = ipc_os_link_file(s->fd, ask->path);
  return err;
}

/* -------------------------------------------------------------------- open */

/* Whether a copied head is one that we can use. */
static int segment_validate(Segment *s, const SegmentHead *h, uint64_t size,
                            uint32_t kind) {
  uint64_t page = segment_page();
  s->why = "it is not shared memory of lua-ipc";
  if (memcmp(h->magic, SEGMENT_MAGIC, sizeof h->magic) != 0)
    return EBADMSG;
  s->why = "it is of another version or byte order";
  if (h->version != SEGMENT_VERSION || h->order != SEGMENT_ORDER)
    return ENOTSUP;
  s->why = "its head is damaged";
  if (h->crc != segment_crc(h, offsetof(SegmentHead, crc)))
    return EBADMSG;
  if (h->slots == 0 || h->slots > SEGMENT_SLOTS_MOST ||
      segment_rings(h->kind) != (h->ring != 0) ||
      (h->kind == SEGMENT_MEMORY) != (h->before != 0) ||
      (h->ring & (h->ring - 1)) != 0 || h->ring > UINT64_C(1) << 40 ||
      h->before > UINT64_C(1) << 48 || h->head < segment_least(h) ||
      h->head % SEGMENT_PARTS != 0 || h->maxsize > segment_most(h) ||
      h->total != h->before + h->head + h->ring)
    return EBADMSG;
  s->why = "it is made for larger pages";
  if (h->head % page != 0 || h->ring % page != 0 || h->before % page != 0)
    return ENOTSUP;
  s->why = "it is too large for the addresses of this process";
  if (h->total > SIZE_MAX / 4)
    return ENOTSUP;
  s->why = "its file was truncated";
  if (size < h->total)
    return EBADMSG;
  s->why = "it is of another kind";
  if (h->kind != kind)
    return EBADMSG;
  s->why = "others rely on membarrier(2), which is not here";
  if (h->flags & SEGMENT_BARRIER && !ipc_os_barrier_join())
    return ENOTSUP;
  s->why = NULL;
  return 0;
}

/* Reads the head of an open file into our own copy. */
static int segment_read_head(Segment *s, uint32_t kind) {
  struct stat is;
  uint64_t at = 0;
  if (fstat(s->fd, &is))
    return errno;
  s->why = "it is not shared memory of lua-ipc";
  int err = kind == SEGMENT_MEMORY ? ipc_segment_foot(s->fd, &at) : 0;
  if (err)
    return err;
  if (!S_ISREG(is.st_mode) || (uint64_t)is.st_size < sizeof s->head ||
      at > (uint64_t)is.st_size - sizeof s->head)
    return EBADMSG;
  ssize_t n = pread(s->fd, &s->head, sizeof s->head, (off_t)at);
  if (n < 0)
    return errno;
  if (n != (ssize_t)sizeof s->head)
    return EBADMSG;
  err = segment_validate(s, &s->head, (uint64_t)is.st_size, kind);
  if (err == EBADMSG && kind != SEGMENT_MEMORY &&
      ipc_segment_foot(s->fd, &at) == 0)
    s->why = "it is of another kind";
  return err || s->head.before == at ? err : EBADMSG;
}

/* Whether it is what was asked for, as far as anything was. */
static bool segment_matches(const Segment *s, const SegmentAsk *ask) {
  return (!ask->ring || ask->ring == s->head.ring) &&
         (!ask->maxsize || ask->maxsize == s->head.maxsize) &&
         (!ask->places || ask->places == s->head.slots) &&
         ((ask->flags ^ s->head.flags) & ask->insists) == 0;
}

/* Joins what s->fd has open; the registry's lock is held. ESTALE: it is on its
 * way out, look for another. */
static int segment_join(Segment *s, const SegmentAsk *ask) {
  struct stat is;
  if (fstat(s->fd, &is))
    return errno;
  bool alone = !segment_company(s);
  int err = segment_map(s, ask);
  if (err)
    return err;
  SegmentLife *life = SEGMENT_LIFE(s);
  bool persists = ask->kept || s->head.flags & SEGMENT_PERSIST;
  if (ask->path && is.st_nlink == 0)
    return ESTALE;
  if (ask->path && !ask->kept &&
      (atomic_load(&life->state) != LIVE || (alone && !persists))) {
    /* All who used it were killed, the last perhaps while it removed it. */
    atomic_store(&life->state, DEAD);
    (void)segment_unlink(s, ask->path);
    return ESTALE;
  }
  if (ask->create == IPC_CREATE_NEW || !segment_matches(s, ask))
    return EEXIST;
  err = ipc_segment_check(s);
  if (!err && alone && ask->sound)
    err = ask->sound(s);
  if (!err)
    err = segment_admit(s, ask->roles);
  if (!err)
    err = segment_enter(s, ask->roles);
  if (!err)
    segment_entered(s, alone);
  return err;
}

static void segment_pause(void) {
  const struct timespec moment = {.tv_nsec = 200000};
  nanosleep(&moment, NULL);
}

/* With the registry's lock around it. */
static int segment_join_locked(Segment *s, const SegmentAsk *ask) {
  int err = segment_hold(s);
  if (!err)
    err = ipc_os_byte_lock(s->fd, REGISTRY);
  if (err)
    return err;
  err = segment_join(s, ask);
  (void)ipc_os_byte_unlock(s->fd, REGISTRY);
  return err;
}

static int segment_open(Segment *s, const SegmentAsk *ask) {
  struct stat is;
  /* O_NONBLOCK: a FIFO of that name does not hold us. */
  s->fd = open(ask->path, O_RDWR | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK);
  if (s->fd < 0)
    return errno;
  if (fstat(s->fd, &is))
    return errno;
  if (ask->create != IPC_ATTACH && is.st_uid != 0 && is.st_uid != geteuid()) {
    s->why = "it is another user's (create = false opens it all the same)";
    return EACCES;
  }
  int err = segment_read_head(s, ask->kind);
  if (!err)
    err = segment_join_locked(s, ask);
  /* Its maker was killed before it was done; so was whoever else used it. */
  if ((!err || err == ESTALE) && is.st_nlink > 1)
    ipc_segment_sweep(ask->path);
  return err;
}

bool ipc_segment_possible(void) {
  return SEGMENT_POSSIBLE && ipc_os_has_byte_locks();
}

int ipc_segment_attach(Segment *s, const SegmentAsk *ask) {
  int err = ESTALE;
  s->fd = -1;
  s->why = NULL;
  s->swept = ask->swept;
  if (!ipc_segment_possible()) {
    s->why = "this system has no locks of open file descriptions, or this "
             "processor no words of 64 bits";
    return ENOTSUP;
  }
  for (int turn = 0; turn < TURNS; turn++) {
    s->made = false;
    err = ask->path ? segment_open(s, ask) : ENOENT;
    if (err == ENOENT && ask->create != IPC_ATTACH) {
      err = segment_make(s, ask);
      if (err == EEXIST)
        err = ESTALE; /* another was first: it will do */
    }
    if (!err)
      return 0;
    ipc_segment_leave(s, NULL, SEGMENT_LEAVE);
    if (err != ESTALE)
      return err;
  }
  return EAGAIN;
}

int ipc_segment_second(Segment *s, const Segment *like, const char *path,
                       unsigned roles, Nanos patience) {
  SegmentAsk ask = {.roles = roles, .kept = true};
  Nanos until = ipc_now() + patience;
  s->fd = -1;
  s->swept = like->swept;
  int err = 0;
  /* By its name it keeps one that can be told: see ipc_os_path. */
  if (path && ipc_segment_named(like, path))
    s->fd = open(path, SEGMENT_OPEN | O_NOFOLLOW);
  if (s->fd < 0)
    err = ipc_os_reopen(like->fd, SEGMENT_OPEN, &s->fd);
  if (err)
    return err;
  s->head = like->head;
  while ((err = segment_join_locked(s, &ask)) == EAGAIN && ipc_now() < until)
    segment_pause(); /* somebody joins or leaves just now */
  if (!err && (s->device != like->device || s->inode != like->inode))
    err = ENOENT;
  if (err)
    ipc_segment_leave(s, NULL, SEGMENT_LEAVE);
  return err;
}

/* What we lock without a conflict is ours: it came with the description. */
static int segment_claim(Segment *s, unsigned slot, unsigned roles) {
  if (slot >= s->head.slots || roles == 0 || roles > (IPC_READ | IPC_WRITE))
    return EBADMSG;
  if (ipc_os_byte_lock(s->fd, PRESENT(slot)) ||
      (roles & IPC_READ && ipc_os_byte_lock(s->fd, RECEIVES(slot))) ||
      (roles & IPC_WRITE && ipc_os_byte_lock(s->fd, SENDS(slot))))
    return EBADMSG;
  int err = segment_map(s, NULL);
  if (err)
    return err;
  SegmentPart *p = SEGMENT_PART(s, slot);
  s->slot = slot;
  s->roles = roles;
  s->me = (atomic_load(&p->tag) >> 8 & 0x7ffff) << 12 | (slot + 1);
  atomic_store(&p->pid, (uint32_t)getpid());
  s->changes = atomic_load(&SEGMENT_LIFE(s)->changes);
  return 0;
}

int ipc_segment_adopt(Segment *s, int fd, uint32_t kind, unsigned slot,
                      unsigned roles) {
  *s = (Segment){.fd = -1};
  int err = ipc_os_dup(fd, &s->fd);
  if (!err)
    err = segment_read_head(s, kind);
  if (!err)
    err = segment_hold(s);
  if (!err)
    err = segment_claim(s, slot, roles);
  if (err) /* the description, and what it holds, is still the caller's */
    ipc_segment_abandon(s);
  return err;
}

/* ------------------------------------------------------------------- leave */

void ipc_segment_resign(Segment *s, unsigned roles) {
  if (roles & IPC_READ)
    (void)ipc_os_byte_unlock(s->fd, RECEIVES(s->slot));
  if (roles & IPC_WRITE)
    (void)ipc_os_byte_unlock(s->fd, SENDS(s->slot));
  s->roles &= ~roles;
  segment_changed(s);
}

/* Under the registry's lock, which is waited for a moment. */
static void segment_settle(Segment *s, const char *path, bool always) {
  for (int turn = 0; turn < LEAVE_MS * 5; turn++) {
    int err = ipc_os_byte_lock(s->fd, REGISTRY);
    if (err == EAGAIN) {
      segment_pause();
      continue;
    }
    if (!err && (always || !segment_company(s))) {
      (void)segment_unlink(s, path);
      atomic_store(&SEGMENT_LIFE(s)->state, DEAD);
    }
    return; /* and the lock goes with the descriptor */
  }
}

void ipc_segment_leave(Segment *s, const char *path, SegmentLeave how) {
  if (s->fd >= 0 && s->base && s->me) {
    atomic_store(&SEGMENT_PART(s, s->slot)->at, UINT64_MAX);
    /* First the bytes, then the registry: of two who leave at once the later
     * one sees that nobody is left. */
    segment_unlock(s, s->slot);
    segment_changed(s);
    if (path && how == SEGMENT_REMOVE)
      segment_settle(s, path, true);
    else if (path && how == SEGMENT_SETTLE &&
             !(s->head.flags & SEGMENT_PERSIST) && !segment_company(s))
      segment_settle(s, path, false);
  }
  s->me = 0;
  ipc_segment_abandon(s);
}
