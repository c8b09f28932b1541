"""Lint: a file is a room with one idea. Lists files over 800 lines and functions over 70; fails only past the hard limits
(1200 and 150), since a little more can be right and a lot more never is."""
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import _source

FILE_LINES, FILE_HARD = 800, 1200
FUNCTION_LINES, FUNCTION_HARD = 70, 150


def check(name, text):
    """(hard, message) for what is too long."""
    lines = text.count('\n')
    if lines > FILE_LINES:
        yield lines > FILE_HARD, f'{name}: {lines} lines'
    if name.endswith(('.c', '.h')):
        for function, first, last, _ in _source.functions(_source.strip(text)):
            length = last - first + 1
            if length > FUNCTION_LINES:
                yield length > FUNCTION_HARD, f'{name}:{first}: {function}() has {length} lines'


def problems():
    for name in _source.files('.c', '.h', '.py'):
        for hard, message in check(name, _source.read(name)):
            if hard:
                yield message
            else:
                print(f'warning: {message}')


def self_test():
    def body(n):
        return 'static int long_one(void)\n{\n' + '    x();\n' * n + '}\n'
    assert not list(check('x.c', body(67)))
    assert [h for h, _ in check('x.c', body(80))] == [False]
    assert [h for h, _ in check('x.c', body(200))] == [True]
    assert [h for h, _ in check('x.py', 'x\n' * 801)] == [False]
    assert [h for h, _ in check('x.py', 'x\n' * 1300)] == [True]
    assert not list(check('x.c', 'const int table[] = {\n' + '    1,\n' * 100 + '};\n'))


if __name__ == '__main__':
    sys.exit(_source.finish('size', problems, self_test))
