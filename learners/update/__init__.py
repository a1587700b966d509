"""The second half of a step: one optimiser update on sampled responses."""
