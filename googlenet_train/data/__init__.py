"""From photos on disk to batches: where they lie, in which order, decoded, cropped."""
