"""One model in a process of its own, with limits of time and memory."""

from __future__ import annotations

import multiprocessing
import resource
import traceback
from pathlib import Path
from typing import Any

from tests.sweep.check import Row, check

__all__ = ["in_process"]

GIGA = 1 << 30


def in_process(family: str, name: str, largest: float, seconds: float, memory: float) -> Row:
    """The row of one model; whatever happens to the process is told in it."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.sweep.check"])
    mine, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(theirs, family, name, largest, memory))
    process.start()
    theirs.close()
    try:
        if not mine.poll(seconds):
            return Row(name, detail=f"took more than {seconds:g} s")
        row: Row = mine.recv()
        return row
    except EOFError:
        process.join()
        return Row(name, detail=f"the process ended with {process.exitcode}")
    finally:
        process.kill()
        process.join()


def _work(pipe: Any, family: str, name: str, largest: float, memory: float) -> None:
    resource.setrlimit(resource.RLIMIT_DATA, (int(memory * GIGA),) * 2)
    try:
        row = check(family, name, largest)
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        said = " ".join(f"{type(error).__name__}: {error}".split())
        row = Row(name, detail=f"{said} ({Path(place.filename).name}:{place.lineno})"[:300])
    pipe.send(row)
