"""The example client against a running stage with the default model: it prints what docs/RECORDS.md shows, and leaves
the memory as it found it.
"""

import re
import subprocess

import oracle
from conftest import Topics
from stage import ROOT, Stage

CLIENT = ROOT / "examples" / "client.py"


def shown():
    """What RECORDS.md says that it prints, without the command."""
    records = (ROOT / "docs" / "RECORDS.md").read_text(encoding="utf-8")
    return re.search(r"^\$ examples/client\.py .*\n((?:[^`].*\n)+)```$", records, re.MULTILINE)[1]


def client(*arguments):
    done = subprocess.run(["/usr/bin/python3", CLIENT, *arguments], capture_output=True, text=True, timeout=180, check=False)
    return done.returncode, done.stdout, done.stderr


def test_the_example_client(own_broker, folder):
    broker = own_broker()
    status, _, said = client("--bootstrap", broker.address)  # no stage has made the topics yet
    assert (status, said.strip()) == (1, "there is no topic predictions: a running stage creates it")
    running = Stage(["-X", f"bootstrap.servers={broker.address}"], folder, folder / "memory")
    try:
        running.wait_ready()
        assert client("--bootstrap", broker.address) == (0, shown(), "")
        status, again, said = client("--bootstrap", broker.address)
        assert (status, said) == (0, "") and re.sub(r"version \d+", "", again) == re.sub(r"version \d+", "", shown())
        topics = Topics("default")
        for name in ("texts", "predictions", "instances", "labels"):
            setattr(topics, name, name)
        topics.dead_letters, topics.group = "dead-letters", "engram"
        oracle.check_texts(broker, topics)
        told = oracle.check_memory(broker, topics, running.memory)
        assert told.instances == {} and broker.read_all("dead-letters") == []
        running.stop()
    finally:
        running.kill()
