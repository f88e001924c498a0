"""
A stand-in for a GPU, to run on a CPU what the scripts only do on a GPU.

    python tests/standin_gpu.py train_teacher.py --device=cuda --cuda_graph=True ...

Device 'cuda' is the CPU, streams and events do nothing, torch.compile neither. A CUDA graph is as strict as a real one:
the operations seen while it is captured change nothing and leave no values behind; replaying runs these very operations
on the same memory, without any Python between; one that would wait for the device raises. What a stand-in cannot show:
kernels, their speed, their rounding, memory that a graph uses twice, order between streams, tensors on two devices.
"""

import contextlib
import runpy
import sys
import time

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten


class CudaIsCpu(TorchFunctionMode):
    """Every device 'cuda' given to a function or method of torch is the CPU."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        def cpu(v):
            is_device = isinstance(v, torch.device) or isinstance(v, str) and v.split(':')[0] == 'cuda'
            return 'cpu' if is_device else v
        return func(*map(cpu, args), **{k: cpu(v) for k, v in (kwargs or {}).items()})


def storage(t):
    return t.untyped_storage()._cdata


class CUDAGraph(TorchDispatchMode):
    """Notes the operations between its __enter__ and __exit__, for replay()."""

    capturing = False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default):
            raise RuntimeError(f'CUDA error: operation not permitted when stream is capturing: {func}')
        tensors = [t for t in tree_flatten((args, kwargs))[0] if isinstance(t, torch.Tensor)]
        if func._schema.is_mutable:
            for t in tensors:
                if storage(t) not in self.made and storage(t) not in self.before:
                    self.before[storage(t)] = t.untyped_storage(), t.untyped_storage().clone()
        known = {storage(t) for t in tensors}
        out = func(*args, **kwargs)
        new = [isinstance(t, torch.Tensor) and storage(t) not in known for t in tree_flatten(out)[0]]
        for t, is_new in zip(tree_flatten(out)[0], new):
            if is_new:
                self.made[storage(t)] = t
        if any(new) or func._schema.is_mutable:  # the others are views
            self.operations.append((func, args, kwargs, out, new))
        return out

    def __enter__(self):
        self.made, self.before, self.operations, self.rng = {}, {}, [], torch.get_rng_state()
        CUDAGraph.capturing = True
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        CUDAGraph.capturing = False
        torch.set_rng_state(self.rng)
        with torch.no_grad():
            for memory, value in self.before.values():
                memory.copy_(value)
            for t in self.made.values():  # nothing ran, so nothing was computed
                t.fill_(float('nan') if t.is_floating_point() else 0)

    @torch.no_grad()
    def replay(self):
        for func, args, kwargs, out, new in self.operations:
            for t, value, is_new in zip(tree_flatten(out)[0], tree_flatten(func(*args, **kwargs))[0], new):
                if is_new:
                    t.copy_(value)


class Stream:
    def wait_stream(self, other):
        pass


class Event:
    def __init__(self, enable_timing=False):
        pass

    def record(self):
        self.at = time.perf_counter()

    def elapsed_time(self, end):
        return 1e3 * (end.at - self.at)


def install():
    """Puts the stand-in in the place of torch.cuda, for the rest of this process."""
    cuda, index = torch.cuda, torch.cuda._utils._get_device_index
    CudaIsCpu().__enter__()
    cuda.is_available, cuda.current_device, cuda.synchronize = lambda: True, lambda: 0, lambda device=None: None

    def set_device(device):  # as the real one it refuses 'cuda' without a number
        with torch._C.DisableTorchFunction():
            index('cuda:0' if str(device) == 'cpu' else device)
    cuda.set_device = set_device
    cuda.mem_get_info = lambda device=None: (2 ** 37, 2 ** 37)
    cuda.get_device_name = lambda device=None: 'stand-in'
    cuda.max_memory_allocated, cuda.reset_peak_memory_stats = lambda device=None: 2 ** 30, lambda device=None: None
    cuda.get_rng_state = lambda device: torch.get_rng_state()
    cuda.set_rng_state = lambda state, device: torch.set_rng_state(state)
    cuda.Stream, cuda.Event, cuda.CUDAGraph = Stream, Event, CUDAGraph
    cuda.current_stream, cuda.stream = lambda device=None: Stream(), lambda stream: contextlib.nullcontext()
    cuda.graph = lambda graph, pool=None, stream=None: graph
    autocast, load = torch.autocast, torch.load
    torch.load = lambda path, map_location, **kwargs: load(path, map_location='cpu', **kwargs)
    torch.autocast = lambda device_type, *args, **kwargs: autocast('cpu', *args, **kwargs)
    torch.compile = lambda f, **kwargs: f

    def check(opt):
        assert not CUDAGraph.capturing or all(g['capturable'] for g in opt.param_groups), 'Adam is not capturable'
    sys.modules['torch.optim.adam']._get_capturable_supported_devices = lambda *args, **kwargs: ['cpu']
    torch.optim.Optimizer._accelerator_graph_capture_health_check = check  # 2.15's name
    torch.optim.Optimizer._cuda_graph_capture_health_check = check  # 2.11's


if __name__ == '__main__':
    install()
    sys.argv = sys.argv[1:]
    sys.path[0] = sys.argv[0].rpartition('/')[0] or '.'
    runpy.run_path(sys.argv[0], run_name='__main__')
