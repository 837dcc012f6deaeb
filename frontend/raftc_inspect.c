/* raftc_inspect.c: raftc inspect: what is in a file. Models and graphs: raftc_inspect_graph.c.
 *
 * A file tells by its first bytes what it is, a text by its name. Nothing of it is run or loaded.
 */
#define _GNU_SOURCE /* memmem */
#include "frontend/raftc.h"
#include "frontend/raftc_json.h"
#include "runtime/rt.h"

#include <string.h>

/* ---- weight files ---------------------------------------------------------------------------- */

static const char *dtype_name(RaftDType dtype)
{
    static const char *const names[] = {"f32", "f16", "bf16", "f64",  "i32",  "i64",
                                        "u8",  "i8",  "i16",  "bool", "other"};
    return names[dtype];
}

static json_t *weights_json(Session *session, const RaftWeights *file, const char *path)
{
    json_t *tensors = json_array(), *metadata = json_object();
    int64_t elements = 0;
    const RaftTensor *tensor;
    for (int i = 0; (tensor = raft_weights_tensor(file, i)); i++) {
        json_t *shape = json_array();
        for (int k = 0; k < tensor->rank; k++)
            json_array_append_new(shape, json_integer(tensor->shape[k]));
        json_array_append_new(tensors, json_pack("{s:o, s:s, s:o}", "name",
                                                 json_text(session->arena, tensor->name), "dtype",
                                                 dtype_name(tensor->dtype), "shape", shape));
        elements += tensor->elements;
    }
    const char *key, *value;
    for (int i = 0; raft_weights_metadata(file, i, &key, &value); i++)
        json_object_set_new(metadata, key, json_text(session->arena, value));
    return json_pack("{s:s, s:o, s:I, s:o, s:o}", "kind", "weights", "file",
                     json_text(session->arena, path), "elements", (json_int_t)elements, "tensors",
                     tensors, "metadata", metadata);
}

/* A value of several lines, as a description of a model is, goes below its key. */
static void print_metadata(Session *session, const char *key, const char *value)
{
    char *rest = arena_strdup(session->arena, value);
    bool several = strchr(value, '\n');
    print_clean(key, stdout);
    putchar(':');
    while (rest) {
        const char *line = strsep(&rest, "\n");
        fputs(several ? "\n  " : " ", stdout);
        print_clean(line, stdout);
    }
    putchar('\n');
}

static void print_weights(Session *session, const RaftWeights *file, const char *path)
{
    int64_t elements = 0;
    const RaftTensor *tensor;
    for (int i = 0; (tensor = raft_weights_tensor(file, i)); i++) {
        printf("%-5s ", dtype_name(tensor->dtype));
        print_clean(tensor->name, stdout);
        fputs(" [", stdout);
        for (int k = 0; k < tensor->rank; k++)
            printf("%s%lld", k ? ", " : "", (long long)tensor->shape[k]);
        fputs("]\n", stdout);
        elements += tensor->elements;
    }
    const char *key, *value;
    for (int i = 0; raft_weights_metadata(file, i, &key, &value); i++)
        print_metadata(session, key, value);
    print_clean(path, stdout);
    printf(": %d %s, %s elements\n", raft_weights_count(file),
           raft_weights_count(file) == 1 ? "tensor" : "tensors", grouped(session->arena, elements));
}

static Exit inspect_weights(Session *session, const char *path)
{
    RaftError error;
    RaftWeights *file;
    RaftStatus status = raft_weights_open(path, &file, &error);
    if (status != RAFT_OK) return session_fail_file(session, status, &error);
    if (session->options->json)
        json_print(weights_json(session, file, path));
    else
        print_weights(session, file, path);
    raft_weights_close(file);
    return EXIT_DONE;
}

/* The file of weights that a compiled library takes. */
static Exit inspect_blob(Session *session, const char *path, const RtFile *file)
{
    RaftWeightsHeader header;
    if (file->size < sizeof header)
        return session_fail(session, EXIT_FILES, "%s: byte %zu: the file ends inside its header",
                            path, file->size);
    memcpy(&header, file->data, sizeof header);
    if (header.size != file->size)
        return session_fail(session, EXIT_FILES,
                            "%s: byte 24: the header tells of %llu bytes; the file has %zu", path,
                            (unsigned long long)header.size, file->size);
    const char *hash = arena_printf(session->arena, "%016llx", (unsigned long long)header.hash);
    if (session->options->json) {
        json_print(json_pack("{s:s, s:o, s:I, s:s, s:I}", "kind", "library weights", "file",
                             json_text(session->arena, path), "parameters",
                             (json_int_t)header.parameters, "model", hash, "bytes",
                             (json_int_t)header.size));
        return EXIT_DONE;
    }
    print_clean(path, stdout);
    printf(": weights of a compiled library: %u parameters, hash of their names and shapes %s\n",
           header.parameters, hash);
    return EXIT_DONE;
}

/* ---- libraries ------------------------------------------------------------------------------- */

enum { MADE_BY_MOST = 1 << 16 };

/* The text by which a library says how it was made, or NULL. The file is only searched, never
 * loaded: a library that is loaded runs code. */
static const char *find_made_by(Arena *arena, const RtFile *file)
{
    const char *begin = (const char *)file->data, *end = begin + file->size;
    while ((begin = memmem(begin, (size_t)(end - begin), MADE_BY, strlen(MADE_BY)))) {
        size_t left = (size_t)(end - begin);
        const char *stop = memchr(begin, '\0', left < MADE_BY_MOST ? left : MADE_BY_MOST);
        const char *text = stop ? arena_strndup(arena, begin, (size_t)(stop - begin)) : "";
        if (strstr(text, "\ncommand: ") && strstr(text, "\nmodel: ")) return text;
        begin++;
    }
    return NULL;
}

static Exit inspect_library(Session *session, const char *path, const RtFile *file)
{
    const char *made_by = find_made_by(session->arena, file);
    if (!made_by)
        return session_fail(session, EXIT_FILES, "%s: is not a library that raftc made", path);
    json_t *lines = json_array();
    char *rest = arena_strdup(session->arena, made_by);
    for (char *line; (line = strsep(&rest, "\n"));) {
        if (session->options->json) {
            json_array_append_new(lines, json_text(session->arena, line));
        } else {
            print_clean(line, stdout);
            putchar('\n');
        }
    }
    json_t *object = json_pack("{s:s, s:o, s:o}", "kind", "library", "file",
                               json_text(session->arena, path), "made_by", lines);
    if (session->options->json)
        json_print(object);
    else
        json_decref(object);
    return EXIT_DONE;
}

/* ---- the verb -------------------------------------------------------------------------------- */

static bool begins_with(const RtFile *file, const char *bytes)
{
    size_t length = strlen(bytes);
    return file->size >= length && memcmp(file->data, bytes, length) == 0;
}

Exit verb_inspect(Session *session)
{
    const char *path = session->options->arguments.item[0];
    static const char *const texts[] = {".yaml", ".yml", ".ir"};
    for (size_t i = 0; i < ARRAY_SIZE(texts); i++)
        if (has_extension(path, texts[i])) return inspect_model(session, path);
    if (session->options->graph)
        return session_fail(session, EXIT_USAGE, "--graph draws a model or a graph (.yaml, .ir)");
    RtFile file;
    RaftError error;
    RaftStatus status = rt_file_map(path, &file, &error);
    if (status != RAFT_OK) return session_fail_file(session, status, &error);
    Exit exit;
    if (begins_with(&file, "\177ELF") || begins_with(&file, "!<arch>\n"))
        exit = inspect_library(session, path, &file);
    else if (begins_with(&file, "RAFTBLOB"))
        exit = inspect_blob(session, path, &file);
    else
        exit = inspect_weights(session, path);
    rt_file_unmap(&file);
    return exit;
}
