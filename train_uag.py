"""
Trains attention-guided translation (Mejjati et al. 2018) between two domains of unpaired images.

s is an image of domain S, say an apple on a table, t is one of T, an orange. For each domain there
is an attention net A that says where the object is, a generator G that repaints it, and a
discriminator D that tells real images from translated ones. The background is copied:

    a = A_s(s) in [0, 1]        s' = a G_st(a s) + (1 - a) s       the translation of s to T
    L_adv = (D_t(t) - 1)^2 + D_t(s')^2                             D_t wants 1 for t, 0 for s'
    L_cyc = |s - s''|           s'' = s' translated back, with its own map A_t(s')
    L = L_adv + lambda_cyc L_cyc, and the same from T to S

First D judges whole images, and A learns to mark what D notices. At the switch A is good enough:
it stays as it is, and D_t judges t [A_t(t) >= tau] and s' [A_s(s) >= tau] only, the objects.

$ python data/toyfruit/prepare.py && python train_uag.py --dataset=toyfruit --n_epochs=20  # drawn
$ python data/unpaired/prepare.py --src=horse2zebra.zip && python train_uag.py             # photos
$ python train_uag.py --masked_d=False --out_dir=out/uag_d      # the paper's ablation "Ours-D"
$ python train_uag.py --attention=False --out_dir=out/cyclegan  # its baseline, plain CycleGAN
"""

import collections
import contextlib
import difflib
import json
import math
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
out_dir = 'out/uag'  # gets ckpt.pt, log.txt, samples/ and a copy of this script
log_interval = 100  # iterations between two lines of the log
sample_interval = 5000  # iterations between two grids of sample images
ckpt_interval = 5000  # iterations between two checkpoints
resume = False  # go on from out_dir/ckpt.pt, if there is one
# data: domain A of the data is S, B is T
dataset = 'unpaired'  # a folder under data/, or the path of any folder that a prepare.py wrote
image_size = 0  # pixels of random crops, a multiple of 4; 0: 256 of data of 286, else the data's size
# nets: the paper's are 32/9, 64/3 and 32
ngf = 32  # channels of a generator's first layer; the residual blocks have 4 times as many
n_blocks = 9  # residual blocks of a generator; fewer change less
ndf = 64  # channels of a discriminator's first layer; each further layer has twice, at most 8 times
d_n_layers = 3  # layers of D that halve: 3 judges patches of 70 px, 2 of 34 px, for small images
naf = 32  # channels of an attention net's first layer
# method
attention = True  # False: no attention nets, s' = G(s): plain CycleGAN
masked_d = True  # False: D judges whole images to the end, there is no switch: "Ours-D"
switch_at = 0.3  # share of the epochs before the switch; the maps must be good by then
tau = 0.1  # threshold of the mask that D sees through: higher shows it less around the object
hard = True  # from the switch on G, too, paints with [A >= tau]; False: with A, as the paper does
drop_norm = False  # True: from the switch on D has no instance norm, as in the authors' code
lambda_cyc = 10.0  # weight of the cycle loss: higher changes an image less
pool_size = 50  # past fakes, with their maps, that D learns from as well; 0: only the newest
# optimiser: Adam with betas (0.5, 0.999)
n_epochs = 100.0  # each sees every image of the larger domain; 0 writes the nets as they start
decay_at = 0.5  # share of the epochs after which lr falls linearly to 0; 1: never
batch_size = 1  # images of each domain
lr = 1e-4  # before it falls; short runs and larger batches want up to 1e-3
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
def conv(d_in, d_out, kernel, stride=1, pad='zeros'):
    """Convolution and instance norm: (B, d_in, H, W) -> (B, d_out, H / stride, W / stride)."""
    # The norm removes the bias. It is there so that the nets have as many parameters as the authors'.
    return nn.Sequential(
        nn.Conv2d(d_in, d_out, kernel, stride, kernel // 2, padding_mode=pad),
        nn.InstanceNorm2d(d_out, affine=True))


class ResidualBlock(nn.Module):
    """(B, dim, h, w) -> the same shape."""

    def __init__(self, dim):
        super().__init__()
        self.conv1 = conv(dim, dim, 3, pad='reflect')
        self.conv2 = conv(dim, dim, 3, pad='reflect')

    def forward(self, x):
        # Unlike CycleGAN's blocks these end with a ReLU.
        return F.relu(x + self.conv2(F.relu(self.conv1(x))))


class Generator(nn.Module):
    """Images (B, 3, H, W) in [-1, 1] -> images like them. H and W are multiples of 4."""

    def __init__(self, ngf=32, n_blocks=9):
        super().__init__()
        d = ngf
        self.down = nn.Sequential(
            conv(3, d, 7, pad='reflect'), nn.ReLU(),  # (B, d, H, W)
            conv(d, 2 * d, 3, stride=2), nn.ReLU(),  # (B, 2d, H/2, W/2)
            conv(2 * d, 4 * d, 3, stride=2), nn.ReLU())  # (B, 4d, H/4, W/4)
        self.res = nn.Sequential(*[ResidualBlock(4 * d) for _ in range(n_blocks)])
        self.up = nn.Sequential(
            # Stride 2 takes 2h - 1 pixels to h as well. output_padding=1 says that 2h are meant.
            nn.ConvTranspose2d(4 * d, 2 * d, 3, 2, 1, output_padding=1),  # (B, 2d, H/2, W/2)
            nn.InstanceNorm2d(2 * d, affine=True),
            nn.ReLU(),
            nn.ConvTranspose2d(2 * d, d, 3, 2, 1, output_padding=1),  # (B, d, H, W)
            nn.InstanceNorm2d(d, affine=True),
            nn.ReLU())
        self.out = nn.Sequential(nn.Conv2d(d, 3, 7, 1, 3, padding_mode='reflect'), nn.Tanh())

    def forward(self, x):
        return self.out(self.up(self.res(self.down(x))))


class Attention(nn.Module):
    """Images (B, 3, H, W) in [-1, 1] -> maps (B, 1, H, W) in [0, 1]. H and W are multiples of 4."""

    def __init__(self, naf=32):
        super().__init__()
        d = naf
        self.down = nn.Sequential(
            conv(3, d, 7, stride=2, pad='reflect'), nn.ReLU(),  # (B, d, H/2, W/2)
            conv(d, 2 * d, 3, stride=2), nn.ReLU())  # (B, 2d, H/4, W/4)
        self.res = ResidualBlock(2 * d)
        # The authors' code has these convolutions at 1x1, by a slip in their arguments.
        self.up = nn.Sequential(
            nn.Upsample(scale_factor=2),
            conv(2 * d, 2 * d, 3, pad='reflect'), nn.ReLU(),  # (B, 2d, H/2, W/2)
            nn.Upsample(scale_factor=2),
            conv(2 * d, d, 3, pad='reflect'), nn.ReLU())  # (B, d, H, W)
        self.out = nn.Sequential(nn.Conv2d(d, 1, 7, 1, 3, padding_mode='reflect'), nn.Sigmoid())

    def forward(self, x):
        return self.out(self.up(self.res(self.down(x))))


class Discriminator(nn.Module):
    """Images (B, 3, S, S) -> (B, 1, s, s): near 1 where a patch looks real. s = S / 2^n_layers - 2."""

    def __init__(self, ndf=64, n_layers=3):
        super().__init__()
        self.norm = True  # False leaves the instance norms out
        self.down = nn.ModuleList()
        self.norms = nn.ModuleList()
        channels = 3
        for i in range(n_layers + 1):
            # The last of these layers does not halve. Padding 1 is CycleGAN's: with the authors' 2
            # a small image has as many patches of padding as of image.
            stride = 2 if i < n_layers else 1
            width = ndf * min(2 ** i, 8)
            self.down.append(nn.Conv2d(channels, width, 4, stride, padding=1))
            self.norms.append(nn.InstanceNorm2d(width, affine=True))
            channels = width
        self.out = nn.Conv2d(channels, 1, 4, padding=1)

    def forward(self, x):
        for down, norm in zip(self.down, self.norms):
            x = down(x)
            if self.norm:
                x = norm(x)
            x = F.leaky_relu(x, 0.2)
        return self.out(x)


def translate(x, A, G, tau=None):
    """Images x (B, 3, H, W) -> translations, maps (B, 1, H, W) and foregrounds, what G is shown.

    With tau the map is [A(x) >= tau], 0 or 1. Without an attention net (A=None) it is 1 everywhere.
    """
    if A is None:
        return G(x).float(), torch.ones_like(x[:, :1]), x
    a = A(x).float()
    if tau is not None:
        a = (a >= tau).float()
    # Images are in [-1, 1], so the background is blanked with 0, a grey. The authors' code has G(x).
    x_f = a * x
    return a * G(x_f).float() + (1 - a) * x, a, x_f


def init_weights(net):
    """Weights from N(0, 0.02), biases 0. The maps of a fresh A are then near 1/2 everywhere."""
    for module in net.modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            nn.init.normal_(module.weight, 0, 0.02)
            nn.init.zeros_(module.bias)
    return net


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


def load_domain(folder, name):
    """The images of folder/name_x.npy: (N, S, S, 3) uint8, left on the disk until used."""
    with or_exit(f'{folder}: damaged, prepare the data again'):
        # Copy on write, 'c', because torch warns of arrays that are read-only.
        x = np.load(f'{folder}/{name}_x.npy', mmap_mode='c')
        if x.dtype != 'uint8' or x.shape[1:] != (x.shape[1], x.shape[1], 3) or len(x) == 0:
            raise ValueError(f'{name}_x.npy is {x.dtype} {x.shape}')
    return torch.from_numpy(x)


def random_crops(x, n, size, device):
    """n random images of x (N, S, S, 3), cropped, half of them flipped -> (n, 3, size, size)."""
    # Every crop that there is: a view (N, S - size + 1, S - size + 1, 3, size, size), not a copy.
    crops = x.unfold(1, size, 1).unfold(2, size, 1)
    i = torch.randint(len(x), (n,), device=device).to(x.device)
    flip = torch.rand(n, 1, 1, 1, device=device) < 0.5
    top, left = torch.randint(crops.shape[1], (2, n), device=device).to(x.device)
    # Convolutions are slower on images whose channels lie last in memory, hence contiguous().
    x = crops[i, top, left].to(device).contiguous() / 127.5 - 1
    return torch.where(flip, x.flip(3), x)


def whole_images(x, size):
    """(B, S, S, 3) uint8 -> (B, 3, size, size) in [-1, 1], resized: to show and to measure."""
    x = x.permute(0, 3, 1, 2).contiguous().float()
    if x.shape[2] != size:
        x = F.interpolate(x, (size, size), mode='bilinear', antialias=True)
    return x / 127.5 - 1


def past_fakes(pool, pool_size, x_fake, a):
    """Fakes (B, 3, H, W) with maps (B, 1, H, W) -> as many, half of them past ones from the pool.

    Each fake is kept with the map of its source, through which D is to see it.
    """
    chosen = []
    for new in zip(x_fake, a):
        # A clone, because a view would keep the whole batch in memory and in the checkpoint.
        new = (new[0].clone(), new[1].clone())
        if len(pool) < pool_size:
            pool.append(new)
        elif pool_size > 0 and torch.rand(()) < 0.5:
            j = int(torch.randint(pool_size, ()))
            past = pool[j]
            pool[j] = new
            new = past
        chosen.append(new)
    fakes, maps = zip(*chosen)
    return torch.stack(fakes), torch.stack(maps)


# losses of one direction, called for s -> t and for t -> s: what is mirrored by hand goes wrong
def seen_by_d(x, a, tau):
    """What D judges: the whole x, or with tau only its pixels where a >= tau."""
    if tau is None:
        return x
    return x * (a >= tau)


def lsgan_loss(out, target):
    """E[(out - target)^2]. D wants 1 for real and 0 for fake; G wants 1 for its fakes."""
    return ((out.float() - target) ** 2).mean()


def g_losses(x, A, G, D, A_back, G_back, tau_D, tau_G):
    """(D(x') - 1)^2 and |x - x''|; x', detached, and its map. A and G translate, D judges x'.

    A_back and G_back take x' back to x''. D sees through [a >= tau_D], G paints with [a >= tau_G].
    """
    x_fake, a, _ = translate(x, A, G, tau_G)
    x_cyc, _, _ = translate(x_fake, A_back, G_back, tau_G)
    loss_adv = lsgan_loss(D(seen_by_d(x_fake, a, tau_D)), 1)
    loss_cyc = (x_cyc - x).abs().mean()
    return loss_adv, loss_cyc, x_fake.detach(), a.detach()


def d_losses(D, x_real, a_real, x_fake, a_fake, tau_D):
    """(D(x_real) - 1)^2 / 2 and D(x_fake)^2 / 2; each image is seen through its map, if tau_D."""
    x_real = seen_by_d(x_real, a_real, tau_D)
    x_fake = seen_by_d(x_fake, a_fake, tau_D)
    # One pass for both: an instance norm does not mix images.
    out_real, out_fake = D(torch.cat([x_real, x_fake])).chunk(2)
    # Halved, as is usual, so that D learns slower than G.
    return lsgan_loss(out_real, 1) / 2, lsgan_loss(out_fake, 0) / 2


def answers_half(losses):
    """Whether D, by its losses real and fake (n, 2) of n iterations, answers 1/2 to all images.

    Then the means of both are (1 - 1/2)^2 / 2 = 1/8. Those of single batches scatter.
    """
    return bool(((8 * losses.mean(0) - 1).abs() < 0.01).all())


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


if __name__ == '__main__':
    saved = 'nothing is saved yet'
    signal.signal(signal.SIGINT, lambda signum, frame: sys.exit(f'stopped: {saved}'))
    # A name that the terminal cannot show must not end a run.
    sys.stdout.reconfigure(errors='backslashreplace')
    if dtype not in ('float32', 'bfloat16'):
        sys.exit(f'--dtype={dtype}: wants float32 or bfloat16')
    if max(switch_at, decay_at, tau) > 1:
        sys.exit('--switch_at, --decay_at and --tau: want shares, from 0 to 1')
    device = device or ('cuda' if torch.cuda.is_available() else 'cpu')
    with or_exit(f'--device={device}: no such device here'):
        torch.zeros(1, device=device)

    # data
    data_dir, meta = find_data(dataset)
    domains = meta.get('domains', [])
    if len(domains) != 2:
        sys.exit(f'--dataset={dataset}: has no two domains; train_teacher.py is for data with labels')
    train_s = load_domain(data_dir, 'trainA')
    train_t = load_domain(data_dir, 'trainB')
    test_s = load_domain(data_dir, 'testA')
    test_t = load_domain(data_dir, 'testB')
    data_size = min(train_s.shape[1], train_t.shape[1])
    image_size = image_size or (256 if data_size == 286 else data_size)
    if image_size % 4 or not 8 <= image_size <= data_size:
        sys.exit(f'--image_size={image_size}: wants a multiple of 4 from 8 to {data_size}, the data')
    most = max(n for n in range(12) if 3 * 2 ** n <= image_size)
    if d_n_layers > most:
        sys.exit(f'--d_n_layers={d_n_layers}: {image_size} px are halved at most {most} times')
    # Images are kept on the GPU if they take less than half of its free memory.
    if 'cuda' in device:
        torch.backends.cudnn.benchmark = True
        if train_s.nbytes + train_t.nbytes < torch.cuda.mem_get_info(device)[0] / 2:
            train_s = train_s.to(device)
            train_t = train_t.to(device)
    epoch = math.ceil(max(len(train_s), len(train_t)) / batch_size)
    max_iters = round(n_epochs * epoch)
    # Without maps, or if D is to judge whole images to the end, the switch is never reached.
    switch_iter = round(switch_at * max_iters) if attention and masked_d else max_iters

    # nets and optimisers
    torch.manual_seed(seed)
    g_args = dict(ngf=ngf, n_blocks=n_blocks)
    d_args = dict(ndf=ndf, n_layers=d_n_layers)
    a_args = dict(naf=naf) if attention else None
    G_st = init_weights(Generator(**g_args))
    G_ts = init_weights(Generator(**g_args))
    D_s = init_weights(Discriminator(**d_args))
    D_t = init_weights(Discriminator(**d_args))
    nets = nn.ModuleDict(dict(G_st=G_st, G_ts=G_ts, D_s=D_s, D_t=D_t))
    g_weights = [*G_st.parameters(), *G_ts.parameters()]
    A_s = None
    A_t = None
    if attention:
        A_s = init_weights(Attention(**a_args))
        A_t = init_weights(Attention(**a_args))
        nets.update(dict(A_s=A_s, A_t=A_t))
        g_weights += [*A_s.parameters(), *A_t.parameters()]
    d_weights = [*D_s.parameters(), *D_t.parameters()]
    nets.to(device)
    opt_G = torch.optim.Adam(g_weights, lr, betas=(0.5, 0.999), fused=True)
    opt_D = torch.optim.Adam(d_weights, lr, betas=(0.5, 0.999), fused=True)
    saved_parts = dict(**nets, opt_G=opt_G, opt_D=opt_D)
    # Past fakes with the maps of their sources, by the domain that they should belong to.
    pools = {'s': [], 't': []}
    # Thresholds of the masks that D sees through and that G paints with. They come at the switch.
    switched = False
    tau_D = None
    tau_G = None

    def switch():
        """What is different from the switch on. Called there, and when a later run is resumed."""
        global switched, tau_D, tau_G
        switched = True
        tau_D = tau
        tau_G = tau if hard else None
        A_s.requires_grad_(False)
        A_t.requires_grad_(False)
        # The authors' code drops D's norms, the paper does not. In short runs D then learns no more.
        D_s.norm = not drop_norm
        D_t.norm = not drop_norm

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
            check_fields(ckpt, iter=int, config=dict, source=str, switched=bool)
            same_data = ckpt['domains'] == domains and ckpt['image_size'] == image_size
            if ckpt['script'] != script or not same_data:
                raise ValueError('it is of another script, of other domains, or of images of another size')
            for name, part in saved_parts.items():
                part.load_state_dict(ckpt[name])
            for name, pool in pools.items():
                for fake, a in ckpt['pools'][name][:pool_size]:
                    pool.append((fake.to(device), a.to(device)))
            it = ckpt['iter']
            # A CPU goes on with the random numbers of an uninterrupted run, a GPU with others.
            torch.manual_seed(seed + it)
            torch.set_rng_state(ckpt['rng'])
        saved = f'{ckpt_path} is of iteration {it}, --resume=True goes on from there'
        if ckpt['switched']:
            switch()
        if nets_section(ckpt['source']) != nets_section(source):
            log(f'warning: the nets of {script} have changed since {ckpt_path} was written')
        for key in config_keys:
            before = ckpt['config'].get(key)
            if before != globals()[key] and key not in ('resume', 'out_dir', 'device'):
                log(f'warning: --{key} was {before}, and is {globals()[key]} from here on')
    with or_exit(f'--out_dir={out_dir}: cannot write there'):
        shutil.copy(__file__, out_dir)
    for name, net in nets.items():
        log(f'{name} has {sum(p.numel() for p in net.parameters()):,} parameters, on {device}')
    log(f'{data_dir}: {len(train_s):,} images of s, {domains[0]}, {len(train_t):,} of t, {domains[1]}')

    x_fixed_s = whole_images(test_s[:4], image_size).to(device)
    x_fixed_t = whole_images(test_t[:4], image_size).to(device)
    # name -> values since the last line of the log, as tensors: to read a number waits for the GPU
    losses = {}
    # The losses of D_s, real and fake, and of D_t, of the last 200 iterations.
    recent_d_losses = collections.deque(maxlen=200)
    warned = set()

    def remember(**new_losses):
        for name, loss in new_losses.items():
            losses.setdefault(name, []).append(loss.detach())

    def warn_once(text):
        if text not in warned:
            warned.add(text)
            log(f'warning: {text}')

    def autocast():
        """A new one each time, because one cannot stand within itself."""
        device_type = torch.device(device).type
        return torch.autocast(device_type, torch.bfloat16, enabled=dtype == 'bfloat16')

    def g_step(x_s, x_t):
        """(D_t(s') - 1)^2 + (D_s(t') - 1)^2 + lambda_cyc (|s - s''| + |t - t''|) -> t', a_t, s', a_s"""
        # D only passes the gradient on to G and A. That of its own weights is not computed.
        D_s.requires_grad_(False)
        D_t.requires_grad_(False)
        with autocast():
            loss_st, cyc_s, fake_t, a_s = g_losses(x_s, A_s, G_st, D_t, A_t, G_ts, tau_D, tau_G)
            loss_ts, cyc_t, fake_s, a_t = g_losses(x_t, A_t, G_ts, D_s, A_s, G_st, tau_D, tau_G)
        g_loss = loss_st + loss_ts + lambda_cyc * (cyc_s + cyc_t)
        opt_G.zero_grad()
        g_loss.backward()
        opt_G.step()
        remember(G_st=loss_st, G_ts=loss_ts, cyc_s=cyc_s, cyc_t=cyc_t)
        return fake_t, a_s, fake_s, a_t

    def d_step(x_s, a_s, fake_s, x_t, a_t, fake_t):
        """(D_t(t) - 1)^2 / 2 + D_t(s')^2 / 2, and the same of D_s; half of the fakes are past ones"""
        D_s.requires_grad_(True)
        D_t.requires_grad_(True)
        # The map of s' is that of s: where G has painted.
        past_t, past_a_s = past_fakes(pools['t'], pool_size, fake_t, a_s)
        past_s, past_a_t = past_fakes(pools['s'], pool_size, fake_s, a_t)
        with autocast():
            t_real, t_fake = d_losses(D_t, x_t, a_t, past_t, past_a_s, tau_D)
            s_real, s_fake = d_losses(D_s, x_s, a_s, past_s, past_a_t, tau_D)
        d_loss = s_real + s_fake + t_real + t_fake
        opt_D.zero_grad()
        d_loss.backward()
        opt_D.step()
        remember(D_s_real=s_real, D_s_fake=s_fake, D_t_real=t_real, D_t_fake=t_fake)
        recent_d_losses.append(torch.stack([s_real, s_fake, t_real, t_fake]).detach())

    def map_percents(A, x):
        """The mean of A's maps of the images x, and the share of their pixels >= tau, in %."""
        with torch.no_grad(), autocast():
            a = A(x).float()
        return 100 * a.mean().item(), 100 * (a >= tau).float().mean().item()

    def switch_if_maps_are_good():
        """If a map marks nearly all or nothing, D would have nothing to tell by: the switch waits."""
        _, seen_s = map_percents(A_s, x_fixed_s)
        _, seen_t = map_percents(A_t, x_fixed_t)
        if 1 < seen_s < 99 and 1 < seen_t < 99:
            switch()
            log(f'iter {it}: the switch: D now sees {seen_s:.0f} % of s and {seen_t:.0f} % of t')
        else:
            warn_once('a map is >= tau nearly everywhere or nowhere, so the switch waits')

    def log_line():
        line = f'iter {it:6d}/{max_iters} |'
        for name in 'D_s_real D_s_fake D_t_real D_t_fake G_st G_ts cyc_s cyc_t'.split():
            line += f' {name} {torch.stack(losses[name]).mean():8.3g}'
        losses.clear()
        if attention:
            mean_s, seen_s = map_percents(A_s, x_fixed_s)
            mean_t, seen_t = map_percents(A_t, x_fixed_t)
            line += f' A_s {mean_s:.0f} A_t {mean_t:.0f} seen_s {seen_s:.0f} seen_t {seen_t:.0f}'
        rate = (it - start_it) / (time.time() - start_time)
        minutes = (max_iters - it) / rate / 60
        log(f'{line} | {rate:.2f} it/s | eta {minutes:.0f} min')
        if it == 10 and minutes > 1000 and device == 'cpu':
            log('That is for a GPU. A CPU wants images of 64 px, --ngf=16 --n_blocks=3 --ndf=32 '
                '--naf=16 --d_n_layers=2 --batch_size=2 --lr=1e-3 --lambda_cyc=5 '
                '--n_epochs=3.6 --switch_at=0.83 --decay_at=0.83')
        recent = torch.stack(list(recent_d_losses))
        if len(recent) == 200 and (answers_half(recent[:, :2]) or answers_half(recent[:, 2:])):
            advice = '; without --drop_norm=True D lives longer' if drop_norm else ''
            warn_once('for 200 iterations D_s or D_t has answered 1/2 to all images, so that only '
                      f'the cycle loss teaches G{advice}')

    def sample_columns(x, A, G, A_back, G_back):
        """Images x (B, 3, H, W) and what becomes of them: (5, B, 3, H, W)."""
        with torch.no_grad(), autocast():
            x_fake, a, x_f = translate(x, A, G, tau_G)
            x_cyc, _, _ = translate(x_fake, A_back, G_back, tau_G)
        return torch.stack([x, (2 * a - 1).expand_as(x), x_f, x_fake, x_cyc])

    def save_samples():
        """A grid with a row for each of four test images of S, then of T."""
        columns_s = sample_columns(x_fixed_s, A_s, G_st, A_t, G_ts)
        columns_t = sample_columns(x_fixed_t, A_t, G_ts, A_s, G_st)
        columns = torch.cat([columns_s, columns_t], 1).unbind()
        names = ['input', 'map', 'G sees', 'translated', 'and back']
        with or_exit(f'{out_dir}/samples: cannot write there, {saved}'):
            save_grid(f'{out_dir}/samples/{it:06d}.png', columns, names)

    def save_checkpoint():
        """Replaces ckpt.pt when the new one is complete: there is a good one at any time."""
        global saved
        for p in nets.parameters():
            if not p.isfinite().all():
                sys.exit(f'iter {it}: weights are not finite, lower --lr; {saved}')
        ckpt = {'A_s': None, 'A_t': None}  # as they are without attention
        for name, part in saved_parts.items():
            ckpt[name] = part.state_dict()
        ckpt.update(
            kind='uag', domains=domains, image_size=image_size, g_args=g_args, d_args=d_args,
            a_args=a_args, switched=switched, pools=pools, iter=it, rng=torch.get_rng_state(),
            config={k: globals()[k] for k in config_keys}, script=script, source=source)
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
        log(f'{ckpt_path} is of iteration {it}: done. A larger --n_epochs= goes on.')
    while it < max_iters:
        # lr falls over the last 1 - decay_at of the run. If that is 0, then at no iteration.
        for group in opt_G.param_groups + opt_D.param_groups:
            group['lr'] = lr * min(1, (1 - it / max_iters) / max(1 - decay_at, 1e-9))

        # 1. data: images of the two domains, which do not belong together
        x_s = random_crops(train_s, batch_size, image_size, device)
        x_t = random_crops(train_t, batch_size, image_size, device)

        # 2. the switch: from here on D judges only what the maps mark, and the maps stay
        if not switched and it >= switch_iter and (it == switch_iter or it % log_interval == 0):
            switch_if_maps_are_good()

        # 3. generators and attention nets
        fake_t, a_s, fake_s, a_t = g_step(x_s, x_t)

        # 4. discriminators
        d_step(x_s, a_s, fake_s, x_t, a_t, fake_t)

        it += 1
        done = it == max_iters
        if it % log_interval == 0 or it == 10 or done:
            log_line()
        if it % sample_interval == 0 or done:
            save_samples()
        if it % ckpt_interval == 0 or done:
            save_checkpoint()
