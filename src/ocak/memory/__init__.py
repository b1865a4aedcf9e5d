"""What a model file holds and what it will cost in bytes. Pure: no device, no process."""
