#!/usr/bin/env python3
"""Embeddings of 512 texts by sentence-transformers running the default model.

Writes embeddings.npz: embeddings [512, 384] float16 (rounding moves a cosine by less than 1e-6), the number of each
text's word pieces, and digests of the texts and of all ids. Run in the environment of requirements.txt, after `make model`:
python tests/golden/make_embeddings.py
"""

import numpy
from golden_texts import HERE, MAX_SEQ_LENGTH, MODEL, embedding_texts, ids_digest, texts_digest
from sentence_transformers import SentenceTransformer


def main():
    model = SentenceTransformer(str(MODEL), device="cpu")
    assert model.max_seq_length == MAX_SEQ_LENGTH
    texts = embedding_texts()
    embeddings = model.encode(texts, batch_size=1, normalize_embeddings=True)
    ids = [model.tokenize([text])["input_ids"][0].tolist() for text in texts]
    counts = numpy.array([len(one) for one in ids], dtype=numpy.int16)
    assert counts.min() == 2 and counts.max() == MAX_SEQ_LENGTH
    print("texts by word pieces, in steps of 32:", numpy.histogram(counts, range(0, 289, 32))[0])
    rounded = embeddings.astype(numpy.float16)
    cosines = (rounded.astype(float) * embeddings).sum(1) / numpy.linalg.norm(rounded.astype(float), axis=1)
    print("smallest cosine after rounding: 1 -", 1 - cosines.min())
    digests = numpy.array([texts_digest(texts), ids_digest(ids)])
    numpy.savez_compressed(HERE / "embeddings.npz", embeddings=rounded, counts=counts, digests=digests)


if __name__ == "__main__":
    main()
