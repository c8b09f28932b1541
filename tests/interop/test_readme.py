"""README.md keeps its word: its tour is run line by line, its links lead somewhere."""
import json
import os
import re
import sys
import unittest

import sd


def readme():
    with open(os.path.join(sd.TOP, 'README.md'), encoding='utf-8') as f:
        return f.read()


@unittest.skipIf(sd.STAND_IN, 'the tour is of our own program')
class Readme(sd.Case):
    def here(self, text):
        """The README's paths as this case has them."""
        return text.replace('/tmp/tour', self.path('tour')).replace('build/storage-daemon', sd.DAEMON).replace(
            'build/storage-ctl', sd.CTL)

    def test_tour(self):
        blocks = re.findall(r'<!-- tour -->\n```sh\n(.*?)```', readme(), re.S)
        self.assertGreater(len(blocks), 4)
        script = self.here('set -eux\n' + ''.join(blocks)).replace('\nmake\n', '\n')
        script = script.replace(f'{sd.CTL} jobs\n', f'until {sd.CTL} jobs | grep "no jobs"; do sleep 0.05; done\n')
        pidfile = self.path('pid')
        script = script.replace('--daemonize', f'--daemonize --pidfile {pidfile}')
        try:
            p = sd.run('bash', '-c', script, check=False)
            self.assertEqual(0, p.returncode, p.stdout + p.stderr)
        finally:
            if os.path.exists(pidfile):
                with open(pidfile) as f:
                    os.kill(int(f.read()), 9)
        self.assertIn('Images are identical.', p.stdout)
        self.assertIn('No errors were found', p.stdout)
        self.assertIn('"return"', p.stdout)

    def test_python(self):
        code, = re.findall(r'```python\n(.*?)```', readme(), re.S)
        d = self.daemon('--blockdev', 'null-co,node-name=here')
        p = sd.run(sys.executable, '-c', code.replace('/tmp/tour/qmp', d.socket))
        self.assertIn("'node-name': 'here'", p.stdout)

    def test_names_every_driver(self):
        with open(os.path.join(sd.TOP, 'qapi', 'schema', 'block-core.json'), encoding='utf-8') as f:
            drivers, = [d['values'] for d in json.load(f) if d.get('enum') == 'BlockdevDriver']
        missing = [name for name in drivers if not re.search(rf'\b{name}\b', readme())]
        self.assertEqual([], missing, 'the table of what is supported lacks drivers')

    def test_links(self):
        for name in ('README.md', *(f'docs/{n}' for n in os.listdir(os.path.join(sd.TOP, 'docs')) if n.endswith('.md'))):
            with open(os.path.join(sd.TOP, name), encoding='utf-8') as f:
                text = f.read()
            for link in re.findall(r'\]\(([^)#:]+)(?:#[^)]*)?\)', text):
                path = os.path.join(sd.TOP, os.path.dirname(name), link)
                self.assertTrue(os.path.exists(path), f'{name} links to {link}')


if __name__ == '__main__':
    sd.main()
