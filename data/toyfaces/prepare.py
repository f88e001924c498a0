"""
Draws the toyfaces set: cartoon portraits with CelebA's attributes and the region of every attribute. No download.

Every face is drawn with Pillow at two to four times its size and reduced. All measures are relative to the face, so a
seed draws the same people at every image_size, and each image has its own random streams, so the number of worker
processes changes nothing. What is drawn first are the parameters of the person, all of them, whatever the labels are:
draw_face(..., label=...) can therefore draw the same person with another attribute.

    python data/toyfaces/prepare.py                                # 22,000 images of 64 px, CelebA-like frequencies
    python data/toyfaces/prepare.py --image_size=32 --balance=1    # small and balanced: what a first training wants
    python data/toyfaces/prepare.py --clutter=0.7 --dst=/tmp/faces # busy backgrounds, elsewhere

Takes about 45 s on 2 cores and 0.4 GB of disk at the defaults. Writes to dst: {train,val,test}_x.npy uint8
(N, H, W, 3) RGB, {train,val,test}_y.npy uint8 (N, 15) in {0, 1}, {val,test}_m.npy uint8 (N, 15, H, W) in {0, 1} and,
last, meta.json. Prints how often each attribute came out.
"""

import colorsys
import difflib
import functools
import json
import multiprocessing
import os
import shlex
import shutil
import signal
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

# -----------------------------------------------------------------------------
# what is drawn
image_size = 64   # side in pixels, a multiple of 8 from 32 to 256: 32 for tests, 64 for demos, 128 as the paper's crops
n_train = 20000   # images for training; 2,000 are enough to see a training run start, regions are not stored for these
n_val = 1000      # images for choosing settings, with regions
n_test = 1000     # images for reported numbers, with regions; raise it for FID, which wants 2,048 or more
balance = 0.0     # 0: as rare as in CelebA (Bald 2 %, Mustache 4 %); 1: all near 0.3 where exclusions allow, so that a
                  # short training sees enough of each; between: interpolated
clutter = 0.0     # 0: plain muted backgrounds; up to 1: ever more, stronger and more colourful shapes behind the
                  # person, to see whether a model looks away from the face. The person drawn from a seed stays the same
seed = 1          # another seed, other people
# where and how
dst = os.path.dirname(os.path.abspath(__file__))  # folder for the arrays; the training scripts look in the default one
workers = 0       # processes; 0: one per core. Does not change the images
force = False     # True: redo a set that is already there with other settings
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

# attribute: (frequency at balance 0, at balance 1, share of it that falls on males at balance 0, at balance 1).
# The paper's 14 attributes and Male, in the order of the columns of *_y.npy. Bald and the hair colours add to < 1.
FREQ = {
    'Goatee':       (.06, .28, 1.0, 1.0),
    'Rosy_Cheeks':  (.07, .30, .10, .40),
    'Eyeglasses':   (.07, .30, .65, .50),
    'Mustache':     (.04, .28, 1.0, 1.0),
    'Blond_Hair':   (.15, .20, .10, .40),
    'Pale_Skin':    (.05, .30, .30, .50),
    'Heavy_Makeup': (.38, .30, .022, .10),
    'Brown_Hair':   (.20, .20, .35, .48),
    'Gray_Hair':    (.04, .18, .80, .60),
    'Bald':         (.022, .12, .97, .85),
    'Straight_Hair': (.21, .33, .45, .50),
    'Black_Hair':   (.24, .22, .50, .50),
    'Wearing_Hat':  (.05, .27, .65, .50),
    'Wavy_Hair':    (.32, .33, .20, .40),
    'Male':         (.42, .50, 1.0, 1.0),
}
ATTRS = list(FREQ)
COLORS = ['Black_Hair', 'Blond_Hair', 'Brown_Hair', 'Gray_Hair']
EXCLUSIVE = [COLORS + ['Bald'], ['Straight_Hair', 'Wavy_Hair', 'Bald']]
SPLITS = {'train': 0, 'val': 1, 'test': 2}

HAIR = {'Black_Hair': (26, 22, 26), 'Blond_Hair': (236, 198, 110), 'Brown_Hair': (88, 50, 26),
        'Gray_Hair': (172, 174, 180)}
OTHER_HAIR = [(186, 70, 28), (186, 70, 28), (166, 48, 36), (200, 92, 40), (146, 62, 128), (54, 120, 132)]  # or dyed
SKIN = [(230, 182, 146), (212, 158, 116), (172, 118, 82), (160, 110, 80)]  # far from pale even in the brightest light
PALE = (253, 233, 224)
SHADOW = [(70, 80, 200), (140, 60, 170), (40, 140, 130), (60, 50, 70)]  # eye shadow
LIPS = [(200, 20, 50), (190, 20, 110), (130, 15, 60)]  # lipstick
FRAMES = [(25, 25, 30), (40, 40, 90), (130, 20, 30), (90, 50, 20), (235, 225, 200), (215, 170, 60)]
EYES = [(70, 45, 30), (50, 90, 150), (60, 110, 70), (110, 80, 40)]

# Everything that varies besides the labels, uniform between two bounds. Lengths: half the width of the face is 1.
RANGES = dict(
    # pose and light
    cx=(.475, .525), cy=(.51, .55), scale=(.28, .315), tilt=(-.16, .16), yaw=(-.16, .16), pitch=(-.05, .05),
    skin=(0, 1), skin2=(-6, 6), light=(-1, 1), gain=(.94, 1.04), warm=(-.02, .02),
    # the face; jaw, brow and lip mean another range for males
    jaw=(0, 1), brow=(0, 1), lip=(0, 1), eye_d=(.40, .46), eye_w=(.21, .26), eye_h=(.09, .145), eye_c=(0, 1),
    gaze=(-.05, .05), brow_v=(0, .06), brow_a=(-.05, .04), nose_w=(.13, .2), nose_v=(.3, .38), mouth_w=(.32, .44),
    smile=(-.02, .14), open=(-.1, .14), lid=(0, 1), lipstick=(0, 1),
    # hair
    hair=(0, 1), shade=(.88, 1.12), hair_len=(0, 1), length=(0, 1), vol=(.1, .18), part=(-.5, .5), bangs=(0, 1),
    bun=(0, 1), wave=(.13, .17), wave_n=(.40, .52),
    # glasses, beard, cheeks, hat
    frame=(0, 1), lens_w=(.30, .35), lens_h=(.24, .32), lens_n=(2, 4), tint=(0, 1), goat_w=(.25, .33),
    goat_v=(.90, .96), must_w=(.36, .46), must_d=(0, .10), cheek_w=(.24, .29), cheek_h=(.17, .21),
    hat=(0, 1), hat_h=(0, 1), hat_s=(.35, .85), hat_v=(.3, .9), band=(0, 1), pom=(0, 1),
    # clothes and background
    cloth_h=(0, 1), cloth_s=(.15, .6), cloth_v=(.3, .85),
    bg_h=(0, 1), bg_s=(.02, .10), bg_v=(.5, .8), bg_g=(-.07, .07))

NONE, CLOTH, NECK, FACE, FEATURE, HAIR_ID, HAT_ID = range(7)  # what is in front, pixel by pixel


def lerp(lo, hi, t):
    """lo at t = 0, hi at t = 1; numbers, or colours, which come back as tuples of ints."""
    return lo + (hi - lo) * t if np.isscalar(lo) else tuple(int(a + (b - a) * t) for a, b in zip(lo, hi))


def hsv(h, s, v):
    """Hue, saturation, value in [0, 1] -> (r, g, b) in 0..255."""
    return tuple(int(255 * x) for x in colorsys.hsv_to_rgb(h, s, v))


def pick(options, t):
    """The option at t in [0, 1)."""
    return options[int(t * len(options))]


def oval(u, v, w, h, n=2., lo=0., hi=2 * np.pi, k=32):
    """(k, 2) points of a superellipse with half axes w and h about (u, v), from angle lo to hi (down is pi/2)."""
    t = np.linspace(lo, hi, k)
    c, s = np.cos(t), np.sin(t)
    return np.stack([u + w * np.sign(c) * np.abs(c) ** (2 / n), v + h * np.sign(s) * np.abs(s) ** (2 / n)], 1)


def ripple(path, amp, length):
    """Pushes a (k, 2) path out to its left by bumps `amp` high and about `length` long: curls."""
    d = np.gradient(path, axis=0)
    step = np.hypot(*d.T) + 1e-9
    s = np.cumsum(step)
    phase = (s - s[0]) / (s[-1] - s[0]) * max(1, round((s[-1] - s[0]) / length))
    return path + amp * (np.abs(np.sin(np.pi * phase)) / step)[:, None] * np.stack([d[:, 1], -d[:, 0]], 1)


class Canvas:
    """Draws shapes given in units of the face on `img` (RGB or None) and, if `ids`, what they are on a second image."""

    def __init__(self, size, p, img=None, ids=False):
        self.size, self.unit, self.img = size, float(size * p['scale']), img
        c, s = np.cos(p['tilt']), np.sin(p['tilt'])
        self.turn, self.centre = self.unit * np.array([[c, s], [-s, c]]), size * np.array([p['cx'], p['cy']])
        self.ids = Image.new('L', (size, size)) if ids else None
        self.draws = [ImageDraw.Draw(i) if i else None for i in (self.img, self.ids)]

    def xy(self, pts):
        return (pts @ self.turn + self.centre).ravel().tolist()

    def poly(self, pts, color, part=None):
        xy = self.xy(pts)
        for draw, ink in zip(self.draws, (color, part)):
            if draw and ink is not None:
                draw.polygon(xy, fill=ink)

    def line(self, pts, color, width, part=None):
        xy, width = self.xy(pts), max(1, round(width * self.unit))
        for draw, ink in zip(self.draws, (color, part)):
            if draw and ink is not None:
                draw.line(xy, fill=ink, width=width, joint='curve')

    def mask(self, shapes, value=255, shrink=1):
        """The filled union of `shapes` as an L image."""
        m = Image.new('L', (self.size // shrink,) * 2)
        draw = ImageDraw.Draw(m)
        for pts in shapes:
            draw.polygon([x / shrink for x in self.xy(pts)], fill=value)
        return m

    def soft(self, shapes, color, alpha, blur=0., clip=None):
        """`shapes` blended in; blurred at a quarter of the size, which is cheap and looks the same."""
        if self.img:
            k = 4 if blur else 1
            m = self.mask(shapes, int(255 * alpha), k)
            if blur:
                m = m.filter(ImageFilter.GaussianBlur(blur * self.unit / 4))
            box = m.getbbox()  # nothing to do outside it: twice as fast
            m, box = m.crop(box), tuple(k * b for b in box)
            m = m.resize((box[2] - box[0], box[3] - box[1]), Image.BILINEAR)
            self.img.paste(color, box, ImageChops.multiply(m, clip.crop(box)) if clip else m)


def draw_label(rng, balance):
    """One dict attribute -> bool with the frequencies of FREQ and none of EXCLUSIVE violated."""
    f = {a: lerp(*v[:2], balance) for a, v in FREQ.items()}
    male = rng.random() < f['Male']

    def chance(a):  # given the sex, so that the overall frequency is the table's
        share = lerp(*FREQ[a][2:], balance)
        return f[a] * share / f['Male'] if male else f[a] * (1 - share) / (1 - f['Male'])

    y, u = dict.fromkeys(ATTRS, False), dict(zip(ATTRS, rng.random(len(ATTRS))))
    y['Male'] = male
    t = u['Black_Hair']
    for a in EXCLUSIVE[0]:
        y[a] = 0 <= t < chance(a)
        t -= chance(a)
    t = u['Straight_Hair'] * (1 - chance('Bald'))
    y['Straight_Hair'] = not y['Bald'] and t < chance('Straight_Hair')
    y['Wavy_Hair'] = not y['Bald'] and 0 <= t - chance('Straight_Hair') < chance('Wavy_Hair')
    for a in ('Goatee', 'Rosy_Cheeks', 'Mustache', 'Pale_Skin', 'Heavy_Makeup', 'Wearing_Hat'):
        y[a] = u[a] < chance(a)
    # gray hair makes glasses twice as likely (at most .9), the others make up for it
    g, e = chance('Gray_Hair'), chance('Eyeglasses')
    y['Eyeglasses'] = u['Eyeglasses'] < (min(2 * e, .9) if y['Gray_Hair'] else (e - g * min(2 * e, .9)) / (1 - g))
    return y


def hair_shape(y, p, warp):
    """The hair as two (81, 2) paths from the lower left over the top to the lower right: outer edge and hairline.

    Returns outer, inner, strands (list of paths), texture, long (bool, hangs beside the neck), bun (path or None).
    """
    texture = 'straight' if y['Straight_Hair'] else 'wavy' if y['Wavy_Hair'] else 'plain'
    if texture == 'plain':  # cropped or tied back
        kind = 'crop' if p['length'] < (.93 if y['Male'] else .15) else 'bun'
    else:
        short, medium = (.85, .95) if y['Male'] else (.06, .3)
        kind = 'short' if p['length'] < short and not y['Wearing_Hat'] else 'medium' if p['length'] < medium else 'long'
    long = kind in ('medium', 'long')
    bottom = {'crop': 0., 'bun': 0., 'short': .12 if texture == 'wavy' else .42, 'medium': .95, 'long': 1.75}[kind]
    bottom += .25 * p['hair_len'] * long
    vol = {'plain': .07, 'straight': p['vol'], 'wavy': p['vol'] + .04}[texture]
    s = np.linspace(-1, 1, 81)
    side, a, k = np.sign(s), np.clip(s / .6, -1, 1), np.clip((np.abs(s) - .6) / .4, 0, 1)
    outer = np.stack([(1 + vol) * np.sin(a * np.pi / 2) + side * k * (.06 if long or kind == 'short' else .06 - vol),
                      -.1 - (1.14 + vol) * np.cos(a * np.pi / 2) + k * (bottom + .1)], 1)
    if y['Wearing_Hat']:
        outer[:, 1] = np.maximum(outer[:, 1], -.75)  # what is under the hat must not stick out of it
    fringe = texture == 'straight' and p['bangs'] < .5
    part = 0. if fringe or kind == 'crop' else p['part']
    u = part + a * (.86 - side * part)
    arch = 1 - np.abs(a) ** (4 if fringe or kind == 'crop' else 1. if kind == 'short' else 1.5)
    if kind == 'crop' and y['Wearing_Hat']:  # else next to nothing of it would be seen
        u, outer[:, 1] = u * .84, outer[:, 1] + .2 * k
    v = -.25 - arch * (.22 if fringe else .52) + k * (bottom + .25)
    inner = warp(np.stack([u + side * k * (-.04 if long else .08), v], 1))
    flow = [(outer, inner, t) for t in (.2, .45, .7)]
    if texture == 'wavy':
        curls = ripple(outer, p['wave'], p['wave_n'])
        strands = [ripple(path, -.09, p['wave_n'] * .8) for path in (o + (i - o) * t for o, i, t in flow)]
        return curls, ripple(inner, -.07, p['wave_n'] * .8), strands, texture, long, None
    strands = [(o + (i - o) * t)[4:-4] for o, i, t in flow]
    bun = None
    if kind == 'bun':
        low = y['Wearing_Hat'] or p['bun'] < .4
        bun = oval(1.1 if p['part'] > 0 else -1.1, .72, .3, .34) if low else oval(p['part'] * .3, -1.5, .4, .32)
    return outer, inner, strands, texture, long, bun


def hat_shape(p, hair_color):
    """List of (path, colour) from back to front. The colour keeps away from the hair's."""
    color = hsv(p['hat_h'], p['hat_s'], p['hat_v'])
    if np.abs(np.subtract(color, hair_color)).sum() < 150:
        color = hsv((p['hat_h'] + .5) % 1, .8, .8 if sum(hair_color) < 380 else .4)
    dark, trim = lerp(color, (0, 0, 0), .3), lerp(color, (255, 255, 255) if p['band'] < .5 else (20, 20, 30), .55)
    yaw, kind = 1.15 * np.sin(p['yaw']), int(3 * p['hat'])
    if kind == 0:  # beanie
        band = np.concatenate([oval(0, -.84, 1.2, .08, lo=np.pi, hi=2 * np.pi), oval(0, -.58, 1.2, .1, lo=0, hi=np.pi)])
        pom = [(oval(0, -1.52, .17, .15), trim)] if p['pom'] < .5 else []
        dome = oval(0, -.6, 1.14, .92, lo=np.pi, hi=2 * np.pi)
        return pom + [(dome, color), (band, trim if p['band'] > .3 else dark)]
    if kind == 1:  # cap with a visor
        return [(oval(0, -.55, 1.16, .88, 2.3, np.pi, 2 * np.pi), color), (oval(yaw, -1.4, .1, .05), dark),
                (oval(yaw * .6, -.64, .95, .22, 2.6), dark), (oval(yaw * .6, -.74, .9, .12), color)]
    crown = np.concatenate([[[-.96, -.65]], oval(0, -1.2, .86, .28, 3, np.pi, 2 * np.pi), [[.96, -.65]]])
    ribbon = np.array([[-.97, -.68], [-.92, -.92], [.92, -.92], [.97, -.68]])
    return [(crown, color), (oval(0, -.66, 1.5, .2), dark), (oval(0, -.7, 1.42, .14), color), (ribbon, trim)]


def paint(c, y, p):
    """Draws the person of parameters p with attributes y on Canvas c; returns dict attribute -> list of its shapes."""
    male, shapes = y['Male'], {}

    def warp(pts):  # features sit on a ball that yaw turns
        pts = np.array(pts, float)
        pts[:, 0] = 1.15 * np.sin(np.arcsin(np.clip(pts[:, 0] / 1.15, -1, 1)) + p['yaw'])
        return pts

    def sexed(name, female_lo, female_hi, male_lo, male_hi):
        return lerp(male_lo, male_hi, p[name]) if male else lerp(female_lo, female_hi, p[name])

    tone = 2.999 * p['skin']
    skin = PALE if y['Pale_Skin'] else lerp(SKIN[int(tone)], SKIN[int(tone) + 1], tone % 1)
    skin = tuple(int(min(255, x + p['skin2'] * (not y['Pale_Skin']))) for x in skin)
    # a dark shade of the skin, less grey than black
    shade, light = lerp(skin, (90, 30, 20), .35), lerp(skin, (255, 250, 240), .35)
    named = [a for a in COLORS if y[a]]
    hair = HAIR[named[0]] if named else pick(OTHER_HAIR, p['hair'])
    if y['Bald']:
        hair = pick(list(HAIR.values())[:3:2], p['hair'])  # of the brows and the beard
    hair = tuple(int(min(255, x * p['shade'])) for x in hair)
    hair_dark, hair_light = lerp(hair, (0, 0, 0), .32), lerp(hair, (255, 250, 245), .3)
    beard = hair
    for _ in range(6):  # a beard like the skin would not be seen
        beard = lerp(beard, (15, 10, 10), .3 if sum(skin) - sum(beard) < 200 else 0)
    cloth = hsv(p['cloth_h'], p['cloth_s'], p['cloth_v'])
    outer, inner, strands, texture, long, bun = hair_shape(y, p, warp)
    dv = p['pitch']

    # behind the face: hair, neck, shoulders, ears
    if not y['Bald']:
        if bun is not None:
            c.poly(bun, hair, HAIR_ID)
            c.line(bun[18:26] * .5 + bun.mean(0) * .5, hair_light, .06)
        c.poly(outer, hair_dark if long else hair, HAIR_ID)
    neck = sexed('jaw', .40, .48, .60, .70)
    width = sexed('jaw', 1.15, 1.3, 1.5, 1.7)
    c.poly(np.array([[-neck, .7], [neck, .7], [neck, 1.7], [-neck, 1.7]]), lerp(skin, shade, .45), NECK)
    shoulder = np.array([[neck + .08, 1.44], [width, 1.62], [width + .4, 3]])
    collar = oval(0, 1.42, neck, .16, lo=np.pi, hi=0)
    c.poly(np.concatenate([collar, shoulder, shoulder[::-1] * [-1, 1]]), cloth, CLOTH)
    for side in (-1, 1):
        c.poly(oval(side, .08, .13, .23), skin, FACE)
        c.poly(oval(side * 1.02, .08, .06, .13), shade, None)

    # the face; its lower half is a superellipse whose exponent is the jaw
    chin = sexed('jaw', 1.2, 1.27, 1.29, 1.36)
    jaw = oval(0, 0, 1, chin, sexed('jaw', 1.75, 2.05, 2.35, 2.8), 0, np.pi)
    face = np.concatenate([oval(0, 0, 1, 1.2, lo=np.pi, hi=2 * np.pi), jaw])
    face[:, 0] += 1.15 * np.sin(p['yaw']) * .8 * np.clip(face[:, 1] / chin, 0, 1) ** 2
    c.poly(face, skin, FACE)
    clip = c.mask([face]) if c.img else None
    far = 1 if p['light'] > 0 else -1
    half = dict(lo=-np.pi / 2, hi=np.pi / 2)
    crescent = [oval(0, .05, 1.1, 1.4, **half), oval(-.15, .05, .85, 1.35, **half)[::-1]]
    c.soft([np.concatenate(crescent) * [far, 1]], shade, .25 + .35 * abs(p['light']), .1, clip)
    cheeks = [warp(oval(side * .56, .36 + dv, p['cheek_w'], p['cheek_h'])) for side in (-1, 1)]
    shapes['Rosy_Cheeks'] = [pts * 1.15 - .15 * pts.mean(0) for pts in cheeks]  # with the soft edge
    if y['Rosy_Cheeks']:
        c.soft(cheeks, (230, 50, 66), .58 + .05 * tone * (not y['Pale_Skin']), .05, clip)
    if y['Bald'] and not y['Wearing_Hat']:
        c.soft([oval(-far * .3, -.85, .3, .14)], lerp(light, (255, 255, 255), .4), .7, .07, clip)

    # nose
    nose_w, nose_v, tip = p['nose_w'], p['nose_v'] + dv, .06 * np.sign(p['yaw']) * min(1, abs(p['yaw']) * 6)
    c.soft([warp([[far * .04, -.1], [far * nose_w + tip, nose_v], [tip, nose_v + .03]])], shade, .55, .03, clip)
    c.soft([warp(oval(tip - far * .03, nose_v - .08, .05, .09))], light, .6, .02)
    c.line(warp(oval(tip, nose_v - .02, nose_w, .07, lo=.15, hi=np.pi - .15, k=12)), shade, .045)

    # eyes and brows
    lids = []
    ev, brow = -.08 + dv, sexed('brow', .045, .065, .10, .135)
    ew, eh = p['eye_w'] * (.94 if male else 1.05), p['eye_h'] * (.88 if male else 1.1)
    for side in (1, -1):
        at = lambda pts: warp(np.asarray(pts) * [side, 1] + [side * p['eye_d'], ev])  # noqa: E731 (outwards is +u)
        upper, lower = oval(0, 0, ew, eh, 1.8, np.pi, 2 * np.pi, 17), oval(0, 0, ew, eh * .8, 1.8, np.pi, 0, 17)
        lid = np.concatenate([oval(.03, -.02, ew * 1.3, eh + .17, 2, np.pi, 2 * np.pi, 17), upper[::-1]])
        lids.append(at(np.concatenate([lid[:17], lower[::-1] * [1.1, 1.2]])))
        if y['Heavy_Makeup']:
            c.poly(at(lid), pick(SHADOW, p['lid']), None)
            c.line(at(lower), lerp(pick(SHADOW, p['lid']), (0, 0, 0), .3), .04)
        c.poly(at(np.concatenate([upper, lower[::-1]])), (250, 250, 248), FEATURE)
        iris = oval(side * p['gaze'], 0, .105, .115)
        iris[:, 1] = np.clip(iris[:, 1], np.interp(iris[:, 0], *upper.T), np.interp(iris[:, 0], *lower.T))
        c.poly(at(iris), pick(EYES, p['eye_c']))
        c.poly(at(iris * .5), (15, 12, 15))
        c.poly(warp(oval(side * p['eye_d'] + .04, ev - .04, .03, .03, k=8)), (255, 255, 255))
        lash = lerp(shade, (30, 20, 20), .6 if male else 1)
        c.line(at(upper), lash, .075 if y['Heavy_Makeup'] else .04)
        if y['Heavy_Makeup']:
            for x, lift in ((.6, .1), (.85, .11), (1., .1)):
                root = np.array([ew * x, np.interp(ew * x, *upper.T)])
                c.line(at([root, root + [.09, -lift]]), (20, 12, 15), .05)
        bv = -.30 - p['brow_v'] - (.03 if not male else 0) - eh * .3
        arc = oval(0, bv + .07, .28, .1, lo=np.pi + .25, hi=2 * np.pi - .25, k=10)
        c.line(at(arc + np.linspace(0, 1, 10)[:, None] * [0, p['brow_a']]), lerp(hair_dark, (40, 28, 25), .5), brow)

    # mouth: lips, then what is between them
    mv, mw, thick = .70 + dv, p['mouth_w'] * (1.05 if male else .95), sexed('lip', .09, .12, .045, .07)
    x = np.linspace(-1, 1, 21)
    bend, gap = p['smile'] * (1 - x ** 2) - p['smile'] * .5, max(0., p['open']) * (1 - x ** 2)
    bow = thick * (1 - x ** 2) ** .6 * (1 - .35 * np.exp(-(x / .18) ** 2))
    line = lambda v: warp(np.stack([mw * x, mv + v], 1))  # noqa: E731
    lips = np.concatenate([line(bend - gap * .4 - bow), line(bend + gap * .8 + thick * 1.2 * (1 - x ** 2) ** .6)[::-1]])
    lip = pick(LIPS, p['lipstick']) if y['Heavy_Makeup'] else lerp(skin, (170, 70, 70), .25 if male else .4)
    c.poly(lips, lip, FEATURE)
    if p['open'] > .03:
        c.poly(np.concatenate([line(bend - gap * .4), line(bend + gap * .8)[::-1]]), (110, 30, 35))
        c.poly(np.concatenate([line(bend - gap * .4), line(bend + gap * .2)[::-1]]), (250, 248, 242))
    else:
        c.line(line(bend), lerp(lip, (60, 10, 15), .55), .04)
    shapes['Heavy_Makeup'] = lids + [lips]

    # beard; the patch starts below the lower lip wherever that is
    top = mv + max(bend + gap * .8) + thick * 1.2
    base, drop, dip = mv - max(gap) * .4 + bend.min() * .3 - thick * .6, p['must_d'] * x ** 2, np.exp(-(x / .17) ** 2)
    hang = [np.stack([p['must_w'] * x, base + drop - .2 * (1 - np.abs(x) ** 2.5) + .05 * dip], 1),
            np.stack([p['must_w'] * x, base + drop + .03 * (x ** 2 - dip)], 1)[::-1]]
    shapes['Mustache'] = [warp(np.concatenate(hang))]
    top, low = max(top + .04, p['goat_v']), chin - .02
    goatee = oval(0, (top + low) / 2, p['goat_w'], (low - top) / 2, 2.6)
    goatee[:, 0] += 1.15 * np.sin(p['yaw']) * .85
    shapes['Goatee'] = [goatee]
    for a in ('Mustache', 'Goatee'):
        if y[a]:
            c.poly(shapes[a][0], beard, FEATURE)

    # hair in front, hat, glasses
    if not y['Bald']:
        c.poly(np.concatenate([outer, inner[::-1]]), hair, HAIR_ID)
        if texture == 'plain':
            c.line(inner, hair_dark, .06)
            c.line((outer * .5 + inner * .5)[26:36] if far > 0 else (outer * .5 + inner * .5)[45:55], hair_light, .09)
        for i, path in enumerate(strands if texture != 'plain' else []):
            c.line(path, hair_light if i == 1 else hair_dark, .05)
    hat = hat_shape(p, hair)
    shapes['Wearing_Hat'] = [pts for pts, _ in hat]
    if y['Wearing_Hat']:
        for pts, color in hat:
            c.poly(pts, color, HAT_ID)
    lenses = [warp(oval(side * p['eye_d'], ev + .03, p['lens_w'], p['lens_h'], p['lens_n'])) for side in (-1, 1)]
    bridge = warp([[-.12, ev - .05], [.12, ev - .05], [.12, ev + .04], [-.12, ev + .04]])
    rims = [lens.mean(0) + (lens - lens.mean(0)) * 1.14 for lens in lenses]
    shapes['Eyeglasses'] = rims + [bridge]
    if y['Eyeglasses']:
        far_off = [f for f in FRAMES if abs(sum(f) - sum(skin)) > 190]  # a frame like the skin would not be seen
        frame, tint = pick(far_off, p['frame']), p['tint'] < .3
        glass = pick([(40, 40, 55), (80, 45, 20), (30, 60, 100)], p['tint'] / .3) if tint else (255, 255, 255)
        c.soft(lenses, glass, .45 if tint else .14)
        for lens, side in zip(lenses, (-1, 1)):
            c.line(np.concatenate([lens, lens[:3]]), frame, .085, FEATURE)
            end = lens[np.argmax(lens[:, 0] * side)]
            c.line(np.array([end, [side * .98, ev - .06]]), frame, .07)
        c.line(warp([[-.13, ev], [0, ev - .03], [.13, ev]]), frame, .08)
    return shapes


def background(p, rng, size, clutter):
    """A muted colour with a mild vertical gradient, and `clutter` shapes on it: an RGB image."""
    base = np.array(hsv(p['bg_h'], p['bg_s'], p['bg_v']))
    ramp = base * (1 + p['bg_g'] * np.linspace(-1, 1, size)[:, None])
    img = Image.fromarray(np.broadcast_to(ramp.clip(0, 255).astype(np.uint8)[:, None], (size, size, 3)).copy())
    draw = ImageDraw.Draw(img)
    for _ in range(int(np.ceil(clutter * 16))):
        kind, (x, y, w, h, turn, hue, val) = rng.integers(4), rng.random(7)
        ink = lerp(tuple(base), hsv(hue, clutter, .15 + .85 * val), .25 + .75 * clutter)
        w, h, turn = .06 + .16 * w, .06 + .16 * h, turn * np.pi
        spin = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
        to = lambda pts: ((pts @ spin + [x, y]) * size).ravel().tolist()  # noqa: E731
        if kind == 0:
            draw.polygon(to(oval(0, 0, w, h)), fill=ink)
        elif kind == 1:
            draw.polygon(to(np.array([[-w, -h], [w, -h], [w, h], [-w, h]])), fill=ink)
        elif kind == 2:
            draw.polygon(to(np.array([[-w, -h], [w, -h], [0, h]]) * 1.2), fill=ink)
        else:  # stripes across the picture
            for k in range(-1, 2):
                draw.line(to(np.array([[-2, k * h], [2, k * h]])), fill=ink, width=int(size * w / 4) + 1)
    return img


def draw_face(index, split='train', image_size=64, seed=1, balance=0., clutter=0., label=None, regions=True):
    """Image `index` of a split.

    label: None to draw one, or a sequence of 15 of {0, 1} in the order of ATTRS: the same person with these attributes.
    Returns image uint8 (H, W, 3), label uint8 (15,), masks uint8 (15, H, W) in {0, 1} (None if not `regions`): where
    each attribute is, or would be on this face. ValueError if a label is not 15 long or has two of
    an exclusive group.
    """
    # separate streams: neither `balance` nor `clutter` must change the person
    streams = [np.random.default_rng([seed, SPLITS[split], index, k]) for k in range(4)]
    y = draw_label(streams[0], balance) if label is None else dict(zip(ATTRS, map(bool, label), strict=True))
    for group in EXCLUSIVE:
        if sum(y[a] for a in group) > 1:
            raise ValueError(f'at most one of {", ".join(group)}: {[a for a in group if y[a]]}')
    p = {k: lo + (hi - lo) * u for (k, (lo, hi)), u in zip(RANGES.items(), streams[1].random(len(RANGES)))}
    up = 4 if image_size <= 64 else 3 if image_size <= 128 else 2
    size = image_size * up
    c = Canvas(size, p, background(p, streams[2], size, clutter), ids=regions)
    shapes = paint(c, y, p)
    # light and a little noise, so that no single pixel tells anything
    x = np.asarray(c.img.reduce(up), np.float32) * (p['gain'] * np.array([1 + p['warm'], 1, 1 - p['warm']], np.float32))
    x = (x + 2 * streams[3].standard_normal(x.shape, np.float32) + .5).clip(0, 255).astype(np.uint8)
    y_out = np.array([y[a] for a in ATTRS], np.uint8)
    if not regions:
        return x, y_out, None

    def ids_with(**change):  # what is where on the same person with other labels
        other = Canvas(size, p, ids=True)
        paint(other, {**y, **change}, p)
        return np.asarray(other.ids)

    ids = np.asarray(c.ids)
    hair = (ids if not y['Bald'] else ids_with(Bald=False)) == HAIR_ID
    seen = (ids != HAIR_ID) & (ids != HAT_ID)
    m = {a: np.asarray(c.mask(s)) > 0 for a, s in shapes.items()}
    m |= {a: m[a] & seen for a in ('Rosy_Cheeks', 'Heavy_Makeup')}
    m |= dict.fromkeys(COLORS, hair)
    # another texture takes the hair that is there away: both shapes. Bald also shows the scalp
    for a, b in (('Straight_Hair', 'Wavy_Hair'), ('Wavy_Hair', 'Straight_Hair')):
        m[a] = hair if y[a] else hair | (ids_with(**{a: True, b: False, 'Bald': False}) == HAIR_ID)
    scalp = np.asarray(c.mask([oval(0, 0, 1, 1.2, lo=np.pi, hi=2 * np.pi) * [1, .72] - [0, .336]])) > 0
    m['Bald'] = hair | (scalp & (ids != HAT_ID) & (ids != FEATURE))
    m['Pale_Skin'] = (ids == FACE) | (ids == NECK)
    m['Male'] = ids >= FACE
    fine = np.stack([m[a] for a in ATTRS]).reshape(len(ATTRS), image_size, up, image_size, up)
    return x, y_out, (fine.mean((2, 4), dtype=np.float32) >= .5).astype(np.uint8)


def fill(lo, hi, split, folder, **settings):
    """Draws images lo..hi-1 of a split into the arrays waiting in `folder` under temporary names; returns hi - lo."""
    kinds = 'xy' if split == 'train' else 'xym'
    arrays = {k: np.load(temporary(folder, f'{split}_{k}.npy'), mmap_mode='r+') for k in kinds}
    for i in range(lo, hi):
        for k, a in zip('xym', draw_face(i, split, regions='m' in arrays, **settings)):
            if k in arrays:
                arrays[k][i] = a
    return hi - lo


def start_worker():
    """A worker leaves Ctrl-C to its parent, and goes when the parent is gone: else it would wait for ever."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


def temporary(folder, name):
    """Where an array grows until it is complete."""
    return os.path.join(folder, f'.{name}.tmp')


if __name__ == '__main__':
    t0, dst = time.time(), os.path.abspath(os.path.expanduser(dst))
    # wrong values get one line each
    if image_size % 8 or not 32 <= image_size <= 256:
        sys.exit(f'--image_size={image_size}: wants a multiple of 8 from 32 to 256')
    for k in ('n_train', 'n_val', 'n_test'):
        if config[k] < 1:
            sys.exit(f'--{k}={config[k]}: wants 1 or more images')
    for k in ('balance', 'clutter'):
        if not 0 <= config[k] <= 1:
            sys.exit(f'--{k}={config[k]}: wants a number from 0 to 1')
    for k in ('seed', 'workers'):
        if config[k] < 0:
            sys.exit(f'--{k}={config[k]}: wants 0 or more')

    counts = {'train': n_train, 'val': n_val, 'test': n_test}
    shapes = {}
    for split, n in counts.items():
        shapes[f'{split}_x.npy'], shapes[f'{split}_y.npy'] = (n, image_size, image_size, 3), (n, len(ATTRS))
        if split != 'train':
            shapes[f'{split}_m.npy'] = (n, len(ATTRS), image_size, image_size)

    # is it there already?
    meta_path = os.path.join(dst, 'meta.json')
    if os.path.exists(meta_path) and not force:
        try:
            old = json.load(open(meta_path))
            old = old['config'] if old['dataset'] == 'toyfaces' else {}
        except (OSError, ValueError, KeyError, TypeError):
            old = {}
        differ = [f'{k} {old.get(k)!r} -> {v!r}' for k, v in config.items()
                  if k not in ('dst', 'workers', 'force') and old.get(k) != v]
        differ += [f'{f} missing' for f in shapes if not os.path.exists(os.path.join(dst, f))]
        if differ:
            sys.exit(f'{dst} holds another set ({", ".join(differ)}): --force=True redoes it, --dst= puts it elsewhere')
        print(f'already there: {dst}')
        sys.exit()

    def clean():
        for f in [*shapes, 'meta.json']:
            if os.path.exists(temporary(dst, f)):
                os.remove(temporary(dst, f))

    pool = None
    try:
        os.makedirs(dst, exist_ok=True)
        clean()  # of an interrupted run
        total, room = sum(128 + int(np.prod(s)) for s in shapes.values()), shutil.disk_usage(dst).free
        if total > room:
            sys.exit(f'{dst}: {total / 1e6:.0f} MB wanted, {room / 1e6:.0f} MB free: fewer images, or another --dst=')
        for f, shape in shapes.items():
            np.lib.format.open_memmap(temporary(dst, f), 'w+', np.uint8, shape).flush()
            if hasattr(os, 'posix_fallocate'):  # a disk that fills up later would kill the writer without a word
                with open(temporary(dst, f), 'r+b') as file:
                    os.posix_fallocate(file.fileno(), 0, os.path.getsize(temporary(dst, f)))

        draw = functools.partial(fill, folder=dst, image_size=image_size, seed=seed, balance=balance, clutter=clutter)
        jobs = [(lo, min(lo + 50, n), split) for split, n in counts.items() for lo in range(0, n, 50)]
        n_workers = min(workers or os.cpu_count() or 1, len(jobs))
        if n_workers > 1:
            pool = ProcessPoolExecutor(n_workers, initializer=start_worker)
            done_jobs = (f.result() for f in as_completed([pool.submit(draw, *job) for job in jobs]))
        else:
            done_jobs = (draw(*job) for job in jobs)
        done, wanted, said = 0, sum(counts.values()), time.time()
        for n in done_jobs:
            done += n
            if time.time() - said > 2:
                said, rate = time.time(), done / (time.time() - t0)
                print(f'{done}/{wanted} images | {rate:.0f}/s | eta {(wanted - done) / rate:.0f} s', flush=True)

        y = {split: np.load(temporary(dst, f'{split}_y.npy')) for split in counts}
        meta = {'dataset': 'toyfaces', 'label': 'multi', 'image_size': image_size, 'attrs': ATTRS,
                'exclusive': EXCLUSIVE, 'counts': counts,
                'made_by': shlex.join(['python', 'data/toyfaces/prepare.py', *sys.argv[1:]]), 'config': config}
        with open(temporary(dst, 'meta.json'), 'w') as file:
            json.dump(meta, file, indent=1)
        if os.path.exists(meta_path):
            os.remove(meta_path)  # a mix of old and new must not look complete
        for f in [*shapes, 'meta.json']:  # meta.json last: it says that all the rest is complete
            os.replace(temporary(dst, f), os.path.join(dst, f))
    except BrokenProcessPool:
        clean()
        sys.exit('a worker process was killed (out of memory?): try --workers=1')
    except OSError as e:
        clean()
        sys.exit(f'{dst}: cannot write the set: {e.strerror or e}')
    except KeyboardInterrupt:
        clean()
        sys.exit('interrupted: nothing was kept')
    finally:
        if pool:
            pool.shutdown(wait=True, cancel_futures=True)

    print(f"{'attribute':14}" + ''.join(f'{split:>16}' for split in counts) + f"{'asked':>9}")
    for i, a in enumerate(ATTRS):
        row = ''.join(f'{v[:, i].sum():8d} {v[:, i].mean():6.1%}'.rjust(16) for v in y.values())
        print(f'{a:14}{row}{lerp(*FREQ[a][:2], balance):9.1%}')
    print(', '.join(f'{split} {n}' for split, n in counts.items()), f'images of {image_size} px in {dst}:',
          f'{total / 1e6:.0f} MB, {time.time() - t0:.0f} s')
