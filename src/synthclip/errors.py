"""The one exception that users see."""

import contextlib
from collections.abc import Iterator


class SynthClipError(Exception):
    """Something the user can fix.

    The message is one line that says what is wrong, where (file, row) and what to do. The command line
    prints it without a traceback and exits with code 2.
    """


@contextlib.contextmanager
def needs_extra(extra: str, what: str) -> Iterator[None]:
    """Around imports of packages that only an extra of this package installs, for the sake of `what`."""
    try:
        yield
    except ImportError as error:
        raise SynthClipError(
            f"{what} needs {error.name}, which is not installed: pip install 'synthclip[{extra}]'"
        ) from None
