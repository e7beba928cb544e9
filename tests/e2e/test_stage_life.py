"""A stage that is killed, stopped, started again, left alone: nothing lost, nothing folded twice, and what it says."""

import re
import signal
import time

import pytest
from kafka import Record, wait_until
from oracle import check_answers, check_memory, check_texts, replay, repeats_after, wait_committed, written
from stage import TINY, engram, memory_stats

SLOW = [*TINY, "--batch-tokens", 64]  # two texts a batch, each acknowledged and committed before the next ones are
FILLER = "word " * 40  # more than tiny-bert reads


def texts(first, count, filler=FILLER):
    return [Record(b"%d" % i, written(text=f"text {i} {filler}"), partition=i % 6) for i in range(first, first + count)]


def instances(first, count, filler=FILLER):
    """New ones, replaced ones and tombstones."""
    return [(b"%d" % (i % 150), None if i % 7 == 6 else written(text=f"instance {i} {filler}", labels=[f"l{i % 9}"]))
            for i in range(first, first + count)]


def answered(broker, topics):
    """By offsets, which takes no time to speak of."""
    return sum(end for _, end in broker.ends(topics.predictions).values())


def test_killed_amid_texts_and_folds(broker, topics, stage, memory):
    """With the real model, whose batches and folds last long enough to die in. What was committed when it died is not
    answered again; the memory is a replay, whatever moment it died at."""
    running = stage("--batch-tokens", 256)
    broker.produce(topics.instances, instances(0, 500, filler="of a few words"))
    broker.produce(topics.labels, [(b"l%d" % i, written(text=f"label {i}")) for i in range(9)])
    committed, versions, sent = [], [], 0
    for kill in range(4):
        before = answered(broker, topics)
        broker.produce(topics.texts, texts(sent, 300))
        sent += 300
        wait_until(lambda seen=before: answered(broker, topics) > seen, "answers")
        running.kill()
        committed.append(broker.committed(topics.group, topics.texts))
        versions.append(memory_stats(memory)["version"])
        assert sum(committed[-1].values()) < sent, "killed too late to prove anything"
        if kill == 1:  # what comes while nobody runs
            broker.produce(topics.instances, instances(500, 100, filler="of a few words"))
        running.restart()
    assert versions == sorted(versions)
    answers = check_texts(broker, topics, timeout_s=120, repeats=repeats_after(*committed))
    assert len(answers.predictions) == sent
    told = check_memory(broker, topics, memory)
    assert told.version == 609
    running.stop()
    check_memory(broker, topics, memory)


def test_killed_again_and_again_amid_folds(broker, topics, stage, memory):
    """Until three kills hit between the transactions of one run of records: the memory's offsets always fit what it
    holds."""
    running = stage(*TINY)
    sent = inside = kills = 0
    while inside < 3:
        assert kills < 20, f"only {inside} of {kills} kills came before all was folded"
        before = memory_stats(memory)["version"]
        broker.produce(topics.instances, instances(sent, 3000))
        sent += 3000
        wait_until(lambda seen=before: memory_stats(memory)["version"] > seen, "a fold", pause_s=0)
        running.kill()
        kills += 1
        inside += memory_stats(memory)["version"] < sent
        engram("memory", "verify", "--memory", memory)
        running.restart()
    running.wait_ready()
    assert check_memory(broker, topics, memory).version == sent


def test_stopped_amid_texts_it_drains(broker, topics, stage):
    """Outputs and committed offsets are the same set, exit 0, and a restart repeats nothing."""
    running = stage(*SLOW)
    broker.produce(topics.texts, texts(0, 6000))
    for stop in range(2):
        before = answered(broker, topics)
        wait_until(lambda seen=before: answered(broker, topics) > seen, "answers")
        if stop:
            running.process.send_signal(signal.SIGINT)
            assert running.wait() == 0
        else:
            running.stop()
        committed = broker.committed(topics.group, topics.texts)
        assert sum(committed.values()) < 6000, "stopped too late to prove anything"
        found = check_answers(broker, topics, unanswered=lambda place, c=committed: place[1] >= c.get(place[0], 0))
        assert set(found.predictions) == {(p, o) for p, end in committed.items() for o in range(end)}
        lines = running.log().splitlines()
        assert lines[-1].endswith(" stopped") and any("stopping: finishing what is being computed" in x for x in lines)
        running.restart()
    assert len(check_texts(broker, topics).predictions) == 6000
    running.stop()


def test_a_second_signal_stops_at_once(broker, topics, stage, memory):
    running = stage(*SLOW)
    broker.produce(topics.texts, texts(0, 6000))
    broker.produce(topics.instances, instances(0, 400))
    wait_until(lambda: answered(broker, topics) > 0, "answers")
    running.process.send_signal(signal.SIGTERM)
    running.process.send_signal(signal.SIGINT)  # another one: two of a kind that both wait are one
    assert running.wait() == 1
    assert "stopped at once by a second signal" in running.log()
    committed = broker.committed(topics.group, topics.texts)
    assert sum(committed.values()) < 6000, "stopped too late to prove anything"
    running.restart().wait_ready()
    answers = check_texts(broker, topics, repeats=repeats_after(committed))
    assert len(answers.predictions) == 6000
    check_memory(broker, topics, memory)
    running.stop()


@pytest.mark.parametrize("topic", ["texts", "instances"])
def test_it_ends_also_where_a_topic_has_gone(broker, topics, stage, topic):
    """librdkafka 2.0.2 never ends a client whose topic was deleted while it read it: the stage does."""
    running = stage(*TINY, "-X", "topic.metadata.refresh.interval.ms=500")
    broker.produce(topics.texts, texts(0, 12))
    wait_committed(broker, topics)
    broker.delete_topics(getattr(topics, topic))
    running.wait_for(f"warn .*topic '{getattr(topics, topic)}' does not exist: create it")
    running.stop()


def test_where_a_group_starts(broker, topics, stage):
    """latest: what stands in the topic before a group's first start is not answered; what comes while it is away is."""
    broker.create_topics((topics.texts, 6))
    broker.produce(topics.texts, texts(0, 30))
    running = stage(*TINY, "--start-from", "latest")
    running.wait_for(r"texts: 6 partitions of \S+ assigned")
    broker.produce(topics.texts, texts(30, 30))
    wait_committed(broker, topics)
    running.stop()
    broker.produce(topics.texts, texts(60, 30))
    running.restart().wait_ready()
    answers = check_texts(broker, topics, unanswered=lambda place: place[1] < 5)
    assert set(answers.predictions) == {(p, o) for p in range(6) for o in range(5, 15)}
    running.stop()
    assert sum(broker.committed(topics.group, topics.texts).values()) == 90
    # earliest, in a group of its own: everything, also what stood there before
    topics.group += "-other"
    other = stage(*TINY, "--group", topics.group)
    wait_committed(broker, topics)
    assert answered(broker, topics) == 60 + 90
    other.stop()


def test_the_start_line_names_versions(stage):
    running = stage(*TINY)
    names = re.search(r"engram (\S+) \(librdkafka (\S+), LMDB (\S+), oneDNN (\S+), model tiny-bert\)",
                      running.log().splitlines()[0])
    assert names, running.log()
    told = engram("--version").stdout
    assert all(version in told for version in names.groups())
    running.stop()


def test_a_line_every_ten_seconds_of_work(broker, topics, stage):
    """What it says of what was done, once; and then nothing, for nothing is done, with next to no CPU."""
    running = stage(*TINY)
    broker.produce(topics.labels, [(b"l%d" % i, written(text=f"label {i}")) for i in range(5)])
    broker.produce(topics.instances, [(b"%d" % i, written(text=f"instance {i}", labels=["l1"])) for i in range(20)])
    broker.produce(topics.instances, [(b"3", None), (b"poison", b"{")])
    broker.produce(topics.texts, [*texts(0, 120), Record(b"poison", b"[", partition=0)])
    check_texts(broker, topics)
    pattern = (r"^.* info  ([\d.]+) texts/s, (\d+) tokens/s, lag 0, ([\d.]+) folds/s, (\d+) keys, (\d+) dead letters"
               r"(, label-to-live p50 (\d+) ms p99 (\d+) ms)?$")

    def lines():
        return re.findall(pattern, running.log(), re.MULTILINE)

    done = time.monotonic()  # every line of this work is written some 10 s later
    wait_until(lambda: lines() and time.monotonic() > done + 12, running.log)
    told = replay(broker, topics)
    stats = running.stats()
    assert told.stats()["digest"] == stats["digest"]
    assert 0 < sum(float(line[0]) for line in lines()) < 12.3  # 121 texts in no less than 10 s
    assert 0 < sum(float(line[2]) for line in lines()) < 2.9  # 27 records that fold or forget
    _, tokens, _, keys, dead_letters, _, p50, p99 = lines()[-1]
    assert int(keys) == stats["instances"] + stats["label_keys"] == 19 + 5
    assert (int(dead_letters), int(tokens) > 0) == (2, True)
    assert 0 <= int(p50) <= int(p99)
    said, used = len(running.log().splitlines()), running.cpu_s()
    time.sleep(11)
    assert len(running.log().splitlines()) == said
    assert running.cpu_s() - used < 1.1, "an idle stage uses a tenth of a core or more"
    running.stop()
