"""An inflated network is an ordinary module: saved, copied, cast, checkpointed, distributed, compiled, exported.

Modules can be pickled whole, but a file that should outlive a version of this library holds the state dict and the
names from which the network is made again.
"""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.distributed
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from medi3d.inflation import inflate, trace_graph

SHAPE = (2, 1, 5, 64, 48)
OPTIONS: dict[str, dict[str, Any]] = {
    "test_resnet": {"features_only": True},
    "tf_efficientnet_lite0": {"features_only": True, "out_indices": (0, 1, 2)},
    "test_convnext": {"features_only": True},
    "test_efficientnet": {"features_only": True},
    "vit_tiny_patch16_224": {"img_size": SHAPE[-2:], "num_classes": 3, "depth": 2},
    "mixer_s32_224": {"img_size": 64, "num_classes": 3},
}
"""Small networks with the layers of large ones."""
COMPILED = (
    "test_resnet",
    *(
        pytest.param(name, marks=pytest.mark.slow)
        for name in (
            "resnet18",
            "convnext_atto",
            "test_convnext",
            "resnet50",
            "tf_efficientnet_lite0",
            "densenet121",
            "vgg11_bn",
            "mobilenetv3_small_050",
        )
    ),
)


@cache
def make_2d(name: str, seed: int = 0) -> nn.Module:
    """Make a 2D network once, in evaluation mode, with norms whose statistics let a signal through."""
    torch.manual_seed(seed)
    network = timm.create_model(name, pretrained=False, in_chans=1, **OPTIONS.get(name, {"features_only": True}))
    for parameter in network.parameters():
        if float(parameter.detach().std(correction=0)) < 1e-3:  # layer scales, gains, tables of zeros
            nn.init.uniform_(parameter, -0.5, 0.5)
    network.train()
    with torch.no_grad():
        for _ in range(5):  # running statistics of its own
            network(torch.randn(4, 1, *_plane(name)))
    return network.eval()


def make(name: str, seed: int = 0) -> nn.Module:
    return inflate(make_2d(name, seed))


def _plane(name: str) -> tuple[int, int]:
    return (64, 64) if name == "mixer_s32_224" else (SHAPE[3], SHAPE[4])


def volume(name: str, seed: int = 1) -> Tensor:
    return torch.randn(*SHAPE[:3], *_plane(name), generator=torch.Generator().manual_seed(seed))


def listed(outputs: Any) -> list[Tensor]:
    return [outputs] if isinstance(outputs, Tensor) else list(outputs)


def gradients(network: nn.Module, run: Callable[[Tensor], Any], x: Tensor) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Return the outputs and the gradients of all parameters of a sum that weighs every entry differently."""
    network.zero_grad()
    outputs = listed(run(x))
    torch.stack([(o.float() * torch.linspace(-1, 1, o.numel()).view(o.shape)).mean() for o in outputs]).sum().backward()
    found = {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}
    return [output.detach() for output in outputs], found


def assert_same(found: Any, expected: Any, tolerance: float = 1e-5) -> None:
    """Lists or mappings of tensors agree, to a part of the largest magnitude of each."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        found, expected = list(found.values()), list(expected.values())
    for one, other in zip(listed(found), listed(expected), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=tolerance * float(other.abs().max().clamp_min(1e-12)))


@pytest.mark.parametrize("name", OPTIONS)
def test_state_goes_through_a_file_into_a_network_made_by_name(name: str, tmp_path: Path) -> None:
    source, target = make(name), make(name, seed=2)
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.add_(0.01 * torch.randn(parameter.shape))
    torch.save({"backbone": name, "state": source.state_dict()}, tmp_path / "net.pt")
    content = torch.load(tmp_path / "net.pt", weights_only=True)
    assert content["backbone"] == name
    assert target.load_state_dict(content["state"], strict=True) == nn.modules.module._IncompatibleKeys([], [])
    x = volume(name)
    with torch.no_grad():
        assert_same(target(x), source(x), tolerance=0)


def unpickle(network: nn.Module) -> nn.Module:
    twin: nn.Module = pickle.loads(pickle.dumps(network))
    return twin


@pytest.mark.parametrize("duplicate", [copy.deepcopy, unpickle])
@pytest.mark.parametrize("name", OPTIONS)
def test_copies_answer_alike_and_are_networks_of_their_own(name: str, duplicate: Callable[[Any], nn.Module]) -> None:
    network, x = make(name), volume(name)
    with torch.no_grad():
        expected = network(x)
        twin = duplicate(network)
        for parameter in network.parameters():
            parameter.zero_()
        network(volume(name, seed=3)[:1, :, :2])  # another batch and depth meanwhile
        assert_same(twin(x), expected, tolerance=0)


def test_a_pickled_module_is_read_back_as_code_only() -> None:
    buffer = io.BytesIO()
    torch.save(make("test_resnet"), buffer)
    buffer.seek(0)
    with pytest.raises(pickle.UnpicklingError, match="Unsupported global"):
        torch.load(buffer, weights_only=True)


@pytest.mark.parametrize("name", OPTIONS)
def test_autocast(name: str) -> None:
    network, x = make(name), volume(name)
    expected, exact = gradients(network, network, x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        planes = listed(make_2d(name)(x[:, :, 0]))
        assert [output.dtype for output in listed(network(x))] == [plane.dtype for plane in planes]

    def run(x: Tensor) -> Any:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return network(x)

    found, rough = gradients(network, run, x)
    assert_same([output.float() for output in found], expected, tolerance=0.1)
    assert rough.keys() == exact.keys()
    assert all(gradient.dtype == torch.float32 and gradient.isfinite().all() for gradient in rough.values())


@pytest.mark.parametrize("name", OPTIONS)
def test_double_precision(name: str) -> None:
    network, x = make(name), volume(name)
    with torch.no_grad():
        expected = listed(network(x))
        found = listed(network.double()(x.double()))
    assert found[-1].dtype == torch.float64
    assert_same([output.float() for output in found], expected, tolerance=1e-4)


@pytest.mark.parametrize("name", OPTIONS)
def test_the_whole_network_is_checkpointed(name: str) -> None:
    network, x = make(name), volume(name)
    expected = gradients(network, network, x)
    found = gradients(network, lambda x: checkpoint(network, x, use_reentrant=False), x)
    for one, other in zip(found, expected, strict=True):
        assert_same(one, other)


@pytest.mark.parametrize("name", ["test_resnet", "test_convnext", "vit_tiny_patch16_224"])
def test_timms_own_checkpointing(name: str) -> None:
    network, x = make(name).train(), volume(name)
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.eval()  # statistics would be updated twice
    expected = gradients(network, network, x)
    network.body.set_grad_checkpointing(True)
    for one, other in zip(gradients(network, network, x), expected, strict=True):
        assert_same(one, other)


@pytest.fixture
def process_group(tmp_path: Path) -> Any:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


# The strides of 1 × 1 kernels and their gradients differ in axes of one entry; DDP then copies them.
@pytest.mark.filterwarnings("ignore:Grad strides do not match bucket view strides")
@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize("name", ["test_resnet", "vit_tiny_patch16_224"])
def test_distributed(name: str) -> None:
    network, x = make(name), volume(name)
    expected = gradients(network, network, x)
    wrapped = DistributedDataParallel(network, find_unused_parameters=True)
    for one, other in zip(gradients(network, wrapped, x), expected, strict=True):
        assert_same(one, other)


@pytest.mark.parametrize("name", ["test_resnet", "vit_tiny_patch16_224"])
def test_a_volume_may_lie_in_memory_in_any_way(name: str) -> None:
    network, x = make(name), volume(name)
    with torch.no_grad():
        expected = network(x)
        for other in (
            x.contiguous(memory_format=torch.channels_last_3d),
            x.mT.contiguous().mT,
            x[:1].expand(2, -1, -1, -1, -1),
        ):
            assert_same(network(other), expected if torch.equal(other, x) else network(other.clone()))


@pytest.mark.parametrize("name", COMPILED)
def test_compiles_without_a_break(name: str) -> None:
    torch.compiler.reset()
    network, x = make(name), volume(name)
    expected = gradients(network, network, x)
    compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
    for one, other in zip(gradients(network, compiled, x), expected, strict=True):
        assert_same(one, other, tolerance=1e-4)


@pytest.mark.filterwarnings("ignore")  # exporters warn of their own deprecations
@pytest.mark.parametrize("name", [pytest.param("convnext_atto", marks=pytest.mark.slow), "test_resnet"])
def test_the_network_is_exported(name: str) -> None:
    network, x = make(name), volume(name)
    with torch.no_grad():
        assert_same(torch.export.export(network, (x,)).module()(x), network(x), tolerance=1e-4)


@pytest.mark.filterwarnings("ignore")  # exporters warn of their own deprecations
@pytest.mark.parametrize("name", ["test_convnext", pytest.param("resnet18", marks=pytest.mark.slow)])
def test_the_graph_is_exported(name: str, tmp_path: Path) -> None:
    network, x = make(name), volume(name)
    graph = trace_graph(network, x)
    with torch.no_grad():
        expected = network(x)
        assert_same(graph(x), expected)
        torch.export.save(torch.export.export(graph, (x,)), tmp_path / "net.pt2")
        assert_same(torch.export.load(tmp_path / "net.pt2").module()(x), expected)
        assert_same(torch.jit.trace(graph, (x,))(x), expected)
