"""Rights (ACLs) taken away under the stage, and given back: it says once what to give, answers 503 with the same words,
goes on with what it still may, commits no text that has no answer, and recovers by itself.

The broker has two listeners: the tests are super users on the first, the stage is the user `stage` on the second.
"""

import json
import re
import subprocess

import oracle
import pytest
from console import Console, free_port
from confluent_kafka.admin import AdminClient
from kafka import WAIT_S, Broker, wait_until
from stage import ROOT

USER = ["-X", "security.protocol=sasl_plaintext", "-X", "sasl.mechanisms=PLAIN", "-X", "sasl.username=stage",
        "-X", "sasl.password=secret"]
QUICK = ["-X", "topic.metadata.refresh.interval.ms=1000", "-X", "consumer.session.timeout.ms=6000"]


@pytest.fixture(scope="module")
def broker(session_folder):
    with Broker(session_folder / "secured", secured=True) as started:
        yield started


@pytest.fixture(scope="module")
def acl(session_folder):
    """The program that gives and takes rights (acl.c)."""
    program = session_folder / "acl"
    subprocess.run(["gcc", "-std=c17", "-Wall", "-Wextra", "-Werror", "-O1", "-o", program,
                    ROOT / "tests" / "e2e" / "acl.c", "-lrdkafka"], check=True)
    return program


class Rights:
    """rights.give("topic", name, "Read"), rights.take(...): what the user `stage` may do. It begins with nothing. Both
    wait until the broker minds it, seen by whether the user may see that topic or that group's members at all."""

    def __init__(self, program, broker):
        self._program, self._broker = program, broker
        self._given = set()
        self._admin = AdminClient(broker.client(
            bootstrap_servers=broker.secured_address, security_protocol="sasl_plaintext", sasl_mechanisms="PLAIN",
            sasl_username="stage", sasl_password="secret"))

    def _change(self, verb, right):
        subprocess.run([self._program, self._broker.address, verb, *right, "User:stage"], check=True)

    def _sees(self, kind, name):
        if kind == "topic":
            return name in self._admin.list_topics(timeout=WAIT_S).topics
        return name in {group.id for group in self._admin.list_groups(timeout=WAIT_S)}

    def _wait(self, kind, name):
        expected = any(given[:2] == (kind, name) and given[2] != "Create" for given in self._given)
        wait_until(lambda: self._sees(kind, name) == expected, f"{name} seen: {expected}")

    def give(self, kind, name, operation):
        self._change("give", (kind, name, operation))
        self._given.add((kind, name, operation))
        if kind == "topic":  # a group may have no members yet
            self._wait(kind, name)

    def take(self, kind, name, operation):
        self._change("take", (kind, name, operation))
        self._given.remove((kind, name, operation))
        self._wait(kind, name)

    def take_all(self):
        for right in self._given:
            self._change("take", right)


@pytest.fixture
def rights(acl, broker, topics):
    """All that a stage needs, on topics that are there."""
    broker.create_topics(topics.predictions, topics.dead_letters, topics.texts, partitions=6)
    broker.create_topics(topics.instances, topics.labels, cleanup_policy="compact")
    given = Rights(acl, broker)
    for topic in (topics.texts, topics.instances, topics.labels):
        given.give("topic", topic, "Read")
    for topic in (topics.predictions, topics.dead_letters):
        given.give("topic", topic, "Write")
    given.give("group", topics.group, "Read")
    yield given
    given.take_all()  # who may write to any topic gets a place as an idempotent producer


@pytest.fixture
def console():
    return Console(free_port())


@pytest.fixture
def flags(broker, console):
    return [*console.flags, *USER, *QUICK, "-X", f"bootstrap.servers={broker.secured_address}", "--create-topics=false",
            "--log-format", "json"]


def texts(first, count):
    return [(b"t%d" % i, oracle.written(text=f"tool number {i}", id=f"t{i}")) for i in range(first, first + count)]


def instances(first, count):
    return [(b"i%d" % i, oracle.written(text=f"tool {i}", labels=["tool"])) for i in range(first, first + count)]


@pytest.fixture
def running(broker, topics, stage, console, rights, flags):
    """A stage that has answered 60 texts and folded 3 instances."""
    started = stage(*flags)
    broker.produce(topics.texts, texts(0, 60))
    broker.produce(topics.instances, instances(0, 3))
    oracle.check_texts(broker, topics)
    oracle.check_memory(broker, topics, started.memory)
    console.wait_ready()
    return started


def messages(running, pattern):
    """What it said that matches; every line of its log is one JSON object."""
    lines = [json.loads(line) for line in running.log().splitlines()]
    assert all(set(line) == {"time", "level", "message"} for line in lines)
    return [line["message"] for line in lines if re.search(pattern, line["message"])]


def wait_told(running, console, words, client):
    """The line and /ready say the same."""
    running.wait_for(re.escape(f"{client}: {words}: trying on"))
    console.wait_waits(f"{client}: {words}")


def wait_over(broker, topics, running, console, repeats=None):
    """All is done by itself, and whoever asks is told so."""
    broker.produce(topics.texts, texts(200, 30))
    broker.produce(topics.instances, instances(200, 1))
    oracle.check_texts(broker, topics, repeats=repeats)
    oracle.check_memory(broker, topics, running.memory)
    console.wait_ready()


def missing(kind, name, verb, right):
    return f"{kind} '{name}' may not be {verb}: give the stage's Kafka user the right {right} on it"


def test_write_to_predictions(broker, topics, rights, running, console):
    committed = broker.committed(topics.group, topics.texts)
    rights.take("topic", topics.predictions, "Write")
    broker.produce(topics.texts, texts(60, 60))
    broker.produce(topics.instances, [*instances(3, 2), (b"poison", b"{")])
    wait_told(running, console, missing("topic", topics.predictions, "written", "WRITE"), "predictions")
    oracle.check_memory(broker, topics, running.memory)  # the other lane folds, and writes its dead letter
    assert broker.committed(topics.group, topics.texts) == committed
    oracle.check_answers(broker, topics, unanswered=lambda place: place[1] >= committed[place[0]])

    rights.give("topic", topics.predictions, "Write")
    wait_over(broker, topics, running, console)
    assert len(messages(running, "trying on")) == len(messages(running, "works again")) == 1
    running.stop()


def test_write_to_dead_letters(broker, topics, rights, running, console):
    """Both lanes wait with their poison; texts before it are answered."""
    committed = broker.committed(topics.group, topics.texts)
    rights.take("topic", topics.dead_letters, "Write")
    broker.produce(topics.instances, [(b"i1", b"{"), *instances(3, 1)])
    wait_told(running, console, missing("topic", topics.dead_letters, "written", "WRITE"), "predictions")
    broker.produce(topics.texts, texts(60, 60))
    oracle.wait_committed(broker, topics)  # no poison among them: they go on
    broker.produce(topics.texts, [(b"poison", b"{"), *texts(120, 1)], partition=0)
    wait_until(lambda: len(messages(running, "may not be written.*trying on")) == 2, running.log)
    assert broker.committed(topics.group, topics.texts)[0] <= broker.ends(topics.texts)[0][1] - 2 > committed[0]
    assert running.stats()["instances"] == 3 and running.stats()["version"] == 3

    rights.give("topic", topics.dead_letters, "Write")
    wait_over(broker, topics, running, console)
    assert sorted(letter.key for letter in broker.read_all(topics.dead_letters)) == [b"i1", b"poison"]
    assert len(messages(running, "trying on")) == len(messages(running, "works again")) == 2  # each lane once
    running.stop()


def test_read_on_texts(broker, topics, rights, running, console):
    """What was fetched before may be answered and not committed: then again, by whoever is assigned it next."""
    committed = broker.committed(topics.group, topics.texts)
    rights.take("topic", topics.texts, "Read")
    broker.produce(topics.texts, texts(60, 60))  # what a fetch that still waits is given is not committed
    broker.produce(topics.instances, instances(3, 2))
    wait_told(running, console, missing("topic", topics.texts, "read", "READ"), "texts")
    oracle.check_memory(broker, topics, running.memory)
    assert broker.committed(topics.group, topics.texts) == committed

    rights.give("topic", topics.texts, "Read")
    wait_over(broker, topics, running, console, oracle.repeats_after(committed))
    assert len(messages(running, "texts: topic.*trying on")) == 1
    running.stop()


def test_read_on_the_group(broker, topics, rights, running, console):
    """First commits are refused, then the session runs out and the group cannot be joined."""
    committed = broker.committed(topics.group, topics.texts)
    words = missing("group", topics.group, "joined", "READ")
    rights.take("group", topics.group, "Read")
    broker.produce(topics.texts, texts(60, 60))
    broker.produce(topics.instances, instances(3, 2))
    running.wait_for("texts: offsets are not committed: " + re.escape(f"{words}: trying on"))
    wait_until(lambda: console.ready()[0] == 503, console.ready)
    oracle.check_memory(broker, topics, running.memory)
    wait_told(running, console, words, "texts")
    assert broker.committed(topics.group, topics.texts) == committed

    rights.give("group", topics.group, "Read")
    wait_over(broker, topics, running, console, oracle.repeats_after(committed))
    assert len(messages(running, "trying on")) == 2 and messages(running, "committed again") == []
    running.stop()


def test_read_on_instances(broker, topics, rights, running, console):
    """Texts go on meanwhile."""
    rights.take("topic", topics.instances, "Read")
    wait_told(running, console, missing("topic", topics.instances, "read", "READ"), "learn")
    broker.produce(topics.instances, instances(3, 5))  # no fetch waits any more
    broker.produce(topics.labels, [(b"tool", oracle.written(text="a tool"))])
    broker.produce(topics.texts, texts(60, 60))
    oracle.check_texts(broker, topics)
    assert running.stats()["instances"] == 3

    rights.give("topic", topics.instances, "Read")
    wait_over(broker, topics, running, console)
    assert len(messages(running, "learn: .*trying on")) == 1
    running.stop()


def test_no_right_to_write_at_start(broker, topics, rights, stage, console, flags):
    """Topics that may be seen and not written: an idempotent producer of librdkafka's ends for good over that, and is
    replaced until it may write."""
    for topic in (topics.predictions, topics.dead_letters):
        rights.take("topic", topic, "Write")
        rights.give("topic", topic, "Describe")
    running = stage(*flags)
    broker.produce(topics.texts, texts(0, 60))
    running.wait_for(f"topic '{topics.predictions}' may not be written, nor any other: give .* WRITE on it: trying on")
    wait_until(lambda: console.ready()[0] == 503 and "WRITE" in console.ready()[1], console.ready)
    broker.produce(topics.instances, instances(0, 3))
    oracle.check_memory(broker, topics, running.memory)
    assert broker.committed(topics.group, topics.texts) == {}
    for topic in (topics.predictions, topics.dead_letters):
        rights.give("topic", topic, "Write")
    wait_over(broker, topics, running, console)
    assert len(messages(running, "trying on")) == len(messages(running, "works again")) == 1
    running.stop()


def test_topics_that_may_not_be_seen_at_start(broker, topics, rights, stage, flags):
    """They look as if they were missing: the line names both, with create_topics and without."""
    rights.take("topic", topics.instances, "Read")
    running = stage(*flags, ready=False)
    assert running.wait() == 1
    assert len(messages(running, f"topic '{topics.instances}' does not exist: create it, .*the right READ on")) == 1
    running.restart("--create-topics=true")
    assert running.wait() == 1
    assert len(messages(running, f"topic '{topics.instances}' is not there or may not be seen, .*the right READ")) == 1
    rights.give("topic", topics.instances, "Create")
    running.restart().wait_for(f"topic '{topics.instances}' exists and may not be seen: .*the right READ.*trying on")
    rights.give("topic", topics.instances, "Read")
    running.wait_ready()
    running.stop()
