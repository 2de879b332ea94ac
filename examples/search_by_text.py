"""The images of a run that are nearest to a text: `python search_by_text.py [RUN] [TEXT]`."""

import io
import sys
from pathlib import Path

import torch
import webdataset as wds
from PIL import Image

import synthclip


@torch.inference_mode()
def main(run: str = "runs/first", text: str = "A dog on the beach.") -> None:
    model, preprocess, tokenizer = synthclip.load_model(run)
    names, features = [], []
    tars = [str(path) for path in sorted(Path(run, "images/train").glob("*.tar"))]
    for batch in wds.WebDataset(tars, shardshuffle=False).batched(64, collation_fn=None):
        pixels = [preprocess(Image.open(io.BytesIO(sample["jpg"]))) for sample in batch]
        features.append(model.encode_image(torch.stack(pixels), normalize=True))
        names += [f"{sample['__key__']}  {sample['txt'].decode()}" for sample in batch]
    scores = torch.cat(features) @ model.encode_text(tokenizer([text]), normalize=True)[0]
    for at in scores.topk(5).indices.tolist():
        print(f"{scores[at]:.3f}  {names[at]}")


if __name__ == "__main__":
    main(*sys.argv[1:])
