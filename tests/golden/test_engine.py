"""The engine through the command line against engine_reference.py: embeddings come from `engram encode`, everything
after them is computed a second time in NumPy and compared with `engram tag` and `engram eval`.
"""

import gzip
import json
import os
import pty
import random
import re
import select
import shutil
import subprocess
import tempfile
import unicodedata
from pathlib import Path

import engine_reference as reference
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
ENGRAM = ROOT / os.environ.get("BUILD", "build") / "engram"
MODEL = ROOT / "tests/golden/tiny-bert"
WORDS = [w for w in (MODEL / "vocab.txt").read_text().split("\n") if w.isalpha() and w.isascii()]


@pytest.fixture
def folder():
    path = Path(tempfile.mkdtemp(prefix="engram-engine-"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


def engram(*arguments, lines=(), status=0):
    """Standard output of `engram ARGUMENTS`, as lines."""
    done = subprocess.run([ENGRAM, *map(str, arguments)], input="".join(f"{line}\n" for line in lines).encode(),
                          capture_output=True, timeout=120)
    assert done.returncode == status, done.stderr.decode()
    return done.stdout.decode().splitlines()


def write_lines(path, records):
    path.write_text("".join(json.dumps(r) + "\n" for r in records))
    return path


class World:
    """A random memory: instances (some without labels, some whose label nobody defined) and label definitions."""

    def __init__(self, seed, folder, key_dtype="f32", instances=120, labels=25):
        self.rng = random.Random(seed)
        self.folder, self.key_dtype = folder, key_dtype
        names = [f"label {i}" for i in range(labels)]
        self.defined = names[: labels * 4 // 5]
        self.labels = {name: self.text() for name in self.defined}
        self.instances = {f"i{i}": (self.text(), sorted(self.rng.sample(names, self.rng.choice((0, 1, 1, 2, 3, 5)))))
                          for i in range(instances)}
        self.memory = folder / "memory"
        self.flags = ("--model", MODEL, "--memory", self.memory, "--key-dtype", key_dtype, "--threads", 1)
        self.load()

    def text(self):
        return " ".join(self.rng.choices(WORDS, k=self.rng.randint(1, 12)))

    def load(self):
        labels = write_lines(self.folder / "labels.jsonl", [{"label": k, "text": v} for k, v in self.labels.items()])
        instances = write_lines(self.folder / "instances.jsonl",
                                [{"id": k, "text": t, "labels": ls} for k, (t, ls) in self.instances.items()])
        engram("load", "--labels", labels, "--instances", instances, *self.flags)

    def encode(self, texts):
        """Vectors [n, d], and the word pieces of each without [CLS] and [SEP]."""
        lines = engram("encode", "--stdin", "--model", MODEL, "--threads", 1, lines=texts)
        encoded = [json.loads(line) for line in lines]
        return (np.array([e["embedding"] for e in encoded], np.float32).reshape(len(texts), -1),
                [e["tokens"][1:-1] for e in encoded])

    def keys(self):
        """names, keys [n, d] as the memory holds them, their word pieces, values."""
        names = list(self.instances) + list(self.labels)
        keys, pieces = self.encode([t for t, _ in self.instances.values()] + list(self.labels.values()))
        values = ([("instance", ls) for _, ls in self.instances.values()] + [("label", [n]) for n in self.labels])
        return names, reference.bf16(keys) if self.key_dtype == "bf16" else keys, pieces, values

    def tag(self, texts, *flags):
        lines = engram("tag", "--stdin", *self.flags, *flags, lines=texts)
        return [json.loads(line) for line in lines]


def compare(world, texts, lam, tau, b, bound=1e-4, pool="joint", lexical=0, candidates=1000, form="cosine",
            power=0):
    """`engram tag` against the reference; how many texts were compared."""
    names, keys, pieces, values = world.keys()
    queries, query_pieces = world.encode(texts)
    got = world.tag(texts, "--lambda", lam, "--tau", tau, "--b", b, "--labels-max", 0, "--evidence-max", 8,
                    "--pool", pool, "--lexical", lexical, "--lexical-candidates", candidates, "--lexical-form", form,
                    "--label-power", power)
    assert len(got) == len(texts)
    compared = 0
    for text, q, said, prediction in zip(texts, queries, query_pieces, got):
        words = reference.Words(lexical, reference.LEXICAL[form](said, pieces), candidates) if lexical else None
        p, hits, gap = reference.predict(q, keys, values, lam, tau, b, pool, words, power)
        if gap < 1e-6:
            continue
        compared += 1
        scores = {label["label"]: label["score"] for label in prediction["labels"]}
        assert scores.keys() == p.keys(), text
        for label, score in scores.items():
            assert score == pytest.approx(p[label], abs=bound), (text, label)
        order = [label["score"] for label in prediction["labels"]]
        assert order == sorted(order, reverse=True)
        compare_evidence(names, values, hits, prediction["evidence"], bound, lexical > 0)
    return compared


def compare_evidence(names, values, hits, evidence, bound, has_lexical):
    by_name = {(values[hit[0]][0], names[hit[0]]): hit for hit in hits}
    gains = sorted((gave for *_, gave in hits), reverse=True)
    assert len(evidence) == min(8, len(hits))
    for rank, item in enumerate(evidence):
        name = item["id"] if item["kind"] == "instance" else item["label"]
        i, similarity, lexical, weight, gave = by_name.pop((item["kind"], name))
        assert item["similarity"] == pytest.approx(min(similarity, 1), abs=bound) and item["similarity"] <= 1
        assert ("lexical" in item) == has_lexical and item.get("lexical", 0) == pytest.approx(lexical, abs=bound)
        assert item["weight"] == pytest.approx(weight, abs=bound)
        assert gave == pytest.approx(gains[rank], abs=bound)
        if item["kind"] == "instance":
            assert item["labels"] == sorted(values[i][1])
        assert "text" not in item


@pytest.mark.parametrize("key_dtype", ["f32", "bf16"])
@pytest.mark.parametrize("seed", range(3))
def test_predictions(folder, key_dtype, seed):
    world = World(seed, folder, key_dtype)
    texts = [world.text() for _ in range(20)]
    for lam, tau, b in [(0.5, 0.1, 200), (0, 0.1, 200), (1, 0.04, 7), (world.rng.random(), 0.01, 30),
                        (world.rng.random(), 1.0, 1)]:
        for pool in ("joint", "apart"):
            compare(world, texts, lam, tau, b, pool=pool)


def test_a_similarity_is_at_most_1(folder):
    """A key in bf16 may be longer than 1. What is shown is cut; weights and scores are the reference's still."""
    world = World(3, folder, "bf16")
    texts = [text for text, _ in world.instances.values()]
    keys, queries = world.keys()[1], world.encode(texts)[0]
    assert (queries @ keys.T).max() > 1.001, "no key of this world is longer than 1"
    assert compare(world, texts, 0.5, 0.1, 50) > 0
    shown = [item["similarity"] for prediction in world.tag(texts) for item in prediction["evidence"]]
    assert max(shown) == 1
    test = write_lines(folder / "test.jsonl", [{"id": k, "text": t, "labels": ls} for k, (t, ls) in
                                               world.instances.items() if ls])
    cards = "\n".join(engram("eval", "--test", test, "--show", 100, *world.flags))
    assert " 1.000 " in cards and " 1.001 " not in cards


def change(world):
    """Replaces and forgets, of instances and labels."""
    for name in world.rng.sample(list(world.instances), 40):
        world.instances[name] = (world.text(), world.rng.choice(([], ["label 3"], ["a new label", "label 1"])))
    world.labels["label 0"] = world.text()
    world.load()
    for name in world.rng.sample(list(world.instances), 30):
        del world.instances[name]
        engram("forget", name, "--local", *world.flags)


def test_changes_are_folded(folder):
    """The reference sees only what is left."""
    world = World(11, folder)
    change(world)
    compare(world, [world.text() for _ in range(20)], 0.5, 0.1, 50)


@pytest.mark.parametrize("pool", ["joint", "apart"])
def test_labels_that_instances_know_count_less(folder, pool):
    """Before and after replaces and forgets, which change how many instances a label has."""
    world = World(14, folder)
    for changed in (False, True):
        if changed:
            change(world)
        for power, lam, b in ((0.5, 0.3, 50), (1, 0.6, 200), (3, 0, 10)):
            texts = [world.text() for _ in range(20)]
            assert compare(world, texts, lam, 0.2, b, pool=pool, power=power) > 10
    assert compare(world, texts, 0.3, 0.2, 50, pool=pool, power=1, lexical=1, form="bm25") > 5


class Texts(World):
    """Few words, so that they are shared and come twice; texts of one word and of none."""

    def text(self):
        return " ".join(self.rng.choices(WORDS[:30], k=self.rng.choice((0, 1, 2, 5, 12))))


LEXICAL_TEXTS = ["", WORDS[0], f"{WORDS[1]} " * 9, f"{WORDS[40]} {WORDS[41]}", f"{WORDS[40]} {WORDS[2]}", f"{WORDS[3]} {WORDS[4]} " * 60]


@pytest.mark.parametrize("form", ["cosine", "bm25"])
@pytest.mark.parametrize("key_dtype, pool", [("f32", "joint"), ("bf16", "apart")])
def test_lexical_score(folder, key_dtype, pool, form):
    """Also of a text whose words no key has; the last one is longer than the model reads."""
    world = Texts(21, folder, key_dtype, instances=300)
    _, _, pieces, _ = world.keys()
    _, (_, one, repeated, foreign, *_) = world.encode(LEXICAL_TEXTS)
    known = {piece for key in pieces for piece in key}
    assert not known & set(foreign) and len(one) <= 2 < len(repeated) and [] in pieces
    for changed in (False, True):
        if changed:
            change(world)
        texts = LEXICAL_TEXTS + [world.text() for _ in range(20)]
        compared = 0
        for lexical in (0.3, 1, 4):
            for candidates in (1000, 10, 3):
                compared += compare(world, texts, world.rng.choice((0.2, 0.5, 1, 0)), 0.3, world.rng.choice((7, 200)),
                                    pool=pool, lexical=lexical, candidates=candidates, form=form)
        assert compared > 0.3 * 9 * len(texts), "too many ties: the test compares little"


def test_lexical_score_without_a_key_that_has_words(folder):
    world = Texts(22, folder, instances=0, labels=0)
    world.instances = {"a": ("", ["x"]), "b": ("", ["y"])}
    world.load()
    for item in world.tag(["some text"], "--lexical", 1)[0]["evidence"]:
        assert item["lexical"] == 0


def test_empty_memory(folder):
    world = World(0, folder, instances=0, labels=0)
    prediction, = world.tag(["a text"])
    assert prediction["labels"] == [] and prediction["evidence"] == []


def test_only_instances_without_labels(folder):
    world = World(1, folder, instances=0, labels=0)
    world.instances = {"a": ("some text", []), "b": ("other text", [])}
    world.load()
    assert world.tag(["some text"])[0]["labels"] == []


def test_output_options(folder):
    world = World(5, folder)
    texts = [world.text() for _ in range(5)]
    everything = world.tag(texts, "--labels-max", 0, "--evidence-text", "true")
    some = world.tag(texts, "--labels-max", 3, "--min-score", 0.01, "--evidence-max", 0)
    for full, cut in zip(everything, some):
        expected = [label for label in full["labels"][:3] if label["score"] >= 0.01]
        assert [label["label"] for label in cut["labels"]] == [label["label"] for label in expected]
        for got, label in zip(cut["labels"], expected):  # a row's last bits depend on the batch that it came in
            assert got["score"] == pytest.approx(label["score"], abs=1e-5)
        assert cut["evidence"] == []
        for item in full["evidence"]:
            text = world.instances[item["id"]][0] if item["kind"] == "instance" else world.labels[item["label"]]
            assert item["text"] == text


def test_json_lines(folder):
    world = World(6, folder, instances=10)
    lines = ['{"id": "a", "text": "one", "metadata": {"n": 18446744073709551615}}', '{"text": 5}', "not json",
             "", '{"text": ""}', " \t \r", "\t"]
    got = [json.loads(line) for line in engram("tag", "--stdin", "--json-lines", *world.flags, lines=lines, status=1)]
    assert got[0]["id"] == "a" and got[0]["metadata"] == {"n": 18446744073709551615} and got[0]["labels"]
    assert list(got[1]) == ["error"] and list(got[2]) == ["error"]
    assert got[3]["labels"] and got[3]["id"] is None and "source" not in got[3]
    assert len(got) == 4  # a blank line holds nothing


def test_a_text_over_64_kib_is_cut(folder):
    world = World(6, folder, instances=10)
    short, long = world.tag(["x" + " " * 65535, "x" + " " * 65536])
    assert short["labels"] == long["labels"] and (short["truncated"], long["truncated"]) == (False, True)


def test_plain_lines(folder):
    """A line is a text as it stands; what is none is named in its place."""
    world = World(6, folder, instances=10)
    done = subprocess.run([ENGRAM, "tag", "--stdin", *map(str, world.flags)], input=b'one\n\n\xff\n{"text": "x"}\r\na\0b\nlast',
                          capture_output=True, timeout=60)
    got = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 1 and len(got) == 6
    assert [list(g) == ["error"] for g in got] == [False, False, True, False, True, False]


def test_a_typed_line_is_answered_at_once(folder):
    world = World(6, folder, instances=10)
    command = [ENGRAM, "tag", "--stdin", *map(str, world.flags)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as tag:
        try:
            for _ in range(3):
                tag.stdin.write(b"a text\n")
                tag.stdin.flush()
                assert select.select([tag.stdout], [], [], 60)[0], "no answer while the pipe stays open"
                assert json.loads(os.read(tag.stdout.fileno(), 1 << 20))["labels"]
            tag.stdin.close()
            assert tag.wait(60) == 0
        finally:
            tag.kill()


def on_a_terminal(*arguments):
    terminal, end = pty.openpty()
    try:
        subprocess.run([ENGRAM, *map(str, arguments)], stdout=end, check=True, timeout=60)
        return os.read(terminal, 1 << 20).decode()
    finally:
        os.close(end)
        os.close(terminal)


def test_card_on_a_terminal(folder):
    world = World(6, folder)
    text = "the \x1b[31mtext"
    card = on_a_terminal("tag", text, *world.flags)
    best = json.loads(engram("tag", text, *world.flags)[0])["labels"][0]
    assert f"{best['label']} " in card and f"{best['score']:.3f}" in card and "because of" in card
    assert "(similarity, weight)" in card and " + " not in card
    assert "\x1b" not in card, "a text must not steer the terminal"
    lexical = on_a_terminal("tag", text, "--lexical", 1, *world.flags)
    item = json.loads(engram("tag", text, "--lexical", 1, *world.flags)[0])["evidence"][0]
    assert "(similarity + lexical, weight)" in lexical
    assert f"  {item['similarity']:.3f} + {item['lexical']:.3f} {item['weight']:.3f}  {item['kind']}" in lexical
    assert json.loads(on_a_terminal("tag", text, "--json", *world.flags))["labels"][0] == best


# ---- evaluation -----------------------------------------------------------------------------------------------------


def scored_by_tag(world, test, exclude_self):
    predictions = world.tag([t["text"] for t in test], "--labels-max", 0)
    return [[(label["label"], label["score"]) for label in p["labels"]
             if not (exclude_self and label["label"] == t["id"])] for p, t in zip(predictions, test)]


def close(value):
    return None if value is None else pytest.approx(value, abs=1e-6)


def compare_metrics(got, labels, want):
    """got: the JSON of eval --deciles; labels: the lines of --per-label; want: engine_reference.metrics."""
    assert {**got, "deciles": 0} == {name: 0 if name == "deciles" else close(value)
                                     for name, value in want.items() if name != "labels"}
    for row, wanted in zip(got["deciles"], want["deciles"]):
        assert row == {name: close(value) for name, value in wanted.items()}
    assert [row["label"] for row in labels] == sorted(want["labels"], key=str.encode)
    for row in labels:
        assert row == {"label": row["label"]} | {k: close(v) for k, v in want["labels"][row["label"]].items()}


def evaluate(world, test, *flags):
    """eval's JSON with the deciles, and what --per-label wrote."""
    path, labels = write_lines(world.folder / "test.jsonl", test), world.folder / "labels-out.jsonl"
    got, = engram("eval", "--test", path, "--json", "--deciles", "--per-label", labels, *world.flags, *flags)
    return json.loads(got), [json.loads(line) for line in labels.read_text().splitlines()]


def random_test(world, n, extra=()):
    names = [f"label {i}" for i in range(25)] + ["nobody knows this", *extra]
    return [{"id": world.rng.choice(names), "text": world.text(),
             "labels": world.rng.sample(names, world.rng.choice((0, 1, 2, 3, 7)))} for _ in range(n)]


def memory_counts(world):
    counts = dict.fromkeys(world.defined, 0)
    for _, labels in world.instances.values():
        for label in labels:
            counts[label] = counts.get(label, 0) + 1
    return counts


@pytest.mark.parametrize("exclude_self", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_metrics(folder, seed, exclude_self):
    world = World(seed, folder, labels=25 if seed else 160)
    test = random_test(world, 60)
    counts, n = memory_counts(world), len(world.instances)
    scored = scored_by_tag(world, test, exclude_self)
    gold = [set(t["labels"]) - ({t["id"]} if exclude_self else set()) for t in test]
    flags = ["--exclude-self"] if exclude_self else []
    # labels_max and min_score must not matter
    compare_metrics(*evaluate(world, test, *flags, "--labels-max", 1, "--min-score", 0.9),
                    reference.metrics(scored, gold, counts, n))
    at = world.rng.sample((1, 2, 4, 6, 20, 150, 999, 1000), world.rng.choice((1, 3, 8)))
    compare_metrics(*evaluate(world, test, *flags, "--psp-a", 0.6, "--psp-b", 2.6, "--at", ",".join(map(str, at))),
                    reference.metrics(scored, gold, counts, n, 0.6, 2.6, at))


def test_metrics_by_name(folder):
    """The names that scripts read, in the order of the ks asked for."""
    world = World(3, folder, instances=20)
    got, _ = evaluate(world, random_test(world, 5), "--at", "5,1")
    assert list(got) == ["P@5", "P@1", "PSP@5", "PSP@1", "R@5", "R@1", "nDCG@5", "nDCG@1", "PSnDCG@5", "PSnDCG@1", "ECE",
                         "n", "deciles"]


@pytest.mark.parametrize("labels", [2, 7, 40])
def test_metrics_where_scores_are_equal(folder, labels):
    """Instances of one text: labels come in runs of ties, cut by every k."""
    world = World(12, folder, instances=0, labels=0)
    names = [f"label {i}" for i in range(labels)]
    world.instances = {f"i{i}": (WORDS[i % 4], sorted(world.rng.sample(names, min(labels, 5)))) for i in range(3)}
    world.load()
    test = random_test(world, 30)
    scored = scored_by_tag(world, test, False)
    assert all(len({score for _, score in text}) < len(text) for text in scored)
    compare_metrics(*evaluate(world, test), reference.metrics(scored, [set(t["labels"]) for t in test],
                                                              memory_counts(world), 3))


@pytest.mark.parametrize("sweep", [False, True])
def test_metrics_of_fewer_labels_than_ks(folder, sweep):
    """A label that is left out does not come back where fewer than k others are predicted."""
    world = World(13, folder, instances=0, labels=0)
    world.instances = {f"i{i}": (world.text(), [f"l{i % 5}"]) for i in range(10)}
    world.load()
    test = [{"id": f"l{i % 5}", "text": world.text(), "labels": [f"l{(i + i // 5) % 5}", "l0"]} for i in range(20)]
    want = reference.metrics(scored_by_tag(world, test, True), [set(t["labels"]) - {t["id"]} for t in test],
                             memory_counts(world), 10, at=(1, 5))
    if sweep:
        path = write_lines(folder / "test.jsonl", test)
        got, = [s for s in json.loads(engram("eval", "--test", path, "--sweep", "--exclude-self", "--json", *world.flags)[0])["sweep"]
                if (s["pool"], s["lambda"], s["tau"], s["lexical"]) == ("joint", 0.5, 0.1, 0)]
        assert {m: got[m] for m in ("P@1", "P@5", "nDCG@5", "PSP@5")} == {
            m: pytest.approx(want[m], abs=1e-4) for m in ("P@1", "P@5", "nDCG@5", "PSP@5")}
    else:
        compare_metrics(*evaluate(world, test, "--exclude-self", "--at", "1,5"), want)


def test_metrics_with_counts_from_a_file(folder):
    world = World(7, folder)
    test, train = random_test(world, 40), random_test(world, 200, ["label seen in train alone"])
    counts = {}
    for t in train:
        for label in t["labels"]:
            counts[label] = counts.get(label, 0) + 1
    path = write_lines(folder / "train.jsonl", train)
    compare_metrics(*evaluate(world, test, "--train", path),
                    reference.metrics(scored_by_tag(world, test, False), [set(t["labels"]) for t in test], counts,
                                      len(train)))


def test_metrics_not_defined(folder):
    world = World(8, folder, instances=2, labels=5)
    test = [{"id": "t", "text": "a text", "labels": ["label 0"]}]
    scored, gold = scored_by_tag(world, test, False), [{"label 0"}]
    got, labels = evaluate(world, test)
    assert got["PSP@1"] is None and got["PSnDCG@5"] is None and got["n"] == 1 and got["R@100"] == 100
    compare_metrics(got, labels, reference.metrics(scored, gold, memory_counts(world), 2))
    table = engram("eval", "--test", folder / "test.jsonl", "--at", "1,2", *world.flags)
    assert table[2].split() == ["PSP", "-", "-"] and table[5].split() == ["PSnDCG", "-", "-"]
    got, labels = evaluate(world, [{"id": "t", "text": "a text", "labels": []}])
    assert got["P@1"] is None and got["ECE"] is None and got["n"] == 0 and labels == []


def test_metrics_of_a_memory_without_keys(folder):
    """Nothing is predicted: no hit, and no confidence that could be wrong."""
    world = World(8, folder, instances=0, labels=0)
    got, labels = evaluate(world, [{"id": "t", "text": "a text", "labels": ["a", "b"]}])
    assert (got["P@1"], got["R@100"], got["ECE"], got["n"]) == (0, 0, None, 1)
    assert [(row["label"], row["train"], row["gold"], row["hits@5"]) for row in labels] == [("a", 0, 1, 0), ("b", 0, 1, 0)]
    assert got["deciles"][0]["gold"] == 2 and got["deciles"][0]["labels"] == 0


def test_tables(folder):
    world = World(3, folder)
    path = write_lines(folder / "test.jsonl", random_test(world, 20))
    flags = ["--test", path, "--at", "2,1", *world.flags]
    want = json.loads(engram("eval", *flags, "--deciles", "--json")[0])
    lines = [line.split() for line in engram("eval", *flags, "--deciles")]
    assert lines[0] == ["%", "@2", "@1"] and lines[7] == ["over", str(want["n"]), "texts"]
    for line, name in zip(lines[1:6], ("P", "PSP", "R", "nDCG", "PSnDCG")):
        assert line == [name, f"{want[name + '@2']:.2f}", f"{want[name + '@1']:.2f}"]
        first = lines.index([name, "@2", "@1"]) + 1
        for row, decile in zip(lines[first : first + 10], want["deciles"]):
            assert row == [str(decile["decile"])] + [f"{decile[f'{name}@{k}']:.2f}" for k in (2, 1)]
    assert lines[6] == ["ECE", f"{want['ECE']:.2f}"]
    assert engram("eval", *flags) == engram("eval", *flags, "--deciles")[:8]


def test_per_label_file_is_whole_or_absent(folder):
    world = World(3, folder, instances=10)
    test, out = write_lines(folder / "test.jsonl", random_test(world, 20)), folder / "out.jsonl"
    out.write_text("from before")
    engram("eval", "--test", folder / "absent", "--per-label", out, *world.flags, status=1)
    assert out.read_text() == "from before" and sorted(folder.glob("out*")) == [out]
    engram("eval", "--test", test, "--per-label", out, *world.flags)
    engram("eval", "--test", test, "--per-label", f"{out}.gz", *world.flags)
    assert gzip.decompress((folder / "out.jsonl.gz").read_bytes()) == out.read_bytes() != b""
    assert sorted(folder.glob("out*")) == [out, folder / "out.jsonl.gz"]
    engram("eval", "--test", test, "--per-label", folder / "no" / "such", *world.flags, status=1)
    engram("eval", "--test", test, "--per-label", "-", *world.flags, status=2)


# ---- eval --show ----------------------------------------------------------------------------------------------------

EVIDENCE = re.compile(r'           (-?\d\.\d{3}) (?:(\d+\.\d{3}) )?(\d\.\d{3})  (instance|label   ) (.+?)  "(.*)"')


def cases(lines):
    """What eval --show printed, parsed: id, text, published [(mark, score, label, keys, more)], missed {label: why}."""
    found = []
    for line in lines[: lines.index(next(line for line in lines if line.startswith("%")))]:
        if head := re.fullmatch(r"(\d+)\. (.*)", line):
            assert int(head[1]) == len(found) + 1
            found.append({"id": head[2], "published": [], "missed": {}})
        elif not found or not line:
            continue
        elif text := re.fullmatch(r'  "(.*)"', line):
            found[-1]["text"] = text[1]
        elif tag := re.fullmatch(r"  (right|wrong)   (\d\.\d{3})  (.*)", line):
            found[-1]["published"].append({"mark": tag[1], "score": float(tag[2]), "label": tag[3], "keys": [], "more": 0})
        elif tag := re.fullmatch(r"  missed  (\d\.\d{3}|    -)  (.*)  \((.*)\)", line):
            found[-1]["missed"][tag[2]] = (None if tag[1] == "    -" else float(tag[1]), tag[3])
        elif more := re.fullmatch(r"           and (\d+) more", line):
            found[-1]["published"][-1]["more"] = int(more[1])
        elif key := EVIDENCE.fullmatch(line):
            found[-1]["published"][-1]["keys"].append(key.groups())
        else:
            assert line.startswith("  no labels: "), line
    return found


def check_case(world, case, test, prediction, labels_max, min_score, exclude_self):
    """prediction: tag's, of every label and every key."""
    gold = set(test["labels"]) - ({test["id"]} if exclude_self else set())
    ranked = [x for x in prediction["labels"] if not (exclude_self and x["label"] == test["id"])]
    published = [x for x in ranked[: labels_max or None] if x["score"] >= min_score]
    assert (case["id"], case["text"]) == (test["id"], test["text"])
    assert [x["label"] for x in case["published"]] == [x["label"] for x in published]
    for got, want in zip(case["published"], published):
        assert got["score"] == pytest.approx(want["score"], abs=6e-4)
        assert got["mark"] == ("right" if want["label"] in gold else "wrong")
        gave = [x for x in prediction["evidence"]
                if want["label"] in (x["labels"] if x["kind"] == "instance" else [x["label"]])]
        assert got["more"] == max(0, len(gave) - 2) and len(got["keys"]) == min(2, len(gave)) > 0
        for key, piece in zip(got["keys"], gave):
            kind, name = piece["kind"], piece["id"] if piece["kind"] == "instance" else piece["label"]
            assert (key[3].strip(), key[4]) == (kind, name)
            assert want["label"] in world.instances[name][1] if kind == "instance" else name == want["label"]
            assert float(key[0]) == pytest.approx(piece["similarity"], abs=6e-4)
            assert float(key[2]) == pytest.approx(piece["weight"], abs=6e-4)
            assert (key[1] is None) == ("lexical" not in piece)
            assert key[1] is None or float(key[1]) == pytest.approx(piece["lexical"], abs=6e-4)
            text = world.instances[name][0] if kind == "instance" else world.labels[name]
            assert key[5] == text or text.startswith(key[5].removesuffix("...")) and len(key[5]) > 20
    ranks = {x["label"]: (rank, x["score"]) for rank, x in enumerate(ranked, 1)}
    assert case["missed"].keys() == gold - {x["label"] for x in published}
    for label, (score, why) in case["missed"].items():
        if label in ranks:
            assert why == f"rank {ranks[label][0]}" and score == pytest.approx(ranks[label][1], abs=6e-4)
        else:
            known = label in memory_counts(world)
            assert (score, why) == (None, "not among the candidates" if known else "the memory does not know it")


@pytest.mark.parametrize("seed, flags, labels_max, min_score, exclude_self", [
    (0, ("--b", 5), 3, 0, False), (1, ("--pool", "apart", "--lexical", 1, "--b", 8), 4, 0.02, True),
    (2, ("--lambda", 0.9), 0, 0, True), (3, (), 10, 0.95, False), (4, ("--b", 1), 1, 0, False)])
def test_show(folder, seed, flags, labels_max, min_score, exclude_self):
    world = World(seed, folder)
    test = random_test(world, 60)
    path = write_lines(folder / "test.jsonl", test)
    with_gold = [t for t in test if set(t["labels"]) - ({t["id"]} if exclude_self else set())]
    evaluated = ["eval", "--test", path, *(["--exclude-self"] if exclude_self else []), *world.flags, *flags]
    lines = engram(*evaluated, "--show", 20, "--labels-max", labels_max, "--min-score", min_score)
    found = cases(lines)
    assert len(found) == 20
    predictions = world.tag([t["text"] for t in with_gold[:20]], *flags, "--labels-max", 0, "--min-score", 0,
                            "--evidence-max", 1000)
    for case, t, prediction in zip(found, with_gold, predictions):
        check_case(world, case, t, prediction, labels_max, min_score, exclude_self)
    table = engram(*evaluated)
    assert lines[-len(table):] == table, "the metrics stand behind, as without --show"
    assert len(cases(engram(*evaluated, "--show", 1000))) == len(with_gold)


def test_show_leaves_pairs_out(folder):
    """What filter_labels_test.txt names is neither shown as predicted nor as missed."""
    world = World(5, folder)
    names = sorted(world.labels)
    titles = [world.text() for _ in range(4)]
    targets = [[0, 1], [2], [3, 4], [5]]
    write_lines(folder / "lbl.json", [{"uid": f"u{i}", "title": name} for i, name in enumerate(names)])
    write_lines(folder / "tst.json", [{"uid": f"t{i}", "title": title, "target_ind": ls, "target_rel": [1.0] * len(ls)}
                                      for i, (title, ls) in enumerate(zip(titles, targets))])
    pairs = [(0, 0), (1, 2), (3, 7)]
    (folder / "filter_labels_test.txt").write_text("".join(f"{row} {label}\n" for row, label in pairs))
    world.instances = {f"i{i}": (t, [f"u{n}" for n in ls]) for i, (t, ls) in enumerate(zip(titles, targets))}
    world.instances["j"] = (titles[3], ["u7"])
    world.load()
    found = cases(engram("eval", "--test", folder, "--show", 9, "--labels-max", 0, *world.flags))
    shown = {case["id"]: [x["label"] for x in case["published"]] for case in found}
    assert list(shown) == ["t0", "t2", "t3"], "a text whose every label is left out is passed over"
    assert "u0" not in shown["t0"] and "u7" not in shown["t3"] and {"u0", "u7"} <= set(shown["t2"])
    assert {"u1", "u2"} <= set(shown["t0"]) and not any(case["missed"] for case in found)


def test_show_cannot_steer_the_terminal(folder):
    world = World(6, folder, instances=0, labels=0)
    bad = "a\x1b[31mb\rc\x9bd\x7fe\u202ef\u2028g\u2066h\ni"
    world.instances = {f"i{bad}": (f"the {bad}", [f"l{bad}"])}
    world.labels = {f"l{bad}": f"label {bad}"}
    world.load()
    test = [{"id": f"t{bad}", "text": f"the {bad} 世界 " + "wide 世界 " * 200, "labels": [f"l{bad}", f"missed {bad}"]}]
    path = write_lines(folder / "test.jsonl", test)
    lines = engram("eval", "--test", path, "--show", 1, "--at", 1, *world.flags)
    card = on_a_terminal("eval", "--test", path, "--show", 1, "--at", 1, *world.flags)
    for out, columns in (("\n".join(lines), 120), (card.replace("\r\n", "\n"), 80)):
        clean = "a [31mb c d e f g h i"
        for line in (f"1. t{clean}", f"  missed      -  missed {clean}  (the memory does not know it)"):
            assert line in out.split("\n")
        quoted = clean if columns == 120 else clean[:12]
        assert f"instance i{clean}  \"the {quoted}" in out and f"label    l{clean}  \"label {quoted}" in out
        assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u202e\u2066]", out)
        text, = [line for line in out.split("\n") if line.startswith(f'  "the {clean}')]
        width = sum(2 if unicodedata.east_asian_width(c) == "W" else 1 for c in text)
        assert 3 * columns - 3 <= width <= 3 * columns and text.endswith('..."')


# ---- load -----------------------------------------------------------------------------------------------------------


def stats(world):
    return json.loads(engram("memory", "stats", "--json", "--memory", world.memory)[0])


def test_load_names_bad_lines(folder):
    world = World(9, folder, instances=3)
    path = folder / "some.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"id": "x", "text": "one", "labels": ["l"]}\r\n\r\n{"id": "", "text": "two", "labels": []}\n'
                     b'\n{"id": "y", "text": "three"}\n{"id": "z", "text": "four", "labels": []}')
    done = subprocess.run([ENGRAM, "load", "--instances", path, *map(str, world.flags)],
                          capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert f"{path}:3:" in done.stderr and f"{path}:5:" in done.stderr
    assert stats(world)["instances"] == 5
    got = json.loads(engram("memory", "get", "x", "--memory", world.memory)[0])
    assert (got["id"], got["text"], got["labels"], got["source"]) == ("x", "one", ["l"], None)
    engram("memory", "get", "no such", "--memory", world.memory, status=1)
    engram("memory", "verify", "--memory", world.memory)


def test_load_twice_is_load_once(folder):
    world = World(10, folder)
    before = stats(world)
    world.load()
    after = stats(world)
    same = ("instances", "labels", "label_keys", "digest", "version", "fingerprint")
    assert {k: before[k] for k in same} == {k: after[k] for k in same}
    assert before["instances"] == 120 and before["labels"] == 25 and before["label_keys"] == 20
    assert before["local_changes"] == 140 and after["local_changes"] == 280
