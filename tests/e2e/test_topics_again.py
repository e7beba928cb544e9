"""Topics that are deleted and created again, under a running stage and a stopped one: every text of the new topic has
an answer, and no memory goes on with labels and instances that its topics do not hold. One oracle counts every text.
"""

import time

import oracle
import pytest
from console import Console, free_port
from kafka import Record, wait_until
from stage import TINY, engram

SOON = ["-X", "topic.metadata.refresh.interval.ms=1000"]
AGAIN = "deleted and created again"
REFUSED = f"topic '{{}}'.*{AGAIN}.*copy another replica's memory, or start an empty one"


def texts(first, count, **more):
    """Records; the key decides the partition."""
    return [Record(b"t%d" % i, oracle.written(text=f"tool number {i}", id=f"t{i}"), **more)
            for i in range(first, first + count)]


def instances(first, count, text="tool"):
    return [(b"i%d" % i, oracle.written(text=f"{text} {i}", labels=["tool"])) for i in range(first, first + count)]


def definitions(first, count, text="label"):
    return [(b"l%d" % i, oracle.written(text=f"{text} {i}")) for i in range(first, first + count)]


def create_again(broker, topic, records=(), partitions=1, partition=None, **configs):
    """Delete and create, as fast as it goes: clients may see nothing of it between two polls."""
    broker.delete_topics(topic)
    broker.create_topics(topic, partitions=partitions, **configs)
    if records:
        broker.produce(topic, records, partition=partition)


# ---- instances and labels ----


@pytest.fixture
def learnt(broker, topics, stage):
    """A stage that has folded ten instances and five labels."""
    running = stage(*TINY, *SOON)
    broker.produce(topics.instances, instances(0, 10))
    broker.produce(topics.labels, definitions(0, 5))
    oracle.check_memory(broker, topics, running.memory)
    return running


@pytest.mark.parametrize("topic, records, state", [
    ("instances", instances(0, 10, "other tool"), "running"),
    ("instances", instances(0, 10, "other tool"), "stopped"),
    ("instances", instances(100, 14), "running"),
    ("instances", instances(100, 14), "killed"),
    ("instances", instances(0, 10), "stopped"),  # the very same records, at another time
    ("labels", definitions(0, 5, "other label"), "running"),
    ("labels", definitions(50, 9), "stopped"),
], ids=["as-many-running", "as-many-stopped", "more-running", "more-killed", "the-same", "labels-running",
        "labels-stopped"])
def test_a_learned_topic_is_created_again(broker, topics, learnt, topic, records, state):
    """With as many records or more: what the memory holds is not what a fold of the topics gives any more."""
    topic = getattr(topics, topic)
    stopped = state != "running"
    if stopped:
        learnt.kill() if state == "killed" else learnt.stop()
    create_again(broker, topic, records, cleanup_policy="compact")
    if stopped:
        learnt.restart()
    assert learnt.wait() == 1, learnt.log()
    errors = [line for line in learnt.log().splitlines() if " error " in line]
    assert len(errors) == 1, learnt.log()
    learnt.wait_for(REFUSED.format(topic))
    learnt.restart()
    assert learnt.wait() == 1, learnt.log()  # for good


def test_what_was_read_is_known_again(broker, topics, stage, folder):
    """Whatever stands last in a partition: a null, poison, a transaction's marker, or nothing at all; in a copy too."""
    broker.create_topics(topics.instances, partitions=3, cleanup_policy="compact")
    running = stage(*TINY, *SOON)
    for partition in range(3):
        broker.produce(topics.instances, instances(10 * partition, 5), partition=partition)
    broker.produce(topics.instances, [(b"i0", None)], partition=0)
    broker.produce(topics.instances, [(b"i10", b"{")], partition=1)
    broker.produce_transaction(topics.instances, instances(25, 1), partition=2)
    broker.produce_transaction(topics.instances, instances(26, 1), partition=2, commit=False)
    oracle.check_memory(broker, topics, running.memory)
    running.stop()
    copy = folder / "copy"
    engram("memory", "backup", copy, "--memory", running.memory)
    other = stage(*TINY, *SOON, memory=copy)
    create_again(broker, topics.labels, definitions(0, 2), cleanup_policy="compact")  # nothing of it was ever read
    running.restart().wait_ready()
    oracle.check_memory(broker, topics, running.memory)
    broker.produce(topics.instances, instances(40, 3), partition=1)
    oracle.check_memory(broker, topics, running.memory, copy)
    running.kill()
    other.stop()
    create_again(broker, topics.instances, instances(0, 30), partitions=3, cleanup_policy="compact")
    for one in (running, other):
        one.restart()
        assert one.wait() == 1, one.log()
        one.wait_for(REFUSED.format(topics.instances))


def test_compaction_is_no_other_topic(broker, topics, stage):
    """The record that the memory knows its topic by was sent again while the stage was away, and compaction took it."""
    broker.create_topics(topics.instances, cleanup_policy="compact", segment_ms=200, min_cleanable_dirty_ratio=0)
    running = stage(*TINY)
    broker.produce(topics.instances, instances(0, 3))
    oracle.check_memory(broker, topics, running.memory)
    running.stop()
    for records in (instances(2, 1, "sent again"), instances(3, 1)):
        time.sleep(0.3)  # the segment is rolled by the first record after its time
        broker.produce(topics.instances, records)
    broker.wait_compacted(topics.instances)
    assert [r.offset for r in broker.read_all(topics.instances)] == [0, 1, 3, 4]
    running.restart().wait_ready()
    oracle.check_memory(broker, topics, running.memory)
    running.stop()


# ---- predictions ----


def test_predictions_are_created_again_between_two_batches(broker, topics, stage):
    """With fewer partitions. The producer knows the old ones, and where it stood in them."""
    running = stage(*TINY)
    broker.produce(topics.texts, texts(0, 30))
    oracle.check_texts(broker, topics)
    create_again(broker, topics.predictions, partitions=2)
    broker.produce(topics.texts, texts(30, 30))
    oracle.wait_committed(broker, topics)
    answered = [oracle.body(record.value)["id"] for record in broker.read_all(topics.predictions)]
    assert sorted(answered) == sorted(f"t{i}" for i in range(30, 60))
    running.stop()


# ---- texts ----


def source_places(broker, topics):
    """{(partition, offset): ids of the predictions that name it}"""
    places = {}
    for record in broker.read_all(topics.predictions):
        prediction = oracle.body(record.value)
        place = prediction["source"]["partition"], prediction["source"]["offset"]
        places.setdefault(place, []).append(prediction["id"])
    return places


def check_again(broker, topics, timeout_s=30):
    """Each text that stands in the topic now has an answer: its id is answered from its place."""
    wanted = {(r.partition, r.offset): r.key.decode() for r in broker.read_all(topics.texts)}

    def missing():
        places = source_places(broker, topics)
        return {place: name for place, name in wanted.items() if name not in places.get(place, ())}

    wait_until(lambda: not missing(), lambda: f"answers to {missing()} of {len(wanted)}", timeout_s, pause_s=0.3)
    return wanted


@pytest.fixture
def console():
    return Console(free_port())


@pytest.mark.parametrize("count, partitions, empty_s", [(15, 6, 0), (10, 6, 7), (4, 12, 0)])
def test_texts_are_created_again_after_a_while(broker, topics, stage, console, count, partitions, empty_s):
    """The stage sees that the topic is gone, and says so. With more texts than it had read, as many, and fewer."""
    running = stage(*console.flags)
    broker.produce(topics.texts, texts(0, 10), partition=0)
    oracle.check_texts(broker, topics)
    broker.delete_topics(topics.texts)
    wait_until(lambda: console.ready()[0] == 503 and topics.texts in console.ready()[1], console.ready)
    broker.create_topics(topics.texts, partitions=partitions)
    time.sleep(empty_s)  # the topic is looked at every 5 s
    broker.produce(topics.texts, texts(100, count), partition=0)
    wanted = check_again(broker, topics)
    if empty_s:  # noticed before there was a text: none is answered twice
        answered = [name for names in source_places(broker, topics).values() for name in names]
        assert all(answered.count(name) == 1 for name in wanted.values())
    console.wait_ready()
    oracle.wait_committed(broker, topics)
    wait_until(lambda: set(console.lags(topics.texts).values()) == {0}, "no lag")
    running.stop()
    running.restart().wait_ready()
    broker.produce(topics.texts, texts(200, 3), partition=0)
    check_again(broker, topics)


@pytest.mark.parametrize("count", [15, 10, 4])
def test_texts_are_created_again_between_two_polls(broker, topics, stage, count):
    """So fast that clients may see nothing of it: the partition reads on as if nothing had been."""
    running = stage(*TINY)
    broker.produce(topics.texts, texts(0, 10), partition=0)
    broker.produce(topics.texts, texts(10, 10), partition=3)
    oracle.check_texts(broker, topics)
    create_again(broker, topics.texts, texts(100, count), partitions=6, partition=0)
    broker.produce(topics.texts, texts(150, 12), partition=3)
    check_again(broker, topics)
    oracle.wait_committed(broker, topics)
    running.stop()


@pytest.mark.parametrize("refresh", [[], SOON], ids=["seldom", "soon"])
def test_texts_are_created_again_under_load(broker, topics, stage, console, refresh):
    """While texts of the old topic wait in a full queue, are computed and published. Nothing is fetched then, so the
    client learns of the new topic without an error; some librdkafkas do not find it again."""
    running = stage(*refresh, *console.flags, "--queue-tokens", "2000")
    long = [(b"t%d" % i, oracle.written(text="search tool " * 200 + str(i), id=f"t{i}")) for i in range(3000)]
    broker.produce(topics.texts, long)
    wait_until(lambda: sum(end for _, end in broker.ends(topics.predictions).values()) >= 200, "the first answers")
    assert sum(broker.committed(topics.group, topics.texts).values()) < 3000  # or nothing waits any more
    create_again(broker, topics.texts, texts(5000, 4000), partitions=6)
    check_again(broker, topics, timeout_s=60)
    console.wait_ready()
    oracle.wait_committed(broker, topics)
    running.stop()
