"""medi3d: every 2D ImageNet-pretrained network, as an exact 3D network for CT and MRI."""

from medi3d._version import __version__

__all__ = ["__version__"]
