/* faults.h: what test_faults.c asks of faults.c, and hears from it. */
#ifndef RAFTC_TESTS_FAULTS_H
#define RAFTC_TESTS_FAULTS_H

typedef enum FaultCall {
    FAULT_MEMORY, /* malloc and its like, and what gives NULL where they do */
    FAULT_OPEN,   /* of a file to be written */
    FAULT_WRITE,
    FAULT_SYNC,
    FAULT_RENAME,
    FAULT_CLOSE
} FaultCall;

typedef struct FaultReport {
    FaultCall call;
    int at;           /* the call that fails, from 1; 0: none */
    int from_then_on; /* and all after it */
    int error;        /* errno; 0: half of a write is done */
    int in_libraries; /* calls of libyaml, libzip, ..., not of the program */
    int count;        /* calls so far */
    int failed;       /* of them */
} FaultReport;

#endif
