"""Loads and checks the schema files; every other module works on the objects made here.

The format is described in docs/qapi.md. In short: each file holds an array of definitions, and a definition is an
object whose first key says what it is (enum, struct, union, alternate, command, event).
"""

import json
import os
import re

# Builtin types: schema name -> (C type, JSON type in QEMU's introspection, keyword of its list type)
BUILTINS = {
    "str": ("char *", "string", "Str"),
    "int": ("int64_t ", "int", "Int"),
    "int32": ("int32_t ", "int", "Int32"),
    "uint64": ("uint64_t ", "int", "Uint64"),
    "uint32": ("uint32_t ", "int", "Uint32"),
    "uint16": ("uint16_t ", "int", "Uint16"),
    "uint8": ("uint8_t ", "int", "Uint8"),
    "size": ("uint64_t ", "int", "Size"),
    "bool": ("bool ", "boolean", "Bool"),
    "number": ("double ", "number", "Number"),
    "any": ("Tree *", "value", "Any"),
    "null": (None, "null", None),
}
INTEGERS = ("int", "int32", "uint64", "uint32", "uint16", "uint8", "size")
KINDS = {
    # definition: (keys it must have, keys it may have besides "since" and "features")
    "enum": ({"doc", "values"}, set()),
    "struct": ({"doc", "members"}, {"base"}),
    "union": ({"doc", "base", "discriminator", "branches"}, set()),
    "alternate": ({"doc", "data"}, set()),
    "command": ({"doc"}, {"args", "returns", "errors", "example", "preconfig", "raw"}),
    "event": ({"doc"}, {"data", "example"}),
}
MEMBER_KEYS = {"type", "optional", "default", "doc", "since", "features"}


class SchemaError(Exception):
    """A definition breaks the rules; the text names the file and the definition."""


class Member:
    def __init__(self, name, spec):
        self.name = name
        self.type = spec["type"]  # a type name; a list is written "[T]"
        self.optional = spec.get("optional", False)
        self.has_default = "default" in spec
        self.default = spec.get("default")
        self.doc = spec.get("doc", "")
        self.since = spec.get("since")
        self.features = spec.get("features", [])


class Definition:
    """One definition. Which attributes are there depends on .kind:

    enum: values {name: doc}; struct: base, members; union: base_members, tag, branches {value: struct name};
    alternate: branches {name: type}; command: args (type name or None), returns, preconfig, raw, errors, example;
    event: data (type name or None), example.
    """

    def __init__(self, kind, name, spec, path):
        self.kind = kind
        self.name = name
        self.spec = spec
        self.path = path
        self.doc = spec.get("doc", "")
        self.since = spec.get("since")
        self.features = spec.get("features", [])
        self.members = []  # struct, union: base members included, in order
        self.implicit = False  # made for a command's or event's members; users never see its name


def list_of(type_name):
    """The element type of "[T]", or None."""
    return type_name[1:-1] if type_name.startswith("[") else None


def normalize_type(spec):
    """"T" or ["T"] as the schema writes it -> "T" or "[T]"."""
    if isinstance(spec, list) and len(spec) == 1 and isinstance(spec[0], str):
        return "[" + spec[0] + "]"
    return spec if isinstance(spec, str) else None


class Schema:
    """The whole schema. .definitions keeps the order of the files, .types maps names of types to definitions."""

    def __init__(self):
        self.definitions = []
        self.types = {}
        self.commands = {}
        self.events = {}
        self.files = []

    @classmethod
    def load(cls, where):
        """Reads a folder of *.json or a list of files, checks everything, and returns the schema."""
        if isinstance(where, str):
            where = [os.path.join(where, f) for f in sorted(os.listdir(where)) if f.endswith(".json")]
        schema = cls()
        for path in where:
            schema._load_file(path)
        for d in list(schema.definitions):
            schema._resolve(d)
        for d in schema.definitions:
            schema._check(d)
        return schema

    # ---- reading ----------------------------------------------------------------------------------------------------

    def _load_file(self, path):
        def unique(pairs):
            keys = [k for k, _ in pairs]
            for key in keys:
                if keys.count(key) > 1:
                    raise SchemaError(f"{path}: key '{key}' stands twice in one object")
            return dict(pairs)

        with open(path, encoding="utf-8") as f:
            try:
                content = json.load(f, object_pairs_hook=unique)
            except ValueError as e:
                raise SchemaError(f"{path}: {e}") from e
        self.files.append(path)
        for spec in content:
            self._add(spec, path)

    def _add(self, spec, path):
        kind = next(iter(spec), None)
        if kind == "doc":  # a section's heading for the reference
            self.definitions.append(Definition("section", spec["doc"], {"doc": spec.get("text", "")}, path))
            return
        if kind not in KINDS:
            raise SchemaError(f"{path}: a definition starts with '{kind}'")
        name = spec[kind]
        where = f"{path}: {kind} {name}"
        need, may = KINDS[kind]
        keys = set(spec) - {kind}
        for key in need - keys:
            raise SchemaError(f"{where}: '{key}' is missing")
        for key in keys - need - may - {"since", "features"}:
            raise SchemaError(f"{where}: unknown key '{key}'")
        d = Definition(kind, name, spec, path)
        if kind == "command":
            table = self.commands
            pattern = r"[a-z][a-z0-9]*([-_][a-z0-9]+)*"
        elif kind == "event":
            table = self.events
            pattern = r"[A-Z][A-Z0-9]*(_[A-Z0-9]+)*"
        else:
            table = self.types
            pattern = r"[A-Z][A-Za-z0-9]*"
        if not re.fullmatch(pattern, name):
            raise SchemaError(f"{where}: the name does not match {pattern}")
        if name in table or name in BUILTINS:
            raise SchemaError(f"{where}: defined twice")
        table[name] = d
        self.definitions.append(d)

    def _members(self, specs, where):
        members = []
        for name, spec in specs.items():
            if not re.fullmatch(r"[a-z0-9][a-z0-9]*([-_][a-z0-9]+)*", name):
                raise SchemaError(f"{where}: bad member name '{name}'")
            if not isinstance(spec, dict):
                raise SchemaError(f"{where}.{name}: expected an object with 'type'")
            for key in set(spec) - MEMBER_KEYS:
                raise SchemaError(f"{where}.{name}: unknown key '{key}'")
            spec = dict(spec, type=normalize_type(spec.get("type")))
            if spec["type"] is None:
                raise SchemaError(f"{where}.{name}: bad 'type'")
            members.append(Member(name, spec))
        return members

    # ---- resolving: bases inlined, implicit structs made -------------------------------------------------------------

    def _resolve(self, d):
        where = f"{d.path}: {d.kind} {d.name}"
        if d.kind == "enum":
            d.values = d.spec["values"]
        elif d.kind == "struct":
            d.base = d.spec.get("base")
            d.own_members = self._members(d.spec["members"], where)
            d.members = self._base_members(d.base, where, [d.name]) + d.own_members
        elif d.kind == "union":
            base = d.spec["base"]
            d.base = base if isinstance(base, str) else None
            d.own_members = [] if d.base else self._members(base, where)
            d.members = self._base_members(d.base, where, [d.name]) + d.own_members
            d.tag = d.spec["discriminator"]
            d.branches = d.spec["branches"]
        elif d.kind == "alternate":
            d.branches = {k: normalize_type(t) for k, t in d.spec["data"].items()}
        elif d.kind == "command":
            d.args = self._implicit(d, d.spec.get("args"), camel(d.name) + "Args")
            d.returns = normalize_type(d.spec.get("returns")) if "returns" in d.spec else None
            d.preconfig = d.spec.get("preconfig", False)
            d.raw = d.spec.get("raw", False)
        elif d.kind == "event":
            d.data = self._implicit(d, d.spec.get("data"), camel(d.name.lower()) + "Event", event=True)

    def _base_members(self, base, where, seen):
        if base is None:
            return []
        if base in seen:
            raise SchemaError(f"{where}: '{base}' is its own base")
        b = self.types.get(base)
        if b is None or b.kind != "struct":
            raise SchemaError(f"{where}: the base '{base}' is not a struct")
        below = self._base_members(b.spec.get("base"), where, seen + [base])
        return below + self._members(b.spec["members"], f"{b.path}: struct {base}")

    def _implicit(self, d, spec, name, event=False):
        """The struct that holds a command's arguments or an event's data, made here unless the schema names one."""
        if not spec:
            return None
        where = f"{d.path}: {d.kind} {d.name}"
        if isinstance(spec, str):
            kinds = ("struct",) if event else ("struct", "union")
            if spec not in self.types or self.types[spec].kind not in kinds:
                raise SchemaError(f"{where}: '{spec}' is not a {' or '.join(kinds)}")
            if not event:
                return spec
            members = self._base_members(spec, where, [])
        else:
            members = self._members(spec, where)
        if name in self.types:
            raise SchemaError(f"{where}: the name {name} is taken")
        made = Definition("struct", name, {"doc": d.doc}, d.path)
        made.own_members = made.members = members
        made.base = None
        made.implicit = True
        self.types[name] = made
        return name

    # ---- checking ---------------------------------------------------------------------------------------------------

    def _check(self, d):
        where = f"{d.path}: {d.kind} {d.name}"
        if d.kind == "section":
            return
        if not d.doc:
            raise SchemaError(f"{where}: needs a doc sentence")
        self._check_members(d, where)
        if d.kind == "enum":
            for value, doc in d.values.items():
                if not re.fullmatch(r"[a-z0-9][a-z0-9_-]*", value) or not isinstance(doc, str) or not doc:
                    raise SchemaError(f"{where}: bad value '{value}' or no doc for it")
        elif d.kind == "union":
            self._check_union(d, where)
        elif d.kind == "alternate":
            kinds = [self.json_type(t) if self.exists(t) else None for t in d.branches.values()]
            if None in kinds or len(set(kinds)) != len(kinds):
                raise SchemaError(f"{where}: unknown branch type, or two branches of one JSON type")
        elif d.kind == "command":
            if d.args:
                self._check_members(self.types[d.args], where)
            if d.returns and not self.exists(d.returns):
                raise SchemaError(f"{where}: unknown return type {d.returns}")
        elif d.kind == "event" and d.data:
            self._check_members(self.types[d.data], where)

    def _check_members(self, d, where):
        seen = set()
        for m in d.members:
            w = f"{where}.{m.name}"
            if m.name in seen:
                raise SchemaError(f"{w}: member twice")
            seen.add(m.name)
            if not self.exists(m.type) or m.type == "null":
                raise SchemaError(f"{w}: unknown type {m.type}")
            if not m.doc:
                raise SchemaError(f"{w}: needs a doc sentence")
            if m.has_default and not (m.optional and self._fits(m.default, m.type)):
                raise SchemaError(f"{w}: default {m.default!r} does not fit an optional {m.type}")

    def _check_union(self, d, where):
        tag = next((m for m in d.members if m.name == d.tag), None)
        enum = self.types.get(tag.type) if tag else None
        if enum is None or enum.kind != "enum" or tag.optional:
            raise SchemaError(f"{where}: the discriminator '{d.tag}' must be a required enum member")
        names = {m.name for m in d.members}
        for value, branch in d.branches.items():
            b = self.types.get(branch)
            if value not in enum.spec["values"] or b is None or b.kind not in ("struct", "union"):
                raise SchemaError(f"{where}: bad branch '{value}': '{branch}'")
            for m in b.members:
                if m.name in names:
                    raise SchemaError(f"{where}: branch '{value}' repeats member '{m.name}'")

    def _fits(self, value, type_name):
        if type_name == "bool":
            return isinstance(value, bool)
        if type_name in INTEGERS:
            return isinstance(value, int) and not isinstance(value, bool)
        if type_name == "str":
            return isinstance(value, str)
        d = self.types.get(type_name)
        return d is not None and d.kind == "enum" and value in d.spec["values"]

    def exists(self, type_name):
        element = list_of(type_name)
        if element is not None:
            return self.exists(element) and element != "null"
        return type_name in BUILTINS or type_name in self.types

    def json_type(self, type_name):
        """What JSON shows of a type: string, int, number, boolean, null, object, array or value."""
        if list_of(type_name) is not None:
            return "array"
        if type_name in BUILTINS:
            return BUILTINS[type_name][1]
        kind = self.types[type_name].kind
        return {"enum": "string", "struct": "object", "union": "object", "alternate": "value"}[kind]


def camel(name):
    """drive-mirror, job_status_change -> DriveMirror, JobStatusChange."""
    return "".join(part[:1].upper() + part[1:] for part in re.split("[-_]", name))
