/* Feature macros: the first include of every .c file, before any system
 * header. Everything else that depends on the system lives in os_*.c. */
#ifndef IPC_PREFIX_H
#define IPC_PREFIX_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE 1 /* Linux: pipe2, accept4, ppoll, O_DIRECT */
#endif
#define _FILE_OFFSET_BITS 64
#define _TIME_BITS 64
#ifdef __APPLE__
#define _DARWIN_C_SOURCE 1
#endif
#ifdef __NetBSD__
#define _NETBSD_SOURCE 1
#endif

#endif
