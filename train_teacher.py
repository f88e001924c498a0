"""
Trains a teacher for attention distillation: StarGAN (Choi et al. 2018) with WGAN-GP.

The generator G translates a face x to the attributes c. The discriminator D tells real faces from
translated ones and reads their attributes. A face translated to c and back must be the same face.
`diff train_teacher.py train_student.py` shows what attention distillation adds.

    L_D = E[D(x_fake)] - E[D(x_real)] + lambda_gp GP + lambda_cls L_cls(x_real)              eq. (4)
    L_G = -E[D(x_fake)] + lambda_cls L_cls(x_fake) + lambda_rec |x_real - G(x_fake, c_org)|  eq. (5)

$ python data/toyfaces/prepare.py && python train_teacher.py --dataset=toyfaces  # drawn faces
$ python data/celeba/prepare.py --src=... && python train_teacher.py             # the paper's run
"""

import contextlib
import difflib
import json
import os
import pickle
import shlex
import shutil
import signal
import sys
import time

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from PIL import ImageDraw
from torchvision.transforms.functional import to_pil_image

# -----------------------------------------------------------------------------
# I/O
out_dir = 'out/teacher'  # gets ckpt.pt, log.txt, samples/ and a copy of this script
log_interval = 100  # iterations between two lines of the log
sample_interval = 5000  # iterations between two grids of sample images
ckpt_interval = 5000  # iterations between two checkpoints
resume = False  # go on from out_dir/ckpt.pt, if there is one
init_from = ''  # start from the weights of a ckpt.pt, or of StarGAN's own files, G.ckpt,D.ckpt
# data
dataset = 'celeba'  # a folder under data/, or the path of any folder that a prepare.py wrote
image_size = 0  # pixels; 0: the size of the data; a smaller size must divide it
attrs = 'Goatee,Rosy_Cheeks,Eyeglasses,Mustache,Blond_Hair,Pale_Skin,Heavy_Makeup'  # or 'all'
# nets: the paper's T has conv_dim 64 and 6 blocks, S 32 and 3, S-Lite 16 and 1
conv_dim = 64  # channels of G's first layer; the residual blocks have 4 times as many
n_blocks = 6  # residual blocks of G
d_conv_dim = 64  # channels of D's first layer; each further layer has twice as many
d_n_layers = 6  # layers of D; each halves the image, so 2^d_n_layers must divide image_size
# weights of the losses, eq. (4) and (5)
lambda_cls = 1.0  # classification: higher changes a face more
lambda_rec = 10.0  # reconstruction: higher changes a face less; short runs want 20
lambda_gp = 10.0  # gradient penalty
n_critic = 5  # steps of D for each step of G; short runs want 1
# optimiser: Adam with betas (0.5, 0.999)
max_iters = 200000  # iterations, each with a step of D; 0 writes the nets as they start
batch_size = 16  # images
lr = 1e-4  # constant for half of the run, then falls linearly to 0; short runs want up to 1e-3
# system
device = ''  # 'cpu', 'cuda', 'cuda:1'; '': the GPU if there is one
dtype = 'float32'  # or 'bfloat16', which runs the nets under autocast; most CPUs are slower by it
seed = 0  # on a CPU the same command with the same seed gives the same weights
# -----------------------------------------------------------------------------
# On the command line --key=value overrides a global of this block, and keeps its type.
config_keys = [k for k, v in globals().items() if k[0] != '_' and isinstance(v, (int, float, str))]
options = sys.argv[1:] if __name__ == '__main__' else []
for option in options:
    if option in ('-h', '--help'):
        print(__doc__ or '', open(__file__, encoding='utf-8').read().split('# ' + '-' * 77)[1])
        sys.exit()
    key, equals, value = option.removeprefix('--').partition('=')
    if not option.startswith('--') or key not in config_keys:
        similar = difflib.get_close_matches(key, config_keys) or config_keys
        sys.exit(f"{option}: not a --key=value of this script. Similar: {', '.join(similar)}")
    default = globals()[key]
    if not equals:
        sys.exit(f'{option}: wants a value, say --{key}={True if default is False else default}')
    try:
        if isinstance(default, bool):
            value = {'True': True, 'False': False}[value]
        elif isinstance(default, str):
            # The shell leaves the ~ of --key=~/folder as it is.
            value = ','.join(os.path.expanduser(part) for part in value.split(','))
        else:
            value = type(default)(value)
    except (KeyError, ValueError):
        wanted = 'True or False' if isinstance(default, bool) else f'a number like {default}'
        sys.exit(f'{option}: wants {wanted}')
    # Numbers are finite and at least 0; those that count something, at least 1.
    may_be_0 = default == 0 or key in ('max_iters', 'pool_size', 'max_bad', 'seed')
    lowest = 1 if type(default) is int and not may_be_0 else 0
    if not isinstance(value, str) and not lowest <= value < 2 ** 63:
        sys.exit(f'{option}: wants a finite number, at least {lowest}, below 2^63')
    globals()[key] = value
# -----------------------------------------------------------------------------
HERE = os.path.dirname(os.path.abspath(__file__))


# The text from '# nets' to '# data' is compared with that in a checkpoint: keep both lines.
# nets
class ResidualBlock(nn.Module):
    """(B, dim, h, w) -> the same shape. No biases: the instance norms would remove them."""

    def __init__(self, dim):
        super().__init__()
        self.main = nn.Sequential(
            nn.Conv2d(dim, dim, 3, 1, 1, bias=False),
            nn.InstanceNorm2d(dim, affine=True),
            nn.ReLU(),
            nn.Conv2d(dim, dim, 3, 1, 1, bias=False),
            nn.InstanceNorm2d(dim, affine=True))

    def forward(self, x):
        return x + self.main(x)


class Generator(nn.Module):
    """Images x (B, 3, H, W) in [-1, 1], labels c (B, c_dim) in {0, 1} -> images. 4 divides H, W."""

    def __init__(self, conv_dim, c_dim, n_blocks):
        super().__init__()
        d = conv_dim
        # The labels enter as constant planes. An instance norm removes a constant plane, except at
        # the border, where it meets the zeros of the padding. Without them G is blind to labels.
        self.down = nn.Sequential(
            nn.Conv2d(3 + c_dim, d, 7, 1, 3, bias=False),  # (B, d, H, W)
            nn.InstanceNorm2d(d, affine=True),
            nn.ReLU(),
            nn.Conv2d(d, 2 * d, 4, 2, 1, bias=False),  # (B, 2d, H/2, W/2)
            nn.InstanceNorm2d(2 * d, affine=True),
            nn.ReLU(),
            nn.Conv2d(2 * d, 4 * d, 4, 2, 1, bias=False),  # (B, 4d, H/4, W/4)
            nn.InstanceNorm2d(4 * d, affine=True),
            nn.ReLU())
        self.res = nn.Sequential(*[ResidualBlock(4 * d) for _ in range(n_blocks)])
        self.up = nn.Sequential(
            nn.ConvTranspose2d(4 * d, 2 * d, 4, 2, 1, bias=False),  # (B, 2d, H/2, W/2)
            nn.InstanceNorm2d(2 * d, affine=True),
            nn.ReLU(),
            nn.ConvTranspose2d(2 * d, d, 4, 2, 1, bias=False),  # (B, d, H, W)
            nn.InstanceNorm2d(d, affine=True),
            nn.ReLU())
        self.out = nn.Sequential(nn.Conv2d(d, 3, 7, 1, 3, bias=False), nn.Tanh())

    def forward(self, x, c):
        planes = c[:, :, None, None].expand(-1, -1, *x.shape[2:])  # (B, c_dim, H, W)
        h = self.down(torch.cat([x, planes], 1))
        return self.out(self.up(self.res(h)))


class Discriminator(nn.Module):
    """Images (B, 3, S, S) -> out_src (B, 1, s, s), high where real; out_cls (B, c_dim), logits."""

    def __init__(self, image_size, conv_dim, c_dim, n_layers):
        super().__init__()
        self.down = nn.ModuleList()
        channels = 3
        for layer in range(n_layers):
            self.down.append(nn.Conv2d(channels, conv_dim * 2 ** layer, 4, 2, 1))
            channels = conv_dim * 2 ** layer
        self.src = nn.Conv2d(channels, 1, 3, 1, 1, bias=False)
        self.cls = nn.Conv2d(channels, c_dim, image_size // 2 ** n_layers, bias=False)

    def forward(self, x):
        for conv in self.down:
            x = conv(x)
            # A leaky ReLU. The gradient penalty differentiates twice, and the second derivative
            # of F.leaky_relu, though it is 0, takes time.
            x = torch.where(x > 0, x, 0.01 * x)
        return self.src(x), self.cls(x).flatten(1)


# data
def find_data(dataset):
    """The name of a folder under data/, or any path -> the folder, and its meta.json as a dict."""
    folder = f'{HERE}/data/{dataset}'
    if not os.path.exists(f'{folder}/meta.json'):
        folder = dataset
    with or_exit(f'--dataset={dataset}: no meta.json to be used; a prepare.py under data/ makes it'):
        with open(f'{folder}/meta.json', encoding='utf-8') as file:
            meta = json.load(file)
        check_fields(meta, label=str, image_size=int)
        for name in ('attrs', 'exclusive', 'domains'):
            if name in meta:
                check_fields(meta, **{name: list})
    return folder, meta


def load_split(folder, meta, split, names):
    """-> images x (N, H, W, 3) uint8, left on the disk until used, and labels y (N, len(names))."""
    known = meta.get('attrs', ['none, but two domains, for train_uag.py'])
    if not names or len(set(names)) < len(names) or not set(names) <= set(known):
        sys.exit(f"--attrs={','.join(names)}: wants some of {folder}, each once: {', '.join(known)}")
    with or_exit(f'{folder}: damaged, prepare the data again'):
        # Copy on write, 'c', because torch warns of arrays that are read-only.
        x = np.load(f'{folder}/{split}_x.npy', mmap_mode='c')
        y = np.load(f'{folder}/{split}_y.npy')
        shape = (len(y), meta['image_size'], meta['image_size'], 3)
        if x.dtype != 'uint8' or x.shape != shape or y.shape[1] != len(known) or len(y) == 0:
            raise ValueError(f'{split}_x.npy is {x.dtype} {x.shape}, {split}_y.npy {y.shape}')
        y = y[:, [known.index(name) for name in names]]
    return torch.from_numpy(x), torch.from_numpy(y).float()


def to_float(x, size):
    """(B, H, W, 3) uint8 -> (B, 3, size, size) float in [-1, 1]; a smaller size is averaged."""
    # Convolutions are slower on images whose channels lie last in memory, hence contiguous().
    x = x.permute(0, 3, 1, 2).contiguous().float()
    return F.avg_pool2d(x, x.shape[2] // size) / 127.5 - 1


def set_attr(c_org, i, exclusive):
    """Labels (B, c_dim) with attribute i on, and the attributes that exclude it off."""
    c = c_org.clone()
    for group in exclusive:
        if i in group:
            c[:, group] = 0
    c[:, i] = 1
    return c


# losses
def gradient_penalty(D, x_real, x_fake, alpha):
    """E[(|d out_src / d x_hat| - 1)^2] at x_hat = alpha x_real + (1 - alpha) x_fake.

    alpha (B, 1, 1, 1) lies in [0, 1].
    out_src is summed over its positions, as in StarGAN. The norm is .norm(), whose gradient at 0
    is 0: that of the square root of a sum is NaN.
    """
    x_hat = (alpha * x_real + (1 - alpha) * x_fake).detach().requires_grad_()
    out_src, _ = D(x_hat)
    grad, = torch.autograd.grad(out_src.sum(), x_hat, create_graph=True)
    return ((grad.flatten(1).norm(dim=1) - 1) ** 2).mean()


def cls_loss(out_cls, c, multi_label):
    """Cross entropy of logits and labels (B, c_dim), for each attribute or over the classes."""
    if multi_label:
        return F.binary_cross_entropy_with_logits(out_cls, c, reduction='sum') / len(c)
    return F.cross_entropy(out_cls, c)


# files
def save_grid(path, columns, names):
    """Draws columns of images in [-1, 1], each (rows, 3, H, W), with their names above them."""
    grid = torch.cat(columns, 3)  # (rows, 3, H, width)
    grid = torch.cat(list(grid), 1)  # (3, height, width)
    zoom = max(1, 96 // columns[0].shape[3])
    grid = grid.repeat_interleave(zoom, 1).repeat_interleave(zoom, 2)
    grid = F.pad(grid, (0, 0, 16, 0), value=-1)
    picture = to_pil_image((127.5 * grid + 128).clamp(0, 255).byte().cpu())
    for i, name in enumerate(names):
        ImageDraw.Draw(picture).text((i * picture.width // len(names) + 2, 2), name)
    picture.save(path)


@contextlib.contextmanager
def or_exit(message):
    """Ends the script with one line if a file is missing or wrong. Other errors keep a traceback."""
    try:
        yield
    except (AssertionError, AttributeError, EOFError, LookupError, OSError, RuntimeError, TypeError,
            ValueError, pickle.UnpicklingError) as error:
        first_sentence = ' '.join(str(error).split()).split('. ')[0]
        sys.exit(f'{message} ({type(error).__name__}: {first_sentence[:200]})')


def check_fields(fields, **kinds):
    """Raises ValueError unless `fields`, read from a file, is a dict with values of these kinds."""
    for name, kind in kinds.items():
        if not isinstance(fields, dict) or not isinstance(fields.get(name), kind):
            raise ValueError(f'{name} is missing, or no {kind.__name__}')


def nets_section(source):
    """The part of a script's text that has its nets."""
    return source.partition('\n# nets\n')[2].partition('\n# data\n')[0]


def start_from(path, net, key, names):
    """Gives G or D, by its key, the weights of a ckpt.pt or of one of StarGAN's own files.

    Weights of another shape stay new, and so do those that belong to attributes, if they are others.
    StarGAN's files are taken to be of the attributes `names`, in this order.
    """
    own = net.state_dict()
    with or_exit(f'--init_from={init_from}: wants a ckpt.pt, or G.ckpt,D.ckpt, of these sizes'):
        file = torch.load(path, map_location='cpu', weights_only=True)
        # StarGAN's have the same order, but other names, and statistics that are not used.
        weights = [w for name, w in file.get(key, file).items() if name.endswith(('weight', 'bias'))]
        weights = dict(zip(own, weights, strict=True))
        fitting = {name: w for name, w in weights.items() if w.shape == own[name].shape}
        if file.get('attrs', names) != names:
            fitting.pop('down.0.weight' if key == 'G' else 'cls.weight', None)
        net.load_state_dict(own | fitting)
    return f'{key}: {len(fitting)} of {len(own)} tensors come from {path}, the others are new'


if __name__ == '__main__':
    saved = 'nothing is saved yet'
    signal.signal(signal.SIGINT, lambda signum, frame: sys.exit(f'stopped: {saved}'))
    # A name that the terminal cannot show must not end a run.
    sys.stdout.reconfigure(errors='backslashreplace')
    if dtype not in ('float32', 'bfloat16'):
        sys.exit(f'--dtype={dtype}: wants float32 or bfloat16')
    device = device or ('cuda' if torch.cuda.is_available() else 'cpu')
    with or_exit(f'--device={device}: no such device here'):
        torch.zeros(1, device=device)

    # data
    data_dir, meta = find_data(dataset)
    names = meta.get('attrs', []) if attrs == 'all' else attrs.split(',')
    multi_label = meta['label'] == 'multi'
    train_x, train_y = load_split(data_dir, meta, 'train', names)
    test_x, test_y = load_split(data_dir, meta, 'test', names)
    image_size = image_size or meta['image_size']
    if meta['image_size'] % image_size or image_size % 4:
        sys.exit(f"--image_size={image_size}: wants a multiple of 4 that divides {meta['image_size']}")
    if image_size % 2 ** d_n_layers:
        most = max(n for n in range(12) if image_size % 2 ** n == 0)
        sys.exit(f'{image_size} is no multiple of 2^{d_n_layers}: --d_n_layers={most} or less')
    # Images are kept on the GPU if they take less than half of its free memory.
    if 'cuda' in device:
        torch.backends.cudnn.benchmark = True
        if train_x.nbytes < torch.cuda.mem_get_info(device)[0] / 2:
            train_x = train_x.to(device)
    train_y = train_y.to(device)
    # The images to train on. Where each has one class only, those of other classes are left out.
    rows = torch.arange(len(train_x), device=device)
    if not multi_label:
        rows = train_y.sum(1).nonzero().flatten()
        if len(names) < 2 or len(rows) == 0 or train_y.sum(1).max() > 1:
            sys.exit(f'--attrs={attrs}: wants two classes or more, and images of one of them each')
    # Groups of attributes that exclude each other, such as hair colours, as lists of columns of y.
    exclusive = []
    for group in meta.get('exclusive', []):
        if not isinstance(group, list) or not set(group) <= set(meta['attrs']):
            sys.exit(f'{data_dir}/meta.json: exclusive wants lists of attributes, not {group}')
        exclusive.append([names.index(name) for name in group if name in names])

    # nets and optimisers
    torch.manual_seed(seed)
    g_args = dict(conv_dim=conv_dim, c_dim=len(names), n_blocks=n_blocks)
    d_args = dict(image_size=image_size, conv_dim=d_conv_dim, c_dim=len(names), n_layers=d_n_layers)
    G = Generator(**g_args).to(device)
    D = Discriminator(**d_args).to(device)
    opt_G = torch.optim.Adam(G.parameters(), lr, betas=(0.5, 0.999), fused=True)
    opt_D = torch.optim.Adam(D.parameters(), lr, betas=(0.5, 0.999), fused=True)
    saved_parts = dict(G=G, D=D, opt_G=opt_G, opt_D=opt_D)

    def log(text):
        """Prints a line, and adds it to log.txt."""
        path = f'{out_dir}/log.txt'
        with or_exit(f'{path}, or the terminal, cannot be written; {saved}'):
            print(text, flush=True)
            with open(path, 'a', encoding='utf-8', errors='backslashreplace') as file:
                file.write(f'{text}\n')

    # start anew, or go on where an earlier run has stopped
    it = 0
    script = os.path.basename(__file__)
    source = open(__file__, encoding='utf-8').read()
    ckpt_path = f'{out_dir}/ckpt.pt'
    if os.path.exists(ckpt_path) and not resume:
        sys.exit(f'{ckpt_path} exists: go on with --resume=True, or choose another --out_dir=')
    with or_exit(f'--out_dir={out_dir}: cannot write there'):
        os.makedirs(f'{out_dir}/samples', exist_ok=True)
    log(f'$ python {shlex.join(sys.argv)}')
    if os.path.exists(ckpt_path):
        with or_exit(f'{ckpt_path}: cannot go on from it with these options'):
            ckpt = torch.load(ckpt_path, map_location='cpu', weights_only=True)
            check_fields(ckpt, iter=int, config=dict, source=str)
            if ckpt['script'] != script or ckpt['attrs'] != names:
                raise ValueError('it is of another script, or of other attributes')
            for name, part in saved_parts.items():
                part.load_state_dict(ckpt[name])
            it = ckpt['iter']
            # A CPU goes on with the random numbers of an uninterrupted run, a GPU with others.
            torch.manual_seed(seed + it)
            torch.set_rng_state(ckpt['rng'])
        saved = f'{ckpt_path} is of iteration {it}, --resume=True goes on from there'
        if nets_section(ckpt['source']) != nets_section(source):
            log(f'warning: the nets of {script} have changed since {ckpt_path} was written')
        for key in config_keys:
            before = ckpt['config'].get(key)
            if before != globals()[key] and key not in ('resume', 'out_dir', 'device'):
                log(f'warning: --{key} was {before}, and is {globals()[key]} from here on')
    with or_exit(f'--out_dir={out_dir}: cannot write there'):
        shutil.copy(__file__, out_dir)
    if init_from and it == 0:
        log(start_from(init_from.split(',')[0], G, 'G', names))
        log(start_from(init_from.split(',')[-1], D, 'D', names))
    log(f'G has {sum(p.numel() for p in G.parameters()):,} parameters, on {device}')
    log(f"{len(rows):,} images of {data_dir}; samples have the columns: input, {','.join(names)}")

    x_fixed = to_float(test_x[:8], image_size).to(device)
    c_fixed = test_y[:8].to(device)
    # name -> values since the last line of the log, as tensors: to read a number waits for the GPU
    losses = {}

    def remember(**new_losses):
        for name, loss in new_losses.items():
            losses.setdefault(name, []).append(loss.detach())

    def autocast():
        """A new one each time, because one cannot stand within itself."""
        device_type = torch.device(device).type
        return torch.autocast(device_type, torch.bfloat16, enabled=dtype == 'bfloat16')

    def get_batch():
        """Real images (B, 3, S, S), half of them flipped, and their labels (B, c_dim)."""
        row = rows[torch.randint(len(rows), (batch_size,), device=device)]
        x = to_float(train_x[row.to(train_x.device)].to(device), image_size)
        flip = torch.rand(batch_size, 1, 1, 1, device=device) < 0.5
        return torch.where(flip, x.flip(3), x), train_y[row]

    def d_step(x_real, c_org, x_fake):
        """eq. (4): E[D(x_fake)] - E[D(x_real)] + lambda_gp GP + lambda_cls L_cls(x_real)"""
        D.requires_grad_(True)
        with autocast():
            # One pass for both: D has no norm layers, so images do not mix.
            out_src, out_cls = D(torch.cat([x_real, x_fake]))
        d_loss_real = -out_src[:batch_size].float().mean()
        d_loss_fake = out_src[batch_size:].float().mean()
        d_loss_cls = cls_loss(out_cls[:batch_size].float(), c_org, multi_label)
        alpha = torch.rand(batch_size, 1, 1, 1, device=device)
        # Without autocast: bfloat16 would change the norm of the gradient by 0.3 %.
        d_loss_gp = gradient_penalty(D, x_real, x_fake.float(), alpha)
        d_loss = d_loss_real + d_loss_fake + lambda_cls * d_loss_cls + lambda_gp * d_loss_gp
        opt_D.zero_grad()
        d_loss.backward()
        opt_D.step()
        remember(D_real=d_loss_real, D_fake=d_loss_fake, D_cls=d_loss_cls, D_gp=d_loss_gp)

    def g_step(x_real, c_org, x_fake, c_trg):
        """eq. (5): -E[D(x_fake)] + lambda_cls L_cls(x_fake) + lambda_rec |x_real - x_rec|_1"""
        # D only passes the gradient on to G. That of its own weights is not computed.
        D.requires_grad_(False)
        with autocast():
            out_src, out_cls = D(x_fake)
            x_rec = G(x_fake, c_org)
        g_loss_fake = -out_src.float().mean()
        g_loss_rec = (x_real - x_rec).abs().mean()
        g_loss_cls = cls_loss(out_cls.float(), c_trg, multi_label)
        g_loss = g_loss_fake + lambda_rec * g_loss_rec + lambda_cls * g_loss_cls
        opt_G.zero_grad()
        g_loss.backward()
        opt_G.step()
        remember(G_fake=g_loss_fake, G_rec=g_loss_rec, G_cls=g_loss_cls)

    def log_line():
        line = f'iter {it:6d}/{max_iters} |'
        for name, values in losses.items():
            line += f' {name} {torch.stack(values).mean():8.3g}'
        losses.clear()
        rate = (it - start_it) / (time.time() - start_time)
        minutes = (max_iters - it) / rate / 60
        log(f'{line} | {rate:.2f} it/s | eta {minutes:.0f} min')
        if it == 10 and minutes > 1000 and device == 'cpu':
            log('That is for a GPU. A CPU wants small images and nets, --n_critic=1 --lr=1e-3 '
                '--lambda_rec=20 --max_iters=5000')

    def save_samples():
        """A grid with a row for each test image: the input, then each attribute switched on."""
        columns = [x_fixed]
        for i in range(len(names)):
            with torch.no_grad():
                columns.append(G(x_fixed, set_attr(c_fixed, i, exclusive)))
        with or_exit(f'{out_dir}/samples: cannot write there, {saved}'):
            save_grid(f'{out_dir}/samples/{it:06d}.png', columns, ['input', *names])
        difference = (columns[-1] - columns[-2]).abs().mean()
        if it > max_iters / 10 and difference < 0.01:
            log('warning: G ignores its label, as the last columns are alike: lower --lambda_rec')

    def save_checkpoint():
        """Replaces ckpt.pt when the new one is complete: there is a good one at any time."""
        global saved
        for p in [*G.parameters(), *D.parameters()]:
            if not p.isfinite().all():
                sys.exit(f'iter {it}: weights are not finite, lower --lr; {saved}')
        ckpt = {name: part.state_dict() for name, part in saved_parts.items()}
        ckpt.update(
            kind='stargan', attrs=names, exclusive=exclusive, g_args=g_args, d_args=d_args,
            iter=it, rng=torch.get_rng_state(), config={k: globals()[k] for k in config_keys},
            script=script, source=source)
        with or_exit(f'{ckpt_path}: cannot be written; {saved}'):
            with open(f'{ckpt_path}.tmp', 'wb') as file:
                torch.save(ckpt, file)
            os.replace(f'{ckpt_path}.tmp', ckpt_path)
        saved = f'{ckpt_path} is of iteration {it}, --resume=True goes on from there'

    start_it = it
    start_time = time.time()
    if it == 0:
        save_samples()
        save_checkpoint()
    elif it >= max_iters:
        log(f'{ckpt_path} is of iteration {it}: done. A larger --max_iters= goes on.')
    while it < max_iters:
        for group in opt_G.param_groups + opt_D.param_groups:
            group['lr'] = lr * min(1, 2 * (1 - it / max_iters))

        # 1. data: the target labels are the labels of the same images, shuffled
        x_real, c_org = get_batch()
        c_trg = c_org[torch.randperm(batch_size, device=device)]

        # 2. discriminator
        train_G = (it + 1) % n_critic == 0
        with autocast(), torch.set_grad_enabled(train_G):
            x_fake = G(x_real, c_trg)
        d_step(x_real, c_org, x_fake.detach())

        # 3. generator: it has not changed since, so it goes on from the same x_fake
        if train_G:
            g_step(x_real, c_org, x_fake, c_trg)

        it += 1
        done = it == max_iters
        if it % log_interval == 0 or it == 10 or done:
            log_line()
        if it % sample_interval == 0 or done:
            save_samples()
        if it % ckpt_interval == 0 or done:
            save_checkpoint()
