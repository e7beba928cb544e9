"""Our embeddings are those of sentence-transformers, whatever texts share the batch: each text is encoded twice, shuffled
among different others.
"""

import functools

import numpy
import pytest
from golden_texts import HERE, Draw, embedding_texts, encode, ids_digest, texts_digest, texts_of

GOLDEN = numpy.load(HERE / "embeddings.npz")
TEXTS = embedding_texts()


@functools.cache
def shuffled(seed, compute="f32"):
    """The golden texts among as many titles, in an order of its own; returns the answers in the golden order."""
    draw = Draw(seed)
    titles = texts_of("train.jsonl.gz")
    mixed = draw.shuffled(list(range(len(TEXTS))) + [draw.one(titles) for _ in TEXTS])
    answers = encode([TEXTS[item] if isinstance(item, int) else item for item in mixed], compute=compute)
    golden = {item: answer for item, answer in zip(mixed, answers) if isinstance(item, int)}
    return [golden[i] for i in range(len(TEXTS))]


def test_enough():
    assert len(TEXTS) >= 500 and texts_digest(TEXTS) == GOLDEN["digests"][0], "run make_embeddings.py"


@pytest.mark.parametrize("seed", [1, 2])
def test_cosine(seed):
    answers = shuffled(seed)
    assert [len(answer["tokens"]) for answer in answers] == GOLDEN["counts"].tolist()
    assert ids_digest([answer["tokens"] for answer in answers]) == GOLDEN["digests"][1]
    ours = numpy.array([answer["embedding"] for answer in answers], dtype=float)
    assert ours.shape == GOLDEN["embeddings"].shape
    numpy.testing.assert_allclose(numpy.linalg.norm(ours, axis=1), 1, atol=1e-5)
    theirs = GOLDEN["embeddings"].astype(float)
    cosines = (ours * theirs).sum(1) / numpy.linalg.norm(theirs, axis=1)
    worst = int(cosines.argmin())
    assert cosines[worst] >= 0.9999, f"cosine {cosines[worst]:.6f} for {ascii(TEXTS[worst][:200])}"


def test_bf16():
    """The same encoder with 8 bits of each number: on every CPU, by conversion where it multiplies no bf16."""
    ours, exact = (numpy.array([answer["embedding"] for answer in shuffled(1, compute)], dtype=float)
                   for compute in ("bf16", "f32"))  # fmt: skip
    numpy.testing.assert_allclose(numpy.linalg.norm(ours, axis=1), 1, atol=1e-5)
    cosines = (ours * exact).sum(1)
    worst = int(cosines.argmin())
    assert cosines[worst] >= 0.9995, f"cosine {cosines[worst]:.6f} for {ascii(TEXTS[worst][:200])}"
    assert cosines[worst] < 0.9999999, "this was f32"
