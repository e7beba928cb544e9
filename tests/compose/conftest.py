"""Fixtures of the compose tests: one project for all of them, brought up once with three replicas."""

import os
import sys
from pathlib import Path

import pytest

for beside in ("e2e", "docs"):  # kafka.py and oracle.py: the same oracle; test_hardening.py: the same checks
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / beside))

import compose as project  # noqa: E402
from console import free_port  # noqa: E402


@pytest.fixture(scope="session")
def up():
    """The project, up: up.broker, up.port, up.said (what `up` printed)."""
    port = free_port()
    os.environ["KAFKA_PORT"] = str(port)
    os.environ["PROMETHEUS_PORT"] = str(free_port())
    done = project.compose("up", "-d", "--scale", "engram=3")
    for replica in project.replicas():
        replica.wait_ready()
    broker = project.HostBroker(port)
    yield project.SimpleNamespace(broker=broker, port=port, said=done.stdout + done.stderr)


@pytest.fixture
def broker(up):
    return up.broker
