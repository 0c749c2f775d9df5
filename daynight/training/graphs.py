"""A step as a CUDA graph: a GPU is given all kernels of the step at once. One by one, launching them takes longer than
their work."""

import warnings
from collections.abc import Callable

import torch
from accelerate import Accelerator
from torch.utils._pytree import tree_map

from daynight.system.console import warn

WARM_UP = 3  # calls before a graph is recorded; in them optimisers make their state and cuDNN chooses algorithms
# the calls of the warm-up are such steps
warnings.filterwarnings("ignore", "This instance was constructed with capturable=True")


class Recorder:
    """Runs and records functions of no arguments on a stream of its own, as CUDA wants it."""

    def __init__(self):
        self.stream = torch.cuda.Stream()

    def run(self, function: Callable):
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            results = function()
        torch.cuda.current_stream().wait_stream(self.stream)
        return results

    def record(self, function: Callable) -> Callable:
        """Record what the function launches, without running it. Returns a function that runs it; its results are
        always in the same memory."""
        graph = torch.cuda.CUDAGraph()
        # the outer block: torch.cuda.graph leaves its stream in place if it fails. thread_local: the thread that pins
        # batches may go on
        with (
            torch.cuda.stream(self.stream),
            torch.cuda.graph(graph, stream=self.stream, capture_error_mode="thread_local"),
        ):
            results = function()

        def replay():
            graph.replay()
            return results

        return replay


def recorder(accelerator: Accelerator, wanted: bool) -> Recorder | None:
    """A `Recorder` if this is the only process and has a CUDA device, else None."""
    able = accelerator.device.type == "cuda" and accelerator.num_processes == 1
    return Recorder() if wanted and able else None


class Captured:
    """`function`, which a graph replaces after some calls. Without a `recorder` it stays as it is.

    Its arguments are tensors, whose shapes never change, and numbers, which become 0-d tensors. Its results are tensors
    in dicts and tuples; a call returns copies, which later calls do not change. A graph repeats what it saw: the
    function must not wait for the device, nor depend on anything else that changes on the host.
    """

    def __init__(self, function: Callable, recorder: Recorder | None):
        self.function, self.recorder, self.calls = function, recorder, 0
        self.inputs: list[torch.Tensor] = []
        self.replay: Callable | None = None

    def __call__(self, *inputs):
        if not self.recorder:
            return self.function(*inputs)
        self._take(inputs)
        function, self.calls = lambda: self.function(*self.inputs), self.calls + 1
        if self.calls <= WARM_UP:
            return self.recorder.run(function)
        try:
            self.replay = self.replay or self.recorder.record(function)
        except RuntimeError as error:  # CUDA's errors are such, too
            while error.__context__:  # the first; ending a capture that has failed raises another
                error = error.__context__
            reason = str(error).strip().partition("\n")[0]
            warn(f"the step cannot be recorded as a CUDA graph ({reason}); going on without, as with --no-graph")
            self.recorder = None
            return self.function(*inputs)
        return tree_map(torch.clone, self.replay())

    def _take(self, inputs) -> None:
        """Copy the arguments to where a graph reads them."""
        device = next(x.device for x in inputs if isinstance(x, torch.Tensor))
        if not self.inputs:
            self.inputs = [x.clone() if isinstance(x, torch.Tensor) else torch.tensor(x, device=device) for x in inputs]
        for place, x in zip(self.inputs, inputs, strict=True):
            place.copy_(x) if isinstance(x, torch.Tensor) else place.fill_(x)
