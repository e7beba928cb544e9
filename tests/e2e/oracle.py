"""The one oracle of the end-to-end tests: what must stand in the topics and in the memory once a stage has done its work,
worked out from the inputs alone, one record after the other and without Engram.

check_texts: every text has one answer, a prediction or a dead letter that names it, and what a prediction takes over from
its text is unchanged. check_memory: a memory is the fold of the last record of each key, down to the digest. Both wait
for the work to be done first. A killed stage may answer again what it had not committed: such a test says so.
"""

import json
from collections import Counter, defaultdict
from dataclasses import dataclass, field

import msgpack
import xxhash
from kafka import WAIT_S, wait_until
from stage import engram, memory_stats

TEXT_BYTES_MAX = 64 << 10
NAME_BYTES_MAX = 255


def is_msgpack(value):
    return value[0] in (0xDE, 0xDF) or 0x80 <= value[0] <= 0x8F


def body(value):
    """The map in a record's value, in either format; None where it is null, or no map at all."""
    if not value:
        return None
    try:
        found = msgpack.unpackb(value) if is_msgpack(value) else json.loads(value)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def packed(**fields):
    return msgpack.packb(fields)


def written(**fields):
    return json.dumps(fields).encode()


# ---- texts ----


@dataclass
class Answers:
    """What came of the texts. A place is (partition, offset) in texts."""

    predictions: dict = field(default_factory=lambda: defaultdict(list))  # place -> [body], in the order of the log
    letters: dict = field(default_factory=lambda: defaultdict(list))  # place -> [dead letter]
    records: dict = field(default_factory=dict)  # place -> the prediction's record
    repeated: list = field(default_factory=list)  # places with more than one answer

    def one(self, place):
        (only,) = self.predictions[place]
        return only

    def bodies(self):
        return [one for place in sorted(self.predictions) for one in self.predictions[place]]


def wait_committed(broker, topics, timeout_s=WAIT_S):
    """Wait until the group has committed every text: what it commits is answered, so nothing more will come."""
    ends = {text.partition: text.offset + 1 for text in broker.read_all(topics.texts)}

    def committed():
        return all(broker.committed(topics.group, topics.texts).get(p, 0) >= end for p, end in ends.items())

    wait_until(committed, lambda: f"commits up to {ends}, not {broker.committed(topics.group, topics.texts)}", timeout_s,
               pause_s=0.1)


def check_texts(broker, topics, timeout_s=WAIT_S, **expected):
    """Wait until all texts are committed, then check their answers: see check_answers."""
    wait_committed(broker, topics, timeout_s)
    return check_answers(broker, topics, **expected)


def check_answers(broker, topics, repeats=None, unanswered=None, timestamp="input"):
    """Every text (that is committed, where transactions wrote them) has exactly one answer, and nothing else has one.
    repeats(place): whether this text may have several, after a kill or a rebalance. unanswered(place): whether it may
    have none: then it has none or one. timestamp: that option of the stage. Returns the Answers."""
    texts = {(t.partition, t.offset): t for t in broker.read_all(topics.texts)}
    partitions = len(broker.partitions(topics.predictions))
    answers = Answers()
    nulls = Counter()
    order = defaultdict(list)
    for record in broker.read_all(topics.predictions):
        if record.value is None:
            nulls[_null(record, record.partition, timestamp)] += 1
            continue
        prediction = body(record.value)
        source = prediction["source"]
        place = (source["partition"], source["offset"])
        assert source["topic"] == topics.texts and place in texts, f"an answer to no text: {record}"
        _check_kept(texts[place], record, prediction, partitions, timestamp)
        answers.predictions[place].append(prediction)
        answers.records[place] = record
        order[place[0]].append(place[1])
    for letter in broker.read_all(topics.dead_letters):
        headers = dict(letter.headers)
        if headers["__connect.errors.topic"].decode() == topics.texts:
            place = (int(headers["__connect.errors.partition"]), int(headers["__connect.errors.offset"]))
            assert place in texts and letter.key == texts[place].key
            answers.letters[place].append(letter)
    null_places = [place for place, text in texts.items() if text.value is None]
    expected_nulls = Counter(_null(texts[place], place[0] % partitions, timestamp) for place in null_places)
    if repeats:  # nulls name no source: counted, and none that nobody sent
        assert not expected_nulls - nulls and not set(nulls) - set(expected_nulls)
    elif not unanswered:
        assert nulls == expected_nulls
    for place in texts.keys() - set(null_places):
        count = len(answers.predictions.get(place, ())) + len(answers.letters.get(place, ()))
        if count > 1:
            answers.repeated.append(place)
        least = 0 if unanswered and unanswered(place) else 1
        most = count if repeats and repeats(place) else 1
        assert least <= count <= most, f"text {place} has {count} answers; {len(texts)} texts, repeated: " \
                                       f"{answers.repeated}, answers in order: {dict(order)}"
    for partition, offsets in order.items():
        first_seen = list(dict.fromkeys(offsets))
        assert repeats or first_seen == sorted(first_seen), f"partition {partition} was answered out of order: {offsets}"
    return answers


def repeats_after(*committed):
    """For check_texts: a text may be answered again if a kill found it not committed. committed: what
    broker.committed() gave after each kill."""
    return lambda place: any(place[1] >= offsets.get(place[0], 0) for offsets in committed)


def _null(record, partition, timestamp):
    return partition, record.key, tuple(record.headers), record.timestamp if timestamp == "input" else None


def _check_kept(text, record, prediction, partitions, timestamp):
    """Key, headers, time, partition, format, id and metadata of a prediction against its text."""
    given = body(text.value)
    assert given is not None, f"a prediction for what is no text: {text}"
    assert (record.key, record.headers) == (text.key, text.headers)
    assert record.partition == text.partition % partitions
    assert timestamp != "input" or record.timestamp == text.timestamp
    assert is_msgpack(record.value) == is_msgpack(text.value)
    assert prediction["id"] == (given["id"] if given.get("id") is not None else _utf8(text.key))
    assert prediction.get("metadata") == given.get("metadata")


def _utf8(key):
    try:
        return None if key is None else key.decode()
    except UnicodeDecodeError:
        return None


# ---- the memory ----


@dataclass
class Replay:
    """The memory that the records of instances and labels give, read one after the other: the last of each key counts."""

    instances: dict = field(default_factory=dict)  # id -> (labels sorted by bytes, text)
    definitions: dict = field(default_factory=dict)  # label -> text
    ends: dict = field(default_factory=dict)  # (topic, partition) -> next offset

    def apply(self, record, is_instance):
        self.ends[record.topic, record.partition] = record.offset + 1
        name = _utf8(record.key)
        if not name or len(record.key) > NAME_BYTES_MAX or "\0" in name:
            return  # names nothing
        table = self.instances if is_instance else self.definitions
        fields = body(record.value)
        if fields is None or not isinstance(fields.get("text"), str):
            table.pop(name, None)  # a tombstone, or a record that can never work
        elif is_instance:
            table[name] = (sorted(set(fields["labels"]), key=str.encode), _cut(fields["text"]))
        else:
            table[name] = _cut(fields["text"])

    @property
    def version(self):
        return sum(self.ends.values())

    def digest(self):
        rows = [["i", name, labels, text] for name, (labels, text) in self.instances.items()]
        rows += [["l", label, text] for label, text in self.definitions.items()]
        return f"{sum(xxhash.xxh3_128_intdigest(msgpack.packb(row)) for row in rows) % (1 << 128):032x}"

    def stats(self):
        """What `engram memory stats --json` must say."""
        named = {label for labels, _ in self.instances.values() for label in labels}
        return {"instances": len(self.instances), "labels": len(named | set(self.definitions)),
                "label_keys": len(self.definitions), "version": self.version, "digest": self.digest(),
                "local_changes": 0}


def _cut(text):
    return text.encode()[:TEXT_BYTES_MAX].decode("utf-8", "ignore")


def replay(broker, topics):
    """The Replay of all that stands in instances and labels now."""
    told = Replay()
    for topic, is_instance in ((topics.instances, True), (topics.labels, False)):
        for record in broker.read_all(topic):
            told.apply(record, is_instance)
    return told


def wait_folded(broker, topics, memory, timeout_s=WAIT_S):
    """Wait until the memory (a folder) has reached the last record of both topics; returns the Replay."""
    told = replay(broker, topics)
    wait_until(lambda: memory_stats(memory)["version"] >= told.version,
               lambda: f"version {told.version}, not {memory_stats(memory)}", timeout_s)
    return told


def check_memory(broker, topics, *memories, timeout_s=WAIT_S):
    """Wait until each memory (a folder) has folded all records, then compare it with their replay. Returns the Replay."""
    told = None
    for memory in memories:
        told = wait_folded(broker, topics, memory, timeout_s)
        stats = memory_stats(memory)
        assert {name: stats[name] for name in told.stats()} == told.stats()
        offsets = {(o["topic"], o["partition"]): o["next"] for o in stats["offsets"] if o["next"] > 0}
        assert offsets == told.ends
        engram("memory", "verify", "--memory", memory)
    return told
