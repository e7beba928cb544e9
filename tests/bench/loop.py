#!/usr/bin/env python3
"""The loop that a user would write in Python instead of running Engram: confluent-kafka, sentence-transformers and FAISS.

It does what the stage does with its defaults: the same keys (debtags' instances and label texts), the 200 nearest by an exact
search, a softmax with tau 0.1, lambda 0.5, ten labels and five pieces of evidence a text; a batch's predictions are acknowledged
before its offsets are committed. What the stage does besides (learning, limits, dead letters, metrics) it leaves out.

    loop.py MODEL KEYS f32|bf16 --bootstrap ADDRESS --texts TOPIC --predictions TOPIC --group GROUP [--instances N]
KEYS: the file that keeps the encoded keys; made where it is missing. Ends on SIGTERM.
"""

import argparse
import gzip
import json
import os
import pathlib
import signal

import faiss
import numpy as np
import torch
from confluent_kafka import Consumer, Producer
from sentence_transformers import SentenceTransformer

EXAMPLE = pathlib.Path(__file__).resolve().parents[2] / "examples" / "debtags"
MESSAGES, BATCH = 256, 32  # taken at once; encoded at once, the longest first
B, TAU, LAMBDA, LABELS, EVIDENCE = 200, 0.1, 0.5, 10, 5


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("keys", type=pathlib.Path)
    parser.add_argument("dtype", choices=("f32", "bf16"))
    for name in ("bootstrap", "texts", "predictions", "group"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--instances", type=int)
    return parser.parse_args()


def rows(name):
    with gzip.open(EXAMPLE / name, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines if line.strip()]


class Memory:
    """Keys in FAISS, and of each key its name, its labels' numbers and their value."""

    def __init__(self, options, encode):
        instances, labels = rows("train.jsonl.gz")[: options.instances], rows("labels.jsonl.gz")
        if not options.keys.exists():
            np.savez(options.keys, keys=encode([row["text"] for row in instances + labels]))
        keys = np.load(options.keys)["keys"]
        self.index = faiss.IndexFlatIP(keys.shape[1])
        self.index.add(keys)
        self.names = sorted({label for row in instances for label in row["labels"]} | {row["label"] for row in labels})
        number = {name: i for i, name in enumerate(self.names)}
        self.key_names = [row["id"] for row in instances] + [row["label"] for row in labels]
        self.values = [np.array([number[label] for label in row["labels"]], dtype=np.int64) for row in instances]
        self.values += [np.array([number[row["label"]]]) for row in labels]
        self.weights = np.where(np.arange(len(self.values)) < len(instances), LAMBDA, 1 - LAMBDA)

    def predictions(self, embeddings):
        similarities, keys = self.index.search(embeddings, B)
        weights = np.exp((similarities - similarities[:, :1]) / TAU)
        weights /= weights.sum(axis=1, keepdims=True)
        for row, near, weight in zip(similarities, keys, weights):
            labels = [self.values[key] for key in near]
            each = np.repeat(weight * self.weights[near], [len(value) for value in labels])
            scores = np.bincount(np.concatenate(labels), each, minlength=len(self.names))
            best = np.argpartition(-scores, LABELS)[:LABELS]
            best = best[np.argsort(-scores[best])]
            yield {"labels": [{"label": self.names[i], "score": float(scores[i])} for i in best if scores[i] > 0],
                   "evidence": [{"key": self.key_names[key], "similarity": float(s), "weight": float(w)}
                                for key, s, w in zip(near[:EVIDENCE], row, weight)]}


def main():
    options = arguments()
    stop = []
    signal.signal(signal.SIGTERM, lambda *_: stop.append(True))
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[options.dtype]
    model = SentenceTransformer(options.model, device="cpu", model_kwargs={"dtype": dtype})
    model.max_seq_length = 256

    def encode(texts):
        return np.asarray(model.encode(texts, batch_size=BATCH, show_progress_bar=False), dtype=np.float32)

    memory = Memory(options, encode)
    consumer = Consumer({"bootstrap.servers": options.bootstrap, "group.id": options.group, "auto.offset.reset": "earliest",
                         "enable.auto.commit": False})
    producer = Producer({"bootstrap.servers": options.bootstrap, "linger.ms": 5})
    consumer.subscribe([options.texts])
    while not stop:
        messages = [message for message in consumer.consume(MESSAGES, timeout=0.05) if not message.error()]
        if not messages:
            continue
        texts = [json.loads(message.value())["text"] for message in messages]
        for message, prediction in zip(messages, memory.predictions(encode(texts))):
            value = json.dumps({"id": message.key().decode(), **prediction})
            producer.produce(options.predictions, value, key=message.key(), partition=message.partition())
        producer.flush()
        consumer.commit(asynchronous=False)
    consumer.close()


if __name__ == "__main__":
    main()
