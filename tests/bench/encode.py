#!/usr/bin/env python3
"""Tokens/s of encoding, beside the peers of peers.py and beside what oneDNN's matmul alone would allow, in one run and turn by
turn.

S: debtags titles, about 20 word pieces; L: long texts, about 103 (max_seq_length 256 everywhere). Every side starts from
strings and ends with f32 rows in memory. Each peer first finds its best batch size on a part of the texts. Then each round
gives everyone one pass over all of them, and the limit its turn: the model's matmuls by gemm_bench, at its best number of rows.
A ratio is taken inside a round, so that what else the machine does falls on both sides; the table has the median of the
rounds and, in parentheses, the lowest. Peers in bf16 are left out where the CPU has no instructions for it.

    encode.py MODEL BENCH GEMM CACHE [--rounds 5] [--threads N] [--titles 2000] [--long-texts 500] [--peers NAME ...] [--json FILE]
MODEL: the model's folder; BENCH, GEMM: the compiled tests/bench/encode_bench.c and gemm_bench.c; CACHE: the peers' folder.
"""

import argparse
import gzip
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

import numpy
import peers
from peers import BATCHES, LENGTH, Failed

EXAMPLE = pathlib.Path(__file__).resolve().parents[2] / "examples" / "debtags"
SETS = {"S": "test.jsonl.gz", "L": "long-texts.jsonl.gz"}
CALIBRATION = 4  # the part of the texts that the best batch size is found on
CHECKED = 32  # texts whose vectors are compared before anything is measured
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("ENGRAM_")}


def arguments(description, *more, titles=2000, long_texts=500, names=peers.NAMES):
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("model", "bench", *more, "cache"):
        parser.add_argument(name)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--titles", type=int, default=titles)
    parser.add_argument("--long-texts", type=int, default=long_texts)
    parser.add_argument("--peers", nargs="*", default=names, choices=peers.NAMES, metavar="NAME")
    parser.add_argument("--json", help="also write the numbers here")
    return parser.parse_args()


def say(text):
    print(text, file=sys.stderr, flush=True)


def texts_read(options, name):
    count = options.titles if name == "S" else options.long_texts
    with gzip.open(EXAMPLE / SETS[name], "rt", encoding="utf-8") as lines:
        return [json.loads(line)["text"] for line, _ in zip(lines, range(count))]


class Engram:
    """encode_bench with one value of the option `compute`; None: a binary that does not have it yet."""

    def __init__(self, options, compute):
        self.options = options
        self.name = f"Engram {compute or 'f32'}"
        self.flags = ["--compute", compute] if compute else []

    def encode(self, name, count, *flags):
        command = [self.options.bench, str(EXAMPLE / SETS[name]), "--model", self.options.model, "--texts", str(count), "--threads",
                   str(self.options.threads), "--max-seq-length", str(LENGTH), *self.flags, *flags]  # fmt: skip
        done = subprocess.run(command, check=False, capture_output=True, text=True, env=ENVIRONMENT)
        if done.returncode != 0:
            raise Failed(done.stderr.strip().splitlines()[0])
        return json.loads(done.stdout.splitlines()[-1])


def engrams(options):
    """(those that run, {name: why it was left out})."""
    try:
        Engram(options, "f32").encode("S", 1)
    except Failed as failure:
        return [Engram(options, None)], {"Engram bf16": str(failure)}
    return [Engram(options, "f32"), Engram(options, "bf16")], {}


class Matmuls:
    """The limit: tokens/s of gemm_bench, each time at the number of rows that is best then."""

    def __init__(self, options, dtype):
        self.name = f"matmuls alone {dtype}"
        config = json.loads((pathlib.Path(options.model) / "config.json").read_text(encoding="utf-8"))
        self.command = [options.gemm, *(str(config[size]) for size in ("hidden_size", "intermediate_size", "num_hidden_layers")),
                        str(options.threads), "1", dtype]  # fmt: skip
        self.best = None

    def tokens_per_s(self):
        done = subprocess.run(self.command, check=True, capture_output=True, text=True)
        lines = [json.loads(line) for line in done.stdout.splitlines()]
        if "left_out" in lines[-1]:
            raise Failed(lines[-1]["left_out"])
        self.best = max(lines, key=lambda line: line["tokens_per_s"])
        return self.best["tokens_per_s"]


def limits(options):
    running, left_out = [], {}
    for limit in (Matmuls(options, "f32"), Matmuls(options, "bf16")):
        try:
            limit.tokens_per_s()
            running.append(limit)
            say(f"{limit.name}: {limit.best['kernel']}, best with {limit.best['rows']} rows")
        except Failed as failure:
            left_out[limit.name] = str(failure)
    return running, left_out


def best_batch(peer, name, count):
    """The batch size of the shortest pass over a part of the texts; passes of the sizes take turns."""
    seconds = {batch: [] for batch in BATCHES}
    part = max(count // CALIBRATION, max(BATCHES))
    for batch in BATCHES:
        peer.encode(name, part, batch)  # whatever is compiled for these shapes is compiled here
    for _ in range(2):
        for batch in BATCHES:
            seconds[batch].append(peer.encode(name, part, batch)["seconds"])
    return min(BATCHES, key=lambda batch: min(seconds[batch]))


def same_vectors(ours, peer, name, count):
    """Refuses a peer whose vectors are others than Engram's: it would not have done the same work."""
    with tempfile.TemporaryDirectory() as folder:
        ours[0].encode(name, count, "--embeddings", f"{folder}/ours")
        peer.vectors(name, count, max(BATCHES), f"{folder}/theirs.npy")
        theirs = numpy.load(f"{folder}/theirs.npy")
        cosines = (numpy.fromfile(f"{folder}/ours", dtype=numpy.float32).reshape(theirs.shape) * theirs).sum(axis=1)
    if cosines.min() < 0.99:
        raise SystemExit(f"{peer.name}, {name}: a vector's cosine to Engram's is {cosines.min():.4f}: not the same work")


def one_round(ours, others, bounds, name, count, tokens):
    """{name: tokens/s} of everyone's pass."""
    found = {}
    for engram in ours:
        one = engram.encode(name, count)
        if one["tokens"] != tokens:
            raise SystemExit(f"{name}: {one['tokens']} tokens here, {tokens} there: not the same work")
        found[engram.name] = tokens / one["seconds"]
    for peer in others:
        time.sleep(0.2)  # threads of the one before go to sleep
        found[peer.name] = tokens / peer.encode(name, count, peer.batch[name])["seconds"]
    for bound in bounds:
        found[bound.name] = bound.tokens_per_s()
    return found


def measure(options, ours, others, bounds, name):
    """{"set", "texts", "tokens", "rounds": [{name: tokens/s}]}; all peers must count the same tokens."""
    texts = texts_read(options, name)
    tokens = ours[0].encode(name, len(texts))["tokens"]
    for peer in others:
        peer.texts(name, texts)
        same_vectors(ours, peer, name, min(CHECKED, len(texts)))
        peer.batch[name] = best_batch(peer, name, len(texts))
        counted = peer.encode(name, len(texts), peer.batch[name])["tokens"]
        if counted != tokens:
            raise SystemExit(f"{peer.name}, {name}: {counted} tokens, Engram {tokens}: not the same work")
        say(f"{name}, {peer.name}: best with batches of {peer.batch[name]}")
    rounds = []
    for number in range(options.rounds):
        rounds.append(one_round(ours, others, bounds, name, len(texts), tokens))
        say(f"{name} round {number + 1}: " + ", ".join(f"{who} {rate:.0f}" for who, rate in rounds[-1].items()))
    return {"set": name, "texts": len(texts), "tokens": tokens, "rounds": rounds}


def ratio(rounds, one, other):
    """(median, lowest) of one against the other, inside a round."""
    found = [r[one] / r[other] for r in rounds]
    return statistics.median(found), min(found)


def table(result, ours, others, bounds):
    """Markdown: everyone's tokens/s, and each Engram against it; then what to read off it."""
    rounds = result["rounds"]
    rates = {name: statistics.median(r[name] for r in rounds) for name in rounds[0]}
    notes = {peer.name: f"batches of {peer.batch[result['set']]}" for peer in others}
    notes |= {bound.name: f"{bound.best['rows']} rows, {bound.best['kernel']}" for bound in bounds}
    print(f"\n{result['set']}: {result['texts']} texts, {result['tokens']} tokens\n")
    print("| | tokens/s | " + " | ".join(f"{engram.name} against it" for engram in ours) + " |\n|---|---:|" + "---:|" * len(ours))
    for name, rate in rates.items():
        cells = [f"{name} ({notes[name]})" if name in notes else name, f"{rate:,.0f}"]
        for engram in ours:
            cells.append("" if name == engram.name else "{:.2f} ({:.2f})".format(*ratio(rounds, engram.name, name)))
        print(f"| {' | '.join(cells)} |")
    print()
    summary = {}
    for engram in ours:
        dtype = engram.name.split()[1]
        against = {"the best peer": [peer.name for peer in others],
                   f"the best {dtype} peer": [peer.name for peer in others if peer.name.endswith(dtype)],
                   f"the {dtype} limit": [bound.name for bound in bounds if bound.name.endswith(f" {dtype}")]}
        for what, names in against.items():
            if names:
                best = max(names, key=rates.get)
                median, lowest = ratio(rounds, engram.name, best)
                summary[f"{engram.name} / {what}"] = {"of": best, "ratio": round(median, 3), "lowest": round(lowest, 3)}
                print(f"{result['set']}: {engram.name} / {what} ({best}): {median:.2f} (lowest {lowest:.2f})")
    return {**result, "tokens_per_s": {name: round(rate) for name, rate in rates.items()}, "notes": notes, "ratios": summary}


def left_out_print(left_out):
    for name, reason in left_out.items():
        print(f"left out: {name}: {reason}")


def main():
    options = arguments(__doc__, "gemm")
    ours, missing = engrams(options)
    bounds, without = limits(options)
    others, left_out = peers.peers_open(options.peers, options.model, options.threads, options.cache, say)
    left_out = {**missing, **left_out, **without}
    for peer in others:
        peer.batch = {}
    results = [measure(options, ours, others, bounds, name) for name in SETS]
    print(f"machine: {peers.machine()}; {options.threads} threads, {options.rounds} rounds")
    print("peers: " + ", ".join(sorted({peer.version for peer in others})))
    left_out_print(left_out)
    tables = [table(result, ours, others, bounds) for result in results]
    for peer in others:
        peer.close()
    if options.json:
        what = {"machine": peers.machine(), "threads": options.threads, "left_out": left_out, "sets": tables,
                "versions": {peer.name: peer.version for peer in others}}
        pathlib.Path(options.json).write_text(json.dumps(what, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
