"""Lint: an include may only point down, no driver is known to anybody, a library is one room's business (LAW 1)."""
import os
import re
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import _source


class Rules:
    def __init__(self, text):
        self.storeys, self.dirs, self.rooms, self.libraries, self.free = [], {}, [], {}, []
        for line in text.splitlines():
            words = line.split('#')[0].split()
            if not words:
                continue
            kind, *rest = words
            if kind == 'storey':
                for d in rest[1:]:
                    self.dirs[d] = len(self.storeys)
                self.storeys.append(rest[0])
            elif kind == 'rooms':
                self.rooms += rest
            elif kind == 'library':
                self.libraries[rest[0]] = rest[1:]
            elif kind == 'free':
                self.free += rest
            else:
                raise ValueError(f'layers.txt: unknown word {kind}')

    def storey(self, name):
        """The index of the storey that a path belongs to, by the longest matching directory; None for none."""
        best = max((d for d in self.dirs if name.startswith(d + '/')), key=len, default=None)
        return None if best is None else self.dirs[best]

    def room(self, name):
        """(parent, room) of a path below a `rooms` directory; None elsewhere."""
        for parent in self.rooms:
            if name.startswith(parent + '/'):
                rest = name[len(parent) + 1:]
                return parent, rest.split('/')[0] if '/' in rest else re.match(r'\w+', rest)[0]
        return None

    def check(self, name, text):
        """Problems of one file."""
        if any(name.startswith(d + '/') for d in self.free):
            return
        for m in re.finditer(r'^[ \t]*#[ \t]*include[ \t]*[<"]([^>"]+)[>"]', _source.strip(text, True), re.M):
            target, line = m[1], text.count('\n', 0, m.start()) + 1
            yield from (f'{name}:{line}: {p}' for p in self.check_include(name, target))

    def check_include(self, name, target):
        for library, homes in self.libraries.items():
            if re.match(rf'{library}\b', target) and not any(name.startswith(h) for h in homes):
                yield f'<{target}> may only be named in {", ".join(homes)}'
        if '/' not in target and os.path.exists(os.path.join(_source.TOP, os.path.dirname(name), target)):
            target = f'{os.path.dirname(name)}/{target}'
        here, there = self.storey(name), self.storey(target)
        if here is not None and there is not None and there > here:
            yield f'{target}: {self.storeys[here]} includes up, from {self.storeys[there]}'
        room = self.room(target)
        if room and room != self.room(name):
            yield f'{target}: the room {room[0]}/{room[1]} is not to be looked into'


def problems():
    rules = Rules(_source.read('tests/lint/layers.txt'))
    for name in _source.files('.c', '.h'):
        yield from rules.check(name, _source.read(name))


def self_test():
    rules = Rules(_source.read('tests/lint/layers.txt'))
    bad = [
        ('block/aio/x.c', '#include "block/graph/node.h"', 'includes up'),
        ('block/jobs/x.c', '#include "daemon/daemon.h"', 'includes up'),
        ('block/util/x.c', '#include "qapi/types.h"', 'includes up'),
        ('block/graph/x.c', '#include <liburing.h>', 'may only be named'),
        ('block/jobs/x.c', '#include <nettle/aes.h>', 'may only be named'),
        ('block/drivers/raw.c', '# include "block/drivers/qcow2/qcow2.h"', 'not to be looked into'),
        ('block/drivers/raw.c', '#include "block/drivers/file.h"', 'not to be looked into'),
        ('daemon/x.c', '#include "block/drivers/nbd/nbd.h"', 'not to be looked into'),
    ]
    good = [
        ('block/jobs/x.c', '#include "block/graph/node.h"\n#include "qapi/types.h"\n#include <glib.h>'),
        ('block/drivers/file-lock.c', '#include "block/drivers/file.h"'),
        ('block/drivers/qcow2/l2.c', '#include "block/drivers/qcow2/qcow2.h"\n#include <zlib.h>'),
        ('block/aio/x.c', '#include <liburing.h>\n// #include "daemon/daemon.h"\n/* #include <libnbd.h> */'),
        ('tests/unit/daemon-x.c', '#include "daemon/daemon.h"\n#include <liburing.h>'),
    ]
    for name, text, want in bad:
        got = list(rules.check(name, text))
        assert len(got) == 1 and want in got[0], (name, text, got)
    for name, text in good:
        assert not list(rules.check(name, text)), (name, text)


if __name__ == '__main__':
    sys.exit(_source.finish('layers', problems, self_test))
