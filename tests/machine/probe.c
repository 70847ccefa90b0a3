/* probe: stands in for a user's program in a container, and says what such a program meets there.
 *
 *   probe open PATH...                opens each path to read and write; prints "PATH: ok" or "PATH: ENXIO"
 *   probe read PATH...                opens each path to read
 *   probe mknod PATH MAJOR MINOR      makes a character device and opens it, as a container's root would
 *   probe load SONAME...              loads each library; prints "SONAME: the path it came from", or the error
 *   probe cuda                        loads libcuda.so.1 and starts CUDA; prints what cuInit answers: 805 where MPS
 *                                     hung up, 100 where there is no MPS (nor a GPU), 0 with one
 *   probe silent PATH SECONDS         connects to an MPS control socket, says nothing, and prints "PATH: hung up" or
 *                                     "PATH: held" for who waited so long
 *   probe VERB ... -- VERB ...        one after the other, where no shell is in the image
 *
 * A node without a driver opens with ENXIO where the device cgroup admits it and EPERM where it does not.
 * Exit status: 0 whatever the answers are, 2 for usage. Built static (-DSTATIC) it has no "load".
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <link.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

static const char *error_name(int error)
{
    switch (error) {
    case EACCES: return "EACCES";
    case EBUSY: return "EBUSY";
    case EEXIST: return "EEXIST";
    case EINVAL: return "EINVAL";
    case EIO: return "EIO";
    case EISDIR: return "EISDIR";
    case ENODEV: return "ENODEV";
    case ENOENT: return "ENOENT";
    case ENXIO: return "ENXIO";
    case EPERM: return "EPERM";
    case EROFS: return "EROFS";
    default: return strerror(error);
    }
}

static void try_open(const char *path, int access)
{
    int fd = open(path, access | O_NONBLOCK | O_CLOEXEC);
    printf("%s: %s\n", path, fd < 0 ? error_name(errno) : "ok");
    if (fd >= 0)
        close(fd);
}

static void try_mknod(const char *path, unsigned major, unsigned minor)
{
    if (mknod(path, S_IFCHR | 0666, makedev(major, minor)) < 0)
        printf("%s: mknod %s\n", path, error_name(errno));
    else
        try_open(path, O_RDWR);
}

static void try_load(const char *soname)
{
#ifdef STATIC
    printf("%s: a static program loads nothing\n", soname);
#else
    struct link_map *map;
    void *library = dlopen(soname, RTLD_NOW);
    if (!library)
        printf("%s: %s\n", soname, dlerror());
    else if (dlinfo(library, RTLD_DI_LINKMAP, &map) < 0)
        printf("%s: %s\n", soname, dlerror());
    else
        printf("%s: %s\n", soname, map->l_name);
#endif
}

static void start_cuda(void)
{
#ifdef STATIC
    puts("a static program loads nothing");
#else
    void *library = dlopen("libcuda.so.1", RTLD_NOW);
    int (*init)(unsigned) = library ? (int (*)(unsigned))dlsym(library, "cuInit") : NULL;
    if (init)
        printf("%d\n", init(0));
    else
        puts(dlerror());
#endif
}

/* What the daemon says by itself (a greeting) is read and not answered. */
static void stay_silent(const char *path, int seconds)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    struct timespec now, end;
    char said[256];
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);

    snprintf(address.sun_path, sizeof address.sun_path, "%s", path);
    if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof address) < 0) {
        printf("%s: %s\n", path, error_name(errno));
        return;
    }
    clock_gettime(CLOCK_MONOTONIC, &end);
    end.tv_sec += seconds;
    for (;;) {
        clock_gettime(CLOCK_MONOTONIC, &now);
        long left = (end.tv_sec - now.tv_sec) * 1000 + (end.tv_nsec - now.tv_nsec) / 1000000;
        struct pollfd wait = {.fd = fd, .events = POLLIN};
        if (left <= 0 || poll(&wait, 1, (int)left) == 0) {
            printf("%s: held\n", path);
            break;
        }
        if (recv(fd, said, sizeof said, 0) <= 0) {
            printf("%s: hung up\n", path);
            break;
        }
    }
    close(fd);
}

static int run(int argc, char **argv)
{
    const char *verb = argc > 0 ? argv[0] : "";
    if (strcmp(verb, "open") == 0 || strcmp(verb, "read") == 0) {
        for (int i = 1; i < argc; i++)
            try_open(argv[i], strcmp(verb, "open") == 0 ? O_RDWR : O_RDONLY);
    } else if (strcmp(verb, "mknod") == 0 && argc == 4) {
        try_mknod(argv[1], (unsigned)atoi(argv[2]), (unsigned)atoi(argv[3]));
    } else if (strcmp(verb, "load") == 0) {
        for (int i = 1; i < argc; i++)
            try_load(argv[i]);
    } else if (strcmp(verb, "cuda") == 0 && argc == 1) {
        start_cuda();
    } else if (strcmp(verb, "silent") == 0 && argc == 3) {
        stay_silent(argv[1], atoi(argv[2]));
    } else {
        fputs("usage: probe open PATH... | read PATH... | mknod PATH MAJOR MINOR | load SONAME... | cuda\n"
              "       | silent PATH SECONDS\n", stderr);
        return 2;
    }
    return 0;
}

int main(int argc, char **argv)
{
    int status = 0, start = 1;
    for (int end = 1; end <= argc && status == 0; end++) {
        if (end == argc || strcmp(argv[end], "--") == 0) {
            status = run(end - start, argv + start);
            start = end + 1;
        }
    }
    return status;
}
