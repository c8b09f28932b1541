"""What the lints share: which files there are, C source without comments and strings, functions and their bodies."""
import os
import re
import subprocess
import sys

TOP = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
SOURCE_DIRS = ('block', 'daemon', 'qapi', 'tests')


def files(*suffixes, dirs=SOURCE_DIRS):
    """The project's files with these suffixes, as paths from the top: what git knows and what it would add."""
    out = subprocess.run(['git', 'ls-files', '-co', '--exclude-standard', '--', *dirs], cwd=TOP, stdout=subprocess.PIPE,
                         text=True)
    if out.returncode == 0:
        names = set(out.stdout.splitlines())
    else:  # an unpacked archive
        names = {os.path.relpath(os.path.join(d, f), TOP) for r in dirs for d, _, fs in os.walk(os.path.join(TOP, r))
                 for f in fs}
    return sorted(n for n in names if n.endswith(suffixes) and os.path.exists(os.path.join(TOP, n)))


def read(name):
    with open(os.path.join(TOP, name), encoding='utf-8') as f:
        return f.read()


_TOKEN = re.compile(r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])*\'', re.S)


def strip(text, keep_strings=False):
    """Blanks out comments, string and character constants; line numbers stay."""
    def blank(m):
        token = m[0]
        if token[0] == '/' or not keep_strings:
            return re.sub(r'[^\n]', ' ', token)
        return token
    return _TOKEN.sub(blank, text)


def _line(text, pos):
    return text.count('\n', 0, pos) + 1


_NOT_NAMES = {'if', 'for', 'while', 'switch', 'return', 'sizeof', 'typeof', 'defined', '__attribute__'}


def functions(stripped):
    """(name, first line, last line, body) of every function defined in C source that strip() has been through."""
    text = re.sub(r'^[ \t]*#(?:[^\n]*\\\n)*[^\n]*', lambda m: re.sub(r'[^\n]', ' ', m[0]), stripped, flags=re.M)
    depth, start, head_start = 0, 0, 0
    for m in re.finditer(r'[{};]', text):
        if m[0] == '{':
            if depth == 0:
                start = m.start()
            depth += 1
        elif m[0] == '}':
            depth -= 1
            if depth == 0:
                head = text[head_start:start]
                name = _function_name(head)
                if name:
                    first = head_start + len(head) - len(head.lstrip())
                    yield name, _line(text, first), _line(text, m.start()), text[start:m.end()]
                head_start = m.end()
        elif depth == 0:
            head_start = m.end()


def _function_name(head):
    """The name in `static int name(args)`, None for a type, an array or an initialiser."""
    head = head.strip()
    if not head.endswith(')') or '=' in head:
        return None
    depth = 0
    for i in range(len(head) - 1, -1, -1):
        depth += {')': 1, '(': -1}.get(head[i], 0)
        if depth == 0:
            m = re.search(r'(\w+)\s*$', head[:i])
            return m[1] if m and m[1] not in _NOT_NAMES else None
    return None


def finish(what, problems, self_test):
    """The end of every lint: self-test on request, else the problems and an exit status."""
    if '--self-test' in sys.argv:
        self_test()
        print(f'{what}: the lint finds what it is there for')
        return 0
    found = list(problems())
    for p in found:
        print(p)
    print(f'{what}: {len(found)} problem{"s" * (len(found) != 1)}')
    return 1 if found else 0
