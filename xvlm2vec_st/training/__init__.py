"""The trainer: FSDP2, callbacks, checkpoints and evaluation of held-out rows."""
