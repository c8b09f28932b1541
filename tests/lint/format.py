"""Lint: C sources are as clang-format leaves them (`make format` does it)."""
import os
import re
import shutil
import subprocess
import sys
import tempfile

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import _source


def check(paths):
    """Files among @paths that clang-format would change, with the first place."""
    p = subprocess.run(['clang-format', '--dry-run', '--Werror', '--style=file', *paths], cwd=_source.TOP,
                       stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    seen = set()
    for m in re.finditer(r'^(.+?):(\d+):\d+: error:', p.stdout, re.M):
        if m[1] not in seen:
            seen.add(m[1])
            yield f'{m[1]}:{m[2]}: not as clang-format has it'
    if p.returncode != 0 and not seen:
        yield f'clang-format failed: {p.stdout}'


def problems():
    if not shutil.which('clang-format'):
        yield 'clang-format is not installed (make deps)'
        return
    names = _source.files('.c', '.h')
    if names:
        yield from check(names)


def self_test():
    with tempfile.TemporaryDirectory() as d:
        shutil.copy(os.path.join(_source.TOP, '.clang-format'), d)
        for text, want in (('int  f(void) {return 1;}\n', 1), ('int f(void)\n{\n    return 1;\n}\n', 0)):
            path = os.path.join(d, 'x.c')
            with open(path, 'w') as f:
                f.write(text)
            assert len(list(check([path]))) == want, text


if __name__ == '__main__':
    sys.exit(_source.finish('format', problems, self_test))
