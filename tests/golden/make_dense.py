#!/usr/bin/env python3
"""The tiny BERT with a Dense module after its pooling, as sentence-transformers saves and runs it.

Writes dense/NAME/ (the module's folder) and dense.json: modules.json and the embeddings of a few texts for each. Run in the environment of requirements.txt, after make_tiny_bert.py: python tests/golden/make_dense.py
"""

import json
import shutil
import tempfile
from pathlib import Path

import torch
from golden_texts import HERE
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.models import Dense, Normalize

TEXTS = ["", "the", "a tool for debugging the linux kernel", "ÉDITEUR de texte – 文字 editing…", "a b c d e f " * 20]
MODULES = {  # out_features, bias, dtype of the file, with Normalize
    "narrow": (20, True, torch.float32, True),
    "square": (32, False, torch.float32, True),
    "wide": (48, True, torch.float16, False),
}


def module(out, bias, seed):
    draw = torch.Generator().manual_seed(seed)
    dense = Dense(32, out, bias=bias, activation_function=torch.nn.Identity())
    with torch.no_grad():
        for parameter in dense.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draw) * 0.3)
    return dense


def main():
    shutil.rmtree(HERE / "dense", ignore_errors=True)
    golden = []
    for seed, (name, (out, bias, dtype, normalize)) in enumerate(MODULES.items()):
        base = SentenceTransformer(str(HERE / "tiny-bert"), device="cpu")
        after = [module(out, bias, seed)] + [Normalize()] * normalize
        with tempfile.TemporaryDirectory() as folder:
            SentenceTransformer(modules=[base[0], base[1], *after], device="cpu").save(folder)
            weights = Path(folder) / "2_Dense/model.safetensors"
            save_file({name: tensor.to(dtype) for name, tensor in load_file(weights).items()}, weights)
            weights.chmod(0o644)
            shutil.copytree(weights.parent, HERE / "dense" / name)
            modules = json.loads((Path(folder) / "modules.json").read_text())
            rows = SentenceTransformer(folder, device="cpu").encode(TEXTS, normalize_embeddings=True)
        embeddings = [[round(float(x), 7) for x in row] for row in rows]
        golden.append({"name": name, "modules.json": modules, "texts": TEXTS, "embeddings": embeddings})
    lines = ",\n".join(json.dumps(one, ensure_ascii=False) for one in golden)
    (HERE / "dense.json").write_text("[\n" + lines + "\n]\n")


if __name__ == "__main__":
    main()
