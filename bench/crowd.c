/* Messages of 64 bytes through one ring in shared memory, from many writers to
 * many readers, in raw C; prints ns a message. Writers are on even cores,
 * readers on odd ones. All run until the end; what the readers get between two
 * moments counts. Arguments: writers, readers, sole | many (sides that take
 * turns), seconds. */
#include "ring.h"

#include <signal.h>
#include <sys/wait.h>

enum { CROWD = 64, CHUNK = 64 /* messages between looks at the clock */ };

/* What the processes share besides the ring. */
typedef struct Play {
  _Atomic int ready;
  _Atomic int64_t begin, end; /* end: 0 until it is known */
  _Atomic int64_t got;        /* between them */
} Play;

static Ring ring;
static Play *play;

static void play_wait(void) {
  struct timespec nap = {0, 100000};
  ring_attach(&ring);
  atomic_fetch_add(&play->ready, 1);
  while (!atomic_load(&play->end))
    nanosleep(&nap, NULL);
}

static void writer(uint32_t me) {
  char message[RAW_SMALL] = "x";
  play_wait();
  do
    for (int i = 0; i < CHUNK; i++)
      if (ring.many)
        ring_send_many(&ring, me, message, sizeof message);
      else
        ring_send(&ring, message, sizeof message);
  while (raw_now() < play->end);
  ring_leave(&ring);
}

/* Whether there was one, copied. */
static bool next(uint32_t me, char *bytes) {
  size_t size = 0;
  if (ring.many)
    return ring_recv_many(&ring, me, bytes, RAW_SMALL, &size);
  const char *at = ring_peek(&ring, &size);
  if (!at)
    return false;
  if (size > RAW_SMALL)
    raw_die("too big");
  memcpy(bytes, at, size);
  ring_release(&ring, size);
  return true;
}

static void reader(uint32_t me) {
  char bytes[RAW_SMALL];
  int64_t got = 0;
  bool more = true;
  play_wait();
  while (more) {
    int n = 0;
    while (n < CHUNK && (more = next(me, bytes))) {
      if (bytes[0] != 'x')
        raw_die("a message");
      n++;
    }
    int64_t now = raw_now();
    if (now >= play->begin && now < play->end)
      got += n;
  }
  atomic_fetch_add(&play->got, got);
}

static void start(int core, void (*f)(uint32_t me), uint32_t me) {
  pid_t pid = fork();
  if (pid < 0)
    raw_die("fork");
  if (pid > 0)
    return;
  alarm(RAW_PATIENCE);
  raw_pin(core);
  f(me);
  _exit(0);
}

/* Runs them all: messages a reader had between begin and end, together. */
static int64_t run(long writers, long readers, int64_t length) {
  long cores = sysconf(_SC_NPROCESSORS_ONLN), all = writers + readers;
  for (long i = 0; i < all; i++) {
    bool writes = i < writers;
    long core = writes ? 2 * i : 2 * (i - writers) + 1;
    start((int)(core % cores), writes ? writer : reader, (uint32_t)i + 1);
  }
  alarm(RAW_PATIENCE);
  while (atomic_load(&play->ready) < all)
    sched_yield();
  play->begin = raw_now() + length / 10;
  play->end = play->begin + length;
  for (long i = 0; i < all; i++) {
    int status;
    if (wait(&status) < 0 || status)
      raw_die("a process");
  }
  return play->got;
}

int main(int argc, char **argv) {
  if (argc != 5)
    return fprintf(stderr, "crowd: four arguments, see its source\n"), 2;
  long writers = strtol(argv[1], NULL, 10), readers = strtol(argv[2], NULL, 10);
  int64_t length = (int64_t)(strtod(argv[4], NULL) * 1e9);
  bool many = !strcmp(argv[3], "many");
  if (writers < 1 || readers < 1 || writers + readers > CROWD ||
      (!many && writers + readers > 2))
    return fprintf(stderr, "crowd: so many do not fit\n"), 2;
  play = mmap(NULL, sizeof *play, PROT_READ | PROT_WRITE,
              MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (play == MAP_FAILED)
    raw_die("mmap");
  ring_new(&ring, RAW_RING_SIZE, many, (unsigned)writers, true);
  int64_t got = run(writers, readers, length);
  if (got == 0)
    raw_die("no messages");
  printf("%.1f\n", (double)length / (double)got);
  return EXIT_SUCCESS;
}
