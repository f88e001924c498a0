"""
Compares trained generators, or any two folders of images, and translates photos.

    python evaluate.py --ckpt=out/teacher/ckpt.pt,out/s0/ckpt.pt,out/s10/ckpt.pt    # the paper's tables and figures
    python evaluate.py --ckpt=out/uag/ckpt.pt,out/uag_d/ckpt.pt,out/cyclegan/ckpt.pt     # train_uag.py: both directions
    python evaluate.py --real_dir=photos --fake_dir=fakes      # FID and KID of two folders, or of .npz statistics
    python evaluate.py --ckpt=out/s10/ckpt.pt --input=me.jpg --attrs=Eyeglasses,Blond_Hair --out=me    # photos

Accuracy (Tables 1-4): every test image without an attribute is translated to have it; the share that a classifier
    trained on real images calls positive. It is trained here, once per data set and settings, and cached.
FID, KID: distances between Inception features of the real test images and of all those translations.
FD-clf: the Frechet distance in the classifier's features instead: for comparison within one table only.
Maps, of both kinds, and change, where the data knows the region of each attribute: measure() says what each figure is.
Checkpoints of the same flags but different seeds become one row, mean and standard deviation.

Writes to out_dir: report.html (all of it on one page), table.txt, results.json, maps.png (input, translation and map of
each checkpoint: Fig. 4 to 8 of the paper) and stages.png (the map of every stage of the first one's G: Fig. 1).
"""

import base64
import difflib
import hashlib
import html
import io
import json
import os
import re
import shlex
import socket
import sys
import time

import numpy as np
import scipy.stats
import torch
import torch.nn.functional as F
import torchvision
from PIL import Image, ImageDraw, ImageFont, ImageOps
from torch.utils.flop_counter import FlopCounterMode

from gradcam import GradCAM, overlay
from train_student import find_data, load_nets, load_split, or_exit, set_attr, to_float
from train_uag import load_domain, whole_images

# -----------------------------------------------------------------------------
# what to compare
ckpt = ''  # ckpt.pt files, comma-separated; the first, normally the teacher, has the D that scores the students' maps
dataset = ''  # '': the first checkpoint's
split = 'test'  # 'val' while you choose settings, so that the test images still tell something at the end
# or two folders of images, of any model
real_dir = ''  # folder, or .npz statistics (mu, sigma) as pytorch-fid writes them
fake_dir = ''  # the same
# or photos
input = ''  # a photo or a folder of them, any size: the centre square is translated (train_uag.py: all of it, squashed)
attrs = ''  # what to translate them to, each by itself; Eyeglasses+Bald: both at once; '': each that the net knows
out = 'out/photos'  # folder for them
paste = True  # put the translated square back into the photo; False: the square alone, as large as the net makes it
# output
out_dir = 'out/eval'  # results of an earlier run there are replaced
n_rows = 2  # rows of the figures for each attribute
# classifier
clf_dir = 'out/clf'  # one file per data set, size and settings
clf_arch = ''  # 'resnet50' from ImageNet weights, or 'resnet18' from scratch; '': resnet18 for drawn data
clf_epochs = 8  # enough for drawn faces; real ones from scratch want 10 or more, fine-tuning 3 to 5
# FID and KID
inception = ''  # the FID Inception's weights; '': from torch hub's cache, else downloaded; 'none': no FID
# system
batch_size = 100  # images at a time; only memory and speed depend on it
device = ''  # 'cpu', 'cuda', 'cuda:1'; '': the GPU if there is one
seed = 0  # of classifier, KID's subsets and bootstrap; the rest is deterministic
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

FID_URL = 'https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth'
ENDINGS = ('.bmp', '.jpg', '.jpeg', '.pgm', '.png', '.ppm', '.tif', '.tiff', '.webp')  # pytorch-fid's, in any case
CAMS = ('gradcam', 'hirescam')


def batches(items, what):
    """Yields items (a tensor or a list) batch_size at a time, and prints rate and ETA, at most every 5 seconds."""
    t0 = t_log = time.time()
    for k in range(0, len(items), batch_size):
        yield items[k:k + batch_size]
        if time.time() - t_log > 5:
            t_log, rate = time.time(), (k + batch_size) / (time.time() - t0)
            print(f'{what}: {k} of {len(items)} | {rate:.3g}/s | eta {(len(items) - k) / rate:.0f} s', flush=True)


# classifier
def get_classifier(x, y, to_x, multi_label, path, device):
    """Images in [-1, 1] to logits (B, c): the classifier in file `path`; if there is none, trained and put there, on
    images x (N, H, W, 3) uint8, of which to_x makes what the nets see, and labels y (N, c)."""
    torch.manual_seed(seed)
    clf, lr, size = torchvision.models.resnet18(num_classes=y.shape[1]), 2e-3, min(64, len(x))
    if clf_arch == 'resnet50':
        clf, lr = torchvision.models.resnet50(weights='IMAGENET1K_V2'), 2e-4
        clf.fc = torch.nn.Linear(clf.fc.in_features, y.shape[1])
    if not os.path.exists(path):
        opt = torch.optim.AdamW(clf.to(device).parameters(), lr, weight_decay=0.01)
        schedule = torch.optim.lr_scheduler.OneCycleLR(opt, lr, total_steps=clf_epochs * (len(x) // size))
        for epoch in range(clf_epochs):
            for i in torch.randperm(len(x))[:len(x) // size * size].split(size):
                x_b, y_b = to_x(x[i].to(device)), y[i].to(device)
                logits = clf(torch.where((torch.rand(size, 1, 1, 1) < 0.5).to(device), x_b.flip(3), x_b))
                # a loss of its own: an experiment with cls_loss in a training script must not change the measure
                loss = F.binary_cross_entropy_with_logits(logits, y_b, reduction='sum') / size if multi_label else (
                    F.cross_entropy(logits, y_b))
                opt.zero_grad()
                loss.backward()
                opt.step()
                schedule.step()
            print(f'classifier: epoch {epoch + 1} of {clf_epochs}, loss {loss.item():.3g}', flush=True)
        write_file(path, lambda f: torch.save(clf.state_dict(), f))
    with or_exit(f'{path}: the classifier kept there is damaged, delete it'):
        clf.load_state_dict(torch.load(path, map_location=device, weights_only=True))
    return clf.to(device).eval().requires_grad_(False)


# FID and KID
def load_inception(path, device):
    """The Inception of the FID papers (2015's TensorFlow graph) -> net of (B, 3, 299, 299) in [-1, 1] to (B, 2048). It
    differs from torchvision's in the pools of its blocks: the averages leave the padding out, the last is a maximum.
    path '': from torch hub's cache, else downloaded; None, saying so, where that fails."""
    try:
        socket.setdefaulttimeout(20)  # else minutes go by behind a firewall that answers nothing
        weights = None if path else torch.hub.load_state_dict_from_url(  # the hash is in the name
            FID_URL, map_location='cpu', progress=False, check_hash=True, weights_only=True)
    except Exception as e:  # urllib raises a dozen kinds
        print(f'warning: no FID, for want of weights ({e}); --inception= takes a copy of {FID_URL}', flush=True)
        return None
    with or_exit(f"--inception={path}: not FID's Inception, which is {FID_URL}"):
        weights = weights or torch.load(path, map_location='cpu', weights_only=True)
        with torch.device('meta'):  # no time and no random numbers spent on weights that are replaced
            net = torchvision.models.inception_v3(num_classes=1008, aux_logits=False, init_weights=False)
        net.load_state_dict(weights, assign=True)
    for name, block in net.named_children():
        if hasattr(block, 'branch_pool'):  # in goes this pool's result instead of what torchvision's forward() hands it
            pooled, average = [], torch.nn.AvgPool2d(3, 1, 1, count_include_pad=False)
            pool = torch.nn.MaxPool2d(3, 1, 1) if name == 'Mixed_7c' else average
            block.register_forward_pre_hook(lambda _, args, pool=pool, pooled=pooled: pooled.append(pool(args[0])))
            block.branch_pool.register_forward_pre_hook(lambda _, args, pooled=pooled: pooled.pop())
    net.fc = torch.nn.Identity()
    return net.to(device).float().eval().requires_grad_(False)


@torch.no_grad()
def inception_features(net, images):
    """uint8 images, each (3, H, W), of any sizes -> features (B, 2048) float64 on the CPU. Scaled to 299 px as
    pytorch-fid does it, bilinearly and without antialiasing, or the figures would not compare."""
    device = next(net.parameters()).device
    x = [F.interpolate(image[None].to(device).float() / 255, (299, 299), mode='bilinear') for image in images]
    return net(2 * torch.cat(x) - 1).double().cpu()


def frechet_distance(mean1, cov1, mean2, cov2):
    """|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)) of two Gaussians, float64 (d,) and (d, d) -> float >= 0.
    C1 C2 has the eigenvalues of the symmetric C1^(1/2) C2 C1^(1/2), so no general matrix root is needed."""
    values, vectors = torch.linalg.eigh(cov1)
    root = (vectors * values.clamp_min(0).sqrt()) @ vectors.T
    covmean = torch.linalg.eigvalsh(root @ cov2 @ root).clamp_min(0).sqrt().sum()
    return max((((mean1 - mean2) ** 2).sum() + cov1.trace() + cov2.trace() - 2 * covmean).item(), 0.0)


def kid(real, fake, generator):
    """Kernel Inception distance (Binkowski et al. 2018) of features (N, d) and (M, d) -> mean, standard deviation.
    Unbiased MMD^2 with k(x, y) = (x.y / d + 1)^3, over 100 subsets of n = min(1000, N, M) drawn without replacement.
    With N = M <= 1000 there is one subset, the whole, and no deviation: NaN."""
    n, values = min(1000, len(real), len(fake)), []
    for _ in range(100):
        x, y = (f[torch.randperm(len(f), generator=generator)[:n]] for f in (real, fake))
        kxx, kyy, kxy = (((a @ b.T) / a.shape[1] + 1) ** 3 for a, b in ((x, x), (y, y), (x, y)))
        off = sum((k.sum() - k.trace()) / (n * (n - 1)) for k in (kxx, kyy))
        values.append((off - 2 * kxy.mean()).item())
        if n == len(real) == len(fake):
            return values[0], float('nan')
    return float(np.mean(values)), float(np.std(values))


def stats_of(features):
    """A list of features (B, d) float64 -> mean (d,), covariance (d, d), and the features (N, d)."""
    features = torch.cat(features)
    return features.mean(0), features.T.cov(), features


def distances(real, fake):
    """Two stats_of Inception features -> dict of fid and, where the features are known, kid and kid_std."""
    found = dict(fid=frechet_distance(*real[:2], *fake[:2]))
    if real[2] is not None and fake[2] is not None:
        found['kid'], found['kid_std'] = kid(real[2], fake[2], torch.Generator().manual_seed(seed))
    return found


def stats_of_files(path, device):
    """stats_of the Inception features of a folder's images, or those in an .npz file; a line that says how many."""
    with or_exit(f'{path}: cannot be used'):
        if path.endswith('.npz'):
            mu, sigma = (torch.from_numpy(np.load(path)[k]).double() for k in ('mu', 'sigma'))
            assert (*mu.shape, *sigma.shape) == (2048,) * 3, f'mu {mu.shape} and sigma {sigma.shape} are not of 2048'
            return (mu, sigma, None), f'{path}: statistics'
        files = list_images(path)
        net = load_inception(inception, device) or sys.exit('FID of images needs the Inception weights')
        # RGB as pytorch-fid takes it: by Pillow, neither turned nor put on white
        read = lambda name: torch.from_numpy(np.array(Image.open(name).convert('RGB'))).permute(2, 0, 1)
        features = [inception_features(net, map(read, some)) for some in batches(files, path)]
        return stats_of(features), f'{path}: {len(files)} images'


# the nets under test: both kinds look alike from here on
class StarGAN:
    """A train_teacher.py or train_student.py checkpoint. Labels y are (B, len(attrs)), a target is a name of attrs."""

    def __init__(self, c, nets):
        self.attrs, self.size, self.exclusive = c['attrs'], c['d_args']['image_size'], c['exclusive']
        self.G, self.D, self.parts, config = nets['G'], nets['D'], [nets['G']], c['config']
        self.hooks, self.to_x = [GradCAM(self.G.res[-1])], lambda x: to_float(x, self.size)
        self.tau, self.teacher = None, self  # whose D explains the maps; main sets a student's
        self.cam = config['cam'] if config.get('lambda_att') else None  # the map it was trained with, to be drawn
        self.pairs = dict(zip(self.attrs, (config.get('pseudo') or ','.join(self.attrs)).split(',')))  # {c: c_pse}

    def translate(self, x, y, name):
        return self.G(x, set_attr(y, self.attrs.index(name), self.exclusive))

    def maps(self, x, y, name, cams=CAMS):
        """-> translation, and maps (B, h, w) of each kind in cams, at each hook; none if no D has a score for it."""
        x_fake, maps = self.translate(x, y, name), []
        if self.pairs[name] in self.teacher.attrs:
            y_c = self.teacher.D(x_fake)[1][:, self.teacher.attrs.index(self.pairs[name])]
            for hook in self.hooks:
                for hook.cam in cams:
                    maps.append(hook(y_c, retain_graph=True))
        return x_fake.detach(), maps


class UAG:
    """A train_uag.py checkpoint: attrs are its two domains, and to translate to the one is to start from the other."""

    def __init__(self, c, nets):
        self.attrs, self.size, self.cam, self.tau = c['domains'], c['image_size'], None, c['config']['tau']
        self.pairs, self.to_x = dict(zip(self.attrs, self.attrs)), lambda x: whole_images(x, self.size)
        self.nets = {c['domains'][1]: (nets.get('A_s'), nets['G_st']), c['domains'][0]: (nets.get('A_t'), nets['G_ts'])}
        self.parts = [net for net in self.nets[c['domains'][1]] if net]  # of one direction
        self.tau_G = self.tau if c['switched'] and c['config']['hard'] else None
        self.script = sys.modules[type(nets['G_st']).__module__]
        self.translate = lambda x, y, name: self.maps(x, y, name)[0]

    def maps(self, x, y, name, cams=None):
        """-> translation, [map (B, H, W) in [0, 1]], none without attention."""
        x_fake, a, _ = self.script.translate(x, *self.nets[name], self.tau_G)
        return x_fake, [a[:, 0]] if self.nets[name][0] else []


# measures
def measure(x, x_fake, maps, m, tau=None):
    """Change x_fake - x of images (B, 3, H, W), and maps [(B, h, w), ...], against regions m (B, H, W) bool.

    -> {measure: (B,) float64}. leak, object: mean |x_fake - x| outside and inside, images in [-1, 1]. Of each map, one
    for each of CAMS: energy: its share inside over the region's share of the image, 1 for a map that knows nothing;
    point: 1 where its maximum lies inside; IoU with its highest pixels, as many as the region has; these are NaN where
    map or region are zero everywhere; dead: 1 where the map is. With tau it is a mask A of train_uag.py: IoU of
    [A >= tau], mean of A inside and outside.
    """
    inside = m.flatten(1).double()
    area = inside.sum(1)
    mean = lambda v, w: (v * w).sum(1) / w.sum(1).clamp_min(1)
    change = (x_fake - x).abs().mean(1).flatten(1).double()
    found = dict(leak=mean(change, 1 - inside), object=mean(change, inside))
    for cam, A in zip(CAMS, maps):
        A = F.interpolate(A[:, None].double(), m.shape[1:], mode='bilinear').flatten(1)
        if tau is not None:
            on = (A >= tau).double()
            return found | {'IoU': (on * inside).sum(1) / ((on + inside) > 0).sum(1).clamp_min(1),
                            'A inside': mean(A, inside), 'A outside': mean(A, 1 - inside)}
        rank, dead = A.argsort(dim=1, descending=True, stable=True).argsort(1), A.amax(1) <= 0  # rank 0: the highest
        both = (inside * (rank < area[:, None])).sum(1)
        of = dict(energy=(A * inside).sum(1) / A.sum(1) / (area / inside.shape[1]),
                  point=inside.gather(1, A.argmax(1, keepdim=True))[:, 0], IoU=both / (2 * area - both))
        found |= {f'{cam} {k}': torch.where(dead | (area == 0), torch.nan, v) for k, v in of.items()}
        found[f'{cam} dead'] = dead.double()
    return found


def bootstrap(a, b, n=2000):
    """Mean accuracy of a minus that of b, and its 95 % interval by resampling the test images, the same for both.
    a, b: (N, c) hits in [0, 1], NaN where an image is not translated to an attribute. -> difference, low, high."""
    d = (a - b).double().numpy()
    d = d[:, ~np.isnan(d).all(0)]  # attributes that both know
    mean = lambda i: np.nanmean(d[i], 0).mean()  # over images, then over attributes
    interval = scipy.stats.bootstrap((np.arange(len(d)),), mean, n_resamples=n, vectorized=False, method='percentile',
                                     rng=np.random.default_rng(seed)).confidence_interval
    return mean(slice(None)), interval.low, interval.high


@torch.no_grad()
def cost(net, x, y, name):
    """Parameters, multiply-adds and median ms for one image; images/s of 64."""
    from torch.utils.benchmark import Timer  # here: it warns of a CUDA toolkit without a GPU
    def seconds(x, y):
        return Timer('net.translate(x, y, name)', globals=dict(net=net, x=x, y=y, name=name),
                     num_threads=torch.get_num_threads()).blocked_autorange(min_run_time=0.5).median
    with FlopCounterMode(display=False) as counter:
        net.translate(x[:1], y[:1], name)
    many = [v[torch.arange(64) % len(x)] for v in (x, y)]
    n_params = sum(p.numel() for part in net.parts for p in part.parameters())
    return dict(params=n_params, macs=counter.get_total_flops() // 2, latency_ms=1000 * seconds(x[:1], y[:1]),
                images_per_s=64 / seconds(*many))


# tables: (header, key of a result, factor, decimals); a column without a value in any row is left out
QUALITY = [('Mean', 'accuracy', 100, 1), ('FID', 'fid', 1, 2), ('KID x100', 'kid', 100, 3),
           ('KID std', 'kid_std', 100, 3), ('FD-clf', 'fd_clf', 1, 2)]
MAPS = [(k, k, 1, 3) for k in ('IoU', 'A inside', 'A outside')]
MAPS += [(f'{cam} {k}' + ' %' * (factor == 100), f'{cam} {k}', factor, decimals) for cam in CAMS
         for k, factor, decimals in (('energy', 1, 2), ('point', 100, 1), ('IoU', 1, 2), ('dead', 100, 1))]
MAPS += [('leak', 'leak', 1, 4), ('object', 'object', 1, 3)]
COST = [('params', 'params', 1, 0), ('MMACs', 'macs', 1e-6, 1), ('ms, batch 1', 'latency_ms', 1, 1),
        ('images/s, batch 64', 'images_per_s', 1, 0)]


def merge_seeds(rows):
    """Rows -> {name: rows whose flags differ in nothing but the seed, and in where and how often a run writes}."""
    ignored, by_config = ('seed', 'out_dir', 'resume', 'device'), {}
    for row in rows:
        settings = {k: v for k, v in row['config'].items() if k not in ignored and not k.endswith('_interval')}
        key = json.dumps([row['script'], row['iter'], row['targets'], settings], sort_keys=True)
        by_config.setdefault(key, []).append(row)
    return {seeds[0]['name'] if len(seeds) == 1 else  # of S-s0 and S-s1: S (2 seeds)
            re.sub(r'(?<=.)[-_. ]*(s|seed)?\d+(?= -> |$)', '', seeds[0]['name']) + f' ({len(seeds)} seeds)': seeds
            for same in by_config.values() for seeds in  # a seed twice: edited code, which no flag shows, or a copy
            ([same] if len({row['config'].get('seed') for row in same}) == len(same) else [[row] for row in same])}


def table(corner, columns, groups):
    """{label: results of its seeds} -> [lines of aligned columns], mean ± deviation over seeds; [] if all is empty."""
    def cell(results, key, factor, decimals):
        v = factor * np.array([r.get(key, np.nan) for r in results])
        spread = f' ± {v.std(ddof=1):,.{decimals}f}' if len(v) > 1 else ''
        return '-' if np.isnan(v).any() else f'{v.mean():,.{decimals}f}{spread}'
    rows = [[corner, *(c[0] for c in columns)]]
    rows += [[label, *(cell(results, *c[1:]) for c in columns)] for label, results in groups.items()]
    full = [column for column in zip(*rows) if set(column[1:]) != {'-'}]
    full = [[text.rjust(max(map(len, column))) if k else text.ljust(max(map(len, column))) for text in column]
            for k, column in enumerate(full)]
    return ['\n'.join('  '.join(row) for row in zip(*full))] if len(full) > 1 else []


# figures, report
def figure(header, rows, labels):
    """Rows of images (3, S, S) in [-1, 1], or None, a header over the columns, a label for each row -> PIL image."""
    side, font = rows[0][0].shape[1], ImageFont.load_default(14)
    cell = side * max(1, round(128 / side))
    left, top = 8 + int(max(font.getlength(label) for label in labels)), 22
    sheet = Image.new('RGB', (left + len(header) * (cell + 4), top + len(rows) * (cell + 4)), 'white')
    draw = ImageDraw.Draw(sheet)
    for k, text in enumerate(header):
        text = text if font.getlength(text) <= cell else text[:cell // 9] + '…'
        draw.text((left + k * (cell + 4), 2), text, 'black', font)
    for r, (row, label) in enumerate(zip(rows, labels)):
        draw.text((2, top + r * (cell + 4) + cell // 2 - 8), label, 'black', font)
        for k, x in enumerate(row):
            if x is not None:
                sheet.paste(to_image(x).resize((cell, cell), 0), (left + k * (cell + 4), top + r * (cell + 4)))
    return sheet


def draw_figures(nets):
    """{label: net} -> {file name: PIL image} of the figures that the docstring on top names."""
    first, drawn = next(iter(nets.values())), next((net.cam for net in nets.values() if net.cam), 'gradcam')
    header, rows, labels = ['input', *(text for label in nets for text in (label, 'its map'))], [], []
    # each attribute of a student of "pseudo"-attention behind the one whose map it follows
    for name in dict.fromkeys(n for net in nets.values() for name in net.attrs for n in (net.pairs[name], name)):
        for row in without(name)[:n_rows]:
            rows.append([None])
            for net in nets.values():
                shown = [None, None]
                if name in net.attrs:
                    x, y = see(net, row[None])
                    x_fake, maps = net.maps(x, y, name, [net.cam or drawn])
                    # Grad-CAM's lie over the input, each on its own scale; attention nets' are masks, in grey
                    maps = [overlay(x, A) if net.tau is None else (2 * A[:, None] - 1).expand_as(x) for A in maps]
                    rows[-1][0], shown = x[0], [x_fake[0], maps[0][0] if maps else None]
                rows[-1] += shown
            labels.append(name if first.tau is None else f'{next(n for n in names if n != name)} -> {name}')
    keep = [k for k in range(len(header)) if any(row[k] is not None for row in rows)]  # a net may have no maps
    figures = {'maps.png': figure([header[k] for k in keep], [[row[k] for k in keep] for row in rows], labels)}
    known = [k for k, p in first.pairs.items() if first.tau is None and p in first.teacher.attrs and len(without(k))]
    if known:
        parts = dict(down=first.G.down[2::3], res=first.G.res, up=first.G.up[2::3])  # of conv, norm, ReLU; ...
        stages, rows = {f'{part} {i + 1}': m for part, modules in parts.items() for i, m in enumerate(modules)}, []
        first.hooks = [GradCAM(module) for module in stages.values()]
        for name in known:
            x, y = see(first, without(name)[:1])
            x_fake, maps = first.maps(x, y, name, [first.cam or drawn])
            rows.append([x[0], *(overlay(x, A)[0] for A in maps), x_fake[0]])
        figures['stages.png'] = figure(['input', *stages, 'output'], rows, known)
    return figures


def report(title, text, details, figures):
    """One HTML page with everything in it: no scripts, no network, dark where the reader's system is."""
    images = {name: base64.b64encode(open(os.path.join(out_dir, name), 'rb').read()).decode() for name in figures}
    return ('<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content="width=device-width"><style>'
            'body{font:16px system-ui;max-width:75rem;margin:auto;padding:1rem;color-scheme:light dark}'
            f'pre,div{{overflow-x:auto}}</style><title>{title}</title><h1>{title}</h1><pre>{html.escape(text)}</pre>'
            + ''.join(f'<h2>{name}</h2><div><img alt="{name}" src="data:image/png;base64,{image}"></div>'
                      for name, image in images.items())
            + f'<details><summary>Details</summary><pre>{html.escape(details)}</pre></details></html>')


# files and photos
def write_file(path, write):
    """Has write(file) make `path`, whole or not at all, and its folder."""
    with or_exit(f'{path}: cannot write it'):
        os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
        with open(path + '.tmp', 'wb') as f:
            write(f)
        os.replace(path + '.tmp', path)


def to_uint8(x):
    """(B, 3, H, W) in [-1, 1] -> the pixels that a PNG would keep: uint8, the same shape."""
    return ((x + 1) * 127.5).round().clamp(0, 255).byte()


def to_image(x):
    """(3, H, W) in [-1, 1] -> PIL image."""
    return Image.fromarray(to_uint8(x).permute(1, 2, 0).cpu().numpy())


def list_images(path):
    """The image files of a folder and its subfolders, sorted, or the one file. Exits where there are none."""
    found = [path] if os.path.isfile(path) else sorted(
        os.path.join(folder, name) for folder, _, names in os.walk(path) for name in names
        if name.lower().endswith(ENDINGS) and name[0] != '.')
    return found or sys.exit(f'{path}: no image there')


def translate_photos(net, device):
    """Photos in, one PNG for each photo and target out. Nobody's labels are needed: D guesses."""
    uag, photos, done = isinstance(net, UAG), list_images(input), 0
    targets = [name.split('+') for name in attrs.split(',') if name] or [[name] for name in net.attrs]
    if not {name for target in targets for name in target} <= set(net.attrs) or uag and max(map(len, targets)) > 1:
        sys.exit(f"--attrs={attrs}: {ckpt} knows {', '.join(net.attrs)}" + ', one at a time' * uag)
    print(f"each photo's {'whole area, squashed' if uag else 'centre square'}, at {net.size} px", flush=True)
    for path in photos:
        try:
            photo = ImageOps.exif_transpose(Image.open(path))  # upright
            if photo.has_transparency_data:
                photo = Image.alpha_composite(Image.new('RGBA', photo.size, 'white'), photo.convert('RGBA'))
            photo = photo.convert('RGB')
        except Exception as e:  # Pillow raises nearly every kind on damaged files
            print(f'{path}: left out, cannot be read: {e}', flush=True)
            continue
        (w, h), side = photo.size, min(photo.size)
        box = (0, 0, w, h) if uag else ((w - side) // 2, (h - side) // 2, (w + side) // 2, (h + side) // 2)
        x = np.array(photo.crop(box).resize((net.size, net.size), Image.BICUBIC))
        x = torch.from_numpy(x).to(device).permute(2, 0, 1)[None] / 127.5 - 1
        with torch.no_grad():
            guess = None if uag else (net.D(x)[1] > 0).float()  # what D takes its labels for
            for target in targets:
                y = guess
                for name in target[:-1]:
                    y = set_attr(y, net.attrs.index(name), net.exclusive)
                result = to_image(net.translate(x, y, target[-1])[0])
                if paste:
                    square, result = result, photo.copy()
                    result.paste(square.resize((box[2] - box[0], box[3] - box[1]), Image.BICUBIC), box[:2])
                name = os.path.relpath(path, input) if os.path.isdir(input) else os.path.basename(path)
                name = f"{name.replace('.', '_')}_{'+'.join(target)}.png"
                write_file(os.path.join(out, name), lambda f: result.save(f, 'PNG'))
        done += 1
    done or sys.exit(f'--input={input}: no photo there that can be read')
    print(f'{done * len(targets)} images: {out}')


if __name__ == '__main__':
    ckpt or real_dir and fake_dir or sys.exit('wants --ckpt= ckpt.pt files, or --real_dir= and --fake_dir= folders')
    split in ('val', 'test') and clf_arch in ('', 'resnet18', 'resnet50') or sys.exit(
        f'--split={split} --clf_arch={clf_arch}: want val or test, resnet18 or resnet50')
    config, t_start = {k: globals()[k] for k in config_keys}, time.time()
    device = device or ('cuda' if torch.cuda.is_available() else 'cpu')
    with or_exit(f'--device={device}'):
        torch.zeros(1, device=device)
    if not ckpt:
        (real, said_real), (fake, said_fake) = (stats_of_files(path, device) for path in (real_dir, fake_dir))
        found = ' | '.join(f'{k} {v:.5g}' for k, v in distances(real, fake).items())
        sys.exit(print(f'{said_real}\n{said_fake}\n{found}\nbelow 2,048 images go by KID, not by FID; seed {seed}'))

    # checkpoints
    paths, labels, ckpts, nets = ckpt.split(','), [], [], []
    for path in paths:  # named by the folder, or by the file where that is not ckpt.pt
        folder, stem = os.path.abspath(path).removesuffix('.pt').split(os.sep)[-2:]
        labels.append(folder if stem == 'ckpt' else f'{folder}-{stem}')
        c, parts = load_nets(path, *('stargan', 'uag') if not ckpts else [ckpts[0]['kind']])
        with or_exit(f'{path}: damaged'):
            ckpts.append(c)
            nets.append((UAG if c['kind'] == 'uag' else StarGAN)(c, {k: part.to(device) for k, part in parts.items()}))
    len(set(labels)) == len(labels) or sys.exit(f"--ckpt={ckpt}: two of one name, {', '.join(labels)}")
    if input:
        len(nets) == 1 or sys.exit('--input= goes with one checkpoint')
        sys.exit(translate_photos(nets[0], device))

    # data; two unpaired domains are here two classes, the regions of which are those of the object
    uag, (data_dir, meta) = isinstance(nets[0], UAG), find_data(dataset or ckpts[0]['config']['dataset'])
    names, multi_label, size = meta.get('domains' if uag else 'attrs', []), meta['label'] == 'multi', nets[0].size
    for path, net in zip(paths, nets):
        if net.size != size or not uag and meta['image_size'] % size or not set(net.attrs) <= set(names):
            sys.exit(f"{path}: {','.join(net.attrs)}, {net.size} px, do not go with {paths[0]} or with {data_dir}")
    if uag:
        xs = [[load_domain(data_dir, part + side) for side in 'AB'] for part in ('train', split)]
        ys = [torch.eye(2).repeat_interleave(torch.tensor([len(a), len(b)]), 0) for a, b in xs]
        (train_x, train_y), (test_x, test_y) = zip(map(torch.cat, xs), ys)
    else:
        (train_x, train_y), (test_x, test_y) = (load_split(data_dir, meta, part, names) for part in ('train', split))
    regions = [os.path.join(data_dir, f'{split}{side}_m.npy') for side in ('AB' if uag else [''])]
    regions = [torch.from_numpy(np.load(path, mmap_mode='c')) for path in regions if os.path.exists(path)]
    regions = None if not regions else torch.cat(regions)[:, None].expand(-1, 2, -1, -1) if uag else regions[0]
    # single-label: where nets know only some classes, the images of the others are left out, as in training
    known = test_y[:, [names.index(name) for net in nets for name in net.attrs]].sum(1) > (-1 if multi_label else 0)

    def without(name):
        """Rows of the test images that do not have this attribute."""
        return (known & (test_y[:, names.index(name)] == 0)).nonzero().flatten()

    def see(net, rows):
        """Images and labels of rows of the test images as `net` takes them."""
        y = test_y[rows][:, [names.index(name) for name in net.attrs]]
        return net.to_x(test_x[rows].to(device)), y.to(device)

    write_file(os.path.join(out_dir, 'table.txt.tmp'), lambda f: None)  # now rather than after an hour
    # the first checkpoint's D explains the students' maps; one without attention loss has the others' pairs
    pairs = {c: c_pse for net in nets for c, c_pse in net.pairs.items() if c != c_pse}
    for net in [net for net, c in zip(nets, ckpts) if c['config'].get('teacher')]:
        net.teacher = nets[0]
        net.pairs = {c: next((q for q in (p, pairs.get(c)) if q in nets[0].attrs), c) for c, p in net.pairs.items()}

    # rows of the tables: one for a StarGAN, one for each direction of UAG; real_rows: the images it should be like
    rows, real_rows = [], {}
    for label, path, c, net in zip(labels, paths, ckpts, nets):
        for target in reversed(net.attrs) if uag else ['']:
            real_rows[target] = (test_y[:, names.index(target)] if uag else known).nonzero().flatten()
            rows.append(dict(name=f'{label} -> {target}' if uag else label, label=label, path=path, real=target,
                             targets=[target] if uag else [name for name in net.attrs if len(without(name))],
                             script=c['script'], iter=c['iter'], config=c['config']))
    groups = merge_seeds(rows)
    sum(map(len, groups.values())) == len(rows) or sys.exit('two groups of seeds would have one name: rename folders')

    # Inception and the classifier, and what both make of the real images
    inception_net = load_inception(inception, device) if inception != 'none' else None
    clf_arch = clf_arch or ('resnet50' if regions is None else 'resnet18')
    if clf_arch == 'resnet50':
        try:
            torchvision.models.ResNet50_Weights.IMAGENET1K_V2.get_state_dict(progress=False, check_hash=True)
        except Exception as e:  # urllib raises a dozen kinds
            print(f'warning: no ImageNet weights for the classifier, a ResNet-18 from scratch instead: {e}', flush=True)
            clf_arch = 'resnet18'
    settings = json.dumps([meta, clf_arch, size, clf_epochs, seed, train_y.sum(0).tolist()])
    clf_path = f"{meta['dataset']}_{size}px_{clf_arch}_{hashlib.sha256(settings.encode()).hexdigest()[:10]}.pt"
    clf = get_classifier(train_x, train_y, nets[0].to_x, multi_label, os.path.join(clf_dir, clf_path), device)
    clf.avgpool.register_forward_hook(lambda module, args, out: setattr(clf, 'features', out.flatten(1).double().cpu()))

    def judge(x, features):
        """The classifier's calls of images x (B, 3, S, S): the logit is positive, or the largest -> (B, c) in {0., 1.}.
        Adds features (B, d) float64 to two lists: the classifier's, Inception's."""
        with torch.no_grad():
            logits = clf(x)
        features[0].append(clf.features)
        if inception_net:
            features[1].append(inception_features(inception_net, to_uint8(x)))
        return (logits > 0 if multi_label else logits == logits.amax(1, keepdim=True)).float().cpu()

    calls, real = torch.full(test_y.shape, float('nan')), {}
    for target, chosen in real_rows.items():
        real[target] = [], []
        for r in batches(chosen, 'real images'):
            calls[r] = judge(nets[0].to_x(test_x[r].to(device)), real[target])
    recall = torch.where(test_y > 0, calls, torch.nan).nanmean(0).tolist()

    # the translations
    for row, net in zip(rows, [net for net in nets for _ in range(1 + uag)]):
        features, row['measures'], row['hits'] = ([], []), {}, torch.full(test_y.shape, float('nan'))
        for name in row['targets']:
            col, lists = names.index(name), {}
            for r in batches(without(name), f"{row['label']} -> {name}"):
                x, y = see(net, r)
                x_fake, maps = net.maps(x, y, name)
                x_fake = to_uint8(x_fake) / 127.5 - 1  # measured is what a PNG would keep
                row['hits'][r, col] = judge(x_fake, features)[:, col]
                found = dict(accuracy=row['hits'][r, col])
                if regions is not None:
                    m = net.to_x(255 * regions[r, col][..., None].to(device))[:, 0] > 0  # fills more than half a pixel
                    found |= measure(x, x_fake, maps, m, net.tau)
                for k, v in found.items():
                    lists.setdefault(k, []).append(v.cpu())
            row['measures'][name] = {k: torch.cat(v).nanmean().item() for k, v in lists.items()}
        row |= {k: np.nanmean([m.get(k, np.nan) for m in s]) for s in [row['measures'].values()] for m in s for k in m}
        row |= {f'-> {name}': m['accuracy'] for name, m in row['measures'].items()}
        of_real, of_fake = ([stats_of(f) for f in of if f] for of in (real[row['real']], features))
        row |= dict(n_fake=len(of_fake[0][2]), fd_clf=frechet_distance(*of_real[0][:2], *of_fake[0][:2]),
                    **(distances(of_real[1], of_fake[1]) if inception_net else {}),
                    **cost(net, *see(net, without(name)[:64]), name))

    # tables
    shown = list(dict.fromkeys(name for row in rows for name in row['targets']))
    on_real = {f'-> {name}': recall[names.index(name)] for name in shown}
    on_real['accuracy'] = np.mean([*on_real.values()])
    columns = QUALITY if uag else [(name, f'-> {name}', 100, 1) for name in shown] + QUALITY
    tables = [table('accuracy, %', columns, groups | {'real images': [on_real]}), table('maps', MAPS, groups)]
    notes, hits = [], {name: torch.stack([row['hits'] for row in seeds]).mean(0) for name, seeds in groups.items()}
    for a, b in zip([*groups][1:], groups):
        if not uag and (~(hits[a] - hits[b]).isnan()).any():
            d, low, high = bootstrap(hits[a], hits[b])
            notes.append(f'{a} - {b}: {100 * d:+.1f} points of mean accuracy, 95 % interval over test images '
                         f'{100 * low:+.1f} to {100 * high:+.1f}')
    n_fake = ' and '.join(dict.fromkeys(str(row['n_fake']) for row in rows))
    notes.append(f'{len(test_x):,} {split} images of {data_dir}, {size} px, {n_fake} translations a row, uint8 pixels; '
                 f'classifier {clf_arch}, seed {seed}, finds {100 * on_real["accuracy"]:.1f} % of real attributes; '
                 f'{device}, {torch.get_num_threads()} CPU threads; {time.time() - t_start:.0f} s')
    if inception_net:
        notes.append(f'FID and KID: Inception {inception or FID_URL}; below 2,048 images go by KID, not by FID')
    tables = sum([*tables[::-1 if uag else 1], table('cost', COST, groups), ['\n'.join(notes)]], [])
    print('\n' + (text := '\n\n'.join(tables)))

    # files: figures last, they cost least to make again
    details = re.sub(r'\bNaN\b', 'null', json.dumps(dict(
        command='python evaluate.py ' + shlex.join(sys.argv[1:]), config=config, notes=notes,
        versions={m.__name__: m.__version__ for m in (torch, torchvision, np)},
        checkpoints=[{k: v for k, v in row.items() if k != 'hits'} for row in rows]), indent=1))
    figures = draw_figures({seeds[0]['label']: nets[paths.index(seeds[0]['path'])] for seeds in groups.values()})
    for name, image in figures.items():
        write_file(os.path.join(out_dir, name), lambda f: image.save(f, 'PNG'))
    page = report(html.escape(f"{meta['dataset']}, {size} px"), text, details, figures)
    for name, content in (('table.txt', text), ('results.json', details), ('report.html', page)):
        write_file(os.path.join(out_dir, name), lambda f: f.write((content + '\n').encode()))
    print(f"\n{os.path.join(out_dir, 'report.html')} has all of this, and {', '.join(figures)}")
