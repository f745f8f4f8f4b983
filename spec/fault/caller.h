/* Who calls? Faults are for calls that the library itself makes; Lua's own
 * files, the test runner and every other library in the process have none. */
#ifndef FAULT_CALLER_H
#define FAULT_CALLER_H

#include <link.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

static uintptr_t caller_low, caller_high; /* where ipc/core.so lies */

static int caller_find(struct dl_phdr_info *info, size_t size, void *found) {
  static const char end[] = "/ipc/core.so";
  size_t n = strlen(info->dlpi_name);
  (void)size, (void)found;
  if (n < sizeof end - 1 ||
      strcmp(info->dlpi_name + n - (sizeof end - 1), end) != 0)
    return 0;
  caller_low = UINTPTR_MAX;
  for (int i = 0; i < info->dlpi_phnum; i++) {
    uintptr_t at = info->dlpi_addr + info->dlpi_phdr[i].p_vaddr;
    if (info->dlpi_phdr[i].p_type != PT_LOAD)
      continue;
    if (at < caller_low)
      caller_low = at;
    if (at + info->dlpi_phdr[i].p_memsz > caller_high)
      caller_high = at + info->dlpi_phdr[i].p_memsz;
  }
  return 1;
}

/* Whether a return address is the library's. It pins itself, so that once
 * found it stays where it is. */
static bool caller_is_core(void *address) {
  uintptr_t at = (uintptr_t)address;
  if (!caller_high)
    dl_iterate_phdr(caller_find, NULL);
  return at >= caller_low && at < caller_high;
}

#define FROM_CORE caller_is_core(__builtin_return_address(0))

#endif
