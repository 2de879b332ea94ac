"""open_clip and timm are imported here first, where torchvision is made importable beside any torch."""

import sys
from pathlib import Path

from synthclip.models import open_clip, timm

sys.path.append(str(Path(__file__).parent.parent / "imagegen"))  # runs that stand where images begin

assert open_clip
assert timm
