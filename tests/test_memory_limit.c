/* test_memory_limit.c: --memory-limit: what is computed again changes no bit of the weights after twenty
 * steps, for any number of threads, and less memory is taken the tighter the limit. Without fuse_gradients, whose kernels compute
 * the same again unasked: then nothing would be left to be asked for.
 */
#define _GNU_SOURCE
#include "tests/cli_place.h"

enum { MOST_THREADS = 4 };

/* Trains within the limit; the bytes that are kept. */
static long train(Place *place, const char *limit, int threads, const char *file)
{
    run_well(place, arena_printf(&place->arena,
                                 "raftc train cli/tiny.yaml --weights @fill --data @fill --batch 4 "
                                 "--steps 20 --set lr=0.002 --target %s --threads %d "
                                 "--disable-pass fuse_gradients "
                                 "--memory-limit %s --save %s",
                                 place->has_llvm ? "cpu" : "reference", threads, limit, file));
    Text digits = text_new(&place->arena);
    const char *told = strstr(read_text(&place->arena, place->errors), "computed again: ");
    assert_non_null(told);
    for (const char *c = strchr(told, ':') + 2; *c != ' '; c++)
        if (*c != ',') text_printf(&digits, "%c", *c);
    return strtol(digits.data, NULL, 10);
}

/* The least that the limit of one byte is refused with. */
static const char *least_limit(Place *place)
{
    const char *command = "raftc train cli/tiny.yaml --weights @fill --data @fill --batch 4 "
                          "--steps 1 --target %s --disable-pass fuse_gradients "
                          "--memory-limit 1";
    const char *target = place->has_llvm ? "cpu" : "reference";
    assert_int_equal(run(place, arena_printf(&place->arena, command, target)), 1);
    Text digits = text_new(&place->arena);
    const char *told = strstr(read_text(&place->arena, place->errors), "at least ");
    assert_non_null(told);
    for (const char *c = told + strlen("at least "); *c != ' '; c++)
        if (*c != ',') text_printf(&digits, "%c", *c);
    return digits.data;
}

static void same_bits(void **state)
{
    Place *place = *state;
    const char *least = least_limit(place);
    long all = train(place, "1G", 1, "all.safetensors");
    size_t size;
    const char *wanted = read_all(&place->arena, in_folder(place, "all.safetensors"), &size);
    for (int threads = 1; threads <= MOST_THREADS; threads++) {
        size_t size_again;
        assert_int_equal(train(place, least, threads, "least.safetensors"),
                         strtol(least, NULL, 10));
        const char *again =
            read_all(&place->arena, in_folder(place, "least.safetensors"), &size_again);
        assert_int_equal(size_again, size);
        assert_memory_equal(again, wanted, size);
    }
    assert_true(strtol(least, NULL, 10) < all);
}

/* Between the two, no more is kept than the limit says. */
static void keeps_what_it_can(void **state)
{
    Place *place = *state;
    long least = strtol(least_limit(place), NULL, 10);
    long all = train(place, "1G", 1, "all.safetensors"), middle = (least + all) / 2;
    const char *limit = arena_printf(&place->arena, "%ld", middle);
    long kept = train(place, limit, 2, "middle.safetensors");
    assert_true(kept >= least && kept <= middle);
}

static int set_up(void **state)
{
    *state = calloc(1, sizeof(Place));
    open_place(*state);
    return 0;
}

static int tear_down(void **state)
{
    close_place(*state);
    free(*state);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(same_bits),
                                       cmocka_unit_test(keeps_what_it_can)};
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
