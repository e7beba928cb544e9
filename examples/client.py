#!/usr/bin/env python3
"""A client of a running stage: asks for a text's labels, teaches one by an example, asks again, and takes it back.

    examples/client.py --bootstrap 127.0.0.1:29092

Needs confluent-kafka (Debian: python3-confluent-kafka). docs/RECORDS.md has every field and rule of the records.
"""

import argparse
import json
import time
import uuid

from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition

TEXT = "a striped animal that looks like a horse"
EXAMPLE = "zebra-1"
LABELLED = {"text": "a horse with black and white stripes", "labels": ["animal::zebra"]}
WAIT_S = 60


def send(producer, topic, key, record):
    """Returns once the broker has the record. None is a null value: in `instances` it forgets the key."""
    failures = []
    value = None if record is None else json.dumps(record)
    producer.produce(topic, key=key, value=value, on_delivery=lambda error, _: failures.append(error))
    producer.flush(WAIT_S)
    if failures != [None]:
        raise SystemExit(f"{topic}: {failures[0] if failures else 'no answer from the broker'}")


def read_from_end(consumer, topic):
    """From now on the consumer gets what is written to any partition of the topic."""
    partitions = [TopicPartition(topic, p) for p in consumer.list_topics(topic, timeout=WAIT_S).topics[topic].partitions]
    if not partitions:
        raise SystemExit(f"there is no topic {topic}: a running stage creates it")
    for partition in partitions:
        partition.offset = consumer.get_watermark_offsets(partition, timeout=WAIT_S)[1]
    consumer.assign(partitions)


def ask(producer, consumer, text):
    """The prediction for a text: it has the text's key."""
    key = str(uuid.uuid4())
    send(producer, "texts", key, {"text": text})
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline:
        message = consumer.poll(1)
        if message is None:
            continue
        if message.error():
            raise KafkaException(message.error())
        if message.key() == key.encode():
            return json.loads(message.value())
    raise SystemExit(f"no prediction in {WAIT_S} s: is a stage running? See its /ready and its log")


def ask_until_live(producer, consumer):
    """A prediction with the example as evidence. The example is live in milliseconds, but a text may be faster still."""
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline:
        prediction = ask(producer, consumer, TEXT)
        for evidence in prediction["evidence"]:
            if evidence.get("id") == EXAMPLE:
                return prediction, evidence
        time.sleep(0.1)
    raise SystemExit(f"{EXAMPLE} is in no prediction after {WAIT_S} s: does the stage learn? See its /ready and its log")


def show(prediction):
    best = ", ".join(f"{label['label']} {label['score']:.2f}" for label in prediction["labels"][:3])
    print(f"{TEXT!r} -> {best or 'no label'} (memory version {prediction['memory_version']})")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bootstrap", default="localhost:9092", metavar="HOST:PORT", help="default: %(default)s")
    servers = {"bootstrap.servers": parser.parse_args().bootstrap}
    # murmur2_random: the same partition for a key as Java's producers choose, so that all its records are in one
    producer = Producer({**servers, "partitioner": "murmur2_random"})
    consumer = Consumer({**servers, "group.id": "engram-example", "enable.auto.commit": False})
    try:
        read_from_end(consumer, "predictions")
        show(ask(producer, consumer, TEXT))

        send(producer, "instances", EXAMPLE, LABELLED)
        print(f"taught: {EXAMPLE} is {LABELLED['labels'][0]}")
        prediction, because = ask_until_live(producer, consumer)
        show(prediction)
        print(f"because of {because['kind']} {because['id']}, similarity {because['similarity']:.2f}")

        send(producer, "instances", EXAMPLE, None)
        print(f"forgotten: {EXAMPLE}")
    except KafkaException as failure:
        raise SystemExit(f"Kafka: {failure.args[0].str()}") from None
    finally:
        consumer.close()


if __name__ == "__main__":
    main()
