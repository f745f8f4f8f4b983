/* What bench/poll.lua compares waits with: epoll_wait(2), or poll(2), on so
 * many sockets of which one is readable; prints ns for each. Arguments: epoll |
 * poll, descriptors, seconds. */
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static void die(const char *what) {
  perror(what);
  exit(1);
}

int main(int argc, char **argv) {
  int count = argc > 3 ? atoi(argv[2]) : 0;
  double seconds = argc > 3 ? atof(argv[3]) : 0;
  int set = epoll_create1(0), both[2] = {-1, -1};
  int polls = argc > 1 && strcmp(argv[1], "poll") == 0;
  struct pollfd *list = calloc((size_t)count + 2, sizeof *list);
  if (!list || count < 1)
    die("arguments");
  for (int i = 0; i < count; i++) {
    struct epoll_event e = {.events = EPOLLIN};
    if (i % 2 == 0 && socketpair(AF_UNIX, SOCK_STREAM, 0, both))
      die("socketpair");
    list[i] = (struct pollfd){both[i % 2], POLLIN, 0};
    e.data.fd = both[i % 2];
    if (epoll_ctl(set, EPOLL_CTL_ADD, both[i % 2], &e))
      die("epoll_ctl");
  }
  int sender = count % 2 ? both[1] : list[count - 1].fd;
  if (write(sender, "x", 1) != 1)
    die("write");
  double begin = now(), end;
  long waits = 0;
  do {
    for (int i = 0; i < 100; i++, waits++) {
      struct epoll_event e[64];
      int n =
          polls ? poll(list, (nfds_t)count, -1) : epoll_wait(set, e, 64, -1);
      if (n != 1)
        die("not one");
    }
    end = now();
  } while (end < begin + seconds);
  printf("%.1f\n", (end - begin) * 1e9 / (double)waits);
  return 0;
}
