"""Who may read what Engram writes: a memory, its copies and what is exported from it are their owner's alone, whatever the
umask; what an operator opened stays so; and no link leads a write elsewhere."""

import json
import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ENGRAM = ROOT / os.environ.get("BUILD", "build") / "engram"
TINY = ROOT / "tests/golden/tiny-bert"
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("ENGRAM_")}
PRIVATE = {"": 0o700, "data.mdb": 0o600, "lock.mdb": 0o600, "writer.lock": 0o600}


def engram(*arguments, status=0, umask=0o022):
    done = subprocess.run([ENGRAM, *map(str, arguments)], capture_output=True, text=True, timeout=120, check=False,
                          env=ENVIRONMENT, umask=umask)
    assert done.returncode == status, (arguments, done.stdout[-500:], done.stderr)
    return done


def refused(*arguments, word):
    done = engram(*arguments, status=1)
    assert word in done.stderr and done.stderr.count("\n") == 1 and done.stdout == "", done.stderr


def mode(path):
    return path.stat().st_mode & 0o7777


def modes(memory):
    return {"": mode(memory), **{path.name: mode(path) for path in memory.iterdir()}}


@pytest.fixture
def data(tmp_path):
    (tmp_path / "i").write_text("".join(json.dumps({"id": f"i{n}", "text": f"text number {n}", "labels": [f"l{n % 3}"]}) + "\n"
                                        for n in range(20)))
    return tmp_path / "i"


@pytest.fixture
def load(data):
    """load(memory, ...) folds twenty instances into it."""
    return lambda memory, **how: engram("load", "--model", TINY, "--memory", memory, "--instances", data, **how)


@pytest.fixture
def memory(load, tmp_path):
    load(tmp_path / "m")
    return tmp_path / "m"


@pytest.mark.parametrize("umask", [0, 0o022, 0o177, 0o777], ids=oct)
def test_a_memory_and_its_copies_are_their_owners(load, tmp_path, umask):
    """An umask that takes more than others' rights makes nothing that its owner cannot use either."""
    memory, copy = tmp_path / "m", tmp_path / "copy"
    load(memory, umask=umask)
    assert modes(memory) == PRIVATE
    engram("memory", "backup", copy, "--memory", memory, umask=umask)
    assert modes(copy) == {name: PRIVATE[name] for name in ("", "data.mdb", "writer.lock")}
    engram("memory", "compact", "--memory", memory, umask=umask)
    load(copy, umask=umask)
    assert modes(memory) == modes(copy) == PRIVATE


def test_what_an_operator_opened_stays_open_and_its_copies_do_not(load, memory, tmp_path):
    memory.chmod(0o750)
    (memory / "data.mdb").chmod(0o640)
    (memory / "lock.mdb").chmod(0o660)
    load(memory)
    engram("memory", "compact", "--memory", memory)
    assert modes(memory) == {"": 0o750, "data.mdb": 0o640, "lock.mdb": 0o660, "writer.lock": 0o600}
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared").chmod(0o755)
    for folder, expected in (("shared", 0o755), ("new", 0o700)):
        engram("memory", "backup", tmp_path / folder, "--memory", memory)
        assert modes(tmp_path / folder) == {"": expected, "data.mdb": 0o600, "writer.lock": 0o600}


def test_what_is_exported_has_the_mode_of_what_it_replaces(memory, tmp_path):
    out, tags = tmp_path / "out", tmp_path / "per-label"

    def write():
        engram("memory", "export", "--memory", memory, "--instances", out, umask=0)
        engram("eval", "--model", TINY, "--memory", memory, "--test", tmp_path / "i", "--per-label", tags, umask=0)

    write()
    assert mode(out) == mode(tags) == 0o600
    for path, opened in ((out, 0o640), (tags, 0o444)):
        path.chmod(opened)
    write()
    assert (mode(out), mode(tags)) == (0o640, 0o444)


def test_an_export_goes_through_no_link_and_into_no_file_that_waits_for_it(memory, tmp_path):
    victim, partial = tmp_path / "victim", tmp_path / "out.partial"
    victim.write_text("mine")
    partial.symlink_to(victim)
    engram("memory", "export", "--memory", memory, "--instances", tmp_path / "out")
    assert victim.read_text() == "mine" and not partial.is_symlink()
    partial.touch()
    partial.chmod(0o666)
    with open(partial, encoding="utf-8") as waiting:
        engram("memory", "export", "--memory", memory, "--instances", tmp_path / "out")
        assert waiting.read() == "" and mode(tmp_path / "out") == 0o600


@pytest.mark.parametrize("name", ["writer.lock", "data.mdb", "lock.mdb"])
def test_a_memory_has_no_links(memory, load, data, tmp_path, name):
    """Not to another's file, and not to the file of another memory, whose locks it would not see."""
    victim = tmp_path / "victim"
    (memory / name).rename(victim)
    before = victim.read_bytes()
    for made in (lambda: (memory / name).symlink_to(victim), lambda: os.mkfifo(memory / name)):
        made()
        word = f"{memory / name} is "
        refused("load", "--model", TINY, "--memory", memory, "--instances", data, word=word)
        refused("memory", "stats", "--memory", memory, word=word)
        refused("memory", "compact", "--memory", memory, word=word)
        (memory / name).unlink()
    assert victim.read_bytes() == before
    copy = tmp_path / "copy"
    copy.mkdir()
    (copy / name).symlink_to(victim)
    victim.rename(memory / name)
    refused("memory", "backup", copy, "--memory", memory, word=f"{copy / name} is a symbolic link")
    assert not victim.exists() and os.listdir(copy) == [name]
