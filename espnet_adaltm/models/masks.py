"""Length masks, the one place where padding is told apart from speech."""

import torch
from torch import Tensor


def length_mask(lengths: Tensor, size: int) -> Tensor:
    """Tell which frames are real.

    Args:
        lengths: Number of valid frames, shape [B].
        size: Padded number of frames T.

    Returns:
        Boolean mask, True at valid frames, shape [B, T].
    """
    return torch.arange(size, device=lengths.device)[None, :] < lengths[:, None]
