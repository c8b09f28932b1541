"""How schema names become C names, and how schema types become C types."""

import re

from schema import BUILTINS, list_of

# Words that C or a system header has taken: a member of that name gets a q_ prefix.
TAKEN = set("""auto break case char const continue default do double else enum extern float for goto if inline int long
register restrict return short signed sizeof static struct switch typedef union unsigned void volatile while bool true
false asm typeof errno unix linux i386 stdin stdout stderr""".split())


def member(name):
    c = name.replace("-", "_")
    return "q_" + c if c in TAKEN or c[0].isdigit() else c


def function(name):
    """A command's or event's name in a function's name."""
    return name.lower().replace("-", "_")


def upper(name):
    """JobStatus -> JOB_STATUS, Qcow2OverlapChecks -> QCOW2_OVERLAP_CHECKS."""
    name = re.sub(r"([a-z0-9])([A-Z])", r"\1_\2", name)
    name = re.sub(r"([A-Z]+)([A-Z][a-z])", r"\1_\2", name)
    return name.upper()


def constant(enum, value):
    return upper(enum) + "_" + value.upper().replace("-", "_")


def list_name(element):
    """The C name of a list of @element: StrList, Uint64List, BlockInfoList."""
    inner = list_of(element)
    if inner is not None:
        return list_name(inner) + "List"
    return (BUILTINS[element][2] if element in BUILTINS else element) + "List"


def is_pointer(schema, type_name):
    """Is a member of this type a pointer, NULL when absent?"""
    if list_of(type_name) is not None or type_name in ("str", "any"):
        return True
    return type_name not in BUILTINS and schema.types[type_name].kind != "enum"


def ctype(schema, type_name):
    """The C type of a member, with the blank or star that a name follows: "int64_t ", "char *", "FooList *"."""
    element = list_of(type_name)
    if element is not None:
        return list_name(element) + " *"
    if type_name in BUILTINS:
        return BUILTINS[type_name][0]
    return type_name + (" *" if is_pointer(schema, type_name) else " ")


def descriptor(type_name):
    element = list_of(type_name)
    return "qapi_type_" + (list_name(element) if element is not None else type_name)


def string(text):
    """A C string literal."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'
