"""Outputs that the broker does not take: too large, or of a time that it refuses. Each is sent in a form that it takes,
every input has exactly one output or dead letter, nothing is tried for ever and nothing skipped.
"""

import json
import socket
import time
import urllib.request

from kafka import Record, wait_until
from stage import ROOT

MODEL = ROOT / "tests" / "golden" / "tiny-bert"
HOUR_MS = 3600 * 1000
PREDICTION_MAX, LETTER_MAX = 20_000, 30_000
SMALL = "a tool"
LARGE = "debian " * 5000  # the encoder reads its beginning only: a short text of such words has the same vector


def value(text, filler=0, **more):
    fields = {"text": text, **more}
    if filler:
        fields["metadata"] = "m" * filler
    return json.dumps(fields).encode()


def learn(broker, topics, running):
    """One instance with a small text, one with a large one: what is most similar to a text is its evidence."""
    broker.produce(topics.instances, [(name.encode(), value(text, labels=[name]))
                                      for name, text in (("small", SMALL), ("large", LARGE))])
    wait_until(lambda: running.stats()["instances"] == 2, "both instances")


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def errors(port):
    """{kind: count} of those that the console counts."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
        counted = dict(line.rsplit(" ", 1) for line in answer.read().decode().splitlines() if "errors_total{" in line)
    return {name.split('"')[1]: float(count) for name, count in counted.items() if float(count)}


def evidence(record):
    return json.loads(record.value)["evidence"][0]


def test_outputs_too_large(broker, topics, stage):
    now = int(time.time() * 1000)
    later = now + 10 * HOUR_MS  # the broker's own limit for `predictions` is one hour ahead
    broker.create_topics((topics.texts, 2), message_timestamp_after_max_ms=1 << 60, max_message_bytes=4 << 20)
    broker.create_topics(topics.predictions, max_message_bytes=PREDICTION_MAX)
    broker.create_topics(topics.dead_letters, max_message_bytes=LETTER_MAX)
    port = free_port()
    running = stage("--model", MODEL, "--evidence-text", "--evidence-max", 1, "--port", port)
    learn(broker, topics, running)

    headers = [("h", b"1"), ("h", None)]
    like_large = "debian " * 100
    special = [
        Record(b"resent", value(like_large), headers, timestamp=now),
        Record(b"resent with metadata", value(like_large, PREDICTION_MAX - 2000), headers, timestamp=now),
        Record(b"still too large", value(like_large, PREDICTION_MAX), headers, timestamp=now),
        Record(b"metadata", value(SMALL, LETTER_MAX + 20_000), headers, timestamp=now),
        Record(b"megabyte", value(SMALL, 1_000_000), headers, timestamp=now),
        Record(b"poison", b"{" * 200_000, headers, timestamp=now),
        Record(b"K" * 50_000, value(SMALL), headers, timestamp=now),
        Record(b"header", value(SMALL), [("large", b"x" * 50_000)], timestamp=now),
        Record(b"later", value(SMALL), headers, timestamp=later),
        Record(b"later and resent", value(like_large), headers, timestamp=later),
        Record(b"later and dead", value(like_large, PREDICTION_MAX), headers, timestamp=later),
    ]
    neighbours = [Record(b"n%d" % i, value(SMALL), timestamp=now) for i in range(20 * len(special))]
    records = []
    for index, record in enumerate(special):
        records += neighbours[index::len(special)] + [record]
    broker.produce(topics.texts, records, partition=1)
    broker.produce(topics.instances, [Record(b"poison", b"{" * 200_000, headers, timestamp=now),
                                      (b"good", value("x", labels=[]))])

    dead_keys = {b"still too large", b"metadata", b"megabyte", b"poison", b"header", b"later and dead"}
    wait_until(lambda: broker.committed(topics.group, topics.texts).get(1) == len(records), "all texts committed")
    wait_until(lambda: running.stats()["version"] == 4, "the learn lane behind its poison")
    assert errors(port) == {"format": 2, "too_large": len(dead_keys)}  # its poison aside, and the one with the large key
    running.stop()
    running.restart()  # what was committed is not done again
    running.wait_ready()
    broker.produce(topics.texts, [(b"last", value(SMALL))], partition=1)
    wait_until(lambda: broker.committed(topics.group, topics.texts).get(1) == len(records) + 1, "the last text")
    running.stop()

    predictions = {record.key: record for record in broker.read_all(topics.predictions)}
    letters = broker.read_all(topics.dead_letters)
    assert len(broker.read_all(topics.predictions)) == len(predictions) == len(neighbours) + 4 + 1
    of_texts = {letter.key: letter for letter in letters
                if dict(letter.headers)["__connect.errors.topic"].decode() == topics.texts}
    assert len(letters) == len(of_texts) + 1 == len(dead_keys) + 2
    assert {key for key in of_texts if len(key) < 100} == dead_keys

    # predictions: without their evidence's texts only where that was too large
    assert all(evidence(predictions[n.key])["text"] == SMALL for n in neighbours)
    for key in (b"resent", b"resent with metadata", b"later and resent"):
        assert evidence(predictions[key])["id"] == "large" and "text" not in evidence(predictions[key])
        assert predictions[key].headers[:2] == headers
    assert predictions[b"resent"].timestamp == now
    assert json.loads(predictions[b"resent with metadata"].value)["metadata"] == "m" * (PREDICTION_MAX - 2000)
    for key in (b"later", b"later and resent"):
        assert now <= predictions[key].timestamp < now + HOUR_MS
        assert predictions[key].headers == [*headers, ("engram.timestamp", b"%d" % later)]
    assert evidence(predictions[b"later"])["text"] == SMALL

    # dead letters: whole where they fit, else cut and marked
    sent = {record.key: record for record in special}
    for letter in letters:
        said = dict(letter.headers)
        poison = letter.key == b"poison"
        assert said["__connect.errors.stage"] == (b"decode" if poison else b"publish")
        assert said["__connect.errors.exception.class.name"] == (b"FORMAT" if poison else b"TOO_LARGE")
        assert now <= letter.timestamp < now + HOUR_MS
        if letter.key in (b"still too large", b"later and dead"):
            assert (letter.value, letter.headers[:2]) == (sent[letter.key].value, headers)
            assert "engram.truncated" not in said
            assert said["engram.timestamp"] == b"%d" % sent[letter.key].timestamp
        else:
            original = next(record for record in special if record.key.startswith(letter.key))
            assert said["engram.truncated"] == b"true"
            assert original.value.startswith(letter.value) and len(letter.value) < LETTER_MAX
            assert len(letter.key) == len(original.key) or len(letter.key) > 100
    assert running.stats()["version"] == 4 and running.stats()["instances"] == 3


def test_a_dead_letters_topic_that_takes_nothing_ends_the_stage(broker, topics, stage):
    """No form is left: the stage ends with a line that says what to change, and commits nothing of it."""
    broker.create_topics(topics.dead_letters, cleanup_policy="compact")  # refuses records without a key
    running = stage("--model", MODEL)
    broker.produce(topics.texts, [(b"good", value(SMALL))], partition=0)
    broker.read(topics.predictions, 1)
    broker.produce(topics.texts, [Record(None, b"{")], partition=1)
    assert running.wait() == 1
    running.wait_for(f"topic '{topics.dead_letters}' refuses a dead letter: .*no compaction")
    assert 1 not in broker.committed(topics.group, topics.texts)
    broker.set_topic_config(topics.dead_letters, cleanup_policy="delete")
    running.restart().wait_ready()
    assert len(broker.read(topics.dead_letters, 1)) == 1
    wait_until(lambda: broker.committed(topics.group, topics.texts).get(1) == 1, "the poison committed")
    running.stop()
    assert len(broker.read_all(topics.predictions)) == 1
