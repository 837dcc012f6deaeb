/* raftc_convert.c: raftc convert: a weight file as another, tensor by tensor, bit for bit. The
 * content tells what IN is, the name what OUT shall be. */
#include "frontend/raftc.h"

#include <string.h>

static Exit write_copy(Session *session, const RaftWeights *file, const char *path)
{
    int count = raft_weights_count(file), pairs = 0;
    RaftTensor *tensors = arena_array(session->arena, (size_t)count, sizeof *tensors);
    for (int i = 0; i < count; i++) tensors[i] = *raft_weights_tensor(file, i);
    const char *key, *value;
    while (raft_weights_metadata(file, pairs, &key, &value)) pairs++;
    const char **metadata =
        arena_array(session->arena, 2 * (size_t)pairs + 1, sizeof *metadata); /* NULL at the end */
    for (int i = 0; i < pairs; i++)
        raft_weights_metadata(file, i, &metadata[2 * i], &metadata[2 * i + 1]);
    RaftError error;
    signals_hold();
    RaftStatus status = raft_weights_write(path, tensors, count, metadata, &error);
    signals_release();
    if (status != RAFT_OK) return session_fail(session, EXIT_UNDONE, "%s", error.message);
    if (!session->options->quiet)
        fprintf(stderr, "%s: %d %s\n", path, count, count == 1 ? "tensor" : "tensors");
    if (pairs && has_extension(path, ".pt"))
        session_note(session, "a state_dict has no place for the metadata, which is left out");
    return EXIT_DONE;
}

Exit verb_convert(Session *session)
{
    const char *in = session->options->arguments.item[0],
               *out = session->options->arguments.item[1];
    if (!has_extension(out, ".safetensors") && !has_extension(out, ".pt"))
        return session_fail(session, EXIT_USAGE,
                            "%s: the name of the result must end in .safetensors or .pt", out);
    RaftError error;
    RaftWeights *file;
    RaftStatus status = raft_weights_open(in, &file, &error);
    if (status != RAFT_OK) return session_fail_file(session, status, &error);
    Exit exit = write_copy(session, file, out);
    raft_weights_close(file);
    return exit;
}
