"""AdaLTM: learned layer-wise merging of an ASR and an emotion expert, as a staged pipeline."""

__version__ = "0.1.0"
