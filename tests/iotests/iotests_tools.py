"""The tools and files of iotests scripts: qemu-img, qemu-io, qemu-nbd, images, paths."""
import atexit
import contextlib
import json
import os
import re
import shlex
import struct
import subprocess
import sys
import tempfile
import time

import sd

imgfmt = os.environ.get('IMGFMT', 'raw')
imgproto = os.environ.get('IMGPROTO', 'file')
test_dir = os.environ.get('TEST_DIR') or tempfile.mkdtemp(prefix='iotests-')
sock_dir = os.environ.get('SOCK_DIR', test_dir)
output_dir = os.environ.get('OUTPUT_DIR', '.')
cachemode = os.environ.get('CACHEMODE', 'writeback')
aiomode = os.environ.get('AIOMODE', 'threads')

qemu_img_args = shlex.split(os.environ.get('QEMU_IMG', 'qemu-img'))
qemu_io_args_no_fmt = shlex.split(os.environ.get('QEMU_IO', 'qemu-io')) + ['--cache', cachemode, '--aio', aiomode]
qemu_io_args = qemu_io_args_no_fmt + ['-f', imgfmt]
qemu_nbd_args = shlex.split(os.environ.get('QEMU_NBD', 'qemu-nbd'))

WAIT = 60.0  # seconds, for one thing to happen


# ---- tools ---------------------------------------------------------------------------------------------------------

class ExitCode(int):
    """What a tool returned: its exit code, and what newer scripts ask of it."""

    def __new__(cls, process):
        self = super().__new__(cls, process.returncode)
        self.returncode, self.stdout, self.args = process.returncode, process.stdout, process.args
        return self


class Output(str):
    """What a tool printed, and what newer scripts ask of it."""

    def __new__(cls, process):
        self = super().__new__(cls, process.stdout)
        self.returncode, self.stdout, self.args = process.returncode, process.stdout, process.args
        return self


def run_tool(args, expect_failure=False):
    p = subprocess.run(args, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                       errors='replace', timeout=4 * WAIT)
    if p.returncode != 0 and not expect_failure:
        sys.stderr.write(f"{shlex.join(args)}: exit {p.returncode}\n{p.stdout}")
    return p


def _split_options(text):
    """The parts of a,b=c with ',,' standing for a comma."""
    return [part.replace('\0', ',') for part in text.replace(',,', '\0').split(',')]


def _short_option(args, letter):
    """The value of the last -X VALUE or -XVALUE; None when there is none."""
    value = None
    for i, arg in enumerate(args):
        if arg == f'-{letter}' and i + 1 < len(args):
            value = args[i + 1]
        elif arg.startswith(f'-{letter}') and not arg.startswith('--') and len(arg) > 2:
            value = arg[2:]
    return value


def probe_format(filename):
    """The format of an image as qemu-img sees it; None when it cannot be opened."""
    p = subprocess.run([*qemu_img_args, 'info', '-U', '--output=json', filename], stdin=subprocess.DEVNULL,
                       stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    return json.loads(p.stdout)['format'] if p.returncode == 0 else None


def with_backing_format(args):
    """@args of qemu-img, with -F where a backing file is named without its format."""
    if not args or args[0] not in ('create', 'rebase', 'convert') or _short_option(args, 'F'):
        return list(args)
    backing = _short_option(args, 'b')
    image = args[-1]
    for i, arg in enumerate(args):
        text = args[i + 1] if arg == '-o' and i + 1 < len(args) else arg[2:] if arg.startswith('-o') else ''
        for part in _split_options(text):
            key, _, value = part.partition('=')
            if key == 'backing_fmt':
                return list(args)
            if key == 'backing_file':
                backing = value
                # IMAGE [SIZE] stand last
                image = args[-2] if re.fullmatch(r'\d+[bkKMGTPE]?', args[-1]) and i + 2 < len(args) - 1 else args[-1]
    if not backing:
        return list(args)
    if not backing.startswith('/') and ':' not in backing:
        backing = os.path.join(os.path.dirname(image), backing)
    fmt = probe_format(backing)
    return [args[0], '-F', fmt, *args[1:]] if fmt else list(args)


def qemu_img_tool(*args):
    return run_tool(qemu_img_args + with_backing_format(args))


def qemu_img(*args, check=False, **_):
    p = qemu_img_tool(*args)
    if check and p.returncode:
        raise subprocess.CalledProcessError(p.returncode, p.args, p.stdout)
    return ExitCode(p)


def qemu_img_pipe_and_status(*args):
    p = qemu_img_tool(*args)
    return p.stdout, p.returncode


def qemu_img_pipe(*args):
    return Output(qemu_img_tool(*args))


def qemu_img_verbose(*args):
    p = qemu_img_tool(*args)
    sys.stdout.write(p.stdout)
    return p.returncode


def qemu_img_create(*args):
    return qemu_img('create', *args)


def qemu_img_json(*args):
    p = qemu_img_tool(*args)
    return json.loads(p.stdout)


def qemu_img_info(*args):
    return qemu_img_json('info', '--output=json', *args)


def qemu_img_map(*args):
    return qemu_img_json('map', '--output=json', *args)


def qemu_img_measure(*args):
    return qemu_img_json('measure', '--output=json', *args)


def qemu_img_check(*args):
    return qemu_img_json('check', '--output=json', *args)


def qemu_io_wrap_args(args):
    names_format = any(a in ('-f', '--format', '--image-opts') or a.startswith('--format=') for a in args)
    return (qemu_io_args_no_fmt if names_format else qemu_io_args) + list(args)


def qemu_io(*args, **_):
    return Output(run_tool(qemu_io_wrap_args(args)))


def qemu_io_silent(*args):
    return ExitCode(run_tool(qemu_io_wrap_args(args)))


def qemu_io_silent_check(*args):
    return run_tool(qemu_io_wrap_args(args), expect_failure=True).returncode == 0


def qemu_nbd(*args):
    return run_tool([*qemu_nbd_args, '--fork', *args]).returncode


@contextlib.contextmanager
def qemu_nbd_popen(*args):
    """A qemu-nbd that serves while the block lasts."""
    pid_file = file_path('qemu_nbd_popen-nbd-pid-file')
    process = subprocess.Popen([*qemu_nbd_args, '--persistent', '--pid-file', pid_file, *args])
    try:
        deadline = time.monotonic() + WAIT
        while not os.path.exists(pid_file):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f'qemu-nbd does not serve: {shlex.join(args)}')
            time.sleep(0.01)
        yield process
    finally:
        process.kill()
        process.wait()


def compare_images(img1, img2, fmt1=imgfmt, fmt2=imgfmt):
    return sd.compare_images(img1, img2, fmt1, fmt2)


def create_image(name, size):
    """A raw image, allocated throughout, each of whose sectors tells its own number."""
    with open(name, 'wb') as f:
        for sector in range(size // 512):
            f.write(struct.pack('>l504xl', sector, sector))


def image_size(img):
    return json.loads(qemu_img_pipe('info', '--output=json', '-f', imgfmt, img))['virtual-size']


def remote_filename(path):
    return path


# ---- files -----------------------------------------------------------------------------------------------------------

_to_remove = []


def try_remove(path):
    with contextlib.suppress(FileNotFoundError):
        os.remove(path)


def _remove_files():
    for path in _to_remove:
        try_remove(path)


def file_path(*names, base_dir=None):
    """Paths in the test's folder, removed when the script ends: one string for one name, else a list."""
    if not _to_remove:
        atexit.register(_remove_files)
    paths = [os.path.join(base_dir or test_dir, f'{os.getpid()}-{name}') for name in names]
    _to_remove.extend(paths)
    return paths[0] if len(paths) == 1 else paths


class FilePath:
    """The same for the length of a `with` block."""

    def __init__(self, *names, base_dir=None):
        self.paths = [os.path.join(base_dir or test_dir, f'{os.getpid()}-{name}') for name in names]

    def __enter__(self):
        return self.paths[0] if len(self.paths) == 1 else self.paths

    def __exit__(self, *_):
        for path in self.paths:
            try_remove(path)


FilePaths = FilePath
