"""What the measurements on a real broker share: the stage as a process, its memory filled with debtags, rates read from the
times of predictions, and encoding alone. Runs with Debian's Python, as the end-to-end tests do, whose broker it uses."""

import argparse
import gzip
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "e2e"))
from kafka import Broker  # noqa: E402

EXAMPLE = ROOT / "examples" / "debtags"
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("ENGRAM_")}
GAP_MS, FIRST_MS = 20, 1000  # the first batch ends before a gap of the one, at the latest after the other


def parser_of(description, rounds):
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("engram")
    parser.add_argument("model")
    parser.add_argument("bench")
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--repeat", type=int, default=2, help="how often each title")
    parser.add_argument("--titles", type=int, help="no more titles than this, for a quick look")
    parser.add_argument("--instances", type=int, help="fold no more of debtags than this, for a quick look")
    parser.add_argument("--compute", default="auto", choices=("auto", "f32", "bf16"), help="of the stage and of encoding alone")
    parser.add_argument("--json", help="also write the numbers here")
    return parser


def say(text):
    print(text, file=sys.stderr, flush=True)


def json_write(options, result):
    if options.json:
        pathlib.Path(options.json).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def rate_of(times):
    """Texts/s from the times of predictions in ms, sorted, without the first batch: start and join do not count."""
    first = 1
    while first < len(times) and times[first] - times[first - 1] < GAP_MS and times[first] - times[0] < FIRST_MS:
        first += 1
    if first == len(times):
        raise SystemExit(f"{first} texts are too few: they were one batch")
    return (len(times) - first) / ((times[-1] - times[first - 1]) / 1000)


class Stage:
    """A running stage; on leaving it is drained, and peak_mib is the most that it took."""

    def __init__(self, bench, *flags):
        self.command = [bench.options.engram, "run", *bench.own, *bench.kafka, "--timestamp", "now", "--port", "0", *flags]
        self.log = bench.folder / "stage.log"
        self.peak_mib = 0.0

    def __enter__(self):
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(self.command, stderr=log, env=ENVIRONMENT)
        return self

    def __exit__(self, kind, *_):
        if kind:
            self.process.kill()
            self.process.wait()
            return
        self.look()
        self.process.send_signal(signal.SIGTERM)
        if self.process.wait(60) != 0:
            raise SystemExit(f"the stage failed:\n{self.log.read_text()[-2000:]}")

    def ready(self):
        while "ready" not in self.log.read_text():
            self.look()
            time.sleep(0.1)

    def look(self):
        if self.process.poll() is not None:
            raise SystemExit(f"the stage ended:\n{self.log.read_text()[-2000:]}")
        for line in pathlib.Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith("VmHWM"):
                self.peak_mib = max(self.peak_mib, int(line.split()[1]) / 1024)


class Bench:
    """A broker, a memory that the stage has filled through it, and the titles."""

    def __init__(self, options, broker, folder):
        self.options, self.broker, self.folder = options, broker, folder
        self.memory = folder / "memory"
        self.encoder = ["--model", options.model, "--compute", options.compute]
        self.own = [*self.encoder, "--memory", str(self.memory)]
        self.kafka = ["-X", f"bootstrap.servers={broker.address}"]
        self.titles, self.count = self._titles()
        self.fold_seconds = self.folded = 0
        self.fold_peak_mib = 0.0

    def _titles(self):
        """The test titles in one file, each --repeat times, under ids of their own."""
        path, count = self.folder / "titles.jsonl", 0
        with gzip.open(EXAMPLE / "test.jsonl.gz", "rt", encoding="utf-8") as lines:
            texts = [json.loads(line)["text"] for line in lines][: self.options.titles]
        with open(path, "w", encoding="utf-8") as out:
            for count in range(len(texts) * self.options.repeat):
                out.write(json.dumps({"id": f"title-{count}", "text": texts[count % len(texts)]}) + "\n")
        return path, count + 1

    def engram(self, *arguments):
        done = subprocess.run([self.options.engram, *map(str, arguments)], check=False, capture_output=True, text=True, env=ENVIRONMENT)
        if done.returncode != 0:
            raise SystemExit(f"engram {arguments[0]}: {done.stderr[-1000:]}")
        return done.stdout

    def stats(self):
        return json.loads(self.engram("memory", "stats", "--json", "--memory", self.memory))

    def fold(self):
        """Debtags, through Kafka and the stage."""
        train = EXAMPLE / "train.jsonl.gz"
        with gzip.open(train, "rt", encoding="utf-8") as lines:
            whole = [line for line in lines if line.strip()]
        if self.options.instances:
            whole, train = whole[: self.options.instances], self.folder / "train.jsonl"
            train.write_text("".join(whole), encoding="utf-8")
        with Stage(self) as stage:
            stage.ready()
            started = time.monotonic()
            self.engram("replay", *self.kafka, "--labels", EXAMPLE / "labels.jsonl.gz", "--instances", train)
            while self.folded < len(whole):
                stage.look()
                time.sleep(0.25)
                self.folded = self.stats()["instances"]
            self.fold_seconds = time.monotonic() - started
        self.fold_peak_mib = stage.peak_mib
        say(f"folded {self.folded} instances in {self.fold_seconds:.1f} s, {self.folded / self.fold_seconds:.0f}/s")

    def encode_rate(self):
        """Texts/s of encoding alone, with all threads, over the same titles."""
        done = subprocess.run([self.options.bench, self.titles, *self.encoder, "--max-seq-length", "256"],
                              check=True, capture_output=True, text=True, env=ENVIRONMENT)
        line = json.loads(done.stdout.splitlines()[-1])
        return line["texts"] / line["seconds"]

    def topics(self, name):
        """Flags for a texts topic in which all titles wait, and a predictions topic."""
        flags = ["--texts-topic", f"texts-{name}", "--predictions-topic", f"predictions-{name}", "--group", f"bench-{name}"]
        self.broker.create_topics((f"texts-{name}", 6), (f"predictions-{name}", 6))
        self.engram("replay", *self.kafka, "--texts", self.titles, *flags[:2])
        return flags

    def predicted(self, name, process):
        """Texts/s from the times of all predictions, once they are there; process.look() says that someone makes them."""
        while sum(end for _, end in self.broker.ends(f"predictions-{name}").values()) < self.count:
            process.look()
            time.sleep(0.5)
        times = sorted(record.timestamp for record in self.broker.read_all(f"predictions-{name}"))
        if len(times) != self.count:
            raise SystemExit(f"{len(times)} predictions of {self.count} texts")
        return rate_of(times)

    def stage_rate(self, name, *setting):
        """(texts/s, peak MiB) of the stage over titles that wait in a topic of their own."""
        flags = self.topics(name)
        with Stage(self, *flags, *setting) as stage:
            rate = self.predicted(name, stage)
        return rate, stage.peak_mib


@contextmanager
def bench(options):
    """A Bench with debtags folded, on a broker of its own in a temporary folder; nothing of it stays, also when ended."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with tempfile.TemporaryDirectory(prefix="engram-bench-") as name, Broker(f"{name}/broker") as broker:
        made = Bench(options, broker, pathlib.Path(name))
        made.fold()
        yield made
