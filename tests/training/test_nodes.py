"""Training over several nodes: torchrun started by hand on each, by SLURM, or by Ray."""

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from shape_runs import losses, train, with_training, write_images
from torch.testing import assert_close

from synthclip.errors import SynthClipError
from synthclip.recipe import Recipe
from synthclip.recipe.engine import EngineConfig, RayConfig, SlurmConfig
from synthclip.run.engine import Done, Progress, build_engine
from synthclip.run.stage import StageLoad
from synthclip.run.store import RunDirectory
from synthclip.training import Train

pytestmark = [
    pytest.mark.slow,
    pytest.mark.xdist_group("ray"),  # one cluster on this machine at a time
]

SMOOTH = {"eps": 1e-3}
"""With the usual eps, Adam makes steps of full length of gradients that are zero but for rounding."""


def slurm_nodes() -> int:
    if shutil.which("sinfo") is None:
        return 0
    result = subprocess.run(["sinfo", "--noheader", "--Node", "--format=%N"], capture_output=True, text=True)
    return len(set(result.stdout.split()))


@pytest.fixture
def recipe(tiny_recipe: Recipe) -> Recipe:
    return with_training(tiny_recipe, **SMOOTH)


@pytest.fixture
def alone(tmp_path: Path, recipe: Recipe) -> RunDirectory:
    """What one process makes."""
    run = RunDirectory(tmp_path / "alone")
    write_images(run, 96)
    train(recipe, run)
    return run


def assert_the_same(run: RunDirectory, alone: RunDirectory) -> None:
    assert losses(run) == pytest.approx(losses(alone), rel=1e-5)
    models = [load_file(one.file("train", "model/open_clip_model.safetensors")) for one in (run, alone)]
    assert_close(*models, rtol=1e-5, atol=1e-5)


def test_torchrun_by_hand_on_two_nodes(run: RunDirectory, recipe: Recipe, alone: RunDirectory) -> None:
    run.write_text("recipe.yaml", recipe.to_yaml())
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        meet = ["--rdzv-backend=c10d", f"--rdzv-endpoint=localhost:{probe.getsockname()[1]}"]
    command = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1", *meet]
    agents = [subprocess.Popen([*command, "-m", "synthclip.training.job", str(run.path)]) for _ in range(2)]
    assert [agent.wait() for agent in agents] == [0, 0]
    train(recipe, run)
    assert_the_same(run, alone)


@pytest.mark.skipif(slurm_nodes() < 2, reason="no SLURM of two nodes answers here")
def test_slurm_trains_on_two_nodes(
    run: RunDirectory, recipe: Recipe, alone: RunDirectory, tmp_path: Path
) -> None:
    where = SlurmConfig(folder=str(tmp_path / "jobs"), timeout_min=5, gpus=0)
    engine = EngineConfig(kind="slurm", slurm=where)
    two = with_training(recipe, nodes=2, parallel="fsdp").model_copy(update={"engine": engine})
    run.write_text("recipe.yaml", two.to_yaml())
    stage = Train(two, run)
    events = build_engine(engine).map(StageLoad(Train, two, run.path), stage.shards(), stage.resources())
    assert [type(event) for event in events][-1] is Done
    assert_the_same(run, alone)


@pytest.fixture
def ray_cluster() -> Iterator[Any]:
    """Of one node; each has its own processes on this machine."""
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'synthclip[ray]'")
    import ray
    from ray.cluster_utils import Cluster

    small = {"num_cpus": 1, "object_store_memory": 100 * 2**20, "include_dashboard": False}
    ray.shutdown()
    cluster = Cluster(initialize_head=True, head_node_args=small)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def test_ray_trains_on_two_nodes(
    run: RunDirectory, recipe: Recipe, alone: RunDirectory, ray_cluster: Any
) -> None:
    engine = EngineConfig(kind="ray", ray=RayConfig(address=ray_cluster.address))
    two = with_training(recipe, nodes=2).model_copy(update={"engine": engine})
    run.write_text("recipe.yaml", two.to_yaml())
    stage = Train(two, run)

    def events() -> list[object]:
        load = StageLoad(Train, two, run.path)
        return list(build_engine(engine).map(load, stage.shards(), stage.resources()))

    with pytest.raises(SynthClipError, match=r"training\.nodes=2: the Ray cluster has 1"):
        events()
    ray_cluster.add_node(num_cpus=1, object_store_memory=100 * 2**20)
    kinds = [type(event) for event in events()]
    assert kinds[-1] is Done
    assert Progress in kinds
    assert_the_same(run, alone)


def test_nodes_without_an_allocation_are_refused(run: RunDirectory, recipe: Recipe) -> None:
    if "SLURM_JOB_NUM_NODES" in os.environ:
        pytest.skip("inside an allocation")
    with pytest.raises(SynthClipError, match=r"training\.nodes=2: .*engine\.kind to slurm or ray, or start"):
        train(with_training(recipe, nodes=2), run)
