"""Consumes email-campaign events and writes them to ClickHouse, as one would in Python. `cargo peers` compares with it.

    pip install confluent-kafka clickhouse-connect
    python devstack/contenders/consumer.py --brokers localhost:9092 --url http://localhost:8123 --database campaigns --events 1000

It commits after each batch: a crash between an insert and its commit counts that batch twice.
"""

import argparse
import json
import uuid
from collections import Counter
from datetime import datetime

import clickhouse_connect
from confluent_kafka import Consumer

ROWS_PER_BATCH = 10_000
RAW_COLUMNS = ["campaign_id", "workspace_id", "email", "event_type", "event_time", "metadata"]
DAILY_COLUMNS = ["day", "event_type", "campaign_id", "workspace_id", "total"]


class Batch:
    """Rows and counters between two inserts."""

    def __init__(self) -> None:
        self.rows: list[tuple] = []
        self.daily: Counter[tuple] = Counter()

    def add(self, value: bytes) -> None:
        event = json.loads(value)
        campaign_id, workspace_id = uuid.UUID(event["campaign_id"]), uuid.UUID(event["workspace_id"])
        event_time = datetime.fromisoformat(event["event_time"])
        event_type = event["event_type"]
        metadata = json.dumps(event.get("metadata", {}))
        self.rows.append((campaign_id, workspace_id, event["email"], event_type, event_time, metadata))
        self.daily[(event_time.date(), event_type, campaign_id, workspace_id)] += 1

    def write(self, client) -> None:
        client.insert("email_events", self.rows, column_names=RAW_COLUMNS)
        client.insert("daily", [(*key, total) for key, total in self.daily.items()], column_names=DAILY_COLUMNS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--brokers", default="localhost:9092")
    parser.add_argument("--topic", default="campaign.event_tracking")
    parser.add_argument("--group", default="clickhouse-writer-python")
    parser.add_argument("--url", default="http://localhost:8123")
    parser.add_argument("--database", default="campaigns")
    parser.add_argument("--events", type=int, required=True, help="ends after this many")
    arguments = parser.parse_args()

    client = clickhouse_connect.get_client(dsn=arguments.url, database=arguments.database)
    consumer = Consumer(
        {
            "bootstrap.servers": arguments.brokers,
            "group.id": arguments.group,
            "auto.offset.reset": "earliest",
            "enable.auto.commit": False,
        }
    )
    consumer.subscribe([arguments.topic])
    batch, consumed = Batch(), 0
    while consumed < arguments.events:
        message = consumer.poll(1.0)
        if message is None:
            continue
        if message.error():
            raise SystemExit(message.error())
        batch.add(message.value())
        consumed += 1
        if len(batch.rows) == ROWS_PER_BATCH or consumed == arguments.events:
            batch.write(client)
            consumer.commit(asynchronous=False)
            batch = Batch()
    consumer.close()


if __name__ == "__main__":
    main()
