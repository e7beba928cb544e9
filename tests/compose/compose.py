"""The compose project as the tests see it from outside: `docker` and `docker compose` as a user types them, the broker at
its port on this host, the replicas' consoles at theirs. tests/compose/run.sh sets the environment that this reads.
"""

import json
import os
import subprocess
import urllib.error
import urllib.request
from pathlib import Path
from types import SimpleNamespace

from console import metrics_read
from kafka import Broker, wait_until

ROOT = Path(__file__).resolve().parent.parent.parent
COMPOSE = os.environ["COMPOSE"].split()
PROJECT = os.environ["COMPOSE_PROJECT_NAME"]
TOPICS = SimpleNamespace(texts="texts", predictions="predictions", instances="instances", labels="labels",
                         dead_letters="dead-letters", group="engram")
UP_S = 180


def run(*command, stdin=None, check=True, **variables):
    """A command in the project's folder; its CompletedProcess. Fails with all it printed unless check is False."""
    done = subprocess.run([str(part) for part in command], cwd=ROOT, input=stdin, text=True, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, env={**os.environ, **variables}, timeout=900, check=False)
    assert not check or done.returncode == 0, f"{' '.join(map(str, command))}: {done.stdout}{done.stderr}"
    return done


def docker(*command, **how):
    return run("docker", *command, **how)


def compose(*command, **how):
    return run(*COMPOSE, *command, **how)


def engram(*command, flags=(), **how):
    """`docker compose run --rm engram ...`; flags: those of `run`."""
    return compose("run", "--rm", "-T", *flags, "engram", *command, **how)


class HostBroker(Broker):
    """The project's broker, at its port on this host: neither started nor stopped here."""

    def __init__(self, port):
        super().__init__("/nonexistent")
        self.address = f"127.0.0.1:{port}"


class Replica:
    """One container of the stage."""

    def __init__(self, container):
        self.container = container

    def state(self):
        return json.loads(docker("inspect", self.container).stdout)[0]["State"]

    def log(self):
        done = docker("logs", self.container)
        return done.stdout + done.stderr

    def stats(self):
        return json.loads(docker("exec", self.container, "engram", "memory", "stats", "--json").stdout)

    def get(self, path):
        """(status, body) of the console; (0, why) where nobody answers."""
        try:
            port = docker("port", self.container, "8080").stdout.split()[0].rsplit(":", 1)[1]
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as refusal:
            return refusal.code, refusal.read().decode()
        except (OSError, IndexError, AssertionError) as failure:
            return 0, str(failure)

    def metrics(self):
        status, text = self.get("/metrics")
        assert status == 200, text
        return metrics_read(text)

    def wait_ready(self):
        wait_until(lambda: self.get("/ready")[0] == 200, lambda: f"ready: {self.get('/ready')}\n{self.log()[-3000:]}",
                   UP_S, pause_s=0.3)

    def wait_healthy(self):
        wait_until(lambda: self.state().get("Health", {}).get("Status") == "healthy", "health", UP_S, pause_s=0.5)

    def texts_partitions(self):
        """Partitions of texts that it reads, by its metrics."""
        return [name for name in self.metrics() if name.startswith('engram_consumer_lag{topic="texts"')]


def replicas(project=PROJECT):
    listed = docker("ps", "-aq", "--no-trunc", "--filter", f"label=com.docker.compose.project={project}",
                    "--filter", "label=com.docker.compose.service=engram",
                    "--filter", "label=com.docker.compose.oneoff=False").stdout.split()
    return [Replica(container) for container in sorted(listed)]


def wait_shared(members, partitions=6):
    """Until the members read all partitions of texts between them, each as many."""

    def shared():
        read = [member.texts_partitions() for member in members]
        return {len(names) for names in read} == {partitions // len(members)} and len(set().union(*read)) == partitions

    wait_until(shared, lambda: f"a shared group: {[m.texts_partitions() for m in members]}", UP_S, pause_s=0.5)
