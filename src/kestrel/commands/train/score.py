# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""How good weights are."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kestrel.commands.train.options import DATA, Data, Json

if TYPE_CHECKING:
    from kestrel.train.benchmark_score import PointBenchmark


@dataclass(frozen=True)
class BenchmarkChoice:
    """The options that name a benchmark and what of it; None where not given.

    semantickitti, lidarseg: folders of the data sets, one at most. sequences: of SemanticKITTI.
    version, scenes: of nuScenes. scans: how many. device: where the network computes.
    """

    semantickitti: Path | None
    sequences: list[str] | None
    lidarseg: Path | None
    version: str | None
    scenes: list[str] | None
    scans: int | None
    device: str

    def refuse_unheeded(self) -> None:
        """Raise ConfigError for an option without the one that it belongs to."""
        from kestrel.errors import ConfigError, describe

        either = self.semantickitti or self.lidarseg
        for name, value, needs, found in (
            ("--sequence", self.sequences, "--semantickitti", self.semantickitti),
            ("--scene", self.scenes, "--lidarseg", self.lidarseg),
            ("--nuscenes-version", self.version, "--lidarseg", self.lidarseg),
            ("--scans", self.scans, "--semantickitti or --lidarseg", either),
            ("--device", self.device != "cpu", "--semantickitti or --lidarseg", either),
        ):
            if value and found is None:
                raise ConfigError(describe(name, expected=f"{needs} with it", found="none"))

    def read(self) -> PointBenchmark | None:
        """Return the benchmark of which a folder is given, None where none is.

        Raises:
            InputError: see kestrel.data.semantickitti.scan_files, kestrel.data.lidarseg.scan_files.
        """
        from kestrel.train.benchmark_score import FULL_VERSION, lidarseg_benchmark, semantickitti_benchmark

        if self.semantickitti is not None:
            return semantickitti_benchmark(self.semantickitti, self.sequences, self.scans)
        if self.lidarseg is not None:
            return lidarseg_benchmark(self.lidarseg, self.version or FULL_VERSION, self.scenes, self.scans)
        return None


def score(
    weights: Annotated[str, typer.Option(help="Name or path of the weights, or baseline.")] = "kestrel-seg",
    data: Data = DATA,
    split: Annotated[
        str | None, typer.Option(help="A name in kestrel/sim/drives.yaml, to score on its drives.")
    ] = None,
    bag: Annotated[
        Path | None,
        typer.Option(help="A bag with true boxes to score on; kestrel-seg and kestrel-fusion."),
    ] = None,
    semantickitti: Annotated[
        Path | None,
        typer.Option(
            help="SemanticKITTI to score on, the folder that holds `sequences`; kestrel-seg and converted "
            "SPVCNN, MinkUNet, SPVNAS."
        ),
    ] = None,
    sequence: Annotated[
        list[str] | None,
        typer.Option(help="With --semantickitti: a sequence; may be repeated.", show_default="08"),
    ] = None,
    lidarseg: Annotated[
        Path | None,
        typer.Option(help="nuScenes lidarseg to score on, the folder that holds `samples`."),
    ] = None,
    nuscenes_version: Annotated[
        str | None,
        typer.Option(help="With --lidarseg: folder of the tables.", show_default="v1.0-trainval"),
    ] = None,
    scene: Annotated[
        list[str] | None,
        typer.Option(help="With --lidarseg: a scene; may be repeated.", show_default="those of validation"),
    ] = None,
    scans: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="With --semantickitti, --lidarseg: so many sweeps, evenly spread.",
            show_default="all",
        ),
    ] = None,
    device: Annotated[
        str, typer.Option(help="With --semantickitti, --lidarseg: where to compute, cpu or cuda.")
    ] = "cpu",
    sensors_out: Annotated[
        bool,
        typer.Option(
            "--sensors-out", help="Also what kestrel-fusion loses where cameras or the LiDAR are out."
        ),
    ] = False,
    bfloat16: Annotated[
        int | None,
        typer.Option(
            min=1, help="What kestrel-fusion loses in bfloat16, on the first so many drives, instead."
        ),
    ] = None,
    int8: Annotated[
        Path | None,
        typer.Option(help="What kestrel-fusion loses with the int8 models of `kestrel calibrate`, instead."),
    ] = None,
    json: Json = False,
) -> None:
    """Judge weights: on the drives of a split, on a recording, or on a benchmark as it is distributed."""
    from kestrel.report import Report
    from kestrel.train.score import BASELINE, as_figures

    benchmark = BenchmarkChoice(semantickitti, sequence, lidarseg, nuscenes_version, scene, scans, device)
    found = _score(
        *(weights, data, split, bag, benchmark), sensors_out=sensors_out, bfloat16=bfloat16, int8=int8
    )
    Report(f"train score --weights {weights}", as_figures(found)).print(as_json=json)
    if split is not None and int8 is None and weights != BASELINE:
        _remember(weights, data / split, split, found)


def _remember(weights: str, folder: Path, split: str, figures: dict[str, float]) -> None:
    """Write printed scores into the manifest of the weights, or say on standard error why not."""
    from kestrel.train.score_memory import remember

    reason = remember(weights, folder, split, figures)
    if reason is not None:
        typer.echo(f"the manifest of {weights} was not changed: {reason}", err=True)


def _score(
    weights: str,
    data: Path,
    split: str | None,
    bag: Path | None,
    benchmark: BenchmarkChoice,
    *,
    sensors_out: bool,
    bfloat16: int | None,
    int8: Path | None,
) -> dict[str, float]:
    """Return the scores that were asked for; options of which only one would be heeded are refused."""
    from kestrel.errors import ConfigError, describe
    from kestrel.train.score import score as score_drives
    from kestrel.train.score import score_bag, score_int8, score_precision

    options = {
        "--bag": bag,
        "--semantickitti": benchmark.semantickitti,
        "--lidarseg": benchmark.lidarseg,
        "--sensors-out": sensors_out or None,
        "--bfloat16": bfloat16,
        "--int8": int8,
    }
    given = [name for name, value in options.items() if value is not None]
    if len(given) > 1:
        expected = f"at most one of {', '.join(options)}"
        raise ConfigError(describe("train score", expected=expected, found=" and ".join(given)))
    source = next((name for name in ("--bag", "--semantickitti", "--lidarseg") if name in given), None)
    if source is not None and split is not None:
        expected = f"{source} or --split, what to score on"
        raise ConfigError(describe("train score", expected=expected, found="both"))
    benchmark.refuse_unheeded()
    if bag is not None:
        return score_bag(weights, bag)
    chosen = benchmark.read()
    if chosen is not None:
        return _score_benchmark(weights, chosen, benchmark.device)
    if split is None:
        expected = "a split to score on, for one test, or --bag, --semantickitti or --lidarseg"
        raise ConfigError(describe("--split", expected=expected, found="none"))
    if bfloat16 is not None:
        return score_precision(weights, data / split, split, bfloat16)
    if int8 is not None:
        return score_int8(weights, int8, data / split, split)
    return score_drives(weights, data / split, split, sensors_out=sensors_out)


def _score_benchmark(weights: str, benchmark: PointBenchmark, device: str) -> dict[str, float]:
    """Return the scores on a benchmark; what they leave out is said on standard error."""
    from kestrel.train.benchmark_score import score_benchmark

    found = score_benchmark(weights, benchmark, device)
    if found.left_out:
        typer.echo(f"not comparable with the classes of {weights}: {', '.join(found.left_out)}", err=True)
    if found.unseen:
        typer.echo(f"no points, not in the mean: {', '.join(found.unseen)}", err=True)
    return found.figures
