"""A run on object storage, for machines that share no file system.

A run is always worked on in an ordinary folder. Where an address names it, that folder lies in `WORKING_FOLDERS`, and a
copy at the address: what the copy has and the folder lacks is fetched before a stage begins, and what has changed is
uploaded. The index of the checkpoints goes last, in both directions, so it never names a checkpoint that is missing;
those that it no longer names are removed after it. Beside the folder, a record holds what each file was, here and
there, when both were the same.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, TypeAlias, TypeVar

import pyarrow as pa

from anatomask.data.addresses import is_address, public_address
from anatomask.data.outages import MAX_OUTAGE
from anatomask.data.storage import PIECE, Stamp, Storage
from anatomask.errors import UserError
from anatomask.files import exclusive_lock, replacing, write_text
from anatomask.parsing import from_json
from anatomask.runs.belongings import CONFIG, INDEX, MARKER, TEXT, claim_folder
from anatomask.runs.checkpoint_index import CHECKPOINTS, STEP, read_index
from anatomask.training.journal import JOURNAL

WORKING_FOLDERS = Path(".cache", "anatomask", "runs")
"""Folder, in the user's home, of the working folders of runs that have an address."""

ONLY_HERE = ("stop", "ray", "tune", "exported")
"""Files and folders of a run that are not copied."""

AT_ONCE = 8
"""Number of files that are transferred at the same time, of each of which a piece is in memory."""
POLL_SECONDS = 0.2

Known: TypeAlias = tuple[Stamp | None, Stamp]
"""Stamps of a file here and there when both were the same; None where it has changed here since."""
Files: TypeAlias = Mapping[str, tuple[Stamp, Callable[[], bytes | pa.Buffer]]]
"""Files of a run by their paths in it: what tells their states apart on this machine, and how they are read."""

T = TypeVar("T")


def is_of_checkpoints(path: str) -> bool:
    """Return whether a file of a run belongs to its checkpoints."""
    return path.startswith(f"{CHECKPOINTS}/")


@dataclass(frozen=True)
class RunCopy:
    """Folder of a run, and the storage that holds a copy of it. Without storage, nothing here does anything."""

    folder: Path
    storage: Storage | None = None

    @property
    def shown(self) -> str:
        """Folder or address, as another command takes it; without credentials."""
        return str(self.folder) if self.storage is None else public_address(self.storage.root)

    @property
    def results(self) -> Storage:
        """Storage into which tasks on any machine write."""
        return Storage(self.folder.absolute()) if self.storage is None else self.storage

    def impatient(self) -> RunCopy:
        """Return the same, for what is not worth waiting for the end of an outage."""
        return self if self.storage is None else replace(self, storage=Storage(self.storage.root, 0, answered=True))

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Fetch the run, or begin it, and upload what the block changes.

        Raises:
            UserError: storage cannot be read or written, or holds something that is not a run; or the block's changes
                cannot be uploaded.
        """
        self.fetch()
        if self.storage is not None:
            claim_folder(self.folder)
            self.storage.write(MARKER, TEXT.encode())  # shows at once whether storage can be written
        try:
            yield
        except Exception:
            with suppress(UserError, OSError):
                self.impatient().fetch(lambda path: not is_of_checkpoints(path))
                self.impatient().upload()
            raise
        self.fetch()
        self.complete()

    @contextmanager
    def training(self) -> Iterator[None]:
        """Mark the folder as that of a training in this process: nothing is fetched into it within the block."""
        with ExitStack() as stack:
            with self._turn():
                stack.enter_context(exclusive_lock(self._beside("training.lock")))
            yield

    def fetch(self, wanted: Callable[[str], bool] = lambda path: True, *, exact: bool = False) -> None:
        """Bring the files that are `wanted` to the state of the copy, where that has changed since they were the same.

        What has changed here alone stays, for the next upload, unless `exact` is set. Lines that the journal has gained
        on both sides are all kept.

        Raises:
            UserError: storage cannot be read, or holds something that is not a run.
            OSError: the folder cannot be written.
        """
        if self.storage is None:
            return
        with self._turn(), exclusive_lock(self._beside("training.lock")) as free:
            if not free:  # it is here that the run's newest state arises
                return
            there = self._listing()
            if there and not {MARKER, "model.safetensors"} & there.keys():
                raise UserError(f"{self.shown} holds files and is not a run's folder: correct the address")
            while True:
                failure = None
                try:
                    self._take(there, wanted, exact)
                except OSError as error:
                    failure = error
                before, there = there, self._listing()
                if failure is None and before.get(INDEX) == there.get(INDEX):
                    return
                if failure is not None and before == there:  # else it had gone, or was replaced, meanwhile
                    raise failure

    def found(self, wanted: Callable[[str], bool] = lambda path: True) -> Path:
        """Return the folder of a run that has to be there, with what is fetched.

        Raises:
            UserError: as `fetch`, or there is nothing at the address.
        """
        self.fetch(wanted)
        if self.storage is not None and not self.folder.is_dir():
            raise UserError(f"{self.shown}: there is no run; check the address")
        return self.folder

    def upload(self, checkpoints: Files | None = None) -> None:
        """Upload what has changed here, and remove what is here no longer.

        Args:
            checkpoints: files of the checkpoints, as `files_of_checkpoints` returns them. Default: the present ones.

        Raises:
            UserError: storage cannot be written.
            OSError: a file cannot be read.
        """
        if self.storage is None:
            return
        with self._turn():
            record = self._record()
            if checkpoints is None:
                checkpoints = self.files_of_checkpoints()
            others = {
                path: (stamp, (self.folder / path).read_bytes)
                for path in self._paths()
                if not is_of_checkpoints(path) and (stamp := self._stamp(path)) is not None
            }
            if INDEX not in checkpoints:  # the run begins anew
                self._remove(record, {INDEX} & record.keys())
            index = {INDEX: checkpoints[INDEX]} if INDEX in checkpoints else {}
            for files in ({path: file for path, file in checkpoints.items() if path != INDEX}, others, index):
                self._put(record, files)
            self._remove(record, record.keys() - checkpoints.keys() - others.keys())

    def complete(self) -> None:
        """Upload the rest, at the end of a stage.

        Raises:
            UserError: storage cannot be written; the message says what to do.
        """
        try:
            self.upload()
        except UserError as error:
            raise UserError(
                f"the copy of {self.folder} is not complete, and the same command uploads what is missing: {error}"
            ) from None

    def files_of_checkpoints(self) -> Files:
        """Open the checkpoints that the index names, and the index.

        What is returned stays readable when a training replaces them.
        """
        index = read_index(self.folder / CHECKPOINTS)
        if not index:
            return {}
        folders = {self.folder / CHECKPOINTS / index[which] for which in ("last", "best") if which in index}
        files: dict[str, Any] = {}
        for path in [*(path for folder in sorted(folders) for path in sorted(folder.iterdir())), self.folder / INDEX]:
            name = path.relative_to(self.folder).as_posix()
            files[name] = self._stamp(name), _mapped(path)
        return files

    def _take(self, there: Mapping[str, Stamp], wanted: Callable[[str], bool], exact: bool) -> None:
        """Fetch what is to be fetched of the copy, whose files are listed, and record it."""
        record = self._record()
        if not there:  # what is here is all uploaded
            record.clear()
            self._save(record)
            return
        other = CONFIG in there and (CONFIG not in record or record[CONFIG][1] != there[CONFIG])
        gone = set(filter(wanted, record.keys() - there.keys()))
        if other and wanted(CONFIG):
            gone |= {INDEX} - there.keys()  # of a run that began anew elsewhere, perhaps with other settings
        for path in gone:
            (self.folder / path).unlink(missing_ok=True)
            record.pop(path, None)
        self._save(record)
        ahead = not exact and self._is_ahead(record, there)
        looked_at = (path for path in there if wanted(path) and not (ahead and is_of_checkpoints(path)))
        needed = [path for path in looked_at if self._lacks(path, there[path], record.get(path), exact)]
        fetch = {path: partial(self._download, path, there[path], record.get(path)) for path in needed}
        for paths in ([path for path in needed if path != INDEX], [INDEX] if INDEX in needed else []):
            for path, here in _at_once({path: fetch[path] for path in paths}):
                record[path] = here, there[path]
                self._save(record)

    def _is_ahead(self, record: Mapping[str, Known], there: Mapping[str, Stamp]) -> bool:
        """Return whether there are checkpoints here that follow on those of the copy."""
        if INDEX not in record or record[INDEX][1] != there.get(INDEX):
            return False
        return self._stamp(INDEX) not in (None, record[INDEX][0])

    def _lacks(self, path: str, there: Stamp, known: Known | None, exact: bool) -> bool:
        """Return whether the folder lacks a file of the copy, or its state."""
        here = self._stamp(path)
        if here is None or known is None or known[1] != there:
            return True
        return exact if known[0] != here else path == INDEX  # which might change twice within a second

    def _download(self, path: str, there: Stamp, known: Known | None) -> Stamp | None:
        """Fetch a file; return its stamp, or None where it holds more than the copy's, as a journal may."""
        assert self.storage is not None
        target, size = self.folder / path, there[0]
        here = self._stamp(path)
        merged = path == JOURNAL and here is not None and (known is None or known[0] != here)
        own = target.read_bytes().splitlines(keepends=True) if merged else []
        with replacing(target) as temporary, temporary.open("wb") as file:
            for start in range(0, size, PIECE):
                (part,) = self.storage.read_ranges(path, [(start, min(PIECE, size - start))])
                file.write(part)
        if not merged:
            return self._stamp(path)
        lines = list(dict.fromkeys([*target.read_bytes().splitlines(keepends=True), *own]))
        lines.sort(key=lambda line: line[:19])  # by their times
        with replacing(target) as temporary:
            temporary.write_bytes(b"".join(lines))
        return None

    def _put(self, record: dict[str, Known], files: Files) -> None:
        """Upload those of `files` that have changed, and record it."""
        storage = self.storage
        assert storage is not None

        def put(path: str) -> Stamp:
            storage.write(path, files[path][1]())
            return storage.stamp(path)

        changed = [path for path, (here, _) in files.items() if path not in record or record[path][0] != here]
        for path, there in _at_once({path: partial(put, path) for path in changed}):
            record[path] = files[path][0], there
            self._save(record)

    def _remove(self, record: dict[str, Known], paths: Iterable[str]) -> None:
        """Remove files from the copy, of a checkpoint its whole folder, and record it."""
        assert self.storage is not None
        parents = {path: PurePosixPath(path).parent for path in paths}
        targets = {path: str(parent) if STEP.fullmatch(parent.name) else path for path, parent in parents.items()}
        for target in sorted(set(targets.values())):
            self.storage.clear(target)
            for path in [path for path in targets if targets[path] == target]:
                del record[path]
            self._save(record)

    def _listing(self) -> dict[str, Stamp]:
        assert self.storage is not None
        return {path: stamp for path, stamp in self.storage.stamps().items() if _is_copied(path)}

    def _paths(self) -> list[str]:
        """List the files of the folder that are copied."""
        paths = (path.relative_to(self.folder).as_posix() for path in self.folder.rglob("*") if path.is_file())
        return sorted(filter(_is_copied, paths))

    def _stamp(self, path: str) -> Stamp | None:
        """Return the bytes of a file here and the time of its last change, in ns; None where there is none."""
        try:
            status = (self.folder / path).stat()
        except FileNotFoundError:
            return None
        return status.st_size, status.st_mtime_ns

    def _beside(self, ending: str) -> Path:
        return self.folder.with_name(f".{self.folder.name}.{ending}")

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """Wait until no other process of this machine fetches or uploads this run, and keep them waiting."""
        while True:
            with exclusive_lock(self._beside("copy.lock")) as mine:
                if mine:
                    yield
                    return
            time.sleep(POLL_SECONDS)

    def _record(self) -> dict[str, Known]:
        """Read what the files were, here and there, when both were last the same."""
        try:
            noted = from_json(self._beside("copy.json").read_bytes())
            return {path: (here and (here[0], here[1]), (there[0], there[1])) for path, (here, there) in noted.items()}
        except (FileNotFoundError, ValueError, TypeError, IndexError, AttributeError):  # then all is fetched again
            return {}

    def _save(self, record: Mapping[str, Known]) -> None:
        write_text(self._beside("copy.json"), json.dumps(record))


def run_copy(path: str | Path, max_outage: float = MAX_OUTAGE) -> RunCopy:
    """Return the run that a folder or an address names.

    Raises:
        UserError: pyarrow does not know such an address, or cannot reach it.
    """
    if is_address(str(path)):
        return RunCopy(working_folder(str(path)), Storage(str(path), max_outage))
    return RunCopy(Path(path))


def local_folder(path: str | Path, wanted: Callable[[str], bool] = lambda path: True) -> Path:
    """Return the absolute path of a run's folder; of an address, the files that are `wanted` are fetched first.

    Raises:
        UserError: as `found`.
    """
    return run_copy(path).found(wanted).absolute()


def working_folder(path: str) -> Path:
    """Return a path, or the folder in which the run, or the runs, at an address are worked on.

    Raises:
        UserError: the address leads elsewhere, or this account has no home folder.
    """
    if not is_address(path):
        return Path(path)
    place, _, options = public_address(path).partition("?")
    scheme, _, rest = place.partition("://")
    parts = PurePosixPath(rest).parts
    if any(part.startswith(".") for part in parts):
        raise UserError(f"{place} has a folder whose name begins with a dot; choose another address")
    server = f"-{hashlib.sha256(options.encode()).hexdigest()[:8]}" if options else ""
    try:
        return Path.home().joinpath(WORKING_FOLDERS, scheme + server, *parts)
    except RuntimeError:
        raise UserError(f"{place}: this account has no home folder to work in; set HOME") from None


def _is_copied(path: str) -> bool:
    parts = PurePosixPath(path).parts
    return parts[0] not in ONLY_HERE and not any(part.startswith(".") for part in parts)


def _at_once(tasks: Mapping[str, Callable[[], T]]) -> Iterator[tuple[str, T]]:
    """Run tasks in threads, some at the same time; yield the name and the result of each, in their order."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        yield from zip(tasks, pool.map(lambda act: act(), tasks.values()), strict=True)


def _mapped(path: Path) -> Callable[[], bytes | pa.Buffer]:
    """Open a file that is not written to any more, so that it can be read even when it is deleted."""
    buffer = pa.memory_map(str(path)).read_buffer() if path.stat().st_size else b""
    return lambda: buffer
