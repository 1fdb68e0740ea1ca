CREATE TABLE {database}.queue
(
    campaign_id UUID,
    workspace_id UUID,
    email String,
    event_type Enum8('delivered' = 1, 'open' = 2, 'click' = 3, 'bounce' = 4, 'unsubscribe' = 5),
    event_time DateTime('UTC'),
    metadata String
)
ENGINE = Kafka
SETTINGS
    kafka_broker_list = '{brokers}',
    kafka_topic_list = '{topic}',
    kafka_group_name = '{database}',
    kafka_format = 'JSONEachRow',
    kafka_num_consumers = {consumers},
    kafka_thread_per_consumer = 1,
    kafka_max_block_size = 1048576,
    kafka_poll_max_batch_size = 65536,
    kafka_flush_interval_ms = {flush_age_ms},
    kafka_skip_broken_messages = 1000,
    date_time_input_format = 'best_effort',
    input_format_json_read_objects_as_strings = 1;
