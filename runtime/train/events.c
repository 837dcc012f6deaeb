/* events.c: TensorBoard's event files: TFRecords, each with one protocol buffer.
 *
 *     length, 8 bytes | masked CRC-32C of these, 4 | the event | masked CRC-32C of it, 4
 *     Event {1: double wall_time, 2: int64 step, 3: string file_version, 5: Summary, 7: SessionLog}
 *     Summary {1: repeated Value {1: string tag, 2: float simple_value}}; SessionLog {1: status}
 */
#include "runtime/train/private.h"

#include <dirent.h>
#include <errno.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { MOST_BYTES = 4096, VARINT = 0, EIGHT_BYTES = 1, TEXT = 2, FOUR_BYTES = 5 };

typedef struct Message {
    size_t size;
    uint8_t bytes[MOST_BYTES];
} Message;

static void put(Message *message, const void *data, size_t size)
{
    if (size > MOST_BYTES - message->size) size = MOST_BYTES - message->size;
    memcpy(message->bytes + message->size, data, size);
    message->size += size;
}

static void put_varint(Message *message, uint64_t value)
{
    for (; value >= 128; value >>= 7) put(message, &(uint8_t){(uint8_t)(value | 128)}, 1);
    put(message, &(uint8_t){(uint8_t)value}, 1);
}

static void put_key(Message *message, int field, int type)
{
    put_varint(message, (uint64_t)(field << 3 | type));
}

static void put_text(Message *message, int field, const void *data, size_t size)
{
    put_key(message, field, TEXT);
    put_varint(message, size);
    put(message, data, size);
}

static Message begin(int64_t step)
{
    Message message = {0};
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    double wall_time = (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
    put_key(&message, 1, EIGHT_BYTES);
    put(&message, &wall_time, sizeof wall_time);
    put_key(&message, 2, VARINT);
    put_varint(&message, (uint64_t)step);
    return message;
}

static uint32_t masked(const void *data, size_t size)
{
    uint32_t crc = rt_crc32c(0, data, size);
    return (crc >> 15 | crc << 17) + 0xa282ead8u;
}

static int write_record(FILE *events, const Message *message)
{
    uint64_t length = message->size;
    uint32_t sums[2] = {masked(&length, sizeof length), masked(message->bytes, message->size)};
    errno = 0;
    bool good = fwrite(&length, sizeof length, 1, events) == 1 &&
                fwrite(&sums[0], sizeof sums[0], 1, events) == 1 &&
                fwrite(message->bytes, 1, message->size, events) == message->size &&
                fwrite(&sums[1], sizeof sums[1], 1, events) == 1 && !fflush(events);
    return good ? 0 : errno ? errno : EIO;
}

/* How many event files the folder holds: TensorBoard reads them in the order of their names. */
static int count_files(const char *folder)
{
    int count = 0;
    DIR *directory = opendir(folder);
    if (!directory) return 0;
    for (struct dirent *entry; (entry = readdir(directory));)
        count += !strncmp(entry->d_name, "events.out.tfevents.", 20);
    closedir(directory);
    return count;
}

FILE *rt_events_open(const char *folder, int64_t first)
{
    char path[4352], host[64] = "";
    gethostname(host, sizeof host - 1);
    snprintf(path, sizeof path, "%s/events.out.tfevents.%010lld.%06d.%s", folder,
             (long long)time(NULL), count_files(folder), host);
    FILE *events = fopen(path, "wbxe");
    if (!events) return NULL;
    Message version = begin(0), start = begin(first);
    put_text(&version, 3, "brain.Event:2", 13);
    put_text(&start, 7, (const uint8_t[]){1 << 3, 1}, 2); /* status START */
    int failure = write_record(events, &version);
    if (!failure && first > 0) failure = write_record(events, &start);
    if (!failure) return events;
    fclose(events);
    errno = failure;
    return NULL;
}

int rt_events_add(FILE *events, int64_t step, int count, const char *const *tags,
                  const double *values)
{
    Message event = begin(step), summary = {0};
    for (int i = 0; i < count; i++) {
        Message value = {0};
        float number = (float)values[i];
        put_text(&value, 1, tags[i], strlen(tags[i]));
        put_key(&value, 2, FOUR_BYTES);
        put(&value, &number, sizeof number);
        put_text(&summary, 1, value.bytes, value.size);
    }
    put_text(&event, 5, summary.bytes, summary.size);
    return write_record(events, &event);
}
