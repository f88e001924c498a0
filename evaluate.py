"""
Compares trained generators, or any two folders of images, and translates photos.

    python evaluate.py --ckpt=out/teacher/ckpt.pt,out/s0/ckpt.pt,out/s10/ckpt.pt  # tables, figures
    python evaluate.py --ckpt=T.pt,a0.pt+a1.pt,b0.pt+b1.pt  # seeds of a, and of b, make one row each
    python evaluate.py --ckpt=out/uag/ckpt.pt,out/cyclegan/ckpt.pt  # train_uag.py: both directions
    python evaluate.py --real_dir=photos --fake_dir=fakes  # FID and KID of two folders
    python evaluate.py --ckpt=out/s10/ckpt.pt --input=me.jpg --attrs=Eyeglasses,Blond_Hair --out=me

Accuracy (Tables 1-4): each test image without an attribute is translated to have it; the share that
    a classifier trained on real images calls positive. It is trained here, once, and cached.
FID, KID: distances of Inception features between the real test images and all those translations.
FD-clf: the Frechet distance in the classifier's features, for comparison within one table only.
Agreement: the mean cosine between a student's map and that of the first checkpoint, the teacher.
Change and energy of maps, where the data knows the region of each attribute: see the functions.

Writes to out_dir: results.json, table.txt, maps.png (input, translation and map of each checkpoint:
Fig. 4 to 8 of the paper), stages.png (the map of every stage of the first one's G: Fig. 1) and
report.html, one page with all of that and the learning curves.

To read: evaluate_net() makes the figures of a row of the tables, StarGAN and UAG are the nets under
test, Judge looks at their translations, and compare_checkpoints() is the whole story.
"""

import base64
import contextlib
import difflib
import hashlib
import html
import io
import json
import math
import os
import re
import shlex
import signal
import socket
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import torchvision
from PIL import Image, ImageDraw, ImageFont, ImageOps
from torch.utils.flop_counter import FlopCounterMode

from gradcam import GradCAM, overlay
from train_student import (
    check_fields, find_data, load_ckpt, load_net, load_split, or_exit, set_attr, to_float)
from train_uag import load_domain, whole_images

# -----------------------------------------------------------------------------
# checkpoints to compare
ckpt = ''  # ckpt.pt files: a comma between rows, the teacher first; a + between seeds of one row
dataset = ''  # '': the first checkpoint's
split = 'test'  # 'val' while you choose settings: so test images still tell something at the end
# or two folders of images, of any model
real_dir = ''  # photos
fake_dir = ''  # translations, the same number if you can: FID depends on it
# or photos, and a checkpoint
input = ''  # a photo or a folder of them: the centre square is translated (train_uag.py: all of it)
attrs = ''  # to what, each by itself; Eyeglasses+Bald: both at once; '': each that the net knows
out = 'out/photos'  # folder for the translations
paste = True  # put the square back into the photo; False: the square alone, of the net's size
# output
out_dir = 'out/eval'  # results of an earlier run there are replaced
n_rows = 4  # rows of the figures: the first attributes; more rows show more, then other faces
# classifier
clf_dir = 'out/clf'  # one file per data set, size and settings
clf_arch = ''  # 'resnet50' from ImageNet weights, 'resnet18' from scratch; '': that for drawn data
clf_epochs = 8  # enough for drawn faces; real ones want 10 or more from scratch, 3 to 5 fine-tuning
# FID and KID
inception = ''  # Inception's weights; '': torch hub's cache, else downloaded; 'none': no FID
# system
batch_size = 100  # images at a time; only memory and speed depend on it
device = ''  # 'cpu', 'cuda', 'cuda:1'; '': the GPU if there is one
seed = 0  # of the classifier and of KID's subsets; the rest is deterministic
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

FID_URL = ('https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/'
           'pt_inception-2015-12-05-6726825d.pth')
FID_NOTE = 'below 2,048 images go by KID, not by FID'
# The kinds of maps that are measured of a StarGAN
CAMS = ('gradcam', 'hirescam')


# -----------------------------------------------------------------------------
# 1. measures
def accuracy(calls, column):
    """The share of images that have the attribute in `column`, by the classifier's calls (N, c)."""
    return calls[:, column].mean().item()


def frechet_distance(real, fake):
    """|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)) of features (N, d) and (M, d), their means and
    covariances, in float64 -> float >= 0; NaN of a single image. C1 C2 has the eigenvalues of
    C1^(1/2) C2 C1^(1/2), which is symmetric.
    """
    if min(len(real), len(fake)) < 2:
        return math.nan
    cov1 = real.T.cov()
    cov2 = fake.T.cov()
    values, vectors = torch.linalg.eigh(cov1)
    root = (vectors * values.clamp_min(0).sqrt()) @ vectors.T
    root_trace = torch.linalg.eigvalsh(root @ cov2 @ root).clamp_min(0).sqrt().sum()
    distance = ((real.mean(0) - fake.mean(0)) ** 2).sum() + cov1.trace() + cov2.trace() - 2 * root_trace
    return max(distance.item(), 0.0)


def kid(real, fake, seed):
    """Kernel Inception distance (Binkowski et al. 2018) of features (N, d) and (M, d).

    Unbiased MMD^2 with k(x, y) = (x.y / d + 1)^3 -> mean and standard deviation over 100 subsets
    of n = min(1000, N, M). With n = N = M there is one, the whole, and the deviation is NaN.
    """
    def kernel(x, y):
        return (x @ y.T / x.shape[1] + 1) ** 3

    n = min(1000, len(real), len(fake))
    if n < 2:
        return math.nan, math.nan
    generator = torch.Generator().manual_seed(seed)
    n_subsets = 1 if n == len(real) == len(fake) else 100
    values = []
    for _ in range(n_subsets):
        x = real[torch.randperm(len(real), generator=generator)[:n]]
        y = fake[torch.randperm(len(fake), generator=generator)[:n]]
        within = kernel(x, x).fill_diagonal_(0).sum() + kernel(y, y).fill_diagonal_(0).sum()
        values.append((within / (n * (n - 1)) - 2 * kernel(x, y).mean()).item())
    return float(np.mean(values)), float(np.std(values)) if n_subsets > 1 else math.nan


def mean_where(v, mask):
    """The mean of each row of v (B, n) where the mask (B, n) is 1; 0 where it nowhere is."""
    return (v * mask).sum(1) / mask.sum(1).clamp_min(1)


def change_measures(x, x_fake, region):
    """Images (B, 3, H, W) in [-1, 1], regions (B, H, W) bool -> {measure: (B,) float64}.

    leak, object: mean |x_fake - x| outside and inside the region of what was to change.
    """
    change = (x_fake - x).abs().mean(1).flatten(1).double()
    inside = region.flatten(1).double()
    return {'leak': mean_where(change, 1 - inside), 'object': mean_where(change, inside)}


def cam_measures(cam, A, region):
    """Maps A (B, h, w) of kind `cam`, regions (B, H, W) bool -> {measure: (B,) float64}.

    energy: the map's share inside over the region's share of the image; 1 if it knows nothing.
    point: 1 where its maximum lies inside. NaN where map or region are zero everywhere.
    """
    A = F.interpolate(A[:, None].double(), region.shape[1:], mode='bilinear').flatten(1)
    inside = region.flatten(1).double()
    area = inside.mean(1)
    # NaN here is NaN in all that is made of it.
    inside[(A.amax(1) <= 0) | (area == 0)] = math.nan
    energy = (A * inside).sum(1) / A.sum(1) / area
    return {f'{cam} energy': energy, f'{cam} point': inside.gather(1, A.argmax(1, keepdim=True))[:, 0]}


def agreement(A, A_teacher):
    """The cosine between maps (B, h, w) -> (B,) float64; 0 where one of them is zero everywhere."""
    return F.cosine_similarity(A.flatten(1).double(), A_teacher.flatten(1).double(), eps=1e-30)


def mask_measures(a, region, tau):
    """Maps a (B, H, W) in [0, 1] of an attention net, regions -> {measure: (B,) float64}.

    IoU: of the region with [a >= tau], which is what D sees. A: means of the map.
    """
    a = a.flatten(1).double()
    inside = region.flatten(1).double()
    on = (a >= tau).double()
    iou = (on * inside).sum(1) / (on + inside > 0).sum(1).clamp_min(1)
    return {'IoU': iou, 'A inside': mean_where(a, inside), 'A outside': mean_where(a, 1 - inside)}


@torch.no_grad()
def cost(net, x, y, name):
    """Parameters, multiply-adds and median time of one translation; images/s of 64 at a time."""
    # Imported here, as it may warn of a CUDA toolkit without a GPU.
    from torch.utils.benchmark import Timer
    with FlopCounterMode(display=False) as counter:
        net.translate(x[:1], y[:1], name)
    seconds = []
    for n in (1, 64):
        i = torch.arange(n) % len(x)
        names = dict(net=net, x=x[i], y=y[i], name=name)
        timer = Timer('net.translate(x, y, name)', globals=names, num_threads=torch.get_num_threads())
        seconds.append(timer.blocked_autorange(min_run_time=0.5).median)
    n_params = sum(p.numel() for p in net.parts.parameters())
    macs = counter.get_total_flops() // 2
    return dict(params=n_params, macs=macs, latency_ms=1000 * seconds[0], images_per_s=64 / seconds[1])


# -----------------------------------------------------------------------------
# 2. the judge
class Judge:
    """A classifier of the data's attributes and, for FID, an Inception, or None."""

    def __init__(self, classifier, multi_label, inception_net):
        # The last layer of a ResNet classifies the features that all before it make.
        *trunk, self.head = classifier.children()
        self.trunk = torch.nn.Sequential(*trunk)
        self.multi_label = multi_label
        self.inception_net = inception_net

    @torch.no_grad()
    def look(self, x):
        """Images (B, 3, S, S) in [-1, 1] -> a dict of what there is to say of each of them.

        calls: (B, c) in {0, 1}, is the logit positive, or of exclusive classes the largest?
        fd_clf, fid: features (B, d) of classifier and Inception, by the name of their distance.
        """
        features = self.trunk(x).flatten(1)
        logits = self.head(features)
        calls = logits > 0 if self.multi_label else logits == logits.amax(1, keepdim=True)
        seen = {'calls': calls.float().cpu(), 'fd_clf': features.double().cpu()}
        if self.inception_net:
            seen['fid'] = inception_features(self.inception_net, to_uint8(x))
        return seen


def get_classifier(arch, train, net):
    """A ResNet from what `net` sees to logits (B, c), frozen: clf_dir's, or trained and put there.

    -> it, and its kind, which is another than `arch` where that has no weights to start from.
    """
    settings = [train.meta, arch, net.size, clf_epochs, seed, train.y.sum(0).tolist()]
    digest = hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:10]
    path = f"{clf_dir}/{train.meta['dataset']}_{net.size}px_{arch}_{digest}.pt"
    there = os.path.exists(path)
    torch.manual_seed(seed)
    clf = torchvision.models.resnet18(num_classes=len(train.names))
    if arch == 'resnet50':
        try:
            clf = torchvision.models.resnet50(weights=None if there else 'IMAGENET1K_V2')
        except Exception as error:
            print(f'warning: no ImageNet weights, so a ResNet-18 from scratch: {one_line(error)}')
            return get_classifier('resnet18', train, net)
        clf.fc = torch.nn.Linear(clf.fc.in_features, len(train.names))
    clf.to(train.device)
    if there:
        with or_exit(f'{path}: the classifier kept there is damaged, delete it'):
            clf.load_state_dict(torch.load(path, map_location='cpu', weights_only=True))
    else:
        make_folder(clf_dir)
        train_classifier(clf, 2e-4 if arch == 'resnet50' else 2e-3, train, net)
        write_file(path, lambda file: torch.save(clf.state_dict(), file))
    return clf.eval().requires_grad_(False), arch


def train_classifier(clf, lr, train, net):
    """clf_epochs times all training images, half of them flipped."""
    size = min(64, len(train.x))
    n_batches = len(train.x) // size
    if size < 2:
        sys.exit(f'{train.folder}: one training image is too few for a classifier')
    opt = torch.optim.AdamW(clf.parameters(), lr, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(opt, lr, total_steps=clf_epochs * n_batches)
    for epoch in range(clf_epochs):
        for rows in torch.randperm(len(train.x))[:n_batches * size].split(size):
            x = net.to_x(train.x[rows].to(train.device))
            y = train.y[rows].to(train.device)
            flip = (torch.rand(size, 1, 1, 1) < 0.5).to(train.device)
            logits = clf(torch.where(flip, x.flip(3), x))
            # Not a training script's cls_loss: an experiment with that must not change the judge.
            if train.multi_label:
                loss = F.binary_cross_entropy_with_logits(logits, y, reduction='sum') / size
            else:
                loss = F.cross_entropy(logits, y)
            opt.zero_grad()
            loss.backward()
            opt.step()
            schedule.step()
        print(f'classifier: epoch {epoch + 1} of {clf_epochs}, loss {loss.item():.3g}', flush=True)


def load_inception(path, device):
    """The Inception of the FID papers (2015's TensorFlow graph), with the weights of this file.

    path '': from torch hub's cache, else downloaded; None, saying so, where that fails.
    """
    if not path:
        # The hash that is checked is in the URL; what goes wrong has a dozen kinds of exceptions.
        try:
            weights = torch.hub.load_state_dict_from_url(
                FID_URL, map_location='cpu', progress=False, check_hash=True, weights_only=True)
        except Exception as error:
            print(f'warning: no FID, no weights: {one_line(error)}; --inception= takes {FID_URL}')
            return None
    with or_exit(f"--inception={path}: not FID's Inception, which is {FID_URL}"):
        if path:
            weights = torch.load(path, map_location='cpu', weights_only=True)
        # On the meta device no time is spent on weights that are replaced.
        with torch.device('meta'):
            net = torchvision.models.inception_v3(num_classes=1008, aux_logits=False, init_weights=False)
        net.load_state_dict(weights, assign=True)
    # Unlike torchvision's, its average pools leave the padding out, and the last is a maximum.
    for name, block in net.named_children():
        if name == 'Mixed_7c':
            replace_pool(block, torch.nn.MaxPool2d(3, 1, 1))
        elif hasattr(block, 'branch_pool'):
            replace_pool(block, torch.nn.AvgPool2d(3, 1, 1, count_include_pad=False))
    net.fc = torch.nn.Identity()
    return net.to(device).float().eval().requires_grad_(False)


def replace_pool(block, pool):
    """Hands branch_pool of an Inception block `pool` of the block's input, not torchvision's."""
    pooled = []
    block.register_forward_pre_hook(lambda module, args: pooled.append(pool(args[0])))
    block.branch_pool.register_forward_pre_hook(lambda module, args: pooled.pop())


@torch.no_grad()
def inception_features(net, images):
    """uint8 images, each (3, H, W), of any sizes -> features (B, 2048) float64 on the CPU.

    They are scaled to 299 px as by pytorch-fid, bilinearly, without antialiasing: FIDs compare.
    """
    device = next(net.parameters()).device
    scaled = []
    for image in images:
        image = image[None].to(device).float() / 255
        scaled.append(F.interpolate(image, (299, 299), mode='bilinear'))
    return net(2 * torch.cat(scaled) - 1).double().cpu()


# -----------------------------------------------------------------------------
# 3. nets under test
class StarGAN:
    """A checkpoint of train_teacher.py or train_student.py. Labels y are (B, len(attrs)).

    From outside it looks like UAG, below. Of the tables it has `table_rows`: {what follows the
    checkpoint's name: the targets of that row}. `parts` are the nets that make a translation.
    """

    def __init__(self, ckpt, script, device):
        self.attrs = ckpt['attrs']
        self.table_rows = {'': self.attrs}
        self.size = ckpt['d_args']['image_size']
        self.exclusive = ckpt['exclusive']
        if ckpt['g_args']['c_dim'] != len(self.attrs):
            raise ValueError(f'its nets are not of {len(self.attrs)} attributes')
        # Groups of columns that its labels do not have raise an error now.
        set_attr(torch.zeros(1, len(self.attrs)), 0, [[0, *group] for group in self.exclusive])
        self.G = load_net(script.Generator, ckpt['g_args'], ckpt['G']).to(device)
        self.D = load_net(script.Discriminator, ckpt['d_args'], ckpt['D']).to(device)
        self.parts = torch.nn.ModuleList([self.G])
        self.hooks = {cam: GradCAM(self.G.res[-1], cam) for cam in CAMS}
        # The kind of map that it was trained by, if any
        config = ckpt['config']
        self.cam = config['cam'] if config.get('lambda_att') else None
        # A map is of a score by the teacher's D: that of the class or, for "pseudo"-attention, of
        # the class that stands in for it.
        self.teacher = self
        pseudo = config.get('pseudo') or ','.join(self.attrs)
        self.scored = dict(zip(self.attrs, pseudo.split(',')))

    def to_x(self, x):
        return to_float(x, self.size)

    def translate(self, x, y, name):
        return self.G(x, set_attr(y, self.attrs.index(name), self.exclusive))

    def maps(self, x, y, name, hooks=None):
        """-> translation, {kind of map: (B, h, w)}; none if the teacher does not know the class."""
        x_fake = self.translate(x, y, name)
        maps = {}
        if self.scored[name] in self.teacher.attrs:
            column = self.teacher.attrs.index(self.scored[name])
            score = self.teacher.D(x_fake)[1][:, column]
            for cam, hook in (hooks or self.hooks).items():
                maps[cam] = hook(score, retain_graph=True)
        return x_fake.detach(), maps


class UAG:
    """A checkpoint of train_uag.py; to translate to one of its two domains, start in the other."""

    def __init__(self, ckpt, script, device):
        check_fields(ckpt, domains=list, image_size=int, switched=bool)
        check_fields(ckpt['config'], tau=float, hard=bool)
        s, t = ckpt['domains']
        self.attrs = [s, t]
        self.table_rows = {f' -> {t}': [t], f' -> {s}': [s]}
        self.size = ckpt['image_size']
        self.nets = {}
        for name, A_name, G_name in ((t, 'A_s', 'G_st'), (s, 'A_t', 'G_ts')):
            A = None
            if ckpt['a_args']:
                A = load_net(script.Attention, ckpt['a_args'], ckpt[A_name]).to(device)
            self.nets[name] = A, load_net(script.Generator, ckpt['g_args'], ckpt[G_name]).to(device)
        self.parts = torch.nn.ModuleList([net for net in self.nets[t] if net])
        self.tau = ckpt['config']['tau']
        self.tau_G = self.tau if ckpt['switched'] and ckpt['config']['hard'] else None
        # That of the script that trained it, which may be an edited copy of train_uag.py
        self.compose = script.translate
        self.cam = None
        self.teacher = self
        self.scored = {s: s, t: t}

    def to_x(self, x):
        return whole_images(x, self.size)

    def translate(self, x, y, name):
        return self.maps(x, y, name)[0]

    def maps(self, x, y, name, hooks=None):
        """-> translation, {'mask': map (B, H, W) in [0, 1]}; none without attention nets."""
        A, G = self.nets[name]
        x_fake, a, _ = self.compose(x, A, G, self.tau_G)
        return x_fake, {'mask': a[:, 0]} if A else {}


def load_checkpoint(path, device):
    """A ckpt.pt -> net; its `about` is what the tables want to know of it."""
    with or_exit(f'--ckpt={path}: wants a ckpt.pt that a train_*.py of this folder has written'):
        ckpt, script = load_ckpt(path)
        check_fields(ckpt, iter=int)
        check_fields(ckpt['config'], dataset=str)
        net = {'stargan': StarGAN, 'uag': UAG}[ckpt['kind']](ckpt, script, device)
    # It is named by its folder, and by its file if that is not ckpt.pt.
    folder, file = os.path.abspath(path).split(os.sep)[-2:]
    label = folder if file == 'ckpt.pt' else f"{folder}-{file.removesuffix('.pt')}"
    net.about = {'label': label, 'path': path}
    net.about |= {key: ckpt[key] for key in ('script', 'iter', 'config')}
    return net


def load_checkpoints(text, device):
    """ckpt.pt files, as in --ckpt= -> nets. Seeds have one `row`, the name of their row in tables."""
    nets = []
    rows = []
    for part in text.strip(',').split(','):
        paths = [part] if os.path.exists(part) else part.split('+')
        seeds = [load_checkpoint(os.path.expanduser(path), device) for path in paths]
        labels = [net.about['label'] for net in seeds]
        rows.append(labels[0])
        if len(seeds) > 1:
            # S-s0 and S-s1 become S (2 seeds).
            stem = re.sub(r'[-_. ]+(s|seed)?\d*$', '', os.path.commonprefix(labels))
            rows[-1] = f'{stem or labels[0]} ({len(seeds)} seeds)'
        nets += seeds
        for net in seeds:
            net.row = rows[-1]
            if type(net) is not type(nets[0]) or net.attrs != seeds[0].attrs:
                path = net.about['path']
                sys.exit(f'--ckpt={text}: {path} is of another kind, or of other attributes')
    for names in (rows, [net.about['label'] for net in nets]):
        if len(set(names)) < len(names):
            sys.exit(f"--ckpt={text}: two of one name, {', '.join(names)}: rename folders")
    return nets


def share_teacher(nets):
    """Has the first net's D score the translations of all students, so that their maps compare.

    What stands in for a class with one of them does so with those that have no other.
    """
    known = nets[0].attrs
    students = [net for net in nets if net.about['config'].get('teacher')]
    stand_ins = {}
    for net in students:
        stand_ins |= {c: c_pse for c, c_pse in net.scored.items() if c_pse in known}
    for net in students:
        net.teacher = nets[0]
        for c, c_pse in net.scored.items():
            if c_pse not in known:
                net.scored[c] = stand_ins.get(c, c)


# -----------------------------------------------------------------------------
# 4. the test set
class Images:
    """A part of a data set: images, labels of all its attributes, and their regions if it has them.

    Two unpaired domains are here two exclusive attributes; the region of both is the object's.
    """

    def __init__(self, folder, meta, part, device):
        self.folder = folder
        self.meta = meta
        self.device = device
        self.unpaired = 'domains' in meta
        self.multi_label = meta['label'] == 'multi'
        # x is (N, S, S, 3) uint8, y (N, c) in {0, 1}, regions (N, c, S, S) in {0, 1}.
        if self.unpaired:
            self.names = meta['domains']
            a = load_domain(folder, part + 'A')
            b = load_domain(folder, part + 'B')
            self.x = torch.cat([a, b])
            self.y = torch.eye(2)[[0] * len(a) + [1] * len(b)]
        else:
            self.names = meta['attrs']
            self.x, self.y = load_split(folder, meta, part, self.names)
        self.regions = None
        masks = sorted(Path(folder).glob(f'{part}*_m.npy'))
        if masks:
            with or_exit(f'{folder}: damaged, prepare the data again'):
                masks = torch.cat([torch.from_numpy(np.load(path, mmap_mode='c')) for path in masks])
                masks = masks.reshape(len(self.x), -1, *self.x.shape[1:3])
                self.regions = masks.expand(-1, len(self.names), -1, -1)
        # Images of none of the exclusive classes that the nets know are left out, as in training.
        self.known = torch.ones(len(self.x), dtype=torch.bool)

    def having(self, name):
        """(N,) bool: the images with this attribute."""
        return self.y[:, self.names.index(name)] == 1

    def without(self, name):
        """Rows of the images without it, to be translated."""
        return (self.known & ~self.having(name)).nonzero().flatten()

    def batch(self, net, rows):
        """Images and labels of these rows as `net` takes them."""
        columns = [self.names.index(name) for name in net.attrs]
        x = net.to_x(self.x[rows].to(self.device))
        return x, self.y[rows][:, columns].to(self.device)

    def region(self, net, rows, name):
        """Where the attribute is, (B, S, S) bool: in pixels of which it fills more than half."""
        region = self.regions[rows, self.names.index(name)]
        return net.to_x(255 * region[..., None].to(self.device))[:, 0] > 0


def load_data(nets, device):
    """-> Images to train the classifier on, and to test. Exits if a net does not go with them."""
    folder, meta = find_data(dataset or nets[0].about['config']['dataset'])
    unpaired = 'domains' in meta
    with or_exit(f'{folder}/meta.json: damaged, prepare the data again'):
        check_fields(meta, dataset=str, **{'domains' if unpaired else 'attrs': list})
    if unpaired and split == 'val':
        sys.exit(f'--split=val: {folder} has unpaired images, for training and testing only')
    train = Images(folder, meta, 'train', device)
    test = Images(folder, meta, split, device)
    attrs_of_nets = []
    for net in nets:
        attrs_of_nets += net.attrs
        fits = net.size == nets[0].size and (unpaired or meta['image_size'] % net.size == 0)
        if not fits or isinstance(net, UAG) != unpaired or not set(net.attrs) <= set(test.names):
            sys.exit(f"{net.about['path']}: {','.join(net.attrs)}, {net.size} px, do not go with "
                     f"{nets[0].about['path']} or with {folder}")
    if not test.multi_label:
        test.known = test.y[:, [test.names.index(name) for name in attrs_of_nets]].sum(1) > 0
    return train, test


def batches(items, what):
    """Yields batch_size items at a time; says where it is, at most every 5 seconds."""
    start = last = time.time()
    for k in range(0, len(items), batch_size):
        yield items[k:k + batch_size]
        done = min(k + batch_size, len(items))
        if time.time() - last > 5:
            last = time.time()
            eta = (last - start) * (len(items) / done - 1)
            print(f'{what}: {done} of {len(items)} | eta {eta:.0f} s', flush=True)


def stack(parts):
    """[{key: (B, ...)}, ...] -> {key: (N, ...)}"""
    keys = parts[0] if parts else []
    return {key: torch.cat([part[key] for part in parts]) for key in keys}


# -----------------------------------------------------------------------------
# 5. evaluation
def evaluate_target(net, name, test, judge):
    """Translates the test images without `name` to it.

    -> what the judge saw in the translations, and {measure: mean over them}.
    """
    seen = []
    found = []
    for rows in batches(test.without(name), f"{net.about['label']} -> {name}"):
        x, y = test.batch(net, rows)
        x_fake, maps = net.maps(x, y, name)
        # What is measured is what a PNG would keep.
        x_fake = to_uint8(x_fake) / 127.5 - 1
        seen.append(judge.look(x_fake))
        measures = {}
        if maps and net.teacher is not net:
            # The teacher's maps of the same images, for the class that the student's are compared with.
            x_teacher, y_teacher = test.batch(net.teacher, rows)
            _, teacher_maps = net.teacher.maps(x_teacher, y_teacher, net.scored[name])
            for cam in maps:
                measures[f'{cam} agreement'] = agreement(maps[cam], teacher_maps[cam])
        if test.regions is not None:
            region = test.region(net, rows, name)
            measures |= change_measures(x, x_fake, region)
            for kind, A in maps.items():
                if kind == 'mask':
                    measures |= mask_measures(A, region, net.tau)
                else:
                    measures |= cam_measures(kind, A, region)
        found.append(measures)
    seen = stack(seen)
    means = {'accuracy': accuracy(seen['calls'], test.names.index(name))}
    for key, values in stack(found).items():
        means[key] = values.nanmean().item()
    return seen, means


def evaluate_net(net, targets, test, judge, real):
    """The figures of a row of the tables, means over its targets; 'measures' has those of each.

    real: what the judge saw in the real test images.
    """
    fake = []
    measures = {}
    values = {}
    for name in targets:
        seen, measures[name] = evaluate_target(net, name, test, judge)
        fake.append(seen)
        for key, value in measures[name].items():
            # The classifier cannot be checked on an attribute that no real image has.
            if key != 'accuracy' or test.having(name).any():
                values.setdefault(key, []).append(value)
    figures = {'measures': measures, 'accuracy': math.nan}
    figures |= {key: mean_known(of_targets) for key, of_targets in values.items()}
    figures |= {f'-> {name}': measures[name]['accuracy'] for name in targets}

    # The translations should be like the real images; in one of two domains, like those in it.
    like = test.having(targets[0]) if test.unpaired else test.known
    fake = stack(fake)
    figures['n_fake'] = len(fake.get('calls', []))
    for key in ('fd_clf', 'fid'):
        if key in real:
            figures[key] = frechet_distance(real[key][like], fake.get(key, []))
    if 'fid' in real:
        figures['kid'], kid_std = kid(real['fid'][like], fake.get('fid', []), seed)
        if not math.isnan(kid_std):
            figures['kid_std'] = kid_std
    x, y = test.batch(net, torch.arange(len(test.x))[:64])
    return figures | cost(net, x, y, (targets or net.attrs)[-1])


def evaluate_real(net, targets, test, judge):
    """-> what the judge sees in the real test images; of those with a target, the share it finds."""
    seen = []
    for rows in batches(torch.arange(len(test.x)), 'real images'):
        x, _ = test.batch(net, rows)
        seen.append(judge.look(x))
    real = stack(seen)
    found = {}
    for name in targets:
        found[f'-> {name}'] = accuracy(real['calls'][test.having(name)], test.names.index(name))
    found['accuracy'] = mean_known(found.values())
    return real, found


def mean_known(values):
    """The mean of those that are not NaN; NaN, without a warning, if all are."""
    known = [v for v in values if not math.isnan(v)]
    return float(np.mean(known)) if known else math.nan


def reasons(nets, rows, test):
    """What the tables cannot show, and why -> lines."""
    lines = []
    for name in test.names:
        if not any(name in net.attrs for net in nets):
            continue
        if not test.having(name).any():
            lines.append(f'no {split} image has {name}: no mean of accuracy has it')
        if len(test.without(name)) == 0:
            lines.append(f'every {split} image has {name}: none can be translated to it')
    for row in rows:
        if math.isnan(row['fd_clf']):
            lines.append(f"{row['name']}: distances to real images want two images or more")
    return lines


# -----------------------------------------------------------------------------
# 6. tables, figures, curves, page
# How the tables show a figure: header, factor, decimals. Those of all others are its name, 1 and 2.
SHOWN_AS = {
    'accuracy': ('accuracy %', 100, 1),
    'fid': ('FID', 1, 2),
    'kid': ('KID x100', 100, 3),
    'kid_std': ('KID std', 100, 3),
    'fd_clf': ('FD-clf', 1, 2),
    'gradcam point': ('gradcam point %', 100, 1),
    'hirescam point': ('hirescam point %', 100, 1),
    'IoU': ('IoU', 1, 3),
    'A inside': ('A inside', 1, 3),
    'A outside': ('A outside', 1, 3),
    'leak': ('leak', 1, 4),
    'object': ('object', 1, 3),
    'params': ('parameters', 1, 0),
    'macs': ('MMACs', 1e-6, 1),
    'latency_ms': ('ms, batch 1', 1, 1),
    'images_per_s': ('images/s, batch 64', 1, 0),
}


def table(corner, keys, groups):
    """{name: figures of its seeds} -> rows of text, header first: mean ± deviation over the seeds.

    Figures that no row has are left out, those that could not be computed are '-'.
    """
    rows = [[corner]] + [[name] for name in groups]
    for key in keys:
        if not any(key in figures for seeds in groups.values() for figures in seeds):
            continue
        header, factor, decimals = SHOWN_AS.get(key, (key, 1, 2))
        if key.startswith('-> '):
            factor, decimals = SHOWN_AS['accuracy'][1:]
        rows[0].append(header)
        for row, seeds in zip(rows[1:], groups.values()):
            values = factor * np.array([figures.get(key, math.nan) for figures in seeds])
            text = f'{values.mean():,.{decimals}f}'
            if len(values) > 1:
                text += f' ± {values.std(ddof=1):,.{decimals}f}'
            row.append('-' if np.isnan(values).any() else text)
    return rows


def all_tables(groups, on_real, cam, unpaired):
    """-> [(heading, what to see in it, rows of text)]; on_real: how far to trust the classifier."""
    with_real = groups | {'real images': [on_real]}
    summary = ['accuracy', f'{cam} agreement', f'{cam} energy', 'IoU', 'fid', 'kid', 'kid_std', 'fd_clf']
    maps = [f'{cam} {measure}' for cam in CAMS for measure in ('agreement', 'energy', 'point')]
    maps += ['A inside', 'A outside', 'leak', 'object']
    # Of two domains each has its own rows anyway.
    targets = [] if unpaired else [key for key in on_real if key.startswith('-> ')]
    tables = [
        ('Does it work?',
         'Accuracy: the share of translations that a classifier takes for what they should be; of real '
         "images, the share that it recognises. Agreement: how like the first checkpoint's maps those of "
         'a student are; 1 is the same. Energy: how much of a map lies where the attribute is; 1 is '
         'chance. FID, KID, FD-clf: how far the translations are from real images; lower is better.',
         table('summary', summary, with_real)),
        ('Which attributes?',
         'Accuracy of each, in %.',
         table('accuracy, %', targets, with_real)),
        ('Where do they look, and what do they change?',
         'Point: how often the highest value of a map lies where the attribute is. A, IoU: the mean of an '
         "attention net's map inside and outside the object, and the overlap of mask and object. Leak, "
         'object: the mean change of pixels outside, and inside.',
         table('maps', maps, groups)),
        ('What does a translation cost?',
         'MMACs: millions of multiplications. The times are those of this machine.',
         table('cost', ['params', 'macs', 'latency_ms', 'images_per_s'], groups)),
    ]
    return [table for table in tables if len(table[-1][0]) > 1]


def text_table(rows):
    """Rows of text -> lines, of aligned columns."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = []
    for row in rows:
        texts = [text.rjust(width) for text, width in zip(row, widths)]
        texts[0] = row[0].ljust(widths[0])
        lines.append('  '.join(texts))
    return '\n'.join(lines)


def mean_of(seeds, key):
    return float(np.mean([figures.get(key, math.nan) for figures in seeds]))


def conclusions(groups):
    """Of a student with the attention loss and one without, if they are there: two sentences."""
    students = {}
    for name, seeds in groups.items():
        if seeds[0]['config'].get('teacher'):
            students.setdefault(bool(seeds[0]['config'].get('lambda_att')), (name, seeds))
    if len(students) < 2:
        return []
    name, seeds = students[True]
    name_0, seeds_0 = students[False]
    cam = seeds[0]['config']['cam']
    agree = mean_of(seeds, f'{cam} agreement')
    agree_0 = mean_of(seeds_0, f'{cam} agreement')
    right = 100 * mean_of(seeds, 'accuracy')
    right_0 = 100 * mean_of(seeds_0, 'accuracy')
    if seeds[0]['targets'] != seeds_0[0]['targets'] or math.isnan(agree + agree_0 + right + right_0):
        return []
    n = min(len(seeds), len(seeds_0))
    proof = 'one seed proves neither' if n == 1 else f'{n} seeds each, mind their deviations'
    return [f'{name} was trained to look where the teacher looks: its {cam} maps agree with the '
            f"teacher's by {agree:.2f}, those of {name_0}, without that loss, by {agree_0:.2f}.",
            f'Its translations are right in {right:.1f} %, those without the loss in {right_0:.1f} %, '
            f'a difference of {right - right_0:+.1f} points; {proof}.']


def contact_sheet(header, rows, labels):
    """Rows of images (3, S, S) in [-1, 1], or None, a header over each column -> PIL image."""
    columns = [c for c in range(len(header)) if any(row[c] is not None for row in rows)]
    size = rows[0][0].shape[1]
    side = size * max(1, round(128 / size))
    font = ImageFont.load_default(14)
    left = 8 + int(max(font.getlength(label) for label in labels))
    top = 22
    sheet = Image.new('RGB', (left + len(columns) * (side + 4), top + len(rows) * (side + 4)), 'white')
    draw = ImageDraw.Draw(sheet)
    for r, label in enumerate(labels):
        draw.text((2, top + r * (side + 4) + side // 2 - 8), label, 'black', font)
    for k, c in enumerate(columns):
        x = left + k * (side + 4)
        text = header[c]
        if font.getlength(text) > side:
            text = text[:side // 9] + '…'
        draw.text((x, 2), text, 'black', font)
        for r, row in enumerate(rows):
            if row[c] is not None:
                picture = to_image(row[c]).resize((side, side), Image.NEAREST)
                sheet.paste(picture, (x, top + r * (side + 4)))
    return sheet


def choose_images(names, test, n):
    """-> n times a target and the row of a test image for it, in the order of `names`.

    The images are those that have the fewest others of `names`, so that no goatee goes blond.
    """
    n_others = test.y[:, [test.names.index(name) for name in names]].sum(1)
    chosen = {}
    for k in range(n):
        rows = test.without(names[k % len(names)])
        # Each image is taken once.
        rows = [row for row in rows[n_others[rows].argsort(stable=True)].tolist() if row not in chosen]
        if rows:
            chosen[rows[0]] = names[k % len(names)]
    return sorted([(name, row) for row, name in chosen.items()], key=lambda pair: names.index(pair[0]))


def shown_cam(net, nets):
    """The kind of map that `net` was trained by or, without attention loss, the first other net."""
    for other in [net, *nets]:
        if other.cam in CAMS:
            return other.cam
    return CAMS[0]


def draw_maps(nets, test):
    """Input, and of each net translation and map: n_rows test images."""
    names = []
    header = ['input']
    for net in nets:
        header += [net.about['label'], 'its map']
        for name in net.attrs:
            # An attribute of "pseudo"-attention comes behind the one that stands in for it.
            names += [net.scored[name], name]
    names = [name for name in dict.fromkeys(names) if len(test.without(name))]
    pairs = choose_images(names, test, n_rows)
    rows = []
    for name, row in pairs:
        rows.append([test.batch(nets[0], [row])[0][0]])
        for net in nets:
            pictures = [None, None]
            if name in net.attrs:
                x, y = test.batch(net, [row])
                x_fake, maps = net.maps(x, y, name)
                pictures[0] = x_fake[0]
                if 'mask' in maps:
                    pictures[1] = (2 * maps['mask'] - 1).expand(3, -1, -1)
                elif maps:
                    pictures[1] = overlay(x, maps[shown_cam(net, nets)])[0]
            rows[-1] += pictures
    return contact_sheet(header, rows, [f'-> {name}' for name, _ in pairs])


def draw_stages(nets, test):
    """Input, the map of every stage of the first StarGAN's G, output: an image for each target."""
    net = nets[0]
    names = [name for name in net.attrs if len(test.without(name))]
    if test.unpaired or not names:
        return None
    stages = {}
    # A stage of down and up is three modules: convolution, norm, ReLU.
    for part, step, name in (('down', 3, 'encoder'), ('res', 1, 'residual block'), ('up', 3, 'decoder')):
        for i, module in enumerate(getattr(net.G, part)[step - 1::step], 1):
            stages[f'{name} {i}'] = GradCAM(module, shown_cam(net, nets))
    pairs = choose_images(names, test, min(n_rows, len(names)))
    rows = []
    for name, row in pairs:
        x, y = test.batch(net, [row])
        x_fake, maps = net.maps(x, y, name, stages)
        rows.append([x[0], *[overlay(x, A)[0] for A in maps.values()], x_fake[0]])
    return contact_sheet(['input', *stages, 'output'], rows, [f'-> {name}' for name, _ in pairs])


def read_losses(path):
    """The log.txt of a training script -> {loss: {iteration: value}}."""
    losses = {}
    for line in path.read_text(encoding='utf-8', errors='replace').splitlines():
        match = re.match(r'iter +(\d+)/\d+ +\|([^|]*)\|', line)
        if match:
            for name, value in re.findall(r'(\w+) +(-?[\d.]+(?:e[-+]?\d+)?)', match[2]):
                losses.setdefault(name, {})[int(match[1])] = float(value)
    return losses


# Lines of these colours are seen on white and on black.
COLOURS = ('#4878cf', '#e07b39', '#3f9b57', '#d1495b', '#8c61c4', '#b8860b', '#2a9fb0', '#7f7f7f')


def draw_curves(losses):
    """Losses as of read_losses -> SVG, a line each. The scale is linear around 0, logarithmic beyond."""
    def scale(value):
        return math.asinh(value / 0.05)

    values = [scale(value) for curve in losses.values() for value in curve.values()]
    low = min(0, *values) - 0.3
    height = max(0, *values) + 0.3 - low
    last = max(max(curve) for curve in losses.values())
    svg = ['<svg viewBox="0 0 400 260" role="img" aria-label="losses over iterations">'
           f'<text x="40" y="208">0</text><text x="390" y="208" text-anchor="end">{last:,}</text>']
    for tick in (-1000, -100, -10, -1, -0.1, 0, 0.1, 1, 10, 100, 1000):
        y = 190 - 180 * (scale(tick) - low) / height
        if 10 < y < 190:
            svg.append(f'<path d="M40 {y:.1f}h350" stroke="#8886"/>'
                       f'<text x="35" y="{y:.1f}" dy="4" text-anchor="end">{tick:g}</text>')
    for k, (name, curve) in enumerate(losses.items()):
        style = f'fill="none" stroke-width="1.5" stroke="{COLOURS[k % len(COLOURS)]}"'
        points = []
        for it, value in sorted(curve.items()):
            points.append(f'{40 + 350 * it / last:.1f},{190 - 180 * (scale(value) - low) / height:.1f}')
        # The line, and its name below the axis
        x = 10 + 98 * (k % 4)
        y = 230 + 20 * (k // 4)
        svg.append(f'<polyline points="{" ".join(points)}" {style}/><path d="M{x} {y}h20" {style}/>'
                   f'<text x="{x + 24}" y="{y}" dy="4">{html.escape(name)}</text>')
    return '\n'.join([*svg, '</svg>'])


def learning_curves(nets):
    """The losses of the runs that wrote the checkpoints -> HTML: those of D, and the others."""
    figures = ['<div class="curves">']
    for net in nets:
        log = Path(net.about['path']).parent / 'log.txt'
        losses = read_losses(log) if log.exists() else {}
        for part, prefixes in (('discriminator', 'D_'), ('generator', ('G_', 'cyc_'))):
            shown = {name: curve for name, curve in losses.items() if name.startswith(prefixes)}
            caption = html.escape(f"{net.about['label']}, {part}")
            curves = draw_curves(shown) if shown else 'no log.txt beside the checkpoint'
            figures.append(f'<figure><figcaption>{caption}</figcaption>{curves}</figure>')
    return '\n'.join([*figures, '</div>'])


STYLE = """
:root { color-scheme: light dark }
body { font: 16px/1.45 system-ui, sans-serif; max-width: 70rem; margin: auto; padding: 1rem }
body { overflow-wrap: break-word }
.wide, pre { overflow-x: auto }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
td, th { text-align: right; padding: .2rem .5rem; border-bottom: 1px solid #8886; font-weight: normal }
td:first-child, th:first-child { text-align: left; padding-left: 0 }
img { max-width: 100% }
.curves { display: flex; flex-wrap: wrap; gap: 1rem }
figure { margin: 0; flex: 1 1 24rem; max-width: 33rem }
svg { width: 100%; font-size: 12px; fill: currentColor }
@media (max-width: 500px) { table { font-size: 13px } td, th { padding: .2rem .3rem } }
"""
CAPTIONS = {
    'maps.png':
        ('What do the translations look like?',
         'Each row is a test image without the attribute on the left; behind it, for each net, its '
         'translation and its map, light where it looks. Is the attribute there, and all else as it was? '
         'Do the students look where the teacher does?'),
    'stages.png':
        ('Where does a map come from?',
         'The map of every stage of the first generator: its encoder shrinks the image, residual blocks '
         'change it, the decoder enlarges it again. Students learn the map of the last residual block. '
         'Which stage is the first to find the attribute?'),
    'curves':
        ('How did training go?',
         'Each loss is the mean since the last line of log.txt. D_real and D_fake may mirror each other; '
         'where a generator learns, G_cls and G_rec fall, or cyc_s and cyc_t.'),
}


def html_table(rows):
    """Rows of text -> HTML, in which rows are columns: there are more figures than nets."""
    lines = []
    for column in zip(*rows):
        tag = 'td' if lines else 'th'
        cells = [f'<{tag}>{html.escape(text)}</{tag}>' for text in column]
        lines.append(f"<tr>{''.join(cells)}</tr>")
    return '\n'.join(['<div class="wide"><table>', *lines, '</table></div>'])


def report(title, answer, tables, notes, pictures, details):
    """One page with everything in it: no scripts, no network, dark where the reader's system is."""
    page = ['<!doctype html><html lang="en"><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f'<title>{html.escape(title)}</title><style>{STYLE}</style><h1>{html.escape(title)}</h1>',
            f'<p>{html.escape(answer)}</p>']
    parts = [(heading, about, html_table(rows)) for heading, about, rows in tables]
    parts += [(*CAPTIONS[name], picture) for name, picture in pictures.items()]
    for heading, about, content in parts:
        page.append(f'<h2>{html.escape(heading)}</h2><p>{html.escape(about)}</p>{content}')
    page.append('<h2>How was it measured?</h2>')
    page += [f'<p>{html.escape(note)}</p>' for note in notes]
    page.append(f'<details><summary>All figures</summary><pre>{html.escape(details)}</pre></details>')
    return '\n'.join([*page, '</html>', ''])


# -----------------------------------------------------------------------------
# 7. files, and the three modes
# What data/folders/prepare.py takes for photos, and pytorch-fid for images
ENDINGS = ('.jpg', '.jpeg', '.jfif', '.png', '.webp', '.bmp', '.gif', '.tif', '.tiff', '.ppm', '.pgm')
FID_ENDINGS = ('.bmp', '.jpg', '.jpeg', '.pgm', '.png', '.ppm', '.tif', '.tiff', '.webp')
# What systems and network drives put beside photos
SYSTEM_FOLDERS = (
    '__macosx', '@eadir', '@__thumb', '@recently-snapshot', '@recycle', '@tmp', '#recycle', '#snapshot',
    '$recycle.bin', 'lost+found', 'system volume information', '__pycache__')
# The kinds of photos that are read. Not all of Pillow's: EPS, for one, would start another program.
FORMATS = ('JPEG', 'PNG', 'WEBP', 'BMP', 'GIF', 'TIFF', 'PPM')


def read_photo(file):
    """The path, or the open file, of a photo -> PIL image in RGB with 8 bits, upright. Greys of 16 bits
    and floats in [0, 1] are scaled, what is transparent becomes white. Pillow's errors if damaged."""
    image = Image.open(file, formats=FORMATS)
    image.load()
    with contextlib.suppress(Exception):
        # A mangled EXIF block says nothing about the pixels.
        ImageOps.exif_transpose(image, in_place=True)
    if image.mode[0] in 'IF':
        scale = 255 if image.mode == 'F' else 1 / 257
        grey = np.asarray(image).astype(np.float64) * scale
        image = Image.fromarray(np.clip(np.rint(grey), 0, 255).astype(np.uint8))
    elif image.has_transparency_data:
        white = Image.new('RGBA', image.size, 'white')
        image = Image.alpha_composite(white, image.convert('RGBA'))
    return image.convert('RGB')


def is_hidden(name):
    """Is it hidden, or in a folder where systems and network drives keep thumbnails or deleted files?"""
    parts = name.lower().split('/')
    return any(part.startswith('.') or part in SYSTEM_FOLDERS for part in parts)


def list_files(path, endings):
    """-> the files below a folder with these endings, sorted, and the others; of a file itself."""
    if os.path.isfile(path):
        return [path], []
    images = []
    others = []
    visited = set()
    for folder, subfolders, names in os.walk(path, followlinks=True):
        subfolders[:] = [name for name in subfolders if not is_hidden(name)]
        real = os.path.realpath(folder)
        if real in visited:
            # A link leads to nothing new.
            subfolders.clear()
            names = []
        visited.add(real)
        for name in names:
            kind = images if name.lower().endswith(endings) else others
            if not is_hidden(name):
                kind.append(os.path.join(folder, name))
    if not images:
        sys.exit(f'{path}: no image there')
    return sorted(images), sorted(others)


def one_line(error):
    """What it says, without line breaks."""
    return f'{type(error).__name__}: ' + ' '.join(str(error).split())[:200]


def make_folder(path):
    """Makes it. Where nothing can be written this ends the script now, not after an hour."""
    with or_exit(f'{path}: cannot write there'):
        os.makedirs(path, exist_ok=True)
        with tempfile.TemporaryFile(dir=path) as file:
            file.write(b'anything')


def write_file(path, content):
    """Writes a text, or has content(file) write; the whole file or nothing. Makes its folder."""
    new = Path(f'{path}.tmp')
    with or_exit(f'{path}: cannot write it'):
        new.parent.mkdir(parents=True, exist_ok=True)
        try:
            with new.open('wb') as file:
                if isinstance(content, str):
                    file.write(content.encode('utf-8', errors='backslashreplace'))
                else:
                    content(file)
            new.replace(path)
        finally:
            new.unlink(missing_ok=True)


def to_uint8(x):
    """(B, 3, H, W) in [-1, 1] -> the pixels that a PNG would keep: uint8, the same shape."""
    return ((x + 1) * 127.5).round().clamp(0, 255).byte()


def to_image(x):
    """(3, H, W) in [-1, 1] -> PIL image."""
    return Image.fromarray(to_uint8(x).permute(1, 2, 0).cpu().numpy())


def pick_device():
    name = device or ('cuda' if torch.cuda.is_available() else 'cpu')
    try:
        return str(torch.zeros(1, device=name).device)
    except Exception as error:
        sys.exit(f'--device={name}: no such device here ({one_line(error)})')


def attempt(draw, *args):
    """What draw(*args) returns; None, saying why, if it fails: an edited net may lack a part."""
    try:
        return draw(*args)
    except Exception as error:
        print(f'warning: no {draw.__name__}: {one_line(error)}')


def compare_checkpoints():
    """Everything about --ckpt. Results are on disk before anything is printed or drawn."""
    start = time.time()
    where = pick_device()
    nets = load_checkpoints(ckpt, where)
    share_teacher(nets)
    train, test = load_data(nets, where)
    # A net, the name of its row, and its targets
    plan = []
    targets = []
    for net in nets:
        for suffix, names in net.table_rows.items():
            names = [name for name in names if len(test.without(name))]
            plan.append((net, suffix, names))
            targets += names
    if not targets:
        sys.exit(f'{test.folder}: nothing to translate, every {split} image has {nets[0].attrs[0]}')
    make_folder(out_dir)
    inception_net = load_inception(inception, where) if inception != 'none' else None
    arch = clf_arch or ('resnet50' if test.regions is None else 'resnet18')
    clf, arch = get_classifier(arch, train, nets[0])
    judge = Judge(clf, test.multi_label, inception_net)
    real, on_real = evaluate_real(nets[0], dict.fromkeys(targets), test, judge)
    rows = []
    groups = {}
    for net, suffix, names in plan:
        row = {'name': net.about['label'] + suffix, 'row': net.row + suffix, 'targets': names}
        rows.append(row | net.about | evaluate_net(net, names, test, judge, real))
        groups.setdefault(row['row'], []).append(rows[-1])

    n_fake = ' and '.join(dict.fromkeys(str(row['n_fake']) for row in rows))
    notes = [f'{len(test.x):,} {split} images of {test.folder}, {nets[0].size} px, {n_fake} '
             f'translations a row, uint8 pixels; classifier {arch}, seed {seed}; {where}, '
             f'{torch.get_num_threads()} CPU threads; {time.time() - start:.0f} s']
    if inception_net:
        notes.append(f'FID and KID: Inception {inception or FID_URL}; {FID_NOTE}')
    notes += reasons(nets, rows, test)
    answer = conclusions(groups)
    tables = all_tables(groups, on_real, shown_cam(nets[0], nets), test.unpaired)
    text = '\n\n'.join([text_table(table[-1]) for table in tables] + ['\n'.join(notes)])
    details = json.dumps({
        'command': f'python evaluate.py {shlex.join(sys.argv[1:])}',
        'config': {key: globals()[key] for key in config_keys},
        'notes': notes,
        'summary': answer,
        'versions': {module.__name__: module.__version__ for module in (torch, torchvision, np)},
        'real': on_real,
        'checkpoints': rows,
    }, indent=1)
    # JSON has no NaN.
    details = re.sub(r'\bNaN(?=,?\n)', 'null', details)
    write_file(f'{out_dir}/results.json', details + '\n')
    write_file(f'{out_dir}/table.txt', '\n'.join([text, *answer, '']))
    print(f'\n{text}\n', flush=True)

    # Of several seeds the first is drawn.
    firsts = {}
    for net in nets:
        firsts.setdefault(net.row, net)
    drawn = list(firsts.values())
    pictures = {}
    for name, draw in (('maps.png', draw_maps), ('stages.png', draw_stages)):
        image = attempt(draw, drawn, test)
        if image:
            write_file(f'{out_dir}/{name}', lambda file: image.save(file, 'PNG'))
            png = base64.b64encode(Path(f'{out_dir}/{name}').read_bytes()).decode()
            pictures[name] = f'<img alt="{name}" src="data:image/png;base64,{png}">'
    pictures['curves'] = attempt(learning_curves, drawn) or ''
    title = f"{test.meta['dataset']}, {nets[0].size} px"
    page = report(title, ' '.join(answer), tables, notes, pictures, details)
    write_file(f'{out_dir}/report.html', page)
    print('\n'.join([f'{out_dir}/report.html has all of this, and pictures', *answer]))


def folder_features(files, what, net):
    """-> Inception features (N, 2048) of image files."""
    features = []
    for some in batches(files, what):
        images = []
        for file in some:
            # RGB as pytorch-fid takes it: by Pillow, neither turned nor put on white
            try:
                image = np.array(Image.open(file).convert('RGB'))
            except Exception as error:
                sys.exit(f'{file}: cannot be read, remove it ({one_line(error)})')
            images.append(torch.from_numpy(image).permute(2, 0, 1))
        features.append(inception_features(net, images))
    return torch.cat(features)


def compare_folders():
    """Prints FID and KID of the images of two folders."""
    where = pick_device()
    files = {}
    for folder in (real_dir, fake_dir):
        files[folder], _ = list_files(folder, FID_ENDINGS)
        print(f'{folder}: {len(files[folder])} images', flush=True)
        if len(files[folder]) < 2:
            sys.exit(f'{folder}: FID and KID want two images or more')
    net = load_inception(inception, where)
    if net is None:
        sys.exit('FID of images needs the Inception weights')
    real = folder_features(files[real_dir], real_dir, net)
    fake = folder_features(files[fake_dir], fake_dir, net)
    mean, std = kid(real, fake, seed)
    line = f'fid {frechet_distance(real, fake):.5g} | kid {mean:.5g}'
    if not math.isnan(std):
        line += f' | kid_std {std:.5g}'
    print(f'{line}\n{FID_NOTE}; seed {seed}')


def parse_targets(net):
    """--attrs= -> a list of targets, each of them a list of names to be set one after the other."""
    targets = []
    for text in attrs.split(',') if attrs else net.attrs:
        names = [text] if text in net.attrs else text.split('+')
        if not set(names) <= set(net.attrs) or isinstance(net, UAG) and len(names) > 1:
            hint = ', one at a time' if isinstance(net, UAG) else ''
            sys.exit(f"--attrs={attrs}: {ckpt} knows {', '.join(net.attrs)}{hint}")
        targets.append(names)
    return targets


def translate_photos():
    """A PNG for each photo and target. Nobody's labels are needed: D guesses."""
    where = pick_device()
    net = load_checkpoint(ckpt, where)
    uag = isinstance(net, UAG)
    targets = parse_targets(net)
    files, others = list_files(input, ENDINGS)
    make_folder(out)
    print(f"each photo's {'whole area, squashed' if uag else 'centre square'}, at {net.size} px")
    for path in others:
        print(f'{path}: left out, no kind of photo that is read here')
    done = 0
    for path in files:
        try:
            photo = read_photo(path)
        except Exception as error:
            print(f'{path}: left out, cannot be read ({one_line(error)})', flush=True)
            continue
        # The profile of a grey or CMYK photo would spoil the colours of its RGB translation.
        profile = photo.info.get('icc_profile') or b''
        photo.info = {'icc_profile': profile} if profile[16:20] == b'RGB ' else {}
        w, h = photo.size
        side = min(w, h)
        box = ((w - side) // 2, (h - side) // 2, (w + side) // 2, (h + side) // 2)
        if uag:
            box = (0, 0, w, h)
        x = np.array(photo.crop(box).resize((net.size, net.size), Image.BICUBIC))
        x = torch.from_numpy(x).to(where).permute(2, 0, 1)[None] / 127.5 - 1
        name = os.path.relpath(path, input) if os.path.isdir(input) else os.path.basename(path)
        for names in targets:
            with torch.no_grad():
                y = None if uag else (net.D(x)[1] > 0).float()
                for other in names[:-1]:
                    y = set_attr(y, net.attrs.index(other), net.exclusive)
                result = to_image(net.translate(x, y, names[-1])[0])
            if paste:
                square = result.resize((box[2] - box[0], box[3] - box[1]), Image.BICUBIC)
                result = photo.copy()
                result.paste(square, box[:2])
            # With the photo's ending: me.jpg and me.png must not become one file.
            file_name = f"{out}/{name}_{'+'.join(names)}.png"
            write_file(file_name, lambda file: result.save(file, 'PNG'))
            done += 1
    if not done:
        sys.exit(f'--input={input}: no photo there that can be read')
    print(f'{done} images: {out}')


if __name__ == '__main__':
    message = f'stopped; what was complete is in {out if input else out_dir}'
    signal.signal(signal.SIGINT, lambda signum, frame: sys.exit(message))
    # A name that the terminal cannot show must not end a run.
    sys.stdout.reconfigure(errors='backslashreplace')
    if split not in ('val', 'test'):
        sys.exit(f'--split={split}: wants val or test')
    if clf_arch not in ('', 'resnet18', 'resnet50'):
        sys.exit(f'--clf_arch={clf_arch}: wants resnet18 or resnet50')
    # A download behind a silent firewall would take minutes to fail.
    socket.setdefaulttimeout(20)
    if ckpt and input:
        translate_photos()
    elif ckpt:
        compare_checkpoints()
    elif real_dir and fake_dir:
        compare_folders()
    else:
        sys.exit('wants --ckpt= ckpt.pt files, or --real_dir= and --fake_dir= folders')
