"""The stage with the CUDA plug-in, on emulated GPUs (tests/cuda/): on one, on four that share the keys, and as four
processes that share them. It publishes what the CPU says of the same memory.
"""

import json
import subprocess

import pytest
from console import free_port
from kafka import wait_until
from oracle import check_memory, check_texts
from stage import ROOT, TINY, built, engram

from test_backend import near
from test_stage_texts import lines, write

CUDA = r"Emulated GPU, driver \d+\.\d+"


@pytest.fixture(scope="session")
def engram_cuda():
    """build/engram beside the plug-in that is compiled for the CPU."""
    return built("emulated", "engram")


def texts_of(count):
    return [{"id": t["id"], "text": t["text"]} for t in lines("test.jsonl.gz", count)]


def teach(broker, topics, memory, folder, kafka_flags, instances=200):
    engram("replay", *kafka_flags, "--labels", write(folder / "labels.jsonl", lines("labels.jsonl.gz", 60)), "--instances",
           write(folder / "instances.jsonl", lines("train.jsonl.gz", instances)))
    return check_memory(broker, topics, memory)


def ask(broker, topics, folder, kafka_flags, texts):
    """What all texts so far were answered, these among them."""
    engram("replay", *kafka_flags, "--texts", write(folder / "texts.jsonl", texts))
    return check_texts(broker, topics)


def as_the_cpu(answers, texts, memory, *flags, bound):
    said = engram("tag", "--stdin", "--json-lines", *TINY, "--device", "cpu", "--compute", "f32", "--memory", memory, *flags,
                  stdin="".join(json.dumps(text) + "\n" for text in texts))
    by_id = {prediction["id"]: prediction for prediction in answers.bodies()}
    others = [json.loads(line) for line in said.stdout.splitlines()]
    assert len(others) == len(by_id) == len(texts)
    for other in others:
        mine = by_id[other["id"]]
        assert len(mine["labels"]) == 10 and len(mine["evidence"]) == 5
        near(mine["labels"], other["labels"], bound)
        for field in ("memory_version", "model_version"):
            assert mine[field] == other[field]


def test_the_stage_on_a_gpu(broker, topics, stage, memory, folder, kafka_flags, engram_cuda):
    """In bf16, as it comes; and what is learned while texts come is in the next answer."""
    running = stage(*TINY, "--device", "cuda", program=engram_cuda)
    running.wait_for(rf", cuda \({CUDA}\), 2 streams, \d+ threads?, bf16$")
    teach(broker, topics, memory, folder, kafka_flags)
    texts = texts_of(60)
    answers = ask(broker, topics, folder, kafka_flags, texts)
    assert len(answers.predictions) == 60 and not answers.letters
    as_the_cpu(answers, texts, memory, bound=0.02)

    text = "a text about nothing that was there before"
    engram("teach", *kafka_flags, "--id", "new", "--label", "brand-new", text)
    check_memory(broker, topics, memory)
    answers = ask(broker, topics, folder, kafka_flags, [{"id": "asks", "text": text}])
    answer = next(one for one in answers.bodies() if one["id"] == "asks")
    nearest = answer["evidence"][0]
    assert (nearest["kind"], nearest["id"], nearest["labels"]) == ("instance", "new", ["brand-new"])
    running.stop()


def test_four_gpus_share_the_keys(broker, topics, stage, memory, folder, kafka_flags, engram_cuda):
    running = stage(*TINY, "--devices", "0,1,2,3", "--compute", "f32", "--key-dtype", "f32", program=engram_cuda,
                    env={"EMULATED_DEVICES": "4"})
    running.wait_for(rf", cuda \(4 x {CUDA}\), 8 streams, \d+ threads?, f32$")
    teach(broker, topics, memory, folder, kafka_flags)
    texts = texts_of(60)
    answers = ask(broker, topics, folder, kafka_flags, texts)
    assert len(answers.predictions) == 60 and not answers.letters
    as_the_cpu(answers, texts, memory, bound=1e-4)
    running.stop()


RANKS = 4


def ranks_start(stage, folder, engram_cuda):
    port = free_port()
    return [stage(*TINY, "--device", "cuda", "--compute", "f32", "--key-dtype", "f32", memory=folder / f"memory{rank}",
                  program=engram_cuda, ready=False,
                  env={"EMULATED_DEVICES": str(RANKS), "WORLD_SIZE": str(RANKS), "RANK": str(rank), "LOCAL_RANK": str(rank),
                       "MASTER_PORT": str(port)}) for rank in range(RANKS)]


def test_processes_share_the_keys(broker, topics, stage, folder, kafka_flags, engram_cuda):
    """Each has a memory of its own and a quarter of the keys on its GPU. One is killed: the others end with a line that
    says so, and all texts are answered once they have started again."""
    ranks = ranks_start(stage, folder, engram_cuda)
    for rank, running in enumerate(ranks):
        running.wait_for(rf"rank {rank} of {RANKS}: all are there, and this process has a part of the keys$")
        running.wait_ready()
    teach(broker, topics, folder / "memory0", folder, kafka_flags)
    for rank in range(1, RANKS):
        check_memory(broker, topics, folder / f"memory{rank}")
    texts = texts_of(80)
    answers = ask(broker, topics, folder, kafka_flags, texts[:40])
    assert len(answers.predictions) == 40 and not answers.letters
    as_the_cpu(answers, texts[:40], folder / "memory0", "--key-dtype", "f32", bound=1e-4)

    ranks[2].kill()
    engram("replay", *kafka_flags, "--texts", write(folder / "more.jsonl", texts[40:]))
    line = f"rank 2 of {RANKS}, which has a part of the keys, is gone: start all ranks again"
    for running in ranks[:2] + ranks[3:]:
        wait_until(lambda running=running: line in running.log() or not running.running, running.log)
    engram("teach", *kafka_flags, "--id", "x", "--label", "y", "who has no texts hears of it when it learns")
    for running in ranks[:2] + ranks[3:]:
        assert running.wait() == 1
        assert running.log().count(line) == 1, running.log()
    for running in ranks_start(stage, folder, engram_cuda):
        running.wait_ready()
    answers = check_texts(broker, topics)
    assert len({one["id"] for one in answers.bodies()}) == 80 and not answers.letters


def test_the_real_model(engram_cuda):
    """The default model's vectors, of texts of 3 to 256 tokens."""
    texts = "".join(f"{text}\n" for text in ("", "an embedded database", "tools to edit images " * 20, "x " * 300))

    def vectors(device, compute):
        done = subprocess.run([engram_cuda, "encode", "--stdin", "--device", device, "--compute", compute, "--model",
                               ROOT / "build" / "models" / "all-MiniLM-L6-v2"], input=texts, capture_output=True, text=True,
                              check=True)
        return [json.loads(line)["embedding"] for line in done.stdout.splitlines()]

    for mine, half, wanted in zip(vectors("cuda", "f32"), vectors("cuda", "bf16"), vectors("cpu", "f32"), strict=True):
        assert max(abs(a - b) for a, b in zip(mine, wanted, strict=True)) < 1e-5
        assert sum(a * b for a, b in zip(half, wanted, strict=True)) > 0.999


def test_the_benchmark_for_gpus_runs():
    """On an emulated GPU, at sizes for that: all its tables, and a number in every place."""
    done = subprocess.run([built("emulated", "gpu_bench"), "--tiny"], capture_output=True, text=True, check=True)
    rows = [line for line in done.stdout.splitlines() if line.startswith("| ") and line[-3:] == "% |"]
    assert [row.split(" | ")[0] for row in rows] == ["| S, about 20 tokens a text", "| L, about 103 tokens a text",
                                                     "| 1024", "| 1024", "| 2048", "| 2048"]
    assert "nan" not in done.stdout and "inf" not in done.stdout
