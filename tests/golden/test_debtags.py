"""The real thing: examples/debtags with the default model, loaded once and evaluated. The numbers were computed
independently (sentence-transformers embeddings, the equations in NumPy).
"""

import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / os.environ.get("BUILD", "build")
DATA = ROOT / "examples/debtags"
METRICS = ("P@1", "P@3", "P@5", "PSP@1", "PSP@3", "PSP@5", "R@10", "R@100", "nDCG@5")
TABLE = {  # (lambda, tau), b = 200
    (0.5, 0.1): (73.63, 57.44, 44.28, 46.37, 57.29, 60.83, 86.97, 98.61, 77.02),
    (0.5, 0.04): (64.49, 56.07, 43.78, 43.98, 58.81, 63.01, 85.70, 98.58, 72.25),
    (0.75, 0.1): (73.59, 57.42, 44.24, 46.25, 57.18, 60.64, 86.93, 98.62, 76.98),
    (0, 0.1): (39.37, 28.74, 21.84, 37.26, 38.27, 38.12, 46.69, 76.93, 36.46),
}
SCORED = {  # (pool, lambda, tau, lexical), b = 200: P@1, P@5, PSP@5, nDCG@5
    ("apart", 0.5, 0.15, 0): (77.07, 44.71, 62.22, 78.95),
    ("apart", 0.5, 0.5, 1): (80.12, 44.88, 61.51, 80.42),
    ("joint", 0.5, 0.3, 1): (75.90, 44.35, 60.27, 78.05),
}


def engram(*arguments):
    done = subprocess.run([BUILD / "engram", *map(str, arguments)], capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def memory():
    folder = Path(tempfile.mkdtemp(prefix="engram-debtags-"))
    try:
        engram("load", "--memory", folder / "memory", "--labels", DATA / "labels.jsonl.gz", "--instances",
               DATA / "train.jsonl.gz")
        yield folder / "memory"
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.parametrize("lam, tau", TABLE)
def test_metrics(memory, lam, tau):
    got = json.loads(engram("eval", "--memory", memory, "--test", DATA / "test.jsonl.gz", "--json", "--lambda", lam,
                            "--tau", tau, "--b", 200))
    assert got["n"] == 5976
    assert [got[name] for name in METRICS] == pytest.approx(TABLE[lam, tau], abs=0.3)


@pytest.mark.parametrize("pool, lam, tau, lexical", SCORED)
def test_metrics_by_pool_and_lexical_score(memory, pool, lam, tau, lexical):
    got = json.loads(engram("eval", "--memory", memory, "--test", DATA / "test.jsonl.gz", "--json", "--pool", pool,
                            "--lambda", lam, "--tau", tau, "--b", 200, "--lexical", lexical))
    want = dict(zip(("P@1", "P@5", "PSP@5", "nDCG@5"), SCORED[pool, lam, tau, lexical]))
    assert {name: got[name] for name in want} == pytest.approx(want, abs=0.3)


def test_memory(memory):
    stats = json.loads(engram("memory", "stats", "--json", "--memory", memory))
    assert (stats["instances"], stats["labels"], stats["label_keys"], stats["dim"]) == (24324, 598, 598, 384)
    engram("memory", "verify", "--memory", memory)
