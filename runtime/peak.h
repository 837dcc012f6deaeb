/* peak.h: how fast this machine multiplies and adds, and reads memory, to set a benchmark beside. */
#ifndef RAFT_PEAK_H
#define RAFT_PEAK_H

#include "runtime/shell.h"

/* Seconds of a window that few interrupt, even on a busy machine. */
#define RAFT_BURST 5e-4

/* Runs multiply-adds of f32 vectors on registers alone, on so many threads at once, in windows
 * of about `window` seconds each, one or more, for about `seconds` in all; gives 10^9 floating-point
 * operations a second of all threads together in the best window, a multiply-add being two. The
 * vectors are those of code with `vector_floats` elements in each, or where it has none (1), the widest
 * of the CPU; multiply-adds are fused where the CPU can.
 *
 * Whatever else a machine does takes its share of what lasts long, and may leave a burst alone: what
 * takes a second is to be set beside windows of a second. */
double raft_peak_gflops(int threads, int vector_floats, double window, double seconds);

/* So many threads read memory that no cache holds, for about `seconds`; gives 10^9 bytes a second
 * of all threads together. 0: there is not memory enough to tell. */
double raft_peak_gbytes(int threads, double seconds);

struct RaftCudaImage;
/* The same of GPU 0, of which `image` holds the kernels (backends/cuda/peak.c); the memory is copied:
 * reads and writes count. Each is measured unless it is NULL. */
RaftStatus raft_cuda_peak(const struct RaftCudaImage *image, double seconds, double *gflops,
                          double *gbytes, char *message, size_t size);

#endif
