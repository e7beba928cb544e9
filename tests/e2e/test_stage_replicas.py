"""Replicas of a stage: they share the texts of a group, and each folds all that is taught; a late one that reads a compacted
log agrees with those that followed live.
"""

import itertools
import json
import random

import pytest
from kafka import Record, wait_until
from oracle import check_memory, check_texts, packed, repeats_after, wait_committed, wait_folded, written
from stage import TINY, engram, memory_stats

BOUND = 5e-3  # of scores between replicas, with bf16 keys
SESSION = ["-X", "consumer.session.timeout.ms=6000", "-X", "consumer.heartbeat.interval.ms=500"]


def changes(count, seed):
    """A mixed stream of (is_instance, key, value): new, replaced, forgotten, without labels, in both formats."""
    chance = random.Random(seed)
    for i in range(count):
        key = b"%d" % chance.randrange(count // 3)
        fields = {"text": f"text {i} of {chance.random()}"}
        is_instance = chance.random() < 0.7
        if is_instance:
            fields["labels"] = [f"{chance.randrange(count // 3)}" for _ in range(chance.randrange(4))]
        pack = chance.choice([written, packed])
        yield is_instance, key, None if chance.random() < 0.2 else pack(**fields)


def teach(broker, topics, stream):
    for is_instance, topic in ((True, topics.instances), (False, topics.labels)):
        broker.produce(topic, [(key, value) for of_instance, key, value in stream if of_instance == is_instance])


def texts(first, count, partitions=6):
    return [Record(b"%d" % i, written(text=f"text {i}"), partition=i % partitions) for i in range(first, first + count)]


def tagged(memory, asked):
    told = engram("tag", "--stdin", *TINY, "--memory", memory, "--labels-max", 0, stdin="\n".join(asked) + "\n").stdout
    return [{label["label"]: label["score"] for label in json.loads(line)["labels"]} for line in told.splitlines()]


def assert_same_tags(memories, asked):
    """Labels whose keys are within the bound of the b-th may differ between replicas, with scores as small."""
    first, *others = [tagged(memory, asked) for memory in memories]
    for other in others:
        for mine, its in zip(first, other, strict=True):
            assert mine
            for label in mine.keys() | its.keys():
                assert mine.get(label, 0) == pytest.approx(its.get(label, 0), abs=BOUND)


def test_two_replicas_share_texts_and_agree(broker, topics, stage, folder):
    """Who answered shows in how much evidence it gives."""
    one = stage(*TINY, *SESSION, "--evidence-max", 1, memory=folder / "one")
    two = stage(*TINY, *SESSION, "--evidence-max", 2, memory=folder / "two")
    for replica in (one, two):
        replica.wait_for(r"texts: 3 partitions of \S+ assigned")
    stream = list(changes(600, seed=1))
    teach(broker, topics, stream[:300])
    told = check_memory(broker, topics, one.memory, two.memory)
    broker.produce(topics.texts, texts(0, 300))
    answers = check_texts(broker, topics)  # both had settled: nothing is repeated
    assert {p["memory_version"] for p in answers.bodies()} == {told.version}
    evidence = [len(p["evidence"]) for p in answers.bodies()]
    assert (evidence.count(1), evidence.count(2)) == (150, 150)
    assert_same_tags([one.memory, two.memory], [f"text {i}" for i in range(50)])

    # one dies at work; the other takes over what it held and had not committed
    broker.produce(topics.texts, texts(300, 600))
    two.kill()
    committed = broker.committed(topics.group, topics.texts)
    teach(broker, topics, stream[300:])
    one.wait_for(r"(?s)texts: 3 partitions.*texts: 6 partitions")
    answers = check_texts(broker, topics, repeats=repeats_after(committed))
    assert len(answers.predictions) == 900

    # and comes back: it finds in the topics what it missed
    two.restart().wait_ready()
    two.wait_for(r"texts: 3 partitions of \S+ assigned")
    check_memory(broker, topics, one.memory, two.memory)
    assert_same_tags([one.memory, two.memory], [f"text {i}" for i in range(50)])
    wait_committed(broker, topics)
    broker.produce(topics.texts, texts(900, 60))
    answers = check_texts(broker, topics, repeats=repeats_after(committed))
    late = [len(p["evidence"]) for (_, offset), found in answers.predictions.items() for p in found if offset >= 150]
    assert sorted(set(late)) == [1, 2] and len(late) == 60
    one.stop()
    two.stop()


def test_a_replica_joins_while_texts_flow(broker, topics, stage, folder):
    one = stage(*TINY, *SESSION, "--batch-tokens", 64, memory=folder / "one")
    broker.produce(topics.texts, texts(0, 1500))
    two = stage(*TINY, *SESSION, "--batch-tokens", 64, memory=folder / "two")
    for replica in (one, two):
        replica.wait_for(r"texts: 3 partitions of \S+ assigned")
    broker.produce(topics.texts, texts(1500, 300))
    two.stop()  # it gives its partitions back when its session ends, with nothing left in compute
    broker.produce(topics.texts, texts(1800, 300))
    two.restart().wait_ready()
    answers = check_texts(broker, topics, repeats=lambda place: True)  # rebalances: nothing lost is what counts
    assert len(answers.predictions) == 2100


def _compact(broker, topic, value):
    """Write until a record has begun a new segment, and the cleaner has been over those before."""
    count = itertools.count()

    def rolled():
        broker.produce(topic, [(b"last %d" % next(count), value)])
        try:
            broker.wait_compacted(topic, timeout_s=1)
        except AssertionError:
            return False
        return True

    wait_until(rolled, f"compaction of {topic}")


def test_a_late_replica_on_a_compacted_log(broker, topics, stage, folder):
    """The live ones saw every record, the late one only what compaction left. A poison record that was compacted away,
    or that came last of its key, makes no difference."""
    compact = {"cleanup_policy": "compact", "min_cleanable_dirty_ratio": 0}
    broker.create_topics(topics.instances, topics.labels, segment_bytes=1 << 20, **compact)
    one = stage(*TINY, memory=folder / "one")
    two = stage(*TINY, memory=folder / "two", ready=False)
    stream = list(changes(900, seed=2))
    stream[100:100] = [(True, b"1", b"{"), (False, b"1", b"[]"), (True, b"poison last", written(text="t", labels=["x"]))]
    stream += [(True, b"poison last", b"\x93")]
    teach(broker, topics, stream)
    told = check_memory(broker, topics, one.memory, two.memory)
    sent = len(broker.read_all(topics.instances, topics.labels))
    assert sent == len(stream)
    for topic in (topics.instances, topics.labels):  # the next record begins a segment: all before is compacted
        broker.set_topic_config(topic, segment_ms=1, segment_bytes=1 << 20, **compact)
    for topic, value in ((topics.instances, written(text="t", labels=["l"])), (topics.labels, written(text="t"))):
        _compact(broker, topic, value)
    assert len(broker.read_all(topics.instances, topics.labels)) < sent * 2 / 3
    told = check_memory(broker, topics, one.memory, two.memory)
    three = stage(*TINY, memory=folder / "three")
    assert check_memory(broker, topics, three.memory).digest() == told.digest()
    memories = [one.memory, two.memory, three.memory]
    stats = [memory_stats(memory) for memory in memories]
    for name in ("digest", "version", "fingerprint", "instances", "labels", "label_keys"):
        assert len({s[name] for s in stats}) == 1, name
    assert_same_tags(memories, [f"text {i}" for i in range(60)])
    # all three follow on
    teach(broker, topics, list(changes(60, seed=3)))
    for memory in memories:
        wait_folded(broker, topics, memory)
    check_memory(broker, topics, *memories)
