/* Calls of add(1, 2) through another library: a program includes this, defines
 * a Caller and calls call_main with it. Prints ns a call. Arguments: sequence
 * (one client, one call at a time) | flight (64 calls, then their 64 answers) |
 * clients (8 processes, each in sequence), across | one | any (cores), seconds.
 * C and C++. */
#ifndef BENCH_PEERS_CALL_H
#define BENCH_PEERS_CALL_H

#include "../base.h"

#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

enum { CALL_FLIGHT = 64, CALL_CLIENTS = 8, CALL_BATCH = 50 };

typedef struct Caller {
  /* In a process of its own, until it is killed; the address is its path. */
  void (*serve)(const char *path);
  /* In a client's process: whether the server is there by now. */
  bool (*connect)(const char *path);
  void (*call)(void);   /* one, with its answer */
  void (*flight)(void); /* CALL_FLIGHT of them; NULL: cannot */
} Caller;

static const Caller *call_of; /* the program's */
static char call_path[64];

static inline void call_check(bool fine, const char *what) {
  if (fine)
    return;
  fprintf(stderr, "bench: %s\n", what);
  _exit(EXIT_FAILURE);
}

static inline void call_place(const char *place, int core) {
  if (strcmp(place, "any") != 0)
    raw_pin(strcmp(place, "across") == 0 ? core : 0);
}

static inline void call_nap(void) {
  const struct timespec t = {0, 20000000};
  nanosleep(&t, NULL);
}

static inline void call_connect(void) {
  alarm(RAW_PATIENCE);
  while (!call_of->connect(call_path))
    call_nap();
}

static void call_batch(End *e) {
  (void)e;
  for (int i = 0; i < CALL_BATCH; i++)
    call_of->call();
}

static void call_flights(End *e) {
  (void)e;
  call_of->flight();
}

/* One of the crowd: connects, says so, and calls when it is told to. */
static void call_client(int ready, int go, double seconds) {
  char byte = 0;
  int64_t n = 0;
  call_connect();
  call_batch(NULL);
  call_check(write(ready, &n, sizeof n) == sizeof n, "write");
  call_check(read(go, &byte, 1) == 0, "read"); /* the end of the pipe */
  int64_t end = raw_now() + (int64_t)(seconds * 1e9);
  do
    call_batch(NULL), n += CALL_BATCH;
  while (raw_now() < end);
  call_check(write(ready, &n, sizeof n) == sizeof n, "write");
}

static void call_crowd(double seconds) {
  int ready[2], go[2];
  int64_t n = 0, all = 0;
  call_check(pipe(ready) == 0 && pipe(go) == 0, "pipe");
  for (int i = 0; i < CALL_CLIENTS; i++) {
    pid_t pid = fork();
    call_check(pid >= 0, "fork");
    if (pid == 0) {
      close(go[1]);
      call_client(ready[1], go[0], seconds);
      _exit(EXIT_SUCCESS);
    }
  }
  close(ready[1]);
  for (int i = 0; i < CALL_CLIENTS; i++)
    call_check(read(ready[0], &n, sizeof n) == sizeof n, "a client");
  close(go[1]);
  for (int i = 0; i < CALL_CLIENTS; i++) {
    call_check(read(ready[0], &n, sizeof n) == sizeof n, "a client");
    all += n;
  }
  while (wait(NULL) > 0)
    ;
  printf("%.1f\n", seconds * 1e9 / (double)all);
  fflush(stdout);
}

/* A server of its own for `argv`, which says nothing. */
static inline pid_t call_exec(const char *const *argv) {
  pid_t pid = fork();
  call_check(pid >= 0, "fork");
  if (pid == 0) {
    call_check(freopen("/dev/null", "w", stdout) &&
                   freopen("/dev/null", "w", stderr),
               "/dev/null");
    execvp(argv[0], (char **)(uintptr_t)argv);
    _exit(127);
  }
  return pid;
}

static int call_main(const Caller *caller, int argc, char **argv) {
  if (argc != 4)
    return fprintf(stderr, "call: three arguments, see call.h\n"), 2;
  double seconds = strtod(argv[3], NULL);
  bool flight = strcmp(argv[1], "flight") == 0;
  if (flight && !caller->flight)
    return puts("one at a time"), EXIT_FAILURE;
  call_of = caller;
  snprintf(call_path, sizeof call_path, "/tmp/ipc-bench.%ld", (long)getpid());
  prctl(PR_SET_CHILD_SUBREAPER, 1); /* what the server has started, too */
  pid_t server = fork();
  call_check(server >= 0, "fork");
  if (server == 0) {
    setpgid(0, 0); /* with what it starts */
    alarm(RAW_PATIENCE);
    call_place(argv[2], 1);
    caller->serve(call_path);
    _exit(EXIT_FAILURE);
  }
  setpgid(server, server);
  /* The client is a process of its own, too: whatever becomes of it, the
   * server ends. */
  pid_t client = fork();
  call_check(client >= 0, "fork");
  if (client == 0) {
    call_place(argv[2], 0);
    if (strcmp(argv[1], "clients") == 0) {
      call_crowd(seconds);
    } else {
      call_connect();
      raw_measure(flight ? call_flights : call_batch, NULL,
                  flight ? CALL_FLIGHT : CALL_BATCH, seconds);
      fflush(stdout);
    }
    _exit(EXIT_SUCCESS);
  }
  int status = 0;
  bool fine = waitpid(client, &status, 0) == client && status == 0;
  kill(-server, SIGKILL);
  while (wait(NULL) > 0)
    ;
  unlink(call_path);
  return fine ? EXIT_SUCCESS : EXIT_FAILURE;
}

#endif
