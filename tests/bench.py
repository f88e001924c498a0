"""
Measures the training steps: iterations/s, ms of D and G step, peak memory, FLOP/s, and what each speed-up gains.

    python tests/bench.py                                                  # all three scripts: `make bench`
    python tests/bench.py --scripts=student --variants=bf16,bf16+att       # what does attention cost?
    python tests/bench.py --scaling=True                                   # against batch size and image size
    python tests/bench.py --evaluation=True                                # where the time of evaluate.py goes
    python tests/bench.py --profile=True                                   # which operations take a step's time
    python tests/bench.py --count=True                                     # what a GPU has to do for it; needs none

One table on the screen and all figures in out_dir/bench.json (count.json). On two CPU cores 5 minutes, at 64 px with
small nets; on a GPU the paper's nets and sizes, and a good part of the time is torch.compile's. Times are medians over
repeats, the spread is (max - min) / median. x is the speed over the first row of its script, at the same n_critic.
FLOP/s are those of the script's step in every row, so useful ones.
Losses and nets are the scripts' own; only the loop around them is repeated here. The images are noise: time does not
depend on what they show. Reading images is measured apart, from a memory map like those of prepare.py.

A variant is float32 or published, or speed-ups joined by +:
    published      StarGAN's training step as published: float32, D on real and fake apart, a graph for the fake,
                   though D does not use it, the fake made anew for the G step, and .item() of each loss
    float32        the script's step, as it is by default on a CPU
    bf16           --dtype=bfloat16
    compile        --compile=True
    channels_last  D's weights in that layout
    graph          --cuda_graph=True, but for cuDNN's benchmark: GPU only
    all            bf16, compile, benchmark, graph: a GPU's --dtype=bfloat16 --compile=True --cuda_graph=True
    benchmark      cuDNN tries its algorithms and takes the fastest, as --cuda_graph=True has it: GPU only
    unfused        Adam as PyTorch does it by itself, on a CPU weight by weight, not all weights in one kernel
    nhwc           the real images in memory as they lie in the files, (H, W, 3)
    zeros          without no_zeros: the penalty takes zeros back through D
    apart          D on real and fake apart
    kept           a graph for the fake also where only D sees it
    anew           the fake made anew for the G step
    d_grads        D's own gradients computed in the G step, though nobody uses them
    sync           .item() of each loss
    att            student: with the attention loss (lambda_att=10), else without
    switched       UAG: behind the switch, where D sees masked images
"""

import difflib
import functools
import gc
import json
import os
import statistics
import sys
import tempfile
import time

os.environ.setdefault('KINETO_LOG_LEVEL', '99')  # or the profiler complains that there is no GPU

import numpy as np
import scipy.linalg
import torch
import torchvision

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
import evaluate
import train_student
import train_teacher
import train_uag
from gradcam import GradCAM
from without_gpu import gpu_count, print_counts

# -----------------------------------------------------------------------------
scripts = 'teacher,student,uag'  # which training scripts
variants = ''  # of the list above, comma-separated, for every script; '': those that make sense on the device
nets = ''  # 'paper' T 64/6, S 32/3, D 64; 'small' T 32/3, S 16/1, D 32; 'tiny' tests; '': paper on a GPU, else small
image_size = 0  # pixels; 0: 128, UAG 256; on a CPU 64
batch_size = 0  # images; 0: 16, UAG 1
n_critic = 5  # D steps for each G step of teacher and student; above 1, to time a D step by itself
repeats = 5  # of which median and spread are taken; one is n_critic iterations, on a GPU ten times as many
evaluation = False  # instead: ms an image of every part of evaluate.py, and the Frechet distance against scipy's sqrtm
scaling = False  # instead: the teacher in float32 and with all speed-ups, at every one of sizes and batches
profile = False  # instead: the operations that take most of the time, for the first variant of each script
count = False  # instead, computed without a GPU: what one has to do for the steps, and what waits for it; also scaling
sizes = '64,128,256'  # pixels, for scaling
batches = '16,32,64,128,256'  # images, for scaling; what does not fit a GPU is said
device = ''  # 'cpu', 'cuda', 'cuda:1'; '': the GPU if there is one
out_dir = 'out/bench'  # the JSON goes there
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

OPTIONS = ['published', 'float32', 'bf16', 'compile', 'unfused', 'nhwc', 'channels_last', 'zeros', 'apart', 'kept',
           'anew', 'd_grads', 'sync', 'att', 'switched', 'benchmark', 'graph', 'all']  # the last three on a GPU only
C_DIM = 7  # Table 1
NETS = {  # (conv_dim, n_blocks) of T and S; (conv_dim, n_layers) of D; UAG's ngf, n_blocks, (ndf, n_layers), naf
    'paper': dict(T=(64, 6), S=(32, 3), D=(64, 6), uag=(32, 9, (64, 3), 32)),
    'small': dict(T=(32, 3), S=(16, 1), D=(32, 6), uag=(16, 3, (32, 3), 16)),
    'tiny': dict(T=(4, 1), S=(2, 1), D=(4, 2), uag=(4, 1, (4, 2), 4))}


def published_step(G, D, opt_G, opt_D, x_real, c_org, c_trg, alpha, train_G):
    """One iteration as in StarGAN's solver.py, on its weights 1, 10, 10 -> the losses as numbers, 4 or with G's 7."""
    out_src, out_cls = D(x_real)
    d_loss_real = -out_src.mean()
    d_loss_cls = train_teacher.cls_loss(out_cls, c_org, True)
    x_fake = G(x_real, c_trg)
    out_src, _ = D(x_fake.detach())
    d_loss_fake = out_src.mean()
    x_hat = (alpha * x_real + (1 - alpha) * x_fake).detach().requires_grad_()
    out_src, _ = D(x_hat)
    grad, = torch.autograd.grad(out_src, x_hat, torch.ones_like(out_src), create_graph=True)
    d_loss_gp = ((grad.flatten(1).square().sum(1).sqrt() - 1) ** 2).mean()
    opt_G.zero_grad()
    opt_D.zero_grad()
    (d_loss_real + d_loss_fake + d_loss_cls + 10 * d_loss_gp).backward()
    opt_D.step()
    losses = [d_loss_real.item(), d_loss_fake.item(), d_loss_cls.item(), d_loss_gp.item()]
    if train_G:
        x_fake = G(x_real, c_trg)
        out_src, out_cls = D(x_fake)
        g_loss_fake = -out_src.mean()
        g_loss_cls = train_teacher.cls_loss(out_cls, c_trg, True)
        g_loss_rec = (x_real - G(x_fake, c_org)).abs().mean()
        opt_G.zero_grad()
        opt_D.zero_grad()
        (g_loss_fake + 10 * g_loss_rec + g_loss_cls).backward()
        opt_G.step()
        losses += [g_loss_fake.item(), g_loss_rec.item(), g_loss_cls.item()]
    return losses


def stargan_steps(script, opts, nets, size, batch, n_critic, device, compiled=torch.compile):
    """Phases 2 and 3 of train_teacher.py and train_student.py -> steps by name, and the names of a cycle in order.

    And (G, D). opts: a set of OPTIONS. 'D' is an iteration without, 'DG' with a G step; each returns its losses. The
    weights, and what is drawn, are the same for the same sizes.
    """
    S, dims = (train_student if script == 'student' else train_teacher), NETS[nets]
    torch.manual_seed(0)

    def pair(g):
        return (S.Generator(g[0], C_DIM, g[1]).to(device),
                S.Discriminator(size, dims['D'][0], C_DIM, dims['D'][1]).to(device))

    G, D = pair(dims['S' if script == 'student' else 'T'])
    G_teacher, D_teacher = (net.requires_grad_(False) for net in pair(dims['T']))
    if not opts & {'zeros', 'published'}:
        S.no_zeros(D), S.no_zeros(D_teacher)
    if 'channels_last' in opts:
        D.to(memory_format=torch.channels_last)
    hooks = [GradCAM(net.res[-1]) for net in (G_teacher, G)] if 'att' in opts else []
    fused = not opts & {'published', 'unfused'} or None
    opt_G, opt_D = (torch.optim.Adam(net.parameters(), 1e-4, (0.5, 0.999), fused=fused, capturable='graph' in opts)
                    for net in (G, D))
    bf16, G_fast, losses_of_D, losses_of_G = 'bf16' in opts, G, S.losses_of_D, S.losses_of_G
    if 'compile' in opts:
        G_fast, losses_of_D, losses_of_G = map(compiled, (G, losses_of_D, losses_of_G))
    x_real = (torch.rand(batch, 3, size, size) * 2 - 1).to(device)
    if 'nhwc' in opts:
        x_real = x_real.to(memory_format=torch.channels_last)
    c_org = (torch.rand(batch, C_DIM) < 0.5).float().to(device)
    c_trg = c_org.roll(1, 0)

    def D_seen(x):  # real and fake apart, but the penalty's images, of which there are half as many, at once
        if 'apart' in opts and len(x) > batch:
            return [torch.cat(out) for out in zip(*map(D, x.chunk(2)))]
        return D(x)

    def step(train_G, x_real, c_org, c_trg):
        alpha = torch.rand(batch, 1, 1, 1, device=device)
        if 'published' in opts:
            return published_step(G, D, opt_G, opt_D, x_real, c_org, c_trg, alpha, train_G)
        autocast = torch.autocast(device.split(':')[0], torch.bfloat16, enabled=bf16)
        with autocast, torch.set_grad_enabled('kept' in opts or train_G and 'anew' not in opts):
            x_fake = (G if train_G and hooks else G_fast)(x_real, c_trg)
        losses = losses_of_D(D_seen if 'apart' in opts else D, x_real, x_fake.detach(), c_org, alpha, True, bf16)
        real, fake, cls, gp = losses
        opt_D.zero_grad()
        (real + fake + cls + 10 * gp).backward()
        opt_D.step()
        if train_G:
            if 'anew' in opts:
                with autocast:
                    x_fake = G(x_real, c_trg)
            k, has_class = train_student.pick_class(c_trg)
            att = S.losses_of_maps(G_teacher, D_teacher, hooks, x_real, x_fake, c_trg, k, has_class, 'l2', '',
                                   bf16) if hooks else ()
            D.requires_grad_('d_grads' in opts)
            fake, rec, cls = losses_of_G(G, D, x_real, x_fake, c_org, c_trg, True, bf16)
            opt_G.zero_grad()
            (fake + 10 * rec + cls + 10 * sum(att[:1])).backward()
            opt_G.step()
            D.requires_grad_(True)
            losses = (*losses, fake, rec, cls, *att)
        return [loss.item() for loss in losses] if 'sync' in opts else torch.stack(losses).detach()

    steps = {'D': functools.partial(step, False), 'DG': functools.partial(step, True)}
    if 'graph' in opts:
        steps = {name: S.Graphed(s) for name, s in steps.items()}
    steps = {name: functools.partial(s, x_real, c_org, c_trg) for name, s in steps.items()}
    return steps, ['D'] * (n_critic - 1) + ['DG'], (G, D)


def uag_steps(opts, nets, size, batch, device, compiled=torch.compile):
    """Phases 2 and 3 of train_uag.py -> steps 'G' and 'D' by name, and the names of an iteration in order."""
    S, (ngf, n_blocks, d, naf) = train_uag, NETS[nets]['uag']
    torch.manual_seed(0)
    net = {k + t: S.init_weights(make(*args)).to(device) for k, t1, t2, make, args in
           (('G_', 'st', 'ts', S.Generator, (ngf, n_blocks)), ('D_', 's', 't', S.Discriminator, d),
            ('A_', 's', 't', S.Attention, (naf,))) for t in (t1, t2)}
    if 'channels_last' in opts:
        [net[k].to(memory_format=torch.channels_last) for k in ('D_s', 'D_t')]
    tau = 0.1 if 'switched' in opts else None
    if 'switched' in opts:
        S.switch(net, True, False)
    fused = device.startswith('cuda') or None
    opt_G, opt_D = (torch.optim.Adam([p for k in net if k[0] in of for p in net[k].parameters()], 1e-4, (0.5, 0.999),
                                     fused=fused, capturable='graph' in opts) for of in ('GA', 'D'))
    g_losses, d_losses = S.g_losses, S.d_losses
    if 'compile' in opts:
        g_losses, d_losses = compiled(g_losses), compiled(d_losses)
    x_s, x_t = ((torch.rand(batch, size, size, 3) * 2 - 1).to(device).permute(0, 3, 1, 2) for _ in 'st')
    pools, made = {k: S.Pool(50) for k in 'st'}, {}
    autocast = torch.autocast(device.split(':')[0], torch.bfloat16, enabled='bf16' in opts)

    def step(losses, opt):
        opt.zero_grad()
        sum(losses.values()).backward()
        opt.step()
        return [loss.item() for loss in losses.values()] if 'sync' in opts else torch.stack([*losses.values()]).detach()

    def g_step(x_s, x_t):
        for k in 'st':
            net['D_' + k].requires_grad_(False)
        with autocast:
            losses, x_fake, a = g_losses(net, x_s, x_t, 'foreground', tau)
        losses = step({k: v * 10 if 'cyc' in k else v for k, v in losses.items()}, opt_G)
        return losses, *({k: v.detach() for k, v in of.items()} for of in (x_fake, a))

    def d_step(seen_s, seen_t):
        for k in 'st':
            net['D_' + k].requires_grad_(True)
        with autocast:
            losses = d_losses(net, seen_s, seen_t)
        return step(losses, opt_D)

    if 'graph' in opts:
        g_step, d_step = S.Graphed(g_step), S.Graphed(d_step)

    def G_step():
        losses, *made['x_fake, a'] = g_step(x_s, x_t)
        return losses

    def D_step():
        seen = S.real_and_past(x_s, x_t, *made['x_fake, a'], pools, tau)
        return d_step(seen['s'], seen['t'])

    return {'G': G_step, 'D': D_step}, ['G', 'D'], net


def options(variant):
    """The set of OPTIONS that a variant names."""
    opts = set(variant.split('+'))
    return opts | ({'bf16', 'compile', 'benchmark', 'graph'} if 'all' in opts else set())


def steps_of(script, opts, nets, size, batch, n_critic, device):
    """What stargan_steps or uag_steps makes."""
    return (uag_steps(opts, nets, size, batch, device) if script == 'uag' else
            stargan_steps(script, opts, nets, size, batch, n_critic, device))


def peak_memory(device, reset=False):
    """Peak memory in GB since the last reset, of a GPU with what graphs keep, else of this process; nan: unknown."""
    if device.startswith('cuda'):
        return torch.cuda.reset_peak_memory_stats() if reset else torch.cuda.max_memory_reserved() / 2 ** 30
    try:
        if reset:
            with open('/proc/self/clear_refs', 'w') as f:
                f.write('5')
        else:
            with open('/proc/self/status') as f:
                return int(f.read().split('VmHWM:')[1].split()[0]) / 2 ** 20
    except (OSError, IndexError):
        return float('nan')


def timed(steps, cycle, repeats, device):
    """Runs the cycle -> lists of seconds: of the cycles, one for each repeat, and of every step by name."""
    cuda, total, each = device.startswith('cuda'), [], {name: [] for name in steps}
    if cuda:
        torch.cuda.synchronize()
    for _ in range(repeats):
        rounds, marks = cycle * (10 if cuda else 1), []
        for name in [*rounds, None]:
            if cuda:
                marks.append(torch.cuda.Event(enable_timing=True))
                marks[-1].record()
            else:
                marks.append(time.perf_counter())
            if name:
                steps[name]()
        if cuda:
            torch.cuda.synchronize()
        spans = [a.elapsed_time(b) / 1e3 if cuda else b - a for a, b in zip(marks, marks[1:])]
        total.append(sum(spans) * len(cycle) / len(rounds))
        for name, span in zip(rounds, spans):
            each[name].append(span)
    return total, each


def measure(row, nets, n_critic, repeats, device):
    """Runs what `row` names; adds to its lists of seconds: cycles, and each step by name; gb, and first_s to start."""
    opts, script = options(row['variant']), row['script']
    torch._dynamo.reset()
    gc.collect()
    if device.startswith('cuda'):
        torch.cuda.empty_cache()
    torch.backends.cudnn.benchmark = 'benchmark' in opts
    peak_memory(device, reset=True)
    t0 = time.perf_counter()
    steps, cycle, _ = steps_of(script, opts, nets, row['size'], row['batch'], n_critic, device)
    for step in [*steps.values()] * (4 if device.startswith('cuda') else 1):  # warm-up; the third captures a graph
        step()
    if device.startswith('cuda'):
        torch.cuda.synchronize()
    row.setdefault('first_s', time.perf_counter() - t0)
    total, each = timed(steps, cycle, repeats, device)
    row['cycles'] = row.get('cycles', []) + total
    row['each'] = {name: row.get('each', {}).get(name, []) + spans for name, spans in each.items()}
    row['gb'] = peak_memory(device)


def flops(script, att, nets, size, batch, n_critic):
    """Floating point operations of one cycle of the script's step: those of convolutions, forward and backward."""
    counts, cycle = gpu_count(steps_of, script, {'att'} if att else set(), nets, size, batch, n_critic)
    return sum(counts[name]['flops'] for name in cycle)  # counted without memory or values, whatever the size


def print_profile(runs, nets, n_critic, device):
    """The 12 operations, on a GPU kernels, that take most of a cycle of each of runs -> rows for the JSON, with all."""
    rows, kinds, cuda = [], torch.profiler.ProfilerActivity, device.startswith('cuda')
    for script, variant, size, batch in runs:
        n = 10 if cuda else 2
        torch.backends.cudnn.benchmark = 'benchmark' in options(variant)
        steps, cycle, _ = steps_of(script, options(variant), nets, size, batch, n_critic, device)
        timed(steps, cycle * 2, 1, device)  # warm-up
        with torch.profiler.profile(activities=[kinds.CPU, kinds.CUDA][:1 + cuda]) as prof:
            timed(steps, cycle if cuda else cycle * n, 1, device)  # on a GPU it repeats them ten times
        time_of = 'self_device_time_total' if cuda else 'self_cpu_time_total'
        ops = [dict(op=e.key, calls=e.count / n, ms=getattr(e, time_of) / n / 1e3) for e in prof.key_averages()
               if not cuda or e.device_type == torch.autograd.DeviceType.CUDA and not e.is_user_annotation]
        ops.sort(key=lambda op: -op['ms'])
        total = sum(op['ms'] for op in ops)
        print(f'{script} {variant}, {size} px, batch {batch}: {total:.1f} ms in operations for a cycle'
              '\n       ms  share  calls')
        for op in ops[:12]:
            print(f'{op["ms"]:9.2f} {op["ms"] / total:6.1%} {op["calls"]:6.0f}  {op["op"][:85]}', flush=True)
        rows.append(dict(script=script, variant=variant, size=size, batch=batch, ops=ops))
    return rows


def bf16_peak(device, n):
    """FLOP/s of a bfloat16 product of n x n matrices, the best of five: what the device does, not what is claimed."""
    a = torch.randn(n, n, device=device).bfloat16()
    for _ in range(2):  # the first time is to warm up
        total, _ = timed({'mm': lambda: a @ a}, ['mm'], 5, device)
    return 2 * n ** 3 / min(total)


def evaluation_parts(size, batch, nets, device, repeats):
    """evaluate.py's parts on images of `size` px -> {part: seconds for each image}, {way: seconds for a distance}."""
    names, (d, n_blocks), (d_d, n_layers) = [f'a{k}' for k in range(C_DIM)], NETS[nets]['T'], NETS[nets]['D']
    args = (dict(conv_dim=d, c_dim=C_DIM, n_blocks=n_blocks),
            dict(image_size=size, conv_dim=d_d, c_dim=C_DIM, n_layers=n_layers))
    net = evaluate.StarGAN(dict(attrs=names, exclusive=[], g_args=args[0], d_args=args[1], config={},
                                G=train_teacher.Generator(**args[0]).state_dict(),
                                D=train_teacher.Discriminator(**args[1]).state_dict()), train_teacher, device)
    x = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (batch, size, size, 3), np.uint8))
    images = evaluate.Images(x, torch.zeros(batch, C_DIM), None, names, torch.ones(batch) > 0, device)
    clf = torchvision.models.resnet50(num_classes=C_DIM).to(device).eval()
    inception = torchvision.models.inception_v3(num_classes=1008, aux_logits=False, init_weights=False)
    inception.to(device).eval().fc = torch.nn.Identity()
    rows, moments = torch.arange(batch), evaluate.Moments()
    x, y = images.see(net, rows)
    pixels, features = evaluate.to_uint8(x), torch.randn(batch, 2048, dtype=torch.float64, device=device)
    parts = {'reading': lambda: images.see(net, rows), 'translation and map': lambda: net.maps(x, y, 'a0'),
             'classifier': lambda: evaluate.classify(clf, x, True),
             'Inception': lambda: evaluate.inception_features(inception, pixels),
             'sums of features': lambda: moments.add(features)}
    timed(parts, [*parts], 1, device)
    _, each = timed(parts, [*parts], repeats, device)
    a = torch.randn(2, 5000, 2048, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    a = a @ torch.randn(2048, 2048, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) / 45  # correlated
    (m1, c1), (m2, c2) = ((f.mean(0).to(device), f.T.cov().to(device)) for f in (a[0], a[1] + 0.1))
    out = {}

    def root():
        out['sqrtm'] = (((m1 - m2) ** 2).sum() + c1.trace() + c2.trace()).item() - 2 * np.trace(
            scipy.linalg.sqrtm((c1 @ c2).cpu().numpy()).real)
    ways = {'eigvalsh': lambda: out.update(eigvalsh=evaluate.frechet_distance(m1, c1, m2, c2)), 'scipy sqrtm': root}
    evaluate.frechet_distance(m1, c1, m2, c2)  # warm-up, and waits for the covariances
    seconds, _ = zip(*(timed({way: f}, [way], 1, 'cpu') for way, f in ways.items()))
    print(f"distances {out['eigvalsh']:.6f} and {out['sqrtm']:.6f}, relative difference "
          f"{abs(out['eigvalsh'] / out['sqrtm'] - 1):.1e}")
    return {part: statistics.median(s) / batch for part, s in each.items()}, dict(zip(ways, (s[0] for s in seconds)))


def loading(size, batch, device, n=1000):
    """get_batch of a memory map of n images, read before, and of the same on the GPU -> seconds for a batch of each."""
    x, y, s = np.random.default_rng(0).integers(0, 256, (n, size, size, 3), np.uint8), torch.zeros(n, C_DIM), {}
    with tempfile.TemporaryDirectory() as folder:
        np.save(folder + '/x.npy', x)
        places = {'memory map': torch.from_numpy(np.load(folder + '/x.npy', mmap_mode='c'))}
        if device.startswith('cuda'):
            places['GPU'] = torch.from_numpy(x).to(device)
        for name, x in places.items():
            def step():
                return train_teacher.get_batch(x, y, torch.randint(n, (batch,)), size, device)
            total, _ = timed({'get': step}, ['get'] * 20, 6, device)
            s[name] = statistics.median(total) / 20
    return s


if __name__ == '__main__':
    device = 'cuda' if count else device or ('cuda' if torch.cuda.is_available() else 'cpu')
    cuda = device.startswith('cuda')
    try:
        torch.zeros(1, device='cpu' if count else device)
    except (RuntimeError, AssertionError) as e:
        sys.exit(f'--device={device}: {str(e).splitlines()[0]}')
    if cuda and not count:
        torch.cuda.set_device(torch.zeros(1, device=device).device)
    scripts, nets = scripts.split(','), nets or ('paper' if cuda else 'small')
    if set(scripts) - {'teacher', 'student', 'uag'} or nets not in NETS or n_critic < 2 or repeats < 1:
        sys.exit('--scripts: of teacher, student and uag; --nets: paper, small or tiny; n_critic 2 or more, repeats 1')
    fast = 'all' if cuda else 'bf16'  # what the scripts can do by their flags
    everything = ('published,float32,apart,kept,anew,d_grads,zeros,nhwc,unfused,channels_last,bf16,att,bf16+att,'
                  'switched,bf16+switched')
    if cuda:
        everything += (',sync,compile,benchmark,graph,bf16+nhwc,bf16+channels_last,bf16+compile,bf16+graph,all,'
                       'bf16+compile+att,bf16+graph+att,all+att,all+switched')
    if count or profile:
        fast = 'bf16' if count or not cuda else 'bf16+compile'
        everything = 'published,float32,bf16,att,bf16+att,bf16+switched' if count else fast
    fits = dict(att=['student'], switched=['uag'])
    fits |= {o: ['teacher', 'student'] for o in
             ('published', 'zeros', 'nhwc', 'unfused', 'apart', 'kept', 'anew', 'd_grads')}
    variants = [(v, set(v.split('+'))) for v in (variants or everything).split(',')]
    unknown = set().union(*(opts for _, opts in variants)) - set(OPTIONS if cuda else OPTIONS[:-3])
    if count:  # of these an operation by itself knows nothing
        unknown |= set().union(*(o for _, o in variants)) & {'compile', 'graph', 'benchmark', 'channels_last', 'all'}
    if unknown:
        sys.exit(f"--variants: {', '.join(sorted(unknown))}: not one of {', '.join(OPTIONS)}, or not without a GPU, or "
                 'not with --count')
    runs = [(script, v, image_size or (64 if not cuda else 256 if script == 'uag' else 128),
             batch_size or (1 if script == 'uag' else 16)) for script in scripts for v, opts in variants
            if all(script in fits.get(o, scripts) for o in opts)]
    if scaling:
        runs = [('teacher', v, int(s), int(b)) for s in sizes.split(',') for b in batches.split(',')
                for v in ('float32', fast)]
    if profile:
        runs = [next(run for run in runs if run[0] == script) for script in dict.fromkeys(run[0] for run in runs)]
    os.makedirs(out_dir, exist_ok=True)
    path = os.path.join(out_dir, 'scaling.json' if scaling else 'evaluation.json' if evaluation else 'bench.json')
    if count or profile:
        path = os.path.join(out_dir, 'count.json' if count else 'profile.json')
        rows = print_counts(steps_of, runs, nets, n_critic) if count else print_profile(runs, nets, n_critic, device)
        with open(path + '.tmp', 'w') as f:
            json.dump(dict(device=device, torch=torch.__version__, nets=nets, config=config, rows=rows), f, indent=1)
        os.replace(path + '.tmp', path)
        print(path)
        sys.exit()
    if evaluation:
        parts, ways = evaluation_parts(image_size or 128, batch_size or 16, nets, device, repeats)
        whole = sum(parts.values()) * 10000 + ways['eigvalsh']
        for part, s in [*((k, v * 10000) for k, v in parts.items()), ('distance, eigvalsh', ways['eigvalsh'])]:
            print(f'{part:20s} {s:8.1f} s for 10,000 images | {s / whole:6.1%}')
        print(f"scipy's sqrtm instead {ways['scipy sqrtm']:.1f} s, {ways['scipy sqrtm'] / ways['eigvalsh']:.1f}x")
        with open(path, 'w') as f:
            json.dump(dict(device=device, nets=nets, config=config, parts=parts, distance=ways), f, indent=1)
        sys.exit()

    name = torch.cuda.get_device_name() if cuda else f'CPU, {torch.get_num_threads()} threads'
    peak = bf16_peak(device, 8192 if cuda and nets == 'paper' else 2048)
    n_flops, base, results, failed = {}, {}, [{} for _ in runs], False
    print(f'{name}, torch {torch.__version__}, {nets} nets, bf16 matrix product {peak / 1e12:.2f} TFLOP/s')
    print('script   variant                        px batch     it/s  spread    D ms    G ms    GB TFLOP/s of bf16    '
          '  x', flush=True)
    passes = 1 if cuda else repeats  # a CPU is seldom alone: in turns all variants meet the same neighbours
    for last in [False] * (passes - 1) + [True]:
        for (script, variant, size, batch), row in zip(runs, results):
            row |= dict(script=script, variant=variant, size=size, batch=batch)
            try:
                if failed:
                    raise RuntimeError('not run: after the failed capture of a graph nothing in this process is sure')
                if 'error' not in row:
                    measure(row, nets, n_critic, repeats // passes, device)
                key = script, 'att' in variant.split('+'), size, batch
                if key not in n_flops:
                    n_flops[key] = flops(*key[:2], nets, size, batch, n_critic)
            except (RuntimeError, ValueError) as e:  # out of memory, or a speed-up that fails here: a result as well
                row['error'] = (str(e) or type(e).__name__).splitlines()[0]
                failed = failed or 'captur' in str(e)
            if last and 'error' in row:
                print(f'{script:8s} {variant:28s} {size:4d} {batch:5d} {row["error"]}', flush=True)
            elif last:
                ms = {step: 1e3 * statistics.median(spans) for step, spans in row['each'].items()}
                cycle_s = statistics.median(row['cycles'])
                row |= dict(it_s=(1 if script == 'uag' else n_critic) / cycle_s, flops=n_flops[key] / cycle_s,
                            spread=(max(row['cycles']) - min(row['cycles'])) / cycle_s, d_ms=ms['D'],
                            g_ms=ms['G'] if script == 'uag' else ms['DG'] - ms['D'])
                row['x'] = row['it_s'] / base.setdefault((script, size, batch), row['it_s'])
                print(f'{script:8s} {variant:28s} {size:4d} {batch:5d} {row["it_s"]:8.2f} {row["spread"]:7.0%} '
                      f'{row["d_ms"]:7.1f} {row["g_ms"]:7.1f} {row["gb"]:5.1f} {row["flops"] / 1e12:7.2f} '
                      f'{row["flops"] / peak:7.1%} {row["x"]:6.2f}', flush=True)
    result = dict(device=name, torch=torch.__version__, nets=nets, config=config, bf16_peak=peak, rows=results)
    for script, att in (('teacher', False), ('student', False), ('student', True)) if not scaling else ():
        done = [row for row in results if 'it_s' in row and row['script'] == script
                and ('att' in row['variant'].split('+')) == att]
        if done:
            best = max(done, key=lambda row: row['it_s'])
            minutes = 200000 / best['it_s'] / 60
            print(f"fastest  {script} {best['variant']}: 200,000 iterations take {minutes:.0f} minutes")
    teachers = [row for row in results if row['script'] == 'teacher' and 'it_s' in row]
    if teachers and not scaling:
        best = max(teachers, key=lambda row: row['it_s'])
        result['loading'] = loading(best['size'], best['batch'], device)
        for place, s in result['loading'].items():
            print(f"data     from {place}: {1 / s:.0f} batches/s of {best['batch']} at {best['size']} px, "
                  f"{s / (s + 1 / best['it_s']):.2%} of an iteration of {best['variant']}")
    with open(path + '.tmp', 'w') as f:
        json.dump(result, f, indent=1)
    os.replace(path + '.tmp', path)
    print(path)
