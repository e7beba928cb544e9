#!/usr/bin/python3
"""What `engram tune` reaches on the example sets (`make quality`; docs/QUALITY.md tells how to read it).

For each set: the train part is loaded into a memory of its own, the test part is evaluated as things stand without a setting,
`engram tune --write` picks one by leave-one-out over that memory, and the test part is evaluated again with the file that it
wrote. The test part has no say in the choice. Prints a table in markdown; ends with 1 where a figure misses its target.

    tests/quality.py [--compute auto|f32|bf16] [debtags] [debrel]
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ENGRAM = ROOT / os.environ.get("BUILD", "build") / "engram"
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("ENGRAM_")}
METRICS = ("P@1", "P@5", "PSP@5", "nDCG@5")
SETTING = ("pool", "lambda", "tau", "b", "lexical", "lexical_form", "label_power")
SETS = {  # flags of tune and eval, and the least that the test part must give
    "debtags": ([], {"P@1": 82.4, "P@5": 46.1, "nDCG@5": 82.5}),
    "debrel": (["--exclude-self"], {"P@1": 56.7, "P@5": 23.5, "nDCG@5": 59.0}),
}


class Failed(Exception):
    """One line for the user."""


def engram(*arguments, quiet=False):
    command = [ENGRAM, *map(str, arguments)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE if quiet else None, text=True,
                          env=ENVIRONMENT, check=False)
    if done.returncode != 0:
        raise Failed(f"{' '.join(map(str, command))} ended with {done.returncode}: {(done.stderr or '').strip()[-500:]}")
    return done.stdout


def load(file, labels, instances, **how):
    engram("load", "-c", file, "--labels", labels, "--instances", instances, **how)


def evaluate(file, test, *flags, **how):
    return json.loads(engram("eval", "-c", file, "--test", test, "--json", *flags, **how))


def tune(file, *flags, **how):
    """What `engram tune` says, and the seconds that it took."""
    begun = time.monotonic()
    found = json.loads(engram("tune", "-c", file, "--write", "--json", *flags, **how))
    return found, time.monotonic() - begun


def setting(found):
    unused = {"lexical_form"} if found["lexical"] == 0 else set()
    values = {name: found[name] if isinstance(found[name], str) else f"{found[name]:g}" for name in SETTING}
    return values.pop("pool") + "".join(f", {name} {value}" for name, value in values.items() if name not in unused)


def row(*cells):
    print("| " + " | ".join(cells) + " |", flush=True)


def measure(name, compute):
    """Prints the lines of one set; returns what missed its target."""
    flags, targets = SETS[name]
    data = ROOT / "examples" / name
    with tempfile.TemporaryDirectory(prefix=f"engram-quality-{name}-") as folder:
        file = Path(folder) / "engram.conf"
        file.write_text(f"[encoder]\ncompute = {compute}\n[memory]\nmemory = {folder}/memory\n", encoding="utf-8")
        load(file, data / "labels.jsonl.gz", data / "train.jsonl.gz")
        before = evaluate(file, data / "test.jsonl.gz", *flags)
        found, seconds = tune(file, *flags)
        after = evaluate(file, data / "test.jsonl.gz", *flags)
    row(name, f"as installed: {setting(found['today'])}", *(f"{before[m]:.2f}" for m in METRICS), "")
    row(name, f"tuned: {setting(found['best' if found['written'] else 'today'])}", *(f"{after[m]:.2f}" for m in METRICS), f"{seconds:.0f}")
    row(name, "at least", *(f"{targets[m]:.1f}" if m in targets else "" for m in METRICS), "")
    return [f"{name}: {m} {after[m]:.2f}, wanted {least}" for m, least in targets.items() if after[m] < least]


def main():
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="SET", help=", ".join(SETS))
    parser.add_argument("--compute", default="auto", choices=("auto", "f32", "bf16"))
    options = parser.parse_args()
    unknown = [name for name in options.names if name not in SETS]
    if unknown:
        parser.error(f"no set '{unknown[0]}'; there are: {', '.join(SETS)}")
    try:
        row("set", "setting", *METRICS, "tune, s")
        row("---", "---", *("---:" for _ in METRICS), "---:")
        missed = [line for name in options.names or SETS for line in measure(name, options.compute)]
    except Failed as failed:
        print(f"quality: {failed}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    for line in missed:
        print(f"quality: missed: {line}", file=sys.stderr)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
