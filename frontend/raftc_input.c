/* raftc_input.c: the images that a run is given: pictures, folders of them, tensors, or made up. */
#include "frontend/raftc.h"
#include "runtime/rt.h"

#include <dirent.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>

typedef struct Lister {
    Session *session;
    const Compilation *compilation;
    const Type *type; /* [b, c, y, x] */
    Items *items;
} Lister;

static void add(Lister *lister, const char *name, const char *path, const float *data)
{
    Items *items = lister->items;
    Item *item = ARENA_PUSH(lister->session->arena, items->item, items->count, items->capacity);
    *item = (Item){name, path, data};
}

static int64_t image_elements(const Type *type)
{
    return type_elements(type, NULL);
}

/* Each of `count` images in a row is an item: "NAME[0]", "NAME[1]", ... */
static void add_images(Lister *lister, const char *name, const float *data, int64_t count)
{
    for (int64_t i = 0; i < count; i++)
        add(lister, arena_printf(lister->session->arena, "%s[%lld]", name, (long long)i), NULL,
            data + i * image_elements(lister->type));
}

static Exit list_fill(Lister *lister)
{
    const Options *options = lister->session->options;
    int64_t batch = options->batch ? options->batch : 1, elements;
    if (__builtin_mul_overflow(batch, image_elements(lister->type), &elements))
        return session_fail(lister->session, EXIT_UNDONE, "--batch %lld is too large",
                            (long long)batch);
    float *data = arena_array(lister->session->arena, (size_t)elements, sizeof *data);
    raft_fill_input(elements, data);
    add_images(lister, "@fill", data, batch);
    return EXIT_DONE;
}

/* ---- tensors --------------------------------------------------------------------------------- */

static Exit misshapen(Lister *lister, const char *path, const RaftTensor *tensor)
{
    const Axis *axis = lister->type->axis;
    Text text = text_new(lister->session->arena);
    for (int i = 0; i < tensor->rank; i++)
        text_printf(&text, "%s%lld", i ? ", " : "", (long long)tensor->shape[i]);
    session_fail(lister->session, EXIT_FILES,
                 "%s: `input` is [%s]; the model takes [b, %lld, %lld, %lld]", path, text.data,
                 (long long)axis[1].extent, (long long)axis[2].extent, (long long)axis[3].extent);
    bool other_size = tensor->rank == 4 && tensor->shape[1] == axis[1].extent;
    if (other_size && lister->compilation->settings)
        diag_note(lister->session->diag, (Loc){0}, "for images of that size: --image %lldx%lld",
                  (long long)tensor->shape[2], (long long)tensor->shape[3]);
    return EXIT_FILES;
}

static Exit read_images(Lister *lister, const char *path, const RaftWeights *file)
{
    Session *session = lister->session;
    const RaftTensor *tensor = raft_weights_find(file, "input");
    if (!tensor)
        return session_fail(session, EXIT_FILES, "%s: has no tensor `input` [b, c, h, w]", path);
    bool fits = tensor->rank == 4;
    for (int i = 1; fits && i < 4; i++) fits = tensor->shape[i] == lister->type->axis[i].extent;
    if (!fits) return misshapen(lister, path, tensor);
    RaftError error;
    float *data = arena_array(session->arena, (size_t)tensor->elements, sizeof *data);
    RaftStatus status = raft_tensor_read_f32(tensor, data, &error);
    if (status != RAFT_OK) return session_fail(session, EXIT_FILES, "%s: %s", path, error.message);
    add_images(lister, path, data, tensor->shape[0]);
    return EXIT_DONE;
}

static Exit list_tensor(Lister *lister, const char *path)
{
    RaftError error;
    RaftWeights *file;
    RaftStatus status = raft_weights_open(path, &file, &error);
    if (status != RAFT_OK) return session_fail_file(lister->session, status, &error);
    Exit exit = read_images(lister, path, file);
    raft_weights_close(file);
    return exit;
}

/* ---- pictures -------------------------------------------------------------------------------- */

static bool is_picture(const char *name)
{
    static const char *const extensions[] = {".jpg", ".jpeg", ".png"};
    const char *dot = strrchr(name, '.');
    for (size_t i = 0; dot && i < ARRAY_SIZE(extensions); i++)
        if (strcasecmp(dot, extensions[i]) == 0) return true;
    return false;
}

static int by_name(const void *left, const void *right)
{
    return strcmp(*(const char *const *)left, *(const char *const *)right);
}

static Exit list_folder(Lister *lister, const char *path)
{
    Arena *arena = lister->session->arena;
    DIR *folder = opendir(path);
    if (!folder)
        return session_fail(lister->session, EXIT_FILES, "%s: cannot be opened: %s", path,
                            strerror(errno));
    Strings names = {0};
    const char *joint = has_extension(path, "/") ? "" : "/";
    for (const struct dirent *entry; (entry = readdir(folder));)
        if (is_picture(entry->d_name))
            *ARENA_PUSH(arena, names.item, names.count, names.capacity) =
                arena_printf(arena, "%s%s%s", path, joint, entry->d_name);
    closedir(folder);
    if (names.count == 0)
        return session_fail(lister->session, EXIT_FILES,
                            "%s: the folder holds no pictures (.jpg, .jpeg, .png)", path);
    qsort(names.item, names.count, sizeof *names.item, by_name);
    for (uint32_t i = 0; i < names.count; i++) add(lister, names.item[i], names.item[i], NULL);
    return EXIT_DONE;
}

/* Pictures need to know how the model was trained to see them. */
static Exit check_pictures(Lister *lister)
{
    int64_t channels = lister->type->axis[1].extent;
    if (!lister->compilation->settings)
        return session_fail(lister->session, EXIT_USAGE,
                            "a graph does not say how pictures are normalised; use the settings of "
                            "the model, or give `input` in a .safetensors");
    if (channels != 3 && channels != 1)
        return session_fail(lister->session, EXIT_USAGE,
                            "pictures have 3 channels, or 1 in grey, images of this model %lld; "
                            "give `input` in a .safetensors",
                            (long long)channels);
    return EXIT_DONE;
}

static Exit list_one(Lister *lister, const char *input)
{
    struct stat status;
    if (strcmp(input, "@fill") == 0) return list_fill(lister);
    if (has_extension(input, ".safetensors")) return list_tensor(lister, input);
    Exit exit = check_pictures(lister);
    if (exit != EXIT_DONE) return exit;
    if (stat(input, &status) == 0 && S_ISDIR(status.st_mode)) return list_folder(lister, input);
    add(lister, input, input, NULL);
    return EXIT_DONE;
}

Exit items_list(Session *session, const Compilation *compilation, const Node *input, Items *items)
{
    *items = (Items){0};
    Lister lister = {session, compilation, &input->type, items};
    for (uint32_t i = 0; i < session->options->inputs.count; i++) {
        Exit exit = list_one(&lister, session->options->inputs.item[i]);
        if (exit != EXIT_DONE) return exit;
    }
    if (items->count > 0) return EXIT_DONE;
    return session_fail(session, EXIT_FILES, "there are no images in what is given");
}

Exit item_load(Session *session, const Compilation *compilation, const Item *item,
               const Node *input, float *data)
{
    const Axis *axis = input->type.axis;
    if (!item->path) {
        memcpy(data, item->data, (size_t)image_elements(&input->type) * sizeof *data);
        return EXIT_DONE;
    }
    const Settings *settings = compilation->settings;
    bool exact = strcmp(settings->dataset_name, "imagenet") != 0;
    RaftError error;
    RaftImage image;
    RaftStatus status = raft_image_read(item->path, &image, &error);
    if (status == RAFT_OK) {
        if (image.warnings)
            session_note(session, "%s: the decoder gave %d %s; parts of the picture may be wrong",
                         item->path, image.warnings, image.warnings == 1 ? "warning" : "warnings");
        status = rt_image_preprocess(&image, (int)axis[1].extent, (int)axis[2].extent,
                                     (int)axis[3].extent, exact, settings->mean, settings->std,
                                     data, &error);
        raft_image_free(&image);
    }
    return status == RAFT_OK ? EXIT_DONE : session_fail_file(session, status, &error);
}
