"""`engram tune` and `engram eval --sweep` against the long way round: leave-one-out by really forgetting each instance,
a sweep by one `eval` for each setting.
"""

import json
import random
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
from test_engine import ENGRAM, World, engram, random_test, write_lines

MEASURES = ("P@1", "P@5", "nDCG@5", "PSP@5")


@pytest.fixture
def folder():
    path = Path(tempfile.mkdtemp(prefix="engram-tune-"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


def flags_of(setting):
    return [part for name in ("pool", "lambda", "tau", "b", "lexical") for part in (f"--{name}", setting[name])]


def evaluate(world, test, *flags):
    path = write_lines(world.folder / "test.jsonl", test)
    return json.loads("".join(engram("eval", "--test", path, "--json", *world.flags, *flags)))


def tune(world, *flags):
    lines = engram("tune", "--json", *world.flags, *flags)
    return json.loads("".join(lines))


def forgotten_one_by_one(world, setting, exclude_self):
    """P@1, P@5 and nDCG@5 over all labelled instances, each evaluated while the memory lacks it."""
    sums, n = dict.fromkeys(MEASURES[:3], 0.0), 0
    for name, (text, labels) in world.instances.items():
        if not labels:
            continue
        record = [{"id": name, "text": text, "labels": labels}]
        engram("forget", name, "--local", *world.flags)
        got = evaluate(world, record, "--at", "1,5", *flags_of(setting), *(["--exclude-self"] if exclude_self else []))
        engram("load", "--instances", write_lines(world.folder / "back.jsonl", record), *world.flags)
        if got["n"]:
            n += 1
            for measure in sums:
                sums[measure] += got[measure]
    return {measure: total / n for measure, total in sums.items()}, n


@pytest.mark.parametrize("setting, exclude_self", [
    ({"pool": "joint", "lambda": 0.4, "tau": 0.1, "b": 30, "lexical": 0}, False),
    ({"pool": "apart", "lambda": 0.7, "tau": 0.3, "b": 20, "lexical": 1}, False),
    ({"pool": "joint", "lambda": 0.3, "tau": 0.2, "b": 25, "lexical": 3}, True),
])
def test_leave_one_out_is_forgetting(folder, setting, exclude_self):
    world = World(3, folder, instances=50, labels=20)
    if exclude_self:  # labels that are named as instances
        for i in range(8):
            world.labels[f"i{i}"] = world.text()
            text, labels = world.instances[f"i{i}"]
            world.instances[f"i{i}"] = (text, sorted({*labels, f"i{i}", f"i{(i + 1) % 8}"}))
        world.load()
    got = tune(world, "--sample", 1000, *flags_of(setting), *(["--exclude-self"] if exclude_self else []))
    want, n = forgotten_one_by_one(world, setting, exclude_self)
    assert got["n"] == n
    for name, value in setting.items():
        assert got["today"][name] == value
    for measure, value in want.items():
        assert got["today"][measure] == pytest.approx(value, abs=1e-4), measure


def test_the_best_is_the_best_of_the_last_look(folder):
    world = World(4, folder, instances=80, labels=20)
    got = tune(world, "--sample", 1000, "--by", "p@1+0.5*ndcg@5")
    again = tune(world, "--sample", 1000, "--by", "p@1+0.5*ndcg@5", *flags_of(got["best"]))
    for measure in MEASURES:
        assert again["today"][measure] == pytest.approx(got["best"][measure], abs=1e-4)
    gain = sum(w * (got["best"][m] - got["today"][m]) for m, w in (("P@1", 1), ("nDCG@5", 0.5)))
    assert got["gain"] == pytest.approx(gain, abs=1e-4) and got["gain"] >= 0 and got["standard_error"] > 0
    assert not again["better"] and again["gain"] == pytest.approx(0, abs=1e-4)
    trades = got["trade_off"]
    assert trades == sorted(trades, key=lambda s: (-s["P@1"], s["PSP@5"]))


def test_write_changes_only_what_changed(folder):
    world = World(4, folder, instances=80, labels=20)
    config = folder / "engram.conf"
    config.write_text("# mine\n[predict]\n# too cold\ntau = 0.0001\nlambda = 0.5\n\n[log]\nlog_level = warn\n")
    got = tune(world, "-c", config, "--write")
    assert got["better"] and got["written"]
    assert "# mine\n" in config.read_text() and "# too cold" in config.read_text()
    in_force = json.loads("".join(engram("config", "--json", "-c", config)))
    for name in ("pool", "lambda", "tau", "b", "lexical"):
        assert in_force[name]["value"] == got["best"][name], name
    before = config.read_bytes()
    assert not tune(world, "-c", config, "--write")["written"] and config.read_bytes() == before


def test_write_follows_the_file_and_not_the_flags(folder):
    world = World(4, folder, instances=80, labels=20)
    config = folder / "engram.conf"
    best = tune(world)["best"]
    config.write_text("[predict]\ntau = 50\nlambda = 0.95\n")
    got = tune(world, "-c", config, "--write", "--tau", best["tau"], "--lambda", 0.01)
    assert got["written"] and (got["today"]["tau"], got["today"]["lambda"]) == (best["tau"], 0.01)
    in_force = json.loads("".join(engram("config", "--json", "-c", config)))
    assert {name: in_force[name]["value"] for name in ("tau", "lambda")} == {name: best[name] for name in ("tau", "lambda")}


def test_sweep_is_one_eval_for_each_setting(folder):
    world = World(5, folder, instances=90, labels=20)
    test = random_test(world, 30)
    sweep = evaluate(world, test, "--sweep", "--b", 40)["sweep"]
    assert len(sweep) == len({tuple(map(str, flags_of(s))) for s in sweep}) == 200
    for setting in random.Random(1).sample(sweep, 12):
        want = evaluate(world, test, "--at", "1,5", *flags_of(setting))
        for measure in MEASURES:
            assert setting[measure] == pytest.approx(want[measure], abs=1e-4), (setting, measure)


@pytest.mark.parametrize("arguments, says", [
    (["tune", "--by", "p@2"], "--by"), (["tune", "--by", "-1*p@1"], "--by"), (["tune", "--sample", "1"], "--sample"),
    (["tune", "--write"], "-c FILE"), (["eval", "--test", "x", "--sweep", "--deciles"], "--deciles"),
])
def test_wrong_flags(arguments, says):
    done = subprocess.run([ENGRAM, *arguments], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and says in done.stderr.splitlines()[0]


def test_few_of_many_instances_have_labels(folder):
    """The second look draws from those with labels alone."""
    world = World(7, folder, instances=30, labels=10)
    world.instances = {f"u{i}": (world.text(), []) for i in range(200)} | {
        f"l{i}": (world.text(), [f"label {i % 10}"]) for i in range(25)}
    shutil.rmtree(world.memory)
    world.load()
    got = tune(world, "--sample", 20)
    assert got["n"] == 20 and got["gain"] is not None and got["best"]["P@1"] is not None


def test_nothing_to_tune_on(folder):
    world = World(6, folder, instances=0, labels=3)
    done = subprocess.run([ENGRAM, "tune", *map(str, world.flags)], capture_output=True, text=True, timeout=60)
    assert done.returncode != 0 and "tuning needs" in done.stderr
