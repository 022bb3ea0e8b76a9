#!/usr/bin/env python3
"""Tests of the helper scripts themselves: what adds up the tests must not lose a failure, what lints must find."""
import contextlib
import importlib.util
import io
import json
import pathlib
import sys
import tempfile
import unittest

sys.dont_write_bytecode = True
HERE = pathlib.Path(__file__).resolve().parent


def load(name, path):
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


house = load('house', HERE / 'house.py')
summary = load('summary', HERE.parent / 'summary.py')


def record(output='', result='OK', status=0, name='walrus:criterion+io / ring'):
    return {'name': name, 'result': result, 'returncode': status, 'stdout': '', 'stderr': output}


def closing(tested, passing, failing, crashing):
    return f'[====] Synthesis: Tested: {tested} | Passing: {passing} | Failing: {failing} | Crashing: {crashing} \n'


class Summary(unittest.TestCase):
    def run_on(self, *records, meson_status=0):
        """(exit code, what was printed) of the summary over these records."""
        with tempfile.TemporaryDirectory() as folder:
            log = pathlib.Path(folder) / 'meson-logs' / 'testlog.json'
            log.parent.mkdir()
            log.write_text(''.join(json.dumps(r) + '\n' for r in records))
            printed = io.StringIO()
            arguments = ['summary.py', '--meson-status', str(meson_status), folder]
            before, sys.argv = sys.argv, arguments
            try:
                with contextlib.redirect_stdout(printed):
                    status = summary.main()
            finally:
                sys.argv = before
        return status, printed.getvalue()

    def test_adds_up_all_suites(self):
        status, printed = self.run_on(record(closing(3, 3, 0, 0)), record(closing(4, 4, 0, 0)))
        self.assertEqual(status, 0)
        self.assertEqual(printed.splitlines()[-1], '[====] Synthesis: Tested: 7 | Passing: 7 | Failing: 0 | Crashing: 0')

    def test_counts_failures_and_crashes(self):
        status, printed = self.run_on(record(closing(4, 1, 3, 1), 'FAIL', 1), record(closing(1, 1, 0, 0)))
        self.assertEqual(status, 1)
        self.assertIn('Tested: 5 | Passing: 2 | Failing: 3 | Crashing: 1', printed)

    def test_suite_that_timed_out_is_a_failure_and_names_the_test_that_hung(self):
        output = '[RUN ] io::one\n[PASS] io::one: (0.00s)\n[RUN ] io::hangs\n'
        status, printed = self.run_on(record(output, 'TIMEOUT', 1))
        self.assertEqual(status, 1)
        self.assertIn('Tested: 2 | Passing: 1 | Failing: 1 | Crashing: 0', printed)
        self.assertIn('was running when it ended: io::hangs', printed)

    def test_suite_without_closing_line_is_a_failure_even_with_exit_code_0(self):
        status, printed = self.run_on(record('hello\n'))
        self.assertEqual(status, 1)
        self.assertIn('Failing: 1', printed)

    def test_suite_that_ends_badly_after_a_clean_closing_line_is_a_failure(self):
        status, printed = self.run_on(record(closing(3, 3, 0, 0), 'FAIL', 23))
        self.assertEqual(status, 1)
        self.assertIn('Failing: 1', printed)

    def test_empty_suite_is_a_failure(self):
        self.assertEqual(self.run_on(record(closing(0, 0, 0, 0)))[0], 1)

    def test_skipped_tests_are_named_with_their_reason(self):
        output = '[RUN ] io::direct\n[SKIP] io::direct: no O_DIRECT on tmpfs\n' + closing(0, 0, 0, 0)
        status, printed = self.run_on(record(output))
        self.assertEqual(status, 0)
        self.assertIn('SKIPPED ring: io::direct: no O_DIRECT on tmpfs', printed)

    def test_scripts_are_counted_apart_and_their_failure_fails_the_run(self):
        status, printed = self.run_on(record(closing(1, 1, 0, 0)), record('no\n', 'FAIL', 1, 'walrus:install / header'))
        self.assertEqual(status, 1)
        self.assertIn('Scripts: Run: 1 | Passing: 0 | Failing: 1', printed)
        self.assertIn('Tested: 1 | Passing: 1 | Failing: 0', printed)
        self.assertIn('FAILED', printed.splitlines()[-1])

    def test_nothing_run_is_a_failure(self):
        self.assertEqual(self.run_on()[0], 1)

    def test_failure_that_only_meson_saw_is_a_failure(self):
        self.assertEqual(self.run_on(record(closing(1, 1, 0, 0)), meson_status=1)[0], 1)


class House(unittest.TestCase):
    def find(self, text):
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / 'sample.c'
            path.write_text(text)
            return [words for _, words in house.findings(path)]

    def test_names_the_replacement_of_a_banned_call(self):
        self.assertEqual(self.find('int n = atoi(s);\n'), ['atoi: use strtol with errno and end pointer checked'])

    def test_reads_neither_comments_nor_strings(self):
        self.assertEqual(self.find('/* sleep(1) */ const char *s = "atoi(x) volatile"; // rand()\n'), [])

    def test_a_reason_excuses_a_line(self):
        self.assertEqual(self.find('/* lint-allow: system, the test wants a shell */\nint r = system("true");\n'), [])

    def test_a_member_of_that_name_is_no_call(self):
        self.assertEqual(self.find('op->select(op);\nio.signal(op);\n'), [])

    def test_a_signal_may_be_ignored_but_not_handled_by_signal(self):
        self.assertEqual(self.find('signal(SIGPIPE, SIG_IGN);\n'), [])
        self.assertEqual(self.find('signal(SIGINT, stop);\n'), ['signal: use sigaction, or signalfd'])

    def test_finds_long_functions_lines_and_files(self):
        body = '    x++;\n' * house.MAX_FUNCTION_LINES
        self.assertIn('function of 78 lines', self.find('int f(void)\n{\n' + body + '}\n')[0])
        self.assertEqual(self.find('int f(void)\n{\n    x++;\n}\n' * 40), [])
        self.assertIn('111 columns', self.find('a' * 111 + '\n')[0])
        self.assertIn('851 lines', self.find('\n' * 851)[0])

    def test_finds_volatile_left_over_marks_and_foreign_exports(self):
        self.assertIn('volatile', self.find('volatile int x;\n')[0])
        self.assertEqual(self.find('volatile sig_atomic_t stop;\n'), [])
        self.assertIn('left-over', self.find('/* TO' + 'DO later */\n')[0])
        self.assertIn('does not start with walrus_', self.find('WALRUS_API int open_it(void);\n')[0])


if __name__ == '__main__':
    unittest.main()
