"""qapi/commands.h: prototypes of the handlers that daemon/ writes by hand; qapi/commands.c: the dispatcher's table."""

import cnames

HEAD_H = """/* Generated from qapi/schema by qapi/gen. */
#pragma once
#include "qapi/rt/command.h"
#include "qapi/types.h"

/* Sorted by name. */
extern const QapiCommand qapi_commands[];
extern const size_t qapi_n_commands;

"""
HEAD_C = """/* Generated from qapi/schema by qapi/gen. */
#include "qapi/commands.h"

"""


def return_type(schema, d):
    """The C type of a command's *ret with its trailing blank or star, or None."""
    if d.returns is None:
        return None
    return cnames.ctype(schema, "any" if d.raw else d.returns)


def prototype(schema, d):
    params = ["QmpContext *ctx"]
    if d.args:
        params.append(f"const {d.args} *arg")
    if d.returns:
        params.append(f"{return_type(schema, d)}*ret")
    params.append("GError **error")
    return f"bool qmp_co_{cnames.function(d.name)}({', '.join(params)})"


def header(schema):
    return HEAD_H + "".join(prototype(schema, d) + ";\n" for d in schema.commands.values())


def source(schema):
    text = HEAD_C
    for d in schema.commands.values():
        args = ["ctx"] + (["arg"] if d.args else []) + (["ret"] if d.returns else []) + ["error"]
        name = cnames.function(d.name)
        text += (f"static bool call_co_{name}(QmpContext *ctx, const void *arg, void *ret, GError **error)\n"
                 f"{{\n    return qmp_co_{name}({', '.join(args)});\n}}\n")
    text += "\nconst QapiCommand qapi_commands[] = {\n"
    for d in sorted(schema.commands.values(), key=lambda d: d.name.encode()):
        arg = "&" + cnames.descriptor(d.args) if d.args else "NULL"
        ret = "NULL"
        if d.returns:
            ret = "&" + cnames.descriptor("any" if d.raw else d.returns)
        preconfig = "true" if d.preconfig else "false"
        text += f"    {{{cnames.string(d.name)}, {arg}, {ret}, {preconfig}, call_co_{cnames.function(d.name)}}},\n"
    return text + "};\nconst size_t qapi_n_commands = G_N_ELEMENTS(qapi_commands);\n"
