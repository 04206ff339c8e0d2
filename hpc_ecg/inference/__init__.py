"""Take a model home: the risks of recordings without labels."""
