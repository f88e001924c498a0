"""
Trains a teacher for attention distillation: StarGAN (Choi et al. 2018), one generator for many domains, with WGAN-GP.

G translates a face x to the attributes c; D tells real from fake and reads the attributes back; translating forth and
back must return the face. Multi-label sets (CelebA: any attributes together) and single-label sets (one class each).
The generator's size is free: the paper's T is the default, S is --conv_dim=32 --n_blocks=3.

    python data/toyfaces/prepare.py && python train_teacher.py --dataset=toyfaces --max_iters=20000   # no download
    python data/celeba/prepare.py --src=... && python train_teacher.py                              # the paper's run
    python train_teacher.py --resume=True                                                # the same, gone on with
    python train_teacher.py --init_from=200000-G.ckpt,200000-D.ckpt --max_iters=0 --attrs=...   # convert

Writes out_dir/ckpt.pt (train_student.py and evaluate.py read it), log.txt, samples/ and a copy of this script.
"""

import datetime
import difflib
import functools
import json
import os
import pickle
import resource
import shutil
import sys
import time
import warnings

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from torchvision.utils import save_image

# -----------------------------------------------------------------------------
# I/O
out_dir = 'out/teacher'  # everything a run writes; a folder that already holds a ckpt.pt needs --resume=True
log_interval = 100  # iterations between log lines; reading the losses waits for the GPU, so not at every iteration
sample_interval = 5000  # iterations between sample grids
ckpt_interval = 5000  # iterations between checkpoints; what a crash can cost you
n_samples = 8  # rows of the grid: the first so many test images, always the same
resume = False  # go on from out_dir/ckpt.pt if there is one
init_from = ''  # start from a ckpt.pt with nets of the same sizes, whatever its attributes; resume goes first. Or from
#   StarGAN's own 200000-G.ckpt,200000-D.ckpt: attrs must be its, in its order, and the sizes are taken from there
# data
dataset = 'celeba'  # a folder under data/, or the path of any folder that a prepare.py wrote
image_size = 0  # pixels; 0: as the data is; smaller by a whole factor: averaged down on the fly, for quick experiments
attrs = 'Goatee,Rosy_Cheeks,Eyeglasses,Mustache,Blond_Hair,Pale_Skin,Heavy_Makeup'  # Table 1; 'all': every one there is
# generator: T is 64/6 (8.4M parameters), S 32/3 (1.2M), S-Lite 16/1 (0.16M)
conv_dim = 64  # channels of the first layer; the residual blocks have 4x as many
n_blocks = 6  # residual blocks
# discriminator
d_conv_dim = 64  # channels of the first layer; doubles in each one that follows
d_n_layers = 6  # stride-2 layers: the image size must be a multiple of 2^d_n_layers; fewer see smaller patches
# losses, eq. (4) and (5)
lambda_cls = 1.0  # attributes: higher changes faces more
lambda_rec = 10.0  # cycle reconstruction: higher keeps faces more, up to ignoring c altogether
lambda_gp = 10.0  # gradient penalty
n_critic = 5  # D steps for each G step; 1 makes the most of a short run, 5 is WGAN-GP's advice for a long one
# optimiser
max_iters = 200000  # D steps; with init_from also 0: write its ckpt.pt and stop
batch_size = 16  # images
lr = 1e-4  # constant for the first half of the run, then linear to 0; short runs want up to 1e-3
beta1 = 0.5  # Adam
beta2 = 0.999  # Adam
# system
device = ''  # 'cpu', 'cuda', 'cuda:1'; '': the GPU if there is one
dtype = 'float32'  # 'bfloat16' runs the nets under autocast; the penalty stays in float32 (GPU: cuDNN's TF32)
compile = False  # torch.compile of the steps, for long runs on a GPU: not tried there yet; on a CPU it takes minutes to
#   start, and the steps were slower by a fifth
cuda_graph = False  # each step as one CUDA graph, launched at once: for nets whose kernels are shorter than their
#   launches. Not tried on a GPU yet, but on a stand-in: first run `pytest tests/test_gpu.py` on yours
seed = 0  # on a CPU the same command with the same seed gives the same checkpoint
# -----------------------------------------------------------------------------
config_keys = [k for k, v in globals().items() if k[0] != '_' and type(v) in (bool, int, float, str)]
cast = {bool: {'True': True, 'False': False}.__getitem__, int: int, float: float, str: str}
for arg in sys.argv[1:] if __name__ == '__main__' else []:  # --key=value overrides the block above
    if arg in ('-h', '--help'):
        print(__doc__ + open(__file__).read().split('# ' + '-' * 77)[1])
        sys.exit()
    key, eq, val = arg.removeprefix('--').partition('=')
    if not arg.startswith('--') or not eq or key not in config_keys:
        close = difflib.get_close_matches(key, config_keys) or config_keys
        sys.exit(f"{arg}: not a --key=value of this script, closest: {', '.join(close)}")
    try:
        globals()[key] = cast[type(globals()[key])](val)
    except (KeyError, ValueError):
        sys.exit(f"{arg}: wants a {type(globals()[key]).__name__}, like {globals()[key]!r}")
config = {k: globals()[k] for k in config_keys}  # saved with whatever this script makes
# -----------------------------------------------------------------------------

# nets


class ResidualBlock(nn.Module):
    """x + IN(conv(ReLU(IN(conv(x))))), the channels kept: (B, dim, h, w) -> the same."""

    def __init__(self, dim):
        super().__init__()
        self.conv1 = nn.Conv2d(dim, dim, 3, padding=1, bias=False)  # no bias: the instance norm would remove it
        self.norm1 = nn.InstanceNorm2d(dim, affine=True)
        self.conv2 = nn.Conv2d(dim, dim, 3, padding=1, bias=False)
        self.norm2 = nn.InstanceNorm2d(dim, affine=True)

    def forward(self, x):
        h = F.relu(self.norm1(self.conv1(x)))
        return x + self.norm2(self.conv2(h))


class Generator(nn.Module):
    """G(x, c): image x (B, 3, H, W) in [-1, 1] and target attributes c (B, c_dim) in {0, 1} -> image like x.

    H and W are multiples of 4. Instance norm has no running statistics (StarGAN's has): eval() changes nothing.
    """

    def __init__(self, conv_dim=64, c_dim=7, n_blocks=6):
        super().__init__()
        d = conv_dim
        self.down = nn.Sequential(
            # Zero padding on purpose: instance norm removes constant planes, and the labels are constant planes. Only
            # at the border, where zeros mix in, do they survive the first norm; with reflection padding nowhere.
            nn.Conv2d(3 + c_dim, d, 7, padding=3, bias=False), nn.InstanceNorm2d(d, affine=True), nn.ReLU(),  # H
            nn.Conv2d(d, 2 * d, 4, 2, 1, bias=False), nn.InstanceNorm2d(2 * d, affine=True), nn.ReLU(),  # H/2
            nn.Conv2d(2 * d, 4 * d, 4, 2, 1, bias=False), nn.InstanceNorm2d(4 * d, affine=True), nn.ReLU())  # H/4
        self.res = nn.Sequential(*[ResidualBlock(4 * d) for _ in range(n_blocks)])  # (B, 4d, H/4, W/4)
        self.up = nn.Sequential(
            nn.ConvTranspose2d(4 * d, 2 * d, 4, 2, 1, bias=False), nn.InstanceNorm2d(2 * d, affine=True), nn.ReLU(),
            nn.ConvTranspose2d(2 * d, d, 4, 2, 1, bias=False), nn.InstanceNorm2d(d, affine=True), nn.ReLU())  # H
        self.out = nn.Sequential(nn.Conv2d(d, 3, 7, padding=3, bias=False), nn.Tanh())

    def forward(self, x, c):
        c = c[:, :, None, None].expand(-1, -1, *x.shape[2:])  # (B, c_dim) -> (B, c_dim, H, W)
        return self.out(self.up(self.res(self.down(torch.cat([x, c.to(x.dtype)], 1)))))


class Discriminator(nn.Module):
    """D(x): image (B, 3, S, S) -> out_src (B, 1, s, s), real or fake per patch, and out_cls (B, c_dim), logits.

    s = S / 2^n_layers. ValueError where S is not a multiple of 2^n_layers.
    """

    def __init__(self, image_size=128, conv_dim=64, c_dim=7, n_layers=6):
        super().__init__()
        if image_size % 2 ** n_layers or image_size < 2 ** n_layers:
            raise ValueError(f'{n_layers} layers of stride 2 need an image size that is a multiple of {2 ** n_layers}, '
                             f'not {image_size}: set --d_n_layers or --image_size')
        dims = [3] + [conv_dim * 2 ** i for i in range(n_layers)]
        self.down = nn.Sequential(*[layer for d_in, d_out in zip(dims, dims[1:])
                                    for layer in (nn.Conv2d(d_in, d_out, 4, 2, 1), nn.LeakyReLU(0.01))])
        self.src = nn.Conv2d(dims[-1], 1, 3, padding=1, bias=False)
        self.cls = nn.Conv2d(dims[-1], c_dim, image_size // 2 ** n_layers, bias=False)  # sees everything at once

    def forward(self, x):
        h = self.down(x)
        return self.src(h), self.cls(h).flatten(1)


def no_zeros(D):
    """-> D with its leaky ReLUs written out: same values and gradients, bit for bit, in fewer steps.

    Autograd has zeros for the second derivative of F.leaky_relu, and the penalty then takes them back through all of D.
    """
    for m in D.modules():
        if isinstance(m, nn.LeakyReLU):
            m.forward = lambda x, slope=m.negative_slope: torch.where(x > 0, x, slope * x)
    return D


# data


def find_data(dataset):
    """A name under data/ or a path -> (folder, its meta.json as a dict). Exits with one line where there is none."""
    for folder in (os.path.join(os.path.dirname(os.path.abspath(__file__)), 'data', dataset), dataset):
        path = os.path.join(folder, 'meta.json')
        if os.path.exists(path):
            try:
                with open(path) as f:
                    meta = json.load(f)
                needs = ['image_size', *(['domains'] if meta['label'] == 'unpaired' else ['attrs', 'exclusive'])]
                lacks = [k for k in needs if k not in meta]
            except (OSError, ValueError, LookupError, TypeError) as e:
                sys.exit(f'{path}: damaged, prepare the data again: {e}')
            if lacks:
                sys.exit(f"{path}: has no {', '.join(lacks)}: prepare the data again")
            return folder, meta
    sys.exit(f'--dataset={dataset}: no arrays there (no meta.json): a prepare.py under data/ makes them')


def load_split(folder, meta, split, names):
    """-> x (N, H, W, 3) uint8 tensor, memory-mapped from disk, and y (N, len(names)) float32 labels in {0, 1}."""
    unknown = [name for name in names if name not in meta['attrs']]
    if unknown or not names:
        hint = sum((difflib.get_close_matches(name, meta['attrs']) for name in unknown), []) or meta['attrs']
        sys.exit(f"--attrs: {', '.join(unknown) or 'none given'}: not in {folder}; did you mean {', '.join(hint)}?")
    if len(set(names)) < len(names):
        sys.exit(f"--attrs={','.join(names)}: names one of them twice")
    try:  # mmap_mode 'c' (copy on write) reads like 'r', but torch accepts it without a warning
        x = torch.from_numpy(np.load(os.path.join(folder, f'{split}_x.npy'), mmap_mode='c'))
        y = np.load(os.path.join(folder, f'{split}_y.npy'))[:, [meta['attrs'].index(name) for name in names]]
    except (OSError, ValueError, LookupError, TypeError) as e:
        sys.exit(f'{folder}: cannot read the {split} arrays, prepare the data again: {e}')
    size = meta['image_size']
    if x.dtype != torch.uint8 or x.shape[1:] != (size, size, 3):
        sys.exit(f'{folder}: the {split} images are {x.dtype} {tuple(x.shape)}, wanted uint8 (N, {size}, {size}, 3): '
                 'prepare the data again')
    if len(x) != len(y) or not len(x):
        sys.exit(f'{folder}: {len(x)} {split} images but {len(y)} rows of labels: prepare the data again')
    return x, torch.from_numpy(y).float()


def to_float(x, size):
    """(B, H, W, 3) uint8 -> (B, 3, size, size) float32 in [-1, 1], averaged down by H // size."""
    x = x.permute(0, 3, 1, 2).contiguous().float()  # laid out anew: D's convolutions are slower on an (H, W, 3)
    return F.avg_pool2d(x, x.shape[2] // size) / 127.5 - 1


def get_batch(x, y, i, size, device):
    """Rows i of the data: images (B, 3, size, size) in [-1, 1], flipped with probability 1/2, and labels (B, c_dim)."""
    flip = torch.rand(len(i)) < 0.5
    x = x[i.to(x.device, non_blocking=True)]
    if x.device.type != torch.device(device).type:
        x = x.pin_memory()  # else the copy would wait for the GPU
    x, y, flip = (t.to(device, non_blocking=True) for t in (x, y[i], flip))
    x = to_float(x, size)
    return torch.where(flip[:, None, None, None], x.flip(3), x), y


def set_attr(c_org, i, exclusive):
    """Labels (B, c_dim) with attribute i on and the others of its exclusive groups (lists of columns) off."""
    c = c_org.clone()
    for group in exclusive:
        if i in group:
            c[:, group] = 0
    c[:, i] = 1
    return c


@torch.no_grad()
def label_effect(G, x, c, multi_label):
    """Mean |G(x, c) - G(x, c')|, c' the opposite of labels c (B, c_dim), or in single-label sets the next class.

    About 0 where G ignores its label: the reconstruction is then perfect, and nothing is translated.
    """
    return (G(x, c) - G(x, 1 - c if multi_label else c.roll(1, 1))).abs().mean().item()


# losses


def gradient_penalty(D, x_real, x_fake, alpha):
    """WGAN-GP: E[(|d out_src / d x_hat| - 1)^2] at x_hat = alpha x_real + (1 - alpha) x_fake; alpha: (B, 1, 1, 1)."""
    x_hat = (alpha * x_real + (1 - alpha) * x_fake).detach()
    grad = torch.func.grad(lambda x: D(x)[0].sum())(x_hat)  # as autograd.grad, and torch.compile can trace it
    return ((grad.flatten(1).norm(dim=1) - 1) ** 2).mean()  # .norm(): sqrt(sum g^2) has a NaN gradient at g = 0


def cls_loss(out_cls, c, multi_label):
    """L_cls of logits and labels c, both (B, c_dim): binary cross entropy summed over attributes, or softmax's."""
    if multi_label:
        return F.binary_cross_entropy_with_logits(out_cls, c, reduction='sum') / len(c)
    return F.cross_entropy(out_cls, c)  # c is one-hot, that is, the probabilities


def losses_of_D(D, x_real, x_fake, c_org, alpha, multi_label, bf16):
    """The terms of eq. (4): real, fake, cls, gp. Images (B, 3, S, S), labels (B, c_dim); alpha as in gradient_penalty.

    bf16: D runs in bfloat16, but in the penalty, the norm of whose gradient would change by 0.3 %.
    """
    with torch.autocast(x_real.device.type, torch.bfloat16, enabled=bf16):
        out_src, out_cls = D(torch.cat([x_real, x_fake]))  # no norm in D: images do not mix
    src_real, src_fake = out_src.float().chunk(2)
    loss_cls = cls_loss(out_cls[:len(x_real)].float(), c_org, multi_label)
    return -src_real.mean(), src_fake.mean(), loss_cls, gradient_penalty(D, x_real, x_fake.float(), alpha)


def losses_of_G(G, D, x_real, x_fake, c_org, c_trg, multi_label, bf16):
    """The terms of eq. (5) for x_fake = G(x_real, c_trg): fake, rec, cls."""
    with torch.autocast(x_real.device.type, torch.bfloat16, enabled=bf16):
        out_src, out_cls = D(x_fake)
        x_rec = G(x_fake, c_org)
    loss_cls = cls_loss(out_cls.float(), c_trg, multi_label)
    return -out_src.float().mean(), (x_real - x_rec).abs().mean(), loss_cls


# speed


class Graphed:
    """step(*tensors), from its third call on, as a CUDA graph: one launch for all its kernels, and no Python between.

    The first two calls warm up, as the documentation of CUDA graphs asks: what they set up must not be captured. What
    the step returns is overwritten by the next call. Whatever else it reads, such as weights, is read where it lay when
    captured; Python numbers stay as they were then. Set calls = 0 to have it captured anew.
    """

    def __init__(self, step):
        self.step, self.calls, self.stream = step, 0, torch.cuda.Stream()

    def __call__(self, *tensors):
        self.calls += 1
        if self.calls < 3:
            self.stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self.stream):
                out = self.step(*tensors)
            torch.cuda.current_stream().wait_stream(self.stream)
            return out
        if self.calls == 3:
            self.graph, self.inputs = torch.cuda.CUDAGraph(), [t.clone() for t in tensors]
            with torch.cuda.graph(self.graph, stream=self.stream):  # notes what is launched, runs nothing
                self.out = self.step(*self.inputs)
        for mine, t in zip(self.inputs, tensors):
            mine.copy_(t)
        self.graph.replay()
        return self.out


# checkpoints


def save_ckpt(path, ckpt):
    """Writes `ckpt` whole or not at all: into a temporary file of the same folder, synced, then moved over `path`.

    Exits with one line where it cannot, as on a full disk; what `path` held stays.
    """
    try:
        with open(path + '.tmp', 'wb') as f:
            torch.save(ckpt, f)
            f.flush()
            os.fsync(f.fileno())
        os.replace(path + '.tmp', path)
    except (OSError, RuntimeError) as e:  # what torch's writer makes of the first
        if os.path.exists(path + '.tmp'):
            os.remove(path + '.tmp')
        sys.exit(f"{path}: cannot write it, disk full? An earlier one stays: {str(e.__context__ or e).splitlines()[0]}")


def load_ckpt(path, *kinds):
    """A checkpoint as a dict of tensors and plain Python values, on the CPU. Exits with one line if it is none."""
    try:
        with warnings.catch_warnings(action='ignore'):  # torch's remarks on a pickle that it then refuses
            ckpt = torch.load(path, map_location='cpu', weights_only=True)  # refuses a pickle that would run code
    except (FileNotFoundError, IsADirectoryError, PermissionError) as e:
        sys.exit(f'{path}: no checkpoint can be read there: {e.strerror}')
    except pickle.UnpicklingError:  # torch's text would tell how to run that code
        sys.exit(f'{path}: not a checkpoint, or a damaged one: it holds more than tensors and plain values')
    except (OSError, RuntimeError, EOFError, ValueError, KeyError) as e:
        why = (str(e) or type(e).__name__).splitlines()[0].partition('. ')[0]
        sys.exit(f'{path}: not a checkpoint, or a damaged one: {why}')
    if not isinstance(ckpt, dict) or ckpt.get('kind') not in kinds:
        sys.exit(f"{path}: no {' or '.join(kinds)} checkpoint of these scripts")
    return ckpt


def load_official(paths, names):
    """yunjey/stargan's 'N-G.ckpt,N-D.ckpt' -> dict of G, D, attrs, g_args, d_args as in a checkpoint of these scripts.

    Its nets are the ones above under other names: without the running statistics of its instance norms, never used as
    it stays in train mode, they are the same tensors in the same order. Exits with one line where they are not.
    """
    try:
        g, d = [[w for k, w in torch.load(path, map_location='cpu', weights_only=True).items()
                 if 'running_' not in k and 'num_batches' not in k] for path in paths.split(',')]
        n_layers = len(d) // 2 - 1  # weight and bias each, and two heads; G: 16 tensors and 6 a block
        g_args = dict(conv_dim=len(g[0]), c_dim=g[0].shape[1] - 3, n_blocks=len(g) // 6 - 2)
        image_size = d[-1].shape[-1] * 2 ** n_layers
        d_args = dict(image_size=image_size, conv_dim=len(d[0]), c_dim=len(d[-1]), n_layers=n_layers)
        with torch.device('meta'):  # no memory yet
            G, D = Generator(**g_args), Discriminator(**d_args)
        for net, weights in ((G, g), (D, d)):
            net.load_state_dict(dict(zip(net.state_dict(), weights, strict=True)), assign=True)
    except (OSError, RuntimeError, EOFError, ValueError, LookupError, AttributeError, TypeError,
            pickle.UnpicklingError) as e:
        why = (str(e) or repr(e)).splitlines()[0]
        if isinstance(e, pickle.UnpicklingError):  # torch's text would tell how to run the code in it
            why = 'more than tensors and plain values in it'
        sys.exit(f"--init_from={paths}: not StarGAN's G and D, in this order: {why}")
    if not g_args['c_dim'] == d_args['c_dim'] == len(names):
        sys.exit(f"--init_from={paths}: G has {g_args['c_dim']} attributes, D {d_args['c_dim']}, --attrs {len(names)}: "
                 f"{','.join(names)}. Name theirs, in the order they were trained on")
    return dict(G=G.state_dict(), D=D.state_dict(), attrs=names, g_args=g_args, d_args=d_args)


def warm_start(G, D, ckpt, names):
    """Copies the weights of checkpoint `ckpt` into G and D, which work on attributes `names` -> a line for the log.

    An attribute's own weights, its plane in G's first convolution and its row in D's class head, are copied by name;
    they stay as they are where the checkpoint has no such attribute, rows also where it is for another image size.
    Exits with one line where the nets have other sizes.
    """
    new, old = ({f'{net}.{k}': v for net in 'GD' for k, v in nets[net].items()}
                for nets in (dict(G=G.state_dict(), D=D.state_dict()), ckpt))
    planes, head = 'G.down.0.weight', 'D.cls.weight'
    shapes = [{k: v.shape for k, v in weights.items() if k not in (planes, head)} for weights in (new, old)]
    if shapes[0] != shapes[1]:
        sys.exit(f"--init_from: nets of other sizes, G {ckpt['g_args']}, D {ckpt['d_args']}: give these sizes by flags")
    for k in shapes[0]:
        new[k].copy_(old[k])
    shared = [name for name in names if name in ckpt['attrs']]
    to, of = ([own.index(name) for name in shared] for own in (names, ckpt['attrs']))
    dst, src = ([0, 1, 2] + [3 + i for i in own] for own in (to, of))  # behind red, green and blue
    new[planes][:, dst] = old[planes][:, src].to(new[planes])
    rows = shared if new[head].shape[1:] == old[head].shape[1:] else []
    if rows:
        new[head][to] = old[head][of].to(new[head])
    left = [', '.join(name for name in names if name not in copied) or 'none' for copied in (shared, rows)]
    return (f"copied whole: {len(shapes[0])} tensors; in part: {planes} ({', '.join(['red, green, blue'] + shared)}), "
            f"{head} ({', '.join(rows) or 'none'}); left new: their {left[0]} and {left[1]}")


if __name__ == '__main__':
    # set-up
    data_dir, meta = find_data(dataset)
    if meta['label'] == 'unpaired':
        sys.exit(f'--dataset={dataset}: two domains without labels: train_uag.py is for these')
    names = meta['attrs'] if attrs == 'all' else [name for name in attrs.split(',') if name]
    c_dim, multi_label = len(names), meta['label'] == 'multi'
    exclusive = [[names.index(n) for n in group if n in names] for group in meta['exclusive']]
    exclusive = exclusive if multi_label else [list(range(c_dim))]
    if not multi_label and c_dim == 1:
        sys.exit(f'--attrs={attrs}: one class of {data_dir}, nothing to translate to: name more')
    init = load_ckpt(init_from, 'stargan') if init_from and ',' not in init_from else None
    if ',' in init_from:
        init = load_official(init_from, names)
        conv_dim, _, n_blocks = init['g_args'].values()
        image_size, d_conv_dim, _, d_n_layers = init['d_args'].values()
    image_size = image_size or meta['image_size']
    if meta['image_size'] % image_size or image_size % 4 or image_size < 8:
        sys.exit(f"--image_size={image_size}: no multiple of 4 that divides the {meta['image_size']} px of {data_dir}")
    above = (*(() if init_from else ('max_iters',)), 'batch_size', 'n_critic', 'lr', 'conv_dim', 'n_blocks',
             'd_conv_dim', 'd_n_layers', 'n_samples', 'log_interval', 'sample_interval', 'ckpt_interval')
    wrong = [f'--{k}={globals()[k]}: must be a number above 0' for k in above if not 0 < globals()[k] < np.inf]
    wrong += [f'--{k}={globals()[k]}: must be 0 or a number above 0' for k in
              ('max_iters', 'lambda_cls', 'lambda_rec', 'lambda_gp') if not 0 <= globals()[k] < np.inf]
    wrong += [f'--{k}={globals()[k]}: must be from 0 to below 1' for k in ('beta1', 'beta2')
              if not 0 <= globals()[k] < 1]
    wrong += [] if dtype in ('float32', 'bfloat16') else [f'--dtype={dtype}: float32 or bfloat16']
    if wrong:
        sys.exit('; '.join(wrong))
    device = device or ('cuda' if torch.cuda.is_available() else 'cpu')
    device_type = device.split(':')[0]
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as e:
        sys.exit(f'--device={device}: {str(e).splitlines()[0]}')
    if cuda_graph:
        if device_type != 'cuda':
            sys.exit(f'--cuda_graph=True: wants a GPU, not --device={device}')
        torch.cuda.set_device(torch.zeros(1, device=device).device)  # streams and graphs are the current device's
        torch.backends.cudnn.benchmark = True  # sizes stay the same: cuDNN may try its algorithms and take the fastest
        warnings.filterwarnings('ignore', '.*capturable=True')  # Adam, about the first two steps, which are no graphs
    torch.manual_seed(seed)
    train_x, train_y = load_split(data_dir, meta, 'train', names)
    # single-label: where only some classes are asked for, images of the others are left out
    rows = torch.arange(len(train_x)) if multi_label else train_y.sum(1).nonzero().flatten()
    test_x, test_y = (t[:n_samples] for t in load_split(data_dir, meta, 'test', names))
    x_fixed, c_fixed = to_float(test_x, image_size).to(device), test_y.to(device)  # the grid's images
    if device_type == 'cuda' and train_x.nbytes < torch.cuda.mem_get_info(device)[0] / 2:
        train_x = train_x.to(device)  # fits: no copying while training

    g_args = dict(conv_dim=conv_dim, c_dim=c_dim, n_blocks=n_blocks)
    d_args = dict(image_size=image_size, conv_dim=d_conv_dim, c_dim=c_dim, n_layers=d_n_layers)
    try:
        G, D = Generator(**g_args).to(device), no_zeros(Discriminator(**d_args).to(device))
    except ValueError as e:
        sys.exit(str(e))
    # fused: one kernel for all weights
    opt_G, opt_D = (torch.optim.Adam(net.parameters(), lr, (beta1, beta2), fused=True, capturable=cuda_graph)
                    for net in (G, D))
    lr_now = torch.tensor(lr, device=device)  # where a CUDA graph looks it up
    bf16 = dtype == 'bfloat16'
    autocast = torch.autocast(device_type, torch.bfloat16, enabled=bf16)
    G_fast = G
    if compile:
        G_fast, losses_of_D, losses_of_G = map(torch.compile, (G, losses_of_D, losses_of_G))

    ckpt_path, start = os.path.join(out_dir, 'ckpt.pt'), 0
    resumed = os.path.exists(ckpt_path)
    if resumed:
        if not resume:
            sys.exit(f'{ckpt_path} exists: --resume=True to go on with it, or another --out_dir')
        ckpt = load_ckpt(ckpt_path, 'stargan')
        if (ckpt['g_args'], ckpt['d_args'], ckpt['attrs']) != (g_args, d_args, names):
            sys.exit(f"{ckpt_path} has other nets or attributes: {ckpt['g_args']}, {ckpt['d_args']}, {ckpt['attrs']}")
        if ckpt['script'] != os.path.basename(__file__):
            sys.exit(f"{ckpt_path} was made by {ckpt['script']}")
        for name, obj in (('G', G), ('D', D), ('opt_G', opt_G), ('opt_D', opt_D)):
            if name.startswith('opt'):
                ckpt[name]['param_groups'][0].update(fused=True, capturable=cuda_graph)  # which may differ from then
            obj.load_state_dict(ckpt[name])
        torch.set_rng_state(ckpt['rng'])
        if device_type == 'cuda' and ckpt['rng_cuda'] is not None:
            torch.cuda.set_rng_state(ckpt['rng_cuda'], device)
        start = ckpt['iter']
    elif init:
        copied = warm_start(G, D, init, names)
    config = {k: globals()[k] for k in config_keys}  # what was left open is settled by now
    with open(__file__) as f:
        source = f.read()
    if resumed and start >= max_iters:
        print(f'{ckpt_path}: already at iteration {start}, nothing to do')
        sys.exit()
    try:
        os.makedirs(os.path.join(out_dir, 'samples'), exist_ok=True)
        shutil.copy(__file__, out_dir)
        log_file = open(os.path.join(out_dir, 'log.txt'), 'a')
    except OSError as e:
        sys.exit(f'--out_dir={out_dir}: cannot write there: {e.strerror or e}')

    def log(line):
        print(line, flush=True)
        print(line, file=log_file, flush=True)

    n_params = [sum(p.numel() for p in net.parameters()) for net in (G, D)]
    log(f'G {n_params[0]:,} and D {n_params[1]:,} parameters on {device}')
    log(f'{len(rows):,} training images of {data_dir} at {image_size} px')
    log(f"columns of the grids: input, {', '.join(names)}")
    log(f'iteration {start} of {max_iters}')
    if resumed:
        changed = [f'{k}={v!r} was {ckpt["config"].get(k)!r}' for k, v in config.items() if v != ckpt['config'].get(k)]
        changed += ['the script itself'] if ckpt['source'] != source else []
        changed += [f'--init_from is not used, {ckpt_path} goes on'] if init_from else []
        log(f"resumed; changed: {', '.join(changed) or 'nothing'}")
    elif init:
        log(f"started from {init_from}: G {init['g_args']}, D {init['d_args']}; {copied}")

    def save(n):
        save_ckpt(ckpt_path, dict(
            kind='stargan', G=G.state_dict(), D=D.state_dict(), opt_G=opt_G.state_dict(),
            opt_D=opt_D.state_dict(), iter=n, rng=torch.get_rng_state(),
            rng_cuda=torch.cuda.get_rng_state(device) if device_type == 'cuda' else None,
            g_args=g_args, d_args=d_args, attrs=names, exclusive=exclusive, config=config,
            script=os.path.basename(__file__), source=source))

    if not max_iters:
        save(0)

    loss_names = ['D real', 'D fake', 'D cls', 'D gp', 'G fake', 'G rec', 'G cls']
    loss_sum, n_g, last_log = torch.zeros(len(loss_names), device=device), 0, start

    def step(train_G, x_real, c_org, c_trg):
        """Phases 2 and 3 of an iteration, the second where train_G says so; adds to loss_sum. Never waits for a GPU."""
        # 2. discriminator, eq. (4): E[D(x_fake)] - E[D(x_real)] + lambda_gp GP + lambda_cls L_cls(x_real)
        with autocast, torch.set_grad_enabled(train_G):  # G stays as it is until step 3, which uses the same images
            x_fake = G_fast(x_real, c_trg)
        alpha = torch.rand(batch_size, 1, 1, 1, device=device)
        d_loss_real, d_loss_fake, d_loss_cls, d_loss_gp = losses_of_D(
            D, x_real, x_fake.detach(), c_org, alpha, multi_label, bf16)
        d_loss = d_loss_real + d_loss_fake + lambda_cls * d_loss_cls + lambda_gp * d_loss_gp
        opt_D.zero_grad()
        d_loss.backward()
        opt_D.step()
        loss_sum[:4] += torch.stack([d_loss_real, d_loss_fake, d_loss_cls, d_loss_gp]).detach()

        # 3. generator, eq. (5): -E[D(x_fake)] + lambda_cls L_cls(x_fake) + lambda_rec |x_real - G(x_fake, c_org)|_1
        if train_G:
            D.requires_grad_(False)  # the gradient passes through D to G; D's own would go unused
            g_loss_fake, g_loss_rec, g_loss_cls = losses_of_G(
                G, D, x_real, x_fake, c_org, c_trg, multi_label, bf16)
            g_loss = g_loss_fake + lambda_rec * g_loss_rec + lambda_cls * g_loss_cls
            opt_G.zero_grad()
            g_loss.backward()
            opt_G.step()
            D.requires_grad_(True)
            g_losses = [g_loss_fake, g_loss_rec, g_loss_cls]
            loss_sum[4:] += torch.stack(g_losses).detach()

    step_D, step_DG = functools.partial(step, False), functools.partial(step, True)
    if cuda_graph:
        step_D, step_DG = Graphed(step_D), Graphed(step_DG)

    t_start, t_data, t_aside = time.time(), 0.0, 0.0  # seconds waiting for data; spent on grids and checkpoints
    for it in range(start, max_iters):
        now = lr * min(1, 2 * (1 - it / max_iters))
        if cuda_graph:
            now = lr_now.fill_(now)
        for opt in (opt_G, opt_D):
            opt.param_groups[0].update(lr=now, betas=(beta1, beta2))

        # 1. data: real images with their labels; the target labels are the same ones, dealt anew
        t0 = time.time()
        i = rows[torch.randint(len(rows), (batch_size,))]
        x_real, c_org = get_batch(train_x, train_y, i, image_size, device)
        c_trg = c_org[torch.randperm(batch_size).to(device, non_blocking=True)]
        t_data += time.time() - t0

        # 2. discriminator and, once in n_critic iterations, 3. generator: both in step()
        train_G = (it + 1) % n_critic == 0
        (step_DG if train_G else step_D)(x_real, c_org, c_trg)
        n_g += train_G

        # 4. log line, samples, checkpoint
        n, last = it + 1, it + 1 == max_iters
        if n % log_interval == 0 or n % ckpt_interval == 0 or last:
            # a NaN anywhere since the last look is still in the sums: none can slip past into a checkpoint
            count = torch.tensor([n - last_log] * 4 + [max(n_g, 1)] * (len(loss_names) - 4), device=device)
            means = (loss_sum / count).tolist()
            bad = [f'the loss {name}' for name, mean in zip(loss_names, means) if not np.isfinite(mean)]
            bad += [f'a weight of {name}' for name, net in (('G', G), ('D', D))
                    if not all(p.isfinite().all() for p in net.parameters())]
            if bad:
                line = f'iter {n}: not finite: {", ".join(bad)}; {ckpt_path}, if any, is the last good state'
                print(line, file=log_file, flush=True)
                sys.exit(line)
            t_train = time.time() - t_start - t_aside
            rate, eta = (n - start) / t_train, datetime.timedelta(seconds=int((max_iters - n) / (n - start) * t_train))
            gb = (torch.cuda.max_memory_reserved(device) if device_type == 'cuda' else  # with what graphs keep
                  resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024) / 2 ** 30
            show = ' | '.join(net + ' ' + ' '.join(f'{name[2:]} {mean:8.3g}' for name, mean in zip(loss_names, means)
                                                   if name[0] == net) for net in ('DG' if n_g else 'D'))
            log(f'iter {n:6d}/{max_iters} | {show} | {rate:.2f} it/s | data {t_data / t_train:.0%} | eta {eta} | '
                f'{gb:.1f} GB')
            loss_sum.zero_()
            n_g, last_log = 0, n
        t0 = time.time()
        if n % sample_interval == 0 or last:
            with torch.no_grad(), autocast:
                columns = [x_fixed] + [G(x_fixed, set_attr(c_fixed, i, exclusive)).float() for i in range(c_dim)]
            grid = torch.stack(columns, 1).flatten(0, 1)  # row = image, columns = input and each attribute switched on
            save_image(grid / 2 + 0.5, os.path.join(out_dir, 'samples', f'{n:06d}.png'), nrow=1 + c_dim)
            effect = label_effect(G, x_fixed, set_attr(c_fixed, 0, exclusive), multi_label)
            log(f"iter {n:6d}/{max_iters} | mean |G(x, c) - G(x, c')| = {effect:.4f}")
            if effect < 0.01 and n > 0.1 * max_iters:
                log(f"warning: the translations hardly depend on the label: mean |G(x, c) - G(x, c')| = {effect:.4f}; "
                    f"lower --lambda_rec or raise --lambda_cls")
        if n % ckpt_interval == 0 or last:
            save(n)
        t_aside += time.time() - t0
