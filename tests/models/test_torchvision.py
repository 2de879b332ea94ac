"""torchvision and what imports it work beside any build of torch, and start without its compiler."""

import subprocess
import sys

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
loaded = {"torch._dynamo", "torch.distributed.fsdp", "sympy"} & set(sys.modules)
assert not loaded, loaded

import torchvision.ops, torchvision.transforms.v2
picture = torch.zeros(3, 8, 8, dtype=torch.uint8)
print(tuple(torchvision.transforms.v2.functional.resize(picture, [4, 4]).shape))
box = torch.tensor([[0, 0, 0, 2, 2.]])
assert torchvision.ops.roi_align(torch.ones(1, 1, 4, 4), box, 1).item() == 1
assert torch.compiler.disable(torch.sin) is not torch.sin
print(torch.compile(lambda x: x + 1, backend="eager")(torch.ones(1)).item())
"""


def test_they_import_and_a_step_is_made_without_the_compiler_until_it_is_used() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[:2] == ["(3, 4, 4)", "2.0"]
