/* nng: req and rep over ipc; what has many calls at once is in raw mode.
 * Arguments as call.h has them. */
#include "call.h"

#include <nng/nng.h>
#include <nng/protocol/reqrep0/rep.h>
#include <nng/protocol/reqrep0/req.h>

static nng_socket sock, many; /* the latter in raw mode, as the server's */

static void check(int code, const char *what) {
  call_check(code == 0, code ? nng_strerror(code) : what);
}

static void serve(const char *path) {
  char address[80];
  int64_t add[2];
  nng_msg *m;
  snprintf(address, sizeof address, "ipc://%s", path);
  check(nng_rep0_open_raw(&sock), "nng_rep0_open_raw");
  check(nng_listen(sock, address, NULL, 0), address);
  for (;;) {
    check(nng_recvmsg(sock, &m, 0), "nng_recvmsg");
    memcpy(add, nng_msg_body(m), sizeof add);
    int64_t sum = add[0] + add[1];
    nng_msg_clear(m); /* whom it is from stays in its header */
    check(nng_msg_append(m, &sum, sizeof sum), "nng_msg_append");
    check(nng_sendmsg(sock, m, 0), "nng_sendmsg");
  }
}

static bool join(const char *path) {
  char address[80];
  snprintf(address, sizeof address, "ipc://%s", path);
  check(nng_req0_open(&sock), "nng_req0_open");
  if (nng_dial(sock, address, NULL, 0)) {
    nng_close(sock);
    return false;
  }
  check(nng_req0_open_raw(&many), "nng_req0_open_raw");
  check(nng_socket_set_int(many, NNG_OPT_SENDBUF, CALL_FLIGHT), "the buffer");
  check(nng_socket_set_int(many, NNG_OPT_RECVBUF, CALL_FLIGHT), "the buffer");
  check(nng_dial(many, address, NULL, 0), address);
  return true;
}

static void call(void) {
  const int64_t add[2] = {1, 2};
  int64_t sum = 0;
  size_t size = sizeof sum;
  check(nng_send(sock, (void *)(uintptr_t)add, sizeof add, 0), "nng_send");
  check(nng_recv(sock, &sum, &size, 0), "nng_recv");
  call_check(sum == 3, "the sum");
}

static void flight(void) {
  const int64_t add[2] = {1, 2};
  nng_msg *m;
  for (uint32_t i = 0; i < CALL_FLIGHT; i++) {
    check(nng_msg_alloc(&m, sizeof add), "nng_msg_alloc");
    memcpy(nng_msg_body(m), add, sizeof add);
    check(nng_msg_header_append_u32(m, i | 0x80000000), "the id");
    check(nng_sendmsg(many, m, 0), "nng_sendmsg");
  }
  for (int i = 0; i < CALL_FLIGHT; i++) {
    int64_t sum = 0;
    check(nng_recvmsg(many, &m, 0), "nng_recvmsg");
    memcpy(&sum, nng_msg_body(m), sizeof sum);
    nng_msg_free(m);
    call_check(sum == 3, "the sum");
  }
}

int main(int argc, char **argv) {
  const Caller caller = {serve, join, call, flight};
  return call_main(&caller, argc, argv);
}
