/* iceoryx: a publisher and a subscriber each way, polling, bytes copied in and
 * out. Starts iox-roudi, without which nothing of it works. Arguments as
 * peer.h has them. */
#include "peer.h"

#include <iceoryx_hoofs/log/logmanager.hpp>
#include <iceoryx_posh/popo/untyped_publisher.hpp>
#include <iceoryx_posh/popo/untyped_subscriber.hpp>
#include <iceoryx_posh/runtime/posh_runtime.hpp>
#include <memory>
#include <vector>

using namespace iox;

static pid_t broker, starter;
static std::unique_ptr<popo::UntypedPublisher> publisher;
static std::unique_ptr<popo::UntypedSubscriber> subscriber;
static std::vector<char> last;

/* After iceoryx's own clean-up at the end of the program, which needs it. */
static void end_broker(void) {
  if (getpid() != starter)
    return;
  kill(broker, SIGTERM);
  waitpid(broker, nullptr, 0);
}

static void prepare(size_t size) {
  last.resize(size);
  log::LogManager::GetLogManager().SetDefaultLogLevel(
      log::LogLevel::kOff, log::LogLevelOutput::kHideLogLevel);
  broker = fork();
  if (broker < 0)
    raw_die("fork");
  if (broker == 0) {
    if (!freopen("/dev/null", "w", stdout) ||
        !freopen("/dev/null", "w", stderr))
      _exit(127);
    execlp("iox-roudi", "iox-roudi", (char *)nullptr);
    _exit(127);
  }
  starter = getpid();
  atexit(end_broker);
}

static void join(bool child, size_t size) {
  (void)size;
  const char *name[2] = {"asking", "answering"};
  runtime::PoshRuntime::initRuntime(
      RuntimeName_t(cxx::TruncateToCapacity, name[child]));
  popo::PublisherOptions p;
  p.subscriberTooSlowPolicy = popo::ConsumerTooSlowPolicy::WAIT_FOR_CONSUMER;
  popo::SubscriberOptions s;
  s.queueFullPolicy = popo::QueueFullPolicy::BLOCK_PRODUCER;
  capro::ServiceDescription topic[2] = {{"ipc", "bench", "questions"},
                                        {"ipc", "bench", "answers"}};
  publisher.reset(new popo::UntypedPublisher(topic[child], p));
  subscriber.reset(new popo::UntypedSubscriber(topic[!child], s));
  while (!publisher->hasSubscribers() ||
         subscriber->getSubscriptionState() != SubscribeState::SUBSCRIBED)
    usleep(1000);
}

static void send_bytes(const void *bytes, size_t size) {
  for (bool sent = false; !sent;)
    publisher->loan(static_cast<uint32_t>(size)).and_then([&](void *room) {
      memcpy(room, bytes, size);
      publisher->publish(room);
      sent = true;
    });
}

static const char *recv_bytes(size_t *size) {
  for (bool got = false; !got;)
    subscriber->take().and_then([&](const void *bytes) {
      *size = mepoo::ChunkHeader::fromUserPayload(bytes)->userPayloadSize();
      memcpy(last.data(), bytes, *size);
      subscriber->release(bytes);
      got = true;
    });
  return last.data();
}

static void leave(void) {
  subscriber.reset();
  publisher.reset();
}

int main(int argc, char **argv) {
  const Peer peer = {true, prepare, join, send_bytes, recv_bytes, leave};
  return peer_main(&peer, argc, argv);
}
