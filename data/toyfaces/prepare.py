"""
Draws the toyfaces set: cartoon portraits with CelebA's attributes, or RaFD's expressions, and where each of them is.
A seed draws the same people at every image_size, and draw_face(..., label=...) the same photo with other labels.

    python data/toyfaces/prepare.py                                # 22,000 images of 64 px, CelebA-like frequencies
    python data/toyfaces/prepare.py --image_size=32 --balance=1 --variety=0.35 --attrs=Blond_Hair,Eyeglasses,Mustache
    python data/toyfaces/prepare.py --label=expressions --n_train=4000 --n_val=400 --n_test=800 --dst=data/expressions

Takes 75 s on 2 EPYC cores and 0.4 GB of disk at the defaults. Writes {train,val,test}_x.npy uint8 (N, H, W, 3) RGB,
{train,val,test}_y.npy uint8 (N, C) in {0, 1}, {val,test}_m.npy uint8 (N, C, H, W) in {0, 1} and, last, meta.json.
"""

import colorsys
import contextlib
import difflib
import json
import multiprocessing
import os
import shlex
import shutil
import signal
import sys
import time
from types import SimpleNamespace

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

# -----------------------------------------------------------------------------
label = 'multi'  # any number of attributes a face; 'expressions': one of eight, and everyone is there with all of them
image_size = 64  # side in pixels, a multiple of 8 from 32 to 256: 32 for tests, 64 for demos, 128 as the paper's crops
n_train = 20000  # images for training; 2,000 are enough to see a training run start, regions are not stored for these
n_val = 1000  # images for choosing settings, with regions
n_test = 1000  # images for reported numbers, with regions; raise it for FID, which wants 2,048 or more
attrs = ''  # the attributes drawn, by commas, in the order of the columns; '': all 15. Male alone is drawn in any case
balance = 0.0  # 0: as rare as in CelebA (Mustache 4 %); 1: near 0.3 where exclusions allow, for short trainings
variety = 1.0  # of poses, faces, colours, hair: 0.35 leaves few kinds of person, for short trainings; 0: one of each
clutter = 0.0  # 0: plain muted backgrounds; up to 1: ever more and stronger shapes behind the same people
seed = 1  # another seed, other people
dst = os.path.dirname(os.path.abspath(__file__))  # folder for the arrays; the training scripts look in the default one
workers = 0  # processes; 0: one per core. Does not change the images
force = False  # True: redo a set that is already there with other settings
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

# The paper's 14 attributes and Male: frequency at balance 0, at 1, share of it that falls on males at balance 0, at 1
FREQ = dict(
    Goatee=(.06, .28, 1., 1.), Rosy_Cheeks=(.07, .30, .10, .40), Eyeglasses=(.07, .30, .65, .50),
    Mustache=(.04, .28, 1., 1.), Blond_Hair=(.15, .20, .10, .40), Pale_Skin=(.05, .30, .30, .50),
    Heavy_Makeup=(.38, .30, .022, .10), Brown_Hair=(.20, .20, .35, .48), Gray_Hair=(.04, .18, .80, .60),
    Bald=(.022, .12, .97, .85), Straight_Hair=(.21, .33, .45, .50), Black_Hair=(.24, .22, .50, .50),
    Wearing_Hat=(.05, .27, .65, .50), Wavy_Hair=(.32, .33, .20, .40), Male=(.42, .50, 1., 1.))
ATTRS, COLORS = list(FREQ), ['Black_Hair', 'Blond_Hair', 'Brown_Hair', 'Gray_Hair']
EXCLUSIVE, SPLITS = [[*COLORS, 'Bald'], ['Straight_Hair', 'Wavy_Hair', 'Bald']], {'train': 0, 'val': 1, 'test': 2}
HAIR = dict(zip(COLORS, [(26, 22, 26), (236, 198, 110), (88, 50, 26), (172, 174, 180)]))
OTHER_HAIR = [(186, 70, 28), (186, 70, 28), (166, 48, 36), (200, 92, 40), (146, 62, 128), (54, 120, 132)]  # or dyed
SKIN, PALE = [(230, 182, 146), (212, 158, 116), (172, 118, 82), (160, 110, 80)], (253, 233, 224)  # far apart
FRAMES = [(25, 25, 30), (40, 40, 90), (130, 20, 30), (90, 50, 20), (235, 225, 200), (215, 170, 60)]
EYES, LIPS = [(70, 45, 30), (50, 90, 150), (60, 110, 70), (110, 80, 40)], [(200, 20, 50), (190, 20, 110), (130, 15, 60)]
LIDS, GLASS = [(70, 80, 200), (140, 60, 170), (40, 140, 130), (60, 50, 70)], [(40, 40, 55), (80, 45, 20), (30, 60, 100)]

# Everything else that varies, uniform between two bounds. Lengths: half the width of the face is 1, down is positive
RANGES = dict(
    cx=(.475, .525), cy=(.51, .55), scale=(.28, .315), tilt=(-.16, .16), yaw=(-.16, .16), pitch=(-.05, .05),
    skin=(0, 1), skin2=(-6, 6), light=(-1, 1), gain=(.94, 1.04), warm=(-.02, .02), jaw=(0, 1), brow=(0, 1), lip=(0, 1),
    eye_d=(.40, .46), eye_w=(.21, .26), eye_h=(.09, .145), eye_c=(0, 1), gaze=(-.05, .05), brow_v=(0, .06),
    brow_a=(-.05, .04), nose_w=(.13, .2), nose_v=(.3, .38), mouth_w=(.32, .44), smile=(-.02, .14), open=(-.1, .14),
    lid=(0, 1), lipstick=(0, 1), hair=(0, 1), shade=(.88, 1.12), fall=(0, 1), length=(0, 1), vol=(.1, .18),
    part=(-.5, .5), bangs=(0, 1), bun=(0, 1), wave=(.13, .17), wave_n=(.40, .52), frame=(0, 1), lens_w=(.30, .35),
    lens_h=(.24, .32), lens_n=(2, 4), tint=(0, 1), goat_w=(.25, .33), goat_v=(.90, .96), must_w=(.36, .46),
    must_d=(0, .10), cheek_w=(.24, .29), cheek_h=(.17, .21), hat=(0, 1), hat_h=(0, 1), hat_s=(.35, .85),
    hat_v=(.3, .9), band=(0, 1), pom=(0, 1), cloth_h=(0, 1), cloth_s=(.15, .6), cloth_v=(.3, .85), bg_h=(0, 1),
    bg_s=(.02, .10), bg_v=(.5, .8), bg_g=(-.07, .07))
# Expressions: inner and outer ends of the brows down, both together, one of them; height of the upper and lower half of
# the eyes (factors); corners of the mouth up, one of them, opening, width (factor), how square, lower end of the teeth
REST = dict(inner=0, outer=0, close=0, one=0, upper=1, lower=1, smile=0, smirk=0, open=0, wide=1, square=2, teeth=.2)
EXPRESSIONS = dict(
    angry=dict(inner=.22, outer=-.10, close=.08, upper=.7, lower=.7, smile=-.2, wide=.8),
    contemptuous=dict(one=-.3, inner=.08, smirk=.4, wide=1.15),
    disgusted=dict(inner=.18, outer=.06, close=.08, upper=.4, lower=.4, smile=-.4, open=.2, teeth=.1),
    fearful=dict(inner=-.26, close=.06, upper=1.5, lower=1.4, open=.22, wide=1.15, square=6, teeth=.5),
    happy=dict(upper=1.05, lower=-.45, smile=.36, open=.22, wide=1.3, teeth=.3), neutral={},
    sad=dict(inner=-.22, outer=.10, close=.03, upper=.5, smile=-.4, wide=.8),
    surprised=dict(inner=-.24, outer=-.2, upper=1.5, lower=1.3, open=.4, wide=.6, teeth=-.2))
PARTS = dict(brows={'inner', 'outer', 'close', 'one'}, eyes={'upper', 'lower'}, mouth={'smile', 'smirk', 'open'})
PEOPLE = [*COLORS, 'Bald', 'Straight_Hair', 'Wavy_Hair', 'Eyeglasses', 'Pale_Skin', 'Male']  # what tells them apart
JITTER = dict(cx=.03, cy=.03, scale=.016, tilt=.1, yaw=.12, gain=.04, gaze=.08)  # between the photos of one of them
hsv = lambda h, s, v: tuple(int(255 * x) for x in colorsys.hsv_to_rgb(h, s, v))  # noqa: E731 (to (r, g, b) in 0..255)
pick = lambda options, t: options[int(t * len(options))]  # noqa: E731 (the one at t in [0, 1))
NONE, CLOTH, NECK, FACE, FEATURE, HAIR_ID, HAT_ID = range(7)  # what is in front, pixel by pixel
TOP, BOTTOM = dict(arc=(np.pi, 2 * np.pi)), dict(arc=(0, np.pi))  # halves of an oval


def lerp(lo, hi, t):
    """lo at t = 0, hi at t = 1; numbers, or colours, which come back as tuples of ints."""
    return lo + (hi - lo) * t if np.isscalar(lo) else tuple(int(a + (b - a) * t) for a, b in zip(lo, hi))


def oval(u, v, w, h, n=2., arc=(0, 2 * np.pi), k=32):
    """(k, 2) points of a superellipse with half axes w and h about (u, v), over an arc of angles (down is pi/2)."""
    c, s = np.cos(np.linspace(*arc, k)), np.sin(np.linspace(*arc, k))
    return np.stack([u + w * np.sign(c) * np.abs(c) ** (2 / n), v + h * np.sign(s) * np.abs(s) ** (2 / n)], 1)


def ripple(path, amp, length):
    """Pushes a (k, 2) path out to its left by bumps `amp` high and about `length` long: curls."""
    d = np.gradient(path, axis=0)
    s, step = np.cumsum(np.hypot(*d.T) + 1e-9), np.hypot(*d.T) + 1e-9
    phase = (s - s[0]) / (s[-1] - s[0]) * max(1, round((s[-1] - s[0]) / length))
    return path + amp * (np.abs(np.sin(np.pi * phase)) / step)[:, None] * np.stack([d[:, 1], -d[:, 0]], 1)


class Canvas:
    """Draws shapes given in units of the face on `img` (RGB or None) and what they are on a second image, `ids`."""

    def __init__(self, size, p, img=None):
        self.size, self.unit, self.img, self.ids = size, float(size * p['scale']), img, Image.new('L', (size, size))
        c, s = np.cos(p['tilt']), np.sin(p['tilt'])
        self.turn, self.centre = self.unit * np.array([[c, s], [-s, c]]), size * np.array([p['cx'], p['cy']])

    def poly(self, pts, color, part=None, line=0.):
        """A polygon; with `line`, a line of that width."""
        xy, width = (pts @ self.turn + self.centre).ravel().tolist(), max(1, round(line * self.unit))
        for img, ink in ((self.img, color), (self.ids, part)):
            if img and ink and line:
                ImageDraw.Draw(img).line(xy, ink, width, 'curve')
            elif img and ink:
                ImageDraw.Draw(img).polygon(xy, ink)

    def mask(self, shapes, value=255, shrink=1):
        """The filled union of `shapes` as an L image."""
        m = Image.new('L', (self.size // shrink,) * 2)
        for pts in shapes:
            ImageDraw.Draw(m).polygon(((pts @ self.turn + self.centre) / shrink).ravel().tolist(), value)
        return m

    def soft(self, shapes, color, alpha, blur=0., clip=None):
        """`shapes` blended in; blurred at a quarter of the size, which is cheap and looks the same."""
        if self.img:
            k = 4 if blur else 1
            m = self.mask(shapes, int(255 * alpha), k).filter(ImageFilter.GaussianBlur(blur * self.unit / 4))
            box = tuple(k * b for b in m.getbbox())  # nothing to do outside it: twice as fast
            m = m.crop(m.getbbox()).resize((box[2] - box[0], box[3] - box[1]), Image.BILINEAR)
            self.img.paste(color, box, ImageChops.multiply(m, clip.crop(box)) if clip else m)


def draw_label(rng, balance):
    """One dict attribute -> bool with the frequencies of FREQ, each given the sex, and none of EXCLUSIVE violated."""
    f, share = ({a: lerp(*v[i:i + 2], balance) for a, v in FREQ.items()} for i in (0, 2))
    male, u = rng.random() < f['Male'], dict(zip(ATTRS, rng.random(len(ATTRS))))
    chance = {a: f[a] * share[a] / f['Male'] if male else f[a] * (1 - share[a]) / (1 - f['Male']) for a in ATTRS}
    y, t = {a: u[a] < chance[a] for a in ATTRS} | {'Male': male}, u['Black_Hair']
    for a in EXCLUSIVE[0]:
        y[a] = 0 <= t < chance[a]
        t -= chance[a]
    t, straight = u['Straight_Hair'] * (1 - chance['Bald']), chance['Straight_Hair']
    y['Straight_Hair'] = not y['Bald'] and t < straight
    y['Wavy_Hair'] = not y['Bald'] and 0 <= t - straight < chance['Wavy_Hair']
    g, e = chance['Gray_Hair'], chance['Eyeglasses']  # gray hair makes glasses twice as likely, others make up for it
    y['Eyeglasses'] = u['Eyeglasses'] < (min(2 * e, .9) if y['Gray_Hair'] else (e - g * min(2 * e, .9)) / (1 - g))
    return y


def paint_head(c, y, p, f):
    """From the hair behind the face to the nose; returns dict attribute -> list of its shapes, as those below do."""
    skin, shade, neck, width = f.skin, f.shade, f.sexed('jaw', .40, .48, .60, .70), f.sexed('jaw', 1.15, 1.3, 1.5, 1.7)
    for bun in f.buns:
        c.poly(bun, f.hair, HAIR_ID)
        c.poly(bun[18:26] * .5 + bun.mean(0) * .5, f.hair_light, line=.06)
    if not y['Bald']:
        c.poly(f.outer, f.hair_dark if f.long else f.hair, HAIR_ID)
    c.poly(np.array([[-neck, .7], [neck, .7], [neck, 1.7], [-neck, 1.7]]), lerp(skin, shade, .45), NECK)
    shoulder = np.array([[neck + .08, 1.44], [width, 1.62], [width + .4, 3]])
    cloth = np.concatenate([oval(0, 1.42, neck, .16, arc=(np.pi, 0)), shoulder, shoulder[::-1] * [-1, 1]])
    c.poly(cloth, hsv(p['cloth_h'], p['cloth_s'], p['cloth_v']), CLOTH)
    for side in (-1, 1):
        c.poly(oval(side, .08, .13, .23), skin, FACE)
        c.poly(oval(side * 1.02, .08, .06, .13), shade)
    # the face; its lower half is a superellipse whose exponent is the jaw
    jaw = f.sexed('jaw', 1.75, 2.05, 2.35, 2.8)
    face = np.concatenate([oval(0, 0, 1, 1.2, **TOP), oval(0, 0, 1, f.chin, jaw, **BOTTOM)])
    face[:, 0] += 1.15 * np.sin(p['yaw']) * .8 * np.clip(face[:, 1] / f.chin, 0, 1) ** 2
    c.poly(face, skin, FACE)
    clip, half = c.mask([face]), dict(arc=(-np.pi / 2, np.pi / 2))
    crescent = np.concatenate([oval(0, .05, 1.1, 1.4, **half), oval(-.15, .05, .85, 1.35, **half)[::-1]])
    c.soft([crescent * [f.far, 1]], shade, .25 + .35 * abs(p['light']), .1, clip)
    cheeks = [f.warp(oval(side * .56, .36 + p['pitch'], p['cheek_w'], p['cheek_h'])) for side in (-1, 1)]
    if y['Rosy_Cheeks']:
        c.soft(cheeks, (230, 50, 66), .58 + .05 * f.tone * (not y['Pale_Skin']), .05, clip)
    if y['Bald'] and not y['Wearing_Hat']:
        c.soft([oval(-f.far * .3, -.85, .3, .14)], lerp(f.light, (255, 255, 255), .4), .7, .07, clip)
    w, v, tip = p['nose_w'], p['nose_v'] + p['pitch'], .06 * np.sign(p['yaw']) * min(1, abs(p['yaw']) * 6)
    c.soft([f.warp([[f.far * .04, -.1], [f.far * w + tip, v], [tip, v + .03]])], shade, .55, .03, clip)
    c.soft([f.warp(oval(tip - f.far * .03, v - .08, .05, .09))], f.light, .6, .02)
    c.poly(f.warp(oval(tip, v - .02, w, .07, arc=(.15, np.pi - .15), k=12)), shade, line=.045)
    return {'Rosy_Cheeks': [pts * 1.15 - .15 * pts.mean(0) for pts in cheeks]}  # with the soft edge


def paint_features(c, y, p, f):
    """Eyes and brows, mouth, beard; the goatee starts below the lower lip wherever that is."""
    makeup, lids, t, brow = y['Heavy_Makeup'], [], np.linspace(0, 1, 10)[:, None], f.sexed('brow', .045, .065, .1, .135)
    ew, eh, x = p['eye_w'] * (.94 if f.male else 1.05), p['eye_h'] * (.88 if f.male else 1.1), np.linspace(-1, 1, 21)
    bv, shadow = -.30 - p['brow_v'] - (.03 if not f.male else 0) - eh * .3 + .07, pick(LIDS, p['lid'])
    for side in (1, -1):
        at = lambda pts: f.warp(pts * np.array([side, 1]) + [side * p['eye_d'], f.ev])  # noqa: E731 (outwards is +u)
        upper = oval(0, 0, ew, eh * p['upper'], 1.8, **TOP, k=17)
        lower = oval(0, 0, ew, eh * .8 * p['lower'], 1.8, (np.pi, 0), 17)
        lid = np.concatenate([oval(.03, -.02, ew * 1.3, eh + .17, **TOP, k=17), upper[::-1]])
        lids.append(at(np.concatenate([lid[:17], lower[::-1] * [1.1, 1.2]])))
        if makeup:
            c.poly(at(lid), shadow)
            c.poly(at(lower), lerp(shadow, (0, 0, 0), .3), line=.04)
        c.poly(at(np.concatenate([upper, lower[::-1]])), (250, 250, 248), FEATURE)
        iris = oval(side * p['gaze'], 0, .105, .115)
        iris[:, 1] = np.clip(iris[:, 1], np.interp(iris[:, 0], *upper.T), np.interp(iris[:, 0], *lower.T))
        c.poly(at(iris), pick(EYES, p['eye_c']))
        c.poly(at(iris * .5), (15, 12, 15))
        c.poly(f.warp(oval(side * p['eye_d'] + .04, f.ev - .04, .03, .03, k=8)), (255, 255, 255))
        c.poly(at(upper), lerp(f.shade, (30, 20, 20), .6 if f.male else 1), line=.075 if makeup else .04)
        for u, lash in ((.6, .1), (.85, .11), (1., .1)) if makeup else ():
            root = np.array([ew * u, np.interp(ew * u, *upper.T)])
            c.poly(at([root, root + [.09, -lash]]), (20, 12, 15), line=.05)
        arc = oval(0, bv, .28, .1, arc=(np.pi + .25, 2 * np.pi - .25), k=10) + t * [0, p['brow_a'] + p['outer']]
        arc = arc + (1 - t) * [-p['close'], p['inner']] + [0, p['one'] * (side > 0)]
        c.poly(at(arc), lerp(f.hair_dark, (40, 28, 25), .5), line=brow)
    mw, thick = p['mouth_w'] * (1.05 if f.male else .95) * p['wide'], f.sexed('lip', .09, .12, .045, .07)
    bend = p['smile'] * (1 - x ** 2) - p['smile'] * .5 - p['smirk'] * np.clip(x + .25, 0, 2) ** 2
    gap, edge = max(0., p['open']) * (1 - np.abs(x) ** p['square']), (1 - x ** 2) ** .6
    bow, dip = thick * edge * (1 - .35 * np.exp(-(x / .18) ** 2)), np.exp(-(x / .17) ** 2)
    line = lambda v: f.warp(np.stack([mw * x, f.mv + v], 1))  # noqa: E731
    lips = np.concatenate([line(bend - gap * .4 - bow), line(bend + gap * .8 + thick * 1.2 * edge)[::-1]])
    lip = pick(LIPS, p['lipstick']) if makeup else lerp(f.skin, (170, 70, 70), .25 if f.male else .4)
    c.poly(lips, lip, FEATURE)
    for low, color in ((.8, (110, 30, 35)), (p['teeth'], (250, 248, 242))) if p['open'] > .03 else ():
        c.poly(np.concatenate([line(bend - gap * .4), line(bend + gap * low)[::-1]]), color)
    if p['open'] <= .03:
        c.poly(line(bend), lerp(lip, (60, 10, 15), .55), line=.04)
    base, u = f.mv - max(gap) * .4 + bend.min() * .3 - thick * .6 + p['must_d'] * x ** 2, p['must_w'] * x
    mustache = np.concatenate([np.stack([u, base - .2 * (1 - np.abs(x) ** 2.5) + .05 * dip], 1),
                               np.stack([u, base + .03 * (x ** 2 - dip)], 1)[::-1]])
    top, low = max(f.mv + max(bend + gap * .8) + thick * 1.2 + .04, p['goat_v']), f.chin - .02
    goatee = oval(1.15 * np.sin(p['yaw']) * .85, (top + low) / 2, p['goat_w'], (low - top) / 2, 2.6)
    shapes = {'Mustache': [f.warp(mustache)], 'Goatee': [goatee]}
    for a in [a for a in shapes if y[a]]:
        c.poly(shapes[a][0], f.beard, FEATURE)
    return shapes | {'Heavy_Makeup': lids + [lips]}


def paint_front(c, y, p, f):
    """Hair in front, hat, glasses."""
    if not y['Bald']:
        c.poly(np.concatenate([f.outer, f.inner[::-1]]), f.hair, HAIR_ID)
    if not y['Bald'] and f.texture == 'plain':
        c.poly(f.inner, f.hair_dark, line=.06)
        gleam = slice(26, 36) if f.far > 0 else slice(45, 55)
        c.poly(f.outer[gleam] * .5 + f.inner[gleam] * .5, f.hair_light, line=.09)
    for i, path in enumerate(f.strands if not y['Bald'] else ()):
        c.poly(path, f.hair_light if i == 1 else f.hair_dark, line=.05)
    color, yaw = hsv(p['hat_h'], p['hat_s'], p['hat_v']), 1.15 * np.sin(p['yaw'])
    if np.abs(np.subtract(color, f.hair)).sum() < 150:  # too like the hair
        color = hsv((p['hat_h'] + .5) % 1, .8, .8 if sum(f.hair) < 380 else .4)
    dark, trim = lerp(color, (0, 0, 0), .3), lerp(color, (255, 255, 255) if p['band'] < .5 else (20, 20, 30), .55)
    band = np.concatenate([oval(0, -.84, 1.2, .08, **TOP), oval(0, -.58, 1.2, .1, **BOTTOM)])
    beanie = [(oval(0, -1.52, .17, .15), trim), (oval(0, -.6, 1.14, .92, **TOP), color),
              (band, trim if p['band'] > .3 else dark)]
    cap = [(oval(0, -.55, 1.16, .88, 2.3, **TOP), color), (oval(yaw, -1.4, .1, .05), dark),
           (oval(yaw * .6, -.64, .95, .22, 2.6), dark), (oval(yaw * .6, -.74, .9, .12), color)]
    crown = np.concatenate([[[-.96, -.65]], oval(0, -1.2, .86, .28, 3, **TOP), [[.96, -.65]]])
    ribbon = np.array([[-.97, -.68], [-.92, -.92], [.92, -.92], [.97, -.68]])
    brimmed = [(crown, color), (oval(0, -.66, 1.5, .2), dark), (oval(0, -.7, 1.42, .14), color), (ribbon, trim)]
    hat = (beanie[int(p['pom'] >= .5):], cap, brimmed)[int(3 * p['hat'])]  # not every beanie has a pom
    for pts, color in hat if y['Wearing_Hat'] else ():
        c.poly(pts, color, HAT_ID)
    lenses = [f.warp(oval(side * p['eye_d'], f.ev + .03, p['lens_w'], p['lens_h'], p['lens_n'])) for side in (-1, 1)]
    if y['Eyeglasses']:
        far_off = [x for x in FRAMES if abs(sum(x) - sum(f.skin)) > 190]  # a frame like the skin would not be seen
        frame, tint = pick(far_off, p['frame']), p['tint'] < .3
        c.soft(lenses, pick(GLASS, p['tint'] / .3) if tint else (255, 255, 255), .45 if tint else .14)
        for lens, side in zip(lenses, (-1, 1)):
            c.poly(np.concatenate([lens, lens[:3]]), frame, FEATURE, line=.085)
            c.poly(np.array([lens[np.argmax(lens[:, 0] * side)], [side * .98, f.ev - .06]]), frame, line=.07)
        c.poly(f.warp([[-.13, f.ev], [0, f.ev - .03], [.13, f.ev]]), frame, line=.08)
    bridge = f.warp([[-.12, f.ev - .05], [.12, f.ev - .05], [.12, f.ev + .04], [-.12, f.ev + .04]])
    rims = [lens.mean(0) + (lens - lens.mean(0)) * 1.14 for lens in lenses]
    return {'Wearing_Hat': [pts for pts, _ in hat], 'Eyeglasses': rims + [bridge]}


def paint(c, y, p):
    """Draws the person of parameters p with attributes y on Canvas c; returns dict attribute or part -> its shapes."""
    def warp(pts):  # features sit on a ball that yaw turns
        u, v = np.array(pts, float).T
        return np.stack([1.15 * np.sin(np.arcsin(np.clip(u / 1.15, -1, 1)) + p['yaw']), v], 1)
    f = SimpleNamespace(male=y['Male'], far=1 if p['light'] > 0 else -1, warp=warp, tone=2.999 * p['skin'])
    f.sexed = lambda name, *bounds: lerp(*bounds[2:] if f.male else bounds[:2], p[name])  # female lo, hi, male lo, hi
    skin = PALE if y['Pale_Skin'] else lerp(SKIN[int(f.tone)], SKIN[int(f.tone) + 1], f.tone % 1)
    f.skin = tuple(int(min(255, x + p['skin2'] * (not y['Pale_Skin']))) for x in skin)
    f.shade, f.light = lerp(f.skin, (90, 30, 20), .35), lerp(f.skin, (255, 250, 240), .35)
    named = [HAIR[a] for a in COLORS if y[a]] or [pick(p['others'], p['hair'])]
    hair = HAIR[COLORS[2 * (p['hair'] >= .5)]] if y['Bald'] else named[0]  # of the brows and the beard
    f.hair = f.beard = tuple(int(min(255, x * p['shade'])) for x in hair)
    f.hair_dark, f.hair_light = lerp(f.hair, (0, 0, 0), .32), lerp(f.hair, (255, 250, 245), .3)
    for _ in range(6):  # a beard like the skin would not be seen
        f.beard = lerp(f.beard, (15, 10, 10), .3 if sum(f.skin) - sum(f.beard) < 200 else 0)
    f.ev, f.mv, f.chin = -.08 + p['pitch'], .70 + p['pitch'], f.sexed('jaw', 1.2, 1.27, 1.29, 1.36)
    # hair: paths from the lower left over the top to the lower right, outer edge, inner hairline, strands between them
    f.texture = 'straight' if y['Straight_Hair'] else 'wavy' if y['Wavy_Hair'] else 'plain'
    crop, short, medium = (.93, .85, .95) if f.male else (.15, .06, .3)
    kind = 'short' if p['length'] < short and not y['Wearing_Hat'] else 'medium' if p['length'] < medium else 'long'
    kind = kind if f.texture != 'plain' else 'crop' if p['length'] < crop else 'bun'  # cropped or tied back
    f.long, fringe = kind in ('medium', 'long'), f.texture == 'straight' and p['bangs'] < .5
    bottom = dict(short=.12 if y['Wavy_Hair'] else .42, medium=.95, long=1.75).get(kind, 0.) + .25 * p['fall'] * f.long
    vol, s = {'plain': .07, 'straight': p['vol'], 'wavy': p['vol'] + .04}[f.texture], np.linspace(-1, 1, 81)
    side, a, k = np.sign(s), np.clip(s / .6, -1, 1), np.clip((np.abs(s) - .6) / .4, 0, 1)
    outer = np.stack([(1 + vol) * np.sin(a * np.pi / 2) + side * k * (.06 if f.long or kind == 'short' else .06 - vol),
                      -.1 - (1.14 + vol) * np.cos(a * np.pi / 2) + k * (bottom + .1)], 1)
    outer[:, 1] = np.maximum(outer[:, 1], -.75 if y['Wearing_Hat'] else -9)  # hair must not stick out of a hat
    parting, low = (0. if fringe or kind == 'crop' else p['part']), y['Wearing_Hat'] or p['bun'] < .4
    u, lift = parting + a * (.86 - side * parting), p.get('hairline', 0)
    arch = 1 - np.abs(a) ** (4 if fringe or kind == 'crop' or lift else 1. if kind == 'short' else 1.5)
    if kind == 'crop' and y['Wearing_Hat']:  # else next to nothing of it would be seen
        u, outer[:, 1] = u * .84, outer[:, 1] + .2 * k
    v = -.25 - lift - arch * (.22 if fringe else .52) + k * (bottom + .25)
    f.outer, f.inner = outer, f.warp(np.stack([u + side * k * (-.04 if f.long else .08), v], 1))
    f.strands = [(outer + (f.inner - outer) * t)[4:-4] for t in (.2, .45, .7) if f.texture == 'straight']
    if f.texture == 'wavy':
        f.strands = [ripple(outer + (f.inner - outer) * t, -.09, p['wave_n'] * .8) for t in (.2, .45, .7)]
        f.outer, f.inner = ripple(outer, p['wave'], p['wave_n']), ripple(f.inner, -.07, p['wave_n'] * .8)
    bun = oval(1.1 if p['part'] > 0 else -1.1, .72, .3, .34) if low else oval(p['part'] * .3, -1.5, .4, .32)
    f.buns = [bun] if kind == 'bun' and not y['Bald'] else []
    parts = dict(brows=[warp(oval(0, f.ev - .38, .86, .30, 4))], mouth=[warp(oval(0, f.mv + .02, .66, .42, 2.6))],
                 eyes=[warp(oval(side * p['eye_d'], f.ev, .36, .27, 2.5)) for side in (-1, 1)])
    return parts | paint_head(c, y, p, f) | paint_features(c, y, p, f) | paint_front(c, y, p, f)


def background(p, rng, size, clutter):
    """A muted colour with a mild vertical gradient, and `clutter` shapes on it: an RGB image."""
    base = np.array(hsv(p['bg_h'], p['bg_s'], p['bg_v']))
    ramp = (base * (1 + p['bg_g'] * np.linspace(-1, 1, size)[:, None])).clip(0, 255).astype(np.uint8)
    img = Image.fromarray(np.broadcast_to(ramp[:, None], (size, size, 3)).copy())
    for _ in range(int(np.ceil(clutter * 16))):
        kind, (x, y, w, h, turn, hue, val) = rng.integers(4), rng.random(7)
        ink = lerp(tuple(base), hsv(hue, clutter, .15 + .85 * val), .25 + .75 * clutter)
        w, h, c, s = .06 + .16 * w, .06 + .16 * h, np.cos(turn * np.pi), np.sin(turn * np.pi)
        to = lambda pts: ((np.array(pts) @ [[c, s], [-s, c]] + [x, y]) * size).ravel().tolist()  # noqa: E731
        shapes = [oval(0, 0, w, h), [[-w, -h], [w, -h], [w, h], [-w, h]], np.array([[-w, -h], [w, -h], [0, h]]) * 1.2]
        for pts in shapes[kind:kind + 1]:
            ImageDraw.Draw(img).polygon(to(pts), ink)
        for k in (-1, 0, 1) if kind == 3 else ():  # stripes across the picture
            ImageDraw.Draw(img).line(to([[-2, k * h], [2, k * h]]), ink, int(size * w / 4) + 1)
    return img


def regions_of(c, y, p, shapes, names):
    """dict attribute or expression -> bool (size, size): where it is on the person painted on c, or would be."""
    def hair_with(**change):  # on the same person with other labels
        paint(other := Canvas(c.size, p), {**y, 'Bald': False, **change}, p)
        return np.asarray(other.ids) == HAIR_ID
    ids, m = np.asarray(c.ids), {a: np.asarray(c.mask(s)) > 0 for a, s in shapes.items()}
    seen, hair = (ids != HAIR_ID) & (ids != HAT_ID), hair_with() if y['Bald'] else ids == HAIR_ID
    for a, e in EXPRESSIONS.items() if 'sad' in names else ():  # the parts that it changes, for neutral all three
        m[a] = np.isin(ids, (FACE, FEATURE)) & np.any([m[k] for k in PARTS if PARTS[k] & set(e or REST)], 0)
    m |= {a: m[a] & seen for a in ('Rosy_Cheeks', 'Heavy_Makeup')} | dict.fromkeys(COLORS, hair)
    # another texture takes the hair that is there away: both shapes. Bald also shows the scalp
    for a, b in (('Straight_Hair', 'Wavy_Hair'), ('Wavy_Hair', 'Straight_Hair')):
        m[a] = hair if y[a] or a not in names else hair | hair_with(**{a: True, b: False})
    scalp = np.asarray(c.mask([oval(0, 0, 1, 1.2, **TOP) * [1, .72] - [0, .336]])) > 0
    m['Bald'] = hair | (scalp & (ids != HAT_ID) & (ids != FEATURE))
    return m | {'Pale_Skin': (ids == FACE) | (ids == NECK), 'Male': ids >= FACE}


def draw_face(config, index, split='train', label=None, regions=True):
    """Image `index` of a split, for expressions of person index // 8 with expression index % 8; or the same photo with
    other labels: {0, 1} in the order of config['attrs'], or the name of an expression.
    Returns image uint8 (H, W, 3), label uint8 (C,), masks uint8 (C, H, W) in {0, 1} (None if not `regions`): where each
    is, or would be. ValueError for a label that is too short or not exclusive.
    """
    size, multi, variety = config['image_size'], config['label'] == 'multi', config['variety']
    names = config['attrs'].split(',') if config['attrs'] else ATTRS if multi else PEOPLE
    who = [index if multi else index // 8] * 3 + [index] * 2  # separate streams: `balance` must not change the person
    rngs = [np.random.default_rng([config['seed'], SPLITS[split], i, k]) for k, i in enumerate(who)]
    y = draw_label(rngs[0], config['balance'])
    if multi and label is not None:
        y |= dict(zip(names, map(bool, label), strict=True))
    y = {a: y[a] and a in (*names, 'Male') for a in ATTRS}  # Male even if not asked for: only males have beards
    if any(sum(y[a] for a in group) > 1 for group in EXCLUSIVE):
        raise ValueError(f'at most one of each group: {EXCLUSIVE}, not {[a for a in ATTRS if y[a]]}')
    y_out, texture = [y[a] for a in names], {'Straight_Hair', 'Wavy_Hair'} & set(names)
    y['Straight_Hair'] = y['Straight_Hair'] if texture else not y['Bald']  # if nobody asks, hair is straight
    u = .5 + (rngs[1].random(len(RANGES)) - .5) * variety
    p = REST | {k: lo + (hi - lo) * t for (k, (lo, hi)), t in zip(RANGES.items(), u)}
    # hair of none of the named colours: anything if these are all, else a natural one that is not among them
    natural = [HAIR[a] for a in ('Black_Hair', 'Brown_Hair') if a not in names] or OTHER_HAIR[:1]
    p['others'] = OTHER_HAIR if set(COLORS) <= set(names) else natural
    up = 4 if size <= 64 else 3 if size <= 128 else 2  # drawn this much larger, then reduced
    if not multi:
        name, u = label or list(EXPRESSIONS)[index % 8], (rngs[4].random(len(JITTER) + 1) - .5) * variety
        p |= {k: p[k] + w * t for (k, w), t in zip(JITTER.items(), u)} | REST | {'hairline': .13, 'bangs': 1}
    img = background(p, rngs[2], size * up, config['clutter'])
    c, names = Canvas(size * up, p, img.copy()), names if multi else list(EXPRESSIONS)
    shapes = paint(c, y, p)
    m = regions_of(c, y, p, shapes, names) if regions or not multi else {}
    if not multi:  # painted again, and only what an expression may change taken from there
        y_out, other = [a == name for a in names], Canvas(size * up, p, img)
        paint(other, y, p | {k: lerp(REST[k], v, 1 + .25 * u[-1]) for k, v in EXPRESSIONS[name].items()})
        c.img.paste(other.img, None, Image.fromarray(m[name]))
    # light and a little noise, so that no single pixel tells anything
    x = np.asarray(c.img.reduce(up), np.float32) * (p['gain'] * np.array([1 + p['warm'], 1, 1 - p['warm']], np.float32))
    x = (x + 2 * rngs[3].standard_normal(x.shape, np.float32) + .5).clip(0, 255).astype(np.uint8)
    if not regions:
        return x, np.array(y_out, np.uint8), None
    # a pixel belongs to an attribute by its larger part, to an expression if any of it may change
    share = np.stack([m[a] for a in names]).reshape(-1, size, up, size, up).mean((2, 4), dtype=np.float32)
    return x, np.array(y_out, np.uint8), (share >= (.5 if multi else 1e-6)).astype(np.uint8)


def draw_rows(job):
    """Rows lo..hi-1 of a split for a job (split, lo, hi, config): dict name of the array -> uint8 array."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    split, lo, hi, config = job
    rows, people = np.arange(lo, hi), config[f'n_{split}'] // 8
    if config['label'] != 'multi' and split != 'train':  # neighbours are other people, as grids show the first few
        rows = rows % people * 8 + (rows // people + rows % people) % 8
    drawn = zip('xym', zip(*(draw_face(config, int(i), split, regions=split != 'train') for i in rows)))
    return {f'{split}_{k}.npy': np.stack(a) for k, a in drawn if a[0] is not None}


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
    multi = label == 'multi'
    if label not in ('multi', 'expressions'):
        sys.exit(f'--label={label}: wants multi or expressions')
    counts = {'train': n_train, 'val': n_val, 'test': n_test}
    if not multi and any(n % 8 for n in counts.values()):
        sys.exit(f'--n_train={n_train} --n_val={n_val} --n_test={n_test}: want, of expressions, multiples of 8')
    if max(balance, variety, clutter) > 1:
        sys.exit(f'--balance={balance} --variety={variety} --clutter={clutter}: want numbers from 0 to 1')
    names = ATTRS if multi else list(EXPRESSIONS)
    if attrs:
        names = attrs.split(',')
        if not multi or len(set(names) & set(ATTRS)) < len(names):
            sys.exit(f'--attrs={attrs}: wants some of {",".join(ATTRS)}, each once; with --label=expressions nothing')
    files = [f'{split}_{kind}.npy' for split in SPLITS for kind in 'xym']
    # Regions of the training images are not stored.
    files.remove('train_m.npy')
    stop_if_there(counts, files)
    try:
        os.makedirs(temp, exist_ok=True)
        arrays = draw_all(counts, files)
        groups = [[name for name in names if name in group] for group in EXCLUSIVE] if multi else [names]
        meta = {'dataset': 'toyfaces' if multi else 'toyexpressions', 'label': 'multi' if multi else 'single',
                'image_size': image_size, 'attrs': names, 'exclusive': [group for group in groups if len(group) > 1],
                'counts': counts, 'made_by': shlex.join(['python', 'data/toyfaces/prepare.py', *sys.argv[1:]]),
                'config': config}
        write_set(arrays, meta)
    except (OSError, KeyboardInterrupt, multiprocessing.TimeoutError) as error:
        sys.exit(f'{dst}: stopped, no set was written: {str(error) or "interrupted, or a process died"}')
    finally:
        shutil.rmtree(temp, ignore_errors=True)
    for k, name in enumerate(names):
        shares = [f'{arrays[f"{split}_y.npy"][:, k].mean():6.1%} of {split}' for split in SPLITS]
        print(f'{name:14}', *shares)
    print(f'{sum(counts.values())} images of {image_size} px in {dst}, {time.time() - started:.0f} s')
