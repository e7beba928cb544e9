#!/usr/bin/env python3
"""A BERT of 2 layers and 32 dimensions with random weights, as a sentence-transformers folder, for tests that must be quick.

Writes tiny-bert/ and tiny-bert-golden.json: for a few texts the ids, the first and last token's state of transformers'
BertModel, and the embedding of sentence-transformers, also with the weights rounded to float16 and bfloat16. Run in the environment of requirements.txt: python tests/golden/make_tiny_bert.py
"""

import copy
import json
import pathlib
import shutil

import numpy
import torch
from safetensors.numpy import save_file
from sentence_transformers import SentenceTransformer
from transformers import BertModel

HERE = pathlib.Path(__file__).resolve().parent
FOLDER = HERE / "tiny-bert"
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
WORDS = """the of and to in is for with on a tool library file files data text web server client image music game editor
python java linux kernel network security package debian gnome desktop window manager font driver print read
write search play build test debug""".split()
INNER = "s ed er ing ly able less ness tion al ize".split()
OTHER = list("!\"#$%&'()*+,-./:;<=>?@[\\]^_{|}~") + ["é", "ß", "я", "##я", "文", "字", "…", "–", "α", "##α", "ς", "##ς", "σ", "##σ"]
HIDDEN, LAYERS, HEADS, INTERMEDIATE, POSITIONS = 32, 2, 4, 64, 64

CONFIG = {
    "architectures": ["BertModel"],
    "attention_probs_dropout_prob": 0.1,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "hidden_size": HIDDEN,
    "initializer_range": 0.02,
    "intermediate_size": INTERMEDIATE,
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": POSITIONS,
    "model_type": "bert",
    "num_attention_heads": HEADS,
    "num_hidden_layers": LAYERS,
    "pad_token_id": 0,
    "position_embedding_type": "absolute",
    "type_vocab_size": 2,
}
MODULES = [
    {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
    {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    {"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"},
]
POOLING = {
    "word_embedding_dimension": HIDDEN,
    "pooling_mode_cls_token": False,
    "pooling_mode_mean_tokens": True,
    "pooling_mode_max_tokens": False,
    "pooling_mode_mean_sqrt_len_tokens": False,
}
TOKENIZER = {
    "do_lower_case": True,
    "unk_token": "[UNK]",
    "sep_token": "[SEP]",
    "pad_token": "[PAD]",
    "cls_token": "[CLS]",
    "mask_token": "[MASK]",
    "tokenize_chinese_chars": True,
    "strip_accents": None,
    "tokenizer_class": "BertTokenizer",
    "model_max_length": 64,
}
TEXTS = [
    "",
    "the",
    "a tool for debugging the linux kernel",
    "Python library to read and write image files",
    "ÉDITEUR de texte – 文字 editing…",
    "unknown ☃ snowman [MASK] and [SEP] spelt",
    "x" * 101,
    "b" * 100,
    "a b c d e f g h i j k l m n o p q r s t u v w x y z " * 3,
]


def vocabulary():
    pieces = SPECIAL + list(LETTERS) + ["##" + c for c in LETTERS] + WORDS + ["##" + p for p in INNER] + OTHER
    return list(dict.fromkeys(pieces))


def tensors(vocab_size):
    """Larger than BERT's own initial weights, so that attention is far from uniform and errors show."""
    draw = numpy.random.RandomState(20260917)
    out = {}

    def matrix(name, *shape, scale=0.3):
        out[name] = (draw.standard_normal(shape) * scale).astype(numpy.float32)

    def norm(name):
        out[name + ".weight"] = (1 + 0.2 * draw.standard_normal(HIDDEN)).astype(numpy.float32)
        matrix(name + ".bias", HIDDEN, scale=0.1)

    def linear(name, inputs, outputs):
        matrix(name + ".weight", outputs, inputs)
        matrix(name + ".bias", outputs, scale=0.1)

    matrix("embeddings.word_embeddings.weight", vocab_size, HIDDEN, scale=1)
    matrix("embeddings.position_embeddings.weight", POSITIONS, HIDDEN)
    matrix("embeddings.token_type_embeddings.weight", 2, HIDDEN)
    norm("embeddings.LayerNorm")
    for i in range(LAYERS):
        layer = f"encoder.layer.{i}"
        for name in ("query", "key", "value"):
            linear(f"{layer}.attention.self.{name}", HIDDEN, HIDDEN)
        linear(f"{layer}.attention.output.dense", HIDDEN, HIDDEN)
        norm(f"{layer}.attention.output.LayerNorm")
        linear(f"{layer}.intermediate.dense", HIDDEN, INTERMEDIATE)
        linear(f"{layer}.output.dense", INTERMEDIATE, HIDDEN)
        norm(f"{layer}.output.LayerNorm")
    linear("pooler.dense", HIDDEN, HIDDEN)  # stored by many folders, used by none of ours
    out["embeddings.position_ids"] = numpy.arange(POSITIONS, dtype=numpy.int64)[None]
    return out


def write_json(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2) + "\n")


def write_folder():
    shutil.rmtree(FOLDER, ignore_errors=True)
    pieces = vocabulary()
    write_json(FOLDER / "config.json", {**CONFIG, "vocab_size": len(pieces)})
    write_json(FOLDER / "modules.json", MODULES)
    write_json(FOLDER / "1_Pooling/config.json", POOLING)
    write_json(FOLDER / "tokenizer_config.json", TOKENIZER)
    write_json(FOLDER / "sentence_bert_config.json", {"max_seq_length": 48, "do_lower_case": False})
    (FOLDER / "vocab.txt").write_bytes("".join(p + "\n" for p in pieces).encode())
    save_file(tensors(len(pieces)), FOLDER / "model.safetensors", metadata={"format": "pt"})
    (FOLDER / "model.safetensors").chmod(0o644)


def rounded(model, dtype):
    """The same model computing in float32 with weights that went through dtype."""
    return copy.deepcopy(model).to(dtype).to(torch.float32)


def floats(tensor, digits=7):
    return [round(float(x), digits) for x in tensor]


def write_golden():
    model = SentenceTransformer(str(FOLDER), device="cpu")
    bert = BertModel.from_pretrained(FOLDER, attn_implementation="eager").eval()
    half, brain = rounded(model, torch.float16), rounded(model, torch.bfloat16)
    golden = []
    with torch.no_grad():
        for text in TEXTS:
            ids = model.tokenize([text])["input_ids"][0].tolist()
            states = bert(input_ids=torch.tensor([ids])).last_hidden_state[0]
            golden.append({
                "text": text,
                "tokens": ids,
                "first_state": floats(states[0], 6),
                "last_state": floats(states[-1], 6),
                "embedding": floats(model.encode([text])[0]),
                "embedding_f16": floats(half.encode([text])[0]),
                "embedding_bf16": floats(brain.encode([text])[0]),
            })
    lines = ",\n".join(json.dumps(g, ensure_ascii=False) for g in golden)
    (HERE / "tiny-bert-golden.json").write_text("[\n" + lines + "\n]\n")


if __name__ == "__main__":
    write_folder()
    write_golden()
