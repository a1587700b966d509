"""What is measured of a run, written into its folder and shown."""
