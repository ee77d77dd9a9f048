from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from anatomask.errors import Stopped, UserError
from anatomask.runs import store as module
from anatomask.runs.store import Store


def test_one_at_a_time_has_a_run_and_the_others_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "POLL_SECONDS", 0.01)
    store, inside, most = Store(tmp_path), [], []

    def work() -> None:
        with store.claimed("pretrain-0") as folder:
            inside.append(folder)
            most.append(len(inside))
            time.sleep(0.05)
            inside.pop()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    with store.claimed("pretrain-1") as other:
        assert other == tmp_path / "store" / "pretrain-1"
    for thread in threads:
        thread.join()
    assert most == [1] * 4


def test_nobody_waits_for_a_run_once_it_is_to_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "POLL_SECONDS", 0.01)
    stop = tmp_path / "stop"
    with Store(tmp_path).claimed("pretrain-0"):  # by another sweep
        threading.Timer(0.2, stop.touch).start()
        with pytest.raises(Stopped), Store(tmp_path, stop).claimed("pretrain-0"):
            pass
    with pytest.raises(Stopped), Store(tmp_path, stop).claimed("pretrain-1"):
        pass


def test_a_link_leads_to_the_run_and_follows_a_move_of_the_whole(tmp_path: Path) -> None:
    store = Store(tmp_path / "runs")
    store.path("pretrain-0").mkdir(parents=True)
    (store.path("pretrain-0") / "log.txt").write_text("0")
    alias = tmp_path / "runs" / "sweep" / "000-a" / "pretrain"
    store.link(alias, "pretrain-1")
    for _ in range(2):
        store.link(alias, "pretrain-0")
    moved = (tmp_path / "runs").rename(tmp_path / "elsewhere")
    assert (moved / "sweep" / "000-a" / "pretrain" / "log.txt").read_text() == "0"
    assert [path.name for path in (moved / "sweep" / "000-a").iterdir()] == ["pretrain"]


def test_what_is_in_the_way_of_a_link_stays(tmp_path: Path) -> None:
    alias = tmp_path / "sweep" / "pretrain"
    alias.mkdir(parents=True)
    (alias / "mine").write_text("mine")
    with pytest.raises(UserError, match="in the way"):
        Store(tmp_path).link(alias, "pretrain-0")
    assert (alias / "mine").read_text() == "mine"
