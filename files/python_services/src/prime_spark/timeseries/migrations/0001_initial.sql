-- The tables that ingest writes. Each is a hypertable; its primary key is what makes a message
-- that arrives twice a single row, and ends with the partitioning column.

CREATE EXTENSION IF NOT EXISTS timescaledb;

CREATE TABLE device_metrics (
    time        timestamptz      NOT NULL,
    device_id   text             NOT NULL,
    metric_name text             NOT NULL,
    value       double precision NOT NULL,
    metadata    jsonb,
    PRIMARY KEY (device_id, metric_name, time)
);
SELECT create_hypertable('device_metrics', by_range('time', INTERVAL '1 day'));

CREATE TABLE ai_inference_results (
    time           timestamptz      NOT NULL,
    event_id       uuid             NOT NULL,
    model_name     text             NOT NULL,
    input_tokens   bigint,
    output_tokens  bigint,
    prompt_chars   bigint,
    response_chars bigint,
    latency_ms     double precision NOT NULL,
    source         text             NOT NULL,
    metadata       jsonb,
    PRIMARY KEY (event_id, time)
);
SELECT create_hypertable('ai_inference_results', by_range('time', INTERVAL '7 days'));
CREATE INDEX ai_inference_results_model_time ON ai_inference_results (model_name, time DESC);

CREATE TABLE api_events (
    time        timestamptz      NOT NULL,
    event_id    uuid             NOT NULL,
    method      text             NOT NULL,
    endpoint    text             NOT NULL,
    status      smallint         NOT NULL,
    duration_ms double precision NOT NULL,
    user_name   text,
    metadata    jsonb,
    PRIMARY KEY (event_id, time)
);
SELECT create_hypertable('api_events', by_range('time', INTERVAL '7 days'));
CREATE INDEX api_events_endpoint_time ON api_events (endpoint, time DESC);
