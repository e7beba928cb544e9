#!/usr/bin/env python3
"""Engram beside classifiers that are trained on the same labelled texts: how good are the tags, by label frequency?

    classifier.py [--json FILE]

Two one-vs-rest linear classifiers of scikit-learn. One reads TF-IDF of words, pairs of words and 2 to 5 characters within
a word (LinearSVC: squared hinge loss, labels ranked by their margins). The other reads the embeddings of Engram's own
encoder, from `engram encode` (logistic regressions, trained together as an MLPClassifier without hidden layers). Each one's
C is chosen by nDCG@5: it is trained on a third of the train part and asked about another sixth. Then it is trained on the
whole train part. Engram has the train part and the label texts in its memory, with the setting that `engram tune` chooses,
by nDCG@5 as well. The test part is asked once, at the end. The classifiers are measured by the reference that the tests
compare `engram eval` with.

Prints two tables in Markdown. It trains for most of an hour on 2 cores.
"""

import argparse
import gzip
import json
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Callable, NamedTuple

import numpy as np
from scipy.sparse import hstack
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.multiclass import OneVsRestClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.preprocessing import MultiLabelBinarizer
from sklearn.svm import LinearSVC

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "golden")]
import engine_reference  # noqa: E402
import quality  # noqa: E402

DATA = ROOT / "examples" / "debtags"
BANDS = ((101, 10**9, "more than 100"), (11, 100, "11 to 100"), (1, 10, "1 to 10"))  # instances of a label in the train part


def part_read(name):
    """Texts and label lists."""
    with gzip.open(DATA / name, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    return [row["text"] for row in rows], [row["labels"] for row in rows]


def say(text):
    print(f"classifier: {text}", file=sys.stderr, flush=True)


# ---- the classifiers ----


def tfidf(fit, ask):
    """[texts, terms] of both; terms and their weights come from the first."""
    kinds = [TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, dtype=np.float32),
             TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), min_df=2, sublinear_tf=True, dtype=np.float32)]
    return hstack([k.fit_transform(fit) for k in kinds]).tocsr(), hstack([k.transform(ask) for k in kinds]).tocsr()


def embeddings(fit, ask):
    """[texts, dim] of both."""
    lines = "".join(json.dumps(text) + "\n" for text in [*fit, *ask])
    done = subprocess.run([quality.ENGRAM, "encode", "--stdin", "--json-lines"], input=lines, stdout=subprocess.PIPE,
                          text=True, env=quality.ENVIRONMENT, check=True)
    rows = np.array([json.loads(line)["embedding"] for line in done.stdout.splitlines()], np.float32)
    return rows[: len(fit)], rows[len(fit) :]


def svm(c):
    return OneVsRestClassifier(LinearSVC(C=c, random_state=1))


def logistic(c):
    """alpha is what 1 / C is elsewhere: MLPClassifier divides the penalty by the number of texts, as it does the loss."""
    return MLPClassifier(hidden_layer_sizes=(), solver="lbfgs", alpha=1 / c, max_iter=400, random_state=1)


class Peer(NamedTuple):
    name: str
    features: Callable
    model: Callable  # of C
    cs: tuple


PEERS = (Peer("linear SVM on TF-IDF", tfidf, svm, (0.1, 0.3, 1, 3)),
         Peer("logistic regression on the embeddings", embeddings, logistic, (1, 3, 10, 30)))


def measured(classifier, inputs, labels, gold):
    """Trained on inputs[0] and their labels; the metrics of inputs[1]."""
    names = MultiLabelBinarizer()
    classifier.fit(inputs[0], names.fit_transform(labels))
    score = getattr(classifier, "decision_function", None) or classifier.predict_proba
    scores = score(inputs[1])
    best = np.argsort(-scores, axis=1)[:, :5]  # nothing here looks deeper
    ranked = [[(names.classes_[label], float(row[label])) for label in order] for row, order in zip(scores, best)]
    counts = Counter(label for of_text in labels for label in of_text)
    found = engine_reference.metrics(ranked, [set(g) for g in gold], counts, len(labels), at=(1, 5))
    return {name: found[name] for name in (*quality.METRICS, "labels")}


def chosen(peer, texts, labels):
    """The C of the best nDCG@5 on texts that it was not trained on."""
    order = np.random.default_rng(1).permutation(len(texts))
    fit, ask, _ = np.split(order, [len(texts) // 3, len(texts) // 2])
    inputs = peer.features([texts[i] for i in fit], [texts[i] for i in ask])
    reached = {}
    for c in peer.cs:
        found = measured(peer.model(c), inputs, [labels[i] for i in fit], [labels[i] for i in ask])
        reached[c] = found["nDCG@5"]
        say(f"{peer.name}, C {c:g}, held-out part: " + ", ".join(f"{m} {found[m]:.2f}" for m in quality.METRICS))
    return max(reached, key=reached.get)


def trained(peer, train, test):
    c = chosen(peer, *train)
    return f"{peer.name}, C {c:g}", measured(peer.model(c), peer.features(train[0], test[0]), train[1], test[1])


# ---- Engram ----


def tuned():
    """As `make quality` does it, and with each label's counts."""
    with tempfile.TemporaryDirectory(prefix="engram-classifier-") as folder:
        file, labels = Path(folder) / "engram.conf", Path(folder) / "labels.jsonl"
        file.write_text(f"[memory]\nmemory = {folder}/memory\n", encoding="utf-8")
        quality.load(file, DATA / "labels.jsonl.gz", DATA / "train.jsonl.gz")
        found, _ = quality.tune(file)
        reached = quality.evaluate(file, DATA / "test.jsonl.gz", "--at", "1,5", "--per-label", labels)
        rows = [json.loads(line) for line in labels.read_text(encoding="utf-8").splitlines()]
    shown = {m: reached[m] for m in quality.METRICS} | {"labels": {row["label"]: row for row in rows}}
    return f"Engram, tuned: {quality.setting(found['best'])}", shown


def of_band(labels, least, most):
    """Of the labels with that many instances: their number, how often they are gold, and recall@5."""
    rows = [row for row in labels.values() if least <= row["train"] <= most and row["gold"]]
    gold = sum(row["gold"] for row in rows)
    return len(rows), gold, 100 * sum(row["hits@5"] for row in rows) / gold


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", help="also write the numbers here")
    options = parser.parse_args()
    train, test = part_read("train.jsonl.gz"), part_read("test.jsonl.gz")
    results = dict([tuned(), *(trained(peer, train, test) for peer in PEERS)])

    print(f"| | {' | '.join(quality.METRICS)} |\n|---|{'---:|' * len(quality.METRICS)}")
    for name, result in results.items():
        print(f"| {name} | {' | '.join(f'{result[m]:.2f}' for m in quality.METRICS)} |")
    print("\n| instances of a label | labels | gold in the test part | " + " | ".join(f"{n}: R@5" for n in results)
          + f" |\n|---|{'---:|' * (2 + len(results))}")
    for least, most, name in BANDS:
        bands = [of_band(result["labels"], least, most) for result in results.values()]
        print(f"| {name} | {bands[0][0]} | {bands[0][1]} | " + " | ".join(f"{band[2]:.1f}" for band in bands) + " |")
    if options.json:
        Path(options.json).write_text(json.dumps(results) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
