"""Store of runs: each lies in a folder named by its key, so that none is made twice, whoever needs it.

runs/store/pretrain-0123456789abcdef/     a run, as `anatomask pretrain` leaves it
runs/mask-ratio/000-mask_ratio=0.6/pretrain -> ../../store/pretrain-0123456789abcdef
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from anatomask.errors import Stopped, UserError
from anatomask.files import exclusive_lock

POLL_SECONDS = 1.0


@dataclass(frozen=True)
class Store:
    """Folder `store` among runs. Several processes, on several machines, may use it at the same time."""

    runs: Path
    stop: Path | None = None
    """File at which no run is claimed any more."""

    def path(self, name: str) -> Path:
        """Return the folder of the run that is named by its key."""
        return self.runs / "store" / name

    @contextmanager
    def claimed(self, name: str) -> Iterator[Path]:
        """Keep a run to this process inside the block, and yield its folder; wait while another process has it.

        Raises:
            Stopped: the file `stop` exists.
        """
        run = self.path(name)
        while True:
            if self.stop is not None and self.stop.exists():
                raise Stopped
            with exclusive_lock(run.with_name(f".{name}.lock")) as mine:
                if mine:
                    yield run
                    return
            time.sleep(POLL_SECONDS)

    def link(self, alias: Path, name: str) -> None:
        """Let the path `alias` lead to a run, by a relative symbolic link, which replaces an earlier one.

        Raises:
            UserError: `alias` exists and is not a link.
        """
        run = self.path(name)
        target = os.path.relpath(run, alias.parent)
        if alias.is_symlink() and str(alias.readlink()) == target:
            return
        if alias.exists() and not alias.is_symlink():
            raise UserError(f"{alias} is in the way of a link to {run}: move it elsewhere, or choose another --name")
        alias.parent.mkdir(parents=True, exist_ok=True)
        temporary = alias.with_name(f".{alias.name}.{os.getpid()}")
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(target, target_is_directory=True)
        temporary.replace(alias)
