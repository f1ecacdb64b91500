"""prime-spark-hook: takes signed deliveries and starts the runs that rules make of them."""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import Mapping, Sequence
from pathlib import Path

import structlog
from prometheus_client import REGISTRY

from prime_spark.accounts.users import Users
from prime_spark.config import ConfigError, fail, read_credential
from prime_spark.hook.alerts import Teller
from prime_spark.hook.firing import Firing
from prime_spark.hook.forge import Forge
from prime_spark.hook.intake import Intake
from prime_spark.hook.metrics import HookMetrics
from prime_spark.hook.people import People
from prime_spark.hook.poll import Poller
from prime_spark.hook.queue import Queue
from prime_spark.hook.repository import Repository
from prime_spark.hook.rules import Rules
from prime_spark.hook.schedule import Clock
from prime_spark.hook.scheduler import STARTING, Scheduler
from prime_spark.hook.settings import AlertmanagerConfig, HookConfig
from prime_spark.hook.signatures import check_secret
from prime_spark.hook.starter import ProcessStarter, Starter, UnitStarter
from prime_spark.hook.web.logins import Store, open_store
from prime_spark.hook.web.page import Page
from prime_spark.runtime.asgi import serve
from prime_spark.runtime.health import Health
from prime_spark.runtime.logs import configure_logging
from prime_spark.runtime.service import Service, run_service

_log = structlog.get_logger(__name__)


def secrets_of(rules: Rules) -> dict[str, list[str]]:
    """Return each source's secrets; raises ConfigError."""
    found: dict[str, list[str]] = {}
    for source in rules.sources:
        found[source.name] = []
        for name in source.secrets:
            secret = read_credential(name)
            try:
                check_secret(source.kind, secret)
            except ValueError as error:
                raise ConfigError(f"source {source.name}, credential {name!r}: {error}") from None
            if any(secret in others for others in found.values()):
                raise ConfigError(f"source {source.name}, credential {name!r}: another has it, too")
            found[source.name].append(secret)
    return found


def users_of(config: HookConfig) -> Users | None:
    """Return who may log in to the page, where there is one; raises ConfigError."""
    return None if config.web is None else Users(read_credential(config.web.users.credential))


def password_of(config: AlertmanagerConfig) -> str | None:
    """Return the password for Alertmanager, where it wants one."""
    return read_credential(config.credential) if config.credential else None


def check_commits(config: HookConfig, rules: Rules) -> None:
    """Raise ConfigError when rules need a repository and there is none."""
    if config.repository is not None:
        for where, run in rules.actions():
            if run.ref is not None and run.ref not in config.repository.refs:
                raise ConfigError(f"{where}.ref: {run.ref} is none of repository.refs")
        return
    for where, run in rules.actions():
        for name in ("commit", "ref"):
            if getattr(run, name) is not None:
                raise ConfigError(f"{where}.{name}: there is no repository configured")
    for source in rules.sources:
        if source.kind == "git":
            raise ConfigError(f"source {source.name!r}: there is no repository configured")


def open_queue(config: HookConfig) -> Queue:
    """Open the queue in the state directory; exits with one line when that cannot be done."""
    state = Path(config.state)
    # Also of whatever a run starts: events and worktrees are for nobody else.
    os.umask(0o077)
    try:
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
        if (mode := state.stat().st_mode & 0o7777) & 0o077:
            fail(
                f"state {state}: has mode {mode:04o}, so others get at it; expected 0700 "
                "(chmod 0700; in a unit: StateDirectoryMode=0700)"
            )
        return Queue(state / "queue.sqlite", max_queued=config.limits.queued_runs)
    except (OSError, sqlite3.Error) as error:
        fail(f"state {state}: {error}")


def page_store(config: HookConfig, health: Health) -> Store | None:
    """Open the file of the page; None when that cannot be done, which health says.

    Deliveries, schedules and the commands work without the page.
    """
    health.expect("page", essential=False)
    try:
        store = open_store(Path(config.state) / "page.sqlite")
    except (OSError, sqlite3.Error) as error:
        _log.exception("there is no page: its file cannot be opened")
        health.set("page", False, f"page.sqlite: {error}")
        return None
    health.set("page", True)
    return store


def tellers(config: HookConfig, queue: Queue, rules: Rules, health: Health) -> list[Forge | Teller]:
    """Return what tells others of runs; raises ConfigError."""
    found: list[Forge | Teller] = []
    if config.commit_status is not None:
        token = read_credential(config.commit_status.credential)
        found.append(Forge(config.commit_status, token, queue, health))
    if (told := config.alertmanager) is not None:
        found.append(Teller(told, password_of(told), queue, rules, health))
    return found


def run(
    config: HookConfig, rules: Rules, secrets: Mapping[str, Sequence[str]], users: Users | None
) -> int:
    """Run the hook; return the exit status."""
    configure_logging("hook", config.log_level)
    queue = open_queue(config)

    async def main_task(service: Service) -> None:
        health = Health("hook")
        health.expect("queue", essential=True)
        health.set("queue", True)
        metrics = HookMetrics(REGISTRY, rules.names())

        def beat() -> None:
            service.beat(STARTING)

        repository = None
        if config.repository is not None:
            repository = Repository(config.repository, Path(config.state), beat)
        starter: Starter = ProcessStarter()
        if config.run_socket is not None:
            starter = UnitStarter(config.run_socket)
        scheduler = Scheduler(
            config,
            queue,
            starter,
            metrics,
            health=health,
            repository=repository,
            beat=beat,
        )
        intake = Intake(
            rules,
            secrets,
            queue,
            limits=config.limits,
            health=health,
            metrics=metrics,
            wake=scheduler.wake,
        )
        async with asyncio.TaskGroup() as tasks:
            app = intake.app(config.http, REGISTRY)
            firing = None
            if (asked := config.alertmanager) is not None:
                firing = Firing(asked, password_of(asked))
                tasks.create_task(firing.run(service))
            store = None if config.web is None else page_store(config, health)
            if config.web is not None and users is not None and store is not None:
                loop = asyncio.get_running_loop()

                def wake() -> None:
                    loop.call_soon_threadsafe(scheduler.wake)

                page = Page(
                    config,
                    config.web,
                    users,
                    People(queue, rules, wake),
                    store,
                    alerts=None if firing is None else firing.latest,
                    stop=service.stop,
                )
                page.mount(app)
            tasks.create_task(serve(app, config.http, service))
            if config.intake is not None:
                tasks.create_task(serve(intake.bare_app(), config.intake, service))
            tasks.create_task(scheduler.run(service))
            if rules.schedules:
                clock = Clock(rules, queue, health=health, wake=scheduler.wake)
                tasks.create_task(clock.run(service))
            for teller in tellers(config, queue, rules, health):
                tasks.create_task(teller.run(service))
            if config.repository is not None:
                poller = Poller(
                    Repository(config.repository, Path(config.state)),
                    rules,
                    queue,
                    seconds=config.repository.poll_seconds,
                    health=health,
                    wake=scheduler.wake,
                )
                tasks.create_task(poller.run(service))

    try:
        return run_service(main_task)
    finally:
        queue.close()
