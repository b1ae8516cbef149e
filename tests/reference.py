"""The slow, readable twin of NFAugment: image by image, through the flow, with torch's own resizing."""

import torch
import torch.nn.functional as F

from timm_nfaug import pixels


def displacement(flow, kind, modes, strength, z, k, noise):
    """The move of one code z (D,) of class k by noise (n,), as each move's formula has it."""
    prior = flow.prior
    std, directions = prior.mode_std[k, :modes], prior.modes[k, :modes]
    if kind == "pca":
        return sum(strength * e * s * u for e, s, u in zip(noise, std, directions))
    if kind == "axes":
        move = torch.zeros(flow.dim)
        for e, i in zip(noise, prior.variance[k].argsort(descending=True)[:modes]):
            move[i] = strength * e * prior.variance[k, i].sqrt()
        return move
    if kind == "isotropic":
        return strength * noise * (std.square().sum() / flow.dim).sqrt()
    angle = strength * torch.distributions.Normal(0.0, 1.0).cdf(noise[-1])
    partner = sum(e * s * u for e, s, u in zip(noise, std, directions))
    mean = prior.mu[k]
    return mean + angle.cos() * (z - mean) + angle.sin() * partner - z


@torch.no_grad()
def augmented(augment, levels, y, generator):
    """uint8 images (B, C, H, W) as NFAugment moves them with the same generator."""
    flow, out = augment.flow, levels.clone()
    chosen = torch.ones(len(levels), dtype=torch.bool)
    if augment.p < 1:
        chosen = torch.rand(len(levels), generator=generator) < augment.p
    size = augment.change.noise_size
    noise = torch.randn(int(chosen.sum()), size, generator=generator).clamp(-3, 3)
    for i, e in zip(torch.nonzero(chosen).flatten().tolist(), noise):
        x = pixels.levels_to_model(levels[i : i + 1])
        h, w = x.shape[2:]
        x = F.interpolate(
            x, flow.config.input_size[1:], mode="bilinear", antialias=True, align_corners=False
        )
        z = flow(x)[0]
        move = displacement(flow, augment.kind, augment.modes, augment.strength, z[0], int(y[i]), e)
        change = (flow.inverse(z + move) - x).clamp(-2, 2)
        change = F.interpolate(change, (h, w), mode="bilinear", align_corners=False)
        out[i] = (levels[i] + 128 * change[0] + 0.5).floor().clamp(0, 255).to(torch.uint8)
    return out
