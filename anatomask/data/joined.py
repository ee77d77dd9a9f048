"""Several prepared data sets as one, for pretraining."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import nibabel as nib
import numpy as np

from anatomask.data.addresses import folder_name
from anatomask.data.shards import PreparedDataset
from anatomask.data.storage import Roots, Storage, storages
from anatomask.errors import UserError


def open_joined(roots: Roots) -> PreparedDataset:
    """Open one prepared data set as it is, or several as one.

    Raises:
        UserError: an index is missing or damaged, or the data sets do not fit together; see `JoinedDataset`.
    """
    members = [PreparedDataset.open(storage) for storage in storages(roots)]
    return members[0] if len(members) == 1 else JoinedDataset(members)


class JoinedDataset(PreparedDataset):
    """Several prepared data sets as one. Their cases are named apart by their folders: `<folder>/<case>`.

    All have one voxel size, the same channels, and the same schemes. Intensities are normalised by the first data set's
    fingerprint, so that a value in HU means the same to the network wherever the scan comes from.
    """

    def __init__(self, members: Sequence[PreparedDataset]) -> None:
        """Join data sets.

        Raises:
            UserError: one is given twice, or differs from the first in voxel size, channels or schemes.
        """
        first = members[0]
        for k, other in enumerate(members[1:], start=1):
            if other.path in [member.path for member in members[:k]]:
                raise UserError(f"--data names {other.shown} twice; leave one out")
            _require_alike(first, other)
        self._members: dict[str, tuple[PreparedDataset, str]] = {}
        records, splits = {}, dict[str, tuple[str, ...]]()
        for name, member in zip(_names(members), members, strict=True):
            for case, record in member.records.items():
                joined = f"{name}/{case}"
                self._members[joined] = member, case
                records[joined] = replace(record, case=joined)
            for split, cases in member.splits.items():
                splits[split] = (*splits.get(split, ()), *(f"{name}/{case}" for case in cases))
        self.members = tuple(members)
        info = replace(first.info, name=" + ".join(member.name for member in members))
        super().__init__(first.storage, info, records, splits, first.fingerprint)

    @property
    def roots(self) -> tuple[Storage, ...]:
        """Return the folders, by which other processes open the same data sets."""
        return tuple(member.storage for member in self.members)

    @property
    def shown(self) -> str:
        """Return all locations without credentials, for messages."""
        return " + ".join(member.shown for member in self.members)

    def read_crop(
        self,
        case: str,
        origin: Sequence[int],
        size: Sequence[int],
        *,
        label: bool,
        pad: bool = True,
        empty: Callable[[Sequence[int], Any], np.ndarray] = np.empty,
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Read the voxels of a box. Arguments, result and errors are those of `PreparedDataset.read_crop`."""
        member, own = self._member(case)
        return member.read_crop(own, origin, size, label=label, pad=pad, empty=empty)

    def bytes_touched(self, case: str, origin: Sequence[int], size: Sequence[int], *, label: bool) -> int:
        """Count the bytes that `read_crop` reads; raises as it."""
        member, own = self._member(case)
        return member.bytes_touched(own, origin, size, label=label)

    def footer_bytes(self, case: str) -> int:
        """Count the bytes of the footer of a case's file; raises as `read_crop`."""
        member, own = self._member(case)
        return member.footer_bytes(own)

    def shard_sizes(self) -> dict[str, int]:
        """Return the bytes of each case's file.

        Raises:
            OSError, UserError: a folder cannot be listed.
        """
        sizes = {id(member): member.shard_sizes() for member in self.members}
        return {case: sizes[id(member)].get(own, 0) for case, (member, own) in self._members.items()}

    def foreground_voxel(self, case: str, rng: np.random.Generator) -> tuple[int, int, int] | None:
        """Draw a voxel of a class as `PreparedDataset.foreground_voxel`."""
        member, own = self._member(case)
        return member.foreground_voxel(own, rng)

    def original_label(self, case: str) -> nib.Nifti1Image:
        """Read the label map on the source's grid; raises as `PreparedDataset.original_label`."""
        member, own = self._member(case)
        return member.original_label(own)

    def uncached(self) -> JoinedDataset:
        """Return the same data sets without what was cached of their cases' files."""
        return JoinedDataset([member.uncached() for member in self.members])

    def _member(self, case: str) -> tuple[PreparedDataset, str]:
        self._record(case)
        return self._members[case]


def _require_alike(first: PreparedDataset, other: PreparedDataset) -> None:
    """Check that two data sets can be joined.

    Raises:
        UserError: they differ in voxel size, channels or schemes; the message says in which.
    """

    def facts(dataset: PreparedDataset) -> Mapping[str, str]:
        info = dataset.info
        return {
            "voxels of": " x ".join(f"{mm:g}" for mm in info.spacing) + " mm",
            "the channels": ", ".join(info.channel_names),
            "the normalisation": ", ".join(info.schemes),
        }

    for (what, here), there in zip(facts(other).items(), facts(first).values(), strict=True):
        if here != there:
            raise UserError(
                f"--data: {other.shown} has {what} {here}, {first.shown} has {there}; prepare both alike "
                "(--preprocess.spacing, --preprocess.normalisation), or pretrain on one"
            )


def _names(members: Sequence[PreparedDataset]) -> list[str]:
    """Name the members after their folders; those of one name are numbered."""
    names: list[str] = []
    for member in members:
        own = folder_name(member.path)
        names.append(
            next(name for name in (own, *(f"{own}-{k}" for k in range(2, len(members) + 1))) if name not in names)
        )
    return names
