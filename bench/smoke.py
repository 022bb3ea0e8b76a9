"""Runs walrus-bench briefly on a broker of its own and checks the report: the fields are there, everything was read back.

No figure is judged. Usage: smoke.py WALRUS-BENCH WALRUSD FOLDER [more options of walrus-bench]"""

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


def main():
    bench, broker, folder = sys.argv[1:4]
    count = 200
    command = [bench, "--json", "--raw", "--broker", broker, "--dir", folder, "--count", str(count), "--rounds", "2", "--quiet", "0",
               "--batch", "10", "--size", "700"] + sys.argv[4:]
    before = set(os.listdir(folder))
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=120, text=True)
    if done.returncode != 0:
        fail(f"exit status {done.returncode}: {done.stderr}")
    report = json.loads(done.stdout)
    for name, kind in FIELDS.items():
        if not isinstance(report.get(name), kind):
            fail(f"{name} is {report.get(name)!r}")
    if not report["machine"]["kernel"] or "device_write_cache" not in report["machine"]:
        fail("the machine is not described")
    check_row(report, count)
    for row in report["rows"]:
        check_row(row, count)
    left = set(os.listdir(folder)) - before
    if any(name.startswith("walrus-bench-") for name in left):
        fail(f"left behind: {left}")


main()
