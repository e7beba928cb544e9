"""The broker dies, goes away and comes back, topics are deleted under the stage, replicas come and go: no text is lost,
none is committed without its answer, and the log says what is wrong once, and once that it is over.
"""

import re
import subprocess
import threading
import time

import oracle
import pytest
from console import Console, free_port
from kafka import Broker, wait_until
from stage import ROOT, TINY

AWAY_S = 10


def texts(first, count, words=1):
    """(key, value) pairs; the key decides the partition."""
    return [(b"t%d" % i, oracle.written(text="search " * words + f"tool number {i}", id=f"t{i}"))
            for i in range(first, first + count)]


def written(broker, topic):
    """How many records stand in a topic that nothing is deleted from."""
    return sum(end for _, end in broker.ends(topic).values())


class Flow(threading.Thread):
    """Writes texts in small portions, over broker failures too, until it has written count of them or must end."""

    def __init__(self, broker, topic, count, portion=100, pause_s=0.0, words=1):
        super().__init__(daemon=True)
        self._broker, self._topic, self._count, self._portion, self._pause_s = broker, topic, count, portion, pause_s
        self._words = words
        self.sent = 0
        self._told = threading.Event()
        self.start()

    def run(self):
        while self.sent < self._count and not self._told.is_set():
            # not idempotent: such a producer of librdkafka's may end for good when a leader does
            self._broker.produce(self._topic, texts(self.sent, self._portion, self._words), enable_idempotence=False)
            self.sent += self._portion
            self._told.wait(self._pause_s)

    def finish(self):
        """Wait until all are written."""
        self.join(180)
        assert not self.is_alive() and self.sent >= self._count, f"{self.sent} of {self._count} texts were written"

    def end(self):
        self._told.set()
        self.join(180)
        assert not self.is_alive()


def answered(broker, topics):
    return written(broker, topics.predictions)


def check_committed(broker, topics):
    """With no stage running: what is committed is answered."""
    committed = broker.committed(topics.group, topics.texts)
    oracle.check_answers(broker, topics, repeats=lambda place: True,
                         unanswered=lambda place: place[1] >= committed.get(place[0], 0))
    return committed


def troubles(log):
    """{client: [what it said of the broker, in order]}"""
    said = {}
    for client, word in re.findall(r"(\w+): (no broker answers|works again)", log):
        said.setdefault(client, []).append(word)
    return said


@pytest.fixture(scope="module")
def mortal_broker(session_folder):
    with Broker(session_folder / "mortal", broker_session_timeout_ms=2500, broker_heartbeat_interval_ms=500) as started:
        yield started


@pytest.fixture
def mortal(mortal_broker, request):
    """A broker that tests kill. It runs when they end."""
    yield mortal_broker
    if getattr(request.node, "failed", False):
        mortal_broker.restart()


@pytest.fixture
def console():
    return Console(free_port())


def wait_missing(console, topic):
    """Whoever asks is told which topic is gone, and what to do."""
    console.wait_waits(f"predictions: topic '{topic}' does not exist: create it (a restart does, where create_topics is "
                       "set)")


@pytest.fixture(scope="module")
def fence(session_folder):
    """The library that has a consumer find itself fenced (fence.c)."""
    library = session_folder / "fence.so"
    subprocess.run(["gcc", "-std=c17", "-Wall", "-Wextra", "-Werror", "-O1", "-shared", "-fPIC", "-o", library,
                    ROOT / "tests" / "e2e" / "fence.c", "-ldl"], check=True)
    return library


def test_the_broker_is_killed_while_texts_flow(mortal, topics, stage):
    """Twice: first it is back at once, then after ten seconds. Each client says so once, and once that it is back."""
    broker = mortal
    running = stage(*TINY, broker=broker)
    flow = Flow(broker, topics.texts, 6000, pause_s=0.2)
    broker.produce(topics.instances, [(b"i%d" % i, oracle.written(text=f"tool {i}", labels=["l"])) for i in range(50)])
    wait_until(lambda: answered(broker, topics) >= 500, "the first answers")
    broker.kill()
    broker.restart()
    wait_until(lambda: answered(broker, topics) >= 1500, "answers after a kill")
    broker.kill()
    running.wait_for("no broker answers")
    time.sleep(AWAY_S)  # the fault itself: a broker that is away
    assert running.running
    broker.restart()
    flow.finish()
    broker.produce(topics.instances, [(b"i0", None), (b"last", oracle.written(text="last", labels=["last"]))])
    answers = oracle.check_texts(broker, topics, timeout_s=180, repeats=lambda place: True)
    oracle.check_memory(broker, topics, running.memory)
    print(f"answered twice: {len(answers.repeated)} of {flow.sent}")
    wait_until(lambda: all(said[-1] == "works again" for said in troubles(running.log()).values()), "all clients back")
    for client, said in troubles(running.log()).items():
        # a starting broker may take a connection and drop it again: once more at the most
        assert said == ["no broker answers", "works again"] * (len(said) // 2) and len(said) <= 6, f"{client}: {said}"
    running.stop()
    committed = check_committed(broker, topics)
    assert sum(committed.values()) == written(broker, topics.texts) >= flow.sent


def test_broker_and_stage_are_killed_together(mortal, topics, stage):
    """With both dead, what stands in the log is at rest: nothing is committed that has no answer, at every such moment.
    """
    broker = mortal
    running = stage(*TINY, broker=broker)
    flow = Flow(broker, topics.texts, 1 << 30, pause_s=0.05)
    for _ in range(2):
        before = answered(broker, topics)
        wait_until(lambda b=before: answered(broker, topics) >= b + 300, "more answers")
        broker.kill()
        running.kill()
        broker.restart()
        check_committed(broker, topics)
        running.restart()
    flow.end()
    answers = oracle.check_texts(broker, topics, timeout_s=180, repeats=lambda place: True)
    print(f"answered twice: {len(answers.repeated)} of {flow.sent}")
    running.stop()


def test_a_client_that_fences_itself(mortal, topics, stage, folder, fence):
    """When a session runs out while the coordinator is away, brokers may take the same client for another process of
    its name: it joins again. Without that the line stands, and the process ends."""
    broker = mortal
    flag = folder / "fence"
    running = stage(*TINY, "-X", "consumer.session.timeout.ms=6000", broker=broker,
                    env={"LD_PRELOAD": str(fence), "TEST_FENCE": str(flag)})
    flow = Flow(broker, topics.texts, 3000, pause_s=0.1)
    wait_until(lambda: answered(broker, topics) >= 300, "the first answers")
    broker.kill()
    running.wait_for("partitions lost")
    flag.touch()
    running.wait_for("joining again")
    broker.restart()
    flow.finish()
    oracle.check_texts(broker, topics, timeout_s=180, repeats=lambda place: True)
    assert running.log().count("joining again") == 1
    flag.touch()  # and once it has joined, it is another process that fences it
    assert running.wait() == 1
    running.wait_for("the same instance_id runs elsewhere")
    check_committed(broker, topics)


def test_a_stop_while_the_broker_is_away(mortal, topics, stage):
    """It ends by itself, soon and cleanly; the texts that it had not answered are the next one's."""
    broker = mortal
    running = stage(*TINY, broker=broker)
    broker.produce(topics.texts, texts(0, 200))
    oracle.check_texts(broker, topics)
    broker.kill()
    running.wait_for("no broker answers")
    running.terminate()
    assert running.wait() == 0
    broker.restart()
    broker.produce(topics.texts, texts(200, 200))
    running.restart().wait_ready()
    oracle.check_texts(broker, topics)
    running.stop()


def test_predictions_are_deleted_under_the_stage(broker, topics, stage, console):
    """It waits, says so once, commits nothing, and goes on when the topic is back; a stop meanwhile is clean."""
    running = stage(*console.flags, "-X", "topic.metadata.refresh.interval.ms=1000")
    broker.produce(topics.texts, texts(0, 100))
    oracle.check_texts(broker, topics)
    committed = broker.committed(topics.group, topics.texts)
    broker.delete_topics(topics.predictions)
    broker.produce(topics.texts, texts(100, 100))
    running.wait_for(f"warn .*predictions: topic '{topics.predictions}' does not exist: create it .*: trying on")
    wait_missing(console, topics.predictions)
    broker.produce(topics.instances, [(b"i1", oracle.written(text="one", labels=["l"]))])
    oracle.check_memory(broker, topics, running.memory)  # the other lane does not mind
    assert broker.committed(topics.group, topics.texts) == committed

    broker.create_topics(topics.predictions, partitions=6)
    running.wait_for("works again")
    console.wait_ready()
    oracle.wait_committed(broker, topics)
    oracle.check_answers(broker, topics, unanswered=lambda place: place[1] < committed.get(place[0], 0))
    assert answered(broker, topics) >= 100
    assert len(re.findall(": trying on", running.log())) == 1
    assert broker.read_all(topics.dead_letters) == []

    committed = broker.committed(topics.group, topics.texts)
    broker.delete_topics(topics.predictions)
    broker.produce(topics.texts, texts(200, 100))
    wait_until(lambda: len(re.findall(": trying on", running.log())) == 2, "the second wait")
    running.terminate()
    running.wait_for("stopping")
    running.terminate()  # it waits for the topic a while: a second signal ends it at once, and loses nothing either
    assert running.wait() == 1
    running.wait_for("stopped at once")
    assert broker.committed(topics.group, topics.texts) == committed
    running.restart().wait_ready()  # and makes the topic
    oracle.wait_committed(broker, topics)
    oracle.check_answers(broker, topics, unanswered=lambda place: place[1] < committed.get(place[0], 0))
    assert answered(broker, topics) == 100
    running.stop()


def test_dead_letters_are_deleted_under_the_stage(broker, topics, stage, console):
    """Both lanes wait with their poison, and forget and commit nothing of it. Topics may not be made here."""
    broker.create_topics(topics.texts, topics.predictions, topics.dead_letters, partitions=6)
    broker.create_topics(topics.instances, topics.labels, cleanup_policy="compact")
    running = stage(*console.flags, "--create-topics=false", "-X", "topic.metadata.refresh.interval.ms=1000")
    broker.produce(topics.instances, [(b"i1", oracle.written(text="one", labels=["l"]))])
    oracle.check_memory(broker, topics, running.memory)
    broker.delete_topics(topics.dead_letters)
    broker.produce(topics.texts, [*texts(0, 1), (b"poison", b"{"), *texts(1, 1)], partition=0)
    broker.produce(topics.instances, [(b"i1", b"{"), (b"i2", oracle.written(text="two", labels=["l"]))])
    wait_until(lambda: len(re.findall(": trying on", running.log())) == 2, "both lanes wait")
    wait_missing(console, topics.dead_letters)
    assert running.stats()["instances"] == 1
    assert broker.committed(topics.group, topics.texts).get(0, 0) <= 1
    broker.create_topics(topics.dead_letters, partitions=6)
    oracle.check_texts(broker, topics)
    console.wait_ready()
    told = oracle.check_memory(broker, topics, running.memory)
    assert list(told.instances) == ["i2"]
    assert sorted(letter.key for letter in broker.read_all(topics.dead_letters)) == [b"i1", b"poison"]
    running.stop()


def test_instances_are_made_anew_under_the_stage(broker, topics, stage):
    """Its memory holds what the new topic does not: it must not go on as if nothing had happened."""
    running = stage(*TINY, "-X", "topic.metadata.refresh.interval.ms=1000")
    broker.produce(topics.instances, [(b"i%d" % i, oracle.written(text="one", labels=["l"])) for i in range(10)])
    oracle.check_memory(broker, topics, running.memory)
    broker.delete_topics(topics.instances)
    broker.create_topics(topics.instances, cleanup_policy="compact")
    assert running.wait() == 1
    running.wait_for(f"topic '{topics.instances}', partition 0 .*--memory")
    assert running.stats()["instances"] == 10


REPLICAS = 3


def test_replicas_come_and_go(broker, topics, stage, folder):
    """20,000 texts while three replicas are killed, stopped and started by turns: each is answered, and how many twice
    is told. All replicas end with the same memory."""
    flags = [*TINY, "-X", "consumer.session.timeout.ms=6000"]
    replicas = [stage(*flags, memory=folder / f"memory-{i}") for i in range(REPLICAS)]
    flow = Flow(broker, topics.texts, 20_000, portion=500, pause_s=0.25, words=60)
    steps = 0
    while flow.is_alive():
        step, steps = steps, steps + 1
        broker.produce(topics.instances, [(b"i%d" % step, oracle.written(text=f"tool {step}", labels=["tool"]))])
        before = answered(broker, topics)
        wait_until(lambda b=before: answered(broker, topics) >= b + 300 or not flow.is_alive(), "more answers")
        one = replicas[step % REPLICAS]
        if step % 2:
            one.stop()
        else:
            one.kill()
        if step % 3:  # else it is back only after another one has gone too
            one.restart()
        for other in replicas:
            if not other.running and other is not one:
                other.restart()
    flow.finish()
    for one in replicas:
        if not one.running:
            one.restart()
        one.wait_ready()
    answers = oracle.check_texts(broker, topics, timeout_s=180, repeats=lambda place: True)
    oracle.check_memory(broker, topics, *(one.memory for one in replicas))
    print(f"answered twice: {len(answers.repeated)} of {flow.sent}, after {steps} replicas went")
    assert steps >= 2 * REPLICAS
    for one in replicas:
        one.stop()
    assert sum(check_committed(broker, topics).values()) == written(broker, topics.texts) >= 20_000
