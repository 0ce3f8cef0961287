"""Fixed coefficients: task arithmetic (arXiv 2212.04089) as a special case of the learned merge."""

from typing import TYPE_CHECKING

from espnet_adaltm.merging.coefficients import Coefficients
from espnet_adaltm.merging.merged import coefficients_for

if TYPE_CHECKING:
    from espnet_adaltm.backbone.encoder import SpeechEncoder


def scaled(encoder: "SpeechEncoder", scales: dict[str, float]) -> Coefficients:
    """Add each task vector with its own fixed scale, the same at every depth.

    ``{"ser": 1.0}`` is the SER expert's encoder, ``{}`` the base.

    Args:
        encoder: The base.
        scales: Task to lambda.
    """
    return coefficients_for(encoder, scales, "global", init=scales, trainable=False)


def uniform(encoder: "SpeechEncoder", tasks: list[str], scale: float = 0.5) -> Coefficients:
    """Add all task vectors with one fixed scale (the paper's static row: 0.5)."""
    return scaled(encoder, dict.fromkeys(tasks, scale))
