/* compat: stands in for the libcuda.so of NVIDIA's package cuda-compat. An ELF note says for which drivers it is made,
 * as NVIDIA's does: owner "NVIDIA Corporation", a JSON text. DRIVERS is that list: -DDRIVERS='"570,580"'.
 */
#ifndef DRIVERS
#error "no DRIVERS"
#endif

#define JSON "{\"Format\":1,\"CUDA Version\":\"13.1\",\"Driver\":[" DRIVERS "],\"Device\":[1,2,7]}"

static const struct {
    unsigned owner_size, text_size, type;
    char owner[20]; /* 19 bytes, and up to the next multiple of 4 */
    char text[(sizeof(JSON) + 3) / 4 * 4];
} note __attribute__((section(".note.cuda.fwd_compatibility"), used, aligned(4))) = {
    19, sizeof(JSON), 1, "NVIDIA Corporation", JSON,
};
