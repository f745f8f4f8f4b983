/* What differs between systems. os_linux.c and os_posix.c each implement all
 * of it, one of them is compiled in; os_unix.c is what they share. No Lua. */
#ifndef IPC_OS_H
#define IPC_OS_H

#include <poll.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/uio.h>

/* Whether IPC_WITHOUT in the environment names this feature, so that its
 * fallback can be tried: a list such as "pidfd,rwf_nosignal". */
bool ipc_os_without(const char *feature);

/* --- os_linux.c, os_posix.c: 0 or an errno unless said otherwise --- */

/* A pipe, close-on-exec, non-blocking. With `packets` every write is one read
 * (ENOTSUP where the system has none). */
int ipc_os_pipe(int fd[2], bool packets);

/* Asks for room for `want` bytes in a pipe; *got is what there is then. With
 * want 0 only tells. */
int ipc_os_capacity(int fd, size_t want, size_t *got);

/* Two connected unix sockets, close-on-exec, non-blocking (ENOTSUP where the
 * system has none of that type). */
int ipc_os_socketpair(int type, int fd[2]);

/* Makes a packet socket tell an empty packet from the end. */
int ipc_os_mark_packets(int fd);

/* Writes to a pipe; never raises SIGPIPE. */
int ipc_os_write(int fd, const struct iovec *iov, int count, size_t *put);

/* poll(2) with nanoseconds (IPC_FOREVER: no limit). *ready is how many. */
int ipc_os_poll(struct pollfd *fds, size_t count, int64_t timeout,
                size_t *ready);

/* The cores this process may run on now; at least 1. */
int ipc_os_cores(void);

/* The cores the system runs, as of the first call; at least 1. */
int ipc_os_online(void);

/* Whether ipc_os_process gives descriptors here. */
bool ipc_os_watches_processes(void);

/* A descriptor that is readable once our child `pid` has ended; -1: none. */
int ipc_os_process(pid_t pid);

/* Sends a signal to our child; `fd` is its descriptor or -1. */
int ipc_os_kill(pid_t pid, int fd, int signal);

/* Large blocks will be taken and given back often: the allocator should not
 * return each to the system, to be faulted in again. Once is enough. */
void ipc_os_expect_large(void);

/* A nameless file in memory, close-on-exec; ENOSYS where there is none. */
int ipc_os_memory_file(int *fd);

/* With this, recvmsg(2) tells the whole length of a packet that it cut; 0 where
 * the system never does. */
extern const int ipc_os_whole_length;

/* Lets a packet socket carry messages of `want` bytes (0: as it is); *got is
 * the most it carries then. */
int ipc_os_packet_room(int fd, size_t want, size_t *got);

/* A descriptor that is readable once it was set, until it is cleared. What it
 * takes to set it is in *setter (perhaps the same). */
int ipc_os_event(int *fd, int *setter);
void ipc_os_event_set(int setter);
void ipc_os_event_clear(int fd);

/* The value of a sysctl; ENOTSUP where there is none of the name. */
int ipc_os_sysctl(const char *name, long long *value);

/* --- os_unix.c --- */

/* The value of a limit of the system, by the name of its sysctl or resource
 * ("kernel.msgmax", "RLIMIT_NOFILE"); -1: there is none. ENOTSUP: not known
 * here. */
int ipc_os_limit(const char *name, long long *value);

/* A second descriptor, close-on-exec. */
int ipc_os_dup(int fd, int *copy);

/* A nameless file, close-on-exec, in memory where that exists. */
int ipc_os_nameless(int *fd);

/* Reads; *got 0 is the end. */
int ipc_os_read(int fd, void *bytes, size_t room, size_t *got);

/* The same on sockets, whatever their flags. */
int ipc_os_receive(int fd, void *bytes, size_t room, size_t *got);
int ipc_os_send(int fd, const struct iovec *iov, int count, size_t *put);

/* The peer sees the end after what was sent. */
int ipc_os_end_sending(int fd);

/* The peer's sending answers closed. */
int ipc_os_end_receiving(int fd);

/* One packet. *end: there will be no more. EMSGSIZE: it had *got bytes, or at
 * least that many, more than `room`, and is gone. */
int ipc_os_receive_packet(int fd, void *bytes, size_t room, size_t *got,
                          bool *end);

/* write(2) with SIGPIPE held back for its duration. */
int ipc_os_write_masked(int fd, const struct iovec *iov, int count,
                        size_t *put);

/* Whether our child has ended: 0 and its wait status, EAGAIN if not, ECHILD if
 * the system has reaped it already. */
int ipc_os_reap(pid_t pid, int *status);

/* For a child nobody will wait for: reaped later, by the next ipc_os_sweep. */
void ipc_os_orphan(pid_t pid);
void ipc_os_sweep(void);

/* In a child: its ends of what its parent reads (-1: none), open as long as it
 * runs. Those of the process it was forked from are not its own: closed. */
void ipc_os_hold(const int fd[2]);

/* Once a process: the fork counter, the library pinned against unloading, and
 * `at_exit` run when the program ends. 0 or an errno. */
int ipc_os_start(void (*at_exit)(void), void (*in_child)(void));

/* Held around the list of states. */
void ipc_os_lock(void);
void ipc_os_unlock(void);

#endif
