from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anatomask.cli.main import main
from anatomask.config import FinetuneConfig, PretrainConfig
from anatomask.names import check_name, component, file_name, shown
from anatomask.sweeps.settings import SweepConfig

BAD = ["..", ".", " ", "../../x", "/etc", "a/b", "a\nb", "a\0b", ".hidden", "-x", "ä", "a b", "x" * 129, "\udcff", "~"]


@pytest.mark.parametrize("name", BAD)
def test_a_name_that_leads_elsewhere_is_refused_wherever_a_run_is_named(name: str) -> None:
    pretrain, finetune = PretrainConfig(data="x"), FinetuneConfig(data="x")
    for config in (
        lambda: PretrainConfig(data="x", name=name),
        lambda: FinetuneConfig(data="x", name=name),
        lambda: SweepConfig("s", "x", ("x",), pretrain, finetune, name=name),
    ):
        with pytest.raises(ValueError, match=r"^name (must be at most 128 letters, digits|holds characters)"):
            config()


@pytest.mark.parametrize("name", ["", "a", "0", "pretrain-kbp-1a2b3c4d", "r0=0.5+x_y", "x" * 128])
def test_plain_names_are_taken(name: str) -> None:
    check_name(name)


def test_a_project_is_not_emptied_by_its_own_name(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """`--runs proj/runs --name .. --overwrite` did."""
    (tmp_path / "config.yaml").write_text("mine: true\n")
    with pytest.raises(SystemExit):
        main(["pretrain", "--data", "x", "--runs", str(tmp_path / "runs"), "--name", "..", "--overwrite"])
    assert "name must be at most 128 letters" in " ".join(capfd.readouterr().err.replace("│", " ").split())
    assert (tmp_path / "config.yaml").exists()


@given(st.text())
def test_any_text_becomes_a_name_that_a_run_could_have(text: str) -> None:
    name = file_name(text)
    assert name
    check_name(name)
    component(name)
    assert file_name(name) == name


@given(st.text(alphabet="abcXYZ019._+=-", min_size=1, max_size=128).filter(lambda text: text[0] not in ".-"))
def test_a_plain_text_is_its_own_file_name(text: str) -> None:
    assert file_name(text) == text


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/", "../../evil", "a\nb", "a\0", "a\x1b[2J"])
def test_a_component_stays_in_its_folder(name: str) -> None:
    with pytest.raises(ValueError, match="is not the name of a file"):
        component(name)


def test_what_is_shown_is_short() -> None:
    assert shown("a") == "'a'"
    assert len(shown("x" * 10**6)) == 80
