"""qapi/types.h: the C types; macros of qapi/rt/type.h add inline wrappers around the table engine."""

import cnames
from schema import BUILTINS, list_of

HEAD = """/* Generated from qapi/schema by qapi/gen. */
#pragma once
#include "qapi/rt/type.h"

"""

def all_lists(schema):
    """Element types of all lists that exist in C: of every builtin and named type, and lists of lists in use."""
    elements = [b for b in BUILTINS if b != "null"]
    elements += [name for name, d in schema.types.items() if not d.implicit]
    for d in schema.types.values():
        for m in d.members:
            inner = list_of(m.type)
            while inner is not None:
                if inner not in elements:
                    elements.append(inner)
                inner = list_of(inner)
    return elements


def by_dependency(schema):
    """Struct-like types, each after the branches that lie in it by value."""
    done, order = set(), []

    def visit(d):
        if d.name in done:
            return
        done.add(d.name)
        if d.kind == "union":
            for branch in d.branches.values():
                visit(schema.types[branch])
        order.append(d)

    for d in schema.types.values():
        if d.kind in ("struct", "union", "alternate"):
            visit(d)
    return order


def enum(d):
    lines = [f"typedef enum {d.name} {{"]
    lines += [f"    {cnames.constant(d.name, v)}," for v in d.values]
    lines += [f"    {cnames.upper(d.name)}__MAX", f"}} {d.name};", ""]
    return lines


def member_lines(schema, members, indent="    "):
    lines = []
    for m in members:
        if m.optional and not cnames.is_pointer(schema, m.type):
            lines.append(f"{indent}bool has_{m.name.replace('-', '_')};")
        lines.append(f"{indent}{cnames.ctype(schema, m.type)}{cnames.member(m.name)};")
    return lines


def struct(schema, d):
    lines = [f"struct {d.name} {{"]
    if d.kind == "alternate":
        lines += ["    int kind;", "    union {"]
        lines += [f"        {cnames.ctype(schema, t)}{cnames.member(n)};" for n, t in d.branches.items() if t != "null"]
        lines += ["    } u;"]
    else:
        lines += member_lines(schema, d.members)
        if d.kind == "union" and d.branches:
            lines += ["    union {"]
            lines += [f"        {branch} {cnames.member(value)};" for value, branch in d.branches.items()]
            lines += ["    } u;"]
        elif not d.members:
            lines += ["    char q_empty;"]
    lines += ["};"]
    if d.kind == "alternate":
        names = ", ".join(cnames.constant(d.name, n) for n in d.branches)
        lines += [f"enum {{ {names} }};"]
    return lines + [""]


def generate(schema):
    lines = []
    for d in schema.types.values():
        if d.kind == "enum":
            lines += enum(d)
    order = by_dependency(schema)
    lines += [f"typedef struct {d.name} {d.name};" for d in order]
    lines += [""]
    lists = all_lists(schema)
    for element in lists:
        name = cnames.list_name(element)
        lines += [f"typedef struct {name} {{", "    size_t len;", f"    {cnames.ctype(schema, element)}*items;",
                  f"}} {name};"]
    lines += [""]
    for d in order:
        lines += struct(schema, d)
    text = HEAD + "\n".join(lines) + "\n"
    for d in schema.types.values():
        text += f"QAPI_DEFINE_{'ENUM' if d.kind == 'enum' else 'TYPE'}({d.name})\n"
    for element in lists:
        text += f"QAPI_DEFINE_TYPE({cnames.list_name(element)})\n"
    return text
