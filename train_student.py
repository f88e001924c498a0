"""
Trains a small student generator with attention distillation (Li, Fontanini et al.): a StarGAN like train_teacher.py,
whose G is also asked to look where the teacher's looks, by the Grad-CAM map of the last residual block.

    A^c = ReLU(sum_k alpha_k F_k), alpha_k = GAP(dy^c / dF_k), y^c a score of D_teacher (Fig. 3)  eq. (1), (2): gradcam
    L_att = E_{x,c} || A_T^c(x) - A_S^c(x) ||                                             eq. (3): att_loss
    L_G = L_adv + lambda_cls L_cls + lambda_rec L_rec + lambda_att L_att                  eq. (5): g_step
    L_att with A^{c_pse} for A^c, "pseudo"-attention of a teacher of other attributes     eq. (6), (7): --pseudo

    python train_student.py --teacher=out/teacher/ckpt.pt --lambda_att=10                     # S with attention loss
    python train_student.py --teacher=out/teacher/ckpt.pt --lambda_att=0 --out_dir=out/s0     # S without
    python train_student.py --teacher=out/teacher/ckpt.pt --conv_dim=16 --n_blocks=1          # S-Lite
    python train_student.py --teacher=out/hair/ckpt.pt --attrs=Gray_Hair,Bald --pseudo=Blond_Hair,Wearing_Hat # eq. (6)

Writes out_dir/ckpt.pt, log.txt, samples/ and a copy of this script.
"""

import contextlib
import difflib
import importlib
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

from gradcam import GradCAM, overlay

# -----------------------------------------------------------------------------
# I/O
out_dir = 'out/student'  # everything a run writes; a folder that already holds a ckpt.pt needs --resume=True
log_interval = 100  # iterations between log lines; reading the losses waits for the GPU, so not at every iteration
sample_interval = 5000  # iterations between grids of the first eight test images
ckpt_interval = 5000  # iterations between checkpoints; what a crash can cost you
resume = False  # go on from out_dir/ckpt.pt if there is one
# teacher and data
teacher = ''  # its ckpt.pt
dataset = ''  # '': the teacher's; else a folder under data/, or the path of any folder that a prepare.py wrote
attrs = ''  # '': the teacher's; else some of them, or others with pseudo or lambda_att=0; 'all': every one there is
pseudo = ''  # eq. (6), (7): for each of attrs one of the teacher's that changes the same region; '': attrs themselves
# nets: T is 64/6 (8.4M parameters), S 32/3 (1.2M), S-Lite 16/1 (0.16M)
conv_dim = 32  # channels of G's first layer; the residual blocks have 4x as many
n_blocks = 3  # residual blocks of G
# losses, eq. (4) and (5)
lambda_cls = 1.0  # attributes: higher changes faces more, until they only please D
lambda_rec = 10.0  # cycle reconstruction: higher keeps faces more, up to ignoring c altogether; short runs want 20
lambda_gp = 10.0  # gradient penalty
lambda_att = 10.0  # attention, eq. (5); 0 is the paper's "S w/o att loss", and as fast as a run without a teacher
cam = 'gradcam'  # eq. (1)-(2); 'hirescam' does not pool the gradient: sharper maps
att_norm = 'none'  # L_att on the maps as they are; or each divided by its 'l2' norm or its 'max', blind to scale
att_new = False  # a map is of one of the image's target classes; True: of one that the image does not have yet
att_shuffle = False  # a control: T's map of another image of the same class, so of where such things are in general
n_critic = 5  # D steps for each G step; 1 makes the most of a short run, 5 is WGAN-GP's advice for a long one
# optimiser: Adam (0.5, 0.999)
max_iters = 200000  # D steps; 0: write the nets as they start, and stop
batch_size = 16  # images
lr = 1e-4  # constant for the first half of the run, then linear to 0; short runs want up to 1e-3
# system
device = ''  # 'cpu', 'cuda', 'cuda:1'; '': the GPU if there is one
dtype = 'float32'  # 'bfloat16' runs the nets under autocast, but not where gradients are part of a loss
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
class ResidualBlock(nn.Module):
    """x + IN(conv(ReLU(IN(conv(x))))), the channels kept: (B, dim, h, w) -> the same."""

    def __init__(self, dim):
        super().__init__()
        self.main = nn.Sequential(  # no biases: the instance norms would remove them
            nn.Conv2d(dim, dim, 3, padding=1, bias=False), nn.InstanceNorm2d(dim, affine=True), nn.ReLU(),
            nn.Conv2d(dim, dim, 3, padding=1, bias=False), nn.InstanceNorm2d(dim, affine=True))

    def forward(self, x):
        return x + self.main(x)


class Generator(nn.Module):
    """G(x, c): images x (B, 3, H, W) in [-1, 1], 4 divides H and W; labels c (B, c_dim) in {0, 1} -> images like x."""

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
    """D(x): image (B, 3, S, S) -> out_src (B, 1, s, s), real or fake, s = S / 2^n_layers; logits out_cls (B, c_dim)."""

    def __init__(self, image_size=128, conv_dim=64, c_dim=7, n_layers=6):
        super().__init__()
        dims = [3] + [conv_dim * 2 ** i for i in range(n_layers)]
        self.down = nn.ModuleList([nn.Conv2d(d_in, d_out, 4, 2, 1) for d_in, d_out in zip(dims, dims[1:])])
        self.src = nn.Conv2d(dims[-1], 1, 3, padding=1, bias=False)
        self.cls = nn.Conv2d(dims[-1], c_dim, image_size // 2 ** n_layers, bias=False)  # sees everything at once

    def forward(self, x):
        for conv in self.down:
            x = conv(x)
            x = torch.where(x > 0, x, 0.01 * x)  # F.leaky_relu, but no second derivative of zeros through all of D
        return self.src(x), self.cls(x).flatten(1)


# data
def find_data(dataset):
    """A name under data/ or a path -> (folder, its meta.json as a dict). Exits with one line where there is none."""
    for folder in (os.path.join(os.path.dirname(__file__), 'data', dataset), dataset):
        if os.path.exists(path := os.path.join(folder, 'meta.json')):
            return folder, json.load(open(path))
    sys.exit(f'--dataset={dataset}: no arrays there (no meta.json): a prepare.py under data/ makes them')


def load_split(folder, meta, split, names):
    """-> x (N, H, W, 3) uint8 tensor, memory-mapped from disk, and y (N, len(names)) float32 labels in {0, 1}."""
    known = meta.get('attrs', ['none, but two domains, for train_uag.py'])
    if not names or len(set(names)) < len(names) or not set(names) <= set(known):
        sys.exit(f"--attrs={','.join(names or [])}: wants names, each once, of {folder}: {', '.join(known)}")
    with or_exit(f'{folder}: damaged, prepare the data again'):
        x = torch.from_numpy(np.load(os.path.join(folder, f'{split}_x.npy'), mmap_mode='c'))  # of 'r' torch warns
        y = np.load(os.path.join(folder, f'{split}_y.npy'))[:, [known.index(name) for name in names]]
        assert x.dtype == torch.uint8 and x.shape == (len(y), *[meta['image_size']] * 2, 3), f'{split}_x.npy {x.shape}'
    return x, torch.from_numpy(y).float()


def to_float(x, size):
    """(B, H, W, 3) uint8 -> (B, 3, size, size) float32 in [-1, 1], averaged down by H // size."""
    x = x.permute(0, 3, 1, 2).contiguous().float()  # laid out anew: D's convolutions are slower on an (H, W, 3)
    return F.avg_pool2d(x, x.shape[2] // size) / 127.5 - 1


def get_batch(x, y, i, size, device):
    """Rows i of the data: images (B, 3, size, size) in [-1, 1], flipped with probability 1/2, and labels (B, c_dim)."""
    flip = (torch.rand(len(i), 1, 1, 1) < 0.5).to(device)
    x, y = to_float(x[i.to(x.device)].to(device), size), y[i].to(device)
    return torch.where(flip, x.flip(3), x), y


def set_attr(c_org, i, exclusive):
    """Labels (B, c_dim) with attribute i on and the others of its exclusive groups (lists of columns) off."""
    c = c_org.clone()
    c[:, sum((group for group in exclusive if i in group), [])] = 0
    c[:, i] = 1
    return c


# losses
def gradient_penalty(D, x_real, x_fake, alpha):
    """WGAN-GP: E[(|d out_src / d x_hat| - 1)^2] at x_hat = alpha x_real + (1 - alpha) x_fake; alpha: (B, 1, 1, 1)."""
    x_hat = (alpha * x_real + (1 - alpha) * x_fake).detach().requires_grad_()
    grad, = torch.autograd.grad(D(x_hat)[0].sum(), x_hat, create_graph=True)
    return ((grad.flatten(1).norm(dim=1) - 1) ** 2).mean()  # .norm(): sqrt(sum g^2) has a NaN gradient at g = 0


def cls_loss(out_cls, c, multi_label):
    """L_cls of logits and labels c, both (B, c_dim): binary cross entropy summed over attributes, or softmax's."""
    if multi_label:
        return F.binary_cross_entropy_with_logits(out_cls, c, reduction='sum') / len(c)
    return F.cross_entropy(out_cls, c)  # c is one-hot, that is, the probabilities


def pick_class(c):
    """One of each image's classes at random: c (B, c_dim) in {0, 1} -> its index (B, 1), and weights (B,) with which a
    sum over the batch is the mean over the images that have any, such as E over x and c in eq. (3)."""
    return (torch.rand_like(c) * c).argmax(1, keepdim=True), F.normalize(c.amax(1), p=1, dim=0)  # 1 / count, or 0


def att_loss(cam_teacher, cam_student, weight, att_norm):
    """L_att, eq. (3): sum of weight || A_T - A_S ||_2; maps (B, h, w) >= 0, weight (B,) of pick_class.

    The paper names no norm; L2 is taken. att_norm='l2' compares maps of unit length (Dhar et al. 2019), 'max' maps of
    maximum 1, 'none' maps as they are. An all-zero map stays zero."""
    A_T, A_S = cam_teacher.flatten(1), cam_student.flatten(1)
    if att_norm != 'none':
        A_T, A_S = (F.normalize(A, p={'l2': 2, 'max': float('inf')}[att_norm]) for A in (A_T, A_S))
    return ((A_T - A_S).norm(dim=1) * weight).sum()


def shuffle(A, k, weight):
    """Deals each image the map, of A (B, h, w), of the next one scored for the same class k (B, 1), or weight 0."""
    i = torch.arange(len(A), device=A.device)
    ahead = (i - i[:, None] - 1) % len(A)  # [i, j]: 0 where j is the image after i, B - 1 where j is i itself
    ahead = torch.where((k == k.T) & (weight > 0), ahead, len(A))
    return A[ahead.argmin(1)], F.normalize(weight * (ahead.amin(1) < len(A) - 1), p=1, dim=0)


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


def load_nets(path, *kinds):
    """A checkpoint -> it, and its nets {'G', 'D'}, of train_uag.py {'G_st', 'G_ts', 'A_s', 'A_t'}, frozen, on the CPU.
    The script that made it builds them; its text in the checkpoint is compared, never run. Or exits, in one line."""
    ckpt, nets = load_ckpt(path, *kinds), {}
    with or_exit(f'{path}: cannot build its nets'):
        script = os.path.join(os.path.dirname(__file__), os.path.basename(ckpt['script']))
        then, now = (text.partition('\n# nets\n')[2].partition('\n# data\n')[0]
                     for text in (ckpt['source'], open(script).read()))
        assert then == now != '', f'{script} has other nets now: put back the copy that lies beside the checkpoint'
        module = importlib.import_module(os.path.basename(script).removesuffix('.py'))
        for key in ('G', 'D') if 'attrs' in ckpt else ('G_st', 'G_ts', 'A_s', 'A_t')[:4 if ckpt['a_args'] else 2]:
            weights, args = ckpt[key], ckpt[key[0].lower() + '_args']
            for k, v in args.items():  # a size that is not in the weights could take for ever to build
                assert type(v) is int and 0 <= v <= (len(weights) if k.startswith('n_') else 2 ** 16), f'{k}={v!r}'
            with torch.device('meta'):  # no memory, no random numbers
                net = getattr(module, {'G': 'Generator', 'D': 'Discriminator', 'A': 'Attention'}[key[0]])(**args)
            net.load_state_dict(weights, assign=True)
            nets[key] = net.float().requires_grad_(False)
        assert type(names := ckpt.get('attrs', ckpt.get('domains'))) is list, f'names {names}'
        assert len(names) == ckpt['g_args'].get('c_dim', 2), f"{len(names)} names for {ckpt['g_args']}"
        assert {*map(type, names), type(ckpt['config']['dataset'])} == {str}, 'names or the data set are no text'
        return ckpt, nets


if __name__ == '__main__':
    # data, as the teacher's
    teacher or sys.exit('--teacher= wants the ckpt.pt of a trained teacher; train_teacher.py makes one')
    t_ckpt, t_nets = load_nets(teacher, 'stargan')
    t_attrs, image_size = t_ckpt['attrs'], t_ckpt['d_args']['image_size']
    dataset, attrs = dataset or t_ckpt['config']['dataset'], attrs or ','.join(t_attrs)
    data_dir, meta = find_data(dataset)
    names, multi_label = meta.get('attrs') if attrs == 'all' else attrs.split(','), meta['label'] == 'multi'
    (train_x, train_y), (test_x, test_y) = (load_split(data_dir, meta, split, names) for split in ('train', 'test'))
    # single-label: where only some classes are asked for, images of the others are left out
    rows = torch.arange(len(train_x)) if multi_label else train_y.sum(1).nonzero().flatten()
    exclusive = [[names.index(name) for name in group if name in names] for group in meta['exclusive']]
    meta['image_size'] % image_size and sys.exit(f"{data_dir}, {meta['image_size']} px: {teacher} has {image_size} px")
    c_pse = pseudo.split(',') if pseudo else names
    scored = len(c_pse) == len(set(c_pse)) == len(names) and set(c_pse) <= set(t_attrs)  # D_teacher can: maps, then
    if not scored and (pseudo or lambda_att):
        sys.exit(f"--pseudo={pseudo} --attrs={attrs}: wants for each another of the teacher's {','.join(t_attrs)}")

    # nets and optimisers
    for key, of in ('dtype', 'float32 bfloat16'), ('cam', 'gradcam hirescam'), ('att_norm', 'none l2 max'):
        globals()[key] in of.split() or sys.exit(f'--{key}={globals()[key]}: wants one of {of}')
    device = device or ('cuda' if cuda_graph or torch.cuda.is_available() else 'cpu')
    with or_exit(f'--device={device}'):
        device = str(torch.zeros(1, device=device).device)
    if cuda := device.startswith('cuda'):
        torch.cuda.set_device(device)
        torch.cuda.set_stream(torch.cuda.Stream())  # the default one cannot be captured
        torch.backends.cudnn.benchmark = True  # sizes stay the same: cuDNN may try its algorithms and take the fastest
        train_x = train_x.to(device if train_x.nbytes < torch.cuda.mem_get_info()[0] / 2 else 'cpu')
    torch.manual_seed(seed)
    autocast = torch.autocast(device.split(':')[0], torch.bfloat16, enabled=dtype == 'bfloat16')
    g_args = dict(conv_dim=conv_dim, c_dim=len(names), n_blocks=n_blocks)
    d_args = t_ckpt['d_args'] | dict(c_dim=len(names))
    G, D = Generator(**g_args).to(device), Discriminator(**d_args).to(device)
    G_teacher, D_teacher = (t_nets[k].to(device) for k in 'GD')
    hook_teacher, hook_student = (GradCAM(net.res[-1], cam) for net in (G_teacher, G))
    cols = torch.tensor([t_attrs.index(name) for name in c_pse] if scored else [], device=device)  # c_pse's columns
    opt_G, opt_D = (torch.optim.Adam(net.parameters(), torch.tensor(lr, device=device) if cuda_graph else lr,
                                     (0.5, 0.999), fused=True, capturable=cuda_graph) for net in (G, D))

    # a new run, or one to go on with
    ckpt_path, it, config = os.path.join(out_dir, 'ckpt.pt'), 0, {k: globals()[k] for k in config_keys}
    resume or not os.path.exists(ckpt_path) or sys.exit(f'{ckpt_path} exists: --resume=True, or another --out_dir=')
    with or_exit(f'--out_dir={out_dir}: cannot write there'):
        os.makedirs(os.path.join(out_dir, 'samples'), exist_ok=True)
        files = [logging.StreamHandler(sys.stdout), logging.FileHandler(os.path.join(out_dir, 'log.txt'))]
        logging.basicConfig(level=logging.INFO, format='%(message)s', handlers=files)
    if os.path.exists(ckpt_path):
        ckpt = load_ckpt(ckpt_path, 'stargan')
        with or_exit(f'{ckpt_path}: cannot go on with it'):
            assert ckpt['attrs'] == names and ckpt['script'] == os.path.basename(__file__), 'other attributes or script'
            for net, opt, k in ((G, opt_G, 'G'), (D, opt_D, 'D')):
                net.load_state_dict(ckpt[k])
                opt.load_state_dict(opt.state_dict() | {'state': ckpt['opt_' + k]['state']})  # the rest is by flags
            torch.set_rng_state(ckpt['rng'])
            torch.cuda.manual_seed(seed + ckpt['iter'])  # not the same numbers again; nothing without a GPU
            it = ckpt['iter']
    (source := open(__file__).read()) and open(os.path.join(out_dir, os.path.basename(__file__)), 'w').write(source)
    if dtype == 'bfloat16' and not cuda and 'bf16' not in open('/proc/cpuinfo').read():
        logging.info('warning: this CPU has no bfloat16, and slowly does as if: --dtype=float32 is faster')
    logging.info(f'G {sum(map(torch.numel, G.parameters())):,}, D {sum(map(torch.numel, D.parameters())):,} parameters '
                 f"on {device}; {len(rows):,} images of {data_dir}, {image_size} px; columns: input, {','.join(names)}")
    x_fixed, c_fixed = to_float(test_x[:8], image_size).to(device), test_y[:8].to(device)  # the grids' rows
    d_sum, g_sum = torch.zeros(4, device=device), torch.zeros(6, device=device)  # of losses, for their means in the log

    def d_step(x_real, c_org, c_trg):
        """A step of D on eq. (4): E[D(x_fake)] - E[D(x_real)] + lambda_gp GP + lambda_cls L_cls(x_real)."""
        with autocast:
            with torch.no_grad():
                x_fake = G(x_real, c_trg)
            out_src, out_cls = D(torch.cat([x_real, x_fake]))  # no norm in D: images do not mix
        d_loss_real, d_loss_fake = -out_src[:batch_size].float().mean(), out_src[batch_size:].float().mean()
        d_loss_cls = cls_loss(out_cls[:batch_size].float(), c_org, multi_label)
        # without autocast: bfloat16 would change the penalty's norm by 0.3 %
        d_loss_gp = gradient_penalty(D, x_real, x_fake.float(), torch.rand(batch_size, 1, 1, 1, device=device))
        d_loss = d_loss_real + d_loss_fake + lambda_cls * d_loss_cls + lambda_gp * d_loss_gp
        opt_D.zero_grad()
        d_loss.backward()
        opt_D.step()
        d_sum.add_(torch.stack([d_loss_real, d_loss_fake, d_loss_cls, d_loss_gp]).detach())

    def attention(x, x_fake, c_trg, k, create_graph=False):
        """Maps of the teacher and of the student, (B, h, w), of class k (B, 1); x_fake = G(x, c_trg), just made."""
        with autocast:  # the teacher has the labels in its own order, in the columns of c_pse
            x_teacher = G_teacher(x, c_trg.new_zeros(len(x), len(t_attrs)).index_copy(1, cols, c_trg))
        y_T, y_S = (D_teacher(of.float())[1].gather(1, cols[k]) for of in (x_teacher, x_fake))  # y^c, both by D_teacher
        return hook_teacher(y_T), hook_student(y_S, create_graph=create_graph)

    def g_step(x_real, c_org, c_trg):
        """A step of G on eq. (5): -E[D(x_fake)] + lambda_cls L_cls(x_fake) + lambda_rec L_rec + lambda_att L_att."""
        D.requires_grad_(False)  # the gradient passes through D to G; D's own would go unused
        with autocast:
            x_fake = G(x_real, c_trg)
        k, weight = pick_class(c_trg * (1 - c_org) if att_new else c_trg)  # drawn even for lambda_att 0: same numbers
        att = torch.zeros(3, device=device)  # L_att, and the shares of maps that are zero everywhere: T's, S's
        if lambda_att:  # before G runs again: the hook keeps the features of the latest forward pass
            cams = attention(x_real, x_fake, c_trg, k, create_graph=True)
            dead = [(A.amax((1, 2)) == 0).float() @ weight for A in cams]
            cam_teacher, w = shuffle(cams[0], k, weight) if att_shuffle else (cams[0], weight)
            att = torch.stack([att_loss(cam_teacher, cams[1], w, att_norm), *dead])
        with autocast:
            out_src, out_cls = D(x_fake)
            x_rec = G(x_fake, c_org)
        g_loss_fake, g_loss_rec = -out_src.float().mean(), (x_real - x_rec).abs().mean()
        g_loss_cls = cls_loss(out_cls.float(), c_trg, multi_label)
        g_loss = g_loss_fake + lambda_rec * g_loss_rec + lambda_cls * g_loss_cls + lambda_att * att[0]
        opt_G.zero_grad()
        g_loss.backward()
        opt_G.step()
        D.requires_grad_(True)
        g_sum.add_(torch.stack([g_loss_fake, g_loss_rec, g_loss_cls, *att]).detach())

    if cuda_graph:
        d_step, g_step = Graphed(d_step), Graphed(g_step)
    start, last_log, t_start = it, it, time.time()
    for it in range(start, max_iters + 1):
        # log line, samples, checkpoint, after `it` iterations
        t_aside, done = time.time(), it == max_iters
        if it > last_log and (it % log_interval == 0 or it % ckpt_interval == 0 or done):
            if not all(p.isfinite().all() for net in (G, D) for p in net.parameters()):  # a bad loss makes them so
                sys.exit(f'iter {it}: weights are not finite: lower --lr; {ckpt_path}, if any, is the last good state')
            means = [*d_sum / (it - last_log), *g_sum / (it // n_critic - last_log // n_critic)]
            rate = (it - start) / (t_aside - t_start)
            logging.info('iter %6d/%d | D real %8.3g fake %8.3g cls %8.3g gp %8.3g | G fake %8.3g rec %8.3g cls %8.3g '
                         'att %8.3g dead_T %.2f dead_S %.2f '
                         '| %.2f it/s | eta %.0f min', it, max_iters, *means, rate, (max_iters - it) / rate / 60)
            last_log = it
            d_sum.zero_(), g_sum.zero_()
        if it % sample_interval == 0 or done:  # rows: image, teacher's maps, student's; columns: input, attributes
            columns = [torch.stack([x_fixed] * (3 if scored else 1), 1)]  # (8, 3, 3, H, W)
            for i in range(len(names)):
                x_fake, k = G(x_fixed, set_attr(c_fixed, i, exclusive)), torch.full_like(c_fixed[:, :1], i).long()
                cams = attention(x_fixed, x_fake, set_attr(c_fixed, i, exclusive), k) if scored else []
                columns.append(torch.stack([x_fake.detach(), *(overlay(x_fixed, A) for A in cams)], 1))
            grid = torch.stack(columns, 2).flatten(0, 2) / 2 + 0.5  # (8, 3, 1 + c_dim, 3, H, W) -> images in order
            with or_exit(f'{out_dir}: cannot write there, disk full? {ckpt_path}, if any, is whole'):
                save_image(grid, os.path.join(out_dir, 'samples', f'{it:06d}.png'), nrow=len(columns))
            if it > max_iters / 10 and (columns[-1] - columns[-2])[:, 0].abs().mean() < 0.01:
                logging.info('warning: the last columns of the grid are alike, G ignores its label: lower --lambda_rec')
        if (it % ckpt_interval == 0 or done) and (it > start or it == 0):  # what was resumed is there already
            with or_exit(f'{ckpt_path}: cannot write, disk full? The last stays'), open(ckpt_path + '.tmp', 'wb') as f:
                torch.save(dict(
                    kind='stargan', G=G.state_dict(), D=D.state_dict(), opt_G=opt_G.state_dict(), iter=it,
                    opt_D=opt_D.state_dict(), rng=torch.get_rng_state(), g_args=g_args, d_args=d_args, attrs=names,
                    exclusive=exclusive, config=config, script=os.path.basename(__file__), source=source), f)
                f.flush()
                os.fsync(f.fileno())
            os.replace(ckpt_path + '.tmp', ckpt_path)
        if done:
            break
        t_start += time.time() - t_aside  # rate and ETA are those of training

        # 1. data: real images with their labels; the target labels are the same ones, dealt anew
        i = rows[torch.randint(len(rows), (batch_size,))]
        x_real, c_org = get_batch(train_x, train_y, i, image_size, device)
        c_trg = c_org[torch.randperm(batch_size).to(device)]
        for opt in (opt_G, opt_D):
            lr_now = lr * min(1, 2 * (1 - it / max_iters))
            opt.param_groups[0]['lr'] = opt.param_groups[0]['lr'].fill_(lr_now) if cuda_graph else lr_now

        # 2. discriminator and, once in n_critic iterations, 3. generator
        d_step(x_real, c_org, c_trg)
        if (it + 1) % n_critic == 0:
            g_step(x_real, c_org, c_trg)
