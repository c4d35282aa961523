"""One model in a process of its own, with limits of time and memory."""

from __future__ import annotations

import multiprocessing
import os
import resource
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["in_process"]

GIGA = 1 << 30


def in_process(
    check: Callable[..., Any], *arguments: Any, seconds: float, memory: float
) -> Any | str:
    """What a check gives, or a sentence on what happened instead: whatever becomes of the process.

    memory is in GB. What the check prints is lost: exporters print whole graphs.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.sweep.check", "tests.sweep.exported"])
    mine, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(theirs, check, arguments, memory))
    process.start()
    theirs.close()
    try:
        if not mine.poll(seconds):
            return f"took more than {seconds:g} s"
        return mine.recv()
    except EOFError:
        process.join()
        return f"the process ended with {process.exitcode}"
    finally:
        process.kill()
        process.join()
        mine.close()


def _work(pipe: Any, check: Callable[..., Any], arguments: tuple[Any, ...], memory: float) -> None:
    nothing = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(nothing, stream)
    resource.setrlimit(resource.RLIMIT_DATA, (int(memory * GIGA),) * 2)
    try:
        found = check(*arguments)
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        said = " ".join(f"{type(error).__name__}: {error}".split())
        found = f"{said} ({Path(place.filename).name}:{place.lineno})"[:300]
    pipe.send(found)
