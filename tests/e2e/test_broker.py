"""The broker and its helpers themselves: what every other test here stands on."""

import subprocess
from concurrent.futures import Future

import pytest
from kafka import SCRIPT, Broker, Record

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

HEADERS = [("a", b"1"), ("a", b"2"), ("none", None), ("empty", b""), ("bytes", b"\x00\xff")]


def test_record_comes_back_whole(broker, topics):
    broker.create_topics((topics.texts, 3), retention_ms=-1)  # one record is of 2009
    sent = [Record(b"key", b"value", HEADERS, timestamp=1234567890123, partition=2), Record(b"key", None, partition=2),
            Record(None, b"", partition=0)]
    places = broker.produce(topics.texts, sent)
    assert places == [(2, 0), (2, 1), (0, 0)]
    empty, whole, tombstone = broker.read_all(topics.texts)
    assert whole == Record(b"key", b"value", HEADERS, topics.texts, 2, 0, 1234567890123)
    assert (tombstone.key, tombstone.value) == (b"key", None)
    assert (empty.key, empty.value) == (None, b"")


@pytest.mark.parametrize("codec", ["none", "gzip", "snappy", "lz4", "zstd"])
def test_every_codec(broker, topics, codec):
    broker.create_topics(topics.texts)
    value = b"compressible " * 1000
    broker.produce(topics.texts, [(b"k", value)], codec=codec)
    assert [r.value for r in broker.read(topics.texts, 1)] == [value]


def test_aborted_transaction_is_in_the_log_and_not_read(broker, topics):
    broker.create_topics(topics.instances)
    broker.produce_transaction(topics.instances, [(b"a", b"1")])
    broker.produce_transaction(topics.instances, [(b"b", b"2")], commit=False)
    assert [r.key for r in broker.read_all(topics.instances)] == [b"a"]
    assert [r.key for r in broker.read_all(topics.instances, isolation="read_uncommitted")] == [b"a", b"b"]
    # two records and two markers: no record stands at the last offset
    assert broker.ends(topics.instances, "read_committed") == {0: (0, 4)}


def test_topics_grow_and_go(broker, topics):
    broker.create_topics((topics.texts, 3), (topics.labels, 1), cleanup_policy="compact")
    assert broker.topic_config(topics.texts)["cleanup.policy"] == "compact"
    broker.add_partitions(topics.texts, 5)
    assert broker.partitions(topics.texts) == [0, 1, 2, 3, 4]
    broker.delete_topics(topics.texts, topics.predictions)
    assert broker.partitions(topics.texts) == []
    assert broker.partitions(topics.labels) == [0]


class Fenced:
    """An admin client to which, so many times, no partition has a leader and no topic can be made."""

    def __init__(self, admin, times):
        self._admin, self._times = admin, times

    def _fenced(self):
        self._times -= 1
        return self._times >= 0

    def list_topics(self, *arguments, **more):
        found = self._admin.list_topics(*arguments, **more)
        if self._fenced():
            for topic in found.topics.values():
                for partition in topic.partitions.values():
                    partition.leader = -1
        return found

    def create_topics(self, topics):
        if not self._fenced():
            return self._admin.create_topics(topics)
        refused = Future()
        refused.set_exception(KafkaException(KafkaError(KafkaError.INVALID_REPLICATION_FACTOR)))
        return {topic.topic: refused for topic in topics}


def test_a_fenced_broker_is_waited_for(broker, topics, monkeypatch):
    """As after some seconds in which it did not run: what is there is not taken for gone."""
    admin = broker.admin
    monkeypatch.setattr(broker, "_admin", Fenced(admin, 2))
    broker.create_topics((topics.texts, 2))
    broker.produce(topics.texts, [Record(None, b"1", partition=0), Record(None, b"2", partition=1)])
    consumer = Consumer(broker.client(group_id=topics.group))
    consumer.commit(offsets=[TopicPartition(topics.texts, 1, 1)], asynchronous=False)
    consumer.close()
    for asked, told in ((lambda: [r.value for r in broker.read_all(topics.texts)], [b"1", b"2"]),
                        (lambda: broker.ends(topics.texts), {0: (0, 1), 1: (0, 1)}),
                        (lambda: broker.committed(topics.group, topics.texts), {1: 1})):
        monkeypatch.setattr(broker, "_admin", Fenced(admin, 2))
        assert asked() == told


def test_compaction_leaves_gaps(broker, topics):
    broker.create_topics(topics.labels, cleanup_policy="compact", segment_bytes=1 << 20, min_cleanable_dirty_ratio=0)
    for round_number in range(8):  # batches of 300 KB that no codec shrinks: three fill a segment
        broker.produce(topics.labels, [(b"k%d" % i, b"%d" % round_number + bytes(100_000)) for i in range(3)])
    for i in range(12):
        broker.produce(topics.labels, [(b"last%d" % i, bytes(100_000))])
    broker.wait_compacted(topics.labels)
    records = broker.read_all(topics.labels)
    assert len(records) == 15
    assert {r.value[:1] for r in records if r.key.startswith(b"k")} == {b"7"}
    assert records[0].offset > 0


def test_committed_offsets_of_a_group(broker, topics):
    broker.create_topics((topics.texts, 2))
    assert broker.committed(topics.group, topics.texts) == {}
    consumer = Consumer(broker.client(group_id=topics.group))
    consumer.commit(offsets=[TopicPartition(topics.texts, 1, 7)], asynchronous=False)
    consumer.close()
    assert broker.committed(topics.group, topics.texts) == {1: 7}


def test_data_survives_restart_and_kill(own_broker):
    broker = own_broker()
    address = broker.address
    broker.create_topics("kept")
    broker.produce("kept", [(b"1", b"before restart")])
    broker.restart()
    broker.produce("kept", [(b"2", b"before kill")])
    broker.kill()
    broker.restart(log_cleaner_backoff_ms=50)
    broker.produce("kept", [(b"3", b"after")])
    assert [r.key for r in broker.read_all("kept")] == [b"1", b"2", b"3"]
    assert broker.address == address


def test_two_brokers_at_once_leave_nothing(folder):
    with Broker(folder / "one") as one, Broker(folder / "two") as two:
        one.create_topics("only-in-one")
        assert one.address != two.address
        assert "only-in-one" not in two.topic_names()
    assert list(folder.iterdir()) == []


def test_failure_to_start_says_why(folder):
    done = subprocess.run([SCRIPT, "start", folder / "b", "--override", "num.io.threads=none"], capture_output=True,
                          text=True, check=False)
    assert done.returncode == 1 and done.stdout == ""
    assert "num.io.threads" in done.stderr
    assert list(folder.iterdir()) == []
