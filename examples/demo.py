#!/usr/bin/python3
"""The demo of `make demo`: a real broker, the stage, and the debtags example replayed through Kafka.

It runs only the commands that a user would type, and reads what they print and what is in the topics. Everything it makes is
in one temporary folder, and everything it starts is stopped, even when it fails or is interrupted.
"""

import gzip
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time

from confluent_kafka import Consumer, Producer, TopicPartition

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
ENGRAM = os.path.join(ROOT, "build", "engram")
BROKER = os.path.join(ROOT, "tests", "broker", "broker")
DATA = os.path.join(ROOT, "examples", "debtags")
TAUGHT = 100


class Failed(Exception):
    """One line for the user."""


def rows(name):
    with gzip.open(os.path.join(DATA, name), "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines if line.strip()]


class Bar:
    """A progress bar on standard error; if that is not a terminal, a line every ten seconds."""

    def __init__(self, what, total):
        self.what, self.total, self.started, self.shown = what, total, time.monotonic(), 0.0
        self.terminal = sys.stderr.isatty()

    def update(self, done):
        now = time.monotonic()
        last = done >= self.total
        if not last and now - self.shown < (0.1 if self.terminal else 10):
            return
        self.shown = now
        seconds = max(now - self.started, 1e-9)
        cells = int(28 * done / max(self.total, 1))
        bar = "#" * cells + "." * (28 - cells)
        line = f"  {self.what:<18} [{bar}] {done:>6}/{self.total}  {done / seconds:7.0f}/s"
        print(("\r" if self.terminal else "") + line, end="" if self.terminal and not last else "\n", file=sys.stderr,
              flush=True)


class Demo:
    def __init__(self, folder):
        self.folder = folder
        self.memory = os.path.join(folder, "memory")
        self.file = os.path.join(folder, "engram.conf")
        self.log = os.path.join(folder, "stage.log")
        self.broker_started = False
        self.stage = None
        self.bootstrap = None

    def engram(self, *arguments, quiet=True):
        command = [ENGRAM, *arguments]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE if quiet else None, text=True,
                              check=False)
        if done.returncode != 0:
            raise Failed(f"{' '.join(command)} ended with {done.returncode}: {(done.stderr or '').strip()[-500:]}")
        return done.stdout

    def kafka_flags(self):
        return ["-X", f"bootstrap.servers={self.bootstrap}"]

    def start_broker(self):
        print("Starting an Apache Kafka broker ...", file=sys.stderr, flush=True)
        self.broker_started = True
        started = subprocess.run([BROKER, "start", os.path.join(self.folder, "broker")], stdout=subprocess.PIPE,
                                 text=True, check=False)
        if started.returncode != 0:
            raise Failed("the broker did not start")
        self.bootstrap = started.stdout.split()[-1]

    def start_stage(self):
        with open(self.file, "w", encoding="utf-8") as file:
            file.write(f"[memory]\nmemory = {self.memory}\n")
        with open(self.log, "wb") as log:
            self.stage = subprocess.Popen([ENGRAM, "run", "-c", self.file, "--port", "0", *self.kafka_flags()],
                                          stderr=log, stdout=subprocess.DEVNULL)
        self.wait_for_log("ready")

    def wait_for_log(self, word):
        deadline = time.monotonic() + 60
        while word not in self.stage_log():
            self.check_stage()
            if time.monotonic() > deadline:
                raise Failed(f"the stage's log has no '{word}' after 60 s: {self.stage_log()[-500:]}")
            time.sleep(0.1)

    def stage_log(self):
        with open(self.log, encoding="utf-8", errors="replace") as log:
            return log.read()

    def check_stage(self):
        if self.stage.poll() is not None:
            raise Failed(f"the stage ended with {self.stage.returncode}: {self.stage_log()[-500:]}")

    def stats(self):
        return json.loads(self.engram("memory", "stats", "--json", "--memory", self.memory))

    def fold(self, instances):
        """Replays labels and labelled instances; returns the seconds until all are in the memory."""
        started = time.monotonic()
        replay = subprocess.Popen([ENGRAM, "replay", "--labels", os.path.join(DATA, "labels.jsonl.gz"), "--instances",
                                   os.path.join(DATA, "train.jsonl.gz"), *self.kafka_flags()],
                                  stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        bar = Bar("folding instances", instances)
        done = 0
        while done < instances:
            self.check_stage()
            if replay.poll() not in (None, 0):
                raise Failed(f"engram replay ended with {replay.returncode}")
            time.sleep(0.5)
            done = self.stats()["instances"]
            bar.update(done)
        replay.wait()
        return time.monotonic() - started

    def tune(self):
        """Chooses the setting by leave-one-out while the stage runs, which then takes it; returns it and the seconds."""
        started = time.monotonic()
        found = json.loads(self.engram("tune", "-c", self.file, "--write", "--json", quiet=False))
        seconds = time.monotonic() - started
        self.stage.send_signal(signal.SIGHUP)
        self.wait_for_log(f"reloaded {self.file}")
        return found["best" if found["written"] else "today"], seconds

    def tag(self, texts):
        """Replays the test texts; returns {id: prediction} and the seconds from the first input to the last output."""
        consumer = Consumer({"bootstrap.servers": self.bootstrap, "group.id": "demo", "enable.auto.commit": False,
                             "auto.offset.reset": "earliest"})
        topic = consumer.list_topics("predictions", timeout=10).topics["predictions"]
        consumer.assign([TopicPartition("predictions", p, 0) for p in topic.partitions])
        started = time.monotonic()
        replay = subprocess.Popen([ENGRAM, "replay", "--texts", os.path.join(DATA, "test.jsonl.gz"),
                                   *self.kafka_flags()], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        bar = Bar("tagging texts", texts)
        predictions = {}
        while len(predictions) < texts:
            self.check_stage()
            if replay.poll() not in (None, 0):
                raise Failed(f"engram replay ended with {replay.returncode}")
            message = consumer.poll(0.5)
            if message is not None and not message.error():
                prediction = json.loads(message.value())
                predictions[prediction["id"]] = prediction
                bar.update(len(predictions))
        seconds = time.monotonic() - started
        replay.wait()
        consumer.close()
        return predictions, seconds

    def teach(self, count):
        """Teaches single labels, one after the other; returns milliseconds from the acknowledgement to the memory."""
        producer = Producer({"bootstrap.servers": self.bootstrap, "linger.ms": 0})
        bar = Bar("teaching labels", count)
        latencies = []
        for i in range(count):
            name = f"demo-{i}"
            acknowledged = []
            waiter = subprocess.Popen([ENGRAM, "memory", "get", name, "--wait", "30", "--memory", self.memory],
                                      stdout=subprocess.PIPE)
            time.sleep(0.05)  # the command that waits for it runs before the label is sent
            value = json.dumps({"text": f"lesson number {i} of the demo", "labels": [f"demo::{i}"]})
            producer.produce("instances", key=name, value=value,
                             on_delivery=lambda error, _: acknowledged.append((error, time.monotonic())))
            producer.flush(30)
            found = waiter.stdout.readline()
            live = time.monotonic()
            waiter.stdout.close()
            if waiter.wait() != 0 or not found or not acknowledged or acknowledged[0][0]:
                raise Failed(f"{name} was taught but did not become live: {acknowledged}")
            latencies.append(max(0.0, (live - acknowledged[0][1]) * 1000))
            bar.update(i + 1)
        return sorted(latencies)

    def stop(self):
        if self.stage is not None and self.stage.poll() is None:
            self.stage.send_signal(signal.SIGTERM)
            try:
                self.stage.wait(30)
            except subprocess.TimeoutExpired:
                self.stage.kill()
                self.stage.wait()
        if self.broker_started:
            subprocess.run([BROKER, "stop", os.path.join(self.folder, "broker")], check=False,
                           stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        shutil.rmtree(self.folder, ignore_errors=True)


def precision(predictions, gold, k):
    hits = sum(len({label["label"] for label in predictions[i]["labels"][:k]} & gold[i]) for i in gold)
    return 100 * hits / (k * len(gold))


def show(prediction, text, gold):
    print(f'\n  "{text}"')
    for label in prediction["labels"][:5]:
        mark = "right" if label["label"] in gold else "-"
        print(f"    {label['score']:.3f}  {label['label']:<36} {mark}")
    for key in prediction["evidence"][:3]:
        name = key.get("id") or key.get("label")
        labels = ", ".join(key.get("labels", [])[:4])
        words = f", words in common {key['lexical']:.2f}" if "lexical" in key else ""
        print(f"      because of {key['kind']} {name} (similarity {key['similarity']:.2f}{words}, weight {key['weight']:.2f})"
              + (f": {labels}" if labels else ""))


def run(demo):
    train, test = rows("train.jsonl.gz"), rows("test.jsonl.gz")
    demo.start_broker()
    demo.start_stage()
    fold_seconds = demo.fold(len(train))
    tuned, tune_seconds = demo.tune()
    predictions, tag_seconds = demo.tag(len(test))
    latencies = demo.teach(TAUGHT)
    stats = demo.stats()

    gold = {row["id"]: set(row["labels"]) for row in test if row["labels"]}
    print("\nEngram on debtags: Debian package titles -> tags, through Kafka")
    print(f"  instances folded   {len(train)} with {stats['label_keys']} label texts in {fold_seconds:.1f} s"
          f" ({len(train) / fold_seconds:.0f}/s), no training")
    print(f"  tuned              in {tune_seconds:.1f} s, from the memory itself: {tuned['pool']}"
          + "".join(f", {name} {tuned[name]:g}" for name in ("lambda", "tau", "b", "lexical"))
          + f" ({tuned['lexical_form']}), label_power {tuned['label_power']:g}")
    print(f"  texts tagged       {len(predictions)} in {tag_seconds:.1f} s ({len(predictions) / tag_seconds:.0f}/s)")
    print("  on the test part   " + "   ".join(f"P@{k} {precision(predictions, gold, k):.1f}" for k in (1, 3, 5)))
    print(f"  label to live      p50 {statistics.median(latencies):.0f} ms, p99 {latencies[int(0.99 * TAUGHT) - 1]:.0f} ms"
          f" ({TAUGHT} single labels, from acknowledgement to memory)")
    print("\nThree tagged texts and their evidence:")
    for row in test[:3]:
        show(predictions[row["id"]], row["text"], set(row["labels"]))
    print("""
Try next, without Kafka:
  build/engram load --labels examples/debtags/labels.jsonl.gz --instances examples/debtags/train.jsonl.gz
  build/engram tag "fast web server with a small memory footprint"
  build/engram eval --test examples/debtags/test.jsonl.gz""")


def main():
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    demo = Demo(tempfile.mkdtemp(prefix="engram-demo-"))
    try:
        run(demo)
        return 0
    except Failed as failed:
        print(f"demo: {failed}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    finally:
        demo.stop()


if __name__ == "__main__":
    sys.exit(main())
