/* peak.c: the kernels that measure a GPU (runtime/cuda_peak.c): multiply-adds on registers alone,
 * eight sums a thread to cover their latency, and a copy. */
#include "backends/backend.h"

const char cuda_peak_text[] =
    "extern \"C\" __global__ void raft_sums(float *out, int rounds, float factor, float term)\n"
    "{\n"
    "    float sum[8], total = 0;\n"
    "    for (int i = 0; i < 8; i++) sum[i] = threadIdx.x + i;\n"
    "    for (int round = 0; round < rounds; round++)\n"
    "#pragma unroll\n"
    "        for (int k = 0; k < 16; k++)\n"
    "#pragma unroll\n"
    "            for (int i = 0; i < 8; i++) sum[i] = fmaf(sum[i], factor, term);\n"
    "    for (int i = 0; i < 8; i++) total += sum[i];\n"
    "    if (total < 0) *out = total; // never: so that no sum can be left out\n"
    "}\n"
    "extern \"C\" __global__ void raft_copy(float4 *to, const float4 *from, long long count)\n"
    "{\n"
    "    long long step = (long long)gridDim.x * blockDim.x;\n"
    "    for (long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += "
    "step)\n"
    "        to[i] = from[i];\n"
    "}\n";
