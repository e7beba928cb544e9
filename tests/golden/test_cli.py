"""The command line's manners: exit statuses, help, versions, where what is written; and `engram encode` line by line,
on the tiny BERT beside this file."""

import gzip
import json
import os
import pty
import re
import resource
import subprocess
import tty
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
ENGRAM = ROOT / os.environ.get("BUILD", "build") / "engram"
TINY = ROOT / "tests/golden/tiny-bert"
GOLDEN = json.loads((ROOT / "tests/golden/tiny-bert-golden.json").read_text())
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("ENGRAM_")}


def engram(*arguments, stdin=b"", **variables):
    return subprocess.run([ENGRAM, *map(str, arguments)], input=stdin, capture_output=True, timeout=60, check=False,
                          env={**ENVIRONMENT, **variables})


def encode(stdin, *arguments, status=0):
    done = engram("encode", "--stdin", "--model", TINY, *arguments, stdin=stdin)
    assert done.returncode == status, done.stderr.decode()
    assert done.stdout == b"" or done.stdout.endswith(b"\n")
    return [json.loads(line) for line in done.stdout.splitlines()]


def commands():
    listed = engram("--help").stdout.decode().partition("Commands\n")[2].partition("\n\n")[0]
    return [line.split()[0] for line in listed.splitlines()]


# ---- manners ------------------------------------------------------------------------------------------------------


def test_no_arguments_lists_the_commands():
    done = engram()
    assert (done.returncode, done.stdout, done.stderr) == (0, engram("--help").stdout, b"")
    assert {"run", "tag", "load", "eval", "encode", "memory", "config"} <= set(commands())


def test_version_names_the_libraries():
    done = engram("--version", "--model", TINY)
    assert done.returncode == 0
    for name in (b"engram ", b"librdkafka 2.", b"LMDB 0.9.", b"oneDNN ", b"tiny-bert"):
        assert name in done.stdout


@pytest.mark.parametrize("typed, meant", [("tga", "tag"), ("encoder", "encode"), ("confg", "config"), ("", "")])
def test_unknown_command(typed, meant):
    done = engram(typed)
    assert (done.returncode, done.stdout) == (2, b"")
    assert f"'{meant}'".encode() in done.stderr


def test_each_command_has_help_with_an_example():
    assert len(commands()) >= 7
    for name in commands():
        done = engram(name, "--help")
        text = done.stdout.decode()
        assert (done.returncode, done.stderr) == (0, b""), name
        assert text.startswith(f"Usage: engram {name}"), name
        assert f"engram {name} " in text.partition("\nExample\n")[2].partition("\n\n")[0], name
        assert "--batch-tokens" in text and "-c FILE" in text and "-X NAME=VALUE" in text, name


def test_no_command_has_a_flag_that_is_an_option():
    options = {"--" + name.replace("_", "-") for name in json.loads(engram("config", "--json").stdout) if "." not in name}
    for name in commands():
        own = engram(name, "--help").stdout.decode().partition("\nFlags\n")[2].partition("\nOptions")[0]
        flags = {line.split()[0] for line in own.splitlines() if line.startswith("  --")}
        assert not flags & options, name


def test_every_command_refuses_a_bad_flag_option_and_file():
    for name in commands():
        for bad, near in ((["--batch-token", "1"], "--batch-tokens"), (["--tau", "warm"], "--tau"),
                          (["-c", "/no/such/file"], "/no/such/file"), (["-X", "acks=1"], "acks")):
            done = engram(name, *bad)
            assert (done.returncode, done.stdout) == (2, b""), (name, bad)
            assert done.stderr.startswith(f"engram {name}: ".encode()) and near.encode() in done.stderr


@pytest.mark.parametrize("at, wrong", [("0,1", '"0"'), ("1,x", '"x"'), ("", '""'), ("1,,3", '""'), ("1001", '"1001"'),
                                       ("5,1,5", "5 is given twice"), ("1,2,3,4,5,6,7,8,9", "more than 8")])
def test_eval_refuses_cutoffs(at, wrong):
    done = engram("eval", "--test", "absent", "--at", at)
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr.startswith(f'engram eval: --at is "{at}": '.encode()) and wrong.encode() in done.stderr


@pytest.mark.parametrize("n", ["0", "1001", "-1", "", "3x", "+3", " 3", "99999999999999999999"])
def test_eval_refuses_to_show(n):
    done = engram("eval", "--test", "absent", f"--show={n}")
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr.startswith(f'engram eval: --show is "{n}": it must be a number from 1 to 1000\n'.encode())


def test_eval_shows_texts_to_readers_alone():
    done = engram("eval", "--test", "absent", "--show", "3", "--json")
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr.startswith(b"engram eval: --show prints texts to read: it does not go with --json\n")


def test_config_says_what_is_in_force_and_from_where(tmp_path):
    file = tmp_path / "engram.conf"
    file.write_text("[predict]\nb = 7\n\n[kafka]\nsasl.password = a ;b\n")
    done = engram("config", "--json", "-c", file, "--lambda=0.25", ENGRAM_TAU="0.04", ENGRAM_NOPE="1")
    assert done.returncode == 0 and b"ENGRAM_NOPE" in done.stderr
    options = json.loads(done.stdout)
    assert options["b"] == {"value": 7, "from": "file:2"}
    assert options["tau"] == {"value": 0.04, "from": "environment"}
    assert options["lambda"] == {"value": 0.25, "from": "flag"}
    assert options["store_text"] == {"value": True, "from": "default"}
    assert options["kafka.sasl.password"]["from"] == "file:5"
    assert "a ;b" not in done.stdout.decode()


def test_config_file_may_be_compressed_or_standard_input(tmp_path):
    text = b"[predict]\nb = 7\n"
    (tmp_path / "engram.conf.gz").write_bytes(gzip.compress(text))
    for done in (engram("config", "--json", "-c", "-", stdin=text),
                 engram("config", "--json", "-c", tmp_path / "engram.conf.gz")):
        assert json.loads(done.stdout)["b"]["value"] == 7


def test_output_that_cannot_be_written_is_a_failure():
    with open("/dev/full", "wb") as full:
        for arguments in (["config"], ["--help"], ["config", "--help"]):
            done = subprocess.run([ENGRAM, *arguments], stdout=full, stderr=subprocess.PIPE, env=ENVIRONMENT, check=False)
            assert done.returncode == 1, arguments


def test_a_limit_on_file_sizes_is_a_failure(tmp_path):
    """ulimit -f: one line on standard error, and no kill by SIGXFSZ."""
    for arguments in (["config"], ["tag", "--help"], ["encode", "--stdin", "--model", TINY]):
        with open(tmp_path / "out", "wb") as out:
            done = subprocess.run([ENGRAM, *arguments], stdout=out, stderr=subprocess.PIPE, env=ENVIRONMENT, check=False,
                                  input=b"a\n", preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (50, 50)))
        assert done.returncode == 1 and done.stderr.count(b"\n") == 1, (arguments, done)
        assert b"standard output cannot be written" in done.stderr


def limited(mib, *arguments):
    """A command that may map so many MiB (ulimit -v)."""
    return subprocess.run([ENGRAM, *map(str, arguments)], capture_output=True, timeout=60, env=ENVIRONMENT, check=False,
                          preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (mib << 20, mib << 20)))


def test_too_little_memory_is_one_line(tmp_path):
    """From what loads the libraries up to what is enough: one line and status 1, never a signal."""
    records = [{"id": f"i{n}", "text": f"{'a ' * (n % 40)}tool {n}", "labels": ["x"]} for n in range(3000)]
    (tmp_path / "i").write_text("".join(json.dumps(record) + "\n" for record in records))
    flags = ["--map-size", "64MiB", "--memory", tmp_path / "m", "--model", TINY, "--threads", 2]
    assert engram("load", "--instances", tmp_path / "i", *flags).returncode == 0
    least = next(mib for mib in range(40, 1000, 4) if limited(mib, "config").returncode == 0)
    said = {}
    for mib in range(least + 4, 1000, 8):
        done = limited(mib, "eval", "--test", tmp_path / "i", *flags)
        if done.returncode == 0:
            break
        said[mib] = done.stderr.decode()
        assert done.returncode == 1 and said[mib].count("\n") == 1, (mib, done)
    out = [mib for mib, line in said.items() if line.startswith("engram eval: out of memory: ")]
    assert out, said
    for mib in out:
        done = limited(mib, "run", "--log-format", "json", "-X", "bootstrap.servers=127.0.0.1:1", *flags)
        if b"thread" not in done.stderr:  # it got as far as Kafka
            assert done.returncode == 1 and json.loads(done.stderr)["message"].startswith("out of memory: ")
            break


# what steers a terminal, ends a line or turns the writing direction
STEERS = "\x1b[31m\x9b2J\x7f\x85\u2028\u202e\u2066\u200f\u061c"
STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")


def test_an_error_line_cannot_steer_the_terminal(tmp_path):
    name = f"a{STEERS}b\udcff"
    (tmp_path / name).write_text(f"{name}\n", errors="surrogateescape")
    for arguments in ([name], ["config", f"--{name}"], ["config", "--tau", name], ["config", "-c", f"no {name}"],
                      ["config", "-c", tmp_path / name], ["memory", name],
                      ["memory", "stats", "--memory", f"no {name}"], ["tag", "a", "--model", name],
                      ["load", "--labels", name], ["config", "-X", f"x{name}=1"]):
        done = engram(*arguments)
        said = done.stderr.decode()  # UTF-8, whatever the name is
        assert done.returncode != 0 and not STEERING.search(said), (arguments, said)
        assert "?[31m?2J" in said or "UTF-8" in said, (arguments, said)


def on_a_terminal(*arguments):
    """Standard output of a command whose terminal it is."""
    terminal, end = pty.openpty()
    tty.setraw(end)
    try:
        done = subprocess.run([ENGRAM, *arguments], stdout=end, stderr=subprocess.PIPE, env=ENVIRONMENT,
                              timeout=60, check=True)
        return os.read(terminal, 1 << 16).decode(), done.stderr.decode()
    finally:
        os.close(end)
        os.close(terminal)


def test_output_cannot_steer_the_terminal(tmp_path):
    """On a terminal as \\uXXXX, which in JSON is the same value; elsewhere as it is."""
    record = {"id": f"i{STEERS}", "text": f"a {STEERS} b", "labels": [f"l{STEERS}"]}
    (tmp_path / "i").write_text(json.dumps(record) + "\n")
    flags = ["--memory", tmp_path / f"m{STEERS}", "--model", TINY]
    assert engram("load", "--instances", tmp_path / "i", *flags).returncode == 0
    shown, _ = on_a_terminal("memory", "get", record["id"], *flags)
    assert not STEERING.search(shown) and {k: json.loads(shown)[k] for k in record} == record
    plain = engram("memory", "get", record["id"], *flags).stdout.decode()
    assert json.loads(plain) == json.loads(shown) and "\u202e" in plain and "\x9b" in plain
    said = engram("memory", "get", f"no {STEERS}", *flags).stderr.decode()
    assert "has no instance" in said and not STEERING.search(said)
    shown, said = on_a_terminal("memory", "export", "--instances", "-", *flags)
    assert json.loads(shown) == record and not STEERING.search(shown + said) and "?[31m?2J" in said
    for arguments in (["memory", "verify", *flags], ["config", *flags], ["config", "--json", *flags],
                      ["tag", "--json", "--evidence-text", record["text"], *flags],
                      ["load", "--instances", tmp_path / "i", *flags]):
        shown, _ = on_a_terminal(*arguments)
        assert not STEERING.search(shown), (arguments, shown)
        assert r"\u009b2J" in shown, (arguments, shown)


# ---- encode -------------------------------------------------------------------------------------------------------


def test_encode_needs_stdin_and_a_model(tmp_path):
    assert engram("encode", "--model", TINY).returncode == 2
    done = engram("encode", "--stdin", "--model", tmp_path)
    assert (done.returncode, done.stdout) == (1, b"") and str(tmp_path).encode() in done.stderr


def test_encode_gives_the_reference_tokens():
    texts = [golden["text"] for golden in GOLDEN]
    lines = encode("".join(json.dumps(text) + "\n" for text in texts).encode(), "--json-lines")
    assert [line["tokens"] for line in lines] == [golden["tokens"] for golden in GOLDEN]
    assert all(list(line) == ["tokens", "embedding", "truncated"] for line in lines)
    norms = [np.linalg.norm(line["embedding"]) for line in lines]
    assert norms == pytest.approx([1] * len(lines), abs=1e-5)


def test_encode_takes_lines_as_they_come():
    plain = encode(b"\xef\xbb\xbfone two\r\n\r\n\nlast without newline")
    alone = [encode(text)[0] for text in (b"one two\n", b"\n", b"last without newline\n")]
    assert [line["tokens"] for line in plain] == [alone[0]["tokens"], alone[1]["tokens"], alone[1]["tokens"],
                                                  alone[2]["tokens"]]
    assert len(alone[1]["tokens"]) == 2
    assert encode(b"") == []
    assert encode(b'\n"one two"\n \t\r\n\n', "--json-lines") == alone[0:1], "a blank line holds nothing"
    assert encode(b"\n", "--json-lines") == []
    assert encode(b'"a\\nb \\u00e9"\n', "--json-lines")[0]["tokens"] == encode("a b é\n".encode())[0]["tokens"]


def test_encode_says_what_is_truncated():
    lines = encode(b"a " * 500 + b"\na\n", "--max-seq-length", "8")
    assert [(len(line["tokens"]), line["truncated"]) for line in lines] == [(8, True), (3, False)]


def test_encode_answers_a_bad_line_in_its_place():
    bad = [b"{}", b"3", b"null", b'"open', b'"a" "b"', b"'a'", b'"\\ud800"', b'"\xff"', b'["a"]', b"nan"]
    lines = encode(b"\n".join([b'"good"', *bad, b'"good"']), "--json-lines", status=1)
    assert [list(line) for line in lines[1:-1]] == [["error"]] * len(bad)
    assert lines[0] == lines[-1] and "embedding" in lines[0]
    lines = encode(b"good\n\xff\xfe\ngood", status=1)
    assert lines[0] == lines[2] and list(lines[1]) == ["error"]


def test_encode_keeps_order_over_many_batches():
    texts = [f"word {i} " + "x " * (i % 37) for i in range(5000)]
    lines = encode("\n".join(texts).encode())
    assert len(lines) == len(texts)
    for i in (0, 1, 1023, 1024, 1025, 2500, 4999):
        alone = encode(texts[i].encode())[0]
        assert lines[i]["tokens"] == alone["tokens"]
        assert np.dot(lines[i]["embedding"], alone["embedding"]) == pytest.approx(1, abs=1e-5)


def test_encode_batch_tokens_change_nothing():
    text = "\n".join(f"some words {i}" for i in range(200)).encode()
    few, many = encode(text, "--batch-tokens", "16"), encode(text, "--batch-tokens", "65536")
    assert [line["tokens"] for line in few] == [line["tokens"] for line in many]
    assert np.allclose([line["embedding"] for line in few], [line["embedding"] for line in many], atol=1e-5)


def test_encode_takes_a_long_word():
    line = encode(b"x" * 1_000_000 + b"\n")[0]
    assert len(line["tokens"]) == 3
    assert encode(json.dumps("y" * (2 << 20)).encode(), "--json-lines")[0]["tokens"] == line["tokens"]


def test_encode_answers_somebody_who_types():
    with subprocess.Popen([ENGRAM, "encode", "--stdin", "--model", TINY], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                          env=ENVIRONMENT) as typed:
        for text in (b"first\n", b"second\n"):
            typed.stdin.write(text)
            typed.stdin.flush()
            assert "embedding" in json.loads(typed.stdout.readline())
        typed.stdin.close()
        assert typed.wait(30) == 0


def test_encode_writes_floats_in_their_shortest_form():
    """As few digits as NumPy's shortest form of the same float32, and reading back as it."""
    words = "\n".join(f"word {i} thing {i * i}" for i in range(300)).encode()
    done = engram("encode", "--stdin", "--model", TINY, stdin=words)
    lengths = set()
    for line in done.stdout.decode().splitlines():
        for text in line.partition('"embedding":[')[2].partition("]")[0].split(","):
            value = np.float32(text)
            shortest = np.format_float_scientific(value, unique=True, trim="-").partition("e")[0]
            digits = text.lstrip("-").partition("e")[0].replace(".", "").strip("0")
            assert digits == shortest.lstrip("-").replace(".", "").strip("0"), text
            lengths.add(len(digits))
    assert {7, 8, 9} <= lengths


def test_prefixes_are_read():
    assert encode(b"b\n", "--text-prefix", "a ")[0]["tokens"] == encode(b"a b\n")[0]["tokens"]
