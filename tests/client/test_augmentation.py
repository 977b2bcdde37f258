"""Augmentation moves a mask with its image, and draws the same from the same seed."""

import pytest
import torch

from client.augmentation import augmented
from client.warping import warped
from common.errors import JobError

VIEWS = [augmented, warped]


def discs(size):
    """Images that are bright just where their masks are."""
    grid = torch.stack(torch.meshgrid(*(torch.arange(n) for n in size), indexing="ij")).float()
    inside = (grid - torch.tensor(size).view(-1, *(1,) * len(size)) / 2.5).norm(dim=0) < min(size) / 4
    masks = inside.to(torch.uint8).expand(4, *size).contiguous()
    return masks[:, None].float() * 0.8 + 0.1, masks


@pytest.mark.parametrize("size", [(32, 40), (16, 24, 20)])
@pytest.mark.parametrize("views", VIEWS)
def test_what_is_drawn_on_an_image_moves_with_it(views, size):
    images, masks = discs(size)
    seen, moved = views(images, masks, "mask", torch.Generator().manual_seed(1))
    assert (seen.shape, moved.shape, moved.dtype) == (images.shape, masks.shape, masks.dtype)
    assert not torch.equal(seen, images)
    agree = ((seen[:, 0] > 0.45) == (moved > 0)).float().mean()
    assert agree > 0.97


@pytest.mark.parametrize("views", VIEWS)
def test_the_same_seed_gives_the_same_views_to_the_bit(views):
    images, masks = discs((32, 40))
    one, other = (views(images, masks, "mask", torch.Generator().manual_seed(7)) for _ in range(2))
    assert torch.equal(one[0], other[0])
    assert torch.equal(one[1], other[1])


def test_labels_stay_as_they_are():
    images, labels = discs((32, 40))[0], torch.tensor([0, 1, 0, 1])
    assert all(torch.equal(views(images, labels, "label", torch.Generator())[1], labels) for views in VIEWS)


def test_strong_augmentation_says_what_it_can_not_move():
    images = discs((32, 40))[0]
    with pytest.raises(JobError, match="is for labels and masks"):
        warped(images, images, "image", torch.Generator())
