/* weights.c: weight files of any format: opening by content, looking up, converting, and comparing
 * with what a model wants. */
#include "runtime/rt.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "tensors are read as they lie in files");

/* ---- opening --------------------------------------------------------------------------------- */

bool rt_count_elements(int rank, const int64_t *shape, int64_t *elements)
{
    *elements = 1;
    for (int i = 0; i < rank; i++)
        if (shape[i] < 0 || __builtin_mul_overflow(*elements, shape[i], elements)) return false;
    return true;
}

static int compare_names(const void *a, const void *b)
{
    const RaftTensor *const *x = a, *const *y = b;
    return strcmp((*x)->name, (*y)->name);
}

/* Orders the names for raft_weights_find; the readers have seen to it that each stands once. */
static RaftStatus index_names(RaftWeights *weights, RaftError *error)
{
    const RaftTensor **order = rt_alloc(&weights->arena, weights->count, sizeof *order);
    if (!order) return rt_no_memory(error, weights->path);
    for (int i = 0; i < weights->count; i++) order[i] = &weights->tensor[i];
    qsort(order, weights->count, sizeof *order, compare_names);
    for (int i = 1; i < weights->count; i++) assert(strcmp(order[i - 1]->name, order[i]->name) < 0);
    weights->by_name = order;
    return RAFT_OK;
}

/* How many averages torch.optim.swa_utils.AveragedModel has taken: a tensor beside its module's. */
static bool is_count(const RaftTensor *tensor)
{
    return tensor->rank == 0 && strcmp(tensor->name, "n_averaged") == 0;
}

static bool all_begin_with(const RaftWeights *weights, const char *prefix)
{
    size_t length = strlen(prefix);
    int others = 0;
    for (int i = 0; i < weights->count; i++) {
        const RaftTensor *tensor = &weights->tensor[i];
        if (is_count(tensor)) continue;
        if (strncmp(tensor->name, prefix, length) || !tensor->name[length]) return false;
        others++;
    }
    return others > 0;
}

static void drop(RaftWeights *weights, const char *prefix)
{
    int kept = 0;
    for (int i = 0; i < weights->count; i++) {
        if (is_count(&weights->tensor[i])) continue;
        weights->tensor[kept] = weights->tensor[i];
        weights->tensor[kept++].name += strlen(prefix);
    }
    weights->count = kept;
}

/* What holds a model begins all its names: DataParallel and its like with `module`, torch.compile
 * with `_orig_mod`, Lightning's modules mostly with `model`; one may hold the other. */
static void unwrap_names(RaftWeights *weights)
{
    static const char *const wrappers[] = {"module.", "_orig_mod.", "model."};
    for (size_t i = 0; i < sizeof wrappers / sizeof *wrappers;)
        if (all_begin_with(weights, wrappers[i])) {
            drop(weights, wrappers[i]);
            i = 0;
        } else {
            i++;
        }
}

static RaftStatus parse(RaftWeights *weights, const uint8_t *data, size_t size, RaftError *error)
{
    RaftStatus status = rt_torch_recognise(data, size)
                            ? rt_torch_read(weights, data, size, error)
                            : rt_safetensors_read(weights, data, size, error);
    if (status) return status;
    unwrap_names(weights);
    return index_names(weights, error);
}

RaftStatus rt_weights_parse(const char *path, const uint8_t *data, size_t size,
                            RaftWeights **weights, RaftError *error)
{
    *weights = NULL;
    RaftWeights *opened = calloc(1, sizeof *opened);
    if (opened) opened->path = strdup(path);
    RaftStatus status =
        opened && opened->path ? parse(opened, data, size, error) : rt_no_memory(error, path);
    if (status)
        raft_weights_close(opened);
    else
        *weights = opened;
    return status;
}

RaftStatus raft_weights_open(const char *path, RaftWeights **weights, RaftError *error)
{
    RtFile file;
    *weights = NULL;
    RaftStatus status = rt_file_map(path, &file, error);
    if (status) return status;
    status = rt_weights_parse(path, file.data, file.size, weights, error);
    if (status)
        rt_file_unmap(&file);
    else
        (*weights)->file = file;
    return status;
}

void raft_weights_close(RaftWeights *weights)
{
    if (!weights) return;
    rt_arena_free(&weights->arena);
    rt_file_unmap(&weights->file);
    free(weights->path);
    free(weights);
}

/* ---- reading --------------------------------------------------------------------------------- */

int raft_weights_count(const RaftWeights *weights)
{
    return weights->count;
}

const RaftTensor *raft_weights_tensor(const RaftWeights *weights, int index)
{
    return index >= 0 && index < weights->count ? &weights->tensor[index] : NULL;
}

const RaftTensor *raft_weights_find(const RaftWeights *weights, const char *name)
{
    RaftTensor key = {.name = name};
    const RaftTensor *wanted = &key;
    const RaftTensor **found =
        bsearch(&wanted, weights->by_name, weights->count, sizeof *found, compare_names);
    return found ? *found : NULL;
}

bool raft_weights_metadata(const RaftWeights *weights, int index, const char **key,
                           const char **value)
{
    if (index < 0 || index >= weights->metadata_count) return false;
    *key = weights->metadata[2 * index];
    *value = weights->metadata[2 * index + 1];
    return true;
}

static float from_bits(uint32_t bits)
{
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static float from_f16(uint16_t half)
{
    uint32_t sign = (uint32_t)(half & 0x8000) << 16;
    uint32_t exponent = half >> 10 & 31, fraction = half & 1023;
    if (exponent == 31) return from_bits(sign | 0x7f800000u | fraction << 13);
    if (exponent) return from_bits(sign | (exponent + 112) << 23 | fraction << 13);
    float magnitude = (float)fraction * 0x1p-24f; /* subnormal, or zero */
    return sign ? -magnitude : magnitude;
}

static bool holds_floats(const RaftTensor *tensor)
{
    return tensor->dtype <= RAFT_F64;
}

RaftStatus raft_tensor_read_f32(const RaftTensor *tensor, float *data, RaftError *error)
{
    const uint8_t *source = tensor->data;
    if (!holds_floats(tensor))
        return rt_fail(error, RAFT_UNSUPPORTED,
                       "tensor '%s' holds no floating-point numbers that are known here; "
                       "f32, f16, bf16 and f64 are",
                       tensor->name);
    if (tensor->dtype == RAFT_F32 && tensor->elements)
        memcpy(data, source, (size_t)tensor->elements * sizeof *data);
    for (int64_t i = 0; tensor->dtype != RAFT_F32 && i < tensor->elements; i++) {
        uint16_t half;
        double wide;
        if (tensor->dtype == RAFT_F64) {
            memcpy(&wide, source + 8 * i, sizeof wide);
            data[i] = (float)wide;
        } else {
            memcpy(&half, source + 2 * i, sizeof half);
            data[i] = tensor->dtype == RAFT_F16 ? from_f16(half) : from_bits((uint32_t)half << 16);
        }
    }
    return RAFT_OK;
}

/* ---- comparing with a model ------------------------------------------------------------------ */

enum { MAX_LISTED = 8 };

static void add_shape(RaftError *error, int rank, const int64_t *shape)
{
    rt_add(error, "[");
    for (int i = 0; i < rank; i++) rt_add(error, "%s%lld", i ? ", " : "", (long long)shape[i]);
    rt_add(error, "]");
}

/* Starts the next entry of a list headed by `title`; false where enough are listed. */
static bool add_entry(RaftError *error, const char *title, int *listed)
{
    if (++*listed > MAX_LISTED) return false;
    rt_add(error, *listed == 1 ? "\n  %s: " : ", ", title);
    return true;
}

static void add_rest(RaftError *error, int listed)
{
    if (listed > MAX_LISTED) rt_add(error, " and %d more", listed - MAX_LISTED);
}

static bool same_shape(const RaftTensor *tensor, const RaftTensorInfo *wanted)
{
    bool same = tensor->rank == wanted->rank;
    for (int i = 0; same && i < tensor->rank; i++) same = tensor->shape[i] == wanted->shape[i];
    return same;
}

static int list_missing(const RaftWeights *weights, const RaftTensorInfo *wanted, int count,
                        RaftError *error)
{
    int listed = 0;
    for (int i = 0; i < count; i++)
        if (!raft_weights_find(weights, wanted[i].name) && add_entry(error, "missing", &listed))
            rt_add(error, "%s", wanted[i].name);
    add_rest(error, listed);
    return listed;
}

static int list_misshapen(const RaftWeights *weights, const RaftTensorInfo *wanted, int count,
                          RaftError *error)
{
    int listed = 0;
    for (int i = 0; i < count; i++) {
        const RaftTensor *tensor = raft_weights_find(weights, wanted[i].name);
        if (!tensor || (same_shape(tensor, &wanted[i]) && holds_floats(tensor))) continue;
        if (!add_entry(error, "of another shape or type", &listed)) continue;
        rt_add(error, "%s is %s", tensor->name, holds_floats(tensor) ? "" : "not floating-point ");
        add_shape(error, tensor->rank, tensor->shape);
        rt_add(error, ", the model's ");
        add_shape(error, wanted[i].rank, wanted[i].shape);
    }
    add_rest(error, listed);
    return listed;
}

/* What else a checkpoint of a run holds. */
static bool is_state(const RaftTensor *tensor)
{
    return strncmp(tensor->name, RAFT_STATE_PREFIX, strlen(RAFT_STATE_PREFIX)) == 0;
}

static int list_unwanted(const RaftWeights *weights, const bool *is_wanted, RaftError *error)
{
    int listed = 0;
    for (int i = 0; i < weights->count; i++)
        if (!is_wanted[i] && holds_floats(&weights->tensor[i]) && !is_state(&weights->tensor[i]) &&
            add_entry(error, "not the model's", &listed))
            rt_add(error, "%s", weights->tensor[i].name);
    add_rest(error, listed);
    return listed;
}

/* Names of a wrapped model all begin with the wrapper's, as in `module.classifier.bias`. */
static void add_prefix_hint(const RaftWeights *weights, const char *wanted, RaftError *error)
{
    size_t length = strlen(wanted);
    for (int i = 0; i < weights->count; i++) {
        const char *name = weights->tensor[i].name;
        size_t prefix = strlen(name) - length;
        if (strlen(name) <= length + 1 || name[prefix - 1] != '.' || strcmp(name + prefix, wanted))
            continue;
        rt_add(error, "\n  names of the file begin with '%.*s'; without it they may fit",
               (int)prefix, name);
        return;
    }
}

RaftStatus raft_weights_match(const RaftWeights *weights, const RaftTensorInfo *wanted, int count,
                              RaftError *error)
{
    RaftError report;
    bool *is_wanted = calloc((size_t)weights->count + 1, sizeof *is_wanted);
    if (!is_wanted) return rt_no_memory(error, weights->path);
    for (int i = 0; i < count; i++) {
        const RaftTensor *tensor = raft_weights_find(weights, wanted[i].name);
        if (tensor) is_wanted[tensor - weights->tensor] = true;
    }
    rt_fail(&report, RAFT_BAD_FILE, "%s: does not fit the model", weights->path);
    int missing = list_missing(weights, wanted, count, &report);
    int misshapen = list_misshapen(weights, wanted, count, &report);
    int unwanted = list_unwanted(weights, is_wanted, &report);
    if (missing && unwanted) {
        int first = 0;
        while (raft_weights_find(weights, wanted[first].name)) first++;
        add_prefix_hint(weights, wanted[first].name, &report);
    }
    free(is_wanted);
    if (!missing && !misshapen && !unwanted) return RAFT_OK;
    return rt_fail(error, RAFT_BAD_FILE, "%s", report.message);
}
