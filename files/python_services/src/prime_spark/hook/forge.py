"""Commit status: GitHub, GitLab or Forgejo shows at a commit how its runs stand.

What is to be told is what the queue has and the forge has not been told yet, so nothing is lost
over a restart and no run waits for a forge. Nothing but the rule, the run and its state is told.

- GitHub: https://docs.github.com/en/rest/commits/statuses
- GitLab: https://docs.gitlab.com/api/commits/#set-commit-pipeline-status
- Forgejo: https://forgejo.org/docs/latest/user/api-usage/
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from typing import Any
from urllib.parse import quote

import httpx
import structlog

from prime_spark.hook.queue import Queue, Run, State
from prime_spark.hook.settings import CommitStatusConfig
from prime_spark.runtime.backoff import Backoff
from prime_spark.runtime.health import Health
from prime_spark.runtime.service import Service

_log = structlog.get_logger(__name__)

FORGE = "commit status"
_LOOK_SECONDS = 2.0
_TIMEOUT_SECONDS = 10.0
_LONGEST_PAUSE_SECONDS = 60.0
# What ended longer ago is no news: the forge was not configured then, or not there for a day.
_OLD_SECONDS = 86400.0
# The token is wrong or lacks a right, or it is too much: that is for all runs, and passes.
_LATER = {401, 403, 408, 425, 429}

_GITHUB: dict[State, str] = {"succeeded": "success", "cancelled": "error", "skipped": "error"}
_GITHUB |= dict.fromkeys(("queued", "starting", "running", "waiting_approval"), "pending")
_GITHUB["approved"] = "pending"
_GITLAB: dict[State, str] = {"succeeded": "success", "cancelled": "canceled", "skipped": "canceled"}
_GITLAB |= dict.fromkeys(("queued", "waiting_approval", "approved"), "pending")
_GITLAB |= dict.fromkeys(("starting", "running"), "running")


class Forge:
    """Tells the states of runs that are for a commit."""

    def __init__(
        self, config: CommitStatusConfig, token: str, queue: Queue, health: Health
    ) -> None:
        self._config = config
        self._token = token
        self._queue = queue
        self._health = health
        health.expect(FORGE, essential=False)
        health.set(FORGE, True)

    async def run(self, service: Service) -> None:
        """Tell until told to stop."""
        backoff = Backoff(1.0, _LONGEST_PAUSE_SECONDS)
        pause = _LOOK_SECONDS
        async with httpx.AsyncClient(timeout=_TIMEOUT_SECONDS, trust_env=False) as client:
            while not await service.pause(pause):
                service.beat(FORGE)
                try:
                    await self._tell_all(service, client)
                except (httpx.HTTPError, httpx.InvalidURL, ValueError, sqlite3.Error) as error:
                    # Without a URL or a header: only what went wrong.
                    problem = f"{type(error).__name__}: {error}"
                    if self._health.set(FORGE, False, problem):
                        _log.warning("cannot tell a commit's status", error=problem)
                    pause = backoff.next()
                    continue
                self._health.set(FORGE, True)
                backoff.reset()
                pause = _LOOK_SECONDS

    async def _tell_all(self, service: Service, client: httpx.AsyncClient) -> None:
        for run in await asyncio.to_thread(self._queue.untold):
            service.beat(FORGE)
            job = run.job
            old = run.ended is not None and run.ended < time.time() - _OLD_SECONDS
            if job is not None and job.commit is not None and job.report is None and not old:
                await self._tell(client, run, job.commit)
            await asyncio.to_thread(self._queue.told, run.id, run.state)

    async def _tell(self, client: httpx.AsyncClient, run: Run, commit: str) -> None:
        url, headers, body = request_of(self._config, self._token, run, commit)
        answer = await client.post(url, headers=headers, json=body)
        # GitLab refuses the state that a commit has already.
        if answer.is_success or "Cannot transition status" in answer.text[:1000]:
            return
        if answer.status_code in _LATER or answer.is_server_error:
            raise httpx.HTTPStatusError(
                f"the forge answered {answer.status_code}", request=answer.request, response=answer
            )
        _log.warning("a commit's status is refused", run=run.id, status=answer.status_code)


def request_of(
    config: CommitStatusConfig, token: str, run: Run, commit: str
) -> tuple[str, dict[str, str], dict[str, Any]]:
    """Return address, headers and body of what tells the state of a run."""
    text = f"run {run.id}: {run.state.replace('_', ' ')}"
    name = f"prime-spark/{run.rule}"
    base = config.url.rstrip("/")
    body: dict[str, Any] = {"description": text}
    if config.run_url is not None:
        body["target_url"] = config.run_url.replace("{run}", str(run.id))
    if config.kind == "gitlab":
        body |= {"state": _GITLAB.get(run.state, "failed"), "name": name}
        project = quote(config.project, safe="")
        url = f"{base}/api/v4/projects/{project}/statuses/{commit}"
        return url, {"PRIVATE-TOKEN": token}, body
    body |= {"state": _GITHUB.get(run.state, "failure"), "context": name}
    project = quote(config.project)
    if config.kind == "forgejo":
        url = f"{base}/api/v1/repos/{project}/statuses/{commit}"
        return url, {"Authorization": f"token {token}"}, body
    headers = {"Authorization": f"Bearer {token}", "Accept": "application/vnd.github+json"}
    return f"{base}/repos/{project}/statuses/{commit}", headers, body
