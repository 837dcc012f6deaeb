/* fill.c: the fill rule: values that depend on a tensor's name and the index alone, so that tests
 * and benchmarks of large models need no stored weights. The same rule made the goldens: every
 * product is rounded to f32 before it is added to anything. */
#include "runtime/raft.h"

#include <math.h>
#include <string.h>

/* FNV-1a, 64 bits. */
static uint64_t seed_of(const char *name)
{
    uint64_t hash = 14695981039346656037u;
    for (const char *p = name; *p; p++) hash = (hash ^ (uint8_t)*p) * 1099511628211u;
    return hash;
}

/* Output number `index` of splitmix64. */
static uint64_t draw(uint64_t seed, int64_t index)
{
    uint64_t z = seed + ((uint64_t)index + 1) * 0x9E3779B97F4A7C15u;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
    z = (z ^ z >> 27) * 0x94D049BB133111EBu;
    return z ^ z >> 31;
}

/* data[i] = base + scale * v with v in [-1, 1) a multiple of 2^-23, so exact. */
static void fill(const char *name, int64_t elements, float base, float scale, float *data)
{
    enum { MANY = 1 << 16 }; /* beside which it is little to start threads */
    uint64_t seed = seed_of(name);
#pragma omp parallel for if (elements >= MANY)
    for (int64_t i = 0; i < elements; i++) {
        float v = (float)(draw(seed, i) >> 40) * 0x1p-23f - 1.0f;
        data[i] = base + scale * v;
    }
}

void raft_fill_parameter(const char *name, int rank, const int64_t *shape, float *data)
{
    int64_t elements = 1;
    size_t length = strlen(name);
    for (int i = 0; i < rank; i++) elements *= shape[i];
    if (length >= 5 && !strcmp(name + length - 5, ".bias"))
        fill(name, elements, 0.0f, 0.1f, data);
    else if (rank <= 1)
        fill(name, elements, 1.0f, 0.2f, data);
    else
        fill(name, elements, 0.0f, (float)sqrt(3.0 / (double)shape[rank - 1]), data);
}

void raft_fill_input(int64_t elements, float *data)
{
    fill("input", elements, 0.0f, 2.0f, data);
}

void raft_fill_labels(int64_t count, int64_t classes, uint32_t *labels)
{
    uint64_t seed = seed_of("labels");
    for (int64_t i = 0; i < count; i++) labels[i] = (uint32_t)(draw(seed, i) % (uint64_t)classes);
}
