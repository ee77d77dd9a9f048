"""Suspicions about raw scans, derived from their facts alone: one function for each kind of fault.

A false alarm costs trust, so each function needs clear evidence. What cannot be decided is not reported, such as the
sides of a head that looks the same in the mirror.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from anatomask.data.datasets.base import RawDataset
from anatomask.data.organs import simple_name, twins, votes
from anatomask.data.preprocess import LARGEST
from anatomask.data.survey import FEW_VALUES, CaseFacts, ChannelFacts, ClassFacts, LabelFacts

ENOUGH = 10
"""Number of cases needed to call one of them unlike the others."""
ENOUGH_ALIKE = 30
"""Number of cases needed for each to find others that look like it."""
NEIGHBOURS = 256
"""Number of cases, spread over the data set, that each is compared with."""
SIDES = ("mirrored left to right", "turned front to back", "upside down")
MOST_OUTSIDE = 0.2
"""Share of the labelled volume outside the body above which a label is suspicious; in real cases it is 0.03 at most."""
FLIPS = ((0,), (1,), (2,), (0, 1), (0, 2), (1, 2))
MEND_AFFINE = "look at the picture; correct the affine (or turn voxels and label) at the source, or leave it out"
FOLLOWS = {
    "unlike the others": {"voxel size", "header"},
    "label does not fit": {"label in air", "not in HU", "constant image"},
}
"""Kind of suspicion -> kinds that already explain it: it is dropped for a case which has one of these."""


@dataclass(frozen=True)
class Suspicion:
    """One probable fault of one case."""

    case: str
    kind: str
    reason: str
    remedy: str


def suspicions(raw: RawDataset, cases: Sequence[CaseFacts]) -> list[Suspicion]:
    """List all suspicions in a data set, in the order of its cases."""
    alone = (unreadable, label_refused, constant, label_as_image, units, voxel_size, orientation)
    of_labels = (organs_misplaced, unknown_values, label_in_air)
    found = [one for facts in cases for criterion in (*alone, *of_labels) for one in criterion(raw, facts)]
    for across in (duplicates, outliers, other_modality, turned, label_misfits, label_empty):
        found += across(raw, cases)
    kinds: dict[str, set[str]] = defaultdict(set)
    for suspicion in found:
        kinds[suspicion.case].add(suspicion.kind)
    position = {facts.case: index for index, facts in enumerate(cases)}
    return sorted(
        (one for one in found if not FOLLOWS.get(one.kind, set()) & kinds[one.case]),
        key=lambda one: position[one.case],
    )


def unreadable(raw: RawDataset, facts: CaseFacts) -> Iterator[Suspicion]:
    """Find files that are missing, cut off, not 3-D, without a valid affine, with NaN, or on different grids."""
    if facts.image_error:
        yield Suspicion(facts.case, "image refused", facts.image_error, "`prepare` leaves this case out until then")


def label_refused(raw: RawDataset, facts: CaseFacts) -> Iterator[Suspicion]:
    """Find a label map that is broken, or of another shape or place than its image."""
    if facts.label_error:
        yield Suspicion(facts.case, "label refused", facts.label_error, "`prepare` leaves this case out until then")


def constant(raw: RawDataset, facts: CaseFacts) -> Iterator[Suspicion]:
    """Find a channel that has one value everywhere."""
    for name, channel in _channels(raw, facts):
        if channel.distinct == 1:
            reason = f"every voxel of {name} is {channel.minimum:g}"
            yield Suspicion(facts.case, "constant image", reason, "convert the scan again, or leave it out")


def label_as_image(raw: RawDataset, facts: CaseFacts) -> Iterator[Suspicion]:
    """Find a label map that was taken for a scan: few values, the same over whole areas."""
    for name, channel in _channels(raw, facts):
        if _is_label_map(channel):
            reason = f"{name} has {channel.distinct} values, each over whole areas: a label map, not a scan"
            remedy = "move label maps out of the folder of images, or name the layout by --dataset"
            yield Suspicion(facts.case, "label as image", reason, remedy)


def units(raw: RawDataset, facts: CaseFacts) -> Iterator[Suspicion]:
    """Find a CT whose values cannot be Hounsfield units, and values of other units that cannot be stored."""
    for (name, channel), scheme in zip(_channels(raw, facts), raw.schemes, strict=False):
        if max(-channel.minimum, channel.maximum) > LARGEST[scheme]:
            reason = f"{name} reaches {channel.minimum:.4g} to {channel.maximum:.4g}: more than {scheme} can keep"
            remedy = (
                "`prepare` leaves this case out; repair it, or if it is no CT give it "
                "--preprocess.normalisation zscore for this channel"
            )
            yield Suspicion(facts.case, "values too large", reason, remedy)
        if scheme == "ct" and channel.distinct > 1 and not _is_label_map(channel) and (found := _not_hu(channel)):
            reason, remedy = found
            yield Suspicion(facts.case, "not in HU", f"{name} {reason}", remedy)


def voxel_size(raw: RawDataset, facts: CaseFacts) -> Iterator[Suspicion]:
    """Find voxel sizes that no scanner for people makes."""
    if facts.images is None:
        return
    spacing = np.array(facts.images.spacing)
    extent = spacing * facts.images.shape
    size = " × ".join(f"{mm:.3g}" for mm in spacing) + " mm"
    remedy = "write the voxel size in mm into the header, or leave it out"
    if extent.max() < 10 and (1000 * spacing).max() <= 30:
        yield Suspicion(facts.case, "voxel size", f"voxels of {size}: probably given in metres", remedy)
    elif spacing.min() > 30:
        yield Suspicion(facts.case, "voxel size", f"voxels of {size}: probably given in micrometres", remedy)
    elif spacing.min() < 0.05 or spacing.max() > 30 or extent.max() > 3000:
        yield Suspicion(
            facts.case, "voxel size", f"voxels of {size}, the scan up to {extent.max():.3g} mm long", remedy
        )


def orientation(raw: RawDataset, facts: CaseFacts) -> Iterator[Suspicion]:
    """Find a header that contradicts itself or the CT, whose spine is behind and whose lungs are above the belly."""
    images = facts.images
    if images is None:
        return
    if images.header_doubt:
        yield Suspicion(facts.case, "header", images.header_doubt, "convert the scan again, or mend its header")
    if images.spine_behind is not None and images.spine_behind < 0.25:
        reason = f"only {100 * images.spine_behind:.0f} % of the midline's bone lies in the body's back half"
        yield Suspicion(facts.case, SIDES[1], reason, MEND_AFFINE)
    if images.lungs_above is False:
        reason = "by its header the lungs lie below the belly, or above the neck"
        yield Suspicion(facts.case, SIDES[2], reason, MEND_AFFINE)


def organs_misplaced(raw: RawDataset, facts: CaseFacts) -> Iterator[Suspicion]:
    """Find labelled organs in positions that no body has: the header is wrong, or two classes are swapped.

    A label that misses the body proves nothing about its header.
    """
    if facts.label is None or _outside(facts.label) > MOST_OUTSIDE:
        return
    names = {c: raw.class_names[c] for c in facts.label.classes}
    organs = {names[c]: found.organ for c, found in facts.label.classes.items()}
    sides = set(twins(map(simple_name, organs)))
    cast = votes(organs)
    for axis, side in enumerate(SIDES):
        wrong = [vote for vote in cast if vote.axis == axis and not vote.right]
        right = [vote for vote in cast if vote.axis == axis and vote.right]
        if wrong and not right:
            where = ("right of", "in front of", "above")[axis]
            reason = f"by its header {wrong[0].first} is not {where} {wrong[0].second}"
            if len(wrong) > 1:
                reason += f", and {len(wrong) - 1} more pairs of organs disagree"
            swapped = "; or exchange left and right in the label, if they are swapped" if axis == 0 else ""
            yield Suspicion(facts.case, side, reason, MEND_AFFINE + swapped)
        elif len(wrong) * 2 < len(right):
            for vote in wrong:
                if (vote.first, vote.second) in sides:
                    reason = f"{vote.first} lies left of {vote.second}, while the other organs are on their sides"
                    yield Suspicion(facts.case, "labels swapped", reason, "exchange the two classes in the label")


def unknown_values(raw: RawDataset, facts: CaseFacts) -> Iterator[Suspicion]:
    """Find label values that are no class of the data set."""
    if facts.label is not None and facts.label.unknown:
        values = ", ".join(f"{value:g}" for value in facts.label.unknown[:5])
        reason = f"the label holds {values}, which the data set does not list"
        yield Suspicion(facts.case, "unknown label values", reason, "correct the label or the list of classes")


def label_in_air(raw: RawDataset, facts: CaseFacts) -> Iterator[Suspicion]:
    """Find labels that lie outside the body."""
    if facts.label is None:
        return
    outside = _outside(facts.label)
    worst = [raw.class_names[c] for c, found in _sizeable(facts.label).items() if found.outside > 0.5]
    if outside > MOST_OUTSIDE or worst:
        names = f" ({', '.join(worst[:3])}{', …' if len(worst) > 3 else ''})" if worst else ""
        reason = f"{100 * outside:.0f} % of the labelled volume lie outside the body{names}"
        yield Suspicion(facts.case, "label in air", reason, "give the label the image's grid and affine")


def duplicates(raw: RawDataset, cases: Sequence[CaseFacts]) -> Iterator[Suspicion]:
    """Find the same voxels under two names, in whatever orientation they were stored."""
    first: dict[str, str] = {}
    for facts in cases:
        if facts.images is None or facts.images.channels[0].distinct <= FEW_VALUES:
            continue
        original = first.setdefault(facts.images.digest, facts.case)
        if original != facts.case:
            reason = f"the same voxels as {original}"
            yield Suspicion(facts.case, "duplicate", reason, "leave one of them out: training and test would share it")


def outliers(raw: RawDataset, cases: Sequence[CaseFacts]) -> Iterator[Suspicion]:
    """Find scans whose voxels or extent are far from those of all others."""
    readable = [(facts.case, facts.images) for facts in cases if facts.images is not None]
    if len(readable) < ENOUGH:
        return
    edges = {
        "voxel edge": np.array([sorted(images.spacing) for _, images in readable]),
        "extent": np.array([sorted(np.multiply(images.spacing, images.shape)) for _, images in readable]),
    }
    for name, values in edges.items():
        logs = np.log(values)
        median = np.median(logs, axis=0)
        spread = 1.4826 * np.median(np.abs(logs - median), axis=0)
        far = np.abs(logs - median) > np.maximum(8 * spread, np.log(4))
        for (case, _), value, axes in zip(readable, values, far, strict=True):
            for axis in np.flatnonzero(axes)[:1]:
                order = ("shortest", "middle", "longest")[axis]
                reason = f"its {order} {name} is {value[axis]:.3g} mm, that of the others about {_mm(median[axis])}"
                yield Suspicion(case, "unlike the others", reason, "check the header; leave it out if it is right")


def other_modality(raw: RawDataset, cases: Sequence[CaseFacts]) -> Iterator[Suspicion]:
    """Find, in a folder that states no modality, the few scans without air in HU among many that have it."""
    if raw.reader != "folder" or raw.schemes[0] == "ct":
        return
    scans = [
        (facts.case, channel)
        for facts in cases
        if facts.images is not None
        for channel in facts.images.channels[:1]
        if channel.distinct > 1 and not _is_label_map(channel)
    ]
    others = [case for case, channel in scans if channel.air < 1e-3]
    if len(scans) >= 5 and 0 < len(others) <= 0.2 * len(scans):
        for case in others:
            reason = f"{len(scans) - len(others)} of {len(scans)} scans are CT in HU by their values, this one is not"
            remedy = "convert it to HU, or move it to a folder of its own: with it, all are treated as MR"
            yield Suspicion(case, "not in HU", reason, remedy)


def turned(raw: RawDataset, cases: Sequence[CaseFacts]) -> Iterator[Suspicion]:
    """Find scans that look like the others only once they are turned over."""
    shown = [
        (facts.case, facts.thumbnail)
        for facts in cases
        if facts.thumbnail is not None and not any(_is_label_map(channel) for _, channel in _channels(raw, facts))
    ]
    if len(shown) < ENOUGH_ALIKE:
        return
    pictures = np.stack([picture for _, picture in shown]).astype(np.float32)
    chosen = np.unique(np.linspace(0, len(shown) - 1, NEIGHBOURS).round().astype(int))
    others = _unit(pictures[chosen])
    itself = np.arange(len(shown))[:, None] == chosen[None]
    as_it_lies = _likeness(pictures, others, itself)
    flipped = [_likeness(np.flip(pictures, tuple(axis + 1 for axis in flip)), others, itself) for flip in FLIPS]
    typical = float(np.percentile(as_it_lies, 25))
    for index, (case, _) in enumerate(shown):
        best = max(range(len(FLIPS)), key=lambda i: flipped[i][index] - 0.02 * len(FLIPS[i]))
        likeness, now = flipped[best][index], as_it_lies[index]
        if likeness >= max(0.7, 0.85 * typical) and likeness - now >= 0.12:
            kind = " and ".join(SIDES[axis] for axis in FLIPS[best])
            reason = f"turned over it correlates with the other cases by {likeness:.2f}, as it lies by {now:.2f}"
            yield Suspicion(case, kind, reason, MEND_AFFINE)


def label_misfits(raw: RawDataset, cases: Sequence[CaseFacts]) -> Iterator[Suspicion]:
    """Find label maps of CTs under which the image differs from that in other cases: shifted, or of another scan."""
    if raw.schemes[0] != "ct":
        return
    means: dict[int, dict[str, float]] = defaultdict(dict)
    for facts in cases:
        for c, found in _sizeable(facts.label).items() if facts.label is not None else ():
            means[c][facts.case] = found.mean
    judged, odd = Counter[str](), defaultdict[str, list[int]](list)
    for c, of_case in means.items():
        if len(of_case) < ENOUGH:
            continue
        values = np.array(list(of_case.values()))
        median = np.median(values)
        spread = 1.4826 * np.median(np.abs(values - median))
        for case, value in of_case.items():
            judged[case] += 1
            if abs(value - median) > max(6 * spread, 50):
                odd[case].append(c)
    for case, classes in odd.items():
        if 2 * len(classes) >= judged[case]:
            names = ", ".join(f"{raw.class_names[c]} {means[c][case]:.0f} HU" for c in classes[:3])
            reason = f"the image under the label is not what it is in the other cases ({names})"
            yield Suspicion(case, "label does not fit", reason, "check that the label belongs to this image")


def label_empty(raw: RawDataset, cases: Sequence[CaseFacts]) -> Iterator[Suspicion]:
    """Find empty label maps where nearly all others have something; report also if all are empty."""
    labels = [(facts.case, facts.label) for facts in cases if facts.label is not None]
    empty = [case for case, label in labels if not label.classes and not label.unknown]
    rare = len(labels) >= ENOUGH and len(empty) <= 0.1 * len(labels)
    if rare or len(empty) == len(labels):
        for case in empty:
            reason = f"nothing is labelled, as in {len(empty)} of {len(labels)} cases"
            yield Suspicion(case, "empty label", reason, "get the label again, or treat the case as unlabelled")


def _sizeable(label: LabelFacts) -> dict[int, ClassFacts]:
    """List the classes of half a millilitre or more."""
    return {c: found for c, found in label.classes.items() if found.organ.ml >= 0.5}


def _outside(label: LabelFacts) -> float:
    """Return the share of the labelled volume that lies outside the body."""
    found = _sizeable(label).values()
    total = sum(one.organ.ml for one in found)
    return sum(one.outside * one.organ.ml for one in found) / total if total else 0.0


def _channels(raw: RawDataset, facts: CaseFacts) -> list[tuple[str, ChannelFacts]]:
    return [] if facts.images is None else list(zip(raw.channel_names, facts.images.channels, strict=True))


def _is_label_map(channel: ChannelFacts) -> bool:
    return channel.distinct == 2 or (2 < channel.distinct <= FEW_VALUES and channel.flat > 0.8)


def _not_hu(channel: ChannelFacts) -> tuple[str, str] | None:
    """Return reason and remedy, or None. A crop without any air may be in HU, so missing air alone proves nothing."""
    span = f"{channel.low:.4g} to {channel.high:.4g}"
    rescale = "apply the rescale slope and intercept of the DICOM files, or leave it out"
    if channel.high > 6000 or channel.low < -6000:
        return f"spans {span}: beyond what HU can be", rescale
    if channel.air >= 1e-3:
        return None
    if channel.high - channel.low < 50:
        return f"spans only {span}: scaled or normalised", "use the scan before it was scaled"
    if channel.minimum >= 0 and channel.maximum <= 255:
        return f"spans {channel.minimum:g} to {channel.maximum:g}: 8-bit grey values", "use the scan before export"
    if channel.minimum >= -50 and channel.high >= 800:
        return f"spans {span} with nothing below -50: probably 1024 too high", f"subtract 1024: {rescale}"
    if channel.minimum >= 0:
        return f"spans {span} with nothing below 0", rescale
    if channel.at_minimum >= 0.01:
        return f"is cut off at {channel.minimum:g}: a window, not the whole of HU", "use the scan before windowing"
    return None


def _mm(log: float) -> str:
    return f"{np.exp(log):.3g} mm"


def _unit(pictures: np.ndarray) -> np.ndarray:
    """Scale (N, …) to N rows of mean 0 and length 1."""
    rows = pictures.reshape(len(pictures), -1)
    rows = rows - rows.mean(axis=1, keepdims=True)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-6)


def _likeness(pictures: np.ndarray, others: np.ndarray, itself: np.ndarray) -> np.ndarray:
    """Return (N,): the mean correlation of each picture with the quarter of the others that is most like it."""
    correlation = np.where(itself, -np.inf, _unit(pictures) @ others.T)
    quarter = max(1, (others.shape[0] - 1) // 4)
    return np.sort(correlation, axis=1)[:, -quarter:].mean(axis=1)
