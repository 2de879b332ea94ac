"""Work spread over threads, with its results in order."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

MOST_DECODERS = 6
"""Threads that decode pictures in one process: more hand Python's lock around. On 16 cores, 16 threads make
fewer than half the pairs of 6."""
T = TypeVar("T")
R = TypeVar("R")


def cores() -> int:
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):  # macOS has none
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def in_order(
    work: Callable[[T], R], items: Iterable[T], *, threads: int | None = None, ahead: int | None = None
) -> Iterator[R]:
    """`work` of every item, in the order of the items, by `threads` threads (None: one a core).

    At most `ahead` items (None: as many as threads) are taken before the consumer wants their results, which
    bounds the memory for them. What `work` raises is raised where its result would come; a consumer that
    stops early cancels the rest.
    """
    threads = threads or cores()
    waiting: deque[Future[R]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(work, item))
                if len(waiting) > (threads if ahead is None else ahead):
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
