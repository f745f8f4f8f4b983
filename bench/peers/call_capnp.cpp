/* Cap'n Proto's RPC over a unix socket. Arguments as call.h has them. */
#include "call.h"

#include "call.capnp.h"

#include <capnp/ez-rpc.h>
#include <string>

static capnp::EzRpcClient *client;
static Calculator::Client *calculator;

struct CalculatorServer final : public Calculator::Server {
  kj::Promise<void> add(AddContext context) override {
    auto p = context.getParams();
    context.getResults().setSum(p.getA() + p.getB());
    return kj::READY_NOW;
  }
};

static void serve(const char *path) {
  capnp::EzRpcServer server(kj::heap<CalculatorServer>(),
                            std::string("unix:") + path);
  kj::NEVER_DONE.wait(server.getWaitScope());
}

static capnp::RemotePromise<Calculator::AddResults> ask() {
  auto request = calculator->addRequest();
  request.setA(1);
  request.setB(2);
  return request.send();
}

static void answer(capnp::RemotePromise<Calculator::AddResults> &promise) {
  call_check(promise.wait(client->getWaitScope()).getSum() == 3, "the sum");
}

static void call() {
  auto promise = ask();
  answer(promise);
}

static bool join(const char *path) {
  if (access(path, F_OK))
    return false;
  client = new capnp::EzRpcClient(std::string("unix:") + path);
  calculator = new Calculator::Client(client->getMain<Calculator>());
  try {
    call();
  } catch (const kj::Exception &) { // nobody listens yet
    delete calculator;
    delete client;
    return false;
  }
  return true;
}

static void flight() {
  kj::Vector<capnp::RemotePromise<Calculator::AddResults>> promises(
      CALL_FLIGHT);
  for (int i = 0; i < CALL_FLIGHT; i++)
    promises.add(ask());
  for (auto &promise : promises)
    answer(promise);
}

int main(int argc, char **argv) {
  const Caller caller = {serve, join, call, flight};
  return call_main(&caller, argc, argv);
}
