#!/usr/bin/python3
"""How long until a taught label is live, and what teaching costs the texts: at half load, and with no load at all.

The stage has debtags in memory. Its full rate is measured first, over titles that wait; then `engram replay --rate` sends
titles at half of that. Meanwhile single labelled instances, each with a label of its own, are taught one after the other
through the instances topic, in turns of equal length with and without. Label to live is the time from the broker's
acknowledgement until a read-only look at the memory, every half a millisecond (live_probe), finds the instance; a look before the
acknowledgement counts as 0. A text's latency is from its own timestamp, set by its producer, to that of its prediction, set
when it is written, both in milliseconds of the same clock. Then the texts stop and the rest is taught to an idle stage.

    live.py ENGRAM MODEL BENCH PROBE [--labels 1000] [--idle 200] [--turns 4] [--seconds 20] [--json FILE]
ENGRAM, MODEL and BENCH as for stage.py; PROBE: the compiled tests/bench/live_probe.c; --seconds: of a turn without teaching.
"""

import json
import random
import statistics
import subprocess
import time

import peers
from confluent_kafka import Producer
from running import ENVIRONMENT, Stage, bench, json_write, parser_of, say

SETTLE_S = 3  # after the texts have begun
TOPICS = ("--texts-topic", "texts-live", "--predictions-topic", "predictions-live", "--group", "bench-live")


def percentile(values, percent):
    """The smallest value that so many percent of the values do not exceed."""
    return sorted(values)[max(0, -(-len(values) * percent // 100) - 1)] if values else float("nan")


class Teacher:
    """Teaches one label at a time and waits until it is live."""

    def __init__(self, b):
        self.producer = Producer({"bootstrap.servers": b.broker.address, "linger.ms": 0})
        self.probe = subprocess.Popen([b.options.probe, "--memory", str(b.memory)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                      text=True, bufsize=1, env=ENVIRONMENT)  # fmt: skip
        self.taught = 0
        self.random = random.Random(1)

    def teach(self):
        """Milliseconds from the acknowledgement until it is live."""
        name = f"lesson-{self.taught}"
        self.taught += 1
        self.probe.stdin.write(name + "\n")
        value = json.dumps({"text": f"lesson number {self.taught} of the bench", "labels": [f"lesson::{self.taught}"]})
        acknowledged = []
        self.producer.produce("instances", key=name, value=value,
                              on_delivery=lambda error, _: acknowledged.append((error, time.monotonic())))
        self.producer.flush(60)
        live = self.probe.stdout.readline()
        if not live or not acknowledged or acknowledged[0][0]:
            raise SystemExit(f"{name} did not become live: {acknowledged}")
        time.sleep(self.random.uniform(0, 0.02))  # or it would keep in step with the batches
        return max(0.0, int(live) / 1000 - acknowledged[0][1] * 1000)

    def close(self):
        self.probe.stdin.close()
        self.probe.wait()


class Texts:
    """Titles at a fixed rate, until the end."""

    def __init__(self, b, rate, seconds):
        file = b.folder / "many.jsonl"
        lines = b.titles.read_text(encoding="utf-8").splitlines()
        with open(file, "w", encoding="utf-8") as out:
            for i in range(int(rate * seconds)):
                out.write(json.dumps({**json.loads(lines[i % len(lines)]), "id": f"text-{i}"}) + "\n")
        self.process = subprocess.Popen([b.options.engram, "replay", *b.kafka, *TOPICS[:2], "--texts", str(file), "--rate", f"{rate:.3f}"],
                                        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=ENVIRONMENT)  # fmt: skip

    def look(self):
        if self.process.poll() is not None:
            raise SystemExit("the texts ended too early: machine too slow for --seconds and --labels?")

    def close(self):
        self.process.terminate()
        self.process.wait()


def turns_run(options, stage, texts, teacher):
    """Turns without and with teaching: {"quiet": [(from ms, to ms)], "taught": [...]} and the labels' milliseconds."""
    spans, live = {"quiet": [], "taught": []}, []
    for turn in range(options.turns):
        stage.look()
        begun = time.time()
        time.sleep(options.seconds)
        spans["quiet"].append((begun * 1000, time.time() * 1000))
        begun = time.time()
        for _ in range(options.labels // options.turns):
            texts.look()
            live.append(teacher.teach())
        spans["taught"].append((begun * 1000, time.time() * 1000))
        say(f"turn {turn + 1}: {len(live)} labels, p50 {statistics.median(live):.1f} ms, p99 {percentile(live, 99):.1f} ms")
    return spans, live


def texts_of(b, spans):
    """{"quiet" and "taught": {"texts_per_s", "p50", "p99"}} of the texts that were sent in those turns."""
    sent = {record.key: record.timestamp for record in b.broker.read_all("texts-live")}
    written = {record.key: record.timestamp for record in b.broker.read_all("predictions-live")}
    found = {}
    for kind, times in spans.items():
        inside = [key for key, at in sent.items() if any(first <= at < last for first, last in times)]
        late = [written[key] - sent[key] for key in inside if key in written]
        answered = sum(1 for at in written.values() if any(first <= at < last for first, last in times))
        seconds = sum(last - first for first, last in times) / 1000
        found[kind] = {"texts_per_s": answered / seconds, "sent_per_s": len(inside) / seconds, "seconds": seconds,
                       "p50": percentile(late, 50), "p99": percentile(late, 99), "unanswered": len(inside) - len(late)}
    return found


def measure(b, rate):
    options = b.options
    b.broker.create_topics(("texts-live", 6), ("predictions-live", 6))
    most = options.turns * options.seconds + options.labels * 0.5 + 60  # texts for longer than it can take
    with Stage(b, *TOPICS) as stage:
        stage.ready()
        teacher = Teacher(b)
        teacher.teach()  # connections and the first fold
        texts = Texts(b, rate, most)
        try:
            time.sleep(SETTLE_S)
            spans, live = turns_run(options, stage, texts, teacher)
        finally:
            texts.close()
        time.sleep(SETTLE_S)
        idle = [teacher.teach() for _ in range(options.idle)]
        teacher.close()
    return live, idle, texts_of(b, spans)


def main():
    parser = parser_of(__doc__, rounds=1)
    parser.add_argument("probe")
    parser.add_argument("--labels", type=int, default=1000)
    parser.add_argument("--idle", type=int, default=200)
    parser.add_argument("--turns", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--rate", type=float, help="texts/s instead of half of the full rate")
    options = parser.parse_args()
    with bench(options) as b:
        full = None if options.rate else b.stage_rate("full")[0]
        rate = options.rate or full / 2
        say(f"full rate {full or 0:.0f} texts/s; now {rate:.0f} texts/s")
        live, idle, texts = measure(b, rate)
    full_text = f"full rate {full:.0f} texts/s; " if full else ""
    print(f"machine: {peers.machine()}; compute {options.compute}; {full_text}{rate:.0f} texts/s sent")
    print("\n| label to live, ms | labels | p50 | p99 | highest |\n|---|---:|---:|---:|---:|")
    for name, ms in (("at half load", live), ("no load", idle)):
        print(f"| {name} | {len(ms)} | {percentile(ms, 50):.1f} | {percentile(ms, 99):.1f} | {max(ms, default=0):.1f} |")
    print("\n| texts | sent/s | answered/s | p50 ms | p99 ms |\n|---|---:|---:|---:|---:|")
    for name, kind in (("no teaching", "quiet"), ("while labels are taught", "taught")):
        t = texts[kind]
        print(f"| {name} | {t['sent_per_s']:.0f} | {t['texts_per_s']:.0f} | {t['p50']:.0f} | {t['p99']:.0f} |")
    unanswered = sum(t["unanswered"] for t in texts.values())
    if unanswered:
        print(f"{unanswered} texts had no answer when the stage was stopped")
    json_write(options, {"machine": peers.machine(), "full_texts_per_s": full, "rate": rate, "live_ms": sorted(live),
                         "idle_ms": sorted(idle), "texts": texts})


if __name__ == "__main__":
    main()
