"""The Llama, its attention and loss, and conversion for Hugging Face."""
