"""consumer/ and producer/ on a real broker, without a stage: a small program (rooms.c) echoes texts and reads the learn
lane's topics, and says what it does. The oracle is always what stands in the topics, read by another client.
"""

import re
import subprocess
import time

import pytest
from kafka import WAIT_S, Record, wait_until
from stage import ROOT, environment

from confluent_kafka import Producer

HOUR_MS = 3600 * 1000


@pytest.fixture(scope="session")
def rooms_binary():
    done = subprocess.run(["make", "-s", "build/tests/rooms"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return ROOT / "build" / "tests" / "rooms"


class Rooms:
    """One run of the program; its words and its log (standard error) go to files."""

    def __init__(self, binary, folder, arguments):
        self.out_path = folder / f"rooms-{len(list(folder.glob('*.out')))}.out"
        self.log_path = self.out_path.with_suffix(".log")
        with open(self.out_path, "wb") as out, open(self.log_path, "wb") as log:
            self.process = subprocess.Popen([binary, *map(str, arguments)], stdin=subprocess.PIPE, stdout=out,
                                            stderr=log, env=environment())

    def words(self):
        return self.out_path.read_text(errors="replace")

    def log(self):
        return self.log_path.read_text(errors="replace")

    def wait_for(self, pattern, timeout_s=WAIT_S):
        compiled = re.compile(pattern, re.MULTILINE)
        return wait_until(lambda: compiled.search(self.words()), lambda: f"{pattern} in:\n{self.words()}{self.log()}",
                          timeout_s)

    def tell(self, word):
        """Send a word; returns the lag that it answers with."""
        seen = len(re.findall(rf"^{word} ", self.words(), re.MULTILINE))
        self.process.stdin.write(f"{word}\n".encode())
        self.process.stdin.flush()
        wait_until(lambda: len(re.findall(rf"^{word} ", self.words(), re.MULTILINE)) > seen, f"answer to {word}")
        return int(re.findall(rf"^{word} (-?\d+)", self.words(), re.MULTILINE)[-1])

    def stop(self):
        self.tell("stop")
        assert self.process.wait(WAIT_S) == 0, self.words() + self.log()

    def end(self):
        """Wait for an end with an error; returns its line."""
        self.process.wait(WAIT_S)
        return self.wait_for("^error .*$").group(0)

    def kill(self):
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()


@pytest.fixture
def rooms(rooms_binary, folder, topics, request):
    """rooms("tag", *flags, broker=...) starts the program on the test's topics."""
    started = []

    def start(*arguments, broker=None, instance=None):
        address = (broker or request.getfixturevalue("broker")).address
        flags = ["-X", f"bootstrap.servers={address}", "-X", "topic.metadata.refresh.interval.ms=1000",
                 "--instance-id", instance or f"i{len(started)}", *topics.flags()]
        started.append(Rooms(rooms_binary, folder, [*arguments, *flags]))
        return started[-1]

    yield start
    for one in started:
        one.kill()


@pytest.fixture
def made(rooms, topics):
    """The test's five topics, as Engram makes them."""
    rooms("topics").wait_for("^ok$")
    return topics


def text(value, key=None, **more):
    return Record(key, b'{"text": "%s"}' % value.encode(), **more)


def echoes(broker, topics, count):
    """Values of predictions, once there are that many."""
    return sorted(record.value for record in broker.read(topics.predictions, count))


# ---- topics ----


def test_topics_are_made_as_they_must_be(broker, made):
    expected = {made.texts: (6, "delete"), made.predictions: (6, "delete"), made.dead_letters: (6, "delete"),
                made.instances: (1, "compact"), made.labels: (1, "compact")}
    for name, (partitions, policy) in expected.items():
        config = broker.topic_config(name)
        assert len(broker.partitions(name)) == partitions
        assert config["cleanup.policy"] == policy
        assert config["max.message.bytes"] == str(4 << 20)
    assert broker.topic_config(made.dead_letters)["retention.ms"] == "-1"
    assert broker.topic_config(made.labels)["delete.retention.ms"] == str(7 * 24 * HOUR_MS)


def test_predictions_are_kept_as_long_as_texts(broker, topics, rooms):
    broker.create_topics(topics.texts, partitions=3, retention_ms=HOUR_MS * 5)
    rooms("topics").wait_for("^ok$")
    assert broker.topic_config(topics.predictions)["retention.ms"] == str(HOUR_MS * 5)
    assert len(broker.partitions(topics.texts)) == 3


def test_shorter_predictions_are_warned_about(broker, topics, rooms):
    broker.create_topics(topics.predictions, retention_ms=HOUR_MS)
    run = rooms("topics")
    run.wait_for("^ok$")
    assert "keeps its records for 1.0 hours, less than topic" in run.log()


def test_two_replicas_make_the_topics_at_once(broker, topics, rooms):
    runs = [rooms("topics") for _ in range(3)]
    for run in runs:
        run.wait_for("^ok$")
    assert set(topics.all()) <= broker.topic_names()


def test_a_missing_topic_is_one_line_when_none_may_be_made(topics, rooms):
    assert rooms("topics", "--create-topics=false").end().startswith(
        f"error TOPIC topic '{topics.texts}' does not exist: create it, or set create_topics = true. ")


# ---- what an output keeps ----


def test_key_headers_time_and_partition_are_kept(broker, topics, rooms):
    # one record is of 1970: a limit that is lifted from a topic already made holds for a moment longer
    broker.create_topics(topics.texts, topics.predictions, partitions=6, retention_ms=-1)
    rooms("topics").wait_for("^ok$")
    now = int(time.time() * 1000) - 10000
    headers = [("a", b"1"), ("a", None), ("b", b""), ("a", b"2"), ("c", bytes(range(256)))]
    broker.produce(topics.texts, [
        text("one", b"k", headers=headers, partition=1, timestamp=now),
        text("two", None, partition=5, timestamp=now + 1),
        text("three", b"", partition=4),
        Record(b"n", None, partition=2, headers=[("x", None)]),
        text("five", bytes(range(256)) * 4, partition=0, timestamp=1),
    ])
    run = rooms("tag")
    for partition in (0, 1, 2, 4, 5):
        run.wait_for(f"^published {partition} 0 ")
    found = {r.key if r.key else (r.key, r.partition): r for r in broker.read_all(topics.predictions)}
    assert len(found) == 5
    assert (found[b"k"].partition, found[b"k"].timestamp, found[b"k"].headers) == (1, now, headers)
    assert found[b"k"].value == b"echo one"
    assert found[(None, 5)].timestamp == now + 1
    assert found[(b"", 4)].value == b"echo three"
    assert (found[b"n"].value, found[b"n"].headers) == (None, [("x", None)])
    assert found[bytes(range(256)) * 4].timestamp == 1


def test_partitions_are_taken_modulo(broker, topics, rooms):
    broker.create_topics((topics.texts, 5), (topics.predictions, 2), (topics.dead_letters, 3))
    rooms("topics").wait_for("^ok$")
    keys = [None, b"", b"key"]
    broker.produce(topics.texts, [text(f"t{p} {i}", key, partition=p) for p in range(5) for i, key in enumerate(keys)])
    broker.produce(topics.texts, [Record(b"bad", b"{", partition=4)])
    run = rooms("tag")
    records = broker.read(topics.predictions, 15)
    assert len(records) == 15
    for record in records:
        assert record.partition == int(record.value[len("echo t"):].split()[0]) % 2
    assert broker.read(topics.dead_letters, 1)[0].partition == 4 % 3
    run.stop()
    assert broker.committed(topics.group, topics.texts) == {0: 3, 1: 3, 2: 3, 3: 3, 4: 4}


def test_order_within_a_partition_stays(broker, made, rooms):
    broker.produce(made.texts, [text(str(i), None, partition=i % 2) for i in range(3000)])
    rooms("tag")
    records = broker.read(made.predictions, 3000)
    for partition in (0, 1):
        numbers = [int(r.value.split()[1]) for r in sorted(records, key=lambda r: r.offset) if r.partition == partition]
        assert numbers == list(range(partition, 3000, 2))


# ---- dead letters ----


def test_a_dead_letter_keeps_the_input_and_says_why(broker, made, rooms):
    headers = [("a", b"1"), ("a", None)]
    now = int(time.time() * 1000)
    broker.produce(made.texts, [Record(b"k", b"{", headers=headers, partition=3, timestamp=now - 1000),
                                Record(None, b"", partition=3), Record(b"d", b'{"text": 1}', partition=3)])
    rooms("tag").wait_for("published 3 2 poison dead")
    found = sorted(broker.read_all(made.dead_letters), key=lambda r: r.offset)
    assert [(r.key, r.value, r.partition) for r in found] == [
        (b"k", b"{", 3), (None, b"", 3), (b"d", b'{"text": 1}', 3)]
    assert found[0].headers[:2] == headers
    assert now <= found[0].timestamp <= now + 600 * 1000
    ours = dict(found[0].headers[2:])
    message = ours.pop("__connect.errors.exception.message")
    assert message
    assert ours == {"__connect.errors.topic": made.texts.encode(), "__connect.errors.partition": b"3",
                    "__connect.errors.offset": b"0", "__connect.errors.stage": b"decode",
                    "__connect.errors.exception.class.name": b"FORMAT", "engram.attempts": b"1",
                    "engram.timestamp": b"%d" % (now - 1000)}
    assert b"text" in dict(found[2].headers)["__connect.errors.exception.message"]


def test_outputs_too_large(broker, made, rooms):
    """Sent without evidence texts, then dead-lettered; neighbours in the same batch are not touched."""
    broker.delete_topics(made.predictions)
    broker.create_topics(made.predictions, partitions=1, max_message_bytes=20000)
    neighbours = [text(f"n{i}", b"n", partition=0) for i in range(20)]
    broker.produce(made.texts, [*neighbours[:10], text("big 30000 100", b"smaller", partition=0),
                                text("big 30000 25000", b"dead", partition=0),
                                text("big 5000000 10", b"local", partition=0),
                                text("big 5000000 0", b"local-dead", partition=0), *neighbours[10:]])
    run = rooms("tag")
    run.wait_for("published 0 23 record")
    assert re.findall(r"published 0 (\d+) record dead", run.words()) == ["11", "13"]
    found = broker.read_all(made.predictions)
    assert sorted(r.value for r in found) == sorted(
        [b"echo n%d" % i for i in range(20)] + [b"s" * 100, b"s" * 10])
    dead = broker.read_all(made.dead_letters)
    assert sorted(r.key for r in dead) == [b"dead", b"local-dead"]
    assert dict(dead[0].headers)["__connect.errors.exception.class.name"] == b"TOO_LARGE"
    assert dict(dead[0].headers)["__connect.errors.stage"] == b"publish"
    assert broker.committed(made.group, made.texts)[0] == 24


def test_a_dead_letter_too_large_is_cut(broker, made, rooms):
    broker.delete_topics(made.dead_letters)
    broker.create_topics(made.dead_letters, max_message_bytes=10000)
    broker.produce(made.texts, [
        Record(b"k", b"{" * 300000, headers=[("small", b"1")], partition=0),
        Record(b"K" * 50000, b"{" * 100, headers=[("large", b"x" * 50000)], partition=0),
        Record(b"fits", b"{" * 5000, partition=0)])
    rooms("tag").wait_for("published 0 2 poison dead")
    first, second, third = sorted(broker.read_all(made.dead_letters), key=lambda r: r.offset)
    if first.key == b"fits":  # the two refused ones went out alone, after it
        first, second, third = second, third, first
    assert (first.key, set(first.value), first.headers[0]) == (b"k", {ord("{")}, ("small", b"1"))
    assert 1000 < len(first.value) < 10000
    assert second.key.startswith(b"K") and b"K" * 50000 != second.key
    for cut in (first, second):
        assert dict(cut.headers)["engram.truncated"] == b"true"
        assert dict(cut.headers)["__connect.errors.offset"] in (b"0", b"1")
    assert third.value == b"{" * 5000 and "engram.truncated" not in dict(third.headers)


def test_a_time_that_the_broker_refuses(broker, made, rooms):
    broker.set_topic_config(made.texts, message_timestamp_before_max_ms=1 << 60)
    broker.set_topic_config(made.predictions, message_timestamp_before_max_ms=HOUR_MS)
    wait_until(lambda: broker.topic_config(made.predictions)["message.timestamp.before.max.ms"] == str(HOUR_MS),
               "the new limit")
    old = int(time.time() * 1000) - 48 * HOUR_MS
    broker.produce(made.texts, [text("new", b"new", partition=0), text("old", b"old", partition=0, timestamp=old),
                                text("newer", b"newer", partition=0)])
    rooms("tag").wait_for("published 0 2 record")
    found = {r.key: r for r in broker.read_all(made.predictions)}
    assert len(found) == 3 and broker.read_all(made.dead_letters) == []
    assert found[b"old"].timestamp > old + 40 * HOUR_MS
    assert found[b"old"].headers == [("engram.timestamp", b"%d" % old)]
    assert found[b"new"].headers == []


# ---- assignments ----


def test_two_members_share_and_take_over(broker, made, rooms):
    first = rooms("tag")
    first.wait_for("^assigned 6$")
    second = rooms("tag")
    second.wait_for("^assigned 3$")
    first.wait_for("^revoked given$")
    broker.produce(made.texts, [text(str(i), None, partition=i % 6) for i in range(600)])
    assert echoes(broker, made, 600) == sorted(b"echo %d" % i for i in range(600))
    second.kill()
    first.wait_for("^assigned 6$(.|\n)*^assigned 3$(.|\n)*^assigned 6$")
    broker.produce(made.texts, [text(str(i), None, partition=i % 6) for i in range(600, 660)])
    assert echoes(broker, made, 660) == sorted(b"echo %d" % i for i in range(660))
    first.stop()
    assert broker.committed(made.group, made.texts) == {p: 110 for p in range(6)}


def test_the_same_instance_id_twice(made, rooms):
    first = rooms("tag", instance="twin")
    first.wait_for("^assigned 6$")
    second = rooms("tag", instance="twin")
    second.wait_for("^assigned 6$")
    assert first.end().startswith("error FENCED the same instance_id runs elsewhere: 'twin' in group")
    second.stop()


def test_a_restart_goes_on_behind_the_commit(broker, made, rooms):
    first = rooms("tag", instance="same")
    broker.produce(made.texts, [text("a", None, partition=0)])
    first.wait_for("published 0 0")
    first.tell("hold")
    broker.produce(made.texts, [text("b", None, partition=0)])
    first.wait_for("published 0 1")
    first.kill()
    second = rooms("tag", instance="same")
    second.wait_for("published 0 1")
    second.stop()
    assert "published 0 0" not in second.words()
    assert echoes(broker, made, 3) == [b"echo a", b"echo b", b"echo b"]


def test_start_from_latest_and_new_partitions(broker, topics, rooms):
    """A new group starts at the ends; what is written before its first commit of a text is not missed by a restart; a
    partition that comes later is read from its beginning."""
    broker.create_topics((topics.texts, 3))
    rooms("topics").wait_for("^ok$")
    broker.produce(topics.texts, [text("before", None, partition=p) for p in range(3)])
    first = rooms("tag", "--start-from", "latest", instance="same")
    first.wait_for("^assigned 3$")
    assert broker.committed(topics.group, topics.texts) == {0: 1, 1: 1, 2: 1}
    first.kill()
    broker.produce(topics.texts, [text(f"while away {p}", None, partition=p) for p in range(3)])
    second = rooms("tag", "--start-from", "latest", instance="same")
    assert echoes(broker, topics, 3) == [b"echo while away %d" % p for p in range(3)]
    broker.add_partitions(topics.texts, 5)
    broker.produce(topics.texts, [text(f"grown {p}", None, partition=p) for p in range(5)],
                   linger_ms=1)  # a producer that knows the new partitions
    second.wait_for("^assigned 5$")
    assert echoes(broker, topics, 8)[:5] == [b"echo grown %d" % p for p in range(5)]
    second.stop()


def test_an_offset_that_the_log_has_no_more(broker, made, rooms):
    """Goes on at what is left, with a warning; where the topic was made anew, from its beginning."""
    first = rooms("tag", instance="same")
    broker.produce(made.texts, [text("one", None, partition=0)])
    first.wait_for("published 0 0")
    first.stop()
    broker.produce(made.texts, [text("two", None, partition=0), text("three", None, partition=0)])
    rooms("cut", made.texts, 0, 2).wait_for("^cut Success$")
    second = rooms("tag", instance="same")
    second.wait_for("published 0 2")
    second.stop()
    assert "published 0 1" not in second.words() and "offset reset" in second.log()
    broker.delete_topics(made.texts)
    broker.create_topics(made.texts, partitions=6)
    broker.produce(made.texts, [text("four", None, partition=0)])
    third = rooms("tag", instance="same")
    third.wait_for("published 0 0")
    third.stop()


def again(broker, topics, count):
    """The topic of texts is deleted and created again, and has that many texts in partition 0. Returns their echoes."""
    broker.delete_topics(topics.texts)
    broker.create_topics(topics.texts, partitions=6)
    broker.produce(topics.texts, [text(f"again {i}", None, partition=0) for i in range(count)])
    return {b"echo again %d" % i for i in range(count)}


def wait_echoes(broker, topics, wanted):
    wait_until(lambda: wanted <= {r.value for r in broker.read_all(topics.predictions)}, wanted, pause_s=0.3)


def three(broker, topics):
    broker.produce(topics.texts, [text(f"first {i}", None, partition=0) for i in range(3)])


@pytest.mark.parametrize("marked", [True, False])
def test_a_commit_that_landed_on_another_topic(broker, made, rooms, marked):
    """Its metadata know the topic that was read: the texts before it are not skipped. A tool's commit is believed."""
    first = rooms("tag", "-X", "consumer.session.timeout.ms=6000", instance="same")
    three(broker, made)
    first.wait_for("published 0 2")
    # not at once where the session ran out before the commit: then they are published again
    wait_until(lambda: broker.committed(made.group, made.texts) == {0: 3}, "the commit", pause_s=0.2)
    first.stop()
    mark = rooms("committed").wait_for("^committed 0 3 (engram-1 .*)$")[1]
    wanted = again(broker, made, 5)
    rooms("commit", 0, 3, mark if marked else "by hand").wait_for("^commit ok$")
    assert broker.committed(made.group, made.texts) == {0: 3}
    second = rooms("tag", instance="same")
    wait_echoes(broker, made, wanted if marked else {b"echo again 3", b"echo again 4"})
    wait_until(lambda: broker.committed(made.group, made.texts).get(0) == 5, "the commit", pause_s=0.2)
    second.stop()
    assert ("published 0 0 " in second.words()) == marked
    assert broker.committed(made.group, made.texts)[0] == 5


def test_a_topic_is_created_again_while_it_is_paused(broker, made, rooms):
    run = rooms("tag")
    three(broker, made)
    run.wait_for("published 0 2")
    run.tell("pause")
    wanted = again(broker, made, 5)
    run.tell("resume")
    wait_echoes(broker, made, wanted)
    run.stop()


def test_a_topic_is_created_again_under_start_from_latest(broker, made, rooms):
    """It was read, so the group is not new, though the broker has dropped its offsets."""
    run = rooms("tag", "--start-from", "latest")
    run.wait_for("^assigned 6$")
    three(broker, made)
    run.wait_for("published 0 2")
    wait_echoes(broker, made, again(broker, made, 5))
    run.stop()


def test_retention_is_no_other_topic(broker, made, rooms):
    """What was read last is gone, as retention does it: nothing is read again."""
    run = rooms("tag")
    three(broker, made)
    run.wait_for("published 0 2")
    rooms("cut", made.texts, 0, 3).wait_for("^cut Success$")
    time.sleep(6)  # the topic is looked at every 5 s
    broker.produce(made.texts, [text(f"more {i}", None, partition=0) for i in range(3)])
    run.wait_for("published 0 5")
    run.stop()
    assert len(re.findall("^published", run.words(), re.MULTILINE)) == 6 and "again" not in run.log()


def test_pausing_loses_nothing_and_doubles_nothing(broker, made, rooms):
    run = rooms("tag")
    run.wait_for("^assigned 6$")
    sent = 0
    for _ in range(5):
        broker.produce(made.texts, [text(str(sent + i), None, partition=i % 6) for i in range(400)])
        sent += 400
        run.tell("pause")
        paused = len(re.findall("^published", run.words(), re.MULTILINE))
        broker.produce(made.texts, [text(str(sent + i), None, partition=i % 6) for i in range(100)])
        sent += 100
        time.sleep(0.3)
        assert len(re.findall("^published", run.words(), re.MULTILINE)) == paused
        run.tell("resume")
        run.tell("resume")
    assert echoes(broker, made, sent) == sorted(b"echo %d" % i for i in range(sent))
    assert run.tell("lag") == 0
    run.stop()


def test_a_paused_consumer_stays_paused_over_a_rebalance(broker, made, rooms):
    first = rooms("tag")
    first.wait_for("^assigned 6$")
    first.tell("pause")
    second = rooms("tag")
    second.wait_for("^assigned 3$")
    first.wait_for("^assigned 3$")
    broker.produce(made.texts, [text(str(i), None, partition=i % 6) for i in range(60)])
    wait_until(lambda: second.words().count("published") == 30, "the other member's half")
    time.sleep(0.5)
    assert "published" not in first.words()
    assert first.tell("lag") == 30
    first.tell("resume")
    assert echoes(broker, made, 60) == sorted(b"echo %d" % i for i in range(60))


def test_lag_is_what_read_committed_shows(broker, made, rooms):
    run = rooms("tag")
    run.wait_for("^assigned 6$")
    broker.produce_transaction(made.texts, [text("c", None, partition=0)], transactional_id=f"{made.group}-c")
    broker.produce_transaction(made.texts, [text("a", None, partition=1)], commit=False,
                               transactional_id=f"{made.group}-a")
    wait_until(lambda: run.tell("lag") == 0, "no lag behind markers")
    assert echoes(broker, made, 1) == [b"echo c"]
    open_one = Producer(broker.client(transactional_id=f"{made.group}-o"))
    open_one.init_transactions(WAIT_S)
    open_one.begin_transaction()
    open_one.produce(made.texts, b'{"text": "open"}', partition=2)
    open_one.flush(WAIT_S)
    time.sleep(0.3)
    assert run.tell("lag") == 0
    open_one.commit_transaction(WAIT_S)
    assert echoes(broker, made, 2) == [b"echo c", b"echo open"]
    wait_until(lambda: run.tell("lag") == 0, "no lag behind the commit")


# ---- brokers that come and go ----


def test_a_broker_that_is_killed_and_comes_back(own_broker, topics, rooms):
    broker = own_broker()
    rooms("topics", broker=broker).wait_for("^ok$")
    run = rooms("tag", broker=broker)
    run.wait_for("^assigned 6$")
    broker.produce(topics.texts, [text(str(i), None, partition=i % 6) for i in range(60)])
    wait_until(lambda: run.words().count("published") >= 60, "the first texts")
    broker.kill()
    wait_until(lambda: "no broker answers" in run.log(), lambda: run.log())
    time.sleep(3)
    broker.restart()
    broker.produce(topics.texts, [text(str(i), None, partition=i % 6) for i in range(60, 120)])
    wait_until(lambda: run.words().count("published") >= 120, lambda: run.words()[-500:] + run.log())
    assert set(echoes(broker, topics, 120)) == {b"echo %d" % i for i in range(120)}
    assert run.log().count("texts: no broker answers") == 1
    assert run.log().count("texts: works again") == 1
    run.stop()


def test_a_topic_that_goes_and_comes_back(broker, made, rooms):
    run = rooms("tag")
    broker.produce(made.texts, [text("0", None, partition=0)])
    run.wait_for("published 0 0")
    broker.delete_topics(made.predictions)
    broker.produce(made.texts, [text(str(i), None, partition=0) for i in range(1, 50)])
    wait_until(lambda: re.search(f"predictions: topic .{made.predictions}. does not exist: create it", run.log()), lambda: run.log())
    time.sleep(1)
    assert "published 0 1" not in run.words() and broker.read_all(made.dead_letters) == []
    broker.create_topics(made.predictions, partitions=2)
    found = [r.value for r in broker.read(made.predictions, 49)]
    assert found == [b"echo %d" % i for i in range(1, 50)]
    run.wait_for("published 0 49")
    assert len(re.findall("predictions: .*trying on", run.log())) == 1
    run.stop()


def test_missing_rights_are_waited_for(own_broker, topics, rooms):
    broker = own_broker(**{"authorizer_class_name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
                           "allow_everyone_if_no_acl_found": "true"})
    rooms("topics", broker=broker).wait_for("^ok$")
    rooms("deny", topics.predictions, broker=broker).wait_for("^denied Success$")
    broker.produce(topics.texts, [text(str(i), None, partition=0) for i in range(20)])
    run = rooms("tag", broker=broker)
    wait_until(lambda: "may not be written" in run.log(), lambda: run.log())
    time.sleep(2)
    assert "published" not in run.words() and broker.read_all(topics.dead_letters) == []
    rooms("allow", topics.predictions, broker=broker).wait_for("^allowed Success$")
    run.wait_for("published 0 19")
    assert [r.value for r in broker.read_all(topics.predictions)] == [b"echo %d" % i for i in range(20)]
    assert len(re.findall("predictions: .*trying on", run.log())) == 1
    run.stop()
    assert broker.committed(topics.group, topics.texts)[0] == 20


def test_nobody_answers_is_told_once(topics, rooms, folder):
    class Nobody:
        address = "127.0.0.1:1"

    run = rooms("topics", broker=Nobody)
    wait_until(lambda: "topics: no broker answers at 127.0.0.1:1: Connection refused" in run.log(), lambda: run.log())
    time.sleep(2)
    assert run.process.poll() is None
    assert run.log().count("\n") == 1


# ---- the learn lane ----


def instance(key, name="x"):
    return Record(key, b'{"text": "t", "labels": ["%s"]}' % name.encode())


def test_learn_reads_both_topics_to_the_end(broker, topics, rooms):
    made = topics
    broker.create_topics(topics.instances)  # a compacted one takes no record without a key
    rooms("topics").wait_for("^ok$")
    broker.produce(made.instances, [instance(b"a"), Record(b"a", None), Record(b"b", b"{"), instance(None),
                                    Record(b"", None), Record(b"z", b"")])
    broker.produce(made.labels, [Record(b"l", b'{"text": "t"}'), Record(b"l" * 256, b'{"text": "t"}')])
    run = rooms("learn")
    run.wait_for("^caught-up$")
    words = run.words()
    assert re.findall(rf"^(\w+) {made.instances} 0 (\d) (\S*)( \w+)?$", words, re.MULTILINE) == [
        ("record", "0", "a", ""), ("null", "1", "a", ""), ("poison", "2", "b", " FORMAT"), ("poison", "3", "", " KEY"),
        ("poison", "4", "", " KEY"), ("poison", "5", "z", " FORMAT")]
    assert re.findall(rf"^(\w+) {made.labels} 0 (\d)", words, re.MULTILINE) == [("record", "0"), ("poison", "1")]
    assert words.rstrip().endswith("caught-up")
    assert run.tell("lag") == 0
    run.tell("pause")
    broker.produce(made.instances, [instance(b"later")])
    assert run.tell("lag") == 1
    assert "later" not in run.words()
    run.tell("resume")
    run.wait_for("6 later")
    run.stop()


def test_learn_is_ready_on_empty_topics_and_from_the_end(broker, made, rooms):
    run = rooms("learn")
    run.wait_for("^caught-up$")
    cluster = run.wait_for("^cluster (.+)$").group(1)
    run.stop()
    broker.produce(made.instances, [instance(b"a"), instance(b"b")])
    run = rooms("learn", "--cluster", cluster, "--stored", f"{made.instances}:0:2", "--stored", f"{made.labels}:0:0")
    run.wait_for("^caught-up$")
    assert "record" not in run.words()
    run.stop()
    run = rooms("learn", "--cluster", cluster, "--stored", f"{made.instances}:0:1")
    run.wait_for("^caught-up$")
    assert re.findall("^record .*$", run.words(), re.MULTILINE) == [f"record {made.instances} 0 1 b"]


@pytest.mark.parametrize("commit", [True, False])
def test_learn_is_ready_behind_markers(broker, made, rooms, commit):
    broker.produce(made.instances, [instance(b"a")])
    broker.produce_transaction(made.instances, [instance(b"b")], commit=commit, transactional_id=f"{made.group}-t")
    run = rooms("learn")
    run.wait_for("^caught-up$")
    assert len(re.findall("^record", run.words(), re.MULTILINE)) == 1 + commit
    assert run.tell("lag") == 0


def test_learn_is_ready_behind_a_compacted_gap(broker, topics, rooms):
    broker.create_topics(topics.instances, topics.labels, cleanup_policy="compact", segment_bytes=1 << 20,
                         segment_ms=200, min_cleanable_dirty_ratio=0, delete_retention_ms=0)
    rooms("topics").wait_for("^ok$")
    for _ in range(3):
        broker.produce(topics.instances, [instance(b"a"), instance(b"b"), Record(b"b", None)])
        time.sleep(0.3)
    broker.produce(topics.instances, [instance(b"last")])
    broker.wait_compacted(topics.instances)
    run = rooms("learn")
    run.wait_for("^caught-up$")
    assert run.tell("lag") == 0
    assert run.words().count(" last") == 1


@pytest.mark.parametrize("stored, says", [
    (3, "ends at offset 2, and this memory has read to 3"),
    (1, None),
])
def test_learn_refuses_an_offset_behind_the_end(broker, made, rooms, stored, says):
    broker.produce(made.instances, [instance(b"a"), instance(b"b")])
    cluster = broker.admin.list_topics(timeout=WAIT_S).cluster_id
    run = rooms("learn", "--cluster", cluster, "--stored", f"{made.instances}:0:{stored}")
    if says:
        line = run.end()
        assert line.startswith("error TOPIC") and says in line and "copy another replica's memory" in line
    else:
        run.wait_for("^caught-up$")


def test_learn_refuses_another_cluster(broker, made, rooms):
    line = rooms("learn", "--cluster", "elsewhere", "--stored", f"{made.instances}:0:1").end()
    assert line.startswith("error TOPIC this memory followed the Kafka cluster elsewhere")


def test_learn_refuses_another_number_of_partitions(broker, made, rooms):
    cluster = broker.admin.list_topics(timeout=WAIT_S).cluster_id
    broker.add_partitions(made.instances, 2)
    line = rooms("learn", "--cluster", cluster, "--stored", f"{made.instances}:0:0").end()
    assert line.startswith("error TOPIC") and "has 2 partitions, and this memory was made from 1" in line


def test_learn_refuses_a_log_that_begins_later(broker, topics, rooms):
    broker.create_topics(topics.instances, cleanup_policy="compact,delete")
    rooms("topics").wait_for("^ok$")
    cluster = broker.admin.list_topics(timeout=WAIT_S).cluster_id
    broker.produce(topics.instances, [instance(b"%d" % i) for i in range(6)])
    rooms("cut", topics.instances, 0, 3).wait_for("^cut Success$")
    line = rooms("learn", "--cluster", cluster, "--stored", f"{topics.instances}:0:2").end()
    assert line.startswith("error TOPIC") and "begins at offset 3, and this memory has read only to 2" in line
    for flags in (["--stored", f"{topics.instances}:0:3"], ["--stored", f"{topics.instances}:0:0"], []):
        run = rooms("learn", "--cluster", cluster, *flags)
        run.wait_for("^caught-up$")
        assert len(re.findall("^record", run.words(), re.MULTILINE)) == 3


def test_learn_never_jumps_while_it_runs(broker, topics, rooms):
    broker.create_topics(topics.instances, cleanup_policy="compact,delete")
    rooms("topics").wait_for("^ok$")
    run = rooms("learn")
    run.wait_for("^caught-up$")
    run.tell("pause")
    broker.produce(topics.instances, [instance(b"%d" % i) for i in range(6)])
    rooms("cut", topics.instances, 0, 3).wait_for("^cut Success$")
    run.tell("resume")
    assert run.end().startswith(f"error TOPIC topic '{topics.instances}', partition 0 has no offset 0 any more")
    assert "record" not in run.words()


def test_learn_refuses_who_was_away_too_long(broker, made, rooms):
    cluster = broker.admin.list_topics(timeout=WAIT_S).cluster_id
    broker.produce(made.instances, [instance(b"a"), instance(b"b")])
    days = int((time.time() - 8 * 24 * 3600) * 1000)
    flags = ["--cluster", cluster, "--caught-up", days, "--stored"]
    line = rooms("learn", *flags, f"{made.instances}:0:1").end()
    assert line.startswith("error TOPIC this memory last caught up 192.0 hours ago")
    rooms("learn", *flags, f"{made.instances}:0:2").wait_for("^caught-up$")


def test_learn_warns_where_nothing_is_compacted(broker, made, rooms):
    broker.set_topic_config(made.labels, cleanup_policy="delete")
    wait_until(lambda: broker.topic_config(made.labels)["cleanup.policy"] == "delete", "the new policy")
    run = rooms("learn")
    run.wait_for("^caught-up$")
    assert f"topic '{made.labels}' is not compacted" in run.log()
