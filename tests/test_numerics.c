/* test_numerics.c: --check-numerics names where a NaN or an infinity comes from, planted in weights, in
 * an image, in the middle of a model and in a step of training; by plain loops and by machine code.
 */
#define _GNU_SOURCE
#include "tests/cli_place.h"

#include "runtime/raft.h"

#include <math.h>

typedef struct Fixture {
    Place place;
} Fixture;

static int set_up(void **state)
{
    *state = calloc(1, sizeof(Fixture));
    open_place(&((Fixture *)*state)->place);
    return 0;
}

static int tear_down(void **state)
{
    close_place(&((Fixture *)*state)->place);
    free(*state);
    return 0;
}

static void write_file(Fixture *f, const char *name, const RaftTensor *tensors, int count)
{
    RaftError error;
    RaftStatus status =
        raft_weights_write(in_folder(&f->place, name), tensors, count, NULL, &error);
    if (status != RAFT_OK) fail_msg("%s", error.message);
}

/* The weights of cli/block.ir, one of them `value`. */
static void write_weights(Fixture *f, float value)
{
    float scale[] = {1, 1, 1, 1}, shift[4] = {0}, fc[20] = {0};
    fc[2 * 4 + 1] = value;
    const RaftTensor tensors[] = {
        {.name = "fc.weight", .dtype = RAFT_F32, .rank = 2, .shape = {5, 4}, .data = fc},
        {.name = "norm.bias", .dtype = RAFT_F32, .rank = 1, .shape = {4}, .data = shift},
        {.name = "norm.weight", .dtype = RAFT_F32, .rank = 1, .shape = {4}, .data = scale}};
    write_file(f, "weights.safetensors", tensors, 3);
}

/* Two images for it, of the second one a number `value`. */
static void write_images(Fixture *f, float value)
{
    float images[2 * 4 * 2 * 3];
    for (int i = 0; i < 2 * 4 * 2 * 3; i++) images[i] = (float)i;
    images[24 + 3 * 6 + 1 * 3 + 2] = value;
    const RaftTensor tensor = {
        .name = "input", .dtype = RAFT_F32, .rank = 4, .shape = {2, 4, 2, 3}, .data = images};
    write_file(f, "images.safetensors", &tensor, 1);
}

/* Each target stops with the message. */
static void check(Fixture *f, const char *command, const char *message)
{
    static const char *const targets[] = {"reference", "cpu"};
    for (int i = 0; i < 1 + f->place.has_llvm; i++) {
        const char *whole = arena_printf(&f->place.arena, "%s --check-numerics --target %s -q",
                                         command, targets[i]);
        assert_int_equal(run(&f->place, whole), 4);
        const char *told = read_text(&f->place.arena, f->place.errors);
        if (!strstr(told, message)) fail_msg("%s: no '%s' in:\n%s", whole, message, told);
    }
}

static void names_the_parameter(void **state)
{
    Fixture *f = *state;
    write_images(f, 1);
    write_weights(f, NAN);
    check(f, "raftc run cli/block.ir --weights weights.safetensors images.safetensors",
          "cli/block.ir:5:3: error: parameter 'fc.weight' holds NaN, first at [class 2, c 1] of "
          "f32[class 5, c 4]");
}

static void names_the_input(void **state)
{
    Fixture *f = *state;
    write_images(f, -INFINITY);
    check(
        f, "raftc run cli/block.ir --weights @fill images.safetensors --batch 2",
        "cli/block.ir:2:3: error: input 'image' holds -infinity, first at [b 1, c 3, y 1, x 2] of "
        "f32[b, c 4, y 2, x 3]");
}

static void names_the_op(void **state)
{
    Fixture *f = *state;
    FILE *file = fopen(in_folder(&f->place, "overflow.ir"), "w");
    assert_non_null(file);
    fputs("graph overflow {\n"
          "  input @image : f32[b, c 4, y 2, x 3]\n"
          "  param @fc.weight stored [5, 4] : f32[class 5, c 4]\n"
          "  %0 = scale @image by 1e+37 : f32[b, c 4, y 2, x 3]\n"
          "  %1 = mul %0, %0 : f32[b, c 4, y 2, x 3]\n"
          "  %2 = mean %1 over (y, x) : f32[b, c 4]\n"
          "  %3 = linear %2, @fc.weight over (c) : f32[b, class 5]\n"
          "  output forward.logits = %3\n"
          "}\n",
          file);
    fclose(file);
    write_images(f, 1);
    check(f, "raftc run overflow.ir --weights @fill images.safetensors --threads 2",
          "overflow.ir:5:8: error: mul gives infinity of finite numbers, first at [b 0, c 0, y 0, "
          "x 1] of f32[b, c 4, y 2, x 3], in kernel scale_mul");
}

static void names_the_step(void **state)
{
    Fixture *f = *state;
    check(f,
          "raftc train cli/tiny.yaml --weights @fill --data @fill --batch 2 --steps 20 --set "
          "optimizer=sgd --set lr=1000",
          "cli/tiny.yaml:2:1: error: step 8: linear gives NaN of finite numbers, first at [b 0, "
          "class 0] of f32[b, class 10], in kernel linear");
}

/* Where all is finite nothing is told, and the answer is the same. */
static void finds_nothing(void **state)
{
    Fixture *f = *state;
    const char *command = "raftc run cli/tiny.yaml --weights @fill @fill --top 3 -q --target %s%s";
    const char *target = f->place.has_llvm ? "cpu" : "reference";
    Arena *arena = &f->place.arena;
    run_well(&f->place, arena_printf(arena, command, target, ""));
    const char *without = read_text(arena, f->place.output);
    run_well(&f->place, arena_printf(arena, command, target, " --check-numerics"));
    assert_string_equal(read_text(arena, f->place.output), without);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(names_the_parameter), cmocka_unit_test(names_the_input),
        cmocka_unit_test(names_the_op),        cmocka_unit_test(names_the_step),
        cmocka_unit_test(finds_nothing),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
