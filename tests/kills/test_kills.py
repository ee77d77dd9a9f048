"""Three random kills of each command that runs for long; `make test-kills` has many more."""

from __future__ import annotations

import time

import pytest

from tests.kills.loop import Loop, State
from tests.kills.processes import PROC
from tests.kills.subjects import SUBJECTS

KILLS = 3


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> State:
    """A folder whose inputs all of them share."""
    state = State(tmp_path_factory.mktemp("kills"), seed=int(time.time()))
    print(f"seed {state.seed}")
    return state


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(not PROC.is_dir(), reason="processes are looked for in /proc")
@pytest.mark.parametrize("name", SUBJECTS)
def test_killed_at_random_moments_it_ends_as_without(name: str, state: State) -> None:
    Loop(SUBJECTS[name], KILLS, state).run()
    assert len(state.records(name, "kill")) == KILLS
    assert state.records(name, "end")
