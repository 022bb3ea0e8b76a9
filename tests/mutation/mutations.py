"""The mutations: what they are, and that each of them still fits the sources.

A mutation is a table in one of the *.toml files beside this:

    name       unique, words joined by hyphens
    guards     the guarantee that is lost with it, "G1" to "G27"
    what       what is taken away, in words
    file, old  the place: `old` occurs exactly once in `file`
    new        what stands there instead; it must compile
    tests      tests (meson's names) to try, in this order, until one fails
    hangs      optional: true if it shows as a wait that never ends, so that a time-out counts as noticed
    sanitizer  optional: "thread" for what only the thread sanitizer can see on this processor
    equivalent optional: why nothing can show it; such a one is listed and not run
"""
import hashlib
import pathlib
import re
import tomllib

HERE = pathlib.Path(__file__).resolve().parent
TOP = HERE.parent.parent
REQUIRED = {'name': str, 'guards': str, 'what': str, 'file': str, 'old': str, 'new': str, 'tests': list}
OPTIONAL = {'hangs': bool, 'sanitizer': str, 'equivalent': str}


class Mutation:
    def __init__(self, fields, source):
        self.source = source
        self.hangs = False
        self.sanitizer = self.equivalent = None
        self.name = fields.get('name', '(without a name)')
        self.faults = [f'{key} is missing' for key in REQUIRED if key not in fields]
        for key, value in fields.items():
            kind = {**REQUIRED, **OPTIONAL}.get(key)
            if kind is None or not isinstance(value, kind):
                self.faults.append(f'{key} is not known, or of the wrong type')
            setattr(self, key, value)

    def apply(self, text):
        return text.replace(self.old, self.new)

    def key(self, text):
        """Changes when the mutation or the file that it changes does."""
        return hashlib.sha256('\0'.join([self.old, self.new, text]).encode()).hexdigest()[:16]


def load():
    found = []
    for path in sorted(HERE.glob('*.toml')):
        with path.open('rb') as file:
            found += [Mutation(fields, path.name) for fields in tomllib.load(file).get('mutation', [])]
    return found


def faults(mutations, top=TOP):
    """What is wrong with the list, in words; nothing if all of them fit."""
    words, names = [], set()
    for m in mutations:
        problems = list(m.faults)
        if not problems:
            if m.name in names:
                problems.append('another one has its name')
            if not re.fullmatch(r'[a-z0-9]+(-[a-z0-9]+)*', m.name):
                problems.append('its name is not words joined by hyphens')
            if not re.fullmatch(r'G([1-9]|1\d|2[0-7])', m.guards):
                problems.append(f'there is no guarantee {m.guards}')
            if m.old == m.new:
                problems.append('it changes nothing')
            if not m.tests and not m.equivalent:
                problems.append('it names no test')
            path = top / m.file
            count = path.read_text().count(m.old) if path.is_file() else 0
            if count != 1:
                problems.append(f'its old text occurs {count} times in {m.file}, not once')
        names.add(m.name)
        words += [f'{m.source}: {m.name}: {problem}' for problem in problems]
    return words
