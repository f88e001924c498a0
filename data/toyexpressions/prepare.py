"""
Draws the toyexpressions set: cartoon people, each with the eight expressions of RaFD. No download.

Image i of a split is person i // 8 with expression i % 8, of val and test in an order in which neighbours are other
people; no person is in two splits. A person is a head, skin, hair,
eyes, nose, perhaps glasses, background and light; an image adds a little of its own: pose, gaze, how strong the
expression is. An expression is made with brows, eyes and mouth and touches nothing outside their areas:
draw_face(..., expression=...) draws the same photo with another one. Persons and images have their own random streams
and measures are relative to the face, so neither the number of workers nor image_size changes anyone.

    python data/toyexpressions/prepare.py                                        # 5,200 images of 64 px
    python data/toyexpressions/prepare.py --image_size=32 --dst=/tmp/expressions # smaller, elsewhere

Takes about 10 s on 2 cores and 105 MB of disk at the defaults. Writes to dst: {train,val,test}_x.npy uint8
(N, H, W, 3) RGB, {train,val,test}_y.npy uint8 (N, 8) one-hot, {val,test}_m.npy uint8 (N, 8, H, W) in {0, 1}: where
each expression shows on this face, and, last, meta.json.
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
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

# -----------------------------------------------------------------------------
# what is drawn; every person has 8 images, so counts that are no multiples of 8 are rounded up
image_size = 64   # side in pixels, a multiple of 8 from 32 to 256: 32 for tests, 64 for demos, 128 as the paper's crops
n_train = 4000    # images for training, of 500 people; regions are not stored for these. RaFD has 8,040 of 67 people
n_val = 400       # images for choosing settings, with regions
n_test = 800      # images for reported numbers, with regions; raise it for FID, which wants 2,048 or more
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

ATTRS = ['angry', 'contemptuous', 'disgusted', 'fearful', 'happy', 'neutral', 'sad', 'surprised']
PARTS = ['brows', 'eyes', 'mouth']
SPLITS = {'train': 0, 'val': 1, 'test': 2}

# What an expression does to a part; what it does not name stays as in neutral. Lengths: half the width of the face is 1
# and down is positive. brows: the inner and outer ends go down, the middle arches up, both come together, the one of
# the smirk is raised, the nose wrinkles. eyes: height of the upper and lower half and size of the iris as factors, the
# outer corner goes down, the look goes down. mouth: corners up, one corner up, wider (factor), half of the opening
# above and below, how square it is, teeth above and below, tongue and lips (factor), folds beside it.
NEUTRAL = dict(
    brows=dict(inner=0., outer=0., arch=.07, close=0., one=0., wrinkle=0.),
    eyes=dict(upper=1., lower=1., iris=1., slant=0., look=0.),
    mouth=dict(smile=0., smirk=0., wide=1., above=0., below=0., square=2., teeth=0., lower=0., tongue=0., lips=1.,
               fold=0.))
EXPRESSIONS = {
    'angry': dict(brows=dict(inner=.21, outer=-.10, arch=.02, close=.07), eyes=dict(upper=.72, lower=.75, slant=-.05),
                  mouth=dict(smile=-.10, wide=.85, lips=.5)),
    'contemptuous': dict(brows=dict(one=-.19), mouth=dict(smirk=.24, smile=.02, lips=.7)),
    'disgusted': dict(brows=dict(inner=.17, outer=.05, arch=.02, close=.08, wrinkle=1.),
                      eyes=dict(upper=.42, lower=.45),
                      mouth=dict(smile=-.24, wide=1., above=.10, below=.14, square=2.5, teeth=.3, tongue=1.,
                                 fold=.6)),
    'fearful': dict(brows=dict(inner=-.26, outer=-.03, arch=.02, close=.05), eyes=dict(upper=1.5, lower=1.35, iris=.75),
                    mouth=dict(smile=-.1, wide=1.15, above=.09, below=.12, square=5., teeth=.4, lower=.35)),
    'happy': dict(eyes=dict(upper=1.05, lower=-.45),
                  mouth=dict(smile=.24, wide=1.3, above=-.02, below=.22, teeth=.5, fold=.4)),
    'neutral': {},
    'sad': dict(brows=dict(inner=-.2, outer=.1, arch=.0, close=.03), eyes=dict(upper=.55, slant=.09, look=.03),
                mouth=dict(smile=-.25, wide=.85)),
    'surprised': dict(brows=dict(inner=-.24, outer=-.17, arch=.13), eyes=dict(upper=1.55, lower=1.3, iris=.85),
                      mouth=dict(wide=.65, above=.17, below=.26, teeth=.15)),
}

HAIR = [(26, 22, 26), (60, 36, 24), (96, 56, 30), (150, 98, 48), (226, 188, 104), (172, 174, 180), (176, 70, 32)]
SKIN = [(250, 220, 200), (230, 182, 146), (212, 158, 116), (164, 112, 78), (124, 82, 58)]
FRAMES = [(25, 25, 30), (40, 40, 90), (130, 20, 30), (235, 225, 200)]
EYES = [(70, 45, 30), (50, 90, 150), (60, 110, 70), (110, 80, 40)]

# Everything that varies from person to person, uniform between two bounds
PERSON = dict(
    cx=(.49, .51), cy=(.475, .50), scale=(.335, .36), tilt=(-.04, .04), yaw=(-.07, .07), light=(-1, 1),
    gain=(.95, 1.03), warm=(-.02, .02), male=(0, 1), skin=(0, 1), jaw=(0, 1), brow=(0, 1), lip=(0, 1),
    eye_d=(.41, .46), eye_w=(.235, .275), eye_h=(.125, .155), eye_c=(0, 1), brow_v=(-.03, .03), brow_a=(-.03, .03),
    nose_w=(.13, .2), nose_v=(.28, .35), mouth_v=(.70, .75), mouth_w=(.35, .42), hair=(0, 1), shade=(.88, 1.12),
    style=(0, 1), length=(0, 1), vol=(.1, .2), part=(-.4, .4), line=(2.6, 5.), curl=(.08, .12), glasses=(0, 1),
    frame=(0, 1), lens_n=(2, 4), cloth_h=(0, 1), cloth_s=(.15, .6), cloth_v=(.3, .85), bg_h=(0, 1), bg_s=(.02, .10),
    bg_v=(.55, .85), bg_g=(-.07, .07))
# and from image to image: added to the above where it has the same name
JITTER = dict(cx=(-.015, .015), cy=(-.015, .015), scale=(-.008, .008), tilt=(-.05, .05), yaw=(-.06, .06),
              gain=(-.02, .02), gaze=(-.045, .045), power=(.8, 1.12), side=(0, 1))


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


def blend(expression, power):
    """Part -> dict of its measures: neutral at power 0, the expression at 1, more of it beyond."""
    return {part: {k: lerp(v, EXPRESSIONS[expression].get(part, {}).get(k, v), power) for k, v in rest.items()}
            for part, rest in NEUTRAL.items()}


def paint(c, p, e):
    """Draws the person of parameters p with measures e (see blend) on Canvas c; returns dict part -> mask of its area,
    L images, 255 inside. Outside the areas nothing depends on e."""
    male, far = p['male'] < .5, 1 if p['light'] > 0 else -1

    def warp(pts):  # features sit on a ball that yaw turns
        pts = np.array(pts, float)
        pts[:, 0] = 1.15 * np.sin(np.arcsin(np.clip(pts[:, 0] / 1.15, -1, 1)) + p['yaw'])
        return pts

    def sexed(name, female_lo, female_hi, male_lo, male_hi):
        return lerp(male_lo, male_hi, p[name]) if male else lerp(female_lo, female_hi, p[name])

    tone = 3.999 * p['skin']
    skin = lerp(SKIN[int(tone)], SKIN[int(tone) + 1], tone % 1)
    shade, light = lerp(skin, (90, 30, 20), .35), lerp(skin, (255, 250, 240), .35)
    hair = tuple(int(min(255, x * p['shade'])) for x in pick(HAIR, p['hair']))
    hair_dark, hair_light = lerp(hair, (0, 0, 0), .32), lerp(hair, (255, 250, 245), .3)
    styles = ['bald', 'crop', 'crop', 'short', 'short', 'curly'] if male else ['bob', 'long', 'long', 'curls', 'bun']
    style = pick(styles, p['style'])
    cloth = hsv(p['cloth_h'], p['cloth_s'], p['cloth_v'])

    # hair: two paths from the lower left over the top to the lower right. The hairline stays above all brows
    long = style in ('bob', 'long', 'curls')
    bottom = {'short': .35, 'curly': .25, 'bob': .85, 'long': 1.7, 'curls': 1.1}.get(style, 0) + .25 * p['length']
    vol = p['vol'] if style not in ('crop', 'bun') else .06
    s = np.linspace(-1, 1, 81)
    side, a, k = np.sign(s), np.clip(s / .6, -1, 1), np.clip((np.abs(s) - .6) / .4, 0, 1)
    outer = np.stack([(1 + vol) * np.sin(a * np.pi / 2) + side * k * (.06 if long else .03 - vol),
                      -.1 - (1.12 + vol) * np.cos(a * np.pi / 2) + k * (bottom + .1)], 1)
    part = p['part'] if style not in ('crop', 'bun') else 0
    inner = warp(np.stack([part + a * (.88 - side * part) + side * k * (-.02 if long else .1),
                           -.38 - .52 * (1 - np.abs(a) ** p['line']) + k * (bottom + .38)], 1))
    if style in ('curly', 'curls'):
        outer *= 1 + p['curl'] * np.abs(np.sin(np.arange(81) * .5))[:, None]

    # behind the face: hair, neck, shoulders, ears
    if style == 'bun':
        c.poly(oval(p['part'] * .3, -1.3, .42, .3), hair_dark)
    if long:
        c.poly(outer, hair_dark)
    neck, width = sexed('jaw', .42, .5, .62, .72), sexed('jaw', 1.15, 1.3, 1.4, 1.6)
    c.poly(np.array([[-neck, .7], [neck, .7], [neck, 1.7], [-neck, 1.7]]), lerp(skin, shade, .45))
    shoulder = np.array([[neck + .08, 1.38], [width, 1.55], [width + .4, 3]])
    c.poly(np.concatenate([oval(0, 1.36, neck, .16, lo=np.pi, hi=0), shoulder, shoulder[::-1] * [-1, 1]]), cloth)
    for side in (-1, 1):
        c.poly(oval(side, .08, .13, .23), skin)
        c.poly(oval(side * 1.02, .08, .06, .13), shade)

    # the face; its lower half is a superellipse whose exponent is the jaw
    chin = sexed('jaw', 1.2, 1.26, 1.27, 1.34)
    face = np.concatenate([oval(0, 0, 1, 1.18, lo=np.pi, hi=2 * np.pi),
                           oval(0, 0, 1, chin, sexed('jaw', 1.8, 2.1, 2.3, 2.8), 0, np.pi)])
    face[:, 0] += 1.15 * np.sin(p['yaw']) * .8 * np.clip(face[:, 1] / chin, 0, 1) ** 2
    c.poly(face, skin)
    skull = c.mask([face])
    half = dict(lo=-np.pi / 2, hi=np.pi / 2)
    crescent = [oval(0, .05, 1.1, 1.4, **half), oval(-.15, .05, .85, 1.35, **half)[::-1]]
    c.soft([np.concatenate(crescent) * [far, 1]], shade, .2 + .3 * abs(p['light']), .1, skull)
    nose_w, nose_v, tip = p['nose_w'], p['nose_v'], .06 * np.sign(p['yaw']) * min(1, abs(p['yaw']) * 6)
    c.soft([warp([[far * .04, -.1], [far * nose_w + tip, nose_v], [tip, nose_v + .03]])], shade, .5, .03, skull)
    c.line(warp(oval(tip, nose_v - .02, nose_w, .07, lo=.15, hi=np.pi - .15, k=12)), shade, .045)

    # the areas, and what each of them holds: drawn on the bare face, then all that reached beyond its area is undone
    ev, mv, smirk = -.06, p['mouth_v'], 1 if p['side'] < .5 else -1
    areas = {'brows': [warp(oval(0, -.44, .86, .30, 4)), warp(oval(0, 0, .2, .26, 3))],
             'eyes': [warp(oval(side * p['eye_d'], ev, .36, .29, 2.5)) for side in (-1, 1)],
             'mouth': [warp(oval(0, mv + .02, .66, .40, 2.6))]}
    areas = {k: ImageChops.multiply(c.mask(v), skull) for k, v in areas.items()}

    def undo_beyond(area, before):
        c.img.paste(before, None, ImageChops.invert(areas[area]))

    before, m = c.img.copy(), e['mouth']
    x, thick = np.linspace(-1, 1, 25), sexed('lip', .085, .11, .05, .07) * m['lips']
    w, edge = p['mouth_w'] * m['wide'], (1 - x ** 2) ** .6
    mid = m['smile'] * (.55 - x ** 2) - m['smirk'] * np.clip(x * smirk + .25, 0, 2) ** 2 * .75
    open_ = (1 - np.abs(x) ** m['square']) ** .6
    top, low = mid - m['above'] * open_, mid + m['below'] * open_
    line = lambda v: warp(np.stack([w * x, mv + v], 1))  # noqa: E731
    between = lambda v0, v1: np.concatenate([line(v0), line(v1)[::-1]])  # noqa: E731
    lip = lerp(skin, (165, 50, 60), .38 if male else .55)
    bow = thick * edge * (1 - .35 * np.exp(-(x / .18) ** 2))
    for side in (-1, 1) if m['fold'] > 0 else ():  # from the nose to the corners
        fold = [[nose_w + .06, nose_v + .1], [w * .85 + .1, mv - .2], [w + .09, mv + .02]]
        c.line(warp(np.array(fold) * [side, 1]), lerp(skin, shade, m['fold']), .05)
    c.poly(between(top - bow, low + thick * 1.25 * edge), lip)
    if m['above'] + m['below'] > .03:
        c.poly(between(top, low), (95, 22, 30))
        if m['tongue'] > 0:
            c.poly(between(np.maximum(top, low - .12), low), (205, 90, 95))
        c.poly(between(top, top + (low - top) * m['teeth']), (250, 248, 242))
        c.poly(between(low - (low - top) * m['lower'], low), (250, 248, 242))
    else:
        c.line(line(mid), lerp(lip, (50, 8, 12), .7), .055)
    undo_beyond('mouth', before)

    before, m = c.img.copy(), e['eyes']
    ew, eh, lash = p['eye_w'] * (.96 if male else 1.04), p['eye_h'], lerp(shade, (30, 20, 20), .7 if male else 1)
    for side in (1, -1):
        at = lambda pts: warp(np.asarray(pts) * [side, 1] + [side * p['eye_d'], ev])  # noqa: E731 (outwards is +u)
        rest, upper, lower = (oval(0, 0, ew, eh * h, 1.8, np.pi, 2 * np.pi, 17) + np.linspace([0, -1], [0, 1], 17)
                              * m['slant'] for h in (1.05, m['upper'], -.8 * m['lower']))
        c.poly(at(np.concatenate([np.minimum(rest, upper), upper[::-1]])), lerp(skin, shade, .6))  # the lid
        c.poly(at(np.concatenate([upper, lower[::-1]])), (250, 250, 248))
        iris = oval(side * p['gaze'], m['look'], .115 * m['iris'], .12 * m['iris'])
        for pts in (iris, (iris - iris.mean(0)) * .5 + iris.mean(0)):
            v = np.clip(pts[:, 1], np.interp(pts[:, 0], *upper.T), np.interp(pts[:, 0], *lower.T))
            c.poly(at(np.stack([pts[:, 0], v], 1)), pick(EYES, p['eye_c']) if pts is iris else (15, 12, 15))
        if m['upper'] > .8:
            c.poly(warp(oval(side * p['eye_d'] + .04, ev - .04, .03, .03, k=8)), (255, 255, 255))
        c.line(at(upper), lash, .055)
        c.line(at(lower), lerp(skin, shade, .8), .03)
    undo_beyond('eyes', before)

    before, m = c.img.copy(), e['brows']
    brow = lerp(hair_dark, (15, 10, 10), .4 if sum(skin) - sum(hair_dark) > 250 else .8)  # seen against the skin
    for side in (1, -1):
        t = np.linspace(-1, 1, 11)  # from the nose outwards
        v = ev - .31 + p['brow_v'] - (m['arch'] + p['brow_a'] * .5) * (1 - t ** 2)
        v += lerp(m['inner'], m['outer'], (t + 1) / 2) + (m['one'] if side == smirk else -.15 * m['one'])
        c.line(warp(np.stack([side * (p['eye_d'] + .27 * t - m['close'] * (1 - t) / 2), v], 1)), brow,
               sexed('brow', .065, .085, .10, .13))
    for v in (-.14, -.05, .04) if m['wrinkle'] > 0 else ():
        c.line(warp(oval(0, v, .13, .05, lo=np.pi + .2, hi=2 * np.pi - .2, k=8)), shade, .045)
    undo_beyond('brows', before)

    # in front: hair, glasses
    if style != 'bald':
        c.poly(np.concatenate([outer, inner[::-1]]), hair, 1)
        for t in (.25, .5, .75):
            path = (outer + (inner - outer) * t)[5:-5] if style != 'crop' else inner[12:-12]
            c.line(path, hair_light if t == .5 and style != 'crop' else hair_dark, .04)
    if p['glasses'] < .18:
        frame = pick([f for f in FRAMES if abs(sum(f) - sum(skin)) > 190], p['frame'])  # seen against the skin
        lenses = [warp(oval(side * p['eye_d'], ev + .02, .34, .27, p['lens_n'])) for side in (-1, 1)]
        c.soft(lenses, (255, 255, 255), .1)
        for lens, side in zip(lenses, (-1, 1)):
            c.line(np.concatenate([lens, lens[:3]]), frame, .05)
            c.line(np.array([lens[np.argmax(lens[:, 0] * side)], [side * .98, ev - .06]]), frame, .05)
        c.line(warp([[-.1, ev - .02], [0, ev - .05], [.1, ev - .02]]), frame, .05)
    return areas


def draw_face(index, split='train', image_size=64, seed=1, expression=None, regions=True):
    """Image `index` of a split: person index // 8 with expression index % 8.

    expression: a name of ATTRS instead of that one: the same photo of the same person with another expression.
    Returns image uint8 (H, W, 3), label uint8 (8,), masks uint8 (8, H, W) in {0, 1} (None if not `regions`): where
    each expression shows, or would show, on this face: the parts that differ from neutral; for neutral all three.
    KeyError if there is no such expression.
    """
    expression = expression or ATTRS[index % 8]
    streams = [np.random.default_rng([seed, SPLITS[split], *k]) for k in ((0, index // 8), (1, index), (2, index))]
    p = {k: lo + (hi - lo) * u for (k, (lo, hi)), u in zip(PERSON.items(), streams[0].random(len(PERSON)))}
    for (k, (lo, hi)), u in zip(JITTER.items(), streams[1].random(len(JITTER))):
        p[k] = p.get(k, 0) + lo + (hi - lo) * u
    up = 4 if image_size <= 64 else 3 if image_size <= 128 else 2
    size = image_size * up
    base = np.array(hsv(p['bg_h'], p['bg_s'], p['bg_v']))
    ramp = (base * (1 + p['bg_g'] * np.linspace(-1, 1, size)[:, None])).clip(0, 255).astype(np.uint8)
    c = Canvas(size, p, Image.fromarray(np.broadcast_to(ramp[:, None], (size, size, 3)).copy()), ids=True)
    areas = paint(c, p, blend(expression, p['power']))
    # light and a little noise, so that no single pixel tells anything
    x = np.asarray(c.img.reduce(up), np.float32) * (p['gain'] * np.array([1 + p['warm'], 1, 1 - p['warm']], np.float32))
    x = (x + 2 * streams[2].standard_normal(x.shape, np.float32) + .5).clip(0, 255).astype(np.uint8)
    y = np.array([a == expression for a in ATTRS], np.uint8)
    if not regions:
        return x, y, None
    seen = np.asarray(c.ids) == 0  # not behind hair
    # a pixel belongs to an area if any of it does: outside nothing at all may change
    fine = {k: ((np.asarray(v) > 0) & seen).reshape(image_size, up, image_size, up).any((1, 3))
            for k, v in areas.items()}
    m = [np.any([fine[k] for k in EXPRESSIONS[a] or PARTS], 0) for a in ATTRS]
    return x, y, np.stack(m).astype(np.uint8)


def draw_faces(job, **settings):
    """Images lo..hi-1 of a split for job (split, lo, hi): their names in a set -> arrays; regions not for train."""
    split, lo, hi = job
    faces = zip(*(draw_face(i, split, regions=split != 'train', **settings) for i in range(lo, hi)))
    return {f'{split}_{k}.npy': np.stack(a) for k, a in zip('xym', faces) if a[0] is not None}


def start_worker():
    """A worker leaves Ctrl-C to its parent, and goes when the parent is gone: else it would wait for ever."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


def row_of(i, split, n):
    """Where image i of the n of a split goes: training images in order, others so that neighbours are other people."""
    return i if split == 'train' else (i % 8 - i // 8) % 8 * (n // 8) + i // 8


def temporary(folder, name):
    """Where an array grows until it is complete."""
    return os.path.join(folder, f'.{name}.tmp')


def stop_if_there(dst, config, arrays):
    """Returns if dst holds no finished set; else exits: 0 if it was made with this config and is all there, else 1."""
    path = os.path.join(dst, 'meta.json')
    if not os.path.exists(path):
        return
    remedy = '--force=True redoes it, --dst= puts this one elsewhere'
    try:
        with open(path) as f:
            meta = json.load(f)
        counts, old = meta['counts'], meta['config']
        keys = sorted((set(old) | set(config)) - {'dst', 'workers', 'force', 'max_bad'})  # those change no array
        differ = [f'--{k}={old.get(k)}, now {config.get(k)}' for k in keys if old.get(k) != config.get(k)]
        if differ:
            sys.exit(f'{dst}: there is a set made with other settings ({"; ".join(differ)}): {remedy}')
        for name in arrays:
            if len(np.load(os.path.join(dst, name), mmap_mode='r')) != counts[name.partition('_')[0]]:
                raise ValueError(f'{name} has another length')
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
        sys.exit(f'{dst}: there is a meta.json, but the set is not complete ({e}): {remedy}')
    print(f'already there: {dst}, {", ".join(f"{n:,} {split}" for split, n in counts.items())}')
    sys.exit()


if __name__ == '__main__':
    t0, dst = time.time(), os.path.abspath(os.path.expanduser(dst))
    if image_size % 8 or not 32 <= image_size <= 256:
        sys.exit(f'--image_size={image_size}: wants a multiple of 8 from 32 to 256')
    for k in ('n_train', 'n_val', 'n_test'):
        if config[k] < 1:
            sys.exit(f'--{k}={config[k]}: wants 1 or more images')
        if config[k] % 8:
            print(f'--{k}={config[k]}: rounded up to {config[k] + -config[k] % 8}, eight images a person')
        config[k] += -config[k] % 8
    for k in ('seed', 'workers'):
        if config[k] < 0:
            sys.exit(f'--{k}={config[k]}: wants 0 or more')

    counts, shapes = {split: config[f'n_{split}'] for split in SPLITS}, {}
    for split, n in counts.items():
        shapes[f'{split}_x.npy'], shapes[f'{split}_y.npy'] = (n, image_size, image_size, 3), (n, len(ATTRS))
        if split != 'train':
            shapes[f'{split}_m.npy'] = (n, len(ATTRS), image_size, image_size)
    if not force:
        stop_if_there(dst, config, shapes)

    pool = None
    try:
        os.makedirs(dst, exist_ok=True)
        total, room = sum(128 + int(np.prod(s)) for s in shapes.values()), shutil.disk_usage(dst).free
        if total > room:
            sys.exit(f'{dst}: {total / 1e6:.0f} MB wanted, {room / 1e6:.0f} MB free: fewer images, or another --dst=')
        arrays = {}
        for f, shape in shapes.items():
            arrays[f] = np.lib.format.open_memmap(temporary(dst, f), 'w+', np.uint8, shape)
            if hasattr(os, 'posix_fallocate'):  # a disk that fills up later would kill the writer without a word
                with open(temporary(dst, f), 'r+b') as file:
                    os.posix_fallocate(file.fileno(), 0, os.path.getsize(temporary(dst, f)))

        jobs = [(split, lo, min(lo + 40, n)) for split, n in counts.items() for lo in range(0, n, 40)]
        n_workers = min(workers or os.cpu_count() or 1, len(jobs))
        pool = ProcessPoolExecutor(n_workers, initializer=start_worker) if n_workers > 1 else None
        done, said = 0, time.time()
        draw = functools.partial(draw_faces, image_size=image_size, seed=seed)
        for (split, lo, hi), drawn in zip(jobs, (pool.map if pool else map)(draw, jobs)):
            for f, a in drawn.items():
                arrays[f][row_of(np.arange(lo, hi), split, counts[split])] = a
            done += hi - lo
            if time.time() - said > 2:
                said, rate = time.time(), done / (time.time() - t0)
                eta = (sum(counts.values()) - done) / rate
                print(f'{done}/{sum(counts.values())} images | {rate:.0f}/s | eta {eta:.0f} s', flush=True)

        meta = {'dataset': 'toyexpressions', 'label': 'single', 'image_size': image_size, 'attrs': ATTRS,
                'exclusive': [ATTRS], 'counts': counts,
                'made_by': shlex.join(['python', 'data/toyexpressions/prepare.py', *sys.argv[1:]]), 'config': config}
        with open(temporary(dst, 'meta.json'), 'w') as file:
            json.dump(meta, file, indent=1)
        for a in arrays.values():
            a.flush()
        if os.path.exists(os.path.join(dst, 'meta.json')):
            os.remove(os.path.join(dst, 'meta.json'))  # a mix of old and new must not look complete
        for f in [*shapes, 'meta.json']:  # meta.json last: it says that all the rest is complete
            os.replace(temporary(dst, f), os.path.join(dst, f))
    except BrokenProcessPool:
        sys.exit('a worker process was killed (out of memory?): try --workers=1')
    except OSError as e:
        sys.exit(f'{dst}: cannot write the set: {e.strerror or e}')
    except KeyboardInterrupt:
        sys.exit('interrupted: nothing was kept')
    finally:
        if pool:
            pool.shutdown(wait=True, cancel_futures=True)
        for f in [*shapes, 'meta.json']:  # none after a success
            if os.path.exists(temporary(dst, f)):
                os.remove(temporary(dst, f))
    print(', '.join(f'{split} {n} of {n // 8} people' for split, n in counts.items()),
          f'| {image_size} px in {dst}: {total / 1e6:.0f} MB, {time.time() - t0:.0f} s')
