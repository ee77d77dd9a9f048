"""One human trunk in numbers: position, size and density of the phantom's organs.

Coordinates are mm in the reference body: right, anterior, superior, from the midline, the body's axis and the lower
edge of the fifth lumbar vertebra. Names are TotalSegmentator v1's.
"""

from __future__ import annotations

from typing import NamedTuple

from anatomask.data.phantom_shapes import Point

BOTTOM, TOP = -130.0, 440.0
HALF_WIDTH = 182.0
HALF_DEPTH = 130.0
MIDDLE = -8.0

# Outline of the trunk by height: half-width, half-depth, fat under the skin (times the case's), muscle and bone wall.
HEIGHT = [-160, -90, -20, 60, 140, 220, 300, 380, 420, 470]
WIDTH = [170, 180, 174, 156, 152, 160, 166, 164, 168, 182]
DEPTH = [116, 126, 121, 112, 113, 120, 125, 118, 106, 88]
FAT = [1.5, 1.6, 1.4, 1.1, 1.0, 0.8, 0.6, 0.5, 0.5, 0.6]
WALL = [45, 42, 28, 12, 12, 15, 18, 22, 30, 45]

# Vertebrae from below: lower edge and half-width of the body, in mm.
VERTEBRAE = {
    "L5": (0, 25), "L4": (37, 24), "L3": (73, 24), "L2": (109, 23), "L1": (144, 22), "T12": (177, 21),
    "T11": (207, 20), "T10": (236, 19), "T9": (263, 18), "T8": (289, 17), "T7": (314, 16), "T6": (338, 16),
    "T5": (361, 15), "T4": (383, 15), "T3": (404, 14), "T2": (424, 14), "T1": (443, 14), "C7": (461, 13),
}  # fmt: skip
# Ribs from above: height at the spine, how far they run round the chest (1: to the front), how much they fall.
RIBS = [
    (442, 0.80, 35), (428, 0.82, 55), (410, 0.83, 70), (390, 0.84, 80), (368, 0.84, 85), (346, 0.84, 90),
    (322, 0.82, 90), (298, 0.72, 88), (272, 0.66, 86), (246, 0.60, 82), (218, 0.46, 75), (190, 0.32, 60),
]  # fmt: skip


class Blob(NamedTuple):
    """An ellipsoid organ; `enhanced` is what contrast medium adds to its CT number at full dose."""

    name: str
    centre: Point
    radii: Point
    hu: float
    enhanced: float = 0.0
    turn: float = 0.0
    tilt: float = 0.0


class Tube(NamedTuple):
    """An organ along a line; the midline mirrors it where `mirrored` names the other side."""

    name: str
    points: tuple[Point, ...]
    radii: tuple[float, ...] | float
    hu: float
    enhanced: float = 0.0


CHAMBERS = (
    Blob("heart_atrium_left", (0, -8, 316), (30, 17, 21), 42, 190),
    Blob("heart_atrium_right", (32, 20, 298), (19, 24, 29), 42, 170),
    Blob("heart_ventricle_right", (-8, 46, 288), (38, 19, 29), 42, 160, -25),
    Blob("heart_myocardium", (-42, 18, 284), (31, 34, 40), 45, 70, -30, 25),
    Blob("heart_ventricle_left", (-42, 18, 287), (19, 22, 29), 42, 190, -30, 25),
)
UPPER = (
    Blob("gallbladder", (50, 52, 158), (14, 25, 17), 8, 0),
    Blob("spleen", (-108, -28, 212), (27, 46, 48), 48, 75, 25, -10),
    Blob("adrenal_gland_right", (36, -26, 197), (5, 13, 13), 25, 50, 20),
    Blob("adrenal_gland_left", (-34, -26, 203), (6, 13, 13), 25, 50, -20),
)
MUSCLES = (
    Blob("gluteus_maximus_left", (-78, -62, -55), (62, 24, 72), 52, 8, 22, 0),
    Blob("gluteus_maximus_right", (78, -62, -55), (62, 24, 72), 52, 8, -22, 0),
    Blob("gluteus_medius_left", (-118, -8, -5), (22, 46, 52), 54, 8, 15, 12),
    Blob("gluteus_medius_right", (118, -8, -5), (22, 46, 52), 54, 8, -15, -12),
    Blob("gluteus_minimus_left", (-106, 6, -28), (15, 30, 34), 54, 8, 15, 15),
    Blob("gluteus_minimus_right", (106, 6, -28), (15, 30, 34), 54, 8, -15, -15),
    Blob("urinary_bladder", (0, 28, -86), (40, 34, 29), 6, 0),
)
VESSELS = (
    Tube("inferior_vena_cava", ((19, -8, 52), (22, -6, 150), (27, 2, 225), (27, 12, 275)), (10, 11, 13, 13), 42, 90),
    Tube("iliac_vena_right", ((19, -10, 52), (38, -12, -5), (66, 15, -55), (78, 46, -100)), (9, 8, 7, 7), 42, 80),
    Tube("iliac_vena_left", ((17, -10, 50), (-28, -14, 2), (-62, 12, -55), (-76, 46, -100)), (9, 8, 7, 7), 42, 80),
    Tube("portal_vein_and_splenic_vein",
         ((55, 22, 222), (30, 22, 202), (8, 18, 188), (-30, 8, 194), (-84, -20, 212)), (8, 8, 7, 5, 5), 42, 120),
    Tube("pulmonary_artery", ((-14, 42, 318), (-10, 22, 342), (8, 2, 348), (52, -8, 340)), (13, 13, 11, 8), 42, 200),
    Tube("pulmonary_artery", ((-10, 22, 342), (-36, 2, 346), (-56, -10, 340)), (12, 10, 7), 42, 200),
    Tube("aorta",
         ((-8, 20, 312), (10, 30, 345), (10, 20, 378), (-4, 2, 390), (-20, -22, 378), (-25, -32, 345),
          (-22, -28, 260), (-12, -16, 190), (-8, -8, 110), (-6, -6, 56)),
         (14, 15, 14, 13, 12, 12, 11, 11, 9, 8), 42, 200),
    Tube("iliac_artery_right", ((-5, -4, 57), (30, 2, 5), (56, 22, -45), (74, 56, -100)), (7, 6, 5, 5), 42, 180),
    Tube("iliac_artery_left", ((-8, -4, 57), (-34, 2, 5), (-58, 22, -45), (-74, 56, -100)), (7, 6, 5, 5), 42, 180),
)  # fmt: skip
LONG_MUSCLES = (
    Tube("autochthon_left", ((-24, -88, -80), (-33, -87, 40), (-33, -87, 160), (-28, -90, 300), (-22, -86, 470)),
         (12, 28, 27, 21, 15), 50, 8),
    Tube("iliopsoas_left", ((-36, -36, 165), (-46, -28, 80), (-62, -14, 20), (-84, 20, -50), (-92, 24, -125)),
         (6, 18, 23, 20, 14), 54, 8),
)  # fmt: skip
COLON = (
    (72, 22, 15), (88, 6, 60), (98, -4, 120), (88, 22, 150), (45, 66, 128), (0, 76, 116), (-50, 66, 140),
    (-92, 20, 178), (-108, -14, 150), (-108, -16, 80), (-96, 4, 25), (-62, 20, -12), (-18, 22, -28), (8, -8, -42),
    (0, -40, -75), (0, -48, -128),
)  # fmt: skip
