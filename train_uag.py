"""
Trains unsupervised attention-guided translation (Mejjati et al. 2018) between two unpaired domains S and T.

Attention nets A say *where* to translate, generators F *how*; the background is copied. With s_a = A_S(s) in [0, 1]:

    s_f = s_a * s,   s' = s_a * F_ST(s_f) + (1 - s_a) * s                                foreground; translation
    L_cyc = |s - s''|_1, s'' = s' taken back to S with a new map A_T(s')                 cycle
    L_adv = E[(D_T(t) - 1)^2] + E[D_T(s')^2]                                             LSGAN
    L = L_adv^S + L_adv^T + lambda_cyc (L_cyc^S + L_cyc^T)
    from switch_epoch on D_T judges t * [A_T(t) >= tau] and s' * [A_S(s) >= tau]         attention-guided discriminator

    python data/toyfruit/prepare.py && python train_uag.py --dataset=toyfruit --n_epochs=20 --switch_epoch=6 # drawn
    python data/unpaired/prepare.py --src=horse2zebra.zip && python train_uag.py             # the paper's run
    python train_uag.py --masked_d=False --out_dir=out/uag_d         # its ablation "Ours-D": whole images for D
    python train_uag.py --attention=False --out_dir=out/cyclegan     # plain CycleGAN, the baseline

Domain A of the data is S, B is T. Writes out_dir/ckpt.pt (evaluate.py reads it), log.txt, samples/ and a copy of this
script; --resume=True goes on from there.
"""

import datetime
import difflib
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
out_dir = 'out/uag'  # everything a run writes; a folder that already holds a ckpt.pt needs --resume=True
log_interval = 100  # iterations between log lines; reading the losses waits for the GPU, so not at every iteration
sample_interval = 5000  # iterations between sample grids
ckpt_interval = 5000  # iterations between checkpoints; what a crash can cost you
n_samples = 4  # rows of the grid for each direction: the first so many test images, always the same
resume = False  # go on from out_dir/ckpt.pt if there is one
# data
dataset = 'unpaired'  # a folder under data/, or the path of any folder that a prepare.py wrote
image_size = 0  # pixels, a multiple of 4; below the data's size: random crops; 0: 256 of 286, else the data's own size
# nets
ngf = 32  # channels of a generator's first layer; the residual blocks have 4x as many
n_blocks = 9  # residual blocks of a generator; fewer change less
ndf = 64  # channels of a discriminator's first layer; doubles in each layer that follows, up to 8x
d_n_layers = 3  # stride-2 layers of a discriminator: 3 judges patches of 70 px, 2 of 34 px; small images want fewer
naf = 32  # channels of an attention net's first layer
# method and ablations
attention = True  # False: no attention nets, s' = F(s), D sees whole images: plain CycleGAN
masked_d = True  # False: D sees whole images throughout and nothing is ever switched: "Ours-D", its maps drift
gen_input = 'foreground'  # what F sees: 'foreground' s_a * s as in the paper, or 'full' s, as in the authors' code
switch_epoch = 30.0  # the maps must have found the objects by now: from here D sees image * [A >= tau]
tau = 0.1  # threshold of that mask: higher shows D less around the object
freeze_attention = True  # from the switch on A stays as it is; False: a map could shrink until D has nothing to judge
d_norm_after_switch = False  # keep D's instance norm: its statistics would be those of the blank background, mostly
# losses
lambda_cyc = 10.0  # cycle reconstruction: higher changes images less
lambda_idt = 0.0  # identity |F_ST(t) - t|: above 0 (half of lambda_cyc) keeps colours; slower by two generator calls
pool_size = 50  # past fakes, with their maps, that D also learns from; 0: only the newest; steadier with more
# optimiser
n_epochs = 100.0  # an epoch is max(images of S, images of T) / batch_size iterations; fractions are fine
n_epochs_decay = 50.0  # over the last so many epochs lr falls linearly to 0; 0: never
batch_size = 1  # images of each domain
lr = 1e-4  # before the decay; short runs and larger batches want up to 5e-4
beta1 = 0.5  # Adam
beta2 = 0.999  # Adam
# system
device = ''  # 'cpu', 'cuda', 'cuda:1'; '': the GPU if there is one
dtype = 'float32'  # 'bfloat16' runs the nets under autocast, faster; maps and images stay in float32
compile = False  # torch.compile of the steps, for long runs on a GPU: not tried there yet; on a CPU it takes minutes
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

# nets, as in the authors' code: every convolution has a bias and every instance norm a scale and an offset (no running
# statistics). The biases in front of a norm do nothing, but only with both do the parameter counts come out as theirs.


def conv(d_in, d_out, kernel, stride=1, reflect=False):
    """Convolution + instance norm, to size / stride; reflect=False pads with zeros."""
    mode = 'reflect' if reflect else 'zeros'
    return nn.Sequential(nn.Conv2d(d_in, d_out, kernel, stride, kernel // 2, padding_mode=mode),
                         nn.InstanceNorm2d(d_out, affine=True))


class ResidualBlock(nn.Module):
    """ReLU(x + IN(conv(ReLU(IN(conv(x)))))), the channels kept: (B, dim, h, w) -> the same."""

    def __init__(self, dim):
        super().__init__()
        self.conv1, self.conv2 = conv(dim, dim, 3, reflect=True), conv(dim, dim, 3, reflect=True)

    def forward(self, x):
        return F.relu(x + self.conv2(F.relu(self.conv1(x))))  # ReLU after the sum, unlike CycleGAN's


class Generator(nn.Module):
    """F(x): image (B, 3, H, W) in [-1, 1] -> image like it. H and W are multiples of 4."""

    def __init__(self, ngf=32, n_blocks=9):
        super().__init__()
        d = ngf
        self.down = nn.Sequential(conv(3, d, 7, reflect=True), nn.ReLU(),  # H
                                  conv(d, 2 * d, 3, 2), nn.ReLU(),  # H/2
                                  conv(2 * d, 4 * d, 3, 2), nn.ReLU())  # H/4
        self.res = nn.Sequential(*[ResidualBlock(4 * d) for _ in range(n_blocks)])  # (B, 4d, H/4, W/4)
        self.up = nn.Sequential(  # output_padding: of the two sizes that a stride-2 convolution halves to h, the even
            nn.ConvTranspose2d(4 * d, 2 * d, 3, 2, 1, 1), nn.InstanceNorm2d(2 * d, affine=True), nn.ReLU(),  # H/2
            nn.ConvTranspose2d(2 * d, d, 3, 2, 1, 1), nn.InstanceNorm2d(d, affine=True), nn.ReLU())  # H
        self.out = nn.Sequential(nn.Conv2d(d, 3, 7, padding=3, padding_mode='reflect'), nn.Tanh())

    def forward(self, x):
        return self.out(self.up(self.res(self.down(x))))


class Attention(nn.Module):
    """A(x): image (B, 3, H, W) in [-1, 1] -> map (B, 1, H, W) in [0, 1]. H and W are multiples of 4."""

    def __init__(self, naf=32):
        super().__init__()
        d = naf
        self.down = nn.Sequential(conv(3, d, 7, 2, reflect=True), nn.ReLU(), conv(d, 2 * d, 3, 2), nn.ReLU())  # H/4
        self.res = ResidualBlock(2 * d)
        # the authors' code has these three at 1x1 by an argument slip; this is what they were meant to be
        self.up = nn.Sequential(nn.Upsample(scale_factor=2), conv(2 * d, 2 * d, 3, reflect=True), nn.ReLU(),  # H/2
                                nn.Upsample(scale_factor=2), conv(2 * d, d, 3, reflect=True), nn.ReLU())  # H
        self.out = nn.Sequential(nn.Conv2d(d, 1, 7, padding=3, padding_mode='reflect'), nn.Sigmoid())

    def forward(self, x):
        return self.out(self.up(self.res(self.down(x))))


class Discriminator(nn.Module):
    """D(x): image (B, 3, S, S) -> (B, 1, s, s), 1 for real and 0 for fake per patch; s = S / 2^n_layers - 2 >= 1.

    norm=False skips the instance norms, scale and offset too: these stay in the state dict, but unused they have no
    gradient, and Adam leaves them as they are.
    """

    def __init__(self, ndf=64, n_layers=3):
        super().__init__()
        self.norm = True
        dims = [3] + [ndf * min(2 ** i, 8) for i in range(n_layers + 1)]
        # padding 1 as in CycleGAN: with the authors' 2 a 64 px image has as many patches of padding as of image
        self.down = nn.ModuleList([nn.Conv2d(d_in, d_out, 4, 2 if i < n_layers else 1, 1)  # S/2, S/4, ..., s + 1
                                   for i, (d_in, d_out) in enumerate(zip(dims, dims[1:]))])
        self.norms = nn.ModuleList([nn.InstanceNorm2d(d, affine=True) for d in dims[1:]])  # the first layer has one too
        self.out = nn.Conv2d(dims[-1], 1, 4, 1, 1)

    def forward(self, x):
        for down, norm in zip(self.down, self.norms):
            x = down(x)
            x = F.leaky_relu(norm(x) if self.norm else x, 0.2)
        return self.out(x)


def init_weights(net):
    """Weights N(0, 0.02), biases 0, so that a fresh A is undecided, around 1/2 everywhere. -> the net."""
    for module in net.modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            nn.init.normal_(module.weight, 0, 0.02)
            nn.init.zeros_(module.bias)
    return net


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


def load_domain(folder, name):
    """`folder/name_x.npy` -> (N, S, S, 3) uint8 tensor, memory-mapped from disk. Exits with one line if it is none."""
    path = os.path.join(folder, f'{name}_x.npy')
    try:
        # mmap_mode 'c' (copy on write) reads like 'r', but torch accepts it without a warning
        x = torch.from_numpy(np.load(path, mmap_mode='c'))
    except (OSError, ValueError) as e:
        sys.exit(f'{path}: cannot read it, prepare the data again: {e}')
    if x.dtype != torch.uint8 or x.ndim != 4 or x.shape[1] != x.shape[2] or x.shape[3] != 3 or not len(x):
        sys.exit(f'{path}: wanted uint8 (N, S, S, 3) with N > 0, found {x.dtype} {tuple(x.shape)}')
    return x


def random_crops(x, n, size, device):
    """n random images of x (N, S, S, 3) uint8: crops, half of them flipped -> (n, 3, size, size) in [-1, 1]."""
    i, flip = torch.randint(len(x), (n,)).tolist(), (torch.rand(n) < 0.5).to(device, non_blocking=True)
    top, left = torch.randint(x.shape[1] - size + 1, (2, n)).tolist()
    x = torch.stack([x[j, t:t + size, l:l + size] for j, t, l in zip(i, top, left)])
    if x.device.type != torch.device(device).type:
        x = x.pin_memory()  # else the copy would wait for the GPU
    x = x.to(device, non_blocking=True).permute(0, 3, 1, 2) / 127.5 - 1
    return torch.where(flip[:, None, None, None], x.flip(3), x)


def whole_images(x, size):
    """(B, S, S, 3) uint8 -> (B, 3, size, size) in [-1, 1], resized: what is shown and measured has no luck in it."""
    x = x.permute(0, 3, 1, 2).float()
    if x.shape[2] != size:
        x = F.interpolate(x, (size, size), mode='bilinear', antialias=True)
    return x / 127.5 - 1


class Pool:
    """Past fakes, each with its source's map: the mask that D is to see a fake through must be the fake's own."""

    def __init__(self, size):
        self.size, self.items = size, []  # [(fake (3, H, W), map (1, H, W)), ...]

    def __call__(self, x_fake, a):
        """Fakes (B, 3, H, W) and maps (B, 1, H, W) -> as many, each new or, half of the time, out of the full pool."""
        out = []
        for item in zip(x_fake.detach(), a.detach()):
            item = tuple(t.clone() for t in item)  # a view would keep, and save, the whole batch
            if len(self.items) < self.size:
                self.items.append(item)
            elif self.size and torch.rand(()) < 0.5:
                j = int(torch.randint(self.size, ()))
                self.items[j], item = item, self.items[j]
            out.append(item)
        return torch.stack([x for x, _ in out]), torch.stack([a for _, a in out])


# method and losses. `nets` has the keys G_st G_ts D_s D_t A_s A_t; D_t judges domain t. What concerns one direction is
# written once, for s -> t, and run again with the letters swapped: mirrored by hand, some line will be mirrored wrong.


def translate(x, A, G, gen_input='foreground'):
    """x (B, 3, H, W) -> translation like x, map (B, 1, H, W) in [0, 1], foreground. A=None: G(x), a map of ones, x."""
    if A is None:
        return G(x).float(), torch.ones_like(x[:, :1]), x
    a = A(x).float()
    x_f = a * x  # 0 is mid-grey in [-1, 1]: the blanked background is grey, not black
    return a * G(x_f if gen_input == 'foreground' else x).float() + (1 - a) * x, a, x_f


def seen_by_d(x, a, tau):
    """What D judges: the whole x, or given tau x * [a >= tau]. A comparison has no gradient: A learns nothing by it."""
    return x if tau is None else x * (a >= tau)


def lsgan_loss(out, target):
    """E[(out - target)^2]: target is 1 for real, 0 for fake; the generator wants its fakes at 1."""
    return ((out.float() - target) ** 2).mean()


def g_losses(nets, x_s, x_t, gen_input, tau, with_idt=False):
    """Generators and attention nets -> losses by name, fakes {'s', 't'} by what they should be, maps {'s', 't'}.

    tau=None: D sees whole images.
    """
    x, x_fake, a, losses = {'s': x_s, 't': x_t}, {}, {}, {}
    for s, t in ('st', 'ts'):
        x_fake[t], a[s], _ = translate(x[s], nets['A_' + s], nets['G_' + s + t], gen_input)
        x_cyc, _, _ = translate(x_fake[t], nets['A_' + t], nets['G_' + t + s], gen_input)  # with a new map
        losses[f'G {s}{t}'] = lsgan_loss(nets['D_' + t](seen_by_d(x_fake[t], a[s], tau)), 1)
        losses[f'G cyc_{s}'] = (x_cyc - x[s]).abs().mean()
        if with_idt:
            losses[f'G idt_{t}'] = (nets['G_' + s + t](x[t]).float() - x[t]).abs().mean()
    return losses, x_fake, a


def real_and_past(x_s, x_t, x_fake, a, pools, tau):
    """-> {'s', 't'}: (2B, 3, H, W), what D_s and D_t judge. D_t: real t with its own map, then past fakes of t with
    those of their sources."""
    x, seen = {'s': x_s, 't': x_t}, {}
    for s, t in ('st', 'ts'):
        x_past, a_past = pools[t](x_fake[t], a[s])
        seen[t] = torch.cat([seen_by_d(x[t], a[t], tau), seen_by_d(x_past, a_past, tau)])
    return seen


def d_losses(nets, seen_s, seen_t):
    """Discriminators on images (2B, 3, H, W), the first half real, the second fake -> losses by name."""
    seen, losses = {'s': seen_s, 't': seen_t}, {}
    for t in 'ts':
        real, fake = nets['D_' + t](seen[t]).chunk(2)
        # the usual 1/2: D should learn slower than G
        losses[f'D_{t} real'], losses[f'D_{t} fake'] = lsgan_loss(real, 1) / 2, lsgan_loss(fake, 0) / 2
    return losses


def switch(nets, freeze_attention, d_norm_after_switch):
    """What changes in the nets once D is attention-guided. No gradient, no step of Adam: A stays bit for bit."""
    for k in 'st':
        nets['A_' + k].requires_grad_(not freeze_attention)
        nets['D_' + k].norm = d_norm_after_switch


def map_stats(a, tau):
    """Maps -> (4,): mean, min, max, share of pixels >= tau."""
    return torch.stack([a.mean(), a.min(), a.max(), (a >= tau).float().mean()]).detach()


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


if __name__ == '__main__':
    # set-up
    above = ('n_epochs', 'batch_size', 'lr', 'ngf', 'ndf', 'd_n_layers', 'naf', 'n_samples', 'log_interval',
             'sample_interval', 'ckpt_interval')
    wrong = [f'--{k}={globals()[k]}: must be a number above 0' for k in above if not 0 < globals()[k] < np.inf]
    wrong += [f'--{k}={globals()[k]}: must be 0 or a number above 0' for k in
              ('n_blocks', 'switch_epoch', 'n_epochs_decay', 'pool_size', 'lambda_cyc', 'lambda_idt')
              if not 0 <= globals()[k] < np.inf]
    wrong += [f'--{k}={globals()[k]}: must be from 0 to below 1' for k in ('beta1', 'beta2')
              if not 0 <= globals()[k] < 1]
    wrong += [] if 0 < tau < 1 else [f'--tau={tau}: must be between 0 and 1']
    wrong += [] if gen_input in ('foreground', 'full') else [f'--gen_input={gen_input}: foreground or full']
    wrong += [] if dtype in ('float32', 'bfloat16') else [f'--dtype={dtype}: float32 or bfloat16']
    if wrong:
        sys.exit('; '.join(wrong))
    data_dir, meta = find_data(dataset)
    if meta['label'] != 'unpaired':
        sys.exit(f'--dataset={dataset}: has labels, not two domains; train_teacher.py is for it')
    domains = meta['domains']
    train, test = ({k: load_domain(data_dir, split + side) for k, side in zip('st', 'AB')}
                   for split in ('train', 'test'))
    load_size = train['s'].shape[1]
    image_size = image_size or (256 if load_size == 286 else load_size)
    if {x.shape[1] for x in (*train.values(), *test.values())} != {load_size}:
        sys.exit(f'{data_dir}: its images differ in size: prepare the data again')
    if image_size % 4 or not max(8, 3 * 2 ** d_n_layers) <= image_size <= load_size:
        sys.exit(f'--image_size={image_size}: wants a multiple of 4, at least {max(8, 3 * 2 ** d_n_layers)} for '
                 f'--d_n_layers={d_n_layers} and at most {load_size}, the size of {data_dir}')
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
    fixed = {k: whole_images(x[:n_samples], image_size).to(device) for k, x in test.items()}  # the grid's images
    n_images = {k: len(x) for k, x in train.items()}
    epoch_iters = -(-max(n_images.values()) // batch_size)  # rounded up
    max_iters, decay_iters = max(1, round(n_epochs * epoch_iters)), round(n_epochs_decay * epoch_iters)
    switch_iter = round(switch_epoch * epoch_iters)
    if device_type == 'cuda' and sum(x.nbytes for x in train.values()) < torch.cuda.mem_get_info(device)[0] / 2:
        train = {k: x.to(device) for k, x in train.items()}  # fits: no copying while training

    g_args, d_args = dict(ngf=ngf, n_blocks=n_blocks), dict(ndf=ndf, n_layers=d_n_layers)
    a_args = dict(naf=naf) if attention else None
    nets = {name: init_weights(Generator(**g_args)).to(device) for name in ('G_st', 'G_ts')}
    nets |= {name: init_weights(Discriminator(**d_args)).to(device) for name in ('D_s', 'D_t')}
    nets |= {name: init_weights(Attention(**a_args)).to(device) if attention else None for name in ('A_s', 'A_t')}
    # the generators and the attention nets share a loss, and an optimiser
    fused = device_type == 'cuda' or None  # one kernel for all weights; None, as PyTorch does, on a CPU: no slower here
    opt_G, opt_D = (torch.optim.Adam([p for k, net in nets.items() if k[0] in of and net for p in net.parameters()],
                                     lr, (beta1, beta2), fused=fused, capturable=cuda_graph) for of in ('GA', 'D'))
    lr_now = torch.tensor(lr, device=device)  # where a CUDA graph looks it up
    if compile:
        g_losses, d_losses = map(torch.compile, (g_losses, d_losses))
    pools = {k: Pool(pool_size) for k in 'st'}  # by what the fakes should be
    autocast = torch.autocast(device_type, torch.bfloat16, enabled=dtype == 'bfloat16')

    ckpt_path, start, switched = os.path.join(out_dir, 'ckpt.pt'), 0, False
    shape = dict(g_args=g_args, d_args=d_args, a_args=a_args, gen_input=gen_input, image_size=image_size,
                 domains=domains)
    if os.path.exists(ckpt_path):
        if not resume:
            sys.exit(f'{ckpt_path} exists: --resume=True to go on with it, or another --out_dir')
        ckpt = load_ckpt(ckpt_path, 'uag')
        other = [f'{k} {ckpt[k]}, not {v}' for k, v in shape.items() if ckpt[k] != v]
        other += [f"been made by {ckpt['script']}"] if ckpt['script'] != os.path.basename(__file__) else []
        if other:
            sys.exit(f"{ckpt_path} has {'; '.join(other)}")
        for name, obj in (*nets.items(), ('opt_G', opt_G), ('opt_D', opt_D)):
            if name.startswith('opt'):
                ckpt[name]['param_groups'][0].update(fused=fused, capturable=cuda_graph)  # which may differ from then
            if obj:
                obj.load_state_dict(ckpt[name])
        for k, pool in pools.items():
            pool.items = [(x.to(device), a.to(device)) for x, a in ckpt['pools'][k]][:pool_size]
        torch.set_rng_state(ckpt['rng'])
        if device_type == 'cuda' and ckpt['rng_cuda'] is not None:
            torch.cuda.set_rng_state(ckpt['rng_cuda'], device)
        start, switched = ckpt['iter'], ckpt['switched']
        if switched:
            switch(nets, freeze_attention, d_norm_after_switch)
    config = {k: globals()[k] for k in config_keys}  # what was left open is settled by now
    with open(__file__) as f:
        source = f.read()
    if start >= max_iters:
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

    n_params = {k: sum(p.numel() for p in nets[k].parameters()) if nets[k] else 0 for k in ('G_st', 'D_t', 'A_s')}
    log(f"G {n_params['G_st']:,}, D {n_params['D_t']:,} and A {n_params['A_s']:,} parameters, two of each, on {device}")
    log(f"s: {n_images['s']:,} {domains[0]}, t: {n_images['t']:,} {domains[1]} training images of {data_dir} "
        f'({load_size} px) at {image_size} px')
    log(f'columns of the grids: input, map, foreground, translation, cycle; rows: {domains[0]}, then {domains[1]}')
    log(f'iteration {start} of {max_iters}, {epoch_iters} an epoch')
    if start:
        changed = [f'{k}={v!r} was {ckpt["config"].get(k)!r}' for k, v in config.items() if v != ckpt['config'].get(k)]
        changed += ['the script itself'] if ckpt['source'] != source else []
        log(f"resumed; changed: {', '.join(changed) or 'nothing'}")

    loss_names = ['D_s real', 'D_s fake', 'D_t real', 'D_t fake', 'G st', 'G ts', 'G cyc_s', 'G cyc_t']
    loss_names += ['G idt_s', 'G idt_t'] if lambda_idt else []
    loss_sum, maps, last_log = torch.zeros(len(loss_names), device=device), {'s': [], 't': []}, start

    def step_G(x_s, x_t):
        """Phase 2 of an iteration -> fakes and maps, both {'s', 't'}; adds to loss_sum. Never waits for a GPU."""
        # 2. generators and attention nets: E[(D_T(s') - 1)^2] + E[(D_S(t') - 1)^2] + lambda_cyc (L_cyc^S + L_cyc^T)
        for k in 'st':
            nets['D_' + k].requires_grad_(False)  # the gradient passes through D to G; D's own would go unused
        with autocast:
            losses, x_fake, a = g_losses(nets, x_s, x_t, gen_input, tau_now, lambda_idt > 0)
        g_loss = losses['G st'] + losses['G ts'] + lambda_cyc * (losses['G cyc_s'] + losses['G cyc_t'])
        if lambda_idt:
            g_loss = g_loss + lambda_idt * (losses['G idt_s'] + losses['G idt_t'])
        opt_G.zero_grad()
        g_loss.backward()
        opt_G.step()
        loss_sum[4:] += torch.stack([losses[name] for name in loss_names[4:]]).detach()
        return tuple({k: v.detach() for k, v in of.items()} for of in (x_fake, a))

    def step_D(seen_s, seen_t):
        """Phase 3 of an iteration; adds to loss_sum."""
        # 3. discriminators: E[(D_T(t) - 1)^2] / 2 + E[D_T(s')^2] / 2 and the same for S, on fakes out of the pools
        for k in 'st':
            nets['D_' + k].requires_grad_(True)
        with autocast:
            losses = d_losses(nets, seen_s, seen_t)
        d_loss = losses['D_s real'] + losses['D_s fake'] + losses['D_t real'] + losses['D_t fake']
        opt_D.zero_grad()
        d_loss.backward()
        opt_D.step()
        loss_sum[:4] += torch.stack([losses[name] for name in loss_names[:4]]).detach()

    if cuda_graph:
        step_G, step_D = Graphed(step_G), Graphed(step_D)

    t_start, t_data, t_aside = time.time(), 0.0, 0.0  # seconds waiting for data; spent on grids and checkpoints
    for it in range(start, max_iters):
        now = lr * min(1, (max_iters - it) / max(decay_iters, 1))
        if cuda_graph:
            now = lr_now.fill_(now)
        for opt in (opt_G, opt_D):
            opt.param_groups[0].update(lr=now, betas=(beta1, beta2))
        if it >= switch_iter and attention and masked_d and not switched:
            switched = True  # and stays so, whatever a resumed run's --switch_epoch says
            switch(nets, freeze_attention, d_norm_after_switch)
            log(f"iter {it}: switch: D now sees image * [A >= {tau}], {'with' if d_norm_after_switch else 'without'} "
                f"instance norm; the attention nets {'stay as they are' if freeze_attention else 'go on learning'}")
            if cuda_graph:
                step_G.calls = step_D.calls = 0  # other steps from here on
        tau_now = tau if switched else None

        # 1. data
        t0 = time.time()
        x_s, x_t = (random_crops(train[k], batch_size, image_size, device) for k in 'st')
        t_data += time.time() - t0

        # 2. generators and attention nets, 3. discriminators: step_G() and step_D()
        x_fake, a = step_G(x_s, x_t)
        seen = real_and_past(x_s, x_t, x_fake, a, pools, tau_now)  # draws lots: no part of a CUDA graph
        step_D(seen['s'], seen['t'])
        for k in 'st':
            maps[k].append(map_stats(a[k], tau))

        # 4. log line, samples, checkpoint
        n, last = it + 1, it + 1 == max_iters
        if n % log_interval == 0 or n % ckpt_interval == 0 or last:
            # a NaN anywhere since the last look is still in the sums: none can slip past into a checkpoint
            means = (loss_sum / (n - last_log)).tolist()
            bad = [f'the loss {name}' for name, mean in zip(loss_names, means) if not np.isfinite(mean)]
            bad += [f'a weight of {name}' for name, net in nets.items()
                    if net and not all(p.isfinite().all() for p in net.parameters())]
            if bad:
                line = f'iter {n}: not finite: {", ".join(bad)}; {ckpt_path}, if any, is the last good state'
                print(line, file=log_file, flush=True)
                sys.exit(line)
            t_train = time.time() - t_start - t_aside
            rate, eta = (n - start) / t_train, datetime.timedelta(seconds=int((max_iters - n) / (n - start) * t_train))
            gb = (torch.cuda.max_memory_reserved(device) if device_type == 'cuda' else  # with what graphs keep
                  resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024) / 2 ** 30
            show = {net: net for net in ('D_s', 'D_t', 'G')}
            for name, mean in zip(loss_names, means):
                net, term = name.split()
                show[net] += f' {term} {mean:8.3g}'
            share = {}
            for k in 'st' if attention else '':
                stats = torch.stack(maps[k])
                mean, share[k] = stats[:, 0].mean().item(), stats[:, 3].mean().item()
                show['A_' + k] = (f'A_{k} mean {mean:.2f} min {stats[:, 1].min().item():.2f} '
                                  f'max {stats[:, 2].max().item():.2f} >=tau {share[k]:4.0%}')
            log(f'iter {n:6d}/{max_iters} | {" | ".join(show.values())} | {rate:.2f} it/s | '
                f'data {t_data / t_train:.0%} | eta {eta} | {gb:.1f} GB')
            flat = [f"A_{k} marks {'nothing' if v < 0.5 else 'everything'} ({v:.1%} of pixels >= tau)"
                    for k, v in share.items() if not 0.01 <= v <= 0.99]
            if flat:  # usual at the very start; once D sees through such maps it has nothing to go by
                log(f"WARNING: collapsed map: {', '.join(flat)}" + (
                    '' if switched or not masked_d else f'; the switch at iteration {switch_iter} needs it to choose'))
            loss_sum.zero_()
            maps, last_log = {'s': [], 't': []}, n
        t0 = time.time()
        if n % sample_interval == 0 or last:
            rows = []
            for s, t in ('st', 'ts'):
                with torch.no_grad(), autocast:
                    x_show, a_show, x_f = translate(fixed[s], nets['A_' + s], nets['G_' + s + t], gen_input)
                    x_cyc, _, _ = translate(x_show, nets['A_' + t], nets['G_' + t + s], gen_input)
                a_show = (a_show * 2 - 1).expand_as(x_f)  # in grey on the true scale, black for 0 and white for 1
                rows.append(torch.stack([fixed[s], a_show, x_f, x_show, x_cyc], 1).flatten(0, 1))
            save_image(torch.cat(rows) / 2 + 0.5, os.path.join(out_dir, 'samples', f'{n:06d}.png'), nrow=5)
        if n % ckpt_interval == 0 or last:
            save_ckpt(ckpt_path, dict(
                {name: net.state_dict() if net else None for name, net in nets.items()},
                kind='uag', opt_G=opt_G.state_dict(), opt_D=opt_D.state_dict(), iter=n, switched=switched,
                pools={k: pool.items for k, pool in pools.items()}, rng=torch.get_rng_state(),
                rng_cuda=torch.cuda.get_rng_state(device) if device_type == 'cuda' else None,
                **shape, config=config, script=os.path.basename(__file__), source=source))
        t_aside += time.time() - t0
