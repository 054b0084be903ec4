"""What everybody may see of a job, and the answers in which such jobs stand among one's own."""

from typing import Any

from pydantic import (
    ConfigDict,
    SerializeAsAny,
    SerializerFunctionWrapHandler,
    model_serializer,
)

from traind.job import Job, JobState, Outcome, WaitReason
from traind.jobspec import default_name
from traind.wire import AllottedGpu, At, JobView, ReasonView, View, allotted


def _declare_hidden(schema: dict[str, Any]) -> None:
    hidden = [name for name in JobView.model_fields if name not in schema["properties"]]
    schema["properties"] |= {name: {"type": "null"} for name in hidden}
    schema["required"] = sorted(schema["properties"])


class PublicJobView(View):
    """Somebody else's job: who it is of, how it stands, its GPUs and times. The rest is null."""

    model_config = ConfigDict(extra="forbid", frozen=True, json_schema_extra=_declare_hidden)

    id: int
    array_id: int | None
    array_index: int | None
    name: str
    user: str
    uid: int
    state: JobState
    outcome: Outcome | None
    reason: ReasonView | None
    eta: At | None
    submitted_at: At
    eligible_at: At
    started_at: At | None
    finished_at: At | None
    gpus: int
    gpus_allotted: list[AllottedGpu]

    @model_serializer(mode="wrap")
    def _with_hidden(self, serialize: SerializerFunctionWrapHandler):  # type: ignore[no-untyped-def]  # noqa: ANN202 a type would replace the schema
        return {**dict.fromkeys(JobView.model_fields), **serialize(self)}


AnyJobView = SerializeAsAny[JobView | PublicJobView]
"""Written as what it is; a union would try each of its members, which takes half as long again."""


class Jobs(View):
    """A page of jobs; `next` is the cursor of the page behind it, null on the last."""

    jobs: list[AnyJobView]
    next: str | None = None


class Queue(View):
    """A page of the waiting jobs in their order."""

    queue: list[AnyJobView]
    next: str | None = None


def public_name(job: Job) -> str:
    """The name that its owner gave it; one that was made from what is run would tell that."""
    made = default_name(job.spec.model_dump(include={"command", "argv", "script"}))
    return "job" if job.spec.name == made else job.spec.name


def public_reason(reason: WaitReason | None) -> ReasonView | None:
    """Why it waits, without the facts: they count what the order asks for."""
    return None if reason is None else ReasonView(code=reason.code, detail=reason.detail, facts={})


def public_view(job: Job, reason: WaitReason | None) -> PublicJobView:
    """The job as everybody may see it."""
    return PublicJobView(
        id=job.id,
        array_id=job.array_id,
        array_index=job.array_index,
        name=public_name(job),
        user=job.user,
        uid=job.uid,
        state=job.state,
        outcome=job.outcome,
        reason=public_reason(reason),
        eta=None,
        submitted_at=job.submitted_at,
        eligible_at=job.eligible_at,
        started_at=job.started_at,
        finished_at=job.finished_at,
        gpus=job.spec.gpus,
        gpus_allotted=allotted(job),
    )
