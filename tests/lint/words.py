"""Lint: words that mark unfinished work stay out of the tree."""
import os
import re
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import _source

# Built from pieces, so that this file is not its own first find.
WORDS = ['TO' 'DO', 'FIX' 'ME', 'X' 'XX', 'HA' 'CK', 'not yet ' 'implemented', 'for ' 'now', 'place' 'holder']
PATTERN = re.compile(r'(?<![\w$])(' + '|'.join(re.escape(w) for w in WORDS) + r')(?![\w])')
SUFFIXES = ('.c', '.h', '.py', '.sh', '.json', '.md', '.txt', '.conf', '.example')


def check(name, text):
    for i, line in enumerate(text.splitlines(), 1):
        for m in PATTERN.finditer(line):
            yield f'{name}:{i}: "{m[1]}"'


def problems():
    for name in _source.files(*SUFFIXES, dirs=(*_source.SOURCE_DIRS, 'docs', 'README.md')):
        yield from check(name, _source.read(name))


def self_test():
    for word in WORDS:
        assert len(list(check('x', f'int a;\n// {word}: later\n'))) == 1, word
    for text in ('mkstemp(path_XXXXXX)', 'todo_list', 'for nowhere', 'XX' + 'XX'):
        assert not list(check('x', text)), text


if __name__ == '__main__':
    sys.exit(_source.finish('words', problems, self_test))
