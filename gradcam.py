"""
Grad-CAM for generators: where does G look when it translates an image to class c?

Attention distillation (Li, Fontanini et al., sec. 3.1) sends a class score y^c of the discriminator back into the
generator and weighs the feature maps F of its last residual block with the gradient. The map stays differentiable
(`create_graph=True`), so a loss on it can train the generator: that is all train_student.py needs.

    hook = GradCAM(G.res[-1])            # before the forward pass
    y_c = D(G(x, c))[1][:, i]            # (B,) score of class i, one per image
    A = hook(y_c, create_graph=True)     # (B, h, w), >= 0
"""

import torch
import torch.nn.functional as F


class GradCAM:
    """Hooks `module`, whose output F is (B, K, h, w), and turns dy/dF of its latest forward pass into a map.

    cam='gradcam'   A = ReLU(sum_k alpha_k F_k), alpha_k = mean over positions of dy/dF_k    (eq. 1 and 2)
    cam='hirescam'  A = ReLU(sum_k dy/dF_k * F_k), not pooled         (Draelos & Carin 2020, arXiv 2011.08891)

    Hook a residual block's *output*, not its last convolution: the instance norm behind that convolution removes any
    constant added to a channel, so the pooled gradient alpha is exactly zero there. A net that goes on with an
    in-place operation would overwrite F: none here does. Raises ValueError on another `cam`.
    """

    def __init__(self, module, cam='gradcam'):
        if cam not in ('gradcam', 'hirescam'):
            raise ValueError(f"cam is 'gradcam' or 'hirescam', not {cam!r}")
        self.cam, self.feat = cam, None
        self.handle = module.register_forward_hook(self.hook)

    def hook(self, module, args, output):
        self.feat = None
        if torch.is_grad_enabled():
            # A frozen net makes features without a graph: turn them into a leaf, so that there is something to
            # differentiate by. The gradient ends here, and all that comes before costs a forward pass only.
            self.feat = output if output.requires_grad else output.detach().requires_grad_()
            return self.feat  # what the net goes on with

    def __call__(self, y, create_graph=False, retain_graph=False):
        """y: (B,) one score per image of the forward pass just made -> A: (B, h, w), >= 0, of no fixed scale.

        Images do not mix in the nets (instance norm), so the gradient of the sum is each image's own. `create_graph`
        makes A differentiable; `retain_graph` keeps the graph for another call. RuntimeError if none was recorded.
        """
        if self.feat is None:
            raise RuntimeError('GradCAM: no forward pass with gradients enabled since the hook was set')
        grad, = torch.autograd.grad(y.sum(), self.feat, create_graph=create_graph,
                                    retain_graph=create_graph or retain_graph)
        feat = self.feat if create_graph else self.feat.detach()  # without it A is a constant
        dtype = torch.promote_types(feat.dtype, torch.float32)  # bfloat16 is too coarse for sums
        if self.cam == 'gradcam':
            grad = grad.mean((2, 3), keepdim=True, dtype=dtype)  # alpha_k^c, eq. (2): (B, K, 1, 1)
        return (grad * feat.to(dtype)).sum(1).relu()  # eq. (1): (B, K, h, w) -> (B, h, w)

    def remove(self):
        """Takes the hook off the module again."""
        self.handle.remove()
        self.feat = None


def overlay(x, A):
    """Maps A (B, h, w), each on the scale of its own maximum, over grey images x (B, 3, H, W) in [-1, 1] -> like x."""
    A = F.interpolate(A[:, None], x.shape[2:], mode='bilinear')[:, 0]
    A = A / A.amax((1, 2), keepdim=True).clamp_min(1e-12)
    # inferno: its lightness rises steadily, so the map reads in greyscale and with colour blindness too
    stops = torch.tensor([[0, 0, 4], [87, 16, 110], [188, 55, 84], [249, 142, 9], [252, 255, 164]], device=x.device)
    low = (A * 4).long().clamp(max=3)
    heat = torch.lerp(stops[low] / 127.5 - 1, stops[low + 1] / 127.5 - 1, (A * 4 - low)[..., None]).permute(0, 3, 1, 2)
    return 0.4 * x.mean(1, keepdim=True) + 0.6 * heat
