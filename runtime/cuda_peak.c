/* cuda_peak.c: how fast a GPU multiplies and adds, and copies its memory. The kernels are compiled by
 * the caller (backends/cuda/peak.c has their text); events on the GPU time them.
 */
#include "runtime/cuda_driver.h"
#include "runtime/peak.h"

enum { THREADS = 256, BLOCKS = 16 /* for each multiprocessor */ };

typedef struct Bench {
    RaftGpuDriver driver;
    RaftCudaGpu gpu;
    RaftGpuModule module;
    RaftGpuEvent start, stop;
    RaftGpuAddress memory[2];
} Bench;

static int launch(const Bench *b, const char *name, int blocks, void **arguments, double *seconds)
{
    RaftGpuFunction function;
    float ms = 0;
    int result = b->driver.module_function(&function, b->module, name);
    if (result == 0) result = b->driver.event_record(b->start, NULL);
    if (result == 0)
        result = b->driver.launch(function, (unsigned)blocks, 1, 1, THREADS, 1, 1, 0, NULL,
                                  arguments, NULL);
    if (result == 0) result = b->driver.event_record(b->stop, NULL);
    if (result == 0) result = b->driver.stream_wait(NULL);
    if (result == 0) result = b->driver.event_elapsed(&ms, b->start, b->stop);
    *seconds = 1e-3 * (double)ms;
    return result;
}

/* Twice the work until it lasts long enough: what is short tells little. */
static int measure_sums(Bench *b, double seconds, double *gflops)
{
    const double flops = 2.0 * 16 * 8; /* of a thread in a round */
    int blocks = BLOCKS * b->gpu.processors, result = 0;
    float factor = 0.75f, term = 0.25f;
    double taken = 0;
    for (int rounds = 64; result == 0 && taken < seconds && rounds < 1 << 24; rounds *= 2) {
        void *arguments[] = {&b->memory[0], &rounds, &factor, &term};
        result = launch(b, "raft_sums", blocks, arguments, &taken);
        *gflops = 1e-9 * flops * rounds * blocks * THREADS / taken;
    }
    return result;
}

/* The best of several: reads and writes together. */
static int measure_copies(Bench *b, double *gbytes)
{
    const long long bytes = 256ll << 20;
    long long count = bytes / 16;
    int result = 0;
    for (int i = 0; i < 2 && result == 0; i++) {
        if (b->memory[i]) b->driver.release(b->memory[i]);
        b->memory[i] = 0;
        result = b->driver.allocate(&b->memory[i], (size_t)bytes);
    }
    *gbytes = 0;
    for (int i = 0; i < 10 && result == 0; i++) {
        double taken;
        void *arguments[] = {&b->memory[0], &b->memory[1], &count};
        result = launch(b, "raft_copy", BLOCKS * b->gpu.processors, arguments, &taken);
        double speed = 2e-9 * (double)bytes / taken;
        if (result == 0 && speed > *gbytes) *gbytes = speed;
    }
    return result;
}

RaftStatus raft_cuda_peak(const RaftCudaImage *image, double seconds, double *gflops,
                          double *gbytes, char *message, size_t size)
{
    Bench b = {0};
    RaftGpuContext context = NULL;
    RaftStatus status = raft_gpu_open(&b.driver, message, size);
    if (status == RAFT_OK) status = raft_gpu_describe(&b.driver, 0, &b.gpu, message, size);
    if (status != RAFT_OK) return status;
    int result = b.driver.context_retain(&context, b.gpu.device);
    if (result != 0) return raft_gpu_result(&b.driver, result, "its context", message, size);
    result = b.driver.context_push(context);
    bool pushed = result == 0;
    if (result == 0) result = b.driver.module_load(&b.module, image->data);
    if (result == 0) result = b.driver.event_create(&b.start, 0);
    if (result == 0) result = b.driver.event_create(&b.stop, 0);
    if (result == 0) result = b.driver.allocate(&b.memory[0], sizeof(float));
    if (result == 0 && gflops) result = measure_sums(&b, seconds, gflops);
    if (result == 0 && gbytes) result = measure_copies(&b, gbytes);
    for (int i = 0; i < 2; i++)
        if (b.memory[i]) b.driver.release(b.memory[i]);
    if (b.start) b.driver.event_destroy(b.start);
    if (b.stop) b.driver.event_destroy(b.stop);
    if (b.module) b.driver.module_unload(b.module);
    if (pushed) b.driver.context_pop(&context);
    b.driver.context_release(b.gpu.device);
    return raft_gpu_result(&b.driver, result, "the measurement of its peak", message, size);
}
