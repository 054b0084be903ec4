"""The fields that are paths, as whole ones: the daemon does not know where the caller stands."""

from __future__ import annotations

import os

from traind.options import OPTIONS, Kind

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

_PATHS = tuple(option.field for option in OPTIONS if option.kind is Kind.PATH)


def placed(fields: Mapping[str, Any], folder: str) -> dict[str, Any]:
    """The fields with their paths from `folder` on; a conda environment's name stays a name."""
    whole = dict(fields)
    for name in _PATHS:
        path = fields.get(name)
        if not isinstance(path, str) or not path:
            continue
        path = os.path.normpath(os.path.join(folder, os.path.expanduser(path)))
        if name != "python_env" or "/" in fields[name] or os.path.isdir(f"{path}/bin"):
            whole[name] = path
    return whole
