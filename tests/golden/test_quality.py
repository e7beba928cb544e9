"""`engram tune` on a small part of debtags: what it picks by leave-one-out holds on texts that the memory never saw, and the
file that it writes is the one that `eval` then goes by. `make quality` is the same on the whole of both sets.
"""

import gzip
import itertools
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))
import quality  # noqa: E402

DATA = ROOT / "examples/debtags"
TRAIN, TEST, SAMPLE = 1500, 300, 300
FILE = """# the head of the file
[memory]
memory = {}

[predict]
# why lambda is what it is
lambda = 0.5
; labels_max is the user's own
labels_max = 7
# the last word
"""


def head(name, lines, to):
    with gzip.open(DATA / name, "rt", encoding="utf-8") as source:
        to.write_text("".join(itertools.islice(source, lines)), encoding="utf-8")
    return to


def without_setting(text):
    """The lines that tune has no business with."""
    return [line for line in text.splitlines() if not re.match(rf"({'|'.join(quality.SETTING)})\s*=", line)]


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    folder = tmp_path_factory.mktemp("quality")
    file, test = folder / "engram.conf", head("test.jsonl.gz", TEST, folder / "test.jsonl")
    file.write_text(FILE.format(folder / "memory"), encoding="utf-8")
    quality.load(file, DATA / "labels.jsonl.gz", head("train.jsonl.gz", TRAIN, folder / "train.jsonl"), quiet=True)
    before = quality.evaluate(file, test, quiet=True)
    found, _ = quality.tune(file, "--sample", SAMPLE, quiet=True)
    return {"file": file, "test": test, "before": before, "found": found, "text": file.read_text(encoding="utf-8")}


def test_it_finds_better_than_the_default(tuned):
    found = tuned["found"]
    assert found["written"]
    assert [found["today"][name] for name in quality.SETTING] == ["joint", 0.5, 0.1, 200, 0, "cosine", 0]
    assert found["gain"] == pytest.approx(found["best"]["nDCG@5"] - found["today"]["nDCG@5"], abs=1e-6)
    assert found["gain"] > 0 < found["standard_error"]


def test_what_it_finds_holds_on_the_test_part(tuned):
    after = quality.evaluate(tuned["file"], tuned["test"], quiet=True)
    assert after["n"] == tuned["before"]["n"]
    assert after["nDCG@5"] > tuned["before"]["nDCG@5"] - 1


def test_the_file_is_what_eval_goes_by(tuned):
    best = tuned["found"]["best"]
    by_file = quality.evaluate(tuned["file"], tuned["test"], quiet=True)
    flags = [word for name in quality.SETTING for word in (f"--{name.replace('_', '-')}", best[name])]
    assert by_file == quality.evaluate(tuned["file"], tuned["test"], *flags, quiet=True)
    assert by_file != tuned["before"]


def test_only_what_changed_is_written(tuned):
    before, after = FILE.format(tuned["file"].parent / "memory"), tuned["text"]
    assert after != before and without_setting(after) == without_setting(before)
    predict = after.partition("[predict]\n")[2]
    for name in quality.SETTING:
        assert len(re.findall(rf"^{name}\s*=", after, re.MULTILINE)) == len(re.findall(rf"^{name}\s*=", predict, re.MULTILINE)) <= 1


def test_a_second_run_has_nothing_to_write(tuned):
    again, _ = quality.tune(tuned["file"], "--sample", SAMPLE, quiet=True)
    assert not again["written"] and again["gain"] == 0
    assert [again["today"][name] for name in quality.SETTING] == [tuned["found"]["best"][name] for name in quality.SETTING]
    assert tuned["file"].read_text(encoding="utf-8") == tuned["text"]
