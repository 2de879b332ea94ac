"""What goes wrong around a training: one line says what and where, and the same command resumes after it."""

import multiprocessing
import os
import pickle
import resource
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from shape_runs import losses, train, twin_runs, weights, with_training, write_images

from synthclip.errors import SynthClipError
from synthclip.recipe import Recipe
from synthclip.run.store import RunDirectory
from synthclip.training import Train
from synthclip.training.checkpoint import Checkpoints, load
from synthclip.training.job import build_trainer
from synthclip.training.loop import Trainer

pytestmark = pytest.mark.slow


@pytest.fixture
def pictures(tmp_path: Path) -> list[bytes]:
    """Image files, 32 of them, also as `0.jpg` and so on in the folder of the test."""
    run = RunDirectory(tmp_path / "pictures")
    write_images(run, 32, shards=1)
    jpegs = []
    with tarfile.open(run.file("images", "train/00000.tar")) as tar:
        for name in tar.getnames():
            if name.endswith(".jpg") and (content := tar.extractfile(name)) is not None:
                jpegs.append(content.read())
    for number, jpeg in enumerate(jpegs):
        (tmp_path / f"{number}.jpg").write_bytes(jpeg)
    return jpegs


def trainer_of(recipe: Recipe, run: RunDirectory, stop_asked: Callable[[], bool]) -> Trainer:
    stage = Train(recipe, run)
    return build_trainer(stage, stage.shards()[0], lambda rows, figures: None, stop_asked)


def checkpoints(recipe: Recipe, run: RunDirectory) -> list[str]:
    stage = Train(recipe, run)
    return sorted(path.name for path in stage.partial(stage.shards()[0]).glob("*"))


def on_first_call(do: Callable[[], object]) -> Callable[[], bool]:
    """To be asked whether to stop, which is after ten steps first: never says yes, but does something."""
    left = [do]

    def stop() -> bool:
        if left:
            left.pop()()
        return False

    return stop


def vanish(tar: Path) -> None:
    tar.unlink()


def cut_short(tar: Path) -> None:
    os.truncate(tar, tar.stat().st_size // 2)


@pytest.mark.parametrize("fault", [vanish, cut_short])
def test_a_shard_lost_in_training_is_named_and_brought_back_it_goes_on(
    tmp_path: Path, tiny_recipe: Recipe, fault: Callable[[Path], None]
) -> None:
    recipe = with_training(tiny_recipe, epochs=3, checkpoint_steps=5)
    undisturbed, run = twin_runs(tmp_path)
    train(recipe, undisturbed)
    tar = run.file("images", "train/00001.tar")
    whole = tar.read_bytes()
    message = r"cannot be used, the last .*train/00001\.tar.*(unreadable shard|incomplete sample)"
    with pytest.raises(SynthClipError, match=message):
        trainer_of(recipe, run, on_first_call(lambda: fault(tar))).fit()
    tar.write_bytes(whole)
    assert checkpoints(recipe, run)
    train(recipe, run)
    assert weights(run) == weights(undisturbed)
    assert losses(run) == losses(undisturbed)


# --- tables


def csv_source(tmp_path: Path, rows: bytes) -> dict[str, object]:
    (tmp_path / "pairs.csv").write_bytes(b"image_path\tcaption\n" + rows)
    return {"kind": "csv", "path": str(tmp_path / "pairs.csv")}


def good_rows(first: int, end: int) -> bytes:
    return b"".join(f"{row}.jpg\tpicture {row}\n".encode() for row in range(first, end))


@pytest.mark.parametrize(
    ("row", "why"),
    [
        (b"10.jpg", "CSV row: wrong number of columns"),
        (b"10.jpg\ta\tb", "CSV row: wrong number of columns"),
        (b"10.jpg\tcaf\xe9", "CSV row: not UTF-8"),
        (b"10\0.jpg\tpicture", "CSV row: NUL byte"),
        (b'10.jpg\t"a quote without end', "CSV row: quotes do not match"),
        (b"10.jpg\t  ", "empty caption"),
        (b"gone.jpg\tpicture", "missing image"),
        (b"\tpicture", "incomplete sample"),
    ],
)
def test_a_bad_row_of_a_csv_is_counted_and_above_the_limit_named(
    tmp_path: Path, tiny_recipe: Recipe, pictures: list[bytes], row: bytes, why: str
) -> None:
    source = csv_source(tmp_path, good_rows(0, 10) + row + b"\n" + good_rows(11, 32))
    run = RunDirectory(tmp_path / "run")
    write_images(run, 0)
    recipe = with_training(tiny_recipe, sources=[source], max_bad_share=0.1)
    assert dict(train(recipe, run).rejected) == {why: 1}
    with pytest.raises(SynthClipError, match=rf"pairs\.csv line 12.*{why}: fix .*training\.max_bad_share"):
        train(with_training(recipe, max_bad_share=0), run)


def parquet_source(tmp_path: Path, table: pa.Table) -> dict[str, object]:
    path = tmp_path / "pairs.parquet"
    pq.write_table(table, path)
    return {"kind": "parquet", "path": str(path)}


def test_a_parquet_cut_short_is_refused_and_one_that_vanishes_later_is_not_missed(
    tmp_path: Path, tiny_recipe: Recipe, pictures: list[bytes], cache: Path
) -> None:
    table = pa.table({"image": pictures, "text": [f"picture {n}" for n in range(32)]})
    recipe = with_training(tiny_recipe, epochs=6, sources=[parquet_source(tmp_path, table)])
    run, path = RunDirectory(tmp_path / "run"), tmp_path / "pairs.parquet"
    write_images(run, 0)
    whole = path.read_bytes()
    cut_short(path)
    with pytest.raises(SynthClipError, match=r"pairs\.parquet: cannot be read .*check training\.sources"):
        train(recipe, run)
    path.write_bytes(whole)
    assert trainer_of(recipe, run, on_first_call(path.unlink)).fit()
    path.write_bytes(whole)
    [arrow] = cache.rglob("*.arrow")
    cut_short(arrow)
    train(recipe, run)
    path.unlink()
    with pytest.raises(SynthClipError, match=r"pairs\.parquet: no such file"):
        train(recipe, run)


def test_a_parquet_of_something_else_is_refused(tmp_path: Path, tiny_recipe: Recipe) -> None:
    run = RunDirectory(tmp_path / "run")
    write_images(run, 0)
    numbers = pa.table({"image": list(range(32)), "text": ["picture"] * 32})
    with pytest.raises(SynthClipError, match=r"pairs\.parquet: column 'image' holds int64, not image files"):
        train(with_training(tiny_recipe, sources=[parquet_source(tmp_path, numbers)]), run)


# --- losses and checkpoints


def test_a_training_that_loses_its_loss_keeps_the_last_good_checkpoint(
    run: RunDirectory, tiny_recipe: Recipe
) -> None:
    """The rate grows until the weights overflow; a checkpoint a step, so the newest held weights without a
    loss."""
    recipe = with_training(
        tiny_recipe, epochs=4, warmup_epochs=4, lr=1e12, lr_start=1e-6, checkpoint_steps=1, eps=1e-30
    )
    with pytest.raises(SynthClipError, match=r"the loss is (nan|inf) at step (\d+); the last good") as error:
        train(recipe, run)
    step = int(str(error.value).split("at step ")[1].split(";")[0])
    assert step > 1
    stage = Train(recipe, run)
    newest = stage.partial(stage.shards()[0]) / checkpoints(recipe, run)[-1]
    assert str(newest) in str(error.value)
    state = load(newest)
    assert state["step"] == step - 1
    assert torch.isfinite(state["curve"]).all()
    # Skipping is no other training: it goes on from there.
    skipping = with_training(recipe, on_bad_loss="skip")
    assert checkpoints(skipping, run) == checkpoints(recipe, run)
    assert train(skipping, run).rejected["step with a loss that is not finite"] == 24 - step
    assert losses(run)[: step - 1] == state["curve"][:, 2].tolist()


def limited(recipe: Recipe, run: RunDirectory, size_bytes: int) -> None:
    """Train where no file may grow larger; exits 3 with the line of the error in the file `error`."""
    torch.set_num_threads(1)  # a fork has none of the threads that OpenMP would wait for
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, size_bytes))
    try:
        train(recipe, run)
    except SynthClipError as error:
        (run.path.parent / "error").write_text(str(error))
        os._exit(3)


def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(
    tmp_path: Path, tiny_recipe: Recipe
) -> None:
    recipe = with_training(tiny_recipe, epochs=3, checkpoint_steps=6)
    undisturbed, run = twin_runs(tmp_path)
    train(recipe, undisturbed)
    assert not trainer_of(recipe, run, lambda: True).fit()
    before = checkpoints(recipe, run)
    process = multiprocessing.get_context("fork").Process(target=limited, args=(recipe, run, 1_000_000))
    process.start()
    process.join()
    assert process.exitcode == 3
    assert "step-000000012.pt: a file grows larger than may be written" in (tmp_path / "error").read_text()
    assert checkpoints(recipe, run) == before
    train(recipe, run)
    assert weights(run) == weights(undisturbed)


class _RunsCode:
    def __init__(self, proof: Path) -> None:
        self._proof = proof

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self._proof),)


def bomb(path: Path) -> None:
    """A small file that says it inflates to 4 GB."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x/data.pkl", pickle.dumps({}))
        archive.writestr("x/data/0", bytes(1 << 20))
    raw = bytearray(path.read_bytes())
    entry = raw.rindex(b"PK\x01\x02")
    raw[entry + 24 : entry + 28] = ((1 << 32) - 2).to_bytes(4, "little")
    path.write_bytes(raw)


def test_a_hostile_checkpoint_is_passed_over_for_the_one_before(tmp_path: Path) -> None:
    held = Checkpoints(tmp_path, keep=2)
    held.save(1, {"weights": torch.ones(9)})
    held.finish()
    newest, proof = tmp_path / "step-000000002.pt", tmp_path / "proof"
    bomb(newest)
    with pytest.raises(SynthClipError, match=r"step-000000002\.pt.*refused: declares 4,29"):
        load(newest)
    assert (held.latest() or {})["step"] == 1
    torch.save({"format": "synthclip-train-1", "step": 2, "model": _RunsCode(proof)}, newest)
    assert (held.latest() or {})["step"] == 1
    assert not proof.exists()
