-- user_version 2

CREATE TABLE activity (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    at TEXT NOT NULL,
    at_us INTEGER NOT NULL,
    by TEXT NOT NULL,
    action TEXT NOT NULL,
    resource TEXT NOT NULL,
    outcome TEXT NOT NULL
) STRICT;

CREATE INDEX activity_by_time ON activity (at_us);

CREATE TABLE artifacts (
    run TEXT NOT NULL,
    file TEXT NOT NULL,
    template_key TEXT NOT NULL,
    subscription TEXT NOT NULL,
    resource_group TEXT NOT NULL,
    template TEXT NOT NULL,
    name TEXT NOT NULL,
    output TEXT NOT NULL,               -- JSON
    created_at TEXT NOT NULL,
    created_us INTEGER NOT NULL,
    PRIMARY KEY (run, file)
) STRICT, WITHOUT ROWID;

CREATE INDEX artifacts_by_template ON artifacts (template_key, run, file);

CREATE TABLE operations (
    id TEXT NOT NULL UNIQUE,            -- lower case
    kind TEXT NOT NULL,
    subscription TEXT NOT NULL,
    location TEXT NOT NULL,
    resource TEXT NOT NULL,
    status TEXT NOT NULL,
    started_at TEXT NOT NULL,
    started_us INTEGER NOT NULL,
    ended_at TEXT,
    ended_us INTEGER,
    error TEXT,                         -- JSON
    run TEXT
) STRICT;

CREATE INDEX operations_by_end ON operations (ended_us) WHERE ended_us IS NOT NULL;

CREATE INDEX operations_unfinished ON operations (started_us, id) WHERE ended_us IS NULL;

CREATE TABLE resource_groups (
    subscription_key TEXT NOT NULL,
    name_key TEXT NOT NULL,
    subscription TEXT NOT NULL,
    name TEXT NOT NULL,
    location TEXT NOT NULL,
    tags TEXT NOT NULL,                 -- JSON
    PRIMARY KEY (subscription_key, name_key)
) STRICT, WITHOUT ROWID;

CREATE TABLE run_outputs (
    template_key TEXT NOT NULL REFERENCES templates (key) ON DELETE CASCADE,
    name_key TEXT NOT NULL,
    run TEXT NOT NULL,
    file TEXT NOT NULL,
    PRIMARY KEY (template_key, name_key),
    FOREIGN KEY (run, file) REFERENCES artifacts (run, file)
) STRICT, WITHOUT ROWID;

CREATE INDEX run_outputs_by_artifact ON run_outputs (run, file);

CREATE TABLE runs (
    id TEXT NOT NULL UNIQUE,
    template_key TEXT NOT NULL,
    subscription TEXT NOT NULL,
    resource_group TEXT NOT NULL,
    template TEXT NOT NULL,
    operation TEXT NOT NULL,
    state TEXT NOT NULL,
    finished INTEGER NOT NULL,
    phase TEXT,
    message TEXT NOT NULL,
    fault TEXT,
    queued_at TEXT NOT NULL,
    queued_us INTEGER NOT NULL,
    started_at TEXT,
    ended_at TEXT,
    ended_us INTEGER,
    memory_mib INTEGER NOT NULL,
    cpus INTEGER NOT NULL,
    attempt INTEGER NOT NULL,
    started_by TEXT NOT NULL
, holds_since TEXT) STRICT;

CREATE UNIQUE INDEX runs_active ON runs (template_key) WHERE finished = 0;

CREATE INDEX runs_by_state ON runs (state, queued_us, id);

CREATE INDEX runs_by_template ON runs (template_key, queued_us, id, state);

CREATE INDEX runs_by_time ON runs (queued_us, id, state);

CREATE INDEX runs_in_queue ON runs (queued_us, id) WHERE finished = 0;

CREATE TABLE sqlite_sequence(name,seq);

CREATE TABLE templates (
    key TEXT NOT NULL UNIQUE,           -- subscription/resource group/name, lower case
    subscription TEXT NOT NULL,
    resource_group TEXT NOT NULL,
    name TEXT NOT NULL,
    location TEXT NOT NULL,
    tags TEXT NOT NULL,                 -- JSON
    identity TEXT,                      -- JSON
    properties TEXT NOT NULL,           -- JSON; may hold secrets
    api_version TEXT NOT NULL,
    provisioning TEXT NOT NULL,
    provisioning_error TEXT,            -- JSON
    copies TEXT NOT NULL,               -- JSON; may hold secrets
    pending TEXT,                       -- JSON; may hold secrets
    exact_version TEXT,
    last_run TEXT,                      -- JSON; derived from runs
    created_at TEXT NOT NULL,
    created_us INTEGER NOT NULL,
    created_by TEXT NOT NULL,
    modified_at TEXT NOT NULL,
    modified_by TEXT NOT NULL,
    generation INTEGER NOT NULL
) STRICT;

CREATE INDEX templates_pending ON templates (key) WHERE pending IS NOT NULL;

CREATE TABLE triggers (
    template_key TEXT NOT NULL REFERENCES templates (key) ON DELETE CASCADE,
    name_key TEXT NOT NULL,
    name TEXT NOT NULL,
    kind TEXT NOT NULL,
    created_at TEXT NOT NULL,
    created_by TEXT NOT NULL,
    modified_at TEXT NOT NULL,
    modified_by TEXT NOT NULL,
    PRIMARY KEY (template_key, name_key)
) STRICT, WITHOUT ROWID;
