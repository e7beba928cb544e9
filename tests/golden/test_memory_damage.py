"""A memory whose file is damaged: bits, bytes, pages swapped, cut or repeated. Each variant goes through verify, stats,
tag, get, load and one command more, as processes: none may end by a signal or hang, and what verify calls sound must
answer as the undamaged memory does. `make test` runs 500 variants, drawn from a fixed seed; by hand:

    python3 tests/golden/test_memory_damage.py --variants 10000 --seed 1
"""

import argparse
import collections
import json
import os
import random
import re
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import lmdb_file  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
BUILD = Path(os.environ.get("BUILD", "build"))
TINY = ROOT / "tests/golden/tiny-bert"
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("ENGRAM_")}
ENVIRONMENT["ENGRAM_THREADS"] = "1"
VARIANTS, SEED = 500, 20261128
WORDS = "cat dog house red blue run fast small open tool file word".split()


class Commands:
    """Runs commands of engram, each in a process of its own: see command_server.c. One of these for each thread."""

    of_thread = threading.local()

    def __init__(self):
        self.folder = tempfile.TemporaryDirectory(prefix="engram-commands-")
        self.files = [Path(self.folder.name) / name for name in ("in", "out", "err")]
        self.server = subprocess.Popen([ROOT / BUILD / "tests/command_server"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                       env=ENVIRONMENT, text=True)

    def run(self, arguments, stdin):
        self.files[0].write_bytes(stdin)
        self.server.stdin.write("\t".join(map(str, (*self.files, *arguments))) + "\n")
        self.server.stdin.flush()
        status = int(self.server.stdout.readline())
        return status, self.files[1].read_bytes(), self.files[2].read_bytes()


def run(*arguments, stdin=b""):
    """(exit status, stdout, stderr); a signal's number below zero."""
    if not hasattr(Commands.of_thread, "commands"):
        Commands.of_thread.commands = Commands()
    return Commands.of_thread.commands.run(arguments, stdin)


# ---- the memory ----


class Sound:
    """A small but complete memory, and what it answers."""

    def __init__(self, folder):
        draw = random.Random(3)
        self.folder = folder
        self.memory = folder / "memory"
        labels = [f"label-{i:02d}" for i in range(48)]
        self.ids = [f"{draw.choice('zaM')}-{i:03d}-" + "x" * draw.randrange(20, 220) for i in range(420)]
        self.files = {}
        self.write("labels", [{"label": name, "text": f"what {name} is " + "about " * draw.randrange(9)} for name in labels[:40]])
        self.write("first", [self.instance(draw, labels, name, i) for i, name in enumerate(self.ids)])
        self.write("second", [self.instance(draw, labels, name, i) for i, name in enumerate(draw.sample(self.ids, 60))])
        self.write("replacements", [self.instance(draw, labels, name, i) for i, name in enumerate(self.ids[::7])])
        self.load("--labels", self.files["labels"], "--instances", self.files["first"])
        self.forget(draw.sample(self.ids, 70))
        self.load("--instances", self.files["second"])
        self.forget(draw.sample(self.ids, 30))
        self.write("third", [{**i, "labels": draw.sample(labels, len(i["labels"]))} for i in self.there()[:20]])
        self.load("--instances", self.files["third"])  # blocks of the commit before it differ in labels alone
        self.data = (self.memory / "data.mdb").read_bytes()
        self.texts = "".join(" ".join(draw.choices(WORDS, k=4)) + "\n" for _ in range(8)).encode()
        self.gets = {i["id"]: self.ok("memory", "get", i["id"], "--memory", self.memory) for i in draw.sample(self.there(), 24)}
        self.answers = {"verify": None, "stats": None, "tag": None, "load": None, "export": None, "forget": None,
                        "backup": None, "compact": None}
        for name in self.answers:
            status, answer, error = self.ask(name, self.copy(folder / "sound"))
            assert status == 0, (name, answer, error)
            self.answers[name] = answer

    @staticmethod
    def instance(draw, labels, name, i):
        text = " ".join(draw.choices(WORDS, k=draw.randrange(1, 30))) + (" long" * draw.randrange(900, 4000) if i % 30 == 0 else "")
        return {"id": name, "text": text, "labels": draw.sample(labels, draw.randrange(5))}

    def write(self, name, records):
        self.files[name] = self.folder / f"{name}.jsonl"
        self.files[name].write_text("".join(json.dumps(record) + "\n" for record in records))

    @staticmethod
    def ok(*arguments, **more):
        status, out, error = run(*arguments, **more)
        assert status == 0, error
        return out

    def there(self):
        export = self.ok("memory", "export", "--instances", "-", "--memory", self.memory)
        return [json.loads(line) for line in export.splitlines()]

    def load(self, *files):
        self.ok("load", "--model", TINY, "--memory", self.memory, *files)

    def forget(self, ids):
        subprocess.run([ROOT / BUILD / "tests/memory_tool", self.memory], input="\n".join(ids).encode(), check=True)

    def copy(self, place, data=None):
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        (place / "data.mdb").write_bytes(self.data if data is None else data)
        return place

    def ask(self, what, memory):
        """(status, answer, stderr) of one command, or of the commands that show what it did."""
        at = ["--memory", memory]
        if what == "tag":
            return run("tag", "--stdin", "--model", TINY, *at, stdin=self.texts)
        if what == "stats":
            return run("memory", "stats", "--json", *at)
        if what == "verify":
            status, _, error = run("memory", "verify", *at)
            return status, b"", error
        if what == "export":
            return run("memory", "export", "--instances", "-", *at)
        place = memory.with_name(memory.name + "-" + what)
        shutil.rmtree(place, ignore_errors=True)
        if what == "backup":
            done = run("memory", "backup", place, *at)
        else:
            self.copy(place, (memory / "data.mdb").read_bytes())
            if what == "compact":
                done = run("memory", "compact", "--memory", place)
            elif what == "forget":
                done = run("forget", self.ids[5], "--local", "--memory", place)
            else:
                done = run("load", "--model", TINY, "--memory", place, "--instances", self.files["replacements"])
        if done[0] == 0:
            status, out, error = run("memory", "stats", "--json", "--memory", place)
            done = status, re.findall(rb'"digest":"(\w+)"', out)[0] if status == 0 else b"", error
        return done


# ---- the damage ----


class Damage:
    """Draws variants of one file. Half of them are aimed."""

    def __init__(self, data):
        self.data = data
        self.file = lmdb_file.File(data)
        self.size = self.file.size
        self.count = len(data) // self.size

    def draw(self, seed):
        """(what was done, the damaged bytes)."""
        r = random.Random(seed)
        data = bytearray(self.data)
        aimed = [self.meta_page, self.tree_page, self.big_value_head, self.key, self.node_head, self.tree_record,
                 self.tree_pages_moved]
        done = r.choice(aimed)(r, data) if r.random() < 0.55 else self.anywhere(r, data)
        return done, bytes(data)

    def place(self, r, data, at, what):
        """One bit, one byte, or a step up or down."""
        how = r.randrange(4)
        before = data[at]
        if how < 2:
            data[at] ^= 1 << r.randrange(8)
        elif how == 2:
            data[at] = (before + r.choice([1, -1])) % 256
        else:
            data[at] = r.choice([0, 255, r.randrange(256)])
        return f"{what}: byte {at} (page {at // self.size}, {at % self.size}) {before} -> {data[at]}"

    def meta_page(self, r, data):
        page = r.randrange(2)
        return self.place(r, data, page * self.size + r.choice([r.randrange(152), 144 + r.randrange(2)]), "meta page")

    def tree_page(self, r, data):
        page = r.choice(sorted(self.file.pages))
        (lower,) = struct.unpack_from("<H", data, page * self.size + 12)
        at = r.choice([r.randrange(16), r.randrange(16, lower), r.randrange(self.size)])
        return self.place(r, data, page * self.size + at, f"page of {self.file.pages[page]}")

    def big_value_head(self, r, data):
        page = r.choice(sorted(self.file.overflow))
        return self.place(r, data, page * self.size + r.randrange(16), f"big value of {self.file.overflow[page][0]}")

    def node(self, r):
        tree = r.choice(sorted({node[0] for node in self.file.nodes}))
        return r.choice([node for node in self.file.nodes if node[0] == tree])

    def key(self, r, data):
        tree, _, at, key, _, leaf = self.node(r)
        if not key:
            return self.node_head(r, data)
        return self.place(r, data, at + 8 + r.randrange(len(key)), f"{'' if leaf else 'branch '}key of {tree}")

    def node_head(self, r, data):
        tree, _, at, key, _, _ = self.node(r)
        return self.place(r, data, r.choice([at + r.randrange(8), at + 8 + len(key) + r.randrange(8)]), f"node of {tree}")

    def tree_record(self, r, data):
        tree = r.choice(sorted(self.file.trees))
        return self.place(r, data, self.file.trees[tree].at + r.randrange(48), f"record of {tree}")

    def tree_pages_moved(self, r, data):
        return self.moved(r, data, r.sample(sorted(self.file.pages) + sorted(self.file.overflow), 2))

    def moved(self, r, data, pages):
        first, second = (slice(page * self.size, (page + 1) * self.size) for page in pages)
        how = r.randrange(3)
        if how == 0:
            data[first], data[second] = data[second], data[first]
        else:
            data[first] = data[second]
        return f"pages {pages} {'swapped' if how == 0 else 'repeated'}"

    def anywhere(self, r, data):
        how = r.randrange(10)
        if how < 5:
            return self.place(r, data, r.randrange(len(data)), "anywhere")
        if how < 8:
            return self.moved(r, data, r.sample(range(self.count), 2))
        if how == 8:
            at = r.choice([r.randrange(self.count) * self.size, r.randrange(len(data))])
            del data[at:]
            return f"cut at {at}"
        page = r.randrange(self.count)
        data[page * self.size : (page + 1) * self.size] = bytes(self.size)
        return f"page {page} zeroed"


# ---- the verdict ----


def one_variant(sound, damage, seed, place):
    """[(kind, what was done, command, more)] of one variant: nothing, or what went wrong."""
    done, data = damage.draw(seed)
    memory = sound.copy(place, data)
    r = random.Random(seed ^ 0x5EED)
    got = {name: sound.ask(name, memory) for name in ("verify", "stats", "tag", "load", r.choice(("export", "forget", "backup", "compact")))}
    name = r.choice(sorted(sound.gets))
    got["get"] = run("memory", "get", name, "--memory", memory)
    wrong = []
    is_sound = got["verify"][0] == 0
    for command, (status, answer, error) in got.items():
        right = sound.gets[name] if command == "get" else sound.answers[command]
        if status == -signal.SIGALRM:
            wrong.append(("hang", done, command, b""))
        elif status < 0 or status > 2:
            wrong.append(("signal", done, command, f"{status} ".encode() + error))
        elif status and command != "verify" and (error.count(b"\n") != 1 or not error.startswith(b"engram ")):
            wrong.append(("not one line", done, command, error))
        elif is_sound and status:
            wrong.append(("refused though sound", done, command, error))
        elif is_sound and answer != right:
            wrong.append(("wrong answer though sound", done, command, answer))
        elif not is_sound and status == 0 and answer != right:
            wrong.append(("wrong answer, and verify says so", done, command, b""))
    for left in place.parent.glob(place.name + "*"):
        shutil.rmtree(left)
    return is_sound, wrong


KNOWN = "wrong answer, and verify says so"


def variants(sound, count, seed, folder, show=None):
    """(variants that verify calls sound, a count of each kind, the lines of those that must not be)."""
    damage = Damage(sound.data)
    kinds, lines, sounds = collections.Counter(), [], 0
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        tasks = [pool.submit(one_variant, sound, damage, seed * 1000003 + i, folder / f"v{i}") for i in range(count)]
        for i, task in enumerate(tasks):
            is_sound, wrong = task.result()
            sounds += is_sound
            for kind, done, command, more in wrong:
                kinds[kind] += 1
                if kind != KNOWN:
                    lines.append(f"variant {i}: {kind}: {done}: {command}: {more[:300]!r}")
                    if show:
                        print(lines[-1], file=show, flush=True)
            if show and i % 500 == 499:
                print(f"{i + 1} variants, {sounds} called sound, {dict(kinds)}", file=show, flush=True)
    return sounds, kinds, lines


def tools_made():
    tools = [f"{BUILD}/tests/{name}" for name in ("memory_tool", "command_server")]
    subprocess.run(["make", "-s", *tools], cwd=ROOT, check=True)


@pytest.fixture(scope="module", name="sound")
def sound_made(tmp_path_factory):
    tools_made()
    return Sound(tmp_path_factory.mktemp("damage"))


def test_variants(sound, tmp_path):
    sounds, kinds, lines = variants(sound, VARIANTS, SEED, tmp_path)
    assert not lines, "\n".join(lines)
    assert 0 < sounds < VARIANTS / 2, "the variants test nothing"
    print(dict(kinds))


# ---- single cases, each with its siblings ----


class Case:
    """One copy of the memory, to be damaged at a known place."""

    def __init__(self, sound, folder):
        self.sound = sound
        self.memory = folder / "case"
        self.data = bytearray(sound.data)
        self.file = lmdb_file.File(sound.data)

    def put(self, at, form, value):
        struct.pack_into(form, self.data, at, value)

    def body(self, page, head=0):
        return slice(page * self.file.size + head, (page + 1) * self.file.size)

    def write(self):
        self.sound.copy(self.memory, bytes(self.data))

    def refused(self, *commands):
        """Each ends with status 1 and one line."""
        for command in commands:
            status, out, error = self.sound.ask(command, self.memory)
            assert (status, out, error.count(b"\n")) == (1, b"", 1), (command, status, out, error)

    def found(self):
        status, out, error = run("memory", "verify", "--memory", self.memory)
        assert status == 1, (out, error)
        return (out + error).decode()


@pytest.fixture(name="case")
def case_made(sound, tmp_path):
    return Case(sound, tmp_path)


@pytest.mark.parametrize("tree, key", [("instances", b"\xff"), ("instances", b"\0"), ("labels", b"\xff"), ("slots", b"\x7f"),
                                       ("tail", b"\0")])
def test_branch_key_that_hides_entries(case, tree, key):
    """A reader would go past them: `forget` would say that there is no such id, and leave the text in predictions."""
    _, _, at, old, _, _ = next(n for n in case.file.nodes if n[0] == tree and not n[5] and n[3])
    case.data[at + 8 : at + 8 + len(old)] = key * len(old)
    case.write()
    assert tree in case.found()
    case.refused("forget", "load", "compact")


@pytest.mark.parametrize("newer, step", [(True, -2), (True, -1), (True, 1), (True, 256), (False, 2), (False, -1), (False, 2**40)])
def test_transaction_number_of_a_meta_page(case, newer, step):
    """With another number the commit before the last one would open in silence."""
    page = case.file.newest if newer else 1 - case.file.newest
    case.put(page * case.file.size + 16 + 128, "<Q", case.file.transactions[page] + step)
    case.write()
    case.refused("stats", "tag", "load", "forget", "export", "backup", "compact")
    case.found()


@pytest.mark.parametrize("tree, back", [("offsets", 1), ("offsets", 7), ("changes", 1), ("free", 9), ("label_names", 1),
                                        ("instances", 1)])
def test_key_byte_beside_a_sound_value(case, tree, back):
    """back: how far from the key's end; the first key of its tree stays the first, the last the last."""
    _, _, at, key, _, _ = [n for n in case.file.nodes if n[0] == tree and n[5]][-1]
    case.data[at + 8 + len(key) - back] += 1
    case.write()
    case.found()
    if tree == "offsets":
        case.refused("stats")


def earlier_block(case):
    """(first page in use, first page of the version before it, pages) of a block of instances in `values`."""
    def blocks(file):
        return {struct.unpack_from("<Q", file.data, first * file.size + 24): (first, count)
                for first, (name, count) in file.overflow.items() if name == "values"}  # fmt: skip
    now, before = blocks(case.file), blocks(lmdb_file.File(case.data, before=True))
    block = next(block for block in now if block in before and now[block] != before[block])
    return now[block][0], before[block][0], min(now[block][1], before[block][1])


@pytest.mark.parametrize("how", ["pages", "bodies", "pointer"])
def test_earlier_version_of_a_block(case, how):
    """Its checksum holds, its version is not the one that `changes` lists."""
    now, before, count = earlier_block(case)
    if how == "pointer":
        place = next(n[4] for n in case.file.nodes if n[0] == "values" and n[5] and case.file.number(n[4]) == now)
        case.put(place, "<Q", before)
    for i in range(count if how != "pointer" else 0):
        a, b = (case.body(page + i, 16 if how == "bodies" and i == 0 else 0) for page in (now, before))
        case.data[a], case.data[b] = case.data[b], case.data[a]
    case.write()
    case.refused("tag")
    case.found()


@pytest.mark.parametrize("tree", ["instances", "values", "keys"])
@pytest.mark.parametrize("count", [0, 1 << 24, 0xFFFFFFFF])
def test_count_of_a_big_value(case, tree, count):
    """LMDB would give back that many pages when it replaces the value."""
    first = next(first for first, (name, _) in case.file.overflow.items() if name == tree)
    case.put(first * case.file.size + 12, "<I", count)
    case.write()
    case.refused("load", "forget", "compact")
    assert tree in case.found()


@pytest.mark.parametrize("tree", ["keys", "(free)", "slots"])
@pytest.mark.parametrize("at", [8, 16, 24])
def test_size_that_the_file_cannot_have(case, tree, at):
    for value in (2**40, 2**62, 2**64 - 1):
        case.put(case.file.trees[tree].at + at, "<Q", value)
        case.write()
        case.refused("stats", "backup")
        case.found()


@pytest.mark.parametrize("tree", ["instances", "slots"])
def test_leaf_in_the_place_of_another(case, tree):
    """Every checksum holds; the tree has fewer or more entries than its record counts."""
    leaves = collections.Counter(n[1] for n in case.file.nodes if n[0] == tree and n[5]).most_common()
    case.data[case.body(leaves[0][0])] = case.data[case.body(leaves[-1][0])]
    assert leaves[0][1] > leaves[-1][1]
    case.write()
    case.refused("backup", "compact", "load")
    if tree == "instances":
        status, _, error = run("memory", "export", "--instances", "-", "--memory", case.memory)
        assert status == 1 and b"'instances' has " in error, error
    assert tree in case.found()


@pytest.mark.parametrize("tree, root", [("labels", 2**63), ("slots", 2**40), ("instances", 1), ("values", 2**63), ("(main)", 0)])
def test_root_that_leads_nowhere(case, tree, root):
    """LMDB only says that its transaction is broken."""
    case.put(case.file.trees[tree].at + 40, "<Q", root)
    case.write()
    for command in ("tag", "export", "backup", "load"):
        status, _, error = case.sound.ask(command, case.memory)
        assert (status, error.count(b"\n")) == (0, 0) or (status == 1 and b"the memory is damaged" in error), (command, error)
    case.found()


def test_fault_is_one_line(case):
    """What LMDB ends in: an assertion, SIGSEGV, SIGBUS."""
    tree = case.file.trees["instances"]
    leaf = next(n for n in case.file.nodes if n[0] == "instances" and n[5])
    sound = bytes(case.data)
    for damage in ("assertion", "duplicates", "no value", "far"):
        case.data[:] = sound
        if damage == "assertion":
            case.data[case.body(tree.root)] = bytes(case.file.size)
        elif damage == "duplicates":
            case.data[leaf[2] + 4] |= 4
        elif damage == "no value":
            case.data[leaf[1] * case.file.size + 10] |= 0x20
        else:
            for i in range(8):
                case.put(leaf[1] * case.file.size + 16 + 2 * i, "<H", 65534)
        case.write()
        case.refused("export", "backup")
        _, _, error = run("memory", "export", "--instances", "-", "--memory", case.memory)
        assert b"the memory is damaged" in error, error
        case.found()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--variants", type=int, default=VARIANTS)
    parser.add_argument("--seed", type=int, default=SEED)
    chosen = parser.parse_args()
    tools_made()
    with tempfile.TemporaryDirectory(prefix="engram-damage-") as temporary:
        result = variants(Sound(Path(temporary)), chosen.variants, chosen.seed, Path(temporary) / "variants", sys.stdout)
    print(f"{chosen.variants} variants, {result[0]} called sound, {dict(result[1])}")
    sys.exit(1 if result[2] else 0)
