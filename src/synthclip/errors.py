"""The one exception that users see."""


class SynthClipError(Exception):
    """Something the user can mend.

    The message is one line that says what is wrong, where (file, row) and what to do. The command line
    prints it without a traceback and exits with code 2.
    """
