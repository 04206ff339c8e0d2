"""The model floor: plain torch, knows no files and no cluster.

architecture  the `model` section and the sizes that it resolves to (no torch)
attention     softmax attention: torch's fused kernels and a plain reference beside them
kernels       tries the attention kernel before a training, and says which one runs
dropout       dropout that depends on the record alone: the same on any rank
layers        conv stem, positional convolution, encoder layer; random weights from a seed
transformer   backbone + pooling + head: ECG in, logits out
losses        the `loss` section and two pure functions
flops         operations of a record by formula, and the peak of devices (no torch)
"""
