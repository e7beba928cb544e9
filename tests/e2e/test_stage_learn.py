"""What a running stage is taught: seen in the very next prediction with its evidence, replaced, forgotten; texts go on
meanwhile; and every ending of a log is an end.
"""

import json
import threading

import pytest
from kafka import Record, wait_until
from oracle import check_memory, check_texts, written
from stage import DEBTAGS, TINY, engram

NEAR = 5e-3  # bf16 keys


class Asker:
    """Asks a running stage about one text after the other."""

    def __init__(self, broker, topics):
        self.broker, self.topics, self.asked = broker, topics, 0

    def __call__(self, text):
        (place,) = self.broker.produce(self.topics.texts, [(b"%d" % self.asked, written(text=text))])
        self.asked += 1
        found = []

        def answer():
            for record in self.broker.read_all(self.topics.predictions):
                prediction = json.loads(record.value)
                if (prediction["source"]["partition"], prediction["source"]["offset"]) == place:
                    found.append(prediction)
            return found

        return wait_until(answer, f"the answer to {text!r}")[0]


def scores(prediction):
    return {label["label"]: label["score"] for label in prediction["labels"]}


def names(prediction):
    """What the evidence names."""
    return [piece.get("id", piece.get("label")) for piece in prediction["evidence"]]


@pytest.fixture
def taught(broker, topics, kafka_flags, memory):
    """taught(command, ...) sends one record by the command line and waits until the memory has it and equals a replay."""

    def send(*arguments):
        engram(*arguments, *kafka_flags)
        return check_memory(broker, topics, memory)

    return send


def test_taught_seen_replaced_and_forgotten(broker, topics, stage, taught):
    stage(*TINY, "--evidence-text")
    ask = Asker(broker, topics)
    empty = ask("a red apple")
    assert (empty["labels"], empty["evidence"], empty["memory_version"]) == ([], [], 0)

    taught("teach", "--id", "apple", "--label", "red", "--label", "fruit", "a red apple")
    seen = ask("a red apple")
    assert scores(seen) == {"fruit": pytest.approx(0.5, abs=1e-6), "red": pytest.approx(0.5, abs=1e-6)}
    (evidence,) = seen["evidence"]
    assert evidence == {"kind": "instance", "id": "apple", "similarity": pytest.approx(1, abs=NEAR), "weight": 1,
                        "labels": ["fruit", "red"], "text": "a red apple"}
    assert seen["memory_version"] == 1

    taught("teach", "--id", "apple", "--label", "green", "quite another thing")  # replaced: text and labels
    replaced = ask("quite another thing")
    assert scores(replaced) == {"green": pytest.approx(0.5, abs=1e-6)}
    assert (names(replaced), replaced["evidence"][0]["text"]) == (["apple"], "quite another thing")
    assert replaced["evidence"][0]["similarity"] == pytest.approx(1, abs=NEAR)
    assert ask("a red apple")["evidence"][0]["similarity"] < 1 - 2 * NEAR

    taught("teach", "--id", "pear", "--label", "green", "--label", "sweet", "a pear")
    both = ask("a pear")
    assert set(names(both)) == {"apple", "pear"} and names(both)[0] == "pear"
    assert sum(piece["weight"] for piece in both["evidence"]) == pytest.approx(1)
    assert scores(both)["green"] == pytest.approx(0.5, abs=1e-6)
    assert scores(both)["sweet"] == pytest.approx(both["evidence"][0]["weight"] / 2, abs=1e-6)

    taught("forget", "pear")
    gone = ask("a pear")
    assert (list(scores(gone)), names(gone)) == (["green"], ["apple"])

    # an instance without labels is kept, and searched no more; nobody names "green" now
    broker.produce(topics.instances, [(b"apple", written(text="a pear", labels=[]))])
    told = taught("teach", "--id", "plum", "--label", "blue", "a plum")
    assert told.instances["apple"] == ([], "a pear")
    dropped = ask("a pear")
    assert (list(scores(dropped)), names(dropped)) == (["blue"], ["plum"])
    taught("forget", "plum")
    assert (ask("a plum")["labels"], ask("a plum")["evidence"]) == ([], [])
    check_texts(broker, topics)


def test_labels_defined_redefined_and_forgotten(broker, topics, stage, taught):
    stage(*TINY)
    ask = Asker(broker, topics)
    taught("define", "tools", "things to work with")
    defined = ask("things to work with")  # before any instance names it
    assert scores(defined) == {"tools": pytest.approx(0.5, abs=1e-6)}
    assert defined["evidence"] == [{"kind": "label", "label": "tools", "similarity": pytest.approx(1, abs=NEAR),
                                    "weight": 1}]

    taught("teach", "--id", "saw", "--label", "tools", "cuts wood")
    both = ask("cuts wood")
    assert names(both) == ["saw", "tools"]
    assert scores(both) == {"tools": pytest.approx(0.5, abs=1e-6)}

    taught("define", "tools", "hammers, saws, files")  # its key moves, its instances stay
    assert ask("hammers, saws, files")["evidence"][0] == {
        "kind": "label", "label": "tools", "similarity": pytest.approx(1, abs=NEAR), "weight": pytest.approx(0.5, abs=0.5)}
    moved = ask("things to work with")
    assert {piece["similarity"] < 1 - 2 * NEAR for piece in moved["evidence"]} == {True}

    taught("forget", "--label", "tools")  # text and key go, the instance still names it
    undefined = ask("hammers, saws, files")
    assert (list(scores(undefined)), names(undefined)) == (["tools"], ["saw"])
    taught("forget", "saw")
    assert (ask("cuts wood")["labels"], ask("cuts wood")["evidence"]) == ([], [])

    told = taught("define", "tools", "again")
    assert told.stats()["labels"] == 1
    assert names(ask("again")) == ["tools"]
    check_texts(broker, topics)


def test_texts_are_answered_while_5000_instances_are_folded(broker, topics, stage, memory):
    """With the real model: a turn of the learn lane takes long enough to be seen between texts. The texts' own counter
    is the memory version that each prediction carries."""
    import gzip

    running = stage()
    with gzip.open(DEBTAGS / "train.jsonl.gz", "rt", encoding="utf-8") as file:
        train = [json.loads(line) for line, _ in zip(file, range(5000))]
    records = [(i["id"].encode(), written(text=i["id"], labels=i["labels"])) for i in train]
    folded = threading.Event()

    def ask_on():
        asked = 0
        while not folded.wait(0.05):
            broker.produce(topics.texts, [(b"%d" % (asked + i), written(text=f"text {asked + i}")) for i in range(5)])
            asked += 5

    asking = threading.Thread(target=ask_on)
    asking.start()
    try:
        broker.produce(topics.instances, records, codec="zstd")
        wait_until(lambda: running.stats()["version"] == 5000, running.stats, timeout_s=240, pause_s=0.2)
    finally:
        folded.set()
        asking.join()
    told = check_memory(broker, topics, memory)
    assert len(told.instances) == 5000
    versions = [p["memory_version"] for p in check_texts(broker, topics, timeout_s=120).bodies()]
    between = [version for version in versions if 0 < version < 5000]
    assert len(between) >= 5 and len(set(between)) >= 2, f"{len(versions)} answers, at versions {sorted(set(versions))}"
    running.stop()


def compacted(broker, topics):
    """Both topics compacted, with a gap before their last record, where tombstones and replaced records were."""
    broker.create_topics(topics.instances, topics.labels, cleanup_policy="compact", segment_bytes=1 << 20, segment_ms=100,
                         min_cleanable_dirty_ratio=0)
    for topic, value in ((topics.instances, written(text="t", labels=["l"])), (topics.labels, written(text="t"))):
        for _ in range(3):
            broker.produce(topic, [(b"a", value), (b"b", value), (b"b", None)])
    threading.Event().wait(0.2)  # past segment_ms: the next record begins a segment, and the one before may be compacted
    for topic, value in ((topics.instances, written(text="t", labels=["l"])), (topics.labels, written(text="t"))):
        broker.produce(topic, [(b"last", value)])
        broker.wait_compacted(topic)


def transactions(broker, topics, commit):
    for topic, value in ((topics.instances, written(text="t", labels=["l"])), (topics.labels, written(text="t"))):
        broker.create_topics(topic)
        broker.produce(topic, [(b"a", value), (b"b", value)])
        broker.produce_transaction(topic, [(b"b", None), (b"c", value)], commit=commit,
                                   transactional_id=f"{topics.group}-{topic}")


@pytest.mark.parametrize("ending", ["commit", "abort", "gap", "only an abort"])
def test_ready_at_every_end_of_a_log(broker, topics, stage, memory, ending):
    if ending == "gap":
        compacted(broker, topics)
        keys = {"a", "last"}
    elif ending == "only an abort":
        for topic in (topics.instances, topics.labels):
            broker.create_topics(topic)
            broker.produce_transaction(topic, [(b"a", b"{}")], commit=False, transactional_id=f"{topics.group}-{topic}")
        keys = set()
    else:
        transactions(broker, topics, ending == "commit")
        keys = {"a", "c"} if ending == "commit" else {"a", "b"}
    running = stage(*TINY)
    told = check_memory(broker, topics, memory)
    assert set(told.instances) == set(told.definitions) == keys
    broker.produce(topics.texts, [Record(b"k", written(text="t"))])
    assert check_texts(broker, topics).bodies()[0]["memory_version"] == told.version
    # what comes behind the ending is folded, by a restart from the stored offsets too
    broker.produce(topics.instances, [(b"live", written(text="live", labels=["x"]))])
    check_memory(broker, topics, memory)
    running.stop()
    broker.produce(topics.labels, [(b"x", written(text="while away"))])
    running.restart().wait_ready()
    assert check_memory(broker, topics, memory).stats()["version"] == running.stats()["version"]
    running.stop()
