# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""`kestrel search-spvnas`: find the best sub-network below a latency measured on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def search_spvnas(
    weights: Annotated[Path, typer.Argument(help="Super-network that convert-checkpoint has written.")],
    out: Annotated[Path, typer.Option(help="Folder of the search; an interrupted one there goes on.")],
    latency_limit_ms: Annotated[float, typer.Option(min=0.001, help="Slower networks are not judged.")],
    data: Annotated[Path, typer.Option(help="Drives of `kestrel train prepare` to judge on.")] = Path(
        "runs/data/validation"
    ),
    frames: Annotated[int, typer.Option(min=1, help="Sweeps of them, spread evenly.")] = 24,
    population: Annotated[int, typer.Option(min=1, help="Candidates of a generation.")] = 20,
    generations: Annotated[int, typer.Option(min=0, help="After the first, random one.")] = 10,
    parents: Annotated[int, typer.Option(min=1, help="Best candidates that have offspring.")] = 5,
    seed: Annotated[int, typer.Option(help="Of the candidates that are drawn.")] = 0,
) -> None:
    """Search the super-network by evolution; writes net.config, its weights and a table of candidates."""
    from kestrel.train.evolution import SearchPlan
    from kestrel.train.spvnas_search import cached_frames, load_supernet, run

    plan = SearchPlan(latency_limit_ms, population, generations, parents, seed=seed)
    network, manifest = load_supernet(weights)
    try:
        winner = run(network, manifest, plan, out, cached_frames(data, frames, network.vres))
    except KeyboardInterrupt:
        typer.echo(f"stopped; the same command goes on from {out}", err=True)
        raise typer.Exit(130) from None
    print(f"{out / 'net.config'}: accuracy {winner.accuracy:.4f}, {winner.latency_ms:.1f} ms")
