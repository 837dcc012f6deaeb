/* raftc_train_tell.c: what a run tells while it goes: metrics, and a line of progress. */
#include "frontend/raftc_train_run.h"
#include "runtime/peak.h"

#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

enum { LONGEST = 256 };

/* As `raftc bench --train` has it: a step is worth three forwards. The peak is the processor's. */
static void measure_peak(Run *run)
{
    const double a_moment = 0.05;
    const Compilation *model = &run->trainer.model.compilation;
    const Options *options = run->session->options;
    if (run->comm.rank > 0 || options->quiet || options->target == TARGET_CUDA) return;
    run->image_flops = 6 * (double)graph_multiply_adds(model->built, run->session->arena);
    run->peak =
        1e9 * run->comm.size *
        raft_peak_gflops(run->session->threads, model->target.vector_floats, RAFT_BURST, a_moment);
}

void run_begin_telling(Run *run)
{
    measure_peak(run);
    /* mpirun makes terminals up for its processes, wherever their output goes. */
    bool alone = !run->comm.state;
    run->redraws = alone && !run->session->options->quiet && isatty(STDOUT_FILENO);
    run->started = seconds_now();
}

/* "2 h 5 min", "12 min", "40 s" */
static void print_time(double seconds, char text[static 32])
{
    int64_t minutes = (int64_t)(seconds / 60 + 0.5);
    if (minutes >= 60)
        snprintf(text, 32, "%lld h %lld min", (long long)minutes / 60, (long long)minutes % 60);
    else if (minutes >= 2)
        snprintf(text, 32, "%lld min", (long long)minutes);
    else
        snprintf(text, 32, "%.0f s", seconds);
}

/* Within `width`, if that is possible by leaving out words. */
static void print_line(const Run *run, int width, char line[static LONGEST])
{
    double elapsed = seconds_now() - run->started, rate = (double)run->seen / elapsed;
    char left[32], share[40] = "", exchanged[40] = "";
    long long epoch = (run->step - 1) / run->batches + 1, epochs = run->epochs;
    long long step = run->step, steps = run->schedule.iterations;
    print_time((double)(run->count * (steps - step)) / rate, left);
    if (run->peak > 0)
        snprintf(share, sizeof share, "  %.1f %% of peak",
                 100 * rate * run->image_flops / run->peak);
    if (run->comm.size > 1)
        snprintf(exchanged, sizeof exchanged, "  exchanged %.0f %%",
                 100 * run->exchanged / elapsed);
    double waited = 100 * run->waited / elapsed;
    int length = snprintf(line, LONGEST,
                          "epoch %lld/%lld  step %lld/%lld  loss %.4f  lr %.3g  %.0f images/s%s  "
                          "waited %.0f %%%s  %s left",
                          epoch, epochs, step, steps, run->loss, run->lr, rate, share, waited,
                          exchanged, left);
    if (length > width)
        snprintf(line, LONGEST,
                 "%lld/%lld %lld/%lld loss %.4f lr %.3g %.0f/s%s waited %.0f %%%s %s", epoch,
                 epochs, step, steps, run->loss, run->lr, rate, share + (run->peak > 0), waited,
                 exchanged + (run->comm.size > 1), left);
}

/* ---- on a terminal ------------------------------------------------------------------------------ */

static const char clear_rest[] = "\033[K"; /* of the line, behind the cursor */

static void draw_line(Run *run)
{
    struct winsize size;
    char line[LONGEST];
    bool known = ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 1;
    int width =
        known ? size.ws_col - 1 : 79; /* in the last column the cursor would leave the line */
    print_line(run, width, line);
    printf("\r%.*s%s", width, line, clear_rest);
    fflush(stdout);
    run->line = true;
    run->drawn = seconds_now();
}

void run_clear_line(Run *run)
{
    if (run->line) printf("\r%s", clear_rest);
    run->line = false;
    run->drawn = 0; /* soon again */
}

void run_leave_line(Run *run)
{
    if (run->line && run->seen > 0) draw_line(run); /* as it is now */
    if (run->line) putchar('\n');
    run->line = false;
}

void run_tell_damage(Run *run, int64_t epoch, const char *of, int64_t truncated, int64_t unreadable)
{
    if (run->comm.rank > 0 || (truncated == 0 && unreadable == 0)) return;
    run_clear_line(run);
    session_note(run->session, "epoch %lld: %s%lld %s too early, %lld could not be read",
                 (long long)epoch + 1, of, (long long)truncated,
                 truncated == 1 ? "picture ends" : "pictures end", (long long)unreadable);
    session_flush(run->session);
}

/* ---- after a step ------------------------------------------------------------------------------- */

Exit run_tell(Run *run, int count, double lr)
{
    static const char *const tags[] = {"training/loss", "lr"};
    const double moment = 0.1;
    RaftError error;
    char line[LONGEST];
    bool due = run->step % run->log_every == 0;
    run->count = count;
    run->lr = lr;
    if (run->redraws && (due || seconds_now() - run->drawn > moment)) draw_line(run);
    if (!due) return EXIT_DONE;
    RaftStatus status =
        raft_metrics_add(run->metrics, run->step, 2, tags, (double[]){run->loss, lr}, &error);
    if (status) return run_fail_write(run, &error);
    if (!run->redraws && !run->session->options->quiet) {
        print_line(run, LONGEST, line);
        puts(line);
        fflush(stdout);
    }
    run->started = seconds_now();
    run->waited = run->exchanged = 0;
    run->seen = 0;
    return EXIT_DONE;
}
