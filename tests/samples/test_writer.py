"""The writer of tars."""

import io
import json
import tarfile
import tempfile
from pathlib import Path

from hypothesis import example, given
from hypothesis import strategies as st

from synthclip.samples.tars import TarWriter

names = st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=120).filter(
    lambda name: len(name.encode()) < 96
)


@given(st.dictionaries(names, st.tuples(st.binary(max_size=1100), st.text()), max_size=4))
@example({f"{'folder' * 12}/{'k' * 60}": (b"j" * 512, "long names are split in two")})
@example({f"{n:016x}_00": (bytes(3000), "as many as fill a record") for n in range(2)})
def test_the_bytes_are_those_of_tarfile(samples: dict[str, tuple[bytes, str]]) -> None:
    theirs = io.BytesIO()
    with tarfile.open(fileobj=theirs, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for key, (jpeg, caption) in samples.items():
            metadata = json.dumps({"a": caption, "b": [1]}, ensure_ascii=False)
            for kind, data in (
                ("jpg", jpeg),
                ("txt", caption.encode("utf-8", "replace")),
                ("json", metadata.encode("utf-8", "replace")),
            ):
                entry = tarfile.TarInfo(f"{key}.{kind}")
                entry.size = len(data)
                tar.addfile(entry, io.BytesIO(data))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ours.tar"
        with TarWriter(path) as shard:
            places = {
                key: shard.add(key, jpeg, caption, {"b": [1], "a": caption})
                for key, (jpeg, caption) in samples.items()
            }
        ours = path.read_bytes()
    assert ours == theirs.getvalue()
    for key, (offset, length) in places.items():
        assert ours[offset : offset + length] == samples[key][0]
