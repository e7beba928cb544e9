#!/usr/bin/env python3
"""A client of a running stage: sends texts, teaches a label, reads predictions (docs/RECORDS.md).

    examples/client.py --bootstrap 127.0.0.1:29092

Wants confluent-kafka (Debian: python3-confluent-kafka). Prints each text's best labels, before and after it taught one,
and what the last prediction was made of.
"""

import argparse
import json
import time
import uuid

from confluent_kafka import Consumer, KafkaException, Producer

TEXT = "a striped animal that looks like a horse"
LABELLED = {"text": "a horse with black and white stripes", "labels": ["animal::zebra"]}
WAIT_S = 60


def send(producer, topic, key, record):
    """Returns once the broker has it."""
    failures = []
    producer.produce(topic, key=key, value=json.dumps(record), on_delivery=lambda error, _: failures.append(error))
    producer.flush(WAIT_S)
    if failures != [None]:
        raise SystemExit(f"{topic}: {failures[0] if failures else 'no answer from the broker'}")


def answer_to(consumer, key):
    """The prediction under this key. The topic is read from its end, so that earlier ones are not met."""
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline:
        message = consumer.poll(1)
        if message is None:
            continue
        if message.error():
            raise KafkaException(message.error())
        if message.key() == key.encode():
            return json.loads(message.value())
    raise SystemExit(f"no prediction in {WAIT_S} s: is a stage running? Its /ready tells")


def ask(producer, consumer, text):
    key = str(uuid.uuid4())
    send(producer, "texts", key, {"text": text})
    prediction = answer_to(consumer, key)
    best = ", ".join(f"{label['label']} {label['score']:.2f}" for label in prediction["labels"][:3])
    print(f"{text!r} -> {best or 'no label'} (memory version {prediction['memory_version']})")
    return prediction


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bootstrap", default="localhost:9092", metavar="HOST:PORT", help="default: %(default)s")
    servers = {"bootstrap.servers": parser.parse_args().bootstrap}
    # murmur2_random: the partition that Java's producers choose for a key, so that all of a key's records meet in one
    producer = Producer({**servers, "partitioner": "murmur2_random"})
    consumer = Consumer({**servers, "group.id": f"client-{uuid.uuid4()}", "auto.offset.reset": "latest"})
    assigned = []
    consumer.subscribe(["predictions"], on_assign=lambda _, partitions: assigned.extend(partitions))
    deadline = time.monotonic() + WAIT_S
    while not assigned and time.monotonic() < deadline:
        consumer.poll(0.1)
    for partition in assigned:  # where it starts is settled now, not at the first fetch
        partition.offset = consumer.get_watermark_offsets(partition, timeout=WAIT_S)[1]
    consumer.assign(assigned)
    try:
        before = ask(producer, consumer, TEXT)["memory_version"]
        send(producer, "instances", "zebra-1", LABELLED)
        print(f"taught: {LABELLED['labels'][0]}")
        prediction = ask(producer, consumer, TEXT)
        while prediction["memory_version"] <= before:  # milliseconds: a text may still be faster than a label
            prediction = ask(producer, consumer, TEXT)
        evidence = prediction["evidence"][0]
        print(f"because of {evidence['kind']} {evidence.get('id') or evidence.get('label')}, "
              f"similarity {evidence['similarity']:.2f}")
    finally:
        consumer.close()


if __name__ == "__main__":
    main()
