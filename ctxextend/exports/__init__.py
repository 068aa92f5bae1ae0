"""What a GGUF export of a safetensors checkpoint holds: its keys and its tensors. Pure."""
