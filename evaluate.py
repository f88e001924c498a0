"""
Compares trained generators: one table with a row per checkpoint, and a picture beside it.

    python evaluate.py --ckpt=out/teacher/ckpt.pt,out/s0/ckpt.pt,out/s10/ckpt.pt

Accuracy (as in Tables 1-4 of the paper): every test image without an attribute is translated to have it; the share
    that a classifier trained on real images calls positive. It is trained here, once per data set, and cached.
FD-clf: Frechet distance between the classifier's features of the real test images and of all those translations.
    No FID: the features are other ones; compare it within one table only.
Where the data knows the region of each attribute (drawn faces): energy = share of the Grad-CAM map inside the region
    over the region's share of the image (1 = chance); point = maximum inside; IoU at the threshold that gives the
    region's area; dead = maps that are zero everywhere (left out of these three); leak = mean |x_fake - x| outside,
    images in [-1, 1].
Cost: parameters, multiply-adds and latency of the generator for one image.

Checkpoints of train_uag.py are compared among themselves, both directions each:

    python evaluate.py --ckpt=out/uag/ckpt.pt,out/uag_d/ckpt.pt,out/cyclegan/ckpt.pt

Accuracy: share of translations that a classifier of the two domains takes for the target's. KID-clf (x100): unbiased
    kernel distance to the target's test images in that classifier's features. soft = share of map pixels between 0.1
    and 0.9. Where objects are known: IoU of [A >= tau] and of [A >= 0.5] with the object; energy as above; background
    and object: mean |s' - s| outside and inside the object.

Writes out_dir/results.json, table.txt and compare.png: input | per checkpoint its translation and its attention map.
Takes about a minute for 3 nets of 32 px on 2 CPU cores, 20 s more the first time for the classifier.
"""

import difflib
import hashlib
import json
import os
import sys
import time

import numpy as np
import torch
import torch.nn.functional as F
import torchvision
from PIL import Image, ImageDraw, ImageFont
from torch.utils.flop_counter import FlopCounterMode

from gradcam import GradCAM
from train_student import (cls_loss, find_data, load_ckpt, load_script, load_split, overlay, save_ckpt, set_attr,
                           to_float)
from train_uag import whole_images

# -----------------------------------------------------------------------------
# what to compare
ckpt = ''  # ckpt.pt files, comma-separated; the discriminator of the first, normally the teacher, scores all the maps
script = ''  # the scripts that made them, in the same order, where they are not in this folder; '': all are
dataset = ''  # '': the first checkpoint's
cam = 'gradcam'  # or 'hirescam': the maps of table and picture
# output
out_dir = 'out/eval'  # results of an earlier run there are replaced
n_rows = 2  # rows of the picture for each attribute, or twice as many for each direction
save_images = False  # write every translation as out_dir/images/<checkpoint>/<domain>/<row>.png, for other tools
# classifier
clf_dir = 'out/clf'  # one file per data set, size and settings
clf_epochs = 8  # enough for drawn faces; real ones want 10 or more
clf_lr = 2e-3  # peak of a one-cycle schedule, Adam
# system
batch_size = 100  # images at a time; only memory and speed depend on it
device = ''  # 'cpu', 'cuda', 'cuda:1'; '': the GPU if there is one
seed = 0  # of the classifier's training; all else is deterministic
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

# classifier


def train_classifier(x, y, to_x, size, multi_label, epochs, lr, batch_size, device):
    """ResNet-18 from scratch on x (N, H, W, 3) uint8 and y (N, c) -> net of (B, 3, size, size) in [-1, 1] to (B, c).

    to_x(x, size) makes the one out of the other, as the nets under test do it.
    """
    clf, batch_size = torchvision.models.resnet18(num_classes=y.shape[1]).to(device), min(batch_size, len(x))
    n_steps = epochs * (len(x) // batch_size)
    opt = torch.optim.AdamW(clf.parameters(), lr, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(opt, lr, total_steps=n_steps)
    t0 = t_log = time.time()
    for step in range(n_steps):
        if step % (len(x) // batch_size) == 0:
            order = torch.randperm(len(x))
        i = order[step % (len(x) // batch_size) * batch_size:][:batch_size]
        x_b = to_x(x[i].to(device), size)
        x_b = torch.where((torch.rand(len(i)) < 0.5).to(device)[:, None, None, None], x_b.flip(3), x_b)
        loss = cls_loss(clf(x_b), y[i].to(device), multi_label)
        opt.zero_grad()
        loss.backward()
        opt.step()
        schedule.step()
        if time.time() - t_log > 5 or step + 1 == n_steps:
            t_log = time.time()
            print(f'classifier: step {step + 1}/{n_steps} | loss {loss.item():.3f} | eta '
                  f'{(t_log - t0) / (step + 1) * (n_steps - step - 1):.0f}s', flush=True)
    return clf.eval()


def get_classifier(x, y, to_x, size, multi_label, meta, device):
    """The classifier of these data and settings: from the cache if it is there, else trained and put there."""
    settings = dict(arch='resnet18', size=size, epochs=clf_epochs, lr=clf_lr, seed=seed)
    key = hashlib.sha256((json.dumps([meta, settings]) + repr(y.sum(0).tolist())).encode()).hexdigest()[:10]
    path = os.path.join(clf_dir, f"{meta['dataset']}_{size}px_resnet18_{key}.pt")
    if not os.path.exists(path):
        clf = train_classifier(x, y, to_x, size, multi_label, clf_epochs, clf_lr, 64, device)
        save_ckpt(path, clf.state_dict())
    clf = torchvision.models.resnet18(num_classes=y.shape[1]).to(device).eval()
    clf.load_state_dict(torch.load(path, map_location=device, weights_only=True))
    print(f'classifier: {path}', flush=True)
    return clf


@torch.no_grad()
def classify(clf, x, multi_label):
    """x (B, 3, S, S) -> calls (B, c) bool: the logit is positive, or the largest; features (B, 512) float64."""
    features = []
    handle = clf.avgpool.register_forward_hook(lambda module, args, out: features.append(out.flatten(1).double()))
    logits = clf(x)
    handle.remove()
    return logits > 0 if multi_label else logits == logits.amax(1, keepdim=True), features[0]


def to_uint8(x):
    """Images as a PNG would keep them: (B, 3, H, W) in [-1, 1] rounded to 256 levels, still in [-1, 1]."""
    return ((x + 1) * 127.5).round().clamp(0, 255) / 127.5 - 1


# measures


class Moments:
    """Mean and covariance of features that come in batches, in float64, without keeping them."""

    def __init__(self):
        self.n, self.sum, self.outer = 0, 0, 0

    def add(self, features):
        self.n, self.sum = self.n + len(features), self.sum + features.sum(0)
        self.outer = self.outer + features.T @ features

    def mean_cov(self):
        mean = self.sum / self.n
        return mean, (self.outer - self.n * torch.outer(mean, mean)) / (self.n - 1)


def frechet_distance(mean1, cov1, mean2, cov2):
    """|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)) of two Gaussians, float64 (d,) and (d, d) -> float >= 0.

    C1 C2 has the eigenvalues of the symmetric C1^(1/2) C2 C1^(1/2), so no general matrix root is needed.
    """
    values, vectors = torch.linalg.eigh(cov1)
    root = (vectors * values.clamp_min(0).sqrt()) @ vectors.T
    covmean = torch.linalg.eigvalsh(root @ cov2 @ root).clamp_min(0).sqrt().sum()
    return max(0.0, (((mean1 - mean2) ** 2).sum() + cov1.trace() + cov2.trace() - 2 * covmean).item())


def kid(real, fake, generator):
    """Kernel Inception distance's estimator (Binkowski et al. 2018) on features (N, d) and (M, d) float64 -> mean, std.

    Unbiased MMD^2 with k(x, y) = (x.y / d + 1)^3, over 100 subsets of n = min(1000, N, M) drawn without replacement.
    With N = M <= 1000 every subset is the whole, and the spread 0.
    """
    n, values = min(1000, len(real), len(fake)), []
    for _ in range(100):
        x, y = (f[torch.randperm(len(f), generator=generator)[:n].to(f.device)] for f in (real, fake))
        kxx, kyy, kxy = (((a @ b.T) / a.shape[1] + 1) ** 3 for a, b in ((x, x), (y, y), (x, y)))
        off = sum((k.sum() - k.trace()) / (n * (n - 1)) for k in (kxx, kyy))
        values.append((off - 2 * kxy.mean()).item())
        if n == len(real) == len(fake):
            break
    return float(np.mean(values)), float(np.std(values))


def localisation(A, m):
    """How well maps A (B, h, w) >= 0 find regions m (B, H, W) in {0, 1} -> energy, pointing, iou, alive, each (B,).

    A is enlarged to the region's size first. Energy is the share of A inside over the region's share of the area, 1 for
    a map that knows nothing; pointing: 1 where the maximum lies inside; IoU with the pixels of highest A, as many as
    the region has. alive is 0 where the map or the region is zero everywhere: there the other figures mean nothing.
    """
    A = F.interpolate(A[:, None].double(), m.shape[1:], mode='bilinear').flatten(1)
    m = m.flatten(1).double()
    area = m.sum(1)
    energy = (A * m).sum(1) / A.sum(1).clamp_min(1e-300) / (area.clamp_min(1) / m.shape[1])
    pointing = m.gather(1, A.argmax(1, keepdim=True))[:, 0]
    rank = A.argsort(dim=1, descending=True, stable=True).argsort(1)  # 0 for the highest
    inside = (m * (rank < area[:, None])).sum(1)
    return energy, pointing, inside / (2 * area - inside).clamp_min(1), ((A.amax(1) > 0) & (area > 0)).double()


def cost(G, x, c):
    """Parameters, multiply-adds and median milliseconds of G(x, c) for the batch given."""
    with torch.no_grad():
        with FlopCounterMode(display=False) as counter:
            G(x, c)
        times = []
        for _ in range(30):
            if x.is_cuda:
                torch.cuda.synchronize()
            t0 = time.perf_counter()
            G(x, c)
            if x.is_cuda:
                torch.cuda.synchronize()
            times.append(time.perf_counter() - t0)
    return sum(p.numel() for p in G.parameters()), counter.get_total_flops() // 2, 1000 * float(np.median(times))


# output


def percent(v):
    """0.123 -> '12.3', NaN -> '-'."""
    return f'{100 * v:.1f}' if v == v else '-'


def table(rows):
    """Rows of cells, the first the header -> lines of aligned columns, the first column left and the others right."""
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    return '\n'.join('  '.join(cell.ljust(w) if k == 0 else cell.rjust(w)
                               for k, (cell, w) in enumerate(zip(row, widths))) for row in rows)


def picture(path, header, rows, labels):
    """PNG of rows of images (3, H, W) in [-1, 1], with a header over the columns and a label before each row."""
    scale = max(1, 96 // rows[0][0].shape[1])
    cell, left, top = rows[0][0].shape[1] * scale, 120, 34
    sheet = Image.new('RGB', (left + len(header) * (cell + 4), top + len(rows) * (cell + 4)), 'white')
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for k, text in enumerate(header):
        draw.text((left + k * (cell + 4), 2), text, 'black', font)
    for r, (row, label) in enumerate(zip(rows, labels)):
        draw.text((2, top + r * (cell + 4) + cell // 2 - 8), label, 'black', font)
        for k, x in enumerate(row):
            pixels = ((x + 1) * 127.5).round().clamp(0, 255).byte().permute(1, 2, 0).cpu().numpy()
            image = Image.fromarray(pixels).resize((cell, cell), Image.Resampling.NEAREST)
            sheet.paste(image, (left + k * (cell + 4), top + r * (cell + 4)))
    sheet.save(path + '.tmp', 'PNG')
    os.replace(path + '.tmp', path)


def write(text, results, header, rows, names):
    """Prints the table and writes it, the JSON and the picture."""
    print('\n' + text)
    with open(os.path.join(out_dir, 'table.txt'), 'w') as f:
        f.write(text + '\n')
    with open(os.path.join(out_dir, 'results.json'), 'w') as f:
        json.dump(results, f, indent=1)
    if rows:
        picture(os.path.join(out_dir, 'compare.png'), header, rows, names)
        print(f'picture: {os.path.join(out_dir, "compare.png")}')


def save_images_of(folder, domain, rows, x):
    """Each image of x (B, 3, H, W) in [-1, 1] as folder/domain/<row>.png."""
    os.makedirs(os.path.join(folder, domain), exist_ok=True)
    for row, image in zip(rows.tolist(), x):
        torchvision.utils.save_image(image / 2 + 0.5, os.path.join(folder, domain, f'{row:06d}.png'))


def evaluate_uag(ckpts, modules, labels, data_dir, meta, device):
    """Both directions of train_uag.py checkpoints -> table, results for the JSON, header, rows, names of a picture."""
    domains, size, generator = meta['domains'], ckpts[0]['image_size'], torch.Generator().manual_seed(seed)
    load = lambda name: torch.from_numpy(np.load(os.path.join(data_dir, name + '.npy'), mmap_mode='c'))
    train, test = ([load(split + side + '_x') for side in 'AB'] for split in ('train', 'test'))
    has_masks = os.path.exists(os.path.join(data_dir, 'testA_m.npy'))
    y = torch.eye(2).repeat_interleave(torch.tensor([len(x) for x in train]), 0)
    clf = get_classifier(torch.cat(train), y, whole_images, size, False, meta, device)
    real, results, shown = [], [], {0: [], 1: []}
    for x in test:
        calls, features = zip(*(classify(clf, whole_images(b.to(device), size), False) for b in x.split(batch_size)))
        real.append((torch.cat(calls).double().mean(0).tolist(), torch.cat(features)))
    for label, c, module in zip(labels, ckpts, modules):
        nets = {'G_st': module.Generator(**c['g_args']), 'G_ts': module.Generator(**c['g_args'])}
        if c['a_args']:
            nets |= {'A_s': module.Attention(**c['a_args']), 'A_t': module.Attention(**c['a_args'])}
        for name, net in nets.items():
            net.load_state_dict(c[name])
            net.to(device).requires_grad_(False)
        for s, t, x_all in ((0, 1, test[0]), (1, 0, test[1])):
            A, G, tau = nets.get('A_' + 'st'[s]), nets['G_' + 'st'[s] + 'st'[t]], c['config']['tau']
            calls, features, measures = [], [], []
            for rows in torch.arange(len(x_all)).split(batch_size):
                x = whole_images(x_all[rows].to(device), size)
                x_fake, a, _ = module.translate(x, A, G, c['gen_input'])
                x_fake = to_uint8(x_fake)
                if save_images:
                    save_images_of(os.path.join(out_dir, 'images', label), domains[t], rows, x_fake)
                call, feature = classify(clf, x_fake, False)
                calls.append(call[:, t])
                features.append(feature)
                measure = dict(soft=((a > 0.1) & (a < 0.9)).flatten(1).double().mean(1))
                if has_masks:
                    m = load(f"test{'AB'[s]}_m")[rows][..., None].to(device) * 255
                    m = (whole_images(m, size)[:, 0] >= 0).double()
                    change = (x_fake - x).abs().mean(1)
                    measure['energy'], measure['pointing'], _, _ = localisation(a[:, 0], m)
                    for name, threshold in (('iou_tau', tau), ('iou_half', 0.5)):
                        on = (a[:, 0] >= threshold).double()
                        measure[name] = (on * m).flatten(1).sum(1) / ((on + m) > 0).flatten(1).sum(1)
                    for name, where in (('background', 1 - m), ('object', m)):
                        measure[name] = (change * where).flatten(1).sum(1) / where.flatten(1).sum(1).clamp_min(1)
                measures.append(torch.stack(list(measure.values()), 1))
                if rows[0] == 0:
                    shown[s].append((x[:2 * n_rows], x_fake[:2 * n_rows], (2 * a - 1).expand_as(x)[:2 * n_rows]))
            values = dict(zip(measure, torch.cat(measures).double().mean(0).tolist()))
            if A is None:  # no map: what it would be measured by means nothing
                values = {k: v if k in ('background', 'object') else float('nan') for k, v in values.items()}
            features = torch.cat(features)
            kid_mean, kid_std = kid(real[t][1], features, generator)
            results.append(dict(
                label=label, direction=f'{domains[s]}->{domains[t]}', iter=c['iter'], config=c['config'], n=len(x_all),
                accuracy=torch.cat(calls).double().mean().item(), kid_clf=100 * kid_mean, kid_clf_std=100 * kid_std,
                params=sum(p.numel() for p in G.parameters()), **values))
            print(f"{label} {results[-1]['direction']}: {len(x_all)} images", flush=True)
    columns = [('energy', '.2f'), ('iou_tau', '.3f'), ('iou_half', '.3f'), ('soft', '.1%'), ('background', '.4f'),
               ('object', '.3f')]
    rows = [['', 'accuracy %', 'KID-clf x100', 'energy', 'IoU tau', 'IoU 0.5', 'soft', 'background', 'object']]
    for r in results:
        values = [r.get(name, float('nan')) for name, _ in columns]
        rows.append([f"{r['label']} {r['direction']}", percent(r['accuracy']),
                     f"{r['kid_clf']:.2f}" + (f" +- {r['kid_clf_std']:.2f}" if r['kid_clf_std'] else ''),
                     *(format(v, spec) if v == v else '-' for v, (_, spec) in zip(values, columns))])
    for k, domain in enumerate(domains):
        rows.append([f'real {domain}', percent(real[k][0][k]), *['-'] * 7])
    header, pictures, names = ['input'] + [text for label in labels for text in (label, 'its map')], [], []
    for s in (0, 1):
        for k in range(len(shown[s][0][0])):
            pictures.append([shown[s][0][0][k]] + [images[j][k] for images in shown[s] for j in (1, 2)])
            names.append(f'{domains[s]} ->')
    text = (f'{table(rows)}\n\n{len(test[0])} and {len(test[1])} test images of {data_dir} at {size} px; classifier '
            f'resnet18, seed {seed}; last checkpoints; images in [-1, 1]')
    return text, results, header, pictures, names


if __name__ == '__main__':
    # set-up
    t_start = time.time()
    if not ckpt or cam not in ('gradcam', 'hirescam') or min(batch_size, n_rows, clf_epochs) < 1:
        sys.exit('--ckpt= one or more ckpt.pt files, comma-separated; cam: gradcam or hirescam; batch_size, n_rows, '
                 'clf_epochs: 1 or more')
    device = device or ('cuda' if torch.cuda.is_available() else 'cpu')
    try:
        torch.zeros(1, device=device)
        for folder in (out_dir, clf_dir):
            os.makedirs(folder, exist_ok=True)
    except (RuntimeError, AssertionError, OSError) as e:
        sys.exit(f'--device={device} --out_dir={out_dir} --clf_dir={clf_dir}: {str(e).splitlines()[0]}')
    torch.manual_seed(seed)
    paths = ckpt.split(',')
    scripts = (script.split(',') + [''] * len(paths))[:len(paths)]
    ckpts = [load_ckpt(path, 'stargan', 'uag') for path in paths]
    if len({c['kind'] for c in ckpts}) > 1:
        sys.exit(f'--ckpt={ckpt}: StarGAN and UAG checkpoints in one list; evaluate them apart')
    modules = [load_script(c, path, '--script') for c, path in zip(ckpts, scripts)]
    labels = [os.path.basename(os.path.dirname(os.path.abspath(p))) for p in paths]
    labels = [label + (f'-{k}' if labels.count(label) > 1 else '') for k, label in enumerate(labels)]  # all different
    data_dir, meta = find_data(dataset or ckpts[0]['config']['dataset'])
    if ckpts[0]['kind'] == 'uag':
        if meta['label'] != 'unpaired' or any(c['image_size'] != ckpts[0]['image_size'] for c in ckpts):
            sys.exit(f'{data_dir} is no set of two domains, or the checkpoints work at different sizes')
        text, results, header, rows, names = evaluate_uag(ckpts, modules, labels, data_dir, meta, device)
        write(text, dict(config=config, device=device, torch=torch.__version__, checkpoints=results),
              header, rows, names)
        sys.exit()
    if meta['label'] == 'unpaired':
        sys.exit(f'{data_dir} has two domains without labels: these checkpoints translate attributes')
    attrs, multi_label = meta['attrs'], meta['label'] == 'multi'
    size = ckpts[0]['d_args']['image_size']
    for path, c in zip(paths, ckpts):
        if c['d_args']['image_size'] != size or meta['image_size'] % size or not set(c['attrs']) <= set(attrs):
            sys.exit(f"{path} works on {','.join(c['attrs'])} at {c['d_args']['image_size']} px, "
                     f"which {paths[0]} or {data_dir} ({meta['image_size']} px) does not")
    test_x, test_y = load_split(data_dir, meta, 'test', attrs)
    masks_path = os.path.join(data_dir, 'test_m.npy')
    masks = torch.from_numpy(np.load(masks_path, mmap_mode='c')) if os.path.exists(masks_path) else None
    shown = list(dict.fromkeys(name for c in ckpts for name in c['attrs']))  # columns of the table
    # single-label: where nets know only some of the classes, images of the others are left out, as in training
    known = test_y[:, [attrs.index(name) for name in shown]].sum(1) > 0 if not multi_label else test_y[:, 0] >= 0

    # classifier, and how good it is on real test images
    train = load_split(data_dir, meta, 'train', attrs)
    clf = get_classifier(*train, to_float, size, multi_label, meta, device)
    real, hits = Moments(), torch.zeros(2, 2, len(attrs))  # hits[label, call]
    for i in known.nonzero().flatten().split(batch_size):
        calls, features = classify(clf, to_float(test_x[i].to(device), size), multi_label)
        real.add(features)
        calls, y = calls.cpu(), test_y[i].bool()
        for label in (0, 1):
            for call in (0, 1):
                hits[label, call] += ((y == label) & (calls == call)).sum(0)
    recall = (hits[1, 1] / hits[1].sum(0)).tolist()
    balanced = ((hits[1, 1] / hits[1].sum(0) + hits[0, 0] / hits[0].sum(0)) / 2).tolist()

    # the checkpoints
    D_maps = modules[0].Discriminator(**ckpts[0]['d_args']).to(device).requires_grad_(False)
    D_maps.load_state_dict(ckpts[0]['D'])
    results, columns, n_done = [], {}, 0
    n_total = sum(int((known & (test_y[:, attrs.index(name)] == 0)).sum()) for c in ckpts for name in c['attrs'])
    t0 = t_log = time.time()
    for label, path, c, module in zip(labels, paths, ckpts, modules):
        G = module.Generator(**c['g_args']).to(device).requires_grad_(False)
        G.load_state_dict(c['G'])
        hook = GradCAM(G.res[-1], cam)
        cols = [attrs.index(name) for name in c['attrs']]
        exclusive = [[c['attrs'].index(n) for n in group if n in c['attrs']] for group in meta['exclusive']]
        exclusive += [] if multi_label else [list(range(len(cols)))]
        fake, accuracy, located = Moments(), {}, {}
        for i, name in enumerate(c['attrs']):
            rows, calls_i, located_i = (known & (test_y[:, cols[i]] == 0)).nonzero().flatten(), [], []
            for r in rows.split(batch_size):
                x = to_float(test_x[r].to(device), size)
                x_fake = G(x, set_attr(test_y[r][:, cols].to(device), i, exclusive))
                A = torch.zeros(len(x), 1, 1, device=device)  # no map where the first checkpoint's D has no such score
                if name in ckpts[0]['attrs']:
                    A = hook(D_maps(x_fake)[1][:, ckpts[0]['attrs'].index(name)])
                x_fake = to_uint8(x_fake.detach())
                if save_images:
                    save_images_of(os.path.join(out_dir, 'images', label), name, r, x_fake)
                calls, features = classify(clf, x_fake, multi_label)
                fake.add(features)
                calls_i.append(calls[:, cols[i]])
                if masks is not None:
                    m = to_float(masks[r, cols[i]][..., None].to(device), size)[:, 0] > 1 / 255 - 1  # half the pixels
                    change = (x_fake - x).abs().mean(1)
                    leak = (change * ~m).flatten(1).sum(1) / (~m).flatten(1).sum(1).clamp_min(1)
                    located_i.append(torch.stack([*localisation(A, m), leak.double()], 1))
                if name not in columns.setdefault(label, {}):  # the picture's rows: the first of these images
                    columns[label][name] = x[:n_rows], x_fake[:n_rows], overlay(x, A)[:n_rows]
                n_done += len(r)
                if time.time() - t_log > 5:
                    t_log = time.time()
                    print(f'{label}: {n_done}/{n_total} translations | {n_done / (t_log - t0):.0f} images/s | '
                          f'eta {(t_log - t0) / n_done * (n_total - n_done):.0f}s', flush=True)
            accuracy[name] = torch.cat(calls_i).double().mean().item() if calls_i else float('nan')
            if located_i:
                energy, pointing, iou, alive, leak = torch.cat(located_i).T
                located[name] = {k: ((v * alive).sum() / alive.sum()).item() for k, v in
                                 (('energy', energy), ('pointing', pointing), ('iou', iou))}
                located[name] |= dict(dead=1 - alive.mean().item(), leakage=leak.mean().item())
        params, macs, ms = cost(G, to_float(test_x[:1].to(device), size), test_y[:1][:, cols].to(device))
        results.append(dict(
            label=label, ckpt=path, iter=c['iter'], g_args=c['g_args'], config=c['config'], accuracy=accuracy,
            accuracy_mean=float(np.nanmean(list(accuracy.values()))),
            fd_clf=frechet_distance(*real.mean_cov(), *fake.mean_cov()), n_fake=fake.n,
            localisation=located, params=params, macs=macs, latency_ms=ms,
            **{k: float(np.nanmean([v[k] for v in located.values()])) for k in
               (('energy', 'pointing', 'iou', 'dead', 'leakage') if located else ())}))

    # output
    top = [['accuracy, %', *shown, 'Mean', 'FD-clf']]
    for r in results:
        top.append([r['label'], *(percent(r['accuracy'].get(name, float('nan'))) for name in shown),
                    percent(r['accuracy_mean']), f"{r['fd_clf']:.2f}"])
    for text, scores in (('real: recall', recall), ('real: balanced acc.', balanced)):
        scores = [scores[attrs.index(name)] for name in shown]
        top.append([text, *map(percent, scores), percent(float(np.nanmean(scores))), ''])
    bottom = [['', 'energy', 'point', 'IoU', 'dead', 'leak', 'params', 'MMACs', 'ms']]
    for r in results:
        where = ['-'] * 5 if not r['localisation'] else [
            f"{r['energy']:.2f}", percent(r['pointing']), f"{r['iou']:.2f}", percent(r['dead']), f"{r['leakage']:.3f}"]
        bottom.append([r['label'], *where, f"{r['params']:,}", f"{r['macs'] / 1e6:.1f}", f"{r['latency_ms']:.1f}"])
    text = (f"{table(top)}\n\n{table(bottom)}\n\n{len(test_x):,} test images of {data_dir} at {size} px, "
            f"{results[0]['n_fake']:,} translations a row; classifier resnet18, seed {seed}; last checkpoints;\n"
            f"maps: {cam}, class scores by the discriminator of {labels[0]}; {device}, {time.time() - t_start:.0f} s")
    header, rows, names = ['input'] + [text for label in labels for text in (label, 'its map')], [], []
    common = [name for name in shown if all(name in columns[label] for label in labels)]
    for name in common:
        for k in range(len(columns[labels[0]][name][0])):
            rows.append([columns[labels[0]][name][0][k]]
                        + [columns[label][name][j][k] for label in labels for j in (1, 2)])
            names.append(name)
    write(text, dict(config=config, device=device, torch=torch.__version__, n_test=len(test_x), attrs=shown,
                     clf_recall=dict(zip(attrs, recall)), clf_balanced_accuracy=dict(zip(attrs, balanced)),
                     checkpoints=results), header, rows, names)
