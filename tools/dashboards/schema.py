"""Holds a dashboard against Grafana's own types, which its Foundation SDK publishes.

The SDK reads a dashboard and writes it back without the keys that it does not know. It checks no
values: those are compared with the types here. What Grafana leaves open is not looked at: the
options of a transformation and the query of a variable.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum
from functools import cache
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.cog.runtime import (
    DataqueryConfig,
    UnknownDataquery,
    panelcfg_config,
    register_dataquery_variant,
)
from grafana_foundation_sdk.cog.variants import Dataquery
from grafana_foundation_sdk.models.common import DataSourceRef
from grafana_foundation_sdk.models.dashboard import Dashboard, Panel
from grafana_foundation_sdk.models.prometheus import QueryEditorMode

from tools.dashboards.builder import TIMESCALE, Json


class SQLQuery(Dataquery):
    """What we use of Grafana's type of this name: the SDK has no queries of PostgreSQL."""

    refId: str
    datasource: DataSourceRef
    editorMode: QueryEditorMode
    format: Literal["table", "time_series"]
    rawQuery: bool
    rawSql: str

    def __init__(self, data: Json) -> None:
        self.data = data

    def to_json(self) -> Json:
        """Return the known keys, as the SDK's models do."""
        return {key: self.data[key] for key in self.data.keys() & get_type_hints(SQLQuery)}


register_default_plugins()
register_dataquery_variant(DataqueryConfig(TIMESCALE["type"], SQLQuery))


def mistakes(name: str, board: Json) -> list[str]:
    """Say what Grafana's types do not allow in a dashboard: its name, a path, what is wrong."""
    try:
        return list(_compare(board, Dashboard.from_json(board), Dashboard, f"{name}: "))
    except (AttributeError, KeyError, TypeError) as error:
        return [f"{name}: Grafana's types cannot read it: {error!r}"]


def _compare(ours: Any, theirs: Any, expected: Any, path: str) -> Iterator[str]:
    types = get_args(expected) if get_origin(expected) in (Union, UnionType) else (expected,)
    models = [each for each in types if hasattr(each, "from_json")]
    if isinstance(theirs, dict) and models:
        # The SDK does not read the links and the transformations of a panel.
        theirs = models[0].from_json(theirs)
    if isinstance(theirs, Panel) and not panelcfg_config(theirs.type_val):
        yield f"{path}.type: there is no panel {theirs.type_val!r}"
    if isinstance(theirs, UnknownDataquery):
        yield f"{path}: no data source has such a query"
    elif isinstance(ours, dict) and hasattr(theirs, "to_json"):
        model: Any = type(theirs)
        back = theirs.to_json()
        for key, value in ours.items():
            if key in back:
                hint = _hints(model)[_folded(key)]
                yield from _compare(value, back[key], hint, f"{path}.{key}")
            else:
                module = model.__module__.rpartition(".")[2]
                yield f"{path}.{key}: {module}.{model.__name__} has no such key"
    elif isinstance(ours, dict) and (inner := _inner(types, dict)):
        for key, value in ours.items():
            yield from _compare(value, theirs[key], inner[1], f"{path}.{key}")
    elif isinstance(ours, list) and (inner := _inner(types, list)):
        for number, (value, other) in enumerate(zip(ours, theirs, strict=True)):
            yield from _compare(value, other, inner[0], f"{path}[{number}]")
    elif not any(_fits(ours, each) for each in types):
        names = [each.__name__ if isinstance(each, type) else str(each) for each in types]
        yield f"{path}: {ours!r} is no {' or '.join(names)}"
    elif ours != theirs:
        yield f"{path}: {ours!r} comes back as {theirs!r}"


@cache
def _hints(model: type) -> Json:
    return {_folded(name): hint for name, hint in get_type_hints(model).items()}


def _folded(name: str) -> str:
    """Make a key and the SDK's attribute for it alike: gridPos and grid_pos, type and type_val."""
    return name.removesuffix("_val").replace("_", "").lower()


def _inner(types: tuple[Any, ...], container: type) -> tuple[Any, ...]:
    return next((get_args(each) for each in types if get_origin(each) is container), ())


def _fits(value: object, expected: Any) -> bool:
    if get_origin(expected) is Literal:
        return value in get_args(expected)
    if not isinstance(expected, type):
        return expected is Any
    if issubclass(expected, Enum):
        return value in list(expected)
    if expected is float:
        return type(value) in (int, float)
    return type(value) is expected or expected is object
