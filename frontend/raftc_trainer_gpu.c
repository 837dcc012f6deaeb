/* raftc_trainer_gpu.c: states and gradients in the memory of a GPU, from step to step. */
#include "frontend/raftc_trainer.h"
#include "runtime/cuda_calls.h"

static Exit check(const Trainer *t, RaftStatus status)
{
    return status == RAFT_OK
               ? EXIT_DONE
               : session_fail(t->session, EXIT_UNDONE, "%s", raft_shell_error(t->optimiser.shell));
}

static size_t block_bytes(const Trainer *t)
{
    return (size_t)t->floats * sizeof(float);
}

/* What no step changes is brought there once. */
static RaftStatus send_decays(Trainer *t)
{
    const float **decays = trainer_decays(t);
    float *there;
    if (!decays) return RAFT_OK;
    RaftStatus status = raft_cuda_reserve(t->optimiser.shell, block_bytes(t), &there);
    if (status == RAFT_OK)
        status = raft_cuda_upload(t->optimiser.shell, there, *decays, block_bytes(t));
    if (status == RAFT_OK) *decays = there;
    return status;
}

Exit trainer_use_gpu(Trainer *t)
{
    RaftShell *shell = t->optimiser.shell;
    RaftStatus status = send_decays(t);
    for (int i = 0; i < t->state_count; i++)
        for (int k = 0; k < 2 && status == RAFT_OK; k++)
            status = raft_cuda_reserve(shell, block_bytes(t), &t->state[i].gpu[k]);
    if (status == RAFT_OK) status = raft_cuda_reserve(shell, block_bytes(t), &t->gpu_gradients);
    if (status == RAFT_OK) /* the optimiser goes through what lies between gradients, too */
        status = raft_cuda_upload(shell, t->gpu_gradients, t->gradients, block_bytes(t));
    if (status == RAFT_OK)
        status = raft_cuda_pin(t->model.shell, t->image,
                               (size_t)(t->room * t->pixels) * sizeof *t->image);
    return check(t, status);
}

Exit trainer_send_states(Trainer *t)
{
    RaftStatus status = RAFT_OK;
    if (!t->gpu_gradients || t->states_on_gpu) return EXIT_DONE;
    for (int i = 0; i < t->state_count && status == RAFT_OK; i++)
        status = raft_cuda_upload(t->optimiser.shell, t->state[i].gpu[0], t->state[i].block[0],
                                  block_bytes(t));
    t->states_on_gpu = status == RAFT_OK;
    return check(t, status);
}

Exit trainer_bring_states(Trainer *t)
{
    RaftStatus status = RAFT_OK;
    if (!t->states_on_gpu) return EXIT_DONE;
    for (int i = 0; i < t->state_count && status == RAFT_OK; i++)
        status = raft_cuda_download(t->optimiser.shell, t->state[i].block[0], t->state[i].gpu[0],
                                    block_bytes(t));
    t->states_on_gpu = status != RAFT_OK;
    return check(t, status);
}

Exit trainer_bring_gradients(Trainer *t)
{
    if (!t->gradients_on_gpu) return EXIT_DONE;
    t->gradients_on_gpu = false;
    return check(
        t, raft_cuda_download(t->optimiser.shell, t->gradients, t->gpu_gradients, block_bytes(t)));
}
