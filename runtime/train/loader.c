/* loader.c: threads that read, decode and augment pictures into batches ahead of the computation.
 *
 * The places of all batches of an epoch are numbered; each thread takes the next number. Batch b is
 * made in slot b % ahead, once the batch that was there has been given back. All that the threads
 * share is behind one lock, which they hold only to take a number and to tell that it is done. */
#include "runtime/rt.h"
#include "runtime/train/train.h"

#include <assert.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_LISTED = 12, MOST_TRIES = 64 };

typedef struct Place { /* of one image in a batch */
    int truncated, unreadable;
    int64_t bad; /* the first item that could not be read for it */
    RaftStatus status;
} Place;

typedef struct Slot {
    int done; /* places */
    uint8_t *bytes;
    uint32_t *labels;
    Place *places;
} Slot;

struct RaftLoader {
    const RaftDataset *dataset;
    RaftLoading loading;
    int64_t count, batches;
    size_t image_size;
    uint32_t *order; /* NULL: as the data set has them */
    Slot *slots;
    /* Of the thread that takes the batches: */
    bool lent; /* batch `low` is the caller's */
    int64_t truncated, unreadable;
    int64_t *bad, room_of_bad; /* which of the data set are unreadable */
    /* Behind the lock, as are the slots' `done`: */
    pthread_mutex_t lock;
    pthread_cond_t room, full;
    int64_t next; /* place */
    int64_t low;  /* batches [low, low + ahead) may be made */
    bool stop;
    int threads;
    pthread_t *thread;
};

/* ---- one picture ------------------------------------------------------------------------------- */

RT_WIDE static void split(const uint8_t *rgb, size_t pixels, uint8_t *restrict out)
{
    uint8_t *restrict green = out + pixels, *restrict blue = green + pixels;
    for (size_t i = 0; i < pixels; i++, rgb += 3) {
        out[i] = rgb[0];
        green[i] = rgb[1];
        blue[i] = rgb[2];
    }
}

static void store(const RaftLoader *loader, const RaftImage *image, uint8_t *out)
{
    size_t pixels = (size_t)image->width * (size_t)image->height;
    if (loader->loading.channels == 3)
        split(image->rgb, pixels, out);
    else
        for (size_t i = 0; i < pixels; i++) out[i] = raft_colour_grey(image->rgb + 3 * i);
}

typedef struct Look {
    const RaftAugmentation *augmentation;
    const RaftRandom *random; /* NULL: nothing is */
} Look;

static RtRect part_seen(const void *user, int width, int height)
{
    const Look *look = user;
    return raft_augment_part(look->augmentation, look->random, width, height);
}

static RaftStatus load(const RaftLoader *loader, int64_t item, bool *truncated, uint8_t *out)
{
    const RaftLoading *loading = &loader->loading;
    RaftImage image;
    RaftRandom random =
        raft_random(loading->seed, loading->epoch, (uint32_t)item, RAFT_FOR_AUGMENTATION);
    const Look look = {&loading->augmentation, loading->training ? &random : NULL};
    const RtView view = {
        .least_side = loading->training ? raft_augment_least_side(&loading->augmentation) : 0,
        .part = part_seen,
        .user = &look};
    RaftStatus status = raft_dataset_read(loader->dataset, item, &view, &image, truncated, NULL);
    if (!status)
        status = loading->training ? raft_augment(&loading->augmentation, &random, &image, NULL)
                                   : raft_augment_not(&loading->augmentation, &image, NULL);
    if (!status) store(loader, &image, out);
    raft_image_free(&image);
    return status;
}

static void fill_place(const RaftLoader *loader, int64_t number)
{
    int batch = loader->loading.batch;
    Slot *slot = &loader->slots[number / batch % loader->loading.ahead];
    Place *place = &slot->places[number % batch];
    int64_t item = loader->order ? loader->order[number] : number;
    int tries = loader->loading.training ? MOST_TRIES : 1;
    *place = (Place){0};
    for (int i = 0; i < tries; i++, item = (item + 1) % loader->count) {
        bool truncated = false;
        place->status = load(loader, item, &truncated,
                             slot->bytes + (size_t)(number % batch) * loader->image_size);
        slot->labels[number % batch] = raft_dataset_label(loader->dataset, item);
        place->truncated += truncated;
        if (!place->status || place->status == RAFT_NO_MEMORY) break;
        if (!place->unreadable++) place->bad = item;
    }
}

/* ---- threads ----------------------------------------------------------------------------------- */

static int64_t places(const RaftLoader *loader)
{
    int64_t all = loader->batches * loader->loading.batch;
    return all < loader->count ? all : loader->count;
}

static int size_of_batch(const RaftLoader *loader, int64_t batch)
{
    int64_t rest = loader->count - batch * loader->loading.batch;
    return rest < loader->loading.batch ? (int)rest : loader->loading.batch;
}

static void *work(void *argument)
{
    RaftLoader *loader = argument;
    pthread_mutex_lock(&loader->lock);
    for (;;) {
        int batch = loader->loading.batch;
        while (!loader->stop && loader->next < places(loader) &&
               loader->next / batch >= loader->low + loader->loading.ahead)
            pthread_cond_wait(&loader->room, &loader->lock);
        if (loader->stop || loader->next >= places(loader)) break;
        int64_t number = loader->next++;
        pthread_mutex_unlock(&loader->lock);
        fill_place(loader, number);
        pthread_mutex_lock(&loader->lock);
        Slot *slot = &loader->slots[number / batch % loader->loading.ahead];
        if (++slot->done == size_of_batch(loader, number / batch))
            pthread_cond_signal(&loader->full);
    }
    pthread_mutex_unlock(&loader->lock);
    return NULL;
}

/* ---- batches ----------------------------------------------------------------------------------- */

int64_t raft_loader_batches(const RaftDataset *dataset, const RaftLoading *loading)
{
    int64_t count = raft_dataset_count(dataset);
    return loading->training ? count / loading->batch
                             : (count + loading->batch - 1) / loading->batch;
}

static bool make_slots(RaftLoader *loader)
{
    size_t batch = (size_t)loader->loading.batch;
    loader->slots = calloc((size_t)loader->loading.ahead, sizeof *loader->slots);
    for (int i = 0; loader->slots && i < loader->loading.ahead; i++) {
        Slot *slot = &loader->slots[i];
        slot->bytes = calloc(batch, loader->image_size);
        slot->labels = calloc(batch, sizeof *slot->labels);
        slot->places = calloc(batch, sizeof *slot->places);
        if (!slot->bytes || !slot->labels || !slot->places) return false;
    }
    return loader->slots;
}

static bool make_order(RaftLoader *loader)
{
    const RaftLoading *loading = &loader->loading;
    if (!loading->training) return true;
    loader->order = malloc((size_t)loader->count * sizeof *loader->order);
    if (!loader->order) return false;
    RaftRandom random = raft_random(loading->seed, loading->epoch, 0, RAFT_FOR_ORDER);
    raft_random_permutation(&random, (uint32_t)loader->count, loader->order);
    return true;
}

static bool start_threads(RaftLoader *loader)
{
    loader->thread = calloc((size_t)loader->loading.threads, sizeof *loader->thread);
    while (loader->thread && loader->threads < loader->loading.threads) {
        if (pthread_create(&loader->thread[loader->threads], NULL, work, loader)) break;
        loader->threads++;
    }
    return loader->threads > 0; /* fewer threads make the same batches */
}

RaftStatus raft_loader_open(const RaftDataset *dataset, const RaftLoading *loading,
                            RaftLoader **loader, RaftError *error)
{
    const RaftAugmentation *image = &loading->augmentation;
    RaftLoader *opened = calloc(1, sizeof *opened);
    *loader = NULL;
    if (!opened) return rt_no_memory(error, "loading data");
    assert(loading->batch > 0 && loading->threads > 0 && loading->ahead > 1);
    opened->dataset = dataset;
    opened->loading = *loading;
    opened->count = raft_dataset_count(dataset);
    opened->batches = raft_loader_batches(dataset, loading);
    opened->low = loading->first;
    opened->next = loading->first * loading->batch;
    opened->image_size = (size_t)loading->channels * (size_t)image->height * (size_t)image->width;
    pthread_mutex_init(&opened->lock, NULL);
    pthread_cond_init(&opened->room, NULL);
    pthread_cond_init(&opened->full, NULL);
    if (!make_slots(opened) || !make_order(opened) || !start_threads(opened)) {
        raft_loader_close(opened);
        return rt_no_memory(error, "loading data");
    }
    *loader = opened;
    return RAFT_OK;
}

void raft_loader_close(RaftLoader *loader)
{
    if (!loader) return;
    pthread_mutex_lock(&loader->lock);
    loader->stop = true;
    pthread_cond_broadcast(&loader->room);
    pthread_mutex_unlock(&loader->lock);
    for (int i = 0; i < loader->threads; i++) pthread_join(loader->thread[i], NULL);
    for (int i = 0; loader->slots && i < loader->loading.ahead; i++) {
        free(loader->slots[i].bytes);
        free(loader->slots[i].labels);
        free(loader->slots[i].places);
    }
    pthread_mutex_destroy(&loader->lock);
    pthread_cond_destroy(&loader->room);
    pthread_cond_destroy(&loader->full);
    free(loader->thread);
    free(loader->slots);
    free(loader->order);
    free(loader->bad);
    free(loader);
}

/* Says in `reason` why a picture cannot be read, or where it is, if now it can be. */
static void explain(const RaftLoader *loader, int64_t item, RaftError *reason)
{
    char buffer[512];
    RaftImage image;
    bool truncated;
    if (!raft_dataset_read(loader->dataset, item, NULL, &image, &truncated, reason))
        rt_fail(reason, RAFT_BAD_FILE, "%s", raft_dataset_where(loader->dataset, item, buffer));
    raft_image_free(&image);
}

static RaftStatus write_list(const RaftLoader *loader, RaftError *error)
{
    RtOutput output;
    RaftStatus status = rt_output_open(loader->loading.list, &output, error);
    if (status) return status;
    for (int64_t i = 0; i < loader->unreadable; i++) {
        RaftError reason = {""};
        explain(loader, loader->bad[i], &reason);
        rt_output_write(&output, reason.message, strlen(reason.message));
        rt_output_write(&output, "\n", 1);
    }
    return rt_output_commit(&output, error);
}

static RaftStatus too_many(const RaftLoader *loader, RaftError *error)
{
    int64_t listed = loader->unreadable < MOST_LISTED ? loader->unreadable : MOST_LISTED;
    RaftError unwritten = {""};
    const char *list = loader->loading.list;
    rt_fail(error, RAFT_BAD_FILE,
            "%lld pictures could not be read in this epoch, and %lld end it; ",
            (long long)loader->unreadable, (long long)loader->loading.most_unreadable + 1);
    if (list && write_list(loader, &unwritten))
        rt_add(error, "the list of them was not written: %s; ", unwritten.message);
    else if (list)
        rt_add(error, "%s lists them; ", list);
    rt_add(error, "the first:");
    for (int64_t i = 0; i < listed; i++) {
        RaftError reason = {""};
        explain(loader, loader->bad[i], &reason);
        rt_add(error, "\n  %s", reason.message);
    }
    return RAFT_BAD_FILE;
}

static bool list_bad(RaftLoader *loader, int64_t item)
{
    if (loader->unreadable == loader->room_of_bad) {
        int64_t room = 2 * loader->room_of_bad + MOST_LISTED;
        int64_t *bad = realloc(loader->bad, (size_t)room * sizeof *bad);
        if (!bad) return false;
        loader->bad = bad;
        loader->room_of_bad = room;
    }
    loader->bad[loader->unreadable++] = item;
    return true;
}

/* Counts what was damaged, and closes up where nothing could be read. */
static RaftStatus settle(RaftLoader *loader, Slot *slot, RaftBatch *batch, RaftError *error)
{
    int size = size_of_batch(loader, batch->index);
    for (int i = 0; i < size; i++) {
        const Place *place = &slot->places[i];
        loader->truncated += place->truncated;
        bool listed = !place->unreadable || list_bad(loader, place->bad);
        if (!listed || place->status == RAFT_NO_MEMORY) return rt_no_memory(error, "loading data");
        if (place->status) continue;
        if (batch->count != i) {
            memcpy(slot->bytes + (size_t)batch->count * loader->image_size,
                   slot->bytes + (size_t)i * loader->image_size, loader->image_size);
            slot->labels[batch->count] = slot->labels[i];
        }
        batch->count++;
    }
    batch->truncated = loader->truncated;
    batch->unreadable = loader->unreadable;
    bool lacks = loader->loading.training ? batch->count < size : batch->count == 0;
    if (loader->unreadable > loader->loading.most_unreadable || lacks)
        return too_many(loader, error);
    return RAFT_OK;
}

RaftStatus raft_loader_next(RaftLoader *loader, RaftBatch *batch, RaftError *error)
{
    pthread_mutex_lock(&loader->lock);
    if (loader->lent) {
        loader->slots[loader->low % loader->loading.ahead].done = 0;
        loader->low++;
        loader->lent = false;
        pthread_cond_broadcast(&loader->room);
    }
    *batch = (RaftBatch){
        .index = loader->low, .truncated = loader->truncated, .unreadable = loader->unreadable};
    if (loader->low >= loader->batches) {
        pthread_mutex_unlock(&loader->lock);
        return RAFT_OK;
    }
    Slot *slot = &loader->slots[loader->low % loader->loading.ahead];
    while (slot->done < size_of_batch(loader, loader->low))
        pthread_cond_wait(&loader->full, &loader->lock);
    loader->lent = true;
    pthread_mutex_unlock(&loader->lock);
    batch->bytes = slot->bytes;
    batch->labels = slot->labels;
    return settle(loader, slot, batch, error);
}
