"""An inflated network as a plain graph of PyTorch's operators, which anything that takes one can save or export."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx


def trace_graph(network: nn.Module, volume: Tensor) -> GraphModule:
    """Record what a network does to a volume, as operators on volumes with no hidden axis.

    The graph needs no medi3d to run. ``torch.export.export``, ``torch.jit.trace`` and ``torch.onnx.export`` take it.

    Args:
        network: an inflated network, or one that holds some; recorded in evaluation mode, without gradients.
        volume: (B, C, D, H, W), an example; the graph is for volumes of its shape.

    Returns:
        A module that takes such a volume and gives what ``network`` gives; its weights are copies.

    Example:
        >>> from medi3d.inflation import inflate
        >>> network = inflate(nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU()))
        >>> trace_graph(network, torch.zeros(1, 1, 5, 6, 8))(torch.zeros(1, 1, 5, 6, 8)).shape
        torch.Size([1, 4, 5, 6, 8])
    """
    frozen = copy.deepcopy(network).eval().requires_grad_(requires_grad=False)
    with torch.no_grad():
        graph: GraphModule = make_fx(frozen)(volume)
    for node in graph.graph.nodes:
        # Which memory a convolution's result lies in differs between processors, and so what can be viewed.
        if node.target is torch.ops.aten.view.default:
            node.target = torch.ops.aten.reshape.default
    graph.recompile()
    return graph
