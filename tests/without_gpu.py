"""
A stand-in for a GPU: runs a script whose device is 'cuda' on a machine that has none.

    python tests/without_gpu.py train_teacher.py --device=cuda --cuda_graph=True ...

Tensors of 'cuda' lie in the CPU's memory and are marked: scripts take their GPU branches, and what a GPU refuses is
refused. A CUDA graph is as strict as a real one: capturing changes nothing; replaying runs those very operations on the
same memory; whatever waits for values raises. Not shown: kernels, speed, rounding, streams, the GPU's random numbers.
"""

import os
import runpy
import sys

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

ACROSS = ('copy_', '__getitem__', '__setitem__', '__set__', '_has_compatible_shallow_copy_type')  # devices may differ
READS = ('item', 'tolist', 'numpy', '__bool__', '__int__', '__float__', '__index__', '__format__', '__repr__')


def tensors_in(*values):
    """The tensors among values, and in lists and dicts; tree_leaves is slow."""
    lists = [v.values() if isinstance(v, dict) else v for v in values if isinstance(v, (tuple, list, dict))]
    return [v for v in values if isinstance(v, torch.Tensor)] + [t for v in lists for t in tensors_in(*v)]


def storage(t):
    return t.untyped_storage()._cdata


class CudaIsCpu(TorchFunctionMode):
    """What Python asks of torch: done on the CPU; results are the GPU's where 'cuda' was said or the arguments are."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name, kwargs, given = func.__name__, kwargs or {}, tensors_in(args, kwargs)
        gpu = [hasattr(t.untyped_storage(), 'on_gpu') for t in given]
        if func == torch.Tensor.device.__get__ and gpu[0]:
            return torch.device('cuda:0')  # what a script goes by
        if name in ('device', '_parse_to'):  # make a torch.device of a string
            return func(*args, **kwargs)
        said = [str(v).startswith('cuda') for v in (*args, *kwargs.values()) if isinstance(v, (str, torch.device))
                and str(v).split(':')[0] in ('cpu', 'cuda')] + [False] * (name == 'cpu')
        moved = bool(said and gpu) and said[-1] != gpu[0]
        to_gpu = said[-1] if said else any(gpu[:1] if name in ACROSS else gpu)
        mixed = {g for t, g in zip(given, gpu) if t.dim()} == {True, False}  # single numbers may lie anywhere
        if mixed and name not in ACROSS or name == 'numpy' and gpu[0]:
            raise RuntimeError(f'Expected all tensors to be on the same device: {name}')
        if CUDAGraph.capturing and (mixed or moved or name in READS and any(gpu) or name == 'tensor' and to_gpu):
            raise RuntimeError(f'CUDA error: operation not permitted when stream is capturing: {name}')

        def to_cpu(v):
            return 'cpu' if isinstance(v, (str, torch.device)) and str(v).startswith('cuda') else v
        out = func(*map(to_cpu, args), **{k: to_cpu(v) for k, v in kwargs.items()})
        if moved and torch.is_tensor(out) and storage(out) == storage(given[0]):
            out = out.clone()  # a CPU need not copy, between two devices there are two memories
        for t in tensors_in(out) if to_gpu else []:
            t.untyped_storage().on_gpu = True  # for as long as the memory lives, whoever sees it
        return out


class CUDAGraph(TorchDispatchMode):
    """Notes the operations between its __enter__ and __exit__, for replay()."""

    capturing = False  # one at a time

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given, changes, by_mask = tensors_in(args, kwargs), func._schema.is_mutable, 'index' in func.__name__
        waits = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape} & {*func.tags}
        if any(t.dtype in (torch.bool, torch.uint8) for t in tensors_in(args[1:2])) if by_mask else waits:
            raise RuntimeError(f'CUDA error: operation not permitted when stream is capturing: {func}')
        for t in given if changes else []:
            if storage(t) not in self.made and storage(t) not in self.before:
                self.before[storage(t)] = t.untyped_storage(), t.untyped_storage().clone()  # to be restored
        out, known = func(*args, **(kwargs or {})), {storage(t) for t in given}
        new = [isinstance(t, torch.Tensor) and storage(t) not in known for t in tree_leaves(out)]
        self.made |= {storage(t): t for t, is_new in zip(tree_leaves(out), new) if is_new}
        if any(new) or changes:  # the others are views
            self.operations.append((func, args, kwargs or {}, out, new))
        return out

    def __enter__(self):
        assert torch.cuda.current_stream() != 'default', 'CUDA graphs must be captured on a non-default stream'
        self.made, self.before, self.operations, self.rng = {}, {}, [], torch.get_rng_state()
        CUDAGraph.capturing = True
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)  # from here on operations are just done
        CUDAGraph.capturing = False
        torch.set_rng_state(self.rng)
        with torch.no_grad(), torch._C.DisableTorchFunction():
            for memory, value in self.before.values():
                memory.copy_(value)
            for t in self.made.values():  # nothing ran, so nothing was computed
                t.fill_(float('nan') if t.is_floating_point() else 0)

    def replay(self):
        with torch.no_grad(), torch._C.DisableTorchFunction():
            for func, args, kwargs, out, new in self.operations:
                for t, value, is_new in zip(tree_leaves(out), tree_leaves(func(*args, **kwargs)), new):
                    is_new and t.copy_(value)  # into the memory that the rest of the graph reads


def install():
    """Puts the stand-in in the place of torch.cuda, for the rest of this process."""
    cuda, Opt, autocast, load, streams = torch.cuda, torch.optim.Optimizer, torch.autocast, torch.load, ['default']
    cuda.Stream, cuda.set_stream, cuda.current_stream = object, streams.append, lambda: streams[-1]
    cuda.is_available, cuda.CUDAGraph, cuda.graph = lambda: True, CUDAGraph, lambda graph, stream: graph
    cuda.set_device, cuda.mem_get_info = lambda device: cuda._utils._get_device_index(device), lambda: (2**37, 2**37)
    cuda.synchronize = torch.accelerator.synchronize = lambda device=None: None
    torch.autocast = lambda device_type, *args, **kwargs: autocast('cpu', *args, **kwargs)  # of 'cuda'
    torch.load = lambda path, map_location, **kwargs: load(path, map_location='cpu', **kwargs)

    def check(opt):
        assert not CUDAGraph.capturing or all(g['capturable'] for g in opt.param_groups), 'Adam is not capturable'
    Opt._accelerator_graph_capture_health_check = Opt._cuda_graph_capture_health_check = check  # the name in 2.11
    Opt._group_tensors_by_device_and_dtype = staticmethod(lambda lists: {(None, None): (lists, [])})  # one device
    CudaIsCpu().__enter__()


if __name__ == '__main__':
    install()
    sys.argv, sys.path[0] = sys.argv[1:], os.path.dirname(os.path.abspath(sys.argv[1]))
    runpy.run_path(sys.argv[0], run_name='__main__')
