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
Maps, where the data knows the region of each attribute: energy = share of the map inside the region over the region's
    share of the image (1 = chance); point = maximum inside; IoU at the threshold that gives the region's area; dead =
    maps that are zero everywhere, left out of these three; leak = mean |x_fake - x| outside, images in [-1, 1]; object
    = the same inside. Of train_uag.py also IoU of [A >= tau] and of [A >= 0.5]; soft = share of A in (0.1, 0.9).
Checkpoints with one configuration but for the seed become one row, mean and standard deviation. Under the table:
    differences of mean accuracy, with a 95 % interval by paired bootstrap over the test images.

Writes to out_dir: report.html (all of it on one page), table.txt, table.md, results.json and the figures
    translations.png  input | translation by each checkpoint                     as Fig. 4 and 7 of the paper
    maps.png          input | translation and map of each                        Fig. 5 and 8
    stages.png        first checkpoint: the map of every stage of the generator  Fig. 1
    pseudo.png        the teacher's maps of c_pse beside the maps of c           Fig. 6
Takes about a minute for 3 nets of 32 px on 2 CPU cores, the classifier included; FID some 10 images/s on a core.
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
import torch
import torch.nn.functional as F
import torchvision
from PIL import Image, ImageDraw, ImageFont, ImageOps
from torch.utils.flop_counter import FlopCounterMode

from gradcam import GradCAM
from train_student import (cls_loss, find_data, load_ckpt, load_script, load_split, overlay, save_ckpt, set_attr,
                           to_float)
from train_uag import load_domain, whole_images

# -----------------------------------------------------------------------------
# what to compare
ckpt = ''  # ckpt.pt files, comma-separated; the first, normally the teacher, has the D that scores the students' maps
script = ''  # the scripts that made them, in the same order, where they are not in this folder; '': all are
dataset = ''  # '': the first checkpoint's
split = 'test'  # 'val' while you choose settings, so that the test images still tell something at the end
cam = 'gradcam'  # or 'hirescam': the maps of tables and figures
baseline = ''  # the name of a row, without '(seeds)': differences are to it; '': to the nearest row above
# or two folders of images, of any model
real_dir = ''  # folder, or .npz statistics (mu, sigma) as pytorch-fid writes them
fake_dir = ''  # the same
save_stats = ''  # with --real_dir: write its statistics to this .npz, for --real_dir= here or for pytorch-fid
# or photos
input = ''  # a photo or a folder of them, any size: the centre square is translated (train_uag.py: all of it, squashed)
attrs = ''  # what to translate them to, each by itself; Eyeglasses+Bald: both at once; '': each that the net knows
out = 'out/photos'  # folder for them, or with one photo and one attribute a .png or .jpg
paste = True  # put the translated square back into the photo; False: the square alone, as large as the net makes it
# output
out_dir = 'out/eval'  # results of an earlier run there are replaced
n_rows = 2  # rows of the figures for each attribute
save_images = False  # write every translation as out_dir/images/<checkpoint>/<attribute>/<row>.png, for other tools
# classifier
clf_dir = 'out/clf'  # one file per data set, size and settings
clf_arch = ''  # 'resnet50' or 'resnet18' (always from scratch); '': resnet18 for drawn data, resnet50 for photos
clf_pretrained = True  # resnet50 starts from ImageNet weights (torch hub's cache, or downloaded); False: from scratch
clf_epochs = 8  # enough for drawn faces; real ones from scratch want 10 or more, fine-tuning 3 to 5
clf_lr = 0.0  # peak of a one-cycle schedule, AdamW; 0: 2e-3 from scratch, 2e-4 for fine-tuning
# FID and KID
inception = ''  # the FID Inception's weights; '': from torch hub's cache, else downloaded; 'none': no FID
stats_dir = 'out/fid'  # statistics of real images, one .npz per data set, size and weights
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
        globals()[key] = cast[type(globals()[key])](val)
    except (KeyError, ValueError):
        sys.exit(f"{arg}: wants a {type(globals()[key]).__name__}, like {globals()[key]!r}")
config = {k: globals()[k] for k in config_keys}  # saved with whatever this script makes
# -----------------------------------------------------------------------------

INCEPTION = 'pt_inception-2015-12-05-6726825d.pth'  # pytorch-fid's; the name ends with the file's sha256
INCEPTION_URL = 'https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/' + INCEPTION
ENDINGS = ('.bmp', '.jpg', '.jpeg', '.pgm', '.png', '.ppm', '.tif', '.tiff', '.webp')  # pytorch-fid's, in any case
SMALL = 'below 2,048 images FID depends on their number more than on anything else: go by KID'


class Progress:
    """Prints done/n, rate and ETA of long work, at most every 5 seconds."""

    def __init__(self, what, n):
        self.what, self.n, self.done, self.t0 = what, n, 0, time.time()
        self.t_log = self.t0

    def add(self, k, note=''):
        self.done, t = self.done + k, time.time()
        if t - self.t_log > 5:
            rate, self.t_log = self.done / (t - self.t0), t
            eta = (self.n - self.done) / rate
            print(f'{self.what}: {self.done:,}/{self.n:,}{note} | {rate:.3g}/s | eta {eta:.0f}s', flush=True)


# classifier


def make_classifier(arch, n_classes, pretrained):
    """ResNet-18 from scratch, or ResNet-50, from scratch or with ImageNet weights -> net of images in [-1, 1]."""
    if arch == 'resnet18' or not pretrained:
        return getattr(torchvision.models, arch)(num_classes=n_classes)
    try:
        net = torchvision.models.resnet50(weights='IMAGENET1K_V2')
    except (OSError, RuntimeError) as e:  # URLError is an OSError; RuntimeError: the hash is wrong
        url = torchvision.models.ResNet50_Weights.IMAGENET1K_V2.url
        folder = os.path.join(torch.hub.get_dir(), 'checkpoints')
        sys.exit(f'no ImageNet weights for the classifier ({e}): put {url} into {folder}, or --clf_pretrained=False, '
                 'or --clf_arch=resnet18')
    net.fc = torch.nn.Linear(net.fc.in_features, n_classes)
    return net


def train_classifier(clf, x, y, to_x, multi_label, epochs, lr, batch_size, device):
    """Trains clf, in place, on x (N, H, W, 3) uint8, of which to_x makes what the nets see, and labels y (N, c)."""
    batch_size = min(batch_size, len(x))
    n_steps = epochs * (len(x) // batch_size)
    opt = torch.optim.AdamW(clf.parameters(), lr, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(opt, lr, total_steps=n_steps)
    progress = Progress('classifier: steps', n_steps)
    for step in range(n_steps):
        if step % (len(x) // batch_size) == 0:
            order = torch.randperm(len(x))
        i = order[step % (len(x) // batch_size) * batch_size:][:batch_size]
        x_b = to_x(x[i].to(device))
        x_b = torch.where((torch.rand(len(i)) < 0.5).to(device)[:, None, None, None], x_b.flip(3), x_b)
        loss = cls_loss(clf(x_b), y[i].to(device), multi_label)
        opt.zero_grad()
        loss.backward()
        opt.step()
        schedule.step()
        progress.add(1)


def get_classifier(x, y, to_x, size, multi_label, meta, arch, device):
    """The classifier of these data and settings: from the cache if it is there, else trained and put there."""
    pretrained = arch == 'resnet50' and clf_pretrained
    settings = dict(arch=arch, pretrained=pretrained, size=size, epochs=clf_epochs, seed=seed,
                    lr=clf_lr or (2e-4 if pretrained else 2e-3))
    key = hashlib.sha256((json.dumps([meta, settings]) + repr(y.sum(0).tolist())).encode()).hexdigest()[:10]
    path = os.path.join(clf_dir, f"{meta['dataset']}_{size}px_{arch}_{key}.pt")
    clf = make_classifier(arch, y.shape[1], pretrained and not os.path.exists(path)).to(device)
    if not os.path.exists(path):
        train_classifier(clf, x, y, to_x, multi_label, clf_epochs, settings['lr'], 64, device)
        save_ckpt(path, clf.state_dict())
    try:
        clf.load_state_dict(torch.load(path, map_location=device, weights_only=True))
    except Exception:  # torch.load raises a dozen kinds
        sys.exit(f'{path}: the classifier kept there is damaged: delete it')
    print(f'classifier: {path}', flush=True)
    return clf.eval().requires_grad_(False)


@torch.no_grad()
def classify(clf, x, multi_label):
    """x (B, 3, S, S) -> calls (B, c) bool: the logit is positive, or the largest; features (B, 512 or 2048) float64."""
    features = []
    handle = clf.avgpool.register_forward_hook(lambda module, args, out: features.append(out.flatten(1).double()))
    logits = clf(x)
    handle.remove()
    return logits > 0 if multi_label else logits == logits.amax(1, keepdim=True), features[0]


# FID's Inception


def find_inception(path):
    """-> path of the weights: the one given, torch hub's cache, or downloaded to there; None, saying so, if none is."""
    if path and not os.path.isfile(path):
        sys.exit(f'--inception={path}: no such file; it should be a copy of {INCEPTION_URL}')
    cached, timeout = os.path.join(torch.hub.get_dir(), 'checkpoints', INCEPTION), socket.getdefaulttimeout()
    if not path and not os.path.exists(cached):
        socket.setdefaulttimeout(20)  # else minutes go by behind a firewall that answers nothing
        try:
            print(f'getting {INCEPTION_URL}, 95 MB', flush=True)
            os.makedirs(os.path.dirname(cached), exist_ok=True)
            torch.hub.download_url_to_file(INCEPTION_URL, cached, INCEPTION[-12:-4], progress=False)
        except Exception as e:  # urllib raises a dozen kinds
            print(f'no FID, no Inception weights ({str(e) or type(e).__name__}): get {INCEPTION_URL} by other means, '
                  f'put it into {os.path.dirname(cached)}, or give it as --inception=', flush=True)
            return None
        finally:
            socket.setdefaulttimeout(timeout)
    return path or cached


def load_inception(path, device):
    """The Inception of the FID papers (2015's TensorFlow graph) -> net of (B, 3, 299, 299) in [-1, 1] to (B, 2048).

    It differs from torchvision's in the pools of its blocks: the averages leave the padding out, the last is a maximum.
    net.sha256 holds the first 8 digits of the file's. Exits on a file that holds other weights or is damaged.
    """
    try:
        with open(path, 'rb') as f:
            sha256 = hashlib.file_digest(f, 'sha256').hexdigest()[:8]
        if sha256 != INCEPTION[-12:-4] and os.path.basename(path) == INCEPTION:
            raise ValueError(f'its sha256 begins with {sha256}')
        with torch.device('meta'):  # no time and no random numbers spent on weights that are replaced
            net = torchvision.models.inception_v3(num_classes=1008, aux_logits=False, init_weights=False)
        net.load_state_dict(torch.load(path, map_location='cpu', weights_only=True), assign=True)
    except Exception as e:  # torch.load raises a dozen kinds
        reason = e if isinstance(e, (OSError, ValueError)) else type(e).__name__  # others advise to load it unsafely
        sys.exit(f"{path}: damaged, or not FID's Inception ({reason}): delete it, and get {INCEPTION_URL}")
    if sha256 != INCEPTION[-12:-4]:
        print(f'{path}: not the published weights, so these figures compare with no others', flush=True)

    for name, block in net.named_children():
        if hasattr(block, 'branch_pool'):  # in goes this pool's result instead of what torchvision's forward() hands it
            pool, pooled = torch.nn.AvgPool2d(3, 1, 1, count_include_pad=False), []
            if name == 'Mixed_7c':
                pool = torch.nn.MaxPool2d(3, 1, 1)
            block.register_forward_pre_hook(lambda _, args, pool=pool, pooled=pooled: pooled.append(pool(args[0])))
            block.branch_pool.register_forward_pre_hook(lambda _, args, pooled=pooled: pooled.pop())
    net.fc, net.sha256 = torch.nn.Identity(), sha256
    return net.to(device).float().eval().requires_grad_(False)


@torch.no_grad()
def inception_features(net, x):
    """uint8 images (B, 3, H, W) of any size -> features (B, 2048) float64, on the net's device.

    Scaled to 299 px as pytorch-fid does it, bilinearly and without antialiasing, or the figures would not compare.
    """
    x = x.to(next(net.parameters()).device).float() / 255
    return net(2 * F.interpolate(x, (299, 299), mode='bilinear', align_corners=False) - 1).double()


def save_stats_file(path, stats):
    """Stats to an .npz, whole or not at all. pytorch-fid reads mu and sigma of it; the features are KID's."""
    data = io.BytesIO()
    np.savez(data, **{k: np.asarray(v.cpu() if torch.is_tensor(v) else v) for k, v in stats.items() if v is not None})
    write_file(path, data.getvalue())


def load_stats_file(path):
    """Stats out of an .npz, also one of pytorch-fid: there n and features are None. Exits on any other file."""
    try:
        with np.load(path) as f:
            stats = {k: torch.from_numpy(f[k]) if k in f else None for k in ('mu', 'sigma', 'n', 'features')}
        stats |= dict(mu=stats['mu'].double(), sigma=stats['sigma'].double(), n=stats['n'] and int(stats['n']))
        wanted = dict(mu=(2048,), sigma=(2048, 2048)) | ({} if stats['features'] is None else dict(features=(
            len(stats['features']), 2048)))
        for k, shape in wanted.items():
            if stats[k].shape != shape or not stats[k].isfinite().all():
                raise ValueError(f'{k} {tuple(stats[k].shape)} is not 2048 finite dimensions')
        return stats
    except Exception as e:  # np.load raises a dozen kinds
        sys.exit(f'{path}: no statistics of Inception features (mu and sigma): {str(e).splitlines()[0]}')


def inception_stats(batches, n, net, name):
    """Stats of n images that come in batches as inception_features takes them, with progress for long ones."""
    moments, progress = Moments(), Progress(f'Inception: {name}: images', n)
    for x in batches:
        moments.add(inception_features(net, x))
        progress.add(len(x))
    return moments.stats()


def real_stats(x, rows, net, inception_net, name, device):
    """Stats of rows of data x (N, H, W, 3) uint8 as `net` sees them; cached by content, size and weights."""
    key = hashlib.sha256(repr([type(net).__name__, net.size, x.shape, inception_net.sha256]).encode())
    key.update(rows.numpy().tobytes() + x[::max(1, len(x) // 100)].numpy().tobytes())  # a sample: other photos show
    path = os.path.join(stats_dir, f'{name}_{net.size}px_{key.hexdigest()[:10]}.npz')
    if not os.path.exists(path):
        batches = (to_uint8(net.to_x(x[r].to(device))) for r in rows.split(batch_size))
        save_stats_file(path, inception_stats(batches, len(rows), inception_net, name))
    return load_stats_file(path)


def compare_folders(device):
    """FID and KID of --real_dir and --fake_dir -> what to print. Exits on what it cannot read or write."""
    paths = [path for path in (real_dir, fake_dir) if path]
    if not real_dir or not (fake_dir or save_stats) or save_stats and not save_stats.endswith('.npz'):
        sys.exit('--real_dir= and --fake_dir=: folders of images or .npz files; or --real_dir= and --save_stats=x.npz')
    files = [None if path.endswith('.npz') else list_images(path) for path in paths]
    if one := [path for path, names in zip(paths, files) if names and len(names) < 2]:
        sys.exit(f'{one[0]}: one image, wanted two or more')
    stats = [None if names else load_stats_file(path) for path, names in zip(paths, files)]  # before an hour of work
    weights = None if inception == 'none' or not any(files) else find_inception(inception)
    if any(files) and not weights:
        sys.exit('FID of images needs the Inception weights')
    net = load_inception(weights, device) if weights else None
    if save_stats:
        write_file(save_stats + '.try', '')
        os.remove(save_stats + '.try')
    for k, (path, names) in enumerate(zip(paths, files)):
        stats[k] = stats[k] or inception_stats(same_sizes(map(read_pixels, names)), len(names), net, path)
    if save_stats:
        save_stats_file(save_stats, stats[0])
    lines = [f"{what}: {s['n'] or 'unknown number of'} images, {path}"
             for what, s, path in zip(('real', 'fake'), stats, paths)]
    if fake_dir:
        d = distances(*stats, device)
        lines.append(f"FID {d['fid']:.3f}")
        if 'kid' in d:
            n = min(1000, *(len(s['features']) for s in stats))
            lines[-1] += f" | KID x100 {100 * d['kid']:.4f}, subsets of {n}"
            lines[-1] += f", deviation {100 * d['kid_std']:.4f}" if d['kid_std'] == d['kid_std'] else ''
        lines += [SMALL] if any((s['n'] or 2048) < 2048 for s in stats) else []
    return '\n'.join(lines) + f'\nuint8 pixels, bilinear to 299 px; seed {seed}; {device}'


def read_pixels(path):
    """-> uint8 (1, 3, H, W), RGB as pytorch-fid takes it: by Pillow, neither turned nor put on white. Exits if none."""
    try:
        with Image.open(path) as image:
            return torch.from_numpy(np.array(image.convert('RGB'))).permute(2, 0, 1)[None]
    except Exception as e:  # Pillow raises a dozen kinds
        sys.exit(f'{path}: cannot be read as an image: {e}')


def same_sizes(images):
    """Puts images (1, 3, H, W) that follow each other and are of one size together, batch_size at most."""
    batch = []
    for x in images:
        if batch and (len(batch) == batch_size or x.shape != batch[0].shape):
            yield torch.cat(batch)
            batch = []
        batch.append(x)
    if batch:
        yield torch.cat(batch)


# the nets under test: both kinds look alike from here on


class StarGAN:
    """A train_teacher.py or train_student.py checkpoint. Labels y are (B, len(attrs)), a target is a name of attrs."""

    def __init__(self, c, module, device):
        self.attrs, self.size, self.exclusive, self.tau = c['attrs'], c['d_args']['image_size'], c['exclusive'], 0
        self.G = module.Generator(**c['g_args']).to(device).requires_grad_(False)
        self.D = module.Discriminator(**c['d_args']).to(device).requires_grad_(False)
        self.G.load_state_dict(c['G'])
        self.D.load_state_dict(c['D'])
        self.params = sum(p.numel() for p in self.G.parameters())
        pseudo = c['config'].get('pseudo')
        self.pairs = dict(zip(self.attrs, pseudo.split(',') if pseudo else self.attrs))  # {c: c_pse}, eq. (6)-(7)
        self.teacher = self  # whose D explains the maps; main knows better of a student

    def to_x(self, x):
        return to_float(x, self.size)

    def guess(self, x):
        """What D takes the labels of x for, where nobody knows them."""
        return (self.D(x)[1] > 0).float()

    def label(self, y, name):
        return set_attr(y, self.attrs.index(name), self.exclusive)

    def fake(self, x, y, name):
        return self.G(x, self.label(y, name))

    def maps(self, x, y, name, modules=None):
        """-> translation, [map (B, h, w) at each of `modules` of G, or None where no D has a score for `name`]."""
        hooks = [GradCAM(module, cam) for module in modules or [self.G.res[-1]]]
        x_fake, A = self.fake(x, y, name), [None] * len(hooks)
        if self.pairs[name] in self.teacher.attrs:
            y_c = self.teacher.D(x_fake)[1][:, self.teacher.attrs.index(self.pairs[name])]
            A = [hook(y_c, retain_graph=True) for hook in hooks]
        for hook in hooks:
            hook.remove()
        return x_fake.detach(), A

    def stages(self):
        """{name: module} of the stages of Fig. 1, in order."""
        parts = [('down', self.G.down[2::3]), ('res', self.G.res), ('up', self.G.up[2::3])]  # conv, norm, ReLU; ...
        return {f'{part} {i + 1}': module for part, modules in parts for i, module in enumerate(modules)}


class UAG:
    """A train_uag.py checkpoint: attrs are its two domains, and to translate to the one is to start from the other."""

    def __init__(self, c, module, device):
        self.attrs, self.size, self.tau = c['domains'], c['image_size'], c['config']['tau']
        self.G, self.A, self.module, self.gen_input = {}, {}, module, c['gen_input']
        for target, g, a in ((c['domains'][1], 'G_st', 'A_s'), (c['domains'][0], 'G_ts', 'A_t')):
            self.G[target] = module.Generator(**c['g_args']).to(device).requires_grad_(False)
            self.G[target].load_state_dict(c[g])
            self.A[target] = module.Attention(**c['a_args']).to(device).requires_grad_(False) if c['a_args'] else None
            if c['a_args']:
                self.A[target].load_state_dict(c[a])
        nets = [net for net in (self.G[target], self.A[target]) if net]
        self.params = sum(p.numel() for net in nets for p in net.parameters())  # of one direction

    def to_x(self, x):
        return whole_images(x, self.size)

    def guess(self, x):
        return None

    def fake(self, x, y, name):
        return self.maps(x, y, name)[0]

    def maps(self, x, y, name):
        """-> translation, [map (B, H, W) in [0, 1], or None without attention]."""
        x_fake, a, _ = self.module.translate(x, self.A[name], self.G[name], self.gen_input)
        return x_fake, [a[:, 0] if self.A[name] else None]


class Images:
    """What is translated: x (N, H, W, 3) uint8, labels y (N, len(attrs)), regions (N, len(attrs), H, W) or None.

    Where nets know only some classes of a single-label set, `known` leaves the images of the others out, as training.
    """

    def __init__(self, x, y, regions, attrs, known, device):
        self.x, self.y, self.regions, self.attrs, self.known, self.device = x, y, regions, attrs, known, device

    def without(self, *names):
        """Rows of the images that have none of these attributes."""
        return (self.known & (self.y[:, [self.attrs.index(n) for n in names]].sum(1) == 0)).nonzero().flatten()

    def see(self, net, rows):
        """Images and labels of rows as `net` takes them."""
        y = self.y[rows][:, [self.attrs.index(name) for name in net.attrs]]
        return net.to_x(self.x[rows].to(self.device)), y.to(self.device)

    def cell(self, net, row, name):
        """For figures: input, translation, and map, black where there is none; (3, H, W) each.

        Grad-CAM has no scale: its maps lie over the input, each up to its own maximum. Attention nets' are masks: grey.
        """
        x, y = self.see(net, row[None])
        x_fake, (A,) = net.maps(x, y, name)
        if A is None:
            shade = torch.full_like(x, -1)
        else:
            shade = (2 * A[:, None] - 1).expand_as(x) if isinstance(net, UAG) else overlay(x, A)
        return x[0].cpu(), x_fake[0].cpu(), shade[0].cpu()


# measures


class Moments:
    """Mean and covariance in float64 of features that come in batches, without keeping them but for a sample.

    `kept` is every stride-th row, float32, 10,000 to 20,000 of them where there are more: enough for KID's subsets.
    """

    def __init__(self):
        self.n, self.sum, self.outer, self.stride, self.kept = 0, 0, 0, 1, []

    def add(self, features):
        self.kept.append(features[-self.n % self.stride::self.stride].float().cpu())
        if sum(map(len, self.kept)) >= 20000:
            self.kept, self.stride = [torch.cat(self.kept)[::2]], 2 * self.stride
        self.n, self.sum = self.n + len(features), self.sum + features.sum(0)
        self.outer = self.outer + features.T @ features

    def stats(self):
        """-> dict of mu (d,), sigma (d, d), n and the features kept."""
        mu = self.sum / self.n
        sigma = (self.outer - self.n * torch.outer(mu, mu)) / max(self.n - 1, 1)
        return dict(mu=mu, sigma=sigma, n=self.n, features=torch.cat(self.kept))


def frechet_distance(mean1, cov1, mean2, cov2):
    """|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)) of two Gaussians, float64 (d,) and (d, d) -> float >= 0.

    C1 C2 has the eigenvalues of the symmetric C1^(1/2) C2 C1^(1/2), so no general matrix root is needed.
    """
    values, vectors = torch.linalg.eigh(cov1)
    root = (vectors * values.clamp_min(0).sqrt()) @ vectors.T
    covmean = torch.linalg.eigvalsh(root @ cov2 @ root).clamp_min(0).sqrt().sum()
    return max((((mean1 - mean2) ** 2).sum() + cov1.trace() + cov2.trace() - 2 * covmean).item(), 0.0)


def kid(real, fake, generator):
    """Kernel Inception distance (Binkowski et al. 2018) of features (N, d) and (M, d) -> mean, standard deviation.

    Unbiased MMD^2 with k(x, y) = (x.y / d + 1)^3, over 100 subsets of n = min(1000, N, M) drawn without replacement.
    With N = M <= 1000 there is one subset, the whole, and no deviation: NaN.
    """
    n, values = min(1000, len(real), len(fake)), []
    for _ in range(100):
        x, y = (f[torch.randperm(len(f), generator=generator)[:n].to(f.device)].double() for f in (real, fake))
        kxx, kyy, kxy = (((a @ b.T) / a.shape[1] + 1) ** 3 for a, b in ((x, x), (y, y), (x, y)))
        off = sum((k.sum() - k.trace()) / (n * (n - 1)) for k in (kxx, kyy))
        values.append((off - 2 * kxy.mean()).item())
        if n == len(real) == len(fake):
            return values[0], float('nan')
    return float(np.mean(values)), float(np.std(values))


def distances(real, fake, device):
    """Two stats of Inception features -> dict of fid and, where the features are known, kid and kid_std."""
    out = dict(fid=frechet_distance(*(s[k].to(device) for s in (real, fake) for k in ('mu', 'sigma'))))
    if real['features'] is not None and fake['features'] is not None:
        generator = torch.Generator().manual_seed(seed)
        out['kid'], out['kid_std'] = kid(real['features'].to(device), fake['features'].to(device), generator)
    return out


def measure(x, x_fake, A, m, tau):
    """Maps A (B, h, w) or None, and the change x_fake - x, against regions m (B, H, W) bool -> {measure: (B,)} float64.

    A is enlarged to the region's size first. energy is the share of A inside over the region's share of the area, 1 for
    a map that knows nothing; point: 1 where the maximum lies inside; iou with the pixels of highest A, as many as the
    region has. These three are NaN where the map or the region is zero everywhere. See the docstring on top.
    """
    change, area = (x_fake - x).abs().mean(1).flatten(1).double(), m.flatten(1).sum(1)
    inside = m.flatten(1).double()
    out = dict(leak=(change * (1 - inside)).sum(1) / (inside.shape[1] - area).clamp_min(1),
               object=(change * inside).sum(1) / area.clamp_min(1))
    if A is None:
        return out
    if A.shape[1:] != m.shape[1:]:
        A = F.interpolate(A[:, None].double(), m.shape[1:], mode='bilinear')[:, 0]
    A = A.flatten(1).double()
    dead = A.amax(1) <= 0
    rank = A.argsort(dim=1, descending=True, stable=True).argsort(1)  # 0 for the highest
    both = (inside * (rank < area[:, None])).sum(1)
    where = dict(energy=(A * inside).sum(1) / A.sum(1) / (area / inside.shape[1]),
                 point=inside.gather(1, A.argmax(1, keepdim=True))[:, 0], iou=both / (2 * area - both))
    out |= {k: torch.where(dead | (area == 0), torch.nan, v) for k, v in where.items()} | dict(dead=dead.double())
    if tau:  # attention nets: the map is a mask
        for name, threshold in (('iou_tau', tau), ('iou_half', 0.5)):
            on = (A >= threshold).double()
            out[name] = (on * inside).sum(1) / ((on + inside) > 0).sum(1).clamp_min(1)
        out['soft'] = ((A > 0.1) & (A < 0.9)).double().mean(1)
    return out


def bootstrap(a, b, generator, n=2000):
    """Mean accuracy of a minus that of b and its 95 % interval, by resampling the test images, the same for both.

    a, b: (N, c) hits in [0, 1], NaN where an image is not translated to an attribute. -> difference, low, high.
    """
    d = (a - b).double()
    draws = [torch.arange(len(d))] + [torch.randint(len(d), (len(d),), generator=generator) for _ in range(n)]
    means = torch.stack([d[i].nanmean(0).nanmean() for i in draws])  # over images, then over attributes
    return means[0].item(), *means[1:].nanquantile(torch.tensor([0.025, 0.975]).double()).tolist()


def cost(net, x, y, name):
    """Parameters, multiply-adds and median ms for one image; images/s and, on a GPU, MB at their peak for 64."""
    def median(x, y):
        times, t_start = [], time.perf_counter()
        while len(times) < 4 or len(times) < 30 and time.perf_counter() - t_start < 1:
            t0 = time.perf_counter()
            net.fake(x, y, name)
            if x.is_cuda:
                torch.cuda.synchronize(x.device)
            times.append(time.perf_counter() - t0)
        return float(np.median(times[1:]))
    with torch.no_grad():
        with FlopCounterMode(display=False) as counter:
            net.fake(x[:1], y[:1], name)
        out = dict(params=net.params, macs=counter.get_total_flops() // 2, latency_ms=1000 * median(x[:1], y[:1]))
        x, y = (t[torch.arange(64) % len(t)] for t in (x, y))
        if x.is_cuda:
            torch.cuda.reset_peak_memory_stats(x.device)
        out['images_per_s'] = 64 / median(x, y)
        out['peak_mb'] = torch.cuda.max_memory_allocated(x.device) / 2 ** 20 if x.is_cuda else float('nan')
    return out


def evaluate_row(row, images, clf, multi_label, inception_net, real, progress):
    """Translates all that a row of the table stands for -> its results, and hits (N, attributes), NaN where not asked.

    real: stats of the real images that the translations should be like, by classifier and, if there is one, Inception.
    """
    net, fakes, accuracy, measures = row['net'], (Moments(), Moments()), {}, {}
    hits = torch.full(images.y.shape, float('nan'))
    for name in row['targets']:
        col, chosen, measured = images.attrs.index(name), images.without(name), {}
        for rows in chosen.split(batch_size):
            x, y = images.see(net, rows)
            x_fake, (A,) = net.maps(x, y, name)
            pixels = to_uint8(x_fake)
            x_fake = pixels / 127.5 - 1  # measured is what a PNG would keep
            if save_images:
                for k, image in zip(rows.tolist(), x_fake):
                    k -= int(chosen[0]) if isinstance(net, UAG) else 0  # there the row in its own domain
                    write_image(os.path.join(out_dir, 'images', row['label'], name, f'{k:06d}.png'), to_image(image))
            calls, features = classify(clf, x_fake, multi_label)
            hits[rows, col] = calls[:, col].float().cpu()
            fakes[0].add(features)
            if inception_net:
                fakes[1].add(inception_features(inception_net, pixels))
            if images.regions is not None:
                m = images.regions[rows, col][..., None].to(x.device)
                m = net.to_x(255 * m)[:, 0] > 0  # where it fills more than half of the pixel
                for k, v in measure(x, x_fake, A, m, net.tau).items():
                    measured.setdefault(k, []).append(v)
            progress.add(len(rows), f" | {row['label']} -> {name}")
        accuracy[name] = hits[:, col].nanmean().item()
        measures[name] = {k: torch.cat(v).nanmean().item() for k, v in measured.items()}
    c, stats = row['c'], [f.stats() for f in fakes[:2 if inception_net else 1]]
    result = dict(label=row['name'], ckpt=row['path'], iter=c['iter'], g_args=c['g_args'], config=c['config'],
                  accuracy=accuracy, accuracy_mean=float(np.mean(list(accuracy.values()))), measures=measures,
                  n_real=real[0]['n'], n_fake=stats[0]['n'],
                  fd_clf=frechet_distance(*(s[k] for s in (real[0], stats[0]) for k in ('mu', 'sigma'))))
    for k in set().union(*measures.values()):
        values = [m[k] for m in measures.values() if m.get(k, float('nan')) == m.get(k)]  # those that are no NaN
        result[k] = float(np.mean(values)) if values else float('nan')
    if inception_net:
        result |= distances(real[1], stats[1], images.device)
    return result | cost(net, *images.see(net, images.without(name)[:64]), name), hits


def merge_seeds(rows):
    """Rows -> groups that differ in the seed, and in where and how often a run writes: dicts of name, label, rows."""
    ignored = ('seed', 'out_dir', 'resume', 'device', 'log_interval', 'sample_interval', 'ckpt_interval', 'n_samples')
    by_config, groups = {}, []
    for row in rows:
        settings = {k: v for k, v in row['c']['config'].items() if k not in ignored}
        key = json.dumps([row['c']['script'], row['c']['iter'], row['targets'], settings], sort_keys=True)
        by_config.setdefault(key, []).append(row)
    for seeds in by_config.values():
        label = seeds[0]['label']
        if len(seeds) > 1:  # what S-s0 and S-s1 have in common
            common = re.sub(r'[-_. ]*(s|seed)?\d*$', '', os.path.commonprefix([row['label'] for row in seeds]))
            label = common if common and common not in [row['label'] for row in rows] else label
        name = label + seeds[0]['name'].removeprefix(seeds[0]['label'])
        name += f' ({len(seeds)} seeds)' if len(seeds) > 1 else ''
        groups.append(dict(label=label, name=name, rows=seeds))
    return groups


# tables, figures, report

# (header, key of a result, factor, decimals); a column without a value in any row is left out
QUALITY = [('Mean', 'accuracy_mean', 100, 1), ('FID', 'fid', 1, 2), ('KID x100', 'kid', 100, 3),
           ('KID std', 'kid_std', 100, 3), ('FD-clf', 'fd_clf', 1, 2)]
MAPS = [('energy', 'energy', 1, 2), ('point %', 'point', 100, 1), ('IoU', 'iou', 1, 2), ('IoU tau', 'iou_tau', 1, 3),
        ('IoU 0.5', 'iou_half', 1, 3), ('soft %', 'soft', 100, 1), ('dead %', 'dead', 100, 1), ('leak', 'leak', 1, 4),
        ('object', 'object', 1, 3)]
COST = [('params', 'params', 1, 0), ('MMACs', 'macs', 1e-6, 1), ('ms, batch 1', 'latency_ms', 1, 1),
        ('images/s, batch 64', 'images_per_s', 1, 0), ('MB, batch 64', 'peak_mb', 1, 0)]


def table(corner, columns, groups):
    """Groups (label, results of its seeds) -> rows of cells, the first the header; mean ± deviation over seeds."""
    def cell(results, key, factor, decimals):
        values = [factor * r.get(key, float('nan')) for r in results]
        if any(v != v for v in values):
            return '-'
        spread = f' ± {np.std(values, ddof=1):,.{decimals}f}' if len(values) > 1 and np.std(values) else ''
        return f'{np.mean(values):,.{decimals}f}{spread}'
    rows = [[corner, *(c[0] for c in columns)]]
    rows += [[label, *(cell(results, *c[1:]) for c in columns)] for label, results in groups]
    full = [k for k in range(len(rows[0])) if k == 0 or any(row[k] != '-' for row in rows[1:])]
    return [[row[k] for k in full] for row in rows] if len(full) > 1 else []


def as_text(rows):
    """Rows of cells -> lines of aligned columns, the first column left and the others right."""
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    return '\n'.join('  '.join(cell.ljust(w) if k == 0 else cell.rjust(w)
                               for k, (cell, w) in enumerate(zip(row, widths))) for row in rows)


def as_markdown(rows):
    """Rows of cells -> a Markdown table."""
    lines = ['| ' + ' | '.join(row) + ' |' for row in rows]
    return '\n'.join([lines[0], '|---' + '|---:' * (len(rows[0]) - 1) + '|', *lines[1:]])


def as_html(rows):
    """Rows of cells -> an HTML table."""
    lines = [''.join(f'<{tag}>{html.escape(cell)}</{tag}>' for cell in row)
             for row, tag in zip(rows, ['th'] + ['td'] * len(rows))]
    return '<div class=wide><table><tr>' + '<tr>'.join(lines) + '</table></div>'


def figure(header, rows, labels):
    """PNG bytes: rows of images (3, H, W) in [-1, 1], with a header over the columns and a label before each row."""
    side, font = rows[0][0].shape[1], ImageFont.load_default(13)
    cell = side * max(1, 96 // side)
    left, top = 8 + int(max(font.getlength(label) for label in labels)), 20
    sheet = Image.new('RGB', (left + len(header) * (cell + 4), top + len(rows) * (cell + 4)), 'white')
    draw = ImageDraw.Draw(sheet)
    for k, text in enumerate(header):
        while font.getlength(text) > cell and len(text) > 4:
            text = text[:-2] + '…'
        draw.text((left + k * (cell + 4), 2), text, 'black', font)
    for r, (row, label) in enumerate(zip(rows, labels)):
        draw.text((2, top + r * (cell + 4) + cell // 2 - 8), label, 'black', font)
        for k, x in enumerate(row):
            sheet.paste(to_image(x).resize((cell, cell), Image.Resampling.NEAREST),
                        (left + k * (cell + 4), top + r * (cell + 4)))
    png = io.BytesIO()
    sheet.save(png, 'PNG')
    return png.getvalue()


def draw_figures(nets, images):
    """{label: net} -> [(file name, caption, PNG bytes)] of the figures that the docstring on top names."""
    blank, plain, mapped, names = torch.ones(3, *[next(iter(nets.values())).size] * 2), [], [], []
    for name in dict.fromkeys(name for net in nets.values() for name in net.attrs):
        for row in images.without(name)[:n_rows]:
            cells = [images.cell(net, row, name) if name in net.attrs else None for net in nets.values()]
            x = next(c[0] for c in cells if c)
            plain.append([x, *(c[1] if c else blank for c in cells)])
            mapped.append([x, *(c[j] if c else blank for c in cells for j in (1, 2))])
            names.append(name)
    with_maps = [text for label in nets for text in (label, 'its map')]
    out = [('translations.png', 'Translations', figure(['input', *nets], plain, names)),
           ('maps.png', 'Translations and attention maps', figure(['input', *with_maps], mapped, names))]
    first, net = next(iter(nets.items()))
    if isinstance(net, UAG):
        return out
    names = [name for name in net.attrs if net.pairs[name] in net.teacher.attrs and len(images.without(name))]
    cells = []
    for name in names:
        x, y = images.see(net, images.without(name)[:1])
        x_fake, maps = net.maps(x, y, name, net.stages().values())
        cells.append([x[0], *(overlay(x, A)[0] for A in maps), x_fake[0]])
    if cells:
        out.append(('stages.png', f'Maps of every stage of {first}',
                    figure(['input', *net.stages(), 'output'], cells, names)))
    pairs = {(c, c_pse): net.teacher for net in nets.values() for c, c_pse in net.pairs.items()
             if c != c_pse and c_pse in net.teacher.attrs and net.teacher is not net}
    others = {label: net for label, net in nets.items() if any(c in net.attrs for c, _ in pairs)}
    cells, names = [], []
    for (c, c_pse), teacher in pairs.items():
        for row in images.without(c, c_pse)[:n_rows]:
            cells.append(list(images.cell(teacher, row, c_pse)))
            for net in others.values():
                cells[-1] += images.cell(net, row, c)[1:] if c in net.attrs else [blank, blank]
            names.append(f'{c_pse}, {c}')
    if cells:
        header = ['input', 'T: c_pse', 'its map'] + [text for label in others for text in (f'{label}: c', 'its map')]
        out.append(('pseudo.png', 'Maps of c_pse, by the teacher, beside maps of c', figure(header, cells, names)))
    return out


def report(title, tables, notes, figures, details):
    """One HTML page with everything in it: no scripts, no network, dark where the reader's system is."""
    style = ('body{font:16px/1.5 system-ui,sans-serif;max-width:70rem;margin:auto;padding:1rem;color-scheme:light dark;'
             'background:Canvas;color:CanvasText}.wide{overflow-x:auto}table{border-collapse:collapse;margin:1rem 0;'
             'font-variant-numeric:tabular-nums;font-size:.9rem}td,th{padding:.2rem .6rem;text-align:right;'
             'border-bottom:1px solid #8886;white-space:nowrap}td:first-child,th:first-child{text-align:left}'
             'img{background:#fff}pre{white-space:pre-wrap;overflow-wrap:anywhere;font-size:.8rem}')
    page = ['<!doctype html><html lang=en><meta charset=utf-8>', f'<title>{html.escape(title)}</title>',
            '<meta name=viewport content="width=device-width,initial-scale=1">', f'<style>{style}</style>',
            f'<h1>{html.escape(title)}</h1>', *map(as_html, tables), *(f'<p>{html.escape(note)}</p>' for note in notes)]
    for _, caption, png in figures:
        src, caption = 'data:image/png;base64,' + base64.b64encode(png).decode(), html.escape(caption)
        page.append(f'<h2>{caption}</h2><div class=wide><img alt="{caption}" src="{src}"></div>')
    page += [f'<details><summary>{html.escape(heading)}</summary><pre>{html.escape(text)}</pre></details>'
             for heading, text in details]
    return '\n'.join(page) + '</html>\n'


# files and photos


def write_file(path, content):
    """Text or bytes, whole or not at all; makes the folder."""
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    with open(path + '.tmp', 'wb') as f:
        f.write(content.encode() if isinstance(content, str) else content)
    os.replace(path + '.tmp', path)


def write_image(path, image):
    """A PIL image as PNG, or as JPEG where the ending says so."""
    data = io.BytesIO()
    image.save(data, 'JPEG' if path.lower().endswith(('.jpg', '.jpeg')) else 'PNG', quality=95)
    write_file(path, data.getvalue())


def to_uint8(x):
    """(B, 3, H, W) in [-1, 1] -> the pixels that a PNG would keep: uint8, the same shape."""
    return ((x + 1) * 127.5).round().clamp(0, 255).byte()


def to_image(x):
    """(3, H, W) in [-1, 1] -> PIL image."""
    return Image.fromarray(to_uint8(x).permute(1, 2, 0).cpu().numpy())


def read_photo(path):
    """An image file of any mode -> PIL RGB, upright by its EXIF orientation, transparency on white. Raises if none."""
    with Image.open(path) as img:
        img = ImageOps.exif_transpose(img)
        if img.mode[0] in 'IF':  # 16 bits, or floats in [0, 1]; convert() would clip rather than scale them
            grey = np.asarray(img).astype(np.float64) * (255 if img.mode == 'F' else 1 / 257)
            img = Image.fromarray(np.clip(np.rint(grey), 0, 255).astype(np.uint8))
        elif img.has_transparency_data:
            img = img.convert('RGBA')
            img = Image.alpha_composite(Image.new('RGBA', img.size, 'white'), img)
        return img.convert('RGB')


def list_images(path):
    """The image files of a folder and its subfolders, sorted. Exits where there are none."""
    found = sorted(os.path.join(folder, name) for folder, _, names in os.walk(path) for name in names
                   if name.lower().endswith(ENDINGS) and name[0] != '.')
    if not found:
        sys.exit(f'{path}: no image in it' if os.path.isdir(path) else f'{path}: no such folder')
    return found


def translate_photos(net, device):
    """Photos in, one file for each photo and target out; says what it does. Nobody's labels are needed: D guesses."""
    whole, base = isinstance(net, UAG), input if os.path.isdir(input) else os.path.dirname(input) or '.'
    targets = [name.split('+') for name in attrs.split(',') if name] or [[name] for name in net.attrs]
    for parts in targets:
        unknown = [name for name in parts if name not in net.attrs]
        if unknown or whole and len(parts) > 1:
            sys.exit(f"--attrs={attrs}: {ckpt} knows {', '.join(net.attrs)}" + (', one at a time' if whole else ''))
        if any(len(set(map(net.attrs.index, parts)) & set(group)) > 1 for group in ([] if whole else net.exclusive)):
            sys.exit(f"--attrs: {'+'.join(parts)} exclude each other")
    if not os.path.exists(input):
        sys.exit(f'--input={input}: no such photo or folder')
    photos = list_images(input) if os.path.isdir(input) else [input]
    stems = [os.path.splitext(os.path.relpath(path, base)) for path in photos]
    twice = {s for s, _ in stems if [t for t, _ in stems].count(s) > 1}  # a.jpg and a.png keep their endings
    stems = [stem + ending.replace('.', '_') if stem in twice else stem for stem, ending in stems]
    files = [[os.path.join(out, f"{stem}_{'+'.join(parts)}.png") for parts in targets] for stem in stems]
    if out.lower().endswith(('.png', '.jpg', '.jpeg')):
        if len(photos) * len(targets) > 1 or os.path.isdir(out):
            sys.exit(f'--out={out}: {len(photos)} x {len(targets)} results need a folder, not a file')
        files = [[out]]
    lost = {os.path.realpath(path) for path in photos} & {os.path.realpath(path) for row in files for path in row}
    if lost:
        sys.exit(f'--out={out}: would overwrite the photo {sorted(lost)[0]}')
    print(f"each photo's {'whole area, squashed to a square' if whole else 'centre square'}, at {net.size} px; "
          f"result: {'put back into the photo' if paste else 'the square alone'}", flush=True)
    progress, bad = Progress('photos', len(photos)), 0
    for path, paths in zip(photos, files):
        try:
            photo = read_photo(path)
        except Exception as e:  # Pillow raises nearly every kind on damaged files
            bad += 1
            print(f'{path}: left out, cannot be read: {e}', flush=True)
            continue
        side = min(photo.size)
        left, top = (photo.width - side) // 2, (photo.height - side) // 2
        box = (0, 0, *photo.size) if whole else (left, top, left + side, top + side)
        small = photo.crop(box).resize((net.size, net.size), Image.Resampling.BICUBIC)
        x = torch.from_numpy(np.array(small)).to(device).permute(2, 0, 1)[None] / 127.5 - 1
        with torch.no_grad():
            guess = net.guess(x)
            for parts, target in zip(targets, paths):
                y = guess
                for part in parts[:-1]:
                    y = net.label(y, part)
                result = to_image(net.fake(x, y, parts[-1])[0])
                if paste:
                    square, result = result, photo.copy()
                    result.paste(square.resize((box[2] - box[0], box[3] - box[1]), Image.Resampling.BICUBIC), box[:2])
                write_image(target, result)
        progress.add(1)
    if bad == len(photos):
        sys.exit(f'--input={input}: no photo there that can be read')
    print(f'{(len(photos) - bad) * len(targets)} images: {out}, {time.time() - progress.t0:.1f} s')


def evaluate_checkpoints(nets, ckpts, paths, device):
    """Everything that out_dir gets, from the nets of the checkpoints; the first lines of this file say what."""
    t_start, uag = time.time(), isinstance(nets[0], UAG)
    labels = []
    for path in paths:  # the folder's name, or the file's where that is not ckpt.pt
        folder, stem = os.path.abspath(path).removesuffix('.pt').split(os.sep)[-2:]
        label = folder if stem == 'ckpt' else f'{folder}-{stem}'
        while label in labels:
            label += "'"
        labels.append(label)

    # data; two unpaired domains are here two classes, the regions of which are those of the object
    data_dir, meta = find_data(dataset or ckpts[0]['config']['dataset'])
    if uag != (meta['label'] == 'unpaired') or uag and split != 'test':
        sys.exit(f"{data_dir} ({meta['label']}), --split={split}: not for {ckpts[0]['kind']} checkpoints")
    names, multi_label, size = meta['domains' if uag else 'attrs'], meta['label'] == 'multi', nets[0].size
    for path, net in zip(paths, nets):
        if net.size != size or not uag and meta['image_size'] % size or not set(net.attrs) <= set(names):
            sys.exit(f"{path} works on {','.join(net.attrs)} at {net.size} px, "
                     f"which {paths[0]} or {data_dir} ({meta['image_size']} px) does not")
    sides = 'AB' if uag else ['']
    if uag:
        train, test = ([load_domain(data_dir, part + side) for side in sides] for part in ('train', 'test'))
        (train_x, train_y), (test_x, test_y) = ((torch.cat(two), torch.eye(2).repeat_interleave(
            torch.tensor([len(x) for x in two]), 0)) for two in (train, test))
    else:
        train_x, train_y = load_split(data_dir, meta, 'train', names)
        test_x, test_y = load_split(data_dir, meta, split, names)
    regions = [os.path.join(data_dir, f'{split}{side}_m.npy') for side in sides]
    if all(map(os.path.exists, regions)):
        try:
            regions = [torch.from_numpy(np.load(path, mmap_mode='c')) for path in regions]
            regions = torch.cat(regions)[:, None].expand(-1, 2, -1, -1) if uag else regions[0]
            if regions.shape != (*test_y.shape, *test_x.shape[1:3]):
                raise ValueError(f'{tuple(regions.shape)} do not go with {tuple(test_x.shape)} images')
        except (OSError, ValueError, EOFError) as e:
            sys.exit(f'{data_dir}: cannot read the regions ({split}*_m.npy), prepare the data again: {e}')
    else:
        regions = None
    shown = list(dict.fromkeys(name for net in nets for name in net.attrs))
    known = test_y[:, [names.index(name) for name in shown]].sum(1) > 0 if not multi_label else test_y[:, 0] >= 0
    images = Images(test_x, test_y, regions, names, known, device)
    empty = [name for name in shown if not len(images.without(name))]
    if empty:
        print(f"left out, every {split} image has it: {', '.join(empty)}")
        shown = [name for name in shown if name not in empty] or sys.exit('nothing to translate')

    # whose D explains: a student's maps are its teacher's D's, or if that is not in the list, the first checkpoint's
    by_path = {os.path.realpath(path): net for path, net in zip(paths, nets)}
    for c, net in zip(ckpts, nets):
        if c['config'].get('teacher'):
            net.teacher = by_path.get(os.path.realpath(c['config']['teacher']), nets[0])
    pairs = {c: c_pse for net in nets if not uag for c, c_pse in net.pairs.items() if c != c_pse}
    for net in () if uag else nets:  # one without attention loss has no pairs of its own
        if net.teacher is not net:
            net.pairs = {c: p if p in net.teacher.attrs else pairs.get(c, c) for c, p in net.pairs.items()}

    # rows of the tables: one for a StarGAN, one for each direction of UAG, each with the real images it should be like
    real_rows, rows = {}, []
    for label, path, c, net in zip(labels, paths, ckpts, nets):
        for target in reversed(net.attrs) if uag else [None]:
            real_rows[target] = (test_y[:, names.index(target)] if uag else known).nonzero().flatten()
            targets = [target] if uag else [name for name in net.attrs if name in shown]
            rows.append(dict(name=f'{label} -> {target}' if uag else label, label=label, path=path, c=c, net=net,
                             targets=targets, real=target))
    groups = merge_seeds([row for row in rows if row['targets']])
    if baseline and baseline not in [group['label'] for group in groups]:
        sys.exit(f"--baseline={baseline}: no row of that name; there are {', '.join(g['label'] for g in groups)}")

    # Inception and the classifier, how good that is on real images, and what both make of these
    weights = None if inception == 'none' else find_inception(inception)
    inception_net = load_inception(weights, device) if weights else None
    torch.manual_seed(seed)
    arch = clf_arch or ('resnet50' if regions is None else 'resnet18')
    clf = get_classifier(train_x, train_y, nets[0].to_x, size, multi_label, meta, arch, device)
    calls, real = torch.full(test_y.shape, float('nan')), {}
    for target, chosen in real_rows.items():
        moments = Moments()
        for r in chosen.split(batch_size):
            call, features = classify(clf, nets[0].to_x(test_x[r].to(device)), multi_label)
            moments.add(features)
            calls[r] = call.float().cpu()
        real[target] = [moments.stats()]
        if inception_net:
            name = '_'.join(filter(None, (meta['dataset'], split, target)))
            real[target].append(real_stats(test_x, chosen, nets[0], inception_net, name, device))
    has = torch.where(test_y > 0, calls, torch.nan).nanmean(0)
    recall, balanced = has, (has + torch.where(test_y == 0, 1 - calls, torch.nan).nanmean(0)) / 2

    # the translations
    done = sum(len(images.without(name)) for group in groups for row in group['rows'] for name in row['targets'])
    progress = Progress('translations', done)
    for group in groups:
        both = [evaluate_row(row, images, clf, multi_label, inception_net, real[row['real']], progress)
                for row in group['rows']]
        group |= dict(results=[result for result, _ in both], hits=torch.stack([hits for _, hits in both]).mean(0))

    # tables
    flat = [(group['name'], [r | r['accuracy'] for r in group['results']]) for group in groups]
    for text, values in (('real: recall', recall), ('real: balanced accuracy', balanced)):
        values = dict(zip(names, values.tolist()))
        flat.append((text, [values | dict(accuracy_mean=float(np.mean([values[name] for name in shown])))]))
    columns = [] if uag else [(name, name, 100, 1) for name in shown]
    tables = [table('accuracy, %', columns + QUALITY, flat), table('maps', MAPS, flat[:-2]),
              table('cost', COST, flat[:-2])]
    tables, notes = [cells for cells in tables if cells], []
    for k, group in enumerate(groups):
        others = [other for other in (groups if baseline else groups[:k]) if other is not group
                  and baseline in ('', other['label']) and (~(group['hits'] - other['hits']).isnan()).any()]
        for other in others[-1:]:  # the nearest above, or the baseline
            d, low, high = bootstrap(group['hits'], other['hits'], torch.Generator().manual_seed(seed))
            notes.append(f"{group['name']} - {other['name']}: {100 * d:+.1f} points of mean accuracy, "
                         f'95 % interval over test images {100 * low:+.1f} to {100 * high:+.1f}')
    results = [r for group in groups for r in group['results']]
    n_real, n_fake = (' or '.join(f'{n:,}' for n in sorted({r[k] for r in results})) for k in ('n_real', 'n_fake'))
    cuda = device.startswith('cuda')
    machine = torch.cuda.get_device_name(device) if cuda else f'CPU, {torch.get_num_threads()} threads'
    explains = '' if uag else f"maps: {cam}, a student's by the D of its teacher or of {labels[0]}; "
    notes.append(f'{n_real} real {split} images of {data_dir} at {size} px, {n_fake} translations a row, uint8 pixels; '
                 f'last checkpoints; classifier {arch}, seed {seed}; {explains}{machine}; '
                 f'{time.time() - t_start:.0f} s')
    if inception_net:
        few = min(min(r['n_real'], r['n_fake']) for r in results) < 2048
        notes.append(f'FID and KID: Inception {inception_net.sha256}; KID over subsets of min(1000, N)'
                     + (f'; {SMALL}' if few else ''))
    text = '\n\n'.join([as_text(cells) for cells in tables] + ['\n'.join(notes)])
    print('\n' + text)

    # files: figures last, they cost least to make again
    command = 'python evaluate.py ' + shlex.join(sys.argv[1:])
    versions = ', '.join(f'{m.__name__} {m.__version__}' for m in (torch, torchvision, np))
    to_json = lambda v: ({k: to_json(w) for k, w in v.items()} if isinstance(v, dict) else [to_json(w) for w in v] if
                         isinstance(v, list) else None if v != v else v)  # JSON has no NaN
    write_file(os.path.join(out_dir, 'table.txt'), text + '\n')
    write_file(os.path.join(out_dir, 'table.md'), '\n\n'.join(
        [*map(as_markdown, tables), '\n'.join(f'- {note}' for note in notes)]) + '\n')
    write_file(os.path.join(out_dir, 'results.json'), json.dumps(to_json(dict(
        command=command, config=config, device=device, versions=versions, n_test=len(test_x), attrs=shown, notes=notes,
        clf_recall=dict(zip(names, recall.tolist())), clf_balanced_accuracy=dict(zip(names, balanced.tolist())),
        rows=[dict(label=g['name'], ckpts=[r['ckpt'] for r in g['results']]) for g in groups],
        checkpoints=results)), indent=1, allow_nan=False))
    figures = draw_figures({group['rows'][0]['label']: group['rows'][0]['net'] for group in groups}, images)
    for name in ('translations.png', 'maps.png', 'stages.png', 'pseudo.png'):  # none may stay of an earlier run
        if os.path.exists(os.path.join(out_dir, name)):
            os.remove(os.path.join(out_dir, name))
    for name, _, png in figures:
        write_file(os.path.join(out_dir, name), png)
    details = [('Command', command), ('Versions', versions), ('Settings', json.dumps(config, indent=1))]
    details += [(f"{path}, iteration {c['iter']:,}", json.dumps(c['config'], indent=1))
                for path, c in zip(paths, ckpts)]
    write_file(os.path.join(out_dir, 'report.html'),
               report(f"{meta['dataset']}, {size} px", tables, notes, figures, details))
    print(f"\n{os.path.join(out_dir, 'report.html')} has all of this, and {', '.join(name for name, _, _ in figures)}")


if __name__ == '__main__':
    if not (ckpt or real_dir or fake_dir) or ckpt and (real_dir or fake_dir):
        sys.exit('--ckpt= one or more ckpt.pt files, comma-separated; or --real_dir= and --fake_dir=')
    if cam not in ('gradcam', 'hirescam') or split not in ('val', 'test') or (
            clf_arch not in ('', 'resnet18', 'resnet50')):
        sys.exit('--cam is gradcam or hirescam, --split val or test, --clf_arch resnet18 or resnet50')
    if min(batch_size, n_rows, clf_epochs) < 1 or not 0 <= clf_lr < float('inf'):
        sys.exit('--batch_size, --n_rows and --clf_epochs: 1 or more; --clf_lr: 0 or more')
    device = device or ('cuda' if torch.cuda.is_available() else 'cpu')
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as e:
        sys.exit(f'--device={device}: {str(e).splitlines()[0]}')
    try:
        if not ckpt:
            print(compare_folders(device))
            sys.exit()
        paths = ckpt.split(',')
        if len({os.path.realpath(path) for path in paths}) < len(paths):
            sys.exit(f'--ckpt={ckpt}: the same file twice')
        ckpts = [load_ckpt(path, 'stargan', 'uag') for path in paths]
        if len({c['kind'] for c in ckpts}) > 1:
            sys.exit(f'--ckpt={ckpt}: StarGAN and UAG checkpoints in one list; evaluate them apart')
        nets = []
        for path, c, script_path in zip(paths, ckpts, (script.split(',') + [''] * len(paths))):
            module = load_script(c, script_path, '--script')
            try:
                nets.append((UAG if c['kind'] == 'uag' else StarGAN)(c, module, device))
            except (KeyError, TypeError, RuntimeError) as e:
                sys.exit(f'{path}: made by an older version of these scripts, train again: {str(e).splitlines()[0]}')
        if input and len(nets) > 1:
            sys.exit('--input= goes with one checkpoint')
        if input:
            translate_photos(nets[0], device)
            sys.exit()
        for folder in (out_dir, clf_dir, stats_dir):
            os.makedirs(folder, exist_ok=True)
            write_file(os.path.join(folder, '.try'), '')  # now rather than after an hour
            os.remove(os.path.join(folder, '.try'))
        evaluate_checkpoints(nets, ckpts, paths, device)
    except OSError as e:
        sys.exit(f'cannot go on: {e}')
