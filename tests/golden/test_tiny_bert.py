"""The tiny BERT in the shapes that model folders come in: prefixed names, gamma and beta, float16 and bfloat16, CLS pooling.
Each must give what transformers and sentence-transformers gave (make_tiny_bert.py).
"""

import json
import shutil

import numpy
import pytest
from golden_texts import HERE, encode
from model_folder import TINY, tensors_read, tensors_write

GOLDEN = json.loads((HERE / "tiny-bert-golden.json").read_text())
TEXTS = [one["text"] for one in GOLDEN]


def as_f16(dtype, shape, data):
    return ("F16", shape, numpy.frombuffer(data, "<f4").astype("<f2").tobytes()) if dtype == "F32" else (dtype, shape, data)


def as_bf16(dtype, shape, data):
    """The upper half of a float32, rounded to nearest, ties to even."""
    if dtype != "F32":
        return dtype, shape, data
    bits = numpy.frombuffer(data, "<u4")
    return "BF16", shape, ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype("<u2").tobytes()


def renamed(change):
    return lambda tensors: {change(name): tensor for name, tensor in tensors.items()}


def old_norms(name):
    if "LayerNorm" in name:
        return name.replace(".weight", ".gamma").replace(".bias", ".beta")
    return name


VARIANTS = {
    "as made": (lambda tensors: tensors, "embedding"),
    "bert.": (renamed(lambda name: "bert." + name), "embedding"),
    "0.auto_model.": (renamed(lambda name: "0.auto_model." + name), "embedding"),
    "gamma and beta": (renamed(old_norms), "embedding"),
    "bert. with gamma and beta": (renamed(lambda name: "bert." + old_norms(name)), "embedding"),
    "without pooler": (lambda tensors: {n: t for n, t in tensors.items() if "pooler" not in n and "_ids" not in n}, "embedding"),
    "other order": (lambda tensors: dict(reversed(tensors.items())), "embedding"),
    "f16": (lambda tensors: {name: as_f16(*tensor) for name, tensor in tensors.items()}, "embedding_f16"),
    "bf16": (lambda tensors: {name: as_bf16(*tensor) for name, tensor in tensors.items()}, "embedding_bf16"),
}


@pytest.fixture
def folder(tmp_path):
    return shutil.copytree(TINY, tmp_path / "model")


def check(folder, expected):
    answers = encode(TEXTS, folder)
    assert [answer["tokens"] for answer in answers] == [one["tokens"] for one in GOLDEN]
    assert [answer["truncated"] for answer in answers] == [False] * 7 + [True, True]
    numpy.testing.assert_allclose([answer["embedding"] for answer in answers], expected, atol=2e-6)


@pytest.mark.parametrize("name", VARIANTS)
def test_variant(folder, name):
    change, golden = VARIANTS[name]
    path = folder / "model.safetensors"
    tensors_write(path, change(tensors_read(path)))
    check(folder, [one[golden] for one in GOLDEN])


def test_cls(folder):
    path = folder / "1_Pooling/config.json"
    pooling = json.loads(path.read_text())
    pooling.update(pooling_mode_cls_token=True, pooling_mode_mean_tokens=False)
    path.write_text(json.dumps(pooling))
    first = numpy.array([one["first_state"] for one in GOLDEN])
    check(folder, first / numpy.linalg.norm(first, axis=1, keepdims=True))


def test_limit(folder):
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 8, "do_lower_case": false}')
    tokens = [answer["tokens"] for answer in encode(TEXTS, folder)]
    long = [one["tokens"] for one in GOLDEN]
    assert tokens == [ids if len(ids) <= 8 else ids[:7] + ids[-1:] for ids in long]
