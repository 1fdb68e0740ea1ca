"""Publishes email-campaign events as the Django app does.

    pip install confluent-kafka
    python examples/producer.py --brokers localhost:9092 --events 1000

With --print the payloads go to standard output instead, one a line, and nothing but Python is needed.
"""

import argparse
import json
import random
import uuid
from datetime import datetime, timedelta, timezone

TOPIC = "campaign.event_tracking"
EVENT_TYPES = ["delivered", "open", "click", "bounce", "unsubscribe"]


def event(rng: random.Random, now: datetime) -> dict:
    """One event, with the fields and types of the Django producer; event_time is naive and in UTC."""
    happened = now - timedelta(seconds=rng.randrange(3 * 86_400), microseconds=rng.randrange(1_000_000))
    return {
        "campaign_id": str(uuid.UUID(int=rng.getrandbits(128), version=4)),
        "workspace_id": str(uuid.UUID(int=rng.getrandbits(128), version=4)),
        "email": f"persönlich{rng.randrange(1000)}@example.com",
        "event_type": rng.choice(EVENT_TYPES),
        "event_time": happened.isoformat(),
        "metadata": {"ip": "203.0.113.7", "links": [1, 2.5, None], "note": "naïve \u2603"},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--brokers", default="localhost:9092")
    parser.add_argument("--topic", default=TOPIC)
    parser.add_argument("--events", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--print", action="store_true", dest="show")
    arguments = parser.parse_args()

    rng = random.Random(arguments.seed)
    now = datetime.now(timezone.utc).replace(tzinfo=None)
    payloads = (json.dumps(event(rng, now)) for _ in range(arguments.events))
    if arguments.show:
        for payload in payloads:
            print(payload)
        return

    from confluent_kafka import Producer

    producer = Producer({"bootstrap.servers": arguments.brokers, "enable.idempotence": True})
    for payload in payloads:
        producer.produce(arguments.topic, value=payload.encode())
        producer.poll(0)
    left = producer.flush(30)
    if left:
        raise SystemExit(f"{left} events were not acknowledged")


if __name__ == "__main__":
    main()
