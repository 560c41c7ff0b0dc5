"""What happens to the inputs of `encode` before they reach the language model."""
