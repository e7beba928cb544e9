"""A stage under docker compose, from outside: three replicas that share the texts and all fold the labels, looked at,
killed, rolled, stopped, copied. The tests go in the order of this file, on one project; each leaves it whole.
"""

import gzip
import json
import os
import re
import threading
import time
import urllib.request

import oracle
import pytest
from compose import (COMPOSE, PROJECT, ROOT, TOPICS, UP_S, HostBroker, Replica, compose, docker, engram, replicas, run,
                     wait_shared)
from kafka import Record, wait_until
from test_hardening import check_hard_to_bend

DEBTAGS = ROOT / "examples" / "debtags"
BAD = [b"", b"{", b"\x81\xa4text", b'{"text": 7}', b'{"text": "a"} b', b'{"text": "\xff"}', b'{"no": "text"}', b"[1]"]


def lines(name, first, count):
    with gzip.open(DEBTAGS / f"{name}.jsonl.gz", "rt") as file:
        return "".join(line for number, line in enumerate(file) if first <= number < first + count)


def texts(first, count):
    return [Record(b"t%d" % i, oracle.written(id=f"t{i}", text=f"text number {i} about a mail server"))
            for i in range(first, first + count)]


def labelled():
    return [json.loads(line) for line in lines("train", 0, 400).splitlines()]


def check_folded(broker, members):
    """Every member's memory is the replay of the topics, down to the digest."""
    told = oracle.replay(broker, TOPICS)
    for member in members:
        wait_until(lambda m=member: m.stats()["version"] >= told.version, f"version {told.version}", UP_S, pause_s=0.3)
        stats = member.stats()
        assert {name: stats[name] for name in told.stats()} == told.stats()
    return told


class Flow:
    """Texts that flow while something else happens: `with Flow(broker, first=1000): ...`. Ends with the block."""

    def __init__(self, broker, first):
        self._broker, self._next, self._end = broker, first, threading.Event()
        self._thread = threading.Thread(target=self._produce)
        self.sent = 0

    def _produce(self):
        while not self._end.is_set():
            self._broker.produce(TOPICS.texts, texts(self._next + self.sent, 20))
            self.sent += 20
            time.sleep(0.2)

    def __enter__(self):
        self._thread.start()
        wait_until(lambda: self.sent >= 40, "the first texts")
        return self

    def __exit__(self, *_):
        self._end.set()
        self._thread.join()


# ---- up, and what a user meets first ----


def test_up_says_where_to_look_and_what_to_type(up):
    welcome = compose("logs", "--no-color", "welcome").stdout
    assert "run --rm engram replay" in welcome and f"127.0.0.1:{up.port}" in welcome and "/metrics" in welcome
    assert len(replicas()) == 3


def test_nobody_in_particular_on_a_root_that_cannot_be_written(up):
    one = replicas()[0].container
    assert docker("exec", one, "id", "-u").stdout.strip() == "10001"
    assert docker("exec", one, "touch", "/usr/local/x", check=False).returncode != 0
    mounts = [m for r in replicas() for m in json.loads(docker("inspect", r.container).stdout)[0]["Mounts"]]
    volumes = {m["Name"]: m["Destination"] for m in mounts if m["Type"] == "volume"}
    assert sorted(volumes.values()) == ["/backup", *["/var/lib/engram"] * 3], "a memory each, and one place for backups"


def test_no_rights_of_root(up):
    """Not to use, not to get by starting another program."""
    compose("--profile", "observability", "up", "-d", "prometheus")
    found = {name: compose("ps", "-q", name).stdout.split() for name in ("engram", "kafka", "prometheus")}
    for name, containers in found.items():
        assert containers
        for container in containers:
            status = docker("exec", container, "cat", "/proc/1/status").stdout
            assert re.search(r"^CapEff:\t0+\nCapBnd:\t0+$", status, re.MULTILINE), (name, status)
            assert re.search(r"^NoNewPrivs:\t1$", status, re.MULTILINE), (name, status)
    for replica in replicas():
        folder = docker("exec", replica.container, "stat", "-c", "%a %n", "/var/lib/engram", "/var/lib/engram/data.mdb", "/backup")
        assert folder.stdout.split() == ["700", "/var/lib/engram", "600", "/var/lib/engram/data.mdb", "700", "/backup"]


def test_the_binary_is_hard_to_bend(up, tmp_path):
    docker("cp", f"{replicas()[0].container}:/usr/local/bin/engram", tmp_path / "engram")
    check_hard_to_bend(tmp_path / "engram")


def test_health_comes_with_ready(up):
    for replica in replicas():
        replica.wait_healthy()
        assert replica.get("/ping")[0] == 200
        assert "2.8.0" in replica.get("/version")[1]
        # as Kubernetes sets it for a Service of this name: skipped, here as by the stage
        docker("exec", "-e", "ENGRAM_PORT=tcp://10.0.0.1:8080", replica.container, "engram-ready")


# ---- texts and labels ----


def test_replayed_in_both_formats_and_predicted(broker):
    """Typed as the welcome says, with a part of the example set: every text has its one prediction, in its own format."""
    for form, first in (("json", 0), ("msgpack", 500)):
        for option, name, count in (("--labels", "labels", 100), ("--instances", "train", 500), ("--texts", "test", 300)):
            engram("replay", "--format", form, option, "-", stdin=lines(name, first if name != "labels" else 0, count))
    answers = oracle.check_texts(broker, TOPICS, UP_S)
    assert len(answers.predictions) == 600
    assert sum(oracle.is_msgpack(record.value) for record in answers.records.values()) == 300
    told = check_folded(broker, replicas())
    assert len(told.instances) == 1000
    scored = [one for one in answers.bodies() if one["labels"]]
    assert scored and all(one["evidence"] for one in scored)


def test_whole_files_of_the_image(broker):
    """The paths that the welcome names are those of the image."""
    engram("replay", "--labels", "examples/debtags/labels.jsonl.gz")
    assert len(check_folded(broker, replicas()).definitions) == 598


def test_poison_goes_to_the_dead_letters(broker):
    before = sum(m.metrics()["engram_dead_letters_total"] for m in replicas())
    places = broker.produce(TOPICS.texts, [(b"bad%d" % i, value) for i, value in enumerate(BAD)])
    answers = oracle.check_texts(broker, TOPICS)
    assert all(len(answers.letters[place]) == 1 for place in places)
    assert sum(m.metrics()["engram_dead_letters_total"] for m in replicas()) == before + len(BAD)


def test_a_label_is_taught_and_then_predicted(broker):
    engram("teach", "--id", "zebra", "--label", "animal::striped", "a horse with black and white stripes")
    check_folded(broker, replicas())
    (place,) = broker.produce(TOPICS.texts, [(b"z", oracle.written(text="a horse with black and white stripes"))])
    prediction = oracle.check_texts(broker, TOPICS).one(place)
    assert prediction["labels"][0]["label"] == "animal::striped"
    assert prediction["evidence"][0]["id"] == "zebra"


def test_the_example_client(up):
    done = run("/usr/bin/python3", "examples/client.py", "--bootstrap", up.broker.address)
    assert done.stdout.strip()


# ---- watched ----


def test_metrics_are_those_of_what_was_done(broker):
    oracle.wait_committed(broker, TOPICS)
    answered = sum(end for _, end in broker.ends(TOPICS.predictions).values()) + \
        sum(end for _, end in broker.ends(TOPICS.dead_letters).values())
    found = [m.metrics() for m in replicas()]
    assert sum(m["engram_texts_total"] for m in found) == answered
    told = check_folded(broker, replicas())
    for member in replicas():  # of the memory it takes samples
        wait_until(lambda m=member: m.metrics()["engram_memory_version"] == told.version, f"version {told.version}")
        assert [told.digest() in name for name in member.metrics() if name.startswith("engram_info{")] == [True]


def test_prometheus_scrapes_every_replica(up):
    compose("--profile", "observability", "up", "-d", "--no-deps", "prometheus")
    address = f"http://127.0.0.1:{os.environ['PROMETHEUS_PORT']}/api/v1/query?query=engram_texts_total"

    def scraped():
        try:
            with urllib.request.urlopen(address, timeout=5) as answer:
                return len(json.load(answer)["data"]["result"]) == 3
        except OSError:
            return False

    wait_until(scraped, "three replicas in Prometheus", UP_S, pause_s=1)


# ---- under fire ----


def test_one_of_three_is_killed_while_texts_flow(broker):
    victim, *others = replicas()
    wait_shared(replicas())
    with Flow(broker, first=10_000):
        docker("kill", "--signal", "KILL", victim.container)
        committed = broker.committed(TOPICS.group, TOPICS.texts)
        wait_shared(others)
    oracle.check_texts(broker, TOPICS, UP_S, repeats=oracle.repeats_after(committed))
    docker("start", victim.container)
    victim.wait_ready()
    check_folded(broker, replicas())


def test_one_is_rolled_without_a_rebalance(broker):
    """Static membership: it comes back as who it was before the others take over its partitions."""
    rolled, *others = replicas()
    wait_shared(replicas())
    partitions = rolled.texts_partitions()
    before = [m.metrics()["engram_rebalances_total"] for m in others]
    held = [m.texts_partitions() for m in others]
    with Flow(broker, first=20_000) as flow:
        docker("stop", rolled.container)
        assert rolled.state()["ExitCode"] == 0
        docker("start", rolled.container)
        rolled.wait_ready()
        wait_until(lambda: rolled.texts_partitions() == partitions, "its partitions", pause_s=0.3)
        sent = flow.sent
        wait_until(lambda: flow.sent > sent + 40, "more texts")
    oracle.check_texts(broker, TOPICS, UP_S, repeats=lambda place: True)
    assert [m.metrics()["engram_rebalances_total"] for m in others] == before
    assert [m.texts_partitions() for m in others] == held


def test_a_stop_drains(broker):
    """What is committed is answered and nothing else is; each ends by itself, in time, with 0."""
    earlier = broker.committed(TOPICS.group, TOPICS.texts)
    broker.produce(TOPICS.texts, texts(30_000, 3000))
    wait_until(lambda: broker.committed(TOPICS.group, TOPICS.texts) != earlier, "the first commits", pause_s=0)
    compose("stop", "engram")
    for member in replicas():
        assert member.state()["ExitCode"] == 0 and member.log().rstrip().endswith(" stopped")
    committed = broker.committed(TOPICS.group, TOPICS.texts)
    found = oracle.check_answers(broker, TOPICS, repeats=lambda place: place[1] < earlier[place[0]],
                                 unanswered=lambda place: place[1] >= committed[place[0]])
    answered = set(found.predictions) | set(found.letters)
    assert not [place for place in answered if place[1] >= committed[place[0]]]
    compose("start", "engram")
    for member in replicas():
        member.wait_ready()
    oracle.check_texts(broker, TOPICS, UP_S, repeats=lambda place: place[1] < earlier[place[0]])


def test_a_new_replica_from_a_copy(broker):
    """Copied from a running one; what comes after the copy is caught up from the topics."""
    volume = f"{PROJECT}-copied"
    here = ("--no-deps", "-v", f"{volume}:/var/lib/engram")
    docker("exec", replicas()[0].container, "engram", "memory", "backup", "/backup/one")
    engram("memory", "backup", "/var/lib/engram", "--memory", "/backup/one", flags=here)
    copied = json.loads(engram("memory", "stats", "--json", flags=here).stdout)
    engram("teach", "--id", "okapi", "--label", "animal::striped", "a giraffe's cousin with striped legs")
    told = check_folded(broker, replicas())
    assert 0 < copied["version"] == told.version - 1 and copied["digest"] != told.digest()
    name = f"{PROJECT}-new"
    try:
        compose("run", "-d", "--name", name, *here, "engram", "run")
        check_folded(broker, [Replica(name), *replicas()])
    finally:
        docker("rm", "-f", name, check=False)


# ---- limits, and what ends in one line ----


@pytest.mark.parametrize("flags, threads", [
    (["--cpus", "1"], 1), (["--cpuset-cpus", "0"], 1), (["--cpus", "1.5", "--cpuset-cpus", "0"], 1),
    ([], len(os.sched_getaffinity(0)))])
def test_threads_are_those_that_it_may_use(up, flags, threads):
    """By its own word and by its tasks: one for each thread that computes, beside those that every process has."""
    name = f"{PROJECT}-cpus"

    def tasks(*more):
        docker("run", "-d", "--name", name, *flags, os.environ["STAGE_IMAGE"], "run", "-X",
               "bootstrap.servers=127.0.0.1:9", *more)
        try:
            wait_until(lambda: " thread" in Replica(name).log(), "the start's line", pause_s=0.2)
            time.sleep(1)
            return Replica(name).log(), len(docker("exec", name, "ls", "/proc/1/task").stdout.split())
        finally:
            docker("rm", "-fv", name)

    said, running = tasks()
    assert f", {threads} thread{'s' if threads > 1 else ''}" in said
    assert running == tasks("--threads", threads)[1] == tasks("--threads", threads + 1)[1] - 1


def test_another_models_memory_ends_in_one_line(up):
    here = ("--no-deps", "-v", f"{PROJECT}-tiny:/var/lib/engram", "-v", f"{ROOT}/tests/golden/tiny-bert:/tiny:ro")
    engram("load", "--model", "/tiny", "--labels", "-", flags=here, stdin='{"label": "a", "text": "a"}\n')
    done = engram("run", flags=here, check=False)
    said = [line for line in (done.stdout + done.stderr).splitlines() if " error " in line]
    assert done.returncode == 1 and len(said) == 1 and "encoder" in said[0] and "/var/lib/engram" in said[0], done


@pytest.mark.parametrize("variable, value, named", [
    ("KAFKA_IMAGE", "engram-test/none:1", "engram-test/none"), ("KAFKA_PORT", None, "port is already allocated")])
def test_a_wrong_image_and_a_port_in_use_end_in_a_line(up, variable, value, named):
    """Compose's own words: nothing of ours may hide them."""
    other = [*COMPOSE, "-p", f"{PROJECT}-other"]
    try:
        done = run(*other, "up", "-d", "--no-build", "kafka", check=False, **{variable: value or str(up.port)})
        said = [line for line in (done.stdout + done.stderr).splitlines() if named in line]
        assert done.returncode != 0 and said, done.stdout + done.stderr
    finally:
        run(*other, "down", "--volumes", "--timeout", "1")


def test_the_files_are_valid(up):
    for profile in ((), ("--profile", "observability"), ("--profile", "gpu")):
        compose(*profile, "config", "-q")


# ---- on GPUs ----


def test_a_stage_on_gpus_starts_only_when_it_is_asked_for(up):
    """And is one more replica: nothing in the file gives it a name or a memory that another has too."""
    assert not compose("--profile", "gpu", "ps", "-q", "engram-gpu").stdout
    services = compose("--profile", "gpu", "config").stdout
    assert "engram-gpu:" in services and "INSTANCE_ID" not in services and services.count("/var/lib/engram\n") == 2


def test_the_image_for_gpus():
    """It has the plug-in and all that this needs: without a GPU, only that is missing."""
    compose("--profile", "gpu", "build", "engram-gpu")
    done = docker("run", "--rm", "--read-only", os.environ["STAGE_GPU_IMAGE"], "--version")
    assert "\ndevice: cpu; " in done.stdout and "cannot be loaded" not in done.stdout
