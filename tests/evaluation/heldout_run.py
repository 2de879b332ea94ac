"""A run on disk as the stages before `eval` leave it."""

import io
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

from small_inputs import MODEL_CONFIG, save_model
from synthclip import schema
from synthclip.keys import image_key, text_id
from synthclip.run.store import Outcome, RunDirectory

CONCEPTS = ("apple", "bus", "cat", "dog", "egg", "fox", "goat", "house")
CAPTIONS = {
    "a red apple": (0,),
    "a yellow bus": (1,),
    "a cat and a dog": (2, 3),
    "an egg": (4,),
    "a fox runs": (5,),
    "one goat": (6,),
    "the house": (7,),
}


def picture(seed: int, side: int = 40) -> bytes:
    """A JPEG of random blocks, so that any two differ after preprocessing."""
    blocks = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(blocks).resize((side, side), Image.Resampling.NEAREST).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def write_run(path: Path, *, images_per_caption: int = 2, broken: int = 0) -> RunDirectory:
    """A run as the stages before `eval` leave it: concepts, held-out captions and images, a model."""
    run = RunDirectory(path)
    with run.begin("concepts", "00000", "x") as writer:
        rows = [{"concept_id": n, "text": text, "source": "test"} for n, text in enumerate(CONCEPTS)]
        writer.rows("00000.parquet", schema.CONCEPT, rows)
        writer.commit(Outcome(len(rows)))
    by_id = {text_id(text): (text, ids) for text, ids in CAPTIONS.items()}
    with run.begin("balance", "all", "x") as writer:
        rows = [
            {"caption_id": key, "text": text, "concept_ids": list(ids), "keep_probability": 1.0}
            for key, (text, ids) in sorted(by_id.items())
        ]
        writer.rows("heldout/00000.parquet", schema.SELECTED, rows)
        writer.commit(Outcome(len(rows)))
    shards = [sorted(by_id)[:4], sorted(by_id)[4:]]
    for number, ids_here in enumerate(shards):
        with run.begin("images", f"heldout/{number:05d}", "x") as writer:
            sidecar = []
            tar_path = writer.path(f"heldout/{number:05d}.tar")
            with tarfile.open(tar_path, "w") as tar:
                for caption_id in ids_here:
                    for variant in range(images_per_caption):
                        data = picture(caption_id % 2**32 + variant)
                        if broken:
                            data, broken = b"not a picture", broken - 1
                        info = tarfile.TarInfo(f"{image_key(caption_id, variant)}.jpg")
                        info.size = len(data)
                        offset = tar.offset + 512
                        tar.addfile(info, io.BytesIO(data))
                        sidecar.append(
                            {
                                "key": image_key(caption_id, variant),
                                "caption_id": caption_id,
                                "text": by_id[caption_id][0],
                                "concept_ids": by_id[caption_id][1],
                                "variant": variant,
                                "shard": f"{number:05d}.tar",
                                "offset": offset,
                                "length": len(data),
                            }
                        )
            writer.rows(f"heldout/{number:05d}.parquet", schema.IMAGE, sidecar)
            writer.commit(Outcome(len(sidecar)))
    with run.begin("train", "all", "x") as writer:
        save_model(writer.path("model/weights").parent, **MODEL_CONFIG)
        writer.commit(Outcome(1))
    return run
