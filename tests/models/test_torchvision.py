"""torchvision and what imports it work beside any build of torch."""

import subprocess
import sys


def test_open_clip_and_transforms_import_from_the_models_package() -> None:
    program = (
        "from synthclip.models import open_clip, timm, torchvision\n"
        "import torch, torchvision.transforms.v2\n"
        "picture = torch.zeros(3, 8, 8, dtype=torch.uint8)\n"
        "print(tuple(torchvision.transforms.v2.functional.resize(picture, [4, 4]).shape))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "(3, 4, 4)"


def test_the_libraries_of_models_import_no_compiler_until_it_is_used() -> None:
    program = (
        "import sys\n"
        "from synthclip.models import open_clip, timm, torchvision\n"
        "assert 'torch._dynamo' not in sys.modules\n"
        "import torch, torchvision.ops\n"
        "box = torch.tensor([[0, 0, 0, 2, 2.]])\n"
        "assert torchvision.ops.roi_align(torch.ones(1, 1, 4, 4), box, 1).item() == 1\n"
        "assert torch.compiler.disable(torch.sin) is not torch.sin\n"
        "print(torch.compile(lambda x: x + 1, backend='eager')(torch.ones(1)).item())\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "2.0"
