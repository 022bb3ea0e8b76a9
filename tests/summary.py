#!/usr/bin/env python3
"""Adds up what `meson test` recorded and closes with one line in Criterion's own form, over all Criterion suites.

usage: summary.py [--complete] [--meson-status N] BUILD_FOLDER

A Criterion suite is a test with the label `criterion`, or one that printed Criterion's opening or closing line. Its figures are taken
from that line. A suite that ended without one (crash, time-out) or that ended badly though its line names no failure counts
at least one failing test: nothing that went wrong is left out of the sum. Everything else (scripts) is listed and counted
apart. Exit code 0 only if all that ran passed, something ran, and, with --complete, every test that is defined ran.
"""
import argparse
import json
import pathlib
import re
import subprocess
import sys

CLOSING = re.compile(r'Synthesis: Tested: (\d+) \| Passing: (\d+) \| Failing: (\d+) \| Crashing: (\d+)')
RUNNING = re.compile(r'^\[RUN \] (\S+)', re.M)
PASSED = re.compile(r'^\[PASS\] (\S+?):? ', re.M)
ENDED = re.compile(r'^\[(?:PASS|FAIL|SKIP)\] (\S+?):? ', re.M)
FAILED = re.compile(r'^\[FAIL\] (\S+?):? ', re.M)
SKIPPED = re.compile(r'^\[SKIP\] (\S+?): (.*)', re.M)
QUIET = re.compile(r'^\[(?:RUN |PASS|SKIP)\] .*\n?', re.M)
PASSING_RESULTS = ('OK', 'EXPECTEDFAIL')
SKIP_STATUS = 77  # the exit code by which a script says that it could not run here


class Suite:
    """One test of meson: a Criterion suite or a script."""

    def __init__(self, record):
        labels, _, self.name = record['name'].rpartition(' / ')
        self.result = record['result']
        self.status = record.get('returncode')
        self.output = record.get('stdout', '') + record.get('stderr', '')
        closings = [[int(n) for n in line] for line in CLOSING.findall(self.output)]
        self.closed = bool(closings)
        self.is_criterion = self.closed or 'Criterion v' in self.output or 'criterion' in labels.split(':')[-1].split('+')
        self.is_skipped = self.result == 'SKIP'
        self.tested, self.passing, self.failing, self.crashing = (sum(n) for n in zip(*closings)) if closings else (0,) * 4
        self.trouble = self._trouble()
        if self.is_criterion and self.trouble and not self.failing:
            self._count_by_name()

    def _trouble(self):
        """Why this did not pass, in words; empty if it did."""
        if self.is_skipped:
            return ''
        if self.result == 'TIMEOUT':
            return 'timed out'
        if self.result not in PASSING_RESULTS:
            return f'{self.result.lower()}, exit status {self.status}'
        if self.is_criterion and not self.closed:
            return "ended without Criterion's closing line"
        if self.is_criterion and self.result == 'OK' and (self.failing or self.crashing):
            return 'ended with 0 though tests failed'
        if self.is_criterion and not self.tested and not SKIPPED.search(self.output):
            return 'holds no test'
        return ''

    def _count_by_name(self):
        """No closing line names the failure: every test that was begun and did not pass failed, and at least one did."""
        passed = len(PASSED.findall(self.output))
        self.passing = max(self.passing, passed)
        self.failing = max(1, len(RUNNING.findall(self.output)) - len(SKIPPED.findall(self.output)) - passed)
        self.tested = self.passing + self.failing
        self.crashing += self.result not in ('TIMEOUT', 'OK')

    def unfinished(self):
        ended = set(ENDED.findall(self.output))
        return [name for name in RUNNING.findall(self.output) if name not in ended]

    def skipped(self):
        """(name, reason) of each test that did not run."""
        if self.is_skipped:
            words = [line for line in self.output.strip().splitlines() if line]
            return [(self.name, words[-1] if words else f'exit status {SKIP_STATUS}')]
        return [(f'{self.name}: {name}', reason) for name, reason in SKIPPED.findall(self.output)]


def read_suites(folder):
    log = folder / 'meson-logs' / 'testlog.json'
    if not log.exists():
        return []
    return [Suite(json.loads(line)) for line in log.read_text(errors='replace').splitlines() if line.strip()]


def defined_names(folder):
    listing = subprocess.run(['meson', 'introspect', '--tests', str(folder)], check=True, capture_output=True, text=True)
    return [test['name'] for test in json.loads(listing.stdout)]


def print_failures(failed):
    for suite in failed:
        print(f'\n---- {suite.name}: {suite.trouble}')
        print(QUIET.sub('', suite.output).rstrip() or '(no output)')
        for name in suite.unfinished():
            print(f'(was running when it ended: {name})')
    if failed:
        print('\nFailed:')
    for suite in failed:
        names = FAILED.findall(suite.output) + suite.unfinished()
        print(f'  {suite.name} ({suite.trouble})' + ''.join(f'\n    {name}' for name in dict.fromkeys(names)))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('--complete', action='store_true', help='every test that is defined must have run')
    parser.add_argument('--meson-status', type=int, default=0, help='exit status of `meson test`')
    parser.add_argument('folder', type=pathlib.Path)
    arguments = parser.parse_args()

    suites = read_suites(arguments.folder)
    criterion = [suite for suite in suites if suite.is_criterion]
    scripts = [suite for suite in suites if not suite.is_criterion]
    failed = [suite for suite in suites if suite.trouble]
    problems = [f'{len(failed)} of {len(suites)} failed'] if failed else []
    if not suites:
        problems.append('nothing ran')
    if arguments.complete:
        ran = [suite.name for suite in suites]
        missing = [name for name in defined_names(arguments.folder) if name not in ran]
        problems += [f'did not run: {name}' for name in missing]
    if arguments.meson_status and not problems:
        problems.append(f'meson test ended with {arguments.meson_status}')

    print_failures(failed)
    skipped = [pair for suite in suites for pair in suite.skipped()]
    if skipped:
        print(f'\nSkipped: {len(skipped)}')
    for name, reason in skipped:
        print(f'  SKIPPED {name}: {reason}')
    print()
    if scripts:
        ran = [suite for suite in scripts if not suite.is_skipped]
        bad = sum(bool(suite.trouble) for suite in ran)
        print(f'[====] Scripts: {", ".join(suite.name for suite in scripts)}')
        print(f'[====] Scripts: Run: {len(ran)} | Passing: {len(ran) - bad} | Failing: {bad} | '
              f'Skipped: {len(scripts) - len(ran)}')
    totals = [sum(getattr(suite, field) for suite in criterion) for field in ('tested', 'passing', 'failing', 'crashing')]
    print('[====] Synthesis: Tested: {} | Passing: {} | Failing: {} | Crashing: {}'.format(*totals))
    if problems:
        print(f'tests: FAILED: {"; ".join(problems)}')
    return 1 if problems else 0


if __name__ == '__main__':
    sys.exit(main())
