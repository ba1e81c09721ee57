"""Small, and no language model: scikit-learn's digits with a convolutional network that has BatchNorm."""
