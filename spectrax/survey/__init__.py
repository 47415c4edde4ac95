"""The survey behind `spectrax spectrum`: which matrices a checkpoint has, what is measured of each, what is written."""

from spectrax.survey.configuration import SpectrumConfig
from spectrax.survey.runs import survey

__all__ = ["SpectrumConfig", "survey"]
