/* comm.c: MPI for comm.h: Debian's Open MPI, opened when mpirun has started us.
 *
 * It is opened at run time, so that raftc needs no MPI to be built, and none where one is alone. What
 * mpi.h would say stands here: the handles of Open MPI are addresses of objects that it exports. */
#include "runtime/train/comm.h"
#include "runtime/train/private.h"

#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>

typedef struct Mpi {
    void *library;
    void *world, *float_type, *double_type;
    int (*init_thread)(int *, char ***, int, int *);
    int (*finalize)(void);
    int (*abort)(void *, int);
    int (*comm_rank)(void *, int *);
    int (*comm_size)(void *, int *);
    int (*alltoallv)(const void *, const int *, const int *, void *, void *, const int *,
                     const int *, void *, void *);
    int (*allgatherv)(const void *, int, void *, void *, const int *, const int *, void *, void *);
    int (*allgather)(const void *, int, void *, void *, int, void *, void *);
} Mpi;

static const char library_name[] = "libmpi.so.40";
enum { THREAD_FUNNELED = 1 };
#define IN_PLACE ((void *)1)

/* ---- opening ------------------------------------------------------------------------------------ */

static RaftStatus find_symbols(Mpi *mpi, RaftError *error)
{
    const struct {
        const char *name;
        void **place;
    } symbols[] = {
        {"ompi_mpi_comm_world", &mpi->world},
        {"ompi_mpi_float", &mpi->float_type},
        {"ompi_mpi_double", &mpi->double_type},
        {"MPI_Init_thread", (void **)&mpi->init_thread},
        {"MPI_Finalize", (void **)&mpi->finalize},
        {"MPI_Abort", (void **)&mpi->abort},
        {"MPI_Comm_rank", (void **)&mpi->comm_rank},
        {"MPI_Comm_size", (void **)&mpi->comm_size},
        {"MPI_Alltoallv", (void **)&mpi->alltoallv},
        {"MPI_Allgatherv", (void **)&mpi->allgatherv},
        {"MPI_Allgather", (void **)&mpi->allgather},
    };
    /* For all to see: it opens parts of its own, which look for it. */
    mpi->library = dlopen(library_name, RTLD_NOW | RTLD_GLOBAL);
    if (!mpi->library)
        return rt_fail(error, RAFT_UNSUPPORTED,
                       "mpirun has started this process, but Open MPI cannot be opened: %s",
                       dlerror());
    for (size_t i = 0; i < sizeof symbols / sizeof symbols[0]; i++) {
        *symbols[i].place = dlsym(mpi->library, symbols[i].name);
        if (!*symbols[i].place)
            return rt_fail(error, RAFT_UNSUPPORTED, "%s lacks %s", library_name, symbols[i].name);
    }
    return RAFT_OK;
}

RaftStatus raft_comm_open(RaftComm *comm, RaftError *error)
{
    int provided;
    *comm = (RaftComm){.size = 1};
    if (!getenv("OMPI_COMM_WORLD_SIZE")) return RAFT_OK;
    Mpi *mpi = calloc(1, sizeof *mpi);
    if (!mpi) return rt_no_memory(error, "MPI");
    RaftStatus status = find_symbols(mpi, error);
    if (!status && mpi->init_thread(NULL, NULL, THREAD_FUNNELED, &provided))
        status = rt_fail(error, RAFT_UNSUPPORTED, "MPI cannot be initialised");
    if (status) {
        free(mpi);
        return status;
    }
    comm->state = mpi;
    mpi->comm_rank(mpi->world, &comm->rank);
    mpi->comm_size(mpi->world, &comm->size);
    return RAFT_OK;
}

void raft_comm_close(RaftComm *comm)
{
    Mpi *mpi = comm->state;
    if (mpi) mpi->finalize();
    free(mpi);
    comm->state = NULL;
}

void raft_comm_abort(const RaftComm *comm, int status)
{
    const Mpi *mpi = comm->state;
    if (mpi) mpi->abort(mpi->world, status);
}

/* ---- sums --------------------------------------------------------------------------------------- */

static RaftStatus fail(RaftError *error)
{
    return rt_fail(error, RAFT_IO, "MPI could not exchange data");
}

/* Each process adds up one slice of the values, and then has the others' slices. */
static RaftStatus sum_slices(const RaftComm *comm, float *values, int *counts, RaftError *error)
{
    const Mpi *mpi = comm->state;
    int size = comm->size, own = counts[comm->rank];
    int *offsets = counts + size, *owns = counts + 2 * size, *places = counts + 3 * size;
    float *slices = malloc(sizeof *slices * ((size_t)size * (size_t)own + 1));
    if (!slices) return rt_no_memory(error, "MPI");
    for (int i = 0; i < size; i++) {
        owns[i] = own;
        places[i] = i * own;
    }
    bool good = !mpi->alltoallv(values, counts, offsets, mpi->float_type, slices, owns, places,
                                mpi->float_type, mpi->world);
    float *sums = values + offsets[comm->rank];
    for (int k = 0; good && k < own; k++) {
        float sum = slices[k];
        for (int i = 1; i < size; i++) sum += slices[(size_t)i * (size_t)own + (size_t)k];
        sums[k] = sum;
    }
    good = good && !mpi->allgatherv(IN_PLACE, 0, mpi->float_type, values, counts, offsets,
                                    mpi->float_type, mpi->world);
    free(slices);
    return good ? RAFT_OK : fail(error);
}

RaftStatus raft_comm_sum(const RaftComm *comm, float *values, int64_t count, RaftError *error)
{
    enum { MOST = 1 << 28 }; /* at once: MPI counts in int */
    if (!comm->state) return RAFT_OK;
    int *counts = malloc(4 * sizeof *counts * (size_t)comm->size); /* four arrays */
    if (!counts) return rt_no_memory(error, "MPI");
    RaftStatus status = RAFT_OK;
    for (int64_t first = 0; first < count && !status; first += MOST) {
        int64_t part = count - first < MOST ? count - first : MOST;
        for (int i = 0; i < comm->size; i++) {
            counts[comm->size + i] = (int)(part * i / comm->size);
            counts[i] = (int)(part * (i + 1) / comm->size) - counts[comm->size + i];
        }
        status = sum_slices(comm, values + first, counts, error);
    }
    free(counts);
    return status;
}

RaftStatus raft_comm_sum_doubles(const RaftComm *comm, double *values, int count, RaftError *error)
{
    const Mpi *mpi = comm->state;
    if (!mpi) return RAFT_OK;
    double *all = malloc(sizeof *all * (size_t)count * (size_t)comm->size);
    if (!all) return rt_no_memory(error, "MPI");
    bool good =
        !mpi->allgather(values, count, mpi->double_type, all, count, mpi->double_type, mpi->world);
    for (int k = 0; good && k < count; k++) {
        values[k] = all[k];
        for (int i = 1; i < comm->size; i++) values[k] += all[i * count + k];
    }
    free(all);
    return good ? RAFT_OK : fail(error);
}
