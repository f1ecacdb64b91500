-- Rollups of device_metrics over 5 minutes and 1 hour, and the log of hours to roll up.
--
-- Expand only: what the release before reads and writes is untouched, so it keeps working on this
-- schema. Nothing is to be contracted later.
--
-- `prime-spark-db maintain` fills the rollups. It is told what to look at by a trigger in the very
-- transaction that stores the rows: late rows are found without ever scanning for them.

CREATE TABLE device_metrics_5m (
    bucket      timestamptz      NOT NULL,
    device_id   text             NOT NULL,
    metric_name text             NOT NULL,
    samples     bigint           NOT NULL,
    average     double precision NOT NULL,
    minimum     double precision NOT NULL,
    maximum     double precision NOT NULL,
    PRIMARY KEY (device_id, metric_name, bucket)
);
SELECT create_hypertable('device_metrics_5m', by_range('bucket', INTERVAL '7 days'));

CREATE TABLE device_metrics_1h (
    bucket      timestamptz      NOT NULL,
    device_id   text             NOT NULL,
    metric_name text             NOT NULL,
    samples     bigint           NOT NULL,
    average     double precision NOT NULL,
    minimum     double precision NOT NULL,
    maximum     double precision NOT NULL,
    PRIMARY KEY (device_id, metric_name, bucket)
);
SELECT create_hypertable('device_metrics_1h', by_range('bucket', INTERVAL '30 days'));

-- Append-only and without a key: concurrent batches never wait for each other here.
CREATE TABLE rollup_log (hour timestamptz NOT NULL);
CREATE INDEX rollup_log_hour ON rollup_log (hour);

-- Hours before `rolled_before` have lost their rows to retention: what was rolled up is final.
CREATE TABLE rollup_floor (
    only_row      boolean     PRIMARY KEY DEFAULT true CHECK (only_row),
    rolled_before timestamptz NOT NULL
);
INSERT INTO rollup_floor (rolled_before) VALUES ('-infinity');

-- As its owner: who stores rows needs no right on the log.
CREATE FUNCTION note_hours() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
SET search_path = public, pg_temp AS $$
BEGIN
    INSERT INTO rollup_log (hour) SELECT DISTINCT date_trunc('hour', time, 'UTC') FROM stored;
    RETURN NULL;
END $$;
REVOKE ALL ON FUNCTION note_hours() FROM PUBLIC;
CREATE TRIGGER note_hours AFTER INSERT ON device_metrics
    REFERENCING NEW TABLE AS stored FOR EACH STATEMENT EXECUTE FUNCTION note_hours();

-- What was stored before there was a log.
INSERT INTO rollup_log (hour) SELECT DISTINCT date_trunc('hour', time, 'UTC') FROM device_metrics;
