"""The phantom's organs, painted one over the other: what is painted later lies on top.

Coordinates are those of `phantom_atlas`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from anatomask.data import phantom_atlas as atlas
from anatomask.data.phantom_atlas import Blob, Tube
from anatomask.data.phantom_shapes import AIR, EVERYWHERE, Array, Canvas, Point, Region, smooth_field


@dataclass(frozen=True)
class Patient:
    """Differences between bodies and scans beyond the deformation."""

    fat: float
    """Thickness of the fat under the skin, in mm."""
    contrast: float
    """Dose and phase of the contrast medium: 0 none, 1 full."""
    bone: float
    """Mineral density relative to a young adult."""
    gas: float
    """Share of the bowel that holds gas."""


class Painter:
    """Painter of one patient on a canvas."""

    def __init__(self, canvas: Canvas, patient: Patient, ids: Mapping[str, int], rng: np.random.Generator) -> None:
        self.canvas, self.patient, self.ids, self.rng = canvas, patient, ids, rng
        shape = canvas.hu.shape
        self.grain = smooth_field(rng, shape, [max(4, n // 6) for n in shape])
        # Two fields vanish together along lines: thin branching strands, which pass for vessels.
        strands = [smooth_field(rng, shape, [max(4, n // 5) for n in shape]) for _ in range(2)]
        self.strands = np.clip(1.3 - np.hypot(*strands) / 0.3, 0, 1).astype(np.float32)
        self.x, self.y, self.z = canvas.points
        self.outline, self.skin = self._outline()
        self.inside = self.skin - self.by_height(atlas.FAT) * np.float32(patient.fat) - self.by_height(atlas.WALL)
        self.dome = self._diaphragm()

    def paint(self) -> None:
        """Paint everything, from the skin inwards and from the soft to the hard."""
        self.tissue()
        self.lungs()
        self.heart()
        self.muscles()
        self.bowel()
        self.upper_abdomen()
        self.kidneys()
        for vessel in atlas.VESSELS:
            self.tube(vessel)
        self.airway()
        self.ribs()
        self.shoulders()
        self.pelvis()
        self.spine()

    def by_height(self, values: list[float] | list[int]) -> Array:
        """Interpolate one of the tables above at the height of every voxel."""
        return np.interp(self.z, atlas.HEIGHT, values).astype(np.float32)

    def density(self, hu: float, enhanced: float = 0.0) -> float:
        """Return the CT number of an organ in this patient's scan, in HU."""
        return hu + enhanced * self.patient.contrast

    def textured(self, hu: float, amount: float, region: Region) -> Array:
        """Return a CT number that varies smoothly by `amount` HU (standard deviation)."""
        return hu + np.float32(amount) * self.grain[region]

    def blob(self, organ: Blob) -> None:
        """Paint an ellipsoid organ, its place and size varied a little, kept within the body wall."""
        sway = self.rng.normal(0, 2.5, 3)
        grow = self.rng.uniform(0.92, 1.08, 3)
        found = self.canvas.ellipsoid(
            _moved(organ.centre, sway), _moved((0, 0, 0), np.asarray(organ.radii) * grow), organ.turn, organ.tilt
        )
        if found is not None:
            depth, region = found
            limit = self.skin[region] - np.float32(self.patient.fat + 2)
            hu = self.textured(self.density(organ.hu, organ.enhanced), 4, region)
            self.canvas.paint(np.minimum(depth, limit), hu, self.ids[organ.name], region)

    def tube(self, organ: Tube) -> None:
        """Paint an organ along a line, kept within the skin."""
        found = self.canvas.tube(organ.points, organ.radii)
        if found is not None:
            depth, region = found
            depth = np.minimum(depth, self.skin[region] - np.float32(4 + 0.4 * self.patient.fat))
            hu = self.textured(self.density(organ.hu, organ.enhanced), 4, region)
            self.canvas.paint(depth, hu, self.ids[organ.name], region)

    def bone(self, found: tuple[Array, Region] | None, name: str | None, shell: float = 2.5) -> None:
        """Paint a dense shell round spongy bone; `name` is None for bones that have no class."""
        if found is None:
            return
        depth, region = found
        self.canvas.paint(depth, 480 * self.patient.bone, 0 if name is None else self.ids[name], region)
        self.canvas.paint(depth - shell, self.textured(165 * self.patient.bone, 30, region), None, region)

    def _outline(self) -> tuple[Array, Array]:
        """Compute the relative distance from the body's axis (1 at the skin), and the depth under the skin in mm."""
        power, y = np.float32(2.35), self.y - np.float32(atlas.MIDDLE)
        wide, deep = self.by_height(atlas.WIDTH), self.by_height(atlas.DEPTH)
        relative = ((np.abs(self.x) / wide) ** power + (np.abs(y) / deep) ** power) ** (1 / power) + 1e-3
        return relative, np.asarray(np.hypot(self.x, y) * (1 / relative - 1), dtype=np.float32)

    def _diaphragm(self) -> Array:
        """Compute the height of the diaphragm above each voxel's place, in mm: three domes."""
        domes = [(75, 5, 78, 85, 276, 62), (-75, 5, 78, 85, 262, 60), (-15, 20, 80, 75, 254, 45)]
        heights = [
            top - fall * (((self.x - cx) / wx) ** 2 + ((self.y - cy) / wy) ** 2) for cx, cy, wx, wy, top, fall in domes
        ]
        return np.asarray(np.maximum.reduce(heights), dtype=np.float32)

    def tissue(self) -> None:
        """Paint skin, fat, the muscular wall, and the fat of chest and belly."""
        canvas = self.canvas
        canvas.paint(self.skin, 5)
        canvas.paint(self.skin - 2.5, self.textured(-105, 6, EVERYWHERE))
        marbled = self.textured(52, 6, EVERYWHERE) - 90 * np.clip(self.grain - 1.6, 0, 1)
        canvas.paint(self.skin - self.by_height(atlas.FAT) * np.float32(self.patient.fat), marbled)
        canvas.paint(self.inside, -98 + 80 * self.strands)

    def lungs(self) -> None:
        """Paint five lobes within the chest wall, above the diaphragm and beside the mediastinum."""
        canvas, x, y, z = self.canvas, self.x, self.y, self.z
        apex = np.clip(z - 385, 0, None) * np.float32(0.6)
        beside = np.abs(x + 4) - np.float32(24) - 10 * np.clip((y - 10) / 60, -1, 1)
        depth = np.minimum(np.minimum(self.inside - apex, (z - self.dome) * np.float32(0.8)), beside)
        posterior = np.clip(-y / 90, -1, 1)
        hu = -865 + 25 * self.grain + 30 * posterior + (640 + 120 * self.patient.contrast) * self.strands
        canvas.paint(depth, np.asarray(hu, dtype=np.float32))
        lower = z < 325 - 1.1 * y
        middle = ~lower & (z < 322 + 0.15 * y)
        lobe = np.select(
            [lower & (x < 0), x < 0, lower, middle],
            [
                self.ids["lung_lower_lobe_left"], self.ids["lung_upper_lobe_left"],
                self.ids["lung_lower_lobe_right"], self.ids["lung_middle_lobe_right"],
            ],
            self.ids["lung_upper_lobe_right"],
        )  # fmt: skip
        inside = depth > 0
        canvas.label[inside] = lobe[inside]

    def heart(self) -> None:
        """Paint pericardial fat, then the chambers in it; the thymic and mediastinal fat is already there."""
        found = self.canvas.ellipsoid((-12, 18, 296), (66, 54, 56), -20, 15)
        if found is not None:
            self.canvas.paint(found[0], -85, 0, found[1])
            self.canvas.paint(found[0] - 6, 30, 0, found[1])
        for chamber in atlas.CHAMBERS:
            self.blob(chamber)

    def muscles(self) -> None:
        """Paint the muscles that have a class, and the bladder between them."""
        for muscle in atlas.LONG_MUSCLES:
            self.tube(muscle)
            self.tube(muscle._replace(name=muscle.name.replace("left", "right"), points=_mirrored(muscle.points)))
        for organ in atlas.MUSCLES:
            self.blob(organ)

    def bowel(self) -> None:
        """Paint coils of small bowel behind a frame of colon that holds stool and, in front, gas."""
        centre, spread = np.array([0, 28, 55]), np.array([76, 36, 68])
        place = np.zeros(3)
        coils: list[Point] = []
        for step in self.rng.normal(0, 0.5, (110, 3)):
            place = place + step
            place = place / max(1.0, float(np.linalg.norm(place)))
            coils.append(_moved((0, 0, 0), centre + spread * place))
        for part in range(0, len(coils) - 1, 6):
            found = self.canvas.tube(coils[part : part + 7], 12)
            if found is not None:
                depth, region = found
                depth = np.minimum(depth, self.inside[region] - 2)
                self.canvas.paint(depth, self.density(38, 45), self.ids["small_bowel"], region)
                self.canvas.paint(depth - 3, self.textured(18, 12, region), None, region)
        line = [_moved(p, self.rng.normal(0, 4, 3)) for p in atlas.COLON]
        found = self.canvas.tube(line, [24, 24, 23, 20, 19, 19, 19, 18, 17, 16, 15, 14, 14, 15, 18, 15])
        if found is not None:
            depth, region = found
            pouches = np.sin((self.x[region] + self.y[region] + self.z[region]) / 7)
            depth = np.minimum(depth + 2 * pouches.astype(np.float32), self.inside[region] + 3)
            self.canvas.paint(depth, self.density(40, 40), self.ids["colon"], region)
            stool = self.textured(15, 30, region) - 350 * np.clip(self.strands[region], 0, 1)
            self.canvas.paint(depth - 3, stool, None, region)
            gas = np.minimum(depth - 3, self.y[region] - np.float32(60 - 70 * self.patient.gas))
            self.canvas.paint(gas, -930, None, region)

    def upper_abdomen(self) -> None:
        """Paint liver, stomach, pancreas, duodenum, spleen and what lies between them."""
        under = (self.dome - 3 - self.z) * np.float32(0.8)
        self._stomach(under)
        pancreas = [(46, 24, 146), (28, 28, 170), (0, 26, 184), (-36, 10, 186), (-84, -16, 203)]
        self.tube(Tube("pancreas", tuple(pancreas), (13, 13, 9, 9, 8), 38, 60))
        found = self.canvas.tube(
            [(22, 44, 172), (46, 32, 170), (56, 14, 140), (46, 10, 106), (10, 10, 96), (-24, 16, 112)], 11
        )
        if found is not None:
            self.canvas.paint(found[0], self.density(40, 45), self.ids["duodenum"], found[1])
            self.canvas.paint(found[0] - 3.5, self.textured(18, 15, found[1]), None, found[1])
        right = self.canvas.ellipsoid((72, 8, 205), (86, 80, 78), 0, -14)
        left = self.canvas.ellipsoid((2, 46, 225), (76, 38, 34), 8, 12)
        for lobe in (right, left):
            if lobe is not None:
                depth, region = lobe
                depth = np.minimum(depth, np.minimum(self.inside[region] - 1, under[region]))
                depth = np.minimum(depth, (self.z[region] - 120 - 0.35 * self.y[region]) * np.float32(0.9))
                hu = self.textured(self.density(58, 55), 4, region)
                hu = hu + (self.density(-6, 35) * self.strands[region]).astype(np.float32)
                self.canvas.paint(depth, hu, self.ids["liver"], region)
        for organ in atlas.UPPER:
            self.blob(organ)

    def _stomach(self, under: Array) -> None:
        """Paint food and fluid with gas above: the patient lies on the back, so above is in front."""
        found = self.canvas.tube(
            [(-62, 6, 236), (-72, 20, 205), (-56, 42, 172), (-20, 52, 164), (18, 46, 172)], [34, 30, 23, 18, 11]
        )
        if found is None:
            return
        depth, region = found
        depth = np.minimum(depth, np.minimum(self.inside[region], under[region]))
        self.canvas.paint(depth, self.density(42, 45), self.ids["stomach"], region)
        self.canvas.paint(depth - 4, self.textured(22, 14, region), None, region)
        level = self.y[region] - np.float32(52 - 45 * self.patient.gas)
        self.canvas.paint(np.minimum(depth - 4, level), -940, None, region)

    def kidneys(self) -> None:
        """Paint cortex, medulla, and the fat and urine of the pelvis."""
        for name, side, height in (("kidney_right", 1, 138), ("kidney_left", -1, 152)):
            centre = _moved((63 * side, -38, height), self.rng.normal(0, 4, 3))
            found = self.canvas.ellipsoid(centre, (27, 25, 53), 20 * side, 8 * side)
            if found is None:
                continue
            depth, region = found
            self.canvas.paint(depth + 9, -98, 0, region)
            self.canvas.paint(depth, self.density(34, 150), self.ids[name], region)
            lumps = 2.5 * self.grain[region]
            self.canvas.paint(depth - 7 + lumps, self.density(30, 95), None, region)
            sinus = self.canvas.ellipsoid(_moved(centre, np.array([-13.0 * side, 3, 0])), (15, 10, 20), 20 * side)
            if sinus is not None:
                self.canvas.paint(sinus[0], -70, 0, sinus[1])
                self.canvas.paint(sinus[0] - 6, 8, None, sinus[1])

    def airway(self) -> None:
        """Paint oesophagus and trachea with the main bronchi."""
        gullet = ((-2, -20, 470), (-4, -24, 380), (-8, -20, 320), (-12, -16, 280), (-22, 0, 252), (-48, 6, 236))
        self.tube(Tube("esophagus", gullet, 8, 36, 20))
        for line, radii in (
            (((0, 4, 480), (2, -6, 366)), (10, 9)),
            (((2, -6, 368), (22, -12, 350), (48, -18, 332)), (9, 8, 5)),
            (((2, -6, 368), (-22, -12, 348), (-46, -20, 330)), (9, 7, 5)),
        ):
            found = self.canvas.tube(line, radii)
            if found is not None:
                self.canvas.paint(found[0] + 2, 35, 0, found[1])
                self.canvas.paint(found[0], AIR + 20, self.ids["trachea"], found[1])

    def ribs(self) -> None:
        """Paint twelve pairs of ribs that fall round the chest, the cartilage in front of them, and the breastbone."""
        around = np.arctan2(np.abs(self.x), -self.y) / np.pi  # 0 behind, 1 in front
        wall = self.inside + 7 - np.clip(self.z - 385, 0, None) * np.float32(0.3)
        near = (np.abs(wall) < 14) & (self.z > 60) & (np.abs(self.x) > 10)
        index = np.nonzero(near)
        angle, across, height, right = around[near], wall[near], self.z[near], self.x[near] > 0
        for number, (top, end, fall) in enumerate(atlas.RIBS, start=1):
            middle = top - fall * np.clip(angle / 0.7, 0, 1.25) ** 1.3
            thick = 5.2 - np.sqrt(across**2 + (0.8 * (height - middle)) ** 2)
            arc = 260 * (end - angle)
            solid = np.minimum(thick, arc)
            self._fill(index, np.minimum(thick, -arc) - 50.0 * (number > 10), 85, None)
            self._fill(index, solid, 450 * self.patient.bone, (right, number))
            self._fill(index, solid - 2.5, 170 * self.patient.bone, None)
        front = self.inside + 10
        self.bone((np.minimum(np.minimum(8 - np.abs(front - 2), 17 - np.abs(self.x)), np.where(
            self.y > 0, np.minimum(self.z - 295, 425 - self.z), -9)).astype(np.float32), EVERYWHERE), None)  # fmt: skip

    def _fill(self, index: tuple[np.ndarray, ...], depth: Array, hu: float, rib: tuple[np.ndarray, int] | None) -> None:
        cover = np.clip(0.5 + depth / self.canvas.softness, 0, 1)
        self.canvas.hu[index] += cover * (hu - self.canvas.hu[index])
        if rib is not None:
            right, number = rib
            names = np.where(right, self.ids[f"rib_right_{number}"], self.ids[f"rib_left_{number}"])
            hit = depth > 0
            self.canvas.label[tuple(i[hit] for i in index)] = names[hit]

    def shoulders(self) -> None:
        """Paint shoulder blades and collarbones, as far as the scan reaches."""
        for side, sign in (("left", -1), ("right", 1)):
            found = self.canvas.ellipsoid((92 * sign, -78, 385), (44, 44, 70))
            if found is not None:
                depth, region = found
                plate = np.float32(4.5) - np.abs(self.inside[region] + 17)  # it glides on the ribs
                self.bone((np.minimum(depth, plate), region), f"scapula_{side}", 2)
            line = [(16 * sign, 62, 424), (60 * sign, 58, 440), (120 * sign, 20, 452)]
            self.bone(self.canvas.tube(line, 8), f"clavicula_{side}")

    def pelvis(self) -> None:
        """Paint hips, sacrum and the heads of the femurs."""
        for side, sign in (("left", -1), ("right", 1)):
            wing = self.canvas.ellipsoid((92 * sign, -14, 8), (10, 52, 56), 28 * sign, -18 * sign)
            self.bone(wing, f"hip_{side}")
            arms = [(66 * sign, -42, 0), (84 * sign, -8, -62), (86 * sign, 4, -88)]
            self.bone(self.canvas.tube(arms, [17, 20, 34]), f"hip_{side}")
            front = [(80 * sign, 14, -88), (46 * sign, 40, -98), (8 * sign, 46, -112)]
            self.bone(self.canvas.tube(front, [12, 9, 10]), f"hip_{side}")
            self.bone(self.canvas.tube([(84 * sign, -20, -100), (62 * sign, -28, -135)], [16, 15]), f"hip_{side}")
            joint = self.canvas.ellipsoid((92 * sign, 8, -90), (28, 28, 28))
            if joint is not None:
                self.canvas.paint(joint[0], 70, 0, joint[1])
            bone = [(92 * sign, 8, -90), (118 * sign, 2, -112), (136 * sign, -6, -140), (134 * sign, -4, -190)]
            self.bone(self.canvas.tube(bone, [25, 17, 24, 17]), f"femur_{side}", 3)
        line = [(0, -52, -8), (0, -68, -45), (0, -76, -80), (0, -66, -108)]
        for shift, radii in ((0, (22, 22, 16, 6)), (-26, (20, 17, 9, 4)), (26, (20, 17, 9, 4))):
            self.bone(self.canvas.tube([(x + shift, y, z) for x, y, z in line], radii), "sacrum")

    def spine(self) -> None:
        """Paint vertebrae with their arches, discs between them, and the canal behind."""
        canal = [(0.0, _curve(z) - 27, float(z)) for z in range(-10, 491, 25)]
        for name, (bottom, half) in atlas.VERTEBRAE.items():
            height = 32 if name[0] == "L" else 24 if half > 16 else 19
            self._vertebra(f"vertebrae_{name}", bottom, height, half)
        found = self.canvas.tube(canal, 9)
        if found is not None:
            self.canvas.paint(found[0] - 1, 25, 0, found[1])

    def _vertebra(self, name: str, bottom: float, height: float, half: float) -> None:
        middle = bottom + height / 2
        back = _curve(middle)
        region = self.canvas.region((-50, back - 75, bottom - 22), (50, back + 24, bottom + height + 8))
        if region is None:
            return
        x, y, z = (axis[region] for axis in (self.x, self.y, self.z))
        waist = half - 2.0 * np.cos(np.pi * np.clip((z - middle) / height, -0.5, 0.5))
        rho = np.sqrt((x / waist) ** 2 + ((y - back) / (waist * 0.74)) ** 2) + 1e-3
        column = np.asarray((1 - rho) * waist * np.float32(0.85), dtype=np.float32)
        between = np.minimum(column, (height / 2 + 7) - np.abs(z - middle))
        self.canvas.paint(between, 85, 0, region)
        self.bone((np.minimum(column, height / 2 - np.abs(z - middle)), region), name, 1.8)
        self.bone(self.canvas.tube([(-13, back - 24, middle + 2), (13, back - 24, middle + 2)], 10), name)
        process = middle - height * (0.2 if name.startswith("vertebrae_L") else 0.6)
        self.bone(self.canvas.tube([(0, back - 38, middle), (0, back - 60, process)], [6, 4.5]), name)
        reach = half + 17
        self.bone(self.canvas.tube([(-12, back - 26, middle), (-reach, back - 30, middle + 3)], [7, 4]), name)
        self.bone(self.canvas.tube([(12, back - 26, middle), (reach, back - 30, middle + 3)], [7, 4]), name)


def _curve(z: float) -> float:
    """Return the middle of the vertebral bodies at a height (anterior mm): lordosis below, kyphosis above."""
    return float(np.interp(z, [-20, 60, 150, 250, 340, 420, 480], [-50, -36, -40, -52, -58, -52, -40]))


def _moved(point: Point, shift: np.ndarray) -> Point:
    return float(point[0] + shift[0]), float(point[1] + shift[1]), float(point[2] + shift[2])


def _mirrored(points: tuple[Point, ...]) -> tuple[Point, ...]:
    return tuple((-x, y, z) for x, y, z in points)
