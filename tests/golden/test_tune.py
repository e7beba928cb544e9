"""`engram tune`: which instances and settings it looks at, what it may be trusted for and what it writes; and `engram eval
--sweep` against one `eval` for each setting. That leave-one-out is forgetting: tests/unit/test_scorer.c.
"""

import json
import random
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
from test_engine import ENGRAM, WORDS, World, engram, random_test, write_lines

MEASURES = ("P@1", "P@5", "nDCG@5", "PSP@5")
SETTING = ("pool", "lambda", "tau", "b", "lexical", "lexical_form", "label_power")


@pytest.fixture
def folder():
    path = Path(tempfile.mkdtemp(prefix="engram-tune-"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


def flags_of(setting):
    return [part for name in SETTING for part in (f"--{name.replace('_', '-')}", setting[name])]


def evaluate(world, test, *flags):
    path = write_lines(world.folder / "test.jsonl", test)
    return json.loads("".join(engram("eval", "--test", path, "--json", *world.flags, *flags)))


def tune(world, *flags):
    lines = engram("tune", "--json", *world.flags, *flags)
    return json.loads("".join(lines))


@pytest.mark.parametrize("labelled, sample, looks", [
    (200, 20, [(0, 20), (20, 40), (60, 40)]),
    (90, 20, [(0, 20), (20, 34), (54, 36)]),
    (50, 20, [(0, 20), (0, 30), (30, 20)]),  # too few for a second look at others
    (50, 2000, [(0, 30), (0, 30), (30, 20)]),
    (5, 2000, [(0, 3), (0, 3), (3, 2)]),
])
def test_what_is_shown_had_no_say_in_the_choice(folder, labelled, sample, looks):
    """The first look is at all settings, the second at the twelve best, and the last at instances of its own."""
    world = World(7, folder, instances=30, labels=10)
    world.instances = {f"u{i}": (world.text(), []) for i in range(40)} | {
        f"l{i}": (world.text(), [f"label {i % 10}"]) for i in range(labelled)}
    shutil.rmtree(world.memory)
    world.load()
    got = tune(world, "--sample", sample)
    assert [(look["first"], look["instances"]) for look in got["looks"]] == looks
    assert got["n"] == looks[2][1] and got["best"]["P@1"] is not None
    all_settings, few, shown = (look["settings"] for look in got["looks"])
    assert (all_settings, few) == (27104, 12) and shown <= 10 and len(got["trade_off"]) < shown


def test_nothing_is_gained_on_noise(folder):
    """Labels that have nothing to do with texts: the best of thousands of settings leads by luck, and the gain says so."""
    gains = []
    for seed in range(6):
        world = World(seed, folder, instances=60, labels=20)
        gains.append(tune(world, "--lambda", 1, "--b", 1000, "--tau", 1000)["gain"])
        shutil.rmtree(world.memory)
    assert min(gains) < 0 and sum(gains) / len(gains) < 2, gains


def test_the_best_is_found_again(folder):
    world = World(4, folder, instances=80, labels=20)
    setting = {"pool": "apart", "lambda": 0.7, "tau": 0.33, "b": 20, "lexical": 1.5, "lexical_form": "bm25", "label_power": 0.7}
    got = tune(world, "--sample", 1000, "--by", "p@1+0.5*ndcg@5", *flags_of(setting))
    assert {name: got["today"][name] for name in SETTING} == setting
    again = tune(world, "--sample", 1000, "--by", "p@1+0.5*ndcg@5", *flags_of(got["best"]))
    for measure in MEASURES:
        assert again["today"][measure] == pytest.approx(got["best"][measure], abs=1e-4)
    gain = sum(w * (got["best"][m] - got["today"][m]) for m, w in (("P@1", 1), ("nDCG@5", 0.5)))
    assert got["gain"] == pytest.approx(gain, abs=1e-4) and got["standard_error"] > 0
    assert not again["better"] and again["gain"] == pytest.approx(0, abs=1e-4)
    trades = got["trade_off"]
    assert trades == sorted(trades, key=lambda s: (-s["P@1"], s["PSP@5"]))


def telling_world(folder):
    """Texts whose words tell their label."""
    world = World(4, folder, instances=0, labels=10)
    world.instances = {f"i{i}": (f"{WORDS[i % 10]} {WORDS[i % 10]} {world.text()}", [f"label {i % 10}"]) for i in range(100)}
    world.load()
    return world


def test_write_changes_only_what_changed(folder):
    world = telling_world(folder)
    config = folder / "engram.conf"
    config.write_text("# mine\n[predict]\n# too cold\ntau = 0.0001\nlambda = 0.5\n\n[log]\nlog_level = warn\n")
    got = tune(world, "-c", config, "--write")
    assert got["better"] and got["written"]
    assert "# mine\n" in config.read_text() and "# too cold" in config.read_text()
    in_force = json.loads("".join(engram("config", "--json", "-c", config)))
    for name in SETTING:
        assert in_force[name]["value"] == got["best"][name], name
    before = config.read_bytes()
    assert not tune(world, "-c", config, "--write")["written"] and config.read_bytes() == before


def test_write_follows_the_file_and_not_the_flags(folder):
    world = telling_world(folder)
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


def test_nothing_to_tune_on(folder):
    world = World(6, folder, instances=0, labels=3)
    done = subprocess.run([ENGRAM, "tune", *map(str, world.flags)], capture_output=True, text=True, timeout=60)
    assert done.returncode != 0 and "tuning needs" in done.stderr
