# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Network weights: a safetensors file and, beside it, a JSON manifest that says what they are.

``NAME.safetensors`` holds the tensors (matrices and kernels as float16, vectors as float32), ``NAME.json``
the :class:`Manifest`. Weights are only used when their hash is the one that the manifest names.

No system replaces two files at once. While weights take the place of earlier ones the manifest file holds
both manifests, and that one counts whose hash the tensors have.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from kestrel.errors import InputError, ModelError, describe
from kestrel.files import write_whole

FOLDER = Path(__file__).parent
"""Where the weights that ship with the package are."""

LICENCE = "Apache-2.0"

PREVIOUS: Final = "previous"
"""Entry of a manifest file for the manifest of the weights that are being replaced."""


@dataclass(frozen=True)
class Manifest:
    """What a set of weights is.

    network: class of kestrel.models that they belong to.
    config: what builds it, of a converted network by way of kestrel.models.checkpoints.load_network.
    classes: names in the order of the outputs. rigs: sensor rigs they were trained for.
    training: data, seeds, steps and command. metrics: name -> value on unseen drives.
    """

    name: str
    network: str
    config: dict[str, Any]
    classes: tuple[str, ...]
    sha256: str = ""
    rigs: tuple[str, ...] = ()
    training: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    licence: str = LICENCE

    @classmethod
    def from_json(cls, text: str, path: Path) -> Manifest:
        """Parse a manifest; raise ModelError naming ``path`` when it is malformed."""
        return _manifests(text, path)[0]

    @classmethod
    def _from_values(cls, values: Any) -> Manifest:
        known = {entry.name for entry in fields(cls)}
        if not isinstance(values, dict):
            raise TypeError(f"a {type(values).__name__}")
        if set(values) - known:
            raise ValueError(f"unknown entries {sorted(set(values) - known)}")
        manifest = cls(**values | {name: tuple(values.get(name, ())) for name in ("classes", "rigs")})
        manifest._check_types()
        return manifest

    def _check_types(self) -> None:
        texts = (self.name, self.network, self.sha256, self.licence, *self.classes, *self.rigs)
        if not all(isinstance(item, str) for item in texts):
            raise TypeError("name, network, sha256, licence, classes and rigs are texts")
        if not all(isinstance(item, dict) for item in (self.config, self.training, self.metrics)):
            raise TypeError("config, training and metrics are objects")

    def to_json(self, previous: Manifest | None = None) -> str:
        """Return the manifest as indented JSON with a final newline, with that of weights it replaces."""
        replaced = {} if previous is None else {PREVIOUS: asdict(previous)}
        return json.dumps(asdict(self) | replaced, indent=2) + "\n"


def _manifests(text: str, path: Path) -> list[Manifest]:
    """Return the manifest in a file, and after it that of the weights which are being replaced, if any."""
    try:
        values = json.loads(text)
        previous = [values.pop(PREVIOUS)] if isinstance(values, dict) and PREVIOUS in values else []
        return [Manifest._from_values(each) for each in (values, *previous)]
    except (TypeError, ValueError, KeyError, RecursionError) as error:
        raise ModelError(describe(str(path), expected="a weights manifest", found=error)) from error


def resolve(name_or_path: str | Path) -> Path:
    """Return the .safetensors file of shipped weights (by name) or of a path.

    Raises:
        ModelError: there is no such file.
    """
    path = Path(name_or_path)
    if path.suffix != ".safetensors":
        shipped = FOLDER / f"{name_or_path}.safetensors"
        path = shipped if shipped.exists() or path.parent == Path() else Path(f"{path}.safetensors")
    if not path.exists():
        known = sorted(entry.stem for entry in FOLDER.glob("*.safetensors"))
        raise ModelError(
            describe(f"weights {name_or_path}", expected=f"a file or one of {known}", found=f"no file {path}")
        )
    return path


def read_manifest(name_or_path: str | Path) -> Manifest:
    """Return what weights are, without reading them unless they are just being replaced.

    Raises:
        ModelError: a file is missing, or the manifest is malformed.
    """
    return _manifest_of(resolve(name_or_path))


def _manifest_of(path: Path) -> Manifest:
    """Return the manifest of a .safetensors file, which is read if there are two of them."""
    manifest, *previous = _read_manifests(path)
    if not previous:
        return manifest
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return next((each for each in (manifest, *previous) if each.sha256 == digest), manifest)


def _read_manifests(path: Path) -> list[Manifest]:
    """Return what _manifests does of the file beside weights; raise ModelError if it is missing or none."""
    manifest_path = path.with_suffix(".json")
    if not manifest_path.exists():
        raise ModelError(describe(str(path), expected=f"a manifest {manifest_path.name}", found="none"))
    try:
        text = manifest_path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ModelError(describe(str(manifest_path), expected="a weights manifest", found=error)) from error
    return _manifests(text, manifest_path)


def load(name_or_path: str | Path) -> tuple[dict[str, Tensor], Manifest]:
    """Read weights and their manifest; floating-point tensors come back as float32.

    Args:
        name_or_path: name of shipped weights ("kestrel-seg") or path of a .safetensors file.

    Raises:
        ModelError: a file is missing or malformed, or the hash is not the one of the manifest.
    """
    path = resolve(name_or_path)
    manifests = _read_manifests(path)
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    manifest = next((each for each in manifests if each.sha256 == digest), None)
    if manifest is None:
        raise ModelError(describe(f"{path} sha256", expected=manifests[0].sha256, found=digest))
    try:
        tensors = load_tensors(content)
    except SafetensorError as error:
        raise ModelError(describe(str(path), expected="a safetensors file", found=error)) from error
    return {
        key: tensor.float() if tensor.is_floating_point() else tensor for key, tensor in tensors.items()
    }, manifest


def save(path: Path, state: Mapping[str, Tensor], manifest: Manifest, *, exact: bool = False) -> Manifest:
    """Write ``path`` (.safetensors) and its manifest; return the manifest with the hash filled in.

    Kernels and matrices are stored as float16; vectors stay float32, since running variances and biases
    need the range and cost nothing; with ``exact`` everything stays as it is. Earlier weights of the same
    name are replaced: wherever this is interrupted, even killed, either they or the new ones can be loaded.
    What may remain of it are a file ``.part``, the earlier manifest within the new one, and, where no weights
    were before, tensors without a manifest, which nothing loads; the next call replaces them. What is left
    when the power fails depends on the file system.

    Raises:
        InputError: they cannot be written, or a file that is no manifest has the manifest's name.
    """
    manifest_path = path.with_suffix(".json")
    _check_replaceable(manifest_path)
    stored = {key: _storage(tensor.detach(), exact=exact) for key, tensor in state.items()}
    content = save_tensors(stored)
    manifest = Manifest(**{**asdict(manifest), "sha256": hashlib.sha256(content).hexdigest()})
    if path.is_file() and manifest_path.exists():
        write_whole(manifest_path, manifest.to_json(_manifest_of(path)).encode())
    for target, data in ((path, content), (manifest_path, manifest.to_json().encode())):
        write_whole(target, data)
    return manifest


def average(sources: Sequence[str | Path], out: Path) -> Manifest:
    """Write the mean of weights of one network that come of each other, as a weights file of its own.

    Between weights that were trained on from each other the mean keeps more of what the earlier ones could on
    other data (Wortsman et al. 2022, "Robust fine-tuning of zero-shot models").

    Args:
        sources: names or paths; the manifest is that of the last one, without metrics, and names all.
        out: the .safetensors file.

    Raises:
        ModelError: they are not of the same network, arguments and classes, or cannot be read.
        InputError: nothing to average, or ``out`` cannot be written.
    """
    if not sources:
        raise InputError(describe("weights to average", expected="at least one", found="none"))
    states, manifests = zip(*(load(source) for source in sources), strict=True)
    last: Manifest = manifests[-1]
    for source, other in zip(sources, manifests, strict=True):
        if (other.network, other.config, other.classes) != (last.network, last.config, last.classes):
            expected = f"a {last.network} with the arguments and classes of {sources[-1]}"
            raise ModelError(
                describe(f"weights to average: {source}", expected=expected, found=other.network)
            )
    mean = {
        key: torch.stack([state[key] for state in states]).mean(0) if tensor.is_floating_point() else tensor
        for key, tensor in states[-1].items()
    }
    averaged = [{"name": manifest.name, "sha256": manifest.sha256} for manifest in manifests]
    training = {**last.training, "averaged": averaged}
    return save(out, mean, replace(last, name=out.stem, training=training, metrics={}))


def _check_replaceable(path: Path) -> None:
    """Raise InputError if there is a file at ``path`` that is no manifest: it is somebody else's."""
    if not path.exists():
        return
    try:
        Manifest.from_json(path.read_text(encoding="utf-8"), path)
    except (OSError, ValueError, ModelError) as error:
        expected = "nothing or a weights manifest to replace (choose another name for the weights)"
        raise InputError(describe(str(path), expected=expected, found="something else")) from error


def _storage(tensor: Tensor, *, exact: bool) -> Tensor:
    tensor = tensor.cpu().contiguous()
    rounds = tensor.is_floating_point() and tensor.ndim >= 2 and not exact
    return tensor.half() if rounds else tensor.clone()


def assign(network: nn.Module, state: Mapping[str, Tensor], source: str | Path) -> None:
    """Copy ``state`` into ``network``; every key must be there with its shape, and nothing else.

    Raises:
        ModelError: naming ``source`` and the first keys or shapes that do not fit.
    """
    want = network.state_dict()
    missing, unexpected = sorted(want.keys() - state.keys()), sorted(state.keys() - want.keys())
    if missing or unexpected:
        found = f"{len(missing)} missing {missing[:3]}, {len(unexpected)} unexpected {unexpected[:3]}"
        raise ModelError(
            describe(f"{source}", expected=f"the {len(want)} keys of {type(network).__name__}", found=found)
        )
    for key, tensor in want.items():
        if state[key].shape != tensor.shape:
            raise ModelError(
                describe(f"{source} {key}", expected=tuple(tensor.shape), found=tuple(state[key].shape))
            )
        if state[key].is_floating_point() and not torch.isfinite(state[key]).all():
            raise ModelError(describe(f"{source} {key}", expected="finite values", found="NaN or Inf"))
    network.load_state_dict(dict(state))
