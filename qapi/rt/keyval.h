/*
 * The command line's key=value,key.sub=value,list.0=value syntax.
 */
#pragma once
#include "qapi/rt/type.h"

/* Is this option spelled as JSON: does it start with '{' or "json:"? */
bool keyval_is_json(const char *text);

/*
 * Parses an option into a tree of objects and lists whose scalars are strings, for qapi_decode_keyval_Foo(). Commas
 * in values are doubled. Dots descend into objects; objects whose keys are all numbers are lists, which must count
 * 0, 1, 2 … without a gap. A first element without '=' is the value of @implied_key (NULL: there is none); any later
 * one stands for key=on, and "noserver", "nowait" for server=off, wait=off. A repeated key overrides.
 *
 * Text that keyval_is_json() is parsed as JSON and returned as it is. The caller owns the tree; NULL sets @error, whose
 * text names the key.
 */
Tree *keyval_parse(const char *text, const char *implied_key, GError **error);

/*
 * The same by steps, for the configuration file: start with tree_object(), put pairs, and let keyval_finish() turn
 * numbered keys into lists. keyval_finish() takes the tree over, also when it fails.
 */
bool keyval_put(Tree *root, const char *key, const char *value, GError **error);
Tree *keyval_finish(Tree *root, GError **error);
