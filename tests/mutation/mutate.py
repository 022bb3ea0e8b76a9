#!/usr/bin/env python3
"""Takes away, one at a time, what the guarantees rest on; for each of them some test must fail.

usage: mutate.py [--list | --check | --write] [--folder DIR] [--seconds S] [--resume] [NAME...]

    --list       the mutations and the tests that are tried for each
    --check      only whether every mutation still fits the sources, exactly once
    --write      puts what the last runs found into tests/README.md
    --folder     scratch folder with a copy of the tree and its builds (default: build-mutate at the top)
    --seconds    begin no further mutation after so many seconds
    --resume     leave out those that were noticed before, in the same file with the same text
    NAME         these only (also the start of a name with an asterisk, or a file of the list)

The tree itself is never changed. A test counts as noticing a mutation only if it passes without it; that is tried
first. What does not compile is an error, not a success. A time-out counts only where the list says that the mutation
shows as a wait without end. Exit code 0: all were noticed; 1: not; 2: usage, or the list does not fit the sources.
"""
import argparse
import fnmatch
import hashlib
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

import mutations as catalogue
import tables

LEAST_LIMIT = 40.0  # seconds for a test that has little to do
FAILED = re.compile(r'^\[FAIL\] (\S+?):? ', re.M)
RUNNING = re.compile(r'^\[RUN \] (\S+)', re.M)
ENDED = re.compile(r'^\[(?:PASS|FAIL|SKIP)\] (\S+?):? ', re.M)


# A test that is ended in the middle leaves its folders behind: they lie in a /tmp of its own.
HIDE = ['unshare', '--mount', 'sh', '-c', 'mount --bind "$1" /tmp && shift && exec "$@"', 'sh']


class Stop(Exception):
    """Ends the run with words."""


def run(command, **options):
    return subprocess.run(command, text=True, errors='replace', stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          stdin=subprocess.DEVNULL, check=False, **options)


def files_of_git(*which):
    listing = run(['git', '-C', str(catalogue.TOP), 'ls-files', '-z', *which])
    if listing.returncode != 0:
        raise Stop(f'{listing.stdout}\nmutate: git ls-files failed')
    return {name for name in listing.stdout.split('\0') if name}


class Copy:
    """A copy of the tree with a build folder for each sanitizer that is asked for."""

    def __init__(self, folder):
        self.folder = folder
        self.tree = folder / 'tree'
        self.scratch = folder / 'scratch'
        self.builds = {}
        self.can_hide = os.geteuid() == 0 and shutil.which('unshare') and not folder.is_relative_to('/tmp')
        self.store = folder / 'state.json'
        self.state = json.loads(self.store.read_text()) if self.store.exists() else {'passed': {}, 'results': {}}

    def save(self):
        self.store.write_text(json.dumps(self.state, indent=1, sort_keys=True))

    def noticed(self, mutation):
        result = self.state['results'].get(mutation.name, {})
        return result.get('noticed') and result['key'] == mutation.key((catalogue.TOP / mutation.file).read_text())

    def bring_up_to_date(self):
        """Only what changed is written, so that little is built again."""
        tracked = files_of_git('--cached')
        folders = {name.split('/')[0] for name in tracked}
        new = files_of_git('--others', '--exclude-standard', '--', *folders)
        names = {name for name in tracked | new if (catalogue.TOP / name).is_file()}
        for name in names:
            source, target = catalogue.TOP / name, self.tree / name
            if target.exists() and target.read_bytes() == source.read_bytes():
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
            shutil.copymode(source, target)
        for path in list(self.tree.rglob('*')):
            if path.is_file() and str(path.relative_to(self.tree)) not in names:
                path.unlink()

    def build_of(self, sanitizer):
        if sanitizer not in self.builds:
            self.builds[sanitizer] = Build(self, sanitizer)
        return self.builds[sanitizer]


class Build:
    def __init__(self, copy, sanitizer):
        self.copy = copy
        self.folder = copy.folder / ('build' if sanitizer is None else f'build-{sanitizer}')
        command = ['meson', 'setup', str(self.folder), str(copy.tree)]
        if (self.folder / 'build.ninja').exists():
            command.insert(2, '--reconfigure')
        if sanitizer is not None:
            command += [f'-Db_sanitize={sanitizer}', '-Db_lundef=false']
        done = run(command)
        if done.returncode != 0:
            raise Stop(f'{done.stdout}\nmutate: meson setup failed')
        self.tests = {test['name']: test for test in self.introspect('--tests')}
        self.files = {target['id']: target['filename'][0] for target in self.introspect('--targets')}

    def introspect(self, what):
        return json.loads(run(['meson', 'introspect', what, str(self.folder)]).stdout)

    def programs(self, names):
        paths = {self.files[target] for name in names for target in self.tests[name]['depends']}
        return sorted(str(pathlib.Path(path).relative_to(self.folder)) for path in paths)

    def make(self, names):
        """None, or why it does not compile."""
        done = run(['ninja', '-C', str(self.folder), *self.programs(names)])
        return None if done.returncode == 0 else done.stdout[-2000:]

    def fingerprint(self, name):
        digest = hashlib.sha256()
        for path in self.programs([name]):
            digest.update((self.folder / path).read_bytes())
        return digest.hexdigest()[:16]

    def try_test(self, name, limit):
        """(passed, why not, seconds)."""
        test = self.tests[name]
        self.copy.scratch.mkdir(parents=True, exist_ok=True)
        self.copy.scratch.chmod(0o1777)  # as /tmp is
        environment = {**os.environ, **test['env'], 'CRITERION_VERBOSITY_LEVEL': '1'}
        environment.setdefault('MALLOC_PERTURB_', '90')
        command = list(test['cmd'])
        if tables.is_criterion(pathlib.Path(command[0])):
            command.append('--fail-fast')
        if self.copy.can_hide:
            command = [*HIDE, str(self.copy.scratch), *command]
        begin = time.monotonic()
        with (self.copy.folder / 'output').open('w+', errors='replace') as output:
            with subprocess.Popen(command, cwd=test['workdir'] or self.copy.scratch, env=environment, stdout=output,
                                  stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, start_new_session=True) as process:
                try:
                    status = process.wait(limit)
                except subprocess.TimeoutExpired:
                    status = None
                finally:
                    end_group(process)
            output.seek(0)
            text = output.read()
        took = time.monotonic() - begin
        shutil.rmtree(self.copy.scratch, ignore_errors=True)
        return status == 0, reason(status, text), took


def end_group(process):
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait()


def reason(status, text):
    """The test that failed, or how the program ended."""
    failed = FAILED.findall(text)
    if failed:
        return failed[0].replace('::', ': ')
    ended = set(ENDED.findall(text))
    unfinished = [name for name in RUNNING.findall(text) if name not in ended]
    if status is None:
        return 'time-out' + (f' in {unfinished[0].replace("::", ": ")}' if unfinished else '')
    if unfinished:
        return unfinished[0].replace('::', ': ')
    lines = [line for line in text.splitlines() if line.strip()]
    race = next((line for line in lines if 'ThreadSanitizer' in line), None)
    return (race or (lines[-1] if lines else f'exit status {status}')).strip()[:90]


def limit_of(copy, name):
    return max(LEAST_LIMIT, 4 * copy.state['passed'].get(name, {}).get('seconds', 0))


def prove_sound(copy, wanted):
    """Without a mutation all the tests pass: else their failing says nothing."""
    for sanitizer in {m.sanitizer for m in wanted}:
        build = copy.build_of(sanitizer)
        names = list(dict.fromkeys(test for m in wanted if m.sanitizer == sanitizer for test in m.tests))
        unknown = [name for name in names if name not in build.tests]
        if unknown:
            raise Stop(f'mutate: there is no test "{unknown[0]}"')
        print(f'mutate: building {len(names)} tests in {build.folder}', file=sys.stderr)
        words = build.make(names)
        if words is not None:
            raise Stop(f'{words}\nmutate: the tree does not build')
        for name in names:
            known = copy.state['passed'].setdefault(f'{name}', {})
            sign = build.fingerprint(name)
            if sign in known.get('signs', []):
                continue
            passed, why, took = build.try_test(name, 600)
            print(f'mutate: without a mutation: {name}: {"passed" if passed else why} in {took:.1f} s', file=sys.stderr)
            if not passed:
                raise Stop(f'mutate: {name} fails without any mutation ({why}); see {copy.folder}/output')
            known['signs'] = [*known.get('signs', [])[-7:], sign]
            known['seconds'] = took
            copy.save()


def try_mutation(copy, mutation):
    """(noticed, by what, seconds)."""
    build = copy.build_of(mutation.sanitizer)
    path = copy.tree / mutation.file
    text = path.read_text()
    begin = time.monotonic()
    path.write_text(mutation.apply(text))
    outcome = []
    try:
        for name in mutation.tests:
            words = build.make([name])
            if words is not None:
                raise Stop(f'{words}\nmutate: {mutation.name} does not compile')
            passed, why, _ = build.try_test(name, limit_of(copy, name))
            if not passed and (mutation.hangs or not why.startswith('time-out')):
                return True, f'{name}: {why}', time.monotonic() - begin
            outcome.append(name if passed else f'{name} ({why})')
    finally:
        path.write_text(text)
    return False, f'passed: {", ".join(outcome)}', time.monotonic() - begin


def choose(everything, names):
    if not names:
        return everything
    chosen = []
    for name in names:
        some = [m for m in everything if fnmatch.fnmatch(m.name, name) or m.source in (name, f'{name}.toml')]
        if not some:
            raise Stop(f'mutate: there is no mutation "{name}"; --list shows them')
        chosen += [m for m in some if m not in chosen]
    return chosen


def mutate(copy, wanted, seconds):
    begin = time.monotonic()
    copy.bring_up_to_date()
    print(f'mutate: {len(wanted)} mutations in {copy.folder}', file=sys.stderr)
    prove_sound(copy, wanted)
    noticed, tried = 0, 0
    survivors = []
    for mutation in wanted:
        if seconds is not None and time.monotonic() - begin > seconds:
            break
        text = (copy.tree / mutation.file).read_text()
        found, by, took = try_mutation(copy, mutation)
        tried += 1
        noticed += found
        if not found:
            survivors.append(mutation.name)
        copy.state['results'][mutation.name] = {'key': mutation.key(text), 'noticed': found, 'by': by}
        copy.save()
        print(f'{"killed  " if found else "SURVIVED"} {mutation.name:32} {mutation.guards:4} {took:6.1f} s  {by}',
              flush=True)
    if survivors:
        print(f'mutate: survived: {", ".join(survivors)}')
    if tried < len(wanted):
        print(f'mutate: the time was over: {len(wanted) - tried} of {len(wanted)} were not tried')
    print(f'mutate: {noticed} of {tried} killed')
    return 0 if noticed == len(wanted) else 1


def show(everything):
    for m in everything:
        print(f'{m.name:32} {m.guards:4} {m.what}\n{"":37} {m.file}: {m.equivalent or ", ".join(m.tests)}')
    print(f'mutate: {len(everything)} mutations')


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--list', action='store_true')
    parser.add_argument('--check', action='store_true')
    parser.add_argument('--write', action='store_true')
    parser.add_argument('--folder', type=pathlib.Path, default=catalogue.TOP / 'build-mutate')
    parser.add_argument('--seconds', type=float)
    parser.add_argument('--resume', action='store_true')
    parser.add_argument('names', nargs='*', metavar='NAME')
    arguments = parser.parse_args()
    everything = catalogue.load()
    wrong = catalogue.faults(everything)
    if wrong:
        print('\n'.join(wrong), f'mutate: {len(wrong)} faults: bring the list up to date with the sources', sep='\n')
        return 2
    if arguments.check:
        print(f'mutate: each of {len(everything)} mutations fits the sources once')
        return 0
    copy = Copy(arguments.folder.resolve())
    try:
        chosen = choose(everything, arguments.names)
        if arguments.list:
            show(chosen)
            return 0
        if arguments.write:
            tables.write(copy, everything)
            return 0
        wanted = [m for m in chosen if not m.equivalent and not (arguments.resume and copy.noticed(m))]
        return mutate(copy, wanted, arguments.seconds)
    except Stop as stop:
        print(stop, file=sys.stderr)
        return 2


if __name__ == '__main__':
    sys.exit(main())
