"""The equations of the engine in NumPy, written from the papers and not from the C: prediction as in arXiv 2502.10615,
the metrics from their papers and definitions.
"""

from collections import Counter
from typing import NamedTuple

import numpy as np


def bf16(x):
    """x rounded to bfloat16 (nearest, ties to even), as float32."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32).astype(np.uint64)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
    return rounded.astype(np.uint32).view(np.float32)


# ---- the lexical score ----------------------------------------------------------------------------------------------


def terms(pieces):
    """How often each word piece and each pair of neighbours stands in a text."""
    return Counter([*pieces, *zip(pieces, pieces[1:])])


def lexical_cosines(query, keys):
    """cos(t(q), t(k)) of every key [n], t being TF-IDF over word pieces and their pairs; 0 where one of them is empty.

    query: word pieces without [CLS] and [SEP]; keys: those of every key of the memory, whatever its labels.
    """
    n, df = len(keys), Counter(term for pieces in keys for term in set(terms(pieces)))

    def vector(pieces):
        weights = {term: (1 + np.log(tf)) * (np.log((1 + n) / (1 + df[term])) + 1)
                   for term, tf in terms(pieces).items() if df[term]}
        norm = np.sqrt(sum(weight**2 for weight in weights.values()))
        return {term: weight / norm for term, weight in weights.items()}

    of_query, of_keys = vector(query), [vector(pieces) for pieces in keys]
    return np.array([sum(weight * of_key.get(term, 0) for term, weight in of_query.items()) for of_key in of_keys])


def bm25(query, keys, k1=1.2, b=0.75):
    """s(q, k) / s(q, q) of every key [n], s being BM25 over word pieces and their pairs, with Lucene's idf and lengths in
    word pieces; 0 where no term of the text is in a key. Arguments as lexical_cosines."""
    n, df = len(keys), Counter(term for pieces in keys for term in set(terms(pieces)))
    mean = sum(map(len, keys)) / n

    def score(pieces):
        tf, length = terms(pieces), len(pieces)
        return sum(np.log(1 + (n - df[term] + 0.5) / (df[term] + 0.5)) * tf[term] * (k1 + 1) /
                   (tf[term] + k1 * (1 - b + b * length / mean)) for term in terms(query) if df[term] and term in tf)

    itself = score(query)
    return np.array([score(pieces) / itself if itself else 0 for pieces in keys])


LEXICAL = {"cosine": lexical_cosines, "bm25": bm25}


# ---- prediction -----------------------------------------------------------------------------------------------------


class Words(NamedTuple):
    """What ranks keys beside the similarity: a * scores [n], for the best of each kind by similarity."""

    a: float
    scores: np.ndarray
    candidates: int


def best(indices, scores, count):
    """The count best in falling order, and how far the last one stands from the next: below float's precision the choice
    is anybody's."""
    order = sorted(indices, key=lambda i: -scores[i])
    gap = scores[order[count - 1]] - scores[order[count]] if len(order) > count else 1.0
    return order[:count], gap


def retrieve(q, keys, values, lam, b, pool, words):
    """[[(index, similarity, lexical)], falling in the sum of both]: of one search over all kinds (joint), or of one for
    each (apart, arXiv 2511.13189); and the smallest gap of those that cut."""
    similarity = keys.astype(np.float64) @ q.astype(np.float64)
    lexical = words.a * words.scores if words else np.zeros(len(keys))
    factor = {"instance": lam, "label": 1 - lam}
    kinds, gaps = [], []
    for kind in factor:
        candidates = [i for i, (k, labels) in enumerate(values) if k == kind and labels and factor[kind] > 0]
        if words:
            candidates, gap = best(candidates, similarity, words.candidates)
            gaps.append(gap)
        kinds.append(candidates)
    searches = []
    for candidates in [kinds[0] + kinds[1]] if pool == "joint" else kinds:
        top, gap = best(candidates, similarity + lexical, b if pool == "joint" else max(1, b // 2))
        gaps.append(gap)
        searches.append([(i, similarity[i], lexical[i]) for i in top])
    return [found for found in searches if found], min(gaps)


def predict(q, keys, values, lam, tau, b, pool="joint", words=None, power=0):
    """p [labels], of each retrieved key (index, similarity, lexical, weight, what it gave), and the gap of retrieve.

    q [d]; keys [n, d]; values: of each key ("instance" | "label", [label numbers]); words: Words, or None; power: label
    keys are weighted by (1 + count)^-power, count being how many instances have the label.
    """
    factor = {"instance": lam, "label": 1 - lam}
    counts = Counter(label for kind, labels in values if kind == "instance" for label in labels)
    p, hits = {}, []
    searches, gap = retrieve(q, keys, values, lam, b, pool, words)
    for found in searches:
        scores = np.array([similarity + lexical for _, similarity, lexical in found])
        weights = np.exp((scores - scores[0]) / tau)
        weights /= weights.sum()
        for (at, similarity, lexical), weight in zip(found, weights):
            kind, labels = values[at]
            if kind == "label":
                weight *= (1 + counts[labels[0]]) ** -power
            hits.append((at, similarity, lexical, weight, weight * factor[kind]))
            for label in labels:
                p[label] = p.get(label, 0.0) + weight * factor[kind]
    return p, hits, gap


# ---- metrics --------------------------------------------------------------------------------------------------------


def places(scores):
    """[rank, label]: the chance that a label stands at a rank when equal scores come in any order. scores: falling."""
    same = np.equal.outer(scores, scores)
    return same / same.sum(axis=0)


def deciles_of(counts):
    """label -> 0..9: ten equal parts of the labels in rising order of count; equal counts to the part of the first."""
    order = sorted(counts.values())
    return {label: 10 * order.index(count) // len(order) for label, count in counts.items()}


def calibration_error(confidence, right):
    """Expected calibration error (Guo et al. 2017, equation 3) over ten bins (lower, upper]; None without any."""
    confidence, right = np.array(confidence), np.array(right)
    error = 0.0
    for lower, upper in zip(np.arange(10) / 10, np.arange(1, 11) / 10):
        inside = (confidence > lower) & (confidence <= upper)
        if inside.any():
            error += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    return 100 * error if len(confidence) else None


def metrics(scored, gold, counts, n, a=0.55, b=1.5, at=(1, 3, 5, 10, 100)):
    """In percent; and by decile, and of each label.

    scored: of each text [(label, score)], any order; gold: sets; counts: label -> training instances, of n, for every
    label that is known. P@k, PSP@k, PSnDCG@k: Jain et al. 2016, section 3 (the latter two divided by the same sum of
    the best ranking); a text's gain is the expectation over the orders of equal scores.
    """
    with np.errstate(all="ignore"):
        c = (np.log(n) - 1) * (b + 1) ** a
    decile = deciles_of(counts)
    texts = [(sorted(s, key=lambda pair: -pair[1]), sorted(g)) for s, g in zip(scored, gold) if g]
    # by decile: what its hits add to each metric, and what to divide by
    sums = {(name, k): np.zeros(10) for name in ("hits", "P", "R", "nDCG", "PSP", "PSnDCG") for k in at}
    best = {(name, k): 0.0 for name in ("PSP", "PSnDCG") for k in at}
    labels = {label: {"train": counts.get(label, 0), "gold": 0} | {f"{what}@{k}": 0.0 for k in at
              for what in ("predicted", "hits")} for s, g in texts for label in [*g, *(name for name, _ in s)]}
    gold_of, confidence, right = np.zeros(10, int), [], []
    for ranking, wanted in texts:
        names = [name for name, _ in ranking]
        scores = np.array([score for _, score in ranking])
        at_rank = places(scores)
        is_gold = np.array([name in wanted for name in names], float)
        tenth = [decile.get(name, 0) for name in names]
        inverse = {name: 1 + c / (counts.get(name, 0) + b) ** a for name in {*names, *wanted}}
        inverses = np.array([inverse[name] for name in names])
        falling = np.sort([inverse[name] for name in wanted])[::-1]
        np.add.at(gold_of, [decile.get(name, 0) for name in wanted], 1)
        for name in wanted:
            labels[name]["gold"] += 1
        if names:
            confidence.append(float(np.float32(scores[0])))
            right.append(at_rank[0] @ is_gold)
        for k in at:
            inside = at_rank[:k].sum(axis=0)
            discounted = (at_rank[:k] / np.log2(np.arange(len(at_rank[:k])) + 2)[:, None]).sum(axis=0)
            reach = 1 / np.log2(np.arange(min(k, len(wanted))) + 2)
            gains = {"hits": inside, "P": inside / k, "R": inside / len(wanted), "nDCG": discounted / reach.sum(),
                     "PSP": inside * inverses, "PSnDCG": discounted * inverses / reach.sum()}
            for name, gain in gains.items():
                np.add.at(sums[name, k], tenth, gain * is_gold)
            best["PSP", k] += falling[:k].sum()
            best["PSnDCG", k] += (falling[:k] @ reach) / reach.sum()
            for name, chance, hit in zip(names, inside, is_gold):
                labels[name][f"predicted@{k}"] += chance
                labels[name][f"hits@{k}"] += chance * hit

    def percent(name, k, of=slice(None)):
        if not texts or (name.startswith("PS") and n < 3):
            return None
        return 100 * sums[name, k][of].sum() / (best[name, k] if name.startswith("PS") else len(texts))

    def all_of(of):
        return {f"{name}@{k}": percent(name, k, of) for name in ("P", "PSP", "R", "nDCG", "PSnDCG") for k in at}

    def of_decile(d):
        inside = [counts[label] for label in counts if decile[label] == d]
        return {"decile": d + 1, "labels": len(inside), "train_min": min(inside, default=None),
                "train_max": max(inside, default=None), "gold": gold_of[d]} | all_of(slice(d, d + 1)) | {
                f"recall@{k}": 100 * sums["hits", k][d] / gold_of[d] if gold_of[d] else None for k in at}

    shown = {label: row for label, row in labels.items()
             if row["gold"] or any(row[f"predicted@{k}"] > 0 for k in at)}
    return all_of(slice(None)) | {"ECE": calibration_error(confidence, right), "n": len(texts),
                                  "deciles": [of_decile(d) for d in range(10)], "labels": shown}
