#!/usr/bin/env python3
"""Every recovery case of FORMAT.md names tests, and they exist. (That its tables are those of format.h is a test of tests/log.)
Usage: format_doc.py SOURCE_ROOT"""
import pathlib
import re
import sys

def test_names(root):
    names = set()
    for source in (root / "tests").rglob("*.c"):
        for suite, test in re.findall(r"\bTest\(\s*(\w+)\s*,\s*(\w+)", source.read_text()):
            names.add(f"{suite}::{test}")
    return names


def main():
    root = pathlib.Path(sys.argv[1])
    document = (root / "broker/log/FORMAT.md").read_text()
    wrong = []
    names = test_names(root)
    cases = re.findall(r"^\| ([A-Z]) \|[^|]*\|[^|]*\| ([^|]*) \|$", document, re.M)
    if len(cases) < 15:
        wrong.append("FORMAT.md: the table of recovery cases is not there")
    for case, tests in cases:
        listed = re.findall(r"`([^`]+)`", tests)
        if not listed:
            wrong.append(f"case {case} names no test")
        wrong += [f"case {case}: there is no test {test}" for test in listed if test not in names]
    for line in wrong:
        print(line)
    print(f"{len(cases)} recovery cases, {len(wrong)} without a test that exists")
    return 1 if wrong else 0


sys.exit(main())
