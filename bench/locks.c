/* Taking and giving up a lock in shared memory, in raw C, by as many processes
 * as are asked for, each on the next core; prints ns for each lock and unlock,
 * of all of them together. Arguments: futex (a word: 0, taken, wanted) |
 * pthread (process-shared) | robust (the same, that tells of dead owners) |
 * semaphore (sem_t), processes, seconds. Inside, a counter grows by one. */
#include "base.h"

#include <linux/futex.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

enum { CHUNK = 64, CREW = 64 };

typedef struct Play {
  _Alignas(64) _Atomic uint32_t word;
  _Alignas(64) pthread_mutex_t mutex;
  sem_t semaphore;
  _Alignas(64) uint64_t counter;
  _Alignas(64) _Atomic int ready;
  _Atomic int64_t begin, end; /* end: 0 until it is known */
  _Atomic int64_t done;       /* between them */
} Play;

static Play *play;

static void futex_lock(void) {
  uint32_t none = 0;
  if (atomic_compare_exchange_strong_explicit(
          &play->word, &none, 1, memory_order_acquire, memory_order_relaxed))
    return;
  while (atomic_exchange_explicit(&play->word, 2, memory_order_acquire))
    syscall(SYS_futex, &play->word, FUTEX_WAIT, 2, NULL, NULL, 0);
}

static void futex_unlock(void) {
  if (atomic_exchange_explicit(&play->word, 0, memory_order_release) == 2)
    syscall(SYS_futex, &play->word, FUTEX_WAKE, 1, NULL, NULL, 0);
}

static void mutex_lock(void) {
  if (pthread_mutex_lock(&play->mutex))
    raw_die("pthread_mutex_lock");
}

static void mutex_unlock(void) { pthread_mutex_unlock(&play->mutex); }

static void semaphore_lock(void) {
  while (sem_wait(&play->semaphore))
    continue;
}

static void semaphore_unlock(void) { sem_post(&play->semaphore); }

typedef struct Kind {
  const char *name;
  void (*lock)(void), (*unlock)(void);
} Kind;

static const Kind kinds[] = {{"futex", futex_lock, futex_unlock},
                             {"pthread", mutex_lock, mutex_unlock},
                             {"robust", mutex_lock, mutex_unlock},
                             {"semaphore", semaphore_lock, semaphore_unlock}};

static void member(const Kind *k, int core) {
  struct timespec nap = {0, 100000};
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  raw_pin(core);
  atomic_fetch_add(&play->ready, 1);
  while (!atomic_load(&play->end))
    nanosleep(&nap, NULL);
  int64_t done = 0, now;
  do {
    for (int i = 0; i < CHUNK; i++) {
      k->lock();
      play->counter++;
      k->unlock();
    }
    now = raw_now();
    if (now >= play->begin && now < play->end)
      done += CHUNK;
  } while (now < play->end);
  atomic_fetch_add(&play->done, done);
  _exit(0);
}

static void prepare(const char *name) {
  pthread_mutexattr_t a;
  play = mmap(NULL, sizeof *play, PROT_READ | PROT_WRITE,
              MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (play == MAP_FAILED)
    raw_die("mmap");
  pthread_mutexattr_init(&a);
  pthread_mutexattr_setpshared(&a, PTHREAD_PROCESS_SHARED);
  if (strcmp(name, "robust") == 0)
    pthread_mutexattr_setrobust(&a, PTHREAD_MUTEX_ROBUST);
  pthread_mutex_init(&play->mutex, &a);
  sem_init(&play->semaphore, 1, 1);
}

int main(int argc, char **argv) {
  const Kind *k = NULL;
  if (argc != 4)
    return 2;
  for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++)
    if (strcmp(kinds[i].name, argv[1]) == 0)
      k = &kinds[i];
  int crew = atoi(argv[2]), cores = (int)sysconf(_SC_NPROCESSORS_ONLN);
  int64_t length = (int64_t)(atof(argv[3]) * 1e9);
  if (!k || crew < 1 || crew > CREW)
    return 2;
  prepare(k->name);
  for (int i = 0; i < crew; i++)
    if (fork() == 0)
      member(k, i % cores);
  while (atomic_load(&play->ready) < crew)
    usleep(100);
  int64_t now = raw_now();
  play->begin = now + length / 10;
  atomic_store(&play->end, play->begin + length);
  for (int i = 0; i < crew; i++)
    wait(NULL);
  if (play->done == 0)
    raw_die("nothing was done");
  printf("%.1f\n", (double)length / (double)play->done);
  return 0;
}
