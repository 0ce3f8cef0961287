"""One coefficient step, by one program, timed in a process of its own.

    python -m espnet_adaltm.benchmark.steps '{"program": "ours", "size": "small", ...}'

prints a line of JSON. `merge_step` starts these processes.
"""

import contextlib
import copy
import ctypes
import gc
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from espnet_adaltm.backbone.blocks import BlockMap, common_name
from espnet_adaltm.backbone.encoder import SpeechEncoder, build_body
from espnet_adaltm.benchmark.checkpoints import wavlm_config
from espnet_adaltm.merging.coefficients import Coefficients
from espnet_adaltm.merging.merged import MergedEncoder, coefficients_for
from espnet_adaltm.merging.task_vector import TaskVector

TASKS = ("asr", "ser")
MICRO_BATCHES = 4
_CNN = "feature_extractor."
_RATE = 16_000
# What fine-tuning adds, relative to weights of this spread.
_STEP = 0.01 * 0.02
Step = Callable[[], Tensor | None]


@dataclass(frozen=True)
class Task:
    """What one process does.

    Attributes:
        program: A key of `PROGRAMS`.
        size: Of the encoder (`checkpoints.SIZES`).
        cnn: ``frozen``: the experts left the convolutional front end alone, as in the usual
            fine-tuning; ``merged``: they moved it too.
        batch: Clips, a multiple of `MICRO_BATCHES`.
        seconds: Of each clip.
        steps: Timed steps after one to warm up.
        threads: For PyTorch.
        device: ``cpu`` or ``cuda``.
        precision: ``float32``, ``tf32`` or ``bfloat16`` (autocast).
    """

    program: str
    size: str = "small"
    cnn: str = "frozen"
    batch: int = 4
    seconds: float = 10.0
    steps: int = 2
    threads: int = 1
    device: str = "cpu"
    precision: str = "float32"


@dataclass
class Scene:
    """What the programs have in common.

    Attributes:
        task: The options.
        encoder: The base: ours, or Hugging Face's.
        speech: Waveforms [B, N].
        lengths: Samples [B].
    """

    task: Task
    encoder: nn.Module
    speech: Tensor
    lengths: Tensor

    def parameters(self) -> dict[str, nn.Parameter]:
        """Parameters that an expert moves, by path; they require gradients, all others do not."""
        self.encoder.requires_grad_(False)
        chosen = {
            path: parameter
            for path, parameter in self.encoder.named_parameters()
            if self.task.cnn == "merged" or not common_name(path).startswith(_CNN)
        }
        for parameter in chosen.values():
            parameter.requires_grad_(True)
        return chosen

    def micro_batches(self) -> list[tuple[Tensor, Tensor]]:
        """The batch in `MICRO_BATCHES` parts."""
        size = len(self.speech) // MICRO_BATCHES
        return list(zip(self.speech.split(size), self.lengths.split(size), strict=True))


def build_scene(task: Task) -> Scene:
    """A random base and a batch, the same in every process."""
    torch.manual_seed(0)
    body = build_body(wavlm_config(task.size)).eval()
    encoder = body if "hugging_face" in task.program else SpeechEncoder(body).eval()
    generator = torch.Generator().manual_seed(1)
    samples = int(task.seconds * _RATE)
    speech = torch.randn(task.batch, samples, generator=generator)
    lengths = torch.full((task.batch,), samples)
    device = torch.device(task.device)
    return Scene(task, encoder.to(device), speech.to(device), lengths.to(device))


def difference(tensor: Tensor, task: int, place: int) -> Tensor:
    """What the expert of a task adds to the tensor at a place of the model, on its device."""
    generator = torch.Generator().manual_seed(1000 * (task + 1) + place)
    return (_STEP * torch.randn(tensor.shape, generator=generator)).to(tensor.device)


def read_out(hidden: list[Tensor]) -> Tensor:
    """A scalar that depends on every transformer layer, as a layer sum does."""
    return sum(layer.float().square().mean() for layer in hidden[1:])


def floor(scene: Scene) -> Step:
    """Forward and full backward pass of the base with weight gradients, no optimiser."""
    return _floor(scene, [(scene.speech, scene.lengths)])


def floor_micro(scene: Scene) -> Step:
    """The same in micro-batches."""
    return _floor(scene, scene.micro_batches())


def _floor(scene: Scene, batches: list[tuple[Tensor, Tensor]]) -> Step:
    scene.parameters()

    def step() -> None:
        scene.encoder.zero_grad()
        for speech, lengths in batches:
            (read_out(scene.encoder(speech, lengths).hidden) / len(batches)).backward()

    return step


def cnn(scene: Scene) -> Step:
    """The convolutional front end's part of the step."""
    scene.parameters()

    def step() -> None:
        scene.encoder.zero_grad()
        features, _ = scene.encoder.cnn(scene.speech, scene.lengths)
        if features.requires_grad:
            features.square().mean().backward()

    return step


def fusion_bench(scene: Scene) -> Step:
    """FusionBench's ``LayerWiseMergedModel`` around our encoder."""
    return _fusion_bench(scene, lambda model: model(scene.speech, scene.lengths).hidden)


def fusion_bench_hugging_face(scene: Scene) -> Step:
    """The same around Hugging Face's WavLM: what is there without this package."""
    return _fusion_bench(
        scene, lambda model: list(model(scene.speech, output_hidden_states=True).hidden_states)
    )


def _fusion_bench(scene: Scene, encode: Callable[[nn.Module], list[Tensor]]) -> Step:
    from fusion_bench.models.wrappers.layer_wise_fusion import LayerWiseMergedModel

    moved = scene.parameters()
    experts = []
    for task in range(len(TASKS)):
        expert = copy.deepcopy(scene.encoder)
        with torch.no_grad():
            for place, path in enumerate(moved):
                parameter = expert.get_parameter(path)
                parameter += difference(parameter, task, place)
        experts.append(expert)
    weights = torch.full((len(TASKS), len(moved)), 0.5, device=scene.speech.device)
    model = LayerWiseMergedModel(weights, scene.encoder, experts, clamp_weights=False)
    blocks = BlockMap.of_module(scene.encoder)
    columns = torch.tensor([blocks[path].block for path in moved], device=weights.device)

    def step() -> Tensor:
        model.merge_weight.grad = None
        model.merge_weights()
        read_out(encode(model)).backward()
        by_block = weights.new_zeros(len(TASKS), blocks.num_blocks)
        return by_block.index_add(1, columns, model.merge_weight.grad)

    return step


def ours(scene: Scene) -> Step:
    """This package's step."""
    return _ours(scene, [(scene.speech, scene.lengths)])


def ours_kept(scene: Scene) -> Step:
    """With the merged weights kept for the backward pass."""
    return _ours(scene, [(scene.speech, scene.lengths)], keep=True)


def ours_extracted(scene: Scene) -> Step:
    """From stored features of the front end."""
    with torch.no_grad():
        features = scene.encoder.cnn(scene.speech, scene.lengths)
    return _ours(scene, [features])


def ours_micro(scene: Scene) -> Step:
    """In micro-batches, the gradient projected in each."""
    return _ours(scene, scene.micro_batches())


def ours_accumulated(scene: Scene) -> Step:
    """In micro-batches, the gradient projected once."""
    return _ours(scene, scene.micro_batches(), accumulate=True)


def _ours(
    scene: Scene,
    batches: list[tuple[Tensor, Tensor]],
    *,
    accumulate: bool = False,
    keep: bool = False,
) -> Step:
    coefficients = coefficients_for(scene.encoder, TASKS).to(scene.speech.device)
    model = _merged(scene, coefficients, keep)

    def step() -> Tensor:
        coefficients.raw.grad = None
        with model.accumulating(len(batches)) if accumulate else contextlib.nullcontext():
            for speech, lengths in batches:
                (read_out(model(speech, lengths).hidden) / len(batches)).backward()
        return coefficients.raw.grad

    return step


def _merged(scene: Scene, coefficients: Coefficients, keep: bool) -> MergedEncoder:
    moved = scene.parameters()
    places = {path: place for place, path in enumerate(moved)}
    vectors = {
        name: TaskVector(
            {
                common_name(path): difference(parameter, task, places[path])
                if path in moved
                else torch.zeros_like(parameter)
                for path, parameter in scene.encoder.named_parameters()
            }
        )
        for task, name in enumerate(TASKS)
    }
    return MergedEncoder(scene.encoder, vectors, coefficients, keep_merged=keep)


PROGRAMS: dict[str, Callable[[Scene], Step]] = {
    function.__name__: function
    for function in (
        *(floor, floor_micro, cnn, fusion_bench, fusion_bench_hugging_face),
        *(ours, ours_kept, ours_extracted, ours_micro, ours_accumulated),
    )
}


class Memory:
    """Resident memory of this process, or allocated memory of its GPU."""

    def __init__(self, device: str) -> None:
        self.cuda = device == "cuda"

    def settle(self) -> int:
        """Give back what is free; bytes in use."""
        gc.collect()
        if self.cuda:
            torch.cuda.synchronize()
            return torch.cuda.memory_allocated()
        with contextlib.suppress(OSError, AttributeError):  # not glibc
            ctypes.CDLL("libc.so.6").malloc_trim(0)
        return _status("VmRSS")

    def forget_peak(self) -> None:
        """Start to measure the peak anew."""
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
        else:
            with contextlib.suppress(OSError):  # refused: the peak includes the preparation
                Path("/proc/self/clear_refs").write_text("5")

    def peak(self) -> int:
        """Most bytes in use since."""
        return torch.cuda.max_memory_allocated() if self.cuda else _status("VmHWM")


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:"))


@contextlib.contextmanager
def _precision(task: Task) -> Iterator[None]:
    torch.backends.cuda.matmul.allow_tf32 = task.precision == "tf32"
    torch.backends.cudnn.allow_tf32 = task.precision == "tf32"
    with torch.autocast(task.device, torch.bfloat16, enabled=task.precision == "bfloat16"):
        yield


def run_task(task: Task) -> dict[str, Any]:
    """Prepare, warm up and time.

    Returns:
        The task's attributes, ``step_seconds``, ``step_cpu_seconds`` (of all threads),
        ``resident_mb`` (what is added to the base between steps), ``peak_mb`` (the most that is
        added during one) and ``gradient`` by block, [K][L + 1], or None.
    """
    torch.set_num_threads(task.threads)
    if task.program.startswith("fusion_bench"):
        import fusion_bench.models.wrappers.layer_wise_fusion  # noqa: F401
    scene, memory = build_scene(task), Memory(task.device)
    base = memory.settle()
    step = PROGRAMS[task.program](scene)
    resident = memory.settle()
    memory.forget_peak()
    seconds, cpu_seconds, gradient = [], [], None
    with _precision(task):
        for _ in range(1 + task.steps):
            start, cpu_start = time.perf_counter(), time.process_time()
            gradient = step()
            if memory.cuda:
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - start)
            cpu_seconds.append(time.process_time() - cpu_start)
    return {
        **asdict(task),
        "step_seconds": seconds[1:],
        "step_cpu_seconds": cpu_seconds[1:],
        "parameters": sum(parameter.numel() for parameter in scene.encoder.parameters()),
        "resident_mb": (resident - base) / 2**20,
        "peak_mb": (memory.peak() - base) / 2**20,
        "gradient": None if gradient is None else gradient.tolist(),
    }


if __name__ == "__main__":
    sys.stdout.write(json.dumps(run_task(Task(**json.loads(sys.argv[1])))) + "\n")
