"""The QMP reference in Markdown, straight from the schema."""

import os
import re

from schema import BUILTINS, list_of

INTRO = """# QMP reference

Generated from qapi/schema: every command, event and type that storage-daemon speaks. A type in brackets is a list of
it. Optional members say what their absence means.

"""


def anchor(name):
    return re.sub(r"[^a-z0-9_-]", "", name.lower())


def type_text(schema, type_name):
    element = list_of(type_name)
    if element is not None:
        return "[" + type_text(schema, element) + "]"
    if type_name in BUILTINS:
        return type_name
    return f"[{type_name}](#{anchor(type_name)})"


def value_text(value):
    return {True: "true", False: "false"}.get(value) if isinstance(value, bool) else str(value)


def member_lines(schema, members):
    lines = []
    for m in members:
        notes = ["optional"] if m.optional else []
        if m.has_default:
            notes.append(f"default `{value_text(m.default)}`")
        if m.since:
            notes.append(f"since {m.since}")
        notes += m.features
        extra = f" ({', '.join(notes)})" if notes else ""
        lines.append(f"- `{m.name}`: {type_text(schema, m.type)}{extra}. {m.doc}")
    return lines


def body(schema, d):
    if d.kind == "enum":
        return [f"- `{value}`: {doc}" for value, doc in d.values.items()]
    if d.kind == "alternate":
        return ["One of:", ""] + [f"- `{n}`: {type_text(schema, t)}" for n, t in d.branches.items()]
    if d.kind in ("struct", "union"):
        lines = [f"- The members of {type_text(schema, d.base)}"] if d.base else []
        lines += member_lines(schema, d.own_members)
        if d.kind == "union":
            lines += [f"- Where `{d.tag}` is `{v}`: the members of {type_text(schema, b)}" for v, b in d.branches.items()]
        return lines
    used = d.args if d.kind == "command" else d.data
    lines = []
    if used:
        t = schema.types[used]
        lines = ["Arguments:" if d.kind == "command" else "Data:", ""]
        lines += member_lines(schema, t.own_members) if t.implicit else [f"- The members of {type_text(schema, used)}"]
    if d.kind == "command" and d.returns:
        lines += ["", f"Returns: {type_text(schema, d.returns)}"]
    errors = d.spec.get("errors", [])
    if errors:
        lines += ["", "Errors:", ""] + [f"- {e}" for e in errors]
    if "example" in d.spec:
        lines += ["", "```"] + d.spec["example"] + ["```"]
    return lines


def definition(schema, d):
    word = d.kind if d.kind in ("command", "event") else f"type: {d.kind}"
    since = f", since {d.since}" if d.since else ""
    features = f", {', '.join(d.features)}" if d.features else ""
    lines = [f"### {d.name}", "", f"*({word}{since}{features})* {d.doc}", ""]
    return lines + body(schema, d) + [""]


def generate(schema):
    text, path = INTRO, None
    for d in schema.definitions:
        if d.path != path:
            path = d.path
            if d.kind != "section":
                text += f"## {os.path.splitext(os.path.basename(path))[0]}\n\n"
        if d.kind == "section":
            text += f"## {d.name}\n\n" + (d.doc + "\n\n" if d.doc else "")
        else:
            text += "\n".join(definition(schema, d)) + "\n"
    return text
