"""What the documents say, held against the project: links lead somewhere, targets and commands exist, the generated
reference is the one that this binary generates."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
DOCUMENTS = sorted({ROOT / "README.md", ROOT / "CHANGELOG.md", *ROOT.glob("docs/*.md"), *ROOT.glob("examples/**/*.md")})


def run(*arguments):
    return subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)


def code(text):
    """What stands in backticks and code blocks."""
    return "\n".join(re.findall(r"```.*?```|`[^`\n]+`", text, re.DOTALL))


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_a_document_names_exists(document):
    text = document.read_text(encoding="utf-8")
    wrong = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not re.match(r"[a-z]+:", target) and not (document.parent / target.partition("#")[0]).exists():
            wrong.append(f"link to {target}")
    targets = set(re.findall(r"^(\S+)  ", run("make", "-s", "help").stdout, re.MULTILINE))
    for target in re.findall(r"(?:^|`)make ([a-z][a-z-]*)", code(text), re.MULTILINE):
        if target not in targets:
            wrong.append(f"make {target}")
    for command in sorted(set(re.findall(r"(?:^|[`/ ])engram (?!engram )([a-z]+)(?= |`|$)", code(text), re.MULTILINE))):
        if run("build/engram", command, "--help").returncode != 0:
            wrong.append(f"engram {command}")
    assert not wrong, f"{document.relative_to(ROOT)} names what is not there: {wrong}"


def test_config_reference_is_generated():
    generated = run("build/engram", "config", "--document")
    assert generated.returncode == 0, generated.stderr
    assert (ROOT / "docs" / "CONFIG.md").read_text(encoding="utf-8") == generated.stdout, "run `make docs`"


def metrics_shown():
    """Names of the metrics that the code shows."""
    return set(re.findall(r'"(engram_[a-z_]+)"', (ROOT / "stage" / "shown.c").read_text(encoding="utf-8")))


def test_every_metric_is_explained():
    section = (ROOT / "docs" / "OPERATIONS.md").read_text(encoding="utf-8").partition("## Metrics")[2].partition("\n## ")[0]
    assert set(re.findall(r"`(engram_[a-z_]+)", section)) == metrics_shown()


def test_alerts_are_valid_and_about_metrics_that_exist():
    alerts = ROOT / "deploy" / "prometheus" / "alerts.yml"
    checked = run("promtool", "check", "rules", alerts)
    assert checked.returncode == 0 and "SUCCESS" in checked.stdout, checked.stderr
    used = set(re.findall(r"engram_[a-z_]+", alerts.read_text(encoding="utf-8")))
    assert used and {name.removesuffix("_bucket") for name in used} <= metrics_shown()
