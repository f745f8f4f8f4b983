/* nng: a pair of sockets over ipc. Arguments as peer.h has them. */
#include "peer.h"

#include <nng/nng.h>
#include <nng/protocol/pair0/pair.h>

enum { BUFFERED = 1000 }; /* messages; as many as ZeroMQ's default */

static char address[64];
static nng_socket sock;
static nng_msg *last;

static void check(int code, const char *what) {
  if (code == 0)
    return;
  fprintf(stderr, "bench: %s: %s\n", what, nng_strerror(code));
  exit(EXIT_FAILURE);
}

static void prepare(size_t size) {
  (void)size;
  snprintf(address, sizeof address, "ipc:///tmp/ipc-bench.%ld", (long)getpid());
}

static void join(bool child, size_t size) {
  (void)size;
  check(nng_pair0_open(&sock), "nng_pair0_open");
  check(nng_socket_set_size(sock, NNG_OPT_RECVMAXSZ, 0), "NNG_OPT_RECVMAXSZ");
  check(nng_socket_set_int(sock, NNG_OPT_SENDBUF, BUFFERED), "NNG_OPT_SENDBUF");
  check(nng_socket_set_int(sock, NNG_OPT_RECVBUF, BUFFERED), "NNG_OPT_RECVBUF");
  check(child ? nng_dial(sock, address, NULL, NNG_FLAG_NONBLOCK)
              : nng_listen(sock, address, NULL, 0),
        address);
}

static void send_bytes(const void *bytes, size_t size) {
  nng_msg *m;
  check(nng_msg_alloc(&m, size), "nng_msg_alloc");
  memcpy(nng_msg_body(m), bytes, size);
  check(nng_sendmsg(sock, m, 0), "nng_sendmsg");
}

static const char *recv_bytes(size_t *size) {
  if (last)
    nng_msg_free(last);
  check(nng_recvmsg(sock, &last, 0), "nng_recvmsg");
  *size = nng_msg_len(last);
  return nng_msg_body(last);
}

static void leave(void) { nng_close(sock); }

int main(int argc, char **argv) {
  const Peer peer = {.prepare = prepare,
                     .join = join,
                     .send = send_bytes,
                     .recv = recv_bytes,
                     .leave = leave};
  return peer_main(&peer, argc, argv);
}
