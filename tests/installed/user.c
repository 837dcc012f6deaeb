/* user.c: a C program with a compiled model and the runtime library.
 * usage: user WEIGHTS GOLDEN PICTURE INPUT
 * INPUT: the picture as `raftc run --dump-input` prepares it. */
#include "golden.h"

#include <string.h>

static int check_picture(const char *path, const char *input_path)
{
    static const double mean[3] = {0.485, 0.456, 0.406}, std[3] = {0.229, 0.224, 0.225};
    static float pixels[PIXELS];
    RaftImage image;
    RaftWeights *input;
    RaftError error;
    if (raft_image_read(path, &image, &error) != RAFT_OK ||
        raft_image_preprocess(&image, tiny_HEIGHT, tiny_WIDTH, false, mean, std, pixels, &error) !=
            RAFT_OK ||
        raft_weights_open(input_path, &input, &error) != RAFT_OK) {
        fprintf(stderr, "%s\n", error.message);
        return 1;
    }
    const RaftTensor *tensor = raft_weights_find(input, "input");
    int failed =
        !tensor || tensor->elements != PIXELS || memcmp(tensor->data, pixels, sizeof pixels) != 0;
    raft_weights_close(input);
    raft_image_free(&image);
    return failed;
}

int main(int argc, char **argv)
{
    tiny *model;
    if (argc != 5) return 2;
    if (tiny_create(NULL, &model, NULL, 0) != tiny_OK) return 3;
    if (check_golden(model, argv[1], argv[2])) return 4;
    if (check_picture(argv[3], argv[4])) return 5;
    tiny_destroy(model);
    puts("user.c: the logits are PyTorch's, the picture is as raftc prepares it");
    return 0;
}
