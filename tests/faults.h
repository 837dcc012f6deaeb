/* faults.h: what test_faults.c asks of faults.c, and hears from it. */
#ifndef RAFTC_TESTS_FAULTS_H
#define RAFTC_TESTS_FAULTS_H

#include <semaphore.h>

typedef enum FaultCall {
    FAULT_MEMORY, /* malloc and its like, and what gives NULL where they do */
    FAULT_OPEN,   /* of a file to be written */
    FAULT_WRITE,
    FAULT_SYNC,
    FAULT_RENAME,
    FAULT_CLOSE
} FaultCall;

/* What is to fail in one run. */
typedef struct FaultOrder {
    FaultCall call;
    int at;           /* the call that fails, from 1; 0: none */
    int from_then_on; /* and all after it */
    int error;        /* errno; 0: half of a write is done */
    int in_libraries; /* calls of libyaml, libzip, ..., not of the program */
    int signal;       /* not 0: the call is done, but this strikes just before */
} FaultOrder;

/* Shared by the test and the program, which waits before its main function: for each `begin` it
 * forks, the child runs as ordered, and `ended` tells that it has. */
typedef struct FaultReport {
    FaultOrder order;
    sem_t begin, ended;
    int count;  /* calls so far */
    int failed; /* of them */
    long place; /* in the program, of the first of these (for addr2line) */
    int state;  /* with which the child ended, as of waitpid */
} FaultReport;

#endif
