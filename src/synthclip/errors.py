"""The one exception that users see, and what becomes one."""

import contextlib
import logging
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
            f"{what} needs {error.name}, which is not installed: {install_command(extra)}"
        ) from None


def install_command(*extras: str) -> str:
    """How to add extras of this package, from where it was installed: a folder or a repository perhaps
    (PEP 610)."""
    import json
    from importlib.metadata import PackageNotFoundError, distribution
    from urllib.parse import unquote, urlsplit

    wanted, option = f"[{','.join(extras)}]", ""
    what = f"synthclip{wanted}"
    with contextlib.suppress(PackageNotFoundError):
        recorded = json.loads(distribution("synthclip").read_text("direct_url.json") or "{}")
        url = recorded.get("url", "")
        if "vcs_info" in recorded:
            what += f" @ {recorded['vcs_info']['vcs']}+{url}"
        elif "dir_info" in recorded:
            what = unquote(urlsplit(url).path) + wanted
            option = "-e " if recorded["dir_info"].get("editable") else ""
    return f"pip install {option}'{what}'"


@contextlib.contextmanager
def hub_errors(repo: str, where: str = "") -> Iterator[None]:
    """Around calls of huggingface_hub: what the hub and the way to it raise, as one line with a remedy.

    `where` comes before the repository's name.
    """
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        LocalTokenNotFoundError,
        RepositoryNotFoundError,
    )

    again = "run the same command again to resume"
    log = logging.getLogger("huggingface_hub")
    level = log.level
    log.setLevel(logging.ERROR)  # its retries take several lines each
    try:
        yield
    except SynthClipError:
        raise
    except HFValidationError as error:
        raise SynthClipError(
            f"{where}{repo!r}: not a repository's name, ORG/NAME: {first_line(error)[:160]}"
        ) from None
    except (GatedRepoError, LocalTokenNotFoundError):
        raise SynthClipError(
            f"{where}{repo}: needs a token: set HF_TOKEN, or `hf auth login`, after you accepted its "
            f"terms at https://huggingface.co/{repo}"
        ) from None
    except RepositoryNotFoundError:
        raise SynthClipError(
            f"{where}{repo}: not found on the hub, or private and HF_TOKEN is not set"
        ) from None
    except LocalEntryNotFoundError:
        raise SynthClipError(
            f"{where}{repo}: is not on this machine, and the hub cannot be reached: {again}, or name a "
            "file or folder of yours"
        ) from None
    except HfHubHTTPError as error:
        status = error.response.status_code
        remedies = {404: "check the name of the file or revision"}
        remedies |= dict.fromkeys((401, 403), "set HF_TOKEN to a token that may do this")
        remedy = remedies.get(status, again)
        raise SynthClipError(f"{where}{repo}: the hub answered {status}: {remedy}") from None
    except Exception as error:  # the client's HTTP libraries share no base class, and change
        raise SynthClipError(
            f"{where}{repo}: the hub cannot be reached ({first_line(error)[:160]}): {again}"
        ) from None
    finally:
        log.setLevel(level)
