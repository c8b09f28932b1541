"""The names that QEMU's iotests scripts import, over our daemon.

A script runs unmodified: `tests/iotests/run -f qcow2 SCRIPT`. Processes and QMP are sd.py's; here is what turns the
vocabulary of those scripts into it: VM, QMPTestCase, the tools, log() with its filters, main() and script_main().

Differences, on purpose: a daemon that ends badly, or a reply or event that breaks the schema, fails the case; -drive and
-blockdev become --drive and --blockdev; qemu_img() names the format of backing files, which today's qemu-img demands,
where a script leaves it out; results of tools are numbers or strings as of old and have .returncode and .stdout as well.

Environment: TEST_DIR, SOCK_DIR, IMGFMT, IMGPROTO, QEMU_DEFAULT_MACHINE, CACHEMODE, AIOMODE, and those of sd.py.
IOTESTS_LAUNCHED (path, fd): the daemon behind qemu-compat. IOTESTS_REPORT, IOTESTS_LIST and IOTESTS_CASE are how `run` talks to main().
"""
import contextlib
import faulthandler
import functools
import json
import logging
import os
import re
import signal
import sys
import time
import unittest

import sd
# Scripts take all of these from here.
from iotests_filters import *  # noqa: F403
from iotests_tools import *  # noqa: F403
from iotests_filters import filter_img_info, filter_qemu_io, filter_qmp_event, filter_testfiles, keys_sorted
from iotests_tools import WAIT, aiomode, cachemode, imgfmt, imgproto, qemu_img_pipe, qemu_io, test_dir

faulthandler.enable()

debug = '-d' in sys.argv
# "path" or "fd": through qemu-compat, started as QEMU's harness would.
LAUNCHED = os.environ.get('IOTESTS_LAUNCHED')
qemu_prog = os.path.join(os.path.dirname(os.path.abspath(__file__)), 'qemu-compat') if LAUNCHED else sd.DAEMON
qemu_opts = []
# Scripts ask only whether an IDE CD drive can be had: it can.
qemu_default_machine = os.environ.get('QEMU_DEFAULT_MACHINE', 'pc')
test_logger = logging.getLogger('qemu.iotests')


# ---- log and limits ----------------------------------------------------------------------------------------------------

def log(msg, filters=(), indent=None):
    """Prints @msg, through @filters; what is no text as JSON."""
    for flt in filters:
        msg = flt(msg)
    if isinstance(msg, (dict, list)):
        print(json.dumps(keys_sorted(msg), indent=indent, separators=(', ', ': ') if indent is None else (',', ': ')),
              flush=True)
    else:
        print(msg, flush=True)


def qemu_img_log(*args, **_):
    output = qemu_img_pipe(*args)
    log(output, filters=[filter_testfiles])
    return output


def img_info_log(filename, filter_path=None, use_image_opts=False, extra_args=(), **_):
    args = ['info'] + (['--image-opts'] if use_image_opts else ['-f', imgfmt]) + list(extra_args) + [filename]
    log(filter_img_info(qemu_img_pipe(*args), filter_path or filename))


def qemu_io_log(*args, **_):
    output = qemu_io(*args)
    log(output, filters=[filter_testfiles, filter_qemu_io])
    return output


class Timeout:
    """Fails when the `with` block takes longer than so many seconds. Sanitizer builds get more of them."""

    def __init__(self, seconds, errmsg='Timeout'):
        self.seconds, self.errmsg = seconds * max(1.0, sd.TIMEOUT / 30), errmsg

    def _alarm(self, *_):
        raise TimeoutError(self.errmsg)

    def __enter__(self):
        self.old = signal.signal(signal.SIGALRM, self._alarm)
        signal.setitimer(signal.ITIMER_REAL, self.seconds)
        return self

    def __exit__(self, *_):
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, self.old)
        return False


# ---- the daemon ------------------------------------------------------------------------------------------------------

class VM:
    """One daemon. Options are collected, then launch()."""

    def __init__(self, path_suffix=''):
        self._options = []
        self._num_drives = 0
        self._daemon = None
        self._old_log = None
        self._log_path = os.path.join(test_dir, f'daemon{path_suffix}-{os.getpid()}-{id(self):x}.log')

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.shutdown()
        return False

    # ---- options ----
    def add_option(self, word, value):
        self._options += ['-' * (1 if LAUNCHED else 2) + word, value]
        return self

    def add_drive_raw(self, opts):
        return self.add_option('drive', opts)

    def add_drive(self, path, opts='', interface='virtio', img_format=None):
        """A drive named drive0, drive1 … in the order of the calls; without @path it is empty. There being no guest,
        @interface has nothing to say."""
        words = [f'if={interface}'] * bool(LAUNCHED) + [f'id=drive{self._num_drives}']
        if path is not None:
            words += [f"file={path.replace(',', ',,')}", f'format={img_format or imgfmt}', f'cache={cachemode}',
                      f'aio={aiomode}']
        if opts:
            words.append(opts)
        self._num_drives += 1
        return self.add_drive_raw(','.join(words))

    def add_blockdev(self, opts):
        return self.add_option('blockdev', opts if isinstance(opts, str) else ','.join(opts))

    def add_object(self, opts):
        return self.add_option('object', opts)

    # ---- life ----
    def launch(self):
        if LAUNCHED:
            from iotests_launcher import Launched
            self._daemon = Launched(*self._options, by_fd=LAUNCHED == 'fd')
        else:
            self._daemon = sd.Daemon(*self._options)

    def is_running(self):
        return self._daemon is not None and self._daemon.process.poll() is None

    def get_pid(self):
        return self._daemon.pid if self.is_running() else None

    def exitcode(self):
        return self._daemon.process.returncode if self._daemon else None

    def shutdown(self, has_quit=False, hard=False):
        """Ends the daemon and judges how it ended. Harmless when it was never launched or is gone."""
        d = self._daemon
        if d is None or d._stopped:
            return
        try:
            if hard:
                d.kill()
            elif has_quit or d.process.poll() is not None:
                d.check_exit()
            else:
                d.shutdown()
        finally:
            d.cleanup()

    def kill(self):
        self.shutdown(hard=True)

    def wait(self, timeout=WAIT):
        self._daemon.wait(timeout)
        self._daemon.cleanup()

    def get_log(self):
        """What the daemon said on stderr, without the last line's end."""
        log = self._daemon.stderr() if self._daemon else None
        return log if LAUNCHED or log is None else log.removesuffix('\n')

    # ---- commands ----
    def qmp(self, cmd, conv_keys=True, args_dict=None, **args):
        """The whole reply. Names of keyword arguments have '-' for '_'."""
        arguments = dict(args_dict or {})
        arguments.update({k.replace('_', '-') if conv_keys else k: v for k, v in args.items()})
        reply = self._daemon.qmp(cmd, arguments, timeout=max(WAIT, sd.TIMEOUT))
        if debug:
            print(f'{cmd} {arguments} -> {reply}', file=sys.stderr)
        return reply

    def cmd(self, cmd, args_dict=None, conv_keys=True, **args):
        """What the command returns."""
        reply = self.qmp(cmd, conv_keys, args_dict, **args)
        if 'error' in reply:
            raise sd.QmpError(cmd, reply['error'])
        return reply['return']

    command = cmd

    def qmp_log(self, cmd, filters=(), indent=None, **kwargs):
        message = {'execute': cmd}
        if kwargs:
            message['arguments'] = {k.replace('_', '-'): v for k, v in kwargs.items()}
        log(message, filters, indent=indent)
        reply = self.qmp(cmd, **kwargs)
        log(reply, filters, indent=indent)
        return reply

    def hmp(self, command_line, use_log=False):
        return (self.qmp_log if use_log else self.qmp)('human-monitor-command', command_line=command_line)

    def hmp_qemu_io(self, drive, cmd, use_log=False, qdev=False):
        """A qemu-io command; what it prints is in the daemon's stdout. Unknown commands and drives fail the case."""
        reply = self.hmp(f'''qemu-io {'-d ' if qdev else ''}{drive} "{cmd}"''', use_log=use_log)
        good = 'return' in reply and not reply['return'].startswith(('Error: ', 'unknown command', 'Usage: '))
        assert good, f'qemu-io {drive} "{cmd}": {reply}'
        return reply

    def pause_drive(self, drive, event=None):
        """Makes the drive's next reads and writes (or requests at blkdebug's @event) stop."""
        for name in [event] if event else ['read_aio', 'write_aio']:
            self.hmp_qemu_io(drive, f'break {name} bp_{drive}')

    def resume_drive(self, drive):
        self.hmp_qemu_io(drive, f'remove_break bp_{drive}')

    # ---- events ----
    def get_qmp_event(self, wait=False):
        """The next event; None when there is none. @wait: True, or seconds."""
        events = self._daemon.session.events
        if not events:
            self._await_event(wait)
        return events.pop(0) if events else None

    def get_qmp_events(self, wait=False):
        """All events that came; with @wait, at least one."""
        self._await_event(wait)
        return self._daemon.take_events()

    def clear_qmp_events(self):
        self._daemon.take_events()

    def _await_event(self, wait):
        session = self._daemon.session
        session.poll()
        deadline = time.monotonic() + (10 * WAIT if wait is True else wait or 0)
        while wait and not session.events:
            if time.monotonic() > deadline:
                raise TimeoutError('no event in time')
            session.poll(0.2 if deadline - time.monotonic() > 0.2 else 0.02)

    def events_wait(self, events, timeout=WAIT):
        """The first event, queued or to come, that fits one of (name, match); None when there is none in time."""
        session = self._daemon.session
        deadline = time.monotonic() + timeout
        while True:
            for i, event in enumerate(session.events):
                if any(event['event'] == name and event_match(event, match) for name, match in events):
                    return session.events.pop(i)
            left = deadline - time.monotonic()
            if left <= 0:
                return None
            before = len(session.events)
            with contextlib.suppress(sd.Timeout):
                session._keep(session.receive(left))
            if len(session.events) == before and time.monotonic() >= deadline:
                return None

    def event_wait(self, name, timeout=WAIT, match=None):
        return self.events_wait([(name, match)], timeout)

    # ---- jobs ----
    def run_job(self, job, auto_finalize=True, auto_dismiss=False, pre_finalize=None, cancel=False, wait=WAIT):
        """Sees a job through to its end; its error, None when it had none."""
        error = None
        names = [(name, {'data': {key: job}}) for name, key in
                 (('BLOCK_JOB_COMPLETED', 'device'), ('BLOCK_JOB_CANCELLED', 'device'), ('BLOCK_JOB_ERROR', 'device'),
                  ('BLOCK_JOB_READY', 'device'), ('BLOCK_JOB_PENDING', 'id'), ('JOB_STATUS_CHANGE', 'id'))]
        while True:
            event = filter_qmp_event(self.events_wait(names, timeout=wait))
            if event['event'] != 'JOB_STATUS_CHANGE':
                log(event)
                continue
            status = event['data']['status']
            if status == 'aborting':
                for info in self.qmp('query-jobs')['return']:
                    if info['id'] == job:
                        error = info['error']
                        log('Job failed: %s' % error)
            elif status == 'ready':
                self.qmp_log('job-complete', id=job)
            elif status == 'pending' and not auto_finalize:
                if pre_finalize:
                    pre_finalize()
                self.qmp_log('job-cancel' if cancel else 'job-finalize', id=job)
            elif status == 'concluded' and not auto_dismiss:
                self.qmp_log('job-dismiss', id=job)
            elif status == 'null':
                return error

    # ---- nodes and bitmaps ----
    def node_info(self, node_name):
        return next((n for n in self.qmp('query-named-block-nodes')['return'] if n['node-name'] == node_name), None)

    def query_bitmaps(self):
        return {n['node-name']: n['dirty-bitmaps'] for n in self.qmp('query-named-block-nodes')['return']
                if 'dirty-bitmaps' in n}

    def get_bitmap(self, node_name, bitmap_name, recording=None, bitmaps=None):
        for bitmap in (self.query_bitmaps() if bitmaps is None else bitmaps).get(node_name, []):
            if bitmap.get('name', '') == bitmap_name and recording in (None, bitmap.get('recording')):
                return bitmap
        return None

    def check_bitmap_status(self, node_name, bitmap_name, fields, bitmaps=None):
        """Does the bitmap exist and show all @fields?"""
        bitmap = self.get_bitmap(node_name, bitmap_name, bitmaps=bitmaps)
        return bitmap is not None and all(bitmap.get(k) == v for k, v in fields.items())

    def assert_block_path(self, root, path, expected_node, graph=None):
        """Going from node @root along @path ('/file/children.1') must lead to @expected_node (None: to nothing)."""
        graph = graph or self.qmp('x-debug-query-block-graph')['return']
        names = {n['id']: n['name'] for n in graph['nodes'] if n['type'] == 'block-driver'}
        here = next((i for i, name in names.items() if name == root), None)
        assert here is not None, f'no node {root}'
        for step in [s for s in path.split('/') if s]:
            assert here is not None, f'{path} from {root} ends before {step}'
            here = next((e['child'] for e in graph['edges'] if e['parent'] == here and e['name'] == step), None)
        assert names.get(here) == expected_node, f'{root}{path} is {names.get(here)}, not {expected_node}'

    # ---- options out of JSON ----
    def flatten_qmp_object(self, obj, output=None, basestr=''):
        """{'a': {'b': 1}} becomes {'a.b': '1'}."""
        output = {} if output is None else output
        if isinstance(obj, (dict, list)):
            items = obj.items() if isinstance(obj, dict) else enumerate(obj)
            for key, value in items:
                self.flatten_qmp_object(value, output, f'{basestr}{key}.')
        elif isinstance(obj, bool):
            output[basestr[:-1]] = 'on' if obj else 'off'
        else:
            output[basestr[:-1]] = str(obj)
        return output

    def qmp_to_opts(self, obj):
        """{'driver': 'file', 'cache': {'direct': True}} becomes 'driver=file,cache.direct=on'."""
        return ','.join(f"{k}={v.replace(',', ',,')}" for k, v in self.flatten_qmp_object(obj).items())


def event_match(event, match=None):
    """Does @event contain what @match says? Members that @event lacks count as fitting when @match has none there."""
    if match is None:
        return True
    if not isinstance(match, dict):
        return event == match
    return isinstance(event, dict) and all(k in event and event_match(event[k], v) for k, v in match.items())


# ---- cases -----------------------------------------------------------------------------------------------------------

class QMPTestCase(unittest.TestCase):
    """Assertions about QMP, and steps that many cases take. self.vm is the VM."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.vm = None

    # ---- replies ----
    def dictpath(self, d, path):
        """What stands at a path like 'return[0]/inserted/file'; fails where there is nothing."""
        for component in path.split('/'):
            name, *indices = re.findall(r'^[^\[]*|(?<=\[)\d+(?=\])', component)
            if name:
                if not isinstance(d, dict) or name not in d:
                    self.fail(f'path {path!r}: no {name!r} in {d!r}')
                d = d[name]
            for index in map(int, indices):
                if not isinstance(d, list) or index >= len(d):
                    self.fail(f'path {path!r}: no element {index} in {d!r}')
                d = d[index]
        return d

    def assert_qmp(self, d, path, value):
        """Something at @path equals @value, or one of them when that is a list with elements."""
        got = self.dictpath(d, path)
        if isinstance(value, list) and value:
            self.assertIn(got, value, f'value at {path!r}')
        else:
            self.assertEqual(got, value, f'value at {path!r} in {d}')

    def assert_qmp_absent(self, d, path):
        try:
            got = self.dictpath(d, path)
        except AssertionError:
            return
        self.fail(f'path {path!r} has value {got!r}')

    def assert_qmp_error_class(self, qmp_exception, cls):
        self.assertEqual(getattr(qmp_exception, 'cls', None), cls)

    def assert_json_filename_equal(self, json_filename, reference):
        self.assertEqual(json_filename[:5], 'json:')
        flat = VM().flatten_qmp_object
        self.assertEqual(flat(json.loads(json_filename[5:])), flat(reference))

    # ---- nodes ----
    def assert_has_block_node(self, node_name=None, file_name=None):
        nodes = self.vm.qmp('query-named-block-nodes')['return']
        for n in nodes:
            if node_name in (None, n.get('node-name')) and file_name in (None, n.get('file')):
                return
        self.fail(f'no node with name {node_name} and file {file_name} among {nodes}')

    # ---- jobs ----
    def assert_no_active_block_jobs(self):
        self.assert_qmp(self.vm.qmp('query-block-jobs'), 'return', [])

    def cancel_and_wait(self, drive='drive0', force=False, resume=False, wait=WAIT):
        """Cancels a job and returns the event of its end."""
        self.assert_qmp(self.vm.qmp('block-job-cancel', device=drive, force=force), 'return', {})
        if resume:
            self.vm.resume_drive(drive)
        while True:
            for event in self.vm.get_qmp_events(wait=wait):
                if event['event'] in ('BLOCK_JOB_COMPLETED', 'BLOCK_JOB_CANCELLED'):
                    self.assert_qmp(event, 'data/device', drive)
                    self.assert_no_active_block_jobs()
                    return event
                if event['event'] == 'JOB_STATUS_CHANGE':
                    self.assert_qmp(event, 'data/id', drive)

    def wait_until_completed(self, drive='drive0', check_offset=True, wait=WAIT, error=None):
        """Until the job completes, with @error or well; the event."""
        while True:
            for event in self.vm.get_qmp_events(wait=wait):
                if event['event'] == 'BLOCK_JOB_COMPLETED':
                    self.assert_qmp(event, 'data/device', drive)
                    if error is not None:
                        self.assert_qmp(event, 'data/error', error)
                    else:
                        self.assert_qmp_absent(event, 'data/error')
                        if check_offset:
                            self.assert_qmp(event, 'data/offset', event['data']['len'])
                    self.assert_no_active_block_jobs()
                    return event
                if event['event'] == 'JOB_STATUS_CHANGE':
                    self.assert_qmp(event, 'data/id', drive)

    def wait_ready(self, drive='drive0'):
        event = self.vm.events_wait([('BLOCK_JOB_READY', {'data': {'type': kind, 'device': drive}})
                                     for kind in ('mirror', 'commit')])
        self.assertIsNotNone(event, f'job {drive} does not become ready')
        return event

    def wait_ready_and_cancel(self, drive='drive0'):
        self.wait_ready(drive)
        event = self.cancel_and_wait(drive)
        self.assertEqual(event['event'], 'BLOCK_JOB_COMPLETED')
        self.assert_qmp(event, 'data/type', 'mirror')
        self.assert_qmp(event, 'data/offset', event['data']['len'])

    def complete_and_wait(self, drive='drive0', wait_ready=True, completion_error=None):
        if wait_ready:
            self.wait_ready(drive)
        self.assert_qmp(self.vm.qmp('block-job-complete', device=drive), 'return', {})
        event = self.wait_until_completed(drive, error=completion_error)
        self.assertIn(event['data']['type'], ('mirror', 'commit'))

    def pause_wait(self, job_id='job0'):
        """Until the job stands still; its row of query-block-jobs."""
        with Timeout(3, f'job {job_id} does not pause'):
            while True:
                jobs = {j['device']: j for j in self.vm.qmp('query-block-jobs')['return']}
                self.assertIn(job_id, jobs)
                if jobs[job_id]['paused'] and not jobs[job_id]['busy']:
                    return jobs[job_id]
                time.sleep(0.01)

    def pause_job(self, job_id='job0', wait=True):
        result = self.vm.qmp('block-job-pause', device=job_id)
        self.assert_qmp(result, 'return', {})
        return self.pause_wait(job_id) if wait else result

    def case_skip(self, reason):
        case_notrun(f'{self.id()}: {reason}')
        self.skipTest(reason)


# ---- what can be run ---------------------------------------------------------------------------------------------------

class NotRun(Exception):
    """The script does not fit what it is run with."""


def notrun(reason):
    """The script is not for this environment: run counts it as skipped."""
    raise NotRun(reason)


def case_notrun(reason):
    print(f'    [case not run] {reason}', file=sys.stderr)


@functools.lru_cache(None)
def supported_drivers():
    """The drivers that blockdev-add takes, as the program itself tells."""
    with sd.Daemon() as d:
        types = {t['name']: t for t in d.cmd('query-qmp-schema')}
    arguments = types[types['blockdev-add']['arg-type']]
    driver = next(m for m in arguments['members'] if m['name'] == 'driver')
    return frozenset(types[driver['type']]['values'])


def supported_formats(read_only=False):
    return sorted(supported_drivers())


def skip_if_unsupported(required_formats=(), read_only=False):
    """Decorates a case, or setUp: skipped when a driver is missing."""
    def decorator(func):
        @functools.wraps(func)
        def wrapper(self, *args, **kwargs):
            names = required_formats(self) if callable(required_formats) else required_formats
            missing = sorted(set(names) - supported_drivers())
            if missing:
                self.case_skip(f'drivers not supported: {", ".join(missing)}')
            return func(self, *args, **kwargs)
        return wrapper
    return decorator


def skip_for_formats(formats=()):
    def decorator(func):
        @functools.wraps(func)
        def wrapper(self, *args, **kwargs):
            if imgfmt in formats:
                self.case_skip(f'not suitable for image format {imgfmt}')
            return func(self, *args, **kwargs)
        return wrapper
    return decorator


def skip_if_user_is_root(func):
    @functools.wraps(func)
    def wrapper(self, *args, **kwargs):
        if os.getuid() == 0:
            self.case_skip('cannot be run as root')
        return func(self, *args, **kwargs)
    return wrapper


def _verify(what, value, supported, unsupported):
    fits = value in supported or (what == 'image format' and 'generic' in supported)
    if (supported and not fits) or value in unsupported:
        notrun(f'not suitable for this {what}: {value}')


def verify_image_format(supported_fmts=(), unsupported_fmts=()):
    _verify('image format', imgfmt, supported_fmts, unsupported_fmts)


def verify_protocol(supported=(), unsupported=()):
    _verify('protocol', imgproto, () if 'generic' in supported else supported, unsupported)


def verify_platform(supported=(), unsupported=()):
    if (supported and not any(sys.platform.startswith(p) for p in supported)) or \
            any(sys.platform.startswith(p) for p in unsupported):
        notrun(f'not suitable for this OS: {sys.platform}')


def verify_cache_mode(supported_cache_modes=()):
    _verify('cache mode', cachemode, supported_cache_modes, ())


def verify_aio_mode(supported_aio_modes=()):
    _verify('aio mode', aiomode, supported_aio_modes, ())


def supports_quorum():
    return 'quorum' in supported_drivers()


def verify_quorum():
    if not supports_quorum():
        notrun('quorum support missing')


def verify_required_drivers(names=()):
    missing = sorted(set(names) - supported_drivers())
    if missing:
        notrun(f'drivers not supported: {", ".join(missing)}')


# ---- running ---------------------------------------------------------------------------------------------------------

def _verify_all(supported_fmts=(), unsupported_fmts=(), supported_protocols=(), unsupported_protocols=(),
                supported_platforms=(), supported_cache_modes=(), supported_aio_modes=(), required_fmts=(),
                unsupported_imgopts=()):
    verify_image_format(supported_fmts, unsupported_fmts)
    verify_protocol(supported_protocols, unsupported_protocols)
    verify_platform(supported_platforms)
    verify_cache_mode(supported_cache_modes)
    verify_aio_mode(supported_aio_modes)
    verify_required_drivers(required_fmts)


def activate_logging():
    logging.basicConfig(level=logging.INFO, format='%(message)s', stream=sys.stdout)


def change_log_level(logger_name, level=logging.CRITICAL):
    @contextlib.contextmanager
    def changed():
        logger = logging.getLogger(logger_name)
        before = logger.level
        logger.setLevel(level)
        try:
            yield
        finally:
            logger.setLevel(before)
    return changed()


def script_initialize(*args, **kwargs):
    """For scripts that log instead of having cases. One that does not fit ends here."""
    keys = ('supported_fmts', 'supported_platforms')
    try:
        _verify_all(**{**dict(zip(keys, args)), **kwargs})
    except NotRun as e:
        _end_not_run(e)


def script_main(test_function, *args, **kwargs):
    script_initialize(*args, **kwargs)
    test_function()


def _report(row):
    path = os.environ.get('IOTESTS_REPORT')
    if path:
        with open(path, 'a') as f:
            f.write(json.dumps(row) + '\n')


def _end_not_run(reason):
    print(f'not run: {reason}', file=sys.stderr)
    _report({'notrun': str(reason)})
    sys.exit(0)


def _cases():
    sys.path.insert(0, os.path.join(sd.TOP, 'tests'))
    import run
    return list(run.flatten(unittest.defaultTestLoader.loadTestsFromModule(sys.modules['__main__'])))


def _name(case):
    return '.'.join(case.id().split('.')[-2:])


def main(*args, **kwargs):
    """Runs the cases of the script. @args: a function of a script that logs; @kwargs: what it fits."""
    if args:
        script_main(*args, **kwargs)
        return
    try:
        _verify_all(**kwargs)
    except NotRun as e:
        _end_not_run(e)
    cases = _cases()
    if os.environ.get('IOTESTS_LIST'):
        for case in cases:
            _report({'case': _name(case)})
        return
    wanted = os.environ.get('IOTESTS_CASE')
    if not wanted:
        unittest.main(argv=[a for a in sys.argv if a != '-d'])
        return
    import run
    cases = [c for c in cases if _name(c) == wanted]
    with open(os.environ['IOTESTS_REPORT'], 'a') as f:
        run.Reporter.stream_to = f
        result = unittest.TextTestRunner(resultclass=run.Reporter, stream=sys.stdout).run(unittest.TestSuite(cases))
    sys.exit(0 if result.wasSuccessful() and cases else 1)
