"""Hold a run against recorded runs of its settings: is its PSNR where theirs were?

    python benchmarks/compare_runs.py checkpoints/demo

The recorded ones are the folders of benchmarks/reference/ with a config.json. Settings that may
differ, because a recorded run may have had another machine or seed, are in VARIABLE. Exit status: 0
inside the band or nothing to compare with, 1 outside of it.
"""

import argparse
import dataclasses
import json
import sys
from contextlib import suppress
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from config import Config, flat

REFERENCE = Path(__file__).resolve().parent / "reference"
MARGIN = 0.1  # dB: what another seed, precision or machine may change beyond the recorded runs
VARIABLE = (
    *("name", "seed", "workers", "device", "precision", "compile", "recompute"),
    *("log_every", "save_every", "keep_generators"),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="a run's folder, such as checkpoints/demo")
    run = parser.parse_args().run
    for name in ("config.json", "metrics.jsonl"):
        if not (run / name).is_file():
            parser.error(f"{run} has no {name}; name the folder of a run of train.py")
    settings = read_settings(run)
    for recorded in sorted(REFERENCE.glob("*/config.json")):
        if read_settings(recorded.parent) == settings:
            return compare(run, recorded.parent)
    print(f"No recorded run in {REFERENCE} has the settings of {run}.")
    return 0


def read_settings(folder: Path) -> dict:
    """All that a recorded run must have in common with another."""
    # A setting that an older run does not know has the default that it had then.
    defaults = flat(json.loads(json.dumps(dataclasses.asdict(Config()))))
    settings = defaults | flat(json.loads((folder / "config.json").read_text()))
    return {field: value for field, value in settings.items() if field not in VARIABLE}


def compare(run: Path, recorded: Path) -> int:
    """Print a sentence for each phase that has a validation."""
    others = [last_scores(path) for path in sorted(recorded.glob("*.jsonl"))]
    status = 0
    for phase, own in last_scores(run / "metrics.jsonl").items():
        band = [scores[phase] for scores in others if phase in scores]
        if len(band) < max(1, len(others)):  # some of them were recorded without this phase
            continue
        low, high = min(band) - MARGIN, max(band) + MARGIN
        inside = low <= own <= high
        status = status if inside else 1
        print(
            f"{phase} phase: {own:.2f} dB, {'inside' if inside else 'OUTSIDE'} the band of "
            f"{len(band)} recorded runs, {low:.2f} to {high:.2f} dB"
        )
    return status


def last_scores(metrics: Path) -> dict[str, float]:
    """Phase -> the PSNR of its last validation that has one, in dB."""
    rows = rows_of(metrics)
    return {row["phase"]: row["psnr"] for row in rows if row.get("psnr") is not None}


def rows_of(metrics: Path) -> list[dict]:
    """Of a metrics.jsonl, but for a line that is not whole, as a power cut leaves the last one."""
    rows = []
    for line in metrics.read_text().splitlines():
        with suppress(ValueError):
            rows.append(json.loads(line))
    return rows


if __name__ == "__main__":
    sys.exit(main())
