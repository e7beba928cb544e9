"""Every kind of poison of docs/RECORDS.md on all three topics, in both formats, in one run of two replicas: each stands
among the dead letters as often as it must and whole, forgets what its key named, and touches nothing beside it.

The oracle counts records in the topics with another client; what must be left in the memories is loaded into a third
one from a file, and the digests compared.
"""

import json
import re
import time
from dataclasses import dataclass

import msgpack
from kafka import Record
from stage import ROOT, engram

MODEL = ROOT / "tests" / "golden" / "tiny-bert"
MIB = 1 << 20
NAMED = {"text": "id", "instance": "id", "label": "label"}  # the field that may name a record
LEARNT = ("instance", "label")
PACK = {"json": lambda fields: json.dumps(fields).encode(), "msgpack": msgpack.packb}
HEADERS = [("trace", b"1"), ("trace", b"2"), ("none", None), ("empty", b""), ("bytes", b"\x00\xff")]
GOOD_KEY = object()  # a key of the record's own


@dataclass
class Case:
    """One poison record and what must be said of it."""

    kind: str
    name: str
    key: bytes | None
    value: bytes | None
    code: str
    message: str  # a regular expression
    record: Record | None = None
    place: tuple | None = None


def good(kind, name="x"):
    """The fields of a sound record of this kind."""
    fields = {NAMED[kind]: name, "text": "a tool to search text files"}
    return {**fields, "labels": ["search", "text"]} if kind == "instance" else fields


def nested(levels):
    return [nested(levels - 1)] if levels > 1 else []


def wrong_fields(kind):
    """(name, fields, code, message): mistakes that both formats can say."""
    named = NAMED[kind]
    sound = good(kind)
    without_text = {k: v for k, v in sound.items() if k != "text"}
    yield "no text", without_text, "FIELD", 'field "text" is missing'
    yield "text number", {**sound, "text": 17}, "FIELD", 'field "text" must be a string, not a number'
    yield "text null", {**sound, "text": None}, "FIELD", 'field "text"'
    yield "text list", {**sound, "text": ["a"]}, "FIELD", 'field "text" must be a string, not an array'
    yield "text nul", {**sound, "text": "ab\0c"}, "NUL", 'field "text" has a NUL character at byte 2'
    yield "name number", {**sound, named: 17}, "FIELD", f'field "{named}" must be a string'
    yield "name empty", {**sound, named: ""}, "FIELD", f'field "{named}" is empty'
    yield "name long", {**sound, named: "é" * 128}, "LIMIT", f'field "{named}" is over 255 bytes long'
    yield "name nul", {**sound, named: "a\0"}, "NUL", f'field "{named}" has a NUL'
    yield "too deep", {**sound, "more": nested(16)}, "FORMAT", "nested deeper than 16 levels"
    yield "much too deep", {**sound, "metadata": nested(500)}, "FORMAT", "nested deeper than 16 levels"
    yield "too large", {**sound, "more": "x" * MIB}, "LIMIT", r"value of \d+ bytes, over the limit of 1048576"
    if kind == "instance":
        labels = {"none": (None, 'field "labels"'), "string": ("a", 'field "labels" must be an array'),
                  "number in it": (["a", 1], r"labels\[1\] must be a string, not a number"),
                  "null in it": ([None], r"labels\[0\] must be a string, not null")}
        for name, (value, message) in labels.items():
            yield f"labels {name}", {**sound, "labels": value}, "FIELD", message
        yield "labels missing", {k: v for k, v in sound.items() if k != "labels"}, "FIELD", 'field "labels" is missing'
        yield "label empty", {**sound, "labels": ["a", ""]}, "FIELD", r"labels\[1\] is empty"
        yield "label long", {**sound, "labels": ["a" * 256]}, "LIMIT", r"labels\[0\] is over 255 bytes long"
        yield "label nul", {**sound, "labels": ["a\0b"]}, "NUL", r"labels\[0\] has a NUL"
        yield "labels many", {**sound, "labels": [f"l{i}" for i in range(1001)]}, "LIMIT", "1001 labels are listed"


def wrong_bytes(kind):
    """(name, value, code, message): what is no record at all."""
    sound = json.dumps(good(kind)).encode()
    packed = msgpack.packb(good(kind))
    tail = packed[1:]
    more = bytes([packed[0] + 1]) + tail  # one field is still to come
    yield "zero bytes", b"", "FORMAT", "empty value: zero bytes"
    yield "json cut", sound[:-3], "FORMAT", "not JSON"
    yield "json trailing", sound + b" x", "FORMAT", "not JSON.*trailing"
    yield "json twice", sound + sound, "FORMAT", "not JSON"
    yield "json array", b'["a"]', "FORMAT", "the value must be a map, not an array"
    yield "json string", b'"a"', "FORMAT", "the value must be a map, not a string"
    yield "json null", b"null", "FORMAT", "the value must be a map"
    yield "json blank", b"  \n", "FORMAT", "."
    yield "json bom", b"\xef\xbb\xbf" + sound, "FORMAT", "byte order mark"
    yield "json nan", sound[:-1] + b', "more": NaN}', "FORMAT", "not JSON"
    yield "json comment", sound[:-1] + b" /* c */}", "FORMAT", "."
    yield "json comma", sound[:-1] + b",}", "FORMAT", "not JSON"
    yield "json not utf-8", sound.replace(b"tool", b"to\xffol"), "UTF8", r"invalid UTF-8 at byte \d+"
    yield "json lone surrogate", sound.replace(b"tool", b"to\\ud800ol"), "UTF8", r"lone surrogate \\ud800 at byte \d+"
    yield "json lone low surrogate", sound.replace(b"tool", b"to\\udc00ol"), "UTF8", "surrogate"
    yield "plain text", b"just a text", "FORMAT", "not JSON"
    yield "registry frame", b"\0\0\0\0\7" + sound, "SCHEMA_FRAME", r"schema registry's frame \(schema id 7\)"
    yield "zero byte", b"\0", "SCHEMA_FRAME", "first byte 0x00"
    yield "msgpack array", msgpack.packb(["a"]), "FORMAT", "first byte 0x91: neither JSON nor a MessagePack map"
    yield "msgpack cut", packed[:-2], "FORMAT", "not MessagePack"
    yield "msgpack trailing", packed + b"\0", "FORMAT", "1 trailing bytes after the map"
    yield "msgpack c1", more + b"\xa1x\xc1", "FORMAT", "not MessagePack"
    yield "msgpack map count", b"\xdf\xff\xff\xff\xff" + tail, "FORMAT", "counts 4294967295"
    yield "msgpack array count", more + b"\xa1x\xdd\xff\xff\xff\xff", "FORMAT", "counts 4294967295"
    yield "msgpack str length", b"\x81\xa4text\xdb\xff\xff\xff\xff", "FORMAT", "not MessagePack"
    yield "msgpack str not utf-8", packed.replace(b"tool", b"to\xffl"), "UTF8", "invalid UTF-8 in the str at byte"
    yield "msgpack bin not utf-8", msgpack.packb({**good(kind), "text": b"\xff"}), "UTF8", "binary and not UTF-8"
    yield "msgpack key not utf-8", more + b"\xa1\xff\x01", "UTF8", "invalid UTF-8"


def wrong_keys(kind):
    """(name, key, value, message): keys that name nothing, or something else than the value says."""
    keys = {"missing": (None, "is missing"), "empty": (b"", "is empty"), "long": (b"k" * 256, "is over 255 bytes"),
            "not utf-8": (b"k\xff", "is not UTF-8"), "nul": (b"k\0", "has a NUL")}
    for form, pack in PACK.items():
        for name, (key, message) in keys.items():
            yield f"key {name} {form}", key, pack(good(kind, "bystander")), f"the record key {message}"
        yield f"key differs {form}", GOOD_KEY, pack(good(kind, "bystander")), "they must agree"
    yield "tombstone without key", None, None, "the record key is missing"
    yield "tombstone with a long key", b"k" * 256, None, "the record key is over 255 bytes"


def cases_of(kind):
    """Every poison of this kind; those with a key of their own have one that no other case has."""
    for name, fields, code, message in wrong_fields(kind):
        for form, pack in PACK.items():
            key = f"{kind} {name} {form}"
            own = {NAMED[kind]: key} if fields.get(NAMED[kind]) == "x" else {}
            yield Case(kind, f"{name} {form}", key.encode(), pack({**fields, **own}), code, message)
    for name, value, code, message in wrong_bytes(kind):
        yield Case(kind, name, f"{kind} {name}".encode(), value, code, message)
    if kind in LEARNT:
        for name, key, value, message in wrong_keys(kind):
            key = f"{kind} {name}".encode() if key is GOOD_KEY else key
            yield Case(kind, name, key, value, "KEY", message)


def sound_texts():
    """{key: value} at the edge of what is allowed: all of them are answered."""
    largest = {"text": "a", "more": ""}
    at_limit = {form: pack({**largest, "more": "x" * (MIB - 100)}) for form, pack in PACK.items()}
    values = {
        "null for optional": b'{"text": "a", "id": null, "metadata": null}',
        "repeated": b'{"text": 1, "text": "last", "id": 2, "id": "last"}',
        "deep": PACK["json"]({"text": "a", "metadata": nested(15)}),
        "deep msgpack": PACK["msgpack"]({"text": "a", "metadata": nested(15)}),
        "id at limit": PACK["json"]({"text": "a", "id": "i" * 255}),
        "empty text": b'{"text": ""}',
        "numbers": b'{"text": "a", "metadata": [18446744073709551615, 1e400, -0]}',
        "bin": PACK["msgpack"]({"text": b"a tool"}),
        "extension": msgpack.packb({"text": "a", "metadata": msgpack.ExtType(5, b"x"), "more": float("nan")}),
        "nul elsewhere": b'{"text": "a", "more": "\\u0000"}',
        "pair": b'{"text": "\\ud83d\\ude00"}',
        "long text": PACK["json"]({"text": "word " * 20000}),
        "json at limit": at_limit["json"] + b" " * (MIB - len(at_limit["json"])),
        "msgpack near limit": at_limit["msgpack"],
    }
    return {key.encode(): value for key, value in values.items()} | {b"key \xff\0 of any bytes": b'{"text": "a"}'}


def victims(cases):
    """A sound record under the key of each learnt case, to be forgotten by it."""
    named = [c for c in cases if c.kind in LEARNT and c.key and c.key.isascii() and b"\0" not in c.key]
    named = [c for c in named if len(c.key) <= 255]
    return {kind: {c.key: PACK["json"](good(kind, c.key.decode())) for c in named if c.kind == kind} for kind in LEARNT}


def mixed(poison, sound):
    """Poison and sound records by turns."""
    out, sound = [], list(sound)
    for index, record in enumerate(poison):
        out.append(record)
        out.extend(sound[index::len(poison)])
    return out


def check_letter(case, letter, topic, began_ms):
    """All of the original, the time of writing, and the reasons."""
    what = f"{case.kind}: {case.name}"
    assert (letter.key, letter.value) == (case.key, case.value), what
    assert letter.headers[:len(HEADERS)] == HEADERS, what
    assert began_ms <= letter.timestamp <= time.time() * 1000 + 1000, what
    reasons = letter.headers[len(HEADERS):]
    message = dict(reasons)["__connect.errors.exception.message"].decode()
    assert re.search(case.message, message) and "\n" not in message, f"{what}: {message}"
    assert [(name, value) for name, value in reasons if not name.endswith("message")] == [
        ("__connect.errors.topic", topic.encode()), ("__connect.errors.partition", b"%d" % case.place[0]),
        ("__connect.errors.offset", b"%d" % case.place[1]), ("__connect.errors.stage", b"decode"),
        ("__connect.errors.exception.class.name", case.code.encode()),
        ("engram.attempts", b"1"), ("engram.timestamp", b"%d" % case.record.timestamp)], f"{what}: {message}"


def test_every_kind_of_poison(broker, topics, stage, folder):
    began_ms = int(time.time() * 1000)
    cases = [case for kind in NAMED for case in cases_of(kind)]
    topic_of = {"text": topics.texts, "instance": topics.instances, "label": topics.labels}
    flags = ["--model", MODEL]
    # a compacted topic takes no record without a key: only where somebody did not know that can one come
    broker.create_topics(topics.instances, topics.labels, cleanup_policy="delete", max_message_bytes=4 * MIB)
    one = stage(*flags, memory=folder / "one")
    one.wait_for("6 partitions of")
    two = stage(*flags, memory=folder / "two")
    two.wait_for("3 partitions of")
    one.wait_for("given back(.|\n)*3 partitions of")
    for topic in (topics.instances, topics.labels):
        assert len(re.findall(f"topic '{topic}' is not compacted.*cleanup.policy=compact", one.log())) == 1

    # what the poison will forget, and what it must not
    condemned = victims(cases)
    kept = {kind: {f"{kind} kept {i}".encode(): PACK["json"](good(kind, f"{kind} kept {i}")) for i in range(40)}
            | {b"bystander": PACK["json"](good(kind, "bystander"))} for kind in LEARNT}
    for kind in LEARNT:
        broker.produce(topic_of[kind], [*condemned[kind].items(), (b"bystander", kept[kind][b"bystander"])])
    for replica in (one, two):
        replica.wait_for("ready")

    # the poison, with sound records among it
    for index, case in enumerate(cases):
        case.record = Record(case.key, case.value, HEADERS, timestamp=began_ms - 100_000 + index)
    answered = sound_texts()
    sound = {"text": list(answered.items()), **{kind: list(kept[kind].items()) for kind in LEARNT}}
    for kind, topic in topic_of.items():
        mine = [case for case in cases if case.kind == kind]
        records = mixed([case.record for case in mine], sound[kind])
        places = broker.produce(topic, records)
        by_record = {id(record): place for record, place in zip(records, places)}
        for case in mine:
            case.place = by_record[id(case.record)]

    expected = sum(2 if case.kind in LEARNT else 1 for case in cases)
    broker.read(topics.dead_letters, expected)
    broker.read(topics.predictions, len(answered))
    ends = {topic: broker.ends(topic)[0][1] for topic in (topics.instances, topics.labels)}
    for replica in (one, two):
        replica.stop()

    # each as often as it must, and whole
    letters = {}
    for letter in broker.read_all(topics.dead_letters):
        said = dict(letter.headers)
        place = [said[f"__connect.errors.{part}"].decode() for part in ("topic", "partition", "offset")]
        letters.setdefault((place[0], int(place[1]), int(place[2])), []).append(letter)
    assert len(letters) == len(cases)
    for case in cases:
        found = letters[(topic_of[case.kind], *case.place)]
        assert len(found) == (2 if case.kind in LEARNT else 1), f"{case.kind}: {case.name}"
        for letter in found:
            check_letter(case, letter, topic_of[case.kind], began_ms)
    assert sorted(r.key for r in broker.read_all(topics.predictions)) == sorted(answered)
    assert broker.committed(topics.group, topics.texts) == {p: end for p, (_, end) in broker.ends(topics.texts).items()
                                                            if end > 0}

    # and the memories hold what is left, and have read all
    files = {kind: folder / f"{kind}.jsonl" for kind in LEARNT}
    for kind, path in files.items():
        path.write_bytes(b"\n".join(kept[kind].values()) + b"\n")
    engram("load", *flags, "--memory", folder / "wanted", "--instances", files["instance"], "--labels", files["label"])
    wanted = json.loads(engram("memory", "stats", "--json", "--memory", folder / "wanted").stdout)
    for replica in (one, two):
        stats = replica.stats()
        assert (stats["instances"], stats["label_keys"]) == (len(kept["instance"]), len(kept["label"]))
        assert stats["digest"] == wanted["digest"]
        assert stats["version"] == sum(ends.values())
        engram("memory", "verify", "--memory", replica.memory)


# ---- dead letters that are sent again ----

LETTER = {f"__connect.errors.{name}" for name in ("topic", "partition", "offset", "stage", "exception.class.name",
                                                  "exception.message")} | {"engram.attempts", "engram.timestamp"}


def send_again(broker, topic, letters_topic, letter, times):
    """The letter as it is, so often; returns the last one that came of it."""
    for _ in range(times):
        read = len(broker.read_all(letters_topic))
        broker.produce(topic, [Record(letter.key, letter.value, letter.headers)])
        letter = max(broker.read(letters_topic, read + 1), key=lambda found: (found.timestamp, found.offset))
    return letter


def test_a_dead_letter_sent_again(broker, topics, stage):
    """Its headers are replaced and not piled up, in both lanes; a record's own ones of the same names stay, and a
    repaired text's prediction has those alone."""
    broker.create_topics((topics.texts, 1), (topics.dead_letters, 1), (topics.predictions, 1))
    own = [*HEADERS, ("__connect.errors.task.id", b"7"), ("engram.timestamp", b"mine"),
           ("__connect.errors.stage", None)]
    running = stage("--model", MODEL).wait_ready()
    for topic in (topics.texts, topics.instances):
        began = len(broker.read_all(topics.dead_letters))
        broker.produce(topic, [Record(b"k", b"{", own)])
        first = broker.read(topics.dead_letters, began + 1)[-1]
        assert dict(first.headers)["engram.attempts"] == b"1"
        last = send_again(broker, topic, topics.dead_letters, first, 3)
        for letter, attempts in ((first, b"1"), (last, b"4")):
            assert letter.headers[:len(own)] == own
            said = letter.headers[len(own):]
            assert {name for name, _ in said} == LETTER and len(said) == len(LETTER), said
            assert dict(said)["engram.attempts"] == attempts
        assert dict(last.headers)["__connect.errors.offset"] == b"3"
    broker.produce(topics.texts, [
        Record(b"repaired", b'{"text": "a tool"}', last.headers), Record(b"null", None, last.headers),
        Record(b"new", b'{"text": "a tool"}', own),
        Record(b"odd", b"{", [("engram.attempts", b"many"), ("engram.truncated", b"true"), *HEADERS])])
    found = {record.key: record.headers for record in broker.read(topics.predictions, 3)}
    assert found == {b"repaired": own, b"null": own, b"new": own}
    odd = broker.read(topics.dead_letters, 9)[-1]
    assert odd.headers[:len(HEADERS)] == HEADERS and dict(odd.headers)["engram.attempts"] == b"2"
    assert "engram.truncated" not in dict(odd.headers)
    running.stop()
