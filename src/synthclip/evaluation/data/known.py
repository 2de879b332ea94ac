"""The data sets of the paper and of the suites: where the hub has them, and how large their test split is."""

from dataclasses import dataclass

_WDS = "clip-benchmark/wds_"


@dataclass(frozen=True)
class Known:
    hub: str
    """Repository of the hub that holds it, in a layout that `open_dataset` reads."""
    test_images: int
    """Images of the usual test split; another number means other figures than everybody's."""


KNOWN = {
    "cifar10": Known(f"{_WDS}vtab-cifar10", 10_000),
    "cifar100": Known(f"{_WDS}vtab-cifar100", 10_000),
    "aircraft": Known(f"{_WDS}fgvc_aircraft", 3_333),
    "dtd": Known(f"{_WDS}vtab-dtd", 1_880),
    "flowers": Known(f"{_WDS}vtab-flowers", 6_149),
    "pets": Known(f"{_WDS}vtab-pets", 3_669),
    "sun397": Known(f"{_WDS}sun397", 19_850),
    "caltech101": Known(f"{_WDS}vtab-caltech101", 6_085),
    "food101": Known("ethz/food101", 25_250),
    "coco": Known(f"{_WDS}mscoco_captions", 5_000),
    "flickr8k": Known(f"{_WDS}flickr8k", 1_000),
    "flickr30k": Known(f"{_WDS}flickr30k", 1_000),
    "imagenet": Known(f"{_WDS}imagenet1k", 50_000),
    "imagenet-v2": Known(f"{_WDS}imagenetv2", 10_000),
    "imagenet-a": Known(f"{_WDS}imagenet-a", 7_500),
    "imagenet-r": Known(f"{_WDS}imagenet-r", 30_000),
    "imagenet-o": Known(f"{_WDS}imagenet-o", 2_000),
    "imagenet-sketch": Known(f"{_WDS}imagenet_sketch", 50_889),
    "objectnet": Known(f"{_WDS}objectnet", 18_574),
}


def hub_repository(name: str) -> str | None:
    """The hub's repository of a known set, or of any `wds/…` of CLIP_benchmark's."""
    if name in KNOWN:
        return KNOWN[name].hub
    if name.startswith("wds/"):
        return _WDS + name.removeprefix("wds/").replace("/", "-")
    return None
