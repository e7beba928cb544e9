"""What people meet first: a stage that cannot start, or must not. Each gives one clear line that says what to change,
ends with the right status, and damages nothing: the memory is afterwards what it was before.
"""

import json
import os
import shutil
import socket
import struct

import oracle
import pytest
from kafka import wait_until
from stage import ROOT, TINY, engram, memory_stats

WRITING = "the memory is being written by process"


def instance(number, text="a tool"):
    return b"i%d" % number, oracle.written(text=f"{text} {number}", labels=["tool"])


def refused(running, pattern, status=1):
    """It ends by itself with this status; its last words are one line of error, which matches."""
    assert running.wait() == status, running.log()
    errors = [line for line in running.log().splitlines() if " error " in line]
    assert len(errors) == 1, running.log()
    running.wait_for(pattern)
    assert "ready:" not in running.log()
    return errors[0]


def command(*arguments, status):
    """One command that must fail with this status; its one line of error (a usage error's hint at --help aside)."""
    done = engram(*arguments, check=False)
    assert done.returncode == status and done.stdout == "", f"{done.returncode}: {done.stdout}{done.stderr}"
    lines = [line for line in done.stderr.splitlines() if " warn " not in line and not line.startswith("`engram ")]
    assert len(lines) == 1, done.stderr
    return lines[0]


@pytest.fixture
def learnt(broker, topics, stage):
    """A stage that has folded three instances and was stopped, and the stats of its memory."""
    running = stage(*TINY)
    broker.produce(topics.instances, [instance(i) for i in range(3)])
    oracle.check_memory(broker, topics, running.memory)
    running.stop()
    return running, memory_stats(running.memory)


def unharmed(running, before):
    """The memory is what it was, and whole. That a stage beside it has just read to the end may be new."""
    after = memory_stats(running.memory)
    assert {**after, "caught_up_ms": 0} == {**before, "caught_up_ms": 0}
    engram("memory", "verify", "--memory", running.memory)


# ---- the broker and its topics ----


def test_no_broker(stage):
    """It keeps trying, says so once with the address, and ends at once when told to."""
    with socket.socket() as taken:  # bound and not listening: refused, and nobody else can listen there
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        running = stage(*TINY, "-X", f"bootstrap.servers={address}", ready=False)
        running.wait_for(f"no broker answers at {address}: .*refused.*bootstrap.servers.*Trying on")
        running.terminate()
        assert running.wait() == 0
        running.wait_for("stopped$")
        assert running.log().count(f"no broker answers at {address}") <= 3  # texts, learn and topics are three clients


def test_a_missing_topic_that_may_not_be_made(broker, topics, stage):
    broker.create_topics(topics.texts, topics.predictions, topics.labels, topics.dead_letters)
    running = stage(*TINY, "--create-topics=false", ready=False)
    refused(running, f"topic '{topics.instances}' does not exist: create it, or set create_topics = true")
    assert topics.instances not in broker.topic_names()
    broker.create_topics(topics.instances)
    running.restart().wait_ready()
    running.stop()


def test_topics_wait_for_enough_brokers(broker, topics, stage):
    """A cluster that is still starting refuses the replicas that it will be able to hold."""
    running = stage(*TINY, "--topic-replication", "2", ready=False)
    running.wait_for("warn .*topic '.*' is not created yet: .*replica.*: trying on")
    broker.create_topics(topics.texts, topics.predictions, topics.instances, topics.labels, topics.dead_letters)
    running.wait_ready()
    running.stop()


def test_more_partitions_of_instances(broker, topics, learnt):
    running, before = learnt
    broker.add_partitions(topics.instances, 2)
    running.restart()
    refused(running, f"topic '{topics.instances}' has 2 partitions, and this memory was made from 1: .*To migrate")
    unharmed(running, before)


def test_a_topic_made_anew(broker, topics, learnt):
    """The stored offset lies beyond its end."""
    running, before = learnt
    broker.delete_topics(topics.instances)
    broker.create_topics(topics.instances, cleanup_policy="compact")
    running.restart()
    refused(running, f"topic '{topics.instances}', partition 0 ends at offset 0, and this memory has read to 3: "
                     "the topic was deleted and created again, or cut: copy another replica's memory, or start an empty one")
    unharmed(running, before)


def test_records_deleted_that_were_not_read(broker, topics, stage, learnt):
    """Retention has taken what lies between the stored offset and the log's start."""
    running, before = learnt
    broker.set_topic_config(topics.instances, cleanup_policy="delete", retention_ms=1, segment_ms=100,
                            file_delete_delay_ms=100)
    broker.produce(topics.instances, [instance(i) for i in range(3, 6)])
    wait_until(lambda: broker.ends(topics.instances)[0][0] > 3, "retention", 120)
    running.restart()
    refused(running, f"topic '{topics.instances}', partition 0 begins at offset \\d+, and this memory has read only to "
                     "3: it may have missed records: copy another replica's memory, or start an empty one")
    unharmed(running, before)


def test_another_cluster(broker, topics, stage, own_broker, learnt):
    running, before = learnt
    other = own_broker()
    running.restart("-X", f"bootstrap.servers={other.address}")
    refused(running, f"this memory followed the Kafka cluster .*, and {other.address} is the cluster .*: copy another")
    unharmed(running, before)
    running.restart("-X", f"bootstrap.servers={broker.address}").wait_ready()
    running.stop()


# ---- two of the same ----


def test_a_second_process_on_the_memory(broker, topics, learnt, stage):
    """Whoever writes: the stage, load and forget --local. Who only looks is welcome."""
    running, before = learnt
    running.restart().wait_ready()
    second = stage(*TINY, memory=running.memory, ready=False)
    line = refused(second, f"{WRITING} {running.process.pid}: stop it first, or name another folder.*memory")
    assert str(running.memory) in line
    lines = running.memory.parent / "more.jsonl"
    lines.write_bytes(oracle.written(id="more", text="more", labels=["l"]) + b"\n")
    at = ["--memory", running.memory]
    assert WRITING in command("load", *TINY, *at, "--instances", lines, status=1)
    assert WRITING in command("forget", "i1", "--local", *at, status=1)

    tagged = engram("tag", *TINY, *at, "--json", "a tool 1").stdout
    assert oracle.body(tagged.encode())["evidence"][0]["id"] == "i1"
    assert oracle.body(engram("memory", "get", "i1", *at).stdout.encode())["labels"] == ["tool"]
    lines.write_bytes(oracle.written(id="e", text="a tool 1", labels=["tool"]) + b"\n")
    assert oracle.body(engram("eval", *TINY, *at, "--test", lines, "--json").stdout.encode())["P@1"] == 100
    unharmed(running, before)

    broker.produce(topics.instances, [instance(7)])  # the first one has not noticed
    oracle.check_memory(broker, topics, running.memory)
    running.stop()
    engram("forget", "i7", "--local", *at)
    assert memory_stats(running.memory)["local_changes"] == 1
    running.restart().wait_ready()
    running.wait_for("warn .*1 changes made by hand")


def test_the_same_instance_id_elsewhere(broker, topics, stage, folder):
    """The group keeps the one that came last; the other ends with a line that says what to change. Nothing is lost."""
    first = stage(*TINY, "--instance-id", "twin", memory=folder / "one")
    first.wait_for("6 partitions of")
    second = stage(*TINY, "--instance-id", "twin", memory=folder / "two")
    line = first.wait_for("(?m)^.*the same instance_id runs elsewhere.*$").group(0)
    assert "'twin'" in line and topics.group in line and "--instance-id" in line
    assert first.wait() == 1
    second.wait_for("6 partitions of")
    broker.produce(topics.texts, [(b"t%d" % i, oracle.written(text="a tool")) for i in range(50)])
    oracle.check_texts(broker, topics)
    second.stop()


# ---- model and memory ----


def test_a_model_folder_that_is_none(topics, stage, folder):
    empty = folder / "empty"
    empty.mkdir()
    for name in (empty, folder / "nothing", ROOT / "Makefile"):
        running = stage("--model", name, ready=False)
        assert str(name) in refused(running, r"error .+")
        assert not running.memory.exists()


def overflowing(folder):
    """The tiny model with finite numbers that are too large for sums, from the 20th token of a text on."""
    model = shutil.copytree(ROOT / "tests" / "golden" / "tiny-bert", folder / "overflowing")
    weights = bytearray((model / "model.safetensors").read_bytes())
    header = 8 + int.from_bytes(weights[:8], "little")
    place = json.loads(weights[8:header])["embeddings.position_embeddings.weight"]
    (rows, width), (begin, end) = place["shape"], place["data_offsets"]
    weights[header + begin + 20 * width * 4 : header + end] = struct.pack("<f", 3e38) * (rows - 20) * width
    (model / "model.safetensors").write_bytes(weights)
    return model


@pytest.mark.parametrize("lane", ["texts", "instances"])
def test_a_vector_that_is_not_finite(broker, topics, stage, folder, lane):
    """The model is at fault: the stage ends with a line, and the record waits for a model that can. It is no dead letter."""
    running = stage("--model", overflowing(folder))
    broker.produce(topics.texts, [(b"short", oracle.written(text="a tool"))])
    broker.produce(topics.instances, [instance(0)])
    oracle.check_texts(broker, topics)
    oracle.wait_folded(broker, topics, running.memory)
    long = instance(1, "a tool " * 20)
    broker.produce(getattr(topics, lane), [long if lane == "instances" else (b"long", oracle.written(text="a tool " * 20))])
    assert running.wait() == 1, running.log()
    running.wait_for(r"error .*model overflowing: the vector of a text of 4\d word pieces .* is not finite")
    assert broker.read_all(topics.dead_letters) == []
    assert memory_stats(running.memory)["instances"] == 1
    healthy = stage(*TINY, memory=folder / "healthy")
    oracle.check_texts(broker, topics)
    oracle.check_memory(broker, topics, healthy.memory)


def test_another_encoders_memory(stage, learnt, folder):
    """One flipped bit of a weight that is used makes another encoder."""
    running, before = learnt
    other = folder / "other"
    shutil.copytree(ROOT / "tests" / "golden" / "tiny-bert", other)
    weights = bytearray((other / "model.safetensors").read_bytes())
    header = 8 + int.from_bytes(weights[:8], "little")
    weights[header + (len(weights) - header) // 2] ^= 1
    (other / "model.safetensors").write_bytes(weights)
    running.restart("--model", other)
    line = refused(running, "the memory was made by another encoder")
    assert before["fingerprint"][:16] in line and "model" in line and "memory" in line
    unharmed(running, before)
    running.restart("--key-dtype", "f32", *TINY)
    refused(running, "the memory has bf16 keys, the option key_dtype says f32")
    unharmed(running, before)
    running.restart("--key-dtype", "bf16").wait_ready()


def test_a_damaged_memory(broker, topics, stage, learnt, folder):
    """Cut off, overwritten at its head, or no database at all: refused before anything is read or written."""
    running, before = learnt
    broker.produce(topics.instances, [instance(i, "x" * 2000) for i in range(300)])
    running.restart().wait_ready()
    oracle.check_memory(broker, topics, running.memory)
    running.stop()
    whole = (running.memory / "data.mdb").read_bytes()
    damaged = {"cut": whole[:len(whole) * 2 // 3], "cut in a page": whole[:len(whole) // 2 - 100], "short": whole[:100],
               "head": bytes(8192) + whole[8192:], "text": b"this is no database\n" * 1000,
               "transaction number": whole[:145] + bytes([whole[145] ^ 1]) + whole[146:]}
    for name, contents in damaged.items():
        copy = folder / name
        copy.mkdir()
        (copy / "data.mdb").write_bytes(contents)
        one = stage(*TINY, memory=copy, ready=False)
        line = refused(one, " error ")
        assert str(copy) in line and "restore a copy" in line, f"{name}: {line}"
        assert (copy / "data.mdb").read_bytes() == contents, name
        for arguments in (["memory", "stats"], ["memory", "verify"], ["tag", *TINY, "a"]):
            assert "restore a copy" in command(*arguments, "--memory", copy, status=1), f"{name}: {arguments}"

    foreign = folder / "foreign"
    foreign.mkdir()
    (foreign / "data.mdb").mkdir()
    refused(stage(*TINY, memory=foreign, ready=False), " error ")
    file = folder / "file"
    file.write_text("x")
    refused(stage(*TINY, memory=file, ready=False), "the option memory must name a folder")


def test_a_file_cut_under_a_running_stage(broker, topics, learnt):
    """Its last word is a line of its log, not a signal."""
    running, _ = learnt
    running.restart("--log-format", "json").wait_ready()
    os.truncate(running.memory / "data.mdb", 8192)
    broker.produce(topics.instances, [instance(i) for i in range(3, 6)])
    broker.produce(topics.texts, [(b"t", oracle.written(text="a tool"))])
    assert running.wait() == 1, running.log()
    last = json.loads(running.log().splitlines()[-1])
    assert last["level"] == "error" and str(running.memory) in last["message"], last
    assert "the memory is damaged: run `engram memory verify`, restore a copy or read the topics again" in last["message"]


# ---- options ----


@pytest.mark.parametrize("flags, words", [
    (["--tau", "0"], ["tau", "0.0001"]),
    (["--b", "many"], ["b", "many"]),
    (["--lambda", "1.5"], ["lambda", "1.5"]),
    (["--lambda", "nan"], ["lambda", "nan"]),
    (["--batch-tokens=-1"], ["batch_tokens", "-1"]),
    (["--map-size", "5XiB"], ["map_size", "5XiB"]),
    (["--start-from", "middle"], ["start_from", "middle", "earliest"]),
    (["--tua", "0.1"], ["--tua", "--tau"]),
    (["-X", "acks=1"], ["acks"]),
    (["-X", "consumer.group.id=mine"], ["group.id", "group"]),
    (["-X", "bootstrap.server=x"], ["bootstrap.server", "bootstrap.servers"]),
    (["-X", "fetch.wait.max.ms=soon"], ["fetch.wait.max.ms"]),
    (["--processing-guarantee", "exactly-once"], ["processing_guarantee", "exactly-once", "not"]),
    (["--texts-topic", "predictions"], ["predictions"]),
    (["surplus"], ["surplus"]),
    (["-c", "/nowhere/engram.conf"], ["/nowhere/engram.conf"]),
])
def test_a_wrong_option(folder, flags, words):
    line = command("run", *TINY, "--memory", folder / "memory", *flags, status=2)
    assert all(word in line for word in words), line
    assert not (folder / "memory").exists()
