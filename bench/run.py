#!/usr/bin/env python3
"""Runs the whole bench: walrus-bench scenario by scenario, the other stores beside it, one table and one JSON, the plots.

usage: run.py [--quick] [--only NAME,NAME] [--dir DIR] WALRUS-BENCH FOLDER

Every scenario is a run of walrus-bench of its own; what it printed as JSON stays in FOLDER/NAME.json. The table is made from
all such files that the same kind of run (quick or not) left in FOLDER, so `--only P1,P2` measures these again and keeps the
rest. Exit status: 0 everything was measured and read back equal, 1 something failed, 2 usage. A goal that was missed is
shown as missed and is no failure of the bench.
"""
import argparse
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time

SYNC_OTHERS = ["--others", "all"]

# Name, options of walrus-bench, options in a quick run (None: left out there).
PARTS = [
    ("P1", ["--scenario", "P1", "--rounds", "5", *SYNC_OTHERS],
     ["--scenario", "P1", "--rounds", "3", "--seconds", "0.5", *SYNC_OTHERS]),
    ("P2", ["--scenario", "P2", "--rounds", "5", "--seconds", "1", *SYNC_OTHERS],
     ["--scenario", "P2", "--rounds", "2", "--seconds", "0.4", *SYNC_OTHERS]),
    ("P3", ["--scenario", "P3", "--rounds", "5", "--seconds", "1", *SYNC_OTHERS],
     ["--scenario", "P3", "--rounds", "2", "--seconds", "0.4", *SYNC_OTHERS]),
    ("P4", ["--scenario", "P4", "--rounds", "4", "--seconds", "1", *SYNC_OTHERS],
     ["--scenario", "P4", "--rounds", "2", "--seconds", "0.4", *SYNC_OTHERS]),
    ("P5", ["--scenario", "P5", "--rounds", "5", *SYNC_OTHERS],
     ["--scenario", "P5", "--rounds", "2", "--seconds", "0.4", *SYNC_OTHERS]),
    ("P6", ["--scenario", "P6", "--rounds", "5"], ["--scenario", "P6", "--rounds", "3", "--seconds", "0.5"]),
    ("P7", ["--scenario", "P7"], ["--scenario", "P7", "--rounds", "2", "--seconds", "3"]),
    ("P8", ["--scenario", "P8", "--size-gib", "10"], ["--scenario", "P8", "--size-gib", "0.5", "--rounds", "3"]),
    ("P9", ["--scenario", "P9", "--rounds", "5"], ["--scenario", "P9", "--rounds", "2", "--seconds", "0.3"]),
    ("P10", ["--scenario", "P10", "--size-gib", "10"], ["--scenario", "P10", "--size-gib", "2"]),
    ("P11", ["--scenario", "P11"], ["--scenario", "P11", "--rounds", "3"]),
    ("S1", ["--scenario", "S1"], ["--scenario", "S1", "--rounds", "2", "--seconds", "0.3"]),
    ("S2", ["--scenario", "S2"], ["--scenario", "S2", "--rounds", "2", "--seconds", "0.3"]),
    ("S3", ["--scenario", "S3"], ["--scenario", "S3", "--rounds", "2", "--seconds", "0.3"]),
    ("open", ["--scenario", "open", "--rounds", "3"], ["--scenario", "open", "--rounds", "2", "--seconds", "0.5"]),
    ("P1s", ["--scenario", "P1", "--sustained-only", "--rounds", "2"], None),
    ("P2s", ["--scenario", "P2", "--sustained-only", "--rounds", "3"], None),
    ("P3s", ["--scenario", "P3", "--sustained-only", "--rounds", "3"], None),
    ("P4s", ["--scenario", "P4", "--sustained-only", "--rounds", "1"], None),
    ("P5s", ["--scenario", "P5", "--sustained-only", "--rounds", "1"], None),
    ("topics", ["--scenario", "topics"], None),
    ("connections", ["--scenario", "connections"], None),
    ("log", ["--scenario", "log", "--size-gib", "10"], None),
    ("batch", ["--scenario", "batch"], None),
    ("size", ["--scenario", "size"], None),
    ("producers", ["--scenario", "producers"], None),
]


def say(words):
    print("bench: " + words, file=sys.stderr, flush=True)


class Runner:
    def __init__(self, arguments):
        self.arguments = arguments
        self.child = None
        self.failed = []
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self.stop)

    def stop(self, number, _frame):
        """walrus-bench removes its folder, and ends its broker and the other stores, on its way out."""
        if self.child is not None:
            self.child.send_signal(signal.SIGTERM)
            try:
                self.child.wait(timeout=30)
            except subprocess.TimeoutExpired:
                self.child.kill()
        sys.exit(128 + number)

    def part(self, name, options):
        a = self.arguments
        target = os.path.join(a.folder, name + ".json")
        patience = ["--quiet", "0.5"] if a.quick else [] # how long each run waits for others to leave the cores alone
        command = [a.walrus_bench, *options, *patience, "--dir", a.dir, "--json"]
        say(f"{name}: {shlex.join(command[1:])}")
        begun = time.monotonic()
        self.child = subprocess.Popen(command, stdout=subprocess.PIPE)
        answer, _ = self.child.communicate()
        status, self.child = self.child.returncode, None
        if status != 0:
            self.failed.append(f"{name}: walrus-bench ended with status {status}")
        try:
            report = json.loads(answer)
        except ValueError:
            self.failed.append(f"{name}: no report")
            return
        report["quick"] = a.quick
        report["seconds_taken"] = round(time.monotonic() - begun, 1)
        report["finished"] = time.strftime("%Y-%m-%d %H:%M:%S")
        with open(target + ".new", "w", encoding="utf-8") as out:
            json.dump(report, out, indent=1)
        os.replace(target + ".new", target)


# ------------------------------------------------------------------------------------------------ the table

def rate(value):
    for unit, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= unit:
            return f"{value / unit:.3g} {name}"
    return f"{value:.3g}"


def figures(numbers):
    """Latency and rates of walrus, raw or another store in one cell."""
    latency = numbers.get("latency_us") or {}
    cell = f"{rate(numbers['commits_per_s'])}/s"
    if latency.get("samples"):
        cell += f", p50 {latency['p50']:.4g} p99 {latency['p99']:.4g} us"
    return cell + f", {numbers['bytes_per_s'] / 1e6:.4g} MB/s"


def verdict(row, goal):
    if row["disturbed"]:
        return ("met" if goal["met"] else "MISSED") + " (disturbed)"
    return {True: "met", False: "MISSED", None: "not on a disk"}[goal["met"]]


def space_counts(row):
    """Where nothing is written, or what is measured is no write, the state of the space says nothing."""
    return row["scenario"] not in ("P6", "P7", "P8", "P10")


def show_row(row):
    load = row["load"]
    space = f"; space: {row['space']}" if space_counts(row) else ""
    print(f"\n{row['scenario']:<5} {row['label']}{space}")
    if row["commits_per_s"] > 0:
        print(f"      walrus    {figures(row)}")
    elif row["bytes_per_s"] > 0:
        print(f"      walrus    {row['bytes_per_s'] / 1e6:.4g} MB/s")
    if row["raw"]:
        print(f"      raw       {figures(row['raw'])}  [{row['raw']['method']}]")
        print(f"                walrus/raw: p50 {row['ratio_p50']:.3f}, p99 {row['ratio_p99']:.3f}, bytes/s {row['ratio_bytes']:.3f}")
    for name, other in row["others"].items():
        print(f"      {name:<9} {figures(other)}  walrus/{name}: bytes/s {other['ratio_bytes']:.2f}, p50 {other['ratio_p50']:.3f}")
    costs = [(row["cpu_seconds_per_gb"], "CPU {:.3g} s/GB"), (row["broker_cpu_seconds_per_gb"], "of it the broker {:.3g}"),
             (row["broker_switches_per_batch"], "context switches/batch: broker {:.3g}"),
             (row["client_switches_per_batch"], "clients {:.3g}"),
             (row["broker_calls_per_batch"], "system calls/batch: broker {:.3g}"), (row["client_calls_per_batch"], "clients {:.3g}"),
             (row["entries_per_flush"], "entries/flush {:.4g}"), (row["log_bytes_per_payload_byte"], "log {:.3g} x payload"),
             (row["device_bytes_per_payload_byte"], "device {:.3g} x payload")]
    if row["commits_per_s"] > 0:
        print("      costs     " + ", ".join(words.format(value) for value, words in costs if value is not None)
              + (f"; refused {row['busy'] + row['again']:.0f}" if row["busy"] + row["again"] else ""))
    if load["rate"] and row["late_us"]:
        print(f"      open loop {load['rate']:g} batches/s; latency from the intended time; sent late by p50 {row['late_us']['p50']:.3g}, "
              f"p99 {row['late_us']['p99']:.3g} us")
    for name, value in row["more"].items():
        print(f"      {name:<34} {value:.4g}")
    for goal in row["goals"]:
        print(f"      goal      {goal['goal']:<52} reached {goal['reached']:<10.4g} {verdict(row, goal)}")
    back = row["read_back"]
    if not back["equal"]:
        print(f"      READ BACK: {back['trouble'] or 'not done'}")


def show_flat(reports):
    print("\nCosts that stay flat (three sizes or more each; ratios are medians over rounds that took turns)")
    for name in ("topics", "connections", "log"):
        for row in reports.get(name, {}).get("rows", []):
            print(f"  {row['label']:<52} {rate(row['commits_per_s']):>8} batches/s  {row['more']['cpu_us_per_batch']:>7.2f} us CPU/batch  "
                  f"{row['more']['times_first_point']:.3f} x the first")
    for row in reports.get("P8", {}).get("rows", []):
        print(f"  {row['label']:<52} ready after {row['more']['ready_ms_p50']:.1f} ms")
    for row in reports.get("P10", {}).get("rows", []):
        print(f"  {row['label']:<52} {row['more']['broker_hwm_above_idle_mib']:.1f} MiB above idle")


def show_goals(reports):
    print("\nGoal by goal (raw and others as ratios walrus/raw, walrus/other; space: prepared = within what the broker had ready, "
          "sustained = at least 4 x that)")
    for report in reports.values():
        for row in report["rows"]:
            for goal in row["goals"]:
                others = " ".join(f"{name} {other['ratio_bytes']:.1f}x" for name, other in row["others"].items())
                raw = f"p50 {row['ratio_p50']:.2f}, bytes {row['ratio_bytes']:.2f}" if row["raw"] else "-"
                print(f"  {row['scenario']:<11} {goal['goal']:<54} {goal['reached']:>10.4g}  {verdict(row, goal):<20} raw: {raw:<24} "
                      f"{row['space'] if space_counts(row) else '-':<24} {others}")


def show(reports, seconds):
    first = next(iter(reports.values()))
    machine, versions = first["machine"], first["versions"]
    print(f"walrus-bench {versions['walrus_bench']}, walrusd {versions['walrusd']} ({versions['io_backend']}); {machine['kernel']}; "
          f"{machine['processor']}, {machine['cores']} cores, {machine['memory_bytes'] / 2**30:.1f} GiB")
    print(f"{machine['folder']}: {machine['file_system']} on {machine['device'] or 'no device'}; write cache: "
          f"{machine['device_write_cache'] or 'unknown'}; FUA: {machine['device_fua'] or 'unknown'}; scheduler: {machine['scheduler']}; "
          f"blocks {machine['logical_block']}/{machine['physical_block']}")
    others = [other for report in reports.values() for row in report["rows"] for other in row["others"].values()]
    for words in dict.fromkeys(f"{other['version']}: {other['how']}" for other in others):
        print(words)
    if not machine["is_disk"]:
        print(f"NOT A DISK: {machine['not_a_disk']}. These figures say nothing about durable writes.")
    for report in reports.values():
        for row in report["rows"]:
            show_row(row)
    if any(name in reports for name in ("topics", "connections", "log", "P8", "P10")):
        show_flat(reports)
    show_goals(reports)
    rows = [row for report in reports.values() for row in report["rows"]]
    goals = [(row, goal) for row in rows for goal in row["goals"]]
    met = sum(goal["met"] is True for _, goal in goals)
    print(f"\n{met} of {len(goals)} goals met; {sum(row['disturbed'] for row in rows)} of {len(rows)} rows were disturbed by others at "
          f"work on this machine; everything read back (of 10,000 topics every 20th) equal: {'yes' if all(r['read_back']['equal'] for r in rows) else 'NO'}; "
          f"{seconds:.0f} s")


class Tee:
    """The table goes to the terminal and into a file."""

    def __init__(self, *files):
        self.files = files

    def write(self, text):
        for file in self.files:
            file.write(text)

    def flush(self):
        for file in self.files:
            file.flush()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("walrus_bench")
    parser.add_argument("folder")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", default="")
    parser.add_argument("--dir", default=".")
    a = parser.parse_args()
    names = [name for name in a.only.split(",") if name]
    unknown = set(names) - {name for name, _, _ in PARTS}
    if unknown:
        parser.error(f"--only: no such part: {', '.join(sorted(unknown))}; there are {', '.join(name for name, _, _ in PARTS)}")
    begun = time.monotonic()
    if not names:
        shutil.rmtree(a.folder, ignore_errors=True)
    os.makedirs(a.folder, exist_ok=True)
    runner = Runner(a)
    for name, full, quick in PARTS:
        options = quick if a.quick else full
        if options is not None and (not names or name in names):
            runner.part(name, options)
    reports = {}
    for name, _, _ in PARTS:
        path = os.path.join(a.folder, name + ".json")
        if os.path.exists(path):
            with open(path, encoding="utf-8") as file:
                report = json.load(file)
            if report["quick"] == a.quick and report["rows"]:
                reports[name] = report
    if not reports:
        sys.exit("bench: nothing was measured")
    with open(os.path.join(a.folder, "results.json"), "w", encoding="utf-8") as out:
        json.dump(reports, out, indent=1)
    with open(os.path.join(a.folder, "table.txt"), "w", encoding="utf-8") as out:
        terminal, sys.stdout = sys.stdout, Tee(sys.stdout, out)
        show(reports, time.monotonic() - begun)
        sys.stdout = terminal
    for words in runner.failed:
        say(words)
    say(f"table and JSON are in {a.folder} (table.txt, results.json)")
    sys.exit(1 if runner.failed else 0)


if __name__ == "__main__":
    main()
