"""The one exception that users see."""

import contextlib
from collections.abc import Iterator


class SynthClipError(Exception):
    """Something the user can fix.

    The message is one line that says what is wrong, where (file, row) and what to do. The command line
    prints it without a traceback and exits with code 2.
    """


def first_line(error: BaseException) -> str:
    """What an error says, in one line; the name of its class where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def last_line(error: BaseException) -> str:
    """As `first_line`, for a traceback, whose last line says what was wrong."""
    return (str(error).strip() or type(error).__name__).splitlines()[-1]


@contextlib.contextmanager
def needs_extra(extra: str, what: str) -> Iterator[None]:
    """Around imports of packages that only an extra of this package installs, for the sake of `what`."""
    try:
        yield
    except ImportError as error:
        raise SynthClipError(
            f"{what} needs {error.name}, which is not installed: pip install 'synthclip[{extra}]'"
        ) from None
