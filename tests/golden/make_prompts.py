#!/usr/bin/env python3
"""Embeddings of the tiny BERT with prompts in config_sentence_transformers.json, as sentence-transformers' encode() gives them.

Writes prompts.json: for each such file the embeddings of a few texts. Run in the environment of requirements.txt, after
make_tiny_bert.py: python tests/golden/make_prompts.py
"""

import json
import shutil
import tempfile
from pathlib import Path

from golden_texts import HERE
from sentence_transformers import SentenceTransformer

TEXTS = ["", "brary", "a tool for the linux kernel", " read\n", "x y z " * 20]
PROMPTS = {"query": "python li", "document": "a file: ", "clustering": "debug "}
FILES = {
    "no default": {"prompts": PROMPTS, "default_prompt_name": None},
    "query": {"prompts": PROMPTS, "default_prompt_name": "query"},
    "clustering": {"prompts": PROMPTS, "default_prompt_name": "clustering", "similarity_fn_name": "cosine"},
    "empty": {"prompts": {**PROMPTS, "query": ""}, "default_prompt_name": "query"},
}


def main():
    golden = []
    for content in FILES.values():
        with tempfile.TemporaryDirectory() as name:
            folder = shutil.copytree(HERE / "tiny-bert", Path(name) / "model")
            (folder / "config_sentence_transformers.json").write_text(json.dumps(content))
            model = SentenceTransformer(str(folder), device="cpu")
            embeddings = [[round(float(x), 6) for x in row] for row in model.encode(TEXTS)]
            golden.append({"config_sentence_transformers.json": content, "texts": TEXTS, "embeddings": embeddings})
    (HERE / "prompts.json").write_text("[\n" + ",\n".join(json.dumps(one) for one in golden) + "\n]\n")


if __name__ == "__main__":
    main()
