-- Whose values take how much: the memory's third tier has a limit for each user and one for all.
--
-- Expand only: the release before names neither the column nor the function, and the trigger counts
-- what it writes.

ALTER TABLE memory ADD COLUMN owner text NOT NULL DEFAULT '';

-- `*` is the sum of all: no user can have that name. A value counts 1 KiB more than it has.
CREATE TABLE memory_usage (
    owner text   PRIMARY KEY,
    bytes bigint NOT NULL
);

INSERT INTO memory_usage
    SELECT name, sum(octet_length(data) + 1024) FROM memory, (VALUES ('*'), ('')) AS names (name)
    GROUP BY name;

CREATE FUNCTION memory_count() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    added   bigint := coalesce(octet_length(NEW.data) + 1024, 0);
    removed bigint := coalesce(octet_length(OLD.data) + 1024, 0);
BEGIN
    -- Everybody's first: who changes values waits here for the others, never in a circle.
    INSERT INTO memory_usage AS known VALUES ('*', added - removed)
        ON CONFLICT (owner) DO UPDATE SET bytes = known.bytes + excluded.bytes;
    INSERT INTO memory_usage AS known
        SELECT name, sum(bytes)
        FROM (VALUES (NEW.owner, added), (OLD.owner, -removed)) AS changes (name, bytes)
        WHERE name IS NOT NULL GROUP BY name
        ON CONFLICT (owner) DO UPDATE SET bytes = known.bytes + excluded.bytes;
    RETURN NULL;
END
$$;

CREATE TRIGGER memory_count AFTER INSERT OR UPDATE OR DELETE ON memory
    FOR EACH ROW EXECUTE FUNCTION memory_count();

-- Keeps a value, or says whose limit (`owner` or `all`) it would pass and what is used of it. What
-- is refused is not written at all.
CREATE FUNCTION memory_set(
    new_key text, new_data bytea, new_is_json boolean, new_owner text,
    owner_limit bigint, all_limit bigint, OUT reason text, OUT used bigint
)
LANGUAGE plpgsql SET search_path = public, pg_temp AS $$
DECLARE
    old memory_usage;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtext('memory_set'));
    SELECT owner, octet_length(data) + 1024 INTO old FROM memory WHERE key = new_key;
    SELECT named.reason, named.bytes INTO reason, used
    FROM (
        SELECT CASE owner WHEN '*' THEN 'all' ELSE 'owner' END AS reason,
            bytes - CASE WHEN owner IN ('*', old.owner) THEN coalesce(old.bytes, 0) ELSE 0 END
                AS bytes,
            CASE owner WHEN '*' THEN all_limit ELSE owner_limit END AS most
        FROM (VALUES ('*'), (new_owner)) AS names (owner)
        LEFT JOIN memory_usage USING (owner)
    ) AS named
    WHERE coalesce(named.bytes, 0) + octet_length(new_data) + 1024 > named.most
    ORDER BY named.reason DESC LIMIT 1;
    IF FOUND THEN
        used := coalesce(used, 0);
        RETURN;
    END IF;
    INSERT INTO memory (key, data, is_json, owner)
        VALUES (new_key, new_data, new_is_json, new_owner)
        ON CONFLICT (key) DO UPDATE SET data = excluded.data, is_json = excluded.is_json,
            owner = excluded.owner, updated_at = now();
END
$$;
