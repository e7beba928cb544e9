#!/usr/bin/python3
"""Encoding on GPUs beside the CPU of the same machine, in one run and turn by turn: the table for docs/GPU.md.

S: debtags titles, about 20 word pieces; L: long texts, about 103. Each round gives every device one pass over the texts;
a ratio is taken inside a round. The table has the medians, and the least cosine between a device's vectors and the CPU's
in f32. Ends with status 1 and one line where no GPU can be used.

    gpu.py BUILD [--rounds 3] [--texts N] [--devices 0 --devices 0,1 ...]
BUILD: the folder of engram and bench/encode_bench.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "debtags"
SETS = {"S": "test.jsonl.gz", "L": "long-texts.jsonl.gz"}
PROGRAM = ".encode_bench"  # where a program looks for the plug-in: in its own folder
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("ENGRAM_")}


def run(*command):
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False, env=ENVIRONMENT)
    if done.returncode != 0:
        sys.exit(f"gpu-check: {(done.stderr or done.stdout).strip().splitlines()[-1]}")
    return done.stdout


def encode(options, name, flags):
    """(tokens/s, [texts, dim])."""
    build = options.build
    with tempfile.NamedTemporaryFile() as file:
        said = run(build / PROGRAM, EXAMPLE / SETS[name], "--model", build / "models" / "all-MiniLM-L6-v2",
                   "--texts", options.texts, "--embeddings", file.name, *flags)
        result = json.loads(said.splitlines()[-1])
        return result["tokens_per_s"], np.fromfile(file.name, dtype=np.float32).reshape(result["texts"], -1)


def device(build, flags):
    """As the program names it."""
    line = run(build / "engram", "--version", *flags).splitlines()[1].removeprefix("device: ")
    if line.startswith("none; "):
        sys.exit(f"gpu-check: {line.removeprefix('none; ')}")
    return line


def measure(options, settings, names):
    print("| texts | device | tokens/s | beside the CPU | least cosine with f32 |\n|---|---|---|---|---|")
    for name in SETS:
        _, wanted = encode(options, name, ["--device", "cpu", "--compute", "f32"])
        rates, cosines = [[] for _ in settings], [1.0 for _ in settings]
        for _ in range(options.rounds):
            for i, flags in enumerate(settings):
                rate, vectors = encode(options, name, flags)
                rates[i].append(rate)
                cosines[i] = min(cosines[i], float(np.min(np.sum(vectors * wanted, axis=1))))
        for i, named in enumerate(names):
            ratio = statistics.median(rate / cpu for rate, cpu in zip(rates[i], rates[0]))
            print(f"| {name} | {named} | {statistics.median(rates[i]):,.0f} | {ratio:.2f} | {cosines[i]:.5f} |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("build", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--texts", type=int, default=1_000_000, help="at most so many of each kind")
    parser.add_argument("--devices", action="append", default=[], help="a list as the option devices takes it; repeatable")
    options = parser.parse_args()
    settings = [["--device", "cpu"]] + [["--device", "cuda", "--devices", one] for one in options.devices or ["0"]]
    names = [device(options.build, flags) for flags in settings]
    shutil.copy(options.build / "bench" / "encode_bench", options.build / PROGRAM)
    try:
        measure(options, settings, names)
    finally:
        (options.build / PROGRAM).unlink()


if __name__ == "__main__":
    main()
