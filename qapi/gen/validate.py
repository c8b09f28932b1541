"""Holds replies and events of a running daemon against the schema.

    schema = Schema.load("qapi/schema")
    schema.check_reply("query-jobs", reply)    # the whole message, an error as well
    schema.check_event(event)                  # the whole message

A mismatch raises AssertionError with the path of the member: missing, unknown, of the wrong type, out of range, or an
enum value that does not exist.
"""

import schema as schema_module
from schema import BUILTINS, list_of

ERROR_CLASSES = ("GenericError", "CommandNotFound", "DeviceNotActive", "DeviceNotFound")
RANGES = {
    "int": (-2**63, 2**63 - 1),
    "int32": (-2**31, 2**31 - 1),
    "uint64": (0, 2**64 - 1),
    "uint32": (0, 2**32 - 1),
    "uint16": (0, 2**16 - 1),
    "uint8": (0, 2**8 - 1),
    "size": (0, 2**64 - 1),
}


def json_type(value):
    """The introspection's word for the JSON type of a decoded value."""
    if value is None:
        return "null"
    for kind, word in ((bool, "boolean"), (int, "int"), (float, "number"), (str, "string"), (list, "array"),
                       (dict, "object")):
        if isinstance(value, kind):
            return word
    raise AssertionError(f"not a JSON value: {value!r}")


class Schema(schema_module.Schema):
    def check_reply(self, command, reply):
        """@reply is the whole message: {"return": …} or {"error": …}, with or without "id"."""
        self._expect(reply, "object", command)
        keys = set(reply) - {"id"}
        if keys == {"error"}:
            self._check_error(reply["error"], command)
        elif keys == {"return"}:
            self.check_return(command, reply["return"])
        else:
            raise AssertionError(f"{command}: neither a return value nor an error, or more than that: {reply!r}")

    def check_return(self, command, value):
        """@value is what the message holds as "return"."""
        if command not in self.commands:
            raise AssertionError(f"{command}: the schema has no such command")
        returns = self.commands[command].returns
        if returns is None:
            if value != {}:
                raise AssertionError(f"{command}: returned {value!r} and not {{}}")
        else:
            self.check(returns, value, command)

    def _check_error(self, error, command):
        self._expect(error, "object", f"{command}: error")
        if set(error) != {"class", "desc"} or error["class"] not in ERROR_CLASSES:
            raise AssertionError(f"{command}: not an error of a known class: {error!r}")
        self._expect(error["desc"], "string", f"{command}: desc")

    def check_event(self, event, data=None):
        """The whole message, or the event's name and its data (None where it has none)."""
        if isinstance(event, dict):
            if set(event) - {"data"} != {"event", "timestamp"}:
                raise AssertionError(f"not an event: {event!r}")
            event, data = event["event"], event.get("data")
        if event not in self.events:
            raise AssertionError(f"{event}: the schema has no such event")
        type_name = self.events[event].data
        if type_name is None:
            if data is not None:
                raise AssertionError(f"{event}: has data {data!r} and should have none")
        elif data is None:
            raise AssertionError(f"{event}: has no data")
        else:
            self.check(type_name, data, event)

    def check_arguments(self, command, arguments):
        """For those who want to know before sending: do the arguments fit?"""
        args = self.commands[command].args
        if args is not None:
            self.check(args, arguments, command)
        elif arguments:
            raise AssertionError(f"{command}: takes no arguments")

    def check(self, type_name, value, path):
        element = list_of(type_name)
        if element is not None:
            self._expect(value, "array", path)
            for i, item in enumerate(value):
                self.check(element, item, f"{path}[{i}]")
        elif type_name in BUILTINS:
            self._check_builtin(type_name, value, path)
        else:
            d = self.types[type_name]
            {"enum": self._check_enum, "alternate": self._check_alternate, "struct": self._check_object,
             "union": self._check_object}[d.kind](d, value, path)

    def _expect(self, value, word, path):
        got = json_type(value)
        if got != word and (word, got) != ("number", "int"):
            raise AssertionError(f"{path}: expected {word}, got {value!r}")

    def _check_builtin(self, name, value, path):
        if name == "any":
            return
        self._expect(value, BUILTINS[name][1], path)
        if name in RANGES and not RANGES[name][0] <= value <= RANGES[name][1]:
            raise AssertionError(f"{path}: {value} is out of the range of {name}")

    def _check_enum(self, d, value, path):
        self._expect(value, "string", path)
        if value not in d.values:
            raise AssertionError(f"{path}: '{value}' is not a value of {d.name}")

    def _check_alternate(self, d, value, path):
        got = json_type(value)
        for branch in d.branches.values():
            if self.json_type(branch) == got:
                self.check(branch, value, path)
                return
        raise AssertionError(f"{path}: {value!r} fits no branch of {d.name}")

    def _check_object(self, d, value, path):
        self._expect(value, "object", path)
        known = set()
        self._check_value_members(d, value, path, known)
        for name in value:
            if name not in known:
                raise AssertionError(f"{path}.{name}: unknown member, {d.name} has none such")

    def _check_value_members(self, d, value, path, known):
        for m in d.members:
            known.add(m.name)
            if m.name in value:
                self.check(m.type, value[m.name], f"{path}.{m.name}")
            elif not m.optional:
                raise AssertionError(f"{path}.{m.name}: missing")
        if d.kind == "union":
            branch = d.branches.get(value[d.tag])
            if branch is not None:
                self._check_value_members(self.types[branch], value, path, known)
