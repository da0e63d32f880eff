"""What a run stands on: processor, memory, disk, signals."""
