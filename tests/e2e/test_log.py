"""The log of a run that meets names from outside which hold all that could break a line, and of its failures: as JSON
every line is one object, as text every event is one line.
"""

import json
import re
import socket

import pytest
from stage import TINY, Stage

NASTY = 'a "b" \\ \n\r\x1b[31m\x85\u2028{é'


@pytest.fixture
def nobody():
    """An address where no broker is: bound and not listening, so that nobody else can listen there."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{taken.getsockname()[1]}"


@pytest.fixture
def stage(folder):
    """stage(*flags, env): `engram run` without a broker."""
    started = []

    def start(*flags, env):
        started.append(Stage(flags, folder, folder / NASTY, env))
        return started[-1]

    yield start
    for running in started:
        running.kill()


def lines(running):
    """What it wrote, strictly UTF-8, as the most eager reader splits it."""
    text = running.log_path.read_bytes().decode()
    assert len(text.splitlines()) == text.count("\n")
    return text.splitlines()


@pytest.mark.parametrize("form", ["json", "text"])
def test_each_event_is_one_line(stage, folder, nobody, form):
    env = {"ENGRAM_NO\nSUCH": "a warning", "ENGRAM_LOG_FORMAT": form}
    broken = f"bootstrap.servers={nobody},\n\"[\x1b"
    running = stage(*TINY, "-X", broken, "--log-level", "debug", "-X", "debug=broker,conf", env=env)
    running.wait_for("no broker answers")
    running.terminate()
    assert running.wait() == 0
    for flags in (["--model", folder / NASTY], ["-X", "ssl.ca.location=/nowhere\n", "-X", "security.protocol=ssl"]):
        running.restart(*flags)  # it ends by itself, with a line about that
        assert running.wait() == 1 or "librdkafka refuses" in running.log()
    said = lines(running)
    if form == "json":
        events = [json.loads(line) for line in said]
        assert all(list(event) == ["time", "level", "message"] for event in events)
        levels = [event["level"] for event in events]
    else:
        assert all(re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z (error|warn |info |debug) ", line) for line in said)
        levels = [line.split()[1] for line in said]
    assert levels.count("error") >= 2 and {"warn", "info", "debug"} <= set(levels)
