"""What a wish means for a job, by who wishes it: pure, so every kind of caller can be tried."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from traind.api import decisions
from traind.api.context import Caller
from traind.api.decisions import Wish
from traind.config import JobSettings
from traind.errors import ErrorCode, TraindError
from traind.job import (
    Budget,
    HeldBy,
    Job,
    JobState,
    NeverStarted,
    StopReason,
    WaitCode,
    WaitReason,
)
from traind.jobspec import JobSpec
from traind.lifecycle import Requeue, RequeuePolicy, hold_reason, settle, submitted
from traind.store.moves import Again, Amend, Hold, Release, Stop
from traind.verdict import judge

NOW = datetime(2030, 1, 1, tzinfo=UTC)
OWNER = Caller(user="alice", uid=1001, operator=False)
OTHER = Caller(user="bob", uid=1002, operator=False)
OPERATOR = Caller(user="olga", uid=1000, operator=True)
SECOND = timedelta(seconds=1)
POLICY = RequeuePolicy(
    free_max=5,
    free_delay=SECOND,
    free_delay_max=SECOND,
    never_started_delay=SECOND,
    checkpoint_max=5,
    crash_loop_count=3,
    crash_loop_within=SECOND,
    avoid_for=timedelta(hours=24),
    neighbour_avoid=timedelta(hours=1),
)
JOB = replace(
    submitted(7, JobSpec(command="true"), user="alice", uid=1001, now=NOW),
    attempt=1,
    budget=Budget(free=3),
)


def wish(who: Caller) -> Wish:
    return Wish(who=who, now=NOW, rules=JobSettings())


def held(by: HeldBy, code: WaitCode = WaitCode.HELD) -> Job:
    reason = replace(hold_reason("somebody"), code=code)
    return replace(JOB, state=JobState.HELD, held_by=by, hold=reason)


def refused(code: ErrorCode, act: object) -> str:
    assert callable(act)
    with pytest.raises(TraindError) as caught:
        act()
    assert caught.value.code is code
    return caught.value.sentence


def test_a_user_releases_their_own_holds_only_and_an_operator_all() -> None:
    for by in (HeldBy.OPERATOR, HeldBy.SYSTEM):
        sentence = refused(
            ErrorCode.FORBIDDEN, lambda by=by: decisions.release(held(by), wish(OWNER))
        )
        assert "operator" in sentence
    assert decisions.release(held(HeldBy.USER), wish(OWNER)) == (Release(eligible_at=NOW),)
    for by in HeldBy:
        assert decisions.release(held(by), wish(OPERATOR)) == (Release(eligible_at=NOW),)


def test_a_crash_loop_is_its_owners_to_release() -> None:
    crashed = held(HeldBy.SYSTEM, WaitCode.CRASH_LOOP)
    assert decisions.release(crashed, wish(OWNER)) == (Release(eligible_at=NOW),)


def test_a_hold_is_the_holders_and_an_operators_one_stays() -> None:
    (move,) = decisions.hold(JOB, wish(OWNER))
    assert isinstance(move, Hold)
    assert move.by is HeldBy.USER
    (move,) = decisions.hold(held(HeldBy.USER), wish(OPERATOR))
    assert isinstance(move, Hold)
    assert (move.by, "olga" in move.reason.detail) == (HeldBy.OPERATOR, True)
    assert decisions.hold(held(HeldBy.OPERATOR), wish(OWNER)) == ()


def test_nobody_but_owner_and_operators_changes_a_job() -> None:
    for act in (
        lambda: decisions.cancel(JOB, wish(OTHER), at_once=False),
        lambda: decisions.hold(JOB, wish(OTHER)),
        lambda: decisions.release(JOB, wish(OTHER)),
        lambda: decisions.requeue(JOB, wish(OTHER), held=False),
        lambda: decisions.send_signal(JOB, wish(OTHER), name="USR1"),
        lambda: decisions.rerun(JOB, wish(OTHER), refusals=lambda _: ()),
        lambda: decisions.change(JOB, {"name": "x"}, wish(OTHER), refusals=lambda _: ()),
    ):
        assert "alice" in refused(ErrorCode.FORBIDDEN, act)


def test_only_operators_raise_a_priority_above_nought() -> None:
    def raised(who: Caller) -> object:
        return decisions.change(JOB, {"priority": 1}, wish(who), refusals=lambda _: ())

    assert "operators" in refused(ErrorCode.INVALID, lambda: raised(OWNER))
    assert raised(OPERATOR)


def test_a_change_that_changes_nothing_is_no_move() -> None:
    change = {"command": "true", "gpus": 0, "hold": False, "labels": {}}
    assert decisions.change(JOB, change, wish(OWNER), refusals=lambda _: ()) == []


def test_a_changed_begin_time_is_when_the_job_may_start() -> None:
    later = {"begin_at": "2031-01-01T00:00:00Z", "hold": False}
    amend, release = decisions.change(held(HeldBy.USER), later, wish(OWNER), refusals=lambda _: ())
    assert isinstance(amend, Amend)
    assert isinstance(release, Release)
    assert amend.eligible_at == release.eligible_at == datetime(2031, 1, 1, tzinfo=UTC)


def test_a_requeue_of_an_attempt_that_never_started_is_still_held_by_whom_it_says() -> None:
    starting = replace(JOB, state=JobState.STARTING)
    (move,) = decisions.requeue(starting, wish(OPERATOR), held=True)
    assert isinstance(move, Stop)
    assert move.order.reason is StopReason.REQUEUE
    stopping = replace(starting, state=JobState.STOPPING, stop=move.order)
    verdict = judge(stopping, NeverStarted(detail="the launcher is gone"))
    settled = settle(stopping, verdict, now=NOW, ran=SECOND, policy=POLICY)
    assert isinstance(settled, Requeue)
    assert (settled.held_by, settled.budget) == (HeldBy.OPERATOR, Budget())
    assert settled.hold == WaitReason(
        code=WaitCode.HELD, detail="it is held by olga until it is released"
    )


def test_a_finished_job_is_requeued_at_once() -> None:
    finished = replace(JOB, state=JobState.FINISHED)
    (move,) = decisions.requeue(finished, wish(OWNER), held=False)
    assert move == Again(by="alice", eligible_at=NOW)
