"""QMP conduct: greeting, negotiation, ids, bad input, how bytes are cut, many sessions, sessions that do not read."""
import json
import os
import socket
import threading
import time
import unittest

import sd

NOT_NEGOTIATED = "Expecting capabilities negotiation with 'qmp_capabilities'"
VERSION = {'execute': 'query-version'}


class Raw:
    """Bytes to and from the QMP socket, without the manners of sd.Qmp."""

    def __init__(self, path, negotiate=True):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(sd.TIMEOUT)
        self.sock.connect(path)
        self.buf = b''
        self.greeting = self.receive()
        if negotiate:
            self.ask({'execute': 'qmp_capabilities'})

    def close(self):
        self.sock.close()

    def send(self, data):
        self.sock.sendall(data if isinstance(data, bytes) else data.encode() if isinstance(data, str)
                          else json.dumps(data).encode() + b'\n')

    def receive(self):
        while b'\n' not in self.buf:
            data = self.sock.recv(1 << 16)
            if not data:
                raise sd.Disconnected(repr(self.buf))
            self.buf += data
        line, self.buf = self.buf.split(b'\n', 1)
        return json.loads(line)

    def ask(self, data):
        self.send(data)
        return self.receive()

    def reply(self):
        """The next message that is no event."""
        while 'event' in (message := self.receive()):
            pass
        return message
        return message

    def silent(self, seconds=0.2):
        """Does nothing arrive for so long?"""
        self.sock.settimeout(seconds)
        try:
            self.buf += self.sock.recv(1 << 16)
            return False
        except TimeoutError:
            return not self.buf
        finally:
            self.sock.settimeout(sd.TIMEOUT)


class QmpCase(sd.Case):
    def setUp(self):
        self.d = self.daemon()
        self.raw = self.session()

    def session(self, negotiate=True):
        r = Raw(self.d.socket, negotiate)
        self.addCleanup(r.close)
        return r

    def assertError(self, reply, text, cls='GenericError'):
        self.assertIn('error', reply)
        self.assertEqual(set(reply['error']), {'class', 'desc'})
        self.assertEqual(reply['error']['class'], cls)
        self.assertIn(text, reply['error']['desc'])

    def assertAlive(self, raw=None):
        """The session goes on as if nothing had been."""
        reply = (raw or self.raw).ask({'execute': 'query-version', 'id': 'alive'})
        self.assertEqual(reply['id'], 'alive')
        self.assertIn('qemu', reply['return'])


class Negotiation(QmpCase):
    def test_greeting(self):
        greeting = self.session(negotiate=False).greeting
        self.assertEqual(set(greeting['QMP']), {'version', 'capabilities'})
        self.assertEqual(greeting['QMP']['capabilities'], [])
        self.assertEqual(greeting['QMP']['version'], self.d.cmd('query-version'))

    def test_version(self):
        version = self.d.cmd('query-version')
        self.assertEqual(version['qemu'], {'major': 7, 'minor': 2, 'micro': 0})
        self.assertRegex(version['package'], r'^storage-daemon \d+\.\d+\.\d+$')

    def test_nothing_before_it(self):
        r = self.session(negotiate=False)
        self.assertError(r.ask(VERSION), NOT_NEGOTIATED, 'CommandNotFound')
        self.assertError(r.ask({'execute': 'no-such'}), NOT_NEGOTIATED, 'CommandNotFound')
        self.assertEqual(r.ask({'execute': 'qmp_capabilities', 'id': 7}), {'return': {}, 'id': 7})
        self.assertAlive(r)

    def test_twice(self):
        self.assertError(self.raw.ask({'execute': 'qmp_capabilities'}), 'negotiation is already complete',
                         'CommandNotFound')
        self.assertAlive()

    def test_oob_is_not_offered(self):
        r = self.session(negotiate=False)
        self.assertError(r.ask({'execute': 'qmp_capabilities', 'arguments': {'enable': ['oob']}}), "'oob'")
        self.assertError(r.ask(VERSION), NOT_NEGOTIATED, 'CommandNotFound')
        self.assertError(r.ask({'execute': 'qmp_capabilities', 'arguments': {'enable': ['x']}}),
                         "does not accept value 'x'")

    def test_no_events_before_it(self):
        waiting = self.session(negotiate=False)
        self.d.cmd('nbd-server-start', addr={'type': 'unix', 'data': {'path': self.path('nbd')}})
        self.d.cmd('blockdev-add', driver='null-co', node_name='n')
        self.d.cmd('block-export-add', type='nbd', id='e', node_name='n')
        self.d.cmd('block-export-del', id='e')
        self.assertEqual(self.raw.receive()['event'], 'BLOCK_EXPORT_DELETED')
        self.assertTrue(waiting.silent())

    def test_commands_and_schema(self):
        names = {c['name'] for c in self.d.cmd('query-commands')}
        self.assertLessEqual({'qmp_capabilities', 'query-commands', 'query-qmp-schema', 'quit', 'blockdev-add',
                              'drive-mirror', 'block-export-add'}, names)
        schema = self.d.cmd('query-qmp-schema')
        self.assertEqual({e['name'] for e in schema if e['meta-type'] == 'command'}, names)


class Requests(QmpCase):
    def test_ids_come_back(self):
        for id in (0, -1, 2**63 - 1, 1.5, True, None, '', 'text', 'ä€𝄞', [], [1, [2]], {}, {'a': {'b': None}}):
            with self.subTest(id=id):
                self.assertEqual(self.raw.ask({'execute': 'query-version', 'id': id})['id'], id)
                self.assertEqual(self.raw.ask({'execute': 'no-such', 'id': id})['id'], id)

    def test_no_id_none_back(self):
        self.assertEqual(set(self.raw.ask(VERSION)), {'return'})
        self.assertEqual(set(self.raw.ask({'execute': 'no-such'})), {'error'})

    def test_shape(self):
        for request, text in (
                ([], 'must be a JSON object'), ('"x"\n', 'must be a JSON object'), ('7\n', 'must be a JSON object'),
                ({}, "lacks member 'execute'"), ({'arguments': {}}, "lacks member 'execute'"),
                ({'execute': 1}, "'execute' must be a string"), ({'execute': None}, "'execute' must be a string"),
                ({'execute': 'query-version', 'arguments': []}, "'arguments' must be an object"),
                ({'execute': 'query-version', 'arguments': None}, "'arguments' must be an object"),
                ({'execute': 'query-version', 'control': {}}, "QMP input member 'control' is unexpected"),
                ({'exec-oob': 'query-version'}, "QMP input member 'exec-oob' is unexpected")):
            with self.subTest(request=request):
                self.assertError(self.raw.ask(request), text)
                self.assertAlive()

    def test_unknown_command(self):
        self.assertError(self.raw.ask({'execute': 'no-such', 'id': 1}), 'The command no-such has not been found',
                         'CommandNotFound')

    def test_arguments(self):
        for command, arguments, text in (
                ('query-version', {'x': 1}, "Parameter 'x' is unexpected"),
                ('blockdev-add', {}, "Parameter 'driver' is missing"),
                ('blockdev-add', {'driver': 'x'}, "Parameter 'driver' does not accept value 'x'"),
                ('blockdev-add', {'driver': 1}, "Invalid parameter type for 'driver', expected: string"),
                ('blockdev-add', {'driver': 'null-co', 'node-name': 'n', 'x': 1}, "Parameter 'x' is unexpected"),
                ('blockdev-add', {'driver': 'null-co', 'node-name': 'n', 'size': '1'},
                 "Invalid parameter type for 'size', expected: integer"),
                ('blockdev-add', {'driver': 'raw', 'node-name': 'n', 'file': {'driver': 'file'}},
                 "Parameter 'file.filename' is missing"),
                ('blockdev-del', {'node-name': True}, "Invalid parameter type for 'node-name', expected: string")):
            with self.subTest(command=command, arguments=arguments):
                self.assertError(self.raw.ask({'execute': command, 'arguments': arguments}), text)
        self.assertEqual(self.d.cmd('query-named-block-nodes'), [])

    def test_classes(self):
        self.assertEqual(self.d.qmp('block-job-cancel', device='x')['error']['class'], 'DeviceNotActive')
        self.assertEqual(self.d.qmp('block-dirty-bitmap-add', node='x', name='b')['error']['class'], 'GenericError')


class BadJson(QmpCase):
    """What is no JSON gets one error that says why, and the session goes on."""

    def assertRefused(self, data, text):
        self.raw.send(data + b'\n' if isinstance(data, bytes) else data + '\n')
        self.assertError(self.raw.receive(), text)
        self.assertTrue(self.raw.silent(0.02), 'more than one error')
        self.assertAlive()

    def test_grammar(self):
        for text in ('{"execute": }', '{"execute" "x"}', '{"execute":"query-version",}', '{,}', '[1 2]', '}', ']', '{]',
                     'nul', 'True', "{'a': 'b\"}", '{"a": 01}', '{"a": 1.}', '{"a": .5}', '{"a": +1}', '{"a": 0x10}',
                     '{"a": "\\x"}', '{"a": "\t"}', '{1: 2}', '{"a": NaN}', '{"a": //c\n1}'):
            with self.subTest(text=text):
                self.raw.send(text + '\n')
                self.assertError(self.raw.receive(), 'JSON')
                # A text may hold more than one mistake; whatever it got, the next command works.
                self.raw.send({'execute': 'query-version', 'id': 'next'})
                while (reply := self.raw.receive()).get('id') != 'next':
                    self.assertError(reply, 'JSON')
                self.assertIn('return', reply)

    def test_utf8(self):
        for bad in (b'\xff', b'\xc0\x80', b'\xed\xa0\x80', b'\xf4\x90\x80\x80', b'\xe2\x82', b'\x80'):
            with self.subTest(bad=bad):
                self.assertRefused(b'{"execute": "query-version", "id": "' + bad + b'"}', 'UTF-8')

    def test_surrogates(self):
        for bad in ('\\ud800', '\\udc00', '\\ud800\\u0041', '\\u0000'):
            with self.subTest(bad=bad):
                self.assertRefused('{"execute": "query-version", "id": "%s"}' % bad, 'Unicode')
        self.assertEqual(self.raw.ask('{"execute": "query-version", "id": "\\ud834\\udd1e"}')['id'], '\U0001d11e')

    def test_duplicate_keys(self):
        self.assertRefused('{"execute": "query-version", "execute": "quit"}', 'duplicate key')
        self.assertRefused('{"execute": "query-version", "id": {"a": 1, "a": 2}}', 'duplicate key')

    def test_numbers(self):
        for bad in ('18446744073709551616', '-9223372036854775809', '1' + '0' * 400, '1e400', '-1e400'):
            with self.subTest(bad=bad):
                self.assertRefused('{"execute": "query-version", "id": %s}' % bad, 'out of range')
        for good in (2 ** 64 - 1, 2 ** 63, -2 ** 63):
            with self.subTest(good=good):
                self.assertEqual(self.raw.ask('{"execute": "query-version", "id": %d}' % good)['id'], good)

    def test_depth(self):
        def nested(depth):
            return '{"execute": "query-version", "id": %s}' % ('[' * depth + ']' * depth)
        # the object itself is one level
        self.assertIn('return', self.raw.ask(nested(255)))
        self.assertRefused(nested(256), 'deeper than 256')
        self.assertRefused(nested(100000), 'deeper than 256')

    def test_size(self):
        def long(size):
            head, tail = '{"execute": "query-version", "id": "', '"}'
            return head + 'x' * (size - len(head) - len(tail)) + tail
        self.assertIn('return', self.raw.ask(long(4 << 20)))
        self.raw.send(long((4 << 20) + 1) + '\n')
        self.assertError(self.raw.receive(), 'larger than 4194304 bytes')
        self.assertAlive()

    def test_single_quotes(self):
        self.assertEqual(self.raw.ask("{'execute': 'query-version', 'id': 'it\\'s'}")['id'], "it's")


class Framing(QmpCase):
    """Commands split over reads and joined in one."""

    def test_byte_by_byte(self):
        for byte in json.dumps({'execute': 'query-version', 'id': 'ä'}, ensure_ascii=False).encode():
            self.raw.send(bytes([byte]))
            time.sleep(0.001)
        self.assertEqual(self.raw.receive()['id'], 'ä')

    def test_no_newline_needed(self):
        self.raw.send('{"execute": "query-version", "id": 1}')
        self.assertEqual(self.raw.receive()['id'], 1)

    def test_over_lines(self):
        self.raw.send('{\n"execute":\r\n\t"query-version",\n "id":\n 1\n}\n')
        self.assertEqual(self.raw.receive()['id'], 1)

    def test_joined_in_order(self):
        n = 2000
        text = ''.join('{"execute": "query-version", "id": %d}' % i for i in range(n))
        sender = threading.Thread(target=self.raw.send, args=(text,))
        sender.start()
        self.assertEqual([self.raw.receive()['id'] for _ in range(n)], list(range(n)))
        sender.join()

    def test_each_sees_the_one_before(self):
        self.raw.send('{"execute": "blockdev-add", "arguments": {"driver": "null-co", "node-name": "n"}}'
                      '{"execute": "blockdev-add", "arguments": {"driver": "null-co", "node-name": "n"}}'
                      '{"execute": "blockdev-del", "arguments": {"node-name": "n"}}')
        self.assertEqual(self.raw.receive(), {'return': {}})
        self.assertError(self.raw.receive(), 'Duplicate nodes')
        self.assertEqual(self.raw.receive(), {'return': {}})

    def test_half_closed(self):
        """Whoever pipes commands in and closes still gets every reply."""
        self.raw.send('{"execute": "query-version", "id": 1}{"execute": "query-qmp-schema", "id": 2}')
        self.raw.sock.shutdown(socket.SHUT_WR)
        self.assertEqual([self.raw.receive()['id'] for _ in range(2)], [1, 2])
        with self.assertRaises(sd.Disconnected):
            self.raw.receive()

    def test_gone_mid_command(self):
        for text in ('{"execute": "query-ver', '{"execute": "query-qmp-schema"}' * 20):
            r = self.session()
            r.send(text)
            r.close()
        self.assertAlive()

    def test_one_line_each(self):
        self.raw.send({'execute': 'query-qmp-schema'})
        while not self.raw.buf.endswith(b'\r\n'):
            self.raw.buf += self.raw.sock.recv(1 << 16)
        self.assertEqual(self.raw.buf.count(b'\n'), 1)


class Sessions(QmpCase):
    def test_many(self):
        sessions = [self.session() for _ in range(100)]
        for i, s in enumerate(sessions):
            s.send({'execute': 'query-version', 'id': i})
        for i, s in enumerate(sessions):
            self.assertEqual(s.receive()['id'], i)

    def test_limit(self):
        """More clients than there are sessions for wait until one leaves."""
        sessions = [self.session(negotiate=False) for _ in range(240)]
        late = []
        for _ in range(40):
            s = socket.socket(socket.AF_UNIX)
            self.addCleanup(s.close)
            s.connect(self.d.socket)
            late.append(s)
        late[-1].settimeout(0.2)
        with self.assertRaises(TimeoutError):
            late[-1].recv(1)
        self.assertAlive()
        for s in sessions:
            s.close()
        late[-1].settimeout(sd.TIMEOUT)
        self.assertEqual(late[-1].recv(7), b'{"QMP":')

    def test_connect_and_leave(self):
        for _ in range(300):
            Raw(self.d.socket, negotiate=False).close()
        self.assertAlive()
        self.assertLess(len(os.listdir(f'/proc/{self.d.pid}/fd')), 40)

    def test_events_to_all(self):
        others = [self.session() for _ in range(5)]
        self.d.cmd('nbd-server-start', addr={'type': 'unix', 'data': {'path': self.path('nbd')}})
        self.d.cmd('blockdev-add', driver='null-co', node_name='n')
        self.d.cmd('block-export-add', type='nbd', id='e', node_name='n')
        before = time.time()
        self.d.cmd('block-export-del', id='e')
        for s in others:
            event = s.receive()
            self.assertEqual((event['event'], event['data']), ('BLOCK_EXPORT_DELETED', {'id': 'e'}))
            stamp = event['timestamp']
            self.assertLess(abs(stamp['seconds'] + stamp['microseconds'] / 1e6 - before), sd.TIMEOUT)
            self.assertLess(stamp['microseconds'], 10**6)

    def test_slow_command_delays_nobody(self):
        """An open that waits for a silent server holds up its own session only."""
        server = socket.socket(socket.AF_UNIX)
        self.addCleanup(server.close)
        server.bind(self.path('silent'))
        server.settimeout(sd.TIMEOUT)
        server.listen()
        slow = self.session()
        slow.send({'execute': 'blockdev-add', 'id': 'slow', 'arguments': {
            'driver': 'nbd', 'node-name': 'silent', 'server': {'type': 'unix', 'path': self.path('silent')}}})
        slow.send({'execute': 'query-version', 'id': 'after'})
        connection = server.accept()[0]
        for _ in range(50):
            began = time.monotonic()
            self.assertAlive()
            self.assertLess(time.monotonic() - began, 1)
        self.assertTrue(slow.silent(0.05))
        connection.close()
        reply = slow.receive()
        self.assertEqual(reply['id'], 'slow')
        self.assertIn('error', reply)
        self.assertEqual(slow.receive()['id'], 'after')

    def rss(self):
        with open(f'/proc/{self.d.pid}/status') as f:
            return next(int(line.split()[1]) for line in f if line.startswith('VmRSS:')) // 1024

    def test_does_not_read_replies(self):
        """Commands of a client that does not read wait in the kernel, not in our memory."""
        before = self.rss()
        deaf = self.session()
        deaf.sock.settimeout(0.5)
        sent = 0
        with self.assertRaises(TimeoutError):
            while sent < 64 << 20:
                sent += deaf.sock.send(b'{"execute": "query-qmp-schema"}\n' * 500)
        self.assertAlive()
        if not os.environ.get('ASAN_OPTIONS'):
            self.assertLess(self.rss() - before, 32)
        # Reading sets it going again.
        deaf.sock.settimeout(sd.TIMEOUT)
        self.assertIn('return', deaf.receive())

    def test_does_not_read_events(self):
        """Events that pile up for a client that does not read cost it the connection, not us the memory."""
        deaf = self.raw
        self.d.cmd('nbd-server-start', addr={'type': 'unix', 'data': {'path': self.path('nbd')}})
        self.d.cmd('blockdev-add', driver='null-co', node_name='n')
        for i in range(2000):
            id = f'e{i:04}' + 'x' * 4000
            self.d.cmd('block-export-add', type='nbd', id=id, node_name='n', name=f'x{i}')
            self.d.cmd('block-export-del', id=id)
        with self.assertRaises((sd.Disconnected, ConnectionResetError)):
            while True:
                deaf.receive()
        self.assertIn('does not read its events', self.d.stderr())
        self.assertAlive(self.session())


class Quit(QmpCase):
    def test_replies_and_ends(self):
        other = self.session()
        self.raw.send('{"execute": "quit", "id": "bye"}{"execute": "query-version"}')
        event = self.raw.receive()
        self.assertEqual((event['event'], event['data']), ('SHUTDOWN', {'guest': False, 'reason': 'host-qmp-quit'}))
        self.assertEqual(self.raw.receive(), {'return': {}, 'id': 'bye'})
        for s in (self.raw, other):
            with self.assertRaises(sd.Disconnected):
                s.reply()
        self.d.check_exit()
        self.assertFalse(os.path.exists(self.d.socket))

    def test_job_ends_first(self):
        """SHUTDOWN, the last events of jobs and exports, and then the reply."""
        self.d.cmd('blockdev-add', driver='null-co', node_name='a', size=1 << 30)
        self.d.cmd('blockdev-add', driver='null-co', node_name='b', size=1 << 30)
        self.d.cmd('nbd-server-start', addr={'type': 'unix', 'data': {'path': self.path('nbd')}})
        self.d.cmd('block-export-add', type='nbd', id='e', node_name='a')
        self.d.cmd('blockdev-mirror', job_id='j', device='a', target='b', sync='full', speed=1 << 20)
        other = self.session()
        other.send({'execute': 'quit', 'id': 'bye'})
        seen = []
        while 'return' not in (message := other.receive()):
            seen.append((message['event'], message['data'].get('reason') or message['data'].get('status') or message['data'].get('device') or
                         message['data'].get('id')))
        self.assertEqual(seen[0], ('SHUTDOWN', 'host-qmp-quit'))
        self.assertIn(('BLOCK_JOB_CANCELLED', 'j'), seen)
        self.assertEqual(seen[-2:], [('JOB_STATUS_CHANGE', 'null'), ('BLOCK_EXPORT_DELETED', 'e')])
        self.d.check_exit()
        self.assertFalse(os.path.exists(self.path('nbd')))

    def stuck_command(self):
        """Begins an open that waits for a silent server; its session."""
        server = socket.socket(socket.AF_UNIX)
        self.addCleanup(server.close)
        server.settimeout(sd.TIMEOUT)
        server.bind(self.path('silent'))
        server.listen()
        stuck = self.session()
        stuck.send({'execute': 'blockdev-add', 'arguments': {
            'driver': 'nbd', 'node-name': 'silent', 'server': {'type': 'unix', 'path': self.path('silent')}}})
        connection = server.accept()[0]
        self.addCleanup(connection.close)
        return stuck

    def test_while_a_command_is_stuck(self):
        """A command that waits for a silent server cannot keep the process alive."""
        self.stuck_command()
        self.raw.send({'execute': 'quit'})
        self.assertEqual(self.raw.reply(), {'return': {}})
        self.d.check_exit()

    def test_nothing_after_it(self):
        """While the process ends, commands of other sessions are not carried out any more."""
        stuck = self.stuck_command()
        other = self.session()
        self.raw.send({'execute': 'quit', 'id': 1})
        other.send({'execute': 'quit', 'id': 2})
        self.assertEqual(self.raw.reply(), {'return': {}, 'id': 1})
        with self.assertRaises((sd.Disconnected, ConnectionResetError)):
            other.reply()
        self.assertIn('error', stuck.reply())
        self.d.check_exit()


class Pretty(sd.Case):
    def test_indented(self):
        path = self.path('qmp')
        d = self.daemon('--chardev', f'socket,id=c,path={path},server=on,wait=off', '--monitor', 'c,pretty=on')
        s = socket.socket(socket.AF_UNIX)
        self.addCleanup(s.close)
        s.settimeout(sd.TIMEOUT)
        s.connect(path)
        text = b''
        while not text.endswith(b'\n}\r\n'):
            text += s.recv(4096)
        self.assertIn(b'    "QMP": {', text)
        self.assertIn('QMP', json.loads(text))
        d.shutdown()


if __name__ == '__main__':
    sd.main()
