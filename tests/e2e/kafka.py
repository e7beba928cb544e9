"""The broker and its records as the end-to-end tests see them: a thin layer over Debian's confluent_kafka 1.7.

Touches no Engram. What may surprise: confluent_kafka's calls answer before the broker has done the work (a created
topic has no leaders yet, a deleted one is still listed), so everything here waits for the effect, with a deadline.
"""

import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, ConfigResource, NewPartitions, NewTopic

SCRIPT = Path(__file__).resolve().parent.parent / "broker" / "broker"
WAIT_S = 60


def wait_until(condition, what, timeout_s=WAIT_S, pause_s=0.05):
    """Call condition() until it gives something true, and return that; fail with `what` after timeout_s."""
    deadline = time.monotonic() + timeout_s
    while True:
        result = condition()
        if result:
            return result
        assert time.monotonic() < deadline, f"waited {timeout_s:g} s in vain for: {what() if callable(what) else what}"
        time.sleep(pause_s)


@dataclass
class Record:
    """One record as it stands in the log. value None is a tombstone; headers keep order, repeats and nulls."""

    key: bytes | None
    value: bytes | None
    headers: list = field(default_factory=list)
    topic: str | None = None
    partition: int | None = None
    offset: int | None = None
    timestamp: int | None = None  # ms

    @classmethod
    def of(cls, message):
        return cls(message.key(), message.value(), message.headers() or [], message.topic(), message.partition(),
                   message.offset(), message.timestamp()[1])


class Broker:
    """A broker of its own in `folder`: `with Broker(folder) as broker:`, gone afterwards, also on failure."""

    def __init__(self, folder, secured=False, tls=None, **overrides):
        """overrides: settings of server.properties with dots as underscores, as log_cleaner_backoff_ms=100.
        secured: has a second address, where the user `stage` may do what ACLs allow. tls: a folder of certificates; has
        an address for clients with a certificate, and one for the user `stage` with a password."""
        self.folder = Path(folder)
        self.address = self.secured_address = self.tls_address = self.scram_address = None
        self._more = ["--secured"] if secured else ["--tls", tls] if tls else []
        self._overrides = [f"{name.replace('_', '.')}={value}" for name, value in overrides.items()]
        self._admin = None
        self._producers = {}
        self._met = set()  # (producer, topic)

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.stop(remove=True)

    # -- life --

    def _script(self, command, *arguments):
        done = subprocess.run([SCRIPT, command, self.folder, *arguments], stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE, text=True, check=False)
        assert done.returncode == 0, f"broker {command}: {done.stderr}"
        return done.stdout.strip()

    def start(self):
        options = [part for item in self._overrides for part in ("--override", item)]
        self.address, *more = self._script("start", *options, *self._more).split()
        if len(more) == 1:
            self.secured_address = more[0]
        elif more:
            self.tls_address, self.scram_address = more

    def restart(self, **overrides):
        """Stop if it runs, start with the same ports and data. Clients reconnect by themselves."""
        pairs = [f"{name.replace('_', '.')}={value}" for name, value in overrides.items()]
        self._script("restart", *(part for item in pairs for part in ("--override", item)))

    def kill(self):
        self._script("kill")

    def stop(self, remove=False):
        self._admin = None
        self._producers.clear()
        self._met.clear()
        self._script("stop", *(["--remove"] if remove else []))

    def client(self, **settings):
        """Settings for a client, dots as underscores."""
        return {"bootstrap.servers": self.address, "log_level": 2, "topic.metadata.refresh.interval.ms": 1000,
                "reconnect.backoff.max.ms": 500,
                **{name.replace("_", "."): value for name, value in settings.items()}}

    @property
    def admin(self):
        if self._admin is None:
            self._admin = AdminClient(self.client())
        return self._admin

    # -- topics --

    def topic_names(self):
        return set(self.admin.list_topics(timeout=WAIT_S).topics)

    def partitions(self, topic):
        """Partition numbers, once each has a leader; empty while the topic does not exist. A broker that was held up for
        5 s is fenced by its controller and leads nothing for a moment: its partitions are there all the same."""

        def led():
            found = self.admin.list_topics(topic, timeout=WAIT_S).topics[topic]
            if found.error is not None and found.error.code() == KafkaError.UNKNOWN_TOPIC_OR_PART:
                return ([],)
            all_led = all(p.error is None and p.leader >= 0 for p in found.partitions.values())
            return (sorted(found.partitions),) if found.error is None and all_led else None

        return wait_until(led, f"leaders of {topic}")[0]

    def create_topics(self, *topics, partitions=1, **configs):
        """Create topics (names, or (name, partitions)) with configs (dots as underscores), each partition with a leader."""
        wanted = dict(t if isinstance(t, tuple) else (t, partitions) for t in topics)
        configs = {name.replace("_", "."): str(value) for name, value in configs.items()}
        left = dict(wanted)

        def create():
            failures = []
            plans = [NewTopic(name, count, 1, config=configs) for name, count in left.items()]
            for name, future in self.admin.create_topics(plans).items():
                try:
                    future.result(WAIT_S)
                    del left[name]
                except KafkaException as failure:
                    failures.append(failure)
            if failures:
                raise failures[0]

        _answer(create)
        for name, count in wanted.items():
            wait_until(lambda n=name, c=count: len(self.partitions(n)) == c, f"leaders of {name}")

    def add_partitions(self, topic, total):
        for future in self.admin.create_partitions([NewPartitions(topic, total)]).values():
            future.result(WAIT_S)
        wait_until(lambda: len(self.partitions(topic)) == total, f"{total} leaders of {topic}")

    def delete_topics(self, *topics):
        """Those that do not exist are fine."""
        present = [name for name in topics if name in self.topic_names()]
        if present:
            for future in self.admin.delete_topics(present, operation_timeout=WAIT_S).values():
                future.result(WAIT_S)
            wait_until(lambda: not self.topic_names() & set(present), f"end of {present}")
            self._met = {(producer, topic) for producer, topic in self._met if topic not in present}

    def topic_config(self, topic):
        resource = ConfigResource(ConfigResource.Type.TOPIC, topic)
        entries = self.admin.describe_configs([resource])[resource].result(WAIT_S)
        return {name: entry.value for name, entry in entries.items()}

    def set_topic_config(self, topic, **configs):
        """Replaces all settings that the topic has of its own: confluent_kafka 1.7 knows no other way."""
        values = {name.replace("_", "."): str(value) for name, value in configs.items()}
        resource = ConfigResource(ConfigResource.Type.TOPIC, topic, set_config=values)
        self.admin.alter_configs([resource])[resource].result(WAIT_S)

    def ends(self, topic, isolation="read_uncommitted"):
        """{partition: (first offset, end offset)}; the end that the isolation level shows."""
        consumer = Consumer(self.client(group_id="ends", isolation_level=isolation))
        try:
            return {p: _answer(lambda p=p: consumer.get_watermark_offsets(TopicPartition(topic, p), timeout=WAIT_S))
                    for p in self.partitions(topic)}
        finally:
            consumer.close()

    def committed(self, group, topic):
        """{partition: offset} that the group has committed; partitions without are left out."""
        consumer = Consumer(self.client(group_id=group))
        try:
            asked = [TopicPartition(topic, p) for p in self.partitions(topic)]
            found = _answer(lambda: consumer.committed(asked, timeout=WAIT_S))
            return {t.partition: t.offset for t in found if t.offset >= 0}
        finally:
            consumer.close()

    # -- records out --

    def producer(self, **settings):
        """A producer with these settings (made once each): retries for as long as a test waits."""
        name = tuple(sorted(settings.items()))
        if name not in self._producers:
            defaults = {"linger_ms": 0, "enable_idempotence": True, "message_max_bytes": 16 << 20}
            self._producers[name] = Producer(self.client(**{**defaults, **settings}))
        return self._producers[name]

    def produce(self, topic, records, codec="none", partition=None, **settings):
        """Write Records (or (key, value) pairs) and wait for every acknowledgement; returns [(partition, offset)] in
        the order of records. A record's own partition and timestamp are kept; else `partition`, or its key decides."""
        producer = self.producer(compression_type=codec, **settings)
        self._meet(producer, topic)
        places = _send(producer, topic, records, partition)
        left = producer.flush(WAIT_S)
        assert left == 0 and None not in places, f"{topic}: {left} records were not acknowledged"
        return places

    def _meet(self, producer, topic):
        """Let a producer know the topic before its first record to it: librdkafka would look for it in 1 s. And have each
        leader asked itself: metadata name one before it takes records, and a first batch that is refused while the second
        is taken may pass for a repeat when it is sent again, acknowledged and never written."""
        if (producer, topic) not in self._met:
            self.ends(topic)
            wait_until(lambda: producer.list_topics(topic, timeout=WAIT_S).topics[topic].error is None, f"topic {topic}")
            self._met.add((producer, topic))

    def produce_transaction(self, topic, records, commit=True, transactional_id="test", partition=None):
        """Write records in one transaction, ended by a commit or an abort marker; they are in the log either way."""
        producer = Producer(self.client(transactional_id=transactional_id, linger_ms=0))
        producer.init_transactions(WAIT_S)
        producer.list_topics(topic, timeout=WAIT_S)
        producer.begin_transaction()
        places = _send(producer, topic, records, partition)
        assert producer.flush(WAIT_S) == 0 and None not in places
        if commit:
            producer.commit_transaction(WAIT_S)
        else:
            producer.abort_transaction(WAIT_S)
        return places

    # -- records in --

    def reader(self, *topics, isolation="read_committed"):
        return Reader(self, topics, isolation)

    def read_all(self, *topics, isolation="read_committed"):
        """Every record from the beginning to the end that the isolation level shows, by partition and offset."""
        with self.reader(*topics, isolation=isolation) as reader:
            return reader.to_end()

    def read(self, topic, count, timeout_s=WAIT_S, isolation="read_committed"):
        """At least count records from the beginning, waiting for those that are still to come."""
        with self.reader(topic, isolation=isolation) as reader:
            return reader.take(count, timeout_s)

    def wait_compacted(self, topic, timeout_s=WAIT_S):
        """Until every key stands once. The active segment is never compacted: make the topic with a small segment_bytes
        (or segment_ms) and min_cleanable_dirty_ratio=0, and write keys of their own last: the rest is rolled."""

        def compacted():
            keys = [r.key for r in self.read_all(topic)]
            return len(keys) == len(set(keys))

        wait_until(compacted, f"compaction of {topic}", timeout_s, pause_s=0.3)


def _send(producer, topic, records, partition):
    """Queue records; the list that is returned gets (partition, offset) at each acknowledgement."""
    records = [r if isinstance(r, Record) else Record(*r) for r in records]
    places = [None] * len(records)

    def acknowledged(index):
        def callback(error, message):
            assert error is None, f"{topic}: {error}"
            places[index] = (message.partition(), message.offset())
        return callback

    for index, record in enumerate(records):
        where = {"partition": record.partition if record.partition is not None else partition}
        optional = {"timestamp": record.timestamp, **where}
        optional = {name: value for name, value in optional.items() if value is not None}
        while True:
            try:
                producer.produce(topic, value=record.value, key=record.key, headers=record.headers or None,
                                 on_delivery=acknowledged(index), **optional)
                break
            except BufferError:
                producer.poll(0.1)
        producer.poll(0)
    return places


def _answer(question):
    """What question() gives, asked again while leaders and coordinators are not up yet, after a restart."""

    def ask():
        try:
            return (question(),)
        except KafkaException as failure:
            if failure.args[0].code() not in _NOT_UP:
                raise
            return None

    return wait_until(ask, "an answer of the broker", pause_s=0.2)[0]


class Reader:
    """Reads topics from the beginning, partition by partition, without a group; new partitions are not noticed."""

    def __init__(self, broker, topics, isolation):
        places = [TopicPartition(t, p, OFFSET_BEGINNING) for t in topics for p in broker.partitions(t)]
        assert places, f"no such topics: {topics}"
        self._consumer = Consumer(broker.client(group_id="reader", isolation_level=isolation, enable_auto_commit=False,
                                                enable_partition_eof=True, fetch_wait_max_ms=20))
        for topic in topics:  # or librdkafka assigns partitions without leaders, and looks again in 0.5 s
            self._consumer.list_topics(topic, timeout=WAIT_S)
        self._consumer.assign(places)
        self._places = {(p.topic, p.partition) for p in places}
        self._at_end = set()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        self._consumer.close()

    def poll(self, timeout_s=0.1):
        """The next record, or None where none came in time or a partition's end was met."""
        message = self._consumer.poll(timeout_s)
        if message is None:
            return None
        place = (message.topic(), message.partition())
        if message.error() is None:
            self._at_end.discard(place)
            return Record.of(message)
        if message.error().code() == KafkaError._PARTITION_EOF:
            self._at_end.add(place)
        elif not message.error().retriable() and message.error().code() not in _TRANSIENT:
            raise KafkaException(message.error())
        return None

    def take(self, count, timeout_s=WAIT_S):
        """The next records, count of them; fails where they do not come."""
        records = []
        deadline = time.monotonic() + timeout_s
        while len(records) < count:
            record = self.poll()
            if record:
                records.append(record)
            assert len(records) >= count or time.monotonic() < deadline, \
                f"{len(records)} of {count} records came in {timeout_s:g} s; the last: {records[-1:]}"
        return records

    def until(self, condition, timeout_s=WAIT_S):
        """The records up to and including the first for which condition(record) is true."""
        records = []
        deadline = time.monotonic() + timeout_s
        while not (records and condition(records[-1])):
            assert time.monotonic() < deadline, f"not among {len(records)} records; the last: {records[-1:]}"
            record = self.poll()
            if record:
                records.append(record)
        return records

    def to_end(self, timeout_s=WAIT_S):
        """Every record up to the end of each partition, by topic, partition and offset. Once a reader: librdkafka tells
        an end only once."""
        records = []
        deadline = time.monotonic() + timeout_s
        while self._at_end != self._places:
            assert time.monotonic() < deadline, f"the end did not come in {timeout_s:g} s"
            record = self.poll()
            if record:
                records.append(record)
        return sorted(records, key=lambda r: (r.topic, r.partition, r.offset))


_TRANSIENT = {KafkaError._TRANSPORT, KafkaError._ALL_BROKERS_DOWN, KafkaError._RESOLVE, KafkaError._TIMED_OUT}
_NOT_UP = {KafkaError.NOT_COORDINATOR, KafkaError.COORDINATOR_NOT_AVAILABLE, KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
           KafkaError.NOT_LEADER_FOR_PARTITION, KafkaError.LEADER_NOT_AVAILABLE,
           KafkaError.INVALID_REPLICATION_FACTOR,  # of a new topic: the only broker is fenced
           *_TRANSIENT}
