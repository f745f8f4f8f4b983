/* The ring without Lua: many participants send and receive numbered messages
 * whose bytes are checked. `ring processes SECONDS`: they are processes, killed
 * at random. `ring threads SECONDS`: threads on one mapping, for tools that see
 * into one process only. For machines and libraries that have no Lua. */
#include "../../src/prefix.h"

#include "../../src/buffer.c"
#include "../../src/member.c"
#include "../../src/os_linux.c"
#include "../../src/os_memory.c"
#include "../../src/os_posix.c"
#include "../../src/os_unix.c"
#include "../../src/ring.c"
#include "../../src/ringwait.c"
#include "../../src/segment.c"
#include "../../src/waiter.c"

#include <signal.h>
#include <sys/wait.h>

enum {
  IDS = 1 << 22,    /* messages at the most */
  WORKERS = 6,      /* half of them send */
  LARGEST = 1500,   /* bytes */
  RING = 8192,      /* bytes: a few messages */
  PATIENCE_MS = 20, /* of one wait */
  QUIET = 25        /* waits without a message: nothing is left */
};

/* What all see. */
typedef struct Told {
  atomic_uint next; /* id of the next message */
  atomic_uint received, sent;
  atomic_uint wrong, twice;
  atomic_int stop; /* 1: senders end; 2: receivers, once it is empty */
  _Atomic uint8_t was_sent[IDS], was_seen[IDS];
} Told;

static Told *told;
static Segment shared;
static bool threads, leases;

unsigned ipc_generation;

Nanos ipc_now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (Nanos)t.tv_sec * 1000000000 + t.tv_nsec;
}

int ipc_rings_dup(lua_State *L, Chan *c) {
  (void)L, (void)c;
  return ENOTSUP;
}

/* ------------------------------------------------------------ one of them */

static void die(const char *what, int err) {
  fprintf(stderr, "%s: %s\n", what, strerror(err));
  abort();
}

static uint32_t mix(uint32_t x) {
  x ^= x >> 16;
  x *= 0x7feb352dU;
  x ^= x >> 15;
  x *= 0x846ca68bU;
  return x ^ x >> 16;
}

/* The message of an id: its number, and what follows from it. */
static size_t message(uint32_t id, char *to) {
  size_t size = sizeof id + mix(id) % (LARGEST - sizeof id);
  memcpy(to, &id, sizeof id);
  for (size_t i = sizeof id; i < size; i++)
    to[i] = (char)(id * 31 + i * 7);
  return size;
}

static void worker_open(Ring *r, unsigned role) {
  memset(r, 0, sizeof *r);
  r->c.ops = &ipc_ring_ops;
  r->c.limit = LARGEST;
  r->c.reader = role == IPC_READ ? &r->c : NULL;
  r->c.writer = role == IPC_WRITE ? &r->c : NULL;
  r->keepalive = true;
  int err;
  /* EBUSY: the one before is dead, and the kernel has not put it away yet. */
  while ((err = ipc_segment_second(&r->m.s, &shared, NULL, role, IPC_SECOND)) ==
             EBUSY ||
         err == EAGAIN)
    segment_pause();
  if (err)
    die("join", err);
  if (threads) {
    segment_unmap(&r->m.s);
    r->m.s.base = shared.base;
    r->m.s.damaged = shared.damaged;
  }
  err = ipc_ring_begin(r);
  if (err)
    die("begin", err);
}

static void worker_close(Ring *r) {
  ipc_ring_give_back(r);
  if (threads) {
    ipc_segment_resign(&r->m.s, IPC_READ | IPC_WRITE);
    r->m.s.base = NULL;
  }
  ipc_segment_leave(&r->m.s, NULL, false);
  ipc_buffer_free(&r->ahead);
}

static void worker_wait(Ring *r, int want) {
  int err =
      ipc_ring_wait(&r->c.h, want, ipc_now() + PATIENCE_MS * INT64_C(1000000));
  if (err && err != EINTR && err != ETIMEDOUT)
    die("wait", err);
}

static void *sender(void *unused) {
  Ring r;
  char bytes[LARGEST];
  (void)unused;
  worker_open(&r, IPC_WRITE);
  while (!atomic_load(&told->stop)) {
    uint32_t id = atomic_fetch_add(&told->next, 1);
    if (id >= IDS)
      break;
    Message m = {.bytes = bytes, .size = message(id, bytes)};
    int err;
    while ((err = r.c.ops->send(&r.c, &m)) == EAGAIN &&
           !atomic_load(&told->stop))
      worker_wait(&r, IPC_WRITE);
    if (err == EAGAIN)
      break;
    if (err)
      die("send", err);
    atomic_store(&told->was_sent[id], 1);
    atomic_fetch_add(&told->sent, 1);
  }
  worker_close(&r);
  return NULL;
}

static void check(const Message *m) {
  char bytes[LARGEST];
  uint32_t id = 0;
  if (m->size >= sizeof id)
    memcpy(&id, m->bytes, sizeof id);
  if (m->size < sizeof id || id >= IDS || message(id, bytes) != m->size ||
      memcmp(bytes, m->bytes, m->size) != 0)
    atomic_fetch_add(&told->wrong, 1);
  else if (atomic_exchange(&told->was_seen[id], 1))
    atomic_fetch_add(&told->twice, 1);
  atomic_fetch_add(&told->received, 1);
}

static void *receiver(void *unused) {
  Ring r;
  char bytes[LARGEST];
  (void)unused;
  worker_open(&r, IPC_READ);
  for (int quiet = 0; quiet < QUIET;) {
    Message m = {0};
    int err = r.c.ops->recv(&r.c, &m);
    if (err == EAGAIN) {
      quiet = atomic_load(&told->stop) == 2 ? quiet + 1 : 0;
      worker_wait(&r, IPC_READ);
      continue;
    }
    if (err)
      die("recv", err);
    if (!leases) { /* whose it is from then on, or not at all */
      memcpy(bytes, m.bytes, m.size);
      m.bytes = bytes;
      r.c.ops->took(&r.c, m.size);
    }
    check(&m);
    if (leases) /* it is offered again until then */
      r.c.ops->took(&r.c, m.size);
    quiet = 0;
  }
  worker_close(&r);
  return NULL;
}

/* -------------------------------------------------------------------- all */

static pid_t start(int worker) {
  pid_t pid = fork();
  if (pid < 0)
    die("fork", errno);
  if (pid == 0) {
    (worker % 2 ? receiver : sender)(NULL);
    _exit(0);
  }
  return pid;
}

static void reap(pid_t pid, bool killed) {
  int status;
  while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
    continue;
  if (!killed && status != 0) {
    fprintf(stderr, "a worker ended with status %d\n", status);
    exit(1);
  }
}

/* How many were killed: *readers of them receivers. */
static int run_processes(int workers, double seconds, int *readers) {
  pid_t pid[WORKERS];
  int kills = 0;
  unsigned seed = (unsigned)getpid();
  for (int i = 0; i < workers; i++)
    pid[i] = start(i);
  for (Nanos end = ipc_now() + (Nanos)(seconds * 1e9); ipc_now() < end;) {
    struct timespec t = {0, 1000 + (long)(rand_r(&seed) % 20000000)};
    nanosleep(&t, NULL);
    int i = (int)((unsigned)rand_r(&seed) % (unsigned)workers);
    kill(pid[i], SIGKILL);
    reap(pid[i], true);
    kills++;
    *readers += i % 2;
    pid[i] = start(i);
  }
  for (int stop = 1; stop <= 2; stop++) {
    atomic_store(&told->stop, stop);
    for (int i = stop - 1; i < workers; i += 2)
      reap(pid[i], false);
  }
  return kills;
}

static void run_threads(int workers, double seconds) {
  pthread_t thread[WORKERS];
  struct timespec t = {(time_t)seconds, (long)(seconds * 1e9) % 1000000000};
  for (int i = 0; i < workers; i++)
    if (pthread_create(&thread[i], NULL, i % 2 ? receiver : sender, NULL))
      die("thread", errno);
  nanosleep(&t, NULL);
  for (int stop = 1; stop <= 2; stop++) {
    atomic_store(&told->stop, stop);
    for (int i = stop - 1; i < workers; i += 2)
      pthread_join(thread[i], NULL);
  }
}

/* Whether all went well. */
static bool run(const char *name, uint32_t flags, int workers, double seconds) {
  const SegmentAsk ask = {.create = IPC_CREATE,
                          .kind = SEGMENT_RING,
                          .flags = flags,
                          .slots = SEGMENT_SLOTS,
                          .ring = ipc_segment_ring(RING)};
  int kills = 0, readers = 0, err = ipc_segment_attach(&shared, &ask);
  if (err)
    die("create", err);
  memset(told, 0, sizeof *told);
  leases = flags & SEGMENT_LEASE;
  if (threads)
    run_threads(workers, seconds);
  else
    kills = run_processes(workers, seconds, &readers);
  unsigned lost = 0, twice = atomic_load(&told->twice);
  for (size_t i = 0; i < IDS; i++)
    lost += told->was_sent[i] && !told->was_seen[i];
  bool well = atomic_load(&told->received) > 0 && !atomic_load(&told->wrong) &&
              lost <= (leases ? 0U : (unsigned)readers) &&
              twice <= (leases ? (unsigned)readers : 0U);
  printf("ring, %zu bits, %s: %u messages, %d kills, %u wrong, %u lost, %u "
         "twice%s\n",
         8 * sizeof(size_t), name, atomic_load(&told->received), kills,
         atomic_load(&told->wrong), lost, twice, well ? "" : ": FAILED");
  fflush(stdout);
  ipc_segment_leave(&shared, NULL, false);
  return well;
}

int main(int argc, char **argv) {
  if (argc != 3)
    return 2;
  threads = strcmp(argv[1], "threads") == 0;
  double seconds = atof(argv[2]) / 3;
  told = mmap(NULL, sizeof *told, PROT_READ | PROT_WRITE,
              MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (told == MAP_FAILED)
    return 1;
  bool well = run("many to many", 0, WORKERS, seconds);
  well &=
      run("one to one", SEGMENT_SOLE_WRITER | SEGMENT_SOLE_READER, 2, seconds);
  well &= run("leases", SEGMENT_LEASE, WORKERS, seconds);
  return !well;
}
