#!/usr/bin/env python3
"""Makes C code or the QMP reference from the schema.

generate.py --out DIR SCHEMA...    writes types.h, commands.h, events.h, tables.c, commands.c, events.c into DIR
generate.py --docs FILE SCHEMA...  writes the QMP reference in Markdown (SCHEMA defaults to the project's own)
"""

import argparse
import os
import sys

import docs
import gen_commands
import gen_events
import gen_tables
import gen_types
from schema import Schema, SchemaError


def write(path, text):
    """Leaves a file alone that would not change, so that nothing is rebuilt for a doc sentence."""
    if os.path.exists(path):
        with open(path, encoding="utf-8") as f:
            if f.read() == text:
                return
    with open(path + ".tmp", "w", encoding="utf-8") as f:
        f.write(text)
    os.replace(path + ".tmp", path)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", metavar="DIR")
    parser.add_argument("--docs", metavar="FILE")
    parser.add_argument("schema", nargs="*")
    args = parser.parse_args()
    own = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "schema")
    try:
        schema = Schema.load(args.schema or own)
    except SchemaError as e:
        sys.exit(f"generate.py: {e}")
    if args.out:
        os.makedirs(args.out, exist_ok=True)
        for name, text in (
            ("types.h", gen_types.generate(schema)),
            ("commands.h", gen_commands.header(schema)),
            ("events.h", gen_events.header(schema)),
            ("tables.c", gen_tables.generate(schema)),
            ("commands.c", gen_commands.source(schema)),
            ("events.c", gen_events.source(schema)),
        ):
            write(os.path.join(args.out, name), text)
    if args.docs:
        write(args.docs, docs.generate(schema))


if __name__ == "__main__":
    main()
