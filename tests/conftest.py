"""No test depends on how fast the machine is. One official-format checkpoint with random weights for all."""

import argparse
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

# Several tests run at once. With a thread a core in each of them, they wait more than they work.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# What is started in the background ignores Ctrl-C, and so would every process that a test starts.
signal.signal(signal.SIGINT, signal.default_int_handler)
settings.register_profile("synthclip", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("synthclip")


def pytest_configure(config: pytest.Config) -> None:
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = (
            False  # it would start files of few tests last, however long these are
        )


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With pytest-xdist, the tests of a file share a process, which makes their fixtures once.

    Files with slow tests come first, so that no process waits at the end for one of them.
    """
    for item in items:
        if item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(str(item.path)))
    slow = {item.path for item in items if item.get_closest_marker("slow") is not None}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session", autouse=True)
def _derived_data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Derived data goes to a folder of this session; models that are on the machine stay within reach."""
    before = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    with pytest.MonkeyPatch.context() as patch:
        for name, folder in (("HF_HOME", "huggingface"), ("TORCH_HOME", "torch")):
            if name not in os.environ:
                patch.setenv(name, str(before / folder))
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def official_state() -> dict[str, Any]:
    """Random weights under the official names, every tensor away from its trivial start."""
    import torch

    from synthclip.models.build import build_model
    from synthclip.models.weights import to_official
    from synthclip.recipe.training import ModelConfig

    torch.manual_seed(0)
    state = to_official(build_model(ModelConfig(name="synthclip-vitb16")).state_dict())
    for value in state.values():
        if value.ndim == 1:
            value.add_(torch.randn_like(value), alpha=0.1)
    state["logit_scale"] = torch.tensor(3.2)
    return state


@pytest.fixture(scope="session")
def official_checkpoint(official_state: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch

    path = tmp_path_factory.mktemp("official") / "checkpoint_best.pt"
    torch.save(
        {
            "epoch": 40,
            "state_dict": {f"module.{name}": value for name, value in official_state.items()},
            "optimizer": {"state": {}, "param_groups": [{"lr": 1e-5, "betas": (0.9, 0.98)}]},
            "scaler": {"scale": 65536.0, "growth_tracker": 3},
            "best_acc1": 30.5,
            "args": argparse.Namespace(model="CLIP_VITB16", lr=5e-4, batch_size=256, gpu=0, resume=""),
        },
        path,
    )
    return path
