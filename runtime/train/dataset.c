/* dataset.c: data sets by name, and those that are folders of classes. */
#include "runtime/train/dataset.h"

#include <dirent.h>
#include <errno.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>
#include <unistd.h>

/* ---- what the layouts share -------------------------------------------------------------------- */

const char *rt_dataset_path(RaftDataset *dataset, const char *format, ...)
{
    char name[1024], *path;
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(name, sizeof name, format, arguments);
    va_end(arguments);
    size_t size = strlen(dataset->root) + strlen(name) + 2;
    path = rt_alloc(&dataset->arena, size, 1);
    if (path) snprintf(path, size, "%s/%s", dataset->root, name);
    return path;
}

RaftStatus rt_dataset_enter(RaftDataset *dataset, const char *folder, RaftError *error)
{
    const char *inner = rt_dataset_path(dataset, "%s", folder);
    struct stat status;
    if (!inner) return rt_no_memory(error, dataset->root);
    if (!stat(inner, &status) && S_ISDIR(status.st_mode)) dataset->root = inner;
    return RAFT_OK;
}

RaftStatus rt_dataset_add(RaftDataset *dataset, const char *path, uint32_t label, RaftError *error)
{
    if (dataset->count == dataset->capacity) {
        int64_t capacity = dataset->capacity ? 2 * dataset->capacity : 1024;
        uint32_t *labels = realloc(dataset->labels, (size_t)capacity * sizeof *labels);
        if (!labels) return rt_no_memory(error, dataset->root);
        dataset->labels = labels;
        if (path) {
            const char **paths = realloc(dataset->paths, (size_t)capacity * sizeof *paths);
            if (!paths) return rt_no_memory(error, dataset->root);
            dataset->paths = paths;
        }
        dataset->capacity = capacity;
    }
    if (dataset->count == INT32_MAX)
        return rt_fail(error, RAFT_BAD_FILE, "%s: over 2147483647 items", dataset->root);
    if (path) dataset->paths[dataset->count] = path;
    dataset->labels[dataset->count++] = label;
    return RAFT_OK;
}

RaftStatus rt_dataset_label(const RaftDataset *dataset, const char *where, int64_t index,
                            double value, int first, uint32_t *label, RaftError *error)
{
    double last = (double)first + dataset->classes - 1;
    if (!(value >= first && value <= last) || value != (double)(int64_t)value)
        return rt_fail(error, RAFT_BAD_FILE,
                       "%s: label %lld is %.17g; the model's %d classes make it a whole number "
                       "from %d to %.0f (num_classes in the settings)",
                       where, (long long)index, value, dataset->classes, first, last);
    *label = (uint32_t)((int64_t)value - first);
    return RAFT_OK;
}

RaftStatus rt_dataset_check_files(const RaftDataset *dataset, RaftError *error)
{
    int64_t missing = 0, first = 0;
    for (int64_t i = 0; i < dataset->count; i++)
        if (access(dataset->paths[i], R_OK) && !missing++) first = i;
    if (!missing) return RAFT_OK;
    return rt_fail(error, RAFT_IO, "%s: is missing or cannot be read (%lld of %lld files are so)",
                   dataset->paths[first], (long long)missing, (long long)dataset->count);
}

/* ---- folders of classes ------------------------------------------------------------------------ */

typedef struct Names {
    const char **name;
    int64_t count, capacity;
} Names;

static int compare_names(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

static bool add_name(RaftDataset *dataset, Names *names, const char *added)
{
    if (names->count == names->capacity) {
        int64_t capacity = names->capacity ? 2 * names->capacity : 64;
        const char **name = realloc(names->name, (size_t)capacity * sizeof *name);
        if (!name) return false;
        names->name = name;
        names->capacity = capacity;
    }
    names->name[names->count] = rt_strdup(&dataset->arena, added, strlen(added));
    return names->name[names->count++];
}

/* The names in a folder in the order of their bytes, but for hidden ones. */
static RaftStatus list_folder(RaftDataset *dataset, const char *path, Names *names,
                              RaftError *error)
{
    *names = (Names){0};
    DIR *folder = opendir(path);
    if (!folder) return rt_fail(error, RAFT_IO, "%s: %s", path, strerror(errno));
    bool good = true;
    for (struct dirent *entry; good && (entry = readdir(folder));)
        if (entry->d_name[0] != '.') good = add_name(dataset, names, entry->d_name);
    closedir(folder);
    if (names->count) qsort(names->name, (size_t)names->count, sizeof *names->name, compare_names);
    return good ? RAFT_OK : rt_no_memory(error, path);
}

static bool is_folder(const char *path)
{
    struct stat status;
    return !stat(path, &status) && S_ISDIR(status.st_mode);
}

static bool is_picture(const char *name)
{
    const char *dot = strrchr(name, '.');
    return dot &&
           (!strcasecmp(dot, ".jpg") || !strcasecmp(dot, ".jpeg") || !strcasecmp(dot, ".png"));
}

enum { MAX_DEPTH = 16 }; /* of folders in a class: a link may lead round */

static RaftStatus add_pictures(RaftDataset *dataset, const char *folder, uint32_t label, int depth,
                               RaftError *error)
{
    Names names;
    RaftStatus status = list_folder(dataset, folder, &names, error);
    for (int64_t i = 0; !status && i < names.count; i++) {
        size_t size = strlen(folder) + strlen(names.name[i]) + 2;
        char *path = rt_alloc(&dataset->arena, size, 1);
        if (!path) {
            status = rt_no_memory(error, folder);
            break;
        }
        snprintf(path, size, "%s/%s", folder, names.name[i]);
        if (is_picture(names.name[i]))
            status = rt_dataset_add(dataset, path, label, error);
        else if (depth < MAX_DEPTH && is_folder(path))
            status = add_pictures(dataset, path, label, depth + 1, error);
    }
    free(names.name);
    return status;
}

/* The classes are the folders in train/, in the order of their names. */
static RaftStatus list_classes(RaftDataset *dataset, Names *classes, RaftError *error)
{
    const char *train = rt_dataset_path(dataset, "train");
    *classes = (Names){0};
    if (!train) return rt_no_memory(error, dataset->root);
    if (!is_folder(train))
        return rt_fail(error, RAFT_IO,
                       "%s: is not there; expected are a folder 'train' with a folder of pictures "
                       "for every class, and a folder 'val' alike",
                       train);
    RaftStatus status = list_folder(dataset, train, classes, error);
    int64_t kept = 0;
    for (int64_t i = 0; !status && i < classes->count; i++) {
        const char *path = rt_dataset_path(dataset, "train/%s", classes->name[i]);
        if (path && is_folder(path)) classes->name[kept++] = classes->name[i];
    }
    classes->count = kept;
    if (!status && kept != dataset->classes)
        status = rt_fail(error, RAFT_BAD_FILE,
                         "%s: holds %lld folders, one a class; the model has %d classes "
                         "(num_classes in the settings)",
                         train, (long long)kept, dataset->classes);
    return status;
}

static RaftStatus add_class(RaftDataset *dataset, const char *part, const char *name,
                            const Names *classes, RaftError *error)
{
    const char *path = rt_dataset_path(dataset, "%s/%s", part, name);
    if (!path) return rt_no_memory(error, dataset->root);
    if (!is_folder(path)) return RAFT_OK;
    const char **found =
        bsearch(&name, classes->name, (size_t)classes->count, sizeof *classes->name, compare_names);
    if (!found)
        return rt_fail(error, RAFT_BAD_FILE, "%s: there is no class '%s' in %s/train", path, name,
                       dataset->root);
    int64_t before = dataset->count;
    RaftStatus status = add_pictures(dataset, path, (uint32_t)(found - classes->name), 0, error);
    if (!status && dataset->count == before)
        status = rt_fail(error, RAFT_BAD_FILE, "%s: holds no .jpg, .jpeg or .png file", path);
    return status;
}

static RaftStatus open_folders(RaftDataset *dataset, bool training, RaftError *error)
{
    Names classes, names = {0};
    const char *part = training ? "train" : "val";
    RaftStatus status = list_classes(dataset, &classes, error);
    if (!status) status = list_folder(dataset, rt_dataset_path(dataset, "%s", part), &names, error);
    for (int64_t i = 0; !status && i < names.count; i++)
        status = add_class(dataset, part, names.name[i], &classes, error);
    free(classes.name);
    free(names.name);
    return status;
}

/* ---- all --------------------------------------------------------------------------------------- */

/* clang-format off */
static const struct {
    const char *name;
    RtOpenDataset *open;
} layouts[] = {
    {"imagenet",      open_folders},
    {"folder",        open_folders},
    {"cifar10",       rt_open_cifar10},
    {"cifar100",      rt_open_cifar100},
    {"fashion_mnist", rt_open_idx},
    {"flowers102",    rt_open_flowers},
    {"cars",          rt_open_cars},
    {"inat18",        rt_open_inat18},
    {"inat19",        rt_open_inat19},
};
/* clang-format on */

static RaftStatus fill_in(RaftDataset *dataset, const char *name, bool training, RaftError *error)
{
    if (!is_folder(dataset->root))
        return rt_fail(error, RAFT_IO, "%s: is not a folder (data_path in the settings)",
                       dataset->root);
    for (size_t i = 0; i < sizeof layouts / sizeof layouts[0]; i++) {
        if (strcmp(layouts[i].name, name)) continue;
        RaftStatus status = layouts[i].open(dataset, training, error);
        if (!status && dataset->count == 0)
            status = rt_fail(error, RAFT_BAD_FILE, "%s: holds nothing to %s", dataset->root,
                             training ? "train on" : "validate with");
        return status;
    }
    return rt_fail(error, RAFT_INVALID, "no data set is called '%s'", name);
}

RaftStatus raft_dataset_open(const char *name, const char *path, bool training, int classes,
                             RaftDataset **dataset, RaftError *error)
{
    RaftDataset *opened = calloc(1, sizeof *opened);
    *dataset = NULL;
    if (!opened) return rt_no_memory(error, path);
    opened->classes = classes;
    opened->root = rt_strdup(&opened->arena, path, strlen(path));
    RaftStatus status =
        opened->root ? fill_in(opened, name, training, error) : rt_no_memory(error, path);
    if (status)
        raft_dataset_close(opened);
    else
        *dataset = opened;
    return status;
}

void raft_dataset_close(RaftDataset *dataset)
{
    if (!dataset) return;
    rt_arena_free(&dataset->arena);
    free(dataset->labels);
    free(dataset->paths);
    free(dataset->pixels);
    free(dataset);
}

int64_t raft_dataset_count(const RaftDataset *dataset)
{
    return dataset->count;
}

uint32_t raft_dataset_label(const RaftDataset *dataset, int64_t index)
{
    return dataset->labels[index];
}

const char *raft_dataset_where(const RaftDataset *dataset, int64_t index, char buffer[static 512])
{
    if (dataset->paths) return dataset->paths[index];
    snprintf(buffer, 512, "item %lld of %s", (long long)index, dataset->root);
    return buffer;
}

static RaftStatus copy_pixels(const RaftDataset *dataset, int64_t index, RaftImage *image,
                              RaftError *error)
{
    const uint8_t *planes = dataset->pixels + (size_t)index * dataset->stride;
    size_t count = (size_t)dataset->height * (size_t)dataset->width;
    image->rgb = malloc(count * 3);
    if (!image->rgb) return rt_no_memory(error, dataset->root);
    image->width = dataset->width;
    image->height = dataset->height;
    for (size_t i = 0; i < count; i++)
        for (size_t c = 0; c < 3; c++)
            image->rgb[3 * i + c] = planes[(dataset->channels == 3 ? c * count : 0) + i];
    return RAFT_OK;
}

RaftStatus raft_dataset_read(const RaftDataset *dataset, int64_t index, const RtView *view,
                             RaftImage *image, bool *truncated, RaftError *error)
{
    RtFile file;
    *image = (RaftImage){0};
    *truncated = false;
    if (!dataset->paths) return copy_pixels(dataset, index, image, error);
    const char *path = dataset->paths[index];
    RaftStatus status = rt_file_map(path, &file, error);
    if (status) return status;
    status = rt_image_decode_part(path, file.data, file.size, view, image, truncated, error);
    rt_file_unmap(&file);
    return status;
}
