from __future__ import annotations

import pytest

from anatomask.data.organs import Organ, has_side, simple_name, twins, votes


@pytest.mark.parametrize(
    ("name", "simple"),
    [
        ("RightParotid", "right parotid"),
        ("parotid_R", "parotid right"),
        ("kidney_left", "kidney left"),
        ("gall bladder", "gallbladder"),
        ("postcava", "vena cava"),
        ("arota", "aorta"),
        ("right adrenal gland", "right adrenal"),
        ("SpinalCord", "spinal cord"),
        ("prostate/uterus", "prostate"),
    ],
)
def test_names_of_the_data_sets_become_plain_words(name: str, simple: str) -> None:
    assert simple_name(name) == simple


def test_a_name_with_a_side_is_known_however_it_is_written() -> None:
    sided = ("kidney_left", "RightParotid", "Parotid_L", "lt kidney", "kidneyright", "A_Carotid_R")
    assert all(map(has_side, sided))
    assert not any(map(has_side, ("liver", "vertebrae_L5", "rectum", "bladder", "class 1")))


def test_twins_differ_in_the_side_alone() -> None:
    names = ["left kidney", "kidney right", "right lung", "left", "right", "liver"]
    assert list(twins(names)) == [("kidney right", "left kidney")]


def test_a_pair_votes_for_the_axis_it_tells() -> None:
    organs = {
        "liver": Organ(1500, (60, 0, 0)),
        "spleen": Organ(200, (-80, -20, 0)),
        "bladder": Organ(300, (0, 40, 250)),
        "gall bladder": Organ(0.1, (-90, 0, 0)),  # too small to count, and no bladder
    }
    assert {(vote.axis, vote.first, vote.second): vote.right for vote in votes(organs)} == {
        (0, "liver", "spleen"): True,
        (2, "liver", "bladder"): False,
        (2, "spleen", "bladder"): False,
    }


def test_centres_that_are_close_do_not_vote() -> None:
    assert votes({"kidney_right": Organ(150, (4, 0, 0)), "kidney_left": Organ(150, (-4, 0, 0))}) == []
