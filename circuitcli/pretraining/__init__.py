"""Small language models, trained from nothing: text to tokens, the training, and the Hugging Face directory."""
