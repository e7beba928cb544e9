#!/usr/bin/env python3
"""Tokens/s of encoding, beside sentence-transformers (torch, f32), in one run and turn by turn.

S: debtags titles, about 20 word pieces; L: the long texts, about 103 at max_seq_length 256 (the same on both sides). Both sides
start from strings and end with f32 rows in memory: tokenization is inside. sentence-transformers takes the best of the batch
sizes 16 to 128 (it sorts by length itself); Engram takes the batch_tokens that its backend asks for. A ratio is taken inside a
round, so that what else the machine does falls on both; the result is the median over the rounds.

    encode.py MODEL BENCH [--rounds 5] [--threads 2] [--titles 2000] [--long-texts 500] [--json FILE]
MODEL: the model's folder; BENCH: the compiled tests/bench/encode_bench.c.
"""

import argparse
import gzip
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time

EXAMPLE = pathlib.Path(__file__).resolve().parents[2] / "examples" / "debtags"
BATCHES = (16, 32, 64, 128)
LENGTH = 256


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("bench")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--titles", type=int, default=2000)
    parser.add_argument("--long-texts", type=int, default=500)
    parser.add_argument("--json", help="also write the numbers here")
    return parser.parse_args()


def texts_read(file, count):
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        return [json.loads(line)["text"] for line, _ in zip(lines, range(count))]


def engram_pass(options, file, count):
    """{"texts", "tokens", "seconds"} of one pass, with one before it to warm up."""
    command = [options.bench, options.model, str(file), "--texts", str(count), "--threads", str(options.threads),
               "--max-seq-length", str(LENGTH), "--repeat", "2"]  # fmt: skip
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def peer_seconds(model, texts, batch):
    start = time.perf_counter()
    model.encode(texts, batch_size=batch, show_progress_bar=False)
    return time.perf_counter() - start


def measure(options, model, name, file, count):
    """One row of the table: the medians over the rounds, and the ratio's spread."""
    texts = texts_read(file, count)
    tokens = sum(len(ids) for ids in model.tokenizer(texts, truncation=True, max_length=LENGTH)["input_ids"])
    ours, peers, ratios = [], {batch: [] for batch in BATCHES}, []
    peer_seconds(model, texts[:200], 32)
    for number in range(options.rounds):
        one = engram_pass(options, file, count)
        if one["tokens"] != tokens:
            sys.exit(f"{name}: {one['tokens']} tokens here, {tokens} there: not the same work")
        ours.append(tokens / one["seconds"])
        for batch in BATCHES:
            peers[batch].append(tokens / peer_seconds(model, texts, batch))
        ratios.append(ours[-1] / max(peers[batch][-1] for batch in BATCHES))
        print(f"{name} round {number + 1}: {ours[-1]:.0f} tokens/s, ratio {ratios[-1]:.2f}", file=sys.stderr)
    best = max(BATCHES, key=lambda batch: statistics.median(peers[batch]))
    return {
        "set": name,
        "texts": count,
        "tokens": tokens,
        "engram_tokens_per_s": round(statistics.median(ours)),
        "peer_tokens_per_s": round(statistics.median(peers[best])),
        "peer_batch": best,
        "ratio": round(statistics.median(ratios), 2),
        "ratio_least": round(min(ratios), 2),
    }


def machine():
    with open("/proc/cpuinfo", encoding="utf-8") as lines:
        names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else 'unknown CPU'}, {len(os.sched_getaffinity(0))} CPUs"


def main():
    options = arguments()
    import torch
    from sentence_transformers import SentenceTransformer, __version__

    torch.set_num_threads(options.threads)
    model = SentenceTransformer(options.model, device="cpu")
    model.max_seq_length = LENGTH
    rows = [
        measure(options, model, "S", EXAMPLE / "test.jsonl.gz", options.titles),
        measure(options, model, "L", EXAMPLE / "long-texts.jsonl.gz", options.long_texts),
    ]
    peer = f"sentence-transformers {__version__}, torch {torch.__version__}"
    print(f"machine: {machine()}; {options.threads} threads; peer: {peer}")
    print("| texts | Engram tokens/s | peer tokens/s (its best batch) | ratio (least) |\n|---|---|---|---|")
    for row in rows:
        print(f"| {row['set']} | {row['engram_tokens_per_s']} | {row['peer_tokens_per_s']} ({row['peer_batch']}) "
              f"| {row['ratio']} ({row['ratio_least']}) |")  # fmt: skip
    if options.json:
        result = {"machine": machine(), "peer": peer, "threads": options.threads, "sets": rows}
        pathlib.Path(options.json).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
