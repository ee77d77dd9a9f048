"""Names and colours of the classes of a label map, for other programs: in its header, and in files beside it."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from xml.etree import ElementTree

import nibabel as nib
import numpy as np

ITK_SNAP, SLICER = "labels.txt", "labels.ctbl"
"""Names of the files beside label maps: ITK-SNAP's label descriptions, and 3D Slicer's colour table."""
CARET = 30
"""Code of a header extension registered with NIfTI, that of Connectome Workbench (Caret), which holds a label table."""
LEVELS = (0, 42, 85, 127, 170, 212, 255)
"""Values of red, green and blue of which colours are made."""
DARKEST = 180
"""Sum of red, green and blue below which a colour would not show on a scan."""
SNAP_HEAD = """\
################################################
# ITK-SnAP Label Description File
# File format:
# IDX   -R-  -G-  -B-  -A--  VIS MSH  LABEL
# Fields:
#    IDX:   Zero-based index
#    -R-:   Red color component (0..255)
#    -G-:   Green color component (0..255)
#    -B-:   Blue color component (0..255)
#    -A-:   Label transparency (0.00 .. 1.00)
#    VIS:   Label visibility (0 or 1)
#    IDX:   Label mesh visibility (0 or 1)
#  LABEL:   Label description
################################################
"""
"""Comments with which ITK-SNAP begins such files."""

Colour = tuple[int, int, int]


def colours(count: int) -> list[Colour]:
    """Choose bright colours, each as far as can be from those before it; the first is red. They are always the same.

    Args:
        count: number of colours: 255 at most, as many as a label map of bytes has classes.
    """
    every = [colour for colour in itertools.product(LEVELS, repeat=3) if sum(colour) >= DARKEST and len({*colour}) > 1]
    points = np.array(every)
    distance = np.full(len(points), np.inf)
    chosen = [every.index((255, 0, 0))]
    while len(chosen) < count:
        distance = np.minimum(distance, ((points - points[chosen[-1]]) ** 2).sum(1))
        chosen.append(int(distance.argmax()))
    return [(r, g, b) for r, g, b in (every[index] for index in chosen[:count])]


def itk_snap(names: Mapping[int, str]) -> str:
    """Write the label descriptions that ITK-SNAP loads (Segmentation > Import label descriptions)."""
    rows = ['    0     0    0    0        0  0  0    "Clear Label"']
    for (number, name), (r, g, b) in zip(sorted(names.items()), colours(len(names)), strict=True):
        plain = re.sub(r'["\s]+', " ", name)
        rows.append(f'{number:>5} {r:>5} {g:>4} {b:>4}        1  1  1    "{plain}"')
    return SNAP_HEAD + "\n".join(rows) + "\n"


def slicer(names: Mapping[int, str]) -> str:
    """Write the colour table that 3D Slicer loads; names have underscores for spaces."""
    rows = ["# Color table file labels.ctbl", f"# {len(names) + 1} values", "0 background 0 0 0 0"]
    for (number, name), (r, g, b) in zip(sorted(names.items()), colours(len(names)), strict=True):
        plain = re.sub(r"\s+", "_", name)
        rows.append(f"{number} {plain} {r} {g} {b} 255")
    return "\n".join(rows) + "\n"


def _extension(names: Mapping[int, str]) -> nib.nifti1.Nifti1Extension:
    """Make the header extension with names and colours, as Connectome Workbench writes it into a label volume."""
    root = ElementTree.Element("CaretExtension")
    volume = ElementTree.SubElement(root, "VolumeInformation", Index="0")
    table = ElementTree.SubElement(volume, "LabelTable")
    every = {0: "background", **dict(sorted(names.items()))}
    for (number, name), rgb in zip(every.items(), [(0, 0, 0), *colours(len(names))], strict=True):
        red, green, blue = (f"{value / 255:.4g}" for value in rgb)
        alpha = str(int(number > 0))
        label = ElementTree.SubElement(table, "Label", Key=str(number), Red=red, Green=green, Blue=blue, Alpha=alpha)
        label.text = name
    ElementTree.SubElement(volume, "StudyMetaDataLinkSet")
    ElementTree.SubElement(volume, "VolumeType").text = "Label"
    return nib.nifti1.Nifti1Extension(CARET, ElementTree.tostring(root, encoding="UTF-8", xml_declaration=True))


def label_image(
    label: np.ndarray,
    affine: np.ndarray,
    header: nib.Nifti1Header | None = None,
    names: Mapping[int, str] | None = None,
) -> nib.Nifti1Image:
    """Make the image of a label map.

    Args:
        label: label map (D, H, W) uint8.
        affine: matrix (4, 4) to mm.
        header: header of the scan, from which the label map keeps what does not concern the values: both transforms
            with their codes, units, descriptions.
    """
    if header is not None:
        header = header.copy()
        header.set_data_dtype(np.uint8)
        header.set_slope_inter(1, 0)
        header["cal_min"] = header["cal_max"] = 0
    return nib.Nifti1Image(label, affine, header)


def name_classes(image: nib.Nifti1Image, names: Mapping[int, str]) -> None:
    """Write into the header of a label map that it is one, and the names and colours of its classes."""
    image.header.set_intent("label")
    image.header.extensions.append(_extension(names))
