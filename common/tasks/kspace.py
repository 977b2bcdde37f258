"""Images and their k-space: which of its columns are measured, and what an image looks like from these alone.

K-space is the centred, orthonormal discrete Fourier transform over all axes of the image. It is measured column by
column (along the last axis), as by a Cartesian sequence: a share of the columns about the middle always, of the others
some at random or at equal distances. The samplers are MONAI's.

Reference: Zbontar et al., "fastMRI: An Open Dataset and Benchmarks for Accelerated MRI", 2018.
"""

from __future__ import annotations

import torch
from torch import Tensor

from common.tasks.parameters import Reconstruction

FIXED = 20_180_101
"""Seed of the masks under which models are compared: the same always, and at every site."""


def column_masks(count: int, columns: int, settings: Reconstruction, random: torch.Generator | None) -> Tensor:
    """Return which columns are measured, for each of `count` images: (count, columns) of 0 and 1, float32.

    Drawn from `random`; without it, the same mask for every image and always.
    """
    from monai.apps.reconstruction.transforms.array import EquispacedKspaceMask, RandomKspaceMask

    kind = RandomKspaceMask if settings.mask == "random" else EquispacedKspaceMask
    sampler = kind([settings.center_fraction], [settings.acceleration], spatial_dims=2, is_complex=True)
    nothing = torch.zeros(1, 1, columns, 2)  # the samplers mask something: all that is wanted is which columns
    if random is None:
        sampler.set_random_state(seed=FIXED)
        sampler(nothing)
        return torch.as_tensor(sampler.mask).float().reshape(1, columns).expand(count, -1)
    masks = []
    for _ in range(count):
        sampler.set_random_state(seed=int(torch.randint(2**31, (1,), generator=random)))
        sampler(nothing)
        masks.append(torch.as_tensor(sampler.mask).float().reshape(columns))
    return torch.stack(masks)


def magnitude(images: Tensor) -> Tensor:
    """Return (N, 1, *size) of images (N, 1, *size), or of complex ones (N, 2, *size): real part, imaginary part."""
    return images if images.shape[1] == 1 else torch.linalg.vector_norm(images, dim=1, keepdim=True).clamp(max=1)


def measured(images: Tensor, masks: Tensor) -> Tensor:
    """Return the k-space (N, *size) complex of images, 0 in the columns that `masks` leaves out.

    `images` are (N, 1, *size), or complex ones (N, 2, *size): real part, imaginary part.
    """
    axes = tuple(range(1, images.dim() - 1))
    image = images[:, 0] if images.shape[1] == 1 else torch.complex(images[:, 0], images[:, 1])
    shifted = torch.fft.ifftshift(image, dim=axes)
    kspace = torch.fft.fftshift(torch.fft.fftn(shifted, dim=axes, norm="ortho"), dim=axes)
    found: Tensor = kspace * _over_columns(masks, images.dim() - 1)
    return found


def zero_filled(kspace: Tensor) -> Tensor:
    """Return the magnitude of the image of k-space (N, *size), what is not measured taken as 0: (N, 1, *size)."""
    axes = tuple(range(1, kspace.dim()))
    shifted = torch.fft.ifftshift(kspace, dim=axes)
    image: Tensor = torch.fft.fftshift(torch.fft.ifftn(shifted, dim=axes, norm="ortho"), dim=axes)
    return image.abs().unsqueeze(1)


def as_channels(kspace: Tensor, masks: Tensor) -> Tensor:
    """Return k-space and its mask as a network sees them: (N, 3, *size), real part, imaginary part, mask."""
    mask = _over_columns(masks, kspace.dim()).expand(kspace.shape)
    return torch.stack([kspace.real, kspace.imag, mask.to(kspace.real.dtype)], dim=1)


def _over_columns(masks: Tensor, dimensions: int) -> Tensor:
    """Masks (N, columns) as (N, 1, ..., columns)."""
    return masks.reshape(len(masks), *[1] * (dimensions - 2), masks.shape[1])
