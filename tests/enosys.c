/* enosys [--eperm] CALL[,CALL...] PROGRAM [ARGUMENT...]: runs a program on a machine that lacks system calls. A seccomp
 * filter answers ENOSYS to them, as kernels before their time do, or with --eperm EPERM, as container engines' older
 * filters do to calls they do not know. The filter goes with every child. Before the program starts each call is made
 * once: a filter that does not filter ends with status 125. */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#if defined(__x86_64__)
#define ARCHITECTURE AUDIT_ARCH_X86_64
#elif defined(__aarch64__)
#define ARCHITECTURE AUDIT_ARCH_AARCH64
#endif

enum { FAILED = 125, MOST = 8 };

static const struct {
    const char *name;
    unsigned number;
} CALLS[MOST] = {
    {"openat2", SYS_openat2},   {"open_tree", SYS_open_tree}, {"move_mount", SYS_move_mount},
    {"fsopen", SYS_fsopen},     {"fsmount", SYS_fsmount},     {"fsconfig", SYS_fsconfig},
    {"statx", SYS_statx},       {"mount_setattr", SYS_mount_setattr},
};

static int fail(const char *what, const char *why) {
    fprintf(stderr, "enosys: %s: %s\n", what, why);
    return FAILED;
}

int main(int count, char **words) {
    int answer = ENOSYS, at = 1;
    if (count > 1 && strcmp(words[1], "--eperm") == 0) {
        answer = EPERM;
        at = 2;
    }
    if (count < at + 2) return fail("usage", "enosys [--eperm] CALL[,CALL...] PROGRAM [ARGUMENT...]");

    unsigned numbers[MOST];
    int wanted = 0;
    for (char *name = strtok(words[at], ","); name; name = strtok(NULL, ",")) {
        int known = 0;
        while (known < MOST && strcmp(name, CALLS[known].name) != 0) known++;
        if (known == MOST) return fail(name, "not a call that this program knows");
        if (wanted == MOST) return fail(name, "more calls than there are");
        numbers[wanted++] = CALLS[known].number;
    }

    /* A call of another architecture has another number, and goes through. */
    struct sock_filter program[4 + 2 * MOST] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, arch)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, ARCHITECTURE, 0, 1 + 2 * wanted),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
    };
    unsigned short length = 3;
    for (int i = 0; i < wanted; i++) {
        program[length++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, numbers[i], 0, 1);
        program[length++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | answer);
    }
    program[length++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
    struct sock_fprog filter = {.len = length, .filter = program};
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0) return fail("prctl", strerror(errno));
    if (syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &filter) != 0) return fail("seccomp", strerror(errno));

    for (int i = 0; i < wanted; i++) {
        if (syscall(numbers[i], -1, NULL, 0, 0, 0) != -1 || errno != answer) {
            return fail("a call", "it is answered in spite of the filter");
        }
    }
    execvp(words[at + 1], words + at + 1);
    return fail(words[at + 1], strerror(errno));
}
