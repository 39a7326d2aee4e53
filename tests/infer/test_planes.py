"""Where planes lie: on the device, on the host, on disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from medi3d.errors import Medi3dError
from medi3d.infer import planes
from medi3d.infer.planes import HOST, PlaneBuffer, Storage, planes_at_a_time

MIB = 2**20


@given(capacity=st.integers(1, 9), steps=st.lists(st.integers(1, 9), min_size=1, max_size=9))
def test_planes_come_back_as_they_went_in(capacity: int, steps: list[int]) -> None:
    buffer = PlaneBuffer((2, capacity, 3, 4), Storage(memory_bytes=MIB))
    first = 0
    for step in steps:
        count = min(step, capacity)
        block = torch.arange(first, first + count)[None, :, None, None] + torch.tensor([0, 1000])[:, None, None, None]
        for place, part in buffer.pieces(slice(first, first + count)):
            buffer.tensor[:, place] = block[:, part].float()
        back = torch.cat([buffer.tensor[:, place] for place, _ in buffer.pieces(slice(first, first + count))], 1)
        torch.testing.assert_close(back, block.expand(2, count, 3, 4).float())
        first += count


def test_memory_is_taken_until_it_is_used_up_then_the_disk(tmp_path: Path) -> None:
    storage = Storage(memory_bytes=3 * MIB, scratch=tmp_path)
    shape = (1, 2, 256, 1024)  # 2 MiB
    first, nothing = storage.allocate(shape, HOST)
    second, mapped = storage.allocate(shape, HOST)
    assert nothing is None
    assert isinstance(mapped, np.memmap)
    for tensor in (first, second):
        assert tensor.dtype == torch.float32
        assert tensor.shape == shape
        assert not tensor.any()
    second += 1
    assert float(mapped.sum()) == second.numel()
    assert storage.allocate((1, 1, 256, 1024), HOST)[1] is None  # there is room for half of it
    assert not list(tmp_path.iterdir())


def test_planes_on_disk_are_touched_a_few_channels_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Channels of 3 planes of 5×6 float32, 360 bytes: two of them fit into 900; a thousand planes fit nowhere."""
    monkeypatch.setattr(planes, "_MAPPED_BYTES", 900)
    mapped = PlaneBuffer((5, 7, 5, 6), Storage(memory_bytes=1, scratch=tmp_path))
    assert list(mapped.portions(3)) == [slice(0, 2), slice(2, 4), slice(4, 5)]
    assert list(mapped.portions(1000)) == [slice(n, n + 1) for n in range(5)]
    assert list(PlaneBuffer((5, 7, 5, 6), Storage()).portions(1000)) == [slice(0, 5)]


@pytest.mark.parametrize(("free", "place"), [(3 * MIB, "meta"), (2 * MIB, "cpu")])
def test_a_device_is_taken_where_it_has_room(free: int, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planes, "free_on_device", lambda device: free)
    tensor, mapped = Storage(memory_bytes=9 * MIB).allocate((1, 2, 256, 1024), torch.device("meta"))
    assert tensor.device.type == place
    assert mapped is None


def test_a_folder_for_scratch_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(Medi3dError, match=r"gone: could not be written .* make room there or write to another place"):
        Storage(memory_bytes=1, scratch=tmp_path / "gone").allocate((1, 2, 3, 4), HOST)


def test_a_full_disk_is_named_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(descriptor: int, offset: int, size: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", refuse)
    with pytest.raises(Medi3dError, match="No space left on device"):
        Storage(memory_bytes=1, scratch=tmp_path).allocate((1, 2, 3, 4), HOST)


def test_blocks_get_thinner_with_more_classes() -> None:
    assert planes_at_a_time(2, 512, 512) == 32
    assert planes_at_a_time(20, 512, 512) == 3
    assert planes_at_a_time(100, 512, 512) == 1
