"""Which folders make up the package `visionllm`; everything else about it stands in pyproject.toml."""

from __future__ import annotations

from setuptools import find_namespace_packages, setup

# Import name -> folder. datasets/ has no __init__.py: one would hide Hugging Face's package of that name from the
# repository root. configs/ is data only: it travels inside the package so that an installation has its cards.
FOLDERS = {
    "visionllm": "visionllm",
    "visionllm.decoders": "decoders",
    "visionllm.routing": "routing",
    "visionllm.datasets": "datasets",
    "visionllm.configs": "configs",
}


def below(folder: str) -> list[str]:
    """Sub-folders by dotted name. Those with data only count too: setuptools warns of data outside any package."""
    return find_namespace_packages(folder, exclude=["*__pycache__*"])


setup(
    packages=[*FOLDERS, *(f"{name}.{found}" for name, folder in FOLDERS.items() for found in below(folder))],
    package_dir=FOLDERS,
    package_data={"": ["*.yaml", "*.json", "*.txt"], "visionllm": ["py.typed", "assets/**/*"]},
)
