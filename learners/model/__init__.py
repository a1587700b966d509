"""The model that is trained: loaded in its dtype, its log-probabilities, its adapters, its weights on their way out."""
