"""Evaluation spread over the processes of a group: while they train, and by `synthclip eval --gpus`."""

import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor
from torch.multiprocessing.spawn import ProcessExitedException, spawn

from synthclip.errors import SynthClipError
from synthclip.evaluation.encoder import Encoder
from synthclip.evaluation.features import Features
from synthclip.models.load import LoadedModel
from synthclip.run.threads import cores
from synthclip.samples.files import replacing
from synthclip.training.parallel import Group, free_port, join


class SharedEncoder(Encoder):
    """An encoder whose pictures and texts are spread over the processes of a group, all of which call it with
    the same ones, in the same order, and get the same features."""

    def __init__(self, group: Group, *model: Any, batch_size: int) -> None:
        super().__init__(*model, batch_size=batch_size)
        self._group = group

    def texts(self, texts: Sequence[str]) -> Tensor:
        rank, world = self._group.rank, self._group.world_size
        if len(texts) < world:
            return super().texts(texts)
        encode = super().texts
        parts = self._group.each(lambda: encode(texts[rank::world]))
        return _interleaved(parts, [np.arange(first, len(texts), world) for first in range(world)])

    def _read(
        self, pictures: Iterable[Any], progress: Callable[[int], object]
    ) -> tuple[list[bool], Tensor | None]:
        rank, world = self._group.rank, self._group.world_size
        mine, read = islice(pictures, rank, None, world), super()._read
        parts = self._group.each(lambda: read(mine, lambda done: progress(world * done)))
        readable = [False] * sum(len(there) for there, _ in parts)
        for first, (there, _) in enumerate(parts):
            readable[first::world] = there
        found = [(features, first) for first, (_, features) in enumerate(parts) if features is not None]
        if not found:
            return readable, None
        rows = [np.flatnonzero(parts[first][0]) * world + first for _, first in found]
        return readable, _interleaved([features for features, _ in found], rows)


def _interleaved(parts: Sequence[Tensor], rows: Sequence[NDArray[np.int64]]) -> Tensor:
    """The rows of the parts, in the order of the numbers given for each part's rows."""
    return torch.cat([*parts])[torch.from_numpy(np.argsort(np.concatenate(rows)))]


class SharedFeatures(Features):
    """Features that the processes of a group make together. The first one writes the cache; what one of them
    does not find there, all make again."""

    def __init__(self, group: Group, *arguments: Any, **options: Any) -> None:
        self._group, self.writes = group, group.rank == 0
        super().__init__(*arguments, **options)

    def _cached(self, path: Path) -> dict[str, Tensor] | None:
        found = super()._cached(path)
        return found if all(self._group.all(found is not None)) else None

    def _keep(self, path: Path, made: dict[str, Tensor]) -> None:
        keep = super()._keep
        self._group.each(lambda: keep(path, made) if self.writes else None)

    def _encoder_of(self, model: LoadedModel, batch_size: int) -> Encoder:
        return SharedEncoder(self._group, *model, batch_size=batch_size)


def in_processes(processes: int, work: Callable[[Group], object]) -> None:
    """`work`, which can be pickled, in several processes of this machine, one a GPU where there are GPUs.

    Raises the SynthClipError that the work of one raises, or one that says which died; the others are ended.
    """
    with tempfile.TemporaryDirectory() as scratch:
        said = Path(scratch) / "error"
        try:
            spawn(_member, (processes, free_port(), work, said), processes)
        except ProcessExitedException as error:
            if said.is_file():
                raise SynthClipError(said.read_text(encoding="utf-8")) from None
            raise SynthClipError(
                f"process {error.error_index} of {processes} died "
                f"({error.signal_name or f'exit code {error.exit_code}'}): run the same command again, with "
                "fewer processes if memory is short"
            ) from None


def _member(rank: int, processes: int, port: int, work: Callable[[Group], object], said: Path) -> None:
    """One of the processes. Where it exits with 2, `said` holds the error."""
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(processes))
    os.environ.update(MASTER_ADDR="localhost", MASTER_PORT=str(port))
    torch.set_num_threads(min(torch.get_num_threads(), max(1, cores() // processes)))
    try:
        work(join()[0])
    except SynthClipError as error:
        with replacing(said) as partial:
            partial.write_text(str(error), encoding="utf-8")
        sys.exit(2)
    dist.destroy_process_group()
