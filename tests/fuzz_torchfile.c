/* fuzz_torchfile.c: the reader of what torch.save wrote. */
#include <stdlib.h>
#include <string.h>

#include "runtime/rt.h"
#include "tests/fuzz.h"

/* An opcode of one byte may make a value, and places on the stack and in the memo. */
const FuzzLimits fuzz_limits = {.base = 1 << 20, .factor = 300};

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    RaftWeights *weights;
    RaftError error = {""};
    if (rt_weights_parse("x", data, size, &weights, &error)) {
        if (error.message[0] != 'x' || !strstr(error.message, ": byte "))
            fuzz_fail("a refusal that does not say where");
        return 0;
    }
    for (int i = 0; i < raft_weights_count(weights); i++) {
        const RaftTensor *tensor = raft_weights_tensor(weights, i);
        if (raft_weights_find(weights, tensor->name) != tensor) fuzz_fail("a tensor is not found");
        if ((size_t)tensor->elements > 4 * size) /* strides of 0 may repeat some */
            fuzz_fail("more elements than the file can hold");
        float *values = malloc(((size_t)tensor->elements + 1) * sizeof *values);
        if (!values) fuzz_fail("no memory");
        raft_tensor_read_f32(tensor, values, &error);
        free(values);
    }
    raft_weights_close(weights);
    return 0;
}
