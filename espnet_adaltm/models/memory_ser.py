"""A speech emotion recogniser with a memory of the dialogue (host: our own SER model).

Frames are the audio tokens [ours]. A memory needs nothing but what its own layer returns for each
turn: a batch of whole dialogues passes every host layer at once, only the memories go turn by turn
(`memory_layer.Turns`), and the result is that of one turn after the other.
"""

from torch import Tensor, nn

from espnet_adaltm.backbone.encoder import SpeechEncoder
from espnet_adaltm.models.emotion import EmotionHead
from espnet_adaltm.models.memory import Memory
from espnet_adaltm.models.memory_layer import Turns


class TapEncoder(SpeechEncoder):
    """A `SpeechEncoder` whose layer outputs pass modules that hooks can be put on.

    Its fused computation never calls the layers themselves. ``taps[i]`` has no parameters and is
    called with the output of layer i + 1.

    Args:
        encoder: Its body is taken over.
    """

    def __init__(self, encoder: SpeechEncoder) -> None:
        training = encoder.training
        super().__init__(encoder.body, do_normalize=encoder.do_normalize)
        self.taps = nn.ModuleList(nn.Identity() for _ in range(self.num_layers))
        self.train(training)

    def _layer(
        self, layer: nn.Module, x: Tensor, bias: Tensor | None, padding: Tensor | None
    ) -> Tensor:
        layers = self.body.encoder.layers
        number = next(index for index, other in enumerate(layers) if other is layer)
        return self.taps[number](super()._layer(layer, x, bias, padding))


class SerHost(nn.Module):
    """The recogniser that a memory is attached to.

    Args:
        encoder: Taken over.
        head: Emotion head over all layers.
    """

    def __init__(self, encoder: SpeechEncoder, head: EmotionHead) -> None:
        super().__init__()
        self.encoder = TapEncoder(encoder)
        self.head = head

    @property
    def hidden_size(self) -> int:
        """Width of the hidden states."""
        return self.encoder.hidden_size

    @property
    def num_layers(self) -> int:
        """Layers that a memory can follow."""
        return self.encoder.num_layers

    def attach(self, memory: Memory) -> None:
        """Hook the memory's layers."""
        memory.attach(self.encoder.taps)

    def forward(self, speech: Tensor, lengths: Tensor, memory: Memory, turns: Turns) -> Tensor:
        """Classify the turns of a batch.

        Args:
            speech: Waveforms [B, N] or CNN features [B, T, C].
            lengths: Valid samples or frames, [B].
            memory: That which was attached.
            turns: Dialogues of the rows.

        Returns:
            Logits [B, C].
        """
        frames = lengths if speech.ndim == 3 else self.encoder.frame_lengths(lengths)
        with memory.listen(turns, lengths=frames):
            output = self.encoder(speech, lengths)
        return self.head(output.hidden, output.lengths)
