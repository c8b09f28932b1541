"""query-qmp-schema: the schema in QEMU's SchemaInfo form.

Names of builtin types, commands and events are real; all other types are known by numbers only, so that clients match
on what things look like and not on our names for them.
"""

from schema import BUILTINS, INTEGERS, list_of


class Introspection:
    def __init__(self, schema):
        self.schema = schema
        self.numbers = {}
        self.info = []
        self.todo = []

    def name(self, type_name):
        """The name of a type in the answer; new types are queued."""
        if type_name is None:
            type_name = ""  # the empty object
        if type_name in INTEGERS:
            type_name = "int"
        element = list_of(type_name)
        if type_name not in self.numbers:
            if type_name in BUILTINS:
                masked = type_name
            elif element is not None:
                masked = "[" + self.name(element) + "]"
            else:
                masked = str(sum(not (n in BUILTINS or list_of(n) is not None) for n in self.numbers))
            self.numbers[type_name] = masked
            self.todo.append(type_name)
        return self.numbers[type_name]

    def add(self, name, meta_type, features=(), **rest):
        entry = {"name": name, "meta-type": meta_type}
        entry.update((k.replace("_", "-"), v) for k, v in rest.items())
        if features:
            entry["features"] = list(features)
        self.info.append(entry)

    def member(self, m):
        entry = {"name": m.name, "type": self.name(m.type)}
        if m.optional:
            entry["default"] = None
        if m.features:
            entry["features"] = m.features
        return entry

    def add_type(self, type_name):
        name = self.numbers[type_name]
        element = list_of(type_name)
        if type_name == "":
            self.add(name, "object", members=[])
        elif element is not None:
            self.add(name, "array", element_type=self.name(element))
        elif type_name in BUILTINS:
            self.add(name, "builtin", json_type=BUILTINS[type_name][1])
        else:
            self.add_named(name, self.schema.types[type_name])

    def add_named(self, name, d):
        if d.kind == "enum":
            self.add(name, "enum", d.features, members=[{"name": v} for v in d.values], values=list(d.values))
        elif d.kind == "alternate":
            self.add(name, "alternate", d.features, members=[{"type": self.name(t)} for t in d.branches.values()])
        else:
            more = {}
            members = [self.member(m) for m in d.members]
            if d.kind == "union":
                tag = next(m for m in d.members if m.name == d.tag)
                values = self.schema.types[tag.type].values
                more = {"tag": d.tag,
                        "variants": [{"case": v, "type": self.name(d.branches.get(v))} for v in values]}
            self.add(name, "object", d.features, members=members, **more)

    def run(self):
        for d in self.schema.commands.values():
            self.add(d.name, "command", d.features, arg_type=self.name(d.args), ret_type=self.name(d.returns))
        for d in self.schema.events.values():
            self.add(d.name, "event", d.features, arg_type=self.name(d.data))
        while self.todo:
            self.add_type(self.todo.pop(0))
        return self.info


def schema_info(schema):
    return Introspection(schema).run()
