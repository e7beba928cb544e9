"""`engram memory export`, `backup` and `compact`, and what is installed: each checked from outside, on the tiny BERT
beside this file. The data are drawn here; what comes back is compared with them, not with what the program says."""

import gzip
import json
import os
import random
import re
import resource
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BUILD = Path(os.environ.get("BUILD", "build"))
ENGRAM = ROOT / BUILD / "engram"
TINY = ROOT / "tests/golden/tiny-bert"
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("ENGRAM_")}
HARD = ["", "quote \" backslash \\ slash /", "tab\t newline\n return\r bell\u0007 delete\u007f", "\u2028\u2029\ufeff\ufffe",
        "caf\u00e9 cafe\u0301 \U0001f600", "</script>", "x" * 65536]


def engram(*arguments, status=0, **more):
    done = subprocess.run([ENGRAM, *map(str, arguments)], capture_output=True, timeout=120, check=False, env=ENVIRONMENT,
                          **more)
    assert done.returncode == status, (arguments, done.stdout[-500:], done.stderr.decode())
    return done


def refused(*arguments, word, status=1, **more):
    """One line, which holds the word."""
    done = engram("memory", *arguments, status=status, **more)
    line = done.stderr.decode().splitlines()[0]
    assert line.startswith("engram memory: ") and word in line, line
    assert status == 2 or done.stderr.count(b"\n") == 1
    return line


def stats(memory):
    return json.loads(engram("memory", "stats", "--json", "--memory", memory).stdout)


def lines(path):
    data = gzip.decompress(path.read_bytes()) if path.name.endswith(".gz") else path.read_bytes()
    assert data == b"" or data.endswith(b"\n")
    return [json.loads(line) for line in data.splitlines()]


def drawn():
    draw = random.Random(7)
    names = ["plain", "\u00e9clair", "with \"quotes\"", "Z", "a", "a\u0001b"] + [f"label-{i}" for i in range(20)]
    labels = [{"label": name, "text": HARD[i % len(HARD)]} for i, name in enumerate(names[:15])]
    instances = [{"id": f"{draw.choice('zaM')}\u00ef-{i}", "text": HARD[i % len(HARD)] if i < 40 else f"text number {i}",
                  "labels": draw.sample(names, draw.randrange(5))} for i in range(200)]
    return labels, instances


def by_name(field):
    return lambda record: record[field].encode()


@pytest.fixture(scope="module")
def data():
    return drawn()


@pytest.fixture(name="memory")
def memory_made(tmp_path, data):
    labels, instances = data
    (tmp_path / "l").write_text("".join(json.dumps(r) + "\n" for r in labels))
    (tmp_path / "i").write_text("".join(json.dumps(r) + "\n" for r in instances))
    engram("load", "--model", TINY, "--memory", tmp_path / "memory", "--labels", tmp_path / "l", "--instances",
           tmp_path / "i")
    return tmp_path / "memory"


# ---- export -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["", ".gz"])
def test_export_is_what_was_loaded_and_loads_to_the_same_digest(memory, data, tmp_path, ending):
    files = tmp_path / f"labels.jsonl{ending}", tmp_path / f"instances.jsonl{ending}"
    done = engram("memory", "export", "--memory", memory, "--labels", files[0], "--instances", files[1])
    assert done.stdout == b"" and stats(memory)["digest"].encode() in done.stderr
    assert (files[0].read_bytes()[:2] == b"\x1f\x8b") == bool(ending)
    assert lines(files[0]) == sorted(data[0], key=by_name("label"))
    assert lines(files[1]) == sorted(({**i, "labels": sorted(i["labels"], key=str.encode)} for i in data[1]),
                                     key=by_name("id"))
    engram("load", "--model", TINY, "--memory", tmp_path / "again", "--labels", files[0], "--instances", files[1])
    assert stats(tmp_path / "again")["digest"] == stats(memory)["digest"]
    assert not list(tmp_path.glob("*.partial"))


def test_export_of_one_part_to_standard_output(memory, data, tmp_path):
    done = engram("memory", "export", "--memory", memory, "--labels", "-")
    assert [json.loads(line) for line in done.stdout.splitlines()] == sorted(data[0], key=by_name("label"))
    with subprocess.Popen([ENGRAM, "memory", "export", "--memory", memory, "--instances", "-"], stdout=subprocess.PIPE,
                          stderr=subprocess.DEVNULL, env=ENVIRONMENT) as export:
        engram("load", "--model", TINY, "--memory", tmp_path / "again", "--labels", tmp_path / "l", "--instances", "-",
               stdin=export.stdout)
    assert export.returncode == 0
    assert stats(tmp_path / "again")["digest"] == stats(memory)["digest"]


def test_export_of_an_empty_memory(memory, data, tmp_path):
    for instance in data[1]:
        engram("forget", instance["id"], "--local", "--memory", memory)
    engram("memory", "export", "--memory", memory, "--instances", tmp_path / "none.jsonl")
    assert (tmp_path / "none.jsonl").read_bytes() == b""


def test_export_without_texts_is_one_line_and_leaves_what_was_there(memory, tmp_path):
    (tmp_path / "one").write_text('{"id": "zz-last", "text": "secret", "labels": ["plain"]}\n')
    engram("load", "--model", TINY, "--memory", memory, "--store-text", "false", "--instances", tmp_path / "one")
    old = tmp_path / "old.jsonl"
    old.write_text("old\n")
    refused("export", "--memory", memory, "--labels", tmp_path / "labels", "--instances", old, word="store_text = false")
    assert old.read_text() == "old\n"
    assert not (tmp_path / "labels").exists() and not list(tmp_path.glob("*.partial"))


def test_export_says_what_is_wrong(memory, tmp_path):
    refused("export", "--memory", memory, status=2, word="--labels FILE, --instances FILE or both")
    refused("export", "--memory", memory, "--labels", "-", "--instances", "-", status=2, word="cannot both be -")
    refused("export", "more", "--memory", memory, "--labels", "-", status=2, word="no more arguments")
    refused("stats", "--memory", memory, "--labels", "-", status=2, word="for export")
    refused("exprot", "--memory", memory, status=2, word="export, backup or compact")
    refused("export", "--memory", tmp_path / "absent", "--labels", "-", word="no memory here")
    refused("export", "--memory", memory, "--labels", tmp_path / "no/such/file", word="No such file")
    for name in ("/dev/full", "-"):
        with open("/dev/full", "wb") as full:
            done = subprocess.run([ENGRAM, "memory", "export", "--memory", memory, "--instances", name], stdout=full,
                                  stderr=subprocess.PIPE, env=ENVIRONMENT, check=False)
        assert done.returncode == 1 and b"No space left" in done.stderr
    assert Path("/dev/full").is_char_device()


def small_files():
    """SIGXFSZ as a shell leaves it: it kills whoever does not ignore it."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (40000, resource.RLIM_INFINITY))


def test_full_disk_leaves_nothing_half(memory, tmp_path):
    before = stats(memory)["digest"], sorted(os.listdir(tmp_path))
    refused("export", "--memory", memory, "--instances", tmp_path / "out", word="nothing of it was kept",
            preexec_fn=small_files)
    refused("backup", tmp_path / "copy", "--memory", memory, word="ulimit -f", preexec_fn=small_files)
    refused("compact", "--memory", memory, word="ulimit -f", preexec_fn=small_files)
    (tmp_path / "i").write_text(json.dumps({"id": "new", "text": "a b", "labels": ["x"]}) + "\n")
    done = engram("load", "--model", TINY, "--memory", memory, "--instances", tmp_path / "i", status=1,
                  preexec_fn=small_files)
    assert b"ulimit -f" in done.stderr and done.stderr.count(b"\n") == 1
    assert (stats(memory)["digest"], sorted(os.listdir(tmp_path))) == before
    assert sorted(os.listdir(memory)) == ["data.mdb", "lock.mdb", "writer.lock"]


# ---- backup, compact ----------------------------------------------------------------------------------------------


def test_backup_is_a_memory(memory, tmp_path):
    done = engram("memory", "backup", tmp_path / "copy", "--memory", memory)
    assert stats(memory)["digest"].encode() in done.stdout and done.stderr == b""
    same = {name: value for name, value in stats(memory).items() if name != "bytes"}
    assert {name: value for name, value in stats(tmp_path / "copy").items() if name != "bytes"} == same
    engram("memory", "verify", "--memory", tmp_path / "copy")
    refused("backup", tmp_path / "copy", "--memory", memory, word="already")
    refused("backup", "--memory", memory, status=2, word="needs one DIR")
    engram("load", "--model", TINY, "--memory", tmp_path / "copy", "--instances", tmp_path / "i")
    assert stats(tmp_path / "copy")["digest"] == same["digest"]
    prediction = [engram("tag", "--model", TINY, "--memory", folder, "--json", "text number 77").stdout
                  for folder in (memory, tmp_path / "copy")]
    assert prediction[0] == prediction[1]


def test_export_and_backup_beside_a_writer(memory, tmp_path):
    with subprocess.Popen([ENGRAM, "load", "--model", TINY, "--memory", memory, "--instances", "-"],
                          stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, env=ENVIRONMENT) as load:
        while str(load.pid) not in (memory / "writer.lock").read_text():
            assert load.poll() is None
        engram("memory", "backup", tmp_path / "copy", "--memory", memory)
        engram("memory", "export", "--memory", memory, "--instances", tmp_path / "out")
        assert str(load.pid) in refused("compact", "--memory", memory, word="being written by process")
        load.stdin.close()
        assert load.wait(60) == 0
    assert len(lines(tmp_path / "out")) == stats(tmp_path / "copy")["instances"] == 200


def test_compact_takes_out_what_was_forgotten(memory, tmp_path):
    secret = b"the secret of instance zero"
    (tmp_path / "one").write_text(json.dumps({"id": "id-of-secret", "text": secret.decode(), "labels": []}) + "\n")
    engram("load", "--model", TINY, "--memory", memory, "--instances", tmp_path / "one")
    engram("forget", "id-of-secret", "--local", "--memory", memory)
    before, size = stats(memory), (memory / "data.mdb").stat().st_size
    assert secret in (memory / "data.mdb").read_bytes() and b"id-of-secret" in (memory / "data.mdb").read_bytes()
    done = engram("memory", "compact", "--memory", memory)
    assert done.stdout.startswith(b"compacted ") and done.stderr == b""
    assert secret not in (memory / "data.mdb").read_bytes() and b"id-of-secret" not in (memory / "data.mdb").read_bytes()
    assert (memory / "data.mdb").stat().st_size < size
    after = stats(memory)
    assert {**after, "bytes": 0} == {**before, "bytes": 0}
    engram("memory", "verify", "--memory", memory)
    refused("compact", "--memory", tmp_path / "absent", word="no memory here")
    assert not (tmp_path / "absent").exists()


# ---- make install -------------------------------------------------------------------------------------------------


def make(*arguments):
    done = subprocess.run(["make", "-s", *map(str, arguments)], cwd=ROOT, capture_output=True, text=True, timeout=300,
                          check=False, env={**ENVIRONMENT, "BUILD": str(BUILD)})
    assert done.returncode == 0, done.stderr
    return done


def test_install_and_uninstall(tmp_path):
    root, other = tmp_path / "a root", tmp_path / "a root/opt/e/bin/other"
    where = (f"DESTDIR={root}", "PREFIX=/opt/e")
    other.parent.mkdir(parents=True)
    other.write_text("not ours")
    for _ in range(2):
        make("install", *where)
    share = root / "opt/e/share"
    assert (share / "doc/engram/LICENSE").read_text() == (ROOT / "LICENSE").read_text()
    operations = share / "doc/engram/docs/OPERATIONS.md"
    targets = [target for target in re.findall(r"\]\(([^)#\s]+)", operations.read_text()) if ":" not in target]
    assert len(targets) > 5 and all((operations.parent / target).exists() for target in targets)
    installed = root / "opt/e/bin/engram"
    done = subprocess.run([installed, "--version"], capture_output=True, text=True, check=True, env=ENVIRONMENT)
    assert done.stdout.startswith("engram ")
    if (ROOT / BUILD / "models/all-MiniLM-L6-v2").exists():
        assert "model all-MiniLM-L6-v2" in done.stdout
        shutil.rmtree(share / "engram/models/all-MiniLM-L6-v2/1_Pooling")
        make("install", *where)
        assert (share / "engram/models/all-MiniLM-L6-v2/1_Pooling/config.json").exists()
    make("uninstall", *where)
    assert [path for path in root.rglob("*") if path.is_file()] == [other]
    assert not (share / "engram").exists() and not (share / "doc/engram").exists()
