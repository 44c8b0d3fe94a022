-- When the run that this one retries began, where it retries one.
ALTER TABLE runs ADD COLUMN holds_since TEXT;
