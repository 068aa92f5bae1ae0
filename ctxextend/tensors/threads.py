"""Pieces of work in threads: reading, arithmetic and writing overlap, since numpy and the kernel let others run."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Final

from ctxextend.tensors.copying import Progress

if TYPE_CHECKING:
    from concurrent.futures import Future

#: Two overlap; more than four only add memory.
THREADS: Final = min(4, max(2, os.cpu_count() or 1))

#: A piece of work; gives how many bytes it wrote.
Task = Callable[[], int]


def in_threads(work: Iterator[Task], progress: Progress) -> None:
    """Do the tasks, a few ahead; the first error ends all. ``progress`` is told, in this thread, what each wrote."""
    # Of no use to a command that copies nothing.
    from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait

    with ThreadPoolExecutor(THREADS) as pool:
        try:
            waiting: set[Future[int]] = {pool.submit(task) for task in islice(work, 2 * THREADS)}
            while waiting:
                done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                for future in done:
                    progress(future.result())
                waiting |= {pool.submit(task) for task in islice(work, len(done))}
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
