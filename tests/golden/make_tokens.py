#!/usr/bin/env python3
"""Word-piece ids by Hugging Face `tokenizers` running the default model's tokenizer.json, cut at max_seq_length.

Writes tokens.json (a digest for every 100 texts) and tokens-torture.json.gz (the torture list's ids in full). Run in the
environment of requirements.txt, after `make model`: python tests/golden/make_tokens.py
"""

import gzip
import json

from golden_texts import HERE, MAX_SEQ_LENGTH, MODEL, ids_digest, texts_digest, token_texts
from tokenizers import Tokenizer

CHUNK = 100


def main():
    limit = json.loads((MODEL / "sentence_bert_config.json").read_text())["max_seq_length"]
    assert limit == MAX_SEQ_LENGTH
    tokenizer = Tokenizer.from_file(str(MODEL / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(limit)  # the file itself says 128, which sentence-transformers overrides
    golden = {"chunk": CHUNK, "sets": {}}
    for name, texts in token_texts().items():
        ids = [encoding.ids for encoding in tokenizer.encode_batch(texts)]
        digests = [ids_digest(ids[at : at + CHUNK]) for at in range(0, len(ids), CHUNK)]
        golden["sets"][name] = {"texts": len(texts), "texts_digest": texts_digest(texts), "digests": digests}
    (HERE / "tokens.json").write_text(json.dumps(golden, indent=1) + "\n")
    with gzip.GzipFile(HERE / "tokens-torture.json.gz", "wb", mtime=0) as out:
        out.write(json.dumps(ids, separators=(",", ":")).encode())  # of the last set
    print({name: one["texts"] for name, one in golden["sets"].items()})


if __name__ == "__main__":
    main()
