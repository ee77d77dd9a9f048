"""Networks of gpu_experiment.py on random scans: runs that evidence.py describes leave what its report reads."""

from __future__ import annotations

from dataclasses import replace

import pytest
from evidence_design import Finetuning, Pretraining
from evidence_report import arms_of
from gpu_pack import compressed
from gpu_workers import WEIGHTS, Networks, Place, Workers, encoder_folder

from anatomask.weights.tensor_files import read_described, write_described
from tests.benchmarks.test_gpu_training import SETTING, scans

PRETRAINING = Pretraining("anatomask", "body", 1, 2)
FINETUNING = Finetuning("scratch", 1, 4, 1e-3, 0, "val")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A folder with a packed file of random scans, and room for an experiment."""
    folder, packed = tmp_path_factory.mktemp("gpu"), scans()
    packed.header["spacing"] = [4.0, 4.0, 3.0]
    packed.header["splits"] |= {"train": ["case0", "case1"], "budget": ["case2"], "val": ["case2", "case3"]}
    tensors = {f"{case}.codes": compressed(codes) for case, codes in packed.codes.items()}
    tensors |= {f"{case}.label": compressed(label) for case, label in packed.labels.items()}
    write_described(folder / "scans.gpu", tensors, packed.header)
    return Place("cpu", folder / "scans.gpu", folder / "out", replace(SETTING, labels=1))


def test_every_arm_leaves_a_record_that_the_report_reads(place: Place) -> None:
    networks = Networks(place)
    assert networks.do(PRETRAINING) > 0
    name = PRETRAINING.name
    chosen = networks.do(replace(FINETUNING, labels=2, split="budget"))
    inits = ["scratch", name, f"permuted:{name}", f"encoder:{chosen['name']}"]
    records = [networks.do(replace(FINETUNING, init=init)) for init in inits]
    assert len({str(record["curve"]) for record in records}) == 4
    for record in records:
        assert record["dsc"].keys() == record["nsd_3mm"].keys() == record["nsd_2mm"].keys() == {"case2", "case3"}
        assert [updates for updates, _ in record["curve"]] == [1, 2, 3, 4]
    assert list(chosen["dsc"]) == ["case2"]
    arms = arms_of(records[:3])
    assert {arm: runs[0].pretraining for arm, runs in arms.items()} == {
        "scratch": "", "AnatoMask": "p1", "AnatoMask, permuted": "p1"
    }  # fmt: skip
    header = read_described(encoder_folder(place.out, name) / WEIGHTS).header
    assert (header["updates"], header["setting"]["seed"]) == (2, 1)


@pytest.mark.slow
def test_processes_answer_and_say_what_failed(place: Place) -> None:
    workers = Workers(place, 1, 1)
    try:
        with pytest.raises(RuntimeError, match=r"nobody-n1-u4.*failed:(.|\n)*does not exist"):
            workers.train(replace(FINETUNING, init="nobody"))
        assert workers.submit(FINETUNING).result()["init"] == "scratch"
    finally:
        workers.end()
