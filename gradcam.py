"""
Grad-CAM for generators: where does G look when it translates an image to class i?

Attention distillation (Li, Fontanini et al., sec. 3.1) sends a class score y^i of the discriminator
back into the generator, and weighs the feature maps F of its last residual block with the gradient.
With create_graph=True the map can be differentiated, so that a loss on it can train the generator.

    hook = GradCAM(G.res[-1])            # before the forward pass
    y = D(G(x, c))[1][:, i]              # (B,) score of class i, one for each image
    A = hook(y, create_graph=True)       # (B, h, w), >= 0
"""

import torch
import torch.nn.functional as F


class GradCAM:
    """Hooks a module with output F (B, K, h, w), and makes maps of dy/dF of its last forward pass.

    cam='gradcam'   A = ReLU(sum_k alpha_k F_k), alpha_k = GAP(dy/dF_k), the mean over positions;
                    eq. (1), (2)
    cam='hirescam'  A = ReLU(sum_k dy/dF_k * F_k), the gradient is not pooled;
                    Draelos & Carin 2020, arXiv 2011.08891

    Hook the output of a residual block, not its last convolution. The instance norm that follows
    the convolution removes any constant from a channel: the pooled gradient alpha is 0 there.
    """

    def __init__(self, module, cam='gradcam'):
        if cam not in ('gradcam', 'hirescam'):
            raise ValueError(f"cam is 'gradcam' or 'hirescam', not {cam!r}")
        self.cam = cam
        self.feat = None
        self.handle = module.register_forward_hook(self.hook)

    def hook(self, module, args, output):
        self.feat = None
        if not torch.is_grad_enabled():
            return output
        if not output.requires_grad:
            # The net is frozen. Its features become a leaf, so that there is something to
            # differentiate by; what comes before them costs a forward pass only.
            output = output.detach().requires_grad_()
        self.feat = output
        return output  # what the net goes on with

    def __call__(self, y, create_graph=False, retain_graph=False):
        """Scores y (B,), one for each image of the last forward pass -> maps A (B, h, w), >= 0.

        create_graph makes the maps differentiable, retain_graph allows for another call. Images do
        not mix in the nets, so the gradient of the sum of their scores is the gradient of each.
        RuntimeError if there was no forward pass with gradients.
        """
        if self.feat is None:
            raise RuntimeError('GradCAM: no forward pass with gradients since the hook was set')
        retain_graph = retain_graph or create_graph
        grad, = torch.autograd.grad(
            y.sum(), self.feat, create_graph=create_graph, retain_graph=retain_graph)
        feat = self.feat if create_graph else self.feat.detach()
        # bfloat16 is too coarse for sums.
        dtype = torch.promote_types(feat.dtype, torch.float32)
        if self.cam == 'gradcam':
            grad = grad.mean((2, 3), keepdim=True, dtype=dtype)  # alpha: (B, K, 1, 1)
        A = (grad * feat.to(dtype)).sum(1)
        return A.relu()

    def remove(self):
        """Takes the hook off the module again."""
        self.handle.remove()
        self.feat = None


# Five colours of inferno. They grow steadily lighter: readable in grey, and by the colour-blind.
COLORS = [
    [0, 0, 4],
    [87, 16, 110],
    [188, 55, 84],
    [249, 142, 9],
    [252, 255, 164],
]


def overlay(x, A):
    """Draws maps A (B, h, w), each scaled to its maximum, over images x (B, 3, H, W) in [-1, 1]."""
    A = F.interpolate(A[:, None], x.shape[2:], mode='bilinear')[:, 0]
    A = A / A.amax((1, 2), keepdim=True).clamp_min(1e-12)
    colors = torch.tensor(COLORS, device=x.device) / 127.5 - 1
    # Where A lies among the colours: between which two of them, and how far from the first.
    first = (A * 4).long().clamp(0, 3)
    step = A * 4 - first
    heat = torch.lerp(colors[first], colors[first + 1], step[..., None])  # (B, H, W, 3)
    heat = heat.permute(0, 3, 1, 2)
    grey = x.mean(1, keepdim=True)
    return 0.4 * grey + 0.6 * heat
