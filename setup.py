"""Packaging; ``tools/setup.sh`` is the installer and pins the versions that are tested."""

from pathlib import Path

from setuptools import find_packages, setup

# Names as in tools/requirements.txt; a test compares the two.
INFERENCE = [
    "espeakng-loader>=0.2.4",
    "huggingface-hub>=1.31",
    "jinja2>=3.1",
    "kaldiio>=2.18",
    "matplotlib>=3.8",
    "numpy>=1.26",
    "pyyaml>=6.0",
    "rapidfuzz>=3.6",
    "safetensors>=0.4",
    "scikit-learn>=1.4",
    "scipy>=1.11",
    "sentencepiece>=0.2.0",
    "soundfile>=0.12",
    "soxr>=0.5",
    "torch>=2.4",
    "tqdm>=4.66",
    "transformers>=5.0",
]
TRAINING = ["espnet==202511", "tensorboard>=2.16", "torchaudio", "torcheval>=0.0.7"]
ONNX = ["onnx>=1.17", "onnxruntime>=1.20"]
DEVELOPMENT = ["hypothesis>=6.100", "jiwer>=3.0", "pytest>=8.0", "pytest-xdist>=3.5", "ruff>=0.9"]

readme = Path(__file__).with_name("README.md")

setup(
    name="espnet_adaltm",
    version="0.1.0",
    description="Speech emotion recognition by layer-wise task-vector merging, with ESPnet",
    long_description=readme.read_text(encoding="utf-8") if readme.exists() else "",
    long_description_content_type="text/markdown",
    packages=find_packages(include=["espnet_adaltm", "espnet_adaltm.*"]),
    package_data={"espnet_adaltm.report": ["templates/*"]},
    python_requires=">=3.11",
    install_requires=INFERENCE,
    extras_require={"train": TRAINING, "onnx": ONNX, "dev": DEVELOPMENT},
    entry_points={"console_scripts": ["espnet-adaltm=espnet_adaltm.bin.main:main"]},
)
