"""Filters of iotests scripts' logs: what differs from run to run becomes a word."""
import os
import re

X3 = 'X' * 3  # what scripts' logs have for numbers
_FOLDERS = [(os.environ.get('TEST_DIR'), 'TEST_DIR'), (os.environ.get('SOCK_DIR'), 'SOCK_DIR')]


def keys_sorted(value):
    """The same, with the members of its objects in order."""
    if isinstance(value, dict):
        return {k: keys_sorted(v) for k, v in sorted(value.items())}
    if isinstance(value, list):
        return [keys_sorted(v) for v in value]
    return value


def _paths(msg):
    for path, word in _FOLDERS:
        if path:
            msg = msg.replace(path, word)
    return msg


def filter_test_dir(msg):
    return _paths(msg)


def filter_testfiles(msg):
    return re.sub(r'(TEST_DIR|SOCK_DIR)/\d+-', r'\1/PID-', _paths(msg))


def filter_win32(msg):
    return msg.replace('\r', '')


def filter_qemu_io(msg):
    msg = filter_win32(msg)
    return re.sub(r'[0-9]* ops; [0-9/:. sec]* \([0-9/.inf]* [EPTGMKiBbytes]*/sec and [0-9/.inf]* ops/sec\)',
                  f'X ops; XX:XX:XX.X ({X3} YYY/sec and {X3} ops/sec)', msg)


def filter_chown(msg):
    return re.sub(r'chown [0-9]+:[0-9]+', 'chown UID:GID', msg)


def filter_qmp_event(event):
    """Takes the time out of an event, which is changed and returned."""
    if isinstance(event, dict) and 'timestamp' in event:
        event['timestamp']['seconds'] = 'SECS'
        event['timestamp']['microseconds'] = 'USECS'
    return event


def filter_qmp(value, filter_fn):
    """@filter_fn(key, value) over everything in a message."""
    def walk(key, v):
        if isinstance(v, dict):
            return {k: walk(k, w) for k, w in v.items()}
        if isinstance(v, list):
            return [walk(key, w) for w in v]
        return filter_fn(key, v)
    return walk(None, value)


def _strings(change):
    return lambda key, value: change(value) if isinstance(value, str) else value


def filter_qmp_testfiles(msg):
    return filter_qmp(msg, _strings(filter_testfiles))


def filter_virtio_scsi(output):
    return re.sub(r'(virtio-scsi)-(ccw|pci)', r'\1', output)


def filter_qmp_virtio_scsi(msg):
    return filter_qmp(msg, _strings(filter_virtio_scsi))


def filter_generated_node_ids(msg):
    return re.sub('#block[0-9]+', 'NODE_NAME', msg)


def filter_qmp_generated_node_ids(msg):
    return filter_qmp(msg, _strings(filter_generated_node_ids))


def filter_imgfmt(msg):
    return msg.replace(os.environ.get('IMGFMT', 'raw'), 'IMGFMT')


def filter_qmp_imgfmt(msg):
    return filter_qmp(msg, _strings(filter_imgfmt))


def filter_nbd_exports(output):
    return re.sub(r'((min|opt|max) block): [0-9]+', rf'\1: {X3}', output)


def filter_qtest(output):
    output = re.sub(r'^\[I \d+\.\d+\] OPENED\n', '', output)
    return re.sub(r'\n?\[I \+\d+\.\d+\] CLOSED\n?$', '', output)


def filter_img_info(output, filename, drop_child_info=True):
    lines = []
    for line in output.split('\n'):
        if drop_child_info and line.startswith("Child node '"):
            break
        if 'disk size' in line or 'actual-size' in line:
            continue
        line = filter_testfiles(line.replace(filename, 'TEST_IMG')).replace(os.environ.get('IMGFMT', 'raw'), 'IMGFMT')
        line = re.sub('iters: [0-9]+', f'iters: {X3}', line)
        line = re.sub('uuid: [-a-f0-9]+', 'uuid: XXXXXXXX-XXXX-XXXX-XXXX-XXXXXXXXXXXX', line)
        line = re.sub('cid: [0-9]+', 'cid: XXXXXXXXXX', line)
        lines.append(re.sub('(compression type: )(zlib|zstd)', r'\1COMPRESSION_TYPE', line))
    return '\n'.join(lines)
