"""open_clip and timm are imported here first, where torchvision is made importable beside any torch."""

from synthclip.models import open_clip, timm

assert open_clip
assert timm
