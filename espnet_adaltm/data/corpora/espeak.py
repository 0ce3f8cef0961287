"""eSpeak NG through ctypes: text in, the same samples out every time.

The library comes with the package ``espeakng-loader`` and needs no installation on the system. It
keeps noise generators and phases between calls that neither a new voice nor a new initialisation
resets, so the same sentence differs with what was spoken before it. Every utterance is therefore
spoken by a forked child of a process that has never spoken itself.
"""

import atexit
import ctypes
import os
import shutil
import tempfile
from dataclasses import astuple, dataclass
from pathlib import Path

import numpy as np

from espnet_adaltm.errors import UserError

_SYNCHRONOUS = 2
_UTF8 = 1
_RATE, _VOLUME, _PITCH, _RANGE = 1, 2, 3, 4
# espeak-ng copies the data path into 160 bytes and appends file names to it elsewhere.
_LONGEST_DATA_PATH = 120
_Callback = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p
)


@dataclass(frozen=True)
class Settings:
    """The four numbers eSpeak NG takes before an utterance.

    Attributes:
        rate: Words per minute, 80 to 450.
        volume: 0 to 200, 100 is the default.
        pitch: 0 to 100, 50 is the voice's own.
        range: Width of the intonation, 0 (monotone) to 100.
    """

    rate: int
    volume: int
    pitch: int
    range: int


def short_path(path: Path, longest: int = _LONGEST_DATA_PATH) -> Path:
    """Return ``path``, or a link to it in the temporary folder when it is too long to be read."""
    if len(os.fsencode(path)) <= longest:
        return path
    folder = tempfile.mkdtemp(prefix="espeak")
    owner = os.getpid()
    # A forked child inherits the hook and must leave the link to its parent.
    atexit.register(lambda: os.getpid() == owner and shutil.rmtree(folder, ignore_errors=True))
    link = Path(folder) / path.name
    link.symlink_to(path.resolve(), target_is_directory=True)
    return link


class Espeak:
    """One initialised library that only its forked children speak with.

    Attributes:
        sample_rate: Of the samples that `speak` returns, in Hz (22050).

    Raises:
        UserError: ``espeakng-loader`` is missing or its library does not start.
    """

    def __init__(self) -> None:
        try:
            import espeakng_loader

            self._library = ctypes.CDLL(espeakng_loader.get_library_path())
        except (ImportError, OSError) as error:
            raise UserError(
                f"eSpeak NG is not available ({error}): run `pip install espeakng-loader`"
            ) from error
        data = short_path(Path(espeakng_loader.get_data_path()))
        self.sample_rate = self._library.espeak_Initialize(_SYNCHRONOUS, 0, os.fsencode(data), 0)
        if self.sample_rate <= 0:
            raise UserError(
                f"eSpeak NG found no usable voices in {data}: reinstall espeakng-loader"
            )
        self._chunks: list[bytes] = []
        # ctypes keeps no reference to a callback: this attribute does.
        self._callback = _Callback(self._collect)
        self._library.espeak_SetSynthCallback(self._callback)

    def _collect(self, samples: object, count: int, _events: object) -> int:
        if samples and count > 0:
            self._chunks.append(ctypes.string_at(samples, 2 * count))
        return 0

    def _synthesise(self, text: str, voice: str, settings: Settings) -> bytes:
        library = self._library
        if library.espeak_SetVoiceByName(voice.encode()) != 0:
            raise ValueError(f"unknown voice {voice}")
        for parameter, value in zip((_RATE, _VOLUME, _PITCH, _RANGE), astuple(settings)):
            library.espeak_SetParameter(parameter, value, 0)
        data = text.encode()
        library.espeak_Synth(data, len(data) + 1, 0, 0, 0, _UTF8, None, None)
        library.espeak_Synchronize()
        return b"".join(self._chunks)

    def speak(self, text: str, voice: str, settings: Settings) -> np.ndarray:
        """Speak one utterance.

        Args:
            text: What to say.
            voice: Voice file and variant, such as ``en-us+f3``.
            settings: Rate, volume, pitch and range.

        Returns:
            Samples [N], int16, at ``sample_rate``.

        Raises:
            UserError: The voice is unknown or nothing was spoken.
        """
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            status = 1
            try:
                os.close(reader)
                with os.fdopen(writer, "wb") as pipe:
                    pipe.write(self._synthesise(text, voice, settings))
                status = 0
            finally:
                os._exit(status)
        os.close(writer)
        with os.fdopen(reader, "rb") as pipe:
            data = pipe.read()
        _, status = os.waitpid(child, 0)
        if status != 0 or not data:
            raise UserError(f"eSpeak NG could not say {text!r} with the voice {voice!r}")
        return np.frombuffer(data, dtype=np.int16)
