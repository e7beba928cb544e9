"""Passwords of Kafka's: shown nowhere, whatever is wrong with the line that holds one, and warned about where every user
of the machine may read them."""

import os
import subprocess
from pathlib import Path

import pytest

ENGRAM = Path(__file__).resolve().parents[2] / os.environ.get("BUILD", "build") / "engram"
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("ENGRAM_")}
SECRET = "hunter22"
NAMES = ["sasl.password", "ssl.key.password", "ssl.keystore.password", "ssl.key.pem", "sasl.oauthbearer.config",
         "sasl.kerberos.kinit.cmd"]


def config(*arguments, status=0, **variables):
    """What it says; status None: it may take the line."""
    done = subprocess.run([ENGRAM, "config", *map(str, arguments)], capture_output=True, text=True, timeout=60, check=False,
                          env={**ENVIRONMENT, **variables})
    assert done.returncode in (0, 2) if status is None else done.returncode == status, done.stdout + done.stderr
    return done


@pytest.mark.parametrize("name", NAMES)
def test_none_is_shown(tmp_path, name):
    file = tmp_path / "c"
    file.write_text(f"[kafka]\n{name} = {SECRET}\n[kafka.producer]\n{name} = {SECRET}\n")
    variable = "ENGRAM_KAFKA_CONSUMER_" + name.upper().replace(".", "_")
    for given, variables in ((["-c", file], {}), (["-X", f"{name}={SECRET}"], {}), ([], {variable: SECRET})):
        for json in ([], ["--json"]):
            done = config(*given, *json, **variables)
            assert SECRET not in done.stdout + done.stderr and "********" in done.stdout


@pytest.mark.parametrize("line", [
    f"sasl.password {SECRET}", f"sasl.pasword = {SECRET}", f"[sasl.password = {SECRET}", f"sasl.password: {SECRET}",
    f"[stage]\nsasl.password = {SECRET}", f"sasl.password = a\n {SECRET}", f"ssl.key.pem = -----BEGIN\n{SECRET}"])
def test_no_refusal_shows_one(tmp_path, line):
    file = tmp_path / "c"
    file.write_text(f"[kafka]\n{line}\n")
    done = config("-c", file, status=2)
    assert SECRET not in done.stdout + done.stderr
    done = config("-X", line.replace(" = ", "="), status=None)
    assert SECRET not in done.stdout + done.stderr


def test_a_file_with_one_that_everybody_may_read_is_warned_about(tmp_path):
    file = tmp_path / "c"
    for text, mode, warned in ((f"[kafka]\nsasl.password = {SECRET}\n", 0o644, True),
                               (f"[kafka.producer]\nssl.key.password = {SECRET}\n", 0o604, True),
                               (f"[kafka]\nsasl.password = {SECRET}\n", 0o640, False),
                               ("[kafka]\nsasl.username = me\nssl.ca.location = /ca.pem\n", 0o644, False)):
        file.write_text(text)
        file.chmod(mode)
        said = config("-c", file).stderr
        assert said.count("every user of this machine may read it") == warned and SECRET not in said, said
