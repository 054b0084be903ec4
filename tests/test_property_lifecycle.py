"""The state machine against its table, and what it makes of endings, whatever comes together."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlite_utils
from hypothesis import given, settings
from hypothesis import strategies as st

from traind.causes import CauseCode
from traind.errors import ErrorCode, TraindError
from traind.job import (
    OWNING,
    Budget,
    Exit,
    HeldBy,
    Job,
    JobState,
    LaunchError,
    Lost,
    NeverStarted,
    Outcome,
    StopOrder,
    StopReason,
    WaitCode,
    WaitReason,
    request_of,
)
from traind.jobspec import Retry, read_spec
from traind.lifecycle import (
    Finish,
    JobEvent,
    Requeue,
    RequeuePolicy,
    after,
    settle,
    stop_order,
)
from traind.store.advance import advance, read_job
from traind.store.moves import Again, Claim, Ended, Hold, Move, NewLease, Release, Started, Stop
from traind.store.schema import migrations
from traind.verdict import Verdict, judge

NOW = datetime(2026, 1, 1, tzinfo=UTC)
SECOND = timedelta(seconds=1)

# house.md, section 4, as it is drawn there: an empty cell is a CONFLICT.
TABLE = """
         | HOLD | RELEASE | CLAIM    | STARTED | STOP     | FINISH   | REQUEUE
held     | held | queued  |          |         |          | finished |
queued   | held |         | starting |         |          | finished |
starting |      |         |          | running | stopping | finished | queued or held
running  |      |         |          |         | stopping | finished | queued or held
stopping |      |         |          |         | stopping | finished | queued or held
finished |      |         |          |         |          |          | queued or held
"""


def table() -> dict[tuple[str, str], list[str]]:
    head, *rows = [[c.strip() for c in line.split("|")] for line in TABLE.strip("\n").splitlines()]
    return {
        (row[0], event.lower()): [word for word in cell.split(" or ") if word]
        for row in rows
        for event, cell in zip(head[1:], row[1:], strict=True)
    }


def test_every_move_is_the_one_that_the_table_has() -> None:
    cells = table()
    assert len(cells) == len(JobState) * len(JobEvent)
    for (state, event), targets in cells.items():
        for held in (False, True):
            if not targets:
                with pytest.raises(TraindError) as refused:
                    after(JobState(state), JobEvent(event), held=held)
                assert refused.value.code is ErrorCode.CONFLICT
                assert state in refused.value.sentence
            else:
                wanted = targets[-1] if held else targets[0]
                assert after(JobState(state), JobEvent(event), held=held) == wanted


def test_hold_on_a_running_job_names_what_works() -> None:
    with pytest.raises(TraindError, match="requeue --hold"):
        after(JobState.RUNNING, JobEvent.HOLD)


instants = st.integers(0, 10**6).map(lambda seconds: NOW + seconds * SECOND)
spans = st.integers(0, 10**6).map(lambda seconds: seconds * SECOND)
stops = st.none() | st.builds(
    StopOrder,
    reason=st.sampled_from(StopReason),
    by=st.none() | st.just("bob"),
    asked_at=instants,
    term_at=instants,
    kill_at=instants,
    stage=st.integers(0, 3),
)
launch_errors = st.builds(
    LaunchError,
    step=st.sampled_from(["identity", "checkpoint_dir", "workdir", "exec"]),
    errno=st.integers(0, 133),
    detail=st.just("why"),
)
exits = st.one_of(
    st.builds(Exit, exit_code=st.integers(0, 255), ended_at=instants, run_s=st.floats(0, 1e6)),
    st.builds(
        Exit,
        signal=st.sampled_from(["KILL", "TERM", "SEGV", "RTMIN+3"]),
        ended_at=instants,
        run_s=st.floats(0, 1e6),
        oom_kills=st.integers(0, 2),
    ),
    st.builds(
        Exit,
        exit_code=st.sampled_from([None, 126, 127]),
        launch_error=launch_errors,
        ended_at=instants,
        run_s=st.just(0.0),
    ),
)
endings = st.one_of(
    exits, st.builds(Lost, reboot=st.booleans()), st.builds(NeverStarted, detail=st.just("why"))
)
retries = st.none() | st.builds(
    Retry,
    max=st.integers(1, 4),
    on=st.lists(
        st.sampled_from(["failed", "out_of_memory", "timed_out", "lost"]), min_size=1, unique=True
    ).map(tuple),
    delay_s=st.floats(0, 1e7),
    backoff=st.floats(1, 10),
)
policies = st.builds(
    RequeuePolicy,
    free_max=st.integers(0, 5),
    free_delay=spans,
    free_delay_max=spans,
    never_started_delay=spans,
    checkpoint_max=st.integers(0, 6),
    crash_loop_count=st.integers(1, 4),
    crash_loop_within=spans,
    avoid_for=spans,
    neighbour_avoid=spans,
)


def fresh_tables() -> bytes:
    """A database with one queued job, as bytes: quicker to open than to make."""
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        migrations.apply(sqlite_utils.Database(connection, execute_plugins=False))
        connection.execute(
            "INSERT INTO job (id, user, uid, name, spec, priority, gpus, state, submitted_at, "
            "eligible_at) VALUES (1, 'alice', 1000, 'n', :spec, 0, 1, 'queued', 0, 0)",
            {"spec": '{"command": "true"}'},
        )
        return connection.serialize()


FRESH = fresh_tables()


@contextmanager
def tables() -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        connection.row_factory = sqlite3.Row
        connection.deserialize(FRESH)
        yield connection


def a_job() -> Job:
    with tables() as connection:
        return read_job(connection, 1)


JOB = a_job()


@st.composite
def jobs(draw: st.DrawFn) -> Job:
    order: dict[str, Any] = {"command": "true"} if draw(st.booleans()) else {"argv": ["true"]}
    spec = read_spec(order | {"requeue": draw(st.booleans())})
    spec = spec.model_copy(update={"retry": draw(retries)})
    return replace(JOB, spec=spec, stop=draw(stops), state=JobState.RUNNING)


@given(jobs(), endings)
def test_only_an_exit_with_code_nought_that_nobody_asked_for_is_a_success(
    job: Job, ending: Exit | Lost | NeverStarted
) -> None:
    verdict = judge(job, ending)
    clean = isinstance(ending, Exit) and ending.exit_code == 0 and ending.launch_error is None
    assert (verdict.outcome is Outcome.SUCCEEDED) == (clean and job.stop is None)
    assert verdict.cause.detail
    if isinstance(ending, Exit):
        assert (verdict.exit_code, verdict.signal) == (ending.exit_code, ending.signal)
    else:
        assert (verdict.exit_code, verdict.signal) == (None, None)


@given(jobs(), endings, policies, spans)
def test_who_asked_for_the_end_gets_the_end(
    job: Job, ending: Exit | Lost | NeverStarted, policy: RequeuePolicy, ran: timedelta
) -> None:
    settled = settle(job, judge(job, ending), now=NOW, ran=ran, policy=policy)
    if job.stop is None:
        assert settled.verdict.outcome not in (Outcome.CANCELLED, Outcome.TIMED_OUT)
        return
    match job.stop.reason:
        case StopReason.CANCEL:
            assert isinstance(settled, Finish)
            assert settled.verdict.outcome is Outcome.CANCELLED
        case StopReason.UNPLUG:
            assert isinstance(settled, Requeue)
            assert settled.hold is not None
            assert settled.verdict.cause.code is CauseCode.UNPLUGGED
        case StopReason.PREEMPTION if not isinstance(ending, Lost):
            code = settled.verdict.cause.code
            assert code in (CauseCode.PREEMPTED, CauseCode.CHECKPOINTED)
        case _:
            pass


@given(jobs(), st.lists(st.tuples(endings, spans), max_size=40), policies)
@settings(max_examples=200)
def test_no_job_comes_back_for_ever_by_what_it_does_itself(
    job: Job, tries: list[tuple[Exit | Lost | NeverStarted, timedelta]], policy: RequeuePolicy
) -> None:
    job = replace(job, stop=None)
    retry_max = 0 if job.spec.retry is None else job.spec.retry.max
    most = policy.free_max + retry_max + policy.checkpoint_max
    back = 0
    for ending, ran in tries:
        settled = settle(job, judge(job, ending), now=NOW, ran=ran, policy=policy)
        if isinstance(settled, Finish):
            return
        assert settled.eligible_at >= NOW
        spent, had = settled.budget, job.budget
        assert spent.free >= had.free
        assert spent.retries >= had.retries
        assert spent.checkpoints >= had.checkpoints
        if not isinstance(ending, NeverStarted):
            back += 1
            assert used(spent) == used(had) + 1
        if settled.hold is not None:
            assert settled.hold.code is WaitCode.CRASH_LOOP
        assert back <= most
        job = replace(job, budget=spent)


def used(budget: Budget) -> int:
    return budget.free + budget.retries + budget.checkpoints


@given(jobs(), policies, spans)
def test_what_was_its_own_fault_is_retried_only_when_asked(
    job: Job, policy: RequeuePolicy, ran: timedelta
) -> None:
    job = replace(job, stop=None, spec=job.spec.model_copy(update={"retry": None}))
    for ending in (
        Exit(exit_code=1, ended_at=NOW, run_s=1.0),
        Exit(signal="SEGV", ended_at=NOW, run_s=1.0),
        Exit(signal="KILL", ended_at=NOW, run_s=1.0, oom_kills=1),
        Exit(exit_code=0, ended_at=NOW, run_s=1.0),
        Lost(reboot=False),
    ):
        assert isinstance(settle(job, judge(job, ending), now=NOW, ran=ran, policy=policy), Finish)


@given(spans, spans, st.sampled_from(StopReason), st.booleans(), st.none() | st.floats(0, 1800))
def test_a_stop_terminates_before_it_kills(
    grace: timedelta, lead: timedelta, reason: StopReason, at_once: bool, own: float | None
) -> None:
    for name in (None, "USR1"):
        order = {"command": "true", "checkpoint_signal": name, "grace_s": own}
        spec = read_spec(order | {"checkpoint_lead_s": own})
        found = stop_order(spec, reason, by=None, now=NOW, grace=grace, lead=lead, at_once=at_once)
        assert NOW == found.asked_at <= found.term_at <= found.kill_at
        assert found.kill_at == NOW or not at_once
        if name is None:
            assert found.term_at == NOW


def order(reason: StopReason, kill_after: int) -> StopOrder:
    kill_at = NOW + kill_after * SECOND
    return StopOrder(
        reason=reason, by=reason.value, asked_at=NOW, term_at=NOW, kill_at=kill_at, stage=0
    )


def verdict(outcome: Outcome) -> Verdict:
    return judge(JOB, Exit(exit_code=int(outcome is Outcome.FAILED), ended_at=NOW, run_s=1.0))


LEASE = NewLease(
    gpu_uuid="GPU-0",
    gpu_index=0,
    gpu_name="A",
    memory_mib=1024,
    exclusive=True,
    baseline_mib=0,
    unlisted_mib=0,
)
HELD = WaitReason(code=WaitCode.HELD, detail="because")
BACK = Requeue(verdict=verdict(Outcome.FAILED), budget=Budget(free=1), eligible_at=NOW)
HOLD = Hold(by=HeldBy.USER, reason=HELD)
MOVES: dict[str, Move] = {
    "hold": HOLD,
    "release": Release(eligible_at=NOW),
    "started": Started(boottime_s=1.0),
    "stop": Stop(order=order(StopReason.CANCEL, 9)),
    "weak stop": Stop(order=order(StopReason.PREEMPTION, 5)),
    "finish": Ended(settled=Finish(verdict=verdict(Outcome.SUCCEEDED)), run_s=2.0),
    "requeue": Ended(settled=BACK, run_s=2.0),
    "requeue held": Ended(settled=replace(BACK, hold=HELD), run_s=2.0),
}


AGAIN: dict[str, Move] = {
    "requeue": Again(by="bob", eligible_at=NOW),
    "requeue held": Again(by="bob", eligible_at=NOW, hold=HOLD),
}
"""What a person's requeue of a finished job is."""


def move_of(name: str, job: Job) -> Move:
    if name == "claim":
        ports, run_dirs = range(29600, 29700), "/runs"
        request, leases = request_of(job), (LEASE,)
        return Claim(request=request, leases=leases, boot_id="b", ports=ports, run_dirs=run_dirs)
    return AGAIN.get(name, MOVES[name]) if job.state is JobState.FINISHED else MOVES[name]


@given(st.lists(st.sampled_from(["claim", *MOVES]), max_size=25))
@settings(max_examples=150)
def test_the_store_makes_the_moves_of_the_table_and_no_other(names: list[str]) -> None:
    cells, held = table(), "requeue held"
    with tables() as connection:
        events = 0
        for name in names:
            was = read_job(connection, 1)
            move = move_of(name, was)
            event = name.removeprefix("weak ").removesuffix(" held")
            targets = cells[was.state, event]
            if not targets:
                with pytest.raises(TraindError):
                    advance(connection, 1, move, now=NOW)
                assert read_job(connection, 1) == was
                continue
            now = advance(connection, 1, move, now=NOW)
            # A start that was not noted is told with the end of the attempt.
            events += 2 if was.state is JobState.STARTING and now.state not in OWNING else 1
            assert now.state == (targets[-1] if name == held else targets[0])
            assert now.version == was.version + 1
            assert now.attempt == was.attempt + (name == "claim")
            assert_whole(connection, now)
            connection.execute(
                "UPDATE lease SET state = 'released', released_at = 1 WHERE state = 'cleaning'"
            )
        written = connection.execute("SELECT event, state FROM job_event ORDER BY id").fetchall()
        assert len(written) == events
        assert not written or written[-1]["state"] == read_job(connection, 1).state


def assert_whole(connection: sqlite3.Connection, job: Job) -> None:
    """What belongs to a state is there with it, and only with it."""
    owns = job.state in OWNING
    attempts = connection.execute("SELECT * FROM attempt ORDER BY number").fetchall()
    assert [row["number"] for row in attempts] == list(range(1, job.attempt + 1))
    assert [row["ended_at"] is None for row in attempts[-1:]] == ([owns] if attempts else [])
    assert all(row["ended_at"] is not None for row in attempts[:-1])
    held = connection.execute("SELECT * FROM lease WHERE state = 'held'").fetchall()
    assert len(held) == owns
    assert (job.outcome is None) == (job.state is not JobState.FINISHED)
    assert (job.hold is None) == (job.held_by is None) == (job.state is not JobState.HELD)
    assert (job.stop is None) == (job.state is not JobState.STOPPING)


@given(st.lists(st.tuples(st.sampled_from(StopReason), st.integers(0, 99)), min_size=1, max_size=6))
@settings(max_examples=60)
def test_a_stronger_reason_to_stop_replaces_a_weaker_and_no_deadline_moves_away(
    orders: list[tuple[StopReason, int]],
) -> None:
    with tables() as connection:
        for name in ("claim", "started"):
            advance(connection, 1, move_of(name, JOB), now=NOW)
        for reason, kill_after in orders:
            job = advance(connection, 1, Stop(order=order(reason, kill_after)), now=NOW)
        assert job.stop is not None
        strongest = max((reason for reason, _ in orders), key=lambda reason: reason.strength)
        assert job.stop.reason is strongest
        assert job.stop.by == strongest.value
        assert job.stop.kill_at == NOW + min(kill for _, kill in orders) * SECOND


def test_the_order_of_reasons_to_stop_is_the_one_of_the_house() -> None:
    order = ["cancel", "unplug", "requeue", "gpu_fault", "overrun", "time_limit", "preemption"]
    assert sorted(StopReason, key=lambda reason: -reason.strength) == order
