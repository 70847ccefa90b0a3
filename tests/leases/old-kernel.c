// Makes a program that it is preloaded into believe that the kernel does not know SO_PASSRIGHTS, as before Linux 6.16.
#define _GNU_SOURCE
#include <errno.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#define PASSRIGHTS 83

int setsockopt(int fd, int level, int option, const void *value, socklen_t size)
{
	if (level == SOL_SOCKET && option == PASSRIGHTS) {
		errno = ENOPROTOOPT;
		return -1;
	}
	return syscall(SYS_setsockopt, fd, level, option, value, size);
}
