"""Fixtures of the end-to-end tests. Each test gets topics, a group, a folder and a memory of its own on one broker that
the whole run shares; what a test starts ends with it, also when it fails.
"""

import shutil
import signal
import sys
import tempfile
import threading
from pathlib import Path

import pytest
from kafka import Broker
from stage import ENGRAM, Stage

TOPICS = ("texts", "predictions", "instances", "labels", "dead_letters")


def pytest_configure():
    # a run that is told to end goes through the fixtures' ends: else the broker would stay
    def interrupt(*_):
        raise KeyboardInterrupt

    if threading.current_thread() is threading.main_thread():  # one of several workers may run in another
        signal.signal(signal.SIGTERM, interrupt)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item):
    report = (yield).get_result()
    if report.failed:
        item.failed = True


@pytest.fixture(scope="session")
def session_folder():
    path = Path(tempfile.mkdtemp(prefix="engram-e2e-"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="session")
def broker(session_folder):
    """The broker that all tests share. One that stops, kills or overrides its broker starts its own: `own_broker`."""
    with Broker(session_folder / "broker", log_cleaner_backoff_ms=100, log_retention_check_interval_ms=500,
                log_initial_task_delay_ms=500) as started:
        yield started


@pytest.fixture
def folder():
    """A temporary folder of the test's own."""
    path = Path(tempfile.mkdtemp(prefix="engram-test-"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def own_broker(folder):
    """own_broker(setting=value, ...) starts a broker for this test alone."""
    started = []

    def start(**overrides):
        broker = Broker(folder / f"broker-{len(started)}", **overrides)
        started.append(broker)
        broker.start()
        return broker

    yield start
    for broker in started:
        broker.stop(remove=True)


class Topics:
    """Names that no other test uses: topics.texts, .predictions, .instances, .labels, .dead_letters, and a group.
    The topics do not exist yet: the stage creates them, or the test does."""

    def __init__(self, prefix):
        self.group = f"{prefix}-group"
        for topic in TOPICS:
            setattr(self, topic, f"{prefix}-{topic.replace('_', '-')}")

    def all(self):
        return [getattr(self, topic) for topic in TOPICS]

    def flags(self):
        """The options that make engram use them."""
        named = {f"--{topic.replace('_', '-')}-topic": getattr(self, topic) for topic in TOPICS}
        return [part for pair in {**named, "--group": self.group}.items() for part in pair]


_tests_started = 0


@pytest.fixture
def topics(broker):
    """Unique topic names on the shared broker, deleted after the test."""
    global _tests_started  # a counter is shorter than a test's name, which may hold what a topic's may not
    _tests_started += 1
    names = Topics(f"t{_tests_started}")
    yield names
    broker.delete_topics(*names.all())


@pytest.fixture
def memory(folder):
    """Where the test's memory will be; not made yet."""
    return folder / "memory"


@pytest.fixture
def kafka_flags(broker, topics):
    """What every engram command of a test needs to reach its topics."""
    return ["-X", f"bootstrap.servers={broker.address}", *topics.flags()]


@pytest.fixture
def stage(request, folder, topics):
    """stage(*flags, memory=..., env=..., broker=..., ready=True, program=ENGRAM) starts `engram run` on the test's topics and waits
    until it is ready. Without a memory of their own all stages of a test share one folder. Killed at the test's end."""
    started = []

    def start(*flags, memory=None, env=None, broker=None, ready=True, program=ENGRAM):
        address = (broker or request.getfixturevalue("broker")).address
        flags = ["-X", f"bootstrap.servers={address}", *topics.flags(), "--instance-id", f"i{len(started)}", *flags]
        running = Stage(flags, folder, memory or folder / "memory", env, program)
        started.append(running)
        return running.wait_ready() if ready else running

    yield start
    for running in started:
        running.kill()
    if getattr(request.node, "failed", False):
        for running in started:
            sys.stderr.write(f"---- {running.log_path.name} ----\n{running.log(whole=True)[-8000:]}\n")
