"""The model floor: plain torch, knows no files and no cluster.

architecture  the `model` section and the sizes that it resolves to (no torch)
attention     softmax attention: torch's fused kernel and a plain reference beside it
layers        conv stem, positional convolution, encoder layer
transformer   backbone + pooling + head: ECG in, logits out
losses        the `loss` section and two pure functions
"""
