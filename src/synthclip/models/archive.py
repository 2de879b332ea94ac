"""Looks at a checkpoint file before torch does: what its directory declares, without inflating anything."""

import zipfile
from pathlib import Path


def archive_fault(path: Path) -> str | None:
    """Why a file cannot be what `torch.save` writes, or None. Raises OSError where it cannot be read.

    `torch.save` stores everything as it is: a file that declares more data than it holds would take memory
    for what is not there.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except zipfile.BadZipFile:
        return "not a checkpoint that torch.save wrote, or cut short"
    declared, held = sum(member.file_size for member in members), path.stat().st_size
    if declared > held or any(member.compress_type != zipfile.ZIP_STORED for member in members):
        return (
            f"refused: declares {declared:,} bytes of data in a file of {held:,} bytes, which torch.save "
            "never writes"
        )
    return None
