#!/usr/bin/python3
"""Texts/s of the whole stage on a real broker beside encoding alone and beside the loop that a user would write in Python
(loop.py: confluent-kafka, sentence-transformers, FAISS), in one run and turn by turn; the stage's peak memory, and the bytes of
its memory's file.

The memory has all of debtags, folded by the stage from its topics. A round encodes the test titles with the compiled
encode_bench, then lets the stage tag the same titles once with each setting, then the loop; they already wait in a topic of
their own. The settings are the defaults, what `engram tune` picks for this memory, and that without the comparison of words. A
rate is taken from the times of the predictions, without the first batch, so that start and join do not count. The broker, its
reader and its writer run on the same CPUs and count against the stage and the loop alike.

    stage.py ENGRAM MODEL BENCH [--rounds 3] [--repeat 2] [--compute auto|f32|bf16] [--loop PYTHON] [--json FILE]
ENGRAM: the binary; MODEL: the model's folder; BENCH: the compiled tests/bench/encode_bench.c; --loop: the Python with the
loop's packages, without which it is left out.
"""

import json
import pathlib
import statistics
import subprocess

import peers
from running import ENVIRONMENT, bench, json_write, parser_of, say

LOOP = pathlib.Path(__file__).resolve().parent / "loop.py"


class Loop:
    """The loop as a process."""

    def __init__(self, b, name, dtype):
        flags = dict(zip(*[iter(b.topics(name))] * 2))
        self.log = b.folder / f"loop-{name}.log"
        self.command = [b.options.loop, LOOP, b.options.model, b.folder / f"loop-{dtype}.npz", dtype, "--bootstrap", b.broker.address,
                        "--texts", flags["--texts-topic"], "--predictions", flags["--predictions-topic"], "--group", flags["--group"]]
        if b.options.instances:
            self.command += ["--instances", str(b.options.instances)]

    def __enter__(self):
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen([str(part) for part in self.command], stdout=log, stderr=log, env=ENVIRONMENT)
        return self

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait()

    def look(self):
        if self.process.poll() is not None:
            raise SystemExit(f"the loop ended:\n{self.log.read_text()[-2000:]}")


def settings_of(b):
    """{name: flags}: what is installed, what `tune` picks, and that without words."""
    file = b.folder / "tuned.conf"
    file.touch()  # where the defaults are the best, nothing is written
    found = json.loads(b.engram("tune", "-c", file, *b.own, "--write", "--json"))
    say(f"tuned: {found['best']}")
    tuned = ("-c", str(file))
    return found["best"], {"as installed": (), "tuned": tuned, "tuned, lexical 0": (*tuned, "--lexical", "0")}


def loops_of(options):
    """({name: dtype}, {name: why it is left out})."""
    if not options.loop:
        return {}, {"Python loop": "no --loop"}
    if peers.bf16_reason():
        return {"Python loop f32": "f32"}, {"Python loop bf16": peers.bf16_reason()}
    return {"Python loop f32": "f32", "Python loop bf16": "bf16"}, {}


def one_round(b, number, settings, loops):
    """Encoding alone, the stage with each setting, the loop: {"encode": texts/s, name: texts/s}, {setting: peak MiB}."""
    found, peaks = {"encode": b.encode_rate()}, {}
    for place, (setting, flags) in enumerate(settings.items()):
        found[setting], peaks[setting] = b.stage_rate(f"{number}-{place}", *flags)
    for name, dtype in loops.items():
        with Loop(b, f"{number}-{dtype}", dtype) as loop:
            found[name] = b.predicted(f"{number}-{dtype}", loop)
    say(f"round {number + 1}, texts/s: " + ", ".join(f"{name} {rate:.0f}" for name, rate in found.items()))
    return found, peaks


def file_bytes(b):
    """Of the memory that followed live, and of its backup; and their keys."""
    b.engram("memory", "backup", b.folder / "backup", "--memory", b.memory)
    held = b.stats()
    return {"keys": held["instances"] + held["label_keys"], "file_bytes": (b.memory / "data.mdb").stat().st_size,
            "backup_bytes": (b.folder / "backup" / "data.mdb").stat().st_size}


def spread(rounds, one, other):
    ratios = [r[one] / r[other] for r in rounds]
    return {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)}


def table(rounds, peaks, loops):
    print("\n| | texts/s | of encoding alone (lowest .. highest) | " + " | ".join(f"against the {name}" for name in loops)
          + " | peak MiB |\n|---|---:|---:|" + "---:|" * (len(loops) + 1))
    result = {}
    for name in rounds[0]:
        result[name] = {"texts_per_s": statistics.median(r[name] for r in rounds), "peak_mib": peaks.get(name),
                        "against": {other: spread(rounds, name, other) for other in ("encode", *loops)}}
        cells = [f"{v['median']:.2f} ({v['min']:.2f} .. {v['max']:.2f})" for v in result[name]["against"].values()]
        peak = f"{peaks[name]:.0f}" if name in peaks else ""
        print(f"| {'encoding alone' if name == 'encode' else name} | {result[name]['texts_per_s']:.0f} | {' | '.join(cells)} | {peak} |")
    return result


def main():
    parser = parser_of(__doc__, rounds=3)
    parser.add_argument("--loop", help="the Python that runs loop.py")
    options = parser.parse_args()
    loops, left_out = loops_of(options)
    with bench(options) as b:
        tuned, settings = settings_of(b)
        both = [one_round(b, number, settings, loops) for number in range(options.rounds)]
        sizes = file_bytes(b)
    rounds = [found for found, _ in both]
    peaks = {name: max(found[name] for _, found in both) for name in settings}
    print(f"machine: {peers.machine()}; compute {options.compute}; {options.rounds} rounds of {b.count} titles; {sizes['keys']} keys")
    print(f"tuned: {json.dumps(tuned)}")
    for name, reason in left_out.items():
        print(f"left out: {name}: {reason}")
    result = table(rounds, peaks, loops)
    print(f"\nfolding: {b.folded / b.fold_seconds:.0f} instances/s; peak {b.fold_peak_mib:.0f} MiB; file "
          f"{sizes['file_bytes'] / 1e6:.1f} MB, backup {sizes['backup_bytes'] / 1e6:.1f} MB")
    json_write(options, {"machine": peers.machine(), "rounds": rounds, "tuned": tuned, "left_out": left_out, "results": result,
                         "folds_per_s": b.folded / b.fold_seconds, "fold_peak_mib": b.fold_peak_mib, **sizes})


if __name__ == "__main__":
    main()
