/* What starting a program costs, in raw C; prints ns. Arguments: fork | spawn
 * (posix_spawn), true (a run of /bin/true, to its end) | lua (an interpreter
 * until its first byte comes through a pipe) | copy (the same, without exec),
 * seconds, MiB that the parent has in use, the interpreter. */
#include "base.h"

#include <fcntl.h>
#include <spawn.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

extern char **environ;

static char *const just_true[] = {"/bin/true", NULL};
static char *lua[] = {NULL, "-e", "io.stdout:write('x'):flush()", NULL};
static bool spawns, says, copies;

static pid_t forked(char *const *program, int output) {
  pid_t pid = fork();
  if (pid < 0)
    raw_die("fork");
  if (pid > 0)
    return pid;
  if (copies)
    _exit(write(output, "x", 1) != 1);
  if (output >= 0)
    dup2(output, STDOUT_FILENO);
  execvp(program[0], program);
  _exit(127);
}

static pid_t spawned(char *const *program, int output) {
  posix_spawn_file_actions_t actions;
  pid_t pid;
  posix_spawn_file_actions_init(&actions);
  if (output >= 0)
    posix_spawn_file_actions_adddup2(&actions, output, STDOUT_FILENO);
  errno = posix_spawnp(&pid, program[0], &actions, NULL, program, environ);
  if (errno)
    raw_die("posix_spawnp");
  posix_spawn_file_actions_destroy(&actions);
  return pid;
}

static void ended(pid_t pid) {
  int status;
  if (waitpid(pid, &status, 0) != pid || status != 0)
    raw_die("the program");
}

static void batch(End *e) {
  int fds[2] = {-1, -1};
  char byte;
  (void)e;
  if (says && pipe2(fds, O_CLOEXEC))
    raw_die("pipe2");
  pid_t pid = (spawns ? spawned : forked)(says ? lua : just_true, fds[1]);
  if (!says) {
    ended(pid);
    return;
  }
  close(fds[1]);
  if (read(fds[0], &byte, 1) != 1)
    raw_die("its first byte");
  int64_t then = raw_now();
  close(fds[0]);
  ended(pid);
  raw_aside = raw_now() - then;
}

int main(int argc, char **argv) {
  if (argc != 6)
    return fprintf(stderr, "start: five arguments, see its source\n"), 2;
  size_t size = strtoul(argv[4], NULL, 10) << 20;
  char *memory = size ? malloc(size) : NULL;
  if (memory)
    memset(memory, 1, size);
  else if (size)
    raw_die("malloc");
  spawns = strcmp(argv[1], "spawn") == 0;
  copies = strcmp(argv[2], "copy") == 0;
  says = copies || strcmp(argv[2], "lua") == 0;
  lua[0] = argv[5];
  raw_measure(batch, NULL, 1, strtod(argv[3], NULL));
  return memory && memory[size - 1] != 1;
}
