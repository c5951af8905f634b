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
) -> None:
    """Turn a released checkpoint (BEVFusion, TSM, SPVCNN, AnyCost, GAN Compression) into safetensors.

    The network is recognised by its keys. A checkpoint with missing, unexpected or ill-shaped keys is
    refused with the list of them. Nothing in the file is executed.
    """
    import hashlib

    from kestrel.errors import ConfigError, describe
    from kestrel.models.checkpoints import convert, read_checkpoint
    from kestrel.weights import Manifest, save

    if out.suffix != ".safetensors":
        raise ConfigError(describe("output file", expected="the ending .safetensors", found=out.name))
    state = read_checkpoint(source)
    conversion = convert(state, source.name)
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
                **(conversion.notes or {}),
            },
            licence="as the source",
        ),
        exact=True,
    )
    print(f"{out}: {conversion.network} {conversion.config}, {len(conversion.state)} tensors")
    print(f"sha256 {manifest.sha256}")
