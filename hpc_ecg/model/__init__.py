"""The model floor: plain torch, knows no files and no cluster.

architecture  the `model` section and the sizes that it resolves to (no torch)
attention     softmax attention: torch's fused kernels and a plain reference beside them
kernels       which of them runs here, tried and said before a training
dropout       dropout that belongs to the record: the same on any rank
layers        conv stem, positional convolution, encoder layer
transformer   backbone + pooling + head: ECG in, logits out
losses        the `loss` section and two pure functions
flops         operations of a record by formula, and what devices can do at most
"""
