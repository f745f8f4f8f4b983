/* ZeroMQ: REQ and REP over ipc; of many calls at once, DEALER and REP.
 * Arguments as call.h has them. */
#include "call.h"

#include <zmq.h>

static void *context, *sock, *dealer;

static void serve(const char *path) {
  char address[80];
  int64_t add[2];
  snprintf(address, sizeof address, "ipc://%s", path);
  context = zmq_ctx_new();
  sock = zmq_socket(context, ZMQ_REP);
  call_check(sock && zmq_bind(sock, address) == 0, address);
  while (zmq_recv(sock, add, sizeof add, 0) == sizeof add) {
    int64_t sum = add[0] + add[1];
    call_check(zmq_send(sock, &sum, sizeof sum, 0) > 0, "zmq_send");
  }
}

static bool join(const char *path) {
  char address[80];
  snprintf(address, sizeof address, "ipc://%s", path);
  context = zmq_ctx_new();
  sock = zmq_socket(context, ZMQ_REQ);
  dealer = zmq_socket(context, ZMQ_DEALER);
  return sock && dealer && zmq_connect(sock, address) == 0 &&
         zmq_connect(dealer, address) == 0;
}

static void ask(void *s) {
  const int64_t add[2] = {1, 2};
  call_check(zmq_send(s, add, sizeof add, 0) == sizeof add, "zmq_send");
}

static void answer(void *s) {
  int64_t sum = 0;
  call_check(zmq_recv(s, &sum, sizeof sum, 0) == sizeof sum && sum == 3,
             "zmq_recv");
}

static void call(void) {
  ask(sock);
  answer(sock);
}

static void flight(void) {
  char empty;
  for (int i = 0; i < CALL_FLIGHT; i++) {
    call_check(zmq_send(dealer, "", 0, ZMQ_SNDMORE) == 0, "zmq_send");
    ask(dealer);
  }
  for (int i = 0; i < CALL_FLIGHT; i++) {
    call_check(zmq_recv(dealer, &empty, 1, 0) == 0, "zmq_recv");
    answer(dealer);
  }
}

int main(int argc, char **argv) {
  const Caller caller = {serve, join, call, flight};
  return call_main(&caller, argc, argv);
}
