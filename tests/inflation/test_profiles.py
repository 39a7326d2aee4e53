import pytest
import torch

from medi3d.errors import ConfigError
from medi3d.inflation import PROFILES, inflate_kernel
from medi3d.inflation.profiles import inflate_transposed_kernel


@pytest.mark.parametrize("name", list(PROFILES))
@pytest.mark.parametrize("taps", [1, 2, 3, 4, 5, 7])
def test_profile_sums_to_one(name, taps):
    profile = PROFILES[name](taps)
    assert profile.shape == (taps,)
    torch.testing.assert_close(profile.sum(), torch.tensor(1.0, dtype=torch.float64))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mean", [1 / 3, 1 / 3, 1 / 3]),
        ("center", [0.0, 1.0, 0.0]),
        ("overshoot", [-1 / 3, 5 / 3, -1 / 3]),
    ],
)
def test_profile_values(name, expected):
    torch.testing.assert_close(PROFILES[name](3), torch.tensor(expected, dtype=torch.float64))


def test_center_of_even_kernel_is_the_earlier_middle_tap():
    assert PROFILES["center"](4).tolist() == [0, 1, 0, 0]


def test_kernel_sums_to_the_2d_kernel_over_depth():
    weight = torch.randn(4, 3, 5, 2)
    kernel = inflate_kernel(weight, 5, "overshoot")
    assert kernel.shape == (4, 3, 5, 5, 2)
    torch.testing.assert_close(kernel.sum(2), weight)


def test_unknown_profile_names_the_nearest():
    with pytest.raises(ConfigError, match=r"depth profile 'centre'; did you mean 'center'"):
        inflate_kernel(torch.zeros(1, 1, 3, 3), 3, "centre")


@pytest.mark.parametrize("init", list(PROFILES))
@pytest.mark.parametrize(("taps", "stride"), [(2, 2), (3, 2), (4, 2), (5, 3)])
def test_each_phase_of_a_transposed_kernel_sums_to_the_2d_kernel(taps, stride, init):
    weight = torch.randn(4, 3, 2, 5)
    kernel = inflate_transposed_kernel(weight, taps, stride, init)
    for phase in range(stride):
        torch.testing.assert_close(kernel[:, :, phase::stride].sum(2), weight)


def test_a_transposed_kernel_that_leaves_slices_empty_is_refused():
    with pytest.raises(ConfigError, match="of 1 taps cannot fill the slices of stride 2"):
        inflate_transposed_kernel(torch.zeros(1, 1, 1, 1), 1, 2, "mean")
