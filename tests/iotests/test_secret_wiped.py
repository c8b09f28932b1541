"""What becomes of a secret's value: it is not in the command line, and in memory only where it is kept."""
import os
import re
import uuid

import sd


def find_all(pid, text):
    """How often the process's writable memory has it."""
    found = 0
    with open(f'/proc/{pid}/maps', encoding='ascii') as maps, open(f'/proc/{pid}/mem', 'rb', 0) as mem:
        for line in maps:
            m = re.match(r'([0-9a-f]+)-([0-9a-f]+) rw', line)
            if not m or '[v' in line:
                continue
            start, end = int(m[1], 16), int(m[2], 16)
            mem.seek(start)
            try:
                found += mem.read(end - start).count(text)
            except OSError:
                pass
    return found


class Wiped(sd.Case):
    def setUp(self):
        self.text = 'pass-' + uuid.uuid4().hex

    def look(self, d, at_most):
        with open(f'/proc/{d.pid}/cmdline', 'rb') as f:
            self.assertNotIn(self.text.encode(), f.read())
        if 'ASAN_OPTIONS' not in os.environ:  # a sanitizer keeps what realloc() left
            self.assertLessEqual(find_all(d.pid, self.text.encode()), at_most)

    def test_command_line(self):
        for form in ('secret,id=s,data={}', '{{"qom-type": "secret", "id": "s", "data": "{}"}}'):
            with self.subTest(form=form):
                d = self.daemon('--object', form.format(self.text))
                self.look(d, 1)
                d.cmd('object-del', id='s')
                self.look(d, 0)

    def test_equals_sign(self):
        d = self.daemon(f'--object=secret,id=s,data={self.text}')
        self.look(d, 1)

    def test_qmp(self):
        d = self.daemon()
        d.cmd('object-add', qom_type='secret', id='s', data=self.text)
        d.cmd('query-version')
        self.look(d, 1)
        d.cmd('object-del', id='s')
        self.look(d, 0)

    def test_errors_keep_it_to_themselves(self):
        p = sd.run(sd.DAEMON, '--object', f'secret,id=s,data={self.text},format=base64', check=False)
        self.assertNotEqual(p.returncode, 0)
        self.assertNotIn(self.text, p.stderr)


if __name__ == '__main__':
    sd.main()
