"""Lint: a function that may yield has `_co_` in its name (LAW 3): who calls one is one.

A function yields when its name contains `_co_`, a callback when its member's name starts with `co_` (drv->co_preadv).
Either may be called only from functions with `_co_` in their names. Taking an address (coroutine_start(…, foo_co_entry,
…)) is no call. A function whose head is a macro in capitals (a test's wrapper) is whatever the macro makes of it.
"""
import os
import re
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import _source

CALL = re.compile(r'(\b\w*_co_\w+|(?:->|\.)\s*co_\w+)\s*\(')


def check(name, text):
    stripped = _source.strip(text)
    for function, _, last, body in _source.functions(stripped):
        if '_co_' in function or function.isupper():
            continue
        for m in CALL.finditer(body):
            line = last - body.count('\n', m.start())
            yield f'{name}:{line}: {function}() calls {m[1].lstrip("->. ")}() and has no _co_ in its name'


def problems():
    for name in _source.files('.c', '.h'):
        yield from check(name, _source.read(name))


def self_test():
    bad = [
        'int f(void)\n{\n    return aio_co_fsync(1, true);\n}',
        'static void g(struct X *x)\n{\n    if (x) {\n        x->drv->co_flush(x);\n    }\n}',
        'void h(void)\n{\n    comutex_co_lock  (&m);\n}',
    ]
    good = [
        'int x_co_f(void)\n{\n    return aio_co_fsync(1, true);\n}',
        'static int raw_co_flush(Node *n)\n{\n    return n->drv->co_flush(n);\n}',
        'void f(void)\n{\n    coroutine_start(loop, f_co_entry, NULL); // aio_co_fsync(1)\n    puts("aio_co_fsync(1)");\n}',
        'int aio_co_fsync(int fd, bool datasync);\nconst Driver d = {\n    .co_flush = raw_co_flush,\n};',
        'void f(void)\n{\n    co_resume(co);\n}',
        'CO_TEST(name)\n{\n    aio_co_fsync(1, true);\n}',
        'struct D {\n    int (*co_flush)(Node *node);\n};\nvoid f(D *d)\n{\n    if (d->co_flush && x)\n        return;\n}',
    ]
    for text in bad:
        assert len(list(check('x.c', text))) == 1, text
    assert list(check('x.c', bad[1]))[0].startswith('x.c:4:'), list(check('x.c', bad[1]))
    for text in good:
        assert not list(check('x.c', text)), text


if __name__ == '__main__':
    sys.exit(_source.finish('conames', problems, self_test))
