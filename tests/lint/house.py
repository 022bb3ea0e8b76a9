#!/usr/bin/env python3
"""The house rules that no compiler knows: lengths, calls that have a better replacement, left-over marks, exported names.

usage: house.py [FILE...]          without FILE: every .c and .h under the source folders

A line may be excused by a comment on it or on the line before: lint-allow: NAME, REASON
(NAME: the call or word that is reported). Exit code 1 if anything was found.
"""
import pathlib
import re
import sys

TOP = pathlib.Path(__file__).resolve().parents[2]
FOLDERS = ('broker', 'libclient', 'shared', 'tests', 'bench')
MAX_FUNCTION_LINES = 75
MAX_FILE_LINES = 850
MAX_COLUMNS = 110

INSTEAD = {
    'strcpy': 'memcpy of a length that was checked, or snprintf',
    'stpcpy': 'memcpy of a length that was checked, or snprintf',
    'strcat': 'snprintf into the rest of the buffer',
    'strncpy': 'memcpy of a length that was checked (strncpy may leave out the NUL)',
    'strncat': 'snprintf into the rest of the buffer',
    'sprintf': 'snprintf',
    'vsprintf': 'vsnprintf',
    'gets': 'getline',
    'atoi': 'strtol with errno and end pointer checked',
    'atol': 'strtol with errno and end pointer checked',
    'atoll': 'strtoll with errno and end pointer checked',
    'atof': 'strtod with errno and end pointer checked',
    'strtok': 'memchr, or strtok_r',
    'sleep': 'a wait on what is to happen (poll, the clock of the seam)',
    'usleep': 'a wait on what is to happen (poll, the clock of the seam)',
    'nanosleep': 'a wait on what is to happen (poll, the clock of the seam)',
    'alloca': 'a bounded array, or malloc',
    'rand': 'a generator seeded by the caller, or getrandom',
    'srand': 'a generator seeded by the caller, or getrandom',
    'random': 'a generator seeded by the caller, or getrandom',
    'system': 'posix_spawn',
    'popen': 'posix_spawn and a pipe',
    'tmpnam': 'mkstemp or memfd_create',
    'tempnam': 'mkstemp or memfd_create',
    'mktemp': 'mkstemp or memfd_create',
    'signal': 'sigaction, or signalfd', # with a handler
    'select': 'poll or epoll (select breaks beyond descriptor 1023)',
    'gmtime': 'gmtime_r',
    'localtime': 'localtime_r',
    'ctime': 'strftime',
    'asctime': 'strftime',
    'assert': 'check_bug, which stays on in release builds',
    'setjmp': 'error codes',
    'longjmp': 'error codes',
}
CALL = re.compile(r'(?<![\w.>])(' + '|'.join(INSTEAD) + r')\s*\((?!\w+, SIG_(?:IGN|DFL)\))')
MARK = re.compile(r'\b(' + '|'.join(('TO' + 'DO', 'FIX' + 'ME', 'X' * 3, 'HA' + 'CK')) + r')\b')
ALLOW = re.compile(r'lint-allow: (\w+), \S')
CODE_ONLY = re.compile(r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])*\'', re.S)
EXPORTED = re.compile(r'^WALRUS_API\b[^(;]*?\b(\w+)\s*\(', re.M)


def blank(match):
    """Comments and literals become spaces, so that line numbers and columns stay."""
    return re.sub(r'[^\n]', ' ', match.group())


def function_lengths(code_lines):
    """(first line, name, lines) of each function: from its signature to the brace at the start of a line that ends it."""
    start = None
    opened = False
    for number, line in enumerate(code_lines, 1):
        if line.startswith('{'):
            opened = start is not None
        elif line.startswith('}'):
            if opened:
                yield start, code_lines[start - 1].strip(), number - start + 1
            start, opened = None, False
        elif not opened:
            if re.match(r'[A-Za-z_].*\(', line) and not line.rstrip().endswith(';'):
                start = start or number
            elif not line.strip() or line.rstrip().endswith(';') or line.startswith('#'):
                start = None


def findings(path):
    text = path.read_text()
    lines = text.splitlines()
    code = CODE_ONLY.sub(blank, text)
    code_lines = code.splitlines()
    allowed = [set(ALLOW.findall(line)) for line in lines]

    def is_allowed(number, name):
        return name in allowed[number - 1] or (number > 1 and name in allowed[number - 2])

    if len(lines) > MAX_FILE_LINES:
        yield 1, f'{len(lines)} lines; at most {MAX_FILE_LINES}: split it by what it does'
    for number, name, length in function_lengths(code_lines):
        if length > MAX_FUNCTION_LINES:
            yield number, f'function of {length} lines; at most {MAX_FUNCTION_LINES}: {name}'
    for number, (line, code_line) in enumerate(zip(lines, code_lines), 1):
        if len(line) > MAX_COLUMNS:
            yield number, f'{len(line)} columns; at most {MAX_COLUMNS}'
        for mark in MARK.findall(line):
            yield number, f'left-over mark {mark}: do it, or file it'
        for call in CALL.findall(code_line):
            if not is_allowed(number, call):
                yield number, f'{call}: use {INSTEAD[call]}'
        if re.search(r'\bvolatile\b', code_line) and 'sig_atomic_t' not in code_line \
                and not re.search(r'\basm(__)?\s+volatile', code_line) and not is_allowed(number, 'volatile'):
            yield number, 'volatile is neither atomic nor ordered: use __atomic builtins or ck_pr, or say why not'
    for name in EXPORTED.findall(code):
        if not name.startswith('walrus_'):
            yield 1, f'exported symbol {name} does not start with walrus_'


def main(arguments):
    paths = [pathlib.Path(name) for name in arguments] or sorted(
        path for folder in FOLDERS for pattern in ('*.c', '*.h') for path in (TOP / folder).rglob(pattern))
    found = 0
    for path in paths:
        for number, words in findings(path):
            print(f'{path}:{number}: {words}')
            found += 1
    return 1 if found else 0


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
