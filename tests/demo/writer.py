"""The demo's client: keeps writing over NBD into the data blocks of one big file, and remembers what it wrote.

    writer.py URI BLOCKS-FILE     (a block number of 4 KiB a line)

Orders come as lines on stdin, each answered with a line: pause (flush, then stand still), resume, dump FILE (the last
stamp of every block written, as JSON). End of input: flush and leave. Each written block holds its number and the
running number of the write, over and over, so that a lost, torn or reordered write shows.
"""
import json
import random
import select
import struct
import sys
import time

import nbd

BLOCK = 4096
RATE = 2000  # blocks a second


def content(block, stamp):
    return struct.pack('<QQ', block, stamp) * (BLOCK // 16)


def main(uri, blocks_file):
    with open(blocks_file) as f:
        blocks = [int(line) for line in f]
    rng = random.Random(20)
    last, stamp, paused, started = {}, 0, False, time.monotonic()
    h = nbd.NBD()
    h.connect_uri(uri)
    while True:
        ahead = stamp / RATE - (time.monotonic() - started)
        if select.select([sys.stdin], [], [], None if paused else max(0, ahead))[0]:
            order, *rest = sys.stdin.readline().split() or ['end']
            if order == 'pause':
                paused = True
                h.flush()
            elif order == 'resume':
                paused, started = False, time.monotonic() - stamp / RATE
            elif order == 'dump':
                with open(rest[0], 'w') as f:
                    json.dump(last, f)
            else:
                h.flush()
                h.shutdown()
                return
            print(order, stamp, flush=True)
            continue
        first = rng.randrange(len(blocks) - 16)
        run = blocks[first:first + rng.choice((1, 1, 2, 4, 16))]
        if run[-1] - run[0] != len(run) - 1:  # the file has a gap here
            run = run[:1]
        data = b''
        for block in run:
            stamp += 1
            last[block] = stamp
            data += content(block, stamp)
        h.pwrite(data, run[0] * BLOCK)


if __name__ == '__main__':
    main(*sys.argv[1:])
