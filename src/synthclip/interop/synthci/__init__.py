"""The official SynthCI-30M files, turned into shards.

On the hub the data set is `SynthCI-30/data/<n>.zip`, images inside, and one tab-separated
`SynthCI-30/combined_images_and_captions.csv` whose `image_path` is relative to `SynthCI-30/data/`. Every zip
becomes one WebDataset shard, in the layout that stage `images` writes.
"""

import shutil
import zipfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from synthclip.errors import SynthClipError
from synthclip.interop.synthci.captions import split_csv
from synthclip.interop.synthci.shard import STAGE, LoadShardMaker, fingerprint
from synthclip.keys import quick_digest
from synthclip.recipe.engine import EngineConfig
from synthclip.run.engine import Done, Progress, Resources, Shard, build_engine
from synthclip.run.store import RunDirectory

SUBFOLDER = "SynthCI-30"
CSV_NAME = "combined_images_and_captions.csv"
SPLIT = "train"
_CAPTIONS = ".captions"


@dataclass(frozen=True)
class ImportSummary:
    """What an import came to, over all zips that are in `out` now."""

    images: int
    rejected: Mapping[str, int]
    """By reason: images and rows that were passed over. Each is named in `images/rejected/`."""
    rows_without_zip: int = 0
    """Rows of the CSV whose zip is not here (yet)."""
    broken: tuple[str, ...] = field(default=())
    """Zips that cannot be opened, cut short perhaps. Fetch them again and repeat the command."""


def import_synthci(source: Path, out: Path, workers: int | Literal["auto"] = "auto") -> ImportSummary:
    """Turn the official files under `source` into WebDataset shards `out/images/train/<n>.tar`.

    Streams: the images are never unpacked to disk, and memory is bounded by the captions of one zip for each
    worker. Every JPEG is decoded; what is damaged, missing, or reaches out of the folder is counted, named in
    `images/rejected/` and passed over. Zips that are imported already are not imported again, so a stopped
    command goes on, and more zips can be fetched and added later.

    Raises SynthClipError where `source` is not in the official layout or `out` holds something else.
    """
    from synthclip.run.progress import Console  # here, as every worker imports this package

    csv_path, data = _locate(source)
    whole, broken = _zips(data)
    directory = RunDirectory(out)
    _refuse_foreign(directory)
    console = Console()
    with directory.lock():
        csv_digest = quick_digest(csv_path)
        shards = [_shard(number, path, csv_digest) for number, path in whole.items()]
        done = {one.shard: one for one in directory.manifests(STAGE)}
        todo = [
            one for one in shards if one.name not in done or done[one.name].fingerprint != fingerprint(one)
        ]
        if todo:
            captions = out / _CAPTIONS
            directory.write_stage_values(STAGE, {"source": "SynthCI-30M"})
            console.line(f"reading   {csv_path}")
            with directory.begin(STAGE, "csv", csv_digest) as writer:
                writer.commit(split_csv(csv_path, captions, {path.stem for path in whole.values()}, writer))
            engine = build_engine(EngineConfig(workers=workers))
            with console.stage("import", todo, len(shards)) as bar:
                for event in engine.map(LoadShardMaker(out, captions), todo, Resources()):
                    if isinstance(event, Progress):
                        bar.progress(event)
                    elif isinstance(event, Done):
                        bar.done(event)
                    else:
                        bar.failed(event)
            shutil.rmtree(captions)
        manifests = directory.manifests(STAGE)
        sizes = {
            f"{one.shard.removeprefix(f'{SPLIT}/')}.tar": one.rows
            for one in manifests
            if one.shard.startswith(f"{SPLIT}/")
        }
        directory.write_json(f"{STAGE}/{SPLIT}/sizes.json", sizes)
    rejected: Counter[str] = Counter()
    for manifest in manifests:
        rejected.update(manifest.rejected)
    without_zip = sum(manifest.notes.get("rows_without_zip", 0) for manifest in manifests)
    return ImportSummary(sum(sizes.values()), dict(sorted(rejected.items())), without_zip, tuple(broken))


def _locate(source: Path) -> tuple[Path, Path]:
    """The CSV and the folder of zips, `source` being the download or its `SynthCI-30`."""
    for root in (source, source / SUBFOLDER):
        if (root / CSV_NAME).is_file() and (root / "data").is_dir():
            return root / CSV_NAME, root / "data"
    raise SynthClipError(
        f"{source}: not the official layout: expected {CSV_NAME} and a folder data with <n>.zip in it; "
        "`synthclip fetch synthci` downloads them"
    )


def _zips(data: Path) -> tuple[dict[int, Path], list[str]]:
    """The zips by their number, in order, and those that are not zips or not numbered."""
    whole, broken = {}, []
    for path in data.glob("*.zip"):
        if path.stem.isdecimal() and zipfile.is_zipfile(path):
            whole[int(path.stem)] = path
        else:
            broken.append(path.name)
    if not whole:
        raise SynthClipError(f"{data}: holds no whole zip named by a number, such as 0.zip: fetch some first")
    return dict(sorted(whole.items())), sorted(broken)


def _shard(number: int, path: Path, csv_digest: str) -> Shard:
    return Shard(
        f"{SPLIT}/{number:05d}",
        inputs={"zip": quick_digest(path), "csv": csv_digest},
        payload={"zip": str(path)},
    )


def _refuse_foreign(directory: RunDirectory) -> None:
    from synthclip.recipe import RECIPE_FILE

    if (directory.path / RECIPE_FILE).exists() or (
        directory.stage(STAGE).exists() and directory.read_json(f"{STAGE}/stage.json") is None
    ):
        raise SynthClipError(f"{directory.path}: holds something else already: choose another --out")
