"""A memory that takes no more: the map, the number of keys, the disk. The learn lane waits at its record and says so
once, tags go on, no offset moves past what is folded; with more room everything is folded, nothing twice.

What is in the memory at any moment must be the fold of exactly the records before its offsets (the oracle's replay).
"""

import re
import resource
import subprocess

import oracle
import pytest
from console import Console, free_port
from kafka import wait_until
from stage import ROOT, TINY, engram, memory_stats

WAITS = "the learn lane waits, nothing is lost: "


@pytest.fixture(scope="session")
def small_disk(session_folder):
    """The library that gives data.mdb a disk of its own size (disk.c)."""
    library = session_folder / "disk.so"
    subprocess.run(["gcc", "-std=c17", "-Wall", "-Wextra", "-Werror", "-O1", "-shared", "-fPIC", "-o", library,
                    ROOT / "tests" / "e2e" / "disk.c", "-ldl"], check=True)
    return library


class Disk:
    """The disk under the memory of a test's stages; without an end until it is given one."""

    def __init__(self, library, folder):
        self._path = folder / "disk"
        self._refused = folder / "disk.refused"
        self.env = {"LD_PRELOAD": str(library), "TEST_DISK": str(self._path)}

    def end_at(self, size):
        self._path.write_text(f"{size}\n", encoding="ascii")

    def has_room(self):
        self._path.unlink()

    def refused(self):
        return self._refused.stat().st_size if self._refused.exists() else 0


@pytest.fixture
def disk(small_disk, folder):
    return Disk(small_disk, folder)


@pytest.fixture
def console():
    return Console(free_port())


def wait_not_ready(console, line):
    """Whoever asks is told what the log says."""
    reason = line[line.index(WAITS) + len(WAITS):]
    wait_until(lambda: console.ready() == (503, f"the learn lane waits: {reason}\n"), console.ready)


def instance(number, size=600):
    return b"i%d" % number, oracle.written(text=f"tool {number} " + "x" * size, labels=["tool", f"label {number % 50}"])


def tag(broker, topics, count):
    """Send so many texts and wait until all that were ever sent are answered."""
    broker.produce(topics.texts, [(b"t%d" % i, oracle.written(text="a tool to search files")) for i in range(count)])
    oracle.check_texts(broker, topics)


def check_prefix(broker, topics, memory):
    """The memory is the fold of the records before its offsets, whatever they are. Returns its stats."""
    stats = memory_stats(memory)
    nexts = {(o["topic"], o["partition"]): o["next"] for o in stats["offsets"]}
    told = oracle.Replay()
    for topic, is_instance in ((topics.instances, True), (topics.labels, False)):
        for record in broker.read_all(topic):
            if record.offset < nexts.get((topic, record.partition), 0):
                told.apply(record, is_instance)
    assert {name: stats[name] for name in told.stats()} == told.stats()
    return stats


def test_a_full_map(broker, topics, stage, console):
    """1 MiB of map, about 3 MB of instances; killed and restarted while it is full."""
    running = stage(*console.flags, "--map-size", "1MiB")
    records = [instance(i) for i in range(3000)]
    records[2000:2000] = [(b"i%d" % i, None) for i in range(0, 400, 2)] + [instance(i, 700) for i in range(1, 400, 2)]
    broker.produce(topics.labels, [(b"label %d" % i, oracle.written(text=f"label number {i}")) for i in range(50)])
    broker.produce(topics.instances, records)
    line = running.wait_for(f"{WAITS}.*$").group(0)
    assert "the map of 1048576 bytes is full" in line and "map_size" in line
    wait_not_ready(console, line)
    tag(broker, topics, 40)
    stuck = check_prefix(broker, topics, running.memory)
    assert 0 < stuck["instances"] < 3000

    running.kill()
    running.restart().wait_ready()  # a lane that only a larger map helps holds up nothing
    running.wait_for(WAITS)
    tag(broker, topics, 40)
    again = check_prefix(broker, topics, running.memory)
    assert stuck["version"] <= again["version"] < stuck["version"] + 100  # a few pages may have come free
    assert len(re.findall(WAITS, running.log())) == 1
    running.stop()

    running.restart("--map-size", "64MiB").wait_ready()
    oracle.check_memory(broker, topics, running.memory)
    tag(broker, topics, 20)
    console.wait_ready()
    assert WAITS not in running.log()


def test_keys_max(broker, topics, stage):
    """It stays at the first record that adds a key; replaces and forgets before it are folded, those behind are not."""
    running = stage(*TINY, "--keys-max", 10)
    broker.produce(topics.labels, [(b"label 1", oracle.written(text="one"))])
    broker.produce(topics.instances, [instance(i) for i in range(9)])
    oracle.check_memory(broker, topics, running.memory)
    broker.produce(topics.instances, [
        instance(3, 10), (b"i5", None), instance(10), (b"i4", b"{"), instance(11), instance(0, 10),  # 10 keys again
        instance(12),  # one too many
        (b"i1", None), instance(2, 10), instance(13)])
    line = running.wait_for(f"{WAITS}.*$").group(0)
    assert "10 keys" in line and "keys_max" in line and "raise" in line
    tag(broker, topics, 20)
    stats = check_prefix(broker, topics, running.memory)
    assert stats["version"] == 1 + 9 + 6
    assert len(broker.read_all(topics.dead_letters)) == 1
    found = [engram("memory", "get", f"i{i}", "--memory", running.memory, check=False).returncode for i in range(14)]
    assert [i for i in range(14) if found[i] == 0] == [0, 1, 2, 3, 6, 7, 8, 10, 11]
    broker.produce(topics.labels, [(b"label 2", oracle.written(text="two"))])
    running.stop()
    assert len(re.findall(WAITS, running.log())) == 1

    running.restart("--keys-max", 0).wait_ready()
    told = oracle.check_memory(broker, topics, running.memory)
    assert sorted(told.instances) == sorted(["i0", "i2", "i3", "i6", "i7", "i8", "i10", "i11", "i12", "i13"])
    tag(broker, topics, 5)
    assert len(broker.read_all(topics.dead_letters)) == 1  # the poison before the full record was not read again


def test_a_full_disk(broker, topics, stage, disk, console):
    """It waits, says so once, and goes on by itself when there is room; a restart while it is full waits as well."""
    running = stage(*console.flags, env=disk.env)
    broker.produce(topics.instances, [instance(i) for i in range(200)])
    oracle.check_memory(broker, topics, running.memory)
    disk.end_at((running.memory / "data.mdb").stat().st_size + 10_000)  # amid a page
    broker.produce(topics.instances, [instance(i) for i in range(100, 2000)])
    line = running.wait_for(f"{WAITS}.*$").group(0)
    assert "no space left on the device" in line
    wait_not_ready(console, line)
    tag(broker, topics, 40)
    refused = disk.refused()
    wait_until(lambda: disk.refused() >= refused + 3, "three more tries")
    assert check_prefix(broker, topics, running.memory)["instances"] < 2000
    assert len(re.findall(WAITS, running.log())) == 1

    disk.has_room()
    running.wait_for("the learn lane goes on")
    console.wait_ready()
    oracle.check_memory(broker, topics, running.memory)
    tag(broker, topics, 20)

    # full again, and stopped and started so
    disk.end_at((running.memory / "data.mdb").stat().st_size)
    broker.produce(topics.instances, [instance(i, 900) for i in range(2000, 4000)])
    wait_until(lambda: len(re.findall(WAITS, running.log())) == 2, "the second wait")
    running.stop()
    check_prefix(broker, topics, running.memory)
    running.restart()
    running.wait_for(WAITS)
    running.kill()
    running.restart()
    running.wait_for(WAITS)
    assert "ready:" not in running.log()  # it has not caught up, and will when there is room: no text before that
    disk.has_room()
    running.wait_ready()
    oracle.check_memory(broker, topics, running.memory)
    tag(broker, topics, 20)
    running.stop()


def test_a_limit_on_file_sizes(broker, topics, stage, console):
    """ulimit -f is a full disk: it waits, says so once, and goes on when the limit is raised."""
    running = stage(*console.flags)
    broker.produce(topics.instances, [instance(i) for i in range(200)])
    oracle.check_memory(broker, topics, running.memory)
    size = (running.memory / "data.mdb").stat().st_size
    resource.prlimit(running.process.pid, resource.RLIMIT_FSIZE, (size // 2, resource.RLIM_INFINITY))
    broker.produce(topics.instances, [instance(i) for i in range(100, 2000)])
    line = running.wait_for(f"{WAITS}.*$").group(0)
    assert "the limit on file sizes (ulimit -f) is reached: raise it" in line
    wait_not_ready(console, line)
    tag(broker, topics, 40)
    assert check_prefix(broker, topics, running.memory)["instances"] < 2000
    assert len(re.findall(WAITS, running.log())) == 1
    resource.prlimit(running.process.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    running.wait_for("the learn lane goes on")
    console.wait_ready()
    oracle.check_memory(broker, topics, running.memory)
    tag(broker, topics, 20)
    running.stop()


def test_no_room_for_a_new_memory(topics, stage, disk):
    disk.end_at(0)
    running = stage(*TINY, env=disk.env, ready=False)
    assert running.wait() == 1
    assert "no space left on the device" in running.log()
    disk.has_room()
    running.restart().wait_ready()
    running.stop()


def test_no_growth_while_predictions_wait(broker, topics, stage, memory):
    """Batches that wait for an acknowledgement keep no snapshot of the memory: pages that folds leave are used again."""
    running = stage(*TINY, "-X", "topic.metadata.refresh.interval.ms=1000")
    broker.delete_topics(topics.predictions)
    for i in range(12):
        broker.produce(topics.texts, [(b"t%d" % i, oracle.written(text=f"text {i}"))])

    def fold(first, count):
        for i in range(first, first + count):
            broker.produce(topics.instances, [(b"same", oracle.written(text=f"tool {i}", labels=["tool"]))])
        oracle.wait_folded(broker, topics, memory)
        return (memory / "data.mdb").stat().st_size

    before = fold(0, 100)
    assert fold(100, 300) - before < 1 << 20
    assert broker.committed(topics.group, topics.texts) == {}
    broker.create_topics(topics.predictions, partitions=6)
    oracle.check_texts(broker, topics)
    assert running.running
