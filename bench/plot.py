#!/usr/bin/env python3
"""Draws what run.py measured: PNG and SVG of the latency distribution and of throughput against batch size, entry size,
producers, topics and log size, each beside the raw device.

usage: plot.py RESULTS.JSON FOLDER

A figure whose scenario is not in the results is left out, and named. Needs matplotlib.
"""
import json
import os
import re
import sys

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402, the back end must be chosen before

COLOURS = {"walrus": "#0b5fa5", "raw device": "#444444", "rocksdb": "#b3541e", "sqlite": "#5a8f29", "redis": "#a3243b"}
MARKS = {"walrus": "o", "raw device": "s", "rocksdb": "^", "sqlite": "v", "redis": "D"}
SERIES = {
    "batch": ("entries in a batch (700 B each)", "1 producer, 4 batches in flight, sync"),
    "size": ("bytes of an entry (10 in a batch)", "1 producer, 4 batches in flight, sync"),
    "producers": ("producers (a topic each)", "batches of 100 x 700 B, 2 in flight each, sync"),
    "topics": ("topics", "1 producer, batches of 10 x 100 B, 8 in flight, sync"),
    "log": ("GiB in the log", "1 producer, batches of 10 x 700 B, 4 in flight, sync"),
}


def caption(figure, report, words):
    machine = report["machine"]
    kernel = re.sub(r"(\d)-\S+", r"\1", machine["kernel"])  # what a builder adds to the version says nothing here
    figure.text(0.01, 0.01, f"{words}\n{kernel}, {machine['cores']} cores, {machine['file_system']} on "
                f"{machine['device']}, {report.get('finished', '')}", fontsize=7, color="#555555", va="bottom")


def save(figure, folder, name):
    for kind in ("png", "svg"):
        figure.savefig(os.path.join(folder, f"{name}.{kind}"), dpi=110, metadata={"Date": None} if kind == "svg" else None)
    plt.close(figure)
    print(os.path.join(folder, name + ".svg"))


def empty(title, x, y):
    figure, axes = plt.subplots(figsize=(7, 4.4))
    figure.subplots_adjust(bottom=0.23, top=0.91, left=0.11, right=0.97)
    axes.set_title(title, fontsize=11)
    axes.set_xlabel(x, fontsize=9)
    axes.set_ylabel(y, fontsize=9)
    axes.grid(True, which="major", color="#dddddd", linewidth=0.7)
    axes.tick_params(labelsize=8)
    return figure, axes


def latency(results, folder):
    """Latency against the share of batches that were slower, medians over rounds at each share."""
    report = results["P1"]
    shares = report["curve_shares"]
    row = report["rows"][0]
    lines = {"walrus": row, "raw device": row["raw"], **row["others"]}
    figure, axes = empty("Latency of a durable batch of 100 x 700 B, one at a time", "share of the batches (%)", "microseconds")
    for name, numbers in lines.items():
        points = [(1 / (1 - share), us) for share, us in zip(shares, numbers["curve_us"]) if 0 < share <= 0.999]
        axes.plot([x for x, _ in points], [y for _, y in points], color=COLOURS[name], marker=MARKS[name], markersize=3, label=name)
    ticks = [0.1, 0.5, 0.9, 0.99, 0.999]
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xticks([1 / (1 - share) for share in ticks], [f"{share * 100:g}" for share in ticks])
    axes.minorticks_off()
    axes.legend(fontsize=8)
    caption(figure, report, f"from before the entries are filled in to after the answer; medians of {len(row['rounds'])} rounds that took "
            "turns; each answer means: on the disk")
    save(figure, folder, "latency")


def beside(results, folder):
    """Throughput of the named scenarios, walrus, raw and the other stores side by side."""
    names = [name for name in ("P1", "P2", "P3", "P4") if name in results]
    rows = [row for name in names for row in results[name]["rows"] if row["others"]]
    figure, axes = empty("Durable writes: Walrus, the raw device and other stores", "", "MB/s of payload")
    keys = ["walrus", "raw device", "rocksdb", "sqlite", "redis"]
    width = 0.8 / len(keys)
    for i, key in enumerate(keys):
        numbers = [row if key == "walrus" else row["raw"] if key == "raw device" else row["others"].get(key) for row in rows]
        values = [one["bytes_per_s"] / 1e6 if one else 0 for one in numbers]
        bars = axes.bar([x + (i - len(keys) / 2 + 0.5) * width for x in range(len(rows))], values, width, color=COLOURS[key], label=key)
        axes.bar_label(bars, [f"{value:.0f}" if value >= 100 else f"{value:.3g}" if value else "" for value in values], fontsize=6, padding=1)
    axes.set_yscale("log")
    axes.set_axisbelow(True)
    axes.set_ylim(top=axes.get_ylim()[1] * 4) # room for the legend
    axes.set_xticks(range(len(rows)), [f"{row['scenario']}\n{row['load']['producers']} x {row['load']['batch']} x {row['load']['size']} B\n"
                                       f"depth {row['load']['depth']}" for row in rows], fontsize=7)
    axes.legend(fontsize=7, ncols=5)
    caption(figure, results[names[0]], "producers x entries in a batch x bytes; every answer means: on the disk; medians of rounds that took "
            "turns")
    save(figure, folder, "beside")


def series(results, name, folder):
    report = results[name]
    x_label, words = SERIES[name]
    figure, axes = empty(f"Throughput against {x_label}", x_label, "MB/s of payload")
    xs = [row["x"] for row in report["rows"]]
    for label, numbers in (("walrus", report["rows"]), ("raw device", [row["raw"] for row in report["rows"]])):
        axes.plot(xs, [one["bytes_per_s"] / 1e6 for one in numbers], color=COLOURS[label], marker=MARKS[label], markersize=4, label=label)
    axes.set_xscale("log")
    axes.set_xticks(xs, [f"{x:g}" for x in xs])
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    axes.legend(fontsize=8)
    raw = "the same payload and depth" if name in ("batch", "size") else "one writer, writes as large as the broker's groups"
    caption(figure, report, f"{words}; raw device: {raw}; medians of {len(report['rows'][0]['rounds'])} rounds that took turns")
    save(figure, folder, name)


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    with open(sys.argv[1], encoding="utf-8") as file:
        results = json.load(file)
    folder = sys.argv[2]
    os.makedirs(folder, exist_ok=True)
    plt.rcParams["svg.hashsalt"] = "walrus"
    left_out = []
    if "P1" in results:
        latency(results, folder)
    else:
        left_out.append("latency")
    if any(row["others"] for name in ("P1", "P2", "P3", "P4") if name in results for row in results[name]["rows"]):
        beside(results, folder)
    else:
        left_out.append("beside")
    for name in SERIES:
        if name in results:
            series(results, name, folder)
        else:
            left_out.append(name)
    if left_out:
        print(f"not measured in this run, not drawn: {', '.join(left_out)}")


if __name__ == "__main__":
    main()
