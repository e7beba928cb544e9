#!/usr/bin/env python3
"""How long a single text takes, with all threads for it: Engram beside onnxruntime and the like, in one run and turn by turn.

S: debtags titles, L: long texts, as in encode.py; one text at a time, from the string to its f32 row, with nothing else to do.
Each round gives everyone all texts of a set. p50 and p99 are those of all rounds together; a ratio is that of the p50 in the
same round, the table has the median of the rounds and, in parentheses, the highest.

    latency.py MODEL BENCH CACHE [--rounds 5] [--threads N] [--titles 400] [--long-texts 200] [--peers NAME ...] [--json FILE]
MODEL, BENCH and CACHE as for encode.py.
"""

import json
import pathlib
import statistics
import time

import peers
from encode import SETS, arguments, engrams, left_out_print, say, texts_read

NAMES = ("onnxruntime f32", "OpenVINO f32", "OpenVINO bf16", "sentence-transformers f32")


def percentile(values, percent):
    """The smallest value that so many percent of the values do not exceed."""
    return sorted(values)[max(0, -(-len(values) * percent // 100) - 1)]


def one_round(ours, others, name, count):
    """{name: microseconds of each text}."""
    found = {engram.name: engram.encode(name, count, "--one-by-one")["us"] for engram in ours}
    for peer in others:
        time.sleep(0.2)  # threads of the one before go to sleep
        found[peer.name] = peer.encode(name, count, None)["us"]
    return found


def measure(options, ours, others, name):
    texts = texts_read(options, name)
    for peer in others:
        peer.texts(name, texts)
        peer.encode(name, len(texts), None)  # whatever is compiled for these lengths is compiled here
    rounds = []
    for number in range(options.rounds):
        rounds.append(one_round(ours, others, name, len(texts)))
        say(f"{name} round {number + 1}: " + ", ".join(f"{who} {statistics.median(us) / 1000:.2f} ms" for who, us in rounds[-1].items()))
    return {"set": name, "texts": len(texts), "rounds": rounds}


def table(result, ours):
    """Markdown: everyone's p50 and p99, and each Engram's p50 against it."""
    rounds = result["rounds"]
    found = {"set": result["set"], "texts": result["texts"], "ms": {}, "ratios": {}}
    print(f"\n{result['set']}: {result['texts']} texts, {len(rounds)} rounds\n")
    print("| | p50, ms | p99, ms | " + " | ".join(f"{engram.name}'s p50 against it" for engram in ours) + " |\n|---|---:|---:|"
          + "---:|" * len(ours))
    for name in rounds[0]:
        every = [us for r in rounds for us in r[name]]
        found["ms"][name] = {p: round(percentile(every, p) / 1000, 3) for p in (50, 99)}
        cells = [name, *(f"{value:.2f}" for value in found["ms"][name].values())]
        for engram in ours:
            ratios = [statistics.median(r[engram.name]) / statistics.median(r[name]) for r in rounds]
            found["ratios"][f"{engram.name} / {name}"] = [round(statistics.median(ratios), 3), round(max(ratios), 3)]
            cells.append("" if name == engram.name else f"{statistics.median(ratios):.2f} ({max(ratios):.2f})")
        print(f"| {' | '.join(cells)} |")
    return found


def main():
    options = arguments(__doc__, titles=400, long_texts=200, names=NAMES)
    ours, missing = engrams(options)
    others, left_out = peers.peers_open(options.peers, options.model, options.threads, options.cache, say)
    results = [measure(options, ours, others, name) for name in SETS]
    print(f"machine: {peers.machine()}; {options.threads} threads, {options.rounds} rounds")
    print("peers: " + ", ".join(sorted({peer.version for peer in others})))
    left_out_print({**missing, **left_out})
    tables = [table(result, ours) for result in results]
    for peer in others:
        peer.close()
    if options.json:
        what = {"machine": peers.machine(), "threads": options.threads, "left_out": {**missing, **left_out}, "sets": tables,
                "versions": {peer.name: peer.version for peer in others}}
        pathlib.Path(options.json).write_text(json.dumps(what, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
