"""Runs walrus-bench briefly on a broker of its own and checks the report: the fields are there, everything was read back.

No figure is judged. Usage: smoke.py WALRUS-BENCH WALRUSD FOLDER [WALRUS-BENCH-OTHERS]"""

import json
import os
import subprocess
import sys

FIELDS = {
    "commits_per_s": (int, float), "entries_per_s": (int, float), "bytes_per_s": (int, float), "busy": (int, float),
    "ratio_p50": (int, float), "ratio_bytes": (int, float), "command": str,
}


def fail(words):
    sys.exit("smoke: " + words)


def check_row(row, count):
    for name in ("p50", "p90", "p99", "p999", "max"):
        if not row["latency_us"][name] > 0:
            fail(f"latency_us.{name} is {row['latency_us'][name]}")
    if not row["raw"]["p50_us"] > 0 or not row["raw"]["p99_us"] > 0 or not row["raw"]["bytes_per_s"] > 0:
        fail(f"raw is {row['raw']}")
    back = row["read_back"]
    if not back["equal"] or not back["after_restart"]:
        fail(f"read_back is {back}")
    # Each round writes `count` batches and a tenth of them before as warm-up; one more round may have counted system calls.
    counted = row["broker_calls_per_batch"] is not None
    if counted and not (row["broker_calls_per_batch"] > 0 and row["client_calls_per_batch"] >= 0):
        fail(f"system calls per batch: {row['broker_calls_per_batch']}, {row['client_calls_per_batch']}")
    want = (3 if counted else 2) * (count + count // 10) * 10
    if back["entries"] != want:
        fail(f"{back['entries']} entries were read back instead of {want}")
    if row["latency_us"]["samples"] != 2 * count:
        fail(f"{row['latency_us']['samples']} samples of {2 * count} batches")


def run(command, folder, *options):
    """The report of one run; the folder must be as before afterwards."""
    before = set(os.listdir(folder))
    done = subprocess.run([*command, "--json", "--dir", folder, "--quiet", "0", *options], stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, timeout=120, text=True)
    if done.returncode != 0:
        fail(f"{options}: exit status {done.returncode}: {done.stderr}")
    left = set(os.listdir(folder)) - before
    if any(name.startswith("walrus-bench-") for name in left):
        fail(f"{options}: left behind: {left}")
    report = json.loads(done.stdout)
    for row in report["rows"]:
        if not row["read_back"]["equal"]:
            fail(f"{options}: read_back is {row['read_back']}")
    return report


def check_crowd(command, folder):
    """Twenty connections in two processes, each with few in flight, and all topics of all of them are read back."""
    report = run(command, folder, "--producers", "20", "--processes", "2", "--in-flight", "3", "--topics", "60", "--count", "300",
                 "--batch", "10", "--size", "100", "--rounds", "1")
    if report["read_back"]["topics"] != 60 or report["load"]["processes"] != 2:
        fail(f"crowd: {report['read_back']}, {report['load']}")


def check_open_loop(command, folder):
    """At a rate, a batch is late by something, and the run lasts as long as the rate says."""
    report = run(command, folder, "--rate", "1000", "--count", "100", "--depth", "64", "--rounds", "1")
    if not report["late_us"] or report["late_us"]["samples"] != 100:
        fail(f"open loop: {report['late_us']}")
    if report["seconds"] < 0.08:
        fail(f"open loop: 100 batches at 1000/s took {report['seconds']} s")


def check_others(command, others, folder):
    """Each of the other stores that was built in did the work and found it again after it was closed."""
    report = run(command, folder, "--others", "all", "--others-program", others, "--count", "50", "--batch", "10", "--rounds", "2")
    if not report["others"]:
        fail("no other store did anything")
    for name, other in report["others"].items():
        if not (other["commits_per_s"] > 0 and other["latency_us"]["samples"] == 100 and other["ratio_bytes"] > 0):
            fail(f"{name}: {other}")
    for process in os.listdir("/proc"):
        try:
            with open(f"/proc/{process}/environ", "rb") as file:
                if process.isdigit() and f"WALRUS_SMOKE={os.getpid()}".encode() in file.read() and int(process) != os.getpid():
                    fail(f"process {process} was left running")
        except OSError:
            continue


def main():
    bench, broker, folder = sys.argv[1:4]
    others = sys.argv[4:5]
    os.environ["WALRUS_SMOKE"] = str(os.getpid())
    count = 200
    command = [bench, "--broker", broker]
    report = run(command, folder, "--raw", "--count", str(count), "--rounds", "2", "--batch", "10", "--size", "700")
    for name, kind in FIELDS.items():
        if not isinstance(report.get(name), kind):
            fail(f"{name} is {report.get(name)!r}")
    if not report["machine"]["kernel"] or "device_write_cache" not in report["machine"]:
        fail("the machine is not described")
    check_row(report, count)
    for row in report["rows"]:
        check_row(row, count)
    check_crowd(command, folder)
    check_open_loop(command, folder)
    if others:
        check_others(command, others[0], folder)


main()
