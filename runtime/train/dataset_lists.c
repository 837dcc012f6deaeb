/* dataset_lists.c: data sets whose files are named by lists: MATLAB's, by libmatio, or JSON, by
 * jansson. Of both, only what is asked for is looked at, and its type and size are checked. libmatio
 * itself is not fit for hostile files: the lists must be those that the publishers of the data give. It
 * is opened when the first such list is: it and the 30 libraries that it needs take a process 10 ms to start with. */
#include "runtime/train/dataset.h"

#include <dlfcn.h>
#include <jansson.h>
#include <matio.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

/* ---- MATLAB files ------------------------------------------------------------------------------ */

static const char matio_name[] = "libmatio.so.11";

/* What is used of it. */
static struct Matio {
    __typeof__(Mat_Open) *open;
    __typeof__(Mat_Close) *close;
    __typeof__(Mat_VarReadInfo) *read_info;
    __typeof__(Mat_VarReadDataAll) *read_data;
    __typeof__(Mat_VarRead) *read;
    __typeof__(Mat_VarGetStructFieldByName) *field;
    __typeof__(Mat_VarFree) *free;
    char fault[200]; /* why it cannot be used; "": it can */
} matio;

static void open_matio(void)
{
    const struct {
        const char *name;
        void **place;
    } symbols[] = {
        {"Mat_Open", (void **)&matio.open},
        {"Mat_Close", (void **)&matio.close},
        {"Mat_VarReadInfo", (void **)&matio.read_info},
        {"Mat_VarReadDataAll", (void **)&matio.read_data},
        {"Mat_VarRead", (void **)&matio.read},
        {"Mat_VarGetStructFieldByName", (void **)&matio.field},
        {"Mat_VarFree", (void **)&matio.free},
    };
    void *library = dlopen(matio_name, RTLD_NOW | RTLD_LOCAL);
    for (size_t i = 0; library && i < sizeof symbols / sizeof symbols[0]; i++) {
        *symbols[i].place = dlsym(library, symbols[i].name);
        if (!*symbols[i].place) library = NULL; /* stays open: this is said once */
    }
    if (!library) snprintf(matio.fault, sizeof matio.fault, "%s", dlerror());
}

/* Opens a file of MATLAB 5, the kind that the data sets bring; never one of HDF5. */
static RaftStatus open_mat(const char *path, mat_t **mat, RaftError *error)
{
    static const char kind[] = "MATLAB 5.0 MAT-file";
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    RtFile file;
    *mat = NULL;
    if (!path) return rt_no_memory(error, "a data set");
    RaftStatus status = rt_file_map(path, &file, error);
    if (status) return status;
    bool known = file.size >= 128 && !memcmp(file.data, kind, sizeof kind - 1) &&
                 (file.data[124] == 1 || file.data[125] == 1);
    rt_file_unmap(&file);
    if (!known)
        return rt_bad_file(error, path, 0,
                           "not a file of MATLAB 5 (from MATLAB 7.3 files, save "
                           "with -v7)");
    pthread_once(&once, open_matio);
    if (matio.fault[0])
        return rt_fail(error, RAFT_UNSUPPORTED,
                       "%s: needs libmatio (Debian's libmatio11), which cannot be opened: %s", path,
                       matio.fault);
    *mat = matio.open(path, MAT_ACC_RDONLY);
    return *mat ? RAFT_OK : rt_bad_file(error, path, 128, "cannot be read");
}

static size_t elements_of(const matvar_t *variable)
{
    size_t elements = 1;
    for (int i = 0; i < variable->rank; i++)
        if (__builtin_mul_overflow(elements, variable->dims[i], &elements)) return 0;
    return elements;
}

enum { MOST_ELEMENTS = 1 << 24 }; /* of a list */

/* Reads a variable once its kind and its size are known to be sensible. */
static RaftStatus read_variable(mat_t *mat, const char *path, const char *name, matvar_t **variable,
                                RaftError *error)
{
    *variable = matio.read_info(mat, name);
    if (!*variable)
        return rt_fail(error, RAFT_BAD_FILE, "%s: there is no variable '%s'", path, name);
    if ((*variable)->rank != 2 || elements_of(*variable) > MOST_ELEMENTS)
        return rt_fail(error, RAFT_BAD_FILE, "%s: '%s' is not a list of at most %d elements", path,
                       name, MOST_ELEMENTS);
    if ((*variable)->class_type != MAT_C_STRUCT && matio.read_data(mat, *variable))
        return rt_fail(error, RAFT_BAD_FILE, "%s: '%s' cannot be read", path, name);
    if ((*variable)->class_type == MAT_C_STRUCT) {
        matio.free(*variable);
        *variable = matio.read(mat, name);
    }
    return *variable ? RAFT_OK
                     : rt_fail(error, RAFT_BAD_FILE, "%s: '%s' cannot be read", path, name);
}

/* Element `index` of an array of numbers; false where it has none. */
static bool number_at(const matvar_t *variable, size_t index, double *value)
{
    if (!variable || !variable->data || variable->isComplex || variable->data_size <= 0 ||
        index >= elements_of(variable) || variable->nbytes / (size_t)variable->data_size <= index)
        return false;
    const void *data = variable->data;
    switch (variable->data_type) {
    case MAT_T_DOUBLE:
        *value = ((const double *)data)[index];
        return true;
    case MAT_T_UINT8:
        *value = ((const uint8_t *)data)[index];
        return true;
    case MAT_T_UINT16:
        *value = ((const uint16_t *)data)[index];
        return true;
    case MAT_T_INT32:
        *value = ((const int32_t *)data)[index];
        return true;
    default:
        return false;
    }
}

/* ---- Flowers-102 -------------------------------------------------------------------------------- */

static RaftStatus add_flowers(RaftDataset *dataset, const char *where, const matvar_t *chosen,
                              const matvar_t *labels, RaftError *error)
{
    size_t count = elements_of(chosen), known = elements_of(labels);
    RaftStatus status = RAFT_OK;
    for (size_t i = 0; !status && i < count; i++) {
        double number, value;
        uint32_t label = 0;
        if (!number_at(chosen, i, &number) || !(number >= 1) || !(number <= (double)known) ||
            !number_at(labels, (size_t)number - 1, &value))
            return rt_fail(error, RAFT_BAD_FILE,
                           "%s: entry %zu is not the number of one of the %zu labelled images",
                           where, i, known);
        status = rt_dataset_label(dataset, where, (int64_t)number, value, 1, &label, error);
        const char *path = rt_dataset_path(dataset, "jpg/image_%05d.jpg", (int)number);
        if (!status)
            status = path ? rt_dataset_add(dataset, path, label, error)
                          : rt_no_memory(error, dataset->root);
    }
    return status;
}

/* The published trainer trains on the official test list, which is the longest, and keeps the
 * official training list unused. */
RaftStatus rt_open_flowers(RaftDataset *dataset, bool training, RaftError *error)
{
    mat_t *set = NULL, *all = NULL;
    matvar_t *chosen = NULL, *labels = NULL;
    RaftStatus status = rt_dataset_enter(dataset, "flowers-102", error);
    const char *set_path = rt_dataset_path(dataset, "setid.mat");
    const char *label_path = rt_dataset_path(dataset, "imagelabels.mat");
    if (!status) status = open_mat(set_path, &set, error);
    if (!status) status = open_mat(label_path, &all, error);
    if (!status)
        status = read_variable(set, set_path, training ? "tstid" : "valid", &chosen, error);
    if (!status) status = read_variable(all, label_path, "labels", &labels, error);
    if (!status) status = add_flowers(dataset, set_path, chosen, labels, error);
    if (chosen) matio.free(chosen);
    if (labels) matio.free(labels);
    if (set) matio.close(set);
    if (all) matio.close(all);
    return status ? status : rt_dataset_check_files(dataset, error);
}

/* ---- Stanford Cars ------------------------------------------------------------------------------ */

/* A text of MATLAB, one or two bytes a letter; false where it is none, or no plain file name. */
static bool text_of(const matvar_t *variable, char *text, size_t size)
{
    size_t length = variable ? elements_of(variable) : 0;
    if (!length || length >= size || variable->class_type != MAT_C_CHAR || !variable->data ||
        variable->data_size < 1 || variable->data_size > 2 ||
        variable->nbytes < length * (size_t)variable->data_size)
        return false;
    for (size_t i = 0; i < length; i++) {
        unsigned letter = variable->data_size == 1 ? ((const uint8_t *)variable->data)[i]
                                                   : ((const uint16_t *)variable->data)[i];
        if (letter < ' ' || letter > '~' || letter == '/') return false;
        text[i] = (char)letter;
    }
    text[length] = 0;
    return text[0] != '.';
}

static RaftStatus add_cars(RaftDataset *dataset, const char *where, matvar_t *annotations,
                           const char *folder, RaftError *error)
{
    if (annotations->class_type != MAT_C_STRUCT)
        return rt_fail(error, RAFT_BAD_FILE, "%s: 'annotations' is not a struct array", where);
    size_t count = elements_of(annotations);
    RaftStatus status = RAFT_OK;
    for (size_t i = 0; !status && i < count; i++) {
        char name[256];
        double value;
        uint32_t label = 0;
        if (!number_at(matio.field(annotations, "class", i), 0, &value) ||
            !text_of(matio.field(annotations, "fname", i), name, sizeof name))
            return rt_fail(error, RAFT_BAD_FILE,
                           "%s: annotation %zu has no number 'class' and file name 'fname'", where,
                           i);
        status = rt_dataset_label(dataset, where, (int64_t)i, value, 1, &label, error);
        const char *path = rt_dataset_path(dataset, "%s/%s", folder, name);
        if (!status)
            status = path ? rt_dataset_add(dataset, path, label, error)
                          : rt_no_memory(error, dataset->root);
    }
    return status;
}

RaftStatus rt_open_cars(RaftDataset *dataset, bool training, RaftError *error)
{
    mat_t *mat = NULL;
    matvar_t *annotations = NULL;
    RaftStatus status = rt_dataset_enter(dataset, "stanford_cars", error);
    const char *path = rt_dataset_path(dataset, training ? "devkit/cars_train_annos.mat"
                                                         : "cars_test_annos_withlabels.mat");
    if (!status) status = open_mat(path, &mat, error);
    if (status && !training) { /* it comes by itself, and people put it beside the others */
        path = rt_dataset_path(dataset, "devkit/cars_test_annos_withlabels.mat");
        status = open_mat(path, &mat, error);
    }
    if (!status) status = read_variable(mat, path, "annotations", &annotations, error);
    if (!status)
        status = add_cars(dataset, path, annotations, training ? "cars_train" : "cars_test", error);
    if (annotations) matio.free(annotations);
    if (mat) matio.close(mat);
    return status ? status : rt_dataset_check_files(dataset, error);
}

/* ---- iNaturalist -------------------------------------------------------------------------------- */

typedef struct Entry {
    json_int_t id;
    const char *file;
} Entry;

static int compare_entries(const void *a, const void *b)
{
    const Entry *x = a, *y = b;
    return (x->id > y->id) - (x->id < y->id);
}

/* A relative path without "..", so that nothing outside the data set is read. */
static bool is_inside(const char *file)
{
    if (!*file || *file == '/') return false;
    for (const char *part = file; part; part = strchr(part, '/')) {
        part += *part == '/';
        if (!strncmp(part, "..", 2) && (part[2] == '/' || !part[2])) return false;
    }
    return true;
}

static RaftStatus list_images(const char *where, const json_t *images, Entry *entries,
                              RaftError *error)
{
    size_t i;
    json_t *image;
    json_array_foreach(images, i, image)
    {
        const json_t *id = json_object_get(image, "id");
        const char *file = json_string_value(json_object_get(image, "file_name"));
        if (!json_is_integer(id) || !file || !is_inside(file))
            return rt_fail(error, RAFT_BAD_FILE,
                           "%s: image %zu has no whole number 'id' and relative 'file_name'", where,
                           i);
        entries[i] = (Entry){json_integer_value(id), file};
    }
    qsort(entries, json_array_size(images), sizeof *entries, compare_entries);
    return RAFT_OK;
}

static RaftStatus add_annotations(RaftDataset *dataset, const char *where, const json_t *list,
                                  const Entry *entries, size_t count, RaftError *error)
{
    size_t i;
    json_t *annotation;
    json_array_foreach(list, i, annotation)
    {
        const json_t *id = json_object_get(annotation, "image_id");
        const json_t *category = json_object_get(annotation, "category_id");
        Entry key = {json_integer_value(id), NULL};
        const Entry *entry = bsearch(&key, entries, count, sizeof key, compare_entries);
        uint32_t label = 0;
        if (!json_is_integer(id) || !json_is_integer(category) || !entry)
            return rt_fail(error, RAFT_BAD_FILE,
                           "%s: annotation %zu has no 'category_id' and 'image_id' of an image",
                           where, i);
        RaftStatus status = rt_dataset_label(
            dataset, where, (int64_t)i, (double)json_integer_value(category), 0, &label, error);
        const char *path = rt_dataset_path(dataset, "%s", entry->file);
        if (!status)
            status = path ? rt_dataset_add(dataset, path, label, error)
                          : rt_no_memory(error, dataset->root);
        if (status) return status;
    }
    return RAFT_OK;
}

static RaftStatus open_inat(RaftDataset *dataset, const char *name, RaftError *error)
{
    json_error_t problem;
    const char *where = rt_dataset_path(dataset, "%s", name);
    if (!where) return rt_no_memory(error, dataset->root);
    json_t *json = json_load_file(where, 0, &problem);
    if (!json && json_error_code(&problem) == json_error_cannot_open_file)
        return rt_fail(error, RAFT_IO, "%s: %s", where, problem.text);
    if (!json)
        return rt_fail(error, RAFT_BAD_FILE, "%s:%d:%d: %s", where, problem.line, problem.column,
                       problem.text);
    const json_t *images = json_object_get(json, "images");
    const json_t *annotations = json_object_get(json, "annotations");
    size_t count = json_array_size(images);
    Entry *entries = calloc(count + 1, sizeof *entries);
    RaftStatus status = entries ? RAFT_OK : rt_no_memory(error, where);
    if (!status && (!json_is_array(images) || !json_is_array(annotations)))
        status =
            rt_fail(error, RAFT_BAD_FILE, "%s: has no arrays 'images' and 'annotations'", where);
    if (!status) status = list_images(where, images, entries, error);
    if (!status) status = add_annotations(dataset, where, annotations, entries, count, error);
    free(entries);
    json_decref(json);
    return status ? status : rt_dataset_check_files(dataset, error);
}

RaftStatus rt_open_inat18(RaftDataset *dataset, bool training, RaftError *error)
{
    return open_inat(dataset, training ? "train2018.json" : "val2018.json", error);
}

RaftStatus rt_open_inat19(RaftDataset *dataset, bool training, RaftError *error)
{
    return open_inat(dataset, training ? "train2019.json" : "val2019.json", error);
}
