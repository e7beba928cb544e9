"""The texts of the golden files, made anew each time: from examples/debtags and from a torture list that no Unicode table
of this Python decides. The make_*.py scripts ask the reference about them, the test_*.py ours. Standard library alone.
"""

import gzip
import hashlib
import json
import os
import random
import struct
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HERE = ROOT / "tests/golden"
DATA = ROOT / "examples/debtags"
BUILD = ROOT / os.environ.get("BUILD", "build")
MODEL = BUILD / "models/all-MiniLM-L6-v2"
MAX_SEQ_LENGTH = 256

MARKS = [chr(c) for c in range(0x300, 0x370)] + list(
    "\u0488\u05b0\u064b\u0670\u093c\u094d\u0e38\u0f71\u1ab0\u1abf\u1dc0\u1df6\u20d0\u302a\u302e\u302f\u3099\ufe0f\ufe20"
    "\U0001d165\U0001d166\U0001d16d\U0001e000\U0001e944\U000111c0\u1b44\u08d4\u0900\u0c3c"
)
SPACES = list(" \t\n\r\x0b\x0c\x85\xa0\u1680\u2000\u2003\u2007\u2009\u200a\u2028\u2029\u202f\u205f\u3000")
INVISIBLE = list("\x01\x08\x1b\x1f\x7f\x80\x9f\xad\u061c\u180e\u200b\u200c\u200d\u200e\u202e\u2060\u2066\ufeff\ufff9\ufffd"
                 "\ufffe\uffff\ufdd0\ue000\uf8ff\U000e0001\U000e0041\U000f0000\U0010ffff\U0001fffe")
SPECIAL = ["[CLS]", "[SEP]", "[MASK]", "[UNK]", "[PAD]"]
WORDS = """the of running unaffable naïve café CAFÉ Ünïcödé STRASSE straße ISTANBUL İstanbul ısparta ΣΊΣΥΦΟΣ σίσυφος Ὀδυσσεύς
привет МОСКВА ёлка ЁЖ київ שָׁלוֹם مَرْحَبًا नमस्ते หวัดดี 안녕하세요 こんにちは カタカナ ガギグ 中文测试 漢字 文学 don't it's 3.14 1,000 x86_64
libfoo-dev lib32z1 C++ #hashtag @user https://example.org/a?b=c&d foo@bar.example 50% $100 €100 ₿ ½ ² ﬁ ﬂ ꜰ 🎉 👨‍👩‍👧 🇩🇪 ☃ ☕️ … – — ‘x’ “y” «z» ¿qué?
e\u0301 A\u030a o\u0308\u0304 \u1e69 s\u0323\u0307 s\u0307\u0323 \u212b \u2126 \u01c4 \u01c5 \u1e9e \u0130 I\u0307 i\u0307 \u0149 \u1f80 \u0344 \u0958 \ufb1d \uf900 \u2f800""".split()
HAND = [
    "[CLS]", "[SEP][SEP]", "a[SEP]b", " [MASK] ", "[MASK]ed", "un[UNK]known", "[PAD][PAD] [PAD]", "[[CLS]]", "[CLS", "CLS]", "[cls]",
    "[ CLS ]", "[C\u0301LS]", "[CLS\u0301]", "[\u200bCLS]", "[MASK\u00ad]", "[SEP]\u0301x", "e[SEP]\u0301", "\u0301", "\u0301\u0301a",
    "##ing", "a##b", "# #", "##", "[unused1]", "[UNK]", "", " ", "\n", "\ufeff", "\u200b", "\u200ba\u200bb\u200b", "a\u00adb",
    "a" * 99, "a" * 100, "a" * 101, "z" * 100, "é" * 100, "e\u0301" * 100, "e\u0301" * 101, "İ" * 100, "文" * 300, "." * 300,
    "\u0301" * 5000, "a" + "\U0001d165" * 99, "a" + "\U0001d165" * 100, "a" + "\U0001d16d\U0001d165" * 200 + " b",
    "x" * 60000, "x" * 60000 + " end", "ab " * 20000, " " * 60000 + "end", "." * 60000, "hello\u3000world\u2003again",
    "a\x0bb\x0cc\x85d\x1ce", "\U0001f468\u200d\U0001f469\u200d\U0001f467", "\U0001f1e9\U0001f1ea", "\u2764\ufe0f", "1\ufe0f\u20e3",
    "\u11a8\u1161\u1100", "\u1100\u1161\u11a8", "\uac01", "\uac00\u11a8", "\u0344", "\u0390", "\u1fee", "\u037e", "\u0387", "\u212a", "\u2126",
    "\u2329x\u232a", "\u0374", "\u1fef", "\u2000a\u2001b", "\U0001d15e", "\u0f73", "\u0958", "\u2adc", "\ufb4e", "\U0002f800x", "x\uf900y",
    "\u2e43a\u2e52", "\u1c89\ua7cb", "\ua7dc", "a\u0898b", "a\u1734b", "a\u166db", "\U000111c9", "a\u08e2b", "a\U000110cdb", "\U00011938",
]  # fmt: skip


class Draw:
    """A seeded choice that stands on random() alone, the one sequence that Python promises to keep."""

    def __init__(self, seed):
        self.random = random.Random(seed).random

    def below(self, n):
        return int(self.random() * n)

    def one(self, items):
        return items[self.below(len(items))]

    def shuffled(self, items):
        return [items[i] for _, i in sorted((self.random(), i) for i in range(len(items)))]


def code_point(draw):
    """Any but NUL and surrogates, the lower planes more often."""
    while True:
        c = 1 + draw.below(draw.one([0x7F, 0x24F, 0x2FFF, 0xFFFF, 0x1FFFF, 0x10FFFF]))
        if not 0xD800 <= c <= 0xDFFF:
            return chr(c)


def fragment(draw):
    kinds = [
        lambda: draw.one(WORDS), lambda: draw.one(WORDS) + " ", lambda: " ", lambda: " " + draw.one(WORDS),
        lambda: draw.one(MARKS), lambda: draw.one(SPACES), lambda: draw.one(INVISIBLE), lambda: draw.one(SPECIAL),
        lambda: code_point(draw), lambda: code_point(draw) + " ", lambda: chr(33 + draw.below(94)),
        lambda: draw.one("aeinou") + draw.one(MARKS), lambda: draw.one(MARKS) * draw.below(4),
    ]  # fmt: skip
    return draw.one(kinds)()


def blocks():
    """Neighbours by the line, each as a word's middle and alone: all of the first 0x3400, then some of every 256."""
    starts = list(range(0, 0x3400, 16)) + list(range(0x3400, 0x30000, 256)) + list(range(0xE0000, 0xE0200, 64))
    for start in starts:
        chars = [chr(c) for c in range(start, start + 16) if c != 0 and not 0xD800 <= c <= 0xDFFF]
        if chars:
            yield " ".join("a" + c + "b " + c for c in chars)


def torture():
    draw = Draw(8)
    mixed = ["".join(fragment(draw) for _ in range(1 + draw.below(24))) for _ in range(1000)]
    return HAND + WORDS + list(blocks()) + mixed


def texts_of(name):
    with gzip.open(DATA / name, "rt", encoding="utf-8") as lines:
        return [json.loads(line)["text"] for line in lines]


def token_texts():
    return {
        "labels": texts_of("labels.jsonl.gz"),
        "test": texts_of("test.jsonl.gz"),
        "train": texts_of("train.jsonl.gz"),
        "long-texts": texts_of("long-texts.jsonl.gz"),
        "torture": torture(),
    }


def embedding_texts():
    """512 texts of 1 to 256 word pieces: an empty one, titles, labels, windows of the long texts, a few of the torture list."""
    draw = Draw(9)
    titles, labels = texts_of("test.jsonl.gz"), texts_of("labels.jsonl.gz")
    words = " ".join(texts_of("long-texts.jsonl.gz")).split()
    texts = ["", "a", "the", "[MASK]", "…"] + [draw.one(titles) for _ in range(100)] + [draw.one(labels) for _ in range(40)]
    texts += draw.shuffled(torture()[:200])[:27]
    while len(texts) < 512:
        start, count = draw.below(len(words) - 300), 1 + draw.below(210)
        texts.append(" ".join(words[start : start + count]))
    return texts


def texts_digest(texts):
    """Says whether the texts are still those that the reference was asked about."""
    return hashlib.sha256(json.dumps(texts).encode()).hexdigest()[:16]


def ids_digest(many):
    digest = hashlib.sha256()
    for ids in many:
        digest.update(struct.pack(f"<{len(ids) + 1}i", len(ids), *ids))
    return digest.hexdigest()[:16]


def encode(texts, model=MODEL, compute="f32"):
    """What `engram encode` answers to each text, as the parsed objects; the references are in f32."""
    lines = "".join(json.dumps(text) + "\n" for text in texts)
    done = subprocess.run(
        [BUILD / "engram", "encode", "--stdin", "--json-lines", "--model", model, "--compute", compute],
        input=lines.encode(), capture_output=True, timeout=800,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr.decode()
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(answers) == len(texts)
    return answers
