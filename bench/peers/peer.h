/* What pingpong.c and oneway.c do, for other libraries: a program includes
 * this, defines a Peer and calls peer_main with it. Prints ns for each round
 * trip or message. Arguments: pingpong | small (64 bytes) | large (1 MiB),
 * across | one (cores), seconds. C and C++. */
#ifndef BENCH_PEERS_PEER_H
#define BENCH_PEERS_PEER_H

#include "../base.h"

#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

enum { PEER_TRIPS = 50, PEER_SMALLS = 2048, PEER_LARGES = 16 };

typedef struct Peer {
  bool polls; /* never sleeps */
  /* Before the fork, for messages of `size` bytes at most; may be NULL. */
  void (*prepare)(size_t size);
  /* In each of the two processes, pinned to its core. */
  void (*join)(bool child, size_t size);
  void (*send)(const void *bytes, size_t size);
  /* The next message, valid until the next call. */
  const char *(*recv)(size_t *size);
  void (*leave)(void); /* each, at the end; may be NULL */
} Peer;

static const Peer *peer_of; /* the program's */
static size_t peer_size, peer_count;
static bool peer_echoes;
static char peer_message[RAW_LARGE] = "x";

static void peer_expect(size_t size) {
  size_t got = 0;
  const char *m = peer_of->recv(&got);
  if (!m || got != size || m[0] != 'x')
    raw_die("a message");
}

static void peer_batch(End *e) {
  (void)e;
  for (size_t i = 0; i < peer_count; i++) {
    peer_of->send(peer_message, peer_size);
    if (peer_echoes)
      peer_expect(peer_size);
  }
  if (!peer_echoes)
    peer_expect(1);
}

/* Until a message of one byte. */
static void peer_serve(void) {
  for (;;) {
    for (size_t i = 0; i < peer_count; i++) {
      size_t got = 0;
      const char *m = peer_of->recv(&got);
      if (m && got == 1)
        return;
      if (!m || got != peer_size || m[0] != 'x')
        raw_die("a message");
      if (peer_echoes)
        peer_of->send(peer_message, peer_size);
    }
    if (!peer_echoes)
      peer_of->send(peer_message, 1);
  }
}

static int peer_main(const Peer *peer, int argc, char **argv) {
  int status;
  if (argc != 4)
    return fprintf(stderr, "peer: three arguments, see peer.h\n"), 2;
  bool across = !strcmp(argv[2], "across"), large = !strcmp(argv[1], "large");
  if (peer->polls && !across)
    return puts("polls"), EXIT_FAILURE;
  peer_of = peer;
  peer_size = large ? RAW_LARGE : RAW_SMALL;
  peer_echoes = !strcmp(argv[1], "pingpong");
  peer_count = peer_echoes ? PEER_TRIPS : large ? PEER_LARGES : PEER_SMALLS;
  if (peer->prepare)
    peer->prepare(peer_size);
  pid_t pid = fork();
  if (pid < 0)
    raw_die("fork");
  alarm(RAW_PATIENCE);
  raw_pin(pid == 0 && across ? 1 : 0);
  peer->join(pid == 0, peer_size);
  if (pid == 0) {
    peer_serve();
    if (peer->leave)
      peer->leave();
    exit(EXIT_SUCCESS);
  }
  raw_measure(peer_batch, NULL, peer_count, strtod(argv[3], NULL));
  peer->send(peer_message, 1);
  bool fine = waitpid(pid, &status, 0) == pid && status == 0;
  if (peer->leave)
    peer->leave();
  return fine ? EXIT_SUCCESS : EXIT_FAILURE;
}

#endif
