/* Boost.Interprocess: two message queues. Arguments as peer.h has them. */
#include "peer.h"

#include <boost/interprocess/ipc/message_queue.hpp>
#include <memory>
#include <string>
#include <vector>

using boost::interprocess::message_queue;

static std::unique_ptr<message_queue> queues[2];
static message_queue *in, *out;
static std::vector<char> last;

static void prepare(size_t size) {
  last.resize(size);
  for (int i = 0; i < 2; i++) {
    std::string name =
        "ipc-bench." + std::to_string(getpid()) + "." + std::to_string(i);
    queues[i].reset(new message_queue(boost::interprocess::create_only,
                                      name.c_str(), (1 << 22) / size, size));
    message_queue::remove(name.c_str());
  }
}

static void join(bool child, size_t size) {
  (void)size;
  in = queues[child ? 0 : 1].get();
  out = queues[child ? 1 : 0].get();
}

static void send_bytes(const void *bytes, size_t size) {
  out->send(bytes, size, 0);
}

static const char *recv_bytes(size_t *size) {
  message_queue::size_type got;
  unsigned priority;
  in->receive(last.data(), last.size(), got, priority);
  *size = got;
  return last.data();
}

int main(int argc, char **argv) {
  const Peer peer = {false, prepare, join, send_bytes, recv_bytes, nullptr};
  return peer_main(&peer, argc, argv);
}
