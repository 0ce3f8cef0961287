"""Audio in: whatever libsndfile, a Kaldi ark or a pipe gives, as 16-bit mono at one sample rate.

A broken file is an error that names it. libsndfile returns what is left of a truncated WAV, AIFF or
Ogg file without a word, so what the header promises is compared with what was read.
"""

import io
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from espnet_adaltm.errors import UserError
from espnet_adaltm.kaldi import safe_kaldiio

# Sizes from here on are the placeholders of programs that write to a pipe, not real sizes.
_STREAMED = 0x7FFF0000
_SLACK_BYTES = 8
_UNKNOWN_FRAMES = 1 << 40
_MAX_HEADER = 4096
_DECLARED = re.compile(r"^\s*(\w[\w ]*?)\s*:\s*(\d+)\s+\(should be (\d+)\)", re.MULTILINE)
_OGG_END_OF_STREAM = 0x04
_OGG_TAIL = 1 << 17
_ARK = re.compile(r"(.+\.ark.*):(\d{1,18})$")
_RANGE = re.compile(r".+\.ark.*:\d+\[.*\]$")
# What a damaged header may claim costs memory without end when it is resampled.
_SLOWEST, _FASTEST = 100, 1_000_000

_FRAME_SECONDS = 0.01
_SILENCE_BELOW_PEAK = 0.01  # -40 dB relative to the loudest frame


def load_audio(source: str, *, allow_pipes: bool = False) -> tuple[np.ndarray, int]:
    """Read one ``wav.scp`` value and mix it down to mono.

    Args:
        source: A path libsndfile can read, ``path.ark:offset``, or a shell command that ends in
            ``|`` and writes audio to its standard output, as in Kaldi.
        allow_pipes: Run such commands: a list of files that somebody else wrote is then a program.

    Returns:
        Samples, shape [N], float32, full scale 1; and their sample rate in Hz.

    Raises:
        UserError: Missing, empty, unreadable or truncated audio, a command that may not run or
            failed, NaN or infinite samples. The message names the source.
    """
    source = source.strip()
    check_pipe(source, f"`{source}`", allow_pipes)
    if is_pipe(source):
        samples, rate = _decode(_run(source), source)
    elif not _exists(source) and (match := _ARK.match(source)):
        samples, rate = _load_ark(source, match[1], int(match[2]))
    elif not _exists(source) and _RANGE.match(source):
        raise UserError(
            f"{source} takes a range out of an ark: list the whole, and cut in `segments`"
        )
    else:
        samples, rate = _decode(_existing(source), source)
    if not _SLOWEST <= rate <= _FASTEST:
        raise UserError(
            f"{source} claims {rate} samples per second, expected {_SLOWEST} to {_FASTEST}: its "
            "header is damaged"
        )
    return to_mono(samples, source), rate


def is_pipe(source: str) -> bool:
    """Whether Kaldi's tools would take a value of ``wav.scp`` for a command."""
    source = source.strip()
    return source.endswith("|") or source.startswith("|")


def check_pipe(source: str, where: str, allow_pipes: bool) -> None:
    """Refuse a value of ``wav.scp`` that is a command.

    Args:
        source: The value.
        where: What to call it in the error.
        allow_pipes: Accept those that give audio, which end in ``|``.

    Raises:
        UserError: Commands are not allowed, or it is one that takes audio.
    """
    source = source.strip()
    if source.startswith("|"):
        raise UserError(f"{where} begins with `|`, which is for output: give a file")
    if source.endswith("|") and not allow_pipes:
        raise UserError(
            f"{where} is a shell command, which is not run: convert the audio first, or allow "
            "pipes (--allow_pipes) if you trust the list"
        )


def decode_audio(content: bytes, name: str) -> tuple[np.ndarray, int]:
    """Read the content of an audio file, as `load_audio`; ``name`` is for errors."""
    if not content:
        raise UserError(f"{name} is empty (zero bytes)")
    samples, rate = _decode(content, name)
    return to_mono(samples, name), rate


def to_mono(samples: np.ndarray, source: str) -> np.ndarray:
    """Mean over the channels of [N, channels] samples, float32 [N].

    Raises:
        UserError: NaN or infinite samples; ``source`` names them.
    """
    if not np.isfinite(samples).all():
        raise UserError(f"{source} holds NaN or infinite samples: make the file again")
    channels = samples.shape[1]
    if channels == 1:
        return np.ascontiguousarray(samples[:, 0], dtype=np.float32)
    total = samples[:, 0].astype(np.float64)  # numpy is slow along so short an axis
    for channel in range(1, channels):
        total += samples[:, channel]
    return (total / channels).astype(np.float32)


def _exists(source: str) -> bool:
    try:
        return Path(source).exists()
    except OSError:  # a name that is too long, a folder that is closed
        return False


def _existing(source: str) -> Path:
    path = Path(source)
    if not _exists(source):
        raise UserError(f"{source} does not exist")
    if not path.is_file():
        raise UserError(f"{source} is not a file")
    if path.stat().st_size == 0:
        raise UserError(f"{source} is empty (zero bytes): copy it again")
    return path


def _run(source: str) -> bytes:
    result = subprocess.run(source[:-1], shell=True, capture_output=True, check=False)
    if result.returncode != 0 or not result.stdout:
        lines = result.stderr.decode("utf-8", "replace").strip().splitlines()
        said = f": {lines[-1]}" if lines else ""
        raise UserError(f"command `{source}` failed with status {result.returncode}{said}")
    return result.stdout


def _load_ark(source: str, ark: str, offset: int) -> tuple[np.ndarray, int]:
    size = _existing(ark).stat().st_size
    if offset >= size:
        raise UserError(f"{source} lies beyond the end of the ark, which has {size} bytes")
    try:
        rate, array = safe_kaldiio().load_mat(source)
        array = np.asarray(array)
        scale = 1.0 if array.dtype.kind == "f" else float(-np.iinfo(array.dtype).min)
        samples = array.reshape(len(array), -1).astype(np.float64) / scale
        return samples, int(rate)
    except Exception as error:  # kaldiio raises whatever the damage leads to, even AssertionError
        raise UserError(f"{source} is no readable audio in a Kaldi ark ({error})") from error


class _Content(io.BytesIO):
    """A file in memory; the sizes in a damaged one make libsndfile seek before its beginning."""

    def seek(self, offset: int, whence: int = 0) -> int:
        try:
            return super().seek(offset, whence)
        except ValueError:
            return super().seek(0)


def _decode(audio: Path | bytes, source: str) -> tuple[np.ndarray, int]:
    """Decode to [N, channels] float32, refusing what was cut off."""
    import soundfile

    try:
        with soundfile.SoundFile(audio if isinstance(audio, Path) else _Content(audio)) as file:
            declared, rate, kind, log = file.frames, file.samplerate, file.format, file.extra_info
            if declared >= _UNKNOWN_FRAMES:
                raise UserError(
                    f"{source} does not state its length, as FLAC from a pipe: let the program "
                    "write WAV, or convert the file"
                )
            samples = file.read(dtype="float32", always_2d=True)
    except MemoryError:
        raise UserError(
            f"{source} needs more memory than there is: is its header damaged?"
        ) from None
    except (RuntimeError, OSError) as error:  # LibsndfileError is a RuntimeError
        reason = str(error).replace(f"Error opening {str(audio)!r}: ", "")
        raise UserError(
            f"{source} cannot be decoded ({reason.rstrip('.')}): it is truncated, damaged or of a "
            "format that libsndfile does not know; copy or convert it again"
        ) from error
    # MPEG headers may round their frame count; every other format is exact.
    tolerance = declared // 50 if kind == "MP3" else 0
    if len(samples) < declared - tolerance:
        raise _truncated(source, f"{declared} frames", f"{len(samples)}")
    _check_container(audio, source, kind, log, len(samples))
    return samples, rate


def _check_container(audio: Path | bytes, source: str, kind: str, log: str, frames: int) -> None:
    """Compare what the container promises with what is there, where libsndfile is silent."""
    for name, declared, actual in _DECLARED.findall(log):
        if kind in ("WAV", "WAVEX", "AIFF") and name in ("RIFF", "FORM"):
            continue  # often wrong by the size of some trailing chunk; the data chunk tells
        missing = int(declared) - int(actual)
        if missing > _SLACK_BYTES and int(declared) < _STREAMED:
            raise _truncated(source, f"{declared} bytes", actual)
    size = len(audio) if isinstance(audio, bytes) else audio.stat().st_size
    if frames == 0 and size > _MAX_HEADER:
        raise _truncated(source, "no audio at all", f"{size} bytes (an unfinished recording?)")
    head, tail = _head_and_tail(audio)
    if head.startswith(b"NIST_1A"):
        count = re.search(rb"sample_count -i (\d+)", head)
        if count and frames < int(count[1]):
            raise _truncated(source, f"{int(count[1])} frames", f"{frames}")
    if head.startswith(b"OggS"):
        page = tail.rfind(b"OggS")
        # libsndfile takes the last whole page for the end; only the flag tells a real one.
        if page < 0 or page + 5 >= len(tail) or not tail[page + 5] & _OGG_END_OF_STREAM:
            raise _truncated(source, "a last Ogg page", "none")
        sizes = tail[page + 27 : page + 27 + tail[page + 26]] if page + 26 < len(tail) else b""
        if page + 27 + len(sizes) + sum(sizes) > len(tail):
            raise _truncated(source, "a whole last Ogg page", "a part of it")


def _head_and_tail(audio: Path | bytes) -> tuple[bytes, bytes]:
    if isinstance(audio, bytes):
        return audio[:1024], audio[-_OGG_TAIL:]
    with audio.open("rb") as handle:
        head = handle.read(1024)
        handle.seek(max(0, audio.stat().st_size - _OGG_TAIL))
        return head, handle.read()


def _truncated(source: str, promised: str, found: str) -> UserError:
    return UserError(
        f"{source} is truncated or damaged: its header promises {promised}, found {found}; "
        "copy it again"
    )


def resample(samples: np.ndarray, rate: int, target: int) -> np.ndarray:
    """Resample with soxr (HQ).

    Args:
        samples: Shape [N], float32.
        rate: Their sample rate in Hz.
        target: The wanted one in Hz.

    Returns:
        Shape [round(N * target / rate)], float32; the very same array if the rates are equal.
    """
    if rate == target:
        return samples
    import soxr

    return soxr.resample(samples, rate, target).astype(np.float32, copy=False)


def cut(samples: np.ndarray, rate: int, start: float, end: float) -> np.ndarray:
    """Cut ``start`` to ``end`` seconds (-1: to the end) out of [N] samples.

    An end up to half a second beyond the recording is the recording's end, as in Kaldi.

    Raises:
        UserError: The segment lies beyond the recording.
    """
    seconds = len(samples) / rate
    if end < 0:
        end = seconds
    if start > seconds or end > seconds + 0.5:
        raise UserError(
            f"segment {start:g} to {end:g} s lies beyond the recording of {seconds:.3f} s: "
            "correct `segments`"
        )
    return samples[round(start * rate) : round(end * rate)]


def to_int16(samples: np.ndarray) -> tuple[np.ndarray, bool]:
    """Round [N] float samples to 16 bits; 16-bit input comes back bit for bit.

    Returns:
        Samples, shape [N], int16; and whether any lay beyond full scale and was clipped.
    """
    scaled = np.rint(samples.astype(np.float64) * 32768.0)
    # +1.0 itself is full scale in floating-point files: losing its last step is no clipping.
    clipped = bool(scaled.size) and (scaled.max() > 32768 or scaled.min() < -32768)
    return np.clip(scaled, -32768, 32767).astype(np.int16), bool(clipped)


@dataclass(frozen=True)
class AudioStats:
    """What an audit wants to know of one utterance, measured once while its audio is at hand.

    Attributes:
        num_samples: Samples at the dump's rate.
        digest: Hash of the samples; equal digests are equal audio.
        peak: Largest magnitude, full scale 1.
        clipped: Share of the samples at full scale.
        leading_silence: Seconds before the first 10 ms within 40 dB of the loudest.
    """

    num_samples: int
    digest: str
    peak: float
    clipped: float
    leading_silence: float


def measure(samples: np.ndarray, rate: int) -> AudioStats:
    """Measure [N] int16 samples at ``rate`` Hz."""
    import hashlib

    size = max(1, round(_FRAME_SECONDS * rate))
    magnitude = np.abs(samples.astype(np.int32))
    frames = samples[: len(samples) // size * size].astype(np.float64).reshape(-1, size)
    rms = np.sqrt(np.mean(frames**2, axis=1)) if len(frames) else np.zeros(1)
    loud = np.flatnonzero(rms >= _SILENCE_BELOW_PEAK * rms.max())
    return AudioStats(
        num_samples=len(samples),
        digest=hashlib.sha256(samples.astype("<i2").tobytes()).hexdigest()[:16],
        peak=float(magnitude.max(initial=0)) / 32768.0,
        clipped=float(np.mean(magnitude >= 32767)) if len(samples) else 0.0,
        leading_silence=float(loud[0] * _FRAME_SECONDS),
    )
