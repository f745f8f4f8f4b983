/* What it costs in raw C to make and close something; prints ns. Arguments:
 * what (pipe | socketpair: made and closed; fork: until the child's first byte
 * has come through a socket), seconds. Always on one core, but a fork's child
 * goes where it likes. */
#include "raw.h"

enum { BATCH = 200, HEAP = 512 << 10 /* bytes a small Lua has touched */ };

static void make(const char *what, int fd[2]) {
  int err = !strcmp(what, "pipe")
                ? pipe2(fd, O_CLOEXEC | O_NONBLOCK)
                : socketpair(AF_UNIX,
                             SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, fd);
  if (err)
    raw_die(what);
}

static void pipes(End *e) {
  (void)e;
  for (int i = 0; i < BATCH; i++) {
    int fd[2];
    make("pipe", fd);
    close(fd[0]);
    close(fd[1]);
  }
}

static void sockets(End *e) {
  (void)e;
  for (int i = 0; i < BATCH; i++) {
    int fd[2];
    make("socketpair", fd);
    close(fd[0]);
    close(fd[1]);
  }
}

/* Prints by itself: reaping the child is not measured. */
static int forks(double seconds) {
  static int64_t took[RAW_BATCHES];
  static char heap[HEAP];
  memset(heap, 1, sizeof heap);
  size_t n = 0;
  int64_t begin = raw_now();
  while (n < 5 ||
         (raw_now() - begin < (int64_t)(seconds * 1e9) && n < RAW_BATCHES)) {
    int fd[2];
    char byte = 'x';
    int64_t start = raw_now();
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fd))
      raw_die("socketpair");
    pid_t pid = fork();
    if (pid < 0)
      raw_die("fork");
    if (pid == 0) {
      close(fd[0]);
      _exit(write(fd[1], &byte, 1) == 1 ? 0 : 1);
    }
    close(fd[1]);
    if (read(fd[0], &byte, 1) != 1)
      raw_die("read");
    took[n++] = raw_now() - start;
    close(fd[0]);
    waitpid(pid, NULL, 0);
  }
  qsort(took, n, sizeof *took, raw_order);
  printf("%.1f\n", (double)took[n / 2]);
  return 0;
}

int main(int argc, char **argv) {
  if (argc != 3)
    return fprintf(stderr, "objects: two arguments, see its source\n"), 2;
  double seconds = strtod(argv[2], NULL);
  if (!strcmp(argv[1], "fork"))
    return forks(seconds);
  raw_pin(0);
  raw_measure(!strcmp(argv[1], "pipe") ? pipes : sockets, NULL, BATCH, seconds);
  return 0;
}
