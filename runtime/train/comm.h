/* comm.h: the processes that train together: all that one of them must ask of the others.
 *
 * Behind it stands MPI (comm.c); another library would bring the same functions. Each is to be called
 * by all processes, in the same order. */
#ifndef RAFT_COMM_H
#define RAFT_COMM_H

#include "runtime/raft.h"

typedef struct RaftComm {
    int rank, size; /* 0 of 1: alone */
    void *state;    /* of the library; NULL: alone */
} RaftComm;

/* The processes that mpirun has started, if it has: else one alone, which needs no MPI. */
RaftStatus raft_comm_open(RaftComm *comm, RaftError *error);
/* At the end, where all went well. */
void raft_comm_close(RaftComm *comm);
/* Ends all processes, each with this exit status. Returns only where one is alone. */
void raft_comm_abort(const RaftComm *comm, int status);

/* Values are replaced by their sums over all processes, in the order of the ranks: each gets the same
 * bits, and they depend on nothing but the number of processes. A sum that has begun goes on while the
 * caller computes, who leaves the values alone until the end: of all sums that have begun. At most
 * RAFT_COMM_SUMS of them. */
enum { RAFT_COMM_SUMS = 16 };
void raft_comm_sum_begin(const RaftComm *comm, float *values, int64_t count);
RaftStatus raft_comm_sum_end(const RaftComm *comm, RaftError *error);
/* At once; no other sum goes on. */
RaftStatus raft_comm_sum_doubles(const RaftComm *comm, double *values, int count, RaftError *error);

#endif
