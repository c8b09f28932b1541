"""The schema tools by themselves: what the generator refuses, what the validator catches, what the reference holds."""
import json
import os
import sys
import tempfile
import unittest

TOP = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, os.path.join(TOP, 'qapi', 'gen'))
import docs  # noqa: E402
import gen_types  # noqa: E402
import introspect  # noqa: E402
import validate  # noqa: E402
from schema import SchemaError  # noqa: E402

ENUM = {'enum': 'Colour', 'doc': 'A colour.', 'values': {'red': 'Red.', 'blue': 'Blue.'}}
RED = {'struct': 'Red', 'doc': 'Red.', 'members': {'depth': {'type': 'uint8', 'doc': 'How red.'}}}


def struct(**members):
    return {'struct': 'S', 'doc': 'A struct.', 'members': {k: dict(v, doc='A member.') for k, v in members.items()}}


def union(branches, base=None):
    return {'union': 'U', 'doc': 'A union.', 'base': base or {'colour': {'type': 'Colour', 'doc': 'Which.'}},
            'discriminator': 'colour', 'branches': branches}


def load(*definitions):
    with tempfile.TemporaryDirectory() as folder:
        with open(os.path.join(folder, 'test.json'), 'w', encoding='utf-8') as f:
            json.dump(definitions, f)
        return validate.Schema.load(folder)


class Checks(unittest.TestCase):
    def refuse(self, reason, *definitions):
        with self.assertRaisesRegex(SchemaError, reason):
            load(*definitions)

    def test_definitions(self):
        self.refuse("starts with 'strukt'", {'strukt': 'S', 'doc': 'x'})
        self.refuse("'members' is missing", {'struct': 'S', 'doc': 'x'})
        self.refuse("unknown key 'membrs'", {'struct': 'S', 'doc': 'x', 'members': {}, 'membrs': {}})
        self.refuse('defined twice', ENUM, ENUM)
        self.refuse('does not match', {'struct': 'lower', 'doc': 'x', 'members': {}})
        self.refuse('does not match', {'event': 'lower', 'doc': 'x'})
        self.refuse('needs a doc sentence', {'struct': 'S', 'doc': '', 'members': {}})
        self.refuse('is taken', dict(struct(), struct='DoItArgs'),
                    {'command': 'do-it', 'doc': 'x', 'args': {'a': {'type': 'str', 'doc': 'x'}}})

    def test_members(self):
        self.refuse('unknown type Colour', struct(a={'type': 'Colour'}))
        self.refuse('unknown type null', struct(a={'type': 'null'}))
        self.refuse("bad 'type'", struct(a={'type': ['str', 'str']}))
        self.refuse("unknown key 'typ'", struct(a={'type': 'str', 'typ': 1}))
        self.refuse("bad member name 'A'", struct(A={'type': 'str'}))
        self.refuse('default 5 does not fit', struct(a={'type': 'int', 'default': 5}))
        self.refuse("default 'x' does not fit", struct(a={'type': 'int', 'optional': True, 'default': 'x'}))
        self.refuse("default 'green' does not fit", ENUM, struct(a={'type': 'Colour', 'optional': True, 'default': 'green'}))
        self.refuse('needs a doc', {'struct': 'S', 'doc': 'x', 'members': {'a': {'type': 'str'}}})

    def test_unions(self):
        self.refuse("bad branch 'green'", ENUM, RED, union({'green': 'Red'}))
        self.refuse("bad branch 'red'", ENUM, union({'red': 'Nothing'}))
        self.refuse('must be a required enum', ENUM, RED, union({'red': 'Red'}, {'colour': {'type': 'str', 'doc': 'x'}}))
        self.refuse("repeats member 'depth'", ENUM, RED, union({'red': 'Red'}, {
            'colour': {'type': 'Colour', 'doc': 'x'}, 'depth': {'type': 'int', 'doc': 'x'}}))

    def test_alternates(self):
        two = {'alternate': 'A', 'doc': 'x', 'data': {'a': 'str', 'b': 'Colour'}}
        self.refuse('two branches of one JSON type', ENUM, two)

    def test_bases(self):
        a = {'struct': 'A', 'doc': 'x', 'base': 'B', 'members': {}}
        b = {'struct': 'B', 'doc': 'x', 'base': 'A', 'members': {}}
        self.refuse('its own base', a, b)
        self.refuse("'X' is not a struct", {'struct': 'A', 'doc': 'x', 'base': 'X', 'members': {}})

    def test_duplicate_keys(self):
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, 'test.json')
            with open(path, 'w', encoding='utf-8') as f:
                f.write('[{"struct": "S", "doc": "x", "doc": "y", "members": {}}]')
            with self.assertRaisesRegex(SchemaError, "key 'doc' stands twice"):
                validate.Schema.load(folder)

    def test_names_in_c(self):
        text = gen_types.generate(load(ENUM, RED, union({'red': 'Red'}), struct(
            **{'unix': {'type': 'str'}, 'a-b': {'type': 'int', 'optional': True}, 'errno': {'type': ['Colour']}})))
        for line in ('COLOUR__MAX', 'char *q_unix;', 'bool has_a_b;', 'int64_t a_b;', 'ColourList *q_errno;', 'Red red;'):
            self.assertIn(line, text)


class Validation(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.schema = validate.Schema.load(os.path.join(TOP, 'qapi', 'schema'))
        cls.job = {'id': 'a', 'type': 'mirror', 'status': 'ready', 'current-progress': 1, 'total-progress': 2}

    def refuse(self, reason, check, *args):
        with self.assertRaisesRegex(AssertionError, reason):
            check(*args)

    def test_replies(self):
        reply = self.schema.check_return
        reply('quit', {})
        reply('query-jobs', [self.job, dict(self.job, error='why')])
        self.refuse('returned', reply, 'quit', {'a': 1})
        self.refuse('no such command', reply, 'query-job', [])
        self.refuse('expected array', reply, 'query-jobs', {})
        self.refuse(r'query-jobs\[1\]\.x: unknown', reply, 'query-jobs', [self.job, dict(self.job, x=1)])
        self.refuse(r'\[0\]\.status: .* is not a value of JobStatus', reply, 'query-jobs', [dict(self.job, status='x')])
        self.refuse(r'current-progress: expected int', reply, 'query-jobs', [{**self.job, 'current-progress': True}])
        self.refuse(r'out of the range', reply, 'query-jobs', [{**self.job, 'current-progress': 2**63}])
        without = {k: v for k, v in self.job.items() if k != 'status'}
        self.refuse(r'\[0\]\.status: missing', reply, 'query-jobs', [without])

    def test_messages(self):
        reply = self.schema.check_reply
        reply('query-jobs', {'return': [self.job], 'id': 1})
        reply('no-such', {'error': {'class': 'CommandNotFound', 'desc': 'none'}})
        self.refuse('neither', reply, 'quit', {})
        self.refuse('neither', reply, 'quit', {'return': {}, 'error': {'class': 'GenericError', 'desc': 'x'}})
        self.refuse('known class', reply, 'quit', {'error': {'class': 'Odd', 'desc': 'x'}})
        self.refuse('known class', reply, 'quit', {'error': {'class': 'GenericError'}})
        self.refuse('expected string', reply, 'quit', {'error': {'class': 'GenericError', 'desc': 1}})
        stamp = {'seconds': 1, 'microseconds': 2}
        self.schema.check_event({'event': 'BLOCK_EXPORT_DELETED', 'data': {'id': 'e'}, 'timestamp': stamp})
        self.refuse('not an event', self.schema.check_event, {'event': 'SHUTDOWN', 'data': {}})
        self.refuse('id: missing', self.schema.check_event,
                    {'event': 'BLOCK_EXPORT_DELETED', 'data': {}, 'timestamp': stamp})

    def test_events(self):
        event = self.schema.check_event
        event('SHUTDOWN', {'guest': False, 'reason': 'host-signal'})
        self.refuse('has no data', event, 'SHUTDOWN')
        self.refuse('no such event', event, 'SHUT', {})
        self.refuse('reason: missing', event, 'SHUTDOWN', {'guest': False})

    def test_arguments(self):
        check = self.schema.check_arguments
        check('blockdev-add', {'driver': 'raw', 'file': {'driver': 'null-co', 'size': 1}})
        check('block-dirty-bitmap-merge', {'node': 'n', 'target': 't', 'bitmaps': ['a', {'node': 'n', 'name': 'b'}]})
        self.refuse('file.driver: missing', check, 'blockdev-add', {'driver': 'raw', 'file': {}})
        self.refuse('fits no branch', check, 'blockdev-add', {'driver': 'raw', 'file': 1})
        self.refuse('takes no arguments', check, 'quit', {'a': 1})

    def test_introspection_is_valid(self):
        info = introspect.schema_info(self.schema)
        self.schema.check_return('query-qmp-schema', info)
        names = [entry['name'] for entry in info]
        self.assertEqual(len(names), len(set(names)))
        for entry in info:
            used = [m['type'] for m in entry.get('members', []) if 'type' in m]
            used += [v['type'] for v in entry.get('variants', [])]
            used += [entry[k] for k in ('arg-type', 'ret-type', 'element-type') if k in entry]
            self.assertLessEqual(set(used), set(names), entry)

    def test_reference_is_complete(self):
        text = docs.generate(self.schema)
        for d in self.schema.definitions:
            self.assertIn(d.name, text)
        for line in text.splitlines():
            for target in line.split('](#')[1:]:
                self.assertIn(target.split(')')[0], [docs.anchor(n) for n in self.schema.types], line)


if __name__ == '__main__':
    unittest.main()
