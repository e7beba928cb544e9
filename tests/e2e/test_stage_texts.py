"""The way of a text through a running stage: its answer, and all that the answer takes over from it."""

import json
import re
import time

import msgpack
import pytest
from kafka import Record, wait_until
from oracle import check_memory, check_texts, packed, wait_committed, written
from stage import DEBTAGS, TINY, engram

CODECS = ["none", "gzip", "snappy", "lz4", "zstd"]
HEADERS = [("b", b"2"), ("a", b"1"), ("b", b"1"), ("b", b"2"), ("none", None), ("empty", b""), ("bytes", b"\x00\xff"),
           ("\u00e9", b"x")]


def lines(name, count):
    import gzip

    with gzip.open(DEBTAGS / name, "rt", encoding="utf-8") as file:
        return [json.loads(next(file)) for _ in range(count)]


def write(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


@pytest.mark.parametrize("form", ["json", "msgpack"])
def test_replay_through_the_stage(broker, topics, stage, memory, folder, kafka_flags, form):
    running = stage(*TINY)
    texts = [{"id": t["id"], "text": t["text"], "metadata": {"n": i, "of": [t["id"], None, -1.5]}}
             for i, t in enumerate(lines("test.jsonl.gz", 300))]
    labels = write(folder / "labels.jsonl", lines("labels.jsonl.gz", 100))
    instances = write(folder / "instances.jsonl", lines("train.jsonl.gz", 400))
    engram("replay", *kafka_flags, "--format", form, "--labels", labels, "--instances", instances)
    told = check_memory(broker, topics, memory)
    assert len(told.instances) == 400 and len(told.definitions) == 100
    engram("replay", *kafka_flags, "--format", form, "--texts", write(folder / "texts.jsonl", texts))
    answers = check_texts(broker, topics)
    assert len(answers.predictions) == 300 and not answers.letters
    by_id = {p["id"]: p for p in answers.bodies()}
    assert len(by_id) == 300
    version = running.stats()["fingerprint"][:16]
    for prediction in by_id.values():
        scores = [label["score"] for label in prediction["labels"]]
        assert len(scores) == 10 and scores == sorted(scores, reverse=True)
        assert len(prediction["evidence"]) == 5
        assert (prediction["memory_version"], prediction["model_version"]) == (500, version)
    # the command line says of the same texts what the stage said
    told = engram("tag", "--stdin", "--json-lines", *TINY, "--memory", memory,
                  stdin="".join(json.dumps(text) + "\n" for text in texts))
    for line in told.stdout.splitlines():
        other = json.loads(line)
        mine = by_id[other["id"]]
        scores = {label["label"]: label["score"] for label in mine["labels"]}
        near = {label["label"]: label["score"] for label in other["labels"]}
        least = min(scores.values())
        for label, score in near.items():  # labels closer to the last one than the bound may be others
            assert abs(scores.get(label, least) - score) < 5e-3
    running.stop()


def test_a_prediction_keeps_what_its_text_came_with(broker, topics, stage):
    """Into three partitions of predictions, from five: modulo. Order, repeats and nulls of headers, any key, any time,
    numbers that no double and no 64-bit integer holds."""
    broker.create_topics((topics.texts, 5), (topics.predictions, 3), retention_ms=-1)
    stage(*TINY)
    metadata = b'{"n":18446744073709551615,"x":1e400,"y":-0,"z":1.0,"z":[1.10,null,true,"\\u0000"]}'
    packed_metadata = msgpack.packb({"n": 2**64 - 1, "f": 1.5, "b": b"\xff\x00", "t": msgpack.Timestamp(1, 2)})
    packed_text = b"\x82" + msgpack.packb("text") + msgpack.packb("a text") + msgpack.packb("metadata") + packed_metadata
    keys = [b"key", None, b"", b"\xff\x00\xfe", "schl\u00fcssel".encode(), b"k" * 3000]
    values = [b'{"text": "a text", "metadata": ' + metadata + b"}", packed_text, written(text="", id="own id"),
              packed(text="x", id="own id", metadata=None), written(text="\u00e9\u4e2d\U0001f600"),
              packed(text=b"as binary")]
    sent = [Record(key, value, HEADERS if (i + j) % 2 else [], partition=(i + j) % 5, timestamp=1234567890123 + i * 10 + j)
            for i, key in enumerate(keys) for j, value in enumerate([*values, None])]
    places = broker.produce(topics.texts, sent)
    answers = check_texts(broker, topics)
    assert len(answers.predictions) == len(keys) * len(values) and not answers.letters
    copied = {True: b'"metadata":' + metadata, False: packed_metadata}
    for place, record in zip(places, sent):
        if record.value in values[:2]:
            assert copied[record.value is values[0]] in answers.records[place].value
    nulls = [r for r in broker.read_all(topics.predictions) if r.value is None]
    assert len(nulls) == len(keys) and {r.key for r in nulls} == set(keys)
    assert {tuple(r.headers) for r in nulls} == {(), tuple(HEADERS)}


def test_the_time_of_writing_instead(broker, topics, stage):
    broker.create_topics((topics.texts, 5), retention_ms=-1)  # the text is of 2009
    stage(*TINY, "--timestamp", "now")
    before = int(time.time() * 1000)
    broker.produce(topics.texts, [Record(b"k", written(text="old"), timestamp=1234567890123), Record(b"k", None)])
    check_texts(broker, topics, timestamp="now")
    assert all(before <= r.timestamp <= time.time() * 1000 for r in broker.read_all(topics.predictions))


def test_every_codec_on_every_input(broker, topics, stage, memory):
    stage(*TINY)
    filler = "compressible " * 200
    for codec in CODECS:
        broker.produce(topics.labels, [(codec.encode(), written(text=f"{codec} {filler}"))], codec=codec)
        broker.produce(topics.instances, [(codec.encode(), packed(text=f"{filler} {codec}", labels=[codec]))],
                       codec=codec)
    told = check_memory(broker, topics, memory)
    assert set(told.instances) == set(told.definitions) == set(CODECS)
    for codec in CODECS:
        broker.produce(topics.texts, [(codec.encode(), written(text=f"{codec} {filler}"))], codec=codec)
    answers = check_texts(broker, topics)
    assert {p["id"] for p in answers.bodies()} == set(CODECS)


def test_texts_grow_from_three_partitions_to_five(broker, topics, stage):
    broker.create_topics((topics.texts, 3), (topics.predictions, 3))
    running = stage(*TINY, "-X", "topic.metadata.refresh.interval.ms=1000")
    broker.produce(topics.texts, [Record(b"k", written(text=f"text {i}"), partition=i % 3) for i in range(60)])
    wait_committed(broker, topics)
    broker.add_partitions(topics.texts, 5)
    grown = [Record(b"k", written(text=f"more {i}"), partition=i % 5) for i in range(100)]
    broker.produce(topics.texts, grown, linger_ms=1)  # a producer that learns of the new partitions
    running.wait_for(r"texts: 5 partitions of \S+ assigned")
    broker.produce(topics.texts, grown, linger_ms=1)
    answers = check_texts(broker, topics)  # a rebalance that finds nothing in compute repeats nothing
    assert len(answers.predictions) == 260
    assert {place[0] for place in answers.predictions} == {0, 1, 2, 3, 4}
    running.stop()


def test_texts_that_end_in_markers_and_gaps(broker, topics, stage):
    """A committed transaction, an aborted one, and a compacted gap before the last text: what is committed is answered,
    what was aborted is not, and nothing lags behind."""
    broker.create_topics((topics.texts, 4), cleanup_policy="compact", segment_bytes=1 << 20, segment_ms=100,
                         min_cleanable_dirty_ratio=0)
    old = [Record(b"same", written(text=f"replaced {i}"), partition=2) for i in range(20)]
    broker.produce(topics.texts, old)
    time.sleep(0.2)  # past segment_ms: the next text begins a new segment, and the old one may be compacted
    broker.produce(topics.texts, [Record(b"last", written(text="last"), partition=2)])
    broker.wait_compacted(topics.texts)
    for name, partition, commit in (("commit", 0, True), ("abort", 1, False), ("abort", 3, False)):
        many = [Record(b"%s %d" % (name.encode(), i), written(text=f"{name} {i}"), partition=partition) for i in range(10)]
        if partition == 3:
            broker.produce(topics.texts, [Record(b"plain", written(text="before an abort"), partition=3)])
        broker.produce_transaction(topics.texts, many, commit=commit, transactional_id=f"{topics.group}-{partition}")
    running = stage(*TINY)
    answers = check_texts(broker, topics)
    assert sorted(p["id"] for p in answers.bodies()) == [*(f"commit {i}" for i in range(10)), "last", "plain", "same"]
    assert broker.ends(topics.texts)[1] == (0, 11)
    assert re.search(r" lag 0, ", running.wait_for(r"^.* texts/s, .*$").group(0))
    # and behind the markers it goes on
    broker.produce(topics.texts, [Record(b"new %d" % p, written(text="new"), partition=p) for p in range(4)])
    assert len(check_texts(broker, topics).predictions) == 17
    running.stop()
    assert wait_until(lambda: broker.committed(topics.group, topics.texts), "commits")[2] == 22
