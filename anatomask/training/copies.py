"""Trainings whose run has a copy on object storage: fetched before, uploaded behind, and asked to stop through it."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from anatomask.errors import UserError, first_line
from anatomask.runs.remote import Files, RunCopy, is_of_checkpoints
from anatomask.training.job import TrainingJob
from anatomask.training.journal import JOURNAL, METRICS, note
from anatomask.training.stopping import stop_file

if TYPE_CHECKING:  # the driver computes nothing
    import torch

    from anatomask.training.parallel import Workers

POLL_SECONDS = 5.0
STOP = "stop"
"""Name of the object by which a training on another machine is asked to stop, which removes it as its last action."""
LEAVE_SECONDS = 60.0
"""Seconds to wait for a request that is under way."""


class Uploads:
    """Uploads of a run behind its training: of the newest checkpoint once an earlier one has gone, which may take long.

    An upload that fails is noted in the journal, and the next one makes up for it.
    """

    def __init__(self, copy: RunCopy) -> None:
        self.copy = copy
        self.thread = ThreadPoolExecutor(1, "copy")
        self.newest: deque[Files] = deque(maxlen=1)

    def request(self) -> None:
        """Upload the checkpoints as they are now, and the rest of the run."""
        self.newest.append(self.copy.files_of_checkpoints())
        self.thread.submit(self._upload)

    def _upload(self) -> None:
        with suppress(IndexError):  # an earlier call has uploaded it
            checkpoints = self.newest.popleft()
            try:
                self.copy.upload(checkpoints)
            except (UserError, OSError) as error:
                with suppress(OSError):  # where the disk is full
                    note(self.copy.folder, f"not copied, the next checkpoint tries again: {first_line(error)}")


@contextmanager
def worker_copy(job: TrainingJob, workers: Workers, device: torch.device) -> Iterator[Callable[[], None]]:
    """Fetch what this worker needs of the job's runs, and yield what is called after each checkpoint.

    The first worker's folder is the newer one where both have changed since its last upload, as after an outage; the
    others take the checkpoints that it has uploaded. At the end of the block it uploads the rest.

    Raises:
        UserError: storage cannot be read, or at the end not be written.
    """
    copy = job.copy
    for needed in job.needs:
        needed.fetch()
    if copy.storage is None:
        yield lambda: None
        return
    if workers.rank > 0:
        workers.agree(0, device)  # waits for the first one
        copy.fetch(is_of_checkpoints, exact=True)
        yield lambda: None
        return
    copy.fetch()
    if workers.count > 1:
        copy.upload()
    uploads, quick = Uploads(copy), copy.impatient()
    storage = quick.results

    def look() -> None:
        if storage.exists(STOP):
            stop_file(job.run).touch()

    with copy.training():
        workers.agree(0, device)
        try:
            with repeated(look):
                yield uploads.request
        except BaseException:
            uploads.thread.shutdown(wait=False, cancel_futures=True)
            with suppress(UserError, OSError):
                quick.upload()
            raise
        uploads.thread.shutdown()
        copy.complete()
        with suppress(UserError, OSError):  # the driver does so, too
            storage.clear(STOP)


@contextmanager
def driver_copy(job: TrainingJob) -> Iterator[None]:
    """Within the block, hand requests to stop to a training on another machine, and fetch its figures and journal."""
    if job.storage is None:
        yield
        return
    stop, quick = stop_file(job.run), job.copy.impatient()
    storage = quick.results
    asked = False

    def look() -> None:
        nonlocal asked
        if stop.exists() and not asked:
            storage.write(STOP, b"")
            asked = True
        elif stop.exists() and not storage.exists(STOP):
            stop.unlink(missing_ok=True)
        quick.fetch({METRICS, JOURNAL}.__contains__)

    job.storage.clear(STOP)  # of an earlier call that was killed
    try:
        with repeated(look):
            yield
    finally:
        with suppress(UserError, OSError):
            storage.clear(STOP)


@contextmanager
def repeated(act: Callable[[], None]) -> Iterator[None]:
    """Call `act` every few seconds in the background; what storage fails at is tried again."""
    end = threading.Event()

    def repeat() -> None:
        while not end.wait(POLL_SECONDS):
            with suppress(UserError, OSError):
                act()

    thread = threading.Thread(target=repeat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        end.set()
        thread.join(LEAVE_SECONDS)
