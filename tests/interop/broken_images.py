#!/usr/bin/env python3
"""Broken qcow2 (and qed) images, made reproducibly: sound ones of qemu-img, and one or two things wrong in each.

    broken_images.py DIR     makes all of them in DIR and prints their names
    for name, path in broken_images.make_all(directory): …

A base is a sound image; a breakage changes bytes of a copy. Offsets come from the image itself, so the same breakage
fits every base that has what it breaks.
"""
import os
import struct
import subprocess
import sys

from qcow2_bytes import COMPRESSED, COPIED, EXT_BITMAPS, OFFSET, ZERO, Image


# ---- the bases -------------------------------------------------------------------------------------------------------

def run(*args):
    subprocess.run(args, check=True, stdout=subprocess.DEVNULL)


def base(path, options='', size='8M', io=None, backing=None):
    """Guest clusters 0 to 3 hold data, 4 is zero with a place, 5 nothing, 6 zero without; then some more data."""
    args = ['qemu-img', 'create', '-q', '-f', 'qcow2']
    if options:
        args += ['-o', options]
    if backing:
        run('qemu-img', 'create', '-q', '-f', 'raw', backing, size)
        run('qemu-io', '-f', 'raw', '-c', f'write -q -P 0xbb 0 {size}', backing)
        args += ['-b', os.path.basename(backing), '-F', 'raw']
    run(*args, path, size)
    cluster = Image.read(path).cluster
    commands = io or [f'write -P 1 0 {4 * cluster}', f'write -P 2 {4 * cluster} {cluster}']
    if not io and 'compat=0.10' not in options:
        commands += [f'write -z {4 * cluster} {cluster}', f'write -zu {6 * cluster} {cluster}']
    if not io:
        commands.append(f'write -P 3 {16 * cluster} {3 * cluster}')
    run('qemu-io', '-f', 'qcow2', *[x for c in commands for x in ('-c', c)], path)


def fix_dates(path):
    """When snapshots were taken is read as something else where an entry is broken: always as the same."""
    i = Image.read(path)
    at = i.snapshots
    for _ in range(i.n_snapshots):
        i.put(at + 16, 8, 1700000000 << 32 | 500000000)
        at += 40 + i.get(at + 36, 4) + i.get(at + 12, 2) + i.get(at + 14, 2)
        at = at + 7 & ~7
    i.save(path)


def make_bases(directory):
    """{name: path}."""
    def path(name):
        return os.path.join(directory, f'base-{name}.qcow2')

    bases = {}

    def add(name, **kwargs):
        bases[name] = path(name)
        base(bases[name], **kwargs)

    add('v3', options='cluster_size=4096')
    add('v2', options='compat=0.10,cluster_size=4096')
    add('64k', options='')
    add('512', options='cluster_size=512', size='1M')
    for bits in 1, 2, 4, 8, 32, 64:
        add(f'rc{bits}', options=f'cluster_size=4096,refcount_bits={bits}')
    add('extl2', options='cluster_size=16k,extended_l2=on')
    add('lazy', options='cluster_size=4096,lazy_refcounts=on')
    add('backed', options='cluster_size=4096', backing=os.path.join(directory, 'base-backing.raw'))
    add('backed2', options='compat=0.10,cluster_size=4096', backing=os.path.join(directory, 'base-backing.raw'))

    bases['packed'] = path('packed')
    base(bases['packed'], 'cluster_size=4096', io=['write -P 9 64k 64k'])
    run('qemu-io', '-f', 'qcow2', *[x for i in range(6) for x in ('-c', f'write -c -P {i + 1} {i * 4096} 4096')],
        bases['packed'])
    for name, options in ('snap', 'cluster_size=4096'), ('snap2', 'compat=0.10,cluster_size=4096'):
        bases[name] = path(name)
        base(bases[name], options)
        run('qemu-img', 'snapshot', '-c', 'one', bases[name])
        run('qemu-io', '-f', 'qcow2', '-c', 'write -P 7 4k 8k', bases[name])
        run('qemu-img', 'snapshot', '-c', 'two', bases[name])
        run('qemu-io', '-f', 'qcow2', '-c', 'write -P 8 8k 4k', bases[name])
        fix_dates(bases[name])
    bases['bitmaps'] = path('bitmaps')
    base(bases['bitmaps'], 'cluster_size=4096')
    run('qemu-img', 'bitmap', '--add', '-g', '4096', bases['bitmaps'], 'b0')
    run('qemu-img', 'bitmap', '--add', bases['bitmaps'], 'b1')
    run('qemu-io', '-f', 'qcow2', '-c', 'write -P 5 0 8k', '-c', 'write -P 5 1M 4k', bases['bitmaps'])
    return bases


# ---- what can be wrong -----------------------------------------------------------------------------------------------

BREAKAGES = []  # (name, bases, function)
EVERY = ('v3', 'v2', '64k', '512', 'extl2')
WIDTHS = ('rc1', 'rc2', 'rc4', 'rc8', 'v3', 'rc32', 'rc64')


def breaks(*bases, name=None):
    def decorate(function):
        BREAKAGES.append(((name or function.__name__).replace('_', '-'), bases, function))
        return function
    return decorate


def break_with(name, bases, function):
    BREAKAGES.append((name, bases, function))


@breaks(*EVERY, *WIDTHS, 'packed', 'snap', 'snap2', 'bitmaps', 'lazy', 'backed', 'backed2')
def nothing(i):
    pass


# -- the header's fields at their edges
def header_field(attribute, values, bases=('v3', 'v2')):
    for value in values:
        break_with(f'{attribute.replace("_", "-")}-{value:#x}', bases,
                   lambda i, value=value: setattr(i, attribute, value))


header_field('version', (4, 0xffffffff))
header_field('cluster_bits', (0, 8, 22, 0xffffffff), ('v3',))
header_field('crypt', (3, 0xffffffff), ('v3',))
header_field('size', (0, 512, 1 << 40, (1 << 63) - 1, (1 << 64) - 1), ('v3',))
header_field('l1_size', (0, 1, 0x400000, 0x400001, 0xffffffff), ('v3',))
header_field('l1', (0, 512, 1 << 40, (1 << 56) - 4096, 1 << 63), ('v3',))
header_field('rt', (0, 512, 1 << 40, (1 << 56) - 4096, 1 << 63), ('v3',))
header_field('rt_clusters', (0, 2, 0x800, 0x801, 0xffffffff), ('v3',))
header_field('n_snapshots', (1, 65536, 65537, 0xffffffff), ('v3',))
header_field('snapshots', (512, 1 << 40, 1 << 63), ('snap', 'v3'))
header_field('backing_offset', (1, 4096, 1 << 40), ('v3',))
header_field('incompat', (1, 2, 3, 8, 16, 32, 1 << 63), ('v3',))
header_field('compat', (1, 2, 1 << 63), ('v3',))
header_field('autoclear', (1, 2, 1 << 63), ('v3', 'bitmaps'))
header_field('autoclear', (0,), ('bitmaps',))
header_field('refcount_order', (0, 3, 5, 6, 7, 0xffffffff), ('v3',))
header_field('header_length', (0, 103, 104, 105, 4096, 4097), ('v3',))


@breaks('v3', 'v2')
def no_magic(i):
    i.put(0, 4, 0x51464900)


@breaks('v3')
def l1_on_header_of_no_disk(i):
    i.size, i.l1_size, i.l1 = 0, 0, 0


# -- refcounts
@breaks(*EVERY, *WIDTHS)
def count_zero(i):
    i.set_refcount(i.host(1) // i.cluster, 0)


@breaks(*EVERY, 'rc2', 'rc4', 'rc8', 'rc32', 'rc64')
def count_high(i):
    i.set_refcount(i.host(1) // i.cluster, 2)


@breaks(*WIDTHS)
def count_at_its_limit(i):
    i.set_refcount(i.host(1) // i.cluster, i.max_refcount)


@breaks('v3', 'v2', 'snap')
def count_of_header_zero(i):
    i.set_refcount(0, 0)


@breaks('v3', 'v2', 'snap')
def count_of_l1_zero(i):
    i.set_refcount(i.l1 // i.cluster, 0)


@breaks('v3', 'v2', 'snap', 'packed')
def count_of_l2_zero(i):
    i.set_refcount(i.l2() // i.cluster, 0)


@breaks('v3', 'v2', 'rc1', 'rc64')
def count_of_refcounts_zero(i):
    i.set_refcount(i.rt // i.cluster, 0)
    i.set_refcount(i.block(0) // i.cluster, 0)


@breaks('snap', 'snap2')
def count_of_snapshots_low(i):
    for gc in 0, 3, 16:
        i.set_refcount(i.host(gc) // i.cluster, 1)


@breaks('packed')
def count_of_packed_low(i):
    i.set_refcount((i.entry(1) & (1 << 58) - 1) // i.cluster, 1)


@breaks(*EVERY, *WIDTHS, 'snap', 'packed', 'bitmaps')
def leaks(i):
    for _ in range(3):
        i.append_cluster()


@breaks('v3', 'v2', 'rc64')
def leaks_and_low(i):
    i.append_cluster()
    i.set_refcount(i.host(0) // i.cluster, 0)


@breaks('v3', 'rc64', '64k')
def leak_behind_the_end(i):
    i.set_refcount(i.clusters + 5, 1)


@breaks(*EVERY, 'rc64', 'snap')
def all_counts_zero(i):
    at = i.block(0)
    i.data[at:at + i.cluster] = bytes(i.cluster)


@breaks(*EVERY, 'rc1', 'snap')
def all_counts_one(i):
    for ci in range(i.clusters):
        i.set_refcount(ci, 1)


# -- references
@breaks(*EVERY, *WIDTHS)
def data_shared(i):
    i.set_entry(2, i.entry(1))


@breaks('v3', 'v2', 'rc4', '512')
def data_shared_often(i):
    for gc in range(20, 60):
        i.set_entry(gc, i.entry(1))


@breaks(*EVERY, 'rc1', 'snap')
def data_on_header(i):
    i.set_entry(2, COPIED | ZERO if i.version >= 3 and not i.extended else 0)
    i.set_entry(3, i.cluster | COPIED if i.rt == i.cluster else i.cluster)


@breaks(*EVERY, 'rc1', 'snap')
def data_on_l1(i):
    i.set_entry(2, i.l1 | COPIED)


@breaks(*EVERY, 'rc1', 'snap')
def data_on_l2(i):
    i.set_entry(2, i.l2() | COPIED)


@breaks(*EVERY, 'rc1', 'snap')
def data_on_refcount_table(i):
    i.set_entry(2, i.rt | COPIED)


@breaks(*EVERY, 'rc1', 'snap')
def data_on_refcount_block(i):
    i.set_entry(2, i.block(0) | COPIED)


@breaks('snap', 'snap2')
def data_on_snapshot_table(i):
    i.set_entry(2, i.snapshots | COPIED)


@breaks('snap', 'snap2')
def data_on_snapshot_l1(i):
    i.set_entry(2, i.get(i.snapshots, 8) | COPIED)


@breaks('bitmaps')
def data_on_bitmap_directory(i):
    i.set_entry(2, i.bitmap_directory | COPIED)


@breaks(*EVERY, 'packed', 'backed', 'backed2')
def data_unaligned(i):
    i.set_entry(1, i.entry(1) + 512)


@breaks('v3', '64k', 'extl2')
def zero_unaligned(i):
    i.set_entry(4, (i.host(3) + 512) | COPIED | (0 if i.extended else ZERO))
    if i.extended:
        i.set_bitmap(4, 0xffffffff00000000)


@breaks(*EVERY, 'backed', 'backed2', 'rc64')
def data_behind_the_end(i):
    i.set_entry(1, i.clusters * i.cluster + 16 * i.cluster)


@breaks(*EVERY, 'backed', 'backed2')
def data_far_behind_the_end(i):
    i.set_entry(1, (1 << 55) | COPIED)


@breaks('v3', '64k')
def zero_behind_the_end(i):
    i.set_entry(4, (1 << 40) | ZERO)


@breaks(*EVERY, 'snap')
def l1_unaligned(i):
    i.put(i.l1, 8, i.get(i.l1, 8) + 512)


@breaks(*EVERY, 'snap')
def l1_behind_the_end(i):
    i.put(i.l1, 8, (1 << 40) | COPIED)


@breaks(*EVERY)
def l1_reserved(i):
    i.put(i.l1, 8, i.get(i.l1, 8) | 1 << 60 | 2)


@breaks(*EVERY)
def l2_reserved(i):
    i.set_entry(1, i.entry(1) | 1 << 60 | 4)


@breaks('v3', '512', 'snap')
def l2_shared(i):
    i.put(i.l1 + 8, 8, i.get(i.l1, 8))


@breaks('v3', 'v2', '512', 'snap')
def l2_on_refcount_block(i):
    i.put(i.l1 + 8, 8, i.block(0) | COPIED)


@breaks('v3', 'v2', 'snap')
def l2_on_l1(i):
    i.put(i.l1 + 8, 8, i.l1 | COPIED)


@breaks('v3', 'v2')
def l2_on_header(i):
    i.put(i.l1 + 8, 8, i.rt | COPIED)


@breaks(*EVERY, 'snap', 'snap2', 'rc1')
def copied_missing(i):
    i.set_entry(0, i.entry(0) & ~COPIED)
    i.set_entry(16, i.entry(16) & ~COPIED)
    i.put(i.l1, 8, i.get(i.l1, 8) & ~COPIED)


@breaks('snap', 'snap2')
def copied_too_much(i):
    i.set_entry(0, i.entry(0) | COPIED)
    i.set_entry(16, i.entry(16) | COPIED)


@breaks('v2')
def zero_flag_in_version_2(i):
    i.set_entry(0, i.entry(0) | ZERO)


# -- compressed clusters
@breaks('packed')
def packed_copied(i):
    i.set_entry(1, i.entry(1) | COPIED)


@breaks('packed')
def packed_behind_the_end(i):
    i.set_entry(1, COMPRESSED | len(i.data) + 65536)


@breaks('packed')
def packed_at_the_end(i):
    i.set_entry(1, COMPRESSED | len(i.data))


@breaks('packed')
def packed_over_the_end(i):
    i.set_entry(1, COMPRESSED | 7 << 58 | len(i.data) - 512)


@breaks('packed')
def packed_on_header(i):
    i.set_entry(1, COMPRESSED)


@breaks('v3', 'v2', '64k', '512')
def packed_for_data(i):
    i.set_entry(1, COMPRESSED | i.host(1) + 100)


# -- subclusters
@breaks('extl2')
def subclusters_both(i):
    i.set_bitmap(1, i.bitmap(1) | 0x0000ffff00000000)


@breaks('extl2')
def subclusters_without_place(i):
    i.set_entry(5, 0)
    i.set_bitmap(5, 0xff)


@breaks('extl2')
def subclusters_both_without_place(i):
    i.set_entry(5, 0)
    i.set_bitmap(5, 0xff000000ff)


@breaks('extl2')
def subclusters_of_packed(i):
    i.set_entry(1, COMPRESSED | i.host(1))


@breaks('extl2')
def subclusters_zero_flag(i):
    i.set_entry(1, i.entry(1) | ZERO)


@breaks('extl2')
def subclusters_none(i):
    i.set_bitmap(1, 0)


# -- the refcount structure
@breaks(*EVERY, 'rc1', 'snap')
def block_unaligned(i):
    i.put(i.rt, 8, i.get(i.rt, 8) + 512)


@breaks(*EVERY, 'rc64')
def block_reserved(i):
    i.put(i.rt, 8, i.get(i.rt, 8) | 1)


@breaks(*EVERY, 'snap')
def block_missing(i):
    i.put(i.rt, 8, 0)


@breaks(*EVERY, 'rc64')
def block_twice(i):
    i.put(i.rt + 8, 8, i.get(i.rt, 8))


@breaks('v3', 'v2', '64k')
def block_on_table(i):
    i.put(i.rt, 8, i.rt)


@breaks('v3', 'v2', '64k', 'rc64')
def block_on_header_l1_and_l2(i):
    i.put(i.rt + 8, 8, i.l1)
    i.put(i.rt + 16, 8, i.l2())


@breaks('v3', 'v2', '64k', '512')
def block_on_data(i):
    i.put(i.rt, 8, i.host(1))


@breaks('v3', 'v2', '64k')
def block_behind_the_end(i):
    i.put(i.rt + 8, 8, len(i.data) + 4 * i.cluster)


@breaks('v3', 'v2')
def block_far_behind_the_end(i):
    i.put(i.rt + 8, 8, (1 << 56) - 65536)


@breaks('v3', 'v2', 'snap')
def blocks_in_a_ring(i):
    for k in range(1, 8):
        i.put(i.rt + k * 8, 8, i.rt if k % 2 else i.block(0))


@breaks('v3', 'v2', '64k')
def table_empty(i):
    i.data[i.rt:i.rt + i.cluster] = bytes(i.cluster)


@breaks('v3')
def table_on_l1(i):
    i.rt = i.l1


@breaks('v3')
def table_on_l2(i):
    i.rt = i.l2()


@breaks('v3', 'v2')
def table_full_of_nonsense(i):
    for k in range(i.cluster // 8):
        i.put(i.rt + k * 8, 8, 0xdeadbeefcafebabe * (k + 1) & (1 << 64) - 1)


# -- the file's end
@breaks(*EVERY, 'snap', 'bitmaps', 'backed2')
def cut_by_a_cluster(i):
    del i.data[(i.clusters - 1) * i.cluster:]


@breaks(*EVERY, 'rc1', 'snap')
def cut_in_half(i):
    del i.data[i.clusters // 2 * i.cluster:]


@breaks('v3', '64k', 'packed')
def cut_within_a_cluster(i):
    del i.data[(i.clusters - 1) * i.cluster + 512:]


@breaks('v3', 'v2')
def cut_behind_the_header(i):
    del i.data[i.cluster:]


@breaks('v3')
def cut_in_the_header(i):
    del i.data[80:]


@breaks('v3', 'rc64')
def longer_than_needed(i):
    i.data.extend(bytes(10 * i.cluster))


# -- snapshots
def snapshot(field, at, size, value, bases=('snap',)):
    break_with(f'snapshot-{field}-{value:#x}', bases, lambda i: i.put(i.snapshots + at, size, value))


snapshot('l1-offset', 0, 8, 0, ('snap', 'snap2'))
snapshot('l1-offset', 0, 8, 512)
snapshot('l1-offset', 0, 8, 1 << 40)
snapshot('l1-size', 8, 4, 0, ('snap', 'snap2'))
snapshot('l1-size', 8, 4, 0x400000)
snapshot('l1-size', 8, 4, 0x400001)
snapshot('l1-size', 8, 4, 0xffffffff)
snapshot('id-size', 12, 2, 0xffff)
snapshot('name-size', 14, 2, 0xffff)
snapshot('extra', 36, 4, 0)
snapshot('extra', 36, 4, 8)
snapshot('extra', 36, 4, 1024)
snapshot('extra', 36, 4, 1025, ('snap', 'snap2'))
snapshot('extra', 36, 4, 0xffffffff)
header_field('n_snapshots', (0, 1, 3, 1000), ('snap', 'snap2'))


@breaks('snap', 'snap2')
def snapshot_l1_shared(i):
    second = i.snapshots + 40 + i.get(i.snapshots + 36, 4) + i.get(i.snapshots + 12, 2) + i.get(i.snapshots + 14, 2)
    i.put(second + 7 & ~7, 8, i.get(i.snapshots, 8))


@breaks('snap')
def snapshot_l1_is_active(i):
    i.put(i.snapshots, 8, i.l1)


@breaks('snap', 'snap2')
def snapshot_l2_unaligned(i):
    l1 = i.get(i.snapshots, 8)
    i.put(l1, 8, i.get(l1, 8) + 512)


@breaks('snap', 'snap2')
def snapshot_l2_behind_the_end(i):
    i.put(i.get(i.snapshots, 8), 8, 1 << 40)


@breaks('snap')
def snapshot_data_unaligned(i):
    l2 = i.get(i.get(i.snapshots, 8), 8) & OFFSET
    i.put(l2, 8, i.get(l2, 8) + 512)


# -- bitmaps
def bitmap_entry(field, at, size, values):
    for value in values:
        break_with(f'bitmap-{field}-{value:#x}', ('bitmaps',),
                   lambda i, value=value: i.put(i.bitmap_directory + at, size, value))


bitmap_entry('table', 0, 8, (0, 512, 4096, 1 << 40))
bitmap_entry('table-size', 8, 4, (0, 2, 0xffffffff))
bitmap_entry('flags', 12, 4, (1, 2, 0xffffffff))
bitmap_entry('type', 16, 1, (0, 2))
bitmap_entry('granularity', 17, 1, (0, 8, 9, 31, 63, 255))
bitmap_entry('name-size', 18, 2, (0, 1, 1023, 1024, 0xffff))
bitmap_entry('extra', 20, 4, (1, 8, 0xffffffff))


def bitmap_extension(field, at, size, values):
    for value in values:
        break_with(f'bitmaps-{field}-{value:#x}', ('bitmaps',),
                   lambda i, value=value: i.put(i.extension(EXT_BITMAPS) + at, size, value))


bitmap_extension('n', 0, 4, (0, 1, 3, 65535, 65536))
bitmap_extension('reserved', 4, 4, (1,))
bitmap_extension('directory-size', 8, 8, (0, 8, 32, 1 << 40))
bitmap_extension('directory', 16, 8, (0, 512, 1 << 40))


@breaks('bitmaps')
def bitmap_data_unaligned(i):
    table = i.get(i.bitmap_directory, 8)
    i.put(table, 8, 0x10200)


@breaks('bitmaps')
def bitmap_data_behind_the_end(i):
    table = i.get(i.bitmap_directory, 8)
    i.put(table, 8, 1 << 40)


@breaks('bitmaps')
def bitmap_data_reserved(i):
    table = i.get(i.bitmap_directory, 8)
    i.put(table, 8, 1 << 60)


@breaks('bitmaps')
def bitmap_data_on_l2(i):
    table = i.get(i.bitmap_directory, 8)
    i.put(table, 8, i.l2())


# -- several at once
@breaks('v3', 'v2', 'rc64')
def dirty_with_stale_counts(i):
    if i.version >= 3:
        i.incompat |= 1
    for gc in 0, 1, 16:
        i.set_refcount(i.host(gc) // i.cluster, 0)
    i.append_cluster()


@breaks('v3', 'snap')
def marked_corrupt_with_shared_data(i):
    i.incompat |= 2
    i.set_entry(2, i.entry(1))


@breaks('v3', 'v2')
def everything_at_once(i):
    i.append_cluster()
    i.set_refcount(i.host(1) // i.cluster, 0)
    i.set_entry(2, i.host(2) + 512)
    i.set_entry(3, (1 << 50) | COPIED)
    i.set_entry(0, i.entry(0) & ~COPIED)
    i.put(i.l1 + 8, 8, 1 << 45)


def make_all_qed(directory):
    """The same for qed: yields (name, path)."""
    path = os.path.join(directory, 'base.qed')
    run('qemu-img', 'create', '-q', '-f', 'qed', path, '10M')
    run('qemu-io', '-f', 'qed', '-c', 'write 0 1M', '-c', 'write 3M 200k', path)
    sound = Image.read(path)
    l1 = struct.unpack_from('<Q', sound.data, 40)[0]
    l2 = struct.unpack_from('<Q', sound.data, l1)[0]
    data = struct.unpack_from('<2Q', sound.data, l2)
    breakages = {
        'nothing': (), 'needs-check': ((16, 2),), 'data-shared': ((l2 + 8, data[0]),),
        'data-unaligned': ((l2 + 8, data[1] + 512),), 'data-behind-the-end': ((l2 + 8, 1 << 40),),
        'data-on-header': ((l2 + 8, 2),), 'data-on-l1': ((l2 + 8, l1),), 'l2-unaligned': ((l1, l2 + 512),),
        'l2-shared': ((l1 + 8, l2),), 'l2-behind-the-end': ((l1, 1 << 40),), 'l2-on-l1': ((l1, l1),),
        'needs-check-data-behind-the-end': ((16, 2), (l2 + 8, 1 << 40)), 'unknown-feature': ((16, 8),),
        'l1-behind-the-end': ((40, 1 << 40),), 'no-data': ((l2, 0),),
    }
    for name, changes in breakages.items():
        image = Image(sound.data)
        for at, value in changes:
            struct.pack_into('<Q', image.data, at, value)
        yield name, save_as(image, directory, f'{name}.qed')
    image = Image(sound.data + bytes(300 * 1024))
    yield 'longer', save_as(image, directory, 'longer.qed')
    image = Image(sound.data[:-65536])
    yield 'cut', save_as(image, directory, 'cut.qed')


def save_as(image, directory, name):
    path = os.path.join(directory, name)
    image.save(path)
    return path


def make_all(directory):
    """Makes all images; yields (name, path). The bases stay beside them."""
    bases = make_bases(directory)
    sound = {name: Image.read(path).data for name, path in bases.items()}
    for name, on, function in BREAKAGES:
        for b in dict.fromkeys(on):
            image = Image(sound[b])
            function(image)
            yield f'{b}-{name}', save_as(image, directory, f'{b}-{name}.qcow2')


if __name__ == '__main__':
    for made, _ in make_all(sys.argv[1]):
        print(made)
