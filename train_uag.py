"""
Trains unsupervised attention-guided translation (Mejjati et al. 2018) between two unpaired domains S and T.
Attention nets A say *where* to translate, generators F *how*; the background is copied. With s_a = A_S(s) in [0, 1]:

    s_f = s_a * s,   s' = s_a * F_ST(s_f) + (1 - s_a) * s                                foreground; translation
    L_cyc = |s - s''|_1, s'' = s' taken back to S with a new map A_T(s')                 cycle
    L_adv = E[(D_T(t) - 1)^2] + E[D_T(s')^2]                                             LSGAN
    L = L_adv^S + L_adv^T + lambda_cyc (L_cyc^S + L_cyc^T)
    from the switch on D_T judges t * [A_T(t) >= tau] and s' * [A_S(s) >= tau]           attention-guided discriminator

    python data/toyfruit/prepare.py && python train_uag.py --dataset=toyfruit --n_epochs=20     # drawn, no download
    python data/unpaired/prepare.py --src=horse2zebra.zip && python train_uag.py                # the paper's run
    python train_uag.py --masked_d=False --out_dir=out/uag_d         # its ablation "Ours-D": whole images for D
    python train_uag.py --attention=False --out_dir=out/cyclegan     # plain CycleGAN, the baseline

Domain A of the data is S, B is T. Writes out_dir/ckpt.pt, log.txt, samples/ and a copy of this script.
"""

import contextlib
import difflib
import json
import logging
import os
import sys
import time

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from torchvision.utils import save_image

# -----------------------------------------------------------------------------
# I/O
out_dir = 'out/uag'  # everything a run writes; a folder that already holds a ckpt.pt needs --resume=True
log_interval = 100  # iterations between log lines; reading the losses waits for the GPU, so not at every iteration
sample_interval = 5000  # iterations between grids of the first four test images of each domain
ckpt_interval = 5000  # iterations between checkpoints; what a crash can cost you
resume = False  # go on from out_dir/ckpt.pt if there is one
# data
dataset = 'unpaired'  # a folder under data/, or the path of any folder that a prepare.py wrote
image_size = 0  # pixels, a multiple of 4; below the data's size: random crops; 0: 256 of 286, else the data's own size
# sizes
ngf = 32  # channels of a generator's first layer; the residual blocks have 4x as many
n_blocks = 9  # residual blocks of a generator; fewer change less
ndf = 64  # channels of a discriminator's first layer; doubles in each layer that follows, up to 8x
d_n_layers = 3  # stride-2 layers of a discriminator: 3 judges patches of 70 px, 2 of 34 px; small images want fewer
naf = 32  # channels of an attention net's first layer
# method, losses and ablations
attention = True  # False: no attention nets, s' = F(s), D sees whole images: plain CycleGAN
masked_d = True  # False: D sees whole images throughout and nothing is ever switched: "Ours-D", its maps drift
switch_at = 0.3  # of n_epochs: from here A stays as it is and D sees image * [A >= tau]; the maps must be good by now
tau = 0.1  # threshold of that mask: higher shows D less around the object
hard = True  # from the switch on G, too, translates with [A >= tau]; False: with A, as the paper: its blends stay
lambda_cyc = 10.0  # cycle reconstruction: higher changes images less
pool_size = 50  # past fakes, with their maps, that D also learns from; 0: only the newest; steadier with more
# optimiser: Adam (0.5, 0.999)
n_epochs = 100.0  # an epoch is max(images of S, images of T) / batch_size iterations; fractions are fine
decay_at = 0.5  # of n_epochs: from here lr falls linearly to 0; 1: never
batch_size = 1  # images of each domain
lr = 1e-4  # before the decay; short runs and larger batches want up to 1e-3
# system
device = ''  # 'cpu', 'cuda', 'cuda:1'; '': the GPU if there is one
dtype = 'float32'  # 'bfloat16' runs the nets under autocast; maps and images stay in float32
cuda_graph = False  # each step as one CUDA graph, one launch; never run on a GPU yet: first `pytest tests/test_gpu.py`
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
        val = cast[type(globals()[key])](val)
        assert isinstance(val, str) or key.endswith(('_interval', 'n_critic', 'batch_size')) <= val < float('inf')
        globals()[key] = val
    except (KeyError, ValueError, AssertionError):
        sys.exit(f"{arg}: wants a {type(globals()[key]).__name__}, finite, 0 or 1 at least, like {globals()[key]!r}")
# -----------------------------------------------------------------------------

# nets
def conv(d_in, d_out, kernel, stride=1, pad='zeros'):
    """Convolution + instance norm, to size / stride. The authors' generators pad with zeros everywhere. As in their
    code there is a bias, which does nothing in front of a norm: so the parameter counts come out as theirs."""
    return nn.Sequential(nn.Conv2d(d_in, d_out, kernel, stride, kernel // 2, padding_mode=pad),
                         nn.InstanceNorm2d(d_out, affine=True))


class ResidualBlock(nn.Module):
    """ReLU(x + IN(conv(ReLU(IN(conv(x)))))), the channels kept: (B, dim, h, w) -> the same."""

    def __init__(self, dim):
        super().__init__()
        self.conv1, self.conv2 = conv(dim, dim, 3, pad='reflect'), conv(dim, dim, 3, pad='reflect')

    def forward(self, x):
        return F.relu(x + self.conv2(F.relu(self.conv1(x))))  # ReLU after the sum, unlike CycleGAN's


class Generator(nn.Module):
    """F(x): image (B, 3, H, W) in [-1, 1] -> image like it. H and W are multiples of 4."""

    def __init__(self, ngf=32, n_blocks=9):
        super().__init__()
        d = ngf
        self.down = nn.Sequential(conv(3, d, 7, pad='reflect'), nn.ReLU(),  # H
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
        self.down = nn.Sequential(conv(3, d, 7, 2, pad='reflect'), nn.ReLU(), conv(d, 2 * d, 3, 2), nn.ReLU())  # H/4
        self.res = ResidualBlock(2 * d)
        # the authors' code has these three at 1x1 by an argument slip; this is what they were meant to be
        self.up = nn.Sequential(nn.Upsample(scale_factor=2), conv(2 * d, 2 * d, 3, pad='reflect'), nn.ReLU(),  # H/2
                                nn.Upsample(scale_factor=2), conv(2 * d, d, 3, pad='reflect'), nn.ReLU())  # H
        self.out = nn.Sequential(nn.Conv2d(d, 1, 7, padding=3, padding_mode='reflect'), nn.Sigmoid())

    def forward(self, x):
        return self.out(self.up(self.res(self.down(x))))


class Discriminator(nn.Module):
    """D(x): image (B, 3, S, S) -> (B, 1, s, s), 1 for real and 0 for fake per patch; s = S / 2^n_layers - 2 >= 1.
    norm=False skips the instance norms; unused, these have no gradient, and Adam leaves them as they are."""

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


def translate(x, A, G, tau=None):
    """x (B, 3, H, W) -> translation like x, map (B, 1, H, W) in [0, 1], foreground. A=None: G(x), a map of ones, x.
    Given tau the map is [A(x) >= tau]: no blends."""
    if A is None:
        return G(x).float(), torch.ones_like(x[:, :1]), x
    a = A(x).float() if tau is None else (A(x) >= tau).float()
    x_f = a * x  # 0 is mid-grey in [-1, 1]: the blanked background is grey, not black. The authors' code has G(x)
    return a * G(x_f).float() + (1 - a) * x, a, x_f


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
    for folder in (os.path.join(os.path.dirname(__file__), 'data', dataset), dataset):
        if os.path.exists(path := os.path.join(folder, 'meta.json')):
            return folder, json.load(open(path))
    sys.exit(f'--dataset={dataset}: no arrays there (no meta.json): a prepare.py under data/ makes them')


def load_domain(folder, name):
    """`folder/name_x.npy` -> (N, S, S, 3) uint8 tensor, memory-mapped from disk. Exits with one line if it is none."""
    with or_exit(f'{folder}: damaged, prepare the data again'):
        x = torch.from_numpy(np.load(os.path.join(folder, f'{name}_x.npy'), mmap_mode='c'))  # of 'r' torch warns
        assert x.dtype == torch.uint8 and x.shape[1:] == (*[x.shape[1]] * 2, 3) and len(x), f'{name}_x.npy {x.shape}'
    return x


def random_crops(x, n, size, device):
    """n random images of x (N, S, S, 3) uint8: crops, half of them flipped -> (n, 3, size, size) in [-1, 1]."""
    i, flip = torch.randint(len(x), (n,)).tolist(), (torch.rand(n, 1, 1, 1) < 0.5).to(device)
    top, left = torch.randint(x.shape[1] - size + 1, (2, n)).tolist()
    x = torch.stack([x[j, t:t + size, l:l + size] for j, t, l in zip(i, top, left)]).to(device)
    x = x.permute(0, 3, 1, 2).contiguous() / 127.5 - 1  # laid out anew: convolutions are slower on an (H, W, 3)
    return torch.where(flip, x.flip(3), x)


def whole_images(x, size):
    """(B, S, S, 3) uint8 -> (B, 3, size, size) in [-1, 1], resized: what is shown and measured has no luck in it."""
    x = x.permute(0, 3, 1, 2).contiguous().float()
    return (x if x.shape[2] == size else F.interpolate(x, (size, size), mode='bilinear', antialias=True)) / 127.5 - 1


def past_fakes(pool, size, x_fake, a):
    """Fakes (B, 3, H, W), maps (B, 1, H, W) -> as many, each new or, half of the time, out of `pool`, if that is full.
    A fake is kept with its source's map: the mask that D is to see it through must be its own."""
    out = []
    for item in zip(x_fake, a):
        item = tuple(t.clone() for t in item)  # a view would keep, and save, the whole batch
        if len(pool) < size:
            pool.append(item)
        elif size and torch.rand(()) < 0.5:
            j = int(torch.randint(size, ()))
            pool[j], item = item, pool[j]
        out.append(item)
    return [torch.stack(of) for of in zip(*out)]


# losses; `nets` has the keys G_st G_ts D_s D_t A_s A_t, x has s and t; D_t judges domain t. What concerns a direction
# is written once, for s -> t, and run again with the letters swapped: by hand, some line will be mirrored wrong.
def seen_by_d(x, a, tau):
    """What D judges: the whole x, or given tau x * [a >= tau]. A comparison has no gradient: A learns nothing by it."""
    return x if tau is None else x * (a >= tau)


def lsgan_loss(out, target):
    """E[(out - target)^2]: target is 1 for real, 0 for fake; the generator wants its fakes at 1."""
    return ((out.float() - target) ** 2).mean()


def g_losses(nets, x, tau_D, tau_G):
    """-> losses of G and A (adversarial s -> t, t -> s, cycle of s, of t), fakes and maps by domain. With tau_D, D sees
    image * [A >= tau_D]; with tau_G, [A >= tau_G] is G's map."""
    x_fake, a, losses, cycle = {}, {}, [], []
    for s, t in ('st', 'ts'):
        x_fake[t], a[s], _ = translate(x[s], nets['A_' + s], nets['G_' + s + t], tau_G)
        x_cyc, _, _ = translate(x_fake[t], nets['A_' + t], nets['G_' + t + s], tau_G)  # with a new map
        losses.append(lsgan_loss(nets['D_' + t](seen_by_d(x_fake[t], a[s], tau_D)), 1))
        cycle.append((x_cyc - x[s]).abs().mean())
    return losses + cycle, x_fake, a


def real_and_past(x, a, past, tau):
    """-> what D_s and D_t judge: (2B, 3, H, W), real t with its own map, then past fakes of t with their sources'."""
    return [torch.cat([seen_by_d(x[t], a[t], tau), seen_by_d(*past[t], tau)]) for t in 'st']


def d_losses(D, seen):
    """A discriminator on images (2B, 3, H, W), the first half real, the second fake -> losses real, fake."""
    real, fake = D(seen).chunk(2)
    return [lsgan_loss(real, 1) / 2, lsgan_loss(fake, 0) / 2]  # the usual 1/2: D should learn slower than G


# speed, files
class Graphed:
    """step(*tensors), from its third call on, as one CUDA graph. The next call overwrites what this one returned; what
    else is read is read where it lay when captured, and numbers stay. The current stream must not be the default."""

    def __init__(self, step):
        self.step, self.calls = step, 0

    def __call__(self, *tensors):
        self.calls += 1
        if self.calls < 3:  # warm up: what the first calls set up must not be captured
            return self.step(*tensors)
        if self.calls == 3:
            self.graph, self.inputs = torch.cuda.CUDAGraph(), [t.clone() for t in tensors]
            with torch.cuda.graph(self.graph, stream=torch.cuda.current_stream()):  # notes launches, runs nothing
                self.out = self.step(*self.inputs)
        for mine, t in zip(self.inputs, tensors):
            mine.copy_(t)
        self.graph.replay()
        return self.out


@contextlib.contextmanager
def or_exit(text):
    """What goes wrong inside ends the script with one line: text, and the first sentence of the error's own."""
    try:
        yield
    except Exception as e:
        sys.exit(f"{text}: {' '.join(str(e).split()).split('. ')[0][:200]} ({type(e).__name__})")


def load_ckpt(path, *kinds):
    """What torch.save wrote, on the CPU; given kinds, a checkpoint of these. Never runs code that is in the file."""
    with or_exit(f'{path}: no checkpoint, or damaged, or with code in it'):
        ckpt = torch.load(path, map_location='cpu', weights_only=True)
        assert not kinds or ckpt['kind'] in kinds, f"is of kind {ckpt['kind']}, wanted {' or '.join(kinds)}"
        return ckpt


if __name__ == '__main__':
    # data
    data_dir, meta = find_data(dataset)
    'domains' in meta or sys.exit(f'--dataset={dataset}: has labels, not two domains; train_teacher.py is for it')
    train, test = ({k: load_domain(data_dir, split + side) for k, side in ('sA', 'tB')} for split in ('train', 'test'))
    size, least = train['s'].shape[1], max(8, 3 * 2 ** d_n_layers)
    image_size = image_size or (256 if size == 286 else size)
    if image_size % 4 or not least <= image_size <= size:
        sys.exit(f'--image_size={image_size}: wants a multiple of 4 from {least}, by --d_n_layers, to {size}, the data')
    max_iters = round(n_epochs * -(-max(map(len, train.values())) // batch_size))  # an epoch is rounded up
    switch_iter = round(switch_at * max_iters)

    # nets and optimisers
    dtype in ('float32', 'bfloat16') or sys.exit(f'--dtype={dtype}: float32 or bfloat16')
    max(switch_at, decay_at, tau) <= 1 or sys.exit('--switch_at, --decay_at, --tau: want shares, from 0 to 1')
    device = device or ('cuda' if cuda_graph or torch.cuda.is_available() else 'cpu')
    with or_exit(f'--device={device}'):
        device = str(torch.zeros(1, device=device).device)
    if cuda := device.startswith('cuda'):
        torch.cuda.set_device(device)
        torch.cuda.set_stream(torch.cuda.Stream())  # the default one cannot be captured
        torch.backends.cudnn.benchmark = True  # sizes stay the same: cuDNN may try its algorithms and take the fastest
        train = {k: x.to(device if x.nbytes < torch.cuda.mem_get_info()[0] / 3 else 'cpu') for k, x in train.items()}
    torch.manual_seed(seed)
    autocast = torch.autocast(device.split(':')[0], torch.bfloat16, enabled=dtype == 'bfloat16')
    g_args, d_args = dict(ngf=ngf, n_blocks=n_blocks), dict(ndf=ndf, n_layers=d_n_layers)
    a_args = dict(naf=naf) if attention else None
    nets = {name: init_weights(Generator(**g_args)).to(device) for name in ('G_st', 'G_ts')}
    nets |= {name: init_weights(Discriminator(**d_args)).to(device) for name in ('D_s', 'D_t')}
    nets |= {name: init_weights(Attention(**a_args)).to(device) if attention else None for name in ('A_s', 'A_t')}
    opt_G, opt_D = (torch.optim.Adam([p for k, net in nets.items() if k[0] in of and net for p in net.parameters()],
                                     torch.tensor(lr, device=device) if cuda_graph else lr, (0.5, 0.999),
                                     fused=cuda or None, capturable=cuda_graph) for of in ('GA', 'D'))
    pools = {'s': [], 't': []}  # by what the fakes should be

    # a new run, or one to go on with
    ckpt_path, config = os.path.join(out_dir, 'ckpt.pt'), {k: globals()[k] for k in config_keys}
    it, switched = 0, False
    resume or not os.path.exists(ckpt_path) or sys.exit(f'{ckpt_path} exists: --resume=True, or another --out_dir=')
    with or_exit(f'--out_dir={out_dir}: cannot write there'):
        os.makedirs(os.path.join(out_dir, 'samples'), exist_ok=True)
        files = [logging.StreamHandler(sys.stdout), logging.FileHandler(os.path.join(out_dir, 'log.txt'))]
        logging.basicConfig(level=logging.INFO, format='%(message)s', handlers=files)
    if os.path.exists(ckpt_path):
        ckpt = load_ckpt(ckpt_path, 'uag')
        with or_exit(f'{ckpt_path}: cannot go on with it'):
            assert ckpt['script'] == os.path.basename(__file__) and ckpt['a_args'] == a_args, 'another script or net'
            for name, net in nets.items():
                net and net.load_state_dict(ckpt[name])
            for opt, k in ((opt_G, 'opt_G'), (opt_D, 'opt_D')):
                opt.load_state_dict(opt.state_dict() | {'state': ckpt[k]['state']})  # the rest is by flags
            pools = {k: [tuple(t.to(device) for t in item) for item in ckpt['pools'][k]][:pool_size] for k in 'st'}
            torch.set_rng_state(ckpt['rng'])
            it, switched = ckpt['iter'], ckpt['switched']
    (source := open(__file__).read()) and open(os.path.join(out_dir, os.path.basename(__file__)), 'w').write(source)
    if dtype == 'bfloat16' and not cuda and 'bf16' not in open('/proc/cpuinfo').read():
        logging.info('warning: this CPU has no bfloat16, and slowly does as if: --dtype=float32 is faster')
    n_params = ', '.join(f'{k} {sum(map(torch.numel, net.parameters())):,}' for k, net in nets.items() if net)
    logging.info(f"{n_params} parameters on {device}; {data_dir}: s {meta['domains'][0]}, t {meta['domains'][1]}, "
                 f"{[*map(len, train.values())]} images; columns: input, map, foreground, translation, cycle")
    x_fixed = {k: whole_images(x[:4], image_size).to(device) for k, x in test.items()}  # the grids' rows, s then t
    d_sum, g_sum = torch.zeros(4, device=device), torch.zeros(4, device=device)  # of losses, for their means in the log

    def g_step(x_s, x_t):
        """A step of G, A on E[(D_T(s') - 1)^2] + E[(D_S(t') - 1)^2] + lambda_cyc (L_cyc^S + L_cyc^T) -> fakes, maps."""
        for k in 'st':
            nets['D_' + k].requires_grad_(False)  # the gradient passes through D to G; D's own would go unused
            if switched:  # A stays as it is; D does without norm: its statistics would be those of the blank, mostly
                nets['A_' + k].requires_grad_(False)
                nets['D_' + k].norm = False  # as the authors' code does; one seed of a short run did better without it
        with autocast:
            losses, x_fake, a = g_losses(nets, {'s': x_s, 't': x_t}, tau_D, tau_G)
        g_loss = losses[0] + losses[1] + lambda_cyc * (losses[2] + losses[3])
        opt_G.zero_grad()
        g_loss.backward()
        opt_G.step()
        g_sum.add_(torch.stack(losses).detach())
        return [{k: v.detach() for k, v in of.items()} for of in (x_fake, a)]

    def d_step(seen_s, seen_t):
        """A step of D on E[(D_T(t) - 1)^2] / 2 + E[D_T(s')^2] / 2 and the same for S, on images real and past."""
        for k in 'st':
            nets['D_' + k].requires_grad_(True)
        with autocast:
            losses_t, losses_s = d_losses(nets['D_t'], seen_t), d_losses(nets['D_s'], seen_s)
        d_loss = losses_s[0] + losses_s[1] + losses_t[0] + losses_t[1]
        opt_D.zero_grad()
        d_loss.backward()
        opt_D.step()
        d_sum.add_(torch.stack(losses_s + losses_t).detach())

    steps = (Graphed(g_step), Graphed(d_step)) if cuda_graph else (g_step, d_step)
    start, last_log, t_start = it, it, time.time()
    for it in range(start, max_iters + 1):
        # switch, log line, samples, checkpoint, after `it` iterations
        t_aside, done = time.time(), it == max_iters
        log = it % log_interval == 0 or it % ckpt_interval == 0 or done
        if log or it == switch_iter:
            with torch.no_grad(), autocast:
                maps = [nets['A_' + k](x_fixed[k]).float() if attention else torch.ones(1) for k in 'st']
            means, seen = ([100 * v.float().mean().item() for v in of] for of in (maps, [a >= tau for a in maps]))
            if it >= switch_iter and attention and masked_d and not switched and not done:
                switched = all(1 < share < 99 for share in seen)  # else D would have nothing to go by
                logging.info('iter %d: %s: maps >= tau on %.0f %% of S, %.0f %% of T', it, 'the switch' if switched else
                             'warning: maps of all or nothing, the switch waits', *seen)
                steps = (Graphed(g_step), Graphed(d_step)) if cuda_graph and switched else steps  # others from here on
        tau_D, tau_G = tau if switched else None, tau if switched and hard else None
        if log and it > last_log:
            if not all(p.isfinite().all() for net in nets.values() if net for p in net.parameters()):
                sys.exit(f'iter {it}: weights are not finite: lower --lr; {ckpt_path}, if any, is the last good state')
            rate = (it - start) / (t_aside - t_start)
            logging.info(f'iter {it:6d}/{max_iters} | D_s real %8.3g fake %8.3g | D_t real %8.3g fake %8.3g | '
                         'G st %8.3g ts %8.3g cyc_s %8.3g cyc_t %8.3g | A mean %.0f, %.0f %%, >= tau %.0f, %.0f %% | '
                         '%.2f it/s | eta %.0f min', *d_sum / (it - last_log), *g_sum / (it - last_log), *means, *seen,
                         rate, (max_iters - it) / rate / 60)
            last_log = it
            d_sum.zero_(), g_sum.zero_()
        if it % sample_interval == 0 or done:
            rows = []
            for s, t in ('st', 'ts'):
                with torch.no_grad(), autocast:
                    x_fake, a, x_f = translate(x_fixed[s], nets['A_' + s], nets['G_' + s + t], tau_G)
                    x_cyc, _, _ = translate(x_fake, nets['A_' + t], nets['G_' + t + s], tau_G)
                rows.append(torch.stack([x_fixed[s], (2 * a - 1).expand_as(x_f), x_f, x_fake, x_cyc], 1).flatten(0, 1))
            with or_exit(f'{out_dir}: cannot write there, disk full? {ckpt_path}, if any, is whole'):
                save_image(torch.cat(rows) / 2 + 0.5, os.path.join(out_dir, 'samples', f'{it:06d}.png'), nrow=5)
        if (it % ckpt_interval == 0 or done) and (it > start or it == 0):  # what was resumed is there already
            with or_exit(f'{ckpt_path}: cannot write, disk full? The last stays'), open(ckpt_path + '.tmp', 'wb') as f:
                torch.save({name: net and net.state_dict() for name, net in nets.items()} | dict(kind='uag', iter=it,
                    opt_G=opt_G.state_dict(), opt_D=opt_D.state_dict(), switched=switched, pools=pools,
                    rng=torch.get_rng_state(), g_args=g_args, d_args=d_args, a_args=a_args, domains=meta['domains'],
                    image_size=image_size, config=config, source=source, script=os.path.basename(__file__)), f)
                f.flush()
                os.fsync(f.fileno())
            os.replace(ckpt_path + '.tmp', ckpt_path)
        if done:
            break
        t_start += time.time() - t_aside  # rate and ETA are those of training

        # 1. data
        x_s, x_t = (random_crops(train[k], batch_size, image_size, device) for k in 'st')
        for opt in (opt_G, opt_D):
            lr_now = lr * min(1, (1 - it / max_iters) / max(1 - decay_at, 1e-9))
            opt.param_groups[0]['lr'] = opt.param_groups[0]['lr'].fill_(lr_now) if cuda_graph else lr_now

        # 2. generators and attention nets, 3. discriminators; the pools draw lots: no part of a CUDA graph
        x_fake, a = steps[0](x_s, x_t)
        past = {t: past_fakes(pools[t], pool_size, x_fake[t], a[s]) for s, t in ('st', 'ts')}
        steps[1](*real_and_past({'s': x_s, 't': x_t}, a, past, tau_D))
