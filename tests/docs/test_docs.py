"""What the documents say, compared with the project: links lead somewhere, targets and commands exist, the generated
reference is the one that this binary generates. And their form: no long lines."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
DOCUMENTS = sorted({*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("examples/**/*.md"), *ROOT.glob("tests/**/*.md")})
LINE_MAX = 120


def run(*arguments):
    return subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)


def code(text):
    """What stands in backticks and code blocks."""
    return "\n".join(re.findall(r"```.*?```|`[^`\n]+`", text, re.DOTALL))


def prose(text):
    """(number, line) of what is in neither a table nor a code block."""
    code_block = False
    for number, line in enumerate(text.splitlines(), 1):
        if line.lstrip().startswith("```"):
            code_block = not code_block
        elif not code_block and not line.startswith("|"):
            yield number, line


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_lines_are_short(document):
    long = [number for number, line in prose(document.read_text(encoding="utf-8")) if len(line) > LINE_MAX]
    assert not long, f"{document.relative_to(ROOT)} has lines over {LINE_MAX} columns: {long}"


def anchors(document):
    """Of its headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", document.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_a_document_names_exists(document):
    text = document.read_text(encoding="utf-8")
    wrong = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        name, _, place = target.partition("#")
        if not re.match(r"[a-z]+:", target):
            file = document.parent / name if name else document
            if not file.exists() or (place and place not in anchors(file)):
                wrong.append(f"link to {target}")
    targets = set(re.findall(r"^(\S+)  ", run("make", "-s", "help").stdout, re.MULTILINE))
    for target in re.findall(r"(?:^|`)make ([a-z][a-z-]*)", code(text), re.MULTILINE):
        if target not in targets:
            wrong.append(f"make {target}")
    for command in sorted(set(re.findall(r"(?:^|[`/ ])engram (?!engram )([a-z]+)(?= |`|$)", code(text), re.MULTILINE))):
        if run("build/engram", command, "--help").returncode != 0:
            wrong.append(f"engram {command}")
    assert not wrong, f"{document.relative_to(ROOT)} names what is not there: {wrong}"


def test_the_readmes_figures_are_those_of_the_documents():
    """What README says before its first heading of quality, speed and size: each figure has its place in docs/."""
    first = (ROOT / "README.md").read_text(encoding="utf-8").partition("\n## ")[0]
    words = re.sub(r"```.*?```|`[^`]*`|\]\([^)]*\)|arXiv [0-9.]+", "", first, flags=re.DOTALL)
    figures = re.findall(r"\d[\d,]*\.\d+|\d[\d,]*\d", words)
    documented = set(re.findall(r"\d[\d,]*\.\d+|\d[\d,]*\d", "\n".join(
        (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8") for name in ("PERFORMANCE", "OPERATIONS", "QUALITY"))))
    assert len(figures) >= 6 and not set(figures) - documented


def test_config_reference_is_generated():
    generated = run("build/engram", "config", "--document")
    assert generated.returncode == 0, generated.stderr
    assert (ROOT / "docs" / "CONFIG.md").read_text(encoding="utf-8") == generated.stdout, "run `make docs`"


# ---- docs/OPERATIONS.md ----

OPERATIONS = (ROOT / "docs" / "OPERATIONS.md").read_text(encoding="utf-8")
ALERTS = ROOT / "deploy" / "prometheus" / "alerts.yml"
README = (ROOT / "README.md").read_text(encoding="utf-8")
ROOMS = [room for room in re.findall(r"^\| `(\w+)/` \|", README, re.MULTILINE) if [*(ROOT / room).glob("**/*.h")]]
ROOMS.remove("tests")


def section(title):
    return OPERATIONS.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def first_cells(text):
    """What stands in backticks in the first column of every table."""
    return [quote for cell in re.findall(r"^\| ([^|]*) \|", text, re.MULTILINE) for quote in re.findall(r"`([^`]+)`", cell)]


def literals(source):
    """The strings of a C source, adjacent ones joined, what is filled in as an ellipsis."""
    strings = re.findall(r'"((?:[^"\\\n]|\\.)*"(?:\s*(?:PRI\w+\s*)?"(?:[^"\\\n]|\\.)*")*)', source)
    joined = (re.sub(r'"\s*(PRI\w+)?\s*"|"$', lambda m: "d" if m[1] else "", text) for text in strings)
    return [re.sub(r"%[-0-9.*+ ]*(?:ll|l|z)?[a-zA-Z]", "…", text) for text in joined]


def test_rooms_include_what_the_readme_says():
    wrong = []
    for room in ROOMS:
        for source in sorted([*(ROOT / room).rglob("*.[ch]"), *(ROOT / room).rglob("*.cu")]):
            for header in re.findall(r'^#include "([^"]+)"', source.read_text(encoding="utf-8"), re.MULTILINE):
                other, _, name = header.partition("/")
                if other != room and (name.endswith("internal.h") or other not in ROOMS[: ROOMS.index(room)]):
                    wrong.append(f"{source.relative_to(ROOT)} includes {header}")
    assert not wrong, "\n".join(wrong)


def test_an_image_is_built_from_all_rooms():
    copied = (ROOT / ".dockerignore").read_text(encoding="utf-8").split()
    assert not [room for room in ROOMS if f"!{room}" not in copied]


def said():
    """Whether the code can say a piece: in one literal, or in two of which one is filled into the other."""
    sources = [path for room in ROOMS for ending in ("*.c", "*.cu") for path in sorted((ROOT / room).rglob(ending))]
    texts = [text for path in sources for text in literals(path.read_text(encoding="utf-8"))]
    all_texts, fills = "\n".join(texts), {text for text in texts if len(text) > 20}

    def can_say(piece):
        return piece in all_texts or any(piece.startswith(fill) and "…" + piece[len(fill):] in all_texts for fill in fills)

    return can_say


def pieces(line):
    """The fixed parts of a line, but for the smallest."""
    return [piece for piece in line.split("…") if len(piece.strip()) > 5]


def metrics_shown():
    """Names of the metrics that the code shows."""
    return set(re.findall(r'"(engram_[a-z_]+)"', (ROOT / "stage" / "shown.c").read_text(encoding="utf-8")))


def test_every_metric_is_explained():
    assert {name.partition("{")[0] for name in first_cells(section("Metrics")) if name.startswith("engram_")} == metrics_shown()


def test_every_kind_of_error_is_explained():
    codes = re.findall(r"^    X\((\w+)\)", (ROOT / "base" / "error.h").read_text(encoding="utf-8"), re.MULTILINE)
    kinds = section("Metrics").partition("| kinds of ")[2]
    assert sorted(first_cells(kinds)) == sorted(code.lower() for code in codes if code != "OK")


def test_the_lines_quoted_are_those_that_it_says():
    tables = re.findall(r"^\| the line says .*\n(?:\|.*\n)+", OPERATIONS, re.MULTILINE)
    lines = [line for table in tables for line in first_cells(table) if pieces(line)]
    can_say = said()
    wrong = [(line, piece) for line in lines for piece in pieces(line) if not can_say(piece)]
    assert len(tables) == 5 and len(lines) > 60 and not wrong


def test_every_refusal_is_explained():
    """Of the memory, of its folder, and of what the topics have become."""
    ours = "this process has already opened the memory"  # no user can make it say that
    files = [*(ROOT / "store").glob("*.c"), ROOT / "consumer" / "learn.c", ROOT / "consumer" / "text.c",
             ROOT / "stage" / "console" / "console.c"]
    code = r"E_(?:FINGERPRINT|FENCED|LOCKED|MAP_FULL|DISK_FULL|KEYS_MAX|TOPIC|FORMAT)"
    refusals = [literals(call)[0] for path in files
                for call in re.findall(rf"error_set\(e, ERROR_(?:FATAL|RETRY), {code},(.*?)\);",
                                       path.read_text(encoding="utf-8"), re.DOTALL)]
    quoted = first_cells(OPERATIONS)
    parts = [piece.strip(": ") for line in quoted for piece in pieces(line)]
    missing = [refusal for refusal in refusals if ours not in refusal and not any(part in refusal for part in parts)
               and not any(all(piece in line for piece in pieces(refusal)) for line in quoted)]
    assert len(refusals) > 15 and not missing


def test_every_line_of_the_plug_in_is_explained():
    """What it refuses, warns of or ends with."""
    files = [*(ROOT / "gpu" / "cuda").glob("*.cu"), ROOT / "gpu" / "plugin.c"]
    said_there = {literals(call)[0] for path in files for call in re.findall(
        r"\b(?:error_set|log_warn)\(((?:[^;\"]|\"(?:[^\"\\]|\\.)*\")*)\);", path.read_text(encoding="utf-8")) if literals(call)}
    quoted = [pieces(line) for line in re.findall(r"`([^`\n]+)`", section("GPUs") + section("What a fault does")
                                                  + section("What each refusal means")) if pieces(line)]
    missing = [line for line in said_there if pieces(line) and not any(all(piece in line for piece in whole) for whole in quoted)]
    assert len(said_there) > 20 and not missing


def test_alerts_are_valid_and_about_metrics_that_exist():
    checked = run("promtool", "check", "rules", ALERTS)
    assert checked.returncode == 0 and "SUCCESS" in checked.stdout, checked.stderr
    used = set(re.findall(r"engram_[a-z_]+", ALERTS.read_text(encoding="utf-8")))
    assert used and {name.removesuffix("_bucket") for name in used} <= metrics_shown()


def test_alerts_fire_when_they_should():
    tested = run("promtool", "test", "rules", ROOT / "tests" / "docs" / "alerts-test.yml")
    assert tested.returncode == 0, tested.stdout + tested.stderr


def test_every_alert_is_explained_and_tested():
    alerts = set(re.findall(r"- alert: (\w+)", ALERTS.read_text(encoding="utf-8")))
    assert set(first_cells(section("Alerts"))) == alerts
    cases = (ROOT / "tests" / "docs" / "alerts-test.yml").read_text(encoding="utf-8")
    assert {name for name, _, wanted in re.findall(r"alertname: (\w+)\n(.*\n)*?( *exp_alerts: *\S*)", cases)} == alerts
