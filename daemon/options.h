/*
 * Options: what the command line and the configuration file say, decoded but not yet done.
 *
 * Both speak the same words, and one table (options.c) holds them: how a word's value is decoded, how it is carried
 * out, and what --help says about it. Nothing here opens anything, so --check-config needs no more than this.
 */
#pragma once
#include "daemon/daemon.h"
#include "qapi/types.h"

/* How a word's value is written. */
typedef enum OptionForm {
    OPTION_FLAG,   /* no value on the command line; on or off in the file */
    OPTION_TEXT,   /* a path */
    OPTION_KEYVAL, /* key=value pairs; a section in the file */
} OptionForm;

typedef struct OptionWord {
    const char *name; /* without the dashes */
    char letter;      /* short form on the command line, 0: none */
    OptionForm form;
    bool only_command_line;
    const char *needs;       /* the word without which it means nothing, NULL: none */
    const char *implied_key; /* KEYVAL: the key of a first part without "=", NULL: none */
    const char *section_key; /* KEYVAL: the key that the name in a section's header stands for, NULL: takes none */
    const QapiType *type;    /* KEYVAL: what it decodes as; NULL: decode and free do it */
    void *(*decode)(Tree *tree, QapiSource source, GError **error);
    void (*free_value)(void *value);
    /* Does it, at start-up, in the order given. NULL: process-wide, somebody else looks it up. */
    bool (*co_apply)(Daemon *daemon, void *value, GError **error);
    const char *value_help; /* what stands after the word in --help */
    const char *help;
} OptionWord;

/* The line of a configuration file that set a key. */
typedef struct OptionLine {
    char *key;
    unsigned line;
} OptionLine;

typedef struct Option {
    const OptionWord *word;
    char *text; /* TEXT: the value */
    Tree *tree; /* KEYVAL: what is to be decoded */
    QapiSource source;
    char *file;    /* the configuration file it stands in; NULL: the command line */
    unsigned line; /* of its header or its own line */
    char *title;   /* for messages, "--export nbd,id=e" or "[export "e"]" */
    GArray *lines; /* of OptionLine, for sections */
    void *value;   /* KEYVAL: decoded */
} Option;

typedef struct Options {
    GPtrArray *list; /* of Option *, in the order given */
} Options;

extern const OptionWord option_words[]; /* ends with a NULL name */

/* Frees the value and what it was made from, and wipes both: it is applied, and will not be asked for again. */
void option_forget(Option *option);
Options *options_new(void);
void options_free(Options *options); /* takes NULL */
G_DEFINE_AUTOPTR_CLEANUP_FUNC(Options, options_free)

/* By name without dashes; NULL: there is none. */
const OptionWord *option_find(const char *name);
/* The word that is spelled most like @name; NULL when none is near. */
const OptionWord *option_nearest(const char *name);

/* Appends an option without a value; strings are copied. */
Option *options_add(Options *options, const OptionWord *word, const char *file, unsigned line, const char *title);

/* Decodes the tree. Errors begin with where it stands: "FILE:LINE: [export "e"]: …" or "--export ARGS: …". */
bool option_decode(Option *option, GError **error);

/* Puts in front of *@error where @option stands; the key that the text names gives the line. */
void option_blame(const Option *option, GError **error);

/* The text of the last @name given, NULL when it was not; "" for a flag that is on. */
const char *options_last(const Options *options, const char *name);

/* The command line, configuration files that it names included, all decoded. */
bool options_parse_argv(Options *options, int argc, char **argv, GError **error);

/* config.c: adds what stands in file @path, decoded. */
bool config_read(Options *options, const char *path, GError **error);

/* check.c: names that two options give, and names that are used but given by none. */
bool options_check_names(const Options *options, GError **error);

/* check.c: refuses what a process in the background cannot have. */
bool options_check_background(const Options *options, GError **error);

/* The text of --help. */
void options_print_help(void);
