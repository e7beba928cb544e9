"""Our word pieces are those of Hugging Face `tokenizers`, id by id, on the example set, long texts and a torture list."""

import gzip
import json

import pytest
from golden_texts import HERE, encode, ids_digest, texts_digest, token_texts
from model_folder import folder_with_vocabulary

GOLDEN = json.loads((HERE / "tokens.json").read_text())
TEXTS = token_texts()


@pytest.fixture(scope="module")
def ours(tmp_path_factory):
    """All sets in one run of the program: {set: [ids of each text]}. The layers behind the vocabulary are small, since only
    the ids are compared here; test_embeddings.py compares both with the whole model.
    """
    folder = folder_with_vocabulary(tmp_path_factory.mktemp("tokens") / "model")
    answers = iter(encode([text for texts in TEXTS.values() for text in texts], folder))
    return {name: [next(answers)["tokens"] for _ in texts] for name, texts in TEXTS.items()}


def test_enough():
    assert sum(len(texts) for texts in TEXTS.values()) >= 20000


@pytest.mark.parametrize("name", GOLDEN["sets"])
def test_equal(ours, name):
    golden, chunk, texts = GOLDEN["sets"][name], GOLDEN["chunk"], TEXTS[name]
    assert texts_digest(texts) == golden["texts_digest"], "the texts changed: run make_tokens.py"
    ids = ours[name]
    digests = [ids_digest(ids[at : at + chunk]) for at in range(0, len(ids), chunk)]
    wrong = [i * chunk for i, (a, b) in enumerate(zip(digests, golden["digests"])) if a != b]
    assert len(digests) == len(golden["digests"])
    assert not wrong, f"ids differ in the {chunk} texts from each of {wrong}"


def test_torture(ours):
    with gzip.open(HERE / "tokens-torture.json.gz") as golden:
        expected = json.load(golden)
    assert len(expected) == len(ours["torture"])
    for text, got, want in zip(TEXTS["torture"], ours["torture"], expected):
        assert got == want, ascii(text[:200])
