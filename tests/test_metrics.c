/* test_metrics.c: the schedule, CRC-32C, and what a run writes for people and for TensorBoard.
 *
 * read_events.py reads event files with TensorBoard's own package, which this program writes when it
 * is given a folder; here they are read by what the format says. */
#include <dirent.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "runtime/train/private.h"

static char folder[] = "/tmp/test_metrics.XXXXXX"; /* made and removed by main */

static void test_schedule(void **state)
{
    (void)state;
    const RaftSchedule schedule = {.lr = 2e-3, .end_lr = 1e-5, .warmup = 10, .iterations = 110};
    assert_true(raft_schedule_rate(&schedule, 0) == 0); /* so the first step changes nothing */
    assert_true(fabs(raft_schedule_rate(&schedule, 5) - 1e-3) < 1e-15);
    assert_true(fabs(raft_schedule_rate(&schedule, 9) - 1.8e-3) < 1e-15);
    assert_true(fabs(raft_schedule_rate(&schedule, 10) - 2e-3) < 1e-15);
    assert_true(fabs(raft_schedule_rate(&schedule, 60) - 1.005e-3) < 1e-15);
    assert_true(fabs(raft_schedule_rate(&schedule, 35) - (1e-5 + 1.99e-3 * (1 + sqrt(.5)) / 2)) <
                1e-15);
    assert_true(fabs(raft_schedule_rate(&schedule, 110) - 1e-5) < 1e-15);
    assert_true(fabs(raft_schedule_rate(&schedule, 500) - 1e-5) < 1e-15);
    const RaftSchedule warm = {.lr = 1, .end_lr = 0.5, .warmup = 4, .iterations = 4},
                       cold = {.lr = 1};
    assert_true(raft_schedule_rate(&warm, 3) == 0.75 && raft_schedule_rate(&warm, 4) == 0.5);
    assert_true(raft_schedule_rate(&cold, 0) == 0);
}

static void test_crc32c(void **state)
{
    (void)state;
    uint8_t bytes[48] = {0};
    assert_int_equal(rt_crc32c(0, "", 0), 0);
    assert_int_equal(rt_crc32c(0, "123456789", 9), 0xe3069283);
    assert_int_equal(rt_crc32c(0, bytes, 32), 0x8a9136aa); /* as RFC 3720 gives it */
    for (int i = 0; i < 48; i++) bytes[i] = (uint8_t)i;
    assert_int_equal(rt_crc32c(0, bytes, 32), 0x46dd794e);
    uint32_t whole = rt_crc32c(0, bytes, 48);
    for (size_t i = 0; i <= 48; i++)
        assert_int_equal(rt_crc32c(rt_crc32c(0, bytes, i), bytes + i, 48 - i), whole);
}

/* ---- metrics ----------------------------------------------------------------------------------- */

static char *read_text(const char *name)
{
    static char text[65536];
    char path[256];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE *file = fopen(path, "rb");
    assert_non_null(file);
    text[fread(text, 1, sizeof text - 1, file)] = 0;
    fclose(file);
    return text;
}

static void add(RaftMetrics *metrics, int64_t step, double loss, double rate)
{
    static const char *const tags[] = {"training/loss", "lr"};
    RaftError error = {"no message"};
    if (raft_metrics_add(metrics, step, 2, tags, (double[]){loss, rate}, &error))
        fail_msg("%s", error.message);
}

static RaftMetrics *open_metrics(int64_t first)
{
    RaftMetrics *metrics;
    RaftError error = {"no message"};
    if (raft_metrics_open(folder, first, &metrics, &error)) fail_msg("%s", error.message);
    return metrics;
}

static void test_lines(void **state)
{
    (void)state;
    static const char whole[] = "{\"step\":0,\"training/loss\":6.9,\"lr\":0}\n"
                                "{\"step\":15,\"training/loss\":6.5,\"lr\":0.002}\n"
                                "{\"step\":30,\"training/loss\":null,\"lr\":1e-05}\n";
    RaftMetrics *metrics = open_metrics(0);
    add(metrics, 0, 6.9, 0);
    add(metrics, 15, 6.5, 2e-3);
    add(metrics, 30, NAN, 1e-5);
    assert_string_equal(read_text("metrics.jsonl"), whole); /* before it is closed */
    raft_metrics_close(metrics);

    /* The run was killed as it wrote a line, and goes on from step 15. */
    char path[256];
    snprintf(path, sizeof path, "%s/metrics.jsonl", folder);
    FILE *file = fopen(path, "a");
    fputs("{\"step\":3", file);
    fclose(file);
    metrics = open_metrics(15);
    add(metrics, 15, 6.5, 2e-3);
    add(metrics, 30, INFINITY, 1e-5);
    raft_metrics_close(metrics);
    assert_string_equal(read_text("metrics.jsonl"), whole);
}

static void test_cannot_write(void **state)
{
    (void)state;
    RaftMetrics *metrics;
    RaftError error = {"no message"};
    assert_int_equal(raft_metrics_open("/tmp/none/such", 0, &metrics, &error), RAFT_IO);
    assert_null(metrics);
    assert_non_null(strstr(error.message, "/tmp/none/such/metrics.jsonl: cannot be written: No"));
}

/* ---- events ------------------------------------------------------------------------------------ */

static uint32_t masked(const void *data, size_t size)
{
    uint32_t crc = rt_crc32c(0, data, size);
    return (crc >> 15 | crc << 17) + 0xa282ead8u;
}

/* Checks the frames of an event file; returns the number of records and the last one's bytes. */
static int read_records(const char *name, uint8_t *last, uint64_t *last_size)
{
    char path[512];
    int records = 0;
    uint32_t sum;
    snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE *file = fopen(path, "rb");
    assert_non_null(file);
    while (fread(last_size, 1, 8, file) == 8) {
        assert_int_equal(fread(&sum, 1, 4, file), 4);
        assert_int_equal(sum, masked(last_size, 8));
        assert_in_range(*last_size, 1, 1000);
        assert_int_equal(fread(last, 1, *last_size, file), *last_size);
        assert_int_equal(fread(&sum, 1, 4, file), 4);
        assert_int_equal(sum, masked(last, *last_size));
        records++;
    }
    assert_true(feof(file));
    fclose(file);
    return records;
}

static void test_events(void **state)
{
    (void)state;
    struct dirent **names;
    uint8_t bytes[1000];
    uint64_t size;
    RaftMetrics *metrics = open_metrics(0);
    add(metrics, 300, 0.5, 0.25);
    raft_metrics_close(metrics);
    metrics = open_metrics(300);
    raft_metrics_close(metrics);
    int count = scandir(folder, &names, NULL, alphasort), files = 0;
    for (int i = 0; i < count; i++)
        if (strstr(names[i]->d_name, "tfevents")) files++;
    assert_int_equal(files, 4); /* two are of the test before */
    for (int i = 0, n = 0; i < count; i++) {
        if (!strstr(names[i]->d_name, "tfevents") || ++n < 3) continue;
        int records = read_records(names[i]->d_name, bytes, &size);
        assert_int_equal(records, 2);
        assert_int_equal(bytes[0], 1 << 3 | 1); /* wall_time */
        /* step 300; in the first file a summary of two values, in the second a start */
        static const uint8_t values[] = "\x10\xac\x02\x2a\x21\x0a\x14\x0a\x0dtraining/loss\x15\0\0"
                                        "\0\x3f\x0a\x09\x0a\x02lr\x15\0\0\x80\x3e";
        static const uint8_t start[] = "\x10\xac\x02\x3a\x02\x08\x01";
        assert_int_equal(size, 9 + (n == 3 ? sizeof values : sizeof start) - 1);
        assert_memory_equal(bytes + 9, n == 3 ? values : start, size - 9);
    }
    for (int i = 0; i < count; i++) free(names[i]);
    free(names);
}

/* ---- the page ---------------------------------------------------------------------------------- */

static int occurrences(const char *text, const char *part)
{
    int count = 0;
    for (; (text = strstr(text, part)); text++) count++;
    return count;
}

static void test_page(void **state)
{
    (void)state;
    static const char *const tags[] = {"validation/loss", "validation/accuracy"};
    RaftError error = {"no message"};
    RaftMetrics *metrics = open_metrics(0);
    for (int i = 0; i < 2000; i++) add(metrics, i, 7 - i / 500.0, 1e-3);
    for (int i = 0; i < 4; i++)
        raft_metrics_add(metrics, 500 * i, 2, tags, (double[]){5 - i, .25 * i}, &error);
    raft_metrics_close(metrics);
    if (raft_metrics_page(folder, "a <run> & more", &error)) fail_msg("%s", error.message);
    const char *page = read_text("metrics.html");
    assert_non_null(strstr(page, "<h1>a &#60;run> &#38; more</h1>"));
    assert_int_equal(occurrences(page, "<h2>"), 3); /* loss, lr, accuracy */
    assert_int_equal(occurrences(page, "<polyline"), 4);
    assert_int_equal(occurrences(page, "://"), 0); /* nothing from elsewhere */
    assert_non_null(strstr(page, "training/loss: last 3.002, least 3.002, most 7<br>"));
    assert_non_null(strstr(page, "validation/accuracy: last 0.75, least 0, most 0.75<br>"));
    /* The validation's first point stands at the left, at 5 between 2 and 7. */
    assert_non_null(strstr(page, "points=\"60.0,100.4 "));
    assert_true(strlen(page) < 40000); /* 2000 points are drawn as at most 600 */
}

static void remove_files(void)
{
    struct dirent **names;
    char path[512];
    int count = scandir(folder, &names, NULL, NULL);
    for (int i = 0; i < count; i++) {
        snprintf(path, sizeof path, "%s/%s", folder, names[i]->d_name);
        unlink(path);
        free(names[i]);
    }
    free(names);
    rmdir(folder);
}

/* A run that got to step 30, then was taken up again at step 20. */
static int write_run(const char *where)
{
    static const char *const tags[] = {"training/loss", "lr"};
    RaftMetrics *metrics;
    int failed = 0;
    for (int part = 0; part < 2; part++) {
        if (raft_metrics_open(where, 20 * part, &metrics, NULL)) return 1;
        for (int i = 2 * part; i < 4; i++)
            failed += raft_metrics_add(metrics, 10 * i, 2, tags,
                                       (double[]){(part ? 4 : 7) - i * .5, i * .125}, NULL) != 0;
        raft_metrics_close(metrics);
    }
    return failed;
}

int main(int argc, char **argv)
{
    if (argc == 2) return write_run(argv[1]);
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_schedule), cmocka_unit_test(test_crc32c),
        cmocka_unit_test(test_lines),    cmocka_unit_test(test_cannot_write),
        cmocka_unit_test(test_events),   cmocka_unit_test(test_page),
    };
    if (!mkdtemp(folder)) return 1;
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    remove_files();
    return failed;
}
