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

/* Whether a pipe with these file status flags carries packets. */
bool ipc_os_is_packets(int flags);

/* Whether it is a pipe or FIFO. Asks nothing that a file system answers: one
 * in user space would make us wait. */
bool ipc_os_is_pipe(int fd);

/* Opens a pipe anew, non-blocking, under the same descriptor: its flags were
 * shared with every process that has it, and any of these could make our calls
 * wait. `flags` are what it was opened with. An errno: it is as before. */
int ipc_os_renew(int fd, int flags);

/* Asks for room for `want` bytes in a pipe; *got is what there is then. With
 * want 0 only tells. */
int ipc_os_capacity(int fd, size_t want, size_t *got);

/* Two connected unix sockets, close-on-exec, non-blocking (ENOTSUP where the
 * system has none of that type). */
int ipc_os_socketpair(int type, int fd[2]);

/* A socket, close-on-exec, non-blocking, without SIGPIPE. */
int ipc_os_socket(int family, int type, int *fd);

/* The next connection of a listening socket, likewise. EAGAIN: there is none.
 */
int ipc_os_accept(int listener, int *fd);

/* Who was at the other end of a unix socket when it connected; what the system
 * does not tell is -1. */
int ipc_os_credentials(int fd, long *pid, long *uid, long *gid);

/* A TCP connection whose peer is silent is tried after `idle` seconds, every
 * `interval`, and given up after `count` tries. */
int ipc_os_keepalive(int fd, int idle, int interval, int count);

/* It is given up when what was sent is not acknowledged in `ms`. */
int ipc_os_user_timeout(int fd, unsigned ms);

/* Whether unix sockets can have names outside the file system. */
extern const bool ipc_os_abstract;

/* With this, received descriptors are close-on-exec from the first moment; 0
 * where they must be made so afterwards. */
extern const int ipc_os_cmsg_cloexec;

/* Whether a control message is what ipc_os_mark_packets asked for. */
bool ipc_os_is_mark(int level, int type);

/* Makes a packet socket tell an empty packet from the end. */
int ipc_os_mark_packets(int fd);

/* Writes to a pipe; never raises SIGPIPE. */
int ipc_os_write(int fd, const struct iovec *iov, int count, size_t *put);

/* Reads and writes what other processes share: without waiting, and without
 * touching flags. Where the system cannot do that on this kind of file, what
 * poll(2) says may be outdated when it is used. No SIGPIPE. */
int ipc_os_read_shared(int fd, void *bytes, size_t room, size_t *got);
int ipc_os_write_shared(int fd, const struct iovec *iov, int count,
                        size_t *put);

/* poll(2) with nanoseconds (IPC_FOREVER: no limit). *ready is how many. */
int ipc_os_poll(struct pollfd *fds, size_t count, int64_t timeout,
                size_t *ready);

/* The cores this process may run on now; at least 1. */
int ipc_os_cores(void);

/* How often others got the core while this thread could have gone on; -1: not
 * told. */
long ipc_os_switches(void);

/* The cores the system runs, as of the first call; at least 1. */
int ipc_os_online(void);

/* Whether ipc_os_process gives descriptors here. */
bool ipc_os_watches_processes(void);

/* A descriptor that is readable once our child `pid` has ended; -1: none. */
int ipc_os_process(pid_t pid);

/* Sends a signal to our child; `fd` is its descriptor or -1. */
int ipc_os_kill(pid_t pid, int fd, int signal);

/* The same to the process group that it leads. `reaped`: its number may be
 * another's by now; ENOTSUP: then nothing but that names the group. */
int ipc_os_kill_group(pid_t pid, int fd, int signal, bool reaped);

/* The wait status of a child that somebody else has reaped, by its descriptor:
 * 0; EAGAIN: is about to; or an errno. */
int ipc_os_past(int fd, int *status);

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

/* Opens again what a descriptor has open, with a description and flags of its
 * own. ENOTSUP where descriptors have no names. */
int ipc_os_reopen(int fd, int flags, int *again);

/* The path by which a file was opened, as far as the system knows one; ENOTSUP.
 */
int ipc_os_path(int fd, char *path, size_t room);

/* The value of a sysctl; ENOTSUP where there is none of the name. */
int ipc_os_sysctl(const char *name, long long *value);

/* What POSIX leaves out of System V queues: msgrcv(2)'s flag for every type but
 * one (0: there is none), the bytes in a queue, its key. */
struct msqid_ds;
extern const int ipc_os_msg_except;
size_t ipc_os_msg_bytes(const struct msqid_ds *q);
long long ipc_os_msg_key(const struct msqid_ds *q);

/* --- os_unix.c --- */

/* The value of a limit of the system, by the name of its sysctl or resource
 * ("kernel.msgmax", "RLIMIT_NOFILE"); -1: there is none. ENOTSUP: not known
 * here. */
int ipc_os_limit(const char *name, long long *value);

/* A second descriptor, close-on-exec. */
int ipc_os_dup(int fd, int *copy);

/* The same by poll(2) first. */
int ipc_os_read_polled(int fd, void *bytes, size_t room, size_t *got);
int ipc_os_write_polled(int fd, const struct iovec *iov, int count,
                        size_t *put);

/* Takes 0 and 1 away, once a process: they are in fd[0] and fd[1] then,
 * close-on-exec, /dev/null in place of 0 and standard error in place of 1.
 * EBUSY the second time. */
int ipc_os_take_standard(int fd[2]);

/* flock(2) on an open file description, alone or shared: 0; EAGAIN: others
 * have it; ENOTSUP: not on this kind of file. */
int ipc_os_lock_file(int fd, bool alone);
void ipc_os_unlock_file(int fd);

/* Claims a file for this open file description, which can write: 0; EAGAIN:
 * another has claimed it; ENOTSUP: not here, or not this kind of file. Has
 * nothing to do with ipc_os_lock_file, and ends with the description. */
int ipc_os_claim(int fd);

/* A nameless file, close-on-exec, in memory where that exists. */
int ipc_os_nameless(int *fd);

/* Reads; *got 0 is the end. */
int ipc_os_read(int fd, void *bytes, size_t room, size_t *got);

/* The same on sockets, whatever their flags. */
int ipc_os_receive(int fd, void *bytes, size_t room, size_t *got);
int ipc_os_send(int fd, const struct iovec *iov, int count, size_t *put);

/* A message of any kind; the same. */
struct msghdr;
int ipc_os_sendmsg(int fd, const struct msghdr *m, size_t *put);

/* The peer sees the end after what was sent. */
int ipc_os_end_sending(int fd);

/* The peer's sending answers closed. */
int ipc_os_end_receiving(int fd);

/* One packet. *end: there will be no more. EMSGSIZE: it had *got bytes, or at
 * least that many, more than `room`, and is gone. */
int ipc_os_receive_packet(int fd, void *bytes, size_t room, size_t *got,
                          bool *end);

/* What was written to a file is on the disk, as far as the system can tell:
 * its bytes; those and all that describes them, of a directory its names. */
int ipc_os_sync_bytes(int fd);
int ipc_os_sync_file(int fd);

/* What is read from a synced file next comes from the disk, where the system
 * can be told so. */
void ipc_os_sync_forget(int fd);

/* write(2) with SIGPIPE held back for its duration. */
int ipc_os_write_masked(int fd, const struct iovec *iov, int count,
                        size_t *put);

/* All of it to a file. Beyond the process's own limit that is EFBIG, without
 * the signal; `size` bytes may be there in part then. */
int ipc_os_write_file(int fd, const char *bytes, size_t size);

/* What a child and those it waited for have used. */
typedef struct OsUsage {
  double user, system; /* seconds */
  uint64_t memory;     /* bytes, resident at most */
} OsUsage;

/* Whether our child has ended: 0, its wait status and usage, EAGAIN if not,
 * ECHILD if the system has reaped it already. */
int ipc_os_reap(pid_t pid, int *status, OsUsage *usage);

/* The same, and it can still be reaped; without a word about how. */
int ipc_os_ended(pid_t pid);

/* For a child nobody will wait for: reaped later, by the next ipc_os_sweep.
 * `life` is closed then (-1: there is none). */
void ipc_os_orphan(pid_t pid, int life);
void ipc_os_sweep(void);

/* In a child: its ends of what its parent reads (-1: none), open as long as it
 * runs. Those of the process it was forked from are not its own: closed. */
void ipc_os_hold(const int fd[2]);

/* Once a process: the fork counter, the library pinned against unloading, and
 * `at_exit` run when the program ends. 0 or an errno. */
int ipc_os_start(void (*at_exit)(void), void (*in_child)(void));

/* Before the first thread that pthread_cancel(3) is to end: so that ending it
 * cannot fail. 0 or an errno; again is cheap. */
int ipc_os_cancellable(void);

/* --- os_mqueue.c: POSIX message queues; a name begins with its slash --- */

typedef struct OsQueue {
  long most, size, count; /* messages, bytes of each, messages there now */
  long uid, gid;
  unsigned permissions;
  uint64_t device, inode; /* 0 where the system does not tell them apart */
} OsQueue;

/* The sysctls that bound them: messages of a queue, bytes of a message, queues.
 */
extern const char ipc_os_mqueue_messages[], ipc_os_mqueue_bytes[],
    ipc_os_mqueue_queues[];

/* Whether there are any here; without, all of these answer ENOTSUP. */
bool ipc_os_has_mqueue(void);

/* Descriptors of our own: close-on-exec, non-blocking. `access` is O_RDONLY,
 * O_WRONLY or O_RDWR. */
int ipc_os_mqueue_open(const char *name, int access, int *fd);

/* The same of one that must not exist, with exactly these permissions; 0 in
 * want->most, want->size: the system's default. */
int ipc_os_mqueue_make(const char *name, int access, unsigned permissions,
                       const OsQueue *want, int *fd);

int ipc_os_mqueue_look(int fd, OsQueue *q);
int ipc_os_mqueue_send(int fd, const char *bytes, size_t size,
                       unsigned priority);

/* `room` must be the queue's size of a message at least. */
int ipc_os_mqueue_receive(int fd, char *bytes, size_t room, size_t *got,
                          unsigned *priority);
int ipc_os_mqueue_remove(const char *name);

/* This signal once, when a message comes to the empty queue; 0: none any more.
 */
int ipc_os_mqueue_notify(int fd, int signal);

/* --- os_poller.c: many descriptors, of which some are ready --- */

typedef struct OsSet OsSet;

typedef struct OsReady {
  int fd;
  short events; /* of poll(2) */
} OsReady;

int ipc_os_set_open(OsSet **s);

/* In a forked child, too: what is the parent's stays as it is. */
void ipc_os_set_close(OsSet *s);

/* What is readable while some are ready; -1: this system has no such thing
 * (IPC_WITHOUT=epoll). */
int ipc_os_set_descriptor(const OsSet *s);

/* What poll(2) events a descriptor is waited for from now on, until told again;
 * 0: none. `fresh`: it was not, before. EPERM: a file that is always ready.
 * EBADF, ENOSPC, ENOMEM, ELOOP. */
int ipc_os_set_change(OsSet *s, int fd, short events, bool fresh);

/* At most `most` that are ready, another part of them each time; waits up to
 * `timeout` ns (INT64_MAX: for ever) for the first. 0, EINTR, ENOMEM. */
int ipc_os_set_wait(OsSet *s, OsReady *ready, size_t most, int64_t timeout,
                    size_t *count);

/* What to poll to learn that some are; how many there are, perhaps more than
 * `room`. */
size_t ipc_os_set_polls(const OsSet *s, struct pollfd *list, size_t room);

/* --- os_signal.c: signals of this process --- */

typedef struct OsSignals OsSignals;

/* One more who is told of these signals (0 at the end). EINVAL: one that cannot
 * be caught. Others may take them, too. */
int ipc_os_signals_open(OsSignals **made, const int signals[]);

/* Who is the last for a signal gives it the action it had before, unless
 * somebody has set another since. */
void ipc_os_signals_close(OsSignals *s);

/* Readable while there is one. */
int ipc_os_signals_descriptor(const OsSignals *s);

/* The next, in the order they came as far as the system tells; 0: none. */
int ipc_os_signals_next(OsSignals *s);
bool ipc_os_signals_some(const OsSignals *s);

/* From now on it is told of a signal only if nobody else is, and of one: from
 * then on each that it takes, and nobody else, does what it does by default. */
void ipc_os_signals_once(OsSignals *s);

/* Ends this process as the signal does by default. */
void ipc_os_signals_die(int signal);

/* Whether it will be ignored by a program that we start: now, or if we have it,
 * before. */
bool ipc_os_signals_ignored(int signal);

/* In a child of fork(2), by ipc_os_start's handler. */
void ipc_os_signals_in_child(void);

/* A clock that makes a descriptor readable: first in `after` ns (0:
 * never), then each `every` (0: once). ENOTSUP (IPC_WITHOUT=timerfd). */
int ipc_os_timer(int64_t after, int64_t every, int *fd);

/* --- memory that processes share: os_memory.c, and os_linux.c or os_posix.c
 * for what only one of them has --- */

/* Sleeps while *word is `value`, for at most `ns`, in memory that other
 * processes may have mapped. 0: woken, changed or for no reason, look again.
 * ETIMEDOUT, EINTR. Where the system knows nothing of words
 * (IPC_WITHOUT=futex) it looks from time to time. */
int ipc_os_word_wait(_Atomic uint32_t *word, uint32_t value, int64_t ns);

/* Who sleeps at a word does so in slices, to look for the dead between them: ns
 * of the first, and of the longest, each being twice the one before. A sleep
 * that may end before the kernel's next tick, of 4 ms at most in what is usual,
 * sets the hardware's timer, which costs microseconds in a virtual machine. */
enum { OS_SLICE = 4000000, OS_SLICE_MOST = 16000000 };

/* The same at several at once. *which is the one that was woken; the count:
 * none, or one is not what it was. */
typedef struct OsWord {
  _Atomic uint32_t *word;
  uint32_t value;
} OsWord;
int ipc_os_words_wait(const OsWord *words, size_t count, int64_t ns,
                      size_t *which);

/* How many that may be: OS_WORDS; 1 (IPC_WITHOUT=waitv); 0 where the system
 * knows nothing of words. */
enum { OS_WORDS = 128 };
size_t ipc_os_words(void);

/* The same by looking. */
int ipc_os_word_look(const _Atomic uint32_t *word, uint32_t value, int64_t ns);

/* Wakes one or all who sleep on it, in every process. */
void ipc_os_word_wake(_Atomic uint32_t *word, bool all);

/* Wakes at most so many; how many there were, as far as the system tells. */
int ipc_os_word_wake_some(_Atomic uint32_t *word, int most);

/* Locks on bytes of a file, far behind its end, that belong to the open file
 * description: the kernel drops them with its last descriptor, however that
 * goes. Try only: 0; EAGAIN: another description has it. The descriptor must be
 * able to write. */
int ipc_os_byte_lock(int fd, uint64_t at);
int ipc_os_byte_unlock(int fd, uint64_t at);

/* The same, which any number of descriptions can have at once; in place of one
 * for it alone. The descriptor must be able to read. */
int ipc_os_byte_share(int fd, uint64_t at);

/* Whether another description has a lock on one of `count` bytes: 0 and
 * *held. */
int ipc_os_byte_held(int fd, uint64_t at, uint64_t count, bool *held);

/* Whether this system has such locks (IPC_WITHOUT=ofd: it has not). */
bool ipc_os_has_byte_locks(void);

/* Locks on the bytes of the file themselves, which other programs see,
 * lockf(3): alone, or shared. Of the open file description, too; likewise. */
int ipc_os_range_lock(int fd, uint64_t at, uint64_t count, bool alone);
int ipc_os_range_unlock(int fd, uint64_t at, uint64_t count);

/* A file without a name in this directory, read and write, close-on-exec, that
 * ipc_os_link_file can give one. ENOTSUP: not here (IPC_WITHOUT=otmpfile). */
int ipc_os_unnamed_file(const char *directory, unsigned permissions, int *fd);

/* Gives it a name. EEXIST: there is one of that name. */
int ipc_os_link_file(int fd, const char *path);

/* Makes a file `size` bytes long and all of them there: writing to them cannot
 * fail later. ENOSPC, EFBIG. */
int ipc_os_allocate(int fd, uint64_t size);

/* Where named memory lives: a directory that ends with a slash. */
const char *ipc_os_memory_directory(void);

/* A nameless file in memory that can be sealed; huge pages on request (the
 * default size, *page is it then). ENOSYS where there is none, ENOTSUP where
 * there are no huge pages. */
int ipc_os_memory_sealable(bool huge, int *fd, size_t *page);

/* Nobody can change its size from now on; whether that is so for sure. */
int ipc_os_memory_seal(int fd);
bool ipc_os_memory_sealed(int fd);

/* Maps `head` + `ring` bytes of a file, and behind them its last `ring` bytes
 * once more, so that what wraps does not. Both are multiples of the page.
 * `populate`: faults are taken now. */
int ipc_os_map_ring(int fd, size_t head, size_t ring, bool populate,
                    void **base);
void ipc_os_unmap_ring(void *base, size_t head, size_t ring);

/* Maps the first bytes of a file. `copied`: what is written there is ours
 * alone, and never in the file. */
typedef struct OsMap {
  size_t size;
  bool write, copied, populate;
} OsMap;
int ipc_os_map(int fd, const OsMap *map, void **base);
void ipc_os_unmap(void *base, size_t size);

/* Writes what was changed to the file: until it is there, or only begins to. */
int ipc_os_sync(char *at, size_t size, bool wait);

/* What the system may do about pages of a mapping; ENOTSUP where it knows no
 * such advice. */
typedef enum OsAdvice {
  OS_NORMAL,
  OS_SEQUENTIAL,
  OS_RANDOM,
  OS_WILLNEED,
  OS_DONTNEED,
  OS_HUGEPAGE,
  OS_NOHUGEPAGE
} OsAdvice;
int ipc_os_advise(char *at, size_t size, OsAdvice advice);

/* Asks for huge pages where the system can make them of ordinary ones. */
void ipc_os_advise_huge(void *base, size_t size);

/* From here to the end of the mapping a page that the file has lost (truncated,
 * or no memory for it) becomes an empty one of our own and *damaged is set,
 * instead of SIGBUS. NULL and ENOMEM; else what ipc_os_unguard takes. Others'
 * handlers go on to see all other faults. */
int ipc_os_guard(void *base, size_t size, _Atomic bool *damaged, void **guard);
void ipc_os_unguard(void *guard);

/* For loops that wait for another core: a moment, and little power. */
static inline void ipc_os_pause(void) {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

/* The core that runs us now, from 0; -1: not told. Cheap. */
int ipc_os_core(void);

/* Registers this process for ipc_os_barrier; false: there is none here
 * (IPC_WITHOUT=membarrier). Cheap after the first time; again in a child. */
bool ipc_os_barrier_join(void);

/* A full fence, at once, on every core that runs a registered process. */
void ipc_os_barrier(void);

/* Moves a descriptor to 500 or above where there is room, so that programs that
 * close all they do not know leave it alone; else it is as before. */
int ipc_os_high(int *fd);

/* Random bytes. */
void ipc_os_random(void *bytes, size_t size);

/* Descriptors that a child of fork(2) must not keep, because by them the kernel
 * knows whether we live: closed there before anything else runs, except those
 * that are kept for the time of one fork. */
int ipc_os_fork_close(int fd);   /* 0 or ENOMEM */
void ipc_os_fork_forget(int fd); /* before it is closed here */
void ipc_os_fork_keep(int fd, bool keep);

/* In the child: does so. Those that were kept are listed still. */
void ipc_os_fork_done(void);

/* --- os_spawn.c: starting programs --- */

enum {
  OS_KEPT = 4,     /* descriptors that go along, beside the standard ones */
  OS_INHERIT = -3, /* stream[].fd: ours, or /dev/null if that is closed */
  OS_STDOUT = -2,  /* what stream[1] is */
  OS_FILE = -1     /* its path */
};

/* What becomes of descriptor 0, 1 or 2. */
typedef struct OsStream {
  int fd;           /* this one, or one of the above */
  const char *path; /* of a file, opened there with these flags */
  int flags;
  bool blocking; /* fd is ours and does not block: that one will */
} OsStream;

typedef struct OsResource {
  const char *name;    /* of ipc_os_resource; for messages */
  int resource;        /* RLIMIT_... */
  uint64_t soft, hard; /* UINT64_MAX: no limit */
} OsResource;

typedef enum OsGroup { OS_GROUP_OWN, OS_GROUP_OURS, OS_GROUP_SESSION } OsGroup;

typedef struct OsSpawn {
  const char *const *paths; /* to try in this order; NULL at the end */
  char *const *argv, *const *envp;
  const char *cwd; /* or NULL */
  OsStream stream[3];
  int keep[OS_KEPT]; /* become 3, 4, ...; -1: there is none */
  int drop;          /* of no use there; -1 */
  const OsResource *limits;
  size_t limit_count;
  int nice;
  OsGroup group;
  bool lua; /* one of us: it can follow by itself */
} OsSpawn;

/* What could not be done. */
typedef enum OsStep {
  OS_STEP_START,
  OS_STEP_STREAM, /* number: which */
  OS_STEP_GROUP,
  OS_STEP_FOLLOW,
  OS_STEP_KEEP,
  OS_STEP_DIRECTORY,
  OS_STEP_LIMIT, /* number: which */
  OS_STEP_NICE,
  OS_STEP_PROGRAM
} OsStep;

typedef struct OsBorn {
  pid_t pid;
  int ended; /* as of ipc_os_process */
  int life;  /* to be open while it runs, and closed by our end; -1 */
  OsStep step;
  int number;
} OsBorn;

/* Starts a program: 0 once it runs; else an errno, b->step, and nothing is
 * left. What it costs does not grow with this process, where the system can
 * (IPC_WITHOUT=vfork: it cannot). */
int ipc_os_spawn(const OsSpawn *s, OsBorn *b);

/* The number of a resource ("nofile"); -1: not here. */
int ipc_os_resource(const char *name);

/* This process's environment; NULL at the end. */
char **ipc_os_environment(void);

/* In a child of ours, a Lua: adopts the descriptors from `from` on that
 * ipc_os_spawn added to those it was asked to keep, and follows its parent. */
int ipc_os_adopt(int from);

/* In a child that shares its parent's process group, after the interpreter has
 * begun (lua(1) handles it): SIGINT is for the parent to act on, with which the
 * child ends. What it starts does not ignore it. */
void ipc_os_leave_interrupt(void);

/* --- os_child.c: what systems do differently there --- */

/* Whether ipc_os_share is to be used. */
bool ipc_os_shares(void);

/* Runs run(argument) in a child that shares our memory while we wait, until it
 * executes a program or ends; no signal comes meanwhile. ENOTSUP: not here. */
int ipc_os_share(int (*run)(void *), void *argument, pid_t *pid, int *ended);

/* How a child learns of our end. */
typedef struct OsLife {
  int writer; /* open as long as this process runs; -1: nothing can be done */
  int reader; /* the child's end; -1: it opens writer's */
  bool kept;  /* the child must be given reader, and watch it */
} OsLife;

/* In a child of fork(2): its parent's pipe is not its own. */
void ipc_os_life_forget(void);

/* Makes what all children share, before what one needs: it takes two
 * descriptors for a moment, and one for good. */
void ipc_os_life_prepare(void);

/* Before the start; `lua`: the child is one of ours, and can watch. */
int ipc_os_life(bool lua, OsLife *l);

/* In the child, where nothing but system calls may be used: l kills `group`
 * (below 0) or process from now on. Its descriptor is `least` at least. */
int ipc_os_follow(const OsLife *l, pid_t whom, int least, int *fd);

/* There: KILL when `parent` ends, where the system can. */
void ipc_os_die_with(pid_t parent, bool main);

/* Whether this thread is the process's first. */
bool ipc_os_main_thread(void);

/* There: all from `from` on are close-on-exec. */
void ipc_os_close_on_exec(int from);

/* There: opens a pipe again, blocking, close-on-exec; -1. */
int ipc_os_open_blocking(int fd);

/* There: no signal is blocked, and those of the C library do what they do by
 * default. */
void ipc_os_unblock(void);

/* Held around the list of states. */
void ipc_os_lock(void);
void ipc_os_unlock(void);

#endif
