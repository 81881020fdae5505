"""What the engine costs and how it keeps time, each figure beside the target it is held to."""
