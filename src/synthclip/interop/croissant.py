"""Croissant: a run's images described for machines, in JSON-LD beside the data card.

MLCommons, Croissant Format Specification 1.1 (2026) and its vocabulary for responsible AI (1.0, 2024).
"""

from pathlib import Path
from typing import Any

import synthclip
from synthclip.errors import SynthClipError
from synthclip.interop.cards import data_card, synthetic_tag
from synthclip.interop.origins import Origins, read_origins
from synthclip.run.durable import to_json
from synthclip.run.store import RunDirectory
from synthclip.schema import IMAGE_SPLITS

CROISSANT_FILE = "croissant.json"

_TERMS = (
    "annotation arrayShape citeAs column containedIn equivalentProperty excludes extract field fileProperty "
    "fileObject fileSet format includes isArray isLiveDataset jsonPath key md5 parentField path readLines "
    "recordSet references regex repeated replace samplingRate sdVersion separator source subField transform "
    "unArchive value"
)
_CONTEXT: dict[str, Any] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "sc": "https://schema.org/",
    "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "dct": "http://purl.org/dc/terms/",
    "prov": "http://www.w3.org/ns/prov#",
    "conformsTo": "dct:conformsTo",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "description": {"@container": "@language"},
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "name": {"@container": "@language"},
    **{term: f"cr:{term}" for term in _TERMS.split()},
}
"""The context of the specification's first appendix, and PROV-O."""
_NO_CHECKSUM = "https://github.com/mlcommons/croissant/issues/80"
"""What the specification's own examples give as the checksum of a repository."""
_FIELDS = {
    "key": ("sc:Text", "The name of the sample's files in its tar."),
    "text": ("sc:Text", "The caption, which was the prompt of the image."),
    "concept_ids": ("sc:Integer", "The concepts in the caption, by their number in the concept bank."),
    "variant": ("sc:Integer", "Which image of its caption it is."),
    "seed": ("sc:Integer", "The seed that the image was painted from."),
    "backend": ("sc:Text", "The model that made the image, with its revision where it is known."),
    "sha256": ("sc:Text", "The SHA-256 of the JPEG."),
    "width_px": ("sc:Integer", "Width in pixels."),
    "height_px": ("sc:Integer", "Height in pixels."),
    "shard": ("sc:Text", "The tar that holds the JPEG."),
    "offset": ("sc:Integer", "Where the JPEG begins in its tar, in bytes."),
    "length": ("sc:Integer", "The size of the JPEG, in bytes."),
}


def data_set_files(run: Path, repo: str) -> dict[str, str]:
    """What stands beside a published data set, by name: its card, and the same for machines."""
    return {"README.md": data_card(run, repo), CROISSANT_FILE: to_json(croissant(run, repo))}


def croissant(run: Path, repo: str) -> dict[str, Any]:
    """What is known of a run's images, as JSON-LD for the repository `repo` of the Hugging Face hub.

    `repo` may also be the address of another place. Raises SynthClipError where the run holds no images.
    """
    directory = RunDirectory(run)
    with directory.cached_manifests():
        manifests = directory.manifests("images")
        origins = read_origins(directory)
    counts = {split: sum(one.rows for one in manifests if one.split == split) for split in IMAGE_SPLITS}
    splits = [split for split, count in counts.items() if count]
    if not splits:
        raise SynthClipError(f"{run}: holds no images to describe: run `synthclip images` first")
    url = repo if "://" in repo else f"https://huggingface.co/datasets/{repo}"
    said = filter(None, (origins.of_synthesis(), origins.of_captions(), origins.of_images()))
    sizes = ", ".join(f"{split} {counts[split]:,}" for split in splits)
    return {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": ["http://mlcommons.org/croissant/1.1", "http://mlcommons.org/croissant/RAI/1.0"],
        "name": repo.rstrip("/").rpartition("/")[2],
        "description": " ".join([*said, f"Images: {sizes}."]),
        "url": url,
        "license": list(origins.licences) or ["not recorded"],
        "keywords": ["CLIP", "image-text pairs", "webdataset", *synthetic_tag(origins)],
        "isLiveDataset": False,
        "distribution": _distribution(url, splits, origins),
        "recordSet": [_images()],
        **_provenance(origins),
        **_responsible(origins),
    }


def _distribution(url: str, splits: list[str], origins: Origins) -> list[dict[str, Any]]:
    types = {one.source_type for one in origins.generators if one.source_type}
    inside = {"@type": "cr:FileSet", "containedIn": {"@id": "repo"}}
    return [
        {
            "@type": "cr:FileObject",
            "@id": "repo",
            "name": "repo",
            "description": "The repository.",
            "contentUrl": url,
            "encodingFormat": "git+https",
            "sha256": _NO_CHECKSUM,
        },
        {
            **inside,
            "@id": "sidecars",
            "name": "sidecars",
            "description": "One Parquet file beside each tar, with a row for each of its images.",
            "encodingFormat": "application/x-parquet",
            "includes": [f"{split}/*.parquet" for split in splits],
        },
        {
            **inside,
            "@id": "tars",
            "name": "tars",
            "description": "WebDataset tars: KEY.jpg, KEY.txt (the caption), KEY.json (how it was made).",
            "encodingFormat": "application/x-tar",
            "includes": [f"{split}/*.tar" for split in splits],
        },
        {
            "@type": "cr:FileSet",
            "@id": "jpegs",
            "name": "jpegs",
            "description": "The images in the tars; `shard`, `offset` and `length` say where each lies.",
            "containedIn": {"@id": "tars"},
            "encodingFormat": "image/jpeg",
            "includes": "*.jpg",
            **({"digitalSourceType": sorted(types)} if types else {}),
        },
    ]


def _images() -> dict[str, Any]:
    fields: list[dict[str, Any]] = [
        {
            "@type": "cr:Field",
            "@id": f"images/{name}",
            "name": f"images/{name}",
            "description": description,
            "dataType": kind,
            "source": {"fileSet": {"@id": "sidecars"}, "extract": {"column": name}},
            **({"isArray": True, "arrayShape": "-1"} if name == "concept_ids" else {}),
        }
        for name, (kind, description) in _FIELDS.items()
    ]
    split = {
        "@type": "cr:Field",
        "@id": "images/split",
        "name": "images/split",
        "description": "The split that the image belongs to: the folder of its shard.",
        "dataType": "sc:Text",
        "source": {
            "fileSet": {"@id": "sidecars"},
            "extract": {"fileProperty": "fullpath"},
            "transform": {"regex": "([^/]+)/[^/]+$"},
        },
    }
    return {
        "@type": "cr:RecordSet",
        "@id": "images",
        "name": "images",
        "description": "What is known of each image.",
        "key": {"@id": "images/key"},
        "field": [*fields, split],
    }


def _provenance(origins: Origins) -> dict[str, Any]:
    """Which model made what, under which licence, in PROV-O."""
    activities = [
        {
            "@type": "prov:Activity",
            "prov:label": f"{one.makes} by {one.name}",
            "prov:wasAssociatedWith": {
                "@type": "prov:SoftwareAgent",
                "prov:label": one.name,
                **({"license": one.licence} if one.licence else {}),
                **({"usageInfo": one.terms} if one.terms else {}),
                **({"digitalSourceType": one.source_type} if one.source_type else {}),
            },
        }
        for one in origins.generators
    ]
    return {"prov:wasGeneratedBy": activities} if activities else {}


def _responsible(origins: Origins) -> dict[str, Any]:
    """What can be said for responsible use; nothing that the run does not record."""
    said = [
        *(f"{one.name}: {one.terms}." for one in origins.generators if one.terms),
        "Captions and images have the biases of the models that made them; no person has checked them all.",
    ]
    found: dict[str, Any] = {
        "rai:dataCollection": f"Made by SynthCLIP {synthclip.__version__} by the method of arXiv 2402.01832. "
        + " ".join(filter(None, (origins.of_captions(), origins.of_images()))),
        "rai:dataLimitations": " ".join(said),
        "rai:dataUseCases": "Training and evaluation of contrastive image-text models.",
    }
    if origins.captions_generated and origins.images_generated:
        found["rai:dataCollectionType"] = ["Synthetic"]
        found["rai:hasSyntheticData"] = True
        found["rai:personalSensitiveInformation"] = (
            "None was put in. A model may have memorised some of what it was trained on."
        )
    return found
