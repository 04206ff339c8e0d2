"""hpc_ecg: fine-tune the DeepECG-SSL transformer on clusters; learn which start is best."""

__version__ = "0.1.0"
