"""Networks: 2D backbones from the zoo, inflated to encoders, with a U-Net decoder or a classification head.

May import ``inflate`` and the ground floor; knows nothing of files of cases or of training.
"""

from medi3d.models.build import create_model
from medi3d.models.creation import create_encoder
from medi3d.models.encoder import Encoder

__all__ = ["Encoder", "create_encoder", "create_model"]
