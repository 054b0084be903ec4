"""The OpenAPI document as a judge: a daemon whose every answer must be what its document says."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import psutil
from jsonschema import Draft202012Validator

from harness import DEADLINE_S, Answer, Daemon

FAR = "2099-01-01T00:00:00Z"
"""When the time of a job comes that is to wait all through a test."""

PROBLEM = "application/problem+json"


OF_EVERY_ANSWER = {
    *("Content-Type", "Content-Length", "Transfer-Encoding", "Date", "Server", "Connection"),
    *("Cache-Control", "X-Content-Type-Options", "X-Accel-Buffering"),
}
"""The headers that mean the same wherever they are, and are in no document."""


class Contract:
    """An OpenAPI document, and what it says of an answer."""

    def __init__(self, document: dict[str, Any]) -> None:
        self.document = document
        self._validators: dict[str, Draft202012Validator] = {}
        self._paths = {
            path: re.compile(re.sub(r"\\?\{[a-z]+\\?\}", "[^/]+", re.escape(path)))
            for path in document["paths"]
        }

    def check(self, method: str, target: str, answer: Answer) -> None:
        """Fails when the document does not allow this answer to this call."""
        name = f"{method} {target[:200]} -> {answer.status} {answer.body[:400]!r}"
        kind = answer.headers.get("Content-Type", "").partition(";")[0]
        if answer.status >= 400:
            self._check_problem(name, kind, answer)
        path = urlsplit(target).path
        items = self.items(path)
        if not items:
            assert answer.status in (404, 403), name
            return
        operation = next((item[method.lower()] for item in items if method.lower() in item), None)
        if operation is None:
            assert answer.status in (405, 403), name
            return
        response = operation["responses"].get(str(answer.status))
        assert response is not None, f"{name}: the status is not in the document"
        told = answer.headers.keys() - OF_EVERY_ANSWER - response.get("headers", {}).keys()
        assert not told, f"{name}: {told} are not in the document"
        if "content" not in response:
            assert not answer.body, name
            return
        assert kind in response["content"], f"{name}: {kind} is not in the document"
        if kind == "application/json":
            self.validate(response["content"][kind]["schema"], answer.json, name)

    def items(self, path: str) -> list[dict[str, Any]]:
        """What the document says of a path, method by method; an exact name comes first."""
        if path in self._paths:
            return [self.document["paths"][path]]
        names = [name for name, shape in self._paths.items() if shape.fullmatch(path)]
        return [self.document["paths"][name] for name in names]

    def _check_problem(self, name: str, kind: str, answer: Answer) -> None:
        assert kind == PROBLEM, name
        self.validate({"$ref": "#/components/schemas/Problem"}, answer.json, name)
        problem = answer.json
        assert problem["status"] == answer.status, name
        assert problem["type"] == f"urn:traind:problem:{problem['code']}", name
        assert problem["detail"], name
        if answer.status == 503:
            assert answer.headers.get("Retry-After") or "/readyz" in name, name

    def validate(self, schema: Mapping[str, Any], value: Any, name: str) -> None:
        """Fails when the value is not what the schema says."""
        key = json.dumps(schema, sort_keys=True)
        if key not in self._validators:
            whole = {**schema, "components": self.document["components"]}
            self._validators[key] = Draft202012Validator(whole)
        wrong = next(iter(self._validators[key].iter_errors(value)), None)
        assert wrong is None, f"{name}: {wrong}"


@dataclass
class CheckedDaemon(Daemon):
    """A daemon that checks each of its answers against its document."""

    contract: Contract | None = field(default=None, repr=False)

    def ask(
        self,
        method: str,
        path: str,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
        timeout: float = DEADLINE_S,
    ) -> Answer:
        """One call of the API, and its answer, which the document allows."""
        if self.contract is None:
            self.contract = Contract(super().ask("GET", "/openapi.json").json)
        answer = super().ask(method, path, body, headers, timeout)
        self.contract.check(method, path, answer)
        return answer

    def post(self, body: bytes, kind: str = "application/json") -> Answer:
        """The answer to a POST of these very bytes; what is refused leaves nothing behind."""
        before = self.newest()
        answer = self.ask("POST", "/v1/jobs", body, {"Content-Type": kind})
        assert (self.newest() == before) == (answer.status != 201)
        return answer

    def fields(self, refused: Answer) -> dict[str, str]:
        """The refused fields of a 422, each with its sentence."""
        assert refused.status == 422, refused.body
        return {error["field"]: error["message"] for error in refused.json.get("errors", [])}

    def waiting(self, **fields: Any) -> int:
        """Submit a job that waits all through a test; its id."""
        return self.submit("true", begin_at=FAR, **fields)

    def cpu_s(self) -> float:
        """Seconds of a core that the daemon itself has used, however busy the machine is."""
        times = psutil.Process(self.pid).cpu_times()
        return float(times.user + times.system)

    def newest(self) -> int:
        """The id of the newest job, nought without any: while it stays nothing was stored."""
        jobs = self.ask("GET", "/v1/jobs?limit=1").json["jobs"]
        return jobs[0]["id"] if jobs else 0
