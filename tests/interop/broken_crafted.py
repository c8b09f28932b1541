"""More broken images: header extensions, bitmaps, snapshots and subclusters as somebody with bad intent would write them.

Importing this adds them to those of broken_images.py. LUKS headers are apart, because a checker needs no key."""
import os
import struct

import sd
from broken_images import break_with, breaks, header_field, run, save_as, snapshot
from qcow2_bytes import COPIED, EXT_BITMAPS, EXT_END, Image

EXT_BACKING, EXT_FEATURES, EXT_DATA, EXT_CRYPTO, EXT_UNKNOWN = 0xe2792aca, 0x6803f857, 0x44415441, 0x0537be77, 0x12345678
SECRET = ('--object', 'secret,id=k,data=k')


# -- header extensions
def extension(kind, data=b'', size=None):
    """Its bytes; @size is what it says of itself."""
    return struct.pack('>II', kind, len(data) if size is None else size) + data + bytes(-len(data) % 8)


def replace_extensions(i, *extensions, end=True):
    """These and no others."""
    data = b''.join(extensions) + (bytes(8) if end else b'')
    at = i.header_length
    i.data[at:at + len(data)] = data


def with_extensions(name, *extensions, incompat=0, end=True):
    def function(i):
        replace_extensions(i, *extensions, end=end)
        i.incompat |= incompat
    break_with('extension-' + name, ('v3',), function)


ROOM = 4096 - 112 - 8  # the header's cluster has that much for one extension's data, with no end mark behind
for length in 0, 1, 7, 0x7fffffff, 0xfffffff8, 0xffffffff:
    with_extensions(f'unknown-{length:#x}', extension(EXT_UNKNOWN, bytes(min(length, 8)), length))
with_extensions('unknown-to-the-end', extension(EXT_UNKNOWN, bytes(ROOM)), end=False)
with_extensions('unknown-over-the-end', extension(EXT_UNKNOWN, bytes(ROOM), ROOM + 1), end=False)
with_extensions('many', *[extension(EXT_UNKNOWN)] * ((ROOM + 8) // 8), end=False)
with_extensions('end-with-a-length', extension(EXT_END, size=64), end=False)
with_extensions('end-with-much-length', extension(EXT_END, size=0xffffffff), end=False)
for length in 0, 1, 15, 16, 255:
    with_extensions(f'backing-format-{length}', extension(EXT_BACKING, b'q' * length))
with_extensions('backing-format-twice', extension(EXT_BACKING, b'raw'), extension(EXT_BACKING, b'qcow2'))
with_extensions('backing-format-no-text', extension(EXT_BACKING, b'\xff\0\n'))
for length in 0, 1, 47, 48, 49, 3072:
    with_extensions(f'features-{length}', extension(EXT_FEATURES, b'\0\x3f' * (length // 2) + b'x' * (length % 2)))
with_extensions('features-that-lie', extension(EXT_FEATURES, b'\0\x05' + b'\xff\n\x1b[2J' * 7 + bytes(4)), incompat=1 << 5)
with_extensions('features-odd', extension(EXT_FEATURES, b'\xff\xff' + b'x' * 46), incompat=1 << 63)
for length in 0, 1, 1023, 1024, 3000:
    with_extensions(f'data-file-{length}', extension(EXT_DATA, b'd' * length))
with_extensions('crypto-without-encryption', extension(EXT_CRYPTO, struct.pack('>QQ', 4096, 4096)))
with_extensions('crypto-short', extension(EXT_CRYPTO, b'1234567'))
for length in 0, 8, 23, 25:
    with_extensions(f'bitmaps-{length}', extension(EXT_BITMAPS, bytes(length)))


@breaks('bitmaps')
def extension_bitmaps_twice(i):
    at = i.extension(EXT_BITMAPS)
    i.data[at + 24:at + 56] = i.data[at - 8:at + 24]
    i.put(at + 56, 8, 0)


@breaks('v3')
def data_file_bit_without_a_name(i):
    replace_extensions(i, extension(EXT_UNKNOWN))
    i.incompat |= 4


def compression(value, incompat):
    def function(i):
        i.data[104] = value
        i.incompat |= incompat
    break_with(f'compression-type-{value}-{incompat}', ('v3', 'packed'), function)


for kind, bit in (1, 0), (0, 8), (1, 8), (2, 8), (255, 8), (255, 0):
    compression(kind, bit)
header_field('backing_size', (1023, 1024, 0xffffffff), ('v3', 'backed', 'backed2'))
header_field('backing_offset', (4095, 4096), ('backed',))


# -- bitmaps
@breaks('bitmaps')
def bitmap_name_twice(i):
    at = i.bitmap_directory
    i.data[at + 32 + 24:at + 32 + 26] = i.data[at + 24:at + 26]


@breaks('bitmaps')
def bitmap_tables_shared(i):
    at = i.bitmap_directory
    i.put(at + 32, 8, i.get(at, 8))


@breaks('bitmaps')
def bitmap_table_on_l1(i):
    i.put(i.bitmap_directory, 8, i.l1)


@breaks('bitmaps')
def bitmap_directory_on_header(i):
    i.put(i.extension(EXT_BITMAPS) + 16, 8, 0)


@breaks('bitmaps')
def bitmap_directory_on_its_table(i):
    i.put(i.extension(EXT_BITMAPS) + 16, 8, i.get(i.bitmap_directory, 8))


@breaks('bitmaps')
def bitmap_data_in_a_ring(i):
    table = i.get(i.bitmap_directory, 8)
    i.put(table, 8, table)


@breaks('bitmaps')
def bitmap_data_with_a_place_and_a_flag(i):
    table = i.get(i.bitmap_directory, 8)
    i.put(table, 8, i.get(table, 8) | 1)


@breaks('bitmaps')
def bitmap_extra_data_known(i):
    at = i.bitmap_directory
    i.put(at + 12, 4, i.get(at + 12, 4) | 4)


# -- snapshots
snapshot('extra', 36, 4, 15)
snapshot('extra', 36, 4, 17)
snapshot('state-size', 32, 4, 0xffffffff, ('snap', 'snap2'))
snapshot('state-size-64', 40, 8, 1 << 63)
snapshot('disk-size', 48, 8, 0)
snapshot('disk-size', 48, 8, 511)
snapshot('disk-size', 48, 8, 1 << 40)
snapshot('disk-size', 48, 8, (1 << 64) - 1)


@breaks('snap', 'snap2')
def snapshot_ids_twice(i):
    at = i.snapshots
    first = 40 + i.get(at + 36, 4)
    size = first + i.get(at + 12, 2) + i.get(at + 14, 2) + 7 & ~7
    i.data[at + size + first] = i.data[at + first]


@breaks('snap')
def snapshot_l1_on_refcounts(i):
    i.put(i.snapshots, 8, i.block(0))


# -- subclusters
@breaks('extl2')
def subclusters_all_both(i):
    i.set_bitmap(1, (1 << 64) - 1)


@breaks('extl2')
def subclusters_both_at_the_ends(i):
    i.set_bitmap(1, i.bitmap(1) & ~(1 << 63 | 1 << 32) | 1 << 63 | 1 << 31 | 1)
    i.set_bitmap(2, i.bitmap(2) | 1 << 32)


@breaks('extl2')
def subclusters_both_unaligned(i):
    i.set_entry(1, i.entry(1) + 512)
    i.set_bitmap(1, (1 << 64) - 1)


@breaks('extl2')
def subclusters_zero_behind_the_end(i):
    i.set_entry(5, 1 << 40 | COPIED)
    i.set_bitmap(5, 0xffffffff << 32)


@breaks('extl2')
def subclusters_shared(i):
    i.set_entry(2, i.entry(1))
    i.set_bitmap(1, 0xffff)
    i.set_bitmap(2, 0xffff0000)


# -- LUKS
def make_all_luks(directory):
    """Encrypted images (key "k"), of which the checker has nothing to say: yields (name, path)."""
    path = os.path.join(directory, 'base-luks.qcow2')
    o = ('encrypt.format=luks,encrypt.key-secret=k,encrypt.iter-time=1,encrypt.cipher-alg=aes-128,encrypt.cipher-mode=cbc,'
         'encrypt.hash-alg=sha512')
    base_luks(path, o)
    sound = Image.read(path)
    at = sound.extension(EXT_CRYPTO)
    luks = sound.get(at, 8)
    slot = luks + 208
    changes = {'nothing': (at, 8, luks), 'no-method': (32, 4, 0), 'aes': (32, 4, 1),
               'extension-of-another-kind': (at - 8, 4, EXT_UNKNOWN), 'extension-of-8-bytes': (at - 4, 4, 8),
               'slot-nonsense': (slot, 4, 0x00ac71f2), 'slot-empty': (slot, 4, 0x0000dead),
               'digest-wrong': (luks + 112, 4, 0), 'salt-wrong': (slot + 8, 4, 0), 'version-2': (luks + 6, 2, 2),
               'uuid-no-text': (luks + 168, 8, (1 << 64) - 1)}
    fields = {'offset': (at, 8, (0, 512, luks + 4096, sound.l1, 1 << 40, (1 << 56) - 4096, 1 << 63)),
              'length': (at + 8, 8, (0, 591, 592, 1 << 24, (1 << 24) + 1, (1 << 64) - 1)),
              'payload': (luks + 104, 4, (0, 1, 0xffffffff)), 'key-bytes': (luks + 108, 4, (0, 1, 15, 17, 32, 0xffffffff)),
              'digest-iterations': (luks + 164, 4, (0, 1, 0xffffffff)),
              'iterations': (slot + 4, 4, (0, 1, 0x10000001, 0xffffffff)),
              'material': (slot + 40, 4, (0, 1, 0xffff, 0xffffffff)), 'stripes': (slot + 44, 4, (0, 1, 0xffffffff)),
              'second-material': (slot + 48 + 40, 4, (0, 8, 9, 0xffffffff))}
    changes.update({f'{name}-{v:#x}': (place, size, v) for name, (place, size, values) in fields.items() for v in values})
    for name, change in changes.items():
        image = Image(sound.data)
        image.put(*change)
        yield f'luks-{name}', save_as(image, directory, f'luks-{name}.qcow2')
    for name, cut in ('header', luks + 100), ('material', luks + 8192), ('behind', luks):
        yield f'luks-cut-in-{name}', save_as(Image(sound.data[:cut]), directory, f'luks-cut-in-{name}.qcow2')


def base_luks(path, o):
    sd.qemu_img('create', '-q', *SECRET, '-f', 'qcow2', '-o', 'cluster_size=4096,' + o, path, '1M')
    run('qemu-io', *SECRET, '-c', 'write -q -P 7 0 64k', '--image-opts',
        f'driver=qcow2,encrypt.format=luks,encrypt.key-secret=k,file.filename={path}')
