"""Records against an independent reader: Python's json and msgpack with docs/RECORDS.md's rules on top. Thousands of
sound and broken records, in both formats: the same are poison, and the rest say the same; so do their predictions."""

import json
import math
import random
import re
import struct
import subprocess
from pathlib import Path

import msgpack
import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
OBJECTS = [ROOT / "build" / "obj" / room for room in ("base", "record")]


class Poison(Exception):
    """This record can never work."""


class Skip(Exception):
    """The reference itself is stricter than the format here."""


# ---- the reference: a value's pairs, then the rules ----


class Pairs(list):
    """A map as it stands: repeated names and all."""


def walk(value, depth=0):
    """Depth and strings of a whole value."""
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError as e:  # a lone surrogate
            raise Poison from e
    if isinstance(value, list):
        if depth == 16:
            raise Poison
        for item in value:
            if isinstance(value, Pairs):
                walk(item[0], depth + 1)
                walk(item[1], depth + 1)
            else:
                walk(item, depth + 1)


def no_constant(name):
    raise Poison(name)


def parse_json(data):
    try:
        return json.loads(data.decode(), object_pairs_hook=Pairs, parse_int=Number, parse_float=Number,
                          parse_constant=no_constant)
    except (ValueError, RecursionError) as e:
        raise Poison from e


class Number(str):
    """A JSON number in its own characters."""


def parse_msgpack(data):
    try:
        return msgpack.unpackb(data, raw=False, strict_map_key=False, object_pairs_hook=Pairs,
                               ext_hook=lambda code, body: (code, body))
    except Exception as e:  # its errors have no common base
        if "Timestamp" in str(e) or "nanoseconds" in str(e):  # an extension that nobody reads
            raise Skip from e
        raise Poison from e


def is_string(value):
    return isinstance(value, str) and not isinstance(value, Number)


def check_name(name):
    if not is_string(name) or not 1 <= len(name.encode()) <= 255 or "\0" in name:
        raise Poison
    return name


def reference(kind, key, value):
    """What the record says, as a dict; the metadata with it."""
    if kind != "t":
        try:
            check_name(key.decode() if key is not None else None)
        except UnicodeDecodeError as e:
            raise Poison from e
    if not 1 <= len(value) <= 1 << 20:
        raise Poison
    packed = 0x80 <= value[0] <= 0x8F or value[0] in (0xDE, 0xDF)
    tree = (parse_msgpack if packed else parse_json)(value)
    walk(tree)
    if not isinstance(tree, Pairs):
        raise Poison
    fields = {}
    for name, field in tree:
        if is_string(name):
            fields[name] = field
    own = fields.get("label" if kind == "l" else "id")
    if own is not None:
        check_name(own)
    text = fields.get("text")
    if isinstance(text, bytes):
        try:
            text = text.decode()
        except UnicodeDecodeError as e:
            raise Poison from e
    if not is_string(text) or "\0" in text:
        raise Poison
    while len(text.encode()) > 64 << 10:
        text = text[:-1]
    if kind == "t":
        out = {"id": own, "text": text, "metadata": fields.get("metadata")}
        if own is None and key is not None:
            out["id"] = key.decode(errors="ignore") if key == key.decode(errors="ignore").encode() else None
        return {name: field for name, field in out.items() if field is not None}
    if own is not None and own.encode() != key:
        raise Poison
    if kind == "l":
        return {"label": key.decode(), "text": text}
    labels = fields.get("labels")
    if not isinstance(labels, list) or isinstance(labels, Pairs) or len(labels) > 1000:
        raise Poison
    return {"id": key.decode(), "text": text, "labels": sorted({check_name(name) for name in labels}, key=str.encode)}


# ---- the records ----


def random_string(rng, most=12):
    alphabet = "ab c\"\\/\n\t\x01\x7fé€\u2028\ufeff\U0001f600\U0010ffff"
    return "".join(rng.choice(alphabet) for _ in range(rng.randrange(most)))


def random_tree(rng, depth=0):
    pick = rng.randrange(9 if depth < 3 else 6)
    if pick == 0:
        return random_string(rng)
    if pick == 1:
        return rng.choice([0, -1, 2**63, 2**64 - 1, -(2**63), 127, 128, 65536])
    if pick == 2:
        return rng.choice([0.5, -0.0, 1e300, 1 / 3])
    if pick < 6:
        return rng.choice([True, False, None])
    if pick == 6:
        return [random_tree(rng, depth + 1) for _ in range(rng.randrange(4))]
    return {random_string(rng): random_tree(rng, depth + 1) for _ in range(rng.randrange(4))}


def random_record(rng, kind):
    record = {"text": random_string(rng, 40)}
    if rng.random() < 0.5:
        record["label" if kind == "l" else "id"] = rng.choice(["k", "k", "k", "j", "é", None])
    if kind == "i":
        record["labels"] = [random_string(rng, 5) or "x" for _ in range(rng.randrange(6))]
    if kind == "t" and rng.random() < 0.6:
        record["metadata"] = random_tree(rng)
    if rng.random() < 0.2:
        record[rng.choice(["x", "Text", "metadata", "labels ", ""])] = random_tree(rng)
    items = list(record.items())
    rng.shuffle(items)
    return dict(items)


def written(rng, record):
    """In one of the formats, in any of its spellings."""
    if rng.random() < 0.5:
        text = json.dumps(record, ensure_ascii=rng.random() < 0.5, indent=rng.choice([None, 1]))
        if rng.random() < 0.2:
            text = text.replace(": 0.5", ": 1e400").replace(": 127", ": -0").replace(": -1", ": 99999999999999999999.10")
        return text.encode()
    if "text" in record and rng.random() < 0.1:
        record = {**record, "text": record["text"].encode()}
    if rng.random() < 0.2:
        record = {**record, "e": msgpack.ExtType(5, b"abcd"), "n": math.nan}
    return msgpack.packb(record, use_single_float=rng.random() < 0.5)


TELLING = b"{}[]\",:\\u0d8cnte1-.\0\x80\x81\x90\xa0\xbf\xc0\xc1\xc4\xc6\xc7\xca\xcf\xd4\xd9\xdb\xdc\xdd\xde\xdf\xed\xf4\xff"


def mutated(rng, value):
    data = bytearray(value)
    for _ in range(rng.choice([1, 1, 1, 2])):
        at = rng.randrange(len(data)) if data else 0
        pick = rng.randrange(5)
        if pick == 0 and data:
            data[at] = rng.choice(TELLING)
        elif pick == 1:
            del data[at:]
        elif pick == 2:
            data[at:at + 1] = b""
        elif pick == 3:
            data[at:at] = bytes([rng.choice(TELLING)])
        else:
            data += data[at:at + rng.randrange(1, 20)]
    return bytes(data)


def special_records():
    """What random ones do not meet."""
    def nested(levels):
        tree = 1
        for _ in range(levels):
            tree = [tree]
        return {"text": "a", "metadata": tree}

    for write in (lambda r: json.dumps(r).encode(), msgpack.packb):
        for levels in (14, 15, 16, 17):
            yield "t", None, write(nested(levels))
        for count in (999, 1000, 1001):
            yield "i", b"k", write({"text": "a", "labels": [str(i) for i in range(count)]})
        for letters in (254, 255, 256):
            yield "i", b"k" * letters, write({"text": "a", "labels": ["n" * letters]})
            yield "l", ("é" * (letters // 2)).encode(), write({"text": "a", "label": "é" * (letters // 2)})
            yield "t", b"k" * letters, write({"text": "a"})
        for shift in range(4):
            yield "t", None, write({"text": "a" * shift + "😀" * (16 << 10)})
        yield "t", b"", write({"text": ""})
        yield "t", b"\xff", write({"text": "a"})
        yield "t", b"\0", write({"text": "a"})
        yield "i", b"", write({"text": "a", "labels": []})
        yield "l", None, write({"text": "a", "label": "k"})
    yield "t", None, b'{"text":"a","metadata":{"a":1,"a":[],"n":[1e400,-0,1.0,1E+2,18446744073709551615]}}'
    yield "t", None, b"\x83\xa4text\xa1a\xa4text\x01\xa4text\xa1b"


def all_records():
    rng = random.Random(20240607)
    yield from special_records()
    for i in range(20000):
        kind = rng.choice("til")
        value = written(rng, random_record(rng, kind))
        key = rng.choice([b"k", b"k", b"k", b"k", b"\xff", b"", None])
        yield kind, key, mutated(rng, value) if i % 2 else value


# ---- the comparison ----


@pytest.fixture(scope="module")
def tool(tmp_path_factory):
    program = tmp_path_factory.mktemp("records") / "record_tool"
    subprocess.run(["make", "-s", "room-base", "room-record"], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    sources = [str(o) for room in OBJECTS for o in sorted(room.glob("*.o")) if (ROOT / room.name / f"{o.stem}.c").exists()]
    subprocess.run(["cc", "-std=c17", "-I.", "-D_POSIX_C_SOURCE=200809L", "-o", program, "tests/golden/record_tool.c",
                    *sources, "-lmsgpackc", "-lyajl", "-lz", "-lzip", "-lxxhash", "-lm"], cwd=ROOT, check=True)
    return program


def single(x):
    return struct.unpack("<f", struct.pack("<f", x))[0]


def expected_prediction(said, packed):
    def figure(x):  # in JSON the shortest that is this float
        return single(x) if packed else x

    prediction = {
        "id": said.get("id"),
        "labels": [{"label": 'é"\n', "score": figure(0.1)}, {"label": "b", "score": figure(0.73123455)}],
        "evidence": [
            {"kind": "instance", "id": "vim", "similarity": -0.25, "weight": figure(1e-20), "labels": ["b", 'é"\n'],
             "text": "an editor"},
            {"kind": "label", "label": "b", "similarity": figure(0.99999994), "lexical": figure(0.3),
             "weight": figure(3.4028235e38)},
        ],
        "truncated": True,
        "model_version": "0123456789abcdef",
        "memory_version": 2**64 - 1,
    }
    if "metadata" in said:
        prediction["metadata"] = said["metadata"]
    prediction["source"] = {"topic": "texts", "partition": 5, "offset": 2**63 - 1}
    return prediction


def plain(value):
    """Pairs as they are but comparable; NaN equal to itself, numbers of a type told apart from others (1, 1.0, True)."""
    if isinstance(value, Pairs):
        return ["map", *([plain(name), plain(item)] for name, item in value)]
    if isinstance(value, dict):
        return ["map", *([plain(name), plain(item)] for name, item in value.items())]
    if isinstance(value, list):
        return [plain(item) for item in value]
    return repr(value)


def prediction_of(data, packed):
    if packed:
        return plain(parse_msgpack(data))
    tree = parse_json(data)  # numbers in their characters: only metadata's are compared so
    for i, (name, item) in enumerate(tree):
        if name != "metadata":
            tree[i] = (name, json.loads(json.dumps(to_numbers(item))))
    return plain(tree)


def to_numbers(value):
    if isinstance(value, Number):
        return json.loads(value)
    if isinstance(value, Pairs):
        return {name: to_numbers(item) for name, item in value}
    if isinstance(value, list):
        return [to_numbers(item) for item in value]
    return value


def check(kind, key, value, answer):
    try:
        said = reference(kind, key, value)
    except Poison:
        assert answer[0] in ("FORMAT", "SCHEMA_FRAME", "FIELD", "UTF8", "NUL", "LIMIT", "KEY")
        return "poison"
    except Skip:
        return "skipped"
    assert answer[0] == "OK"
    packed = 0x80 <= value[0]
    as_json, as_msgpack = bytes.fromhex(answer[1]), bytes.fromhex(answer[2])
    metadata = said.pop("metadata", None)
    got_json, got_msgpack = dict(parse_json(as_json)), dict(parse_msgpack(as_msgpack))
    own = got_msgpack if packed else got_json
    assert plain(own.get("metadata")) == plain(metadata)
    assert ("metadata" in got_json) == (metadata is not None and not packed)
    got_json.pop("metadata", None)
    got_msgpack.pop("metadata", None)
    assert got_json == said and list(got_json) == [n for n in ("id", "label", "text", "labels") if n in said]
    assert got_msgpack == said
    if kind == "t":
        if metadata is not None:
            said["metadata"] = metadata
        assert prediction_of(bytes.fromhex(answer[3]), packed) == plain(expected_prediction(said, packed))
    return "taken"


def ask(tool, records):
    lines = [f"{kind} {'-' if key is None else key.hex()} {value.hex()}\n" for kind, key, value in records]
    done = subprocess.run([tool], input="".join(lines).encode(), capture_output=True, check=True, timeout=300)
    answers = done.stdout.decode().split("\n")[:-1]
    assert len(answers) == len(records)
    return answers


def test_records_as_the_reference_reads_them(tool):
    records = list(all_records())
    answers = ask(tool, records)
    counts = {"taken": 0, "poison": 0, "skipped": 0}
    for (kind, key, value), answer in zip(records, answers):
        try:
            counts[check(kind, key, value, answer.split(" "))] += 1
        except AssertionError as e:
            raise AssertionError(f"{kind} {key!r} {value[:300]!r}: {answer[:300]}\n{e}") from e
    assert counts["taken"] > 5000 and counts["poison"] > 5000 and counts["skipped"] < 50, counts


# ---- docs/RECORDS.md ----

DOCUMENT = (ROOT / "docs" / "RECORDS.md").read_text(encoding="utf-8")


def section(title):
    return re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", DOCUMENT, re.MULTILINE | re.DOTALL).group(1)


def test_the_documents_examples_are_records(tool):
    blocks = {title: re.search(r"```json\n(.*?)```", section(title), re.DOTALL).group(1).encode()
              for title in ("Text", "Labelled instance", "Label definition", "Prediction")}
    instance = json.loads(blocks["Labelled instance"])
    packed = bytes.fromhex(re.search(r"```\n((?:[0-9a-f]{2}\s)+)```", section("Labelled instance")).group(1))
    assert packed == msgpack.packb(instance)
    answers = ask(tool, [("t", None, blocks["Text"]), ("i", b"vim", blocks["Labelled instance"]), ("i", b"vim", packed),
                         ("l", b"use::editing", blocks["Label definition"])])
    assert [answer.split()[0] for answer in answers] == ["OK"] * 4
    text = json.loads(blocks["Text"])
    prediction = json.loads(blocks["Prediction"])
    assert prediction["metadata"] == text["metadata"] and prediction["id"] == text["id"]
    described = re.findall(r"^\| `(\w+)` \|", section("Prediction").partition("There are two kinds")[0], re.MULTILINE)
    shown = [name for name, _ in parse_json(bytes.fromhex(answers[0].split()[3]))]
    assert described == shown  # in that order


def poison_records():
    """One for each message that the document lists."""
    text = b'{"text":"a"}'
    yield "t", None, b""
    yield "t", None, b'{"text":"ok"'
    yield "t", None, text + b" 1"
    yield "t", None, b"[]"
    yield "t", None, b"\x93"
    yield "t", None, b"\xef\xbb\xbf" + text
    yield "t", None, b"[" * 20
    yield "t", None, b"\x81" + b"\x91" * 20
    yield "t", None, b"\x82\xa4text\xa1a"
    yield "t", None, b"\x81\xa4text\xa1ax"
    yield "t", None, b"\x82\xa4text\xa1a\xa1x\xdd\xff\xff\xff\xff"
    yield "t", None, b"\0\0\0\0\7" + text
    yield "t", None, b"{}"
    yield "t", None, b'{"text":1}'
    yield "i", b"k", b'{"text":"a","labels":["b",null]}'
    yield "t", None, b'{"text":"a","id":""}'
    yield "i", b"k", b'{"text":"a","labels":[""]}'
    yield "t", None, b'{"text":"\xff"}'
    yield "t", None, b'{"text":"\\ud800"}'
    yield "t", None, b"\x81\xa4text\xa1\xff"
    yield "t", None, b"\x81\xa4text\xc4\x01\xff"
    yield "t", None, b'{"text":"a\\u0000"}'
    yield "i", b"k", b'{"text":"a","labels":["\\u0000"]}'
    yield "t", None, b" " * ((1 << 20) + 1)
    yield "i", b"k", json.dumps({"text": "a", "labels": ["b"] * 1001}).encode()
    yield "t", None, json.dumps({"text": "a", "id": "b" * 256}).encode()
    for key in (None, b"", b"k" * 256, b"\xff", b"\0"):
        yield "i", key, b'{"text":"a","labels":[]}'
    yield "i", b"emacs", b'{"id":"vim","text":"a","labels":[]}'


def test_the_document_lists_every_message(tool):
    listed, code = set(), None
    for first, _, messages in re.findall(r"^\|([^|]*)\|([^|]*)\|([^|]*)\|$", section("Poison"), re.MULTILINE):
        code = first.strip(" `") or code
        listed.update(f"{code} {message}" for message in re.findall(r"`([^`]+)`", messages))
    assert listed == set(ask(tool, list(poison_records())))
