"""To and from the Hugging Face hub. `HF_ENDPOINT` and `HF_TOKEN` mean what they mean to huggingface_hub."""

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from synthclip.errors import SynthClipError, needs_extra
from synthclip.imagegen.imported import CSV_NAME, SUBFOLDER
from synthclip.interop.cards import data_card, model_card
from synthclip.interop.export import write_open_clip
from synthclip.models.load import open_model

SYNTHCI_REPO = "hammh0a/SynthCLIP"


def fetch_synthci(folder: Path, parts: Sequence[int] = ()) -> int:
    """Download the official SynthCI-30M files into `folder`, ready for `import_synthci`.

    `parts` are numbers of zips; none means all. The CSV always comes along. A download that is cut goes on
    where it was when called again, and what is there whole is not downloaded again. Returns the number of
    zips in `folder` that were asked for. Raises SynthClipError where a part does not exist or the hub cannot
    be reached.
    """
    with needs_extra("interop", "fetch"):
        from huggingface_hub import HfApi, snapshot_download
    with _hub_errors(SYNTHCI_REPO):
        files = HfApi().list_repo_files(SYNTHCI_REPO, repo_type="dataset")
        zips = {
            name.removeprefix(f"{SUBFOLDER}/data/").removesuffix(".zip"): name
            for name in files
            if name.startswith(f"{SUBFOLDER}/data/") and name.endswith(".zip")
        }
        wanted = [str(part) for part in parts] or list(zips)
        if unknown := [part for part in wanted if part not in zips]:
            raise SynthClipError(
                f"{SYNTHCI_REPO}: has no {unknown[0]}.zip; its parts are "
                f"{', '.join(sorted(zips, key=lambda name: (len(name), name)))}"
            )
        snapshot_download(
            SYNTHCI_REPO,
            repo_type="dataset",
            local_dir=folder,
            allow_patterns=[f"{SUBFOLDER}/{CSV_NAME}", *(zips[part] for part in wanted)],
        )
    return len(wanted)


def push_images(run: Path, repo: str, *, private: bool = False) -> str:
    """Upload a run's shards, sidecars and a data card written from the run; returns the address.

    An upload that is cut goes on when called again. Raises SynthClipError where the run holds no images or
    the hub refuses.
    """
    card = data_card(run, repo)
    splits = ("train", "heldout")
    patterns = [f"{split}/{name}" for split in splits for name in ("*.tar", "*.parquet", "sizes.json")]
    return _push(repo, "dataset", run / "images", patterns, card, private=private)


def push_model(source: str | Path, repo: str, *, private: bool = False) -> str:
    """Upload a model as an open_clip folder, which `hf-hub:REPO` loads, with a model card.

    `source` is what `load_model` takes. Returns the address.
    """
    opened = open_model(source)
    with tempfile.TemporaryDirectory() as scratch:
        write_open_clip(opened, Path(scratch))
        return _push(repo, "model", Path(scratch), None, model_card(source, opened, repo), private=private)


def _push(repo: str, kind: str, folder: Path, patterns: list[str] | None, card: str, *, private: bool) -> str:
    with needs_extra("interop", "push"):
        from huggingface_hub import HfApi
    api = HfApi()
    with _hub_errors(repo):
        address = str(api.create_repo(repo, repo_type=kind, private=private, exist_ok=True))
        api.upload_file(
            path_or_fileobj=card.encode(),
            path_in_repo="README.md",
            repo_id=repo,
            repo_type=kind,
            commit_message="Card",
        )
        api.upload_folder(
            folder_path=folder,
            repo_id=repo,
            repo_type=kind,
            allow_patterns=patterns,
            commit_message="Upload with synthclip",
        )
    return address


@contextlib.contextmanager
def _hub_errors(repo: str) -> Iterator[None]:
    """What the hub and the way to it raise, as one line with a remedy."""
    import httpx
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalTokenNotFoundError,
        RepositoryNotFoundError,
    )

    again = "run the same command again, it goes on where it was"
    try:
        yield
    except HFValidationError as error:
        raise SynthClipError(f"{repo!r}: not a repository's name, ORG/NAME: {error}") from None
    except (GatedRepoError, LocalTokenNotFoundError):
        raise SynthClipError(f"{repo}: needs a token: set HF_TOKEN, or `hf auth login`") from None
    except RepositoryNotFoundError:
        raise SynthClipError(f"{repo}: not found on the hub, or private and HF_TOKEN is not set") from None
    except HfHubHTTPError as error:
        status = error.response.status_code
        remedy = "set HF_TOKEN to a token that may do this" if status in (401, 403) else again
        raise SynthClipError(f"{repo}: the hub answered {status}: {remedy}") from None
    except (httpx.HTTPError, OSError) as error:
        raise SynthClipError(f"{repo}: the hub cannot be reached ({_short(error)}): {again}") from None


def _short(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:160]
