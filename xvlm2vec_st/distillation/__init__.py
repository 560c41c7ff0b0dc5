"""The xVLM2Vec loss: teachers, targets, states and error terms."""
