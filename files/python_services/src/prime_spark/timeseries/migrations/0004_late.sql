-- When hours were noted: rows that came after their chunk had been dropped are added to the rollups
-- once they cannot come again.
--
-- Expand only: the release before neither reads the column nor names it when it writes.

ALTER TABLE rollup_log ADD COLUMN noted_at timestamptz NOT NULL DEFAULT now();
