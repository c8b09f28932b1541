/*
 * A main() for fuzz targets where libFuzzer is not linked: feeds them every file of the folders and files named, so
 * that what a fuzzer once found stays found. Also tries each input cut short at some lengths.
 */
#include <dirent.h>
#include <glib.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static unsigned inputs;

static void try_input(const char *data, size_t size)
{
    /* A copy of its exact size, so that a sanitizer sees a read past the end. */
    g_autofree uint8_t *copy = g_memdup2(data, size);
    static const uint8_t nothing[1];
    LLVMFuzzerTestOneInput(copy ? copy : nothing, size);
    inputs++;
}

static bool try_file(const char *path)
{
    g_autofree char *data = NULL;
    size_t size;
    g_autoptr(GError) error = NULL;
    if (!g_file_get_contents(path, &data, &size, &error)) {
        fprintf(stderr, "%s\n", error->message);
        return false;
    }
    try_input(data, size);
    for (size_t cut = size / 2; cut > 0; cut /= 2)
        try_input(data, size - cut);
    return true;
}

static bool try_path(const char *path)
{
    g_autoptr(GDir) dir = g_dir_open(path, 0, NULL);
    if (!dir)
        return try_file(path);
    const char *name;
    bool ok = true;
    while ((name = g_dir_read_name(dir))) {
        g_autofree char *file = g_build_filename(path, name, NULL);
        ok = try_file(file) && ok;
    }
    return ok;
}

int main(int argc, char **argv)
{
    bool ok = argc > 1;
    for (int i = 1; i < argc; i++)
        ok = try_path(argv[i]) && ok;
    printf("%u inputs\n", inputs);
    return ok && inputs ? 0 : 1;
}
