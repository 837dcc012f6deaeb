/* comm.c: MPI for comm.h: Debian's Open MPI, opened when mpirun has started us.
 *
 * It is opened at run time, so that raftc needs no MPI to be built, and none where one is alone. What
 * mpi.h would say stands here: the handles of Open MPI are addresses of objects that it exports.
 *
 * A thread of its own exchanges what is to be summed. Open MPI moves data only while it is called, and
 * its calls that wait never sleep: so the thread asks now and then, and leaves the processors to those
 * who compute. */
#include "runtime/train/comm.h"
#include "runtime/train/private.h"

#include <assert.h>
#include <dlfcn.h>
#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

typedef struct Sum {
    float *values;
    int64_t count;
} Sum;

typedef struct Mpi {
    void *library;
    void *world, *float_type, *double_type;
    int (*init_thread)(int *, char ***, int, int *);
    int (*finalize)(void);
    int (*abort)(void *, int);
    int (*comm_rank)(void *, int *);
    int (*comm_size)(void *, int *);
    int (*ialltoallv)(const void *, const int *, const int *, void *, void *, const int *,
                      const int *, void *, void *, void **);
    int (*iallgatherv)(const void *, int, void *, void *, const int *, const int *, void *, void *,
                       void **);
    int (*allgather)(const void *, int, void *, void *, int, void *, void *);
    int (*test)(void **, int *, void *);
    const RaftComm *comm;
    pthread_t thread;
    /* Behind the lock: */
    pthread_mutex_t lock;
    pthread_cond_t begun, done;
    Sum sum[RAFT_COMM_SUMS]; /* in the order in which they have begun */
    int begins, ends;        /* so many of them */
    bool waited_for, stop;
    RaftStatus status; /* of the first that failed */
    RaftError error;
} Mpi;

static const char library_name[] = "libmpi.so.40";
enum { THREAD_MULTIPLE = 3 }; /* one may end the run while another waits for data */
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
        {"MPI_Ialltoallv", (void **)&mpi->ialltoallv},
        {"MPI_Iallgatherv", (void **)&mpi->iallgatherv},
        {"MPI_Allgather", (void **)&mpi->allgather},
        {"MPI_Test", (void **)&mpi->test},
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

/* ---- sums --------------------------------------------------------------------------------------- */

static RaftStatus fail(RaftError *error)
{
    return rt_fail(error, RAFT_IO, "MPI could not exchange data");
}

static bool complete(Mpi *mpi, void *request)
{
    const struct timespec moment = {.tv_nsec = 50000};
    for (int done = 0; !mpi->test(&request, &done, NULL);) {
        if (done) return true;
        pthread_mutex_lock(&mpi->lock);
        bool hurry = mpi->waited_for;
        pthread_mutex_unlock(&mpi->lock);
        if (hurry)
            sched_yield();
        else
            nanosleep(&moment, NULL);
    }
    return false;
}

/* Each process adds up one slice of the values, and then has the others' slices. */
static RaftStatus sum_slices(Mpi *mpi, float *values, int *counts, RaftError *error)
{
    int size = mpi->comm->size, own = counts[mpi->comm->rank];
    int *offsets = counts + size, *owns = counts + 2 * size, *places = counts + 3 * size;
    float *slices = malloc(sizeof *slices * ((size_t)size * (size_t)own + 1));
    void *request;
    if (!slices) return rt_no_memory(error, "MPI");
    for (int i = 0; i < size; i++) {
        owns[i] = own;
        places[i] = i * own;
    }
    bool good = !mpi->ialltoallv(values, counts, offsets, mpi->float_type, slices, owns, places,
                                 mpi->float_type, mpi->world, &request) &&
                complete(mpi, request);
    float *sums = values + offsets[mpi->comm->rank];
    for (int k = 0; good && k < own; k++) {
        float sum = slices[k];
        for (int i = 1; i < size; i++) sum += slices[(size_t)i * (size_t)own + (size_t)k];
        sums[k] = sum;
    }
    good = good &&
           !mpi->iallgatherv(IN_PLACE, 0, mpi->float_type, values, counts, offsets, mpi->float_type,
                             mpi->world, &request) &&
           complete(mpi, request);
    free(slices);
    return good ? RAFT_OK : fail(error);
}

static RaftStatus sum_values(Mpi *mpi, const Sum *sum, RaftError *error)
{
    enum { MOST = 1 << 28 }; /* at once: MPI counts in int */
    int size = mpi->comm->size;
    int *counts = malloc(4 * sizeof *counts * (size_t)size); /* four arrays */
    if (!counts) return rt_no_memory(error, "MPI");
    RaftStatus status = RAFT_OK;
    for (int64_t first = 0; first < sum->count && !status; first += MOST) {
        int64_t part = sum->count - first < MOST ? sum->count - first : MOST;
        for (int i = 0; i < size; i++) {
            counts[size + i] = (int)(part * i / size);
            counts[i] = (int)(part * (i + 1) / size) - counts[size + i];
        }
        status = sum_slices(mpi, sum->values + first, counts, error);
    }
    free(counts);
    return status;
}

static void *exchange(void *argument)
{
    Mpi *mpi = argument;
    pthread_mutex_lock(&mpi->lock);
    for (;;) {
        while (!mpi->stop && mpi->ends == mpi->begins) pthread_cond_wait(&mpi->begun, &mpi->lock);
        if (mpi->stop) break;
        Sum sum = mpi->sum[mpi->ends];
        RaftStatus status = mpi->status;
        pthread_mutex_unlock(&mpi->lock);
        if (!status) status = sum_values(mpi, &sum, &mpi->error);
        pthread_mutex_lock(&mpi->lock);
        mpi->status = status;
        mpi->ends++;
        pthread_cond_signal(&mpi->done);
    }
    pthread_mutex_unlock(&mpi->lock);
    return NULL;
}

void raft_comm_sum_begin(const RaftComm *comm, float *values, int64_t count)
{
    Mpi *mpi = comm->state;
    if (!mpi) return;
    pthread_mutex_lock(&mpi->lock);
    assert(mpi->begins < RAFT_COMM_SUMS);
    mpi->sum[mpi->begins++] = (Sum){values, count};
    pthread_cond_signal(&mpi->begun);
    pthread_mutex_unlock(&mpi->lock);
}

RaftStatus raft_comm_sum_end(const RaftComm *comm, RaftError *error)
{
    Mpi *mpi = comm->state;
    if (!mpi) return RAFT_OK;
    pthread_mutex_lock(&mpi->lock);
    mpi->waited_for = true;
    while (mpi->ends < mpi->begins) pthread_cond_wait(&mpi->done, &mpi->lock);
    mpi->waited_for = false;
    mpi->begins = mpi->ends = 0;
    RaftStatus status = mpi->status;
    if (status) *error = mpi->error;
    pthread_mutex_unlock(&mpi->lock);
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

/* ---- opening and closing -------------------------------------------------------------------------- */

static RaftStatus start(RaftComm *comm, Mpi *mpi, RaftError *error)
{
    int provided;
    RaftStatus status = find_symbols(mpi, error);
    if (status) return status;
    if (mpi->init_thread(NULL, NULL, THREAD_MULTIPLE, &provided) || provided < THREAD_MULTIPLE)
        return rt_fail(error, RAFT_UNSUPPORTED, "MPI cannot be initialised for several threads");
    mpi->comm_rank(mpi->world, &comm->rank);
    mpi->comm_size(mpi->world, &comm->size);
    if (pthread_create(&mpi->thread, NULL, exchange, mpi)) return rt_no_memory(error, "MPI");
    return RAFT_OK;
}

RaftStatus raft_comm_open(RaftComm *comm, RaftError *error)
{
    *comm = (RaftComm){.size = 1};
    if (!getenv("OMPI_COMM_WORLD_SIZE")) return RAFT_OK;
    Mpi *mpi = calloc(1, sizeof *mpi);
    if (!mpi) return rt_no_memory(error, "MPI");
    mpi->comm = comm;
    pthread_mutex_init(&mpi->lock, NULL);
    pthread_cond_init(&mpi->begun, NULL);
    pthread_cond_init(&mpi->done, NULL);
    RaftStatus status = start(comm, mpi, error);
    if (status)
        free(mpi);
    else
        comm->state = mpi;
    return status;
}

void raft_comm_close(RaftComm *comm)
{
    Mpi *mpi = comm->state;
    if (!mpi) return;
    pthread_mutex_lock(&mpi->lock);
    mpi->stop = true;
    pthread_cond_signal(&mpi->begun);
    pthread_mutex_unlock(&mpi->lock);
    pthread_join(mpi->thread, NULL);
    mpi->finalize();
    free(mpi);
    comm->state = NULL;
}

void raft_comm_abort(const RaftComm *comm, int status)
{
    const Mpi *mpi = comm->state;
    if (mpi) mpi->abort(mpi->world, status);
}
