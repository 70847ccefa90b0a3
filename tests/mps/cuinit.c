// What CUDA says where it is given a libcuda: 805 (CUDA_ERROR_MPS_CONNECTION_FAILED) if it met MPS or a tombstone, 100
// (CUDA_ERROR_NO_DEVICE) if it went its way without.
#include <dlfcn.h>
#include <stdio.h>

int main(int argc, char **argv) {
    void *library = argc == 2 ? dlopen(argv[1], RTLD_NOW) : NULL;
    int (*init)(unsigned) = library ? (int (*)(unsigned))dlsym(library, "cuInit") : NULL;
    if (!init) {
        fprintf(stderr, "cuinit: %s\n", dlerror());
        return 1;
    }
    printf("%d\n", init(0));
    return 0;
}
