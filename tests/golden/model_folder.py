"""Model folders for the tests: reading and writing safetensors, and a small model that has a large one's vocabulary."""

import json
import shutil
import struct

import numpy
from golden_texts import HERE, MODEL

TINY = HERE / "tiny-bert"


def tensors_read(path):
    """{name: (dtype, shape, bytes)} of a safetensors file."""
    data = path.read_bytes()
    (size,) = struct.unpack_from("<Q", data)
    header, body = json.loads(data[8 : 8 + size]), data[8 + size :]
    return {name: (one["dtype"], one["shape"], body[slice(*one["data_offsets"])])
            for name, one in header.items() if name != "__metadata__"}  # fmt: skip


def tensors_write(path, tensors):
    header, body = {}, b""
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(body), len(body) + len(data)]}
        body += data
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)


def folder_with_vocabulary(folder):
    """The default model's tokenizer and limits before the tiny model's layers: its ids for the time of reading the texts."""
    shutil.copytree(TINY, folder)
    for name in ("vocab.txt", "tokenizer_config.json", "sentence_bert_config.json"):
        shutil.copy(MODEL / name, folder / name)
    config = json.loads((TINY / "config.json").read_text())
    config["vocab_size"] = json.loads((MODEL / "config.json").read_text())["vocab_size"]
    config["max_position_embeddings"] = 512
    (folder / "config.json").write_text(json.dumps(config))
    tensors = tensors_read(TINY / "model.safetensors")
    draw = numpy.random.RandomState(1)
    for name, rows in (("word", config["vocab_size"]), ("position", config["max_position_embeddings"])):
        shape = [rows, config["hidden_size"]]
        values = draw.standard_normal(shape).astype("<f4")
        tensors[f"embeddings.{name}_embeddings.weight"] = ("F32", shape, values.tobytes())
    tensors_write(folder / "model.safetensors", tensors)
    return folder
