"""Memory of a training step: bytes counted by hand, and the real peak of a process that does one."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn

from medi3d.config import TaskConfig, load_task
from medi3d.planning import estimate_training_bytes
from medi3d.planning import trial as trial_module
from medi3d.planning.trial import LiveBytes, TrialNetwork


def make_task(**overrides: object) -> TaskConfig:
    keys: dict[str, object] = {
        "model.init": "random",
        "model.stages": 2,
        "train.batch_size": 2,
        "train.patch_size": [24, 40, 32],
    }
    return load_task(
        "hippocampus", overrides=keys | {key.replace("__", "."): value for key, value in overrides.items()}
    )


def test_living_storages_are_counted_by_hand() -> None:
    with LiveBytes() as live:
        first = torch.zeros(100, dtype=torch.float32)  # 400
        view = first[10:].reshape(9, 10)  # the same storage
        second = view + 1  # 360 more
        assert live.now == 760
        del first, view
        assert live.now == 360
        third = second.to(torch.float64)  # 720 more
        assert live.now == 1080
        live.release(third)
        assert live.now == 360
    assert live.peak == 1080
    del second, third


def test_a_chain_of_layers_keeps_what_its_backward_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    """One convolution and one sigmoid, on 5 × 6 × 7 voxels, counted by hand."""
    network = nn.Sequential(nn.Conv3d(1, 4, 1, bias=False), nn.Sigmoid())
    monkeypatch.setattr(trial_module, "create_model", lambda task: network)
    trial = TrialNetwork(make_task())
    voxels = 5 * 6 * 7 * 4  # bytes of one channel
    peak = trial._peak_bytes(trial_module._copy_to_meta(network), (1, 1, 5, 6, 7), "meta")
    # At the end of the forward pass: input, convolution, sigmoid, truth, probabilities, log-probabilities.
    kept = (1 + 5 * 4) * voxels
    assert kept <= peak <= kept + 3 * 4 * voxels  # and what products and gradients need for a moment
    assert trial.learned_bytes == 16
    assert trial.fixed_bytes == 16 * 5  # weights, gradients, two moments, the moving average


@pytest.fixture(scope="module")
def trial() -> TrialNetwork:
    return TrialNetwork(make_task())


def test_the_trial_computes_and_changes_nothing() -> None:
    state = torch.get_rng_state()
    trial = TrialNetwork(make_task())
    before = {name: tensor.clone() for name, tensor in trial._model.state_dict().items()}
    trial.step_bytes((24, 40, 32), 2)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in trial._model.state_dict().items())
    assert all(parameter.grad is None for parameter in trial._model.parameters())


def test_the_step_grows_with_patches_and_voxels(trial: TrialNetwork) -> None:
    one, two, four = (trial.step_bytes((24, 40, 32), batch) for batch in (1, 2, 4))
    assert two == pytest.approx(2 * one, rel=0.02)
    assert four == pytest.approx(4 * one, rel=0.02)
    assert trial.step_bytes((48, 40, 32), 2) == pytest.approx(four, rel=0.05)


def test_the_optimiser_and_the_average_count(trial: TrialNetwork) -> None:
    learned, adamw = trial.learned_bytes, trial.fixed_bytes
    assert adamw - TrialNetwork(make_task(train__optimizer="sgd")).fixed_bytes == learned
    assert adamw - TrialNetwork(make_task(train__ema_decay=0.0)).fixed_bytes == learned


def test_half_precision_needs_less() -> None:
    full, half = (estimate_training_bytes(make_task(train__precision=name)) for name in ("no", "bf16"))
    assert 0.5 * full < half < 0.8 * full
    assert estimate_training_bytes(make_task()) == full  # before it is planned


def test_recomputed_maps_are_not_kept() -> None:
    kept, recomputed = (
        TrialNetwork(make_task(model__stages=3, train__checkpoint_activations=flag)).step_bytes((24, 40, 32), 2)
        for flag in (False, True)
    )
    assert recomputed < 0.8 * kept


def test_a_network_that_needs_values_is_measured_on_a_small_patch(monkeypatch: pytest.MonkeyPatch) -> None:
    class ReadsValues(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv3d(1, 4, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.conv(x) * float(x.sum() + 1)

    task, whole = make_task(), (64, 48, 40)
    monkeypatch.setattr(trial_module, "create_model", lambda task: ReadsValues())
    measured = TrialNetwork(task).step_bytes(whole, 2)
    monkeypatch.setattr(trial_module, "create_model", lambda task: nn.Conv3d(1, 4, 1))
    plain = TrialNetwork(task).step_bytes(whole, 2)
    assert measured == pytest.approx(plain, rel=0.02)  # the product's own input is not kept


_ONE_STEP = """
import resource, sys, psutil, torch
from medi3d.config import load_task
from medi3d.models.build import create_model
from medi3d.models.activations import checkpoint_activations
from medi3d.infer.allocator import give_back_freed_memory, keep_freed_memory
torch.set_num_threads(1)
backbone, recompute, stages, *patch = sys.argv[1], sys.argv[2] == "True", *map(int, sys.argv[3:])
keys = {"model.init": "random", "model.backbone": backbone, "model.stages": stages}
model = create_model(load_task("hippocampus", overrides=keys)).train()
if recompute:
    checkpoint_activations(model)
assert give_back_freed_memory() if recompute else keep_freed_memory()  # as training does
optimizer = torch.optim.AdamW(model.parameters())
def step(shape):
    logits = model(torch.randn(shape))
    label = torch.randint(0, 3, (shape[0], *shape[2:]))
    loss = torch.nn.functional.cross_entropy(logits, label)
    truth = torch.nn.functional.one_hot(label, 3).movedim(-1, 1)
    probability = torch.softmax(logits, 1)
    (loss - (probability * truth).sum() / (probability + truth).sum()).backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=False)
step((2, 1, 32, 32, 32))  # libraries, weights, gradients and moments are there
before = psutil.Process().memory_info().rss
for _ in range(2):
    step((2, 1, *patch))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backbone", "recompute", "patch"),
    [
        ("tf_efficientnet_lite0", False, (40, 48, 56)),
        ("tf_efficientnet_lite0", False, (56, 64, 72)),
        ("tf_efficientnet_lite0", True, (56, 64, 72)),
        ("resnet18", False, (40, 48, 56)),
        ("resnet18", False, (56, 64, 72)),
        ("resnet18", True, (56, 64, 72)),
    ],
)
def test_the_estimate_is_near_the_real_peak(backbone: str, recompute: bool, patch: tuple[int, int, int]) -> None:
    """Estimate over peak of (40, 48, 56), one core: EfficientNet-Lite0 1.14, recomputed 1.02, ResNet-18 0.99 and 1.09.

    Where freed memory is kept in spite of recomputed maps, the peak is half as much again: 242 MB against 163.
    """
    stages = 4
    answer = subprocess.run(
        [sys.executable, "-c", _ONE_STEP, backbone, str(recompute), str(stages), *map(str, patch)],
        capture_output=True,
        text=True,
        check=True,
    )
    measured = int(answer.stdout.split()[-1])
    task = make_task(
        model__backbone=backbone,
        model__stages=stages,
        train__patch_size=list(patch),
        train__checkpoint_activations=recompute,
    )
    ratio = TrialNetwork(task).step_bytes(patch, 2) / measured
    print(f"{backbone} {patch} {recompute}: estimated {ratio:.2f} of {measured / 1e6:.0f} MB")
    assert 0.85 < ratio < 1.3
