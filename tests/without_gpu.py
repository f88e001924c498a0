"""
What can be seen of a GPU without one: a stand-in to run the scripts on, and a count of what a GPU has to do.

    python tests/without_gpu.py train_teacher.py --device=cuda --cuda_graph=True ...

The stand-in: device 'cuda' is the CPU, streams and events do nothing, torch.compile neither. A CUDA graph is as strict
as a real one: the operations seen while it is captured change nothing and leave no values behind; replaying runs these
very operations on the same memory, without any Python between; .item(), masks and what else has a size that depends
on values raise. It cannot show other waits (.tolist(), .cpu(), lists copied to the device), kernels, their speed, their
rounding, memory a graph uses twice, order between streams, tensors on two devices: for some of it there is the count.

The count (`python tests/bench.py --count=True`): the steps run on 'meta' tensors, which have a size and no values.
"""

import contextlib
import runpy
import sys
import time
import unittest.mock
import weakref

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.flop_counter import flop_registry


# the stand-in


class CudaIsCpu(TorchFunctionMode):
    """Every device 'cuda' given to a function or method of torch is the CPU."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        def cpu(v):
            return 'cpu' if isinstance(v, (str, torch.device)) and str(v).split(':')[0] == 'cuda' else v
        return func(*map(cpu, args), **{k: cpu(v) for k, v in (kwargs or {}).items()})


def storage(t):
    return t.untyped_storage()._cdata


def waits(func, args):
    """Does the operation need values to know what it returns, or how much? Then the CPU has to wait for the GPU."""
    name, tags = func._overloadpacket.__name__, {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
    masks = any(torch.is_tensor(t) and t.dtype in (torch.bool, torch.uint8) for t in tree_leaves(args[1:2]))
    return masks if name.startswith(('index', '_index')) else bool(tags & {*func.tags})


class CUDAGraph(TorchDispatchMode):
    """Notes the operations between its __enter__ and __exit__, for replay()."""

    capturing = False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if waits(func, args):
            raise RuntimeError(f'CUDA error: operation not permitted when stream is capturing: {func}')
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
        if func._schema.is_mutable:
            for t in tensors:
                if storage(t) not in self.made and storage(t) not in self.before:
                    self.before[storage(t)] = t.untyped_storage(), t.untyped_storage().clone()
        known = {storage(t) for t in tensors}
        out = func(*args, **kwargs)
        new = [isinstance(t, torch.Tensor) and storage(t) not in known for t in tree_leaves(out)]
        for t, is_new in zip(tree_leaves(out), new):
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
            for t, value, is_new in zip(tree_leaves(out), tree_leaves(func(*args, **kwargs)), new):
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
    cuda.max_memory_allocated = cuda.max_memory_reserved = lambda device=None: 2 ** 30
    cuda.reset_peak_memory_stats, cuda.empty_cache = lambda device=None: None, lambda: None
    cuda.get_rng_state = lambda device: torch.get_rng_state()
    cuda.set_rng_state = lambda state, device: torch.set_rng_state(state)
    cuda.Stream, cuda.Event, cuda.CUDAGraph = Stream, Event, CUDAGraph
    cuda.current_stream, cuda.stream = lambda device=None: Stream(), lambda stream: contextlib.nullcontext()
    cuda.graph = lambda graph, stream: graph
    autocast, load = torch.autocast, torch.load
    torch.load = lambda path, map_location, **kwargs: load(path, map_location='cpu', **kwargs)
    torch.autocast = lambda device_type, *args, **kwargs: autocast('cpu', *args, **kwargs)
    torch.compile = lambda f, **kwargs: f

    def check(opt):
        assert not CUDAGraph.capturing or all(g['capturable'] for g in opt.param_groups), 'Adam is not capturable'
    sys.modules['torch.optim.adam']._get_capturable_supported_devices = lambda *args, **kwargs: ['cpu']
    torch.optim.Optimizer._accelerator_graph_capture_health_check = check  # 2.15's name
    torch.optim.Optimizer._cuda_graph_capture_health_check = check  # 2.11's


# a count of what a GPU has to do

# FLOP/s and bytes/s as the maker states them, dense. cuDNN runs float32 convolutions in TF32 unless told not to
H200 = {'bf16': 989e12, 'tf32': 495e12, 'float32': 67e12, 'bytes': 4.8e12}


class Autocast(TorchFunctionMode):
    """What these nets need of torch.autocast, which refuses 'meta': convolutions in bfloat16, cat in the wider type."""

    def __init__(self, device, dtype, enabled=True):
        super().__init__()
        self.dtype, self.enabled, self.weights = dtype, enabled, {}

    def cast(self, t):
        if not torch.is_tensor(t) or not t.is_leaf or not t.requires_grad:
            return t.to(self.dtype) if torch.is_tensor(t) else t
        if id(t) not in self.weights:  # these once, as autocast does it
            self.weights[id(t)] = t.to(self.dtype)
        return self.weights[id(t)]

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if self.enabled and func in (torch.conv2d, torch.conv_transpose2d):
            args = tree_map(self.cast, args)
        elif self.enabled and func is torch.cat and torch.float32 in [t.dtype for t in args[0]]:
            args = [t.float() for t in args[0]], *args[1:]
        return func(*args, **(kwargs or {}))

    def __exit__(self, *why):
        self.weights.clear()
        return super().__exit__(*why)


class GpuCounter(TorchDispatchMode):
    """Of the operations on `device`: how many, FLOP, bytes, seconds at the speed of an H200's data sheet, what waits.

    Each reads its arguments and writes its results once; views and empty memory cost nothing. syncs: what makes the CPU
    wait for the GPU, or copies between them. live, peak: bytes of the tensors made while counting, now and at most.
    """

    def __init__(self, device='meta'):
        super().__init__()
        self.device, self.live, self.peak, self.held = device, 0, 0, set()
        self.reset()

    def reset(self):
        self.kernels, self.flops, self.bytes, self.seconds, self.syncs, self.peak = 0, 0, 0, 0.0, [], self.live

    def hold(self, t):
        memory, size = t.untyped_storage(), t.untyped_storage().nbytes()
        if memory._cdata not in self.held:
            self.held.add(memory._cdata)
            self.live += size
            self.peak = max(self.peak, self.live)
            weakref.finalize(memory, self.free, memory._cdata, size)

    def free(self, key, size):
        self.held.remove(key)
        self.live -= size

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs, name = kwargs or {}, func._overloadpacket.__name__
        given = [t for t in tree_leaves((args, kwargs)) if torch.is_tensor(t)]
        here = [t for t in given if t.device.type == self.device]
        if here and waits(func, args):
            self.syncs.append('.item()' if name == '_local_scalar_dense' else name)
            if name == '_local_scalar_dense':
                return 0.0
        # a single number on the CPU is an argument of the kernel; lift_fresh is how a Python list becomes a tensor
        mixed = any(t.device.type != self.device and (t.dim() or 'index' in name or 'copy' in name) for t in given)
        to = torch.device(kwargs.get('device') or given[0].device).type if name == '_to_copy' else None
        moved = to and to != given[0].device.type
        if moved or here and (mixed or name == 'lift_fresh'):
            self.syncs.append(f'{name} from CPU or to it')
            if moved and here and self.device == 'meta':  # which has no values to copy
                return torch.zeros(here[0].shape, dtype=kwargs.get('dtype') or here[0].dtype)
        out = func(*args, **kwargs)
        made = [t for t in tree_leaves(out) if torch.is_tensor(t) and t.device.type == self.device]
        memory = {t.untyped_storage()._cdata for t in here}
        changed = [t for a, arg in zip(args, func._schema.arguments) if arg.alias_info and arg.alias_info.is_write
                   for t in tree_leaves(a)]
        if (here or made) and 'empty' not in name and (
                changed or any(t.untyped_storage()._cdata not in memory for t in made)):
            moved = sum(min(t.nbytes, t.untyped_storage().nbytes()) for t in here + (changed or made))
            of = flop_registry.get(func._overloadpacket)
            flop = of(*args, **kwargs, out_val=out) if of else 0
            kind = 'bf16' if here and here[0].itemsize == 2 else 'tf32' if 'conv' in name else 'float32'
            self.kernels, self.flops, self.bytes = self.kernels + 1, self.flops + flop, self.bytes + moved
            self.seconds += max(flop / H200[kind], moved / H200['bytes'])
        for t in made:
            self.hold(t)
        return out


def gpu_count(steps_of, script, opts, nets, size, batch, n_critic):
    """bench.py's steps on 'meta' tensors -> what GpuCounter counted by step, and the names of a cycle.

    Adam is the fused one in all of them. Between CPU and 'meta' what goes wrong between CPU and GPU does as well.
    """
    counts, Adam, fused, patch = {}, torch.optim.Adam, {'fused': True}, unittest.mock.patch
    with (patch('torch.autocast', Autocast), patch('torch.optim.Adam', lambda *args, **kw: Adam(*args, **kw | fused)),
          patch('torch.optim.optimizer._get_fused_kernels_supported_devices', lambda: ['meta'])):
        with GpuCounter() as counter:
            with torch.device('meta'):
                steps, cycle, _ = steps_of(script, opts, nets, size, batch, n_critic, 'meta')
            fill = 50 // batch + 1 if script == 'uag' else 0
            for name in [*steps] + ['D'] * fill:  # makes Adam's state, fills the pools
                steps[name]()
            for name in steps:
                counter.reset()
                steps[name]()
                counts[name] = {k: getattr(counter, k) for k in
                                ('kernels', 'flops', 'bytes', 'seconds', 'peak', 'live', 'syncs')}
    return counts, cycle


def print_counts(steps_of, runs, nets, n_critic):
    """A line for each (script, variant, px, batch) of runs -> rows for the JSON; the figures are for an iteration."""
    print("Computed, not measured: the kernels of an iteration one by one, each at the FLOP/s or bytes/s of an H200's\n"
          'data sheet, none fused, nothing out of a cache, no time to launch them. Kernels are operations of PyTorch,\n'
          'of which some launch several. GB are read and written, peak is of tensors, without workspaces of kernels.\n'
          'script   variant                        px batch kernels   GFLOP     GB peak GB   ms/it min of 200,000  '
          'waits')
    rows = []
    for script, variant, size, batch in runs:
        counts, cycle = gpu_count(steps_of, script, set(variant.split('+')), nets, size, batch, n_critic)
        n = 1 if script == 'uag' else n_critic
        row = {k: sum(counts[name][k] for name in cycle) / n for k in ('kernels', 'flops', 'bytes', 'seconds')}
        row |= dict(script=script, variant=variant, size=size, batch=batch, steps=counts,
                    syncs=sum((counts[name]['syncs'] for name in cycle), []),
                    peak=max(c['peak'] for c in counts.values()))
        said = ', '.join(f'{row["syncs"].count(k) / n:g} {k}' for k in dict.fromkeys(row['syncs'])) or 'none'
        print(f'{script:8s} {variant:28s} {size:4d} {batch:5d} {row["kernels"]:7.0f} {row["flops"] / 1e9:7.0f} '
              f'{row["bytes"] / 1e9:6.2f} {row["peak"] / 2 ** 30:7.2f} {1e3 * row["seconds"]:7.2f} '
              f'{200000 / 60 * row["seconds"]:15.1f}  {said}', flush=True)
        rows.append(row)
    return rows


if __name__ == '__main__':
    install()
    sys.argv = sys.argv[1:]
    sys.path[0] = sys.argv[0].rpartition('/')[0] or '.'
    runpy.run_path(sys.argv[0], run_name='__main__')
