/* gRPC over a unix socket: the synchronous server; of many calls at once, a
 * completion queue. Arguments as call.h has them. */
#include "call.h"

#include "call.grpc.pb.h"

#include <grpcpp/grpcpp.h>
#include <memory>
#include <string>

static std::unique_ptr<Calculator::Stub> stub;

struct CalculatorService final : public Calculator::Service {
  grpc::Status Add(grpc::ServerContext *, const Addends *in,
                   Sum *out) override {
    out->set_sum(in->a() + in->b());
    return grpc::Status::OK;
  }
};

static void serve(const char *path) {
  CalculatorService service;
  grpc::ServerBuilder builder;
  builder.AddListeningPort(std::string("unix:") + path,
                           grpc::InsecureServerCredentials());
  builder.RegisterService(&service);
  builder.BuildAndStart()->Wait();
}

static Addends addends() {
  Addends in;
  in.set_a(1);
  in.set_b(2);
  return in;
}

static bool join(const char *path) {
  if (access(path, F_OK))
    return false;
  stub = Calculator::NewStub(grpc::CreateChannel(
      std::string("unix:") + path, grpc::InsecureChannelCredentials()));
  return true;
}

static void call() {
  grpc::ClientContext context;
  Sum out;
  context.set_wait_for_ready(true);
  call_check(stub->Add(&context, addends(), &out).ok() && out.sum() == 3,
             "Add");
}

static void flight() {
  struct Call {
    grpc::ClientContext context;
    Sum out;
    grpc::Status status;
    std::unique_ptr<grpc::ClientAsyncResponseReader<Sum>> reader;
  };
  static grpc::CompletionQueue queue;
  Call calls[CALL_FLIGHT];
  void *tag;
  bool ok;
  for (Call &c : calls) {
    c.context.set_wait_for_ready(true);
    c.reader = stub->AsyncAdd(&c.context, addends(), &queue);
    c.reader->Finish(&c.out, &c.status, &c);
  }
  for (int i = 0; i < CALL_FLIGHT; i++) {
    call_check(queue.Next(&tag, &ok) && ok, "Next");
    Call *c = static_cast<Call *>(tag);
    call_check(c->status.ok() && c->out.sum() == 3, "AsyncAdd");
  }
}

int main(int argc, char **argv) {
  const Caller caller = {serve, join, call, flight};
  return call_main(&caller, argc, argv);
}
