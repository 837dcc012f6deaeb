/* prelude.h: what the emitted CUDA text stands on: all that is not plain C++, in a few names that the emulator has too. */
#ifndef RAFTC_CUDA_PRELUDE_H
#define RAFTC_CUDA_PRELUDE_H

static const char cuda_prelude[] =
    "#ifndef RAFT_EMULATE\n"
    "typedef const float *__restrict__ raft_input;\n"
    "typedef float *__restrict__ raft_output;\n"
    "typedef float *raft_scratch;\n"
    "#define raft_shared(name, floats) extern __shared__ float raft_shared_memory[]; \\\n"
    "    const raft_scratch name = raft_shared_memory\n"
    "#define raft_table(type, name, count) static __device__ const type name[count]\n"
    "#define raft_unroll _Pragma(\"unroll\")\n"
    "static __device__ __forceinline__ void raft_barrier() { __syncthreads(); }\n"
    "// The same sum in every thread of the warp; one fixed tree.\n"
    "static __device__ __forceinline__ float raft_warp_sum(float x)\n"
    "{\n"
    "    for (int distance = 16; distance > 0; distance /= 2)\n"
    "        x += __shfl_xor_sync(0xffffffffu, x, distance);\n"
    "    return x;\n"
    "}\n"
    "#endif\n"
    "static __device__ __forceinline__ int raft_min(int a, int b) { return a < b ? a : b; }\n"
    "static __device__ __forceinline__ float raft_gelu(float x)\n"
    "{\n"
    "    return 0.5f * x * (1.0f + erff(x * 0.707106781f));\n"
    "}\n";

#endif
