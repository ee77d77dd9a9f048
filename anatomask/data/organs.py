"""Relative positions of organs, which are the same in every body; organs are found by their class names.

Three axes are judged by pairs of organs of which one always lies further right, in front, or above. People whose organs
are mirrored (situs inversus, 1 in 10,000) are the exception.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

SYNONYMS = {
    "gall bladder": "gallbladder",
    "postcava": "vena cava",
    "ivc": "vena cava",
    "arota": "aorta",
    "esophagus": "oesophagus",
    "adrenal gland": "adrenal",
    "lien": "spleen",
    "prostate uterus": "prostate",
    "brain stem": "brainstem",
    "l": "left",
    "lt": "left",
    "r": "right",
    "rt": "right",
}

ORDER: tuple[tuple[tuple[str, str], ...], ...] = (
    (("liver", "spleen"), ("liver", "stomach"), ("gallbladder", "spleen"), ("gallbladder", "stomach")),
    (
        ("mandible", "spinal cord"),
        ("mandible", "brainstem"),
        ("pancreas", "kidney"),
        ("stomach", "kidney"),
        ("gallbladder", "kidney"),
        ("bladder", "sacrum"),
        ("heart", "vertebrae"),
        ("liver", "autochthon"),
        ("bladder", "gluteus maximus"),
    ),
    (
        ("brainstem", "spinal cord"),
        ("brain", "mandible"),
        ("brain", "lung"),
        ("lung", "kidney"),
        ("lung", "bladder"),
        ("heart", "kidney"),
        ("heart", "bladder"),
        ("liver", "bladder"),
        ("liver", "prostate"),
        ("liver", "hip"),
        ("spleen", "bladder"),
        ("kidney", "bladder"),
        ("kidney", "prostate"),
        ("kidney", "femur"),
        ("spleen", "hip"),
        ("adrenal", "kidney"),
        ("oesophagus", "kidney"),
        ("oesophagus", "duodenum"),
        ("vertebrae t12", "vertebrae l2"),
        ("vertebrae l1", "vertebrae l4"),
        ("vertebrae l2", "vertebrae l5"),
        ("vertebrae t1", "vertebrae t5"),
        ("vertebrae t5", "vertebrae t10"),
        ("vertebrae c2", "vertebrae c7"),
    ),
)
"""Pairs of organs per axis: (further right, further left), (in front, behind), (above, below)."""

CLEARLY_MM = 10.0
"""Distance in mm below which two centres do not count."""


@dataclass(frozen=True)
class Organ:
    """One class in one case."""

    ml: float
    centre: tuple[float, float, float]
    """Centre of gravity in mm, RAS by the scan's header."""


@dataclass(frozen=True)
class Vote:
    """Verdict of one pair of organs on one axis."""

    axis: int
    first: str
    """Organ that should lie further right, in front or above."""
    second: str
    right: bool
    """True if the first organ does lie there."""


def votes(organs: Mapping[str, Organ]) -> list[Vote]:
    """Judge the three axes by the pairs of organs, each of at least half a millilitre.

    Args:
        organs: organs by their names in the data set.
    """
    placed = {simple_name(name): organ for name, organ in organs.items() if organ.ml >= 0.5}
    found = [(0, right, left) for right, left in twins(placed)]
    found += [(axis, first, second) for axis, pairs in enumerate(ORDER) for first, second in pairs]
    result = []
    for axis, first, second in found:
        one, two = _centre(placed, first, axis), _centre(placed, second, axis)
        if one is not None and two is not None and abs(one - two) >= CLEARLY_MM:
            result.append(Vote(axis, first, second, one > two))
    return result


def simple_name(name: str) -> str:
    """Reduce a class's name to lower-case words without synonyms: RightParotid, parotid_R → "right parotid"."""
    text = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    text = " ".join(re.findall(r"[a-z0-9]+", text.lower()))
    for synonym, common in SYNONYMS.items():
        text = re.sub(rf"\b{synonym}\b", common, text)
    return text


def has_side(name: str) -> bool:
    """Return whether a class's name says its side: left_kidney, KidneyRight, Parotid_L, lt kidney."""
    return any(side in simple_name(name) for side in ("left", "right"))


def twins(names: Iterable[str]) -> Iterator[tuple[str, str]]:
    """List the (right, left) simple names that differ only in the side."""
    paired: dict[frozenset[str], dict[str, str]] = {}
    for name in names:
        words = frozenset(name.split())
        for side in words & {"right", "left"}:
            paired.setdefault(words - {side}, {})[side] = name
    for words, sides in paired.items():
        if words and len(sides) == 2:
            yield sides["right"], sides["left"]


def _centre(organs: Mapping[str, Organ], name: str, axis: int) -> float | None:
    """Compute the common centre of all organs whose name has the words of `name`."""
    words = set(name.split())
    members = [organ for own, organ in organs.items() if words <= set(own.split())]
    if not members:
        return None
    return float(np.average([organ.centre[axis] for organ in members], weights=[organ.ml for organ in members]))
