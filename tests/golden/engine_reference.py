"""The equations of the engine in NumPy, written from the papers and not from the C: prediction as in arXiv 2502.10615,
P@k and PSP@k as in Jain et al. 2016, R@k and nDCG@k by their definitions.
"""

import numpy as np


def bf16(x):
    """x rounded to bfloat16 (nearest, ties to even), as float32."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32).astype(np.uint64)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
    return rounded.astype(np.uint32).view(np.float32)


def searches(values, lam, b, pool):
    """[(candidates, how many to retrieve)]: one search over all kinds (joint), or one for each (apart, arXiv
    2511.13189)."""
    factor = {"instance": lam, "label": 1 - lam}
    kinds = [{"instance", "label"}] if pool == "joint" else [{"instance"}, {"label"}]
    found = [[i for i, (kind, labels) in enumerate(values) if kind in wanted and labels and factor[kind] > 0]
             for wanted in kinds]
    return [(candidates, b if pool == "joint" else max(1, b // 2)) for candidates in found if candidates]


def predict(q, keys, values, lam, tau, b, pool="joint"):
    """p [labels], and of each retrieved key (index, similarity, weight, what it gave).

    q [d]; keys [n, d]; values: of each key ("instance" | "label", [label numbers]).
    """
    factor = {"instance": lam, "label": 1 - lam}
    p, hits = {}, []
    for candidates, count in searches(values, lam, b, pool):
        scores = keys[candidates].astype(np.float64) @ q.astype(np.float64)
        top = np.argsort(-scores, kind="stable")[:count]
        weights = np.exp((scores[top] - scores[top[0]]) / tau)
        weights /= weights.sum()
        for at, weight in zip(top, weights):
            kind, labels = values[candidates[at]]
            hits.append((candidates[at], scores[at], weight, weight * factor[kind]))
            for label in labels:
                p[label] = p.get(label, 0.0) + weight * factor[kind]
    return p, hits


def gap_at(q, keys, values, lam, b, pool="joint"):
    """How far the last retrieved candidate stands from the next one: below float's precision the choice is anybody's."""
    gaps = [1.0]
    for candidates, count in searches(values, lam, b, pool):
        scores = np.sort(keys[candidates].astype(np.float64) @ q.astype(np.float64))[::-1]
        gaps += [scores[count - 1] - scores[count]] if len(scores) > count else []
    return min(gaps)


def in_top(scored, k):
    """label -> the chance that it stands among the first k of [(label, score)] when equal scores come in any order."""
    chances, start = {}, 0
    for score in sorted({score for _, score in scored}, reverse=True):
        tied = [label for label, s in scored if s == score]
        chances.update(dict.fromkeys(tied, min(1.0, max(0.0, (k - start) / len(tied)))))
        start += len(tied)
    return chances


def metrics(scored, gold, counts, n, a=0.55, b=1.5):
    """In percent. scored: of each text [(label, score)]; gold: sets; counts: label -> training instances; n of them."""
    pairs = [(s, g) for s, g in zip(scored, gold) if g]
    out = {"n": len(pairs)}
    if not pairs:
        return out | dict.fromkeys(("P@1", "P@3", "P@5", "PSP@1", "PSP@3", "PSP@5", "R@10", "R@100", "nDCG@5"))
    with np.errstate(all="ignore"):
        c = (np.log(n) - 1) * (b + 1) ** a

    def propensity(label):
        return 1 / (1 + c * np.exp(-a * np.log(counts.get(label, 0) + b)))

    def hits(k):
        return [sum(in_top(s, k).get(label, 0) for label in g) for s, g in pairs]

    for k in (1, 3, 5):
        out[f"P@{k}"] = 100 * np.mean(hits(k)) / k
        if n < 3:
            out[f"PSP@{k}"] = None
            continue
        reached = sum(in_top(s, k).get(label, 0) / propensity(label) for s, g in pairs for label in g)
        best = sum(sum(sorted((1 / propensity(label) for label in g), reverse=True)[:k]) for _, g in pairs)
        out[f"PSP@{k}"] = 100 * reached / best
    for k in (10, 100):
        out[f"R@{k}"] = 100 * np.mean([h / len(g) for h, (_, g) in zip(hits(k), pairs)])
    discount = 1 / np.log2(np.arange(2, 7))
    by_rank = np.diff([np.zeros(len(pairs))] + [hits(k) for k in range(1, 6)], axis=0)
    out["nDCG@5"] = 100 * np.mean([(discount @ by_rank[:, i]) / discount[: len(g)].sum()
                                   for i, (_, g) in enumerate(pairs)])
    return out
