/* image.c: pictures in files to RGB in memory. libjpeg-turbo and libpng decode; what is done here
 * is to hold them to limits, to choose the conversions that Pillow makes, and to turn the picture
 * as its EXIF orientation says. An error in either library ends in a longjmp, within this file. */
#include "runtime/rt.h"

#include <jpeglib.h>
#include <jerror.h>
#include <png.h>
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_SCANS = 100 }; /* of a progressive JPEG file; usual are 10 */

/* A decoder's state, of which the functions that it calls back get hold. */
typedef struct Decoder {
    const char *path;
    const uint8_t *data;
    size_t size, position; /* position: how far it is read; in JPEG, once the header is */
    RaftImage *image;
    int orientation; /* EXIF: 1 to 8 */
    const RtView *view;
    bool partial; /* a file that ends too early is no error once its header is read */
    bool truncated;
    RaftStatus status;
    RaftError *error;
    jmp_buf leave;
} Decoder;

/* Checks what the header claims, and makes room. No file of such a picture is smaller than
 * `least_size`: so what is allocated stays in proportion to the file. It is decoded at 1 / scale of its
 * size. libjpeg gives all rows in any case; what libpng has not come to is to be 0. */
static RaftStatus start_image(Decoder *decoder, uint64_t width, uint64_t height,
                              uint64_t least_size, uint64_t scale, bool zeros)
{
    RaftImage *image = decoder->image;
    if (width > RT_MAX_SIDE || height > RT_MAX_SIDE || width * height > RT_MAX_PIXELS)
        return rt_bad_file(decoder->error, decoder->path, decoder->position,
                           "a picture of %llu x %llu; at most %d a side and %d pixels are read",
                           (unsigned long long)width, (unsigned long long)height, RT_MAX_SIDE,
                           RT_MAX_PIXELS);
    if (decoder->size < least_size)
        return rt_bad_file(decoder->error, decoder->path, decoder->size,
                           "the file ends too early: %llu x %llu pixels take at least %llu bytes",
                           (unsigned long long)width, (unsigned long long)height,
                           (unsigned long long)least_size);
    width = (width + scale - 1) / scale;
    height = (height + scale - 1) / scale;
    image->rgb = zeros ? calloc(width * height, 3) : malloc(width * height * 3);
    if (!image->rgb) return rt_no_memory(decoder->error, decoder->path);
    image->width = (int)width;
    image->height = (int)height;
    return RAFT_OK;
}

/* ---- EXIF ------------------------------------------------------------------------------------ */

static uint32_t read_number(const uint8_t *bytes, int count, bool big_endian)
{
    uint32_t value = 0;
    for (int i = 0; i < count; i++) value = value << 8 | bytes[big_endian ? i : count - 1 - i];
    return value;
}

/* The orientation tag in the first directory of a TIFF structure; 1 (upright) where it has none. */
static int find_orientation(const uint8_t *tiff, size_t size)
{
    enum { ORIENTATION = 0x112, SHORT = 3, ENTRY_BYTES = 12 };
    if (size < 8 || (memcmp(tiff, "II*\0", 4) && memcmp(tiff, "MM\0*", 4))) return 1;
    bool big = tiff[0] == 'M';
    size_t directory = read_number(tiff + 4, 4, big);
    if (directory > size - 2) return 1;
    size_t count = read_number(tiff + directory, 2, big);
    for (size_t i = 0; i < count; i++) {
        size_t place = directory + 2 + i * ENTRY_BYTES;
        if (place + ENTRY_BYTES > size) return 1;
        const uint8_t *entry = tiff + place;
        if (read_number(entry, 2, big) != ORIENTATION || read_number(entry + 2, 2, big) != SHORT)
            continue;
        uint32_t value = read_number(entry + 8, 2, big);
        return value >= 1 && value <= 8 ? (int)value : 1;
    }
    return 1;
}

/* Turns and mirrors the picture so that it stands upright. */
static RaftStatus apply_orientation(Decoder *decoder)
{
    RaftImage *image = decoder->image;
    int orientation = decoder->orientation;
    if (orientation == 1) return RAFT_OK;
    bool transposed = orientation >= 5;
    bool from_right = orientation == 2 || orientation == 3 || orientation >= 7;
    bool from_below = orientation == 3 || orientation == 4 || orientation == 6 || orientation == 7;
    int width = transposed ? image->height : image->width;
    int height = transposed ? image->width : image->height;
    uint8_t *rgb = malloc((size_t)width * (size_t)height * 3), *out = rgb;
    if (!rgb) return rt_no_memory(decoder->error, decoder->path);
    for (int y = 0; y < height; y++)
        for (int x = 0; x < width; x++, out += 3) {
            int column = transposed ? y : x, row = transposed ? x : y;
            if (from_right) column = image->width - 1 - column;
            if (from_below) row = image->height - 1 - row;
            memcpy(out, image->rgb + ((size_t)row * (size_t)image->width + (size_t)column) * 3, 3);
        }
    free(image->rgb);
    image->rgb = rgb;
    image->width = width;
    image->height = height;
    return RAFT_OK;
}

/* ---- JPEG ------------------------------------------------------------------------------------ */

static _Noreturn void leave_jpeg(j_decompress_ptr jpeg, const char *message)
{
    Decoder *decoder = jpeg->client_data;
    size_t position = decoder->size - (jpeg->src ? jpeg->src->bytes_in_buffer : 0);
    decoder->status = rt_bad_file(decoder->error, decoder->path, position, "%s", message);
    longjmp(decoder->leave, 1);
}

static void on_jpeg_error(j_common_ptr jpeg)
{
    Decoder *decoder = jpeg->client_data;
    char message[JMSG_LENGTH_MAX];
    if (jpeg->err->msg_code == JERR_OUT_OF_MEMORY) {
        decoder->status = rt_no_memory(decoder->error, decoder->path);
        longjmp(decoder->leave, 1);
    }
    jpeg->err->format_message(jpeg, message);
    leave_jpeg((j_decompress_ptr)jpeg, message);
}

static void on_jpeg_message(j_common_ptr jpeg, int level)
{
    Decoder *decoder = jpeg->client_data;
    if (level < 0) decoder->image->warnings++; /* others are traces */
}

static void on_jpeg_progress(j_common_ptr jpeg)
{
    j_decompress_ptr decompress = (j_decompress_ptr)jpeg;
    if (decompress->input_scan_number > MAX_SCANS)
        leave_jpeg(decompress, "more than 100 scans; is it made to take long?");
}

/* The whole file is in the buffer from the start; so nothing can be added but the marker of the end,
 * upon which libjpeg makes do with what it has. */
static boolean on_jpeg_end(j_decompress_ptr jpeg)
{
    static const JOCTET end[] = {0xff, JPEG_EOI};
    Decoder *decoder = jpeg->client_data;
    jpeg->src->bytes_in_buffer = 0; /* the decoder may count on its own */
    if (!decoder->partial || !decoder->image->rgb) leave_jpeg(jpeg, "the file ends too early");
    decoder->truncated = true;
    jpeg->src->next_input_byte = end;
    jpeg->src->bytes_in_buffer = sizeof end;
    return TRUE;
}

static void on_jpeg_skip(j_decompress_ptr jpeg, long count)
{
    if (count <= 0) return;
    if ((size_t)count > jpeg->src->bytes_in_buffer) {
        jpeg->src->bytes_in_buffer = 0;
        on_jpeg_end(jpeg);
        return;
    }
    jpeg->src->next_input_byte += count;
    jpeg->src->bytes_in_buffer -= (size_t)count;
}

static void on_jpeg_nothing(j_decompress_ptr jpeg)
{
    (void)jpeg;
}

/* Pillow takes all four-channel files for Adobe's, which hold the inverse of the inks. */
static void convert_cmyk(const uint8_t *cmyk, int width, uint8_t *rgb)
{
    for (int x = 0; x < width; x++, cmyk += 4, rgb += 3)
        for (int i = 0; i < 3; i++) {
            int product = (255 - cmyk[i]) * cmyk[3] + 128;
            rgb[i] = (uint8_t)(cmyk[3] - ((product + (product >> 8)) >> 8));
        }
}

static RaftStatus read_jpeg_header(Decoder *decoder, j_decompress_ptr jpeg)
{
    jpeg_save_markers(jpeg, JPEG_APP0 + 1, 0xFFFF);
    jpeg_read_header(jpeg, TRUE);
    decoder->position = decoder->size - jpeg->src->bytes_in_buffer;
    for (jpeg_saved_marker_ptr marker = jpeg->marker_list; marker; marker = marker->next) {
        if (marker->data_length < 6 || memcmp(marker->data, "Exif\0", 6)) continue;
        decoder->orientation = find_orientation(marker->data + 6, marker->data_length - 6);
        break;
    }
    if (jpeg->num_components != 1 && jpeg->num_components != 3 && jpeg->num_components != 4)
        leave_jpeg(jpeg, "neither 1, 3 nor 4 colour components");
    /* Each block of 8 x 8 pixels takes a bit or more (less only in flat, arithmetic-coded ones). */
    uint64_t width = jpeg->image_width, height = jpeg->image_height;
    uint64_t shorter = width < height ? width : height;
    uint64_t least = decoder->view ? (uint64_t)decoder->view->least_side : 0;
    jpeg->scale_num = jpeg->scale_denom = 1;
    while (least > 0 && jpeg->scale_denom < 8 && shorter / (2 * jpeg->scale_denom) >= least)
        jpeg->scale_denom *= 2;
    return start_image(decoder, width, height, width * height / 512, jpeg->scale_denom, false);
}

/* Leaves out what nobody will look at of an upright picture: gives the first column of what comes, and the
 * row at which to end. The chroma of a pixel is made of that of its neighbours, too. */
static JDIMENSION narrow_jpeg(Decoder *decoder, j_decompress_ptr jpeg, JDIMENSION *left)
{
    enum { BESIDE = 4 };
    const RtView *view = decoder->view;
    *left = 0;
    if (!view || !view->part || decoder->orientation != 1) return jpeg->output_height;
    if (jpeg->max_h_samp_factor > 2)
        return jpeg->output_height; /* of 4 x 2, other pixels would come */
    int all = decoder->image->width;
    RtRect part = view->part(view->user, all, decoder->image->height);
    int first = part.left > BESIDE ? part.left - BESIDE : 0;
    int end = part.left + part.width < all - BESIDE ? part.left + part.width + BESIDE : all;
    JDIMENSION width = (JDIMENSION)(end - first);
    *left = (JDIMENSION)first;
    jpeg_crop_scanline(jpeg, left, &width);
    jpeg_skip_scanlines(jpeg, (JDIMENSION)part.top);
    return (JDIMENSION)(part.top + part.height);
}

static RaftStatus read_jpeg(Decoder *decoder, j_decompress_ptr jpeg, struct jpeg_source_mgr *source,
                            struct jpeg_progress_mgr *progress)
{
    if (setjmp(decoder->leave)) return decoder->status;
    jpeg_create_decompress(jpeg);
    jpeg->src = source;
    jpeg->progress = progress;
    RaftStatus status = read_jpeg_header(decoder, jpeg);
    if (status) return status;

    bool cmyk = jpeg->num_components == 4;
    jpeg->out_color_space = cmyk ? JCS_CMYK : JCS_RGB;
    jpeg_start_decompress(jpeg);
    RaftImage *image = decoder->image;
    JSAMPARRAY inks = NULL;
    JDIMENSION left, end = narrow_jpeg(decoder, jpeg, &left);
    if (cmyk)
        inks = jpeg->mem->alloc_sarray((j_common_ptr)jpeg, JPOOL_IMAGE, jpeg->output_width * 4, 1);
    while (jpeg->output_scanline < end) {
        size_t first = (size_t)jpeg->output_scanline * (size_t)image->width + left;
        uint8_t *row = image->rgb + first * 3;
        jpeg_read_scanlines(jpeg, cmyk ? inks : &row, 1);
        if (cmyk) convert_cmyk(inks[0], (int)jpeg->output_width, row);
    }
    if (end == jpeg->output_height) jpeg_finish_decompress(jpeg);
    return RAFT_OK;
}

static RaftStatus decode_jpeg(Decoder *decoder)
{
    struct jpeg_error_mgr errors;
    struct jpeg_decompress_struct jpeg = {.err = jpeg_std_error(&errors), .client_data = decoder};
    struct jpeg_source_mgr source = {.next_input_byte = decoder->data,
                                     .bytes_in_buffer = decoder->size,
                                     .init_source = on_jpeg_nothing,
                                     .fill_input_buffer = on_jpeg_end,
                                     .skip_input_data = on_jpeg_skip,
                                     .resync_to_restart = jpeg_resync_to_restart,
                                     .term_source = on_jpeg_nothing};
    struct jpeg_progress_mgr progress = {.progress_monitor = on_jpeg_progress};
    errors.error_exit = on_jpeg_error;
    errors.emit_message = on_jpeg_message;
    RaftStatus status = read_jpeg(decoder, &jpeg, &source, &progress);
    jpeg_destroy_decompress(&jpeg);
    return status;
}

/* ---- PNG ------------------------------------------------------------------------------------- */

static _Noreturn void on_png_error(png_structp png, png_const_charp message)
{
    Decoder *decoder = png_get_error_ptr(png);
    decoder->status =
        strstr(message, "memory") /* libpng's words alone tell */
            ? rt_no_memory(decoder->error, decoder->path)
            : rt_bad_file(decoder->error, decoder->path, decoder->position, "%s", message);
    longjmp(decoder->leave, 1);
}

static void on_png_warning(png_structp png, png_const_charp message)
{
    (void)message;
    ((Decoder *)png_get_error_ptr(png))->image->warnings++;
}

static void on_png_read(png_structp png, png_bytep bytes, size_t count)
{
    Decoder *decoder = png_get_io_ptr(png);
    if (count > decoder->size - decoder->position) {
        decoder->position = decoder->size;
        decoder->truncated = true;
        png_error(png, "the file ends too early");
    }
    memcpy(bytes, decoder->data + decoder->position, count);
    decoder->position += count;
}

/* 16-bit grey stands at the start of each row; where Pillow makes RGB of it, it stops at 255. */
static void convert_grey16(RaftImage *image)
{
    for (int y = 0; y < image->height; y++) {
        uint8_t *row = image->rgb + (size_t)y * (size_t)image->width * 3;
        for (int x = image->width - 1; x >= 0; x--) /* in place, so from the end */
            memset(row + 3 * x, row[2 * x] ? 255 : row[2 * x + 1], 3);
    }
}

/* Chooses the conversions that give 8-bit RGB; 16-bit grey alone is left as it is. */
static void set_png_conversions(png_structp png, int color, int depth)
{
    if (color == PNG_COLOR_TYPE_PALETTE) png_set_palette_to_rgb(png);
    png_set_strip_alpha(png); /* a palette may have one, too */
    if (depth == 16 && color != PNG_COLOR_TYPE_GRAY) png_set_strip_16(png);
    if (depth < 8 && color == PNG_COLOR_TYPE_GRAY) png_set_expand_gray_1_2_4_to_8(png);
    if (color == PNG_COLOR_TYPE_GRAY_ALPHA || (color == PNG_COLOR_TYPE_GRAY && depth < 16))
        png_set_gray_to_rgb(png);
}

static RaftStatus read_png(Decoder *decoder, png_structp png, png_infop info)
{
    if (setjmp(decoder->leave))
        return decoder->partial && decoder->truncated && decoder->image->rgb ? RAFT_OK
                                                                             : decoder->status;
    png_set_read_fn(png, decoder, on_png_read);
    if (decoder->partial) png_set_compression_buffer_size(png, 1); /* up to the last byte */
    /* Only what the pixels need, and the orientation: texts and profiles may be bombs. libpng's own
     * reader of eXIf believes its length, whatever the limit; kept as it is, the limit holds. */
    png_set_keep_unknown_chunks(png, PNG_HANDLE_CHUNK_NEVER, NULL, -1);
    png_set_keep_unknown_chunks(png, PNG_HANDLE_CHUNK_ALWAYS, (png_const_bytep) "eXIf", 1);
    png_set_chunk_malloc_max(png, 1 << 20);
    png_read_info(png, info);
    uint64_t width = png_get_image_width(png, info), height = png_get_image_height(png, info);
    /* deflate makes at most 1032 bytes of one */
    RaftStatus status = start_image(
        decoder, width, height, height * png_get_rowbytes(png, info) / 1032, 1, decoder->partial);
    if (status) return status;

    int color = png_get_color_type(png, info), depth = png_get_bit_depth(png, info);
    set_png_conversions(png, color, depth);
    int passes = png_set_interlace_handling(png);
    png_read_update_info(png, info);
    if (png_get_rowbytes(png, info) > width * 3) png_error(png, "not of three channels");
    for (int pass = 0; pass < passes; pass++)
        for (size_t y = 0; y < height; y++)
            png_read_row(png, decoder->image->rgb + y * width * 3, NULL);
    png_read_end(png, info);

    png_unknown_chunkp chunks;
    if (png_get_unknown_chunks(png, info, &chunks) > 0)
        decoder->orientation = find_orientation(chunks[0].data, chunks[0].size);
    if (color == PNG_COLOR_TYPE_GRAY && depth == 16) convert_grey16(decoder->image);
    return RAFT_OK;
}

static RaftStatus decode_png(Decoder *decoder)
{
    png_structp png =
        png_create_read_struct(PNG_LIBPNG_VER_STRING, decoder, on_png_error, on_png_warning);
    png_infop info = png ? png_create_info_struct(png) : NULL;
    RaftStatus status =
        info ? read_png(decoder, png, info) : rt_no_memory(decoder->error, decoder->path);
    png_destroy_read_struct(&png, &info, NULL);
    return status;
}

/* ---- both ------------------------------------------------------------------------------------ */

/* Says what else a file is, where that is a picture that people have. */
static RaftStatus refuse_kind(const Decoder *decoder)
{
    static const struct {
        const char *kind, *bytes;
        size_t at, length;
    } others[] = {
        {"WebP", "WEBP", 8, 4},     {"GIF", "GIF8", 0, 4},     {"TIFF", "II*\0", 0, 4},
        {"TIFF", "MM\0*", 0, 4},    {"HEIF", "ftyphei", 4, 7}, {"HEIF", "ftypmif1", 4, 8},
        {"AVIF", "ftypavif", 4, 8}, {"BMP", "BM", 0, 2},
    };
    for (size_t i = 0; i < sizeof others / sizeof *others; i++)
        if (decoder->size >= others[i].at + others[i].length &&
            !memcmp(decoder->data + others[i].at, others[i].bytes, others[i].length))
            return rt_bad_file(decoder->error, decoder->path, 0,
                               "a %s picture; JPEG and PNG are read: convert it to PNG",
                               others[i].kind);
    return rt_bad_file(decoder->error, decoder->path, 0, "neither a JPEG nor a PNG file");
}

static RaftStatus decode(Decoder *decoder)
{
    RaftStatus status;
    *decoder->image = (RaftImage){0};
    decoder->orientation = 1;
    decoder->position = 0;
    if (decoder->size >= 3 && !memcmp(decoder->data, "\xff\xd8\xff", 3))
        status = decode_jpeg(decoder);
    else if (decoder->size >= 8 && !memcmp(decoder->data, "\x89PNG\r\n\x1a\n", 8))
        status = decode_png(decoder);
    else
        status = refuse_kind(decoder);
    if (!status) status = apply_orientation(decoder);
    if (status) raft_image_free(decoder->image);
    return status;
}

RaftStatus rt_image_decode(const char *path, const uint8_t *data, size_t size, RaftImage *image,
                           RaftError *error)
{
    Decoder decoder = {.path = path, .data = data, .size = size, .image = image, .error = error};
    return decode(&decoder);
}

RaftStatus rt_image_decode_part(const char *path, const uint8_t *data, size_t size,
                                const RtView *view, RaftImage *image, bool *truncated,
                                RaftError *error)
{
    Decoder decoder = {
        .path = path, .data = data, .size = size, .image = image, .view = view, .error = error};
    *truncated = false;
    if (!decode(&decoder)) return RAFT_OK;
    decoder.partial = true;
    RaftStatus status = decode(&decoder);
    *truncated = !status;
    return status;
}

RaftStatus raft_image_read(const char *path, RaftImage *image, RaftError *error)
{
    RtFile file;
    *image = (RaftImage){0};
    RaftStatus status = rt_file_map(path, &file, error);
    if (status) return status;
    status = rt_image_decode(path, file.data, file.size, image, error);
    rt_file_unmap(&file);
    return status;
}

void raft_image_free(RaftImage *image)
{
    free(image->rgb);
    *image = (RaftImage){0};
}
