"""What keeps a run whole: checkpoints that are verified, resuming, signals, full disks, one run per output folder.

Takes `RunSettings` and the output folder; gives a `Start`: where the run begins, and the settings that are in effect.
Nothing here imports torch.
"""
