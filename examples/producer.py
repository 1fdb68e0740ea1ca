"""Publishes email-campaign events as the Django app does.

    pip install confluent-kafka
    python examples/producer.py --brokers localhost:9092 --events 1000
    python examples/producer.py --events 0 --rate 200      # 200 a second, until Ctrl-C

First it announces each campaign once, on the two lifecycle topics. An empty name leaves such a topic out.

With --print the events go to standard output instead, one a line, and nothing but Python is needed.
"""

import argparse
import itertools
import json
import random
import signal
import time
import uuid
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone

TOPIC = "campaign.event_tracking"
AUDIENCE_TOPIC = "campaign.audience_ready"
TEMPLATE_TOPIC = "campaign.template_ready"
# Of a thousand events.
EVENT_TYPES = {"delivered": 640, "open": 250, "click": 70, "bounce": 30, "unsubscribe": 10}
CAMPAIGNS_PER_WORKSPACE = 10
DAYS = 3
# Longest time that events are held back to keep the rate.
SLICE_S = 0.1


class Campaigns:
    """So many campaigns, the same ones for the same seed, ten to a workspace."""

    def __init__(self, rng: random.Random, count: int) -> None:
        identifiers = [str(uuid.UUID(int=rng.getrandbits(128), version=4)) for _ in range(count)]
        self.all = [(campaign, identifiers[i - i % CAMPAIGNS_PER_WORKSPACE]) for i, campaign in enumerate(identifiers)]

    def event(self, rng: random.Random, now: datetime) -> dict:
        """One event, with the fields and types of the Django producer; event_time is naive and in UTC."""
        campaign, workspace = rng.choice(self.all)
        happened = now - timedelta(seconds=rng.randrange(DAYS * 86_400), microseconds=rng.randrange(1_000_000))
        return {
            "campaign_id": campaign,
            "workspace_id": workspace,
            "email": f"persönlich{rng.randrange(1000)}@example.com",
            "event_type": rng.choices(list(EVENT_TYPES), list(EVENT_TYPES.values()))[0],
            "event_time": happened.isoformat(),
            "metadata": {"ip": "203.0.113.7", "links": [1, 2.5, None], "note": "naïve \u2603"},
        }


def announcements(seed: int, campaigns: int) -> Iterator[tuple[str, str]]:
    """For each campaign, the messages that its audience and its template are ready; each with its topic."""
    rng = random.Random(seed)
    started = datetime.now(timezone.utc).replace(tzinfo=None) - timedelta(days=DAYS)
    for campaign, workspace in Campaigns(rng, campaigns).all:
        message = {"campaign_id": campaign, "workspace_id": workspace}
        for topic, minutes, metadata in (
            (AUDIENCE_TOPIC, 90, {"size": rng.randrange(10_000, 50_000)}),
            (TEMPLATE_TOPIC, 30, {"template": "autumn"}),
        ):
            ready = started - timedelta(minutes=minutes, seconds=rng.randrange(600))
            yield topic, json.dumps({**message, "event_time": ready.isoformat(), "metadata": metadata})


def payloads(seed: int, campaigns: int, events: int) -> Iterator[str]:
    """The payloads of so many events, or without end for 0."""
    rng = random.Random(seed)
    campaigns = Campaigns(rng, campaigns)
    for _ in range(events) if events else itertools.count():
        now = datetime.now(timezone.utc).replace(tzinfo=None)
        yield json.dumps(campaigns.event(rng, now))


def paced(items: Iterator[str], rate: float) -> Iterator[str]:
    """The items, at most so many a second; at once for 0."""
    started = time.monotonic()
    for number, item in enumerate(items):
        early_s = number / rate - (time.monotonic() - started) if rate else 0
        if early_s > SLICE_S:
            time.sleep(early_s)
        yield item


def publish(items: Iterator[tuple[str, str]], brokers: str) -> int:
    """Publishes items to their topics until they end or a signal does; gives how many were not acknowledged."""
    from confluent_kafka import Producer

    producer = Producer({"bootstrap.servers": brokers, "enable.idempotence": True})
    # `docker stop` as Ctrl-C: what was taken is still sent.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        for topic, item in items:
            while True:
                try:
                    producer.produce(topic, value=item.encode())
                    break
                except BufferError:  # Brokers are slower than this loop, or away: wait for them.
                    producer.poll(SLICE_S)
            producer.poll(0)
    except KeyboardInterrupt:
        pass
    return producer.flush(30)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--brokers", default="localhost:9092")
    parser.add_argument("--topic", default=TOPIC)
    parser.add_argument("--audience-topic", default=AUDIENCE_TOPIC)
    parser.add_argument("--template-topic", default=TEMPLATE_TOPIC)
    parser.add_argument("--events", type=int, default=1000, help="how many; 0: until Ctrl-C (default 1000)")
    parser.add_argument("--rate", type=float, default=0, help="at most so many a second; 0: at once (default)")
    parser.add_argument("--campaigns", type=int, default=100, help="of how many campaigns (default 100)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--print", action="store_true", dest="show")
    arguments = parser.parse_args()

    items = paced(payloads(arguments.seed, arguments.campaigns, arguments.events), arguments.rate)
    if arguments.show:
        for item in items:
            print(item)
        return
    topics = {AUDIENCE_TOPIC: arguments.audience_topic, TEMPLATE_TOPIC: arguments.template_topic}
    announced = ((topics[topic], item) for topic, item in announcements(arguments.seed, arguments.campaigns) if topics[topic])
    events = ((arguments.topic, item) for item in items)
    left = publish(itertools.chain(announced, events), arguments.brokers)
    if left:
        raise SystemExit(f"{left} events were not acknowledged")


if __name__ == "__main__":
    main()
