"""AnatoMask: reconstruction-guided self-masking for 3D medical image segmentation (Li et al., ECCV 2024)."""

__version__ = "0.1.0"
