"""
Trains a small student generator with attention distillation (Li, Fontanini et al.): a StarGAN like train_teacher.py,
whose G is also asked to look where the teacher's looks, by the Grad-CAM map of the last residual block.

    A^c = ReLU(sum_k alpha_k F_k), alpha_k = GAP(dy^c / dF_k)           eq. (1), (2): gradcam.py
    L_att = E_{x,c} || A_T^c(x) - A_S^c(x) ||                           eq. (3): att_loss
    L_G = L_adv + lambda_cls L_cls + lambda_rec L_rec + lambda_att L_att     eq. (5)
    L_att with A^{c_pse} for A^c: "pseudo"-attention of a teacher of other attributes    eq. (6), (7): --pseudo

Both maps explain the class score y^c of the *teacher's* discriminator (Fig. 3). Data, attributes and the size of D are
the teacher's unless given.

    python train_student.py --teacher=out/teacher/ckpt.pt --lambda_att=10                     # S with attention loss
    python train_student.py --teacher=out/teacher/ckpt.pt --lambda_att=0 --out_dir=out/s0     # S without
    python train_student.py --teacher=out/teacher/ckpt.pt --conv_dim=16 --n_blocks=1 --out_dir=out/slite    # S-Lite
    python train_student.py --teacher=out/hair/ckpt.pt --attrs=Brown_Hair,Gray_Hair,Bald,Straight_Hair \
        --pseudo=Black_Hair,Blond_Hair,Wearing_Hat,Wavy_Hair --out_dir=out/pseudo              # Table 3

Writes out_dir/ckpt.pt (evaluate.py reads it), log.txt, samples/ and a copy of this script.
"""

import ast
import datetime
import difflib
import functools
import importlib.util
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

from gradcam import GradCAM

# -----------------------------------------------------------------------------
# I/O
out_dir = 'out/student'  # everything a run writes; a folder that already holds a ckpt.pt needs --resume=True
log_interval = 100  # iterations between log lines; reading the losses waits for the GPU, so not at every iteration
sample_interval = 5000  # iterations between sample grids
ckpt_interval = 5000  # iterations between checkpoints; what a crash can cost you
n_samples = 8  # rows of the grid: the first so many test images, always the same
resume = False  # go on from out_dir/ckpt.pt if there is one
init_from = ''  # start from a ckpt.pt with nets of the same sizes, whatever its attributes; resume goes first
# teacher
teacher = ''  # its ckpt.pt
teacher_script = ''  # the script that made it, if that is no longer in this folder under its old name
# data
dataset = ''  # '': the teacher's; else a folder under data/, or the path of any folder that a prepare.py wrote
attrs = ''  # '': the teacher's; else the same ones in any order, or others if pseudo is set or lambda_att is 0
pseudo = ''  # eq. (6)-(7): for each of attrs the teacher's that changes the same region, each once. The paper's: attrs
#   Brown_Hair,Gray_Hair,Bald,Straight_Hair, pseudo Black_Hair,Blond_Hair,Wearing_Hat,Wavy_Hair. '': attrs themselves
# generator: T is 64/6 (8.4M parameters), S 32/3 (1.2M), S-Lite 16/1 (0.16M)
conv_dim = 32  # channels of the first layer; the residual blocks have 4x as many
n_blocks = 3  # residual blocks
# discriminator
d_conv_dim = 0  # channels of the first layer; doubles in each one that follows; 0: as the teacher's
d_n_layers = 0  # stride-2 layers: the image size must be a multiple of 2^d_n_layers; 0: as the teacher's
# losses, eq. (4) and (5)
lambda_cls = 1.0  # attributes: higher changes faces more
lambda_rec = 10.0  # cycle reconstruction: higher keeps faces more, up to ignoring c altogether
lambda_gp = 10.0  # gradient penalty
lambda_att = 10.0  # attention, eq. (5); 0 is the paper's "S w/o att loss", and costs what it costs without a teacher
cam = 'gradcam'  # eq. (1)-(2); 'hirescam' does not pool the gradient: sharper maps
att_norm = 'l2'  # L_att on maps each divided by its 'l2' norm or its 'max', or 'none': README, Results, says why l2
hook_block = -1  # which residual block has the maps, in G and the teacher alike: -1 the last (the paper's), 0 the first
att_control = ''  # 'shuffle' deals each image another one's teacher map: a control, which should not help the student
n_critic = 5  # D steps for each G step; 1 makes the most of a short run, 5 is WGAN-GP's advice for a long one
# optimiser
max_iters = 200000  # D steps; with init_from also 0: write its ckpt.pt and stop
batch_size = 16  # images
lr = 1e-4  # constant for the first half of the run, then linear to 0; short runs want up to 1e-3
beta1 = 0.5  # Adam
beta2 = 0.999  # Adam
# system
device = ''  # 'cpu', 'cuda', 'cuda:1'; '': the GPU if there is one
dtype = 'float32'  # 'bfloat16' runs the nets under autocast; penalty and D_teacher stay in float32 (GPU: cuDNN's TF32)
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


def pick_class(c):
    """One of each image's target classes at random: c (B, c_dim) -> index (B, 1), and (B,) 1., or 0. if it has none."""
    return (torch.rand_like(c) * c).argmax(1, keepdim=True), c.amax(1)


def to_teacher(c, cols, n):
    """c (B, c_dim) -> c_pse (B, n), the teacher's n attributes: attribute k at column cols[k], 0 where none is."""
    c_pse = c.new_zeros(len(c), n)
    c_pse[:, cols] = c
    return c_pse


def att_loss(cam_teacher, cam_student, has_class, att_norm):
    """L_att, eq. (3): mean over images of || A_T - A_S ||_2, 0 for images with no target class; maps (B, h, w) >= 0.

    The paper names no norm; L2 is taken. att_norm='l2' compares maps of unit length (Dhar et al. 2019), 'max' maps of
    maximum 1, 'none' maps as they are. An all-zero map stays zero.
    """
    def normed(A):
        A = A.flatten(1)
        if att_norm == 'none':
            return A
        scale = A.norm(dim=1, keepdim=True) if att_norm == 'l2' else A.amax(1, keepdim=True)
        return A / scale.clamp_min(1e-12)
    return ((normed(cam_teacher) - normed(cam_student)).norm(dim=1) * has_class).mean()


def losses_of_maps(G_teacher, D_teacher, hooks, x_real, x_fake, c_pse, k, has_class, att_norm, att_control, bf16):
    """L_att and the shares of all-zero maps, the teacher's and the student's, for the score of class k (B, 1).

    hooks: GradCAM of G_teacher and of G, which has just made x_fake, with its graph; c_pse: the teacher's labels.
    """
    hook_teacher, hook_student = hooks
    cam_student = hook_student(D_teacher(x_fake.float())[1].gather(1, k), create_graph=True)
    with torch.autocast(x_real.device.type, torch.bfloat16, enabled=bf16):
        x_teacher = G_teacher(x_real, c_pse)
    cam_teacher = hook_teacher(D_teacher(x_teacher.float())[1].gather(1, k))
    if att_control == 'shuffle':
        cam_teacher = cam_teacher.roll(1, 0)
    dead = [(A.amax((1, 2)) == 0).float().mean() for A in (cam_teacher, cam_student)]
    return att_loss(cam_teacher, cam_student, has_class, att_norm), *dead


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


def load_script(ckpt, path='', flag='--script'):
    """Imports the script that made `ckpt`, for its nets: from `path`, else by its bare file name from this folder.

    The text of the script inside the checkpoint is never run, only compared with the file's. Exits with one line where
    a class differs (by syntax tree; comments and docstrings do not count) or there is no such file; `flag` sets `path`.
    """
    name = str(ckpt['script'])
    if not path and (os.path.basename(name) != name or not name.endswith('.py')):
        sys.exit(f'the checkpoint was made by {name!r}, no bare file name: give the script with {flag}=')
    path, classes = path or os.path.join(os.path.dirname(os.path.abspath(__file__)), name), []
    try:
        with open(path) as f:
            trees = [ast.parse(text) for text in (ckpt['source'], f.read())]
    except (OSError, SyntaxError, UnicodeDecodeError) as e:
        sys.exit(f'{path}, the script that made the checkpoint: {e}. If it lies elsewhere: {flag}=')
    for tree in trees:
        for node in ast.walk(tree):
            if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node) is not None:
                node.body = node.body[1:]
        classes.append({node.name: ast.dump(node) for node in tree.body if isinstance(node, ast.ClassDef)})
    then, now = classes
    differ = [name for name in then | {'Generator': '', 'Discriminator': ''} if then.get(name) != now.get(name)]
    if differ:
        sys.exit(f"{path} has changed since it made the checkpoint: {', '.join(differ)}. "
                 f"Use the script as it was ({flag}=; the checkpoint's folder keeps a copy), or train again")
    spec = importlib.util.spec_from_file_location(os.path.splitext(os.path.basename(path))[0], path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def overlay(x, A):
    """Maps A (B, h, w), each shown on the scale of its own maximum, over greyed images x (B, 3, H, W) in [-1, 1]."""
    A = F.interpolate(A[:, None], x.shape[2:], mode='bilinear')[:, 0]
    A = A / A.amax((1, 2), keepdim=True).clamp_min(1e-12)
    # inferno: its lightness rises steadily, so the map reads in greyscale and with colour blindness too
    stops = torch.tensor([[0, 0, 4], [87, 16, 110], [188, 55, 84], [249, 142, 9], [252, 255, 164]], device=x.device)
    low = (A * 4).long().clamp(max=3)
    heat = torch.lerp(stops[low] / 127.5 - 1, stops[low + 1] / 127.5 - 1, (A * 4 - low)[..., None]).permute(0, 3, 1, 2)
    return 0.4 * x.mean(1, keepdim=True) + 0.6 * heat


if __name__ == '__main__':
    # set-up; what is left open is as the teacher has it
    if not teacher:
        sys.exit('--teacher= the ckpt.pt of a trained teacher (train_teacher.py makes one)')
    if cam not in ('gradcam', 'hirescam') or att_norm not in ('none', 'l2', 'max'):
        sys.exit(f'--cam={cam}: gradcam or hirescam; --att_norm={att_norm}: none, l2 or max')
    if att_control not in ('', 'shuffle') or att_control and batch_size < 2:
        sys.exit(f"--att_control={att_control}: '', or shuffle with a batch_size of 2 or more")
    t_ckpt = load_ckpt(teacher, 'stargan')
    t_script = load_script(t_ckpt, teacher_script, '--teacher_script')
    dataset, attrs = dataset or t_ckpt['config']['dataset'], attrs or ','.join(t_ckpt['attrs'])
    image_size = t_ckpt['d_args']['image_size']
    d_conv_dim, d_n_layers = d_conv_dim or t_ckpt['d_args']['conv_dim'], d_n_layers or t_ckpt['d_args']['n_layers']
    data_dir, meta = find_data(dataset)
    if meta['label'] == 'unpaired':
        sys.exit(f'--dataset={dataset}: two domains without labels: train_uag.py is for these')
    names = meta['attrs'] if attrs == 'all' else [name for name in attrs.split(',') if name]
    c_dim, multi_label = len(names), meta['label'] == 'multi'
    exclusive = [[names.index(n) for n in group if n in names] for group in meta['exclusive']]
    exclusive = exclusive if multi_label else [list(range(c_dim))]
    if not multi_label and c_dim == 1:
        sys.exit(f'--attrs={attrs}: one class of {data_dir}, nothing to translate to: name more')
    if meta['image_size'] % image_size or image_size % 4 or image_size < 8:
        sys.exit(f"{teacher} works at {image_size} px, which does not divide the {meta['image_size']} px of {data_dir}")
    init = load_ckpt(init_from, 'stargan') if init_from else None
    t_attrs, c_pse = t_ckpt['attrs'], pseudo.split(',') if pseudo else names
    scored = (len(c_pse) == len(names) == len(set(c_pse)) and set(c_pse) <= set(t_attrs)
              and (pseudo != '' or len(names) == len(t_attrs)))  # the teacher has a score for every attribute
    if not scored and (pseudo or lambda_att > 0):
        sys.exit(f"{teacher} was trained on {','.join(t_attrs)}, this student on {','.join(names)}: they must be "
                 f"the same, or --pseudo names one of the teacher's for each, none twice; it is '{pseudo}'")
    above = (*(() if init_from else ('max_iters',)), 'batch_size', 'n_critic', 'lr', 'conv_dim', 'n_blocks',
             'd_conv_dim', 'd_n_layers', 'n_samples', 'log_interval', 'sample_interval', 'ckpt_interval')
    wrong = [f'--{k}={globals()[k]}: must be a number above 0' for k in above if not 0 < globals()[k] < np.inf]
    wrong += [f'--{k}={globals()[k]}: must be 0 or a number above 0' for k in
              ('max_iters', 'lambda_cls', 'lambda_rec', 'lambda_gp', 'lambda_att') if not 0 <= globals()[k] < np.inf]
    wrong += [f'--{k}={globals()[k]}: must be from 0 to below 1' for k in ('beta1', 'beta2')
              if not 0 <= globals()[k] < 1]
    wrong += [] if dtype in ('float32', 'bfloat16') else [f'--dtype={dtype}: float32 or bfloat16']
    if wrong:
        sys.exit('; '.join(wrong))
    blocks = min(n_blocks, t_ckpt['g_args']['n_blocks'])
    if not -blocks <= hook_block < blocks:
        sys.exit(f'--hook_block={hook_block}: {-blocks} to {blocks - 1}, for {teacher} and --n_blocks={n_blocks}')
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
    G_teacher = t_script.Generator(**t_ckpt['g_args']).to(device).requires_grad_(False)
    D_teacher = no_zeros(t_script.Discriminator(**t_ckpt['d_args']).to(device).requires_grad_(False))
    G_teacher.load_state_dict(t_ckpt['G'])
    D_teacher.load_state_dict(t_ckpt['D'])
    hook_teacher, hook_student = (GradCAM(net.res[hook_block], cam) for net in (G_teacher, G))
    cols = torch.tensor([t_attrs.index(name) for name in c_pse] if scored else [], device=device)  # c_pse's columns
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
    maps = "the teacher's maps, the student's" if scored else 'no maps: the teacher has no score for these'
    log(f"columns of the grids: input, {', '.join(names)}; rows: images, {maps}")
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
    loss_names += ['G att', 'G dead_T', 'G dead_S'] if lambda_att > 0 else []  # dead: share of all-zero maps
    loss_sum, n_g, last_log = torch.zeros(len(loss_names), device=device), 0, start

    def step(train_G, x_real, c_org, c_trg):
        """Phases 2 and 3 of an iteration, the second where train_G says so; adds to loss_sum. Never waits for a GPU."""
        # 2. discriminator, eq. (4): E[D(x_fake)] - E[D(x_real)] + lambda_gp GP + lambda_cls L_cls(x_real)
        with autocast, torch.set_grad_enabled(train_G):  # G stays as it is until step 3, which uses the same images
            # a compiled forward cannot be differentiated twice from outside, as the student's map needs
            x_fake = (G if train_G and lambda_att > 0 else G_fast)(x_real, c_trg)
        alpha = torch.rand(batch_size, 1, 1, 1, device=device)
        d_loss_real, d_loss_fake, d_loss_cls, d_loss_gp = losses_of_D(
            D, x_real, x_fake.detach(), c_org, alpha, multi_label, bf16)
        d_loss = d_loss_real + d_loss_fake + lambda_cls * d_loss_cls + lambda_gp * d_loss_gp
        opt_D.zero_grad()
        d_loss.backward()
        opt_D.step()
        loss_sum[:4] += torch.stack([d_loss_real, d_loss_fake, d_loss_cls, d_loss_gp]).detach()

        # 3. generator, eq. (5): -E[D(x_fake)] + lambda_cls L_cls(x_fake) + lambda_rec |x_real - G(x_fake, c_org)|_1
        #    + lambda_att L_att
        if train_G:
            k, has_class = pick_class(c_trg)  # with lambda_att = 0 too: both runs then see the same batches
            if lambda_att > 0:  # now, before G runs again: the hook keeps the features of the latest forward pass
                k = cols[k]  # (B, 1): the score is y^{c_pse}, of the teacher's discriminator, for both maps
                g_loss_att, *dead = losses_of_maps(
                    G_teacher, D_teacher, (hook_teacher, hook_student), x_real, x_fake,
                    to_teacher(c_trg, cols, len(t_attrs)), k, has_class, att_norm, att_control, bf16)
            D.requires_grad_(False)  # the gradient passes through D to G; D's own would go unused
            g_loss_fake, g_loss_rec, g_loss_cls = losses_of_G(
                G, D, x_real, x_fake, c_org, c_trg, multi_label, bf16)
            g_loss = g_loss_fake + lambda_rec * g_loss_rec + lambda_cls * g_loss_cls
            if lambda_att > 0:
                g_loss = g_loss + lambda_att * g_loss_att
            opt_G.zero_grad()
            g_loss.backward()
            opt_G.step()
            D.requires_grad_(True)
            g_losses = [g_loss_fake, g_loss_rec, g_loss_cls]
            g_losses += [g_loss_att, *dead] if lambda_att > 0 else []
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
            G.requires_grad_(False)  # as the teacher: a map needs the last block's gradient, not the weights'
            columns = [torch.stack([x_fixed] * (3 if scored else 1), 1)]  # (n, 3 rows, 3, H, W)
            for i in range(c_dim):
                c_trg = set_attr(c_fixed, i, exclusive)
                x_fake = G(x_fixed, c_trg)
                shown = [x_fake.detach()]
                if scored:
                    cam_student = hook_student(D_teacher(x_fake)[1][:, cols[i]])
                    x_teacher = G_teacher(x_fixed, to_teacher(c_trg, cols, len(t_attrs)))
                    cam_teacher = hook_teacher(D_teacher(x_teacher)[1][:, cols[i]])
                    shown += [overlay(x_fixed, cam_teacher), overlay(x_fixed, cam_student)]
                columns.append(torch.stack(shown, 1))
            G.requires_grad_(True)
            grid = torch.stack(columns, 2).flatten(0, 2)  # (n, 3 rows, 1 + c_dim columns, 3, H, W) -> images in order
            save_image(grid / 2 + 0.5, os.path.join(out_dir, 'samples', f'{n:06d}.png'), nrow=1 + c_dim)
            effect = label_effect(G, x_fixed, set_attr(c_fixed, 0, exclusive), multi_label)
            log(f"iter {n:6d}/{max_iters} | mean |G(x, c) - G(x, c')| = {effect:.4f}")
            if effect < 0.01 and n > 0.1 * max_iters:
                log(f"warning: the translations hardly depend on the label: mean |G(x, c) - G(x, c')| = {effect:.4f}; "
                    f"lower --lambda_rec or raise --lambda_cls")
        if n % ckpt_interval == 0 or last:
            save(n)
        t_aside += time.time() - t0
