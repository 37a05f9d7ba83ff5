"""Fineline: pretraining of LLaMA-class models, with downstream tasks scored at every save."""

__version__ = "0.1.0"
