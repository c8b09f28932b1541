/*
 * The images of the sweep: what kinds there are, how they are made and opened, and who judges what is left of them.
 */
#pragma once
#include "block/crypto/hash.h"
#include "block/graph/check.h"
#include "drivers-image.h"

enum { SIZE = 256 * KIB };

static char what[200];   /* what is being done, for whoever reads of a failure */
static char *last_error; /* of the last command that failed; NULL: none did */

static void G_GNUC_PRINTF(1, 2) bad(const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    g_autofree char *text = g_strdup_vprintf(fmt, args);
    va_end(args);

    fail_msg("%s: %s (last error: %s); kept in %s with SD_KEEP", what, text, last_error ? last_error : "none", folder);
}

/* ---- layouts: what the images are -------------------------------------------------------------------------------- */

typedef struct Layout {
    const char *name, *format;
    const char *create;   /* options of qemu-img create */
    const char *options;  /* members of the node's JSON */
    uint64_t cluster;     /* bytes */
    unsigned runs_max;    /* how many of an operation's I/Os fail, at least, where there are that many */
    bool luks;            /* all but the backing file is encrypted */
    const char *data_raw; /* data are in other files: data_file_raw. NULL: they are not */
} Layout;

/* A cache this small holds one table of 512 bytes of each kind or two: tables come and go. */
#define SMALL ",'l2-cache-entry-size':512,'l2-cache-size':1024,'refcount-cache-size':2048"
/* Little work to unlock, and little room for key slots. */
#define LUKS                                                                                                           \
    ",encrypt.format=luks,encrypt.key-secret=k,encrypt.iter-time=1,encrypt.cipher-alg=aes-128,encrypt.cipher-mode=cbc" \
    ",encrypt.hash-alg=sha512"

#define KIND(n, f, c, o, bytes, runs, ...)                                                                             \
    {                                                                                                                  \
        .name = n, .format = f, .create = "-o " c, .options = o, .cluster = bytes, .runs_max = runs, ##__VA_ARGS__     \
    }

static const Layout layouts[] = {
    KIND("4k", "qcow2", "cluster_size=4k", "", 4 * KIB, 36),
    KIND("512", "qcow2", "cluster_size=512,refcount_bits=64", SMALL, 512, 36),
    KIND("v2", "qcow2", "cluster_size=1k,compat=0.10", "", KIB, 36),
    KIND("lazy", "qcow2", "cluster_size=2k,lazy_refcounts=on", "", 2 * KIB, 36),
    KIND("extl2", "qcow2", "cluster_size=16k,extended_l2=on", "", 16 * KIB, 36),
    KIND("luks", "qcow2", "cluster_size=4k" LUKS, "", 4 * KIB, 16, .luks = true),
    KIND("data", "qcow2", "cluster_size=4k", "", 4 * KIB, 36, .data_raw = "off"),
    KIND("raw data", "qcow2", "cluster_size=4k", "", 4 * KIB, 36, .data_raw = "on"),
    KIND("qed", "qed", "cluster_size=4k,table_size=2", "", 4 * KIB, 36),
};

static const Layout *layout;

static bool is_qed(void)
{
    return strcmp(layout->format, "qed") == 0;
}

/* Opening an image for writing may repair it: before that it need not be whole. */
static bool is_repaired_on_open(void)
{
    return is_qed() || strcmp(layout->name, "lazy") == 0;
}

static bool has_packed(void)
{
    return !is_qed() && !layout->luks && !layout->data_raw;
}

/* ---- the images -------------------------------------------------------------------------------------------------- */

static const char *const files[] = {"base", "top", "target", "base.data", "top.data", "target.data"};
enum { IMAGES = 3 };
typedef struct Template {
    char *data; /* NULL: there is no such file */
    gsize len;
} Template;
/* What is there before an operation. Making it takes a dozen processes, and many operations begin with the same. */
typedef struct Beginning {
    bool made;
    Template templates[G_N_ELEMENTS(files)];
    uint8_t reads[SIZE]; /* "top" */
} Beginning;
static const Beginning *beginning;
static bool target_is_template; /* not an overlay that the operation makes */

static void put_file(const char *name, const Template *t)
{
    g_autofree char *path = in_folder(name);

    if (t->data)
        assert_true(g_file_set_contents(path, t->data, (gssize)t->len, NULL));
    else
        unlink(path);
}

static void put_files(void)
{
    for (unsigned i = 0; i < G_N_ELEMENTS(files); i++)
        put_file(files[i], &beginning->templates[i]);
}

/* Options of a node for the image @name, and @more members. */
static char *image_json(const char *name, const char *more)
{
    bool overlay = strcmp(name, "target") == 0 && !target_is_template;
    g_autofree char *backing = overlay && layout->luks ? image_json("top", "") : NULL;
    g_autofree char *below = backing ? g_strdup_printf(",'backing':%s", backing) : g_strdup("");
    g_autofree char *data =
        layout->data_raw && !overlay
            ? g_strdup_printf(",'data-file':{'driver':'file','filename':'%s/%s.data'}", folder, name)
            : g_strdup("");

    return g_strdup_printf(
        "{'driver':'%s','file':{'driver':'file','filename':'%s/%s'}%s%s%s%s%s}", layout->format, folder, name, data,
        below, layout->luks && !overlay ? ",'encrypt':{'format':'luks','key-secret':'k'}" : "", layout->options, more);
}

/* Words that name the image to a tool of QEMU. */
static char *image_words(const char *name)
{
    bool overlay = strcmp(name, "target") == 0 && !target_is_template;

    if (!layout->luks || strcmp(name, "base") == 0)
        return g_strdup_printf("-f %s %s", layout->format, name);
    return g_strdup_printf("--object secret,id=k,data=k --image-opts driver=qcow2,file.filename=%s%s", name,
                           overlay ? ",backing.driver=qcow2,backing.file.filename=top"
                                     ",backing.encrypt.format=luks,backing.encrypt.key-secret=k"
                                   : ",encrypt.format=luks,encrypt.key-secret=k");
}

static void create_image(const char *name, bool backing)
{
    g_autofree char *data =
        layout->data_raw ? g_strdup_printf(",data_file=%s/%s.data,data_file_raw=%s", folder, name, layout->data_raw)
                         : g_strdup("");
    g_autofree char *words =
        g_strdup_printf("%s%s %s %s", layout->create, data, backing ? "-b base -F" : "", backing ? layout->format : "");

    if (layout->luks && strcmp(name, "base") == 0)
        shell_must(1, "qemu-img create -q -f qcow2 -o cluster_size=4k base 256k");
    else if (!layout->luks)
        shell_must(1, "rm -f %s.data && qemu-img create -q -f %s %s %s 256k", name, layout->format, words, name);
    else { /* once: it takes a second, and on a busy machine several attempts */
        static Template made[2];
        g_autofree char *path = in_folder(name);
        for (unsigned i = 0; !made[backing].data; i++) {
            shell_must(i < 49 ? 3 : 1, "qemu-img create -q --object secret,id=k,data=k -f qcow2 %s %s 256k || rm -f %s",
                       words, name, name);
            g_file_get_contents(path, &made[backing].data, &made[backing].len, NULL);
        }
        put_file(name, &made[backing]);
    }
}

static void make_beginning(Beginning *ret, bool backing, bool target)
{
    const char *packed = has_packed() ? "-c 'write -q -c -P 0x23 208k 16k'" : "-c 'write -q -P 0x23 208k 16k'";
    g_autofree char *base_words = image_words("base"), *top = image_words("top"), *target_words = image_words("target");
    g_autofree char *raw = in_folder("raw"), *data = NULL;
    gsize len;

    shell_must(1, "rm -f base top target base.data top.data target.data");
    create_image("base", false);
    shell_must(1, "qemu-io -c 'write -q -P 0x11 0 256k' %s", base_words);
    create_image("top", backing);
    shell_must(1, "qemu-io -c 'write -q -P 0x21 0 20k' -c 'write -q -P 0x22 96k 8k' %s %s", is_qed() ? "" : packed,
               top);
    shell_must(1, "qemu-img convert -O raw %s raw", top);
    if (target) {
        create_image("target", false);
        shell_must(1, "qemu-io -c 'write -q -P 0xee 0 256k' %s", target_words);
    }
    for (unsigned i = 0; i < G_N_ELEMENTS(files); i++) {
        g_autofree char *path = in_folder(files[i]);
        g_clear_pointer(&ret->templates[i].data, g_free);
        g_file_get_contents(path, &ret->templates[i].data, &ret->templates[i].len, NULL);
    }
    assert_true(g_file_get_contents(raw, &data, &len, NULL) && len == SIZE);
    memcpy(ret->reads, data, SIZE);
    ret->made = true;
}

/* Sets @beginning. @target: an image of the same layout. */
static void prepare_beginning(bool backing, bool target)
{
    static Beginning all[G_N_ELEMENTS(layouts)][2][2];
    Beginning *b = &all[layout - layouts][backing][target];

    target_is_template = target;
    if (!b->made || layout->data_raw) /* images name their data files by the folder */
        make_beginning(b, backing, target);
    beginning = b;
}

/* ---- the judges -------------------------------------------------------------------------------------------------- */

static unsigned states, judged; /* by us; by qemu-img, too */
static GHashTable *known;       /* states that were judged */

static void on_finding(void *opaque, const char *text)
{
    GString *said = opaque;

    if (said->len < 2000)
        g_string_append_printf(said, "\n%s", text);
}

/* As an exit code of qemu-img check: 0 whole, 2 corrupt, 3 leaks, 1 cannot be said. */
static int our_co_verdict(const char *path, GString *said)
{
    const CheckOptions options = {.message = on_finding, .opaque = said};
    g_autoptr(GError) error = NULL;
    CheckResult result = {0};

    if (!image_co_check(graph, path, layout->format, &options, &result, &error)) {
        on_finding(said, error->message);
        return 1;
    }
    return result.check_errors ? 1 : result.corruptions ? 2 : result.leaks ? 3 : 0;
}

/* Is the file an image that is whole? Each content is looked at once. */
static void judge_co_file(const char *name, bool clean)
{
    static int every = -1;
    g_autofree char *path = in_folder(name), *data = NULL, *words = image_words(name);
    g_autoptr(GString) findings = g_string_new(NULL);
    struct {
        uint8_t sum[HASH_MAX_BYTES];
        uint64_t clean;
    } key = {.clean = clean};
    gsize len;
    int code, theirs;

    if (!g_file_get_contents(path, &data, &len, NULL) || len < 4 || memcmp(data, is_qed() ? "QED" : "QFI\xfb", 4) != 0)
        return;
    hash_digest(Q_CRYPTO_HASH_ALGORITHM_SHA256, data, len, NULL, 0, key.sum);
    if (!g_hash_table_add(known, g_bytes_new(&key, sizeof(key))))
        return;
    states++;
    code = our_co_verdict(path, findings);
    if (code != 0 && (clean || code != 3))
        bad("%s: the checker's verdict is %d%s", name, code, findings->str);
    if (every < 0)
        every = g_getenv("SD_JUDGE") ? MAX(atoi(g_getenv("SD_JUDGE")), 1) : 4;
    if (states % (unsigned)every)
        return;
    judged++;
    theirs = shell("qemu-img check -U %s", words);
    if (theirs != code)
        bad("qemu-img check says %d of %s, our checker %d%s", theirs, name, code, findings->str);
}

static void judge_co_all(bool clean)
{
    for (unsigned i = 0; i < IMAGES; i++)
        judge_co_file(files[i], clean);
}
