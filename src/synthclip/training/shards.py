"""Opens tars for training: a run's own by the sidecars of its images, any others by an index beside them."""

import io
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from synthclip.errors import SynthClipError
from synthclip.run.store import RunDirectory
from synthclip.samples import files
from synthclip.samples.sources import TarSource

_BLOCK = tarfile.BLOCKSIZE
Spans = NDArray[np.int64]


def own_shards(run: RunDirectory, tables: Sequence[str]) -> TarSource:
    """The images of a run. `tables` are the sidecars in its images stage, such as `train/00000.parquet`."""
    paths, spans = [], []
    for name in tables:
        sidecar = run.file("images", name)
        tar = sidecar.with_suffix(".tar")
        try:
            offset = pq.read_table(sidecar, columns=["offset"])["offset"].to_numpy()
            size = tar.stat().st_size
        except OSError as error:
            raise SynthClipError(
                f"{sidecar}: cannot be read ({error}): run `synthclip images` again"
            ) from None
        # A sample begins with the header of its image and ends where the next one begins.
        start = np.sort(offset).astype(np.int64) - _BLOCK
        paths.append(str(tar))
        spans.append(np.stack([start, np.append(start[1:], size)[: len(start)]], axis=1))
    return _source(paths, spans)


def any_shards(paths: Sequence[str]) -> TarSource:
    """WebDataset tars, here or far away. An index of each is made on its first use."""
    return _source(paths, [_indexed(path) for path in paths])


def _source(paths: Sequence[str], spans: Sequence[Spans]) -> TarSource:
    shard_N = np.repeat(np.arange(len(spans), dtype=np.int32), [len(span) for span in spans])
    return TarSource(paths, shard_N, np.concatenate(spans) if spans else np.empty((0, 2), dtype=np.int64))


def _indexed(path: str) -> Spans:
    """The spans of a tar's samples, from `PATH.index.npy` or, where none can be written there, the cache."""
    try:
        key = files.identity(path)
    except OSError as error:
        raise SynthClipError(f"{path}: cannot be read ({error}): check training.sources") from None
    name = f"{Path(path).name}.{key[:16]}.index.npy"
    folders = [] if files.is_remote(path) else [Path(path).parent]
    folders.append(files.cache_folder() / "index")
    for folder in folders:
        if (folder / name).is_file():
            known: Spans = np.load(folder / name)
            return known
    spans = scan(path)
    content = io.BytesIO()
    np.save(content, spans)
    for folder in folders:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            partial = folder / f".{name}.partial"
            partial.write_bytes(content.getvalue())
            partial.replace(folder / name)
        except OSError:
            continue
        break
    return spans


def scan(path: str) -> Spans:
    """The spans of the samples in a tar: members in a row with the same name up to its first dot.

    A tar that is cut off ends with what its last header announces.
    """
    spans: list[list[int]] = []
    last = None
    with files.open_binary(path) as handle:
        try:
            with tarfile.open(fileobj=handle) as tar:
                for entry in tar:
                    if not entry.isfile():
                        continue
                    folder, slash, name = entry.name.rpartition("/")
                    key = folder + slash + name.partition(".")[0]
                    end = entry.offset_data + -(-entry.size // _BLOCK) * _BLOCK
                    if key == last:
                        spans[-1][1] = end
                    else:
                        spans.append([entry.offset, end])
                    last = key
        except tarfile.ReadError as error:
            if not spans:
                raise SynthClipError(f"{path}: not a tar ({error}): check training.sources") from None
    return np.asarray(spans, dtype=np.int64).reshape(-1, 2)
