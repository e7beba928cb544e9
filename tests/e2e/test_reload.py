"""SIGHUP: a running stage reads its options again. Every text still has exactly one answer, made by one set of options
from its labels to its evidence, and the log says what was taken, what waits for a restart and what was refused.
"""

import json
import os
import re
import signal
import threading
import time

import pytest
from console import Console, free_port
from kafka import Record, wait_until
from oracle import check_answers, check_memory, check_texts, written
from stage import TINY, engram

LABELS = 9


@pytest.fixture
def conf(folder):
    """conf(text): writes the configuration file as an editor does, and gives its path."""
    path = folder / "engram.conf"

    def write(text):
        new = folder / "engram.conf.new"
        new.write_text(text, encoding="utf-8")
        os.replace(new, path)
        return path

    return write


def reload(running, count=1):
    """SIGHUP; returns the lines that answer it, once there are so many."""
    before = len(running.log())
    running.process.send_signal(signal.SIGHUP)

    def told():
        lines = [line.split(" ", 1)[1] for line in running.log()[before:].splitlines()
                 if re.search(r"(info |warn ) (reload|nothing to reload|these changes wait)", line)]
        return lines if len(lines) >= count else None

    return wait_until(told, running.log)


def learn(broker, topics, memory):
    broker.produce(topics.labels, [(b"l%d" % i, written(text=f"label number {i}")) for i in range(LABELS)])
    broker.produce(topics.instances, [(b"%d" % i, written(text=f"instance number {i}", labels=[f"l{i % LABELS}"]))
                                      for i in range(40)])
    check_memory(broker, topics, memory)


class Stream(threading.Thread):
    """Texts, on and on, to all partitions."""

    def __init__(self, broker, topics):
        super().__init__(daemon=True)
        self.broker, self.topics, self.sent = broker, topics, 0
        self.ends = threading.Event()
        self.start()

    def run(self):
        while not self.ends.is_set():
            first = self.sent
            self.broker.produce(self.topics.texts, [Record(b"%d" % i, written(text=f"text {i}"), partition=i % 6)
                                                    for i in range(first, first + 60)])
            self.sent = first + 60

    def more(self, count=600):
        wanted = self.sent + count
        wait_until(lambda: self.sent >= wanted, lambda: f"{wanted} texts, not {self.sent}")

    def stop(self):
        self.ends.set()
        self.join()


def shape(prediction):
    """Labels, pieces of evidence, and whether these carry texts: (4, 2, False)."""
    evidence = prediction["evidence"]
    assert len({"text" in piece for piece in evidence}) <= 1
    return len(prediction["labels"]), len(evidence), any("text" in piece for piece in evidence)


def test_under_a_stream_of_texts(broker, topics, stage, memory, conf):
    """Each partition's answers go through the options in the order in which the stage took them."""
    steps = [("labels_max = 4\nevidence_max = 2\n", (4, 2, False), None),
             ("labels_max = 7\nevidence_max = 3\nevidence_text = true\n", (7, 3, True),
              "labels_max 4 -> 7, evidence_max 2 -> 3, evidence_text false -> true"),
             ("labels_max = 1\nevidence_max = 0\nb = 3\npool = apart\nlambda = 0.9\n", (1, 0, False),
              "pool joint -> apart, lambda 0.5 -> 0.9, b 200 -> 3, labels_max 7 -> 1, evidence_max 3 -> 0, "
              "evidence_text true -> false"),
             ("labels_max = 0\nevidence_max = 8\nlambda = 0.3\ntau = 0.5\n", (LABELS, 8, False),
              "pool apart -> joint, lambda 0.9 -> 0.3, tau 0.1 -> 0.5, b 3 -> 200, labels_max 1 -> 0, "
              "evidence_max 0 -> 8")]
    path = conf("[predict]\n" + steps[0][0])
    running = stage(*TINY, "-c", path, "--batch-tokens", 256)
    learn(broker, topics, memory)
    stream = Stream(broker, topics)
    marks = []  # the first text that was sent with a step in force
    for options, _, told in steps:
        conf("[predict]\n" + options)
        if told:
            running.process.send_signal(signal.SIGHUP)
            running.wait_for(re.escape(f"info  reloaded {path}: {told}\n"))
        for _ in range(20):  # again and again, of what has not changed
            running.process.send_signal(signal.SIGHUP)
        marks.append(stream.sent + 60)  # those before it may be on their way
        stream.more()
    stream.stop()
    answers = check_texts(broker, topics)
    assert len(answers.predictions) == stream.sent and not answers.letters
    shapes = [wanted for _, wanted, _ in steps]
    found = {}
    for (partition, offset), (prediction,) in sorted(answers.predictions.items()):
        found.setdefault(partition, []).append(shapes.index(shape(prediction)))
    assert all(order == sorted(order) for order in found.values()), found
    # what was sent after the line stood in the log is answered by the options that it names
    by_key = {int(answers.records[place].key): shape(only) for place, (only,) in answers.predictions.items()}
    for step, first in enumerate(marks):
        assert by_key[first] in shapes[step:]
    assert by_key[0] == shapes[0] and by_key[stream.sent - 1] == shapes[-1]
    # and as the command line answers it with the same file
    mine = answers.one(max(answers.predictions, key=lambda place: int(answers.records[place].key)))
    other = json.loads(engram("tag", "--json", *TINY, "-c", path, "--memory", memory, f"text {stream.sent - 1}").stdout)
    assert [label["label"] for label in mine["labels"]] == [label["label"] for label in other["labels"]]
    assert all(abs(a["score"] - b["score"]) < 1e-5 for a, b in zip(mine["labels"], other["labels"]))
    running.stop()


def test_refused_whole(broker, topics, stage, memory, conf):
    console = Console(free_port())
    path = conf("[predict]\nlabels_max = 4\n")
    running = stage(*console.flags, "-c", path)
    learn(broker, topics, memory)
    taken = "[predict]\nlabels_max = 2\n"
    for text, told in ((taken + "tau = warm\n", ":3: tau is 'warm', but it takes 0.0001 .. 1000"),
                       (taken + "tua = 1\n", ":3: there is no option 'tua'; the nearest is 'tau' under [predict]"),
                       (taken + "[kafka]\nacks = 1\n", ":4: acks cannot be set: "),
                       (taken + "[stage]\nqueue_tokens = 2048\nbatch_tokens = 4096\n",
                        ":5: batch_tokens is 4096, more than queue_tokens (2048)"),
                       (None, ": No such file or directory")):
        path.unlink()
        if text:
            conf(text)
        (line,) = reload(running)
        assert line.startswith("warn  reload refused, the options stay as they were: ") and f"{path}{told}" in line
        if not text:
            conf("")
    broker.produce(topics.texts, [(b"1", written(text="a text"))])
    (only,) = check_texts(broker, topics).bodies()
    assert len(only["labels"]) == 4
    conf("[predict]\nlabels_max = 2\n")
    assert reload(running) == [f"info  reloaded {path}: labels_max 4 -> 2"]
    assert reload(running) == [f"info  reloaded {path}: nothing changed"]
    shown = console.metrics()
    assert (shown['engram_reloads_total{result="refused"}'], shown['engram_reloads_total{result="taken"}']) == (5, 2)
    running.stop()


def test_what_waits_for_a_restart_and_what_is_overridden(stage, conf):
    path = conf("[predict]\nb = 1\n")
    running = stage(*TINY, "-c", path, "--b", 50, env={"ENGRAM_TAU": "0.3"})
    conf("[predict]\nb = 2\ntau = 0.4\nlambda = 0.4\n[stage]\nqueue_tokens = 2048\n[kafka]\nlinger.ms = 1\n"
         "sasl.password = hunter2\n[kafka.consumer]\nfetch.min.bytes = 2\n[memory]\nkeys_max = 7\n")
    waits = "warn  these changes wait for a restart: queue_tokens 65536 -> 2048, keys_max 0 -> 7, kafka.linger.ms, " \
            "kafka.sasl.password, kafka.consumer.fetch.min.bytes"
    assert reload(running, 2) == [f"info  reloaded {path}: lambda 0.5 -> 0.4; to no effect: tau (ENGRAM_TAU wins over "
                                  "the file), b (--b wins over the file)", waits]
    assert reload(running, 2) == [f"info  reloaded {path}: nothing to take", waits]  # until it is restarted
    conf("[predict]\nb = 2\ntau = 0.4\nlambda = 0.4\n")
    assert reload(running) == [f"info  reloaded {path}: nothing changed"]
    assert "hunter2" not in running.log()
    running.stop()


def test_the_level_of_the_log(stage, conf):
    console = Console(free_port())
    path = conf("[log]\nlog_level = info\n")
    running = stage(*console.flags, "-c", path)
    conf("[log]\nlog_level = error\n")
    assert reload(running) == [f"info  reloaded {path}: log_level info -> error"]
    conf("[log]\nlog_level = nothing\n")
    before = running.log()
    running.process.send_signal(signal.SIGHUP)
    wait_until(lambda: console.metrics()['engram_reloads_total{result="refused"}'] == 1, console.metrics)
    assert running.log() == before
    conf("[log]\nlog_level = debug\n")
    assert reload(running) == [f"info  reloaded {path}: log_level error -> debug"]
    running.stop()


def test_without_a_file(stage):
    running = stage(*TINY)
    assert reload(running) == ["info  nothing to reload: this stage was started without -c, so there is no file"]
    running.stop()


def blocks_hangups(process):
    """Does its mask of blocked signals hold SIGHUP?"""
    with open(f"/proc/{process.pid}/status", encoding="ascii") as file:
        return int(re.search(r"^SigBlk:\s+([0-9a-f]+)$", file.read(), re.MULTILINE)[1], 16) & 1 << (signal.SIGHUP - 1)


def test_at_any_moment(broker, topics, stage, memory, conf):
    """From the first moment that a signal can be sent, while it catches up, and while it drains."""
    broker.create_topics((topics.instances, 1), (topics.texts, 6))
    filler = "word " * 40
    broker.produce(topics.instances, [(b"%d" % i, written(text=f"instance {i} {filler}", labels=["x"]))
                                      for i in range(4000)])
    broker.produce(topics.texts, [Record(b"%d" % i, written(text=f"text {i} {filler}"), partition=i % 6)
                                  for i in range(6000)])
    path = conf("[predict]\nlabels_max = 4\n")
    running = stage(*TINY, "--batch-tokens", 64, "-c", path, ready=False)
    process = running.process
    wait_until(lambda: blocks_hangups(process), "SIGHUP to be blocked", pause_s=0)
    while "ready:" not in running.log():
        process.send_signal(signal.SIGHUP)
        time.sleep(0.01)
        assert running.running, running.log()
    before_ready = running.log().partition("ready:")[0]
    assert before_ready.count("nothing changed") > 1
    wait_until(lambda: sum(end for _, end in broker.ends(topics.predictions).values()) > 0, "answers")
    running.terminate()
    while running.running:
        process.send_signal(signal.SIGHUP)
        time.sleep(0.01)
    assert running.wait() == 0 and running.log().endswith(" stopped\n")
    committed = broker.committed(topics.group, topics.texts)
    assert sum(committed.values()) < 6000, "stopped too late to prove anything"
    check_answers(broker, topics, unanswered=lambda place: place[1] >= committed.get(place[0], 0))
    running.restart().wait_ready()
    assert len(check_texts(broker, topics).predictions) == 6000
    check_memory(broker, topics, memory)
    running.stop()
