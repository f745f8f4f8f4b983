/* What is done with shared bytes in raw C; prints ns for each. Arguments: what
 * (add | load | store: a word of 8 bytes; copy, find: bytes), how many bytes,
 * seconds. On one core. */
#include "base.h"

#include <stdatomic.h>
#include <sys/mman.h>

enum { WORDS = 10000 };

static char *from, *to;
static size_t size, repeat;

static _Atomic int64_t *word(void) { return (_Atomic int64_t *)(void *)to; }

static void add(End *e) {
  (void)e;
  for (int i = 0; i < WORDS; i++)
    atomic_fetch_add(word(), 1);
}

static void load(End *e) {
  (void)e;
  for (int i = 0; i < WORDS; i++)
    (void)atomic_load(word());
}

static void store(End *e) {
  (void)e;
  for (int i = 0; i < WORDS; i++)
    atomic_store(word(), i);
}

static void copy(End *e) {
  (void)e;
  for (size_t i = 0; i < repeat; i++) {
    memmove(to, from, size);
    atomic_signal_fence(memory_order_seq_cst);
  }
}

static void find(End *e) {
  (void)e;
  for (size_t i = 0; i < repeat; i++)
    if (memmem(*(char *volatile *)&from, size, "needle", 6))
      exit(EXIT_FAILURE);
}

static char *shared(void) {
  char *at = mmap(NULL, size, PROT_READ | PROT_WRITE,
                  MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (at == MAP_FAILED)
    raw_die("mmap");
  memset(at, 'x', size);
  return at;
}

/* The best of batches, which is what the machine can do when others let it. */
static void best(void (*batch)(End *e), size_t count, double seconds) {
  int64_t least = INT64_MAX, begin = raw_now(), last = begin;
  while (last - begin < (int64_t)(seconds * 1e9)) {
    batch(NULL);
    int64_t now = raw_now();
    if (now - last < least)
      least = now - last;
    last = now;
  }
  printf("%.1f\n", (double)least / (double)count);
}

int main(int argc, char **argv) {
  static const struct {
    const char *name;
    void (*batch)(End *e);
  } of[] = {{"add", add},
            {"load", load},
            {"store", store},
            {"copy", copy},
            {"find", find}};
  if (argc != 4)
    return EXIT_FAILURE;
  size = (size_t)atol(argv[2]);
  repeat = ((size_t)16 << 20) / size + 1;
  raw_pin(1);
  from = shared();
  to = shared();
  for (size_t i = 0; i < sizeof of / sizeof *of; i++)
    if (strcmp(of[i].name, argv[1]) == 0)
      best(of[i].batch, i < 3 ? WORDS : repeat, atof(argv[3]));
  return EXIT_SUCCESS;
}
