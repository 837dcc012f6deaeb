/* schedule.c: the learning rate of an iteration. */
#include "runtime/train/train.h"

#include <math.h>

double raft_schedule_rate(const RaftSchedule *schedule, int64_t iteration)
{
    double rest = (double)(schedule->iterations - schedule->warmup);
    double after = (double)(iteration - schedule->warmup);
    if (iteration < schedule->warmup)
        return schedule->lr * (double)iteration / (double)schedule->warmup;
    if (after >= rest) return schedule->end_lr;
    return schedule->end_lr +
           (schedule->lr - schedule->end_lr) * (1 + cos(M_PI * after / rest)) / 2;
}
