/* raft.h: the runtime library: weight files, images, made-up data, and running a compiled program.
 *
 * It depends on nothing of the compiler. Every function that can fail returns a status and writes a
 * message for people into the caller's RaftError; none exits, prints, or keeps global state. Paths
 * are the caller's; sizes are in elements unless a name says bytes.
 */
#ifndef RAFT_H
#define RAFT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "shell.h" /* not runtime/shell.h: both are installed as raft/..; has RaftStatus */

#ifdef __cplusplus
extern "C" {
#endif

/* message: "weights.safetensors: byte 120: tensor 'x': unknown dtype"; always terminated; reports
 * of raft_weights_match have several lines. Every `error` argument may be NULL. */
typedef struct RaftError {
    char message[4096];
} RaftError;

/* ---- fill.c: the fill rule, for tests and benchmarks ----------------------------------------- */

/* Values that depend on the name and the index alone. A parameter whose name ends in ".bias" is a
 * bias; other 1-d tensors are LayerNorm scales; 2-d ones are Linear weights. */
void raft_fill_parameter(const char *name, int rank, const int64_t *shape, float *data);
void raft_fill_input(int64_t elements, float *data);                     /* named "input" */
void raft_fill_labels(int64_t count, int64_t classes, uint32_t *labels); /* named "labels" */

/* ---- weights.c, safetensors.c, torchfile.c: weight files ------------------------------------- */

typedef enum RaftDType {
    RAFT_F32,
    RAFT_F16,
    RAFT_BF16,
    RAFT_F64,
    RAFT_I32,
    RAFT_I64,
    RAFT_U8,
    RAFT_I8,
    RAFT_I16,
    RAFT_BOOL,
    RAFT_OTHER
} RaftDType;

typedef struct RaftTensor {
    const char *name;
    RaftDType dtype;
    int rank;
    int64_t shape[8];
    int64_t elements;
    const void *data; /* until raft_weights_close: little-endian, may be unaligned */
} RaftTensor;

typedef struct RaftWeights RaftWeights; /* an opened file */

/* Opens and checks a weight file: safetensors, or a state_dict that torch.save wrote, alone or as
 * `model`, `state_dict` or `model_state_dict` of a dictionary; `module.`, `_orig_mod.` or `model.`
 * before all names is dropped. Its content tells which, not its name. Every size is checked against the file's before anything is
 * allocated, and nothing in it is executed. Release with raft_weights_close. */
RaftStatus raft_weights_open(const char *path, RaftWeights **weights, RaftError *error);
void raft_weights_close(RaftWeights *weights);
int raft_weights_count(const RaftWeights *weights);
/* Tensors are in the order of the file; NULL past the end, and where a name is not found. */
const RaftTensor *raft_weights_tensor(const RaftWeights *weights, int index);
const RaftTensor *raft_weights_find(const RaftWeights *weights, const char *name);
/* Metadata of the file (safetensors' __metadata__): i-th key and value; false past the end. */
bool raft_weights_metadata(const RaftWeights *weights, int index, const char **key,
                           const char **value);
/* What else the next step of training depends on has such names in a checkpoint. */
#define RAFT_STATE_PREFIX "optimiser."

/* Whether the file holds exactly the tensors that a model wants, by name and shape, of dtypes that
 * raft_tensor_read_f32 reads; others may be beside them: of integers and bool (counters, masks), and
 * what a checkpoint of raftc train has beside the weights. If not, the message lists what is missing, of another shape or type, or not the model's: eight of
 * each kind, and how many more. */
RaftStatus raft_weights_match(const RaftWeights *weights, const RaftTensorInfo *wanted, int count,
                              RaftError *error);
/* Copies a tensor as f32 (f16, bf16, f64 converted, rounding to nearest even). */
RaftStatus raft_tensor_read_f32(const RaftTensor *tensor, float *data, RaftError *error);

/* Writes a safetensors file, or a state_dict for torch.load where the path ends in .pt (which has
 * no place for metadata), whole or not at all: temporary name, fsync, rename. The tensors stand in
 * the file as in the list; `elements` is not looked at. The same list gives the same bytes. */
RaftStatus raft_weights_write(const char *path, const RaftTensor *tensors, int count,
                              const char *const *metadata /* key, value, ..., NULL */,
                              RaftError *error);

/* ---- image.c, resize.c: pictures ------------------------------------------------------------- */

typedef struct RaftImage {
    int width, height;
    uint8_t *rgb; /* height x width x 3; malloced */
    int warnings; /* of the decoder, not fatal */
} RaftImage;

/* Decodes a JPEG or PNG file (by content) to RGB as Pillow's convert("RGB") would; then applies the
 * EXIF orientation. A truncated file is an error, and so is a side over 65500 or an area over
 * 178956970 pixels, before anything is decoded. Release with raft_image_free. */
RaftStatus raft_image_read(const char *path, RaftImage *image, RaftError *error);
void raft_image_free(RaftImage *image);
/* Pillow's bilinear resize with antialiasing (8-bit fixed-point arithmetic, horizontal pass first),
 * bit for bit. */
RaftStatus raft_image_resize(const RaftImage *image, int width, int height, RaftImage *out,
                             RaftError *error);
/* The published test transform. ImageNet: the short side becomes round(256 / 224 x the smaller of
 * height and width), then height x width are cut from the centre, as torchvision's Resize and
 * CenterCrop do (where the picture is too small: padded with 0). With `exact`, for data sets of a
 * fixed size: resized to height x width, ratio not kept. Then (v / 255 - mean) / std, in f32, into
 * chw[3][height][width]. */
RaftStatus raft_image_preprocess(const RaftImage *image, int height, int width, bool exact,
                                 const double mean[3], const double std[3], float *chw,
                                 RaftError *error);

#ifdef __cplusplus
}
#endif
#endif
