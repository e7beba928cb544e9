"""The stage on another backend than the CPU's: the one of tests/backend/apart/, a plug-in whose memory is out of reach and
whose calls run late. What it publishes is what the CPU says of the same memory.
"""

import json
import threading

import pytest
from console import Console, free_port
from kafka import wait_until
from oracle import check_memory, check_texts, written
from stage import TINY, built, engram

from test_stage_texts import lines, write


@pytest.fixture(scope="session")
def engram_apart():
    """build/engram linked so that it opens that backend in place of the CPU's."""
    return built("tests", "engram_apart")


def near(mine, other, bound=1e-4):
    """The same labels and scores. Where one list ends, a label whose score is within the bound of the last may be cut."""
    for one, two in ((mine, other), (other, mine)):
        scores = {label["label"]: label["score"] for label in two}
        least = min(scores.values())
        for label in one:
            assert abs(scores.get(label["label"], least) - label["score"]) < bound, (mine, other)


def test_the_stage_on_a_backend_of_its_own_memory(broker, topics, stage, memory, folder, kafka_flags, engram_apart):
    running = stage(*TINY, program=engram_apart)
    running.wait_for("backend apart")
    running.wait_for(r"plain loops, model tiny-bert\); memory .*, apart \(1 x loops\), 1 stream, \d+ threads?, f32$")
    labels, instances = lines("labels.jsonl.gz", 60), lines("train.jsonl.gz", 200)
    texts = [{"id": t["id"], "text": t["text"]} for t in lines("test.jsonl.gz", 100)]
    engram("replay", *kafka_flags, "--labels", write(folder / "labels.jsonl", labels), "--instances",
           write(folder / "instances.jsonl", instances))
    told = check_memory(broker, topics, memory)
    assert len(told.instances) == 200 and len(told.definitions) == 60
    engram("replay", *kafka_flags, "--texts", write(folder / "texts.jsonl", texts))
    answers = check_texts(broker, topics)
    assert len(answers.predictions) == 100 and not answers.letters
    running.stop()

    by_id = {prediction["id"]: prediction for prediction in answers.bodies()}
    said = engram("tag", "--stdin", "--json-lines", *TINY, "--memory", memory, "--compute", "f32",
                  stdin="".join(json.dumps(text) + "\n" for text in texts))
    others = [json.loads(line) for line in said.stdout.splitlines()]
    assert len(others) == len(by_id) == 100
    for other in others:
        mine = by_id[other["id"]]
        assert len(mine["labels"]) == 10 and len(mine["evidence"]) == 5
        near(mine["labels"], other["labels"])
        for field in ("memory_version", "model_version"):
            assert mine[field] == other[field]


def test_both_lanes_wait_for_memory_of_the_device(broker, topics, stage, memory, folder, kafka_flags, engram_apart):
    """A device whose memory is taken for a while: nothing ends, and nothing is lost."""
    full, port = folder / "full", free_port()
    running = stage(*TINY, "--port", port, program=engram_apart, env={"APART_FULL": str(full)})
    console = Console(port)
    running.wait_ready()
    console.wait_ready()
    labels, instances = lines("labels.jsonl.gz", 20), lines("train.jsonl.gz", 200)
    texts = [{"id": t["id"], "text": t["text"]} for t in lines("test.jsonl.gz", 300)]
    engram("replay", *kafka_flags, "--labels", write(folder / "labels.jsonl", labels), "--instances",
           write(folder / "first.jsonl", instances[:100]))
    check_memory(broker, topics, memory)
    engram("replay", *kafka_flags, "--texts", write(folder / "first-texts.jsonl", texts[:100]))
    full.touch()  # while batches are under way
    engram("replay", *kafka_flags, "--texts", write(folder / "more-texts.jsonl", texts[100:]))
    engram("replay", *kafka_flags, "--instances", write(folder / "more.jsonl", instances[100:]))
    for lane in ("tag", "learn"):
        running.wait_for(rf" error the {lane} lane waits, nothing is lost: the device has no room for \d+ bytes more$")
    why = "the learn lane waits: the device has no room for "
    wait_until(lambda: console.ready()[0] == 503 and console.ready()[1].startswith(why), console.ready)
    assert console.metrics()['engram_errors_total{kind="device_memory"}'] == 2
    full.unlink()
    for lane in ("tag", "learn"):
        running.wait_for(f" info  the {lane} lane goes on$")
    answers = check_texts(broker, topics)
    assert len(answers.predictions) == 300 and not answers.letters
    told = check_memory(broker, topics, memory)
    assert len(told.instances) == 200
    console.wait_ready()
    for lane in ("tag", "learn"):
        assert running.log().count(f"the {lane} lane waits") == 1
    running.stop()


def test_no_older_memory_after_a_wait(broker, topics, stage, folder, kafka_flags, engram_apart):
    """One batch has no room and is computed again a second later, while labels come all the time: those that had begun
    after it, with room at once, do not answer from the memory of that time."""
    once, over = folder / "once", threading.Event()
    texts = [{"id": t["id"], "text": t["text"]} for t in lines("test.jsonl.gz", 1000)]
    running = stage(*TINY, "--batch-tokens", "1", program=engram_apart, env={"APART_ONCE": str(once)})
    running.wait_ready()
    engram("replay", *kafka_flags, "--texts", write(folder / "texts.jsonl", texts))

    def learn():
        number = 0
        while not over.wait(0.02):
            number += 1
            broker.produce(topics.instances, [(b"%d" % (number % 50), written(text=f"a tool {number}", labels=["x"]))])

    def waited():
        once.touch()
        return running.log().count("the tag lane goes on") >= 2

    thread = threading.Thread(target=learn)
    thread.start()
    try:
        wait_until(waited, running.log, pause_s=2)
        once.unlink(missing_ok=True)
        answers = check_texts(broker, topics)
    finally:
        over.set()
        thread.join()
    for partition in {place[0] for place in answers.predictions}:
        seen = [answers.one(place) for place in sorted(answers.predictions) if place[0] == partition]
        versions = [one["memory_version"] for one in seen]
        assert versions == sorted(versions) and len(set(versions)) > 2
    running.stop()


def test_a_stop_while_the_device_has_no_memory(topics, stage, folder, kafka_flags, engram_apart, broker):
    """It ends in time and cleanly; the texts are the next one's."""
    full = folder / "full"
    running = stage(*TINY, program=engram_apart, env={"APART_FULL": str(full)})
    running.wait_ready()
    full.touch()
    texts = [{"id": t["id"], "text": t["text"]} for t in lines("test.jsonl.gz", 50)]
    engram("replay", *kafka_flags, "--texts", write(folder / "texts.jsonl", texts))
    running.wait_for("the tag lane waits, nothing is lost: the device has no room")
    running.stop()
    assert "stopped before the last batch was computed, it will be tagged again: the device has no room" in running.log()
    full.unlink()
    running.restart()
    assert len(check_texts(broker, topics).predictions) == 50
    running.stop()
