/* Messages that go one way between two processes, in raw C; prints ns a
 * message. The receiver answers once for each batch. Arguments: pipe | fifo |
 * packets | stream | seqpacket | datagram | tcp | udp | sysv | mqueue | ring,
 * blocking | learning, across | one (cores), seconds, small (64 bytes, a system
 * call each) | many (64 bytes, gathered into one write) | large (1 MiB) | place
 * (ring: 1 MiB, of which 8 bytes are written and read, where they lie) | there
 * (sysv: 64 bytes, within one process, the receiving alone). */
#include "raw.h"

enum {
  SMALLS = 10240, /* messages in a batch */
  LARGES = 16,
  THERES = 128, /* fit into a System V queue */
  GATHER = 512  /* messages in one write of "many" */
};

static size_t size_each = RAW_SMALL, count = SMALLS;

static void serve(End *e) {
  char done[1] = "!";
  for (;;) {
    for (size_t i = 0; i < count; i++) {
      size_t size;
      const char *m = raw_recv(e, &size);
      if (!m && i == 0)
        return;
      if (!m || size != size_each || m[0] != 'x')
        raw_die("a message");
    }
    raw_send(e, done, sizeof done);
  }
}

static void batch(End *e) {
  static char message[RAW_LARGE];
  message[0] = 'x';
  for (size_t i = 0; i < count; i++)
    raw_send(e, message, size_each);
  raw_expect(e, 1);
}

static void batch_many(End *e) {
  static char message[RAW_SMALL] = "x";
  static char gathered[GATHER * (RAW_HEAD + RAW_SMALL)];
  for (size_t i = 0; i < count; i += GATHER) {
    char *at = gathered;
    for (size_t k = 0; k < GATHER; k++) {
      raw_head(at, RAW_SMALL);
      memcpy(at + RAW_HEAD, message, RAW_SMALL);
      at += RAW_HEAD + RAW_SMALL;
    }
    raw_write_all(e, gathered, sizeof gathered);
  }
  raw_expect(e, 1);
}

static void serve_place(End *e) {
  char done[1] = "!";
  int64_t value = 0;
  for (;;) {
    for (int64_t i = 0; i < LARGES; i++) {
      size_t size;
      const char *m = ring_peek(&e->ring[0], &size);
      if (size == 0)
        return;
      memcpy(&value, m, sizeof value);
      if (size != size_each || value != i)
        raw_die("a message");
      ring_release(&e->ring[0], size);
    }
    raw_send(e, done, sizeof done);
  }
}

static void batch_place(End *e) {
  for (int64_t i = 0; i < LARGES; i++) {
    memcpy(ring_reserve(&e->ring[1], size_each), &i, sizeof i);
    ring_commit(&e->ring[1], size_each);
  }
  raw_expect(e, 1);
}

static End receiver;

static void batch_there(End *e) {
  char message[RAW_SMALL] = "x";
  int64_t start = raw_now();
  for (size_t i = 0; i < count; i++)
    raw_send(e, message, sizeof message);
  raw_aside = raw_now() - start;
  for (size_t i = 0; i < count; i++)
    raw_expect(&receiver, sizeof message);
}

int main(int argc, char **argv) {
  End mine, its;
  if (argc != 6)
    return fprintf(stderr, "oneway: five arguments, see its source\n"), 2;
  bool place = !strcmp(argv[5], "place"), many = !strcmp(argv[5], "many");
  bool large = place || !strcmp(argv[5], "large");
  if (large) {
    size_each = RAW_LARGE;
    count = LARGES;
  }
  raw_pair(&mine, &its, argv[1], !strcmp(argv[2], "learning"), large);
  if (many && mine.packets)
    return puts("one at a time"), EXIT_FAILURE;
  if (large && mine.packets && mine.by != RAW_RING &&
      (mine.by != RAW_SOCKET || mine.lossy))
    return puts("too large"), EXIT_FAILURE;
  if (mine.lossy)
    return puts("may get lost"), EXIT_FAILURE;
  if (!strcmp(argv[5], "there")) {
    receiver = its;
    count = THERES;
    alarm(RAW_PATIENCE);
    raw_pin(0);
    raw_measure(batch_there, &mine, count, strtod(argv[4], NULL));
    return EXIT_SUCCESS;
  }
  pid_t child = raw_fork(&mine, &its, argv[3], place ? serve_place : serve);
  raw_measure(place  ? batch_place
              : many ? batch_many
                     : batch,
              &mine, count, strtod(argv[4], NULL));
  return raw_join(child, &mine);
}
