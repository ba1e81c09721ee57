"""GPT-2 from random weights: model, data, and the scripts that train it on equal and unequal workers."""
