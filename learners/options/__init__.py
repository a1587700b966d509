"""What can be chosen: every option, its default, what contradicts what, the presets, what --dtype decides."""
