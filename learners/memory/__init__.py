"""What a run will hold on each GPU, by arithmetic, and whether it fits."""
