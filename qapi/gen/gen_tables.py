"""qapi/tables.c: the descriptors that the engine walks, and the text that query-qmp-schema answers."""

import json

import cnames
import introspect
from gen_types import all_lists
from schema import list_of

HEAD = """/* Generated from qapi/schema by qapi/gen. */
#include "qapi/commands.h"
#include "qapi/events.h"
#include "qapi/rt/introspect.h"

"""


def preset(m):
    if not m.has_default:
        return "NULL"
    if isinstance(m.default, bool):
        return '"on"' if m.default else '"off"'
    return cnames.string(str(m.default))


def members(schema, d):
    lines = [f"static const QapiMember members_{d.name}[] = {{"]
    for m in d.members:
        has = -1
        if m.optional and not cnames.is_pointer(schema, m.type):
            has = f"offsetof({d.name}, has_{m.name.replace('-', '_')})"
        optional = "true" if m.optional else "false"
        lines.append(f"    {{{cnames.string(m.name)}, &{cnames.descriptor(m.type)}, "
                     f"offsetof({d.name}, {cnames.member(m.name)}), {has}, {optional}, {preset(m)}}},")
    return lines + ["};"]


def struct(schema, d):
    lines = members(schema, d) if d.members else []
    fields = [".kind = QAPI_KIND_STRUCT", f".name = {cnames.string(d.name)}", f".size = sizeof({d.name})"]
    if d.members:
        fields += [f".members = members_{d.name}", f".n_members = {len(d.members)}"]
    if d.kind == "union":
        index = [m.name for m in d.members].index(d.tag)
        enum = schema.types[d.members[index].type]
        lines += [f"static const QapiType *const branches_{d.name}[] = {{"]
        for value in enum.values:
            branch = d.branches.get(value)
            lines.append("    " + (f"&qapi_type_{branch}," if branch else "NULL,"))
        lines += ["};"]
        fields += [f".tag = &members_{d.name}[{index}]", f".branches = branches_{d.name}"]
        if d.branches:
            fields += [f".branch_offset = offsetof({d.name}, u)"]
    lines += [f"const QapiType qapi_type_{d.name} = {{" + ", ".join(fields) + "};", ""]
    return lines


def alternate(d):
    lines = [f"static const QapiMember members_{d.name}[] = {{"]
    for name, t in d.branches.items():
        lines.append(f"    {{{cnames.string(name)}, &{cnames.descriptor(t)}, offsetof({d.name}, u), -1, false, NULL}},")
    lines += ["};", f"const QapiType qapi_type_{d.name} = {{.kind = QAPI_KIND_ALTERNATE, "
              f".name = {cnames.string(d.name)}, .size = sizeof({d.name}), .members = members_{d.name}, "
              f".n_members = {len(d.branches)}}};", ""]
    return lines


def enum(d):
    values = ", ".join(cnames.string(v) for v in d.values)
    return [f"static const char *const values_{d.name}[] = {{{values}}};",
            f"const QapiType qapi_type_{d.name} = {{.kind = QAPI_KIND_ENUM, .name = {cnames.string(d.name)}, "
            f".size = sizeof({d.name}), .max = {len(d.values)}, .values = values_{d.name}}};", ""]


def introspection(schema):
    """The compact JSON text, cut into literals of moderate length."""
    text = json.dumps(introspect.schema_info(schema), separators=(",", ":"))
    chunks = [text[i:i + 100] for i in range(0, len(text), 100)]
    return ["const char qapi_introspection[] =\n    " + "\n    ".join(cnames.string(c) for c in chunks) + ";",
            f"const size_t qapi_introspection_len = {len(text)};", ""]


def generate(schema):
    lines = []
    for d in schema.types.values():
        if d.kind == "enum":
            lines += enum(d)
        elif d.kind == "alternate":
            lines += alternate(d)
        else:
            lines += struct(schema, d)
    for element in all_lists(schema):
        name = cnames.list_name(element)
        lines += [f"const QapiType qapi_type_{name} = {{.kind = QAPI_KIND_LIST, .name = {cnames.string(name)}, "
                  f".size = sizeof({name}), .element = &{cnames.descriptor(element)}}};"]
    lines += [""] + introspection(schema)
    return HEAD + "\n".join(lines) + "\n"
