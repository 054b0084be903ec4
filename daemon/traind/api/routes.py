"""Routes as declarations: what validates a request is what the OpenAPI document is made of."""

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from aiohttp import web
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.json_schema import models_json_schema

from traind.access import Scope
from traind.api.forms import Form
from traind.api.overrides import OPTION_PARAMETERS, option_of
from traind.errors import ErrorCode, FieldError, TraindError
from traind.jobspec import SHORT_NAMES, JobSpec, Retry, Strict, field_errors
from traind.options import Kind, nearest
from traind.wire import Problem

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
_REF = "#/components/schemas/{model}"

_TEXT: dict[str, Any] = {"type": "string"}
_HEADER_SCHEMAS: Mapping[str, dict[str, Any]] = {
    "Idempotency-Key": {"type": "string", "minLength": 1, "maxLength": 255},
    "Last-Event-ID": {"type": "string", "pattern": "^[0-9]{0,18}$"},
}
"""What a header of a request may be, where that is not any text."""

_REFUSAL_HEADERS = {
    401: ("WWW-Authenticate",),
    416: ("Content-Range",),
    429: ("Retry-After",),
    503: ("Retry-After",),
}
"""What a refusal tells besides its problem."""

_WHAT_RUNS = ("command", "argv", "script")

_SECURITY_SCHEMES = {
    "token": {
        "type": "http",
        "scheme": "bearer",
        "description": "A token of `traind token create`, which has the scopes that a call names. "
        "On the Unix socket none is needed: the kernel says who asks.",
    }
}


class Query(BaseModel):
    """The query parameters of a route; others are refused by name."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Body(Strict):
    """A small JSON body. `spans` may come as text with a unit under their short names, or as
    seconds under the fields, which have `_s` behind.
    """

    spans: ClassVar[tuple[str, ...]] = ()


class NoQuery(Query):
    """No query parameters."""


Q = TypeVar("Q", bound=Query)


def read_query(request: web.Request, model: type[Q], *, options: bool = False) -> Q:
    """The query parameters; with `options` those of a job may stand beside them.

    Raises INVALID naming the known ones.
    """
    given = {k: v for k, v in request.query.items() if not (options and option_of(k))}
    known = (*model.model_fields, *(OPTION_PARAMETERS if options else ()))
    errors = [
        FieldError(key[:200], _unknown(key, known, job_fields=options))
        for key in given
        if key not in model.model_fields
    ]
    lists = {n for n, field in model.model_fields.items() if field.default == ()}
    errors += [
        FieldError(key[:200], "is given more than once")
        for key in given
        if key not in lists and len(request.query.getall(key)) > 1
    ]
    several: dict[str, Any] = {n: request.query.getall(n) for n in lists & given.keys()}
    try:
        named = {k: v for k, v in given.items() if k in model.model_fields}
        query = model.model_validate(named | several)
    except ValidationError as failed:
        errors += field_errors(failed, tuple(model.model_fields))
    if errors:
        sentence = "; ".join(f"{error.field}: {error.message}" for error in errors[:5])
        raise TraindError(ErrorCode.INVALID, sentence, errors[:100])
    return query


def _unknown(name: str, known: Sequence[str], *, job_fields: bool) -> str:
    """The sentence for a parameter that there is not: the known ones, of options the nearest."""
    if not known:
        return "this call takes none"
    if not job_fields:
        return f"there is no such parameter; known are {', '.join(known)}"
    if name.replace("-", "_") in JobSpec.model_fields:
        return "is given in the body, not as a parameter"
    near = nearest(name.replace("_", "-"), known)
    hint = f"did you mean {near}?" if near else f"known are {', '.join(known)}"
    return f"there is no such parameter; {hint}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """One call of the API, for who has its `scope`, None for everybody.

    `answers` gives the models of each status, none for plain text; `headers` are those of a
    request that mean something here, `tells` those of its answers; `body` is the model of its
    body, which may be missing where all its fields have defaults; `conditional`: it may answer
    304; an `event_stream` is what 200 may be as well; a `personal` one is about the caller's own
    things, so that on the Unix socket nobody needs its scope.
    """

    method: str
    path: str
    handler: Handler
    summary: str
    scope: Scope | None
    answers: Mapping[int, tuple[type[BaseModel], ...]]
    refusals: tuple[int, ...] = ()
    query: type[Query] = NoQuery
    headers: tuple[str, ...] = ()
    tells: tuple[str, ...] = ()
    takes_jobs: bool = False
    patches_job: bool = False
    body: type[Body] | None = None
    conditional: bool = False
    event_stream: bool = False
    personal: bool = False


def openapi(routes: Iterable[Route], version: str) -> dict[str, Any]:
    """The OpenAPI 3.1 document of the routes."""
    routes = list(routes)
    models: set[type[BaseModel]] = {JobSpec, Retry, Problem}
    models |= {model for route in routes for few in route.answers.values() for model in few}
    ordered = sorted(models, key=lambda model: model.__name__)
    _, definitions = models_json_schema(
        [(model, "serialization") for model in ordered if model not in (JobSpec, Retry)],
        ref_template=_REF,
    )
    schemas: dict[str, Any] = definitions["$defs"]
    schemas |= _order_schemas()
    schemas |= _body_schemas({route.body for route in routes if route.body is not None})
    paths: dict[str, Any] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route)
    return {
        "openapi": "3.1.0",
        "info": {"title": "traind", "version": version},
        "paths": paths,
        "components": {"schemas": schemas, "securitySchemes": _SECURITY_SCHEMES},
    }


def _order_schemas() -> dict[str, Any]:
    """The schemas of an order: normal names, and beside them the short ones with a unit."""
    _, definitions = models_json_schema(
        [(JobSpec, "validation"), (Retry, "validation")], ref_template=_REF
    )
    schemas: dict[str, Any] = definitions["$defs"]
    for model in (JobSpec, Retry):
        properties = schemas[model.__name__]["properties"]
        for name, short in SHORT_NAMES.items():
            if short.normal in properties:
                text = f"{short.normal} as a string with its unit"
                properties[name] = {
                    "type": ["string", "null"],
                    "description": text,
                    "examples": [short.example],
                }
    part = schemas["JobSpec"]
    schemas["JobPart"] = {**part, "title": "JobPart", "description": "An order or a part of one."}
    schemas["JobPatch"] = _patch_schema(part)
    schemas["JobSpec"] = {**part, "anyOf": [_runs(name) for name in _WHAT_RUNS]}
    return schemas


def _runs(name: str) -> dict[str, Any]:
    """The schema of an order that says by this field, and no other, what is to run."""
    own = {"type": "array" if name == "argv" else "string"}
    fields = {other: own if other == name else {"type": "null"} for other in _WHAT_RUNS}
    return {"required": [name], "properties": fields}


def _patch_schema(order: dict[str, Any]) -> dict[str, Any]:
    """The schema of a change: any field of an order, null for its default."""
    properties = {
        name: {"anyOf": [{k: v for k, v in schema.items() if k != "default"}, {"type": "null"}]}
        for name, schema in order["properties"].items()
    }
    return {"type": "object", "additionalProperties": False, "properties": properties}


def _body(route: Route) -> dict[str, Any] | None:
    """What the document says of a request's body, None for a call without one."""
    if route.takes_jobs:
        one = _ref(JobSpec)
        many = {"type": "array", "items": one, "minItems": 1, "maxItems": 1000}
        part = {"$ref": _REF.format(model="JobPart")}
        several = {
            "type": "object",
            "properties": {"defaults": part, "jobs": {**many, "items": part}},
            "required": ["jobs"],
            "additionalProperties": False,
        }
        schema: dict[str, Any] = {"anyOf": [one, many, several]}
    elif route.patches_job:
        schema = {"$ref": _REF.format(model="JobPatch")}
    elif route.body is not None:
        schema = _ref(route.body)
    else:
        return None
    fields = {} if route.body is None else route.body.model_fields
    optional = route.body is not None and not any(f.is_required() for f in fields.values())
    content = {Form.JSON.value: {"schema": schema}}
    if route.takes_jobs:
        content |= {form.value: {"schema": _TEXT} for form in Form if form.value not in content}
    return {"required": not optional, "content": content}


def _body_schemas(models: Iterable[type[Body]]) -> dict[str, Any]:
    """The schemas of small bodies, with the short names of their spans."""
    schemas: dict[str, Any] = {}
    for model in models:
        schemas[model.__name__] = model.model_json_schema(ref_template=_REF)
        schemas |= schemas[model.__name__].pop("$defs", {})
        for name in model.spans:
            schemas[model.__name__]["properties"][name] = {
                "type": "string",
                "description": f"{name}_s as a string with its unit",
                "examples": ["90s"],
            }
            _either(schemas[model.__name__], name, f"{name}_s")
    return schemas


def _either(schema: dict[str, Any], short: str, normal: str) -> None:
    """Have the schema refuse both names of a field at once."""
    schema.setdefault("allOf", []).append({"not": {"required": [short, normal]}})


def _operation(route: Route) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "summary": route.summary,
        "operationId": route.handler.__name__,
        "parameters": [
            *_path_parameters(route.path),
            *_query_parameters(route.query),
            *(_option_parameters() if route.takes_jobs else ()),
            *(
                {"name": name, "in": "header", "schema": _HEADER_SCHEMAS.get(name, _TEXT)}
                for name in route.headers
            ),
        ],
        "responses": {
            str(status): _answer(models) | _told(route.tells)
            for status, models in route.answers.items()
        },
        "security": [] if route.scope is None else [{"token": [route.scope]}],
    }
    if route.event_stream:
        operation["responses"]["200"]["content"]["text/event-stream"] = {"schema": _TEXT}
    usual = (403, 422, 503) if route.scope is None else (401, 403, 422, 429, 503)
    for status in sorted({*route.refusals, *usual}):
        operation["responses"][str(status)] = {
            "description": "refused",
            "content": {"application/problem+json": {"schema": _ref(Problem)}},
            **_told(_REFUSAL_HEADERS.get(status, ())),
        }
    if route.conditional:
        known = {"description": "it is as you know it", **_told(route.tells)}
        operation["responses"]["304"] = known
    body = _body(route)
    if body is not None:
        operation["requestBody"] = body
    return operation


def _ref(model: type[BaseModel]) -> dict[str, str]:
    return {"$ref": _REF.format(model=model.__name__)}


def _answer(models: tuple[type[BaseModel], ...]) -> dict[str, Any]:
    if not models:
        return {"description": "text", "content": {"text/plain": {"schema": _TEXT}}}
    several = [_ref(model) for model in models]
    schema = {"anyOf": several} if several[1:] else several[0]
    return {"description": "done", "content": {"application/json": {"schema": schema}}}


def _told(names: Iterable[str]) -> dict[str, Any]:
    """The headers of an answer, as far as there are any."""
    headers = {name: {"schema": _TEXT} for name in names}
    return {"headers": headers} if headers else {}


def _path_parameters(path: str) -> list[dict[str, Any]]:
    schemas: dict[str, dict[str, Any]] = {
        "id": {"type": "integer", "minimum": 1},
        "gpu": {"type": "string", "description": "its index or UUID"},
    }
    return [
        {"name": name, "in": "path", "required": True, "schema": schema}
        for name, schema in schemas.items()
        if f"{{{name}}}" in path
    ]


def _query_parameters(query: type[Query]) -> list[dict[str, Any]]:
    properties = query.model_json_schema().get("properties", {})
    return [
        {"name": name, "in": "query", "required": False, "schema": _never_null(schema)}
        for name, schema in properties.items()
    ]


def _never_null(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema of what stands in an address, where nothing is null."""
    if "anyOf" not in schema:
        return schema
    rest = {name: part for name, part in schema.items() if name not in ("anyOf", "default")}
    (own,) = (each for each in schema["anyOf"] if each != {"type": "null"})
    return {**own, **rest}


def _option_parameters() -> list[dict[str, Any]]:
    """The options of a job as query parameters."""
    return [
        {
            "name": name,
            "in": "query",
            "required": False,
            "description": option.help,
            "schema": {"type": "array", "items": _TEXT} if option.kind is Kind.PAIRS else _TEXT,
        }
        for name, option in OPTION_PARAMETERS.items()
    ]
