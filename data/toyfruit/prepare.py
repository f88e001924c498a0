"""
Draws two unpaired domains, apples and oranges on clutter, for train_uag.py: a translator should repaint the fruit and
leave the rest alone, and the test masks say which pixels are fruit. All else comes from one random process.

    python data/toyfruit/prepare.py    # 64 px, 2 x 2000 train, 2 x 200 test: 56 MB, about 66 s of CPU time on an EPYC

Writes {train,test}{A,B}_x.npy uint8 (N, H, W, 3) RGB, A apples, B oranges, test{A,B}_m.npy uint8 (N, H, W), meta.json.
"""

import colorsys
import contextlib
import difflib
import json
import math
import multiprocessing
import os
import shlex
import shutil
import signal
import sys
import time

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

# -----------------------------------------------------------------------------
image_size = 64  # side of the square images in pixels, a multiple of 8 in 32..256; the same scenes at any size
n_train = 2000  # training images of each domain; fewer for a quick try, the first ones stay the same
n_test = 200  # test images of each domain, with masks; more for tighter localisation figures
clutter = 1.0  # 0: one plain colour behind the fruit, 1: full textures and objects; lower if attention finds nothing
seed = 0  # another seed, other images; every image has its own stream of random numbers
workers = 0  # processes; 0: one per core, 1: one. The result does not depend on it
dst = os.path.dirname(os.path.abspath(__file__))  # folder the arrays go to; elsewhere to keep several variants
force = False  # True: redo what is already there with other settings
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
config = {k: globals()[k] for k in config_keys}
DOMAINS, SPLITS = ['apple', 'orange'], ['train', 'test']  # A, B
# Lengths are fractions of the image side, colours in [0, 1], hues in degrees. Cool is from green to violet: no fruit
rgb = lambda h, s, v: np.float32(colorsys.hsv_to_rgb(h / 360 % 1, s, v))  # noqa: E731
cool = lambda rng, s=(.1, .6), v=(.3, .9): rgb(rng.uniform(75, 295), rng.uniform(*s), rng.uniform(*v))  # noqa: E731
enlarge = lambda x, n: np.asarray(Image.fromarray(x).resize((n, n), Image.BICUBIC)).clip(0, 1)  # noqa: E731 (to n x n)
disc = lambda r: (mesh(2 * round(1.6 * r) + 1) - round(1.6 * r)) / r  # noqa: E731 (y, x about the centre in radii)
mesh = lambda n: np.mgrid[:n, :n].astype(np.float32)  # noqa: E731
arc = lambda a0, a1: np.radians(np.linspace(a0, a1, 28))  # noqa: E731
ring = lambda x, y, rx, ry, a0=0., a1=360.: list(  # noqa: E731 (an ellipse, or its arc; 0 is right, 90 is down)
    zip(x + rx * np.cos(arc(a0, a1)), y + ry * np.sin(arc(a0, a1))))
box = lambda x0, y0, x1, y1: [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]  # noqa: E731


def backdrop(rng):
    """A random RGB for background: cool, or a dull brown or beige. Saturated reds and oranges are left to the fruit."""
    brown = rgb(*rng.uniform([20, .15, .3], [45, .42, .75]))
    return brown if rng.random() < 0.35 else cool(rng)


def texture(rng, n, clutter):
    """float32 (n, n, 3): one of six surfaces in two random colours; clutter 0 leaves the first colour alone."""
    noise = lambda cols, rows: enlarge(rng.random((rows, cols), dtype=np.float32), n)  # noqa: E731 (smooth blobs)
    a, b, strength, kind = backdrop(rng), backdrop(rng), rng.uniform(0.25, 0.9), rng.integers(6)
    angle, freq, phase, (y, x) = rng.uniform(0, math.pi), rng.uniform(3, 11), rng.uniform(0, 6.28), mesh(n) / n
    t, u = x * math.cos(angle) + y * math.sin(angle), y * math.cos(angle) - x * math.sin(angle)
    mix = (t, (np.sin(6.28 * freq * t + phase) * 3 + 0.5).clip(0, 1),  # gradient, stripes, checker, ..., a fine weave
           (np.sin(3.14 * freq * t + phase) * np.sin(3.14 * freq * u) * 9 + 0.5).clip(0, 1), None,
           0.5 + 0.25 * np.sin(6.28 * 2 * freq * t) + 0.25 * np.sin(6.28 * 2 * freq * u), None)[kind]
    if kind == 3:  # foliage, plaster: three octaves
        mix = 0.5 * noise(4, 4) + 0.3 * noise(9, 9) + 0.3 * noise(24, 24)
    if kind == 5:  # wood: rings bent by slow noise, fine grain along them, dark gaps between the boards
        wide, bend, grain = rng.random() < 0.7, noise(2, 5), noise(5, 48)  # wide: boards run across the image
        bend, grain, across = (bend, grain, y) if wide else (bend.T, grain.T, x)
        mix = 0.35 + 0.35 * np.sin(6.28 * freq * (across + 0.25 * bend)) + 0.4 * (grain - 0.5)
        mix += 1.2 * (np.abs((across * freq / 2 + phase) % 1 - 0.5) < 0.03)
        a, b, strength = (brown := rgb(*rng.uniform([22, .25, .5], [40, .5, .8]))), brown * 0.5, strength / 2 + 0.3
    return a + (clutter * strength * mix.clip(0, 1))[..., None] * (b - a)


def distractor(rng):
    """A random object that is no fruit of ours, as polygons to draw in order: list of (points in [-1, 1]^2, RGB)."""
    kind, c, white = rng.integers(8), cool(rng, (0.35, 0.8), (0.35, 0.85)), rgb(210, 0.05, 0.93)
    if kind == 0:    # banana
        c, tip = rgb(rng.uniform(48, 56), 0.78, 0.92), rgb(35, 0.6, 0.3)
        stripe = ring(0, -0.55, 0.93, 0.78, 25, 155) + ring(0, -0.55, 0.93, 0.74, 155, 25)
        return [(ring(0, -0.5, 0.97, 0.98, 15, 165) + ring(0, -0.6, 0.9, 0.6, 165, 15), c), (stripe, c * 0.8),
                (ring(-0.92, -0.31, 0.09, 0.11), tip), (ring(0.92, -0.31, 0.09, 0.11), tip)]
    if kind == 1:    # green pear
        t, stalk = np.linspace(0, 6.28, 40), [(-.04, -.6), (.04, -.6), (.14, -1), (.05, -1)]
        body = list(zip(np.sin(t) * (0.46 - 0.2 * np.cos(t)), 0.1 - 0.8 * np.cos(t)))
        return [(stalk, rgb(30, 0.6, 0.3)), (body, rgb(rng.uniform(68, 95), 0.62, rng.uniform(0.6, 0.8)))]
    if kind == 2:    # purple grapes
        c, out = rgb(rng.uniform(265, 295), .55, rng.uniform(.35, .55)), [(box(-.04, -.9, .04, -.5), rgb(90, .5, .4))]
        for left, row in [((1 - n) / 2 + i, row) for row, n in enumerate((3, 4, 3, 2, 1)) for i in range(n)]:
            x, y = left * 0.42 + rng.uniform(-0.05, 0.05), -0.5 + row * 0.32
            out += [(ring(x, y, 0.25, 0.25), c * 0.75), (ring(x - 0.02, y - 0.03, 0.21, 0.21), c),
                    (ring(x - 0.08, y - 0.1, 0.06, 0.06), c * 0.4 + 0.6)]
        return out
    if kind == 3:    # blue plate
        c, q = rgb(rng.uniform(195, 235), rng.uniform(0.3, 0.8), 0.85), rng.uniform(0.35, 1)
        return [(ring(0, 0, s, s * q), col) for s, col in ((1, c), (0.93, white), (0.68, c), (0.62, white * 0.95))]
    if kind == 4:    # cup
        return [(ring(0.55, 0, 0.4, 0.42) + ring(0.55, 0, 0.22, 0.25), c * 0.85),
                (ring(0, -0.6, 0.68, 0.2, 180, 360) + ring(0, 0.6, 0.5, 0.22, 0, 180), c),
                (ring(0, -0.6, 0.68, 0.2), c * 0.5 + 0.4), (ring(0, -0.58, 0.58, 0.15), c * 0.45)]
    if kind == 5:    # book
        c = backdrop(rng) if rng.random() < 0.4 else c
        return [(box(-.68, -.92, .72, 1), white * 0.9), (box(-.7, -1, .66, .92), c), (box(-.7, -1, -.5, .92), c * 0.7),
                (box(-.3, -.6, .5, -.6 + .08), white), (box(-.3, -.4, .3, -.4 + .08), white)]
    if kind == 6:    # box, often cardboard
        c = rgb(33, 0.4, rng.uniform(0.6, 0.75)) if rng.random() < 0.5 else c
        top, tape = [(-.8, -.4), (0, -.8), (.8, -.4), (0, 0)], [(-.48, -.56), (-.32, -.64), (.48, -.24), (.32, -.16)]
        return [([(-.8, -.4), (0, 0), (0, .9), (-.8, .5)], c * .85), ([(.8, -.4), (0, 0), (0, .9), (.8, .5)], c * .65),
                (top, c), (tape, c * 0.6 + 0.35)]
    c = rgb(rng.uniform(95, 140), 0.6, rng.uniform(0.35, 0.6))  # leaves: green ones also lie around without an apple
    leaf = ring(0, 0.9, 1, 1, 205, 335) + ring(0, -0.05, 0.9, 0.9, 25, 155)[4:-4]
    return [([(x * 0.6 - 0.2, y * 0.6 - 0.5) for x, y in leaf], c * 0.8), (leaf, c),
            ([(-0.85, 0.44), (0.85, 0.42), (0.85, 0.46)], c * 0.5 + 0.4)]


def paste(canvas, patch, alpha, x, y):
    """Blends patch (k, k, 3) or one RGB into canvas (n, n, c), in place, by alpha (k, k), centred at pixel (x, y)."""
    k, n, left, top = len(alpha), len(canvas), round(x - len(alpha) / 2), round(y - len(alpha) / 2)
    l, t, r, b = max(left, 0), max(top, 0), min(left + k, n), min(top + k, n)
    if l < r and t < b:  # else wholly outside
        cut, view = (slice(t - top, b - top), slice(l - left, r - left)), canvas[t:b, l:r]
        view += alpha[cut][..., None] * ((patch[cut] if np.ndim(patch) == 3 else patch) - view)


def shadow(canvas, x, y, r, light, strength):
    """Darkens canvas, in place, softly below an object of radius r pixels at (x, y), away from the light."""
    v, u = disc(r)
    alpha = strength * np.exp(-np.square(1.1 * u * u) - 4 * v * v)
    paste(canvas, np.zeros(3, np.float32), alpha, x - 0.3 * light[0] * r, y + 0.72 * r)


def draw_background(rng, n, clutter, light):
    """float32 (n, n, 3): a wall and a table or one surface, blurred shapes, objects. Knows nothing of the domain."""
    far = Image.fromarray((texture(rng, n, clutter) * 255).clip(0, 255).astype(np.uint8))
    n_shapes, n_objects = round(clutter * rng.integers(0, 6)), round(clutter * rng.integers(2, 7))
    (edge, tilt), table = rng.uniform([0.2, -0.12], [0.6, 0.12]).tolist(), texture(rng, n, clutter)
    for _ in range(n_shapes):
        x, y, r, sides = rng.uniform(0, 1), rng.uniform(0, 1), rng.uniform(0.06, 0.22), rng.integers(3, 6)
        corners = ring(x, y, r, r * rng.uniform(0.5, 1.5), *(rng.uniform(0, 360) + np.array([0, 360])))[::28 // sides]
        shape, colour = (corners, backdrop(rng)) if rng.random() < 0.6 else (ring(x, y, r, r), cool(rng))
        ImageDraw.Draw(far).polygon([(px * n, py * n) for px, py in shape], fill=tuple((255 * colour).astype(int)))
    far = far.filter(ImageFilter.GaussianBlur(n * float(rng.choice([0, 0.008, 0.02]))))  # out of focus, as in photos
    canvas, (y, x) = np.asarray(far, np.float32) / 255, mesh(n) / n
    if rng.random() < 0.65:  # a table edge; else one surface seen from above
        depth = (y - edge - tilt * (x - 0.5)) * n
        canvas += clutter * depth.clip(0, 1)[..., None] * (table * (0.85 + 0.2 * y[..., None]) - canvas)
        canvas *= 1 - 0.35 * clutter * (np.abs(depth - 0.012 * n) < 0.012 * n)[..., None]
    for y in sorted(rng.uniform(0.1, 1, n_objects).tolist()):  # from far to near
        x, r, angle, parts = rng.uniform(0, 1) * n, rng.uniform(0.09, 0.2) * n, rng.normal(0, 0.4), distractor(rng)
        k, ca, sa = 2 * round(1.45 * r) + 1, r * math.cos(angle), r * math.sin(angle)
        patch, alpha = Image.new('RGB', (k, k)), Image.new('L', (k, k))
        for points, colour in parts:
            points = [(k / 2 + px * ca - py * sa, k / 2 + px * sa + py * ca) for px, py in points]
            ImageDraw.Draw(patch).polygon(points, fill=tuple((255 * colour).clip(0, 255).astype(int)))
            ImageDraw.Draw(alpha).polygon(points, fill=255)
        gy, gx = np.gradient(np.asarray(alpha.filter(ImageFilter.GaussianBlur(0.22 * r)), np.float32) / 255)
        lit = 1 - (0.8 * r * (gx * light[0] + gy * light[1])).clip(-0.35, 0.3)  # its blurred outline serves as relief
        shadow(canvas, x, y * n, r, light, 0.45)
        patch, alpha = (np.asarray(image, np.float32) / 255 for image in (patch, alpha))
        paste(canvas, patch * lit[..., None], alpha, x, y * n)
    return canvas


def layout(rng):
    """One to three (x, y, r, tilt), far to near; their discs cover 0.14-0.36 of the image. Same for both domains."""
    gy, gx = (np.mgrid[:32, :32] + 0.5) / 32
    while True:  # redraw until nothing hides behind its neighbour and the area fits; three tries on average
        r = rng.uniform(0.7, 1, many := rng.choice([1, 2, 3], p=[0.45, 0.35, 0.2]))
        r *= math.sqrt(rng.uniform(0.13 + 0.02 * many, 0.38) / math.pi / (r ** 2).sum())
        x, y = rng.uniform(0.7 * r, 1 - 0.7 * r), rng.uniform(0.95 * r, 1 - 0.75 * r)  # cut a bit, never at the stem
        near = [math.hypot(x[i] - x[j], y[i] - y[j]) / (r[i] + r[j]) for i in range(many) for j in range(i)]
        area = np.any([(gx - x[i]) ** 2 + (gy - y[i]) ** 2 < r[i] ** 2 for i in range(many)], axis=0).mean()
        if min(near, default=1) > 0.85 and 0.14 <= area <= 0.36:
            return [(*map(float, (x[i], y[i], r[i])), rng.normal(0, 0.3)) for i in np.argsort(y + r)]


def draw_fruit(rng, domain, r, tilt, light):
    """One fruit of radius r pixels turned by tilt: RGB float32 (k, k, 3) and its cover (k, k) in [0, 1]."""
    (y, x), k, apple = disc(r), 2 * round(1.6 * r) + 1, domain == 'apple'
    u, v = x * math.cos(tilt) + y * math.sin(tilt), y * math.cos(tilt) - x * math.sin(tilt)  # the fruit's own axes
    rho, theta = np.hypot(u, v) + 1e-6, np.arctan2(u, -v)  # theta 0 points to the stem
    # nearly round, or heart-like: a dimple on top, a narrower bottom with a hint of one
    outline = (1.06 - 0.24 * np.exp(-(theta / 0.36) ** 2) - 0.05 * (1 - np.cos(theta)) - 0.05 * np.exp(
        -((np.abs(theta) - math.pi) / 0.25) ** 2)) if apple else 1 + 0.02 * np.cos(2 * theta + rng.uniform(0, 6.28))
    d, z = rho / outline, np.sqrt((1 - (rho / outline) * (rho / outline)).clip(0))
    facing = (x * light[0] + y * light[1]) * d / rho + z * light[2]  # the normal of a ball times the light
    gloss = np.exp(-((x - 0.55 * light[0]) ** 2 + (y - 0.55 * light[1]) ** 2) / (0.02 if apple else 0.035))
    if apple:
        red = rgb(*rng.uniform([-12, .82, .72], [5, .95, .92]))
        other = rgb(*rng.uniform([54, .55, .75], [90, .75, .88]))
        way, limit = rng.uniform(0, 6.28), rng.uniform(0.25, 1.5)  # where it is unripe, and from how far on
        streak = np.interp(np.arctan2(u, v + 0.95), np.linspace(-3.15, 3.15, 60), rng.uniform(-1, 1, 60))
        ripe = 1 / (1 + np.exp(7 * (u * math.cos(way) + v * math.sin(way) + 0.25 * streak - limit)))
        ripe *= 1 - 0.6 * np.exp(-(u / 0.3) ** 2 - ((v + 0.72) / 0.16) ** 2)  # greenish around the stem
        skin = other + ripe[..., None].astype(np.float32) * (red * (1 + 0.07 * streak[..., None]) - other)
        facing = facing - 0.45 * np.exp(-(u / 0.26) ** 2 - ((v + 0.78) / 0.1) ** 2)
    else:
        skin, pores = rgb(*rng.uniform([25, .88, .92], [35, .98, 1])), np.zeros((22, 3, 22, 3), np.float32)
        pores[np.arange(22)[:, None], rng.integers(3, size=(22, 22)), np.arange(22), rng.integers(3, size=(22, 22))] = 1
        pores = enlarge(pores.reshape(66, 66), k) * (0.3 + 0.7 * z)  # a dark dot somewhere in each cell of 3 x 3
        skin = skin * (1 - pores[..., None] * np.float32([0.16, 0.32, 0.3]))
        a, b, size, turn = rng.uniform([-0.35, -0.62, 0.13, 0], [0.35, -0.3, 0.19, 6.28]).tolist()
        nu, nv = u - a, (v - b) * 1.25
        far, star = np.hypot(nu, nv), size * (0.72 + 0.38 * np.cos(5 * np.arctan2(nu, nv) + turn))
        facing = facing - 0.22 * np.exp(-(far / size / 1.6) ** 2)
        skin += ((star - far) * r + 0.5).clip(0, 1)[..., None] * (rgb(rng.uniform(85, 115), 0.65, 0.45) - skin)
    colour, cover = skin * (0.42 + 0.68 * facing.clip(0, 1))[..., None], ((1 - d) * r * outline + 0.5).clip(0, 1)
    colour += ((0.75 if apple else 0.45) * gloss)[..., None] * (1 - colour)
    if apple:  # stem and leaf, over the body
        bend, high = rng.uniform(-0.25, 0.25), rng.uniform(1.12, 1.3)
        s = ((-v - 0.66) / (high - 0.66)).clip(0, 1)  # 0 at the foot, 1 at the tip
        stem = ((0.045 + 0.03 * s * s - np.abs(u - bend * s * s)) * r + 0.5).clip(0, 1) * (v < -0.66) * (v > -high)
        colour += stem[..., None] * (rgb(28, 0.55, 0.34) * (1.15 - 0.6 * (u - bend * s * s > 0.01)[..., None]) - colour)
        up, size, leafless = rng.uniform(0.05, 0.6), rng.uniform(0.5, 0.72), rng.random() < 0.2
        lu, lv = (u - bend * 0.3) * math.copysign(1, rng.random() - 0.5), -v - 0.95
        p = (lu * math.cos(up) + lv * math.sin(up)) / size
        q = lv * math.cos(up) - lu * math.sin(up) - 0.45 * p * (1 - p)
        leaf = ((0.68 * p * (1 - p) - np.abs(q)) * r + 0.5).clip(0, 1) * (p > 0) * (p < 1) * (not leafless)
        green = rgb(*rng.uniform([95, .6, .45], [130, .75, .65]))
        colour += leaf[..., None] * (green * (0.85 + 0.35 * (q > 0) + 0.35 * (np.abs(q) < 0.02))[..., None] - colour)
        cover = np.maximum(cover, np.maximum(stem, leaf))
    return colour.astype(np.float32), cover.astype(np.float32)


def draw_scene(config, domain, index, split='train'):
    """Image uint8 (H, W, 3) RGB and mask uint8 (H, W) in {0, 1}, 1 = fruit, of a scene of 'apple' or 'orange'."""
    # three streams, so that no draw for the fruit can shift the background or the layout
    key = [config['seed'], DOMAINS.index(domain), SPLITS.index(split), index]
    rng_back, rng_layout, rng_fruit = (np.random.default_rng(key + [part]) for part in range(3))
    size, scale = config['image_size'], max(2, 192 // config['image_size'])  # drawn larger by scale, then averaged
    n = size * scale
    sun = [*rng_layout.uniform([-0.75, -0.8], [0.75, -0.45]).tolist(), 0.75]  # to the right, down, to the viewer
    light = [c / math.hypot(*sun) for c in sun]
    canvas, mask = draw_background(rng_back, n, config['clutter'], light), np.zeros((n, n, 1), np.float32)
    for x, y, r, tilt in layout(rng_layout):
        shadow(canvas, x * n, y * n, r * n, light, 0.6)
        colour, cover = draw_fruit(rng_fruit, domain, r * n, tilt, light)
        paste(canvas, colour, cover, x * n, y * n)
        paste(mask, np.ones(1, np.float32), cover, x * n, y * n)
    canvas *= rng_layout.uniform(0.88, 1.1)  # exposure
    small = canvas.clip(0, 1).reshape(size, scale, size, scale, 3).mean((1, 3))
    mask = mask.reshape(size, scale, size, scale).mean((1, 3)) >= 0.5
    return (small * 255 + 0.5).astype(np.uint8), mask.astype(np.uint8)


def draw_rows(job):
    """Rows lo..hi-1 of 'trainA' for a job ('trainA', lo, hi, config): dict name of the array -> uint8 array."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    (name, lo, hi, config), kinds = job, 'x' if 'train' in job[0] else 'xm'
    scenes = zip(*(draw_scene(config, DOMAINS['AB'.index(name[-1])], i, name[:-1]) for i in range(lo, hi)))
    return {f'{name}_{k}.npy': np.stack(a) for k, a in zip(kinds, scenes)}


def stop_if_there(counts, files):
    """Returns if dst holds no set; else exits: with 0 if these settings made it and it is whole, else with 1."""
    if force or not os.path.exists(f'{dst}/meta.json'):
        return
    old = {}
    with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
        with open(f'{dst}/meta.json', encoding='utf-8') as file:
            old = dict(json.load(file)['config'])
    differ = []
    for key, value in config.items():
        if key not in ('dst', 'workers', 'force') and old.get(key) != value:
            differ.append(f'{key} {old.get(key)!r} -> {value!r}')
    for name in files:
        rows = 0
        with contextlib.suppress(OSError, EOFError, ValueError):
            rows = len(np.load(f'{dst}/{name}', mmap_mode='r'))
        if rows != counts[name.partition('_')[0]]:
            differ.append(f'{name} missing or damaged')
    if differ:
        sys.exit(f'{dst} holds another set ({", ".join(differ)}): --force=True redoes it, --dst= puts it elsewhere')
    print(f'already there: {dst}')
    sys.exit()


def draw_all(counts, files):
    """-> {name of a file: its array}, drawn by several processes."""
    jobs = []
    for split, n in counts.items():
        jobs += [(split, start, min(start + 20, n), config) for start in range(0, n, 20)]
    parts = {name: [] for name in files}
    total = sum(counts.values())
    done = 0
    started = time.time()
    shown = started
    # Workers do not hear Ctrl-C: this process ends them.
    with multiprocessing.Pool(workers or os.cpu_count(), signal.signal, (signal.SIGINT, signal.SIG_IGN)) as pool:
        # For this process, but not for workers, being ended is like Ctrl-C.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        results = pool.imap(draw_rows, jobs)
        for _, start, end, _ in jobs:
            # A worker that the system killed never answers.
            for name, rows in results.next(timeout=120).items():
                parts[name].append(rows)
            done += end - start
            if time.time() - shown > 2:
                shown = time.time()
                rate = done / (shown - started)
                print(f'{done}/{total} images | {rate:.0f}/s | eta {(total - done) / rate:.0f} s', flush=True)
    return {name: np.concatenate(parts.pop(name)) for name in files}


def write_set(arrays, meta):
    """Writes all to a temporary folder, then moves it into place, meta.json last: it says that all is complete."""
    for name, array in arrays.items():
        np.save(f'{temp}/{name}', array)
    with open(f'{temp}/meta.json', 'w', encoding='utf-8') as file:
        json.dump(meta, file, indent=1)
    # A mix of old and new must not look complete.
    with contextlib.suppress(FileNotFoundError):
        os.remove(f'{dst}/meta.json')
    for name in [*arrays, 'meta.json']:
        os.replace(f'{temp}/{name}', f'{dst}/{name}')


if __name__ == '__main__':
    sys.stdout.reconfigure(errors='backslashreplace')
    started = time.time()
    dst = os.path.abspath(dst)
    temp = f'{dst}/.tmp'
    if image_size % 8 or not 32 <= image_size <= 256:
        sys.exit(f'--image_size={image_size}: wants 32, 40, 48, ... 256')
    if clutter > 1:
        sys.exit(f'--clutter={clutter}: wants a number from 0 to 1')
    counts = {'trainA': n_train, 'trainB': n_train, 'testA': n_test, 'testB': n_test}
    files = [f'{split}_x.npy' for split in counts] + ['testA_m.npy', 'testB_m.npy']
    stop_if_there(counts, files)
    try:
        os.makedirs(temp, exist_ok=True)
        arrays = draw_all(counts, files)
        meta = {'dataset': 'toyfruit', 'label': 'unpaired', 'image_size': image_size, 'domains': DOMAINS,
                'counts': counts, 'made_by': shlex.join(['python', 'data/toyfruit/prepare.py', *sys.argv[1:]]),
                'config': config}
        write_set(arrays, meta)
    except (OSError, KeyboardInterrupt, multiprocessing.TimeoutError) as error:
        sys.exit(f'{dst}: stopped, no set was written: {str(error) or "interrupted, or a process died"}')
    finally:
        shutil.rmtree(temp, ignore_errors=True)
    print(f'{sum(counts.values())} images of {image_size} px in {dst}, {time.time() - started:.0f} s')
