"""Pictures of a run."""

from pathlib import Path


def draw_run(history: list[dict], evaluations: list[tuple[int, float]], title: str, file: Path) -> None:
    """Reward, mismatch and loss scale over the steps of one run, as a PNG, from the records of metrics.jsonl and
    (step, accuracy on held-out problems) of each evaluation."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    steps = [record["step"] for record in history]

    def series(key):
        return [record[key] if record.get(key) is not None else float("nan") for record in history]

    figure, (reward, mismatch, scale) = pyplot.subplots(3, 1, figsize=(7, 7), sharex=True, height_ratios=(2, 1.3, 1))
    reward.plot(steps, series("train/reward"), color="black", label="training reward")
    if evaluations:
        reward.plot(*zip(*evaluations, strict=True), "o--", color="tab:blue", label="accuracy, held-out problems")
    reward.set_ylim(0, 1.02)
    reward.set_ylabel("reward")
    reward.legend(loc="lower right", frameon=False)
    reward.set_title(title)
    mismatch.semilogy(steps, series("mismatch/abs_prob_diff_mean"), color="black", label="mean |pi - mu|")
    mismatch.semilogy(steps, series("mismatch/kl_k3"), "--", color="tab:red", label="KL(mu, pi), k3")
    mismatch.set_ylabel("mismatch")
    mismatch.legend(loc="lower right", bbox_to_anchor=(1, 0.95), frameon=False, ncol=2)  # above the lines, not on them
    scale.step(steps, series("precision/loss_scale"), where="post", color="black")
    scale.set_yscale("log", base=2)
    scale.set_ylabel("loss scale")
    skipped = series("precision/skipped_updates")
    if skipped[-1]:
        twin = scale.twinx()
        twin.step(steps, skipped, ":", where="post", color="tab:red")
        twin.set_ylabel("skipped updates", color="tab:red")
    scale.set_xlabel("step")
    for axis in (reward, mismatch, scale):
        axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(file, dpi=120)
    pyplot.close(figure)
