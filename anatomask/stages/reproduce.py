"""Reproduction of the paper's tables: `anatomask reproduce` pretrains, finetunes and scores every row.

Tables 1 to 3 are a sweep each, over AnatoMask's variants; each method of Tables 4 to 6 is a sweep of two trials, its
chain and its twin from scratch. They share stages through the store, run one after another, and go on where they were
after a kill. A row that failed does not stop the others. The folder `<runs>/<name>` gets the report.
"""

from __future__ import annotations

import shlex
from collections import Counter
from pathlib import Path

from rich.console import Console

from anatomask.cluster import running
from anatomask.config import SCRATCH, ReportConfig
from anatomask.data.addresses import public_address
from anatomask.errors import UserError
from anatomask.evaluation.results import SUMMARY_FILE
from anatomask.plugins import plugin_flags
from anatomask.recipes.parts import TARGETS
from anatomask.reports.studies import STUDY_FIGURE
from anatomask.runs.store import Store
from anatomask.stages import report, sweep
from anatomask.stages.workload import Remaining, workload_rows
from anatomask.sweeps.chain import Chain, build_chain
from anatomask.sweeps.graph import Stage, unique
from anatomask.sweeps.reproduction import Part, Reproduction, plan_reproduction
from anatomask.sweeps.settings import ReproduceConfig
from anatomask.terminal.printing import remark, show_failures


def stage(config: ReproduceConfig, *, overwrite: bool) -> int:
    """Make the rows that are missing, then the report; return 1 if a row failed."""
    reproduction = plan_reproduction(config)
    chains = [build_chain(part.config) for part in reproduction.parts]
    for part, chain in zip(reproduction.parts, chains, strict=True):
        sweep.check(chain, part.space)
    for text in reproduction.missing:
        remark(text)
    failures, console = {}, Console()
    with running(config.cluster):
        for number, part in enumerate(reproduction.parts, start=1):
            console.rule(f"{number}/{len(reproduction.parts)} {title(part)}", align="left", style="dim")
            try:
                if sweep.run_space(part.config, part.space, overwrite=overwrite):
                    failures[part.config.name] = "some of its trials failed, as said above"
            except UserError as error:  # the other parts can be made all the same
                failures[part.config.name] = str(error)
    show_failures("reproduce", failures)
    console.rule("report", align="left", style="dim")
    scored = list(dict.fromkeys(str(run) for chain in chains for run in evaluated(chain)))
    if scored:
        report.stage(
            ReportConfig(
                runs=tuple(scored),
                out=str(Path(config.runs) / config.name),
                tables=config.tables,
                sweeps=tuple(str(chain.folder) for chain in chains if (chain.folder / STUDY_FIGURE).is_file()),
            ),
            makers=makers(config, reproduction),
        )
    return 1 if failures else 0


def makers(config: ReproduceConfig, reproduction: Reproduction) -> dict[tuple[str, str], str]:
    """Return the command that makes what is still missing, by the tables and data sets for which there is data.

    At other scales than the paper's, nothing that this makes stands beside a published score.
    """
    if config.scale != "paper":
        return {}
    flags = [
        "--tables",
        *config.tables,
        "--seeds",
        *map(str, config.seeds),
        "--split",
        config.split,
        "--runs",
        config.runs,
    ]
    pretraining = (config.pretrain_data,) if isinstance(config.pretrain_data, str) else config.pretrain_data
    if pretraining:
        flags += ["--pretrain-data", *map(public_address, pretraining)]
    data = [public_address(one) for one in config.data]
    command = shlex.join(["anatomask", "reproduce", "--data", *data, *flags, "--name", config.name]) + plugin_flags()
    titles = [TARGETS[one.partition("=")[0]].title for one in config.data]
    return {(table, title): command for part in reproduction.parts for table in part.tables for title in titles}


def plan(config: ReproduceConfig) -> list[tuple[str, str]]:
    """Return the rows of the dry run."""
    reproduction = plan_reproduction(config)
    rows = [
        ("scale", f"{config.scale}, seeds {', '.join(map(str, config.seeds))}"),
        *(("data", public_address(one)) for one in config.data),
        *(("left out", text) for text in reproduction.missing),
    ]
    left: dict[str, Remaining] = {}
    for part in reproduction.parts:
        chain = build_chain(part.config)
        work = sweep.check(chain, part.space)
        left |= work.left
        done = f", {work.done} of them finished" if work.done else ""
        rows.append((part.config.name, f"{title(part)}: {work.trainings} trainings{done}"))
    verbs = Counter(one.verb for one in unique_stages(reproduction))
    load = workload_rows(list(left.values()), 1, Store(Path(config.runs)))
    return [
        *rows,
        ("different stages", ", ".join(f"{count} {verb}" for verb, count in verbs.items())),
        *load,
        ("report", str(Path(config.runs) / config.name)),
    ]


def title(part: Part) -> str:
    """Say what a part makes: its tables, and its rows."""
    rows = list(part.space.rows)
    shown = ", ".join(rows) if rows[-1] == SCRATCH else f"{len(rows)} variants"
    return f"Table{'s' * (len(part.tables) > 1)} {', '.join(part.tables)}: {shown}"


def unique_stages(reproduction: Reproduction) -> list[Stage]:
    """List the stages of all parts, each once."""
    chains = [(build_chain(part.config), part.space) for part in reproduction.parts]
    return unique(one for chain, space in chains for point in space.examples() for one in chain.stages(point).values())


def evaluated(chain: Chain) -> list[Path]:
    """List the scored networks of a part, each by its folder in the store."""
    return sorted(path.parent.resolve() for path in chain.folder.glob(f"[0-9]*/evaluate-*/{SUMMARY_FILE}"))
