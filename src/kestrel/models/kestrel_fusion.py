# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Kestrel-Fusion: boxes and map from any set of cameras and LiDAR, small enough for two CPU cores.

The plan is BEVFusion's (Liu et al., ICRA 2023): a camera branch lifted with predicted depth (LSS, Philion and
Fidler, ECCV 2020), a LiDAR branch, a convolutional fuser, a SECOND decoder, a centre head (Yin et al., CVPR
2021) and a map head. Sensors that are absent are left out of the pool; two indicator channels tell the
fuser which cells any camera sees and whether there is LiDAR. Calibration enters only as rays.

The camera branch sees a stream: its blocks mix in channels that they kept of the picture one hop earlier
(online TSM, Lin et al. 2019, section 4.2). What moves in a picture moves across the line of sight, so two
more channels tell the fuser in which direction from the vehicle each cell lies.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kestrel.models.mobilenetv2 import MobileNetV2, OnlineTSMMobileNetV2, Stage, State
from kestrel.nn.axis_sampler import AxisSampler
from kestrel.nn.conv import conv_bn_relu
from kestrel.nn.pillar_encoder import PillarEncoder
from kestrel.ops.bev_pool import LiftSplatIndex, lift_splat
from kestrel.ops.pillars import PillarGrid

TRUNK = (
    Stage(1, 16, 1, 1),
    Stage(6, 24, 2, 2),
    Stage(6, 32, 3, 2),
    Stage(6, 64, 4, 2),
    Stage(6, 96, 3, 1),
    Stage(6, 160, 3, 2),
)
LEVELS = (2, 4, 5)
"""Stages of TRUNK that go on: 1/8, 1/16 and 1/32 of the picture."""


def block(in_channels: int, out_channels: int, kernel_size: int = 3, stride: int = 1) -> nn.Sequential:
    """Convolution without bias, batch normalisation, ReLU."""
    return nn.Sequential(*conv_bn_relu(in_channels, out_channels, kernel_size, stride=stride))


@dataclass(frozen=True)
class FusionConfig:
    """Sizes of the network.

    extent: half side of the square around base_link, metres. pillar_size: metres; the heads work on cells
        of twice that. image_size: (H, W) the pictures are resized to. depth: (first, step, count) of the
        depth bins, metres. sweeps: earlier sweeps that it wants, sweep_s: seconds from one to the next.
        map_extent, map_resolution: the map's grid. hop_s: seconds from the picture whose features are mixed
        in to the current one, 0: none are.
    """

    num_classes: int = 10
    num_layers: int = 6
    extent: float = 51.2
    pillar_size: float = 0.4
    height_range: tuple[float, float] = (-3.0, 6.0)
    sweeps: int = 2
    sweep_s: float = 0.2
    image_size: tuple[int, int] = (128, 352)
    depth: tuple[float, float, int] = (1.5, 1.0, 48)
    trunk_width: float = 0.75
    camera_channels: int = 32
    pillar_channels: int = 32
    bev_channels: int = 64
    map_extent: float = 50.0
    map_resolution: float = 0.5
    hop_s: float = 0.5

    @property
    def pillars(self) -> int:
        """Pillars along one side."""
        return round(2 * self.extent / self.pillar_size)

    @property
    def cell_size(self) -> float:
        """Side of a cell of the heads, metres."""
        return 2 * self.pillar_size

    @property
    def feature_size(self) -> tuple[int, int]:
        """(h, w) of the camera features: an eighth of the picture."""
        return self.image_size[0] // 8, self.image_size[1] // 8


@dataclass(frozen=True)
class EarlierPictures:
    """What was seen before the M pictures of a batch, K hops back.

    images: (K, M, 3, H, W) float32, 0..1, the oldest first. known: (K, M) bool, which of them there are.
    """

    images: Tensor
    known: Tensor


@dataclass(frozen=True)
class FusionInput:
    """A batch of frames, flat over points and pictures.

    points: (P, 5) float32 [x, y, z, intensity, age in seconds]; point_batch: (P,) int64 frame of each.
    images: (M, 3, H, W) float32, 0..1; image_batch: (M,) int64 frame of each.
    rays: (M, h, w) float32, base_link displacement per metre of optical depth at each feature cell;
    origins: (M, 3) float32 camera positions. has_lidar: (B,) bool, one per frame.
    past: FusionOutput.state of the pictures one hop earlier, zeros where there was none; (): nowhere.
    vehicle: (B, 2) where the vehicle is from the middle of the grid, metres; None: there.
    """

    points: Tensor
    point_batch: Tensor
    images: Tensor
    image_batch: Tensor
    rays: Tensor
    origins: Tensor
    has_lidar: Tensor
    past: State = ()
    vehicle: Tensor | None = None


@dataclass(frozen=True)
class FusionOutput:
    """Raw answers of the network.

    heatmap: (B, classes, X, Y) logits. features: (B, C, X, Y) from which boxes are regressed.
    map_logits: (B, layers, Xm, Ym). depth: (M, D, h, w) logits, or None without pictures. state: what the
    camera branch kept, (M, c, h, w) for each block that mixes.
    """

    heatmap: Tensor
    features: Tensor
    map_logits: Tensor
    depth: Tensor | None
    state: State


class CameraEncoder(nn.Module):
    """Picture features at an eighth of the size, split into depth logits and context."""

    def __init__(self, config: FusionConfig) -> None:
        super().__init__()
        self.bins = config.depth[2]
        self.image_size = config.image_size
        trunk = OnlineTSMMobileNetV2 if config.hop_s else MobileNetV2
        self.trunk = trunk(0, width_multiplier=config.trunk_width, stages=TRUNK, last_channels=0)
        width = 64
        channels = self.trunk.stage_channels()
        self.lateral = nn.ModuleList(block(channels[level], width, 1) for level in LEVELS)
        self.smooth = block(width, width)
        self.depthnet = nn.Conv2d(width, self.bins + config.camera_channels, 1)

    def forward(self, images: Tensor, *past: Tensor) -> tuple[Tensor, ...]:
        """Return depth logits (M, D, h, w), context (M, C, h, w), and the state for the pictures that follow.

        Args:
            images: (M, 3, H, W), 0..1.
            past: state of the pictures before them; no_past(M), or nothing, where there were none.
        """
        stages, state = self._walk(images, past)
        levels = [conv(stages[level]) for conv, level in zip(self.lateral, LEVELS, strict=True)]
        merged = levels[-1]
        for level in reversed(levels[:-1]):
            merged = level + F.interpolate(merged, size=level.shape[-2:], mode="nearest")
        answer = self.depthnet(self.smooth(merged)).float()
        return answer[:, : self.bins], answer[:, self.bins :], *state

    def _walk(self, images: Tensor, past: State) -> tuple[list[Tensor], State]:
        pictures = (images - 0.45) / 0.25
        if isinstance(self.trunk, OnlineTSMMobileNetV2):
            return self.trunk.step_features(pictures, past or None)
        return self.trunk.forward_features(pictures), ()

    def no_past(self, count: int) -> State:
        """Return the state of so many pictures before which there was none; () if none is ever kept."""
        if isinstance(self.trunk, OnlineTSMMobileNetV2):
            return self.trunk.initial_state(count, *self.image_size)
        return ()

    @torch.no_grad()
    def remember(self, earlier: EarlierPictures) -> State:
        """Return the state after earlier pictures, zeros where there are none; without gradients."""
        state = self.no_past(earlier.known.shape[1])
        if not state:
            return state
        for images, known in zip(earlier.images, earlier.known, strict=True):
            rows = known.nonzero().flatten()
            if len(rows):
                shown = images[rows].contiguous(memory_format=torch.channels_last)
                _, kept = self._walk(shown, tuple(each[rows] for each in state))
                state = tuple(
                    torch.zeros_like(before).index_copy(0, rows, after.to(before))
                    for before, after in zip(state, kept, strict=True)
                )
        return state


class ViewTransform(nn.Module):
    """Lift, splat: depth-weighted context of all pictures summed into the cells that their rays pass."""

    def __init__(self, config: FusionConfig) -> None:
        super().__init__()
        self.config = config
        first, step, count = config.depth
        self.depths: Tensor
        self.register_buffer("depths", first + step * torch.arange(count), persistent=False)
        self.reduce = block(config.camera_channels, config.camera_channels)

    def cells(self, inputs: FusionInput) -> Tensor:
        """Return the flat (frame, x, y) cell of every frustum point (M, D, h, w), -1 where outside."""
        config = self.config
        side = config.pillars // 2
        places = inputs.origins[:, None, None, None] + (
            inputs.rays[:, None] * self.depths.view(1, -1, 1, 1, 1)
        )
        grid = torch.floor((places[..., :2] + config.extent) / config.cell_size).long()
        low, high = config.height_range
        inside = ((grid >= 0) & (grid < side)).all(-1) & (places[..., 2] > low) & (places[..., 2] < high)
        frame = inputs.image_batch.view(-1, 1, 1, 1)
        return torch.where(inside, (frame * side + grid[..., 0]) * side + grid[..., 1], -1)

    def index(self, inputs: FusionInput) -> LiftSplatIndex:
        """Sort the frustum points by cell; it stays valid for as long as the calibrations do."""
        side, frames = self.config.pillars // 2, len(inputs.has_lidar)
        return LiftSplatIndex.build(self.cells(inputs), frames, (side, side, 1))

    def forward(self, depth: Tensor, context: Tensor, index: LiftSplatIndex) -> tuple[Tensor, Tensor]:
        """Return pooled features (B, C, X, Y) and which cells any camera sees, (B, 1, X, Y)."""
        pooled = lift_splat(depth.softmax(1), context, index)
        side = self.config.pillars // 2
        seen = (index.row_start[1:] > index.row_start[:-1]).view(index.batch, 1, side, side)
        return pooled, seen.to(pooled.dtype)


class KestrelFusion(nn.Module):
    """The whole network; see the module's docstring."""

    def __init__(self, config: FusionConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or FusionConfig()
        pillar, bev = config.pillar_channels, config.bev_channels
        grid = PillarGrid(config.extent, config.pillar_size, config.height_range)
        self.pillars = PillarEncoder(grid, pillar)
        self.lidar_stem = block(pillar, pillar)
        self.lidar_down = nn.Sequential(block(pillar, bev, stride=2), block(bev, bev))
        self.camera = CameraEncoder(config)
        self.view = ViewTransform(config)
        self.bearing: Tensor
        self.register_buffer("bearing", _bearing(config, torch.zeros(1, 2)), persistent=False)
        self.fuser = block(bev + config.camera_channels + 4, bev)
        self.decoder = nn.ModuleList(
            [
                nn.Sequential(*(block(bev, bev) for _ in range(3))),
                nn.Sequential(
                    block(bev, 2 * bev, stride=2),
                    *(block(2 * bev, 2 * bev) for _ in range(4)),
                ),
            ]
        )
        self.up = nn.Sequential(
            nn.ConvTranspose2d(2 * bev, bev, 2, stride=2, bias=False), nn.BatchNorm2d(bev), nn.ReLU()
        )
        self.shared = block(2 * bev, bev)
        self.heatmap = nn.Sequential(block(bev, bev), nn.Conv2d(bev, config.num_classes, 1))
        nn.init.constant_(self.heatmap[1].bias, -4.0)  # type: ignore[arg-type]
        self.regression = BoxRegression(bev, config.num_classes)
        self.map_head = MapHead(config)

    def forward(self, inputs: FusionInput) -> FusionOutput:
        """Run the network on a batch of frames; every frame may have other sensors."""
        index = self.view.index(inputs) if len(inputs.images) else None
        bearing = None if inputs.vehicle is None else _bearing(self.config, inputs.vehicle)
        pillars = partial(self.pillars, vehicle=inputs.vehicle)
        return self.run(inputs, index, pillars, self.camera, self.view, partial(self.bird, bearing=bearing))

    def run(
        self,
        inputs: FusionInput,
        index: LiftSplatIndex | None,
        pillars: Callable[[Tensor, Tensor, int], Tensor],
        camera: Callable[..., tuple[Tensor, ...]],
        view: Callable[[Tensor, Tensor, LiftSplatIndex], tuple[Tensor, Tensor]],
        bird: Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, ...]],
    ) -> FusionOutput:
        """Do what forward does with other implementations of the parts.

        Args:
            inputs: a batch of frames.
            index: ``view.index(inputs)``; None without pictures.
            pillars: stands for the module of that name.
            camera: stands for the module of that name.
            view: stands for the module of that name.
            bird: stands for the method of that name.
        """
        frames, side = len(inputs.has_lidar), self.config.pillars // 2
        canvas = pillars(inputs.points, inputs.point_batch, frames)
        depth: Tensor | None = None
        state: State = ()
        if index is None:
            nothing = canvas.new_zeros(frames, self.config.camera_channels + 1, side, side)
            pooled, seen = nothing[:, :-1], nothing[:, -1:]
        else:
            images = inputs.images.contiguous(memory_format=torch.channels_last)
            depth, context, *kept = camera(images, *(inputs.past or self.camera.no_past(len(images))))
            state = tuple(kept)
            pooled, seen = view(depth, context, index)
        there = inputs.has_lidar.view(-1, 1, 1, 1).to(canvas.dtype)
        heatmap, features, map_logits = bird(canvas, pooled, seen, there)
        return FusionOutput(heatmap.float(), features, map_logits.float(), depth, state)

    def bird(
        self, canvas: Tensor, pooled: Tensor, seen: Tensor, there: Tensor, bearing: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Do all that happens in bird's-eye view.

        Args:
            canvas: (B, C, 2X, 2Y) of the pillars.
            pooled: features that the view transform returns.
            seen: cells that it says a camera sees.
            there: (B, 1, 1, 1) whether a frame has LiDAR, 0 or 1.
            bearing: (B, 2, X, Y) unit vectors from the vehicle to each cell; None: it is in the middle.

        Returns:
            heatmap, features and map_logits of FusionOutput.
        """
        fine = self.lidar_stem(canvas.contiguous(memory_format=torch.channels_last))
        # Engines may compute in a narrower type than that of the inputs, and stay in it.
        there, seen = there.to(fine), seen.to(fine)
        fine = fine * there
        lidar = self.lidar_down(fine) * there
        # A frame without pictures looks like cells that no camera sees, whatever else is in its batch.
        camera = self.view.reduce(pooled)
        # Of single channels torch cannot tell the layout; it would then join all of them element by element.
        directions = (self.bearing if bearing is None else bearing).to(fine).expand(len(seen), -1, -1, -1)
        known = torch.cat((seen, there.expand_as(seen), directions), 1)
        known = known.contiguous(memory_format=torch.channels_last)
        bev = self.fuser(torch.cat((lidar, camera.to(lidar), known), 1))
        near = self.decoder[0](bev)
        far = self.up(self.decoder[1](near))
        features = self.shared(torch.cat((near, far), 1))
        return self.heatmap(features), features, self.map_head(features, fine)


def _bearing(config: FusionConfig, vehicle: Tensor) -> Tensor:
    """Return the unit vectors from vehicles at (B, 2) to each cell, (B, 2, X, Y)."""
    side = config.pillars // 2
    middle = (torch.arange(side) + 0.5) * config.cell_size - config.extent
    cells = torch.stack(torch.meshgrid(middle, middle, indexing="ij"))
    return F.normalize(cells - vehicle[:, :, None, None], dim=1)


class BirdView(nn.Module):
    """What KestrelFusion.bird does, as a module of its own with the same parameters."""

    def __init__(self, network: KestrelFusion) -> None:
        super().__init__()
        self.network = network

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Arguments and results are those of KestrelFusion.bird."""
        return self.network.bird(*inputs)


class BoxRegression(nn.Module):
    """Box of the object at a cell, computed only at the cells asked for.

    The 3x3 neighbourhoods of the cells go through two linear layers, which is a convolution evaluated at
    a few places; with some hundred candidates it costs nothing. The class picks one of the answers.

    Front and rear of many objects look alike to a LiDAR. Where a yaw may as well be its opposite, the safest
    sine and cosine are the mean of both, which is no direction at all. So the axis, which is the yaw without
    its sense, is answered as well: by sine and cosine of twice the yaw.

    The velocity is one for all classes: how points move from sweep to sweep does not depend on the class, and
    of most classes few objects move.
    """

    OUTPUTS = 12
    """Offset x y in cells, z, log length width height, sine and cosine of the yaw, axis, velocity x y."""

    VELOCITY_UNIT = 5.0
    """Metres per second of what the last layer calls 1, so that all answers are of one size."""

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.hidden = nn.Linear(9 * channels, 128)
        self.answer = nn.Linear(128, num_classes * (self.OUTPUTS - 2))
        self.velocity = nn.Linear(128, 2)

    def forward(self, features: Tensor, frame: Tensor, cell: Tensor, label: Tensor) -> Tensor:
        """Return (K, OUTPUTS) for K objects of frame (K,), cell (K, 2) and class (K,)."""
        hidden = self._hidden(features, frame, cell)
        answers = self.answer(hidden).view(-1, self.num_classes, self.OUTPUTS - 2)
        chosen = answers[torch.arange(len(label), device=cell.device), label]
        return torch.cat((chosen, self._velocity(hidden)), 1)

    def velocities(self, features: Tensor, frame: Tensor, cell: Tensor) -> Tensor:
        """Return (K, 2) the velocities in m/s of what is at frame (K,), cell (K, 2)."""
        return self._velocity(self._hidden(features, frame, cell))

    def _velocity(self, hidden: Tensor) -> Tensor:
        answer: Tensor = self.VELOCITY_UNIT * self.velocity(hidden)
        return answer

    def _hidden(self, features: Tensor, frame: Tensor, cell: Tensor) -> Tensor:
        step = torch.arange(-1, 2, device=cell.device)
        place = cell[:, None, None] + torch.stack(torch.meshgrid(step, step, indexing="ij"), -1)
        size = torch.tensor(features.shape[2:], device=cell.device)
        outside = ((place < 0) | (place >= size)).any(-1, keepdim=True)
        rows, columns = torch.minimum(place.clamp(min=0), size - 1).unbind(-1)
        # Only what is asked for is copied; padding would copy everything.
        found = features.permute(0, 2, 3, 1)[frame[:, None, None], rows, columns]
        patch = found.float().masked_fill(outside, 0).flatten(1)
        return torch.relu(self.hidden(patch))


class MapHead(nn.Module):
    """Map layers on their own grid, from the decoder's features and the fine LiDAR canvas."""

    def __init__(self, config: FusionConfig) -> None:
        super().__init__()
        cells = round(2 * config.map_extent / config.map_resolution)
        middle = (torch.arange(cells) + 0.5) * config.map_resolution - config.map_extent
        self.sampler = AxisSampler(middle, config.extent, (config.pillars // 2, config.pillars))
        self.mix = block(config.bev_channels + config.pillar_channels, 48)
        self.answer = nn.Conv2d(48, config.num_layers, 1)

    def forward(self, features: Tensor, fine: Tensor) -> Tensor:
        """Return logits (B, layers, Xm, Ym)."""
        answer: Tensor = self.answer(self.mix(self.sampler(features, fine)))
        return answer
