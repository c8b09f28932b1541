/*
 * No daemon here: a loop, a graph, one file in it. Signals keep their default action, since a repair may be cut off at
 * any moment.
 */
#include "daemon/check-image.h"
#include "block/aio/loop.h"
#include "block/graph/check.h"
#include "block/util/error.h"
#include "qapi/rt/json.h"
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define BAR_WIDTH       30
#define REDRAW_US       100000
#define EXIT_FAILED     1
#define EXIT_CORRUPT    2
#define EXIT_LEAKS      3
#define EXIT_NO_CHECKER 63

typedef struct ImageCheck {
    const char *filename, *format;
    bool json;
    CheckOptions options;
    CheckResult result;
    int code;
    Loop *loop;

    /* the bar, on terminals only */
    bool bar, drawn;
    const char *what;
    int64_t began, redraw; /* microseconds */
} ImageCheck;

/* ---- the bar ----------------------------------------------------------------------------------------------------- */

static void bar_clear(ImageCheck *check)
{
    if (check->drawn)
        fputs("\r\033[K", stderr);
    check->drawn = false;
}

static void bar_draw(ImageCheck *check, uint64_t done, uint64_t total, int64_t elapsed)
{
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB", NULL};
    double part = total ? (double)MIN(done, total) / (double)total : 1, rate = (double)done * 1e6 / (double)elapsed;
    uint64_t left = rate > 0 ? (uint64_t)((double)(total - MIN(done, total)) / rate) : 0;
    int filled = (int)(part * BAR_WIDTH);
    unsigned unit = 0;

    for (; rate >= 1024 && units[unit + 1]; unit++)
        rate /= 1024;
    fprintf(stderr, "\r%-20s [%.*s%*s] %3d %%  %.1f %s/s  %" G_GUINT64_FORMAT ":%02u left\033[K", check->what, filled,
            "##############################", BAR_WIDTH - filled, "", (int)(part * 100), rate, units[unit], left / 60,
            (unsigned)(left % 60));
    check->drawn = true;
}

static void on_progress(void *opaque, const char *what, uint64_t done, uint64_t total)
{
    ImageCheck *check = opaque;
    int64_t now;

    if (!check->bar)
        return;
    now = g_get_monotonic_time();
    if (check->what != what) {
        check->what = what;
        check->began = now;
        check->redraw = now + REDRAW_US; /* what is done at once is not shown */
    }
    if (now < check->redraw)
        return;
    check->redraw = now + REDRAW_US;
    bar_draw(check, done, total, now - check->began);
}

static void on_message(void *opaque, const char *text)
{
    bar_clear(opaque);
    fprintf(stderr, "%s\n", text);
}

/* ---- the verdict ------------------------------------------------------------------------------------------------- */

static void add_number(Tree *object, const char *name, uint64_t value, bool always)
{
    if (value || always)
        tree_set(object, name, tree_uint(value));
}

static void print_json(const ImageCheck *check)
{
    const CheckResult *r = &check->result;
    g_autoptr(Tree) object = tree_object();
    g_autofree char *text = NULL;

    add_number(object, "image-end-offset", r->image_end_offset, false);
    add_number(object, "total-clusters", r->total_clusters, false);
    add_number(object, "check-errors", r->check_errors, true);
    add_number(object, "corruptions", r->corruptions, false);
    add_number(object, "leaks", r->leaks, false);
    add_number(object, "corruptions-fixed", r->corruptions_fixed, false);
    add_number(object, "leaks-fixed", r->leaks_fixed, false);
    add_number(object, "allocated-clusters", r->allocated_clusters, false);
    add_number(object, "fragmented-clusters", r->fragmented_clusters, false);
    add_number(object, "compressed-clusters", r->compressed_clusters, false);
    tree_set_string(object, "filename", check->filename);
    tree_set_string(object, "format", r->format);
    text = json_to_str(object, true);
    printf("%s\n", text);
}

static double percent(uint64_t part, uint64_t whole)
{
    return whole ? (double)part * 100 / (double)whole : 0;
}

static void print_human(const ImageCheck *check)
{
    const CheckResult *r = &check->result;

    if (r->corruptions_fixed || r->leaks_fixed)
        printf("The following inconsistencies were found and repaired:\n\n"
               "    %" G_GUINT64_FORMAT " leaked clusters\n"
               "    %" G_GUINT64_FORMAT " corruptions\n\n",
               r->leaks_fixed, r->corruptions_fixed);
    if (!r->corruptions && !r->leaks && !r->check_errors)
        printf("No errors were found on the image.\n");
    if (r->corruptions)
        printf("%" G_GUINT64_FORMAT " errors were found on the image.\n"
               "Data may be corrupted, or further writes to the image may corrupt it.\n",
               r->corruptions);
    if (r->leaks)
        printf("%" G_GUINT64_FORMAT " leaked clusters were found on the image.\n"
               "This means waste of disk space, but no harm to data.\n",
               r->leaks);
    if (r->check_errors)
        printf("%" G_GUINT64_FORMAT " internal errors have occurred during the check.\n", r->check_errors);
    if (r->total_clusters && r->allocated_clusters)
        printf("%" G_GUINT64_FORMAT "/%" G_GUINT64_FORMAT
               " = %.2f%% allocated, %.2f%% fragmented, %.2f%% compressed clusters\n",
               r->allocated_clusters, r->total_clusters, percent(r->allocated_clusters, r->total_clusters),
               percent(r->fragmented_clusters, r->allocated_clusters),
               percent(r->compressed_clusters, r->allocated_clusters));
    if (r->image_end_offset)
        printf("Image end offset: %" G_GUINT64_FORMAT "\n", r->image_end_offset);
}

static int exit_code(const CheckResult *r)
{
    return r->check_errors ? EXIT_FAILED : r->corruptions ? EXIT_CORRUPT : r->leaks ? EXIT_LEAKS : 0;
}

/* ---- the work ---------------------------------------------------------------------------------------------------- */

static void check_co_entry(void *opaque)
{
    ImageCheck *check = opaque;
    g_autoptr(GError) error = NULL;
    Graph *graph = graph_new(check->loop);
    bool ok = image_co_check(graph, check->filename, check->format, &check->options, &check->result, &error);

    bar_clear(check);
    if (ok) {
        if (check->json)
            print_json(check);
        else
            print_human(check);
        check->code = exit_code(&check->result);
    } else {
        fprintf(stderr, "storage-daemon: %s%s%s\n", check->filename, ": ", error->message);
        check->code = check->result.unsupported ? EXIT_NO_CHECKER : EXIT_FAILED;
    }
    graph_free(graph);
    loop_stop(check->loop);
}

static bool parse_options(ImageCheck *check, const Options *options, GError **error)
{
    const char *repair = options_last(options, "repair"), *output = options_last(options, "output");

    for (guint i = 0; i < options->list->len; i++) {
        const char *name = ((const Option *)g_ptr_array_index(options->list, i))->word->name;
        if (!g_str_equal(name, "check") && !g_str_equal(name, "repair") && !g_str_equal(name, "format") &&
            !g_str_equal(name, "output"))
            return error_set(error, "option '--%s' does not go with --check", name);
    }
    check->filename = options_last(options, "check");
    check->format = options_last(options, "format");
    if (output && strcmp(output, "json") && strcmp(output, "human"))
        return error_set(error, "--output must be 'json' or 'human', not '%s'", output);
    check->json = output && !strcmp(output, "json");
    if (repair && strcmp(repair, "leaks") && strcmp(repair, "all"))
        return error_set(error, "--repair must be 'leaks' or 'all', not '%s'", repair);
    if (repair)
        check->options.fix = CHECK_FIX_LEAKS | (!strcmp(repair, "all") ? CHECK_FIX_ERRORS : 0);
    return true;
}

int check_image_main(const Options *options)
{
    g_autoptr(GError) error = NULL;
    ImageCheck check = {.code = EXIT_FAILED, .bar = isatty(STDERR_FILENO)};

    check.options.progress = on_progress;
    check.options.message = on_message;
    check.options.opaque = &check;
    if (parse_options(&check, options, &error))
        check.loop = loop_new(&error);
    if (!check.loop) {
        fprintf(stderr, "storage-daemon: %s\n", error->message);
        return EXIT_FAILED;
    }
    coroutine_start(check.loop, check_co_entry, &check);
    loop_run(check.loop);
    loop_free(check.loop);
    return check.code;
}
