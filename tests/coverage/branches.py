#!/usr/bin/env python3
"""Holds the branch coverage of the core at 100 % of what can be reached.

  branches.py [--list] COVERAGE.json UNREACHABLE.txt OWED.txt   (the first as `gcovr --json` writes it, paths from the top)

Every branch that the compiler made must have been taken, but those of an assert (check_bug: the other way is our own
mistake) and those of UNREACHABLE.txt. Each line there is

  FILE | FUNCTION | LINE OF CODE | BRANCH NUMBERS | why it cannot be reached

without a line number, which would rot. Branch numbers count the branches of that line as gcov does, from 0. A branch that
was not taken and is not listed, one that is listed and was taken, and an entry for a line that is not there any more are
failures: exit 1. --list prints what is missing in the form of an entry, for whoever writes the test or the reason.

OWED.txt, in the same form, names branches for which nobody has written a test yet, though they can be reached: a debt that
is printed as such and may only shrink. One of those that was taken is named, so that its entry goes. The code of commit,
recovery and frames (NOTHING_OWED) may have no such entry: there every branch is taken or listed as unreachable.
"""
import argparse
import collections
import json
import re
import sys

SEPARATOR = " | "
NOTHING_OWED = {f"broker/log/{name}" for name in ("checksum.c", "checksum.h", "commit.c", "gather.c", "group.c", "group.h",
                                                  "recover.c", "restore.c")} | {"shared/base.c", "shared/base.h", "shared/ring.h"}


def assert_lines(source):
    """Numbers of the lines that belong to a check_bug(...) statement."""
    lines, depth = set(), 0
    for number, text in enumerate(source, 1):
        if depth == 0 and re.search(r"\bcheck_bug\(", text):
            text = text[text.index("check_bug("):]
            lines.add(number)
            depth = text.count("(") - text.count(")")
        elif depth > 0:
            lines.add(number)
            depth += text.count("(") - text.count(")")
    return lines


def function_of(functions, number):
    name = "-"
    for start, candidate in functions:
        if start > number:
            break
        name = candidate
    return name


def read_branches(coverage):
    """{file: {(function, text, index within equal lines): [count of each branch]}}, and lines taken/all per file."""
    files = {}
    for entry in sorted(coverage["files"], key=lambda e: e["file"]):
        with open(entry["file"], encoding="utf-8") as stream:
            source = stream.read().splitlines()
        asserts = assert_lines(source)
        functions = sorted((f["lineno"], f["name"]) for f in entry["functions"])
        branches, lines = collections.OrderedDict(), [0, 0]
        for line in entry["lines"]:
            number = line["line_number"]
            if line.get("gcovr/noncode"):
                continue
            if number not in asserts:
                lines[0] += line["count"] > 0
                lines[1] += 1
            if number in asserts or not line["branches"]:
                continue
            key = (function_of(functions, number), " ".join(source[number - 1].split()))
            # The same words twice in one function are one entry: a branch of it is taken if any of them took it.
            counts = [b["count"] for b in line["branches"]]
            have = branches.setdefault(key, [number, []])[1]
            for i, count in enumerate(counts):
                if i < len(have):
                    have[i] += count
                else:
                    have.append(count)
        files[entry["file"]] = (branches, lines)
    return files


def read_exclusions(path):
    """{(file, function, text): ({branch numbers}, reason)}, and what is wrong with the list itself."""
    exclusions, wrong = collections.OrderedDict(), []
    with open(path, encoding="utf-8") as stream:
        for number, line in enumerate(stream, 1):
            if not line.strip() or line.startswith("#"):
                continue
            # The line of code may hold " | " itself: what is before and behind it may not.
            head = line.rstrip("\n").split(SEPARATOR, 2)
            tail = head[2].rsplit(SEPARATOR, 2) if len(head) == 3 else []
            if len(tail) != 3 or not re.fullmatch(r"\d+( \d+)*", tail[1]) or not tail[2].strip():
                wrong.append(f"{path}:{number}: not FILE | FUNCTION | LINE OF CODE | BRANCH NUMBERS | why")
                continue
            key = (head[0], head[1], tail[0])
            if key in exclusions:
                wrong.append(f"{path}:{number}: listed twice")
            exclusions[key] = ({int(n) for n in tail[1].split()}, tail[2])
    return exclusions, wrong


def refuse_debts(debts, path):
    """Takes the debts of code that may have none out of the list. What is wrong with that, one line for each."""
    refused = [key for key in debts if key[0] in NOTHING_OWED]
    for key in refused:
        del debts[key]
    return [f"{path}: of {key[0]} nothing may be owed: {SEPARATOR.join(key[1:])}" for key in refused]


def judge(files, exclusions, debts):
    """Rows of the table, what is missing, failures, and debts that were paid."""
    rows, missing, failures, paid = [], [], [], []
    seen = set()
    for file, (branches, lines) in files.items():
        total = taken = excluded = owed = 0
        for (function, text), (number, counts) in branches.items():
            listed, _ = exclusions.get((file, function, text), (set(), ""))
            debt, _ = debts.get((file, function, text), (set(), ""))
            seen.add((file, function, text))
            total += len(counts)
            untaken = {i for i, count in enumerate(counts) if count == 0}
            taken += len(counts) - len(untaken)
            excluded += len(untaken & listed)
            owed += len(untaken & debt - listed)
            paid += [f"{file}:{number}: {function}: branch {i}: {text}" for i in sorted(debt - untaken)]
            for i in sorted(listed - untaken):
                what = "is taken after all" if i < len(counts) else "does not exist"
                failures.append(f"{file}:{number}: {function}: branch {i} of the listed line {what}: {text}")
            left = sorted(untaken - listed - debt)
            if left:
                missing.append((file, function, text, number, left))
                failures.append(f"{file}:{number}: {function}: branch {', '.join(map(str, left))} never taken: {text}")
        rows.append((file, lines, total, taken, excluded, owed))
    paid += [f"{SEPARATOR.join(key)}: there is no such line any more" for key in debts if key not in seen]
    for key in exclusions:
        if key not in seen:
            failures.append(f"listed, but there is no such line with branches any more: {SEPARATOR.join(key)}")
    return rows, missing, failures, paid


def print_table(rows):
    print(f"{'file':32} {'lines':>13} {'branches':>9} {'taken':>6} {'excluded':>9} {'owed':>6} {'missing':>8} {'of reachable':>13}")
    figures = [(*lines, *rest) for _, lines, *rest in rows]
    for row, figure in zip(rows, figures):
        print_row(row[0], *figure)
    print_row("all", *(sum(column) for column in zip(*figures)))


def print_row(file, lines_taken, lines, total, taken, excluded, owed):
    reachable = total - excluded
    missing = reachable - taken - owed
    share = "-" if reachable == 0 else f"{int(1000 * taken / reachable) / 10:.1f} %"
    covered = f"{lines_taken} of {lines}"
    print(f"{file:32} {covered:>13} {total:>9} {taken:>6} {excluded:>9} {owed:>6} {missing:>8} {share:>13}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--list", action="store_true", help="print what is missing in the form of entries")
    parser.add_argument("coverage")
    parser.add_argument("unreachable")
    parser.add_argument("owed")
    arguments = parser.parse_args()
    with open(arguments.coverage, encoding="utf-8") as stream:
        files = read_branches(json.load(stream))
    exclusions, failures = read_exclusions(arguments.unreachable)
    debts, wrong = read_exclusions(arguments.owed)
    refused = refuse_debts(debts, arguments.owed)
    gone = [f"no coverage data of {file}: was it renamed?" for file in sorted(NOTHING_OWED - set(files))]
    rows, missing, found, paid = judge(files, exclusions, debts)
    failures += refused + gone + wrong + found
    print_table(rows)
    if arguments.list:
        for file, function, text, _, left in missing:
            print(SEPARATOR.join((file, function, text, " ".join(map(str, left)), "")))
    for debt in paid:
        print(f"owed and taken now; strike it from {arguments.owed}: {debt}", file=sys.stderr)
    for failure in failures:
        print(failure, file=sys.stderr)
    if not rows or sum(row[2] for row in rows) == 0:
        print("no coverage data: nothing was run", file=sys.stderr)
        return 1
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
