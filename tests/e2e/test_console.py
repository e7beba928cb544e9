"""The console of a running stage, from outside: what it shows is what happened, and who asks slowly, wrongly or without
end changes nothing for the lanes."""

import re
import socket
import subprocess
import threading
import time
import urllib.request

import oracle
import pytest
from console import Console, free_port
from kafka import Record, wait_until
from stage import TINY, engram


@pytest.fixture
def console():
    return Console(free_port())


def texts(count):
    return [Record(b"t%d" % i, oracle.written(text=f"text {i}"), partition=i % 6) for i in range(count)]


def test_pages(console, stage):
    running = stage(*console.flags)
    console.wait_ready()
    assert console.ask("/ping")[:2] == (200, "pong\n")
    assert console.ask("/ready")[:2] == (200, "ready\n")
    version = console.ask("/version")[1]
    assert re.match(r"engram \S+ \(librdkafka .*, model tiny-bert\)\n$", version) and version.strip() in running.log()
    status, body, headers = console.ask("/metrics", "HEAD")
    assert (status, body) == (200, "") and int(headers["Content-Length"]) > 1000
    assert console.ask("/")[0] == console.ask("/metrics/")[0] == console.ask("/%00")[0] == 404
    for method in ("POST", "PUT", "DELETE", "OPTIONS"):
        status, _, headers = console.ask("/metrics", method)
        assert (status, headers["Allow"]) == (405, "GET, HEAD")
    assert console.ask("/ping?x=1")[0] == 200
    running.stop()
    with pytest.raises(ConnectionRefusedError):
        console.ask("/ping")


def test_metrics_count_what_happened(console, broker, topics, stage):
    running = stage(*console.flags)
    broker.produce(topics.labels, [(b"l%d" % i, oracle.written(text=f"label {i}")) for i in range(5)])
    broker.produce(topics.instances,
                   [(b"%d" % i, oracle.written(text=f"instance {i}", labels=["l1"])) for i in range(20)])
    broker.produce_transaction(topics.instances, [(b"3", None), (b"poison", b"{")])
    oracle.check_memory(broker, topics, running.memory)
    broker.produce(topics.texts, [*texts(60), Record(b"null", None, partition=0), Record(b"x", b"[", partition=0)])
    oracle.check_texts(broker, topics)
    stats = running.stats()
    wait_until(lambda: console.metrics()["engram_texts_total"] == 62
               and console.metrics()["engram_memory_version"] == stats["version"], console.metrics)
    shown = console.metrics()
    expected = {"folds_total": 25, "forgets_total": 2, "dead_letters_total": 2, "queue_tokens": 0,
                "text_seconds_count": 62, "label_to_live_seconds_count": 25, "batch_texts_sum": 60,
                "memory_keys": 19 + 5, "memory_bytes": stats["bytes"], "paused_partitions": 0, "rebalances_total": 1,
                'errors_total{kind="format"}': 2, 'errors_total{kind="broker"}': 0}
    assert {name: shown[f"engram_{name}"] for name in expected} == expected
    batches = shown["engram_batches_total"]
    assert 0 < batches <= 60
    for name in ("batch_texts", "batch_tokens", "encode_seconds", "retrieve_seconds"):
        assert shown[f"engram_{name}_count"] == shown[f'engram_{name}_bucket{{le="+Inf"}}'] == batches
    assert shown["engram_publish_seconds_count"] >= 1 and shown["engram_encode_seconds_sum"] > 0
    assert shown["engram_batch_tokens_sum"] >= 60 * 4
    info = next(name for name in shown if name.startswith("engram_info{"))
    assert f'digest="{stats["digest"]}"' in info and 'model="tiny-bert"' in info
    assert f'model_version="{stats["fingerprint"][:16]}"' in info
    wait_until(lambda: console.lags(topics.texts) == dict.fromkeys(range(6), 0), lambda: console.lags(topics.texts))
    # a transaction's marker stands behind the instances, and is no record that waits
    assert broker.ends(topics.instances) == {0: (0, 23)}
    wait_until(lambda: console.lags(topics.instances) == console.lags(topics.labels) == {0: 0}, "no lag")
    running.stop()


def test_lag_of_what_waits(console, broker, topics, stage):
    """A learn lane that is held up: what stands behind its record is lag, partition by partition."""
    running = stage(*console.flags, "--keys-max", 3, "--queue-tokens", 1024)
    broker.produce(topics.instances, [(b"%d" % i, oracle.written(text=f"i {i}", labels=["l"])) for i in range(4)])
    wait_until(lambda: console.ready()[0] == 503 and "the learn lane waits" in console.ready()[1], console.ready)
    assert "keys_max" in console.ready()[1]
    assert console.metrics()['engram_errors_total{kind="keys_max"}'] == 1
    wait_until(lambda: console.lags(topics.instances) == {0: 0}, lambda: console.lags(topics.instances))  # all are read
    broker.produce(topics.instances, [(b"%d" % i, oracle.written(text=f"i {i}", labels=["l"])) for i in range(4, 9)])
    wait_until(lambda: console.lags(topics.instances) == {0: 5}, lambda: console.lags(topics.instances))
    broker.produce(topics.texts, texts(12))  # tags go on
    oracle.check_texts(broker, topics)
    running.stop()
    running.restart("--keys-max", 0)
    running.wait_ready()
    console.wait_ready()
    running.stop()


def test_ready_follows_the_broker(console, own_broker, stage):
    """503 before there is a broker and while it is gone, 200 in between; /ping is not moved by that."""
    broker = own_broker()
    broker.kill()
    running = stage(*console.flags, "-X", "reconnect.backoff.max.ms=500", broker=broker, ready=False)
    running.wait_for("console: http://127.0.0.1:")
    status, body = console.ready()
    assert status == 503 and body.strip() and console.ask("/ping")[0] == 200
    broker.restart()
    console.wait_ready()
    broker.kill()
    wait_until(lambda: console.ready()[0] == 503, console.ready)
    assert "no broker answers" in console.ready()[1]
    assert console.ask("/ping")[0] == 200
    assert console.metrics()['engram_errors_total{kind="broker"}'] >= 1
    wait_until(lambda: not any(name.startswith("engram_consumer_lag") for name in console.metrics()), "no lag known")
    broker.restart()
    console.wait_ready()
    running.stop()


def test_ready_again_at_rest(console, broker, topics, stage):
    """A topic of the learn lane that is gone and comes back: 200 again although nothing is written to it, and while the
    other topic takes records 503 stays."""
    running = stage(*console.flags, "-X", "topic.metadata.refresh.interval.ms=500")
    console.wait_ready()
    broker.delete_topics(topics.labels)
    wait_until(lambda: console.ready()[0] == 503, console.ready)
    assert "the learn lane waits for Kafka" in console.ready()[1]
    broker.produce(topics.instances, [(b"1", oracle.written(text="t", labels=["l"]))])
    wait_until(lambda: console.metrics()["engram_folds_total"] == 1, console.metrics)
    for _ in range(12):
        assert console.ready()[0] == 503
        time.sleep(0.5)  # the stage fetches anew every 5 s
    broker.create_topics(topics.labels, cleanup_policy="compact")
    console.wait_ready()
    running.stop()


def test_an_empty_assignment_is_ready(broker, topics, folder, stage):
    """More replicas than partitions: who has none is ready all the same."""
    broker.create_topics((topics.texts, 1))
    consoles = [Console(free_port()) for _ in range(2)]
    running = [stage(*c.flags, memory=folder / f"memory-{c.port}") for c in consoles]
    for c in consoles:
        c.wait_ready()
    wait_until(lambda: sorted(len(c.lags(topics.texts)) for c in consoles) == [0, 1], "one has the partition")
    for one in running:
        one.stop()


def test_hostile_clients(console, broker, topics, stage):
    """Connections that say nothing, drip bytes, send too much or never read: texts flow, and within seconds the console
    answers again."""
    running = stage(*console.flags)
    console.wait_ready()
    address = ("127.0.0.1", console.port)
    ends = threading.Event()
    held = []

    def drip():
        while not ends.is_set():
            for s in held:
                try:
                    s.send(b"x")
                except OSError:
                    pass
            time.sleep(0.5)

    for i in range(200):
        s = socket.create_connection(address)
        s.settimeout(0.1)
        s.send(b"GET /metrics HTTP/1.1\r\nHost: x\r\nX-Slow: " if i % 2 else b"")
        held.append(s)
    dripping = threading.Thread(target=drip)
    dripping.start()
    try:
        broker.produce(topics.texts, texts(600))
        oracle.check_texts(broker, topics)
        wait_until(lambda: answers(console), "the console's answer")  # while they drip on: they were cut off
    finally:
        ends.set()
        dripping.join()
    for s in held:
        s.close()
    raw = [b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n\r\n", b"GET /ping HTTP/1.1\r\n" + b"A: b\r\n" * 100_000 + b"\r\n",
           b"\0" * 5000, b"POST /ping HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n" + b"y" * 100_000]
    for bytes_ in raw:
        with socket.create_connection(address, timeout=30) as s:
            try:
                s.sendall(bytes_)
                assert b" 200 " not in s.recv(4096).split(b"\r\n")[0]
            except OSError:
                pass  # cut off
    assert console.ask("/ping")[0] == 200
    assert running.running and running.peak_bytes() < 1 << 30
    running.stop()


def answers(console):
    try:
        return console.ask("/ping")[0] == 200
    except OSError:
        return False


def test_one_address_leaves_room(console, stage):
    """Who takes all connections that an address gets keeps nobody else waiting: the first of them still stands when
    another address was answered."""
    running = stage(*console.flags)
    console.wait_ready()
    held = [socket.create_connection(("127.0.0.1", console.port), 30, ("127.0.0.2", 0)) for _ in range(100)]
    assert console.ask("/ping")[0] == 200
    held[0].setblocking(False)
    with pytest.raises(BlockingIOError):
        held[0].recv(1)
    assert held[99].recv(1) == b""
    for s in held:
        s.close()
    running.stop()


def test_a_flood_of_scrapes(console, broker, topics, stage):
    running = stage(*console.flags)
    console.wait_ready()
    ends = threading.Event()
    asked = []

    def flood():
        while not ends.is_set():
            asked.append(console.ask("/metrics")[0])

    threads = [threading.Thread(target=flood) for _ in range(4)]
    for one in threads:
        one.start()
    try:
        broker.produce(topics.texts, texts(600))
        oracle.check_texts(broker, topics)
    finally:
        ends.set()
        for one in threads:
            one.join()
    assert len(asked) > 10 and set(asked) == {200}
    running.stop()


def test_a_port_in_use(console, folder, topics, stage):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", console.port))
        taken.listen()
        running = stage(*console.flags, ready=False)
        assert running.wait() == 1
    said = [line for line in running.log().splitlines() if " error " in line]
    assert len(said) == 1 and str(console.port) in said[0] and "Address already in use" in said[0], running.log()
    assert "--port" in said[0]
    running.restart().wait_ready()
    running.stop()


def test_an_address_that_is_not_ours(console, stage):
    for address, words in (("192.0.2.1", "192.0.2.1.*--listen"), ("no such host", "listen")):
        running = stage(*console.flags, "--listen", address, ready=False)
        assert running.wait() == 1
        assert re.search(words, running.log().splitlines()[-1]), running.log()
    done = engram("run", *TINY, "--listen", "", check=False)
    assert done.returncode == 2 and "listen" in done.stderr


def test_promtool_finds_nothing(console, stage):
    running = stage(*console.flags)
    console.wait_ready()
    done = subprocess.run(["promtool", "check", "metrics"], input=console.ask("/metrics")[1], text=True,
                          capture_output=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    running.stop()


def test_prometheus_scrapes_it(console, broker, topics, folder, stage):
    """A real Prometheus takes it in: up, and a counter as it stands."""
    running = stage(*console.flags)
    console.wait_ready()
    broker.produce(topics.texts, texts(30))
    oracle.check_texts(broker, topics)
    port = free_port()
    (folder / "prometheus.yml").write_text(
        "global: {scrape_interval: 1s}\nscrape_configs:\n- job_name: engram\n  static_configs:\n"
        f"  - targets: ['127.0.0.1:{console.port}']\n", encoding="ascii")
    with open(folder / "prometheus.log", "wb") as log:
        prometheus = subprocess.Popen(
            ["prometheus", f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/tsdb",
             f"--web.listen-address=127.0.0.1:{port}"], stdout=log, stderr=log)

    def query(what):
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/v1/query?query={what}", timeout=10) as answer:
                return re.findall(r'"value":\[[^,]*,"([^"]*)"\]', answer.read().decode())
        except OSError:
            return []

    try:
        wait_until(lambda: query("engram_texts_total") == ["30"], lambda: query("engram_texts_total"), pause_s=0.5)
        assert query("up") == ["1"]
    finally:
        prometheus.terminate()
        prometheus.wait(30)
    running.stop()
