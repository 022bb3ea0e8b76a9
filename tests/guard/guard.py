#!/usr/bin/env python3
"""Counts what the hot paths cost and holds it against ceilings.json: instructions (callgrind), system calls (strace),
allocations, looks at the clock, bytes copied and summed (the program itself).

usage: guard.py [--set] PROGRAM          PROGRAM: guard-paths of a build of type debugoptimized

Nothing here is a time. Every walk is one thread over the real library, sessions and log, taken with n and with 2n of what
is counted; the difference, by n, is the cost of one, without start-up. It comes out the same in every run. Over io_uring
the kernel may have a completion ready before it is waited for, which saves a call: there the ceiling is a bound and
nothing has to come near it.

A cost above its ceiling fails. So does one that has fallen by more than a tenth: a ceiling that nothing touches guards nothing.
--set writes the ceilings anew (a rise is then seen in review): what was counted, and for instructions HEADROOM more.
"""
import argparse
import json
import math
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

CEILINGS = pathlib.Path(__file__).with_name('ceilings.json')
HEADROOM = 1.02
FALL = 0.9  # of a ceiling
FINEST = 0.05  # less than this is nothing
SKIPPED = 77
BOUND_RUNS = 3  # over io_uring: what else the kernel does only adds calls, so the fewest of some runs count
# The C library picks its memcpy by the processor; the plain one is everywhere.
TUNABLES = ('glibc.cpu.hwcaps=-AVX512F,-AVX512VL,-AVX2,-AVX,-ERMS,-FSRM,-AVX2_Usable,-Prefer_ERMS:'
            'glibc.cpu.x86_rep_movsb_threshold=1073741824')
MARK = re.compile(r'^write\(-1, "([^"]*)"')
CALL = re.compile(r'^(\w+)\(')


def run(command, folder, **more):
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=100, check=False, **more)
    if result.returncode == SKIPPED:
        skip(result.stdout.strip().removeprefix('SKIPPED: '))
    if result.returncode != 0:
        sys.exit(f'{" ".join(map(str, command))}: exit status {result.returncode}\n{result.stdout}{result.stderr}')
    return result.stdout


def skip(why):
    print(f'SKIPPED: {why}')
    sys.exit(SKIPPED)


def instructions(program, folder):
    """{label: {'instructions': n}}: one profile of callgrind for each label."""
    run(['valgrind', '--tool=callgrind', '--collect-atstart=no', f'--callgrind-out-file={folder}/profile', program, '--instructions'],
        folder, env=os.environ | {'GLIBC_TUNABLES': TUNABLES})
    counts = {}
    for profile in pathlib.Path(folder).glob('profile.*'):
        text = profile.read_text()
        label = re.search(r'^desc: Trigger: Client Request: (.*)$', text, re.M)
        total = re.search(r'^totals: (\d+)$', text, re.M)
        if label and total:
            counts[label[1]] = {'instructions': int(total[1])}
    return counts


def calls(program, folder, *arguments):
    lines = [json.loads(line) for line in run([program, '--calls', *arguments], folder).splitlines()]
    return {line.pop('label'): line for line in lines}


def system_calls(program, folder, *arguments):
    trace = pathlib.Path(folder) / 'trace'
    run(['strace', '-s', '200', '-o', trace, program, '--trace', *arguments], folder)
    counts, count, on = {}, 0, False
    for line in trace.read_text(errors='replace').splitlines():
        mark = MARK.match(line)
        if mark and mark[1] in '+-':
            on = mark[1] == '+'
        elif mark:
            counts[mark[1]] = {'system calls': count}
            count = 0
        elif on and CALL.match(line):
            count += 1
    return counts


def merge(*parts):
    merged = {}
    for part in parts:
        for label, counts in part.items():
            merged.setdefault(label, {}).update(counts)
    return merged


def costs(counts):
    """{path: {what: cost of one}} from the two walks of each path."""
    walks = {}
    for label, values in counts.items():
        path, _, n = label.rpartition('/')
        walks.setdefault(path, {})[int(n)] = values
    result = {}
    for path, walked in walks.items():
        once, twice = sorted(walked)
        result[path] = {what: (walked[twice][what] - walked[once][what]) / (twice - once) for what in walked[once]}
    return result


def fewest(results):
    return {path: {what: min(result[path][what] for result in results) for what in of_path} for path, of_path in results[0].items()}


def count_all(program):
    with tempfile.TemporaryDirectory(prefix='guard-') as folder:
        fixed = costs(merge(calls(program, folder), instructions(program, folder), system_calls(program, folder)))
        bounded = fewest([costs(system_calls(program, folder, '--uring')) for _ in range(BOUND_RUNS)])
    return fixed, bounded


def ceiling_of(what, cost, bound):
    if bound:
        return math.ceil(cost - FINEST)
    return round(math.ceil(cost * HEADROOM * 10) / 10 if what == 'instructions' else cost, 3)


def compare(counted, ceilings, bounded):
    """Prints the table; the list of what is wrong."""
    wrong = []
    for path, of_path in counted.items():
        for what, cost in of_path.items():
            ceiling = ceilings.get(path, {}).get(what)
            print(f'  {path:48} {what:20} {cost:10.2f}   ceiling {"none" if ceiling is None else ceiling}')
            if ceiling is None:
                wrong.append(f'{path}: {what}: {cost:.2f}, and there is no ceiling')
            elif cost > ceiling + FINEST:
                wrong.append(f'{path}: {what}: {cost:.2f}, above the ceiling of {ceiling}')
            elif path not in bounded and cost < ceiling * FALL - FINEST:
                wrong.append(f'{path}: {what}: {cost:.2f}, fallen far below the ceiling of {ceiling}: lower it')
    wrong += [f'{path}: has a ceiling and was not counted' for path in ceilings if path not in counted]
    return wrong


def main():
    parser = argparse.ArgumentParser(description='Holds the counts of the hot paths against their ceilings.')
    parser.add_argument('--set', action='store_true', help='write ceilings.json anew')
    parser.add_argument('program', type=pathlib.Path, nargs='?')
    arguments = parser.parse_args()
    for tool in ('valgrind', 'strace'):
        if shutil.which(tool) is None:
            skip(f'{tool} is not installed')
    if arguments.program is None:
        skip('valgrind was not installed when this was configured')

    fixed, bounded = count_all(arguments.program.resolve())
    counted = fixed | bounded
    if arguments.set:
        ceilings = {path: {what: ceiling_of(what, cost, path in bounded) for what, cost in of_path.items()}
                    for path, of_path in counted.items()}
        CEILINGS.write_text(json.dumps(ceilings, indent=2) + '\n')
    wrong = compare(counted, json.loads(CEILINGS.read_text()), bounded)
    for line in wrong:
        print(f'guard: {line}')
    if wrong:
        print(f'guard: if that is meant: python3 tests/guard/guard.py --set {arguments.program}, and say in the commit why')
    return 1 if wrong else 0


if __name__ == '__main__':
    sys.exit(main())
