"""Bad input of every kind: one clear message, a non-zero exit, and nothing lost that was there before."""

from __future__ import annotations

import hashlib
import re
import resource
import shlex
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from itertools import starmap
from pathlib import Path

import pytest

from anatomask.cli.main import main
from tests.bad_input import permissions, predictions, prepared, results, runs, series, settings, sources, weights, world
from tests.bad_input.kinds import EVALUATE, GOOD, Kind
from tests.bad_input.privileges import permissions_hold
from tests.bad_input.spoiling import RESULTS, remove

TABLES = (settings, permissions, sources, series, prepared, weights, runs, results, predictions)
KINDS = [kind for table in TABLES for kind in table.KINDS]
REMEDY = re.compile(
    r"(?:[;:.] (?:or |then )?|, or |, so )(?:choose|set|give|write|run|prepare|delete|remove|repair|rename|leave|get"
    r"|lower|name|raise|use|check|copy|train|convert|split|make|ask|begin|correct|merge|add|free|wait|install|evaluate"
    r"|finetune|put|see|look|keep|shorten|close|try|--overwrite)\b"
    r"| (?:must|may be|should be|no more than|at most|it looks like|are like) |there (?:are|is) |only those of"
    r"|only \w+ can be|as in|finetune from",
    re.IGNORECASE,
)
"""What tells the user what to do, or what would be right."""
MEMORY_BYTES = 4 * 2**30
PROGRESS = re.compile(r"^.{,90} \d+/\d+( |$)")
"""A line that says how far the work is."""


def digests(folder: Path) -> dict[Path, str]:
    """A digest of each file."""
    files = (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def code_of(command: str) -> int:
    """Run a command in this process and return its exit code."""
    try:
        return main(shlex.split(command))
    except SystemExit as end:
        return int(str(end.code))


@pytest.fixture(autouse=True)
def bounded_memory() -> Iterator[None]:
    """Give the command so much memory and no more: bad input must not fill the machine."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY_BYTES, hard))
    yield
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@pytest.mark.parametrize("name", GOOD)
def test_good_input_is_accepted(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world.without_ray(monkeypatch, world.accept)
    with suppress(world.Accepted):
        assert code_of(GOOD[name]) == 0


@pytest.mark.parametrize("name", permissions.READABLE)
def test_what_another_user_wrote_can_be_read(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world.without_ray(monkeypatch, world.accept)
    command, spoil = permissions.READABLE[name]
    spoil(folder)
    with permissions_hold(), suppress(world.Accepted):
        assert code_of(command) == 0


@pytest.mark.timeout(30)
@pytest.mark.parametrize("kind", [pytest.param(kind, id=kind.name) for kind in KINDS])
def test_bad_input(
    kind: Kind,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    world.without_ray(monkeypatch, world.accept)
    kind.spoil(folder)
    before = digests(folder)
    capfd.readouterr()
    with permissions_hold() if kind.as_user else nullcontext():
        code = code_of(kind.command)
    assert code != 0
    shown = capfd.readouterr()
    assert "Traceback" not in shown.out + shown.err
    if kind.skips:
        check_skipped(shown.err, kind)
    else:
        check_refused(shown.err, kind)
    after = digests(folder)
    changed = [path for path, digest in before.items() if after.get(path) != digest]
    assert [path for path in changed if path.name not in ("skipped.json", "log.txt")] == []


def test_what_is_scored_and_may_mislead_is_said(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Scans that fill less than half of a window along an axis, and cases that were trained on."""
    world.without_ray(monkeypatch, world.accept)
    entries = {"patch_size": [48, 48, 48], "data": str(folder / "data")}
    for spoil in (*map(remove, RESULTS), *starmap(weights.entry, entries.items())):
        spoil(folder)
    assert code_of(f"{EVALUATE} --split train") == 0
    told = capfd.readouterr().err
    assert re.search("more padding than scan in . of the . scans.* 16 of 48 voxels along S", told), told
    assert "the network was trained on the cases of train: their scores say nothing of new scans" in told
    assert list(Path("runs/finetuned/predictions").glob("*.csv"))


def check_refused(err: str, kind: Kind) -> None:
    """The message is one line, or one box of the command line's parser, and has a remedy."""
    shown = " ".join(re.sub("[│╭╮╰╯─]", " ", err).split())
    assert re.search(kind.says, shown), shown
    boxed = "╭" in err
    if boxed:
        assert err.count("╭") == 1, err
    else:
        assert REMEDY.search(shown), f"no remedy: {shown}"
        lines = [line for line in err.splitlines() if line.strip() and not PROGRESS.search(line)]
        assert len(lines) == 1, err
        line = lines[0]
        assert line.startswith("anatomask"), line
        assert len(line) < 2000, f"{len(line)} characters"


def check_skipped(err: str, kind: Kind) -> None:
    """The case is listed with the reason, and another one was written."""
    written = {"evaluate": "runs/finetuned/predictions/*.csv", "predict": "predicted/*.nii.gz"}
    if (verb := kind.command.split()[0]) in written:
        assert re.search(rf"^anatomask \w+: \w+: .*{kind.says}", err, re.MULTILINE), err
        assert REMEDY.search(err), err
        assert list(Path().glob(written[verb]))
        return
    told = re.sub(r"[\s│┃]", "", err)
    assert err.count("Skipped cases") == 1
    assert re.search(kind.says.replace(" ", ""), told), err
    assert re.search(r"^\d+ cases? w(ere|as) skipped", err, re.MULTILINE), err
    assert list(Path("out/cases").glob("*.parquet"))


def test_there_are_many_kinds_and_each_has_a_name() -> None:
    names = [kind.name for kind in KINDS]
    assert len(names) >= 150
    assert len(set(names)) == len(names)
