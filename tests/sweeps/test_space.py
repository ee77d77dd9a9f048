"""Spaces of sweeps: those of the paper's tables, the search, and a user's own."""

from __future__ import annotations

from pathlib import Path

import optuna
import pytest

from anatomask.config import PretrainConfig
from anatomask.errors import UserError
from anatomask.nested import overlay_dotted, plain
from anatomask.plugins import plugin_files
from anatomask.reports.sweeps import paper_ablation
from anatomask.sweeps.space import Table, load_space, space_names

REPOSITORY = Path(__file__).parents[2]


@pytest.mark.parametrize("name", space_names())
def test_every_point_of_a_space_is_a_valid_pretraining(name: str) -> None:
    space = load_space(name)
    if isinstance(space, Table):
        points = list(space.rows.values())
    else:
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
        trials = [study.ask() for _ in range(50)]
        for trial in trials:
            space.suggest(trial)
        points = [trial.params for trial in trials]
    for point in points:
        config = overlay_dotted(PretrainConfig(data="x"), point, name)
        for field, value in point.items():
            section, _, option = field.partition(".")
            assert plain(config)[section][option] == value


def test_a_space_may_be_any_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text((REPOSITORY / "tune_spaces/table3_mask_ratio.py").read_text())
    assert load_space(str(path)) == load_space("table3_mask_ratio")
    assert plugin_files() == []
    path = tmp_path / "empty.py"
    path.write_text("")
    with pytest.raises(UserError, match="must assign SPACE"):
        load_space(str(path))


@pytest.mark.parametrize("lacking", ["a", "b"])
def test_rows_with_other_fields_than_another_are_refused(lacking: str, tmp_path: Path) -> None:
    """A field that the first row lacked was left out of every trial, and tried with its default."""
    rows = {name: {"method.masking": "random", "method.mask_ratio": 0.8} for name in ("a", "b")}
    del rows[lacking]["method.mask_ratio"]
    path = tmp_path / "mine.py"
    path.write_text(f"from anatomask.sweeps.space import Table\nSPACE = Table({rows})")
    with pytest.raises(UserError, match=rf"mine.py, line 2: .*row {lacking} does not set method.mask_ratio, "):
        load_space(str(path))


def table_of(name: str) -> Table:
    space = load_space(name)
    assert isinstance(space, Table)
    return space


def test_the_tables_are_the_papers() -> None:
    tables = [table_of(name) for name in space_names() if name.startswith("table")]
    papers = {table.paper: table for table in tables if table.paper}
    assert sorted(papers) == ["1", "2", "3"] and len(tables) == 3
    for paper, table in papers.items():
        assert set(table.rows) == set(paper_ablation(paper))
        points = [tuple(sorted(row.items())) for row in table.rows.values()]
        assert len(set(points)) == len(points)
    ratios = [row["method.mask_ratio"] for row in table_of("table3_mask_ratio").rows.values()]
    assert ratios == [0.6, 0.8, 0.9]


def test_the_search_varies_what_the_paper_studies() -> None:
    trial = optuna.create_study().ask()
    load_space("search").suggest(trial)
    studied = {"mask_ratio", "r0", "rT", "decoder", "patch", "among"}
    assert set(trial.params) == {*(f"method.{name}" for name in studied), "optimiser.lr"}
