"""Runs of ansible-playbook in processes that have imported it already: a third of their cost."""

from __future__ import annotations

import multiprocessing
import os
import resource
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path


def processes(at_once: int) -> ProcessPoolExecutor:
    """A pool for `playbook`: each run gets a fresh process. Made where ansible.cfg is found."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["ansible.cli.playbook", "ansible.executor.playbook_executor"])
    return ProcessPoolExecutor(at_once, mp_context=context, max_tasks_per_child=1)


def playbook(
    arguments: Sequence[str], environment: Mapping[str, str], output: Path
) -> tuple[int, float]:
    """Run ansible-playbook; return its exit status and the seconds of processor time it took."""
    os.environ.update(environment)
    with output.open("wb") as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
    from ansible.cli.playbook import PlaybookCLI

    try:
        status = PlaybookCLI(["ansible-playbook", *arguments]).run()
    except SystemExit as ended:
        status = ended.code
    sys.stdout.flush()
    used = [resource.getrusage(w) for w in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return int(status or 0), sum(u.ru_utime + u.ru_stime for u in used)
