"""nnU-Net 2.8.1's augmentation (`nnUNetTrainer.get_training_transforms`), batched on the device.

`draws` draws the parameters of each sample from its seed; `spatial` and `intensity` are functions of voxels and
parameters; `pipeline` puts them in nnU-Net's order. Mirroring, its last step, is drawn with the crop
(`anatomask.data.samples`).
"""
