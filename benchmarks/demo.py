"""Whether the demo comes out the same way everywhere: `python benchmarks/demo.py [--quick] [--out FOLDER]`.

The demo runs once for each seed with one and with two CPU threads; a seed draws other phantoms, masks and networks.
The table shows the DSC of each organ on the test cases, of the network from pretrained weights and of that from
scratch. A demo is as it should be (last column) where every organ is over 70 in both, and the mean from pretrained
weights is not below that from scratch. Each has a folder in OUT: one that is finished is not repeated, and the seconds
are those of the process that finished it. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from measure import machine, report

ROOT = Path(__file__).resolve().parents[1]
NETWORKS = {"anatomask": "pretrained", "scratch": "scratch"}
"""Names of the demo's runs, as `pipelines/demo.py` gives them, and of their columns."""
LEAST = 70.0
"""DSC in % that every organ must exceed."""
RECORD = "demo.json"
"""File of a finished demo in its folder."""


@dataclass(frozen=True)
class Demo:
    """Result of one demo."""

    seed: int
    threads: int
    seconds: float
    dsc: dict[str, dict[str, float]]
    """DSC in % by network and organ; 0 for an organ that no test case holds."""

    def mean(self, network: str) -> float:
        """Return the mean over the organs."""
        return sum(self.dsc[network].values()) / len(self.dsc[network])

    def found(self) -> bool:
        """Return whether both networks have every organ."""
        return all(dsc > LEAST for organs in self.dsc.values() for dsc in organs.values())

    def gained(self) -> bool:
        """Return whether pretrained weights are not worse than none."""
        return self.mean("anatomask") >= self.mean("scratch")


def main() -> None:
    """Run the demos that are not finished, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(5)))
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--out", type=Path, help="folder that keeps the demos; default: a temporary one")
    parser.add_argument(
        "--quick", action="store_true", help="one seed, one thread and two updates, to see that it runs"
    )
    arguments = parser.parse_args()
    seeds, threads = (
        (arguments.seeds[:1], arguments.threads[:1]) if arguments.quick else (arguments.seeds, arguments.threads)
    )
    with tempfile.TemporaryDirectory() as scratch:
        out = (arguments.out or Path(scratch)).absolute()
        demos = [
            finished(out / f"seed{seed}-threads{count}", seed, count, quick=arguments.quick)
            for seed in seeds
            for count in threads
        ]
    organs = list(demos[0].dsc["scratch"])
    report(
        f"DSC [%] of the demo's networks: {NETWORKS['anatomask']} / {NETWORKS['scratch']}",
        ["seed, threads", "s", *organs, "mean", "as it should"],
        [row(demo, organs) for demo in demos],
        {
            "kept": sum(demo.found() and demo.gained() for demo in demos),
            "of": len(demos),
            "demos": [asdict(demo) for demo in demos],
            "machine": machine("cpu"),
        },
    )


def finished(folder: Path, seed: int, threads: int, *, quick: bool) -> Demo:
    """Run a demo in its folder, or read what it reached."""
    record = folder / RECORD
    if not record.exists():
        command = [sys.executable, "-m", "pipelines.demo", str(folder), "--seed", str(seed), "--threads", str(threads)]
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        start = time.perf_counter()
        code = subprocess.run(command + ["--quick"] * quick, cwd=ROOT, env=environment, stdout=sys.stderr).returncode
        if code:
            raise SystemExit(f"the demo in {folder} failed with exit code {code}")
        demo = Demo(seed, threads, time.perf_counter() - start, {name: organ_dsc(folder, name) for name in NETWORKS})
        record.write_text(json.dumps(asdict(demo)), encoding="utf-8")
    return Demo(**json.loads(record.read_text(encoding="utf-8")))


def organ_dsc(folder: Path, network: str) -> dict[str, float]:
    """Read the mean DSC in % of each organ over the test cases."""
    summary = json.loads((folder / "runs" / network / "summary.json").read_text(encoding="utf-8"))
    return {organ: 100 * (figures["dsc"]["mean"] or 0.0) for organ, figures in summary["classes"].items()}


def row(demo: Demo, organs: list[str]) -> list[str]:
    """Format a demo's row of the table."""
    pairs = [" / ".join(f"{demo.dsc[name][organ]:.1f}" for name in NETWORKS) for organ in organs]
    means = " / ".join(f"{demo.mean(name):.1f}" for name in NETWORKS)
    kept = "yes" if demo.found() and demo.gained() else "an organ is missed" if demo.gained() else "pretrained is worse"
    return [f"{demo.seed}, {demo.threads}", f"{demo.seconds:.0f}", *pairs, means, kept]


if __name__ == "__main__":
    main()
