"""Encoders by name: inflated 2D backbones, published 3D networks, and encoders that were exported."""

from __future__ import annotations

import logging
from pathlib import Path

from torch import nn

from medi3d.errors import ConfigError, WeightsError
from medi3d.inflation import DepthPadding, DepthPlan
from medi3d.inflation.parameters import compare_parameters, name_modules
from medi3d.inflation.plan import resolve_plan
from medi3d.models.backbone import Backbone, SliceSize
from medi3d.models.encoder import Encoder, inflate_backbone
from medi3d.models.inits import DEFAULT_INIT, Init, parse_init
from medi3d.models.matching import Rules, match_tensors
from medi3d.models.recipe import EncoderRecipe
from medi3d.models.shared import WEIGHTS_FILE, find_folder, is_hub_id, is_shared, read_card, read_recipe, set_scaling
from medi3d.models.stem import InputScale
from medi3d.models.volumetric.encoder import create_volumetric_encoder
from medi3d.models.volumetric.networks import NETWORKS_3D
from medi3d.models.weights import find_imagenet_weights, read_weights_file
from medi3d.models.zoo import create_backbone, create_network
from medi3d.types import PathLike

logger = logging.getLogger(__name__)


def create_encoder(
    name: str,
    *,
    in_channels: int = 1,
    init: str | None = None,
    weights: PathLike | None = None,
    input_scale: InputScale | tuple[str, ...] = "unit",
    stages: int | None = None,
    stem_stride: int | None = None,
    image_size: SliceSize | None = None,
    depth_padding: DepthPadding = "replicate",
    plan: DepthPlan | str = "symmetric",
    drop_path: float = 0.0,
    allow_partial: bool = False,
) -> Encoder:
    """Create a 3D encoder: from a 2D backbone by inflation, or from a published 3D network.

    Args:
        name: of the backbone, as ``medi3d models`` lists it: ``"tf_efficientnet_lite0"`` of timm's,
            ``"torchvision/resnet18"`` of torchvision's, ``"astra"`` or ``"medicalnet:resnet50"`` of the 3D ones, which
            may name the file of their weights, ``"medicalnet:resnet50@resnet_50.pth"``; or an exported encoder, a
            folder or ``user/name`` on the Hugging Face hub, whose card says all the rest.
        in_channels: channels of the volumes. Three are taken as RGB; of any other number each gets an equal share of
            the grey response, so that equal channels answer as the 2D network on the RGB copy.
        init: ``imagenet-center``, ``imagenet-inflated`` (I3D's mean), ``imagenet-overshoot``, ``random``, the path
            of a medi3d checkpoint whose encoder is taken, an exported encoder, or a 3D network's name as above.
            ``None`` takes what goes with the name: ``imagenet-center``, or the 3D network's own weights.
        weights: a file with the backbone's 2D weights; else an installed weights package, else the library's hub or
            its cache.
        input_scale: ``"unit"`` for intensities in [0, 1] (CT windows), ``"zscore"`` for zero mean, unit deviation
            (MR); one for all channels or one each.
        stages: number of stages, finest first; ``None`` takes all.
        stem_stride: 1 or 2 overrides the first convolution's stride (1 doubles every feature map's resolution).
        image_size: (H, W) of the volumes, for backbones that are made for one size (many ViTs); ``None`` takes the size
            that their weights were trained at.
        depth_padding: how inflated convolutions see past the first and last slice; ``"zeros"`` is not exact.
        plan: what each stage of an inflated network does along depth: ``"symmetric"``, ``"i3d"``, ``"slicewise"``, or a
            :class:`medi3d.inflation.DepthPlan`, such as ``anisotropic(spacing_mm)`` makes.
        drop_path: probability of dropping the last block of a volume in training, which grows from 0 at the first
            (stochastic depth, Huang et al. 2016, arXiv:1603.09382).
        allow_partial: take what fits of a 3D checkpoint that does not fit as a whole; ``report`` says what that is.

    Raises:
        ConfigError: unknown backbone or init, a stem whose stride cannot be changed, a size that the backbone cannot
            take, or ``drop_path`` of a backbone without.
        InflationError: the backbone has no exact 3D form.
        WeightsError: weights that cannot be had or do not fit.

    Examples:
        >>> import torch
        >>> encoder = create_encoder("tf_efficientnet_lite0", init="random", stages=2)
        >>> [tuple(f.shape) for f in encoder(torch.zeros(1, 1, 16, 32, 32))]
        [(1, 16, 8, 16, 16), (1, 24, 4, 8, 8)]
    """
    recipe = EncoderRecipe(
        name.partition("@")[0],
        (input_scale,) * in_channels if isinstance(input_scale, str) else tuple(input_scale),
        stages=stages,
        stem_stride=stem_stride,
        image_size=image_size,
        depth_padding=depth_padding,
        plan=resolve_plan(plan),
        drop_path=drop_path,
    )
    if is_shared(name):
        if recipe != EncoderRecipe(recipe.name) or init is not None or weights is not None:
            raise ConfigError(
                f"{name} is an exported encoder, and its card says all the rest: give no other option; to start "
                "another encoder or a run from it, give it as init"
            )
        return _create_shared(name)
    network, _, file = name.partition("@")
    is_volumetric = network in NETWORKS_3D
    if file and (init is not None or not is_volumetric):
        raise ConfigError(f"{name!r}: a file after @ goes with a 3D network's name alone; give --init instead")
    start = parse_init(init if init is not None else name if is_volumetric else DEFAULT_INIT)
    encoder = _build(recipe, start, weights, allow_partial)
    if start.file is not None and start.network is None:
        _load_init(encoder, recipe, start.file, allow_partial=allow_partial)
    if encoder.report is not None:
        logger.info("%s", encoder.report)
    encoder.recipe = recipe
    return encoder


def _load_init(encoder: Encoder, recipe: EncoderRecipe, file: Path, *, allow_partial: bool) -> None:
    """Load a checkpoint's encoder, or an exported one, of which fewer stages may be used than it has."""
    if not file.is_dir() and not is_hub_id(str(file)):
        return load_encoder_state(encoder, file, allow_partial=allow_partial)
    folder = find_folder(str(file))
    stages = read_recipe(read_card(folder), folder).stages
    is_deeper = recipe.stages is not None and (stages is None or stages > recipe.stages)
    rules = Rules(drops=((".*", "of a stage after the last one that is used"),)) if is_deeper else None
    return load_encoder_state(encoder, folder / WEIGHTS_FILE, allow_partial=allow_partial, rules=rules)


def _create_shared(name: str) -> Encoder:
    folder = find_folder(name)
    card = read_card(folder)
    recipe = read_recipe(card, folder)
    encoder = _build(recipe, Init(), None, allow_partial=False)
    load_encoder_state(encoder, folder / WEIGHTS_FILE)
    set_scaling(encoder, card, folder)
    encoder.recipe = recipe
    return encoder


def _build(recipe: EncoderRecipe, start: Init, weights: PathLike | None, allow_partial: bool) -> Encoder:
    """Create the encoder, with weights unless they come from a checkpoint."""
    name = recipe.name
    if name in NETWORKS_3D:
        if start.profile is not None or weights is not None or start.network not in (None, name):
            raise ConfigError(
                f"{name} is a network in 3D, which 2D weights and those of other networks do not fit: init takes "
                f"{name}, {name}@FILE, random, or a checkpoint"
            )
        return create_volumetric_encoder(
            recipe, pretrained=start.network is not None, file=start.file, allow_partial=allow_partial
        )
    if start.network is not None:
        raise ConfigError(f"init {start.network} is of that 3D network: make it the backbone too, in place of {name}")
    pretrained = start.profile is not None
    state = find_imagenet_weights(name, Path(weights) if weights is not None else None) if pretrained else None
    backbone: Backbone = create_backbone(
        name,
        stages=recipe.stages,
        image_size=recipe.image_size,
        state=state,
        pretrained=pretrained and state is None,
        drop_path=recipe.drop_path,
    )
    encoder = inflate_backbone(
        backbone,
        name,
        scales=recipe.input_scale,
        profile=start.profile,
        stem_stride=recipe.stem_stride,
        depth_padding=recipe.depth_padding,
        plan=recipe.plan,
    )
    if pretrained:
        _log_dropped(name, encoder.body)
    return encoder


def _log_dropped(name: str, features: nn.Module) -> None:
    """Say which pretrained tensors the encoder has no use for, as a classifier's head."""
    if logger.isEnabledFor(logging.INFO):  # the whole network is made to know its tensors
        fates = compare_parameters(create_network(name).state_dict(), features.state_dict())
        dropped = name_modules(fates, "dropped")
        if dropped:
            logger.info("%s: the encoder has no use for the tensors of %s", name, dropped)


def load_encoder_state(
    encoder: Encoder, path: Path, *, allow_partial: bool = False, rules: Rules | None = None
) -> None:
    """Load the encoder's part of a medi3d checkpoint, all of it unless a partial load is allowed or rules drop some.

    Raises:
        WeightsError: the file holds no encoder, or one of another architecture.
    """
    tensors = read_weights_file(path)
    state = {key.removeprefix("encoder."): tensor for key, tensor in tensors.items() if key.startswith("encoder.")}
    if not state:
        raise WeightsError(f"{path}: holds no tensors named encoder.*; --init takes a checkpoint of a medi3d run")
    found, encoder.report = match_tensors(
        state, encoder.state_dict(), where=str(path), allow_partial=allow_partial, rules=rules
    )
    encoder.load_state_dict(found, strict=False)
