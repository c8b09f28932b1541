"""Events that a broken disk can raise by the thousand come once a second and node, on the clock of rate limits."""
import sd

SECOND = 1_000_000_000


class EventRate(sd.Case):
    def setUp(self):
        for name in 'abc':
            sd.create_image(self.path(name), 'raw', sd.MIB)
        self.d = d = self.daemon('--manual-rate-clock')
        for name in 'abc':
            d.cmd('blockdev-add', driver='raw', node_name=name, file={
                'driver': 'blkdebug', 'image': {'driver': 'file', 'filename': self.path(name)},
                'inject-error': [] if name == 'c' else [{'event': 'read_aio', 'errno': 5, 'iotype': 'read'}]})
        d.cmd('blockdev-add', driver='quorum', node_name='q', vote_threshold=1, children=['a', 'b', 'c'])

    def read(self, offset):
        self.d.cmd('human-monitor-command', command_line=f'qemu-io q "read -q {offset} 512"')

    def events(self):
        """(node, sector) of the events that came."""
        return sorted((e['data']['node-name'], e['data']['sector-num'])
                      for e in self.d.take_events('QUORUM_REPORT_BAD'))

    def step(self, ns=SECOND):
        self.d.cmd('x-rate-clock-step', ns=ns)

    def test_last_of_a_second(self):
        for sector in range(5):
            self.read(512 * sector)
        self.assertEqual([('a', 0), ('b', 0)], self.events())
        self.step(SECOND - 1)
        self.assertEqual([], self.events())
        self.step(1)
        self.assertEqual([('a', 4), ('b', 4)], self.events())
        # That one began a new second.
        self.read(512 * 7)
        self.assertEqual([], self.events())
        self.step()
        self.assertEqual([('a', 7), ('b', 7)], self.events())
        # A second of peace, and the next one goes out at once.
        self.step()
        self.assertEqual([], self.events())
        self.read(512 * 9)
        self.assertEqual([('a', 9), ('b', 9)], self.events())

    def test_nothing_is_lost_at_the_end(self):
        self.read(0)
        self.read(512)
        self.events()
        self.d.shutdown()
        names = [e['event'] for e in self.d.events]
        self.assertEqual(2, names.count('QUORUM_REPORT_BAD'))
        self.assertLess(names.index('QUORUM_REPORT_BAD'), names.index('SHUTDOWN'))

    def test_clock_command(self):
        now = self.d.cmd('x-rate-clock-step', ns=0)
        self.assertEqual(now + 5, self.d.cmd('x-rate-clock-step', ns=5))
        self.fails(self.d, "Parameter 'ns'", 'x-rate-clock-step', ns=-1)
        self.fails(self.d, "Parameter 'ns'", 'x-rate-clock-step', ns=2**63 - 1)


if __name__ == '__main__':
    sd.main()
