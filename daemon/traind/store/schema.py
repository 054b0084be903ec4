"""The tables of traind: they refuse rows that cannot be true. Instants are microseconds UTC."""

from sqlite_utils import Database, Migrations

APPLICATION_ID = 0x7472_6E64
"""'trnd' in the header of the file, so that nobody else's database is ever touched."""

SCHEMA_VERSION = 1
"""user_version after all migrations; a database with a higher one is left alone."""

migrations = Migrations("traind")

_FIRST = """
CREATE TABLE counter (
    name TEXT PRIMARY KEY,
    value INTEGER NOT NULL
) STRICT;
INSERT INTO counter VALUES ('id', 0);

CREATE TABLE "array" (
    id INTEGER PRIMARY KEY,
    user TEXT NOT NULL,
    uid INTEGER NOT NULL,
    spec TEXT NOT NULL,
    members INTEGER NOT NULL CHECK (members > 0),
    max_concurrent INTEGER,
    submitted_at INTEGER NOT NULL
) STRICT;

CREATE TABLE job (
    id INTEGER PRIMARY KEY,
    array_id INTEGER REFERENCES "array" (id),
    array_index INTEGER,
    user TEXT NOT NULL,
    uid INTEGER NOT NULL,
    name TEXT NOT NULL,
    spec TEXT NOT NULL,
    priority INTEGER NOT NULL,
    gpus INTEGER NOT NULL,
    state TEXT NOT NULL
        CHECK (state IN ('held', 'queued', 'starting', 'running', 'stopping', 'finished')),
    outcome TEXT CHECK (outcome IN ('succeeded', 'failed', 'cancelled', 'timed_out',
        'out_of_memory', 'gpu_fault', 'launch_failed', 'dependency_failed', 'lost')),
    cause_code TEXT,
    cause_detail TEXT,
    held_by TEXT CHECK (held_by IN ('user', 'operator', 'system')),
    hold_code TEXT,
    hold_detail TEXT,
    stop_reason TEXT CHECK (stop_reason IN
        ('preemption', 'time_limit', 'overrun', 'gpu_fault', 'requeue', 'unplug', 'cancel')),
    stop_by TEXT,
    stop_asked_at INTEGER,
    stop_term_at INTEGER,
    stop_kill_at INTEGER,
    stop_stage INTEGER CHECK (stop_stage BETWEEN 0 AND 3),
    stop_hold TEXT CHECK (stop_hold IN ('user', 'operator', 'system')),
    stop_detail TEXT,
    signals TEXT NOT NULL DEFAULT '[]',
    warnings TEXT NOT NULL DEFAULT '[]',
    attempt INTEGER NOT NULL DEFAULT 0,
    used_free INTEGER NOT NULL DEFAULT 0,
    used_retries INTEGER NOT NULL DEFAULT 0,
    used_checkpoints INTEGER NOT NULL DEFAULT 0,
    used_quick INTEGER NOT NULL DEFAULT 0,
    avoid TEXT NOT NULL DEFAULT '[]',
    avoid_until INTEGER,
    submitted_at INTEGER NOT NULL,
    eligible_at INTEGER NOT NULL,
    started_at INTEGER,
    finished_at INTEGER,
    exit_code INTEGER,
    signal TEXT,
    peak_memory_mib INTEGER,
    gpu_seconds REAL NOT NULL DEFAULT 0,
    progress_step REAL,
    progress_total REAL,
    version INTEGER NOT NULL DEFAULT 1,
    CHECK ((state = 'finished') = (outcome IS NOT NULL)),
    CHECK ((state = 'finished') = (finished_at IS NOT NULL)),
    CHECK ((state = 'held') = (held_by IS NOT NULL)),
    CHECK ((state = 'stopping') = (stop_reason IS NOT NULL)),
    CHECK ((stop_reason IS NULL) = (stop_stage IS NULL)),
    CHECK ((array_id IS NULL) = (array_index IS NULL))
) STRICT;
CREATE UNIQUE INDEX job_of_array ON job (array_id, array_index) WHERE array_id IS NOT NULL;
CREATE INDEX job_who_waits_in_order ON job (priority DESC, id) WHERE state = 'queued';
CREATE INDEX job_who_waits_in_lane ON job (user, priority, (gpus > 0), id) WHERE state = 'queued';
CREATE INDEX job_who_owns_gpus ON job (id) WHERE state IN ('starting', 'running', 'stopping');
CREATE INDEX job_in_state ON job (state, id);
CREATE INDEX job_of_user ON job (user, id);
CREATE INDEX job_of_user_in_state ON job (user, state, id);
CREATE INDEX job_whose_row_ages ON job (finished_at) WHERE state = 'finished';
CREATE INDEX job_whose_time_comes ON job (eligible_at) WHERE state = 'queued';

CREATE TABLE job_label (
    name TEXT NOT NULL,
    value TEXT NOT NULL,
    job_id INTEGER NOT NULL REFERENCES job (id),
    PRIMARY KEY (name, value, job_id)
) STRICT, WITHOUT ROWID;
CREATE INDEX job_label_of_job ON job_label (job_id);

CREATE TABLE waiting (
    uid INTEGER PRIMARY KEY,
    jobs INTEGER NOT NULL CHECK (jobs >= 0)
) STRICT;
CREATE TRIGGER waiting_counts_moves AFTER UPDATE OF state ON job
WHEN (OLD.state IN ('held', 'queued')) <> (NEW.state IN ('held', 'queued'))
BEGIN
    UPDATE waiting SET jobs = jobs + iif(NEW.state IN ('held', 'queued'), 1, -1)
    WHERE uid = NEW.uid;
END;

CREATE TABLE attempt (
    id INTEGER PRIMARY KEY,
    job_id INTEGER NOT NULL REFERENCES job (id),
    number INTEGER NOT NULL CHECK (number > 0),
    supervision TEXT NOT NULL CHECK (supervision IN ('shim', 'adopted')),
    boot_id TEXT NOT NULL,
    claimed_at INTEGER NOT NULL,
    started_at INTEGER,
    started_boottime REAL,
    ended_at INTEGER,
    outcome TEXT,
    cause_code TEXT,
    cause_detail TEXT,
    exit_code INTEGER,
    signal TEXT,
    port INTEGER,
    log_path TEXT NOT NULL,
    peak_memory_mib INTEGER,
    peak_gpu_memory_mib INTEGER,
    gpu_busy_sum REAL NOT NULL DEFAULT 0,
    gpu_busy_count INTEGER NOT NULL DEFAULT 0,
    cpu_pct_sum REAL NOT NULL DEFAULT 0,
    cpu_pct_count INTEGER NOT NULL DEFAULT 0,
    samples INTEGER NOT NULL DEFAULT 0,
    energy_wh REAL CHECK (energy_wh >= 0),
    samples_from INTEGER,
    means_from INTEGER,
    files TEXT NOT NULL DEFAULT 'all' CHECK (files IN ('all', 'log', 'none')),
    CHECK ((ended_at IS NULL) = (outcome IS NULL)),
    CHECK (files = 'all' OR ended_at IS NOT NULL),
    UNIQUE (job_id, number)
) STRICT;
CREATE INDEX attempt_whose_files_age ON attempt (files, ended_at) WHERE files <> 'none';
CREATE INDEX attempt_by_end ON attempt (ended_at);
CREATE INDEX attempt_whose_samples_age ON attempt (samples_from) WHERE samples_from IS NOT NULL;
CREATE INDEX attempt_whose_means_age ON attempt (means_from) WHERE means_from IS NOT NULL;
CREATE UNIQUE INDEX attempt_one_open_per_job ON attempt (job_id) WHERE ended_at IS NULL;
CREATE UNIQUE INDEX attempt_one_open_per_port ON attempt (port) WHERE ended_at IS NULL;

CREATE TABLE attempts_finished (
    outcome TEXT PRIMARY KEY,
    attempts INTEGER NOT NULL
) STRICT;
CREATE TRIGGER attempts_finished_counts AFTER UPDATE OF outcome ON attempt
WHEN OLD.outcome IS NULL AND NEW.outcome IS NOT NULL
BEGIN
    INSERT INTO attempts_finished VALUES (NEW.outcome, 1)
    ON CONFLICT (outcome) DO UPDATE SET attempts = attempts + 1;
END;

CREATE TABLE lease (
    id INTEGER PRIMARY KEY,
    attempt_id INTEGER NOT NULL REFERENCES attempt (id),
    gpu_uuid TEXT NOT NULL,
    gpu_index INTEGER NOT NULL,
    gpu_name TEXT NOT NULL,
    memory_mib INTEGER NOT NULL CHECK (memory_mib > 0),
    exclusive INTEGER NOT NULL CHECK (exclusive IN (0, 1)),
    baseline_mib INTEGER NOT NULL,
    busiest_pct REAL CHECK (busiest_pct BETWEEN 0 AND 100),
    unlisted_mib INTEGER NOT NULL CHECK (unlisted_mib >= 0),
    peak_mib INTEGER NOT NULL DEFAULT 0 CHECK (peak_mib >= 0),
    state TEXT NOT NULL CHECK (state IN ('held', 'cleaning', 'released')),
    held_at INTEGER NOT NULL,
    cleaning_at INTEGER,
    released_at INTEGER,
    CHECK ((state = 'released') = (released_at IS NOT NULL)),
    UNIQUE (attempt_id, gpu_uuid)
) STRICT;
CREATE UNIQUE INDEX lease_one_exclusive_per_gpu ON lease (gpu_uuid)
    WHERE state <> 'released' AND exclusive = 1;
CREATE INDEX lease_open ON lease (gpu_uuid) WHERE state <> 'released';
CREATE TRIGGER lease_exclusive_means_alone BEFORE INSERT ON lease
WHEN EXISTS (
    SELECT 1 FROM lease
    WHERE gpu_uuid = NEW.gpu_uuid AND state <> 'released' AND (exclusive = 1 OR NEW.exclusive = 1)
)
BEGIN
    SELECT RAISE(ABORT, 'the GPU is held by another attempt');
END;
CREATE TRIGGER lease_stays_alone BEFORE UPDATE OF gpu_uuid, exclusive, state ON lease
WHEN NEW.state <> 'released' AND EXISTS (
    SELECT 1 FROM lease
    WHERE id <> NEW.id AND gpu_uuid = NEW.gpu_uuid AND state <> 'released'
        AND (exclusive = 1 OR NEW.exclusive = 1)
)
BEGIN
    SELECT RAISE(ABORT, 'the GPU is held by another attempt');
END;

CREATE TABLE sample (
    attempt_id INTEGER NOT NULL REFERENCES attempt (id),
    span_s INTEGER NOT NULL CHECK (span_s IN (0, 60)),
    at INTEGER NOT NULL,
    memory_mib INTEGER,
    cpu_pct REAL,
    processes INTEGER,
    read_bytes INTEGER,
    write_bytes INTEGER,
    PRIMARY KEY (attempt_id, span_s, at)
) STRICT, WITHOUT ROWID;

CREATE TABLE gpu_sample (
    lease_id INTEGER NOT NULL REFERENCES lease (id),
    span_s INTEGER NOT NULL CHECK (span_s IN (0, 60)),
    at INTEGER NOT NULL,
    memory_mib INTEGER,
    busy_pct REAL,
    power_w REAL,
    temperature_c INTEGER,
    PRIMARY KEY (lease_id, span_s, at)
) STRICT, WITHOUT ROWID;

CREATE TABLE job_event (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    job_id INTEGER NOT NULL REFERENCES job (id),
    at INTEGER NOT NULL,
    event TEXT NOT NULL,
    state TEXT NOT NULL,
    facts TEXT NOT NULL
) STRICT;
CREATE INDEX job_event_of_job ON job_event (job_id, id);

CREATE TABLE idempotency (
    uid INTEGER NOT NULL,
    key TEXT NOT NULL,
    fingerprint BLOB NOT NULL,
    answer TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    PRIMARY KEY (uid, key)
) STRICT, WITHOUT ROWID;
CREATE INDEX idempotency_by_age ON idempotency (created_at);

CREATE TABLE control (
    name TEXT PRIMARY KEY,
    value TEXT NOT NULL,
    at INTEGER NOT NULL
) STRICT;

CREATE TABLE token (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    hash BLOB NOT NULL UNIQUE CHECK (length(hash) = 32),
    name TEXT NOT NULL,
    user TEXT NOT NULL,
    uid INTEGER NOT NULL,
    scopes TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    expires_at INTEGER NOT NULL,
    last_used_at INTEGER,
    UNIQUE (uid, name)
) STRICT;

CREATE TABLE gpu (
    uuid TEXT PRIMARY KEY,
    "index" INTEGER NOT NULL,
    name TEXT NOT NULL,
    memory_mib INTEGER NOT NULL,
    reserved_mib INTEGER NOT NULL,
    pci TEXT,
    seen_at INTEGER NOT NULL,
    cordoned_by TEXT,
    cordoned_at INTEGER,
    cordon_reason TEXT,
    drains INTEGER NOT NULL DEFAULT 0 CHECK (drains IN (0, 1)),
    CHECK ((cordoned_by IS NULL) = (cordoned_at IS NULL)),
    CHECK (cordoned_by IS NOT NULL OR (cordon_reason IS NULL AND drains = 0))
) STRICT;

CREATE TABLE gpu_ignored (
    gpu_uuid TEXT NOT NULL,
    pid INTEGER NOT NULL CHECK (pid > 0),
    started INTEGER,
    PRIMARY KEY (gpu_uuid, pid)
) STRICT, WITHOUT ROWID;

CREATE TABLE gpu_condition (
    gpu_uuid TEXT NOT NULL,
    code TEXT NOT NULL,
    ailment TEXT NOT NULL CHECK (ailment IN
        ('warn', 'unmonitored', 'degraded', 'fatal_reset', 'fatal_reboot', 'hardware')),
    lasts TEXT NOT NULL CHECK (lasts IN
        ('seen', 'a_while', 'until_reset', 'until_reboot', 'until_cleared')),
    since INTEGER NOT NULL,
    until INTEGER,
    gone_at INTEGER,
    boot_id TEXT NOT NULL,
    evidence TEXT NOT NULL,
    together INTEGER NOT NULL CHECK (together IN (0, 1)),
    CHECK ((lasts = 'a_while') = (until IS NOT NULL)),
    PRIMARY KEY (gpu_uuid, code)
) STRICT, WITHOUT ROWID;

CREATE TABLE gpu_repair (
    gpu_uuid TEXT NOT NULL,
    code TEXT NOT NULL,
    at INTEGER NOT NULL,
    by_reset INTEGER NOT NULL CHECK (by_reset IN (0, 1))
) STRICT;
CREATE INDEX gpu_repair_of_gpu ON gpu_repair (gpu_uuid);

CREATE TABLE xid (
    id INTEGER PRIMARY KEY,
    gpu_uuid TEXT NOT NULL,
    at INTEGER NOT NULL,
    number INTEGER NOT NULL,
    pid INTEGER,
    seq INTEGER,
    detail TEXT NOT NULL,
    logged INTEGER NOT NULL CHECK (logged IN (0, 1)),
    job_id INTEGER,
    attempt INTEGER,
    program TEXT,
    UNIQUE (gpu_uuid, seq)
) STRICT;
CREATE INDEX xid_by_age ON xid (at);
"""


@migrations()
def m001_first(db: Database) -> None:
    """Jobs, arrays, attempts, leases, samples, events, idempotency keys, remembered GPUs."""
    db.executescript(_FIRST)
