"""Model folders as the program reads them: what transformers 5 saves, tokens added to the default model, prompts as
sentence-transformers applies them, and weights that are not finite in each stored type.
"""

import gzip
import json
import shutil
import subprocess

import numpy
import pytest
from golden_texts import BUILD, HERE, MODEL, encode
from model_folder import TINY, folder_with_vocabulary, tensors_read, tensors_write
from test_tiny_bert import as_bf16, as_f16

ENT = {"content": "<ent>", "single_word": False, "lstrip": False, "rstrip": False, "normalized": True, "special": False}
SPECIALS = {"[PAD]": 0, "[UNK]": 100, "[CLS]": 101, "[SEP]": 102, "[MASK]": 103}


def edit(path, change):
    value = json.loads(path.read_text()) if path.exists() else {}
    change(value)
    path.write_text(json.dumps(value))


def more_rows(folder, rows):
    """Word embeddings for that many ids."""
    edit(folder / "config.json", lambda config: config.update(vocab_size=rows))
    tensors = tensors_read(folder / "model.safetensors")
    dtype, shape, data = tensors["embeddings.word_embeddings.weight"]
    data += data[: (rows - shape[0]) * shape[1] * 4]
    tensors["embeddings.word_embeddings.weight"] = (dtype, [rows, shape[1]], data)
    tensors_write(folder / "model.safetensors", tensors)


def by_tokenizer_json(folder):
    shutil.copy(MODEL / "tokenizer.json", folder)
    edit(folder / "tokenizer.json", lambda saved: saved["added_tokens"].append({"id": 30522, **ENT}))


def by_decoder(folder):
    special = {**ENT, "normalized": False, "special": True}
    decoder = {str(i): {**special, "content": content} for content, i in SPECIALS.items()} | {"30522": ENT}
    edit(folder / "tokenizer_config.json", lambda config: config.update(added_tokens_decoder=decoder))


def by_added_file(folder):
    edit(folder / "added_tokens.json", lambda added: added.update({"<ent>": 30522}))


def by_json_alone(folder):
    by_tokenizer_json(folder)
    (folder / "vocab.txt").unlink()


@pytest.mark.parametrize("add", [by_tokenizer_json, by_decoder, by_added_file, by_json_alone])
def test_added_token(tmp_path, add):
    """The token has a row of its own, not those of `<`, `en` and so on."""
    folder = folder_with_vocabulary(tmp_path / "model")
    add(folder)
    refused(folder, "<ent> has the id 30522, but the model has word embeddings for 0 to 30521")
    more_rows(folder, 30523)
    answers = encode(["<ent> cats", "<ENT>cats[MASK]"], folder)
    assert [one["tokens"] for one in answers] == [[101, 30522, 8870, 102], [101, 30522, 8870, 103, 102]]


def test_transformers_5(tmp_path):
    """Neither vocab.txt nor special_tokens_map.json: made and saved by transformers 5 (make_added_tokens.py)."""
    with gzip.open(HERE / "added-tokens.jsonl.gz", "rt") as lines:
        for number, line in zip(range(3), lines):
            golden = json.loads(line)
            folder = shutil.copytree(TINY, tmp_path / str(number))
            (folder / "vocab.txt").unlink()
            for name, content in golden["files"].items():
                (folder / name).write_text(json.dumps(content))
            more_rows(folder, 300)
            texts, ids = zip(*golden["cases"])
            assert [one["tokens"] for one in encode(texts, folder)] == list(ids)


def test_text_in_lower_case(tmp_path):
    """sentence_bert_config.json of BGE: the text, prompt and special tokens included, is what str.lower() makes of it."""
    folder = folder_with_vocabulary(tmp_path / "model")
    prompt = "QUERY [SEP] "
    names = {"default_prompt_name": "q", "prompts": {"q": prompt}}
    texts = ["Cats [MASK]", "\u039f\u0394\u039f\u03a3 \u03a3\u039f\u03a3", "\u0130stanbul", ""]
    for lower_case in (True, False):  # an uncased tokenizer, and one that would have kept the capitals
        edit(folder / "tokenizer_config.json", lambda config: config.update(do_lower_case=lower_case))
        expected = [one["tokens"] for one in encode([(prompt + text).lower() for text in texts], folder)]
        flagged = shutil.copytree(folder, tmp_path / f"flagged-{lower_case}")
        edit(flagged / "sentence_bert_config.json", lambda config: config.update(do_lower_case=True))
        edit(flagged / "config_sentence_transformers.json", lambda config: config.update(names))
        assert [one["tokens"] for one in encode(texts, flagged)] == expected


@pytest.mark.parametrize("golden", json.loads((HERE / "prompts.json").read_text()))
def test_prompts(tmp_path, golden):
    folder = shutil.copytree(TINY, tmp_path / "model")
    name = "config_sentence_transformers.json"
    (folder / name).write_text(json.dumps(golden[name]))
    embeddings = [one["embedding"] for one in encode(golden["texts"], folder)]
    numpy.testing.assert_allclose(embeddings, golden["embeddings"], atol=3e-6)


DENSE = json.loads((HERE / "dense.json").read_text())


def folder_with_dense(folder, golden):
    shutil.copytree(TINY, folder)
    (folder / "modules.json").write_text(json.dumps(golden["modules.json"]))
    shutil.copytree(HERE / "dense" / golden["name"], folder / "2_Dense")
    return folder


@pytest.mark.parametrize("golden", DENSE, ids=lambda golden: golden["name"])
def test_dense(tmp_path, golden):
    """A Dense between pooling and normalisation, narrower, as wide, and wider than the transformer (make_dense.py)."""
    folder = folder_with_dense(tmp_path / "model", golden)
    embeddings = [one["embedding"] for one in encode(golden["texts"], folder)]
    numpy.testing.assert_allclose(embeddings, golden["embeddings"], rtol=0, atol=2e-6)


def test_dense_that_is_none(tmp_path):
    folder = folder_with_dense(tmp_path / "model", DENSE[0])
    edit(folder / "2_Dense/config.json", lambda config: config.update(activation_function="torch.nn.modules.activation.Tanh"))
    refused(folder, "2_Dense/config.json: activation_function is torch.nn.modules.activation.Tanh")


def engram(*arguments, status=0):
    done = subprocess.run([BUILD / "engram", *arguments], capture_output=True, timeout=60)
    assert done.returncode == status, done.stderr.decode()
    return done


@pytest.mark.parametrize("golden", DENSE, ids=lambda golden: golden["name"])
def test_memory_of_a_model_with_dense(tmp_path, golden):
    """The memory has the Dense's width, finds by its vectors, and is not that of the model without it."""
    folder = folder_with_dense(tmp_path / "model", golden)
    texts, vectors = golden["texts"], numpy.array(golden["embeddings"])
    records = [{"id": f"i{i}", "text": text, "labels": [f"l{i}"]} for i, text in enumerate(texts)]
    (tmp_path / "instances.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    memory = ["--memory", tmp_path / "memory", "--key-dtype", "f32", "--compute", "f32"]
    engram("load", "--instances", tmp_path / "instances.jsonl", "--model", folder, *memory)
    stats = json.loads(engram("memory", "stats", "--json", *memory).stdout)
    assert (stats["dim"], stats["instances"]) == (vectors.shape[1], len(texts))
    for text, vector in zip(texts, vectors):
        done = engram("tag", "--lambda", "1", "--evidence-max", "5", "--model", folder, *memory, "--", text)
        similarities = {one["id"]: one["similarity"] for one in json.loads(done.stdout)["evidence"]}
        assert len(similarities) == len(texts)
        for i, expected in enumerate(vectors @ vector):
            assert similarities[f"i{i}"] == pytest.approx(expected, abs=1e-5)
    assert b"made by another encoder" in engram("tag", "--model", TINY, *memory, "--", "a", status=1).stderr


def refused(folder, line):
    done = subprocess.run([BUILD / "engram", "encode", "--stdin", "--model", folder], input=b"a\n", capture_output=True, timeout=60)
    assert done.returncode == 1 and done.stdout == b""
    assert line in done.stderr.decode() and done.stderr.count(b"\n") == 1


@pytest.mark.parametrize("stored", [lambda *tensor: tensor, as_f16, as_bf16])
@pytest.mark.parametrize("value, word", [(numpy.nan, "NaN"), (-numpy.inf, "infinite")])
def test_weights_that_are_not_finite(tmp_path, stored, value, word):
    folder = shutil.copytree(TINY, tmp_path / "model")
    tensors = tensors_read(folder / "model.safetensors")
    name = "encoder.layer.0.output.dense.weight"
    dtype, shape, data = tensors[name]
    numbers = numpy.frombuffer(data, "<f4").reshape(shape).copy()
    numbers[3, 17] = value
    tensors[name] = (dtype, shape, numbers.tobytes())
    tensors_write(folder / "model.safetensors", {one: stored(*tensor) for one, tensor in tensors.items()})
    refused(folder, f"{name} [3, 17] is {word}")
