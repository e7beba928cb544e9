"""Topics that are deleted and created again, under a running stage and a stopped one: every text of the new topic has an
answer, and no memory goes on with labels and instances that its topics do not hold. One oracle counts every text.
"""

import re
import threading
import time

import oracle
import pytest
from console import Console, free_port
from kafka import Record, wait_until
from stage import TINY, engram, memory_stats

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


@pytest.mark.parametrize("stopped", [False, True], ids=["running", "stopped"])
@pytest.mark.parametrize("topic, records", [
    ("instances", instances(0, 10, "other tool")),
    ("instances", instances(100, 14)),
    ("instances", instances(0, 10)),  # the very same records, at another time
    ("labels", definitions(0, 5, "other label")),
    ("labels", definitions(50, 9)),
], ids=["as-many", "more", "the-same", "labels-as-many", "labels-more"])
def test_a_learned_topic_is_created_again(broker, topics, learnt, topic, records, stopped):
    """With as many records or more: what the memory holds is not what a fold of the topics gives any more."""
    topic = getattr(topics, topic)
    if stopped:
        learnt.stop()
    create_again(broker, topic, records, cleanup_policy="compact")
    if stopped:
        learnt.restart()
    assert learnt.wait() == 1, learnt.log()
    errors = [line for line in learnt.log().splitlines() if " error " in line]
    assert len(errors) == 1, learnt.log()
    learnt.wait_for(REFUSED.format(topic))
    learnt.restart()
    assert learnt.wait() == 1, learnt.log()  # for good


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


@pytest.mark.parametrize("count", [15, 10, 4])
def test_texts_are_created_again_after_a_while(broker, topics, stage, console, count):
    """The stage sees that the topic is gone, and says so. With more texts than it had read, as many, and fewer."""
    running = stage(*console.flags, *SOON)
    broker.produce(topics.texts, texts(0, 10), partition=0)
    oracle.check_texts(broker, topics)
    broker.delete_topics(topics.texts)
    wait_until(lambda: console.ready()[0] == 503 and topics.texts in console.ready()[1], console.ready)
    broker.create_topics(topics.texts, partitions=6)
    broker.produce(topics.texts, texts(100, count), partition=0)
    check_again(broker, topics)
    console.wait_ready()
    oracle.wait_committed(broker, topics)
    wait_until(lambda: sum(v for k, v in console.metrics().items() if k.startswith("engram_consumer_lag")) == 0, "no lag")
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
