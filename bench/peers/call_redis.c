/* Redis over a unix socket, through hiredis. It adds nothing: PING is what it
 * does with least work. Arguments as call.h has them. */
#include "call.h"

#include <hiredis/hiredis.h>

static redisContext *connection;

static void serve(const char *path) {
  const char *argv[] = {
      "redis-server", "--port", "0",    "--save",       "",   "--appendonly",
      "no",           "--dir",  "/tmp", "--unixsocket", NULL, NULL};
  argv[10] = path;
  waitpid(call_exec(argv), NULL, 0);
}

static bool join(const char *path) {
  connection = redisConnectUnix(path);
  if (connection && !connection->err)
    return true;
  redisFree(connection);
  return false;
}

static void check(redisReply *reply) {
  call_check(reply && reply->type == REDIS_REPLY_STATUS, "PING");
  freeReplyObject(reply);
}

static void call(void) {
  check((redisReply *)redisCommand(connection, "PING"));
}

static void flight(void) {
  void *reply = NULL;
  for (int i = 0; i < CALL_FLIGHT; i++)
    redisAppendCommand(connection, "PING");
  for (int i = 0; i < CALL_FLIGHT; i++) {
    call_check(redisGetReply(connection, &reply) == REDIS_OK, "redisGetReply");
    check((redisReply *)reply);
  }
}

int main(int argc, char **argv) {
  const Caller caller = {serve, join, call, flight};
  return call_main(&caller, argc, argv);
}
