"""What is specific to a model family: placeholder, image backend, LoRA targets, chat template."""
