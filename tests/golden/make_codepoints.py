#!/usr/bin/env python3
"""What Hugging Face `tokenizers` does with each code point, asked of it one by one.

Writes gpu/encoder/codepoint_tables.h (where it differs from utf8proc, whose Unicode is newer than that of the crates below
`tokenizers`), codepoints-vocab.txt (a vocabulary that tells all those mappings apart) and codepoints.txt (digests over all
code points, which tests/unit/test_tokenizer.c recomputes: of the ids, and of whether it is a word's character to an added
token that must be a single word). Run in the environment of requirements.txt on Debian 12:
    python tests/golden/make_codepoints.py
"""

import ctypes
import pathlib
import struct

import xxhash
from tokenizers import AddedToken, Regex, Tokenizer, normalizers, pre_tokenizers, processors
from tokenizers import __version__ as version
from tokenizers.models import WordPiece

HERE = pathlib.Path(__file__).resolve().parent
TABLES = HERE.parent.parent / "gpu/encoder/codepoint_tables.h"
CODE_POINTS = [c for c in range(0x110000) if not 0xD800 <= c <= 0xDFFF]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
# lower-case, strip accents, set CJK apart: an uncased model, a cased one, one that keeps accents
MODES = [(True, True, True), (False, False, True), (True, False, False)]
RANGE = 4096

utf8proc = ctypes.CDLL("libutf8proc.so.2")
utf8proc.utf8proc_get_property.restype = ctypes.POINTER(ctypes.c_int16)  # category, combining class, ...
utf8proc.utf8proc_category_string.restype = ctypes.c_char_p
utf8proc.utf8proc_version.restype = ctypes.c_char_p
utf8proc.utf8proc_unicode_version.restype = ctypes.c_char_p
DECOMPOSE = 1 << 4


def bert(clean=False, lower=False, strip=False, cjk=False):
    return normalizers.BertNormalizer(
        clean_text=clean, handle_chinese_chars=cjk, strip_accents=strip, lowercase=lower
    )


def theirs():
    """One dict a code point: what each step of `tokenizers` makes of it, seen from outside."""
    clean, lower, strip, nfd = bert(clean=True), bert(lower=True), bert(strip=True), normalizers.NFD()
    split = pre_tokenizers.BertPreTokenizer()
    single = single_word_tokenizer()
    found = {}
    for c in CODE_POINTS:
        char = chr(c)
        between = lambda step: step.normalize_str("a" + char + "b")[1:-1]
        parts = [part for part, _ in split.pre_tokenize_str("a" + char + "b")]
        decomposed = between(nfd)
        # U+0345 has the highest combining class, so whatever else has one moves in front of it
        moves = len(decomposed) == 1 and nfd.normalize_str("a\u0345" + char) == "a" + decomposed + "\u0345"
        found[c] = {
            "dropped": between(clean) == "",
            "punctuation": parts == ["a", char, "b"],
            "mark": between(strip) == "" and len(decomposed) == 1,
            "lower": between(lower),
            "nfd": decomposed,
            "orders": moves or c == 0x345,
            "word": single.encode(char + "<e>").ids != [1],
        }
    return found


def single_word_tokenizer():
    """Of no pieces but [UNK]: an <e> that a word's character touches is not found."""
    made = Tokenizer(WordPiece({"[UNK]": 0}, unk_token="[UNK]"))
    made.normalizer = normalizers.Replace(Regex("(?m).+"), "")  # what stands beside it is of no interest
    made.add_tokens([AddedToken("<e>", single_word=True, normalized=False)])
    return made


def ours():
    found = {}
    buffer, boundary = (ctypes.c_int32 * 32)(), ctypes.c_int(0)
    for c in CODE_POINTS:
        category = utf8proc.utf8proc_category_string(c).decode()
        n = utf8proc.utf8proc_decompose_char(c, buffer, 32, DECOMPOSE, ctypes.byref(boundary))
        found[c] = {
            "dropped": category in ("Cc", "Cf", "Co") and c not in (9, 10, 13) or c == 0xFFFD,
            "punctuation": category[0] == "P" or c < 128 and category[0] == "S",
            "mark": category == "Mn" and n == 1,  # the others are asked for their parts
            "lower": chr(utf8proc.utf8proc_tolower(c)),
            "nfd": "".join(map(chr, buffer[:n])),
            "orders": utf8proc.utf8proc_get_property(c)[1] != 0 and n == 1,
            "word": category[0] in "LM" or category in ("Nd", "Nl", "Pc"),
        }
    return found


def plain_runs(seeds, plain):
    """Ranges around the seeds, as wide as `plain` holds: fewer ranges, and room for what later versions assign there."""
    runs = []
    for c in sorted(seeds):
        if runs and c <= runs[-1][1]:
            continue
        first = last = c
        while first > 0x80 and (first - 1) not in seeds and (first - 1) in plain:
            first -= 1
        while (last + 1) in plain:
            last += 1
        runs.append((first, last))
    return runs


def ranges(code_points):
    runs = []
    for c in code_points:
        if runs and runs[-1][1] == c - 1:
            runs[-1] = (runs[-1][0], c)
        else:
            runs.append((c, c))
    return runs


def table(name, rows, comment):
    cells = [", ".join(f"{value:#x}" for value in row) for row in rows]
    lines, line = [], "   "
    for cell in cells:
        item = " {" + cell + "},"
        if len(line) + len(item) > 120:
            lines.append(line)
            line = "   "
        line += item
    lines.append(line)
    body = "\n".join(lines).rstrip(",")
    return f"/* {comment} */\nstatic const struct {name.split()[0]} {name.split()[1]}[] = {{\n{body}\n}};\n"


def lower_rows(hf, u8):
    """Lower-case letters that utf8proc does not know yet, as (first, last, difference)."""
    rows = []
    for c in CODE_POINTS:
        if hf[c]["lower"] == u8[c]["lower"] or len(hf[c]["lower"]) != 1:
            continue
        step = ord(hf[c]["lower"]) - c
        if rows and rows[-1][1] == c - 1 and rows[-1][2] == step:
            rows[-1] = (rows[-1][0], c, step)
        else:
            rows.append((c, c, step))
    return rows


def write_tables(hf, u8):
    traits = ("dropped", "punctuation", "mark")
    plain = {c for c in CODE_POINTS if not any(hf[c][trait] for trait in traits)}
    late = {c for c in plain if any(u8[c][trait] for trait in traits)}
    starters = {c for c in CODE_POINTS if not hf[c]["orders"] and hf[c]["nfd"] == chr(c)}
    late_nfd = {c for c in starters if u8[c]["orders"] or u8[c]["nfd"] != chr(c)}
    changed = [
        (c, c, 1 if hf[c]["mark"] else 2)
        for c in CODE_POINTS
        if hf[c]["mark"] and not u8[c]["mark"] and len(hf[c]["nfd"]) == 1
        or hf[c]["punctuation"] and not u8[c]["punctuation"]
    ]
    # what the tables and utf8proc.c together say nothing about must agree
    for c in CODE_POINTS:
        if c not in late and c not in (row[0] for row in changed):
            assert all(hf[c][trait] == u8[c][trait] for trait in traits), hex(c)
        if c not in late_nfd:
            assert hf[c]["orders"] == u8[c]["orders"] and hf[c]["nfd"] == u8[c]["nfd"], hex(c)
        assert hf[c]["word"] or not u8[c]["word"], hex(c)
        assert not (hf[c]["orders"] and hf[c]["punctuation"]), hex(c)
        assert len(hf[c]["lower"]) == 1 or c == 0x130
    proc = f"utf8proc {utf8proc.utf8proc_version().decode()} (Unicode {utf8proc.utf8proc_unicode_version().decode()})"
    parts = [
        "/* Written by tests/golden/make_codepoints.py: where Hugging Face tokenizers and utf8proc differ.\n"
        f" * Made with tokenizers {version} and {proc}. Included by codepoint.c alone. */\n/* clang-format off */\n",
        table("range LATE_CATEGORY", plain_runs(late, plain),
              "Marks, punctuation and format characters that came after Unicode 8: letters to tokenizers."),
        table("range LATE_NFD", plain_runs(late_nfd, starters),
              "Decompositions and combining classes that came after Unicode 9: none to tokenizers."),
        table("range_value CHANGED_CATEGORY", changed,
              "Changed since Unicode 8: 1 was a mark then, 2 punctuation."),
        table("range OTHER_WORD", ranges(c for c in CODE_POINTS if c >= 0x80 and hf[c]["word"] and not u8[c]["word"]),
              "Characters of a word that utf8proc's category does not show: other letters, joiners, and newer ones."),
        table("range_value LATE_LOWER", lower_rows(hf, u8), "Lower case that utf8proc does not know: the difference to add."),
    ]
    TABLES.write_text("\n".join(parts))


def tokenizer(pieces, lower, strip, cjk):
    model = WordPiece({p: i for i, p in enumerate(pieces)}, unk_token="[UNK]", max_input_chars_per_word=100)
    made = Tokenizer(model)
    made.normalizer = bert(clean=True, lower=lower, strip=strip, cjk=cjk)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    made.add_special_tokens(SPECIAL)
    return made


def lines(c):
    """In a word; and among marks of several classes that are kept, so that its own class shows in the order."""
    return ["a" + chr(c) + "b", "b\U0001e000" + chr(c) + "\U0001d165" + chr(c) + "\U000111c0"]


def write_golden(hf, u8):
    chars = {"a", "b", "\U0001e000", "\U0001d165", "\U000111c0"}
    for c in CODE_POINTS:
        if hf[c]["lower"] != chr(c) or hf[c]["nfd"] != chr(c):
            chars.update(hf[c]["lower"], hf[c]["nfd"])
        if (hf[c]["orders"] or u8[c]["orders"]) and not hf[c]["mark"]:
            chars.add(chr(c))  # so that its place in the order shows
        if hf[c]["nfd"] != u8[c]["nfd"]:
            chars.add(chr(c))
    pieces = SPECIAL + sorted(chars) + ["##" + char for char in sorted(chars)]
    (HERE / "codepoints-vocab.txt").write_bytes("".join(p + "\n" for p in pieces).encode())
    out = []
    made = [tokenizer(pieces, *mode) for mode in MODES]
    for first in range(0, 0x110000, RANGE):
        batch = [line for c in range(first, first + RANGE) if not 0xD800 <= c <= 0xDFFF for line in lines(c)]
        digests = []
        for one in made:
            digest = xxhash.xxh3_64()
            for encoding in one.encode_batch(batch):
                digest.update(struct.pack(f"<{len(encoding.ids)}i", *encoding.ids))
            digests.append(digest.hexdigest())
        points = [c for c in range(first, first + RANGE) if not 0xD800 <= c <= 0xDFFF]
        digests.append(xxhash.xxh3_64(bytes(hf[c]["word"] for c in points)).hexdigest())
        out.append(f"{first:06x} " + " ".join(digests) + "\n")
    (HERE / "codepoints.txt").write_text("".join(out))


if __name__ == "__main__":
    hf, u8 = theirs(), ours()
    write_tables(hf, u8)
    write_golden(hf, u8)
