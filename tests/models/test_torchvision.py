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
