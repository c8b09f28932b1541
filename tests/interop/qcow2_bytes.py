"""The bytes of a qcow2 image and where things are in it, for those who change them."""

COPIED, COMPRESSED, ZERO = 1 << 63, 1 << 62, 1
OFFSET = 0x00fffffffffffe00
EXT_BITMAPS, EXT_END = 0x23852875, 0


class Image:
    """The bytes of an image, and where things are in it."""

    def __init__(self, data):
        self.data = bytearray(data)

    @classmethod
    def read(cls, path):
        with open(path, 'rb') as f:
            return cls(f.read())

    def save(self, path):
        with open(path, 'wb') as f:
            f.write(self.data)

    # ---- numbers, big-endian ----
    def get(self, at, size):
        return int.from_bytes(self.data[at:at + size], 'big')

    def put(self, at, size, value):
        if at + size > len(self.data):
            self.data.extend(bytes(at + size - len(self.data)))
        self.data[at:at + size] = value.to_bytes(size, 'big')

    def field(name, at, size):  # pylint: disable=no-self-argument
        return property(lambda self: self.get(at, size), lambda self, value: self.put(at, size, value), doc=name)

    version = field('version', 4, 4)
    backing_offset = field('backing_offset', 8, 8)
    backing_size = field('backing_size', 16, 4)
    cluster_bits = field('cluster_bits', 20, 4)
    size = field('size', 24, 8)
    crypt = field('crypt', 32, 4)
    l1_size = field('l1_size', 36, 4)
    l1 = field('l1', 40, 8)
    rt = field('rt', 48, 8)
    rt_clusters = field('rt_clusters', 56, 4)
    n_snapshots = field('n_snapshots', 60, 4)
    snapshots = field('snapshots', 64, 8)
    incompat = field('incompat', 72, 8)
    compat = field('compat', 80, 8)
    autoclear = field('autoclear', 88, 8)
    refcount_order = field('refcount_order', 96, 4)
    header_length = field('header_length', 100, 4)
    del field

    @property
    def cluster(self):
        return 1 << self.cluster_bits

    @property
    def clusters(self):
        return -(-len(self.data) // self.cluster)

    @property
    def order(self):
        return self.refcount_order if self.version >= 3 else 4

    @property
    def extended(self):
        return self.version >= 3 and bool(self.incompat & 16)

    @property
    def entry_size(self):
        return 16 if self.extended else 8

    # ---- refcounts ----
    @property
    def per_block(self):
        return self.cluster * 8 >> self.order

    def block(self, ci):
        return self.get(self.rt + ci // self.per_block * 8, 8)

    def refcount(self, ci):
        bits, i = 1 << self.order, ci % self.per_block
        if bits >= 8:
            return self.get(self.block(ci) + i * bits // 8, bits // 8)
        return self.data[self.block(ci) + i * bits // 8] >> (i * bits % 8) & ((1 << bits) - 1)

    def set_refcount(self, ci, value):
        bits, i = 1 << self.order, ci % self.per_block
        if bits >= 8:
            self.put(self.block(ci) + i * bits // 8, bits // 8, value)
            return
        at, shift = self.block(ci) + i * bits // 8, i * bits % 8
        self.data[at] = self.data[at] & ~(((1 << bits) - 1) << shift) | value << shift

    @property
    def max_refcount(self):
        return (1 << (1 << self.order)) - 1

    # ---- guest clusters ----
    def l2(self, l1_index=0):
        return self.get(self.l1 + l1_index * 8, 8) & OFFSET

    def entry_at(self, gc):
        per_table = self.cluster // self.entry_size
        return self.l2(gc // per_table) + gc % per_table * self.entry_size

    def entry(self, gc):
        return self.get(self.entry_at(gc), 8)

    def set_entry(self, gc, value):
        self.put(self.entry_at(gc), 8, value)

    def bitmap(self, gc):
        return self.get(self.entry_at(gc) + 8, 8)

    def set_bitmap(self, gc, value):
        self.put(self.entry_at(gc) + 8, 8, value)

    def host(self, gc):
        return self.entry(gc) & OFFSET

    # ---- the rest ----
    def append_cluster(self):
        """A new cluster at the end of the file, with refcount 1; its offset."""
        at = self.clusters * self.cluster
        self.data.extend(bytes(at + self.cluster - len(self.data)))
        self.set_refcount(at // self.cluster, 1)
        return at

    def extension(self, kind):
        """Where the data of a header extension is, or None."""
        at = self.header_length if self.version >= 3 else 72
        while True:
            found, size = self.get(at, 4), self.get(at + 4, 4)
            if found == kind:
                return at + 8
            if found == EXT_END:
                return None
            at += 8 + (size + 7 & ~7)

    @property
    def bitmap_directory(self):
        return self.get(self.extension(EXT_BITMAPS) + 16, 8)
