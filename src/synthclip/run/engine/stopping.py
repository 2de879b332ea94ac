"""How work that can save itself hears that it is to stop."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator

GRACE_SECONDS = 20.0
"""How long work that is asked to stop may take, for a checkpoint; then its worker is killed."""

_listening: list[Callable[[], None]] = []


@contextlib.contextmanager
def asked_to_stop(then: Callable[[], None] = lambda: None) -> Iterator[Callable[[], bool]]:
    """Inside, a request to stop does not kill: `then` is called, and the function given says yes.

    A request is SIGTERM, of which only work in the main thread can hear, or a call of `ask_to_stop`.
    """
    asked = threading.Event()

    def ask() -> None:
        asked.set()
        then()

    in_main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, lambda *_: ask()) if in_main else None
    _listening.append(ask)
    try:
        yield asked.is_set
    finally:
        _listening.remove(ask)
        if in_main:
            signal.signal(signal.SIGTERM, before)


def ask_to_stop() -> bool:
    """Ask the work of this process to stop; says whether any of it listens."""
    asked = list(_listening)
    for ask in asked:
        ask()
    return bool(asked)
