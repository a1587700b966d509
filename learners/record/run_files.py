"""The names of what a run writes into its folder."""

CONFIG = "config.json"
METRICS = "metrics.jsonl"
SAMPLES = "samples.jsonl"
ROLLOUTS = "rollouts"
SUMMARY = "summary.json"
PLOT = "reward.png"
CHECKPOINTS = "checkpoints"
MANIFEST = "manifest.json"  # of each checkpoint
