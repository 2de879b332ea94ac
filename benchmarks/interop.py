"""Import of official-format data, beside what a user would write: unzip, Pillow, webdataset's writer.

    python benchmarks/interop.py [--zips 5 20] [--images 1000]

Makes the data first: zips of 256 px JPEGs and the tab-separated CSV. Both sides read the same files and write
tars of the same samples; the second one unpacks to disk, as the data set's page suggests.
"""

import argparse
import csv
import io
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

import cv2
import numpy as np
import simplejpeg

SIDE_PX = 256


def make_data(root: Path, zips: int, images: int) -> None:
    """Pictures with smooth and fine structure, at Pillow's default quality: 15 KB each."""
    data = root / "SynthCI-30" / "data"
    data.mkdir(parents=True)
    rng = np.random.default_rng(0)
    with (root / "SynthCI-30" / "combined_images_and_captions.csv").open("w", newline="") as out:
        rows = csv.writer(out, delimiter="\t", lineterminator="\n")
        rows.writerow(["image_path", "caption"])
        for number in range(zips):
            with zipfile.ZipFile(data / f"{number}.zip", "w", zipfile.ZIP_DEFLATED) as archive:
                for index in range(images):
                    coarse = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
                    picture = cv2.resize(coarse, (SIDE_PX, SIDE_PX), interpolation=cv2.INTER_CUBIC)
                    noise = rng.integers(-6, 7, picture.shape)
                    picture = np.clip(picture + noise, 0, 255).astype(np.uint8)
                    name = f"{number}/{index}_0.jpeg"
                    archive.writestr(name, simplejpeg.encode_jpeg(picture, 75))
                    rows.writerow([name, f'A "{index}" painted on the wall of house number {number}.'])


def ours(root: Path, out: Path) -> int:
    from synthclip.imagegen.imported import import_synthci

    return import_synthci(root, out).images


def theirs(root: Path, out: Path) -> int:
    import webdataset
    from PIL import Image

    base = root / "SynthCI-30"
    unpacked = out / "unpacked"
    for path in sorted((base / "data").glob("*.zip")):
        with zipfile.ZipFile(path) as archive:
            archive.extractall(unpacked)
    count = 0
    with (
        (base / "combined_images_and_captions.csv").open(newline="") as rows,
        webdataset.ShardWriter(str(out / "%05d.tar"), maxcount=1000, verbose=0) as writer,
    ):
        for row in csv.DictReader(rows, delimiter="\t"):
            jpeg = (unpacked / row["image_path"]).read_bytes()
            Image.open(io.BytesIO(jpeg)).load()
            key = row["image_path"].replace("/", "-").removesuffix(".jpeg")
            writer.write({"__key__": key, "jpg": jpeg, "txt": row["caption"], "json": {"key": key}})
            count += 1
    return count


def side(name: str, root: Path, out: Path) -> None:
    """One side, in a process of its own so that its peak memory is its own."""
    started = time.perf_counter()
    count = {"ours": ours, "theirs": theirs}[name](root, out)
    seconds = time.perf_counter() - started
    peaks = [resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    print(f"RESULT {count} {seconds} {max(peaks) / 1024}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--zips", type=int, nargs="+", default=[5, 20])
    parser.add_argument("--images", type=int, default=1000, help="in each zip")
    parser.add_argument("--side", nargs=3, metavar=("NAME", "DATA", "OUT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        name, root, out = options.side
        side(name, Path(root), Path(out))
        return
    print("| images | zips | side | images/s | times | peak MiB of a process | disk written, MB |")
    print("|---|---|---|---|---|---|---|")
    for zips in options.zips:
        with tempfile.TemporaryDirectory() as scratch:
            root = Path(scratch) / "data"
            make_data(root, zips, options.images)
            rates: dict[str, float] = {}
            for name in ("theirs", "ours"):
                out = Path(scratch) / name
                out.mkdir()
                command = [sys.executable, __file__, "--side", name, str(root), str(out)]
                told = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
                line = next(line for line in told.splitlines() if line.startswith("RESULT"))
                count, seconds, peak_mib = (float(value) for value in line.split()[1:])
                rates[name] = count / seconds
                written = sum(path.stat().st_size for path in out.rglob("*") if path.is_file()) / 1e6
                label = {"ours": "synthclip import", "theirs": "unzip + Pillow + webdataset"}[name]
                print(
                    f"| {count:.0f} | {zips} | {label} | {rates[name]:.0f} | "
                    f"{rates[name] / rates['theirs']:.1f} | {peak_mib:.0f} | {written:.0f} |",
                    flush=True,
                )
                shutil.rmtree(out)


if __name__ == "__main__":
    main()
