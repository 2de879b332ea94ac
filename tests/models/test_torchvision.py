"""torchvision and what imports it work beside any build of torch, and start without what few models need."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import sys
from synthclip.models import open_clip, timm, torchvision
from synthclip.recipe.training import TrainingConfig
from synthclip.training.loop import build_optimizer
import torch

layer = torch.nn.Linear(2, 2)
optimizer = build_optimizer(layer, TrainingConfig())
layer(torch.ones(1, 2)).sum().backward()
optimizer.step()
optimizer.zero_grad()
optimizer.load_state_dict(optimizer.state_dict())
loaded = {"torch._dynamo", "torch.distributed.fsdp", "sympy", "transformers"} & set(sys.modules)
assert not loaded, loaded

ids = torch.tensor([[2, 3, 4]])
for pooler in ("mean_pooler", "cls_pooler"):
    tower = open_clip.model.HFTextEncoder(sys.argv[1], 6, None, pooler, "linear", pretrained=False)
    assert tower(ids).shape == (1, 6)

import torchvision.ops, torchvision.transforms.v2
picture = torch.zeros(3, 8, 8, dtype=torch.uint8)
print(tuple(torchvision.transforms.v2.functional.resize(picture, [4, 4]).shape))
box = torch.tensor([[0, 0, 0, 2, 2.]])
assert torchvision.ops.roi_align(torch.ones(1, 1, 4, 4), box, 1).item() == 1
assert torch.compiler.disable(torch.sin) is not torch.sin
print(torch.compile(lambda x: x + 1, backend="eager")(torch.ones(1)).item())
"""


def test_they_import_and_a_step_is_made_without_compiler_and_transformers_until_they_are_used(
    tmp_path: Path,
) -> None:
    pytest.importorskip("transformers")
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert", "vocab_size": 9, **sizes}))
    command = [sys.executable, "-c", PROGRAM, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[:2] == ["(3, 4, 4)", "2.0"]
