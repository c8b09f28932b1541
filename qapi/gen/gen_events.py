"""qapi/events.h and events.c: one emitter per event."""

import cnames

HEAD_H = """/* Generated from qapi/schema by qapi/gen. */
#pragma once
#include "qapi/rt/command.h"
#include "qapi/types.h"

"""
HEAD_C = """/* Generated from qapi/schema by qapi/gen. */
#include "qapi/events.h"

"""


def prototype(d):
    param = f"const {d.data} *event" if d.data else "void"
    return f"void qapi_emit_{cnames.function(d.name)}({param})"


def header(schema):
    return HEAD_H + "".join(prototype(d) + ";\n" for d in schema.events.values())


def source(schema):
    text = HEAD_C
    for d in schema.events.values():
        args = f"&{cnames.descriptor(d.data)}, event" if d.data else "NULL, NULL"
        text += f"{prototype(d)}\n{{\n    qapi_emit({cnames.string(d.name)}, {args});\n}}\n\n"
    return text
