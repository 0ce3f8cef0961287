"""AdaLTM: learned layer-wise merging of an ASR and an emotion expert, as a staged pipeline."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from espnet_adaltm.recognizer import EmotionRecognizer, Prediction

__version__ = "0.1.0"
__all__ = ["EmotionRecognizer", "Prediction"]


def __getattr__(name: str) -> Any:
    """Import the recogniser, and with it torch, only when somebody asks for it."""
    if name in __all__:
        from espnet_adaltm import recognizer

        return getattr(recognizer, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
