"""Effect of pretraining on OpenKBP: `python benchmarks/evidence.py --step N --out FOLDER --scans OPENKBP`.

It trains and scores what is still missing of the first N steps, each through the project's own stages, and writes one
record per scored network into `FOLDER/records`. After a kill, the same command resumes. The design is in
docs/results/evidence.md. Steps:

1. A budget of updates, the number of labels, the learning rate from scratch, and the positive control (an encoder that
   was trained with all labels), scored on ten cases that are used for nothing else.
2. SparK and AnatoMask, one pretraining seed: 8 networks from scratch, 4 from each, scored on the validation cases; the
   permuted control.
3. The second pretraining seed: 4 networks from each.
4. Other numbers of labels: 5, 10, 25, all 89.
5. A budget and a pretraining twice as long.
6. Masks among all patches; from scratch with the pretraining's hours.

Records and encoders of another machine are used if they lie in FOLDER. Those of another commit are refused unless
`--also` names it: compare a record or two of both commits first, which are equal in all scores if the code trains the
same networks. `--quick` runs steps 1 to 3 with a few updates
each, to show that they run.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

from evidence_runs import Experiment, shared_ray
from evidence_steps import FULL, QUICK, run_steps

from anatomask.errors import UserError


def main() -> None:
    """Run what is missing, and print the choices and the score of each network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--step", type=int, choices=range(1, 7), default=3, help="last step to run")
    parser.add_argument("--out", type=Path, required=True, help="folder of the experiment")
    parser.add_argument("--scans", type=Path, required=True, help="OpenKBP, laid out as an nnU-Net raw folder")
    parser.add_argument("--jobs", type=int, default=2, help="trainings at once, each with its share of the cores")
    parser.add_argument("--pretraining", type=int, default=FULL.pretraining, help="updates of a pretraining")
    parser.add_argument("--also", nargs="+", default=[], metavar="COMMIT", help="other commits that train the same")
    parser.add_argument("--quick", action="store_true", help="a few updates per training")
    arguments = parser.parse_args()
    scale = QUICK if arguments.quick else replace(FULL, pretraining=arguments.pretraining)
    experiment = Experiment(
        arguments.out.absolute(), arguments.scans.absolute(), scale, arguments.jobs, also=tuple(arguments.also)
    )
    try:
        with shared_ray(arguments.jobs) as address, experiment.claimed():
            run_steps(replace(experiment, address=address), arguments.step)
    except UserError as error:
        raise SystemExit(str(error)) from error
    records = experiment.records()
    print(json.dumps({"records": len(records), "commit": experiment.commit, "hours": experiment.hours()}))


if __name__ == "__main__":
    main()
