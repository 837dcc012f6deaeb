/* raftc_roofline.c: bench --roofline: a picture of each kernel: multiply-adds a second over those for
 * each byte that it must read or write, under the speed of the memory and that of the arithmetic. */
#include "frontend/raftc_profile.h"

#include <math.h>
#include <string.h>

/* The plot, in pixels; below it a line for each kernel. */
enum { LEFT = 70, TOP = 50, WIDTH = 620, HEIGHT = 360, LINE = 18, PAGE = 900 };

typedef struct Plot {
    Text text;
    double least_x, most_x, least_y, most_y; /* powers of 10 */
} Plot;

static double place_x(const Plot *plot, double intensity)
{
    return LEFT + WIDTH * (log10(intensity) - plot->least_x) / (plot->most_x - plot->least_x);
}

static double place_y(const Plot *plot, double gflops)
{
    return TOP + HEIGHT * (plot->most_y - log10(gflops)) / (plot->most_y - plot->least_y);
}

static double row_gflops(const ProfileRow *row)
{
    return 1e-9 * row->flops / row->seconds;
}

static double row_intensity(const ProfileRow *row)
{
    return row->flops / row->bytes;
}

/* Kernels that only move numbers are in the list alone. */
static bool is_drawn(const ProfileRow *row)
{
    return row->flops > 0 && row->bytes > 0 && row->seconds > 0;
}

/* Whole decades that hold all rows and the corner of the roof. */
static Plot new_plot(Arena *arena, const ProfileRow *rows, int count, double peak, double gbytes)
{
    double corner = log10(peak / gbytes);
    Plot plot = {text_new(arena), floor(corner - 0.3), ceil(corner + 0.3), floor(log10(peak) - 1),
                 ceil(log10(peak))};
    for (int i = 0; i < count; i++) {
        if (!is_drawn(&rows[i])) continue;
        double x = log10(row_intensity(&rows[i])), y = log10(row_gflops(&rows[i]));
        plot.least_x = fmin(plot.least_x, floor(x));
        plot.most_x = fmax(plot.most_x, ceil(x));
        plot.least_y = fmin(plot.least_y, floor(y));
        plot.most_y = fmax(plot.most_y, ceil(y));
    }
    return plot;
}

static void put_line(Plot *plot, double x1, double y1, double x2, double y2, const char *style)
{
    text_printf(&plot->text, "<line x1='%.1f' y1='%.1f' x2='%.1f' y2='%.1f' class='%s'/>\n", x1, y1,
                x2, y2, style);
}

static void put_axes(Plot *plot)
{
    for (double x = plot->least_x; x <= plot->most_x; x++) {
        double at = place_x(plot, pow(10, x));
        put_line(plot, at, TOP, at, TOP + HEIGHT, "grid");
        text_printf(&plot->text, "<text x='%.1f' y='%d' text-anchor='middle'>%g</text>\n", at,
                    TOP + HEIGHT + LINE, pow(10, x));
    }
    for (double y = plot->least_y; y <= plot->most_y; y++) {
        double at = place_y(plot, pow(10, y));
        put_line(plot, LEFT, at, LEFT + WIDTH, at, "grid");
        text_printf(&plot->text, "<text x='%d' y='%.1f' text-anchor='end'>%g</text>\n", LEFT - 6,
                    at + 4, pow(10, y));
    }
    text_printf(&plot->text,
                "<text x='%d' y='%d' text-anchor='middle'>operations for each byte</text>\n"
                "<text x='%d' y='%d'>GFLOP/s</text>\n",
                LEFT + WIDTH / 2, TOP + HEIGHT + 2 * LINE, LEFT, TOP - 8);
}

static void put_roof(Plot *plot, double peak, double gbytes)
{
    double left = pow(10, plot->least_x), right = pow(10, plot->most_x), corner = peak / gbytes;
    double low = pow(10, plot->least_y), from = fmax(left, low / gbytes);
    put_line(plot, place_x(plot, from), place_y(plot, from * gbytes), place_x(plot, corner),
             place_y(plot, peak), "roof");
    put_line(plot, place_x(plot, corner), place_y(plot, peak), place_x(plot, right),
             place_y(plot, peak), "roof");
    text_printf(&plot->text,
                "<text x='%d' y='%.1f' text-anchor='end'>%.1f GFLOP/s on registers alone</text>\n"
                "<text x='%.1f' y='%.1f'>memory %.1f GB/s</text>\n",
                LEFT + WIDTH, place_y(plot, peak) - 6, peak, place_x(plot, from) + 8,
                place_y(plot, from * gbytes) - 8, gbytes);
}

/* The number of a row in the list; the more time it takes, the larger is its dot. */
static void put_row(Plot *plot, Arena *arena, const ProfileRow *row, int number, double peak,
                    double gbytes, double seconds)
{
    double gflops = row_gflops(row), bytes = 1e-9 * row->bytes / row->seconds;
    if (is_drawn(row)) {
        double x = place_x(plot, row_intensity(row)), y = place_y(plot, gflops);
        text_printf(&plot->text,
                    "<circle cx='%.1f' cy='%.1f' r='%.1f'/>\n<text x='%.1f' y='%.1f'>%d</text>\n",
                    x, y, 3 + 12 * sqrt(row->seconds / seconds), x + 6, y - 6, number);
    }
    text_printf(&plot->text,
                "<text x='%d' y='%d'>%d: %.3f ms, %.1f %% of the peak, %.1f %% of the memory: "
                "%s</text>\n",
                LEFT, TOP + HEIGHT + (3 + number) * LINE, number, 1e3 * row->seconds,
                100 * gflops / peak, gbytes > 0 ? 100 * bytes / gbytes : 0,
                profile_row_text(row, arena));
}

Exit roofline_draw(Session *session, const ProfileRow *rows, int count, const char *title,
                   double peak, double gbytes)
{
    if (gbytes <= 0)
        return session_fail(session, EXIT_UNDONE,
                            "there is not memory enough to measure its speed, which a roofline "
                            "needs");
    Plot plot = new_plot(session->arena, rows, count, peak, gbytes);
    double seconds = 0;
    for (int i = 0; i < count; i++) seconds += rows[i].seconds;
    text_printf(&plot.text,
                "<svg xmlns='http://www.w3.org/2000/svg' width='%d' height='%d'>\n"
                "<style>text {font: 12px sans-serif} line.grid {stroke: #ddd} "
                "line.roof {stroke: #b00; stroke-width: 2} "
                "circle {fill: #06c; fill-opacity: 0.6}</style>\n"
                "<rect width='100%%' height='100%%' fill='white'/>\n"
                "<text x='%d' y='20'>%s: each kernel at its best</text>\n",
                PAGE, TOP + HEIGHT + (4 + count) * LINE, LEFT, title);
    put_axes(&plot);
    put_roof(&plot, peak, gbytes);
    for (int i = 0; i < count; i++)
        put_row(&plot, session->arena, &rows[i], i + 1, peak, gbytes, seconds);
    text_put(&plot.text, "</svg>\n");
    return session_write(session, session->options->roofline, plot.text.data, plot.text.length);
}
