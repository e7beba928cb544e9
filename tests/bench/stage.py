#!/usr/bin/python3
"""Texts/s of the whole stage on a real broker beside encoding alone, in one run and turn by turn; the stage's peak memory, and
the bytes of its memory's file.

The memory has all of debtags, folded by the stage from its topics. A round encodes the test titles with the compiled
encode_bench, then lets the stage tag the same titles once with each setting of SETTINGS; they already wait in a topic of
their own. The stage's rate is taken from the times of its predictions, without the first batch, so that start and join
do not count. Other work on the machine slows both sides of a ratio; the broker, its reader and its writer run on the same CPUs
and count against the stage.

    stage.py ENGRAM MODEL BENCH [--rounds 3] [--repeat 2] [--json FILE]
ENGRAM: the binary; MODEL: the model's folder; BENCH: the compiled tests/bench/encode_bench.c; --repeat: how often each title.
"""

import argparse
import gzip
import json
import pathlib
import signal
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "e2e"))
from kafka import Broker  # noqa: E402

EXAMPLE = ROOT / "examples" / "debtags"
SETTINGS = {"as installed": (),
            "tuned": ("--pool", "apart", "--lambda", "0.3", "--tau", "0.8", "--b", "100", "--lexical", "1")}


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("engram")
    parser.add_argument("model")
    parser.add_argument("bench")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--repeat", type=int, default=2)
    parser.add_argument("--json", help="also write the numbers here")
    return parser.parse_args()


class Stage:
    """A running stage; on leaving it is drained, and peak_mib is the most that it took."""

    def __init__(self, options, broker, folder, *flags):
        self.command = [options.engram, "run", "--model", options.model, "--memory", str(folder / "memory"), "-X",
                        f"bootstrap.servers={broker.address}", "--timestamp", "now", "--port", "0", *flags]
        self.log = folder / "stage.log"
        self.peak_mib = 0.0

    def __enter__(self):
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(self.command, stderr=log)
        return self

    def __exit__(self, *_):
        self.look()
        self.process.send_signal(signal.SIGTERM)
        if self.process.wait(60) != 0:
            raise SystemExit(f"the stage failed:\n{self.log.read_text()[-2000:]}")

    def look(self):
        if self.process.poll() is not None:
            raise SystemExit(f"the stage ended:\n{self.log.read_text()[-2000:]}")
        for line in pathlib.Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith("VmHWM"):
                self.peak_mib = max(self.peak_mib, int(line.split()[1]) / 1024)


def replay(options, broker, *flags):
    subprocess.run([options.engram, "replay", "-X", f"bootstrap.servers={broker.address}", *map(str, flags)],
                   check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def fold(options, broker, folder):
    """Folds debtags through Kafka; returns (instances, seconds, peak MiB)."""
    with gzip.open(EXAMPLE / "train.jsonl.gz", "rt", encoding="utf-8") as lines:
        count = sum(1 for line in lines if line.strip())
    with Stage(options, broker, folder) as stage:
        while "ready" not in stage.log.read_text():
            stage.look()
            time.sleep(0.1)
        started = time.monotonic()
        replay(options, broker, "--labels", EXAMPLE / "labels.jsonl.gz", "--instances", EXAMPLE / "train.jsonl.gz")
        done = 0
        while done < count:
            stage.look()
            time.sleep(0.25)
            stats = subprocess.run([options.engram, "memory", "stats", "--json", "--memory", str(folder / "memory")],
                                   check=True, capture_output=True, text=True)
            done = json.loads(stats.stdout)["instances"]
        seconds = time.monotonic() - started
    return count, seconds, stage.peak_mib


def titles(options, folder):
    """The test titles in one file, each --repeat times."""
    path = folder / "titles.jsonl"
    with gzip.open(EXAMPLE / "test.jsonl.gz", "rt", encoding="utf-8") as lines:
        whole = lines.read()
    path.write_text(whole * options.repeat, encoding="utf-8")
    return path, whole.count("\n") * options.repeat


def encode_rate(options, path, count):
    done = subprocess.run([options.bench, options.model, str(path), "--texts", str(count), "--threads", "2",
                           "--max-seq-length", "256"], check=True, capture_output=True, text=True)
    line = json.loads(done.stdout.splitlines()[-1])
    return line["texts"] / line["seconds"]


def file_bytes(options, folder):
    """Of the memory that followed live, and of its backup; and their keys."""
    memory = ["--memory", folder / "memory"]
    stats = subprocess.run([options.engram, "memory", "stats", "--json", *memory], check=True, capture_output=True, text=True)
    subprocess.run([options.engram, "memory", "backup", folder / "backup", *memory], check=True, capture_output=True)
    held = json.loads(stats.stdout)
    return {"keys": held["instances"] + held["label_keys"], "file_bytes": (folder / "memory" / "data.mdb").stat().st_size,
            "backup_bytes": (folder / "backup" / "data.mdb").stat().st_size}


def stage_rate(options, broker, folder, name, path, count, *setting):
    """(texts/s, peak MiB) of the stage over titles that wait in a topic of their own."""
    flags = ["--texts-topic", f"texts-{name}", "--predictions-topic", f"predictions-{name}", "--group", f"bench-{name}"]
    broker.create_topics((f"texts-{name}", 6))
    replay(options, broker, "--texts", path, *flags[:2])
    with Stage(options, broker, folder, *flags, *setting) as stage:
        while sum(end for _, end in broker.ends(f"predictions-{name}").values()) < count:
            stage.look()
            time.sleep(0.5)
    times = sorted(record.timestamp for record in broker.read_all(f"predictions-{name}"))
    assert len(times) == count, f"{len(times)} predictions of {count} texts"
    after_first = sum(1 for t in times if t > times[0] + 100)  # what the first batch published does not count
    return after_first / ((times[-1] - times[0]) / 1000), stage.peak_mib


def one_round(options, broker, folder, number, path, texts):
    """Encoding alone, then the stage with each setting; {"encode": texts/s, setting: (texts/s, peak MiB)}."""
    found = {"encode": encode_rate(options, path, texts)}
    for setting, flags in SETTINGS.items():
        name = f"{number}-{setting.split()[0]}"
        found[setting] = stage_rate(options, broker, folder, name, path, texts, *flags)
    print(f"round {number + 1}: encode {found['encode']:.0f} texts/s"
          + "".join(f", {setting} {found[setting][0]:.0f}" for setting in SETTINGS), file=sys.stderr, flush=True)
    return found


def summary(rounds, setting):
    ratios = [r[setting][0] / r["encode"] for r in rounds]
    return {"texts_per_s": statistics.median(r[setting][0] for r in rounds), "ratio": statistics.median(ratios),
            "ratio_min": min(ratios), "ratio_max": max(ratios), "peak_mib": max(r[setting][1] for r in rounds)}


def main():
    options = arguments()
    with tempfile.TemporaryDirectory(prefix="engram-bench-") as name, Broker(f"{name}/broker") as broker:
        folder = pathlib.Path(name)
        count, seconds, peak = fold(options, broker, folder)
        print(f"folded {count} instances in {seconds:.1f} s, {count / seconds:.0f}/s", file=sys.stderr, flush=True)
        path, texts = titles(options, folder)
        rounds = [one_round(options, broker, folder, number, path, texts) for number in range(options.rounds)]
        result = {"encode_texts_per_s": statistics.median(r["encode"] for r in rounds), "folds_per_s": count / seconds,
                  "fold_peak_mib": peak, **file_bytes(options, folder),
                  "stage": {setting: summary(rounds, setting) for setting in SETTINGS}}
    for setting, found in result["stage"].items():
        print(f"stage, {setting}: {found['texts_per_s']:.0f} of {result['encode_texts_per_s']:.0f} texts/s, ratio "
              f"{found['ratio']:.2f} ({found['ratio_min']:.2f} .. {found['ratio_max']:.2f}); peak {found['peak_mib']:.0f} MiB")
    print(f"folding: {result['folds_per_s']:.0f} instances/s; peak {peak:.0f} MiB; {result['keys']} keys in "
          f"{result['file_bytes'] / 1e6:.1f} MB, backup {result['backup_bytes'] / 1e6:.1f} MB")
    if options.json:
        pathlib.Path(options.json).write_text(json.dumps(result) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
