#!/usr/bin/python3
"""Texts/s of the stage beside a process that takes half of one core (burner.py, pinned to one, in bursts), against what the
CPU time that is left could encode.

A round measures encoding alone on the free machine, then beside the burner encoding alone and the whole stage, on a broker,
with debtags in memory. On 2 CPUs a burner that took 0.5 of one leaves 1.5 / 2 of what the free machine encodes: a ratio of 1
would be reached only by a stage that costs nothing besides encoding and never has one worker wait for another. The broker runs
on the same CPUs, as in stage.py.

    beside.py ENGRAM MODEL BENCH [--rounds 3] [--repeat 2] [--share 0.5] [--json FILE]
ENGRAM, MODEL and BENCH as for stage.py.
"""

import os
import pathlib
import statistics
import subprocess
import sys

import peers
from running import bench, json_write, parser_of, say

BURNER = pathlib.Path(__file__).resolve().parent / "burner.py"
CPUS = sorted(os.sched_getaffinity(0))


class Burner:
    """While it is open, one core has less time; afterwards .share is what was taken of it."""

    def __init__(self, share):
        self.command = [sys.executable, BURNER, str(CPUS[-1]), str(share)]

    def __enter__(self):
        self.process = subprocess.Popen(self.command, stdout=subprocess.PIPE, text=True)
        return self

    def __exit__(self, *_):
        self.process.terminate()
        self.share = float(self.process.communicate()[0] or 0)


def one_round(b, number):
    found = {"encode": b.encode_rate()}
    with Burner(b.options.share) as burner:
        found["encode beside"] = b.encode_rate()
    found["encode share"] = burner.share
    with Burner(b.options.share) as burner:
        found["stage beside"], _ = b.stage_rate(f"beside-{number}")
    found["stage share"] = burner.share
    for what in ("encode", "stage"):
        left = found["encode"] * (len(CPUS) - found[f"{what} share"]) / len(CPUS)
        found[f"{what} ratio"] = found[f"{what} beside"] / left
    say(f"round {number + 1}: " + ", ".join(f"{name} {value:.2f}" for name, value in found.items()))
    return found


def main():
    parser = parser_of(__doc__, rounds=3)
    parser.add_argument("--share", type=float, default=0.5)
    options = parser.parse_args()
    with bench(options) as b:
        rounds = [one_round(b, number) for number in range(options.rounds)]
    middle = {name: statistics.median(r[name] for r in rounds) for name in rounds[0]}
    print(f"machine: {peers.machine()}; compute {options.compute}; {options.rounds} rounds of {b.count} titles")
    print("\n| | texts/s | taken from one core | of what the rest could encode (lowest .. highest) |\n|---|---:|---:|---:|")
    print(f"| encoding, free machine | {middle['encode']:.0f} | | |")
    for name, what in (("encoding, beside the burner", "encode"), ("stage, beside the burner", "stage")):
        ratios = [r[f"{what} ratio"] for r in rounds]
        print(f"| {name} | {middle[f'{what} beside']:.0f} | {middle[f'{what} share']:.2f} | {middle[f'{what} ratio']:.2f} "
              f"({min(ratios):.2f} .. {max(ratios):.2f}) |")
    json_write(options, {"machine": peers.machine(), "rounds": rounds, "median": middle})


if __name__ == "__main__":
    main()
