/* ZeroMQ: a pair of sockets over ipc. Arguments as peer.h has them. */
#include "peer.h"

#include <zmq.h>

static char address[64];
static void *context, *sock;
static zmq_msg_t last;

static void prepare(size_t size) {
  (void)size;
  snprintf(address, sizeof address, "ipc:///tmp/ipc-bench.%ld", (long)getpid());
}

static void join(bool child, size_t size) {
  (void)size;
  context = zmq_ctx_new();
  sock = zmq_socket(context, ZMQ_PAIR);
  if (!sock || zmq_msg_init(&last))
    raw_die("zmq_socket");
  if (child ? zmq_connect(sock, address) : zmq_bind(sock, address))
    raw_die(address);
}

static void send_bytes(const void *bytes, size_t size) {
  if (zmq_send(sock, bytes, size, 0) < 0)
    raw_die("zmq_send");
}

static const char *recv_bytes(size_t *size) {
  if (zmq_msg_recv(&last, sock, 0) < 0)
    raw_die("zmq_msg_recv");
  *size = zmq_msg_size(&last);
  return zmq_msg_data(&last);
}

static void leave(void) {
  zmq_close(sock);
  zmq_ctx_term(context);
  unlink(address + strlen("ipc://"));
}

int main(int argc, char **argv) {
  const Peer peer = {.prepare = prepare,
                     .join = join,
                     .send = send_bytes,
                     .recv = recv_bytes,
                     .leave = leave};
  return peer_main(&peer, argc, argv);
}
