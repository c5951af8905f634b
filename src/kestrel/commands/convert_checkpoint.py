# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""`kestrel convert-checkpoint`: turn a released checkpoint into weights that Kestrel loads."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def convert_checkpoint(
    source: Annotated[Path, typer.Argument(help="Checkpoint (.pth, .pt, .pth.tar) of the reference code.")],
    out: Annotated[Path, typer.Argument(help="File to write (.safetensors); a manifest appears beside it.")],
    net_config: Annotated[
        Path | None, typer.Option(help="net.config beside the `init` of an SPVNAS release.")
    ] = None,
    network: Annotated[
        str | None,
        typer.Option(
            help="SPVCNN or MinkUNet of SPVNAS, whose keys are alike, where the name does not tell."
        ),
    ] = None,
    n_segment: Annotated[
        int | None,
        typer.Option(min=1, help="Frames per clip of a TSM whose name does not tell (segment16); else 8."),
    ] = None,
) -> None:
    """Turn a released checkpoint into safetensors.

    BEVFusion, TSM, AnyCost, GAN Compression, SPVCNN, MinkUNet, SPVNAS, PVCNN; of mmdetection3d the sparse
    ones and BEVFusion.

    The network is recognised by its keys. A checkpoint with missing, unexpected or ill-shaped keys is
    refused with the list of them. Nothing in the file is executed.
    """
    import hashlib
    import json
    import os

    from kestrel.errors import ConfigError, ModelError, describe
    from kestrel.models.checkpoints import convert, read_checkpoint
    from kestrel.weights import Manifest, save

    if out.suffix != ".safetensors":
        raise ConfigError(describe("output file", expected="the ending .safetensors", found=out.name))
    state = read_checkpoint(source)
    released = None
    if net_config is not None:
        try:
            released = json.loads(net_config.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ModelError(describe(str(net_config), expected="a JSON file", found=error)) from error
        if not isinstance(released, dict):
            found = type(released).__name__
            raise ModelError(describe(str(net_config), expected="a JSON object", found=found))
    # The folder may tell the network, also where it is not part of the path as it was typed.
    where = os.path.abspath(source)
    conversion = convert(state, where, net_config=released, network=network, n_segment=n_segment)
    manifest = save(
        out,
        conversion.state,
        Manifest(
            name=out.stem,
            network=conversion.network,
            config=conversion.config,
            classes=conversion.classes,
            training={
                "converted_from": source.name,
                "source_sha256": hashlib.sha256(source.read_bytes()).hexdigest(),
                **conversion.notes,
            },
            licence="as the source",
        ),
        exact=True,
    )
    print(f"{out}: {conversion.network} {conversion.config}, {len(conversion.state)} tensors")
    for name, note in conversion.notes.items():
        print(f"{name}: {note}")
    print(f"sha256 {manifest.sha256}")
