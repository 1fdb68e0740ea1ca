/* Preloaded, this makes a process believe that it may run on 64 cores. It sizes its thread pools and allocator arenas by that. */
#define _GNU_SOURCE
#include <sched.h>
#include <string.h>

enum { CORES = 64 };

int sched_getaffinity(pid_t process, size_t size, cpu_set_t *cores) {
    (void)process;
    memset(cores, 0, size);
    for (int core = 0; core < CORES; core++)
        CPU_SET_S(core, size, cores);
    return 0;
}
