"""Qwen2-Audio as a host of memory layers: one utterance per prompt, emotion as an answer.

The prompt asks for the emotion of one utterance; an emotion's score is the log-likelihood of its
word as the answer [ours; the publication's read-out is unread]. Memory layers sit in the language
model, hear the audio tokens of the prompt only, and never the answers.

    host = Qwen2AudioHost.from_pretrained("Qwen/Qwen2-Audio-7B-Instruct", labels, dtype="bfloat16")
    memory = Memory(host.hidden_size, [16])
    host.attach(memory)
    scores = host(speech, lengths, memory, Turns(("d1", "d2")))          # [2, C]
"""

import inspect
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from espnet_adaltm.config import check_keys
from espnet_adaltm.errors import UserError
from espnet_adaltm.models.memory import Memory
from espnet_adaltm.models.memory_layer import Turns

if TYPE_CHECKING:
    from transformers import Qwen2AudioForConditionalGeneration, Qwen2AudioProcessor
    from transformers.cache_utils import Cache

PROMPT = "Which emotion does the speaker express? Answer with one word of: {words}."
SAMPLE_RATE = 16_000


class Qwen2AudioHost(nn.Module):
    """A frozen Qwen2-Audio that rates emotion words.

    Args:
        model: The model, in any number type; frozen and in evaluation mode from now on.
        processor: Its processor. It hears the first 30 s of an utterance.
        labels: The emotions, in order.
        prompt: The question; ``{words}`` becomes the list of words.
        words: Emotion to the word that stands for it; the emotion's name by default.

    Raises:
        UserError: ``words`` is for other emotions, or two of them are the same to the tokenizer.
    """

    def __init__(
        self,
        model: "Qwen2AudioForConditionalGeneration",
        processor: "Qwen2AudioProcessor",
        labels: Sequence[str],
        *,
        prompt: str = PROMPT,
        words: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__()
        words = dict(words or {})
        check_keys(words, labels, "words of host_conf")
        self.model = model.requires_grad_(False).eval()
        self.processor = processor
        # The answer follows the prompt's last position in every row.
        processor.tokenizer.padding_side = "left"
        self.words = [words.get(label, label) for label in labels]
        self.text = self._template(prompt.format(words=", ".join(self.words)))
        self.answers = self._tokenize(self.words)

    @classmethod
    def from_pretrained(cls, source: str, labels: Sequence[str], **options: Any) -> Self:
        """Load from the Hub or a folder.

        Args:
            source: Hub id or folder.
            labels: The emotions, in order.
            **options: ``dtype`` (``bfloat16``, ``float32``, ``auto``), ``prompt``, ``words``.

        Raises:
            UserError: It cannot be loaded, or an unknown option.
        """
        known = inspect.signature(cls.__init__).parameters
        options = {"dtype": "auto", **options}
        check_keys(options, ("dtype", "prompt", "words"), "host_conf")
        own = {name: value for name, value in options.items() if name in known}
        from transformers import AutoProcessor, Qwen2AudioForConditionalGeneration

        try:
            processor = AutoProcessor.from_pretrained(source)
            model = Qwen2AudioForConditionalGeneration.from_pretrained(
                source, dtype=options["dtype"]
            )
        except (OSError, ValueError) as error:
            raise UserError(
                f"Qwen2-Audio cannot be loaded from {source!r} "
                f"({(str(error).splitlines() or ['?'])[0]}): give a folder or Hub id that has it"
            ) from error
        return cls(model, processor, labels, **own)

    @property
    def hidden_size(self) -> int:
        """Width of the language model."""
        return self.model.config.text_config.hidden_size

    @property
    def num_layers(self) -> int:
        """Layers of the language model."""
        return self.model.config.text_config.num_hidden_layers

    def attach(self, memory: Memory) -> None:
        """Hook the memory's layers to the language model's."""
        memory.attach(self.model.model.language_model.layers)

    def forward(self, speech: Tensor, lengths: Tensor, memory: Memory, turns: Turns) -> Tensor:
        """Rate the emotions of the turns of a batch.

        Args:
            speech: Waveforms [B, N], 16 kHz.
            lengths: Valid samples, [B].
            memory: That which was attached; its gradients are exact.
            turns: Dialogues of the rows.

        Returns:
            Log-likelihoods of the words [B, C], float32; their softmax are probabilities among C.
        """
        inputs = self.prepare(speech, lengths)
        with memory.listen(turns, mask=self.audio_mask(inputs["input_ids"])):
            prompt = self.model.model(**inputs, use_cache=True)
        last = self.model.lm_head(prompt.last_hidden_state[:, -1]).float().log_softmax(-1)
        scores = last[:, [answer[0] for answer in self.answers]]
        if max(len(answer) for answer in self.answers) == 1:
            return scores
        with memory.paused():
            return scores + self._rest(prompt.past_key_values, inputs["attention_mask"])

    def prepare(self, speech: Tensor, lengths: Tensor) -> dict[str, Tensor]:
        """The model's inputs for a batch of utterances, on its device, padded on the left."""
        waves = [row[:size].cpu().float().numpy() for row, size in zip(speech, lengths.tolist())]
        inputs = self.processor(
            text=[self.text] * len(waves),
            audio=waves,
            sampling_rate=SAMPLE_RATE,
            return_tensors="pt",
            padding=True,
        )
        mask = inputs["attention_mask"]
        inputs = {
            **inputs,
            "input_features": inputs["input_features"].to(self.model.dtype),
            # As if there was no padding: the numbers do not depend on the batch.
            "position_ids": (mask.cumsum(-1) - 1).clamp(min=0),
        }
        return {name: tensor.to(self.model.device) for name, tensor in inputs.items()}

    def audio_mask(self, input_ids: Tensor) -> Tensor:
        """Audio positions of token ids [B, T], bool."""
        return input_ids == self.model.config.audio_token_id

    def _rest(self, cache: "Cache", prompt_mask: Tensor) -> Tensor:
        """Log-likelihoods [B, C] of the words' tokens after their first ones."""
        rows, count = len(prompt_mask), len(self.answers)
        device = prompt_mask.device
        tokens = [torch.tensor(answer, device=device) for answer in self.answers]
        padded = pad_sequence(tokens, batch_first=True).repeat(rows, 1)
        inside = pad_sequence([torch.ones_like(t) for t in tokens], batch_first=True)
        inside = inside.repeat(rows, 1)
        mask = torch.cat([prompt_mask.repeat_interleave(count, 0), inside[:, :-1]], dim=1)
        begin = prompt_mask.sum(1).repeat_interleave(count)[:, None]
        output = self.model.model(
            input_ids=padded[:, :-1],
            attention_mask=mask,
            position_ids=begin + torch.arange(padded.shape[1] - 1, device=device),
            past_key_values=_repeated(cache, count),
            use_cache=True,
        )
        scores = self.model.lm_head(output.last_hidden_state).float().log_softmax(-1)
        scores = scores.gather(-1, padded[:, 1:, None])[..., 0]
        return (scores * inside[:, 1:]).sum(-1).view(rows, count)

    def _template(self, question: str) -> str:
        audio = {"type": "audio", "audio_url": "utterance"}
        content = [audio, {"type": "text", "text": question}]
        return self.processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
        )

    def _tokenize(self, words: Sequence[str]) -> list[list[int]]:
        tokenizer = self.processor.tokenizer
        answers = [tokenizer(word, add_special_tokens=False)["input_ids"] for word in words]
        for index, answer in enumerate(answers):
            if not answer or answer in answers[:index]:
                raise UserError(
                    f"the word {words[index]!r} is {'nothing' if not answer else 'another one'} to "
                    "the tokenizer: give other `words` in host_conf"
                )
        return answers


def _repeated(cache: "Cache", count: int) -> "Cache":
    """Every row of a cache ``count`` times; gradients pass."""
    from transformers import DynamicCache

    result = DynamicCache()
    for number, layer in enumerate(cache.layers):
        keys, values = (part.repeat_interleave(count, 0) for part in (layer.keys, layer.values))
        result.update(keys, values, number)
    return result
