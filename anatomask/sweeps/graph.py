"""Chain of a trial as a graph of stages. A stage is identified by its content, so chains share equal stages."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from queue import SimpleQueue
from threading import Thread
from typing import Any

from anatomask.nested import plain
from anatomask.plugins import plugin_digests
from anatomask.runs.identity import run_key

DIGITS = 16
"""Digits of a key in the name of a run."""


@dataclass(frozen=True)
class Stage:
    """Verb, its settings, and the stages whose results it reads."""

    verb: str
    """Name of the verb: pretrain, finetune or evaluate."""
    config: Any
    """Settings of the verb. Fields that name a needed stage's run are filled in when that run has a folder."""
    digest: str
    """Digest of the prepared folder that the field `data` names."""
    needs: Mapping[str, Stage] = field(default_factory=dict)
    """Needed stages, by the field of the settings that names their run: `init` or `run`."""
    until: int | None = None
    """Epoch of a training after which the stage keeps a copy of its weights; the training itself is the stage without
    this. None: it runs to its end."""

    @property
    def name(self) -> str:
        """Name of its run in the store: the verb and the first digits of its key."""
        return f"{self.verb}-{self.key[:DIGITS]}"

    @cached_property
    def key(self) -> str:
        """Key of its run; see `run_key`."""
        inputs = {"data": self.digest, **{name: stage.key for name, stage in self.needs.items()}, **plugin_digests()}
        if self.until is not None:
            inputs["until"] = f"epoch {self.until}"
        return run_key(self.verb, plain(self.config), inputs)


def unique(stages: Iterable[Stage]) -> list[Stage]:
    """List the stages and all that they need, each once, after those that it needs."""
    found: dict[str, Stage] = {}
    for stage in stages:
        for one in (*unique(stage.needs.values()), stage):
            found.setdefault(one.key, one)
    return list(found.values())


def run_in_order(stages: Mapping[str, Stage], run: Callable[[str, Stage], None], at_once: int) -> None:
    """Run stages, each after those of them that it needs, and at most `at_once` at the same time.

    A stage that becomes ready goes before those that come later in `stages`. After a failure none begins any more, and
    those that run come to their end.

    Args:
        stages: stages by the names of their links.
        run: function of a name and its stage, which is called in a thread.
        at_once: number of threads.

    Raises:
        Exception: what `run` raised first.
    """
    left, running, ended = dict(stages), set[str](), SimpleQueue[tuple[str, BaseException | None]]()
    failure: BaseException | None = None

    def attempt(name: str, stage: Stage) -> None:
        try:
            run(name, stage)
            ended.put((name, None))
        except BaseException as error:  # handed to the thread that waits, whatever it is
            ended.put((name, error))

    while running or (left and failure is None):
        for name, stage in left.items() if failure is None else ():
            ready = not any(need is other for need in stage.needs.values() for other in left.values())
            if ready and name not in running and len(running) < at_once:
                running.add(name)
                Thread(target=attempt, args=(name, stage), daemon=True).start()
        name, error = ended.get()
        running.remove(name)
        del left[name]
        failure = failure or error
    if failure is not None:
        raise failure
