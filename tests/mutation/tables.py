#!/usr/bin/env python3
"""The tables of tests/README.md: guarantees and the tests that hold them, mutations and the tests that notice them.

usage: tables.py BUILD_FOLDER     checks them against what is built: each test that they name is there, each
                                  guarantee has one, each mutation has its row; exit code 1 if not

`./dev mutate --write` writes them. Test programs say themselves which tests they hold (--list); a test belongs to a
guarantee by its name, which begins with g1_ to g27_, or with several of them.
"""
import json
import pathlib
import re
import subprocess
import sys

import mutations as catalogue

README = catalogue.HERE.parent / 'README.md'
PROMISES = {
    'G1': 'what was answered at durable survives a power loss at that instant',
    'G2': 'a batch is visible with all its entries or not at all',
    'G3': 'a batch answered with an error never appears',
    'G4': 'a refusal means that not one byte went to the kernel',
    'G5': 'an unknown outcome is resolved by its number, for ever; the same number never commits twice',
    'G6': 'a start may die anywhere and be repeated: it decides once',
    'G7': 'what is visible of a topic is a prefix in commit order, without holes',
    'G8': 'a short write is completed, or the group fails',
    'G9': 'a full disk fails what needs space, nothing else, and heals by itself',
    'G10': 'after a failed flush nothing that depended on it is answered',
    'G11': 'a start waits for the I/O of a dead predecessor and refuses a living one',
    'G12': 'a start decides only on bytes that it has made durable itself',
    'G13': 'a torn tail is cut and told; damage before it refuses the start and is named',
    'G14': 'an error while reading is never taken for the end of the log',
    'G15': 'bytes of an earlier life, or of another store, are never taken for a record',
    'G16': 'no length, count, offset or index is used before it was checked; memory is bounded',
    'G17': 'no write ever touches a block that holds committed bytes',
    'G18': 'a record at the wrong place is refused',
    'G19': 'a new file is used only after its flush, its rename and the flush of the folder',
    'G20': 'a hostile client damages its own batches only',
    'G21': 'the broker never blocks on a client, and neither side sleeps on something to do',
    'G22': "a client's death leaves no partial batch, and what it had comes back",
    'G23': 'who a client is comes from the kernel',
    'G24': 'limits of a user hurt that user only',
    'G25': 'no descriptor and no memory leaks',
    'G26': 'one seed, one run, byte for byte',
    'G27': 'a reader gets the committed bytes, or an error',
}
LISTED = re.compile(r'^[├└`|\- ─]+ (\w+)', re.M)
NOTICED = re.compile(r'^(?P<test>[^:]+): (?:time-out in )?(?P<suite>\w+): (?P<name>\w+)$')


def is_criterion(path):
    content = path.read_bytes() if path.is_file() else b''
    return content.startswith(b'\x7fELF') and b'libcriterion' in content


def tests_of(build):
    """meson's name of each Criterion program -> names of its tests; None for other tests."""
    listing = subprocess.run(['meson', 'introspect', '--tests', str(build)], check=True, capture_output=True, text=True)
    found = {}
    for test in json.loads(listing.stdout):
        program = pathlib.Path(test['cmd'][0])
        found[test['name']] = None
        if is_criterion(program):
            text = subprocess.run([str(program), '--list'], check=True, capture_output=True, text=True).stdout
            found[test['name']] = LISTED.findall(text)
    return found


def guarantee_rows(found):
    rows = []
    for guarantee, promise in PROMISES.items():
        begin = re.compile(rf'(g\d+_)*{guarantee.lower()}_')
        for program, names in found.items():
            held = sorted({name for name in names or [] if begin.match(name)})
            if held:
                rows.append(f'| {guarantee} | {promise} | {program} | {" ".join(f"`{name}`" for name in held)} |')
                promise = ''
    return ['| | guarantee | program | tests |', '|---|---|---|---|', *rows]


UNTRIED = 'not tried since its file changed'


def mutation_rows(copy, everything):
    rows = ['| mutation | | what is taken away | noticed by |', '|---|---|---|---|']
    for m in everything:
        by = copy.state['results'][m.name]['by'] if copy.noticed(m) else UNTRIED
        if m.equivalent:
            by = f'nothing can: {m.equivalent}'
        rows.append(f'| {m.name} | {m.guards} | {m.what} | {by} |')
    return rows


def part(text, name):
    """(before, what is between the two marks, after)."""
    begin, end = f'<!-- {name}: written by ./dev mutate --write -->\n', f'<!-- end of {name} -->\n'
    before, _, rest = text.partition(begin)
    inside, found, after = rest.partition(end)
    if not found:
        raise SystemExit(f'{README}: the marks of {name} are missing')
    return before + begin, inside, end + after


def write(copy, everything):
    build = copy.build_of(None)
    done = subprocess.run(['ninja', '-C', str(build.folder), '--quiet'], check=False)
    if done.returncode != 0:
        raise SystemExit('mutate: the tree does not build')
    text = README.read_text()
    for name, rows in (('guarantees', guarantee_rows(tests_of(build.folder))),
                       ('mutations', mutation_rows(copy, everything))):
        before, _, after = part(text, name)
        text = before + '\n'.join(rows) + '\n' + after
    README.write_text(text)
    untried = [m.name for m in everything if not m.equivalent and not copy.noticed(m)]
    print(f'mutate: {README} is written; {len(untried)} rows say "{UNTRIED}"')


def cells(text, name):
    rows = part(text, name)[1].splitlines()[2:]
    return [[cell.strip() for cell in row.strip('|').split(' | ')] for row in rows]


def check_guarantees(rows, found):
    words = []
    for guarantee, _, program, tests in rows:
        names = re.findall(r'`(\w+)`', tests)
        words += [f'{guarantee}: there is no test {program}: {name}' for name in names
                  if name not in (found.get(program) or [])]
    missing = set(PROMISES) - {row[0] for row in rows}
    return words + [f'{guarantee} has no test' for guarantee in sorted(missing)]


def check_mutations(rows, everything, found):
    words = []
    for name, _, _, by in rows:
        match = NOTICED.match(by)
        program = by.partition(':')[0]
        if match and match['name'] not in (found.get(match['test']) or []):
            words.append(f'{name}: there is no test {by}')
        elif not match and program not in found and not by.startswith(('nothing can:', UNTRIED)):
            words.append(f'{name}: there is no test program {program}')
    listed, known = {row[0] for row in rows}, {m.name for m in everything}
    words += [f'{name} is no mutation (any more)' for name in sorted(listed - known)]
    return words + [f'{name} has no row: ./dev mutate {name}, then --write' for name in sorted(known - listed)]


def main():
    if len(sys.argv) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    text = README.read_text()
    found = tests_of(pathlib.Path(sys.argv[1]))
    words = check_guarantees(cells(text, 'guarantees'), found)
    words += check_mutations(cells(text, 'mutations'), catalogue.load(), found)
    print('\n'.join([*words, f'{README}: {len(words)} faults']))
    return 1 if words else 0


if __name__ == '__main__':
    sys.exit(main())
