"""Models over tokens that know no modality: the contract, sampling rules, and a plain autoregressive transformer."""

from smalti.generate.autoregressive import AutoregressiveTransformer
from smalti.generate.base import Generator, Modelled
from smalti.generate.sampling import Sampling

__all__ = ["AutoregressiveTransformer", "Generator", "Modelled", "Sampling"]
