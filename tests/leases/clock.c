/* clock.c: a wall clock that is as many seconds off as the file says that DIVVY_CLOCK names, at each look at it. For
 * LD_PRELOAD. The other clocks stay as they are, as when somebody sets the time of day. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

int clock_gettime(clockid_t clock, struct timespec *time) {
    int result = syscall(SYS_clock_gettime, clock, time);
    const char *path = getenv("DIVVY_CLOCK");
    if (result == 0 && clock == CLOCK_REALTIME && path) {
        char text[32] = "";
        int file = open(path, O_RDONLY | O_CLOEXEC);
        if (file >= 0) {
            if (read(file, text, sizeof text - 1) > 0)
                time->tv_sec += atoll(text);
            close(file);
        }
    }
    return result;
}
