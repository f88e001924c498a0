"""
Draws two unpaired domains, apples and oranges on cluttered backgrounds. No download. Stands in for apple2orange and
horse2zebra: a translator should repaint the fruit and leave the rest alone, and the test masks say which pixels are
fruit. Background, objects that lie around, light, and number, place, size and tilt of the fruit come from one and the
same random process in both domains; only the kind of fruit differs.

python data/toyfruit/prepare.py                                   # 64 px, 2 x 2000 train, 2 x 200 test
python data/toyfruit/prepare.py --image_size=128 --dst=data/toyfruit128
python data/toyfruit/prepare.py --clutter=0 --dst=data/toyfruit_plain   # plain backgrounds, an easier task
python data/toyfruit/prepare.py --n_train=200 --n_test=20 --force=True  # tiny, for smoke tests

Time on 2 cores: about 20 s at 64 px (56 MB), 40 s at 128 px (223 MB). Writes
trainA_x.npy testA_x.npy (apples) trainB_x.npy testB_x.npy (oranges)   uint8 (N, H, W, 3), RGB
testA_m.npy testB_m.npy                                                uint8 (N, H, W), 1 = fruit with stem and leaf
meta.json                                                              written last: with it the set is complete
"""

import colorsys
import contextlib
import difflib
import functools
import json
import math
import multiprocessing
import os
import shutil
import signal
import sys
import time

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

# -----------------------------------------------------------------------------
image_size = 64   # side of the square images in pixels, a multiple of 8 in 32..256; the same scenes at any size
n_train = 2000    # training images of each domain; fewer for a quick try, the first ones stay the same
n_test = 200      # test images of each domain, with masks; more for tighter localisation figures
clutter = 1.0     # 0: one plain colour behind the fruit, 1: full textures and objects; lower if attention finds nothing
seed = 0          # another seed, other images; every image has its own stream of random numbers
workers = 0       # processes; 0: one per core, 1: none besides this one. The result does not depend on it
dst = os.path.dirname(os.path.abspath(__file__))  # folder the arrays go to; elsewhere to keep several variants
force = False     # True: redo what is already there with other settings
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

DOMAINS = ['apple', 'orange']  # A, B
SPLITS = ['train', 'test']

# Lengths are fractions of the image side and colours are in [0, 1], so that no random draw depends on the image size.


def rgb(h, s, v):
    """float32 (3,) RGB in [0, 1] of a hue in degrees, saturation and value in [0, 1]."""
    return np.float32(colorsys.hsv_to_rgb(h / 360 % 1, s, v))


def cool(rng, s=(0.1, 0.6), v=(0.3, 0.9)):
    """A random RGB from green over blue to violet: what may be round without looking like a fruit of ours."""
    return rgb(rng.uniform(75, 295), rng.uniform(*s), rng.uniform(*v))


def backdrop(rng):
    """A random RGB for background: cool, or a dull brown or beige. Saturated reds and oranges are left to the fruit."""
    brown = rgb(rng.uniform(20, 45), rng.uniform(0.15, 0.42), rng.uniform(0.3, 0.75))
    return brown if rng.random() < 0.35 else cool(rng)


def enlarge(small, n):
    """float32 (rows, cols) in [0, 1] smoothly enlarged to (n, n)."""
    return np.asarray(Image.fromarray(small).resize((n, n), Image.BICUBIC)).clip(0, 1)


def noise(rng, n, cols, rows):
    """float32 (n, n) in [0, 1]: smooth blobs, cols across and rows down."""
    return enlarge(rng.random((rows, cols), dtype=np.float32), n)


def texture(rng, n, clutter):
    """float32 (n, n, 3): one of six surfaces in two random colours; clutter 0 leaves the first colour alone."""
    a, b, strength, kind = backdrop(rng), backdrop(rng), rng.uniform(0.25, 0.9), rng.integers(6)
    angle, freq, phase = rng.uniform(0, math.pi), rng.uniform(3, 11), rng.uniform(0, 6.28)
    y, x = np.mgrid[:n, :n].astype(np.float32) / n
    t, u = x * math.cos(angle) + y * math.sin(angle), y * math.cos(angle) - x * math.sin(angle)
    if kind == 0:    # gradient
        mix = t
    elif kind == 1:  # stripes
        mix = (np.sin(6.28 * freq * t + phase) * 3 + 0.5).clip(0, 1)
    elif kind == 2:  # checker
        mix = (np.sin(3.14 * freq * t + phase) * np.sin(3.14 * freq * u) * 9 + 0.5).clip(0, 1)
    elif kind == 3:  # foliage, plaster: three octaves
        mix = 0.5 * noise(rng, n, 4, 4) + 0.3 * noise(rng, n, 9, 9) + 0.3 * noise(rng, n, 24, 24)
    elif kind == 4:  # cloth: a fine weave
        mix = 0.5 + 0.25 * np.sin(6.28 * 2 * freq * t) + 0.25 * np.sin(6.28 * 2 * freq * u)
    else:            # wood: rings bent by slow noise, fine grain along them, dark gaps between the boards
        wide = rng.random() < 0.7  # boards run across the image
        bend, grain = noise(rng, n, 2, 5), noise(rng, n, 5, 48)
        bend, grain, across = (bend, grain, y) if wide else (bend.T, grain.T, x)
        mix = 0.35 + 0.35 * np.sin(6.28 * freq * (across + 0.25 * bend)) + 0.4 * (grain - 0.5)
        mix += 1.2 * (np.abs((across * freq / 2 + phase) % 1 - 0.5) < 0.03)
        a, strength = rgb(rng.uniform(22, 40), rng.uniform(0.25, 0.5), rng.uniform(0.5, 0.8)), strength / 2 + 0.3
        b = a * 0.5
    return a + (clutter * strength * mix.clip(0, 1))[..., None] * (b - a)


def ring(x, y, rx, ry, a0=0.0, a1=360.0):
    """List of points (x, y) of an ellipse, or of its arc from a0 to a1 degrees (0 is right, 90 is down)."""
    a = np.radians(np.linspace(a0, a1, 28))
    return list(zip(x + rx * np.cos(a), y + ry * np.sin(a)))


def distractor(rng):
    """A random object that is no fruit of ours, as polygons to draw in order: list of (points in [-1, 1]^2, RGB)."""
    kind, c, white = rng.integers(8), cool(rng, (0.35, 0.8), (0.35, 0.85)), rgb(210, 0.05, 0.93)
    if kind == 0:    # banana
        c, tip = rgb(rng.uniform(48, 56), 0.78, 0.92), rgb(35, 0.6, 0.3)
        return [(ring(0, -0.5, 0.97, 0.98, 15, 165) + ring(0, -0.6, 0.9, 0.6, 165, 15), c),
                (ring(0, -0.55, 0.93, 0.78, 25, 155) + ring(0, -0.55, 0.93, 0.74, 155, 25), c * 0.8),
                (ring(-0.92, -0.31, 0.09, 0.11), tip), (ring(0.92, -0.31, 0.09, 0.11), tip)]
    if kind == 1:    # green pear
        t = np.linspace(0, 6.28, 40)
        body = list(zip(np.sin(t) * (0.46 - 0.2 * np.cos(t)), 0.1 - 0.8 * np.cos(t)))
        return [([(-0.04, -0.6), (0.04, -0.6), (0.14, -1), (0.05, -1)], rgb(30, 0.6, 0.3)),
                (body, rgb(rng.uniform(68, 95), 0.62, rng.uniform(0.6, 0.8)))]
    if kind == 2:    # purple grapes
        c, out = rgb(rng.uniform(265, 295), 0.55, rng.uniform(0.35, 0.55)), []
        out += [([(-0.04, -0.9), (0.04, -0.9), (0.04, -0.5), (-0.04, -0.5)], rgb(90, 0.5, 0.4))]
        for row, many in enumerate((3, 4, 3, 2, 1)):
            for i in range(many):
                x, y = (i - (many - 1) / 2) * 0.42 + rng.uniform(-0.05, 0.05), -0.5 + row * 0.32
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
        lines = [([(-0.3, y), (w, y), (w, y + 0.08), (-0.3, y + 0.08)], white) for y, w in ((-0.6, 0.5), (-0.4, 0.3))]
        c = backdrop(rng) if rng.random() < 0.4 else c
        return [([(-0.68, -0.92), (0.72, -0.92), (0.72, 1), (-0.68, 1)], white * 0.9),
                ([(-0.7, -1), (0.66, -1), (0.66, 0.92), (-0.7, 0.92)], c),
                ([(-0.7, -1), (-0.5, -1), (-0.5, 0.92), (-0.7, 0.92)], c * 0.7)] + lines
    if kind == 6:    # box, often cardboard
        c = rgb(33, 0.4, rng.uniform(0.6, 0.75)) if rng.random() < 0.5 else c
        return [([(-0.8, -0.4), (0, 0), (0, 0.9), (-0.8, 0.5)], c * 0.85),
                ([(0.8, -0.4), (0, 0), (0, 0.9), (0.8, 0.5)], c * 0.65),
                ([(-0.8, -0.4), (0, -0.8), (0.8, -0.4), (0, 0)], c),
                ([(-0.48, -0.56), (-0.32, -0.64), (0.48, -0.24), (0.32, -0.16)], c * 0.6 + 0.35)]
    c = rgb(rng.uniform(95, 140), 0.6, rng.uniform(0.35, 0.6))  # leaves: green ones also lie around without an apple
    leaf = ring(0, 0.9, 1, 1, 205, 335) + ring(0, -0.05, 0.9, 0.9, 25, 155)[4:-4]
    small = [(x * 0.6 - 0.2, y * 0.6 - 0.5) for x, y in leaf]
    return [(small, c * 0.8), (leaf, c), ([(-0.85, 0.44), (0.85, 0.42), (0.85, 0.46)], c * 0.5 + 0.4)]


def paste(canvas, patch, alpha, x, y):
    """Blends patch (k, k, 3) or one RGB into canvas (n, n, c), in place, by alpha (k, k), centred at pixel (x, y)."""
    k, n = alpha.shape[0], canvas.shape[0]
    left, top = round(x - k / 2), round(y - k / 2)
    l, t, r, b = max(left, 0), max(top, 0), min(left + k, n), min(top + k, n)
    if l < r and t < b:  # else wholly outside
        cut = (slice(t - top, b - top), slice(l - left, r - left))
        view, patch = canvas[t:b, l:r], patch[cut] if np.ndim(patch) == 3 else patch
        view += alpha[cut][..., None] * (patch - view)


def shadow(canvas, x, y, r, light, strength):
    """Darkens canvas, in place, softly below an object of radius r pixels at (x, y), away from the light."""
    k = 2 * round(1.6 * r) + 1
    v, u = (np.mgrid[:k, :k].astype(np.float32) - k // 2) / r
    paste(canvas, np.zeros(3, np.float32), strength * np.exp(-np.square(1.1 * u * u) - 4 * v * v),
          x - 0.3 * light[0] * r, y + 0.72 * r)


def draw_background(rng, n, clutter, light):
    """float32 (n, n, 3): a wall and a table or one surface, blurred shapes, objects. Knows nothing of the domain."""
    canvas = texture(rng, n, clutter)
    n_shapes, n_objects = round(clutter * rng.integers(0, 6)), round(clutter * rng.integers(2, 7))
    edge, tilt, table = rng.uniform(0.2, 0.6), rng.uniform(-0.12, 0.12), texture(rng, n, clutter)
    far = Image.fromarray((canvas * 255).clip(0, 255).astype(np.uint8))
    pen = ImageDraw.Draw(far)
    for _ in range(n_shapes):
        x, y, r, sides = rng.uniform(0, 1), rng.uniform(0, 1), rng.uniform(0.06, 0.22), rng.integers(3, 6)
        corners = ring(x, y, r, r * rng.uniform(0.5, 1.5), *(rng.uniform(0, 360) + np.array([0, 360])))[::28 // sides]
        shape, colour = (corners, backdrop(rng)) if rng.random() < 0.6 else (ring(x, y, r, r), cool(rng))
        pen.polygon([(px * n, py * n) for px, py in shape], fill=tuple((255 * colour).astype(int)))
    far = far.filter(ImageFilter.GaussianBlur(n * float(rng.choice([0, 0.008, 0.02]))))  # out of focus, as in photos
    canvas = np.asarray(far, np.float32) / 255
    if rng.random() < 0.65:  # a table edge; else one surface seen from above
        y, x = np.mgrid[:n, :n].astype(np.float32) / n
        depth = (y - edge - tilt * (x - 0.5)) * n
        canvas += clutter * depth.clip(0, 1)[..., None] * (table * (0.85 + 0.2 * y[..., None]) - canvas)
        canvas *= 1 - 0.35 * clutter * (np.abs(depth - 0.012 * n) < 0.012 * n)[..., None]
    for y in sorted(rng.uniform(0.1, 1, n_objects).tolist()):  # from far to near
        x, r, angle, parts = rng.uniform(0, 1) * n, rng.uniform(0.09, 0.2) * n, rng.normal(0, 0.4), distractor(rng)
        k = 2 * round(1.45 * r) + 1
        patch, alpha = Image.new('RGB', (k, k)), Image.new('L', (k, k))
        pens, ca, sa = (ImageDraw.Draw(patch), ImageDraw.Draw(alpha)), r * math.cos(angle), r * math.sin(angle)
        for points, colour in parts:
            points = [(k / 2 + px * ca - py * sa, k / 2 + px * sa + py * ca) for px, py in points]
            pens[0].polygon(points, fill=tuple((255 * colour).clip(0, 255).astype(int)))
            pens[1].polygon(points, fill=255)
        soft = np.asarray(alpha.filter(ImageFilter.GaussianBlur(0.22 * r)), np.float32) / 255
        gy, gx = np.gradient(soft)  # the slope of the blurred outline serves as relief
        lit = 1 - (0.8 * r * (gx * light[0] + gy * light[1])).clip(-0.35, 0.3)
        shadow(canvas, x, y * n, r, light, 0.45)
        patch, alpha = np.asarray(patch, np.float32) / 255, np.asarray(alpha, np.float32) / 255
        paste(canvas, patch * lit[..., None], alpha, x, y * n)
    return canvas


def layout(rng):
    """One to three (x, y, r, tilt), far to near; their discs cover 0.14-0.36 of the image. Same for both domains."""
    gy, gx = (np.mgrid[:32, :32] + 0.5) / 32
    while True:  # redraw until nothing hides behind its neighbour and the area fits; three tries on average
        many = rng.choice([1, 2, 3], p=[0.45, 0.35, 0.2])
        r = rng.uniform(0.7, 1, many)
        r *= math.sqrt(rng.uniform(0.13 + 0.02 * many, 0.38) / math.pi / (r ** 2).sum())
        x, y = rng.uniform(0.7 * r, 1 - 0.7 * r), rng.uniform(0.95 * r, 1 - 0.75 * r)  # cut a bit, never at the stem
        near = [math.hypot(x[i] - x[j], y[i] - y[j]) / (r[i] + r[j]) for i in range(many) for j in range(i)]
        area = np.any([(gx - x[i]) ** 2 + (gy - y[i]) ** 2 < r[i] ** 2 for i in range(many)], axis=0).mean()
        if min(near, default=1) > 0.85 and 0.14 <= area <= 0.36:
            return [(*map(float, (x[i], y[i], r[i])), rng.normal(0, 0.3)) for i in np.argsort(y + r)]


def draw_fruit(rng, domain, r, tilt, light):
    """One fruit of radius r pixels turned by tilt: RGB float32 (k, k, 3) and its cover (k, k) in [0, 1]."""
    k = 2 * round(1.6 * r) + 1
    y, x = (np.mgrid[:k, :k].astype(np.float32) - k // 2) / r
    u, v = x * math.cos(tilt) + y * math.sin(tilt), y * math.cos(tilt) - x * math.sin(tilt)  # the fruit's own axes
    rho, theta = np.hypot(u, v) + 1e-6, np.arctan2(u, -v)  # theta 0 points to the stem
    if domain == 'apple':  # heart-like: a dimple on top, a narrower bottom with a hint of one
        outline = 1.06 - 0.24 * np.exp(-(theta / 0.36) ** 2) - 0.05 * (1 - np.cos(theta))
        outline -= 0.05 * np.exp(-((np.abs(theta) - math.pi) / 0.25) ** 2)
    else:                  # nearly round
        outline = 1 + 0.02 * np.cos(2 * theta + rng.uniform(0, 6.28))
    d = rho / outline
    z = np.sqrt((1 - d * d).clip(0))
    facing = (x * light[0] + y * light[1]) * d / rho + z * light[2]  # the normal of a ball times the light
    gloss = np.exp(-((x - 0.55 * light[0]) ** 2 + (y - 0.55 * light[1]) ** 2) / (0.02 if domain == 'apple' else 0.035))
    if domain == 'apple':
        red, other = rgb(rng.uniform(-12, 5), rng.uniform(0.82, 0.95), rng.uniform(0.72, 0.92)), rgb(
            rng.uniform(54, 90), rng.uniform(0.55, 0.75), rng.uniform(0.75, 0.88))
        way, limit = rng.uniform(0, 6.28), rng.uniform(0.25, 1.5)  # where it is unripe, and from how far on
        streak = np.interp(np.arctan2(u, v + 0.95), np.linspace(-3.15, 3.15, 60), rng.uniform(-1, 1, 60))
        ripe = 1 / (1 + np.exp(7 * (u * math.cos(way) + v * math.sin(way) + 0.25 * streak - limit)))
        ripe *= 1 - 0.6 * np.exp(-(u / 0.3) ** 2 - ((v + 0.72) / 0.16) ** 2)  # greenish around the stem
        skin = other + ripe[..., None].astype(np.float32) * (red * (1 + 0.07 * streak[..., None]) - other)
        facing = facing - 0.45 * np.exp(-(u / 0.26) ** 2 - ((v + 0.78) / 0.1) ** 2)
        gloss = 0.75 * gloss
    else:
        skin = rgb(rng.uniform(25, 35), rng.uniform(0.88, 0.98), rng.uniform(0.92, 1))
        pores = np.zeros((22, 3, 22, 3), np.float32)  # one dark dot somewhere in each cell of 3 x 3
        pores[np.arange(22)[:, None], rng.integers(3, size=(22, 22)), np.arange(22), rng.integers(3, size=(22, 22))] = 1
        pores = enlarge(pores.reshape(66, 66), k) * (0.3 + 0.7 * z)
        skin = skin * (1 - pores[..., None] * np.float32([0.16, 0.32, 0.3]))
        a, b, size = rng.uniform(-0.35, 0.35), rng.uniform(-0.62, -0.3), rng.uniform(0.13, 0.19)
        nu, nv, turn = u - a, (v - b) * 1.25, rng.uniform(0, 6.28)
        far, star = np.hypot(nu, nv), size * (0.72 + 0.38 * np.cos(5 * np.arctan2(nu, nv) + turn))
        facing = facing - 0.22 * np.exp(-(far / size / 1.6) ** 2)
        skin += ((star - far) * r + 0.5).clip(0, 1)[..., None] * (rgb(rng.uniform(85, 115), 0.65, 0.45) - skin)
        gloss = 0.45 * gloss
    colour = skin * (0.42 + 0.68 * facing.clip(0, 1))[..., None]
    colour += gloss[..., None] * (1 - colour)
    cover = ((1 - d) * r * outline + 0.5).clip(0, 1)
    if domain == 'apple':  # stem and leaf, over the body
        bend, high = rng.uniform(-0.25, 0.25), rng.uniform(1.12, 1.3)
        s = ((-v - 0.66) / (high - 0.66)).clip(0, 1)  # 0 at the foot, 1 at the tip
        wide = 0.045 + 0.03 * s * s
        stem = ((wide - np.abs(u - bend * s * s)) * r + 0.5).clip(0, 1) * (v < -0.66) * (v > -high)
        colour += stem[..., None] * (rgb(28, 0.55, 0.34) * (1.15 - 0.6 * (u - bend * s * s > 0.01)[..., None]) - colour)
        up, size, leafless = rng.uniform(0.05, 0.6), rng.uniform(0.5, 0.72), rng.random() < 0.2
        lu, lv = (u - bend * 0.3) * math.copysign(1, rng.random() - 0.5), -v - 0.95
        p = (lu * math.cos(up) + lv * math.sin(up)) / size
        q = lv * math.cos(up) - lu * math.sin(up) - 0.45 * p * (1 - p)
        leaf = ((0.68 * p * (1 - p) - np.abs(q)) * r + 0.5).clip(0, 1) * (p > 0) * (p < 1) * (not leafless)
        green = rgb(rng.uniform(95, 130), rng.uniform(0.6, 0.75), rng.uniform(0.45, 0.65))
        tone = (0.85 + 0.35 * (q > 0) + 0.35 * (np.abs(q) < 0.02))[..., None]
        colour += leaf[..., None] * (green * tone - colour)
        cover = np.maximum(cover, np.maximum(stem, leaf))
    return colour.astype(np.float32), cover.astype(np.float32)


def draw_scene(domain, index, split='train', image_size=64, clutter=1.0, seed=0):
    """
    One scene: image uint8 (image_size, image_size, 3) RGB and mask uint8 (image_size, image_size) in {0, 1}, 1 = fruit.

    domain 'apple' or 'orange' and split 'train' or 'test' (ValueError otherwise); index >= 0; clutter in [0, 1]. The
    arguments alone decide the result, and a scene is the same at every image_size.
    """
    # three streams, so that no draw for the fruit can shift the background or the layout
    key = [seed, DOMAINS.index(domain), SPLITS.index(split), index]
    rng_back, rng_layout, rng_fruit = (np.random.default_rng(key + [part]) for part in range(3))
    scale = max(2, 192 // image_size)  # drawn this much larger, then averaged
    n = image_size * scale
    lx, ly = rng_layout.uniform(-0.75, 0.75), rng_layout.uniform(-0.8, -0.45)  # from above, left or right
    light = [c / math.hypot(lx, ly, 0.75) for c in (lx, ly, 0.75)]  # unit length, to the right, down, to the viewer
    canvas, mask = draw_background(rng_back, n, clutter, light), np.zeros((n, n, 1), np.float32)
    for x, y, r, tilt in layout(rng_layout):
        shadow(canvas, x * n, y * n, r * n, light, 0.6)
        colour, cover = draw_fruit(rng_fruit, domain, r * n, tilt, light)
        paste(canvas, colour, cover, x * n, y * n)
        paste(mask, np.ones(1, np.float32), cover, x * n, y * n)
    canvas *= rng_layout.uniform(0.88, 1.1)  # exposure
    small = canvas.clip(0, 1).reshape(image_size, scale, image_size, scale, 3).mean((1, 3))
    mask = mask.reshape(image_size, scale, image_size, scale).mean((1, 3))
    return (small * 255 + 0.5).astype(np.uint8), (mask >= 0.5).astype(np.uint8)


def draw_rows(job, image_size, clutter, seed):
    """One piece of work for a process. job ('trainA', first, last) -> images (n, H, W, 3), masks (n, H, W), uint8."""
    name, first, last = job
    scenes = [draw_scene(DOMAINS['AB'.index(name[-1])], i, name[:-1], image_size, clutter, seed)
              for i in range(first, last)]
    return [np.stack(part) for part in zip(*scenes)]


def init_worker():
    """Leaves Ctrl-C to the main process, which then ends the others: one line instead of a traceback from each."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


if __name__ == '__main__':
    for ok, problem in (
        (32 <= image_size <= 256 and image_size % 8 == 0, f"--image_size={image_size}: wants a multiple of 8, 32..256"),
        (n_train >= 1 and n_test >= 1, f"--n_train={n_train} --n_test={n_test}: both want at least 1"),
        (0 <= clutter <= 1, f"--clutter={clutter}: wants a number from 0 (plain) to 1 (cluttered)"),
        (seed >= 0 and workers >= 0, f"--seed={seed} --workers={workers}: neither may be negative"),
        (dst and (os.path.isdir(dst) or not os.path.exists(dst)), f"--dst={dst}: wants a folder, new or existing"),
    ):
        if not ok:
            sys.exit(problem)

    # what will be written: name -> shape
    counts = {'trainA': n_train, 'trainB': n_train, 'testA': n_test, 'testB': n_test}
    shapes = {f'{name}_x': (n, image_size, image_size, 3) for name, n in counts.items()}
    shapes |= {f'{name}_m': (n, image_size, image_size) for name, n in counts.items() if name.startswith('test')}
    settings = {k: v for k, v in config.items() if k not in ('workers', 'dst', 'force')}  # what the result depends on
    flags = ' '.join(f'--{k}={v}' for k, v in settings.items())
    meta = {'dataset': 'toyfruit', 'label': 'unpaired', 'image_size': image_size, 'domains': DOMAINS, 'counts': counts,
            'made_by': f'python data/toyfruit/prepare.py {flags}', 'config': config}
    final = {name: os.path.join(dst, f'{name}.npy') for name in shapes}
    temp = {name: os.path.join(dst, f'.{name}.npy.tmp') for name in shapes}
    meta_path, meta_temp = os.path.join(dst, 'meta.json'), os.path.join(dst, '.meta.json.tmp')

    if os.path.exists(meta_path):
        try:
            old = json.load(open(meta_path))
            name, old = old['dataset'], dict(old.get('config', {}))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            name, old = 'toyfruit', {}
        if name != 'toyfruit':  # not ours to replace, not even with --force=True
            sys.exit(f"{dst} holds another data set ({name}): choose another folder with --dst=")
        wrong = [f'{k} is {old.get(k)}, not {v}' for k, v in settings.items() if old.get(k) != v]
        wrong += [f'{os.path.basename(path)} is missing' for path in final.values() if not os.path.exists(path)]
        if not force:
            if wrong:
                sys.exit(f"{dst}: {', '.join(wrong)}; --force=True redoes it, --dst= puts it elsewhere")
            print(f"already there: {dst} ({flags})")
            sys.exit()

    def tidy():
        for path in (*temp.values(), meta_temp):
            with contextlib.suppress(OSError):  # most of the time there is none
                os.remove(path)

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # being ended is like Ctrl-C
    t0, pool = time.time(), None
    try:
        os.makedirs(dst, exist_ok=True)
        tidy()  # after an interrupted run
        size = sum(math.prod(shape) + 128 for shape in shapes.values())
        free = shutil.disk_usage(dst).free
        if free < size + 2**20:
            sys.exit(f"{dst}: {size / 1e6:.0f} MB are needed and {free / 1e6:.0f} MB are free: "
                     f"make room, or choose a smaller --image_size= or --n_train=, or another --dst=")
        arrays = {}
        for name, shape in shapes.items():
            arrays[name] = np.lib.format.open_memmap(temp[name], mode='w+', dtype=np.uint8, shape=shape)
            if hasattr(os, 'posix_fallocate'):  # a full disk shall be an error here, not a crash while writing
                with open(temp[name], 'r+b') as f:
                    os.posix_fallocate(f.fileno(), 0, os.path.getsize(temp[name]))

        jobs = [(name, i, min(i + 20, n)) for name, n in counts.items() for i in range(0, n, 20)]
        draw = functools.partial(draw_rows, image_size=image_size, clutter=clutter, seed=seed)
        n_workers = min(workers or os.cpu_count() or 1, len(jobs))
        if n_workers > 1:
            pool = multiprocessing.Pool(n_workers, init_worker)
        results = pool.imap(draw, jobs) if pool else map(draw, jobs)
        done, total, shown = 0, sum(counts.values()), t0
        print(f"drawing {total} images of {image_size} px to {dst}, processes: {n_workers}", flush=True)
        for name, first, last in jobs:
            # a process that the system killed never answers: better an error than to wait for ever
            images, masks = results.next(timeout=300) if pool else next(results)
            arrays[f'{name}_x'][first:last] = images
            if f'{name}_m' in arrays:
                arrays[f'{name}_m'][first:last] = masks
            done += last - first
            if time.time() - shown > 2:
                shown, speed = time.time(), done / (time.time() - t0)
                print(f"{done}/{total} | {speed:.0f} images/s | eta {(total - done) / speed:.0f} s", flush=True)

        for array in arrays.values():
            array.flush()
        del array, arrays  # Windows renames no open file
        with open(meta_temp, 'w') as f:
            json.dump(meta, f, indent=1)
        if os.path.exists(meta_path):  # --force: a mix of old and new must not look complete
            os.remove(meta_path)
        for name in shapes:
            os.replace(temp[name], final[name])
        os.replace(meta_temp, meta_path)  # last: with it the set is complete
    except (OSError, KeyboardInterrupt, multiprocessing.TimeoutError) as e:
        if pool:
            pool.terminate()
        tidy()
        sys.exit(f"{dst}: stopped, no set was written: {str(e) or 'interrupted, or a process died'}")
    if pool:
        pool.close()
        pool.join()
    for name, n in counts.items():
        print(f"{name} ({DOMAINS['AB'.index(name[-1])]}): {n} images")
    print(f"{dst}: {size / 1e6:.0f} MB in {time.time() - t0:.0f} s")
