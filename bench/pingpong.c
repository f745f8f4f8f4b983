/* The round trip of a 64-byte message between two processes, in raw C; prints
 * ns. Arguments: pipe | fifo | packets | stream | seqpacket | datagram | tcp
 * | udp | sysv | mqueue | ring, blocking | learning, across | one (cores),
 * seconds. */
#include "raw.h"

enum { BATCH = 50 };

static void serve(End *e) {
  size_t size;
  const char *m;
  char answer[RAW_SMALL];
  while ((m = raw_recv(e, &size))) {
    if (size != sizeof answer)
      raw_die("a question");
    memcpy(answer, m, size);
    raw_send(e, answer, size);
  }
}

static void batch(End *e) {
  char question[RAW_SMALL] = "ping";
  for (int i = 0; i < BATCH; i++) {
    raw_send(e, question, sizeof question);
    raw_expect(e, sizeof question);
  }
}

int main(int argc, char **argv) {
  End mine, its;
  if (argc != 5)
    return fprintf(stderr, "pingpong: four arguments, see its source\n"), 2;
  raw_pair(&mine, &its, argv[1], !strcmp(argv[2], "learning"), false);
  pid_t child = raw_fork(&mine, &its, argv[3], serve);
  raw_measure(batch, &mine, BATCH, strtod(argv[4], NULL));
  return raw_join(child, &mine);
}
