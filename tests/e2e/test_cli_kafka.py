"""replay, teach, define and forget on a real broker: what they put into the topics, read by another client; and what they
say where something is wrong.
"""

import gzip
import json
import re
import socket

import msgpack
import pytest
from kafka import wait_until
from stage import DEBTAGS, engram


def lines_of(name):
    with gzip.open(DEBTAGS / name, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def decode(record):
    if record.value[:1] == b"{":
        return json.loads(record.value)
    return msgpack.unpackb(record.value)


@pytest.fixture(scope="session")
def debtags():
    return {name: lines_of(f"{name}.jsonl.gz") for name in ("labels", "train", "test")}


def write(path, lines):
    path.write_text("".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines))
    return path


# ---- replay ----


@pytest.mark.parametrize("form", ["json", "msgpack"])
def test_replay_sends_the_example_whole(broker, topics, kafka_flags, debtags, form):
    done = engram("replay", "--labels", DEBTAGS / "labels.jsonl.gz", "--instances", DEBTAGS / "train.jsonl.gz",
                  "--texts", DEBTAGS / "test.jsonl.gz", "--format", form, *kafka_flags)
    assert re.fullmatch(r"sent 598 labels, 24324 instances, 5976 texts in \d+\.\d s, all acknowledged\n", done.stdout)
    first = b"{" if form == "json" else None
    found = {}
    for topic in (topics.labels, topics.instances, topics.texts):
        found[topic] = broker.read_all(topic)
        assert all((r.value[:1] == b"{") == (first == b"{") for r in found[topic])
    assert {r.key.decode(): decode(r) for r in found[topics.labels]} == {l["label"]: l for l in debtags["labels"]}
    instances = {i["id"]: {**i, "labels": sorted(i["labels"])} for i in debtags["train"]}
    assert {r.key.decode(): decode(r) for r in found[topics.instances]} == instances
    assert len(found[topics.instances]) == len(instances)
    texts = {t["id"]: {"id": t["id"], "text": t["text"]} for t in debtags["test"]}
    assert {r.key.decode(): decode(r) for r in found[topics.texts]} == texts
    assert len(found[topics.texts]) == len(texts)
    # in the order of the file, in each partition
    order = {t["id"]: i for i, t in enumerate(debtags["test"])}
    for partition in range(6):
        numbers = [order[r.key.decode()] for r in found[topics.texts] if r.partition == partition]
        assert numbers and numbers == sorted(numbers)


def test_replay_sends_a_data_set_of_the_field(broker, topics, kafka_flags, folder):
    write(folder / "lbl.json", [{"uid": f"L{i}", "title": f"label {i}", "content": ""} for i in range(5)])
    write(folder / "trn.json", [{"uid": f"a{i}", "title": f"text {i}", "content": "long", "target_ind": [i % 5, 4],
                                 "target_rel": [1.0, 1.0]} for i in range(20)] + [{"uid": "bad", "title": "x", "target_ind": [5]}])
    write(folder / "tst.json", [{"uid": f"q{i}", "title": f"question {i}", "content": "long", "target_ind": [0],
                                 "target_rel": [1.0]} for i in range(10)])
    done = engram("replay", "--data", folder, "--text", "title+content", *kafka_flags, check=False)
    assert done.returncode == 1
    assert re.match(r"sent 5 labels, 20 instances, 10 texts in .* s, all acknowledged; skipped 1 bad line\n$", done.stdout)
    assert f"engram replay: {folder}/trn.json:21: target_ind[0] is 5, but " in done.stderr
    sent = {topic: {r.key.decode(): decode(r) for r in broker.read_all(topic)}
            for topic in (topics.labels, topics.instances, topics.texts)}
    assert sent[topics.labels] == {f"L{i}": {"label": f"L{i}", "text": f"label {i}"} for i in range(5)}
    assert sent[topics.instances] == {f"a{i}": {"id": f"a{i}", "text": f"text {i} long", "labels": sorted({f"L{i % 5}", "L4"})}
                                      for i in range(20)}
    assert sent[topics.texts] == {f"q{i}": {"id": f"q{i}", "text": f"question {i} long"} for i in range(10)}


def test_replay_names_bad_lines_and_goes_on(broker, topics, kafka_flags, folder):
    texts = write(folder / "texts.jsonl", [
        '\ufeff{"id": "a", "text": "one", "metadata": {"n": 18446744073709551615, "big": 1e400}}\r\n', "\n", "{broken\n",
        {"text": "no id"}, {"id": "", "text": "x"}, {"id": "b", "text": 1}, '{"id": "last", "text": "no newline"}'])
    done = engram("replay", "--texts", texts, *kafka_flags, check=False)
    assert done.returncode == 1
    assert re.match(r"sent 3 texts in .* s, all acknowledged; skipped 3 bad lines\n$", done.stdout)
    for number in (3, 5, 6):
        assert len(re.findall(rf"^engram replay: {re.escape(str(texts))}:{number}: ", done.stderr, re.MULTILINE)) == 1
    found = {r.key: r.value for r in broker.read_all(topics.texts)}
    assert set(found) == {b"a", None, b"last"}
    assert b"18446744073709551615" in found[b"a"] and b"1e400" in found[b"a"]


def test_replay_keeps_to_a_rate(broker, topics, kafka_flags, folder):
    texts = write(folder / "texts.jsonl", [{"id": str(i), "text": "x"} for i in range(30)])
    engram("replay", "--texts", texts, "--rate", "20", *kafka_flags)
    times = [r.timestamp for r in broker.read_all(topics.texts)]
    assert len(times) == 30
    assert max(times) - min(times) > 1400  # 29 steps of 50 ms: the option's promise; slower is the machine's business


def test_replay_names_a_record_that_the_broker_refuses(broker, topics, kafka_flags, folder):
    broker.create_topics(topics.texts, max_message_bytes=2000)
    lines = [{"id": str(i), "text": "x" * (5000 if i == 50 else 10)} for i in range(100)]
    texts = write(folder / "texts.jsonl", lines)
    done = engram("replay", "--texts", texts, *kafka_flags, check=False)
    assert done.returncode == 1
    assert done.stdout.startswith("sent 99 texts ") and "; 1 refused by the broker" in done.stdout
    assert re.findall(r"texts\.jsonl:(\d+): topic", done.stderr) == ["51"]
    assert {r.key for r in broker.read_all(topics.texts)} == {b"%d" % i for i in range(100) if i != 50}


def test_replay_reads_standard_input(broker, topics, kafka_flags):
    engram("replay", "--labels", "-", *kafka_flags, stdin='{"label": "l", "text": "t"}\n')
    assert [(r.key, decode(r)) for r in broker.read_all(topics.labels)] == [(b"l", {"label": "l", "text": "t"})]


@pytest.mark.parametrize("flags, says", [
    ([], "nothing to send"),
    (["--texts", "-", "--labels", "-"], "standard input"),
    (["--texts", "-", "--rate", "0"], "--rate 0"),
    (["--texts", "-", "--rate", "fast"], "--rate fast"),
    (["--texts", "-", "--format", "xml"], "--format xml"),
])
def test_replay_usage(flags, says):
    done = engram("replay", *flags, check=False)
    assert (done.returncode, done.stdout) == (2, "") and says in done.stderr


def test_replay_without_its_file(kafka_flags, folder):
    done = engram("replay", "--texts", folder / "none.jsonl", *kafka_flags, check=False)
    assert done.returncode == 1 and "none.jsonl" in done.stderr and done.stderr.count("\n") == 1


# ---- teach, define, forget ----


def test_teach_define_forget(broker, topics, kafka_flags):
    done = engram("teach", "--id", "ü-1", "--label", "b", "--label", "a", "--label", "b", "some \"text\"", *kafka_flags)
    assert done.stdout == f"taught ü-1: topic {topics.instances}, partition 0, offset 0\n"
    done = engram("define", "a", "first letter", *kafka_flags)
    assert done.stdout == f"defined a: topic {topics.labels}, partition 0, offset 0\n"
    done = engram("forget", "ü-1", *kafka_flags)
    assert done.stdout == f"forgot ü-1: topic {topics.instances}, partition 0, offset 1\n"
    done = engram("forget", "--label", "a", *kafka_flags)
    assert done.stdout == f"forgot the definition of a: topic {topics.labels}, partition 0, offset 1\n"
    instances, labels = broker.read_all(topics.instances), broker.read_all(topics.labels)
    assert [r.key for r in instances] == ["ü-1".encode()] * 2 and [r.key for r in labels] == [b"a", b"a"]
    assert decode(instances[0]) == {"id": "ü-1", "text": 'some "text"', "labels": ["a", "b"]}
    assert decode(labels[0]) == {"label": "a", "text": "first letter"}
    assert instances[1].value is None and labels[1].value is None


@pytest.mark.parametrize("arguments, status", [
    (["teach", "--id", "x", "text"], 2),
    (["teach", "--label", "x", "text"], 2),
    (["teach", "--id", "x", "--label", "l"], 2),
    (["teach", "--id", "", "--label", "l", "text"], 1),
    (["teach", "--id", "x" * 256, "--label", "l", "text"], 1),
    (["teach", "--id", "x", "--label", "", "text"], 1),
    (["teach", "--id", "x", "--label", "l", "--partition", "one", "text"], 2),
    (["teach", "--id", "x", "--label", "l", "--partition", "7", "text"], 2),
    (["define", "l"], 2),
    (["define", "", "text"], 1),
    (["forget"], 2),
    (["forget", "x", "--label", "l"], 2),
    (["forget", "x" * 256], 1),
])
def test_what_would_be_poison_is_not_sent(topics, broker, kafka_flags, arguments, status):
    done = engram(*arguments, *kafka_flags, check=False)
    assert (done.returncode, done.stdout) == (status, "")
    assert re.search(rf"^engram {arguments[0]}: ", done.stderr, re.MULTILINE)
    if topics.instances in broker.topic_names():
        assert broker.read_all(topics.instances) == []


def test_several_partitions_need_a_word(broker, topics, kafka_flags, memory):
    broker.create_topics((topics.instances, 3), (topics.labels, 2))
    for arguments in (["teach", "--id", "x", "--label", "l", "text"], ["forget", "x"], ["define", "l", "text"]):
        done = engram(*arguments, *kafka_flags, "--memory", memory, check=False)
        assert done.returncode == 2 and "--partition N" in done.stderr and done.stdout == ""
        done = engram(*arguments, "--partition", "1", *kafka_flags, "--memory", memory)
        assert ", partition 1, offset " in done.stdout
    assert {(r.topic, r.partition) for r in broker.read_all(topics.instances, topics.labels)} == {
        (topics.instances, 1), (topics.labels, 1)}


def test_missing_topics(broker, topics, kafka_flags):
    done = engram("forget", "x", *kafka_flags, check=False)
    assert done.returncode == 1 and done.stderr == (
        f"engram forget: topic '{topics.instances}' does not exist: create it, or name another\n")
    done = engram("define", "x", "text", "--create-topics=false", *kafka_flags, check=False)
    assert done.returncode == 1 and "does not exist" in done.stderr and done.stderr.count("\n") == 1
    assert not set(topics.all()) & broker.topic_names()


def test_nobody_answers():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))  # taken, and nobody listens
        address = f"127.0.0.1:{s.getsockname()[1]}"
        done = engram("define", "l", "text", "-X", f"bootstrap.servers={address}", check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (f"engram define: no broker answers at {address}: Connection refused: start Kafka there, or set "
                           "bootstrap.servers (-X bootstrap.servers=HOST:PORT)\n")


# ---- forget --local, and what the memory knows ----


def stats(memory):
    return json.loads(engram("memory", "stats", "--json", "--memory", memory).stdout)


def test_forget_local(folder, memory):
    instances = write(folder / "i.jsonl", [{"id": i, "text": i, "labels": ["l"]} for i in ("one", "two")])
    labels = write(folder / "l.jsonl", [{"label": "l", "text": "letter"}])
    engram("load", "--labels", labels, "--instances", instances, "--memory", memory)
    before = stats(memory)
    done = engram("forget", "one", "--local", "--memory", memory)
    assert done.stdout == f"forgot one in {memory} only\n"
    done = engram("forget", "--label", "l", "--local", "--memory", memory)
    assert done.stdout == f"forgot the definition of l in {memory} only\n"
    after = stats(memory)
    assert (after["instances"], after["labels"], after["label_keys"]) == (1, 1, 0)
    assert after["local_changes"] == before["local_changes"] + 2 and after["digest"] != before["digest"]
    done = engram("forget", "one", "--local", "--memory", memory, check=False)
    assert done.returncode == 1 and "has no instance 'one'" in done.stderr
    assert stats(memory)["local_changes"] == after["local_changes"]


def test_forget_local_beside_a_running_stage(stage, memory):
    stage(memory=memory)
    done = engram("forget", "x", "--local", "--memory", memory, check=False)
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and str(memory) in done.stderr


def test_the_memory_knows_the_partition(broker, topics, kafka_flags, stage, memory):
    broker.create_topics((topics.instances, 4), cleanup_policy="compact")
    running = stage(memory=memory)
    engram("teach", "--id", "x", "--label", "l", "--partition", "2", "text", *kafka_flags)
    wait_until(lambda: stats(memory)["instances"] == 1, "the fold")
    for _ in range(2):  # beside a running stage and without one
        done = engram("teach", "--id", "x", "--label", "m", "again", *kafka_flags, "--memory", memory)
        assert ", partition 2, offset " in done.stdout
        running.stop()
        running = running.restart().wait_ready()
    done = engram("forget", "x", *kafka_flags, "--memory", memory)
    assert ", partition 2, offset 3\n" in done.stdout
    wait_until(lambda: stats(memory)["instances"] == 0, "the forget")
