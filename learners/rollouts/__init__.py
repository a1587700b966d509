"""The first half of a step: prompts are sampled and graded, and become a batch of tensors."""
