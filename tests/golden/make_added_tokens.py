#!/usr/bin/env python3
"""Tokenizers with added tokens of every kind, as transformers 5 saves them, and the ids that they give.

Writes added-tokens.jsonl.gz: a line for each tokenizer, {"files": {name: content}, "cases": [[text, ids], ...]}; the ids are
those of Hugging Face `tokenizers` on that tokenizer.json, cut at 48. tests/unit/test_tokenizer_folder.c reads it. Run in the
environment of requirements-transformers5.txt: python tests/golden/make_added_tokens.py
"""

import gzip
import json
import tempfile
from pathlib import Path

from golden_texts import HERE, MARKS, SPACES, WORDS, Draw, code_point
from tokenizers import Tokenizer
from transformers import AddedToken, AutoTokenizer, BertTokenizer

LIMIT = 48
TOKENIZERS, TEXTS = 40, 60
POOL = """<ent> <ENT> <Ent> [ENT] [ent] foo Foo FOO foobar ab abc b bcd bc e é É école ÉCOLE ing ##ing the tool C++ c++ . ... … _ x_ _x a_b
文 文字 字 文a a文 İ i̇ ß ẞ Σ ς σίσυφος 안 한글 ﬁ ² ١ Ⅷ ⓐ 🇦 👍 - -- <<ent>> <ent><ent> [MASK] [SEP]x ガ हि @user #tag""".split() + [
    "new york", "New  York", "a b", "x.y z", "d'e f", "e\u0301", "A\u030a", "文 字", "a\tb", "q\u200br", "no\u00a0break",
]  # fmt: skip
BESIDE = list("aZé1²_-. \t文'") + ["\u0301", "\u200d", "\u200c", "\u200b", "\u00a0", "ⓐ", "Ⅷ", "١", "🇦", "\u0903", "‿", "ª", "ǅ", ""]


def vocabulary():
    return (HERE / "tiny-bert/vocab.txt").read_text().splitlines()


def flag(draw, odds=3):
    return draw.below(odds) == 0


def tokenizer_folder(draw, folder):
    """As transformers 5 makes and saves it; then with what its class has no argument for."""
    made = BertTokenizer(
        vocab={piece: i for i, piece in enumerate(vocabulary())}, do_lower_case=not flag(draw),
        strip_accents=draw.one([None, None, True, False]), tokenize_chinese_chars=not flag(draw),
    )  # fmt: skip
    pool = draw.shuffled(POOL)[: 1 + draw.below(14)]
    for content in pool:
        special = flag(draw)
        made.add_tokens(
            [AddedToken(content, single_word=flag(draw), lstrip=flag(draw), rstrip=flag(draw), normalized=not flag(draw, 2),
                        special=special)],
            special_tokens=special,
        )  # fmt: skip
    made.save_pretrained(folder)
    path = folder / "tokenizer.json"
    saved = json.loads(path.read_text())
    saved["model"]["max_input_chars_per_word"] = draw.one([100, 100, 3, 250])
    saved["model"]["continuing_subword_prefix"] = draw.one(["##", "##", "##", "", "t"])
    path.write_text(json.dumps(saved, ensure_ascii=False))
    return pool


def text_of(draw, pool):
    def token():
        content = draw.one(pool)
        changes = [str, str, str.upper, str.lower, lambda s: draw.one(BESIDE).join(s), lambda s: s[: 1 + draw.below(len(s))]]
        return draw.one(changes)(content)

    pieces = [
        token, token, lambda: draw.one(BESIDE), lambda: draw.one(BESIDE), lambda: draw.one(WORDS), lambda: " ", lambda: draw.one(SPACES),
        lambda: draw.one(MARKS), lambda: code_point(draw), lambda: draw.one("abcefoz") * draw.below(6), lambda: draw.one(["[SEP]", "[MASK]"]),
    ]  # fmt: skip
    return "".join(draw.one(pieces)() for _ in range(1 + draw.below(14)))


def long_texts(pool):
    """A window's ends, words beyond the limit, and runs that begin a token again and again."""
    token = pool[0]
    yield from (token[:-1] * 1500 + token, "a" * 5000 + token + "a" * 5000, (token + " ") * 100, "z" * 260 + token, token * 60)
    yield from ("\u0301" * 3000 + token, "文" * 1500, "x" * 1021 + token, " " * 4090 + token + "b", "é" * 2046 + token)


def main():
    draw, lines, asked = Draw(22), [], 0
    for _ in range(TOKENIZERS):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            pool = tokenizer_folder(draw, folder)
            assert sorted(path.name for path in folder.iterdir()) == ["tokenizer.json", "tokenizer_config.json"]
            tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
            texts = [text_of(draw, pool) for _ in range(TEXTS)] + list(long_texts(pool))
            tokenizer.enable_truncation(LIMIT)
            ids = [tokenizer.encode(text).ids for text in texts]
            model = json.loads((folder / "tokenizer.json").read_text())["model"]
            if (model["max_input_chars_per_word"], model["continuing_subword_prefix"]) == (100, "##"):
                asked += 1
                theirs = AutoTokenizer.from_pretrained(folder)
                assert ids == theirs(texts, truncation=True, max_length=LIMIT).input_ids, "transformers gives other ids"
            files = {path.name: json.loads(path.read_text()) for path in sorted(folder.iterdir())}
            lines.append(json.dumps({"files": files, "cases": list(zip(texts, ids))}, separators=(",", ":")) + "\n")
    assert asked > TOKENIZERS / 4
    with gzip.GzipFile(HERE / "added-tokens.jsonl.gz", "wb", mtime=0) as out:
        out.write("".join(lines).encode())


if __name__ == "__main__":
    main()
