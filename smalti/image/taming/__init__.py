"""VQGAN and the transformer over its tokens ("Taming Transformers for High-Resolution Image Synthesis", 2020).

tokenizer.py    VQGAN: image <-> codes
codebook.py     the codebooks it was published with, and codes renumbered to those in use
published.py    configurations and key names of taming-transformers, latent diffusion and diffusers
generator.py    MinGPT: codes after a class, a segmentation map, or nothing
"""

from smalti.image.taming.generator import MinGPT
from smalti.image.taming.tokenizer import VQGAN

__all__ = ["VQGAN", "MinGPT"]
