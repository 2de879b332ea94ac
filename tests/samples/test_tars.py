import io
import tarfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from synthclip.samples.tars import members as tar_members

NAMES = st.text(st.sampled_from("ab/.ä0"), min_size=1, max_size=12) | st.text(
    "xy/", min_size=90, max_size=240
)
MEMBERS = st.lists(
    st.tuples(
        NAMES.filter(lambda name: bool(name.strip("/"))),
        st.binary(max_size=1100),
        st.sampled_from([tarfile.REGTYPE, tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE]),
        st.sampled_from([0, 1700000000, 1700000000.25]),
    ),
    max_size=6,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(MEMBERS, st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]))
def test_it_finds_what_tarfile_finds(
    tmp_path: Path, members: list[tuple[str, bytes, bytes, float]], form: int
) -> None:
    path = tmp_path / "some.tar"
    with tarfile.open(path, "w", format=form) as tar:
        for name, data, kind, mtime in members:
            info = tarfile.TarInfo(name)
            info.type, info.mtime = kind, mtime
            info.size = len(data) if kind == tarfile.REGTYPE else 0
            try:
                tar.addfile(info, io.BytesIO(data))
            except ValueError:
                return  # a name that this format cannot hold
    with tarfile.open(path) as tar:
        expected = [(member.name, member.offset_data, member.size) for member in tar if member.isfile()]
    with path.open("rb") as handle:
        assert [(name, *place) for name, place in tar_members(handle, path.stat().st_size)] == expected


@pytest.mark.parametrize("length", [700, 512 * 3 + 100])
def test_a_torn_tar_is_an_error(tmp_path: Path, length: int) -> None:
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w") as tar:
        for name in ("a.jpg", "b.jpg"):
            info = tarfile.TarInfo(name)
            info.size = 600
            tar.addfile(info, io.BytesIO(bytes(600)))
    path = tmp_path / "torn.tar"
    path.write_bytes(whole.getvalue()[:length])
    for content in (path.read_bytes(), whole.getvalue()[: 512 + 1024] + b"x" * 512):
        with pytest.raises(tarfile.TarError):
            list(tar_members(io.BytesIO(content), len(content)))
