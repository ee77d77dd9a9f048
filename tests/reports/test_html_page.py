"""Page of a report: in a browser, and what it does with texts from outside."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import matplotlib.image
import nibabel as nib
import numpy as np
import pytest

from anatomask.reports.html_page import (
    Cell,
    Column,
    HtmlTable,
    Page,
    PageFigure,
    RunDetails,
    Section,
    is_page,
    render_page,
    text_cell,
)
from anatomask.reports.viewer import Grid, ViewedCase, ViewedLabels, _gzipped
from tests.browser import Tab, browser_tab, chromium

HOSTILE = "</script><script>document.body.dataset.broken=1</script><img src=x onerror=alert(1)>\"'&amp;{{ 7 * 7 }}"
PIXEL = bytes.fromhex(
    "89504e470d0a1a0a0000000d49484452000000010000000108060000001f15c4890000000d49444154789c63606060f80f00010401005f9d"
    "2bdb0000000049454e44ae426082"
)


def page(name: str) -> Page:
    """A page of everything, with `name` wherever a text can come from outside."""
    columns = [Column(name), Column("DSC [%]", numeric=True)]
    rows = [
        [text_cell("b"), Cell("9.5", 0.095)],
        [text_cell(name), Cell("–")],
        [text_cell("a"), Cell("80.0 ± 1.0", 0.8, strong=True)],
    ]
    table = HtmlTable(columns, rows, name, [name])
    image = np.random.default_rng(0).integers(0, 255, (12, 14, 16)).astype(np.uint8)
    label = np.zeros(image.shape, np.uint8)
    label[3:8, 3:9, 3:9] = 2
    affine = np.diag([2.0, 2.0, 3.0, 1.0])
    window = (-160.0, 240.0)
    labels = [ViewedLabels(title, name, _gzipped(label, affine)) for title in ("Ground truth", name)]
    colours = {1: (1.0, 0.0, 0.0), 2: (0.0, 1.0, 0.0)}
    image_file = _gzipped(image, affine, window)
    case = ViewedCase(name, name, image_file, window, labels, {1: name, 2: "liver"}, colours)
    sections = [Section(name, [table], [PageFigure(name, PIXEL, name)], [name])]
    return Page(name, sections, [case, case], HtmlTable(columns, rows), [RunDetails(name, name, name, name)])


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    program = chromium()
    if program is None:
        pytest.skip("no Chromium on the PATH")
    with browser_tab(program, tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.mark.parametrize("width", [1280, 420])
def test_a_browser_shows_it_without_a_complaint_and_without_a_network(width: int, tab: Tab, tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    file.write_text(render_page(page(HOSTILE)))
    before = len(tab.complaints()), len(tab.requests())
    tab.open(file, width)
    tab.wait_for("viewer.dataset.state === 'shown'")
    assert tab.evaluate("document.body.dataset.broken") is None
    assert tab.evaluate("document.title") == tab.evaluate("document.querySelector('h1').textContent") == HOSTILE
    assert tab.evaluate("document.documentElement.scrollWidth") <= width  # only tables scroll sideways

    cells = "[...document.querySelectorAll('#section-1 tbody tr')].map(row => row.cells[0].textContent)"
    for column, orders in ((0, (HOSTILE + "ab", "ba" + HOSTILE)), (1, ("ab" + HOSTILE, "ba" + HOSTILE))):
        for order in orders:
            tab.evaluate(f"document.querySelectorAll('#section-1 th button')[{column}].click()")
            assert "".join(tab.evaluate(cells)) == order

    for view in ("Axial", "Render"):
        tab.evaluate(f"document.querySelector('[value=sliceType{view}]').click()")
    tab.evaluate(
        "const cases = viewer.querySelector('#case');"
        "for (const value of [1, 0, 1]) { cases.value = value; cases.dispatchEvent(new Event('change')) }"
    )
    assert tab.evaluate("viewer.dataset.state") == "loading"  # until the last of them is drawn
    tab.wait_for("viewer.dataset.state === 'shown'")
    assert tab.evaluate("[...viewer.querySelectorAll('.legend li')].map(item => item.textContent)") == [
        HOSTILE,
        "liver",
    ]
    tab.evaluate("viewer.querySelector('.panes').scrollIntoView()")
    tab.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
    tab.screenshot(tmp_path / "window.png", whole=False)
    red, green, blue = np.moveaxis(matplotlib.image.imread(tmp_path / "window.png")[..., :3], -1, 0)
    assert ((green > red + 0.2) & (green > blue + 0.2)).sum() > 200  # the liver is drawn
    assert (tab.complaints()[before[0] :], tab.requests()[before[1] :]) == ([], [file.as_uri()])


def test_without_webgl_the_page_says_so_and_the_rest_works(tmp_path: Path) -> None:
    program = chromium()
    if program is None:
        pytest.skip("no Chromium on the PATH")
    (tmp_path / "report.html").write_text(render_page(page("name")))
    with browser_tab(program, tmp_path / "profile", "--disable-3d-apis") as without:
        without.open(tmp_path / "report.html", 800)
        without.wait_for("viewer.dataset.state === 'without WebGL'")
        assert "needs WebGL 2" in without.evaluate("viewer.textContent") and without.complaints() == []
        without.evaluate("document.querySelectorAll('#section-1 th button')[0].click()")
        assert without.evaluate("document.querySelector('#section-1 tbody td').textContent") == "a"


def test_texts_from_outside_are_escaped_and_scripts_are_those_named() -> None:
    html = render_page(page(HOSTILE))
    assert "<img src=x" not in html and "{{ 7 * 7 }}" in html and html.count("<script>") == 3
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', html)
    assert policy is not None and policy[1].count("sha256-") == 3 and "script-src &#39;" not in policy[1]
    assert "http://" not in re.sub(r"<script.*?</script>|<details>.*?</details>", "", html, flags=re.DOTALL)


def test_a_page_is_known_and_equal_content_gives_equal_bytes() -> None:
    html = render_page(page("x\x1b[2J"))
    assert is_page(html.encode()) and html == render_page(page("x\x1b[2J")) and "\x1b" not in html
    assert not is_page(b"<html>mine</html>")
    without = render_page(Page("empty", []))
    assert is_page(without.encode()) and "niivue" not in without and len(without) < 20_000


def test_the_volumes_are_nifti_files_that_nibabel_reads(tmp_path: Path) -> None:
    grid = Grid(np.array([1, 2, 3]), np.array([2.0, 1.0, 1.0]), (4, 5, 6))
    affine = grid.affine(np.diag([1.0, 1.0, 2.0, 1.0]))
    voxels = np.arange(120, dtype=np.uint8).reshape(grid.shape)
    (tmp_path / "image.nii.gz").write_bytes(_gzipped(voxels, affine, (0.0, 510.0)))
    image = nib.Nifti1Image.from_filename(tmp_path / "image.nii.gz")
    assert np.allclose(image.get_fdata(), 2.0 * voxels) and np.allclose(image.affine, affine)
    assert np.allclose(affine[:3, 3], (1.5, 2, 6))  # the first voxel has the second and third of the grid in it
