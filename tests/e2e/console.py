"""The console of a running stage, as a client of HTTP sees it."""

import http.client
import re
import socket

from kafka import wait_until
from stage import TINY


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def metrics_read(text):
    """{"name" or "name{labels}": value} of the Prometheus text format."""
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}


class Console:
    def __init__(self, port):
        self.port = port
        self.flags = [*TINY, "--port", port]

    def ask(self, path, method="GET", body=None):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request(method, path, body)
            answer = connection.getresponse()
            return answer.status, answer.read().decode(), dict(answer.getheaders())
        finally:
            connection.close()

    def ready(self):
        status, body, _ = self.ask("/ready")
        return status, body

    def metrics(self):
        status, body, headers = self.ask("/metrics")
        assert status == 200 and headers["Content-Type"].startswith("text/plain; version=0.0.4")
        return metrics_read(body)

    def lags(self, topic):
        shown = self.metrics()
        return {int(re.search(r'partition="(\d+)"', name)[1]): value for name, value in shown.items()
                if name.startswith("engram_consumer_lag{") and f'topic="{topic}"' in name}

    def wait_ready(self):
        wait_until(lambda: self.ready()[0] == 200, self.ready)
        return self

    def wait_waits(self, words):
        """Until a lane waits for Kafka, for this reason in these words: either, where both have dead letters to write."""
        told = [(503, f"the {lane} lane waits for Kafka: {words}\n") for lane in ("tag", "learn")]
        wait_until(lambda: self.ready() in told, self.ready)
