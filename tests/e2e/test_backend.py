"""The stage on another backend than the CPU's: the one of tests/backend/apart/, a plug-in whose memory is out of reach and
whose calls run late. What it publishes is what the CPU says of the same memory.
"""

import json
import subprocess

import pytest
from oracle import check_memory, check_texts
from stage import ROOT, TINY, engram

from test_stage_texts import lines, write


@pytest.fixture(scope="session")
def engram_apart():
    """build/engram linked so that it opens that backend in place of the CPU's."""
    binary = ROOT / "build" / "tests" / "engram_apart"
    done = subprocess.run(["make", "-s", "build/tests/engram_apart"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return binary


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
