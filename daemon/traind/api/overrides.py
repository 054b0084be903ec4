"""Query parameters that are options of a job: they outweigh what the body says."""

from aiohttp import web

from traind.errors import ErrorCode, FieldError, TraindError
from traind.jobspec import SHORT_NAMES
from traind.options import BY_FLAG, Kind, Option, field_values, merged

OPTION_PARAMETERS = {
    flag.removeprefix("--"): option for flag, option in BY_FLAG.items() if flag.startswith("--")
}
"""Every long option by the name of its parameter; `_` may stand for `-`."""


def option_of(name: str) -> Option | None:
    """The option that a query parameter is; None when it is none."""
    return OPTION_PARAMETERS.get(name.replace("_", "-"))


def read_overrides(request: web.Request) -> dict[str, object]:
    """The fields that the query sets, in normal form. Raises INVALID with every wrong one."""
    values: dict[str, object] = {}
    errors: list[FieldError] = []
    for name, text in request.query.items():
        option = option_of(name)
        if option is None:
            continue
        try:
            told = field_values(option, text)
        except ValueError as wrong:
            errors.append(FieldError(name, str(wrong)[:300]))
            continue
        twice = option.kind is not Kind.PAIRS and told.keys() & values.keys()
        if twice:
            errors.append(FieldError(name, f"{min(twice)} is given more than once"))
        values = merged(values, told)
    if errors:
        sentence = "; ".join(f"{error.field}: {error.message}" for error in errors[:5])
        raise TraindError(ErrorCode.INVALID, sentence, errors[:100])
    return values


def meant_by(request: web.Request, overrides: dict[str, object]) -> dict[str, object]:
    """The same for the same query whenever it comes: an instant may be so and so long from now."""
    return overrides | {
        option.field: text
        for name, text in request.query.items()
        if (option := option_of(name)) is not None and option.kind is Kind.INSTANT
    }


def override(order: object, overrides: dict[str, object]) -> object:
    """The order with these fields in place of its own; env and labels are put together."""
    if not isinstance(order, dict) or not overrides:
        return order
    replaced = {name for name, short in SHORT_NAMES.items() if short.normal in overrides}
    return merged({k: v for k, v in order.items() if k not in replaced}, overrides)
