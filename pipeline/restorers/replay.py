"""CUDA graphs: thousands of kernels launched as one, where launching them takes longer than running them."""

from __future__ import annotations

from collections.abc import Callable

import torch


class CudaGraph:
    """`function` of tensors on the GPU, without gradient: captured once per shapes and precision, then replayed.

    Parameters are read at every replay, so it follows weights that an optimiser changes in place. The kernels, and so
    the values, are those of the plain call.
    """

    def __init__(self, function: Callable[..., torch.Tensor]) -> None:
        self.function = function
        self._captured: dict[object, tuple[torch.cuda.CUDAGraph, list[torch.Tensor], torch.Tensor]] = {}

    @torch.no_grad()
    def __call__(self, *inputs: torch.Tensor) -> torch.Tensor:
        """What `function(*inputs)` gives."""
        autocast = torch.is_autocast_enabled("cuda") and torch.get_autocast_dtype("cuda")
        key = (autocast, *((tensor.shape, tensor.dtype) for tensor in inputs))
        if key not in self._captured:
            self._captured[key] = self._capture(inputs)
        graph, held, output = self._captured[key]
        for buffer, given in zip(held, inputs, strict=True):
            buffer.copy_(given)
        graph.replay()
        return output.clone()

    def _capture(
        self, inputs: tuple[torch.Tensor, ...]
    ) -> tuple[torch.cuda.CUDAGraph, list[torch.Tensor], torch.Tensor]:
        held = [tensor.clone() for tensor in inputs]
        graph, aside = torch.cuda.CUDAGraph(), torch.cuda.Stream()
        # autocast's copies of the weights are made within the graph: kept ones would be those of the first step
        with torch.autocast("cuda", torch.get_autocast_dtype("cuda"), torch.is_autocast_enabled("cuda"), False):
            aside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(aside):  # once before: libraries choose kernels and take workspaces
                self.function(*held)
            torch.cuda.current_stream().wait_stream(aside)
            with torch.cuda.graph(graph):
                output = self.function(*held)
        return graph, held, output
