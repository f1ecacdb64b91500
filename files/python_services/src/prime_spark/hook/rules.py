"""Rules: which delivery starts which playbook run. One YAML file, and no key of it is ignored.

A run is made of what the rule says. Of a delivery it contains nothing but the values that a rule
takes out of the body, each of a type that the rule states. Neither may hold a template.
"""

from __future__ import annotations

import difflib
import fnmatch
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import msgspec
import yaml
from msgspec import UNSET, Meta, UnsetType

from prime_spark.config import Config, CredentialName, PositiveSeconds, suggestion

Kind = Literal["git", "github", "gitlab", "forgejo", "alertmanager", "standard_webhooks"]
Priority = Literal["high", "normal", "low"]
Scalar = bool | int | str

Name = Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}\Z")]
HeaderName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9-]{1,64}\Z")]
FieldPath = Annotated[str, Meta(pattern=r"^[^.\s]+(\.[^.\s]+)*\Z", max_length=200)]
Playbook = Annotated[str, Meta(pattern=r"^([A-Za-z0-9_-]+/)*[A-Za-z0-9_-]+\.ya?ml\Z")]
Tag = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_-]*\Z")]
# No file (@...), and nothing that would be taken for an option.
HostPattern = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_*!&][A-Za-z0-9_.,:!&*\[\]-]*\Z")]
VariableName = Annotated[str, Meta(pattern=r"^[a-z_][a-z0-9_]{0,63}\Z")]
Ref = Annotated[str, Meta(pattern=r"^refs/(heads|tags)/[A-Za-z0-9._/-]+\Z")]
Approval = Literal["required"]
Report = Literal["drift"]
# The rule of runs that mend what has drifted.
MEND = "mend"

# Python's own reading of a regular expression; the library documents no other.
_parser = import_module("re._parser")
_TEMPLATE = re.compile(r"\{[{%#]")
_COMMIT = "[0-9a-f]{40}([0-9a-f]{24})?"
# What a pattern is tried on, and in how many ways at most: senders choose the text, and the service
# answers nobody while a pattern is tried.
_MATCHED_CHARS = 200
_MAX_WAYS = 4 * (_MATCHED_CHARS + 1) ** 3
_MAX_BYTES = 1024 * 1024
_DAY_SECONDS = 86400.0


class RulesError(Exception):
    """The rules cannot be used; the message names file, rule and key."""


class ValueRefusedError(Exception):
    """A delivery matches a rule, but a value that the rule takes from it is not what it states."""


class Source(Config, frozen=True):
    """A sender. Two secrets are alive while one replaces the other.

    A secret is the name of a credential: a signing secret, or the token that the sender shows.
    The repository that is polled (`git`) sends nothing and has none.
    """

    name: Name
    kind: Kind
    secrets: Annotated[list[CredentialName], Meta(max_length=2)] = msgspec.field(
        default_factory=list
    )

    def __post_init__(self) -> None:
        if bool(self.secrets) == (self.kind == "git"):
            wanted = "no secrets" if self.kind == "git" else "one secret or two"
            raise ValueError(f"expected {wanted} for kind {self.kind}")


class Condition(Config, frozen=True):
    """What a header or a field has to be; exactly one of these.

    `glob`: `*`, `?` and `[...]`, where `*` also stands for `/`; `pattern`: all of the value.
    """

    equals: Scalar | UnsetType = UNSET
    one_of: Annotated[list[Scalar], Meta(min_length=1)] | UnsetType = msgspec.field(
        name="in", default=UNSET
    )
    glob: str | UnsetType = UNSET
    pattern: str | UnsetType = UNSET

    def __post_init__(self) -> None:
        if [self.equals, self.one_of, self.glob, self.pattern].count(UNSET) != 3:
            raise ValueError("expected exactly one of equals, in, glob, pattern")
        if isinstance(self.pattern, str):
            _compile(self.pattern)

    def holds(self, value: object) -> bool:
        """Return whether `value` is what is wanted; nothing but a scalar ever is."""
        if not isinstance(value, bool | int | str):
            return False
        if not isinstance(self.equals, UnsetType):
            return _same(value, self.equals)
        if not isinstance(self.one_of, UnsetType):
            return any(_same(value, each) for each in self.one_of)
        if not isinstance(value, str) or len(value) > _MATCHED_CHARS:
            return False
        if isinstance(self.glob, str):
            return fnmatch.fnmatchcase(value, self.glob)
        return isinstance(self.pattern, str) and re.fullmatch(self.pattern, value) is not None


class Match(Config, frozen=True):
    """All of these have to hold. A body's field is a path: `repository.name`, `commits.0.id`."""

    headers: dict[HeaderName, Condition] = msgspec.field(default_factory=dict)
    body: dict[FieldPath, Condition] = msgspec.field(default_factory=dict)

    def first_miss(self, headers: Mapping[str, str], body: object) -> str | None:
        """Return the header or field that is not as wanted, or None."""
        for name, condition in self.headers.items():
            if not condition.holds(headers.get(name.lower())):
                return f"header {name}"
        for path, condition in self.body.items():
            if not condition.holds(field_of(body, path)):
                return f"field {path}"
        return None


class Range(Config, frozen=True):
    """Whole numbers, both ends included."""

    min: int
    max: int

    def __post_init__(self) -> None:
        if self.min > self.max:
            raise ValueError("min is greater than max")


class BodyValue(Config, frozen=True):
    """A value from the body and its type: one of a list, a string by pattern, a whole number."""

    field: FieldPath
    enum: Annotated[list[Scalar], Meta(min_length=1)] | UnsetType = UNSET
    pattern: str | UnsetType = UNSET
    integer: Range | UnsetType = UNSET
    max_length: Annotated[int, Meta(ge=1, le=_MATCHED_CHARS)] = 100

    def __post_init__(self) -> None:
        if [self.enum, self.pattern, self.integer].count(UNSET) != 2:
            raise ValueError("expected exactly one of enum, pattern, integer")
        if isinstance(self.pattern, str):
            _compile(self.pattern)

    def take(self, body: object) -> Scalar | None:
        """Return the value of `body`; None when it is not of the type."""
        value = field_of(body, self.field)
        if not isinstance(value, bool | int | str):
            return None
        if isinstance(self.integer, Range):
            whole = isinstance(value, int) and not isinstance(value, bool)
            return value if whole and self.integer.min <= int(value) <= self.integer.max else None
        if not isinstance(self.enum, UnsetType):
            return value if any(_same(value, each) for each in self.enum) else None
        if not isinstance(value, str) or len(value) > self.max_length or _TEMPLATE.search(value):
            return None
        assert isinstance(self.pattern, str)  # noqa: S101 (one of the three is set)
        return value if re.fullmatch(self.pattern, value) else None


class Action(Config, frozen=True):
    """What is run: arguments of ansible-playbook, and what the queue has to know.

    `commit` is the field of the body that names the commit whose playbooks are played, `ref` is a
    ref whose newest commit they are of; without either the configured checkout is played. With
    `approval` the run is a plan until somebody approves it. `report` says what its result is.
    """

    playbook: Playbook
    tags: list[Tag] = msgspec.field(default_factory=list)
    limit: HostPattern | BodyValue | None = None
    check: bool = False
    priority: Priority = "normal"
    timeout_seconds: PositiveSeconds = 3600.0
    variables: dict[VariableName, Scalar] = msgspec.field(default_factory=dict)
    from_body: dict[VariableName, BodyValue] = msgspec.field(default_factory=dict)
    commit: FieldPath | None = None
    ref: Ref | None = None
    approval: Approval | None = None
    approval_seconds: PositiveSeconds | UnsetType = UNSET
    report: Report | None = None

    def __post_init__(self) -> None:
        if self.commit and self.ref:
            raise ValueError("expected one of commit and ref")
        if not isinstance(self.approval_seconds, UnsetType) and not self.approval:
            raise ValueError("approval_seconds: there is no approval: required")
        if self.approval and (self.check or self.report):
            raise ValueError("approval: a run with check or report changes nothing")
        if isinstance(self.limit, BodyValue):
            self._check_hosts(self.limit)
        for name in self.from_body:
            if name.startswith("ansible_"):
                raise ValueError(f"from_body: {name} would change how Ansible works")
            if name in self.variables:
                raise ValueError(f"from_body: {name} is one of variables, too")

    @staticmethod
    def _check_hosts(limit: BodyValue) -> None:
        if isinstance(limit.enum, UnsetType):
            raise ValueError(  # noqa: TRY004 (msgspec wants it)
                "limit: from a body only as enum, a list of hosts or groups"
            )
        for host in limit.enum:
            try:
                msgspec.convert(host, HostPattern)
            except msgspec.ValidationError:
                raise ValueError(f"limit: enum: {host!r} is no host pattern") from None


class Remediation(Config, frozen=True):
    """Limits how often the rule starts runs: per host by a cooldown, in all within a window."""

    cooldown_seconds: PositiveSeconds = 900.0
    max_runs: Annotated[int, Meta(ge=1)] = 3
    window_seconds: PositiveSeconds = 3600.0


class Rule(Config, frozen=True):
    """A delivery of `source` that matches starts `run`."""

    name: Name
    source: Name
    run: Action
    match: Match = Match()
    remediation: Remediation | None = None


class Schedule(Config, frozen=True):
    """Starts `run` each `every_seconds`, or each day `at` a time of this host (`03:30`)."""

    name: Name
    run: Action
    every_seconds: Annotated[float, Meta(ge=60)] | UnsetType = UNSET
    at: Annotated[str, Meta(pattern=r"^([01][0-9]|2[0-3]):[0-5][0-9]\Z")] | UnsetType = UNSET

    def __post_init__(self) -> None:
        if [self.every_seconds, self.at].count(UNSET) != 1:
            raise ValueError("expected exactly one of every_seconds, at")

    def next(self, last: float) -> float:
        """Return when it is due after it was at `last`; both in Unix seconds."""
        if not isinstance(self.every_seconds, UnsetType):
            return last + self.every_seconds
        hour, minute = map(int, str(self.at).split(":"))
        day = time.localtime(last)
        due = [
            time.mktime((day.tm_year, day.tm_mon, day.tm_mday + more, hour, minute, 0, 0, 0, -1))
            for more in (0, 1)
        ]
        return due[0] if due[0] > last else due[1]


class Applied(Config, frozen=True):
    """The plan that a run applies, as it was approved."""

    run: int
    plan_hash: str


class Job(Config, frozen=True):
    """What is to be run. Two that are equal are the same run."""

    rule: Name
    playbook: Playbook
    tags: list[Tag]
    limit: HostPattern | None
    check: bool
    priority: Priority
    timeout_seconds: PositiveSeconds
    variables: dict[VariableName, Scalar]
    remediation: Remediation | None = None
    commit: str | None = None
    ref: Ref | None = None
    approval_seconds: PositiveSeconds | None = None
    applies: Applied | None = None
    report: Report | None = None

    @property
    def plans(self) -> bool:
        """Whether the run makes a plan that is to be approved."""
        return self.approval_seconds is not None and self.applies is None

    def arguments(self) -> list[str]:
        """Return the arguments of ansible-playbook, without inventory and variables."""
        options = ["--check", "--diff"] if self.check or self.plans else []
        options += ["--tags", ",".join(self.tags)] if self.tags else []
        options += ["--limit", self.limit] if self.limit else []
        return [*options, self.playbook]


class Rules(Config, frozen=True):
    """The whole file. The first rule that matches a delivery is the one that counts.

    `mend` is what mends a role of a host that has drifted: it is planned, and waits for approval.
    """

    sources: Annotated[list[Source], Meta(min_length=1)]
    playbooks: Annotated[list[Playbook], Meta(min_length=1)]
    rules: list[Rule]
    schedules: list[Schedule] = msgspec.field(default_factory=list)
    mend: Action | None = None

    def names(self) -> list[str]:
        """Return the names that runs have as their rule."""
        own = [*(rule.name for rule in self.rules), *(each.name for each in self.schedules)]
        return own if self.mend is None else [*own, MEND]

    def actions(self) -> Iterator[tuple[str, Action]]:
        """Yield all that can be run, and where it stands."""
        yield from ((f"rule {rule.name!r}, run", rule.run) for rule in self.rules)
        yield from ((f"schedule {each.name!r}, run", each.run) for each in self.schedules)
        if self.mend is not None:
            yield MEND, self.mend

    def action(self, name: str) -> Action | None:
        """Return what is run under the name of a rule, of a schedule or of `mend`."""
        named = {rule.name: rule.run for rule in self.rules}
        named |= {each.name: each.run for each in self.schedules}
        return named.get(name, self.mend if name == MEND else None)

    def source(self, name: str) -> Source | None:
        """Return the source of that name."""
        return next((source for source in self.sources if source.name == name), None)

    def job(self, source: str, headers: Mapping[str, str], body: object) -> Job | None:
        """Return what a delivery starts; None when no rule matches.

        Names of `headers` are in lower case. Raises ValueRefusedError.
        """
        for rule in self.rules:
            if rule.source == source and rule.match.first_miss(headers, body) is None:
                return _job(rule.name, rule.run, body, rule.remediation)
        return None

    def scheduled(self, name: str) -> Job | None:
        """Return what the schedule of that name starts."""
        found = next((each for each in self.schedules if each.name == name), None)
        return None if found is None else _job(name, found.run)

    def mending(self, host: str, role: str) -> Job | None:
        """Return what plans to mend a role of a host; None when there is no `mend`.

        Raises ValueError when host or role cannot be a limit or a tag.
        """
        if self.mend is None:
            return None
        limit, tag = limit_of([host]), msgspec.convert(role, Tag)
        job = _job(MEND, self.mend)
        return msgspec.structs.replace(job, limit=limit, tags=[tag])

    def misses(self, source: str, headers: Mapping[str, str], body: object) -> dict[str, str]:
        """Return, for each rule that does not match, what first speaks against it."""
        found: dict[str, str] = {}
        for rule in self.rules:
            if rule.source != source:
                found[rule.name] = f"is for source {rule.source}"
            elif miss := rule.match.first_miss(headers, body):
                found[rule.name] = f"{miss} does not match"
        return found


def limit_of(hosts: list[str]) -> str:
    """Return the limit that means these hosts; raises ValueError when it would mean others."""
    for host in hosts:
        if set(host) & set("*!&:,[]"):
            raise ValueError(f"{host!r} is not the name of one host")
    return msgspec.convert(",".join(hosts), HostPattern)


def field_of(body: object, path: str) -> object:
    """Return what is at a path of keys and indexes; None where there is nothing."""
    value = body
    for key in path.split("."):
        if isinstance(value, dict):
            value = value.get(key)
        elif isinstance(value, list) and key.isascii() and key.isdigit() and len(key) < 6:
            value = value[int(key)] if int(key) < len(value) else None
        else:
            return None
    return value


def load_rules(path: Path) -> Rules:
    """Read the rules at `path`; raise RulesError with what is wrong and what is expected."""
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise RulesError(f"{path}: has more than {_MAX_BYTES} bytes")
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RulesError(f"cannot read the rules: {error}") from None
    return read_rules(text, str(path))


def read_rules(text: str, origin: str) -> Rules:
    """Return the rules in `text`; `origin` names them in errors."""
    try:
        data = yaml.load(text, Loader=_Loader)  # noqa: S506 (a SafeLoader)
    except yaml.YAMLError as error:
        raise RulesError(f"{origin}: no valid YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise RulesError(f"{origin}: no valid YAML: nested too deep") from None
    for place, value in _strings(data, "$"):
        if found := _TEMPLATE.search(value):
            raise RulesError(
                f"{origin}: {_place(place, data)}: a template ({found[0]}) is not allowed: "
                "expected plain text"
            )
    try:
        rules = msgspec.convert(data, Rules)
    except msgspec.ValidationError as error:
        what, _, place = str(error).partition(" - at `")
        place = place[place.find("$") :].rstrip("`") if place else "$"
        where = _place(_named(place, data), data)
        raise RulesError(f"{origin}: {where}: {what}{_expected(what, place)}") from None
    for where, what in _contradictions(rules):
        raise RulesError(f"{origin}: {where}: {what}")
    return rules


def _job(
    rule: str, run: Action, body: object = None, remediation: Remediation | None = None
) -> Job:
    taken: dict[str, Scalar] = {}
    wanted = dict(run.from_body)
    if isinstance(run.limit, BodyValue):
        wanted["limit"] = run.limit
    if run.commit is not None:
        wanted["commit"] = BodyValue(field=run.commit, pattern=_COMMIT)
    for name, wish in wanted.items():
        value = wish.take(body)
        if value is None:
            raise ValueRefusedError(f"field {wish.field} is not what rule {rule} takes")
        taken[name] = value
    limit = str(taken.pop("limit")) if isinstance(run.limit, BodyValue) else run.limit
    commit = str(taken.pop("commit")) if run.commit is not None else None
    seconds = None
    if run.approval:
        given = run.approval_seconds
        seconds = _DAY_SECONDS if isinstance(given, UnsetType) else given
    return Job(
        rule=rule,
        playbook=run.playbook,
        tags=run.tags,
        limit=limit,
        check=run.check,
        priority=run.priority,
        timeout_seconds=run.timeout_seconds,
        variables={**run.variables, **taken},
        remediation=remediation,
        commit=commit,
        ref=run.ref,
        approval_seconds=seconds,
        report=run.report,
    )


def _contradictions(rules: Rules) -> Iterator[tuple[str, str]]:
    """Yield places and what is wrong there, as far as types do not tell."""
    yield from _without_body(rules)
    for what, names in (
        ("sources", [source.name for source in rules.sources]),
        ("rules and schedules", rules.names()),
    ):
        for name in names:
            if names.count(name) > 1:
                yield what, f"there are two with the name {name!r}"
    secrets = [(source.name, secret) for source in rules.sources for secret in source.secrets]
    for number, (name, secret) in enumerate(secrets):
        for other, same in secrets[:number]:
            if same == secret:
                yield f"source {name!r}, secrets", f"{secret!r} is of source {other!r}, too"
    sources = [source.name for source in rules.sources]
    for rule in rules.rules:
        yield from _unknown(f"rule {rule.name!r}, source", rule.source, sources)
    for where, run in rules.actions():
        yield from _unknown(f"{where}.playbook", run.playbook, rules.playbooks)
        for name in ("limit", "commit"):
            if name in run.from_body:
                yield f"{where}.from_body", f"{name} is no variable; expected run.{name}"


def _without_body(rules: Rules) -> Iterator[tuple[str, str]]:
    """Yield what is wrong with what no delivery starts."""
    for schedule in rules.schedules:
        if _of_body(schedule.run):
            yield f"schedule {schedule.name!r}, run", "there is no body to take a value from"
    if (mend := rules.mend) is not None:
        if _of_body(mend) or mend.limit or mend.tags:
            yield MEND, "limit and tags are the host and its role; there is no body"
        if not mend.approval:
            yield MEND, "expected approval: required"


def _of_body(run: Action) -> bool:
    return bool(run.from_body or run.commit or isinstance(run.limit, BodyValue))


def _unknown(where: str, value: str, known: list[str]) -> Iterator[tuple[str, str]]:
    if value not in known:
        close = difflib.get_close_matches(value, known, n=1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        yield where, f"{value!r} is none of {', '.join(known)}{hint}"


def _place(path: str, data: object) -> str:
    """Return msgspec's path with the name of the rule or source instead of its number."""
    found = re.match(r"\$\.(rules|sources|schedules)\[(\d+)\]\.?(.*)", path)
    if not found:
        return path.removeprefix("$.").removeprefix("$") or "the file"
    kind, number, rest = found[1], int(found[2]), found[3]
    entry = field_of(data, f"{kind}.{number}")
    name = entry.get("name", number) if isinstance(entry, dict) else number
    return f"{kind[:-1]} {name!r}" + (f", {rest}" if rest else "")


def _named(place: str, data: object) -> str:
    """Return msgspec's path with the key of a mapping where it says `[...]`."""
    path, _, rest = place.partition("[...]")
    if not rest and not place.endswith("[...]"):
        return place
    kind = _MAPPINGS.get(path.rpartition(".")[2])
    entries = field_of(data, path.removeprefix("$.").replace("[", ".").replace("]", ""))
    for key, value in entries.items() if isinstance(entries, dict) else ():
        try:
            msgspec.convert(value, kind)
        except msgspec.ValidationError:
            return f"{path}.{key}{rest}"
    return place


def _expected(what: str, place: str) -> str:
    """Return what helps to mend what msgspec has found, or nothing."""
    if found := re.match(r"Invalid enum value '(.*)'", what):
        known = get_args(_CHOICES[place.rpartition(".")[2]])
        close = difflib.get_close_matches(found[1], known, n=1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        return f": expected one of {', '.join(known)}{hint}"
    return suggestion(what, Rules)


def _strings(value: object, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _strings(key, path)
            yield from _strings(item, f"{path}.{key}")
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from _strings(item, f"{path}[{number}]")


_CHOICES: dict[str, Any] = {
    "kind": Kind,
    "priority": Priority,
    "approval": Approval,
    "report": Report,
}
_MAPPINGS: dict[str, Any] = {
    "headers": Condition,
    "body": Condition,
    "from_body": BodyValue,
    "variables": Scalar,
}


def _same(value: Scalar, wanted: Scalar) -> bool:
    # 1 == True
    return type(value) is type(wanted) and value == wanted


def _compile(pattern: str) -> None:
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise ValueError(f"pattern {pattern!r} is no regular expression: {error}") from None
    if _ways(_parser.parse(pattern)) > _MAX_WAYS:
        raise ValueError(
            f"pattern {pattern!r} can be tried in too many ways: expected no back reference, no "
            "choice or repetition in a repetition, and three open repetitions at most"
        )


def _ways(items: Iterable[tuple[Any, Any]]) -> int:
    """Return in how many ways a text can be tried, at most; of repetitions each count is one."""
    ways = 1
    for what, argument in items:
        name, inner = str(what), 1
        if name in {"MAX_REPEAT", "MIN_REPEAT", "POSSESSIVE_REPEAT"}:
            least, most = (min(int(count), _MATCHED_CHARS) for count in argument[:2])
            once = min(_ways(argument[2]), _MAX_WAYS + 1)
            inner = once**most * (most - least + 1)
        elif name == "BRANCH":
            inner = sum(_ways(choice) for choice in argument[1])
        elif name in {"SUBPATTERN", "ASSERT", "ASSERT_NOT"}:
            inner = _ways(argument[-1])
        elif name == "ATOMIC_GROUP":
            inner = _ways(argument)
        elif name not in {"ANY", "AT", "CATEGORY", "IN", "LITERAL", "NOT_LITERAL"}:
            # A reference to a group: its text may be as long as the value.
            inner = _MAX_WAYS + 1
        ways = min(ways * inner, _MAX_WAYS + 1)
    return ways


class _Loader(yaml.SafeLoader):
    """YAML in which a key stands once, and nothing is an alias of something else."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()  # type: ignore[no-untyped-call]
            raise yaml.MarkedYAMLError(None, None, "aliases are not allowed", event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for number, key in enumerate(keys):
            if key in keys[:number]:
                mark = node.value[number][0].start_mark
                raise yaml.MarkedYAMLError(None, None, f"a second key {key!r}", mark)
        return super().construct_mapping(node, deep)
