/* NATS: a request through nats-server, which is in the answering process'
 * group and on its core. Arguments as call.h has them. */
#include "call.h"

#include <nats/nats.h>

static natsConnection *connection;
static natsSubscription *answers;
static char url[40];
static natsInbox *inbox;

/* A port of its own: the path has the process' id. */
static void url_of(const char *path, char *port, size_t size) {
  long number = 20000 + strtol(strrchr(path, '.') + 1, NULL, 10) % 20000;
  snprintf(port, size, "%ld", number);
  snprintf(url, sizeof url, "nats://127.0.0.1:%ld", number);
}

static void check(natsStatus status, const char *what) {
  call_check(status == NATS_OK, status ? natsStatus_GetText(status) : what);
}

/* What is sent does not wait for more: without this a call takes 1 ms. */
static bool connected(void) {
  static natsOptions *options;
  if (!options)
    check(natsOptions_Create(&options), "natsOptions_Create");
  check(natsOptions_SetURL(options, url), url);
  check(natsOptions_SetSendAsap(options, true), "natsOptions_SetSendAsap");
  return natsConnection_Connect(&connection, options) == NATS_OK;
}

static void serve(const char *path) {
  char port[16];
  natsSubscription *asked = NULL;
  natsMsg *m = NULL;
  url_of(path, port, sizeof port);
  const char *argv[] = {"nats-server", "-a", "127.0.0.1", "-p", port, NULL};
  call_exec(argv);
  while (!connected())
    call_nap();
  check(natsConnection_SubscribeSync(&asked, connection, "add"), "add");
  while (natsSubscription_NextMsg(&m, asked, RAW_PATIENCE * 1000) == NATS_OK) {
    int64_t add[2];
    memcpy(add, natsMsg_GetData(m), sizeof add);
    int64_t sum = add[0] + add[1];
    check(natsConnection_Publish(connection, natsMsg_GetReply(m), &sum,
                                 sizeof sum),
          "natsConnection_Publish");
    natsMsg_Destroy(m);
  }
}

static void answered(natsMsg *m) {
  int64_t sum = 0;
  memcpy(&sum, natsMsg_GetData(m), sizeof sum);
  natsMsg_Destroy(m);
  call_check(sum == 3, "the sum");
}

static natsStatus ask(void) {
  const int64_t add[2] = {1, 2};
  natsMsg *m = NULL;
  natsStatus status = natsConnection_Request(&m, connection, "add", add,
                                             sizeof add, RAW_PATIENCE * 1000);
  if (status == NATS_OK)
    answered(m);
  return status;
}

static bool join(const char *path) {
  char port[16];
  url_of(path, port, sizeof port);
  if (!connection && !connected())
    return false;
  if (!inbox) {
    check(natsInbox_Create(&inbox), "natsInbox_Create");
    check(natsConnection_SubscribeSync(&answers, connection, inbox), inbox);
  }
  return ask() == NATS_OK; /* not before the answering process is there */
}

static void call(void) { check(ask(), "natsConnection_Request"); }

static void flight(void) {
  const int64_t add[2] = {1, 2};
  natsMsg *m = NULL;
  for (int i = 0; i < CALL_FLIGHT; i++)
    check(natsConnection_PublishRequest(connection, "add", inbox, add,
                                        sizeof add),
          "natsConnection_PublishRequest");
  for (int i = 0; i < CALL_FLIGHT; i++) {
    check(natsSubscription_NextMsg(&m, answers, RAW_PATIENCE * 1000),
          "natsSubscription_NextMsg");
    answered(m);
  }
}

int main(int argc, char **argv) {
  const Caller caller = {serve, join, call, flight};
  return call_main(&caller, argc, argv);
}
