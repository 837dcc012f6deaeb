/* raftc_data.c: real data as the settings describe it, and how well a model does on it. */
#include "frontend/raftc_data.h"

#include <math.h>
#include <string.h>

enum { AHEAD = 4, AHEAD_IN_VALIDATION = 2 /* of batches twice as large */ };

/* ---- from settings ------------------------------------------------------------------------------ */

static int count_threads(const Data *data)
{
    int64_t most = 2 * data->session->threads, wanted = data->settings->num_workers;
    return (int)(wanted == 0 ? data->session->threads : wanted < most ? wanted : most);
}

Exit data_describe(Session *session, const Compilation *c, int64_t batch, Data *data)
{
    const Settings *s = c->settings;
    const Model *model = c->model;
    *data = (Data){.session = session, .settings = s, .path = session->options->data};
    if (!data->path) data->path = s->data_path;
    if (!data->path)
        return session_fail(session, EXIT_FILES,
                            "%s: data_path is missing: the folder of %s; or --data FOLDER", c->path,
                            s->dataset_name);
    if (s->in_channels != 3 && s->in_channels != 1)
        return session_fail(session, EXIT_FILES,
                            "pictures have 3 channels, or 1 in grey; in_channels is %lld",
                            (long long)s->in_channels);
    data->pixels = (RaftPixels){
        .channels = (int)s->in_channels, .height = (int)model->height, .width = (int)model->width};
    memcpy(data->pixels.mean, s->mean, sizeof s->mean);
    memcpy(data->pixels.std, s->std, sizeof s->std);
    data->loading = (RaftLoading){.channels = data->pixels.channels,
                                  .batch = (int)(batch ? batch : s->batch_size),
                                  .training = true,
                                  .seed = (uint64_t)s->seed,
                                  .threads = count_threads(data),
                                  .ahead = AHEAD,
                                  .most_unreadable = DATA_MOST_BAD};
    RaftAugmentation *augmentation = &data->loading.augmentation;
    raft_augmentation_of(s->dataset_name, augmentation);
    augmentation->height = data->pixels.height;
    augmentation->width = data->pixels.width;
    augmentation->color_jitter = s->color_jitter;
    augmentation->cutout_p = s->cutout_p;
    return EXIT_DONE;
}

Exit data_open(const Data *data, bool training, RaftDataset **dataset)
{
    RaftError error;
    RaftStatus status = raft_dataset_open(data->settings->dataset_name, data->path, training,
                                          (int)data->settings->num_classes, dataset, &error);
    return status ? session_fail_file(data->session, status, &error) : EXIT_DONE;
}

/* ---- scores ------------------------------------------------------------------------------------- */

/* Adds what one image brings to the sums. */
static void score_image(const float *logits, uint32_t label, int64_t classes, double smoothing,
                        Score *sum)
{
    double most = logits[0], powers = 0, mean = 0;
    int64_t before = 0; /* classes that come before the right one */
    for (int64_t k = 1; k < classes; k++) most = fmax(most, (double)logits[k]);
    for (int64_t k = 0; k < classes; k++) {
        powers += exp((double)logits[k] - most);
        mean += (double)logits[k] / (double)classes;
        before += logits[k] > logits[label] || (logits[k] == logits[label] && k < label);
    }
    double total = most + log(powers), plain = total - (double)logits[label];
    sum->top1 += before < 1;
    sum->top5 += before < 5;
    sum->plain += plain;
    sum->loss += smoothing * (total - mean) + (1 - smoothing) * plain;
    sum->images++;
}

static Exit score_batch(const Data *data, const RaftBatch *batch, const Scorer *scorer, Score *sum)
{
    int64_t classes = data->settings->num_classes;
    int64_t rank = scorer->comm ? scorer->comm->rank : 0,
            size = scorer->comm ? scorer->comm->size : 1;
    int64_t end = batch->count * (rank + 1) / size;
    for (int64_t first = batch->count * rank / size; first < end; first += scorer->room) {
        int64_t rest = end - first, count = rest < scorer->room ? rest : scorer->room;
        raft_mix_images(NULL, &data->pixels, batch->bytes, (int)first, (int)count, scorer->images);
        Exit exit = scorer->forward(scorer->user, count);
        if (exit != EXIT_DONE) return exit;
        for (int64_t i = 0; i < count; i++)
            score_image(scorer->logits + i * classes, batch->labels[first + i], classes,
                        data->settings->label_smoothing_alpha, sum);
    }
    sum->truncated = batch->truncated;
    sum->unreadable = batch->unreadable;
    return EXIT_DONE;
}

static Exit score_all(const Data *data, RaftLoader *loader, const Scorer *scorer, Score *sum)
{
    for (;;) {
        RaftBatch batch;
        RaftError error;
        RaftStatus status = raft_loader_next(loader, &batch, &error);
        if (status) return session_fail_file(data->session, status, &error);
        sum->stopped = scorer->stop && *scorer->stop;
        if (batch.count == 0 || sum->stopped) return EXIT_DONE;
        Exit exit = score_batch(data, &batch, scorer, sum);
        if (exit != EXIT_DONE) return exit;
    }
}

/* From the sums of each process to the means over all. */
static Exit gather(const Data *data, const Scorer *scorer, Score *score)
{
    double sums[] = {score->top1,  score->top5,           score->loss,
                     score->plain, (double)score->images, score->stopped};
    RaftError error;
    RaftStatus status = scorer->comm
                            ? raft_comm_sum_doubles(scorer->comm, sums, ARRAY_SIZE(sums), &error)
                            : RAFT_OK;
    if (status) return session_fail_file(data->session, status, &error);
    double images = sums[4] > 0 ? sums[4] : 1;
    score->top1 = sums[0] / images;
    score->top5 = sums[1] / images;
    score->loss = sums[2] / images;
    score->plain = sums[3] / images;
    score->images = (int64_t)sums[4];
    score->stopped = sums[5] > 0;
    return EXIT_DONE;
}

Exit data_score(const Data *data, const RaftDataset *dataset, const Scorer *scorer, Score *score)
{
    RaftLoader *loader;
    RaftError error;
    RaftLoading loading = data->loading;
    loading.training = false;
    loading.batch *= 2;
    loading.ahead = AHEAD_IN_VALIDATION;
    loading.epoch = 0;
    loading.first = 0;
    *score = (Score){0};
    RaftStatus status = raft_loader_open(dataset, &loading, &loader, &error);
    if (status) return session_fail_file(data->session, status, &error);
    Exit exit = score_all(data, loader, scorer, score);
    raft_loader_close(loader);
    return exit == EXIT_DONE ? gather(data, scorer, score) : exit;
}
