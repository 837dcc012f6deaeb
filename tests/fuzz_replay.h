/* fuzz_replay.h: the main of a libFuzzer harness built with -DREPLAY: tries the files given. */
#ifdef REPLAY
#include <stdio.h>
#include <stdlib.h>

int main(int argc, char **argv)
{
    for (int i = 1; i < argc; i++) {
        FILE *file = fopen(argv[i], "rb");
        long size = file && !fseek(file, 0, SEEK_END) ? ftell(file) : -1;
        uint8_t *data = size >= 0 ? malloc((size_t)size + !size) : NULL;
        if (!data || fseek(file, 0, SEEK_SET) ||
            fread(data, 1, (size_t)size, file) != (size_t)size) {
            fprintf(stderr, "%s: cannot be read\n", argv[i]);
            return 1;
        }
        fclose(file);
        LLVMFuzzerTestOneInput(data, (size_t)size);
        free(data);
    }
    return 0;
}
#endif
