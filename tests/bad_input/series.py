"""Bad DICOM: a series that is skipped, while two others go through."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tests.bad_input.kinds import Kind
from tests.data.datasets.series import change, write_series

PREPARE = "prepare --source dicom --preprocess.spacing 2 2 2 --out out"
Files = list[Path]


def bad_series(name: str, spoil: Callable[[Files], object], says: str) -> Kind:
    """Return the kind of a series that `spoil` damages."""

    def write(folder: Path) -> None:
        rng = np.random.default_rng(0)
        for series in ("one", "two", "bad"):
            voxels = rng.integers(-1000, 1000, (8, 6, 4)).astype(np.int16)
            files = write_series(folder / "dicom" / series, voxels, np.diag([1.0, 1, 2, 1]))
        spoil(files)

    return Kind(name, PREPARE, says, write, skips=True)


def tag(**tags: Any) -> Callable[[Files], object]:
    """Set tags of the second slice."""
    return lambda files: change(files[1], **tags)


def tags(**values: Any) -> Callable[[Files], object]:
    """Set tags of all slices."""

    def spoil(files: Files) -> None:
        for file in files:
            change(file, **values)

    return spoil


def beside(name: str, content: bytes) -> Callable[[Files], object]:
    """Put a file beside the slices."""
    return lambda files: files[0].with_name(name).write_bytes(content)


def syntax(uid: bytes) -> Callable[[Files], object]:
    """Let the second slice claim a transfer syntax of 19 characters."""

    def spoil(files: Files) -> None:
        files[1].write_bytes(files[1].read_bytes().replace(b"1.2.840.10008.1.2.1\0", uid + b"\0"))

    return spoil


def all_but_one(files: Files) -> None:
    """Remove all slices but the first."""
    for file in files[1:]:
        file.unlink()


def nested(files: Files) -> None:
    """Put 5,000 sequences within each other into the header of the second slice."""
    level = b"\x08\x00\x10\x11SQ\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff"
    content = files[1].read_bytes()
    at = content.index(b"\x08\x00\x16\x00UI")
    files[1].write_bytes(content[:at] + 5000 * level + content[at:])


PIXELS = r"dicom/bad/\d+\.dcm: its pixels cannot be read.*get it again"
PLACE = r"dicom/bad/\d+\.dcm does not say where its slice lies.*leave it out"
LOST = r"dicom/bad/\w+\.dcm is no DICOM file or is damaged; get it again"

KINDS = [
    bad_series("a slice that is missing", lambda files: files[1].unlink(), "dicom/bad: (a slice is missing|uneven)"),
    bad_series("a slice twice", lambda files: files[1].with_name("x.dcm").write_bytes(files[1].read_bytes()), "same"),
    bad_series("one slice alone", all_but_one, "the only slice of its series"),
    bad_series("a slice that is cut off", lambda files: os.truncate(files[1], 700), "dicom/bad"),
    bad_series("an empty slice", beside("x.dcm", b""), LOST),
    bad_series("a slice of random bytes", beside("x.dcm", np.random.default_rng(0).bytes(5000)), LOST),
    bad_series("a slice without pixels", tag(PixelData=None), PIXELS),
    bad_series("a slice of no pixel", tag(PixelData=b""), PIXELS),
    bad_series("a slice of 7 bits", tag(BitsAllocated=7), PIXELS),
    bad_series("a slice of 64 bits", tag(BitsAllocated=64), PIXELS),
    bad_series("a slice that is compressed in no known way", syntax(b"1.2.840.99999.1.2.1"), PIXELS),
    bad_series("a slice of colours", tag(SamplesPerPixel=3), "is a colour picture, no scan; leave it out"),
    bad_series("a slice of many frames", tag(NumberOfFrames=8), "many frames.*convert it to NIfTI"),
    bad_series("a slice without HU", tag(RescaleSlope=None), "its HU are unknown; leave the series out"),
    bad_series("a series whose slope is 0", tags(RescaleSlope=0), "dicom/bad is -1024 in every voxel"),
    bad_series("a series whose slope is NaN", tags(RescaleSlope="nan"), "NaN or infinite; leave it out"),
    bad_series("a series whose slope is 1e300", tags(RescaleSlope="1e300"), "NaN or infinite; leave it out"),
    bad_series("a slice nowhere", tag(ImagePositionPatient=["nan", "0", "0"]), PLACE),
    bad_series("a slice at two numbers", tag(ImagePositionPatient=["1", "0"]), PLACE),
    bad_series("slices without orientation", tags(ImageOrientationPatient=[0] * 6), PLACE),
    bad_series("pixels of -1 mm", tags(PixelSpacing=["-1", "1"]), PLACE),
    bad_series("pixels of 10**9 mm", tags(PixelSpacing=["1e9", "1e9"]), "dicom/bad"),
    bad_series("a series that claims 65,535 squared pixels", tags(Rows=65535, Columns=65535), "dicom/bad"),
    bad_series("sequences of many levels", nested, LOST),
]
