"""medi3d: every 2D ImageNet-pretrained network, as an exact 3D network for CT and MRI.

The names below are the public API. They are imported when first used, so that the command line and the processes
that only prepare data do not wait for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from medi3d._version import __version__
from medi3d.errors import Medi3dError

if TYPE_CHECKING:
    from medi3d.config import load_task
    from medi3d.infer.call import predict
    from medi3d.infer.predictor import Predictor
    from medi3d.inflation import inflate
    from medi3d.models import create_encoder, create_model
    from medi3d.volume import LabelMap, Volume

__all__ = [
    "LabelMap",
    "Medi3dError",
    "Predictor",
    "Volume",
    "__version__",
    "create_encoder",
    "create_model",
    "inflate",
    "load_task",
    "predict",
]

_HOMES = {
    "LabelMap": "volume",
    "Predictor": "infer.predictor",
    "Volume": "volume",
    "create_encoder": "models",
    "create_model": "models",
    "inflate": "inflation",
    "load_task": "config",
    "predict": "infer.call",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'medi3d' has no attribute {name!r}")
    return getattr(import_module(f"medi3d.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
