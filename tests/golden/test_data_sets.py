"""The data sets of the field through `engram load` and `engram eval`: small ones are drawn and written here as LF-XMC and
DEXML distribute them, read back from the same files by Python (json, NumPy), and compared with what the memory exports;
metrics with those of engine_reference.py, the pairs of filter_labels_test.txt removed. Then all that can be wrong in such
files: each a line that names it, and never another label than the one that was meant.
"""

import gzip
import io
import json
import os
import random
import re
import shutil
import subprocess
import tempfile
import zipfile
from pathlib import Path

import engine_reference as reference
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
ENGRAM = ROOT / os.environ.get("BUILD", "build") / "engram"
MODEL = ROOT / "tests/golden/tiny-bert"
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("ENGRAM_")}
WORDS = [w for w in (MODEL / "vocab.txt").read_text().split("\n") if w.isalpha() and w.isascii()]


@pytest.fixture
def folder():
    path = Path(tempfile.mkdtemp(prefix="engram-data-"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


def engram(*arguments, status=0, stdin=None, cwd=None):
    done = subprocess.run([ENGRAM, *map(str, arguments), "--model", str(MODEL), "--threads", "1"], input=stdin, cwd=cwd,
                          capture_output=True, text=True, timeout=120, env=ENVIRONMENT, check=False)
    assert done.returncode == status, (arguments, done.stdout, done.stderr)
    return done


def exported(memory):
    """{label: text}, {id: (text, [labels])}"""
    with tempfile.TemporaryDirectory(prefix="engram-export-") as out:
        subprocess.run([ENGRAM, "memory", "export", "--labels", f"{out}/l", "--instances", f"{out}/i", "--memory", memory],
                       check=True, capture_output=True, env=ENVIRONMENT, timeout=60)
        labels = [json.loads(line) for line in Path(out, "l").read_text().splitlines()]
        instances = [json.loads(line) for line in Path(out, "i").read_text().splitlines()]
    return {l["label"]: l["text"] for l in labels}, {i["id"]: (i["text"], i["labels"]) for i in instances}


# ---- data sets, as they are distributed ---------------------------------------------------------------------------


class DataSet:
    """labels [(uid, title, content)], parts {"trn" | "tst": [(uid, title, content, [label numbers])]}, pairs of each."""

    def __init__(self, seed, train=60, test=40, labels=20):
        draw = random.Random(seed)

        def text(most):
            return " ".join(draw.choices(WORDS, k=draw.randint(0, most)))

        self.labels = [(f"B{draw.randrange(10**6):06}{i}", text(4), text(6) if i % 2 else "") for i in range(labels)]
        self.parts = {part: [(f"{part}é{i}", text(6), text(9), draw.sample(range(labels), draw.choice((0, 1, 1, 2, 4))))
                             for i in range(count)] for part, count in (("trn", train), ("tst", test))}
        self.pairs = {part: sorted({(draw.randrange(len(rows)), draw.randrange(labels)) for _ in range(2 * len(rows))} |
                                   {(i, row[3][0]) for i, row in enumerate(rows) if row[3] and i % 3 == 0})
                      for part, rows in self.parts.items()}

    def write_pairs(self, folder):
        for part, name in (("trn", "train"), ("tst", "test")):
            lines = [f"{row} {label}\n" for row, label in self.pairs[part]]
            random.Random(0).shuffle(lines)
            (folder / f"filter_labels_{name}.txt").write_text("".join(lines))

    def write_lfxmc(self, folder, ending=".json", content=True, end="\n", start=""):
        folder.mkdir(exist_ok=True)

        def write(name, objects):
            if not content:
                objects = [{k: v for k, v in o.items() if k != "content"} for o in objects]
            data = (start + "".join(json.dumps(o) + end for o in objects)).encode()
            (folder / (name + ending)).write_bytes(gzip.compress(data) if ending.endswith(".gz") else data)

        write("lbl", [{"uid": u, "title": t, "content": c} for u, t, c in self.labels])
        for part, rows in self.parts.items():
            write(part, [{"uid": u, "title": t, "content": c, "target_ind": y, "target_rel": [1.0] * len(y)}
                         for u, t, c, y in rows])
        return folder

    def write_dexml(self, folder, inner="raw", **matrix):
        raw = folder / inner
        raw.mkdir(exist_ok=True, parents=True)
        (raw / "Y.txt").write_text("".join(t + "\n" for _, t, _ in self.labels))
        for part, rows in self.parts.items():
            (raw / f"{part}_X.txt").write_text("".join(row[1] + "\n" for row in rows))
            save_npz(folder / f"Y.{part}.npz", [row[3] for row in rows], len(self.labels), **matrix)
        return folder


def npy(array):
    out = io.BytesIO()
    np.lib.format.write_array(out, array, allow_pickle=False)
    return out.getvalue()


def arrays_of(rows, columns, index=np.int32, data=np.float32, form=None):
    """What scipy.sparse.save_npz puts into the zip."""
    indptr = np.cumsum([0] + [len(row) for row in rows])
    indices = [column for row in rows for column in row]
    return {"indices": np.array(indices, index), "indptr": np.array(indptr, index),
            "format": np.array(b"csr") if form is None else form, "shape": np.array([len(rows), columns], np.int64),
            "data": np.ones(len(indices), data)}


def save_arrays(path, arrays, compression=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, array in arrays.items():
            with archive.open(name + ".npy", "w", force_zip64=True) as entry:
                entry.write(array if isinstance(array, bytes) else npy(array))


def save_npz(path, rows, columns, compression=zipfile.ZIP_DEFLATED, **more):
    save_arrays(path, arrays_of(rows, columns, **more), compression)


# ---- the same files, read by Python ---------------------------------------------------------------------------------


def read_lfxmc(folder, part, content=False):
    def read(name):
        path = folder / f"{name}.json"
        data = path.read_bytes() if path.exists() else gzip.decompress((folder / f"{name}.json.gz").read_bytes())
        return [json.loads(line) for line in data.decode("utf-8-sig").splitlines()]

    def text(line):
        return " ".join(filter(None, (line["title"], line.get("content", "") if content else "")))

    labels = read("lbl")
    uids = [line["uid"] for line in labels]
    return ({line["uid"]: text(line) for line in labels},
            {line["uid"]: (text(line), sorted({uids[i] for i in line["target_ind"]})) for line in read(part)})


def read_dexml(folder, part):
    raw = folder / "raw" if (folder / "raw").exists() else folder
    with np.load(folder / f"Y.{part}.npz") as loaded:
        m = dict(loaded)
    dense = np.zeros(m["shape"])
    for row in range(len(dense)):
        span = slice(m["indptr"][row], m["indptr"][row + 1])
        np.add.at(dense[row], m["indices"][span], m["data"][span])
    texts = (raw / f"{part}_X.txt").read_text().splitlines()
    labels = (raw / "Y.txt").read_text().splitlines()
    return ({str(i): text for i, text in enumerate(labels)},
            {f"{part}-{i}": (text, sorted(str(c) for c in np.flatnonzero(dense[i]))) for i, text in enumerate(texts)})


def check_load(folder, expected, *arguments, form=""):
    memory = folder / f"memory{form}"
    done = engram("load", "--memory", memory, *arguments)
    labels, instances = expected
    assert done.stdout.startswith(f"folded {len(labels)} label definitions and {len(instances)} instances into ")
    assert done.stderr == ""
    assert exported(memory) == expected
    return memory


# ---- load -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending, content", [(".json", True), (".json.gz", True), (".json.gz", False)])
def test_load_of_lfxmc(folder, ending, content):
    data = DataSet(1).write_lfxmc(folder / "LF-Small", ending, content)
    titles = read_lfxmc(data, "trn")
    check_load(folder, titles, "--data", data)
    check_load(folder, titles, "--labels", data, "--instances", f"{data}/", form=2)
    check_load(folder, titles, "--labels", data / f"lbl{ending}", "--instances", data / f"trn{ending}", "--text", "title",
               form=3)
    check_load(folder, read_lfxmc(data, "trn", content=True), "--data", data, "--text", "title+content", form=4)
    check_load(folder, (titles[0], read_lfxmc(data, "tst")[1]), "--data", data, "--instances", data / f"tst{ending}", form=5)


@pytest.mark.parametrize("end, start", [("\r\n", ""), ("\n", "\ufeff"), ("\r\n", "\ufeff")])
def test_crlf_and_byte_order_mark(folder, end, start):
    data = DataSet(2)
    expected = read_lfxmc(data.write_lfxmc(folder / "plain"), "trn")
    check_load(folder, expected, "--data", data.write_lfxmc(folder / "other", end=end, start=start))
    dexml = data.write_dexml(folder / "dexml")
    expected = read_dexml(dexml, "trn")
    for path in (dexml / "raw").iterdir():
        path.write_bytes((start + path.read_text().replace("\n", end)).encode())
    check_load(folder, expected, "--data", dexml, form=2)


def test_files_of_other_names_are_known_by_their_first_line(folder):
    data = DataSet(3).write_lfxmc(folder / "data")
    expected = read_lfxmc(data, "trn")
    (data / "trn.json").rename(data / "a part.jsonl")
    check_load(folder, expected, "--labels", data, "--instances", data / "a part.jsonl")


def test_uid_may_be_a_number_and_content_null(folder):
    (folder / "lbl.json").write_text('{"uid": 7, "title": "seven", "content": null}\n{"uid": "x", "title": ""}\n')
    (folder / "trn.json").write_text('{"uid": 12, "title": "a", "content": "b", "target_ind": [1, 0, 1]}\n'
                                     '{"uid": 13, "title": "c", "target_ind": [0, 1], "target_rel": [0, 0.5]}')
    check_load(folder, ({"7": "seven", "x": ""}, {"12": ("a b", ["7", "x"]), "13": ("c", ["x"])}), "--data", folder,
               "--text", "title+content")


@pytest.mark.parametrize("inner", ["raw", "."])
@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("index, data", [(np.int32, np.float32), (np.int64, np.float64), (np.int32, np.int8),
                                         (np.int64, bool)])
def test_load_of_dexml(folder, inner, compression, index, data):
    made = DataSet(4).write_dexml(folder / "Set", inner, compression=compression, index=index, data=data)
    expected = read_dexml(made, "trn")
    check_load(folder, expected, "--data", made)
    check_load(folder, expected, "--labels", made / inner / "Y.txt", "--instances", made / inner / "trn_X.txt", form=2)


def test_a_matrix_may_hold_zeros_repeats_and_an_old_format(folder):
    made = DataSet(5).write_dexml(folder / "Set")
    arrays = arrays_of([[3, 1, 3]] * 60, 20, form=np.array("csr"))
    arrays["data"][1::3] = 0
    save_arrays(made / "Y.trn.npz", arrays)
    labels, instances = expected = read_dexml(made, "trn")
    assert instances["trn-0"][1] == ["3"]
    check_load(folder, expected, "--data", made)


def test_a_folder_has_one_form(folder):
    """One that DEXML has prepared holds the LF-XMC files too: all parts come from the same."""
    made = DataSet(6)
    data = made.write_dexml(made.write_lfxmc(folder / "data"))
    check_load(folder, read_lfxmc(data, "trn"), "--data", data)
    (data / "trn.json").unlink()
    done = engram("load", "--memory", folder / "none", "--data", data, status=1)
    assert done.stderr == f"engram load: {data} has an LF-XMC data set, but no trn.json (or trn.json.gz)\n"
    done = engram("load", "--memory", folder / "none", "--data", folder, status=1)
    assert done.stderr.startswith(f"engram load: {folder} has no data set: neither lbl.json, trn.json, tst.json")
    done = engram("load", "--memory", folder / "none", "--data", data / "lbl.json", status=1)
    assert done.stderr == f"engram load: {data}/lbl.json is not a folder: --data takes the folder of a data set\n"
    assert not (folder / "none").exists()


def test_our_own_example_is_a_folder_too(folder):
    for name in ("labels", "train", "test"):
        with gzip.open(ROOT / f"examples/debtags/{name}.jsonl.gz") as lines:
            (folder / f"{name}.jsonl").write_bytes(b"".join(line for line, _ in zip(lines, range(30))))
    labels = [json.loads(line) for line in (folder / "labels.jsonl").read_text().splitlines()]
    train = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    check_load(folder, ({l["label"]: l["text"] for l in labels}, {i["id"]: (i["text"], sorted(i["labels"])) for i in train}),
               "--data", folder)
    assert json.loads(engram("eval", "--memory", folder / "memory", "--test", folder, "--json").stdout)["n"] == 30


def test_paths_are_those_of_the_current_folder(folder):
    made = DataSet(7).write_dexml(folder / "Set")
    engram("load", "--memory", folder / "memory", "--labels", "Y.txt", "--instances", "trn_X.txt", cwd=made / "raw")
    assert exported(folder / "memory") == read_dexml(made, "trn")
    lfxmc = DataSet(7).write_lfxmc(folder / "data")
    engram("load", "--memory", folder / "memory2", "--labels", "lbl.json", "--instances", "trn.json", cwd=lfxmc)
    assert exported(folder / "memory2") == read_lfxmc(lfxmc, "trn")


def test_text_flag():
    done = engram("load", "--labels", "x", "--text", "content", status=2)
    assert done.stderr.startswith("engram load: --text content: must be title or title+content\n")


def test_long_texts_are_cut_and_long_lines_read(folder):
    (folder / "lbl.json").write_text('{"uid": "l", "title": "l"}\n')
    long = "é" * 40000
    (folder / "trn.json").write_text(json.dumps({"uid": "a", "title": long, "content": "x" * 3_000_000, "target_ind": [0]}))
    check_load(folder, ({"l": "l"}, {"a": (long[:32768], ["l"])}), "--data", folder)


# ---- eval -----------------------------------------------------------------------------------------------------------


def check_eval(memory, test, expected, pairs, *arguments, counts=None, n=None):
    """pairs: {(id, label)}."""
    labels, instances = exported(memory)
    texts = {i: text for i, (text, _) in expected.items()}
    lines = engram("tag", "--stdin", "--json-lines", "--memory", memory, "--labels-max", 0, "--evidence-max", 0,
                   stdin="".join(json.dumps({"id": i, "text": t}) + "\n" for i, t in texts.items())).stdout.splitlines()
    tagged = {line["id"]: line["labels"] for line in map(json.loads, lines)}
    scored = [[(l["label"], l["score"]) for l in tagged[i] if (i, l["label"]) not in pairs] for i in expected]
    gold = [{name for name in names if (i, name) not in pairs} for i, (_, names) in expected.items()]
    if counts is None:
        counts = {name: sum(name in names for _, names in instances.values()) for name in
                  {*labels, *(name for _, names in instances.values() for name in names)}}
    want = reference.metrics(scored, gold, counts, n or len(instances))
    got = json.loads(engram("eval", "--memory", memory, "--test", test, "--json", *arguments).stdout)
    assert got["n"] == want["n"] > 10
    for name in ("P@1", "P@5", "R@10", "nDCG@5", "PSP@1", "PSP@5", "PSnDCG@3"):
        assert got[name] == pytest.approx(want[name], abs=1e-3), name
    return got


def pairs_of(data, part, names, ids):
    return {(ids[row], names[label]) for row, label in data.pairs[part]}


@pytest.mark.parametrize("form", ["lfxmc", "dexml"])
def test_eval_leaves_pairs_out(folder, form):
    drawn = DataSet(8)
    data = drawn.write_lfxmc(folder / "data", ".json.gz") if form == "lfxmc" else drawn.write_dexml(folder / "data")
    read = read_lfxmc if form == "lfxmc" else read_dexml
    memory = check_load(folder, read(data, "trn"), "--data", data)
    names = [label[0] for label in drawn.labels] if form == "lfxmc" else [str(i) for i in range(20)]
    expected = read(data, "tst")[1]
    without = check_eval(memory, data, expected, set())
    drawn.write_pairs(data)
    file = data / ("tst.json.gz" if form == "lfxmc" else "raw/tst_X.txt")
    pairs = pairs_of(drawn, "tst", names, list(expected))
    got = check_eval(memory, data, expected, pairs)
    assert got == check_eval(memory, file, expected, pairs) != without
    # on the part to train with, its own pairs
    train = read(data, "trn")[1]
    file = data / ("trn.json.gz" if form == "lfxmc" else "raw/trn_X.txt")
    check_eval(memory, file, train, pairs_of(drawn, "trn", names, list(train)))
    # what was learnt does not look at pairs
    check_load(folder, read(data, "trn"), "--data", data, form=2)
    # counts from a file: as the memory would have it
    counts = {name: sum(name in labels for _, labels in train.values()) for name in names}
    counts = {name: count for name, count in counts.items() if count}
    half = folder / "half"
    engram("load", "--memory", half, "--labels", data)
    engram("load", "--memory", half, "--instances", "-", stdin="".join(
        json.dumps({"id": i, "text": t, "labels": l}) + "\n" for i, (t, l) in list(train.items())[:30]))
    check_eval(half, data, expected, pairs, "--train", data, counts=counts, n=len(train))


def test_eval_item_to_item(folder):
    """--exclude-self and pairs: the text that is a label is not predicted as that label."""
    drawn = DataSet(9)
    drawn.parts["tst"] = [(drawn.labels[i % 20][0], *row[1:3], [i % 20, (i + 1) % 20])
                          for i, row in enumerate(drawn.parts["tst"][:20])]
    drawn.pairs["tst"] = [(i, i) for i in range(20)]
    data = drawn.write_lfxmc(folder / "data")
    engram("load", "--memory", folder / "memory", "--data", data)
    by_name = engram("eval", "--memory", folder / "memory", "--test", data, "--exclude-self", "--json").stdout
    assert by_name != engram("eval", "--memory", folder / "memory", "--test", data, "--json").stdout
    drawn.write_pairs(data)
    assert by_name == engram("eval", "--memory", folder / "memory", "--test", data, "--json").stdout


@pytest.mark.parametrize("line, says", [
    ("3 20", ":2: names label 20 (from 0), but there are 20"), ("3 -1", ":2: must have two numbers, a row and a label"),
    ("3", ":2: must have two numbers"), ("3 4 5", ":2: must have two numbers"), ("x 1", ":2: must have two numbers"),
    ("1 " + "1" * 300, ":2: "), ("99999999999999999999 1", ":2: must have two numbers"),
    ("40 1", ":2: names row 40 (from 0), but ")])
def test_bad_pairs_are_named(folder, line, says):
    drawn = DataSet(8)
    data = drawn.write_lfxmc(folder / "data")
    engram("load", "--memory", folder / "memory", "--data", data)
    (data / "filter_labels_test.txt").write_text("0 1\r\n\n")
    good = engram("eval", "--memory", folder / "memory", "--test", data).stdout
    (data / "filter_labels_test.txt").write_text(f"0 1\n{line}\n")
    done = engram("eval", "--memory", folder / "memory", "--test", data, status=1)
    assert done.stderr.startswith(f"engram eval: {data}/filter_labels_test.txt{says}") and done.stderr.count("\n") == 1
    assert done.stdout == good


# ---- what can be wrong in LF-XMC ----------------------------------------------------------------------------------

GOOD = {"uid": "new", "title": "t", "content": "c", "target_ind": [1, 2], "target_rel": [1.0, 1.0]}


@pytest.mark.parametrize("change, says", [
    ({"target_ind": [1, 20]}, "target_ind[1] is 20, but "), ({"target_ind": [-1, 2]}, "target_ind[0] is -1, but "),
    ({"target_ind": [1, 2.5]}, "target_ind[1] must be a whole number"),
    ({"target_ind": [1, "2"]}, "target_ind[1] must be a whole number"),
    ({"target_ind": [1, None]}, "target_ind[1] must be a whole number"),
    ({"target_ind": [1, 2**70]}, "target_ind[1] must be a whole number"),
    ({"target_ind": [1, 2, 3]}, "target_ind has 3 entries, target_rel 2: there must be as many"),
    ({"target_rel": [1.0]}, "target_ind has 2 entries, target_rel 1: there must be as many"),
    ({"target_rel": [1.0, -1]}, "target_rel[1] must be a number, 0 or more"),
    ({"target_rel": None}, 'field "target_rel" is null: it must be a list'),
    ({"target_ind": None}, 'field "target_ind" is null: it must be a list'),
    ({"target_ind": ...}, 'field "target_ind" is missing: it must be a list'),
    ({"target_ind": [3] * 1001, "target_rel": [1] * 1001}, "1001 labels are listed, over the limit of 1000"),
    ({"title": None}, 'field "title" is null: it must be a string'), ({"title": ...}, 'field "title" is missing'),
    ({"title": 5}, 'field "title" must be a string'), ({"title": "a\0"}, 'title and content has a NUL character at byte 1'),
    ({"content": ["a"]}, 'field "content" must be a string'),
    ({"uid": ...}, 'field "uid" is missing: it must be a string or a whole number'),
    ({"uid": 1.5}, 'field "uid" must be a string or a whole number'), ({"uid": ""}, 'field "uid" is empty'),
    ({"uid": "x" * 256}, 'field "uid" is over 255 bytes long'),
    ({"uid": "trné3"}, 'uid "trné3" is in an earlier line too: each may occur once'),
    ("{", "not JSON: "), ("[]", "the line must be a JSON object"), ('{"uid": "\\ud800"}', "lone surrogate"),
    ('\ufeff{"uid": "new"}', "not JSON: ")])
def test_bad_instances_are_named(folder, change, says):
    drawn = DataSet(10)
    data = drawn.write_lfxmc(folder / "data")
    expected = read_lfxmc(data, "trn", content=True)
    if isinstance(change, dict):
        change = json.dumps({k: v for k, v in (GOOD | change).items() if v is not ...})
    lines = (data / "trn.json").read_text().splitlines()
    (data / "trn.json").write_text("\n".join(lines[:10] + [change, ""] + lines[10:]))
    done = engram("load", "--memory", folder / "memory", "--data", data, "--text", "title+content", status=1)
    assert done.stderr.startswith(f"engram load: {data}/trn.json:11: {says}"), done.stderr
    assert done.stderr.count("\n") == 1 and done.stdout.rstrip().endswith("; skipped 1 bad line")
    assert exported(folder / "memory") == expected


@pytest.mark.parametrize("line, says", [
    ('{"uid": "zz", "title": null}', 'field "title" is null'), ('{"uid": "zz"}', 'field "title" is missing'),
    ('{"title": "t"}', 'field "uid" is missing'), ("{", "not JSON"), ("first", 'uid "'), ("", None),
    ('{"uid": "zz", "title": "t", "target_ind": []}', 'has a field "target_ind": this is an instance, not a label')])
def test_bad_labels_keep_their_number(folder, line, says):
    """Nobody else gets the number, and who means it is named."""
    drawn = DataSet(11)
    data = drawn.write_lfxmc(folder / "data")
    labels, instances = read_lfxmc(data, "trn")
    lines = (data / "lbl.json").read_text().splitlines()
    lost = drawn.labels[4][0]
    lines[4] = lines[0] if line == "first" else line
    (data / "lbl.json").write_text("\n".join(lines) + "\n")
    numbers = [i for i, row in enumerate(drawn.parts["trn"], 1) if 4 in row[3]]
    assert len(numbers) > 2
    done = engram("load", "--memory", folder / "memory", "--data", data, status=1)
    told = re.findall(rf"^engram load: {data}/trn.json:(\d+): target_ind\[\d+\] is 4, but {data}/lbl.json:5 has no label",
                      done.stderr, re.MULTILINE)
    assert [int(number) for number in told] == numbers
    assert done.stderr.count(f"engram load: {data}/lbl.json:5: {says}") == (says is not None)
    assert done.stderr.count("\n") == len(numbers) + (says is not None)
    left = {i: value for i, value in instances.items() if lost not in value[1]}
    assert exported(folder / "memory") == ({name: text for name, text in labels.items() if name != lost}, left)


def test_instances_need_their_labels_beside_them(folder):
    data = DataSet(12).write_lfxmc(folder / "data")
    (data / "lbl.json").unlink()
    done = engram("load", "--memory", folder / "memory", "--instances", data / "trn.json", status=1)
    assert done.stderr == (f"engram load: {data}/trn.json refers to labels by their line in lbl.json (or lbl.json.gz), which "
                           "must be beside it\n")


# ---- what can be wrong in DEXML's layout --------------------------------------------------------------------------


def change_lines(path, change):
    path.write_text("".join(change(path.read_text().splitlines(keepends=True))))


@pytest.mark.parametrize("name, change, says", [
    ("trn_X.txt", lambda l: l[:-1], "trn_X.txt has 59 lines, but {}/raw/../Y.trn.npz has 60 rows"),
    ("trn_X.txt", lambda l: [*l, "\n"], "trn_X.txt has 61 lines, but {}/raw/../Y.trn.npz has 60 rows"),
    ("trn_X.txt", lambda l: ["".join(l).replace("\n", "\r")], "trn_X.txt has 1 lines, but"),
    ("Y.txt", lambda l: l[1:], "Y.txt has 19 lines, but {}/raw/../Y.trn.npz has 20 columns"),
    ("Y.txt", lambda l: [*l, "more"], "Y.txt has 21 lines, but {}/raw/../Y.trn.npz has 20 columns")])
def test_files_that_do_not_belong_together(folder, name, change, says):
    data = DataSet(13).write_dexml(folder / "data")
    change_lines(data / "raw" / name, change)
    done = engram("load", "--memory", folder / "memory", "--data", data, status=1)
    assert done.stderr.startswith(f"engram load: {data}/raw/{says.format(data)}") and done.stderr.count("\n") == 1
    assert not (folder / "memory").exists()


def test_bad_lines_of_dexml_are_named_and_shift_nobody(folder):
    data = DataSet(14).write_dexml(folder / "data")
    labels, instances = read_dexml(data, "trn")
    path = data / "raw/trn_X.txt"
    lines = path.read_bytes().split(b"\n")
    lines[3], lines[7], lines[9] = b"caf\xe9", b"a\0b", b""
    path.write_bytes(b"\n".join(lines))
    (data / "raw/Y.txt").write_bytes((data / "raw/Y.txt").read_bytes().replace(b"\n", b"\xff\n", 1))
    done = engram("load", "--memory", folder / "memory", "--data", data, status=1)
    assert done.stderr.splitlines() == [
        f"engram load: {data}/raw/Y.txt:1: the line is not UTF-8 at byte {len(labels['0'])}",
        f"engram load: {path}:4: the line is not UTF-8 at byte 3",
        f"engram load: {path}:8: the line has a NUL character at byte 1"]
    del labels["0"], instances["trn-3"], instances["trn-7"]
    instances["trn-9"] = ("", instances["trn-9"][1])
    assert exported(folder / "memory") == (labels, instances)


def with_arrays(change):
    def write(path):
        arrays = arrays_of([[3, 1]] * 60, 20)
        change(arrays)
        save_arrays(path, arrays)
    return write


@pytest.mark.parametrize("write, says", [
    (lambda path: path.write_bytes(b"no zip"), "is not a sparse matrix of scipy.sparse.save_npz: "),
    (lambda path: path.write_bytes(path.read_bytes()[:-30]), "is not a sparse matrix of scipy.sparse.save_npz: "),
    (lambda path: path.unlink(), "must be beside it or one folder up"),
    (with_arrays(lambda a: a.pop("indptr")), "has no indptr.npy"),
    (with_arrays(lambda a: a.update(format=np.array(b"coo"))), 'of format "coo": save it as csr'),
    (with_arrays(lambda a: a.update(shape=np.array([61, 20]))), "a matrix of 61 rows has one more than rows"),
    (with_arrays(lambda a: a.update(shape=np.array([60, 3]))), "names column 3 (both from 0), but there are 3 columns"),
    (with_arrays(lambda a: a.update(shape=np.array([60.0, 20.0]))), "shape.npy must be a row of whole numbers"),
    (with_arrays(lambda a: a["indices"].__setitem__(5, -1)), "indices.npy has a negative number"),
    (with_arrays(lambda a: a["indptr"].__setitem__(5, 3)), "indptr.npy must increase"),
    (with_arrays(lambda a: a["indptr"].__setitem__(60, 119)), "indptr.npy ends with 119, but there are 120 indices"),
    (with_arrays(lambda a: a.update(data=a["data"][1:])), "indices.npy has 120 items, data.npy 119"),
    (with_arrays(lambda a: a.update(data=a["data"] * np.nan)), "data.npy has a value that is below 0 or NaN"),
    (with_arrays(lambda a: a.update(data=a["data"].astype(complex))), "data.npy must be a row of numbers"),
    (with_arrays(lambda a: a.update(indices=a["indices"].astype(">i4"))), "indices.npy is of type '>i4'"),
    (with_arrays(lambda a: a.update(indices=a["indices"].astype(np.float32))), "indices.npy must be a row of whole"),
    (with_arrays(lambda a: a.update(indices=np.asfortranarray(a["indices"].reshape(2, 60)))), "in Fortran order"),
    (with_arrays(lambda a: a.update(indices=npy(a["indices"])[:-4])), "indices.npy has "),
    (with_arrays(lambda a: a.update(indices=b"")), "indices.npy is cut short")])
def test_a_damaged_matrix_is_refused_before_anything_is_folded(folder, write, says):
    data = DataSet(15).write_dexml(folder / "data")
    write(data / "Y.trn.npz")
    done = engram("load", "--memory", folder / "memory", "--data", data, status=1)
    assert says in done.stderr and "Y.trn.npz" in done.stderr and done.stderr.count("\n") == 1
    assert not (folder / "memory").exists()


def test_labels_and_texts_are_not_confused(folder):
    data = DataSet(16).write_dexml(folder / "data")
    done = engram("load", "--memory", folder / "memory", "--instances", data / "raw/Y.txt", status=2)
    assert done.stderr.startswith(f"engram load: {data}/raw/Y.txt has labels: give it as --labels")
    done = engram("load", "--memory", folder / "memory", "--labels", data / "raw/trn_X.txt", status=2)
    assert done.stderr.startswith(f"engram load: {data}/raw/trn_X.txt has texts: the labels are in Y.txt")
