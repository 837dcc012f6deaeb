/* memory.c: how much memory a program has more of once it has run raftmlp-s on one image, as the
 * system counts it. Prints that and the limit: the packed weights and the arena as raftc plans
 * them, and 8 MB. usage: memory PACKED_BYTES ARENA_BYTES */
#include "raftmlp_s.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { PIXELS = raftmlp_s_CHANNELS * raftmlp_s_HEIGHT * raftmlp_s_WIDTH, MOST_ELEMENTS = 1 << 21 };

static float parameter[MOST_ELEMENTS], image[PIXELS], logits[raftmlp_s_CLASSES];

/* A line of /proc/self/status, such as "VmHWM:   123 kB", in bytes. */
static long long status(const char *field)
{
    char line[256];
    long long value = -1;
    FILE *file = fopen("/proc/self/status", "r");
    while (file && fgets(line, sizeof line, file))
        if (strncmp(line, field, strlen(field)) == 0) value = atoll(line + strlen(field)) * 1024;
    if (file) fclose(file);
    return value;
}

static int set_parameters(raftmlp_s *model)
{
    int count;
    const raftmlp_s_Parameter *p = raftmlp_s_parameters(model, &count);
    for (int i = 0; i < count; i++) {
        if (p[i].elements > MOST_ELEMENTS) return 1;
        if (raftmlp_s_set_parameter(model, p[i].name, p[i].shape, p[i].rank, parameter)) return 1;
    }
    return 0;
}

int main(int argc, char **argv)
{
    if (argc != 3) return 2;
    long long packed = atoll(argv[1]), arena = atoll(argv[2]), spare = 8 << 20;
    for (int i = 0; i < MOST_ELEMENTS; i++) parameter[i] = (float)(i % 17 - 8) / 256;
    for (int i = 0; i < PIXELS; i++) image[i] = (float)(i % 23 - 11) / 8;
    memset(logits, 0, sizeof logits);

    long long before = status("VmRSS:");
    raftmlp_s *model;
    if (raftmlp_s_create(NULL, &model, NULL, 0) != raftmlp_s_OK || set_parameters(model)) return 3;
    if (raftmlp_s_forward(model, 1, image, logits) != raftmlp_s_OK) return 4;
    long long most = status("VmHWM:") - before, now = status("VmRSS:") - before;
    raftmlp_s_destroy(model);
    printf("memory: %lld bytes more at most, %lld after a run; limit %lld: packed weights %lld, "
           "arena %lld, and %lld\n",
           most, now, packed + arena + spare, packed, arena, spare);
    return before <= 0 || most <= 0 || most > packed + arena + spare;
}
