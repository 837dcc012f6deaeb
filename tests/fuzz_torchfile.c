/* fuzz_torchfile.c: the reader of what torch.save wrote under libFuzzer.
 *
 *   clang -g -O1 -fsanitize=fuzzer,address,undefined -I. tests/fuzz_torchfile.c \
 *       runtime/{status,memory,file,weights,safetensors,pickle,torchfile}.c -ljansson -lzip \
 *       -o fuzz_torchfile
 *   ./fuzz_torchfile -timeout=1 -rss_limit_mb=512 CORPUS tests/data/weights
 *
 * With -DREPLAY, and without fuzzer in -fsanitize: a program that replays the files given to it. */
#include <stdlib.h>
#include <string.h>

#include "runtime/rt.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    RaftWeights *weights;
    RaftError error = {""};
    if (rt_weights_parse("x", data, size, &weights, &error)) {
        if (error.message[0] != 'x') abort(); /* every refusal says where */
        return 0;
    }
    for (int i = 0; i < raft_weights_count(weights); i++) {
        const RaftTensor *tensor = raft_weights_tensor(weights, i);
        if (raft_weights_find(weights, tensor->name) != tensor) abort();
        if ((size_t)tensor->elements > 4 * size) abort(); /* strides of 0 may repeat some */
        float *values = malloc(((size_t)tensor->elements + 1) * sizeof *values);
        if (!values) abort();
        raft_tensor_read_f32(tensor, values, &error);
        free(values);
    }
    raft_weights_close(weights);
    return 0;
}

#include "tests/fuzz_replay.h"
