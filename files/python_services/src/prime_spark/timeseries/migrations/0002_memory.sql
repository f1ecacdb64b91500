-- Tier 3 of the memory. JSON is kept as its text: jsonb refuses \u0000 and reorders keys.

CREATE TABLE memory (
    key        text        PRIMARY KEY,
    data       bytea       NOT NULL,
    is_json    boolean     NOT NULL,
    updated_at timestamptz NOT NULL DEFAULT now()
);
