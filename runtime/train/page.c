/* page.c: the curves of a run as one HTML page that needs nothing else: a drawing (SVG) for each
 * kind of value, in which training and validation stand together. */
#include "runtime/train/private.h"

#include <jansson.h>
#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_CURVES = 16, MOST_POINTS = 600, WIDTH = 760, HEIGHT = 260, LEFT = 60, BOTTOM = 24 };

typedef struct Curve {
    char tag[64];
    int count, capacity;
    double *step, *value;
} Curve;

typedef struct Page {
    int count;
    Curve curve[MOST_CURVES];
} Page;

/* What is drawn together: the part of the tag behind "training/" or "validation/". */
static const char *kind_of(const Curve *curve)
{
    const char *slash = strrchr(curve->tag, '/');
    return slash ? slash + 1 : curve->tag;
}

static bool add_point(Page *page, const char *tag, double step, double value)
{
    Curve *curve = page->curve;
    while (curve < page->curve + page->count && strcmp(curve->tag, tag)) curve++;
    if (curve == page->curve + MOST_CURVES) return true; /* more would not be seen apart */
    if (curve == page->curve + page->count) {
        page->count++;
        snprintf(curve->tag, sizeof curve->tag, "%s", tag);
    }
    if (curve->count == curve->capacity) {
        int capacity = curve->capacity ? 2 * curve->capacity : 256;
        double *steps = realloc(curve->step, (size_t)capacity * sizeof *steps);
        if (steps) curve->step = steps;
        double *values = realloc(curve->value, (size_t)capacity * sizeof *values);
        if (values) curve->value = values;
        if (!steps || !values) return false;
        curve->capacity = capacity;
    }
    curve->step[curve->count] = step;
    curve->value[curve->count++] = value;
    return true;
}

static bool add_line(Page *page, const char *line, size_t size)
{
    const char *tag;
    json_t *value, *json = json_loadb(line, size, 0, NULL);
    const json_t *step = json_object_get(json, "step");
    bool good = true;
    json_object_foreach(json, tag, value)
    {
        if (good && value != step && json_is_number(value) && json_is_integer(step))
            good = add_point(page, tag, (double)json_integer_value(step), json_number_value(value));
    }
    json_decref(json);
    return good;
}

static RaftStatus read_lines(const char *path, Page *page, RaftError *error)
{
    RtFile file;
    bool good = true;
    RaftStatus status = rt_file_map(path, &file, error);
    if (status) return status;
    const char *line = (const char *)file.data, *end = line + file.size;
    for (const char *next; good && line < end; line = next) {
        const char *stop = memchr(line, '\n', (size_t)(end - line));
        next = stop ? stop + 1 : end;
        good = add_line(page, line, (size_t)(next - line));
    }
    rt_file_unmap(&file);
    return good ? RAFT_OK : rt_no_memory(error, path);
}

/* ---- drawing ----------------------------------------------------------------------------------- */

typedef struct Frame {
    double least_step, most_step, least, most;
} Frame;

static void print(RtOutput *output, const char *format, ...) RT_PRINTF_LIKE(2, 3);
static void print(RtOutput *output, const char *format, ...)
{
    char text[1024];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    rt_output_write(output, text, strlen(text));
}

/* Text of people, or from a file, as HTML. */
static void print_text(RtOutput *output, const char *text)
{
    for (; *text; text++)
        if (*text == '<' || *text == '&')
            print(output, "&#%d;", *text);
        else
            rt_output_write(output, text, 1);
}

static double across(const Frame *frame, double step)
{
    double range = frame->most_step - frame->least_step;
    return LEFT + (WIDTH - LEFT - 10) * (range > 0 ? (step - frame->least_step) / range : 0.5);
}

static double down(const Frame *frame, double value)
{
    double range = frame->most - frame->least;
    return 10 + (HEIGHT - BOTTOM - 10) * (range > 0 ? (frame->most - value) / range : 0.5);
}

static Frame frame_of(const Page *page, const char *kind)
{
    Frame frame = {HUGE_VAL, -HUGE_VAL, HUGE_VAL, -HUGE_VAL};
    for (int i = 0; i < page->count; i++)
        for (int k = 0; k < page->curve[i].count && !strcmp(kind_of(&page->curve[i]), kind); k++) {
            const Curve *curve = &page->curve[i];
            frame.least_step = fmin(frame.least_step, curve->step[k]);
            frame.most_step = fmax(frame.most_step, curve->step[k]);
            frame.least = fmin(frame.least, curve->value[k]);
            frame.most = fmax(frame.most, curve->value[k]);
        }
    return frame;
}

/* Of long curves, the means of as many stretches as can be seen. */
static void draw_curve(RtOutput *output, const Frame *frame, const Curve *curve, const char *colour)
{
    int stride = (curve->count + MOST_POINTS - 1) / MOST_POINTS;
    print(output, "<polyline fill=\"none\" stroke=\"%s\" stroke-width=\"1.5\" points=\"", colour);
    for (int k = 0; k < curve->count; k += stride) {
        int count = curve->count - k < stride ? curve->count - k : stride;
        double step = 0, value = 0;
        for (int i = k; i < k + count; i++) {
            step += curve->step[i] / count;
            value += curve->value[i] / count;
        }
        print(output, "%.1f,%.1f ", across(frame, step), down(frame, value));
    }
    print(output, "\"/>\n");
}

static void draw_kind(RtOutput *output, const Page *page, const char *kind)
{
    static const char *const colours[] = {"#1f77b4", "#d62728", "#2ca02c", "#9467bd"};
    Frame frame = frame_of(page, kind);
    int drawn = 0;
    print(output, "<h2>");
    print_text(output, kind);
    print(output, "</h2>\n<svg viewBox=\"0 0 %d %d\" width=\"%d\">\n", WIDTH, HEIGHT, WIDTH);
    for (int i = 0; i <= 4; i++) {
        double value = frame.least + (frame.most - frame.least) * i / 4, y = down(&frame, value);
        double step = frame.least_step + (frame.most_step - frame.least_step) * i / 4;
        print(output, "<line x1=\"%d\" x2=\"%d\" y1=\"%.1f\" y2=\"%.1f\" stroke=\"#ddd\"/>\n", LEFT,
              WIDTH - 10, y, y);
        print(output, "<text x=\"%d\" y=\"%.1f\" text-anchor=\"end\">%.4g</text>\n", LEFT - 6,
              y + 4, value);
        print(output, "<text x=\"%.1f\" y=\"%d\" text-anchor=\"middle\">%.0f</text>\n",
              across(&frame, step), HEIGHT - 6, step);
    }
    for (int i = 0; i < page->count; i++)
        if (!strcmp(kind_of(&page->curve[i]), kind))
            draw_curve(output, &frame, &page->curve[i], colours[drawn++ % 4]);
    print(output, "</svg>\n<p>");
    drawn = 0;
    for (int i = 0; i < page->count; i++) {
        const Curve *curve = &page->curve[i];
        if (strcmp(kind_of(curve), kind)) continue;
        print(output, "<span style=\"color:%s\">&#9632;</span> ", colours[drawn++ % 4]);
        print_text(output, curve->tag);
        Frame own = frame_of(&(Page){1, {*curve}}, kind);
        print(output, ": last %.6g, least %.6g, most %.6g<br>\n", curve->value[curve->count - 1],
              own.least, own.most);
    }
    print(output, "</p>\n");
}

static RaftStatus write_page(const char *path, const char *title, const Page *page,
                             RaftError *error)
{
    RtOutput output;
    RaftStatus status = rt_output_open(path, &output, error);
    if (status) return status;
    print(&output, "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>");
    print_text(&output, title);
    print(&output, "</title>\n<style>body{font:14px sans-serif;margin:2em}svg text{font:11px "
                   "sans-serif;fill:#555}</style></head><body>\n<h1>");
    print_text(&output, title);
    print(&output, "</h1>\n");
    for (int i = 0; i < page->count; i++) {
        const char *kind = kind_of(&page->curve[i]);
        int first = 0;
        while (strcmp(kind_of(&page->curve[first]), kind)) first++;
        if (first == i) draw_kind(&output, page, kind);
    }
    print(&output, "</body></html>\n");
    return rt_output_commit(&output, error);
}

RaftStatus raft_metrics_page(const char *folder, const char *title, RaftError *error)
{
    char path[4352];
    Page page = {0};
    snprintf(path, sizeof path, "%s/metrics.jsonl", folder);
    RaftStatus status = read_lines(path, &page, error);
    snprintf(path, sizeof path, "%s/metrics.html", folder);
    if (!status) status = write_page(path, title, &page, error);
    for (int i = 0; i < page.count; i++) {
        free(page.curve[i].step);
        free(page.curve[i].value);
    }
    return status;
}
