"""What the tests of the checker share: our verdict, qemu-img's, and all broken images one after the other."""
import concurrent.futures
import json
import subprocess

import broken_crafted  # noqa: F401: adds to those of broken_images
import broken_images
import sd


def ours(path, *options):
    """(exit code, what the JSON says, messages)"""
    p = subprocess.run([sd.DAEMON, '--check', path, '--output=json', *options], capture_output=True, text=True,
                       errors='replace', timeout=sd.TIMEOUT * 4, check=False)
    assert not sd.SANITIZER.search(p.stderr), p.stderr
    return p.returncode, json.loads(p.stdout) if p.stdout else {}, p.stderr


def theirs(path, *options):
    p = subprocess.run(['qemu-img', 'check', '--output=json', *options, path], capture_output=True, text=True,
                       errors='replace', timeout=sd.TIMEOUT * 4, check=False)
    try:
        return p.returncode, json.loads(p.stdout), p.stderr
    except ValueError:
        return p.returncode, {}, p.stderr


def content(path, raw):
    """What a guest reads, or None where part of it cannot be read."""
    p = subprocess.run(['qemu-img', 'convert', '-q', '-O', 'raw', path, raw], capture_output=True, check=False)
    return broken_images.Image.read(raw).data if p.returncode == 0 else None


class Broken(sd.Case):
    """All broken images. What goes wrong is collected, so that one run shows it all."""
    CASE_TIMEOUT = 20 * sd.TIMEOUT

    def each(self, function, wanted=lambda name: True):
        made = [(name, path) for name, path in broken_images.make_all(self.dir) if wanted(name)]
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            results = list(pool.map(lambda made: function(*made), made))
        wrong = [text for text in results if text]
        self.assertFalse(wrong, f'{len(wrong)} of {len(made)}:\n' + '\n'.join(wrong))
        return made
