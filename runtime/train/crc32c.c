/* crc32c.c: CRC-32C (Castagnoli), eight bytes at a time by eight tables (Kounavis and Berry, 2005). */
#include "runtime/train/private.h"

#include <string.h>

enum { TABLES = 8 };

static void make_tables(uint32_t table[TABLES][256])
{
    for (uint32_t i = 0; i < 256; i++) {
        uint32_t crc = i;
        for (int bit = 0; bit < 8; bit++) crc = crc >> 1 ^ (crc & 1 ? 0x82F63B78u : 0);
        table[0][i] = crc;
    }
    for (int t = 1; t < TABLES; t++)
        for (int i = 0; i < 256; i++)
            table[t][i] = table[t - 1][i] >> 8 ^ table[0][table[t - 1][i] & 0xff];
}

uint32_t rt_crc32c(uint32_t crc, const void *data, size_t size)
{
    uint32_t table[TABLES][256];
    const uint8_t *bytes = data;
    make_tables(table);
    crc = ~crc;
    for (; size >= 8; bytes += 8, size -= 8) {
        uint64_t word;
        memcpy(&word, bytes, 8);
        word ^= crc;
        crc = 0;
        for (int i = 0; i < TABLES; i++) crc ^= table[7 - i][word >> 8 * i & 0xff];
    }
    while (size--) crc = crc >> 8 ^ table[0][(crc ^ *bytes++) & 0xff];
    return ~crc;
}
