"""Chain of a trial as a graph of stages. A stage is identified by its content, so chains share equal stages."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
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

    @property
    def name(self) -> str:
        """Name of its run in the store: the verb and the first digits of its key."""
        return f"{self.verb}-{self.key[:DIGITS]}"

    @property
    def key(self) -> str:
        """Key of its run; see `run_key`."""
        inputs = {"data": self.digest, **{name: stage.key for name, stage in self.needs.items()}, **plugin_digests()}
        return run_key(self.verb, plain(self.config), inputs)


def unique(stages: Iterable[Stage]) -> list[Stage]:
    """List the stages and all that they need, each once, after those that it needs."""
    found: dict[str, Stage] = {}
    for stage in stages:
        for one in (*unique(stage.needs.values()), stage):
            found.setdefault(one.key, one)
    return list(found.values())
